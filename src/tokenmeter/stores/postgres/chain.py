"""The hash chain: each entry's hash covers its own row, the rows it shares with others, and the hash before it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from tokenmeter.stores.values import compact_json

__all__ = ["FIRST", "link"]

#: What the first entry is linked to.
FIRST = bytes(32)


def link(before: bytes, row: Sequence[Any], shared: Iterable[bytes]) -> bytes:
    """SHA-256 over the hash `before`, the `row` (a JSON array) and the digests of the `shared` rows it points at."""
    return hashlib.sha256(b"".join((before, compact_json(row).encode(), *shared))).digest()
