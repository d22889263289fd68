"""The usage API: read-only JSON over HTTP, described by OpenAPI. `tokenmeter.serving.acting` adds what writes.

Mounted under ``/api`` of the dashboard, whose door says who asks. What may be seen is decided below, by the lens that
a request's scope looks through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, cast

from fastapi import Depends, FastAPI, Query, Request, Security
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException

from tokenmeter import reports
from tokenmeter.dimensions import ACCOUNTS
from tokenmeter.reports.query import parse_conditions
from tokenmeter.serving import answers
from tokenmeter.serving.access import ACCESS, Access
from tokenmeter.serving.lens import ReadableMeter
from tokenmeter.serving.problems import PROBLEMS, keep_to_path, problems, tell_problems
from tokenmeter.serving.shapes import (
    BalancesShape,
    BudgetsShape,
    CreditNotesShape,
    EntriesShape,
    HistoryShape,
    InvoicesShape,
    PricesShape,
    ReportShape,
    StatementShape,
    WholeEntryShape,
    WholeInvoiceShape,
    WhoShape,
)

_MOST_ROWS = 10_000
_MOST_ON_A_PAGE = 1_000
#: Texts of a request are short; NUL is in no name, and a server refuses it.
Word = Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")]
#: A name in a path, whatever is in it: slashes, in a mistaken one line breaks. What has a longer path goes before what
#: ends with it.
NAME = "{name:anything}"
Limit = Annotated[int, Query(ge=1, le=_MOST_ON_A_PAGE)]
Cursor = Annotated[Word | None, Query(description="`next_cursor` of the page before; with the same other parameters")]

Account = Annotated[
    Sequence[Word],
    Query(description="FIELD=VALUE, such as `member=ada` or `tag:env=prod`; repeat it.", max_length=16),
]


class _Anything(PathConvertor):
    regex = "(?s:.+)"


register_url_convertor("anything", _Anything())


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

    limit: int = Field(100, ge=1, le=_MOST_ON_A_PAGE)
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
    return Response(status_code=304, headers={**_FRESH, "etag": tag}) if has & {tag, "*"} else None


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
            Depends(keep_to_path),
            Depends(know_all_asked),
        ],
        generate_unique_id_function=lambda route: route.name,
    )
    tell_problems(api)
    api.state.look = look
    _read_usage(api)
    _read_limits(api)
    _read_books(api)
    return api


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

    @api.get("/v1/me", response_model=WhoShape, tags=["access"])
    def read_me(request: Request) -> Response:
        """Who asks, and what he may see and do."""
        access = access_of(request)
        return JSONResponse({"name": access.name, "only": access.scope.to_dict(), "can": sorted(access.can)})


def _read_limits(api: FastAPI) -> None:
    @api.get("/v1/balances", response_model=BalancesShape, tags=["budgets"])
    def read_balances(
        sight: Seen,
        account: Account = (),
        budget: Word | None = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """What remains of the budgets that concern an account, by name; of all without one."""
        whose = answers.pairs(account, "account")
        page = answers.balance_page(sight, whose, budget=budget, limit=limit, cursor=cursor)
        return JSONResponse({"balances": page.items, "next_cursor": page.next})

    @api.get("/v1/budgets", response_model=BudgetsShape, tags=["budgets"])
    def read_budgets(sight: Seen, limit: Limit = 100, cursor: Cursor = None) -> Response:
        """The budgets in force, by name."""
        page = answers.budget_page(sight, limit=limit, cursor=cursor)
        return JSONResponse({"budgets": page.items, "next_cursor": page.next})

    @api.get(f"/v1/budgets/{NAME}/history", response_model=HistoryShape, tags=["budgets"], responses=problems(404))
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


def _read_books(api: FastAPI) -> None:
    @api.get("/v1/invoices", response_model=InvoicesShape, tags=["books"])
    def read_invoices(
        sight: Seen,
        period: Annotated[Word | None, Query(description="Its label, such as `2026-11`")] = None,
        status: Literal["issued", "paid", "credited", "void", "uncollectible"] | None = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """Issued invoices without their lines, the last first."""
        page = answers.invoice_list(sight, period=period, status=status, limit=limit, cursor=cursor)
        return JSONResponse({"invoices": page.items, "next_cursor": page.next})

    @api.get("/v1/invoices/{number:path}", response_model=WholeInvoiceShape, tags=["books"], responses=problems(404))
    def read_invoice(sight: Seen, number: Word) -> Response:
        """One invoice with its lines, and what happened to it."""
        return _found(answers.invoice(sight, number), "invoice")

    @api.get("/v1/credit-notes", response_model=CreditNotesShape, tags=["books"])
    def read_credit_notes(sight: Seen, limit: Limit = 100, cursor: Cursor = None) -> Response:
        """Issued credit notes, the last first."""
        page = answers.credit_note_page(sight, limit=limit, cursor=cursor)
        return JSONResponse({"credit_notes": page.items, "next_cursor": page.next})

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
