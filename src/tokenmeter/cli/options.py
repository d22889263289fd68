"""Options that several commands share: what the shell offers for them at the tab key, and what they are turned into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenmeter.cli.frame import Frame
from tokenmeter.dimensions import ACCOUNTS, DIMENSIONS
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import utcnow
from tokenmeter.periods import CALENDAR_UNITS, zone
from tokenmeter.reports import Query
from tokenmeter.reports.query import parse_conditions
from tokenmeter.texts import suggest
from tokenmeter.values import dataclass

_PERIODS = (
    "today",
    "yesterday",
    "this-week",
    "last-week",
    "this-month",
    "last-month",
    "last-7d",
    "last-30d",
    "last-24h",
)
#: How far back values are looked for: who uses the ledger now is meant, and the answer must come at once.
_RECENT = timedelta(days=90)
_MOST = 200


def complete_dimensions(incomplete: str) -> list[str]:
    """``member,mo`` -> ``member,model``."""
    before, comma, begun = incomplete.rpartition(",")
    named = set(before.split(","))
    return [f"{before}{comma}{name}" for name in DIMENSIONS if name.startswith(begun) and name not in named]


def complete_granularity(incomplete: str) -> list[str]:
    """Calendar units."""
    return [unit for unit in CALENDAR_UNITS if unit.startswith(incomplete)]


def complete_period(incomplete: str) -> list[str]:
    """Periods by name, and the last twelve months."""
    now = utcnow()
    months = [divmod(now.year * 12 + now.month - 1 - back, 12) for back in range(12)]
    known = [*_PERIODS, *(f"{year}-{month + 1:02d}" for year, month in months)]
    return [one for one in known if one.startswith(incomplete)]


def complete_condition(ctx: typer.Context, incomplete: str) -> list[str]:
    """``member=a`` -> ``member=ada``: a dimension, then a value of it."""
    return _complete_condition(ctx, incomplete, DIMENSIONS)


def complete_account(ctx: typer.Context, incomplete: str) -> list[str]:
    """The same for what an invoice is made out to."""
    return _complete_condition(ctx, incomplete, ACCOUNTS)


def _complete_condition(ctx: typer.Context, incomplete: str, names: tuple[str, ...]) -> list[str]:
    name, equals, begun = incomplete.partition("=")
    if not equals:
        return [f"{one}=" for one in names if one.startswith(name)]
    if name not in names:
        return []
    try:
        return [f"{name}={value}" for value in _find_values(ctx.params, name) if value.startswith(begun)][:_MOST]
    except Exception:  # noqa: BLE001 - a tab key must never print an error
        return []


def _find_values(given: dict[str, Any], name: str) -> Iterator[str]:
    config = given.get("config")
    frame = Frame(store=given.get("store"), config=None if config is None else Path(config))
    now = utcnow()
    with frame.ledger() as store:
        # Until tomorrow: what was recorded a moment ago is offered, too.
        groups = store.aggregate([now - _RECENT, now + timedelta(days=1)], [name])
    yield from sorted({str(group.group[0]) for group in groups if group.group[0] is not None})


BillPeriod = Annotated[
    str, typer.Option("--period", "-p", help="2026-11, last-month, ...", autocompletion=complete_period)
]
PeriodOption = Annotated[
    str | None,
    typer.Option(
        "--period",
        "-p",
        help="2026-11, 2026-Q4, today, last-month, last-7d, last-24h, all, ...",
        autocompletion=complete_period,
    ),
]
SinceOption = Annotated[
    str | None, typer.Option("--since", help="First instant, such as 2026-11-01 or 2026-11-01T10:00.")
]
UntilOption = Annotated[str | None, typer.Option("--until", help="First instant after the end.")]


def _check_zone(name: str | None) -> str | None:
    """`name`, or a ConfigurationError, whether the command comes to use it or not."""
    if name is not None:
        zone(name)
    return name


TzOption = Annotated[
    str,
    typer.Option("--tz", envvar="TOKENMETER_TZ", callback=_check_zone, help="Time zone of the calendar (IANA name)."),
]
#: For commands about the books, which have a zone: see `books_zone` in `tokenmeter.cli.invoicing`.
BooksTzOption = Annotated[
    str | None,
    typer.Option(
        "--tz",
        envvar="TOKENMETER_TZ",
        callback=_check_zone,
        help="Time zone in which months are cut.",
        show_default="tz of [billing], else that of the last closing, else UTC",
    ),
]
GranularityOption = Annotated[
    str | None,
    typer.Option(
        "--granularity",
        "-g",
        help="Also cut by hour, day, week, month, quarter or year.",
        autocompletion=complete_granularity,
    ),
]
By = Annotated[
    list[str] | None,
    typer.Option(
        "--by",
        "-b",
        help="Dimension to group by; repeat it, or separate by commas.",
        autocompletion=complete_dimensions,
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        "-w",
        help="DIMENSION=VALUE, or != for all others; repeat for more values; nothing after = means not set.",
        autocompletion=complete_condition,
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitOptions:
    """The options that say what a report is split by."""

    by: By = None
    granularity: GranularityOption = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionOptions:
    """The options that say which entries a command is about."""

    period: PeriodOption = None
    since: SinceOption = None
    until: UntilOption = None
    where: Where = None
    tz: TzOption = "UTC"

    def query(self, groups: SplitOptions | None = None) -> Query:
        """What is asked for.

        Raises:
            ConfigurationError: an option that does not say what it is about.
        """
        asked = groups or SplitOptions()
        return Query.parse(
            by=",".join(asked.by) if asked.by else (),
            since=self.since,
            until=self.until,
            period=self.period,
            granularity=asked.granularity,
            where=parse_conditions(self.where or (), "--where"),
            tz=self.tz,
        )


def parse_account(parts: Sequence[str]) -> dict[str, str]:
    """``["member=ada"]`` as the account that is meant.

    Raises:
        ConfigurationError: a part that is not FIELD=VALUE, or no account's field; or a field has two values.
    """
    account = parse_pairs([part for part in parts if part.find("=") > 0])
    if len(account) < len(set(parts)) or not set(account) <= set(ACCOUNTS) or not all(account.values()):
        meant = next(filter(None, (suggest(name, ACCOUNTS) for name in account if name not in ACCOUNTS)), "")
        raise ConfigurationError(
            f"Name the account as FIELD=VALUE, such as member=ada, with {', '.join(ACCOUNTS)}.{meant}"
        )
    return account


def parse_pairs(parts: list[str], *, option: str | None = None, empty: bool = False) -> dict[str, str]:
    """``["member=ada"]`` as a mapping.

    Args:
        parts: As they were typed.
        option: The option they stand behind, for what is told.
        empty: Whether a value may be empty, and blanks around a part count; without an option they always do.

    Raises:
        ConfigurationError: one of them has no name, no ``=``, or lacks its value; or a name has two values.
    """
    if option is not None and not empty:
        parts = [part.strip() for part in parts]
        if bare := next((part for part in parts if not all(part.partition("="))), None):
            raise ConfigurationError(f"{option} {bare!r} must read NAME=VALUE.")
    lists = parse_lists(parts, option=option)
    for name, (first, *others) in lists.items():
        if set(others) - {first}:
            raise ConfigurationError(f"{option or ''} {name} is given twice: {', '.join((first, *others))}.".lstrip())
    return {name: values[0] for name, values in lists.items()}


def parse_lists(parts: list[str], *, option: str | None = None) -> dict[str, list[str]]:
    """``["cost=Net", "cost=Tax"]`` as a mapping to lists.

    Raises:
        ConfigurationError: one of them has no name, or no ``=``.
    """
    lists: dict[str, list[str]] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not name or not equals:
            raise ConfigurationError(f"{option or ''} {part!r} must read NAME=VALUE.".lstrip())
        lists.setdefault(name, []).append(value)
    return lists
