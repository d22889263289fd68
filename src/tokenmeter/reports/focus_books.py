"""What the rows of FOCUS's Cost and Usage add up to: lines of Invoice Detail, and billing periods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from tokenmeter.money import EXACT, ZERO
from tokenmeter.providers.hosts import host_of
from tokenmeter.reports.focus_rows import CostRow
from tokenmeter.reports.issued import Issued

__all__ = ["BillingMonth", "Books", "FocusTerms", "InvoiceLine", "service_of"]


def service_of(provider: str) -> tuple[str, str]:
    """Company and service behind a provider id."""
    host = host_of(provider)
    return host.company or provider, host.service or f"{provider} API"


@dataclass(frozen=True, slots=True, kw_only=True)
class FocusTerms:
    """What FOCUS asks for and a ledger does not know.

    Attributes:
        issuer: ``InvoiceIssuerName`` and service provider: who bills for the usage, such as a platform that resells
            it; None = each provider bills its own. The provider of the model is the host provider either way.
        account: ``BillingAccountId`` of usage that names no organization.
        payment_terms: ``PaymentTerms`` of the Invoice Detail dataset.
    """

    issuer: str | None = None
    account: str = "default"
    payment_terms: str = "Not agreed"


@dataclass(slots=True)
class InvoiceLine:
    """One line of Invoice Detail: a billing account's month, per category, provider and sub-account.

    Attributes:
        row: The first row of Cost and Usage that belongs to it; what identifies the line is the same in all of them.
        billed_cost: US dollars.
    """

    row: CostRow
    billed_cost: Decimal = ZERO


class BillingMonth(NamedTuple):
    """One record of Billing Period."""

    start: datetime
    end: datetime
    issuer: str


@dataclass(slots=True)
class Books:
    """What Cost and Usage adds up to while its rows pass: invoice lines and billing periods."""

    terms: FocusTerms
    issued: Sequence[Issued] = ()
    lines: dict[str, InvoiceLine] = field(default_factory=dict[str, InvoiceLine])
    periods: dict[BillingMonth, None] = field(default_factory=dict[BillingMonth, None])
    unpriced: int = 0

    def watch(self, rows: Iterable[CostRow]) -> Iterator[CostRow]:
        """Pass `rows` on and book each."""
        for row in rows:
            line = self.lines.setdefault(self.detail_id(row), InvoiceLine(row))
            line.billed_cost = EXACT.add(line.billed_cost, row.billed_cost)
            self.periods[BillingMonth(row.key.billing_start, row.key.billing_end, self.issuer(row))] = None
            self.unpriced += row.key.sku.cost_source == "unpriced" and row.quantity != 0
            yield row

    def account(self, row: CostRow) -> str:
        """FOCUS ``BillingAccountId``."""
        return row.key.owner.who.organization or self.terms.account

    def issuer(self, row: CostRow) -> str:
        """FOCUS ``InvoiceIssuerName`` and ``ServiceProviderName``."""
        return self.terms.issuer or service_of(row.key.sku.provider)[0]

    def invoice_id(self, row: CostRow) -> str:
        """FOCUS ``InvoiceId``: the number of the invoice the row is on, else of the open one it will be on."""
        for invoice in self.issued:
            if invoice.bills(row):
                return invoice.number
        return f"open:{row.key.billing_start:%Y%m%dT%H%MZ}:{self.issuer(row)}:{self.account(row)}"

    def detail_id(self, row: CostRow) -> str:
        """FOCUS ``InvoiceDetailId`` of the line the row is summed in."""
        return f"{self.invoice_id(row)}:{row.category}:{row.key.sku.provider}:{row.sub_account or ''}"
