"""Whose usage it is, and entries boiled down to what an invoice line needs: one row per account, meter and price."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from tokenmeter.dimensions import ACCOUNTS, COUNTED_AS, EntryKind
from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.ledger import Charge, Entry
from tokenmeter.money import EXACT, ZERO, Costs
from tokenmeter.periods import Period
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import Document
from tokenmeter.stores.naming import FINGERPRINT, NamesNow
from tokenmeter.texts import check_text, suggest
from tokenmeter.values import dataclass

#: What a price was chosen by, as its identity spells it: ``openai/gpt-5/input[processing=batch]@2026-10-12``.
#: Conditions of a price: what stands in brackets behind the meter, which the date or the list follows. Brackets of a
#: model's name (``claude-sonnet-5[1m]``) are before it.
_CONDITIONS = re.compile(r"/[^/\[\]|]+\[([^\]]*)\](?=[^/|]*(?:\||$))")
#: What a price is found for, by a row of its own or by a rule: behind a bar the identity has all of it,
#: ``.../input@2026-10-12#1f*0.5|processing=batch,region=us``. A place has a factor, which is told by its name.
_MODES = frozenset({"speed", "service_tier", "processing"})


def check_account(given: Mapping[str, object], *, needed: bool = True) -> dict[str, str]:
    """The account that arguments name: dimension -> value, in the order of `ACCOUNTS`.

    Args:
        given: What was said; None is not said.
        needed: Whether one must be named; else none is the whole ledger.

    Raises:
        ConfigurationError: none is named, or by something else than a text, or by what is no account. Left out, that
            would make an account of more than was asked for.
    """
    scope: dict[str, str] = {}
    for name, value in given.items():
        if name not in ACCOUNTS:
            raise ConfigurationError(
                f"An account is named by {', '.join(ACCOUNTS)}, not by {shown(name)}.{suggest(name, ACCOUNTS)}"
            )
        if value is None:
            continue
        check_text(value, f"{name}=")
        scope[name] = str(value)
    if needed and not scope:
        raise ConfigurationError(f"Say whose: one of {', '.join(f'{name}=' for name in ACCOUNTS)}.")
    return {name: scope[name] for name in ACCOUNTS if name in scope}


def check_dimensions(names: str | Iterable[str], *, what: str) -> tuple[str, ...]:
    """Account dimensions as a person writes them: ``"member,team"`` or a list.

    Args:
        names: The names.
        what: The argument, for the message.

    Raises:
        ConfigurationError: not a dimension of accounts.
    """
    split = tuple(name.strip() for name in names.split(",") if name.strip()) if isinstance(names, str) else tuple(names)
    for name in split:
        if name not in ACCOUNTS:
            raise ConfigurationError(f"{what} takes {', '.join(ACCOUNTS)}, not {name!r}.{suggest(name, ACCOUNTS)}")
    return split


def account_name(scope: Mapping[str, str]) -> str:
    """``member=ada``: how an account is written."""
    return ",".join(f"{name}={value}" for name, value in scope.items())


class RateKey(NamedTuple):
    """What rows are told apart by.

    `account` has a value for each of `ACCOUNTS`, in their order. `conditions` is what the price was chosen by
    (``processing=batch``), empty for the ordinary one. Multipliers are ``((name, factor), ...)`` in the order they
    apply. `fingerprint` is the API key itself, whose name may change; None without a key, and in the first manifests.
    """

    account: tuple[str | None, ...]
    kind: EntryKind
    provider: str
    model: str | None
    sku_meter: str
    unit: str
    conditions: str
    list_unit_price: Decimal | None
    multipliers: tuple[tuple[str, Decimal], ...]
    fingerprint: str | None = None

    @property
    def owner(self) -> dict[str, str]:
        """Whose it is: the accounts that are known."""
        return {name: value for name, value in zip(ACCOUNTS, self.account, strict=True) if value is not None}

    @property
    def kept_owner(self) -> dict[str, str]:
        """The same for a document, which keeps the key itself beside its name."""
        return self.owner if self.fingerprint is None else {**self.owner, FINGERPRINT: self.fingerprint}

    def about(self, name: str) -> str | None:
        """The value of one of `ACCOUNTS`."""
        return self.account[ACCOUNTS.index(name)]


class Rated(NamedTuple):
    """Sums over the charges of one rate: quantity in the rate's unit, costs in US dollars, exact.

    `unpriced` counts charges without a known price, less those that were taken back: what they cost is missing.
    """

    rate: RateKey
    quantity: Decimal = ZERO
    list_cost: Decimal = ZERO
    contracted_cost: Decimal = ZERO
    billed_cost: Decimal = ZERO
    unpriced: int = 0


@dataclass(slots=True)
class Tally:
    """Rows by rate, with counts of the entries they come from."""

    rows: dict[RateKey, Rated]
    entries: int = 0
    requests: int = 0
    unpriced: int = 0
    estimated: int = 0

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Tally:
        """Add up `entries`, one at a time."""
        tally = cls({})
        for entry in entries:
            tally.entries += 1
            counted = COUNTED_AS.get(entry.kind, 0)
            tally.requests += entry.requests
            tally.unpriced += counted * (entry.cost_source == "unpriced")
            tally.unpriced -= entry.kind == "correction" and any(one.billed_cost is None for one in entry.charges)
            tally.estimated += counted * (entry.cost_source == "estimated" or "estimated" in entry.flags)
            for row in rate_entry(entry):
                known = tally.rows.get(row.rate)
                tally.rows[row.rate] = row if known is None else plus(known, row)
        return tally


def rate_entry(entry: Entry) -> Iterator[Rated]:
    """Its charges as rows, in their order, and last what of its cost they do not explain."""
    rest = Rated(
        find_rate(entry, None),
        ZERO,
        entry.list_cost or ZERO,
        entry.contracted_cost or ZERO,
        entry.billed_cost or ZERO,
    )
    for charge in entry.charges:
        row = Rated(
            find_rate(entry, charge),
            Decimal(charge.quantity),
            charge.list_cost or ZERO,
            charge.contracted_cost or ZERO,
            charge.billed_cost or ZERO,
            0 if charge.billed_cost is not None else -1 if charge.quantity < 0 else 1,
        )
        rest = plus(rest, row._replace(quantity=ZERO, unpriced=0), -1)
        yield row
    if any(rest[1:]):  # cost that no charge explains
        yield rest


def find_rate(entry: Entry, charge: Charge | None) -> RateKey:
    """What a charge of an entry is summed under; None = the cost that no charge explains."""
    rate = RateKey(
        account=tuple(_account_value(entry, name) for name in ACCOUNTS),
        kind=entry.kind,
        provider=entry.provider,
        model=entry.model,
        sku_meter="adjustment" if entry.kind == "adjustment" else "provider_cost",
        unit="USD",
        conditions="",
        list_unit_price=None,
        multipliers=(),
        fingerprint=None if entry.api_key is None else entry.api_key.fingerprint,
    )
    if charge is None:
        return rate
    return rate._replace(
        model=charge.model or entry.model,
        sku_meter=charge.sku_meter,
        unit=charge.unit,
        conditions=_conditions(charge.price_id),
        list_unit_price=charge.list_unit_price,
        multipliers=tuple(charge.multipliers.items()),
    )


def _account_value(entry: Entry, name: str) -> str | None:
    if name == "api_key":
        return None if entry.api_key is None else entry.api_key.label
    value: str | None = getattr(entry.attribution, name)
    return value


def _conditions(price_id: str | None) -> str:
    found = _CONDITIONS.search(price_id or "")
    listed = found[1] if found else ""
    _, _, context = (price_id or "").rpartition("|")
    # Where a rule makes the price ("a batch is half"), the row that it starts from says nothing of it.
    named = {condition.partition("=")[0].strip() for condition in listed.split(",")}
    ruled = [mode for mode in context.split(",") if mode.partition("=")[0] in _MODES - named]
    return ",".join(filter(None, [listed, *ruled]))


def plus(one: Rated, other: Rated, sign: int = 1) -> Rated:
    """`one` with `other` added (or, with ``sign=-1``, taken away); the rate stays that of `one`."""
    join = EXACT.add if sign > 0 else EXACT.subtract
    return Rated(
        one.rate,
        join(one.quantity, other.quantity),
        join(one.list_cost, other.list_cost),
        join(one.contracted_cost, other.contracted_cost),
        join(one.billed_cost, other.billed_cost),
        one.unpriced + sign * other.unpriced,
    )


def add(*groups: Iterable[Rated]) -> dict[RateKey, Rated]:
    """All rows together, summed by rate."""
    total: dict[RateKey, Rated] = {}
    for row in (row for group in groups for row in group):
        total[row.rate] = plus(total.get(row.rate, Rated(row.rate)), row)
    return total


def minus(now: Mapping[RateKey, Rated], before: Mapping[RateKey, Rated]) -> list[Rated]:
    """What was added to `before` to make `now`; rows that did not change are left out."""
    found = (plus(now.get(rate, Rated(rate)), before.get(rate, Rated(rate)), -1) for rate in {**before, **now})
    return [row for row in found if any(row[1:])]


def rename(rows: Iterable[Rated], names: NamesNow, document: Document | None) -> tuple[Rated, ...]:
    """Rows that are filed in `document`, on accounts by today's names."""
    known: dict[tuple[Any, ...], tuple[str | None, ...]] = {}
    found: list[Rated] = []
    for row in rows:
        whose = row.rate.account, row.rate.fingerprint
        if whose not in known:
            renamed = names.rename(row.rate.kept_owner, document)
            known[whose] = tuple(renamed.get(name) for name in ACCOUNTS)
        found.append(row._replace(rate=row.rate._replace(account=known[whose])))
    return tuple(found)


def sum_ledger(store: Store, period: Period) -> dict[tuple[Any, ...], Costs]:
    """Costs per account and kind, from the kept sums: quick even for millions of entries. What is zero is left out."""
    groups = store.aggregate([period.start, period.end], [*ACCOUNTS, "kind"])
    sums = {group.group: Costs.of(group) for group in groups}
    return {account: costs for account, costs in sums.items() if any(costs)}


def sum_accounts(rows: Iterable[Rated]) -> dict[tuple[Any, ...], Costs]:
    """The same of rows."""
    sums: dict[tuple[Any, ...], Costs] = {}
    for row in rows:
        account = (*row.rate.account, row.rate.kind)
        sums[account] = sums.get(account, Costs()).plus(Costs.of(row))
    return {account: costs for account, costs in sums.items() if any(costs)}


def count_told(span: str, entries: int, later: Iterable[tuple[Mapping[str, int], bool]]) -> int | None:
    """How many entries of a closed period its closings have told; None = they do not say.

    Args:
        span: The period, as `span_text` says it.
        entries: How many its own closing counted.
        later: Of each closing, how many entries it counted anew, by span, and whether it took up what came late to
            this one. The first versions took it up without counting.
    """
    told: int | None = entries
    for recounted, took_up in later:
        told = recounted.get(span, None if took_up else told)
    return told


def span_text(period: Period) -> str:
    """Both ends of a period, as documents name it."""
    return f"{period.start.isoformat()}/{period.end.isoformat()}"


def encode(rows: Iterable[Rated]) -> list[list[Any]]:
    """Rows as JSON-ready values, in a stable order; decimals are text."""
    encoded = [
        [
            row.rate.kept_owner,
            *row.rate[1:-3],
            None if row.rate.list_unit_price is None else str(row.rate.list_unit_price),
            [[name, str(factor)] for name, factor in row.rate.multipliers],
            *(str(amount) for amount in row[1:5]),
            row.unpriced,
        ]
        for row in rows
    ]
    return sorted(encoded, key=repr)


def decode(encoded: Iterable[Sequence[Any]]) -> list[Rated]:
    """Rows from `encode`."""
    return [_decoded(*values) for values in encoded]


def _decoded(*values: Any) -> Rated:
    owner, *about, price, factors, quantity, list_cost, contracted_cost, billed_cost, unpriced = values
    known: dict[str, Any] = dict(zip(RateKey._fields[1:], about, strict=False))
    rate = RateKey(
        account=tuple(owner.get(name) for name in ACCOUNTS),
        **known,
        list_unit_price=None if price is None else Decimal(price),
        multipliers=tuple((name, Decimal(factor)) for name, factor in factors),
        fingerprint=owner.get(FINGERPRINT),
    )
    return Rated(
        rate, Decimal(quantity), Decimal(list_cost), Decimal(contracted_cost), Decimal(billed_cost), int(unpriced)
    )
