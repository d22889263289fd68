"""What the usage API can do besides reading, for a token that was given the right to: it is off without one.

The verbs are those of Python and of the command line; whoever acts is recorded under the token's name. Nothing is done
until a request says ``"dry_run": false``: before that it is answered with what would be done. Only a token sent in a
header acts, never a cookie, so that no page of others can make a browser act.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal, cast

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from tokenmeter.api import Meter
from tokenmeter.budgets import Budget
from tokenmeter.budgets.policy import Unit
from tokenmeter.money import ZERO, total
from tokenmeter.reports.query import parse_conditions
from tokenmeter.serving import answers
from tokenmeter.serving.access import BEARER, Access, Right
from tokenmeter.serving.rest import Shape, Word, access_of, problems

__all__ = ["add_verbs"]

_SOURCE = "usage API"
_MOST_SHOWN = 100
Reason = Annotated[str, Field(min_length=1, max_length=1000, description="Why; it is recorded")]
Decimals = Annotated[str, Field(pattern=r"^-?\d{1,30}(\.\d{1,12})?$", description="Exact decimal text")]


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


class GrantMore(Deed):
    """More room for one counter of a budget."""

    amount: Decimals = Field(description="In the budget's unit; negative takes back")
    scope: dict[Word, Word] = Field(default={}, description="Which counter, where the budget has a `*`")
    unit: Literal["usd", "tokens", "requests"] | None = Field(None, description="Where the budget has several limits")
    expires: Word | None = Field(None, description="First instant at which what is left of it is gone")
    key: Word | None = Field(None, description="Identity, such as a payment's: granted once, however often it is sent")
    reason: Reason


class IssueInvoice(Deed):
    """An invoice over a closed period."""

    account: dict[Word, Word] = Field(description='Whose: `{"team": "search"}`', min_length=1, max_length=8)
    period: Word = Field(description="`2026-11`, ...")
    lines_by: Word = Field("", description="Break lines down by these, separated by commas")
    on: date | None = Field(None, description="Day of issue; default: today")
    force: bool = Field(default=False, description="Also over nothing")
    allow_unpriced: bool = Field(default=False, description="Also where some usage has no known price")


class CreditInvoice(Deed):
    """A credit note on an invoice."""

    amount: Decimals | None = Field(None, description="Net amount to give back; null = all that is left")
    reason: Reason


class Reprice(Deed):
    """Calls that are to be rated again."""

    period: Word | None = None
    where: list[Word] = Field(default=[], max_length=64, description="`DIMENSION=VALUE`")
    tz: Word = "UTC"
    changed: bool = Field(default=False, description="Also what has a price, where it would differ today")


class DoneShape(Shape):
    """What was done, or would be."""

    done: bool
    result: dict[str, Any]


def _may(right: Right) -> Any:
    def check(request: Request) -> Access:
        access = access_of(request)
        if not request.scope.get(BEARER):
            raise HTTPException(403, "Send a token as 'Authorization: Bearer ...'; a login of the pages cannot act.")
        if right not in access.can or access.scope.conditions:
            raise HTTPException(403, f"This token has no right to act on {right}.")
        return access

    return Depends(check)


def _answer(result: Any, *, done: bool) -> Response:
    return JSONResponse({"done": done, "result": result}, status_code=201 if done else 200)


_TOLD: dict[str, Any] = {
    "tags": ["act"],
    "response_model": DoneShape,
    "responses": {201: {"model": DoneShape, "description": "Done"}, **problems(404, 409)},
}


def add_verbs(api: FastAPI, meter: Meter) -> None:
    """Add to `api` what acts on the ledger of `meter`."""
    _act_on_budgets(api, meter)
    _act_on_books(api, meter)


def _act_on_budgets(api: FastAPI, meter: Meter) -> None:
    @api.post("/v1/budgets/{name}", **_TOLD)
    def set_budget(name: Word, deed: SetBudget, who: Annotated[Access, _may("budgets")]) -> Response:
        """Define a budget, or change the fields named; every process obeys it with its next call."""
        known = next((one for one in meter.budgets.in_force if one.name == name), None)
        row = ({} if known is None else known.to_dict()) | deed.fields | {"name": name}
        budget = Budget.parse({key: value for key, value in row.items() if value is not None}, file=_SOURCE)
        if deed.dry_run:
            before = None if known is None else known.to_dict()
            return _answer({"before": before, "after": budget.to_dict()}, done=False)
        change = meter.budgets.set(budget, by=who.name, reason=deed.reason, source=_SOURCE)
        return _answer(change.to_dict(), done=True)

    @api.post("/v1/budgets/{name}/grants", **_TOLD)
    def grant(name: Word, deed: GrantMore, who: Annotated[Access, _may("budgets")]) -> Response:
        """Give one counter of a budget more room: a raise for this window, or prepaid credit."""
        if deed.dry_run:
            found = answers.balances(meter, deed.scope, budget=name)
            return _answer({"amount": deed.amount, "balances": found[:_MOST_SHOWN]}, done=False)
        made = meter.budgets.grant(
            name,
            deed.amount,
            by=who.name,
            reason=deed.reason,
            scope=deed.scope,
            unit=cast("Unit | None", deed.unit),
            expires=deed.expires,
            key=deed.key,
        )
        return _answer(made.to_dict(), done=True)


def _act_on_books(api: FastAPI, meter: Meter) -> None:
    @api.post("/v1/invoices", **_TOLD)
    def issue_invoice(deed: IssueInvoice, who: Annotated[Access, _may("invoices")]) -> Response:
        """Issue an invoice over a closed period. The same one twice is the same invoice."""
        account = cast("Any", answers.pairs([f"{name}={value}" for name, value in deed.account.items()], "account"))
        draft = meter.invoice(period=deed.period, lines_by=deed.lines_by or (), **account)
        if deed.dry_run:
            return _answer(draft.to_dict(), done=False)
        made = meter.issue_invoice(draft, on=deed.on, by=who.name, force=deed.force, allow_unpriced=deed.allow_unpriced)
        return _answer(made.to_dict(), done=True)

    @api.post("/v1/invoices/{number:path}/credit-notes", **_TOLD)
    def credit_invoice(number: Word, deed: CreditInvoice, who: Annotated[Access, _may("invoices")]) -> Response:
        """Give back an amount of an invoice, or all of it."""
        known = answers.invoice(meter, number)
        if known is None:
            raise HTTPException(404, "There is no such invoice in this ledger.")
        if deed.dry_run:
            return _answer({"amount": deed.amount, "invoice": known}, done=False)
        note = meter.credit_invoice(number, deed.amount, deed.reason, by=who.name)
        return _answer(note.to_dict(), done=True)

    @api.post("/v1/corrections", **_TOLD)
    def reprice(deed: Reprice, _: Annotated[Access, _may("prices")]) -> Response:
        """Rate calls again whose price was unknown, or has changed, and append the differences as corrections."""
        found = meter.reprice(
            period=deed.period,
            where=parse_conditions(deed.where, "where"),
            tz=deed.tz,
            changed=deed.changed,
            post=not deed.dry_run,
        )
        shown = [answers.entry_of(one) for one in found[:_MOST_SHOWN]]
        cost = total(one.billed_cost or ZERO for one in found)
        return _answer({"corrections": len(found), "billed_cost": f"{cost:f}", "first": shown}, done=not deed.dry_run)
