"""``invoice``: drafted, issued, listed, printed, credited."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tokenmeter.billing import BillingProfile, Invoice, draft_invoice, find_invoice, invoices
from tokenmeter.cli.console import emit, out, show_table
from tokenmeter.cli.options import (
    BillPeriod,
    Break,
    ConfigOption,
    JsonOption,
    StoreOption,
    ledger,
    pairs_of,
    settings_of,
)
from tokenmeter.errors import ConfigurationError

__all__ = ["invoice_app"]

invoice_app = typer.Typer(help="Draft, issue, list, print and credit invoices.", no_args_is_help=True)

Number = Annotated[str, typer.Argument(help="Invoice number, such as INV-00001.")]
Account = Annotated[
    list[str], typer.Argument(help="Whose: FIELD=VALUE with member, team, organization, project or api_key.")
]
Currency = Annotated[str | None, typer.Option("--currency", help="Instead of the settings' currency.")]
Rate = Annotated[str | None, typer.Option("--rate", help="Units of the currency per US dollar.")]
RateSource = Annotated[str | None, typer.Option("--rate-source", help="Who quoted the rate, and for when.")]


@contextmanager
def _drafted(
    account: list[str],
    period: str,
    by: str,
    rate: tuple[str | None, str | None, str | None],
    where: tuple[str | None, Path | None],
) -> Generator[Invoice]:
    currency, quoted, source = rate
    scope = pairs_of(account)
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
