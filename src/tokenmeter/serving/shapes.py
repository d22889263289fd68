"""What the usage API's answers look like, for its description."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Money = Annotated[str, Field(description="US dollars, exact decimal text", examples=["0.001250000000"])]
Amount = Annotated[str, Field(description="Exact decimal text, in the unit that stands beside it")]
Count = Annotated[int, Field(ge=0)]
NextCursor = Annotated[str | None, Field(description="Give it as `cursor` for the next page; null = this is the last")]


class ResponsePart(BaseModel):
    """Part of an answer. New fields may join it within a version; none goes or changes its meaning."""

    model_config = ConfigDict(extra="allow")


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
    kind: Literal["usage", "growth", "reversal", "correction", "adjustment"]
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
    next_cursor: NextCursor


class BalanceShape(ResponsePart):
    """Where one counter of a budget stands."""

    budget: str
    scope: dict[str, str]
    unit: Literal["usd", "tokens", "requests", "in_flight"]
    limit: Amount | None = Field(description="null = no cap")
    spent: Amount
    assumed: Amount = Field(description="How much of `spent` has no known price yet, at the dearest known one")
    reserved: Amount = Field(description="What calls in flight hold")
    remaining: Amount | None
    window_start: datetime | None
    counts_from: datetime | None = Field(description="First instant whose calls it counts; null = all")
    resets_at: datetime | None = Field(description="When it begins anew, or ends; null = never")
    ends: bool = Field(description="Whether `resets_at` is the end of the budget itself")
    hard: bool = Field(description="Whether it stops calls")
    limit_known: bool = Field(description="false = a function of another program says it; limit is null then")


class BalancesShape(ResponsePart):
    """A page of what remains of budgets."""

    balances: list[BalanceShape]
    next_cursor: NextCursor


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
    """A page of the budgets in force."""

    budgets: list[ChangeShape]
    next_cursor: NextCursor


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
    next_cursor: NextCursor


class CreditNotesShape(ResponsePart):
    """A page of credit notes, the last issued first."""

    credit_notes: list[dict[str, Any]]
    next_cursor: NextCursor


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
