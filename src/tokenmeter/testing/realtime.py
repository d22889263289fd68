"""WebSocket connections: OpenAI's realtime and Live sessions and responses, and Google's Live sessions and music.

Needs the ``websockets`` package, of which only the protocol is used: the socket is the server's own.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.protocol import State as ConnectionState
from websockets.server import ServerProtocol

from tokenmeter.money import add, ratio
from tokenmeter.testing import openai_responses
from tokenmeter.testing.composition import (
    Composition,
    compose,
    count_tokens,
    read_realtime,
    realtime_usage,
    split_words,
)
from tokenmeter.testing.context import Provider, RefusalError, Served
from tokenmeter.testing.google_content import turn_of
from tokenmeter.testing.routes import Match
from tokenmeter.testing.service import Exchange, Service, check_key, context_of
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import JSON, Request, dump, part
from tokenmeter.usage import Consumption, Usage

if TYPE_CHECKING:
    import socket

_SWITCHING = 101
_AUDIO_BYTES_PER_SECOND = 48_000  # 24 kHz, 16 bit
_AUDIO_BYTES_PER_TOKEN = 4_800  # ten tokens a second
_MUSIC_BYTES_PER_SECOND = 192_000  # 48 kHz, 16 bit, stereo
_ATTACHED = re.compile(r"/live/sessions/([^/]+)/attach$")
_HEARD = "You said something."

Send = Callable[[JSON], None]


class Session:
    """One conversation; `receive` answers each of the client's events."""

    endpoint = "realtime"
    provider: Provider = "openai"

    def __init__(self, service: Service, request: Request, send: Send) -> None:
        self.service = service
        self.request = request
        self.send = send

    def receive(self, event: JSON) -> None:
        """One of the client's events."""
        raise NotImplementedError

    def end(self) -> None:
        """The connection is over."""

    def exchange(self, body: JSON) -> Exchange:
        """An exchange for one answer within the session; takes the next scripted answer."""
        match = Match(provider=self.provider, name=self.endpoint)
        exchange = Exchange(service=self.service, request=self.request, match=match, body=body)
        exchange.answer = self.service.script.take(self.request.path, exchange.model)
        return exchange

    def record(self, exchange: Exchange, bill: Bill) -> None:
        """Enter what one answer costs."""
        self.service.books.record(
            bill,
            at=self.service.clock(),
            provider=self.provider,
            endpoint=self.endpoint,
            method="GET",
            path=self.request.path,
            request_model=exchange.model,
            api_key=self.request.api_key,
            request_id=self.service.state.new_id("req_"),
            status=_SWITCHING,
            streamed=True,
            complete=True,
        )


class _Responses(Session):
    """``responses.connect``: every ``response.create`` is answered with the events of a stream."""

    endpoint = "responses.connect"

    def receive(self, event: JSON) -> None:
        if event.get("type") != "response.create":
            return
        body = {name: value for name, value in event.items() if name != "type"} | {"stream": True}
        exchange = self.exchange(body)
        try:
            if exchange.answer.error is not None:
                raise exchange.answer.error
            served: Served = openai_responses.create(context_of(exchange))
        except RefusalError as refusal:
            told = {"type": refusal.kind or "invalid_request_error", "code": refusal.code, "message": refusal.message}
            self.send({"type": "error", "status": refusal.status, "error": told})
            return
        assert served.bill is not None  # noqa: S101 - responses are billed
        self.record(exchange, served.bill)
        for one in served.reply.events or ():
            self.send(json.loads(one.data.partition(b"data: ")[2]))


class _Realtime(Session):
    """A realtime session, of text and audio."""

    def __init__(self, service: Service, request: Request, send: Send) -> None:
        super().__init__(service, request, send)
        model = (request.query.get("model") or ["gpt-realtime"])[0]
        self._session: JSON = {"type": "realtime", "model": model, "output_modalities": ["text"]}
        self._said: list[str] = []
        self._audio = 0
        self._tell("session.created", session=self._session)

    def _tell(self, kind: str, **fields: Any) -> None:
        self.send({"type": kind, "event_id": self.service.state.new_id("event_"), **fields})

    def receive(self, event: JSON) -> None:
        match event.get("type"):
            case "session.update":
                self._session |= event["session"]
                self._tell("session.updated", session=self._session)
            case "conversation.item.create":
                self._add({"id": self.service.state.new_id("item_"), **event["item"]})
            case "input_audio_buffer.append":
                self._audio += len(base64.b64decode(event["audio"]))
            case "input_audio_buffer.commit":
                self._commit()
            case "response.create":
                self._respond(part(event, "response"))
            case _:
                pass  # the real API answers these too, without any effect on usage

    def _add(self, item: JSON) -> None:
        contents: list[JSON] = item.get("content") or []
        self._said += [str(content["text"]) for content in contents if "text" in content]
        self._tell("conversation.item.added", item=item)
        self._tell("conversation.item.done", item=item)

    def _commit(self) -> None:
        """End of a piece of speech; transcribed, and billed at the transcription model's price, when configured."""
        item = self.service.state.new_id("item_")
        self._tell("input_audio_buffer.committed", item_id=item, previous_item_id=None)
        model = part(part(part(self._session, "audio"), "input"), "transcription").get("model")
        if model is None:
            return
        usage = Usage({"input_audio": self._heard(), "output": count_tokens(_HEARD)})
        wire = {
            "type": "tokens",
            "input_tokens": usage.input_tokens,
            "input_token_details": {"audio_tokens": usage.input_tokens, "text_tokens": 0},
            "output_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
        }
        charged = Consumption(model=model, usage=usage, role="transcription")
        bill = Bill(model=model, response_id=item, consumptions=(charged,), wire_usage=wire)
        self.record(Exchange(service=self.service, request=self.request, match=Match(provider="openai")), bill)
        kind = "conversation.item.input_audio_transcription.completed"
        self._tell(kind, item_id=item, content_index=0, transcript=_HEARD, usage=wire)

    def _heard(self) -> int:
        return -(-self._audio // _AUDIO_BYTES_PER_TOKEN)

    def _respond(self, asked: JSON) -> None:
        exchange = self.exchange({"model": self._session["model"], "input": list(self._said), **asked})
        composition = compose(context_of(exchange), read_realtime)
        if exchange.answer.meters is None and exchange.answer.usage is None and self._audio:
            spoken = {**composition.usage.quantities, "input_audio": self._heard()}
            composition = replace(composition, usage=Usage(spoken))
        wire = exchange.answer.usage or realtime_usage(composition.usage)
        identity = exchange.answer.response_id or self.service.state.new_id("resp_")
        self.record(exchange, composition.bill(identity, wire, *exchange.answer.also, service_tier=None))
        self._speak(identity, composition, wire)

    def _speak(self, identity: str, composition: Composition, wire: Any) -> None:
        text = composition.text or ""
        self._said.append(text)
        response: JSON = {
            "id": identity,
            "object": "realtime.response",
            "status": "in_progress",
            "output": [],
            "output_modalities": ["text"],
        }
        self._tell("response.created", response=response)
        item: JSON = {"id": self.service.state.new_id("item_"), "type": "message", "role": "assistant"}
        item |= {"object": "realtime.item", "status": "completed", "content": [{"type": "output_text", "text": text}]}
        at: JSON = {"response_id": identity, "output_index": 0}
        self._tell("response.output_item.added", item={**item, "status": "in_progress", "content": []}, **at)
        inside: JSON = {**at, "item_id": item["id"], "content_index": 0}
        for word in split_words(text):
            self._tell("response.output_text.delta", delta=word, **inside)
        self._tell("response.output_text.done", text=text, **inside)
        self._tell("response.output_item.done", item=item, **at)
        self._tell("response.done", response={**response, "status": "completed", "output": [item], "usage": wire})


class _Translation(Session):
    """A translation, billed by the seconds of sound that it is given; nobody says so on the wire."""

    def __init__(self, service: Service, request: Request, send: Send) -> None:
        super().__init__(service, request, send)
        model = (request.query.get("model") or ["gpt-realtime-translate"])[0]
        self._session: JSON = {"id": service.state.new_id("sess_"), "type": "translation", "model": model}
        self._bytes = 0
        self._ended = False
        self._tell("session.created", session=self._session)

    def _tell(self, kind: str, **fields: Any) -> None:
        self.send({"type": kind, "event_id": self.service.state.new_id("event_"), **fields})

    def receive(self, event: JSON) -> None:
        match event.get("type"):
            case "session.input_audio_buffer.append":
                self._bytes += len(base64.b64decode(event["audio"]))
                self._tell("session.output_transcript.delta", delta=_HEARD)
            case "session.close":
                self._tell("session.closed")
                self.end()
            case _:
                pass

    def end(self) -> None:
        """Bill the session, once."""
        if self._ended or not self._bytes:
            return
        self._ended = True
        seconds = ratio(self._bytes, _AUDIO_BYTES_PER_SECOND)
        charged = Consumption(model=self._session["model"], usage=Usage({"seconds_audio": seconds}))
        bill = Bill(model=self._session["model"], response_id=self._session["id"], consumptions=(charged,))
        self.record(Exchange(service=self.service, request=self.request, match=Match(provider="openai")), bill)


class _Live(Session):
    """A Live session, billed by its seconds of audio; or a look into one that goes on elsewhere."""

    endpoint = "live"

    def __init__(self, service: Service, request: Request, send: Send) -> None:
        super().__init__(service, request, send)
        attached = _ATTACHED.search(request.path)
        self._primary = attached is None
        self._session: JSON = {"id": attached[1] if attached else service.state.new_id("sess_"), "status": "active"}
        self._session |= service.state.find("live_sessions", self._session["id"]) or {"seconds": Decimal(0)}

    def _tell(self, kind: str, **fields: Any) -> None:
        kept = self.service.state.find("live_sessions", self._session["id"]) or self._session
        usage = {"seconds": float(kept["seconds"])}
        session = {name: value for name, value in kept.items() if name != "seconds"}
        told = {"usage": usage} if "usage" in kind or kind == "session.closed" else {}
        told |= {} if "usage" in kind else {"session": session}
        self.send({"type": kind, "event_id": self.service.state.new_id("event_"), **told, **fields})

    def receive(self, event: JSON) -> None:
        match event.get("type"):
            case "session.start":
                self._session |= {"expires_at": 0, **part(event, "session")}
                self._keep()
                self._tell("session.started")
            case "session.input_audio.append":
                seconds = ratio(len(base64.b64decode(event["audio"])), _AUDIO_BYTES_PER_SECOND)
                self._session["seconds"] = add(self._session["seconds"], seconds)
                self._keep()
                self._tell("session.usage.updated")
            case "session.close":
                self._tell("session.closed", reason="close_requested")
                self.end()
            case _:
                self._tell("session.usage.updated")

    def _keep(self) -> None:
        self.service.state.put("live_sessions", self._session["id"], dict(self._session))

    def end(self) -> None:
        """Bill the session, once."""
        if not self._primary or "model" not in self._session:
            return
        self._primary = False
        charged = Consumption(model=self._session["model"], usage=Usage({"seconds_audio": self._session["seconds"]}))
        bill = Bill(model=self._session["model"], response_id=self._session["id"], consumptions=(charged,))
        self.record(Exchange(service=self.service, request=self.request, match=Match(provider="openai")), bill)


class _GoogleSession(Session):
    """A session of Google's whose first message names the model; the others are heard."""

    provider = "google"

    def __init__(self, service: Service, request: Request, send: Send) -> None:
        super().__init__(service, request, send)
        self._model = ""

    def receive(self, event: JSON) -> None:
        if "setup" in event:
            self._model = str(event["setup"].get("model", "")).rpartition("/")[2]
            self.send({"setupComplete": {}})
        else:
            self.hear(event)

    def hear(self, event: JSON) -> None:
        """One of the client's events after the first."""
        raise NotImplementedError


class _GoogleLive(_GoogleSession):
    """Google's ``live.connect``: each turn of the caller's is answered with the messages of one turn."""

    endpoint = "live.connect"

    def hear(self, event: JSON) -> None:
        said: JSON = event.get("clientContent") or event.get("client_content") or {}
        if not (said.get("turnComplete") or said.get("turn_complete")):
            return
        exchange = self.exchange({"model": self._model, "contents": said.get("turns") or []})
        messages, bill = turn_of(context_of(exchange))
        self.record(exchange, bill)
        for message in messages:
            self.send(message)


class _GoogleMusic(_GoogleSession):
    """Google's ``live.music``: each time it is told to play, a second of silence, 48 kHz in stereo."""

    endpoint = "live.music"

    def hear(self, event: JSON) -> None:
        if event.get("playbackControl") != "PLAY":
            return
        charged = Consumption(model=self._model, usage=Usage({"seconds_audio": 1}))
        self.record(self.exchange({"model": self._model}), Bill(model=self._model, consumptions=(charged,)))
        sound = base64.b64encode(bytes(_MUSIC_BYTES_PER_SECOND)).decode()
        self.send({"serverContent": {"audioChunks": [{"data": sound, "mimeType": "audio/l16;rate=48000;channels=2"}]}})


class _GoogleInteraction(Session):
    """Google's ``interactions.connect``: an interaction that was made, and billed, before; at its end it says so."""

    endpoint = "interactions.connect"
    provider = "google"

    def __init__(self, service: Service, request: Request, send: Send) -> None:
        super().__init__(service, request, send)
        self._name = ""

    def receive(self, event: JSON) -> None:
        match event.get("event_type"):
            case "interaction.connect":
                self._name = str(event.get("id"))
                self.service.state.get("google interactions", self._name)
                self.send({"event_type": "interaction.connected", "interaction_id": self._name})
            case "input":
                self.send({"event_type": "step.start", "index": 0, "step": {"type": "model_output"}})
                self.send({"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": _HEARD}})
                self.send({"event_type": "step.stop", "index": 0})
            case "interaction.complete":
                kept = self.service.state.get("google interactions", self._name)
                self.send({"event_type": "interaction.completed", "usage": kept["usage"]})
            case _:
                pass


#: How a URL's path ends -> the conversation there.
_KINDS: dict[str, type[Session]] = {
    "/realtime": _Realtime,
    "/realtime/translations": _Translation,
    "/live/sessions": _Live,
    "/responses": _Responses,
    "BidiGenerateContent": _GoogleLive,
    "/interactions/live": _GoogleInteraction,
    "BidiGenerateMusic": _GoogleMusic,
}


def session_kind(request: Request) -> type[Session] | None:
    """The conversation that a URL asks for; None for a URL without one."""
    path = urlsplit(request.target).path.rstrip("/")
    if _ATTACHED.search(path):
        return _Live
    return next((kind for ending, kind in _KINDS.items() if path.endswith(ending)), None)


_RECEIVE = 65536
_LONGEST_REASON = 40  # 123 bytes at most
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
        except RefusalError as refusal:
            protocol.send_close(CloseCode.POLICY_VIOLATION, refusal.message[:_LONGEST_REASON])
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
