"""On whose account a call goes: scoped attribution, and API keys without their secret."""

from __future__ import annotations

import functools
import hashlib
import hmac
import inspect
import threading
import unicodedata
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from decimal import Decimal
from types import MappingProxyType, TracebackType
from typing import Any, ParamSpec, TypeVar, cast

from tokenmeter.errors import ConfigurationError
from tokenmeter.money import ZERO
from tokenmeter.usage import Usage

__all__ = ["NOBODY", "ApiKey", "Attribution", "Scope", "attribute", "current_attribution", "current_scopes"]

P = ParamSpec("P")
R = TypeVar("R")

_NO_TAGS: Mapping[str, str] = MappingProxyType({})
_MAX_LENGTH = 512


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

    @classmethod
    def identify(cls, key: str, *, secret: bytes, alias: str | None = None) -> ApiKey:
        """Fingerprint `key` under `secret`."""
        digest = hmac.new(secret, key.encode(), hashlib.sha256).hexdigest()[:32]
        # Short strings are test keys or passwords: four characters would be most of them.
        last4 = key[-4:] if len(key) >= 12 else ""  # noqa: PLR2004
        return cls(digest, last4, alias)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """On whose account a call goes. Every field is optional; unknown is None.

    Attributes:
        member: Person or service account inside the organization.
        team: Group of members.
        organization: Customer or legal entity.
        project: Cost object.
        route: Feature or endpoint of the caller's application, for example ``/summarise``.
        end_user: The caller's own customer.
        tags: Free key/value pairs.
    """

    member: str | None = None
    team: str | None = None
    organization: str | None = None
    project: str | None = None
    route: str | None = None
    end_user: str | None = None
    tags: Mapping[str, str] = field(default_factory=lambda: _NO_TAGS)

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            value = getattr(self, name)
            if value is not None:
                _check_text(value, name)
        if self.tags:
            for key, value in self.tags.items():
                _check_text(key, "a tag's name")
                _check_text(value, f"tag {key!r}")
            object.__setattr__(self, "tags", MappingProxyType(dict(sorted(self.tags.items()))))

    def __reduce__(self) -> tuple[Any, ...]:  # a mapping proxy cannot be pickled
        return (_rebuild, ({**{name: getattr(self, name) for name in DIMENSIONS}, "tags": dict(self.tags)},))

    def __hash__(self) -> int:
        return hash((tuple(getattr(self, name) for name in DIMENSIONS), tuple(self.tags.items())))

    def over(self, outer: Attribution) -> Attribution:
        """This attribution with its gaps filled from `outer`; tags are merged, this one's win."""
        if outer is NOBODY:
            return self
        if self is NOBODY:
            return outer
        values = {name: getattr(self, name) or getattr(outer, name) for name in DIMENSIONS}
        return Attribution(**values, tags={**outer.tags, **self.tags})


#: The named dimensions, in the order reports show them.
DIMENSIONS: tuple[str, ...] = tuple(f.name for f in fields(Attribution) if f.name != "tags")

NOBODY = Attribution()


def _rebuild(values: dict[str, Any]) -> Attribution:
    return Attribution(**values)


def _check_text(value: object, name: str) -> None:
    if not isinstance(value, str) or not value or len(value) > _MAX_LENGTH:
        raise ConfigurationError(
            f"{name} must be a non-empty text of at most {_MAX_LENGTH} characters, not {value!r}; "
            "leave it out (None) when it is unknown."
        )
    # Lone surrogates cannot be stored as UTF-8, control characters break tables and exports.
    if not value.isprintable() and any(unicodedata.category(character) in {"Cc", "Cs"} for character in value):
        raise ConfigurationError(f"{name} must not contain control characters: {value!r}.")


class Scope:
    """Live totals of the calls settled inside one `attribute` block (threads and tasks started inside included).

    Attributes:
        attribution: What calls in this block are attributed to, outer blocks merged in.
    """

    __slots__ = ("_billed", "_list", "_lock", "_requests", "_unpriced", "_usage", "attribution", "opened_by")

    def __init__(self, attribution: Attribution, *, opened_by: object = None) -> None:
        self.attribution = attribution
        self.opened_by = opened_by
        self._lock = threading.Lock()
        self._usage = Usage()
        self._list = ZERO
        self._billed = ZERO
        self._requests = 0
        self._unpriced = 0

    @property
    def usage(self) -> Usage:
        """What all calls in this block used together."""
        return self._usage

    @property
    def list_cost(self) -> Decimal:
        """Upstream cost at public prices, US dollars; calls without a known price are not in it (`unpriced`)."""
        return self._list

    @property
    def billed_cost(self) -> Decimal:
        """Cost after discounts and the platform multiplier, US dollars."""
        return self._billed

    @property
    def requests(self) -> int:
        """Calls settled so far, failed ones included."""
        return self._requests

    @property
    def unpriced(self) -> int:
        """How many of them have no known price: their cost is missing from the two sums above."""
        return self._unpriced

    def add(self, usage: Usage, list_cost: Decimal | None, billed_cost: Decimal | None, *, unpriced: bool) -> None:
        """Count one settled entry. Called by the meter."""
        with self._lock:
            self._usage += usage
            self._list += list_cost or ZERO
            self._billed += billed_cost or ZERO
            self._requests += 1
            self._unpriced += unpriced

    def __repr__(self) -> str:
        return f"<Scope requests={self._requests} billed_cost={self._billed}>"


#: Innermost scope last. An immutable value: tasks and `contextvars.copy_context()` inherit it, nobody mutates it.
_SCOPES: ContextVar[tuple[Scope, ...]] = ContextVar("tokenmeter_scopes", default=())


def current_scopes() -> tuple[Scope, ...]:
    """The open `attribute` blocks around the caller, outermost first."""
    return _SCOPES.get()


def current_attribution() -> Attribution:
    """What a call made right here would be attributed to."""
    scopes = _SCOPES.get()
    return scopes[-1].attribution if scopes else NOBODY


class attribute:  # noqa: N801 - used as a verb, like contextlib.suppress
    """Attribute every call inside a block or function. Use as ``with``, ``async with`` or a decorator.

    Blocks nest: an inner one keeps what it does not name, merges tags, and gives everything back at its end. Asyncio
    tasks inherit the block they were created in. A thread starts without any block: run its target with
    ``contextvars.copy_context().run`` (``asyncio.to_thread`` does so by itself). A stream belongs to the block it was
    opened in, wherever it is read.

    Example:
        >>> with attribute(member="ada", route="/summarise") as scope:
        ...     pass  # client.responses.create(...)
        >>> scope.requests
        0

    Raises:
        ConfigurationError: a value is not a non-empty text.
    """

    __slots__ = ("_own",)

    def __init__(
        self,
        *,
        member: str | None = None,
        team: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        route: str | None = None,
        end_user: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._own = Attribution(
            member=member,
            team=team,
            organization=organization,
            project=project,
            route=route,
            end_user=end_user,
            tags=tags or _NO_TAGS,
        )

    def __enter__(self) -> Scope:
        outer = _SCOPES.get()
        scope = Scope(self._own.over(outer[-1].attribution) if outer else self._own, opened_by=self)
        _SCOPES.set((*outer, scope))
        return scope

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # No Token is kept: one object may be open in many contexts at once, and a generator may be closed in another
        # context than it was opened in. Only what this object opened HERE is taken away.
        scopes = _SCOPES.get()
        for depth in range(len(scopes) - 1, -1, -1):
            if scopes[depth].opened_by is self:
                _SCOPES.set(scopes[:depth])
                return

    async def __aenter__(self) -> Scope:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function, a coroutine function, or a generator function of either kind.

        Each run is a block of its own; a generator is inside its block only while it runs, never between its items.
        """
        return cast("Callable[P, R]", functools.wraps(function)(self._around(function)))

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            async def coroutine(*args: Any, **kwargs: Any) -> Any:
                with self._again():
                    return await function(*args, **kwargs)

            return coroutine
        if inspect.isasyncgenfunction(function):
            return lambda *args, **kwargs: _drive_async(self._again(), function(*args, **kwargs))
        if inspect.isgeneratorfunction(function):
            return lambda *args, **kwargs: _drive(self._again(), function(*args, **kwargs))

        def plain(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return function(*args, **kwargs)

        return plain

    def _again(self) -> attribute:
        fresh = object.__new__(type(self))
        fresh._own = self._own
        return fresh


def _drive(block: attribute, generator: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    step: Callable[[], Any] = functools.partial(next, generator)
    while True:
        try:
            with block:
                item = step()
        except StopIteration as stop:
            return stop.value
        try:
            sent = yield item
            step = functools.partial(generator.send, sent)
        except GeneratorExit:
            with block:
                generator.close()
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the caller throws in belongs to the generator
            step = functools.partial(generator.throw, error)


async def _drive_async(block: attribute, generator: AsyncGenerator[Any, Any]) -> AsyncGenerator[Any, Any]:
    step: Callable[[], Any] = generator.__anext__
    while True:
        try:
            with block:
                item = await step()
        except StopAsyncIteration:
            return
        try:
            sent = yield item
            step = functools.partial(generator.asend, sent)
        except GeneratorExit:
            with block:
                await generator.aclose()
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the caller throws in belongs to the generator
            step = functools.partial(generator.athrow, error)
