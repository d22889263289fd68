# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "langchain-openai>=1.0,<2",
#   "langchain-anthropic>=1.0,<2",
#   "langchain-google-genai>=4,<5",
#   "tokenmeter-sdk",
# ]
#
# [tool.uv.sources]
# tokenmeter-sdk = { path = "../..", editable = true }
# ///
"""LangChain's chat models, metered: a tool, a structured answer, streams and embeddings, for OpenAI and Anthropic."""

from __future__ import annotations

import asyncio

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from stage import stage

import tokenmeter
from tokenmeter.openai import AsyncOpenAI, OpenAI


class City(BaseModel):
    """Where somebody is."""

    name: str
    country: str


@tool
def temperature(city: str) -> str:
    """How warm it is in a city."""
    return f"7 degrees in {city}"


def metered_claude(model: str) -> ChatAnthropic:
    """A chat model whose clients, which it makes itself, are metered."""
    chat = ChatAnthropic(model=model, max_tokens=200)
    tokenmeter.wrap(chat._client)  # noqa: SLF001 - there is no public way to its clients
    tokenmeter.wrap(chat._async_client)  # noqa: SLF001 - as above
    return chat


async def main() -> None:
    """Call tools, fill a schema, stream, embed."""
    with stage() as provider:
        chat = ChatOpenAI(model="gpt-5-mini")
        tokenmeter.wrap(chat.root_client)
        tokenmeter.wrap(chat.root_async_client)

        with tokenmeter.attribute(member="ada", route="/weather") as scope:
            provider.answer(tool_calls=[("temperature", {"city": "Oslo"})])
            question = HumanMessage("How warm is it in Oslo?")
            answer = chat.bind_tools([temperature]).invoke([question])
            results = [
                ToolMessage(temperature.invoke(call["args"]), tool_call_id=call["id"]) for call in answer.tool_calls
            ]
            print(chat.invoke([question, answer, *results]).text)
        print(f"took {scope.requests} calls, ${scope.list_cost:f}")

        with tokenmeter.attribute(member="grace", route="/locate"):
            print(repr(await chat.with_structured_output(City).ainvoke("Where is the Louvre?")))

        with tokenmeter.attribute(member="grace", route="/story"):
            async for piece in metered_claude("claude-sonnet-5").astream("Tell me a story about a meter."):
                print(piece.text, end="")
            print()

        with tokenmeter.attribute(member="linus", route="/search"):
            embeddings = OpenAIEmbeddings(
                model="text-embedding-3-small",
                client=OpenAI().embeddings,
                async_client=AsyncOpenAI().embeddings,
                check_embedding_ctx_length=False,
            )
            print(len(embeddings.embed_documents(["one", "two"])), "vectors")


if __name__ == "__main__":
    asyncio.run(main())
