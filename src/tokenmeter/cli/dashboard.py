"""``dashboard`` and ``mcp``: the ledger served to people, programs and assistants; who may see what of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import tomllib
import webbrowser
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

import tokenmeter
from tokenmeter.cli.app import Group, commands, out
from tokenmeter.cli.frame import Frame, command, emit, ended_by_hanging_up, show_table
from tokenmeter.config import load_settings
from tokenmeter.display import visible
from tokenmeter.errors import ConfigurationError
from tokenmeter.processes import lock_file
from tokenmeter.reports.query import parse_conditions
from tokenmeter.serving.access import EVERYTHING, RIGHTS, AccessScope, Token, make_token
from tokenmeter.serving.lens import look_through
from tokenmeter.stores.urls import open_beside

_VARIABLE = "TOKENMETER_DASHBOARD_TOKEN"

dashboard_app = typer.Typer(cls=Group, help="The ledger as web pages and as an API; who may see what of it.")
token_app = typer.Typer(cls=Group, help="Who may see what.", no_args_is_help=True)
dashboard_app.add_typer(token_app, name="token")
commands.add_typer(dashboard_app, name="dashboard")

OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", help="DIMENSION=VALUE that is all it shows; repeat it.", show_default="everything"),
]


@command(dashboard_app, None, examples=["tokenmeter dashboard --open"], options=("store", "config"))
def dashboard(
    frame: Frame,
    *,
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to bind; any but this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind; 0 = any free one.", min=0, max=65535)] = 8484,
    token_file: Annotated[
        Path | None,
        typer.Option(help=f"File that holds the token viewers log in with; or set {_VARIABLE}.", show_default=False),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name it answers to, besides localhost and IP addresses; repeat it.", show_default=False
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    tz: Annotated[
        str | None,
        typer.Option(
            "--tz", envvar="TOKENMETER_TZ", help="IANA time zone that pages start with.", show_default="the browser's"
        ),
    ] = None,
) -> None:
    """Serve the dashboard and the usage API on this machine until Ctrl+C. Only tokens made to act write."""
    if context.invoked_subcommand is not None:
        return
    from tokenmeter.dashboard import serve  # noqa: PLC0415 - an extra of its own
    from tokenmeter.dashboard.security import is_loopback  # noqa: PLC0415 - as above

    token = _read_token(token_file)
    made = token is None and not is_loopback(host) and not frame.settings.dashboard.tokens
    if made:
        token = secrets.token_urlsafe(24)

    def ready(address: str) -> None:
        if made:
            out.print(
                f"Others can reach {host}, so viewers need this token, new with every start:\n  {token}", markup=False
            )
        out.print(f"Dashboard at {address} (Ctrl+C ends it)", markup=False)
        if open_browser:
            webbrowser.open(address)

    with frame.meter() as meter:
        serve(meter, host=host, port=port, tz=tz, token=token, allow_hosts=allow_host or (), ready=ready)


def _read_token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(_VARIABLE) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"The token file {str(file)!r} cannot be read: {error.strerror}.") from error


# -- tokens


@command(
    token_app,
    "create",
    examples=[
        "tokenmeter dashboard token create ada --only member=ada",
        "tokenmeter dashboard token create ops --can budgets --expires 2027-07-01",
    ],
    options=("config", "as_json"),
)
def create(
    frame: Frame,
    *,
    name: Annotated[str, typer.Argument(help="Whose it is; what acts with it is recorded under this name.")],
    only: OnlyOption = None,
    can: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(RIGHTS)}; repeat it. What acts may read, too.", show_default="read"),
    ] = None,
    expires: Annotated[str | None, typer.Option(help="First instant at which it is no longer good.")] = None,
) -> None:
    """Make a token and write its hash into the settings file. The token itself is shown once and kept nowhere."""
    path = frame.settings.source
    if path is None:
        raise ConfigurationError("There is no tokenmeter.toml to keep it in; make one with `tokenmeter init`.")
    token, digest = make_token()
    row: dict[str, Any] = {"hash": digest}
    if only:
        row["only"] = _parse_scope(only).to_dict()
    row |= {"can": list(dict.fromkeys(["read", *(can or ())]))} | ({"expires": expires} if expires else {})
    table = f"\n[dashboard.tokens.{_quote_key(name)}]\n" + "".join(
        f"{key} = {_format_value(row[key])}\n" for key in row
    )

    def add(before: str) -> str:
        if name in _parse_tokens(before):
            raise ConfigurationError(
                f"There is a token {name!r} already; `tokenmeter dashboard token revoke {_quote_key(name)}` ends it."
            )
        ends = "\r\n" if "\r\n" in before else "\n"
        after = before + ("" if before.endswith("\n") else ends) + table.replace("\n", ends)
        try:
            wanted = tomllib.loads(after)
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(
                f"{path} has no room for [dashboard.tokens]: {error}. Add it by hand:{table}"
            ) from None
        # Refused here, rather than by the server that reads the file.
        load_settings(config={"dashboard": wanted["dashboard"]})
        return after

    _rewrite(path, add)
    if frame.as_json:
        emit({"name": name, "token": token, "file": path})
        return
    out.print(f"{path} has it as [dashboard.tokens.{name}]; a server that reads this file knows it now.", markup=False)
    out.print("The token, which is shown this once:", markup=False)
    out.print(token, markup=False, soft_wrap=True)


def _quote_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        table = cast("dict[str, Any]", value)
        return "{ " + ", ".join(f"{_quote_key(name)} = {_format_value(one)}" for name, one in table.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


@command(token_app, "list", examples=["tokenmeter dashboard token list"], options=("config", "as_json"))
def list_tokens(frame: Frame) -> None:
    """The tokens of the settings: what each shows, may do, and until when."""
    found = Token.of(frame.settings)
    if frame.as_json:
        emit(
            [
                {
                    "name": one.access.name,
                    "only": one.access.scope.to_dict(),
                    "can": sorted(one.access.can),
                    "expires": None if one.expires is None else one.expires.isoformat(),
                    "good": one.good,
                }
                for one in found
            ]
        )
        return
    if not found:
        out.print("There are none: whoever reaches the dashboard on this machine sees everything.", markup=False)
        return
    cells = [
        [
            visible(one.access.name),
            visible(
                ", ".join(f"{name}={'|'.join(values)}" for name, values in one.access.scope.conditions) or "everything"
            ),
            ", ".join(sorted(one.access.can)),
            "never" if one.expires is None else f"{one.expires:%Y-%m-%d %H:%M}" + ("" if one.good else " (over)"),
        ]
        for one in found
    ]
    show_table(["name", "shows", "can", "expires"], cells, figures=(), whole=("name",))


@command(token_app, "revoke", examples=["tokenmeter dashboard token revoke ada"], options=("config", "as_json"))
def revoke(frame: Frame, *, name: Annotated[str, typer.Argument(help="Whose it is.")]) -> None:
    """End a token: take it out of the settings file. Servers that read this file let nobody in with it any more."""
    path = frame.settings.source

    def take_out(before: str) -> str:
        known = _parse_tokens(before)
        if name not in known:
            raise ConfigurationError(f"There is no token {name!r}; known are {', '.join(map(repr, known)) or 'none'}.")
        after = _drop_table(before, ["dashboard", "tokens", name])
        wanted = tomllib.loads(before)
        del wanted["dashboard"]["tokens"][name]
        found = tomllib.loads(after)
        found.setdefault("dashboard", {}).setdefault("tokens", {})
        # An inline table, or one in several parts, cannot be cut out by lines.
        if found != wanted:
            raise ConfigurationError(
                f"Take dashboard.tokens.{_quote_key(name)} out of {path} by hand: it is no table of its own."
            )
        return after

    if path is None:
        raise ConfigurationError(f"There is no token {name!r}; there is no settings file that could have it.")
    _rewrite(path, take_out)
    if frame.as_json:
        emit({"name": name, "revoked": True, "file": path})
        return
    out.print(
        f"{path} has no token {name!r} any more; servers that read this file let nobody in with it.", markup=False
    )


def _rewrite(path: str, change: Callable[[str], str]) -> None:
    """Put what `change` makes of a settings file in its place, at once; who else changes it meanwhile waits.

    Raises:
        ConfigurationError: the file cannot be written, or `change` says so.
    """
    file = Path(path).resolve()  # a link stays one, and what it leads to is what servers read
    replacement = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        beside = open_beside(file.with_name(f".{file.name}-lock"), file)  # the file itself is another one afterwards
        with open(beside, "a+b") as lock:  # noqa: PTH123 - a descriptor
            lock_file(lock.fileno())
            after = change(file.read_bytes().decode("utf-8-sig"))  # its line ends stay
            # Nobody may read it before it has the owner and the mode of the file that it replaces.
            replacement.touch(0o600)
            replacement.write_text(after, encoding="utf-8", newline="")
            _take_after(replacement, file)
            replacement.replace(file)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        replacement.unlink(missing_ok=True)


def _take_after(replacement: Path, file: Path) -> None:
    """Give a file the owner, group and mode of the one that it replaces.

    Raises:
        ConfigurationError: this user may not: the server that reads it might be shut out, or somebody else let in.
    """
    made, like = replacement.stat(), file.stat()
    if (made.st_uid, made.st_gid) != (like.st_uid, like.st_gid):
        try:
            os.chown(replacement, like.st_uid, like.st_gid)
        except OSError as error:
            raise ConfigurationError(
                f"{file} is of user {like.st_uid} and group {like.st_gid}, which only that user, or root, can keep: "
                "run this as that user. The file is as it was."
            ) from error
    replacement.chmod(like.st_mode & 0o777)


def _parse_tokens(settings: str) -> Mapping[str, Any]:
    tokens: Mapping[str, Any] = tomllib.loads(settings).get("dashboard", {}).get("tokens", {})
    return tokens


def _drop_table(text: str, keys: list[str]) -> str:
    """TOML text without the table of this name: its heading and what stands below, up to the next one's comments."""
    kept: list[str] = []
    inside = False
    comments: list[str] = []  # below the table, and the next one's where one follows
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            inside = _parse_heading(line) == keys
            if not inside:
                kept += comments
            comments = []
        if not inside:
            kept.append(line)
        elif line.lstrip().startswith("#") or (comments and not line.strip()):
            comments.append(line)
        else:
            comments = []
    return "".join(kept)


def _parse_heading(line: str) -> list[str]:
    """The keys of a table's heading; none where the line is no such thing."""
    try:
        table: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return []
    keys: list[str] = []
    while isinstance(table, dict) and len(cast("dict[str, Any]", table)) == 1:
        ((key, table),) = cast("dict[str, Any]", table).items()
        keys.append(key)
    return keys


# -- assistants


@command(commands, "mcp", examples=["tokenmeter mcp", "tokenmeter mcp --only team=search"], options=("store", "config"))
def mcp(frame: Frame, *, only: OnlyOption = None) -> None:
    """Answer an assistant's questions (MCP over standard input and output): spend, budgets, entries, prices, estimates.

    It only reads. The assistant's own settings start it; docs/how-to/mcp.md says how.
    """
    try:
        from tokenmeter.serving.mcp import make_server  # noqa: PLC0415 - an extra of its own
    except ModuleNotFoundError as error:
        # Any other module that is missing is a fault, not an extra.
        if error.name is None or error.name.partition(".")[0] not in {"mcp", "mcp_types"}:
            raise
        raise ConfigurationError("This needs the extra 'mcp': pip install 'tokenmeter-sdk[mcp]'.") from error
    scope = _parse_scope(only or ())
    with frame.meter() as meter, _ended_by_interrupt(), ended_by_hanging_up():
        try:
            make_server(look_through(meter, scope), version=tokenmeter.__version__).run("stdio")
        except Exception as failed:  # noqa: BLE001 - raised again
            first: Exception = failed
            while isinstance(first, ExceptionGroup):  # of tasks: the assistant, or the disk behind it, takes no more
                first = cast("Exception", first.exceptions[0])
            raise first from None


@contextlib.contextmanager
def _ended_by_interrupt() -> Generator[None]:
    """Have Ctrl-C end the process at once: else the thread that waits for a question would be waited for."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _parse_scope(only: Sequence[str]) -> AccessScope:
    if not only:
        return EVERYTHING
    conditions = parse_conditions(only, "--only")
    return AccessScope.of({name: [value or "" for value in values] for name, values in conditions.items()})
