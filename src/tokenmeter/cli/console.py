"""What commands print, and the exit codes they end with."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from enum import IntEnum
from typing import Any

from rich.console import Console

from tokenmeter.errors import BudgetExceededError, ConfigurationError, StoreError, TokenmeterError
from tokenmeter.reports.layout import Column, fit, render

__all__ = ["Exit", "code_of", "emit", "fail", "out", "progress_out", "show_table"]


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
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, figures: Collection[str], whole: Collection[str] = ()
) -> None:
    """Print aligned columns that fit the terminal.

    Args:
        heads: Headings.
        rows: Cells of each line.
        figures: Columns to align to the right; these and `whole` are never shortened.
        whole: Texts that lose their meaning when cut.
    """
    columns = [
        Column(head, cells, right=head in figures, shrinks=head not in figures and head not in whole)
        for head, cells in zip(heads, zip(*rows, strict=True), strict=True)
    ]
    for line in render(fit(columns, out.width), totals=False):
        out.print(line, markup=False)


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
