# /// script
# requires-python = ">=3.11"
# dependencies = ["instructor>=1.15,<2", "anthropic", "tokenmeter-sdk"]
#
# [tool.uv.sources]
# tokenmeter-sdk = { path = "../..", editable = true }
# ///
"""Instructor with metered clients: a structured answer, one that had to be asked for again, and partial answers."""

from __future__ import annotations

import asyncio

import instructor
from pydantic import BaseModel, Field
from stage import stage

import tokenmeter
from tokenmeter.anthropic import Anthropic
from tokenmeter.openai import AsyncOpenAI, OpenAI


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int = Field(ge=0, description="in years")


async def main() -> None:
    """Extract people from text."""
    text = [{"role": "user", "content": "Ada Lovelace was 36 years old."}]
    with stage() as provider:
        client = instructor.from_openai(OpenAI())
        with tokenmeter.attribute(member="ada", route="/extract") as scope:
            provider.answer(tool_calls=[("Person", {"name": "Ada", "age": -36})])  # it is asked again, and pays again
            provider.answer(tool_calls=[("Person", {"name": "Ada", "age": 36})])
            print(repr(client.create(model="gpt-5-mini", messages=text, response_model=Person, max_retries=2)))
        print(f"took {scope.requests} calls, ${scope.list_cost:f}")

        claude = instructor.from_anthropic(Anthropic())
        with tokenmeter.attribute(member="grace", route="/extract"):
            print(repr(claude.create(model="claude-sonnet-5", max_tokens=200, messages=text, response_model=Person)))

        streaming = instructor.from_openai(AsyncOpenAI())
        with tokenmeter.attribute(member="grace", route="/live"):
            provider.answer(tool_calls=[("Person", {"name": "Ada", "age": 36})])
            async for person in streaming.create_partial(model="gpt-5-mini", messages=text, response_model=Person):
                print(repr(person))


if __name__ == "__main__":
    asyncio.run(main())
