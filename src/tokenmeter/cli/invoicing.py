"""``invoice``: drafted, issued one by one or for everybody, listed, printed, credited, paid."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any

import typer

from tokenmeter.billing import (
    BillingProfile,
    CreditNote,
    Invoice,
    InvoicePreview,
    Statement,
    credit_invoice,
    draft_invoice,
    draft_invoices,
    find_invoice,
    invoice_coverage,
    invoices,
    issue_invoices,
    make_einvoice,
    preview_invoices,
    record_payment,
    void_invoice,
    write_off_invoice,
)
from tokenmeter.billing.filed import find_credit_note
from tokenmeter.billing.issuing import list_refusals
from tokenmeter.billing.profile import EINVOICE_PDFS
from tokenmeter.billing.receivables import ask_credit
from tokenmeter.cli.app import Exit, Group, commands, out, write_exactly
from tokenmeter.cli.frame import Frame, command, emit, show_table
from tokenmeter.cli.options import BillPeriod, BooksTzOption, complete_account, parse_account
from tokenmeter.dimensions import ACCOUNTS
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import round_money
from tokenmeter.reports.rated import check_dimensions
from tokenmeter.reports.writers import is_stream, write_whole
from tokenmeter.stores.base import Store
from tokenmeter.values import dataclass

invoice_app = typer.Typer(
    cls=Group, help="Draft, issue, list, print, credit and settle invoices.", no_args_is_help=True
)
commands.add_typer(invoice_app, name="invoice")

STDOUT = Path("-")
#: What a line with a description and an amount takes at least.
_LEAST_WIDTH = 60
Number = Annotated[str, typer.Argument(help="Invoice number, such as INV-00001.")]
Account = Annotated[
    list[str] | None,
    typer.Argument(
        help=f"Whose: FIELD=VALUE with one of {', '.join(ACCOUNTS)}.",
        autocompletion=complete_account,
    ),
]
Each = Annotated[
    str | None, typer.Option("--by", "-b", help=f"An invoice for every account of this kind: {', '.join(ACCOUNTS)}.")
]
LinesBy = Annotated[str, typer.Option("--lines-by", help="Break lines down by these accounts, such as member.")]
Currency = Annotated[str | None, typer.Option("--currency", help="Instead of the settings' currency.")]
Rate = Annotated[str | None, typer.Option("--rate", help="Units of the currency per US dollar.")]
RateSource = Annotated[str | None, typer.Option("--rate-source", help="Who quoted the rate, and for when.")]
Target = Annotated[Path | None, typer.Argument(help="The same as --to.", hidden=True)]
Actor = Annotated[str | None, typer.Option("--actor", help="Who does it.", show_default="the user of the system")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it stays on the paper trail.")]
Day = Annotated[
    str | None, typer.Option("--on", help="The day it counts for, such as 2026-12-01.", show_default="today")
]


def read_profile(frame: Frame) -> BillingProfile:
    """What ``[billing]`` says of invoices and statements; defaults where it says nothing."""
    return BillingProfile.parse(frame.settings.billing, file=frame.settings.place)


def books_zone(frame: Frame, tz: str | None) -> str | None:
    """The zone in which months are cut: what is asked for, else what ``[billing]`` says; None = as last closed."""
    return tz or read_profile(frame).tz


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOptions:
    """The arguments and options that say what is to be drafted."""

    account: Account = None
    by: Each = None
    period: BillPeriod = "last-month"
    lines_by: LinesBy = ""
    currency: Currency = None
    rate: Rate = None
    rate_source: RateSource = None

    def drafts(self, frame: Frame, store: Store) -> list[Invoice]:
        """The drafts; one unless an invoice is wanted for each of many."""
        scope = parse_account(self.account or [])
        if not (scope or self.by):
            raise ConfigurationError(
                "Name the account as FIELD=VALUE, such as member=ada; or --by member for an invoice to each."
            )
        check_dimensions(self.lines_by, what="--lines-by")
        if self.by:
            check_dimensions([self.by], what="--by")
        terms: dict[str, Any] = {
            "period": self.period,
            "lines_by": self.lines_by,
            "profile": read_profile(frame),
            "currency": self.currency,
            "exchange_rate": None if self.rate is None else {"rate": self.rate, "source": self.rate_source},
            **scope,
        }
        return draft_invoices(store, each=self.by, **terms) if self.by else [draft_invoice(store, **terms)]


@command(
    invoice_app,
    "draft",
    examples=[
        "tokenmeter invoice draft team=search --period 2026-11",
        "tokenmeter invoice draft --by member --period last-month",
    ],
)
def draft(
    frame: Frame,
    *,
    asked: DraftOptions,
) -> None:
    """Show what an account, or each of many, owes; nothing is written."""
    with frame.ledger() as opened:
        drafts = asked.drafts(frame, opened)
        if asked.by is None:
            _show_invoice(frame, drafts[0])
        else:
            _list_invoices(frame, drafts)


@command(
    invoice_app,
    "issue",
    examples=[
        "tokenmeter invoice issue team=search --period 2026-11",
        "tokenmeter invoice issue --by member --period last-month --yes",
    ],
)
def issue(
    frame: Frame,
    *,
    asked: DraftOptions,
    on: Day = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --by: issue what the preview shows.")] = False,
    skip_refused: Annotated[
        bool, typer.Option("--skip-refused", help="With --by and --yes: issue the others where some are refused.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Even without usage, or over 0.00.")] = False,
    allow_unpriced: Annotated[
        bool, typer.Option("--allow-unpriced", help="Even if some usage has no known price.")
    ] = False,
    allow_overlap: Annotated[
        str | None, typer.Option("--allow-overlap", help="Why usage that is on another invoice is billed again.")
    ] = None,
    actor: Actor = None,
) -> None:
    """Number and file an account's invoice for a closed period; with --by one for each account, after a preview.

    Where some are refused, the preview says why and what to do, and none is issued unless --skip-refused issues the
    others; exit code 1 then, and of such a preview.
    """
    terms: dict[str, Any] = {"on": on, "force": force, "allow_unpriced": allow_unpriced, "allow_overlap": allow_overlap}
    with frame.ledger() as opened:
        drafts = asked.drafts(frame, opened)
        if asked.by is None:
            (issued,) = issue_invoices(opened, drafts, by=actor, **terms)
            _show_invoice(frame, issued)
            return
        previews = preview_invoices(opened, drafts, **terms)
        if yes:
            # Refused ones go along unless they are to be skipped: issuing then refuses the whole run, and says why.
            ready = [one.invoice for one in previews if one.refused is None or not skip_refused]
            filed = iter(issue_invoices(opened, ready, by=actor, **terms))
            previews = [one if one.refused else InvoicePreview(next(filed)) for one in previews]
        _list_previews(frame, previews, done=yes)
        if yes and not frame.as_json:
            tz = read_profile(frame).tz
            out.print(str(invoice_coverage(opened, period=asked.period, tz=tz)), markup=False)
    if any(one.refused for one in previews):
        raise typer.Exit(Exit.FOUND)


@command(invoice_app, "list", examples=["tokenmeter invoice list"])
def list_(frame: Frame) -> None:
    """Issued invoices."""
    with frame.ledger() as opened:
        found = invoices(opened)
    if found or frame.as_json:
        _list_invoices(frame, found)
    else:
        out.print("No invoice has been issued yet.")


@command(invoice_app, "coverage", examples=["tokenmeter invoice coverage --period last-month"])
def coverage(frame: Frame, *, period: BillPeriod = "last-month", tz: BooksTzOption = None) -> None:
    """Whether all usage of a period is billed, and none of it twice; exit code 1 when not."""
    with frame.ledger() as opened:
        found = invoice_coverage(opened, period=period, tz=books_zone(frame, tz))
    frame.tell(found)
    if found.billed_nowhere or found.billed_twice:
        raise typer.Exit(Exit.FOUND)


@command(invoice_app, "show", examples=["tokenmeter invoice show INV-00001"])
def show(frame: Frame, number: Number) -> None:
    """Print an issued invoice."""
    with frame.ledger() as opened:
        _show_invoice(frame, find_invoice(opened, number))


@command(invoice_app, "pdf", examples=["tokenmeter invoice pdf INV-00001 --to november.pdf"])
def pdf(
    frame: Frame,
    number: Annotated[str, typer.Argument(help="Number of an invoice or a credit note.")],
    target: Target = None,
    *,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            help="File ending in .pdf, .html, .csv, .xlsx or .json; - for a PDF to a pipe.",
            show_default="NUMBER.pdf",
        ),
    ] = None,
) -> None:
    """Write an invoice or a credit note as PDF, HTML, CSV, XLSX or JSON, by the file's ending."""
    with frame.ledger() as opened:
        document = _find_document(opened, number)
    path = _one_file(target, to) or Path(f"{number}.pdf")
    write_document(frame, document, path)


@command(invoice_app, "einvoice", examples=["tokenmeter invoice einvoice INV-00001 --form xrechnung"])
def einvoice(
    frame: Frame,
    number: Annotated[str, typer.Argument(help="Number of an invoice or a credit note.")],
    target: Target = None,
    *,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="File; - for a pipe.", show_default="NUMBER.xml, or NUMBER.pdf for Factur-X"),
    ] = None,
    form: Annotated[str | None, typer.Option("--form", help="factur-x (zugferd), cii, ubl or xrechnung.")] = None,
) -> None:
    """Write an invoice or a credit note as an electronic one (EN 16931)."""
    chosen = form or read_profile(frame).einvoice or "factur-x"
    with frame.ledger() as opened:
        document = _find_document(opened, number)
    content = make_einvoice(document, chosen)  # type: ignore[arg-type]  # checked there
    ending = ".pdf" if chosen in EINVOICE_PDFS else ".xml"
    path = _one_file(target, to) or Path(number + ending)
    if path.suffix.lower() in {".pdf", ".xml"} - {ending}:
        other = "--form cii, ubl or xrechnung is XML" if ending == ".pdf" else "--form factur-x is a PDF"
        raise ConfigurationError(f"{path}: {chosen} is written as {ending}; {other}.")
    write_file(frame, path, content)


def _one_file(target: Path | None, to: Path | None) -> Path | None:
    """The file to write: ``--to``, or as an argument, as it was before there was the option."""
    if target is not None and to is not None:
        raise ConfigurationError(f"Name one file: --to {to}, or {target} without it.")
    return to or target


def _find_document(store: Store, number: str) -> Invoice | CreditNote:
    # Looked for first: to find_invoice a credit note's number is an error.
    return find_credit_note(store, number) or find_invoice(store, number)


@command(invoice_app, "credit", examples=["tokenmeter invoice credit INV-00001 25.00 --reason 'outage on the 12th'"])
def credit(
    frame: Frame,
    number: Number,
    amount: Annotated[str, typer.Argument(help="Net amount to give back, or 'rest'.")],
    *,
    reason: Reason,
    line: Annotated[int | None, typer.Option("--line", help="Of which line.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="Identity of this credit: one key credits once.")] = None,
    actor: Actor = None,
) -> None:
    """Issue a credit note on an invoice."""
    with frame.ledger() as opened:
        asked = ask_credit(None if amount == "rest" else amount, line)
        note = credit_invoice(opened, number, asked, reason, by=actor, key=key)
        frame.tell(note)


@command(invoice_app, "paid", examples=["tokenmeter invoice paid INV-00001 50.00 --on 2026-12-05 --note 'wire 118'"])
def paid(
    frame: Frame,
    number: Number,
    amount: Annotated[
        str | None, typer.Argument(help="How much; negative: given back.", show_default="all that is left")
    ] = None,
    *,
    note: Annotated[str | None, typer.Option("--note", help="The payment's reference.")] = None,
    on: Day = None,
    key: Annotated[str | None, typer.Option("--key", help="Identity of this payment: one key pays once.")] = None,
    actor: Actor = None,
) -> None:
    """Note that an invoice has been paid, in part or in full."""
    with frame.ledger() as opened:
        _show_invoice(frame, record_payment(opened, number, amount, on=on, reference=note, by=actor, key=key))


@command(invoice_app, "void", examples=["tokenmeter invoice void INV-00001 --reason 'wrong account'"])
def void(frame: Frame, number: Number, *, reason: Reason, actor: Actor = None) -> None:
    """Take a mistaken invoice out; its number stays used."""
    with frame.ledger() as opened:
        _show_invoice(frame, void_invoice(opened, number, reason, by=actor))


@command(invoice_app, "write-off", examples=["tokenmeter invoice write-off INV-00001 --reason 'insolvent'"])
def write_off(frame: Frame, number: Number, *, reason: Reason, actor: Actor = None) -> None:
    """Give up on what is left of an invoice."""
    with frame.ledger() as opened:
        _show_invoice(frame, write_off_invoice(opened, number, reason, by=actor))


def write_document(frame: Frame, document: Invoice | CreditNote | Statement, path: Path) -> None:
    """Write a document in the form that the file's ending names; to standard output as PDF."""
    form = ".pdf" if path == STDOUT else path.suffix.lower()
    texts = {".html": document.to_html, ".csv": document.to_csv, ".json": document.to_json}
    if form in texts:
        write_file(frame, path, texts[form]())
    elif form == ".pdf":
        write_file(frame, path, document.to_pdf(None))
    elif form == ".xlsx":
        write_file(frame, path, document.to_xlsx(None))
    else:
        raise ConfigurationError(f"{path.name}: a document is written as .pdf, .html, .csv, .xlsx or .json.")


def write_file(frame: Frame, path: Path, content: str | bytes) -> None:
    """Write a file, whole or not at all, and say where it is; standard output, or a pipe, gets the content alone."""
    if path == STDOUT:
        if frame.as_json:
            raise ConfigurationError("The document goes to standard output as it is; leave out --json, or name a file.")
        if isinstance(content, str):
            write_exactly(content)
        else:
            typer.echo(content, nl=False)
        return
    write_whole(path, content, overwrite=True)
    if is_stream(path):
        return
    if frame.as_json:
        emit({"file": str(path)})
    else:
        out.print(str(path), markup=False)


def _list_previews(frame: Frame, previews: list[InvoicePreview], *, done: bool) -> None:
    """What is issued, or would be, and what is refused."""
    if frame.as_json:
        emit([{**one.to_dict(), "lines": len(one.invoice.lines)} for one in previews])
        return
    refused = [one for one in previews if one.refused is not None]
    ready = sum(one.refused is None and one.invoice.number is None for one in previews)
    if not previews:
        out.print("No account of that kind has usage in the period: nothing to issue.")
        return
    _show_invoices([(one.invoice, one.refused is not None) for one in previews])
    for line in list_refusals((one.invoice.account, one.refused) for one in previews if one.refused is not None):
        out.print(f"Refused: {line}", markup=False)
    if done:
        return
    if ready:
        which = f"--yes --skip-refused issues the other {ready:,}" if refused else "--yes issues these"
        out.print(f"Nothing was issued yet; {which}.")
    else:
        out.print("Nothing can be issued as it is." if refused else "All of these are issued already.")


def _list_invoices(frame: Frame, found: list[Invoice]) -> None:
    if frame.as_json:
        emit([{**one.to_dict(), "lines": len(one.lines)} for one in found])
    else:
        _show_invoices([(one, False) for one in found])


def _show_invoices(found: list[tuple[Invoice, bool]]) -> None:
    """A line for each invoice, and whether it is refused."""
    heads = ("number", "account", "to", "period", "currency", "total", "credited", "paid", "balance", "status")
    rows = [
        (
            one.number or "(draft)",
            one.account,
            one.buyer.name,
            one.period.label,
            one.currency,
            *(f"{round_money(amount, one.currency):,f}" for amount in (one.total, one.credited, one.paid, one.balance)),
            ("refused" if refused else one.status) + (f", {one.unpriced} unpriced" if one.unpriced else ""),
        )
        for one, refused in found
    ]
    show_table(heads, rows, figures=("total", "credited", "paid", "balance"), whole=("number", "account"))


def _show_invoice(frame: Frame, invoice: Invoice) -> None:
    if frame.as_json:
        emit(invoice.to_dict())
        return
    out.print(str(invoice), markup=False)
    sheet = invoice.to_sheet()
    for name, value in sheet.facts:
        _say(f"{name}: {value}")
    named = (line.description for line in invoice.lines), (name for name, _ in sheet.sums), invoice.left[:1]
    wide = max(map(len, chain.from_iterable(named)))
    for line, row in zip(invoice.lines, sheet.rows, strict=True):
        out.print(f"{line.position:>5}  {line.description:<{wide}} {row.cells[-1]:>14}", markup=False)
        # A page has columns for these; below each other they would be too wide for a terminal.
        *whose, quantity, price = zip(sheet.columns[2:-1], row.cells[2:-1], strict=True)
        how = row.note or line.arithmetic or " x ".join(cell for _, cell in (quantity, price) if cell)
        if told := [*(f"{name} {cell}" for name, cell in whose), how] if how else []:
            _say("; ".join(told), indent=9)
    for name, amount in sheet.sums:
        out.print(f"       {name:<{wide}} {amount:>14}", markup=False)
    if invoice.events:
        name, left = invoice.left
        out.print(f"       {name:<{wide}} {left:>14,f}", markup=False)
    for event in invoice.events:
        _say(f"{event.on} {event.text}, by {event.by}")
    for said in (*sheet.remarks, *sheet.small):
        _say(said)


def _say(text: str, indent: int = 7) -> None:
    """A line below an invoice's, folded where the terminal is narrow."""
    begin = " " * indent
    width = max(_LEAST_WIDTH, out.width)
    folded = fill(text, width, initial_indent=begin, subsequent_indent=begin, break_on_hyphens=False)
    out.print(folded, markup=False)
