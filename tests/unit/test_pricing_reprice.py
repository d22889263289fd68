"""What was recorded is rated again: without a price, or at a price that has changed since. The ledger only grows."""

import csv
import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import reduce

import pytest

import tokenmeter
from tokenmeter.ledger import Entry
from tokenmeter.money import EXACT, add, total
from tokenmeter.pricing.corrections import reversal
from tokenmeter.providers import observe
from tokenmeter.usage import Consumption, Observation, Usage

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


def test_who_has_calls_priced_anew_stands_with_each_correction(store):
    first = tokenmeter.make_meter(store=store)
    recorded(first)
    before = first.report(by="member", period="all").totals
    first.close()
    meter = tokenmeter.make_meter(store=store, prices=[ROW])
    (posted,) = meter.reprice(changed=True, post=True, by="kim")
    (kept,) = (entry for entry in meter.entries() if entry.kind == "correction")
    assert (kept.entry_id, kept.attribution.tags) == (posted.entry_id, {"posted_by": "kim"})
    assert meter.reprice(changed=True, post=True, by="lee") == []
    (row,) = meter.report(by="member", period="all").rows
    assert (row.requests, row.list_cost) == (before.requests, add(before.list_cost, posted.list_cost))
    with pytest.raises(tokenmeter.ConfigurationError, match="by"):
        meter.reprice(by="")
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


def turns(*prompts, model="claude-haiku-5-5"):
    """A message of Claude whose server tools took several prompts."""
    each = [{"type": "message", "input_tokens": prompt, "output_tokens": 500} for prompt in prompts]
    usage = {"input_tokens": sum(prompts), "output_tokens": 500 * len(prompts), "iterations": each}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "done"}],
        "usage": usage,
    }


def priced(meter, seen, *, provider="openai", endpoint="chat.completions", **more):
    """`seen` recorded as an entry, with the charges that `replaced` makes of those it was priced at."""
    replaced = more.pop("replaced", lambda charges: charges)
    rating = meter.pricer.rate(seen, provider=provider, endpoint=endpoint, at=AT)
    entry = Entry(
        occurred_at=AT,
        provider=provider,
        endpoint=endpoint,
        operation="chat",
        response_model=seen.response_model,
        usage=seen.usage,
        charges=tuple(replaced(rating.charges)),
        **{name: getattr(rating, name) for name in ("list_cost", "contracted_cost", "billed_cost", "cost_source")},
        flags=tuple(sorted(rating.flags)),
        **more,
    )
    assert meter.post(entry)
    return entry


def rows(model="m", *, provider="openai", **prices):
    """Rows of a model: ``input="1"``, or ``input=("1", "2")`` for prompts up to 200,000 tokens and beyond."""
    return [
        {"provider": provider, "model": model, "sku_meter": meter, "unit_price": price, **tier}
        for meter, told in prices.items()
        for price, tier in zip(
            (told,) if isinstance(told, str) else told, ({}, {"min_input_tokens": 200_000}), strict=False
        )
    ]


def test_several_prompts_are_not_taken_for_one_long_prompt(store, tmp_path):
    meter = tokenmeter.make_meter(store=store)
    meter.record(turns(80_000, 90_000), provider="anthropic", endpoint="beta.messages", at=AT)
    searched = {"promptTokenCount": 190_000, "toolUsePromptTokenCount": 20_000, "candidatesTokenCount": 1_000}
    body = {"responseId": "r", "modelVersion": "gemini-2.5-pro", "candidates": [], "usageMetadata": searched}
    meter.record(body, provider="google", endpoint="models.generate_content", at=AT)
    assert billed(meter) == Decimal("0.29")  # 0.0175 and 0.2725
    told = [line.price_id for entry in meter.entries() for line in entry.charges if line.sku_meter == "input"]
    assert [price_id.partition("|")[2] for price_id in told] == ["prompt=80000", "prompt=90000", "prompt=190000"]
    meter.export_focus(tmp_path / "focus", period="2026-11")
    with (tmp_path / "focus" / "cost_and_usage.csv").open(newline="") as file:
        prices = [row["SkuPriceId"] for row in csv.DictReader(file)]
    assert len(prices) == len(set(prices)) == 4, "a row for each price, and not for each prompt"
    assert meter.reprice(changed=True) == []
    meter.close()
    tier = {"provider": "anthropic", "model": "claude-haiku-5-5", "min_input_tokens": 85_000}
    changed = [{**tier, "sku_meter": meter, "unit_price": "10"} for meter in ("input", "output")]
    meter = tokenmeter.make_meter(store=store, prices=changed)
    (found,) = meter.reprice(changed=True, post=True)  # of the two prompts one is longer than the new tier
    assert found.billed_cost == Decimal("0.89575")  # 0.905 for what was 0.00925
    assert meter.reprice(changed=True) == []
    assert meter.verify().ok
    meter.close()


def test_a_total_of_many_prompts_that_gets_its_price_later_has_that_of_short_ones(store):
    usage = {"input_tokens": 1_000_000, "output_tokens": 100_000, "total_tokens": 1_100_000}
    counts = {"total": 1_000, "completed": 1_000, "failed": 0}
    body = {
        "id": "batch_1",
        "object": "batch",
        "status": "completed",
        "model": "m",
        "output_file_id": "file-1",
        "endpoint": "/v1/chat/completions",
        "request_counts": counts,
        "usage": usage,
    }
    meter = tokenmeter.make_meter(store=store)
    meter.record(body, provider="openai", endpoint="batches.retrieve", at=AT)
    meter.close()
    meter = tokenmeter.make_meter(store=store, prices=rows(input=("1", "2"), output=("4", "6")))
    (found,) = meter.reprice()
    wanted = meter.price(body, provider="openai", endpoint="batches.retrieve", at=AT)
    assert found.list_cost == wanted.list_cost == Decimal("0.7")
    assert "tier_ambiguous" in found.flags
    assert meter.reprice(changed=True) == []
    meter.close()


def test_what_was_done_in_a_batch_has_the_prices_of_its_own_endpoint(store):
    usage = {"input_tokens": 1_000_000, "output_tokens": 100_000, "total_tokens": 1_100_000}
    search = {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "x"}}
    answer = {"id": "r", "object": "response", "status": "completed", "model": "gpt-4o", "usage": usage}
    answer |= {"output": [search], "tools": [{"type": "web_search"}]}
    line = {"custom_id": "1", "response": {"status_code": 200, "body": answer}, "error": None}
    whole = {"id": "b", "object": "batch", "status": "completed", "model": "gpt-4o", "endpoint": "/v1/responses"}
    whole |= {"usage": usage}
    meter = tokenmeter.make_meter(store=store)
    for endpoint, body in (("files.content", line), ("batches.retrieve", whole)):
        meter.record(body, provider="azure", endpoint=endpoint, at=AT)
    found = [line for entry in meter.entries() for line in entry.charges if line.sku_meter == "web_searches"]
    assert [line.list_cost for line in found] == [Decimal("0.014")], "Azure's own, and not OpenAI's 0.01"
    assert meter.reprice(changed=True) == []
    meter.close()
    changed = {"provider": "azure", "model": "gpt-4o", "endpoint": "responses", "processing": "batch"}
    meter = tokenmeter.make_meter(store=store, prices=[changed | {"sku_meter": "output", "unit_price": "50"}])
    corrected = meter.reprice(changed=True, post=True)  # 100,000 tokens at 50, and not at half of 10
    assert [each.list_cost for each in corrected] == [Decimal("4.5"), Decimal("4.5")]
    assert meter.reprice(changed=True) == []
    assert meter.verify().ok
    meter.close()


def groups(*used):
    """Groups by model, role, prompt size and tokens of input."""
    return Observation(
        consumptions=tuple(
            Consumption(model=model, role=role, prompt_tokens=size, usage=Usage({"input": tokens}))
            for model, role, size, tokens in used
        ),
        response_model="m",
    )


@pytest.mark.parametrize("recorded_before", [False, True])
def test_a_prompt_of_known_size_keeps_it_beside_one_that_is_in_doubt(store, recorded_before):
    def without_sizes(charges):  # as entries were that did not tell them
        listed = ((line, line.price_id.partition("|")[0]) for line in charges)
        return [replace(line, price_id=price_id) for line, price_id in listed]

    both = [*rows(input=("1", "2")), *rows("other", input=("1", "2"))]
    seen = groups(("m", "message", None, 300_000), ("other", "advisor_message", 300_000, 300_000))
    replaced = without_sizes if recorded_before else list
    meter = tokenmeter.make_meter(store=store, prices=both)
    entry = priced(meter, seen, replaced=replaced)
    loop = priced(meter, groups(*[("m", "message", 150_000, 150_000)] * 2), replaced=replaced)
    long = priced(meter, groups(*[("m", "message", size, size) for size in (150_000, 250_000)]), replaced=replaced)
    assert [one.list_cost for one in (entry, loop, long)] == [Decimal("0.9"), Decimal("0.3"), Decimal("0.65")]
    assert meter.reprice(changed=True) == []
    meter.close()
    dearer = [{**row, "unit_price": f"{row['unit_price']}0"} for row in both]
    meter = tokenmeter.make_meter(store=store, prices=dearer)
    found = {one.corrects: one.list_cost for one in meter.reprice(changed=True, post=True)}
    more = [Decimal("8.1"), Decimal("2.7"), Decimal("5.85")]  # ten times what each of them has cost
    assert found == dict(zip([one.entry_id for one in (entry, loop, long)], more, strict=True))
    assert meter.reprice(changed=True) == []
    meter.close()


FEE = {"provider": "openai", "model": "m", "sku_meter": "requests", "unit_price": "0.01", "per": 1}


def test_the_fee_of_a_request_is_not_billed_again_when_a_line_gets_its_price(store):
    turbo = Consumption(model="m", usage=Usage({"input": 1_000}), service_tier="turbo", prompt_tokens=1_000)
    known, other = groups(("m", "message", 1_000, 1_000)), groups(("other", "advisor_message", 1_000, 1_000))
    listed = [FEE, *rows(input="1")]
    meter = tokenmeter.make_meter(store=store, prices=listed)
    priced(meter, Observation(consumptions=(turbo,), response_model="m"))
    priced(meter, replace(known, consumptions=known.consumptions + other.consumptions))
    priced(meter, replace(known, consumptions=other.consumptions + known.consumptions))
    assert billed(meter) == Decimal("0.032")
    meter.close()
    listed += [{**row, "service_tier": "turbo"} for row in rows(input="2")] + rows("other", input="3")
    meter = tokenmeter.make_meter(store=store, prices=listed)
    assert sorted(one.billed_cost for one in meter.reprice()) == [Decimal("0.002"), Decimal("0.003"), Decimal("0.003")]
    assert meter.reprice(changed=True) == []
    meter.close()


def test_an_unknown_model_that_is_listed_later_gets_its_fee_once(store):
    meter = tokenmeter.make_meter(store=store)
    priced(meter, groups(*[("m", "message", 10, 10)] * 3))
    meter.close()
    meter = tokenmeter.make_meter(store=store, prices=[FEE, *rows(input="1")])
    (found,) = meter.reprice()
    assert found.billed_cost == Decimal("0.01003")
    assert meter.reprice(changed=True) == []
    meter.close()
    meter = tokenmeter.make_meter(store=store, prices=[{**FEE, "unit_price": "0.02"}, *rows(input="1")])
    assert [one.billed_cost for one in meter.reprice(changed=True)] == [Decimal("0.01")]
    meter.close()


def test_requests_that_were_counted_are_rated_again_as_they_were_counted(store):
    counted = Consumption(model="m", usage=Usage({"requests": 3, "input": 10}), prompt_tokens=10)
    meter = tokenmeter.make_meter(store=store, prices=[FEE, *rows(input="1")])
    entry = priced(meter, Observation(consumptions=(counted,), response_model="m"))
    assert entry.list_cost == Decimal("0.03001")
    assert meter.reprice(changed=True) == []
    meter.close()


def test_a_request_has_its_fee_once_whatever_worked_on_it(store):
    every = [{**FEE, "model": "*", "unit_price": "0.02"}, {**FEE, "provider": "anthropic", "model": "claude-haiku-5-5"}]
    meter = tokenmeter.make_meter(store=store, prices=every)
    for count in (1, 3):
        body = turns(*[10] * count)
        rating = meter.price(body, provider="anthropic", endpoint="beta.messages", at=AT)
        assert [line.quantity for line in rating.charges if line.sku_meter == "requests"] == [1]
    ran = {"type": "code_interpreter_call", "id": "ci_1", "container_id": "cntr_1", "status": "completed"}
    body = {
        "id": "resp_1",
        "object": "response",
        "model": "gpt-5",
        "status": "completed",
        "output": [ran],
        "tools": [{"type": "code_interpreter", "container": {"type": "auto"}}],
        "usage": {"input_tokens": 10, "output_tokens": 10, "total_tokens": 20},
    }
    rating = meter.price(body, provider="openai", endpoint="responses", at=AT)
    meter.record(body, provider="openai", endpoint="responses", at=AT)
    lines = [line for entry in meter.entries() for line in entry.charges]
    for charges in (rating.charges, lines):
        assert [line.quantity for line in charges if line.sku_meter == "requests"] == [1]
        assert any(line.sku_meter.startswith("container") for line in charges)
    assert total(line.list_cost for line in lines) == rating.list_cost
    assert meter.reprice(changed=True) == []
    meter.close()
