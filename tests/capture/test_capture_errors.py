"""Calls that fail: the SDK's own error reaches the caller, and the entry says how it went and what it cost."""

from __future__ import annotations

import inspect
import json
import threading
import time

import anthropic
import openai
import pytest
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

import tokenmeter
from tokenmeter.errors import BudgetExceededError

MESSAGES = [{"role": "user", "content": "Tell me about the sea, please."}]
CHAT = {"model": "gpt-5-mini", "messages": MESSAGES}
MESSAGE = {"model": "claude-sonnet-5", "max_tokens": 64, "messages": MESSAGES}


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic"])
async def test_retries_are_one_entry_with_their_number(name, clients, books, provider, do):
    provider.fail(503, times=2, retry_after=0.001)
    client = clients.make(name, max_retries=3)
    await do(client.chat.completions.create(**CHAT) if "OpenAI" in name else client.messages.create(**MESSAGE))
    await do(client.close())
    entry = books.one()
    assert (entry.status, entry.attempts) == ("ok", 3)
    assert books.quantities() == dict(provider.total.quantities)


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic"])
@pytest.mark.parametrize(
    ("status", "error"),
    [(400, "BadRequestError"), (401, "AuthenticationError"), (429, "RateLimitError"), (500, "InternalServerError")],
)
async def test_a_refused_call_costs_nothing_and_names_its_error(name, status, error, clients, books, provider, do):
    provider.fail(status)
    client = clients.make(name)
    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as raised:
        await do(client.chat.completions.create(**CHAT) if "OpenAI" in name else client.messages.create(**MESSAGE))
    await do(client.close())
    entry = books.one()
    assert type(raised.value).__name__ == entry.error_type == error
    assert (entry.status, entry.attempts, entry.billed_cost) == ("error", 1, None)
    assert not entry.usage
    assert entry.request_id == provider.truth[0].request_id


@pytest.mark.parametrize("name", ["OpenAI", "AsyncAnthropic"])
async def test_a_timeout_is_told_from_an_error(name, clients, books, provider, do):
    provider.answer(delay=60, times=2)
    client = clients.make(name, timeout=openai.Timeout(60, read=0.05), max_retries=1)
    with pytest.raises((openai.APITimeoutError, anthropic.APITimeoutError)):
        await do(client.chat.completions.create(**CHAT) if "OpenAI" in name else client.messages.create(**MESSAGE))
    await do(client.close())
    entry = books.one()
    assert (entry.status, entry.error_type, entry.attempts) == ("timeout", "APITimeoutError", 2)
    assert "billing_unknown" in entry.flags


def test_a_reset_connection_is_an_error(clients, books, provider):
    provider.reset_connection()
    with pytest.raises(openai.APIConnectionError):
        clients.openai().chat.completions.create(**CHAT)
    assert (books.one().status, books.one().error_type) == ("error", "APIConnectionError")


@pytest.mark.parametrize("body", [b"<html>no</html>", b"{", b"", b"null", b"[1]", b'{"usage": 7}', b'{"usage": {}}'])
def test_an_answer_nobody_can_read_behaves_as_with_the_plain_sdk_and_is_flagged(body, clients, books, provider):
    def attempt(client):
        try:
            return repr(client.chat.completions.create(**CHAT))
        except Exception as error:  # the comparison is the point
            return type(error).__name__

    provider.answer(body=body, headers={"content-type": "application/json"}, times=2)
    assert attempt(clients.openai()) == attempt(clients.openai(metered=False))
    assert {"usage_unknown", "estimated"} & set(books.one().flags)


def test_an_answer_that_fails_validation_is_billed_and_names_the_error(clients, books, provider):
    provider.answer(fields={"choices": "none"})
    client = clients.openai(_strict_response_validation=True)
    with pytest.raises(openai.APIResponseValidationError):
        client.chat.completions.create(**CHAT)
    entry = books.one()
    assert (entry.status, entry.error_type) == ("error", "APIResponseValidationError")
    assert entry.usage.input_tokens == provider.total.input_tokens


def test_a_call_that_never_left_makes_no_entry(clients, books, provider):
    with pytest.raises(TypeError):
        clients.openai().chat.completions.create(**CHAT, extra_body={"x": object()})
    assert provider.requests == []
    assert books.all() == []


def test_a_budget_stop_reaches_the_caller_as_it_is_and_nothing_is_sent(clients, provider):
    stopping = tokenmeter.make_meter(store="memory:", config={}, budgets=[{"limit_usd": "0.000001"}])
    client = tokenmeter.wrap(clients.openai(), stopping)
    with pytest.raises(BudgetExceededError):
        client.chat.completions.create(**CHAT)
    assert provider.requests == []
    assert not issubclass(BudgetExceededError, openai.OpenAIError)
    stopping.close()


def test_keyboard_interrupt_is_recorded_and_raised(clients, books, provider, monkeypatch):
    client = clients.openai()

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(client._client, "send", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.chat.completions.create(**CHAT)
    assert (books.one().status, books.one().error_type) == ("aborted", "KeyboardInterrupt")


def test_gzip_and_odd_pieces_change_nothing(clients, books, provider):
    provider.answer(encoding="gzip", split=7, times=2)
    client = clients.openai()
    list(client.chat.completions.create(**CHAT, stream=True))
    with client.chat.completions.with_streaming_response.create(
        **CHAT, stream=True, stream_options={"include_usage": True}
    ) as raw:
        list(raw.iter_bytes())
    assert books.quantities() == dict(provider.total.quantities)


def test_many_threads_over_one_client_lose_nothing(clients, books, provider):
    client = clients.openai()
    failures = []

    def work():
        try:
            for turn in range(5):
                if turn % 2:
                    list(client.chat.completions.create(**CHAT, stream=True))
                else:
                    client.chat.completions.create(**CHAT)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(books.all()) == 40
    assert books.quantities() == dict(provider.total.quantities)


def test_times_are_measured(clients, books, provider):
    provider.answer(delay=0.05, chunk_delay=0.02)
    begun = time.perf_counter()
    list(clients.openai().chat.completions.create(**CHAT, stream=True))
    took = (time.perf_counter() - begun) * 1_000_000
    entry = books.one()
    assert 50_000 <= entry.first_token_us < entry.latency_us <= took


class Prompt(BaseModel):
    model: str
    messages: list[dict[str, str]]


@pytest.mark.parametrize("given", [{"content": json.dumps(CHAT).encode()}, {"body": Prompt(**CHAT)}], ids=list)
def test_a_body_that_nobody_can_look_into_is_recorded_and_has_no_bound(given, clients, books):
    """Bytes of the caller's own, or an object that the SDK writes as JSON."""
    client = clients.openai()
    if "content" in given and "content" not in inspect.signature(client.post).parameters:
        pytest.skip("this SDK takes no bytes")
    sent = {"cast_to": ChatCompletion, "options": {"headers": {"content-type": "application/json"}}, **given}
    try:
        clients.openai(metered=False).post("/chat/completions", **sent)
    except TypeError:
        pytest.skip("this SDK writes no model as JSON")
    assert client.post("/chat/completions", **sent).choices
    assert (books.one().status, books.one().request_model) == ("ok", None)
    stopping = tokenmeter.make_meter(store="memory:", config={}, budgets=[{"limit_usd": 1000}])
    with pytest.raises(BudgetExceededError):
        tokenmeter.wrap(client, stopping).post("/chat/completions", **sent)
    stopping.close()


@pytest.mark.needs("openai.resources.responses:Responses")
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("ended", "status"), [("failed", "error"), ("incomplete", "ok")])
def test_a_response_that_says_it_failed_is_an_error_and_is_charged(streamed, ended, status, clients, books, provider):
    usage = {"input_tokens": 70, "output_tokens": 20, "total_tokens": 90}
    error = {"code": "server_error", "message": "Broke off."} if ended == "failed" else None
    body = {"id": "resp_1", "object": "response", "model": "gpt-5-mini", "status": ended, "output": [], "usage": usage}
    body |= {"error": error}
    if streamed:
        event = {"type": f"response.{ended}", "sequence_number": 0, "response": body}
        provider.answer(events=[event])
    else:
        provider.answer(body=body)
    with clients.make("OpenAI") as client:
        answer = client.responses.create(model="gpt-5-mini", input="Hello", stream=streamed)
        if streamed:
            list(answer)
    entry = books.one()
    assert (entry.status, entry.error_type) == (status, "server_error" if error else None)
    assert (entry.usage.input_tokens, entry.usage.output_tokens) == (70, 20)
    assert entry.billed_cost


@pytest.mark.needs("openai.resources.responses:Responses")
def test_a_response_that_an_event_says_has_failed_is_an_error(clients, books, provider):
    opened = {"id": "resp_1", "object": "response", "model": "gpt-5-mini", "status": "in_progress", "output": []}
    words = {"type": "response.output_text.delta", "sequence_number": 1, "delta": "The sea", "output_index": 0}
    failed = {"type": "error", "sequence_number": 2, "code": "server_error", "message": "no", "param": None}
    provider.answer(events=[{"type": "response.created", "sequence_number": 0, "response": opened}, words, failed])
    with clients.make("OpenAI") as client:
        list(client.responses.create(model="gpt-5-mini", input="Hello", stream=True))
    entry = books.one()
    assert (entry.status, entry.error_type, entry.cost_source) == ("error", "server_error", "estimated")
