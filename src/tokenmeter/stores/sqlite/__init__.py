"""The ledger in a file: SQLite, for one machine."""

from tokenmeter.stores.sqlite.memory import MemoryStore
from tokenmeter.stores.sqlite.store import SQLiteStore

__all__ = ["MemoryStore", "SQLiteStore"]
