"""The public face, type-checked by mypy and pyright and never run."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import assert_type

import openai

import tokenmeter
import tokenmeter.openai
from tokenmeter.anthropic import Anthropic, AsyncAnthropic
from tokenmeter.google import genai
from tokenmeter.openai import AsyncOpenAI, OpenAI, RateLimitError, Stream


def configure() -> None:
    """`configure` returns the meter; everything takes it back."""
    meter = tokenmeter.configure(
        store="memory:",
        multiplier="1.05",
        budgets=[tokenmeter.Budget(member="*", limit_usd=50), {"api_key": "prod", "limit_tokens": 5}],
        api_keys={"prod": "sk-..."},
    )
    assert_type(meter, tokenmeter.Meter)
    assert_type(tokenmeter.report(by=["member"], meter=meter), tokenmeter.Report)
    assert_type(tokenmeter.entries(meter=meter), Iterator[tokenmeter.Entry])


def clients() -> None:
    """Clients and their answers have the SDK's own types."""
    from openai.types.chat import ChatCompletion

    answer = OpenAI().chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "Hi"}])
    assert_type(answer, ChatCompletion)
    client = Anthropic()
    assert_type(tokenmeter.wrap(client), Anthropic)
    assert_type(tokenmeter.wrap(OpenAI()), OpenAI)
    assert_type(tokenmeter.wrap(AsyncOpenAI()), AsyncOpenAI)
    tokenmeter.wrap(openai)
    gemini = genai.Client()
    assert_type(tokenmeter.wrap(gemini), genai.Client)
    said = gemini.models.generate_content(model="gemini-2.5-flash", contents="Hi")  # pyright: ignore[reportUnknownMemberType] - PIL's
    assert_type(said, genai.types.GenerateContentResponse)
    tokenmeter.wrap(3)  # type: ignore[type-var] # pyright: ignore[reportArgumentType]


def names(error: RateLimitError, stream: Stream[int]) -> None:
    """Every other name is the SDK's own, and a misspelled one is an error."""
    theirs: openai.RateLimitError = error
    assert_type(theirs.message, str)
    their_stream: openai.Stream[int] = stream
    assert_type(next(their_stream), int)
    tokenmeter.openai.RateLimitErorr  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] # noqa: B018


async def async_clients() -> None:
    """The same for async clients."""
    from anthropic.types import Message

    async with AsyncOpenAI() as openai, AsyncAnthropic() as anthropic:
        await openai.responses.create(model="gpt-5", input="Hi")
        message = await anthropic.messages.create(model="claude-haiku-4-5", max_tokens=5, messages=[])
        assert_type(message, Message)


@tokenmeter.attribute(member="ada")
def decorated(number: int) -> str:
    """Decorating keeps the signature."""
    return str(number)


def scopes() -> None:
    """A scope's sums are exact."""
    assert_type(decorated(5), str)
    with tokenmeter.attribute(member="ada") as scope:
        assert_type(scope, tokenmeter.Scope)
        assert_type(scope.billed_cost, Decimal)
        assert_type(scope.usage, tokenmeter.Usage)


def price() -> None:
    """A rating's lines are charges."""
    rating = tokenmeter.price({}, provider="openai", endpoint="responses")
    assert_type(rating.charges, tuple[tokenmeter.Charge, ...])
    assert_type(rating.billed_cost, Decimal | None)


def misspelled() -> None:
    """A misspelled name is an error here, too, and what the package has is not."""
    tokenmeter.reprot()  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    assert_type(tokenmeter.__version__, str)
    tokenmeter.web.AttributionMiddleware  # noqa: B018
    tokenmeter.testing.FakeProvidr  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] # noqa: B018
