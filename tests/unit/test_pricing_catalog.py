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
