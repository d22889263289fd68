"""What many entries share, defined once in records of its own.

An `Account` is who, what and under which terms; a `Rate` is everything of a charge but its amounts. Entries name both
by a digest of their definition. What could tell who somebody is (what the caller says of whose it is, aliases of keys)
is in no record that the chain covers: those hold the digest of a *name*, salted, and the name itself can be erased.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

from tokenmeter.attribution import ApiKey
from tokenmeter.dimensions import KEPT_WHO, kept_who
from tokenmeter.ledger import Charge, Entry
from tokenmeter.stores.encoding import FORMAT, LONGEST, compact_json, digest_of, encode_json, shorten, storable_text

_CALL = ("kind", "provider", "endpoint", "operation", "request_model", "response_model", "status", "service_tier")
_KEY = ("api_key_fingerprint", "api_key_last4", "api_key_alias")
_FIELDS = (*_CALL, "cost_source", *KEPT_WHO, *_KEY, "price_list_hash")
#: Digests of many names, by kind and text, in order; None for each that is not kept. Empty where nobody can say.
_FindNames = Callable[[Sequence[tuple[str, str]]], Sequence[str | None]]
#: What every account says: no table takes one without.
ALWAYS = frozenset({"kind", "provider", "endpoint", "operation", "status", "cost_source"})


_of_entry: Callable[[Entry], tuple[str | None, ...]] = attrgetter(*_CALL, "cost_source", "price_list_hash")
_of_key: Callable[[ApiKey], tuple[str | None, ...]] = attrgetter("fingerprint", "last4", "alias")
_of_charge: Callable[[Charge], tuple[str | None, ...]] = attrgetter(
    "model", "sku_meter", "unit", "price_id", "source", "role"
)


def _tuple_of(names: Sequence[str]) -> Any:  # its fields follow the table of dimensions, which no type checker can
    return NamedTuple("_Account", [(name, "str | None") for name in names])  # pyright: ignore[reportArgumentType, reportUnknownArgumentType, reportUnusedVariable]


class Account(_tuple_of(_FIELDS)):  # type: ignore[misc]
    """Who, what and under which terms: what many entries share. See `tokenmeter.ledger.Entry` for each field.

    Whose it is stands between ``cost_source`` and the key: a field for each of `tokenmeter.dimensions.KEPT_WHO`.
    """

    __slots__ = ()

    kind: str
    provider: str
    endpoint: str
    operation: str
    request_model: str | None
    response_model: str | None
    status: str
    service_tier: str | None
    cost_source: str
    api_key_fingerprint: str | None
    api_key_last4: str | None
    api_key_alias: str | None
    price_list_hash: str | None

    @classmethod
    def of(cls, entry: Entry) -> Account:
        """The account of `entry`."""
        key = entry.api_key
        return cls(
            entry.kind,
            entry.provider,
            entry.endpoint,
            entry.operation,
            entry.request_model,
            entry.response_model,
            entry.status,
            entry.service_tier,
            entry.cost_source,
            *kept_who(entry.attribution),
            None if key is None else key.fingerprint,
            None if key is None else key.last4,
            None if key is None else key.alias,
            entry.price_list_hash,
        )

    def texts(self) -> Iterator[str]:
        """What it says, without what it does not."""
        values: tuple[str | None, ...] = tuple(self)  # pyright: ignore[reportUnknownArgumentType] - see `_tuple_of`
        return (value for value in values if value is not None)

    @property
    def model(self) -> str | None:
        """The model reports group by."""
        return self.response_model or self.request_model

    @property
    def api_key(self) -> str | None:
        """The key as reports show it."""
        if self.api_key_fingerprint is None:
            return None
        return self.api_key_alias or f"...{self.api_key_last4}"


#: Fields of an account whose text is kept apart, as a name.
PERSONAL = (*KEPT_WHO, "api_key_alias")


class Rate(NamedTuple):
    """Everything of a charge but its amounts; price and factors as exact decimal text.

    Attributes:
        model: See `tokenmeter.ledger.Charge`, as for the others.
        sku_meter: See there.
        unit: See there.
        list_unit_price: US dollars per unit.
        multipliers: JSON ``[[name, factor], ...]``; None for none.
        price_id: See there.
        source: See there.
        role: See there.
    """

    model: str | None
    sku_meter: str
    unit: str
    list_unit_price: str | None = None
    multipliers: str | None = None
    price_id: str | None = None
    source: str | None = None
    role: str = "message"

    @classmethod
    def of(cls, charge: Charge) -> Rate:
        """The rate of `charge`."""
        price, multipliers = charge.list_unit_price, charge.multipliers
        return cls(
            charge.model,
            charge.sku_meter,
            charge.unit,
            None if price is None else str(price),
            _factors(tuple(multipliers.items())) if multipliers else None,
            charge.price_id,
            charge.source,
            charge.role,
        )


@lru_cache(maxsize=1024)
def _factors(multipliers: tuple[tuple[str, Decimal], ...]) -> str:
    return compact_json([[name, str(factor)] for name, factor in multipliers])


@lru_cache(maxsize=1024)
def parse_factors(text: str | None) -> tuple[tuple[str, Decimal], ...]:
    """Name and factor of each of a rate's `multipliers`."""
    return tuple((name, Decimal(factor)) for name, factor in json.loads(text)) if text else ()


class Name(NamedTuple):
    """A text that may have to be erased: records hold `digest`, which says nothing without the salt.

    Attributes:
        digest: First 16 bytes of SHA-256 over kind, salt and value, 32 hex digits.
        salt: 16 random bytes, hex.
        kind: One of `PERSONAL`, ``end_user`` or ``tag:NAME``.
        value: The text.
    """

    digest: str
    salt: str
    kind: str
    value: str


def name_digest(kind: str, salt: str, value: str) -> str:
    """See `Name.digest`."""
    return hashlib.sha256(b"\0".join((kind.encode(), bytes.fromhex(salt), value.encode()))).hexdigest()[:32]


def make_name(kind: str, value: str) -> Name:
    """A name for a text that has none yet. Two processes may make one each; readers go by the text."""
    salt = os.urandom(16).hex()
    return Name(name_digest(kind, salt, value), salt, kind, value)


def definition(record: str, values: Mapping[str, str | None]) -> tuple[str, bytes]:
    """A shared row as a record, and the digest by which entries name it (`digest_of`)."""
    named = {name: storable_text(shorten(value)) for name, value in values.items() if value is not None}
    body = encode_json({"format": FORMAT, "record": record, **named})
    return digest_of(body), body


class Definitions:
    """Digests for what entries share. An engine says how definitions are kept; every digest is asked for once.

    Args:
        find: Digest of a name that is kept already, by kind and text; None when there is none.
        define: Keeps definitions: JSON records, to be there no later than the next entry.

    Attributes:
        made: How many definitions were kept.
    """

    MOST = 50_000

    def __init__(self, find: Callable[[str, str], str | None], define: Callable[[Sequence[bytes]], None]) -> None:
        self._find, self._keep = find, define
        self.made = 0
        self._names: dict[tuple[str, str], str] = {}
        self._accounts: dict[Account, str] = {}
        self._shortened: set[str] = set()
        self._absent: frozenset[tuple[str, str]] = frozenset()
        self._rates: dict[Rate, str] = {}
        self._of_entries: dict[Any, str] = {}
        self._of_charges: dict[Any, str] = {}

    def _define(self, records: Sequence[bytes]) -> None:
        self._keep(records)
        self.made += 1

    def forget(self) -> None:
        """What was defined may be gone: define it again."""
        self._names, self._accounts, self._rates = {}, {}, {}
        self._of_entries, self._of_charges = {}, {}
        self._shortened = set()

    @contextlib.contextmanager
    def meeting(self, entries: Iterable[Entry], find: _FindNames) -> Generator[None]:
        """Encode `entries` within: their names are asked for together, and not one by one.

        Args:
            entries: What is about to be encoded.
            find: Digests of names, in order, by kind and text; None for each that is not kept yet.
        """
        met = dict.fromkeys(pair for entry in entries for pair in _names_of(entry) if pair not in self._names)
        asked = [(kind, storable_text(value)) for kind, value in met]
        found = dict(zip(met, find(asked) if asked else (), strict=False))
        for pair, digest in found.items():
            if digest is not None:
                _remember(self._names, pair, digest, self.MOST)
        self._absent = frozenset(name for name, pair in zip(asked, met, strict=True) if found.get(pair, "") is None)
        try:
            yield
        finally:
            self._absent = frozenset()

    def name(self, kind: str, value: str) -> str:
        """The digest that stands for `value`."""
        known = self._names.get((kind, value))
        if known is None:
            value = storable_text(value)
            known = None if (kind, value) in self._absent else self._find(kind, value)
            if known is None:
                made = make_name(kind, value)
                self._define([encode_json({"format": FORMAT, "record": "name", **made._asdict()})])
                known = made.digest
            _remember(self._names, (kind, value), known, self.MOST)
        return known

    def account(self, account: Account) -> str:
        """The digest of `account`."""
        known = self._accounts.get(account)
        if known is None:
            values = account._asdict()
            for field in PERSONAL:
                if values[field] is not None:
                    values[field] = self.name(field, values[field])
            known, body = definition("account", values)
            self._define([body])
            _remember(self._accounts, account, known, self.MOST)
            if any(len(text) > LONGEST for text in account.texts()):
                self._shortened.add(known)
        return known

    def shortens(self, account: str) -> bool:
        """Whether a text of an account, which is defined and has this digest, is kept shortened."""
        return account in self._shortened

    def account_of(self, entry: Entry) -> str:
        """The digest of an entry's account. Quick for one that was asked for before."""
        key = entry.api_key
        seen = (_of_entry(entry), kept_who(entry.attribution), None if key is None else _of_key(key))
        known = self._of_entries.get(seen)
        if known is None:
            known = self.account(Account.of(entry))
            _remember(self._of_entries, seen, known, self.MOST)
        return known

    def rate_of(self, charge: Charge) -> str:
        """The digest of a charge's rate. Quick for one that was asked for before."""
        price, factors = charge.list_unit_price, charge.multipliers
        seen = (_of_charge(charge), None if price is None else str(price), tuple(factors.items()) if factors else None)
        known = self._of_charges.get(seen)
        if known is None:
            known = self.rate(Rate.of(charge))
            _remember(self._of_charges, seen, known, self.MOST)
        return known

    def rate(self, rate: Rate) -> str:
        """The digest of `rate`."""
        known = self._rates.get(rate)
        if known is None:
            known, body = definition("rate", rate._asdict())
            self._define([body])
            _remember(self._rates, rate, known, self.MOST)
        return known


def _names_of(entry: Entry) -> Iterator[tuple[str, str]]:
    """Kind and text of each name that an entry has."""
    who, key = entry.attribution, entry.api_key
    whose = (*kept_who(who), None if key is None else key.alias, who.end_user)
    yield from ((kind, value) for kind, value in zip((*PERSONAL, "end_user"), whose, strict=True) if value is not None)
    yield from ((f"tag:{tag}", value) for tag, value in who.tags.items())


def _remember(known: dict[Any, str], key: object, digest: str, most: int) -> None:
    if len(known) >= most:
        known.clear()
    known[key] = digest
