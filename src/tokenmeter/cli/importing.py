"""``import`` and ``record``: usage that others wrote down, priced like live calls and recorded once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Unpack

import typer

from tokenmeter.attribution import Attribution
from tokenmeter.cli.app import Exit, commands, exact_stream, out, progress_out, read_input
from tokenmeter.cli.frame import Frame, command
from tokenmeter.cli.options import parse_pairs
from tokenmeter.dimensions import WhoArguments
from tokenmeter.display import count, dollars, visible
from tokenmeter.errors import ConfigurationError, StoreUnavailableError, reason_of
from tokenmeter.importing import SOURCES, ImportOutcome, import_usage
from tokenmeter.ledger import Entry, utcnow
from tokenmeter.paths import expand
from tokenmeter.periods import parse_instant
from tokenmeter.providers import to_wire
from tokenmeter.reports.export import Origin, write
from tokenmeter.reports.fields import entry_fields
from tokenmeter.tables import DecimalMark

_STDIN = Path("-")


class Ending(StrEnum):
    """`tokenmeter.dimensions.Status` as an option has it."""

    ok = "ok"
    error = "error"
    aborted = "aborted"
    timeout = "timeout"


_EXAMPLES = [
    "tokenmeter import claude-code",
    "tokenmeter import codex ~/old/sessions",
    "tokenmeter import spendlogs.csv batch_output.jsonl",
    "tokenmeter import calls.jsonl.gz --map id=id,time=ts,model=llm.name,input=in",
]


@command(commands, "import", examples=_EXAMPLES)
def import_(
    frame: Frame,
    what: Annotated[
        list[str],
        typer.Argument(
            help=f"Files and folders; the name of a source alone means its usual folder: {', '.join(SOURCES)}."
        ),
    ],
    *,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", help="NAME=PATH,...: what is where in rows of your own; PATH? where some lack it."),
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Provider id, where the rows do not show it.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="SDK method path, such as chat.completions.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of calls that name none.")] = None,
    at: Annotated[str | None, typer.Option(help="When the calls were made, where the rows do not say.")] = None,
    zone: Annotated[str | None, typer.Option("--zone", "--tz", help="Time zone of instants that have none.")] = None,
    processing: Annotated[str | None, typer.Option(help="'batch' where only you know it.")] = None,
    decimal: Annotated[
        DecimalMark | None, typer.Option(help="Decimal mark of CSV files, where their numbers do not tell.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeatable.")] = None,
    **who: Unpack[WhoArguments],
) -> None:
    """Record usage from transcripts, logs and kept responses; each call once, however often it is imported.

    Reads Claude Code, Codex, Gemini CLI, opencode, aider, LiteLLM, Langfuse, Helicone, OpenRouter, Portkey, responses
    and batch outputs of OpenAI and Anthropic, and any JSON lines, JSON array or CSV with --map; packed ones too. A call
    that the ledger has already under the same id is left as it is. Exit code 1 when rows were left out or disagree.
    """
    source, paths = _split(what)
    attribution = Attribution(**who, tags=parse_pairs(tag or [], option="--tag"))
    fields = parse_pairs([part for text in map_ or () for part in text.split(",") if part.strip()], option="--map")
    gc.freeze()  # what is loaded by now stays: the collector need not walk it again for every few calls
    with frame.meter(make=True) as meter, progress_out.status("reading") as shown:
        outcome = import_usage(
            meter,
            paths,
            source=source,
            fields=fields or None,
            provider=provider,
            endpoint=endpoint,
            model=model,
            at=at,
            tz=zone,
            processing=processing,
            decimal=decimal,
            attribution=attribution,
            progress=_make_progress(shown.update),
        )
    _tell_outcome(frame, outcome)
    if not outcome.ok:
        raise typer.Exit(Exit.FOUND)


@command(
    commands,
    "record",
    examples=[
        "tokenmeter record answer.json --provider openai --endpoint chat.completions",
        "my-script | tokenmeter record --provider groq --endpoint chat.completions",
    ],
)
def record(
    frame: Frame,
    file: Annotated[Path, typer.Argument(help="The answer, or its usage, as JSON; - reads standard input.")] = _STDIN,
    *,
    provider: Annotated[str, typer.Option(help="Who bills it: openai, anthropic, openrouter, ...")],
    endpoint: Annotated[str, typer.Option(help="SDK method path whose format it has, such as chat.completions.")],
    model: Annotated[str | None, typer.Option(help="Model asked for, where the answer names none.")] = None,
    response_id: Annotated[str | None, typer.Option(help="The answer's id, where it has none.")] = None,
    at: Annotated[str | None, typer.Option(help="When the call was made.", show_default="now")] = None,
    zone: Annotated[str, typer.Option("--zone", "--tz", help="Time zone of an instant that has none.")] = "UTC",
    status: Annotated[Ending, typer.Option(help="How it ended; an error says so itself.")] = Ending.ok,
    processing: Annotated[str | None, typer.Option(help="'batch' where only you know it.")] = None,
    service_tier: Annotated[str | None, typer.Option(help="Tier that served, where the answer does not say.")] = None,
    region: Annotated[str | None, typer.Option(help="Cloud region, where it decides the price.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeatable.")] = None,
    **who: Unpack[WhoArguments],
) -> None:
    """Record one call that no metered client made: priced, attributed and counted by budgets.

    An answer that is in the ledger already is left as it is, and that is no error. An error that the provider sent
    instead of an answer is recorded as a failed call, which costs nothing.
    """
    answer = _read_answer(file)
    with frame.meter(make=True) as meter:
        entry = meter.record(
            answer,
            provider=provider,
            endpoint=endpoint,
            model=model,
            response_id=response_id,
            at=None if at is None else parse_instant(at, zone),
            status=status.value,
            processing=processing,
            service_tier=service_tier,
            region=region,
            attribution=Attribution(**who, tags=parse_pairs(tag or [], option="--tag")),
        )
        if entry is None and meter.faults:
            raise StoreUnavailableError("The call could not be recorded; the log above says why.")
    if frame.as_json:
        write([entry] if entry else [], entry_fields(), exact_stream(), Origin(dataset="entries"), format="jsonl")
    elif entry is None:
        out.print(
            "Nothing was recorded: it is in the ledger already, has nothing new, has not ended, or tokenmeter is "
            "switched off."
        )
    else:
        out.print(f"Recorded: {_describe(entry)}, entry {entry.entry_id}", markup=False)


def _describe(entry: Entry) -> str:
    """What was used and what it cost, in a few words."""
    if entry.status == "error" and entry.cost_source == "none":
        return f"an error ({visible(entry.error_type or 'unknown')}), which costs nothing"
    used = f"{count(entry.usage.input_tokens)} in, {count(entry.usage.output_tokens)} out"
    if "usage_unknown" in entry.flags:
        used = "usage unknown"
    part = ", a part unpriced" if entry.cost_source == "unpriced" else ""
    cost = "unpriced" if entry.billed_cost is None else f"{dollars(entry.billed_cost)} billed{part}"
    return f"{visible(entry.model or entry.endpoint)}, {used}, {cost}"


def _read_answer(file: Path) -> Any:
    name = "Standard input" if file == _STDIN else str(file)
    try:
        text = read_input() if file == _STDIN else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{name} cannot be read: {reason_of(error)}.") from error
    if not (text := text.removeprefix("\ufeff").strip()):
        raise ConfigurationError(f"{name} is empty: give an answer, or its usage object, as JSON.")
    if isinstance(answer := to_wire(text), str):
        raise ConfigurationError(f"{name} is not one JSON value: give one answer; for a log take `tokenmeter import`.")
    return answer


def _split(what: list[str]) -> tuple[str | None, list[Path]]:
    """The source, if the first word names one and no file is called so; and the paths."""
    first, *rest = what
    if first in SOURCES and not Path(first).exists():
        return first, [expand(path) for path in rest]
    return None, [expand(path) for path in what]


def _make_progress(show: Callable[[str], object]) -> Callable[[str, int], None]:
    """Tells of every file and every megabyte read."""
    before, read, told = "", 0, 0

    def progress(file: str, size: int) -> None:
        nonlocal before, read, told
        read += size
        if file != before or read - told > _MEGABYTE:
            before, told = file, read
            show(f"reading {Path(file).name}, {read >> 20:,} MB")

    return progress


_MEGABYTE = 1 << 20


def _tell_outcome(frame: Frame, outcome: ImportOutcome) -> None:
    frame.tell(outcome)
    if outcome.first_at is not None and outcome.last_at is not None and not frame.as_json:
        month = f"{outcome.last_at:%Y-%m}"
        span = "--period this-month" if month == f"{utcnow():%Y-%m}" else f"--period {month}"
        if month != f"{outcome.first_at:%Y-%m}":
            span = f"--since {outcome.first_at:%Y-%m-%d} --granularity month"
        out.print(f"See it with: tokenmeter report --by model {span}", markup=False)
