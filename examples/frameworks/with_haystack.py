# /// script
# requires-python = ">=3.11"
# dependencies = ["haystack-ai>=3.0,<4", "anthropic-haystack>=8.0", "tokenmeter-sdk"]
#
# [tool.uv.sources]
# tokenmeter-sdk = { path = "../..", editable = true }
# ///
"""Haystack with metered clients: a pipeline, an agent with a tool, a stream and embeddings."""

from __future__ import annotations

import asyncio
import os

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from haystack import Document, Pipeline
from haystack.components.agents import Agent
from haystack.components.builders import ChatPromptBuilder
from haystack.components.embedders import OpenAIDocumentEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.tools import tool
from haystack_integrations.components.generators.anthropic import AnthropicChatGenerator
from stage import stage

import tokenmeter
from tokenmeter.anthropic import AsyncAnthropic
from tokenmeter.openai import OpenAI


@tool
def temperature(city: str) -> str:
    """How warm it is in a city."""
    return f"7 degrees in {city}"


def metered(model: str) -> OpenAIChatGenerator:
    """A generator with our client, in place of the one it would make at its first run."""
    generator = OpenAIChatGenerator(model=model)
    generator.client = OpenAI()
    return generator


def show(chunk: StreamingChunk) -> None:
    """Print a piece of a stream."""
    print(chunk.content, end="")


async def main() -> None:
    """Run a pipeline, an agent, a stream, and an embedder."""
    with stage() as provider:
        pipeline = Pipeline()
        pipeline.add_component("prompt", ChatPromptBuilder([ChatMessage.from_user("Where is {{ it }}?")]))
        pipeline.add_component("chat", metered("gpt-5-mini"))
        pipeline.connect("prompt", "chat")
        with tokenmeter.attribute(member="grace", route="/locate"):
            print(pipeline.run({"prompt": {"it": "the Louvre"}})["chat"]["replies"][0].text)

        agent = Agent(chat_generator=metered("gpt-5-mini"), tools=[temperature])
        provider.answer(tool_calls=[("temperature", {"city": "Oslo"})])
        with tokenmeter.attribute(member="ada", route="/weather") as scope:
            agent.run(messages=[ChatMessage.from_user("How warm is it in Oslo?")])
        print(f"The agent took {scope.requests} calls, ${scope.list_cost:f}")

        claude = AnthropicChatGenerator(model="claude-sonnet-5", streaming_callback=show)
        claude.async_client = AsyncAnthropic()
        with tokenmeter.attribute(member="grace", route="/story"):
            await claude.run_async([ChatMessage.from_user("Tell me a story about a meter.")])
        print()

        embedder = OpenAIDocumentEmbedder(model="text-embedding-3-small", progress_bar=False)
        embedder.client = OpenAI()
        with tokenmeter.attribute(member="linus", route="/index"):
            print(len(embedder.run([Document(content="one"), Document(content="two")])["documents"]), "documents")


if __name__ == "__main__":
    asyncio.run(main())
