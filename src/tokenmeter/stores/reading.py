"""Entries and documents read back from a ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from pydantic_core import from_json, to_json

from tokenmeter.errors import ConfigurationError, TamperedLedgerError
from tokenmeter.ledger import Entry, new_id, utcnow
from tokenmeter.stores.base import EntryFilter
from tokenmeter.stores.documents import Document, NewDocument, Request
from tokenmeter.stores.engine import Readable, Rows
from tokenmeter.stores.record import FORMAT, Account, Rate, decode_entry
from tokenmeter.stores.selection import check_dimensions, conditions, matches
from tokenmeter.stores.values import from_microseconds, to_microseconds

__all__ = ["UNREADABLE", "Reader", "document_of", "document_record"]

_PAGE = 500
_FIELDS = ", ".join(Account._fields)
_MOST_KNOWN = 50_000
#: What reading a record raises when it is not what a store writes.
UNREADABLE = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, ConfigurationError)


class Reader:
    """Reads entries; what they share is looked up once.

    Args:
        database: The ledger.
    """

    def __init__(self, database: Readable) -> None:
        self._database = database
        self.forget()

    def forget(self) -> None:
        """Look everything up again: names may have been erased, the file replaced."""
        self._accounts: dict[int, Account] = {}
        self._rates: dict[str, Rate] = {}
        self._names: dict[str, str] = {}

    def entry(self, entry_id: str) -> Entry | None:
        """One entry, or None."""

        def work(connection: Rows) -> Entry | None:
            statement = "SELECT account, body FROM entries WHERE entry_id = ?"
            row = connection.execute(statement, (self._database.engine.identity(entry_id),)).fetchone()
            return None if row is None else self.decode(connection, *row)

        return self._database.read(work)

    def entries(self, which: EntryFilter, *, newest_first: bool) -> Iterator[Entry]:
        """Entries by their occurrence, those of one moment by the chain; each page in a short transaction."""
        check_dimensions(list(which.where))
        wanted, values = conditions(which.where, _instant(which.since), _instant(which.until))
        beyond, order = ("<", "DESC") if newest_first else (">", "ASC")
        last: tuple[int, int] | None = None
        while True:
            after = [] if last is None else [f"occurred_at {beyond}= ? AND (occurred_at {beyond} ? OR seq {beyond} ?)"]
            place = [] if last is None else [last[0], *last]
            statement = (
                f"SELECT seq, account, body FROM entries WHERE {' AND '.join([*wanted, *after]) or '1 = 1'} "  # noqa: S608 - names of our own
                f"ORDER BY occurred_at {order}, seq {order} LIMIT {_PAGE}"
            )
            page = self._database.read(partial(self._page, statement=statement, values=[*values, *place]))
            for _, entry in page:
                if not which.where or matches(entry, which.where):
                    yield entry
            if len(page) < _PAGE:
                return
            seq, entry = page[-1]
            last = (to_microseconds(entry.occurred_at), seq)

    def _page(self, connection: Rows, *, statement: str, values: Sequence[Any]) -> list[tuple[int, Entry]]:
        rows = connection.execute(statement, values).fetchall()
        return [(seq, self.decode(connection, account, body)) for seq, account, body in rows]

    def decode(self, connection: Rows, account: int, body: str) -> Entry:
        """The entry of a row.

        Raises:
            TamperedLedgerError: it is not what a store writes.
        """
        record: Any = None
        try:
            record = from_json(body)
            return decode_entry(
                record,
                self._account(connection, account),
                partial(self._rate, connection),
                partial(self._name, connection),
            )
        except UNREADABLE as error:
            name = record.get("id", "?") if isinstance(record, dict) else "?"  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            raise TamperedLedgerError(
                f"Entry {name} cannot be read ({error}): it was changed since it was written. "
                "`tokenmeter verify` names every such entry; compare with a backup."
            ) from error

    def call(self, connection: Rows, record: Any) -> Entry:
        """The entry that a hold's record would become."""
        row = connection.execute(
            "SELECT id FROM accounts WHERE digest = ?", (bytes.fromhex(record["account"]),)
        ).fetchone()
        if row is None:
            raise LookupError(f"Account {record['account']} is missing.")
        return decode_entry(
            record, self._account(connection, row[0]), partial(self._rate, connection), partial(self._name, connection)
        )

    def _account(self, connection: Rows, number: int) -> Account:
        known = self._accounts.get(number)
        if known is None:
            row = connection.execute(f"SELECT {_FIELDS} FROM contexts WHERE id = ?", (number,)).fetchone()  # noqa: S608 - names of our own
            if row is None:
                raise LookupError(f"Account {number} is missing.")
            known = _keep(self._accounts, number, Account(*row))
        return known

    def _rate(self, connection: Rows, digest: str) -> Rate:
        known = self._rates.get(digest)
        if known is None:
            row = connection.execute("SELECT body FROM rates WHERE digest = ?", (bytes.fromhex(digest),)).fetchone()
            if row is None or row[0] is None:
                raise LookupError(f"Rate {digest} is missing.")
            values = from_json(row[0])
            rate = Rate(
                **{name: values[name] for name in Rate._fields if name in values and name != "model"}
                | {"model": values.get("model")}
            )
            known = _keep(self._rates, digest, rate)
        return known

    def _name(self, connection: Rows, digest: str) -> str:
        known = self._names.get(digest)
        if known is None:
            row = connection.execute("SELECT value FROM names WHERE digest = ?", (bytes.fromhex(digest),)).fetchone()
            if row is None:
                raise LookupError(f"Name {digest} is missing.")
            known = _keep(self._names, digest, row[0] or f"erased-{digest[:8]}")
        return known

    # -- documents

    def documents(self, which: Request) -> Iterator[Document]:
        """Documents in the order of their filing, page by page."""
        wanted = {"kind": which.kind, "series": which.series, "number": which.number}
        clauses = [f"{name} = ?" for name, value in wanted.items() if value is not None]
        values: list[Any] = [value for value in wanted.values() if value is not None]
        if which.prefix:
            clauses.append("substr(key, 1, ?) = ?")
            values += [len(which.prefix), which.prefix]
        if which.after:
            clauses.append("position > ?")
            values.append(which.after)
        clause = " AND ".join([*clauses, "seq > ?"])
        statement = f"SELECT seq, position, body, hash FROM documents WHERE {clause} ORDER BY seq LIMIT {_PAGE}"  # noqa: S608 - names of our own
        last = 0
        while True:
            page = self._database.read(partial(_rows, statement=statement, values=[*values, last]))
            for _, position, body, digest in page:
                yield document_of(position, body, digest)
            if len(page) < _PAGE:
                return
            last = page[-1][0]


def _rows(connection: Rows, *, statement: str, values: Sequence[Any]) -> list[Any]:
    found: list[Any] = connection.execute(statement, values).fetchall()
    return found


def document_of(position: int, body: str, digest: bytes) -> Document:
    """The document of a row."""
    values = from_json(body)
    return Document(
        position=position,
        document_id=values["id"],
        kind=values["kind"],
        key=values["key"],
        series=values.get("series"),
        number=values.get("number"),
        recorded_at=from_microseconds(values["recorded_at"]),
        anchor=values["anchor"],
        body=values["body"],
        hash=digest.hex(),
    )


def document_record(draft: NewDocument, number: int | None, anchor: str) -> bytes:
    """The record of a document that is filed now.

    Args:
        draft: What is filed.
        number: Its number in its series.
        anchor: Hash of the record before it (hex).
    """
    values: dict[str, Any] = {
        "format": FORMAT,
        "record": "document",
        "id": new_id(),
        "kind": draft.kind,
        "key": draft.key,
        "series": draft.series,
        "number": number,
        "recorded_at": to_microseconds(utcnow()),
        "anchor": anchor,
        "body": draft.body,
    }
    return to_json({name: value for name, value in values.items() if value is not None})


def _keep(known: dict[Any, Any], key: object, value: Any) -> Any:
    if len(known) >= _MOST_KNOWN:
        known.clear()
    known[key] = value
    return value


def _instant(moment: Any) -> int | None:
    return None if moment is None else to_microseconds(moment)
