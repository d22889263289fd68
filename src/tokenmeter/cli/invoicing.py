"""``invoice``: drafted, issued, listed, printed, credited."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tokenmeter.billing import BillingProfile, Invoice, draft_invoice, find_invoice, invoices
from tokenmeter.cli.console import emit, out, show_table
from tokenmeter.cli.frame import Frame, command
from tokenmeter.cli.options import (
    BillPeriod,
    Break,
    pairs_of,
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
    frame: Frame,
) -> Generator[Invoice]:
    currency, quoted, source = rate
    scope = pairs_of(account)
    unknown = set(scope) - {"member", "team", "organization", "project", "api_key"}
    if unknown or not all(scope.values()):
        raise ConfigurationError("Name the account as FIELD=VALUE: member, team, organization, project or api_key.")
    exchange = None if quoted is None else {"rate": quoted, "source": source}
    profile = BillingProfile.parse(frame.settings.billing)
    with frame.ledger() as opened:
        yield draft_invoice(
            opened, period=period, by=by, profile=profile, currency=currency, exchange_rate=exchange, **scope
        )


@command(invoice_app, "draft", examples=["tokenmeter invoice draft team=search --period 2026-11"])
def draft(
    frame: Frame,
    account: Account,
    *,
    period: BillPeriod = "last-month",
    by: Break = "",
    currency: Currency = None,
    rate: Rate = None,
    rate_source: RateSource = None,
) -> None:
    """Show what an account owes; nothing is written."""
    with _drafted(account, period, by, (currency, rate, rate_source), frame) as invoice:
        _show(frame, invoice)


@command(invoice_app, "issue")
def issue(
    frame: Frame,
    account: Account,
    *,
    period: BillPeriod = "last-month",
    by: Break = "",
    currency: Currency = None,
    rate: Rate = None,
    rate_source: RateSource = None,
) -> None:
    """Number and file an account's invoice for a closed period."""
    with _drafted(account, period, by, (currency, rate, rate_source), frame) as invoice:
        _show(frame, invoice.issue())


@command(invoice_app, "list")
def list_(frame: Frame) -> None:
    """Issued invoices."""
    with frame.ledger() as opened:
        found = invoices(opened)
    if frame.as_json:
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


@command(invoice_app, "show")
def show(frame: Frame, number: Number) -> None:
    """Print an issued invoice."""
    with frame.ledger() as opened:
        _show(frame, find_invoice(opened, number))


@command(invoice_app, "pdf", options=("store", "config"))
def pdf(
    frame: Frame,
    number: Number,
    target: Annotated[Path | None, typer.Argument(help="File; .html and .csv work, too. Default: NUMBER.pdf.")] = None,
) -> None:
    """Write an issued invoice as PDF, HTML or CSV, by the file's ending."""
    with frame.ledger() as opened:
        invoice = find_invoice(opened, number)
    path = target or Path(f"{number}.pdf")
    forms = {".html": invoice.to_html, ".csv": invoice.to_csv}
    if path.suffix in forms:
        path.write_text(forms[path.suffix](), encoding="utf-8")
    else:
        invoice.to_pdf(path)
    out.print(str(path), markup=False)


@command(invoice_app, "credit")
def credit(
    frame: Frame,
    number: Number,
    amount: Annotated[str, typer.Argument(help="Net amount to give back, or 'rest'.")],
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why; printed on the note.")],
) -> None:
    """Issue a credit note on an invoice."""
    with frame.ledger() as opened:
        note = find_invoice(opened, number).credit(None if amount == "rest" else amount, reason)
        if frame.as_json:
            emit(note.to_dict())
        else:
            out.print(str(note), markup=False)


@command(invoice_app, "paid")
def paid(
    frame: Frame,
    number: Number,
    *,
    note: Annotated[str | None, typer.Option("--note", help="The payment's reference.")] = None,
) -> None:
    """Note that an invoice has been paid."""
    with frame.ledger() as opened:
        _show(frame, find_invoice(opened, number).mark_paid(note=note))


@command(invoice_app, "void")
def void(frame: Frame, number: Number, *, reason: Annotated[str, typer.Option("--reason", help="Why.")]) -> None:
    """Take a mistaken invoice out; its number stays used."""
    with frame.ledger() as opened:
        _show(frame, find_invoice(opened, number).void(reason))


def _show(frame: Frame, invoice: Invoice) -> None:
    if frame.as_json:
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
