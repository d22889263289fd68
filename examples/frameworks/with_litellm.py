# /// script
# requires-python = ">=3.11"
# dependencies = ["litellm>=1.80,<2", "mcp", "tenacity", "tokenmeter-sdk[openai]"]
#
# [tool.uv.sources]
# tokenmeter-sdk = { path = "../..", editable = true }
# ///
"""LiteLLM with metered clients: plain, async, streamed and structured calls, responses and embeddings."""

from __future__ import annotations

import asyncio
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # instead of downloading its price list

import litellm
from pydantic import BaseModel
from stage import stage

import tokenmeter
from tokenmeter.openai import AsyncOpenAI, OpenAI


class City(BaseModel):
    """Where somebody is."""

    name: str
    country: str


def ask(text: str) -> list[dict[str, str]]:
    """A conversation that begins."""
    return [{"role": "user", "content": text}]


async def main() -> None:
    """Every call is handed a client."""
    with stage():
        client, async_client = OpenAI(), AsyncOpenAI()

        with tokenmeter.attribute(member="ada", route="/chat") as scope:
            answer = litellm.completion("openai/gpt-5-mini", ask("Hello"), client=client)
        print(answer.choices[0].message.content, f"${scope.list_cost:f}")

        with tokenmeter.attribute(member="grace", route="/locate"):
            answer = await litellm.acompletion(
                "openai/gpt-5-mini", ask("Where is the Louvre?"), client=async_client, response_format=City
            )
        print(answer.choices[0].message.content)

        with tokenmeter.attribute(member="grace", route="/story"):
            async for chunk in await litellm.acompletion(
                "openai/gpt-5-mini", ask("Tell me a story about a meter."), client=async_client, stream=True
            ):
                print(chunk.choices[0].delta.content or "", end="")
        print()

        with tokenmeter.attribute(member="linus", route="/search"):
            vectors = litellm.embedding("text-embedding-3-small", input=["one", "two"], client=client)
        print(len(vectors.data), "vectors")


if __name__ == "__main__":
    asyncio.run(main())
