"""Smolagents takes our client: what its agents use is what is recorded."""

from __future__ import annotations

import openai
import pytest
from smolagents import AgentGenerationError, ChatMessage, CodeAgent, LogLevel, OpenAIModel, ToolCallingAgent, tool

import tokenmeter
from tokenmeter.openai import OpenAI

HELLO = [ChatMessage(role="user", content="Hello")]
CODE = "Thought: ask.\n<code>\nfinal_answer(temperature('Oslo'))\n</code>"


@tool
def temperature(city: str) -> str:
    """How warm it is.

    Args:
        city: Where.
    """
    return f"7 degrees in {city}"


@pytest.fixture
def model(make_client):
    return OpenAIModel(model_id="gpt-5-mini", client=make_client(OpenAI))


def quiet(kind, model, **options):
    return kind(tools=[temperature], model=model, verbosity_level=LogLevel.OFF, **options)


@pytest.mark.parametrize("streaming", [False, True])
def test_agents_agree_with_the_providers_books(streaming, model, books):
    books.provider.answer(tool_calls=[("temperature", {"city": "Oslo"})])
    books.provider.answer(tool_calls=[("final_answer", {"answer": "7 degrees"})])
    caller = quiet(ToolCallingAgent, model, stream_outputs=streaming)
    with tokenmeter.attribute(member="ada"):
        result = caller.run("How warm is it?", return_full_result=True)
    assert result.output == "7 degrees"
    assert result.token_usage.total_tokens == sum(entry.usage.total_tokens for entry in books.agree(calls=2))
    books.provider.answer(CODE)
    with tokenmeter.attribute(member="grace"):
        assert quiet(CodeAgent, model, stream_outputs=streaming).run("How warm is it?") == "7 degrees in Oslo"
    entries = books.agree(calls=3)
    assert {entry.streamed for entry in entries} == {streaming}
    assert books.by_member() == {"ada": 2, "grace": 1}


def test_a_model_by_itself_whole_and_streamed(model, books):
    assert model.generate(HELLO).content == "You said: Hello"
    assert "".join(piece.content or "" for piece in model.generate_stream(HELLO)) == "You said: Hello"
    books.agree(calls=2)


def test_an_agent_of_agents_is_attributed_as_a_whole(model, books):
    books.provider.answer(tool_calls=[("weather", {"task": "How warm is Oslo?"})])
    books.provider.answer(tool_calls=[("final_answer", {"answer": "7"})])
    books.provider.answer(tool_calls=[("final_answer", {"answer": "7 degrees"})])
    inner = quiet(ToolCallingAgent, model, name="weather", description="Knows the weather.")
    outer = ToolCallingAgent(tools=[], managed_agents=[inner], model=model, verbosity_level=LogLevel.OFF)
    with tokenmeter.attribute(member="ada"):
        assert outer.run("How warm is it?") == "7 degrees"
    assert len(books.agree(calls=3)) == books.by_member()["ada"]


def test_a_budget_stop_is_the_cause_of_an_agents_error_and_ends_its_run(model, one_call_left):
    model.generate(HELLO)
    with pytest.raises(tokenmeter.BudgetExceededError):
        model.generate(HELLO)
    with pytest.raises(AgentGenerationError) as stop:
        quiet(ToolCallingAgent, model, max_steps=5).run("How warm is it?")
    assert isinstance(stop.value.__cause__, tokenmeter.BudgetExceededError)
    with pytest.raises(AgentGenerationError):
        quiet(CodeAgent, model, max_steps=5).run("How warm is it?")
    assert len(one_call_left.provider.requests) == 1


def test_answers_and_usage_are_those_with_the_plain_client(model, make_client, books):
    plain = OpenAIModel(model_id="gpt-5-mini", client=make_client(openai.OpenAI))
    expected, found = plain.generate(HELLO), model.generate(HELLO)
    assert (found.content, found.token_usage) == (expected.content, expected.token_usage)
    assert list(model.generate_stream(HELLO)) == list(plain.generate_stream(HELLO))
    assert len(books.entries()) == 2
