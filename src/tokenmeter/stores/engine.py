"""What the engines' SQL has in common and where it differs, and what a reader may ask for.

Dimensions, boundaries, and `EntryFilter` as SQL, as a test of one entry, and as a question to the archive.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib import resources
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

from tokenmeter.dimensions import DIMENSIONS
from tokenmeter.errors import ConfigurationError, TamperedLedgerError
from tokenmeter.ledger import Entry
from tokenmeter.stores.definitions import Account
from tokenmeter.stores.encoding import storable_text
from tokenmeter.stores.slots import to_microseconds
from tokenmeter.values import dataclass

T = TypeVar("T")


class Rows(Protocol):
    """A connection. Values are written ``?`` in statements."""

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Any:
        """Run one statement; a cursor."""
        ...


def look_up(connection: Rows, statement: str, keys: Iterable[Any]) -> Iterator[Any]:
    """Rows of a statement that ends with ``IN``, for many keys: hundreds at a time, and no question for each."""
    wanted = list(keys)
    for start in range(0, len(wanted), _TOGETHER):
        some = wanted[start : start + _TOGETHER]
        # The last one some times more, so that of few and many the statement has few forms: they are kept prepared.
        some += some[-1:] * ((1 << (len(some) - 1).bit_length()) - len(some))
        yield from connection.execute(f"{statement} ({', '.join('?' * len(some))})", some).fetchall()


def each(connection: Rows, statement: str, values: Sequence[Any] = ()) -> Iterator[Any]:
    """Rows of a statement, one after the other: a server's driver would hold all of them. In a transaction."""
    stream: Callable[[str, Sequence[Any]], Iterator[Any]] = getattr(connection, "stream", connection.execute)
    return stream(statement, values)


def in_pages(connection: Rows, columns: str, table: str) -> Iterator[list[Any]]:
    """All rows of a table by their ``id``, which comes first in `columns`; so many at once that memory stays flat."""
    page: list[Any] = connection.execute(f"SELECT {columns} FROM {table} ORDER BY id LIMIT {_PAGE}").fetchall()  # noqa: S608 - names of our own
    while page:
        yield page
        statement = f"SELECT {columns} FROM {table} WHERE id > ? ORDER BY id LIMIT {_PAGE}"  # noqa: S608 - as above
        page = connection.execute(statement, (page[-1][0],)).fetchall()


class Definition(NamedTuple):
    """Something that has a definition in SQL, which `tokenmeter.stores.audit` compares with the one it was made by.

    Attributes:
        kind: ``view``, ``function``, ``trigger`` or, of a table that something else is done to in place of
            what was asked, ``rule``.
        name: Its name.
        definition: Its text, so that two of the same meaning are the same; empty where it is switched off.
    """

    kind: str
    name: str
    definition: str


@dataclass(frozen=True, slots=True)
class Engine:
    """The words of an engine.

    Attributes:
        slots: Rows (place, level, slot) of a JSON array of such triples, which is the one value.
        join: Joins tables from left to right, if the engine lets us choose.
        unsought: What stands before a column by which rows are not to be sought; nothing where the engine knows how
            many there are of each value, and chooses.
        identity: The column of an entry's identity.
        cells: Makes a mapping of accounts to numbers known to SQL; the expression that gives the number of a row's
            ``account``, NULL where there is none.
        largest: Orders by a whole number of any size, which is to be put in, the largest first.
        member: What a record (``body``) says under a name, which is to be put in; a number may come as a text.
        room: The package whose folder ``sql`` declares the tables.
        columns: Tables and their columns as they are.
        declared: What a ledger of this release has of `Definition`s.
        made: What this ledger has of it, in its own schema.
        keeps_secret: Whether the ledger's secret is the one that it was made with.
    """

    slots: str
    join: str
    unsought: str
    identity: Callable[[str], bytes | str]
    cells: Callable[[Any, Mapping[int, int]], str]
    largest: str
    member: str
    room: str
    columns: str
    declared: Callable[[], frozenset[Definition]]
    made: Callable[[Any], Iterable[Definition]]
    keeps_secret: Callable[[Any], bool]


#: Rows that are read at once.
_PAGE = 2000
#: Keys that one statement names at most; SQLite allowed no more than 999 before 3.32.
_TOGETHER = 512
_DECLARED = re.compile(
    r"^CREATE (?:TABLE (?P<made>\w+) \(\n(?P<columns>.*?)^\)|VIEW (?P<view>\w+))"
    r"|^ALTER TABLE (?P<changed>\w+)(?P<added>.*?);",
    re.MULTILINE | re.DOTALL,
)
_COLUMN = re.compile(r"^    ([a-z]\w*) ", re.MULTILINE)
_ADDED = re.compile(r"ADD COLUMN (\w+)")


@cache
def declared_tables(room: str) -> Mapping[str, frozenset[str]]:
    """The tables that an engine's numbered files declare, each with its columns; a view has none here."""
    found: dict[str, frozenset[str]] = {}
    for script in sorted((resources.files(room) / "sql").iterdir(), key=lambda script: script.name):
        for one in _DECLARED.finditer(script.read_text(encoding="utf-8")):
            names = [*_COLUMN.findall(one["columns"] or ""), *_ADDED.findall(one["added"] or "")]
            table = one["made"] or one["view"] or one["changed"]
            found[table] = found.get(table, frozenset()) | frozenset(names)
    return found


class Readable(Protocol):
    """What has one state that can be read."""

    @property
    def engine(self) -> Engine:
        """Its words."""
        ...

    def read(self, work: Callable[[Any], T]) -> T:
        """Run `work` in one read transaction.

        Raises:
            StoreUnavailableError: it cannot be read.
        """
        ...


#: Dimensions that an account says. ``model`` and ``api_key`` are what reports group by; they follow from the others.
SHARED = (*Account._fields, "model", "api_key")
_SHARED = frozenset(SHARED)
#: What entries are filtered by and never grouped: each takes nearly as many values as there are entries.
FILTERS = ("trace_id", "response_id")

Where = Mapping[str, frozenset[str | None]]


HEADLESS = (
    "The ledger's head is gone, the one row of its table `ledger`: somebody changed it other than with tokenmeter. "
    "Restore a backup (`tokenmeter db restore`)."
)


def read_head(connection: Rows, columns: str) -> Sequence[Any]:
    """Columns of the ledger's head, the one row of ``ledger``.

    Raises:
        TamperedLedgerError: it is gone.
    """
    row: Sequence[Any] | None = connection.execute(f"SELECT {columns} FROM ledger").fetchone()  # noqa: S608 - names of our own
    if row is None:
        raise TamperedLedgerError(HEADLESS)
    return row


#: Accounts that a statement lists; one of more is longer than what it saves.
_MOST_LISTED = 20_000
#: Entries that are not sorted to find the first of them.
_MANY = 20_000


def condition_on(dimension: str, *, wanted: bool = True) -> str:
    """A key of `EntryFilter.where`: values of a dimension are wanted, or, ``!``, all but these.

    In older ledgers the name of a tag may end in ``!`` itself; such a key says ``=`` behind it where it wants values.
    """
    return f"{dimension}{'' if wanted else '!'}{'=' if wanted and _OFTEN_MISTAKEN.search(dimension) else ''}"


def asked(condition: str) -> tuple[str, bool]:
    """The dimension that such a key is about, and whether its values are wanted."""
    if condition.endswith("!"):
        return condition[:-1], False
    return (condition[:-1] if _SAID_PLAINLY.search(condition) else condition), True


#: How a name ends that a key cannot end in as it is, and how the key does.
_OFTEN_MISTAKEN, _SAID_PLAINLY = re.compile("!=*$"), re.compile("!=+$")


def admits(where: Where, value: str | None) -> bool:
    """Whether `value` meets every one of these conditions, which are all about one dimension."""
    return all((value in values) is asked(key)[1] for key, values in where.items())


def check_boundaries(boundaries: Sequence[datetime]) -> list[int]:
    """`boundaries` in microseconds.

    Raises:
        ConfigurationError: fewer than two, not ascending, or without a time zone.
    """
    if len(boundaries) < 2:  # noqa: PLR2004 - a bucket has two ends
        raise ConfigurationError("A report needs at least two boundaries: its start and its end.")
    if any(boundary.tzinfo is None for boundary in boundaries):
        raise ConfigurationError("Boundaries must be aware instants; give each a time zone.")
    instants = [to_microseconds(boundary) for boundary in boundaries]
    if any(later < earlier for earlier, later in pairwise(instants)):
        raise ConfigurationError("Boundaries must ascend: the start of a period comes before its end.")
    return instants


def check_dimensions(by: Sequence[str], where: Iterable[str] = ()) -> None:
    """Refuse what entries cannot be grouped or filtered by.

    Raises:
        ConfigurationError: an unknown dimension.
    """
    for name, wanted in (*((name, True) for name in by), *map(asked, where)):
        if name == "sku_meter" and not wanted:
            raise ConfigurationError("A filter on sku_meter says which meters are counted; name these instead.")
        if name in FILTERS and name not in by:
            continue
        if name not in _SHARED and name not in DIMENSIONS and not name.startswith("tag:"):
            raise ConfigurationError(f"Unknown dimension {name!r}; use one of {', '.join(DIMENSIONS)} or 'tag:NAME'.")


def matches(entry: Entry, where: Where) -> bool:
    """Whether `entry` meets every condition; one on ``sku_meter`` is met by anything it used or was charged for."""
    account = Account.of(entry)
    who = entry.attribution
    for condition, accepted in where.items():
        name, wanted = asked(condition)
        if name == "sku_meter":
            meters: set[str | None] = {*entry.usage.quantities, *(charge.sku_meter for charge in entry.charges)}
            if accepted.isdisjoint(meters or {None}):
                return False
            continue
        if name == "end_user":
            value = who.end_user
        elif name.startswith("tag:"):
            value = who.tags.get(name.removeprefix("tag:"))
        elif name in FILTERS:
            value = getattr(entry, name)
        else:
            value = getattr(account, name)
        if (value in accepted) is not wanted:
            return False
    return True


def conditions(
    where: Where, since: int | None, until: int | None, *, accounts: Sequence[int] | None = None, unsought: str = ""
) -> tuple[list[str], list[Any]]:
    """SQL conditions over ``entries``, and their values. Those on meters are not among them.

    Args:
        where: The conditions.
        since: First microsecond; None = from the beginning.
        until: First microsecond after; None = no end.
        accounts: What `find_accounts` found, if it was asked.
        unsought: As of `Engine`, where entries are not to be sought by these.
    """
    wanted: list[str] = []
    values: list[Any] = []
    for instant, condition in ((since, "occurred_at >= ?"), (until, "occurred_at < ?")):
        if instant is not None:
            wanted.append(condition)
            values.append(instant)
    for key, accepted in where.items():
        name, kept = asked(key)
        if name == "end_user" or name.startswith("tag:"):
            condition, given = (_end_user if name == "end_user" else _tag)(name, accepted)
            wanted.append(condition if kept else _none_of(condition))
            values += given
        elif name in FILTERS:
            condition, given = _among(name, accepted)
            wanted.append(f"({condition})" if kept else _none_of(condition))
            values += given
    if accounts is not None:
        # As numbers, in the words of the statement: of a question within it a server guesses that it leaves next to
        # none, reads the whole table and sorts it, where the first page is at the end of an index.
        wanted.append(f"{unsought}account IN ({', '.join(map(str, accounts))})")
        return wanted, values
    inner, inner_values = account_conditions(where)
    if inner:
        # Of how many accounts that will be, and of how many entries, no engine knows: they are not sought by it.
        wanted.append(f"+account IN (SELECT id FROM contexts WHERE {' AND '.join(inner)})")  # noqa: S608 - names of our own
        values += inner_values
    return wanted, values


def find_accounts(connection: Rows, where: Where) -> list[int] | None:
    """The rows of the accounts that conditions leave; None = they are about none, or leave too many to be listed."""
    clauses, values = account_conditions(where)
    if not clauses:
        return None
    statement = f"SELECT id FROM contexts WHERE {' AND '.join(clauses)} LIMIT {_MOST_LISTED + 1}"  # noqa: S608 - names of our own
    found = [number for (number,) in connection.execute(statement, values).fetchall()]
    return found if len(found) <= _MOST_LISTED else None


def are_few(connection: Rows, accounts: Sequence[int]) -> bool:
    """Whether accounts have so few entries that it is quicker to sort them than to look for them among all."""
    among = ", ".join(map(str, accounts))
    statement = f"SELECT count(*) FROM (SELECT 1 FROM entries WHERE account IN ({among}) LIMIT {_MANY})"  # noqa: S608 - numbers
    return bool(connection.execute(statement).fetchone()[0] < _MANY)


def account_conditions(where: Where) -> tuple[list[str], list[Any]]:
    """The conditions among them that concern accounts, over a row of the view ``contexts``."""
    wanted: list[str] = []
    values: list[Any] = []
    for key, accepted in where.items():
        name, kept = asked(key)
        if name in _SHARED:
            condition, given = _among(name, accepted)
            wanted.append(condition if kept else _none_of(condition))
            values += given
    return wanted, values


def _none_of(condition: str) -> str:
    """Everything else, and what is not set: of that SQL knows no answer."""
    return f"({condition}) IS NOT TRUE"


def _among(column: str, accepted: frozenset[str | None]) -> tuple[str, list[Any]]:
    values = sorted({storable_text(value) for value in accepted if value is not None})  # as it was stored
    condition = f"{column} IN ({', '.join('?' * len(values))})" if values else "1 = 0"
    return (f"({condition} OR {column} IS NULL)" if None in accepted else condition), list(values)


def _end_user(name: str, accepted: frozenset[str | None]) -> tuple[str, list[Any]]:
    value_condition, values = _among("value", accepted - {None})
    condition = f"end_user IN (SELECT id FROM names WHERE kind = ? AND {value_condition})"  # noqa: S608 - names of our own
    return (f"({condition} OR end_user IS NULL)" if None in accepted else condition), [name, *values]


def _tag(name: str, accepted: frozenset[str | None]) -> tuple[str, list[Any]]:
    tag = name.removeprefix("tag:")
    value_condition, values = _among("value", accepted - {None})
    condition = (
        "tags IN (SELECT t.id FROM tagsets AS t, json_each(t.body) AS j WHERE j.key = ? AND j.value IN "  # noqa: S608 - names of our own
        f"(SELECT lower(hex(digest)) FROM names WHERE kind = ? AND {value_condition}))"
    )
    given: list[Any] = [tag, name, *values]
    if None not in accepted:
        return condition, given
    absent = (
        "tags IS NULL OR NOT EXISTS (SELECT 1 FROM tagsets AS t, json_each(t.body) AS j "
        "WHERE t.id = tags AND j.key = ?)"
    )
    return f"({condition} OR {absent})", [*given, tag]


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
