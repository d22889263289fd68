"""Keeping the ledger right: raises, corrections, expired holds, verification, what still waits to be shipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from itertools import compress

from tokenmeter.api.default import default_meter
from tokenmeter.api.reading import entries
from tokenmeter.errors import TamperedLedgerError
from tokenmeter.ledger import Entry
from tokenmeter.meter import Meter
from tokenmeter.pricing.reprice import correction
from tokenmeter.stores import documents
from tokenmeter.stores.base import Fault, Verification

__all__ = ["flush", "raise_budget", "reprice", "sweep", "verify"]


def raise_budget(
    name: str,
    amount: Decimal | int | str,
    *,
    by: str,
    reason: str,
    scope: Mapping[str, str] | None = None,
    at: datetime | None = None,
    meter: Meter | None = None,
) -> Entry:
    """Raise a budget once, for one window; the ledger records how much, by whom and why.

    Args:
        name: The budget's name.
        amount: How much is added to its limit, in its unit.
        by: Who decided it.
        reason: Why.
        scope: Which counter, where the budget has a ``"*"``: ``{"member": "ada"}``.
        at: An instant in the window that is meant; default: now.
        meter: Whose budget; default: the default meter's.

    Raises:
        ConfigurationError: no such budget or counter, or an amount that is not positive.
        StoreUnavailableError: it could not be recorded.
    """
    return (meter or default_meter()).raise_budget(name, amount, by=by, reason=reason, scope=scope, at=at)


def flush(timeout: int = 10, *, meter: Meter | None = None) -> int:
    """Wait until entries that only this host acknowledged are on the shared server, and alerts are handed over.

    Only a PostgreSQL ledger has such entries, while its server is away; they are safe on this host's disk meanwhile.

    Args:
        timeout: Seconds to wait at most.
        meter: Which ledger; default: the default meter's.

    Returns:
        How many entries still wait.
    """
    return (meter or default_meter()).flush(timeout)


def sweep(*, meter: Meter | None = None) -> int:
    """Turn holds that expired (a caller crashed) into estimated entries now, rather than at the next call.

    Returns:
        How many holds were swept.
    """
    return (meter or default_meter()).sweep()


def verify(*, repair: bool = False, meter: Meter | None = None) -> Verification:
    """Prove the ledger: hash chain, kept sums, and the budgets' counters against the entries.

    Args:
        repair: Set the counters of budgets that differ to what the ledger says. Entries are never touched.
        meter: Which ledger; default: the default meter's.

    Returns:
        How many entries were checked, the chain's head, and every fault found; `ok` when there is none.
    """
    chosen = meter or default_meter()
    outcome = chosen.store.verify()
    filed = [Fault(*found) for found in documents.audit(chosen.store)]
    try:
        counted = chosen.audit_budgets(repair=repair)
    except TamperedLedgerError as error:
        counted = [Fault("counter", "budgets", f"They cannot be counted again. {error}")]
    return replace(outcome, faults=(*outcome.faults, *filed, *counted))


def reprice(
    *,
    since: datetime | date | str | None = None,
    until: datetime | date | str | None = None,
    where: Mapping[str, str | Sequence[str | None] | None] | None = None,
    tz: str = "UTC",
    meter: Meter | None = None,
) -> list[Entry]:
    """Rate entries again whose price was unknown, and append the difference as corrections.

    Nothing recorded is changed: each correction names the entry it re-states (`Entry.corrects`) and carries only the
    difference in cost, never the tokens again. Running it twice corrects once.

    Args:
        since: As for `entries`.
        until: As for `entries`.
        where: As for `entries`; ``{"cost_source": "unpriced"}`` is implied.
        tz: As for `entries`.
        meter: Which ledger; default: the default meter's.

    Returns:
        The corrections that were recorded.
    """
    chosen = meter or default_meter()
    unpriced = {**(where or {}), "cost_source": "unpriced"}
    unknown = entries(since=since, until=until, where=unpriced, tz=tz, meter=chosen)
    known = [found for entry in unknown if (found := correction(entry, chosen.pricer)) is not None]
    return list(compress(known, chosen.post_all(known)))
