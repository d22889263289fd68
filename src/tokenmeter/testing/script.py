"""Scripted answers: what the next requests, or those that match, are to be answered with."""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tokenmeter.testing.wire import STRAIGHT, Delivery, Event
from tokenmeter.usage import Consumption, Quantity

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
