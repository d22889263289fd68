"""From the ledger to what people owe: closed periods, invoices, credit notes, account statements."""

from __future__ import annotations

from tokenmeter.billing.credit_note import CreditLine, CreditNote
from tokenmeter.billing.drafting import Coverage, draft_invoice, draft_invoices
from tokenmeter.billing.einvoice import make_einvoice, missing_for_einvoice
from tokenmeter.billing.events import Event
from tokenmeter.billing.filed import credit_notes, find_invoice, invoices
from tokenmeter.billing.handover import (
    HandOver,
    HandOverError,
    Reading,
    ReadingRefusedError,
    ReadingThereError,
    hand_over,
)
from tokenmeter.billing.invoice import Invoice, InvoiceStatus
from tokenmeter.billing.issuing import (
    InvoicePreview,
    invoice_coverage,
    issue_invoice,
    issue_invoices,
    preview_invoices,
)
from tokenmeter.billing.journal import JournalEntry, Posting, journal_entries
from tokenmeter.billing.journal_forms import export_journal
from tokenmeter.billing.lines import LineItem, TaxLine, Totals
from tokenmeter.billing.period import ClosedPeriod, Late, close_period, closed_periods, late_costs, late_entries
from tokenmeter.billing.profile import BillingProfile, Party, Tax
from tokenmeter.billing.receivables import credit_invoice, record_payment, void_invoice, write_off_invoice
from tokenmeter.billing.statement import AgedBalance, Statement, StatementLine, age_balances, draw_statement
from tokenmeter.billing.targets import Lago, OpenMeter, StripeMeters
from tokenmeter.money import ExchangeRate

__all__ = [
    "AgedBalance",
    "BillingProfile",
    "ClosedPeriod",
    "Coverage",
    "CreditLine",
    "CreditNote",
    "Event",
    "ExchangeRate",
    "HandOver",
    "HandOverError",
    "Invoice",
    "InvoicePreview",
    "InvoiceStatus",
    "JournalEntry",
    "Lago",
    "Late",
    "LineItem",
    "OpenMeter",
    "Party",
    "Posting",
    "Reading",
    "ReadingRefusedError",
    "ReadingThereError",
    "Statement",
    "StatementLine",
    "StripeMeters",
    "Tax",
    "TaxLine",
    "Totals",
    "age_balances",
    "close_period",
    "closed_periods",
    "credit_invoice",
    "credit_notes",
    "draft_invoice",
    "draft_invoices",
    "draw_statement",
    "export_journal",
    "find_invoice",
    "hand_over",
    "invoice_coverage",
    "invoices",
    "issue_invoice",
    "issue_invoices",
    "journal_entries",
    "late_costs",
    "late_entries",
    "make_einvoice",
    "missing_for_einvoice",
    "preview_invoices",
    "record_payment",
    "void_invoice",
    "write_off_invoice",
]
