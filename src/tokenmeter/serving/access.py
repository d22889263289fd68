"""Who may see and do what: scopes, rights, tokens, and how often somebody may ask."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import field
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from tokenmeter.config import find_file, load_settings
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import utcnow
from tokenmeter.settings import Only, Settings, parse_only
from tokenmeter.stores.engine import condition_on
from tokenmeter.values import dataclass

Right = Literal["read", "budgets", "invoices", "prices"]
#: What a token can be given: to read; to set, raise and end budgets; to close periods, issue and credit invoices and
#: write down payments; to price calls anew.
RIGHTS: tuple[Right, ...] = get_args(Right)

#: Where an ASGI scope says what a request may see and do, and whether it said so by a header, which no page of others
#: can send.
ACCESS, BEARER = "tokenmeter.access", "tokenmeter.bearer"
#: Where it holds what only a page of its viewer can know, and what tells whether its token is still good.
PAGE_PROOF, STILL = "tokenmeter.page_proof", "tokenmeter.still"
log = logging.getLogger("tokenmeter")

_PREFIX = "tokenmeter_"
_MADE_LETTERS = 43  # 32 bytes in base64


@dataclass(frozen=True, slots=True)
class AccessScope:
    """The part of a ledger that may be seen. Hashable, so that what is made for one scope can be kept under it.

    Attributes:
        conditions: dimension and accepted values, all of which must hold; empty = everything may be seen.
    """

    conditions: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def of(cls, only: Only) -> AccessScope:
        """A scope out of what a person writes.

        Raises:
            ConfigurationError: nothing is named (which would show everything), an unknown dimension, an empty value.
        """
        return cls(parse_only(only))

    @property
    def where(self) -> dict[str, frozenset[str | None]]:
        """The same as a filter of entries."""
        return {condition_on(name): frozenset[str | None](values) for name, values in self.conditions}

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


EVERYTHING = AccessScope()


@dataclass(frozen=True, slots=True)
class Access:
    """What one viewer may see and do.

    Attributes:
        name: Who it is, as the ledger's history names whoever acts; empty for a viewer without a name.
        scope: What he sees.
        can: What he may do.
    """

    name: str = ""
    scope: AccessScope = EVERYTHING
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
        """The tokens of ``[dashboard.tokens]``."""
        return [
            Token(
                row.hash.removeprefix("sha256:"),
                Access(name, EVERYTHING if row.only is None else AccessScope.of(row.only), frozenset[Right](row.can)),
                row.expires,
            )
            for name, row in settings.dashboard.tokens.items()
        ]


class Tokens:
    """The tokens that are good: a fixed one, and those that a settings file has by now.

    The file is looked at with every question and read again when it is another one, so that a token that was taken
    out, or put in, is known with the next request; so is a file that was made since. Without the file there are none.
    One whose content is refused leaves the tokens whose hashes still stand in it; one that was changed and may not be
    read leaves none, since any of them may have been taken out. The log says so.

    Args:
        settings: Whose file to follow; what code says of its tokens stays as it is.
        fixed: A token beside these.
    """

    def __init__(self, settings: Settings | None, fixed: Token | None = None) -> None:
        self._fixed = () if fixed is None else (fixed,)
        # What a program says otherwise than its file counts. The file may be another one since it was read.
        self._follows = settings is not None and settings.tokens_of_file
        self._file = None if settings is None or settings.source is None else Path(settings.source)
        self._seen: tuple[int, ...] | None = () if self._file else None
        self._unread = False
        self._read = () if settings is None else tuple(Token.of(settings))
        self._lock = threading.Lock()
        self._door = bool(self._fixed or self._read)

    @property
    def asked_for(self) -> bool:
        """Whether somebody who asks needs one: there is one, or there was."""
        self._door = bool(self.now) or self._door
        return self._door

    @property
    def now(self) -> tuple[Token, ...]:
        """All of them, expired ones too."""
        if self._follows and ((seen := self._look()) != self._seen or self._unread):
            with self._lock:
                if self._file is not None and (seen != self._seen or self._unread):
                    self._follow(self._file, changed=self._seen not in {(), seen}, again=seen == self._seen)
                    self._seen = seen
        return (*self._fixed, *self._read)

    def _look(self) -> tuple[int, ...] | None:
        if self._file is None:
            with suppress(ConfigurationError):  # a folder, where a file was to be mounted
                self._file = find_file()
        try:
            found = None if self._file is None else self._file.stat()
        except OSError:
            return None
        # Two writings may fall into one tick of the file system's clock; who may read it is in the last of these.
        return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns)

    def _follow(self, file: Path, *, changed: bool, again: bool) -> None:
        try:
            text = file.read_bytes().decode(errors="replace").lower()
        except FileNotFoundError:
            self._read, self._unread = (), False
            return
        except OSError as error:
            self._unread = True
            if changed:  # else it says what the program read, which has given up the right to since
                self._read, self._door = (), True
            if not again:
                kept = "stay as they were" if self._read else "are good no more"
                log.error("Tokens %s, since %s cannot be read: %s", kept, file, error.strerror)  # noqa: TRY400 - it says all
            return
        self._unread = False
        try:
            self._read = tuple(Token.of(load_settings(config=file)))
        except ConfigurationError as error:
            self._read = tuple(one for one in self._read if one.digest.lower() in text)
            log.error("Tokens whose hashes are in the settings stay as they were, since those are refused: %s", error)  # noqa: TRY400 - it says all


def make_token() -> tuple[str, str]:
    """A new token (256 random bits), and the hash of it that settings keep."""
    token = _PREFIX + secrets.token_urlsafe(32)
    return token, f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"


def is_made(token: str) -> bool:
    """Whether a token may be one of `make_token`, which nobody guesses."""
    return token.startswith(_PREFIX) and len(token) >= len(_PREFIX) + _MADE_LETTERS


class Limiter:
    """How often each of many may do something: `burst` times at once, then once every `every` seconds.

    Args:
        burst: How often at once.
        every: Seconds after which one more is allowed.
    """

    #: How many are remembered; who asked longest ago is forgotten first.
    MOST = 10_000

    def __init__(self, burst: int, every: float) -> None:
        self._burst, self._every = burst, every
        self._free_at: OrderedDict[str, float] = OrderedDict()

    def wait(self, who: str) -> float:
        """Seconds until `who` may do it again; 0 = now. Nothing is counted."""
        return max(self._free_at.get(who, 0) - time.monotonic() - self._every * (self._burst - 1), 0)

    def count(self, who: str) -> None:
        """Count one more of `who`."""
        now = time.monotonic()
        # Put back at the end: first stands who asked longest ago.
        self._free_at[who] = max(self._free_at.pop(who, now), now) + self._every
        while len(self._free_at) > self.MOST:
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
