"""The units traps: dollars, cents and fractions of cents; input with and without what was cached."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from tokenmeter.attribution import ApiKey
from tokenmeter.errors import ConfigurationError, ReconciliationError
from tokenmeter.ledger import Charge, Entry
from tokenmeter.meter import Meter
from tokenmeter.periods import parse_period
from tokenmeter.reconciliation import Bucket, CostLine, ProviderStatement, UsageLine, reconcile, reconcile_statement
from tokenmeter.reconciliation import anthropic as anthropic_books
from tokenmeter.reconciliation import openai as openai_books
from tokenmeter.stores import open_store
from tokenmeter.usage import Usage

NOVEMBER = parse_period("2026-11")
JANUARY = datetime(2027, 1, 1, tzinfo=UTC)
DAY = date(2026, 11, 10)
TOKENS = {"input": 700, "cache_read": 300, "output": 200}
COST = Decimal("4.11")


@pytest.fixture
def ledger(pricer):
    made = Meter(store=open_store("memory:"), pricer=pricer)
    yield made
    made.close()


@pytest.fixture
def record(ledger):
    """One call of 1,200 tokens that cost 4.11 dollars."""

    def call(at="2026-11-10T12:00", cost=COST, tokens=TOKENS, provider="openai", model="gpt-5", **changes):
        costs = [None if cost is None else Decimal(cost), *[Decimal(0)] * (len(tokens) - 1)]
        charges = tuple(
            Charge(
                model=model,
                sku_meter=meter,
                quantity=count,
                unit="Tokens",
                list_unit_price=None,
                list_cost=amount,
                contracted_cost=amount,
                billed_cost=amount,
            )
            for (meter, count), amount in zip(tokens.items(), costs, strict=True)
        )
        entry = Entry(
            **{
                "occurred_at": datetime.fromisoformat(at).replace(tzinfo=UTC),
                "provider": provider,
                "endpoint": "chat.completions",
                "operation": "chat",
                "request_model": model,
                "api_key": ApiKey("f" * 32, "abcd", "prod"),
                "usage": Usage(tokens),
                "charges": charges,
                "list_cost": cost,
                "contracted_cost": cost,
                "billed_cost": cost,
                "cost_source": "unpriced" if cost is None else "computed",
                **changes,
            }
        )
        ledger.store.settle(entry)
        return entry

    return call


def compare(ledger, *, tokens=TOKENS, cost=COST, model="gpt-5", requests=1, day=DAY, lines=1, provider="openai"):
    bucket = Bucket(day, model)
    statement = ProviderStatement(
        provider=provider,
        period=NOVEMBER,
        source="test",
        usage=None if tokens is None else (UsageLine(bucket, tokens, requests),),
        costs=None if cost is None else tuple(CostLine(bucket, "", Decimal(cost) / lines) for _ in range(lines)),
    )
    return reconcile_statement(ledger.store, statement, complete_until=JANUARY)


def only(outcome):
    (found,) = outcome.discrepancies
    return found


@pytest.mark.parametrize("cost", ["411", "0.0411"])
def test_cents_taken_for_dollars_are_recognised_and_never_posted(record, ledger, cost):
    record()
    outcome = compare(ledger, cost=cost)
    assert only(outcome).cause == "unit"
    assert outcome.proposals == ()
    assert not outcome.ok


def test_input_that_includes_the_cache_is_recognised(record, ledger):
    record()
    found = only(compare(ledger, tokens={**TOKENS, "input": 1000}))
    assert found.cause == "cache_convention"
    assert "their input exceeds by exactly the 300 cached tokens" in found.detail


def test_our_input_that_includes_the_cache_is_recognised(record, ledger):
    record(tokens={**TOKENS, "input": 1000})
    assert "the ledger's input" in only(compare(ledger)).detail


def test_openai_counts_are_made_disjoint():
    """input_tokens = uncached + cached + written; older reports know no writes."""
    row = {"input_tokens": 1000, "input_cached_tokens": 300, "input_cache_write_tokens": 50, "output_tokens": 9}
    assert openai_books.token_counts(row) == {"input": 650, "cache_read": 300, "cache_write": 50, "output": 9}
    assert openai_books.token_counts({"input_tokens": 5, "input_cached_tokens": None}) == {"input": 5}


def test_anthropic_counts_are_disjoint_already():
    row = {
        "uncached_input_tokens": 1000,
        "cache_read_input_tokens": 300,
        "cache_creation": {"ephemeral_5m_input_tokens": 7, "ephemeral_1h_input_tokens": 5},
        "output_tokens": 9,
        "server_tool_use": {"web_search_requests": 2},
    }
    counts = {"input": 1000, "cache_read": 300, "cache_write": 12, "output": 9, "web_searches": 2}
    assert anthropic_books.token_counts(row) == counts


@pytest.mark.parametrize(("cents", "dollars"), [("123.45", "1.2345"), ("0.519", "0.00519"), ("100", "1"), ("0", "0")])
def test_anthropic_amounts_are_fractional_cents(cents, dollars):
    assert anthropic_books.dollars(cents) == Decimal(dollars)


@pytest.mark.parametrize(
    ("item", "model"),
    [
        ("gpt-5, cached input", "gpt-5"),
        ("ft:gpt-4o:acme, inc:x, input", "ft:gpt-4o:acme, inc:x"),
        ("ft:gpt-4o:acme, inc:support desk:x, input", "ft:gpt-4o:acme, inc:support desk:x"),
        ("ft:gpt-4o:acme:tax:AbC, output", "ft:gpt-4o:acme:tax:AbC"),
        ("grant-writer, input", "grant-writer"),
        ("promo, input", "promo"),
        ("our seats, input", "our seats"),
        ("web search", None),
        ("Tax, VAT", None),
        ("Grant, October", None),
    ],
)
def test_openai_line_items_name_their_model(item, model):
    assert openai_books.item_model(item, {"promo", "our seats"}) == model


def test_a_binary_fraction_of_a_dollar_is_no_difference(record, ledger):
    record(cost=Decimal("0.3"))
    assert compare(ledger, cost=str(Decimal(0.1 + 0.2))).discrepancies == ()


def test_many_rounded_amounts_may_be_off_by_half_a_cent_each(record, ledger):
    record(cost=Decimal("4.13"))
    assert only(compare(ledger, cost="4.20", lines=14)).cause == "rounding"
    record(cost=Decimal("4.13"), at="2026-11-11T12:00")
    assert {one.cause for one in compare(ledger, cost="4.16", lines=1, day=date(2026, 11, 11)).discrepancies} == {
        "price",
        "unbilled",
    }


def test_a_call_around_midnight_is_a_matter_of_the_day(record, ledger):
    record(at="2026-11-10T23:59:59")
    outcome = compare(ledger, day=date(2026, 11, 11))
    assert {one.cause for one in outcome.discrepancies} == {"timing"}
    assert outcome.ok
    assert outcome.difference == 0


def test_a_dated_name_and_its_alias_are_one_model(record, ledger):
    record(model="gpt-5")
    assert compare(ledger, model="gpt-5-2025-08-07").discrepancies == ()
    assert len(compare(ledger, model="gpt-5-mini-2025-08-07").discrepancies) == 2


def test_costs_alone_can_be_compared(record, ledger):
    record()
    outcome = compare(ledger, tokens=None, cost="5.11")
    assert only(outcome).cause == "price"
    assert outcome.ours.tokens is None
    assert outcome.coverage == 100


def test_usage_alone_can_be_compared(record, ledger):
    record()
    outcome = compare(ledger, cost=None, tokens={"input": 700, "cache_read": 300, "output": 300})
    assert (only(outcome).cause, only(outcome).amount, outcome.difference) == ("unrecorded", None, None)
    assert outcome.proposals == ()
    assert outcome.coverage == Decimal("92.31")


def test_calls_the_provider_did_not_count_are_ours_only(record, ledger):
    record()
    record(flags=("estimated",), cost_source="estimated")
    found = only(compare(ledger))
    assert (found.cause, found.amount) == ("estimated", -COST)
    assert compare(ledger).proposals[0].amount == -COST


def test_tools_without_a_model_are_compared_together(record, ledger):
    """A provider that bills a tool without naming a model is compared with that tool over all models."""
    record()
    search = Charge(
        model="gpt-5",
        sku_meter="web_searches",
        quantity=3,
        unit="Searches",
        list_unit_price=Decimal("0.01"),
        list_cost=Decimal("0.03"),
        contracted_cost=Decimal("0.03"),
        billed_cost=Decimal("0.03"),
    )
    ledger.store.settle(
        Entry(
            occurred_at=datetime(2026, 11, 10, 12, tzinfo=UTC),
            provider="openai",
            endpoint="responses",
            operation="chat",
            request_model="gpt-5",
            usage=Usage({"web_searches": 3}),
            charges=(search,),
            list_cost=Decimal("0.03"),
            contracted_cost=Decimal("0.03"),
            billed_cost=Decimal("0.03"),
            cost_source="computed",
        )
    )
    statement = ProviderStatement(
        provider="openai",
        period=NOVEMBER,
        source="test",
        usage=(UsageLine(Bucket(DAY, "gpt-5"), TOKENS, 2),),
        costs=(
            CostLine(Bucket(DAY, "gpt-5"), "gpt-5, input", COST),
            CostLine(Bucket(DAY, None), "web search tool calls", Decimal("0.03")),
        ),
    )
    assert reconcile_statement(ledger.store, statement, complete_until=JANUARY).discrepancies == ()


def test_other_providers_entries_stay_out(record, ledger):
    record(provider="azure")
    assert only(compare(ledger)).cause == "unrecorded"


def test_the_outcome_reads_and_serialises(record, ledger):
    record()
    outcome = compare(ledger, cost="8.22")
    text, told = str(outcome), outcome.to_dict()
    assert "Coverage 100.00%" in text
    assert "at another price" in text
    assert "1 adjustment over 4.11" in text
    assert told["by_cause"] == {"price": "4.110000000000"}
    assert told["difference"] == "4.110000000000"
    assert outcome.to_json().startswith("{")


def test_an_empty_statement_and_ledger_agree(ledger):
    empty = ProviderStatement(provider="openai", period=NOVEMBER, source="test", usage=(), costs=())
    outcome = reconcile_statement(ledger.store, empty, complete_until=JANUARY)
    assert (outcome.compared, outcome.coverage, outcome.ok) == (0, None, True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"provider": "groq", "source": object()}, "give a CSV file"),
        ({"provider": "openai", "source": "x.csv", "by": "colour"}, "cannot be|can be split by"),
        ({"provider": "anthropic", "source": object(), "reports": "new"}, "analytics"),
        ({"provider": "openai", "source": object(), "period": parse_period("2026-11", "Asia/Kolkata")}, "UTC days"),
    ],
)
def test_wrong_arguments_say_what_to_do(ledger, given, message):
    with pytest.raises(ConfigurationError, match=message):
        reconcile(ledger.store, **{"period": "2026-11", **given})


def test_a_missing_file_is_said(ledger, tmp_path):
    with pytest.raises(ReconciliationError, match="cannot be read"):
        reconcile(ledger.store, provider="openai", period="2026-11", source=tmp_path / "none.csv")


def test_lateness_without_a_watermark_is_assumed_for_two_days(record, ledger, tmp_path):
    record()
    path = tmp_path / "usage.csv"
    path.write_text("day,model,input\n2026-11-09,gpt-5,1\n")
    columns = {"day": "day", "model": "model", "input": "input"}
    for now, cause in ((datetime(2026, 11, 11, tzinfo=UTC), "late"), (JANUARY, "unbilled")):
        outcome = reconcile(
            ledger.store,
            provider="openai",
            period="2026-11",
            source=path,
            columns=columns,
            now=now,
            settling=timedelta(days=2),
        )
        assert [one.cause for one in outcome.discrepancies if one.bucket.day == DAY] == [cause]
