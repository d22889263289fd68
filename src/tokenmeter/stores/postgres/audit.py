"""Checking a ledger on a server: hash chains, kept sums, and what holds and counters say of each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from psycopg import Connection

from tokenmeter.stores.base import Fault, Verification
from tokenmeter.stores.chain import FIRST
from tokenmeter.stores.codec import COLUMNS, CONTEXT_FIELDS, compact_json, decode_amounts
from tokenmeter.stores.postgres.reading import Reader
from tokenmeter.stores.postgres.records import digest_row
from tokenmeter.stores.postgres.schema import queries
from tokenmeter.stores.rollups import DAY, QUARTER_HOUR, lines

__all__ = ["audit"]


def audit(connection: Connection[Any]) -> Verification:
    raise NotImplementedError
