"""The command line as a whole: which commands there are, and how a command line begins and ends.

A command's module is loaded when it is named, and all of them by who asks ``tokenmeter --help`` for the list.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from enum import IntEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn, TextIO

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

import tokenmeter
from tokenmeter.dimensions import DIMENSIONS
from tokenmeter.errors import BudgetExceededError, ConfigurationError, StoreError, TokenmeterError

#: Module -> the heading under which `tokenmeter --help` lists what it has, and the commands and groups of commands.
COMMANDS = {
    "reading": ("Read", ("report", "entries", "tail", "export")),
    "importing": ("Read", ("import", "record")),
    "dashboard": ("Read", ("dashboard", "mcp")),
    "accounts": ("Budgets", ("budgets", "remaining", "raise")),
    "prices": ("Prices", ("prices", "estimate")),
    "configuration": ("Care", ("init", "config")),
    "care": ("Care", ("doctor", "verify", "checkpoint", "audit", "reprice")),
    "database": ("Care", ("sql", "erase")),
    "copies": ("Care", ("db", "archive")),
    "finance": ("Month end", ("period", "invoice", "statement", "journal", "handover")),
    "reconciling": ("Month end", ("reconcile", "quotas")),
}


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

#: An unknown option or command, a missing argument: click's class, which some releases of typer keep to themselves.
_UsageError: Any = typer.BadParameter.__bases__[0]


#: Where a command line keeps the options that stand before the name of a command.
_HANDED_ON = "tokenmeter.handed_on"


class Command(TyperCommand):
    """A command that says how a dimension's value is written, to who took the dimension for an option.

    What was given to its groups (`Group`) is its own, before what was given to itself.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's."""
        args = [*ctx.meta.get(_HANDED_ON, ()), *args]
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
    """Commands under one name; to who asks for another it says which there are.

    Options before a command's name are the command's, which refuses those that it does not have: the ledger in
    ``budgets --store URL set ...`` is the one that is written to.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's."""
        self._given = list(args)  # the parser takes them off
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer's."""
        own = self._given[: len(self._given) - len(args)]
        ctx.meta.setdefault(_HANDED_ON, []).extend(own[:-1] if own[-1:] == ["--"] else own)
        try:
            return super().resolve_command(ctx, args)
        except _UsageError as error:
            if ctx.parent is not None and "Did you mean" not in error.message:
                alone = f"{ctx.command_path} alone, and " if self.invoke_without_command else ""
                error.message = f"{error.message.rstrip('.')}. There are {alone}{', '.join(self.commands)}."
            raise


#: What the modules have, by their names; the command line is `app`.
commands = typer.Typer()


class LateCommands(Mapping[str, Any]):
    """Every command by its name, made when it is asked for, once in a process."""

    _made: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self._places = {name: (module, heading) for module, (heading, has) in COMMANDS.items() for name in has}

    def __getitem__(self, name: str) -> Any:
        module, heading = self._places[name]
        made: Any = self._made.get(name)
        if made is None:
            import_module(f"tokenmeter.cli.{module}")  # registers what it has
            alone = typer.Typer()
            alone.registered_commands = [one for one in commands.registered_commands if one.name == name]
            alone.registered_groups = [one for one in commands.registered_groups if one.name == name]
            made = self._made[name] = typer.main.get_group(alone).commands[name]
            made.rich_help_panel = heading
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Root(Group):
    """What `tokenmeter` alone is."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.commands: Any = LateCommands()


app = typer.Typer(
    cls=Root,
    name="tokenmeter",
    help="Reads and looks after the ledger of your OpenAI, Anthropic and Gemini usage.",
    epilog="Exit codes: 0 done, 1 found something wrong, 2 wrong arguments or settings, 3 ledger out of reach, "
    "4 refused by the ledger or the price list, 5 budget exhausted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tokenmeter {tokenmeter.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Reads and looks after the ledger of your OpenAI, Anthropic and Gemini usage."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and end the process; an error of tokenmeter's is said in words, without a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_streams()
    as_json = "--json" in given
    try:
        try:
            if os.environ.get("_TOKENMETER_COMPLETE") == "complete_bash":
                _complete_in_bash()
            # With --json typer's own errors come up to here as well, to be said as JSON.
            sys.exit(app(given, prog_name="tokenmeter", standalone_mode=not as_json))
        finally:
            sys.stdout.flush()  # what cannot be written is told here, and not when the interpreter ends
    except BrokenPipeError:  # whoever read has seen enough
        _leave_output()
        sys.exit(Exit.FOUND)
    except TokenmeterError as error:
        sys.exit(fail(error, as_json=as_json))
    except typer.Abort:  # as above: somebody said no
        sys.exit(fail(TokenmeterError("Nothing was done: the answer was no."), as_json=as_json, code=Exit.FOUND))
    except _UsageError as error:  # without JSON typer shows it itself
        sys.exit(fail(ConfigurationError(error.format_message()), as_json=as_json))
    except OSError as error:  # a full disk behind standard output, a file that may not be read
        reason = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        _leave_output()
        sys.exit(fail(ConfigurationError(f"The system refuses: {reason}."), as_json=as_json))


def _prepare_streams() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed before the process began
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - stays open
    for stream in (sys.stdout, sys.stderr):  # what it cannot say is shown as ?, rather than ending the command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _complete_in_bash() -> NoReturn:
    """Answer the tab key. bash cuts a word at ``=`` and ``:``, and puts what is chosen in place of the last piece."""
    pieces = os.environ.get("COMP_WORDS", "").split("\n")[: int(os.environ.get("COMP_CWORD", "0")) + 1]
    words, glued = pieces[:1], False
    for piece in pieces[1:]:
        cut = set(piece) <= {"=", ":"} and piece != ""
        if (cut or glued) and len(words) > 1:
            words[-1] += piece
        else:
            words.append(piece)
        glued = cut
    if len(pieces) > 1:
        os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(words), str(len(words) - 1)
    stays = words[-1].removesuffix("" if glued else pieces[-1])
    found = io.StringIO()
    try:
        with redirect_stdout(found):
            app([], prog_name="tokenmeter")
    finally:
        quoted = pieces[-1][:1] in {'"', "'"}
        for line in found.getvalue().splitlines():
            offered = line.removeprefix(stays.lstrip("\"'"))
            print(offered if quoted else _SPECIAL.sub(r"\\\g<0>", offered))  # noqa: T201 - what bash reads
    sys.exit(Exit.OK)


#: What a shell takes for more than a letter.
_SPECIAL = re.compile(r"[\s\"'\\$`&|;<>()*?\[\]{}!#~]")


def _leave_output() -> None:
    """Where standard output cannot be written, nobody tries again; else what it holds is written."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # no file of the system's
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def code_of(error: TokenmeterError) -> Exit:
    """The exit code an error ends the process with."""
    if isinstance(error, ConfigurationError):
        return Exit.USAGE
    if isinstance(error, StoreError):
        return Exit.STORE
    return Exit.BUDGET if isinstance(error, BudgetExceededError) else Exit.LEDGER


def fail(error: TokenmeterError, *, as_json: bool, code: Exit | None = None) -> Exit:
    """Say on standard error what went wrong; gives the exit code, the error's own without `code`."""
    if as_json:
        told = json.dumps({"error": type(error).__name__, "message": str(error)}, ensure_ascii=False)
        write_exactly(f"{told}\n", sys.stderr)
    else:
        progress_out.print(f"[bold red]{type(error).__name__}[/]", end=": ")
        progress_out.print(str(error), markup=False)
    return code_of(error) if code is None else code


def exact_stream(stream: TextIO | None = None) -> Any:
    """Where to write what machines read: what lies behind `stream` (standard output), which has a terminal's encoding.

    What stands in its place in a test or a notebook may have no bytes behind it, and is written as it is.
    """
    chosen: Any = sys.stdout if stream is None else stream
    has_bytes = isinstance(sys.stdout if stream is None else stream, io.TextIOWrapper)
    chosen.flush()  # what was written before stands before it
    return chosen.buffer if has_bytes else chosen


def write_exactly(text: str, stream: TextIO | None = None) -> None:
    """Write what machines read to standard output, or `stream`: UTF-8, whatever a terminal has."""
    place: Any = exact_stream(stream)
    as_text = isinstance(place, io.TextIOBase)
    place.write(text if as_text else text.encode(errors="replace"))
    place.flush()


def read_input() -> str:
    """Standard input as files are read: UTF-8, with or without a mark at its beginning.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read.
    """
    stream: Any = sys.stdin
    has_bytes = isinstance(sys.stdin, io.TextIOWrapper)
    text: str = stream.buffer.read().decode("utf-8") if has_bytes else stream.read()
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
