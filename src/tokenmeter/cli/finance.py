"""For finance: months closed, statements, balances by age, journals, usage handed over."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tokenmeter.billing import (
    HandOverError,
    Lago,
    OpenMeter,
    StripeMeters,
    age_balances,
    close_period,
    closed_periods,
    draw_statement,
    export_journal,
    hand_over,
    late_entries,
)
from tokenmeter.billing.period import describe_late, zone_of_books
from tokenmeter.cli.app import Exit, Group, commands, out, progress_out
from tokenmeter.cli.frame import Frame, command, emit, show_table
from tokenmeter.cli.invoicing import (
    STDOUT,
    Actor,
    Day,
    books_zone,
    invoice_app,
    read_profile,
    write_document,
    write_file,
)
from tokenmeter.cli.options import BillPeriod, BooksTzOption, parse_account, parse_pairs
from tokenmeter.errors import ConfigurationError
from tokenmeter.periods import parse_day, parse_period
from tokenmeter.reports.rated import check_dimensions

#: Of `AgedBalance.to_dict`, for people.
_AGING_HEADS = (
    *("buyer", "account", "currency", "not due", "1-30 days", "31-60 days", "61-90 days", "older"),
    *("paid too much", "total"),
)


@command(invoice_app, "aging", examples=["tokenmeter invoice aging", "tokenmeter invoice aging --on 2026-12-31"])
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
        show_table(_AGING_HEADS, rows, figures=_AGING_HEADS[3:], whole=("account",))


@command(
    commands,
    "statement",
    examples=[
        "tokenmeter statement team=search --period last-month",
        "tokenmeter statement member=ada --basis invoices --to ada.pdf",
    ],
)
def statement(
    frame: Frame,
    account: Annotated[list[str], typer.Argument(help="Whose: FIELD=VALUE, such as member=ada; more narrow it down.")],
    *,
    period: BillPeriod = "this-month",
    basis: Annotated[str, typer.Option("--basis", help="usage or invoices.")] = "usage",
    granularity: Annotated[str, typer.Option("--granularity", "-g", help="Of a usage statement's lines.")] = "day",
    tz: BooksTzOption = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="File ending in .pdf, .html, .csv, .xlsx or .json; - for a PDF to a pipe."),
    ] = None,
) -> None:
    """The running balance of an account: opening + charges + credits = closing."""
    scope = parse_account(account)
    profile = read_profile(frame)
    with frame.ledger() as opened:
        drawn = draw_statement(
            opened,
            period=period,
            basis=basis,  # type: ignore[arg-type]  # checked there
            granularity=granularity,  # type: ignore[arg-type]  # as above
            tz=books_zone(frame, tz),
            profile=profile,
            **scope,
        )
    if not (drawn.lines or drawn.opening or drawn.unpriced):
        name, value = next(iter(scope.items()))
        progress_out.print(
            f"Nothing of {name}={value} stands in {drawn.period.label} or before it; is it spelled as in `tokenmeter "
            f"report --by {name}`?",
            markup=False,
        )
    if to is not None:
        write_document(frame, drawn, to)
    elif frame.as_json:
        emit(drawn.to_dict())
    else:
        out.print(drawn.title, markup=False)
        show_table(drawn.heads, drawn.rows, figures=drawn.heads[2:])
        for doubt in drawn.doubts:
            out.print(doubt, markup=False)


@command(
    commands,
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
    tz: BooksTzOption = None,
) -> None:
    """A period's invoices, credit notes, payments and provider costs for a finance system, in double entry."""
    with frame.ledger() as opened:
        content = export_journal(
            opened,
            period=period,
            form=form,  # type: ignore[arg-type]  # checked there
            accounts=parse_pairs(account or [], option="--account", empty=True) or None,
            tz=books_zone(frame, tz),
            options=parse_pairs(option or [], option="--option", empty=True),
        )
    write_file(frame, to or STDOUT, content)


@command(
    commands,
    "handover",
    examples=["tokenmeter handover stripe --customer ada=cus_A --customer bob=cus_B"],
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
    arrived: Annotated[
        list[str] | None, typer.Option("--arrived", help="Identifier of an uncertain reading that was found there.")
    ] = None,
    lost: Annotated[
        list[str] | None, typer.Option("--lost", help="Identifier of one that was not: it is sent anew.")
    ] = None,
    allow_overlap: Annotated[
        str | None, typer.Option("--allow-overlap", help="Why usage that was sent otherwise is sent again.")
    ] = None,
    tz: BooksTzOption = None,
    actor: Actor = None,
) -> None:
    """Send a period's usage to where customers are billed, each piece once; run it again as often as you like.

    Keys and addresses are read from STRIPE_API_KEY (and STRIPE_URL, of a server for trials), LAGO_API_KEY and LAGO_URL,
    OPENMETER_API_KEY and OPENMETER_URL.
    """
    with frame.ledger() as opened:
        (each,) = check_dimensions([by], what="--by")
        cut = zone_of_books(opened, books_zone(frame, tz))
        asked, customers = (
            parse_period(period, cut),
            parse_pairs(customer or [], option="--customer", empty=True) or None,
        )
        target = _make_target(to, event)  # last: a key is asked for when all else is right
        try:
            done = hand_over(
                opened,
                target,
                period=asked,
                each=each,
                customers=customers,
                arrived=arrived or (),
                lost=lost or (),
                allow_overlap=allow_overlap,
                by=actor,
            )
        except HandOverError as error:
            # What was sent before the system went out of reach is told all the same.
            if error.done is not None:
                frame.tell(error.done)
            raise
    frame.tell(done)
    if not done.ok:
        raise typer.Exit(Exit.FOUND)


def _make_target(name: str, event: str) -> StripeMeters | Lago | OpenMeter:
    if name not in {"stripe", "lago", "openmeter"}:
        raise ConfigurationError(f"Usage is handed over to stripe, lago or openmeter, not {name!r}.")
    key, url = os.environ.get(f"{name.upper()}_API_KEY"), os.environ.get(f"{name.upper()}_URL")
    if not key or (name != "stripe" and not url):
        needed = f"{name.upper()}_API_KEY" if name == "stripe" else f"{name.upper()}_API_KEY and {name.upper()}_URL"
        raise ConfigurationError(f"Set {needed}.")
    if name == "stripe":
        return StripeMeters(key, event_name=event, url=url)
    return Lago(str(url), key) if name == "lago" else OpenMeter(str(url), key)


period_app = typer.Typer(cls=Group, help="Close months, and see which are closed.", no_args_is_help=True)
commands.add_typer(period_app, name="period")

Period = Annotated[str, typer.Argument(help="2026-11, 2026-Q4, last-month, ...")]


@command(period_app, "close", examples=["tokenmeter period close last-month"])
def close(
    frame: Frame,
    period: Period,
    *,
    by: Annotated[
        str | None, typer.Option("--by", "--actor", help="Who closes it.", show_default="the user of the system")
    ] = None,
    tz: BooksTzOption = None,
) -> None:
    """Close a period for good; what comes later is a correction in the next."""
    with frame.ledger() as opened:
        closed = close_period(opened, period, tz=books_zone(frame, tz), by=by)
        frame.tell(closed)


@command(period_app, "status", examples=["tokenmeter period status"])
def status(frame: Frame) -> None:
    """Closed periods, and what came late."""
    with frame.ledger() as opened:
        closed, late = closed_periods(opened), late_entries(opened)
    if frame.as_json:
        told = [{**one.to_dict(), "rows": len(one.rows)} for one in closed]
        emit({"closed": told, "late": [{**one.to_dict(), "rows": len(one.rows)} for one in late]})
        return
    for one in closed:
        out.print(str(one), markup=False)
    for added in late:
        out.print(f"Late in {added.period.label}: {describe_late(added)}, billed with the next closing.", markup=False)
    if not closed:
        out.print("No period is closed yet; close one with: tokenmeter period close last-month")
