"""OpenAI's books: organization usage (daily, input INCLUDES what was cached) and costs (daily, float dollars)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from importlib import import_module
from typing import Any
from urllib.parse import urlencode

from tokenmeter.periods import Period
from tokenmeter.reconciliation.paging import ReportPages, ReportRows, amount_of, count_in
from tokenmeter.reconciliation.statement import (
    Bucket,
    CostLine,
    ExchangeRates,
    ProviderStatement,
    UsageLine,
    day_begins,
    kind_of_cost,
    names_model,
)

#: Ends of line items that only what a model did has.
_OF_TOKENS = re.compile(r"\b(input|output|cached|tokens?)\b")
#: What costs and usage can both be split by. Costs know no service tier.
GRAIN = ("model", "api_key", "project")
_KEY_BEGIN = "sk-admin-"
#: Reports that count tokens. The others count images, seconds or calls, which only money can be compared with.
_COUNTED = ("completions", "embeddings", "moderations")
#: Beginnings of endpoints whose usage the console's exports do not count in tokens.
TOKENLESS = ("images.", "audio.", "videos", "fine_tuning")
_USAGE_BUCKETS, _COST_BUCKETS = 31, 180
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_GROUP_BY = {"model": "model", "api_key": "api_key_id", "project": "project_id"}
#: Its console's exports, most telling first: what (`reconciliation.exports` says) -> its headings.
EXPORTS: tuple[dict[str, str], ...] = (
    {
        "batch": "batch",
        "day": "start_time|start_time_iso",
        "until": "?end_time|end_time_iso",
        "model": "model",
        "api_key": "?api_key_id",
        "project": "?project_id|project_name",
        "project_name": "?project_name",
        "service_tier": "?service_tier",
        "requests": "num_model_requests",
        "input_including_cache": "input_tokens|prompt_tokens",
        "cache_read": "?input_cached_tokens|cached_input_tokens|cached_tokens|input_tokens_cached"
        "|cache_read_input_tokens|input_cache_read_tokens",
        "cache_write": "?input_cache_write_tokens|cache_write_input_tokens|cache_creation_input_tokens",
        "output": "output_tokens|completion_tokens",
    },
    {
        "day": "start_time|start_time_iso",
        "until": "?end_time|end_time_iso",
        "cost": "amount_value|cost_usd|amount_usd",
        "currency": "?amount_currency",
        "item": "?line_item",
        "api_key": "?api_key_id",
        "project": "?project_id|project_name",
        "project_name": "?project_name",
    },
)
#: A month without use: its export has these columns only.
EMPTY_MONTH = frozenset({"start_time", "end_time", "start_time_iso", "end_time_iso"})


def make_client(admin_key: str) -> Any:
    """A client of the SDK that may ask for reports."""
    made = import_module("tokenmeter.openai").OpenAI
    try:
        return made(admin_api_key=admin_key)
    except TypeError:  # an SDK from before admin keys
        return made(api_key=admin_key)


def fetch(
    client: Any,
    period: Period,
    *,
    by: Sequence[str],
    pages: ReportPages,
    rates: ExchangeRates,
    reports: str | None = None,
    models: Collection[str] = (),
) -> ProviderStatement:
    """Read the organization's usage and costs.

    Args:
        client: An ``openai.OpenAI`` with an admin key.
        period: In whole UTC days.
        by: Names to split by; those outside of `GRAIN` are left out.
        pages: Fetches.
        rates: What other currencies are converted by.
        reports: Passed over: there is one kind.
        models: Names that are known to be models.
    """
    del reports
    by = [name for name in by if name in GRAIN]
    asked = {"start_time": int(period.start.timestamp()), "end_time": int(period.end.timestamp()), "bucket_width": "1d"}
    fields = [_GROUP_BY[name] for name in by]
    usage: list[UsageLine] = []
    begins: set[time] = set()
    rows = ReportRows(period)
    for kind in _COUNTED:
        given = {**asked, "group_by": fields, "limit": _USAGE_BUCKETS}
        for day, row in rows.of(_results(client, f"usage/{kind}", given, pages, begins)):
            told = row.get("num_model_requests")
            requests = None if told is None else count_in(row, "num_model_requests")
            usage.append(UsageLine(_bucket(day, row, by), token_counts(row), requests))
    items = ["line_item", *(_GROUP_BY[name] for name in by if name != "model")]
    given = {**asked, "group_by": items, "limit": _COST_BUCKETS}
    found = rows.of(_results(client, "costs", given, pages, begins))
    filled = [(day, row) for day, row in found if not _is_empty(row)]
    costs = [_cost_line(day, row, by, rates, models) for day, row in filled]
    return ProviderStatement(
        provider="openai",
        period=period,
        source="OpenAI organization usage and costs",
        grain=tuple(by),
        usage=tuple(usage),
        costs=tuple(costs),
        tokenless=(*TOKENLESS, "decisions"),
        begins=frozenset(begins),
        shown={
            row["project_id"]: row["project_name"]
            for _, row in filled
            if row.get("project_id") and row.get("project_name")
        },
        notes=rows.notes,
    )


def _cost_line(
    day: date, row: Mapping[str, Any], by: Sequence[str], rates: ExchangeRates, models: Collection[str]
) -> CostLine:
    item = str(row.get("line_item") or "")
    model = item_model(item, models)
    told: Mapping[str, Any] = row.get("amount") or {}
    where = f"OpenAI's costs of {day}"
    amount = rates.convert(amount_of(told.get("value"), f"{where}, {item}"), told.get("currency"), where=where)
    return CostLine(_bucket(day, {**row, "model": model}, by), item, amount, kind_of_cost(item, amount, model=model))


def _is_empty(row: Mapping[str, Any]) -> bool:
    """A row that says nothing: a day without use."""
    told: Mapping[str, Any] = row.get("amount") or {}
    return not row.get("line_item") and told.get("value") is None


def _bucket(day: date, row: Mapping[str, Any], by: Sequence[str]) -> Bucket:
    return Bucket(day, **{name: row.get(_GROUP_BY[name]) for name in by})


def token_counts(row: Mapping[str, Any]) -> dict[str, int]:
    """Disjoint counts of a usage result: ``input_tokens`` includes what was cached and what was written to a cache."""
    cached, written = count_in(row, "input_cached_tokens"), count_in(row, "input_cache_write_tokens")
    total = count_in(row, "input_tokens")
    counts = {
        "input": total - cached - written,
        "cache_read": cached,
        "cache_write": written,
        "output": count_in(row, "output_tokens"),
    }
    return {name: count for name, count in counts.items() if count}


def item_model(line_item: str | None, known: Collection[str]) -> str | None:
    """The model that a cost's ``line_item`` (``"gpt-5, cached input"``) names; None for a tool's or other cost.

    Args:
        line_item: What it is for.
        known: Names that are known to be models, see `names_model`.
    """
    model, comma, what = (line_item or "").rpartition(", ")
    if not comma or (" " in model and not model.startswith("ft:") and model not in known):
        return None
    return model if names_model(model, known) or _OF_TOKENS.search(what) else None


def _results(
    client: Any, report: str, parameters: Mapping[str, Any], pages: ReportPages, begins: set[time]
) -> Iterator[Iterator[tuple[date, dict[str, Any]]]]:
    """The rows of each page of a report with their day; when its days begin is added to `begins`."""
    ask = partial(_ask, client, report)
    for page in pages.walk(f"openai {report}", parameters, ask, key_begin=_KEY_BEGIN):
        yield _rows_of(page, begins)


def _rows_of(page: Mapping[str, Any], begins: set[time]) -> Iterator[tuple[date, dict[str, Any]]]:
    for bucket in page["data"]:
        start, end = _instant(bucket["start_time"]), bucket.get("end_time")
        begin = day_begins(start, None if end is None else _instant(end))
        begins |= set() if begin is None else {begin}
        for row in bucket.get("results") or bucket.get("result") or ():
            yield start.date(), row


def _instant(seconds: Any) -> datetime:
    return _EPOCH + timedelta(seconds=int(seconds))


def _ask(client: Any, report: str, parameters: Mapping[str, Any]) -> Any:
    """By the SDK's own method where it has one, else by a plain GET."""
    organization = getattr(getattr(client, "admin", None), "organization", None)
    owner = getattr(organization, "usage", None)
    name = report.removeprefix("usage/")
    method = getattr(organization, "costs", None) or getattr(owner, "costs", None) if name == "costs" else None
    method = method or getattr(owner, name, None)
    if callable(method):
        return method(**parameters)
    query: dict[str, Any] = {f"{key}[]" if isinstance(value, list) else key: value for key, value in parameters.items()}
    return client.get(f"/organization/{report}?{urlencode(query, doseq=True)}", cast_to=object)
