"""One test per promise of a "Usage & Billing" page, end to end: SDK, real HTTP, real file, report."""

from __future__ import annotations

import asyncio
import json
import threading
from decimal import Decimal

import pytest

import tokenmeter
from tokenmeter.usage import Usage

QUESTION = [{"role": "user", "content": "What does a token cost?"}]
#: What holds on one machine holds on many: nothing but the store's URL changes.
SHARED = pytest.mark.parametrize("configure", ["sqlite", "postgres"], indirect=True)


def every_shape(openai, anthropic):
    """Each of the four endpoints, plain and streamed."""
    openai.chat.completions.create(model="gpt-5-mini", messages=QUESTION)
    for _ in openai.chat.completions.create(model="gpt-5-mini", messages=QUESTION, stream=True):
        pass
    openai.responses.create(model="gpt-5", input="What does a token cost?")
    for _ in openai.responses.create(model="gpt-5", input="What does a token cost?", stream=True):
        pass
    openai.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    anthropic.messages.create(model="claude-sonnet-5", max_tokens=100, messages=QUESTION)
    with anthropic.messages.stream(model="claude-haiku-4-5", max_tokens=100, messages=QUESTION) as stream:
        stream.until_done()


async def every_shape_async(openai, anthropic):
    await openai.chat.completions.create(model="gpt-5-mini", messages=QUESTION)
    async for _ in await openai.chat.completions.create(model="gpt-5-mini", messages=QUESTION, stream=True):
        pass
    await openai.responses.create(model="gpt-5", input="What does a token cost?")
    async for _ in await openai.responses.create(model="gpt-5", input="What does a token cost?", stream=True):
        pass
    await openai.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    await anthropic.messages.create(model="claude-sonnet-5", max_tokens=100, messages=QUESTION)
    async with anthropic.messages.stream(model="claude-haiku-4-5", max_tokens=100, messages=QUESTION) as stream:
        await stream.until_done()


def assert_recorded_is_true(provider):
    recorded = sorted((e.response_id or "", e.model or "", dict(e.usage.quantities)) for e in tokenmeter.entries())
    true = sorted((t.response_id or "", t.model or "", dict(t.meters.quantities)) for t in provider.billed)
    # Embeddings have no id on the wire, so they are compared by what they used.
    assert len(recorded) == len(true) > 0
    assert sorted(json.dumps(row[1:], sort_keys=True) for row in recorded) == sorted(
        json.dumps(row[1:], sort_keys=True) for row in true
    )


@SHARED
def test_accounting_is_token_accurate_for_every_shape(provider, configure, clients):
    configure()
    every_shape(*clients)
    assert len(provider.billed) == 7
    assert_recorded_is_true(provider)


@SHARED
def test_accounting_is_token_accurate_for_every_async_shape(provider, configure, async_clients):
    configure()

    async def run():
        make_openai, make_anthropic = async_clients
        async with make_openai() as openai, make_anthropic() as anthropic:
            await every_shape_async(openai, anthropic)

    asyncio.run(run())
    assert len(provider.billed) == 7
    assert_recorded_is_true(provider)


def test_a_call_is_on_disk_before_it_returns(provider, configure, clients, tmp_path):
    configure()
    openai, _ = clients
    openai.chat.completions.create(model="gpt-5-mini", messages=QUESTION)
    other = tokenmeter.make_meter(store=f"sqlite:///{tmp_path / 'usage.db'}")
    assert tokenmeter.report(meter=other).totals.requests == 1
    other.close()


def test_cached_tokens_are_billed_at_the_cached_rate(provider, configure, clients):
    configure()
    openai, _ = clients
    provider.answer(meters={"input": 100, "cache_read": 900, "output": 10})
    openai.chat.completions.create(model="gpt-5-mini", messages=QUESTION)
    (entry,) = tokenmeter.entries()
    by_meter = {charge.sku_meter: charge for charge in entry.charges}
    # gpt-5-mini: $0.25, $0.025 and $2 per million tokens
    assert by_meter["input"].list_cost == Decimal("0.000025")
    assert by_meter["cache_read"].list_cost == Decimal("0.0000225")
    assert by_meter["output"].list_cost == Decimal("0.00002")
    assert entry.list_cost == Decimal("0.0000675")
    assert entry.usage.input_tokens == 1000
    assert entry.usage.cache_read_input_tokens == 900


@SHARED
def test_usage_is_attributed_by_key_member_model_and_route(provider, configure, clients):
    configure(api_keys={"prod": "sk-acceptance-openai-0001"})
    openai, anthropic = clients
    with tokenmeter.attribute(member="ada", route="/a", tags={"ticket": "7"}):
        openai.chat.completions.create(model="gpt-5-mini", messages=QUESTION)
        with tokenmeter.attribute(member="grace"):
            anthropic.messages.create(model="claude-haiku-4-5", max_tokens=10, messages=QUESTION)
    rows = tokenmeter.report(by=["api_key", "member", "model", "route", "tag:ticket"]).rows
    assert {tuple(row.group.values()) for row in rows} == {
        ("prod", "ada", "gpt-5-mini", "/a", "7"),
        ("...0002", "grace", "claude-haiku-4-5", "/a", "7"),
    }
    assert all(row.requests == 1 for row in rows)


def test_a_scope_knows_what_was_called_inside_it(provider, configure, clients):
    configure(multiplier="2")
    openai, _ = clients
    with tokenmeter.attribute(member="ada") as scope:
        openai.chat.completions.create(model="gpt-5-mini", messages=QUESTION)
        stream = openai.chat.completions.create(model="gpt-5-mini", messages=QUESTION, stream=True)
    for _ in stream:  # read after the block ended: the stream belongs to the block it was opened in
        pass
    assert scope.requests == 2
    assert scope.usage.quantities == Usage.total(t.meters for t in provider.billed).quantities
    assert scope.billed_cost == 2 * scope.list_cost > 0


def test_the_platform_multiplier_stands_visibly_on_top(provider, configure, clients):
    configure(multiplier="1.05")
    openai, _ = clients
    openai.chat.completions.create(model="gpt-5-mini", messages=QUESTION)
    (entry,) = tokenmeter.entries()
    for charge in entry.charges:
        assert charge.multipliers["platform"] == Decimal("1.05")
        assert charge.billed_cost == charge.quantity * charge.list_unit_price * Decimal("1.05")
    assert entry.billed_cost == sum(charge.billed_cost for charge in entry.charges)
    assert "1.05" in str(tokenmeter.report())


@SHARED
def test_a_hard_cap_stops_the_call_before_it_leaves(provider, configure, clients):
    configure(budgets=[tokenmeter.Budget(member="ada", limit_usd="0.0000001")])
    openai, _ = clients
    with tokenmeter.attribute(member="ada"), pytest.raises(tokenmeter.BudgetExceededError) as stop:
        openai.chat.completions.create(model="gpt-5-mini", messages=QUESTION, max_completion_tokens=100)
    assert provider.requests == []
    assert stop.value.scope == {"member": "ada"}
    assert stop.value.limit == Decimal("0.0000001")
    with tokenmeter.attribute(member="grace"):
        openai.chat.completions.create(model="gpt-5-mini", messages=QUESTION)
    assert len(provider.requests) == 1


@SHARED
@pytest.mark.parametrize("unit", ["limit_requests", "limit_tokens"])
def test_a_monthly_cap_per_key_holds_against_concurrent_threads(provider, configure, clients, unit):
    limit = 5 if unit == "limit_requests" else 100_000
    configure(
        budgets=[tokenmeter.Budget(api_key="prod", **{unit: limit})], api_keys={"prod": "sk-acceptance-openai-0001"}
    )
    openai, _ = clients
    stopped = []

    def work():
        try:
            openai.chat.completions.create(model="gpt-5-mini", messages=QUESTION, max_completion_tokens=18_000)
        except tokenmeter.BudgetExceededError as stop:
            stopped.append(stop)

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(provider.requests) + len(stopped) == 12
    if unit == "limit_requests":
        assert len(provider.requests) == 5


def test_failed_calls_cost_nothing_and_are_seen(provider, configure, clients):
    import openai as sdk

    configure()
    openai, _ = clients
    provider.fail(status=429)
    with pytest.raises(sdk.RateLimitError):
        openai.chat.completions.create(model="gpt-5-mini", messages=QUESTION)
    (entry,) = tokenmeter.entries()
    assert (entry.status, entry.billed_cost, entry.cost_source, entry.error_type) == (
        "error", None, "none", "RateLimitError"
    )  # fmt: skip


def test_an_unknown_model_is_unpriced_never_free(provider, configure, clients):
    configure()
    openai, _ = clients
    openai.chat.completions.create(model="model-from-the-future", messages=QUESTION)
    (entry,) = tokenmeter.entries()
    assert entry.cost_source == "unpriced"
    assert entry.billed_cost is None
    assert entry.usage.input_tokens > 0
    assert "unpriced" in str(tokenmeter.report())


@SHARED
def test_rollups_are_real_time_and_every_partition_adds_up(provider, configure, clients):
    configure()
    every_shape(*clients)
    total = tokenmeter.report().totals
    assert total.requests == 7
    for by in ("model", "api_key", "provider", "member", "operation"):
        report = tokenmeter.report(by=by)
        assert sum(row.billed_cost for row in report.rows) == total.billed_cost
        assert sum(row.input_tokens for row in report.rows) == total.input_tokens


@SHARED
def test_the_ledger_can_be_audited(provider, configure, clients):
    configure()
    every_shape(*clients)
    outcome = tokenmeter.verify()
    assert outcome.ok
    assert outcome.entries == 7


def test_nothing_of_a_prompt_answer_or_key_is_stored(provider, configure, clients, tmp_path):
    meter = configure()
    openai, anthropic = clients
    provider.answer("the secret answer", times=2)
    openai.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "the secret question"}])
    anthropic.messages.create(
        model="claude-haiku-4-5", max_tokens=9, messages=[{"role": "user", "content": "the secret question"}]
    )
    meter.close()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (b"secret question", b"secret answer", b"sk-acceptance-openai", b"sk-ant-acceptance"):
                assert secret not in content, path


def test_a_broken_store_does_not_break_the_call(provider, configure, clients, caplog):
    meter = configure()
    openai, _ = clients

    def broken(*_args, **_kwargs):
        raise OSError("disk on fire")

    meter.store.settle = broken
    answer = openai.chat.completions.create(model="gpt-5-mini", messages=QUESTION)
    assert answer.choices
    assert meter.faults == 1
    assert "disk on fire" in caplog.text


def test_a_price_can_be_asked_without_a_call(configure):
    configure(store="memory:", multiplier="1.05")
    rating = tokenmeter.price(
        {"prompt_tokens": 1_000_000, "completion_tokens": 0, "total_tokens": 1_000_000},
        provider="openai",
        endpoint="chat.completions",
        model="gpt-5-mini",
        at="2026-11-01",
    )
    assert rating.list_cost == Decimal("0.25")
    assert rating.billed_cost == Decimal("0.2625")


def test_a_host_of_ones_own_is_billed_by_the_provider_it_is_named_for(provider, configure, clients):
    configure(config={"providers": {provider.url: "groq"}})
    openai, _ = clients
    openai.chat.completions.create(model="openai/gpt-oss-20b", messages=QUESTION)
    (entry,) = tokenmeter.entries()
    assert entry.provider == "groq"
    assert entry.cost_source == "computed"


@SHARED
def test_a_repriced_entry_is_corrected_once_and_counts_its_tokens_once(provider, configure, clients, tmp_path):
    configure()
    openai, _ = clients
    openai.chat.completions.create(model="model-from-the-future", messages=QUESTION)
    assert tokenmeter.reprice() == []
    price = {"provider": "openai", "model": "model-from-the-future", "per": 1_000_000, "source": "a contract"}
    configure(
        prices=[{**price, "sku_meter": "input", "unit_price": 2}, {**price, "sku_meter": "output", "unit_price": 10}]
    )
    before = tokenmeter.report().totals
    (correction,) = tokenmeter.reprice()
    after = tokenmeter.report().totals
    assert correction.kind == "correction"
    assert after.billed_cost == before.input_tokens * Decimal("0.000002") + before.output_tokens * Decimal("0.00001")
    assert (after.input_tokens, after.output_tokens, after.requests) == (before.input_tokens, before.output_tokens, 1)
    assert (before.unpriced, after.unpriced) == (1, 0)
    assert tokenmeter.reprice() == []
    assert tokenmeter.verify().ok


@SHARED
def test_a_month_is_closed_invoiced_and_stated_to_the_picodollar(provider, configure, clients):
    from datetime import UTC, datetime

    configure(multiplier="1.05", config={"billing": {"seller": "Platform Ltd", "currency": "USD"}})
    openai, _ = clients
    with tokenmeter.attribute(team="search"):
        openai.chat.completions.create(model="gpt-5-mini", messages=QUESTION)
    month = datetime.now(UTC).strftime("%Y-%m")
    total = tokenmeter.report().totals.billed_cost
    assert tokenmeter.statement(team="search", period=month).closing == total
    with pytest.raises(tokenmeter.LedgerError):  # the month is not over
        tokenmeter.close_period(month)
    draft = tokenmeter.invoice(team="search", period=month)
    assert draft.seller.name == "Platform Ltd"
    assert draft.totals.net + draft.totals.remainder == total
    assert tokenmeter.verify().ok
