"""Anthropic's books: usage (input EXCLUDES what was cached) and costs (decimal text of fractional CENTS).

Two generations: the organization's analytics (typed in the SDK from 2.x, complete however many groups there are, with a
watermark), and the older ``usage_report/messages`` and ``cost_report``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple
from urllib.parse import urlencode

from tokenmeter.ledger import utcnow
from tokenmeter.money import EXACT
from tokenmeter.periods import Period, floor
from tokenmeter.reconciliation.paging import ReportPages, next_token
from tokenmeter.reconciliation.statement import (
    TOKEN_CLASSES,
    Bucket,
    CostLine,
    ProviderStatement,
    UsageLine,
    day_begins,
    in_dollars,
    kind_of_cost,
    tier_name,
)

Generation = Literal["analytics", "classic"]
ANALYTICS_GRAIN = ("model", "api_key", "project", "service_tier")
_TRAFFIC = frozenset({"tokens", "web_search", "code_execution"})
#: The older cost report knows no keys.
CLASSIC_GRAIN = ("model", "project", "service_tier")

_CENTS = Decimal(100)
_GROUP_BY = {"model": "model", "api_key": "api_key_id", "project": "workspace_id", "service_tier": "service_tier"}
_LONGEST = timedelta(days=31)
_ITEMS, _BUCKETS = 1000, 31
_PATH = "/v1/organizations"


def fetch(
    client: Any,
    period: Period,
    *,
    by: Sequence[str],
    pages: ReportPages,
    generation: Generation,
    rates: Mapping[str, Decimal],
) -> ProviderStatement:
    """Read the organization's usage and costs.

    Args:
        client: An ``anthropic.Anthropic`` with an admin key.
        period: In whole UTC days.
        by: Names of the generation's grain to split by.
        pages: Fetches.
        generation: Which reports.
        rates: US dollars per unit of other currencies.
    """
    lines = _analytics if generation == "analytics" else _classic
    fields = [_GROUP_BY[name] for name in by]
    usage: list[UsageLine] = []
    costs: list[CostLine] = []
    watermark: datetime | None = None
    begins: set[time] = set()
    for part in _parts(period):
        for page in lines(client, "usage", part, fields, pages):
            watermark = page.watermark or watermark
            begins |= page.begins
            usage += [UsageLine(_bucket(at, row, by), token_counts(row), row.get("requests")) for at, row in page.rows]
        for page in lines(client, "cost", part, fields, pages):
            watermark = page.watermark or watermark
            begins |= page.begins
            costs += [_cost_line(at, row, by, rates) for at, row in page.rows]
    return ProviderStatement(
        provider="anthropic",
        period=period,
        source=f"Anthropic {generation} reports",
        grain=tuple(by),
        usage=tuple(usage),
        costs=tuple(costs),
        classes=(*TOKEN_CLASSES, "web_searches"),
        watermark=watermark,
        begins=frozenset(begins),
    )


def dollars(cents: object) -> Decimal:
    """US dollars from an amount in (fractional) cents."""
    return EXACT.divide(Decimal(str(cents)), _CENTS)


def token_counts(row: Mapping[str, Any]) -> dict[str, int]:
    """Disjoint counts of a usage row: ``uncached_input_tokens`` excludes what was read from or written to a cache."""
    created: dict[str, Any] = row.get("cache_creation") or {}
    tools: dict[str, Any] = row.get("server_tool_use") or {}
    counts: dict[str, Any] = {
        "input": row.get("uncached_input_tokens") or 0,
        "cache_read": row.get("cache_read_input_tokens") or 0,
        "cache_write": sum(int(count or 0) for count in created.values()),
        "output": row.get("output_tokens") or 0,
        "web_searches": tools.get("web_search_requests") or 0,
    }
    return {name: int(count) for name, count in counts.items() if count}


def _cost_line(at: datetime, row: Mapping[str, Any], by: Sequence[str], rates: Mapping[str, Decimal]) -> CostLine:
    item = _item(row)
    where = f"Anthropic's costs of {at.date()}"
    amount = in_dollars(dollars(row["amount"]), row.get("currency"), rates, where=where)
    told = " ".join(str(row.get(name) or "") for name in ("cost_type", "token_type", "description"))
    kind = "usage" if row.get("cost_type") in _TRAFFIC else kind_of_cost(told, amount, model=row.get("model"))
    return CostLine(_bucket(at, row, by), item, amount, kind)


def _item(row: Mapping[str, Any]) -> str:
    return str(row.get("token_type") or row.get("cost_type") or row.get("description") or "")


def _bucket(at: datetime, row: Mapping[str, Any], by: Sequence[str]) -> Bucket:
    told = {name: row.get(_GROUP_BY[name]) for name in by}
    if "service_tier" in told:
        told["service_tier"] = tier_name(told["service_tier"])
    return Bucket(at.date(), **told)


def _parts(period: Period) -> Iterator[tuple[datetime, datetime]]:
    """Stretches that one request may span; days to come are not asked for."""
    start, end = period.start, min(period.end, floor(utcnow(), "day").end)
    if start >= end:  # another clock: let the provider say what it has
        end = period.end
    while start < end:
        stop = min(start + _LONGEST, end)
        yield start, stop
        start = stop


class _ReportPage(NamedTuple):
    """A page's rows with their day, when its days begin, and until when the report is complete."""

    rows: list[tuple[datetime, dict[str, Any]]]
    begins: set[time]
    watermark: datetime | None = None


def _analytics(
    client: Any, report: str, part: tuple[datetime, datetime], fields: Sequence[str], pages: ReportPages
) -> Iterator[_ReportPage]:
    start, end = part
    group_by = [*fields, *(["cost_type", "token_type"] if report == "cost" else [])]
    given: dict[str, Any] = {
        "starting_at": start.isoformat(),
        "ending_at": end.isoformat(),
        "group_by": group_by,
        "time_bucket_width": "1d",
        "limit": _ITEMS,
    }
    method = getattr(client.beta.organization.analytics, report).list
    token: str | None = None
    seen: set[str] = set()
    while True:
        asked = {**given, **({"page": token} if token else {})}
        page = pages.get(f"anthropic analytics {report}", asked, lambda asked=asked: method(**asked))  # type: ignore[misc]
        refreshed = page.get("data_refreshed_at")
        rows = [(_instant(item["starting_at"]), {**item["group"], **item[report]}) for item in page["data"]]
        yield _ReportPage(rows, _begins(page["data"]), None if refreshed is None else _instant(refreshed))
        token = next_token(page, seen, f"anthropic analytics {report}")
        if token is None:
            return


def _classic(
    client: Any, report: str, part: tuple[datetime, datetime], fields: Sequence[str], pages: ReportPages
) -> Iterator[_ReportPage]:
    start, end = part
    path = "usage_report/messages" if report == "usage" else "cost_report"
    given: dict[str, Any] = {
        "starting_at": _zulu(start),
        "ending_at": _zulu(end),
        "bucket_width": "1d",
        "limit": _BUCKETS,
        "group_by[]": list(fields)
        if report == "usage"
        else ["description", *(name for name in fields if name == "workspace_id")],
    }
    token: str | None = None
    seen: set[str] = set()
    while True:
        asked = {**given, **({"page": token} if token else {})}
        url = f"{_PATH}/{path}?{urlencode(asked, doseq=True)}"
        page = pages.get(f"anthropic {path}", asked, lambda url=url: client.get(url, cast_to=object))  # type: ignore[misc]
        rows = [(_instant(day["starting_at"]), row) for day in page["data"] for row in day["results"]]
        yield _ReportPage(rows, _begins(page["data"]))
        token = next_token(page, seen, f"anthropic {path}")
        if token is None:
            return


def _begins(buckets: Iterable[Mapping[str, Any]]) -> set[time]:
    spans = ((one["starting_at"], one.get("ending_at")) for one in buckets)
    found = (day_begins(_instant(start), end and _instant(end)) for start, end in spans)
    return {each for each in found if each is not None}


def _zulu(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _instant(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
