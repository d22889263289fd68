"""Checking an SQLite ledger: the chain of entries, the rows they share, the kept sums, and the holds."""

from __future__ import annotations
from tokenmeter.stores.base import Verification
from tokenmeter.stores.database import Database


def audit(database: Database) -> Verification:
    raise NotImplementedError
