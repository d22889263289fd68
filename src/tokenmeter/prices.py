"""The price list, to look at: what is in force for a model, and where it differs from the bundled catalog.

Nothing here goes to the network, except `update`, and only when it is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tokenmeter.attribution import Attribution, current_attribution
from tokenmeter.budgets.bounds import Bound, Ceilings, bound, longest_prompt
from tokenmeter.budgets.tokens import TokenCounter, encoding_of
from tokenmeter.call import Call
from tokenmeter.dimensions import TEXT_OPERATIONS
from tokenmeter.errors import ConfigurationError, UnknownModelError
from tokenmeter.ledger import Charge, utcnow
from tokenmeter.money import ZERO, multiply
from tokenmeter.paths import expand
from tokenmeter.periods import parse_instant
from tokenmeter.pricing import Ceiling, Price, PriceList, Pricer, Rating, updating
from tokenmeter.providers import dialect_for
from tokenmeter.providers.prompts import TOKENS_PER_IMAGE, tokens_of
from tokenmeter.providers.registry import FORMATS, dialect
from tokenmeter.usage import Consumption, Observation, Quantity, Usage


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
    listed = (price_list or PriceList.load()).find(provider, model)
    if listed is None:
        raise UnknownModelError(
            f"No price names {model!r} at {provider!r}. Write the id as the provider does, or add [[prices]] for it."
        )
    moment = utcnow() if at is None else parse_instant(at)
    rows: dict[tuple[object, ...], Price] = {}
    for row in listed.card.rows:
        if row.holds(moment):
            key = (row.sku_meter, row.conditions)
            rows[key] = max(rows.get(key, row), row, key=_layer)
    return sorted(rows.values(), key=_order)


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
    for row in rows:
        if not row.holds(at):
            continue
        listed = price_list.find(row.provider, row.model)
        base = [
            multiply(other.per_unit, row.per)
            for other in (listed.card.rows if listed else ())
            if other.origin == "genai-prices"
            and other.holds(at)
            and (other.sku_meter, other.conditions) == (row.sku_meter, row.conditions)
        ]
        if not base or base[-1] != row.unit_price:
            yield Difference(price=row, catalog_unit_price=base[-1] if base else None)


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
            list shrank, a price is impossible. What was kept before stays.
    """
    edition = updating.fetch(url)
    path = updating.kept_path() if save is None else expand(save)
    updating.check(edition, updating.newest(path))
    updating.keep(edition, path)
    return PriceList.load(user_rows, user_file, newest=edition)


def _layer(row: Price) -> tuple[int, int]:
    strength = {"user": 3, "project": 2, "tokenmeter": 1, "genai-prices": 0}
    return strength[row.origin], row.rank


def _order(row: Price) -> tuple[int, str, str]:
    conditions = row.conditions.described()
    return len(conditions), str(sorted(conditions.items())), row.sku_meter


#: Tokens of an answer of which nothing is known. It is a convention, so whatever rests on it is flagged.
ASSUMED_ANSWER = 500

#: More tokens than any call has: their cost would be no amount that a ledger takes.
_MOST_TOKENS = 10**12
_counter = TokenCounter()


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


@dataclass(frozen=True, slots=True, kw_only=True)
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
        return self.bound.explain() if self.bound.cost is None else ""

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

    def __str__(self) -> str:
        likely = "unpriced" if self.expected_cost is None else f"${self.expected_cost:f}"
        most = f"at most ${self.upper_bound:f}" if self.upper_bound is not None else f"no bound: {self.why_unbounded}"
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
    attribution: Attribution | None = None,
    request: Mapping[str, Any] | None = None,
    **body: Any,
) -> Estimate:
    """What a call would cost, before it is made: the likely cost and the most it can be. No network, no ledger.

    Args:
        priced: Prices and terms.
        model: Model to be asked, as the call would name it.
        provider: Who would bill it; default: by the model's name, else ``openai``.
        endpoint: SDK method path whose format the request has; default: ``messages`` at Anthropic, ``responses`` where
            an ``input`` is given, else ``chat.completions``.
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
        ConfigurationError: no model is named, a number of tokens is none, or more is expected than is allowed.

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
    whole = {**(request or {}), **body}
    named = model or whole.get("model")
    if not isinstance(named, str) or not named:
        raise ConfigurationError("Which model? Give its name first: tokenmeter.estimate('gpt-5', messages=[...]).")
    who = provider or provider_of(named)
    path = endpoint or dialect(who if who in FORMATS else FORMATS[0]).usual_endpoint(whole)
    call = _sized(_call(who, path, {**whole, "model": named}, attribution), sizes, processing=processing, region=region)
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
        Observation(consumptions=(_group(call, usage, prompt),), flags=frozenset({"estimated"}))
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
    )


def _refuse_odd_sizes(sizes: Mapping[str, int | None]) -> None:
    for name, tokens in sizes.items():
        if tokens is not None and (type(tokens) is not int or not 0 <= tokens <= _MOST_TOKENS):
            raise ConfigurationError(f"{name} must be a number of tokens, not {tokens!r}.")


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


def _call(provider: str, endpoint: str, body: Mapping[str, Any], attribution: Attribution | None) -> Call:
    room = dialect_for(provider, endpoint)
    found = room.named(endpoint)
    around = current_attribution()
    return Call(
        provider=provider,
        endpoint=found.path,
        operation=found.operation,
        facts=room.request_facts(found, room.as_sent(body)),
        attribution=around if attribution is None else attribution.over(around),
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
    if most.cost is None or ceiling is None:
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
