"""What ``doctor`` prints of a shared ledger: the server, the spool and the clocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from tokenmeter.errors import TokenmeterError
from tokenmeter.stores.base import Health
from tokenmeter.stores.postgres.book import PostgresBook
from tokenmeter.stores.postgres.pool import Pool
from tokenmeter.stores.postgres.spool import Spool
from tokenmeter.stores.tail import segment_path, segments

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
    version, user, schema_version, holds, seq, entries, head, refused, reason, *rights = fetch(_FACTS)[0]
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
        warnings.append(f"{refused} records were refused and kept in the table 'refused', one because: {reason}")


def _role(owner: bool, writer: bool, reader: bool) -> str:
    held = [name for name, has in (("writer", writer), ("reader", reader)) if has]
    return "owner" if owner else " and ".join(held) or "none"
