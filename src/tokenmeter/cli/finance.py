"""For finance: statements, balances by age, journals, and usage handed over to where customers are billed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tokenmeter.billing import (
    BillingProfile,
    Lago,
    OpenMeter,
    StripeMeters,
    age_balances,
    draw_statement,
    export_journal,
    hand_over,
)
from tokenmeter.cli.console import Exit, emit, out, show_table
from tokenmeter.cli.frame import Frame, app, command
from tokenmeter.cli.invoicing import Actor, Day, invoice_app, write_document
from tokenmeter.cli.options import BillPeriod, TzOption, account_of, pairs_of
from tokenmeter.errors import ConfigurationError
from tokenmeter.periods import parse_day


@command(invoice_app, "aging")
def aging(frame: Frame, *, on: Day = None) -> None:
    """What buyers owe, by how long it is overdue."""
    with frame.ledger() as opened:
        found = age_balances(opened, as_of=parse_day(on))
    if frame.as_json:
        emit([one.to_dict() for one in found])
    elif not found:
        out.print("Nobody owes anything.")
    else:
        rows = [list(one.to_dict().values()) for one in found]
        heads = list(found[0].to_dict())
        show_table(heads, rows, figures=tuple(heads[3:]), whole=("account",))


@command(
    app,
    "statement",
    examples=[
        "tokenmeter statement team=search --period last-month",
        "tokenmeter statement team=search --period this-year --basis invoices --to statement.pdf",
    ],
)
def statement(
    frame: Frame,
    account: Annotated[list[str], typer.Argument(help="Whose: FIELD=VALUE, such as member=ada; more narrow it down.")],
    *,
    period: BillPeriod = "this-month",
    basis: Annotated[str, typer.Option("--basis", help="usage or invoices.")] = "usage",
    granularity: Annotated[str, typer.Option("--granularity", "-g", help="Of a usage statement's lines.")] = "day",
    tz: TzOption = "UTC",
    to: Annotated[Path | None, typer.Option("--to", help="File ending in .pdf, .html, .csv, .xlsx or .json.")] = None,
) -> None:
    """The running balance of an account: opening + charges + credits = closing."""
    scope = account_of(account)
    profile = BillingProfile.parse(frame.settings.billing)
    with frame.ledger() as opened:
        drawn = draw_statement(
            opened,
            period=period,
            basis=basis,  # type: ignore[arg-type]  # checked there
            granularity=granularity,  # type: ignore[arg-type]  # as above
            tz=tz,
            profile=profile,
            **scope,
        )
    if to is not None:
        write_document(drawn, to)
        out.print(str(to), markup=False)
    elif frame.as_json:
        emit(drawn.to_dict())
    else:
        out.print(str(drawn), markup=False)


@command(
    app,
    "journal",
    examples=[
        "tokenmeter journal beancount --period last-month --to 2026-11.beancount",
        "tokenmeter journal xero --period last-month --account income=200 --to xero.csv",
    ],
)
def journal(
    frame: Frame,
    form: Annotated[str, typer.Argument(help="beancount, hledger, xero, quickbooks or datev.")],
    *,
    period: BillPeriod = "last-month",
    account: Annotated[
        list[str] | None,
        typer.Option("--account", help="ROLE=ACCOUNT, such as income=8400 or expense=AI:{provider}."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="NAME=VALUE of the form, such as client=7.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="File.", show_default="standard output")] = None,
    tz: TzOption = "UTC",
) -> None:
    """A period's invoices, credit notes, payments and provider costs for a finance system, in double entry."""
    with frame.ledger() as opened:
        content = export_journal(
            opened,
            period=period,
            form=form,  # type: ignore[arg-type]  # checked there
            accounts=pairs_of(account or []) or None,
            tz=tz,
            options=pairs_of(option or []),
        )
    if to is None:
        typer.echo(content, nl=False)
    else:
        to.write_bytes(content)
        out.print(str(to), markup=False)


@command(
    app,
    "handover",
    examples=["tokenmeter handover stripe --by member --period last-month --customer ada=cus_A --customer bob=cus_B"],
)
def handover(
    frame: Frame,
    to: Annotated[str, typer.Argument(help="stripe, lago or openmeter.")],
    *,
    by: Annotated[str, typer.Option("--by", "-b", help="Whose usage: member, team, ...")] = "member",
    period: BillPeriod = "last-month",
    customer: Annotated[
        list[str] | None, typer.Option("--customer", help="ACCOUNT=CUSTOMER there.", show_default="called the same")
    ] = None,
    event: Annotated[str, typer.Option("--event", help="Stripe: name of the meter's events.")] = "ai_{meter}",
    tz: TzOption = "UTC",
    actor: Actor = None,
) -> None:
    """Send a period's usage to where customers are billed, each piece once; run it again as often as you like.

    Keys and addresses are read from STRIPE_API_KEY, LAGO_API_KEY and LAGO_URL, OPENMETER_API_KEY and OPENMETER_URL.
    """
    target = _target(to, event)
    with frame.ledger() as opened:
        done = hand_over(
            opened, target, period=period, each=by, customers=pairs_of(customer or []) or None, tz=tz, by=actor
        )
    if frame.as_json:
        emit(done.to_dict())
    else:
        out.print(str(done), markup=False)
    if done.unknown or done.owed or done.fractions:
        raise typer.Exit(Exit.FOUND)


def _target(name: str, event: str) -> StripeMeters | Lago | OpenMeter:
    if name not in {"stripe", "lago", "openmeter"}:
        raise ConfigurationError(f"Usage is handed over to stripe, lago or openmeter, not {name!r}.")
    key, url = os.environ.get(f"{name.upper()}_API_KEY"), os.environ.get(f"{name.upper()}_URL")
    if not key or (name != "stripe" and not url):
        needed = f"{name.upper()}_API_KEY" if name == "stripe" else f"{name.upper()}_API_KEY and {name.upper()}_URL"
        raise ConfigurationError(f"Set {needed}.")
    if name == "stripe":
        return StripeMeters(key, event_name=event)
    return Lago(str(url), key) if name == "lago" else OpenMeter(str(url), key)
