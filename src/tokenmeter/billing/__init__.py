"""From the ledger to what people owe: closed periods, invoices, credit notes, account statements."""

from __future__ import annotations

from tokenmeter.billing.credit_note import CreditLine, CreditNote, credit_notes
from tokenmeter.billing.currency import ExchangeRate
from tokenmeter.billing.drafting import draft_invoice
from tokenmeter.billing.invoice import Event, Invoice, InvoiceStatus
from tokenmeter.billing.issuing import find_invoice, invoices
from tokenmeter.billing.lines import LineItem, TaxLine, Totals
from tokenmeter.billing.period import ClosedPeriod, Late, close_period, closed_periods, late_costs, late_entries
from tokenmeter.billing.profile import BillingProfile, Party, Tax
from tokenmeter.billing.statement import Statement, StatementLine, draw_statement

__all__ = [
    "BillingProfile",
    "ClosedPeriod",
    "CreditLine",
    "CreditNote",
    "Event",
    "ExchangeRate",
    "Invoice",
    "InvoiceStatus",
    "Late",
    "LineItem",
    "Party",
    "Statement",
    "StatementLine",
    "Tax",
    "TaxLine",
    "Totals",
    "close_period",
    "closed_periods",
    "credit_notes",
    "draft_invoice",
    "draw_statement",
    "find_invoice",
    "invoices",
    "late_costs",
    "late_entries",
]
