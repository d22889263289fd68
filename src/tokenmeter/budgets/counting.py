"""What counters hold is what the ledger says: how it is added up, how a new counter begins, what an audit finds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial

from tokenmeter.budgets.bounds import picodollars
from tokenmeter.budgets.holds import Fault
from tokenmeter.budgets.matching import (
    Cap,
    CapIndex,
    Matcher,
    Subject,
    is_fingerprint,
    parse_scope,
    scope_text,
    value_fits,
)
from tokenmeter.budgets.policy import IN_FLIGHT, Unit, amount_of
from tokenmeter.dimensions import COUNTED_AS, INPUT_METERS, OUTPUT_METERS, TOOL_OPERATION
from tokenmeter.errors import StoreBusyError
from tokenmeter.ledger import CounterKey, Entry, Reservation
from tokenmeter.money import ZERO, to_picodollars
from tokenmeter.pricing import Pricer
from tokenmeter.pricing.corrections import ASSUMED, TAKEN_BACK, assume, assumed_for, lacks_price
from tokenmeter.processes import OnceForAll, may_wait
from tokenmeter.stores.base import Aggregate, EntryFilter, Store
from tokenmeter.stores.base import Fault as CounterFault
from tokenmeter.stores.slots import from_microseconds, to_microseconds
from tokenmeter.usage import Usage

#: Scope field -> the dimensions that tell it, the first that is set: a model budget goes by the name the caller used. A
#: key is its fingerprint; its names are matched, too. Every other field is a dimension of its own.
_DIMENSIONS = {"model": ("request_model", "model"), "api_key": ("api_key_fingerprint", "api_key")}
_TOKENS = frozenset((*INPUT_METERS, *OUTPUT_METERS))
#: The flag of an answer whose usage nobody knows, and what begins the flags that say what was held for it.
UNKNOWN_USAGE = "usage_unknown"
#: Flag of a call that nobody answered.
BILLING_UNKNOWN = "billing_unknown"
_HELD = "held_"
#: From before any entry until after all of them.
BEGINNING, END = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
_MOST_OPENED = 65_536


def spent_by(entry: Entry, unit: Unit, pricer: Pricer | None) -> int:
    """What `entry` adds to a counter; tokens without a price count as much as it says, never nothing.

    Where it does not say, they count at the dearest rate that `pricer` knows; without one they are left out, which is
    what is certain, whichever prices and terms somebody went by.
    """
    back = TAKEN_BACK in entry.flags
    held = _held(entry, unit)
    if held is not None:
        return -held if back else held
    if unit == "usd":
        counts = assumed_for(entry)
        if counts is None and pricer is not None and (entry.cost_source == "unpriced" or entry.kind == "correction"):
            counts = assume(entry, pricer)
        return picodollars(entry.billed_cost or ZERO) + (counts or 0)
    if entry.kind not in COUNTED_AS and not back:  # any other correction puts a cost right, not a use
        return 0
    if unit == "tokens":
        return entry.usage.total_tokens
    return -1 if back and entry.operation != TOOL_OPERATION else entry.requests


def with_held(entry: Entry, reservation: Reservation | None, caps: Mapping[str, Cap]) -> Entry:
    """`entry`; where nobody knows what it used, with what was held for it: that counts, never nothing.

    Of what has a stated bill and no counts (a video) the bill counts.
    """
    if reservation is None or UNKNOWN_USAGE not in entry.flags or entry.cost_source != "unpriced":
        return entry
    most: dict[Unit, int] = {}
    for claim in reservation.claims:
        cap = caps.get(claim.key.budget)
        if cap is not None and cap.unit in {"usd", "tokens"}:
            most[cap.unit] = max(claim.amount, most.get(cap.unit, 0))
    flags = {*entry.flags, *(f"{_HELD}{unit}={amount}" for unit, amount in most.items())}
    if "usd" in most and lacks_price(entry.charges):
        flags.add(f"{ASSUMED}0")  # what was held counts in its place
    return replace(entry, flags=tuple(sorted(flags)))


def passes_bound(reservation: Reservation, usage: Usage, billed_cost: Decimal | None, caps: Mapping[str, Cap]) -> bool:
    """Whether a call used more than the strict bound that was held for it."""
    spent: dict[Unit, int] = {
        "usd": picodollars(billed_cost or ZERO),
        "tokens": usage.total_tokens,
        "requests": 1,
        IN_FLIGHT: 1,
    }
    held = ((claim.amount, caps.get(claim.key.budget)) for claim in reservation.claims)
    return any(cap is not None and amount < spent[cap.unit] and cap.strict for amount, cap in held)


def _held(entry: Entry, unit: Unit) -> int | None:
    if UNKNOWN_USAGE not in entry.flags or unit not in {"usd", "tokens"}:
        return None
    prefix = f"{_HELD}{unit}="
    return next((int(flag.removeprefix(prefix)) for flag in entry.flags if flag.startswith(prefix)), None)


def count(
    cap: Cap, scope: Mapping[str, str], start_us: int, end_us: int | None, *, store: Store, pricer: Pricer | None
) -> int:
    """What one counter should hold for ``[start, end)``.

    Raises:
        StoreUnavailableError: the ledger cannot be read.
    """
    return tally(cap, scope, start_us, end_us, store=store, pricer=pricer).get(scope_text(scope), 0)


def tally(
    cap: Cap, scope: Mapping[str, str], start_us: int, end_us: int | None, *, store: Store, pricer: Pricer | None
) -> dict[str, int]:
    """What the counters of `cap` should hold for ``[start, end)``: scope text -> amount, also where all was taken back.

    Args:
        cap: The budget's limit.
        scope: Scope values; a field left at ``"*"`` is counted per value.
        start_us: Microseconds since the epoch.
        end_us: First instant that counts no more; None = never.
        store: The ledger.
        pricer: For tokens without a price whose entry does not say what they count as; None = those are left out.
    """
    named = {name: value for name, value in scope.items() if _is_name(cap, name, value)}
    scope = {**scope, **dict.fromkeys(named, "*")}
    starts, ends = cap.budget.effective
    since, until = from_microseconds(start_us), END if end_us is None else from_microseconds(end_us)
    since, until = max(since, starts or since), min(until, ends or until)
    if since >= until or not cap.counts:
        return {}
    sums: defaultdict[str, int] = defaultdict(int)
    for text, amount in _counted(cap, scope, since, until, store=store, pricer=pricer):
        sums[text] += amount
    return {text: amount for text, amount in sums.items() if named.items() <= parse_scope(text).items()}


def _is_name(cap: Cap, name: str, value: str) -> bool:
    """Whether a value with a star in it is what somebody is called, and no pattern, since each value has a counter.

    As a condition it would be read as a pattern; so all values are counted, and it is picked.
    """
    return "*" in value and value != "*" and cap.budget.scope.get(name) == "*"


def _counted(
    cap: Cap, scope: Mapping[str, str], since: datetime, until: datetime, *, store: Store, pricer: Pricer | None
) -> Iterator[tuple[str, int]]:
    exact = {name: value for name, value in scope.items() if is_exact(name, value)}
    where = {_DIMENSIONS.get(name, (name,))[0]: frozenset[str | None]({value}) for name, value in exact.items()}
    others = [(name, _DIMENSIONS.get(name, (name,))) for name in scope if name not in exact]
    by = [dimension for _, dimensions in others for dimension in dimensions]
    for found in store.aggregate([since, until], [*by, "kind"], EntryFilter(where=where)):
        *group, kind = found.group
        values = _values(scope, others, dict(zip(by, group, strict=True)))
        if values is not None:
            yield scope_text({**scope, **values}), _amount(cap.unit, found, kind)
    for entry in _beyond_sums(since, until, where, store):
        matched = Matcher(scope)(Subject.of_entry(entry))
        if matched is not None:
            yield scope_text(matched), spent_by(entry, cap.unit, pricer) - _summed(entry, cap.unit)


def _beyond_sums(
    since: datetime, until: datetime, where: Mapping[str, frozenset[str | None]], store: Store
) -> Iterator[Entry]:
    """Entries that may count otherwise than sums tell: tokens without a price, and estimates that were taken back."""
    for more in ({"cost_source": frozenset[str | None]({"unpriced"})}, {"kind": frozenset[str | None]({"correction"})}):
        for entry in store.entries(EntryFilter(since=since, until=until, where={**where, **more})):
            if "kind" in more or entry.kind != "correction":
                yield entry


def assumed(caps: Iterable[Cap], now_us: int, *, store: Store, pricer: Pricer) -> dict[CounterKey, int]:
    """What counters of dollars hold beyond what entries cost, in the windows of an instant.

    That is what has no known price, at the dearest known one, and what was held for calls whose usage nobody knows.
    """
    counting = [cap for cap in caps if cap.unit == "usd"]
    spans = [span for cap in counting for span in cap.spans(now_us)]
    found: defaultdict[CounterKey, int] = defaultdict(int)
    if not spans:
        return found
    since = from_microseconds(min(start for start, _ in spans))
    unpriced = EntryFilter(where={"cost_source": frozenset[str | None]({"unpriced"})})
    if not store.aggregate([since, END], (), unpriced):  # the sums tell that at once
        return found
    index, here = CapIndex(counting), {(cap.counter_name, start) for cap in counting for start, _ in cap.spans(now_us)}
    for entry in _beyond_sums(since, END, {}, store):
        amount = spent_by(entry, "usd", pricer) - _summed(entry, "usd")
        for cap, scope in index.find(Subject.of_entry(entry), entry.occurred_at) if amount else ():
            for key, _ in cap.keys(scope, to_microseconds(entry.occurred_at)):
                if (key.budget, key.window_start) in here:
                    found[key] += amount
    return found


def is_exact(name: str, value: str) -> bool:
    """Whether a condition can be put to the store as it is."""
    if name == "api_key":
        return is_fingerprint(value)
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
    if entry.kind not in COUNTED_AS:
        return 0
    return entry.usage.total_tokens if unit == "tokens" else entry.requests


def _amount(unit: Unit, found: Aggregate, kind: str | None) -> int:
    if unit == "usd":
        return to_picodollars(found.billed_cost)
    if kind not in COUNTED_AS:
        return 0
    if unit == "requests":
        return found.requests
    return sum(int(quantity) for meter, quantity in found.quantities.items() if meter in _TOKENS)


class Openings:
    """How counters of windows begin that are older than their budget: with what the ledger holds already, put in once.

    Args:
        store: The ledger and its counters.
        pricer: For tokens whose price is not known.
        fault: Told of what must not reach a caller.
    """

    def __init__(self, store: Store, pricer: Pricer, fault: Fault) -> None:
        self._store = store
        self._pricer = pricer
        self._fault = fault
        self._opened: set[CounterKey] = set()
        #: Counters that are being opened: of a thousand calls that come at once one looks them up, the others wait.
        self._turns: dict[tuple[CounterKey, ...], OnceForAll] = {}

    def open(self, cap: Cap, scope: Mapping[str, str], keys: Iterable[tuple[CounterKey, int | None]]) -> None:
        """Open the counters `keys` of `cap` and `scope`, where that is due.

        Raises:
            StoreBusyError: the ledger has to be read first, and this thread must not wait.
            StoreUnavailableError: it cannot be read.
        """
        new = [(key, end) for key, end in keys if self._is_due(cap, key)]
        if not new:
            return
        if not may_wait():
            raise StoreBusyError("A new budget has to be looked up in the ledger first; call again from a thread.")
        name = tuple(self._named(cap, key) for key, _ in new)
        try:
            self._turns.setdefault(name, OnceForAll()).run(partial(self._open, cap, scope, new))
        finally:
            self._turns.pop(name, None)

    def _open(self, cap: Cap, scope: Mapping[str, str], new: Sequence[tuple[CounterKey, int | None]]) -> None:
        if cap.opens_by_counter:
            known = self._store.counters([key for key, _ in new])
            for key, end in new:
                if not (known[key].settled or known[key].reserved):
                    self._fill(cap, scope, key.window_start, end)
        else:
            marks = {key: _mark(key) for key, _ in new}
            done = self._store.counters(list(marks.values()))
            for key, end in new:
                if not done[marks[key]].settled:
                    self._fill(cap, cap.budget.scope, key.window_start, end)
                    self._store.open_counters({marks[key]: (1, end)})
        if len(self._opened) >= _MOST_OPENED:
            self._opened.clear()
        self._opened.update(self._named(cap, key) for key, _ in new)

    def open_quietly(self, cap: Cap, scope: Mapping[str, str], keys: Iterable[tuple[CounterKey, int | None]]) -> None:
        """As `open`, for an entry, which is recorded whatever comes of it.

        Raises:
            StoreBusyError: the ledger has to be read first, and this thread must not wait.
        """
        try:
            self.open(cap, scope, keys)
        except StoreBusyError:
            raise
        except Exception as error:  # noqa: BLE001 - the entry is recorded
            self._fault("look up a new budget in the ledger", error)

    def _is_due(self, cap: Cap, key: CounterKey) -> bool:
        if key.window_start >= cap.counted_since_us or not cap.counts:
            return False
        return self._named(cap, key) not in self._opened

    @staticmethod
    def _named(cap: Cap, key: CounterKey) -> CounterKey:
        """What is open once this counter is."""
        return key if cap.opens_by_counter else _mark(key)

    def _fill(self, cap: Cap, scope: Mapping[str, str], start: int, end: int | None) -> None:
        """Give the counters of one window what the ledger holds, each if it never moved."""
        sums = tally(cap, scope, start, end, store=self._store, pricer=self._pricer)
        spent = {CounterKey(cap.counter_name, text, start): (amount, end) for text, amount in sums.items() if amount}
        if spent:
            self._store.open_counters(spent)


def _mark(key: CounterKey) -> CounterKey:
    """The counter that says that a window's counters were filled from the ledger, all at once."""
    return CounterKey(f"{key.budget} opened", "", key.window_start)


def audit(
    caps: Mapping[str, Cap], store: Store, pricer: Pricer, *, now: datetime, repair: bool = False
) -> tuple[CounterFault, ...]:
    """Counters of budgets in force that differ from the ledger.

    A counter that moves while the ledger is read is not judged, nor are windows that nobody counted (a budget of today
    has no counters of last month), nor the counter of a key that bears another name by now than its budget's. One that
    is not there limits nothing: it is missed where its window runs. Where an entry does not say what counted for tokens
    without a price, that went by the prices and terms of who recorded it, and only what is certain must be there.

    Args:
        caps: The limits in force, by their counters' name.
        store: Their ledger and counters.
        pricer: For tokens whose price is not known.
        now: Windows of rate limits that ended before are left alone.
        repair: Put the counters that differ right. What others spend meanwhile stays counted.

    Returns:
        One fault of kind ``counter`` for each that differs (before the repair).
    """
    moment = to_microseconds(now)
    before = _settled(caps, store)
    due = {
        key: _due(cap, key, store, pricer)
        for key in before
        if not _is_over(cap := caps[key.budget], key, moment) and cap.goes_on(parse_scope(key.scope))
    }
    after = _settled(caps, store)
    differing = {
        key
        for key in due
        if before[key] == after.get(key)
        and not _agree(caps[key.budget], key, before, due)
        and not _is_assumed(caps[key.budget], key, before[key], store, pricer)
    }
    due |= (gone := _missing(caps, store, pricer, moment))
    wrong = sorted(differing | gone.keys())
    if repair and wrong:
        store.recount(
            lambda: {key: (_due(caps[key.budget], key, store, pricer), _end(caps[key.budget], key)) for key in wrong}
        )
    return tuple(_fault(caps[key.budget], key, before.get(key), due[key]) for key in wrong)


def _missing(caps: Mapping[str, Cap], store: Store, pricer: Pricer, now_us: int) -> dict[CounterKey, int]:
    """What counters of the running windows should hold that are not there, though all that they hold was counted."""
    due: dict[CounterKey, int] = {}
    opened = {key for key, _ in store.all_counters() if key.budget not in caps}
    for cap in caps.values():
        # What a key spent under another name is in a counter of that one.
        for start, end in cap.spans(now_us) if cap.counts and not cap.opens_by_counter else ():
            if start >= cap.counted_since_us or _mark(CounterKey(cap.counter_name, "", start)) in opened:
                sums = tally(cap, cap.budget.scope, start, end, store=store, pricer=pricer)
                due |= {CounterKey(cap.counter_name, text, start): amount for text, amount in sums.items()}
    there = {key for key, _ in store.all_counters()} if due else set[CounterKey]()
    return {key: amount for key, amount in due.items() if amount and key not in there}


def _settled(caps: Mapping[str, Cap], store: Store) -> dict[CounterKey, int]:
    return {
        key: counter.settled for key, counter in store.all_counters() if key.budget in caps and caps[key.budget].counts
    }


def _agree(cap: Cap, key: CounterKey, held: Mapping[CounterKey, int], due: Mapping[CounterKey, int]) -> bool:
    """Whether counter and ledger agree. One that nobody opened yet says nothing of a window before its budget."""
    return held[key] == due[key] or (held[key] == 0 and key.window_start < cap.counted_since_us)


def _is_assumed(cap: Cap, key: CounterKey, held: int, store: Store, pricer: Pricer) -> bool:
    """Whether a counter may differ by what counted for tokens without a price, or was taken back of that since.

    Entries of before that was kept do not say how much.
    """
    if cap.unit != "usd":
        return False
    matches, end = Matcher(parse_scope(key.scope)), _end(cap, key)
    until = END if end is None else from_microseconds(end)
    guesses = [
        assume(entry, pricer)
        for entry in _beyond_sums(from_microseconds(key.window_start), until, {}, store)
        if lacks_price(entry.charges)
        and assumed_for(entry) is None
        and _held(entry, "usd") is None
        and matches(Subject.of_entry(entry)) is not None
    ]
    certain = count(cap, parse_scope(key.scope), key.window_start, end, store=store, pricer=None)
    taken_back = sum(-amount for amount in guesses if amount < 0)
    return bool(guesses) and held >= certain - taken_back


def _due(cap: Cap, key: CounterKey, store: Store, pricer: Pricer) -> int:
    return count(cap, parse_scope(key.scope), key.window_start, _end(cap, key), store=store, pricer=pricer)


def _end(cap: Cap, key: CounterKey) -> int | None:
    """The end of a counter's window."""
    return next((end for start, end in cap.spans(key.window_start) if start == key.window_start), None)


def _is_over(cap: Cap, key: CounterKey, now: int) -> bool:
    return cap.rolling and key.window_start < cap.spans(now)[0][0]


def _fault(cap: Cap, key: CounterKey, held: int | None, due: int) -> CounterFault:
    where = f"{key.budget} {key.scope or 'all'} {from_microseconds(key.window_start):%Y-%m-%dT%H:%MZ}"
    told = "there is no counter for" if held is None else f"the counter says {amount_of(cap.unit, held)}, the ledger"
    return CounterFault("counter", where, f"{told} {amount_of(cap.unit, due)}")
