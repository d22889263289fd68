"""The files of exports: CSV, JSON Lines, Parquet and XLSX, written record by record.

They appear whole or not at all, are never overwritten by accident, and know their own SHA-256. Whatever else writes a
file for people goes through `opened`, too.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import secrets
import stat
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from importlib import import_module
from itertools import islice
from pathlib import Path
from shutil import copyfile
from tempfile import gettempdir
from typing import IO, Any, Literal, get_args

from tokenmeter.errors import ConfigurationError
from tokenmeter.money import EXACT
from tokenmeter.reports.fields import Field, Kind, json_value
from tokenmeter.reports.workbook import make_workbook

#: A path, or something that is open for writing.
Target = str | os.PathLike[str] | IO[Any]


class Sink:
    """Bytes on their way into a file; hashes and counts what passes."""

    def __init__(self, stream: IO[Any]) -> None:
        self._stream = stream
        self._text = isinstance(stream, io.TextIOBase)
        self._hash = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        """Pass `data` on; text streams get it decoded, so hand over whole lines."""
        self._hash.update(data)
        self.size += len(data)
        self._stream.write(data.decode() if self._text else data)
        return len(data)

    def flush(self) -> None:
        """Pass it on."""
        self._stream.flush()

    @property
    def sha256(self) -> str:
        """Hash of everything written, hex."""
        return self._hash.hexdigest()


@contextmanager
def opened(target: Target, *, overwrite: bool) -> Generator[Sink]:
    """A sink into `target`. A file gets its name only when the block ends well.

    A link stays, and what it leads to is written. A pipe or a device (``/dev/stdout``) is written as it is. Who may
    read and write a file that is replaced, and whose it is, stays.

    Raises:
        ConfigurationError: the file exists and `overwrite` is False, its folder does not exist, or the system does not
            let it be written (permissions, a full disk, a folder of that name).
    """
    if not isinstance(target, (str, os.PathLike)):
        yield Sink(target)
        return
    path = Path(target)
    if not is_stream(path):
        with _written_aside(path, overwrite=overwrite) as sink:
            yield sink
        return
    with _told(path):
        file = _File(path, "wb")
    file.path = path
    with io.BufferedWriter(file) as stream:
        yield Sink(stream)


@contextmanager
def _written_aside(path: Path, *, overwrite: bool) -> Generator[Sink]:
    """A sink into a file that takes the place of `path` when the block ends well."""
    if not overwrite:
        refuse_existing(path)
    place = Path(os.path.realpath(path))
    if not place.parent.is_dir():
        raise ConfigurationError(f"The folder {str(place.parent)!r} does not exist; make it first.")
    before = _status(path, place)
    # A file may be writable in a folder that is not: it is written aside, and then over.
    folder = place.parent if before is None or os.access(place.parent, os.W_OK) else Path(gettempdir())
    temporary = folder / f".{secrets.token_hex(8)}.part"
    try:
        with _told(path):
            file = _File(temporary, "xb", opener=None if before is None else _private)
        file.path = path
        with io.BufferedWriter(file) as stream:
            yield Sink(stream)
            stream.flush()
            with _told(path):
                os.fsync(stream.fileno())
        with _told(path):
            if before is not None:
                with suppress(OSError, AttributeError):  # another user's becomes ours; Windows has no such thing
                    os.chown(temporary, before.st_uid, before.st_gid)
                temporary.chmod(stat.S_IMODE(before.st_mode))
            _name(temporary, place, overwrite=overwrite)
    finally:
        with suppress(OSError):
            temporary.unlink()


def is_stream(path: Path) -> bool:
    """Whether a path is no place for a file, but a pipe or a device that takes what is written."""
    if path.parent in _STREAMS:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


#: Whatever a shell has put behind these, also a file.
_STREAMS = frozenset({Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd")})


def _status(path: Path, place: Path) -> os.stat_result | None:
    """What is known of the file that is to be replaced; None where there is none.

    Raises:
        ConfigurationError: it may not be written.
    """
    with _told(path):
        try:
            found = place.stat()
        except FileNotFoundError:
            return None
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return found


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _File(io.FileIO):
    """A file on its way to `path`. Only its own failures are told as such, never those of who makes the records."""

    path: Path

    def write(self, data: Any, /) -> int:
        """As `io.FileIO` does it."""
        with _told(self.path):
            return super().write(data)


@contextmanager
def _told(path: Path) -> Generator[None]:
    """What the system has against writing `path`, in words."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(f"{str(path)!r} cannot be written: {reason}. Name another place.") from error


def _name(temporary: Path, path: Path, *, overwrite: bool) -> None:
    if overwrite:
        try:
            temporary.replace(path)
        except OSError:
            if not path.is_file():
                raise
            copyfile(temporary, path)  # in another folder, or mounted by itself: nothing can take its place
        return
    try:
        os.link(temporary, path)  # unlike a rename this fails when somebody else made the file meanwhile
    except FileExistsError:
        refuse_existing(path)
        raise
    except OSError:  # a file system without hard links
        refuse_existing(path)
        temporary.replace(path)


def refuse_existing(path: Path) -> None:
    """Refuse to write over a file.

    Raises:
        ConfigurationError: `path` exists.
    """
    if path.exists() and not is_stream(path):
        raise ConfigurationError(
            f"{str(path)!r} exists; choose another name, or replace it with overwrite=True (--overwrite)."
        )


def write_whole(path: Path, content: str | bytes, *, overwrite: bool) -> None:
    """Write a small file, whole or not at all."""
    with opened(path, overwrite=overwrite) as sink:
        sink.write(content.encode() if isinstance(content, str) else content)


ExportFormat = Literal["csv", "jsonl", "parquet", "xlsx"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

_BATCH = 10_000
#: A spreadsheet runs a cell that begins with one of these as a formula; full-width forms count, too.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def format_of(target: Target, format: str | None) -> ExportFormat:  # noqa: A002 - what everybody calls it
    """The format asked for, else the one that the target's ending names, else CSV.

    Raises:
        ConfigurationError: none that is known.
    """
    name = format
    if name is None and isinstance(target, (str, os.PathLike)):
        name = Path(target).suffix.removeprefix(".").lower() or None
    name = {"ndjson": "jsonl", "pq": "parquet"}.get(name or "csv", name or "csv")
    for known in EXPORT_FORMATS:
        if known == name:
            return known
    raise ConfigurationError(f"Unknown export format {name!r}; use one of {', '.join(EXPORT_FORMATS)}.")


def _write_csv(records: Iterable[list[Any]], fields: Sequence[Field[Any]], sink: Sink) -> None:
    """RFC 4180: commas, CRLF, quotes where needed. Text that a spreadsheet would run gets an apostrophe in front."""
    line = io.StringIO()
    writer = csv.writer(line)

    def put(cells: Iterable[Any]) -> None:
        writer.writerow(cells)
        sink.write(line.getvalue().encode())
        line.seek(0)
        line.truncate()

    put(_defused(one.name) for one in fields)
    cells = [_CELLS.get(one.kind) for one in fields]
    for values in records:
        put(value if cell is None or value is None else cell(value) for cell, value in zip(cells, values, strict=True))


def _defused(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text


#: How a CSV cell is written, by kind; whole numbers as they are.
_CELLS: Mapping[Kind, Callable[[Any], str]] = {
    "text": _defused,
    "json": lambda value: _defused(json_value(value, "json")),
    "flag": lambda value: "true" if value else "false",
    "money": lambda value: json_value(value, "money"),
    "balance": lambda value: json_value(value, "balance"),
    "price": lambda value: json_value(value, "price"),
    "quantity": lambda value: json_value(value, "quantity"),
    "instant": lambda value: json_value(value, "instant"),
    "second": lambda value: json_value(value, "second"),
    "day": lambda value: json_value(value, "day"),
}


def _write_jsonl(records: Iterable[list[Any]], fields: Sequence[Field[Any]], sink: Sink) -> None:
    """One JSON object per line; decimals are text, so that no reader rounds them."""
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode
    for values in records:
        record = {
            one.name: value if one.kind == "json" else json_value(value, one.kind)
            for one, value in zip(fields, values, strict=True)
        }
        sink.write(f"{encode(record)}\n".encode())


def _write_parquet(records: Iterable[list[Any]], fields: Sequence[Field[Any]], sink: Sink) -> None:
    """Parquet with exact decimals, in row groups of 10,000."""
    table = import_extra("pyarrow", "Parquet")
    parquet = import_extra("pyarrow.parquet", "Parquet")
    types = {
        "text": table.string(),
        "json": table.string(),
        "integer": table.int64(),
        "flag": table.bool_(),
        "instant": table.timestamp("us", tz="UTC"),
        "second": table.timestamp("s", tz="UTC"),
        "day": table.date32(),
        **dict.fromkeys(("money", "balance", "quantity"), table.decimal128(38, 12)),
        "price": table.decimal128(38, 24),
    }
    schema = table.schema([(one.name, types[one.kind]) for one in fields])
    with parquet.ParquetWriter(table.PythonFile(sink, mode="w"), schema, compression="zstd") as writer:
        rows = iter(records)
        while batch := list(islice(rows, _BATCH)):
            columns = [
                [_exact(value, one.kind) for value in column]
                for one, column in zip(fields, zip(*batch, strict=True), strict=True)
            ]
            writer.write_batch(table.record_batch(columns, schema=schema))


def _exact(value: Any, kind: Kind) -> Any:
    if value is None:
        return None
    if kind in _PLACES:
        return EXACT.quantize(Decimal(value), _PLACES[kind])
    return json_value(value, kind) if kind == "json" else value


_PLACES: Mapping[str, Decimal] = {
    **dict.fromkeys(("money", "balance", "quantity"), Decimal("1E-12")),
    "price": Decimal("1E-24"),
}
WRITERS: Mapping[ExportFormat, Callable[[Iterable[list[Any]], Sequence[Field[Any]], Sink], object]] = {
    "csv": _write_csv,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
    "xlsx": lambda records, fields, sink: sink.write(make_workbook(records, fields)),
}


def import_extra(module: str, purpose: str) -> Any:
    """An optional package.

    Raises:
        ConfigurationError: it is not installed; the message says the command.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigurationError(f"{purpose} needs {package}, which is not installed: pip install {package}") from error
