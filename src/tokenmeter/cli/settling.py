"""``period``, ``invoice`` and ``reconcile``: what happens at the end of a month."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenmeter.api.assembly import make_meter
from tokenmeter.billing import (
    BillingProfile,
    Invoice,
    close_period,
    closed_periods,
    draft_invoice,
    find_invoice,
    invoices,
    late_entries,
)
from tokenmeter.cli.console import Exit, emit, out, progress_out, show_table
from tokenmeter.cli.options import ConfigOption, JsonOption, StoreOption, TzOption, ledger, settings_of
from tokenmeter.errors import ConfigurationError
from tokenmeter.reconciliation import reconcile as run_reconciliation

__all__ = ["invoice_app", "period_app", "reconcile"]

period_app = typer.Typer(help="Close months, and see which are closed.", no_args_is_help=True)
invoice_app = typer.Typer(help="Draft, issue, list, print and credit invoices.", no_args_is_help=True)

Period = Annotated[str, typer.Argument(help="2026-11, 2026-Q4, last-month, ...")]
Number = Annotated[str, typer.Argument(help="Invoice number, such as INV-00001.")]
Account = Annotated[
    list[str], typer.Argument(help="Whose: FIELD=VALUE with member, team, organization, project or api_key.")
]
Break = Annotated[str, typer.Option("--by", "-b", help="Break lines down by these, such as member.")]
Currency = Annotated[str | None, typer.Option("--currency", help="Instead of the settings' currency.")]
Rate = Annotated[str | None, typer.Option("--rate", help="Units of the currency per US dollar.")]
RateSource = Annotated[str | None, typer.Option("--rate-source", help="Who quoted the rate, and for when.")]
BillPeriod = Annotated[str, typer.Option("--period", "-p", help="2026-11, last-month, ...")]


@period_app.command("close")
def close(
    period: Period,
    *,
    by: Annotated[str | None, typer.Option("--by", help="Who closes it.")] = None,
    tz: TzOption = "UTC",
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Close a period for good; what comes later is a correction in the next."""
    with ledger(store, config) as opened:
        closed = close_period(opened, period, tz=tz, by=by)
        if as_json:
            emit(closed.to_dict())
        else:
            out.print(str(closed), markup=False)


@period_app.command("status")
def status(*, store: StoreOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Closed periods, and what came late."""
    with ledger(store, config) as opened:
        closed, late = closed_periods(opened), late_entries(opened)
    if as_json:
        told = [{**one.to_dict(), "rows": len(one.rows)} for one in closed]
        emit({"closed": told, "late": [{**one.to_dict(), "rows": len(one.rows)} for one in late]})
        return
    for one in closed:
        out.print(str(one), markup=False)
    for added in late:
        out.print(f"Late in {added.period.label}: ${added.billed_cost:f}, billed with the next closing.", markup=False)
    if not closed:
        out.print("No period is closed yet; close one with: tokenmeter period close last-month")


def _pairs(parts: list[str]) -> dict[str, str]:
    """``["member=ada"]`` as a mapping."""
    split = (part.partition("=") for part in parts)
    return {name: value for name, _, value in split}


@contextmanager
def _drafted(
    account: list[str],
    period: str,
    by: str,
    rate: tuple[str | None, str | None, str | None],
    where: tuple[str | None, Path | None],
) -> Generator[Invoice]:
    currency, quoted, source = rate
    scope = _pairs(account)
    unknown = set(scope) - {"member", "team", "organization", "project", "api_key"}
    if unknown or not all(scope.values()):
        raise ConfigurationError("Name the account as FIELD=VALUE: member, team, organization, project or api_key.")
    exchange = None if quoted is None else {"rate": quoted, "source": source}
    profile = BillingProfile.parse(settings_of(*where).billing)
    with ledger(*where) as opened:
        yield draft_invoice(
            opened, period=period, by=by, profile=profile, currency=currency, exchange_rate=exchange, **scope
        )


@invoice_app.command("draft")
def draft(
    account: Account,
    *,
    period: BillPeriod = "last-month",
    by: Break = "",
    currency: Currency = None,
    rate: Rate = None,
    rate_source: RateSource = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an account owes; nothing is written.

    Example: tokenmeter invoice draft team=search --period 2026-11
    """
    with _drafted(account, period, by, (currency, rate, rate_source), (store, config)) as invoice:
        _show(invoice, as_json=as_json)


@invoice_app.command("issue")
def issue(
    account: Account,
    *,
    period: BillPeriod = "last-month",
    by: Break = "",
    currency: Currency = None,
    rate: Rate = None,
    rate_source: RateSource = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Number and file an account's invoice for a closed period."""
    with _drafted(account, period, by, (currency, rate, rate_source), (store, config)) as invoice:
        _show(invoice.issue(), as_json=as_json)


@invoice_app.command("list")
def list_(*, store: StoreOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Issued invoices."""
    with ledger(store, config) as opened:
        found = invoices(opened)
    if as_json:
        emit([{**one.to_dict(), "lines": len(one.lines)} for one in found])
    elif not found:
        out.print("No invoice has been issued yet.")
    else:
        heads = ("number", "to", "period", "total", "credited", "status")
        rows = [
            (str(one.number), one.buyer.name, one.period.label, f"{one.total:,f} {one.currency}", f"{one.credited:,f}")
            for one in found
        ]
        statuses = [one.status for one in found]
        show_table(
            heads,
            [(*row, status) for row, status in zip(rows, statuses, strict=True)],
            figures=("total", "credited"),
            whole=("number",),
        )


@invoice_app.command("show")
def show(
    number: Number, *, store: StoreOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Print an issued invoice."""
    with ledger(store, config) as opened:
        _show(find_invoice(opened, number), as_json=as_json)


@invoice_app.command("pdf")
def pdf(
    number: Number,
    target: Annotated[Path | None, typer.Argument(help="File; .html and .csv work, too. Default: NUMBER.pdf.")] = None,
    *,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Write an issued invoice as PDF, HTML or CSV, by the file's ending."""
    with ledger(store, config) as opened:
        invoice = find_invoice(opened, number)
    path = target or Path(f"{number}.pdf")
    forms = {".html": invoice.to_html, ".csv": invoice.to_csv}
    if path.suffix in forms:
        path.write_text(forms[path.suffix](), encoding="utf-8")
    else:
        invoice.to_pdf(path)
    out.print(str(path), markup=False)


@invoice_app.command("credit")
def credit(
    number: Number,
    amount: Annotated[str, typer.Argument(help="Net amount to give back, or 'rest'.")],
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why; printed on the note.")],
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Issue a credit note on an invoice."""
    with ledger(store, config) as opened:
        note = find_invoice(opened, number).credit(None if amount == "rest" else amount, reason)
        if as_json:
            emit(note.to_dict())
        else:
            out.print(str(note), markup=False)


@invoice_app.command("paid")
def paid(
    number: Number,
    *,
    note: Annotated[str | None, typer.Option("--note", help="The payment's reference.")] = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Note that an invoice has been paid."""
    with ledger(store, config) as opened:
        _show(find_invoice(opened, number).mark_paid(note=note), as_json=as_json)


@invoice_app.command("void")
def void(
    number: Number,
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why.")],
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a mistaken invoice out; its number stays used."""
    with ledger(store, config) as opened:
        _show(find_invoice(opened, number).void(reason), as_json=as_json)


def _show(invoice: Invoice, *, as_json: bool) -> None:
    if as_json:
        emit(invoice.to_dict())
        return
    out.print(str(invoice), markup=False)
    for line in invoice.lines:
        out.print(f"{line.position:>5}  {line.description:<60} {line.amount:>14,f}", markup=False)
    totals = invoice.totals
    for name in ("subtotal", "credits", "rounding", "net"):
        out.print(f"       {name:<60} {getattr(totals, name):>14,f}", markup=False)
    for tax in totals.taxes:
        out.print(f"       {tax.label:<60} {tax.amount:>14,f}", markup=False)
    out.print(f"       {'total ' + invoice.currency:<60} {totals.total:>14,f}", markup=False)


def reconcile(
    provider: Annotated[str, typer.Argument(help="openai, anthropic, or with --file any provider.")],
    *,
    period: BillPeriod = "last-month",
    file: Annotated[list[Path] | None, typer.Option("--file", "-f", help="CSV statement; repeat for more.")] = None,
    column: Annotated[
        list[str] | None, typer.Option("--column", help="NAME=HEADING, such as day=Date or cost=Amount.")
    ] = None,
    cost_unit: Annotated[str, typer.Option("--cost-unit", help="usd or cents, with --column.")] = "usd",
    by: Break = "model",
    reports: Annotated[str | None, typer.Option("--reports", help="Anthropic: analytics or classic.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="File that remembers fetched pages.")] = None,
    post: Annotated[bool, typer.Option("--post", help="Append the proposed adjustments.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="File the outcome in the ledger, for auditors and the dashboard.")
    ] = True,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the ledger with the provider's own books; exit code 1 when something needs attention.

    The admin key is read from OPENAI_ADMIN_KEY or ANTHROPIC_ADMIN_KEY.
    """
    meter = make_meter(settings_of(store, config))
    try:
        with progress_out.status("reading the provider's books") as shown:
            outcome = run_reconciliation(
                meter,
                provider=provider,
                period=period,
                source=list(file) if file else _client(provider),
                by=by,
                reports=reports,
                columns=_pairs(column) if column else None,
                cost_unit=cost_unit,
                resume=resume,
                progress=lambda what, count, _: shown.update(f"{what}: {count} pages"),
            )
        posted = outcome.post() if post else []
        if as_json:
            emit({**outcome.to_dict(), "posted": [entry.entry_id for entry in posted]})
        else:
            out.print(str(outcome), markup=False)
            if post:
                out.print(f"{len(posted)} adjustments were appended.")
        if keep:  # told first: an outcome that cannot be filed is not lost
            outcome.file()
    finally:
        meter.close()
    if not outcome.ok:
        raise typer.Exit(Exit.FOUND)


def _client(provider: str) -> Any:
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
