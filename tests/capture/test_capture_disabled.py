"""TOKENMETER_DISABLED=1: the SDK's plain behaviour, and nothing of ours is read, opened or written."""

from __future__ import annotations

import shutil

import openai
import pytest

import tokenmeter
import tokenmeter.anthropic
import tokenmeter.openai

ASK = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(autouse=True)
def off(monkeypatch, tmp_path):
    """A store that could not even be opened."""
    monkeypatch.setenv("TOKENMETER_DISABLED", "true")
    monkeypatch.setenv("TOKENMETER_STORE", "nonsense://")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    tokenmeter.reset()
    yield
    tokenmeter.reset()
    assert list(tmp_path.iterdir()) == []


def test_a_call_is_the_plain_sdks_byte_for_byte(provider):
    ours = tokenmeter.openai.OpenAI(base_url=provider.openai_url, api_key="sk-test")
    plain = openai.OpenAI(base_url=provider.openai_url, api_key="sk-test")
    for client in (ours, plain):
        client.chat.completions.create(**ASK)
        assert list(client.chat.completions.create(**ASK, stream=True))
    first, second = provider.requests[:2], provider.requests[2:]
    assert [request.body for request in first] == [request.body for request in second]
    assert all(b"stream_options" not in request.body for request in provider.requests)


def test_wrapped_and_anthropic_clients_too(provider):
    wrapped = tokenmeter.wrap(openai.OpenAI(base_url=provider.openai_url, api_key="sk-test"))
    assert wrapped.chat.completions.create(**ASK).usage
    claude = tokenmeter.anthropic.Anthropic(base_url=provider.anthropic_url, api_key="sk-test")
    assert claude.messages.create(model="claude-sonnet-5", max_tokens=9, messages=ASK["messages"]).usage


async def test_async_clients_too(provider):
    async with tokenmeter.openai.AsyncOpenAI(base_url=provider.openai_url, api_key="sk-test") as client:
        assert (await client.chat.completions.create(**ASK)).usage


def test_it_is_read_at_every_call(provider, meter, monkeypatch):
    client = tokenmeter.wrap(openai.OpenAI(base_url=provider.openai_url, api_key="sk-test"), meter)
    for value in ("1", "yes", "0", "", "off"):
        monkeypatch.setenv("TOKENMETER_DISABLED", value)
        client.with_options(timeout=30).chat.completions.create(**ASK)
    assert len(list(meter.store.entries())) == 3


def test_a_copy_made_meanwhile_is_metered_afterwards(provider, meter, monkeypatch):
    copied = tokenmeter.wrap(openai.OpenAI(base_url=provider.openai_url, api_key="sk-test"), meter).copy()
    monkeypatch.setenv("TOKENMETER_DISABLED", "0")
    copied.chat.completions.create(**ASK)
    assert len(list(meter.store.entries())) == 1


def test_settings_are_checked_and_no_ledger_is_opened(tmp_path, provider):
    with pytest.raises(tokenmeter.ConfigurationError, match="limit_usd"):
        tokenmeter.configure(store=f"sqlite:///{tmp_path}/off.db", budgets=[{"member": "*", "limit_usd": "much"}])
    tokenmeter.configure(store=f"sqlite:///{tmp_path}/off.db", budgets=[tokenmeter.Budget(limit_requests=0)])
    client = tokenmeter.wrap(openai.OpenAI(base_url=provider.openai_url, api_key="sk-test"))
    client.chat.completions.create(**ASK)
    tokenmeter.configure(multiplier="1.5")
    assert list(tmp_path.iterdir()) == []


def test_switched_on_again_what_was_configured_holds(tmp_path, provider, monkeypatch):
    meter = tokenmeter.configure(
        store=f"sqlite:///{tmp_path / 'books' / 'on.db'}", budgets=[tokenmeter.Budget(limit_requests=1)]
    )
    client = tokenmeter.wrap(openai.OpenAI(base_url=provider.openai_url, api_key="sk-test"))
    client.chat.completions.create(**ASK)
    monkeypatch.setenv("TOKENMETER_DISABLED", "0")
    client.chat.completions.create(**ASK)
    with pytest.raises(tokenmeter.BudgetExceededError):
        client.chat.completions.create(**ASK)
    assert len(list(meter.store.entries())) == len(list(tokenmeter.entries())) == 1
    tokenmeter.reset()
    shutil.rmtree(tmp_path / "books")
