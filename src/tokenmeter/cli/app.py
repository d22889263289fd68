"""The application: every command, and how errors end it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import tokenmeter
from tokenmeter.cli import accounts, care, dashboard, database, importing, invoicing, prices, reading, settling
from tokenmeter.cli.console import fail
from tokenmeter.errors import ConfigurationError, TokenmeterError

__all__ = ["app", "run"]

#: An unknown option or command, a missing argument: click's class, which some releases of typer keep to themselves.
_UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="tokenmeter",
    help="Reads and looks after the ledger of your OpenAI and Anthropic usage.",
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
    """Reads and looks after the ledger of your OpenAI and Anthropic usage."""


app.command("report")(reading.report)
app.command("entries")(reading.entries)
app.command("export")(reading.export)
app.command("budgets")(accounts.budgets)
app.command("remaining")(accounts.remaining)
app.add_typer(prices.app, name="prices")
app.command("reprice")(care.reprice)
app.command("verify")(care.verify)
app.command("doctor")(care.doctor)
app.add_typer(care.config_app, name="config")
app.command("import")(importing.import_)
app.add_typer(database.app, name="db")
app.command("dashboard")(dashboard.dashboard)
app.add_typer(settling.period_app, name="period")
app.add_typer(invoicing.invoice_app, name="invoice")
app.command("reconcile")(settling.reconcile)


def run(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and end the process; an error of tokenmeter's is said in words, without a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
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
