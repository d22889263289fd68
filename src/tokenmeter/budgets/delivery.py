"""How alerts reach their targets: after the commit, off the call's path, each target by a thread of its own.

What was delivered stands in the ledger, so that what a process could not deliver before it was killed, or while a
receiver was away, is delivered by it or another later. A target may so hear of the same alert twice, which
`Alert.alert_id` tells, but not never.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import queue
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial
from itertools import chain

from tokenmeter.budgets.alerts import Alert, AlertTarget, Notice
from tokenmeter.budgets.matching import parse_scope, scope_text
from tokenmeter.budgets.rules import NOTICE
from tokenmeter.errors import StoreError
from tokenmeter.ledger import CounterKey, ThresholdCrossing
from tokenmeter.processes import has_ended, make_lock, process_name, run_alone, run_at_exit
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import DocumentQuery
from tokenmeter.stores.slots import from_microseconds, to_microseconds

log = logging.getLogger("tokenmeter")

#: Alerts that wait for slow targets at most; further ones are logged and left for later.
QUEUE_SIZE = 1_000
#: Seconds that a process which ends waits for alerts not yet delivered: long enough for a receiver's second thoughts.
EXIT_SECONDS = 10
#: What is older is news to nobody.
_NEWS_FOR = timedelta(days=7)
#: How long an alert is left to the process that found it: one that has said so, or one that had no time to.
_LEFT_TO_ITS_OWN, _LEFT_UNCLAIMED = timedelta(minutes=15), timedelta(minutes=1)
#: Between two attempts at what a target does not take while it takes others: longer each time, up to this.
_LONGEST_PAUSE = timedelta(hours=6)
#: Alerts that a target refuses in a row before it is left alone until the next look.
_REFUSALS = 2
#: A ledger's first alert may be as old as the call that crossed the threshold took.
_FIRST_CALL = timedelta(minutes=1)
#: The flags of deliveries, kept as counters: each is set once, by whoever comes first.
_SINCE, _CLAIMED, _DELIVERED = "alerts since", "alert claimed", "alert delivered"


class TargetError(Exception):
    """The receiver did not take an alert; logged by the queue.

    Attributes:
        final: Whether it would not take it later either.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class Deliveries:
    """What a ledger knows of who was told what.

    Args:
        store: The ledger.
        alert_of: The alert of a threshold that was crossed; None where its budget is gone, or its limit not known here.
    """

    def __init__(self, store: Store, alert_of: Callable[[ThresholdCrossing], Alert | None]) -> None:
        self._store = store
        self._alert_of = alert_of

    def claim(self, alert: Alert | Notice) -> None:
        """Say that this process delivers `alert`: others leave it alone as long as it can be heard of."""
        self._flag(_CLAIMED, alert=alert.alert_id, process=process_name())

    def note(self, alert: Alert | Notice, target: str) -> None:
        """Say that nothing more is to be done about `alert` at `target`."""
        self._flag(_DELIVERED, alert=alert.alert_id, target=target)

    def now(self) -> datetime:
        """The ledger's clock."""
        return self._store.now()

    def was_told(self, alert_id: str, target: str) -> bool:
        """Whether nothing is to be done about an alert at `target` any more."""
        key = _key(_DELIVERED, alert=alert_id, target=target)
        return bool(self._store.counters([key])[key].settled)

    def missed(self, target: str) -> list[tuple[str, Callable[[], Alert | Notice | None]]]:
        """What `target` should have been told by now and was not, the first first.

        Returns:
            Of each its `Alert.alert_id`, and what makes it: an alert says the limit, which may have to be asked for.

        Raises:
            StoreUnavailableError: the ledger cannot be read or written.
        """
        now = self.now()
        since = max(self._since(target, now) - _FIRST_CALL, now - _NEWS_FOR)
        news: Iterator[tuple[datetime, str, ThresholdCrossing | Notice]] = chain(
            self._crossed(since), self._noticed(since)
        )
        found = {one: (at, event) for at, one, event in news}
        keys = {one: _key(_DELIVERED, alert=one, target=target) for one in found}
        told = self._store.counters(list(keys.values()))
        left = {one: found[one] for one, key in keys.items() if not told[key].settled}
        # Of what is older nobody is asked who claimed it: that goes through every counter there is.
        claims = self._claims() if any(now - at < _LEFT_TO_ITS_OWN for at, _ in left.values()) else {}
        due = sorted((at, one) for one, (at, _) in left.items() if _is_left(claims.get(one, []), now - at))
        return [(one, partial(self._make, found[one][1])) for _, one in due]

    def _make(self, event: ThresholdCrossing | Notice) -> Alert | Notice | None:
        return event if isinstance(event, Notice) else self._alert_of(event)

    def _since(self, target: str, now: datetime) -> datetime:
        """When `target` was first heard of: what happened before is not told."""
        key = _key(_SINCE, target=target)
        known = self._store.counters([key])[key].settled
        if not known:
            self._store.open_counters({key: (to_microseconds(now), None)})
        return from_microseconds(known) if known else now

    def _crossed(self, since: datetime) -> Iterator[tuple[datetime, str, ThresholdCrossing]]:
        # All of them, however many: of the newest only, one that was left for later would be told by nobody.
        crossed = self._store.crossings(since=since)
        recent = [(one.crossed_at, one) for one in crossed if one.crossed_at is not None]
        counters = self._store.counters([one.key for _, one in recent])
        for at, one in recent:
            crossing = ThresholdCrossing(one.key, one.threshold, counters[one.key].settled)
            yield at, crossing.crossing_id, crossing

    def _noticed(self, since: datetime) -> Iterator[tuple[datetime, str, Notice]]:
        for document in self._store.documents(DocumentQuery(kind=NOTICE)):
            if document.recorded_at >= since:
                notice = Notice.of(json.loads(document.body))
                yield document.recorded_at, notice.alert_id, notice

    def _claims(self) -> dict[str, list[str]]:
        """Per alert the processes that said they deliver it."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for key, _ in self._store.all_counters():
            if key.budget == _CLAIMED:
                claim = parse_scope(key.scope)
                found[claim["alert"]].append(claim["process"])
        return found

    def _flag(self, what: str, **parts: str) -> None:
        end = self.now() + 2 * _NEWS_FOR
        self._store.open_counters({_key(what, **parts): (1, to_microseconds(end))})


def _key(what: str, **parts: str) -> CounterKey:
    return CounterKey(what, scope_text(parts), 0)


def _is_left(claims: list[str], age: timedelta) -> bool:
    """Whether nobody delivers an alert of this age any more."""
    if claims and all(map(has_ended, claims)):
        return True
    return age >= (_LEFT_TO_ITS_OWN if claims else _LEFT_UNCLAIMED)


class AlertQueue:
    """Delivers alerts to targets, each from a daemon thread of its own, started with the first alert.

    A call only puts the alert into queues, also when it ends in a finaliser. A target that raises is logged; one that
    is slow or away delays no other.

    Args:
        targets: Who is told.
        deliveries: What the ledger knows of them; None = nothing is remembered.
    """

    def __init__(self, targets: Iterable[AlertTarget] = (), *, deliveries: Deliveries | None = None) -> None:
        targets = tuple(targets)
        names = _number([_name_of(target) for target in targets])
        self._outboxes = tuple(_Outbox(*each, deliveries) for each in zip(targets, names, strict=True))
        self._exit_hook_set = False

    def __bool__(self) -> bool:
        return bool(self._outboxes)

    def submit(self, alert: Alert | Notice) -> None:
        """Log `alert` and hand it to the targets. Never waits."""
        log.warning("%s", alert)
        for outbox in self._outboxes:
            outbox.put(alert)
        self._wait_at_exit()

    def catch_up(self) -> None:
        """Have delivered what nobody delivered. Never waits."""
        for outbox in self._outboxes:
            outbox.catch_up()
        self._wait_at_exit()

    def _wait_at_exit(self) -> None:
        if self._outboxes and not self._exit_hook_set:
            self._exit_hook_set = True
            run_at_exit(self._flush_at_exit)

    def flush(self, timeout: float) -> bool:
        """Wait until every alert submitted so far was handed to every target.

        Args:
            timeout: Seconds to wait at most, for all of them together.

        Returns:
            Whether all were.
        """
        until = time.monotonic() + timeout
        marks = [outbox.mark() for outbox in self._outboxes]
        return all(mark.wait(max(until - time.monotonic(), 0)) for mark in marks)

    def close(self, timeout: float) -> None:
        """`flush`, and let the threads end; the next alert begins others."""
        self.flush(timeout)
        for outbox in self._outboxes:
            outbox.close()

    def _flush_at_exit(self) -> None:
        if not self.flush(EXIT_SECONDS):
            slow = ", ".join(repr(outbox.target) for outbox in self._outboxes if outbox.waiting)
            log.error("tokenmeter could not deliver every alert before the process ended: %s took too long", slow)


class _CatchUp:
    """Stands in an outbox for what its target was not told."""


class _Outbox:
    """What waits for one target."""

    def __init__(self, target: AlertTarget, name: str, deliveries: Deliveries | None) -> None:
        self.target = target
        self._name = name
        self._deliveries = deliveries
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        # A SimpleQueue, since a finaliser may interrupt this very thread in the middle of a put.
        self._queue: queue.SimpleQueue[Alert | Notice | _CatchUp | threading.Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy = False
        #: Alerts that the target did not take while it took others: how often, and when it is asked again.
        self._failed: dict[str, tuple[int, datetime]] = {}
        #: The alert that it refused last, if it took none after it in the same look.
        self._refused: str | None = None
        #: Whether it refused one alert after another, and whether the log says of a refusal; until it takes one.
        self._away = self._complained = False
        #: Looks in a row that ended with refusals.
        self._in_vain = 0

    @property
    def waiting(self) -> bool:
        """Whether something is not delivered yet."""
        return self._busy or not self._queue.empty()

    def put(self, alert: Alert | Notice) -> None:
        """Have `alert` delivered; left for later, which is logged, where too many wait."""
        self._renew()
        if self._queue.qsize() >= QUEUE_SIZE:
            log.error("tokenmeter dropped an alert: %d are waiting for %r", QUEUE_SIZE, self.target)
            return
        self._put(alert)

    def catch_up(self) -> None:
        """Have delivered what the ledger says was not."""
        self._renew()
        if self._deliveries is not None and self._queue.empty():  # else it is asked when less is to be done
            self._put(_CatchUp())

    def _renew(self) -> None:
        if self._pid != os.getpid():  # a forked child has no thread
            self._begin()

    def _put(self, item: Alert | Notice | _CatchUp) -> None:
        self._queue.put(item)
        if self._thread is None:
            run_alone(_starting, self._start)

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._work, args=(self._queue,), name="tokenmeter-alerts", daemon=True)
            with contextlib.suppress(RuntimeError):  # none can be had: whoever is next to put or to wait tries again
                thread.start()
                self._thread = thread

    def mark(self) -> threading.Event:
        """Set as soon as everything that waits now was delivered."""
        reached = threading.Event()
        if not self._queue.empty():
            run_alone(_starting, self._start)
        if self._thread is None or self._pid != os.getpid():
            reached.set()
        else:
            self._queue.put(reached)
        return reached

    def close(self) -> None:
        """Let the thread end, once what waits is delivered; what comes from now on another one delivers."""
        ending, self._queue, self._thread = self._queue, queue.SimpleQueue(), None
        ending.put(None)

    def _work(self, waiting: queue.SimpleQueue[Alert | Notice | _CatchUp | threading.Event | None]) -> None:
        while (item := waiting.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            self._busy = True
            if isinstance(item, _CatchUp):
                self._tell_missed()
            elif not self._away:  # else it waits in the ledger for the next look
                self._deliver(item)
            self._busy = False

    def _tell_missed(self) -> None:
        """Deliver what the ledger says was not, the first first, until the target refuses one alert and another."""
        assert self._deliveries is not None  # noqa: S101 - only then is anything asked for
        self._refused, in_a_row = None, 0
        try:
            now = self._deliveries.now()
            waiting = deque(
                (one, make)
                for one, make in self._deliveries.missed(self._name)
                if one not in self._failed or now >= self._failed[one][1]
            )
            while waiting and in_a_row < _REFUSALS:
                # After a refusal another tells whether it is the target, or what that one says: at each look in vain
                # one more before the newest, as two may be refused for what they say.
                place = len(waiting) - 1 - self._in_vain % len(waiting) if in_a_row else 0
                one, make = waiting[place]
                del waiting[place]
                told = self._deliveries.was_told(one, self._name)  # another process may be at it
                alert = None if told else _made(make)
                if alert is not None and self._deliver(alert, len(waiting)):
                    in_a_row = 0
                elif alert is not None:
                    in_a_row += 1
            if in_a_row == _REFUSALS:
                self._in_vain += 1
        except Exception as error:  # noqa: BLE001 - it is asked again
            log.info("tokenmeter could not look for alerts that were not delivered: %s", error)

    def _deliver(self, alert: Alert | Notice, others: int = 0) -> bool:
        """Whether nothing is left to do about `alert`; so many `others` are known to wait, too."""
        self._remember(lambda deliveries: deliveries.claim(alert))
        try:
            self.target(alert)
        except Exception as error:
            final = isinstance(error, TargetError) and error.final
            if not final and self._deliveries is not None and self._complained:
                log.info("An alert was not delivered to %r again: %s", self.target, error)
            elif isinstance(error, TargetError):  # its words say all there is
                again = "It is not tried again" if final else "It is tried again while calls are made"
                too = f"; besides it wait: {others}" if others and not final else ""
                log.error("An alert was not delivered: %s %s%s.", error, again, too)  # noqa: TRY400 - see above
            else:
                log.exception("tokenmeter could not deliver an alert to %r; besides it wait: %d", self.target, others)
            if not final:
                self._complained = True
                if self._deliveries is not None and self._refused not in {None, alert.alert_id}:
                    self._away = True
                self._refused = alert.alert_id
                return False
        self._finish(alert, others)
        return True

    def _finish(self, alert: Alert | Notice, others: int) -> None:
        """The target answered: what it refused just before is what it does not take, and it is not away."""
        refused = self._refused
        if refused is not None and refused != alert.alert_id:
            self._remember(lambda deliveries: self._put_off(refused, deliveries.now()))
        elif self._complained:
            self._away = True
        if self._away and self._deliveries is not None:
            log.warning("%r answers again; alerts that waited and follow now: %d.", self.target, others)
        self._refused, self._away, self._complained = None, False, False
        self._in_vain = 0
        self._failed.pop(alert.alert_id, None)
        self._remember(lambda deliveries: deliveries.note(alert, self._name))

    def _put_off(self, alert_id: str, now: datetime) -> None:
        times, _ = self._failed.get(alert_id, (0, now))
        self._failed[alert_id] = (times + 1, now + min(_LEFT_TO_ITS_OWN * 2**times, _LONGEST_PAUSE))

    def _remember(self, write: Callable[[Deliveries], None]) -> None:
        if self._deliveries is not None:
            try:
                write(self._deliveries)
            except Exception as error:  # noqa: BLE001 - it may be told twice
                log.info("tokenmeter could not write down that an alert was delivered: %s", error)


def _made(make: Callable[[], Alert | Notice | None]) -> Alert | Notice | None:
    """An alert; None where it cannot be made, which keeps no other back."""
    try:
        return make()
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 - a limit function of somebody's, or what he took away
        log.info("tokenmeter could not make an alert that was not delivered: %s", error)
        return None


def _name_of(target: AlertTarget) -> str:
    """What the ledger calls a target, in every process that has it. Its address may be a secret and is not told."""
    said = getattr(target, "address", None) or getattr(target, "__qualname__", "")
    kind = type(target)
    module = getattr(target, "__module__", None) or kind.__module__
    digest = hashlib.sha256(f"{module}\n{said}".encode()).hexdigest()[:16]
    return f"{kind.__qualname__} {digest}"


def _number(names: Iterable[str]) -> Iterator[str]:
    """`names`, of which each but the first of its kind has its number: two methods of one class are two targets."""
    met: Counter[str] = Counter()
    for name in names:
        met[name] += 1
        yield name if met[name] == 1 else f"{name} {met[name]}"


_starting = make_lock()
