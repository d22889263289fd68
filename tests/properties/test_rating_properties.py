"""Whatever was used: the lines add up, rating is linear, and nothing is rounded twice."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmeter.money import EXACT, quantize, to_dollars, to_picodollars
from tokenmeter.pricing import Discount, Multiplier, PriceList, Pricer, Terms
from tokenmeter.pricing.card import Circumstances
from tokenmeter.usage import Consumption, Observation, Usage

AT = datetime(2026, 11, 20, tzinfo=UTC)
MODELS = [
    ("openai", "gpt-6.1-sol"),
    ("openai", "gpt-5"),
    ("openai", "gpt-realtime"),
    ("openai", "o4-mini"),
    ("anthropic", "claude-opus-5-5"),
    ("anthropic", "claude-sonnet-4-5"),
    ("google", "gemini-2.5-pro"),
    ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
]
METERS = ["input", "cache_read", "cache_write_5m", "cache_write_1h", "cache_write_30m", "cache_write_12h", "output"]
FACTOR = st.decimals(min_value="0.01", max_value="9.99", places=4)
LIST = PriceList.load()

quantities = st.dictionaries(st.sampled_from([*METERS, "web_searches"]), st.integers(0, 10**9), max_size=6)
contexts = st.fixed_dictionaries(
    {
        "service_tier": st.sampled_from([None, "default", "flex", "priority", "ultrafast", "warp"]),
        "processing": st.sampled_from([None, "batch"]),
        "speed": st.sampled_from([None, "fast"]),
        "geo": st.sampled_from([None, "us"]),
        "region": st.sampled_from([None, "global", "eu"]),
        "prompt_tokens": st.sampled_from([None, 0, 200_000, 200_001, 272_000, 272_001]),
    }
)


def rate(pricer, which, usage, at=AT, **context):
    provider, model = which
    group = Consumption(model=model, usage=Usage(usage), **context)
    return pricer.rate(Observation(consumptions=(group,)), provider=provider, endpoint="responses", at=at)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MODELS), quantities, contexts, FACTOR, FACTOR)
def test_lines_are_quantity_times_price_times_multipliers_and_add_up(which, usage, context, discount, platform):
    terms = Terms(multipliers=(Multiplier(factor=platform),), discounts=(Discount(factor=discount),))
    rating = rate(Pricer(LIST, terms), which, usage, **context)
    assert {line.sku_meter: line.quantity for line in rating.charges} == {m: q for m, q in usage.items() if q}
    priced = [line for line in rating.charges if line.list_cost is not None]
    for line in priced:
        exact = EXACT.multiply(Decimal(line.quantity), line.list_unit_price)
        stages = {"list": exact}
        for name, factor in line.multipliers.items():
            exact = EXACT.multiply(exact, factor)
            stages["list" if name in {"geo", "region"} else name] = exact
        contracted = stages.get("discount", stages["list"])
        assert line.list_cost == quantize(stages["list"])
        assert line.contracted_cost == quantize(contracted)
        assert line.billed_cost == quantize(stages.get("platform", contracted))
    for stage in ("list_cost", "contracted_cost", "billed_cost"):
        total = sum((getattr(line, stage) for line in priced), Decimal(0))
        assert getattr(rating, stage) == (total if priced or not rating.charges else None)
        if total:
            assert to_dollars(to_picodollars(total)) == total
    assert (rating.cost_source == "unpriced") == (len(priced) < len(rating.charges))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(MODELS), st.sampled_from(METERS), st.integers(0, 10**9), st.integers(0, 10**9))
def test_rating_is_linear_within_a_tier(which, meter, first, second):
    pricer = Pricer(LIST)

    def cost(quantity):
        return rate(pricer, which, {meter: quantity}, prompt_tokens=1).list_cost

    one, two, both = cost(first), cost(second), cost(first + second)
    if both is not None:
        assert (one or 0) + (two or 0) == both
        assert one is None or one <= both


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(MODELS), quantities, contexts, st.integers(0, 900))
def test_a_rate_from_the_cache_is_the_rate_worked_out_afresh(which, usage, context, days):
    at = datetime(2024, 6, 1, tzinfo=UTC) + timedelta(days=days)
    warm = Pricer(LIST)
    for moment in (AT, at, datetime(2025, 1, 1, tzinfo=UTC)):
        rate(warm, which, usage, at=moment, **context)
    assert rate(warm, which, usage, at=at, **context) == rate(Pricer(LIST), which, usage, at=at, **context)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(MODELS), quantities, quantities)
def test_two_groups_cost_what_they_cost_apart(which, first, second):
    pricer = Pricer(LIST)
    groups = tuple(Consumption(model=which[1], usage=Usage(each), prompt_tokens=1) for each in (first, second))
    together = pricer.rate(Observation(consumptions=groups), provider=which[0], endpoint="responses", at=AT)
    apart = [rate(pricer, which, each, prompt_tokens=1) for each in (first, second)]
    assert together.charges == apart[0].charges + apart[1].charges
    assert (together.list_cost or 0) == sum((each.list_cost or 0) for each in apart)


@pytest.mark.parametrize("which", MODELS)
def test_nothing_is_ever_priced_at_another_modes_rate_by_accident(which):
    """A tier or mode nobody sells is never given the standard price."""
    card = LIST.find(*which).card
    for context in (
        Circumstances(service_tier="warp"),
        Circumstances(processing="overnight"),
        Circumstances(speed="warp"),
    ):
        assert card.quote("input", context, AT, 1) is None
        assert card.quote("output", context, AT, 1) is None


moments = st.datetimes(datetime(2024, 1, 1), datetime(2027, 6, 1)).map(lambda moment: moment.replace(tzinfo=UTC))  # noqa: DTZ001


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*MODELS, ("deepseek", "deepseek-v4-pro")]), quantities, contexts, moments, FACTOR)
def test_whole_rates_come_to_the_cost_of_the_general_way(which, usage, context, at, platform):
    pricer = Pricer(LIST, Terms(multipliers=(Multiplier(factor=platform, effective_from=AT),)))
    size = context.pop("prompt_tokens") or 0
    mode = Circumstances(endpoint="responses", **context)
    sheet = pricer.sheet(*which, mode=mode, at=at, prompt_tokens=size)
    rates = {meter: sheet.rate(meter) for meter, quantity in usage.items() if quantity}
    if sheet.per_request is not None or any(
        isinstance(one, str) or not one.whole or one.flags for one in rates.values()
    ):
        return
    costs = tuple(sum(usage[meter] * one.whole[place] for meter, one in rates.items()) for place in range(3))
    rating = rate(pricer, which, usage, at, **context, prompt_tokens=size)
    assert not rating.flags
    assert rating.cost_source == "computed"
    assert costs == tuple(map(to_picodollars, (rating.list_cost, rating.contracted_cost, rating.billed_cost)))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*MODELS, ("deepseek", "deepseek-v4-pro")]), contexts, moments, st.integers(0, 10**6))
def test_a_sheet_holds_until_it_says_and_for_the_prompts_it_says(which, context, at, part):
    pricer = Pricer(LIST, Terms(multipliers=(Multiplier(factor=Decimal(2), effective_from=AT),)))
    size = context.pop("prompt_tokens") or 0
    mode = Circumstances(endpoint="responses", **context)
    sheet = pricer.sheet(*which, mode=mode, at=at, prompt_tokens=size)
    over, upto = sheet.prompt_band
    assert over < size
    assert upto is None or size <= upto
    assert sheet.until is None or at < sheet.until
    end = sheet.until or datetime(2030, 1, 1, tzinfo=UTC)
    later = at + (end - at - timedelta(microseconds=1)) * (part / 10**6)
    other = pricer.sheet(*which, mode=mode, at=later, prompt_tokens=max(over + 1, 0) if upto is None else upto)
    for meter in ("input", "cache_read", "output", "cache_write_1h"):
        first, second = sheet.rate(meter), other.rate(meter)
        assert first == second or (first.rates, first.price_id) == (second.rates, second.price_id)
