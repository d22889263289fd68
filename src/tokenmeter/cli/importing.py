"""``import``: usage from files of provider responses, rated like live calls and recorded once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tokenmeter.attribution import Attribution
from tokenmeter.cli.console import Exit, emit, out, progress_out
from tokenmeter.cli.frame import Frame, app, command
from tokenmeter.cli.options import TzOption
from tokenmeter.errors import ConfigurationError, TokenmeterError
from tokenmeter.ledger import Entry
from tokenmeter.meter import Meter
from tokenmeter.periods import parse_instant
from tokenmeter.providers import observe

__all__ = ["import_"]

JSON = Mapping[str, Any]
#: ``object`` (OpenAI) or ``type`` (Anthropic) of a response body -> provider and SDK method path.
_KINDS = {
    "chat.completion": ("openai", "chat.completions"),
    "text_completion": ("openai", "completions"),
    "response": ("openai", "responses"),
    "list": ("openai", "embeddings"),
    "message": ("anthropic", "messages"),
}
_OK = 200
_OPERATIONS = {"completions": "text_completion", "embeddings": "embeddings"}


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line says of every line."""

    provider: str | None
    endpoint: str | None
    at: datetime | None
    processing: str | None
    attribution: Attribution


@dataclass(frozen=True, slots=True)
class Body:
    """One response out of a file; `line_id` names a batch result's line."""

    content: JSON
    batch: bool = False
    line_id: str | None = None


@command(app, "import")
def import_(
    frame: Frame,
    *,
    files: Annotated[list[Path], typer.Argument(help="JSONL: responses, or OpenAI or Anthropic batch output.")],
    provider: Annotated[str | None, typer.Option(help="Provider id, where the responses do not show it.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="SDK method path, such as chat.completions.")] = None,
    at: Annotated[str | None, typer.Option(help="When the calls were made, where the responses do not say.")] = None,
    processing: Annotated[str | None, typer.Option(help="'batch' where only you know it.")] = None,
    member: Annotated[str | None, typer.Option(help="On whose account.")] = None,
    team: str | None = None,
    organization: str | None = None,
    project: str | None = None,
    route: str | None = None,
    tag: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeatable.")] = None,
    tz: TzOption = "UTC",
) -> None:
    """Record usage from files. The same response is recorded once, however often its file is imported.

    Meant for what was not metered live: a response that a metered client already recorded would be counted again.
    Exit code 1 when lines were left out.
    """
    tags = dict(_tag(text) for text in tag or ())
    who = Attribution(member=member, team=team, organization=organization, project=project, route=route, tags=tags)
    given = Given(provider, endpoint, None if at is None else parse_instant(at, tz), processing, who)
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ConfigurationError(f"No such file: {', '.join(missing)}.")
    with frame.meter(make=True) as meter:
        counts, problems = _import(files, given, meter)
    if frame.as_json:
        emit({**counts, "problems": problems})
    else:
        out.print(
            f"{counts['recorded']:,} recorded, {counts['repeated']:,} already there, "
            f"{counts['unbilled']:,} failed or without usage, {counts['left_out']:,} left out."
        )
        for problem in problems[:20]:
            out.print(f"  {problem}", markup=False)
    if counts["left_out"]:
        raise typer.Exit(Exit.FOUND)


def _tag(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigurationError(f"--tag {text!r} must read NAME=VALUE.")
    return name, value


def _import(files: list[Path], given: Given, meter: Meter) -> tuple[dict[str, int], list[str]]:
    counts: Counter[str] = Counter()
    problems: list[str] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=progress_out, transient=True, disable=not progress_out.is_terminal) as progress:
        for file in files:
            task = progress.add_task(file.name, total=file.stat().st_size)
            source = _Source(file, given, meter)
            for recorded in meter.post_all(source.entries(partial(progress.advance, task))):
                counts["recorded" if recorded else "repeated"] += 1
            counts += source.counts
            problems += source.problems
    names = ("recorded", "repeated", "unbilled", "left_out")
    return {name: counts[name] for name in names}, problems


class _Source:
    """One file on its way into the ledger.

    Attributes:
        counts: Lines that make no entry: ``unbilled`` and ``left_out``.
        problems: Why lines were left out.
    """

    def __init__(self, file: Path, given: Given, meter: Meter) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self._file, self._given, self._meter = file, given, meter

    def entries(self, advance: Callable[[int], None]) -> Iterator[Entry]:
        """The entries of all lines; `advance` is told how many bytes were read."""
        with self._file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                advance(len(line))
                if not line.strip():
                    continue
                try:
                    entry = _read(line, self._given, self._meter)
                except TokenmeterError as error:
                    self.counts["left_out"] += 1
                    self.problems.append(f"{self._file.name}:{number}: {error}")
                else:
                    if entry is not None:
                        yield entry
                    else:
                        self.counts["unbilled"] += 1


def _read(line: bytes, given: Given, meter: Meter) -> Entry | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigurationError("not JSON") from None
    body = _body(content)
    return None if body is None else _entry(body, given, meter)


def _body(line: object) -> Body | None:
    """The response in a line: itself, or inside an OpenAI or Anthropic batch result; None in a failed one."""
    if not isinstance(line, dict):
        raise ConfigurationError("not a JSON object")
    content = cast("dict[str, Any]", line)
    if "custom_id" not in content:
        return Body(content)
    found: object = content.get("response") or content.get("result") or {}
    if not isinstance(found, dict):
        raise ConfigurationError("a batch line whose result is no JSON object")
    answer = cast("dict[str, Any]", found)
    body: Any = answer.get("body") or answer.get("message")
    if not isinstance(body, dict) or answer.get("status_code", _OK) != _OK:
        return None
    return Body(cast("dict[str, Any]", body), batch=True, line_id=content.get("id"))


def _entry(body: Body, given: Given, meter: Meter) -> Entry | None:
    """The entry of one response; None when it used nothing."""
    provider, endpoint = _where(body, given)
    processing = given.processing or ("batch" if body.batch else None)
    seen = observe(body.content, provider=provider, endpoint=endpoint, processing=processing)
    if not seen.consumptions:
        if _says_usage(body.content):
            raise ConfigurationError("its usage cannot be read, so that it would be missing")
        return None
    moment = _moment(body.content) or given.at
    if moment is None:
        raise ConfigurationError("the response does not say when it was made: give --at")
    response_id = seen.response_id or body.line_id
    if response_id is None:
        raise ConfigurationError("the response has no id, so that it could be counted twice")
    rating = meter.pricer.rate(seen, provider=provider, endpoint=endpoint, at=moment, attribution=given.attribution)
    return Entry(
        occurred_at=moment,
        provider=provider,
        endpoint=endpoint,
        operation=_OPERATIONS.get(endpoint, "chat"),
        response_model=seen.response_model,
        response_id=response_id,
        service_tier=seen.service_tier,
        attribution=given.attribution,
        usage=seen.usage,
        charges=rating.charges,
        list_cost=rating.list_cost,
        contracted_cost=rating.contracted_cost,
        billed_cost=rating.billed_cost,
        cost_source=rating.cost_source,
        flags=tuple(sorted(seen.flags | rating.flags | {"imported"})),
        price_list_hash=meter.pricer.price_list_hash,
        raw_usage=None if seen.raw_usage is None else json.dumps(seen.raw_usage, default=str),
        dedup_key=f"{provider}:{response_id}",
    )


def _where(body: Body, given: Given) -> tuple[str, str]:
    kind = body.content.get("object") or body.content.get("type")
    provider, endpoint = _KINDS.get(str(kind), (None, None))
    provider, endpoint = given.provider or provider, given.endpoint or endpoint
    if provider is None or endpoint is None:
        raise ConfigurationError(f"what kind of response {kind!r} is cannot be told: give --provider and --endpoint")
    return provider, endpoint


def _moment(content: JSON) -> datetime | None:
    for name in ("created", "created_at"):
        value = content.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            with suppress(ValueError, OverflowError, OSError):  # no instant, whatever it is
                return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            with suppress(ConfigurationError):
                return parse_instant(value)
    return None


def _says_usage(content: JSON) -> bool:
    """Whether a response has a usage that is not simply nothing."""
    usage = content.get("usage")
    return any(cast("dict[str, Any]", usage).values()) if isinstance(usage, dict) else bool(usage)
