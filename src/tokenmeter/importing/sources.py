"""What people have, and how it is told apart: files and folders, lines and arrays, plain and packed."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal, Self, cast

from pydantic_core import from_json

from tokenmeter.errors import ConfigurationError, reason_of
from tokenmeter.importing.call import mapping_of
from tokenmeter.paths import expand
from tokenmeter.tables import (
    UNPACKING,
    DecimalMark,
    NotATableError,
    is_ambiguous,
    open_text,
    parse_number,
    read_table,
    unpacked,
)
from tokenmeter.values import dataclass

Source = Literal[
    "claude-code",
    "codex",
    "gemini",
    "opencode",
    "aider",
    "litellm",
    "langfuse",
    "helicone",
    "openrouter",
    "portkey",
    "responses",
]
SOURCES: tuple[Source, ...] = (
    *("claude-code", "codex", "gemini", "opencode", "aider"),
    *("litellm", "langfuse", "helicone", "openrouter", "portkey", "responses"),
)
#: Sources whose folders are known: `usual_folders`.
AGENTS: tuple[Source, ...] = ("claude-code", "codex", "gemini", "opencode")


_SQLITE = b"SQLite format 3\x00"
_PACKINGS = (".gz", ".bz2", ".xz", ".zst")
_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".ndjson", ".db", *_PACKINGS)
_BIG = 1 << 27
_PEEKED = 256
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a file: where it stands, how many bytes it took, and what it holds or what is wrong with it."""

    where: str
    size: int
    row: Row | None = None
    fault: str | None = None


def usual_folders(source: Source) -> list[Path]:
    """Where a program keeps its logs, of the folders that exist.

    Raises:
        ConfigurationError: none does, or the user has no home directory; says where they were looked for.
    """
    claude = os.environ.get("CLAUDE_CONFIG_DIR") or "~/.claude, ~/.config/claude"
    codex = os.environ.get("CODEX_HOME") or "~/.codex"
    opencode = os.environ.get("OPENCODE_DATA_DIR") or "~/.local/share/opencode"
    folders: dict[str, list[str]] = {
        "claude-code": [f"{folder.strip()}/projects" for folder in claude.split(",")],
        "codex": [f"{codex}/sessions", f"{codex}/archived_sessions"],
        "gemini": ["~/.gemini/tmp"],
        "opencode": [f"{opencode}/opencode.db", f"{opencode}/storage/message"],
    }
    looked = [expand(named) for named in folders.get(source, [])]
    if found := [path for path in looked if os.path.exists(path)]:  # noqa: PTH110 - False where nobody may look
        return found
    raise ConfigurationError(
        f"There are no logs of {source} in {' or '.join(map(str, looked))}, or this user may not look there; name the "
        "folder or a file."
    )


def files_of(path: Path) -> list[Path]:
    """The files at a path, those of folders in folders too, in order.

    Raises:
        ConfigurationError: there is nothing.
    """
    if path.is_dir():
        found = sorted(one for one in path.rglob("*") if one.is_file() and one.suffix in _ENDINGS)
        found = [one for one in found if not one.name.endswith(".meta.json")]
        if not found:
            raise ConfigurationError(f"There are no logs ({', '.join(_ENDINGS)}) in {path}.")
        return found
    if not path.exists():
        raise ConfigurationError(f"No such file: {path}.")
    if not path.is_file():
        raise ConfigurationError(f"{path} is a pipe or a device; write what comes out of it to a file, and name that.")
    return [path]


def lines_of(path: Path, mark: DecimalMark | None = None) -> Iterator[Line]:
    """The rows of a file: lines of JSON, one JSON array or object, CSV, or opencode's database; packed ones as well.

    Args:
        path: The file.
        mark: Decimal mark of a CSV; None = as its numbers tell.
    """
    with path.open("rb") as file:
        beginning = file.read(len(_SQLITE))
    if beginning == _SQLITE:
        try:
            for where, row in _opencode_rows(path):
                yield Line(where, 0, row) if row else Line(where, 0, fault="not a JSON object")
        except ConfigurationError as error:
            yield Line(str(path), 0, fault=str(error))
        return
    with path.open("rb") as file:
        try:
            yield from _rows(path, unpacked(file), mark)
        except NotATableError as error:
            yield Line(str(path), 0, fault=str(error))
        except UNPACKING as error:
            yield Line(str(path), 0, fault=f"cannot be read further: {reason_of(error)}")


def _opencode_rows(path: Path) -> Iterator[tuple[str, Row | None]]:
    """The messages of opencode's database, read only: it may be in use. None for one that is no JSON object.

    Raises:
        ConfigurationError: it is no such database.
    """
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            for name, session, data in connection.execute("SELECT id, session_id, data FROM message ORDER BY id"):
                told = _object_of(data)
                yield f"{path.name}:{name}", {**told, "id": name, "sessionID": session} if told else None
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise ConfigurationError(f"it is no database of opencode that can be read: {error}") from error


def _object_of(text: object) -> Row:
    try:
        return mapping_of(json.loads(str(text)))
    except (ValueError, RecursionError):
        return {}


def _rows(path: Path, raw: io.BufferedReader, mark: DecimalMark | None) -> Iterator[Line]:
    beginning = raw.peek(_PEEKED)[:_PEEKED]
    name = path.stem if path.suffix in _PACKINGS else path.name
    plain = beginning.replace(b"\0", b"").removeprefix(codecs.BOM_UTF8).strip(b"\xff\xfe \t\r\n")
    is_json = name.endswith((".json", ".jsonl", ".ndjson"))
    if not is_json and plain and (plain[:1] not in b"{[" or name.endswith((".csv", ".tsv"))):
        yield from _csv_rows(path, raw, beginning, mark)
        return
    if beginning[:2] not in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
        yield from _json_rows(path, iter(raw))
        return
    with open_text(raw, beginning) as text:
        yield from _json_rows(path, (line.encode() for line in text))


def _json_rows(path: Path, lines: Iterator[bytes]) -> Iterator[Line]:
    numbered = enumerate(lines, 1)
    begun = ((at, line.removeprefix(codecs.BOM_UTF8).lstrip()) for at, line in numbered)
    number, first = next((one for one in begun if one[1]), (0, b""))
    if not first:
        return
    if first[:1] == b"[" or _is_part(first):
        yield from _document(path, first, lines)
        return
    whole = _parsed(path, number, first, len(first))
    if whole.row is not None and (rows := _held_by(whole.row)) is not None:
        yield from _listed(path, rows, whole.size)
    else:
        yield whole
    for at, line in numbered:
        if line.strip():
            yield _parsed(path, at, line, len(line))


def _is_part(line: bytes) -> bool:
    """Whether a first line is the beginning of one long JSON object rather than a whole one."""
    try:
        json.loads(line)
    except ValueError:
        return line.strip() in {b"{", b"["} or not line.rstrip().endswith(b"}")
    except RecursionError:  # nested without end
        return False
    return False


def _parsed(path: Path, number: int, line: bytes, size: int) -> Line:
    where = f"{path}:{number}"
    try:
        value = from_json(line)
    except ValueError:  # half of a surrogate pair, as programs in JavaScript write, is read by the other one
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return Line(where, size, fault="not JSON")
    if not isinstance(value, dict):
        return Line(where, size, fault="not a JSON object")
    return Line(where, size, cast("Row", value))


def _document(path: Path, beginning: bytes, lines: Iterator[bytes]) -> Iterator[Line]:
    parts, size = [beginning], len(beginning)
    for line in lines:
        parts.append(line)
        size += len(line)
        if size > _BIG:
            break
    text = b"".join(parts)
    if size > _BIG:
        yield Line(str(path), 0, fault=f"one JSON value of more than {_BIG >> 20} MiB; write one object a line (JSONL)")
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        yield from _lines_after_all(path, text)
        return
    if isinstance(value, list):
        yield from _listed(path, cast("list[object]", value), len(text))
        return
    row = mapping_of(value)
    rows = _held_by(row)
    yield from _listed(path, [row] if rows is None else rows, len(text))


def _held_by(row: Row) -> list[object] | None:
    """The rows in a page of an export (``{"data": [...], "meta": ...}``); None where it is a row itself."""
    if row.get("object") == "list" or source_of(row) is not None:
        return None
    lists = {name: cast("list[object]", value) for name, value in row.items() if isinstance(value, list)}
    named = next((lists[name] for name in ("data", "observations", "logs") if name in lists), None)
    if named is not None:
        return named
    return next((held for held in lists.values() if held and source_of(mapping_of(held[0])) in _GATEWAYS), None)


def _listed(path: Path, rows: list[object], size: int) -> Iterator[Line]:
    for number, row in enumerate(rows, 1):
        where = f"{path}:{number}"
        if isinstance(row, dict):
            yield Line(where, size // len(rows), cast("Row", row))
        else:
            yield Line(where, 0, fault="not a JSON object")


def _lines_after_all(path: Path, text: bytes) -> Iterator[Line]:
    """A file whose first line is broken: the others are lines all the same."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _parsed(path, number, line, len(line))


def _csv_rows(path: Path, raw: IO[bytes], beginning: bytes, mark: DecimalMark | None) -> Iterator[Line]:
    number = 1
    with open_text(raw, beginning) as text:
        _, rows, told = read_table(text)
        mark = mark or told
        try:
            for number, cells, fault in rows:
                where = f"{path}:{number}"
                yield Line(where, 0, fault=fault) if fault else _csv_row(where, cells, mark)
        except csv.Error as error:
            yield Line(f"{path}:{number}", 0, fault=f"not CSV: {error}")


def _csv_row(where: str, cells: dict[str, str], mark: DecimalMark | None) -> Line:
    if mark is None and (cell := next(filter(is_ambiguous, cells.values()), None)) is not None:
        return Line(where, 0, fault=f"{cell!r} can be read in two ways: give --decimal with the decimal mark")
    row = {name: _with_a_point(cell) for name, cell in cells.items()} if mark == "," else cells
    return Line(where, sum(map(len, row.values())), row)


class _CommaNumber(str):
    """A number of a table with decimal commas, with a point, as readers of counts and costs know it.

    ``str()`` of it is what stands in the cell: what looks like a number may be a name, such as a cost centre's.
    """

    __slots__ = ("_written",)
    _written: str

    def __new__(cls, number: str, written: str) -> Self:
        made = super().__new__(cls, number)
        made._written = written
        return made

    def __str__(self) -> str:
        return self._written


def _with_a_point(cell: str) -> str:
    """A number of a table with decimal commas as such; else the cell as it is."""
    if "," in cell or "." in cell:
        with suppress(ValueError):
            return _CommaNumber(f"{parse_number(cell, ','):f}", cell)
    return cell


def _has(*names: str) -> Callable[[Row], bool]:
    wanted = frozenset(names)
    return lambda row: row.keys() >= wanted


#: Source -> what its rows have, most telling first.
_MARKS: tuple[tuple[Source, Callable[[Row], bool]], ...] = (
    ("litellm", _has("request_id", "call_type", "spend")),
    ("openrouter", _has("generation_id", "tokens_prompt")),
    ("portkey", _has("ai_model", "req_units")),
    ("helicone", lambda row: "request_id" in row and ("response_model" in row or "request_created_at" in row)),
    ("langfuse", lambda row: ("start_time" in row or "startTime" in row) and _is_observation(row)),
    ("codex", _has("timestamp", "type", "payload")),
    ("aider", _has("event", "properties", "time")),
    ("opencode", lambda row: "role" in row and ("providerID" in row or "sessionID" in row)),
    ("claude-code", lambda row: "sessionId" in row and ("uuid" in row or "parentUuid" in row or "message" in row)),
    ("claude-code", lambda row: row.get("type") in {"summary", "file-history-snapshot", "queue-operation"}),
    ("gemini", lambda row: "projectHash" in row or (row.get("type") == "gemini" and "tokens" in row)),
    ("responses", lambda row: "custom_id" in row or "object" in row or "usage" in row or row.get("type") == "message"),
)
#: Those whose exports may hold their rows under any name.
_GATEWAYS = frozenset[Source | None]({"litellm", "langfuse", "helicone", "openrouter", "portkey"})
#: Headings of files that hold sums, not calls.
_SUMS: tuple[Callable[[Row], bool], ...] = (
    _has("Date", "Slug", "Requests"),
    _has("usage_date_utc"),
    _has("start_time", "end_time", "start_time_iso"),
    _has("day", "total_cost", "request_count"),
    lambda row: bool(isinstance(row.get("results"), list) and _is_sum(row["results"])),
)


def _is_observation(row: Row) -> bool:
    kinds = {"GENERATION", "EMBEDDING", "SPAN", "EVENT"}
    return "trace_id" in row or "traceId" in row or str(row.get("type")).upper() in kinds


def _is_sum(rows: list[Any]) -> bool:
    return bool(rows) and {"day", "total_cost"} <= mapping_of(rows[0]).keys()


def holds_sums(row: Row) -> bool:
    """Whether a file with such rows has sums over many calls, which `reconcile` compares and nothing imports."""
    return any(is_sum(row) for is_sum in _SUMS)


def source_of(row: Row) -> Source | None:
    """What a row is a row of; None when nothing is recognised."""
    return next((source for source, fits in _MARKS if fits(row)), None)
