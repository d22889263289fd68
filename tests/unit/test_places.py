"""What a message says of where in the user's code something was done: the line that awaits it, once."""

from __future__ import annotations

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor

import pytest

import tokenmeter
from tokenmeter import Budget
from tokenmeter.adopt import wrap
from tokenmeter.anthropic import AsyncAnthropic
from tokenmeter.google import genai
from tokenmeter.openai import AsyncOpenAI, OpenAI

SAID = [{"role": "user", "content": "Hi"}]
ANSWER = {"model": "gpt-5-mini", "usage": {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}}
BY_HAND = {"provider": "openai", "endpoint": "chat.completions"}


@pytest.fixture(autouse=True)
def _no_block_before(monkeypatch):
    """The last block of another test does not miss a call of this one."""
    monkeypatch.setattr("tokenmeter.running.STRAYS.empty", None)


@pytest.fixture
def settings(store_url):
    """Settings of a ledger that nobody has opened, where members are asked for and capped."""
    tokenmeter.reset()  # nor is told that it is another than before
    each = Budget(member="*", limit_usd=1, name="each")
    yield {"store": store_url, "require": ["member"], "on_missing": "warn", "budgets": [each], "config": {}}
    tokenmeter.reset()


def next_line() -> str:
    """The place of the line below the caller's."""
    return f"{__file__}:{inspect.currentframe().f_back.f_lineno + 1}"


def openai(provider, meter):
    return wrap(AsyncOpenAI(api_key="sk-test-places", base_url=provider.openai_url), meter)


async def ask_openai(provider, meter):
    async with openai(provider, meter) as client:
        place = next_line()
        await client.chat.completions.create(model="gpt-5-mini", messages=SAID)
    return place


async def stream_openai(provider, meter):
    async with openai(provider, meter) as client:
        place = next_line()
        stream = await client.responses.create(model="gpt-5-mini", input="Hi", stream=True)
        async for _ in stream:
            pass
    return place


async def ask_anthropic(provider, meter):
    async with AsyncAnthropic(api_key="sk-ant-places", base_url=provider.anthropic_url) as plain:
        client = wrap(plain, meter)
        place = next_line()
        await client.messages.create(model="claude-haiku-4-5", max_tokens=9, messages=SAID)
    return place


async def ask_google(provider, meter):
    client = wrap(genai.Client(api_key="AIza-places", http_options={"base_url": provider.google_url}), meter)
    place = next_line()
    await client.aio.models.generate_content(model="gemini-2.5-flash", contents="Hi")
    await client.aio.aclose()
    return place


async def record_by_hand(_, meter):
    del meter
    place = next_line()
    await tokenmeter.arecord(ANSWER, **BY_HAND)
    return place


async def hold_by_hand(_, meter):
    del meter
    place = next_line()
    async with tokenmeter.hold(**BY_HAND, model="gpt-5-mini", input_tokens=1, max_output_tokens=1):
        pass
    return place


@pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")  # Google's SDK has it from aiohttp
@pytest.mark.parametrize(
    "call",
    [ask_openai, stream_openai, ask_anthropic, ask_google, record_by_hand, hold_by_hand],
    ids=lambda one: one.__name__,
)
def test_the_first_asynchronous_call_is_told_once_with_the_line_that_awaits_it(call, provider, settings, caplog):
    meter = tokenmeter.configure(**settings)
    place = asyncio.run(call(provider, meter))
    asyncio.run(call(provider, meter))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2, told
    assert all(f" at {place} has no member" in text for text in told), (place, told)
    assert any(text.startswith("Budget 'each' caps each member by itself") for text in told)


def test_a_block_is_not_told_of_calls_that_an_event_loop_records_beside_it(caplog):
    tokenmeter.configure(store="memory:", config={})

    async def work():
        recorded = asyncio.Event()

        async def wait_in_block():
            with tokenmeter.attribute(member="ada"):
                await recorded.wait()

        waiting = asyncio.create_task(wait_in_block())
        await asyncio.sleep(0)
        await tokenmeter.arecord(ANSWER, **BY_HAND)
        recorded.set()
        await waiting
        assert [record.getMessage() for record in caplog.records] == []
        place = next_line()
        await tokenmeter.arecord(ANSWER, **BY_HAND)
        return place

    place = asyncio.run(work())
    tokenmeter.reset()
    (told,) = caplog.records  # a block that ended empty just before is told of where the call was made
    assert told.getMessage().endswith(f"(the call at {place}).")


def test_a_call_that_no_line_makes_is_told_by_its_task_or_thread(provider, settings, caplog):
    meter = tokenmeter.configure(**settings)

    async def gather():
        async with openai(provider, meter) as client:
            asked = client.chat.completions.create(model="gpt-5-mini", messages=SAID)
            await asyncio.create_task(asked, name="ask")

    asyncio.run(gather())
    with OpenAI(api_key="sk-test-places", base_url=provider.openai_url) as plain, ThreadPoolExecutor(1, "pool") as pool:
        client = wrap(plain, meter)
        pool.submit(client.chat.completions.create, model="gpt-5-mini", messages=SAID).result()
    told = [text for record in caplog.records if (text := record.getMessage()).startswith("The call")]
    assert [text.partition(" has no ")[0] for text in told] == [
        "The call to chat.completions in task 'ask'",
        "The call to chat.completions in thread 'pool_0'",
    ]


@pytest.mark.parametrize("on_missing", ["refuse", "warn"])
def test_what_is_recorded_by_hand_without_a_member_is_told_and_recorded(settings, caplog, on_missing):
    tokenmeter.configure(**settings | {"on_missing": on_missing, "budgets": []})
    for _ in range(2):
        assert tokenmeter.record(ANSWER, **BY_HAND) is not None
    assert len(caplog.records) == 1
    assert " has no member, and the settings require it. " in caplog.text
    assert "It was made already, and is recorded." in caplog.text


def test_what_to_do_about_a_missing_key_is_not_said_to_be_a_block(settings):
    tokenmeter.configure(**settings | {"require": ["api_key", "tag:env"], "on_missing": "refuse", "budgets": []})
    with pytest.raises(tokenmeter.AttributionRequiredError) as stop, tokenmeter.hold(**BY_HAND, model="gpt-5-mini"):
        pass
    assert "has no api_key, tag:env, and" in str(stop.value)
    assert "tokenmeter.attribute(tags={'env': ...})" in str(stop.value)
