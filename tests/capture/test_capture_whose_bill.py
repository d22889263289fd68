"""Calls that are no bill, or somebody else's: asked of metered clients, over HTTP."""

from __future__ import annotations

import importlib
from decimal import Decimal

import openai
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


def answering(body, url, meter):
    """A metered client of a host at `url`, every request of which is answered with `body`."""
    http = importlib.import_module(next(one.__module__ for one in openai.DefaultHttpxClient.__mro__[1:]).split(".")[0])
    transport = http.MockTransport(lambda request: http.Response(200, json=body(request)))
    client = openai.OpenAI(api_key="k", base_url=url, http_client=http.Client(transport=transport))
    return tokenmeter.wrap(client, meter)


@pytest.mark.parametrize(
    ("url", "model", "provider", "cost", "flags"),
    [
        ("https://us-central1-aiplatform.googleapis.com/v1", "google/gemini-3.5-flash", "google", "2.64", ()),
        ("https://aiplatform.eu.rep.googleapis.com/v1", "google/gemini-3.5-flash", "google", "2.64", ()),
        ("https://aiplatform.googleapis.com/v1", "google/gemini-3.5-flash", "google", "2.4", ()),
        ("https://api.x.ai/v1", "grok-4.5", "x-ai", None, ()),
        ("https://us.api.x.ai/v1", "grok-4.5", "x-ai", "1.1", ()),
        ("https://eu-west-1.api.x.ai/v1", "grok-4.5", "x-ai", "1", ("region_rate_assumed",)),
        ("https://router.huggingface.co/v1", "openai/gpt-oss-120b:groq", "huggingface_groq", "0.225", ()),
        ("https://router.huggingface.co/v1", "openai/gpt-oss-120b:fastest", "huggingface", None, None),
        ("https://router.huggingface.co/v1", "openai/gpt-oss-120b", "huggingface", None, None),
    ],
)
def test_a_regional_host_and_a_router_are_billed_as_they_bill(meter, url, model, provider, cost, flags):
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 100_000, "total_tokens": 1_100_000}
    body = {**STORED, "model": model.partition(":")[0], "usage": usage}
    made = [answering(lambda _: body, url, meter), answering(lambda _: body, "https://api.x.ai/v1", meter)]
    for client in made * 2:  # the second call of each goes by what the first one learnt
        client.chat.completions.create(model=model, messages=ASKED["messages"])
    first, plain, again, _ = meter.store.entries()
    assert {(entry.provider, entry.billed_cost, entry.flags) for entry in (first, again)} == {
        (provider, first.billed_cost, first.flags)
    }
    if flags is not None:
        assert first.flags == flags
    if cost is not None:
        wanted = Decimal(cost) if provider != "x-ai" else Decimal(cost) * plain.billed_cost
        assert first.billed_cost == wanted


@pytest.mark.filterwarnings("ignore:The Sora API")
def test_what_a_video_is_extended_by_is_billed(meter):
    def body(request):
        longer = "extensions" in request.url.path or request.url.path.endswith("video_2")
        status = "queued" if request.method == "POST" else "completed"
        video = {"object": "video", "model": "sora-2", "created_at": 1, "progress": 100, "size": "720x1280"}
        return {**video, "id": f"video_{1 + longer}", "status": status, "seconds": "24" if longer else "20"}

    client = answering(body, "https://api.openai.com/v1", meter)
    client.videos.create(model="sora-2", prompt="a fox", seconds="20")
    client.videos.retrieve("video_1")
    client.videos.extend(prompt="it runs", seconds="4", video=("v.mp4", b"x"))
    client.videos.retrieve("video_2")
    entries = list(meter.store.entries())
    assert [(one.endpoint, dict(one.usage.quantities)) for one in entries] == [
        ("videos", {"seconds_video": 20}),
        ("videos.extend", {"seconds_video": 4}),
    ]
    assert entries[0].billed_cost == entries[1].billed_cost * 5
