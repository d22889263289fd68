"""The default meter of this process, and meters made out of settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

from tokenmeter.api import Meter, Priced
from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.budgets import AlertTarget, Budget
from tokenmeter.budgets.agreement import check_consistent, refuse_unmet
from tokenmeter.budgets.matching import Required
from tokenmeter.budgets.rules import make_rules
from tokenmeter.capture.sdk import UnopenedStoreError
from tokenmeter.carrying import RequestFields
from tokenmeter.config import load_settings
from tokenmeter.errors import ConfigurationError, PricingError, StoreError
from tokenmeter.interrupts import let_interrupt_through
from tokenmeter.late import LateModule, LateObject
from tokenmeter.ledger import Entry, utcnow
from tokenmeter.money import ONE
from tokenmeter.paths import expand
from tokenmeter.pricing import (
    Multiplier,
    Price,
    PriceList,
    Pricer,
    Terms,
    parse_discounts,
    parse_free_quotas,
    parse_multipliers,
    parse_prices,
    updating,
)
from tokenmeter.processes import is_disabled, make_lock
from tokenmeter.settings import Settings, SettingsArguments, parse_only
from tokenmeter.stores import open_store
from tokenmeter.stores.base import Store
from tokenmeter.stores.urls import redacted
from tokenmeter.telemetry import Metrics, Spans, make_metrics, parse_labels
from tokenmeter.unopened import UnopenedMeter
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from tokenmeter import billing
else:  # no call needs it
    billing = LateModule("tokenmeter.billing")

log = logging.getLogger("tokenmeter")

_lock = make_lock()
_default: Meter | None = None
#: What `configure` was given so far; it goes with the meter that came of it, or, while switched off, that will.
_given: tuple[Meter | None, SettingsArguments] | None = None
_pricer: Pricer | None = None
#: What the default meter will be made of once its ledger can be opened, and what stands in for it; None otherwise.
_unopened: tuple[_Parts, UnopenedMeter] | None = None


# -- a meter out of settings


@tell_wrong_arguments
def make_meter(
    settings: Settings | None = None,
    *,
    observers: Iterable[Callable[[Entry], object]] = (),
    **given: Unpack[SettingsArguments],
) -> Meter:
    """A meter of your own, apart from the default one.

    Args:
        settings: Ready settings; else they are loaded with what is given.
        observers: Called with each call's entry once it is recorded, in the caller's thread. What takes an entry back
            (kind ``reversal``, of negative amounts) is told, too: an estimate's before the answer that replaces it.
        **given: As for `configure`.

    Raises:
        ConfigurationError: what is wrong, where, and what to do.
        StoreUnavailableError: the store cannot be opened.
    """
    return _open(_prepare(settings or load_settings(**given)), observers=observers)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a meter is made of besides its ledger: all that settings say, checked."""

    settings: Settings
    checked: dict[str, Any]
    profile: billing.BillingProfile | None
    metrics: Metrics | None
    pricer: Pricer


def _prepare(settings: Settings) -> _Parts:
    checked, profile, metrics = _check(settings), _make_profile(settings), _make_metrics(settings)
    pricer = make_pricer(settings)
    _refuse_slips(settings, pricer, checked["budgets"])
    return _Parts(settings, checked, profile, metrics, pricer)


def _open(parts: _Parts, *, observers: Iterable[Callable[[Entry], object]] = (), store: Store | None = None) -> Meter:
    """The meter made of `parts` and the store that its settings name, which is opened (or of `store`)."""
    settings, metrics = parts.settings, parts.metrics
    meter = Meter(
        pricer=parts.pricer,
        store=open_store(settings.store) if store is None else store,
        observers=observers if metrics is None else (*observers, metrics),
        spans=Spans() if settings.traces else None,
        **parts.checked,
    )
    try:
        meter.store.call_keys(settings.keys_at_hand())
        # Which names are taken, and which key has two, only the ledger knows, so this comes last; a store that was
        # handed in is left open, and goes by the settings it went by.
        meter.budgets.refuse_by_ledger()
    except (ConfigurationError, StoreError):
        if store is None:
            meter.close()
        elif _default is not None and _default.settings is not None:
            store.call_keys(_default.settings.keys_at_hand())
        raise
    if metrics is not None:
        metrics.watch(meter)
    _refresh_prices(settings, parts.pricer)
    meter.settings, meter.profile = settings, parts.profile
    return meter


def _stand_in(parts: _Parts, error: StoreError) -> UnopenedMeter:
    checked = {**parts.checked, "alerts": (), "rules": ()}  # they are about what the ledger says
    spans = Spans() if parts.settings.traces else None
    return UnopenedMeter(error, default_meter, pricer=parts.pricer, spans=spans, **checked)


def _check(settings: Settings) -> dict[str, Any]:
    """What a meter is given of `settings`, apart from what is opened or begun for it: nothing is left of a refusal.

    Raises:
        ConfigurationError: what is wrong, and where.
    """
    budgets, in_file = _make_budgets(settings)
    return {
        "budgets": budgets,
        "alerts": _make_alerts(settings),
        "rules": make_rules(row.values for row in settings.rules),
        "required": Required(settings.require, refuse=settings.on_missing == "refuse"),
        "source": None if settings.source is None else str(Path(settings.source).resolve()),
        "in_code": {budget.name for budget in budgets} - in_file,
        "aliases": settings.key_hashes(),
        "providers": {prefix: host.provider for prefix, host in settings.providers.items() if host.provider},
        "unasked": {name for name, host in settings.providers.items() if not host.ask_usage},
        "hold_seconds": settings.hold_seconds,
        "request_fields": RequestFields(settings.end_user_from, settings.tags_from)
        if settings.end_user_from or settings.tags_from
        else None,
    }


def make_pricer(settings: Settings) -> Pricer:
    """The price list and the terms that `settings` name.

    Raises:
        ConfigurationError: a row is wrong; the message says where.
    """
    terms, rows = _make_terms(settings), _parse_prices(settings)
    return Pricer(PriceList.load(rows, **_choose_base(settings.price_list)), terms)


def _refuse_slips(settings: Settings, pricer: Pricer, budgets: Iterable[Budget]) -> None:
    """A slip in a provider's name is a discount, or a cap, that holds for nobody.

    Raises:
        ConfigurationError: says who is probably meant.
    """
    terms = pricer.terms
    named = [
        *(("providers", host.provider or ("" if "://" in key else key)) for key, host in settings.providers.items()),
        *(("models", provider) for provider in terms.model_maps),
        *(("discounts", discount.provider or "") for discount in terms.discounts),
        *(("multipliers", dict(multiplier.scope).get("provider", "")) for multiplier in terms.multipliers),
        *(("free_quotas", quota.provider) for quota in terms.free_quotas),
        *(("budgets", budget.scope.get("provider", "")) for budget in budgets),
        *(
            (f"dashboard.tokens.{name}", provider)
            for name, token in settings.dashboard.tokens.items()
            if token.only
            for provider in dict(parse_only(token.only)).get("provider", ())
        ),
    ]
    for where, provider in named:
        pricer.price_list.refuse_slip(provider, f"{settings.place}: {where}: ")
    for budget in budgets:
        refuse_unmet(budget)


def _parse_prices(settings: Settings) -> tuple[Price, ...]:
    return parse_prices(settings.prices, file=settings.place, lines=settings.lines("prices"))


def _make_terms(settings: Settings) -> Terms:
    file = settings.place
    everyone = () if settings.multiplier == ONE else (Multiplier(factor=settings.multiplier),)
    return Terms(
        multipliers=(
            *everyone,
            *parse_multipliers(settings.multipliers, file=file, lines=settings.lines("multipliers")),
        ),
        discounts=parse_discounts(settings.discounts, file=file, lines=settings.lines("discounts")),
        model_maps=settings.models,
        free_quotas=parse_free_quotas(settings.free_quotas, file=file, lines=settings.lines("free_quotas")),
        cost_units={name: host.cost for name, host in settings.providers.items() if host.cost},
    )


def _refresh_prices(settings: Settings, pricer: Pricer) -> None:
    """Have `pricer` look for newer prices, where `settings` say so; for as long as it is in use."""
    if settings.price_list == "auto":
        rows = _parse_prices(settings)
        updating.Refresher(pricer, lambda edition: PriceList.load(rows, newest=edition)).start()


def _choose_base(chosen: str | None) -> dict[str, Any]:
    """What `PriceList.load` is told of the list that the settings name.

    Raises:
        ConfigurationError: there is no such file, or it is no price list.
    """
    if chosen is None:
        return {}
    if chosen == "auto":
        return {"newest": updating.newest()}
    if chosen.endswith(".toml"):
        return {"user_file": expand(chosen)}
    try:
        return {"newest": updating.read_list(chosen)}
    except PricingError as error:
        raise ConfigurationError(
            f"price_list {chosen}: {error} It is 'auto', or a file written by `tokenmeter prices update --save FILE`."
        ) from error


def _make_budgets(settings: Settings) -> tuple[tuple[Budget, ...], set[str]]:
    """The budgets, and the names of those that stand in the file; code may give others."""
    file = settings.place
    budgets = [
        row if isinstance(row, Budget) else Budget.parse(row, file=file, number=number)
        for number, row in enumerate(settings.budgets)
    ]
    lines, in_code = settings.lines("budgets"), settings.rows_in_code("budgets")
    places = [
        f"{file}, line {line}" if line else "the code of this program" if number < in_code else file
        for number, line in enumerate(lines)
    ]
    in_file = {budget.name for budget in budgets[in_code:]}
    return check_consistent(budgets, places), in_file


def _make_alerts(settings: Settings) -> list[AlertTarget]:
    for row in settings.alerts:
        for name in row.unset():
            log.warning("An alert target is left out: the environment variable %s is not set", name)
    return [row.make() for row in settings.alerts if not row.unset()]


def _make_metrics(settings: Settings) -> Metrics | None:
    labels = parse_labels(settings.metrics_labels)
    if settings.metrics is False:
        return None
    return make_metrics("opentelemetry" if settings.metrics is True else settings.metrics, labels)


def _make_profile(settings: Settings) -> billing.BillingProfile | None:
    if not settings.billing:
        return None
    return billing.BillingProfile.parse(settings.billing, file=settings.place)


# -- the default meter


def configure(**given: Unpack[SettingsArguments]) -> Meter:
    """Set up the default meter. Optional: without it the settings come from the environment and ``tokenmeter.toml``.

    Called again it changes what it names and keeps the rest; calls that started before still settle where they began.
    Budgets are written into the ledger here, so that other processes obey them before this one has made a call.

    Args:
        **given: The settings, each under its name: ``store=``, ``budgets=``, ``multiplier=``, ``api_keys=``,
            ``prices=``, ``discounts=``, ``multipliers=``, ``models=``, ``providers=``, ``alerts=``, ``billing=``,
            ``metrics=``, ``metrics_labels=``, ``traces=``, ``end_user_from=``, ``tags_from=``, ``hold_seconds=``;
            and ``config=``, the path of a ``tokenmeter.toml`` or its content as a mapping.
            See `tokenmeter.settings.SettingsArguments`. None takes an earlier one back.

    Returns:
        The new default meter. While ``TOKENMETER_DISABLED`` is set, what stands for it: the settings are checked, and
        the ledger is opened when something of the meter is asked for.

    Raises:
        ConfigurationError: an unknown name, a bad value or URL, a missing extra; the message says what to do. Then
            everything stays as it was.
        StoreUnavailableError: the store cannot be opened.
    """
    global _default, _given, _pricer, _unopened
    with _lock:
        before = None if _default is None or _default.closed else _default
        # After `reset`, and beside a meter made otherwise, what an earlier call named counts no more.
        if _given is not None and _given[0] is _default:
            given = {**_given[1], **given}
        settings = load_settings(**given)
        if is_disabled():
            _check(settings)
            _make_profile(settings)
            _make_terms(settings)
            _parse_prices(settings)
            _default, _given, _pricer, _unopened = None, (None, given), None, None
            return cast("Meter", LateObject(default_meter))
        same = before is not None and before.settings is not None and before.settings.store == settings.store
        meter = _open(_prepare(settings), store=before.store if before is not None and same else None)
        _default, _given, _pricer = meter, (meter, given), None
        waited, _unopened = _unopened, None
    if waited is not None:
        waited[1].waiting.catch_up()
    if before is not None and not same:
        log.warning(
            "The ledger is now %s; calls that were made before are in %s.",
            redacted(meter.store.url),
            redacted(before.store.url),
        )
    meter.budgets.declare()
    return meter


def _load_settings() -> Settings:
    """What `configure` was given while tokenmeter was switched off; else what the environment and the file say."""
    return load_settings(**_given[1]) if _given is not None and _given[0] is None else load_settings()


def default_meter() -> Meter:
    """The default meter, built from the settings at its first use."""
    global _default, _given, _unopened  # noqa: PLW0603 - see configure
    meter = _default
    # Asked for with every call: the lock is for the first alone.
    if meter is None:
        with _lock:
            waited = _unopened
            if _default is None:
                parts = _prepare(_load_settings()) if waited is None else waited[0]
                try:
                    _default = _open(parts)
                except StoreError as error:
                    let_interrupt_through(error)
                    _unopened = waited or (parts, _stand_in(parts, error))
                    _unopened[1].unopened.reason = error
                    raise
                if _given is not None and _given[0] is None:
                    _given = (_default, _given[1])
            meter, _unopened = _default, None
        if waited is not None:
            waited[1].waiting.catch_up()
    return meter


def meter_for_calls() -> Meter:
    """The default meter, for calls; while its ledger cannot be opened what stands in for it, or a stop.

    Which budgets the ledger keeps nobody can say then; those of the settings are known.

    Raises:
        ConfigurationError: the settings are wrong.
        UnopenedStoreError: the ledger cannot be opened, and a hard budget that fails closed, or `require`, is set.
    """
    meter, unopened = _default, _unopened
    if meter is not None:
        return meter
    if unopened is None or _what_may_stop(unopened[0]):
        try:
            return default_meter()
        except StoreError as error:
            unopened = _unopened
            if unopened is None:
                raise
            if stopping := _what_may_stop(unopened[0]):
                raise UnopenedStoreError(
                    f"The ledger cannot be opened ({error}), and {stopping} may stop this call. The call was not sent. "
                    "Mend the store (`tokenmeter doctor`); store_failure='open' on a budget, and on_missing='warn' "
                    "beside `require`, let calls pass meanwhile."
                ) from error
    return unopened[1]


def _what_may_stop(parts: _Parts) -> str | None:
    if parts.settings.require and parts.settings.on_missing == "refuse":
        return "`require` in the settings"
    for budget in parts.checked["budgets"]:
        if budget.hard and budget.store_failure == "closed" and budget.applies(utcnow()):
            return f"the budget {budget.name!r} of the settings"
    return None


def reset() -> None:
    """Close the default meter and forget what `configure` was given, as tests do; its next use reads the settings."""
    global _default, _given, _pricer, _unopened
    with _lock:
        before = _default if _unopened is None else _unopened[1]
        _default, _given, _pricer, _unopened = None, None, None, None
    # Outside of the lock: closing waits for writers, and nobody who asks for a meter shall wait with it.
    if before is not None:
        before.close()


@dataclass(frozen=True, slots=True)
class _Prices:
    """The settings' prices and terms, while no ledger is open."""

    pricer: Pricer


def default_prices() -> Priced:
    """The default meter where there is one; its ledger is not opened for a price."""
    global _pricer  # noqa: PLW0603 - see configure
    if _default is not None:
        return _default
    with _lock:
        if _pricer is None:
            settings = _load_settings()
            _pricer = make_pricer(settings)
            _refresh_prices(settings, _pricer)
        return _Prices(_pricer)


def default_recorder() -> Meter | None:
    """The default meter, or what stands in for it; none while tokenmeter is switched off: no ledger is opened then."""
    if is_disabled():
        return None
    return default_keeper() if _unopened is None else _unopened[1]


def default_keeper() -> Meter:
    """The default meter; where its ledger cannot be opened, what keeps the calls that were made meanwhile.

    Raises:
        ConfigurationError: the settings are wrong.
    """
    try:
        return default_meter()
    except StoreError:
        if _unopened is None:
            raise
        return _unopened[1]
