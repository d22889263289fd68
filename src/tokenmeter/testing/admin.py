"""The organization's usage and cost reports of OpenAI and Anthropic, from the provider's own books.

OpenAI's costs are daily, in float dollars; Anthropic's are strings of fractional CENTS. Both of Anthropic's generations
are served: ``organizations/analytics`` (typed in the SDK from 2.x), and the older ``organizations/cost_report`` and
``organizations/usage_report/messages``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tokenmeter.dimensions import CACHE_READ_METERS, CACHE_WRITE_METERS
from tokenmeter.money import add, multiply
from tokenmeter.testing import truth
from tokenmeter.testing.context import Context, Provider, RefusalError, Served
from tokenmeter.testing.truth import Cost, Row, Span
from tokenmeter.testing.wire import JSON, json_reply
from tokenmeter.usage import Usage

_WIDTHS = {"1m": timedelta(minutes=1), "1h": timedelta(hours=1), "1d": timedelta(days=1)}
_USUAL_BUCKETS = 7
_INSTANT = timedelta(microseconds=1)  # what happens now is still reported


def _rows(context: Context, provider: Provider) -> list[Row]:
    rows = truth.rows(context.books(), context.reports, provider=provider, now=context.now)
    wanted = set(truth.list_param(context.request, "api_key_ids"))
    models = set(truth.list_param(context.request, "models"))
    return [
        row
        for row in rows
        if (not wanted or row.truth.api_key_id in wanted) and (not models or row.part.model in models)
    ]


def _common_field(row: Row, name: str) -> Any:
    match name:
        case "model":
            return row.part.model
        case "api_key_id":
            return row.truth.api_key_id
        case "service_tier":
            return row.part.service_tier
        case _:
            return None  # projects, workspaces, users, actors and products are unknown to this provider


# -- OpenAI

#: Which endpoints each report covers, by the beginning of their name.
_KINDS = {
    "completions": ("chat.", "completions", "responses", "realtime"),
    "embeddings": ("embeddings",),
    "moderations": ("moderations",),
    "images": ("images.",),
    "audio_speeches": ("audio.speech",),
    "audio_transcriptions": ("audio.tran",),
    "decisions": ("decisions",),
    "web_search_calls": ("responses", "chat."),
    "file_search_calls": ("responses",),
    "code_interpreter_sessions": ("responses",),
    "vector_stores": (),
}
_TOOL_METERS = {
    "web_search_calls": "web_searches",
    "file_search_calls": "file_searches",
    "code_interpreter_sessions": "container_sessions",
}
#: How a cost's ``line_item`` names a meter.
_LINE_ITEMS = {"cache_read": "cached input", "input_audio": "audio input", "output_audio": "audio output"}


def openai_usage(context: Context) -> Served:
    """``GET /organization/usage/{kind}``."""
    kind = context.params[0]
    if kind not in _KINDS:
        raise RefusalError(404, f"Unknown usage report: {kind}.")
    rows = [row for row in _rows(context, "openai") if (row.truth.endpoint or "").startswith(_KINDS[kind])]
    if kind in _TOOL_METERS:
        rows = [row for row in rows if row.part.usage[_TOOL_METERS[kind]]]
    fields = truth.list_param(context.request, "group_by")

    def results(span: Span) -> list[JSON]:
        inside = [row for row in rows if span.start <= row.truth.at < span.end]
        groups = truth.grouped(inside, lambda row: tuple(_openai_field(row, name) for name in fields))
        return [
            _result(kind, used, requests) | dict(zip(fields, group, strict=True)) for group, used, requests in groups
        ]

    return _buckets(context, results)


def openai_costs(context: Context) -> Served:
    """``GET /organization/costs``."""
    fields = truth.list_param(context.request, "group_by")
    found = list(truth.costs(_rows(context, "openai"), context.reports))

    def results(span: Span) -> list[JSON]:
        sums: dict[tuple[Any, ...], tuple[Decimal, Decimal]] = {}
        for cost in found:
            if span.start <= cost.row.truth.at < span.end:
                group = tuple(_openai_cost_field(cost, name) for name in fields)
                dollars, quantity = sums.get(group, (Decimal(0), Decimal(0)))
                sums[group] = add(dollars, cost.dollars), add(quantity, Decimal(cost.quantity))
        return [_cost_result(context, fields, group, *sums[group]) for group in sorted(sums, key=repr)]

    return _buckets(context, results)


def _cost_result(
    context: Context, fields: list[str], group: tuple[Any, ...], dollars: Decimal, quantity: Decimal
) -> JSON:
    result: JSON = {
        "object": "organization.costs.result",
        "amount": {"value": float(context.reports.amount(dollars)), "currency": "usd"},
        "line_item": None,
        "project_id": None,
        **dict(zip(fields, group, strict=True)),
    }
    if "line_item" in fields:
        result["quantity"] = float(quantity)
    return result


def _buckets(context: Context, results: Any) -> Served:
    query = context.request.query
    if "start_time" not in query:
        raise RefusalError(400, "Missing required parameter: 'start_time'.", param="start_time")
    width = _WIDTHS[(query.get("bucket_width") or ["1d"])[0]]
    start = datetime.fromtimestamp(int(query["start_time"][0]), UTC)
    end = datetime.fromtimestamp(int(query["end_time"][0]), UTC) if "end_time" in query else context.now + _INSTANT
    shown, next_page = truth.page(truth.spans(start, end, width), context.request, usual=_USUAL_BUCKETS)
    data = [
        {
            "object": "bucket",
            "start_time": int(span.start.timestamp()),
            "end_time": int(span.end.timestamp()),
            "results": results(span),
        }
        for span in shown
    ]
    body = {"object": "page", "data": data, "has_more": next_page is not None, "next_page": next_page}
    return Served(reply=json_reply(body))


def _openai_field(row: Row, name: str) -> Any:
    return row.part.processing == "batch" if name == "batch" else _common_field(row, name)


def _openai_cost_field(cost: Cost, name: str) -> Any:
    if name == "line_item":
        sku_meter = _LINE_ITEMS.get(cost.sku_meter, cost.sku_meter.replace("_", " "))
        return f"{cost.row.part.model}, {sku_meter}"
    return _openai_field(cost.row, name)


def _result(kind: str, used: Usage, requests: int) -> JSON:  # noqa: PLR0911 - a line for each report
    result: JSON = {"object": f"organization.usage.{kind}.result", "num_model_requests": requests}
    match kind:
        case "completions" | "decisions":
            return result | _token_counts(used)
        case "embeddings" | "moderations":
            return result | {"input_tokens": used.input_tokens}
        case "images":
            return result | {"images": int(used["images"]) or requests}
        case "audio_speeches":
            return result | {"characters": int(used["characters"])}
        case "audio_transcriptions":
            return result | {"seconds": int(used["seconds_audio"])}
        case "web_search_calls" | "file_search_calls":
            return result | {"num_requests": int(used[_TOOL_METERS[kind]])}
        case _:
            return result | {"num_sessions": int(used["container_sessions"])}


def _token_counts(used: Usage) -> JSON:
    """Input includes what was cached and written, and equals uncached + cached + written."""
    cached = sum(int(used[meter]) for meter in CACHE_READ_METERS)
    written = sum(int(used[meter]) for meter in CACHE_WRITE_METERS)
    return {
        "input_tokens": used.input_tokens,
        "input_uncached_tokens": used.input_tokens - cached - written,
        "input_cached_tokens": cached,
        "input_cache_write_tokens": written,
        "input_cache_write_30m_tokens": int(used["cache_write_30m"]),
        "input_cache_write_12h_tokens": int(used["cache_write_12h"]),
        "input_text_tokens": int(used["input"]),
        "input_audio_tokens": int(used["input_audio"]),
        "input_image_tokens": int(used["input_image"]),
        "output_tokens": used.output_tokens,
        "output_text_tokens": int(used["output"]),
        "output_audio_tokens": int(used["output_audio"]),
        "output_image_tokens": int(used["output_image"]),
    }


# -- Anthropic

_USUAL_ITEMS = 100
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
    fields, rows = truth.list_param(context.request, "group_by"), _rows(context, "anthropic")
    items: list[JSON] = []
    for span in _spans(context, "time_bucket_width", None):
        inside = [row for row in rows if span.start <= row.truth.at < span.end]
        for group, used, requests in truth.grouped(inside, _key(fields)):
            metrics = {**_sum_tokens(used), "total_tokens": used.total_tokens, "requests": requests}
            items.append({**_stamped(span), "group": dict(zip(fields, group, strict=True)), "usage": metrics})
    return _analytics_page(context, items)


def analytics_cost(context: Context) -> Served:
    """``GET /v1/organizations/analytics/cost``."""
    fields = truth.list_param(context.request, "group_by")
    items: list[JSON] = []
    found = list(truth.costs(_rows(context, "anthropic"), context.reports))
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
    fields, rows = truth.list_param(context.request, "group_by"), _rows(context, "anthropic")
    unasked = dict.fromkeys(("api_key_id", "workspace_id", "model", "service_tier", "context_window", "inference_geo"))

    def results(span: Span) -> list[JSON]:
        inside = [row for row in rows if span.start <= row.truth.at < span.end]
        return [
            {**_sum_tokens(used), **unasked, **dict(zip(fields, group, strict=True))}
            for group, used, _ in truth.grouped(inside, _key(fields))
        ]

    return _bucket_page(context, results)


def cost_report(context: Context) -> Served:
    """``GET /v1/organizations/cost_report``: daily; with ``description`` a line for each model and kind of token."""
    asked = truth.list_param(context.request, "group_by")
    told = ["model", "cost_type", "token_type", "service_tier", "context_window", "inference_geo"]
    fields = told if "description" in asked else []
    found = list(truth.costs(_rows(context, "anthropic"), context.reports))

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
    return lambda row: tuple(_anthropic_field(row, name) for name in fields)


def _anthropic_field(row: Row, name: str) -> Any:
    match name:
        case "speed":
            return row.part.speed or "standard"
        case "inference_geo":
            return row.part.geo or "global"
        case "context_window":
            return "200k-1M" if (row.part.prompt_tokens or 0) > _LONG_CONTEXT else "0-200k"
        case _:
            return _common_field(row, name)


def _summed(found: Iterable[Cost], fields: list[str]) -> list[tuple[tuple[Any, ...], Decimal]]:
    sums: dict[tuple[Any, ...], Decimal] = {}
    for cost in found:
        group = tuple(_anthropic_cost_field(cost, name) for name in fields)
        sums[group] = add(sums.get(group, Decimal(0)), cost.dollars)
    return [(group, sums[group]) for group in sorted(sums, key=repr)]


def _anthropic_cost_field(cost: Cost, name: str) -> Any:
    match name:
        case "cost_type":
            return "web_search" if cost.sku_meter == "web_searches" else "tokens"
        case "token_type":
            return _TOKEN_TYPES.get(cost.sku_meter)
        case _:
            return _anthropic_field(cost.row, name)


def _cents(context: Context, dollars: Decimal) -> str:
    return f"{multiply(context.reports.amount(dollars), _CENTS):f}"


def _sum_tokens(used: Usage) -> JSON:
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
