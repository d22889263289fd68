# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "llama-index-core>=0.14,<1",
#   "llama-index-llms-openai>=0.6,<1",
#   "llama-index-llms-anthropic>=0.10,<1",
#   "llama-index-llms-google-genai>=0.11,<1",
#   "llama-index-embeddings-openai>=0.5,<1",
#   "anthropic<1",
#   "tokenmeter-sdk",
# ]
#
# [tool.uv.sources]
# tokenmeter-sdk = { path = "../..", editable = true }
# ///
"""LlamaIndex, metered: an index that is queried, an agent with a tool, a structured answer and a stream."""

from __future__ import annotations

import asyncio

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.prompts import PromptTemplate
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.anthropic import Anthropic
from llama_index.llms.openai import OpenAI
from pydantic import BaseModel
from stage import stage

import tokenmeter
import tokenmeter.openai


class City(BaseModel):
    """Where somebody is."""

    name: str
    country: str


def temperature(city: str) -> str:
    """How warm it is in a city."""
    return f"7 degrees in {city}"


async def main() -> None:
    """Index, query, ask an agent, fill a schema, stream."""
    with stage() as provider:
        llm = OpenAI(
            model="gpt-5-mini",
            openai_client=tokenmeter.openai.OpenAI(),
            async_openai_client=tokenmeter.openai.AsyncOpenAI(),
        )
        embedding = OpenAIEmbedding(model="text-embedding-3-small", api_base=provider.openai_url)
        tokenmeter.wrap(embedding._get_client())  # noqa: SLF001 - it takes no clients
        tokenmeter.wrap(embedding._get_aclient())  # noqa: SLF001 - as above

        with tokenmeter.attribute(member="linus", route="/ask") as scope:
            index = VectorStoreIndex.from_documents([Document(text="Ada lives in London.")], embed_model=embedding)
            print(index.as_query_engine(llm=llm).query("Where does Ada live?"))
        print(f"took {scope.requests} calls, ${scope.list_cost:f}")

        agent = FunctionAgent(tools=[temperature], llm=llm, streaming=False)
        provider.answer(tool_calls=[("temperature", {"city": "Oslo"})])
        with tokenmeter.attribute(member="ada", route="/weather"):
            print(await agent.run("How warm is it in Oslo?"))

        with tokenmeter.attribute(member="grace", route="/locate"):
            print(repr(llm.structured_predict(City, PromptTemplate("Where is the Louvre?"))))

        claude = Anthropic(model="claude-sonnet-5", max_tokens=200)
        tokenmeter.wrap(claude._aclient)  # noqa: SLF001 - it takes no clients
        with tokenmeter.attribute(member="grace", route="/story"):
            async for piece in await claude.astream_complete("Tell me a story about a meter."):
                print(piece.delta, end="")
        print()


if __name__ == "__main__":
    asyncio.run(main())
