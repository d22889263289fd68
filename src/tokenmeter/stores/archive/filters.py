"""Which entries of the archive a question is about."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from tokenmeter.stores.encoding import storable_text
from tokenmeter.stores.engine import FILTERS, Rows, account_conditions, admits, asked, conditions


class ArchiveFilter(NamedTuple):
    """Which entries of the archive; None accepts all.

    Attributes:
        accounts: Digest -> a number of the asker's, which groups come with.
        end_users: Digests, None among them for entries without.
        tags: Sets of tags as JSON text, None among them for entries without.
        ids: Conditions on what is filtered by only (`FILTERS`), as in `EntryFilter.where`.
    """

    accounts: Mapping[bytes, int] | None = None
    end_users: frozenset[bytes | None] | None = None
    tags: frozenset[str | None] | None = None
    ids: Mapping[str, frozenset[str | None]] = MappingProxyType({})

    @property
    def few(self) -> bool:
        """Whether what is wanted is next to nothing, however much is looked through."""
        return any(asked(key)[1] and None not in accepted for key, accepted in self.ids.items())


def filter_of(
    connection: Rows, where: Mapping[str, frozenset[str | None]], numbers: Mapping[int, int] | None = None
) -> ArchiveFilter:
    """Conditions as the archive knows them: by digests and texts that the ledger still has.

    Args:
        connection: The ledger.
        where: The conditions; those on meters are not among them.
        numbers: Row of an account -> the asker's number of it, for accounts that are wanted.
    """
    run = connection.execute
    end_users: frozenset[bytes | None] | None = None
    tags: frozenset[str | None] | None = None
    named = {key: accepted for key, accepted in where.items() if asked(key)[0] == "end_user"}
    tagged = {key: accepted for key, accepted in where.items() if key.startswith("tag:")}
    if named:
        clauses, values = conditions(named, None, None)
        rows = run(
            f"SELECT n.digest FROM (SELECT id AS end_user, digest, kind FROM names) AS n WHERE n.kind = ? AND {' AND '.join(clauses)}",  # noqa: S608, E501 - as above
            ("end_user", *values),
        )
        end_users = frozenset({*(bytes(digest) for (digest,) in rows), *_unset(named)})
    if tagged:
        clauses, values = conditions(tagged, None, None)
        rows = run(
            f"SELECT s.body FROM (SELECT id AS tags, body FROM tagsets) AS s WHERE {' AND '.join(clauses)}",  # noqa: S608 - as above
            values,
        )
        tags = frozenset({*(body for (body,) in rows), *_unset(tagged)})
    ids = {
        key: frozenset(value and storable_text(value) for value in accepted)
        for key, accepted in where.items()
        if asked(key)[0] in FILTERS
    }
    return ArchiveFilter(_accounts(connection, where, numbers), end_users, tags, ids)


def _accounts(
    connection: Rows, where: Mapping[str, frozenset[str | None]], numbers: Mapping[int, int] | None
) -> dict[bytes, int] | None:
    """Digests of the accounts that are wanted, with the asker's numbers of them; None where all are."""
    if numbers is not None:
        rows = connection.execute("SELECT id, digest FROM accounts").fetchall()
        return {bytes(digest): numbers[number] for number, digest in rows if number in numbers}
    clauses, values = account_conditions(where)
    if not clauses:
        return None
    statement = f"SELECT digest FROM accounts WHERE id IN (SELECT id FROM contexts WHERE {' AND '.join(clauses)})"  # noqa: S608 - names of our own
    return {bytes(digest): 0 for (digest,) in connection.execute(statement, values)}


def _unset(where: Mapping[str, frozenset[str | None]]) -> set[None]:
    """None, where conditions on one dimension (or on several tags) are met by entries that do not have it."""
    return {None} if all(admits({key: values}, None) for key, values in where.items()) else set()
