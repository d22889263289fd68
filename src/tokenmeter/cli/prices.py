"""``prices`` and ``estimate``: the price list in force, and what a file of requests would cost before they are sent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import typer
from rich.markup import escape

from tokenmeter import prices
from tokenmeter.cli.app import Exit, Group, commands, out, progress_out, read_input
from tokenmeter.cli.frame import Frame, command, emit, show_table
from tokenmeter.cli.options import TzOption
from tokenmeter.default import make_pricer
from tokenmeter.display import amount, counted, money_places, visible
from tokenmeter.errors import ConfigurationError, UnknownModelError, reason_of
from tokenmeter.estimating import ASSUMED_ANSWER, Estimate
from tokenmeter.estimating import estimate as estimated
from tokenmeter.ledger import utcnow
from tokenmeter.money import ZERO, add
from tokenmeter.paths import expand
from tokenmeter.periods import parse_instant
from tokenmeter.pricing import Price, PriceList, Pricer, updating
from tokenmeter.pricing.card import find_in_force

app = typer.Typer(cls=Group, help="The price list in force: your own rows over the shipped ones.", no_args_is_help=True)
commands.add_typer(app, name="prices")

ProviderOption = Annotated[str | None, typer.Option("--provider", help="Only this provider.")]
ModelArgument = Annotated[str | None, typer.Argument(help="Only this model.", show_default=False)]
_NAMES = ("provider", "model", "meter", "conditions")
_Key = tuple[str, str, str, str]
_Pair = tuple[Price | None, Price | None]


@command(app, "show", examples=["tokenmeter prices show gpt-5-mini --provider openai"], options=("config", "as_json"))
def show(
    frame: Frame,
    *,
    model: ModelArgument = None,
    provider: ProviderOption = None,
    meter: Annotated[str | None, typer.Option(help="Only this meter, such as cache_read.")] = None,
    at: Annotated[str | None, typer.Option(help="Prices in force at this instant.", show_default="now")] = None,
    tz: TzOption = "UTC",
) -> None:
    """Every price in force, with its conditions, dates and source. With --provider a model is named as in a call."""
    moment = utcnow() if at is None else parse_instant(at, tz)
    listed = _load_price_list(frame)
    if model and provider:
        try:
            rows = prices.show(model, provider=provider, at=moment, price_list=listed)
        except UnknownModelError as error:  # nothing that matches, as without a provider; it says what may be meant
            rows = []
            if not frame.as_json:
                progress_out.print(str(error), markup=False)
    else:
        rows = list(find_in_force(_find_rows(listed, provider, model), moment))
    wanted = [row for row in rows if meter in {None, row.sku_meter}]
    if frame.as_json:
        emit([dict(row.to_dict()) for row in wanted])
    elif wanted:
        cells = [
            [*_describe_row(row), _format_price(row), _format_unit(row), _format_since(row), row.origin]
            for row in wanted
        ]
        show_table(
            [*_NAMES, "price", "per", "since", "origin"],
            cells,
            figures=("price", "per"),
            whole=("model", "meter", "since"),
        )
    else:
        out.print("No price matches. `tokenmeter prices show --provider openai` lists a provider's models.")
    if not wanted:
        raise typer.Exit(Exit.FOUND)


@command(app, "diff", examples=["tokenmeter prices diff 2026-10-01 --provider openai"], options=("config", "as_json"))
def diff(
    frame: Frame,
    *,
    since: Annotated[
        str | None, typer.Argument(help="The earlier instant, such as 2026-10-01.", show_default=False)
    ] = None,
    until: Annotated[str | None, typer.Argument(help="The later instant.", show_default="now")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    provider: ProviderOption = None,
    tz: TzOption = "UTC",
) -> None:
    """Where prices in force differ from the bundled catalog, or, with SINCE, what changed between two instants.

    Exit code 1 when anything differs.
    """
    listed = _load_price_list(frame)
    if since is None:
        pairs: list[_Pair] = [
            (_at_price(one.price, one.catalog_unit_price), one.price)
            for one in prices.diff(price_list=listed)
            if provider in {None, one.price.provider} and model in {None, one.price.model}
        ]
        heads = ("catalog", "in force")
    else:
        later = utcnow() if until is None else parse_instant(until, tz)
        rows = list(_find_rows(listed, provider, model))
        pairs = _pair_changes(find_in_force(rows, parse_instant(since, tz)), find_in_force(rows, later))
        heads = ("before", "after")
    _show_changes(frame, pairs, heads)


@command(app, "update", examples=["tokenmeter prices update --save prices.json"], options=("config", "as_json"))
def update(
    frame: Frame,
    *,
    url: Annotated[
        str | None, typer.Option("--url", help="Where from: a URL, or a file.", show_default="genai-prices' own list")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="Where to keep it.", show_default="the user's data directory")
    ] = None,
    provider: ProviderOption = None,
) -> None:
    """Fetch the newest price list, check it, show what changed, and keep it.

    A list that lost providers or models, or has an impossible price, is refused (exit code 4); what was kept stays.
    """
    now = utcnow()
    path = updating.kept_path() if save is None else expand(save)
    before = list(_find_rows(PriceList.load(newest=updating.newest(path)), provider, None))
    listed = prices.update(url=url, save=path)
    after = _find_rows(listed, provider, None)
    pairs = _pair_changes(find_in_force(before, now), find_in_force(after, now))
    if not frame.as_json:
        used = frame.settings.price_list
        setting = "auto" if save is None else str(path)
        out.print(f"Kept at {path}.", soft_wrap=True)
        if used != setting:
            out.print(f'To use it, write price_list = "{setting}" into tokenmeter.toml.', soft_wrap=True)
    if unread := updating.describe_unread(listed):
        progress_out.print(f"[yellow]care[/]  {escape(unread)}", soft_wrap=True)
    _show_changes(frame, pairs, ("before", "after"), found=False)


def _pair_changes(before: Iterable[Price], after: Iterable[Price]) -> list[_Pair]:
    old, new = ({_key_of(row): row for row in rows} for rows in (before, after))
    return [
        (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if key not in old or key not in new or old[key].per_unit != new[key].per_unit
    ]


def _key_of(row: Price) -> _Key:
    return (row.provider, row.model, row.sku_meter, str(row.conditions.described()))


def _at_price(row: Price, unit_price: Decimal | None) -> Price | None:
    return None if unit_price is None else replace(row, unit_price=unit_price)


def _show_changes(frame: Frame, pairs: Sequence[_Pair], heads: tuple[str, str], *, found: bool = True) -> None:
    if frame.as_json:
        emit([{"before": old and dict(old.to_dict()), "after": new and dict(new.to_dict())} for old, new in pairs])
    elif pairs:
        cells = [
            [*_describe_row(row), _format_price(old), _format_price(new), _format_unit(row), row.origin]
            for old, new in pairs
            if (row := new or old) is not None
        ]
        show_table([*_NAMES, *heads, "per", "origin"], cells, figures=(*heads, "per"), whole=("model", "meter"))
    else:
        out.print("No price differs.")
    if pairs and found:
        raise typer.Exit(Exit.FOUND)


def _load_price_list(frame: Frame) -> PriceList:
    return make_pricer(frame.settings).price_list


def _find_rows(listed: PriceList, provider: str | None, model: str | None) -> Iterator[Price]:
    return (row for row in listed.rows_of(provider) if model in {None, row.model})


def _describe_row(row: Price) -> tuple[str, str, str, str]:
    conditions = ", ".join(f"{name}={value}" for name, value in row.conditions.described().items())
    return visible(row.provider), visible(row.model), row.sku_meter, visible(conditions)


def _format_price(row: Price | None) -> str:
    return "-" if row is None else f"${row.unit_price:f}"


def _format_since(row: Price) -> str:
    return "-" if row.effective_from is None else f"{row.effective_from:%Y-%m-%d}"


def _format_unit(row: Price) -> str:
    return {1_000_000: "1M", 1_000: "1k"}.get(row.per, f"{row.per:,}")


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
    commands,
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
        for asked in _read_requests(file)
    ]
    if frame.as_json:
        emit({"requests": [one.to_dict() for one in found], **_sum_up(found)})
    else:
        _show_estimates(found)
    if any(one.expected_cost is None or one.upper_bound is None for one in found):
        raise typer.Exit(Exit.FOUND)


def _without_auto(frame: Frame) -> str | None:
    """The list that the settings name; a command that ends at once looks for no newer one."""
    chosen = frame.settings.price_list
    if chosen != "auto":
        return chosen
    return str(updating.kept_path()) if updating.newest() is not None else None


def _read_requests(file: Path) -> Iterator[_EstimateLine]:
    """The requests of a file.

    Raises:
        ConfigurationError: the file cannot be read, or a line is no request; says which.
    """
    try:
        text = read_input() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        name = "Standard input" if str(file) == "-" else file
        raise ConfigurationError(f"{name} cannot be read: {reason_of(error)}.") from error
    for number, line in enumerate(
        text.split("\n"), start=1
    ):  # a prompt may hold what else Python takes for a line's end
        if not line.strip():
            continue
        try:
            read: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(
                f"{file}, line {number}: no JSON ({reason_of(error)}); write one request to a line."
            ) from error
        asked = _parse_request(cast("Mapping[str, Any]", read)) if isinstance(read, dict) else None
        if asked is None or not isinstance(asked.body.get("model"), str):
            raise ConfigurationError(
                f"{file}, line {number}: no request with a model; write its body, or a line of a batch file."
            )
        yield asked


def _parse_request(line: Mapping[str, Any]) -> _EstimateLine | None:
    """A body as it is, or out of a batch line."""
    body, params = line.get("body"), line.get("params")
    if isinstance(body, dict) and isinstance(line.get("url"), str):  # OpenAI
        path = line["url"].partition("?")[0].strip("/").removeprefix("v1/")
        return _EstimateLine(cast("Mapping[str, Any]", body), _PATHS.get(path), None, "batch")
    if isinstance(params, dict) and "custom_id" in line:  # Anthropic
        return _EstimateLine(cast("Mapping[str, Any]", params), "messages", "anthropic", "batch")
    return _EstimateLine(line)


def _sum_up(found: list[Estimate]) -> dict[str, Any]:
    likely = most = ZERO
    for one in found:
        likely = add(likely, one.expected_cost or ZERO)
        most = add(most, one.upper_bound or ZERO)
    unpriced = sum(one.expected_cost is None for one in found)
    unbounded = sum(one.upper_bound is None for one in found)
    return {
        "expected_cost": None if found and unpriced == len(found) else f"{likely:f}",
        "upper_bound": None if found and unbounded == len(found) else f"{most:f}",
        "unpriced": unpriced,
        "unbounded": unbounded,
        "answers_assumed": sum("answer_assumed" in one.expected.flags for one in found),
    }


def _show_estimates(found: list[Estimate]) -> None:
    if not found:
        out.print("There is no request in the file.")
        return
    sums: dict[str, list[Any]] = {}
    for one in found:
        row = sums.setdefault(one.model or "-", [0, 0, 0, ZERO, ZERO])
        quantities = {line.sku_meter: line.quantity for line in one.lines}
        row[0] += 1
        row[1] += int(quantities.get("input", 0))
        row[2] += int(quantities.get("output", 0))
        row[3] = None if row[3] is None or one.expected_cost is None else add(row[3], one.expected_cost)
        row[4] = None if row[4] is None or one.upper_bound is None else add(row[4], one.upper_bound)
    places = money_places(cost for row in sums.values() for cost in row[3:] if cost is not None)
    rows = [
        [
            visible(model),
            *(f"{number:,}" for number in numbers),
            _format_cost(likely, places),
            _format_cost(most, places),
        ]
        for model, (*numbers, likely, most) in sorted(sums.items())
    ]
    totals = _sum_up(found)
    heads = ["model", "requests", "input", "output", "likely cost", "at most"]
    show_table(heads, rows, figures=("requests", "input", "output", "likely cost", "at most"))
    likely = _format_sum(totals["expected_cost"], totals["unpriced"], places)
    out.print(f"Likely {likely}, at most {_format_sum(totals['upper_bound'], totals['unbounded'], places)}.")
    if totals["answers_assumed"]:
        assumed = counted(totals["answers_assumed"], "answer is", "answers are")
        out.print(f"{assumed} taken to be {ASSUMED_ANSWER} tokens long; --expected-output-tokens says better.")
    for reason in sorted({f"{one.model}: {one.why_unbounded}" for one in found if one.why_unbounded}):
        out.print(f"No bound for {visible(reason)}.")


def _format_sum(cost: str | None, unknown: int, places: int) -> str:
    """A sum, and of how many requests it is not."""
    known = _format_cost(None if cost is None else Decimal(cost), places)
    return f"{known} without {unknown:,} of unknown cost" if cost is not None and unknown else known


def _format_cost(cost: Decimal | None, places: int) -> str:
    return "unknown" if cost is None else amount(cost, places)
