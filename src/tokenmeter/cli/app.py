"""The command line as a whole: every command, in the order in which ``tokenmeter --help`` lists them."""

from __future__ import annotations

from typing import Annotated

import typer

import tokenmeter
from tokenmeter.cli import (
    accounts,
    care,
    configuration,
    copies,
    dashboard,
    database,
    finance,
    importing,
    invoicing,
    prices,
    reading,
    reconciling,
)
from tokenmeter.cli.frame import HEADINGS, app, run

__all__ = ["COMMANDS", "app", "run"]

#: Every module of commands; importing one registers what it has with `tokenmeter.cli.frame.command`.
COMMANDS = (
    reading,
    accounts,
    prices,
    care,
    configuration,
    importing,
    database,
    copies,
    dashboard,
    invoicing,
    finance,
    reconciling,
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


app.add_typer(prices.app, name="prices", rich_help_panel=HEADINGS["prices"])
app.add_typer(configuration.config_app, name="config", rich_help_panel=HEADINGS["configuration"])
app.add_typer(copies.archive_app, name="archive", rich_help_panel=HEADINGS["copies"])
app.add_typer(database.app, name="db", rich_help_panel=HEADINGS["database"])
app.add_typer(finance.period_app, name="period", rich_help_panel=HEADINGS["finance"])
app.add_typer(invoicing.invoice_app, name="invoice", rich_help_panel=HEADINGS["invoicing"])
app.registered_commands.sort(key=lambda one: list(dict.fromkeys(HEADINGS.values())).index(str(one.rich_help_panel)))
