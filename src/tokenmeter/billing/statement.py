"""The running balance of an account: opening + charges + credits = closing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any, ClassVar, Literal, Unpack

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.billing.events import MOVED_TEXT, movements
from tokenmeter.billing.filed import invoices, invoices_of
from tokenmeter.billing.invoice import Invoice, party_lines
from tokenmeter.billing.paper import Cell, Printable, PrintedRow, PrintedSheet
from tokenmeter.billing.period import days_of, period_dict, zone_of_books
from tokenmeter.billing.profile import BillingProfile, Party
from tokenmeter.dimensions import COUNTED_AS, AccountArguments
from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import utcnow
from tokenmeter.money import EXACT, USD, ZERO, negate, round_money, total
from tokenmeter.periods import CALENDAR_UNITS, CalendarUnit, Period, buckets, parse_day, parse_period, zone
from tokenmeter.reports.rated import account_name, check_account
from tokenmeter.stores.base import EntryFilter, Store
from tokenmeter.values import dataclass

Basis = Literal["usage", "invoices"]


_COLUMNS = ("account", "date", "description", "charges", "credits", "balance", "currency", "unpriced")
#: Kind of entry -> what its line is called, in the order of lines.
_KINDS = {**dict.fromkeys(COUNTED_AS, "Usage"), "correction": "Corrections", "adjustment": "Adjustments"}


@dataclass(frozen=True, slots=True)
class StatementLine:
    """One line: when, what, what it adds (`charges`), what it takes off (`credits`, negative), and the balance then."""

    date: str
    description: str
    charges: Decimal
    credits: Decimal
    balance: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement(Printable):
    """An account over a period. ``opening + charges + credits == closing``, exactly.

    Attributes:
        scope: Whose: dimension -> value.
        period: What it covers.
        basis: ``usage``: what was used, to the picodollar; ``invoices``: what was invoiced, credited and paid.
        currency: ISO 4217 code.
        opening: Balance at the period's start.
        charges: What was added.
        credits: What was taken off; negative.
        closing: Balance at its end.
        lines: In order of time.
        unpriced: Calls of unknown price among them (usage only): what they cost is missing.
        seller: Whose books they are, for the printed page; None = not known.
        buyer: Who is billed, the same; None = not known: the page names the account.
    """

    columns: ClassVar[tuple[str, ...]] = _COLUMNS
    heads: ClassVar[tuple[str, ...]] = ("Date", "Description", "Charges", "Credits", "Balance")
    scope: Mapping[str, str]
    period: Period
    basis: Basis
    currency: str = USD
    opening: Decimal
    charges: Decimal
    credits: Decimal
    closing: Decimal
    lines: tuple[StatementLine, ...] = field(default=())
    unpriced: int = 0
    seller: Party | None = None
    buyer: Party | None = None

    def __str__(self) -> str:
        rows = [self.heads, *self.rows]
        date, what, *amounts = (max(map(len, column)) for column in zip(*rows, strict=True))
        form = f"{{:<{date}}}  {{:<{what}}}  {'  '.join(f'{{:>{width}}}' for width in amounts)}"
        return "\n".join([self.title, *(form.format(*row).rstrip() for row in rows), *self.doubts])

    @property
    def title(self) -> str:
        """Whose statement it is, of what, in one line."""
        return f"Statement of {account_name(self.scope)}, {self.period.label} ({self.period.tz}), {self.currency}"

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Its lines as text under `heads`; the opening balance is the first, the closing one the last."""
        return [
            ("", "Opening balance", "", "", f"{self.opening:,f}"),
            *(
                (line.date, line.description, f"{line.charges:,f}", f"{line.credits:,f}", f"{line.balance:,f}")
                for line in self.lines
            ),
            ("", "Closing balance", f"{self.charges:,f}", f"{self.credits:,f}", f"{self.closing:,f}"),
        ]

    @property
    def doubts(self) -> list[str]:
        """What is to be said below it."""
        return [_say_unpriced(self.unpriced)] if self.unpriced else []

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready; decimals are text."""
        return {
            "scope": dict(self.scope),
            "period": period_dict(self.period),
            "basis": self.basis,
            "currency": self.currency,
            **{name: f"{getattr(self, name):f}" for name in ("opening", "charges", "credits", "closing")},
            "unpriced": self.unpriced,
            "lines": [
                {
                    "date": line.date,
                    "description": line.description,
                    **{name: f"{getattr(line, name):f}" for name in ("charges", "credits", "balance")},
                }
                for line in self.lines
            ],
        }

    def _table(self) -> Iterator[Mapping[str, Cell]]:
        known = {"account": account_name(self.scope), "currency": self.currency}
        yield {**known, "description": "Opening balance", "balance": self.opening}
        for line in self.lines:
            told: dict[str, Cell] = {
                "date": _parse_day(line.date),
                "description": line.description,
                "balance": line.balance,
            }
            yield {**known, **told, "charges": line.charges or None, "credits": line.credits or None}
        yield {**known, "description": "Closing balance", "balance": self.closing, "unpriced": self.unpriced or None}

    def to_sheet(self) -> PrintedSheet:
        """What its page shows."""
        money = self.currency

        def figure(amount: Decimal) -> str:
            return f"{round_money(amount, money) if self.basis == 'invoices' else amount:,f}"

        lines = (
            (line.date, line.description, *(figure(one) if one else "" for one in (line.charges, line.credits)))
            for line in self.lines
        )
        rows = (PrintedRow((*cells, figure(line.balance))) for cells, line in zip(lines, self.lines, strict=True))
        accounts = (f"{name.replace('_', ' ')} {value}" for name, value in self.scope.items())
        return PrintedSheet(
            title="Statement of account",
            author="" if self.seller is None else self.seller.name,
            facts=(("Period", f"{self.period.label} ({self.period.tz})"), ("Basis", self.basis), ("Currency", money)),
            seller=() if self.seller is None else party_lines(self.seller),
            buyer=(*(() if self.buyer is None else party_lines(self.buyer)), *accounts),
            due=f"{figure(self.closing)} {money}",
            sums=(
                ("Opening balance", figure(self.opening)),
                ("Charges", figure(self.charges)),
                ("Credits", figure(self.credits)),
                ("Closing balance", figure(self.closing)),
            ),
            columns=self.heads,
            numeric=(False, False, True, True, True),
            rows=tuple(rows),
            empty="Nothing moved in this period.",
            remarks=tuple(self.doubts),
        )


def _parse_day(label: str) -> date | str:
    """The day a line says; the label of a month, a week, an hour stays."""
    try:
        return date.fromisoformat(label) if len(label) == len("2026-11-23") else label
    except ValueError:
        return label


@dataclass(frozen=True, slots=True)
class _BalanceChange:
    on: date
    filed_at: datetime
    currency: str
    description: str
    amount: Decimal


@tell_wrong_arguments
def draw_statement(
    store: Store,
    *,
    period: str | Period,
    basis: Basis = "usage",
    granularity: CalendarUnit = "day",
    tz: str | None = None,
    profile: BillingProfile | Mapping[str, Any] | None = None,
    **account: Unpack[AccountArguments],
) -> Statement:
    """The running balance of an account.

    Args:
        store: The ledger.
        period: ``"2026-11"``, ... or a `Period`. What came before is the opening balance.
        basis: ``usage``: billed cost of calls and corrections as charges, adjustments as credits, in dollars.
            ``invoices``: invoices as charges; credit notes, payments and voidings as credits, in their currency.
        granularity: Calendar unit of a usage statement's lines.
        tz: Zone of periods and dates; default: that of the last closing, else UTC.
        profile: `BillingProfile` or a ``[billing]`` mapping, for seller and buyer on the printed page. None: those on
            the account's last invoice; where there is none, the page names nobody.
        account: Whose: ``member``, ``team``, ``organization``, ``project`` or ``api_key``; several narrow it down.

    Raises:
        ConfigurationError: whose is not said, or invoices in several currencies.
    """
    scope = check_account(account)
    asked = period if isinstance(period, Period) else parse_period(period, zone_of_books(store, tz))
    if granularity not in CALENDAR_UNITS:
        raise ConfigurationError(f"Unknown granularity {granularity!r}; use one of {', '.join(CALENDAR_UNITS)}.")
    seller, buyer = _find_parties(store, scope, profile)
    if basis == "usage":
        return replace(_draw_by_usage(store, scope, asked, granularity), seller=seller, buyer=buyer)
    if basis == "invoices":
        return replace(_draw_by_invoices(store, scope, asked), seller=seller, buyer=buyer)
    raise ConfigurationError(f"A statement's basis is 'usage' or 'invoices', not {basis!r}.")


def _find_parties(
    store: Store, scope: Mapping[str, str], profile: BillingProfile | Mapping[str, Any] | None
) -> tuple[Party | None, Party | None]:
    """Seller and buyer, as the profile says; without one as the account's last invoice says; else nobody."""
    if profile:
        terms = profile if isinstance(profile, BillingProfile) else BillingProfile.parse(profile)
        known = terms.seller != BillingProfile().seller
        return terms.seller if known else None, next(
            (found for name, value in scope.items() if (found := terms.buyers.get(f"{name}={value}"))), None
        )
    last = next(reversed(invoices_of(store, scope)), None)
    return (None, None) if last is None else (last.seller, last.buyer)


def _draw_by_usage(store: Store, scope: Mapping[str, str], period: Period, unit: CalendarUnit) -> Statement:
    which = EntryFilter(where={name: frozenset([value]) for name, value in scope.items()})
    first = next(store.entries(EntryFilter(until=period.start, where=which.where)), None)
    opening = ZERO
    if first is not None:
        # From kept sums, however many years came before.
        for group in store.aggregate([first.occurred_at, period.start], [], which):
            opening = EXACT.add(opening, group.billed_cost)
    parts = buckets(period, unit)
    sums: list[dict[str, Decimal]] = [{} for _ in parts]
    unpriced = 0
    for group in store.aggregate([*(part.start for part in parts), period.end], ["kind"], which):
        kind = _KINDS[str(group.group[0])]
        sums[group.bucket][kind] = EXACT.add(sums[group.bucket].get(kind, ZERO), group.billed_cost)
        unpriced += group.unpriced
    lines: list[StatementLine] = []
    balance = opening
    for part, by_kind in zip(parts, sums, strict=True):
        for text in dict.fromkeys(_KINDS.values()):
            if amount := by_kind.get(text):
                balance = EXACT.add(balance, amount)
                # A negative correction takes back a charge; only what was agreed on is a credit.
                credit = text == _KINDS["adjustment"] and amount < 0
                lines.append(
                    StatementLine(part.label, text, ZERO if credit else amount, amount if credit else ZERO, balance)
                )
    return replace(_blank(scope, period, "usage"), **_add_up(opening, lines), unpriced=unpriced)


def _draw_by_invoices(store: Store, scope: Mapping[str, str], period: Period) -> Statement:
    opening = ZERO
    lines: list[StatementLine] = []
    currencies: set[str] = set()
    balance = ZERO
    first, last = days_of(period)
    for moved in _find_movements(store, scope):
        currencies.add(moved.currency)
        # Filed by now, and of a later day: it belongs to the next statement.
        if moved.on > last:
            continue
        balance = EXACT.add(balance, moved.amount)
        if moved.on < first:
            opening = balance
            continue
        charges, credits_ = max(moved.amount, ZERO), min(moved.amount, ZERO)
        lines.append(StatementLine(moved.on.isoformat(), moved.description, charges, credits_, balance))
    if len(currencies) > 1:
        raise ConfigurationError(
            f"{account_name(scope)} has invoices in {', '.join(sorted(currencies))}; a statement is in one currency."
        )
    currency = next(iter(currencies), USD)
    return replace(_blank(scope, period, "invoices"), **_add_up(opening, lines), currency=currency)


def _find_movements(store: Store, scope: Mapping[str, str]) -> list[_BalanceChange]:
    """What moved the account's balance, by the day it counts for, as in the journal; within a day as it was filed."""
    moved: list[_BalanceChange] = []
    for invoice in invoices_of(store, scope):
        moved += _moved_by(invoice)
    return sorted(moved, key=lambda one: (one.on, one.filed_at))


def _moved_by(invoice: Invoice) -> Iterator[_BalanceChange]:
    assert invoice.document is not None  # noqa: S101 - it was read from one
    what = f"{invoice.title} {invoice.number} for {invoice.period.label}"
    filed = invoice.document.recorded_at
    yield _BalanceChange(invoice.issued_on or filed.date(), filed, invoice.currency, what, invoice.total)
    for moved in movements(invoice.total, invoice.events):
        event, why = moved.event, f": {moved.event.note}" if moved.event.note else ""
        known = MOVED_TEXT.get(moved.kind)
        text = f"{known} ({invoice.number})" if known else f"{event.name} on {invoice.number}{why}"
        if moved.amount:
            yield _BalanceChange(moved.on, event.at, invoice.currency, text, negate(moved.amount))


def _blank(scope: Mapping[str, str], period: Period, basis: Basis) -> Statement:
    return Statement(scope=scope, period=period, basis=basis, opening=ZERO, charges=ZERO, credits=ZERO, closing=ZERO)


def _add_up(opening: Decimal, lines: list[StatementLine]) -> dict[str, Any]:
    charges = credits_ = ZERO
    for line in lines:
        charges, credits_ = EXACT.add(charges, line.charges), EXACT.add(credits_, line.credits)
    closing = lines[-1].balance if lines else opening
    return {"opening": opening, "charges": charges, "credits": credits_, "closing": closing, "lines": tuple(lines)}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgedBalance:
    """What a buyer owes in one currency, by how long it is overdue; `overpaid` is what was paid too much (negative).

    Attributes:
        buyer: Who.
        account: On which account.
        currency: ISO 4217 code.
        not_due: Not due yet.
        days_30: 1 to 30 days overdue.
        days_60: 31 to 60.
        days_90: 61 to 90.
        older: More.
        overpaid: Negative: the seller owes it.
    """

    buyer: str
    account: str
    currency: str
    not_due: Decimal = ZERO
    days_30: Decimal = ZERO
    days_60: Decimal = ZERO
    days_90: Decimal = ZERO
    older: Decimal = ZERO
    overpaid: Decimal = ZERO

    @property
    def total(self) -> Decimal:
        """All of it."""
        return total(getattr(self, name) for name in _AGES)

    def to_dict(self) -> dict[str, str]:
        """JSON-ready values; decimals are text."""
        told = {"buyer": self.buyer, "account": self.account, "currency": self.currency}
        return {**told, **{name: f"{getattr(self, name):f}" for name in (*_AGES, "total")}}


_AGES = ("not_due", "days_30", "days_60", "days_90", "older", "overpaid")


@tell_wrong_arguments
def age_balances(store: Store, *, as_of: date | str | None = None) -> list[AgedBalance]:
    """Open balances of all buyers by age, in order of buyer.

    Args:
        store: The ledger.
        as_of: On which day; default: today where each invoice was issued. What counts for a later day is left out, so
            that the balances are those of the statements that end on it.
    """
    asked = parse_day(as_of)
    found: dict[tuple[str, str, str], AgedBalance] = {}
    for issued in invoices(store, lines=False):
        invoice = issued if asked is None else issued.as_of(asked)
        if invoice is None or not invoice.balance:
            continue
        day = asked or utcnow().astimezone(zone(invoice.tz)).date()
        key = invoice.buyer.name, invoice.account, invoice.currency
        known = found.get(key) or AgedBalance(buyer=key[0], account=key[1], currency=key[2])
        age = _age(invoice, day)
        more: dict[str, Any] = {age: EXACT.add(getattr(known, age), invoice.balance)}
        found[key] = replace(known, **more)
    return [found[key] for key in sorted(found)]


def _age(invoice: Invoice, day: date) -> str:
    if invoice.balance < 0:
        return "overpaid"
    late = (day - (invoice.due_on or day)).days
    if late <= 0:
        return "not_due"
    return next((name for limit, name in ((30, "days_30"), (60, "days_60"), (90, "days_90")) if late <= limit), "older")


def _say_unpriced(calls: int) -> str:
    return counted(
        calls,
        "call has no known price; its cost is missing.",
        "calls have no known price; their cost is missing.",
    )
