# /// script
# requires-python = ">=3.11"
# dependencies = ["magentic[anthropic]>=0.39,<1", "anthropic<1", "tokenmeter-sdk"]
#
# [tool.uv.sources]
# tokenmeter-sdk = { path = "../..", editable = true }
# ///
"""Magentic, metered: functions answered by a model, with a structured answer, a tool and a stream."""

import asyncio

from magentic import AsyncStreamedStr, OpenaiChatModel, prompt, prompt_chain
from magentic.chat_model.anthropic_chat_model import AnthropicChatModel
from pydantic import BaseModel
from stage import stage

import tokenmeter


class City(BaseModel):
    """Where somebody is."""

    name: str
    country: str


def temperature(city: str) -> str:
    """How warm it is in a city."""
    return f"7 degrees in {city}"


@prompt("Where is {it}?")
def locate(it: str) -> City:  # type: ignore[empty-body]
    """Filled by the model."""


@prompt_chain("How warm is it in {city}?", functions=[temperature])
def weather(city: str) -> str:  # type: ignore[empty-body]
    """Answered with the help of a tool."""


@prompt("Tell me a story about {topic}.")
async def story(topic: str) -> AsyncStreamedStr:  # type: ignore[empty-body]
    """Streamed."""


def metered(model: OpenaiChatModel | AnthropicChatModel) -> OpenaiChatModel | AnthropicChatModel:
    """The model, whose clients, which it made itself, are metered."""
    tokenmeter.wrap(model._client)  # noqa: SLF001 - there is no public way to its clients
    tokenmeter.wrap(model._async_client)  # noqa: SLF001 - as above
    return model


async def main() -> None:
    """Call three functions."""
    with stage() as provider:
        with metered(OpenaiChatModel("gpt-5-mini")):
            with tokenmeter.attribute(member="grace", route="/locate"):
                print(repr(locate("the Louvre")))

            provider.answer(tool_calls=[("temperature", {"city": "Oslo"})])
            with tokenmeter.attribute(member="ada", route="/weather") as scope:
                print(weather("Oslo"))
            print(f"took {scope.requests} calls, ${scope.list_cost:f}")

        with (
            metered(AnthropicChatModel("claude-sonnet-5")),
            tokenmeter.attribute(member="grace", route="/story"),
        ):
            async for piece in await story("a meter"):
                print(piece, end="")
            print()


if __name__ == "__main__":
    asyncio.run(main())
