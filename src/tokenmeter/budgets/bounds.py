"""What a call can use at most, and what it will likely use, known before it leaves. Never touches the network.

The upper bound of a prompt is its UTF-8 bytes: no tokenizer in use makes more tokens than bytes. Pictures, and what is
put around a prompt, count at the most that the room of the model's family says, by the pictures' sizes where those are
sent; content that lies elsewhere (files, earlier turns, stored prompts, and pictures for models that make none smaller)
at the model's context window, which no single prompt can pass. The answer's bound is the caller's own cap, else the
model's maximum (its context window, where that is all that is known), per choice.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from typing import Any

from tokenmeter.budgets.tokens import TokenCounter, encoding_of
from tokenmeter.call import Call, PlainRequest, RequestFacts
from tokenmeter.dimensions import PROMPT_OPERATIONS, TEXT_OPERATIONS, kept_who
from tokenmeter.interrupts import let_interrupt_through
from tokenmeter.ledger import Entry
from tokenmeter.money import EXACT, ZERO, multiply, subtract, to_dollars
from tokenmeter.pricing import Ceiling, Pricer
from tokenmeter.pricing.price import Terms
from tokenmeter.providers.context import billed_to
from tokenmeter.providers.prompts import PromptRule, estimate
from tokenmeter.providers.registry import prompt_rule
from tokenmeter.usage import Observation
from tokenmeter.values import dataclass

log = logging.getLogger("tokenmeter")

#: Reasons (`RequestFacts.unbounded`) that the context window bounds after all: part of the prompt is not sent again.
_BOUNDED_BY_CONTEXT = frozenset({"conversation", "files", "stored_prompt"})
_BARE = PromptRule("").overhead
#: Expectations: memory, when it is enough, and a prompt's size (1.5 bytes a token at the least, 4.5 at the most).
_SAMPLE_SIZE = 256
_PAIRS = 1024
_ENOUGH = 20
_LIKELY_BYTES_PER_TOKEN = 2
_LIKELY_IMAGE_TOKENS = 2_000
#: Prices change on the minute at the earliest.
_MINUTE = 60_000_000
_WORDS = {
    "advisor": "an advisor model may answer as well",
    "background": "a background answer is billed after the call has returned",
    "compaction": "the provider may compact the conversation at extra cost",
    "fallbacks": "fallback models may be billed as well",
    "server_tools": "the provider runs tools in a loop of its own",
    "started": "what it starts is billed when its results are read",
    "thinking": "its output cap does not limit its thinking; set thinking_budget",
    "no_output_cap": "it names no output cap and the model's maximum is not known",
    "no_context_window": "part of its prompt lies elsewhere and the model's context window is not known",
    "unknown_price": "the model's price is not known",
    "unreadable": "its request cannot be looked into before it leaves",
    "operation": "what this endpoint bills is not known before the answer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What one call can use at most.

    Attributes:
        input_tokens: Upper bound of the prompt; None when there is none.
        output_tokens: Upper bound of all answers together; None when there is none.
        cost: Upper bound of the billed cost, US dollars; None when there is none.
        cost_at_dearest: The same at the dearest known price of the provider, for a model whose own price is not known;
            None for every other model, and where tokens have no bound.
        input_cost: The part of `cost` that does not depend on the answer's length.
        output_rate: US dollars per token of the answer; None when unknown.
        choices: How many answers there will be.
        max_output_tokens: The model's own maximum per answer; None when unknown.
        reasons: Why tokens or cost have no bound: keys of `RequestFacts.unbounded` and of this module.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: Decimal | None = None
    cost_at_dearest: Decimal | None = None
    input_cost: Decimal | None = None
    output_rate: Decimal | None = None
    choices: int = 1
    max_output_tokens: int | None = None
    reasons: tuple[str, ...] = ()

    @property
    def tokens(self) -> int | None:
        """Upper bound of input and output tokens together; None when there is none."""
        if self.input_tokens is None or self.output_tokens is None:
            return None
        return self.input_tokens + self.output_tokens

    def amount(self, unit: str) -> int | None:
        """The bound in a counter's integers (picodollars rounded up, tokens, requests); None when there is none."""
        if unit == "requests":
            return 1
        if unit == "tokens":
            return self.tokens
        return None if self.cost is None else picodollars(self.cost)

    def affordable_output_tokens(self, unit: str, room: int) -> int | None:
        """The longest answer (per choice) that fits into `room` of `unit`; None when that cannot be told."""
        if unit == "tokens" and self.input_tokens is not None:
            most = (room - self.input_tokens) // self.choices
        elif unit == "usd" and self.input_cost is not None and self.output_rate:
            left = subtract(to_dollars(room), self.input_cost)
            most = int(EXACT.divide_int(left, multiply(self.output_rate, self.choices))) if left > 0 else 0
        else:
            return None
        if self.max_output_tokens is not None:
            most = min(most, self.max_output_tokens)
        return max(most, 0)

    def explain(self) -> str:
        """Why there is no bound, in words."""
        told = ("started",) if "started" in self.reasons else self.reasons  # which says all that matters
        return " and ".join(_WORDS.get(reason, reason) for reason in told)


def picodollars(cost: Decimal) -> int:
    """`cost` in whole picodollars, rounded up."""
    return int(EXACT.scaleb(cost, 12).to_integral_value(rounding=ROUND_CEILING))


def bound(call: Call, ceiling: Ceiling | None, tokens: TokenCounter | None = None) -> Bound:
    """The upper bound of `call`.

    Args:
        call: The call.
        ceiling: The dearest rates that can apply to it and the model's limits; None for an unknown model.
        tokens: Counts the prompt's longer texts where a tokenizer is at hand; else their bytes bound them.
    """
    context, model = (ceiling.context_window, ceiling.model) if ceiling else (None, None)
    maximum = (ceiling.max_output_tokens or context) if ceiling else None
    pieces = _pieces(call, ceiling)
    rule = prompt_rule(call.provider, model or call.facts.model)
    images = rule.image_tokens(call.facts)
    text = _text_bound(call, model or call.facts.model, tokens) + (_BARE if call.facts.bare else rule.overhead)
    prompt = _prompt_bound(call.facts, text, images, context)
    answer = 0 if pieces is not None else _answer_bound(call, maximum)
    reasons = _reasons(call, context, answer, sold_by_piece=pieces is not None, unlimited=images is None)
    input_cost, output_rate = _rates(call, ceiling, prompt) if pieces is None else (pieces, ZERO)
    cost = None
    priced = ceiling is not None and input_cost is not None and output_rate is not None
    if priced and not reasons and answer is not None:
        cost = EXACT.add(input_cost or ZERO, EXACT.multiply(output_rate or ZERO, answer))
    known = priced and ceiling is not None and ceiling.known
    if not known:
        reasons.add("unknown_price")
    made = Bound(
        input_tokens=prompt if reasons <= {"no_output_cap", "unknown_price"} else None,
        output_tokens=answer if reasons <= {"unknown_price"} else None,
        cost=cost if known else None,
        cost_at_dearest=None if known else cost,
        input_cost=input_cost,
        output_rate=output_rate,
        choices=call.facts.choices,
        max_output_tokens=maximum,
        reasons=tuple(sorted(reasons)),
    )
    if call.facts.billed_elsewhere is None:
        return made
    return replace(made, cost=ZERO, cost_at_dearest=None, input_cost=ZERO, output_rate=ZERO)


def _pieces(call: Call, ceiling: Ceiling | None) -> Decimal | None:
    """The cost of what is sold by the piece and counted in the request."""
    lines = ceiling.of_pieces(call.facts.pieces) if ceiling is not None else None
    if lines is None:
        return None
    cost = ZERO
    for _, quantity, rate in lines:
        cost = EXACT.add(cost, EXACT.multiply(rate, quantity))
    return cost


def _rates(call: Call, ceiling: Ceiling | None, prompt: int) -> tuple[Decimal | None, Decimal | None]:
    """The prompt's cost and the answer's rate."""
    if ceiling is None or ceiling.input is None:
        return None, None
    fixed = EXACT.add(EXACT.multiply(ceiling.input, prompt), ceiling.request or ZERO)
    if ceiling.audio_second is not None and "files" in (call.facts.unbounded or ""):
        # What is heard has a price of its own, by the second, each of which is a token at the least.
        fixed = EXACT.add(fixed, EXACT.multiply(ceiling.audio_second, prompt))
    return fixed, ZERO if call.operation in PROMPT_OPERATIONS else ceiling.output


def _reasons(call: Call, context: int | None, answer: int | None, *, sold_by_piece: bool, unlimited: bool) -> set[str]:
    named = call.facts.unbounded
    reasons = set(named.split(",")) if named else set[str]()
    if reasons & _BOUNDED_BY_CONTEXT or unlimited:
        reasons -= _BOUNDED_BY_CONTEXT
        if context is None:
            reasons.add("no_context_window")
    textual = call.operation in TEXT_OPERATIONS or call.operation in PROMPT_OPERATIONS
    if not textual and not sold_by_piece and "started" not in reasons:
        reasons.add("operation")
    elif answer is None:
        reasons.add("no_output_cap")
    return reasons


def _text_bound(call: Call, model: str | None, counter: TokenCounter | None) -> int:
    facts = call.facts
    encoding = encoding_of(call.provider, model) if facts.long_texts and counter is not None else None
    return facts.input_bytes if encoding is None or counter is None else _counted(facts, encoding, counter)


def _prompt_bound(facts: RequestFacts, text: int, images: int | None, context: int | None) -> int:
    tokens = text + (images or 0)
    elsewhere = facts.unbounded and not _BOUNDED_BY_CONTEXT.isdisjoint(facts.unbounded.split(","))
    return max(tokens, context) if context is not None and (elsewhere or images is None) else tokens


def longest_prompt(provider: str, facts: RequestFacts | PlainRequest, terms: Terms) -> int | None:
    """The prompt's bound by its bytes alone; None where part of it lies elsewhere or may fill the context window.

    Args:
        provider: Who is asked.
        facts: Of the request.
        terms: Say which model its name stands for.
    """
    if facts.unbounded and not _BOUNDED_BY_CONTEXT.isdisjoint(facts.unbounded.split(",")):
        return None
    model = facts.model
    if model and terms.model_maps:
        model = terms.model(provider, model)
    rule = prompt_rule(provider, model)
    images = rule.image_tokens(facts) if facts.image_count else 0
    return None if images is None else facts.input_bytes + (_BARE if facts.bare else rule.overhead) + images


def _counted(facts: RequestFacts | PlainRequest, encoding: str, counter: TokenCounter) -> int:
    """The prompt's bytes; of its longer texts the tokens, where they can be counted."""
    counted = counter.count(encoding, facts.long_texts)
    if counted is None:
        return facts.input_bytes
    counted_bytes = sum(
        len(text) if text.isascii() else len(text.encode(errors="replace")) for text in facts.long_texts
    )
    return max(facts.input_bytes - counted_bytes, 0) + counted


def _answer_bound(call: Call, maximum: int | None) -> int | None:
    if call.operation in PROMPT_OPERATIONS:
        return 0
    each = call.facts.max_output_tokens
    if each is None:
        each = maximum
    return None if each is None else max(each, 0) * call.facts.choices


class Sizes:
    """What calls of one kind may use at most, in integers: `bound` for any length of prompt and answer.

    Nothing is decided here: `of` takes a ceiling's rates, exactly, and only for calls whose bound is a matter of their
    prompt's bytes and pictures and of their answers' number and length.

    Args:
        call: One of them.
        ceiling: The dearest rates that can apply to it.
        at_us: When it leaves, in microseconds since the epoch.
        tiers: `Ceilings.tiers` at that moment.

    Attributes:
        tiers: As given.
        until_us: First instant at which other rates may apply.
    """

    __slots__ = ("_encoding", "_fixed", "_input", "_maximum", "_output", "_scale", "_silent", "tiers", "until_us")

    def __init__(self, call: Call, ceiling: Ceiling, at_us: int, tiers: int) -> None:
        self.tiers = tiers
        self.until_us = (at_us // _MINUTE + 1) * _MINUTE
        self._encoding = encoding_of(call.provider, ceiling.model or call.facts.model)
        self._silent = call.operation in PROMPT_OPERATIONS
        self._maximum = ceiling.max_output_tokens or ceiling.context_window
        output = ZERO if self._silent else ceiling.output
        rates = (ceiling.input or ZERO, output or ZERO, ceiling.request or ZERO)
        finest = max(0, *(-int(rate.as_tuple().exponent) - 12 for rate in rates))
        self._scale = 10**finest
        self._input, self._output, self._fixed = (int(EXACT.scaleb(rate, 12 + finest)) for rate in rates)

    @classmethod
    def of(cls, call: Call, ceiling: Ceiling | None, *, at_us: int, tiers: int) -> Sizes | None:
        """The sizes of calls like `call`; None where they are not a matter of lengths alone."""
        if ceiling is None or not ceiling.known or ceiling.input is None or call.facts.unbounded:
            return None
        silent = call.operation in PROMPT_OPERATIONS
        if not (silent or (call.operation in TEXT_OPERATIONS and ceiling.output is not None)):
            return None
        return None if _pieces(call, ceiling) is not None else cls(call, ceiling, at_us, tiers)

    def amounts(
        self, facts: RequestFacts | PlainRequest, longest: int, tokens: TokenCounter | None
    ) -> tuple[int, int, int] | None:
        """What a call may use: picodollars, rounded up, tokens, and one call; None where no answer's length is known.

        Args:
            facts: Of its request.
            longest: Its `longest_prompt`.
            tokens: Counts the prompt's longer texts where a tokenizer is at hand.
        """
        prompt = longest
        if facts.long_texts and self._encoding is not None and tokens is not None and tokens.may_have(self._encoding):
            prompt += _counted(facts, self._encoding, tokens) - facts.input_bytes
        answer = 0
        if not self._silent:
            each = facts.max_output_tokens
            if each is None:
                each = self._maximum
            if each is None:
                return None
            answer = max(each, 0) * facts.choices
        cost = self._input * prompt + self._output * answer + self._fixed
        return -(-cost // self._scale), prompt + answer, 1


_MOST_CEILINGS = 4_096
_STANDARD = frozenset({"default", "standard", "auto"})
#: A ceiling's rates: every field that is an amount of money.
_RATES = tuple(item.name for item in fields(Ceiling) if "Decimal" in str(item.type))


class Ceilings:
    """Remembers a `Pricer`'s ceilings within one minute: prices change on the minute at the earliest.

    Attributes:
        tiers: How many models were met in a tier that was not asked for; what was asked before one was is out of date.
    """

    def __init__(self) -> None:
        self.tiers = 0
        self._known: dict[tuple[object, ...], Ceiling | None] = {}
        self._served: dict[tuple[str, str | None, str | None], frozenset[str]] = {}

    def learn(self, entry: Entry, asked: str | None = None) -> None:
        """Remember that calls of a model which ask for one tier are served in another: both are held from now on.

        Args:
            entry: What was recorded.
            asked: The tier that its request named.
        """
        tier = entry.service_tier
        if tier is None or tier == asked or (tier in _STANDARD and (asked is None or asked in _STANDARD)):
            return
        key = (entry.provider, entry.request_model, asked)
        known = self._served.get(key, frozenset())
        if tier not in known and len(self._served) < _MOST_CEILINGS:
            self._served[key] = known | {tier}
            self.tiers += 1

    def of(self, call: Call, at: datetime, pricer: Pricer, *, prompt_tokens: int | None = None) -> Ceiling | None:
        """The dearest rates `call` could be billed at; those of other models, marked so, for an unknown model.

        None when the price list cannot answer: the call then has no bound, and each budget says what that means.

        Args:
            call: The call.
            at: When it leaves.
            pricer: Prices and terms.
            prompt_tokens: Upper bound of its prompt; None = it may be of any length.
        """
        facts = call.facts
        served = self._served.get((call.provider, facts.model, facts.service_tier), frozenset())
        reach = None if prompt_tokens is None else 1 << prompt_tokens.bit_length()
        # Of whom it is, what multipliers can be about: end users and tags are always new.
        who = (call.api_key, *kept_who(call.attribution)) if pricer.terms.multipliers else None
        key = (
            call.provider,
            call.endpoint,
            facts.model,
            facts.service_tier,
            facts.processing,
            facts.speed,
            facts.region,
            facts.cache_writes,
            who,
            served,
            reach,
            at.replace(second=0, microsecond=0),
        )
        try:
            return self._known[key]
        except KeyError:
            pass
        try:
            found = _look_up(call, at, pricer, served, reach)
        except Exception as error:
            let_interrupt_through(error)
            log.exception("tokenmeter could not look up the dearest price of %r", facts.model)
            return None
        if len(self._known) >= _MOST_CEILINGS:
            self._known.clear()
        self._known[key] = found
        return found


def _look_up(call: Call, at: datetime, pricer: Pricer, served: frozenset[str], prompt_tokens: int | None) -> Ceiling:
    found = [
        ceiling
        for tier in (call.facts.service_tier, *sorted(served))
        if (
            ceiling := pricer.ceiling(
                provider=call.provider,
                endpoint=call.endpoint,
                facts=replace(call.facts, service_tier=tier),
                at=at,
                api_key=call.api_key,
                attribution=call.attribution,
                prompt_tokens=prompt_tokens,
            )
        )
        is not None
    ]
    ceiling = (
        _dearest(found)
        if found
        else pricer.dearest_known(provider=call.provider, at=at, api_key=call.api_key, attribution=call.attribution)
    )
    name = call.facts.model
    return replace(ceiling, model=pricer.terms.model(call.provider, name)) if name else ceiling


def _dearest(ceilings: Sequence[Ceiling]) -> Ceiling:
    """The dearest rate of each kind among `ceilings` of one model."""
    first, *others = ceilings
    if not others:
        return first
    rates: dict[str, Any] = {}
    for name in _RATES:
        known = [rate for ceiling in ceilings if (rate := getattr(ceiling, name)) is not None]
        if known:
            rates[name] = max(known)
    return replace(first, **rates)


def input_estimate(call: Call) -> Observation:
    """What a call that nobody heard of again has probably used: its prompt. For holds that expire."""
    elsewhere = call.facts.billed_elsewhere
    consumption = estimate(call.facts, model=None, received=0)
    # Of one that is billed to somebody else nothing is kept, since it would be rated as one's own.
    groups = (consumption,) if consumption.usage and elsewhere is None else ()
    return billed_to(Observation(consumptions=groups, flags=frozenset({"estimated"})), elsewhere)


#: What one call used: tokens of its answer, picodollars and milliseconds, where they are known.
_Used = tuple[int, int | None, int | None]


class Expectations:
    """What recent calls of each route and model used, in this process: the basis of ``expected`` holds.

    Remembers the last 256 calls of the 1,024 most recently used pairs of route and model.
    """

    def __init__(self) -> None:
        self._samples: OrderedDict[tuple[str | None, str | None], deque[_Used]] = OrderedDict()

    def learn(self, entry: Entry) -> None:
        """Take in one settled call."""
        if not entry.requests or entry.status != "ok":
            return
        priced = entry.billed_cost is not None and entry.cost_source != "unpriced"
        self.learn_amounts(
            entry.attribution.route,
            entry.request_model,
            output=entry.usage.output_tokens,
            cost=picodollars(entry.billed_cost) if priced and entry.billed_cost is not None else None,
            latency_us=entry.latency_us,
        )

    def learn_amounts(
        self, route: str | None, model: str | None, *, output: int, cost: int | None, latency_us: int | None
    ) -> None:
        """Take in what one settled call used: tokens, picodollars and microseconds."""
        samples, key = self._samples, (route, model)
        sample = samples.get(key)
        if sample is None:
            sample = samples.setdefault(key, deque(maxlen=_SAMPLE_SIZE))
            if len(samples) > _PAIRS:
                samples.popitem(last=False)
        else:
            try:  # noqa: SIM105 - every call comes here, and `suppress` is three more
                samples.move_to_end(key)
            except KeyError:  # another thread has just forgotten it
                pass
        sample.append((output, cost, None if latency_us is None else latency_us // 1000))

    def amount(self, call: Call, upper: Bound, unit: str) -> int | None:
        """What `call` will likely use of `unit`: its prompt and the 99th percentile of the answers seen.

        Never more than `upper`. None as long as fewer than 20 calls were seen.
        """
        seen = list(self._samples.get((call.attribution.route, call.facts.model), ()))  # in one go: others add to it
        if len(seen) < _ENOUGH:
            return None
        output, cost = (_percentile([one[place] for one in seen], 99) for place in (0, 1))
        prompt = -(-call.facts.input_bytes // _LIKELY_BYTES_PER_TOKEN) + call.facts.image_count * _LIKELY_IMAGE_TOKENS
        likely: int | None = prompt + output * call.facts.choices if output is not None else None
        if unit == "usd":
            likely = cost
        most = upper.amount(unit)
        return most if likely is None else likely if most is None else min(likely, most)

    def wait(self, call: Call) -> Decimal:
        """Seconds after which half of such calls have ended; 1 as long as none was seen."""
        seen = list(self._samples.get((call.attribution.route, call.facts.model), ()))
        middle = _percentile([one[2] for one in seen], 50)
        return Decimal(1) if middle is None else EXACT.scaleb(max(Decimal(middle), Decimal(50)), -3)


def _percentile(values: Iterable[int | None], percent: int) -> int | None:
    """The nearest-rank percentile of what is known; None of nothing."""
    ordered = sorted(value for value in values if value is not None)
    return ordered[-(-len(ordered) * percent // 100) - 1] if ordered else None
