"""What could not be written down when it was known: kept in memory, told of, and written once that is possible."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from tokenmeter.call import Outcome
from tokenmeter.display import counted
from tokenmeter.errors import StoreBusyError
from tokenmeter.ledger import Entry
from tokenmeter.meter.recording import Authorization
from tokenmeter.money import ZERO, add
from tokenmeter.processes import run_alone
from tokenmeter.stores.trouble import Trouble

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
            atexit.register(self._end)
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
    log.error(
        "tokenmeter could not record %s of %s US dollars in all%s, since the ledger could not be written: %s. "
        "`tokenmeter reconcile` finds what is missing in the provider's own figures.",
        counted(len(lost), "call"),
        cost,
        f" and {unknown:,} whose cost is not known" if unknown else "",
        "; ".join(named),
    )
