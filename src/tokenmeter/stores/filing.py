"""Filing documents into an SQLite ledger, and reading them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from tokenmeter.stores.database import Database
from tokenmeter.stores.documents import COLUMNS, Document, Filing, NewDocument, Request, document_of, place, row_of
from tokenmeter.stores.session import Session

__all__ = ["file_document", "read_documents"]

_NAMES = ", ".join(COLUMNS)
_PAGE = 100


def file_document(database: Database, draft: NewDocument) -> Filing:
    """Number, link and file `draft` in one transaction; see `tokenmeter.stores.base.Store.file`."""
    return database.write(partial(_file, draft=draft))


def _file(session: Session, *, draft: NewDocument) -> Filing:
    run = session.connection.execute
    taken = run(f"SELECT {_NAMES} FROM documents WHERE kind = ? AND key = ?", (draft.kind, draft.key)).fetchone()  # noqa: S608 - names of our own
    if taken:
        return Filing(document_of(taken), recorded=False)
    last = run("SELECT position, hash FROM documents ORDER BY position DESC LIMIT 1").fetchone()
    numbered = run("SELECT max(number) FROM documents WHERE series = ?", (draft.series,)).fetchone()[0]
    anchor: bytes = run("SELECT hash FROM head").fetchone()[0]
    document = place(draft, last=last, numbered=numbered, anchor=anchor.hex())
    run(f"INSERT INTO documents ({_NAMES}) VALUES ({', '.join('?' * len(COLUMNS))})", row_of(document))  # noqa: S608 - names of our own
    return Filing(document, recorded=True)


def read_documents(database: Database, which: Request) -> Iterator[Document]:
    """Documents in the order of their filing, page by page."""
    wanted = {"kind": which.kind, "series": which.series, "number": which.number}
    conditions = [f"{name} = ?" for name, value in wanted.items() if value is not None]
    values: list[Any] = [value for value in wanted.values() if value is not None]
    if which.prefix:
        conditions.append("substr(key, 1, ?) = ?")
        values += [len(which.prefix), which.prefix]
    clause = " AND ".join([*conditions, "position > ?"])
    statement = f"SELECT {_NAMES} FROM documents WHERE {clause} ORDER BY position LIMIT {_PAGE}"  # noqa: S608 - names of our own
    last = 0
    while True:
        page = database.read(partial(_fetch, statement=statement, values=[*values, last]))
        for row in page:
            yield document_of(row)
        if len(page) < _PAGE:
            return
        last = page[-1][0]


def _fetch(session: Session, *, statement: str, values: list[Any]) -> list[Any]:
    return session.connection.execute(statement, values).fetchall()
