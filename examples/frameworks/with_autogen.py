# /// script
# requires-python = ">=3.11"
# dependencies = ["autogen-ext[openai,anthropic]>=0.7,<1", "autogen-agentchat>=0.7,<1", "anthropic<1", "tokenmeter-sdk"]
#
# [tool.uv.sources]
# tokenmeter-sdk = { path = "../..", editable = true }
# ///
"""AutoGen, metered: an assistant with a tool, a structured answer, a team of two, and a stream."""

from __future__ import annotations

import asyncio

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core.models import ModelFamily, ModelInfo, UserMessage
from autogen_ext.models.anthropic import AnthropicChatCompletionClient
from autogen_ext.models.openai import OpenAIChatCompletionClient
from pydantic import BaseModel
from stage import stage

import tokenmeter


class City(BaseModel):
    """Where somebody is."""

    name: str
    country: str


async def temperature(city: str) -> str:
    """How warm it is in a city."""
    return f"7 degrees in {city}"


INFO = ModelInfo(
    vision=False, function_calling=True, json_output=True, structured_output=True, family=ModelFamily.UNKNOWN
)


async def main() -> None:
    """Ask an assistant, a team, and a model by itself."""
    with stage() as provider:
        model = OpenAIChatCompletionClient(model="gpt-5-mini", model_info=INFO)
        tokenmeter.wrap(model._client)  # noqa: SLF001 - there is no public way to its client
        claude = AnthropicChatCompletionClient(model="claude-sonnet-5", model_info=INFO)
        tokenmeter.wrap(claude._client)  # noqa: SLF001 - as above

        weather = AssistantAgent("weather", model, tools=[temperature], reflect_on_tool_use=True)
        provider.answer(tool_calls=[("temperature", {"city": "Oslo"})])
        with tokenmeter.attribute(member="ada", route="/weather") as scope:
            await weather.run(task="How warm is it in Oslo?")
        print(f"The assistant took {scope.requests} calls, ${scope.list_cost:f}")

        where = AssistantAgent("where", model, output_content_type=City)
        with tokenmeter.attribute(member="grace", route="/locate"):
            print(repr((await where.run(task="Where is the Louvre?")).messages[-1].content))

        team = RoundRobinGroupChat(
            [AssistantAgent("writer", model), AssistantAgent("critic", claude)],
            termination_condition=MaxMessageTermination(3),
        )
        with tokenmeter.attribute(member="grace", route="/write"):
            await team.run(task="Write about a meter.")

        with tokenmeter.attribute(member="linus", route="/story"):
            async for piece in model.create_stream([UserMessage(content="Tell me a story.", source="user")]):
                print(piece if isinstance(piece, str) else "", end="")
        print()


if __name__ == "__main__":
    asyncio.run(main())
