"""Anthropic's books: usage (input EXCLUDES what was cached) and costs (decimal text of fractional CENTS).

Two generations: the organization's analytics (typed in the SDK from 2.x, complete however many groups there are, with a
watermark), and the older ``usage_report/messages`` and ``cost_report``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from importlib import import_module
from itertools import chain
from typing import Any
from urllib.parse import urlencode

from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import utcnow
from tokenmeter.money import EXACT
from tokenmeter.periods import Period, floor
from tokenmeter.reconciliation.paging import ReportPages, ReportRows, amount_of, count_in
from tokenmeter.reconciliation.statement import (
    TOKEN_CLASSES,
    Bucket,
    CostLine,
    ExchangeRates,
    ProviderStatement,
    UsageLine,
    day_begins,
    kind_of_cost,
    tier_name,
)
from tokenmeter.values import dataclass

#: Generation -> what both of its reports can be split by. The older cost report knows no keys.
_GRAINS = {
    "analytics": ("model", "api_key", "project", "service_tier"),
    "classic": ("model", "project", "service_tier"),
}
_KEY_BEGIN = "sk-ant-admin"
_TRAFFIC = frozenset({"tokens", "web_search", "code_execution"})
_CENTS = Decimal(100)
_GROUP_BY = {"model": "model", "api_key": "api_key_id", "project": "workspace_id", "service_tier": "service_tier"}
_LONGEST = timedelta(days=31)
_ITEMS, _BUCKETS = 1000, 31
_PATH = "/v1/organizations"
#: Its console's exports, most telling first: what (`reconciliation.exports` says) -> its headings.
EXPORTS: tuple[dict[str, str], ...] = (
    {
        "batch": "usage_type",
        "day": "usage_date_utc",
        "model": "model_version",
        "api_key": "?api_key",
        "project": "?workspace",
        "service_tier": "?usage_type",
        "input": "usage_input_tokens_no_cache|usage_input_tokens_uncached|uncached_input_tokens",
        "cache_read": "?usage_input_tokens_cache_read|usage_input_tokens_cached|cache_read_input_tokens",
        "cache_write": "?usage_input_tokens_cache_write ?usage_input_tokens_cache_write_5m "
        "?usage_input_tokens_cache_write_1h",
        "output": "usage_output_tokens|output_tokens",
        "web_searches": "?web_search_count",
    },
    {
        "quantum": "0.01",
        "day": "usage_date_utc",
        "model": "model",
        "api_key": "?api_key",
        "project": "?workspace",
        "item": "?cost_type ?token_type",
        "cost": "cost_usd|cost_in_usd|amount_usd",
    },
)


def make_client(admin_key: str) -> Any:
    """A client of the SDK that may ask for reports."""
    return import_module("tokenmeter.anthropic").Anthropic(api_key=admin_key)


def fetch(
    client: Any,
    period: Period,
    *,
    by: Sequence[str],
    pages: ReportPages,
    reports: str | None,
    rates: ExchangeRates,
    models: Collection[str] = (),
) -> ProviderStatement:
    """Read the organization's usage and costs.

    Args:
        client: An ``anthropic.Anthropic`` with an admin key.
        period: In whole UTC days.
        by: Names to split by; those outside of the generation's grain are left out.
        pages: Fetches.
        reports: ``"analytics"`` or ``"classic"``; None: analytics where the SDK has it.
        rates: What other currencies are converted by.
        models: Passed over: costs say which model they are for.

    Raises:
        ConfigurationError: there are no such `reports`.
    """
    del models
    usual = "analytics" if hasattr(getattr(client, "beta", None), "organization") else "classic"
    generation = reports or usual
    if generation not in _GRAINS:
        raise ConfigurationError(f"reports= is 'analytics' or 'classic', not {reports!r}.")
    by = [name for name in by if name in _GRAINS[generation]]
    fields = [_GROUP_BY[name] for name in by]
    seen = _Seen(set())
    rows = ReportRows(period)

    def of(report: str) -> Iterator[tuple[date, dict[str, Any]]]:
        lines = _analytics if generation == "analytics" else _classic
        parts = (lines(client, report, part, fields, pages=pages, seen=seen) for part in _parts(period))
        return rows.of(chain.from_iterable(parts))

    usage = [UsageLine(_bucket(day, row, by), token_counts(row), _requests(row)) for day, row in of("usage")]
    costs = [_cost_line(day, row, by, rates) for day, row in of("cost")]
    return ProviderStatement(
        provider="anthropic",
        period=period,
        source=f"Anthropic {generation} reports",
        grain=tuple(by),
        usage=tuple(usage),
        costs=tuple(costs),
        classes=(*TOKEN_CLASSES, "web_searches"),
        watermark=seen.watermark,
        begins=frozenset(seen.begins),
        notes=rows.notes,
    )


def dollars(cents: object, where: str = "Anthropic's costs") -> Decimal:
    """US dollars from an amount in (fractional) cents."""
    return EXACT.divide(amount_of(cents, where), _CENTS)


def _requests(row: Mapping[str, Any]) -> int | None:
    return None if row.get("requests") is None else count_in(row, "requests")


def model_id(name: str) -> str:
    """A model's id from the name that the console shows; a name that is an id already stays.

    ``Claude 3.5 Sonnet 2024-10-22`` is ``claude-3-5-sonnet-20241022``, ``Claude Haiku 4.5`` ``claude-haiku-4-5``.
    """
    if " " not in name.strip():
        return name.strip()
    words = re.sub(r"(\d{4})-(\d{2})-(\d{2})", r"\1\2\3", name.strip().lower())
    return re.sub(r"[\s.()]+", "-", words).strip("-")


def token_counts(row: Mapping[str, Any]) -> dict[str, int]:
    """Disjoint counts of a usage row: ``uncached_input_tokens`` excludes what was read from or written to a cache."""
    created: dict[str, Any] = row.get("cache_creation") or {}
    tools: dict[str, Any] = row.get("server_tool_use") or {}
    counts = {
        "input": count_in(row, "uncached_input_tokens"),
        "cache_read": count_in(row, "cache_read_input_tokens"),
        "cache_write": sum(count_in(created, name) for name in created),
        "output": count_in(row, "output_tokens"),
        "web_searches": count_in(tools, "web_search_requests"),
    }
    return {name: count for name, count in counts.items() if count}


def _cost_line(day: date, row: Mapping[str, Any], by: Sequence[str], rates: ExchangeRates) -> CostLine:
    item = str(row.get("token_type") or row.get("cost_type") or row.get("description") or "")
    where = f"Anthropic's costs of {day}"
    amount = rates.convert(dollars(row["amount"], f"{where}, {item}"), row.get("currency"), where=where)
    told = " ".join(str(row.get(name) or "") for name in ("cost_type", "token_type", "description"))
    kind = "usage" if row.get("cost_type") in _TRAFFIC else kind_of_cost(told, amount, model=row.get("model"))
    return CostLine(_bucket(day, row, by), item, amount, kind)


def _bucket(day: date, row: Mapping[str, Any], by: Sequence[str]) -> Bucket:
    told = {name: row.get(_GROUP_BY[name]) for name in by}
    if "service_tier" in told:
        told["service_tier"] = tier_name(told["service_tier"])
    return Bucket(day, **told)


def _parts(period: Period) -> Iterator[tuple[datetime, datetime]]:
    """Stretches that one request may span; days to come are not asked for."""
    start, end = period.start, min(period.end, floor(utcnow(), "day").end)
    if start >= end:  # another clock: let the provider say what it has
        end = period.end
    while start < end:
        stop = min(start + _LONGEST, end)
        yield start, stop
        start = stop


@dataclass(slots=True)
class _Seen:
    """What reports say beside their rows: when their days begin, and until when they are complete."""

    begins: set[time]
    watermark: datetime | None = None


_Rows = list[tuple[date, dict[str, Any]]]


def _analytics(
    client: Any, report: str, part: tuple[datetime, datetime], fields: Sequence[str], *, pages: ReportPages, seen: _Seen
) -> Iterator[_Rows]:
    start, end = part
    given: dict[str, Any] = {
        "starting_at": start.isoformat(),
        "ending_at": end.isoformat(),
        "group_by": [*fields, *(["cost_type", "token_type"] if report == "cost" else [])],
        "time_bucket_width": "1d",
        "limit": _ITEMS,
    }
    method = getattr(client.beta.organization.analytics, report).list
    for page in pages.walk(f"anthropic analytics {report}", given, lambda asked: method(**asked), key_begin=_KEY_BEGIN):
        seen.begins |= _begins(page["data"])
        if (refreshed := page.get("data_refreshed_at")) is not None:
            seen.watermark = _instant(refreshed)
        yield [(_instant(item["starting_at"]).date(), {**item["group"], **item[report]}) for item in page["data"]]


def _classic(
    client: Any, report: str, part: tuple[datetime, datetime], fields: Sequence[str], *, pages: ReportPages, seen: _Seen
) -> Iterator[_Rows]:
    start, end = part
    path = "usage_report/messages" if report == "usage" else "cost_report"
    costs = ["description", *(name for name in fields if name == "workspace_id")]
    given: dict[str, Any] = {
        "starting_at": _zulu(start),
        "ending_at": _zulu(end),
        "bucket_width": "1d",
        "limit": _BUCKETS,
        "group_by[]": list(fields) if report == "usage" else costs,
    }

    def ask(asked: Mapping[str, Any]) -> Any:
        return client.get(f"{_PATH}/{path}?{urlencode(asked, doseq=True)}", cast_to=object)

    for page in pages.walk(f"anthropic {path}", given, ask, key_begin=_KEY_BEGIN):
        seen.begins |= _begins(page["data"])
        yield [(_instant(day["starting_at"]).date(), row) for day in page["data"] for row in day["results"] or ()]


def _begins(buckets: Iterable[Mapping[str, Any]]) -> set[time]:
    spans = ((one["starting_at"], one.get("ending_at")) for one in buckets)
    found = (day_begins(_instant(start), end and _instant(end)) for start, end in spans)
    return {each for each in found if each is not None}


def _zulu(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _instant(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
