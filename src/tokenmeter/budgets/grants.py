"""Grants: more room for one counter of a budget, as the ledger keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from tokenmeter.budgets.matching import scope_text
from tokenmeter.budgets.policy import Budget, Unit
from tokenmeter.errors import ConfigurationError
from tokenmeter.stores.documents import Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """More room for one counter of a budget: a raise for one window, a top-up, a credit pack that expires.

    Attributes:
        grant_id: Identity; the document's key is made of it, so that the same grant is filed once.
        budget: The budget's name.
        scope: Scope values of the counter.
        unit: Which of the budget's limits.
        amount: How much, in `unit`; negative takes back.
        starts: First instant at which it counts, aware UTC.
        expires: First instant at which what is left of it is gone, aware UTC; None = never, or with the window.
        window_start: Start of the window it belongs to, in microseconds since the epoch; 0 where nothing ever resets.
        at: When it was filed, aware UTC.
        by: Who decided it.
        reason: Why.
    """

    grant_id: str
    budget: str
    scope: Mapping[str, str]
    unit: Unit
    amount: Decimal
    starts: datetime
    expires: datetime | None
    window_start: int
    at: datetime
    by: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values: the amount as a decimal string, instants in ISO 8601."""
        return {
            "grant_id": self.grant_id,
            "budget": self.budget,
            "scope": dict(self.scope),
            "unit": self.unit,
            "amount": f"{self.amount:f}",
            "starts": self.starts.isoformat(),
            "expires": None if self.expires is None else self.expires.isoformat(),
            "at": self.at.isoformat(),
            "by": self.by,
            "reason": self.reason,
        }


def grant_of(document: Document, body: Mapping[str, Any]) -> Grant:
    """The grant that a document says."""
    expires = body.get("expires")
    return Grant(
        grant_id=body["grant_id"],
        budget=body["name"],
        scope=body["scope"],
        unit=body["unit"],
        amount=Decimal(body["amount"]),
        starts=datetime.fromisoformat(body["starts"]),
        expires=None if expires is None else datetime.fromisoformat(expires),
        window_start=body["window_start"],
        at=document.recorded_at,
        by=body["by"],
        reason=body["reason"],
    )


def asked_for(grant: Grant) -> tuple[object, ...]:
    """What was asked for, whenever it was."""
    return scope_text(grant.scope), grant.unit, grant.amount, grant.expires, grant.reason


def full_scope(budget: Budget, given: Mapping[str, str]) -> dict[str, str]:
    """The scope values of the counter that `given` names.

    Raises:
        ConfigurationError: one is missing, or not of this budget.
    """
    scope = budget.scope
    foreign = given.keys() - scope.keys()
    missing = [name for name, value in scope.items() if value == "*" and name not in given]
    if foreign or missing:
        raise ConfigurationError(
            f"Budget {budget.name!r} has the scope {scope or 'all calls'}; "
            + (
                f"say which {', '.join(missing)} is meant."
                if missing
                else f"{', '.join(sorted(foreign))} is not in it."
            )
        )
    for name, value in given.items():
        if scope[name] not in ("*", value):
            raise ConfigurationError(f"Budget {budget.name!r} is for {name}={scope[name]!r}, not {value!r}.")
    return {name: given.get(name, value) for name, value in scope.items()}
