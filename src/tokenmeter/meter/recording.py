"""One call as the meter has it: leave for it to go, the key it goes by, and what is written down of it.

What could not be written when it was known is kept in memory, told of, and written once that is possible.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from tokenmeter.attribution import ApiKey, hash_key
from tokenmeter.budgets.runs import RunClaims
from tokenmeter.call import Call, Outcome
from tokenmeter.dimensions import TOOL_OPERATION
from tokenmeter.display import counted, dollars
from tokenmeter.errors import StoreBusyError, StoreError
from tokenmeter.ledger import Entry, Reservation, new_id
from tokenmeter.money import ZERO, add
from tokenmeter.pricing import Rating
from tokenmeter.processes import run_alone, run_at_exit
from tokenmeter.stores.trouble import Trouble
from tokenmeter.usage import Observation
from tokenmeter.values import dataclass

#: Stands in for an answer that nobody saw.
NOTHING_SEEN = Observation()


def record_of(
    authorization: Authorization, outcome: Outcome, rating: Rating, *, price_list_hash: str, bound_violated: bool
) -> Entry:
    """The entry of one outcome.

    Args:
        authorization: What the call was allowed with.
        outcome: How it ended.
        rating: What it cost.
        price_list_hash: Which prices said so.
        bound_violated: Whether it used more than was held for it.
    """
    call = authorization.call
    seen = outcome.observation or NOTHING_SEEN
    reservation = authorization.reservation
    flags = seen.flags | rating.flags
    if outcome.observation is None and outcome.status in {"aborted", "timeout"}:
        flags |= {"billing_unknown"}
    if bound_violated:
        flags |= {"bound_violation"}
    response_id = seen.response_id or outcome.response_id
    operation = seen.operation or call.operation
    grown = seen.reading == "growth"
    # What is no request took no time of its own.
    timed = authorization.started_ns and operation != TOOL_OPERATION and not grown
    bill_id = seen.bill_id or response_id
    return Entry(
        entry_id=outcome.entry_id or new_id(),
        kind="growth" if grown else "usage",
        occurred_at=authorization.started_at,
        provider=call.provider,
        endpoint=call.endpoint,
        operation=operation,
        request_model=call.facts.model,
        response_model=seen.response_model,
        response_id=response_id,
        request_id=outcome.request_id,
        status="error" if outcome.status == "ok" and seen.error_type else outcome.status,
        streamed=call.facts.streamed,
        attempts=outcome.attempts,
        latency_us=(time.perf_counter_ns() - authorization.started_ns) // 1000 if timed else None,
        first_token_us=outcome.first_token_us if timed else None,
        service_tier=seen.service_tier,
        attribution=call.attribution,
        api_key=call.api_key,
        usage=seen.usage,
        charges=rating.charges,
        list_cost=rating.list_cost,
        contracted_cost=rating.contracted_cost,
        billed_cost=rating.billed_cost,
        cost_source=rating.cost_source,
        flags=tuple(sorted(flags)) if flags else (),
        price_list_hash=rating.price_list_hash or price_list_hash,
        raw_usage=None if seen.raw_usage is None else usage_text(seen.raw_usage),
        error_type=outcome.error_type or seen.error_type,
        reservation_id=None if reservation is None else reservation.reservation_id,
        dedup_key=f"{call.provider}:{bill_id}" if seen.deduplicate and bill_id else None,
        trace_id=None if call.span is None else call.span.trace_id,
        span_id=None if call.span is None else call.span.span_id,
    )


def usage_text(value: Any) -> str:
    """A usage object as the JSON text that entries keep."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)


@dataclass(slots=True)
class Authorization:
    """Leave to make one call; hand it back to `Meter.settle`.

    Attributes:
        call: The call.
        started_at: When it left, aware UTC.
        started_ns: The same on the performance counter; 0 for a call that nobody watched.
        reservation: The hold, if a budget applies.
        runs: What is held in the runs around the call (`tokenmeter.budget`), if any.
        settled: Whether an outcome was written (or given up on).
        inject_max_output_tokens: Output cap that a budget wants set on the request; None = send it as written.
        extend_due_ns: When the hold is next worth extending, on the performance counter.
        replaces: An estimate of this call that is recorded: taken back once the answer is written down.
    """

    call: Call
    started_at: datetime
    started_ns: int
    reservation: Reservation | None = None
    runs: RunClaims | None = None
    settled: bool = False
    inject_max_output_tokens: int | None = None
    extend_due_ns: int = 0
    replaces: Entry | None = None


#: Fingerprint of every key while the ledger's secret cannot be read.
UNKNOWN = "unknown"
#: Keys whose fingerprint is remembered at most; short-lived tokens would otherwise pile up.
_MOST_KEYS = 1_000


class KeyRing:
    """The keys this process has used. A key's text is kept only in its memory.

    Args:
        aliases: SHA-256 of a key (hex) -> the user's name for it.
        secret: Reads the ledger's secret.
        fault: Told what failed.
    """

    def __init__(
        self,
        aliases: Mapping[str, str],
        *,
        secret: Callable[[], bytes],
        fault: Callable[[str, BaseException], None],
    ) -> None:
        self._aliases = dict(aliases)
        self._read_secret = secret
        self._fault = fault
        #: By their text.
        self.known: dict[str | None, ApiKey] = {}
        self._secret: bytes | None = None

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self.known)

    def identify(self, key: str | None) -> ApiKey | None:
        """`key` as the ledger knows it; None for no key.

        While the store cannot say its secret the key has no fingerprint, but budgets on it still apply.
        """
        if not key:
            return None
        known = self.known.get(key)
        if known is not None:
            return known
        alias = self._aliases.get(hash_key(key))
        try:
            if self._secret is None:
                self._secret = self._read_secret()
        except StoreError as error:
            self._fault("read the ledger's secret", error)
            return replace(ApiKey.identify(key, secret=b"", alias=alias), fingerprint=UNKNOWN)
        if len(self.known) >= _MOST_KEYS:
            self.known.clear()
        known = self.known[key] = ApiKey.identify(key, secret=self._secret, alias=alias)
        return known


log = logging.getLogger("tokenmeter")

#: Seconds between two attempts while no call tells that the store works again.
_AGAIN = 2
#: Outcomes that are kept at most, some 5 kB each: more than a store is away for before somebody looks.
_MOST = 20_000
#: Answers that are named in the log, of those that a process took with it.
_MOST_NAMED = 50


@dataclass(slots=True)
class Unwritten:
    """One outcome on its way into the ledger.

    Attributes:
        authorization: What its call was allowed with.
        outcome: How it ended; it names the entry's identity, so that it is recorded once however often it is tried.
        entry: What is to be recorded, once it was rated.
        counted: Whether the blocks and runs around its call have counted it.
    """

    authorization: Authorization
    outcome: Outcome
    entry: Entry | None = None
    counted: bool = False


class UnwrittenOutcomes:
    """The outcomes that wait.

    They are tried again after every call that could be written, every few seconds by a thread of their own, and at
    the end of the process.

    Args:
        write: Writes one down: True when it is done with, False when it has to wait on. Raises `StoreBusyError` when
            this thread is in the middle of a write.

    Attributes:
        kept: Those that wait, the first first; in a forked child its parent's, until it looks.
    """

    def __init__(self, write: Callable[[Unwritten], bool]) -> None:
        self._write = write
        self._at_exit = self._ending = False
        self._begin()

    def _begin(self) -> None:
        """Anew in a forked child: what its parent keeps is the parent's, whose lock nobody frees here."""
        self._process = os.getpid()
        self.kept: deque[Unwritten] = deque()
        self._lock = threading.RLock()
        self._trouble = Trouble("record a call", "It is kept in memory, and recorded once the ledger can be written.")
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def _know_process(self) -> None:
        if self._process != os.getpid():
            self._begin()

    def __len__(self) -> int:
        """How many wait."""
        self._know_process()
        return len(self.kept)

    def keep(self, late: Unwritten, error: BaseException | None = None) -> None:
        """Keep an outcome.

        Args:
            late: The outcome.
            error: Why it could not be written; None for one that came in the middle of another one's writing.
        """
        self._know_process()
        if self._ending:
            _tell_lost([late])
            return
        self.kept.append(late)
        if not self._at_exit:
            self._at_exit = True
            run_at_exit(self._end)
        if error is not None:
            self._trouble.failed(error)
            self._watch()
        while len(self.kept) > _MOST:
            _tell_lost([self.kept.popleft()])

    def failed_again(self, error: BaseException) -> None:
        """One that waits could not be written this time either."""
        self._trouble.failed(error)

    def catch_up(self) -> None:
        """Write down what waits, in the order it came; stops where one has to wait on. Never raises."""
        self._know_process()
        if not self._lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001 - a finaliser amid this very loop leaves it to it
            run_alone(self._lock, self._catch_up)

    def _catch_up(self) -> None:
        while self.kept:
            late = self.kept[0]  # it goes when it is written: whoever is interrupted finds it again
            try:
                if not self._write(late):
                    self.kept.rotate(-1)  # it may be the only one that cannot be written
                    return
            except StoreBusyError:  # somebody further up in this thread: the next call tries again
                return
            if self.kept and self.kept[0] is late:
                self.kept.popleft()
        self._trouble.worked()

    def close(self) -> None:
        """Try once more; what is left waits for the end of the process, or for who records again."""
        self._wake.set()
        self.catch_up()

    # -- while nobody calls

    def _watch(self) -> None:
        """Have a thread try again, should no call do so."""
        if self._thread is None or not self._thread.is_alive():
            self._wake.clear()
            self._thread = threading.Thread(target=self._try_again, name="tokenmeter-waiting", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no thread can be had, or the interpreter ends: the next call tries, and the end
                self._thread = None

    def _try_again(self) -> None:
        while True:
            while self.kept and not self._wake.wait(_AGAIN):
                self.catch_up()
            self._thread = None  # who keeps one from here on begins another thread
            if not self.kept or self._wake.is_set():
                return

    def _end(self) -> None:
        """The process ends: try once more, and say what it takes with it."""
        self._wake.set()
        self.catch_up()
        self._ending = True
        lost = list(self.kept)
        self.kept.clear()
        if lost:
            _tell_lost(lost)


def _tell_lost(lost: list[Unwritten]) -> None:
    """Say in the log what is in no ledger, so that it can be told to it by hand."""
    cost: Decimal = ZERO
    unknown = 0
    named: list[str] = []
    for late in lost:
        if late.entry is None or late.entry.billed_cost is None:
            unknown += 1
        else:
            cost = add(cost, late.entry.billed_cost)
        if len(named) < _MOST_NAMED:
            call, seen = late.authorization.call, late.outcome.observation
            answer = (seen and seen.response_id) or late.outcome.response_id or "an answer without id"
            named.append(f"{call.provider} {call.facts.model} {answer}")
    costs = [f"{dollars(cost)} in all"] * (unknown < len(lost)) + [f"{unknown:,} of unknown cost"] * bool(unknown)
    log.error(
        "tokenmeter could not record %s (%s), since the ledger could not be written: %s. "
        "`tokenmeter reconcile` finds what is missing in the provider's own figures.",
        counted(len(lost), "call"),
        " and ".join(costs),
        "; ".join(named),
    )
