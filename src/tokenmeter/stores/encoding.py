"""How a record is written as JSON: its values, and the parts that the records of a plan's calls share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from json.encoder import encode_basestring
from typing import Any

from pydantic_core import PydanticSerializationError, from_json, to_json

from tokenmeter.ledger import COLUMNS
from tokenmeter.providers.wire import type_of

#: The rules by which records are written. A record without a name that a later format adds reads as if it were None.
FORMAT = 1
#: The longest text a record holds (characters). What is longer is cut, and the entry is flagged.
LONGEST = 512
#: The most bytes that a provider's usage may take, and all that is not the account. What is larger is left out or cut,
#: and the entry is flagged.
_LARGEST_USAGE, _LARGEST = 16_384, 24_576
SHORTENED, USAGE_DROPPED = "shortened", "raw_usage_dropped"


def storable_text(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, and NUL, which PostgreSQL cannot, written as escapes."""
    return text if text.isprintable() else text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def encode_json(value: object) -> bytes:
    """A value in a record, as JSON; what JSON has no form for becomes text."""
    try:
        return to_json(value, inf_nan_mode="strings", fallback=str)
    except PydanticSerializationError:  # rare: half a character off the wire
        return to_json(_storable(value), inf_nan_mode="strings", fallback=str)


def quoted(text: str) -> bytes:
    """A text in a record, as JSON."""
    return encode_basestring(text).encode() if text.isascii() else encode_json(text)


def quoted_text(text: str) -> str:
    """`quoted`, as text."""
    return encode_basestring(text) if text.isascii() else json_text(text)


def json_text(value: object) -> str:
    """`encode_json`, as text."""
    return encode_json(value).decode()


def counts_text(counts: Mapping[str, Any]) -> str:
    """`json_text` of an object that holds whole numbers, and such objects: right after an SDK's call a third of it."""
    values, names = tuple(counts.values()), tuple(counts)
    form = _FORMS.get(names) or _form_of(names)
    if form is None:
        return json_text(counts)
    if _INTEGERS.issuperset(map(type, values)):  # nearly always, below the first level
        return form % values
    return form.replace("%d", "%s") % tuple(map(_count_text, values))


def _count_text(value: Any) -> object:
    form = type_of(value)
    return (
        value if form is int else "null" if value is None else counts_text(value) if form is dict else json_text(value)
    )


def _form_of(names: tuple[object, ...]) -> str | None:
    """An object with these names, a place for each value; None where a name has to be escaped."""
    if not all(type(name) is str and name.isidentifier() for name in names):  # mocked bodies have anything
        return None
    if len(_FORMS) >= _MOST_FORMS:
        _FORMS.clear()
    form = _FORMS[names] = "{" + ",".join(f'"{name}":%d' for name in names) + "}"
    return form


_INTEGERS = frozenset({int})
#: By the names of an object; usage objects come in few forms.
_FORMS: dict[tuple[object, ...], str] = {}
_MOST_FORMS = 256


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, Mapping):
        return {_storable(key): _storable(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def digest_of(body: bytes) -> str:
    """What entries name a definition by: the first 16 bytes of its SHA-256, hex."""
    return hashlib.sha256(body).hexdigest()[:32]


def shorten(text: str) -> str:
    """`text` as long as a record takes one."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _exact(value: object) -> str:
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{value!r} cannot be stored.")


#: Compact JSON; a Decimal becomes text, so that a quantity comes back as exactly what it was.
compact_json: Callable[[object], str] = json.JSONEncoder(separators=(",", ":"), default=_exact).encode


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
            rest = encode_json(values)
        if len(rest) > _LARGEST:
            rest = encode_json(_within_bounds(values))
        return self._begin + rest[1:]

    def record(self, values: str) -> bytes | None:
        """As `body`, of values that are written already, without the braces; None for what may have to be cut."""
        return None if len(values) > _LARGEST // 4 else self._begin + values.encode() + b"}"


def _within_bounds(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = dict(values)
    flags: set[str] = set(kept.get("flags", ()))
    for name in ("response_id", "request_id", *_TEXT_COLUMNS, "trace_id", "span_id"):
        if len(kept.get(name) or "") > LONGEST:
            kept[name] = shorten(kept[name])
            flags.add(SHORTENED)
    if "raw_usage" in kept and len(encode_json(kept["raw_usage"])) > _LARGEST_USAGE:
        del kept["raw_usage"]
        flags.add(USAGE_DROPPED)
    if flags:
        kept["flags"] = sorted(flags)
        kept = {name: kept[name] for name in (*_ORDER, *(set(kept) - set(_ORDER))) if name in kept}
    return kept


_TEXT_COLUMNS = tuple(name for name, kind in COLUMNS.items() if kind == "text")
_ORDER = (
    *("id", "occurred_at", "recorded_at", "response_id", "request_id", "streamed", "attempts", "latency_us"),
    *("first_token_us", "end_user", "tags", "quantities", "reasoning", "charges", "list", "contracted", "billed"),
    *("flags", "raw_usage", *COLUMNS, "trace_id", "span_id", "reservation", "dedup_key"),
)


def hold_record(hold_id: str, created_at: int, expires_at: int, owner: bytes, call: bytes) -> bytes:
    """The record of a hold; `call` is the record of the entry that it becomes when it expires.

    Times are microseconds since the epoch; the owner comes as JSON: see `quoted`.
    """
    return b'{"format":%d,"record":"hold","id":%s,"created_at":%d,"expires_at":%d,"owner":%s,"call":%s}' % (
        FORMAT,
        quoted(hold_id),
        created_at,
        expires_at,
        owner,
        call,
    )


def note_usage(record: bytes, effects: Mapping[str, Any]) -> bytes:
    """The record of a hold that says of its call what `effects` do (`tokenmeter.stores.effects.note_effects`)."""
    values: dict[str, Any] = from_json(record)
    told = {name: effects[name] for name in ("quantities", "reasoning", "response_id") if name in effects}
    call = {name: value for name, value in {**values["call"], **told}.items() if value or name not in told}
    return encode_json({**values, "call": call})
