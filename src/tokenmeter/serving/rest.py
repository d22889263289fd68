"""The usage API: read-only JSON over HTTP, described by OpenAPI. `tokenmeter.serving.acting` adds what writes.

Mounted under ``/api`` of the dashboard, whose door says who asks. What may be seen is decided below, by the lens that
a request's scope looks through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal, cast

from fastapi import Depends, FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from tokenmeter import reports
from tokenmeter.dimensions import ACCOUNTS
from tokenmeter.errors import ConfigurationError, LedgerError, StoreError, TokenmeterError, UnknownModelError
from tokenmeter.reports.query import parse_conditions
from tokenmeter.serving import answers
from tokenmeter.serving.access import ACCESS, Access
from tokenmeter.serving.lens import ReadableMeter

_MOST_ROWS = 10_000
_MOST_ENTRIES = 1_000
#: Texts of a request are short; NUL is in no name, and a server refuses it.
Word = Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")]

Money = Annotated[str, Field(description="US dollars, exact decimal text", examples=["0.001250000000"])]
Amount = Annotated[str, Field(description="Exact decimal text, in the unit that stands beside it")]
Count = Annotated[int, Field(ge=0)]
Account = Annotated[
    Sequence[Word],
    Query(description="FIELD=VALUE, such as `member=ada` or `tag:env=prod`; repeat it.", max_length=16),
]


# -- what answers look like


class ResponsePart(BaseModel):
    """Part of an answer. New fields may join it within a version; none goes or changes its meaning."""

    model_config = ConfigDict(extra="allow")


class Problem(ResponsePart):
    """What went wrong, as RFC 9457 has it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


class Stretch(ResponsePart):
    """A stretch of time: ISO 8601 instants in UTC; None = open."""

    label: str
    start: datetime | None
    end: datetime | None


class Zoned(Stretch):
    """A stretch of time, and the IANA zone whose calendar cut it."""

    tz: str


class RowShape(ResponsePart):
    """Sums over the entries of one group in one bucket of time."""

    bucket: Stretch
    group: dict[str, str | None] = Field(description="dimension -> value; null = the entries do not name it")
    requests: Count
    errors: Count
    unpriced: int = Field(description="Entries of unknown price: their cost is missing from the sums")
    estimated: int
    input_tokens: int
    cache_read_input_tokens: int
    cache_write_input_tokens: int
    output_tokens: int
    reasoning_output_tokens: int
    total_tokens: int
    quantities: dict[str, int | str]
    list_cost: Money | None = Field(description="null = nothing in it has a known price")
    contracted_cost: Money | None
    billed_cost: Money | None


class ReportShape(ResponsePart):
    """Usage and cost per group and time."""

    period: Zoned
    by: list[str]
    granularity: str | None
    where: dict[str, list[str | None]]
    created_at: datetime
    currency: Literal["USD"]
    rows: list[RowShape] = Field(description="Dearest first; in order of time with a granularity")
    rows_omitted: Count = Field(description="Rows beyond `limit`; they are in `totals`")
    totals: RowShape


class EntryShape(ResponsePart):
    """One call, correction or adjustment, with its attribution and a field per meter."""

    entry_id: str
    kind: Literal["usage", "correction", "adjustment"]
    occurred_at: datetime
    recorded_at: datetime
    provider: str
    endpoint: str
    operation: str
    model: str | None
    status: str
    tags: dict[str, str] | None
    api_key: str | None = Field(description="Alias, or the key's last four characters")
    list_cost: Money | None
    contracted_cost: Money | None
    billed_cost: Money | None
    cost_source: str
    flags: list[str] | None


class ChargeShape(ResponsePart):
    """One line of an entry."""

    model: str | None
    sku_meter: str
    quantity: Amount
    unit: str
    list_unit_price: Money | None
    multipliers: dict[str, str]
    list_cost: Money | None
    contracted_cost: Money | None
    billed_cost: Money | None
    price_id: str | None
    price_source: str | None


class WholeEntryShape(EntryShape):
    """An entry with its charges and the usage object that the provider sent."""

    raw_usage: Any
    charges: list[ChargeShape]


class EntriesShape(ResponsePart):
    """A page of entries."""

    entries: list[EntryShape]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null = this is the last")


class BalanceShape(ResponsePart):
    """Where one counter of a budget stands."""

    budget: str
    scope: dict[str, str]
    unit: Literal["usd", "tokens", "requests", "in_flight"]
    limit: Amount | None = Field(description="null = no cap")
    spent: Amount
    reserved: Amount = Field(description="What calls in flight hold")
    remaining: Amount | None
    window_start: datetime | None
    resets_at: datetime | None
    hard: bool = Field(description="Whether it stops calls")
    limit_known: bool = Field(description="false = a function of another program says it; limit is null then")


class BalancesShape(ResponsePart):
    """What remains of budgets."""

    balances: list[BalanceShape]


class ChangeShape(ResponsePart):
    """One version of a budget's definition."""

    name: str
    version: int
    what: Literal["set", "retire"]
    budget: dict[str, Any] | None
    at: datetime | None
    by: str
    reason: str
    source: str


class BudgetsShape(ResponsePart):
    """The budgets in force."""

    budgets: list[ChangeShape]


class GrantShape(ResponsePart):
    """More room for one counter."""

    grant_id: str
    budget: str
    scope: dict[str, str]
    unit: str
    amount: Amount
    starts: datetime
    expires: datetime | None
    at: datetime
    by: str
    reason: str


class HistoryShape(ResponsePart):
    """What became of one budget."""

    changes: list[ChangeShape]
    grants: list[GrantShape]


class InvoiceShape(ResponsePart):
    """An invoice without its lines."""

    number: str | None
    status: Literal["draft", "issued", "paid", "credited", "void", "uncollectible"]
    scope: dict[str, str]
    period: Zoned
    issued_on: str | None
    due_on: str | None
    currency: str
    totals: dict[str, Any]
    credited: Amount
    paid: Amount
    balance: Amount


class WholeInvoiceShape(InvoiceShape):
    """An invoice with its lines, and what happened to it."""

    lines: list[dict[str, Any]]
    events: list[dict[str, Any]]
    credit_notes: list[dict[str, Any]]


class InvoicesShape(ResponsePart):
    """A page of invoices, the last issued first."""

    invoices: list[InvoiceShape]
    next_cursor: str | None


class CreditNotesShape(ResponsePart):
    """Credit notes, the last issued first."""

    credit_notes: list[dict[str, Any]]


class StatementShape(ResponsePart):
    """An account over a period: opening + charges + credits = closing."""

    scope: dict[str, str]
    period: Zoned
    basis: Literal["usage", "invoices"]
    currency: str
    opening: Amount
    charges: Amount
    credits: Amount
    closing: Amount
    unpriced: int
    lines: list[dict[str, str]]


class PricesShape(ResponsePart):
    """The price rows in force for a model; amounts are US dollars per `per` units."""

    prices: list[dict[str, str]]


class WhoShape(ResponsePart):
    """Who asks."""

    name: str
    only: dict[str, list[str]] = Field(description="What is seen; empty = everything")
    can: list[str]


# -- problems


def problem(
    status: int, detail: str, *, headers: Mapping[str, str] | None = None, errors: Sequence[Mapping[str, Any]] = ()
) -> Response:
    """An error as RFC 9457 has it."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if errors:
        body["errors"] = list(errors)
    return JSONResponse(body, status_code=status, headers=headers, media_type="application/problem+json")


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How these are described."""
    content: dict[str, Any] = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


#: What any path may answer besides what it is for.
PROBLEMS = problems(400, 401, 403, 408, 413, 421, 422, 429, 500, 503)


def _failed(_: Request, error: Exception) -> Response:
    if isinstance(error, UnknownModelError):
        return problem(404, str(error))
    if isinstance(error, StoreError):
        return problem(503, str(error), headers={"retry-after": "5"})
    if isinstance(error, LedgerError):
        return problem(409, str(error))
    return problem(400 if isinstance(error, ConfigurationError) else 500, str(error))


def _refused(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    words = error.detail if error.detail != HTTPStatus(error.status_code).phrase else "There is nothing at this path."
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        words = "That cannot be done here; the API's description says what can."
    return problem(error.status_code, words, headers=error.headers)


def _mistaken(_: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    found = [{"where": ".".join(map(str, one["loc"])), "detail": str(one["msg"])} for one in error.errors()]
    return problem(422, "; ".join(f"{one['where']}: {one['detail']}" for one in found), errors=found)


def _out_of_time(_: Request, __: Exception) -> Response:
    return problem(400, "That date lies beyond the calendar; choose one between the years 2 and 9998.")


# -- who asks for what


def access_of(request: Request) -> Access:
    """What whoever asks may see and do."""
    access: Access = request.scope.get(ACCESS) or Access()
    return access


def sight_of(request: Request) -> ReadableMeter:
    """The ledger as he sees it."""
    look: Callable[[Access], ReadableMeter] = request.app.state.look
    access = access_of(request)
    if "read" not in access.can:
        raise HTTPException(403, "This token may not read.")
    return look(access)


Seen = Annotated[ReadableMeter, Depends(sight_of)]


def know_all_asked(request: Request) -> None:
    """Refuse a parameter that the description does not have: a filter misspelt would show more than was asked for.

    Raises:
        HTTPException: there is one.
    """
    described = request.app.openapi()["paths"][request.scope["route"].path_format][request.method.lower()]
    known = [one["name"] for one in described.get("parameters", ()) if one["in"] == "query"]
    for name in request.query_params:
        if name not in known:
            mend = f"use one of {', '.join(known)}" if known else "leave it out"
            raise HTTPException(422, f"There is no parameter {name!r} here; {mend}.")


class ReportQuestion(BaseModel):
    """What reports and entries are asked of; as the arguments of `tokenmeter.report` and the command line."""

    model_config = ConfigDict(extra="forbid")

    period: Word | None = Field(None, description="`2026-11`, `2026-Q4`, `today`, `last-month`, `last-7d`, ...")
    since: Word | None = Field(None, description="First instant; instead of a period")
    until: Word | None = Field(None, description="First instant after the end")
    tz: Word = Field("UTC", description="IANA zone in which periods and buckets are cut")
    where: list[Word] = Field(
        default=[],
        max_length=64,
        description="`DIMENSION=VALUE`, such as `member=ada`, `tag:env=prod`; repeat it. Values of one dimension are "
        "alternatives; nothing after `=` means not set; `member!=ada` means all others.",
    )

    def query(self, *, by: str = "", granularity: str | None = None) -> reports.Query:
        """The same as a checked question."""
        return reports.Query.parse(
            by=by or (),
            period=self.period,
            since=self.since,
            until=self.until,
            granularity=granularity,
            where=parse_conditions(self.where, "where"),
            tz=self.tz,
        )


class AskedReport(ReportQuestion):
    """What a report is asked."""

    by: Word = Field("", description="Dimensions to group by, separated by commas")
    granularity: Literal["hour", "day", "week", "month", "quarter", "year"] | None = None
    limit: int = Field(1_000, ge=1, le=_MOST_ROWS, description="Rows at most; totals are of all")


class AskedEntries(ReportQuestion):
    """Which entries are asked for."""

    limit: int = Field(100, ge=1, le=_MOST_ENTRIES)
    cursor: Word | None = Field(None, description="`next_cursor` of the page before; with the same query")
    order: Literal["newest", "oldest"] = "newest"


def _tag(sight: ReadableMeter, access: Access, query: reports.Query, *more: object) -> str:
    """The ETag of what a query answers while nothing is written."""
    where = sorted((name, sorted(values, key=str)) for name, values in query.where.items())
    known = (access.scope, query.by, query.period, query.granularity, where, more, answers.head_of(sight))
    return f'W/"{hashlib.sha256(repr(known).encode()).hexdigest()[:32]}"'


_FRESH = {"cache-control": "private, no-cache", "vary": "authorization, cookie"}


def _known(request: Request, tag: str) -> Response | None:
    """304 where the client has it already."""
    has = {one.strip() for one in request.headers.get("if-none-match", "").split(",")}
    return Response(status_code=304, headers={**_FRESH, "etag": tag}) if tag in has else None


# -- the paths


def make_api(look: Callable[[Access], ReadableMeter]) -> FastAPI:
    """The API as an application to be mounted.

    Args:
        look: The ledger as an access shows it.
    """
    api = FastAPI(
        title="tokenmeter usage API",
        version="1",
        description="What was used, what it cost and on whose account. Amounts are exact decimals in text. A token "
        "sees the part of the ledger it was made for.",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=PROBLEMS,
        dependencies=[
            Security(HTTPBearer(auto_error=False, description="`tokenmeter dashboard token create NAME`")),
            Depends(know_all_asked),
        ],
        generate_unique_id_function=lambda route: route.name,
    )
    api.add_exception_handler(TokenmeterError, _failed)
    api.add_exception_handler(RequestValidationError, _mistaken)
    api.add_exception_handler(HTTPException, _refused)
    api.add_exception_handler(OverflowError, _out_of_time)
    api.state.look = look
    _read_usage(api)
    _read_books(api)
    _describe_problem(api)
    return api


def _describe_problem(api: FastAPI) -> None:
    """Put `Problem` into the description: no path returns it as its model."""
    describe = api.openapi

    def described() -> dict[str, Any]:
        schema = describe()
        shape = Problem.model_json_schema()
        schema.setdefault("components", {}).setdefault("schemas", {}).setdefault("Problem", shape)
        return schema

    api.openapi = described  # type: ignore[method-assign]


def _read_usage(api: FastAPI) -> None:
    @api.get("/v1/report", response_model=ReportShape, tags=["usage"])
    def read_report(request: Request, sight: Seen, asked: Annotated[AskedReport, Query()]) -> Response:
        """Usage and cost per group and time, totals included."""
        query = asked.query(by=asked.by, granularity=asked.granularity)
        tag = _tag(sight, access_of(request), query, asked.limit)
        known = _known(request, tag)
        found = None if known else answers.report(sight, query, most=asked.limit)
        return known or JSONResponse(found, headers={**_FRESH, "etag": tag})

    @api.get("/v1/entries", response_model=EntriesShape, tags=["usage"])
    def read_entries(request: Request, sight: Seen, asked: Annotated[AskedEntries, Query()]) -> Response:
        """Single calls, page by page."""
        query = asked.query()
        tag = _tag(sight, access_of(request), query, asked.limit, asked.cursor, asked.order)
        if known := _known(request, tag):
            return known
        newest = asked.order == "newest"
        page = answers.entry_page(sight, query, limit=asked.limit, cursor=asked.cursor, newest_first=newest)
        return JSONResponse({"entries": page.items, "next_cursor": page.next}, headers={**_FRESH, "etag": tag})

    @api.get("/v1/entries/{entry_id}", response_model=WholeEntryShape, tags=["usage"], responses=problems(404))
    def read_entry(sight: Seen, entry_id: Word) -> Response:
        """One call with its charges: quantity x unit price x every multiplier = cost."""
        return _found(answers.entry(sight, entry_id), "entry")

    @api.get("/v1/balances", response_model=BalancesShape, tags=["budgets"])
    def read_balances(sight: Seen, account: Account = (), budget: Word | None = None) -> Response:
        """What remains of the budgets that concern an account; of all without one."""
        return JSONResponse({"balances": answers.balances(sight, answers.pairs(account, "account"), budget=budget)})

    @api.get("/v1/budgets", response_model=BudgetsShape, tags=["budgets"])
    def read_budgets(sight: Seen) -> Response:
        """The budgets in force."""
        return JSONResponse({"budgets": answers.budgets_in_force(sight)})

    @api.get("/v1/budgets/{name}/history", response_model=HistoryShape, tags=["budgets"], responses=problems(404))
    def read_budget_history(sight: Seen, name: Word) -> Response:
        """Every version of a budget, and what was granted."""
        return _found(answers.budget_history(sight, name), "budget")

    @api.get("/v1/prices", response_model=PricesShape, tags=["prices"], responses=problems(404))
    def read_prices(
        sight: Seen,
        model: Annotated[Word, Query(min_length=1)],
        provider: Annotated[Word, Query(min_length=1)] = "openai",
        at: Annotated[Word | None, Query(description="Day or instant; default: now")] = None,
    ) -> Response:
        """What a model costs, or cost."""
        return JSONResponse({"prices": answers.price_rows(sight, model, provider=provider, at=at)})

    @api.get("/v1/me", response_model=WhoShape, tags=["access"])
    def read_me(request: Request) -> Response:
        """Who asks, and what he may see and do."""
        access = access_of(request)
        return JSONResponse({"name": access.name, "only": access.scope.to_dict(), "can": sorted(access.can)})


def _read_books(api: FastAPI) -> None:
    @api.get("/v1/invoices", response_model=InvoicesShape, tags=["books"])
    def read_invoices(
        sight: Seen,
        period: Annotated[Word | None, Query(description="Its label, such as `2026-11`")] = None,
        status: Literal["issued", "paid", "credited", "void", "uncollectible"] | None = None,
        limit: Annotated[int, Query(ge=1, le=_MOST_ENTRIES)] = 100,
        cursor: Word | None = None,
    ) -> Response:
        """Issued invoices without their lines, the last first."""
        page = answers.invoice_list(sight, period=period, status=status, limit=limit, cursor=cursor)
        return JSONResponse({"invoices": page.items, "next_cursor": page.next})

    @api.get("/v1/invoices/{number:path}", response_model=WholeInvoiceShape, tags=["books"], responses=problems(404))
    def read_invoice(sight: Seen, number: Word) -> Response:
        """One invoice with its lines, and what happened to it."""
        return _found(answers.invoice(sight, number), "invoice")

    @api.get("/v1/credit-notes", response_model=CreditNotesShape, tags=["books"])
    def read_credit_notes(sight: Seen) -> Response:
        """Issued credit notes, the last first."""
        return JSONResponse({"credit_notes": answers.credit_note_list(sight)})

    @api.get("/v1/statement", response_model=StatementShape, tags=["books"])
    def read_statement(
        *,
        request: Request,
        sight: Seen,
        period: Annotated[Word, Query(description="`2026-11`, `last-month`, ...")],
        account: Account,
        basis: Annotated[Literal["usage", "invoices"], Query(description="What was used, or invoiced")] = "usage",
        granularity: Literal["hour", "day", "week", "month", "quarter", "year"] = "day",
        tz: Word = "UTC",
    ) -> Response:
        """The running balance of an account."""
        if not access_of(request).scope.admits(answers.pairs(account, "account", ACCOUNTS)):
            raise HTTPException(403, "This account is not among what you may see.")
        return JSONResponse(
            answers.statement(sight, account, period=period, basis=basis, granularity=granularity, tz=tz)
        )


def _found(answer: dict[str, Any] | None, what: str) -> Response:
    if answer is None:
        raise HTTPException(404, f"There is no such {what} in this ledger.")
    return JSONResponse(cast("Any", answer))
