"""Calls out of logs as entries, priced like live ones; and which of them a ledger has already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from unicodedata import category

from pydantic_core import to_json

from tokenmeter.attribution import Attribution
from tokenmeter.dimensions import INPUT_METERS
from tokenmeter.importing.call import Given, ImportedCall
from tokenmeter.ledger import Charge, Entry
from tokenmeter.meter import Meter
from tokenmeter.money import MOST_DOLLARS, to_dollars
from tokenmeter.periods import check_made
from tokenmeter.pricing.card import Circumstances
from tokenmeter.pricing.corrections import COMPLETED, completion
from tokenmeter.pricing.pricer import Pricer
from tokenmeter.pricing.rating import Rating
from tokenmeter.providers.hosts import billing_name
from tokenmeter.stores.base import EntryFilter, Store
from tokenmeter.texts import MAX_TEXT, is_blank
from tokenmeter.usage import Consumption, Observation, Usage

_OPERATIONS = {"completions": "text_completion", "embeddings": "embeddings"}
_DAY, _MOMENT = timedelta(days=1), timedelta(microseconds=1)
_IMPORTED = "imported"
_ONLY_IMPORTED = (_IMPORTED,)
_NO_FLAGS: frozenset[str] = frozenset()
#: Attributions that are kept while rows name them again.
_MOST_ACCOUNTS = 10_000
Figures = tuple[str | None, tuple[tuple[str, Any], ...]]


class KnownCalls:
    """Ids that the ledger has, of the days that an import touches, with their figures."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._days: set[date] = set()
        self._surrounded: set[date] = set()
        self._figures: dict[str, Figures] = {}
        #: How much more later imports have recorded of calls that were read while their answer came, by response id.
        self._rests: dict[str, Usage] = {}

    def is_new(self, entry: Entry) -> bool:
        """Whether a call is not there yet; from now on it is."""
        keys = _keys(entry)
        if self._known(entry, keys) is not None:
            return False
        figures = _figures(entry)
        for key in keys:
            self._figures[key] = figures
        return True

    def conflict(self, call: ImportedCall, entry: Entry) -> str | None:
        """In what a call differs from the one that is there under its id; None for a repeat, or an earlier part."""
        figures, known = _figures(entry), self._figures_of(entry)
        if known is None or known == figures or (call.grows and _is_part(figures, known)):
            return None
        return f"{call.id} is in the ledger with {_words(known)}, here it has {_words(figures)}"

    def rest(self, entry: Entry) -> tuple[Entry, ...] | None:
        """What is to be recorded of a call that an earlier import read while its answer came, and `entry` has whole.

        None where no import has recorded a part of it, or nothing is left.
        """
        figures, known = _figures(entry), self._figures_of(entry)
        if known is None or known == figures or not _is_part(known, figures):
            return None
        if entry.response_id is None:
            return None
        days = sorted(_around(entry))
        found = list(self._between(_begin(days[0]), _begin(days[-1]) + _DAY, response_id=entry.response_id))
        parts = [one for one in found if one.kind == "usage"]
        if not parts or not all(_IMPORTED in part.flags for part in parts):
            return None
        self._figures.update(dict.fromkeys(_keys(entry), figures))
        self._rests.pop(str(entry.response_id), None)
        # Corrections do not bear the answer's id, and lie at the moment of what they correct.
        for at in sorted({part.occurred_at for part in parts}):
            found += self._between(at, at + _MOMENT, kind="correction")
        names = {part.entry_id for part in parts}
        return completion(parts, [one for one in found if one.corrects in names], entry)

    def _figures_of(self, entry: Entry) -> Figures | None:
        return self._known(entry, _keys(entry))

    def _known(self, entry: Entry, keys: Iterable[str]) -> Figures | None:
        """What is known of a call. Reads its day and the neighbours: other sources may date it by its other end."""
        if (day := entry.occurred_at.date()) not in self._surrounded:
            self._surrounded.add(day)
            for near in _around(entry):
                if near not in self._days:
                    self._days.add(near)
                    self._read(near)
        known = next((found for key in keys if (found := self._figures.get(key)) is not None), None)
        rest = self._rests.get(str(entry.response_id)) if self._rests else None
        return known if known is None or rest is None else (known[0], _counts(Usage(dict(known[1])) + rest))

    def _read(self, day: date) -> None:
        for entry in self._entries_of(day):
            if COMPLETED in entry.flags or (entry.kind == "reversal" and _IMPORTED in entry.flags):
                name = str(entry.response_id)
                self._rests[name] = self._rests.get(name, Usage()) + entry.usage
            elif entry.kind == "usage":
                self._figures.update(dict.fromkeys(_keys(entry), _figures(entry)))

    def _entries_of(self, day: date) -> Iterator[Entry]:
        return self._between(_begin(day), _begin(day) + _DAY)

    def _between(self, since: datetime, until: datetime, **where: str) -> Iterator[Entry]:
        wanted = {name: frozenset[str | None]({one}) for name, one in where.items()}
        return self._store.entries(EntryFilter(since=since, until=until, where=wanted))


def _begin(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _around(entry: Entry) -> tuple[date, ...]:
    day = entry.occurred_at.date()
    return day, day - _DAY, day + _DAY


def _keys(entry: Entry) -> list[str]:
    return [key for key in (entry.dedup_key, entry.response_id) if key]


def _figures(entry: Entry) -> Figures:
    return entry.model, _counts(entry.usage)


def _counts(usage: Usage) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((meter, quantity) for meter, quantity in usage.quantities.items() if quantity))


def _is_part(one: Figures, other: Figures) -> bool:
    """Whether `one` is what `other` was before it was whole: of the same model, and nowhere more."""
    whole = dict(other[1])
    return one[0] == other[0] and all(count <= whole.get(name, 0) for name, count in one[1])


def _words(figures: Figures) -> str:
    model, counts = figures
    return f"{model or 'no model'}: {', '.join(f'{name} {count:,}' for name, count in counts) or 'nothing'}"


class EntryMaker:
    """Makes entries of calls, priced as if they had been metered; what many calls share is made once."""

    def __init__(self, given: Given, meter: Meter) -> None:
        self._given, self._meter = given, meter
        self._now = meter.store.now()
        self._accounts: dict[tuple[object, ...], Attribution] = {}

    def entry(self, call: ImportedCall) -> Entry:
        """The entry of a call.

        Raises:
            ConfigurationError: it says that it was made when no call can have been.
        """
        check_made(call.at, self._now, f"{call.at:%Y-%m-%dT%H:%M:%SZ}")
        if (biller := billing_name(call.provider)) != call.provider:
            call = replace(call, provider=biller)
        seen, who = call.observation, self._attribution(call)
        pricer = self._meter.pricer
        rating = rate_plainly(pricer, call, who) if seen is None else None
        if rating is None:
            seen = seen or _observation(call)
            rating = pricer.rate(seen, provider=call.provider, endpoint=call.endpoint, at=call.at, attribution=who)
        raw: dict[str, Any] = {} if call.usage is None else {"usage": call.usage}
        if call.observation is not None and call.observation.raw_usage is not None:
            raw = {"usage": call.observation.raw_usage}
        if call.cost_in_source is not None:
            raw["cost_in_source"] = f"{call.cost_in_source:f}"
        return Entry(
            occurred_at=call.at,
            provider=call.provider,
            endpoint=call.endpoint,
            operation=(seen and seen.operation) or _OPERATIONS.get(call.endpoint, "chat"),
            request_model=call.request_model or call.model or None,
            response_model=(seen and seen.response_model) or call.model or None,
            response_id=call.id,
            service_tier=(seen and seen.service_tier) or call.service_tier,
            attribution=who,
            usage=Usage(call.quantities, call.reasoning) if seen is None else seen.usage,
            charges=rating.charges,
            list_cost=rating.list_cost,
            contracted_cost=rating.contracted_cost,
            billed_cost=rating.billed_cost,
            cost_source=rating.cost_source,
            flags=_flags(seen.flags if seen else _NO_FLAGS, rating.flags, call.flags),
            price_list_hash=pricer.price_list_hash,
            raw_usage=to_json(raw, fallback=str).decode() if raw else None,
            # A running total is the first of its entries: who reads it again adds what it has grown by.
            dedup_key=f"{call.provider}:{call.id}{'#1' if seen is not None and seen.reading == 'total' else ''}",
        )

    def _attribution(self, call: ImportedCall) -> Attribution:
        if not call.who and not call.tags:
            return self._given.attribution
        key = (*call.who.items(), None, *call.tags.items())
        found = self._accounts.get(key)
        if found is None:
            if len(self._accounts) >= _MOST_ACCOUNTS:
                self._accounts.clear()
            who = self._given.attribution
            told = {name: _clean(value) for name, value in _said(call.who) if getattr(who, name) is None}
            tags = {_clean_tag(name): _clean(value) for name, value in _said(call.tags)}
            found = replace(who, **told, tags={**tags, **who.tags}) if told or tags else who
            self._accounts[key] = found
        return found


def _flags(*groups: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted({_IMPORTED}.union(*groups))) if any(groups) else _ONLY_IMPORTED


def _said(names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Those that say something."""
    return ((name, value) for name, value in names.items() if not (is_blank(name) or is_blank(value)))


def _clean(text: str) -> str:
    """A name out of a log as a ledger takes it: printable, and not endless."""
    if text.isprintable() and len(text) <= MAX_TEXT:
        return text
    shown = "".join("\N{REPLACEMENT CHARACTER}" if category(one) in {"Cc", "Cs"} else one for one in text)
    return shown if len(shown) <= MAX_TEXT else f"{shown[: MAX_TEXT - 1]}\N{HORIZONTAL ELLIPSIS}"


def _clean_tag(name: str) -> str:
    """The same for a tag's name, which must not end as a filter's "is not" does."""
    cleaned = _clean(name)
    return f"{cleaned[:-1]}\N{REPLACEMENT CHARACTER}" if cleaned.endswith("!") else cleaned


def rate_plainly(pricer: Pricer, call: ImportedCall, who: Attribution) -> Rating | None:
    """What `Pricer.rate` says of a call that is all whole numbers and no doubt, in half the time; else None."""
    quantities = call.quantities
    mode = Circumstances(call.service_tier, call.processing, call.speed, call.geo, None, call.endpoint)
    sheet = pricer.sheet(
        call.provider, call.model, mode=mode, at=call.at, prompt_tokens=_prompt_of(quantities), attribution=who
    )
    if sheet is None or not quantities or sheet.per_request is not None:
        return None
    listed = contracted = billed = 0
    lines: list[Charge] = []
    for meter, quantity in quantities.items():
        rate = sheet.rate(meter)
        if isinstance(rate, str) or rate.whole is None or rate.flags or not quantity:
            return None
        first, second, third = rate.whole
        listed += quantity * first
        contracted += quantity * second
        billed += quantity * third
        lines.append(rate.line(call.model, meter, quantity, "message"))
    if max(listed, contracted, billed) > _MOST_PICODOLLARS:
        return None
    costs = to_dollars(listed)
    after = costs if contracted == listed else to_dollars(contracted)
    charged = after if billed == contracted else to_dollars(billed)
    return Rating(tuple(lines), costs, after, charged, "computed", price_list_hash=sheet.price_list_hash)


_MOST_PICODOLLARS = MOST_DOLLARS * 10**12
_PROMPT_METERS = frozenset(INPUT_METERS)


def _prompt_of(quantities: Mapping[str, int]) -> int:
    return sum([count for name, count in quantities.items() if name in _PROMPT_METERS])


def _observation(call: ImportedCall) -> Observation:
    prompt = _prompt_of(call.quantities)
    consumption = Consumption(
        model=call.model,
        usage=Usage(call.quantities, call.reasoning),
        service_tier=call.service_tier,
        processing=call.processing,
        speed=call.speed,
        geo=call.geo,
        prompt_tokens=prompt,
    )
    return Observation(consumptions=(consumption,), response_model=call.model, response_id=call.id)
