"""Streams of Google's: each chunk repeats a running total, field by field; an interaction's ends with its usage.

So does a turn of a Live session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from tokenmeter.providers.base import Read
from tokenmeter.providers.context import Context, as_estimate, pending
from tokenmeter.providers.google.answers import MEDIA, is_unknown_step, is_unknown_tool, part_bytes, step_bytes
from tokenmeter.providers.prompts import tokens_of
from tokenmeter.providers.wire import JSON, count, is_object, kind_of_error, latest, members, section, text
from tokenmeter.usage import Observation

_NAMES = ("modelVersion", "responseId", "serviceTier")


class AnswerStream:
    """The chunks of ``streamGenerateContent``.

    Neither the last chunk's usage nor the sum of them is right: a later field replaces the earlier one, and what a
    chunk leaves out stays as it was. Grounding may come with any chunk.
    """

    __slots__ = (
        *("_begun", "_body", "_bytes", "_candidates", "_context", "_counted", "_ended", "_failed", "_finished"),
        *("_read", "_usage", "_words"),
    )

    def __init__(self, context: Context, read: Read) -> None:
        self._context = context
        self._read = read
        self._bytes = self._words = 0
        self._counted = 0  # bytes that had come when the usage was last stated
        self._body: dict[str, Any] = {}
        self._failed: str | None = None
        self._finished = False
        self._begun: set[int] = set()  # candidates by their index, as are those that have ended
        self._ended: set[int] = set()
        self._candidates: list[JSON] = []
        self._usage: dict[str, Any] = {}

    @property
    def terminal(self) -> bool:
        """Whether every candidate, or a blocked prompt, was finished and the usage told, after all of the words."""
        return self._finished and self._begun <= self._ended and bool(self._usage) and self._counted == self._bytes

    def feed(self, event: Mapping[str, Any]) -> None:
        """Take a chunk; what is no object says nothing."""
        if not is_object(event):
            return
        for name in _NAMES:
            if value := event.get(name):
                self._body[name] = value
        if event.get("error"):
            self._failed = kind_of_error(event)
        if section(event, "promptFeedback").get("blockReason"):
            self._finished = True
        for candidate in members(event, "candidates"):
            self._take(candidate)
        if said := section(event, "usageMetadata"):
            self._usage, self._counted = latest(self._usage, said), self._bytes

    def _take(self, candidate: JSON) -> None:
        index = candidate.get("index")
        whose = index if isinstance(index, int) else 0
        if candidate.get("finishReason"):
            self._finished = True
            self._ended.add(whose)
        elif candidate.get("content"):
            self._begun.add(whose)
        if candidate.get("groundingMetadata"):
            self._candidates.append({"groundingMetadata": candidate["groundingMetadata"]})
        for part in members(section(candidate, "content"), "parts"):
            sound = section(part, "inlineData")
            if (kind := text(sound, "mimeType")) is not None:
                kept = {"index": whose, "content": {"parts": [{"inlineData": {"mimeType": kind}}]}}
                if kept not in self._candidates:
                    self._candidates.append(kept)
            if is_unknown_tool(part):
                self._candidates.append({"content": {"parts": [{"toolCall": {"toolType": None}}]}})
            size = part_bytes(part)
            self._bytes += size
            self._words += 0 if part.get("thought") else size

    def body(self) -> Any:
        """The answer, as far as its bill goes."""
        if self._failed or not self.terminal:
            return None
        return {**self._body, "usageMetadata": self._usage, "candidates": self._candidates}

    def observation(self) -> Observation:
        """The last totals; of a stream cut short no less than was received."""
        usage = dict(self._usage)
        if not self.terminal and usage:
            received = tokens_of(self._bytes)
            if (count(usage, "candidatesTokenCount", flags=set()) or 0) < received:
                usage["candidatesTokenCount"] = received
        body = {**self._body, "usageMetadata": usage, "candidates": self._candidates}
        apart = count(usage, "thoughtsTokenCount", flags=set())  # so that thoughts are no words that may be uncounted
        seen = self._read(body, replace(self._context, received=self._words if apart else self._bytes))
        if self._failed:
            seen = replace(seen, error_type=self._failed)
        return seen if self.terminal else as_estimate(seen)


class LiveTurn:
    """What the messages of one turn of a Live session say of it.

    Of what was answered only the words are kept: beside them a count of nothing is none.

    Attributes:
        heard: Whether anything came of it.
        told: Whether its usage was stated, however badly.
        ended: Whether the provider said all of it.
    """

    __slots__ = ("_grounding", "_parts", "_usage", "ended", "heard", "told")

    def __init__(self) -> None:
        self.heard = self.told = self.ended = False
        self._usage: dict[str, Any] = {}
        self._grounding: dict[str, Any] = {}
        self._parts: list[JSON] = []

    def is_before(self, message: JSON) -> bool:
        """Whether `message` is of a later turn: the model speaks again."""
        return self.ended and bool(section(section(message, "serverContent"), "modelTurn"))

    def feed(self, message: JSON) -> None:
        """Take a message as the server sent it; may be begun anew."""
        content = section(message, "serverContent")
        called = members(section(message, "toolCall"), "functionCalls")
        words = [*map(_words_of, members(section(content, "modelTurn"), "parts"))]
        words += ({"functionCall": call} for call in called)
        if (heard := text(section(content, "outputTranscription"), "text")) is not None:
            words.append({"text": heard})
        usage = message.get("usageMetadata")
        if is_object(usage):
            self._usage = latest(self._usage, _as_of_a_session(usage))
        self._grounding.update(section(content, "groundingMetadata"))
        self.told = self.told or usage is not None
        self.heard = self.heard or self.told or "serverContent" in message or bool(called)
        self.ended = self.ended or content.get("turnComplete") is True
        self._parts += words

    def body(self) -> dict[str, Any]:
        """The turn, as an answer is written."""
        content = {"groundingMetadata": self._grounding, "modelTurn": {"parts": self._parts}}
        return {"usageMetadata": self._usage, "serverContent": content}


def _as_of_a_session(usage: JSON) -> JSON:
    """The usage of a turn under the names of the Gemini API: on Vertex AI the answer's count has that of an answer."""
    names = {"candidatesTokenCount": "responseTokenCount"}
    return usage if "responseTokenCount" in usage else {names.get(key, key): usage[key] for key in usage}


def _words_of(said: JSON) -> JSON:
    """A part of an answer as far as its size goes: its words; of a sound, that it is one."""
    if "inlineData" not in said:
        return said
    return {"inlineData": {}, **({"thought": True} if said.get("thought") else {})}


def sounds_of(message: JSON) -> Iterator[tuple[str, int]]:
    """Kind and bytes of each piece of sound in a message of a session of music."""
    for chunk in members(section(message, "serverContent"), "audioChunks"):
        data: Any = chunk.get("data")
        if isinstance(data, str):
            yield text(chunk, "mimeType") or "", len(data) * 3 // 4 - data[-2:].count("=")


#: Events that an interaction ends with. Over a socket they state its usage themselves.
ENDS = frozenset({"interaction.completed", "interaction.complete", "interaction.cancelled", "interaction.canceled"})


class InteractionStream:
    """The events of an interaction. Only the last has its usage; those of steps are inside it."""

    __slots__ = ("_begun", "_bytes", "_context", "_ended", "_failed", "_read")

    def __init__(self, context: Context, read: Read) -> None:
        self._context = context
        self._read = read
        self._bytes = 0
        self._begun: dict[str, Any] = {}
        self._ended = False
        self._failed: str | None = None

    @property
    def terminal(self) -> bool:
        """Whether it has ended."""
        return self._ended

    def feed(self, event: Mapping[str, Any]) -> None:
        """Take an event; what is no object says nothing."""
        if not is_object(event):
            return
        inner = section(event, "interaction")
        if inner:
            kept = {key: inner[key] for key in ("id", "model", "agent", "usage", "service_tier") if inner.get(key)}
            self._begun.update(kept)
        kind = text(event, "event_type") or text(event, "type") or ""
        if event.get("error"):
            self._failed = kind_of_error(event)
        if kind in ENDS:
            self._ended = True
            if used := section(event, "usage"):
                self._begun["usage"] = used
        if is_unknown_step(step := section(event, "step")):
            self._begun.setdefault("steps", []).append({"type": step["type"]})
        delta = section(event, "delta")
        if (shown := text(delta, "type")) in MEDIA:
            self._begun["outputs"] = [{"type": shown}]
        self._bytes += step_bytes(step) + step_bytes(delta)

    def body(self) -> Any:
        """The interaction."""
        return dict(self._begun) if self._ended and not self._failed else None

    def observation(self) -> Observation:
        """Its usage; of a stream cut short an estimate of what was received, unless it can still be read to its end."""
        if not self._ended and (self._context.endpoint == "interactions.get" or self._context.request.background):
            return pending(self._begun)
        seen = self._read(dict(self._begun), replace(self._context, received=self._bytes))
        if self._failed:
            seen = replace(seen, error_type=self._failed)
        return seen if self._ended else as_estimate(seen)
