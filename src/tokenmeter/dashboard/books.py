"""The pages of what is on file: invoices, credit notes, closed periods, reconciliations. Nothing here writes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, NamedTuple, cast

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tokenmeter.billing import (
    ClosedPeriod,
    Invoice,
    Statement,
    closed_periods,
    credit_notes,
    draw_statement,
    find_invoice,
    invoices,
    late_costs,
    make_einvoice,
)
from tokenmeter.billing.einvoice import EInvoiceForm
from tokenmeter.billing.filed import find_credit_note
from tokenmeter.billing.period import zone_of_books
from tokenmeter.dashboard import figures
from tokenmeter.dashboard.rendering import missing, page, part_of, zone_of
from tokenmeter.dashboard.view import View
from tokenmeter.dimensions import ACCOUNTS, AccountArguments
from tokenmeter.errors import ConfigurationError, LedgerError
from tokenmeter.ledger import utcnow
from tokenmeter.money import EXACT, ZERO, add, magnitude, multiply, negate, round_to
from tokenmeter.periods import Period, zone
from tokenmeter.reconciliation import CAUSES, Discrepancy, Reconciliation, reconciliations
from tokenmeter.reports.report import read_report
from tokenmeter.serving.access import ACCESS, Access
from tokenmeter.serving.lens import ReadableMeter
from tokenmeter.stores.base import Store
from tokenmeter.values import dataclass

_MOST_ROWS = 500
#: Forms a document can be downloaded in.
_TYPES = {
    "pdf": "application/pdf",
    "html": "text/html; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "xml": "application/xml",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "json": "application/json",
}
#: Electronic invoices -> the ending of the file.
_ELECTRONIC: dict[EInvoiceForm, str] = {"factur-x": "pdf", "xrechnung": "xml"}


class DocumentPages:
    """The pages of what one meter's ledger has on file.

    Args:
        meter: Whose ledger.
        tz: Time zone of instants that belong to no period.
    """

    def __init__(self, meter: ReadableMeter, *, tz: str | None) -> None:
        self._store, self._tz = meter.store, tz
        self._profile = meter.profile

    # -- invoices

    def routes(self) -> list[Route]:
        """Where each page is."""
        return [
            Route("/invoices", self.invoices),
            Route("/invoices/{number:path}", self.invoice),
            Route("/credit-notes", self.credit_notes),
            Route("/credit-notes/{number:path}", self.credit_note),
            Route("/printed/{form}/{number:path}", self.printed),
            Route("/statements", self.statements),
            Route("/statements/{form}", self.statement_file),
            Route("/periods", self.periods),
            Route("/periods/{key}.json", self.manifest),
            Route("/periods/{key}", self.period),
            Route("/reconciliations", self.reconciliations),
            Route("/reconciliations/{key}.json", self.outcome),
            Route("/reconciliations/{key}", self.reconciliation),
        ]

    def invoices(self, request: Request) -> Response:
        """Issued invoices, the last first."""
        found = invoices(self._store, lines=False)[::-1]
        # What one buyer has paid too much is not what another owes.
        due, back = _sum_balances(found, 1), _sum_balances(found, -1)
        return page(
            request,
            "invoices.html",
            title="Invoices",
            part=part_of(request, found),
            due=due,
            back=back,
            today=utcnow().astimezone(zone(zone_of(request, self._tz))).date(),
        )

    def invoice(self, request: Request) -> Response:
        """One invoice with its lines, and what happened to it."""
        number = request.path_params["number"]
        found = self._invoice(number)
        if found is None:
            return missing(request, "No such invoice", f"There is no invoice {number[:64]!r} in this ledger.")
        return page(
            request,
            "invoice.html",
            title=f"{found.title} {found.number}",
            invoice=found,
            lines=found.lines[:_MOST_ROWS],
            groups=next((tuple(line.group) for line in found.lines), ()),
            calls=self._calls(request, found.period, **found.scope),
            tz=zone_of(request, self._tz),
        )

    def credit_notes(self, request: Request) -> Response:
        """Issued credit notes, the last first."""
        found = credit_notes(self._store)[::-1]
        return page(request, "credit_notes.html", title="Credit notes", part=part_of(request, found))

    def credit_note(self, request: Request) -> Response:
        """One credit note with its lines."""
        number = request.path_params["number"]
        found = find_credit_note(self._store, number)
        if found is None:
            return missing(request, "No such credit note", f"There is no credit note {number[:64]!r} in this ledger.")
        return page(request, "credit_note.html", title=f"Credit note {found.number}", note=found)

    def printed(self, request: Request) -> Response:
        """An invoice or a credit note as a file."""
        form, number = request.path_params["form"], request.path_params["number"]
        found = self._invoice(number) or find_credit_note(self._store, number)
        if found is not None and form in _ELECTRONIC:
            return _download(make_einvoice(found, form), number, _ELECTRONIC[form])
        write = getattr(found, f"to_{form}", None) if form in _TYPES else None
        if write is None:
            return missing(request, "No such file", f"There is no {number[:64]!r} to download as {form[:16]!r}.")
        return _download(write(), number, form)

    def _invoice(self, number: str) -> Invoice | None:
        try:
            return find_invoice(self._store, number)
        except LedgerError:
            return None

    # -- statements

    def statements(self, request: Request) -> Response:
        """The running balance of an account."""
        asked = request.query_params
        account, of = asked.get("account", "team"), asked.get("of", "").strip()
        _check_scope(request, account, of)
        statement = self._statement(request) if of else None
        view = View.parse([("period", "last-12m")], tz=zone_of(request, self._tz))
        known = read_report(self._store, replace(view.query, by=(_account(account),))).rows[:_MOST_ROWS]
        return page(
            request,
            "statements.html",
            title=f"Statement of {of}" if of else "Statements",
            statement=statement,
            account=account,
            of=of,
            period=asked.get("period") or "this-month",
            basis=asked.get("basis", "usage"),
            known=[value for row in known if (value := row.group[account])],
            amount=_in_full(statement) if statement is not None and statement.basis == "usage" else _in_cents,
            tz=view.tz,
        )

    def statement_file(self, request: Request) -> Response:
        """A statement as a file."""
        form, statement = request.path_params["form"], self._statement(request)
        write = getattr(statement, f"to_{form}", None) if form in _TYPES else None
        if write is None:
            return missing(request, "No such file", f"A statement is no {form[:16]!r}; it is {', '.join(_TYPES)}.")
        return _download(write(), f"statement-{request.query_params.get('of', '')}-{statement.period.label}", form)

    def _statement(self, request: Request) -> Statement:
        asked = request.query_params
        account, of = _account(asked.get("account", "team")), asked.get("of", "").strip()
        _check_scope(request, account, of)
        scope = cast("AccountArguments", {account: of})
        return draw_statement(
            self._store,
            period=asked.get("period") or "this-month",
            basis=cast("Any", asked.get("basis", "usage")),
            tz=asked.get("tz") or zone_of(request, self._tz),
            profile=self._profile,
            **scope,
        )

    # -- periods

    def periods(self, request: Request) -> Response:
        """Closed periods, the last first."""
        return page(
            request,
            "periods.html",
            title="Periods",
            billing_zone=zone_of_books(self._store, None if self._profile is None else self._profile.tz),
            part=part_of(request, closings(self._store)),
            tz=zone_of(request, self._tz),
        )

    def period(self, request: Request) -> Response:
        """One closed period: its manifest, and what came in later."""
        found = self._closing(request)
        if found is None:
            return missing(request, "No such period", "There is no such closed period in this ledger.")
        period, sums = found.closed.period, by_meter(found.closed)
        return page(
            request,
            "period.html",
            title=f"Period {period.label}",
            one=found,
            sums=sums[:_MOST_ROWS],
            others=len(sums) - len(sums[:_MOST_ROWS]),
            invoices=invoices(self._store, period=period.label, lines=False),
            calls=self._calls(request, period),
            tz=zone_of(request, self._tz),
        )

    def manifest(self, request: Request) -> Response:
        """A closed period's manifest, as it is filed."""
        found = self._closing(request)
        if found is None or found.closed.document is None:
            return missing(request, "No such period", "There is no such closed period in this ledger.")
        return _download(found.closed.document.body, f"period-{found.closed.period.label}", "json")

    def _closing(self, request: Request) -> Closing | None:
        return next((one for one in closings(self._store) if one.key == request.path_params["key"]), None)

    # -- reconciliations

    def reconciliations(self, request: Request) -> Response:
        """Filed reconciliations, the last first."""
        found = reconciliations(self._store)[::-1]
        return page(
            request,
            "reconciliations.html",
            title="Reconciliation",
            part=part_of(request, found),
            tz=zone_of(request, self._tz),
        )

    def reconciliation(self, request: Request) -> Response:
        """One reconciliation: by cause, and every difference."""
        found = self._reconciliation(request)
        if found is None:
            return missing(request, "No such reconciliation", "There is no such reconciliation in this ledger.")
        dearest = sorted(found.discrepancies, key=lambda one: negate(magnitude(one.amount or ZERO)))[:_MOST_ROWS]
        return page(
            request,
            "reconciliation.html",
            title=f"Reconciliation with {found.provider}",
            outcome=found,
            causes=CAUSES,
            counts=Counter(one.cause for one in found.discrepancies),
            differences=[(one, self._entries_of(request, found, one)) for one in dearest],
            tz=zone_of(request, self._tz),
        )

    def outcome(self, request: Request) -> Response:
        """A reconciliation as JSON."""
        found = self._reconciliation(request)
        if found is None:
            return missing(request, "No such reconciliation", "There is no such reconciliation in this ledger.")
        return _download(found.to_json(), f"reconciliation-{found.provider}-{found.period.label}", "json")

    def _reconciliation(self, request: Request) -> Reconciliation | None:
        key = request.path_params["key"]
        return next(
            (one for one in reconciliations(self._store) if one.document and one.document.document_id == key), None
        )

    # -- links

    def _calls(self, request: Request, period: Period, **scope: str) -> str:
        """The URL query that shows the calls of a period and an account."""
        span = {"since": period.start.isoformat(), "until": period.end.isoformat(), "tz": period.tz}
        return View.parse([*span.items(), *scope.items()], tz=zone_of(request, self._tz)).url()

    def _entries_of(self, request: Request, outcome: Reconciliation, one: Discrepancy) -> str:
        """The URL query that shows our side of a difference."""
        day = one.bucket.day
        split = {name: getattr(one.bucket, name) or "" for name in outcome.grain}
        given = {"since": f"{day}", "until": f"{day + timedelta(days=1)}", "tz": "UTC", "provider": outcome.provider}
        return View.parse([*given.items(), *split.items()], tz=zone_of(request, self._tz)).url()


def _check_scope(request: Request, account: str, of: str) -> None:
    """Refuse an account that lies outside of what is seen: a part of what it used is not its statement."""
    access: Access = request.scope.get(ACCESS) or Access()
    if of and not access.scope.admits({account: of}):
        raise HTTPException(403, "This account is not among what you may see.")


def _in_full(statement: Statement) -> Callable[[Decimal], str]:
    """Exact amounts, with as many decimals as line all of them up."""
    shown = (amount for line in statement.lines for amount in (line.charges, line.credits, line.balance))
    places = figures.decimals((*shown, statement.opening, statement.charges, statement.credits))
    return lambda amount: figures.exact(amount, places)


def _in_cents(amount: Decimal) -> str:
    return f"{round_to(amount, 2):,f}"


def _account(name: str) -> str:
    if name not in ACCOUNTS:
        raise ConfigurationError(f"account= is one of {', '.join(ACCOUNTS)}, not {name[:64]!r}.")
    return name


def _download(content: str | bytes, name: str, form: str) -> Response:
    safe = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)
    return Response(
        content, media_type=_TYPES[form], headers={"content-disposition": f'attachment; filename="{safe}.{form}"'}
    )


@dataclass(frozen=True, slots=True)
class Closing:
    """One closed period.

    Attributes:
        closed: Its manifest.
        key: What its page is called.
        corrected: Later closings that took up what came late: their period's label and the billed cost, US dollars.
        waiting: Billed cost of what no closing has taken up yet; None when there is nothing, which is not 0: what
            came late may add up to 0 over several accounts.
    """

    closed: ClosedPeriod
    key: str
    corrected: Sequence[tuple[str, Decimal]]
    waiting: Decimal | None


class MeterSums(NamedTuple):
    """What a period came to for one meter of one model; costs in US dollars."""

    provider: str
    model: str | None
    sku_meter: str
    unit: str
    quantity: Decimal = ZERO
    list_cost: Decimal = ZERO
    billed_cost: Decimal = ZERO
    unpriced: int = 0


def _sum_balances(found: Sequence[Invoice], sign: int) -> dict[str, tuple[Decimal, int]]:
    """What is left to pay (1), or to give back (-1), on how many invoices, by currency."""
    sums: dict[str, tuple[Decimal, int]] = {}
    for one in found:
        if (left := multiply(one.balance, sign)) > 0:
            known, count = sums.get(one.currency, (ZERO, 0))
            sums[one.currency] = add(known, left), count + 1
    return sums


def closings(store: Store) -> list[Closing]:
    """Every closed period, the last first. Reads kept sums, no entries."""
    closed = closed_periods(store)
    waiting = {id(one): cost for one, cost in late_costs(store, closed)}
    found = [
        Closing(
            closed=one,
            key=one.document.key if one.document else "",
            corrected=[
                (later.period.label, late.billed_cost)
                for later in closed
                for late in later.late
                if late.period == one.period
            ],
            waiting=waiting.get(id(one)),
        )
        for one in closed
    ]
    return sorted(found, key=lambda one: one.closed.period.start, reverse=True)


def by_meter(closed: ClosedPeriod) -> list[MeterSums]:
    """The manifest's rows summed over accounts and prices, dearest first."""
    sums: dict[tuple[str | None, ...], MeterSums] = {}
    for row in closed.rows:
        rate = row.rate
        key = (rate.provider, rate.model, rate.sku_meter, rate.unit)
        known = sums.get(key) or MeterSums(rate.provider, rate.model, rate.sku_meter, rate.unit)
        sums[key] = known._replace(
            quantity=EXACT.add(known.quantity, row.quantity),
            list_cost=EXACT.add(known.list_cost, row.list_cost),
            billed_cost=EXACT.add(known.billed_cost, row.billed_cost),
            unpriced=known.unpriced + row.unpriced,
        )
    return sorted(
        sums.values(), key=lambda one: (negate(one.billed_cost), one.provider, one.model or "", one.sku_meter)
    )
