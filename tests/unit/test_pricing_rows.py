"""Prices, discounts and multipliers as users write them, and how the layers stack."""

import tomllib
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import multiply
from tokenmeter.pricing import PriceList, Pricer, Terms, parse_discounts, parse_multipliers, parse_prices, price
from tokenmeter.pricing.names import undated
from tokenmeter.pricing.price import Multipliers
from tokenmeter.pricing.sheet import without_size
from tokenmeter.usage import Consumption, Observation, Usage

AT = datetime(2026, 11, 20, tzinfo=UTC)
ROW = {"provider": "openai", "model": "gpt-5", "sku_meter": "input", "unit_price": "1.00"}
MILLION = 1_000_000


def one_million(meter="input", model="gpt-5", **context):
    return Observation(consumptions=(Consumption(model=model, usage=Usage({meter: MILLION}), **context),))


def cost(pricer, observation, *, at=AT, provider="openai", endpoint="responses", **who):
    return pricer.rate(observation, provider=provider, endpoint=endpoint, at=at, **who)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"unit_price": "cheap"}, r"field 'unit_price': .*number"),
        ({"unit_price": "-1"}, r"field 'unit_price': must not be negative"),
        ({"unit_price": True}, r"field 'unit_price'"),
        ({"unit_price": None}, r"field 'unit_price'"),
        ({"per": 0}, r"field 'per': must be at least 1"),
        ({"per": "1000"}, r"field 'per': must be a whole number"),
        ({"sku_meter": "inptu"}, r"field 'sku_meter': 'inptu' is no meter"),
        ({"model": ""}, r"field 'model': must be a non-empty text"),
        ({"model": None}, r"field 'model': is missing"),
        ({"price": "1"}, r"field 'price': is unknown; the fields are .*unit_price"),
        ({"effective_from": "someday"}, r"field 'effective_from'"),
        ({"effective_from": 5}, r"field 'effective_from': must be a date"),
        ({"effective_from": "2026-02-01", "effective_to": "2026-01-01"}, r"field 'effective_to': must be later"),
        ({"conditions": "flex"}, r"field 'conditions': must be a table"),
        ({"conditions": {"tier": "flex"}}, r"field 'conditions.tier': is no condition"),
        ({"min_input_tokens": -1}, r"field 'min_input_tokens'"),
        ({"unit_price": "0.00000125"}, r"field 'unit_price': '0.00000125' US dollars cannot be what a million costs"),
        ({"unit_price": 1_250_000}, r"field 'unit_price': 1250000 US dollars cannot be what a million costs"),
        ({"service_tier": "flx"}, r"field 'service_tier': .* did you mean 'flex'"),
        ({"processing": "batches"}, r"field 'processing': .* did you mean 'batch'"),
    ],
)
def test_a_bad_row_is_an_error_that_names_file_row_line_field_and_reason(change, reason):
    with pytest.raises(ConfigurationError, match=r"tokenmeter\.toml: \[\[prices\]\] row 2 \(line 9\), " + reason):
        parse_prices([ROW, {**ROW, **change}], file="tokenmeter.toml", lines=[3, 9])


def test_lines_are_counted_as_editors_count_them(tmp_path):
    file = tmp_path / "prices.toml"
    file.write_text("# a\u2028b\n[[prices]]\nprovider = 3\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"row 1 \(line 2\), field"):
        PriceList.load(user_file=file)


def test_prices_of_ones_own_units_and_modes_pass():
    rows = [{"unit_price": "0"}, {"unit_price": "0.00000125", "per": 1}, {"unit_price": "2", "per": 1}]
    rows += [{"service_tier": name} for name in ("flex", "priority-eu", "gold")] + [{"processing": "overnight"}]
    assert len(parse_prices([{**ROW, **row} for row in rows], file="f.toml")) == len(rows)


def test_rows_that_are_no_tables_are_errors():
    with pytest.raises(ConfigurationError, match=r"array of tables"):
        parse_prices({"provider": "openai"}, file="f.toml")
    with pytest.raises(ConfigurationError, match=r"row 1 must be a table"):
        parse_prices(["openai"], file="f.toml")


def test_a_project_file_is_read_and_its_errors_name_the_line(tmp_path):
    file = tmp_path / "prices.toml"
    file.write_text('# ours\n[[prices]]\nprovider = "openai"\nmodel = "own"\nsku_meter = "input"\nunit_price = 0.1\n')
    found = PriceList.load(user_file=file).find("openai", "own")
    assert found.card.rows[0].unit_price == Decimal("0.1")
    assert found.card.rows[0].origin == "project"
    file.write_text(file.read_text() + "\n[[prices]]\nprovider = 3\n")
    with pytest.raises(ConfigurationError, match=r"row 2 \(line 8\), field"):
        PriceList.load(user_file=file)
    file.write_text("prices = [")
    with pytest.raises(ConfigurationError, match="no valid TOML"):
        PriceList.load(user_file=file)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        PriceList.load(user_file=tmp_path / "none.toml")


def test_the_users_row_beats_the_projects_beats_the_shipped_ones():
    user = parse_prices([{**ROW, "unit_price": "1"}], file="f")
    project = parse_prices([{**ROW, "unit_price": "2"}], file="f", origin="project")
    assert cost(Pricer(PriceList.load((*project, *user))), one_million()).list_cost == 1
    assert cost(Pricer(PriceList.load(project)), one_million()).list_cost == 2
    assert cost(Pricer(PriceList.load()), one_million()).list_cost == Decimal("1.25")


def test_a_dated_row_holds_from_its_first_instant_until_before_its_last():
    rows = parse_prices([{**ROW, "effective_from": "2026-11-01", "effective_to": "2026-12-01"}], file="f")
    pricer = Pricer(PriceList.load(rows))
    for moment, expected in [
        (datetime(2026, 10, 31, 23, 59, 59, 999999, tzinfo=UTC), "1.25"),
        (datetime(2026, 11, 1, tzinfo=UTC), "1"),
        (datetime(2026, 11, 30, 23, 59, 59, 999999, tzinfo=UTC), "1"),
        (datetime(2026, 12, 1, tzinfo=UTC), "1.25"),
    ]:
        assert cost(pricer, one_million(), at=moment).list_cost == Decimal(expected)


def test_a_users_model_of_ones_own_is_priced_with_tiers_and_dates():
    text = """
[[prices]]
provider = "acme"
model = "own-1"
sku_meter = "input"
unit_price = 1.0
[[prices]]
provider = "acme"
model = "own-1"
sku_meter = "input"
unit_price = 2.0
min_input_tokens = 1000
[[prices]]
provider = "acme"
model = "own-1"
sku_meter = "input"
unit_price = 0.5
conditions = { processing = "batch", min_input_tokens = 0 }
"""
    rows = parse_prices(tomllib.loads(text, parse_float=Decimal)["prices"], file="f")
    pricer = Pricer(PriceList.load(rows))
    for context, expected in [
        ({"prompt_tokens": 1000}, "1"),
        ({"prompt_tokens": 1001}, "2"),
        ({"processing": "batch"}, "0.5"),
        ({"processing": "batch", "prompt_tokens": 5000}, "0.5"),
    ]:
        assert cost(pricer, one_million(model="own-1", **context), provider="acme").list_cost == Decimal(expected)
    assert cost(pricer, one_million(model="own-1-2026-01-01"), provider="acme").list_cost == 1
    assert cost(pricer, one_million(model="own-12"), provider="acme").flags == {"unknown_model"}


def test_a_row_about_every_model_of_a_provider_prices_a_tool():
    rows = parse_prices([{**ROW, "model": "*", "sku_meter": "web_searches", "unit_price": "0.008"}], file="f")
    observation = Observation(consumptions=(Consumption(model="gpt-5", usage=Usage({"web_searches": 2})),))
    assert cost(Pricer(PriceList.load(rows)), observation).list_cost == Decimal("0.016")


def search_at(provider, *rows):
    """What one search of gpt-4o costs at `provider` under `rows`: (provider, model, price of one)."""
    parsed = parse_prices(
        [
            {"provider": seller, "model": model, "sku_meter": "web_searches", "unit_price": price}
            for seller, model, price in rows
        ],
        file="f",
    )
    observation = Observation(consumptions=(Consumption(model="gpt-4o", usage=Usage({"web_searches": 1})),))
    return cost(Pricer(PriceList.load(parsed)), observation, provider=provider, endpoint="responses").list_cost


@pytest.mark.parametrize("order", [1, -1])
def test_of_rows_of_one_layer_the_sellers_own_go_first_and_then_those_that_name_the_model(order):
    rows = [("openai", "*", "1"), ("openai", "gpt-4o", "2"), ("azure", "*", "3"), ("azure", "gpt-4o", "4")][::order]
    assert search_at("openai", *rows) == 2
    assert search_at("azure", *rows) == 4
    assert search_at("azure", *[row for row in rows if row[:2] != ("azure", "gpt-4o")]) == 3
    assert search_at("azure", *[row for row in rows if row[0] == "openai"]) == 2


SNAPSHOT = "my-model-2026-01-05"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    "family", [{}, {"effective_from": "2026-11-01"}, {"endpoint": "responses"}, {"min_input_tokens": 10}]
)
@pytest.mark.parametrize("provider", ["openai", "azure"])
def test_a_row_of_a_snapshot_goes_before_one_of_its_family(order, family, provider):
    rows = [{**ROW, "model": SNAPSHOT, "unit_price": "9"}, {**ROW, "model": "my-model", "unit_price": "2", **family}]
    pricer = Pricer(PriceList.load(parse_prices([{**row, "provider": provider} for row in rows[::order]], file="f")))

    def of(model):
        return cost(pricer, one_million(model=model, prompt_tokens=MILLION), provider=provider).list_cost

    assert of(SNAPSHOT) == 9
    assert of("my-model") == 2
    assert of("my-model-2026-03-03") == 2, "a snapshot without a row of its own costs what its family does"


@pytest.mark.parametrize("provider", ["openai", "azure"])
def test_a_snapshot_of_a_listed_family_has_its_own_row_also_where_another_resells_it(provider):
    rows = [{**ROW, "model": "gpt-5-2026-01-05", "unit_price": "9"}, {**ROW, "unit_price": "2"}]
    pricer = Pricer(PriceList.load(parse_prices(rows, file="f")))
    assert cost(pricer, one_million(model="gpt-5-2026-01-05"), provider=provider).list_cost == 9
    assert cost(pricer, one_million(model="gpt-5"), provider=provider).list_cost == 2


def test_each_shipped_row_of_a_snapshot_is_what_a_call_to_it_pays():
    pricer = Pricer(PriceList.load())
    rows = [row for row in pricer.price_list.own_rows if undated(row.model) and row.holds(AT)]
    assert {"gpt-4o-audio-preview-2024-10-01", "gpt-4o-2024-05-13"} <= {row.model for row in rows}
    for row in rows:
        asked = one_million(row.sku_meter, row.model, prompt_tokens=row.conditions.min_input_tokens + 1)
        (charge,) = cost(pricer, asked, provider=row.provider).charges
        assert charge.list_cost == multiply(row.per_unit, MILLION), row
        assert without_size(charge.price_id) == row.identity(pricer.price_list.hash)


def test_what_is_shipped_for_a_seller_goes_before_its_makers_rows():
    assert search_at("azure") == Decimal("0.014")
    assert search_at("openai") == Decimal("0.01")
    assert search_at("azure", ("openai", "gpt-4o", "2")) == 2, "what the user says goes before all that is shipped"


def test_a_row_for_one_region_or_endpoint_replaces_the_regions_multiplier():
    rows = parse_prices(
        [
            {**ROW, "model": "gpt-6-sol", "unit_price": "9", "region": "eu"},
            {**ROW, "model": "gpt-6-sol", "unit_price": "7", "endpoint": "chat.completions"},
        ],
        file="f",
    )
    pricer = Pricer(PriceList.load(rows))
    assert cost(pricer, one_million(model="gpt-6-sol", region="eu", prompt_tokens=1)).list_cost == 9
    assert cost(pricer, one_million(model="gpt-6-sol", region="in", prompt_tokens=1)).list_cost == Decimal("2.2")
    chat = cost(pricer, one_million(model="gpt-6-sol", prompt_tokens=1), endpoint="chat.completions")
    assert chat.list_cost == 7


def test_a_discount_lowers_the_contracted_cost_and_the_most_specific_one_wins():
    discounts = parse_discounts(
        [
            {"factor": "0.9", "provider": "openai"},
            {"factor": "0.8", "provider": "openai", "model": "gpt-5"},
            {"factor": "0.5", "provider": "openai", "model": "gpt-5", "sku_meter": "output"},
            {"factor": "0.7", "model": "gpt-5", "effective_from": "2027-01-01", "provider": "openai"},
        ],
        file="f",
    )
    pricer = Pricer(PriceList.load(), Terms(discounts=discounts))
    rating = cost(pricer, one_million())
    assert (rating.list_cost, rating.contracted_cost, rating.billed_cost) == (Decimal("1.25"), 1, 1)
    assert dict(rating.charges[0].multipliers) == {"discount": Decimal("0.8")}
    assert cost(pricer, one_million("output")).contracted_cost == 5
    assert cost(pricer, one_million(model="gpt-5-mini")).contracted_cost == Decimal("0.225")
    assert cost(pricer, one_million(), at=datetime(2027, 2, 1, tzinfo=UTC)).contracted_cost == Decimal("0.875")


def test_the_platform_multiplier_of_the_most_specific_scope_applies_and_is_shown():
    multipliers = parse_multipliers(
        [
            {"factor": "1.05"},
            {"multiplier": "1.10", "team": "search"},
            {"factor": "1.20", "member": "ada"},
            {"factor": "1.30", "member": "ada", "model": "gpt-5"},
            {"factor": "1.50", "api_key": "prod"},
            {"factor": "1.02", "effective_from": "2027-01-01"},
        ],
        file="f",
    )
    pricer = Pricer(PriceList.load(), Terms(multipliers=multipliers))

    def factor(**who):
        rating = cost(pricer, one_million(model=who.pop("model", "gpt-5-mini")), **who)
        assert rating.list_cost == rating.contracted_cost
        assert rating.billed_cost == multiply(rating.contracted_cost, rating.charges[0].multipliers["platform"])
        return rating.charges[0].multipliers["platform"]

    assert factor() == Decimal("1.05")
    assert factor(at=datetime(2027, 1, 1, tzinfo=UTC)) == Decimal("1.02")
    assert factor(attribution=Attribution(team="search")) == Decimal("1.10")
    assert factor(attribution=Attribution(team="search", member="ada")) == Decimal("1.20")
    assert factor(attribution=Attribution(member="ada"), model="gpt-5") == Decimal("1.30")
    assert factor(attribution=Attribution(member="ada"), model="gpt-5-2025-08-07") == Decimal("1.30")
    key = ApiKey("f" * 32, "1234", "prod")
    assert factor(attribution=Attribution(member="ada"), api_key=key) == Decimal("1.50")


def test_a_call_looks_at_those_multipliers_that_may_be_its_own(monkeypatch):
    rows = [{"multiplier": "1.10"}, {"multiplier": "1.20", "model": "GPT-5-mini", "team": "ads"}]
    rows += [{"multiplier": f"2.{number:03d}", "member": f"member-{number}"} for number in range(1000)]
    looked, holds = [], price._holds
    monkeypatch.setattr(price, "_holds", lambda rule, at: looked.append(rule) or holds(rule, at))
    multipliers = Multipliers(parse_multipliers(rows, file="tokenmeter.toml"))
    for who, factor in [({"member": "member-7"}, "2.007"), ({"team": "ads"}, "1.20"), ({}, "1.10")]:
        call = {"provider": "openai", "models": ("gpt-5-mini",), "at": AT, "api_key": None}
        assert multipliers.factor(**call, attribution=Attribution(**who)) == Decimal(factor)
    assert len(looked) < 10


@pytest.mark.parametrize(
    ("parse", "row", "reason"),
    [
        (parse_discounts, {"factor": "20"}, r"field 'factor': is what is left of the price .*, not '20'"),
        (parse_discounts, {"provider": "openai"}, "field 'factor': is missing"),
        (parse_discounts, {"factor": "0.9", "meter": "input"}, "field 'meter': is unknown"),
        (parse_multipliers, {"factor": "x"}, "field 'factor'"),
        (parse_multipliers, {"member": "ada"}, "field 'multiplier': is missing"),
        (parse_multipliers, {"factor": "1.1", "user": "ada"}, "field 'user': is unknown"),
    ],
)
def test_bad_discounts_and_multipliers_are_errors_too(parse, row, reason):
    with pytest.raises(ConfigurationError, match=r"f: \[\[\w+\]\] row 1, " + reason):
        parse([row], file="f")


@pytest.mark.parametrize(
    ("parse", "row"), [(parse_discounts, {"factor": "0.8"}), (parse_multipliers, {"multiplier": "1.1"})]
)
def test_a_field_that_would_be_thrown_away_is_refused(parse, row):
    assert parse([row], file="terms.toml")
    with pytest.raises(ConfigurationError, match="field 'name': is unknown"):
        parse([{**row, "name": "Enterprise agreement"}], file="terms.toml")


def test_a_row_for_every_model_prices_the_tokens_of_models_that_no_list_has():
    """As those of a machine of one's own; what a row names goes before it, and other providers' stay unknown."""
    rows = [
        {**ROW, "provider": "ollama", "model": model, "sku_meter": meter, "unit_price": price, "per": 1}
        for model, price in (("*", "2"), ("llama3:8b", "3"))
        for meter in ("input", "output")
    ]
    pricer = Pricer(PriceList.load(parse_prices(rows, file="f")))
    costs = {model: cost(pricer, one_million(model=model), provider="ollama") for model in ("llama3:8b", "Qwen-Next")}
    assert (costs["llama3:8b"].list_cost, costs["Qwen-Next"].list_cost) == (3_000_000, 2_000_000)
    assert costs["Qwen-Next"].flags == frozenset()
    assert cost(pricer, one_million(model="gpt-77"), provider="openai").flags == {"unknown_model"}
    tools = parse_prices([{**ROW, "provider": "ollama", "model": "*", "sku_meter": "web_searches"}], file="f")
    assert PriceList.load(tools).find("ollama", "qwen") is None


def test_a_pattern_in_the_place_of_a_model_is_refused():
    with pytest.raises(ConfigurationError, match="patterns are not read"):
        parse_prices([{**ROW, "model": "llama3*"}], file="f")
