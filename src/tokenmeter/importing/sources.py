"""What people have, and how it is told apart: files and folders, lines and arrays, plain and packed."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pydantic_core import from_json

from tokenmeter.errors import ConfigurationError
from tokenmeter.importing.agents import opencode_rows
from tokenmeter.importing.call import mapping_of

__all__ = ["AGENTS", "SOURCES", "Line", "Source", "files_of", "holds_sums", "lines_of", "source_of", "usual_folders"]

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

_GZIP, _SQLITE = b"\x1f\x8b", b"SQLite format 3\x00"
_ENDINGS = (".jsonl", ".json", ".csv", ".ndjson", ".gz", ".db")
_BIG = 1 << 27
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a file: where it stands, how many bytes it took, and what it holds or what is wrong with it."""

    where: str
    size: int
    row: Row | None = None
    fault: str | None = None


def usual_folders(source: Source) -> list[Path]:
    """Where a program keeps its logs, of the folders that exist."""
    home = Path.home()
    named = os.environ.get("CLAUDE_CONFIG_DIR")
    claude = (
        [Path(one.strip()) for one in named.split(",")] if named else [home / ".claude", home / ".config" / "claude"]
    )
    codex = Path(os.environ.get("CODEX_HOME") or home / ".codex")
    opencode = Path(os.environ.get("OPENCODE_DATA_DIR") or home / ".local" / "share" / "opencode")
    folders: dict[str, list[Path]] = {
        "claude-code": [folder / "projects" for folder in claude],
        "codex": [codex / "sessions", codex / "archived_sessions"],
        "gemini": [home / ".gemini" / "tmp"],
        "opencode": [opencode / "opencode.db", opencode / "storage" / "message"],
    }
    return [path for path in folders.get(source, []) if path.exists()]


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
    if not path.is_file():
        raise ConfigurationError(f"No such file: {path}.")
    return [path]


def lines_of(path: Path) -> Iterator[Line]:
    """The rows of a file: lines of JSON, one JSON array or object, CSV, or opencode's database; gzip as well."""
    with path.open("rb") as file:
        beginning = file.read(len(_SQLITE))
    if beginning == _SQLITE:
        for where, row in opencode_rows(path):
            yield Line(where, 0, row)
        return
    with gzip.open(path, "rb") if beginning[:2] == _GZIP else path.open("rb") as raw:
        try:
            yield from _rows(path, raw)
        except (OSError, EOFError) as error:
            yield Line(str(path), 0, fault=f"cannot be read further: {error}")


def _rows(path: Path, raw: Any) -> Iterator[Line]:
    first = b""
    while not first.strip():
        first = raw.readline()
        if not first:
            return
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    name = path.name.removesuffix(".gz")
    is_json = name.endswith((".json", ".jsonl", ".ndjson"))
    if not is_json and (text[:1] not in b"{[" or name.endswith((".csv", ".tsv"))):
        yield from _csv_rows(path, first.removeprefix(b"\xef\xbb\xbf"), raw)
    elif text[:1] == b"[" or _is_part(text):
        yield from _document(path, text, raw)
    else:
        yield _parsed(path, 1, text, len(first))
        for number, line in enumerate(raw, 2):
            if line.strip():
                yield _parsed(path, number, line, len(line))


def _is_part(line: bytes) -> bool:
    """Whether a first line is the beginning of one long JSON object rather than a whole one."""
    try:
        json.loads(line)
    except ValueError:
        return line.strip() in {b"{", b"["} or not line.rstrip().endswith(b"}")
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


def _document(path: Path, beginning: bytes, raw: Any) -> Iterator[Line]:
    text = beginning + raw.read(_BIG)
    if raw.read(1):
        yield Line(str(path), 0, fault=f"one JSON value of more than {_BIG >> 20} MiB; write one object a line (JSONL)")
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        yield from _lines_after_all(path, text)
        return
    rows = value
    if isinstance(value, dict):
        held = cast("dict[str, Any]", value)
        inner = next(
            (held[name] for name in ("data", "observations", "logs") if isinstance(held.get(name), list)), None
        )
        rows = [held] if inner is None or held.get("object") == "list" else inner
    held_rows = cast("list[Any]", rows)
    for number, row in enumerate(held_rows, 1):
        where = f"{path}:{number}"
        if isinstance(row, dict):
            yield Line(where, len(text) // len(held_rows), cast("Row", row))
        else:
            yield Line(where, 0, fault="not a JSON object")


def _lines_after_all(path: Path, text: bytes) -> Iterator[Line]:
    """A file whose first line is broken: the others are lines all the same."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _parsed(path, number, line, len(line))


def _csv_rows(path: Path, first: bytes, raw: Any) -> Iterator[Line]:
    text = io.TextIOWrapper(io.BufferedReader(_Joined(first, raw)), encoding="utf-8", newline="")
    head = first.decode("utf-8", "replace")
    reader = csv.DictReader(text, delimiter=max(",;\t", key=head.count))
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row:
                yield Line(where, 0, fault="more cells than headings")
            else:
                size = sum(len(cell or "") for cell in row.values())
                yield Line(where, size, {name.strip(): cell or "" for name, cell in row.items()})
    except (csv.Error, UnicodeDecodeError) as error:
        yield Line(f"{path}:{reader.line_num}", 0, fault=f"not CSV: {error}")


class _Joined(io.RawIOBase):
    """A first line that was read already, and the rest."""

    def __init__(self, first: bytes, rest: Any) -> None:
        self._first, self._rest = first, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._first[: len(buffer)] or self._rest.read(len(buffer))
        self._first = self._first[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def _has(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(name in row for name in names)


#: Source -> what its rows have, most telling first.
_MARKS: tuple[tuple[Source, Callable[[Row], bool]], ...] = (
    ("litellm", _has("request_id", "call_type", "spend")),
    ("openrouter", _has("generation_id", "tokens_prompt")),
    ("portkey", _has("ai_model", "req_units")),
    ("helicone", lambda row: "request_id" in row and ("response_model" in row or "request_created_at" in row)),
    ("langfuse", lambda row: ("trace_id" in row or "traceId" in row) and ("start_time" in row or "startTime" in row)),
    ("codex", _has("timestamp", "type", "payload")),
    ("aider", _has("event", "properties", "time")),
    ("opencode", lambda row: "role" in row and ("providerID" in row or "sessionID" in row)),
    ("claude-code", lambda row: "sessionId" in row and ("uuid" in row or "parentUuid" in row or "message" in row)),
    ("claude-code", lambda row: row.get("type") in {"summary", "file-history-snapshot", "queue-operation"}),
    ("gemini", lambda row: "projectHash" in row or (row.get("type") == "gemini" and "tokens" in row)),
    ("responses", lambda row: "custom_id" in row or "object" in row or "usage" in row or row.get("type") == "message"),
)
#: Headings of files that hold sums, not calls.
_SUMS: tuple[Callable[[Row], bool], ...] = (
    _has("Date", "Slug", "Requests"),
    _has("usage_date_utc"),
    _has("start_time", "end_time", "start_time_iso"),
    _has("day", "total_cost", "request_count"),
    lambda row: bool(isinstance(row.get("results"), list) and _is_sum(row["results"])),
)


def _is_sum(rows: list[Any]) -> bool:
    return bool(rows) and {"day", "total_cost"} <= mapping_of(rows[0]).keys()


def holds_sums(row: Row) -> bool:
    """Whether a file with such rows has sums over many calls, which `reconcile` compares and nothing imports."""
    return any(is_sum(row) for is_sum in _SUMS)


def source_of(row: Row) -> Source | None:
    """What a row is a row of; None when nothing is recognised."""
    return next((source for source, fits in _MARKS if fits(row)), None)
