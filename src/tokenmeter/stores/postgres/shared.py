"""Rows that many others point at, found by their content: contexts, rates and series."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tokenmeter.stores.values import compact_json

if TYPE_CHECKING:
    import sqlite3

__all__ = ["SharedRows", "digest_of"]

_MOST_REMEMBERED = 50_000


def digest_of(values: Sequence[Any]) -> bytes:
    """SHA-256 over the values as a JSON array: the identity of a shared row."""
    return hashlib.sha256(compact_json(values).encode()).digest()


class SharedRows:
    """One table of shared rows, seen through one connection's transactions.

    Only committed rows stay remembered: call `forget` after a rollback.
    """

    def __init__(self, table: str, columns: Sequence[str]) -> None:
        names = ", ".join(columns)
        places = ", ".join("?" * len(columns))
        self._find = f"SELECT id FROM {table} WHERE digest = ?"  # noqa: S608 - names of our own
        self._insert = f"INSERT INTO {table} (digest, {names}) VALUES (?, {places})"  # noqa: S608 - as above
        self._read = f"SELECT {names} FROM {table} WHERE id = ?"  # noqa: S608 - as above
        self._numbers: dict[tuple[Any, ...], tuple[int, bytes]] = {}
        self._values: dict[int, tuple[Any, ...]] = {}
        self._digests: dict[int, bytes] = {}
        self._fresh = False

    def number(self, connection: sqlite3.Connection, values: tuple[Any, ...]) -> tuple[int, bytes]:
        """Row id and digest of `values`, inserted if they are new. Needs a write transaction."""
        known = self._numbers.get(values)
        if known is None:
            digest = digest_of(values)
            row = connection.execute(self._find, (digest,)).fetchone()
            number: int | None = row[0] if row else connection.execute(self._insert, (digest, *values)).lastrowid
            if number is None:
                raise LookupError(f"No row was made for {values!r}.")
            if len(self._numbers) >= _MOST_REMEMBERED:
                self._numbers.clear()
            known = self._numbers[values] = (number, digest)
            self._fresh = True
        return known

    def values(self, connection: sqlite3.Connection, number: int) -> tuple[Any, ...]:
        """What the row with this id holds."""
        known = self._values.get(number)
        if known is None:
            row = connection.execute(self._read, (number,)).fetchone()
            if row is None:
                raise LookupError(f"Row {number} is missing: {self._read}")
            if len(self._values) >= _MOST_REMEMBERED:
                self._values.clear()
            known = self._values[number] = tuple(row)
        return known

    def digest(self, connection: sqlite3.Connection, number: int) -> bytes:
        """SHA-256 of what the row with this id holds now, whatever it says of itself."""
        known = self._digests.get(number)
        if known is None:
            known = self._digests[number] = digest_of(self.values(connection, number))
        return known

    def committed(self) -> None:
        """What was inserted is there to stay."""
        self._fresh = False

    def forget(self) -> None:
        """What was inserted was rolled back."""
        if self._fresh:
            self._numbers.clear()
            self._values.clear()
            self._digests.clear()
            self._fresh = False
