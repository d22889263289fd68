"""IPython and Jupyter: ``%load_ext tokenmeter``, then ``%%meter member=ada`` on top of a cell."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shlex
from contextlib import suppress
from typing import Any

from tokenmeter.attribution import Scope, attribute, current_scopes
from tokenmeter.dimensions import WHO
from tokenmeter.display import counted, dollars
from tokenmeter.errors import ConfigurationError

__all__ = ["load_ipython_extension"]

_TAG = "tag:"


def load_ipython_extension(ipython: Any) -> None:
    """Called by ``%load_ext tokenmeter``: adds the magics, and has plots shown without a network.

    ``%%meter member=ada route=/ask tag:run=v2`` attributes a cell's calls and says what they came to. In a cell that
    uses ``await`` write ``%meter member=ada`` as its first line instead: it holds until the end of the cell.
    """
    magic = _Magic(ipython)
    ipython.register_magic_function(magic.meter, magic_kind="line_cell", magic_name="meter")
    ipython.events.register("post_run_cell", magic.end_of_cell)
    if importlib.util.find_spec("plotly") and "PLOTLY_RENDERER" not in os.environ and _is_notebook(ipython):
        renderers: Any = importlib.import_module("plotly.io").renderers
        renderers.default = "plotly_mimetype+notebook"  # with its script in the notebook itself


def _is_notebook(ipython: Any) -> bool:
    return type(ipython).__name__ != "TerminalInteractiveShell"


class _BlockOfCell(attribute):
    """The block around one cell."""

    place = "the cell (%meter)"


class _Magic:
    """The magics of one shell."""

    def __init__(self, ipython: Any) -> None:
        self._shell = ipython
        self._open: tuple[_BlockOfCell, Scope] | None = None
        self._inside = False

    def meter(self, line: str, cell: str | None = None) -> None:
        """Attribute the calls of a cell, and say what they came to.

        Usage: ``%%meter member=ada team=search route=/ask tag:run=v2`` on top of a cell; ``%meter ...`` as the first
        line of a cell with ``await``.
        """
        block = _BlockOfCell(**_parse(line))
        if cell is None:
            self.end_of_cell()
            self._open = (block, block.__enter__())
            return
        if self._shell.should_run_async(cell, transformed_cell=self._shell.transform_cell(cell)):
            raise ConfigurationError(
                f"A cell with `await` cannot have %%meter on top: write %meter {line} as its first line."
            )
        if self._ends_silently(cell):  # which IPython sees of a whole cell only
            cell += "\nNone"
        self._inside = True
        try:
            with block as scope:
                outcome = self._shell.run_cell(cell, store_history=False)
        finally:
            self._inside = False
        _say(scope)
        outcome.raise_error()

    def _ends_silently(self, cell: str) -> bool:
        """Whether a semicolon behind the last expression says that it is not to be shown."""
        with suppress(Exception):  # what is no Python is told when it is run; old shells cannot say
            return bool(self._shell.displayhook.semicolon_at_end_of_expression(cell))
        return False

    def end_of_cell(self, *_: object) -> None:
        """Ends the block that ``%meter`` opened in the cell."""
        if self._open is None or self._inside:
            return
        (block, scope), self._open = self._open, None
        if scope in current_scopes():  # else it went with its cell, which newer kernels run in a context of its own
            block.__exit__(None, None, None)
        _say(scope)


def _parse(line: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    tags: dict[str, str] = {}
    for part in shlex.split(line):
        name, is_set, value = part.partition("=")
        if not is_set or not (name in WHO or name.startswith(_TAG)):
            raise ConfigurationError(
                f"%meter takes name=value with {', '.join(WHO)} or tag:NAME as names, not {part!r}."
            )
        if name.startswith(_TAG):
            tags[name.removeprefix(_TAG)] = value
        else:
            fields[name] = value
    return {**fields, "tags": tags}


def _say(scope: Scope) -> None:
    calls = counted(scope.requests, "call")
    tokens = f"{counted(scope.usage.input_tokens, 'token')} in, {scope.usage.output_tokens:,} out"
    unpriced = f", {scope.unpriced:,} unpriced" if scope.unpriced else ""
    print(f"{calls}, {tokens}, {dollars(scope.billed_cost)} billed{unpriced}")  # noqa: T201 - below the cell
