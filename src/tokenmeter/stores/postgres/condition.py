"""What ``doctor`` prints of a shared ledger: the server, the spool and the clocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenmeter.errors import TokenmeterError
from tokenmeter.stores.base import Health
from tokenmeter.stores.postgres.pool import Pool
from tokenmeter.stores.postgres.records import head_of
from tokenmeter.stores.postgres.spool import Spool

__all__ = ["describe"]

_WORST_SKEW_SECONDS = 5


def describe(pool: Pool, spool: Spool, *, rows: Callable[[str], Sequence[Any]], counts: Mapping[str, int]) -> Health:
    """Facts and hazards; never raises.

    Args:
        pool: Connections to the server.
        spool: Of this host.
        rows: Asks the server a named question.
        counts: More facts.
    """
    address = pool.address
    known: dict[str, Any] = {"store": "postgresql", "url": address.url, "schema": address.schema}
    warnings: list[str] = []
    try:
        _describe_server(rows, known)
    except TokenmeterError as error:
        warnings.append(f"The server is away: {error}")
    if pool.exposed:
        warnings.append("The connection is not encrypted: add sslmode=verify-full to the URL.")
    skew = pool.skew_us // 1_000_000
    if abs(skew) > _WORST_SKEW_SECONDS:
        warnings.append(f"The server's clock is {skew} seconds from this host's; holds and leases go by the server's.")
    known |= {"encrypted": pool.encrypted, "pooled": pool.pooled, "clock_skew_seconds": skew}
    known |= {"server_failures": pool.failures, **counts}
    _describe_spool(spool, known, warnings)
    return Health(known, tuple(warnings))


def _describe_server(rows: Callable[[str], Sequence[Any]], known: dict[str, Any]) -> None:
    version, user, schema_version, holds, *rights = rows("facts")[0]
    heads = rows("heads")
    known |= {
        "server_version": version,
        "schema_version": schema_version,
        "user": user,
        "role": _role(*rights),
        "entries": sum(entries for _, _, entries, _ in heads),
        "head": head_of((stripe, bytes(head)) for stripe, _, _, head in heads),
        "pending_holds": holds,
    }


def _role(owner: bool, writer: bool, reader: bool) -> str:
    held = [name for name, has in (("writer", writer), ("reader", reader)) if has]
    return "owner" if owner else " and ".join(held) or "none"


def _describe_spool(spool: Spool, known: dict[str, Any], warnings: list[str]) -> None:
    known |= {"spool": str(spool.path), "spool_most_bytes": spool.most_bytes}
    if spool.trouble:
        warnings.append(
            "The spool takes no entry, so that none is recorded while the server is away; make room, or name another "
            f"folder with spool= in the URL. {spool.trouble}"
        )
    try:
        backlog = spool.backlog()
    except TokenmeterError as error:
        warnings.append(f"The spool cannot be read: {error}")
        return
    known |= {"spool_waiting": backlog.records, "spool_refused": backlog.refused, "spool_bytes": backlog.bytes}
    if backlog.oldest_seconds is not None:
        known["spool_oldest_seconds"] = backlog.oldest_seconds
    if backlog.refused:
        warnings.append(f"The server refused {backlog.refused} entries, the last because: {backlog.reason}")
