"""AutoGen's models take our clients, or have theirs wrapped: what its agents use is what is recorded."""

from __future__ import annotations

import asyncio

import openai
import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core import CancellationToken
from autogen_core.models import ModelFamily, ModelInfo, UserMessage
from autogen_ext.models.anthropic import AnthropicChatCompletionClient, BaseAnthropicChatCompletionClient
from autogen_ext.models.openai import BaseOpenAIChatCompletionClient, OpenAIChatCompletionClient
from pydantic import BaseModel

import tokenmeter
from tokenmeter.anthropic import AsyncAnthropic
from tokenmeter.openai import AsyncOpenAI

INFO = ModelInfo(
    vision=False, function_calling=True, json_output=True, structured_output=True, family=ModelFamily.UNKNOWN
)
HELLO = [UserMessage(content="Hello", source="user")]


class City(BaseModel):
    name: str
    country: str


async def temperature(city: str) -> str:
    """How warm it is."""
    return f"7 degrees in {city}"


@pytest.fixture(params=["chat", "messages"])
def make_model(request, configured):
    """Makes a model whose client is wrapped, and closed by the test."""

    def make():
        if request.param == "chat":
            model = OpenAIChatCompletionClient(model="gpt-5-mini", model_info=INFO)
        else:
            model = AnthropicChatCompletionClient(model="claude-sonnet-5", model_info=INFO)
        tokenmeter.wrap(model._client)
        return model

    return make


async def test_assistants_and_streams_agree_with_the_providers_books(make_model, books):
    model = make_model()
    books.provider.answer(tool_calls=[("temperature", {"city": "Oslo"})])
    agent = AssistantAgent("weather", model, tools=[temperature], reflect_on_tool_use=True)
    await agent.run(task="How warm is it?")
    assert (await model.create(HELLO)).content == "You said: Hello"
    *pieces, result = [piece async for piece in model.create_stream(HELLO)]
    assert "".join(pieces) == result.content == "You said: Hello"
    agent = AssistantAgent("echo", model, model_client_stream=True)
    async for _ in agent.run_stream(task="Hello"):
        pass
    await model.close()
    entries = books.agree(calls=5)
    assert [entry.streamed for entry in entries] == [False, False, False, True, True]


async def test_a_structured_answer_is_recorded(books):
    model = OpenAIChatCompletionClient(model="gpt-5-mini", model_info=INFO)
    tokenmeter.wrap(model._client)
    agent = AssistantAgent("where", model, output_content_type=City)
    assert isinstance((await agent.run(task="Where?")).messages[-1].content, City)
    async for _ in model.create_stream(HELLO, json_output=City):
        pass
    await model.close()
    books.agree(calls=2)


async def test_a_team_is_attributed_as_a_whole(make_model, books):
    async def work(member):
        model = make_model()
        team = RoundRobinGroupChat(
            [AssistantAgent("writer", model), AssistantAgent("critic", model)],
            termination_condition=MaxMessageTermination(3),
        )
        with tokenmeter.attribute(member=member):
            await team.run(task="Write")
        await model.close()

    await asyncio.gather(work("ada"), work("grace"))
    books.agree(calls=4)
    assert books.by_member() == {"ada": 2, "grace": 2}


async def test_the_base_models_take_our_clients(make_client, books):
    chat = BaseOpenAIChatCompletionClient(
        make_client(AsyncOpenAI), create_args={"model": "gpt-5-mini"}, model_info=INFO
    )
    claude = BaseAnthropicChatCompletionClient(
        make_client(AsyncAnthropic), create_args={"model": "claude-sonnet-5", "max_tokens": 99}, model_info=INFO
    )
    await chat.create(HELLO)
    await claude.create(HELLO)
    books.agree(calls=2)


async def test_a_cancelled_call_is_recorded_as_aborted(books):
    model = OpenAIChatCompletionClient(model="gpt-5-mini", model_info=INFO)
    tokenmeter.wrap(model._client)
    books.provider.answer("too late", delay=5)
    token = CancellationToken()
    call = asyncio.ensure_future(model.create(HELLO, cancellation_token=token))
    while not books.provider.requests:  # noqa: ASYNC110 - the server has no event to wait for
        await asyncio.sleep(0.01)
    token.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await model.close()
    (entry,) = books.entries()
    assert entry.status == "aborted"


async def test_a_budget_stop_reaches_the_caller_and_is_not_retried(make_model, one_call_left):
    model = make_model()
    await model.create(HELLO)
    with pytest.raises(tokenmeter.BudgetExceededError) as stop:
        await model.create(HELLO)
    assert stop.value.budget == "one-call"
    with pytest.raises(tokenmeter.BudgetExceededError):
        async for _ in model.create_stream(HELLO):
            pass
    with pytest.raises(tokenmeter.BudgetExceededError):
        await AssistantAgent("echo", model).run(task="Hello")
    await model.close()
    assert len(one_call_left.provider.requests) == 1


async def test_a_team_turns_a_budget_stop_into_a_runtime_error_that_names_it(make_model, one_call_left):
    model = make_model()
    team = RoundRobinGroupChat([AssistantAgent("a", model), AssistantAgent("b", model)], max_turns=4)
    with pytest.raises(RuntimeError, match="BudgetExceededError: Budget 'one-call'"):
        await team.run(task="Hello")
    await model.close()
    assert len(one_call_left.provider.requests) == 1


async def test_answers_and_usage_are_those_with_the_plain_client(make_client, books):
    plain, metered = (
        BaseOpenAIChatCompletionClient(make_client(kind), create_args={"model": "gpt-5-mini"}, model_info=INFO)
        for kind in (openai.AsyncOpenAI, AsyncOpenAI)
    )
    assert await metered.create(HELLO) == await plain.create(HELLO)
    assert [p async for p in metered.create_stream(HELLO)] == [p async for p in plain.create_stream(HELLO)]
    assert len(books.entries()) == 2
