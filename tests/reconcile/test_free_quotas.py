"""Free quotas: counted per window over the whole ledger, the first units credited, once."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

import tokenmeter
from tokenmeter.errors import ConfigurationError
from tokenmeter.periods import parse_period
from tokenmeter.reconciliation import count_free_quotas, post_free_quotas

#: 1,500 grounded prompts a day are free in truth; three make the arithmetic plain.
DAILY = {"provider": "google", "sku_meter": "grounded_prompts", "models": ["gemini-2.5*"], "quantity": 3, "per": "day"}
NOW = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.fixture
def made(tmp_path):
    meters = []

    def make(*quotas, **settings):
        store = f"sqlite:///{tmp_path}/ledger.db"
        meter = tokenmeter.make_meter(store=store, free_quotas=list(quotas), config={}, **settings)
        meters.append(meter)
        return meter

    yield make
    for meter in meters:
        meter.close()


def grounded(meter, at, *, member="ada", model="gemini-2.5-flash", queries=1):
    body = {
        "modelVersion": model,
        "responseId": f"r-{at}-{member}",
        "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15},
        "candidates": [{"groundingMetadata": {"webSearchQueries": [f"q{number}" for number in range(queries)]}}],
    }
    who = tokenmeter.Attribution(member=member)
    meter.record(body, provider="google", endpoint="models.generate_content", at=at, attribution=who)


def test_the_first_units_of_each_day_are_free_on_the_account_of_their_calls(made):
    meter = made(DAILY)
    for hour, member in ((1, "ada"), (2, "bob"), (3, "ada"), (4, "ada")):
        grounded(meter, f"2026-11-10T0{hour}:00:00Z", member=member)
    grounded(meter, "2026-11-11T01:00:00Z", member="bob")
    first, second = count_free_quotas(meter, "2026-11", now=NOW)
    # $35 a thousand prompts: 3 of 4 are free, ada's first two and bob's one
    assert (first.window.label, first.used, first.free, first.credit) == ("2026-11-10", 4, 3, Decimal("0.105"))
    assert {credit.attribution.member: credit.quantity for credit in first.credits} == {"ada": 2, "bob": 1}
    assert (second.window.label, second.used, second.free, second.credit) == ("2026-11-11", 1, 1, Decimal("0.035"))


def test_credits_are_posted_once_and_what_comes_late_is_the_difference(made):
    meter = made(DAILY)
    grounded(meter, "2026-11-10T01:00:00Z")
    before = meter.report(by="member", period="2026-11").totals.billed_cost
    (posted,) = post_free_quotas(meter, count_free_quotas(meter, "2026-11", now=NOW))
    assert (posted.billed_cost, posted.kind, posted.attribution.member) == (Decimal("-0.035"), "adjustment", "ada")
    assert post_free_quotas(meter, count_free_quotas(meter, "2026-11", now=NOW)) == []
    grounded(meter, "2026-11-10T02:00:00Z")  # an import that came late
    (late,) = post_free_quotas(meter, count_free_quotas(meter, "2026-11", now=NOW))
    assert late.billed_cost == Decimal("-0.035")
    after = meter.report(by="member", period="2026-11").totals.billed_cost
    assert after == 2 * (before - Decimal("0.035"))
    assert meter.verify().ok


def test_any_number_of_quotas_and_windows_is_counted_in_one_reading(made, monkeypatch):
    monthly = {**DAILY, "name": "a month's", "per": "month", "quantity": 2}
    elsewhere = {**DAILY, "name": "in Tokyo", "tz": "Asia/Tokyo", "quantity": 1}
    meter = made(monthly, DAILY, elsewhere, *({**DAILY, "name": f"{number}", "models": ["x"]} for number in range(9)))
    for at in ("2026-11-10T01:00:00Z", "2026-11-10T23:00:00Z", "2026-11-12T01:00:00Z"):
        grounded(meter, at)
    readings, read = [], type(meter.store).entries
    monkeypatch.setattr(type(meter.store), "entries", lambda *of, **how: readings.append(of) or read(*of, **how))
    uses = count_free_quotas(meter, "2026-11", now=NOW)
    assert [(use.quota.name, use.window.label, use.used, use.free) for use in uses] == [
        ("a month's", "2026-11", 3, 2),
        ("grounded_prompts gemini-2.5*", "2026-11-10", 2, 2),
        ("grounded_prompts gemini-2.5*", "2026-11-12", 1, 1),
        ("in Tokyo", "2026-11-10", 1, 1),
        ("in Tokyo", "2026-11-11", 1, 1),
        ("in Tokyo", "2026-11-12", 1, 1),
    ]
    assert len(readings) == 1


def test_a_month_and_a_project_of_queries(made):
    monthly = {
        "provider": "google",
        "sku_meter": "web_searches",
        "models": ["gemini-3*"],
        "quantity": 5,
        "per": "month",
    }
    meter = made(monthly, multiplier="1.10")
    grounded(meter, "2026-11-10T01:00:00Z", model="gemini-3-flash-preview", queries=4)
    grounded(meter, "2026-11-12T01:00:00Z", model="gemini-3-flash-preview", queries=4)
    grounded(meter, "2026-11-12T02:00:00Z")  # of another model: no part of it
    (use,) = count_free_quotas(meter, "2026-11", now=datetime(2026, 12, 2, tzinfo=UTC))
    # 5 of 8 queries at $14 a thousand; billed with the platform's 10 %
    assert (use.used, use.free, use.credit) == (8, 5, Decimal("0.070"))
    (posted,) = post_free_quotas(meter, [use])
    assert (posted.contracted_cost, posted.billed_cost) == (Decimal("-0.070"), Decimal("-0.077"))


def test_days_are_the_providers_own(made):
    meter = made({**DAILY, "tz": "America/Los_Angeles", "quantity": 1})
    grounded(meter, "2026-11-10T07:59:59Z")  # 23:59:59 of the 9th in Los Angeles
    grounded(meter, "2026-11-10T08:00:00Z")
    uses = count_free_quotas(meter, "2026-11", now=NOW)
    assert [(use.window.label, use.used, use.free) for use in uses] == [("2026-11-09", 1, 1), ("2026-11-10", 1, 1)]


def test_a_window_that_goes_on_is_counted_and_not_posted(made):
    meter = made(DAILY)
    grounded(meter, "2026-11-20T01:00:00Z")
    (use,) = count_free_quotas(meter, "2026-11", now=datetime(2026, 11, 20, 12, tzinfo=UTC))
    assert use.open
    assert post_free_quotas(meter, [use]) == []


def test_keys_of_other_projects_do_not_count(made):
    meter = made({**DAILY, "api_keys": ["search-project"]})
    grounded(meter, "2026-11-10T01:00:00Z")
    assert count_free_quotas(meter, "2026-11", now=NOW) == []


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"per": "week"}, "per"),
        ({"quantity": 0}, "quantity"),
        ({"quantity": "many"}, "quantity"),
        ({"sku_meter": "wishes"}, "sku_meter"),
        ({"tz": "Mars/Olympus"}, "tz"),
        ({"models": "gemini-3*"}, "models"),
        ({"limit": 5}, "limit"),
    ],
)
def test_a_wrong_row_says_what_is_wrong(changed, field, made):
    with pytest.raises(ConfigurationError, match=rf"free_quotas.*'{field}'"):
        made({**DAILY, **changed})


def test_two_quotas_of_one_name_are_refused(made):
    with pytest.raises(ConfigurationError, match="its own name"):
        made(DAILY, DAILY)


def test_who_loses_free_units_to_earlier_calls_gives_the_credit_back(made):
    """What was credited for calls whose free units late ones take is taken back, however often that turns."""
    meter = made({**DAILY, "quantity": 1})
    for hour, member in (("12", "ada"), ("09", "bob"), ("08", "ada")):
        grounded(meter, f"2026-11-10T{hour}:00:00Z", member=member)
        post_free_quotas(meter, count_free_quotas(meter, "2026-11", now=NOW))
        credits_ = [entry for entry in meter.store.entries() if entry.kind == "adjustment"]
        owed = {one: sum(e.billed_cost for e in credits_ if e.attribution.member == one) for one in ("ada", "bob")}
        assert owed == {"ada": 0, "bob": 0, member: Decimal("-0.035")}
    assert post_free_quotas(meter, count_free_quotas(meter, "2026-11", now=NOW)) == []


def test_a_corrected_call_is_credited_at_what_it_costs_now(made):
    prices = [
        *(
            {"provider": "google", "model": "gemini-2.5-flash", "sku_meter": each, "unit_price": 1}
            for each in ("input", "output")
        ),
        {
            "provider": "google",
            "model": "gemini-2.5-flash",
            "sku_meter": "grounded_prompts",
            "unit_price": "0.05",
            "per": 1,
        },
    ]
    meter = made(DAILY, prices=prices)
    grounded(meter, "2026-11-10T01:00:00Z")
    before = meter.report(period="2026-11").totals.billed_cost
    prices[-1] = {**prices[-1], "unit_price": "0.035"}
    later = made(DAILY, prices=prices)
    assert later.reprice(period="2026-11", changed=True, post=True)
    (use,) = count_free_quotas(later, "2026-11", now=NOW)
    assert (use.used, use.free, use.credit) == (1, 1, Decimal("0.035"))
    post_free_quotas(later, [use])
    assert later.report(period="2026-11").totals.billed_cost == before - Decimal("0.05")


def test_days_of_a_period_in_another_zone_are_the_quotas_own(made):
    meter = made({**DAILY, "tz": "America/Los_Angeles"})
    grounded(meter, "2026-11-10T01:00:00Z")  # the 9th there
    grounded(meter, "2026-11-10T20:00:00Z")
    uses = count_free_quotas(meter, parse_period("2026-11-10"), now=NOW)
    assert "2026-11-10" in {use.window.label for use in uses}
