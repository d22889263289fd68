"""Where the ledger is kept: in memory, in an SQLite file, on a server. `open_store` chooses by URL."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tokenmeter.errors import ConfigurationError
from tokenmeter.paths import expand, user_folder
from tokenmeter.stores.urls import redacted

if TYPE_CHECKING:
    from tokenmeter.stores.base import Store

__all__ = ["default_path", "open_store", "store_path"]

_FORMS = "'memory:', 'sqlite:///usage.db' (relative), 'sqlite:////var/lib/usage.db' (absolute) or 'postgresql://...'"


def default_path() -> Path:
    """Where the ledger is when nobody says otherwise: ``tokenmeter/ledger.db`` in the user's data directory.

    Raises:
        StoreUnavailableError: the user has no home directory.
    """
    return user_folder("data", "name the ledger in configure(store=...) or TOKENMETER_STORE") / "ledger.db"


def open_store(url: str | Path | None = None) -> Store:
    """Open the store that `url` names; a missing SQLite file is made.

    Args:
        url: ``memory:``, ``sqlite:///relative.db``, ``sqlite:////absolute/path.db``, ``postgresql://...``, the path of
            an SQLite file as a `Path`, or None for `default_path`.

    Raises:
        ConfigurationError: no such kind of store, or not a file's path.
        StoreUnavailableError: it cannot be opened or made.
        SchemaVersionError: a newer tokenmeter wrote it.
    """
    if url is None:
        return _open_sqlite(default_path())
    if isinstance(url, Path):
        return _open_sqlite(url)
    scheme, colon, rest = url.partition(":")
    if url in {"memory:", "memory://"}:
        from tokenmeter.stores.sqlite import MemoryStore  # noqa: PLC0415 - each store loads only when it is used

        return MemoryStore()
    if colon and scheme == "sqlite":
        return _open_sqlite(_sqlite_path(url, rest))
    if colon and scheme in {"postgresql", "postgres"}:
        return _open_postgres(url)
    raise ConfigurationError(f"Unknown store {redacted(url)!r}; use {_FORMS}, or give a pathlib.Path.")


def store_path(url: str | Path | None = None) -> Path | None:
    """The file that `url` names, as `open_store` takes it; None for a ledger that is not in a file.

    Raises:
        ConfigurationError: not a file's path.
    """
    if isinstance(url, Path) and "\0" in str(url):
        raise ConfigurationError(f"{str(url)!r} does not name a file; write {_FORMS}.")
    if url is None or isinstance(url, Path):
        return default_path() if url is None else expand(url)
    scheme, colon, rest = url.partition(":")
    return _sqlite_path(url, rest) if colon and scheme == "sqlite" else None


def _sqlite_path(url: str, rest: str) -> Path:
    path = unquote(rest.removeprefix("///"))
    if not rest.startswith("///") or not path or "\0" in path or "?" in rest:
        raise ConfigurationError(f"{url!r} does not name a file; write {_FORMS}.")
    if path == ":memory:":
        raise ConfigurationError(f"{url!r}: write 'memory:' for a ledger in memory.")
    return expand(path)


def _open_sqlite(path: Path) -> Store:
    from tokenmeter.stores.sqlite import SQLiteStore  # noqa: PLC0415 - each store loads only when it is used

    return SQLiteStore(path)


def _open_postgres(url: str) -> Store:
    try:
        module = importlib.import_module("tokenmeter.stores.postgres")
    except ImportError as error:
        raise ConfigurationError(
            "A PostgreSQL store needs the extra 'postgres': pip install 'tokenmeter-sdk[postgres]'. "
            f"Until then use 'sqlite:///usage.db'. ({error})"
        ) from error
    store: Store = module.PostgresStore(url)
    return store
