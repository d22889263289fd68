"""Where the server is, how a connection to it is opened and set, behind a pooler too, and what its errors mean.

`ServerRows` is a connection as the shared queries speak to it: ``?`` for values, whole numbers for sums.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import socket
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

import psycopg
from psycopg import pq, sql
from psycopg.abc import PQGen
from psycopg.adapt import Buffer, Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo, timeout_from_conninfo

from tokenmeter.errors import ConfigurationError, StoreUnavailableError
from tokenmeter.paths import expand, user_folder
from tokenmeter.stores.base import LockedError
from tokenmeter.stores.urls import redacted
from tokenmeter.values import dataclass

T = TypeVar("T")
Row = tuple[Any, ...]

#: A call goes on while its hold is made; these bound how long a dead or jammed server can delay it.
_CONNECT_SECONDS = 5
STATEMENT_SECONDS = 10
#: By how much the server may be late in ending a statement itself.
_GRACE_SECONDS = 2
#: Words of libpq that mean a wrong setting, not a server that is away.
_SETTINGS_WRONG = (
    *("authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry"),
    *("does not support SSL", "certificate", "no such database", "no such user"),
    *("invalid integer value", "could not match"),
)
_LOOPBACK = ("127.0.0.1", "::1")
#: Of the database, and of what is spoken with it, whatever the environment says.
_ENCODING = "UTF8"
#: The server process that answers, and its clock.
_WHO = (
    "SELECT pg_backend_pid(), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, "
    "current_setting('transaction_read_only')::boolean"
)
#: A database or a role may have set otherwise how texts and names are written, by which our functions go, and that who
#: waits for a lock goes on seeing the ledger as it was before.
_SESSION = sql.SQL(
    "SET search_path = {schema}, pg_temp; SET statement_timeout = {limit}; "
    "SET standard_conforming_strings = on; SET quote_all_identifiers = off; "
    "SET default_transaction_isolation = 'read committed'"
)
PLAIN = sql.SQL("SET LOCAL standard_conforming_strings = on; SET LOCAL quote_all_identifiers = off")
_TRANSACTION = sql.SQL(
    "{begin}; SET LOCAL search_path = {schema}, pg_temp; SET LOCAL statement_timeout = {limit}; {plain}"
)
_BEGIN = sql.SQL("BEGIN ISOLATION LEVEL READ COMMITTED")
_SNAPSHOT = sql.SQL("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")


class Connection(psycopg.Connection[Row]):
    """A connection whose statements end, whether the server answers or not.

    Attributes:
        seconds: Most that a statement may take; 0 = as long as it takes.
    """

    seconds: int = 0

    def wait(self, gen: PQGen[T], *arguments: Any, **named: Any) -> T:
        """Wait for the server's answer.

        Raises:
            OperationalError: none came in time; the connection is closed.
        """
        if self.seconds:
            gen = self._ending(gen, time.monotonic() + self.seconds + _GRACE_SECONDS)
        return super().wait(gen, *arguments, **named)

    def _ending(self, gen: PQGen[T], deadline: float) -> PQGen[T]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    self.pgconn.finish()
                    raise psycopg.OperationalError("the server does not answer")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Session:
    """An open connection.

    Attributes:
        connection: In autocommit mode.
        skew_us: The server's clock less this host's, in whole seconds (as microseconds).
        pooled: Whether a pooler such as PgBouncer is in between: the process that answers is not the one that was
            connected to, and the next transaction's may be another one. Nothing is then left in a session.
        encrypted: Whether it speaks TLS.
        exposed: Whether it crosses a network without.
        read_only: Whether the server takes no writes, as a replica does.
    """

    connection: Connection
    skew_us: int
    pooled: bool
    encrypted: bool
    exposed: bool
    read_only: bool


def open_session(address: Address, *, seconds: int) -> Session:
    """Connect, and set the session to our schema unless a pooler would hand it to others.

    Args:
        address: Where to.
        seconds: Most that a statement may take; 0 = as long as it takes.

    Raises:
        ConfigurationError: the server refuses user, password, database or encryption.
        psycopg.Error: it is away.
    """
    connection = _connect(address)
    connection.seconds = seconds
    try:
        row = connection.execute(_WHO, prepare=False).fetchone()
        answering, clock, read_only = row or (0, 0, False)
        pooled = answering != connection.info.backend_pid
        if pooled:
            connection.prepare_threshold = None
        else:
            connection.execute(_SESSION.format(**_settings(address, seconds)), prepare=False)
    except BaseException:
        connection.close()
        raise
    encrypted = bool(connection.pgconn.ssl_in_use)
    local = connection.info.host.startswith("/") or connection.info.hostaddr in _LOOPBACK
    skew_us = round((int(clock) - time.time_ns() // 1000) / 1_000_000) * 1_000_000
    return Session(connection, skew_us, pooled, encrypted, exposed=not (encrypted or local), read_only=read_only)


def _settings(address: Address, seconds: int) -> dict[str, sql.Composable]:
    return {"schema": sql.Identifier(address.schema), "limit": sql.Literal(seconds * 1000)}


def _connect(address: Address) -> Connection:
    given = address.conninfo
    defaults: dict[str, Any] = {"keepalives_idle": 5, "tcp_user_timeout": 10_000, "application_name": "tokenmeter"}
    if "connect_timeout" not in given and "PGCONNECT_TIMEOUT" not in os.environ:
        defaults["connect_timeout"] = _CONNECT_SECONDS
    try:
        connection = Connection.connect(given, autocommit=True, **defaults, client_encoding=_ENCODING)
    except psycopg.OperationalError as error:
        if any(words in str(error) for words in _SETTINGS_WRONG):
            raise ConfigurationError(
                f"The PostgreSQL server refused {address.url}: {reason_of(error)}. "
                "Check user, password (PGPASSWORD or ~/.pgpass), database and sslmode."
            ) from error
        raise
    if (encoding := connection.info.parameter_status("server_encoding")) not in {None, _ENCODING}:
        connection.close()
        raise ConfigurationError(
            f"The database of {address.url} keeps text as {encoding}, which cannot hold every name: make one with "
            f"CREATE DATABASE tokenmeter ENCODING '{_ENCODING}' TEMPLATE template0, and name that in the address."
        )
    read_whole_numbers(connection)
    return connection


@contextmanager
def transaction(connection: Connection, address: Address, *, snapshot: bool = False) -> Generator[None]:
    """One transaction that names our schema itself.

    Args:
        connection: In autocommit mode.
        address: Whose schema.
        snapshot: Only read, and see one state of the ledger throughout.
    """
    begin = _SNAPSHOT if snapshot else _BEGIN
    try:
        connection.execute(
            _TRANSACTION.format(begin=begin, plain=PLAIN, **_settings(address, connection.seconds)), prepare=False
        )
    except psycopg.Error as error:
        if "statement pooling" in str(error):
            raise ConfigurationError(
                f"The pooler at {address.url} works statement by statement (pool_mode = statement), so that no "
                "transaction is possible. Set pool_mode = transaction for this database, or name the server itself."
            ) from error
        raise
    try:
        yield
    except BaseException:
        with suppress(psycopg.Error):
            connection.rollback()
        raise
    connection.commit()


def is_outage(error: BaseException) -> bool:
    """Whether the server or the way to it failed, rather than the statement."""
    if isinstance(error, psycopg.InterfaceError):
        return True
    if not isinstance(error, psycopg.OperationalError):
        return False
    # 08: connection, 53: out of resources, 57P: shutting down, 58: system error. 57014 is a statement that took too
    # long, for example behind a row that another session has locked: it says nothing of the server.
    code = error.sqlstate
    return code is None or code[:3] == "57P" or code[:2] in {"08", "53", "58"}


def is_refusal(error: psycopg.Error) -> bool:
    """Whether the server refused the data themselves: what fails so today fails tomorrow, too."""
    return (error.sqlstate or "")[:2] in {"22", "23"}


def is_conflict(error: psycopg.Error) -> bool:
    """Whether two transactions got in each other's way: tried again, it works."""
    return error.sqlstate in {"40001", "40P01", "55P03"}


def reason_of(error: Exception) -> str:
    """The first line of what `error` says."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def explain(error: Exception, address: Address) -> StoreUnavailableError:
    """The driver's error as ours, with advice; the caller raises it from `error`."""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        advice = "Let the ledger's owner run `tokenmeter db grant`, or use the owner's URL for this."
    elif isinstance(error, psycopg.errors.QueryCanceled):
        advice = (
            "Another session may hold a lock on the same rows for long: see pg_stat_activity and pg_blocking_pids(); "
            "calls that touch other rows go on."
        )
    elif isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        advice = "The server only reads, as a replica does: name the primary, or add target_session_attrs=read-write."
    else:
        advice = (
            "Check that the server runs and that this host may reach it; `tokenmeter doctor` shows what waits in the "
            "spool."
        )
    kind = LockedError if isinstance(error, psycopg.errors.QueryCanceled) else StoreUnavailableError
    return kind(f"The PostgreSQL store {address.url} cannot be used: {reason_of(error)}. {advice}")


class ServerRows:
    """`tokenmeter.stores.engine.Rows` of a connection to the server."""

    __slots__ = ("connection",)

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def execute(self, statement: str, values: Sequence[Any] = ()) -> psycopg.Cursor[Any]:
        """Run one statement."""
        return self.connection.execute(_translated(statement), values)

    def stream(self, statement: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """Rows of one statement, some of them at a time. In a transaction."""
        # All rows are wanted, and not the first ones soon.
        self.connection.execute("SET LOCAL cursor_tuple_fraction = 1")
        with self.connection.cursor(f"tokenmeter_{next(_CURSORS)}") as cursor:
            cursor.itersize = _AT_ONCE
            yield from cursor.execute(_translated(statement), values)

    def copy(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Send rows into a table of the session."""
        into = sql.SQL("COPY pg_temp.{} ({}) FROM STDIN").format(
            sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with self.connection.cursor().copy(into) as stream:
            for row in rows:
                stream.write_row(row)


@lru_cache(maxsize=256)
def _translated(statement: str) -> bytes:
    return statement.replace("%", "%%").replace("?", "%s").encode()


class _WholeNumber(Loader):
    """Every ``numeric`` of the schema is a whole number, and a Decimal would go by the program's own context."""

    def load(self, data: Buffer) -> int:
        return int(bytes(data))


def read_whole_numbers(connection: psycopg.Connection[Any]) -> None:
    """Have sums and counters come as integers of any size."""
    connection.adapters.register_loader("numeric", _WholeNumber)


#: Rows of a stream that are fetched at a time, and numbers for the cursors' names.
_AT_ONCE, _CURSORS = 2_000, itertools.count()

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_HOST = r"(?:\[[^\]]*\]|[^:,\[]*)(?::\d*)?"
_HOSTS = re.compile(f"{_HOST}(?:,{_HOST})*")
#: RFC 3986, appendix B. `urllib.parse.urlsplit` refuses several hosts in brackets since Python's security releases.
_URL = re.compile(r"[^:/?#]+://(?P<netloc>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?P<fragment>#.*)?", re.DOTALL)
#: A folder without a server's socket.
_NOWHERE = "/nonexistent-tokenmeter"
_MEBIBYTE = 1024 * 1024
#: Parameters of the URL that are ours; every other one is libpq's.
_OWN = {"schema": "tokenmeter", "spool": "", "spool_mb": "256", "pool": "4"}


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed store URL.

    Attributes:
        conninfo: What libpq gets: the URL without our own parameters. Holds the password; never shown.
        url: The same for people, with ``***`` for every secret.
        schema: PostgreSQL schema of the ledger.
        spool: File beside which the tail lies: it keeps entries until the server has them.
        spool_bytes: How large the tail may grow while the server is away.
        pool: Most connections of one process.
    """

    conninfo: str = field(repr=False)
    url: str
    schema: str
    spool: Path
    spool_bytes: int
    pool: int

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a ``postgresql://`` URL.

        Raises:
            ConfigurationError: a parameter is wrong; the message names it and holds no secret.
        """
        parts = _URL.fullmatch(url)
        if parts is None:
            raise ConfigurationError("The PostgreSQL URL cannot be read; write postgresql://user@host/db.")
        netloc, path = parts["netloc"], parts["path"]
        if parts["fragment"] or netloc.count("@") > 1 or not _HOSTS.fullmatch(netloc.rpartition("@")[2]):
            raise ConfigurationError(
                "The PostgreSQL URL has a port that is no number, or a password with characters that end a part of a "
                "URL: percent-encode them (@ is %40, / is %2F, ? is %3F), or leave it to PGPASSWORD or ~/.pgpass."
            )
        query = parse_qsl(parts["query"] or "", keep_blank_values=True)
        own = _OWN | {name: value for name, value in query if name in _OWN}
        rest = urlencode([pair for pair in query if pair[0] not in _OWN], quote_via=quote, safe="/")
        conninfo = _joined(netloc, path, rest)
        try:
            target = conninfo_to_dict(conninfo)
        except (psycopg.Error, UnicodeError):
            raise ConfigurationError(
                "The PostgreSQL URL has a part that libpq does not know; write "
                "postgresql://user@host:5432/db?sslmode=verify-full and leave the password to PGPASSWORD or ~/.pgpass."
            ) from None
        _check_options(target)
        if not _SCHEMA.fullmatch(own["schema"]):
            raise ConfigurationError(f"schema={own['schema']!r} is not a plain lower-case name.")
        return cls(
            conninfo=conninfo,
            url=redacted(url),
            schema=own["schema"],
            spool=_spool(own["spool"], target, own["schema"]),
            spool_bytes=_number(own, "spool_mb", least=1) * _MEBIBYTE,
            pool=_number(own, "pool", least=1),
        )


def _check_options(target: dict[str, Any]) -> None:
    """Have libpq look at every option, in the URL or the environment, without asking a server.

    It refuses a value that no option can have before it looks for the server, and this one is not there: an error that
    names the folder means that all values are good.

    Raises:
        ConfigurationError: an option cannot have its value.
    """
    named = {name: value for name, value in target.items() if name not in {"host", "hostaddr", "port"}}
    ports: str = target.get("port") or os.environ.get("PGPORT") or ""
    for port in dict.fromkeys(ports.split(",")):  # one for each host, or one for all
        try:
            timeout_from_conninfo(dict(target))
            one = make_conninfo(**named, host=_NOWHERE, hostaddr="", port=port or "5432")
            tried = pq.PGconn.connect_start(one.encode())
            reason = tried.get_error_message().strip()
            tried.finish()
        except psycopg.Error as error:
            reason = str(error)
        if _NOWHERE not in reason:
            raise ConfigurationError(
                f"The PostgreSQL URL, or a variable of libpq (PG...), has a wrong option: {reason}."
            )


def _joined(netloc: str, path: str, query: str) -> str:
    return f"postgresql://{netloc}{path}{'?' if query else ''}{query}"


def _number(own: dict[str, str], name: str, *, least: int) -> int:
    text = own[name]
    if not text.isdecimal() or int(text) < least:
        raise ConfigurationError(f"{name}={text!r} in the PostgreSQL URL must be a whole number from {least} on.")
    return int(text)


def _spool(folder: str, target: dict[str, Any], schema: str) -> Path:
    """The spool of this host for this ledger: hosts that share a home directory keep apart."""
    if not folder:
        folder = str(user_folder("state", "add spool=/a/folder to the PostgreSQL URL") / "spool")
    place = {name: target.get(name) or os.environ.get(variable, "") for name, variable in _PLACE.items()}
    identity = "\n".join((socket.gethostname(), schema, *map(str, place.values())))
    return expand(folder) / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


_PLACE = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "dbname": "PGDATABASE", "service": "PGSERVICE"}
