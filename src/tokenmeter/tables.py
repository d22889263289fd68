"""Tables that other programs and other countries wrote: encodings, delimiters, decimal marks, numbers and moments.

A number that can be read in two ways is never guessed: ``1.325`` is one and a bit or more than a thousand, and the file
it stands in, or the reader, has to say which.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from importlib import import_module
from itertools import chain, islice
from typing import IO, Any, Literal, NamedTuple, cast

DecimalMark = Literal[".", ","]
#: What stands first in a date with slashes.
Slashes = Literal["day", "month"]

_DELIMITERS = ",;\t|"
#: A quoted heading, whose commas are none of the table's; also one that goes on in the next line.
_QUOTED = re.compile(r'"(?:[^"]|"")*(?:"|$)')
_SAYS_DELIMITER = re.compile(r'\s*"?sep=(.)"?\s*')
#: What stands around a number: currencies, and blanks that group (also the narrow and the unbreakable one).
_AROUND = re.compile(r"[\s\u00a0\u202f'\u2019_]+|^(?:US)?[$\u20ac\u00a3\u00a5]|[$\u20ac\u00a3\u00a5]$")
_NUMBER = re.compile(r"(?:\d[\d.,]*|[.,]\d+)(?:[eE][-+]?\d{1,3})?")
_GROUPED = re.compile(r"[1-9]\d{0,2}([.,])\d{3}(?:\1\d{3})*")
#: The highest power of ten that a file can mean: a count, an amount, or nanoseconds since 1970.
_MOST_DIGITS = 24
#: An instant whose zone stands apart, as an offset, as ``UTC``, or as both.
_ZONED = re.compile(r"(?P<moment>\d{4}-\d\d-\d\d[ T][\d:.]+) (?P<offset>[-+]\d\d:?\d\d)?(?: ?(?:UTC|GMT|Z))?(?<! )")
_YEAR_FIRST = re.compile(r"^(\d{4})/(\d{2})/(\d{2})(?!\d)")
_DOTTED = re.compile(r"^(\d\d?)\.(\d\d?)\.(\d{4})(?:(,? +)(?=\d)|$)")
_SLASHED = re.compile(r"^(\d\d?)/(\d\d?)/(\d{4})(?:(,? +)(?=\d)|$)")
_MONTHS = 12
#: How many rows of a table tell which decimal mark it has.
_SAMPLE = 500


def _as_windows_1252(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error("tokenmeter.windows-1252", _as_windows_1252)


class NotATableError(ValueError):
    """A file whose rows cannot be read here; says what to do."""


def _zstandard(file: IO[bytes]) -> io.BufferedReader:
    try:
        arrow: Any = import_module("pyarrow")
    except ImportError as error:
        raise NotATableError("it is packed by Zstandard: unpack it, or pip install pyarrow") from error
    return io.BufferedReader(_Raw(arrow.CompressedInputStream(file, "zstd")))


class _Raw(io.RawIOBase):
    """What only gives bytes, as a buffered reader wants it."""

    def __init__(self, given: Any) -> None:
        self._given = given

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """As `io.RawIOBase` has it."""
        data: bytes = self._given.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


#: How packed files begin, and what opens them.
_PACKED: Mapping[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": _zstandard,
}
#: How files begin whose rows cannot be read here, and what to do with them.
_OTHERS: Mapping[bytes, str] = {
    b"PK\x03\x04": "a ZIP or a workbook: unpack it, or save it as CSV",
    b"PAR1": "Parquet: write it as CSV",
    b"\xd0\xcf\x11\xe0": "an old workbook (XLS): save it as CSV",
    b"%PDF": "a PDF: download the CSV in its place",
}
#: What a packed file that is broken, or cut off, raises while it is read.
UNPACKING = (OSError, EOFError, zlib.error, lzma.LZMAError)


def unpacked(file: io.BufferedReader) -> io.BufferedReader:
    """A file as it was before gzip, bzip2, xz or Zstandard packed it; one that is not packed as it is.

    Raises:
        NotATableError: a ZIP, a workbook or Parquet, or Zstandard without what unpacks it; says what to do.
    """
    beginning = file.peek(8)
    if what := next((what for begins, what in _OTHERS.items() if beginning.startswith(begins)), None):
        raise NotATableError(f"it is {what}; nothing of it was read")
    unpack = next((unpack for begins, unpack in _PACKED.items() if beginning.startswith(begins)), None)
    return file if unpack is None else cast("io.BufferedReader", unpack(file))


def open_text(raw: IO[bytes], beginning: bytes) -> IO[str]:
    """A file as text: UTF-8 with or without its mark, UTF-16 by its mark or its zeros; what is neither is Windows-1252.

    Args:
        raw: The file, from its beginning.
        beginning: Its first bytes, three or more where there are as many.
    """
    wide = beginning[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}
    zeros = [not byte for byte in beginning[:2]]
    unmarked = "utf-16-le" if zeros == [False, True] else "utf-16-be" if zeros == [True, False] else "utf-8-sig"
    encoding = "utf-16" if wide else unmarked
    return io.TextIOWrapper(cast("io.BufferedReader", raw), encoding, errors="tokenmeter.windows-1252", newline="")


class TableRow(NamedTuple):
    """A row of a table.

    Attributes:
        line: The line it ends at.
        cells: Its cells by their headings.
        fault: Why it says nothing for sure: it has fewer or more cells than there are headings, so that a comma too
            many, as in ``1,5``, may have moved each. None where it has as many.
    """

    line: int
    cells: dict[str, str]
    fault: str | None = None


def read_table(text: IO[str]) -> tuple[list[str], Iterator[TableRow], DecimalMark | None]:
    """A CSV: its headings, its rows, and its decimal mark where it can be told.

    Delimiters are comma, semicolon, tab and bar; a first line ``sep=;`` says which. Rows of empty cells are none, and
    empty cells beyond the headings do no harm. A heading that stands twice is ``name`` and ``name (2)``.

    Raises:
        csv.Error: when the rows are read: a line that is no CSV, or that the file ends in the middle of.
    """
    raw = _Lines(text)
    filled = (line for line in raw if line.strip())
    first = next(filled, "")
    said = _SAYS_DELIMITER.fullmatch(first)
    if said:
        first = next(filled, "")
    delimiter = said[1] if said else max(_DELIMITERS, key=_QUOTED.sub("", first).count)
    skipped = 1 if said else 0
    reader = csv.reader(chain([first], raw), delimiter=delimiter)
    headings = _apart([name.strip() for names in islice(reader, 1) for name in names])

    def rows() -> Iterator[TableRow]:
        for cells in reader:
            if cells and raw.is_cut(len(cells) < len(headings)):
                raise csv.Error("it ends in the middle of its last line")
            if any(map(str.strip, cells)):
                fits = len(cells) >= len(headings) and not any(map(str.strip, cells[len(headings) :]))
                fault = None if fits else f"it has {len(cells)} cells, and there are {len(headings)} headings"
                row = dict.fromkeys(headings, "") | dict(zip(headings, cells, strict=False))
                yield TableRow(reader.line_num + skipped, row, fault)

    every = rows()
    sample: list[TableRow] = []
    broken: list[csv.Error] = []
    try:
        sample.extend(islice(every, _SAMPLE))
    except csv.Error as error:  # told where the rows are read
        broken.append(error)
    usual: DecimalMark | None = None if delimiter == ";" else "."
    mark = decimal_mark((cell for row in sample for cell in row.cells.values()), usual=usual)

    def again() -> Iterator[TableRow]:
        yield from sample
        for error in broken:
            raise error
        yield from every

    return headings, again(), mark


class _Lines:
    """The lines of a text, and whether the last record stops in the middle."""

    def __init__(self, text: Iterable[str]) -> None:
        self._text = iter(text)
        self._record: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._text)
        self._record.append(line)
        return line

    def is_cut(self, short: bool) -> bool:
        """Whether the record that was just read is the last, has no end of line, and lacks cells or a quote."""
        record, self._record = self._record, []
        if not record or record[-1].endswith(("\n", "\r")):
            return False
        return short or sum(line.count('"') for line in record) % 2 == 1


def _apart(headings: Iterable[str]) -> list[str]:
    """Headings, each once, so that no column hides another."""
    found: dict[str, int] = {}
    apart: list[str] = []
    for name in headings:
        found[name] = found.get(name, 0) + 1
        apart.append(name if not name or found[name] == 1 else f"{name} ({found[name]})")
    return apart


def decimal_mark(cells: Iterable[str], *, usual: DecimalMark | None) -> DecimalMark | None:
    """The decimal mark of a table, by its numbers that can be read in one way only.

    Args:
        cells: Its cells; what is no number does not matter.
        usual: What it is where no cell tells.

    Returns:
        The mark; None where nothing tells, or cells contradict each other.
    """
    marks: set[str] = set()
    for cell in cells:
        if "." not in cell and "," not in cell:
            continue
        with suppress(ValueError):
            parse_number(cell, None)
            marks.add(str(_mark_of(_bare(cell)[1])))
    if not marks:
        return usual
    return cast("DecimalMark", marks.pop()) if len(marks) == 1 else None


def is_ambiguous(text: str) -> bool:
    """Whether a number can be read in two ways: ``1.325`` is one and a bit, or more than a thousand."""
    number = _bare(text)[1]
    return _NUMBER.fullmatch(number) is not None and _mark_of(number) is None


def parse_number(text: str, mark: DecimalMark | None = ".") -> Decimal:
    """A number as people and programs write it: ``1,234.50``, ``1.234,50``, ``1 234,5``, ``$12``, ``(3.00)``, ``2e-6``.

    Args:
        text: The number.
        mark: The decimal mark of the table it stands in. It decides what can be read in two ways (``1.325``).

    Raises:
        ValueError: it is no number, or can be read in two ways and `mark` is None; or it has more digits before its
            point than any amount or count.
    """
    sign, number = _bare(text)
    if not _NUMBER.fullmatch(number):
        raise ValueError(f"{text.strip()!r} is not a number")
    mark = _mark_of(number) or mark
    if mark is None:
        raise ValueError(f"{text.strip()!r} can be read in two ways: say which decimal mark the file has")
    group = "," if mark == "." else "."
    whole, _, fraction = number.partition(mark)
    if (group in whole and not _GROUPED.fullmatch(whole)) or group in fraction or mark in fraction:
        raise ValueError(f"{text.strip()!r} is not a number")
    found = Decimal(sign + whole.replace(group, "") + ("." + fraction if fraction else ""))
    if found.adjusted() > _MOST_DIGITS:
        raise ValueError(f"{text.strip()!r} is more than any amount or count")
    return found


def first_of_slashes(texts: Iterable[str]) -> Slashes | None:
    """What stands first in dates such as ``10/31/2026``, which all texts together tell; None where they do not."""
    told: set[Slashes] = set()
    for text in texts:
        if found := _SLASHED.match(text.strip()):
            told |= {"day"} if int(found[1]) > _MONTHS else {"month"} if int(found[2]) > _MONTHS else set()
    return told.pop() if len(told) == 1 else None


def parse_moment(text: str, slashes: Slashes | None = None) -> datetime:
    """A day or an instant by ISO 8601, also as databases and Go print it: ``2026-10-13 10:00:02.1 +0000 UTC``.

    With dots the day stands first, wherever they are written so: ``13.10.2026 10:00``. Slashes say two things, unless
    the year stands first.

    Args:
        text: As it is written.
        slashes: What stands first in a date with slashes; None = refuse them.

    Returns:
        Naive where the text names no zone.

    Raises:
        ValueError: it is neither.
    """
    try:
        return datetime.fromisoformat(text)  # as nearly all are written
    except ValueError:
        text = _YEAR_FIRST.sub(r"\1-\2-\3", _DOTTED.sub(_day_last, text.strip()))
    if slashes is not None:
        text = _SLASHED.sub(_day_last if slashes == "day" else _month_last, text)
    found = _ZONED.fullmatch(text)
    if found is None:
        return datetime.fromisoformat(text)
    return datetime.fromisoformat(found["moment"] + (found["offset"] or "+00:00"))


def _day_last(date: re.Match[str]) -> str:
    return f"{date[3]}-{date[2]:0>2}-{date[1]:0>2}{' ' if date[4] else ''}"


def _month_last(date: re.Match[str]) -> str:
    return f"{date[3]}-{date[1]:0>2}-{date[2]:0>2}{' ' if date[4] else ''}"


def _bare(text: str) -> tuple[str, str]:
    """A number's sign, and the number without sign, currency and blanks."""
    number = text.strip().replace("\N{MINUS SIGN}", "-")
    sign = ""
    if number[:1] == "(" and number[-1:] == ")":
        number, sign = number[1:-1].strip(), "-"
    elif number[-1:] == "-":
        number, sign = number[:-1].strip(), "-"
    elif number[:1] in {"-", "+"}:
        number, sign = number[1:].strip(), number[0].strip("+")
    number = _AROUND.sub("", number)
    if not sign and number[:1] == "-":  # behind the currency
        number, sign = number[1:], "-"
    return sign, number


def _mark_of(number: str) -> DecimalMark | None:
    """The decimal mark of a number that can be read in one way only; None for the others."""
    points, commas = number.count("."), number.count(",")
    if points and commas:
        return "." if number.rfind(".") > number.rfind(",") else ","
    if points > 1 or commas > 1:
        return "," if points else "."
    if (points or commas) and _GROUPED.fullmatch(number):
        return None
    return "," if commas else "."
