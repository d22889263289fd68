"""What a limit is at this moment: the fixed one, or the member's own; with what was granted, less what has expired."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from tokenmeter.budgets.definitions import Grant
from tokenmeter.budgets.matching import Cap, scope_text
from tokenmeter.budgets.policy import LimitFunction, Unit, limit_in, limit_table, parse_limit
from tokenmeter.budgets.windows import microseconds
from tokenmeter.errors import ConfigurationError, StoreUnavailableError
from tokenmeter.money import magnitude

__all__ = ["NO_CAP", "AskedLimits", "room"]

log = logging.getLogger("tokenmeter")

#: A limit that nothing reaches: for whom the table or the function says ``unlimited``.
NO_CAP = 9 * 10**18
_NEVER = 1 << 62
_MOST_VALUES = 65_536
_TELL_EVERY = 60


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
class _Answer:
    limits: Mapping[Unit, int | None]
    asked_at: float


class AskedLimits:
    """Answers of one budget's `Budget.limit`, remembered for `Budget.refresh` seconds.

    An answer that is too old is asked for again in the call's own thread; while the function fails the last answer
    holds, then the fixed limit, then the budget's `store_failure`.
    """

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str], _Answer] = {}
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
            limits: dict[Unit, int | None] = {
                unit: limit_in(said, unit, name=f"limit of {value!r}") for unit in budget.units
            }
        except Exception as error:  # noqa: BLE001 - it is the application's own; what is known holds
            self._tell(budget.name, error, has_last=known is not None)
            limits = dict(known.limits) if known is not None else {}
        if len(self._answers) >= _MOST_VALUES:
            self._answers.clear()
        self._answers[key] = _Answer(limits, now)
        return limits.get(cap.unit)

    def _tell(self, name: str, error: Exception, *, has_last: bool) -> None:
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
