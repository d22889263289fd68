"""A meter out of settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from tokenmeter.budgets import Budget, BudgetBook
from tokenmeter.budgets.webhook import Webhook
from tokenmeter.config import Settings, load_settings
from tokenmeter.ledger import Entry
from tokenmeter.meter import Meter
from tokenmeter.money import ONE
from tokenmeter.pricing import (
    Multiplier,
    PriceList,
    Pricer,
    Terms,
    parse_discounts,
    parse_multipliers,
    parse_prices,
)
from tokenmeter.stores import open_store
from tokenmeter.telemetry import EntryMetrics

__all__ = ["make_meter", "make_pricer"]


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
        pricer=make_pricer(settings),
        budgets=_make_budgets(settings),
        store=open_store(settings.store),
        aliases=settings.key_hashes(),
        providers=settings.providers,
        observers=(*observers, *((EntryMetrics(),) if settings.metrics else ())),
        hold_seconds=settings.hold_seconds,
    )


def make_pricer(settings: Settings) -> Pricer:
    """The price list and the terms that `settings` name.

    Raises:
        ConfigurationError: a row is wrong; the message says where.
    """
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
