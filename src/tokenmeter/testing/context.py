"""What an endpoint is given: its request decoded, the answers that are scripted, and what the provider remembers."""

from __future__ import annotations

import fnmatch
import itertools
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tokenmeter.testing.wire import STRAIGHT, Delivery, Event
from tokenmeter.usage import Consumption, Quantity
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from datetime import datetime

    from tokenmeter.testing.truth import Bill, Reports, Truth
    from tokenmeter.testing.wire import JSON, Reply, Request


Provider = Literal["openai", "anthropic", "google"]


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


_BOUNDARY = re.compile(r'boundary="?([^";]+)"?', re.IGNORECASE)
_PARAMETER = re.compile(r'\b(name|filename)="((?:[^"\\]|\\.)*)"', re.IGNORECASE)


class Upload(bytes):
    """The content of an uploaded file, with its name."""

    filename: str = "upload"


def decode(request: Request) -> JSON:
    """The parameters of a request; empty for a request without a body.

    Raises:
        RefusalError: 400 when the body is no JSON object.
    """
    kind = request.header("content-type") or ""
    if kind.lower().startswith("multipart/form-data"):
        found = _BOUNDARY.search(kind)
        return _form(request.body, found[1].encode()) if found else {}
    if not request.body or "upload" in (request.header("x-goog-upload-command") or ""):
        return {}
    body: Any = request.json
    if not isinstance(body, dict):
        raise RefusalError(400, "We could not parse the JSON body of your request.")
    return dict(body)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _form(body: bytes, boundary: bytes) -> JSON:
    fields: JSON = {}
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        named = {key.lower(): value for key, value in _PARAMETER.findall(head.decode("utf-8", "replace"))}
        content = content.removesuffix(b"\r\n")
        value: Any = content.decode("utf-8", "replace")
        if "filename" in named:
            value = Upload(content)
            value.filename = named["filename"]
        _add(fields, named.get("name", ""), value)
    return fields


def _add(fields: JSON, name: str, value: Any) -> None:
    if name.endswith("[]"):
        fields.setdefault(name[:-2], []).append(value)
    else:
        fields[name] = value


_OPENAI_KINDS = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "unsupported_country_region_territory"),
    404: ("invalid_request_error", None),
    429: ("requests", "rate_limit_exceeded"),
    500: ("server_error", None),
    503: ("server_error", None),
}
_GOOGLE_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_body(provider: Provider, refusal: RefusalError, *, request_id: str) -> JSON:
    """The body of an error response, as `provider` writes it."""
    if provider == "google":
        status = refusal.kind or _GOOGLE_STATUSES.get(refusal.status, "UNKNOWN")
        return {"error": {"code": refusal.status, "message": refusal.message, "status": status}}
    if provider == "anthropic":
        kind = refusal.kind or _ANTHROPIC_KINDS.get(refusal.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": refusal.message}, "request_id": request_id}
    kind, code = _OPENAI_KINDS.get(refusal.status, ("invalid_request_error", None))
    error = {
        "message": refusal.message,
        "type": refusal.kind or kind,
        "param": refusal.param,
        "code": refusal.code or code,
    }
    return {"error": error}


#: A tool's name and its arguments, or the arguments as the JSON text to send.
ToolCall = tuple[str, Mapping[str, Any] | str]

#: How a chat stream reports usage. ``openai``: asked for by ``stream_options``, on a last chunk without choices;
#: ``always``: the same, unasked; ``last_choice``: on the chunk with the finish reason; ``cumulative``: on every chunk;
#: ``never``: not at all; ``refuse``: the host answers a request with ``stream_options`` with an error.
StreamUsage = Literal["openai", "always", "last_choice", "cumulative", "never", "refuse"]

#: What an answer that was not delivered whole costs: everything generated, what was sent, or nothing.
Billing = Literal["generated", "sent", "nothing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One scripted answer; every attribute left out is made up from the request. See `FakeProvider.answer`."""

    text: str | None = None
    tool_calls: Sequence[ToolCall] = ()
    reasoning: str | None = None
    model: str | None = None
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None
    stop_reason: str | None = None
    response_id: str | None = None
    meters: Mapping[str, Quantity] | None = None
    reasoning_tokens: int | None = None
    usage: Mapping[str, Any] | None = None
    omit_usage: bool = False
    iterations: Sequence[Mapping[str, Any]] = ()
    output: Sequence[Mapping[str, Any]] = ()
    also: Sequence[Consumption] = ()
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    status: int = 200
    error: Any = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: Any = None
    events: Sequence[Event | Mapping[str, Any] | str | bytes] | None = None
    stream_usage: StreamUsage | None = None
    billing: Billing | None = None
    billed: bool = True
    delivery: Delivery = STRAIGHT


DEFAULT = Answer()


@dataclass(slots=True)
class _Step:
    answer: Answer
    path: str | None
    model: str | None
    left: int | None  # None: for good

    def matches(self, path: str, model: str | None) -> bool:
        return (self.path is None or fnmatch.fnmatchcase(path, self.path)) and (
            self.model is None or (model is not None and fnmatch.fnmatchcase(model, self.model))
        )


class Script:
    """Answers in waiting. Those for a number of requests go first, in order; standing ones last, newest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: list[_Step] = []
        self._standing: list[_Step] = []

    def add(self, answer: Answer, *, path: str | None, model: str | None, times: int | None) -> None:
        """Put `answer` in the queue for `times` requests; None keeps it for good."""
        if times is not None and times < 1:
            raise ValueError(f"times={times}: give 1 or more, or None to answer every matching request.")
        with self._lock:
            if times is None:
                self._standing.insert(0, _Step(answer, path, model, None))
            else:
                self._steps.append(_Step(answer, path, model, times))

    def take(self, path: str, model: str | None) -> Answer:
        """The answer for a request, used up by this call."""
        with self._lock:
            for step in self._steps:
                if step.left and step.matches(path, model):
                    step.left -= 1
                    if not step.left:
                        self._steps.remove(step)
                    return step.answer
            for step in self._standing:
                if step.matches(path, model):
                    return step.answer
        return DEFAULT

    def clear(self) -> None:
        """Forget every answer."""
        with self._lock:
            self._steps.clear()
            self._standing.clear()
