"""Instructor takes our clients: every answer it asks for, also those it throws away, is recorded."""

from __future__ import annotations

import asyncio

import instructor
import openai
import pytest
from instructor.core import InstructorRetryException
from pydantic import BaseModel, Field

import tokenmeter
from tokenmeter.anthropic import Anthropic, AsyncAnthropic
from tokenmeter.openai import AsyncOpenAI, OpenAI

ASK = {"messages": [{"role": "user", "content": "Ada was 36 years old."}]}
WRONG, RIGHT = {"name": "Ada", "age": -36}, {"name": "Ada", "age": 36}


class Person(BaseModel):
    name: str
    age: int = Field(ge=0)


@pytest.fixture(params=["tools", "json_schema", "responses", "messages"])
def make(request, make_client):
    """Makes a sync or an async Instructor, and the keyword arguments that its calls need."""

    def made(*, is_async):
        if request.param == "messages":
            client = instructor.from_anthropic(make_client(AsyncAnthropic if is_async else Anthropic))
            return client, {"model": "claude-sonnet-5", "max_tokens": 200, **ASK}
        mode = {
            "tools": instructor.Mode.TOOLS,
            "json_schema": instructor.Mode.JSON_SCHEMA,
            "responses": instructor.Mode.RESPONSES_TOOLS,
        }[request.param]
        client = instructor.from_openai(make_client(AsyncOpenAI if is_async else OpenAI), mode=mode)
        return client, {"model": "gpt-5-mini", **ASK}

    return made


def test_every_way_to_call_agrees_with_the_providers_books(make, books):
    client, ask = make(is_async=False)
    assert isinstance(client.create(**ask, response_model=Person), Person)
    person, completion = client.create_with_completion(**ask, response_model=Person)
    assert isinstance(person, Person)
    assert list(client.create_partial(**ask, response_model=Person))
    _, entry, _ = books.agree(calls=3)
    assert entry.response_id == completion.id


async def test_every_async_way_to_call_agrees_with_the_providers_books(make, books):
    client, ask = make(is_async=True)
    assert isinstance(await client.create(**ask, response_model=Person), Person)
    assert [person async for person in client.create_partial(**ask, response_model=Person)]
    books.agree(calls=2)


async def test_several_answers_out_of_one_stream_are_one_call(make_client, books):
    books.provider.answer(tool_calls=[("IterablePerson", {"tasks": [RIGHT, RIGHT]})], times=2)
    ask = {"model": "gpt-5-mini", **ASK, "response_model": Person}
    assert len(list(instructor.from_openai(make_client(OpenAI)).create_iterable(**ask))) == 2
    people = instructor.from_openai(make_client(AsyncOpenAI)).create_iterable(**ask)
    assert len([person async for person in people]) == 2
    books.agree(calls=2)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_an_answer_that_did_not_validate_is_recorded_as_well(is_async, make_client, books):
    for arguments in (WRONG, WRONG, RIGHT):
        books.provider.answer(tool_calls=[("Person", arguments)])
    client = instructor.from_openai(make_client(AsyncOpenAI if is_async else OpenAI))
    with tokenmeter.attribute(member="ada") as scope:
        created = client.create(model="gpt-5-mini", **ASK, response_model=Person, max_retries=3)
        person = await created if is_async else created
    assert person.model_dump() == RIGHT
    books.agree(calls=3)
    assert (scope.requests, scope.usage.total_tokens) == (3, books.provider.total.total_tokens)


async def test_concurrent_calls_keep_their_own_attribution(make, books):
    client, ask = make(is_async=True)

    @tokenmeter.attribute(route="/extract")
    async def extract(member):
        with tokenmeter.attribute(member=member):
            await client.create(**ask, response_model=Person)

    await asyncio.gather(*map(extract, ["ada", "grace", "ada"]))
    assert {entry.attribution.route for entry in books.agree(calls=3)} == {"/extract"}
    assert books.by_member() == {"ada": 2, "grace": 1}


async def test_a_budget_stop_is_the_cause_of_its_error_and_is_not_retried(make, one_call_left):
    client, ask = make(is_async=False)
    client.create(**ask, response_model=Person)
    with pytest.raises(InstructorRetryException) as stop:
        client.create(**ask, response_model=Person, max_retries=3)
    assert stop.value.n_attempts == 1
    assert isinstance(stop.value.__cause__, tokenmeter.BudgetExceededError)
    assert stop.value.__cause__.budget == "one-call"
    client, ask = make(is_async=True)
    with pytest.raises(InstructorRetryException) as stop:
        await client.create(**ask, response_model=Person, max_retries=3)
    assert isinstance(stop.value.__cause__, tokenmeter.BudgetExceededError)
    assert len(one_call_left.provider.requests) == 1


async def test_without_a_response_model_a_budget_stop_reaches_the_caller_as_it_is(make, one_call_left):
    client, ask = make(is_async=False)
    client.create(**ask, response_model=None)
    with pytest.raises(tokenmeter.BudgetExceededError):
        client.create(**ask, response_model=None)


def test_a_patched_client_stays_metered(make_client, books):
    client = instructor.patch(make_client(OpenAI))
    assert isinstance(client.chat.completions.create(model="gpt-5-mini", **ASK, response_model=Person), Person)
    books.agree(calls=1)


def test_answers_are_those_with_the_plain_client(make_client, books):
    answers = [
        instructor.from_openai(make_client(kind)).create_with_completion(
            model="gpt-5-mini", **ASK, response_model=Person
        )
        for kind in (openai.OpenAI, OpenAI)
    ]
    (plain, raw), (metered, metered_raw) = answers
    assert (metered.model_dump(), metered_raw.usage) == (plain.model_dump(), raw.usage)
    assert len(books.entries()) == 1
