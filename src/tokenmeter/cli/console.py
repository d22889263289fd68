"""What commands print, and the exit codes they end with."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Sequence
from enum import IntEnum
from typing import Any

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from tokenmeter.errors import BudgetExceededError, ConfigurationError, StoreError, TokenmeterError

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


#: Results go here. A name such as ``:key:`` is a name, not an emoji.
out = Console(highlight=False, soft_wrap=True, emoji=False)
#: Progress and errors go here, so that results can be piped.
progress_out = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


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
    widths = [max(map(_width, column)) for column in zip(heads, *rows, strict=True)]
    least = [
        width if head in figures else min(width, _READABLE if head in whole else _FOLDED)
        for head, width in zip(heads, widths, strict=True)
    ]
    needed = sum(widths) + _GAP * (len(heads) - 1)
    room = table_width() or needed
    if sum(least) + _GAP * (len(heads) - 1) > room:
        _show_blocks(heads, rows)
        return
    widths = _fitted(widths, least, needed - room, last=[head in whole for head in heads])
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
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in shown.get().splitlines())


def _fitted(widths: Sequence[int], least: Sequence[int], excess: int, *, last: Sequence[bool]) -> list[int]:
    """`widths` less `excess`, taken from the widest column first, and from those that come `last` when it must be."""
    fitted = list(widths)
    for turn in (False, True):
        columns = [index for index, late in enumerate(last) if late is turn]
        while excess > 0 and (wide := [index for index in columns if fitted[index] > least[index]]):
            fitted[max(wide, key=lambda index: fitted[index])] -= 1
            excess -= 1
    return fitted


def _width(cell: str | ProgressBar) -> int:
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
