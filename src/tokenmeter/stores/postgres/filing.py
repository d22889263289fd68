"""Filing documents into a ledger on a server, and reading them."""

from __future__ import annotations

import hashlib
from typing import Any

from psycopg import Connection, sql

from tokenmeter.stores.documents import COLUMNS, Document, Filing, NewDocument, Request, document_of, place, row_of
from tokenmeter.stores.postgres.schema import queries

__all__ = ["PAGE", "file_document", "read_page"]

#: Documents per read transaction.
PAGE = 100
_SQL = queries()
_NAMES = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
_SELECT = sql.SQL("SELECT {} FROM documents WHERE ").format(_NAMES)
_INSERT = sql.SQL("INSERT INTO documents ({}) VALUES ({})").format(
    _NAMES, sql.SQL(", ").join([sql.Placeholder()] * len(COLUMNS))
)


def file_document(connection: Connection[Any], draft: NewDocument, *, lost: int = 0) -> Filing:
    """Number, link and file `draft` in one transaction; see `tokenmeter.stores.base.Store.file`.

    Args:
        connection: In autocommit mode.
        draft: What to file.
        lost: Connections lost on the way: what has this very content was then filed by us.
    """
    with connection.transaction():
        connection.execute("LOCK TABLE documents IN EXCLUSIVE MODE")  # numbers without gaps; readers go on
        taken = connection.execute(_SELECT + sql.SQL("kind = %s AND key = %s"), [draft.kind, draft.key]).fetchone()
        if taken:
            document = document_of(taken)
            return Filing(document, recorded=bool(lost) and document.body == draft.body)
        last = connection.execute("SELECT position, hash FROM documents ORDER BY position DESC LIMIT 1").fetchone()
        numbered = connection.execute("SELECT max(number) FROM documents WHERE series = %s", [draft.series]).fetchone()
        document = place(
            draft,
            last=None if last is None else (last[0], last[1]),
            numbered=None if numbered is None else numbered[0],
            anchor=_anchor(connection),
        )
        connection.execute(_INSERT, row_of(document))
        return Filing(document, recorded=True)


def _anchor(connection: Connection[Any]) -> str:
    """One hash over the heads of all chains of entries."""
    heads = connection.execute(_SQL["heads"]).fetchall()
    return hashlib.sha256(b"".join(bytes(head) for _, _, head in heads)).hexdigest()


def read_page(connection: Connection[Any], which: Request, after: int) -> list[Document]:
    """Up to `PAGE` documents filed after position `after`, in order."""
    wanted = {"kind": which.kind, "series": which.series, "number": which.number}
    conditions: list[sql.Composable] = [
        sql.SQL("{} = %s").format(sql.Identifier(name)) for name, value in wanted.items() if value is not None
    ]
    values: list[Any] = [value for value in wanted.values() if value is not None]
    if which.prefix:
        conditions.append(sql.SQL("starts_with(key, %s)"))
        values.append(which.prefix)
    statement = _SELECT + sql.SQL(" AND ").join([*conditions, sql.SQL("position > %s")])
    statement += sql.SQL(" ORDER BY position LIMIT {}").format(sql.Literal(PAGE))
    return [document_of(row) for row in connection.execute(statement, [*values, after])]
