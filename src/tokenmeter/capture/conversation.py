"""What goes on over one WebSocket: every answer is settled by itself, a running total by what it has grown."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from tokenmeter import processes
from tokenmeter.call import Call, Outcome
from tokenmeter.capture.calls import REFUSALS
from tokenmeter.capture.description import give_leave, given_fields
from tokenmeter.capture.readings import GrowingBill, is_open_here, opened
from tokenmeter.capture.recent import with_known
from tokenmeter.capture.sdk import UnreadBody, twice
from tokenmeter.capture.settlement import Settling, settle, settle_from_anywhere, watch
from tokenmeter.dimensions import Status
from tokenmeter.errors import StoreBusyError
from tokenmeter.ledger import new_id
from tokenmeter.processes import may_wait
from tokenmeter.providers.prompts import UNREADABLE
from tokenmeter.usage import Observation

if TYPE_CHECKING:
    from tokenmeter.meter import Authorization, Meter
    from tokenmeter.providers.base import Dialect, Endpoint, SocketEvents


#: A running total is written down this often, and at the end. Seconds.
_EVERY = 60


#: Fields of an event that are no part of what it asks for.
_ENVELOPE = frozenset({"type", "event_id"})


class _Leave:
    """Leave for an answer, or for what a session bills with nobody asking.

    Attributes:
        event_id: Of the event that asked; None where it has none.
        leave: What is held for it.
        ahead: Whether nothing was asked for yet: where nothing comes, it is given back and there is no bill.
    """

    __slots__ = ("ahead", "event_id", "leave")

    def __init__(self, event_id: str | None, leave: Authorization, *, ahead: bool) -> None:
        self.event_id = event_id
        self.leave = leave
        self.ahead = ahead


class _GivenBack(Settling):
    """What is held for something that did not come."""

    __slots__ = ()

    def __init__(self, meter: Meter, leave: Authorization) -> None:
        super().__init__(meter, leave, Outcome())

    def record(self) -> None:
        """Give it back."""
        _give_back(self)


class _SessionBill(GrowingBill):
    """What a session's total has grown. Where that is nothing new, what was held for it is given back."""

    __slots__ = ()

    def record(self) -> None:
        """Record what is new."""
        super().record()
        _give_back(self)


def _give_back(settling: Settling) -> None:
    leave = settling.authorization
    if leave.settled or (leave.reservation is None and leave.runs is None):
        return
    if may_wait():
        settling.meter.release(leave)
        return
    if leave.runs is not None:
        leave.runs.free()
    held = leave.reservation
    if held is not None and not settling.meter.store.release(held.reservation_id):
        raise StoreBusyError("What became of a hold is looked up where the store can be waited for.")
    leave.settled = True


class _Message:
    """What is to be written down of one message, however often that is begun.

    Attributes:
        bills: What it says was used; None until that is known.
        answers: What it answers, if anything was asked.
    """

    __slots__ = ("answers", "bills")

    def __init__(self) -> None:
        self.bills: list[Settling] | None = None
        self.answers: _Leave | None = None


class Conversation:
    """What goes on over one connection.

    Args:
        meter: Where to record.
        dialect: Reads the events.
        events: Which of them matter.
        call: The connection, as a call: on whose account all of its answers go.
        attached_to: The session that the connection looks in on, which others may look in on as well.
        waits: Whether settling may wait for the store (not in an event loop).

    Attributes:
        meter: As given.
    """

    __slots__ = (
        "__weakref__",
        "_asked",
        "_attached_to",
        "_call",
        "_dialect",
        "_due",
        "_events",
        "_goes_on",
        "_made_in",
        "_session",
        "_sound",
        "_total",
        "_write",
        "meter",
    )

    def __init__(
        self,
        meter: Meter,
        dialect: Dialect,
        events: SocketEvents,
        call: Call,
        *,
        waits: bool,
        attached_to: str | None = None,
    ) -> None:
        if not processes.KNOWN[0]:
            processes.notice_fork()
        self._made_in = processes.this_process
        self.meter = meter
        self._dialect = dialect
        self._events = events
        self._call = call
        self._session: dict[str, Any] = {"model": call.facts.model}
        self._asked: deque[_Leave] = deque()
        self._attached_to = attached_to
        # A session is one request, however often its total is written down.
        self._goes_on = is_open_here(meter, attached_to)
        self._sound = 0  # bytes that were sent to a session that does not count them
        self._total: Observation | None = None
        self._due = time.monotonic() + _EVERY
        self._write = settle if waits else settle_from_anywhere
        watch(self)

    def begins(self) -> None:
        """The connection is about to be made: a session may bill what nobody asks for by an event.

        Raises:
            BudgetExceededError: a hard cap does not allow it.
        """
        if not (self._asked or self._is_of_responses):
            self._ask(None, self._call, ahead=True)

    @property
    def _endpoint(self) -> Endpoint:
        """What is connected to, as its requests go by it."""
        return self._dialect.endpoint("GET", f"/{self._call.endpoint.removesuffix('.connect')}")

    @property
    def _is_of_responses(self) -> bool:
        """Whether nothing comes but answers that are asked for by an event."""
        return self._call.endpoint == "responses.connect"

    def asks(self, event: Any, *, queued: bool = False) -> Any:
        """An event is about to be sent, as the SDK takes it: one that is no JSON object asks for nothing.

        Args:
            event: The event.
            queued: Whether the SDK has it already, as it is written.

        Returns:
            What to send: the event, or one like it with the output cap that a budget wants.

        Raises:
            BudgetExceededError: it asks for an answer, or has one made, that a hard cap does not allow.
        """
        read = self.read(event)
        if not isinstance(read, Mapping):
            return event
        given = given_fields(cast("Mapping[str, Any]", read))
        if isinstance(given, UnreadBody):
            call = replace(self._call, facts=replace(self._call.facts, unbounded=UNREADABLE))
        elif given.get("type") in self._events.requests:
            body = {name: value for name, value in _asked_in(given).items() if name not in _ENVELOPE}
            call = self._call_for({**self._session_under(body), **body})
        else:
            self._ask_ahead(given)
            sound = self._sound
            twice(self.meter, lambda: self._count_sound(given, sound))
            return event
        if not (self._is_of_responses and not queued):
            call = replace(call, as_written=True)
        self._take_back_ahead()  # what was held for anything is free for what is asked for now
        leave = self._ask(given.get("event_id"), call)
        return event if leave is None else self._capped(event, given, leave)

    def _session_under(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The session, without its limit on answers where one is asked for with its own, however each spells it."""
        limits = self._events.limits
        if all(body.get(name) is None for name in limits):
            return self._session
        return {name: value for name, value in self._session.items() if name not in limits}

    def _ask_ahead(self, event: Mapping[str, Any]) -> None:
        """Ask for leave for what may be billed with nobody asking, once until that has come.

        Raises:
            BudgetExceededError: a hard cap does not allow it.
        """
        kind = event.get("type")
        if kind in self._events.starts:  # it names the model, on which there may be a cap
            asked = event.get("session")
            session: Mapping[str, Any] = cast("Any", asked) if isinstance(asked, Mapping) else {}
            call = self._call_for({**self._session, **session, "session": session})
            self._take_back_ahead()
        elif kind in self._events.sounds and self._needs_leave():
            call = self._call
        else:
            for one in tuple(self._asked):
                self.meter.extend(one.leave)
            return
        self._ask(None, replace(call, goes_on=self._goes_on), ahead=True)

    def _needs_leave(self) -> bool:
        """Whether sound that is sent now may be billed, and nothing is held for that."""
        asked = tuple(self._asked)
        if any(one.ahead for one in asked) or (asked and self._call.endpoint != "live"):
            return False  # of answers, one is made after the other; a Live session bills its time beside them
        try:
            return self._events.unasked(self._session) is not None
        except Exception as error:  # noqa: BLE001 - what cannot be read may be billed
            self.meter.fault("read a session", error)
            return True

    def _take_back_ahead(self) -> None:
        """What is held with nobody asking is not needed, or asked for in other terms."""
        twice(self.meter, self._take_back_now)

    def _take_back_now(self) -> None:
        for one in tuple(self._asked):
            if one.ahead:
                self.meter.release(one.leave)
                self._forget(one)

    def _forget(self, asked: _Leave) -> None:
        with suppress(ValueError):  # the other direction's thread was quicker
            self._asked.remove(asked)

    def _capped(self, event: Any, given: Mapping[str, Any], leave: Authorization) -> Any:
        """The event, or one like it with the output cap that what is held goes by."""
        cap = leave.inject_max_output_tokens
        if cap is None:
            return event
        try:
            body = _asked_in(given)
            name, value = self._dialect.output_cap(self._endpoint, body, cap, provider=self._call.provider)
            capped = {**body, name: value}
            changed = capped if body is given else {**given, "response": capped}
            return json.dumps(changed) if isinstance(event, str | bytes) else changed
        except Exception as error:  # noqa: BLE001 - sent as written, then
            self.meter.fault("prepare a request", error)
            return event

    def _count_sound(self, event: Mapping[str, Any], before: int) -> None:
        """Have what is sent to a session that does not say what it uses counted. May be begun anew."""
        size = self._events.sound_sent(event)
        if size:
            self._sound = before + size
            seen = self._usage_in(self._events.sound_used(self._session, self._sound))
            self._take_total(_Message(), replace(seen, flags=seen.flags | {"estimated"}), ended=False)

    def read(self, event: Any) -> Any:
        """An event as a JSON object, or something else that asks for nothing. Never raises."""
        for _ in range(2):  # what fails once may pass, as want of memory does
            try:
                return _as_json(event)
            except Exception as error:  # noqa: BLE001 - the caller's event leaves
                self.meter.fault("read what a socket is asked", error)
        return UnreadBody()

    def _ask(self, event_id: str | None, call: Call, *, ahead: bool = False) -> Authorization | None:
        for _ in range(2):  # what fails once may pass, as want of memory does
            hold_id = new_id()
            try:
                leave = self.meter.authorize(call, hold_id=hold_id)
                self._asked.append(_Leave(event_id, leave, ahead=ahead))
            except REFUSALS:
                raise
            except BaseException as error:  # only a budget stops a call
                self.meter.free(hold_id)  # it may have come just after it was made
                if not isinstance(error, Exception):
                    raise
                self.meter.fault("authorize", error)
            else:
                return leave
        return None

    def goes_by(self, key: str | None) -> None:
        """The connection was made with `key`, of which no budget could be asked before."""
        self._call = replace(self._call, api_key=self.meter.identify(key))
        self._take_back_ahead()

    def take_back(self) -> None:
        """What was asked for did not leave."""
        while self._asked:
            self.meter.release(self._asked.popleft().leave)

    def hears(self, data: str | bytes) -> None:
        """A message was received. Never raises."""
        message = _Message()
        twice(self.meter, lambda: self._take(message, data))

    def _take(self, message: _Message, data: str | bytes) -> None:
        if message.bills is None:
            event = json.loads(data)
            kind, names = event.get("type"), self._events
            if kind in names.answers:
                asked = self._asked[0] if self._asked else None
                self._understand(message, self._usage_in(event, asked), "ok", asked)
            elif kind in names.asides:
                seen = self._usage_in(event)
                self._understand(message, seen, "ok", self._met_by(kind, seen))
            elif kind in names.begun:
                if self._asked and self._asked[0].ahead:
                    self._asked[0].ahead = False  # it comes, and is billed whatever becomes of the connection
            elif kind in names.totals:
                self._take_total(message, self._usage_in(event), ended=kind in names.last_totals)
            elif kind in names.beginnings or kind in names.settings:
                self._configure(event.get("session", {}), begins=kind in names.beginnings)
            elif kind in names.errors:
                self._refuse(message, event.get("error") or {})
            for one in tuple(self._asked):
                self.meter.extend(one.leave)
        self._write_down(message)

    def _met_by(self, kind: str, seen: Observation) -> _Leave | None:
        """What a message meets that ends something beside the answers; None where it is billed on top."""
        if not seen.billable:
            return None
        ahead = self._events.unasked(self._session) == "asides"
        if kind in self._events.delegated:
            ahead = False
        elif not ahead:
            return None
        return next((one for one in self._asked if one.ahead == ahead), None)

    def _write_down(self, message: _Message) -> None:
        """Write what a message said; what was asked is answered then."""
        for bill in message.bills or ():
            if not bill.done:
                self._write(bill)
        if message.answers is not None:
            self._forget(message.answers)

    def abandon(self) -> None:
        """The connection is over: what was asked for and not answered may be billed all the same. Never raises."""
        if processes.is_parents(self._made_in):
            return
        twice(self.meter, self._end)

    def _end(self) -> None:
        if self._total is not None:
            self._write_total("aborted")
        while self._asked:
            first, message = self._asked[0], _Message()
            if first.ahead:
                message.answers, message.bills = first, [_GivenBack(self.meter, first.leave)]
            else:
                self._understand(message, None, "aborted", first)
            self._write_down(message)

    def __del__(self) -> None:
        if hasattr(self, "_due"):  # else it was never made
            self._write = settle_from_anywhere
            self.abandon()

    def _call_for(self, body: Mapping[str, Any]) -> Call:
        known = self._call.facts
        facts = replace(known, unbounded=UNREADABLE)  # what cannot be read has no bound: a hard cap decides
        for _ in range(2):  # what fails once may pass, as want of memory does
            try:
                facts = self._dialect.request_facts(self._endpoint, body)
                break
            except Exception as error:  # noqa: BLE001 - see above
                self.meter.fault("read what a socket is asked", error)
        facts = replace(facts, streamed=True, region=known.region, cost_unit=known.cost_unit)
        return with_known(self.meter, replace(self._call, facts=facts))

    def _usage_in(self, event: Mapping[str, Any], asked: _Leave | None = None) -> Observation:
        """What an event says was used; by what was asked, if it answers that."""
        call = self._leave_for(asked).call
        return self._dialect.read(event, provider=call.provider, endpoint=call.endpoint, request=call.facts)

    def _configure(self, settings: Mapping[str, Any], *, begins: bool) -> None:
        named = self._session.get("id") if self._goes_on else None
        self._session.update(settings)
        if named is not None:  # a total was written before the session's own name came
            self._session["id"] = named
        self._call = self._call_for({"session": self._session, **self._session})
        if begins and self._attached_to is None and named is None:
            opened(self.meter, self._session.get("id"), self._call.facts.model)
        if self._events.unasked(self._session) is None:
            self._take_back_ahead()

    def _take_total(self, message: _Message, seen: Observation, *, ended: bool) -> None:
        if seen.reading == "total":
            self._total = seen
        elif not self._sound:  # a session that ends without saying what it used
            self._understand(message, seen, "ok", None)
            return
        if ended or time.monotonic() >= self._due:
            self._write_total("ok")

    def _write_total(self, status: Status) -> None:
        total = self._total
        if total is None:
            return
        identity = self._attached_to or self._session.get("id")
        if identity is None:
            identity = self._session["id"] = new_id()
            opened(self.meter, identity, self._call.facts.model)
        flags = total.flags | {"estimated"} if status == "aborted" else total.flags
        outcome = Outcome(status=status, observation=replace(total, response_id=identity, flags=flags))
        held = next((one for one in self._asked if one.ahead), None)
        self._write(_SessionBill(self.meter, self._leave_for(held), outcome, identity))
        self._due, self._total = time.monotonic() + _EVERY, None
        self._goes_on = True
        if held is not None:
            self._forget(held)

    def _leave_for(self, asked: _Leave | None) -> Authorization:
        """Leave for what comes; for what nobody asked for, in the terms that the session has by now."""
        if asked is None:
            return give_leave(self.meter, self._call)
        if asked.ahead:
            asked.leave.call = self._call
        return asked.leave

    def _refuse(self, message: _Message, error: Mapping[str, Any]) -> None:
        """An answer that was asked for will not come. Which one, a session says by its event's id, if that has one."""
        named = error.get("event_id") or error.get("client_event_id")
        open_ = [one for one in self._asked if not one.ahead]
        if not self._is_of_responses:
            open_ = [one for one in reversed(open_) if one.event_id == named]
            if named is None and not self._events.refuses(error):
                return  # it may be about any other event without a name
        if open_:
            outcome = Outcome(status="error", error_type=error.get("code") or error.get("type"))
            message.answers, message.bills = open_[0], [Settling(self.meter, open_[0].leave, outcome)]

    def _understand(self, message: _Message, seen: Observation | None, status: Status, asked: _Leave | None) -> None:
        """Work out what is to be written of an answer to what was `asked`; None for one that did not come."""
        bills: list[Settling] = []
        if seen is None or seen.billable:
            account = self._leave_for(asked)
            if seen is not None:
                bills += (
                    Settling(self.meter, account, Outcome(status=status, observation=bill, last=False))
                    for bill in seen.shared
                )
                shared = self._attached_to is not None or self._call.endpoint == "live"
                seen = replace(seen, deduplicate=shared)
            bills.append(Settling(self.meter, account, Outcome(status=status, observation=seen)))
        elif asked is not None:
            self.meter.release(asked.leave)
        message.answers, message.bills = asked, bills


def _asked_in(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where an event says what it asks for: under ``response``, as in Realtime sessions, else beside its type."""
    asked = event.get("response")
    return cast("Mapping[str, Any]", asked) if isinstance(asked, Mapping) else event


def _as_json(event: Any) -> Any:
    """An event as a JSON object; None for what is none, an `UnreadBody` for what is nested too deep to be read."""
    if isinstance(event, str | bytes):
        try:
            return json.loads(event)
        except ValueError:
            return None
        except RecursionError:
            return UnreadBody()
    return event.to_dict() if hasattr(event, "to_dict") else event
