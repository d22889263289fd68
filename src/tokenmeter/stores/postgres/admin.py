"""A shared ledger for who keeps it: its schema, who may write and read it, and how it is.

What ``tokenmeter db`` does, and what ``doctor`` prints of server, spool and clocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import psycopg
from psycopg import Connection, sql

from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError, SchemaVersionError, TokenmeterError
from tokenmeter.stores.base import Health
from tokenmeter.stores.engine import HEADLESS
from tokenmeter.stores.postgres.book import PostgresBook
from tokenmeter.stores.postgres.pool import Pool
from tokenmeter.stores.postgres.schema import NEWEST, apply, migrations, state
from tokenmeter.stores.postgres.sessions import Address
from tokenmeter.stores.postgres.spool import Spool
from tokenmeter.stores.tail import segment_path, segments
from tokenmeter.values import dataclass

Role = Literal["writer", "reader", "owner"]

#: What a writer calls. They run with the owner's rights, so a writer needs none on the tables.
_FUNCTIONS = (
    *("begin_fold(bytea)", "account_row(bytea)", "rate_meter(bytea)", "name_row(bytea)", "tagset_row(text)"),
    *(
        "find_name(text, text)",
        "define(text)",
        "stage()",
        "fold(json)",
        "cross_thresholds(json)",
        "reserve(jsonb)",
        "release(text)",
        "return_leases(bytea, bytea[])",
        "recall_leases(text, text, bigint)",
    ),
    *("extend(text, bigint)", "open_counters(json)", "ledger_secret()", "budget_generation()"),
    *("document_place(text, text, text)", "file_document(text)"),
)
#: Folds wait: one that makes a partition would stop a grant on the same table.
_NO_FOLD = "SELECT pg_advisory_xact_lock('ledger'::regclass::oid::bigint)"
#: What every reader of the ledger calls.
_WORDS = ("hex(bytea)", "json_each(text)", "budget_generation()", "keeps_secret()")
#: What caps are counted from: a writer has to see what its budgets' windows hold already.
_WRITER_READS = (
    *("ledger", "entries", "accounts", "contexts", "rates", "names", "tagsets", "dedup", "places", "refused"),
    *("sums", "rare_sums", "meter_sums", "latency_sums", "packed_sums"),
    *("counters", "holds", "leases", "lessees", "crossings", "documents", "archived_ids", "schema_versions"),
)
_READER_READS = _WRITER_READS


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a ledger's schema.

    Attributes:
        url: The store, without its password.
        schema: Name of the schema.
        applied: Names of the applied migrations.
        pending: Names of those that this release would still apply.
        unknown: Numbers of applied migrations that this release does not know (a newer one made them).
        writers: Roles that may write.
        readers: Roles that may read.
    """

    url: str
    schema: str
    applied: tuple[str, ...]
    pending: tuple[str, ...]
    unknown: tuple[int, ...]
    writers: tuple[str, ...]
    readers: tuple[str, ...]


def init(url: str) -> tuple[str, ...]:
    """Make the schema and its tables; names of the migrations that were applied (none if all were there).

    Raises:
        ConfigurationError: this role may not, or the server refuses it.
        StoreUnavailableError: the server is away.
    """
    with _connected(url) as (address, connection):
        before = state(connection)
        if before.readable_from > NEWEST:
            raise SchemaVersionError("A newer tokenmeter made this ledger: pip install --upgrade tokenmeter-sdk.")
        writers, readers = _grantees(connection, address) if before.applied else ((), ())
        done = apply(connection, address.schema)
        for role in writers if done else ():
            _grant(connection, address.schema, "writer", role)
        for role in readers if done else ():
            _grant(connection, address.schema, "reader", role)
        return done


def migrate(url: str) -> tuple[str, ...]:
    """Bring an existing schema to this release; who could write and read before, still can.

    Raises:
        ConfigurationError: there is no ledger, or this role may not change it.
        StoreUnavailableError: the server is away.
    """
    with _connected(url) as (address, connection):
        if not state(connection).applied:
            raise ConfigurationError(
                f"There is no ledger in schema {address.schema!r}; run `tokenmeter db init` first."
            )
    return init(url)


def status(url: str) -> Status:
    """What is applied, what is pending, and who may do what.

    Raises:
        ConfigurationError: the server refuses this role.
        StoreUnavailableError: the server is away.
    """
    with _connected(url) as (address, connection):
        applied = state(connection).applied
        known = {migration.number: migration.name for migration in migrations()}
        writers, readers = _grantees(connection, address) if applied else ((), ())
        return Status(
            url=address.url,
            schema=address.schema,
            applied=tuple(known[number] for number in applied if number in known),
            pending=tuple(name for number, name in known.items() if number not in applied),
            unknown=tuple(number for number in applied if number not in known),
            writers=writers,
            readers=readers,
        )


def grant(url: str, role: Role, to: str) -> None:
    """Let a database role write, read or own the ledger. Idempotent.

    A writer calls the functions, and reads what caps are counted from: entries, their sums, and of the documents the
    budgets. It cannot change or remove anything. A reader reads everything but the ledger's secret. Who closes periods
    and issues invoices is both. An owner may do what the schema's owner may, such as migrations.

    Args:
        url: The ledger, as its owner.
        role: ``writer``, ``reader`` or ``owner``.
        to: Name of an existing database role.

    Raises:
        ConfigurationError: no such role, no ledger, or not the owner.
        StoreUnavailableError: the server is away.
    """
    if role not in ("writer", "reader", "owner"):
        raise ConfigurationError(f"The role must be writer, reader or owner, not {role!r}.")
    with _connected(url) as (address, connection):
        if not state(connection).applied:
            raise ConfigurationError(
                f"There is no ledger in schema {address.schema!r}; run `tokenmeter db init` first."
            )
        try:
            with connection.transaction():
                connection.execute(_NO_FOLD)
                _grant(connection, address.schema, role, to)
        except psycopg.errors.UndefinedObject:
            raise ConfigurationError(
                f"There is no database role {to!r}; make it first: CREATE ROLE {to} LOGIN PASSWORD '...';"
            ) from None
        except psycopg.errors.InsufficientPrivilege as error:
            raise ConfigurationError(f"Only the ledger's owner may grant: {str(error).splitlines()[0]}.") from error


def _grant(connection: Connection[Any], schema: str, role: Role, to: str) -> None:
    name, who = sql.Identifier(schema), sql.Identifier(to)
    if role == "owner":
        row = connection.execute(
            "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = %s", [schema]
        ).fetchone()
        if row is not None and row[0] != to:
            connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(row[0].strip('"')), who))
        return
    connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(name, who))
    for table in _WRITER_READS if role == "writer" else _READER_READS:
        connection.execute(sql.SQL("GRANT SELECT ON {} TO {}").format(sql.Identifier(schema, table), who))
    for signature in (*_WORDS, *(_FUNCTIONS if role == "writer" else ("read_documents()",))):
        function, _, arguments = signature.partition("(")
        statement = sql.SQL("GRANT EXECUTE ON FUNCTION {}({} TO {}")
        connection.execute(
            statement.format(sql.Identifier(schema, function), sql.SQL(arguments), who)  # pyright: ignore[reportArgumentType] - ours
        )


def _grantees(connection: Connection[Any], address: Address) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Roles that were made writers and readers, by name."""
    query = """
        SELECT 'writer', acl.grantee::regrole::text
        FROM pg_proc JOIN pg_namespace AS n ON n.oid = pronamespace, aclexplode(proacl) AS acl
        WHERE nspname = %(schema)s AND proname = 'fold' AND acl.grantee NOT IN (0, proowner)
        UNION ALL
        SELECT 'reader', acl.grantee::regrole::text
        FROM pg_proc JOIN pg_namespace AS n ON n.oid = pronamespace, aclexplode(proacl) AS acl
        WHERE nspname = %(schema)s AND proname = 'read_documents' AND acl.grantee NOT IN (0, proowner)
        ORDER BY 1, 2
    """
    rows = [(kind, name.strip('"')) for kind, name in connection.execute(query, {"schema": address.schema})]
    return tuple(name for kind, name in rows if kind == "writer"), tuple(
        name for kind, name in rows if kind == "reader"
    )


@contextmanager
def _connected(url: str) -> Generator[tuple[Address, Connection[Any]]]:
    address = Address.parse(url)
    pool = Pool(address)
    with pool.lend() as connection:
        yield address, connection


_WORST_SKEW_SECONDS = 5
_FACTS = """
    SELECT current_setting('server_version'), current_user::text, (SELECT max(number) FROM schema_versions),
        (SELECT count(*) FROM holds), seq, entries, hash, (SELECT count(*) FROM refused),
        (SELECT min(reason) FROM refused), has_table_privilege('entries', 'INSERT'),
        has_function_privilege('fold(json)', 'EXECUTE'), has_function_privilege('read_documents()', 'EXECUTE')
    FROM ledger
"""


def describe(
    pool: Pool,
    spool: Spool,
    book: PostgresBook,
    *,
    waiting: Callable[[], int],
    fetch: Callable[[str], Sequence[Any]],
) -> Health:
    """Facts and hazards; never raises.

    Args:
        pool: Connections to the server.
        spool: Of this host.
        book: Sends it.
        waiting: How many entries wait in it.
        fetch: Rows of a statement.
    """
    address = pool.address
    known: dict[str, Any] = {"store": "postgresql", "url": address.url, "schema": address.schema}
    warnings: list[str] = []
    try:
        _describe_server(fetch, known, warnings)
    except TokenmeterError as error:
        warnings.append(f"The server is away: {error}")
    else:
        if book.trouble:
            warnings.append(f"Entries wait in the spool because they cannot be sent: {book.trouble.reason}")
    if pool.read_only:
        warnings.append(
            "The server only reads, as a replica does: nothing can be recorded. Name the primary, or add "
            "target_session_attrs=read-write to the URL."
        )
    if pool.exposed:
        warnings.append("The connection is not encrypted: add sslmode=verify-full to the URL.")
    skew = pool.skew_us // 1_000_000
    if abs(skew) > _WORST_SKEW_SECONDS:
        warnings.append(f"The server's clock is {skew} seconds from this host's; windows and holds go by the server's.")
    known |= {"encrypted": pool.encrypted, "pooled": pool.pooled, "clock_skew_seconds": skew}
    known |= {"server_failures": pool.failures, "write_failures": book.trouble.count}
    paths = [segment_path(spool.path, number) for number in segments(spool.path)]
    waits = waiting()
    known |= {
        "spool": str(spool.path),
        "spool_waiting": waits,
        "spool_bytes": sum(path.stat().st_size for path in paths if path.exists()),
        "spool_most_bytes": address.spool_bytes,
    }
    if waits and paths:
        known["spool_oldest_seconds"] = max(0, round(time.time() - min(path.stat().st_mtime for path in paths)))
    if spool.trouble:
        warnings.append(
            f"{spool.trouble} Entries wait in {spool.path.parent}, a temporary folder; name another one with "
            "spool= in the URL."
        )
    return Health(known, tuple(warnings))


def _describe_server(fetch: Callable[[str], Sequence[Any]], known: dict[str, Any], warnings: list[str]) -> None:
    facts = fetch(_FACTS)
    if not facts:
        warnings.append(HEADLESS)
        return
    version, user, schema_version, holds, seq, entries, head, refused, reason, *rights = facts[0]
    known |= {
        "server_version": version,
        "schema_version": schema_version,
        "user": user,
        "role": _role(*rights),
        "records": seq,
        "entries": entries,
        "head": bytes(head).hex(),
        "pending_holds": holds,
        "refused_records": refused,
    }
    if refused:
        told = counted(refused, "record was", "records were")
        warnings.append(f"{told} refused and kept in the table 'refused', one because: {reason}")


def _role(owner: bool, writer: bool, reader: bool) -> str:
    held = [name for name, has in (("writer", writer), ("reader", reader)) if has]
    return "owner" if owner else " and ".join(held) or "none"
