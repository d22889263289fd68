"""A dozen metered calls by three members over two routes, a hard cap that stops one of them, and the report.

With ``OPENAI_API_KEY`` and ``ANTHROPIC_API_KEY`` in the environment the calls go to the real providers (a few US
cents); without them a FakeProvider is started on 127.0.0.1, which speaks both wire formats and bills nobody.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import tokenmeter
from tokenmeter.anthropic import Anthropic, AsyncAnthropic
from tokenmeter.openai import AsyncOpenAI, OpenAI
from tokenmeter.testing import FakeProvider

TEXT = "Metering belongs where the call is made, not in a box in between. " * 12


def main() -> None:
    """Run the whole tour."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        if not (os.environ.get("OPENAI_API_KEY") and os.environ.get("ANTHROPIC_API_KEY")):
            provider = stack.enter_context(FakeProvider())
            os.environ["OPENAI_API_KEY"] = "sk-quickstart-openai-0001"
            os.environ["ANTHROPIC_API_KEY"] = "sk-ant-quickstart-0002"
            os.environ["OPENAI_BASE_URL"] = provider.openai_url
            os.environ["ANTHROPIC_BASE_URL"] = provider.anthropic_url
            # The provider finds the second prompt in its cache, as a real one would.
            provider.answer(path="/v1/chat/completions", times=1)
            provider.answer(path="/v1/chat/completions", meters={"input": 75, "cache_read": 128, "output": 42})
            print(f"No API keys found: a FakeProvider answers at {provider.url}\n")
        meter = tokenmeter.configure(
            store=f"sqlite:///{Path(folder) / 'usage.db'}",
            multiplier="1.05",
            budgets=[tokenmeter.Budget(member="grace", limit_usd="0.002", name="grace-monthly")],
            api_keys={"prod-openai": os.environ["OPENAI_API_KEY"], "prod-claude": os.environ["ANTHROPIC_API_KEY"]},
        )
        stack.callback(meter.close)
        calls()
        asyncio.run(async_calls())
        capped()
        print(tokenmeter.report(by=["member", "route", "model"]))
        print()
        print(tokenmeter.report(by="api_key"))
        print(f"\nLedger verified: {tokenmeter.verify().entries} entries, hash chain intact.")


def calls() -> None:
    """Chat completions, responses, embeddings and messages; plain and streamed."""
    openai, claude = OpenAI(), Anthropic()
    with tokenmeter.attribute(member="ada", team="search", route="/summarise") as scope:
        openai.chat.completions.create(
            model="gpt-5-mini", messages=[{"role": "user", "content": f"Summarise: {TEXT}"}], max_completion_tokens=300
        )
        stream = openai.chat.completions.create(
            model="gpt-5-mini", messages=[{"role": "user", "content": f"Shorter: {TEXT}"}], stream=True
        )
        for chunk in stream:
            assert chunk.choices, "the usage chunk never reaches a caller who did not ask for it"  # noqa: S101
        claude.messages.create(
            model="claude-sonnet-5", max_tokens=300, messages=[{"role": "user", "content": f"Title for: {TEXT}"}]
        )
        openai.embeddings.create(model="text-embedding-3-small", input=[TEXT, "a query"])
    print(
        f"ada's four calls: {scope.usage.input_tokens} input and {scope.usage.output_tokens} output tokens, "
        f"${scope.billed_cost:f} billed"
    )

    with tokenmeter.attribute(member="ada", team="search", route="/chat"):
        openai.responses.create(model="gpt-5", input=f"Discuss: {TEXT}", max_output_tokens=400)
        with claude.messages.stream(
            model="claude-sonnet-5", max_tokens=400, messages=[{"role": "user", "content": f"Discuss: {TEXT}"}]
        ) as answer:
            answer.until_done()


async def async_calls() -> None:
    """The same, concurrently: each task keeps its own attribution."""
    async with AsyncOpenAI() as openai, AsyncAnthropic() as claude:

        @tokenmeter.attribute(member="linus", team="platform", route="/chat")
        async def ask(number: int) -> None:
            await openai.responses.create(model="gpt-5-mini", input=f"Question {number}: {TEXT}")

        @tokenmeter.attribute(member="linus", team="platform", route="/summarise")
        async def stream() -> None:
            async with claude.messages.stream(
                model="claude-haiku-4-5", max_tokens=200, messages=[{"role": "user", "content": TEXT}]
            ) as answer:
                await answer.until_done()

        await asyncio.gather(ask(1), ask(2), ask(3), stream())


def capped() -> None:
    """Grace has a fifth of a cent a month. The call that could pass it never leaves."""
    openai = OpenAI()
    with tokenmeter.attribute(member="grace", team="search", route="/chat"):
        for number in range(20):
            try:
                openai.chat.completions.create(
                    model="gpt-5-mini",
                    messages=[{"role": "user", "content": f"Question {number}: {TEXT}"}],
                    max_completion_tokens=300,
                )
            except tokenmeter.BudgetExceededError as stop:
                print(f"grace's call {number + 1} was stopped before it was sent:\n  {stop}\n")
                break


if __name__ == "__main__":
    main()
