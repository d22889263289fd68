"""LangChain's models take our clients, or have theirs wrapped: what their chains use is what is recorded."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_google_genai import ChatGoogleGenerativeAI
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

import tokenmeter
from tokenmeter.openai import AsyncOpenAI, OpenAI


class City(BaseModel):
    name: str
    country: str


@tool
def temperature(city: str) -> str:
    """How warm it is."""
    return f"7 degrees in {city}"


def plain_openai(provider, **options):
    """A chat model with clients of its own; models of one base URL share their connections, also across event loops."""
    return ChatOpenAI(model="gpt-5-mini", base_url=provider.openai_url, **options)


def given_clients(make_client, **options):
    """A chat model that was handed our clients."""
    ours, ours_async = make_client(OpenAI), make_client(AsyncOpenAI)
    return ChatOpenAI(
        model="gpt-5-mini",
        root_client=ours,
        client=ours.chat.completions,
        root_async_client=ours_async,
        async_client=ours_async.chat.completions,
        **options,
    )


@pytest.fixture(params=["given", "wrapped", "responses", "messages"])
def chat(request, make_client, books):
    """A metered chat model."""
    if request.param == "given":
        return given_clients(make_client)
    if request.param == "messages":
        model = ChatAnthropic(model="claude-sonnet-5", max_tokens=200)
        clients = (model._client, model._async_client)
    else:
        model = plain_openai(books.provider, use_responses_api=request.param == "responses")
        clients = (model.root_client, model.root_async_client)
    for client in clients:
        tokenmeter.wrap(client)
    return model


async def test_every_way_to_call_agrees_with_the_providers_books(chat, books):
    books.provider.answer(tool_calls=[("temperature", {"city": "Oslo"})])
    assert chat.bind_tools([temperature]).invoke("How warm is it?").tool_calls[0]["args"] == {"city": "Oslo"}
    assert (await chat.ainvoke("Hello")).text == "You said: Hello"
    assert "".join(piece.text for piece in chat.stream("Hello")) == "You said: Hello"
    assert "".join([piece.text async for piece in chat.astream("Hello")]) == "You said: Hello"
    assert isinstance(chat.with_structured_output(City).invoke("Where?"), City)
    assert isinstance(await chat.with_structured_output(City).ainvoke("Where?"), City)
    assert len(chat.batch(["one", "two"])) == 2
    assert len(await chat.abatch(["one", "two"])) == 2
    async for _ in chat.astream_events("Hello", version="v2"):
        pass
    books.agree(calls=11)


async def test_its_own_counts_are_ours(chat, books):
    whole = await chat.ainvoke("Hello")
    streamed = None
    async for piece in chat.astream("Hello"):
        streamed = piece if streamed is None else streamed + piece
    entries = books.agree(calls=2)
    for message, entry in zip([whole, streamed], entries, strict=True):
        if message.usage_metadata is not None:
            assert message.usage_metadata["input_tokens"] == entry.usage.input_tokens
            assert message.usage_metadata["output_tokens"] == entry.usage.output_tokens


async def test_threads_and_tasks_keep_their_own_attribution(chat, books):
    with tokenmeter.attribute(member="ada"):
        chat.batch(["one", "two", "three"])  # on threads of its own
    with tokenmeter.attribute(member="grace"):
        await chat.abatch(["one", "two"])

    async def ask(member):
        with tokenmeter.attribute(member=member):
            await chat.ainvoke("Hello")

    await asyncio.gather(ask("linus"), ask("ada"))
    books.agree(calls=7)
    assert books.by_member() == {"ada": 4, "grace": 2, "linus": 1}


async def test_a_stream_that_is_left_early_is_recorded_as_aborted(chat, books):
    chat.invoke("Hello")
    books.provider.answer("a long story " * 200, chunk_delay=0.01, times=2)
    with contextlib.closing(chat.stream("Tell a story")) as stream:
        next(stream)
    async with contextlib.aclosing(chat.astream("Tell a story")) as stream:
        await anext(stream)
    while len(books.entries()) < 3:  # noqa: ASYNC110 - the generators inside are closed by the event loop
        await asyncio.sleep(0.01)
    complete, *left = books.entries()
    assert complete.status == "ok"
    assert [(entry.status, entry.flags) for entry in left] == [("aborted", ("estimated",))] * 2


async def test_copies_and_configured_models_stay_metered(chat, books):
    chat.with_retry().invoke("Hello")
    chat.with_config(tags=["x"]).invoke("Hello")
    chat.model_copy(update={"max_tokens": 50}).invoke("Hello")
    books.agree(calls=3)


async def test_embeddings_are_recorded(make_client, books):
    embeddings = OpenAIEmbeddings(
        model="text-embedding-3-small",
        client=make_client(OpenAI).embeddings,
        async_client=make_client(AsyncOpenAI).embeddings,
        check_embedding_ctx_length=False,
    )
    embeddings.embed_documents(["one", "two"])
    await embeddings.aembed_query("three")
    books.agree(calls=2)


async def test_a_budget_stop_reaches_the_caller_as_it_is_and_is_not_retried(make_client, one_call_left):
    chat = given_clients(make_client, max_retries=3)
    chat.invoke("Hello")
    with pytest.raises(tokenmeter.BudgetExceededError) as stop:
        chat.invoke("Hello again")
    assert stop.value.budget == "one-call"
    with pytest.raises(tokenmeter.BudgetExceededError):
        await chat.ainvoke("Hello again")
    with pytest.raises(tokenmeter.BudgetExceededError):
        async for _ in chat.astream("Hello again"):
            pass
    with pytest.raises(tokenmeter.BudgetExceededError):
        chat.with_structured_output(City).invoke("Hello again")
    assert len(one_call_left.provider.requests) == 1


async def test_answers_and_usage_are_those_with_the_plain_client(chat, books):
    if isinstance(chat, ChatAnthropic):
        plain = ChatAnthropic(model="claude-sonnet-5", max_tokens=200)
    else:
        plain = plain_openai(books.provider, use_responses_api=chat.use_responses_api)
    for ask in ("Hello", "Where is the Louvre?"):
        expected, found = plain.invoke(ask), chat.invoke(ask)
        assert (found.text, found.usage_metadata) == (expected.text, expected.usage_metadata)
        assert [piece.usage_metadata for piece in chat.stream(ask)] == [p.usage_metadata for p in plain.stream(ask)]
    assert len(books.entries()) == 4


async def test_gemini_is_metered_by_wrapping_its_client(books):
    model = ChatGoogleGenerativeAI(model="gemini-2.5-flash")
    tokenmeter.wrap(model.client)
    assert model.invoke("Hello").content == "You said: Hello"
    assert "".join(str(chunk.content) for chunk in model.stream("Tell a story")) == "You said: Tell a story"
    assert (await model.ainvoke("Hello")).content == "You said: Hello"
    assert isinstance(model.with_structured_output(City).invoke("Where is the Louvre?"), City)
    books.agree(calls=4)
