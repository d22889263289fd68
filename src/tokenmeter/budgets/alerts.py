"""What people are told: thresholds crossed (`Alert`), and what a rule found although none is (`Notice`).

Both are told once over all processes (`tokenmeter.budgets.delivery` has how).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from tokenmeter.display import dollars, unit_amount
from tokenmeter.errors import whose
from tokenmeter.values import dataclass

Severity = Literal["critical", "warning"]

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
        window_end: Aware UTC, or the end of the budget itself, where that is before it; None for a budget that never
            resets or ends.
        at: When it was noticed, aware UTC.
        hard: Whether the budget stops calls.
        key_name: What the API key of ``scope`` is called, where it has a name.
        crossing_id: What the ledger knows the crossing by; None for an alert that no ledger told.
        ends: Whether `window_end` is the end of the budget itself.
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
    key_name: str | None = None
    crossing_id: str | None = None
    ends: bool = False

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
        return f"Budget {self.budget!r} passed {self.threshold}%"

    def facts(self) -> dict[str, str]:
        """Its figures for people."""
        until = "never" if self.window_end is None else f"{self.window_end:%Y-%m-%d %H:%M} UTC"
        return {
            "budget": self.budget,
            "scope": whose(self.scope, self.key_name),
            "spent": in_full(self.spent, self.unit),
            "limit": in_full(self.limit, self.unit),
            "ends" if self.ends else "resets": until,
            "stops calls": "yes" if self.hard else "no",
        }

    @property
    def alert_id(self) -> str:
        """The same for the same threshold of the same window, however often it is delivered."""
        if self.crossing_id is not None:
            return self.crossing_id
        scope = repr(sorted(self.scope.items()))
        parts = (self.budget, self.unit, scope, self.window_start.isoformat(), str(self.threshold))
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
            "ends": self.ends,
            "at": self.at.isoformat(),
            "hard": self.hard,
            "key_name": self.key_name,
        }

    def __str__(self) -> str:
        what = "before it ends on" if self.ends else "of the window that ends"
        until = "" if self.window_end is None else f" {what} {self.window_end:%Y-%m-%d %H:%M} UTC"
        return (
            f"Budget {self.budget!r} ({whose(self.scope, self.key_name)}) passed {self.threshold}%{until}: "
            f"{in_full(self.spent, self.unit)} of {in_full(self.limit, self.unit)}"
        )


def in_full(value: Decimal, unit: str) -> str:
    """An amount with all its digits and its unit, for a sentence."""
    return dollars(value) if unit == "usd" and value.is_finite() else unit_amount(value, unit)


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

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Notice:
        """The notice that `to_dict` made `told` of."""
        return cls(
            kind=told["kind"],
            subject=told["subject"],
            text=told["text"],
            figures=told["figures"],
            severity=told["severity"],
            at=datetime.fromisoformat(told["at"]),
        )

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
