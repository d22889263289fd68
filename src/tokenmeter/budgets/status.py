"""Where budgets stand: limits, what was spent and is held, and what is left, for people and programs."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

from tokenmeter.budgets.counting import BEGINNING, END, assumed, is_exact, tally
from tokenmeter.budgets.grants import NO_CAP, Grant
from tokenmeter.budgets.limits import LimitUnknownError
from tokenmeter.budgets.matching import Cap, is_fingerprint, parse_scope, scope_text, value_fits
from tokenmeter.budgets.policy import Unit, amount_of
from tokenmeter.dimensions import SCOPE_FIELDS
from tokenmeter.display import dollars, facts_html, number_text, unit_word
from tokenmeter.errors import ConfigurationError, shown, whose
from tokenmeter.ledger import CounterKey
from tokenmeter.money import divide, multiply
from tokenmeter.pricing import Pricer
from tokenmeter.stores.base import Counter, EntryFilter, Store
from tokenmeter.stores.slots import from_microseconds, to_microseconds
from tokenmeter.texts import is_tag, suggest
from tokenmeter.values import dataclass

#: The limit of a counter, with what was granted: of a cap, scope values and the counter's key.
LimitOf = Callable[[Cap, Mapping[str, str], CounterKey], int]
_KEY_DIMENSIONS = ("api_key_fingerprint", "api_key")
_UNLIMITED = Decimal("Infinity")
_MICROSECOND = timedelta(microseconds=1)
#: How far ahead it is looked, in microseconds: some three thousand years.
_LONGEST = 10**17
#: From so many budgets on that are alike the ledger is read for all of them at once.
_MANY = 8
#: What budgets have in common that differ in whom they name alone.
_Alike = tuple[Unit, frozenset[str], int, int | None, tuple[datetime | None, datetime | None]]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Balance:
    """Where one counter of a budget stands.

    Attributes:
        budget: Name of the budget.
        scope: What the counter belongs to, for example ``{"member": "ada"}``; empty for all calls. An API key is shown
            by its name, but counted by its fingerprint.
        unit: ``usd``, ``tokens``, ``requests`` or ``in_flight``.
        limit: The limit, grants of this window included, in `unit`; infinite for a member without a cap.
        spent: What settled calls have used in this window, in `unit`.
        assumed: How much of it is in no entry: what has no known price yet, at the dearest known one, and what was held
            for calls whose usage nobody knows. Zero in units other than dollars.
        reserved: What calls in flight hold, in `unit`.
        remaining: What is left, ``limit - spent - reserved``; negative when a soft budget is passed.
        window_start: Aware UTC; None for a budget that never resets.
        resets_at: Start of the next window, aware UTC, or the end of the budget itself, where that is before it; None
            when it never resets or ends. For a rate limit: when what was
            used at its busiest is forgotten.
        ends: Whether `resets_at` is the end of the budget itself.
        counts_from: First instant whose calls it counts, aware UTC: the window's start, or that of the budget itself
            where that is after it; None for a budget that counts everything.
        hard: Whether it stops calls.
        limit_known: False where the limit is asked of a function that this process does not have, or that fails, and no
            fixed one stands beside it. No call would pass here, so `limit` is 0.
        rolling: Whether it is a rate limit, whose window is always the last seconds or hours.
    """

    budget: str
    scope: dict[str, str]
    unit: str
    limit: Decimal
    spent: Decimal
    reserved: Decimal
    remaining: Decimal
    window_start: datetime | None
    resets_at: datetime | None
    hard: bool
    limit_known: bool = True
    assumed: Decimal = Decimal(0)
    rolling: bool = False
    ends: bool = False
    counts_from: datetime | None = None

    @property
    def until(self) -> str:
        """What `resets_at` is: ``resets``, or ``ends``."""
        return "ends" if self.ends else "resets"

    def has_passed(self, percent: int, now: datetime) -> bool:
        """Whether so much of the time that it counts is over; never of what has no beginning or end."""
        start, end = self.counts_from, self.resets_at
        return start is not None and end is not None and (now - start) * 100 >= (end - start) * percent

    def full_at(self, now: datetime) -> datetime | None:
        """When it is used up if it goes on as it went since `counts_from`; may lie after `resets_at`.

        None when nothing was spent yet, when it is used up already, and for what has no window, one that goes along, or
        no limit.
        """
        start, end = self.counts_from, self.resets_at
        if self.rolling or start is None or end is None or not start < now <= end or not self.limit.is_finite():
            return None
        if not 0 < self.spent < self.limit:
            return None
        passed = (now - start) // _MICROSECOND
        length = int(divide(multiply(self.limit, passed), self.spent))
        return start + timedelta(microseconds=min(length, _LONGEST))

    def __repr__(self) -> str:
        scope = f" ({whose(self.scope)})" if self.scope else ""
        until = f", {self.until} {self.resets_at:%Y-%m-%d %H:%M} UTC" if self.resets_at else ""
        left = f"{self._left()} left" if self.limit_known else f"{self._amount(self.spent)} spent, limit not known here"
        return f"<Balance {self.budget}{scope}: {left}{until}>"

    def _repr_html_(self) -> str:
        facts = {
            "limit": self._amount(self.limit) if self.limit_known else "not known here",
            "spent": self._amount(self.spent),
            "of it assumed": self._amount(self.assumed) if self.assumed else None,
            "reserved": self._amount(self.reserved),
            "left": self._amount(self.remaining) if self.limit_known else "not known here",
            self.until: f"{self.resets_at:%Y-%m-%d %H:%M} UTC" if self.resets_at else None,
            "stops calls": "yes" if self.hard else "no",
        }
        return facts_html(" ".join((self.budget, *self.scope.values())), facts)

    def _left(self) -> str:
        return f"{self._amount(self.remaining)} of {self._amount(self.limit)}"

    def _amount(self, amount: Decimal) -> str:
        if self.unit == "usd":
            return dollars(amount) if amount.is_finite() else "unlimited"
        return f"{number_text(amount)} {unit_word(amount, self.unit)}" if amount.is_finite() else "unlimited"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values: amounts as decimal strings, instants in ISO 8601; None for what is not known."""
        amounts: dict[str, str | None] = {
            name: f"{getattr(self, name):f}" for name in ("limit", "spent", "assumed", "reserved", "remaining")
        }
        if not self.limit_known:
            amounts["limit"] = amounts["remaining"] = None
        instants = {
            name: None if (moment := getattr(self, name)) is None else moment.isoformat()
            for name in ("window_start", "counts_from", "resets_at")
        }
        return {
            "budget": self.budget,
            "scope": dict(self.scope),
            "unit": self.unit,
            **amounts,
            **instants,
            "ends": self.ends,
            "hard": self.hard,
            "limit_known": self.limit_known,
        }


def check_scope(wanted: Mapping[str, object]) -> None:
    """Refuse what no budget is about: a name mistyped must not be answered with "no budget".

    Raises:
        ConfigurationError: a name is no field of a scope, or a value no text.
    """
    for name, value in wanted.items():
        if name not in SCOPE_FIELDS and not is_tag(name):
            raise ConfigurationError(
                f"No budget is scoped by {shown(name)}; use {', '.join(SCOPE_FIELDS)} or tag:NAME."
                + suggest(name, SCOPE_FIELDS)
            )
        if not isinstance(value, str) or not value:
            raise ConfigurationError(f"{name} must be a text that is not empty, not {shown(value)}.")


def balances(
    caps: Iterable[Cap],
    store: Store,
    pricer: Pricer,
    wanted: Mapping[str, str],
    at: datetime,
    *,
    limit_of: LimitOf,
    named: Callable[[Cap], Iterable[Mapping[str, str]]],
) -> list[Balance]:
    """Where the budgets stand that concern `wanted`. Nothing is written: what no call has counted yet is summed up.

    A budget concerns it when none of its scope fields contradicts it and, unless `wanted` or the budget's own scope
    is empty, at least one field is in both. Where a ``"*"`` is left open, every counter of the window is listed.

    Args:
        caps: The limits in force.
        store: Holds their counters.
        pricer: For tokens whose price is not known.
        wanted: Scope values by field (``member``, ..., ``tag:NAME``).
        at: The instant whose windows are meant.
        limit_of: Says a counter's limit.
        named: Whom a budget's table or grants name, whether or not they have called.
    """
    now = to_microseconds(at)
    chosen = [cap for cap in caps if cap.budget.applies(at) and _concerns(cap.budget.scope, wanted)]
    listed = _listed(store, {cap.counter_name for cap in chosen}) if chosen else {}
    by_key = any("api_key" in cap.budget.scope for cap in chosen)
    names: Mapping[str, str] = store.key_labels() if by_key else {}
    called = wanted.get("api_key")
    keys = None if called is None or called == "*" or not names else {called, *keys_called(store, called)}
    tallies = Tallies(chosen, now, store=store, pricer=pricer)
    beyond = assumed(chosen, now, store=store, pricer=pricer)
    found = [
        _balance(cap, parse_scope(text), counters, limit_of, beyond)
        for cap in chosen
        for text, counters in sorted(_counters(cap, wanted, now, listed, named=named(cap), tallies=tallies).items())
        if keys is None or _is_of(parse_scope(text).get("api_key"), keys, names)
    ]
    for balance in found if names else ():
        balance.scope.update(name_key(balance.scope, names))
    return found


def keys_called(store: Store, name: str) -> set[str]:
    """Fingerprints of the keys that bear a name, or did where none bears it any more; of a fingerprint, itself.

    A key of which the settings hold the name, or a budget was told it, bears it before its first call.
    """
    present = {key for key, label in store.key_labels().items() if name in (key, label)}
    if present:
        return present
    field = _KEY_DIMENSIONS[0] if is_fingerprint(name) else _KEY_DIMENSIONS[1]
    found = store.aggregate([BEGINNING, END], _KEY_DIMENSIONS[:1], EntryFilter(where={field: frozenset({name})}))
    return {fingerprint for (fingerprint,) in (one.group for one in found) if fingerprint is not None}


def _is_of(scope: str | None, keys: Collection[str], names: Mapping[str, str]) -> bool:
    """Whether a counter counts one of these keys: its own, that of a pattern which fits a name, or one of no key."""
    called = {*keys, *(names[key] for key in keys if key in names)}
    return scope is None or scope in keys or any(value_fits(scope, name) for name in called)


def name_key(scope: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, str]:
    """`scope` with the name of the API key that it says by its fingerprint, where the key has one."""
    return {field: labels.get(value, value) if field == "api_key" else value for field, value in scope.items()}


def name_grant(grant: Grant, labels: Mapping[str, str]) -> Grant:
    """`grant` as people and programs are shown it: its API key by the name, as a balance says it."""
    return replace(grant, scope=name_key(grant.scope, labels))


def _listed(store: Store, names: set[str]) -> dict[str, dict[CounterKey, Counter]]:
    """All counters of the named budgets, by name."""
    found: dict[str, dict[CounterKey, Counter]] = {name: {} for name in names}
    for key, counter in store.all_counters():
        if key.budget in found:
            found[key.budget][key] = counter
    return found


def _concerns(scope: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    if not scope or not wanted:
        return True
    shared = scope.keys() & wanted.keys()
    return bool(shared) and all(name == "api_key" or value_fits(scope[name], wanted[name]) for name in shared)


def _counters(
    cap: Cap,
    wanted: Mapping[str, str],
    now: int,
    listed: Mapping[str, Mapping[CounterKey, Counter]],
    *,
    named: Iterable[Mapping[str, str]],
    tallies: Tallies,
) -> dict[str, dict[tuple[CounterKey, int | None], Counter]]:
    """Per scope text the counters of the windows around `now`."""
    scope = {
        name: wanted[name] if value == "*" and name in wanted and name != "api_key" else value
        for name, value in cap.budget.scope.items()
    }
    spans = cap.spans(now)
    known: dict[int, dict[str, Counter]] = {start: {} for start, _ in spans}
    for key, counter in listed[cap.counter_name].items():
        if key.window_start in known and _covers(scope, parse_scope(key.scope)):
            known[key.window_start][key.scope] = counter
    for start, end in spans:
        if start < cap.counted_since_us and cap.counts:
            for text, amount in tallies.tally(cap, scope, start, end).items():
                opened = known[start].get(text)
                if opened is None or not (opened.settled or opened.reserved):
                    known[start][text] = Counter(amount)
    texts = {text for counters in known.values() for text, one in counters.items() if one.settled or one.reserved}
    texts.update(scope_text(one) for one in named if _covers(scope, one))
    if not any(value == "*" or name == "api_key" for name, value in scope.items()):
        texts.add(scope_text(scope))
    return {
        text: {
            (CounterKey(cap.counter_name, text, start), end): known[start].get(text, Counter()) for start, end in spans
        }
        for text in texts
    }


def _covers(scope: Mapping[str, str], found: Mapping[str, str]) -> bool:
    return all(name == "api_key" or value in ("*", found.get(name)) for name, value in scope.items())


class Tallies:
    """`tally` for many budgets at one moment: those that differ in nothing but whom they name are read at once.

    Args:
        caps: The budgets' limits.
        now_us: The moment whose windows are meant, microseconds since the epoch.
        store: The ledger.
        pricer: See `tally`.
    """

    def __init__(self, caps: Iterable[Cap], now_us: int, *, store: Store, pricer: Pricer) -> None:
        self._tally = partial(tally, store=store, pricer=pricer)
        self._found: dict[_Alike, dict[str, int]] = {}
        self._many = Counts(
            _alike(cap, cap.budget.scope, start, end)
            for cap in caps
            for start, end in cap.spans(now_us)
            if start < cap.counted_since_us
        )

    def tally(self, cap: Cap, scope: Mapping[str, str], start_us: int, end_us: int | None) -> dict[str, int]:
        """See `tally`."""
        alike = _alike(cap, scope, start_us, end_us)
        if alike is None or self._many[alike] < _MANY:
            return self._tally(cap, scope, start_us, end_us)
        if alike not in self._found:
            self._found[alike] = self._tally(cap, dict.fromkeys(scope, "*"), start_us, end_us)
        text, amounts = scope_text(scope), self._found[alike]
        return {text: amounts[text]} if text in amounts else {}


def _alike(cap: Cap, scope: Mapping[str, str], start_us: int, end_us: int | None) -> _Alike | None:
    if not scope or not all(name != "api_key" and is_exact(name, value) for name, value in scope.items()):
        return None
    return cap.unit, frozenset(scope), start_us, end_us, cap.budget.effective


def _balance(
    cap: Cap,
    scope: dict[str, str],
    counters: Mapping[tuple[CounterKey, int | None], Counter],
    limit_of: LimitOf,
    beyond: Mapping[CounterKey, int],
) -> Balance:
    # Of windows that are equally full the last one: what they share is forgotten with it.
    (key, end), counter = max(counters.items(), key=lambda pair: (_taken(pair[1]), pair[0][1] or 0))
    known = True
    try:
        limit = limit_of(cap, scope, key)
    except LimitUnknownError:
        limit, known = 0, False
    unlimited, until = limit >= NO_CAP, cap.ends_first(end)
    return Balance(
        budget=cap.budget.name,
        scope=scope,
        unit=cap.unit,
        limit=_UNLIMITED if unlimited else amount_of(cap.unit, limit),
        spent=amount_of(cap.unit, counter.settled),
        reserved=amount_of(cap.unit, counter.reserved),
        remaining=_UNLIMITED if unlimited else amount_of(cap.unit, limit - _taken(counter)),
        window_start=from_microseconds(key.window_start) if end is not None else None,
        resets_at=None if until is None else from_microseconds(until),
        ends=cap.ends_with(end),
        counts_from=cap.counts_from(None if end is None else key.window_start),
        hard=cap.budget.hard,
        limit_known=known,
        assumed=amount_of(cap.unit, beyond.get(key, 0)),
        rolling=cap.rolling,
    )


def _taken(counter: Counter) -> int:
    return counter.settled + counter.reserved
