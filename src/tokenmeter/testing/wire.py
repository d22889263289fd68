"""What goes over the wire: a received request, a reply to send, and how the reply is to be delivered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast
from urllib.parse import parse_qsl, unquote, urlsplit

JSON = dict[str, Any]

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dump(value: Any) -> bytes:
    """`value` as compact UTF-8 JSON."""
    return _encode(value).encode("utf-8", "surrogatepass")


def part(body: Mapping[str, Any], name: str) -> JSON:
    """The object under `name`; empty when there is none."""
    found = body.get(name)
    return cast("JSON", found) if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Request:
    """One HTTP request as it was received, for comparing what two clients put on the wire.

    Attributes:
        sequence: 1 for the first request since the server started or was reset.
        received_at: Aware UTC.
        method: ``GET``, ``POST``, ...
        target: Path and query as sent.
        headers: Names and values in the order and spelling received.
        body: The raw body.
    """

    sequence: int
    received_at: datetime
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    @cached_property
    def _by_name(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers}

    @cached_property
    def path(self) -> str:
        """The path without its query, percent-decoded."""
        return unquote(urlsplit(self.target).path)

    @cached_property
    def query(self) -> dict[str, list[str]]:
        """Query parameters, every value of each."""
        found: dict[str, list[str]] = {}
        for name, value in parse_qsl(urlsplit(self.target).query, keep_blank_values=True):
            found.setdefault(name, []).append(value)
        return found

    def header(self, name: str) -> str | None:
        """The value of a header (any case), else None."""
        return self._by_name.get(name.lower())

    @cached_property
    def json(self) -> Any:
        """The decoded body; None when it is empty or no JSON."""
        try:
            return json.loads(self.body) if self.body else None
        except ValueError:
            return None

    @cached_property
    def api_key(self) -> str | None:
        """The key the caller sent, in any of the usual headers."""
        key = self.header("x-api-key") or self.header("api-key") or self.header("x-goog-api-key")
        if key:
            return key
        scheme, _, token = (self.header("authorization") or "").partition(" ")
        if scheme.upper() == "AWS4-HMAC-SHA256":  # Amazon's signed requests name their key
            return token.partition("Credential=")[2].partition("/")[0] or None
        return token.strip() or None if scheme.lower() == "bearer" else None


class Event(NamedTuple):
    """One server-sent event.

    Attributes:
        data: Its bytes, blank line included.
        generated: Output tokens generated up to and with this event; what is billed when the stream ends here.
    """

    data: bytes
    generated: int = 0


def sse(data: Any, *, event: str | None = None, generated: int = 0) -> Event:
    """Frame `data` (JSON-ready, or bytes as they are) as a server-sent event."""
    payload = data if isinstance(data, bytes) else dump(data)
    head = b"event: " + event.encode() + b"\n" if event else b""
    return Event(head + b"data: " + payload + b"\n\n", generated)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How a reply travels: what may go wrong or slowly on the way.

    Attributes:
        delay: Seconds before the first byte.
        chunk_delay: Seconds before each further event.
        cut_after: The connection ends after so many events (a stream) or bytes (a body); None = complete.
        reset: The connection is reset before anything is sent.
        encoding: Content encoding.
        split: Send a stream in pieces of so many bytes, cutting through lines and characters; 0 = an event at a time.
    """

    delay: float = 0.0
    chunk_delay: float = 0.0
    cut_after: int | None = None
    reset: bool = False
    encoding: Literal["gzip", "deflate"] | None = None
    split: int = 0


STRAIGHT = Delivery()


def _nothing(_sent: int, _complete: bool) -> None:
    pass


@dataclass(slots=True, kw_only=True)
class Reply:
    """An HTTP response to send.

    Attributes:
        status: HTTP status.
        headers: Beside those the transport adds (length, encoding).
        body: The whole body, unless `events` is given.
        events: A stream's events.
        delivery: How it travels.
        ended: Called once with the number of events sent and whether all were, when the reply is over.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    body: bytes = b""
    events: Sequence[Event] | None = None
    delivery: Delivery = STRAIGHT
    ended: Callable[[int, bool], None] = _nothing


def json_reply(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """A JSON reply."""
    return Reply(status=status, headers={"content-type": "application/json", **(headers or {})}, body=dump(body))
