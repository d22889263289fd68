"""The ledger in a file: SQLite, for one machine."""

from tokenmeter.stores.sqlite.store import MemoryStore, SQLiteStore

__all__ = ["MemoryStore", "SQLiteStore"]
