"""What every command has in common: where the ledger and the settings are, JSON or words, and how errors end it.

A command is a function that takes a `Frame` first and its own options after it. `command` registers it, and gives it
``--store``, ``--config`` and ``--json``. Options that several commands share are a dataclass, which stands for all of
its fields; ``**who: Unpack[WhoArguments]`` stands for ``--member``, ``--team`` and so on::

    @command(app, "report", examples=["tokenmeter report --by member"])
    def report(frame: Frame, *, asked: SplitOptions, latency: bool = False) -> None: ...
"""

from __future__ import annotations

import functools
import inspect
import io
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, Protocol, get_type_hints

import typer
from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

from tokenmeter.api import Meter
from tokenmeter.config import load_settings
from tokenmeter.default import make_meter
from tokenmeter.dimensions import DIMENSIONS, WHO
from tokenmeter.errors import BudgetExceededError, ConfigurationError, StoreError, TokenmeterError
from tokenmeter.settings import Settings
from tokenmeter.stores import open_store, store_path
from tokenmeter.stores.base import Store
from tokenmeter.stores.tail import segments

P = ParamSpec("P")

#: An unknown option or command, a missing argument: click's class, which some releases of typer keep to themselves.
_UsageError: Any = typer.BadParameter.__bases__[0]


class Command(TyperCommand):
    """A command that says how a dimension's value is written, to who took the dimension for an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            option = getattr(error, "option_name", None)
            if option is None and "unexpected extra argument" not in error.message:  # what it has was not given right
                raise
            pairs = [f"{option[2:].replace('-', '_')}=VALUE"] if option else [one for one in given if "=" in one]
            pair = next((one for one in pairs if one.partition("=")[0] in DIMENSIONS), None)
            if pair and (way := self._write_pair(pair)):
                error.possibilities = None
                error.message = f"{error.message.rstrip('.')}. Write {way}."
            raise

    def _write_pair(self, pair: str) -> str | None:
        if any(one.name == "where" for one in self.params):
            return f"--where {pair}"
        takes = any(one.nargs == -1 and "FIELD=VALUE" in f"{one.metavar}{vars(one).get('help')}" for one in self.params)
        return f"{pair} without dashes" if takes else None


class Group(TyperGroup):
    """Commands under one name; to who asks for another it says which there are."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer's."""
        try:
            return super().resolve_command(ctx, args)
        except _UsageError as error:
            if ctx.parent is not None and "Did you mean" not in error.message:
                alone = f"{ctx.command_path} alone, and " if self.invoke_without_command else ""
                error.message = f"{error.message.rstrip('.')}. There are {alone}{', '.join(self.commands)}."
            raise


app = typer.Typer(
    cls=Group,
    name="tokenmeter",
    help="Reads and looks after the ledger of your OpenAI, Anthropic and Gemini usage.",
    epilog="Exit codes: 0 done, 1 found something wrong, 2 wrong arguments or settings, 3 ledger out of reach, "
    "4 refused by the ledger or the price list, 5 budget exhausted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Ledger URL, such as sqlite:///usage.db.", show_default="from the settings"),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Path of tokenmeter.toml.", show_default="looked for")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON; errors too.")]

_SHARED = {"store": (StoreOption, None), "config": (ConfigOption, None), "as_json": (JsonOption, False)}
#: Module of commands -> the heading under which `tokenmeter --help` lists them.
HEADINGS = {
    "reading": "Read",
    "accounts": "Budgets",
    "prices": "Prices",
    "care": "Care",
    "configuration": "Care",
    "database": "Care",
    "copies": "Care",
    "importing": "Read",
    "dashboard": "Read",
    "invoicing": "Month end",
    "finance": "Month end",
    "reconciling": "Month end",
}


class Tellable(Protocol):
    """A result that says of itself what there is to say, as text and as values for JSON."""

    def to_dict(self) -> Mapping[str, Any]:
        """JSON-ready values."""
        ...


class Frame:
    """What a command runs in.

    Args:
        store: URL of the ledger; None = as the settings say.
        config: Path of the settings' file; None = looked for.
        as_json: Whether to print JSON.

    Attributes:
        as_json: As above.
    """

    def __init__(self, store: str | None = None, config: Path | None = None, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._store, self._config = store, config

    @cached_property
    def settings(self) -> Settings:
        """The settings as a program would load them, with the command line's store and file first."""
        return load_settings(store=self._store, config=self._config)

    def settled_by(self, config: Path) -> Frame:
        """This frame with the settings of `config`, unless the command line named others."""
        return Frame(self._store, self._config or config, as_json=self.as_json)

    def for_dry_run(self) -> Frame:
        """This frame; where there is no ledger yet, one with an empty ledger in its place: a dry run makes none."""
        if self.missing is None:
            return self
        progress_out.print(f"There is no ledger at {self.missing} yet: everything would be new.", markup=False)
        return Frame("memory:", self._config, as_json=self.as_json)

    def tell(self, found: Tellable) -> None:
        """Print a result: as JSON where that is asked for, else in its own words."""
        if self.as_json:
            emit(found.to_dict())
        else:
            out.print(str(found), markup=False)

    @contextmanager
    def ledger(self) -> Generator[Store]:
        """The ledger's store, open for reading; a missing file is not made.

        Raises:
            ConfigurationError: there is no such file.
        """
        self.require()
        opened = open_store(self.settings.store)
        opened.call_keys(self.settings.keys_at_hand())
        try:
            yield opened
        finally:
            opened.close()

    @contextmanager
    def meter(self, *, make: bool = False) -> Generator[Meter]:
        """A meter of the settings.

        Args:
            make: Whether a missing ledger is made, for commands that record. Others refuse it.

        Raises:
            ConfigurationError: there is no such ledger, or a setting is wrong.
        """
        if not make:
            self.require()
        opened = make_meter(self.settings)
        try:
            yield opened
        finally:
            opened.close()

    @property
    def missing(self) -> Path | None:
        """The file in which the ledger should be and is not, or is empty; None where it is there, or on a server."""
        path = store_path(self.settings.store)
        # An empty file with a tail beside it is a ledger whose first calls are not folded yet.
        if path is not None and path.exists() and (path.stat().st_size or segments(path)):
            return None
        return path

    def require(self) -> None:
        """Refuse a ledger that is not there: a name mistyped must not be answered with an empty one.

        Raises:
            ConfigurationError: there is no such file.
        """
        if path := self.missing:
            empty = ": the file is empty" if path.exists() else ""
            raise ConfigurationError(
                f"There is no ledger at {path}{empty}. The first metered call makes one; name another with --store or "
                "--config."
            )


def command(
    app: typer.Typer,
    name: str | None,
    *,
    examples: Sequence[str] = (),
    options: Sequence[str] = ("store", "config", "as_json"),
) -> Callable[[Callable[Concatenate[Frame, P], None]], Callable[Concatenate[Frame, P], None]]:
    """Register a function as a command of `app`.

    Args:
        app: The application, or one of its groups of commands.
        name: What the command is called; None for what a group does when no command of it is named.
        examples: Command lines that ``--help`` ends with.
        options: Which of the shared options it takes.
    """

    def register(function: Callable[Concatenate[Frame, P], None]) -> Callable[Concatenate[Frame, P], None]:
        framed, heading = _put_in_frame(function, options), function.__module__.rpartition(".")[2]
        if name is None:
            app.callback(invoke_without_command=True, epilog=_format_examples(examples))(framed)
        else:
            app.command(name, cls=Command, epilog=_format_examples(examples), rich_help_panel=HEADINGS.get(heading))(
                framed
            )
        return function

    return register


def _format_examples(examples: Sequence[str]) -> str | None:
    title = "Example:" if len(examples) == 1 else "Examples:"
    return "\n\n".join([title, *examples]) if examples else None


_WHO = Annotated[str | None, typer.Option(help="On whose account.")]


def _put_in_frame(function: Callable[Concatenate[Frame, P], None], options: Sequence[str]) -> Callable[..., None]:
    """`function` as typer calls it: by name, with the shared options at the end."""
    _, *own = inspect.signature(function).parameters.values()
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for one in own:
        if one.kind is inspect.Parameter.VAR_KEYWORD:  # **who: Unpack[WhoArguments]
            parameters += (_make_parameter(name, _WHO, None) for name in WHO)
        elif one.name in groups:
            group = groups[one.name]
            within = get_type_hints(group, include_extras=True)
            parameters += (_make_parameter(field.name, within[field.name], field.default) for field in fields(group))
        else:
            parameters.append(_make_parameter(one.name, hints[one.name], one.default))
    parameters += (_make_parameter(name, *_SHARED[name]) for name in options)

    @functools.wraps(function)
    def framed(**given: Any) -> None:
        frame = Frame(**{name: given.pop(name) for name in options})
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        function(frame, **given)  # type: ignore[call-arg]

    # typer reads what there is from the one, and what it means from the other.
    framed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    framed.__annotations__ = {one.name: one.annotation for one in parameters}
    return framed


def _make_parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def run(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and end the process; an error of tokenmeter's is said in words, without a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for name in ("stdout", "stderr"):  # None where it was closed before the process began
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    for stream in (sys.stdout, sys.stderr):  # what it cannot say is shown as ?, rather than ending the command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    as_json = "--json" in given
    try:
        try:
            # With --json typer's own errors come up to here as well, to be said as JSON.
            sys.exit(app(given, prog_name="tokenmeter", standalone_mode=not as_json))
        finally:
            sys.stdout.flush()  # what cannot be written is told here, and not when the interpreter ends
    except BrokenPipeError:  # whoever read has seen enough
        _leave_output()
        sys.exit(Exit.FOUND)
    except TokenmeterError as error:
        sys.exit(fail(error, as_json=as_json))
    except _UsageError as error:  # without JSON typer shows it itself
        sys.exit(fail(ConfigurationError(error.format_message()), as_json=as_json))
    except OSError as error:  # a full disk behind standard output, a file that may not be read
        reason = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        _leave_output()
        sys.exit(fail(ConfigurationError(f"The system refuses: {reason}."), as_json=as_json))


def _leave_output() -> None:
    """Where standard output cannot be written, nobody tries again; else what it holds is written."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # no file of the system's
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


#: A rule under the headings, and nothing else.
_RULE = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
_GAP = 2
#: Cells that an identifying column keeps at least, any other text, and a bar.
_READABLE, _FOLDED, _BAR = 24, 14, 12


class Exit(IntEnum):
    """Exit codes, documented in docs/reference/cli.md."""

    OK = 0
    FOUND = 1  # the command did its work and found something wrong
    USAGE = 2  # wrong arguments or settings
    STORE = 3  # the ledger cannot be reached, read or written
    LEDGER = 4  # its content, or a price, does not permit this
    BUDGET = 5  # a budget is exhausted
    UNKNOWN = 6  # whether one is cannot be said here


if not os.environ.get("COLUMNS", "").strip("0"):  # a terminal that does not know its width: rich would print nothing
    os.environ.pop("COLUMNS", None)
#: Results go here. A name such as ``:key:`` is a name, not an emoji.
out = Console(highlight=False, soft_wrap=True, emoji=False)
#: Progress and errors go here, so that results can be piped.
progress_out = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


#: Seconds between two lines about what takes long, where there is no terminal.
_BETWEEN_LINES = 30


class Tell(Protocol):
    """Takes how far something is, and of how much."""

    def __call__(self, done: int, total: int | None = None, /) -> object:
        """Show it."""
        ...


@contextmanager
def show_progress(what: str, of: str = "records") -> Generator[Tell]:
    """Shows how far something is: on a terminal as it goes, elsewhere (a log, say) by a line every half minute."""
    due = time.monotonic() + _BETWEEN_LINES

    def words(done: int, total: int | None) -> str:
        return f"{what}: {done:,} {'' if total is None else f'of {total:,} '}{of}"

    def write(done: int, total: int | None = None, /) -> None:
        nonlocal due
        if time.monotonic() >= due:
            progress_out.print(words(done, total), markup=False)
            due = time.monotonic() + _BETWEEN_LINES

    if progress_out.is_terminal:
        with progress_out.status(what) as shown:
            yield lambda done, total=None: shown.update(words(done, total))
    else:
        yield write


def emit(value: Any) -> None:
    """Print `value` as JSON."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def show_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str | ProgressBar]],
    *,
    figures: Collection[str],
    whole: Collection[str] = (),
) -> None:
    """Print aligned columns: whole where nobody looks at a terminal, folded into its width else. Nothing is cut off.

    Where not even folding helps, each row becomes a block of lines.

    Args:
        heads: Headings.
        rows: Cells of each line.
        figures: Columns to align to the right; never folded.
        whole: What identifies a row or is hard to read in two lines; folded last.
    """
    table = Table(box=_RULE, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    widths = [max(map(_measure_cell, column)) for column in zip(heads, *rows, strict=True)]
    least = [
        width if head in figures else min(width, _READABLE if head in whole else _FOLDED)
        for head, width in zip(heads, widths, strict=True)
    ]
    needed = sum(widths) + _GAP * (len(heads) - 1)
    room = table_width() or needed
    if sum(least) + _GAP * (len(heads) - 1) > room:
        _show_blocks(heads, rows)
        return
    widths = _fit_widths(widths, least, needed - room, last=[head in whole for head in heads])
    for head, width in zip(heads, widths, strict=True):
        table.add_column(head, justify="right" if head in figures else "left", overflow="fold", width=width)
    for row in rows:
        table.add_row(*(escape(cell) if isinstance(cell, str) else cell for cell in row))
    if out.is_terminal:
        out.print(table, soft_wrap=False, crop=False, width=min(needed, room))
        return
    wide = Console(highlight=False, emoji=False, width=min(needed, room))
    with wide.capture() as shown:
        wide.print(table, crop=False)
    # rich fills each line up to the table's width.
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in shown.get().splitlines())


def _fit_widths(widths: Sequence[int], least: Sequence[int], excess: int, *, last: Sequence[bool]) -> list[int]:
    """`widths` less `excess`, taken from the widest column first, and from those that come `last` when it must be."""
    fitted = list(widths)
    for turn in (False, True):
        columns = [index for index, late in enumerate(last) if late is turn]
        while excess > 0 and (wide := [index for index in columns if fitted[index] > least[index]]):
            fitted[max(wide, key=lambda index: fitted[index])] -= 1
            excess -= 1
    return fitted


def _measure_cell(cell: str | ProgressBar) -> int:
    return cell_len(cell) if isinstance(cell, str) else _BAR


def _show_blocks(heads: Sequence[str], rows: Sequence[Sequence[str | ProgressBar]]) -> None:
    wide = max(map(cell_len, heads))
    for row in rows:
        for head, cell in zip(heads, row, strict=True):
            if isinstance(cell, str):
                out.print(f"{head:<{wide}}  {cell}", markup=False)
        out.print()


def table_width() -> int | None:
    """Columns a table may take; None = as many as it needs, because it goes to no terminal."""
    columns = os.environ.get("COLUMNS", "")  # read now: a console remembers what it was made with
    if columns.isdecimal() and int(columns):
        return int(columns)
    return out.width if out.is_terminal else None


def code_of(error: TokenmeterError) -> Exit:
    """The exit code an error ends the process with."""
    if isinstance(error, ConfigurationError):
        return Exit.USAGE
    if isinstance(error, StoreError):
        return Exit.STORE
    return Exit.BUDGET if isinstance(error, BudgetExceededError) else Exit.LEDGER


def fail(error: TokenmeterError, *, as_json: bool) -> Exit:
    """Say on standard error what went wrong."""
    if as_json:
        sys.stderr.write(json.dumps({"error": type(error).__name__, "message": str(error)}, ensure_ascii=False) + "\n")
    else:
        progress_out.print(f"[bold red]{type(error).__name__}[/]", end=": ")
        progress_out.print(str(error), markup=False)
    return code_of(error)
