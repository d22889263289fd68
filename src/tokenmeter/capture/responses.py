"""One HTTP response that may be billed: collects what it says of its usage, and is settled exactly once."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, cast

from tokenmeter import processes
from tokenmeter.call import Outcome
from tokenmeter.capture.raw import Kind, RawReader, read_whole
from tokenmeter.capture.sdk import Sdk, twice
from tokenmeter.capture.settlement import Settling, settle, settle_async, settle_from_anywhere
from tokenmeter.dimensions import Status
from tokenmeter.ledger import new_id
from tokenmeter.providers.wire import is_object
from tokenmeter.usage import Observation, Usage

if TYPE_CHECKING:
    from tokenmeter.meter import Meter
    from tokenmeter.providers.base import Endpoint, StreamReader

#: Most events between two looks at the clock. Fewer of them pass unasked where they come slowly.
_UNASKED = 31
#: Nanoseconds between two notes of what a stream has said so far; one that is shorter than that has none.
_NOTE_EVERY_NS = 1_000_000_000
#: What came as quickly as this since the look before may come unasked.
_QUICK_NS = _NOTE_EVERY_NS // 4
_UNKNOWN = Observation(flags=frozenset({"usage_unknown"}))


class Asked(Protocol):
    """What an answer is an answer to."""

    @property
    def endpoint(self) -> Endpoint:
        """What was called."""
        ...

    @property
    def started_ns(self) -> int:
        """When, on the performance counter."""
        ...

    def read(self, body: Any) -> Observation:
        """Usage of a whole decoded body."""
        ...

    def open_stream(self) -> StreamReader:
        """A fresh reader for one stream."""
        ...

    def keep_hold(self) -> None:
        """The stream goes on: what is held for it stays held."""
        ...

    def note(self, seen: Observation) -> None:
        """Have the ledger know what a stream has said so far, should this process not live to say more."""
        ...

    def line(self, seen: Observation, request_id: str | None) -> Settling | None:
        """One of many bills in an answer; None when it is not billed."""
        ...

    def answered(self, exchange: Exchange) -> list[Settling] | None:
        """Nothing more will come of an answer: what is to be written down; None while only the call can tell."""
        ...


#: What an exchange that is over was an answer to: it is not asked any more.
_OVER: Any = None


class Exchange:
    """What is known of one response so far. Knows neither the response, nor its client, nor its body.

    Args:
        meter: Told of faults.
        asked: The call that it answers.
        sdk: Whose errors are told apart.
        request_id: Provider's id of the request.
        attempts: HTTP requests that the call took so far.
        streamed: Whether the answer is a stream of events.
        holding: Whether something is held for the call, and has to be kept while a stream lasts.

    Attributes:
        attempts: As given, and so the next two.
        request_id: See there.
        streamed: See there.
        body: The whole decoded body, if there was one and it is still to be read.
        first_token_us: Microseconds from the call's start to its first event.
        status: How it ended; None until that is known, and for a body that came whole.
        feed: Reads one event of a stream, where `hear` said so; not there before.
        ended: Whether the body came to its own end, as opposed to being closed before.
        closed: Whether nothing more will be learnt.
    """

    feed: Callable[[Any], None]
    __slots__ = (
        "__weakref__",
        "_asked",
        "_bystander",
        "_deaf",
        "_error_type",
        "_holding",
        "_lines",
        "_looked_ns",
        "_made_in",
        "_many",
        "_meter",
        "_note_due_ns",
        "_noted",
        "_observation",
        "_pending",
        "_raw",
        "_sdk",
        "_stream",
        "_unasked",
        "attempts",
        "body",
        "closed",
        "ended",
        "feed",
        "first_token_us",
        "request_id",
        "status",
        "streamed",
    )

    def __init__(
        self,
        meter: Meter,
        asked: Asked,
        sdk: Sdk,
        *,
        request_id: str | None,
        attempts: int,
        streamed: bool,
        holding: bool,
    ) -> None:
        self.streamed = streamed
        self.attempts = attempts
        self.request_id = request_id
        self.body: Any = None
        self.status: Status | None = None
        self.first_token_us: int | None = None
        self.ended = False
        self.closed = False
        self._meter = meter
        self._asked = asked
        self._sdk = sdk
        self._many = asked.endpoint.form != "one"
        self._stream: StreamReader | None = asked.open_stream() if streamed and not self._many else None
        self._holding = streamed and holding
        self._looked_ns = self._note_due_ns = self._unasked = 0
        self._noted: Usage | None = None
        self._deaf = False  # to what the SDK decodes: the bytes are read, or all is known
        self._raw: RawReader | None = None
        self._lines: list[Settling] = []
        self._observation: Observation | None = None
        self._pending: list[Settling] | None = None
        self._error_type: str | None = None
        self._bystander = id(sys.exception())  # a caller may be handling an error of his own
        if not processes.KNOWN[0]:
            processes.notice_fork()
        self._made_in = processes.this_process

    # -- what the response says

    def hear(self, event: Any) -> int:
        """Take one event of a stream. Never raises.

        Returns:
            How many of the next events `feed` may be given at once; it may raise, which is for `misread`.
        """
        if self._deaf:
            return 0
        unasked = _UNASKED
        try:
            if self._holding:
                unasked = self._keep_hold()
            self.saw_event(event)
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            self.misread(error)
        if self._many or self._stream is None:
            return 0
        self.feed = self._stream.feed
        return unasked

    def _keep_hold(self) -> int:
        """Keep what is held, and have what was read until now noted, now and then.

        Returns:
            How many of the next events need not ask for it: twice as many as before while they come quickly.
        """
        now = time.perf_counter_ns()
        if not self._note_due_ns:
            self._note_due_ns = now + _NOTE_EVERY_NS
        quick = now - self._looked_ns < _QUICK_NS
        self._unasked = min(2 * self._unasked + 1, _UNASKED) if quick else self._unasked // 2
        self._looked_ns = now
        self._asked.keep_hold()
        if now >= self._note_due_ns:
            self._note_due_ns = now + _NOTE_EVERY_NS
            self._note(self._stream)
        return self._unasked

    def _note(self, stream: StreamReader | None) -> None:
        if stream is None:
            return
        try:
            seen = stream.observation()
            if seen.billable and seen.usage and seen.usage != self._noted:
                self._noted = seen.usage
                self._asked.note(seen)
        except Exception as error:  # noqa: BLE001 - the event that came is still to be read
            self._meter.fault("note what was read of a stream", error)

    def misread(self, error: Exception) -> None:
        """What came could not be read."""
        self._meter.fault("read a response", error)

    def saw_event(self, event: Any) -> None:
        """One decoded event of a stream."""
        if not is_object(event):  # a host's sign of life, say: no format has such events
            return
        if self._many:
            self.saw_line(event)
            return
        stream = self._stream
        if stream is None:
            stream = self._stream = self._asked.open_stream()
        if self.first_token_us is None:
            self.first_token_us = (time.perf_counter_ns() - self._asked.started_ns) // 1000
        stream.feed(event)

    def saw(self, body: Any) -> None:
        """Take the whole body as the SDK decoded it. Never raises."""
        if self._deaf or self.body is not None:
            return
        if not self._many:
            self.body = body
            return
        try:
            self.saw_body(body)
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            self.misread(error)

    def took_whole(self) -> bool:
        """Whether the SDK has shown the whole body decoded, so that nothing more will be learnt."""
        if self.body is None or self._many or self._raw is not None or self._stream is not None:
            return False
        self.ended = self.closed = self._deaf = True
        return True

    def void(self) -> None:
        """It could not be watched: another one takes its place, and this one makes no entry."""
        self._pending, self._lines = [], []
        self.closed = self._deaf = True

    def give_up(self) -> None:
        """Nothing can be learnt of the answer: it is recorded as one whose usage is unknown."""
        self.ended = self.closed = self._deaf = True

    def saw_body(self, body: Any) -> None:
        """The whole decoded body: JSON, text, or None for one that carries no text."""
        if not self._many:
            self._observation = self._asked.read(body)
            return
        self._deaf = True
        for item in self._sdk.dialect().items(body):
            self.saw_line(item)

    def saw_line(self, line: Any) -> None:
        """One line of a results file, object of a page or event of a session: a bill of its own."""
        settling = self._asked.line(self._asked.read(line), self.request_id)
        if settling is not None:
            self._lines.append(settling)

    @property
    def follows_pieces(self) -> bool:
        """Whether `piece` wants to be told of every piece of the body."""
        return self._raw is not None

    @property
    def _kind(self) -> Kind | None:
        if self._asked.endpoint.form == "lines":
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
        try:
            if self._holding:
                self._keep_hold()
            self._raw.feed(piece)
        except Exception as error:  # noqa: BLE001 - the caller gets his bytes
            self._raw = RawReader({}, self)
            self._meter.fault("read a raw response", error)

    def _take_lines(self) -> list[Settling]:
        self._lines = [line for line in self._lines if not line.done]
        return self._lines

    def read_content(self, content: bytes, headers: Mapping[str, str]) -> None:
        """The body is in memory already, and the SDK has not shown it to us decoded."""
        if self.body is not None or self._observation is not None or self._deaf:
            self.ended = True
            return
        try:
            read_whole(content, headers, self, kind=self._kind)
            if self._observation is None and self._stream is None and not self._many:
                self.saw_body(None)
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            self.misread(error)
        self.ended = True

    # -- how it ends

    def failed(self, error: BaseException) -> None:
        """Reading the answer raised `error`."""
        self.status, self._error_type = self._sdk.status_of(error), type(error).__name__

    def _stopped_by(self, error: BaseException) -> None:
        sdk = self._sdk
        if isinstance(error, sdk.error) or (isinstance(error, Exception) and _raised_in(sdk.name, error)):
            self.failed(error)
        elif self.status is None:
            self.status = "aborted"
            self._error_type = None if isinstance(error, GeneratorExit) else type(error).__name__

    def finish(self) -> None:
        """Nothing more will come (sync). Settles, unless the call itself is still on its way."""
        # A generator that is closed may be in the hands of the garbage collector, which runs in any thread at any
        # moment, also while that thread holds a lock of the meter or the store: it must not wait.
        write = settle_from_anywhere if isinstance(sys.exception(), GeneratorExit) else settle
        twice(self._meter, lambda: self._finish(write))

    async def finish_async(self) -> None:
        """Nothing more will come (async). Settles without making the event loop wait."""
        try:
            for settling in self._close():
                await settle_async(settling)
            self.let_go()
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            self._meter.fault("record a call", error)
            self.finish()
        except BaseException:  # an interrupt, whose traceback may keep all of it alive for long
            self.abandon()
            raise

    def abandon(self) -> None:
        """Nobody holds the response any more, or the process ends. Settles without waiting."""
        twice(self._meter, lambda: self._finish(settle_from_anywhere))

    def _finish(self, write: Callable[[Settling], None]) -> None:
        for settling in self._close():
            write(settling)
        self.let_go()

    def let_go(self) -> None:
        """Once all is written down, hold neither the call nor what was read: they hold this.

        In a circle they would wait for the garbage collector, and a whole request and its answer with them.
        """
        if self.closed and self._pending is not None and not self.unwritten():
            self._pending, self._lines, self.body = [], [], None
            self._holding, self._asked = False, _OVER

    def stop(self, error: BaseException) -> None:
        """The call raised, so that nobody gets the answer."""
        if self._pending is None:  # else it was being written down as what it was
            self.failed(error)
        if not self.closed:
            self._learn_end()

    @property
    def settled(self) -> bool:
        """Whether all of it is written down."""
        return self.closed and self._pending is not None and all(one.done for one in (*self._lines, *self._pending))

    def unwritten(self) -> list[Settling]:
        """What is to be written down now. An interrupted writing is taken up again by asking anew."""
        pending = self._pending
        if pending is None:
            pending = self._pending = self._asked.answered(self)
        if self._lines:
            return [one for one in (*self._lines, *(pending or ())) if not one.done]
        if not pending:
            return []
        if len(pending) == 1:  # nearly always
            return [] if pending[0].done else pending
        return [one for one in pending if not one.done]

    def is_disturbed(self) -> bool:
        """Whether something is being raised right now, other than what the caller was handling already."""
        raised = sys.exception()
        return raised is not None and id(raised) != self._bystander

    def _close(self) -> list[Settling]:
        if processes.is_parents(self._made_in):
            return []
        if not self.closed:
            self._learn_end()
        return self.unwritten()

    def _learn_end(self) -> None:
        raised = sys.exception()
        if raised is not None and not self.ended and self.is_disturbed() and self.status is None:
            self._stopped_by(raised)
        try:
            event = self._refused(raised) if raised is not None and self.is_disturbed() else {}
            if event and raised is not None and self._stream is not None:
                self._stream.feed(event)
                self.failed(raised)
            self._conclude(refused=bool(event))
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            self.misread(error)
        self._raw = None
        self.closed = self._deaf = True

    def _refused(self, error: BaseException) -> dict[str, Any]:
        """The event for which the SDK raised `error`, and that it shows to nobody; an empty one where there is none.

        A host may state the usage beside an error. That of another call, made while this stream is open, is not its.
        """
        kept = getattr(error, "details", None)  # Google's SDK hands it on with the error
        if is_object(kept) and kept.get("error") and isinstance(error, self._sdk.error):
            return dict(kept)
        trace = error.__traceback__
        while trace is not None:
            seen = trace.tb_frame.f_locals
            written = getattr(seen.get("sse"), "data", None)
            if isinstance(written, str) and trace.tb_frame.f_code.co_name == "__stream__":
                body = getattr(getattr(seen.get("self"), "response", None), "stream", None)
                if getattr(body, "_exchange", self) is not self:
                    return {}
                try:
                    event: Any = json.loads(written)
                except (ValueError, RecursionError):
                    return {}
                return cast("dict[str, Any]", event) if isinstance(event, dict) and "error" in event else {}
            trace = trace.tb_next
        return {}

    def _conclude(self, *, refused: bool) -> None:
        if self._raw is not None:
            self._raw.close()
            if self.ended and self._stream is None and self._observation is None and not self._many:
                self.saw_body(None)
        # What breaks after the end is the connection alone, unless the provider says that the answer failed.
        if self._stream is not None and self._stream.terminal and not refused:
            self.status, self._error_type = "ok", None
            self.body = self._stream.body()

    @property
    def observation(self) -> Observation:
        """What the response said of its usage. Never raises."""
        if self._observation is None and (self._stream is not None or self.body is not None):
            try:
                self._observation = self._asked.read(self.body) if self._stream is None else self._stream.observation()
            except Exception as error:  # noqa: BLE001 - the caller gets his answer
                self.misread(error)
                self._observation = _UNKNOWN
        return self._observation or _UNKNOWN

    def outcome(self, observation: Observation, *, last: bool, entry_id: str | None = None) -> Outcome:
        """The outcome to settle, under an identity that it had before, if any."""
        return Outcome(
            status=self.status or ("ok" if self.ended or not self.streamed else "aborted"),
            observation=observation,
            request_id=self.request_id,
            attempts=self.attempts,
            first_token_us=self.first_token_us,
            error_type=self._error_type,
            last=last,
            entry_id=entry_id or new_id(),
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
