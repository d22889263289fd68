"""What a token can do besides reading, where it was given the right to: it is off without one.

The verbs are those of Python and of the command line; whoever acts is recorded under the token's name. Nothing is done
until a deed says ``"dry_run": false``: before that it is answered with what would be done, or why it cannot be.

Over the API only a token sent in a header acts, never a cookie, so that no page of others can make a browser act. The
dashboard's own forms (`tokenmeter.dashboard.deeds`) do the same deeds behind a proof that they came from its pages.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal, cast

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from tokenmeter.api import Meter
from tokenmeter.billing import closed_periods, find_invoice, late_costs
from tokenmeter.billing.issuing import check_invoice
from tokenmeter.billing.period import check_open, closable, find_closed, period_dict, zone_of_books
from tokenmeter.billing.receivables import ask_credit, draft_credit_note, payment_of
from tokenmeter.budgets import Budget
from tokenmeter.budgets.policy import Unit
from tokenmeter.budgets.status import name_grant
from tokenmeter.dimensions import ACCOUNTS, AccountArguments
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import ZERO, subtract, total
from tokenmeter.periods import Period
from tokenmeter.reports import Query, read_report
from tokenmeter.reports.query import parse_conditions
from tokenmeter.serving import answers
from tokenmeter.serving.access import BEARER, Access, Right
from tokenmeter.serving.problems import problems
from tokenmeter.serving.rest import NAME, Word, access_of
from tokenmeter.serving.shapes import ResponsePart

_MOST_SHOWN = 100
_API = "usage API"
Reason = Annotated[str, Field(min_length=1, max_length=1000, description="Why; it is recorded")]
Decimals = Annotated[str, Field(pattern=r"^-?\d{1,30}(\.\d{1,12})?$", description="Exact decimal text")]
Key = Annotated[
    Annotated[Word, Field(min_length=1)] | None,
    Field(description="Identity of the deed: one key acts once, however often it is sent"),
]


class Deed(BaseModel):
    """What is to be done."""

    model_config = ConfigDict(extra="forbid")

    dry_run: bool = Field(default=True, description="false = do it; else only say what would be done")


class SetBudget(Deed):
    """Fields of a budget that are to change; a budget that is not there yet is made of them."""

    fields: dict[Word, Any] = Field(
        description='As in a `[[budgets]]` row: `{"member": "*", "limit_usd": "50"}`; null takes a field away',
        min_length=1,
        max_length=64,
    )
    reason: Reason


class EndBudget(Deed):
    """The end of a budget."""

    reason: Reason


class GrantMore(Deed):
    """More room for one counter of a budget."""

    amount: Decimals = Field(description="In the budget's unit; negative takes back")
    scope: dict[Word, Word] = Field(default={}, description="Which counter, where the budget has a `*`")
    unit: Literal["usd", "tokens", "requests"] | None = Field(None, description="Where the budget has several limits")
    expires: Word | None = Field(None, description="First instant at which what is left of it is gone")
    key: Key = None
    reason: Reason


class ClosePeriod(Deed):
    """A period that is closed for good."""

    period: Word = Field(description="`2026-11`, `2026-Q4`, `last-month`, ...")
    tz: Word | None = Field(None, description="Zone that cuts it; default: the `[billing]` settings'")


class IssueInvoice(Deed):
    """An invoice over a closed period."""

    account: dict[Word, Word] = Field(description='Whose: `{"team": "search"}`', min_length=1, max_length=8)
    period: Word = Field(description="`2026-11`, ...")
    tz: Word | None = Field(None, description="Zone that cut the period; default: the `[billing]` settings'")
    lines_by: Word = Field("", description="Break lines down by these, separated by commas")
    on: date | None = Field(None, description="Day of issue; default: today")
    force: bool = Field(default=False, description="Also over nothing")
    allow_unpriced: bool = Field(default=False, description="Also where some usage has no known price")


class CreditInvoice(Deed):
    """A credit note on an invoice."""

    amount: Decimals | None = Field(None, description="Net amount to give back; null = all that is left")
    line: int | None = Field(None, ge=1, description="Of which line of the invoice; null = of no line in particular")
    key: Key = None
    reason: Reason


class RecordPayment(Deed):
    """Money that came in for an invoice."""

    amount: Decimals | None = Field(None, description="How much; null = all that is left; negative = given back")
    on: date | None = Field(None, description="Day on which it came; default: today")
    reference: Word = Field("", description="The payment's reference")
    key: Key = None


class Reprice(Deed):
    """Calls that are to be rated again."""

    period: Word | None = None
    where: list[Word] = Field(default=[], max_length=64, description="`DIMENSION=VALUE`")
    tz: Word = "UTC"
    changed: bool = Field(default=False, description="Also what has a price, where it would differ today")


# -- the deeds


def set_budget(meter: Meter, name: str, deed: SetBudget, *, by: str, source: str = _API) -> dict[str, Any]:
    """Define a budget, or change the fields named. The same definition again changes nothing."""
    known = next((one for one in meter.budgets.in_force if one.name == name), None)
    row = ({} if known is None else known.to_dict()) | deed.fields | {"name": name}
    # A row has no null: what is given as None is taken away.
    budget = Budget.parse({key: value for key, value in row.items() if value is not None}, file=source)
    change = meter.budgets.set(budget, by=by, reason=deed.reason, source=source, dry_run=deed.dry_run)
    if deed.dry_run:
        return {"before": None if known is None else known.to_dict(), "after": budget.to_dict()}
    return change.to_dict()


def end_budget(meter: Meter, name: str, deed: EndBudget, *, by: str, source: str = _API) -> dict[str, Any]:
    """End a budget; its history stays. One that has ended already stays ended as it was."""
    known = next((one for one in meter.budgets.changes() if one.name == name), None)
    if known is None:
        ended = meter.budgets.history(name)
        if not ended:
            raise ConfigurationError(f"There is no budget {name!r} in this ledger.")
        return {"before": None, "after": None} if deed.dry_run else ended[-1].to_dict()
    if deed.dry_run:
        return {"before": known.to_dict(), "after": None}
    return meter.budgets.retire(name, by=by, reason=deed.reason, source=source).to_dict()


def grant(meter: Meter, name: str, deed: GrantMore, *, by: str) -> dict[str, Any]:
    """Give one counter of a budget more room."""
    made = meter.budgets.grant(
        name,
        deed.amount,
        by=by,
        reason=deed.reason,
        scope=deed.scope,
        unit=cast("Unit | None", deed.unit),
        expires=deed.expires,
        key=deed.key,
        dry_run=deed.dry_run,
    )
    told = name_grant(made, meter.store.key_labels()).to_dict()
    if not deed.dry_run:
        return told
    stands = meter.budgets.remaining(made.scope, meter.store.now())
    found = [answers.balance_of(one) for one in stands if (one.budget, one.unit) == (name, made.unit)]
    return {"amount": deed.amount, "grant": told, "balances": found[:_MOST_SHOWN]}


def close_period(meter: Meter, deed: ClosePeriod, *, by: str) -> dict[str, Any]:
    """Close a period for good. The same one twice is the same closing."""
    tz = zone_of_books(meter.store, deed.tz or (None if meter.profile is None else meter.profile.tz))
    wanted = closable(deed.period, tz, meter.store.now())
    known = find_closed(meter.store, wanted)
    if known is None and deed.dry_run:
        closed = closed_periods(meter.store)
        check_open(wanted, closed)
        sums = read_report(meter.store, Query(period=wanted)).totals
        figures = {name: getattr(sums, name) for name in ("requests", "unpriced", "estimated")}
        costs = {name: f"{getattr(sums, name):f}" for name in ("list_cost", "contracted_cost", "billed_cost")}
        late = [
            {"period": one.period.label, "billed_cost": f"{cost:f}"} for one, cost in late_costs(meter.store, closed)
        ]
        return {"period": period_dict(wanted), "closed_at": None, "closed_by": None, **figures, **costs, "late": late}
    made = known or meter.close_period(wanted, by=by)
    told = {name: value for name, value in made.to_dict().items() if name not in {"rows", "late", "recounted"}}
    late = [{"period": one.period.label, "billed_cost": f"{one.billed_cost:f}"} for one in made.late]
    return {**told, "late": late, "key": None if made.document is None else made.document.key}


def issue_invoice(meter: Meter, deed: IssueInvoice, *, by: str, period: Period | None = None) -> dict[str, Any]:
    """Issue an invoice over a closed period (`period`: not the deed's). The same one twice is the same invoice."""
    account = answers.pairs([f"{name}={value}" for name, value in deed.account.items()], "account", ACCOUNTS)
    draft = meter.invoice(
        period=period or deed.period, lines_by=deed.lines_by or (), tz=deed.tz, **cast("AccountArguments", account)
    )
    if deed.dry_run:
        there = check_invoice(meter.store, draft, on=deed.on, force=deed.force, allow_unpriced=deed.allow_unpriced)
        return there.to_dict()
    made = meter.issue_invoice(draft, on=deed.on, by=by, force=deed.force, allow_unpriced=deed.allow_unpriced)
    return made.to_dict()


def credit_invoice(meter: Meter, number: str, deed: CreditInvoice, *, by: str) -> dict[str, Any] | None:
    """Give back an amount of an invoice, or all that is left of it; None where there is no such invoice."""
    known = answers.invoice(meter, number)
    if known is None:
        return None
    asked = ask_credit(deed.amount, deed.line)
    if deed.dry_run:
        note = draft_credit_note(meter.store, number, asked, deed.reason, key=deed.key)
        return {"amount": deed.amount, "line": deed.line, "credit_note": note, "invoice": known}
    return meter.credit_invoice(number, asked, deed.reason, by=by, key=deed.key).to_dict()


def record_payment(meter: Meter, number: str, deed: RecordPayment, *, by: str) -> dict[str, Any] | None:
    """Write down that money came for an invoice; None where there is no such invoice."""
    known = answers.invoice(meter, number)
    if known is None:
        return None
    reference = deed.reference.strip() or None
    if not deed.dry_run:
        done = meter.record_payment(number, deed.amount, on=deed.on, reference=reference, by=by, key=deed.key)
        return answers.invoice(meter, str(done.number)) or known
    current = find_invoice(meter.store, number)
    made = payment_of(deed.amount, on=deed.on, reference=reference, by=by, key=deed.key)(current)
    # Written down under this key already, or nothing is left to pay.
    if made is None:
        return {"payment": None, "invoice": known, "balance": known["balance"]}
    left = subtract(current.balance, made.amount or ZERO)
    return {"payment": made.to_dict(), "invoice": known, "balance": f"{left:f}"}


def reprice(meter: Meter, deed: Reprice, *, by: str) -> dict[str, Any]:
    """Rate calls again whose price was unknown, or has changed, and append the differences. Twice corrects once."""
    where = parse_conditions(deed.where, "where")
    found = meter.reprice(
        period=deed.period, where=where, tz=deed.tz, changed=deed.changed, post=not deed.dry_run, by=by
    )
    shown = [answers.entry_of(one) for one in found[:_MOST_SHOWN]]
    cost = total(one.billed_cost or ZERO for one in found)
    return {"corrections": len(found), "billed_cost": f"{cost:f}", "first": shown}


# -- over the API


class DoneShape(ResponsePart):
    """What was done, or would be."""

    done: bool
    result: dict[str, Any]


def _require(right: Right) -> Any:
    def check(request: Request) -> Access:
        access = access_of(request)
        if not request.scope.get(BEARER):
            raise HTTPException(403, "Send a token as 'Authorization: Bearer ...'; a login of the pages cannot act.")
        if right not in access.can or access.scope.conditions:
            raise HTTPException(403, f"This token has no right to act on {right}.")
        return access

    return Depends(check)


def _tell_result(deed: Deed, result: dict[str, Any] | None) -> Response:
    if result is None:
        raise HTTPException(404, "There is no such invoice in this ledger.")
    return JSONResponse({"done": not deed.dry_run, "result": result}, status_code=200 if deed.dry_run else 201)


_TOLD: dict[str, Any] = {
    "tags": ["act"],
    "response_model": DoneShape,
    "responses": {201: {"model": DoneShape, "description": "Done"}, **problems(404, 409)},
}


def add_verbs(api: FastAPI, meter: Meter) -> None:
    """Add to `api` what acts on the ledger of `meter`."""

    @api.post(f"/v1/budgets/{NAME}/grants", name="grant", **_TOLD)
    def post_grant(name: Word, deed: GrantMore, who: Annotated[Access, _require("budgets")]) -> Response:
        """Give one counter of a budget more room: a raise for this window, or prepaid credit."""
        return _tell_result(deed, grant(meter, name, deed, by=who.name))

    @api.post(f"/v1/budgets/{NAME}/end", name="end_budget", **_TOLD)
    def post_end(name: Word, deed: EndBudget, who: Annotated[Access, _require("budgets")]) -> Response:
        """End a budget: every process stops obeying it with its next call; its history stays."""
        return _tell_result(deed, end_budget(meter, name, deed, by=who.name))

    # Behind those whose paths are longer: a name may have slashes in it (`route=/chat usd/month`).
    @api.post(f"/v1/budgets/{NAME}", name="set_budget", **_TOLD)
    def post_budget(name: Word, deed: SetBudget, who: Annotated[Access, _require("budgets")]) -> Response:
        """Define a budget, or change the fields named; every process obeys it with its next call."""
        return _tell_result(deed, set_budget(meter, name, deed, by=who.name))

    @api.post("/v1/corrections", name="reprice", **_TOLD)
    def post_corrections(deed: Reprice, who: Annotated[Access, _require("prices")]) -> Response:
        """Rate calls again whose price was unknown, or has changed, and append the differences as corrections."""
        return _tell_result(deed, reprice(meter, deed, by=who.name))

    _add_bookkeeping(api, meter)


def _add_bookkeeping(api: FastAPI, meter: Meter) -> None:
    @api.post("/v1/periods", name="close_period", **_TOLD)
    def post_period(deed: ClosePeriod, who: Annotated[Access, _require("invoices")]) -> Response:
        """Close a period for good; what comes in later is a correction in the next. The same one twice is the same."""
        return _tell_result(deed, close_period(meter, deed, by=who.name))

    @api.post("/v1/invoices", name="issue_invoice", **_TOLD)
    def post_invoice(deed: IssueInvoice, who: Annotated[Access, _require("invoices")]) -> Response:
        """Issue an invoice over a closed period. The same one twice is the same invoice."""
        return _tell_result(deed, issue_invoice(meter, deed, by=who.name))

    @api.post("/v1/invoices/{number:path}/credit-notes", name="credit_invoice", **_TOLD)
    def post_credit_note(number: Word, deed: CreditInvoice, who: Annotated[Access, _require("invoices")]) -> Response:
        """Give back an amount of an invoice or of one of its lines, or all of it."""
        return _tell_result(deed, credit_invoice(meter, number, deed, by=who.name))

    @api.post("/v1/invoices/{number:path}/payments", name="record_payment", **_TOLD)
    def post_payment(number: Word, deed: RecordPayment, who: Annotated[Access, _require("invoices")]) -> Response:
        """Write down that money came for an invoice: in part, in full or too much; negative, that it was given back."""
        return _tell_result(deed, record_payment(meter, number, deed, by=who.name))
