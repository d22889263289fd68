"""OpenAI's organization usage and costs, from the provider's own books. Costs are daily, in float dollars."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tokenmeter.dimensions import CACHE_READ_METERS, CACHE_WRITE_METERS
from tokenmeter.money import add
from tokenmeter.testing import truth
from tokenmeter.testing.context import Context, RefusalError, Served
from tokenmeter.testing.truth import Row, Span
from tokenmeter.testing.wire import JSON, json_reply
from tokenmeter.usage import Usage

_WIDTHS = {"1m": timedelta(minutes=1), "1h": timedelta(hours=1), "1d": timedelta(days=1)}
_USUAL_BUCKETS = 7
_INSTANT = timedelta(microseconds=1)  # what happens now is still reported
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


def usage(context: Context) -> Served:
    """``GET /organization/usage/{kind}``."""
    kind = context.params[0]
    if kind not in _KINDS:
        raise RefusalError(404, f"Unknown usage report: {kind}.")
    rows = [row for row in _rows(context) if (row.truth.endpoint or "").startswith(_KINDS[kind])]
    if kind in _TOOL_METERS:
        rows = [row for row in rows if row.part.usage[_TOOL_METERS[kind]]]
    fields = truth.list_param(context.request, "group_by")

    def results(span: Span) -> list[JSON]:
        inside = [row for row in rows if span.start <= row.truth.at < span.end]
        groups = truth.grouped(inside, lambda row: tuple(_field(row, name) for name in fields))
        return [
            _result(kind, used, requests) | dict(zip(fields, group, strict=True)) for group, used, requests in groups
        ]

    return _buckets(context, results)


def costs(context: Context) -> Served:
    """``GET /organization/costs``."""
    fields = truth.list_param(context.request, "group_by")
    found = list(truth.costs(_rows(context), context.reports))

    def results(span: Span) -> list[JSON]:
        sums: dict[tuple[Any, ...], tuple[Decimal, Decimal]] = {}
        for cost in found:
            if span.start <= cost.row.truth.at < span.end:
                group = tuple(_cost_field(cost, name) for name in fields)
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


def _rows(context: Context) -> list[Row]:
    rows = truth.rows(context.books(), context.reports, provider="openai", now=context.now)
    wanted = set(truth.list_param(context.request, "api_key_ids"))
    models = set(truth.list_param(context.request, "models"))
    return [
        row
        for row in rows
        if (not wanted or row.truth.api_key_id in wanted) and (not models or row.part.model in models)
    ]


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


def _field(row: Row, name: str) -> Any:
    match name:
        case "model":
            return row.part.model
        case "api_key_id":
            return row.truth.api_key_id
        case "service_tier":
            return row.part.service_tier
        case "batch":
            return row.part.processing == "batch"
        case _:
            return None  # projects and users are unknown to this provider


def _cost_field(cost: truth.Cost, name: str) -> Any:
    if name == "line_item":
        sku_meter = _LINE_ITEMS.get(cost.sku_meter, cost.sku_meter.replace("_", " "))
        return f"{cost.row.part.model}, {sku_meter}"
    return _field(cost.row, name)


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
