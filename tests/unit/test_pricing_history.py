"""Prices had days on which they began and ended, hours and weekdays; what is not known is flagged."""

import tomllib
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

import tokenmeter
from tokenmeter.errors import ConfigurationError
from tokenmeter.pricing import PriceList, edition, parse_prices
from tokenmeter.pricing.edition import unknown_terms

OVERRIDES = Path(edition.__file__).with_name("overrides.toml")
#: provider, model, instant, prompt tokens, of these cached, answer tokens, list cost.
DATED = [
    ("deepseek", "deepseek-v4-flash", "2026-07-01T07:30Z", 10_000, 4_000, 500, "0.0009912"),  # one price all day
    ("deepseek", "deepseek-v4-flash", "2026-08-16T15:59Z", 1_000_000, 0, 0, "0.14"),
    ("deepseek", "deepseek-v4-flash", "2026-08-16T16:00Z", 1_000_000, 0, 0, "0.22"),  # off-peak from here on
    ("deepseek", "deepseek-v4-flash", "2026-08-18T07:00Z", 1_000_000, 0, 0, "0.44"),
    ("deepseek", "deepseek-v4-flash", "2026-08-22T07:00Z", 1_000_000, 0, 0, "0.44"),  # a Saturday, still peak
    ("deepseek", "deepseek-v4-flash", "2026-08-23T07:00Z", 1_000_000, 0, 0, "0.22"),  # a Sunday, no longer
    ("deepseek", "deepseek-v4-flash", "2026-09-10T04:00Z", 1_000_000, 0, 0, "0.15"),
    ("deepseek", "deepseek-flash", "2026-11-20T01:00Z", 1_000_000, 0, 0, "0.3"),
    ("deepseek", "deepseek-flash", "2026-11-20T04:00Z", 1_000_000, 0, 0, "0.15"),
    ("deepseek", "deepseek-v4-pro", "2026-09-06T08:00Z", 10_000, 4_000, 500, "0.005038"),  # a Sunday
    ("deepseek", "deepseek-v4-pro", "2026-10-01T08:00Z", 1_000_000, 0, 0, "0.66"),  # a public holiday
    ("deepseek", "deepseek-v4-pro", "2026-10-08T08:00Z", 1_000_000, 0, 0, "1.32"),
    ("deepseek", "deepseek-chat", "2025-02-20T20:00Z", 1_000_000, 0, 0, "0.27"),  # before the night discount
    ("deepseek", "deepseek-chat", "2025-06-01T20:00Z", 1_000_000, 0, 0, "0.135"),
    ("deepseek", "deepseek-reasoner", "2025-09-10T20:00Z", 1_000_000, 0, 1_000_000, "2.24"),  # after it
    ("deepseek", "deepseek-chat", "2025-12-01T12:00Z", 1_000_000, 500_000, 1_000_000, "0.574"),
    ("mistral", "mistral-large-latest", "2025-11-30T12:00Z", 1_000_000, 0, 0, "2"),
    ("mistral", "mistral-large-latest", "2026-06-20T12:00Z", 2_100, 1_408, 200, "0.0007164"),
    ("mistral", "mistral-medium-3", "2026-03-01T12:00Z", 1_000_000, 400_000, 100_000, "0.456"),  # before 3.5
    ("mistral", "mistral-medium-3", "2026-11-01T12:00Z", 1_000_000, 0, 0, "1.5"),
    ("mistral", "ministral-3b-latest", "2026-11-01T12:00Z", 1_000_000, 0, 0, "0.1"),
    ("deepseek", "deepseek-chat", "2025-01-10T20:00Z", 1_000_000, 500_000, 1_000_000, "0.357"),  # V3's first weeks
    ("google", "gemini-2.5-pro", "2025-08-01T12:00Z", 100_000, 100_000, 0, "0.031"),
    ("google", "gemini-2.5-pro", "2025-08-01T12:00Z", 300_000, 300_000, 0, "0.1875"),
    ("google", "gemini-2.5-pro", "2025-12-01T12:00Z", 100_000, 100_000, 0, "0.0125"),
    ("google", "gemini-2.5-flash", "2025-08-01T12:00Z", 100_000, 100_000, 0, "0.0075"),
    ("google", "gemini-1.5-pro", "2024-09-30T12:00Z", 100_000, 0, 10_000, "0.455"),
    ("google", "gemini-1.5-pro", "2024-10-01T12:00Z", 100_000, 0, 10_000, "0.175"),
    ("google", "gemini-1.5-flash", "2024-08-11T12:00Z", 200_000, 0, 0, "0.14"),
    ("openai", "gpt-4o", "2024-10-01T12:00Z", 1_000_000, 0, 100_000, "6.5"),
    ("openai", "gpt-4o", "2024-10-02T12:00Z", 1_000_000, 0, 100_000, "3.5"),
    ("groq", "openai/gpt-oss-20b", "2025-08-10T12:00Z", 1_000_000, 0, 1_000_000, "0.6"),
    ("groq", "openai/gpt-oss-20b", "2025-12-01T12:00Z", 1_000_000, 0, 1_000_000, "0.375"),
    ("x-ai", "grok-4.5", "2026-08-01T12:00Z", 100_000, 100_000, 0, "0.05"),
    ("x-ai", "grok-4.5", "2026-11-01T12:00Z", 100_000, 100_000, 0, "0.03"),
    ("x-ai", "grok-4.20-reasoning", "2026-11-01T12:00Z", 100_000, 0, 0, "0.125"),
    ("openai", "ft:davinci-002:acme::b7", "2026-03-02", 1_000, 0, 1_000, "0.024"),
    ("openai", "gpt-daybreak-blue-latest", "2026-11-20", 1_000_000, 0, 0, "8"),
    ("openai", "ft:gpt-4.1-mini-2025-04-14:acme::b7", "2026-03-02", 5_000, 2_100, 500, "0.00434"),
    ("openai", "ft:gpt-4o-mini-2024-07-18:acme::b7", "2026-03-02", 6_000, 2_000, 500, "0.0021"),
    ("openai", "ft:o4-mini-2025-04-16:acme::b7", "2026-03-02", 2_000, 1_000, 1_000, "0.021"),
]


def cost(provider, model, at, prompt, cached, answer):
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    usage["prompt_tokens_details"] = {"cached_tokens": cached}
    body = {"model": model, "object": "chat.completion", "choices": [], "usage": usage}
    return tokenmeter.price(body, provider=provider, endpoint="chat.completions", at=at)


@pytest.mark.parametrize(("provider", "model", "at", "prompt", "cached", "answer", "expected"), DATED)
def test_a_call_costs_what_it_cost_on_its_day(provider, model, at, prompt, cached, answer, expected):
    rating = cost(provider, model, at, prompt, cached, answer)
    assert rating.list_cost == Decimal(expected)
    assert rating.cost_source == "computed"


@pytest.mark.parametrize(
    ("at", "tier", "expected"),
    [
        ("2026-04-29", None, "1.5825"),
        ("2026-04-30", None, "0.795"),
        ("2026-10-20", None, "0.795"),
        ("2026-04-29", "batch", "0.79125"),
        ("2026-10-20", "batch", "0.3975"),
    ],
)
def test_the_tier_for_long_prompts_ended(at, tier, expected):
    usage = {"input_tokens": 260_000, "output_tokens": 1_000, "service_tier": tier or "standard"}
    body = {"type": "message", "model": "claude-sonnet-4-5-20250929", "content": [], "usage": usage}
    assert tokenmeter.price(body, provider="anthropic", endpoint="messages", at=at).list_cost == Decimal(expected)


def test_a_cached_class_without_a_published_rate_is_flagged():
    known = cost("mistral", "mistral-large-2512", "2026-06-20", 1_000, 500, 10)
    ruled = cost("mistral", "codestral-2501", "2026-06-20", 1_000, 500, 10)
    assumed = cost("cerebras", "gpt-oss-120b", "2026-11-20", 1_000, 384, 100)
    assert "cache_rate_assumed" not in known.flags | ruled.flags
    assert "cache_rate_assumed" in assumed.flags
    assert assumed.list_cost == Decimal("0.000425")  # as fresh input, the dearest it can be
    assert not cost("cerebras", "gpt-oss-120b", "2026-11-20", 1_000, 0, 100).flags


def test_a_one_hour_write_that_a_rule_prices_is_no_assumption():
    usage = {"input_tokens": 10, "cache_creation_input_tokens": 1_000, "output_tokens": 10}
    usage["cache_creation"] = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 1_000}
    body = {"type": "message", "model": "claude-mythos-5", "content": [{"type": "text", "text": "x"}], "usage": usage}
    assert not tokenmeter.price(body, provider="anthropic", endpoint="messages", at="2026-11-20").flags


def test_a_name_that_meant_another_model_once_is_flagged_before_the_day_its_meaning_is_known():
    before = cost("x-ai", "grok-latest", "2026-05-01", 1_000, 0, 10)
    after = cost("x-ai", "grok-latest", "2026-11-01", 1_000, 0, 10)
    assert "price_date_assumed" in before.flags
    assert "price_date_assumed" not in after.flags


@pytest.mark.parametrize(
    ("provider", "model", "known", "doubtful", "known_again"),
    [
        ("google", "gemini-2.5-flash", "2025-08-01", "2025-10-10", "2025-11-06"),
        ("groq", "openai/gpt-oss-120b", "2025-08-06", "2025-10-10", "2025-11-11"),
        ("x-ai", "grok-4.5", "2026-08-01", "2026-09-10", "2026-09-22"),
        ("mistral", "mistral-medium-3", "2026-04-28", "2026-05-10", "2026-09-22"),
    ],
)
def test_weeks_in_which_a_price_changed_on_a_day_nobody_recorded_are_flagged(
    provider, model, known, doubtful, known_again
):
    flagged = [
        "price_date_assumed" in cost(provider, model, f"{day}T12:00Z", 1_000, 500, 10).flags
        for day in (known, doubtful, known_again)
    ]
    assert flagged == [False, True, False]


def test_every_shipped_fact_names_its_source_and_the_day_it_was_read():
    raw = tomllib.loads(OVERRIDES.read_text(encoding="utf-8"))
    for table in ("prices", "rules", "launches", "doubts"):
        for row in raw[table]:
            assert row["source"].startswith("https://"), row
            assert isinstance(row["verified_on"], date), row
    assert all(row.source and row.verified_on for row in PriceList.load().own_rows)


def test_the_price_data_has_no_key_that_nobody_reads():
    data = edition.installed()
    unknown = {
        (provider, model["id"], term)
        for provider in data
        for model in data.provider(provider)["models"]
        for term in unknown_terms(model)
    }
    assert not unknown, "map it to a meter in pricing/edition.py, or name it there as untold"


# -- hours and weekdays in rows of one's own

ROW = {"provider": "acme", "model": "own", "sku_meter": "input", "unit_price": "1"}


def own(**conditions):
    rows = [ROW, {**ROW, "unit_price": "5", **conditions}]
    return PriceList.load(parse_prices(rows, file="prices.toml"))


@pytest.mark.parametrize(
    ("conditions", "at", "expected"),
    [
        ({"hours": "22:00-06:00"}, "2026-11-20T23:00Z", "5"),
        ({"hours": "22:00-06:00"}, "2026-11-20T05:59Z", "5"),
        ({"hours": "22:00-06:00"}, "2026-11-20T06:00Z", "1"),
        ({"weekdays": "Sat-Mon"}, "2026-11-22T12:00Z", "5"),
        ({"weekdays": "Sat-Mon"}, "2026-11-24T12:00Z", "1"),
        ({"weekdays": "tue,THU", "hours": "08:00-09:00"}, "2026-11-24T08:30Z", "5"),
        ({"weekdays": "tue,THU", "hours": "08:00-09:00"}, "2026-11-25T08:30Z", "1"),
    ],
)
def test_a_row_of_ones_own_can_hold_for_hours_and_weekdays(conditions, at, expected):
    body = {"model": "own", "usage": {"prompt_tokens": 1_000_000, "completion_tokens": 0, "total_tokens": 1_000_000}}
    rating = tokenmeter.price(body, provider="acme", endpoint="chat.completions", at=at, price_list=own(**conditions))
    assert rating.charges[0].list_cost == Decimal(expected)


@pytest.mark.parametrize(
    "conditions",
    [
        {"hours": "1-2"},
        {"hours": "08:00"},
        {"hours": "08:00-08:00"},
        {"weekdays": "Monday"},
        {"weekdays": "Mon-"},
        {"hours": 8},
    ],
)
def test_hours_and_weekdays_that_mean_nothing_are_refused(conditions):
    with pytest.raises(ConfigurationError, match=r"hours|weekdays"):
        own(**conditions)


@pytest.mark.parametrize(
    ("provider", "model", "at", "assumed"),
    [
        # The list of batches has the prompt and the answer, and nothing of a cache.
        ("openai", "gpt-4.1-nano", "2026-11-20", True),
        # Its maker says that batches leave the cache's price as it is.
        ("google", "gemini-2.5-flash", "2026-11-20", False),
        # Half of every class, by its maker's rule or by a row.
        ("anthropic", "claude-sonnet-4-6", "2026-11-20", False),
        ("openai", "gpt-5-mini", "2026-11-20", False),
    ],
)
def test_a_cached_class_that_the_list_of_a_mode_leaves_out_is_flagged(provider, model, at, assumed):
    usage = {"prompt_tokens": 1_000, "completion_tokens": 10, "total_tokens": 1_010}
    body = {
        "model": model,
        "object": "chat.completion",
        "choices": [],
        "usage": usage | {"prompt_tokens_details": {"cached_tokens": 500}},
    }
    found = tokenmeter.price(body, provider=provider, endpoint="chat.completions", processing="batch", at=at)
    assert found.list_cost is not None
    assert ("cache_rate_assumed" in found.flags) is assumed
