"""What every command has in common: where the ledger and the settings are, and JSON, words or tables.

A command is a function that takes a `Frame` first and its own options after it. `command` registers it, and gives it
``--store``, ``--config`` and ``--json``. Options that several commands share are a dataclass, which stands for all of
its fields; ``**who: Unpack[WhoArguments]`` stands for ``--member``, ``--team`` and so on::

    @command(app, "report", examples=["tokenmeter report --by member"])
    def report(frame: Frame, *, asked: SplitOptions, latency: bool = False) -> None: ...
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, Protocol, cast, get_type_hints

import typer
from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from tokenmeter.api import Meter
from tokenmeter.cli.app import Command, Exit, out, progress_out, write_exactly
from tokenmeter.config import load_settings
from tokenmeter.default import make_meter
from tokenmeter.dimensions import WHO
from tokenmeter.errors import ConfigurationError
from tokenmeter.reports.table import Column, render
from tokenmeter.settings import Settings
from tokenmeter.stores import open_store, store_path
from tokenmeter.stores.base import Store
from tokenmeter.stores.tail import segments

P = ParamSpec("P")

StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Ledger URL, such as sqlite:///usage.db.", show_default="from the settings"),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Path of tokenmeter.toml.", show_default="looked for")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON; errors too.")]

_SHARED = {"store": (StoreOption, None), "config": (ConfigOption, None), "as_json": (JsonOption, False)}


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
        framed = _put_in_frame(function, options)
        if name is None:
            app.callback(invoke_without_command=True, epilog=_format_examples(examples))(framed)
        else:
            app.command(name, cls=Command, epilog=_format_examples(examples))(framed)
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


#: A rule under the headings, and nothing else.
_RULE = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
_GAP = 2
#: Cells that an identifying column keeps at least, any other text, and a bar.
_READABLE, _FOLDED, _BAR = 24, 14, 12


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
    write_exactly(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


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
    if needed <= room and not any(isinstance(cell, ProgressBar) for row in rows for cell in row):
        _show_lines(heads, cast("Sequence[Sequence[str]]", rows), figures)
        return
    table = Table(box=_RULE, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
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


def _show_lines(heads: Sequence[str], rows: Sequence[Sequence[str]], figures: Collection[str]) -> None:
    """A table that has room as it is; rich takes a millisecond for each row."""
    columns = [Column(head, tuple(cells), right=head in figures) for head, *cells in zip(heads, *rows, strict=True)]
    first, *others = render(columns, totals=False)
    out.print(first, style="bold", markup=False)
    sys.stdout.writelines(f"{line}\n" for line in others)


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
    if not out.is_terminal:  # COLUMNS is the width of a terminal that looks on
        return None
    columns = os.environ.get("COLUMNS", "")  # read now: a console remembers what it was made with
    if columns.isdecimal() and int(columns):
        return int(columns)
    return out.width


@contextmanager
def ended_by_hanging_up() -> Generator[None]:
    """End the process once nobody can hear its answers: what still may come would be waited for.

    Raises:
        BrokenPipeError: standard output was closed before the process began.
    """
    if sys.__stdout__ is None:
        raise BrokenPipeError
    over = threading.Event()

    def watch(output: int) -> None:
        heard = select.poll()
        heard.register(output, 0)  # hearing that the other end is closed needs no asking
        while not over.is_set():
            if heard.poll(1000):
                os._exit(Exit.FOUND)
        os.close(output)

    if hasattr(select, "poll"):  # not on Windows
        with suppress(OSError):  # an output that is no file of the system's is nobody's to close
            # The server puts its own file in the place of standard output while it runs.
            threading.Thread(target=watch, args=(os.dup(sys.stdout.fileno()),), daemon=True).start()
    try:
        yield
    finally:
        over.set()
