"""Where the SDK asks a function for its key, caps on a key hold against the key that the request really leaves with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading

import pytest

import tokenmeter
from tokenmeter.processes import may_wait
from tokenmeter.testing import FakeProvider

MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT = {"model": "gpt-5-mini", "messages": MESSAGES}
ADA, BOB = "sk-ada-0123456789abcdefgh", "sk-bob-0123456789abcdefgh"
#: Client class -> the argument that takes the function.
PROVIDERS = {
    "OpenAI": "api_key",
    "AsyncOpenAI": "api_key",
    "AzureOpenAI": "azure_ad_token_provider",
    "AsyncAzureOpenAI": "azure_ad_token_provider",
}


def _capped(**budget):
    keys = {"ada": ADA, "bob": BOB}
    return tokenmeter.make_meter(store="memory:", config={}, api_keys=keys, budgets=[{"api_key": "ada", **budget}])


def _client(clients, name, hand_out, *, metered=True):
    """A client of class `name` that is given its keys by `hand_out`."""

    async def hand_out_async():
        await asyncio.sleep(0)
        return hand_out()

    options = {PROVIDERS[name]: hand_out_async if name.startswith("Async") else hand_out}
    if "Azure" in name:
        options |= {"base_url": f"{clients.provider.url}/openai/deployments/d", "api_version": "2024-10-21"}
        options.setdefault("api_key", None)
    client = clients.make(name, metered=metered, **options)
    if PROVIDERS[name] == "api_key" and not hasattr(client, "_api_key_provider"):
        pytest.skip("this SDK version takes no key provider")
    return client


@pytest.mark.parametrize("metered", [True, False], ids=["our class", "wrapped"])
@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_cap_on_a_key_stops_the_calls_that_would_leave_with_it_and_no_others(
    name, metered, clients, provider, do
):
    handed_out = [ADA, ADA, BOB, ADA]
    asked = iter(handed_out)
    client = _client(clients, name, lambda: next(asked), metered=metered)
    meter = _capped(limit_requests=1)
    tokenmeter.wrap(client, meter)
    outcomes = []
    for _ in handed_out:
        try:
            await do(client.chat.completions.create(**CHAT))
            outcomes.append("sent")
        except tokenmeter.BudgetExceededError:
            outcomes.append("stopped")
    assert outcomes == ["sent", "stopped", "sent", "stopped"]
    assert [request.api_key for request in provider.requests] == [ADA, BOB]
    assert [entry.api_key.alias for entry in meter.store.entries()] == ["ada", "bob"]
    meter.close()


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
async def test_a_cap_injected_by_a_budget_on_a_handed_out_key_is_on_every_attempt(name, clients, provider, do):
    client = _client(clients, name, lambda: ADA).with_options(max_retries=1)
    meter = _capped(limit_tokens=1_000, inject_max_tokens=True)
    tokenmeter.wrap(client, meter)
    provider.fail(500, retry_after=0.01)
    await do(client.chat.completions.create(**CHAT))
    caps = [json.loads(request.body).get("max_completion_tokens") for request in provider.requests]
    assert len(caps) == 2
    assert caps[0] == caps[1]
    assert caps[0] < 1_000
    meter.close()


async def test_tasks_that_share_a_client_are_each_recorded_under_the_key_they_were_sent_with(clients, provider, meter):
    turns = iter(range(20))
    client = _client(clients, "AsyncOpenAI", lambda: (ADA, BOB)[next(turns) % 2])
    await asyncio.gather(*(client.chat.completions.create(**CHAT, user=str(number)) for number in range(20)))
    recorded = {entry.response_id: entry.api_key.last4 for entry in meter.store.entries()}
    assert len(recorded) == 20
    sent = [request.api_key for request in provider.requests]
    assert sorted(key[-4:] for key in sent) == sorted(recorded.values())


async def test_waiting_for_the_store_never_sends_a_call_with_another_tasks_key(clients, provider, meter, monkeypatch):
    plain, waiting = meter.authorize, threading.Event()

    def authorize(call):
        if not may_wait():
            raise tokenmeter.errors.StoreBusyError("held by somebody else")
        waiting.wait(0.05)
        return plain(call)

    monkeypatch.setattr(meter, "authorize", authorize)
    turns = iter(range(6))
    client = _client(clients, "AsyncOpenAI", lambda: f"sk-task-0123456789-{next(turns):04}")
    await asyncio.gather(*(client.chat.completions.create(**CHAT) for _ in range(6)))
    assert sorted(request.api_key[-4:] for request in provider.requests) == [f"{turn:04}" for turn in range(6)]


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
async def test_calls_that_a_key_provider_makes_are_not_taken_for_the_call_that_asked(name, clients, books, do):
    helper = clients.openai()

    def hand_out():
        helper.models.list()  # free
        helper.embeddings.create(model="text-embedding-3-small", input="key")
        return ADA

    client = _client(clients, name, hand_out)
    await do(client.chat.completions.create(**CHAT))
    assert sorted((entry.endpoint, entry.attempts) for entry in books.all()) == [
        ("chat.completions", 1),
        ("embeddings", 1),
    ]


def test_foundrys_token_is_the_key_and_not_the_one_in_the_environment(clients, books, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-of-something-else-9999")
    if not hasattr(tokenmeter.anthropic, "AnthropicFoundry"):
        pytest.skip("this SDK version has no Foundry client")
    client = clients.make("AnthropicFoundry", api_key=None, azure_ad_token_provider=lambda: ADA)
    client.messages.create(model="claude-sonnet-5", max_tokens=64, messages=MESSAGES)
    assert books.one().api_key.last4 == ADA[-4:]


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
async def test_a_cap_on_a_key_stops_the_answers_of_a_connection_that_was_made_with_it(name, clients, do):
    meter = _capped(limit_usd="0.000001")
    with FakeProvider(realtime=True) as clients.provider:
        for key, stopped in ((BOB, False), (ADA, True)):
            client = tokenmeter.wrap(_client(clients, name, lambda key=key: key), meter)
            if not hasattr(client, "realtime"):
                pytest.skip("this SDK version has no such connection")
            async with do.inside(client.realtime.connect(model="gpt-realtime")) as connection:
                with pytest.raises(tokenmeter.BudgetExceededError) if stopped else contextlib.nullcontext():
                    await do(connection.response.create())
    meter.close()


@pytest.mark.parametrize("where", ["of the call", "of the client", "of a copy"])
@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic"])
async def test_a_key_given_by_header_is_the_one_that_is_booked_and_capped(name, where, clients, provider, do):
    """The provider bills the key that is sent, whatever key the client was made with."""
    header = {"Authorization": f"Bearer {ADA}"} if "OpenAI" in name else {"X-Api-Key": ADA}
    client = clients.make(name, api_key=BOB, **({"default_headers": header} if where == "of the client" else {}))
    meter = _capped(limit_requests=1)
    client = tokenmeter.wrap(client, meter)
    if where == "of a copy":
        client = client.with_options(default_headers=header)
    each = {"extra_headers": header} if where == "of the call" else {}

    async def call(**more):
        if "OpenAI" in name:
            return await do(client.chat.completions.create(**CHAT, **more))
        return await do(client.messages.create(model="claude-sonnet-5", max_tokens=9, messages=MESSAGES, **more))

    await call(**each)
    with pytest.raises(tokenmeter.BudgetExceededError):
        await call(**each)
    assert [entry.api_key.alias for entry in meter.store.entries()] == ["ada"]
    meter.close()
