"""LiteLLM takes our clients by `client=`: what its calls use is what is recorded, once."""

from __future__ import annotations

import asyncio
import os

import openai
import pytest
from pydantic import BaseModel

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

import tokenmeter
from tokenmeter.openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI

ASK = {"model": "openai/gpt-5-mini", "messages": [{"role": "user", "content": "Hello"}]}
TOOL = {
    "type": "function",
    "function": {"name": "temperature", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


class City(BaseModel):
    name: str
    country: str


def said(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_sync_calls_agree_with_the_providers_books(make_client, books):
    client = make_client(OpenAI)
    answer = litellm.completion(**ASK, client=client)
    assert answer.choices[0].message.content == "You said: Hello"
    assert said(litellm.completion(**ASK, client=client, stream=True)) == "You said: Hello"
    City.model_validate_json(litellm.completion(**ASK, client=client, response_format=City).choices[0].message.content)
    called = litellm.completion(**ASK, client=client, tools=[TOOL], tool_choice="required")
    assert called.choices[0].message.tool_calls
    litellm.embedding("text-embedding-3-small", input=["one", "two"], client=client)
    litellm.text_completion(model="text-completion-openai/gpt-3.5-turbo-instruct", prompt="Hello", client=client)
    first, *_ = books.agree(calls=6)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        first.usage.input_tokens,
        first.usage.output_tokens,
    )


async def test_async_calls_agree_with_the_providers_books(make_client, books):
    client = make_client(AsyncOpenAI)
    await litellm.acompletion(**ASK, client=client)
    assert said([chunk async for chunk in await litellm.acompletion(**ASK, client=client, stream=True)])
    await litellm.acompletion(**ASK, client=client, response_format=City)
    await litellm.aembedding("text-embedding-3-small", input=["one"], client=client)
    books.agree(calls=4)


@pytest.mark.parametrize("asked", [True, False])
def test_a_stream_shows_usage_only_to_who_asked_for_it_and_is_recorded_either_way(asked, make_client, books):
    options = {"stream_options": {"include_usage": True}} if asked else {}
    chunks = list(litellm.completion(**ASK, client=make_client(OpenAI), stream=True, **options))
    books.agree(calls=1)
    assert any(getattr(chunk, "usage", None) for chunk in chunks) == asked


async def test_azure_clients_are_recorded(make_client, books, monkeypatch):
    where = {"azure_endpoint": books.provider.url, "api_version": "2024-10-21", "api_key": "azure-0123456789"}
    monkeypatch.delenv("OPENAI_BASE_URL")
    ask = {**ASK, "model": "azure/gpt-5-mini"}
    litellm.completion(**ask, client=make_client(AzureOpenAI, **where))
    await litellm.acompletion(**ask, client=make_client(AsyncAzureOpenAI, **where))
    entries = books.agree(calls=2)
    assert {entry.provider for entry in entries} == {"azure"}


async def test_concurrent_calls_keep_their_own_attribution(make_client, books):
    client = make_client(AsyncOpenAI)

    async def ask(member):
        with tokenmeter.attribute(member=member):
            await litellm.acompletion(**ASK, client=client)

    await asyncio.gather(*map(ask, ["ada", "grace", "ada"]))
    books.agree(calls=3)
    assert books.by_member() == {"ada": 2, "grace": 1}


def test_a_clients_own_attribution_reaches_threads_that_scopes_do_not(make_client, books):
    client = tokenmeter.wrap(make_client(OpenAI), attribution=tokenmeter.Attribution(member="linus"))
    answers = litellm.batch_completion(ASK["model"], [ASK["messages"]] * 2, client=client)  # on threads of its own
    assert [answer.choices[0].message.content for answer in answers] == ["You said: Hello"] * 2
    books.agree(calls=2)
    assert books.by_member() == {"linus": 2}


def behind(error):
    """The errors that led to this one, and itself."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


async def test_a_budget_stop_is_behind_its_error_and_sends_nothing(make_client, one_call_left):
    client = make_client(OpenAI)
    litellm.completion(**ASK, client=client)
    with pytest.raises(litellm.InternalServerError, match="Budget 'one-call'") as stop:
        litellm.completion(**ASK, client=client, num_retries=2)
    assert any(isinstance(error, tokenmeter.BudgetExceededError) for error in behind(stop.value))
    with pytest.raises(litellm.InternalServerError, match="Budget 'one-call'"):
        await litellm.acompletion(**ASK, client=make_client(AsyncOpenAI))
    assert len(one_call_left.provider.requests) == 1


def test_answers_and_usage_are_those_with_the_plain_client(make_client, books):
    plain, metered = (litellm.completion(**ASK, client=make_client(kind)) for kind in (openai.OpenAI, OpenAI))
    assert metered.choices == plain.choices
    assert metered.usage == plain.usage
    assert len(books.entries()) == 1
