"""Options that several commands share, and what they are turned into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from tokenmeter.cli import completing
from tokenmeter.dimensions import ACCOUNTS
from tokenmeter.errors import ConfigurationError
from tokenmeter.reports import Query
from tokenmeter.reports.query import parse_conditions

BillPeriod = Annotated[
    str, typer.Option("--period", "-p", help="2026-11, last-month, ...", autocompletion=completing.period)
]
Break = Annotated[str, typer.Option("--by", "-b", help="Break lines down by these, such as member.")]
PeriodOption = Annotated[
    str | None,
    typer.Option(
        "--period",
        "-p",
        help="2026-11, 2026-Q4, today, last-month, last-7d, last-24h, ...",
        autocompletion=completing.period,
    ),
]
SinceOption = Annotated[
    str | None, typer.Option("--since", help="First instant, such as 2026-11-01 or 2026-11-01T10:00.")
]
UntilOption = Annotated[str | None, typer.Option("--until", help="First instant after the end.")]
TzOption = Annotated[str, typer.Option("--tz", envvar="TOKENMETER_TZ", help="Time zone of the calendar (IANA name).")]
GranularityOption = Annotated[
    str | None,
    typer.Option(
        "--granularity",
        "-g",
        help="Also cut by hour, day, week, month, quarter or year.",
        autocompletion=completing.granularity,
    ),
]
By = Annotated[
    list[str] | None,
    typer.Option(
        "--by",
        "-b",
        help="Dimension to group by; repeat it, or separate by commas.",
        autocompletion=completing.dimensions,
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        "-w",
        help="DIMENSION=VALUE, or != for all others; repeat for more values; nothing after = means not set.",
        autocompletion=completing.condition,
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]


def parse_where(conditions: Sequence[str] | None) -> dict[str, list[str | None]]:
    """``["member=ada", "member=bob", "team="]`` as filters.

    Raises:
        ConfigurationError: a condition without ``=``.
    """
    return parse_conditions(conditions or (), "--where")


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


def account_of(parts: Sequence[str]) -> dict[str, str]:
    """``["member=ada"]`` as the account that is meant.

    Raises:
        ConfigurationError: a part that is not FIELD=VALUE, or no account's field.
    """
    account = pairs_of(list(parts))
    if not set(account) <= set(ACCOUNTS) or not all(account.values()):
        raise ConfigurationError(f"Name the account as FIELD=VALUE with {', '.join(ACCOUNTS)}.")
    return account


def pairs_of(parts: list[str]) -> dict[str, str]:
    """``["member=ada"]`` as a mapping."""
    split = (part.partition("=") for part in parts)
    return {name: value for name, _, value in split}
