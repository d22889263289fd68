# /// script
# requires-python = ">=3.11"
# dependencies = ["pydantic-ai-slim[openai,anthropic,google]>=2.60,<3", "tokenmeter-sdk"]
#
# [tool.uv.sources]
# tokenmeter-sdk = { path = "../..", editable = true }
# ///
"""Pydantic AI with metered clients: agents with a tool, a structured answer, a stream, for three providers."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.openai import OpenAIProvider
from stage import stage

import tokenmeter
from tokenmeter.anthropic import AsyncAnthropic
from tokenmeter.google import genai
from tokenmeter.openai import AsyncOpenAI


class City(BaseModel):
    """Where somebody is."""

    name: str
    country: str


async def main() -> None:
    """Ask four agents."""
    with stage() as provider:
        openai = OpenAIProvider(openai_client=AsyncOpenAI())
        claude = AnthropicProvider(anthropic_client=AsyncAnthropic())

        weather = Agent(OpenAIChatModel("gpt-5-mini", provider=openai))

        @weather.tool_plain
        def temperature(city: str) -> str:
            """How warm it is in a city."""
            return f"7 degrees in {city}"

        provider.answer(tool_calls=[("temperature", {"city": "Oslo"})])
        with tokenmeter.attribute(member="ada", route="/weather") as scope:
            answer = await weather.run("How warm is it in Oslo?")
        print(f"{answer.output!r} took {scope.requests} calls, ${scope.list_cost:f}")

        where = Agent(OpenAIResponsesModel("gpt-5-mini", provider=openai), output_type=City)
        with tokenmeter.attribute(member="grace", route="/locate"):
            print(repr((await where.run("Where is the Louvre?")).output))

        storyteller = Agent(AnthropicModel("claude-sonnet-5", provider=claude))
        with tokenmeter.attribute(member="grace", route="/story"):
            async with storyteller.run_stream("Tell me a story about a meter.") as story:
                print("".join([piece async for piece in story.stream_text(delta=True)]))

        translator = Agent(GoogleModel("gemini-2.5-flash", provider=GoogleProvider(client=genai.Client())))
        with tokenmeter.attribute(member="linus", route="/translate"):
            print(repr((await translator.run("Say hello in Finnish.")).output))


if __name__ == "__main__":
    asyncio.run(main())
