"""OpenAI's WebSocket connections: realtime and Live sessions, and responses over a persistent connection.

Needs the ``websockets`` package, of which only the protocol is used: the socket is the server's own.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.protocol import State as ConnectionState
from websockets.server import ServerProtocol

from tokenmeter.testing.context import RefusalError
from tokenmeter.testing.conversations import session_kind
from tokenmeter.testing.service import Service, check_key
from tokenmeter.testing.wire import JSON, Request, dump

__all__ = ["Connections"]

_RECEIVE = 65536
_DATA = {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}


class Connections:
    """Takes over sockets that ask for a WebSocket; each is served on its own thread until it ends."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def __call__(self, connection: socket.socket, target: str, headers: tuple[tuple[str, str], ...]) -> None:
        """Shake hands and serve."""
        request = Request(0, self._service.clock(), "GET", target, headers)
        protocol = ServerProtocol()
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
        protocol.receive_data("\r\n".join(lines).encode())
        for event in protocol.events_received():
            if isinstance(event, Handshake):
                protocol.send_response(self._response(protocol, event, request))
        _flush(connection, protocol)
        if protocol.state is ConnectionState.OPEN:
            self._converse(connection, protocol, request)

    def _response(self, protocol: ServerProtocol, handshake: Handshake, request: Request) -> Any:
        try:
            check_key(self._service, request)
        except RefusalError as refusal:
            return protocol.reject(refusal.status, refusal.message)
        if session_kind(request) is None:
            return protocol.reject(404, "Unknown WebSocket URL.")
        return protocol.accept(handshake)

    def _converse(self, connection: socket.socket, protocol: ServerProtocol, request: Request) -> None:
        def send(event: JSON) -> None:
            if protocol.state is ConnectionState.OPEN:  # the client may close in the middle of an answer
                protocol.send_text(dump(event))

        kind = session_kind(request)
        assert kind is not None  # noqa: S101 - the handshake was refused otherwise
        session = kind(self._service, request, send)
        messages = _Messages()
        _flush(connection, protocol)
        try:
            while protocol.state is ConnectionState.OPEN and (data := connection.recv(_RECEIVE)):
                protocol.receive_data(data)
                for message in messages.whole(protocol):
                    session.receive(message)
                    _flush(connection, protocol)
                _flush(connection, protocol)
        finally:
            session.end()


def _flush(connection: socket.socket, protocol: ServerProtocol) -> None:
    for data in protocol.data_to_send():
        if data:
            connection.sendall(data)


class _Messages:
    """Joins frames to whole JSON messages."""

    def __init__(self) -> None:
        self._parts: list[bytes | bytearray | memoryview] = []

    def whole(self, protocol: ServerProtocol) -> Iterator[JSON]:
        """The messages completed by what was received."""
        for frame in protocol.events_received():
            if isinstance(frame, Frame) and frame.opcode in _DATA:
                self._parts.append(frame.data)
                if frame.fin:
                    message = b"".join(self._parts)
                    self._parts.clear()
                    yield json.loads(message)
