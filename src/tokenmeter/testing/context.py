"""What an endpoint is given, what it hands back, and what the provider remembers between requests."""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from tokenmeter.testing.reporting import Reports
from tokenmeter.testing.script import Answer, StreamUsage
from tokenmeter.testing.truth import Bill, Truth
from tokenmeter.testing.wire import JSON, Reply, Request

__all__ = ["Context", "Endpoint", "Provider", "RefusalError", "Route", "Served", "State", "merged"]

Provider = Literal["openai", "anthropic"]


class RefusalError(Exception):
    """The provider refuses a request; it is answered in the provider's error shape.

    Args:
        status: HTTP status.
        message: For people.
        kind: The error's ``type``; None = the usual one for the status.
        code: OpenAI's ``code``.
        param: OpenAI's ``param``.
    """

    def __init__(
        self, status: int, message: str, *, kind: str | None = None, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param


class State:
    """Objects the provider keeps: responses, files, jobs. One lock guards them all."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._stores: dict[str, dict[str, Any]] = {}
        self._mark = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    def new_id(self, prefix: str) -> str:
        """A fresh id, unlike that of any other provider object ever made."""
        return f"{prefix}{self._mark}{next(self._numbers):08x}"

    def put(self, store: str, identity: str, value: Any) -> None:
        """Keep `value`."""
        with self.lock:
            self._stores.setdefault(store, {})[identity] = value

    def get(self, store: str, identity: str) -> Any:
        """A kept value.

        Raises:
            RefusalError: 404, as the provider would answer.
        """
        found = self.find(store, identity)
        if found is None:
            raise RefusalError(404, f"No such object: {identity}")
        return found

    def find(self, store: str, identity: str) -> Any:
        """A kept value, else None."""
        with self.lock:
            return self._stores.get(store, {}).get(identity)

    def all(self, store: str) -> list[Any]:
        """All kept values, oldest first."""
        with self.lock:
            return list(self._stores.get(store, {}).values())

    def remove(self, store: str, identity: str) -> None:
        """Forget a value."""
        with self.lock:
            self._stores.get(store, {}).pop(identity, None)

    def clear(self) -> None:
        """Forget everything."""
        with self.lock:
            self._stores.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One request on its way through an endpoint.

    Attributes:
        request: As received.
        body: The decoded JSON or form fields.
        answer: What the script says.
        params: Captured parts of the path.
        stream_usage: How chat streams report usage.
        refusal_status: Status with which a host refuses ``stream_options``.
        state: What the provider remembers.
        now: The provider's clock, aware UTC.
        root: URL of the server, for links in answers.
        azure: Whether the path was an Azure deployment's.
        batch: Whether this is a line of a batch.
        books: Reads the provider's books, for its usage reports.
        reports: How it reports.
        inner: Serves one line of a batch (URL path and body): its endpoint and what was served.
    """

    request: Request
    body: JSON
    answer: Answer
    params: tuple[str, ...] = ()
    stream_usage: StreamUsage
    refusal_status: int = 400
    state: State
    now: datetime
    root: str
    azure: bool = False
    batch: bool = False
    books: Callable[[], list[Truth]]
    reports: Reports
    inner: Callable[[str, JSON], tuple[str, Served]]

    @property
    def timestamp(self) -> int:
        """Now, in seconds since the epoch."""
        return int(self.now.timestamp())

    def new_id(self, prefix: str) -> str:
        """An id for the answer: the scripted one, else a fresh one."""
        return self.answer.response_id or self.state.new_id(prefix)

    def need(self, name: str) -> Any:
        """A required parameter.

        Raises:
            RefusalError: 400 when it is missing.
        """
        if name not in self.body:
            raise RefusalError(400, f"Missing required parameter: '{name}'.", param=name)
        return self.body[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What an endpoint hands back.

    Attributes:
        reply: The HTTP response.
        bill: What it costs; None for a free answer.
        lines: What each line of a batch costs, when this request completed one.
    """

    reply: Reply
    bill: Bill | None = None
    lines: tuple[tuple[str, Bill], ...] = ()


Endpoint = Callable[[Context], Served]


class Route(NamedTuple):
    """One URL of a provider.

    Attributes:
        method: HTTP method.
        path: Path below the version, ``{}`` standing for any one part.
        name: SDK method path.
        serve: The endpoint.
    """

    method: str
    path: str
    name: str
    serve: Endpoint


def merged(base: JSON, extra: Mapping[str, Any]) -> JSON:
    """`base` with `extra` laid over it, object by object."""
    result = dict(base)
    for name, value in extra.items():
        below = result.get(name)
        result[name] = merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value  # pyright: ignore[reportUnknownArgumentType]
    return result
