"""The answers that the usage API and the MCP server give: plain JSON values, with amounts as exact decimal text."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import dropwhile, islice
from operator import itemgetter
from typing import Any, Literal, TypeVar, cast

from tokenmeter import prices
from tokenmeter.billing import CreditNote, Invoice, InvoiceStatus, credit_notes, draw_statement, find_invoice, invoices
from tokenmeter.budgets import Balance, Change
from tokenmeter.budgets.status import name_grant
from tokenmeter.dimensions import ACCOUNTS, SCOPE_FIELDS
from tokenmeter.errors import ConfigurationError, LedgerError
from tokenmeter.ledger import Charge, Entry
from tokenmeter.money import ZERO, quantize, ratio
from tokenmeter.periods import CalendarUnit
from tokenmeter.reports import Query, read_entries
from tokenmeter.reports.fields import entry_fields, json_value
from tokenmeter.reports.query import parse_conditions
from tokenmeter.reports.report import read_report
from tokenmeter.serving.lens import ReadableMeter, pulse_of
from tokenmeter.texts import is_tag, suggest
from tokenmeter.values import dataclass

Json = dict[str, Any]
T = TypeVar("T")
Issued = TypeVar("Issued", Invoice, CreditNote)
#: Characters of a name that are part of a cursor.
_SORTED_BY = 40
_NO_CURSOR = "cursor takes what an earlier answer gave as next_cursor, and nothing else."
_OTHER_CURSOR = "cursor is the next_cursor of another question; give it with the parameters that it was an answer to."
#: Columns of an entry that only the single entry shows (long), or nobody sees (what could tell keys apart).
_LONG = ("raw_usage",)
_HIDDEN = ("api_key_fingerprint",)
_FIELDS = [one for one in entry_fields() if one.name not in _HIDDEN]


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a long list.

    Attributes:
        items: JSON-ready.
        next: What to ask with for those that follow; None = there are no more.
    """

    items: list[Json]
    next: str | None


def pairs(texts: Iterable[str], name: str, known: Sequence[str] = SCOPE_FIELDS) -> dict[str, str]:
    """``["member=ada", "tag:env=prod"]`` as an account.

    Args:
        texts: Each ``FIELD=VALUE``.
        name: What the parameter is called, for messages.
        known: Fields that there are, besides tags where a budget can be about them.

    Raises:
        ConfigurationError: not such a text, an unknown field, one field twice.
    """
    found: dict[str, str] = {}
    for field, values in parse_conditions(texts, name).items():
        tag = known is SCOPE_FIELDS and is_tag(field)
        if (field not in known and not tag) or len(values) > 1 or not values[0]:
            meant = "" if field in known else suggest(field, known)
            raise ConfigurationError(
                f"{name} takes FIELD=VALUE, each once, with {', '.join(known)}; not {field!r}.{meant}"
            )
        found[field] = values[0]
    return found


def head_of(sight: ReadableMeter) -> str:
    """Differs after every entry and every filed document."""
    return pulse_of(sight.store).rpartition(".")[0]


# -- usage


def report(sight: ReadableMeter, query: Query, *, most: int) -> Json:
    """A report; of more than `most` rows the rest is left off, and how many is said. Totals are of all."""
    found = read_report(sight.store, query)
    shown = found if len(found.rows) <= most else replace(found, rows=found.rows[:most])
    return {**shown.to_dict(), "rows_omitted": len(found.rows) - len(shown.rows)}


def entry_page(
    sight: ReadableMeter, query: Query, *, limit: int, cursor: str | None = None, newest_first: bool = True
) -> Page:
    """Entries, page by page. The same query has to be given with every cursor.

    Raises:
        ConfigurationError: a cursor that is none.
    """
    found = read_entries(sight.store, query, newest_first=newest_first)
    where = sorted((name, sorted(values, key=str)) for name, values in query.where.items())
    question = _digest("entries", where, query.period.label, query.period.tz, newest_first)
    if cursor is not None:
        at, entry_id = _parse_entry_cursor(cursor, question)
        # The last one's instant is read again, since others may share it; `_skip_past` leaves out what was shown.
        moment, edge = timedelta(microseconds=1), query.period
        start, end = (edge.start, min(edge.end, at + moment)) if newest_first else (max(edge.start, at), edge.end)
        if start >= end:
            return Page([], None)
        beyond = replace(query, period=replace(edge, start=start, end=end))
        found = _skip_past(read_entries(sight.store, beyond, newest_first=newest_first), at, entry_id)
    some = list(islice(found, limit + 1))
    last = some[limit - 1] if len(some) > limit else None
    cursor = None if last is None else _make_cursor(question, last.occurred_at.isoformat(), last.entry_id)
    return Page([entry_of(one) for one in some[:limit]], cursor)


def _skip_past(entries: Iterator[Entry], at: datetime, entry_id: str) -> Iterator[Entry]:
    """Those behind the one called `entry_id`; it is of the instant `at`, as those before it are."""
    rest = dropwhile(lambda one: one.occurred_at == at and one.entry_id != entry_id, entries)
    return (one for one in rest if one.entry_id != entry_id)


def _parse_entry_cursor(text: str, question: str) -> tuple[datetime, str]:
    at, entry_id = _parse_cursor(text, question, 2)
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        raise ConfigurationError(_NO_CURSOR) from None
    if moment.tzinfo is None or not entry_id:
        raise ConfigurationError(_NO_CURSOR)
    return moment, entry_id


def _make_cursor(question: str, *parts: str) -> str:
    return (
        base64.urlsafe_b64encode(json.dumps([question[:8], *parts], ensure_ascii=False).encode()).decode().rstrip("=")
    )


def _parse_cursor(text: str, question: str, count: int) -> tuple[str, ...]:
    """The parts of a cursor.

    Args:
        text: The cursor.
        question: Digest of what is asked.
        count: How many parts there are to be.

    Raises:
        ConfigurationError: it is none of so many, or of another question, whose pages would be taken for this one's.
    """
    try:
        found: object = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
    except (ValueError, RecursionError):
        found = None
    parts = [one for one in cast("list[object]", found) if isinstance(one, str)] if isinstance(found, list) else []
    if not parts or parts != found:
        raise ConfigurationError(_NO_CURSOR)
    if parts[0] != question[:8] or len(parts) != count + 1:
        raise ConfigurationError(_OTHER_CURSOR)
    return tuple(parts[1:])


def _cut_page(
    key: Callable[[T], tuple[str, ...]],
    found: Iterable[T],
    show: Callable[[T], Json],
    *,
    question: str,
    parts: int,
    limit: int,
    cursor: str | None,
) -> Page:
    """Some of a list in the order of its keys: what joins or leaves it meanwhile moves nothing else to another page.

    Raises:
        ConfigurationError: a cursor that is none.
    """
    reached = () if cursor is None else _parse_cursor(cursor, question, parts)
    listed = sorted(((place, one) for one in found if (place := key(one)) > reached), key=itemgetter(0))
    some = [one for _, one in listed[:limit]]
    return Page(list(map(show, some)), _make_cursor(question, *listed[limit - 1][0]) if len(listed) > limit else None)


def entry(sight: ReadableMeter, entry_id: str) -> Json | None:
    """One entry with its charges and the provider's usage object; None where there is none to see."""
    found = sight.store.entry(entry_id) if entry_id.isprintable() else None
    if found is None:
        return None
    raw = None if found.raw_usage is None else json.loads(found.raw_usage)
    return {**entry_of(found), "raw_usage": raw, "charges": [_show_charge(one) for one in found.charges]}


def entry_of(one: Entry) -> Json:
    """An entry without its charges."""
    return {
        field.name: value if field.kind == "json" else json_value(value, field.kind)
        for field in _FIELDS
        if field.name not in _LONG
        for value in [field.pick(one)]
    }


def _show_charge(one: Charge) -> Json:
    costs = {name: getattr(one, name) for name in ("list_cost", "contracted_cost", "billed_cost")}
    return {
        "model": one.model,
        "sku_meter": one.sku_meter,
        "role": one.role,
        "quantity": f"{one.quantity:f}" if not isinstance(one.quantity, int) else str(one.quantity),
        "unit": one.unit,
        "list_unit_price": None if one.list_unit_price is None else f"{one.list_unit_price:f}",
        "multipliers": {name: f"{factor:f}" for name, factor in one.multipliers.items()},
        **{name: None if cost is None else f"{quantize(cost):f}" for name, cost in costs.items()},
        "price_id": one.price_id,
        "price_source": one.source,
    }


# -- budgets


def balance_page(
    sight: ReadableMeter,
    account: Mapping[str, str],
    *,
    budget: str | None,
    limit: int,
    cursor: str | None,
) -> Page:
    """Where the budgets stand that concern `account`, by name; limit and remaining are None for who has no cap.

    Raises:
        ConfigurationError: a cursor that is none.
    """
    found = (one for one in sight.budgets.remaining(account, sight.store.now()) if budget in {None, one.budget})
    question = _digest("balances", sorted(account.items()), budget)
    return _cut_page(_balance_key, found, balance_of, question=question, parts=3, limit=limit, cursor=cursor)


def _balance_key(one: Balance) -> tuple[str, ...]:
    scope = json.dumps(sorted(one.scope.items()), ensure_ascii=False)
    return one.budget[:_SORTED_BY], scope[:_SORTED_BY], _digest(one.budget, scope, one.unit, one.window_start)


def _digest(*parts: object) -> str:
    """Tells apart what a cursor names by the beginnings of its names, so that it stays short."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def fullest_balances(sight: ReadableMeter, account: Mapping[str, str], *, most: int) -> Json:
    """The same, those first of whose limit least is left, `most` of them; with how many more there are."""
    found = sorted(sight.budgets.remaining(account, sight.store.now()), key=_share_left)
    return {
        "balances": [balance_of(one) for one in found[:most]],
        "balances_omitted": max(len(found) - most, 0),
    }


def balance_of(one: Balance) -> Json:
    """One of them; no cap is None."""
    return {
        name: None if name in {"limit", "remaining"} and value == "Infinity" else value
        for name, value in one.to_dict().items()
    }


def _share_left(one: Balance) -> Decimal:
    if not one.limit.is_finite():
        return Decimal(1)
    return ratio(one.remaining, one.limit) if one.limit else ZERO


def budget_page(sight: ReadableMeter, *, limit: int, cursor: str | None) -> Page:
    """The definitions that count now by name, each with who said it, when and where.

    Raises:
        ConfigurationError: a cursor that is none.
    """
    found = (one for one in sight.budgets.changes() if one.budget is not None)
    return _cut_page(
        lambda one: (one.name[:_SORTED_BY], _digest(one.name)),
        found,
        Change.to_dict,
        question=_digest("budgets"),
        parts=2,
        limit=limit,
        cursor=cursor,
    )


def budget_history(sight: ReadableMeter, name: str) -> Json | None:
    """Every version of one budget and what was granted; None where there is none."""
    # One that is declared and not filed yet has its declaration, as the list of budgets tells it.
    changes = sight.budgets.history(name) or [one for one in sight.budgets.changes() if one.name == name]
    if not changes:
        return None
    labels = sight.store.key_labels()
    return {
        "changes": [one.to_dict() for one in changes],
        "grants": [name_grant(one, labels).to_dict() for one in sight.budgets.grants(name)],
    }


# -- books


def invoice_list(
    sight: ReadableMeter, *, period: str | None, status: str | None, limit: int, cursor: str | None
) -> Page:
    """Issued invoices without their lines, the last first.

    Raises:
        ConfigurationError: a cursor that is none.
    """
    found = invoices(sight.store, period=period, status=cast("InvoiceStatus | None", status), lines=False)
    return _cut_issued(found, _shorten_invoice, limit, cursor)


def _cut_issued(found: Sequence[Issued], show: Callable[[Issued], Json], limit: int, cursor: str | None) -> Page:
    """Some of what was issued, the last first; nothing of it goes."""
    at = len(found)
    if cursor is not None:
        at = next((place for place, one in enumerate(found) if one.number == cursor), -1)
        if at < 0:
            raise ConfigurationError(_NO_CURSOR)
    start = max(at - limit, 0)
    some = found[start:at][::-1]
    return Page(list(map(show, some)), some[-1].number if start else None)


def _shorten_invoice(one: Invoice) -> Json:
    whole = one.to_dict()
    return {name: whole[name] for name in whole if name not in {"lines", "ledger", "events", "notes", "seller"}}


def invoice(sight: ReadableMeter, number: str) -> Json | None:
    """One invoice with its lines and what happened to it; None where there is none to see."""
    try:
        found = find_invoice(sight.store, number)
    except LedgerError:
        return None
    notes = [one.to_dict() for one in credit_notes(sight.store, invoice=number)]
    return {**found.to_dict(), "credit_notes": notes}


def credit_note_page(sight: ReadableMeter, *, limit: int, cursor: str | None) -> Page:
    """Issued credit notes, the last first.

    Raises:
        ConfigurationError: a cursor that is none.
    """
    return _cut_issued(credit_notes(sight.store), CreditNote.to_dict, limit, cursor)


def statement(
    sight: ReadableMeter,
    account: Iterable[str],
    *,
    period: str,
    basis: Literal["usage", "invoices"] = "usage",
    granularity: CalendarUnit = "day",
    tz: str = "UTC",
) -> Json:
    """The running balance of an account.

    Raises:
        ConfigurationError: whose is not said, or an unknown period or zone.
    """
    whose = pairs(account, "account", ACCOUNTS)
    found = draw_statement(
        sight.store,
        period=period,
        basis=basis,
        granularity=granularity,
        tz=tz,
        profile=sight.profile,
        **cast("Any", whose),
    )
    return found.to_dict()


# -- prices


def price_rows(sight: ReadableMeter, model: str, *, provider: str = "openai", at: str | None = None) -> list[Json]:
    """The rows in force for a model, the standard ones first.

    Raises:
        UnknownModelError: no row names the model.
        ConfigurationError: not an instant.
    """
    found = prices.show(model, provider=provider, at=at, price_list=sight.pricer.price_list)
    return [dict(one.to_dict()) for one in found]
