"""Calls that are no bill, or somebody else's: asked of metered clients, over HTTP."""

from __future__ import annotations

import pytest

import tokenmeter
from tokenmeter.budgets import Budget

ASKED = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}
STORED = {
    "id": "chatcmpl-stored",
    "object": "chat.completion",
    "created": 1_795_000_000,
    "model": "gpt-4o-2024-11-20",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}],
    "usage": {"prompt_tokens": 100_000, "completion_tokens": 1_000, "total_tokens": 101_000},
}


@pytest.fixture
def capped():
    """A meter with a cap that one request uses up."""
    made = tokenmeter.make_meter(store="memory:", budgets=[Budget(limit_requests=1)], config={})
    yield made
    made.close()


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
async def test_what_is_stored_is_changed_without_a_bill_or_a_cap(provider, clients, do, capped, name):
    provider.answer(path="*/chat/completions*", body=STORED, times=2)
    client = tokenmeter.wrap(clients.make(name, metered=False), capped)
    await do(client.chat.completions.create(**ASKED, store=True))
    changed = await do(client.chat.completions.update("chatcmpl-stored", metadata={"topic": "sea"}))
    assert changed.usage.total_tokens == 101_000
    (entry,) = capped.entries()
    assert (entry.endpoint, entry.usage.total_tokens) == ("chat.completions", 101_000)
    with pytest.raises(tokenmeter.BudgetExceededError):
        await do(client.chat.completions.create(**ASKED))


PROFILE = {"type": "billing_policy", "bill_to": "user_profile"}
MESSAGE = {"max_tokens": 64, "messages": ASKED["messages"]}


@pytest.fixture
def metered():
    """A meter with a cap of a cent, and one of tokens."""
    budgets = [Budget(limit_usd="0.01"), Budget(limit_tokens=1_000_000)]
    made = tokenmeter.make_meter(store="memory:", budgets=budgets, config={})
    yield made
    made.close()


@pytest.mark.parametrize("name", ["Anthropic", "AsyncAnthropic"])
@pytest.mark.parametrize("model", ["claude-opus-5-5", "claude-unheard-of-9"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_what_the_customer_behind_a_profile_pays_costs_nothing_here(
    provider, clients, do, metered, name, model, stream
):
    provider.answer(meters={"input": 30, "output": 20}, times=2)
    client = tokenmeter.wrap(clients.make(name, metered=False), metered)
    tools = [{"type": "web_fetch_20250910", "name": "web_fetch"}]  # which has no bound in dollars
    asked = {"model": model, **MESSAGE, "stream": stream, "tools": tools}
    with pytest.raises(tokenmeter.BudgetExceededError):
        await do(client.beta.messages.create(**asked, billing_policy={**PROFILE, "bill_to": "self"}))
    with pytest.raises(tokenmeter.BudgetExceededError, match="tokens"):
        await do(client.beta.messages.create(**asked, billing_policy=PROFILE))
    del asked["tools"]
    answer = await do(client.beta.messages.create(**asked, billing_policy=PROFILE))
    if stream:
        async for _ in do.each(answer):
            pass
    (entry,) = metered.entries()
    assert (entry.billed_cost, entry.list_cost) == (0, 0)
    assert (entry.usage["input"], entry.usage["output"]) == (30, 20)
    assert entry.flags == ("billed_to_user_profile",)
    (cap, tokens) = metered.remaining()
    assert (cap.spent, cap.reserved, tokens.spent, tokens.reserved) == (0, 0, 50, 0)


def test_an_estimate_of_what_the_customer_pays_is_nothing():
    asked = {"model": "claude-opus-5-5", **MESSAGE}
    made = tokenmeter.estimate(
        request={**asked, "billing_policy": PROFILE}, provider="anthropic", endpoint="beta.messages"
    )
    assert (made.expected.billed_cost, made.upper_bound, made.upper_lines) == (0, 0, ())
    assert [charge.source for charge in made.expected.charges] == ["billed_to_user_profile"]
    assert tokenmeter.estimate(request=asked, provider="anthropic", endpoint="beta.messages").upper_bound > 0
