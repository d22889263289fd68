"""What a counter's limit is at this moment: the fixed one or the member's own, with what was granted to it.

A member's own limit is said by a table, or asked of a function of the application's.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, cast

from tokenmeter import processes
from tokenmeter.attribution import ApiKey
from tokenmeter.budgets.grants import NO_CAP
from tokenmeter.budgets.matching import Cap, is_fingerprint, scope_text
from tokenmeter.budgets.policy import Budget, LimitFunction, LimitValue, Unit, limit_in, limit_table, units_said
from tokenmeter.errors import ConfigurationError, StoreBusyError, StoreUnavailableError
from tokenmeter.interrupts import let_interrupt_through
from tokenmeter.patience import wait_for
from tokenmeter.processes import may_wait
from tokenmeter.stores.base import Store
from tokenmeter.values import dataclass

log = logging.getLogger("tokenmeter")

_MOST_VALUES = 65_536
_TELL_EVERY = 60
_LONG_AGO = -1e9  # seconds by the monotonic clock, not money
_LONGEST_WAIT = 30  # seconds for the application to answer
_GIVEN_UP = 600  # seconds after which a question that was never answered is asked once more


class LimitUnknownError(StoreUnavailableError):
    """Nobody can say what a limit is at this moment, and the budget stops calls meanwhile."""


@dataclass(frozen=True, slots=True)
class _LimitAnswer:
    limits: Mapping[Unit, int | None]
    came_at: float  # seconds, not money
    problem: str

    @property
    def says_one(self) -> bool:
        return any(limit is not None for limit in self.limits.values())


class _Inquiry:
    """Who asks for a limit holds its lock; the others wait for the same answer."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.lock = threading.RLock()  # a call that the function makes asks again

    @property
    def age(self) -> float:  # seconds, not money
        return time.monotonic() - self.since


class AskedLimits:
    """Answers of one budget's `Budget.limit`, remembered for `Budget.refresh` seconds.

    An answer that is too old is asked for again in the call's own thread, for calls on an event loop beside it; other
    calls of that member wait for the same answer. What only looks back, such as an alert, goes by the last one. While
    the function fails, or does not come back, the last answer holds, then the fixed limit, then the budget's
    `store_failure`. What an async function awaits (a pool of connections) belongs to the application's loop, and runs
    there.

    An API key is looked up, and asked for, by its name, as its budgets are; a table may say a fingerprint, too.

    Args:
        store: Says what the ledger calls a key.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loop: asyncio.AbstractEventLoop | None = None  # where an async function was answered last
        self._answers: dict[tuple[str, str], _LimitAnswer] = {}
        self._asking: dict[tuple[str, str], _Inquiry] = {}
        if not processes.KNOWN[0]:
            processes.notice_fork()
        self._process = processes.this_process
        self._forgotten = 0  # how often anything was
        self._told: dict[str, float] = {}  # budget -> when its function's failure was logged last; not money

    def of(self, cap: Cap, scope: Mapping[str, str], key: ApiKey | None = None, *, renew: bool = True) -> int:
        """The limit of `cap` for the counter `scope`, without grants.

        Args:
            cap: One limit of a budget.
            scope: Scope values of the counter.
            key: The call's API key, where one is at hand.
            renew: Whether an answer that is too old is asked for again; False = the last one will do.

        Raises:
            StoreBusyError: the function has to be asked, and this thread must not wait.
            StoreUnavailableError: it is not known, and the budget fails closed.
        """
        budget = cap.budget
        name, table = budget.open_field, limit_table(budget)
        if budget.limit is None or name is None:
            return NO_CAP if cap.limit is None else cap.limit
        value = scope[name] if name != "api_key" else self._name_of(cap, scope[name], key)
        own = None if table is None else table.get(value, table.get(scope[name]))
        if table is not None:
            found = limit_in(own, cap.unit, name=f"limit.{value}")
        else:
            found = self._ask(cap, cast("LimitFunction", budget.limit), value, renew=renew)
        if found is None:
            found = cap.limit
        if found is None and table is not None:
            # A table without a fixed limit beside it names everybody who may call, with what is limited for them.
            return NO_CAP if units_said(own) else 0
        if found is None:
            return self._unknown(cap, scope, value)
        return NO_CAP if found < 0 else found

    def _name_of(self, cap: Cap, fingerprint: str, key: ApiKey | None) -> str:
        """What an API key is called: its alias, else the ledger's, else ``...last4``; its fingerprint without any."""
        key = key or find_key(fingerprint, self._store.key_labels())
        return key.alias or cap.name_of(fingerprint) or key.name or fingerprint

    def forget(self, name: str, value: str | None = None) -> None:
        """Ask again with the next call, for one value or for all; should that fail, what was known holds.

        A key that is given by its fingerprint may have been asked for by its name.
        """
        self._forgotten += 1
        values = None if value is None else {value}
        if value is not None and is_fingerprint(value):
            try:
                values = {value, self._store.key_labels()[value]}
            except (KeyError, StoreUnavailableError):  # nobody can say by which name; to ask again for all is no harm
                values = None
        for key, answer in [*self._answers.items()]:
            if key[0] == name and (values is None or key[1] in values):
                self._answers[key] = replace(answer, came_at=_LONG_AGO)

    def _ask(self, cap: Cap, function: LimitFunction, value: str, *, renew: bool) -> int | None:
        budget, key = cap.budget, (cap.budget.name, value)
        answer = self._fresh(key, budget) if renew else self._answers.get(key)
        if answer is None:
            if not may_wait():
                raise StoreBusyError("A limit function has to be asked; call again from a thread.")
            if not renew and inspect.iscoroutinefunction(function):
                # Who looks back does so in a thread of its own, before a call said where the application's loop is.
                raise LimitUnknownError(f"The limit function of budget {budget.name!r} was not asked yet.")
            if processes.is_parents(self._process):  # a lock that the parent held is never freed here
                self._process, self._asking = processes.this_process, {}
            question = self._asking.setdefault(key, _Inquiry())
            if question.age > _GIVEN_UP:
                question = self._asking[key] = _Inquiry()
            if not question.lock.acquire(timeout=max(_LONGEST_WAIT - question.age, 0)):
                return self._unanswered(key, budget).limits.get(cap.unit)
            try:
                answer = self._fresh(key, budget) or self._asked(key, budget, function)
            finally:
                question.lock.release()
                if self._asking.get(key) is question:
                    self._asking.pop(key, None)
        return answer.limits.get(cap.unit)

    def _unanswered(self, key: tuple[str, str], budget: Budget) -> _LimitAnswer:
        """What holds while the function does not come back: the calls that wait for it would never go on."""
        known = self._answers.get(key) or _LimitAnswer({}, _LONG_AGO, "was asked and has not answered")
        self._answers.setdefault(key, known)
        late = TimeoutError(f"It was asked for {key[1]!r} more than {_LONGEST_WAIT} seconds ago and has not answered.")
        self._tell(budget, late, has_last=known.says_one)
        return known

    def _fresh(self, key: tuple[str, str], budget: Budget) -> _LimitAnswer | None:
        answer = self._answers.get(key)
        return answer if answer is not None and time.monotonic() - answer.came_at < budget.refresh else None

    def _asked(self, key: tuple[str, str], budget: Budget, function: LimitFunction) -> _LimitAnswer:
        known, forgotten = self._answers.get(key), self._forgotten
        value = key[1]
        try:
            said = function(value)
            if inspect.isawaitable(said):
                said = self._awaited(said)
            limits: Mapping[Unit, int | None] = _limits_in(said, budget, value)
            problem = "said none"
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it is the application's own; what is known holds
            let_interrupt_through(error)
            self._tell(budget, error, has_last=known is not None and known.says_one)
            limits = known.limits if known is not None else {}
            problem = f"failed ({type(error).__name__}: {str(error).rstrip('.')})"
            if isinstance(error, ConfigurationError):
                problem = f"said what is none ({str(error).rstrip('.')})"
        if len(self._answers) >= _MOST_VALUES:
            self._answers.clear()
        # Counted from when it came, so that whoever waited for it has it however long it took. What was asked before
        # somebody said that it changed may be the answer of before.
        answer = _LimitAnswer(limits, time.monotonic() if forgotten == self._forgotten else _LONG_AGO, problem)
        self._answers[key] = answer
        return answer

    def _awaited(self, said: Awaitable[LimitValue | None]) -> LimitValue | None:
        """What an async function says: on the application's loop, where one can be waited for, else on a new one."""

        async def answer() -> LimitValue | None:
            self._loop = _running_loop()
            return await (said if self._loop is None else asyncio.wait_for(said, _LONGEST_WAIT))

        async def anew() -> LimitValue | None:
            return await asyncio.wait_for(said, _LONGEST_WAIT)

        if "anyio" in sys.modules and (told := _from_anyio(answer)) is not None:
            return told[0]
        here = _running_loop()
        if self._loop is not None and self._loop.is_running() and here is None:
            return asyncio.run_coroutine_threadsafe(answer(), self._loop).result(_LONGEST_WAIT)
        return asyncio.run(anew()) if here is None else wait_for(lambda _: asyncio.run(anew()), _LONGEST_WAIT)

    def _tell(self, budget: Budget, error: BaseException, *, has_last: bool) -> None:
        """Log a limit function's failure, at most once a minute per budget."""
        name, now = budget.name, time.monotonic()
        if now - self._told.get(name, -_TELL_EVERY) < _TELL_EVERY:
            return
        self._told[name] = now
        if has_last:
            holds = "the last known limit holds"
        elif budget.limits:
            holds = "the fixed limit beside it holds"
        else:
            holds = "its calls are let through" if _lets_through(budget) else "its calls are refused"
        if isinstance(error, ConfigurationError):
            log.error("Budget %r: its limit is not known (%s); %s meanwhile", name, str(error).rstrip("."), holds)
        else:
            log.error("Budget %r: its limit function failed; %s meanwhile", name, holds, exc_info=error)

    def _unknown(self, cap: Cap, scope: Mapping[str, str], value: str) -> int:
        budget = cap.budget
        if _lets_through(budget):
            return NO_CAP
        answer = self._answers.get((budget.name, value))
        raise LimitUnknownError(
            f"The limit of budget {budget.name!r} for {scope_text(scope)} is not known: its limit function "
            f"{'said none' if answer is None else answer.problem}, and the budget has no fixed limit beside it. "
            "The call was not sent. Give the budget a fixed limit that holds meanwhile, or set store_failure='open' to "
            "let such calls pass."
        )


def find_key(fingerprint: str, labels: Mapping[str, str]) -> ApiKey:
    """An API key by what the ledger calls it (`Store.key_labels`)."""
    label = labels.get(fingerprint, "...")
    return ApiKey(fingerprint, label[3:]) if label.startswith("...") else ApiKey(fingerprint, "", label)


def _limits_in(said: LimitValue | None, budget: Budget, value: str) -> Mapping[Unit, int | None]:
    """What a limit function says for each unit of its budget."""
    limits: dict[Unit, int | None] = {
        unit: limit_in(said, unit, name=f"limit of {value!r}", cut=True) for unit in budget.units
    }
    if foreign := units_said(said) - set(budget.units):
        unit = min(foreign)
        raise ConfigurationError(
            f"limit of {value!r}: it says {unit}, which this budget does not limit; give it limit_{unit}= as well, for "
            "whom the function says nothing of it"
        )
    return limits


def _lets_through(budget: Budget) -> bool:
    """Whether calls go on while nobody can say what the limit is."""
    return budget.store_failure == "open" or not budget.hard


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
