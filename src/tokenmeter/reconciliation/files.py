"""Statements from CSV files: the exports of both consoles, known by their headings, or any file with a column map."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from datetime import date, time
from decimal import Decimal
from pathlib import Path

from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError, ReconciliationError, reason_of
from tokenmeter.periods import Period
from tokenmeter.reconciliation.exports import (
    COUNTS,
    Columns,
    FileRow,
    fitting_map,
    is_empty_month,
    recognised_export,
)
from tokenmeter.reconciliation.openai import TOKENLESS
from tokenmeter.reconciliation.statement import (
    GRAIN,
    TOKEN_CLASSES,
    Bucket,
    CostLine,
    ExchangeRates,
    ProviderStatement,
    UsageLine,
    kind_of_cost,
    names_model,
)
from tokenmeter.tables import (
    UNPACKING,
    DecimalMark,
    NotATableError,
    TableRow,
    first_of_slashes,
    open_text,
    read_table,
    unpacked,
)
from tokenmeter.values import dataclass


@dataclass(slots=True)
class _Gathered:
    """What the files said so far."""

    grain: list[str]
    usage: list[UsageLine] | None = None
    costs: list[CostLine] | None = None
    classes: set[str] = field(default_factory=set[str])
    quanta: set[Decimal | None] = field(default_factory=set["Decimal | None"])
    in_input: set[str] = field(default_factory=set[str])
    begins: set[time] = field(default_factory=set[time])
    days: dict[str, set[date]] = field(default_factory=lambda: defaultdict[str, "set[date]"](set))
    shown: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])

    def saw(self, day: date, how: Columns) -> None:
        """Remember that a layer has a row of a day."""
        for layer, told in (("usage", how.counts), ("costs", "cost" in how.names)):
            if told:
                self.days[layer].add(day)


def read_files(
    paths: Sequence[str | Path],
    period: Period,
    *,
    provider: str,
    by: Sequence[str],
    rates: ExchangeRates,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    cost_unit: str = "usd",
    decimal: DecimalMark | None = None,
    models: Collection[str] = (),
) -> ProviderStatement:
    """The statement in one or several CSV files; usage and costs may be in different ones.

    A file given twice, and rows that stand in two files alike, count once; `ProviderStatement.notes` names them.

    Args:
        paths: The files, packed (gzip, bzip2, xz, Zstandard) or not; separated by comma, semicolon, tab or bar.
        period: Days outside are left out.
        provider: Whose statement it is.
        by: What to split by; what a file does not tell is not split by.
        columns: See `Columns.names`; None = known by the headings.
        cost_unit: Unit of the cost column of a map.
        decimal: Decimal mark of the files, where their numbers do not tell.
        rates: What amounts in other currencies are converted by.
        models: Names that are known to be models, whatever words they are.

    Raises:
        ConfigurationError: the map does not fit.
        ReconciliationError: a file cannot be read, its headings are not known, or its amounts are in another currency.
    """
    if decimal not in {None, ".", ","}:
        raise ConfigurationError(f'decimal is "." or ",", not {decimal!r}.')
    given = None if columns is None else Columns.parse(columns, cost_unit=cost_unit)
    found = _Gathered(list(by))
    digests: dict[str, Path] = {}
    seen: dict[tuple[str, ...], Path] = {}
    for path in map(Path, paths):
        content = _content(path)
        digest = hashlib.sha256(content).hexdigest()
        if digest in digests:
            found.notes.append(f"{path.name} is the same file as {digests[digest].name}; it counts once.")
            continue
        digests[digest] = path
        headings, rows, mark = _table(path, content)
        if given is None and is_empty_month(headings, provider):
            _note_empty(path, found)
            continue
        how = fitting_map(given, headings, path) if given else recognised_export(headings, path, provider)
        mark = decimal or mark
        if how.counts and how.hides_cache and (unread := [one for one in headings if "cache" in one.lower()]):
            found.notes.append(
                f"{path.name}: no column is known to say what was read from the cache ({', '.join(unread)}?), so that "
                "input is compared with what was cached; name it with columns={'cache_read': ...}."
            )
        slashes = first_of_slashes(row.cells.get(one, "") for row in rows for one in how.names["day"])
        once = _once(path, rows, seen, found.notes)
        lines = (FileRow(row, how, path, number, mark, slashes, again, models) for number, row, again in once)
        _read(found, how, lines, period=period, rates=rates, models=models)
    return _statement(found, paths, provider, period)


def _note_empty(path: Path, found: _Gathered) -> None:
    """A month without use."""
    if "usage" in path.name.lower():
        found.usage = found.usage or []
        found.classes |= set(TOKEN_CLASSES)
    else:
        found.costs = found.costs or []


def _read(
    found: _Gathered,
    how: Columns,
    lines: Iterable[FileRow],
    *,
    period: Period,
    rates: ExchangeRates,
    models: Collection[str],
) -> None:
    told = {name for name in GRAIN if name in how.names or (name == "model" and "item" in how.names)}
    found.grain = [name for name in found.grain if name in told]
    if how.counts:
        found.usage = found.usage or []
        classes = {name for name in COUNTS if name in how.names}
        found.classes |= {"input" if name == "input_including_cache" else name for name in classes}
        if "input_including_cache" in classes:
            found.in_input |= {"cache_read", "cache_write"} - classes
    if "cost" in how.names:
        found.costs = found.costs or []
        found.quanta.add(how.quantum)
    blank = 0
    for line in _of_period(found, how, lines, period):
        bucket, item = line.bucket, line.item
        found.shown.update([line.shown_project] if line.shown_project else ())
        named = line.text("model")
        of_model = named is None or names_model(named, models) or bucket.model in models or any(line.counts.values())
        if not of_model:  # "Refund" or "VAT 19 %" where models stand
            bucket, item = bucket._replace(model=None), f"{bucket.model} {item}".strip()
        if how.counts and found.usage is not None and (of_model or line.counts):
            found.usage.append(UsageLine(bucket, line.counts, line.requests, line.again))
        if found.costs is None or "cost" not in how.names or line.is_empty_bucket:
            continue
        if line.lacks_amount:
            blank += 1
            continue
        amount = line.dollars(rates)
        found.costs.append(CostLine(bucket, item, amount, kind_of_cost(item, amount, model=bucket.model), line.again))
    if blank:
        said = counted(blank, "row says what for, and no amount; it is", "rows say what for, and no amount; they are")
        found.notes.append(f"{said} missing in the statement's cost.")


def _of_period(found: _Gathered, how: Columns, lines: Iterable[FileRow], period: Period) -> Iterator[FileRow]:
    """The rows of the period's days; what others there are is noted."""
    outside: list[date] = []
    begins: set[time | None] = set()
    sums = 0
    for line in lines:
        if line.is_sum:
            sums += 1
            continue
        begins.add(line.begins)
        found.saw(line.day, how)
        if period.start.date() <= line.day < period.end.date():
            yield line
        else:
            outside.append(line.day)
    found.begins |= {each for each in begins if each is not None and None not in begins}
    if sums:
        found.notes.append(f"{counted(sums, 'row of sums was', 'rows of sums were')} left out.")
    if outside:
        days = " to ".join(dict.fromkeys((min(outside).isoformat(), max(outside).isoformat())))
        said = counted(
            len(outside),
            f"row of {days} lies outside {period.label} and was",
            f"rows of {days} lie outside {period.label} and were",
        )
        found.notes.append(f"{said} left out.")


def _statement(found: _Gathered, paths: Sequence[str | Path], provider: str, period: Period) -> ProviderStatement:
    grain = found.grain
    traffic = [line for line in found.costs or () if line.kind == "usage" and line.amount]
    if traffic and not any(line.bucket.model for line in traffic):
        grain = [name for name in grain if name != "model"]  # whole days' costs: nothing says of which model
    usage, costs = found.usage, found.costs
    return ProviderStatement(
        provider=provider,
        period=period,
        source=", ".join(dict.fromkeys(Path(path).name for path in paths)),
        grain=tuple(grain),
        usage=None if usage is None else tuple(replace(line, bucket=_only(line.bucket, grain)) for line in usage),
        costs=None if costs is None else tuple(replace(line, bucket=_only(line.bucket, grain)) for line in costs),
        classes=tuple(name for name in (*TOKEN_CLASSES, "web_searches") if name in found.classes),
        in_input=frozenset(found.in_input - found.classes),
        tokenless=TOKENLESS,
        quantum=next(iter(found.quanta)) if len(found.quanta) == 1 else None,
        begins=frozenset(found.begins),
        shown=found.shown,
        reach=_reach(found),
        notes=tuple(found.notes),
    )


def _reach(found: _Gathered) -> tuple[date, date] | None:
    """The days that every layer speaks of, from its first row to its last; empty months have none."""
    spans = [(min(days), max(days)) for days in found.days.values()]
    return (max(first for first, _ in spans), min(last for _, last in spans)) if spans else None


def _only(bucket: Bucket, grain: Sequence[str]) -> Bucket:
    return Bucket(bucket.day, **{name: getattr(bucket, name) for name in grain})


def _content(path: Path) -> bytes:
    """A file's bytes, unpacked."""
    try:
        with path.open("rb") as file:
            content = unpacked(file).read()
        return unpacked(io.BufferedReader(io.BytesIO(content))).read()  # what was packed may be no text either
    except (*UNPACKING, NotATableError, ValueError) as error:  # the last: no file can have such a name
        raise ReconciliationError(f"{path} cannot be read: {reason_of(error)}.") from error


#: How JSON begins, be it an object, rows in a list, or lines.
_JSON = re.compile(r"\{|\[\s*[\[{\]]")


def _refuse_other_text(path: Path, content: bytes) -> None:
    """What is text and no table has no headings that anybody could map."""
    start = open_text(io.BytesIO(content[:4096]), content[:4]).read().lstrip("\ufeff \t\r\n")
    if not start:
        raise ReconciliationError(f"{path} is empty: export it anew, or leave it out.")
    if _JSON.match(start):
        raise ReconciliationError(
            f"{path} is JSON, and a statement is read from CSV. What OpenAI's and Anthropic's admin APIs answer is "
            "fetched without a file: leave --file out and set the admin key, or give a client as source=. A log of "
            "calls is read by tokenmeter import; rows of your own are for CSV, with a line of headings."
        )
    if start.startswith("<"):
        what = "XML" if start.startswith("<?xml") else "a web page (HTML)"
        raise ReconciliationError(
            f"{path} is {what} and no CSV, as a download is whose sign-in has ended: download the statement anew."
        )


def _table(path: Path, content: bytes) -> tuple[list[str], list[TableRow], DecimalMark | None]:
    _refuse_other_text(path, content)
    headings, rows, mark = read_table(open_text(io.BytesIO(content), content[:4]))
    try:
        found = list(rows)
    except csv.Error as error:
        raise ReconciliationError(f"{path} cannot be read as CSV: {error}.") from error
    if broken := next((row for row in found if row.fault), None):
        raise ReconciliationError(
            f"{path} cannot be read, line {broken.line}: {broken.fault}; export it anew, or mend the line."
        )
    return headings, found, mark


def _once(
    path: Path, rows: Sequence[TableRow], seen: dict[tuple[str, ...], Path], notes: list[str]
) -> Iterator[tuple[int, Mapping[str, str], bool]]:
    """Rows with their lines, without those that another file has, word for word; and whether it stands here before."""
    own: dict[tuple[str, ...], int] = {}
    repeated: dict[str, int] = {}
    twice = 0
    for number, row, _ in rows:
        cells = tuple(f"{name}={value}" for name, value in row.items())
        before = seen.get(cells)
        if before is not None:
            repeated[before.name] = repeated.get(before.name, 0) + 1
            continue
        again = cells in own
        twice += again
        own[cells] = number
        yield number, row, again
    seen.update(dict.fromkeys(own, path))
    notes += [
        counted(
            count,
            f"row of {path.name} stands in {name} as well; it counts once.",
            f"rows of {path.name} stand in {name} as well; they count once.",
        )
        for name, count in repeated.items()
    ]
    if twice:
        notes.append(
            counted(
                twice,
                f"row of {path.name} is word for word another row of it; each counts.",
                f"rows of {path.name} are word for word another row of it; each counts.",
            )
        )
