"""Whatever breaks inside tokenmeter, the call goes through unchanged; it is logged once, with its cause."""

from __future__ import annotations

import logging
import threading
from collections import Counter

import pytest

import tokenmeter
from tokenmeter.errors import StoreBusyError, StoreUnavailableError
from tokenmeter.processes import may_wait

MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT = {"model": "gpt-5-mini", "messages": MESSAGES}
MESSAGE = {"model": "claude-sonnet-5", "max_tokens": 64, "messages": MESSAGES}


class Broken:
    """Stands in for a part, and fails in one of its methods."""

    def __init__(self, part, *methods):
        self._part = part
        self._methods = methods

    def __getattr__(self, name):
        if name in self._methods:
            raise RuntimeError(f"{name} is broken")
        return getattr(self._part, name)


async def _use(client, do):
    """Every kind of call once; the text that came back."""
    if hasattr(client, "chat"):
        first = (await do(client.chat.completions.create(**CHAT))).choices[0].message.content
        second = [chunk async for chunk in do.each(client.chat.completions.create(**CHAT, stream=True))]
        async with do.inside(client.chat.completions.with_streaming_response.create(**CHAT)) as raw:
            third = "".join([line async for line in do.each(raw.iter_lines())])
        return first, len(second), bool(third)
    first = (await do(client.messages.create(**MESSAGE))).content[0].text
    second = [event async for event in do.each(client.messages.create(**MESSAGE, stream=True))]
    return first, len(second)


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic"])
@pytest.mark.parametrize("method", ["endpoint", "request_facts", "read", "stream"])
async def test_a_fault_in_reading_the_wire_format(name, method, clients, do, meter, caplog, monkeypatch):
    from tokenmeter.capture import sdk

    client = clients.make(name)
    binding = sdk.binding_of(client)
    broken_dialect = Broken(binding.sdk.dialect(), method)
    described = type(binding.sdk)(
        **{field: getattr(binding.sdk, field) for field in binding.sdk.__slots__ if field != "dialect"},
        dialect=lambda: broken_dialect,
    )
    binding.sdk = described
    monkeypatch.setattr(sdk, "_complained", Counter())
    with caplog.at_level(logging.ERROR, logger="tokenmeter"):
        broken = await _use(client, do)
    assert broken == await _use(clients.make(name, metered=False), do)
    assert f"{method} is broken" in caplog.text


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic"])
@pytest.mark.parametrize("part", ["store", "pricer"])
async def test_a_fault_in_a_part_of_the_meter_is_logged_once_and_counted(name, part, clients, do, meter, caplog):
    client = clients.make(name)
    method = {"store": "settle", "pricer": "rate"}[part]
    setattr(meter, part, Broken(getattr(meter, part), method))
    with caplog.at_level(logging.ERROR, logger="tokenmeter"):
        broken = await _use(client, do)
    assert broken == await _use(clients.make(name, metered=False), do)
    assert meter.faults >= 2
    assert caplog.text.count(f"RuntimeError: {method} is broken") == 1


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
async def test_a_meter_that_fails_to_authorize_lets_the_call_through(name, clients, books, do, meter, monkeypatch):
    def fails(*_args, **_kwargs):
        raise OSError("no")

    monkeypatch.setattr(meter, "authorize", fails)
    await _use(clients.make(name), do)
    assert meter.faults >= 2  # a call like one before it is not authorized anew where there is no budget
    assert len(books.all()) == 3


async def test_an_unavailable_store_breaks_nothing(clients, do, meter, monkeypatch):
    def fails(*_args, **_kwargs):
        raise StoreUnavailableError("gone")

    monkeypatch.setattr(meter.store, "settle", fails)
    await _use(clients.openai(), do)
    assert meter.faults == 3


@pytest.mark.parametrize("name", ["AsyncOpenAI", "AsyncAnthropic"])
async def test_a_busy_store_never_makes_the_event_loop_wait(name, clients, books, do, meter, monkeypatch):
    settle, waited_in = meter.store.settle, []

    def busy(*args, **kwargs):
        if not may_wait():
            raise StoreBusyError("busy")
        waited_in.append(threading.current_thread())
        return settle(*args, **kwargs)

    monkeypatch.setattr(meter.store, "settle", busy)
    await _use(clients.make(name), do)
    assert len(books.all()) == len(waited_in) >= 2
    assert threading.main_thread() not in waited_in


def test_no_default_meter_is_logged_and_the_call_goes_on(clients, caplog, monkeypatch):
    from tokenmeter import default

    def fails():
        raise StoreUnavailableError("the disk is full")

    monkeypatch.setattr(default, "meter_for_calls", fails)
    monkeypatch.setattr("tokenmeter.capture.sdk._complained", Counter())
    client = tokenmeter.wrap(clients.openai(metered=False))
    with caplog.at_level(logging.ERROR, logger="tokenmeter"):
        assert client.chat.completions.create(**CHAT).choices
        client.chat.completions.create(**CHAT)
    assert caplog.text.count("StoreUnavailableError: the disk is full") == 1


def test_one_shot_iterators_in_a_request_still_reach_the_provider(clients, books, provider):
    try:
        clients.anthropic(metered=False).messages.create(**{**MESSAGE, "messages": iter(MESSAGES)})
    except TypeError:
        pytest.skip("this SDK version takes no iterators")
    client = clients.anthropic()
    client.messages.create(**{**MESSAGE, "messages": iter(MESSAGES)})
    assert [request.json["messages"] for request in provider.requests] == [MESSAGES, MESSAGES]
    assert books.one().status == "ok"
