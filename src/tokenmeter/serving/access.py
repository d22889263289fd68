"""Who may see and do what: scopes, rights, tokens, and how often somebody may ask."""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import product
from typing import Any, Literal, cast, get_args

from tokenmeter.config import Settings
from tokenmeter.dimensions import SCOPE_FIELDS
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import utcnow

__all__ = [
    "ACCESS",
    "BEARER",
    "EVERYTHING",
    "RIGHTS",
    "Access",
    "Limiter",
    "Only",
    "Right",
    "Scope",
    "Token",
    "address_of",
    "make_token",
]

Right = Literal["read", "budgets", "invoices", "prices"]
#: What a token can be given: to read; to set and raise budgets; to issue and credit invoices; to price calls anew.
RIGHTS: tuple[Right, ...] = get_args(Right)
#: What a caller writes to say what may be seen: ``{"member": "ada"}``, ``{"team": ["search", "ads"]}``.
Only = Mapping[str, "str | Iterable[str]"]

#: Where an ASGI scope says what a request may see and do, and whether it said so by a header, which no page of others
#: can send.
ACCESS, BEARER = "tokenmeter.access", "tokenmeter.bearer"

_PREFIX = "tokenmeter_"
_TAG = "tag:"


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of a ledger that may be seen. Hashable, so that what is made for one scope can be kept under it.

    Attributes:
        conditions: dimension and accepted values, all of which must hold; empty = everything may be seen.
    """

    conditions: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def of(cls, only: Only) -> Scope:
        """A scope out of what a person writes.

        Raises:
            ConfigurationError: nothing is named (which would show everything), an unknown dimension, an empty value.
        """
        if not isinstance(only, Mapping) or not only:  # pyright: ignore[reportUnnecessaryIsInstance] - callers' code
            raise ConfigurationError(f"only= names what may be seen, such as {{'member': 'ada'}}, not {only!r}.")
        return cls(tuple(sorted((_dimension(name), _values(name, accepted)) for name, accepted in only.items())))

    @property
    def where(self) -> dict[str, frozenset[str | None]]:
        """The same as a filter of entries."""
        return {name: frozenset[str | None](values) for name, values in self.conditions}

    def admits(self, account: Mapping[str, str | None]) -> bool:
        """Whether all that goes on `account` (dimension -> value) lies in this scope."""
        return all(account.get(name) in values for name, values in self.conditions)

    def accounts(self) -> Iterable[dict[str, str]]:
        """Every combination of the accepted values; one empty account where everything may be seen."""
        names = [name for name, _ in self.conditions]
        return (dict(zip(names, values, strict=True)) for values in product(*(values for _, values in self.conditions)))

    def to_dict(self) -> dict[str, list[str]]:
        """JSON-ready values."""
        return {name: list(values) for name, values in self.conditions}


EVERYTHING = Scope()


def _dimension(name: object) -> str:
    tag = isinstance(name, str) and name.startswith(_TAG) and len(name) > len(_TAG) and not name.endswith("!")
    if isinstance(name, str) and (name in SCOPE_FIELDS or tag):
        return name
    raise ConfigurationError(f"only= goes by {', '.join(SCOPE_FIELDS)} or tag:NAME, not by {name!r}.")


def _values(name: str, accepted: object) -> tuple[str, ...]:
    given: Sequence[Any] = (
        [accepted] if isinstance(accepted, str) or not isinstance(accepted, Iterable) else list(cast("Any", accepted))
    )
    if not given or not all(isinstance(value, str) and value for value in given):
        raise ConfigurationError(
            f"only={{{name!r}: ...}} takes a text or several, none of them empty, not {accepted!r}."
        )
    return tuple(sorted(set(given)))


@dataclass(frozen=True, slots=True)
class Access:
    """What one viewer may see and do.

    Attributes:
        name: Who it is, as the ledger's history names whoever acts; empty for a viewer without a name.
        scope: What he sees.
        can: What he may do.
    """

    name: str = ""
    scope: Scope = EVERYTHING
    can: frozenset[Right] = frozenset({"read"})


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the server knows it: by its hash.

    Attributes:
        digest: SHA-256 of the token (hex).
        access: What it gives access to.
        expires: First instant at which it is no longer good; None = good until it is taken out.
    """

    digest: str = field(repr=False)
    access: Access
    expires: datetime | None = None

    @property
    def good(self) -> bool:
        """Whether it has not expired."""
        return self.expires is None or utcnow() < self.expires

    @classmethod
    def of(cls, settings: Settings) -> list[Token]:
        """The tokens of ``[dashboard.tokens]``.

        Raises:
            ConfigurationError: one that sees only a part and acts on the whole, or a wrong scope.
        """
        found: list[Token] = []
        for name, row in settings.dashboard.tokens.items():
            try:
                scope = Scope.of(row.only) if row.only else EVERYTHING
            except ConfigurationError as error:
                raise ConfigurationError(f"dashboard.tokens.{name}: {error}") from None
            can = frozenset[Right](row.can)
            if row.only and can - {"read"}:
                raise ConfigurationError(
                    f"dashboard.tokens.{name}: what may {' and '.join(sorted(can - {'read'}))} has to see everything; "
                    "leave out only=, or let it read only."
                )
            found.append(Token(row.hash.removeprefix("sha256:"), Access(name, scope, can), row.expires))
        return found


def make_token() -> tuple[str, str]:
    """A new token (256 random bits), and the hash of it that settings keep."""
    token = _PREFIX + secrets.token_urlsafe(32)
    return token, f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"


class Limiter:
    """How often each of many may do something: `burst` times at once, then once every `every` seconds.

    Args:
        burst: How often at once.
        every: Seconds after which one more is allowed.
        most: How many are remembered; who asked longest ago is forgotten first.
    """

    def __init__(self, burst: int, every: float, most: int = 10_000) -> None:
        self._burst, self._every, self._most = burst, every, most
        self._free_at: OrderedDict[str, float] = OrderedDict()

    def wait(self, who: str) -> float:
        """Seconds until `who` may do it again; 0 = now. Nothing is counted."""
        return max(self._free_at.get(who, 0) - time.monotonic() - self._every * (self._burst - 1), 0)

    def count(self, who: str) -> None:
        """Count one more of `who`."""
        now = time.monotonic()
        self._free_at[who] = max(self._free_at.pop(who, now), now) + self._every
        while len(self._free_at) > self._most:
            self._free_at.popitem(last=False)


def address_of(client: tuple[str, int] | None) -> str:
    """Whom attempts are counted against: an address, of IPv6 the network that one host is given."""
    if client is None:
        return "unknown"
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0])
    except ValueError:
        return client[0]
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)  # noqa: PLR2004
