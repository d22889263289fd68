"""``db init`` to ``rebuild``, ``erase`` and ``sql``: a ledger as a database; `copies` has backups and moving."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from tokenmeter import erasing
from tokenmeter.cli.app import Exit, Group, commands, out, progress_out
from tokenmeter.cli.frame import Frame, command, emit, show_progress, show_table
from tokenmeter.dimensions import WHO
from tokenmeter.display import counted, number_text, visible
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import to_dollars
from tokenmeter.reports.database import open_database
from tokenmeter.stores.archive.manifest import ArchivedDays
from tokenmeter.stores.base import Store, SumsDifference
from tokenmeter.stores.sqlite.database import sqlite3

_EPOCH = date(1970, 1, 1)
app = typer.Typer(cls=Group, help="Set up, back up and move a ledger.", no_args_is_help=True)
commands.add_typer(app, name="db")

UrlArgument = Annotated[
    str | None, typer.Argument(help="postgresql://...; default: the store of the settings.", show_default=False)
]


def _find_address(frame: Frame, url: str | None) -> str:
    found = url or frame.settings.store
    if found is None or not found.startswith(("postgresql://", "postgres://")):
        raise ConfigurationError(
            "Only a PostgreSQL ledger is set up by hand: name it as postgresql://HOST/DATABASE, or as store= in the "
            "settings. A SQLite ledger sets itself up."
        )
    return found


def _load_admin(frame: Frame, url: str | None) -> tuple[ModuleType, str]:
    """What sets a server up, and where it is. Who has a ledger in a file is told so, and not of an extra."""
    address = _find_address(frame, url)
    try:
        from tokenmeter.stores.postgres import admin  # noqa: PLC0415 - the driver is an extra
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise ConfigurationError("This needs an extra: pip install 'tokenmeter-sdk[postgres]'") from error
    return admin, address


def _tell_applied(frame: Frame, applied: tuple[str, ...]) -> None:
    if frame.as_json:
        emit({"applied": list(applied)})
    else:
        out.print(f"Applied: {', '.join(applied)}." if applied else "Nothing to do: the schema is up to date.")


@command(app, "init", examples=["tokenmeter db init postgresql://owner@db.example/app"], options=("config", "as_json"))
def init(frame: Frame, url: UrlArgument = None) -> None:
    """Make the schema and its tables. Harmless where they exist."""
    admin, address = _load_admin(frame, url)
    _tell_applied(frame, admin.init(address))


@command(
    app, "migrate", examples=["tokenmeter db migrate postgresql://owner@db.example/app"], options=("config", "as_json")
)
def migrate(frame: Frame, url: UrlArgument = None) -> None:
    """Bring the schema up to this release. Older programs go on working beside it."""
    admin, address = _load_admin(frame, url)
    _tell_applied(frame, admin.migrate(address))


@command(
    app, "status", examples=["tokenmeter db status postgresql://owner@db.example/app"], options=("config", "as_json")
)
def status(frame: Frame, url: UrlArgument = None) -> None:
    """Which migrations are applied, and who may write and read. Exit code 1 when some are pending."""
    admin, address = _load_admin(frame, url)
    found = admin.status(address)
    if frame.as_json:
        emit(asdict(found))
    else:
        out.print(f"{found.url}, schema {found.schema}")
        for title, values in (
            ("applied", found.applied),
            ("pending", found.pending),
            ("from a newer release", found.unknown),
            ("writers", found.writers),
            ("readers", found.readers),
        ):
            out.print(f"  {title}: {', '.join(map(str, values)) or 'none'}")
    if found.pending:
        raise typer.Exit(Exit.FOUND)


@command(
    app, "grant", examples=["tokenmeter db grant writer app postgresql://owner@db.example/app"], options=("config",)
)
def grant(
    frame: Frame,
    role: Annotated[Literal["writer", "reader", "owner"], typer.Argument(help="What it may do.")],
    to: Annotated[str, typer.Argument(help="Name of the database role.")],
    url: UrlArgument = None,
) -> None:
    """Let a database role write, read or own the ledger. A writer can append, and never change or delete."""
    admin, address = _load_admin(frame, url)
    admin.grant(address, role, to)
    out.print(f"{to} is now a {role} of this ledger." if role != "owner" else f"{to} now owns this ledger.")


#: So many differences are shown; ``--json`` has all of them.
_SHOWN = 20


@command(app, "rebuild", examples=["tokenmeter db rebuild --dry-run", "tokenmeter db rebuild"])
def rebuild(
    frame: Frame,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is wrong and change nothing.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Look at days of archived months, too; their files are read.")
    ] = False,
) -> None:
    """Make kept sums anew from the entries where they differ. With --dry-run exit code 1 when some do.

    Reports read sums. What is in the chain is never changed: an entry that was edited stays a fault of `verify`.
    Exit code 1, too, when a file of an archived month is away, which --deep would read.
    """
    with frame.ledger() as store:
        with show_progress("comparing sums with entries", of="days") as progress:
            found = store.rebuild(dry_run=dry_run, deep=deep, progress=progress)
        files = () if deep else [one for one in store.archives.listed() if one.gone]
        unreadable = store.archives.unreadable() if files else ()
    left_out = [tuple(_EPOCH + timedelta(days=day) for day in ends) for ends in ArchivedDays(files).stretches]
    until = left_out[-1][1] if left_out else None
    after = f" after {until}" if len(left_out) == 1 else " of other days" if left_out else ""
    if frame.as_json:
        emit({
            "differences": [asdict(one) for one in found],
            "rebuilt": bool(found) and not dry_run,
            "not_compared": [{"first": first, "last": last} for first, last in left_out],
            "not_compared_until": until,
            "unreadable": list(unreadable),
        })  # fmt: skip
    elif not found:
        out.print(f"[green]Nothing to do:[/] every kept sum{after} is what its entries come to.")
    else:
        _show_differences(found)
        wrong = counted(len(found), "sum differs", "sums differ")
        out.print(
            f"{wrong}: `tokenmeter db rebuild` makes sums anew."
            if dry_run
            else f"{counted(len(found), 'sum')} made anew."
        )
    if until and not frame.as_json:
        many = counted(sum(one.gone for one in files), "entry", "entries")
        days = (
            f"Days up to {until}"
            if len(left_out) == 1
            else f"Days with entries in archived files ({_tell_stretches(left_out)})"
        )
        out.print(f"{days} were not compared: {many} of them are in archived files, which --deep reads.")
        for told in unreadable:
            out.print(f"[yellow]care[/]  {escape(told)}")
    if (dry_run and found) or unreadable:
        raise typer.Exit(Exit.FOUND)


def _show_differences(found: Sequence[SumsDifference]) -> None:
    rows = [
        (
            one.table,
            visible(one.of),
            str(one.account or ""),
            visible(one.sku_meter or ""),
            name,
            *(_format_figure(name, value) for value in change),
        )
        for one in found
        for name, change in one.changes.items()
    ]
    show_table(
        ("table", "of", "account", "meter", "figure", "kept", "should be"),
        rows[:_SHOWN],
        figures={"account", "kept", "should be"},
        whole={"of"},
    )
    if len(rows) > _SHOWN:
        out.print(f"... and {counted(len(rows) - _SHOWN, 'more figure')}: --json has all of them.")


def _format_figure(name: str, value: int) -> str:
    """A kept figure as a person reads it: costs in dollars, everything else as it is."""
    return f"${number_text(to_dollars(value))}" if name in {"list", "contracted", "billed"} else f"{value:,}"


@command(
    commands,
    "erase",
    examples=[
        "tokenmeter erase member ada@example.com --reason 'request 17' --by kim",
        "tokenmeter erase tag:customer acme --reason 'it ended' --by kim --yes",
    ],
)
def erase(
    frame: Frame,
    dimension: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(WHO)}, api_key or tag:NAME.",
            show_default=False,
        ),
    ],
    value: Annotated[str, typer.Argument(help="The text, exactly.", show_default=False)],
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stays, so without the name.", show_default=False)],
    by: Annotated[str, typer.Option("--by", "--actor", help="Who decided it.", show_default=False)],
    pseudonym: Annotated[
        str | None, typer.Option("--pseudonym", help="What stands in its place.", show_default="erased-...")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Replace what says who somebody is by a pseudonym, for good. Amounts, sums and the chain stay.

    Prints which documents name the person still, until when the law wants them kept (run it again after that day), and
    which copies the ledger does not hold. Exit code 1 when something of the text is left beside a ledger file, or when
    entries of archived months could not be counted.
    """
    with frame.ledger() as store:
        if not yes:
            erasing.check_erasure(dimension, value, reason=reason, by=by, pseudonym=pseudonym)
            _ask_to_erase(dimension, value)
        done = erasing.erase(store, dimension, value, reason=reason, by=by, pseudonym=pseudonym)
    if frame.as_json:
        emit(asdict(done))
    else:
        _tell_erasure(done)
    if done.uncounted or (done.left and store.url.startswith("sqlite")):
        raise typer.Exit(Exit.FOUND)


def _ask_to_erase(dimension: str, value: str) -> None:
    try:
        typer.confirm(f"Erase {dimension} {value} from the ledger, for good?", err=True, abort=True)
    except typer.Abort as answer:
        if isinstance(answer.__context__, KeyboardInterrupt):  # no answer: it ends as Ctrl-C ends any command
            raise KeyboardInterrupt from None
        if sys.stdin.isatty():
            raise
        progress_out.print()  # the question has a line of its own
        raise ConfigurationError("Nothing was erased: nobody said yes. A program that runs this says --yes.") from None


def _tell_erasure(done: erasing.Erasure) -> None:
    out.print(f"Erased. {counted(done.entries, 'entry now shows', 'entries now show')} {done.pseudonym}.", markup=False)
    if done.uncounted:
        out.print(f"Those of archived months show it, too; they are not counted: {done.uncounted}", markup=False)
    if done.changed:
        out.print(f"{counted(done.changed, 'document has', 'documents have')} it in place of the name.")
    out.print(f"Record of it in the chain: {done.record}")
    for one in done.documents:
        until = f", until {one.keep_until}" if one.keep_until else ""
        out.print(f"[yellow]names the person[/]  {one.kind} {escape(one.number or one.key)}: {one.why}{until}.")
    for text in done.left:
        out.print(f"[yellow]still here[/]  {text}")
    out.print("Not held by this ledger, and yours to handle:")
    for text in done.elsewhere:
        out.print(f"  {text}")


@command(
    commands,
    "sql",
    examples=[
        'tokenmeter sql "SELECT model, sum(requests) FROM entries GROUP BY model"',
        "tokenmeter sql \"SELECT * FROM charges WHERE meter = 'web_searches'\" --json",
        "tokenmeter sql --copy usage-readable.db",
    ],
)
def sql(
    frame: Frame,
    query: Annotated[str | None, typer.Argument(help="One SELECT statement.", show_default=False)] = None,
    *,
    copy_to: Annotated[
        Path | None, typer.Option("--copy", help="Write the views as tables into a new file, for other tools.")
    ] = None,
) -> None:
    """Ask a ledger file in SQL, read only. Views: entries, charges, accounts, sums (per UTC day).

    Costs are exact text; dollars(sum(billed_micro), sum(billed_pico)) adds them up.
    """
    if (query is None) is (copy_to is None):
        raise ConfigurationError("Give one SELECT statement, or --copy FILE.")
    with frame.ledger() as store:
        database = open_database(store, copy_to)
        if query is None:
            counts = {table.name: table.count for table in database.tables}
            database.close()
            _tell_archived(store)
            if frame.as_json:
                emit({"file": str(copy_to), "rows": counts})
            else:
                told = ", ".join(f"{name} {number:,}" for name, number in counts.items())
                out.print(
                    f"{copy_to}, in rows: {told}. It has names in it; guard it as you guard the ledger.", markup=False
                )
            return
        try:
            cursor = database.conn.execute(query)
            heads = [str(column[0]) for column in cursor.description or ()]
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        except sqlite3.Error as error:
            raise ConfigurationError(
                f"The query cannot be run: {error}. It reads the views {', '.join(database.view_names())}."
            ) from error
        finally:
            database.close()
        if re.search(r"\b(entries|charges)\b", query):
            _tell_archived(store)
    if frame.as_json:
        if twice := next((head for head in heads if heads.count(head) > 1), None):
            raise ConfigurationError(
                f"Several columns are called {twice!r}; --json needs a name for each: AS gives one."
            )
        emit([dict(zip(heads, row, strict=True)) for row in rows])
    elif not rows:
        out.print("No rows.")
    else:
        cells = [["" if value is None else visible(str(value)) for value in row] for row in rows]
        # SQL says no kinds of columns: one of whole numbers is taken for figures.
        figures = [head for place, head in enumerate(heads) if all(isinstance(row[place], int | None) for row in rows)]
        show_table(heads, cells, figures=figures)


def _tell_stretches(stretches: Sequence[tuple[date, ...]]) -> str:
    """Stretches of days in words: the first three, the last, and how many there are between."""
    told = [f"{first}" if first == last else f"{first} to {last}" for first, last in stretches]
    return ", ".join(told if len(told) <= 5 else [*told[:3], f"{len(told) - 4} more", told[-1]])  # noqa: PLR2004 - a line


def _tell_archived(store: Store) -> None:
    """Say what `entries` and `charges` lack."""
    archived = sum(one.gone for one in store.archives.listed())
    if archived:
        progress_out.print(
            f"{counted(archived, 'entry is', 'entries are')} in archived months, and not among entries and charges: "
            "ask with tokenmeter.duckdb(), or sums, which has all.",
            markup=False,
        )
