"""The shared ledger: PostgreSQL, for many machines. Needs the extra ``postgres``."""

from tokenmeter.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
