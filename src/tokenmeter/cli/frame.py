"""What every command has in common: where the ledger and the settings are, JSON or words, and how errors end it.

A command is a function that takes a `Frame` first and its own options after it. `command` registers it, and gives it
``--store``, ``--config`` and ``--json``; ``**who: Unpack[WhoArguments]`` gives it ``--member``, ``--team`` and so on::

    @command(app, "report", examples=["tokenmeter report --by member"])
    def report(frame: Frame, *, by: By = None) -> None: ...
"""

from __future__ import annotations

import functools
import inspect
import io
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, get_type_hints
from urllib.parse import unquote

import typer

from tokenmeter.api import Meter
from tokenmeter.cli.console import fail
from tokenmeter.config import Settings, load_settings
from tokenmeter.default import make_meter
from tokenmeter.dimensions import WHO
from tokenmeter.errors import ConfigurationError, TokenmeterError
from tokenmeter.stores import default_path, open_store
from tokenmeter.stores.base import Store

P = ParamSpec("P")

app = typer.Typer(
    name="tokenmeter",
    help="Reads and looks after the ledger of your OpenAI and Anthropic usage.",
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
    "estimating": "Prices",
    "care": "Care",
    "configuration": "Care",
    "database": "Care",
    "archiving": "Care",
    "importing": "Read",
    "dashboard": "Read",
    "settling": "Month end",
    "invoicing": "Month end",
    "finance": "Month end",
}
#: An unknown option or command, a missing argument: click's class, which some releases of typer keep to themselves.
_UsageError: Any = typer.BadParameter.__bases__[0]


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

    @contextmanager
    def ledger(self) -> Generator[Store]:
        """The ledger's store, open for reading; a missing file is not made.

        Raises:
            ConfigurationError: there is no such file.
        """
        self.require()
        opened = open_store(self.settings.store)
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
        """The file in which the ledger should be and is not; None where it is there, or on a server."""
        url = self.settings.store
        if url is not None and not url.startswith("sqlite:///"):
            return None
        path = default_path() if url is None else Path(unquote(url.removeprefix("sqlite:///")))
        return None if path.exists() else path

    def require(self) -> None:
        """Refuse a ledger that is not there: a name mistyped must not be answered with an empty one.

        Raises:
            ConfigurationError: there is no such file.
        """
        if path := self.missing:
            raise ConfigurationError(
                f"There is no ledger at {path}. The first metered call makes one; name another with --store or "
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
        framed, heading = _framed(function, options), function.__module__.rpartition(".")[2]
        if name is None:
            app.callback(invoke_without_command=True, epilog=_examples(examples))(framed)
        else:
            app.command(name, epilog=_examples(examples), rich_help_panel=HEADINGS.get(heading))(framed)
        return function

    return register


def _examples(examples: Sequence[str]) -> str | None:
    title = "Example:" if len(examples) == 1 else "Examples:"
    return "\n\n".join([title, *examples]) if examples else None


def _framed(function: Callable[Concatenate[Frame, P], None], options: Sequence[str]) -> Callable[..., None]:
    """`function` as typer calls it: by name, with the shared options at the end."""
    _, *own = inspect.signature(function).parameters.values()
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for one in own:
        if one.kind is inspect.Parameter.VAR_KEYWORD:  # **who: Unpack[WhoArguments]
            parameters += (
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=None,
                    annotation=Annotated[str | None, typer.Option(help="On whose account.")],
                )
                for name in WHO
            )
        else:
            parameters.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[one.name]))
    for name in options:
        annotation, default = _SHARED[name]
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )

    @functools.wraps(function)
    def framed(**given: Any) -> None:
        frame = Frame(**{name: given.pop(name) for name in options})
        function(frame, **given)  # type: ignore[call-arg]

    framed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    framed.__annotations__ = {one.name: one.annotation for one in parameters}
    return framed


def run(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and end the process; an error of tokenmeter's is said in words, without a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):  # what it cannot say is shown as ?, rather than ending the command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    as_json = "--json" in given
    try:
        sys.exit(app(given, prog_name="tokenmeter", standalone_mode=not as_json))
    except TokenmeterError as error:
        sys.exit(fail(error, as_json=as_json))
    except _UsageError as error:  # without JSON typer shows it itself
        sys.exit(fail(ConfigurationError(error.format_message()), as_json=as_json))
    except OSError as error:  # a full disk behind standard output, a file that may not be read
        reason = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        sys.exit(fail(ConfigurationError(f"The system does not permit it: {reason}."), as_json=as_json))
