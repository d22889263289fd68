"""Budgets as the ledger knows them: every definition, change, end and grant is a filed document of the ledger.

Documents are numbered, chained and never changed, so that the history of a budget says who changed it, when and why.
The definition in force is the last one filed under the budget's name. What its limit is at this moment (the
fixed one, or the member's own; with what was granted, less what has expired) is worked out here, too.
"""

from __future__ import annotations

import asyncio
import getpass
import inspect
import json
import logging
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, cast

from tokenmeter.budgets.matching import Cap, scope_text
from tokenmeter.budgets.policy import Budget, LimitFunction, LimitValue, Unit, limit_in, limit_table, parse_limit
from tokenmeter.budgets.windows import microseconds
from tokenmeter.errors import ConfigurationError, LedgerError, StoreUnavailableError
from tokenmeter.money import magnitude
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import Document, DocumentQuery, NewDocument

#: The kind of document that a budget's history consists of. Stores count their changes: `Store.generation`.
KIND = "budget"
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One version of a budget's definition, as it was filed.

    Attributes:
        name: The budget's name.
        version: 1 for the first definition; goes on after an end.
        what: ``set`` or ``retire``.
        budget: The definition; None when the budget was ended.
        at: When it was filed, aware UTC.
        by: Who did it.
        reason: Why.
        source: Where it was said: a configuration file, ``code of PROGRAM``, ``command line``, ...
        era: How often what it counts has changed (scope, dates, an end): counters of another era begin anew, from what
            the ledger holds.
        counted_since: When this era was defined; None for a definition that is only declared and not filed yet.
        document_id: The filed document; empty for one that is only declared.
    """

    name: str
    version: int
    what: Literal["set", "retire"]
    budget: Budget | None
    at: datetime | None
    by: str
    reason: str
    source: str
    era: int = 1
    counted_since: datetime | None = None
    document_id: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "name": self.name,
            "version": self.version,
            "what": self.what,
            "budget": None if self.budget is None else self.budget.to_dict(),
            "at": None if self.at is None else self.at.isoformat(),
            "by": self.by,
            "reason": self.reason,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """More room for one counter of a budget: a raise for one window, a top-up, a credit pack that expires.

    Attributes:
        grant_id: Identity; the document's key is made of it, so that the same grant is filed once.
        budget: The budget's name.
        scope: Scope values of the counter.
        unit: Which of the budget's limits.
        amount: How much, in `unit`; negative takes back.
        starts: First instant at which it counts, aware UTC.
        expires: First instant at which what is left of it is gone, aware UTC; None = never, or with the window.
        window_start: Start of the window it belongs to, in microseconds since the epoch; 0 where nothing ever resets.
        at: When it was filed, aware UTC.
        by: Who decided it.
        reason: Why.
    """

    grant_id: str
    budget: str
    scope: Mapping[str, str]
    unit: Unit
    amount: Decimal
    starts: datetime
    expires: datetime | None
    window_start: int
    at: datetime
    by: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values: the amount as a decimal string, instants in ISO 8601."""
        return {
            "grant_id": self.grant_id,
            "budget": self.budget,
            "scope": dict(self.scope),
            "unit": self.unit,
            "amount": f"{self.amount:f}",
            "starts": self.starts.isoformat(),
            "expires": None if self.expires is None else self.expires.isoformat(),
            "at": self.at.isoformat(),
            "by": self.by,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything the ledger says of budgets.

    Attributes:
        changes: Per name every version, the first first.
        grants: All grants by budget, unit and scope text, in the order of their filing.
        position: Of the last document read.
        revision: How many definitions and ends there are: grants alone leave the caps as they are.
    """

    changes: Mapping[str, Sequence[Change]] = field(default_factory=dict[str, Sequence[Change]])
    grants: Mapping[tuple[str, Unit, str], Sequence[Grant]] = field(
        default_factory=dict[tuple[str, Unit, str], Sequence[Grant]]
    )
    position: int = 0
    revision: int = 0

    def in_force(self) -> dict[str, Change]:
        """The definition that counts now, per name; ended budgets are left out."""
        return {name: versions[-1] for name, versions in self.changes.items() if versions[-1].budget is not None}

    def said_by(self, source: str, name: str) -> Change | None:
        """What `source` said last of a budget."""
        return next((one for one in reversed(self.changes.get(name, ())) if one.source == source), None)


def read_policy(store: Store, before: Policy | None = None) -> Policy:
    """Read the ledger's definitions and grants.

    Args:
        store: The ledger.
        before: What was read before: only what was filed since is read.

    Raises:
        StoreUnavailableError: they cannot be read.
        LedgerError: a later release wrote them.
    """
    before = before or Policy()
    changes, grants = dict(before.changes), dict(before.grants)
    position, revision = before.position, before.revision
    for document in store.documents(DocumentQuery(kind=KIND, after=position)):
        body, position = _body(document), document.position
        if body["what"] == "grant":
            grant = _grant_of(document, body)
            counter = (grant.budget, grant.unit, scope_text(grant.scope))
            grants[counter] = (*grants.get(counter, ()), grant)
        else:
            versions = changes.get(body["name"], ())
            changes[body["name"]] = (*versions, _change_of(document, body, versions[-1] if versions else None))
            revision += 1
    return Policy(changes, grants, position, revision)


def _body(document: Document) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(document.body)
    if body.get("format") != _FORMAT:
        raise LedgerError(
            f"The budget document {document.key!r} has the format {body.get('format')!r}, which this release does not "
            "know; upgrade tokenmeter."
        )
    return body


def _change_of(document: Document, body: Mapping[str, Any], before: Change | None) -> Change:
    budget = None if body["budget"] is None else Budget.parse(body["budget"], file=f"ledger document {document.key}")
    same = (
        before is not None and before.budget is not None and budget is not None and _counts_alike(before.budget, budget)
    )
    anew = before is not None and budget is not None and not same
    return Change(
        name=body["name"],
        version=1 if before is None else before.version + 1,
        what=body["what"],
        budget=budget,
        at=document.recorded_at,
        by=body["by"],
        reason=body["reason"],
        source=body["source"],
        era=1 if before is None else before.era + int(anew),
        counted_since=before.counted_since if before is not None and not anew else document.recorded_at,
        document_id=document.document_id,
    )


def _counts_alike(one: Budget, other: Budget) -> bool:
    """Whether both count the same calls: their counters are the same then. A further limit counts from the ledger."""
    return (one.scope, one.effective, set(one.units)) == (other.scope, other.effective, set(other.units))


def _grant_of(document: Document, body: Mapping[str, Any]) -> Grant:
    expires = body.get("expires")
    return Grant(
        grant_id=body["grant_id"],
        budget=body["name"],
        scope=body["scope"],
        unit=body["unit"],
        amount=Decimal(body["amount"]),
        starts=datetime.fromisoformat(body["starts"]),
        expires=None if expires is None else datetime.fromisoformat(expires),
        window_start=body["window_start"],
        at=document.recorded_at,
        by=body["by"],
        reason=body["reason"],
    )


def file_change(
    store: Store, name: str, budget: Budget | None, *, version: int, by: str, reason: str, source: str
) -> bool:
    """File a definition, or with None the end of one.

    Args:
        store: The ledger.
        name: The budget's name.
        budget: The definition.
        version: Its number. It is filed only if nobody else has filed that one meanwhile.
        by: Who.
        reason: Why.
        source: Where it was said.

    Returns:
        False when somebody was quicker: read again what is in force.
    """
    body = {
        "format": _FORMAT,
        "what": "retire" if budget is None else "set",
        "name": name,
        "budget": None if budget is None else budget.to_dict(),
        "by": by,
        "reason": reason,
        "source": source,
    }
    return _file(store, f"{name}@{version}", body)


def file_grant(store: Store, grant: Grant, *, more: Mapping[str, Any] | None = None) -> bool:
    """File a grant; False when one of this identity is there already."""
    body = {**grant.to_dict(), "format": _FORMAT, "what": "grant", "name": grant.budget, **(more or {})}
    body["window_start"] = grant.window_start
    del body["budget"], body["at"]
    return _file(store, f"{grant.budget}+{grant.grant_id}", body)


def _file(store: Store, key: str, body: Mapping[str, Any]) -> bool:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return store.file(NewDocument(kind=KIND, key=key, body=text)).recorded


def history(policy: Policy, name: str | None = None) -> list[Change]:
    """Every change of one budget, or of all, in the order in which they were filed."""
    chosen = policy.changes.values() if name is None else (policy.changes.get(name, ()),)
    found = [change for versions in chosen for change in versions]
    return sorted(found, key=lambda change: (change.at is None, change.at or 0, change.version))


def grants_of(policy: Policy, name: str, scope: Mapping[str, str] | None = None) -> list[Grant]:
    """The grants of one budget, or of one of its counters, in the order of their filing."""
    found = [
        grant
        for (budget, _, text), grants in policy.grants.items()
        if budget == name and (scope is None or text == scope_text(scope))
        for grant in grants
    ]
    return sorted(found, key=lambda grant: grant.at)


def whoami() -> str:
    """The name of the account this program runs under, for the ledger's history."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "unknown"


log = logging.getLogger("tokenmeter")

#: A limit that nothing reaches: for whom the table or the function says ``unlimited``.
NO_CAP = 9 * 10**18
_NEVER = 1 << 62
_MOST_VALUES = 65_536
_TELL_EVERY = 60
_LONGEST_WAIT = 30  # seconds for a loop of the application's to answer


def room(limit: int, grants: Sequence[Grant], at_us: int, spent_before: Callable[[int], int]) -> int:
    """The limit of one counter with its grants: what may have been spent in all by now.

    What expires first is spent first, so an expiry takes away only what nobody used of it.

    Args:
        limit: The limit without grants; it expires with the window.
        grants: The counter's grants in its window, in any order.
        at_us: Now, in microseconds since the epoch.
        spent_before: What the counter had settled before an instant. Only asked when something has expired already.
    """
    live = [grant for grant in grants if microseconds(grant.starts) <= at_us]
    if not any(grant.expires is not None and microseconds(grant.expires) <= at_us for grant in live):
        return min(max(limit + sum(_amount(grant) for grant in live), 0), NO_CAP)
    moments = sorted({microseconds(one) for grant in live for one in (grant.starts, grant.expires) if one is not None})
    packs: list[list[int]] = [[_NEVER, limit]]  # expiry, what is left
    spent = 0
    for moment in (each for each in moments if each <= at_us):
        now_spent = spent_before(moment)
        _take(packs, now_spent - spent)
        spent = now_spent
        packs = [pack for pack in packs if pack[0] > moment]
        for grant in live:
            if microseconds(grant.starts) == moment:
                amount = _amount(grant)
                if amount < 0:
                    _take(packs, -amount)
                else:
                    packs.append([_NEVER if grant.expires is None else microseconds(grant.expires), amount])
    return min(max(spent + sum(left for _, left in packs), 0), NO_CAP)


def _take(packs: list[list[int]], amount: int) -> None:
    """Spend `amount`, what expires first first. What no pack can pay is owed by the last one."""
    packs.sort(key=lambda pack: pack[0])
    for pack in packs:
        part = min(pack[1], amount) if pack is not packs[-1] else amount
        if part > 0:
            pack[1] -= part
            amount -= part


def _amount(grant: Grant) -> int:
    size = parse_limit(magnitude(grant.amount), grant.unit, name="amount")
    return -size if grant.amount < 0 else size


@dataclass(frozen=True, slots=True)
class _LimitAnswer:
    limits: Mapping[Unit, int | None]
    asked_at: float  # seconds, not money


class AskedLimits:
    """Answers of one budget's `Budget.limit`, remembered for `Budget.refresh` seconds.

    An answer that is too old is asked for again in the call's own thread, for calls on an event loop beside it; while
    the function fails the last answer holds, then the fixed limit, then the budget's `store_failure`. What an async
    function awaits (a pool of connections) belongs to the application's loop, and runs there.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None  # where an async function was answered last
        self._answers: dict[tuple[str, str], _LimitAnswer] = {}
        self._told: dict[str, float] = {}  # budget -> when its function's failure was logged last; not money

    def is_known(self, cap: Cap, scope: Mapping[str, str]) -> bool:
        """Whether `of` would answer without asking the function."""
        name = cap.budget.open_field
        if not cap.budget.asks or name is None:
            return True
        answer = self._answers.get((cap.budget.name, scope[name]))
        return answer is not None and time.monotonic() - answer.asked_at < cap.budget.refresh

    def of(self, cap: Cap, scope: Mapping[str, str]) -> int:
        """The limit of `cap` for the counter `scope`, without grants.

        Raises:
            StoreUnavailableError: it is not known, and the budget fails closed.
        """
        budget = cap.budget
        name, table = budget.open_field, limit_table(budget)
        if budget.limit is None or name is None:
            return NO_CAP if cap.limit is None else cap.limit
        value = scope[name]
        if table is not None:
            found = limit_in(table.get(value), cap.unit, name=f"limit.{value}")
        else:
            found = self._ask(cap, cast("LimitFunction", budget.limit), value)
        if found is None:
            found = cap.limit
        if found is None and table is not None:
            return 0  # a table without a fixed limit beside it names everybody who may call
        if found is None:
            return self._unknown(cap, scope)
        return NO_CAP if found < 0 else found

    def forget(self, name: str, value: str | None = None) -> None:
        """Ask again with the next call, for one value or for all."""
        for key in [key for key in self._answers if key[0] == name and value in {None, key[1]}]:
            self._answers.pop(key, None)

    def _ask(self, cap: Cap, function: LimitFunction, value: str) -> int | None:
        budget, key = cap.budget, (cap.budget.name, value)
        now = time.monotonic()
        known = self._answers.get(key)
        if known is not None and now - known.asked_at < budget.refresh:
            return known.limits.get(cap.unit)
        try:
            said = function(value)
            if inspect.isawaitable(said):
                said = self._awaited(said)
            limits: dict[Unit, int | None] = {
                unit: limit_in(said, unit, name=f"limit of {value!r}") for unit in budget.units
            }
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it is the application's own; what is known holds
            self._tell(budget.name, error, has_last=known is not None)
            limits = dict(known.limits) if known is not None else {}
        if len(self._answers) >= _MOST_VALUES:
            self._answers.clear()
        self._answers[key] = _LimitAnswer(limits, now)
        return limits.get(cap.unit)

    def _awaited(self, said: Awaitable[LimitValue | None]) -> LimitValue | None:
        """What an async function says: on the application's loop, where one can be waited for, else on a new one."""

        async def answer() -> LimitValue | None:
            self._loop = _running_loop()
            return await said

        async def anew() -> LimitValue | None:
            return await said

        if "anyio" in sys.modules and (told := _from_anyio(answer)) is not None:
            return told[0]
        here = _running_loop()
        if self._loop is not None and self._loop.is_running() and here is None:
            return asyncio.run_coroutine_threadsafe(answer(), self._loop).result(_LONGEST_WAIT)
        return asyncio.run(anew()) if here is None else _in_thread(lambda: asyncio.run(anew()))

    def _tell(self, name: str, error: BaseException, *, has_last: bool) -> None:
        """Log a limit function's failure, at most once a minute per budget."""
        now = time.monotonic()
        if now - self._told.get(name, -_TELL_EVERY) < _TELL_EVERY:
            return
        self._told[name] = now
        holds = "the last known limit holds" if has_last else "the fixed limit beside it holds"
        if isinstance(error, ConfigurationError):
            log.error("Budget %r: its limit is not known (%s); %s meanwhile", name, error, holds)
        else:
            log.error("Budget %r: its limit function failed; %s meanwhile", name, holds, exc_info=error)

    def _unknown(self, cap: Cap, scope: Mapping[str, str]) -> int:
        if cap.budget.store_failure == "open" or not cap.budget.hard:
            return NO_CAP
        raise StoreUnavailableError(
            f"The limit of budget {cap.budget.name!r} for {scope_text(scope)} is not known: its limit function said "
            "none, and the budget has no fixed limit beside it. The call was not sent. Give the budget a fixed limit "
            "that holds meanwhile, or set store_failure='open' to let such calls pass."
        )


def _from_anyio(answer: Callable[[], Coroutine[Any, Any, LimitValue | None]]) -> tuple[LimitValue | None] | None:
    """The answer from the loop that waits for this thread; None where no loop does."""
    from anyio import from_thread  # noqa: PLC0415 - only where the application has it

    try:
        from_thread.run_sync(_nothing)
    except RuntimeError:  # no thread of anyio's
        return None
    return (from_thread.run(answer),)


def _nothing() -> None:
    pass


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _in_thread(work: Callable[[], Any]) -> Any:
    """The result of `work` in a thread that has no loop as yet."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=run, name="tokenmeter-limit", daemon=True).start()
    return done.result(_LONGEST_WAIT)
