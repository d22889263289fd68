"""One HTTP response that may be billed: collects what it says of its usage, and is settled exactly once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from tokenmeter.call import Outcome
from tokenmeter.capture.raw import Kind, RawReader, read_whole
from tokenmeter.capture.settlement import Settling, settle, settle_async, settle_from_anywhere
from tokenmeter.semconv import Status
from tokenmeter.usage import Observation

if TYPE_CHECKING:
    from tokenmeter.capture.inflight import InFlight
    from tokenmeter.providers.base import StreamReader

__all__ = ["EXTENSION", "Exchange", "exchange_of"]

#: Key of ``response.extensions`` under which a response's exchange is found again.
EXTENSION = "tokenmeter"

_UNKNOWN = Observation(flags=frozenset({"usage_unknown"}))


class Exchange:
    """What is known of one response so far. Knows the call it belongs to, never the response, client or body.

    Attributes:
        call: The logical call it answers.
        streamed: Whether the answer is a stream of events.
        ended: Whether the body came to its own end, as opposed to being closed before.
        closed: Whether nothing more will be learnt.
    """

    __slots__ = (
        "__weakref__",
        "_attempts",
        "_bystander",
        "_deaf",
        "_error_type",
        "_feed",
        "_first_token_us",
        "_holding",
        "_lines",
        "_many",
        "_observation",
        "_pid",
        "_raw",
        "_reader",
        "_request_id",
        "_status",
        "call",
        "closed",
        "ended",
        "streamed",
    )

    def __init__(self, call: InFlight, headers: Mapping[str, str], *, streamed: bool) -> None:
        self.call = call
        self.streamed = streamed
        self.ended = False
        self.closed = False
        self._attempts = max(call.attempts, 1)
        self._request_id = call.request_id(headers)
        self._many = call.endpoint.form != "one"
        self._reader: StreamReader | None = call.stream_reader() if streamed and not self._many else None
        self._feed: Callable[[Any], None] | None = None
        self._holding = streamed and call.holds
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

    def saw(self, data: Any) -> None:
        """Take what the SDK decoded: one event of a stream, or the whole body. Called for every event: kept lean."""
        if self._deaf:
            return
        if self._holding:
            self.call.keep_hold()
        try:
            if self._feed is not None:
                self._feed(data)
            elif self._reader is not None:
                self.saw_event(data)
            elif self._observation is None:
                self.saw_body(data)
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            self.call.meter.fault("read a response", error)

    def saw_event(self, event: Any) -> None:
        """One decoded event of a stream."""
        if self._many:
            self.saw_line(event)
            return
        if self._reader is None:
            self._reader = self.call.stream_reader()
        if self._feed is None:
            self._feed = self._reader.feed
            self._first_token_us = self.call.elapsed_us()
        self._feed(event)

    def saw_body(self, body: Any) -> None:
        """The whole decoded body: JSON, text, or None for one that carries no text."""
        if not self._many:
            self._observation = self.call.read(body)
            return
        self._deaf = True
        for item in _page_of(body):
            self.saw_line(item)

    def saw_line(self, line: Any) -> None:
        """One line of a results file, object of a page or event of a session: a bill of its own."""
        settling = self.call.line(self.call.read(line), self._request_id)
        if settling is not None:
            self._lines.append(settling)

    @property
    def follows_pieces(self) -> bool:
        """Whether `piece` wants to be told of every piece of the body."""
        return self._raw is not None

    @property
    def _kind(self) -> Kind | None:
        if self.call.endpoint.form == "lines":
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
            self.call.keep_hold()
        try:
            self._raw.feed(piece)
        except Exception as error:  # noqa: BLE001 - the caller gets his bytes
            self._raw = RawReader({}, self)
            self.call.meter.fault("read a raw response", error)

    def _take_lines(self) -> list[Settling]:
        lines, self._lines = self._lines, []
        return lines

    def read_content(self, content: bytes, headers: Mapping[str, str]) -> None:
        """The body is in memory already, and the SDK has not shown it to us decoded."""
        if self._observation is not None or self._deaf:
            return
        try:
            read_whole(content, headers, self, kind=self._kind)
            if self._observation is None and self._reader is None and not self._many:
                self.saw_body(None)
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            self.call.meter.fault("read a response", error)
        self.ended = True

    # -- how it ends

    def failed(self, error: BaseException) -> None:
        """Reading the answer raised `error`."""
        self._status, self._error_type = self.call.status_of(error), type(error).__name__

    def _stopped_by(self, error: BaseException) -> None:
        sdk = self.call.binding.sdk
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

    def _close(self) -> list[Settling]:
        if self.closed or self._pid != os.getpid():
            return []
        self.closed = self._deaf = True
        raised = sys.exception()
        if raised is not None and not self.ended and id(raised) != self._bystander:
            self._stopped_by(raised)
        try:
            self._conclude()
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            self.call.meter.fault("read a response", error)
        self._raw = self._reader = self._feed = None
        return [*self._take_lines(), *self.call.finished(self)]

    def _conclude(self) -> None:
        if self._raw is not None:
            self._raw.close()
            if self.ended and self._reader is None and self._observation is None and not self._many:
                self.saw_body(None)
        if self._reader is not None:
            self._observation = self._reader.observation()
            if self._reader.terminal:
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
    """Whether `error` came up through code of `package`: a body that cannot be read, not a fault of the caller's."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] == package:
            return True
        trace = trace.tb_next
    return False


def _page_of(body: Any) -> list[Any]:
    """The objects of a page."""
    items: Any = body.get("data") if hasattr(body, "get") else None
    return cast("Any", items) if isinstance(items, list) else []


def exchange_of(response: Any) -> Exchange | None:
    """The exchange of a response; None for one that is not metered."""
    try:
        found = response.extensions.get(EXTENSION)
    except AttributeError:  # a stand-in for a response
        return None
    return found if isinstance(found, Exchange) else None
