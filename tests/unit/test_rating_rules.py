"""How a request's dimensions decide its price, one rule at a time."""

import copy
import pickle
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from itertools import product

import pytest

import tokenmeter
from tokenmeter.call import RequestFacts
from tokenmeter.ledger import Entry
from tokenmeter.money import multiply, total
from tokenmeter.pricing import Multiplier, PriceList, Pricer, Terms, parse_prices
from tokenmeter.pricing.card import Circumstances
from tokenmeter.pricing.corrections import correction
from tokenmeter.providers.context import Context
from tokenmeter.providers.openai.dialect import DIALECT
from tokenmeter.usage import Consumption, Observation, SuppliedCost, Usage

AT = datetime(2026, 11, 20, tzinfo=UTC)
MILLION = 1_000_000


@pytest.fixture(scope="module")
def pricer():
    return Pricer(PriceList.load())


def seen(quantities, model="gpt-5", *, flags=frozenset(), **context):
    context.setdefault("prompt_tokens", 1)
    return Observation(
        consumptions=(Consumption(model=model, usage=Usage(quantities), **context),), flags=frozenset(flags)
    )


def rate(pricer, observation, *, provider="openai", at=AT):
    return pricer.rate(observation, provider=provider, endpoint="responses", at=at)


def per_million(pricer, meter, model="gpt-5", provider="openai", at=AT, **context):
    return rate(pricer, seen({meter: MILLION}, model, **context), provider=provider, at=at).list_cost


@pytest.mark.parametrize(
    ("provider", "model", "tier"),
    [
        ("openai", "gpt-4.1", "scale"),
        ("google", "gemini-2.5-flash", "provisioned"),
        ("aws", "anthropic.claude-sonnet-4-5-20250929-v1:0", "provisioned"),
        ("aws", "arn:aws:bedrock:us-east-1:1:provisioned-model/abc", None),
    ],
)
def test_capacity_that_is_paid_by_the_hour_or_day_costs_nothing_by_the_token(pricer, provider, model, tier):
    observation = seen({"input": 9, "cache_read": 9, "output": 9}, model, service_tier=tier, prompt_tokens=18)
    rating = rate(pricer, observation, provider=provider)
    assert (rating.list_cost, rating.flags) == (0, frozenset())


@pytest.mark.parametrize("mode", [{"processing": "batch"}, {"service_tier": "flex"}])
def test_long_prompts_of_gpt_5_5_pro_cost_half_of_their_own_price(pricer, mode):
    of = {"model": "gpt-5.5-pro", "prompt_tokens": 300_000}
    assert [per_million(pricer, meter, **of) for meter in ("input", "output")] == [60, 270]
    assert [per_million(pricer, meter, **of, **mode) for meter in ("input", "output")] == [30, 135]
    of["prompt_tokens"] = 272_000
    assert [per_million(pricer, meter, **of, **mode) for meter in ("input", "output")] == [15, 90]


@pytest.mark.parametrize("mode", [Circumstances(processing="batch"), Circumstances(service_tier="flex")])
def test_what_is_dearer_for_long_prompts_is_so_in_the_cheaper_modes_as_well(pricer, mode):
    tiered = {(row.provider, row.model) for row in pricer.price_list.rows if row.conditions.min_input_tokens}
    outgrown = []
    for provider, model in sorted(tiered):
        listed = pricer.price_list.find(provider, model)
        for meter, size in product(("input", "cache_read", "output"), listed.card.thresholds if listed else ()):
            plain = [listed.card.quote(meter, Circumstances(), AT, tokens) for tokens in (0, size + 1)]
            cheap = [listed.card.quote(meter, mode, AT, tokens) for tokens in (0, size + 1)]
            if None in plain or None in cheap or plain[0].per_unit == plain[1].per_unit:
                continue
            if cheap[0].per_unit == cheap[1].per_unit:
                outgrown.append((provider, model, meter))
    assert len(tiered) > 10
    assert outgrown == []


def test_who_asks_for_paid_capacity_may_be_served_beyond_it(pricer):
    assert ceiling(pricer, "gpt-4.1", service_tier="scale").output == Decimal("0.000008")


@pytest.mark.parametrize("tier", [None, "default", "standard", "auto", "Default", ""])
def test_every_spelling_of_the_standard_tier_is_standard(pricer, tier):
    assert per_million(pricer, "input", service_tier=tier) == Decimal("1.25")


@pytest.mark.parametrize(
    ("context", "flag"),
    [
        ({"service_tier": "warp"}, "unknown_service_tier"),
        ({"speed": "fast"}, "unknown_speed"),
        ({"processing": "overnight"}, "unknown_processing"),
        ({"geo": "us"}, "unknown_geo"),
        ({"service_tier": "flex", "processing": "overnight"}, "unknown_processing"),
    ],
)
def test_what_no_price_is_known_for_is_unpriced_and_says_why(pricer, context, flag):
    rating = rate(pricer, seen({"input": 10, "output": 1}, **context))
    assert rating.flags == {flag}
    assert rating.cost_source == "unpriced"
    assert rating.list_cost is rating.contracted_cost is rating.billed_cost is None
    assert [(charge.sku_meter, charge.quantity, charge.list_cost) for charge in rating.charges] == [
        ("input", 10, None),
        ("output", 1, None),
    ]


def test_an_unknown_geography_of_a_model_with_geographies_is_unpriced(pricer):
    rating = rate(pricer, seen({"input": 10}, "claude-opus-5", geo="mars"), provider="anthropic")
    assert rating.flags == {"unknown_geo"}


def test_an_older_model_costs_the_same_in_its_geography(pricer):
    assert per_million(pricer, "input", "claude-sonnet-4-5", "anthropic", geo="us") == 3
    assert per_million(pricer, "input", "claude-sonnet-4-6", "anthropic", geo="us") == Decimal("3.3")
    assert per_million(pricer, "input", "claude-opus-5", "anthropic", geo="not_available") == 5


def test_priority_and_fast_are_the_same_tier(pricer):
    for tier in ("priority", "fast"):
        assert per_million(pricer, "output", "gpt-6-sol", service_tier=tier) == 20


def test_one_unpriced_line_leaves_the_others_priced(pricer):
    rating = rate(pricer, seen({"input": MILLION, "trained_tokens": 5}))
    assert rating.list_cost == Decimal("1.25")
    assert rating.cost_source == "unpriced"
    assert rating.flags == {"unpriced_meter"}


def test_a_class_without_a_price_takes_the_nearest_one(pricer):
    assert per_million(pricer, "cache_read", "gpt-5-pro") == 15  # no cache discount is published
    assert per_million(pricer, "input_audio", "gemini-2.5-pro", "google") == Decimal("1.25")  # one price for both
    assert per_million(pricer, "output_image", "gpt-image-1") == 40
    assert per_million(pricer, "cache_write_30m", "gpt-5") == Decimal("1.25")  # writing costs nothing extra
    assert per_million(pricer, "cache_write_5m", "claude-3-haiku", "anthropic") == Decimal("0.3")


def test_a_write_of_long_lifetime_never_falls_back_to_a_shorter_one(pricer):
    assert per_million(pricer, "cache_write_1h", "claude-4-sonnet@20250514", "vertex") == 6  # twice the input
    assert per_million(pricer, "cache_write_12h", "gpt-5") is None
    rows = parse_prices(
        [
            {"provider": "acme", "model": "m", "sku_meter": meter, "unit_price": "1"}
            for meter in ("input", "cache_write")
        ],
        file="f",
    )
    own = Pricer(PriceList.load(rows))
    assert per_million(own, "cache_write_5m", "m", "acme") == 1
    assert per_million(own, "cache_write_1h", "m", "acme") is None


def test_batch_stacks_with_cache_long_context_speed_and_geography(pricer):
    context = {"processing": "batch", "speed": "fast", "geo": "us"}
    usage = {"input": MILLION, "cache_read": MILLION, "cache_write_1h": MILLION, "output": MILLION, "web_searches": 100}
    rating = rate(pricer, seen(usage, "claude-opus-5-5", **context), provider="anthropic")
    # fast 8/0.4/16/40, half in a batch, 1.1 times in the US; searches $10/1,000 whatever the mode
    expected = {"input": "4.4", "cache_read": "0.22", "cache_write_1h": "8.8", "output": "22", "web_searches": "1"}
    assert {charge.sku_meter: charge.list_cost for charge in rating.charges} == {
        meter: Decimal(value) for meter, value in expected.items()
    }


def test_anthropics_batch_tier_is_batch_processing(pricer):
    assert per_million(pricer, "input", "claude-3-haiku", "anthropic", service_tier="batch") == Decimal("0.125")


@pytest.mark.parametrize(
    ("day", "context", "expected"),
    [
        ("2024-04-14", {"processing": "batch"}, None),  # before the batch API
        ("2024-04-15", {"processing": "batch"}, "1.25"),
        ("2026-10-13", {"processing": "batch"}, "1.25"),  # before the catalog's record
        ("2026-10-14", {"processing": "batch"}, "1.25"),
        ("2025-04-16", {"service_tier": "flex"}, None),
        ("2025-05-30", {"service_tier": "priority"}, None),
        ("2025-07-01", {"service_tier": "priority"}, "4.25"),
    ],
)
def test_a_mode_is_priced_from_the_day_it_was_first_sold(pricer, day, context, expected):
    moment = datetime.fromisoformat(day).replace(tzinfo=UTC)
    found = per_million(pricer, "input", "gpt-4o", at=moment, **context)
    assert found == (None if expected is None else Decimal(expected))


def test_an_introductory_price_ends_by_itself(pricer):
    for at, expected in [(datetime(2027, 2, 28, 23, tzinfo=UTC), 6), (datetime(2027, 3, 1, tzinfo=UTC), 12)]:
        assert per_million(pricer, "input", "gpt-6.2-sol", at=at, service_tier="ultrafast") == expected


def test_the_instant_decides_not_the_clock_on_the_wall(pricer):
    cut = datetime(2026, 8, 21, tzinfo=UTC)
    tokyo = timezone(timedelta(hours=9))
    assert per_million(pricer, "input", "gpt-5.6-sol", at=cut.astimezone(tokyo)) == 4
    assert per_million(pricer, "input", "gpt-5.6-sol", at=(cut - timedelta(seconds=1)).astimezone(tokyo)) == 5


@pytest.mark.parametrize(
    ("provider", "model", "threshold", "base", "long"),
    [
        ("openai", "gpt-5.4", 272_000, "2.5", "5"),
        ("anthropic", "claude-haiku-5-5", 100_000, "0.1", "0.5"),
        ("google", "gemini-2.5-pro", 200_000, "1.25", "2.5"),
    ],
)
def test_the_long_context_price_begins_strictly_above_its_threshold(pricer, provider, model, threshold, base, long):
    assert per_million(pricer, "input", model, provider, prompt_tokens=threshold) == Decimal(base)
    assert per_million(pricer, "input", model, provider, prompt_tokens=threshold + 1) == Decimal(long)


def test_of_several_prompts_only_the_sum_of_which_is_known_the_base_tier_holds_flagged(pricer):
    many = rate(pricer, seen({"input": 300_000}, "gpt-5.4", prompt_tokens=None))
    assert many.list_cost == Decimal("0.75")
    assert many.flags == {"tier_ambiguous"}
    few = rate(pricer, seen({"input": 272_000}, "gpt-5.4", prompt_tokens=None))
    assert few.flags == frozenset()


def test_a_supplied_cost_wins_and_only_the_platform_multiplier_applies():
    terms = Terms(multipliers=(Multiplier(factor=Decimal("1.1")),))
    supplied = SuppliedCost(Decimal("0.0123"), "usage.cost")
    observation = seen({"input": MILLION}, "anything", supplied_cost=supplied)
    rating = rate(Pricer(PriceList.load(), terms), observation, provider="openrouter")
    assert [charge.sku_meter for charge in rating.charges] == ["provider_cost"]
    assert (rating.list_cost, rating.billed_cost) == (Decimal("0.0123"), Decimal("0.01353"))
    assert rating.cost_source == "billed"
    assert rating.charges[0].source == "usage.cost"


def test_sources_of_cost(pricer):
    assert rate(pricer, Observation()).cost_source == "none"
    assert rate(pricer, Observation()).list_cost is None
    free = Observation(consumptions=seen({"input": 1}).consumptions, billable=False)
    assert rate(pricer, free).cost_source == "none"
    assert rate(pricer, seen({"input": 1}, flags={"estimated"})).cost_source == "estimated"
    nothing = rate(pricer, seen({"input": 0, "output": 0}))
    assert (nothing.list_cost, nothing.cost_source, nothing.charges) == (0, "computed", ())
    nameless = rate(pricer, seen({"input": 1}, None))
    assert (nameless.cost_source, nameless.flags) == ("unpriced", {"unknown_model"})


def test_a_fee_per_request_is_a_line_of_its_own(pricer):
    rows = parse_prices(
        [
            {"provider": "acme", "model": "m", "sku_meter": "input", "unit_price": "1"},
            {"provider": "acme", "model": "m", "sku_meter": "requests", "unit_price": "5", "per": 1000},
        ],
        file="f",
    )
    rating = rate(Pricer(PriceList.load(rows)), seen({"input": MILLION}, "m"), provider="acme")
    assert rating.list_cost == Decimal("1.005")


def test_a_price_that_is_no_whole_number_of_picodollars_is_rounded_once(pricer):
    # $1.02 an hour is $0.000283333... a second
    rating = rate(pricer, seen({"seconds_audio": Decimal("7.5")}, "gpt-live-transcribe"))
    assert rating.list_cost == Decimal("0.002125000000")
    third = rate(pricer, seen({"seconds_audio": 1}, "gpt-live-transcribe"))
    assert third.list_cost == Decimal("0.000283333333")


def test_charges_can_be_copied_and_pickled(pricer):
    rating = rate(pricer, seen({"input": 5, "output": 2}, "claude-opus-5", geo="us"), provider="anthropic")
    assert copy.deepcopy(rating.charges) == rating.charges
    assert pickle.loads(pickle.dumps(rating.charges)) == rating.charges  # noqa: S301 - our own bytes


# -- bounding a call in advance


def ceiling(pricer, model, provider="openai", at=AT, **facts):
    facts = RequestFacts(model=model, **facts)
    return pricer.ceiling(provider=provider, endpoint="responses", facts=facts, at=at)


def test_the_ceiling_is_no_lower_than_any_price_of_the_tier_that_is_asked_for(pricer):
    for tier in (None, "flex", "priority", "ultrafast"):
        bound = ceiling(pricer, "gpt-6.1-sol", service_tier=tier)
        for prompt in (10, 300_000):
            for meter in ("input", "cache_read", "cache_write_30m", "cache_write_12h"):
                found = per_million(pricer, meter, "gpt-6.1-sol", service_tier=tier, prompt_tokens=prompt)
                assert found <= multiply(bound.input, MILLION)
            found = per_million(pricer, "output", "gpt-6.1-sol", service_tier=tier, prompt_tokens=prompt)
            assert found <= multiply(bound.output, MILLION)
    assert bound.max_output_tokens == 128_000
    assert bound.context_window == 1_050_000
    assert bound.web_search == Decimal("0.01")
    assert bound.container_session == Decimal("1.92")


def test_a_request_that_names_its_tier_is_bounded_by_it(pricer):
    assert ceiling(pricer, "gpt-5", service_tier="default").output == Decimal("0.00001")
    assert ceiling(pricer, "gpt-5", service_tier="flex").output == Decimal("0.000005")  # or it is refused
    assert ceiling(pricer, "gemini-2.5-flash", "google", service_tier="flex").output == Decimal("0.00000125")
    assert ceiling(pricer, "gpt-5", service_tier="priority").output == Decimal("0.00002")
    assert ceiling(pricer, "gpt-5").output == Decimal("0.00001")  # budgets learn it where a project has another default
    assert ceiling(pricer, "gpt-5", processing="batch").output == Decimal("0.000005")


def test_the_ceiling_counts_speed_geography_region_and_the_platform(pricer):
    plain = ceiling(pricer, "claude-opus-5-5", "anthropic")
    assert plain.output == Decimal("0.000022")  # $20 in the US, which the workspace may default to
    assert ceiling(pricer, "claude-opus-5-5", "anthropic", speed="fast").output == Decimal("0.000044")
    assert ceiling(pricer, "gpt-4o", "azure", region="data-zone", service_tier="default").output == Decimal("0.000011")
    dear = Pricer(PriceList.load(), Terms(multipliers=(Multiplier(factor=Decimal("1.5")),)))
    assert ceiling(dear, "claude-opus-5-5", "anthropic").output == Decimal("0.000033")


def test_an_unknown_model_has_no_ceiling_but_dearest_known_rates(pricer):
    assert ceiling(pricer, "gpt-99") is None
    dearest = pricer.dearest_known(provider="anthropic", at=AT)
    assert dearest.output >= Decimal("0.00005")
    assert not dearest.known


def test_to_hold_an_unknown_model_reads_no_other_providers_prices():
    prices, converted = PriceList.load(), []
    every = prices.rows_of

    class Watched:
        def __getattr__(self, name):
            return getattr(prices, name)

        def rows_of(self, provider):
            for row in every(provider):
                converted.append(row.provider)
                yield row

    dearest = Pricer(Watched()).dearest_known(provider="anthropic", at=AT)
    assert set(converted) == {"anthropic"}
    standard = [row for row in every(None) if row.provider == "anthropic" and not row.conditions.described()]
    assert dearest.output == max(row.per_unit for row in standard if row.sku_meter == "output" and row.holds(AT))


# -- rating again


def entry(pricer, observation, **fields):
    rating = rate(pricer, observation)
    return Entry(
        occurred_at=AT,
        provider="openai",
        endpoint="responses",
        operation="chat",
        usage=observation.usage,
        charges=rating.charges,
        list_cost=rating.list_cost,
        contracted_cost=rating.contracted_cost,
        billed_cost=rating.billed_cost,
        cost_source=rating.cost_source,
        **fields,
    )


def test_a_correction_prices_what_was_unpriced_in_its_own_context_and_counts_no_token_twice(pricer):
    observation = seen({"input": 1000, "output": 100}, "gpt-99", processing="batch", prompt_tokens=1000)
    recorded = entry(pricer, observation)
    assert recorded.list_cost is None
    assert correction(recorded, pricer) is None  # still unknown
    rows = parse_prices(
        [
            {"provider": "openai", "model": "gpt-99", "sku_meter": meter, "unit_price": price}
            for meter, price in (("input", "10"), ("output", "100"))
        ],
        file="f",
    )
    later = Pricer(PriceList.load(rows))
    found = correction(recorded, later)
    assert found.kind == "correction"
    assert found.corrects == recorded.entry_id
    assert found.occurred_at == recorded.occurred_at
    assert found.list_cost == Decimal("0.01")  # half of 1,000 x $10 + 100 x $100 a million
    assert not found.usage
    net = {}
    for charge in (*recorded.charges, *found.charges):
        key = charge.sku_meter
        net[key] = net.get(key, 0) + charge.quantity
    assert net == {"input": 1000, "output": 100}
    assert total(charge.list_cost for charge in found.charges if charge.list_cost is not None) == found.list_cost
    assert found.price_list_hash == later.price_list_hash
    assert correction(found, later) is None
    assert correction(recorded, later).dedup_key == found.dedup_key


def test_an_entry_that_is_priced_needs_no_correction(pricer):
    assert correction(entry(pricer, seen({"input": 10})), pricer) is None


def test_a_line_that_no_answer_costs_is_unpriced_and_the_others_are_not():
    """A host that counts a million millions of searches must not spoil the sums of its ledger for good."""
    prices = [
        {"provider": "openai", "model": "m", "sku_meter": "input", "unit_price": 1},
        {"provider": "openai", "model": "m", "sku_meter": "web_searches", "unit_price": "0.01", "per": 1},
    ]
    pricer = Pricer(PriceList.load(prices))
    most = rate(pricer, seen({"input": 10, "web_searches": 10**10}, "m"))
    assert (most.list_cost, most.cost_source, most.flags) == (Decimal("100000000.00001"), "computed", frozenset())
    beyond = rate(pricer, seen({"input": 10, "web_searches": 10**10 + 1}, "m"))
    assert (beyond.list_cost, beyond.cost_source) == (Decimal("0.00001"), "unpriced")
    assert beyond.flags == {"implausible_cost"}
    dear = Pricer(PriceList.load(prices), Terms(multipliers=(Multiplier(factor=Decimal(2)),)))
    assert rate(dear, seen({"web_searches": 10**10}, "m")).flags == {"implausible_cost"}


def line_of(body):
    return {"custom_id": "1", "response": {"status_code": 200, "body": body}, "error": None}


def list_cost(body, *, provider, endpoint, model=None):
    rating = tokenmeter.price(body, provider=provider, endpoint=endpoint, model=model, at=AT)
    assert rating.cost_source == "computed", rating
    return rating.list_cost


@pytest.mark.parametrize("model", ["mistral-ocr-4-1", "mistral-ocr-4-0", "mistral-ocr-2505"])
def test_pages_of_documents_cost_half_in_a_batch(model):
    body = {"pages": [{"index": 0, "markdown": "x"}], "model": model, "usage_info": {"pages_processed": 1_000}}
    now = list_cost(body, provider="mistral", endpoint="ocr")
    in_batch = list_cost(line_of(body), provider="mistral", endpoint="files.content")
    assert now == multiply(in_batch, 2) > 0


@pytest.mark.parametrize(("size", "in_batch"), [("720x1280", "1.2"), ("1024x1792", "2")])
def test_seconds_of_video_cost_half_in_a_batch(size, in_batch):
    body = {"id": "v", "object": "video", "model": "sora-2-pro", "status": "completed", "seconds": "8", "size": size}
    assert list_cost(body, provider="openai", endpoint="videos") == multiply(Decimal(in_batch), 2)
    assert list_cost(line_of(body), provider="openai", endpoint="files.content") == Decimal(in_batch)


def test_what_no_rule_names_costs_the_same_in_a_batch(pricer):
    for meter in ("web_searches", "file_searches"):
        assert per_million(pricer, meter, processing="batch") == per_million(pricer, meter)


def test_a_transcription_in_a_batch_is_billed_by_its_seconds():
    usage = {"prompt_audio_seconds": 100, "prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 410}
    voxtral = {"model": "voxtral-mini-latest", "text": "hello", "language": None, "segments": [], "usage": usage}
    whisper = {"text": "hello", "duration": 100.0, "usage": {"type": "duration", "seconds": 100}}
    for body, provider, model, cost in (
        (voxtral, "mistral", None, "0.0025"),
        (whisper, "groq", "whisper-large-v3", "0.001541666667"),
    ):
        found = list_cost(line_of(body), provider=provider, endpoint="files.content", model=model)
        assert found == Decimal(cost)


@pytest.mark.parametrize("name", ["azure", "foundry", "azure_openai", "azure.ai.openai", "Azure"])
def test_a_provider_is_read_alike_by_each_of_its_names(name):
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    body = {"object": "chat.completion", "id": "c", "model": "gpt-4o-search-preview", "choices": [], "usage": usage}
    assert list_cost(body, provider=name, endpoint="chat.completions") == Decimal("0.025075")


@pytest.mark.parametrize("name", ["google", "gemini", "vertex"])
def test_a_batch_of_geminis_is_read_by_each_name_of_its_provider(name):
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
    answer = {"modelVersion": "gemini-2.5-flash", "responseId": "r", "usageMetadata": usage}
    answer["candidates"] = [{"content": {"parts": [{"text": "x"}]}}]
    body = {
        "name": "batches/1",
        "done": True,
        "metadata": {"state": "BATCH_STATE_SUCCEEDED"},
        "response": {"inlinedResponses": {"inlinedResponses": [{"response": answer}]}},
    }
    assert list_cost(body, provider=name, endpoint="batches.get") == Decimal("0.00000775")


@pytest.mark.parametrize("model", ["tts-1", "openai/tts-1", "tts-1-1106"])
def test_speech_is_sold_by_the_character_under_a_gateways_name_too(pricer, model):
    request = RequestFacts(model=model, input_bytes=1_000, pieces={"characters": 1_000})
    seen = DIALECT.read_body(b"mp3", Context("openai", "audio.speech", request))
    assert pricer.rate(seen, provider="openai", endpoint="audio.speech", at=AT).list_cost == Decimal("0.015")
