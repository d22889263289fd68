"""One row of a console's file: its day, its counts, its amount in US dollars."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path

from tokenmeter.errors import ReconciliationError
from tokenmeter.money import EXACT, ZERO
from tokenmeter.reconciliation.exports import COUNTS, Columns
from tokenmeter.reconciliation.openai import item_model
from tokenmeter.reconciliation.statement import Bucket, day_begins, in_dollars, tier_name
from tokenmeter.tables import DecimalMark, Slashes, is_ambiguous, parse_moment, parse_number

#: Seconds beyond it are milliseconds, microseconds or nanoseconds.
_MILLISECONDS = 100_000_000_000
#: A currency in an amount, or in the heading above it: ``Cost (GBP)``, ``cost_eur``.
_CURRENCY = re.compile(
    r"[\u20ac\u00a3\u00a5]|(?<![a-z])(EUR|GBP|CHF|JPY|CNY|INR|CAD|AUD|NZD|SEK|NOK|DKK|PLN|CZK|BRL|MXN|KRW|SGD|HKD)(?![a-z])",
    re.IGNORECASE,
)
#: What stands in place of a day where a row adds up those above it.
_SUMS = re.compile(
    r"((grand|sub)[ -]?)?totals?|sum|(gesamt)?summe|gesamt|totale?|totaal|suma|[合总總][计計]", re.IGNORECASE
)


def model_id(name: str) -> str:
    """A model's id from the name that Anthropic's console shows; a name that is an id already stays.

    ``Claude 3.5 Sonnet 2024-10-22`` is ``claude-3-5-sonnet-20241022``, ``Claude Haiku 4.5`` ``claude-haiku-4-5``.
    """
    if " " not in name.strip():
        return name.strip()
    words = re.sub(r"(\d{4})-(\d{2})-(\d{2})", r"\1\2\3", name.strip().lower())
    return re.sub(r"[\s.()]+", "-", words).strip("-")


@dataclass(frozen=True, slots=True)
class FileRow:
    """A row, and how the file it stands in is read."""

    row: Mapping[str, str]
    how: Columns
    path: Path
    number: int
    mark: DecimalMark | None
    slashes: Slashes | None
    again: bool

    def text(self, name: str) -> str | None:
        """The first filled cell of a name's columns."""
        cells = [self.row.get(one, "").strip() for one in self.how.names.get(name, ())]
        return next((cell for cell in cells if cell), None)

    @property
    def day(self) -> date:
        """Its day, UTC."""
        return self._instant("day").date()

    @property
    def begins(self) -> time | None:
        """When its day begins, UTC, by how long it says that it is, or as midnight of its own zone; None = not told."""
        if self.text("until") is not None:
            return day_begins(self._instant("day"), self._instant("until"))
        with suppress(ValueError):
            written = parse_moment(self.text("day") or "", self.slashes)
            if written.time() == time():
                return self._instant("day").time()
        return None

    def _instant(self, name: str) -> datetime:
        """An instant in UTC; a day is its midnight."""
        cell = self.text(name) or ""
        try:
            if cell.isdigit() and len(cell) > len("20261123"):
                seconds = int(cell)
                while seconds >= _MILLISECONDS:
                    seconds //= 1000
                return datetime.fromtimestamp(seconds, UTC)
            moment = parse_moment(cell, self.slashes)
        except (ValueError, OverflowError, OSError):
            unsaid = "; no row tells whether its days or its months stand first" if "/" in cell else ""
            raise self._bad(cell, f"a date or time (2026-11-23, ISO 8601 or seconds){unsaid}") from None
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

    @property
    def item(self) -> str:
        """What the amount is for; of several columns the words of all."""
        return " ".join(cell for one in self.how.names.get("item", ()) if (cell := self.row.get(one, "").strip()))

    @property
    def bucket(self) -> Bucket:
        """Where its amounts are compared."""
        model = self.text("model") or (item_model(self.text("item")) if "model" not in self.how.names else None)
        batch = self.row.get(self.how.batch or "", "").strip().lower() in {"true", "batch", "1"}
        return Bucket(
            self.day,
            model_id(model) if model is not None and self.how.provider == "anthropic" else model,
            self.text("api_key"),
            self.text("project"),
            tier_name(self.text("service_tier"), batch=batch),
        )

    @property
    def is_empty_bucket(self) -> bool:
        """A day without use: a row with its times only."""
        return self.text("cost") is None and not self.item

    @property
    def is_sum(self) -> bool:
        """Whether it adds up the rows above it."""
        return _SUMS.fullmatch((self.text("day") or "").rstrip(":")) is not None

    @property
    def lacks_amount(self) -> bool:
        """Whether it says what for, and not how much."""
        return self.text("cost") is None and bool(self.item)

    @property
    def counts(self) -> dict[str, int]:
        """Class -> count, disjoint."""
        counts = {name: self._whole(name) for name in COUNTS if name in self.how.names}
        whole = counts.pop("input_including_cache", None)
        if whole is not None:
            counts["input"] = whole - counts.get("cache_read", 0) - counts.get("cache_write", 0)
        return {name: count for name, count in counts.items() if count}

    @property
    def requests(self) -> int | None:
        """How many requests; None where the file does not say."""
        return self._whole("requests") if "requests" in self.how.names else None

    def dollars(self, rates: Mapping[str, Decimal]) -> Decimal:
        """The amount in US dollars."""
        amount = self._sum("cost")
        if self.how.cost_unit == "cents":
            amount = EXACT.divide(amount, Decimal(100))
        currency = self.text("currency") or self._currency
        return in_dollars(amount, currency, rates, where=f"{self.path}, line {self.number}")

    @property
    def _currency(self) -> str | None:
        """The currency that the amount, or its heading, names."""
        places = ((self.row.get(heading, ""), heading) for heading in self.how.names["cost"])
        found = next((one for texts in places for text in texts if (one := _CURRENCY.search(text))), None)
        return None if found is None else found[0]

    def _whole(self, name: str) -> int:
        number = self._sum(name)
        if number != number.to_integral_value(context=EXACT):
            raise self._bad(str(number), f"a whole number for {name}")
        return int(number)

    def _sum(self, name: str) -> Decimal:
        total = ZERO
        for heading in self.how.names[name]:
            cell = self.row.get(heading, "").strip()
            if not cell:
                continue
            if self.mark is None and is_ambiguous(cell):
                where = f"{self.path}, line {self.number}"
                raise ReconciliationError(
                    f"{where}: {cell!r} can be read in two ways; say which decimal mark the file has (--decimal)."
                )
            try:
                total = EXACT.add(total, parse_number(cell, self.mark))
            except ValueError:
                raise self._bad(cell, f"a number for {name}") from None
        return total

    def _bad(self, cell: str, wanted: str) -> ReconciliationError:
        return ReconciliationError(f"{self.path}, line {self.number}: {cell!r} is not {wanted}.")
