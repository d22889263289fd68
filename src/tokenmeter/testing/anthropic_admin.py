"""Anthropic's usage and cost reports, from the provider's own books. Amounts are strings of fractional CENTS.

Two generations are served: ``organizations/analytics`` (typed in the SDK from 2.x) and the older
``organizations/usage_report/messages`` and ``organizations/cost_report``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tokenmeter.dimensions import CACHE_READ_METERS
from tokenmeter.money import add, multiply
from tokenmeter.testing import truth
from tokenmeter.testing.context import Context, RefusalError, Served
from tokenmeter.testing.truth import Cost, Row, Span
from tokenmeter.testing.wire import JSON, json_reply
from tokenmeter.usage import Usage

_WIDTHS = {"1m": timedelta(minutes=1), "1h": timedelta(hours=1), "1d": timedelta(days=1)}
_USUAL_ITEMS = 100
_USUAL_BUCKETS = 7
_INSTANT = timedelta(microseconds=1)  # what happens now is still reported
_LONG_CONTEXT = 200_000
_CENTS = 100
_TOKEN_TYPES = {
    "input": "uncached_input_tokens",
    "cache_read": "cache_read_input_tokens",
    "cache_write_5m": "cache_creation.ephemeral_5m_input_tokens",
    "cache_write_1h": "cache_creation.ephemeral_1h_input_tokens",
    "output": "output_tokens",
}


def analytics_usage(context: Context) -> Served:
    """``GET /v1/organizations/analytics/usage``: an item for each bucket and group."""
    fields, rows = truth.list_param(context.request, "group_by"), _rows(context)
    items: list[JSON] = []
    for span in _spans(context, "time_bucket_width", None):
        inside = [row for row in rows if span.start <= row.truth.at < span.end]
        for group, used, requests in truth.grouped(inside, _key(fields)):
            metrics = {**_counts(used), "total_tokens": used.total_tokens, "requests": requests}
            items.append({**_stamped(span), "group": dict(zip(fields, group, strict=True)), "usage": metrics})
    return _analytics_page(context, items)


def analytics_cost(context: Context) -> Served:
    """``GET /v1/organizations/analytics/cost``."""
    fields = truth.list_param(context.request, "group_by")
    items: list[JSON] = []
    found = list(truth.costs(_rows(context), context.reports))
    for span in _spans(context, "time_bucket_width", None):
        inside = [cost for cost in found if span.start <= cost.row.truth.at < span.end]
        for group, dollars in _summed(inside, fields):
            amount = _cents(context, dollars)
            cost = {"amount": amount, "list_amount": amount, "currency": "USD"}
            items.append({**_stamped(span), "group": dict(zip(fields, group, strict=True)), "cost": cost})
    return _analytics_page(context, items)


def _analytics_page(context: Context, items: list[JSON]) -> Served:
    shown, next_page = truth.page(items, context.request, usual=_USUAL_ITEMS)
    refreshed = (context.now - context.reports.delay).isoformat()
    body = {"data": shown, "has_more": next_page is not None, "next_page": next_page, "data_refreshed_at": refreshed}
    return Served(reply=json_reply(body))


def usage_report(context: Context) -> Served:
    """``GET /v1/organizations/usage_report/messages``."""
    fields, rows = truth.list_param(context.request, "group_by"), _rows(context)
    unasked = dict.fromkeys(("api_key_id", "workspace_id", "model", "service_tier", "context_window", "inference_geo"))

    def results(span: Span) -> list[JSON]:
        inside = [row for row in rows if span.start <= row.truth.at < span.end]
        return [
            {**_counts(used), **unasked, **dict(zip(fields, group, strict=True))}
            for group, used, _ in truth.grouped(inside, _key(fields))
        ]

    return _bucket_page(context, results)


def cost_report(context: Context) -> Served:
    """``GET /v1/organizations/cost_report``: daily; with ``description`` a line for each model and kind of token."""
    asked = truth.list_param(context.request, "group_by")
    told = ["model", "cost_type", "token_type", "service_tier", "context_window", "inference_geo"]
    fields = told if "description" in asked else []
    found = list(truth.costs(_rows(context), context.reports))

    def results(span: Span) -> list[JSON]:
        inside = [cost for cost in found if span.start <= cost.row.truth.at < span.end]
        return [_cost_line(_cents(context, dollars), fields, group) for group, dollars in _summed(inside, fields)]

    return _bucket_page(context, results)


def _cost_line(amount: str, fields: list[str], group: tuple[Any, ...]) -> JSON:
    named = dict(zip(fields, group, strict=True))
    description = f"{named['model']} Usage - {named['token_type'] or named['cost_type']}" if named else None
    unasked = dict.fromkeys(("model", "cost_type", "token_type", "service_tier", "context_window", "inference_geo"))
    return {"currency": "USD", "amount": amount, "workspace_id": None, "description": description, **unasked, **named}


def _bucket_page(context: Context, results: Callable[[Span], list[JSON]]) -> Served:
    buckets = _spans(context, "bucket_width", "1d")
    shown, next_page = truth.page(buckets, context.request, usual=_USUAL_BUCKETS)
    data = [{**_stamped(span), "results": results(span)} for span in shown]
    return Served(reply=json_reply({"data": data, "has_more": next_page is not None, "next_page": next_page}))


# -- what both generations share


def _rows(context: Context) -> list[Row]:
    rows = truth.rows(context.books(), context.reports, provider="anthropic", now=context.now)
    keys = set(truth.list_param(context.request, "api_key_ids"))
    models = set(truth.list_param(context.request, "models"))
    return [
        row for row in rows if (not keys or row.truth.api_key_id in keys) and (not models or row.part.model in models)
    ]


def _spans(context: Context, width_name: str, usual: str | None) -> list[Span]:
    """The buckets asked for; without a width, one over the whole range."""
    query = context.request.query
    if "starting_at" not in query:
        raise RefusalError(400, "starting_at: Field required")
    start = _instant(query["starting_at"][0])
    end = _instant(query["ending_at"][0]) if query.get("ending_at") else context.now + _INSTANT
    width = query[width_name][0] if query.get(width_name) else usual
    return [Span(start, end)] if width is None else truth.spans(start, end, _WIDTHS[width])


def _instant(text: str) -> datetime:
    at = datetime.fromisoformat(text.replace(" ", "+"))  # a plus sign that was not escaped
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _stamped(span: Span) -> JSON:
    return {"starting_at": span.start.isoformat(), "ending_at": span.end.isoformat()}


def _key(fields: list[str]) -> Callable[[Row], tuple[Any, ...]]:
    return lambda row: tuple(_field(row, name) for name in fields)


def _field(row: Row, name: str) -> Any:  # noqa: PLR0911 - a line for each field
    match name:
        case "model":
            return row.part.model
        case "api_key_id":
            return row.truth.api_key_id
        case "service_tier":
            return row.part.service_tier
        case "speed":
            return row.part.speed or "standard"
        case "inference_geo":
            return row.part.geo or "global"
        case "context_window":
            return "200k-1M" if (row.part.prompt_tokens or 0) > _LONG_CONTEXT else "0-200k"
        case _:
            return None  # workspaces, actors and products are unknown to this provider


def _summed(found: Iterable[Cost], fields: list[str]) -> list[tuple[tuple[Any, ...], Decimal]]:
    sums: dict[tuple[Any, ...], Decimal] = {}
    for cost in found:
        group = tuple(_cost_field(cost, name) for name in fields)
        sums[group] = add(sums.get(group, Decimal(0)), cost.dollars)
    return [(group, sums[group]) for group in sorted(sums, key=repr)]


def _cost_field(cost: Cost, name: str) -> Any:
    match name:
        case "cost_type":
            return "web_search" if cost.sku_meter == "web_searches" else "tokens"
        case "token_type":
            return _TOKEN_TYPES.get(cost.sku_meter)
        case _:
            return _field(cost.row, name)


def _cents(context: Context, dollars: Decimal) -> str:
    return f"{multiply(context.reports.amount(dollars), _CENTS):f}"


def _counts(used: Usage) -> JSON:
    return {
        "uncached_input_tokens": int(used["input"]),
        "cache_read_input_tokens": sum(int(used[meter]) for meter in CACHE_READ_METERS),
        "cache_creation": {
            "ephemeral_5m_input_tokens": int(used["cache_write_5m"]),
            "ephemeral_1h_input_tokens": int(used["cache_write_1h"]),
        },
        "output_tokens": used.output_tokens,
        "server_tool_use": {"web_search_requests": int(used["web_searches"])},
    }
