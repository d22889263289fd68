"""Something of ours fails at any line of the way of a call through Google's SDK, or over a socket.

As `test_capture_interrupts` for the SDKs of Stainless's make: the caller gets his answer, its bill is recorded once,
and no hold stays.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
from datetime import timedelta

import openai
import pytest
from google import genai

import tokenmeter
from interrupting import ROOT, entries_in, interrupted_at
from tokenmeter import openai as metered_openai
from tokenmeter.capture.calls import InFlight
from tokenmeter.capture.responses import Exchange
from tokenmeter.capture.sdk import BINDING
from tokenmeter.meter import Meter
from tokenmeter.stores import open_store
from tokenmeter.testing import FakeProvider

MODEL = "gemini-2.5-flash"
SAY = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say hello."}]}


@pytest.fixture
def provider():
    with FakeProvider(realtime=True) as running:
        yield running


@pytest.fixture
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


def google(provider):
    return genai.Client(api_key="AIza-test-0123456789abcdef", http_options={"base_url": provider.google_url})


def generated(provider, meter, _loop):
    client = tokenmeter.wrap(google(provider), meter)
    return lambda: client.models.generate_content(model=MODEL, contents="Hi")


def streamed(provider, meter, _loop):
    client = tokenmeter.wrap(google(provider), meter)
    return lambda: list(client.models.generate_content_stream(model=MODEL, contents="Hi"))


def generated_async(provider, meter, loop):
    client = tokenmeter.wrap(google(provider), meter)

    async def go():
        await client.aio.models.generate_content(model=MODEL, contents="Hi")

    return lambda: loop.run_until_complete(go())


def streamed_async(provider, meter, loop):
    client = tokenmeter.wrap(google(provider), meter)

    async def go():
        async for _ in await client.aio.models.generate_content_stream(model=MODEL, contents="Hi"):
            pass

    return lambda: loop.run_until_complete(go())


def talked(provider, meter, _loop):
    pytest.importorskip("websockets")
    client = tokenmeter.wrap(openai.OpenAI(api_key="sk-test-0123456789abcdef", base_url=provider.openai_url), meter)
    if not hasattr(client, "realtime"):
        pytest.skip("this SDK version has no such connection")

    def talk():
        with client.realtime.connect(model="gpt-realtime") as connection:
            connection.conversation.item.create(item=SAY)
            connection.response.create()
            for event in connection:
                if event.type == "response.done":
                    break

    return talk


def without_tls(monkeypatch, module, name):
    """The SDK insists on TLS, which the fake provider does not speak."""
    connect = vars(pytest.importorskip(f"google.genai.{module}"))[name]

    def connect_plainly(uri, **options):
        options.pop("ssl", None)
        return connect(uri.replace("wss://", "ws://"), **options)

    monkeypatch.setattr(f"google.genai.{module}.{name}", connect_plainly)


def took_a_turn(provider, meter, loop, monkeypatch):
    without_tls(monkeypatch, "live", "ws_connect")
    client = tokenmeter.wrap(google(provider), meter)
    said = genai.types.Content(role="user", parts=[genai.types.Part(text="Hello")])

    async def talk():
        async with client.aio.live.connect(model="gemini-3.8-live") as session:
            await session.send_client_content(turns=said)
            async for _ in session.receive():
                pass

    return lambda: loop.run_until_complete(talk())


TURN = pytest.param(took_a_turn, marks=pytest.mark.needs("google.genai.live:AsyncSession.send_client_content"))


def played(provider, meter, loop, monkeypatch):
    without_tls(monkeypatch, "live_music", "connect")
    client = tokenmeter.wrap(google(provider), meter)
    if not hasattr(client.aio.live, "music"):
        pytest.skip("this SDK version has no music")

    async def play():
        async with client.aio.live.music.connect(model="models/lyria-realtime-exp") as session:
            await session.play()
            await anext(aiter(session.receive()))

    return lambda: loop.run_until_complete(play())


def connected(provider, meter, loop, _monkeypatch):
    client = tokenmeter.wrap(google(provider), meter)
    return connects(client, client, loop)


def connected_to_anothers(provider, meter, loop, _monkeypatch):
    """What this process did not begin needs leave for what is sent over the connection."""
    return connects(google(provider), tokenmeter.wrap(google(provider), meter), loop)


def connects(beginner, client, loop):
    if not hasattr(getattr(client.aio, "interactions", None), "connect"):
        pytest.skip("this SDK version has no interactions over sockets")

    async def hear():
        begun = beginner.interactions.create(model="gemini-3.5-flash", input="Hello", background=True)
        try:
            async with client.aio.interactions.connect(begun.id) as session:
                await session.complete()
                async for _ in session.receive():
                    pass
        finally:
            client.interactions.get(begun.id)

    return lambda: loop.run_until_complete(hear())


@pytest.mark.filterwarnings("ignore:.*experimental")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("way", "step"),
    # The SDK builds its models anew for each request that begins an interaction, which takes most of the time.
    [pytest.param(took_a_turn, 1, marks=TURN.marks), (played, 1), (connected, 3), (connected_to_anothers, 3)],
)
def test_a_session_is_billed_once_and_holds_nothing_whichever_line_of_its_own_fails(
    way, step, provider, priced, loop, tmp_path, monkeypatch
):
    meter = Meter(
        store=open_store(f"sqlite:///{tmp_path}/ledger.db"),
        pricer=priced.pricer,
        budgets=[tokenmeter.Budget(limit_usd=10**6, unbounded="expected")],
    )
    call = way(provider, meter, loop, monkeypatch)

    def whole():
        nonlocal ended
        ended = False
        contextvars.copy_context().run(call)
        ended = True

    ended, number, total, reached, files = False, 1, 0, [], ("genai_sockets.py", "genai.py")
    whole()
    expected = entries_in(meter.store)
    assert expected == 1
    while place := interrupted_at(number, whole, MemoryError, within=tuple(f"{ROOT}/capture/{one}" for one in files)):
        number, total = number + step, total + 1
        gc.collect()
        meter.flush()  # what could not be written waits in memory
        recorded = entries_in(meter.store)
        if ended:
            assert recorded == expected + 1, f"a bill is lost, or there twice: {place}"
        else:
            reached.append(place)
        expected = recorded
        assert not meter.store.expired(meter.store.now() + timedelta(days=1)), f"a hold stays: {place}"
    assert total > 20
    assert len(reached) < total * 2 / 5, "too many faults of ours reach the caller"
    assert meter.store.verify().ok
    meter.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where it came in a finaliser
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("capped", [False, True], ids=["no cap", "a cap"])
@pytest.mark.parametrize(
    ("way", "step"),
    [(generated, 11), (streamed, 29), (generated_async, 13), (streamed_async, 31), (talked, 13)],
)
def test_the_caller_gets_his_answer_and_its_bill_is_recorded_once(way, step, capped, provider, priced, loop, tmp_path):
    meter = Meter(
        store=open_store(f"sqlite:///{tmp_path}/ledger.db"),
        pricer=priced.pricer,
        budgets=[tokenmeter.Budget(limit_usd=10**6, unbounded="expected")] if capped else [],
    )
    call = way(provider, meter, loop)

    def whole():
        nonlocal ended
        ended = False
        contextvars.copy_context().run(call)
        ended = True

    ended = False
    for _ in range(3):
        whole()
    number = step // 2
    reached = total = 0
    expected = 3
    while (place := interrupted_at(number, whole, MemoryError)) is not None:
        number, total, reached = number + step, total + 1, reached + (not ended)
        gc.collect()
        meter.flush()  # what could not be written waits in memory
        recorded = entries_in(meter.store)
        if ended:
            assert recorded == expected + 1, f"a bill is lost, or there twice: {place}"
        expected = recorded  # the SDK may have asked, or not, where it could not go on
        assert not meter.store.expired(meter.store.now() + timedelta(days=1)), f"a hold stays: {place}"
    assert total > 20
    assert reached < total / 3, "too many faults of ours reach the caller"
    assert meter.store.verify().ok
    meter.close()


@pytest.mark.parametrize("kind", [openai.OpenAI, metered_openai.OpenAI], ids=["in place", "of our class"])
@pytest.mark.parametrize("what", ["with_options", "realtime", "__copy__"])
def test_what_a_client_gives_is_given_and_metered_whichever_line_of_its_metering_fails(what, kind, provider):
    meter = tokenmeter.make_meter(store="memory:")
    client = tokenmeter.wrap(kind(api_key="sk-test-0123456789abcdef", base_url=provider.openai_url), meter)
    if what == "realtime" and not hasattr(client, what):
        pytest.skip("this SDK version has no such connection")
    ways = {
        "with_options": lambda: client.with_options(timeout=5),
        "realtime": lambda: client.realtime,
        "__copy__": lambda: copy.copy(client),
    }

    def take():
        nonlocal given
        client.__dict__.pop("realtime", None)
        given = ways[what]()

    number, given = 1, None
    outermost = frozenset({"copy", "__init__", "watch_resource", "twice", "_reduced", "_metered_again"})
    while interrupted_at(number, take, MemoryError, without=outermost):
        assert given is not None, f"the caller gets none, at line {number}"
        assert {BINDING, "connect"} & given.__dict__.keys(), f"it is not metered, at line {number}"
        number, given = number + 1, None
    none_of_ours = what == "__copy__" and kind is metered_openai.OpenAI
    assert none_of_ours or number > 8
    meter.close()


def test_a_call_whose_key_is_handed_out_goes_on_whichever_line_of_what_learns_it_fails(provider):
    meter = tokenmeter.make_meter(store="memory:", budgets=[tokenmeter.Budget(limit_usd=10**6)])
    plain = openai.OpenAI(api_key=lambda: "sk-test-0123456789abcdef", base_url=provider.openai_url, max_retries=0)
    if not hasattr(plain, "_refresh_api_key"):
        pytest.skip("this SDK version asks for no key")
    client = tokenmeter.wrap(plain, meter)

    def call():
        nonlocal said
        said = client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hi"}])

    number, made, said, within = 1, 1, None, tuple(f"{ROOT}/capture/{one}.py" for one in ("options", "calls"))
    others = {name for name in dir(InFlight) if name not in {"learn_key", "output_cap"}} | {
        "prepared",
        "capped",
        "refuses_usage",
    }
    while place := interrupted_at(number, call, MemoryError, within=within, without=others):
        assert said is not None, f"the caller gets no answer: {place}"
        number, made, said = number + 3, made + 1, None
    assert number > 8
    entries = list(meter.store.entries())
    assert {entry.api_key for entry in entries} == {entries[0].api_key}
    assert entries[0].api_key is not None
    assert len(entries) == made
    meter.close()


@pytest.mark.filterwarnings("ignore:.*experimental")
@pytest.mark.parametrize("owner_and_name", [(Exchange, "saw"), (InFlight, "_take")], ids=["reading", "holding"])
@pytest.mark.parametrize("way", [TURN, played])
def test_a_session_whose_part_fails_once_is_billed_once(
    way, owner_and_name, provider, priced, loop, tmp_path, monkeypatch
):
    meter = Meter(
        store=open_store(f"sqlite:///{tmp_path}/ledger.db"),
        pricer=priced.pricer,
        budgets=[tokenmeter.Budget(limit_usd=10**6, unbounded="expected")],
    )
    owner, name = owner_and_name
    plain, failed = getattr(owner, name), []

    def fail_once(self, *args):
        if not failed:
            failed.append(name)
            raise MemoryError
        return plain(self, *args)

    monkeypatch.setattr(owner, name, fail_once)
    way(provider, meter, loop, monkeypatch)()
    meter.flush()
    assert failed == [name]
    entry, *others = meter.store.entries()
    assert not others
    assert "usage_unknown" not in entry.flags
    assert not meter.store.expired(meter.store.now() + timedelta(days=1)), "a hold stays"
    meter.close()
