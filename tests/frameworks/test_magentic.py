"""Magentic's clients are wrapped: what its functions use is what is recorded."""

import asyncio

import pytest
from magentic import AsyncStreamedStr, OpenaiChatModel, StreamedStr, prompt, prompt_chain
from magentic.chat_model.anthropic_chat_model import AnthropicChatModel
from pydantic import BaseModel

import tokenmeter
from tokenmeter.openai import AsyncOpenAI, OpenAI


class City(BaseModel):
    name: str
    country: str


def temperature(city: str) -> str:
    """How warm it is."""
    return f"7 degrees in {city}"


@prompt("Hello {name}")
def greet(name: str) -> str: ...


@prompt("Hello {name}")
async def agreet(name: str) -> str: ...


@prompt("Where is {it}?")
def locate(it: str) -> City: ...


@prompt("List cities")
def cities() -> list[City]: ...


@prompt_chain("How warm is it in {city}?", functions=[temperature])
def weather(city: str) -> str: ...


@prompt("Hello {name}")
def stream(name: str) -> StreamedStr: ...


@prompt("Hello {name}")
async def astream(name: str) -> AsyncStreamedStr: ...


def wrapped(model):
    tokenmeter.wrap(model._client)
    tokenmeter.wrap(model._async_client)
    return model


@pytest.fixture(params=["chat", "messages"])
def model(request, books):
    return wrapped(OpenaiChatModel("gpt-5-mini") if request.param == "chat" else AnthropicChatModel("claude-sonnet-5"))


async def test_every_kind_of_function_agrees_with_the_providers_books(model, books):
    with model:
        assert greet("you") == "You said: Hello you"
        assert await agreet("you") == "You said: Hello you"
        assert isinstance(locate("the Louvre"), City)
        books.provider.answer(tool_calls=[("temperature", {"city": "Oslo"})])
        assert weather("Oslo")
        assert "".join(stream("you")) == "You said: Hello you"
        assert "".join([piece async for piece in await astream("you")]) == "You said: Hello you"
    assert all(entry.streamed for entry in books.agree(calls=7))


async def test_concurrent_calls_keep_their_own_attribution(model, books):
    async def ask(member):
        with tokenmeter.attribute(member=member):
            await agreet("you")

    with model:
        await asyncio.gather(*map(ask, ["ada", "grace", "ada"]))
    books.agree(calls=3)
    assert books.by_member() == {"ada": 2, "grace": 1}


async def test_a_model_can_be_given_our_clients(make_client, books):
    model = OpenaiChatModel("gpt-5-mini")
    model._client, model._async_client = make_client(OpenAI), make_client(AsyncOpenAI)
    with model:
        greet("you")
        await agreet("you")
    books.agree(calls=2)


@pytest.mark.parametrize("kind", [OpenaiChatModel, AnthropicChatModel])
async def test_a_budget_stop_reaches_the_caller_as_it_is_and_is_not_retried(kind, one_call_left):
    with wrapped(kind("gpt-5-mini" if kind is OpenaiChatModel else "claude-sonnet-5")):
        greet("you")
        with pytest.raises(tokenmeter.BudgetExceededError) as stop:
            greet("you")
        with pytest.raises(tokenmeter.BudgetExceededError):
            await agreet("you")
        with pytest.raises(tokenmeter.BudgetExceededError):
            "".join(stream("you"))
    assert stop.value.budget == "one-call"
    assert len(one_call_left.provider.requests) == 1


def test_answers_are_those_with_the_plain_client(books):
    with OpenaiChatModel("gpt-5-mini"):
        expected = [greet("you"), locate("Oslo"), list(stream("you"))]
    assert not books.entries()
    with wrapped(OpenaiChatModel("gpt-5-mini")):
        assert [greet("you"), locate("Oslo"), list(stream("you"))] == expected
