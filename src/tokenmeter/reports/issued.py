"""Which issued invoice a row of FOCUS is on, by the documents that lie in the ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tokenmeter.reports.focus_rows import CostRow
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import Request

__all__ = ["Issued", "read_issued"]


@dataclass(frozen=True, slots=True)
class Issued:
    """An invoice that stands: its number, stretch of time, and account."""

    number: str
    start: datetime
    end: datetime
    scope: Mapping[str, str]

    def bills(self, row: CostRow) -> bool:
        """Whether a row is on it; what came after a closing is billed with the month it came in."""
        key = row.key
        moment = key.billing_start if key.late else key.hour_start
        return self.start <= moment < self.end and all(
            key.owner.about(name) == value for name, value in self.scope.items()
        )


def read_issued(store: Store) -> list[Issued]:
    """The invoices that are not void, in the order of their filing."""
    void: set[str] = set()
    for document in store.documents(Request("invoice_event")):
        if document.series is None and json.loads(document.body)["kind"] == "void":
            void.add(document.key.rpartition(" #")[0])
    found: list[Issued] = []
    for document in store.documents(Request("invoice")):
        number = f"{document.series}{document.number:05d}"
        if number not in void:
            body: dict[str, Any] = json.loads(document.body)
            start, end = (datetime.fromisoformat(body["period"][name]) for name in ("start", "end"))
            found.append(Issued(number, start, end, body["scope"]))
    return found
