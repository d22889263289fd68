"""The OpenAI Agents SDK takes our client: what its runs use is what is recorded."""

from __future__ import annotations

import asyncio

import openai
import pytest
from agents import (
    Agent,
    ModelRetrySettings,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIProvider,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
    retry_policies,
    set_default_openai_client,
    set_tracing_disabled,
)
from agents.models import _openai_shared
from pydantic import BaseModel

import tokenmeter
from tokenmeter.openai import AsyncOpenAI


class City(BaseModel):
    name: str
    country: str


@pytest.fixture(autouse=True)
def no_tracing():
    """Traces go to the project's own service, unmetered."""
    set_tracing_disabled(disabled=True)


@pytest.fixture(params=[OpenAIChatCompletionsModel, OpenAIResponsesModel], ids=["chat", "responses"])
def make_model(request, make_client):
    def make(kind=AsyncOpenAI, **options):
        return request.param(model="gpt-5-mini", openai_client=make_client(kind, **options))

    return make


async def test_runs_streams_tools_and_structured_answers_agree_with_the_providers_books(make_model, books):
    model, asked = make_model(), []

    @function_tool
    def temperature(city: str) -> str:
        asked.append(city)
        return f"7 degrees in {city}"

    weather = Agent(name="weather", model=model, tools=[temperature])
    desk = Agent(name="desk", model=model, handoffs=[weather])
    books.provider.answer(tool_calls=[("transfer_to_weather", {})])
    books.provider.answer(tool_calls=[("temperature", {"city": "Oslo"})])
    looped = await Runner.run(desk, "How warm is it in Oslo?")
    assert (asked, looped.last_agent) == (["Oslo"], weather)
    where = Agent(name="where", model=model, output_type=City)
    assert isinstance((await Runner.run(where, "Where is the Louvre?")).final_output, City)
    stream = Runner.run_streamed(Agent(name="storyteller", model=model), "Tell a story")
    async for _ in stream.stream_events():
        pass
    assert stream.final_output == "You said: Tell a story"
    *loop, _, streamed = books.agree(calls=5)
    assert looped.context_wrapper.usage.output_tokens == sum(entry.usage.output_tokens for entry in loop)
    assert streamed.streamed


async def test_the_default_client_serves_every_agent(make_client, books, monkeypatch):
    monkeypatch.setattr(_openai_shared, "_default_openai_client", None)
    set_default_openai_client(make_client(AsyncOpenAI), use_for_tracing=False)
    await Runner.run(Agent(name="one", model="gpt-5-mini"), "Hello")
    await Runner.run(Agent(name="two", model="gpt-5-nano"), "Hello")
    books.agree(calls=2)


async def test_a_providers_client_serves_the_runs_configured_with_it(make_client, books):
    config = RunConfig(model_provider=OpenAIProvider(openai_client=make_client(AsyncOpenAI), use_responses=False))
    await Runner.run(Agent(name="one", model="gpt-5-mini"), "Hello", run_config=config)
    (entry,) = books.agree(calls=1)
    assert entry.endpoint == "chat.completions"


async def test_concurrent_runs_keep_their_own_attribution_streamed_or_not(make_model, books):
    agent = Agent(name="echo", model=make_model())

    async def ask(member):
        with tokenmeter.attribute(member=member):
            await Runner.run(agent, f"I am {member}")
            stream = Runner.run_streamed(agent, f"I am {member}")
        async for _ in stream.stream_events():  # the run goes on in a task of its own
            pass

    await asyncio.gather(*map(ask, ["ada", "grace", "linus"]))
    books.agree(calls=6)
    assert books.by_member() == {"ada": 2, "grace": 2, "linus": 2}


async def test_a_streamed_run_that_is_cancelled_is_recorded_as_aborted(make_model, books):
    agent = Agent(name="storyteller", model=make_model())
    await Runner.run(agent, "Hello")
    books.provider.answer("a long story " * 200, chunk_delay=0.01)
    stream = Runner.run_streamed(agent, "Tell a story")
    async for event in stream.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            stream.cancel()
    complete, left = books.entries()
    assert complete.status == "ok"
    assert (left.status, left.flags) == ("aborted", ("estimated",))


def test_a_sync_run_is_recorded(make_model, books):
    with tokenmeter.attribute(member="ada"):
        assert Runner.run_sync(Agent(name="echo", model=make_model()), "Hello").final_output == "You said: Hello"
    books.agree(calls=1)
    assert books.by_member() == {"ada": 1}


async def test_a_budget_stop_reaches_the_caller_as_it_is_and_is_not_retried(make_model, one_call_left):
    retrying = ModelSettings(retry=ModelRetrySettings(max_retries=2, policy=retry_policies.network_error()))
    agent = Agent(name="echo", model=make_model(), model_settings=retrying)
    await Runner.run(agent, "Hello")
    with pytest.raises(tokenmeter.BudgetExceededError) as stop:
        await Runner.run(agent, "Hello again")
    assert stop.value.budget == "one-call"
    stream = Runner.run_streamed(agent, "Hello again")
    with pytest.raises(tokenmeter.BudgetExceededError):
        async for _ in stream.stream_events():
            pass
    assert len(one_call_left.provider.requests) == 1


async def test_retries_by_the_runner_are_an_entry_each(make_model, books):
    retrying = ModelSettings(
        retry=ModelRetrySettings(max_retries=2, policy=retry_policies.http_status([500]), backoff={"initial_delay": 0})
    )
    books.provider.fail(500, times=2)
    await Runner.run(Agent(name="echo", model=make_model(max_retries=0), model_settings=retrying), "Hello")
    *failed, answered = books.entries()
    assert [(entry.status, entry.billed_cost) for entry in failed] == [("error", None)] * 2
    assert (answered.status, answered.usage) == ("ok", books.provider.total)


async def test_answers_and_usage_are_those_with_the_plain_client(make_model, books):
    plain = await Runner.run(Agent(name="echo", model=make_model(openai.AsyncOpenAI)), "Hello")
    assert not books.entries()
    metered = await Runner.run(Agent(name="echo", model=make_model()), "Hello")
    assert metered.final_output == plain.final_output
    assert metered.context_wrapper.usage == plain.context_wrapper.usage
