"""What makes figures right or doubtful: prices and where they are from, what has none, what is estimated, health."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from itertools import islice
from typing import NamedTuple

from tokenmeter.dashboard.view import View
from tokenmeter.display import counted
from tokenmeter.errors import UnknownModelError
from tokenmeter.money import magnitude
from tokenmeter.prices import show
from tokenmeter.pricing import Price, PriceList
from tokenmeter.pricing.price import TOKEN_CLASSES
from tokenmeter.reports import Row
from tokenmeter.reports.query import read_entries
from tokenmeter.reports.report import read_report
from tokenmeter.serving.lens import ReadableMeter
from tokenmeter.stores.base import Health, Store
from tokenmeter.values import dataclass

#: Layer of the price list -> what it is.
ORIGINS = {
    "user": "your settings",
    "project": "your price file",
    "tokenmeter": "shipped with tokenmeter",
    "genai-prices": "genai-prices",
}
_MOST_LOOKED_AT = 500
_MOST_MODELS = 200
#: Meters whose prices stand in the list of models.
_METERS = ("input", "cache_read", "cache_write_5m", "output")
#: Flag of an entry -> why it is estimated, and what to do.
_CAUSES = {
    "billing_unknown": (
        "the request left and no answer came, so nobody can tell whether it was billed",
        "Compare with the provider's own books: tokenmeter reconcile.",
    ),
    "estimated": (
        "the stream or answer ended before it said its usage; what was sent and received was counted",
        "Let streams run to their end, or ask for usage in them; reconcile settles the rest.",
    ),
    "usage_unknown": (
        "something was used and nobody can say what",
        "Reconcile with the provider's own books; its proposals can be posted.",
    ),
}
_UNSAID = ("its usage or cost was not said by the provider", "Reconcile with the provider's own books.")


# -- prices


class UsedPrice(NamedTuple):
    """What a model that was called lately costs now.

    Attributes:
        provider: Provider id.
        model: As reports name it.
        requests: Calls in the period.
        prices: Meter -> US dollars per million tokens, standard conditions; absent = no price of its own.
        origin: Where the input price (or the first there is) comes from.
        since: From when it is in effect; None = since ever.
        verified_on: When its source was last read; None when unknown.
    """

    provider: str
    model: str
    requests: int
    prices: Mapping[str, Decimal]
    origin: str | None
    since: datetime | None
    verified_on: date | None


class PriceCard(NamedTuple):
    """Every price of one model.

    Attributes:
        model: As the price list names it.
        now: Rows in force.
        before: Rows that are over, the last first.
        after: Rows that come into force later, the next first.
    """

    model: str
    now: Sequence[Price]
    before: Sequence[Price]
    after: Sequence[Price]


def used_prices(store: Store, listed: PriceList, view: View) -> list[UsedPrice]:
    """What the models of a period cost now, the most expensive in that period first."""
    query = replace(view.query, by=("provider", "model"))
    return [
        _used(listed, row, str(row["provider"]), model, view.now)
        for row in read_report(store, query).rows[:_MOST_MODELS]
        if (model := row["model"]) and row.requests
    ]


def _used(listed: PriceList, row: Row, provider: str, model: str, now: datetime) -> UsedPrice:
    rows = [one for one in _in_force(listed, provider, model, now) if not one.conditions.described()]
    by_meter = {one.sku_meter: one for one in rows if one.per == 1_000_000}  # noqa: PLR2004 - tokens
    first = by_meter.get("input") or next(iter(rows), None)
    return UsedPrice(
        provider,
        model,
        row.requests,
        {meter: by_meter[meter].unit_price for meter in _METERS if meter in by_meter},
        first.origin if first else None,
        first.effective_from if first else None,
        first.verified_on if first else None,
    )


def _in_force(listed: PriceList, provider: str, model: str, now: datetime) -> list[Price]:
    try:
        return show(model, provider=provider, at=now, price_list=listed)
    except UnknownModelError:
        return []


def price_card(listed: PriceList, provider: str, model: str, now: datetime) -> PriceCard | None:
    """Every price of a model, now and at other times; None when no price names it."""
    found = listed.find(provider or "openai", model)
    if found is None:
        return None
    rows = found.card.rows
    over = [row for row in rows if row.effective_to is not None and row.effective_to <= now]
    ahead = [row for row in rows if row.effective_from is not None and row.effective_from > now]
    return PriceCard(
        found.model,
        _in_force(listed, provider or "openai", model, now),
        sorted(over, key=lambda row: (row.effective_to or now, row.sku_meter), reverse=True),
        sorted(ahead, key=lambda row: (row.effective_from or now, row.sku_meter)),
    )


# -- what is not exact


class UnpricedModel(NamedTuple):
    """A model with calls whose price is not known.

    Attributes:
        row: Its sums.
        provider: Provider id.
        model: As reports name it.
        known_now: Whether today's price list has a price for it.
        settings: Lines of the settings that give it one.
    """

    row: Row
    provider: str
    model: str
    known_now: bool
    settings: Sequence[str]


class Estimated(NamedTuple):
    """Why entries are estimated.

    Attributes:
        cause: In words.
        advice: What to do.
        entries: How many of those looked at.
        by_model: The models concerned most, with how many.
    """

    cause: str
    advice: str
    entries: int
    by_model: Sequence[tuple[str, int]]


def unpriced(store: Store, listed: PriceList, view: View) -> list[UnpricedModel]:
    """The models without a price in a period, those with the most tokens first."""
    query = replace(view.query, by=("provider", "model"))
    found = [
        UnpricedModel(
            row,
            provider,
            model,
            listed.find(provider, model) is not None,
            price_rows(provider, model, row.usage.quantities),
        )
        for row in read_report(store, query).rows
        if row.unpriced > 0
        for provider, model in [(str(row["provider"]), row["model"] or "")]
    ]
    return sorted(found, key=lambda one: -one.row.usage.total_tokens)[:_MOST_MODELS]


def price_rows(provider: str, model: str, meters: Iterable[str]) -> list[str]:
    """Lines for the settings that give a model prices; the amounts are left to be filled in."""
    quoted = model.replace("\\", "\\\\").replace('"', '\\"')
    lines: list[str] = []
    for meter in meters:
        unit = "a million tokens" if meter in TOKEN_CLASSES else "one"
        lines += ["[[prices]]", f'provider = "{provider}"', f'model = "{quoted}"', f'sku_meter = "{meter}"']
        lines += [f'unit_price = "..."   # US dollars for {unit}', ""]
    return lines


def estimated(store: Store, view: View) -> list[Estimated]:
    """Why entries of a period are estimated, from the last few hundred, the commonest cause first."""
    where = {**view.query.where, "cost_source": frozenset({"estimated"})}
    entries = islice(read_entries(store, replace(view.query, where=where), newest_first=True), _MOST_LOOKED_AT)
    causes: dict[tuple[str, str], Counter[str]] = {}
    for entry in entries:
        causes.setdefault(_cause(entry.flags), Counter())[entry.model or entry.endpoint] += 1
    found = [Estimated(*cause, models.total(), models.most_common(5)) for cause, models in causes.items()]
    return sorted(found, key=lambda one: -one.entries)


def _cause(flags: Iterable[str]) -> tuple[str, str]:
    return next((said for flag, said in _CAUSES.items() if flag in flags), _UNSAID)


# -- health


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is well, or not.

    Attributes:
        what: In a few words.
        words: What was found, and what to do.
        well: Whether it is.
    """

    what: str
    words: str
    well: bool = True


def checks(meter: ReadableMeter, health: Health) -> list[Check]:
    """The state of a ledger in words, what needs care first."""
    return sorted(_checks(meter, health.facts), key=lambda one: one.well)


def _checks(meter: ReadableMeter, facts: Mapping[str, object]) -> Iterator[Check]:
    def number(name: str) -> int:
        value = facts.get(name)
        return value if isinstance(value, int) else 0

    if "write_failures" in facts:
        failed, waiting = number("write_failures"), _size(number("tail_bytes"))
        words = f"Calls are written as they return; {waiting} wait to be folded into the database."
        if failed:
            words = (
                f"{counted(failed, 'attempt')} to write to the database failed; {waiting} wait in the tail and "
                "calls go on. tokenmeter doctor says why."
            )
        yield Check("Writing", words, not failed)
    if "refused_records" in facts:
        refused = number("refused_records")
        words = f"{counted(refused, 'record was', 'records were')} kept aside, not understood; see tokenmeter doctor."
        yield Check("Records", words if refused else "Every record was understood.", not refused)
    # What is not told is not said to be none: whoever sees a part sees nothing of the whole.
    if "pending_holds" in facts:
        holds = number("pending_holds")
        words = f"{counted(holds, 'holds', 'hold')} a part of a budget." if holds else "None holds a part of a budget."
        yield Check("Calls under way", words)
    faults = meter.faults
    if faults is not None:
        words = (
            f"Something inside tokenmeter failed {counted(faults, 'time')} here; the log of this process says where."
        )
        yield Check("This process", words if faults else "Nothing inside tokenmeter failed here.", not faults)
    listed = meter.pricer.price_list
    yield Check("Prices", f"Calls are rated by price list {listed.hash[:12]}, on {listed.base_name}.")
    entries = facts.get("entries")
    # What was written last is in the files beside it: the log of the database and the tail.
    size = f", {_size(sum(map(number, ('bytes', 'wal_bytes', 'tail_bytes'))))}" if "bytes" in facts else ""
    yield Check(
        "The ledger", f"{counted(entries, 'entry', 'entries')}{size}." if isinstance(entries, int) else "It answers."
    )


def _size(size: int) -> str:
    for unit, limit in (("bytes", 1), ("kB", 10**3), ("MB", 10**6), ("GB", 10**9)):
        if magnitude(Decimal(size)) < limit * 1000 or unit == "GB":
            return f"{size // limit:,} {unit}" if unit == "bytes" else f"{size / limit:,.1f} {unit}"
    return f"{size} bytes"
