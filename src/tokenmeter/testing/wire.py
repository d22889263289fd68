"""What goes over the wire (requests, replies and their delivery), and the HTTP/1.1 server that takes it there.

Leaner than `http.server` (a request costs tens of microseconds), so that a test or benchmark measures its client.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from datetime import datetime
from functools import cached_property
from http import HTTPStatus
from io import BufferedReader
from typing import Any, Literal, NamedTuple, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from tokenmeter.values import dataclass

JSON = dict[str, Any]

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dump(value: Any) -> bytes:
    """`value` as compact UTF-8 JSON."""
    return _encode(value).encode("utf-8", "surrogatepass")


def part(body: Mapping[str, Any], name: str) -> JSON:
    """The object under `name`; empty when there is none."""
    found = body.get(name)
    return cast("JSON", found) if isinstance(found, dict) else {}


def count(body: Mapping[str, Any], name: str) -> int:
    """The whole number under `name`; 0 when there is none. A test may script what is no number: it is sent as it is."""
    found = body.get(name)
    return found if type(found) is int else 0


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


#: (method, target, headers, body) -> reply
Application = Callable[[str, str, tuple[tuple[str, str], ...], bytes], Reply]
#: Takes over a connection that asks for a WebSocket: (socket, target, headers).
Upgrade = Callable[[socket.socket, str, tuple[tuple[str, str], ...]], None]

_LINE = 65536
_MOST_HEADERS = 200
_SEND_AT_ONCE = 65536
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_RESET = struct.pack("ii", 1, 0)  # linger on, zero seconds: close() sends RST


class _BadRequestError(Exception):
    """The bytes received are no HTTP request."""


class Server:
    """Accepts connections on 127.0.0.1 and answers each on a daemon thread.

    Args:
        application: Makes the reply to a request.
        upgrade: Takes WebSocket connections; None refuses them.
        port: 0 takes any free port.
    """

    def __init__(self, application: Application, *, upgrade: Upgrade | None = None, port: int = 0) -> None:
        self._application = application
        self._upgrade = upgrade
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._ending: list[threading.Thread] = []  # has closed its connection, and may run for a moment yet
        self._listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name=f"fake-provider-{self.port}", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._acceptor.start()

    def stop(self) -> None:
        """Close every connection and the port; returns when the threads are gone."""
        self._stopping.set()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):  # wakes accept()
                pass
        except OSError:
            pass
        self._acceptor.join(timeout=2)
        self._listener.close()
        with self._lock:
            open_now = dict(self._connections)
            ending, self._ending = self._ending, []
        for connection in open_now:
            _shut(connection)
        for thread in (*ending, *open_now.values()):
            thread.join(timeout=2)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self._stopping.is_set():
                connection.close()
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            with self._lock:
                self._connections[connection] = thread
                self._ending = [one for one in self._ending if one.is_alive()]
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        reader = connection.makefile("rb")
        try:
            while not self._stopping.is_set() and self._exchange(connection, reader):
                pass
        except OSError:
            pass  # the client went away, which is its right
        finally:
            reader.close()
            connection.close()
            with self._lock:
                self._ending.append(self._connections.pop(connection))

    def _exchange(self, connection: socket.socket, reader: BufferedReader) -> bool:
        """Answer one request; whether the connection may serve another."""
        try:
            start = reader.readline(_LINE)
            if not start.strip():
                return False
            method, target, version = _request_line(start)
            headers = _read_headers(reader)
            named = {name.lower(): value for name, value in headers}
            if named.get("expect", "").lower() == "100-continue":
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = _read_body(reader, named)
        except (_BadRequestError, ValueError):
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return False
        if self._upgrade is not None and named.get("upgrade", "").lower() == "websocket":
            self._upgrade(connection, target, headers)
            return False
        reply = self._application(method, target, headers, body)
        keep = named.get("connection", "").lower() != "close" and version == "HTTP/1.1"
        return self._send(connection, reply, head_only=method == "HEAD", keep=keep) and keep

    def _send(self, connection: socket.socket, reply: Reply, *, head_only: bool, keep: bool) -> bool:
        """Deliver `reply`; False when the connection is over."""
        if reply.delivery.delay:
            self._stopping.wait(reply.delivery.delay)
        if reply.delivery.reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            reply.ended(0, False)  # noqa: FBT003 - a callback takes its arguments by place
            return False
        if reply.events is not None and not head_only:
            return self._send_events(connection, reply, reply.events, keep=keep)
        complete = False
        try:
            complete = _send_body(connection, reply, head_only=head_only, keep=keep)
        finally:
            reply.ended(0, complete)
        return complete

    def _send_events(self, connection: socket.socket, reply: Reply, events: Sequence[Event], *, keep: bool) -> bool:
        delivery = reply.delivery
        cut = delivery.cut_after is not None
        wanted = events[: delivery.cut_after] if cut else events
        sent, complete = 0, False
        try:
            head = _head(reply, keep=keep, length=None)
            connection.sendall(head)
            for piece, count in _pieces(wanted, delivery):
                if delivery.chunk_delay and sent and self._stopping.wait(delivery.chunk_delay):
                    return False
                connection.sendall(piece)
                sent += count
            if not cut:
                connection.sendall(b"0\r\n\r\n")
                complete = True
        finally:
            reply.ended(sent, complete)
        return complete


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # it was closed already
        connection.shutdown(socket.SHUT_RDWR)


def _request_line(line: bytes) -> tuple[str, str, str]:
    parts = line.decode("latin-1").split()
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):  # noqa: PLR2004 - method, target, version
        raise _BadRequestError
    return parts[0], parts[1], parts[2]


def _read_headers(reader: BufferedReader) -> tuple[tuple[str, str], ...]:
    headers: list[tuple[str, str]] = []
    while (line := reader.readline(_LINE)) not in {b"\r\n", b"\n"}:
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or len(headers) == _MOST_HEADERS:
            raise _BadRequestError
        headers.append((name, value.strip()))
    return tuple(headers)


def _read_body(reader: BufferedReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return b"".join(_read_chunks(reader))
    length = int(headers.get("content-length", 0))
    body = reader.read(length) if length else b""
    if len(body) != length:
        raise ConnectionResetError
    return body


def _read_chunks(reader: BufferedReader) -> Iterator[bytes]:
    while size := int(reader.readline(_LINE).split(b";")[0], 16):
        yield reader.read(size)
        reader.readline(_LINE)
    while reader.readline(_LINE).strip():
        pass  # trailers


def _head(reply: Reply, *, keep: bool, length: int | None) -> bytes:
    phrase = _PHRASES.get(reply.status, "Unknown")
    lines = [f"HTTP/1.1 {reply.status} {phrase}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    if reply.delivery.encoding:
        lines.append(f"content-encoding: {reply.delivery.encoding}")
    lines.append("transfer-encoding: chunked" if length is None else f"content-length: {length}")
    if not keep:
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _send_body(connection: socket.socket, reply: Reply, *, head_only: bool, keep: bool) -> bool:
    encoder = _encoder(reply.delivery)
    body = encoder.compress(reply.body) + encoder.flush() if encoder else reply.body
    head = _head(reply, keep=keep, length=len(body))
    cut = reply.delivery.cut_after
    connection.sendall(head if head_only else head + body[:cut])
    return cut is None


def _encoder(delivery: Delivery) -> zlib._Compress | None:  # pyright: ignore[reportPrivateUsage] - its only name
    if delivery.encoding is None:
        return None
    return zlib.compressobj(wbits=31 if delivery.encoding == "gzip" else 15)


def _pieces(events: Sequence[Event], delivery: Delivery) -> Iterator[tuple[bytes, int]]:
    """Chunked-encoding frames to send, each with the number of events it completes."""
    encoder = _encoder(delivery)
    if delivery.split:
        whole = b"".join(_encoded(encoder, event.data) for event in events)
        whole += encoder.flush() if encoder else b""
        pieces = [whole[start : start + delivery.split] for start in range(0, len(whole), delivery.split)]
        for number, piece in enumerate(pieces, 1):
            yield _chunk(piece), len(events) if number == len(pieces) else 0
        return
    if delivery.chunk_delay:
        for event in events:
            yield _chunk(_encoded(encoder, event.data)), 1
        if encoder is not None:
            yield _chunk(encoder.flush()), 0
        return
    waiting: list[bytes] = []
    size = 0
    for event in events:
        waiting.append(_chunk(_encoded(encoder, event.data)))
        size += len(event.data)
        if size > _SEND_AT_ONCE:
            yield b"".join(waiting), len(waiting)
            waiting, size = [], 0
    if encoder is not None:
        waiting.append(_chunk(encoder.flush()))
    yield b"".join(waiting), len(waiting) - (encoder is not None)


def _encoded(encoder: zlib._Compress | None, data: bytes) -> bytes:  # pyright: ignore[reportPrivateUsage] - as above
    return data if encoder is None else encoder.compress(data) + encoder.flush(zlib.Z_SYNC_FLUSH)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""  # an empty chunk would end the body
