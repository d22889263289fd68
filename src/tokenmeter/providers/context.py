"""What every reader of a body has in hand, and the two ways all of them end.

Costs that the biller itself puts on the wire, and the words it has for its tiers, are read here, too.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tokenmeter.dimensions import INPUT_METERS, OUTPUT_METERS
from tokenmeter.money import EXACT, MOST_DOLLARS, ONE, ZERO
from tokenmeter.providers.hosts import host_of
from tokenmeter.providers.prompts import input_tokens, tokens_of
from tokenmeter.providers.readings import BOTH_SIDES, NO_FLAGS, Reading, put
from tokenmeter.providers.wire import JSON, LONGEST_NAME, amount, is_object, section, text
from tokenmeter.usage import Consumption, Observation, SuppliedCost, Usage
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tokenmeter.call import RequestFacts

_INPUTS = frozenset(INPUT_METERS)
_OUTPUTS = frozenset(OUTPUT_METERS)
_ESTIMATED = frozenset({"estimated"})
#: A message of many iterations has some dozens of groups.
_MOST_GROUPS = 100


def _nothing_received() -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Context:
    """Where a body came from.

    Attributes:
        provider: Provider id.
        endpoint: SDK method path.
        request: Facts of the request; defaults where only the body is known.
        final_only: Whether a bill that may still grow is to be left out (live calls), or taken as it stands.
        received: UTF-8 bytes of the answer that were seen beside the body: the pieces of a stream.
    """

    provider: str
    endpoint: str
    request: RequestFacts
    final_only: bool = True
    received: int = 0

    def complete(
        self,
        reading: Reading,
        *,
        received: Callable[[], int] = _nothing_received,
        sides: frozenset[str] = BOTH_SIDES,
        estimable: bool = True,
    ) -> Reading | None:
        """`reading` with an estimate of what nobody said; None when nothing can stand in for it.

        A zero beside an answer that has content is not said either: hosts fill in zeros where they do not count.

        Args:
            reading: What the usage object says.
            received: Measures the body's content, in UTF-8 bytes; asked only when that matters.
            sides: Which sides the endpoint bills.
            estimable: Whether the request at hand holds the whole prompt.
        """
        unsaid = reading.unsaid & sides
        quantities = reading.usage.quantities
        has_output = "output" not in sides or not _OUTPUTS.isdisjoint(quantities)
        if not unsaid and has_output and not ("input" in sides and _INPUTS.isdisjoint(quantities)):
            return reading
        size = max(self.received, received())
        answered = bool(size or reading.usage.output_tokens)
        if "output" in sides and size and not reading.usage.output_tokens:
            unsaid |= {"output"}
        request = self.request
        known = estimable and bool(request.input_bytes or request.image_count)
        if "input" in sides and answered and not reading.usage.input_tokens:
            unsaid |= {"input"}
        if not unsaid:
            return reading
        if ("input" in unsaid and not known) or ("output" in unsaid and not known and not size):
            return None
        prompt, answer = input_tokens(request), tokens_of(size)
        if unsaid == BOTH_SIDES and reading.total:
            prompt, answer = _shared_out(reading, prompt, answer)
        return _estimated(reading, unsaid, prompt=prompt, answer=answer)

    def in_batch(self) -> Context:
        """The same context, with its work done in a batch."""
        return replace(self, request=replace(self.request, processing="batch"))

    def consumption(
        self,
        reading: Reading,
        *,
        model: str | None,
        wire: JSON | None = None,
        tier: str | None = None,
        role: str = "message",
        flags: set[str] | None = None,
    ) -> Consumption:
        """A charge group of `reading` in this context.

        Args:
            reading: What was used.
            model: Who did the work; the request's model where None.
            wire: The usage object, which may carry a supplied cost.
            tier: The tier that served; the request's where None.
            role: What the group was for.
            flags: Doubts of the supplied cost are added here.
        """
        request = self.request
        doubts: set[str] = set() if flags is None else flags
        return Consumption(
            model=model or request.model,
            usage=reading.usage,
            service_tier=billed_tier(tier or request.service_tier),
            processing=request.processing,
            speed=request.speed,
            region=request.billed_region,
            role=role,
            prompt_tokens=reading.prompt_tokens,
            supplied_cost=supplied_cost(self.provider, wire, request.cost_unit, doubts) if wire else None,
        )

    def with_stated_bill(self, seen: Observation) -> Observation:
        """`seen`; where nobody can say what was used, with what whoever bills it states that it costs.

        A stated zero beside no tokens is none: hosts fill it in where they do not count.
        """
        wire = seen.raw_usage
        if "usage_unknown" not in seen.flags or not is_object(wire):
            return seen
        if any(group.supplied_cost or group.usage.quantities for group in seen.consumptions):
            return seen
        doubts: set[str] = set()
        reading = Reading(Usage())
        bill = self.consumption(reading, model=seen.response_model, wire=wire, tier=seen.service_tier, flags=doubts)
        if bill.supplied_cost is None or not (bill.supplied_cost.believed and bill.supplied_cost.amount):
            return seen
        return replace(seen, consumptions=(bill,), flags=seen.flags | doubts)


def _shared_out(reading: Reading, prompt: int, answer: int) -> tuple[int, int]:
    """A stated total in the shares of both estimates, neither of them below the part of it that is stated."""
    total, known = reading.total or 0, prompt + answer
    least, most = reading.usage.input_tokens, total - reading.usage.reasoning_output_tokens
    share = total * prompt // known if known else total
    prompt = max(min(share, most), least)
    return prompt - int(reading.usage["input"]), max(total - prompt, 0)


def _estimated(reading: Reading, unsaid: frozenset[str], *, prompt: int, answer: int) -> Reading:
    """`reading` with estimates of the `unsaid` sides in place of what they say."""
    quantities = dict(reading.usage.quantities)
    size = reading.prompt_tokens
    if "input" in unsaid:
        beside = int(quantities.get("input", 0))  # what tools put into the prompt
        cached = reading.usage.input_tokens - beside
        put(quantities, "input", max(prompt - cached, 0))
        size = max(prompt, cached) + beside
    if "output" in unsaid:
        for meter in OUTPUT_METERS:
            quantities.pop(meter, None)
        put(quantities, "output", max(answer, reading.usage.reasoning_output_tokens))
    usage = Usage(quantities, reading.usage.reasoning_output_tokens)
    return replace(reading, usage=usage, prompt_tokens=size, flags=reading.flags | _ESTIMATED, unsaid=frozenset())


def as_estimate(seen: Observation) -> Observation:
    """`seen`, of a stream whose end with its usage never came; where nothing stands in for it there is no estimate."""
    said = any(group.usage or group.supplied_cost for group in seen.consumptions)
    return replace(seen, flags=seen.flags | _ESTIMATED) if said else seen


def observation(
    reading: Reading,
    group: Consumption,
    body: JSON,
    wire: JSON | None,
    *,
    tier: str | None = None,
    deduplicate: bool = False,
) -> Observation:
    """The usual end: one charge group, named by the body it came with."""
    return Observation(
        consumptions=(group,),
        response_model=text(body, "model"),
        response_id=text(body, "id"),
        service_tier=tier,
        flags=reading.flags,
        raw_usage=wire,
        deduplicate=deduplicate,
    )


def unknown(
    body: JSON,
    wire: Any,
    *,
    model: str | None = None,
    flags: frozenset[str] = NO_FLAGS,
    deduplicate: bool = False,
) -> Observation:
    """The other end: something was used, and nobody can say what. It is unpriced, never zero.

    A polled body is only written down for its charge groups, so it gets an empty one.
    """
    group = Consumption(model=model or text(body, "model"), usage=Usage())
    return Observation(
        consumptions=(group,) if deduplicate else (),
        response_model=model or text(body, "model"),
        response_id=text(body, "id"),
        service_tier=text(body, "service_tier"),
        flags=flags | {"usage_unknown"},
        raw_usage=wire,
        deduplicate=deduplicate,
    )


def pending(body: JSON) -> Observation:
    """Work that has not ended: its bill comes with a later body of the same id, which this one must not shut out."""
    return Observation(
        response_model=text(body, "model"),
        response_id=text(body, "id"),
        flags=frozenset({"not_final"}),
        billable=False,
    )


def billed_to(seen: Observation, elsewhere: str | None) -> Observation:
    """`seen` as it is where somebody else's account is billed: with its usage, at no cost, flagged; None: as it is.

    See `tokenmeter.call.RequestFacts.billed_elsewhere`.
    """
    if elsewhere is None:
        return seen
    nothing = SuppliedCost(ZERO, elsewhere)
    groups = tuple(replace(group, supplied_cost=nothing) for group in seen.consumptions)
    return replace(seen, consumptions=groups, flags=seen.flags | {elsewhere})


def joined(observations: Iterable[Observation]) -> Observation:
    """Many observations as one, for a body that holds many bills."""
    parts = tuple(observations)
    first = parts[0] if parts else Observation(billable=False)
    if len(parts) < 2:  # noqa: PLR2004 - one is itself
        return first
    raw = [part.raw_usage for part in parts if part.raw_usage is not None]
    return Observation(
        consumptions=tuple(group for part in parts for group in part.consumptions if part.billable),
        response_model=first.response_model,
        response_id=first.response_id,
        service_tier=first.service_tier,
        flags=frozenset(flag for part in parts for flag in part.flags),
        raw_usage=raw or None,
        billable=any(part.billable for part in parts),
        deduplicate=all(part.deduplicate for part in parts),
        operation=first.operation,
        shared=tuple(bill for part in parts for bill in part.shared),
    )


def bounded(seen: Observation) -> Observation:
    """`seen` in no more than `_MOST_GROUPS` groups, flagged where names were shortened or groups put together.

    Of bills that stand apart there are no more either: the rest is one.
    """
    flags: set[str] = set()
    names = (seen.response_model, seen.response_id, seen.service_tier)
    if any(name is not None and len(name) >= LONGEST_NAME for name in names):
        flags.add("shortened")
    groups = seen.consumptions
    if len(groups) > _MOST_GROUPS:
        groups = _put_together(groups)
        flags.add("groups_put_together")
    shared = seen.shared
    if len(shared) > _MOST_GROUPS:
        rest = joined(shared[_MOST_GROUPS - 1 :])
        rest = replace(rest, consumptions=_put_together(rest.consumptions), bill_id=f"{seen.response_id}/others")
        shared = (*shared[: _MOST_GROUPS - 1], replace(rest, flags=rest.flags | {"groups_put_together"}))
        flags.add("groups_put_together")
    return replace(seen, consumptions=groups, flags=seen.flags | flags, shared=shared) if flags else seen


def _put_together(groups: Iterable[Consumption]) -> tuple[Consumption, ...]:
    """One group for each model and context; of the sum it is no longer known how long each prompt was."""
    sums: dict[tuple[str | None, ...], Consumption] = {}
    for group in groups:
        context = (group.service_tier, group.processing, group.speed, group.geo, group.region, group.role)
        key: tuple[str | None, ...] = (group.model, *context, group.endpoint)
        if key not in sums and len(sums) >= _MOST_GROUPS - 1:  # so many models there are not
            key, group = (), replace(group, model=None, role="message")  # noqa: PLW2901 - from here on it is that one
        before = sums.get(key)
        if before is None:
            sums[key] = replace(group, prompt_tokens=None)
        else:
            cost = _both(before.supplied_cost, group.supplied_cost)
            sums[key] = replace(before, usage=before.usage + group.usage, supplied_cost=cost)
    return tuple(sums.values())


def _both(one: SuppliedCost | None, other: SuppliedCost | None) -> SuppliedCost | None:
    """The cost of both, where both have one."""
    if one is None or other is None:
        return None
    return replace(one, amount=EXACT.add(one.amount, other.amount), believed=one.believed and other.believed)


#: Words for tiers that have another name on the bill: Anthropic's and Groq's standard, and OpenAI's ``fast``, which is
#: answered as ``priority``.
_TIER_NAMES = {"standard": "default", "standard_only": "default", "on_demand": "default", "fast": "priority"}
_FIELDS = frozenset({"cost", "cost_in_usd_ticks", "estimated_cost", "list_cost"})
#: What hosts call their bill; DeepInfra's is an estimate by its name only.
_COSTS = ("cost", "estimated_cost")
#: US dollars in the units a host may state its cost in; see `RequestFacts.cost_unit`.
_UNITS = {"usd": ONE, "cents": Decimal("0.01")}
#: x-ai counts in ticks of 10^-10 dollars (https://docs.x.ai/developers/cost-tracking).
_TICK = Decimal("1E-10")


def billed_tier(tier: str | None) -> str | None:
    """`tier` as it is billed; ``auto`` is a wish, not a tier."""
    return None if tier is None or tier == "auto" else _TIER_NAMES.get(tier, tier)


def supplied_cost(provider: str, usage: JSON, unit: str | None, flags: set[str]) -> SuppliedCost | None:
    """The cost that stands in `usage`, in US dollars; None when none does, or one that is no amount (flagged).

    Args:
        provider: Provider id.
        usage: The usage object.
        unit: What the user's settings say of the host's ``cost``; see `RequestFacts.cost_unit`.
        flags: Doubts are added here.
    """
    cost = None if _FIELDS.isdisjoint(usage) else _stated(provider, usage, unit, flags)
    if cost is not None and cost.amount > MOST_DOLLARS:
        flags.add("malformed_amount")
        return None
    return cost


def _stated(provider: str, usage: JSON, unit: str | None, flags: set[str]) -> SuppliedCost | None:
    # Managed agents state minor units as text: "2500" is $25.00. Both of these fields name their own unit.
    listed = section(usage, "list_cost")
    if listed.get("currency") == "USD" and (minor := amount(listed, "amount", flags=flags)) is not None:
        return SuppliedCost(EXACT.multiply(minor, _UNITS["cents"]), "usage.list_cost")
    if (ticks := amount(usage, "cost_in_usd_ticks", flags=flags)) is not None:
        return SuppliedCost(EXACT.multiply(ticks, _TICK), "usage.cost_in_usd_ticks")
    if unit == "ignore":
        return None
    return _cost(provider, usage, unit, flags)


def _cost(provider: str, usage: JSON, unit: str | None, flags: set[str]) -> SuppliedCost | None:
    """The field that many hosts have and each in its own unit: believed only where that unit is known."""
    stated = usage.get("cost")
    cost = amount(stated, "total_cost", flags=flags) if is_object(stated) else amount(usage, *_COSTS, flags=flags)
    believed = unit is not None or host_of(provider).bills_cost
    if cost is None or (not cost and not believed):
        return None
    if unit is not None:
        cost = EXACT.multiply(cost, _UNITS.get(unit) or Decimal(unit))
    elif usage.get("is_byok") is True:  # with a key of one's own the upstream's bill comes on top
        upstream = amount(section(usage, "cost_details"), "upstream_inference_cost", flags=flags)
        believed = believed and upstream is not None
        cost = EXACT.add(cost, upstream or ZERO)
    field = next((name for name in _COSTS if usage.get(name) is not None), "cost")
    return SuppliedCost(cost, f"usage.{field}", believed=believed)
