"""From the ledger to drafts, and to the proof that a period's usage is billed once: on one invoice, or nowhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from decimal import Decimal
from typing import Any, Unpack

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.billing.invoice import Invoice
from tokenmeter.billing.lines import make_lines, sum_up
from tokenmeter.billing.period import ClosedPeriod, call_now, corrections, find_closed, zone_of_books
from tokenmeter.billing.profile import BillingProfile, Party, read_lines
from tokenmeter.dimensions import ACCOUNTS, AccountArguments
from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import EXACT, ZERO, ExchangeRate, check_currency, magnitude, negate
from tokenmeter.periods import Period, parse_period
from tokenmeter.reports.rated import Rated, Tally, account_name, check_account, check_dimensions
from tokenmeter.stores.base import EntryFilter, Store
from tokenmeter.stores.naming import NamesNow
from tokenmeter.values import dataclass


class Billable:
    """What a period has to bill: its own rows, and the corrections of earlier ones that belong to it.

    Accounts have today's names, however a closing called them.

    Args:
        store: The ledger.
        period: The period.
        scope: Only what is on this account; a closed period is read whole, as it is kept in one piece.
        every_late: See `corrections`.
    """

    def __init__(
        self, store: Store, period: Period, scope: Mapping[str, str] | None = None, *, every_late: bool = False
    ) -> None:
        self.names = NamesNow(store)
        closed = find_closed(store, period)
        self.closed: ClosedPeriod | None = None if closed is None else call_now(closed, self.names)
        self.period = period if self.closed is None else self.closed.period
        rows = self._live(store, scope or {}) if self.closed is None else self.closed.rows
        self.rows: list[tuple[Period, Rated]] = [(self.period, row) for row in rows]
        waiting = corrections(store, self.period, self.closed, every=every_late)
        self.rows += [(late.period, row) for late in waiting for row in late.rows]
        self._index: dict[str, dict[str | None, list[int]]] = {}

    def _live(self, store: Store, scope: Mapping[str, str]) -> Iterable[Rated]:
        where = {name: frozenset([value]) for name, value in scope.items()}
        which = EntryFilter(since=self.period.start, until=self.period.end, where=where)
        return Tally.of(store.entries(which)).rows.values()

    def accounts(self, dimension: str) -> list[str]:
        """The names that have usage, in order."""
        return sorted(name for name in self._by(dimension) if name is not None)

    def positions(self, scope: Mapping[str, str]) -> list[int]:
        """Which of `rows` are on an account."""
        if not scope:
            return list(range(len(self.rows)))
        # A key is found by an earlier name, too.
        earlier = self.names.called(scope["api_key"]) if "api_key" in scope else frozenset[str]()
        wanted = {name: {value} | (earlier if name == "api_key" else set[str]()) for name, value in scope.items()}
        first, *rest = wanted
        found = (at for value in wanted[first] for at in self._by(first).get(value, []))
        return sorted(at for at in found if all(self.rows[at][1].rate.about(name) in wanted[name] for name in rest))

    def parts(self, scope: Mapping[str, str]) -> list[tuple[Period, list[Rated]]]:
        """The rows on an account, by period."""
        parts: dict[Period, list[Rated]] = {}
        for at in self.positions(scope):
            period, row = self.rows[at]
            parts.setdefault(period, []).append(row)
        return list(parts.items())

    def _by(self, dimension: str) -> dict[str | None, list[int]]:
        known = self._index.get(dimension)
        if known is None:
            known = self._index[dimension] = {}
            for at, (_, row) in enumerate(self.rows):
                known.setdefault(row.rate.about(dimension), []).append(at)
        return known


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Where a period's usage is billed: ``invoiced - billed_twice + billed_nowhere == ledger``, exactly, in US dollars.

    Attributes:
        period: The period.
        ledger: What it came to, corrections of earlier periods included.
        invoiced: What its invoices come to.
        billed_twice: What of that stands on more than one of them.
        billed_nowhere: What stands on none.
        invoices: How many invoices count; void ones do not.
        nowhere: Account -> what of it is billed nowhere, dearest first. ``(nobody)`` is usage on no account.
        unpriced: Charges whose price is unknown: what they cost is in none of these amounts.
    """

    period: Period
    ledger: Decimal
    invoiced: Decimal
    billed_twice: Decimal
    billed_nowhere: Decimal
    invoices: int
    nowhere: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])
    unpriced: int = 0

    def __str__(self) -> str:
        twice = f" - ${self.billed_twice:,f} billed twice" if self.billed_twice else ""
        invoices = counted(self.invoices, "invoice")
        billed = f"${self.invoiced:,f} on {invoices}{twice} + ${self.billed_nowhere:,f} billed nowhere"
        lines = [f"{self.period.label} ({self.period.tz}): {billed} = ${self.ledger:,f} in the ledger."]
        lines += [f"  billed nowhere: {name:<40} ${cost:,f}" for name, cost in self.nowhere.items()]
        if self.unpriced:
            charges = counted(self.unpriced, "charge has", "charges have")
            lines.append(f"  {charges} no known price: what that costs is in none of these amounts.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; decimals are text."""
        money = ("ledger", "invoiced", "billed_twice", "billed_nowhere")
        return {
            "period": self.period.label,
            "tz": self.period.tz,
            "invoices": self.invoices,
            **{name: f"{getattr(self, name):f}" for name in money},
            "nowhere": {name: f"{cost:f}" for name, cost in self.nowhere.items()},
            "unpriced": self.unpriced,
        }

    @classmethod
    def of(cls, billable: Billable, scopes: Sequence[Mapping[str, str]]) -> Coverage:
        """What invoices on the accounts `scopes` cover of a period."""
        holders = [0] * len(billable.rows)
        for scope in scopes:
            for at in billable.positions(scope):
                holders[at] += 1
        ledger = invoiced = twice = missing = ZERO
        nowhere: dict[str, Decimal] = {}
        unpriced: Counter[Period] = Counter()
        for count, (period, row) in zip(holders, billable.rows, strict=True):
            cost = row.billed_cost
            unpriced[period] += row.unpriced
            ledger = EXACT.add(ledger, cost)
            invoiced = EXACT.add(invoiced, EXACT.multiply(cost, Decimal(count)))
            if count > 1:
                twice = EXACT.add(twice, EXACT.multiply(cost, Decimal(count - 1)))
            if not count and cost:
                missing = EXACT.add(missing, cost)
                name = account_name(row.rate.owner) or "(nobody)"
                nowhere[name] = EXACT.add(nowhere.get(name, ZERO), cost)
        return cls(
            period=billable.period,
            ledger=ledger,
            invoiced=invoiced,
            billed_twice=twice,
            billed_nowhere=missing,
            invoices=len(scopes),
            unpriced=sum(max(charges, 0) for charges in unpriced.values()),
            nowhere=dict(sorted(nowhere.items(), key=lambda item: (negate(magnitude(item[1])), item[0]))),
        )


@tell_wrong_arguments
def draft_invoice(
    store: Store,
    *,
    period: str | Period,
    lines_by: str | Iterable[str] = (),
    tz: str | None = None,
    profile: BillingProfile | Mapping[str, Any] | None = None,
    buyer: Party | Mapping[str, Any] | str | None = None,
    currency: str | None = None,
    exchange_rate: object = None,
    notes: str | Sequence[str] = (),
    **account: Unpack[AccountArguments],
) -> Invoice:
    """What an account owes for a period; nothing is written.

    Args:
        store: The ledger.
        period: ``"2026-11"``, ... or a `Period`.
        lines_by: Break lines down by these accounts, for example ``"member"`` under a team.
        tz: Zone in which the period is cut; default: the profile's, else that of the last closing, else UTC.
        profile: `BillingProfile` or a ``[billing]`` mapping.
        buyer: Instead of the profile's.
        currency: Instead of the profile's.
        exchange_rate: Units of the currency per dollar: a number, or a mapping with ``rate``, ``source``, ``date``.
        notes: Printed at the end, after the profile's.
        account: Whose invoice: ``member``, ``team``, ``organization``, ``project`` or ``api_key`` (by its alias);
            several narrow it down further.

    Raises:
        ConfigurationError: whose is not said, or a value is not what it should be; says which.
    """
    scope = check_account(account)
    terms = _parse_terms(profile)
    asked = period if isinstance(period, Period) else parse_period(period, zone_of_books(store, tz or terms.tz))
    made = _Drafting(terms, lines_by=lines_by, currency=currency, exchange_rate=exchange_rate, notes=notes)
    billable = Billable(store, asked, scope)
    return made.draft(billable, billable.names.rename(scope), buyer)


@tell_wrong_arguments
def draft_invoices(
    store: Store,
    *,
    period: str | Period,
    each: str,
    lines_by: str | Iterable[str] = (),
    tz: str | None = None,
    profile: BillingProfile | Mapping[str, Any] | None = None,
    currency: str | None = None,
    exchange_rate: object = None,
    notes: str | Sequence[str] = (),
    **account: Unpack[AccountArguments],
) -> list[Invoice]:
    """One draft for each account of a dimension that has usage in a period; nothing is written.

    Args:
        store: The ledger.
        period: As for `draft_invoice`, as is what follows.
        each: ``"member"``, ``"team"``, ``"organization"``, ``"project"`` or ``"api_key"``.
        lines_by: Break lines down.
        tz: Zone.
        profile: Who bills whom.
        currency: Currency.
        exchange_rate: Units of it per dollar.
        notes: Printed at the end.
        account: Only what is on this account as well, named as there.

    Raises:
        ConfigurationError: as for `draft_invoice`.
    """
    (dimension,) = check_dimensions([each], what="each=")
    within = check_account(account, needed=False)
    if dimension in within:
        raise ConfigurationError(f"An invoice for every {dimension} is asked for; do not name one as well.")
    terms = _parse_terms(profile)
    asked = period if isinstance(period, Period) else parse_period(period, zone_of_books(store, tz or terms.tz))
    billable = Billable(store, asked, within)
    within = billable.names.rename(within)
    made = _Drafting(terms, lines_by=lines_by, currency=currency, exchange_rate=exchange_rate, notes=notes)
    scopes = ({**within, dimension: name} for name in billable.accounts(dimension))
    # In the table's order, however they were asked for: an account has one name.
    scopes = ({name: scope[name] for name in ACCOUNTS if name in scope} for scope in scopes)
    return [made.draft(billable, scope, None) for scope in scopes if billable.positions(scope)]


def _parse_terms(profile: BillingProfile | Mapping[str, Any] | None) -> BillingProfile:
    return profile if isinstance(profile, BillingProfile) else BillingProfile.parse(profile or {})


class _Drafting:
    """What drafts of one run have in common."""

    def __init__(
        self,
        terms: BillingProfile,
        *,
        lines_by: str | Iterable[str],
        currency: str | None,
        exchange_rate: object,
        notes: str | Sequence[str],
    ) -> None:
        self._parse_terms = terms
        self._by = check_dimensions(lines_by, what="lines_by=")
        self._currency = check_currency(currency or terms.currency)
        self._rate = ExchangeRate.parse(exchange_rate, currency=self._currency)
        self._notes = (*terms.notes, *read_lines({"notes": notes}, "notes", "the draft"))

    def draft(
        self, billable: Billable, scope: Mapping[str, str], buyer: Party | Mapping[str, Any] | str | None
    ) -> Invoice:
        """The draft of one account."""
        terms, money, rate = self._parse_terms, self._currency, self._rate
        if buyer is None:
            buyer = terms.buyer(scope)
        to = buyer if isinstance(buyer, Party) else Party.parse(buyer, where="buyer")
        lines = make_lines(billable.parts(scope), within=billable.period, by=self._by, currency=money, rate=rate)
        taxes = terms.taxes if to.taxes is None else to.taxes
        return Invoice(
            scope=scope,
            period=billable.period,
            seller=terms.seller,
            buyer=to,
            currency=money,
            exchange_rate=rate,
            lines=lines,
            totals=sum_up(lines, currency=money, rate=rate, taxes=taxes),
            notes=self._notes,
            ledger=_name_ledger_range(billable.period, billable.closed),
            credit_series=terms.credit_series,
            tz=terms.calendar,
            profile=terms,
        )


def _name_ledger_range(period: Period, closed: ClosedPeriod | None) -> dict[str, str | None]:
    document = None if closed is None else closed.document
    return {
        "since": period.start.isoformat(),
        "until": period.end.isoformat(),
        "manifest": None if document is None else document.hash,
        "head": None if document is None else document.anchor,
    }
