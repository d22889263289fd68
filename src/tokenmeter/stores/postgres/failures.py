"""What the driver's errors mean, and in which words they are told."""

from __future__ import annotations

import psycopg

from tokenmeter.errors import StoreUnavailableError
from tokenmeter.stores.postgres.address import Address

__all__ = ["explain", "is_conflict", "is_outage", "is_refusal", "reason_of"]


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
    return StoreUnavailableError(f"The PostgreSQL store {address.url} cannot be used: {reason_of(error)}. {advice}")
