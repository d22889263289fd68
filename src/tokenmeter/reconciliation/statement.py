"""The two books in neutral terms: what a provider says, what the ledger has. Disjoint tokens per class, US dollars."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Literal, NamedTuple

from tokenmeter.dimensions import (
    CACHE_READ_METERS,
    CACHE_WRITE_METERS,
    COUNTED_AS,
    INPUT_METERS,
    OUTPUT_METERS,
    POSTED_BY,
    SETTLES,
    TOOL_OPERATION,
    WHO,
)
from tokenmeter.display import counted
from tokenmeter.errors import ReconciliationError
from tokenmeter.ledger import Entry
from tokenmeter.money import EXACT, ZERO
from tokenmeter.periods import Period
from tokenmeter.stores.base import EntryFilter, Store
from tokenmeter.stores.naming import FINGERPRINT, NamesNow
from tokenmeter.usage import Quantity
from tokenmeter.values import dataclass

#: Classes of tokens that both sides can tell apart; disjoint.
TOKEN_CLASSES = ("input", "cache_read", "cache_write", "output")
#: What a statement can be split by, besides the UTC day. A project is OpenAI's project or Anthropic's workspace.
GRAIN = ("model", "api_key", "project", "service_tier")
#: What such a tag says where the bucket has no name.
UNNAMED = "-"
#: What an amount is for. Only ``usage`` is traffic that a ledger of calls could have.
CostKind = Literal["usage", "credit", "refund", "tax", "fee"]
#: What says so, whole words and those of languages that put no blanks between theirs.
_WORDS: Mapping[CostKind, tuple[str, str]] = {
    "tax": (
        r"tax(es)?|vat|gst|hst|pst|qst|\w*steuer|mwst|ust|tva|taxes?|iva|btw|moms|mva|kdv|alv|imp(ues|os)t[oa]s?|ндс",
        "税|稅|세금|부가세",
    ),
    "refund": (
        r"refund(s|ed)?|chargeback|\w*erstattung(en)?|remboursements?|reembolsos?|rimborso|devolución|terugbetaling",
        "退款|返金|払い戻し|환불",
    ),
    "credit": (
        (
            r"credits?|grants?|promo(tion(al)?)?|coupon|discount|adjustment|gutschrift(en)?|guthaben|rabatt|crédits?|avoir"
            r"|remise|cr[ée]ditos?|descuento|desconto|sconto|tegoed|korting"
        ),
        "抵扣|赠金|優惠|优惠|クレジット|割引|크레딧|할인",
    ),
    "fee": (
        (
            r"fees?|surcharge|rounding|support( plan)?|seats?|subscription|minimum commitment|true-?up|\w*gebühr(en)?"
            r"|frais|rundung(sdifferenz)?|arrondis?|abonnement|comisi[óo]n|commissione|redondeo|arrotondamento|afronding"
        ),
        "手数料|手续费|四捨五入|舍入|수수료",
    ),
}
_KINDS: tuple[tuple[CostKind, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(rf"\b(?:{words})\b|{unspaced}", re.IGNORECASE)) for kind, (words, unspaced) in _WORDS.items()
)


class Bucket(NamedTuple):
    """Where amounts are compared; a name the comparison does not split by is None."""

    day: date
    model: str | None = None
    api_key: str | None = None
    project: str | None = None
    service_tier: str | None = None


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What the provider counted in a bucket: tokens per class (and ``web_searches``), and requests if it says.

    `again`: whether the same stands in the statement before, word for word.
    """

    bucket: Bucket
    tokens: Mapping[str, int]
    requests: int | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class CostLine:
    """What the provider billed in a bucket for one item, in US dollars as exactly as it says; `again` as above."""

    bucket: Bucket
    item: str
    amount: Decimal
    kind: CostKind = "usage"
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderStatement:
    """A provider's own books over a period.

    Attributes:
        provider: ``openai``, ``anthropic``, ...
        period: What was asked for, in whole UTC days.
        source: Where it comes from, for people.
        grain: Names of `GRAIN` that every line tells.
        usage: Its usage lines; None when it has no such layer.
        costs: Its cost lines; None when it has no such layer.
        classes: What of `UsageLine.tokens` it counts at all.
        in_input: Classes that its ``input`` has in it, because it does not tell them apart.
        tokenless: Beginnings of endpoint names whose usage it does not count in tokens.
        quantum: The finest unit of its amounts, US dollars; None = as its amounts are written.
        watermark: Until when it is complete; None = it does not say.
        begins: Times of day, UTC, at which its daily buckets begin; any but midnight: it is cut in another zone.
        shown: Id of a project -> what people see it called, where the statement tells both.
        reach: First and last day that its rows speak of; None = it has the whole period.
        notes: What was odd about it: files given twice, rows that repeat.
    """

    provider: str
    period: Period
    source: str
    grain: tuple[str, ...] = ("model",)
    usage: tuple[UsageLine, ...] | None = None
    costs: tuple[CostLine, ...] | None = None
    classes: tuple[str, ...] = TOKEN_CLASSES
    in_input: frozenset[str] = frozenset()
    tokenless: tuple[str, ...] = field(default=())
    quantum: Decimal | None = None
    watermark: datetime | None = None
    begins: frozenset[time] = frozenset()
    shown: Mapping[str, str] = field(default_factory=dict[str, str])
    reach: tuple[date, date] | None = None
    notes: tuple[str, ...] = ()


_CLASS = {
    **dict.fromkeys(INPUT_METERS, "input"),
    **dict.fromkeys(CACHE_READ_METERS, "cache_read"),
    **dict.fromkeys(CACHE_WRITE_METERS, "cache_write"),
    **dict.fromkeys(OUTPUT_METERS, "output"),
    "web_searches": "web_searches",
}


def names_model(told: str, known: Collection[str]) -> bool:
    """Whether what stands in a model's place names one, and not a fee, a tax or a credit.

    A name with such a word in it (``support-bot``, as ``sales_tax`` has) is a model's only where something says so:
    it is known, or begins as those of fine-tuned models do; or it has tokens, which its caller sees.

    Args:
        told: What stands there.
        known: What is known to be a model: the ledger's, and those that somebody translates.
    """
    name = told.strip()
    return name in known or name.startswith("ft:") or kind_of_cost(name, ZERO, model=None) == "usage"


def kind_of_cost(item: str | None, amount: Decimal, *, model: str | None) -> CostKind:
    """What an amount is for, by its words: a line that names a model's tokens is usage, whatever its sign.

    Args:
        item: The line's text: line item, cost type, description.
        amount: The amount.
        model: The model it names, if any.
    """
    if model is None:
        for kind, words in _KINDS:
            if words.search((item or "").replace("_", " ")):
                return kind
        if amount < 0:
            return "credit"
    return "usage"


_DOLLARS = frozenset({"", "USD", "US$", "$", "US DOLLAR", "US DOLLARS", "DOLLARS"})
_SIGNS = {"\N{EURO SIGN}": "EUR", "\N{POUND SIGN}": "GBP"}


class ExchangeRates:
    """US dollars per unit of other currencies, and what was converted by them.

    Args:
        rates: ISO 4217 code in capitals -> US dollars per unit.
    """

    def __init__(self, rates: Mapping[str, Decimal]) -> None:
        self._rates = rates
        self._converted: dict[str, tuple[int, Decimal]] = {}

    def convert(self, amount: Decimal, currency: str | None, *, where: str) -> Decimal:
        """An amount in US dollars.

        Args:
            amount: The amount.
            currency: ISO 4217 code in any case, or a sign; nothing means dollars.
            where: Where it stands, for the message.

        Raises:
            ReconciliationError: another currency without a rate.
        """
        code = (currency or "USD").strip().upper()
        code = _SIGNS.get(code, code)
        if code in _DOLLARS:
            return amount
        if code not in self._rates:
            raise ReconciliationError(
                f"{where}: the amount is in {code}, the ledger in US dollars; give exchange_rates={{'{code}': ...}} "
                f"(--rate {code}=...), the dollars per {code}."
            )
        count, known = self._converted.get(code, (0, ZERO))
        self._converted[code] = count + 1, EXACT.add(known, amount)
        return EXACT.multiply(amount, self._rates[code])

    @property
    def notes(self) -> tuple[str, ...]:
        """Which rates were used, on how much, so that a reader can do it again; and which were not."""
        used = (
            f"{code} at {self._rates[code]:f}: {counted(count, 'amount')} over {amount:f} {code} "
            f"{'is' if count == 1 else 'are'} {EXACT.multiply(amount, self._rates[code]):f} USD."
            for code, (count, amount) in self._converted.items()
        )
        idle = (f"No amount is in {code}: its rate was not used." for code in self._rates.keys() - self._converted)
        return *used, *sorted(idle)


def day_begins(start: datetime, end: datetime | None) -> time | None:
    """When a daily bucket begins, UTC; None for one that is shorter than a day, whose place in it is no cut.

    Args:
        start: Its beginning, aware.
        end: Its end, aware; None = it does not say.
    """
    if end is None or end - start < _SHORTEST_DAY:
        return None
    return start.astimezone(UTC).time()


def tier_name(tier: str | None, *, batch: bool = False) -> str:
    """One name for a tier on both sides: ``standard`` where nothing is said, ``batch`` for whatever ran in one."""
    if batch:
        return "batch"
    name = (tier or "").strip().lower()
    return "standard" if name in {"", "default", "auto", "standard", "none", "sync"} else name


#: A day on which clocks are put forward.
_SHORTEST_DAY = timedelta(hours=23)
_TOOL_UNITS = frozenset({"Searches", "Sessions"})
#: Seconds.
QUARTER = 900
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Side:
    """One side of a bucket.

    Attributes:
        tokens: Class -> count of what is billed.
        waived: Class -> count of answers that the provider does not bill (refusals); ours only.
        requests: Calls; None when the statement does not say.
        cost: US dollars, exact; None when there is none to compare.
        lines: How many amounts `cost` is the sum of.
        unpriced: Calls of ours whose price is unknown.
        estimated: Calls of ours whose usage is estimated.
        adjustments: The adjustments that `cost` has in it, for people; ours only.
    """

    tokens: dict[str, int] = field(default_factory=dict[str, int])
    waived: dict[str, int] = field(default_factory=dict[str, int])
    requests: int | None = None
    cost: Decimal | None = None
    lines: int = 0
    unpriced: int = 0
    estimated: int = 0
    adjustments: tuple[str, ...] = ()

    def count(self, tokens: Mapping[str, int]) -> None:
        """Add billed tokens."""
        for name, count in tokens.items():
            self.tokens[name] = self.tokens.get(name, 0) + count

    def bill(self, amount: Decimal) -> None:
        """Add a cost."""
        self.cost = EXACT.add(self.cost or ZERO, amount)
        self.lines += 1

    @property
    def total_tokens(self) -> int:
        """All token classes together."""
        return sum(count for name, count in self.tokens.items() if name != "web_searches")


@dataclass(frozen=True, slots=True)
class LedgerSide:
    """The ledger's side of a comparison.

    Attributes:
        sides: Bucket -> what the ledger has in it, in UTC days.
        quarters: (quarter of an hour since the epoch, bucket without its day) -> tokens and cost: what days cut in
            another zone would come to.
    """

    sides: Mapping[Bucket, Side]
    quarters: Mapping[tuple[int, Bucket], tuple[int, Decimal]]


def read_ledger(store: Store, statement: ProviderStatement) -> LedgerSide:
    """The ledger in the statement's buckets. Reads the period's entries once, one at a time."""
    which = EntryFilter(
        since=statement.period.start,
        until=statement.period.end,
        where={"provider": frozenset([statement.provider])},
    )
    reader = _BookReader(statement, NamesNow(store))
    for entry in store.entries(which):
        reader.read(entry)
    return LedgerSide(reader.sides, reader.quarters)


class _BookReader:
    def __init__(self, statement: ProviderStatement, names: NamesNow) -> None:
        self._names = names
        self._keys: dict[str, str] = {}
        self.sides: dict[Bucket, Side] = {}
        self.quarters: dict[tuple[int, Bucket], tuple[int, Decimal]] = {}
        self._statement = statement
        # A provider that bills tools without naming a model is compared with all of them together.
        # A tax or a fee names no model either, and says nothing of tools.
        self._tools_apart = any(
            cost.amount and cost.bucket.model is None and cost.kind == "usage" for cost in statement.costs or ()
        )

    def read(self, entry: Entry) -> None:
        counted = self._statement.usage is not None and not entry.endpoint.startswith(self._statement.tokenless or "\0")
        sign = COUNTED_AS.get(entry.kind, -1)
        if counted and (sign > 0 or entry.usage):
            self._count(entry, sign)
        if self._statement.costs is not None:
            self._bill(entry)

    def _count(self, entry: Entry, sign: int) -> None:
        main = self._side(entry, entry.model)
        if not entry.charges:
            counts = self._classes(entry.usage.quantities.items())
            if entry.cost_source == "none":
                for name, count in counts.items():
                    main.waived[name] = main.waived.get(name, 0) + count
                return
            main.count(counts)
            self._note(entry, entry.model, counts, ZERO)
        for charge in entry.charges:
            counts = self._classes([(charge.sku_meter, charge.quantity)])
            self._side(entry, charge.model or entry.model).count(counts)
            self._note(entry, charge.model or entry.model, counts, ZERO)
        if entry.usage:
            calls = entry.requests if entry.kind in COUNTED_AS else -int(entry.operation != TOOL_OPERATION)
            main.requests = (main.requests or 0) + calls
            main.estimated += sign * (entry.cost_source == "estimated" or "estimated" in entry.flags)

    def _classes(self, quantities: Iterable[tuple[str, Quantity]]) -> dict[str, int]:
        """Quantities in the classes that the statement tells apart."""
        counts: dict[str, int] = {}
        for sku_meter, quantity in quantities:
            name = _CLASS.get(sku_meter)  # None for what no statement counts
            name = "input" if name in self._statement.in_input else name
            if name is not None and name in self._statement.classes:
                counts[name] = counts.get(name, 0) + int(quantity)
        return counts

    def _bill(self, entry: Entry) -> None:
        rest = entry.contracted_cost or ZERO
        for charge in entry.charges:
            apart = self._tools_apart and charge.unit in _TOOL_UNITS
            side = self._side(entry, None if apart else charge.model or entry.model)
            if charge.contracted_cost is None:
                side.unpriced += 1
                continue
            side.bill(charge.contracted_cost)
            self._note(entry, None if apart else charge.model or entry.model, {}, charge.contracted_cost)
            rest = EXACT.subtract(rest, charge.contracted_cost)
            if entry.kind == "adjustment":
                side.adjustments += (_name_adjustment(entry),)
        if rest:
            self._side(entry, entry.model).bill(rest)
            self._note(entry, entry.model, {}, rest)

    def _side(self, entry: Entry, model: str | None) -> Side:
        return self.sides.setdefault(self._bucket(entry, model), Side())

    def _bucket(self, entry: Entry, model: str | None) -> Bucket:
        key = entry.api_key
        batch = entry.service_tier == "batch" or any(
            "processing=batch" in (one.price_id or "") for one in entry.charges
        )
        told = {
            "model": model,
            "api_key": None if key is None else key.label,
            "project": entry.attribution.project,
            "service_tier": tier_name(entry.service_tier, batch=batch),
        }
        if entry.kind == "adjustment":
            for name, tag in SETTLES.items():
                settled = entry.attribution.tags.get(tag, told[name])
                told[name] = None if settled == UNNAMED else settled
            if (key_told := entry.attribution.tags.get(SETTLES["api_key"], UNNAMED)) != UNNAMED:
                told["api_key"] = self._call_key(key_told)
        day = entry.occurred_at.astimezone(UTC).date()
        return Bucket(day, **{name: told[name] for name in self._statement.grain})

    def _call_key(self, told: str) -> str:
        """What a key is called now that a tag tells, by fingerprint or by a name that it had."""
        if told not in self._keys:
            now = self._names.rename({"api_key": told, FINGERPRINT: told})["api_key"]
            self._keys[told] = now if now != told else self._names.rename({"api_key": told})["api_key"]
        return self._keys[told]

    def _note(self, entry: Entry, model: str | None, tokens: Mapping[str, int], cost: Decimal) -> None:
        quarter = int((entry.occurred_at - _EPOCH).total_seconds()) // QUARTER
        key = quarter, self._bucket(entry, model)._replace(day=date.min)
        count, sum_ = self.quarters.get(key, (0, ZERO))
        self.quarters[key] = count + sum(tokens.values()), EXACT.add(sum_, cost)


def _name_adjustment(entry: Entry) -> str:
    """An adjustment in words: its entry, on whose account, by whom."""
    account = [f"{name}={value}" for name in WHO if (value := getattr(entry.attribution, name))]
    by = entry.attribution.tags.get(POSTED_BY)
    return f"entry {entry.entry_id} on {', '.join(account) or 'nobody'}{f', by {by}' if by else ''}"
