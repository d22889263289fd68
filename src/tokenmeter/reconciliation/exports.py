"""The providers' own exports, known by their headings, maps of columns for any other file, and what a row says."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from shlex import quote
from typing import Literal
from unicodedata import combining, normalize

from tokenmeter.errors import ConfigurationError, ReconciliationError
from tokenmeter.money import EXACT, ZERO
from tokenmeter.reconciliation import anthropic, openai
from tokenmeter.reconciliation.statement import GRAIN, Bucket, ExchangeRates, day_begins, tier_name
from tokenmeter.tables import DecimalMark, Slashes, is_ambiguous, parse_moment, parse_number
from tokenmeter.values import dataclass

CostUnit = Literal["usd", "cents"]
COUNTS = ("input", "input_including_cache", "cache_read", "cache_write", "output", "web_searches")
#: What a column map can name. A list of columns is summed.
COLUMNS = ("day", *GRAIN, "requests", "item", "cost", "currency", *COUNTS)


@dataclass(frozen=True, slots=True)
class Columns:
    """How to read a file.

    Attributes:
        names: What (`COLUMNS`) -> heading, or several headings to add up. ``input`` is without what was cached,
            ``input_including_cache`` with it.
        cost_unit: ``usd`` or ``cents``.
        provider: Whose export it is known to be; None for a map of the user's.
        batch: Heading that says whether it ran in a batch.
        quantum: To what its amounts are rounded, US dollars; None = as they are written.
        name_model: A model's id from the name in the file.
    """

    names: Mapping[str, tuple[str, ...]]
    cost_unit: CostUnit = "usd"
    provider: str | None = None
    batch: str | None = None
    quantum: Decimal | None = None
    name_model: Callable[[str], str] = str

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
        names = {name: _listed(given) for name, given in columns.items()}
        if cost_unit == "usd":
            return cls(names, "usd")
        if cost_unit == "cents":
            return cls(names, "cents")
        raise ConfigurationError(f"cost_unit is 'usd' or 'cents', not {cost_unit!r}.")

    @property
    def hides_cache(self) -> bool:
        """Whether its input has what was read from the cache in it, and nothing says how much that is."""
        return "input_including_cache" in self.names and "cache_read" not in self.names

    @property
    def counts(self) -> bool:
        """Whether it counts usage."""
        return any(name in self.names for name in COUNTS)


def _known(provider: str, *, batch: str | None = None, quantum: str | None = None, **names: str) -> Columns:
    split = {name: tuple(headings.split()) for name, headings in names.items()}
    return Columns(split, "usd", provider, batch, None if quantum is None else Decimal(quantum))


#: The consoles' exports, most telling first. A heading after ``?`` may be missing: consoles add columns over the years,
#: and rename them: ``|`` stands between the names of one. Case, blanks and marks in a heading do not matter.
_EXPORTS: tuple[Columns, ...] = (
    *(_known("openai", **export) for export in openai.EXPORTS),
    *(replace(_known("anthropic", **export), name_model=anthropic.model_id) for export in anthropic.EXPORTS),
)
#: Provider -> the headings of its export of a month without use, where it has no others then.
_EMPTY_MONTHS = {"openai": openai.EMPTY_MONTH}


def is_empty_month(headings: Sequence[str], provider: str) -> bool:
    """Whether it is an export of `provider` of a month without use, by its headings."""
    return frozenset(map(heading_key, headings)) == _EMPTY_MONTHS.get(provider)


def recognised_export(headings: Sequence[str], path: Path, provider: str) -> Columns:
    """How to read an export of `provider`, by its headings.

    Raises:
        ReconciliationError: it is none that is known.
    """
    known = {heading_key(one): one for one in reversed(headings)}
    for export in _EXPORTS:
        wanted = [one for names in export.names.values() for one in names if not one.startswith("?")]
        if export.provider == provider and all(_heading(one, known) for one in wanted):
            kept = {
                name: tuple(told for one in names if (told := _heading(one, known)))
                for name, names in export.names.items()
            }
            return replace(
                export, names={name: ones for name, ones in kept.items() if ones}, batch=known.get(export.batch or "")
            )
    raise ReconciliationError(f"{path} is not a known export of {provider}. {_map_to_give(headings, provider)}")


#: What a heading is about, by words of four languages in it (without accents), most telling first.
_ABOUT = tuple(
    (name, re.compile(words))
    for name, words in (
        ("currency", "currency|wa?e?hrung|devise|monnaie|moneda|divisa"),
        ("cost", "cost|amount|kosten|betrag|cout|montant|importe|gasto"),
        ("cache_write", "cache.*(writ|schr|ecri|escri|creat)|(writ|schr|ecri|escri|creat).*cache"),
        ("input", "uncached|(no|ohne|sans|sin).cache"),
        ("cache_read", "cache|zwischengespeichert"),
        ("output", "output|completion|ausgabe|sortie|salida"),
        ("input", "input|prompt|eingabe|entree|entrada"),
        ("requests", "requests|anfragen|aufrufe|requetes|appels|solicitudes|peticiones|llamadas"),
        ("api_key", "key|schlussel|schluessel|cle.(d.)?api|clave"),
        ("project", "proje|proyecto|workspace|arbeitsbereich|espace.de.travail|espacio.de.trabajo"),
        ("model", "mod[ae]l"),
        ("day", r"\b(date|day|datum|tag|jour|fecha|dia)\b|start_?time|startzeit"),
        ("item", "item|posten|position|beschreibung|descri|libelle|concepto"),
    )
)


def _map_to_give(headings: Sequence[str], provider: str) -> str:
    """What to say of a file with unknown headings: the map that they seem to ask for, ready to be given."""
    found: dict[str, str | list[str]] = {}
    for heading in headings:
        plain = "".join(one for one in normalize("NFKD", heading.lower()) if not combining(one)).replace("_", " ")
        about = next((name for name, words in _ABOUT if words.search(plain)), None)
        if about == "cache_write" and about in found:  # one for each lifetime
            found[about] = [*_listed(found[about]), heading]
        elif about is not None:
            found.setdefault(about, heading)
    includes_cache = any("input_including_cache" in one.names for one in _EXPORTS if one.provider == provider)
    if includes_cache and "input" in found:
        found["input_including_cache"] = found.pop("input")
    told = f"Its headings: {', '.join(headings) or 'none'}; names to map them to: {', '.join(COLUMNS)}."
    if "day" not in found or not {"cost", "output"} & set(found):
        return f"Say what is what with columns={{'day': ..., 'model': ..., 'cost': ...}}. {told}"
    pairs = ((name, heading) for name, headings in found.items() for heading in _listed(headings))
    options = " ".join(f"--column {quote(f'{name}={heading}')}" for name, heading in pairs)
    return f"If they mean what they seem to, give columns={found!r}, which is {options}. {told}"


def _listed(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def heading_key(heading: str) -> str:
    """A heading as it is compared: ``Cost (USD)`` and ``cost_usd`` are the same."""
    return re.sub(r"[^a-z0-9]+", "_", heading.lower()).strip("_")


def _heading(names: str, known: Mapping[str, str]) -> str | None:
    """The heading of a file that is one of several names; None when it has none of them."""
    return next((known[one] for one in names.removeprefix("?").split("|") if one in known), None)


def fitting_map(columns: Columns, headings: Sequence[str], path: Path) -> Columns:
    """A map of columns, if the file has them all.

    Raises:
        ConfigurationError: it lacks one; says which.
    """
    missing = [one for names in columns.names.values() for one in names if one not in headings]
    if missing:
        raise ConfigurationError(f"{path} has no column {missing[0]!r}; its headings: {', '.join(headings) or 'none'}.")
    return columns


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
    models: Collection[str] = ()

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
        in_item = None if "model" in self.how.names else openai.item_model(self.text("item"), self.models)
        model = self.text("model") or in_item
        batch = self.row.get(self.how.batch or "", "").strip().lower() in {"true", "batch", "1"}
        return Bucket(
            self.day,
            model and self.how.name_model(model),
            self.text("api_key"),
            self.text("project"),
            tier_name(self.text("service_tier"), batch=batch),
        )

    @property
    def shown_project(self) -> tuple[str, str] | None:
        """A project's id and what people see it called; None where the row does not tell both."""
        project, name = self.text("project"), self.text("project_name")
        return (project, name) if project and name else None

    @property
    def is_empty_bucket(self) -> bool:
        """A day without use: a row with its times only."""
        return self.text("cost") is None and not self.item

    @property
    def is_sum(self) -> bool:
        """Whether it adds up the rows above it: it says so in place of its day, or anywhere where it has none."""
        day = self.text("day")
        told = self.row.values() if day is None else (day,)
        return any(_SUMS.fullmatch(cell.strip().rstrip(":")) for cell in told)

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

    def dollars(self, rates: ExchangeRates) -> Decimal:
        """The amount in US dollars."""
        amount = self._sum("cost")
        if self.how.cost_unit == "cents":
            amount = EXACT.divide(amount, Decimal(100))
        currency = self.text("currency") or self._currency
        return rates.convert(amount, currency, where=f"{self.path}, line {self.number}")

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
