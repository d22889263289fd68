"""Checking a ledger: the chain of all records, their columns, what they share, the kept sums, the triggers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any

from pydantic_core import from_json

from tokenmeter.display import counted
from tokenmeter.errors import StoreUnavailableError, TamperedLedgerError
from tokenmeter.stores.archive.archives import ParquetArchives
from tokenmeter.stores.archive.checking import ArchiveCheck
from tokenmeter.stores.archive.manifest import ArchivedDays
from tokenmeter.stores.base import Fault, Verification
from tokenmeter.stores.definitions import PERSONAL, Account, name_digest
from tokenmeter.stores.encoding import digest_of
from tokenmeter.stores.engine import Engine, Readable, Rows, declared_tables, in_pages, look_up
from tokenmeter.stores.fold import AMOUNTS
from tokenmeter.stores.packing import differing
from tokenmeter.stores.rebuilding import SharedRows, Wrong, days, joined_amounts, longer, wrong_hours
from tokenmeter.stores.slots import DAY, Level, is_slot, label
from tokenmeter.stores.walking import EMPTY, Walk, erasures, nameless

_FIELDS = Account._fields
#: Where fields are that rows have as the number of a name.
_PERSONAL = tuple(place for place, name in enumerate(_FIELDS) if name in PERSONAL)
_UNDEFINED = "What entries share in this row is gone: every process says it before its first entry."
#: How often a ledger is looked at again whose months go into files meanwhile.
_MOST_TIMES = 3
_CHANGED = "Somebody changed the ledger other than with tokenmeter: restore a backup (`tokenmeter db restore`)."


def audit(
    ledger: Readable,
    archives: ParquetArchives,
    *,
    head: str | None = None,
    since: str | None = None,
    deep: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Verification:
    """Everything that can be checked from the ledger alone. Reads in short transactions; writers go on meanwhile.

    See `tokenmeter.stores.base.Store.verify`. Where a month goes into its file meanwhile, or comes back, all is looked
    at once more: what is in one place was looked for in the other.
    """
    find = partial(_audit, ledger, archives, head, since, deep=deep, progress=progress)
    before, found = _archived_to(ledger), find()
    for _ in range(_MOST_TIMES):
        after = _archived_to(ledger)
        if before == after:
            break
        before, found = after, find()
    return found


def _archived_to(ledger: Readable) -> int | None:
    """The last record that is in a file only; None where that cannot be read, which is a fault of its own."""
    with suppress(StoreUnavailableError):
        row = ledger.read(lambda rows: rows.execute("SELECT archived_to FROM ledger").fetchone())
        return None if row is None else int(row[0])
    return None


def _audit(
    ledger: Readable,
    archives: ParquetArchives,
    head: str | None,
    since: str | None,
    *,
    deep: bool,
    progress: Callable[[int, int], object] | None,
) -> Verification:
    look = _Audit(ledger, archives, head, since, deep=deep, progress=progress)
    if look.begun:
        look.at("rows that entries share", look.shared)
        look.at("records", look.chain)
        look.at("sums", look.sums)
        look.at("packed sums", look.packed)
    walk = look.walk
    if walk is None:
        return Verification(0, "", tuple(look.faults))
    return Verification(walk.entries, walk.head.hex(), tuple(look.faults), walk.after_head)


class _Audit:
    """The parts of a verification, and what they found. See `audit` for the arguments.

    Attributes:
        faults: What was found.
        walk: Along the chain; None as long as it could not be begun.
        begun: Whether there is a ledger to look at.
    """

    def __init__(
        self,
        ledger: Readable,
        archives: ParquetArchives,
        head: str | None,
        since: str | None,
        *,
        deep: bool,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        self._read, self._engine, self._archives = ledger.read, ledger.engine, archives
        self._head, self._since, self._deep, self._progress = head, since, deep, progress
        self.walk: Walk | None = None
        self._gone = self._read(partial(_gone, engine=self._engine))
        self.faults: list[Fault] = list(self._gone)
        # Without it nothing says where the chain ends.
        self.begun = (
            bool(self._gone) or self._read(lambda rows: rows.execute("SELECT 1 FROM ledger").fetchone()) is not None
        )
        if not self.begun:
            self.faults.append(Fault("table", "table ledger", f"Its one row is gone. {_CHANGED}"))

    def at(self, what: str, part: Callable[[], None]) -> None:
        """Run a part. Where tables or files are gone it says what it could not look at, and the others go on."""
        try:
            part()
        except TamperedLedgerError as error:
            self.faults.append(Fault("edited", what, f"They could not be checked to the end. {error}"))
        except StoreUnavailableError as error:
            unread = any(fault.kind == "archive" for fault in self.faults)
            if not (self._gone or unread):
                raise
            reason = str(error if unread else error.__cause__ or error).partition("\n")[0].removesuffix(".")
            kind = "unchecked" if unread else "table"
            self.faults.append(Fault(kind, what, f"They could not be checked to the end: {reason}."))

    def shared(self) -> None:
        """What entries share, the guards and the secret."""
        self.faults += self._read(partial(_rows_shared, engine=self._engine))

    def chain(self) -> None:
        """Every record, archived ones first."""
        read, head, since = self._read, self._head, self._since
        try:
            found = self._archives.verify(deep=self._deep, heads=(head, since))
        except TamperedLedgerError as error:  # a manifest; the live chain is looked at all the same
            found = ArchiveCheck(0, (Fault("edited", "archived months", str(error)),), {}, ArchivedDays(), -1)
        self.faults += found.faults
        walk = Walk(self._engine.identity, head, found, deep=self._deep)
        read(walk.begin)
        self.walk = walk
        if since is not None and since not in {EMPTY, *found.heads} and not read(partial(walk.begin_after, head=since)):
            said = f"Nothing in the chain has this hash; all of it was looked at.{walk.but}"
            self.faults.append(Fault("head", since, said))
        if self._gone:  # perhaps what sums are kept in: records are looked at all the same
            walk.days.first = None
        while walk.more:
            read(walk.page)
            if self._progress is not None:
                self._progress(walk.after, walk.to)
        self.faults += walk.faults
        self.faults += read(walk.end)

    def sums(self) -> None:
        """Sums of hours, days, weeks and months."""
        walk, read = self.walk, self._read
        if walk is None:
            return
        self.faults += read(_accounts_gone)
        if not self._deep:
            self.faults += read(partial(_archived_sums, archives=self._archives))
        day = walk.first_day
        shared, wrong = SharedRows(), walk.days.wrong
        while day is not None:
            look = partial(days, since=day, shared=shared, archives=self._archives, deep=self._deep)
            day, some = read(partial(look, done=walk.days.compared))
            wrong += some
        self.faults += _told(wrong, Level.DAY)
        wrong = read(partial(longer, since=walk.since))
        if not self._deep:
            wrong += read(partial(_archived_hours, archives=self._archives))
        self.faults += _told([one for one in wrong if one.key[0] == Level.DAY], Level.DAY)
        for level in (Level.MONTH, Level.WEEK):
            self.faults += _told([one for one in wrong if one.key[0] == level and is_slot(*one.key[:2])], level)
        for name in sorted({label(*one.key[:2]) for one in wrong if not is_slot(*one.key[:2])}):
            said = f"There are sums of {name}, which is no time; `tokenmeter db rebuild` removes them."
            self.faults.append(Fault("rollup", name, said))

    def packed(self) -> None:
        """Copies of sums."""
        for of, slot in differing(self._read, since=None if self.walk is None else self.walk.since):
            name = label(of, slot)
            said = f"The packed sums of {name} are wrong; `tokenmeter db rebuild` drops them."
            self.faults.append(Fault("rollup", name, said))


def _gone(connection: Rows, *, engine: Engine) -> list[Fault]:
    """Tables, views and functions that are not there, or that another program has put its own in the place of."""
    there: dict[str, set[str]] = {}
    for table, column in connection.execute(engine.columns):
        there.setdefault(table, set()).add(column)
    found: list[Fault] = []
    for table, columns in sorted(declared_tables(engine.room).items()):
        lacking = sorted(columns - there.get(table, set()))
        if table not in there:
            found.append(Fault("table", f"table {table}", f"The table is gone. {_CHANGED}"))
        elif lacking:
            what = "columns are" if len(lacking) > 1 else "column is"
            found.append(Fault("table", f"table {table}", f"Its {what} gone: {', '.join(lacking)}. {_CHANGED}"))
    told = {fault.where.split()[-1] for fault in found}
    there_is = _definitions(connection, engine)
    for kind, name, definition in sorted(engine.declared()):
        if kind == "trigger" or name in told:
            continue
        is_now = there_is.get((kind, name), set())
        if not is_now:
            found.append(Fault("table", f"{kind} {name}", f"The {kind} is gone. {_CHANGED}"))
        elif is_now != {definition}:
            found.append(Fault("table", f"{kind} {name}", f"Its definition is not tokenmeter's. {_CHANGED}"))
    return found


def _guards(connection: Rows, engine: Engine) -> list[Fault]:
    """Triggers that are not as they were made, and what somebody else has done when rows come, change or go."""
    due = {name: definition for kind, name, definition in engine.declared() if kind == "trigger"}
    there_is = _definitions(connection, engine)
    found: list[Fault] = []
    for name, definition in sorted(due.items()):
        is_now = there_is.pop(("trigger", name), set())
        if not is_now or "" in is_now:
            said = "A trigger that keeps records from being changed is gone; somebody removed it."
        elif is_now != {definition}:
            said = "A trigger that keeps records from being changed does something else; somebody replaced it."
        else:
            continue
        found.append(Fault("trigger", name, said))
    strangers = sorted((kind, name) for kind, name in there_is if kind in {"trigger", "rule"})
    return found + [
        Fault("trigger", name, f"A {kind} that tokenmeter did not make: it may change what is recorded. Remove it.")
        for kind, name in strangers
    ]


def _definitions(connection: Rows, engine: Engine) -> dict[tuple[str, str], set[str]]:
    """What has a definition, by kind and name; several where functions of one name, or partitions, have their own."""
    found: dict[tuple[str, str], set[str]] = {}
    for kind, name, definition in engine.made(connection):
        found.setdefault((kind, name), set()).add(definition)
    return found


def _rows_shared(connection: Rows, *, engine: Engine) -> list[Fault]:
    run = connection.execute
    found: list[Fault] = []
    for page in in_pages(connection, f"id, digest, body, {', '.join(_FIELDS)}", "accounts"):
        numbers = {row[3 + at] for row in page for at in _PERSONAL}
        names = dict(look_up(connection, "SELECT id, digest FROM names WHERE id IN", numbers - {None}))
        for number, digest, body, *columns in page:
            if body is None:
                found.append(Fault("edited", f"accounts {number}", _UNDEFINED))
            elif not _is_definition(digest, body, dict(zip(_FIELDS, columns, strict=True)), names):
                found.append(Fault("edited", f"accounts {number}", "A row that entries share was changed."))
    for number, digest, body, meter in run("SELECT id, digest, body, sku_meter FROM rates"):
        if body is None:
            found.append(Fault("edited", f"rates {number}", _UNDEFINED))
        elif not _is_definition(digest, body, {"sku_meter": meter}):
            found.append(Fault("edited", f"rates {number}", "A row that entries share was changed."))
    found += _names(connection)
    if not engine.keeps_secret(connection):
        found.append(Fault("secret", "secret", "The secret was replaced: API keys have other fingerprints since."))
    return found + _guards(connection, engine)


def _names(connection: Rows) -> list[Fault]:
    """Names that are not what their digest says, and were not erased; erasures that have no effect."""
    found: list[Fault] = []
    erased: dict[str, str] = {}
    for erasure in erasures(connection):
        erased |= dict.fromkeys(erasure.names, erasure.pseudonym)
    taken_in = nameless(connection)
    names = chain.from_iterable(in_pages(connection, "id, digest, salt, kind, value", "names"))
    for number, digest, salt, kind, value in names:
        if digest.hex() in taken_in:
            continue
        said = erased.pop(digest.hex(), None)
        if said is not None:
            if salt is not None or value != said:
                found.append(Fault("edited", f"names {number}", "The name was erased by the record, and is there."))
        elif salt is None:
            found.append(Fault("edited", f"names {number}", "A name was erased, and no record says so."))
        elif value is None or name_digest(kind, salt.hex(), value) != digest.hex():
            found.append(Fault("edited", f"names {number}", "A name was changed."))
    return found + [
        Fault("edited", f"name {digest}", "It was erased by the record, and its row is gone.") for digest in erased
    ]


def _is_definition(
    digest: bytes, body: str, columns: Mapping[str, Any], names: Mapping[int, bytes] = MappingProxyType({})
) -> bool:
    if digest_of(body.encode()) != digest.hex():
        return False
    values = from_json(body)
    for name, column in columns.items():
        said = values.get(name)
        if name in PERSONAL and column is not None:
            if column not in names:
                return False
            column = names[column].hex()  # noqa: PLW2901 - as the definition says it
        if said != column:
            return False
    return True


def _accounts_gone(connection: Rows) -> list[Fault]:
    """Rows that sums still have: of archived entries nothing else in the live ledger says whose they are."""
    rows = connection.execute(
        "SELECT DISTINCT account FROM sums WHERE level = ? AND account NOT IN (SELECT id FROM accounts) ORDER BY 1",
        (Level.MONTH,),
    )
    return [Fault("edited", f"accounts {number}", "A row that entries share is gone.") for (number,) in rows]


def _archived_sums(connection: Rows, *, archives: ParquetArchives) -> list[Fault]:
    """Compare the sums of all days that have archived entries with what the archives' manifests say."""
    months, _ = archives.within(connection)
    archived = ArchivedDays(months)
    if archived.last is None:
        return []
    names = ("n", *AMOUNTS)
    until = archived.last + 1
    added = ", ".join(f"coalesce(sum({name}), 0)" for name in AMOUNTS)
    day = f"(occurred_at - (occurred_at % {DAY} + {DAY}) % {DAY}) / {DAY}"
    live = _added(
        connection.execute(
            f"SELECT {day}, count(*), {added} FROM entries WHERE occurred_at < ? AND seq > ? GROUP BY 1",  # noqa: S608 - names of our own
            (until * DAY, months[-1].last_seq),
        ).fetchall(),
        archived,
    )
    kept = _added(
        connection.execute(
            f"SELECT slot, sum(n), {added} FROM sums WHERE level = 1 AND slot < ? GROUP BY 1",  # noqa: S608 - as above
            (until,),
        ).fetchall(),
        archived,
    )
    due = [
        amount + sum(month.entries if name == "n" else month.sums.get(name, 0) for month in months)
        for name, amount in zip(names, live, strict=True)
    ]
    if joined_amounts("sums", kept) == joined_amounts("sums", due):
        return []
    return [Fault("rollup", "archived months", "The sums of their time do not come to what was sealed.")]


def _archived_hours(connection: Rows, *, archives: ParquetArchives) -> list[Wrong]:
    """Hours of the same days that do not come to what is kept of the day."""
    months, _ = archives.within(connection)
    archived = ArchivedDays(months)
    if archived.last is None:
        return []
    return [one for one in wrong_hours(connection, archived.last + 1) if one.key[1] in archived]


def _added(rows: Iterable[Sequence[int]], archived: ArchivedDays) -> tuple[int, ...]:
    """Amounts of the days that have archived entries, added up; of each row the first value is its day."""
    found = [amounts for day, *amounts in rows if int(day) in archived]
    return tuple(sum(map(int, column)) for column in zip(*found, strict=True)) or (0,) * (1 + len(AMOUNTS))


def _told(wrong: Sequence[Wrong], level: Level) -> list[Fault]:
    """How many sums of each day, its hours among them, month or week are wrong."""
    count = Counter(slot // 24 if of == Level.HOUR else slot for _, (of, slot, *_), *_ in wrong)
    found: list[Fault] = []
    for slot, number in sorted(count.items()):
        name = label(level, slot)
        said = counted(number, f"sum of {name} is wrong", f"sums of {name} are wrong")
        found.append(Fault("rollup", name, f"{said}; `tokenmeter db rebuild` makes sums anew."))
    return found
