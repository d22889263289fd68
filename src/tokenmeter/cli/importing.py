"""``import``: usage that other programs wrote down, priced like live calls and recorded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Unpack

import typer

from tokenmeter.attribution import Attribution
from tokenmeter.cli.console import Exit, emit, out, progress_out
from tokenmeter.cli.frame import Frame, app, command
from tokenmeter.dimensions import WhoArguments
from tokenmeter.errors import ConfigurationError
from tokenmeter.importing import SOURCES, ImportOutcome, import_usage
from tokenmeter.ledger import utcnow
from tokenmeter.tables import DecimalMark

__all__ = ["import_"]

_EXAMPLES = [
    "tokenmeter import claude-code",
    "tokenmeter import codex ~/old/sessions",
    "tokenmeter import spendlogs.csv batch_output.jsonl",
    "tokenmeter import calls.jsonl.gz --map id=req.id,time=req.ts,model=llm.name,input=llm.in,output=llm.out",
]


@command(app, "import", examples=_EXAMPLES)
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
        list[str] | None, typer.Option("--map", help="NAME=PATH,...: what is where in rows of your own.")
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
    and batch outputs of OpenAI and Anthropic, and any JSON lines, JSON array or CSV with --map; gzip too. A call that
    the ledger has already under the same id is left as it is. Exit code 1 when rows were left out or disagree.
    """
    source, paths = _split(what)
    attribution = Attribution(
        **who,
        tags=dict(_pair(text, "--tag") for text in tag or ()),
    )
    fields = dict(_pair(part, "--map") for text in map_ or () for part in text.split(",") if part.strip())
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
            progress=_shower(shown.update),
        )
    _tell(frame, outcome)
    if not outcome.ok:
        raise typer.Exit(Exit.FOUND)


def _split(what: list[str]) -> tuple[str | None, list[Path]]:
    """The source, if the first word names one and no file is called so; and the paths."""
    first, *rest = what
    if first in SOURCES and not Path(first).exists():
        return first, [Path(path).expanduser() for path in rest]
    return None, [Path(path).expanduser() for path in what]


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.strip().partition("=")
    if not (name and equals and value):
        raise ConfigurationError(f"{option} {text!r} must read NAME=VALUE.")
    return name, value


def _shower(show: Callable[[str], object]) -> Callable[[str, int], None]:
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


def _tell(frame: Frame, outcome: ImportOutcome) -> None:
    if frame.as_json:
        emit(outcome.to_dict())
        return
    out.print(str(outcome), markup=False)
    if outcome.last_at is not None:
        month = f"{outcome.last_at:%Y-%m}"
        period = "this-month" if month == f"{utcnow():%Y-%m}" else month
        out.print(f"See it with: tokenmeter report --by model --period {period}", markup=False)
