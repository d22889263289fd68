"""Thresholds crossed, told to people: after the commit, off the call's path, once per window over all processes."""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from tokenmeter.processes import after_fork_in_child

Severity = Literal["critical", "warning"]

log = logging.getLogger("tokenmeter")

#: Alerts that wait for slow targets at most; further ones are logged and dropped.
QUEUE_SIZE = 1_000
#: Seconds that a process which ends waits for alerts not yet delivered.
EXIT_SECONDS = 3
_FULL = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A budget's threshold was crossed for the first time in its window.

    Attributes:
        budget: Name of the budget.
        scope: What the counter belongs to, for example ``{"member": "ada"}``.
        unit: ``usd``, ``tokens`` or ``requests``.
        threshold: Percent of the limit that was crossed.
        limit: The limit, in `unit`.
        spent: What settled calls have used in this window, in `unit`.
        window_start: Aware UTC.
        window_end: Aware UTC; None for a budget that never resets.
        at: When it was noticed, aware UTC.
        hard: Whether the budget stops calls.
    """

    budget: str
    scope: dict[str, str]
    unit: str
    threshold: int
    limit: Decimal
    spent: Decimal
    window_start: datetime
    window_end: datetime | None
    at: datetime
    hard: bool

    @property
    def kind(self) -> str:
        """``threshold``."""
        return "threshold"

    @property
    def severity(self) -> Severity:
        """``critical`` for a hard budget that is used up, else ``warning``."""
        return "critical" if self.hard and self.threshold >= _FULL else "warning"

    @property
    def title(self) -> str:
        """A few words."""
        return f"Budget {self.budget!r} passed {self.threshold} %"

    def facts(self) -> dict[str, str]:
        """Its figures for people."""
        whose = ", ".join(f"{key}={value}" for key, value in self.scope.items()) or "all calls"
        resets = "never" if self.window_end is None else f"{self.window_end:%Y-%m-%d %H:%M} UTC"
        return {
            "budget": self.budget,
            "scope": whose,
            "spent": f"{self.spent:f} {self.unit}",
            "limit": f"{self.limit:f} {self.unit}",
            "resets": resets,
            "stops calls": "yes" if self.hard else "no",
        }

    @property
    def alert_id(self) -> str:
        """The same for the same threshold of the same window, however often it is delivered."""
        parts = (self.budget, repr(sorted(self.scope.items())), self.window_start.isoformat(), str(self.threshold))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values: amounts as decimal strings, instants in ISO 8601."""
        return {
            "alert_id": self.alert_id,
            "kind": self.kind,
            "severity": self.severity,
            "budget": self.budget,
            "scope": dict(self.scope),
            "unit": self.unit,
            "threshold": self.threshold,
            "limit": f"{self.limit:f}",
            "spent": f"{self.spent:f}",
            "window_start": self.window_start.isoformat(),
            "window_end": None if self.window_end is None else self.window_end.isoformat(),
            "at": self.at.isoformat(),
            "hard": self.hard,
        }

    def __str__(self) -> str:
        where = ", ".join(f"{key}={value}" for key, value in self.scope.items()) or "all calls"
        until = "" if self.window_end is None else f" of the window that ends {self.window_end:%Y-%m-%d %H:%M} UTC"
        return (
            f"Budget {self.budget!r} ({where}) passed {self.threshold} %{until}: "
            f"{self.spent:f} of {self.limit:f} {self.unit}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What a rule found (`tokenmeter.budgets.rules`): told once, over all processes.

    Attributes:
        kind: The rule: ``burn_rate``, ``spike``, ``unpriced`` or ``faults``.
        subject: What it is about: the same subject is told once.
        text: What was found, as a sentence.
        figures: Its figures, as texts: amounts are decimal, instants ISO 8601.
        severity: ``critical`` or ``warning``.
        at: When it was noticed, aware UTC.
    """

    kind: str
    subject: str
    text: str
    figures: Mapping[str, str]
    severity: Severity = "warning"
    at: datetime

    @property
    def title(self) -> str:
        """A few words."""
        return f"{self.kind.replace('_', ' ').capitalize()}: {self.subject}"

    @property
    def alert_id(self) -> str:
        """The same for the same subject, however often it is delivered."""
        return hashlib.sha256(f"{self.kind}\n{self.subject}".encode()).hexdigest()[:32]

    def facts(self) -> dict[str, str]:
        """Its figures for people."""
        return dict(self.figures)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "alert_id": self.alert_id,
            "kind": self.kind,
            "severity": self.severity,
            "subject": self.subject,
            "text": self.text,
            "figures": dict(self.figures),
            "at": self.at.isoformat(),
        }

    def __str__(self) -> str:
        return self.text


#: Anything that takes an alert: a function of yours, or a target of `tokenmeter.budgets.targets`.
AlertTarget = Callable[[Alert | Notice], object]


class AlertQueue:
    """Delivers alerts to targets from a daemon thread of its own, started with the first alert.

    A call only puts the alert into a queue, also when it ends in a finaliser. A target that raises is logged; it does
    not stop the others.
    """

    def __init__(self, targets: Iterable[AlertTarget] = ()) -> None:
        self._targets = tuple(targets)
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        # A SimpleQueue, since a finaliser may interrupt this very thread in the middle of a put.
        self._queue: queue.SimpleQueue[Alert | Notice | threading.Event] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, alert: Alert | Notice) -> None:
        """Log `alert` and hand it to the targets. Never waits."""
        log.warning("%s", alert)
        if not self._targets:
            return
        if self._pid != os.getpid():  # a forked child has no thread
            self._begin()
        if self._queue.qsize() >= QUEUE_SIZE:
            log.error("tokenmeter dropped an alert: %d are waiting for slow targets", QUEUE_SIZE)
            return
        self._queue.put(alert)
        if self._thread is None:
            with _starting:
                self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._deliver, name="tokenmeter-alerts", daemon=True)
            self._thread.start()
            atexit.register(self.flush, EXIT_SECONDS)

    def flush(self, timeout: float) -> bool:
        """Wait until every alert submitted so far was handed to every target.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether all were.
        """
        if self._thread is None or self._pid != os.getpid():
            return True
        reached = threading.Event()
        self._queue.put(reached)
        return reached.wait(timeout)

    def _deliver(self) -> None:
        waiting = self._queue
        while True:
            item = waiting.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            for target in self._targets:
                try:
                    target(item)
                except Exception:
                    log.exception("tokenmeter could not deliver an alert to %r", target)


_starting = threading.RLock()


@after_fork_in_child
def _renew_lock() -> None:
    global _starting  # noqa: PLW0603 - a lock held by another thread at the fork would never be freed in the child
    _starting = threading.RLock()
