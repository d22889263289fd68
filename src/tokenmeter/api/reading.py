"""Reading the ledger: reports, entries, the price of a response, what budgets have left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Any

from tokenmeter.api.default import default_meter, default_pricer
from tokenmeter.attribution import NOBODY, Attribution
from tokenmeter.budgets import Balance
from tokenmeter.ledger import Entry, utcnow
from tokenmeter.meter import Meter
from tokenmeter.periods import CalendarUnit, parse_instant
from tokenmeter.pricing import PriceList, Pricer, Rating
from tokenmeter.providers import observe
from tokenmeter.reports import Report, build
from tokenmeter.reports import entries as read_entries

__all__ = ["entries", "price", "remaining", "report"]


def report(
    by: str | Sequence[str] = (),
    *,
    since: datetime | date | str | None = None,
    until: datetime | date | str | None = None,
    period: str | None = None,
    granularity: CalendarUnit | None = None,
    where: Mapping[str, str | Sequence[str | None] | None] | None = None,
    tz: str = "UTC",
    meter: Meter | None = None,
) -> Report:
    """Usage and cost per group and time, totals included. ``print()`` it, or export it.

    Args:
        by: Dimensions to group by: provider, model, operation, api_key, member, team, organization, project, route,
            end_user, service_tier, status, ``tag:NAME``, ...
        since: First instant, inclusive.
        until: First instant after, exclusive.
        period: ``"2026-11"``, ``"today"``, ``"last-7d"``, ...; instead of since and until.
        granularity: Also split by hour, day, week, month, quarter or year.
        where: dimension -> accepted value or values; None means "not set".
        tz: IANA time zone in which periods and buckets are cut.
        meter: Which ledger; default: the default meter's.

    Raises:
        ConfigurationError: unknown dimension, period or zone, or an inverted period.
    """
    return build(
        (meter or default_meter()).store,
        by=by,
        since=since,
        until=until,
        period=period,
        granularity=granularity,
        where=where,
        tz=tz,
    )


def entries(
    *,
    since: datetime | date | str | None = None,
    until: datetime | date | str | None = None,
    period: str | None = None,
    where: Mapping[str, str | Sequence[str | None] | None] | None = None,
    newest_first: bool = False,
    tz: str = "UTC",
    meter: Meter | None = None,
) -> Iterator[Entry]:
    """Raw entries, lazily, in order of their occurrence. Arguments and errors as for `report`."""
    store = (meter or default_meter()).store
    return read_entries(store, since=since, until=until, period=period, where=where, newest_first=newest_first, tz=tz)


def price(
    response_or_usage: Any,
    *,
    provider: str,
    endpoint: str,
    model: str | None = None,
    at: datetime | date | str | None = None,
    processing: str | None = None,
    region: str | None = None,
    service_tier: str | None = None,
    price_list: PriceList | None = None,
    attribution: Attribution = NOBODY,
    meter: Meter | None = None,
) -> Rating:
    """Rate a response the way a live call is rated, without recording it.

    Args:
        response_or_usage: An SDK object, or the plain dict as it came off the wire: a whole response body, a bare usage
            object, a Batch, a batch output line, a realtime ``response.done``, an image, transcription or session body.
        provider: ``openai``, ``anthropic``, ``azure``, ``bedrock``, ``vertex``, ``openrouter``, ``google``, ...
        endpoint: SDK method path: ``chat.completions``, ``responses``, ``messages``, ``images.generate``, ...
        model: Model named by the request or session, where the body names none.
        at: When the call was made (an instant, a date or ISO text); default: now. Prices are dated.
        processing: ``"batch"`` where the context decides it.
        region: ``"us-east5"``, ``"global"``, ``"data-zone"``, ... where the context decides it.
        service_tier: Tier that served the call, where the body does not say.
        price_list: Prices to use instead of the configured ones.
        attribution: On whose account: platform multipliers and discounts may depend on it.
        meter: Whose prices and terms; default: the default meter's settings. No ledger is opened or written.

    Returns:
        The charges (model, sku_meter, quantity, unit price, multipliers by name, list_cost, billed_cost, price_id,
        source), their sums `list_cost` and `billed_cost`, `cost_source` and `flags`.

    Raises:
        PricingError: not a response or usage at all.
    """
    observation = observe(
        response_or_usage,
        provider=provider,
        endpoint=endpoint,
        model=model,
        processing=processing,
        region=region,
        service_tier=service_tier,
    )
    pricer = meter.pricer if meter is not None else default_pricer()
    if price_list is not None:
        pricer = Pricer(price_list, pricer.terms)
    moment = utcnow() if at is None else parse_instant(at)
    rating = pricer.rate(observation, provider=provider, endpoint=endpoint, at=moment, attribution=attribution)
    return replace(rating, flags=observation.flags | rating.flags) if observation.flags else rating


def remaining(*, at: datetime | None = None, meter: Meter | None = None, **scope: str) -> list[Balance]:
    """What budgets have left, and when they reset.

    Args:
        at: The instant whose windows are meant; default: now.
        meter: Whose budgets; default: the default meter's.
        **scope: Which budgets: ``member="ada"``, ``api_key="prod"``, ...; nothing means all.

    Returns:
        One `Balance` per counter: limit, spent, reserved, remaining (in the budget's unit), resets_at.
    """
    return (meter or default_meter()).remaining(scope, at=at)
