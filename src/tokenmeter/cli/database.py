"""``db init``, ``migrate``, ``status`` and ``grant``: setting up a shared ledger on PostgreSQL."""

from __future__ import annotations

from types import ModuleType
from typing import Annotated, Literal

import typer

from tokenmeter.cli.console import Exit, emit, out
from tokenmeter.cli.frame import Frame, command
from tokenmeter.errors import ConfigurationError

__all__ = ["app"]

app = typer.Typer(help="Set up a shared ledger on PostgreSQL.", no_args_is_help=True)

UrlArgument = Annotated[
    str | None, typer.Argument(help="postgresql://...; default: the store of the settings.", show_default=False)
]


def _address(frame: Frame, url: str | None) -> str:
    found = url or frame.settings.store
    if found is None or not found.startswith(("postgresql://", "postgres://")):
        raise ConfigurationError(
            "Only a PostgreSQL ledger is set up by hand: name it as postgresql://HOST/DATABASE, or as store= in the "
            "settings. A SQLite ledger sets itself up."
        )
    return found


def _admin() -> ModuleType:
    try:
        from tokenmeter.stores.postgres import admin  # noqa: PLC0415 - the driver is an extra
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise ConfigurationError("This needs an extra: pip install 'tokenmeter-sdk[postgres]'") from error
    return admin


def _tell(frame: Frame, applied: tuple[str, ...]) -> None:
    if frame.as_json:
        emit({"applied": list(applied)})
    else:
        out.print(f"Applied: {', '.join(applied)}." if applied else "Nothing to do: the schema is up to date.")


@command(app, "init", options=("config", "as_json"))
def init(frame: Frame, url: UrlArgument = None) -> None:
    """Make the schema and its tables. Harmless where they exist."""
    _tell(frame, _admin().init(_address(frame, url)))


@command(app, "migrate", options=("config", "as_json"))
def migrate(frame: Frame, url: UrlArgument = None) -> None:
    """Bring the schema up to this release. Older programs go on working beside it."""
    _tell(frame, _admin().migrate(_address(frame, url)))


@command(app, "status", options=("config", "as_json"))
def status(frame: Frame, url: UrlArgument = None) -> None:
    """Which migrations are applied, and who may write and read. Exit code 1 when some are pending."""
    found = _admin().status(_address(frame, url))
    if frame.as_json:
        emit({name: getattr(found, name) for name in found.__slots__})
    else:
        out.print(f"{found.url}, schema {found.schema}")
        for title, values in (
            ("applied", found.applied),
            ("pending", found.pending),
            ("from a newer release", found.unknown),
            ("writers", found.writers),
            ("readers", found.readers),
        ):
            out.print(f"  {title}: {', '.join(map(str, values)) or 'none'}")
    if found.pending:
        raise typer.Exit(Exit.FOUND)


@command(app, "grant", options=("config",))
def grant(
    frame: Frame,
    role: Annotated[Literal["writer", "reader", "owner"], typer.Argument(help="What it may do.")],
    to: Annotated[str, typer.Argument(help="Name of the database role.")],
    url: UrlArgument = None,
) -> None:
    """Let a database role write, read or own the ledger. A writer can append, and never change or delete."""
    _admin().grant(_address(frame, url), role, to)
    out.print(f"{to} is now a {role} of this ledger." if role != "owner" else f"{to} now owns this ledger.")
