"""LlamaIndex's models take our clients, or have theirs wrapped: what indexes and agents use is what is recorded."""

from __future__ import annotations

import asyncio

import openai
import pytest
from llama_index.core import Document, SummaryIndex, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.anthropic import Anthropic
from llama_index.llms.google_genai import GoogleGenAI
from llama_index.llms.openai import OpenAI, OpenAIResponses
from pydantic import BaseModel

import tokenmeter
import tokenmeter.openai

HELLO = [ChatMessage(role="user", content="Hello")]
WHERE = PromptTemplate("Where is the Louvre?")


class City(BaseModel):
    name: str
    country: str


def temperature(city: str) -> str:
    """How warm it is."""
    return f"7 degrees in {city}"


@pytest.fixture
def given(make_client):
    """Makes a model that was handed our clients."""

    def make(kind=OpenAI, sync_class=tokenmeter.openai.OpenAI, **options):
        return kind(
            model="gpt-5-mini",
            openai_client=make_client(sync_class),
            async_openai_client=make_client(tokenmeter.openai.AsyncOpenAI),
            **options,
        )

    return make


@pytest.fixture(params=["chat", "responses", "messages"])
def llm(request, given):
    if request.param == "messages":
        claude = Anthropic(model="claude-sonnet-5", max_tokens=200)
        tokenmeter.wrap(claude._client)
        tokenmeter.wrap(claude._aclient)
        return claude
    return given(OpenAI if request.param == "chat" else OpenAIResponses)


@pytest.fixture
def embedding(books):
    made = OpenAIEmbedding(model="text-embedding-3-small", api_base=books.provider.openai_url, max_retries=0)
    tokenmeter.wrap(made._get_client())
    tokenmeter.wrap(made._get_aclient())
    return made


async def test_every_way_to_call_agrees_with_the_providers_books(llm, books):
    assert llm.complete("Hello").text == "You said: Hello"
    assert (await llm.achat(HELLO)).message.content == "You said: Hello"
    assert "".join(piece.delta or "" for piece in llm.stream_chat(HELLO)) == "You said: Hello"
    assert "".join([piece.delta or "" async for piece in await llm.astream_chat(HELLO)]) == "You said: Hello"
    assert isinstance(llm.structured_predict(City, WHERE), City)
    assert isinstance(await llm.astructured_predict(City, WHERE), City)
    entries = books.agree(calls=6)
    assert [entry.streamed for entry in entries] == [False, False, True, True, False, False]


@pytest.mark.parametrize("streaming", [False, True])
async def test_an_agents_calls_are_attributed_to_who_runs_it(streaming, llm, books):
    asked = []

    def temperature(city: str) -> str:
        """How warm it is."""
        asked.append(city)
        return f"7 degrees in {city}"

    async def work(member):
        agent = FunctionAgent(tools=[temperature], llm=llm, streaming=streaming)
        with tokenmeter.attribute(member=member):
            await agent.run("How warm is it in Oslo?")

    books.provider.answer(tool_calls=[("temperature", {"city": "Oslo"})], times=2)
    await asyncio.gather(work("ada"), work("grace"))
    assert asked == ["Oslo", "Oslo"]
    books.agree(calls=4)
    assert books.by_member() == {"ada": 2, "grace": 2}


async def test_an_index_is_recorded_when_it_is_made_and_when_it_is_asked(given, embedding, books):
    documents = [Document(text="Ada lives in London."), Document(text="Grace lives in New York.")]
    with tokenmeter.attribute(member="ada"):
        index = VectorStoreIndex.from_documents(documents, embed_model=embedding)
        index.as_query_engine(llm=given()).query("Where does Ada live?")
    with tokenmeter.attribute(member="grace"):
        await index.as_query_engine(llm=given()).aquery("Where does Grace live?")
        await (
            SummaryIndex.from_documents(documents)
            .as_query_engine(llm=given(), response_mode="tree_summarize", use_async=False)
            .aquery("Who?")
        )
    books.agree(calls=6)
    assert books.by_member() == {"ada": 3, "grace": 3}


async def test_a_budget_stop_reaches_the_caller_as_it_is_and_is_not_retried(given, one_call_left):
    llm = given(max_retries=5)
    llm.complete("Hello")
    with pytest.raises(tokenmeter.BudgetExceededError) as stop:
        llm.complete("Hello again")
    assert stop.value.budget == "one-call"
    with pytest.raises(tokenmeter.BudgetExceededError):
        await llm.achat(HELLO)
    with pytest.raises(tokenmeter.BudgetExceededError):
        list(llm.stream_chat(HELLO))
    with pytest.raises(tokenmeter.BudgetExceededError):
        await FunctionAgent(tools=[temperature], llm=llm).run("Hello")
    embedding = OpenAIEmbedding(api_base=one_call_left.provider.openai_url, max_retries=5)
    tokenmeter.wrap(embedding._get_client())
    with pytest.raises(tokenmeter.BudgetExceededError):
        embedding.get_text_embedding("Hello")
    assert len(one_call_left.provider.requests) == 1


def test_answers_are_those_with_the_plain_client(given, books):
    plain, metered = given(sync_class=openai.OpenAI), given()
    for ask in ("Hello", "Where is the Louvre?"):
        assert metered.complete(ask).text == plain.complete(ask).text
        expected = [(piece.delta, piece.raw.usage) for piece in plain.stream_complete(ask)]
        assert [(piece.delta, piece.raw.usage) for piece in metered.stream_complete(ask)] == expected
    assert len(books.entries()) == 4


def test_gemini_is_metered_by_wrapping_its_client(books):
    llm = GoogleGenAI(model="gemini-2.5-flash", max_tokens=500, context_window=100_000)
    tokenmeter.wrap(llm._client)
    assert llm.complete("Hello").text == "You said: Hello"
    assert "".join(piece.delta or "" for piece in llm.stream_complete("Tell a story")) == "You said: Tell a story"
    assert asyncio.run(llm.acomplete("Hello")).text == "You said: Hello"
    books.agree(calls=3)
