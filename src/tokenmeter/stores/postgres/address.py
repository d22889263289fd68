"""Where the server is, and what the store's URL says about the store itself."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo, timeout_from_conninfo

from tokenmeter.errors import ConfigurationError
from tokenmeter.stores.urls import redacted

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
        if parts["fragment"] or not _HOSTS.fullmatch(netloc.rpartition("@")[2]):
            raise ConfigurationError(
                "The PostgreSQL URL has a port that is no number, or a password with characters that end a part of a "
                "URL: percent-encode them (/ is %2F, ? is %3F, # is %23), or leave it to PGPASSWORD or ~/.pgpass."
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
    try:
        timeout_from_conninfo(dict(target))
        tried = pq.PGconn.connect_start(make_conninfo(**named, host=_NOWHERE, hostaddr="", port="5432").encode())
        reason = tried.get_error_message().strip()
        tried.finish()
    except psycopg.Error as error:
        reason = str(error)
    if _NOWHERE not in reason:
        raise ConfigurationError(f"The PostgreSQL URL, or a variable of libpq (PG...), has a wrong option: {reason}.")


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
        import platformdirs  # noqa: PLC0415 - not needed when a folder is named

        folder = str(platformdirs.user_state_path("tokenmeter", appauthor=False) / "spool")
    place = {name: target.get(name) or os.environ.get(variable, "") for name, variable in _PLACE.items()}
    identity = "\n".join((socket.gethostname(), schema, *map(str, place.values())))
    return Path(folder).expanduser() / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


_PLACE = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "dbname": "PGDATABASE", "service": "PGSERVICE"}
