"""Streams in OpenAI's format. Usage replaces what was known before, it never adds up; events are not kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from tokenmeter.money import ratio
from tokenmeter.providers.base import Read, SocketEvents, StreamReader
from tokenmeter.providers.context import Context, as_estimate, joined, pending, unknown
from tokenmeter.providers.openai.extras import executed_tools, message_bytes, own_tools
from tokenmeter.providers.openai.requests import REALTIME_LIMITS
from tokenmeter.providers.prompts import tokens_of
from tokenmeter.providers.wire import JSON, count, is_object, kind_of_error, latest, members, section, text, utf8_length
from tokenmeter.usage import Observation


def open_stream(context: Context, read: Read) -> StreamReader:
    """The reader for a stream of `context.endpoint`; `read` reads the body that a terminal event carries."""
    endpoint = context.endpoint.removeprefix("beta.")
    if endpoint.startswith(("chat", "completions", "agents.completions")):
        return ChatStream(context, read)
    if endpoint.startswith("responses"):
        return ResponseStream(context, read)
    return EventStream(context, read)


class ChatStream:
    """Chunks of chat and text completions, from OpenAI or any host that speaks its format."""

    __slots__ = (
        "_builtin",
        "_bytes",
        "_context",
        "_counted",
        "_ended",
        "_executed",
        "_failed",
        "_is_final",
        "_read",
        "_said",
        "_usage",
    )

    def __init__(self, context: Context, read: Read) -> None:
        self._context = context
        self._read = read
        self._usage: Mapping[str, Any] = {}
        self._said: dict[str, Any] = {}
        self._bytes = 0
        self._counted = 0  # bytes that had come when the usage was last stated
        self._builtin: list[JSON] = []
        self._executed: list[JSON] = []
        self._failed: str | None = None
        self._ended: set[int | None] = set()  # by index: a host may give the reason to stop more than once
        self._is_final = False

    @property
    def terminal(self) -> bool:
        """Whether every answer asked for has given its reason to stop, and none that it failed."""
        return not self._failed and self._is_finished

    @property
    def _is_finished(self) -> bool:
        return self._is_final or len(self._ended) >= self._context.request.choices

    def feed(self, event: Mapping[str, Any]) -> None:
        """Take a chunk."""
        try:  # nearly every one is a piece of text
            (choice,) = event["choices"]
            delta = choice["delta"]
            if (
                len(delta) == 1
                and self._said
                and not (choice["finish_reason"] or event.get("usage") or "x_groq" in event)
            ):
                words = delta["content"]
                self._bytes += len(words) if str.isascii(words) else utf8_length(words)
                return
        except (LookupError, TypeError, ValueError):
            pass
        self._take(event)

    def _take(self, event: Mapping[str, Any]) -> None:
        if not self._said:
            self._name(event)
        before, usage = self._usage, event.get("usage")
        self._failed = kind_of_error(event) if event.get("error") else self._failed
        if usage and is_object(usage):
            self._state(event, usage)
        try:
            for choice in event.get("choices") or ():
                delta = choice.get("delta")
                words = delta.get("content") if delta else choice.get("text")
                if type(words) is str and (not delta or len(delta) == 1):
                    self._bytes += utf8_length(words)
                elif delta:
                    self._take_other(delta)
                if choice.get("finish_reason"):
                    self._end(event, choice)
        except (AttributeError, TypeError):
            pass  # a chunk in no known shape says nothing
        if members(event, "web_search"):
            self._said["web_search"] = [{}]  # Z.ai's: that something was found
        if "x_groq" in event:
            self._take_groq(section(event, "x_groq"), stated=bool(usage))
        self._counted = self._counted if self._usage is before else self._bytes

    def _take_groq(self, said: JSON, *, stated: bool) -> None:
        """Take what Groq says beside its chunks: the usage, if it is not `stated`, and that of each model it asked."""
        if not stated and (usage := section(said, "usage")):
            self._usage = latest(self._usage, usage)
        if asked := section(said, "usage_breakdown"):
            self._said["usage_breakdown"] = asked

    def _state(self, event: Mapping[str, Any], usage: JSON) -> None:
        """Take a usage. In a chunk without choices, after an answer, it is the last word."""
        self._usage = latest(self._usage, usage) if self._usage else usage
        self._name(event)
        if self._bytes and event.get("choices") == [] and not self._failed:
            self._is_final = True

    def _take_other(self, delta: Mapping[str, Any]) -> None:
        """Take a piece that is not text alone: thoughts, a refusal, parts, calls of tools."""
        if "tool_calls" in delta:
            self._builtin += own_tools(delta)
        if "executed_tools" in delta:
            self._executed += executed_tools(delta)
        self._bytes += message_bytes(delta)

    def _end(self, event: Mapping[str, Any], choice: JSON) -> None:
        """Take the end of an answer, beside whose reason to stop Moonshot puts the usage."""
        if not self._failed:  # else it was broken off
            index = choice.get("index")
            self._ended.add(index if isinstance(index, int) else None)
        self._name(event)
        if not event.get("usage") and (usage := section(choice, "usage")):
            self._usage = latest(self._usage, usage)

    def _name(self, event: Mapping[str, Any]) -> None:
        """The last chunks may correct the model and name the tier that served the call."""
        for key in ("id", "model", "service_tier"):
            if event.get(key):
                self._said[key] = event[key]

    def body(self) -> Any:
        """The completion."""
        if self._failed or not self._usage or self._builtin or self._executed or self._counted < self._bytes:
            return None
        return {**self._said, "object": "chat.completion", "usage": self._usage}

    def observation(self) -> Observation:
        """What is known now; without a final usage it is an estimate. An error behind the end changes nothing of it."""
        shown = {"tool_calls": self._builtin, "executed_tools": self._executed}
        choices: list[JSON] = [{"message": shown}] if self._builtin or self._executed else []
        usage = self._usage
        whole = not usage or self._counted == self._bytes
        if not whole:
            usage = self._no_less_than_received()
        body: dict[str, Any] = {**self._said, "usage": dict(usage), "choices": choices}
        seen = self._read(body, replace(self._context, received=self._bytes))
        if not whole:
            seen = replace(seen, raw_usage=dict(self._usage))
        if self._failed:
            seen = replace(seen, error_type=self._failed)
        # Hosts that count up with every chunk have only said what was used so far.
        return seen if self._is_finished and whole else as_estimate(seen)

    def _no_less_than_received(self) -> dict[str, Any]:
        """The usage, where words came after it was last stated: no count foresees them."""
        usage, received = dict(self._usage), tokens_of(self._bytes)
        stated = count(usage, "completion_tokens", "output_tokens", flags=set())
        if stated and stated < received:
            total = count(usage, "total_tokens", flags=set())
            usage |= {"completion_tokens": received} | ({"total_tokens": total + received - stated} if total else {})
        return usage


#: Events that end the stream of a response, and hold all of it.
TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
#: Events that hold an assistant's run which has ended.
RUN_ENDINGS = frozenset(
    f"thread.run.{status}" for status in ("completed", "incomplete", "failed", "cancelled", "expired")
)
#: Events that hold a response which has ended, over a stream or a socket.
ANSWERS = TERMINAL | {"response.done"}
#: An event after which no more comes.
_ERROR = "error"
_OPENING = frozenset({"response.created", "response.queued", "response.in_progress"})
#: Deltas that are not text: base64 audio.
_BINARY = ("response.audio.delta", "response.output_audio.delta")


class ResponseStream:
    """Events of a Responses API stream: the terminal event carries the whole response, usage included."""

    __slots__ = ("_bytes", "_context", "_failed", "_final", "_items", "_opened", "_read", "_whole")

    def __init__(self, context: Context, read: Read) -> None:
        self._context = context
        self._read = read
        self._bytes = 0
        self._items: list[dict[str, Any]] = []
        self._opened: dict[str, Any] = {}
        self._final: Observation | None = None
        self._failed: str | None = None
        self._whole: JSON | None = None

    @property
    def terminal(self) -> bool:
        """Whether the response has completed, failed or been cut off by its limit."""
        return self._final is not None

    def feed(self, event: Mapping[str, Any]) -> None:
        """Take an event."""
        delta = event.get("delta")
        if type(delta) is not str:
            self._take(event)
        elif event.get("type") not in _BINARY:
            self._bytes += len(delta) if delta.isascii() else utf8_length(delta)

    def _take(self, event: Mapping[str, Any]) -> None:
        kind = text(event, "type")
        if kind in TERMINAL:
            self._final = self._read(event, replace(self._context, received=self._bytes))
            self._whole = section(event, "response")
        elif kind == _ERROR or (kind is None and event.get("error")):
            self._failed = kind_of_error(event)
        elif kind in _OPENING:
            body = section(event, "response")
            self._opened = {k: body[k] for k in ("id", "model", "service_tier", "background", "tools") if body.get(k)}
        elif kind == "response.output_item.done":
            item = section(event, "item")
            if str(item.get("type")).endswith("_call"):
                kept = ("type", "status", "container_id", "environment", "action", "name", "svg_usage")
                self._items.append({key: item[key] for key in kept if key in item})

    def body(self) -> Any:
        """The response that the terminal event carries."""
        return None if self._failed else self._whole

    def observation(self) -> Observation:
        """The terminal event's usage; before it an estimate of the input and of what came back."""
        if self._final is not None:
            return replace(self._final, error_type=self._failed) if self._failed else self._final
        opened = self._opened
        if opened.get("background") is True or self._context.request.background:
            return pending(opened)  # it goes on without us, and is billed when it is retrieved
        body = {**opened, "object": "response", "output": self._items}
        seen = self._read(body, replace(self._context, received=self._bytes))
        return replace(as_estimate(seen), error_type=self._failed)


#: Events that end one answer: several may come in one stream (two images, two turns of a session).
_ENDINGS = frozenset(
    {
        "image_generation.completed",
        "image_edit.completed",
        "transcript.text.done",
        "speech.audio.done",
        "response.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "conversation.item.input_audio_transcription.completed",
        "decision.event",
        "conversation.response.done",
        *RUN_ENDINGS,
        "agent.session.turn.completed",
        "agent.session.turn.failed",
        "agent.session.turn.cancelled",
    }
)
#: Events with a running total: the last one stands.
_RUNNING = frozenset({"session.usage.updated", "session.closed"})


class EventStream:
    """Typed events of the other endpoints: images, speech, transcription, runs, realtime and Live sessions."""

    __slots__ = ("_begun", "_bytes", "_context", "_failed", "_read", "_running", "_seen", "_terminal")

    def __init__(self, context: Context, read: Read) -> None:
        self._context = context
        self._read = read
        self._bytes = 0
        self._begun: JSON | None = None
        self._failed: str | None = None
        self._seen: list[Observation] = []
        self._running: Observation | None = None
        self._terminal = False

    @property
    def terminal(self) -> bool:
        """Whether an event that ends an answer has been seen."""
        return self._terminal

    def feed(self, event: Mapping[str, Any]) -> None:
        """Take an event."""
        delta = event.get("delta")
        if type(delta) is str:
            self._bytes += utf8_length(delta)
            return
        kind = text(event, "type") or text(event, "event")
        if kind == "response.event":  # a Live session's delegate
            event = section(event, "event")
            kind = text(event, "type")
        if kind in _ENDINGS:
            self._terminal = True
            self._seen.append(self._read(_payload(event), self._context))
        elif kind in _RUNNING:
            self._terminal = self._terminal or kind == "session.closed"
            self._running = self._read(event, replace(self._context, final_only=False))
        elif kind == _ERROR or (kind is None and event.get("error")):
            self._failed = kind_of_error(event)
        elif kind and kind.startswith("thread.run.") and _payload(event).get("object") == "thread.run":
            self._begun = {"id": _payload(event).get("id"), "object": "thread.run"}

    def body(self) -> Any:
        """Several answers may have come."""
        return None

    def observation(self) -> Observation:
        """All answers that ended, together with a session's running total.

        Before any has it is as with a whole answer that says nothing: an estimate where words are billed, for a sound
        or a picture unknown. A run goes on, and is billed when it is read.
        """
        found = self._found()
        return replace(found, error_type=self._failed) if self._failed else found

    def _found(self) -> Observation:
        seen = [*self._seen, *([self._running] if self._running else [])]
        if not seen:
            early = self._read(self._begun, replace(self._context, received=self._bytes))
            nameless = not (early.billable or early.response_id)  # nobody could ever read it
            return unknown({}, None, model=self._context.request.model) if nameless else early
        whole = joined(seen)
        if self._running and not self._terminal:
            return as_estimate(whole)
        return whole


def _payload(event: JSON) -> JSON:
    """The body of an assistants event is one level down."""
    data = section(event, "data")
    return data if data and "event" in event else event


# -- connections

#: A second of what a translation is given: 24 kHz, 16 bits, one channel.
_SOUND_SECOND = 48_000


def _translated_bytes(event: JSON) -> int:
    """A translation is billed by its minutes of sound, and says nothing of them. An event of no other session."""
    sound = event.get("audio")
    if event.get("type") != "session.input_audio_buffer.append" or not isinstance(sound, str):
        return 0
    return len(sound) * 3 // 4 - sound[-2:].count("=")


def _translated(session: JSON, size: int) -> JSON:
    return {"type": "session.closed", "session": session, "usage": {"seconds": ratio(size, _SOUND_SECOND)}}


def _bills_unasked(session: JSON) -> Literal["answers", "asides"] | None:
    """A session answers whoever it hears to have ended, unless it says otherwise; what it hears may be transcribed."""
    heard = section(section(session, "audio"), "input")
    if text(session, "type") == "transcription":
        return "asides"
    for place in (heard, session):
        if "turn_detection" in place:
            turns = place["turn_detection"]
            if turns is not None and section(place, "turn_detection").get("create_response") is not False:
                return "answers"
            break
    else:
        return "answers"
    return "asides" if section(heard, "transcription") or section(session, "input_audio_transcription") else None


def _refuses_answer(error: JSON) -> bool:
    """The client's event has no id unless its author gave it one; then the error's is null."""
    code, field = text(error, "code"), text(error, "param") or ""
    return code == "conversation_already_has_active_response" or field.partition(".")[0] == "response"


#: Realtime, Live and Responses connections.
SOCKET_EVENTS = SocketEvents(
    requests=frozenset({"response.create", "decision.create"}),
    limits=frozenset(REALTIME_LIMITS),
    starts=frozenset({"session.start"}),
    sounds=frozenset({"input_audio_buffer.append", "session.input_audio.append", "session.input_audio_buffer.append"}),
    begun=frozenset({"response.created"}),
    answers=ANSWERS,
    asides=frozenset({"conversation.item.input_audio_transcription.completed", "decision.event", "response.event"}),
    delegated=frozenset({"decision.event", "response.event"}),
    totals=_RUNNING,
    last_totals=frozenset({"session.closed"}),
    beginnings=frozenset({"session.created", "session.started"}),
    settings=frozenset({"session.updated"}),
    errors=frozenset({"error"}),
    refuses=_refuses_answer,
    unasked=_bills_unasked,
    sound_sent=_translated_bytes,
    sound_used=_translated,
)
