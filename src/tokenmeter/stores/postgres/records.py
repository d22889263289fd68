"""Entries and holds as the JSON that the server's functions take, and back."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenmeter.ledger import CounterKey, Entry, Posting, Reservation
from tokenmeter.stores.postgres.chain import FIRST, link
from tokenmeter.stores.postgres.codec import (
    COLUMNS,
    decode_claims,
    decode_entry,
    encode_amounts,
    encode_claims,
    encode_entry,
)
from tokenmeter.stores.postgres.contexts import CONTEXT_FIELDS, RATE_FIELDS, Context, Rate, context_of, rate_of
from tokenmeter.stores.postgres.rollups import lines
from tokenmeter.stores.postgres.shared import digest_of
from tokenmeter.stores.postgres.slots import slots_of
from tokenmeter.stores.values import compact_json, from_microseconds, to_microseconds

__all__ = [
    "Draw",
    "Record",
    "batch_text",
    "digest_row",
    "encode_hold",
    "encode_record",
    "head_of",
    "identity_of",
    "read_hold",
]


#: Lease id and amount held against it.
Draw = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Record:
    """One settlement, ready to be sent.

    Attributes:
        entry_id: Of its entry.
        body: JSON text, see ``settle`` in the SQL functions.
        keys: Counters it posts to.
        reservation_id: The hold it frees.
    """

    entry_id: str
    body: str
    keys: tuple[CounterKey, ...]
    reservation_id: str | None


def identity_of(values: Sequence[Any]) -> int:
    """Row id of a context or rate: the first 63 bits of its content's SHA-256."""
    return int.from_bytes(digest_of(values)[:8]) >> 1


def digest_row(row: Sequence[Any], context: Context, rates: Sequence[Rate]) -> bytes:
    """SHA-256 over an entry's row and the rows it points at; equal before storing and after reading."""
    return link(FIRST, row, (digest_of(context), *map(digest_of, rates)))


def head_of(ends: Iterable[tuple[int, bytes]]) -> str:
    """One hash (hex) over the last hashes of all chains, each given with its stripe, in order of the stripes."""
    return hashlib.sha256(b"".join(bytes([stripe]) + last for stripe, last in ends)).hexdigest()


def encode_record(
    entry: Entry,
    postings: Sequence[Posting],
    *,
    reservation_id: str | None,
    only_if_held: bool,
    draws: Sequence[Draw] = (),
) -> Record:
    """`entry` and what it moves, as JSON text.

    Args:
        entry: The entry.
        postings: What it adds to counters.
        reservation_id: The hold it frees.
        only_if_held: Whether it is to be stored only if that hold is there.
        draws: What it frees of leases.

    Raises:
        ValueError: a cost is finer than one picodollar.
    """
    context, rates = _clean(context_of(entry)), [_clean(rate_of(charge)) for charge in entry.charges]
    amounts = encode_amounts(entry)
    row = _clean(encode_entry(entry, amounts, identity_of(context), [identity_of(rate) for rate in rates]))
    body = {
        "entry": _named(COLUMNS, row),
        "digest": digest_row(row, context, rates).hex(),
        "context": {"id": identity_of(context), **_named(CONTEXT_FIELDS, context)},
        "rates": [{"id": identity_of(rate), **_named(RATE_FIELDS, rate)} for rate in rates],
        "slots": slots_of(row[COLUMNS.index("occurred_at")]),
        "lines": [(line.sku_meter, line.marks, *line.sums) for line in lines(context, amounts)],
        "postings": [_posting(posting) for posting in postings],
        "hold": reservation_id,
        "draws": draws,
        "only_if_held": only_if_held,
    }
    keys = tuple(posting.key for posting in postings)
    return Record(row[0], compact_json(body), keys, reservation_id)


def _named(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Values by name, without those that are None: what is left out is NULL."""
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def _posting(posting: Posting) -> dict[str, Any]:
    return {
        "budget": posting.key.budget,
        "scope": posting.key.scope,
        "window_start": posting.key.window_start,
        "window_end": posting.window_end,
        "amount": posting.amount,
        "thresholds": posting.thresholds,
    }


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _clean(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """`values` with what PostgreSQL's text cannot hold, NUL and lone surrogates, written as escapes."""
    return tuple(_escaped(value) if isinstance(value, str) else value for value in values)


def _escaped(text: str) -> str:
    if not _UNSTORABLE.search(text):
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def batch_text(bodies: Sequence[str], *, stripe: int, kept: bool) -> str:
    """Records as one batch; `kept`: the sender keeps them until they are flushed."""
    return f'{{"stripe":{stripe},"kept":{"true" if kept else "false"},"records":[{",".join(bodies)}]}}'


def encode_hold(reservation: Reservation) -> str:
    """A reservation as JSON text."""
    call = reservation.call
    context, rates = _clean(context_of(call)), [_clean(rate_of(charge)) for charge in call.charges]
    row = _clean(encode_entry(call, encode_amounts(call), 0, range(len(rates))))
    return compact_json(
        {
            "reservation_id": reservation.reservation_id,
            "created_at": to_microseconds(reservation.created_at),
            "expires_at": to_microseconds(reservation.expires_at),
            "owner": reservation.owner,
            "claims": encode_claims(reservation.claims),
            "call": compact_json([row, context, rates]),
        }
    )


def read_hold(row: Sequence[Any]) -> Reservation:
    """The reservation of a row of ``holds``."""
    reservation_id, claims, created_at, expires_at, owner, call = row
    values, context, rates = json.loads(call)
    return Reservation(
        reservation_id=reservation_id,
        claims=decode_claims(claims),
        created_at=from_microseconds(created_at),
        expires_at=from_microseconds(expires_at),
        owner=owner,
        call=decode_entry(values, tuple(context), lambda number: tuple(rates[number])),
    )
