"""Invoice lines as CSV, for spreadsheets and accounting programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenmeter.billing.invoice import Invoice

__all__ = ["invoice_csv"]

_COLUMNS: tuple[str, ...] = (
    "invoice",
    "line",
    "kind",
    "description",
    "period",
    "provider",
    "model",
    "sku_meter",
    "group",
    "quantity",
    "unit",
    "list_unit_price_usd",
    "multiplier",
    "billed_cost_usd",
    "exact_amount",
    "amount",
    "currency",
)
#: A spreadsheet runs a cell that begins with one of these as a formula; full-width forms count, too.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def invoice_csv(invoice: Invoice) -> str:
    """One row per line, then subtotal, credits, rounding, taxes and total as rows of their own kinds."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, restval="")
    writer.writeheader()
    number = _safe(invoice.number or "draft")
    for row in (*_lines(invoice), *_totals(invoice)):
        writer.writerow({"invoice": number, "currency": invoice.currency, **row})
    return text.getvalue()


def _lines(invoice: Invoice) -> Iterator[dict[str, str]]:
    for line in invoice.lines:
        yield {
            "line": str(line.position),
            "kind": line.kind,
            "description": _safe(line.description),
            "period": line.period,
            "provider": _safe(line.provider),
            "model": _safe(line.model or ""),
            "sku_meter": _safe(line.sku_meter),
            "group": _safe(";".join(f"{name}={value or ''}" for name, value in line.group.items())),
            "quantity": f"{line.quantity:f}",
            "unit": line.unit,
            "list_unit_price_usd": "" if line.list_unit_price is None else f"{line.list_unit_price:f}",
            "multiplier": f"{line.multiplier:f}",
            "billed_cost_usd": f"{line.billed_cost:f}",
            "exact_amount": f"{line.exact_amount:f}",
            "amount": f"{line.amount:f}",
        }


def _totals(invoice: Invoice) -> Iterator[dict[str, str]]:
    totals = invoice.totals
    for kind in ("subtotal", "credits", "rounding", "net"):
        yield {"kind": kind, "amount": f"{getattr(totals, kind):f}"}
    for tax in totals.taxes:
        yield {"kind": "tax", "description": _safe(tax.label), "amount": f"{tax.amount:f}"}
    yield {
        "kind": "total",
        "amount": f"{totals.total:f}",
        "billed_cost_usd": f"{totals.ledger_cost:f}",
        "exact_amount": f"{totals.ledger_amount:f}",
    }


def _safe(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
