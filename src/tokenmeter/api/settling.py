"""Month end: closed periods, invoices, statements, and the provider's own books."""

from __future__ import annotations

from typing import Any

from tokenmeter import billing
from tokenmeter.api.default import default_meter, default_settings
from tokenmeter.billing import BillingProfile, ClosedPeriod, Invoice, Statement
from tokenmeter.meter import Meter
from tokenmeter.reconciliation import Reconciliation
from tokenmeter.reconciliation import reconcile as compare

__all__ = ["close_period", "invoice", "reconcile", "statement"]


def close_period(period: str, *, tz: str = "UTC", by: str | None = None, meter: Meter | None = None) -> ClosedPeriod:
    """Close a billing period: its sums are filed for good, and what arrives late is told with the next one.

    Args:
        period: ``"2026-11"``, or any other period that has ended.
        tz: IANA time zone the period is cut in.
        by: Who closes it.
        meter: Which ledger; default: the default meter's.

    Returns:
        The closed period with its manifest: counts, sums, ledger range and hash.

    Raises:
        LedgerError: it is closed already, overlaps one that is, or has not ended.
    """
    return billing.close_period((meter or default_meter()).store, period, tz=tz, by=by)


def invoice(*, period: str, meter: Meter | None = None, **options: Any) -> Invoice:
    """Draft an invoice for one account of a closed period; see `tokenmeter.billing.draft_invoice` for `options`.

    Args:
        period: The closed period.
        meter: Which ledger; default: the default meter's.
        **options: One of ``member=``, ``team=``, ``organization=``, ``project=``, ``api_key=``; ``profile=`` (default:
            the settings' ``[billing]``), ``buyer=``, ``currency=``, ``exchange_rate=``, ...

    Returns:
        A draft: ``.issue()`` gives it its number, ``.html()``, ``.pdf()``, ``.csv()``, ``.json()`` its forms.
    """
    options.setdefault("profile", _profile())
    return billing.draft_invoice((meter or default_meter()).store, period=period, **options)


def statement(*, period: str, meter: Meter | None = None, **options: Any) -> Statement:
    """A running balance for chargeback: opening + charges - credits = closing.

    Args:
        period: Any period.
        meter: Which ledger; default: the default meter's.
        **options: As for `tokenmeter.billing.draw_statement`: ``member=``, ``team=``, ``basis=``, ``granularity=``.
    """
    return billing.draw_statement((meter or default_meter()).store, period=period, **options)


def reconcile(*, provider: str, period: str, source: Any, meter: Meter | None = None, **options: Any) -> Reconciliation:
    """Compare the ledger with a provider's own books; every difference is classified, none is edited.

    Args:
        provider: ``openai``, ``anthropic``, or any id of the ledger for a CSV file.
        period: Which days.
        source: An SDK client with an admin key, or the path of a CSV export.
        meter: Which ledger; default: the default meter's.
        **options: As for `tokenmeter.reconciliation.reconcile`: ``columns=``, ``tolerance=``, ``progress=``, ...

    Returns:
        Coverage, discrepancies with amounts and likely cause, and proposals that ``.post()`` books; ``.file()`` keeps
        it in the ledger.
    """
    return compare(meter or default_meter(), provider=provider, period=period, source=source, **options)


def _profile() -> BillingProfile | None:
    settings = default_settings()
    return BillingProfile.parse(settings.billing, file=settings.source or "configuration") if settings.billing else None
