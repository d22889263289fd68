"""``db init``, ``migrate``, ``status`` and ``grant``: setting up a shared ledger on PostgreSQL."""

from __future__ import annotations

from types import ModuleType
from typing import Annotated, Literal

import typer

from tokenmeter.cli.console import Exit, emit, out
from tokenmeter.cli.options import ConfigOption, JsonOption, settings_of
from tokenmeter.errors import ConfigurationError

__all__ = ["app"]

app = typer.Typer(help="Set up a shared ledger on PostgreSQL.", no_args_is_help=True)

UrlArgument = Annotated[
    str | None, typer.Argument(help="postgresql://...; default: the store of the settings.", show_default=False)
]


def _address(url: str | None) -> str:
    found = url or settings_of(None, None).store
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


def _tell(applied: tuple[str, ...], *, as_json: bool) -> None:
    if as_json:
        emit({"applied": list(applied)})
    else:
        out.print(f"Applied: {', '.join(applied)}." if applied else "Nothing to do: the schema is up to date.")


@app.command()
def init(url: UrlArgument = None, *, as_json: JsonOption = False) -> None:
    """Make the schema and its tables. Harmless where they exist."""
    _tell(_admin().init(_address(url)), as_json=as_json)


@app.command()
def migrate(url: UrlArgument = None, *, as_json: JsonOption = False) -> None:
    """Bring the schema up to this release. Older programs go on working beside it."""
    _tell(_admin().migrate(_address(url)), as_json=as_json)


@app.command()
def status(url: UrlArgument = None, *, as_json: JsonOption = False) -> None:
    """Which migrations are applied, and who may write and read. Exit code 1 when some are pending."""
    found = _admin().status(_address(url))
    if as_json:
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


@app.command()
def grant(
    role: Annotated[Literal["writer", "reader", "owner"], typer.Argument(help="What it may do.")],
    to: Annotated[str, typer.Argument(help="Name of the database role.")],
    url: UrlArgument = None,
    *,
    config: ConfigOption = None,
) -> None:
    """Let a database role write, read or own the ledger. A writer can append, and never change or delete."""
    address = url or settings_of(None, config).store
    _admin().grant(_address(address), role, to)
    out.print(f"{to} is now a {role} of this ledger." if role != "owner" else f"{to} now owns this ledger.")
