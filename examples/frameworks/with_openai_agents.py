# /// script
# requires-python = ">=3.11"
# dependencies = ["openai-agents>=0.20,<1", "tokenmeter-sdk"]
#
# [tool.uv.sources]
# tokenmeter-sdk = { path = "../..", editable = true }
# ///
"""The OpenAI Agents SDK with a metered client: a tool, a handoff, a structured answer and a stream."""

from __future__ import annotations

import asyncio

from agents import Agent, Runner, function_tool, set_default_openai_client, set_tracing_disabled
from pydantic import BaseModel
from stage import stage

import tokenmeter
from tokenmeter.openai import AsyncOpenAI


class City(BaseModel):
    """Where somebody is."""

    name: str
    country: str


@function_tool
def temperature(city: str) -> str:
    """How warm it is in a city."""
    return f"7 degrees in {city}"


async def main() -> None:
    """Ask three agents; one hands over to another."""
    with stage() as provider:
        set_default_openai_client(AsyncOpenAI(), use_for_tracing=False)  # for every agent of this process
        set_tracing_disabled(disabled=True)  # traces would go to OpenAI, and there is no key

        weather = Agent(name="weather", model="gpt-5-mini", tools=[temperature])
        desk = Agent(name="desk", model="gpt-5-nano", handoffs=[weather])
        provider.answer(tool_calls=[("transfer_to_weather", {})])
        provider.answer(tool_calls=[("temperature", {"city": "Oslo"})])
        with tokenmeter.attribute(member="ada", route="/weather") as scope:
            answer = await Runner.run(desk, "How warm is it in Oslo?")
        print(f"{answer.last_agent.name} answered after {scope.requests} calls, ${scope.list_cost:f}")

        where = Agent(name="where", model="gpt-5-mini", output_type=City)
        with tokenmeter.attribute(member="grace", route="/locate"):
            print(repr((await Runner.run(where, "Where is the Louvre?")).final_output))

        with tokenmeter.attribute(member="grace", route="/story"):
            story = Runner.run_streamed(Agent(name="storyteller", model="gpt-5-mini"), "Tell me a story about a meter.")
            async for event in story.stream_events():
                if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                    print(event.data.delta, end="")
            print()


if __name__ == "__main__":
    asyncio.run(main())
