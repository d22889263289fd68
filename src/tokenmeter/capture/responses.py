"""One HTTP response that may be billed: collects what it says of its usage, and is settled exactly once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from tokenmeter.call import Call, Outcome
from tokenmeter.capture.raw import Kind, RawReader, read_whole
from tokenmeter.capture.sdk import Sdk
from tokenmeter.capture.settlement import Settling, settle, settle_async, settle_from_anywhere
from tokenmeter.semconv import Status
from tokenmeter.usage import Observation

if TYPE_CHECKING:
    from tokenmeter.meter import Authorization, Meter
    from tokenmeter.providers.base import Dialect, Endpoint, StreamReader

__all__ = ["Exchange", "Reader"]

_UNKNOWN = Observation(flags=frozenset({"usage_unknown"}))


@dataclass(slots=True)
class Reader:
    """How the answers of one call are read.

    Attributes:
        dialect: The wire format.
        endpoint: What was called.
        call: The call, whose request an answer may leave unsaid things to.
    """

    dialect: Dialect
    endpoint: Endpoint
    call: Call

    def read(self, body: Any) -> Observation:
        """Usage of a whole decoded body."""
        call = self.call
        return self.dialect.read(body, provider=call.provider, endpoint=call.endpoint, request=call.facts)

    def open_stream(self) -> StreamReader:
        """A fresh reader for one stream."""
        call = self.call
        return self.dialect.stream(provider=call.provider, endpoint=call.endpoint, request=call.facts)


class Exchange:
    """What is known of one response so far. Knows neither the response, nor its client, nor its body.

    Args:
        meter: Where it is settled.
        authorization: Leave for the call that it answers.
        reader: Reads what it says.
        sdk: Whose errors are told apart.
        headers: Of the response.
        attempts: HTTP requests that the call took so far.
        streamed: Whether the answer is a stream of events.
        line: Makes a settling of one of many bills; None for one that is not billed.
        done: Told once, when nothing more will come; gives what is to be written down now.

    Attributes:
        streamed: As given.
        due: How many events `events` may hold before `take_events` is to be called.
        events: Events of a stream that were seen and not read yet.
        ended: Whether the body came to its own end, as opposed to being closed before.
        closed: Whether nothing more will be learnt.
    """

    __slots__ = (
        "__weakref__",
        "_attempts",
        "_authorization",
        "_bystander",
        "_deaf",
        "_done",
        "_error_type",
        "_first_token_us",
        "_holding",
        "_line",
        "_lines",
        "_many",
        "_meter",
        "_observation",
        "_pid",
        "_raw",
        "_reader",
        "_request_id",
        "_sdk",
        "_status",
        "_stream",
        "closed",
        "due",
        "ended",
        "events",
        "streamed",
    )

    def __init__(
        self,
        meter: Meter,
        authorization: Authorization,
        reader: Reader,
        sdk: Sdk,
        headers: Mapping[str, str],
        *,
        attempts: int,
        streamed: bool,
        line: Callable[[Observation, str | None], Settling | None],
        done: Callable[[Exchange], list[Settling]],
    ) -> None:
        self.streamed = streamed
        self.ended = False
        self.closed = False
        self.events: list[Any] = []
        self.due = 1
        self._meter = meter
        self._authorization = authorization
        self._reader = reader
        self._sdk = sdk
        self._line = line
        self._done = done
        self._attempts = max(attempts, 1)
        self._request_id = sdk.request_id(headers)
        self._many = reader.endpoint.form != "one"
        self._stream: StreamReader | None = reader.open_stream() if streamed and not self._many else None
        self._holding = streamed and authorization.reservation is not None
        self._deaf = False  # to what the SDK decodes: the bytes are read, or all is known
        self._raw: RawReader | None = None
        self._lines: list[Settling] = []
        self._observation: Observation | None = None
        self._first_token_us: int | None = None
        self._status: Status | None = None
        self._error_type: str | None = None
        self._bystander = id(sys.exception())  # a caller may stream while handling an error of his own
        self._pid = os.getpid()

    # -- what the response says

    def take_events(self) -> None:
        """Read the events that were seen. Never raises."""
        events = self.events.copy()
        self.events.clear()
        if self._deaf or not events:
            return
        if self._holding:
            self._meter.extend(self._authorization)
        try:
            for event in events:
                self.saw_event(event)
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            self._meter.fault("read a response", error)

    def saw_event(self, event: Any) -> None:
        """One decoded event of a stream."""
        if self._many:
            self.saw_line(event)
            return
        if self._stream is None:
            self._stream = self._reader.open_stream()
        if self._first_token_us is None:
            self._first_token_us = (time.perf_counter_ns() - self._authorization.started_ns) // 1000
        self._stream.feed(event)

    def saw(self, body: Any) -> None:
        """Take the whole body as the SDK decoded it. Never raises."""
        if self._deaf or self._observation is not None:
            return
        try:
            self.saw_body(body)
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            self._meter.fault("read a response", error)

    def saw_body(self, body: Any) -> None:
        """The whole decoded body: JSON, text, or None for one that carries no text."""
        if not self._many:
            self._observation = self._reader.read(body)
            return
        self._deaf = True
        for item in _page_of(body):
            self.saw_line(item)

    def saw_line(self, line: Any) -> None:
        """One line of a results file, object of a page or event of a session: a bill of its own."""
        settling = self._line(self._reader.read(line), self._request_id)
        if settling is not None:
            self._lines.append(settling)

    @property
    def follows_pieces(self) -> bool:
        """Whether `piece` wants to be told of every piece of the body."""
        return self._raw is not None

    @property
    def _kind(self) -> Kind | None:
        if self._reader.endpoint.form == "lines":
            return "lines"
        return "events" if self.streamed else None

    def read_bytes_aside(self, headers: Mapping[str, str]) -> None:
        """The caller, or a decoder that does not tell us, takes the bytes: `piece` will be given each piece of them."""
        self._raw = RawReader(headers, self, kind=self._kind)
        self._deaf = True

    def piece(self, piece: bytes) -> None:
        """One piece of the body as it came over the wire (sync)."""
        self._read(piece)
        for settling in self._take_lines():
            settle(settling)

    async def piece_async(self, piece: bytes) -> None:
        """One piece of the body as it came over the wire (async)."""
        self._read(piece)
        for settling in self._take_lines():
            await settle_async(settling)

    def _read(self, piece: bytes) -> None:
        if self._raw is None:
            return
        if self._holding:
            self._meter.extend(self._authorization)
        try:
            self._raw.feed(piece)
        except Exception as error:  # noqa: BLE001 - the caller gets his bytes
            self._raw = RawReader({}, self)
            self._meter.fault("read a raw response", error)

    def _take_lines(self) -> list[Settling]:
        lines, self._lines = self._lines, []
        return lines

    def read_content(self, content: bytes, headers: Mapping[str, str]) -> None:
        """The body is in memory already, and the SDK has not shown it to us decoded."""
        if self._observation is not None or self._deaf:
            return
        try:
            read_whole(content, headers, self, kind=self._kind)
            if self._observation is None and self._stream is None and not self._many:
                self.saw_body(None)
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            self._meter.fault("read a response", error)
        self.ended = True

    # -- how it ends

    def failed(self, error: BaseException) -> None:
        """Reading the answer raised `error`."""
        self._status, self._error_type = self._sdk.status_of(error), type(error).__name__

    def _stopped_by(self, error: BaseException) -> None:
        sdk = self._sdk
        if isinstance(error, sdk.error) or (isinstance(error, Exception) and _raised_in(sdk.name, error)):
            self.failed(error)
        elif self._status is None:
            self._status = "aborted"
            self._error_type = None if isinstance(error, GeneratorExit) else type(error).__name__

    def finish(self) -> None:
        """Nothing more will come (sync). Settles, unless the call itself is still on its way."""
        # A generator that is closed may be in the hands of the garbage collector, which runs in any thread at any
        # moment, also while that thread holds a lock of the meter or the store: it must not wait.
        write = settle_from_anywhere if isinstance(sys.exception(), GeneratorExit) else settle
        for settling in self._close():
            write(settling)

    async def finish_async(self) -> None:
        """Nothing more will come (async). Settles without making the event loop wait."""
        for settling in self._close():
            await settle_async(settling)

    def abandon(self) -> None:
        """Nobody holds the response any more, or the process ends. Settles without waiting."""
        for settling in self._close():
            settle_from_anywhere(settling)

    def is_disturbed(self) -> bool:
        """Whether something is being raised right now, other than what the caller was handling already."""
        raised = sys.exception()
        return raised is not None and id(raised) != self._bystander

    def _close(self) -> list[Settling]:
        if self.closed or self._pid != os.getpid():
            return []
        self.take_events()
        self.closed = self._deaf = True
        raised = sys.exception()
        if raised is not None and not self.ended and self.is_disturbed():
            self._stopped_by(raised)
        try:
            self._conclude()
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            self._meter.fault("read a response", error)
        self._raw = self._stream = None
        return [*self._take_lines(), *self._done(self)]

    def _conclude(self) -> None:
        if self._raw is not None:
            self._raw.close()
            if self.ended and self._stream is None and self._observation is None and not self._many:
                self.saw_body(None)
        if self._stream is not None:
            self._observation = self._stream.observation()
            if self._stream.terminal:
                self._status, self._error_type = "ok", None

    @property
    def observation(self) -> Observation:
        """What the response said of its usage."""
        return self._observation or _UNKNOWN

    def outcome(self, observation: Observation, *, last: bool) -> Outcome:
        """The outcome to settle."""
        return Outcome(
            status=self._status or ("ok" if self.ended or not self.streamed else "aborted"),
            observation=observation,
            request_id=self._request_id,
            attempts=self._attempts,
            first_token_us=self._first_token_us,
            error_type=self._error_type,
            last=last,
        )


def _raised_in(package: str, error: Exception) -> bool:
    """Whether `error` came up through `package` or from its connection: not a fault of the caller's own code."""
    trace = error.__traceback__
    if trace is not None and _package_of(trace.tb_frame) in _HTTP:
        return True
    while trace is not None:
        if _package_of(trace.tb_frame) == package:
            return True
        trace = trace.tb_next
    return False


#: Who closes a body whose connection broke, before the error gets any further.
_HTTP = frozenset({"httpx", "httpx2", "httpcore", "httpcore2"})


def _package_of(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]


def _page_of(body: Any) -> list[Any]:
    """The objects of a page."""
    items: Any = body.get("data") if hasattr(body, "get") else None
    return cast("Any", items) if isinstance(items, list) else []
