"""What was recorded is rated again: without a price, or at a price that has changed since. The ledger only grows."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from functools import reduce

import pytest

import tokenmeter
from tokenmeter.ledger import Entry
from tokenmeter.money import EXACT, add, total
from tokenmeter.pricing.corrections import reversal
from tokenmeter.providers import observe

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
ROW = {"provider": "openai", "model": "gpt-5", "sku_meter": "input", "unit_price": "2.50"}


def recorded(meter, model="gpt-5", prompt=1_000_000, *, tier=None, cached=0, processing=None, provider="openai", at=AT):
    usage = {"prompt_tokens": prompt, "completion_tokens": 1_000, "total_tokens": prompt + 1_000}
    usage["prompt_tokens_details"] = {"cached_tokens": cached}
    body = {"model": model, "object": "chat.completion", "choices": [], "usage": usage, "service_tier": tier}
    seen = observe(body, provider=provider, endpoint="chat.completions", processing=processing)
    rating = meter.pricer.rate(seen, provider=provider, endpoint="chat.completions", at=at)
    entry = Entry(
        occurred_at=at,
        provider=provider,
        endpoint="chat.completions",
        operation="chat",
        request_model=model,
        response_model=model,
        service_tier=tier,
        usage=seen.usage,
        charges=rating.charges,
        list_cost=rating.list_cost,
        contracted_cost=rating.contracted_cost,
        billed_cost=rating.billed_cost,
        cost_source=rating.cost_source,
        price_list_hash=rating.price_list_hash,
    )
    assert meter.post(entry)
    return entry


@pytest.fixture
def store(tmp_path):
    return f"sqlite:///{tmp_path}/usage.db"


def billed(meter):
    return total(entry.billed_cost or 0 for entry in tokenmeter.entries(meter=meter))


def test_nothing_differs_while_nothing_has_changed(store):
    meter = tokenmeter.make_meter(store=store)
    for tier in (None, "flex", "priority"):
        recorded(meter, tier=tier, cached=1_000)
    recorded(meter, processing="batch")
    recorded(meter, "gpt-5.4", 300_000)  # a dearer tier for long prompts
    recorded(meter, "gpt-5.4", 300_000, tier="flex")
    recorded(meter, "deepseek-flash", provider="deepseek", at=AT.replace(hour=7))
    assert meter.reprice(changed=True) == []
    meter.close()


def test_what_would_differ_is_shown_and_recorded_only_when_told(store):
    meter = tokenmeter.make_meter(store=store)
    plain, flex = recorded(meter), recorded(meter, tier="flex")
    other = recorded(meter, "gpt-5-mini")
    meter.close()
    meter = tokenmeter.make_meter(store=store, prices=[ROW], multiplier="2")
    before = billed(meter)
    found = {entry.corrects: entry for entry in meter.reprice(changed=True)}
    assert billed(meter) == before
    assert set(found) == {plain.entry_id, flex.entry_id, other.entry_id}
    assert found[plain.entry_id].list_cost == Decimal("1.25")
    assert found[plain.entry_id].billed_cost == 2 * Decimal("2.51") - Decimal("1.26")
    assert found[other.entry_id].list_cost == 0
    assert found[other.entry_id].billed_cost == other.billed_cost
    posted = meter.reprice(changed=True, post=True)
    assert {entry.corrects for entry in posted} == set(found)
    assert billed(meter) == add(before, total(entry.billed_cost for entry in found.values()))
    assert meter.reprice(changed=True, post=True) == []
    assert meter.verify().ok
    totals = tokenmeter.report(meter=meter).totals
    assert (totals.billed_cost, totals.usage["input"]) == (billed(meter), 3_000_000)
    meter.close()


def test_a_price_that_changes_back_is_corrected_back(store):
    first = tokenmeter.make_meter(store=store)
    recorded(first, cached=400_000)
    before = billed(first)
    first.close()
    for prices in ([ROW], [], [ROW], []):
        meter = tokenmeter.make_meter(store=store, prices=prices)
        (posted,) = meter.reprice(changed=True, post=True)
        assert posted.billed_cost == (Decimal("0.75") if prices else Decimal("-0.75"))
        meter.close()
    meter = tokenmeter.make_meter(store=store)
    assert billed(meter) == before
    meter.close()


def test_what_is_taken_back_under_other_factors_reads_as_it_was_billed(store):
    for multiplier in ("1", "1.25", "1.5"):
        meter = tokenmeter.make_meter(store=store, multiplier=multiplier)
        if multiplier == "1":
            first = recorded(meter)
        else:
            assert len(meter.reprice(changed=True, post=True)) == 1
        corrections = [one for one in meter.entries() if one.kind == "correction"]
        meter.close()
    taken = reversal(first, corrections)
    assert {tuple(line.multipliers.items()) for line in taken.charges} == {(("platform", Decimal("1.5")),)}
    for line in (line for one in (*corrections, taken) for line in one.charges):
        price = reduce(EXACT.multiply, line.multipliers.values(), line.list_unit_price)
        assert line.billed_cost == EXACT.multiply(line.quantity, price), line
    assert add(taken.billed_cost, total(one.billed_cost for one in (first, *corrections))) == 0


def test_only_what_was_asked_for_is_rated_again(store):
    meter = tokenmeter.make_meter(store=store)
    old, new = recorded(meter, at=AT.replace(month=10)), recorded(meter)
    recorded(meter, "gpt-5-mini")
    meter.close()
    meter = tokenmeter.make_meter(store=store, multiplier="3")
    assert [one.corrects for one in meter.reprice(changed=True, period="2026-10")] == [old.entry_id]
    where = {"model": "gpt-5"}
    assert [one.corrects for one in meter.reprice(changed=True, where=where, period="2026-11")] == [new.entry_id]
    meter.close()


def test_an_entry_without_a_price_is_corrected_at_once_and_then_like_any_other(store):
    meter = tokenmeter.make_meter(store=store)
    unknown = recorded(meter, "our-own")
    assert meter.reprice() == meter.reprice(changed=True) == []
    meter.close()
    rows = [{**ROW, "model": "our-own", "sku_meter": name} for name in ("input", "output")]
    meter = tokenmeter.make_meter(store=store, prices=rows)
    (posted,) = meter.reprice()
    assert (posted.corrects, posted.list_cost) == (unknown.entry_id, Decimal("2.5025"))
    assert meter.reprice(changed=True) == meter.reprice(post=False) == []
    meter.close()
    meter = tokenmeter.make_meter(store=store, prices=[{**row, "unit_price": "5"} for row in rows])
    (posted,) = meter.reprice(changed=True, post=True)
    assert posted.list_cost == Decimal("2.5025")
    assert tokenmeter.report(meter=meter).totals.unpriced == 0
    meter.close()


def test_a_cost_that_the_biller_stated_stays(store):
    meter = tokenmeter.make_meter(store=store)
    body = {
        "model": "openai/gpt-5",
        "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11, "cost": 0.5},
    }
    seen = observe(body, provider="openrouter", endpoint="chat.completions")
    rating = meter.pricer.rate(seen, provider="openrouter", endpoint="chat.completions", at=AT)
    assert rating.cost_source == "billed"
    entry = Entry(
        occurred_at=AT, provider="openrouter", endpoint="chat.completions", operation="chat", usage=seen.usage,
        charges=rating.charges, list_cost=rating.list_cost, billed_cost=rating.billed_cost, cost_source="billed",
    )  # fmt: skip
    meter.post(entry)
    meter.close()
    meter = tokenmeter.make_meter(store=store, multiplier="3")
    assert meter.reprice(changed=True) == []
    meter.close()


def test_the_command_shows_first_and_posts_when_told(store, tmp_path, run_command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    meter = tokenmeter.make_meter(store=store)
    recorded(meter)
    recorded(meter, "our-own")
    meter.close()
    (tmp_path / "tokenmeter.toml").write_text(f'store = "{store}"\nmultiplier = "2"\n')
    shown = run_command("reprice", "--changed")
    assert shown.code == 0, shown.err
    assert "+$1.26" in shown.out
    assert "--post" in shown.out
    facts = json.loads(run_command("doctor", "--json").out)
    assert facts["facts"]["entries_unpriced"] == 1
    assert any("1 entry has no price" in warning for warning in facts["warnings"])
    done = json.loads(run_command("reprice", "--changed", "--post", "--json").out)
    assert (done["recorded"], done["corrections"], done["billed_cost"]) == (True, 1, "1.260000000000")
    assert "no entry's cost differs" in run_command("reprice", "--changed").out
