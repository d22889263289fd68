"""Where budgets stand, and whether their counters agree with the ledger.

The ledger is the truth: what a counter should hold is worked out from its entries; a counter only says it quickly.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tokenmeter.budgets.bounds import picodollars
from tokenmeter.budgets.definitions import NO_CAP
from tokenmeter.budgets.holds import TAKEN_BACK
from tokenmeter.budgets.matching import Cap, Matcher, Subject, parse_scope, scope_text, value_fits
from tokenmeter.budgets.policy import Unit, amount_of
from tokenmeter.budgets.windows import from_microseconds, microseconds
from tokenmeter.dimensions import INPUT_METERS, OUTPUT_METERS
from tokenmeter.display import dollars, facts_html, plain
from tokenmeter.errors import StoreError
from tokenmeter.ledger import CounterKey, Entry
from tokenmeter.money import EXACT, ZERO, divide, multiply, quantize, to_picodollars
from tokenmeter.pricing import Pricer
from tokenmeter.stores.base import Aggregate, Counter, EntryFilter, Fault, Store

#: The limit of a counter, with what was granted: of a cap, scope values and the counter's key.
LimitOf = Callable[[Cap, Mapping[str, str], CounterKey], int]
_UNLIMITED = Decimal("Infinity")
_MICROSECOND = timedelta(microseconds=1)
#: How far ahead it is looked, in microseconds: some three thousand years.
_LONGEST = 10**17


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
        reserved: What calls in flight hold, in `unit`.
        remaining: What is left, ``limit - spent - reserved``; negative when a soft budget is passed.
        window_start: Aware UTC; None for a budget that never resets.
        resets_at: Start of the next window, aware UTC; None when it never resets. For a rate limit: when what was
            used at its busiest is forgotten.
        hard: Whether it stops calls.
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

    def full_at(self, now: datetime) -> datetime | None:
        """When it is used up if its window goes on as it went until `now`; may lie after `resets_at`.

        None when nothing was spent yet, when it is used up already, and for what has no window or no limit.
        """
        start, end = self.window_start, self.resets_at
        if start is None or end is None or not start < now <= end or not self.limit.is_finite():
            return None
        if not 0 < self.spent < self.limit:
            return None
        passed = (now - start) // _MICROSECOND
        length = int(divide(multiply(self.limit, passed), self.spent))
        return start + timedelta(microseconds=min(length, _LONGEST))

    def __repr__(self) -> str:
        whose = f" ({', '.join(f'{name}={value}' for name, value in self.scope.items())})" if self.scope else ""
        until = f", resets {self.resets_at:%Y-%m-%d %H:%M} UTC" if self.resets_at else ""
        return f"<Balance {self.budget}{whose}: {self._left()} left{until}>"

    def _repr_html_(self) -> str:
        facts = {
            "limit": self._amount(self.limit),
            "spent": self._amount(self.spent),
            "reserved": self._amount(self.reserved),
            "left": self._amount(self.remaining),
            "resets": f"{self.resets_at:%Y-%m-%d %H:%M} UTC" if self.resets_at else None,
            "stops calls": "yes" if self.hard else "no",
        }
        return facts_html(" ".join((self.budget, *self.scope.values())), facts)

    def _left(self) -> str:
        return f"{self._amount(self.remaining)} of {self._amount(self.limit)}"

    def _amount(self, amount: Decimal) -> str:
        if self.unit == "usd":
            return dollars(amount) if amount.is_finite() else "unlimited"
        return f"{plain(amount)} {self.unit.replace('_', ' ')}" if amount.is_finite() else "unlimited"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values: amounts as decimal strings, instants in ISO 8601."""
        amounts = {name: f"{getattr(self, name):f}" for name in ("limit", "spent", "reserved", "remaining")}
        instants = {
            name: None if (moment := getattr(self, name)) is None else moment.isoformat()
            for name in ("window_start", "resets_at")
        }
        return {
            "budget": self.budget,
            "scope": dict(self.scope),
            "unit": self.unit,
            **amounts,
            **instants,
            "hard": self.hard,
        }


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
    now = microseconds(at)
    chosen = [cap for cap in caps if cap.budget.applies(at) and _concerns(cap.budget.scope, wanted)]
    listed = _listed(store, {cap.counter_name for cap in chosen}) if chosen else {}
    names = key_names(store) if any("api_key" in cap.budget.scope for cap in chosen) else {}
    return [
        _balance(cap, parse_scope(text), counters, limit_of, names)
        for cap in chosen
        for text, counters in sorted(
            _counters(cap, wanted, now, listed, named=named(cap), store=store, pricer=pricer).items()
        )
        if _is_wanted_key(parse_scope(text).get("api_key"), wanted.get("api_key"), names)
    ]


def key_names(store: Store) -> dict[str, list[str]]:
    """Per fingerprint the names that the ledger's entries give an API key: aliases first, then ``...last4``."""
    found: dict[str, list[str]] = {}
    for one in store.aggregate([BEGINNING, END], ("api_key_fingerprint", "api_key")):
        fingerprint, name = one.group
        if fingerprint is not None and name is not None:
            found.setdefault(fingerprint, []).append(name)
    return {fingerprint: sorted(names, key=lambda name: name.startswith("...")) for fingerprint, names in found.items()}


def _shown(name: str, value: str, names: Mapping[str, Sequence[str]]) -> str:
    return next(iter(names.get(value, ())), value) if name == "api_key" else value


def _is_wanted_key(found: str | None, wanted: str | None, names: Mapping[str, Sequence[str]]) -> bool:
    return wanted is None or found is None or wanted in {"*", found, *names.get(found, ())}


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
    store: Store,
    pricer: Pricer,
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
            for text, amount in tally(cap, scope, start, end, store=store, pricer=pricer).items():
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


def _balance(
    cap: Cap,
    scope: dict[str, str],
    counters: Mapping[tuple[CounterKey, int | None], Counter],
    limit_of: LimitOf,
    names: Mapping[str, Sequence[str]],
) -> Balance:
    (key, end), counter = max(counters.items(), key=lambda pair: _taken(pair[1]))
    try:
        limit = limit_of(cap, scope, key)
    except StoreError:  # a limit function that this process does not have
        limit = 0
    unlimited = limit >= NO_CAP
    return Balance(
        budget=cap.budget.name,
        scope={name: _shown(name, value, names) for name, value in scope.items()},
        unit=cap.unit,
        limit=_UNLIMITED if unlimited else amount_of(cap.unit, limit),
        spent=amount_of(cap.unit, counter.settled),
        reserved=amount_of(cap.unit, counter.reserved),
        remaining=_UNLIMITED if unlimited else amount_of(cap.unit, limit - _taken(counter)),
        window_start=from_microseconds(key.window_start) if end is not None else None,
        resets_at=None if end is None else from_microseconds(end),
        hard=cap.budget.hard,
    )


def _taken(counter: Counter) -> int:
    return counter.settled + counter.reserved


def audit(
    caps: Mapping[str, Cap], store: Store, pricer: Pricer, *, now: datetime, repair: bool = False
) -> tuple[Fault, ...]:
    """Counters of budgets in force that differ from the ledger.

    A counter that moves while the ledger is read is not judged, nor are windows that nobody counted: a budget of today
    has no counters of last month.

    Args:
        caps: The limits in force, by their counters' name.
        store: Their ledger and counters.
        pricer: For tokens whose price is not known.
        now: Windows of rate limits that ended before are left alone.
        repair: Set the counters that differ to what the ledger says.

    Returns:
        One fault of kind ``counter`` for each that differs (before the repair).
    """
    moment = microseconds(now)
    before = _settled(caps, store)
    due = {
        key: _due(caps[key.budget], key, store, pricer) for key in before if not _is_over(caps[key.budget], key, moment)
    }
    after = _settled(caps, store)
    wrong = sorted(
        key for key in due if before[key] == after.get(key) and not _agree(caps[key.budget], key, before, due)
    )
    if repair and wrong:
        store.set_counters({key: due[key] for key in wrong})
    return tuple(_fault(caps[key.budget], key, before[key], due[key]) for key in wrong)


def _settled(caps: Mapping[str, Cap], store: Store) -> dict[CounterKey, int]:
    return {
        key: counter.settled for key, counter in store.all_counters() if key.budget in caps and caps[key.budget].counts
    }


def _agree(cap: Cap, key: CounterKey, held: Mapping[CounterKey, int], due: Mapping[CounterKey, int]) -> bool:
    """Whether counter and ledger agree. One that nobody opened yet says nothing of a window before its budget."""
    return held[key] == due[key] or (held[key] == 0 and key.window_start < cap.counted_since_us)


def _due(cap: Cap, key: CounterKey, store: Store, pricer: Pricer) -> int:
    end = next((end for start, end in cap.spans(key.window_start) if start == key.window_start), None)
    return count(cap, parse_scope(key.scope), key.window_start, end, store=store, pricer=pricer)


def _is_over(cap: Cap, key: CounterKey, now: int) -> bool:
    return cap.rolling and key.window_start < cap.spans(now)[0][0]


def _fault(cap: Cap, key: CounterKey, held: int, due: int) -> Fault:
    where = f"{key.budget} {key.scope or 'all'} {from_microseconds(key.window_start):%Y-%m-%dT%H:%MZ}"
    detail = f"the counter says {amount_of(cap.unit, held)}, the ledger {amount_of(cap.unit, due)}"
    return Fault("counter", where, detail)


#: Scope field -> the dimensions that tell it, the first that is set: a model budget goes by the name the caller used. A
#: key is its fingerprint; its names are matched, too. Every other field is a dimension of its own.
_DIMENSIONS = {"model": ("request_model", "model"), "api_key": ("api_key_fingerprint", "api_key")}
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
_TOKENS = frozenset((*INPUT_METERS, *OUTPUT_METERS))
#: The flag of an answer whose usage nobody knows, and what begins the flags that say what was held for it.
UNKNOWN_USAGE = "usage_unknown"
_HELD = "held_"
#: From before any entry until after all of them.
BEGINNING, END = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


def spent_by(entry: Entry, unit: Unit, pricer: Pricer) -> int:
    """What `entry` adds to a counter; tokens without a price count at the dearest known rate, never at nothing."""
    held = _held(entry, unit)
    if held is not None:
        return held
    if unit == "usd":
        cost = entry.billed_cost or ZERO
        if entry.cost_source == "unpriced" or entry.kind == "correction":
            cost = EXACT.add(cost, _dearest(entry, pricer))
        return picodollars(cost)
    back = TAKEN_BACK in entry.flags
    if entry.kind != "usage" and not back:  # any other correction puts a cost right, not a use
        return 0
    if unit == "tokens":
        return entry.usage.total_tokens
    return -1 if back else 1


def with_held(entry: Entry, claims: Iterable[tuple[Unit, int]]) -> Entry:
    """`entry` with what was held for it, where nobody knows what it used: that counts, never nothing."""
    if UNKNOWN_USAGE not in entry.flags:
        return entry
    most: dict[Unit, int] = {}
    for unit, amount in claims:
        most[unit] = max(amount, most.get(unit, 0))
    flags = {*entry.flags, *(f"{_HELD}{unit}={amount}" for unit, amount in most.items() if unit in {"usd", "tokens"})}
    return replace(entry, flags=tuple(sorted(flags)))


def _held(entry: Entry, unit: Unit) -> int | None:
    if UNKNOWN_USAGE not in entry.flags or unit not in {"usd", "tokens"}:
        return None
    prefix = f"{_HELD}{unit}="
    return next((int(flag.removeprefix(prefix)) for flag in entry.flags if flag.startswith(prefix)), None)


def _dearest(entry: Entry, pricer: Pricer) -> Decimal:
    """What the unpriced tokens of `entry` cost at the dearest known rates of its provider.

    A correction that prices them later takes their unpriced lines back, and with them this estimate.
    """
    if all(charge.billed_cost is not None for charge in entry.charges):
        return ZERO
    rates = pricer.dearest_known(
        provider=entry.provider, at=entry.occurred_at, api_key=entry.api_key, attribution=entry.attribution
    )
    cost = ZERO
    for charge in entry.charges:
        if charge.billed_cost is None and charge.unit == "Tokens":
            rate = rates.output if charge.sku_meter in OUTPUT_METERS else rates.input
            cost = EXACT.add(cost, EXACT.multiply(rate or ZERO, charge.quantity))
    return quantize(cost)


def count(
    cap: Cap, scope: Mapping[str, str], start_us: int, end_us: int | None, *, store: Store, pricer: Pricer
) -> int:
    """What one counter should hold for ``[start, end)``.

    Raises:
        StoreUnavailableError: the ledger cannot be read.
    """
    return tally(cap, scope, start_us, end_us, store=store, pricer=pricer).get(scope_text(scope), 0)


def tally(
    cap: Cap, scope: Mapping[str, str], start_us: int, end_us: int | None, *, store: Store, pricer: Pricer
) -> dict[str, int]:
    """What the counters of `cap` should hold for ``[start, end)``: scope text -> amount.

    Args:
        cap: The budget's limit.
        scope: Scope values; a field left at ``"*"`` is counted per value.
        start_us: Microseconds since the epoch.
        end_us: First instant that counts no more; None = never.
        store: The ledger.
        pricer: For tokens whose price is not known.
    """
    starts, ends = cap.budget.effective
    since, until = from_microseconds(start_us), END if end_us is None else from_microseconds(end_us)
    since, until = max(since, starts or since), min(until, ends or until)
    if since >= until or not cap.counts:
        return {}
    sums: defaultdict[str, int] = defaultdict(int)
    for text, amount in _counted(cap, scope, since, until, store=store, pricer=pricer):
        sums[text] += amount
    return {text: amount for text, amount in sums.items() if amount}


def _counted(
    cap: Cap, scope: Mapping[str, str], since: datetime, until: datetime, *, store: Store, pricer: Pricer
) -> Iterator[tuple[str, int]]:
    exact = {name: value for name, value in scope.items() if _is_exact(name, value)}
    where = {_DIMENSIONS.get(name, (name,))[0]: frozenset[str | None]({value}) for name, value in exact.items()}
    others = [(name, _DIMENSIONS.get(name, (name,))) for name in scope if name not in exact]
    by = [dimension for _, dimensions in others for dimension in dimensions]
    for found in store.aggregate([since, until], [*by, "kind"], EntryFilter(where=where)):
        *group, kind = found.group
        values = _values(scope, others, dict(zip(by, group, strict=True)))
        if values is not None:
            yield scope_text({**scope, **values}), _amount(cap.unit, found, kind)
    # What no sum tells: tokens without a price, and estimates that were taken back.
    for more in ({"cost_source": frozenset[str | None]({"unpriced"})}, {"kind": frozenset[str | None]({"correction"})}):
        for entry in store.entries(EntryFilter(since=since, until=until, where=where | more)):
            matched = Matcher(scope)(Subject.of_entry(entry))
            if matched is not None and ("kind" in more or entry.kind != "correction"):
                yield scope_text(matched), spent_by(entry, cap.unit, pricer) - _summed(entry, cap.unit)


def _is_exact(name: str, value: str) -> bool:
    """Whether a condition can be put to the store as it is."""
    if name == "api_key":
        return _FINGERPRINT.fullmatch(value) is not None
    return name != "model" and "*" not in value


def _values(
    scope: Mapping[str, str], others: Sequence[tuple[str, Sequence[str]]], group: Mapping[str, str | None]
) -> dict[str, str] | None:
    """A group's values of the scope fields that no filter has settled; None when it does not belong to the scope."""
    found: dict[str, str] = {}
    for name, dimensions in others:
        wanted, told = scope[name], [value for each in dimensions if (value := group[each]) is not None]
        if not told:
            return None
        names = told if name == "api_key" else told[:1]
        if wanted == "*" or (name == "api_key" and "*" not in wanted and wanted in names):
            found[name] = told[0]
        elif any(value_fits(wanted, value) for value in names):
            found[name] = wanted
        else:
            return None
    return found


def _summed(entry: Entry, unit: Unit) -> int:
    """What the sums say of one entry."""
    if unit == "usd":
        return picodollars(entry.billed_cost or ZERO)
    if entry.kind != "usage":
        return 0
    return entry.usage.total_tokens if unit == "tokens" else 1


def _amount(unit: Unit, found: Aggregate, kind: str | None) -> int:
    if unit == "usd":
        return to_picodollars(found.billed_cost)
    if kind != "usage":
        return 0
    if unit == "requests":
        return found.requests
    return sum(int(quantity) for meter, quantity in found.quantities.items() if meter in _TOKENS)
