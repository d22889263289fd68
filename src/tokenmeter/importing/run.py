"""Importing: rows become calls, calls become entries, each once by its id; what was left out is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tokenmeter.attribution import NOBODY, Attribution
from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError, TokenmeterError, shown
from tokenmeter.importing import agents, gateways
from tokenmeter.importing.call import Given, ImportedCall, complete
from tokenmeter.importing.entries import EntryMaker, KnownCalls
from tokenmeter.importing.rows import MappedRows, check_fields, check_paths, response
from tokenmeter.importing.sources import (
    AGENTS,
    SOURCES,
    Line,
    Source,
    files_of,
    holds_sums,
    lines_of,
    source_of,
    usual_folders,
)
from tokenmeter.ledger import Entry
from tokenmeter.meter import Meter
from tokenmeter.money import EXACT, ZERO
from tokenmeter.periods import check_made, parse_instant
from tokenmeter.pricing.price import canonical_condition
from tokenmeter.tables import DecimalMark
from tokenmeter.values import dataclass

_ROWS: Mapping[Source, Callable[[Mapping[str, Any], str, Given], ImportedCall | None]] = {
    "litellm": gateways.litellm,
    "langfuse": gateways.langfuse,
    "helicone": gateways.helicone,
    "openrouter": gateways.openrouter,
    "portkey": gateways.portkey,
    "opencode": agents.opencode,
    "responses": response,
}


class _WholeReader(Protocol):
    """A reader that takes all files of its kind before it gives a call."""

    def read(self, row: Mapping[str, Any], where: str) -> int: ...

    def calls(self) -> Iterator[agents.Told]: ...


_WHOLE: Mapping[str, Callable[[Given], _WholeReader]] = {
    "claude-code": agents.ClaudeCode,
    "codex": agents.Codex,
    "gemini": agents.Gemini,
    "aider": agents.Aider,
}
#: Transcripts are told by the agent, not by the provider.
_SUMS = (
    "sums over many calls, without ids: they are not imported; compare them with `tokenmeter reconcile --file`, which "
    "reads CSV (write the rows of a JSON file as one) and takes `--column day=day` for headings that it does not know"
)
_AN_ESTIMATE = "Transcripts are the agent's own account; what is billed is in the provider's console."


class RowProblem(NamedTuple):
    """A row that was left out or disagrees: its file and line, and why."""

    where: str
    reason: str


@dataclass(slots=True)
class ImportOutcome:
    """What an import did. ``print()`` it.

    Attributes:
        files: How many files were read.
        lines: Rows read.
        recorded: Calls that are in the ledger now and were not before.
        repeated: Calls that were there already, with the same figures.
        completed: Calls that were there as far as their answer had come, and stand whole now.
        merged: Rows that tell a call again which another row tells: blocks of one message, copies of a session.
        not_calls: Rows that are no billed call: prompts, spans, failures, hits of a gateway's own cache.
        conflicts: Calls that are there with other figures, and were left as they are.
        left_out: Rows that could not be read: broken, without an id or an instant, of an unknown shape.
        sources: Source -> calls taken from it.
        first_at: When the first recorded call was made; None when none was recorded.
        last_at: The same of the last.
        cost_in_source: What the sources say these calls cost, each once, US dollars; None when they do not say.
        notes: What to know about the figures.
    """

    files: int = 0
    lines: int = 0
    recorded: int = 0
    repeated: int = 0
    completed: int = 0
    merged: int = 0
    not_calls: int = 0
    conflicts: list[RowProblem] = field(default_factory=list[RowProblem])
    left_out: list[RowProblem] = field(default_factory=list[RowProblem])
    sources: Counter[str] = field(default_factory=Counter[str])
    first_at: datetime | None = None
    last_at: datetime | None = None
    cost_in_source: Decimal | None = None
    notes: list[str] = field(default_factory=list[str])

    @property
    def ok(self) -> bool:
        """Whether every row was taken or is rightly none."""
        return not self.conflicts and not self.left_out

    def __str__(self) -> str:
        told = (
            f"{counted(self.recorded, 'call')} recorded",
            f"{self.repeated:,} already there",
            counted(self.not_calls, "line that is no billed call", "lines that are no billed call"),
            *(
                [counted(self.merged, "line that repeats one of them", "lines that repeat one of them")]
                if self.merged
                else []
            ),
            *([f"{self.completed:,} completed"] if self.completed else []),
            counted(len(self.conflicts), "conflict"),
            f"{len(self.left_out):,} left out",
        )
        lines = [f"{counted(self.lines, 'line')} in {counted(self.files, 'file')}: {', '.join(told)}."]
        if self.first_at is not None and self.last_at is not None:
            days = dict.fromkeys((f"{self.first_at:%Y-%m-%d}", f"{self.last_at:%Y-%m-%d}"))
            lines.append(f"Recorded calls are of {' to '.join(days)} (UTC).")
        if self.cost_in_source is not None:
            lines.append(f"Their sources put them at ${self.cost_in_source:,f}; the ledger has its own prices.")
        lines += self.notes
        for title, problems in (("conflict", self.conflicts), ("left out", self.left_out)):
            lines += [f"  {title}: {one.where}: {one.reason}" for one in problems[:20]]
            if len(problems) > 20:  # noqa: PLR2004 - as many as fit on a screen
                lines.append(f"  ... and {len(problems) - 20:,} more; to_dict() has them all")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        counts = ("files", "lines", "recorded", "repeated", "completed", "merged", "not_calls")
        return {
            **{name: getattr(self, name) for name in counts},
            "conflicts": [one._asdict() for one in self.conflicts],
            "left_out": [one._asdict() for one in self.left_out],
            "sources": dict(self.sources),
            "first_at": None if self.first_at is None else self.first_at.isoformat(),
            "last_at": None if self.last_at is None else self.last_at.isoformat(),
            "cost_in_source": None if self.cost_in_source is None else f"{self.cost_in_source:f}",
            "notes": list(self.notes),
        }


def import_usage(
    meter: Meter,
    paths: str | Path | Sequence[str | Path] = (),
    *,
    source: str | None = None,
    fields: Mapping[str, str] | None = None,
    provider: str | None = None,
    endpoint: str | None = None,
    model: str | None = None,
    at: datetime | date | str | None = None,
    tz: str | None = None,
    processing: str | None = None,
    decimal: DecimalMark | None = None,
    attribution: Attribution | Mapping[str, Any] = NOBODY,
    progress: Callable[[str, int], object] | None = None,
) -> ImportOutcome:
    """Record usage that other programs wrote down, priced like live calls, each call once by its id.

    Transcripts of Claude Code, Codex, Gemini CLI, opencode and aider; logs of LiteLLM, Langfuse, Helicone, OpenRouter
    and Portkey; responses and batch outputs of OpenAI and Anthropic; any JSON lines, JSON array or CSV by a map of
    fields. Packed files as well. What is what is told by the rows themselves.

    Args:
        meter: Where to record.
        paths: Files and folders; none with `source` = where that program keeps its logs.
        source: What it is, where the rows do not tell: ``claude-code``, ``codex``, ``gemini``, ``opencode``, ``aider``,
            ``litellm``, ``langfuse``, ``helicone``, ``openrouter``, ``portkey``, ``responses``.
        fields: What is where in rows of your own: ``{"id": "req.id", "time": "req.ts", "model": "llm.name", "input":
            "llm.in", "cache_read": "llm.cached?", "output": "llm.out", "member": "who"}``; names as of
            `tokenmeter.importing.FIELDS`. A path that no row has is refused, unless it ends in a question mark.
        provider: Provider id, where the rows do not tell, or tell a name that the price list does not know.
        endpoint: SDK method path, the same.
        model: Model, the same.
        at: When the calls were made, the same.
        tz: Zone of instants that have none.
        processing: ``"batch"`` where only you know it.
        decimal: Decimal mark of CSV files (``","`` or ``"."``), where their numbers do not tell.
        attribution: On whose account; what rows say of themselves stays.
        progress: Called with a file and the bytes of it that were read.

    Raises:
        ConfigurationError: no such file, source or field, or a path of `fields` that no row has; nothing was recorded.
        StoreUnavailableError: the rest could not be recorded.
    """
    given = Given(
        provider=provider,
        endpoint=endpoint,
        model=model,
        at=None if at is None else parse_instant(at, tz or "UTC"),
        tz=tz,
        processing=processing,
        decimal=decimal,
        attribution=Attribution.of(attribution),
        fields=fields or {},
        cost_unit=meter.pricer.terms.cost_unit,
        sells=cache(meter.pricer.price_list.sells),
    )
    if given.at is not None:
        check_made(given.at, meter.store.now(), f"at={shown(at)}")
    if canonical_condition("processing", processing) not in {None, "batch"}:
        raise ConfigurationError(f"processing is 'batch' or left out, not {shown(processing)}.")
    if decimal not in {None, ".", ","}:
        raise ConfigurationError(f'decimal is "." or ",", not {decimal!r}.')
    if fields is not None:
        check_fields(fields, timed=given.at is not None)
    named: Source | None = next((known for known in SOURCES if known == source), None)
    if source is not None and named is None:
        raise ConfigurationError(f"Unknown source {source!r}; use one of {', '.join(SOURCES)}.")
    run = _Import(meter, given, named, progress)
    chosen = list(_files(paths, named))  # all of them are looked for before the first is recorded
    if fields is not None:
        rows = (line.row for path in chosen for line in lines_of(path, decimal))
        check_paths(fields, (row for row in rows if row is not None))
    for path in chosen:
        run.read(path)
    return run.finish()


def _files(paths: str | Path | Sequence[str | Path], source: Source | None) -> Iterator[Path]:
    chosen = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    if not chosen:
        if source not in AGENTS:
            raise ConfigurationError(f"Say which files; only {', '.join(AGENTS)} have folders that are known.")
        chosen = usual_folders(source)
    for path in chosen:
        yield from files_of(path)


class _Import:
    """One import."""

    def __init__(
        self, meter: Meter, given: Given, source: Source | None, progress: Callable[[str, int], object] | None
    ) -> None:
        self.outcome = ImportOutcome()
        self._meter, self._given, self._progress = meter, given, progress
        self._source: Source | None = source
        self._entries = EntryMaker(given, meter)
        self._costed: set[str] = set()
        self._known = KnownCalls(meter.store)
        self._mapped = MappedRows(given) if given.fields else None
        self._whole = {name: make(given) for name, make in _WHOLE.items()}
        self._told: Counter[str] = Counter()  # source -> calls as its rows tell them, some more than once

    def read(self, path: Path) -> None:
        """Take one file: its calls are recorded, but for those of agents, which may be copied over files."""
        self.outcome.files += 1
        self._record(self._calls(path))

    def finish(self) -> ImportOutcome:
        """Record what is spread over files."""
        for name, reader in self._whole.items():
            self._record(self._counted(reader.calls(), name))
            self.outcome.merged += self._told[name]
        for path, rows in self._mapped.lacking.items() if self._mapped else ():
            self.outcome.notes.append(f"{path}: {counted(rows, 'line has', 'lines have')} none; read as nothing.")
        if any(self.outcome.sources[name] for name in ("claude-code", "codex", "gemini", "opencode")):
            self.outcome.notes.append(_AN_ESTIMATE)
        return self.outcome

    def _counted(self, calls: Iterable[agents.Told], name: str) -> Iterator[ImportedCall]:
        for call in calls:
            self._told[name] -= 1
            if isinstance(call, ImportedCall):
                self.outcome.sources[name] += 1
                yield complete(call, self._given)
            else:
                self.outcome.left_out.append(RowProblem(*call))

    def _calls(self, path: Path) -> Iterator[ImportedCall]:
        source: Source | None = self._source
        for number, line in enumerate(lines_of(path, self._given.decimal), 1):
            self.outcome.lines += 1
            if number == 1 and self._mapped is None and line.row is not None and holds_sums(line.row):
                self.outcome.left_out.append(RowProblem(str(path), _SUMS))
                return
            if self._progress is not None:
                self._progress(str(path), line.size)
            try:
                if line.row is None:
                    raise ConfigurationError(line.fault or "not readable")
                if self._mapped is None:
                    source = self._source or source_of(line.row) or source
                call = self._call(line, source)
            except (TokenmeterError, ArithmeticError, ValueError, TypeError, KeyError) as error:
                self.outcome.left_out.append(RowProblem(line.where, str(error)))
                continue
            if call is not None:
                self.outcome.sources["mapped" if self._mapped else source or "responses"] += 1
                yield call

    def _call(self, line: Line, source: Source | None) -> ImportedCall | None:
        row = line.row or {}
        if self._mapped is not None:
            call = self._mapped.read(row, line.where)
        elif source is not None and source in self._whole:
            told = self._whole[source].read(row, line.where)
            self._told[source] += told
            self.outcome.not_calls += not told
            return None
        else:
            call = _ROWS[source or "responses"](row, line.where, self._given)
        if call is None:
            self.outcome.not_calls += 1
            return None
        return complete(call, self._given)

    def _record(self, calls: Iterable[ImportedCall]) -> None:
        waiting: list[tuple[ImportedCall, Entry]] = []
        for call in chain.from_iterable(map(_bills, calls)):
            try:
                entry = self._entries.entry(call)
            except TokenmeterError as error:
                self.outcome.left_out.append(RowProblem(call.where, str(error)))
                continue
            rest = self._known.rest(entry) if call.grows else None
            if rest is not None:
                self._complete(rest)
                self._add_cost(call)
                continue
            if self._known.is_new(entry):
                waiting.append((call, entry))
            elif conflict := self._known.conflict(call, entry):
                self.outcome.conflicts.append(RowProblem(call.where, conflict))
                continue
            else:
                self.outcome.repeated += 1
            self._add_cost(call)
            if len(waiting) >= _BATCH:
                self._post(waiting)
                waiting = []
        self._post(waiting)

    def _complete(self, rest: Iterable[Entry]) -> None:
        """Record an answer that is whole by now, in place of what an earlier import read of it."""
        recorded, *_ = self._meter.post_all(rest)
        self.outcome.completed += recorded
        self.outcome.repeated += not recorded

    def _add_cost(self, call: ImportedCall) -> None:
        """What sources say a call cost, each call once."""
        if call.cost_in_source is not None and call.id not in self._costed:
            self._costed.add(call.id)
            self.outcome.cost_in_source = EXACT.add(self.outcome.cost_in_source or ZERO, call.cost_in_source)

    def _post(self, waiting: Sequence[tuple[ImportedCall, Entry]]) -> None:
        outcome = self.outcome
        recordings = self._meter.post_all(entry for _, entry in waiting)
        for (call, _), recorded in zip(waiting, recordings, strict=True):
            if recorded:
                outcome.recorded += 1
                outcome.first_at = min(outcome.first_at or call.at, call.at)
                outcome.last_at = max(outcome.last_at or call.at, call.at)
            else:  # by another process, since we looked
                outcome.repeated += 1


_BATCH = 8_192


def _bills(call: ImportedCall) -> Iterator[ImportedCall]:
    """A call, and before it what outlives its answer and other answers may name as well (a container)."""
    seen = call.observation
    for bill in () if seen is None else seen.shared:
        yield replace(call, id=str(bill.bill_id), observation=bill, usage=None, cost_in_source=None)
    yield call
