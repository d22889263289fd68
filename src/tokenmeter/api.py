"""The module-level face: one default meter, and the functions that read it.

Every function takes ``meter=``; without it the default meter is used, built from the settings at its first use.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from itertools import compress
from pathlib import Path
from typing import Any

from tokenmeter import billing
from tokenmeter.attribution import NOBODY, Attribution
from tokenmeter.billing import BillingProfile, ClosedPeriod, Invoice, Statement
from tokenmeter.budgets import Balance, Budget, BudgetBook
from tokenmeter.budgets.webhook import Webhook
from tokenmeter.config import Settings, load_settings
from tokenmeter.dialects import observe
from tokenmeter.ledger import Entry, utcnow
from tokenmeter.meter import Meter
from tokenmeter.money import ONE
from tokenmeter.periods import CalendarUnit, parse_instant
from tokenmeter.pricing import (
    Multiplier,
    PriceList,
    Pricer,
    Rating,
    Terms,
    parse_discounts,
    parse_multipliers,
    parse_prices,
)
from tokenmeter.pricing.reprice import correction
from tokenmeter.reconciliation import Reconciliation
from tokenmeter.reconciliation import reconcile as compare
from tokenmeter.reports import Report, build
from tokenmeter.reports import entries as read_entries
from tokenmeter.stores import documents, open_store
from tokenmeter.stores.base import Fault, Verification
from tokenmeter.telemetry import EntryMetrics

__all__ = [
    "close_period",
    "configure",
    "default_meter",
    "entries",
    "flush",
    "invoice",
    "make_meter",
    "price",
    "raise_budget",
    "reconcile",
    "remaining",
    "report",
    "reprice",
    "statement",
    "sweep",
    "verify",
]

_lock = threading.RLock()
_default: Meter | None = None
_settings: Settings | None = None
_pricer: Pricer | None = None


def make_meter(
    settings: Settings | None = None, *, observers: Iterable[Callable[[Entry], object]] = (), **arguments: Any
) -> Meter:
    """A meter of your own, apart from the default one.

    Args:
        settings: Ready settings; else they are loaded with `arguments`.
        observers: Called with each call's entry once it is recorded, in the caller's thread.
        **arguments: As for `configure`.

    Raises:
        ConfigurationError: what is wrong, where, and what to do.
        StoreUnavailableError: the store cannot be opened.
    """
    settings = settings or load_settings(**arguments)
    return Meter(
        pricer=_make_pricer(settings),
        budgets=_make_budgets(settings),
        store=open_store(settings.store),
        aliases=settings.key_hashes(),
        providers=settings.providers,
        observers=(*observers, *((EntryMetrics(),) if settings.metrics else ())),
        hold_seconds=settings.hold_seconds,
    )


def _make_pricer(settings: Settings) -> Pricer:
    file = settings.source or "configuration"
    everyone = () if settings.multiplier == ONE else (Multiplier(factor=settings.multiplier),)
    return Pricer(
        PriceList.load(parse_prices(settings.prices, file=file, lines=settings.lines("prices"))),
        Terms(
            multipliers=(
                *everyone,
                *parse_multipliers(settings.multipliers, file=file, lines=settings.lines("multipliers")),
            ),
            discounts=parse_discounts(settings.discounts, file=file, lines=settings.lines("discounts")),
            model_maps=settings.models,
        ),
    )


def _make_budgets(settings: Settings) -> BudgetBook:
    file = settings.source or "configuration"
    budgets = [
        row if isinstance(row, Budget) else Budget.parse(row, file=file, number=number)
        for number, row in enumerate(settings.budgets)
    ]
    webhooks = [
        Webhook(target.webhook, secret=os.environ.get(target.secret_env) if target.secret_env else None)
        for target in settings.alerts
    ]
    return BudgetBook(budgets, alerts=webhooks)


def configure(
    *,
    store: str | None = None,
    prices: Sequence[Mapping[str, Any]] | None = None,
    multiplier: Decimal | int | str | None = None,
    budgets: Sequence[Budget | Mapping[str, Any]] | None = None,
    api_keys: Mapping[str, str] | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
) -> Meter:
    """Set up the default meter. Optional: without it the settings come from the environment and ``tokenmeter.toml``.

    May be called again; calls that started under the old meter still settle there.

    Args:
        store: ``sqlite:///usage.db``, ``sqlite:////absolute/usage.db``, ``memory:`` or ``postgresql://...``. Default:
            ``TOKENMETER_STORE``, the file's, else a SQLite ledger in the user's data directory.
        prices: Price rows of your own (the keys of ``[[prices]]``); they win over every other layer.
        multiplier: Platform multiplier on top of the upstream cost, such as ``"1.05"``.
        budgets: Caps, see `tokenmeter.Budget`.
        api_keys: alias -> API key. Reports and budgets show the alias; only a fingerprint of the key is kept.
        config: Path of a ``tokenmeter.toml`` or its content as a mapping. Default: ``TOKENMETER_CONFIG``, the working
            directory, the user's config directory.

    Returns:
        The new default meter.

    Raises:
        ConfigurationError: an unknown key, a bad value or URL, a missing extra; the message says what to do.
        StoreUnavailableError: the store cannot be opened.
    """
    global _default, _settings
    settings = load_settings(
        store=store, prices=prices, multiplier=multiplier, budgets=budgets, api_keys=api_keys, config=config
    )
    meter = make_meter(settings)
    with _lock:
        _default, _settings = meter, settings
    return meter


def default_meter() -> Meter:
    """The default meter, built from the settings at its first use."""
    global _default  # noqa: PLW0603 - see configure
    meter = _default
    if meter is None:
        with _lock:
            if _default is None:
                _default = make_meter()
            meter = _default
    return meter


def _renew_lock() -> None:
    global _lock  # noqa: PLW0603 - a lock held by another thread at the fork would never be freed in the child
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def _default_pricer() -> Pricer:
    """The default meter's prices and terms, without opening its ledger when nothing else did."""
    global _pricer  # noqa: PLW0603 - see configure
    if _default is not None:
        return _default.pricer
    with _lock:
        if _pricer is None:
            _pricer = _make_pricer(load_settings())
        return _pricer


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
    pricer = meter.pricer if meter is not None else _default_pricer()
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
    settings = _settings or load_settings()
    return BillingProfile.parse(settings.billing, file=settings.source or "configuration") if settings.billing else None


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
    return replace(outcome, faults=(*outcome.faults, *filed, *chosen.audit_budgets(repair=repair)))


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
