"""From the ledger to a draft."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tokenmeter.billing.account import check_account, check_breakdown
from tokenmeter.billing.currency import ExchangeRate, check_currency
from tokenmeter.billing.invoice import Invoice
from tokenmeter.billing.lines import make_lines, sum_up
from tokenmeter.billing.period import ClosedPeriod, corrections, find_closed
from tokenmeter.billing.profile import BillingProfile, Party
from tokenmeter.billing.rated import Rated, Tally, within
from tokenmeter.periods import Period, parse_period
from tokenmeter.stores.base import EntryFilter, Store

__all__ = ["draft_invoice"]


def draft_invoice(
    store: Store,
    *,
    period: str | Period,
    member: str | None = None,
    team: str | None = None,
    organization: str | None = None,
    project: str | None = None,
    api_key: str | None = None,
    by: str | list[str] | tuple[str, ...] = (),
    tz: str | None = None,
    profile: BillingProfile | Mapping[str, Any] | None = None,
    buyer: Party | Mapping[str, Any] | str | None = None,
    currency: str | None = None,
    exchange_rate: object = None,
    notes: Iterable[str] = (),
) -> Invoice:
    """What an account owes for a period; nothing is written.

    Args:
        store: The ledger.
        period: ``"2026-11"``, ... or a `Period`.
        member: Whose invoice; several of the five narrow it down further.
        team: As above.
        organization: As above.
        project: As above.
        api_key: As above, by the key's alias.
        by: Break lines down by these accounts, for example ``"member"`` under a team.
        tz: Zone in which the period is cut; default: the profile's.
        profile: `BillingProfile` or a ``[billing]`` mapping.
        buyer: Instead of the profile's.
        currency: Instead of the profile's.
        exchange_rate: Units of the currency per dollar: a number, or a mapping with ``rate``, ``source``, ``date``.
        notes: Printed at the end, after the profile's.

    Raises:
        ConfigurationError: whose is not said, or a value is not what it should be; says which.
    """
    terms = profile if isinstance(profile, BillingProfile) else BillingProfile.parse(profile or {})
    scope = check_account(member=member, team=team, organization=organization, project=project, api_key=api_key)
    asked = period if isinstance(period, Period) else parse_period(period, tz or terms.tz)
    money = check_currency(currency or terms.currency)
    rate = ExchangeRate.parse(exchange_rate, currency=money)
    to = (
        terms.buyer(scope)
        if buyer is None
        else buyer
        if isinstance(buyer, Party)
        else Party.parse(buyer, where="buyer")
    )
    closed = find_closed(store, asked)
    covered = asked if closed is None else closed.period
    lines = make_lines(
        _parts(store, covered, closed, scope), within=covered, by=check_breakdown(by), currency=money, rate=rate
    )
    return Invoice(
        scope=scope,
        period=covered,
        seller=terms.seller,
        buyer=to,
        currency=money,
        exchange_rate=rate,
        lines=lines,
        totals=sum_up(lines, currency=money, rate=rate, taxes=terms.taxes if to.taxes is None else to.taxes),
        notes=(*terms.notes, *notes),
        ledger=_ledger_range(covered, closed),
        credit_series=terms.credit_series,
        profile=terms,
        source=store,
    )


def _parts(
    store: Store, period: Period, closed: ClosedPeriod | None, scope: Mapping[str, str]
) -> list[tuple[Period, list[Rated]]]:
    """The period's own rows and the corrections that belong to it, on this account."""
    if closed is not None:
        own = within(closed.rows, scope)
    else:
        where = {name: frozenset([value]) for name, value in scope.items()}
        own = list(
            Tally.of(store.entries(EntryFilter(since=period.start, until=period.end, where=where))).rows.values()
        )
    return [(period, own), *((late.period, within(late.rows, scope)) for late in corrections(store, closed))]


def _ledger_range(period: Period, closed: ClosedPeriod | None) -> dict[str, str | None]:
    document = None if closed is None else closed.document
    return {
        "since": period.start.isoformat(),
        "until": period.end.isoformat(),
        "manifest": None if document is None else document.hash,
        "head": None if document is None else document.anchor,
    }
