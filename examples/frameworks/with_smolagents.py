# /// script
# requires-python = ">=3.11"
# dependencies = ["smolagents>=1.20,<2", "openai", "tokenmeter-sdk"]
#
# [tool.uv.sources]
# tokenmeter-sdk = { path = "../..", editable = true }
# ///
"""Smolagents with a metered client: an agent that calls tools, one that writes code, and a stream."""

from __future__ import annotations

from smolagents import ChatMessage, CodeAgent, LogLevel, OpenAIModel, ToolCallingAgent, tool
from stage import stage

import tokenmeter
from tokenmeter.openai import OpenAI


@tool
def temperature(city: str) -> str:
    """How warm it is in a city.

    Args:
        city: Name of the city.
    """
    return f"7 degrees in {city}"


def main() -> None:
    """Run two agents and a stream."""
    with stage() as provider:
        model = OpenAIModel(model_id="gpt-5-mini", client=OpenAI())

        agent = ToolCallingAgent(tools=[temperature], model=model, verbosity_level=LogLevel.OFF)
        provider.answer(tool_calls=[("temperature", {"city": "Oslo"})])
        provider.answer(tool_calls=[("final_answer", {"answer": "7 degrees"})])
        with tokenmeter.attribute(member="ada", route="/weather") as scope:
            print(agent.run("How warm is it in Oslo?"), f"after {scope.requests} calls, ${scope.list_cost:f}")

        coder = CodeAgent(tools=[temperature], model=model, verbosity_level=LogLevel.OFF)
        provider.answer("Thought: ask the tool.\n<code>\nfinal_answer(temperature('Oslo'))\n</code>")
        with tokenmeter.attribute(member="grace", route="/code"):
            print(coder.run("How warm is it in Oslo?"))

        with tokenmeter.attribute(member="grace", route="/story"):
            ask = ChatMessage(role="user", content="Tell me a story about a meter.")
            print("".join(piece.content or "" for piece in model.generate_stream([ask])))


if __name__ == "__main__":
    main()
