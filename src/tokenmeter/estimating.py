"""What a call would cost, before it is made: the likely cost, and the most it can be as budgets hold it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

from tokenmeter.attribution import Attribution, current_attribution
from tokenmeter.budgets.bounds import Bound, Ceilings, bound, longest_prompt
from tokenmeter.budgets.tokens import TokenCounter, encoding_of
from tokenmeter.call import Call
from tokenmeter.dimensions import TEXT_OPERATIONS
from tokenmeter.display import dollars, facts_html
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import CHARGE_COLUMNS, Charge, charge_cells, utcnow
from tokenmeter.money import ZERO, multiply
from tokenmeter.periods import parse_instant
from tokenmeter.pricing import Ceiling, Price, Pricer, Rating
from tokenmeter.pricing.price import KNOWN_MODES
from tokenmeter.providers import dialect_for
from tokenmeter.providers.context import billed_to
from tokenmeter.providers.hosts import names
from tokenmeter.providers.prompts import TOKENS_PER_IMAGE, tokens_of
from tokenmeter.providers.registry import FORMATS, dialect
from tokenmeter.usage import Consumption, Observation, Quantity, Usage
from tokenmeter.values import dataclass

#: Tokens of an answer of which nothing is known. It is a convention, so whatever rests on it is flagged.
ASSUMED_ANSWER = 500

#: More tokens than any call has: their cost would be no amount that a ledger takes.
_MOST_TOKENS = 10**12
_counter = TokenCounter()
#: What names of regions are made of: a cloud's end in a number (``us-east-1``, ``europe-west4``), zones are one word.
_REGION = re.compile(r"[a-z]{2,20}\d?|[a-z]+(-[a-z]+)+-?\d{1,2}")
_DIRECTIONS = re.compile(r"(north|south)?(east|west)?|central|gov|isof?|isob")
#: Fields that decide what a call costs, and the arguments here: a name almost like one of these is a slip.
_FIELDS = frozenset(
    {
        "provider",
        "endpoint",
        "max_output_tokens",
        "expected_output_tokens",
        "input_tokens",
        "processing",
        "region",
        "at",
        "attribution",
        "request",
        "messages",
        "input",
        "inputs",
        "system",
        "instructions",
        "prompt",
        "tools",
        "service_tier",
        "contents",
        "config",
        "generationConfig",
        "instances",
        "parameters",
        "reasoning",
        "reasoning_effort",
        "response_format",
    }
)


class UpperLine(NamedTuple):
    """One line of an upper bound.

    Attributes:
        sku_meter: What would be used.
        quantity: How much at most.
        unit_price: The dearest billed rate that could apply, US dollars per unit.
        cost: Their product.
    """

    sku_meter: str
    quantity: int
    unit_price: Decimal
    cost: Decimal


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Estimate:
    """What a call would cost.

    Attributes:
        provider: Provider id.
        endpoint: SDK method path.
        model: Model that would be asked.
        expected: The likely cost at the prices of the day: lines, sums, ``cost_source`` (``unpriced`` for an unknown
            model, and where only the answer says what is billed), and flags: ``answer_assumed`` where nobody said how
            long the answer may be.
        bound: What budgets would hold.
        meant: A listed model of nearly that name, where this one has no price.
        upper_lines: The lines of the upper bound; empty when there is none.
        tokenizer: What counted the prompt: an encoding of tiktoken that lies on this machine, else ``bytes``.
    """

    provider: str
    endpoint: str
    model: str | None
    expected: Rating
    bound: Bound
    upper_lines: tuple[UpperLine, ...] = ()
    tokenizer: str = "bytes"
    meant: str | None = None

    @property
    def expected_cost(self) -> Decimal | None:
        """The likely billed cost, US dollars; None when the model has no price, or only the answer says the usage."""
        return self.expected.billed_cost

    @property
    def upper_bound(self) -> Decimal | None:
        """US dollars that the call cannot cost more than; None when it has no bound (see `why_unbounded`)."""
        return self.bound.cost

    @property
    def why_unbounded(self) -> str:
        """Why there is no upper bound, in words; empty when there is one."""
        if self.bound.cost is not None:
            return ""
        return self.bound.explain() + (f" (did you mean {self.meant}?)" if self.meant else "")

    @property
    def lines(self) -> tuple[Charge, ...]:
        """The lines of the likely cost."""
        return self.expected.charges

    def to_dict(self) -> dict[str, Any]:
        """The estimate as JSON-ready values; amounts are text."""
        return {
            "provider": self.provider,
            "endpoint": self.endpoint,
            "model": self.model,
            "expected_cost": _text(self.expected_cost),
            "expected": {line.sku_meter: str(line.quantity) for line in self.lines},
            "flags": sorted(self.expected.flags),
            "upper_bound": _text(self.upper_bound),
            "upper": {line.sku_meter: str(line.quantity) for line in self.upper_lines},
            "why_unbounded": self.why_unbounded or None,
            "tokenizer": self.tokenizer,
        }

    def __repr__(self) -> str:
        flags = f"; {', '.join(sorted(self.expected.flags))}" if self.expected.flags else ""
        return f"<Estimate {self}{flags}>"

    def _repr_html_(self) -> str:
        facts = {
            "provider": self.provider,
            "endpoint": self.endpoint,
            "likely": dollars(self.expected_cost),
            "at most": self.why_unbounded or dollars(self.upper_bound),
            "flags": ", ".join(sorted(self.expected.flags)),
            "prompt counted by": self.tokenizer,
        }
        return facts_html(
            f"Estimate: {self.model}", facts, columns=CHARGE_COLUMNS, rows=charge_cells(self.expected.charges)
        )

    def __str__(self) -> str:
        likely = dollars(self.expected_cost)
        most = f"no bound: {self.why_unbounded}" if self.upper_bound is None else f"at most {dollars(self.upper_bound)}"
        return f"{self.model}: likely {likely}, {most}"


class _Quoting(Protocol):
    @property
    def pricer(self) -> Pricer: ...


def estimate(
    priced: _Quoting,
    /,
    model: str | None = None,
    *,
    provider: str | None = None,
    endpoint: str | None = None,
    max_output_tokens: int | None = None,
    expected_output_tokens: int | None = None,
    input_tokens: int | None = None,
    processing: str | None = None,
    region: str | None = None,
    at: datetime | date | str | None = None,
    attribution: Attribution | Mapping[str, Any] | None = None,
    request: Mapping[str, Any] | None = None,
    **body: Any,
) -> Estimate:
    """What a call would cost, before it is made: the likely cost and the most it can be. No network, no ledger.

    Args:
        priced: Prices and terms.
        model: Model to be asked, as the call would name it.
        provider: Who would bill it; default: by the model's name, else ``openai``.
        endpoint: SDK method path whose format the request has, or a URL path of another; default: ``messages`` at
            Anthropic, ``responses`` where an ``input`` is given, else ``chat.completions``.
        max_output_tokens: The answer's limit, whatever the endpoint calls it.
        expected_output_tokens: How long the answer will likely be; default: the limit, but 500 at most.
        input_tokens: The prompt's size, where it is known; else it is counted or guessed from the request.
        processing: ``"batch"`` for a batch.
        region: Cloud region or data zone, where it decides the price.
        at: The day whose prices count; default: now.
        attribution: On whose account: platform multipliers and discounts may depend on it.
        request: A whole request body, instead of or under the other arguments.
        **body: Fields of the request: ``messages=``, ``input=``, ``system=``, ``tools=``, ``service_tier=``, ...; for
            Gemini what its SDK takes: ``contents=``, ``config=``.

    Returns:
        The estimate.

    Raises:
        ConfigurationError: no model is named, a number of tokens is none, more is expected than is allowed, or the name
            or value of an argument is misspelt.

    Examples:
        >>> told = tokenmeter.estimate("gpt-5", messages=[{"role": "user", "content": "Hi"}], max_output_tokens=100)
        >>> told.expected_cost <= told.upper_bound
        True
    """
    sizes = {
        "max_output_tokens": max_output_tokens,
        "expected_output_tokens": expected_output_tokens,
        "input_tokens": input_tokens,
    }
    _refuse_odd_sizes(sizes)
    _refuse_slips(processing, body)
    whole = {**(request or {}), **body}
    named = model or whole.get("model")
    if not isinstance(named, str) or not named:
        raise ConfigurationError("Which model? Give its name first: tokenmeter.estimate('gpt-5', messages=[...]).")
    who = provider or provider_of(named)
    path = endpoint or dialect(who if who in FORMATS else FORMATS[0]).usual_endpoint({**whole, "model": named})
    call = _call(who, path, {**whole, "model": named}, attribution)
    said = {"service_tier": call.facts.service_tier, "speed": whole.get("speed"), "region": region}
    _refuse_unknown(priced.pricer.price_list.own_rows, who, path, said)
    call = _sized(call, sizes, processing=processing, region=region)
    moment = utcnow() if at is None else parse_instant(at)
    return _quote(
        priced.pricer,
        call,
        named,
        moment,
        input_tokens=input_tokens,
        expected_output_tokens=expected_output_tokens,
    )


def _quote(
    pricer: Pricer,
    call: Call,
    model: str,
    at: datetime,
    *,
    input_tokens: int | None,
    expected_output_tokens: int | None,
) -> Estimate:
    """The likely cost and the most it can be, of a call to a model of that name."""
    terms = pricer.terms
    name = terms.model(call.provider, model)
    tokenizer, prompt = _count(call, name) if input_tokens is None else ("given", input_tokens)
    longest = longest_prompt(call.provider, call.facts, terms)
    ceiling = Ceilings().of(call, at, pricer, prompt_tokens=longest)
    most = bound(call, ceiling, _counter)
    usage, assumed = _likely(call, ceiling, prompt, expected_output_tokens)
    foreseen = expected_output_tokens is not None or "operation" not in most.reasons
    rating = pricer.rate(
        billed_to(
            Observation(consumptions=(_group(call, usage, prompt),), flags=frozenset({"estimated"})),
            call.facts.billed_elsewhere,
        )
        if foreseen and (input_tokens is not None or any(usage.values()))
        else Observation(flags=frozenset({"usage_unknown"})),
        provider=call.provider,
        endpoint=call.endpoint,
        at=at,
        attribution=call.attribution,
    )
    return Estimate(
        provider=call.provider,
        endpoint=call.endpoint,
        model=model,
        expected=replace(rating, flags=rating.flags | ({"answer_assumed"} if assumed else set())),
        bound=most,
        upper_lines=_upper_lines(call, most, ceiling),
        tokenizer=tokenizer,
        meant=pricer.price_list.nearest(call.provider, name) if pricer.find(call.provider, name) is None else None,
    )


def _refuse_odd_sizes(sizes: Mapping[str, int | None]) -> None:
    for name, tokens in sizes.items():
        if tokens is not None and (type(tokens) is not int or not 0 <= tokens <= _MOST_TOKENS):
            raise ConfigurationError(f"{name} must be a number of tokens, not {tokens!r}.")


def _refuse_slips(processing: str | None, body: Mapping[str, Any]) -> None:
    """A slip would be estimated as something else: a field of another name, a way of processing without a price."""
    if processing not in {None, "batch"}:
        raise ConfigurationError(f"processing is 'batch' or left out, not {processing!r}.")
    for name in body:
        meant = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.85)
        if meant and name not in _FIELDS:
            raise ConfigurationError(
                f"What is {name!r}? Did you mean {meant[0]!r}? (Put a field of that very name into request={{...}}.)"
            )


def _refuse_unknown(rows: Sequence[Price], provider: str, endpoint: str, said: Mapping[str, Any]) -> None:
    """A word that nobody has a price for would be estimated as if it were not there, or as unpriced."""
    for name, words in KNOWN_MODES.items():
        word = said.get(name)
        known = words | {own for row in rows if (own := getattr(row.conditions, name))}
        if word and (not isinstance(word, str) or word.lower().removeprefix("service_tier_") not in known):
            raise ConfigurationError(f"{name} is one of {', '.join(sorted(known))}, not {word!r}.")
    if (region := said["region"]) and region not in {row.conditions.region for row in rows} and not _is_region(region):
        raise ConfigurationError(
            f"region is a cloud's, such as us-east-1 or europe-west4, or a data zone, such as us or eu, not {region!r}."
        )
    known = frozenset({*names(), *(row.provider for row in rows)})
    meant = difflib.get_close_matches(provider.lower(), known, n=1, cutoff=0.8)
    if meant and provider.lower() not in known:
        raise ConfigurationError(f"Who is {provider!r}? Did you mean {meant[0]!r}?")
    if endpoint.startswith("/") or dialect_for(provider, endpoint).named(endpoint).kind != "unknown":
        return
    paths = sorted({path for name in FORMATS for path in dialect(name).billed()})
    like = difflib.get_close_matches(endpoint, paths, n=3) or paths
    raise ConfigurationError(f"endpoint is a method of an SDK, such as {', '.join(like)}, not {endpoint!r}.")


def _is_region(name: str) -> bool:
    parts = name.lower().split("-")
    return bool(_REGION.fullmatch(name.lower())) and all(
        _DIRECTIONS.fullmatch(part.rstrip("0123456789")) for part in parts[1:]
    )


def _sized(call: Call, sizes: Mapping[str, int | None], *, processing: str | None, region: str | None) -> Call:
    """The call with what the caller says of its size, in place of what its request says."""
    facts, given, most = call.facts, sizes["input_tokens"], sizes["max_output_tokens"]
    facts = replace(
        facts,
        input_bytes=facts.input_bytes if given is None else given,
        long_texts=facts.long_texts if given is None else (),
        max_output_tokens=facts.max_output_tokens if most is None else most,
        processing=processing or facts.processing,
        region=region,
    )
    expected = sizes["expected_output_tokens"] or 0
    if facts.max_output_tokens is not None and expected > facts.max_output_tokens:
        raise ConfigurationError(
            f"expected_output_tokens is {expected}, and the request allows {facts.max_output_tokens} at most: expect "
            "less, or allow more."
        )
    return replace(call, facts=facts)


def provider_of(model: str) -> str:
    """Who would be asked for a model of this name, where nobody says."""
    return next((name for name in FORMATS if model.startswith(dialect(name).models)), FORMATS[0])


def _call(
    provider: str, endpoint: str, body: Mapping[str, Any], attribution: Attribution | Mapping[str, Any] | None
) -> Call:
    room = dialect_for(provider, endpoint)
    found = room.named(endpoint)
    around = current_attribution()
    return Call(
        provider=provider,
        endpoint=found.path,
        operation=found.operation,
        facts=room.request_facts(found, room.as_sent(body)),
        attribution=Attribution.of(attribution).over(around),
    )


def _count(call: Call, model: str) -> tuple[str, int]:
    """What counts the prompt, and its tokens: exact for texts where a tokenizer is at hand, else by their bytes."""
    facts = call.facts
    pictures = facts.image_count * TOKENS_PER_IMAGE
    encoding = encoding_of(call.provider, model)
    if encoding is not None and facts.long_texts and _counter.load(encoding):
        counted = _counter.count(encoding, facts.long_texts)
        if counted is not None:
            rest = facts.input_bytes - sum(len(text.encode(errors="replace")) for text in facts.long_texts)
            return encoding, counted + tokens_of(max(rest, 0)) + pictures
    return "bytes", tokens_of(facts.input_bytes) + pictures


def _likely(
    call: Call, ceiling: Ceiling | None, prompt: int, expected_output_tokens: int | None
) -> tuple[dict[str, Quantity], bool]:
    """What the call will likely use, and whether the answer's length is a mere assumption."""
    facts = call.facts
    if ceiling is not None and ceiling.of_pieces(facts.pieces) is not None:
        return dict(facts.pieces), False
    usage: dict[str, Quantity] = {"input": prompt}
    if call.operation not in TEXT_OPERATIONS and expected_output_tokens is None:
        return usage, False
    if expected_output_tokens is not None:
        return {**usage, "output": expected_output_tokens * facts.choices}, False
    limit = facts.max_output_tokens
    each = ASSUMED_ANSWER if limit is None else min(limit, ASSUMED_ANSWER)
    return {**usage, "output": each * facts.choices}, limit is None or limit > ASSUMED_ANSWER


def _group(call: Call, usage: Mapping[str, Quantity], prompt: int) -> Consumption:
    facts = call.facts
    return Consumption(
        model=facts.model,
        usage=Usage({meter: quantity for meter, quantity in usage.items() if quantity}),
        service_tier=facts.service_tier,
        processing=facts.processing,
        speed=facts.speed,
        region=facts.region,
        prompt_tokens=prompt,
    )


def _upper_lines(call: Call, most: Bound, ceiling: Ceiling | None) -> tuple[UpperLine, ...]:
    """The bound's own figures as lines; they add up to it."""
    if not most.cost or ceiling is None:
        return ()
    lines: Sequence[tuple[str, int | None, Decimal | None]] = ceiling.of_pieces(call.facts.pieces) or (
        ("input", most.input_tokens, ceiling.input),
        ("output", most.output_tokens, most.output_rate),
        ("requests", 1, ceiling.request),
    )
    return tuple(
        UpperLine(meter, quantity, rate, multiply(rate, quantity))
        for meter, quantity, rate in lines
        if quantity and rate is not None and rate != ZERO
    )


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else f"{amount:f}"
