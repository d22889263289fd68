"""Options that several commands share, and what they are turned into."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

import typer

from tokenmeter.config import Settings, load_settings
from tokenmeter.errors import ConfigurationError
from tokenmeter.reports import Query
from tokenmeter.stores import default_path, open_store
from tokenmeter.stores.base import Store

__all__ = [
    "BillPeriod",
    "Break",
    "By",
    "ConfigOption",
    "GranularityOption",
    "JsonOption",
    "OverwriteOption",
    "PeriodOption",
    "SinceOption",
    "StoreOption",
    "TzOption",
    "UntilOption",
    "Where",
    "ledger",
    "pairs_of",
    "parse_where",
    "query_of",
    "settings_of",
]

StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Ledger URL, such as sqlite:///usage.db.", show_default="from the settings"),
]
BillPeriod = Annotated[str, typer.Option("--period", "-p", help="2026-11, last-month, ...")]
Break = Annotated[str, typer.Option("--by", "-b", help="Break lines down by these, such as member.")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Path of tokenmeter.toml.", show_default="looked for")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON; errors too.")]
PeriodOption = Annotated[
    str | None, typer.Option("--period", "-p", help="2026-11, 2026-Q4, today, last-month, last-7d, last-24h, ...")
]
SinceOption = Annotated[
    str | None, typer.Option("--since", help="First instant, such as 2026-11-01 or 2026-11-01T10:00.")
]
UntilOption = Annotated[str | None, typer.Option("--until", help="First instant after the end.")]
TzOption = Annotated[str, typer.Option("--tz", envvar="TOKENMETER_TZ", help="Time zone of the calendar (IANA name).")]
GranularityOption = Annotated[
    str | None, typer.Option("--granularity", "-g", help="Also cut by hour, day, week, month, quarter or year.")
]
By = Annotated[
    list[str] | None, typer.Option("--by", "-b", help="Dimension to group by; repeat it, or separate by commas.")
]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", "-w", help="DIMENSION=VALUE; repeat for more values; nothing after = means not set."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]


def settings_of(store: str | None, config: Path | None) -> Settings:
    """Settings as a program would load them, with the command line's store and file first."""
    return load_settings(store=store, config=config)


@contextmanager
def ledger(store: str | None, config: Path | None) -> Generator[Store]:
    """The ledger, open for reading; a missing file is not made.

    Raises:
        ConfigurationError: there is no such file.
    """
    url = settings_of(store, config).store
    path = default_path() if url is None else Path(unquote(url[len("sqlite:///") :]))
    if (url is None or url.startswith("sqlite:///")) and not path.exists():
        raise ConfigurationError(
            f"There is no ledger at {path}. The first metered call makes one; name another with --store or --config."
        )
    opened = open_store(url)
    try:
        yield opened
    finally:
        opened.close()


def parse_where(conditions: Sequence[str] | None) -> dict[str, list[str | None]]:
    """``["member=ada", "member=bob", "team="]`` as filters.

    Raises:
        ConfigurationError: a condition without ``=``.
    """
    where: dict[str, list[str | None]] = {}
    for condition in conditions or ():
        name, equals, value = condition.partition("=")
        if not equals:
            raise ConfigurationError(f"--where {condition!r} must read DIMENSION=VALUE, such as member=ada.")
        where.setdefault(name.strip(), []).append(value or None)
    return where


def query_of(
    period: str | None,
    since: str | None,
    until: str | None,
    where: Sequence[str] | None,
    tz: str,
    *,
    by: Sequence[str] | None = None,
    granularity: str | None = None,
) -> Query:
    """The query that the shared options ask for."""
    return Query.parse(
        by=",".join(by or ()) if by else (),
        since=since,
        until=until,
        period=period,
        granularity=granularity,
        where=parse_where(where),
        tz=tz,
    )


def pairs_of(parts: list[str]) -> dict[str, str]:
    """``["member=ada"]`` as a mapping."""
    split = (part.partition("=") for part in parts)
    return {name: value for name, _, value in split}
