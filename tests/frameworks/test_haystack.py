"""Haystack's components work with our clients: what pipelines and agents use is what is recorded."""

from __future__ import annotations

import asyncio

import openai
import pytest
from haystack import Document, Pipeline
from haystack.components.agents import Agent
from haystack.components.builders import ChatPromptBuilder
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.components.extractors import LLMMetadataExtractor
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.core.errors import PipelineRuntimeError
from haystack.dataclasses import ChatMessage
from haystack.tools import tool
from haystack_integrations.components.generators.anthropic import AnthropicChatGenerator

import tokenmeter
from tokenmeter.anthropic import Anthropic, AsyncAnthropic
from tokenmeter.openai import AsyncOpenAI, OpenAI

HELLO = [ChatMessage.from_user("Hello")]


@tool
def temperature(city: str) -> str:
    """How warm it is."""
    return f"7 degrees in {city}"


@pytest.fixture(params=["chat", "responses", "messages"])
def make(request, make_client):
    """Makes a generator that was handed our clients."""

    def made(**options):
        if request.param == "messages":
            generator = AnthropicChatGenerator(model="claude-sonnet-5", **options)
            clients = (Anthropic, AsyncAnthropic)
        else:
            kind = OpenAIChatGenerator if request.param == "chat" else OpenAIResponsesChatGenerator
            generator, clients = kind(model="gpt-5-mini", **options), (OpenAI, AsyncOpenAI)
        generator.client, generator.async_client = map(make_client, clients)
        return generator

    return made


async def test_sync_async_and_streamed_runs_agree_with_the_providers_books(make, books):
    pieces = []

    async def take(chunk):
        pieces.append(chunk.content)

    for run in (make().run(HELLO), await make().run_async(HELLO)):
        assert run["replies"][0].text == "You said: Hello"
    make(streaming_callback=lambda chunk: pieces.append(chunk.content)).run(HELLO)
    await make(streaming_callback=take).run_async(HELLO)
    assert "".join(filter(None, pieces)) == "You said: Hello" * 2
    entries = books.agree(calls=4)
    assert [entry.streamed for entry in entries] == [False, False, True, True]


async def test_agents_and_pipelines_agree_with_the_providers_books(make, books):
    books.provider.answer(tool_calls=[("temperature", {"city": "Oslo"})])
    with tokenmeter.attribute(member="ada"):
        result = Agent(chat_generator=make(), tools=[temperature]).run(messages=HELLO)
    assert any(message.tool_call_result for message in result["messages"])
    books.provider.answer(tool_calls=[("temperature", {"city": "Oslo"})])
    with tokenmeter.attribute(member="grace"):
        await Agent(chat_generator=make(), tools=[temperature]).run_async(messages=HELLO)
    pipeline = Pipeline()
    pipeline.add_component("prompt", ChatPromptBuilder([ChatMessage.from_user("Where is {{ it }}?")]))
    pipeline.add_component("chat", make())
    pipeline.connect("prompt", "chat")
    with tokenmeter.attribute(member="linus"):
        pipeline.run({"prompt": {"it": "the Louvre"}})
    books.agree(calls=5)
    assert books.by_member() == {"ada": 2, "grace": 2, "linus": 1}


async def test_the_client_that_a_generator_made_can_be_wrapped(books):
    generator = OpenAIChatGenerator(model="gpt-5-mini")
    generator.warm_up()
    await generator.warm_up_async()
    tokenmeter.wrap(generator.client)
    tokenmeter.wrap(generator.async_client)
    generator.run(HELLO)
    await generator.run_async(HELLO)
    generator.close()
    await generator.close_async()
    books.agree(calls=2)


async def test_concurrent_runs_keep_their_own_attribution(make, books):
    generator = make()

    async def ask(member):
        with tokenmeter.attribute(member=member):
            await generator.run_async(HELLO)

    await asyncio.gather(*map(ask, ["ada", "grace", "ada"]))
    books.agree(calls=3)
    assert books.by_member() == {"ada": 2, "grace": 1}


def test_embedders_are_recorded(make_client, books):
    documents = OpenAIDocumentEmbedder(model="text-embedding-3-small", progress_bar=False)
    text = OpenAITextEmbedder(model="text-embedding-3-small")
    documents.client = text.client = make_client(OpenAI)
    documents.run([Document(content="one"), Document(content="two")])
    text.run("three")
    books.agree(calls=2)


async def test_a_budget_stop_reaches_the_caller_and_is_not_retried(make, one_call_left):
    generator = make(max_retries=3)
    generator.run(HELLO)
    with pytest.raises(tokenmeter.BudgetExceededError) as stop:
        generator.run(HELLO)
    assert stop.value.budget == "one-call"
    with pytest.raises(tokenmeter.BudgetExceededError):
        await generator.run_async(HELLO)
    with pytest.raises(tokenmeter.BudgetExceededError):
        Agent(chat_generator=generator, tools=[temperature]).run(messages=HELLO)
    assert len(one_call_left.provider.requests) == 1


def test_in_a_pipeline_a_budget_stop_is_the_cause_of_its_error(make, one_call_left):
    pipeline = Pipeline()
    pipeline.add_component("chat", make())
    pipeline.run({"chat": {"messages": HELLO}})
    with pytest.raises(PipelineRuntimeError) as stop:
        pipeline.run({"chat": {"messages": HELLO}})
    assert isinstance(stop.value.__cause__, tokenmeter.BudgetExceededError)
    assert len(one_call_left.provider.requests) == 1


def test_a_clients_own_attribution_reaches_threads_that_scopes_do_not(make_client, books):
    generator = OpenAIChatGenerator()
    generator.client = tokenmeter.wrap(make_client(OpenAI), attribution=tokenmeter.Attribution(member="linus"))
    extractor = LLMMetadataExtractor(
        prompt="Topic of {{ document.content }}", chat_generator=generator, expected_keys=["topic"]
    )
    books.provider.answer('{"topic": "x"}', times=2)
    extracted = extractor.run([Document(content="one"), Document(content="two")])["documents"]  # on its own threads
    assert [document.meta["topic"] for document in extracted] == ["x", "x"]
    books.agree(calls=2)
    assert books.by_member() == {"linus": 2}


def test_answers_and_usage_are_those_with_the_plain_client(make_client, books):
    replies = []
    for kind in (openai.OpenAI, OpenAI):
        generator = OpenAIChatGenerator(model="gpt-5-mini")
        generator.client = make_client(kind)
        replies.append(generator.run(HELLO)["replies"][0])
    plain, metered = replies
    assert (metered.text, metered.meta) == (plain.text, plain.meta)
    assert len(books.entries()) == 1
