"""``prices show``, ``prices diff`` and ``prices update``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer

from tokenmeter import prices
from tokenmeter.cli.console import Exit, emit, out, show_table
from tokenmeter.cli.frame import Frame, command
from tokenmeter.cli.options import TzOption
from tokenmeter.default import make_pricer
from tokenmeter.ledger import utcnow
from tokenmeter.periods import parse_instant
from tokenmeter.pricing import Price, PriceList, updating
from tokenmeter.reports.layout import visible

app = typer.Typer(help="The price list in force: your own rows over the shipped ones.", no_args_is_help=True)

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
    listed = _price_list(frame)
    if model and provider:
        rows = prices.show(model, provider=provider, at=moment, price_list=listed)
    else:
        rows = [row for row in _rows(listed, provider, model) if row.holds(moment)]
    wanted = [row for row in rows if meter in {None, row.sku_meter}]
    if frame.as_json:
        emit([dict(row.to_dict()) for row in wanted])
    elif wanted:
        cells = [[*_names(row), _price(row), _per(row), _since(row), row.origin] for row in wanted]
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
    listed = _price_list(frame)
    if since is None:
        pairs: list[_Pair] = [
            (_at_price(one.price, one.catalog_unit_price), one.price)
            for one in prices.diff(price_list=listed)
            if provider in {None, one.price.provider} and model in {None, one.price.model}
        ]
        heads = ("catalog", "in force")
    else:
        later = utcnow() if until is None else parse_instant(until, tz)
        rows = list(_rows(listed, provider, model))
        pairs = _changes(_in_force(rows, parse_instant(since, tz)), _in_force(rows, later))
        heads = ("before", "after")
    _show_changes(frame, pairs, heads)


@command(app, "update", options=("config", "as_json"))
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
    """Fetch the newest price list, check it, show what changed, and keep it. The only command that uses the network.

    A list that lost providers or models, or has an impossible price, is refused (exit code 4); what was kept stays.

    Example: tokenmeter prices update --save prices.json
    """
    now = utcnow()
    path = updating.kept_path() if save is None else save.expanduser()
    before = _in_force(list(_rows(PriceList.load(newest=updating.newest(path)), provider, None)), now)
    after = _in_force(list(_rows(prices.update(url=url, save=path), provider, None)), now)
    pairs = _changes(before, after)
    if not frame.as_json:
        used = frame.settings.price_list
        setting = "auto" if save is None else str(path)
        out.print(f"Kept at {path}.", soft_wrap=True)
        if used != setting:
            out.print(f'To use it, write price_list = "{setting}" into tokenmeter.toml.', soft_wrap=True)
    _show_changes(frame, pairs, ("before", "after"), found=False)


def _changes(before: Mapping[_Key, Price], after: Mapping[_Key, Price]) -> list[_Pair]:
    return [
        (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if key not in before or key not in after or before[key].per_unit != after[key].per_unit
    ]


def _at_price(row: Price, unit_price: Decimal | None) -> Price | None:
    return None if unit_price is None else replace(row, unit_price=unit_price)


def _show_changes(frame: Frame, pairs: Sequence[_Pair], heads: tuple[str, str], *, found: bool = True) -> None:
    if frame.as_json:
        emit([{"before": old and dict(old.to_dict()), "after": new and dict(new.to_dict())} for old, new in pairs])
    elif pairs:
        cells = [
            [*_names(row), _price(old), _price(new), _per(row), row.origin]
            for old, new in pairs
            if (row := new or old) is not None
        ]
        show_table([*_NAMES, *heads, "per", "origin"], cells, figures=(*heads, "per"), whole=("model", "meter"))
    else:
        out.print("No price differs.")
    if pairs and found:
        raise typer.Exit(Exit.FOUND)


def _price_list(frame: Frame) -> PriceList:
    return make_pricer(frame.settings).price_list


def _rows(listed: PriceList, provider: str | None, model: str | None) -> Iterator[Price]:
    return (row for row in listed.rows if provider in {None, row.provider} and model in {None, row.model})


def _in_force(rows: list[Price], at: datetime) -> dict[_Key, Price]:
    """The strongest row per (provider, model, meter, conditions); `rows` come strongest layer first."""
    found: dict[_Key, Price] = {}
    for row in rows:
        key = (row.provider, row.model, row.sku_meter, str(row.conditions.described()))
        if row.holds(at) and (key not in found or (row.origin == found[key].origin and row.rank > found[key].rank)):
            found[key] = row
    return found


def _names(row: Price) -> tuple[str, str, str, str]:
    conditions = ", ".join(f"{name}={value}" for name, value in row.conditions.described().items())
    return visible(row.provider), visible(row.model), row.sku_meter, visible(conditions)


def _price(row: Price | None) -> str:
    return "-" if row is None else f"${row.unit_price:f}"


def _since(row: Price) -> str:
    return "-" if row.effective_from is None else f"{row.effective_from:%Y-%m-%d}"


def _per(row: Price) -> str:
    return {1_000_000: "1M", 1_000: "1k"}.get(row.per, f"{row.per:,}")
