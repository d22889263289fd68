"""Instants, money and JSON as stores keep them: integers and text."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

#: Picodollars in a microdollar: where summed money columns are split.
MICRO = 1_000_000
_SECOND = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_microseconds(moment: datetime) -> int:
    """An aware instant as microseconds since the epoch."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * _SECOND + since.microseconds


def from_microseconds(microseconds: int) -> datetime:
    """Microseconds since the epoch as an aware UTC instant."""
    return _EPOCH + timedelta(microseconds=microseconds)


def _plain(value: object) -> str:
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{value!r} cannot be stored.")


#: Compact JSON; a Decimal becomes text, so that a quantity comes back as exactly what it was.
compact_json: Callable[[object], str] = json.JSONEncoder(separators=(",", ":"), default=_plain).encode
