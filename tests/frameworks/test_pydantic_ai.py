"""Pydantic AI takes our clients: what its agents use is what is recorded."""

from __future__ import annotations

import asyncio

import openai
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, Embedder
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.openai import OpenAIProvider

import tokenmeter
from tokenmeter.anthropic import AsyncAnthropic
from tokenmeter.google import genai
from tokenmeter.openai import AsyncOpenAI

KINDS = ["chat", "responses", "messages", "gemini"]


class City(BaseModel):
    name: str
    country: str


@pytest.fixture
def make_model(make_client):
    def make(kind, openai_class=AsyncOpenAI):
        if kind == "messages":
            provider = AnthropicProvider(anthropic_client=make_client(AsyncAnthropic))
            return AnthropicModel("claude-sonnet-5", provider=provider)
        if kind == "gemini":
            return GoogleModel("gemini-2.5-flash", provider=GoogleProvider(client=make_client(genai.Client)))
        model = OpenAIChatModel if kind == "chat" else OpenAIResponsesModel
        return model("gpt-5-mini", provider=OpenAIProvider(openai_client=make_client(openai_class)))

    return make


@pytest.mark.parametrize("kind", KINDS)
async def test_runs_streams_tools_and_structured_answers_agree_with_the_providers_books(kind, make_model, books):
    model, asked = make_model(kind), []
    weather, where = Agent(model), Agent(model, output_type=City)

    @weather.tool_plain
    def temperature(city: str) -> str:
        asked.append(city)
        return f"7 degrees in {city}"

    books.provider.answer(tool_calls=[("temperature", {"city": "Oslo"})])
    looped = await weather.run("How warm is it in Oslo?")
    assert asked == ["Oslo"]
    assert isinstance((await where.run("Where is the Louvre?")).output, City)
    async with weather.run_stream("Tell a story") as stream:
        text = "".join([piece async for piece in stream.stream_text(delta=True)])
    assert text == "You said: Tell a story"
    *loop, _, streamed = books.agree(calls=4)
    assert looped.usage.output_tokens == sum(entry.usage.output_tokens for entry in loop)  # its own count
    assert streamed.streamed
    assert stream.usage.output_tokens == streamed.usage.output_tokens


@pytest.mark.parametrize("kind", KINDS)
async def test_concurrent_runs_keep_their_own_attribution(kind, make_model, books):
    agent = Agent(make_model(kind))

    async def ask(member):
        with tokenmeter.attribute(member=member) as scope:
            await agent.run(f"I am {member}")
        return scope.requests

    assert await asyncio.gather(*map(ask, ["ada", "grace", "linus", "ada"])) == [1, 1, 1, 1]
    books.agree(calls=4)
    assert books.by_member() == {"ada": 2, "grace": 1, "linus": 1}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_run_that_is_left_early_or_cancelled_is_recorded_as_aborted(kind, make_model, books):
    agent = Agent(make_model(kind))

    begun = asyncio.Event()

    async def read_all():
        async with agent.run_stream("Tell a story") as stream:
            async for _ in stream.stream_text(delta=True):
                begun.set()

    await read_all()
    books.provider.answer("a long story " * 200, chunk_delay=0.01, times=2)
    async with agent.run_stream("Tell a story") as stream:
        async for _ in stream.stream_text(delta=True):
            break
    begun.clear()
    running = asyncio.ensure_future(read_all())
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    complete, *left = books.entries()
    assert complete.status == "ok"
    assert [(entry.status, entry.flags) for entry in left] == [("aborted", ("estimated",))] * 2


def test_sync_runs_and_embeddings_are_recorded(make_model, make_client, books):
    embedding = OpenAIEmbeddingModel(
        "text-embedding-3-small", provider=OpenAIProvider(openai_client=make_client(AsyncOpenAI))
    )
    with tokenmeter.attribute(member="ada"):
        assert Agent(make_model("chat")).run_sync("Hello").output == "You said: Hello"
        Embedder(embedding).embed_documents_sync(["one", "two"])
    books.agree(calls=2)
    assert books.by_member() == {"ada": 2}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_budget_stop_reaches_the_caller_as_it_is_and_is_not_retried(kind, make_model, one_call_left):
    agent = Agent(make_model(kind), retries=3)
    await agent.run("Hello")
    with pytest.raises(tokenmeter.BudgetExceededError) as stop:
        await agent.run("Hello again")
    assert stop.value.budget == "one-call"
    with pytest.raises(tokenmeter.BudgetExceededError):
        async with agent.run_stream("Hello again"):
            pass
    assert len(one_call_left.provider.requests) == 1


async def test_a_fallback_model_does_not_go_elsewhere_after_a_budget_stop(make_model, one_call_left):
    agent = Agent(FallbackModel(make_model("chat"), make_model("messages")))
    await agent.run("Hello")
    with pytest.raises(tokenmeter.BudgetExceededError):
        await agent.run("Hello again")
    assert len(one_call_left.provider.requests) == 1


async def test_answers_and_usage_are_those_with_the_plain_client(make_model, books):
    plain = await Agent(make_model("chat", openai.AsyncOpenAI)).run("Hello")
    assert not books.entries()
    metered = await Agent(make_model("chat")).run("Hello")
    assert (metered.output, metered.usage) == (plain.output, plain.usage)
