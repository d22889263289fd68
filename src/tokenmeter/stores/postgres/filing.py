"""Filing documents into a ledger on a server, and reading them."""

from __future__ import annotations

from typing import Any

from psycopg import Connection, sql

from tokenmeter.stores.documents import Document, Filing, NewDocument, Request
from tokenmeter.stores.postgres.documents import COLUMNS, document_of, place, row_of
from tokenmeter.stores.postgres.records import head_of
from tokenmeter.stores.postgres.schema import queries
from tokenmeter.stores.values import compact_json

__all__ = ["PAGE", "file_document", "read_page"]

#: Documents per read transaction.
PAGE = 100
_SQL = queries()
_NAMES = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
_SELECT = sql.SQL("SELECT {} FROM documents WHERE ").format(_NAMES)


def file_document(connection: Connection[Any], draft: NewDocument, *, lost: int = 0) -> Filing:
    """Number, link and file `draft` in one transaction; see `tokenmeter.stores.base.Store.file`.

    Args:
        connection: In autocommit mode.
        draft: What to file.
        lost: Connections lost on the way: what has this very content was then filed by us.
    """
    with connection.transaction():
        row = connection.execute(_SQL["document_place"], [draft.kind, draft.key, draft.series]).fetchone()
        found: dict[str, Any] = row[0] if row else {}
        if found["taken"]:
            document = document_of([found["taken"][name] for name in COLUMNS])
            return Filing(document, recorded=bool(lost) and document.body == draft.body)
        document = place(
            draft,
            last=None if found["last"] is None else (found["last"][0], found["last"][1]),
            numbered=found["numbered"],
            anchor=head_of((stripe, bytes.fromhex(head)) for stripe, head in found["heads"] or ()),
        )
        values = dict(zip(COLUMNS, row_of(document), strict=True))
        connection.execute(_SQL["file_document"], [compact_json(values)])
        return Filing(document, recorded=True)


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
