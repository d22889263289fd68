"""A meter seen through a scope: whatever reads from it sees that part of the ledger, and nothing can be written.

Filters lie under everything that reads (pages, the usage API, exports, live pages, MCP), so that none of these has to
know of scopes, and none can forget one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
from collections import Counter as Counts
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache, cached_property
from itertools import islice
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable

from tokenmeter.billing import BillingProfile
from tokenmeter.billing.invoice import number_text
from tokenmeter.budgets import Balance, Budget, Change, Grant
from tokenmeter.budgets.matching import Cap, parse_scope
from tokenmeter.budgets.policy import limit_table
from tokenmeter.budgets.status import keys_called, name_grant
from tokenmeter.errors import ConfigurationError, LedgerError, StoreUnavailableError
from tokenmeter.ledger import CounterKey, Entry, ThresholdCrossing
from tokenmeter.pricing import Pricer
from tokenmeter.reports import Query, Row, read_report
from tokenmeter.serving.access import AccessScope
from tokenmeter.settings import Settings
from tokenmeter.stores.base import Aggregate, Counter, Crossing, EntryFilter, Health, PolicyReader, Store
from tokenmeter.stores.documents import ERASURE, Document, DocumentQuery
from tokenmeter.stores.engine import matches
from tokenmeter.stores.naming import FINGERPRINT
from tokenmeter.stores.sketch import Latencies

_MANY = 10_000
#: Entries that are looked through for the names of tags.
_LAST = 200
_KEY = "api_key"
T = TypeVar("T")
_secret = secrets.token_bytes(32)


class BudgetView(Protocol):
    """The budgets of a meter, as far as they are read."""

    @property
    def in_force(self) -> tuple[Budget, ...]:
        """The definitions that count now."""
        ...

    @property
    def caps(self) -> Mapping[str, Cap]:
        """Their limits, prepared, by their counters' name."""
        ...

    def changes(self) -> list[Change]:
        """The definitions in force, each with who said it."""
        ...

    def history(self, name: str | None = None) -> list[Change]:
        """Every definition, change and end."""
        ...

    def grants(self, name: str, scope: Mapping[str, str] | None = None) -> list[Grant]:
        """What was granted."""
        ...

    def remaining(self, wanted: Mapping[str, str], at: datetime) -> list[Balance]:
        """Where budgets stand that concern an account."""
        ...


class ReadableMeter(Protocol):
    """A meter, as far as it is read: the meter itself, or what a scope leaves of it."""

    @property
    def store(self) -> Store:
        """The ledger."""
        ...

    @property
    def budgets(self) -> BudgetView:
        """Its budgets."""
        ...

    @property
    def pricer(self) -> Pricer:
        """Prices and terms."""
        ...

    @property
    def faults(self) -> int | None:
        """How often something failed in this process; None where that is not told."""
        ...

    @property
    def profile(self) -> BillingProfile | None:
        """Who bills whom."""
        ...

    @property
    def settings(self) -> Settings | None:
        """What it was made from."""
        ...


@runtime_checkable
class _Pulsing(Protocol):
    """A store that can say cheaply whether anything was written."""

    def pulse(self) -> str:
        """A text that differs whenever an entry or a hold came or went; behind its last dot is the number of holds."""
        ...


def pulse_of(store: Store) -> str:
    """A text that differs after every write to `store`; behind its last dot is the number of holds."""
    if isinstance(store, _Pulsing):
        return store.pulse()
    facts = store.health().facts
    return f"{facts.get('entries')}.{facts.get('pending_holds')}"


def look_through(meter: ReadableMeter, scope: AccessScope) -> ReadableMeter:
    """`meter` as `scope` shows it; the meter itself where everything may be seen."""
    return ScopedMeter(meter, scope) if scope.conditions else meter


class Admission:
    """What a scope admits. An API key that it names is meant by whatever name, since it is what its fingerprint says.

    Args:
        store: The whole ledger.
        scope: What may be seen of it.
    """

    def __init__(self, store: Store, scope: AccessScope) -> None:
        self.store, self.scope = store, scope

    def now(self) -> AdmissionNow:
        """The same by the names that keys have now. Good for one answer."""
        return AdmissionNow(self.store, self.scope)


class AdmissionNow:
    """See `Admission`."""

    def __init__(self, store: Store, scope: AccessScope) -> None:
        self._store, self._scope = store, scope
        self._named = next((values for name, values in scope.conditions if name == _KEY), None)
        self._meant = cache(self._find)

    @cached_property
    def _labels(self) -> Mapping[str, str]:
        return self._store.key_labels()

    def _find(self, name: str) -> frozenset[str]:
        """Fingerprints of the keys that a name means."""
        return frozenset({name} if name in self._labels else keys_called(self._store, name))

    @cached_property
    def keys(self) -> frozenset[str]:
        """Fingerprints of the keys that it names."""
        return frozenset(key for name in self._named or () for key in self._meant(name))

    @property
    def where(self) -> dict[str, frozenset[str | None]]:
        """As a filter of entries."""
        found = self._scope.where
        if found.pop(_KEY, None) is not None:
            found[FINGERPRINT] = frozenset[str | None](self.keys)
        return found

    def admits(self, owner: Mapping[str, str | None]) -> bool:
        """Whether all that is `owner`'s (dimension -> value; a key by a name, or its fingerprint) lies in the scope."""
        if self._named is None:
            return self._scope.admits(owner)
        key = owner.get(FINGERPRINT) or owner.get(_KEY)
        return key is not None and self._admits_key(key) and self._scope.admits({**owner, _KEY: self._named[0]})

    def may_admit(self, owner: Mapping[str, str | None]) -> bool:
        """Whether it can lie in the scope, by whatever names keys have later."""
        if self._named is None or (owner.get(FINGERPRINT) or owner.get(_KEY)) is None:
            return self.admits(owner)
        return self._scope.admits({**owner, _KEY: self._named[0]})

    def _admits_key(self, key: str) -> bool:
        meant = self._meant(key)
        return meant <= self.keys if meant else key in (self._named or ())

    def narrow(self, wanted: Mapping[str, str], account: Mapping[str, str]) -> Mapping[str, str] | None:
        """`wanted` of one `account` of the scope; None where both together are nobody."""
        found = {**wanted, **account}
        for name, value in account.items():
            asked = wanted.get(name, value)
            if asked in {value, "*"}:
                continue
            if name != _KEY or not self._admits_key(asked):
                return None
            found[name] = asked
        return found


class ScopedMeter:
    """What a scope leaves of a meter; see `ReadableMeter`. What concerns the ledger as a whole is not told.

    Args:
        meter: The whole.
        scope: What may be seen of it.
    """

    def __init__(self, meter: ReadableMeter, scope: AccessScope) -> None:
        self._meter = meter
        self.budgets: BudgetView = SeenBudgets(meter.budgets, Admission(meter.store, scope))
        self.store: Store = Lens(meter.store, scope, said=self.budgets.changes)
        self.settings: Settings | None = None

    @property
    def pricer(self) -> Pricer:
        """Prices are public: the meter's own."""
        return self._meter.pricer

    @property
    def faults(self) -> None:
        """Faults of the process are nobody's own."""
        return None

    @property
    def profile(self) -> BillingProfile | None:
        """Who bills whom stands on every invoice: the meter's own."""
        return self._meter.profile


class SeenBudgets:
    """The budgets whose counters lie in a scope; see `BudgetView`.

    Args:
        budgets: All.
        admission: What may be seen of them.
    """

    def __init__(self, budgets: BudgetView, admission: Admission) -> None:
        self._budgets, self._admission, self._scope = budgets, admission, admission.scope

    @property
    def in_force(self) -> tuple[Budget, ...]:
        """Those that concern nobody outside the scope: made for it, or for each member (or the like) alike."""
        now = self._admission.now()
        return tuple(budget for budget in self._budgets.in_force if self._concerns(budget, now))

    @property
    def caps(self) -> Mapping[str, Cap]:
        """The limits of these, by their counters' name."""
        now = self._admission.now()
        return {name: cap for name, cap in self._budgets.caps.items() if self._concerns(cap.budget, now)}

    def changes(self) -> list[Change]:
        """The definitions of these; not who said them, where and why."""
        return self._strip(self._budgets.changes())

    def history(self, name: str | None = None) -> list[Change]:
        """Their definitions and changes, as above."""
        return self._strip(self._budgets.history(name))

    def grants(self, name: str, scope: Mapping[str, str] | None = None) -> list[Grant]:
        """What was granted to counters in the scope, a key by its name as balances say it; not by whom and why."""
        admits, granted = self._admission.now().admits, self._budgets.grants(name, scope)
        seen = [replace(grant, by="", reason="") for grant in granted if admits(grant.scope)]
        labels: Mapping[str, str] = self._admission.store.key_labels() if seen else {}
        return [name_grant(grant, labels) for grant in seen]

    def remaining(self, wanted: Mapping[str, str], at: datetime) -> list[Balance]:
        """Where the counters in the scope stand."""
        found: dict[tuple[object, ...], Balance] = {}
        now = self._admission.now()
        for account in self._scope.accounts():
            if (narrowed := now.narrow(wanted, account)) is not None:
                for one in self._budgets.remaining(narrowed, at):
                    if now.admits(one.scope):
                        found[one.budget, one.unit, *sorted(one.scope.items())] = one
        return list(found.values())

    def _concerns(self, budget: Budget, now: AdmissionNow) -> bool:
        # A budget on each member (``*``) is the scope's own member's as well.
        whose = dict(budget.scope)
        named = {name: values[0] for name, values in self._scope.conditions if whose.get(name) == "*"}
        return limit_table(budget) is None and now.admits({**whose, **named})

    def _strip(self, changes: Sequence[Change]) -> list[Change]:
        now = self._admission.now()
        seen = (one for one in changes if one.budget is not None and self._concerns(one.budget, now))
        return [replace(change, by="", reason="", source="") for change in seen]


class Lens:
    """The reading half of a ledger, as a scope shows it. Implements `tokenmeter.stores.base.Store`.

    Nothing is handed on that is not named here: a method that a store gains later is missing rather than open.

    Args:
        store: The whole ledger.
        scope: What may be seen of it.
        said: The definitions of budgets that may be seen: what is told live of it, beside what the ledger has.
    """

    url = ""

    def __init__(self, store: Store, scope: AccessScope, said: Callable[[], Sequence[Change]] = list) -> None:
        self._store, self._said = store, said
        self._admission = Admission(store, scope)
        self._scopes: dict[str, Mapping[str, str]] = {}
        self._events: Counts[str] = Counts()
        self._erasures = 0
        self._looked: dict[str, int] = {}
        self._known = ("", "")
        self._lock, self._pulse_lock = threading.Lock(), threading.Lock()

    # -- entries

    def entry(self, entry_id: str) -> Entry | None:
        """One entry, or None: also where it is not of the scope."""
        found = self._store.entry(entry_id)
        return found if found is not None and matches(found, self._admission.now().where) else None

    def recorded_under(self, keys: Sequence[str]) -> Sequence[Entry]:
        """The scope's entries with these dedup keys."""
        where = self._admission.now().where
        return [one for one in self._store.recorded_under(keys) if matches(one, where)]

    def entries(self, which: EntryFilter | None = None, *, newest_first: bool = False) -> Iterator[Entry]:
        """The scope's entries."""
        narrowed = self._narrow(which)
        return iter(()) if narrowed is None else self._store.entries(narrowed, newest_first=newest_first)

    def follow(self, after: int | None = None, which: EntryFilter | None = None) -> tuple[int, Sequence[Entry]]:
        """What of the scope has been recorded since."""
        narrowed = self._narrow(which)
        return (self._store.follow()[0], ()) if narrowed is None else self._store.follow(after, narrowed)

    def span(self, since: datetime | None, until: datetime | None) -> tuple[datetime, datetime] | None:
        """Where the scope's first and last entry lie; the ledger's, where archived months cannot be read."""
        which = EntryFilter(since=since, until=until)
        try:
            ends = [next(iter(self.entries(which, newest_first=newest)), None) for newest in (False, True)]
        except (ConfigurationError, StoreUnavailableError):
            return self._store.span(since, until)
        first, last = (None if one is None else one.occurred_at for one in ends)
        return None if first is None or last is None else (first, last)

    def tag_names(self) -> Sequence[str]:
        """Names of the tags that the scope's last entries have; none, where archived months cannot be read."""
        try:
            last = islice(self.entries(newest_first=True), _LAST)
            return sorted({name for entry in last for name in entry.attribution.tags})
        except (ConfigurationError, StoreUnavailableError):
            return []

    def aggregate(
        self, boundaries: Sequence[datetime], by: Sequence[str], which: EntryFilter | None = None
    ) -> Sequence[Aggregate]:
        """Sums over the scope's entries."""
        narrowed = self._narrow(which)
        return () if narrowed is None else self._store.aggregate(boundaries, by, narrowed)

    def latencies(
        self, boundaries: Sequence[datetime], by: Sequence[str] = (), which: EntryFilter | None = None
    ) -> Sequence[Latencies]:
        """How long the scope's calls took."""
        narrowed = self._narrow(which)
        return () if narrowed is None else self._store.latencies(boundaries, by, narrowed)

    def _narrow(self, which: EntryFilter | None) -> EntryFilter | None:
        """`which` and the scope; None where both together accept nothing."""
        which = which or EntryFilter()
        where = dict(which.where)
        for name, values in self._admission.now().where.items():
            where[name] = where.get(name, values) & values
        return replace(which, where=where) if all(where.values()) else None

    # -- documents and budgets

    def documents(self, which: DocumentQuery = DocumentQuery()) -> Iterator[Document]:  # noqa: B008 - immutable
        """Invoices made out to an account of the scope, and what happened to them; nothing else that is filed."""
        now = self._admission.now()
        theirs: Mapping[str, int] | None = None
        for document in self._store.documents(which):
            if document.kind == "invoice":
                if now.admits(_read_scope(document)):
                    yield document
            elif document.kind == "invoice_event":
                theirs = self._invoices(now) if theirs is None else theirs
                if _invoice_of(document) in theirs:
                    yield document

    def _invoices(self, now: AdmissionNow) -> dict[str, int]:
        """The numbers of the scope's invoices, each with how often something happened to it.

        What was looked at before is not looked at again, until an erasure may have changed whom invoices name. Which of
        them are the scope's is asked each time: a key may bear another name since.
        """
        with self._lock:
            if erasures := self._read_new(ERASURE, lambda document: document.key):
                self._erasures += len(erasures)
                self._scopes, self._events, self._looked = {}, Counts(), {ERASURE: erasures[-1][0]}
            # Events before invoices: so the invoice of each of them is among these.
            events = self._read_new("invoice_event", _invoice_of)
            made = self._read_new("invoice", lambda document: (number_text(document), _read_scope(document)))
            self._scopes.update((number, scope) for _, (number, scope) in made if now.may_admit(scope))
            self._events.update(number for _, number in events if number in self._scopes)
            for kind, position in (*(("invoice_event", at) for at, _ in events), *(("invoice", at) for at, _ in made)):
                self._looked[kind] = position
            scopes, counts = dict(self._scopes), Counts(self._events)
        return {number: counts[number] for number, scope in scopes.items() if now.admits(scope)}

    def _read_new(self, kind: str, tell: Callable[[Document], T]) -> list[tuple[int, T]]:
        """Position of each document of a kind that was not looked at yet, and what `tell` makes of it."""
        which = DocumentQuery(kind, after=self._looked.get(kind, 0))
        return [(document.position, tell(document)) for document in self._store.documents(which)]

    def crossings(
        self, *, limit: int = 100, since: datetime | None = None, budgets: Collection[str] | None = None
    ) -> Sequence[Crossing]:
        """Thresholds that counters of the scope crossed."""
        # The newest of all: those of others are left out behind.
        found = self._store.crossings(limit=_MANY, since=since, budgets=budgets)
        admits = self._admission.now().admits
        seen = (one for one in found if admits(parse_scope(one.key.scope)))
        return list(islice(seen, limit if since is None else None))

    def all_counters(self) -> Iterator[tuple[CounterKey, Counter]]:
        """The counters of the scope."""
        admits = self._admission.now().admits
        return ((key, one) for key, one in self._store.all_counters() if admits(parse_scope(key.scope)))

    def key_labels(self) -> Mapping[str, str]:
        """What the API keys are called that the scope names; of a scope without keys nothing is told."""
        keys = self._admission.now().keys
        return {key: label for key, label in self._store.key_labels().items() if key in keys}

    # -- the ledger itself

    @property
    def archives(self) -> NoReturn:
        """Files of whole months are nobody's part."""
        self._refuse()

    def identity(self) -> NoReturn:
        """What the ledger is told from others by is for who hands it over."""
        self._refuse()

    def now(self) -> datetime:
        """The ledger's clock."""
        return self._store.now()

    # What only whoever writes needs; nobody writes through a lens.
    hears_late = False
    policy: PolicyReader | None = None
    tell_late: Callable[[Sequence[ThresholdCrossing]], object] | None = None

    def generation(self, *, ask: bool = False) -> int:
        """Changes with the ledger's."""
        return self._store.generation(ask=ask)

    def pulse(self) -> str:
        """Changes with what can be seen of the ledger, and tells no number of it."""
        return self.pulse_at(pulse_of(self._store))

    def pulse_at(self, whole: str) -> str:
        """The same, where the ledger's own pulse is `whole`: that others were busy is not told.

        While the ledger stays as it was nothing is read, however many ask.
        """
        with self._pulse_lock:
            if self._known[0] != whole:
                self._known = (whole, ".".join(_hide(repr(part)) for part in (self._recorded(), self._held())))
            return self._known[1]

    def _recorded(self) -> object:
        """Differs when something was recorded that may be seen, was taken out, or is defined otherwise."""
        sums = read_report(self, Query(by=("kind",))).rows
        try:
            last = next(iter(self.entries(newest_first=True)), None)
        except (ConfigurationError, StoreUnavailableError):  # archived months cannot be read; sums tell most changes
            last = None
        invoices = self._invoices(self._admission.now())
        return (
            [(row.group, row.requests, row.errors, row.unpriced, row.estimated, *_sums(row)) for row in sums],
            last and last.entry_id,
            sorted(invoices.items()),
            self._erasures,  # of one it is not known what it took out
            [(one.name, one.version, one.at) for one in self._said()],
        )

    def _held(self) -> object:
        """Differs when a call began or ended that holds a part of a budget that may be seen."""
        return sorted((key.budget, key.scope, key.window_start, one.reserved) for key, one in self.all_counters())

    def health(self) -> Health:
        """Only that it answers."""
        self._store.generation()
        return Health({"state": "answers"})

    def close(self) -> None:
        """Whoever opened the ledger closes it."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise LedgerError("Here only a part of the ledger can be seen, and nothing of it can be changed.")

    settle = append = reserve = release = extend = note = name_answer = file = recount = open_counters = _refuse
    expired = left = held_for = counters = verify = rebuild = secret = call_keys = key_names = _refuse


def _read_scope(document: Document) -> Mapping[str, str]:
    scope: Mapping[str, str] = json.loads(document.body)["scope"]
    return scope


def _invoice_of(event: Document) -> str:
    """The number of the invoice that something happened to."""
    return event.key.rpartition(" #")[0]


def _sums(row: Row) -> tuple[object, ...]:
    return row.list_cost, row.contracted_cost, row.billed_cost, sorted(row.usage.quantities.items())


def _hide(text: str) -> str:
    return hmac.new(_secret, text.encode(), hashlib.sha256).hexdigest()[:16]
