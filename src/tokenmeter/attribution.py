"""On whose account a call goes: scoped attribution, and API keys without their secret."""

from __future__ import annotations

import hashlib
import hmac
import inspect
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import field
from decimal import Decimal
from functools import partial
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, ParamSpec, TypeVar, Unpack

from tokenmeter.dimensions import WHO, Who, WhoArguments
from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.money import ZERO, add, to_dollars, to_picodollars
from tokenmeter.places import is_waited_for, place_in_code, say_place
from tokenmeter.processes import is_on_event_loop, make_lock, run_alone
from tokenmeter.running import SCOPES, STRAYS, decorate, runner_of, this_thread
from tokenmeter.texts import check_name, check_tag, check_text
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from tokenmeter.usage import Quantity, Usage

log = logging.getLogger("tokenmeter")

P = ParamSpec("P")
R = TypeVar("R")

_NO_TAGS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as the ledger knows it. The key itself is never stored.

    Attributes:
        fingerprint: HMAC-SHA256 of the key under the ledger's local secret, 32 hex digits.
        last4: Last four characters, for people; empty for keys too short to show any.
        alias: The user's own name for it, from the configuration.
    """

    fingerprint: str
    last4: str
    alias: str | None = None

    @property
    def label(self) -> str:
        """What reports show: the alias, else ``...last4``."""
        return self.alias or f"...{self.last4}"

    @property
    def name(self) -> str | None:
        """`label`, where it tells the key from others."""
        return self.label if self.alias or self.last4 else None

    @classmethod
    def identify(cls, key: str, *, secret: bytes, alias: str | None = None) -> ApiKey:
        """Fingerprint `key` under `secret`."""
        digest = hmac.new(secret, _to_bytes(key), hashlib.sha256).hexdigest()[:32]
        # Short strings are test keys or passwords: four characters would be most of them.
        last4 = key[-4:] if len(key) >= 12 else ""  # noqa: PLR2004
        return cls(digest, last4, alias)


def hash_key(key: str) -> str:
    """SHA-256 of an API key in hex, as ``sha256:`` references in the configuration name it."""
    return hashlib.sha256(_to_bytes(key)).hexdigest()


def _to_bytes(key: str) -> bytes:
    """`key` in UTF-8. Halves of letters, which no header can carry either, are written as escapes: no key may raise."""
    return key.encode(errors="backslashreplace")


#: Who is told of a text that no account may be called by, which is left out then; None where it is refused. For texts
#: that come with somebody's request: he must not be able to break it.
UNFIT: ContextVar[Callable[[str, ConfigurationError], None] | None] = ContextVar("tokenmeter_unfit", default=None)


def _leave_out(what: str, value: object, error: ConfigurationError) -> None:
    tell = UNFIT.get()
    if tell is None or not isinstance(value, str):  # no text at all is a fault of the program's
        raise error
    tell(what, error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution(Who):
    """On whose account a call goes: the fields of `Who`, and tags. Every field is optional; unknown is None.

    Attributes:
        tags: Free key/value pairs. A name must not end in ``!``.
    """

    tags: Mapping[str, str] = field(default_factory=lambda: _NO_TAGS)

    def __post_init__(self) -> None:
        for name in WHO:
            value = getattr(self, name)
            if value is not None:
                try:
                    check_name(value, name)
                except ConfigurationError as error:
                    _leave_out(name, value, error)
                    object.__setattr__(self, name, None)
        if self.tags:
            if not isinstance(self.tags, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - without a checker
                raise ConfigurationError(
                    f"tags must be a mapping of names to texts, such as {{'experiment': 'b'}}, not {shown(self.tags)}."
                )
            kept: dict[Any, Any] = dict(self.tags)
            for key, value in tuple(kept.items()):
                try:
                    check_tag(key)
                    check_name(value, f"tag {key!r}")
                except ConfigurationError as error:
                    _leave_out("tag", value if isinstance(key, str) else key, error)
                    del kept[key]
            object.__setattr__(self, "tags", MappingProxyType(dict(sorted(kept.items()))))

    def __reduce__(self) -> tuple[Any, ...]:  # a mapping proxy cannot be pickled
        return partial(Attribution.as_filed, {name: getattr(self, name) for name in WHO}, dict(self.tags)), ()

    def __hash__(self) -> int:
        return hash((tuple(getattr(self, name) for name in WHO), tuple(self.tags.items())))

    @classmethod
    def of(cls, given: Attribution | Mapping[str, Any] | None) -> Attribution:
        """`given` itself, or a mapping of an attribution's fields as one; None names nobody.

        Raises:
            ConfigurationError: it is neither, or has fields that no attribution has.
        """
        if given is None:
            return NOBODY
        if isinstance(given, Attribution):
            return given
        if not isinstance(given, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - without a checker
            raise ConfigurationError(
                f"attribution must be an Attribution or a mapping of its fields, not {shown(given)}."
            )
        if unknown := [name for name in given if name not in {*WHO, "tags"}]:
            raise ConfigurationError(
                f"attribution: {shown(unknown[0])} is no field of it; there are {', '.join(WHO)} and tags."
            )
        return cls(**given)

    @classmethod
    def as_filed(cls, who: Mapping[str, str | None], tags: Mapping[str, str] = _NO_TAGS) -> Attribution:
        """An attribution that a ledger holds, or that is made of others: older releases took names that are blank.

        Raises:
            ConfigurationError: a value is none that any release took.
        """
        made = object.__new__(cls)
        for name in WHO:
            if (value := who.get(name)) is not None:
                check_text(value, name)
            object.__setattr__(made, name, value)
        for key, value in tags.items():
            check_text(key, "a tag's name")
            check_text(value, f"tag {key!r}")
        object.__setattr__(made, "tags", MappingProxyType(dict(sorted(tags.items()))) if tags else _NO_TAGS)
        return made

    def with_tags(self, tags: Mapping[str, str]) -> Attribution:
        """This attribution with `tags` beside its own, in place of those of the same name."""
        return Attribution.as_filed({name: getattr(self, name) for name in WHO}, {**self.tags, **tags})

    def over(self, outer: Attribution) -> Attribution:
        """This attribution with its gaps filled from `outer`; tags are merged, this one's win."""
        if outer is NOBODY:
            return self
        if self is NOBODY:
            return outer
        values = {name: getattr(self, name) or getattr(outer, name) for name in WHO}
        return Attribution.as_filed(values, {**outer.tags, **self.tags})


NOBODY = Attribution()


#: What one entry used: quantities, reasoning, list and billed cost in picodollars; how many unpriced, and requests.
_Counted = tuple[Mapping[str, "Quantity"], int, int, int, int, int]
#: Calls of a block that are not added up yet, at most.
_MOST_WAITING = 64


class _BlockSums(NamedTuple):
    """What calls of a block come to.

    Attributes:
        quantities: By meter.
        reasoning: Tokens of them that were reasoning.
        listed: Their public price, picodollars.
        billed: Their billed cost, picodollars.
        requests: How many they are.
        unpriced: How many of them have no price.
        last: The last of them.
    """

    quantities: Mapping[str, Quantity]
    reasoning: int
    listed: int
    billed: int
    requests: int
    unpriced: int
    last: _Counted | None

    def plus(self, waiting: Sequence[_Counted]) -> _BlockSums:
        """With those that wait; where the last one here is among them, they were counted as far as it."""
        quantities, reasoning, listed, billed, requests, unpriced, last = self
        summed = dict(quantities)
        counted = next((place for place, call in enumerate(waiting, 1) if call is last), 0)
        for call in waiting[counted:]:
            for meter, quantity in call[0].items():
                before = summed.get(meter, 0)
                summed[meter] = before + quantity if type(before) is type(quantity) is int else add(before, quantity)
            reasoning, listed, billed = reasoning + call[1], listed + call[2], billed + call[3]
            requests, unpriced = requests + call[5], unpriced + call[4]
        return _BlockSums(summed, reasoning, listed, billed, requests, unpriced, waiting[-1] if waiting else last)


_NOTHING = _BlockSums({}, 0, 0, 0, 0, 0, None)


class Scope:
    """Live totals of the calls settled inside one `attribute` block (threads and tasks started inside included).

    Pickled, as for a process pool, it keeps what it attributes to and counts on its own over there.
    """

    #: Whether calls in it have to be asked for one by one: it has limits of its own.
    limits_calls: ClassVar[bool] = False

    __slots__ = (
        "_lock",
        "_merged",
        "_outer",
        "_own",
        "_sums",
        "_waiting",
        "begun",
        "opened_by",
        "stray_before",
    )

    def __init__(self, own: Attribution, outer: Scope | None = None, *, opened_by: object = None) -> None:
        self._own = own
        self._outer = outer
        self._merged = (own, NOBODY, own)
        self._lock = make_lock()
        self._sums = _NOTHING
        self._waiting: deque[_Counted] = deque()
        self.opened_by = opened_by
        self.begun = False  # whether a call was made inside
        self.stray_before = STRAYS.last

    def __reduce__(self) -> tuple[Any, ...]:
        return (Scope, (self.attribution,))

    @property
    def attribution(self) -> Attribution:
        """What calls in this block are attributed to, outer blocks merged in."""
        outer = NOBODY if self._outer is None else self._outer.attribution
        own, of_outer, merged = self._merged
        if own is not self._own or of_outer is not outer:
            own = self._own
            merged = own.over(outer)
            self._merged = (own, outer, merged)
        return merged

    def refine(self, attribution: Attribution) -> None:
        """Attribute what is called in this block from now on to `attribution`, its gaps filled as before.

        Seen wherever the block is in force: in threads, tasks and inner blocks, too.
        """
        run_alone(self._lock, self._refine, attribution)

    def _refine(self, attribution: Attribution) -> None:
        self._own = attribution.over(self._own)

    @property
    def usage(self) -> Usage:
        """What all calls in this block used together."""
        from tokenmeter.usage import Usage  # noqa: PLC0415 - a client may be made and never used

        sums = self._add_up()
        return Usage(dict(sums.quantities), sums.reasoning)

    @property
    def list_cost(self) -> Decimal:
        """Upstream cost at public prices, US dollars; calls without a known price are not in it (`unpriced`)."""
        return to_dollars(found) if (found := self._add_up().listed) else ZERO

    @property
    def billed_cost(self) -> Decimal:
        """Cost after discounts and the platform multiplier, US dollars."""
        return to_dollars(found) if (found := self._add_up().billed) else ZERO

    @property
    def requests(self) -> int:
        """Calls settled so far, failed ones included."""
        return self._add_up().requests

    @property
    def unpriced(self) -> int:
        """How many of them have no known price: their cost is missing from the two sums above."""
        return self._add_up().unpriced

    def add(
        self,
        usage: Usage,
        list_cost: Decimal | None,
        billed_cost: Decimal | None,
        *,
        unpriced: int,
        requests: int = 1,
    ) -> None:
        """Count one settled entry, or what takes one back (-1); a tool at work is 0 requests: it used and cost."""
        costs = (to_picodollars(cost or ZERO) for cost in (list_cost, billed_cost))
        self.count(usage.quantities, usage.reasoning_output_tokens, *costs, unpriced=unpriced, requests=requests)

    def count(
        self,
        quantities: Mapping[str, Quantity],
        reasoning: int,
        list_cost: int,
        billed_cost: int,
        *,
        unpriced: int,
        requests: int = 1,
    ) -> None:
        """As `add`, with costs in picodollars. Takes no lock: what was counted is added up when somebody asks."""
        waiting = self._waiting
        waiting.append((quantities, reasoning, list_cost, billed_cost, unpriced, requests))
        if len(waiting) > _MOST_WAITING and not self._lock._is_owned():  # noqa: SLF001 - a finaliser amid the adding
            run_alone(self._lock, self._take_in)

    def _add_up(self) -> _BlockSums:
        return run_alone(self._lock, lambda: self._sums.plus(tuple(self._waiting)))

    def _take_in(self) -> None:
        """Add to the sums what waits. Each call counts once, whatever is raised at whichever line."""
        waiting = self._waiting
        if counted := tuple(waiting):  # else another thread was quicker
            self._sums = self._sums.plus(counted)
            while waiting.popleft() is not counted[-1]:
                pass

    def __repr__(self) -> str:
        return f"<Scope requests={self.requests} billed_cost={self.billed_cost}>"


def current_scopes() -> tuple[Scope, ...]:
    """The open `attribute` blocks around the caller, outermost first."""
    return SCOPES.get()


def current_attribution() -> Attribution:
    """What a call made right here would be attributed to."""
    scopes = SCOPES.get()
    return scopes[-1].attribution if scopes else NOBODY


def scopes_of_call(*, named: bool = False) -> tuple[Scope, ...]:
    """The open blocks around a call that is being made right here, outermost first.

    A call outside of any block is noticed, so that a block whose calls went astray can say so; not one that is `named`,
    which says itself on whose account it goes.
    """
    scopes = SCOPES.get()
    if scopes:
        for scope in scopes:
            scope.begun = True
        return scopes
    if STRAYS.empty is not None:
        _look_for_the_block(*STRAYS.empty)
    if named or is_waited_for():
        return scopes
    if not this_thread.opens_blocks:
        STRAYS.last = (next(STRAYS.numbers), this_thread.name or this_thread.find_name())
    return _OUTSIDE if STRAYS.looks > 0 else scopes


def _look_for_the_block(block: attribute, ended_at: int) -> None:
    """A call is made outside of every block soon after one has ended that saw none: background work, a slow thread."""
    if this_thread.opens_blocks and threading.current_thread() is threading.main_thread() and not is_on_event_loop():
        return  # a program's own next line
    STRAYS.empty = None
    if time.monotonic_ns() - ended_at <= _SOON:
        block.warn(
            "ended without a call, and soon after one was made outside of every block. If that call belongs here (a "
            "background task, a thread that goes on), hand its function over as tokenmeter.carry(function)",
            where=f"the call {say_place()}",
        )


#: How many nanoseconds after its end a block without a call is looked for.
_SOON = 30 * 10**9


class _Outside(Scope):
    """What stands for the blocks of a call that is outside of every one: it looks whether one waits for the call."""

    __slots__ = ()

    def count(self, *_: object, **__: object) -> None:
        """The call is settled, in the thread that made it."""
        for scope in STRAYS.find_waiting()[-1:]:
            scope.begun = True  # it is told of here
            scope.opened_by.warn(
                "waits for a thread that made a call outside of every block: that call is recorded without it, and "
                "passed the budgets on it. Hand the thread or pool tokenmeter.carry(function), or use "
                "tokenmeter.CarryingExecutor",
                where=f"the call {say_place()}",
            )


#: The blocks of such a call.
_OUTSIDE: tuple[Scope, ...] = (_Outside(NOBODY),)


class attribute:  # noqa: N801 - used as a verb, like contextlib.suppress
    """Attribute every call inside a block or function. Use as ``with``, ``async with`` or a decorator.

    Blocks nest: an inner one keeps what it does not name, merges tags, and gives everything back at its end. Asyncio
    tasks and ``asyncio.to_thread`` inherit the block they were started in. A bare thread or pool starts without any:
    hand it ``tokenmeter.carry(function)``. A stream belongs to the block it was opened in, wherever it is read.

    A block that could not reach its calls (left in another context than it was entered in, or without any while, or
    soon before, some were made outside of every block; or it waits for a thread that made one outside of every block)
    logs a warning, once for each place in the code.

    Args:
        attribution: A ready `Attribution`; what is named beside it goes before.
        tags: Free key/value pairs.
        who: ``member``, ``team``, ``organization``, ``project``, ``route`` and ``end_user``, as in `Who`.

    Examples:
        >>> with attribute(member="ada", route="/summarise") as scope:
        ...     pass  # client.responses.create(...)
        >>> scope.requests
        0

    Raises:
        ConfigurationError: a value is no text, says nothing but blanks, or a tag's name ends in ``!``.
    """

    __slots__ = ("_in_steps", "_own", "_place")

    #: Where the block stands, for warnings, if it is not the caller's code.
    place: ClassVar[str | None] = None
    #: What the code calls it.
    verb: ClassVar[str] = "attribute"

    def __init__(
        self,
        attribution: Attribution | None = None,
        /,
        *,
        tags: Mapping[str, str] | None = None,
        **who: Unpack[WhoArguments],
    ) -> None:
        named = Attribution(tags=tags or _NO_TAGS, **who)
        if attribution is not None:
            if not isinstance(attribution, Attribution):  # pyright: ignore[reportUnnecessaryIsInstance] - without a checker
                raise ConfigurationError(
                    "attribute() takes a ready Attribution or names, such as attribute(member='ada') or "
                    f"@attribute(route='/ask'), not {shown(attribution)}."
                )
            named = named.over(attribution)
        self._own = named
        self._place = self.place
        self._in_steps = False

    # An interrupt may come at any line of these four: the blocks that are open afterwards are those of before. It may
    # come at the line of a `try` as well, and is not caught there unless what is tried stands in that line.

    def __enter__(self) -> Scope:
        before = SCOPES.get()
        try:
            return self._open(before)
        except BaseException:
            SCOPES.set(before)
            raise

    async def __aenter__(self) -> Scope:
        before = SCOPES.get()
        try:
            return self._open(before)
        except BaseException:
            SCOPES.set(before)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # fmt: off
        try: self._leave(SCOPES.get(), kind)  # noqa: E701 - see above
        # fmt: on
        except BaseException:
            self._leave(SCOPES.get(), kind)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # fmt: off
        try: self._leave(SCOPES.get(), kind)  # noqa: E701 - see above
        # fmt: on
        except BaseException:
            self._leave(SCOPES.get(), kind)
            raise

    def _open(self, outer: tuple[Any, ...]) -> Scope:
        self._place = self._place or place_in_code()
        this_thread.opens_blocks = True
        scope = self._scope_in(outer[-1] if outer else None)
        scopes = (*outer, scope)
        STRAYS.opened(scopes, on_loop=is_on_event_loop())
        SCOPES.set(scopes)
        return scope

    def _scope_in(self, outer: Scope | None) -> Scope:
        """What is open inside the block."""
        return Scope(self._own, outer, opened_by=self)

    def _leave(self, scopes: tuple[Any, ...], kind: type[BaseException] | None) -> None:
        """Of the blocks that are open here, take away this one and what was left open within it."""
        # No Token is kept: one object may be open in many contexts at once, and a generator may be closed in another
        # context than it was opened in. Only what this object opened HERE is taken away.
        depth = len(scopes) - 1
        while depth >= 0 and scopes[depth].opened_by is not self:
            depth -= 1
        if depth >= 0:
            self._look_for_strays(scopes[depth], failed=kind is not None)
            STRAYS.left(scopes[:depth])
            SCOPES.set(scopes[:depth])  # last: what fails before is begun anew
        elif kind is not GeneratorExit:  # a generator that nobody reads on may be closed anywhere
            self.warn(
                "was left in another context than it was entered in: calls made meanwhile did not see it, are recorded "
                "without it, and passed the budgets on it. A `yield` inside the block does this where a framework "
                "takes each step in another thread (answers that Gradio or Starlette stream, a `def` dependency of "
                "FastAPI): end the block before the first `yield`, decorate the generator function with it, make the "
                "dependency `async def`, or use tokenmeter.web"
            )

    def _look_for_strays(self, scope: Scope, *, failed: bool) -> None:
        if scope.begun:
            return
        if STRAYS.last is scope.stray_before:
            # Not what a framework opens around all work, whether or not it calls, nor a generator's step to its item.
            if not (failed or self.place or self._in_steps):
                STRAYS.empty = (self, time.monotonic_ns())
        else:
            self.warn(
                "saw no call, while a thread outside of every block made one. If that call belongs here, hand the "
                "thread or pool tokenmeter.carry(function), or use tokenmeter.CarryingExecutor",
                where=f"thread {STRAYS.last[1]!r}",
            )

    @property
    def where(self) -> str:
        """File and line of the block, or of the function that it is around."""
        return self._place or "an unknown place"

    def warn(self, what: str, *, where: str | None = None) -> None:
        """Say what went wrong with this block, once for its place in the code."""
        if (self.where, what) not in STRAYS.told:
            STRAYS.told.add((self.where, what))
            suffix = f" ({where})" if where else ""
            log.warning("The block tokenmeter.%s(...) at %s %s%s.", self.verb, self.where, what, suffix)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function, a coroutine function, or a generator function of either kind.

        Each run is a block of its own; a generator is inside its block only while it runs, never between its items.
        """
        return decorate(function, self._again)

    def _again(self, function: Callable[..., Any]) -> Callable[[], attribute]:
        """Makes the block of one run of `function`."""
        code = getattr(inspect.unwrap(function), "__code__", None)
        place = None if code is None else f"{code.co_filename}:{code.co_firstlineno}"
        runner = runner_of(function)
        in_steps = inspect.isgeneratorfunction(runner) or inspect.isasyncgenfunction(runner)

        def again() -> attribute:
            fresh = object.__new__(type(self))
            fresh._own, fresh._place, fresh._in_steps = self._own, place, in_steps
            return fresh

        return again
