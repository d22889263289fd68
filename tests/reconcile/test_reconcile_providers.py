"""Against providers that bill what passed us by, at other prices, late, rounded, or not at all: each is found."""

from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from types import SimpleNamespace

import pytest

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.billing import draw_statement
from tokenmeter.erasing import erase
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import Charge, Entry, new_id
from tokenmeter.money import negate
from tokenmeter.periods import parse_period
from tokenmeter.reconciliation import (
    file_reconciliation,
    post_proposals,
    reconcile,
    reconcile_again,
    reconciliations,
)
from tokenmeter.reconciliation import openai as openai_books
from tokenmeter.reconciliation.paging import ReportPages
from tokenmeter.reconciliation.statement import ExchangeRates
from tokenmeter.testing import FakeProvider, Reports
from tokenmeter.usage import Usage

BOTH = pytest.mark.parametrize("name", ["openai", "anthropic"])
COST = {"openai": Decimal("0.0029125"), "anthropic": Decimal("0.00519")}


def causes(outcome):
    return {one.cause for one in outcome.discrepancies}


@BOTH
def test_books_that_agree_have_no_differences(ask, check, name):
    for _ in range(3):
        ask(name)
    outcome = check(name)
    assert outcome.discrepancies == ()
    assert (outcome.ok, outcome.coverage, outcome.difference) == (True, 100, 0)
    assert outcome.theirs.tokens == 3600
    assert outcome.theirs.cost == 3 * COST[name]
    assert "No differences." in str(outcome)


@BOTH
@pytest.mark.parametrize("meter", ["memory", "sqlite", "postgres"], indirect=True)
def test_traffic_that_did_not_pass_us_is_found_and_coverage_says_how_much(ask, check, name):
    for metered in (True, True, True, False):
        ask(name, metered=metered)
    outcome = check(name)
    assert causes(outcome) == {"unrecorded"}
    assert outcome.coverage == 75
    assert outcome.difference == COST[name]
    assert sum(one.amount for one in outcome.discrepancies) == COST[name]
    assert sum(sum(one.tokens.values()) for one in outcome.discrepancies) == 1200
    assert not outcome.ok


@BOTH
def test_another_price_is_found_though_the_tokens_agree(ask, check, provider, prices, name):
    model = {"openai": "gpt-5", "anthropic": "claude-sonnet-5"}[name]
    dearer = {meter: str(Decimal(price) * 2) for meter, price in prices[model].items()}
    provider.reports = Reports(prices={**prices, model: dearer})
    ask(name)
    outcome = check(name)
    (found,) = outcome.discrepancies
    assert (found.cause, found.bucket.model, found.tokens) == ("price", model, {})
    assert found.amount == COST[name]
    assert "2.0000 times ours" in found.detail
    assert outcome.coverage == 100


@BOTH
def test_a_report_that_is_a_day_late_is_late_not_wrong(ask, check, provider, prices, name):
    provider.reports = Reports(prices=prices, delay=timedelta(days=1))
    ask(name)
    outcome = check(name, now=datetime.now(UTC))
    assert causes(outcome) == {"late"}
    assert outcome.ok
    assert outcome.proposals == ()


def test_without_a_watermark_a_report_that_stays_empty_is_told_after_a_while_and_zeroes_nothing(
    ask, check, provider, prices
):
    provider.reports = Reports(prices=prices, delay=timedelta(days=1))
    ask("openai")
    outcome = check("openai")
    assert (causes(outcome), outcome.proposals, outcome.ok) == ({"empty"}, (), False)


def test_anthropics_own_watermark_decides_over_the_calendar(ask, check, provider, prices):
    provider.reports = Reports(prices=prices, delay=timedelta(days=1))
    ask("anthropic")
    if not hasattr(pytest.importorskip("anthropic").Anthropic(api_key="x").beta, "organization"):
        pytest.skip("this SDK has no analytics")
    assert causes(check("anthropic")) == {"late"}


@BOTH
def test_another_rounding_is_rounding(ask, check, provider, prices, name):
    provider.reports = Reports(prices=prices, decimals=2)
    for _ in range(3):
        ask(name)
    outcome = check(name)
    assert causes(outcome) == {"rounding"}
    assert outcome.ok
    assert outcome.proposals == ()
    assert outcome.difference != 0


def test_a_refused_call_that_the_usage_report_counts_is_found(ask, check, provider, prices):
    """Anthropic does not bill a refusal before any output, but its usage report may count it."""
    provider.reports = Reports(prices=prices, count_refused=True)
    ask("anthropic")
    ask("anthropic", billed=False, fields={"stop_reason": "refusal", "content": []})
    outcome = check("anthropic")
    assert causes(outcome) == {"refused"}
    assert outcome.ok
    assert outcome.difference == 0
    assert outcome.coverage == 100


def test_the_classic_anthropic_reports_do_as_well(ask, check):
    ask("anthropic", meters={"input": 10, "cache_read": 5, "cache_write_1h": 3, "output": 2, "web_searches": 1})
    ask("anthropic", metered=False)
    outcome = check("anthropic", reports="classic")
    assert outcome.source == "Anthropic classic reports"
    assert causes(outcome) == {"unrecorded"}
    assert sum(sum(one.tokens.values()) for one in outcome.discrepancies) == 1200


def test_models_are_told_apart_and_snapshots_are_not(ask, check, provider):
    """Only the model that differs is named; a dated name and its alias are one model."""
    ask("openai")
    ask("openai", model="gpt-5-mini", metered=False)
    outcome = check("openai")
    assert [one.bucket.model for one in outcome.discrepancies] == ["gpt-5-mini"]


def test_several_days_and_pages_are_read(ask, check):
    """40 days are more than one page of usage, and more than one request to the analytics."""
    for name in ("openai", "anthropic"):
        ask(name)
        assert check(name, period="last-40d").discrepancies == ()


def test_keys_can_be_told_apart_by_name(ask, check, provider, meter):
    ask("openai")
    key = provider.truth[0].api_key_id
    (entry,) = meter.store.entries()
    outcome = check("openai", by=["model", "api_key"], keys={key: entry.api_key.label})
    assert outcome.discrepancies == ()
    assert outcome.grain == ("model", "api_key")
    unknown = check("openai", by=["model", "api_key"])
    assert causes(unknown) == {"names"}  # the same tokens, of a key that nobody knows
    assert unknown.proposals == ()


def test_posting_the_proposals_settles_the_cost_once(ask, check, meter):
    """Adjustments are new entries; the second run proposes nothing, the second post appends nothing."""
    ask("openai")
    ask("openai", metered=False)
    outcome = check("openai")
    before = list(meter.store.entries())
    (posted,) = post_proposals(meter, outcome, multiplier="1.10")
    assert (posted.kind, posted.contracted_cost) == ("adjustment", COST["openai"])
    assert posted.billed_cost == COST["openai"] * Decimal("1.10")
    assert [entry for entry in meter.store.entries() if entry.kind == "usage"] == before
    assert post_proposals(meter, outcome) == []
    again = check("openai")
    assert again.difference == 0
    assert again.proposals == ()
    (settled,) = again.discrepancies
    assert (settled.cause, settled.amount, again.ok) == ("adjusted", 0, True)
    assert f"entry {posted.entry_id} on nobody, by {posted.attribution.tags['posted_by']}" in settled.detail
    # Half of the traffic passed the meter, and all of its cost is in the ledger now.
    assert (again.coverage, again.cost_coverage) == (Decimal("50.00"), Decimal("100.00"))
    assert "Coverage 50.00% of the tokens, 100.00% of their cost." in str(again)


def test_more_traffic_after_an_adjustment_is_a_difference_of_what_is_new(ask, check, meter):
    ask("openai")
    ask("openai", metered=False)
    post_proposals(meter, check("openai"), attribution={"team": "search"}, by="kim")
    ask("openai", metered=False)
    grown = check("openai")
    (one,) = grown.discrepancies
    assert (one.cause, one.amount, grown.ok) == ("unrecorded", COST["openai"], False)
    (posted,) = post_proposals(meter, grown, attribution={"team": "search"}, by="ann")
    left = reconcile_again(meter.store, grown)
    assert (left.ok, left.difference, left.proposals) == (True, 0, ())
    detail = left.discrepancies[0].detail
    assert "on team=search, by kim; entry" in detail
    assert f"entry {posted.entry_id} on team=search, by ann" in detail


@pytest.fixture
def shop(meter, tmp_path):
    """A key and a project that the provider counted thrice as much of; `compare(by)` puts both books side by side."""
    cost = Decimal("1.25")
    costs = {"list_cost": cost, "contracted_cost": cost, "billed_cost": cost}
    tokens = {"sku_meter": "input", "quantity": 1_000_000, "unit": "Tokens", "list_unit_price": Decimal("0.00000125")}
    call = {
        "provider": "openai",
        "endpoint": "chat.completions",
        "operation": "chat",
        "response_model": "gpt-5",
        "usage": Usage({"input": 1_000_000}),
        "charges": (Charge(model="gpt-5", **tokens, **costs),),
        "cost_source": "computed",
        **costs,
    }
    at = datetime(2026, 11, 1, 9, tzinfo=UTC)
    meter.post(
        Entry(occurred_at=at, api_key=ApiKey("a" * 32, "1234", "prod"), attribution=Attribution(project="shop"), **call)
    )
    meter.post(Entry(occurred_at=at, **call))
    rows = "2026-11-01,gpt-5,prod,shop,3000000,3.75\n2026-11-01,gpt-5,,,3000000,3.75\n"
    (tmp_path / "shop.csv").write_text(f"day,model,key,project,input,cost\n{rows}")

    def compare(by):
        columns = {"day": "day", "model": "model", "api_key": "key", "project": "project"}
        given = {"source": tmp_path / "shop.csv", "columns": {**columns, "input": "input", "cost": "cost"}}
        return reconcile(meter.store, provider="openai", period="2026-11", by=by, **given)

    return compare


@pytest.mark.parametrize("account", [{}, {"project": "platform", "team": "search"}])
@pytest.mark.parametrize("by", ["model,api_key", "model,project", "model,api_key,project"])
def test_an_adjustment_is_found_in_its_bucket_whoever_pays_for_it(meter, shop, by, account):
    """Keys and projects, named or not: a further run finds that each was settled, and takes nothing back."""
    outcome = shop(by)
    posted = post_proposals(meter, outcome, attribution=account)
    assert [entry.billed_cost for entry in posted] == [Decimal("2.50")] * 2
    assert {entry.attribution.project for entry in posted} <= {account.get("project"), "shop"}
    again = shop(by)
    assert (again.ok, causes(again), again.proposals, again.difference) == (True, {"adjusted"}, (), 0)
    assert post_proposals(meter, again, attribution=account) == []


@pytest.mark.parametrize("tags", ["of today", "of the first releases"])
@pytest.mark.parametrize("change", ["another alias", "alias erased", "project erased"])
def test_an_adjustment_is_found_in_its_bucket_whatever_key_and_project_are_called_now(
    meter, shop, tmp_path, change, tags
):
    outcome = shop("model,api_key,project")
    if tags == "of today":
        assert len(post_proposals(meter, outcome, attribution={"team": "search"}, by="kim")) == 2
    else:
        assert all(meter.post_all([one.entry("openai", by="kim") for one in outcome.proposals]))
    names = {"keys": {}, "projects": {}}
    if change == "another alias":
        (call,) = [entry for entry in meter.store.entries() if entry.kind == "usage" and entry.api_key]
        later = replace(call, entry_id=new_id(), occurred_at=datetime(2026, 12, 1, tzinfo=UTC))
        meter.post(replace(later, api_key=ApiKey("a" * 32, "1234", "prod-eu")))
        names["keys"] = {"prod": "prod-eu"}
    else:
        dimension, value = ("api_key", "prod") if change == "alias erased" else ("project", "shop")
        done = erase(meter.store, dimension, value, reason="it ended", by="office")
        names["keys" if dimension == "api_key" else "projects"] = {value: done.pseudonym}
        assert value not in {text for entry in meter.store.entries() for text in entry.attribution.tags.values()}
    columns = {name: name for name in ("day", "model", "project", "input", "cost")} | {"api_key": "key"}
    given = {"source": tmp_path / "shop.csv", "columns": columns, "by": "model,api_key,project", **names}
    again = reconcile(meter.store, provider="openai", period="2026-11", **given)
    assert (again.ok, causes(again), again.proposals, again.difference) == (True, {"adjusted"}, (), 0)


def test_who_posted_an_adjustment_is_erased_with_the_member_of_that_name(meter, shop):
    post_proposals(meter, shop("model,api_key"), by="kim")
    done = erase(meter.store, "member", "kim", reason="left", by="office", pseudonym="person 17")
    assert (done.names, done.entries) == (1, 0)
    posted = [entry for entry in meter.store.entries() if entry.kind == "adjustment"]
    assert {entry.attribution.tags["posted_by"] for entry in posted} == {"person 17"}
    assert meter.store.verify().ok


def test_the_same_adjustment_can_be_right_a_second_time(meter, shop):
    """What was posted is taken back by hand: the same amount is due again, and each outcome posts it once."""
    outcome = shop("model,api_key")
    posted = post_proposals(meter, outcome)
    for entry in posted:
        costs = dict.fromkeys(("list_cost", "contracted_cost", "billed_cost"), negate(entry.billed_cost))
        meter.post(replace(entry, entry_id=new_id(), dedup_key=None, charges=(), **costs))
    kept = file_reconciliation(meter.store, shop("model,api_key"))
    (filed,) = reconciliations(meter.store)
    assert [entry.billed_cost for entry in post_proposals(meter, filed)] == [Decimal("2.50")] * 2
    assert post_proposals(meter, kept) == post_proposals(meter, filed) == post_proposals(meter, outcome) == []
    assert shop("model,api_key").ok


def test_an_adjustment_stands_in_the_middle_of_the_day_it_is_for(meter, shop):
    """So that books of New York have it in the month it is for, too."""
    post_proposals(meter, shop("model"), attribution={"team": "search"})
    for tz in ("Pacific/Honolulu", "America/New_York", "UTC", "Asia/Tokyo"):
        (line,) = draw_statement(meter.store, team="search", period="2026-11", tz=tz).lines
        assert (str(line.date), line.charges) == ("2026-11-01", Decimal("5.00"))


def test_what_was_filed_has_no_statement_to_compare_again(ask, check, meter):
    ask("openai", metered=False)
    filed = file_reconciliation(meter.store, check("openai"))
    (kept,) = reconciliations(meter.store)
    assert reconcile_again(meter.store, filed).discrepancies == filed.discrepancies
    with pytest.raises(ConfigurationError, match="has no statement"):
        reconcile_again(meter.store, kept)


def test_credits_are_no_part_of_what_the_ledger_could_cover(meter, tmp_path):
    """10 dollars of traffic, half of it unseen, and 8 given back: half is covered, whatever is paid in the end."""

    def read(*rows):
        (tmp_path / "s.csv").write_text("\n".join(("d,m,c", *rows)))
        columns = {"day": "d", "model": "m", "cost": "c"}
        return reconcile(meter.store, provider="openai", period="2026-10", source=tmp_path / "s.csv", columns=columns)

    assert post_proposals(meter, read("2026-10-10,gpt-5,5"))
    outcome = read("2026-10-10,gpt-5,5", "2026-10-10,gpt-5-mini,5", "2026-10-10,Credit grant,-8")
    assert outcome.by_cause() == {"unrecorded": 5, "credit": -8}
    assert outcome.coverage == Decimal("50.00")


def test_unpriced_calls_of_ours_are_named_so(check, meter, ask, provider, prices):
    provider.reports = Reports(prices={**prices, "gpt-99-new": {"input": "0.000002", "output": "0.00001"}})
    ask("openai", model="gpt-99-new", meters={"input": 500, "output": 50})
    outcome = check("openai")
    assert causes(outcome) == {"unpriced"}
    assert [one.amount for one in outcome.proposals] == [Decimal("0.0015")]


@BOTH
def test_an_organization_without_any_use_zeroes_no_ledger(ask, check, name):
    """An admin key of another organization: its reports are all there, and empty."""
    ask(name)
    with FakeProvider() as other:
        if name == "openai":
            sdk = pytest.importorskip("openai")
            admin = sdk.OpenAI(base_url=other.openai_url, api_key="sk-two", admin_api_key="sk-admin-0123456")
        else:
            sdk = pytest.importorskip("anthropic")
            admin = sdk.Anthropic(base_url=other.anthropic_url, api_key="sk-ant-admin-0123456")
        with admin:
            outcome = check(name, source=admin, reports="classic")
    assert (causes(outcome), outcome.proposals, outcome.ok) == ({"empty"}, (), False)


def test_buckets_of_a_report_that_begin_off_midnight_utc_say_so():
    start = 1_790_812_800 - 7_200
    day = {"start_time": start, "end_time": start + 86_400}
    counted = {"input_tokens": 9, "output_tokens": 1, "num_model_requests": 1, "model": "gpt-5"}
    billed = {"amount": {"value": 1, "currency": "usd"}, "line_item": "gpt-5, input"}
    results = {"completions": [counted], "costs": [billed]}

    def get(path, **_):
        return {"data": [{**day, "results": results.get(path.partition("?")[0].rpartition("/")[2], [])}]}

    statement = openai_books.fetch(
        SimpleNamespace(get=get),
        parse_period("2026-10", "UTC"),
        by=["model"],
        pages=ReportPages(),
        rates=ExchangeRates({}),
    )
    assert statement.begins == {time(22)}
