"""The consoles' own files, as they come: display names, cents, credits, tax, currencies, empty months."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tokenmeter.attribution import Attribution
from tokenmeter.errors import ReconciliationError
from tokenmeter.ledger import Charge, Entry, new_id
from tokenmeter.reconciliation import reconcile
from tokenmeter.reconciliation.anthropic import model_id
from tokenmeter.reconciliation.names import family_of
from tokenmeter.stores import open_store
from tokenmeter.usage import Usage

NOW = datetime(2027, 1, 1, tzinfo=UTC)
COSTS = (
    "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,list_price_usd,cost_type,"
    "inference_geo,speed,api_key_id,api_key_status\n"
)
USAGE = (
    "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,"
    "usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,"
    "usage_output_tokens,web_search_count,inference_geo,speed\n"
)
OPENAI = (
    "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,quantity,quantity_unit,line_item,"
    "user_id,api_key_id,project_id,organization_id,project_name,organization_name,user_email,api_source\n"
)


@pytest.fixture
def store():
    opened = open_store("memory:")
    yield opened
    opened.close()


@pytest.fixture
def record(store):
    """One call: `record("claude-haiku-4-5-20251001", at="2026-10-01T09:00", input=(1_000_000, "1.00"))`."""

    def call(model, *, at, provider="anthropic", tier=None, project=None, **meters):
        charges = tuple(
            Charge(
                model=model,
                sku_meter=meter,
                quantity=count,
                unit="Tokens",
                list_unit_price=None,
                list_cost=Decimal(cost),
                contracted_cost=Decimal(cost),
                billed_cost=Decimal(cost),
                price_id=f"x[processing={tier}]@2026" if tier == "batch" else None,
            )
            for meter, (count, cost) in meters.items()
        )
        total = sum((charge.billed_cost for charge in charges), Decimal(0))
        store.settle(
            Entry(
                occurred_at=datetime.fromisoformat(at).replace(tzinfo=UTC),
                provider=provider,
                endpoint="messages",
                operation="chat",
                response_model=model,
                service_tier=tier,
                attribution=Attribution(project=project),
                usage=Usage({meter: count for meter, (count, _) in meters.items()}),
                charges=charges,
                list_cost=total,
                contracted_cost=total,
                billed_cost=total,
                cost_source="computed",
            )
        )

    return call


@pytest.fixture
def compare(store, tmp_path):
    """Reconcile October with files of these names and texts."""

    def run(files, *, provider="anthropic", **options):
        paths = []
        for name, text in files.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
            paths.append(tmp_path / name)
        given = {"period": "2026-10", "now": NOW, **options}
        return reconcile(store, provider=provider, source=paths, **given)

    return run


def haiku(day, token_type, cost, *, model="Claude Haiku 4.5", workspace="Default", cost_type="token"):
    about = f"{day},{model},{workspace},prod,message,≤ 200k"
    return f"{about},{token_type},{cost},{cost},{cost_type},global,,apikey_1,active\n"


def test_identical_books_in_the_consoles_names_and_cents_have_nothing_to_propose(record, compare):
    record("claude-haiku-4-5-20251001", at="2026-10-01T09:00", input=(1_000_000, "1.00"), output=(100_000, "0.50"))
    record("claude-sonnet-4-5-20250929", at="2026-10-02T09:00", input=(500_000, "0.75"), output=(50_000, "0.375"))
    costs = COSTS + "".join([
        haiku("2026-10-01", "input_no_cache", "1.00"),
        haiku("2026-10-01", "output", "0.50"),
        haiku("2026-10-02", "input_no_cache", "0.75", model="Claude Sonnet 4.5"),
        haiku("2026-10-02", "output", "0.38", model="Claude Sonnet 4.5"),
    ])  # fmt: skip
    outcome = compare({"claude_api_cost.csv": "\ufeff" + costs})
    assert [one.cause for one in outcome.discrepancies] == ["rounding"]
    assert (outcome.ok, outcome.proposals, outcome.coverage) == (True, (), 100)


def test_usage_and_cost_files_together_and_batches_apart(record, compare):
    record("claude-haiku-4-5-20251001", at="2026-10-01T09:00", input=(1_000, "1.00"), output=(100, "0.50"))
    record("claude-haiku-4-5-20251001", at="2026-10-01T10:00", tier="batch", input=(700, "0.35"))
    usage = USAGE + (
        "2026-10-01,claude-haiku-4-5-20251001,prod,Default,standard,≤ 200k,1000,0,0,0,100,0,global,\n"
        "2026-10-01,claude-haiku-4-5-20251001,prod,Default,batch,≤ 200k,700,0,0,0,0,0,global,\n"
    )
    outcome = compare({"usage.csv": usage}, by=["model", "service_tier"])
    assert (outcome.compared, outcome.discrepancies) == (2, ())
    costs = COSTS + haiku("2026-10-01", "input_no_cache", "1.35") + haiku("2026-10-01", "output", "0.50")
    outcome = compare({"usage.csv": usage, "costs.csv": costs})
    assert outcome.discrepancies == ()


@pytest.mark.parametrize(
    "usage",
    [
        (
            "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,"
            "usage_input_tokens_cache_write,usage_input_tokens_cache_read,usage_output_tokens\n"
            "2026-10-01,claude-haiku-4-5-20251001,prod,Default,standard,≤ 200k,1000,30,20,100\n"
        ),
        (
            "usage_date_utc,model_version,api_key,workspace,usage_type,usage_input_tokens_no_cache,usage_output_tokens\n"
            '2026-10-01,claude-haiku-4-5-20251001,prod,Default,standard,"1,000",100\n'
        ),
    ],
    ids=["one cache column", "none"],
)
def test_older_generations_of_the_export_are_read(record, compare, usage):
    record(
        "claude-haiku-4-5-20251001",
        at="2026-10-01T09:00",
        input=(1000, "1"),
        cache_write_5m=(30, "0"),
        cache_read=(20, "0"),
        output=(100, "0.5"),
    )
    assert compare({"usage.csv": usage}).discrepancies == ()


def test_books_that_name_other_models_are_never_proposed(record, compare):
    record("house-model-7", at="2026-10-01T09:00", input=(1_000, "2.00"))
    outcome = compare({"costs.csv": COSTS + haiku("2026-10-01", "input_no_cache", "3.00")})
    assert {one.cause for one in outcome.discrepancies} == {"names"}
    assert (outcome.proposals, outcome.ok) == ((), False)


def test_one_model_under_two_names_among_others_is_not_proposed(record, compare):
    record("claude-haiku-4-5-20251001", at="2026-10-01T09:00", input=(1_000, "1.00"))
    record("our-name-for-it", at="2026-10-01T09:00", input=(900, "2.00"))
    costs = COSTS + haiku("2026-10-01", "input_no_cache", "1.00")
    costs += haiku("2026-10-01", "input_no_cache", "2.00", model="Claude Special")
    outcome = compare({"costs.csv": costs})
    assert [one.cause for one in outcome.discrepancies] == ["names", "names"]
    assert outcome.proposals == ()


def test_the_table_is_headed_by_what_it_is_split_by_and_has_no_tokens_where_none_are_told(record, compare):
    record("claude-haiku-4-5-20251001", at="2026-10-01T09:00", project="lab", input=(1_000, "2.00"))
    costs = COSTS + haiku("2026-10-01", "input_no_cache", "2.50", workspace="Lab")
    lines = str(compare({"costs.csv": costs}, by="model,workspace", projects={"Lab": "lab"})).splitlines()
    heading = next(number for number, line in enumerate(lines) if line.startswith("day "))
    assert lines[heading].split() == ["day", "model", "project", "cause", "tokens", "USD"]
    assert lines[heading + 1].split()[-2:] == ["-", "0.500000000000"]
    assert lines[heading].index("cause") == lines[heading + 1].index("price")


def test_a_name_of_ours_stands_for_one_of_theirs(record, compare):
    record("claude-haiku-4-5-20251001", at="2026-10-01T09:00", input=(1_000, "1.00"))
    record("our-name-for-it", at="2026-10-01T09:00", input=(900, "2.00"))
    costs = COSTS + haiku("2026-10-01", "input_no_cache", "1.00")
    costs += haiku("2026-10-01", "input_no_cache", "2.00", model="Claude Special")
    costs += haiku("2026-10-01", "input_no_cache", "2.00", model="Claude Unusual")
    outcome = compare({"costs.csv": costs})
    assert sorted(one.cause for one in outcome.discrepancies) == ["names", "names", "unrecorded"]
    assert [one.amount for one in outcome.proposals] == [2]


def test_rounding_needs_both_sides(record, compare):
    record("claude-haiku-4-5-20251001", at="2026-10-01T09:00", input=(10, "0.003"))
    record("claude-haiku-4-5-20251001", at="2026-10-02T09:00", input=(10, "5.00"))
    outcome = compare({"costs.csv": COSTS + haiku("2026-10-02", "input_no_cache", "5.00")})
    assert [one.cause for one in outcome.discrepancies] == ["unbilled"]


def test_a_statement_that_was_cut_off_does_not_say_that_the_rest_cost_nothing(record, compare):
    for day in range(1, 9):
        record("claude-haiku-4-5-20251001", at=f"2026-10-{day:02}T09:00", input=(1_000, "1.00"))
    rows = [haiku(f"2026-10-{day:02}", "input_no_cache", "1.00") for day in range(3, 7) if day != 5]
    outcome = compare({"costs.csv": COSTS + "".join(rows)})
    assert [(one.bucket.day.day, one.cause) for one in outcome.discrepancies] == [
        *((day, "partial") for day in (1, 2)),
        (5, "unbilled"),
        *((day, "partial") for day in (7, 8)),
    ]
    assert [one.amount for one in outcome.proposals] == [Decimal("-1.00")]
    assert not outcome.ok


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (range(3, 9), [(1, "partial"), (2, "partial"), (3, "partial")]),
        (range(1, 6), [(5, "partial"), (6, "partial"), (7, "partial"), (8, "partial")]),
        (range(1, 9), [(8, "price")]),  # nothing shows that it was cut off
    ],
    ids=["its beginning", "its end", "neither"],
)
def test_what_a_day_lacks_in_which_a_statement_was_cut_off_is_not_proposed(record, compare, days, expected):
    """A line is gone of the last day that the statement has, or of the first: what was cut off went amid that day."""
    for day in range(1, 9):
        record("claude-haiku-4-5-20251001", at=f"2026-10-{day:02}T09:00", input=(1_000, "1.00"), output=(100, "0.50"))
    cut = days[0] if days[0] > 1 else days[-1]
    rows = [haiku(f"2026-10-{day:02}", "input_no_cache", "1.00") for day in days]
    rows += [haiku(f"2026-10-{day:02}", "output", "0.50") for day in days if day != cut]
    outcome = compare({"costs.csv": COSTS + "".join(rows)})
    assert [(one.bucket.day.day, one.cause) for one in outcome.discrepancies] == expected
    assert bool(outcome.proposals) == (expected == [(8, "price")])
    # More than the ledger has is no want of rows: that is proposed on the same day.
    dearer = haiku(f"2026-10-{cut:02}", "output", "2.00")
    found = compare({"costs.csv": COSTS + "".join(rows) + dearer})
    assert [one.amount for one in found.proposals] == [Decimal("1.50")]


def test_rows_that_stand_twice_in_one_file_are_not_proposed(record, compare):
    record("claude-haiku-4-5-20251001", at="2026-10-01T09:00", input=(1_000, "1.00"))
    record("claude-haiku-4-5-20251001", at="2026-10-02T09:00", input=(1_000, "2.00"))
    once = haiku("2026-10-01", "input_no_cache", "1.00")
    outcome = compare({"costs.csv": COSTS + once + once + haiku("2026-10-02", "input_no_cache", "5.00")})
    assert [(one.cause, one.amount) for one in outcome.discrepancies] == [("repeated", 1), ("price", 3)]
    assert [one.amount for one in outcome.proposals] == [3]
    assert "word for word" in outcome.notes[0]


@pytest.mark.parametrize(
    ("days", "causes"),
    [
        (("10/01/2026", "10/31/2026"), []),
        (("01/10/2026", "31/10/2026"), []),
        (("1/10/2026 00:00", "31/10/2026 00:00"), []),
    ],
    ids=["month-first", "day-first", "with-times"],
)
def test_dates_with_slashes_are_read_as_the_whole_column_tells(record, store, tmp_path, days, causes):
    for day in ("01", "31"):
        record("gpt-5", at=f"2026-10-{day}T09:00", provider="azure", input=(1_000_000, "1.25"))
    path = tmp_path / "azure.csv"
    path.write_text("Date,Cost\n" + "".join(f"{day},1.25\n" for day in days))
    columns = {"day": "Date", "cost": "Cost"}
    outcome = reconcile(store, provider="azure", period="2026-10", source=path, columns=columns, now=NOW)
    assert [one.cause for one in outcome.discrepancies] == causes


def test_a_date_with_slashes_that_nothing_tells_is_refused(store, tmp_path):
    path = tmp_path / "azure.csv"
    path.write_text("Date,Cost\n10/01/2026,1.25\n")
    with pytest.raises(ReconciliationError, match="no row tells whether its days or its months stand first"):
        reconcile(store, provider="azure", period="2026-10", source=path, columns={"day": "Date", "cost": "Cost"})


@pytest.mark.parametrize(
    ("item", "amount", "cause"),
    [
        ("Promotional credit", "-5.00", "credit"),
        ("Grant, October", "-5.00", "credit"),
        ("VAT 19%", "0.95", "tax"),
        ("Tax, VAT", "0.95", "tax"),
        ("Refund for incident", "-2.00", "refund"),
        ("Support plan", "100.00", "fee"),
        ("ChatGPT seats", "30.00", "fee"),
        ("Rounding", "0.01", "fee"),
        ("Umsatzsteuer 19 %", "0.24", "tax"),
        ("TVA 20 %", "0.25", "tax"),
        ("IVA", "0.26", "tax"),
        ("消費税 10%", "0.13", "tax"),
        ("Gutschrift Störung", "-1.00", "credit"),
        ("Crédito promocional", "-1.00", "credit"),
        ("Rückerstattung", "-1.00", "refund"),
        ("Remboursement d'octobre", "-1.00", "refund"),
        ("退款", "-1.00", "refund"),
        ("Bearbeitungsgebühr", "2.00", "fee"),
        ("Frais de service", "2.00", "fee"),
    ],
)
def test_what_is_no_traffic_is_a_cause_of_its_own_and_never_proposed(record, compare, item, amount, cause):
    record("gpt-5", at="2026-10-01T09:00", provider="openai", input=(1_000_000, "1.25"))
    rows = (
        '1790812800,1790899200,,,1.25,usd,1000000,tokens,"gpt-5-2025-08-07, input",,key_1,proj_a,,,,,\n'
        f'1790812800,1790899200,,,{amount},usd,,,"{item}",,,,,,,,\n'
    )
    outcome = compare({"cost.csv": OPENAI + rows}, provider="openai")
    assert [(one.cause, one.amount) for one in outcome.discrepancies] == [(cause, Decimal(amount))]
    assert (outcome.proposals, outcome.difference) == ((), Decimal(amount))
    assert outcome.ok


@pytest.mark.parametrize("item", ["web search, container", "Austausch", "custom speech", "file storage"])
def test_traffic_that_names_no_model_is_no_tax(record, compare, item):
    row = f'1790812800,1790899200,,,0.25,usd,,,"{item}",,,,,,,,\n'
    (found,) = compare({"cost.csv": OPENAI + row}, provider="openai").discrepancies
    assert found.cause == "unrecorded"


@pytest.mark.parametrize("ends", ["Total", "Summe", "GRAND TOTAL", "合計"])
def test_a_row_of_sums_and_rows_of_nothing_are_no_days(record, compare, ends):
    record("claude-haiku-4-5-20251001", at="2026-10-01T09:00", input=(1_000_000, "1.00"))
    text = COSTS + haiku("2026-10-01", "input_no_cache", "1.00") + haiku(ends, "", "1.00", model="", cost_type="")
    outcome = compare({"cost.csv": text + "\n" + "," * 13 + "\n"})
    assert (outcome.discrepancies, outcome.theirs.cost) == ((), 1)
    assert "1 row of sums was left out." in outcome.notes


def test_a_row_of_sums_without_a_day_is_known_by_what_it_is_for(record, compare):
    record("gpt-5", at="2026-10-01T09:00", provider="openai", input=(1_000_000, "1.25"))
    row = '1790812800,1790899200,,,1.25,usd,1000000,tokens,"gpt-5-2025-08-07, input",,key_1,proj_a,,,,,\n'
    outcome = compare({"cost.csv": OPENAI + row + ",,,,1.25,usd,,,Total:,,,,,,,,\n"}, provider="openai")
    assert (outcome.discrepancies, outcome.theirs.cost) == ((), Decimal("1.25"))
    assert "1 row of sums was left out." in outcome.notes
    # A project of that name has its days.
    named = row.replace("proj_a", "Total")
    assert compare({"cost.csv": OPENAI + named}, provider="openai").theirs.cost == Decimal("1.25")


def test_a_row_that_names_no_amount_is_not_zero_but_missing(record, compare):
    record("gpt-5", at="2026-10-01T09:00", provider="openai", input=(1_000_000, "1.25"))
    rows = (
        '1790812800,1790899200,,,1.25,usd,1000000,tokens,"gpt-5-2025-08-07, input",,key_1,proj_a,,,,,\n'
        '1790812800,1790899200,,,,usd,1000000,tokens,"gpt-5-2025-08-07, output",,key_1,proj_a,,,,,\n'
    )
    outcome = compare({"cost.csv": OPENAI + rows}, provider="openai")
    assert outcome.discrepancies == ()
    assert "1 row says what for, and no amount; it is missing in the statement's cost." in outcome.notes


@pytest.mark.parametrize("unit", [1000, 1_000_000, 1_000_000_000])
def test_times_in_thousandths_and_exports_without_seconds_are_read(record, compare, unit):
    record("gpt-5", at="2026-10-01T09:00", provider="openai", input=(1_000_000, "1.25"))
    row = f'{1790812800 * unit},{1790899200 * unit},,,1.25,usd,,,"gpt-5-2025-08-07, input",,,,,,,,\n'
    assert compare({"cost.csv": OPENAI + row}, provider="openai").discrepancies == ()
    iso = "start_time_iso,end_time_iso,amount_value,amount_currency,line_item\n"
    iso += '2026-10-01T00:00:00+00:00,2026-10-02T00:00:00+00:00,1.25,usd,"gpt-5-2025-08-07, input"\n'
    assert compare({"iso.csv": iso}, provider="openai").discrepancies == ()


@pytest.mark.parametrize(
    ("heading", "amount", "currency"),
    [
        *(("Cost", "€1.25", "EUR"), ("Cost", "1,25 €", "EUR"), ("Kosten (EUR)", "1,25", "EUR")),
        *(("cost_gbp", "1.25", "GBP"), ("Cost in CHF", "1.25", "CHF"), ("Price £", "1.25", "GBP")),
    ],
    ids=lambda told: str(told).encode("ascii", "backslashreplace").decode(),
)
def test_a_currency_in_the_amount_or_its_heading_is_not_read_as_dollars(record, compare, heading, amount, currency):
    record("m", at="2026-10-01T09:00", provider="azure", input=(1_000, "2.50"))
    told = {"provider": "azure", "columns": {"day": "Day", "cost": heading}}
    files = {"bill.csv": f"Day;{heading}\n2026-10-01;{amount}\n"}
    with pytest.raises(ReconciliationError, match=f"is in {currency}"):
        compare(files, **told)
    assert compare(files, **told, exchange_rates={currency: "2"}).discrepancies == ()


@pytest.mark.parametrize("heading", ["Cost in USD", "cost", "Surcharge", "Europe cost", "Cost ($)"])
def test_a_heading_that_names_no_other_currency_is_dollars(record, compare, heading):
    record("m", at="2026-10-01T09:00", provider="azure", input=(1_000, "1.25"))
    files = {"bill.csv": f"Day,{heading}\n2026-10-01,$1.25\n"}
    assert compare(files, provider="azure", columns={"day": "Day", "cost": heading}).discrepancies == ()


@pytest.mark.parametrize(
    ("name", "amount", "cause"),
    [
        ("Refund", "-0.90", "refund"),
        ("VAT 19 %", "0.24", "tax"),
        ("Credit grant", "-5", "credit"),
        ("Support", "9", "fee"),
        ("sales_tax", "1", "tax"),
        ("platform_fee", "3", "fee"),
        ("support_plan", "9", "fee"),
        ("service-fee", "0.5", "fee"),
        ("prepaid_credits", "-5", "credit"),
    ],
)
def test_what_is_no_traffic_is_told_where_a_map_has_it_among_the_models(record, compare, name, amount, cause):
    record("gpt-5", at="2026-10-01T09:00", provider="openai", input=(1_000_000, "1.25"))
    rows = f"Day,Model,Input,Cost\n2026-10-01,gpt-5,1000000,1.25\n2026-10-01,{name},0,{amount}\n"
    columns = {"day": "Day", "model": "Model", "input": "Input", "cost": "Cost"}
    outcome = compare({"cost.csv": rows}, provider="openai", columns=columns)
    assert [(one.cause, one.amount) for one in outcome.discrepancies] == [(cause, Decimal(amount))]
    assert (outcome.proposals, outcome.ok) == ((), True)


#: Names of models with words in them that are fees, taxes and credits elsewhere.
WORDY = [
    *("ft:gpt-4o-mini-2024-07-18:acme:support:AbC123", "ft:gpt-4o:acme, inc:tax desk:AbC"),
    *("support-bot", "credit_7b", "refund.v2", "acme/iva", "tax", "Seats", "acme grant helper"),
]


@pytest.mark.parametrize("model", WORDY)
def test_a_model_whose_name_has_the_word_of_a_fee_is_a_model_in_a_column_of_models(record, compare, model):
    record(model, at="2026-10-01T09:00", provider="openai", input=(1_000_000, "1.25"))
    rows = f'Day,Model,Input,Cost\n2026-10-01,"{model}",1000000,1.25\n2026-10-01,VAT 19 %,0,0.24\n'
    columns = {"day": "Day", "model": "Model", "input": "Input", "cost": "Cost"}
    outcome = compare({"cost.csv": rows}, provider="openai", columns=columns)
    assert [(one.cause, one.amount) for one in outcome.discrepancies] == [("tax", Decimal("0.24"))]
    assert (outcome.proposals, outcome.ok) == ((), True)


@pytest.mark.parametrize("model", WORDY)
def test_a_model_whose_name_has_the_word_of_a_fee_is_a_model_in_a_line_item(record, compare, model):
    record(model, at="2026-10-01T09:00", provider="openai", input=(1_000_000, "1.25"))
    rows = f'1790812800,1790899200,,,1.25,usd,1000000,tokens,"{model}, input",,key_1,proj_a,,,,,\n'
    assert compare({"cost.csv": OPENAI + rows}, provider="openai").discrepancies == ()


def test_a_model_that_is_called_as_a_fee_and_nobody_called_is_told_by_its_translation(compare):
    """Without a call of it in the ledger its name says a fee, and what it cost is proposed by nobody."""
    rows = "Day,Model,Cost\n2026-10-01,Support,1.25\n"
    given = {"provider": "openai", "columns": {"day": "Day", "model": "Model", "cost": "Cost"}}
    assert [one.cause for one in compare({"cost.csv": rows}, **given).discrepancies] == ["fee"]
    (found,) = compare({"cost.csv": rows}, **given, models={"Support": "gpt-5"}).discrepancies
    assert (found.cause, found.bucket.model, found.amount) == ("unrecorded", "gpt-5", Decimal("1.25"))


def test_a_fee_beside_the_costs_takes_no_tool_out_of_its_model(record, store, compare):
    """A search that the statement bills within its model is compared there, though a line of tax names no model."""
    record("gpt-5", at="2026-10-01T09:00", provider="openai", input=(1_000_000, "1.25"))
    search = Charge(
        model="gpt-5",
        sku_meter="web_searches",
        quantity=1,
        unit="Searches",
        list_unit_price=Decimal("0.01"),
        list_cost=Decimal("0.01"),
        contracted_cost=Decimal("0.01"),
        billed_cost=Decimal("0.01"),
    )
    (call,) = store.entries()
    costs = dict.fromkeys(("list_cost", "contracted_cost", "billed_cost"), Decimal("0.01"))
    store.settle(replace(call, entry_id=new_id(), usage=Usage(), charges=(search,), **costs))
    rows = "Day,Model,Cost\n2026-10-01,gpt-5,1.26\n2026-10-01,VAT 19 %,0.24\n"
    outcome = compare({"cost.csv": rows}, provider="openai", columns={"day": "Day", "model": "Model", "cost": "Cost"})
    assert [(one.cause, one.amount) for one in outcome.discrepancies] == [("tax", Decimal("0.24"))]


def test_another_currency_needs_a_rate(record, compare):
    record("gpt-5", at="2026-10-01T09:00", provider="openai", input=(1_000_000, "1.25"))
    row = '1790812800,1790899200,,,1.00,eur,1000000,tokens,"gpt-5, input_tokens",,,,,,,,\n'
    with pytest.raises(ReconciliationError, match="line 2: the amount is in EUR"):
        compare({"cost.csv": OPENAI + row}, provider="openai")
    outcome = compare({"cost.csv": OPENAI + row}, provider="openai", exchange_rates={"EUR": "1.25", "GBP": "1.3"})
    assert outcome.discrepancies == ()
    # A reader can do it again, and a rate that was of no use is not taken for one that was.
    assert "EUR at 1.25: 1 amount over 1.00 EUR is 1.2500 USD." in str(outcome)
    assert "No amount is in GBP: its rate was not used." in outcome.notes


SHOP = (
    '1790812800,1790899200,,,1.25,usd,1000000,tokens,"gpt-5, input",,key_1,proj_a,org,Shop,,,\n'
    '1790812800,1790899200,,,0.50,usd,400000,tokens,"gpt-5, input",,key_1,proj_b,org,Lab,,,\n'
)


@pytest.mark.parametrize("theirs", ["Shop", "proj_a"])
def test_a_project_is_translated_by_the_name_that_people_see_or_its_id(record, compare, theirs):
    record("gpt-5", at="2026-10-01T09:00", provider="openai", project="shop", input=(1_000_000, "1.25"))
    record("gpt-5", at="2026-10-01T09:00", provider="openai", project="Lab", input=(400_000, "0.50"))
    told = {"provider": "openai", "by": ("model", "project"), "projects": {theirs: "shop"}}
    outcome = compare({"cost.csv": OPENAI + SHOP}, **told)
    assert (outcome.discrepancies, outcome.notes) == ((), ())


def test_a_project_that_the_ledger_knows_by_its_id_stays_that(record, compare):
    record("gpt-5", at="2026-10-01T09:00", provider="openai", project="proj_a", input=(1_000_000, "1.25"))
    record("gpt-5", at="2026-10-01T09:00", provider="openai", project="Lab", input=(400_000, "0.50"))
    outcome = compare({"cost.csv": OPENAI + SHOP}, provider="openai", by=("model", "project"))
    assert outcome.discrepancies == ()


def test_a_translation_of_nothing_is_told(record, compare):
    record("gpt-5", at="2026-10-01T09:00", provider="openai", project="Shop", input=(1_000_000, "1.25"))
    told = {"provider": "openai", "by": ("model", "project")}
    outcome = compare(
        {"cost.csv": OPENAI + SHOP},
        **told,
        projects={"Shopp": "shop"},
        models={"gpt5": "gpt-5"},
        keys={"key_1": "prod"},
    )
    assert outcome.notes == (
        "keys: 'key_1' translates nothing: the statement is not split by api_key (by=, --by).",
        "models: 'gpt5' stands nowhere in the statement, which has gpt-5.",
        "projects: 'Shopp' stands nowhere in the statement, which has proj_a (Shop), proj_b (Lab).",
    )


def test_a_month_without_use_is_zero(record, compare):
    empty = "start_time,end_time,start_time_iso,end_time_iso\n1790812800,1790899200,,\n"
    assert compare({"cost.csv": empty}, provider="openai").theirs.cost == 0
    record("gpt-5", at="2026-10-01T09:00", provider="openai", input=(10, "1"))
    outcome = compare({"cost.csv": empty}, provider="openai")
    assert ([one.cause for one in outcome.discrepancies], outcome.proposals) == (["empty"], ())
    assert not outcome.ok
    full = OPENAI + "1790812800,1790899200,,,,,,,,,,,,,,,\n"
    assert compare({"cost.csv": full}, provider="openai").theirs.cost == 0


def test_costs_that_are_all_missing_beside_counts_are_not_taken_for_nothing(record, compare):
    """A usage file, and an empty file of costs: that a month of traffic was free is not what they say."""
    record("claude-haiku-4-5-20251001", at="2026-10-01T09:00", input=(1_000, "1.00"))
    record("claude-haiku-4-5-20251001", at="2026-10-02T09:00", input=(900, "2.00"))
    rows = "".join(
        f"2026-10-{day},claude-haiku-4-5-20251001,prod,Default,standard,≤ 200k,{tokens},0,0,0,0,0,global,\n"
        for day, tokens in (("01", 1_000), ("02", 950))
    )
    outcome = compare({"usage.csv": USAGE + rows, "costs.csv": COSTS})
    assert [(one.cause, one.amount) for one in outcome.discrepancies] == [("empty", Decimal(-1)), ("unrecorded", None)]
    assert (outcome.proposals, outcome.ok) == ((), False)
    assert "only tokens were compared" in str(outcome)


def test_counts_that_are_all_missing_beside_costs_leave_the_costs(record, compare):
    record("claude-haiku-4-5-20251001", at="2026-10-01T09:00", input=(1_000, "1.00"))
    record("claude-haiku-4-5-20251001", at="2026-10-02T09:00", input=(900, "2.00"))
    costs = COSTS + haiku("2026-10-01", "input_no_cache", "1.00") + haiku("2026-10-02", "input_no_cache", "2.50")
    outcome = compare({"usage.csv": USAGE, "costs.csv": costs})
    assert [(one.cause, one.amount) for one in outcome.discrepancies] == [("price", Decimal("0.50"))]
    assert "only costs were compared" in str(outcome)


@pytest.mark.parametrize("hours", [2, -7, 5.5])
def test_one_day_whose_bucket_begins_off_midnight_utc_says_so_and_nothing_is_proposed(record, compare, hours):
    for hour, model in ((1, "gpt-5"), (12, "gpt-5"), (23, "gpt-5-mini")):
        record(model, at=f"2026-10-05T{hour:02}:10", provider="openai", input=(1_000_000, "1.25"))
    start = datetime(2026, 10, 5, tzinfo=UTC) - timedelta(hours=hours)
    stamp = int(start.timestamp())
    row = f'{stamp},{stamp + 86_400},,,1.25,usd,1000000,tokens,"gpt-5-2025-08-07, input",,key_1,proj_a,,,,,\n'
    outcome = compare({"cost.csv": OPENAI + row}, provider="openai")
    assert {one.cause for one in outcome.discrepancies} == {"zone"}
    assert outcome.proposals == ()
    assert f"The statement's days begin at {start:%H:%M} UTC" in str(outcome)


def test_days_written_as_midnight_of_another_zone_are_told_and_hours_are_not(record, compare):
    record("gpt-5", at="2026-10-05T12:00", provider="openai", input=(1_000, "1.25"))
    columns = {"day": "Start", "model": "Model", "cost": "Cost"}
    days = "Start,Model,Cost\n2026-10-05T00:00:00+02:00,gpt-5,1.20\n"
    outcome = compare({"cost.csv": days}, provider="openai", columns=columns)
    assert {one.cause for one in outcome.discrepancies} == {"zone"}
    hours = days + "2026-10-05T13:00:00+02:00,gpt-5,0.10\n"
    outcome = compare({"cost.csv": hours}, provider="openai", columns=columns)
    assert "zone" not in {one.cause for one in outcome.discrepancies}


def test_a_file_given_twice_counts_once_and_is_named(record, compare):
    record("claude-haiku-4-5-20251001", at="2026-10-01T09:00", input=(1_000_000, "1.00"))
    text = COSTS + haiku("2026-10-01", "input_no_cache", "1.00")
    outcome = compare({"a.csv": text, "b.csv": text})
    assert outcome.discrepancies == ()
    assert outcome.notes == ("b.csv is the same file as a.csv; it counts once.",)
    outcome = compare({"a.csv": text, "b.csv": text + haiku("2026-10-02", "output", "9.00")})
    assert outcome.theirs.cost == 10
    assert "1 row of b.csv stands in a.csv as well" in str(outcome)


def test_projects_and_workspaces_are_told_apart(record, compare):
    record("claude-haiku-4-5-20251001", at="2026-10-01T09:00", project="shop", input=(1_000, "1.00"))
    record("claude-haiku-4-5-20251001", at="2026-10-01T09:00", project="lab", input=(1_000, "2.00"))
    costs = COSTS + haiku("2026-10-01", "input_no_cache", "1.00", workspace="Shop")
    costs += haiku("2026-10-01", "input_no_cache", "2.50", workspace="Lab")
    outcome = compare({"costs.csv": costs}, by="model,workspace", projects={"Shop": "shop", "Lab": "lab"})
    assert [(one.bucket.project, one.cause, one.amount) for one in outcome.discrepancies] == [
        ("lab", "price", Decimal("0.50"))
    ]


@pytest.mark.parametrize("hours", [2, -7, 5.5])
def test_a_statement_cut_in_another_zone_is_recognised_and_nothing_proposed(record, compare, hours):
    moved = timedelta(hours=hours)
    sums = {}
    for day in range(3, 20):
        for hour in (0, 3, 11, 16, 21, 23):
            at = datetime(2026, 10, day, hour, 10, tzinfo=UTC)
            tokens = 1000 + 7 * day + hour
            model = f"claude-{'opus' if day % 3 and hour % 2 else 'haiku'}-4-5-20251001"
            record(model, at=at.replace(tzinfo=None).isoformat(), input=(tokens, "1"))
            local = (at + moved).date(), model
            sums[local] = sums.get(local, 0) + tokens
    usage = USAGE + "".join(
        f"{day},{model},prod,Default,standard,≤ 200k,{tokens},0,0,0,0,0,global,\n"
        for (day, model), tokens in sums.items()
    )
    outcome = compare({"usage.csv": usage})
    assert {one.cause for one in outcome.discrepancies} == {"zone"}
    assert outcome.proposals == ()
    assert "The statement's days begin at UTC" in str(outcome)
    outcome = compare(
        {"usage.csv": f"{usage}2026-10-11,claude-opus-4-5-20251001,b,Default,standard,≤ 200k,1,0,0,0,0,0,,\n"}
    )
    assert "zone" not in {one.cause for one in outcome.discrepancies}, "one account is enough to tell"


def test_proposals_add_up_and_say_what_they_leave(record, compare):
    record("claude-haiku-4-5-20251001", at="2026-10-01T09:00", input=(1_000, "1.00"))
    costs = COSTS + haiku("2026-10-01", "input_no_cache", "1.50")
    costs += "2026-10-02,,Default,,,,,-3.00,,credit,,,,\n"
    outcome = compare({"costs.csv": costs})
    assert [one.amount for one in outcome.proposals] == [Decimal("0.50")]
    assert outcome.difference == Decimal("-2.50")
    assert "Of the difference of -2.500000000000 USD they leave -3.000000000000" in str(outcome)


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        ("Claude Haiku 4.5", "claude-haiku-4-5"),
        ("Claude 3.5 Sonnet 2024-10-22", "claude-3-5-sonnet-20241022"),
        ("Claude Opus 4.8", "claude-opus-4-8"),
        ("claude-sonnet-5-5", "claude-sonnet-5-5"),
        ("gpt-5.1-codex", "gpt-5.1-codex"),
    ],
)
def test_display_names_become_ids(shown, name):
    assert model_id(shown) == name


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("claude-haiku-4-5", "claude-haiku-4-5-20251001", True),
        ("anthropic/claude-4.5-sonnet-20250929", "claude-sonnet-4-5", True),
        ("openai/gpt-5-2025-08-07", "gpt-5", True),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022", True),
        ("gpt-4o-2024-05-13", "gpt-4o", False),
        ("gpt-5-mini", "gpt-5", False),
        ("claude-opus-4-8", "claude-opus-4-7", False),
    ],
)
def test_families_of_models(one, other, same):
    assert (family_of(one) == family_of(other)) is same
