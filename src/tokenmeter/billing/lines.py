"""Invoice lines and their sum: exact per line, rounded once per line, and every rounding visible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from decimal import Decimal
from typing import Any

from tokenmeter.billing.profile import Tax
from tokenmeter.dimensions import COUNTED_AS
from tokenmeter.money import EXACT, ONE, ZERO, ExchangeRate, convert, round_money, total
from tokenmeter.periods import Period
from tokenmeter.reports.rated import Rated, RateKey, plus
from tokenmeter.values import dataclass

_MILLION = 1_000_000
_SHOWN = EXACT.copy()
_SHOWN.prec = 10
_TOKENS = {
    "input": "input tokens",
    "output": "output tokens",
    "cache_read": "cached input tokens",
    "cache_write": "tokens written to the cache",
    "trained_tokens": "training tokens",
}
#: What a meter is called on an invoice, where its name alone would not do.
_METERS = {"provider_cost": "cost stated by the provider", "adjustment": "adjustment", **_TOKENS}
_MEDIA = ("audio", "image", "video")
_LIFETIMES = {"5m": "5 minutes", "30m": "30 minutes", "1h": "1 hour", "12h": "12 hours"}
#: Conditions of a price whose value says by itself what it is.
_PLAIN_CONDITIONS = frozenset({"processing", "service_tier"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LineItem:
    """One line of an invoice.

    Attributes:
        position: From 1.
        kind: ``usage``, ``correction`` or ``adjustment``.
        description: For people.
        period: Label of the period in which it was used; for a correction an earlier one.
        provider: Provider id.
        model: Model.
        sku_meter: What was used.
        group: Accounts the invoice is broken down by -> value.
        quantity: How much, in `unit`.
        unit: FOCUS PricingUnit.
        conditions: What the unit price was chosen by, ``processing=batch``; empty for the ordinary one.
        list_unit_price: US dollars per single unit; None when unknown or mixed.
        multipliers: Factors by name, in the order they apply.
        billed_cost: US dollars, exact: quantity x unit price x multipliers, to 12 decimals per call.
        exact_amount: The same in the invoice's currency, exact.
        amount: Rounded once, to the currency's minor unit.
        unpriced: Charges in it whose price is unknown: what they cost is missing.
    """

    position: int
    kind: str
    description: str
    period: str
    provider: str
    model: str | None
    sku_meter: str
    group: Mapping[str, str | None] = field(default_factory=dict[str, "str | None"])
    quantity: Decimal
    unit: str
    conditions: str = ""
    list_unit_price: Decimal | None
    multipliers: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])
    billed_cost: Decimal
    exact_amount: Decimal
    amount: Decimal
    unpriced: int = 0

    @property
    def multiplier(self) -> Decimal:
        """All factors together."""
        product = ONE
        for factor in self.multipliers.values():
            product = EXACT.multiply(product, factor)
        return product

    @property
    def computed_cost(self) -> Decimal | None:
        """Quantity x unit price x every factor, US dollars, exact; None where no unit price is known."""
        if self.list_unit_price is None:
            return None
        return EXACT.multiply(EXACT.multiply(self.quantity, self.list_unit_price), self.multiplier)

    @property
    def rounding_residue(self) -> Decimal:
        """What the calls' roundings to 12 decimals left: `billed_cost` less `computed_cost`, US dollars."""
        computed = self.computed_cost
        return ZERO if computed is None or self.unpriced else EXACT.subtract(self.billed_cost, computed)

    @property
    def price_text(self) -> str:
        """The unit price for people, to ten digits: tokens per million."""
        if self.list_unit_price is None:
            return ""
        per = _MILLION if self.unit == "Tokens" else 1
        price = _SHOWN.plus(EXACT.multiply(self.list_unit_price, Decimal(per))).normalize(EXACT)
        return f"{price:f} / 1M" if per > 1 else f"{price:f}"

    @property
    def factors_text(self) -> str:
        """Each factor by its name: ``discount 0.8 x platform 1.25``."""
        return " x ".join(f"{name} {factor.normalize(EXACT):f}" for name, factor in self.multipliers.items())

    @property
    def arithmetic(self) -> str:
        """The line redone: ``500,000 x 1.25 / 1M x discount 0.8 = 0.5 USD``, with the rounding residue if any."""
        if self.list_unit_price is None or self.unpriced:
            return ""
        factors = f" x {self.factors_text}" if self.multipliers else ""
        residue = self.rounding_residue
        left = f", rounding {residue.normalize(EXACT):+f}" if residue else ""
        cost = f"{self.billed_cost.normalize(EXACT):f}"
        return f"{self.quantity.normalize(EXACT):,f} x {self.price_text}{factors} = {cost} USD{left}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; decimals are text."""
        return {
            "position": self.position,
            "kind": self.kind,
            "description": self.description,
            "period": self.period,
            "provider": self.provider,
            "model": self.model,
            "sku_meter": self.sku_meter,
            "group": dict(self.group),
            "quantity": f"{self.quantity:f}",
            "unit": self.unit,
            "conditions": self.conditions,
            "list_unit_price": None if self.list_unit_price is None else f"{self.list_unit_price:f}",
            "multipliers": {name: f"{factor:f}" for name, factor in self.multipliers.items()},
            "computed_cost": None if self.computed_cost is None else f"{self.computed_cost:f}",
            "rounding_residue": f"{self.rounding_residue:f}",
            "billed_cost": f"{self.billed_cost:f}",
            "exact_amount": f"{self.exact_amount:f}",
            "amount": f"{self.amount:f}",
            "unpriced": self.unpriced,
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> LineItem:
        """A line from `to_dict`."""
        price = values["list_unit_price"]
        known: dict[str, Any] = dict(values)
        known |= {name: Decimal(values[name]) for name in ("quantity", "billed_cost", "exact_amount", "amount")}
        del known["computed_cost"], known["rounding_residue"]  # follow from the rest
        known["multipliers"] = {name: Decimal(factor) for name, factor in values["multipliers"].items()}
        known["list_unit_price"] = None if price is None else Decimal(price)
        return cls(**known)


@dataclass(frozen=True, slots=True)
class TaxLine:
    """A tax: its label, its rate, what it is taken on, and how much it is."""

    label: str
    rate: Decimal
    base: Decimal
    amount: Decimal
    note: str | None = None
    category: str = "S"
    exemption: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """JSON-ready values; decimals are text."""
        return {
            "label": self.label,
            "rate": f"{self.rate:f}",
            "base": f"{self.base:f}",
            "amount": f"{self.amount:f}",
            "note": self.note,
            "category": self.category,
            "exemption": self.exemption,
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TaxLine:
        """A tax from `to_dict`."""
        known: dict[str, Any] = {**values, **{name: Decimal(values[name]) for name in ("rate", "base", "amount")}}
        return cls(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """``subtotal + credits + rounding = net``; ``net + taxes = total``; ``net + remainder = ledger_amount``.

    Attributes:
        subtotal: Sum of the rounded lines of usage and corrections.
        credits: Sum of the rounded adjustment lines, usually negative.
        rounding: What the rounded lines together are off the ledger, in whole minor units: a line of its own.
        net: What is due before tax: the ledger's total, rounded once.
        taxes: Each rounded once.
        total: What is due.
        ledger_cost: The ledger's total in US dollars, exact.
        ledger_amount: The same in the invoice's currency, exact.
        remainder: Less than a minor unit: what even the rounded total is off the ledger.
    """

    subtotal: Decimal
    credits: Decimal
    rounding: Decimal
    net: Decimal
    taxes: tuple[TaxLine, ...] = ()
    total: Decimal
    ledger_cost: Decimal
    ledger_amount: Decimal
    remainder: Decimal

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; decimals are text."""
        amounts = ("subtotal", "credits", "rounding", "net", "total", "ledger_cost", "ledger_amount", "remainder")
        return {
            **{name: f"{getattr(self, name):f}" for name in amounts},
            "taxes": [tax.to_dict() for tax in self.taxes],
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Totals:
        """Totals from `to_dict`."""
        taxes = tuple(TaxLine.of(row) for row in values["taxes"])
        amounts: dict[str, Any] = {name: Decimal(text) for name, text in values.items() if name != "taxes"}
        return cls(**amounts, taxes=taxes)


def make_lines(
    parts: Iterable[tuple[Period, Iterable[Rated]]],
    *,
    within: Period,
    by: Sequence[str],
    currency: str,
    rate: ExchangeRate,
) -> tuple[LineItem, ...]:
    """Lines from rows: one per account asked for, model, meter, price and period.

    Args:
        parts: Rows of the period itself and of earlier ones that are corrected.
        within: The invoice's period; rows of another one are corrections.
        by: Accounts to break down by.
        currency: ISO 4217 code.
        rate: From dollars to it.
    """
    sums: dict[tuple[Any, ...], Rated] = {}
    for period, rows in parts:
        for row in rows:
            sums_key = _key(row.rate, period, within, by)
            before = sums.get(sums_key, Rated(row.rate))
            sums[sums_key] = plus(before, row)
    ordered = sorted(sums.items(), key=lambda item: _order(item[0]))
    # A usage and its reversal that cancel out leave nothing to print; what has no price is printed without an amount.
    shown = [(key, row) for key, row in ordered if row.quantity or row.billed_cost or row.unpriced]
    return tuple(
        _make_line(position, key, row, by=by, currency=currency, rate=rate)
        for position, (key, row) in enumerate(shown, start=1)
    )


def _key(rate: RateKey, period: Period, within: Period, by: Sequence[str]) -> tuple[Any, ...]:
    # A reversal stands on the line of what it takes back, as does what corrects a period that is billed only now.
    kind: str = "usage" if rate.kind in COUNTED_AS or rate.kind == "correction" else rate.kind
    if period != within and kind == "usage":
        kind = "correction"
    group = tuple(rate.about(name) for name in by)
    return (
        kind,
        period.label,
        group,
        rate.provider,
        rate.model,
        rate.sku_meter,
        rate.conditions,
        rate.list_unit_price,
        rate.multipliers,
    )


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    kind, period, group, provider, model, meter, conditions, price, multipliers = key
    names = [(value is None, value or "") for value in (*group, provider, model)]
    return (
        ("usage", "correction", "adjustment").index(kind),
        period,
        names,
        meter,
        conditions,
        price or ZERO,
        repr(multipliers),
    )


def _make_line(
    position: int, key: tuple[Any, ...], row: Rated, *, by: Sequence[str], currency: str, rate: ExchangeRate
) -> LineItem:
    kind, period, group, *_ = key
    exact = convert(row.billed_cost, rate)
    return LineItem(
        position=position,
        kind=kind,
        description=_describe(kind, period, row.rate),
        period=period,
        provider=row.rate.provider,
        model=row.rate.model,
        sku_meter=row.rate.sku_meter,
        group=dict(zip(by, group, strict=True)),
        quantity=row.quantity,
        unit=row.rate.unit,
        conditions=row.rate.conditions,
        list_unit_price=row.rate.list_unit_price,
        multipliers=dict(row.rate.multipliers),
        billed_cost=row.billed_cost,
        exact_amount=exact,
        amount=round_money(exact, currency),
        unpriced=row.unpriced,
    )


def _describe(kind: str, period: str, rate: RateKey) -> str:
    words = [condition for part in rate.conditions.split(",") if (condition := _name_condition(part.strip()))]
    what = ", ".join([f"{rate.model or rate.provider} {_name_meter(rate.sku_meter)}", *words])
    return f"Correction of {period}: {what}" if kind == "correction" else what


def _name_meter(name: str) -> str:
    """``cached input tokens``, ``audio input tokens``, ``tokens written to the cache (5 minutes)``."""
    if known := _METERS.get(name):
        return known
    base, _, last = name.rpartition("_")
    if base in _TOKENS and last in _MEDIA:
        return f"{last} {_TOKENS[base]}"
    if base in _TOKENS and last in _LIFETIMES:
        return f"{_TOKENS[base]} ({_LIFETIMES[last]})"
    return name.replace("_", " ")


def _name_condition(text: str) -> str:
    """``batch``, ``prompts over 200,000 tokens``; else the condition with its name: ``geo us``."""
    name, _, value = text.partition("=")
    if name == "min_input_tokens" and value.isdecimal():
        return f"prompts over {int(value):,} tokens"
    return value if name in _PLAIN_CONDITIONS else f"{name.replace('_', ' ')} {value}".strip()


def sum_up(lines: Iterable[LineItem], *, currency: str, rate: ExchangeRate, taxes: Sequence[Tax] = ()) -> Totals:
    """The totals of `lines`; see `Totals`.

    Args:
        lines: The lines.
        currency: ISO 4217 code.
        rate: From dollars to it.
        taxes: Taxes on the net amount.
    """
    cost = subtotal = credits_ = ZERO
    for line in lines:
        cost = EXACT.add(cost, line.billed_cost)
        if line.kind == "adjustment":
            credits_ = EXACT.add(credits_, line.amount)
        else:
            subtotal = EXACT.add(subtotal, line.amount)
    exact = convert(cost, rate)
    # Rounded once, as a whole: the sum of rounded lines may be some cents off, which is a line of its own.
    net = round_money(exact, currency)
    due = tuple(
        TaxLine(
            tax.label,
            tax.rate,
            net,
            round_money(EXACT.multiply(net, tax.rate), currency),
            tax.note,
            tax.category,
            tax.exemption,
        )
        for tax in taxes
    )
    return Totals(
        subtotal=round_money(subtotal, currency),
        credits=round_money(credits_, currency),
        rounding=round_money(EXACT.subtract(EXACT.subtract(net, subtotal), credits_), currency),
        net=net,
        taxes=due,
        total=total((net, *(tax.amount for tax in due))),
        ledger_cost=cost,
        ledger_amount=exact,
        remainder=EXACT.subtract(exact, net),
    )
