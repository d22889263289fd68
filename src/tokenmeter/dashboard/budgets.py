"""The pages of budgets: where they stand, how fast they fill, what they were, what they say, and who changed them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tokenmeter.budgets import Balance, Budget
from tokenmeter.budgets.agreement import describe_field, list_differences
from tokenmeter.budgets.definitions import Change
from tokenmeter.budgets.matching import parse_scope
from tokenmeter.budgets.policy import IN_FLIGHT, Unit, amount_of, limit_table, threshold_amounts
from tokenmeter.budgets.rules import BurnRate
from tokenmeter.budgets.status import name_grant, name_key
from tokenmeter.dashboard.figures import scope_name, unit_amount
from tokenmeter.dashboard.rendering import missing, page, zone_of
from tokenmeter.dashboard.view import View, label_of
from tokenmeter.dimensions import DIMENSIONS
from tokenmeter.money import ZERO, add, multiply, negate, ratio, subtract
from tokenmeter.serving.lens import ReadableMeter, pulse_of
from tokenmeter.serving.rest import NAME
from tokenmeter.stores.base import Crossing
from tokenmeter.stores.slots import from_microseconds, to_microseconds
from tokenmeter.values import dataclass

_MOST_BUDGETS = 60
_MOST_ALERTS = 50
_MOST_WINDOWS = 100
_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)
_FULL = Decimal(100)
_NEARLY = Decimal(80)
#: How much of a window must be over, in percent, before anything is said of how it goes on: the alerts' own rule.
_TELLING = BurnRate().percent


@dataclass(frozen=True, slots=True)
class CounterState:
    """One counter of a budget.

    Attributes:
        balance: Its figures.
        settled: Percent of the limit that settled calls used, at most 100, for the bar.
        held: Percent that calls in flight hold, as far as the bar has room.
        percent: Percent of the limit, used and held together; may pass 100.
        state: ``exhausted``, ``nearly`` or ``fine``.
        rate: What was spent per day of the window so far, in the balance's unit; None without a window, or where too
            little of it is over to tell.
        full_at: When it is used up at that rate; None where that cannot be said.
        calls: The URL query that shows the calls it counts in this window; None where no filter can say it.
    """

    balance: Balance
    settled: Decimal
    held: Decimal
    percent: Decimal
    state: str
    rate: Decimal | None
    full_at: datetime | None
    calls: str | None


class PastWindow(NamedTuple):
    """A window that is over, as its counter was left.

    Attributes:
        scope: Whose.
        start: Its first instant.
        end: The first after it.
        spent: What was used, in `unit`.
        unit: The limit's.
        percent: Of the limit that is in force now; None where there is none.
        calls: The URL query that shows its calls; None where no filter can say it.
    """

    scope: Mapping[str, str]
    start: datetime
    end: datetime
    spent: Decimal
    unit: Unit
    percent: Decimal | None
    calls: str | None


@dataclass(frozen=True, slots=True)
class Fired:
    """One alert: a threshold that a counter crossed.

    Attributes:
        budget: Name of the budget.
        scope: Whose: field -> value.
        percent: Of the limit; None where it was another one than was said last.
        amount: What was crossed, in `unit`; None without a unit.
        unit: The counter's; None where no definition of it is filed.
        window_start: Since when its window counts: its own start, or the budget's where that is later; None for a
            budget that has neither.
        crossing: As the store remembers it: when, and by which entry.
    """

    budget: str
    scope: Mapping[str, str]
    percent: int | None
    amount: Decimal | None
    unit: Unit | None
    window_start: datetime | None
    crossing: Crossing


def standings(meter: ReadableMeter, at: datetime, scope: Mapping[str, str] | None = None) -> list[CounterState]:
    """Every counter of every configured budget, or of those about `scope`, the fullest first. Nothing is written."""
    found = [_standing(balance, at) for balance in meter.budgets.remaining(scope or {}, at)]
    return sorted(found, key=lambda one: (negate(one.percent), one.balance.budget, sorted(one.balance.scope.items())))


def search(found: Sequence[CounterState], text: str) -> list[CounterState]:
    """Those whose budget's name, or whoever they are about, has `text` in it; upper and lower case are one."""
    text = text.casefold()
    return [
        one
        for one in found
        if any(
            text in said.casefold()
            for said in (
                one.balance.budget,
                *(scope_name(field, value) for field, value in one.balance.scope.items()),
            )
        )
    ]


def _standing(balance: Balance, at: datetime) -> CounterState:
    settled, held = (
        _percent(used, balance.limit) if balance.limit_known else ZERO for used in (balance.spent, balance.reserved)
    )
    percent = add(settled, held)
    filled = min(settled, _FULL)
    start, end, told = balance.counts_from, balance.resets_at, balance.has_passed(_TELLING, at)
    return CounterState(
        balance=balance,
        settled=filled,
        held=min(held, subtract(_FULL, filled)),
        percent=percent,
        state="exhausted" if percent >= _FULL else "nearly" if percent >= _NEARLY else "fine",
        rate=_per_day(balance.spent, at - start) if told and start is not None else None,
        full_at=balance.full_at(at) if told else None,
        calls=_calls(balance.scope, start, end),
    )


def _per_day(spent: Decimal, passed: timedelta) -> Decimal:
    return ratio(multiply(spent, _DAY // _SECOND), max(passed // _SECOND, 1))


def _calls(scope: Mapping[str, str], start: datetime | None, end: datetime | None) -> str | None:
    """The calls of a scope and a stretch of time, as a URL query."""
    if any("*" in value or not (name in DIMENSIONS or name.startswith("tag:")) for name, value in scope.items()):
        return None
    ends = {"since": start, "until": end}
    span = {name: f"{at:%Y-%m-%dT%H:%M:%S%z}" for name, at in ends.items() if at is not None} or {"period": "all"}
    return View.parse([*span.items(), *scope.items()]).url()


def past(meter: ReadableMeter, name: str, now: datetime) -> list[PastWindow]:
    """The windows of a budget that are over, the last first. Those of a rate limit are not told apart: they overlap."""
    caps = {key: cap for key, cap in meter.budgets.caps.items() if cap.budget.name == name and not cap.rolling}
    found: list[PastWindow] = []
    labels = meter.store.key_labels()
    for key, counter in meter.store.all_counters() if caps else ():
        cap = caps.get(key.budget)
        if cap is None:
            continue
        start, end = cap.spans(key.window_start)[0]
        # A counter of windows that the budget had once says nothing of those it has.
        if start != key.window_start or end is None or end > to_microseconds(now):
            continue
        scope = parse_scope(key.scope)
        spent = amount_of(cap.unit, counter.settled)
        limit = cap.limit
        first, last = from_microseconds(start), from_microseconds(end)
        percent = _percent(spent, amount_of(cap.unit, limit)) if limit is not None else None
        # A key counts by its fingerprint, which no filter takes.
        calls = None if "api_key" in scope else _calls(scope, first, last)
        found.append(PastWindow(name_key(scope, labels), first, last, spent, cap.unit, percent, calls))
    return sorted(found, key=lambda one: (one.end, one.spent), reverse=True)


def definition(budget: Budget) -> list[tuple[str, str]]:
    """What a budget says, in words: heading and text."""
    amounts = [unit_amount(amount_of(unit, amount), unit) for unit, amount in budget.limits.items()]
    table = limit_table(budget)
    if table is not None:
        amounts.append(f"{len(table)} of its own in a table")
    elif budget.limit is not None:
        amounts.append("asked of a function of the program")
    said = [
        ("counts", _scope_words(budget.scope)),
        ("limit", ", ".join(amounts)),
        ("window", budget.window.label),
        ("at the limit", "the call that would pass it is stopped before it is sent" if budget.hard else "only told"),
        ("told at", ", ".join(f"{one}%" for one in budget.thresholds or ()) or "never"),
    ]
    starts, ends = budget.effective
    if starts is not None or ends is not None:
        said.append(("in force", f"{_day(starts) or 'always'} to {_day(ends) or 'further notice'}"))
    # What the lines above say in words of their own.
    told = {"name", "period", "tz", "hard", "thresholds", "starts", "ends", "tags", "limit", *DIMENSIONS}
    said += [
        (name.replace("_", " "), describe_field(name, value))
        for name, value in budget.to_dict().items()
        if name not in told and not name.startswith("limit_")
    ]
    return said


def _day(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"


def _scope_words(scope: Mapping[str, str]) -> str:
    if not scope:
        return "every call"
    parts = [
        f"each {label_of(name)} by itself" if value == "*" else f"{label_of(name)} {value}"
        for name, value in scope.items()
    ]
    return "calls of " + ", ".join(parts)


def changes_of(history: Sequence[Change]) -> list[tuple[Change, list[tuple[str, str, str]]]]:
    """Each change of a budget with the fields it changed (name, before, after), the last first."""
    found: list[tuple[Change, list[tuple[str, str, str]]]] = []
    for change in history:
        told = list_differences(change.before, change.budget)
        found.append((change, [(name.replace("_", " "), was, now) for name, was, now in told]))
    return found[::-1]


def _percent(part: Decimal, limit: Decimal) -> Decimal:
    return multiply(ratio(max(part, ZERO), limit), 100) if limit > 0 else _FULL


def fired(meter: ReadableMeter, *, limit: int, name: str | None = None) -> list[Fired]:
    """The last alerts of all budgets, or of the one called `name`, the last first.

    Those too that were raised before a budget ended, or was given another window.
    """
    counters, labels = _counters(meter, name), meter.store.key_labels()
    only = None if name is None else list(counters)
    found = meter.store.crossings(limit=limit, budgets=only)
    return [_fired(crossing, counters.get(crossing.key.budget), labels) for crossing in found]


def _counters(meter: ReadableMeter, name: str | None) -> dict[str, tuple[Budget, Unit]]:
    """What each counter that there ever was limits, by its name in the store, as it was said last."""
    said = [(one.budget, one.era) for one in meter.budgets.history(name) if one.budget is not None]
    found: dict[str, tuple[Budget, Unit]] = {}
    for budget, era in said:
        found |= {budget.counter_name(unit, era): (budget, unit) for unit in budget.units}
    for key, cap in meter.budgets.caps.items():
        if name in {None, cap.budget.name}:
            found[key] = cap.budget, cap.unit
    return found


def _percent_of(budget: Budget, unit: Unit, threshold: int) -> int | None:
    """The percent that was crossed; None where the limit was another one at the time."""
    limit = budget.limits.get(unit)
    return None if limit is None else threshold_amounts(budget, limit).get(threshold)


def _fired(crossing: Crossing, counted: tuple[Budget, Unit] | None, labels: Mapping[str, str]) -> Fired:
    key = crossing.key
    budget, unit = counted or (None, None)
    return Fired(
        budget=budget.name if budget else key.budget,
        scope=name_key(parse_scope(key.scope), labels),
        percent=_percent_of(budget, unit, crossing.threshold) if budget and unit else None,
        amount=amount_of(unit, crossing.threshold) if unit else None,
        unit=unit,
        window_start=max(_starts(crossing, budget), default=None),
        crossing=crossing,
    )


def _starts(crossing: Crossing, budget: Budget | None) -> Iterator[datetime]:
    """The start of the window that was crossed, and the budget's own, as far as they were before the crossing."""
    if crossing.key.window_start:
        yield from_microseconds(crossing.key.window_start)
    starts = None if budget is None else budget.effective[0]
    if starts is not None and (crossing.crossed_at is None or starts <= crossing.crossed_at):
        yield starts


class BudgetPages:
    """The pages of one meter's budgets.

    Args:
        meter: Whose.
        tz: Time zone used until the URL names another; None = the browser's.
    """

    def __init__(self, meter: ReadableMeter, *, tz: str | None) -> None:
        self._meter, self._tz = meter, tz

    def routes(self) -> list[Route]:
        """Where each page is."""
        return [Route("/budgets", self.budgets), Route(f"/budgets/{NAME}", self.budget)]

    def budgets(self, request: Request) -> Response:
        """Every budget with its bar, and the last alerts."""
        state, budgets = pulse_of(self._meter.store), self._meter.budgets
        every, find = standings(self._meter, self._meter.store.now()), request.query_params.get("find", "")
        found = search(every, find)
        configured = budgets.in_force
        names = {one.name for one in configured}
        return page(
            request,
            "budgets.html",
            title="Budgets",
            state=state,
            holds=True,
            tz=zone_of(request, self._tz),
            standings=found[:_MOST_BUDGETS],
            others=max(len(found) - _MOST_BUDGETS, 0),
            find=find,
            counted=len(every),
            idle=[one for one in configured if one.name not in {each.balance.budget for each in every}],
            ended=sorted({one.name for one in budgets.history()} - names),
            alerts=fired(self._meter, limit=_MOST_ALERTS),
            configured=len(configured),
        )

    def budget(self, request: Request) -> Response:
        """One budget: what it says, where it stands, what it was, who changed it."""
        name, meter = request.path_params["name"], self._meter
        history = meter.budgets.history(name)
        budget = next((one for one in meter.budgets.in_force if one.name == name), None)
        if budget is None and not history:
            return missing(request, "No such budget", f"There is no budget {name[:64]!r}, and there never was.")
        now = meter.store.now()
        every = [one for one in standings(meter, now) if one.balance.budget == name]
        find = request.query_params.get("find", "")
        found = search(every, find)
        windows = past(meter, name, now)
        labels = meter.store.key_labels()
        return page(
            request,
            "budget.html",
            title=f"Budget {name}",
            state=pulse_of(meter.store),
            holds=True,
            tz=zone_of(request, self._tz),
            name=name,
            budget=budget,
            said=[] if budget is None else definition(budget),
            standings=found[:_MOST_BUDGETS],
            others=max(len(found) - _MOST_BUDGETS, 0),
            find=find,
            counted=len(every),
            windows=windows[:_MOST_WINDOWS],
            more_windows=max(len(windows) - _MOST_WINDOWS, 0),
            changes=changes_of(history),
            grants=[name_grant(one, labels) for one in meter.budgets.grants(name)[::-1]],
            alerts=fired(meter, limit=_MOST_ALERTS, name=name),
            examples=_examples(name, budget, every),
            limits=_limits(budget),
            stars=[] if budget is None else [field for field, value in budget.scope.items() if value == "*"],
            units=_raisable(budget),
        )


def _limits(budget: Budget | None) -> dict[str, str]:
    """The limits that it has, by their fields."""
    said = {} if budget is None else budget.to_dict()
    return {field: str(value) for field, value in said.items() if field.startswith("limit_")}


def _raisable(budget: Budget | None) -> list[Unit]:
    """The units of its limits that can be raised for one window."""
    if budget is None or budget.period.startswith("rolling"):
        return []
    return [unit for unit in budget.limits if unit != IN_FLIGHT]


def _examples(name: str, budget: Budget | None, found: Sequence[CounterState]) -> Iterator[str]:
    """The commands that change it."""
    if budget is None:
        return
    quoted = shlex.quote(name)
    limit = next(
        (key for key in ("limit_usd", "limit_tokens", "limit_requests") if getattr(budget, key) is not None), ""
    )
    if limit:
        yield f"tokenmeter budgets set {quoted} {limit}={getattr(budget, limit)} --reason '...'"
    scopes = [one.balance.scope for one in found if one.balance.scope]
    whose = "".join(f" {shlex.quote(f'{key}={each}')}" for scope in scopes[:1] for key, each in scope.items())
    yield f"tokenmeter raise {quoted} 20{whose} --reason '...'"
    yield f"tokenmeter budgets retire {quoted} --reason '...'"
