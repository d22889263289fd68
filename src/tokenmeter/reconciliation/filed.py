"""Reconciliations that were filed in the ledger, read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from tokenmeter.periods import Period
from tokenmeter.reconciliation.discrepancy import Discrepancy
from tokenmeter.reconciliation.result import KIND, Reconciliation, Totals
from tokenmeter.reconciliation.statement import Bucket
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import Document, Request

__all__ = ["reconciliations"]


def reconciliations(store: Store) -> list[Reconciliation]:
    """Filed reconciliations, oldest first; each names its `document`."""
    return [_outcome(document) for document in store.documents(Request(KIND))]


def _outcome(document: Document) -> Reconciliation:
    body: dict[str, Any] = json.loads(document.body)
    period = body["period"]
    return Reconciliation(
        provider=body["provider"],
        period=Period(
            datetime.fromisoformat(period["start"]), datetime.fromisoformat(period["end"]), "UTC", period["label"]
        ),
        source=body["source"],
        grain=tuple(body["grain"][1:]),
        compared=body["compared"],
        ours=_totals(body["ours"]),
        theirs=_totals(body["theirs"]),
        complete_until=datetime.fromisoformat(body["complete_until"]),
        discrepancies=tuple(_discrepancy(one) for one in body["discrepancies"]),
        reconciled_at=datetime.fromisoformat(body["reconciled_at"]),
        document=document,
    )


def _discrepancy(values: Mapping[str, Any]) -> Discrepancy:
    return Discrepancy(
        bucket=Bucket(date.fromisoformat(values["day"]), values["model"], values["api_key"], values["service_tier"]),
        cause=values["cause"],
        amount=_amount(values["amount"]),
        tokens=values["tokens"],
        ours_tokens=values["ours_tokens"],
        theirs_tokens=values["theirs_tokens"],
        ours_cost=_amount(values["ours_cost"]),
        theirs_cost=_amount(values["theirs_cost"]),
        requests=values["requests"],
        detail=values["detail"],
    )


def _totals(values: Mapping[str, Any]) -> Totals:
    return Totals(values["tokens"], _amount(values["cost"]))


def _amount(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)
