"""What a call used: disjoint quantities per meter, and the context that decides their price.

Providers count differently (OpenAI's input includes its cached tokens, Anthropic's does not). Here every token is in
exactly one class, so a class can be multiplied by its price and the classes add up to the wire's totals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Literal

from tokenmeter.dimensions import CACHE_READ_METERS, CACHE_WRITE_METERS, INPUT_METERS, OUTPUT_METERS
from tokenmeter.money import add
from tokenmeter.values import dataclass

__all__ = ["Consumption", "Observation", "Quantity", "SuppliedCost", "Usage"]

#: Tokens and counts are int; seconds may be a Decimal.
Quantity = int | Decimal

_NOTHING: Mapping[str, Quantity] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Usage:
    """Disjoint quantities per meter (see `tokenmeter.dimensions`), with OpenTelemetry's inclusive views beside them.

    Attributes:
        quantities: sku_meter -> quantity in the meter's unit; meters with nothing used are absent.
        reasoning_output_tokens: Informational part of ``output``; never added to anything.
    """

    quantities: Mapping[str, Quantity] = field(default_factory=lambda: _NOTHING)
    reasoning_output_tokens: int = 0

    def __getitem__(self, sku_meter: str) -> Quantity:
        return self.quantities.get(sku_meter, 0)

    def __bool__(self) -> bool:
        return any(self.quantities.values())

    def __add__(self, other: Usage) -> Usage:
        merged = dict(self.quantities)
        for meter, quantity in other.quantities.items():
            merged[meter] = add(merged.get(meter, 0), quantity)
        return Usage(merged, self.reasoning_output_tokens + other.reasoning_output_tokens)

    @classmethod
    def total(cls, usages: Iterable[Usage]) -> Usage:
        """The sum of many usages; empty for none."""
        quantities: dict[str, Quantity] = {}
        reasoning = 0
        for usage in usages:
            reasoning += usage.reasoning_output_tokens
            for meter, quantity in usage.quantities.items():
                quantities[meter] = add(quantities.get(meter, 0), quantity)
        return cls(quantities, reasoning)

    @property
    def input_tokens(self) -> int:
        """All prompt tokens, cache reads and writes included (``gen_ai.usage.input_tokens``)."""
        return self._sum(INPUT_METERS)

    @property
    def output_tokens(self) -> int:
        """All answer tokens, reasoning included (``gen_ai.usage.output_tokens``)."""
        return self._sum(OUTPUT_METERS)

    @property
    def cache_read_input_tokens(self) -> int:
        """The part of `input_tokens` that was served from a cache."""
        return self._sum(CACHE_READ_METERS)

    @property
    def cache_write_input_tokens(self) -> int:
        """The part of `input_tokens` that was written to a cache."""
        return self._sum(CACHE_WRITE_METERS)

    @property
    def total_tokens(self) -> int:
        """`input_tokens` + `output_tokens`."""
        return self.input_tokens + self.output_tokens

    def _sum(self, meters: tuple[str, ...]) -> int:
        quantities = self.quantities
        result: Quantity = 0
        for meter in meters:
            if meter in quantities:
                result = add(result, quantities[meter])
        return int(result)


@dataclass(frozen=True, slots=True)
class SuppliedCost:
    """A cost that the biller itself put on the wire; where it is believed, it wins over any table.

    Attributes:
        amount: US dollars, all in.
        source: Which field said so, for example ``"usage.cost"``.
        believed: Whether it is the bill. Else nobody knows its unit: it is compared with the price of the same usage.
    """

    amount: Decimal
    source: str
    believed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumption:
    """One group of quantities that a single model answered for in a single context.

    A response has one, or several when it was served by several models: an advisor, a compaction, an image tool.

    Attributes:
        model: The model that did the work, as the provider names it; None when nobody said.
        usage: What it used.
        service_tier: The tier that SERVED it (``default``, ``flex``, ``priority``, ...); None when not said.
        processing: ``"batch"`` for asynchronous batch work, else None.
        speed: Anthropic's ``"fast"``, else None.
        geo: Inference geography that was billed (``"us"``), else None.
        region: Cloud region or data zone the request went to, else None.
        role: What the group was for: ``message``, ``compaction``, ``advisor_message``, ``fallback_message``,
            ``image_generation``, ``svg``, ``transcription``, ``tool``.
        prompt_tokens: Size of the one prompt that chooses a long-context tier (cache included); None when only an
            aggregate over several prompts is known.
        supplied_cost: The biller's own figure for this group.
        endpoint: SDK method path of the work, where that is not the call's own: a line of a batch's output file holds
            the answer of another endpoint, whose prices it has. None = the call's.
    """

    model: str | None
    usage: Usage
    service_tier: str | None = None
    processing: str | None = None
    speed: str | None = None
    geo: str | None = None
    region: str | None = None
    role: str = "message"
    prompt_tokens: int | None = None
    supplied_cost: SuppliedCost | None = None
    endpoint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a provider said about one billed response, in neutral terms.

    Attributes:
        consumptions: Charge groups, disjoint; empty when the response carried no usage.
        response_model: Model named by the response.
        response_id: Provider's id, the key for deduplication.
        service_tier: Tier of the response as a whole.
        flags: Doubts and remarks, for example ``cached_exceeds_input``, ``estimated``, ``tier_ambiguous``,
            ``usage_unknown``.
        raw_usage: The usage object as it came off the wire (JSON-ready), kept for audit; None when there was none.
        billable: False for a response that is free by the provider's rules.
        deduplicate: Whether the same `response_id` may be seen again (polling, batch results) and must bill once.
        bill_id: Identity under which it is billed once, where that is not `response_id`: the output file of a batch,
            the ``custom_id`` of a result within its file.
        reading: What the quantities are: ``whole``, the bill itself; ``total``, a running total, of which only what
            is new is recorded; ``growth``, what of one is new since an earlier one was recorded; ``step``, a part of a
            running total that may be read as well; ``share``, a part of a bill that may be read as a whole as well;
            ``actual``, the bill of what an answer before could only assume.
        instead: What is recorded in its place, since it states the same usage: ``its session`` of a thread's.
        at: When a step was done, a total taken, or what lived for a while begun, as the provider says; aware UTC.
        shared: Bills of what outlives the response and may be named by others (a container): each is recorded once, by
            its own `bill_id`, over all responses and processes.
        operation: What was done, where it is not what the call asked for (`tokenmeter.dimensions.TOOL_OPERATION`).
        error_type: What went wrong, where the answer came whole and says that it failed; its usage is billed.
        size: The memory of the container that `response_id` names: who runs code in it later says its name alone.
    """

    consumptions: tuple[Consumption, ...] = ()
    response_model: str | None = None
    response_id: str | None = None
    service_tier: str | None = None
    flags: frozenset[str] = frozenset()
    raw_usage: Any = None
    billable: bool = True
    deduplicate: bool = False
    bill_id: str | None = None
    reading: Literal["whole", "total", "growth", "step", "share", "actual"] = "whole"
    instead: str | None = None
    at: datetime | None = None
    shared: tuple[Observation, ...] = ()
    operation: str | None = None
    error_type: str | None = None
    size: str | None = None

    @property
    def is_event(self) -> bool:
        """Whether it is of an event of a running total, which does not say whose total that is."""
        return self.reading == "step" or (self.reading == "total" and self.at is not None)

    def with_shared(self) -> Observation:
        """The whole at once: the shared bills as groups of this one, each once."""
        if not self.shared:
            return self
        bills = {bill.bill_id: bill for bill in self.shared}.values()
        return replace(
            self,
            consumptions=(*self.consumptions, *(group for bill in bills for group in bill.consumptions)),
            flags=self.flags.union(*(bill.flags for bill in bills)),
            shared=(),
        )

    @property
    def usage(self) -> Usage:
        """All groups together."""
        if len(self.consumptions) == 1:
            return self.consumptions[0].usage
        return Usage.total(consumption.usage for consumption in self.consumptions)
