"""The outcome of a reconciliation: readable, exact, and what to do about it.

One difference says where, how much, and why, most likely.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import field, replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tokenmeter.attribution import NOBODY, Attribution
from tokenmeter.dimensions import POSTED_BY, SETTLES
from tokenmeter.display import counted
from tokenmeter.ledger import Charge, Entry
from tokenmeter.money import EXACT, ONE, ZERO, magnitude, quantize, round_to, total
from tokenmeter.periods import Period
from tokenmeter.reconciliation.causes import CAUSES, HARMLESS, NO_TRAFFIC, POSTABLE, Cause, Discrepancy
from tokenmeter.reconciliation.statement import UNNAMED, Bucket
from tokenmeter.texts import is_blank
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tokenmeter.reconciliation.statement import ProviderStatement
    from tokenmeter.stores.documents import Document

#: Kind of the document that keeps an outcome.
KIND = "reconciliation"

#: Below so many US dollars per bucket a small share is taken for rounding.
TOLERANCE = Decimal("0.005")

_ROWS = 40
_PERCENT = Decimal(100)
ENDPOINT = "reconcile"
_NO_KEYS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SideTotals:
    """One side, over everything that was compared; None = not told."""

    tokens: int | None
    cost: Decimal | None


@dataclass(frozen=True, slots=True)
class Proposal:
    """An adjustment that would make the ledger's cost that of the provider in one bucket.

    Attributes:
        discrepancy: What it settles.
        amount: US dollars, upstream cost; may be negative.
        grain: What the comparison split by, besides the day.
    """

    discrepancy: Discrepancy
    amount: Decimal
    grain: tuple[str, ...] = ()

    def entry(
        self,
        provider: str,
        *,
        by: str,
        attribution: Attribution = NOBODY,
        multiplier: Decimal = ONE,
        keys: Mapping[str, str] = _NO_KEYS,
    ) -> Entry:
        """The adjustment as a ledger entry, at noon UTC of the day it is for: there is most of that day in every zone.

        Args:
            provider: Provider id.
            by: Who posts it, kept as its tag ``posted_by``.
            attribution: On whose account.
            multiplier: Platform multiplier on top of the upstream amount.
            keys: Name of an API key -> its fingerprint, by which the bucket is found under later names, too.
        """
        bucket = self.discrepancy.bucket
        # Whose account it is on says nothing of the bucket that it settles, by which a further run has to find it.
        settled = {"project": bucket.project, "api_key": keys.get(bucket.api_key or "", bucket.api_key)}
        settles = {
            tag: settled[name] or UNNAMED
            for name, tag in SETTLES.items()
            if name in self.grain and (getattr(bucket, name) or getattr(attribution, name, None))
        }
        attribution = attribution.with_tags({POSTED_BY: by, **settles})
        if bucket.project and not is_blank(bucket.project) and attribution.project is None:
            attribution = replace(attribution, project=bucket.project)
        billed = quantize(EXACT.multiply(self.amount, multiplier))
        # No name in a key, which an erasure could not reach.
        names = hashlib.sha256(json.dumps(bucket[1:]).encode()).hexdigest()[:16]
        theirs = self.discrepancy.theirs_cost
        # As a filed outcome has it: the same proposal is known from both.
        told = None if theirs is None else quantize(theirs), self.discrepancy.adjustments
        charge = Charge(
            model=bucket.model,
            sku_meter="adjustment",
            quantity=self.amount,
            unit="USD",
            list_unit_price=ONE,
            multipliers={} if multiplier == ONE else {"platform": multiplier},
            list_cost=self.amount,
            contracted_cost=self.amount,
            billed_cost=billed,
            source=f"reconciliation: {self.discrepancy.cause}",
        )
        return Entry(
            kind="adjustment",
            occurred_at=datetime.combine(bucket.day, time(12), UTC),
            provider=provider,
            endpoint=ENDPOINT,
            operation=ENDPOINT,
            request_model=bucket.model,
            service_tier=bucket.service_tier,
            attribution=attribution,
            charges=(charge,),
            list_cost=self.amount,
            contracted_cost=self.amount,
            billed_cost=billed,
            cost_source="billed",
            flags=(f"reconciled_{self.discrepancy.cause}",),
            dedup_key=f"{ENDPOINT}:{provider}:{bucket.day}:{names}:{told[0]}:{told[1]}:{self.amount}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """The ledger against a provider's books. ``print()`` it.

    Attributes:
        provider: Whose books.
        period: In whole UTC days.
        source: Where the statement came from.
        grain: What both sides were split by, besides the day.
        compared: How many buckets were compared.
        ours: Our totals.
        theirs: Theirs.
        complete_until: Until when the statement is taken as complete.
        discrepancies: Every difference, in order of day.
        reconciled_at: When it was compared, aware UTC.
        notes: What was odd about the statement: files given twice, another time zone.
        document: Where it is filed; None until it is.
        statement: What the ledger was compared with; None of an outcome that was filed.
        tolerance: US dollars per bucket within which a small share was taken for rounding.
    """

    provider: str
    period: Period
    source: str
    grain: tuple[str, ...]
    compared: int
    ours: SideTotals
    theirs: SideTotals
    complete_until: datetime
    discrepancies: tuple[Discrepancy, ...] = ()
    reconciled_at: datetime
    notes: tuple[str, ...] = ()
    document: Document | None = field(default=None, repr=False, compare=False)
    statement: ProviderStatement | None = field(default=None, repr=False, compare=False)
    tolerance: Decimal = field(default=TOLERANCE, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether nothing needs attention: rounding, late reports and what adjustments have settled do not."""
        return not self.open_differences

    @property
    def open_differences(self) -> tuple[Discrepancy, ...]:
        """The differences that need attention."""
        return tuple(one for one in self.discrepancies if one.cause not in HARMLESS)

    @property
    def difference(self) -> Decimal | None:
        """Theirs less ours, US dollars; None without costs."""
        if self.theirs.cost is None or self.ours.cost is None:
            return None
        return EXACT.subtract(self.theirs.cost, self.ours.cost)

    @property
    def coverage(self) -> Decimal | None:
        """Percent of the provider's traffic that passed tokenmeter: by tokens, or by cost where those are not told.

        What was posted afterwards is not in it: an adjustment has no tokens. None when the provider counted nothing.
        """
        if self.theirs.tokens is None:
            return self.cost_coverage
        missed = [one for one in self.discrepancies if one.cause in {"unrecorded", "adjusted"}]
        missing = sum(max(one.theirs_tokens - one.ours_tokens, 0) for one in missed)
        return _percent(Decimal(missing), Decimal(self.theirs.tokens))

    @property
    def cost_coverage(self) -> Decimal | None:
        """Percent of what the provider's traffic cost that the ledger has, adjustments and all.

        Credits, refunds, tax and fees are no traffic. None when there is no such cost.
        """
        if self.theirs.cost is None:
            return None
        extras = total(one.amount or ZERO for one in self.discrepancies if one.cause in NO_TRAFFIC.values())
        missing = total(max(one.amount or ZERO, ZERO) for one in self.discrepancies if one.cause == "unrecorded")
        return _percent(missing, EXACT.subtract(self.theirs.cost, extras))

    @property
    def proposals(self) -> tuple[Proposal, ...]:
        """Adjustments that would settle the differences in cost. Nothing is posted until `post_proposals`."""
        return tuple(
            Proposal(one, quantize(one.amount), self.grain)
            for one in self.discrepancies
            if one.cause in POSTABLE and one.amount is not None and quantize(one.amount)
        )

    def by_cause(self) -> dict[Cause, Decimal]:
        """Cause -> sum of amounts, US dollars, in the order of `CAUSES`."""
        sums: dict[Cause, Decimal] = {}
        for cause in CAUSES:
            found = [one for one in self.discrepancies if one.cause == cause]
            if found:
                sums[cause] = total(one.amount or ZERO for one in found)
        return sums

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready; decimals are text."""
        coverage, cost_coverage = self.coverage, self.cost_coverage
        return {
            "provider": self.provider,
            "period": {
                "label": self.period.label,
                "start": self.period.start.isoformat(),
                "end": self.period.end.isoformat(),
            },
            "source": self.source,
            "grain": ["day", *self.grain],
            "compared": self.compared,
            "notes": list(self.notes),
            "complete_until": self.complete_until.isoformat(),
            "reconciled_at": self.reconciled_at.isoformat(),
            "ok": self.ok,
            "coverage": None if coverage is None else f"{coverage:f}",
            "cost_coverage": None if cost_coverage is None else f"{cost_coverage:f}",
            "ours": _totals_dict(self.ours),
            "theirs": _totals_dict(self.theirs),
            "difference": None if self.difference is None else f"{quantize(self.difference):f}",
            "by_cause": {cause: f"{quantize(amount):f}" for cause, amount in self.by_cause().items()},
            "discrepancies": [one.to_dict() for one in self.discrepancies],
            "proposals": [
                {
                    "day": one.discrepancy.bucket.day.isoformat(),
                    "model": one.discrepancy.bucket.model,
                    "cause": one.discrepancy.cause,
                    "amount": f"{one.amount:f}",
                }
                for one in self.proposals
            ],
        }

    @classmethod
    def of(cls, document: Document) -> Reconciliation:
        """The outcome that `document` holds."""
        body: dict[str, Any] = json.loads(document.body)
        period = body["period"]
        return cls(
            provider=body["provider"],
            period=Period(
                datetime.fromisoformat(period["start"]), datetime.fromisoformat(period["end"]), "UTC", period["label"]
            ),
            source=body["source"],
            grain=tuple(body["grain"][1:]),
            compared=body["compared"],
            notes=tuple(body["notes"]),
            ours=_totals_of(body["ours"]),
            theirs=_totals_of(body["theirs"]),
            complete_until=datetime.fromisoformat(body["complete_until"]),
            discrepancies=tuple(_discrepancy_of(one) for one in body["discrepancies"]),
            reconciled_at=datetime.fromisoformat(body["reconciled_at"]),
            document=document,
        )

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)

    def __str__(self) -> str:
        return "\n".join(_text(self))


def _discrepancy_of(values: Mapping[str, Any]) -> Discrepancy:
    return Discrepancy(
        bucket=Bucket(
            date.fromisoformat(values["day"]),
            *(values[name] for name in ("model", "api_key", "project", "service_tier")),
        ),
        cause=values["cause"],
        amount=_amount_of(values["amount"]),
        tokens=values["tokens"],
        ours_tokens=values["ours_tokens"],
        theirs_tokens=values["theirs_tokens"],
        ours_cost=_amount_of(values["ours_cost"]),
        theirs_cost=_amount_of(values["theirs_cost"]),
        requests=values["requests"],
        detail=values["detail"],
        adjustments=values.get("adjustments", 0),
    )


def _percent(missing: Decimal, whole: Decimal) -> Decimal | None:
    """What is not missing of a whole; None where there is none."""
    if whole <= 0:
        return None
    share = EXACT.divide(EXACT.multiply(_PERCENT, EXACT.subtract(whole, missing)), whole)
    return round_to(share, 2)


def _totals_of(values: Mapping[str, Any]) -> SideTotals:
    return SideTotals(values["tokens"], _amount_of(values["cost"]))


def _amount_of(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _totals_dict(totals: SideTotals) -> dict[str, Any]:
    return {"tokens": totals.tokens, "cost": None if totals.cost is None else f"{quantize(totals.cost):f}"}


def _text(outcome: Reconciliation) -> Iterator[str]:
    yield f"{outcome.provider}, {outcome.period.label} (UTC): the ledger against {outcome.source}"
    coverage = "unknown" if outcome.coverage is None else f"{outcome.coverage}%"
    if outcome.theirs.tokens is not None and outcome.cost_coverage is not None:
        coverage += f" of the tokens, {outcome.cost_coverage}% of their cost"
    split = ", ".join(("day", *outcome.grain))
    yield f"Coverage {coverage}. {counted(outcome.compared, 'bucket')} compared, by {split}."
    for name, side in (("ledger", outcome.ours), ("provider", outcome.theirs)):
        tokens = "-" if side.tokens is None else f"{side.tokens:,}"
        cost = "-" if side.cost is None else f"${quantize(side.cost):,f}"
        yield f"  {name:<10} {tokens:>18} tokens {cost:>24}"
    yield from outcome.notes
    if not outcome.discrepancies:
        yield "No differences."
        return
    yield ""
    counts = Counter(one.cause for one in outcome.discrepancies)
    for cause, amount in outcome.by_cause().items():
        yield f"  {cause:<17} {counts[cause]:>5} x {quantize(amount):>22,f} USD  {CAUSES[cause]}"
    yield ""
    grain = " ".join(name for name in Bucket._fields[1:] if name in outcome.grain)
    yield f"{'day':<10} {grain:<28} {'cause':<17} {'tokens':>14} {'USD':>20}"
    dearest = sorted(outcome.discrepancies, key=lambda one: magnitude(one.amount or ZERO), reverse=True)[:_ROWS]
    for one in sorted(dearest, key=outcome.discrepancies.index):
        names = " ".join(name for name in one.bucket[1:] if name) or "-"
        dollars = "-" if one.amount is None else f"{quantize(one.amount):,f}"
        # Of a statement of costs alone nobody knows how many tokens it lacks.
        more = "-" if outcome.theirs.tokens is None else f"{one.theirs_tokens - one.ours_tokens:+,}"
        yield f"{one.bucket.day} {names:<28} {one.cause:<17} {more:>14} {dollars:>20}"
    if len(outcome.discrepancies) > _ROWS:
        yield f"... and {len(outcome.discrepancies) - _ROWS} smaller ones; all are in discrepancies."
    if outcome.proposals:
        proposed = total(one.amount for one in outcome.proposals)
        yield (
            f"{counted(len(outcome.proposals), 'adjustment')} over {proposed:,f} USD proposed; `--post` or "
            "post_proposals() appends what is proposed."
        )
        if outcome.difference is not None:
            rest = quantize(EXACT.subtract(outcome.difference, proposed))
            whole = quantize(outcome.difference)
            left = f"they leave {rest:,f}: the other causes above" if rest else "they leave nothing"
            yield f"Of the difference of {whole:,f} USD {left}."
