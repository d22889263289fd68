"""For finance: months closed and reconciled, free quotas, statements, balances by age, journals, usage handed over."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenmeter.attribution import Attribution
from tokenmeter.billing import (
    BillingProfile,
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
from tokenmeter.billing.period import zone_of_books
from tokenmeter.billing.rated import check_dimensions
from tokenmeter.cli.frame import Exit, Frame, app, command, emit, out, progress_out, show_table
from tokenmeter.cli.invoicing import STDOUT, Actor, Day, books_zone, invoice_app, write_document, write_file
from tokenmeter.cli.options import BillPeriod, BooksTzOption, parse_account, parse_lists, parse_pairs
from tokenmeter.dimensions import WHO
from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError
from tokenmeter.meter import Meter
from tokenmeter.money import EXACT, parse_decimal
from tokenmeter.periods import parse_day, parse_period
from tokenmeter.reconciliation import (
    Reconciliation,
    check_grain,
    count_free_quotas,
    file_reconciliation,
    post_free_quotas,
    post_proposals,
)
from tokenmeter.reconciliation import reconcile as run_reconciliation
from tokenmeter.tables import DecimalMark

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
    app,
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
    profile = BillingProfile.parse(frame.settings.billing)
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
        write_document(drawn, to)
    elif frame.as_json:
        emit(drawn.to_dict())
    else:
        out.print(drawn.title, markup=False)
        show_table(drawn.heads, drawn.rows, figures=drawn.heads[2:])
        for doubt in drawn.doubts:
            out.print(doubt, markup=False)


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
    tz: BooksTzOption = None,
) -> None:
    """A period's invoices, credit notes, payments and provider costs for a finance system, in double entry."""
    with frame.ledger() as opened:
        content = export_journal(
            opened,
            period=period,
            form=form,  # type: ignore[arg-type]  # checked there
            accounts=parse_pairs(account or []) or None,
            tz=books_zone(frame, tz),
            options=parse_pairs(option or []),
        )
    write_file(to or STDOUT, content)


@command(
    app,
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

    Keys and addresses are read from STRIPE_API_KEY, LAGO_API_KEY and LAGO_URL, OPENMETER_API_KEY and OPENMETER_URL.
    """
    with frame.ledger() as opened:
        (each,) = check_dimensions([by], what="--by")
        cut = zone_of_books(opened, books_zone(frame, tz))
        asked, customers = parse_period(period, cut), parse_pairs(customer or []) or None
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
        return StripeMeters(key, event_name=event)
    return Lago(str(url), key) if name == "lago" else OpenMeter(str(url), key)


period_app = typer.Typer(help="Close months, and see which are closed.", no_args_is_help=True)

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
        out.print(f"Late in {added.period.label}: ${added.billed_cost:f}, billed with the next closing.", markup=False)
    if not closed:
        out.print("No period is closed yet; close one with: tokenmeter period close last-month")


@dataclass(frozen=True, slots=True, kw_only=True)
class BooksOptions:
    """The options that say where the provider's books are, and how they are read."""

    file: Annotated[list[Path] | None, typer.Option("--file", "-f", help="CSV statement; repeat for more.")] = None
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column", help="NAME=HEADING, such as day=Date or cost=Amount; of a name given twice both are added up."
        ),
    ] = None
    cost_unit: Annotated[str, typer.Option("--cost-unit", help="usd or cents, with --column.")] = "usd"
    decimal: Annotated[
        DecimalMark | None, typer.Option(help="Decimal mark of the files, where their numbers do not tell.")
    ] = None
    by: Annotated[
        str, typer.Option("--by", "-b", help="What to split by: model, api_key, project or workspace, service_tier.")
    ] = "model"
    rate: Annotated[
        list[str] | None, typer.Option("--rate", help="EUR=1.08: US dollars per unit, where the bill is in euros.")
    ] = None
    key: Annotated[list[str] | None, typer.Option("--key", help="KEY_ID=ALIAS: the provider's id of a key.")] = None
    model: Annotated[list[str] | None, typer.Option("--model", help="THEIRS=OURS: another name of a model.")] = None
    project: Annotated[
        list[str] | None, typer.Option("--project", help="THEIRS=OURS: a project's or workspace's name.")
    ] = None
    reports: Annotated[str | None, typer.Option("--reports", help="Anthropic: analytics or classic.")] = None
    resume: Annotated[Path | None, typer.Option("--resume", help="File that remembers fetched pages.")] = None

    def compare(self, meter: Meter, provider: str, period: str) -> Reconciliation:
        """The ledger beside the provider's books; shows which page is read."""
        asked, grain = parse_period(period, "UTC"), check_grain(self.by)
        named = (self.rate, self.key, self.model, self.project)
        rates, keys, models, projects = (parse_pairs(given or []) for given in named)
        source = list(self.file) if self.file else _make_client(provider)  # last: a key is asked for when all is right
        with progress_out.status("reading the provider's books") as shown:
            return run_reconciliation(
                meter.store,
                provider=provider,
                period=asked,
                source=source,
                by=grain,
                reports=self.reports,
                columns=parse_lists(self.column) if self.column else None,
                cost_unit=self.cost_unit,
                decimal=self.decimal,
                exchange_rates=rates,
                keys=keys,
                models=models,
                projects=projects,
                resume=self.resume,
                progress=lambda what, count, _: shown.update(f"{what}: {count} pages"),
            )


@command(
    app,
    "reconcile",
    examples=[
        "tokenmeter reconcile openai --period last-month",
        "tokenmeter reconcile anthropic --period 2026-11 --file costs.csv",
        "tokenmeter reconcile openai --period 2026-11 --post --on-account team=search",
    ],
)
def reconcile(
    frame: Frame,
    provider: Annotated[str, typer.Argument(help="openai, anthropic, or with --file any provider.")],
    *,
    period: BillPeriod = "last-month",
    books: BooksOptions,
    post: Annotated[bool, typer.Option("--post", help="Append the proposed adjustments.")] = False,
    on_account: Annotated[
        list[str] | None,
        typer.Option(
            "--on-account", help="With --post: on whose account, FIELD=VALUE; repeat it.", show_default="nobody's"
        ),
    ] = None,
    multiplier: Annotated[
        str, typer.Option("--multiplier", help="With --post: platform multiplier on the provider's amounts.")
    ] = "1",
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="File the outcome in the ledger, for auditors and the dashboard.")
    ] = True,
) -> None:
    """Compare the ledger with the provider's own books; exit code 1 when something needs attention.

    The admin key is read from OPENAI_ADMIN_KEY or ANTHROPIC_ADMIN_KEY.
    """
    if (on_account or multiplier != "1") and not post:
        raise ConfigurationError("--on-account and --multiplier are of what is appended: give --post.")
    account: dict[str, Any] = {**parse_pairs(on_account or [], option="--on-account")}
    if unknown := [name for name in account if name not in WHO]:
        raise ConfigurationError(f"--on-account goes by {', '.join(WHO)}, not by {unknown[0]!r}.")
    whose, factor = Attribution(**account), parse_decimal(multiplier, name="--multiplier")
    with frame.meter() as meter:
        outcome = books.compare(meter, provider, period)
        posted = post_proposals(meter, outcome, attribution=whose, multiplier=factor) if post else []
        if frame.as_json:
            emit({**outcome.to_dict(), "posted": [entry.entry_id for entry in posted]})
        else:
            out.print(str(outcome), markup=False)
            if post:
                out.print(f"{counted(len(posted), 'adjustment was', 'adjustments were')} appended.")
        if keep:  # told first: an outcome that cannot be filed is not lost
            file_reconciliation(meter.store, outcome)
    if not outcome.ok:
        raise typer.Exit(Exit.FOUND)


@command(app, "quotas", examples=["tokenmeter quotas --period 2026-11", "tokenmeter quotas --post"])
def quotas(
    frame: Frame,
    *,
    period: BillPeriod = "last-month",
    post: Annotated[bool, typer.Option("--post", help="Append the credits of windows that are over.")] = False,
) -> None:
    """What providers gave free of charge: count each free quota of the settings, and credit it."""
    with frame.meter() as meter:
        uses = count_free_quotas(meter, period)
        posted = post_free_quotas(meter, uses) if post else []
        declared = bool(meter.pricer.terms.free_quotas)
    if frame.as_json:
        emit({"quotas": [use.to_dict() for use in uses], "posted": [entry.entry_id for entry in posted]})
        return
    for use in uses:
        notes = [f"{use.unpriced:,} of unknown price"] if use.unpriced else []
        notes += ["not over yet"] if use.open else []
        more = f" ({', '.join(notes)})" if notes else ""
        out.print(
            f"{use.window.label}  {use.quota.name}: {use.used:,} used, {use.free:,} of {use.quota.quantity:,} free, "
            f"${use.credit.normalize(EXACT):f}{more}",
            markup=False,
        )
    if not uses:
        none = "Nothing of a free quota was used" if declared else "The settings name no [[free_quotas]]"
        out.print(f"{none}.", markup=False)
    if post:
        out.print(f"{counted(len(posted), 'credit was', 'credits were')} appended.")


def _make_client(provider: str) -> Any:
    """A client of the provider's SDK with the admin key of the environment."""
    if provider not in ("openai", "anthropic"):
        raise ConfigurationError(
            f"Only openai and anthropic can be asked; for {provider!r} give its statement: --file."
        )
    admin = os.environ.get(f"{provider.upper()}_ADMIN_KEY")
    if not admin:
        raise ConfigurationError(f"Set {provider.upper()}_ADMIN_KEY to an admin key: ordinary keys see no reports.")
    module = import_module(f"tokenmeter.{provider}")
    if provider == "anthropic":
        return module.Anthropic(api_key=admin)
    try:
        return module.OpenAI(admin_api_key=admin)
    except TypeError:  # an SDK from before admin keys
        return module.OpenAI(api_key=admin)
