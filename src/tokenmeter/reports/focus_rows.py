"""Rows of FOCUS: charges per hour, price and account, with their invoices; what they add up to as lines and periods."""

from __future__ import annotations

import hashlib
import json
from dataclasses import field, replace
from datetime import date, datetime
from decimal import Decimal
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenmeter.attribution import Attribution
from tokenmeter.dimensions import ACCOUNTS, COUNTED_AS, WHO
from tokenmeter.ledger import Charge, Entry
from tokenmeter.money import EXACT, ONE, ZERO, Costs, add, quantize
from tokenmeter.periods import Period, floor
from tokenmeter.pricing.sheet import without_size
from tokenmeter.providers.hosts import host_of
from tokenmeter.reports.closings import Closings
from tokenmeter.reports.query import BEGINNING
from tokenmeter.stores.documents import DocumentQuery
from tokenmeter.stores.naming import NamesNow
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tokenmeter.dimensions import EntryKind
    from tokenmeter.stores.base import Store
    from tokenmeter.usage import Quantity

#: What rows are told apart by, beside key and tags: a row for every route and customer's customer would be too many.
OWNER_FIELDS = tuple(name for name in ACCOUNTS if name in WHO)


class Sku(NamedTuple):
    """What was used, at which price.

    Unit prices are per single unit: the list price with its upstream factors, and the same after discounts.
    """

    provider: str
    model: str | None
    meter: str | None
    unit: str | None
    service_tier: str | None
    list_unit_price: Decimal | None
    contracted_unit_price: Decimal | None
    price_id: str | None
    platform_multiplier: Decimal
    cost_source: str


class Owner(NamedTuple):
    """On whose account."""

    api_key: str | None
    api_key_fingerprint: str | None
    who: Attribution

    def about(self, name: str) -> str | None:
        """The value of one of `tokenmeter.dimensions.ACCOUNTS`."""
        value: str | None = getattr(self.who if name in WHO else self, name)
        return value


class CostKey(NamedTuple):
    """What one row of Cost and Usage has in common.

    `billed_at` is an instant of the period that bills it; `late` says that this is not the one in which it was used.
    """

    hour_start: datetime
    hour_end: datetime
    billing_start: datetime
    billing_end: datetime
    kind: EntryKind
    late: bool
    billed_at: datetime
    sku: Sku
    owner: Owner


@dataclass(slots=True)
class CostRow:
    """One row of Cost and Usage.

    Attributes:
        key: What its charges have in common.
        quantity: How much, in ``key.sku.unit``.
        requests: Calls; each is counted in the row of its first charge only, so that they add up.
        costs: US dollars.
    """

    key: CostKey
    quantity: Quantity = 0
    requests: int = 0
    costs: Costs = Costs()

    def add(self, charge: Charge, *, requests: int) -> None:
        """Count one charge, and the requests of its entry with the first."""
        self.requests += requests
        self.quantity = add(self.quantity, charge.quantity)
        self.costs = self.costs.plus(Costs.of(charge))

    @property
    def charge_key(self) -> str:
        """Identity of the row: the same for the same ledger and period."""
        return hashlib.sha256(repr(self.key).encode()).hexdigest()[:32]

    @property
    def priced(self) -> bool:
        """Whether it is usage at a known price, so that cost = unit price x quantity."""
        return self.key.kind == "usage" and self.key.sku.list_unit_price is not None

    @property
    def consumed(self) -> tuple[Quantity | None, str | None]:
        """What was used, priced or not, and its unit; of calls that used nothing (a failed one) their number."""
        if self.key.kind != "usage":
            return None, None
        return (self.quantity, self.key.sku.unit) if self.key.sku.meter else (self.requests, "Requests")

    @property
    def category(self) -> str:
        """FOCUS ``ChargeCategory``."""
        return "Adjustment" if self.key.kind == "adjustment" else "Usage"

    @property
    def sub_account(self) -> str | None:
        """``team``, ``team/member`` or, without a team, ``/member``; None where neither is known."""
        owner = self.key.owner.who
        team, member = _id_part(owner.team), _id_part(owner.member)
        return f"{team}/{member}" if member else team or None


_NONE_CLOSED = Closings()
#: What stands between the parts of an id, and the mark that says so within one.
_SEPARATORS = {ord(each): f"%{ord(each):02X}" for each in "%/:"}


def _id_part(name: str | None) -> str:
    """A name as a part of an id that means one thing: what separates parts is percent-encoded in it."""
    return (name or "").translate(_SEPARATORS)


def cost_rows(entries: Iterable[Entry], tz: str, closings: Closings = _NONE_CLOSED) -> Iterator[CostRow]:
    """Charges summed per hour and key. `entries` come in order of their occurrence."""
    hour = month = Period(BEGINNING, BEGINNING, tz)
    rows: dict[CostKey, CostRow] = {}
    for entry in entries:
        if entry.occurred_at not in hour:
            yield from _worth_saying(rows)
            rows.clear()
            hour = floor(entry.occurred_at, "hour", tz)
            month = floor(entry.occurred_at, "month", tz)
        owner = _owner(entry)
        for position, whole in enumerate(_charges(entry)):
            for part, (billed_at, billed_in, charge) in enumerate(closings.place(entry, position, whole, hour, month)):
                sku = _sku(entry, charge)
                kind: EntryKind = entry.kind
                if kind in COUNTED_AS:
                    kind = "usage"  # a reversal: the opposite of what it takes back, in the same row
                elif kind == "correction":
                    kind, sku, charge = _restated(sku, charge)  # noqa: PLW2901 - what is left of it to be counted
                late = billed_in != month
                key = CostKey(hour.start, hour.end, billed_in.start, billed_in.end, kind, late, billed_at, sku, owner)
                rows.setdefault(key, CostRow(key)).add(charge, requests=0 if position or part else entry.requests)
    yield from _worth_saying(rows)


def _worth_saying(rows: Mapping[CostKey, CostRow]) -> Iterator[CostRow]:
    """Rows without those in which everything was taken back."""
    for row in rows.values():
        if row.requests or row.quantity or any(row.costs):
            yield row


def _restated(sku: Sku, charge: Charge) -> tuple[EntryKind, Sku, Charge]:
    """A correction's charge: usage where it re-states quantities, else a mere difference in cost.

    Repricing takes an unpriced line back (the opposite quantity) and states it anew with its price.
    """
    if charge.list_cost is None or (
        sku.list_unit_price is not None
        and quantize(EXACT.multiply(sku.list_unit_price, Decimal(charge.quantity))) == charge.list_cost
    ):
        return "usage", sku, charge
    return "correction", sku._replace(list_unit_price=None, contracted_unit_price=None), replace(charge, quantity=0)


def _charges(entry: Entry) -> Iterator[Charge]:
    """The entry's charges, and what of its cost they do not explain."""
    yield from entry.charges
    rest = Costs.of(entry).minus(Costs.total(entry.charges))
    if any(rest) or (not entry.charges and entry.requests):  # a failed call is a request, too
        yield Charge(
            model=entry.model,
            sku_meter="",
            quantity=0,
            unit="",
            list_unit_price=None,
            **rest._asdict(),
        )


def _owner(entry: Entry) -> Owner:
    who, key = entry.attribution, entry.api_key
    return Owner(
        None if key is None else key.label,
        None if key is None else key.fingerprint,
        Attribution.as_filed({name: getattr(who, name) for name in OWNER_FIELDS}, who.tags),
    )


def _sku(entry: Entry, charge: Charge) -> Sku:
    price = charge.list_unit_price
    contracted = price
    for name, factor in charge.multipliers.items():
        if price is not None and contracted is not None and name != "platform":
            price = price if name == "discount" else EXACT.multiply(price, factor)
            contracted = EXACT.multiply(contracted, factor)
    unpriced = charge.billed_cost is None
    return Sku(
        entry.provider,
        charge.model or entry.model,
        charge.sku_meter or None,
        charge.unit or None,
        entry.service_tier,
        None if unpriced else price,
        None if unpriced else contracted,
        without_size(charge.price_id),
        charge.multipliers.get("platform", ONE),
        "unpriced" if unpriced else "computed" if entry.cost_source == "unpriced" else entry.cost_source,
    )


@dataclass(frozen=True, slots=True)
class Issued:
    """An invoice that stands.

    Attributes:
        number: ``INV-00001``.
        start: Begin of the period it bills, aware UTC.
        end: Its end.
        scope: Whose usage, by today's names.
        seller: Who issued it.
        issued_on: Its day, as it stands on it.
        due_on: Day by which it is to be paid.
        payment_terms: The same in words, if it says so.
        filed_at: When it was filed, aware UTC.
    """

    number: str
    start: datetime
    end: datetime
    scope: Mapping[str, str]
    seller: str
    issued_on: date
    due_on: date
    payment_terms: str | None
    filed_at: datetime


class IssuedByAccount:
    """Invoices, the first of several before the others, kept by the account whose usage they bill."""

    def __init__(self, issued: Iterable[Issued]) -> None:
        self._of: dict[tuple[str, ...], dict[tuple[str | None, ...], list[tuple[int, Issued]]]] = {}
        for place, one in enumerate(issued):
            of_names = self._of.setdefault(tuple(one.scope), {})
            of_names.setdefault(tuple(one.scope.values()), []).append((place, one))

    def find(self, row: CostRow) -> Issued | None:
        """The first invoice that a row is on."""
        key = row.key
        on = (
            (place, one)
            for names, by_account in self._of.items()
            for place, one in by_account.get(tuple(map(key.owner.about, names)), ())
            if one.start <= key.billed_at < one.end
        )
        return min(on, default=(0, None), key=itemgetter(0))[1]


def read_issued(store: Store) -> IssuedByAccount:
    """The invoices that are not void, in the order of their filing."""
    names = NamesNow(store)
    void: set[str] = set()
    for document in store.documents(DocumentQuery("invoice_event")):
        if document.series is None and json.loads(document.body)["kind"] == "void":
            void.add(document.key.rpartition(" #")[0])
    found: list[Issued] = []
    for document in store.documents(DocumentQuery("invoice")):
        number = f"{document.series}{document.number:05d}"
        if number not in void:
            body: dict[str, Any] = json.loads(document.body)
            start, end = (datetime.fromisoformat(body["period"][name]) for name in ("start", "end"))
            issued_on, due_on = (date.fromisoformat(body[name]) for name in ("issued_on", "due_on"))
            found.append(
                Issued(
                    number,
                    start,
                    end,
                    names.rename(body["scope"], document),
                    body["seller"]["name"],
                    issued_on,
                    due_on,
                    body["payment_terms"],
                    document.recorded_at,
                )
            )
    return IssuedByAccount(found)


def service_of(provider: str) -> tuple[str, str]:
    """Company and service behind a provider id."""
    host = host_of(provider)
    return host.company or provider, host.service or f"{provider} API"


@dataclass(frozen=True, slots=True, kw_only=True)
class FocusTerms:
    """What FOCUS asks for and a ledger does not know.

    Attributes:
        issuer: ``InvoiceIssuerName`` and service provider: who bills for the usage, such as a platform that resells
            it; None = each provider bills its own, but for what is on an invoice, which its seller issued. The provider
            of the model is the host provider either way.
        account: ``BillingAccountId`` of usage that names no organization.
        payment_terms: ``PaymentTerms`` of the Invoice Detail dataset where no invoice says its own.
    """

    issuer: str | None = None
    account: str = "default"
    payment_terms: str = "Not agreed"


@dataclass(slots=True)
class InvoiceLine:
    """One line of Invoice Detail: an invoice's part of a billing account's month, per category, provider, sub-account.

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
class FocusSums:
    """What Cost and Usage adds up to while its rows pass: invoice lines and billing periods."""

    terms: FocusTerms
    issued: IssuedByAccount
    lines: dict[str, InvoiceLine] = field(default_factory=dict[str, InvoiceLine])
    periods: dict[BillingMonth, None] = field(default_factory=dict[BillingMonth, None])
    unpriced: int = 0
    _looked: tuple[CostRow, Issued | None] | None = None

    def watch(self, rows: Iterable[CostRow]) -> Iterator[CostRow]:
        """Pass `rows` on and book each."""
        for row in rows:
            line = self.lines.setdefault(self.detail_id(row), InvoiceLine(row))
            line.billed_cost = EXACT.add(line.billed_cost, row.costs.billed_cost)
            self.periods[BillingMonth(row.key.billing_start, row.key.billing_end, self.issuer(row))] = None
            self.unpriced += row.key.sku.cost_source == "unpriced" and row.quantity != 0
            yield row

    def account(self, row: CostRow) -> str:
        """FOCUS ``BillingAccountId``."""
        return row.key.owner.who.organization or self.terms.account

    def provider(self, row: CostRow) -> str:
        """FOCUS ``ServiceProviderName``."""
        return self.terms.issuer or service_of(row.key.sku.provider)[0]

    def issuer(self, row: CostRow) -> str:
        """FOCUS ``InvoiceIssuerName``."""
        invoice = None if self.terms.issuer else self.invoice(row)
        return self.provider(row) if invoice is None else invoice.seller

    def invoice(self, row: CostRow) -> Issued | None:
        """The invoice the row is on; the first of several."""
        # Asked for by several columns of one row after the other.
        if self._looked is None or self._looked[0] is not row:
            self._looked = row, self.issued.find(row)
        return self._looked[1]

    def invoice_id(self, row: CostRow) -> str:
        """FOCUS ``InvoiceId``: the number of the invoice the row is on, else of the open one it will be on."""
        if (invoice := self.invoice(row)) is not None:
            return invoice.number
        whose = _id_part(self.provider(row)), _id_part(self.account(row))
        return ":".join(("open", f"{row.key.billing_start:%Y%m%dT%H%MZ}", *whose))

    def detail_id(self, row: CostRow) -> str:
        """FOCUS ``InvoiceDetailId`` of the line the row is summed in.

        All that the columns of a line say is in it: an invoice can bill several months, and several organizations.
        """
        when_whose = f"{row.key.billing_start:%Y%m%dT%H%MZ}:{_id_part(self.account(row))}"
        what = f"{row.category}:{_id_part(row.key.sku.provider)}:{row.sub_account or ''}"
        return f"{self.invoice_id(row)}:{when_whose}:{what}"
