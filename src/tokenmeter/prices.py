"""The price list, to look at: what is in force for a model, and where it differs from the bundled catalog.

Nothing here goes to the network, except `update`, and only when it is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

from tokenmeter.errors import PricingError, UnknownModelError, shown
from tokenmeter.ledger import utcnow
from tokenmeter.money import multiply
from tokenmeter.paths import expand
from tokenmeter.periods import parse_instant
from tokenmeter.pricing import Price, PriceList, updating
from tokenmeter.pricing.card import find_in_force
from tokenmeter.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One place where the price list in force and the bundled catalog disagree.

    Attributes:
        price: The row in force.
        catalog_unit_price: What the catalog says for the same model, meter, conditions and day, US dollars per
            `Price.per` units; None when it has no such row.
    """

    price: Price
    catalog_unit_price: Decimal | None

    @property
    def kind(self) -> str:
        """``added`` when the catalog has no such row, else ``changed``."""
        return "added" if self.catalog_unit_price is None else "changed"


def show(
    model: str,
    *,
    provider: str = "openai",
    at: datetime | date | str | None = None,
    price_list: PriceList | None = None,
) -> list[Price]:
    """The rows in force for `model`, the standard ones first.

    Args:
        model: Name as the provider writes it; matched as strictly as a call's.
        provider: Provider id.
        at: Day or instant; default: now.
        price_list: Prices to look into; default: the shipped ones.

    Raises:
        UnknownModelError: no row names the model.
    """
    chosen = price_list or PriceList.load()
    listed = chosen.find(provider, model)
    if listed is None:
        near = chosen.nearest(provider, model)
        meant = f"Did you mean {near!r}? " if near else ""
        raise UnknownModelError(
            f"No price names {model!r} at {provider!r}. {meant}Write the id as the provider does, or add [[prices]] "
            "for it."
        )
    moment = utcnow() if at is None else parse_instant(at)
    return sorted(listed.card.in_force(moment), key=_order)


def diff(*, at: datetime | date | str | None = None, price_list: PriceList | None = None) -> list[Difference]:
    """Where the price list in force on a day differs from the bundled catalog, row by row.

    Args:
        at: Day or instant; default: now.
        price_list: Prices to compare; default: the shipped ones.
    """
    moment = utcnow() if at is None else parse_instant(at)
    chosen = price_list or PriceList.load()
    return list(_differences(chosen.own_rows, chosen, moment))


def _differences(rows: Iterable[Price], price_list: PriceList, at: datetime) -> Iterator[Difference]:
    for row in find_in_force(rows, at):
        listed = price_list.find(row.provider, row.model)
        catalog = [other for other in (listed.card.rows if listed else ()) if other.origin == "genai-prices"]
        base = [
            multiply(other.per_unit, row.per)
            for other in find_in_force(catalog, at)
            if (other.sku_meter, other.conditions) == (row.sku_meter, row.conditions)
        ]
        if base != [row.unit_price]:
            yield Difference(price=row, catalog_unit_price=base[0] if base else None)


def update(
    user_rows: Iterable[Price] = (),
    user_file: str | Path | None = None,
    *,
    url: str | Path | None = None,
    save: str | Path | None = None,
) -> PriceList:
    """Fetch the newest edition of the base data and keep it, if nothing looks wrong with it. Uses the network.

    The setting ``price_list = "auto"`` uses the kept list in every process of this user; a path uses the one saved
    there. Ledger entries carry the hash of the price list that rated them, so entries before and after can be told
    apart.

    Args:
        user_rows: Rows to lay over it, as in `PriceList.load`.
        user_file: As in `PriceList.load`.
        url: Where to fetch from, or a file that was fetched elsewhere; default: where genai-prices publishes.
        save: Where to keep it; default: the user's data directory.

    Returns:
        A price list on that data; hand it to ``tokenmeter.price(price_list=...)`` or to a `Pricer`.

    Raises:
        PricingError: the data could not be fetched, read or kept, or cannot be right: a large provider is missing, the
            list shrank, a price is impossible; or `user_rows` is an address. What was kept before stays.
    """
    if isinstance(user_rows, str | Path):
        raise PricingError(f"{shown(user_rows)} is no list of prices; say url={shown(user_rows)} to fetch from there.")
    edition = updating.fetch(url)
    path = updating.kept_path() if save is None else expand(save)
    updating.check(edition, updating.newest(path))
    updating.keep(edition, path)
    return PriceList.load(user_rows, user_file, newest=edition)


def _order(row: Price) -> tuple[int, str, str]:
    conditions = row.conditions.described()
    return len(conditions), str(sorted(conditions.items())), row.sku_meter
