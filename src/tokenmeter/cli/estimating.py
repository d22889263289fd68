"""``estimate``: what a file of requests would cost, before they are sent."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import typer

from tokenmeter.cli.console import Exit, emit, out, show_table
from tokenmeter.cli.frame import Frame, app, command
from tokenmeter.cli.options import TzOption
from tokenmeter.default import make_pricer
from tokenmeter.errors import ConfigurationError
from tokenmeter.estimating import Estimate
from tokenmeter.estimating import estimate as estimated
from tokenmeter.money import ZERO, add, round_to
from tokenmeter.periods import parse_instant
from tokenmeter.pricing import Pricer
from tokenmeter.reports.layout import visible

_PATHS = {
    "chat/completions": "chat.completions",
    "responses": "responses",
    "embeddings": "embeddings",
    "completions": "completions",
    "messages": "messages",
}


class _EstimateLine(NamedTuple):
    """One request of the file."""

    body: Mapping[str, Any]
    endpoint: str | None = None
    provider: str | None = None
    processing: str | None = None


class _NewestPrices(NamedTuple):
    pricer: Pricer


@command(
    app,
    "estimate",
    options=("config", "as_json"),
    examples=["tokenmeter estimate requests.jsonl", "tokenmeter estimate batch.jsonl --expected-output-tokens 300"],
)
def estimate(
    frame: Frame,
    file: Annotated[Path, typer.Argument(help="Requests, one JSON object to a line; - reads standard input.")],
    *,
    provider: Annotated[str | None, typer.Option(help="Who would bill them.", show_default="by the model")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="SDK method path of their format.", show_default="by the body")
    ] = None,
    expected_output_tokens: Annotated[
        int | None,
        typer.Option(min=0, help="How long an answer will likely be.", show_default="its limit, 500 at most"),
    ] = None,
    at: Annotated[str | None, typer.Option(help="The day whose prices count.", show_default="now")] = None,
    tz: TzOption = "UTC",
) -> None:
    """What a file of requests would cost: the likely cost and the most it can be, by model. Nothing is sent.

    A line is a request's body, or a line of an OpenAI or Anthropic batch file (then at batch prices). Exit code 1 when
    some request has no price or no bound.
    """
    priced = _NewestPrices(make_pricer(frame.settings.model_copy(update={"price_list": _without_auto(frame)})))
    moment = None if at is None else parse_instant(at, tz)
    found = [
        estimated(
            priced,
            provider=provider or asked.provider,
            endpoint=endpoint or asked.endpoint,
            processing=asked.processing,
            expected_output_tokens=expected_output_tokens,
            at=moment,
            request=asked.body,
        )
        for asked in _requests(file)
    ]
    if frame.as_json:
        emit({"requests": [one.to_dict() for one in found], **_totals(found)})
    else:
        _show(found)
    if any(one.expected_cost is None or one.upper_bound is None for one in found):
        raise typer.Exit(Exit.FOUND)


def _without_auto(frame: Frame) -> str | None:
    """The list that the settings name; a command that ends at once looks for no newer one."""
    from tokenmeter.pricing import updating  # noqa: PLC0415 - only here

    chosen = frame.settings.price_list
    if chosen != "auto":
        return chosen
    return str(updating.kept_path()) if updating.newest() is not None else None


def _requests(file: Path) -> Iterator[_EstimateLine]:
    """The requests of a file.

    Raises:
        ConfigurationError: the file cannot be read, or a line is no request; says which.
    """
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}.") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            read: object = json.loads(line)
        except ValueError as error:
            raise ConfigurationError(
                f"{file}, line {number}: no JSON ({error}); write one request to a line."
            ) from error
        asked = _asked(cast("Mapping[str, Any]", read)) if isinstance(read, dict) else None
        if asked is None or not isinstance(asked.body.get("model"), str):
            raise ConfigurationError(
                f"{file}, line {number}: no request with a model; write its body, or a line of a batch file."
            )
        yield asked


def _asked(line: Mapping[str, Any]) -> _EstimateLine | None:
    """A body as it is, or out of a batch line."""
    body, params = line.get("body"), line.get("params")
    if isinstance(body, dict) and isinstance(line.get("url"), str):  # OpenAI
        path = line["url"].partition("?")[0].strip("/").removeprefix("v1/")
        return _EstimateLine(cast("Mapping[str, Any]", body), _PATHS.get(path), None, "batch")
    if isinstance(params, dict) and "custom_id" in line:  # Anthropic
        return _EstimateLine(cast("Mapping[str, Any]", params), "messages", "anthropic", "batch")
    return _EstimateLine(line)


def _totals(found: list[Estimate]) -> dict[str, Any]:
    likely = most = ZERO
    for one in found:
        likely = add(likely, one.expected_cost or ZERO)
        most = add(most, one.upper_bound or ZERO)
    unpriced = sum(one.expected_cost is None for one in found)
    unbounded = sum(one.upper_bound is None for one in found)
    return {
        "expected_cost": f"{likely:f}",
        "upper_bound": f"{most:f}",
        "unpriced": unpriced,
        "unbounded": unbounded,
        "answers_assumed": sum("answer_assumed" in one.expected.flags for one in found),
    }


def _show(found: list[Estimate]) -> None:
    if not found:
        out.print("There is no request in the file.")
        return
    sums: dict[str, list[Any]] = {}
    for one in found:
        row = sums.setdefault(one.model or "-", [0, 0, 0, ZERO, ZERO, 0])
        quantities = {line.sku_meter: line.quantity for line in one.lines}
        row[0] += 1
        row[1] += int(quantities.get("input", 0))
        row[2] += int(quantities.get("output", 0))
        row[3] = None if row[3] is None or one.expected_cost is None else add(row[3], one.expected_cost)
        row[4] = None if row[4] is None or one.upper_bound is None else add(row[4], one.upper_bound)
    rows = [
        [visible(model), f"{count:,}", f"{prompt:,}", f"{answer:,}", _money(likely), _money(most)]
        for model, (count, prompt, answer, likely, most, _) in sorted(sums.items())
    ]
    totals = _totals(found)
    heads = ["model", "requests", "input", "output", "likely cost", "at most"]
    show_table(heads, rows, figures=("requests", "input", "output", "likely cost", "at most"))
    out.print(f"Likely {_money(Decimal(totals['expected_cost']))}, at most {_money(Decimal(totals['upper_bound']))}.")
    if totals["answers_assumed"]:
        out.print(
            f"{totals['answers_assumed']:,} answers are taken to be 500 tokens long; --expected-output-tokens says "
            "better."
        )
    for reason in sorted({f"{one.model}: {one.why_unbounded}" for one in found if one.why_unbounded}):
        out.print(f"No bound for {visible(reason)}.")


def _money(amount: Decimal | None) -> str:
    return "unknown" if amount is None else f"${round_to(amount, 4):,f}"
