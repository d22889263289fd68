"""The record: how an entry is written down, for every engine and for good.

A record is one JSON object of named values; what is not known is left out, and `FORMAT` says by which rules it was
written. The chain covers exactly these bytes, so a later release may add a name and still verify what is there.

What many entries have in common is defined once, in records of its own: the `Account` (who, what, under which terms)
and the `Rate` of a charge (everything of it but its amounts). Entries name both by a digest of their definition. What
could tell who somebody is (what the caller says of whose it is, aliases of keys) is in no record that the chain covers:
those hold the digest of a *name*, salted, and the name itself can be erased.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

from pydantic_core import PydanticSerializationError, from_json, to_json

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.dimensions import KEPT_WHO, kept_who
from tokenmeter.ledger import COLUMNS, Charge, Claim, CounterKey, Entry, Reservation
from tokenmeter.money import to_dollars, to_picodollars
from tokenmeter.providers.wire import type_of
from tokenmeter.stores.slots import from_microseconds, to_microseconds
from tokenmeter.usage import Quantity, Usage

#: The rules by which records are written. A record without a name that a later format adds reads as if it were None.
FORMAT = 1
#: The longest text a record holds (characters), and the most that a provider's usage may take (bytes). What is longer
#: is cut or left out, and the entry is flagged.
_LONGEST, _LARGEST_USAGE, _LARGEST = 512, 16_384, 24_576
SHORTENED, USAGE_DROPPED = "shortened", "raw_usage_dropped"
#: Most of anything in an entry, and most picodollars (100 billion dollars): sums of thousands, or dozens, of such stay
#: within 64 bits.
_MOST, _MOST_COST = 10**15, 10**23


_CALL = ("kind", "provider", "endpoint", "operation", "request_model", "response_model", "status", "service_tier")
_KEY = ("api_key_fingerprint", "api_key_last4", "api_key_alias")
_FIELDS = (*_CALL, "cost_source", *KEPT_WHO, *_KEY, "price_list_hash")


_of_entry: Callable[[Entry], tuple[str | None, ...]] = attrgetter(*_CALL, "cost_source", "price_list_hash")
_columns_of: Callable[[Entry], tuple[str | int | None, ...]] = attrgetter(*COLUMNS)
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
def _multipliers(text: str | None) -> tuple[tuple[str, Decimal], ...]:
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


def storable_text(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, and NUL, which PostgreSQL cannot, written as escapes."""
    return text if text.isprintable() else text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _encoded(value: object) -> bytes:
    try:
        return to_json(value, inf_nan_mode="strings", fallback=str)
    except PydanticSerializationError:  # rare: half a character off the wire
        return to_json(_storable(value), inf_nan_mode="strings", fallback=str)


def quoted(text: str) -> bytes:
    """A text in a record, as JSON: most need no escaping."""
    return b'"%b"' % text.encode() if text.isalnum() and text.isascii() else _encoded(text)


def quoted_text(text: str) -> str:
    """`quoted`, as text."""
    plain = text.isascii() and text.isprintable() and '"' not in text and "\\" not in text
    return f'"{text}"' if plain else json_text(text)


def json_text(value: object) -> str:
    """A value in a record, as JSON."""
    return _encoded(value).decode()


def counts_text(counts: Mapping[str, Any]) -> str:
    """`json_text` of an object that holds whole numbers, and such objects: right after an SDK's call a third of it."""
    text = ""
    for name, value in counts.items():
        if type(name) is not str or not name.isidentifier():  # pyright: ignore[reportUnnecessaryComparison] - mocked bodies
            return json_text(counts)
        form = type_of(value)
        if form is int:
            text = f'{text},"{name}":{value}'
        elif value is None:
            text = f'{text},"{name}":null'
        else:
            text = f'{text},"{name}":{counts_text(value) if form is dict else json_text(value)}'
    return f"{{{text[1:]}}}"


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, Mapping):
        return {_storable(key): _storable(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def definition(record: str, values: Mapping[str, str | None]) -> tuple[str, bytes]:
    """A shared row as a record, and the digest by which entries name it (`digest_of`)."""
    named = {name: storable_text(_bounded(value)) for name, value in values.items() if value is not None}
    body = _encoded({"format": FORMAT, "record": record, **named})
    return digest_of(body), body


def digest_of(body: bytes) -> str:
    """What entries name a definition by: the first 16 bytes of its SHA-256, hex."""
    return hashlib.sha256(body).hexdigest()[:32]


def _bounded(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _exact(value: object) -> str:
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{value!r} cannot be stored.")


#: Compact JSON; a Decimal becomes text, so that a quantity comes back as exactly what it was.
compact_json: Callable[[object], str] = json.JSONEncoder(separators=(",", ":"), default=_exact).encode


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

    def name(self, kind: str, value: str) -> str:
        """The digest that stands for `value`."""
        known = self._names.get((kind, value))
        if known is None:
            value = storable_text(value)
            known = self._find(kind, value)
            if known is None:
                made = make_name(kind, value)
                self._define([_encoded({"format": FORMAT, "record": "name", **made._asdict()})])
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
            if any(len(text) > _LONGEST for text in account.texts()):
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


def _remember(known: dict[Any, str], key: object, digest: str, most: int) -> None:
    if len(known) >= most:
        known.clear()
    known[key] = digest


class Template:
    """The parts of an entry's record that a plan's calls share, written once.

    Args:
        account: Digest of the account.
    """

    __slots__ = ("_begin",)

    def __init__(self, account: str) -> None:
        self._begin = b'{"format":%d,"record":"entry","account":"%s",' % (FORMAT, account.encode())

    def body(self, values: Mapping[str, Any]) -> bytes:
        """The record of one entry.

        Args:
            values: In this order, each absent when it is None, 0, empty or as usual: ``id``, ``occurred_at``,
                ``recorded_at`` (microseconds since the epoch), ``response_id``, ``request_id``, ``streamed`` (true),
                ``attempts`` (above 1), ``latency_us``, ``first_token_us``, ``end_user`` (name), ``tags`` (name of the
                tag -> name of its value), ``quantities`` (meter -> int, or decimal text), ``reasoning``, ``charges``
                (``rate``, ``quantity`` and costs), the costs ``list``, ``contracted`` and ``billed`` in picodollars
                (absent: as the one before; ``list`` absent: unpriced), ``flags``, ``raw_usage``, the
                `tokenmeter.ledger.COLUMNS`, ``trace_id``, ``span_id``, ``reservation``, ``dedup_key``.
        """
        try:
            rest = to_json(values, inf_nan_mode="strings", fallback=str)
        except PydanticSerializationError:
            rest = _encoded(values)
        if len(rest) > _LARGEST:
            rest = _encoded(_within_bounds(values))
        return self._begin + rest[1:]

    def record(self, values: str) -> bytes | None:
        """As `body`, of values that are written already, without the braces; None for what may have to be cut."""
        return None if len(values) > _LARGEST // 4 else self._begin + values.encode() + b"}"


def _within_bounds(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = dict(values)
    flags: set[str] = set(kept.get("flags", ()))
    for name in ("response_id", "request_id", *_TEXT_COLUMNS, "trace_id", "span_id"):
        if len(kept.get(name) or "") > _LONGEST:
            kept[name] = _bounded(kept[name])
            flags.add(SHORTENED)
    if "raw_usage" in kept and len(_encoded(kept["raw_usage"])) > _LARGEST_USAGE:
        del kept["raw_usage"]
        flags.add(USAGE_DROPPED)
    if flags:
        kept["flags"] = sorted(flags)
        kept = {name: kept[name] for name in (*_ORDER, *(set(kept) - set(_ORDER))) if name in kept}
    return kept


_TEXT_COLUMNS = tuple(name for name, kind in COLUMNS.items() if kind == "text")
_NO_COLUMNS = (None,) * len(COLUMNS)
_ORDER = (
    *("id", "occurred_at", "recorded_at", "response_id", "request_id", "streamed", "attempts", "latency_us"),
    *("first_token_us", "end_user", "tags", "quantities", "reasoning", "charges", "list", "contracted", "billed"),
    *("flags", "raw_usage", *COLUMNS, "trace_id", "span_id", "reservation", "dedup_key"),
)


# -- an entry as a record, and back


def encode_entry(entry: Entry, shared: Definitions) -> bytes:  # noqa: C901, PLR0912, PLR0915 - one branch for each name that may be absent
    """The record of any entry.

    Raises:
        ValueError: a cost is finer than one picodollar.
        OverflowError: a quantity, a count or a cost is more than a ledger can add up.
    """
    used, latency_us, first_token_us = entry.usage, entry.latency_us, entry.first_token_us
    charges: list[dict[str, Any]] = []
    for charge in entry.charges:
        line: dict[str, Any] = {"rate": "", "quantity": charge.quantity}
        _put_costs(line, charge)
        charges.append(line)
        _check(charge.quantity)
    costs: dict[str, Any] = {}
    _put_costs(costs, entry)
    _check(
        *used.quantities.values(), used.reasoning_output_tokens, entry.attempts, latency_us or 0, first_token_us or 0
    )
    columns = _columns_of(entry)
    if columns != _NO_COLUMNS:
        _check(*(value for value in columns if isinstance(value, int)))
    # Only now, since definitions are written: a refused entry leaves nothing behind.
    for line, charge in zip(charges, entry.charges, strict=True):
        line["rate"] = shared.rate_of(charge)
    account = shared.account_of(entry)
    template = Template(account)
    who, flags = entry.attribution, entry.flags
    if shared.shortens(account):
        flags = tuple(sorted({*flags, SHORTENED}))
    values: dict[str, Any] = {
        "id": entry.entry_id,
        "occurred_at": to_microseconds(entry.occurred_at),
        "recorded_at": to_microseconds(entry.recorded_at),
    }
    # One by one, in the order of `Template.body`: this is most of what an import costs.
    if entry.response_id is not None:
        values["response_id"] = storable_text(entry.response_id)  # a column of its own, which is searched
    if entry.request_id is not None:
        values["request_id"] = entry.request_id
    if entry.streamed:
        values["streamed"] = True
    if entry.attempts != 1:
        values["attempts"] = entry.attempts
    if latency_us is not None:
        values["latency_us"] = latency_us
    if first_token_us is not None:
        values["first_token_us"] = first_token_us
    if who.end_user is not None:
        values["end_user"] = shared.name("end_user", who.end_user)
    if who.tags:
        values["tags"] = {tag: shared.name(f"tag:{tag}", value) for tag, value in who.tags.items()}
    if used.quantities:
        values["quantities"] = dict(used.quantities)
    if used.reasoning_output_tokens:
        values["reasoning"] = used.reasoning_output_tokens
    if charges:
        values["charges"] = charges
    values |= costs
    if flags:
        values["flags"] = list(flags)
    if entry.raw_usage is not None:
        values["raw_usage"] = _parsed(entry.raw_usage)
    if columns != _NO_COLUMNS:
        values |= {name: value for name, value in zip(COLUMNS, columns, strict=True) if value is not None}
    if entry.trace_id is not None:
        values["trace_id"] = entry.trace_id
    if entry.span_id is not None:
        values["span_id"] = entry.span_id
    if entry.reservation_id is not None:
        values["reservation"] = entry.reservation_id
    if entry.dedup_key is not None:
        values["dedup_key"] = kept_key(entry.dedup_key)
    return template.body(values)


def _check(*quantities: Quantity) -> None:
    for quantity in quantities:
        if not -_MOST <= quantity <= _MOST:
            raise OverflowError(f"{quantity} is more than a ledger can count.")


def kept_key(key: str | None) -> str | None:
    """A dedup key as records keep it, and as it is to be looked for: a long one ends in its digest."""
    if key is None:
        return None
    key = storable_text(key)
    if len(key) <= _LONGEST:
        return key
    return f"{key[:400]}:{hashlib.sha256(key.encode()).hexdigest()}"


def _parsed(text: str) -> Any:
    """The usage object of a JSON text that can be made again from it; else the text."""
    try:
        value: Any = from_json(text.encode())
    except (ValueError, UnicodeEncodeError):
        return text
    is_object = type(value) in {dict, list}  # `isinstance` would make its type partly unknown
    return value if is_object and _encoded(value).decode() == text else text


def _put_costs(named: dict[str, Any], line: Entry | Charge) -> None:
    """Note the costs of an entry or a charge, each where it is not as the one before."""
    same: Decimal | None = None
    before: int | None = None
    for name, amount in (("list", line.list_cost), ("contracted", line.contracted_cost), ("billed", line.billed_cost)):
        if amount is same:
            continue
        same = amount
        picodollars = None if amount is None else to_picodollars(amount)
        if picodollars is not None and not -_MOST_COST <= picodollars <= _MOST_COST:
            raise OverflowError(f"{amount} USD is more than a ledger can count.")
        if picodollars != before:
            named[name] = before = picodollars


def costs_of(named: Mapping[str, Any]) -> tuple[int | None, int | None, int | None]:
    """List, contracted and billed cost of an entry or a charge, in picodollars."""
    first = named.get("list")
    second = named.get("contracted", first)
    return first, second, named.get("billed", second)


def _dollars(amount: int | None) -> Decimal | None:
    return None if amount is None else to_dollars(amount)


def _quantity(value: int | str) -> Quantity:
    return Decimal(value) if isinstance(value, str) else value


def _decode_charge(charge: Mapping[str, Any], rate: Rate) -> Charge:
    first, second, third = costs_of(charge)
    return Charge(
        model=rate.model,
        sku_meter=rate.sku_meter,
        quantity=_quantity(charge["quantity"]),
        unit=rate.unit,
        list_unit_price=None if rate.list_unit_price is None else Decimal(rate.list_unit_price),
        multipliers=dict(_multipliers(rate.multipliers)),
        list_cost=_dollars(first),
        contracted_cost=_dollars(second),
        billed_cost=_dollars(third),
        price_id=rate.price_id,
        source=rate.source,
        role=rate.role,
    )


def decode_entry(
    record: Mapping[str, Any], account: Account, rate: Callable[[str], Rate], name: Callable[[str], str]
) -> Entry:
    """The entry of a record.

    Args:
        record: The record, parsed.
        account: What its ``account`` names, with texts in place of names.
        rate: Digest -> rate.
        name: Digest -> text.
    """
    get = record.get
    first, second, third = costs_of(record)
    fingerprint = account.api_key_fingerprint
    raw: Any = get("raw_usage")
    values: dict[str, Any] = {  # fields of an account are plain text, those of an entry closed sets
        **{name: record[name] for name in COLUMNS if name in record},
        "kind": account.kind,
        "status": account.status,
        "cost_source": account.cost_source,
    }
    return Entry(
        entry_id=record["id"],
        occurred_at=from_microseconds(record["occurred_at"]),
        recorded_at=from_microseconds(record["recorded_at"]),
        provider=account.provider,
        endpoint=account.endpoint,
        operation=account.operation,
        request_model=account.request_model,
        response_model=account.response_model,
        response_id=get("response_id"),
        request_id=get("request_id"),
        streamed=get("streamed", False),
        attempts=get("attempts", 1),
        latency_us=get("latency_us"),
        first_token_us=get("first_token_us"),
        service_tier=account.service_tier,
        attribution=Attribution(
            **{name: getattr(account, name) for name in KEPT_WHO},
            end_user=name(record["end_user"]) if "end_user" in record else None,
            tags={tag: name(value) for tag, value in get("tags", {}).items()},
        ),
        api_key=None
        if fingerprint is None
        else ApiKey(fingerprint, account.api_key_last4 or "", account.api_key_alias),
        usage=Usage({meter: _quantity(value) for meter, value in get("quantities", {}).items()}, get("reasoning", 0)),
        charges=tuple(_decode_charge(charge, rate(charge["rate"])) for charge in get("charges", ())),
        list_cost=_dollars(first),
        contracted_cost=_dollars(second),
        billed_cost=_dollars(third),
        flags=tuple(get("flags", ())),
        price_list_hash=account.price_list_hash,
        raw_usage=raw if raw is None or isinstance(raw, str) else _encoded(raw).decode(),
        reservation_id=get("reservation"),
        dedup_key=get("dedup_key"),
        trace_id=get("trace_id"),
        span_id=get("span_id"),
        **values,
    )


# -- holds


def hold_record(hold_id: bytes, created_at: int, expires_at: int, owner: bytes, call: bytes) -> bytes:
    """The record of a hold; `call` is the record of the entry that it becomes when it expires.

    Identity and owner come as JSON: see `quoted`.
    """
    return b'{"format":%d,"record":"hold","id":%s,"created_at":%d,"expires_at":%d,"owner":%s,"call":%s}' % (
        FORMAT,
        hold_id,
        created_at,
        expires_at,
        owner,
        call,
    )


def claims_of(rows: Sequence[Sequence[Any]]) -> tuple[Claim, ...]:
    """Claims from ``[[budget, scope, window start, window end, amount, limit], ...]``."""
    return tuple(Claim(CounterKey(b, s, start), limit, amount, end) for b, s, start, end, amount, limit in rows)


def decode_hold(
    record: Mapping[str, Any], claims: Sequence[Sequence[Any]], expires_at: datetime, call: Entry
) -> Reservation:
    """The reservation of a hold's record."""
    return Reservation(
        reservation_id=record["id"],
        claims=claims_of(claims),
        created_at=from_microseconds(record["created_at"]),
        expires_at=expires_at,
        owner=record["owner"],
        call=call,
    )
