"""A budget for one run of something: an agent, a job, a request. It lives in this process and ends with its block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from tokenmeter.attribution import NOBODY, Scope, attribute
from tokenmeter.budgets.matching import Cap
from tokenmeter.budgets.plan import HeldBudget
from tokenmeter.budgets.policy import Budget, Unit, amount_of
from tokenmeter.display import unit_amount
from tokenmeter.ledger import Claim, CounterKey
from tokenmeter.processes import make_lock, run_alone
from tokenmeter.stores.base import CapReachedError, Counter


class Run(Scope):
    """What one run may use and has used; its calls' totals as of any `attribute` block, too.

    Handed to tasks by themselves, and to threads by `tokenmeter.carry`: all draw on the same limits. In another process
    the attribution goes on, the limits do not.

    Attributes:
        budget: The limits.
        place: File and line where it begins: of its block, or of the function that it is a run of.
    """

    limits_calls = True

    __slots__ = ("_counters", "_room", "budget", "caps", "place")

    def __init__(self, limits: Budget, outer: Scope | None, *, opened_by: budget, goes_on: Run | None = None) -> None:
        super().__init__(NOBODY, outer, opened_by=opened_by)
        self.budget = limits
        self.place = opened_by.where
        self.caps: tuple[Cap, ...] = tuple(Cap(limits, unit) for unit in limits.units)
        if goes_on is None:
            self._counters: dict[str, Counter] = {cap.counter_name: Counter() for cap in self.caps}
            # Reentrant, since a finaliser may settle a call in the middle of another's hold.
            self._room = make_lock()
        else:
            self._counters = goes_on._counters  # noqa: SLF001 - the same run, in its next step
            self._room = goes_on._room  # noqa: SLF001 - as above

    def __reduce__(self) -> tuple[Any, ...]:
        return (Scope, (self.attribution,))

    @property
    def remaining(self) -> Decimal:
        """What is left of its first limit, in its unit: US dollars, where those are limited. See `left` for all."""
        return next(iter(self.left.values()))

    @property
    def left(self) -> dict[Unit, Decimal]:
        """What is left of each limit, in its unit, less what calls in flight hold; negative when it was passed."""
        counters = self._counters
        return {
            cap.unit: amount_of(cap.unit, (cap.limit or 0) - counter.settled - counter.reserved)
            for cap in self.caps
            for counter in (counters[cap.counter_name],)
        }

    @property
    def spent(self) -> dict[Unit, Decimal]:
        """What settled calls have used of each limit, in its unit."""
        counters = self._counters
        return {cap.unit: amount_of(cap.unit, counters[cap.counter_name].settled) for cap in self.caps if cap.counts}

    def holds(self) -> list[HeldBudget]:
        """Its limits as every other budget's."""
        return [HeldBudget(cap, {}, ((self.key_of(cap), None),), cap.limit or 0, run=self) for cap in self.caps]

    def key_of(self, cap: Cap) -> CounterKey:
        """The counter of one of its limits; it is in no store."""
        return CounterKey(cap.counter_name, f"run={id(self):x}", 0)

    def counter(self, key: CounterKey) -> Counter:
        """Where one of its limits stands."""
        return self._counters[key.budget]

    def hold(self, claims: Sequence[Claim]) -> None:
        """Hold every claim or none.

        Raises:
            CapReachedError: one does not fit.
        """
        run_alone(self._room, self._hold, claims)

    def _hold(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            counter = self._counters[claim.key.budget]
            if claim.limit is not None and counter.settled + counter.reserved + claim.amount > claim.limit:
                raise CapReachedError(claim, counter.settled, counter.reserved)
        self._reserve({claim.key.budget: claim.amount for claim in claims})

    def free(self, claims: Sequence[Claim]) -> None:
        """Give back what `claims` hold."""
        run_alone(self._room, self._reserve, {claim.key.budget: -claim.amount for claim in claims})

    def _reserve(self, amounts: Mapping[str, int]) -> None:
        """Hold more of each counter, or less: all at once."""
        counters = self._counters
        standing = {name: Counter(counters[name].settled, counters[name].reserved + amounts[name]) for name in amounts}
        counters.update(standing)

    def post(self, spent: Callable[[Unit], int]) -> None:
        """Count one settled entry: `spent` says how much of a unit it used."""
        run_alone(self._room, self._post, {cap.counter_name: spent(cap.unit) for cap in self.caps if cap.counts})

    def _post(self, amounts: Mapping[str, int]) -> None:
        counters = self._counters
        standing = {name: Counter(counters[name].settled + amounts[name], counters[name].reserved) for name in amounts}
        counters.update(standing)

    def __repr__(self) -> str:
        left = ", ".join(unit_amount(amount, unit) for unit, amount in self.left.items())
        return f"<Run {self.budget.name!r}: {left} left>"


class RunClaims:
    """What one call holds in the runs around it."""

    __slots__ = ("_claims",)

    def __init__(self, claims: Mapping[Run, Sequence[Claim]]) -> None:
        self._claims = dict(claims)

    @classmethod
    def hold(cls, claims: Mapping[Run, Sequence[Claim]]) -> RunClaims:
        """Hold in every run or in none, the innermost first.

        Raises:
            CapReachedError: one has no room.
        """
        held: dict[Run, Sequence[Claim]] = {}
        try:
            for run, wanted in claims.items():
                run.hold(wanted)
                held[run] = wanted
        except BaseException:
            cls(held).free()
            raise
        return cls(held)

    def free(self) -> None:
        """Give everything back; once."""
        claims, self._claims = self._claims, {}
        for run, held in claims.items():
            run.free(held)


def runs_of(scopes: Sequence[Scope]) -> list[Run]:
    """The runs among open blocks, the innermost first."""
    return [scope for scope in reversed(scopes) if isinstance(scope, Run)]


class budget(attribute):  # noqa: N801 - used as a verb, like attribute
    """Limit what the calls inside a block may use together. Use as ``with``, ``async with`` or a decorator.

    The commonest accident of an agent is a loop that does not end: a call that would pass the limit is stopped before
    it is sent, with `BudgetExceededError`. Blocks nest, and a call must fit into each. Tasks draw on the run they were
    started in; threads and pools do with `tokenmeter.carry`. Nothing of it is in the ledger: for what must hold over
    processes use a `Budget`.

    Args:
        name: How errors call it.
        limit_usd: US dollars of billed cost.
        limit_tokens: Input and output tokens together.
        limit_requests: Calls.
        limit_in_flight: Calls that may be under way at the same time.
        estimate: As of `Budget`, and so are the others.
        inject_max_tokens: Whether a call that names no output cap gets one.
        unbounded: What is done with a call that has no upper bound.
        unknown_price: What is done with a model whose price is not known.

    Examples:
        >>> with budget(limit_usd="2.00") as run:
        ...     pass  # agent.run(...)
        >>> run.remaining
        Decimal('2')

    Raises:
        ConfigurationError: no limit, or a wrong one.
    """

    __slots__ = ("_begun", "_budget")

    verb = "budget"

    def __init__(
        self,
        name: str = "run",
        *,
        limit_usd: Decimal | int | str | None = None,
        limit_tokens: int | None = None,
        limit_requests: int | None = None,
        limit_in_flight: int | None = None,
        estimate: Literal["strict", "expected"] = "strict",
        inject_max_tokens: bool = False,
        unbounded: Literal["refuse", "expected"] = "refuse",
        unknown_price: Literal["hold", "refuse"] = "hold",
    ) -> None:
        super().__init__()
        self._begun: Run | None = None
        self._budget = Budget(
            name=name,
            period="total",
            limit_usd=limit_usd,
            limit_tokens=limit_tokens,
            limit_requests=limit_requests,
            limit_in_flight=limit_in_flight,
            estimate=estimate,
            inject_max_tokens=inject_max_tokens,
            unbounded=unbounded,
            unknown_price=unknown_price,
        )

    if TYPE_CHECKING:

        def __enter__(self) -> Run: ...

        async def __aenter__(self) -> Run: ...

    def _scope_in(self, outer: Scope | None) -> Run:
        run = Run(self._budget, outer, opened_by=self, goes_on=self._begun)
        if self._in_steps and self._begun is None:  # a generator's run is one, whoever asks for its next item
            self._begun = run
        return run

    def _again(self, function: Callable[..., Any]) -> Callable[[], attribute]:
        again = super()._again(function)

        def with_budget() -> attribute:
            fresh = again()
            assert isinstance(fresh, budget)  # noqa: S101 - made of this very class
            fresh._budget, fresh._begun = self._budget, None  # noqa: SLF001 - our own
            return fresh

        return with_budget
