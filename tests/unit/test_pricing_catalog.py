"""What the whole price list must hold to, whoever wrote its rows."""

import subprocess
import sys
import typing
from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from anthropic.types.model import Model
from openai.types import AudioModel, EmbeddingModel, ImageModel, ModerationModel, VideoModel
from openai.types.shared.all_models import AllModels

import tokenmeter
from tokenmeter import prices
from tokenmeter.errors import UnknownModelError
from tokenmeter.pricing import Price, PriceList, parse_prices
from tokenmeter.pricing.card import Circumstances
from tokenmeter.pricing.rules import RateRule, load_overrides

#: Models the SDKs name and nobody has published a token price for (see docs/reference/pricing.md).
UNPRICED = {
    "claude-mythos-preview",
    "dall-e-2",
    "dall-e-3",
    "gpt-6.2-astra-law",
}


@pytest.fixture(scope="module")
def listed():
    return PriceList.load()


def literals(annotation):
    for inner in typing.get_args(annotation):
        if isinstance(inner, str):
            yield inner
        else:
            yield from literals(inner)


@pytest.mark.parametrize(
    ("provider", "annotation"),
    [
        ("openai", AllModels),
        ("openai", ImageModel),
        ("openai", AudioModel),
        ("openai", EmbeddingModel),
        ("openai", ModerationModel),
        ("openai", VideoModel),
        ("anthropic", Model),
    ],
    ids=lambda value: str(value)[:40],
)
def test_each_model_the_sdks_name_is_priced_or_listed_as_unpriced(listed, provider, annotation):
    names = set(literals(annotation))
    assert names
    unknown = {name for name in names if listed.find(provider, name) is None}
    assert unknown <= UNPRICED
    assert not {name for name in UNPRICED & names if name not in unknown}, "priced by now: take it off the list"


def standing_rows(listed):
    by_model = defaultdict(dict)
    for row in listed.rows:
        if row.holds(datetime(2026, 11, 20, tzinfo=UTC)) and row.conditions.hours is None:
            by_model[row.provider, row.model][row.sku_meter, row.conditions] = row.per_unit
    return by_model


def test_no_batch_or_flex_rate_exceeds_the_standard_one(listed):
    at = datetime(2026, 11, 20, tzinfo=UTC)
    for provider, model in {(row.provider, row.model) for row in listed.rows if row.model != "*"}:
        card = listed.find(provider, model).card
        for meter in card.meters:
            standard = card.quote(meter, Circumstances(), at, 0)
            for context in (Circumstances(processing="batch"), Circumstances(service_tier="flex")):
                quote = card.quote(meter, context, at, 0)
                if quote is not None and standard is not None:
                    assert quote.per_unit <= standard.per_unit, (provider, model, meter, context)


def test_no_cache_read_exceeds_fresh_input_where_the_provider_is_ours(listed):
    for (provider, model), rows in standing_rows(listed).items():
        if provider not in {"openai", "anthropic", "azure", "aws", "google"}:
            continue
        for (meter, conditions), rate in rows.items():
            fresh = rows.get((meter.replace("cache_read", "input"), conditions))
            if meter.startswith("cache_read") and fresh is not None:
                assert rate <= fresh, (provider, model, meter, conditions)


def test_a_longer_prompt_is_never_cheaper_and_a_longer_cache_neither(listed):
    for (provider, model), rows in standing_rows(listed).items():
        for (meter, conditions), rate in rows.items():
            if conditions.min_input_tokens:
                base = [other for (m, c), other in rows.items() if m == meter and not c.min_input_tokens]
                assert rate >= min(base), (provider, model, meter)
        hour = {c: rate for (m, c), rate in rows.items() if m == "cache_write_1h"}
        for (meter, conditions), rate in rows.items():
            if meter == "cache_write" and conditions in hour:
                assert hour[conditions] > rate, (provider, model)


def test_every_shipped_fact_names_its_source_and_the_day_it_was_read():
    overrides = load_overrides()
    facts: list[Price | RateRule] = [*overrides.prices, *overrides.rules]
    for fact in facts:
        assert fact.source.startswith("https://"), fact
        assert fact.verified_on is not None, fact


def test_the_hash_is_the_same_in_another_process_and_changes_with_a_row(listed):
    code = "from tokenmeter.pricing import PriceList; print(PriceList.load().hash)"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert other.stdout.strip() == listed.hash
    row = {"provider": "openai", "model": "x", "sku_meter": "input", "unit_price": "1"}
    dearer = {**row, "unit_price": "2"}
    hashes = {PriceList.load(parse_prices([each], file="f")).hash for each in (row, dearer)}
    assert len({listed.hash, *hashes}) == 3


def test_neither_import_nor_loading_reads_the_price_data():
    code = (
        "import sys; from tokenmeter.pricing import Pricer, PriceList\n"
        "p = Pricer(PriceList.load()); p.price_list_hash\n"
        "assert not [m for m in sys.modules if m.startswith('genai_prices')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_show_gives_the_rows_of_a_model_on_a_day():
    before = {row.sku_meter: row for row in prices.show("o3", at="2025-06-01") if not row.conditions.described()}
    after = {row.sku_meter: row for row in prices.show("o3", at="2025-06-11") if not row.conditions.described()}
    assert (before["input"].unit_price, before["cache_read"].unit_price) == (10, Decimal("2.5"))
    assert (after["input"].unit_price, after["cache_read"].unit_price) == (2, Decimal("0.5"))


def own_rows(*rows):
    shared = {"provider": "openai", "model": "my-model", "sku_meter": "input"}
    return PriceList.load(parse_prices([{**shared, **row} for row in rows], file="f"))


RENEWED = [
    {"unit_price": "3", "effective_from": "2026-01-01"},
    {"unit_price": "5", "effective_from": "2026-11-01"},
    {"unit_price": "1", "processing": "batch"},
]


@pytest.mark.parametrize("order", [1, -1])
def test_show_and_diff_give_the_price_that_a_call_pays(order):
    listed = own_rows(*RENEWED[::order])
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 0, "total_tokens": 1_000_000}
    answer = {"model": "my-model", "usage": usage}
    for day, standard in (("2026-10-15", 3), ("2026-11-20", 5)):
        paid = tokenmeter.price(
            answer, provider="openai", endpoint="chat.completions", at=day, price_list=listed
        ).billed_cost
        shown = [row.unit_price for row in prices.show("my-model", at=day, price_list=listed) if row.model != "*"]
        differing = [
            one.price.unit_price for one in prices.diff(at=day, price_list=listed) if one.price.origin == "user"
        ]
        assert paid == standard
        assert shown == [standard, 1]
        assert sorted(differing) == [1, standard]


def test_show_leaves_out_what_a_row_of_ones_own_replaces():
    listed = own_rows(
        {"model": "gpt-5.5", "unit_price": "9"}, {"model": "gpt-5.5-2026-01-05", "unit_price": "7", "region": "eu"}
    )
    found = [row for row in prices.show("gpt-5.5", at="2026-11-20", price_list=listed) if row.sku_meter == "input"]
    standard = [row for row in found if {"service_tier", "processing", "speed"}.isdisjoint(row.conditions.described())]
    assert [(row.unit_price, row.origin) for row in standard] == [(9, "user")], "nor the tier for long prompts"
    found = prices.show("gpt-5.5-2026-01-05", at="2026-11-20", price_list=listed)
    assert {(row.unit_price, row.conditions.region) for row in found if row.origin == "user"} == {(9, None), (7, "eu")}


def test_each_shipped_row_that_show_gives_is_chosen_for_a_call_under_its_conditions(listed):
    at = datetime(2026, 11, 20, tzinfo=UTC)
    checked = 0
    for provider, model in {(row.provider, row.model) for row in listed.rows_of(None) if row.model != "*"}:
        card = listed.find(provider, model).card
        for row in prices.show(model, provider=provider, at=at, price_list=listed):
            asked = row.conditions
            if asked.hours or asked.weekdays:
                continue
            context = Circumstances(*(getattr(asked, name) for name in Circumstances._fields))
            quoted = card.quote(row.sku_meter, context, at, asked.min_input_tokens + 1).row
            checked += 1
            assert quoted is row or quoted.conditions.hours or quoted.conditions.weekdays
    assert checked > 1000


def test_show_of_an_unknown_model_says_what_to_do():
    with pytest.raises(UnknownModelError, match=r"\[\[prices\]\]"):
        prices.show("gpt-99")


def test_diff_tells_added_rows_from_changed_ones():
    user = parse_prices(
        [
            {"provider": "openai", "model": "gpt-5", "sku_meter": "input", "unit_price": "1"},
            {"provider": "openai", "model": "gpt-5", "sku_meter": "output", "unit_price": "10"},
            {"provider": "acme", "model": "own", "sku_meter": "input", "unit_price": "1"},
        ],
        file="f",
    )
    found = {
        (each.price.model, each.price.sku_meter): (each.kind, each.catalog_unit_price)
        for each in prices.diff(price_list=PriceList.load(user), at="2026-11-20")
        if each.price.origin == "user"
    }
    assert found == {("gpt-5", "input"): ("changed", Decimal("1.25")), ("own", "input"): ("added", None)}


def test_a_price_row_says_who_what_when_and_where_from():
    row = next(row for row in prices.show("gpt-5.4", at="2026-11-20") if row.conditions.service_tier == "flex")
    assert isinstance(row, Price)
    assert row.identity("abcdef1234567890").startswith("openai/gpt-5.4/")
    assert "[service_tier=flex" in row.identity("abcdef1234567890")
    assert row.identity("abcdef1234567890").endswith("@2026-10-12#abcdef123456")
