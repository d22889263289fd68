"""Statements from CSV files: the exports of both consoles, known by their headings, or any file with a column map."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Literal

from tokenmeter.errors import ConfigurationError, ReconciliationError
from tokenmeter.money import EXACT
from tokenmeter.periods import Period
from tokenmeter.reconciliation.openai import item_model
from tokenmeter.reconciliation.statement import TOKEN_CLASSES, Bucket, CostLine, ProviderStatement, UsageLine

__all__ = ["COLUMNS", "Columns", "read_files"]

CostUnit = Literal["usd", "cents"]
#: What a column map can name. A list of columns is summed.
COLUMNS = (
    *("day", "model", "api_key", "service_tier", "requests", "item", "cost"),
    *("input", "input_including_cache", "cache_read", "cache_write", "output", "web_searches"),
)
_COUNTS = ("input", "input_including_cache", "cache_read", "cache_write", "output", "web_searches")


@dataclass(frozen=True, slots=True)
class Columns:
    """How to read a file.

    Attributes:
        names: What (`COLUMNS`) -> heading, or several headings to add up. ``input`` is without what was cached,
            ``input_including_cache`` with it.
        cost_unit: ``usd`` or ``cents``.
        provider: Whose export it is known to be; None for a map of the user's.
    """

    names: Mapping[str, tuple[str, ...]]
    cost_unit: CostUnit = "usd"
    provider: str | None = None

    @classmethod
    def parse(cls, columns: Mapping[str, str | Sequence[str]], *, cost_unit: str) -> Columns:
        """A map from what a person writes.

        Raises:
            ConfigurationError: an unknown name or unit, or no day.
        """
        for name in columns:
            if name not in COLUMNS:
                raise ConfigurationError(f"columns: unknown name {name!r}; use {', '.join(COLUMNS)}.")
        if "day" not in columns:
            raise ConfigurationError("columns: 'day' is missing: name the column with the date or time.")
        if "input" in columns and "input_including_cache" in columns:
            raise ConfigurationError("columns: give 'input' or 'input_including_cache', not both.")
        names = {name: (given,) if isinstance(given, str) else tuple(given) for name, given in columns.items()}
        if cost_unit == "usd":
            return cls(names, "usd")
        if cost_unit == "cents":
            return cls(names, "cents")
        raise ConfigurationError(f"cost_unit is 'usd' or 'cents', not {cost_unit!r}.")


def _known(provider: str, **names: str | tuple[str, ...]) -> Columns:
    return Columns({name: (one,) if isinstance(one, str) else one for name, one in names.items()}, "usd", provider)


#: The consoles' exports, most telling first. A heading after ``?`` may be missing.
_EXPORTS: tuple[Columns, ...] = (
    _known(
        "openai",
        day="start_time",
        model="model",
        api_key="?api_key_id",
        service_tier="?service_tier",
        requests="num_model_requests",
        input_including_cache="input_tokens",
        cache_read="input_cached_tokens",
        cache_write="?input_cache_write_tokens",
        output="output_tokens",
    ),
    _known("openai", day="start_time", cost="amount_value", item="line_item", api_key="?api_key_id"),
    _known(
        "anthropic",
        day="usage_date_utc",
        model="model_version",
        api_key="?api_key",
        input="usage_input_tokens_no_cache",
        cache_read="usage_input_tokens_cache_read",
        cache_write=("usage_input_tokens_cache_write_5m", "usage_input_tokens_cache_write_1h"),
        output="usage_output_tokens",
        web_searches="?web_search_count",
    ),
    _known("anthropic", day="usage_date_utc", model="model", api_key="?api_key", item="?token_type", cost="cost_usd"),
)


def read_files(
    paths: Sequence[str | Path],
    period: Period,
    *,
    provider: str,
    by: Sequence[str],
    columns: Mapping[str, str | Sequence[str]] | None = None,
    cost_unit: str = "usd",
) -> ProviderStatement:
    """The statement in one or several CSV files; usage and costs may be in different ones.

    Args:
        paths: The files; separated by comma, semicolon or tab.
        period: Days outside are left out.
        provider: Whose statement it is.
        by: What to split by; what a file does not tell is not split by.
        columns: See `Columns.names`; None = known by the headings.
        cost_unit: Unit of the cost column of a map.

    Raises:
        ConfigurationError: the map does not fit.
        ReconciliationError: a file cannot be read, or its headings are not known.
    """
    given = None if columns is None else Columns.parse(columns, cost_unit=cost_unit)
    usage: list[UsageLine] | None = None
    costs: list[CostLine] | None = None
    grain = list(by)
    classes: set[str] = set()
    for path in map(Path, paths):
        headings, rows = _read(path)
        how = _fitting(given, headings, path) if given else _recognised(headings, path, provider)
        grain = [name for name in grain if name in how.names or (name == "model" and "item" in how.names)]
        for number, row in enumerate(rows, start=2):
            line = _Row(row, how, path, number)
            if not period.start.date() <= line.day < period.end.date():
                continue
            if how.names.keys() & set(_COUNTS):
                usage = usage or []
                usage.append(UsageLine(line.bucket, line.counts, line.requests))
            if "cost" in how.names:
                costs = costs or []
                costs.append(CostLine(line.bucket, line.text("item") or "", line.cost))
        counted = how.names.keys() & set(_COUNTS)
        classes |= {"input" if name == "input_including_cache" else name for name in counted}
        usage = [] if counted and usage is None else usage
        costs = [] if "cost" in how.names and costs is None else costs
    if costs and not any(line.bucket.model for line in costs if line.amount):
        grain = [name for name in grain if name != "model"]  # whole days' costs: nothing says of which model
    return ProviderStatement(
        provider=provider,
        period=period,
        source=", ".join(Path(path).name for path in paths),
        grain=tuple(grain),
        usage=None if usage is None else tuple(replace(line, bucket=_only(line.bucket, grain)) for line in usage),
        costs=None if costs is None else tuple(replace(line, bucket=_only(line.bucket, grain)) for line in costs),
        classes=tuple(name for name in (*TOKEN_CLASSES, "web_searches") if name in classes),
        tokenless=("images.", "audio.", "videos", "fine_tuning"),
    )


def _only(bucket: Bucket, grain: Sequence[str]) -> Bucket:
    return Bucket(bucket.day, **{name: getattr(bucket, name) for name in grain})


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ReconciliationError(f"{path} cannot be read: {error}.") from error
    first = text.partition("\n")[0]
    reader = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=first.count))
    return [name.strip() for name in reader.fieldnames or ()], [
        {str(name).strip(): value or "" for name, value in row.items() if isinstance(value, (str, type(None)))}
        for row in reader
    ]


def _recognised(headings: Sequence[str], path: Path, provider: str) -> Columns:
    for export in _EXPORTS:
        wanted = [one for names in export.names.values() for one in names]
        if export.provider == provider and all(one in headings for one in wanted if not one.startswith("?")):
            kept = {name: tuple(one.removeprefix("?") for one in names) for name, names in export.names.items()}
            return replace(
                export, names={name: ones for name, ones in kept.items() if all(one in headings for one in ones)}
            )
    raise ReconciliationError(
        f"{path} is not a known export of {provider}; say what is what with columns={{'day': ..., 'model': ..., "
        f"'cost': ...}} (names: {', '.join(COLUMNS)}). Its headings: {', '.join(headings) or 'none'}."
    )


def _fitting(columns: Columns, headings: Sequence[str], path: Path) -> Columns:
    missing = [one for names in columns.names.values() for one in names if one not in headings]
    if missing:
        raise ConfigurationError(f"{path} has no column {missing[0]!r}; its headings: {', '.join(headings) or 'none'}.")
    return columns


@dataclass(frozen=True, slots=True)
class _Row:
    row: Mapping[str, str]
    how: Columns
    path: Path
    number: int

    def text(self, name: str) -> str | None:
        cells = [self.row.get(one, "").strip() for one in self.how.names.get(name, ())]
        return next((cell for cell in cells if cell), None)

    @property
    def day(self) -> date:
        cell = self.text("day") or ""
        try:
            if cell.isdigit() and len(cell) > len("20261123"):
                return datetime.fromtimestamp(int(cell), UTC).date()
            moment = datetime.fromisoformat(cell)
        except ValueError:
            raise self._bad(cell, "a date or time (2026-11-23, ISO 8601 or seconds)") from None
        return (moment if moment.tzinfo is None else moment.astimezone(UTC)).date()

    @property
    def bucket(self) -> Bucket:
        model = self.text("model") or (item_model(self.text("item")) if "model" not in self.how.names else None)
        return Bucket(self.day, model, self.text("api_key"), self.text("service_tier"))

    @property
    def counts(self) -> dict[str, int]:
        counts = {name: int(self._sum(name)) for name in _COUNTS if name in self.how.names}
        whole = counts.pop("input_including_cache", None)
        if whole is not None:
            counts["input"] = whole - counts.get("cache_read", 0) - counts.get("cache_write", 0)
        return {name: count for name, count in counts.items() if count}

    @property
    def requests(self) -> int | None:
        return int(self._sum("requests")) if "requests" in self.how.names else None

    @property
    def cost(self) -> Decimal:
        amount = self._sum("cost")
        return amount if self.how.cost_unit == "usd" else EXACT.divide(amount, Decimal(100))

    def _sum(self, name: str) -> Decimal:
        total = Decimal(0)
        for heading in self.how.names[name]:
            cell = self.row.get(heading, "").strip()
            try:
                total += Decimal(cell.removeprefix("$").replace(",", "") or 0)
            except InvalidOperation:
                raise self._bad(cell, f"a number for {name}") from None
        return total

    def _bad(self, cell: str, wanted: str) -> ReconciliationError:
        return ReconciliationError(f"{self.path}, line {self.number}: {cell!r} is not {wanted}.")
