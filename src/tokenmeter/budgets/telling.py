"""What of a ledger's budgets is told: thresholds as they are crossed, what rules find, what nobody was told yet."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from tokenmeter.budgets.alerts import Alert, AlertTarget, Notice
from tokenmeter.budgets.definitions import InForce
from tokenmeter.budgets.delivery import AlertQueue, Deliveries
from tokenmeter.budgets.holds import Fault
from tokenmeter.budgets.limits import LimitUnknownError
from tokenmeter.budgets.matching import Cap, Subject, parse_scope
from tokenmeter.budgets.policy import Budget, amount_of, threshold_amounts
from tokenmeter.budgets.rules import Rule, Sight, check
from tokenmeter.budgets.status import Balance
from tokenmeter.call import Call
from tokenmeter.errors import StoreError
from tokenmeter.ledger import CounterKey, Entry, ThresholdCrossing
from tokenmeter.places import say_place
from tokenmeter.processes import Background
from tokenmeter.stores.base import Store
from tokenmeter.stores.slots import from_microseconds

log = logging.getLogger("tokenmeter")

_HOST = socket.gethostname()
#: Seconds between two looks, and from the start to the first of the rules.
_LOOK_EVERY = 300
_FIRST_LOOK = 60
#: Beside a budget's name: that it was told of a call which nobody answered.
_UNANSWERED = -1


class Telling:
    """Tells a ledger's alerts and notices to the targets of this process.

    Args:
        store: The ledger.
        targets: Whom to tell, besides the log.
        rules: What else is worth telling; looked at every five minutes while calls are made.
        caps: The limits in force, by their counters' name.
        limit_of: What a counter's limit is now.
        limits_before: What it was before, the latest first, with the definition that said so.
        balances: Where every counter of every budget stands at a moment.
        fault: Told of faults that must not reach a caller.
        background: Where rules are looked at.
    """

    def __init__(
        self,
        store: Store,
        targets: Iterable[AlertTarget],
        rules: Iterable[Rule],
        *,
        caps: Callable[[], Mapping[str, Cap]],
        limit_of: Callable[[Cap, Mapping[str, str], CounterKey], int],
        limits_before: Callable[[Cap, Mapping[str, str], CounterKey], Iterator[tuple[Budget, int]]],
        balances: Callable[[datetime], Sequence[Balance]],
        fault: Fault,
        background: Background,
    ) -> None:
        self._store = store
        store.tell_late = self.announce
        self._caps = caps
        self._limit_of = limit_of
        self._limits_before = limits_before
        self._balances = balances
        self._fault = fault
        self._background = background
        self.rules = tuple(rules)
        self.queue = AlertQueue(targets, deliveries=Deliveries(store, self._alert))
        now = time.monotonic()
        self._missed_due, self._rules_due = now, now + _FIRST_LOOK
        self._faults_told = 0
        #: Whether there is anything to look for.
        self.looks = bool(self.rules or self.queue)

    def announce(self, crossings: Sequence[ThresholdCrossing]) -> None:
        """Tell of crossed thresholds. Never waits for a target, never raises."""
        for crossing in crossings:
            try:
                alert = self._alert(crossing)
                if alert is not None:
                    self.queue.submit(alert)
            except Exception as error:  # noqa: BLE001 - nobody waits for it
                self._fault("announce a crossed threshold", error)

    def _alert(self, crossing: ThresholdCrossing) -> Alert | None:
        key = crossing.key
        cap = self._caps().get(key.budget)
        if cap is None:
            return None
        scope = parse_scope(key.scope)
        try:
            limit = self._limit_of(cap, scope, key)
        except LimitUnknownError:  # a process that knows it tells
            return None
        start, end = next(
            (span for span in cap.spans(key.window_start) if span[0] == key.window_start), (key.window_start, None)
        )
        until = cap.ends_first(end)
        percent = threshold_amounts(cap.budget, limit).get(crossing.threshold)
        if percent is None:  # the limit is another by now than what was crossed was a threshold of
            for budget, before in self._limits_before(cap, scope, key):
                percent = threshold_amounts(budget, before).get(crossing.threshold)
                if percent is not None:
                    limit = before
                    break
        if percent is None:
            percent = crossing.threshold * 100 // max(limit, 1)
        return Alert(
            budget=cap.budget.name,
            scope=scope,
            unit=cap.unit,
            threshold=percent,
            limit=amount_of(cap.unit, limit),
            spent=amount_of(cap.unit, crossing.settled),
            window_start=from_microseconds(start),
            window_end=None if until is None else from_microseconds(until),
            ends=cap.ends_with(end),
            at=self._store.now(),
            hard=cap.budget.hard,
            key_name=self._key_name(scope.get("api_key")),
            crossing_id=crossing.crossing_id,
        )

    def _key_name(self, fingerprint: str | None) -> str | None:
        if fingerprint is None:
            return None
        try:
            return self._store.key_labels().get(fingerprint)
        except StoreError:  # told without a name, rather than not at all
            return None

    def check_rules(self, *, faults: int = 0) -> list[Notice]:
        """Look at the ledger with every rule, and tell what nobody has told yet.

        Args:
            faults: How often something inside tokenmeter failed in this process.

        Raises:
            StoreUnavailableError: the ledger cannot be read or written.
        """
        now = self._store.now()
        process = f"{_HOST}:{os.getpid()}"
        found = check(
            self.rules, Sight(self._store, self._balances(now), now, faults, process, min(self._faults_told, faults))
        )
        if any(notice.kind == "faults" for notice in found):
            self._faults_told = faults
        for notice in found:
            self.queue.submit(notice)
        return found

    def catch_up_sometimes(self) -> None:
        """Have delivered what nobody delivered: at once when a process begins, then every five minutes. Never waits."""
        now = time.monotonic()
        if self.queue and now >= self._missed_due:
            self._missed_due = now + _LOOK_EVERY
            self.queue.catch_up()

    def look_sometimes(self, *, faults: int) -> None:
        """`check_rules` in a thread, and `catch_up_sometimes`, every five minutes. Never waits, never raises."""
        self.catch_up_sometimes()
        now = time.monotonic()
        if self.rules and now >= self._rules_due:
            self._rules_due = now + _LOOK_EVERY
            self._background.run("check-rules", lambda: self._check_quietly(faults))

    def _check_quietly(self, faults: int) -> None:
        try:
            self.check_rules(faults=faults)
        except Exception as error:  # noqa: BLE001 - nobody waits for it
            self._fault("check rules", error)


def tell_who_passes(state: InForce, call: Call, at: datetime, told: set[tuple[str, int]], *, made: bool) -> None:
    """Say once per budget that a call without a member (or the like) is not caught by a cap on each member.

    So it is with a call that names no model, and a cap on one; unless it was `made` already: its answer says which.
    """
    subject: Subject | None = None
    for cap in state.passable:
        budget = cap.budget
        if (budget.name, 0) in told or not budget.applies(at):
            continue
        subject = subject or Subject.of_call(call)
        field = next((name for name in cap.match.find_lacking(subject) if not (made and name == "model")), None)
        if field is None:
            continue
        told.add((budget.name, 0))
        each = budget.scope[field] == "*"
        what = f"each {field} by itself" if each else f"the {field} {budget.scope[field]}"
        counts = "; what it uses counts by the model that answers" if field == "model" else ""
        log.warning(
            "Budget %r caps %s: the call to %s %s has no %s and is not caught by it, nor are "
            'others like it%s. Require it with require=["%s"], or add a budget without that scope.',
            budget.name, what, call.endpoint, say_place(), field, counts, field,
        )  # fmt: skip


def tell_of_unanswered(entry: Entry, caps: Sequence[Cap], told: set[tuple[str, int]]) -> None:
    """Say once per budget that what a call which nobody answered may have cost is in no cap of dollars or tokens."""
    if entry.kind != "usage" or any(cap.unit == "requests" for cap in caps):
        return
    for name in sorted({cap.budget.name for cap in caps if cap.budget.hard and cap.unit in {"usd", "tokens"}}):
        if (name, _UNANSWERED) not in told:
            told.add((name, _UNANSWERED))
            log.warning(
                "Budget %r gave back what it held for a call to %s that nobody answered (%s): whether it was billed "
                "nobody can tell. Where this is frequent, set limit_requests beside it, which counts such calls.",
                name, entry.endpoint, entry.error_type or entry.status,
            )  # fmt: skip
