"""WebSocket connections: every answer on them is recorded, with the usage the provider billed."""

from __future__ import annotations

import base64
import inspect
import json
from decimal import Decimal
from typing import ClassVar

import pytest

import tokenmeter
from tokenmeter.meter import Meter
from tokenmeter.money import multiply, quantize, ratio
from tokenmeter.testing import FakeProvider

pytest.importorskip("websockets")

SAY = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say hello."}]}


@pytest.fixture
def provider():
    with FakeProvider(realtime=True) as running:
        yield running


def _needs(client, path):
    for part in path.split("."):
        client = getattr(client, part, None)
    if client is None:
        pytest.skip("this SDK version has no such connection")


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
@pytest.mark.parametrize("metered", [True, False], ids=["our class", "wrapped"])
async def test_every_answer_of_a_realtime_session_is_recorded(name, metered, clients, books, provider, meter, do):
    client = clients.make(name, metered=metered)
    _needs(client, "realtime.connect")
    tokenmeter.wrap(client, meter)
    async with do.inside(client.realtime.connect(model="gpt-realtime")) as connection:
        for _ in range(2):
            await do(connection.conversation.item.create(item=SAY))
            await do(connection.response.create())
            async for event in do.each(connection):
                if event.type == "response.done":
                    break
    assert [(entry.status, entry.model) for entry in books.all()] == [("ok", "gpt-realtime")] * 2
    assert books.quantities() == dict(provider.total.quantities)
    assert meter.faults == 0


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
async def test_responses_over_a_connection_are_recorded(name, clients, books, provider, do):
    client = clients.make(name)
    _needs(client, "responses.connect")
    async with do.inside(client.responses.connect()) as connection:
        await do(connection.response.create(model="gpt-5-mini", input="Say hello."))
        while (await do(connection.recv())).type != "response.completed":
            pass
    assert books.one().model == "gpt-5-mini"
    assert books.quantities() == dict(provider.total.quantities)


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
@pytest.mark.parametrize(
    "usage", [None, {}, {"input_tokens": 0, "output_tokens": 0}, {"input_tokens": -5, "output_tokens": 9}]
)
async def test_a_response_over_a_connection_that_counts_badly_is_estimated_as_over_http(
    name, usage, clients, books, provider, do
):
    client = clients.make(name)
    _needs(client, "responses.connect")
    provider.answer("The sea is large.", usage=usage, omit_usage=usage is None, times=2)
    asked = {"model": "gpt-5-mini", "input": "Tell me of the sea. " * 20}
    await do(client.responses.create(**asked))
    async with do.inside(client.responses.connect()) as connection:
        await do(connection.response.create(**asked))
        while (await do(connection.recv())).type != "response.completed":
            pass
    plain, heard = books.all()
    assert "estimated" in plain.flags
    assert (heard.usage, heard.flags, heard.billed_cost) == (plain.usage, plain.flags, plain.billed_cost)


def test_a_sessions_transcription_is_recorded_at_its_own_model(clients, books, provider):
    client = clients.openai()
    _needs(client, "realtime.connect")
    sound = base64.b64encode(bytes(48_000)).decode()
    with client.realtime.connect(model="gpt-realtime") as connection:
        heard = {"input": {"transcription": {"model": "gpt-4o-mini-transcribe"}}}
        connection.session.update(session={"type": "realtime", "audio": heard})
        connection.input_audio_buffer.append(audio=sound)
        connection.input_audio_buffer.commit()
        for event in connection:
            if event.type == "conversation.item.input_audio_transcription.completed":
                break
    assert books.one().model == "gpt-4o-mini-transcribe"
    assert books.quantities() == dict(provider.total.quantities)


def test_an_answer_that_was_asked_for_and_never_read_is_recorded_as_unknown(clients, books):
    client = clients.openai()
    _needs(client, "realtime.connect")
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.response.create()
        while connection.recv().type != "response.created":
            pass
    entry = books.one()
    assert (entry.status, entry.billed_cost) == ("aborted", None)
    assert "billing_unknown" in entry.flags


def test_a_budget_stops_the_next_answer(clients, provider):
    client = clients.openai()
    _needs(client, "responses.connect")
    stopping = tokenmeter.make_meter(store="memory:", config={}, budgets=[{"limit_usd": "0.000001"}])
    tokenmeter.wrap(client, stopping)
    with (
        client.responses.connect() as connection,
        pytest.raises(tokenmeter.BudgetExceededError),
    ):
        connection.response.create(model="gpt-5-mini", input="Say hello.", max_output_tokens=100)
    assert not provider.total
    stopping.close()


@pytest.mark.parametrize("way", ["send", "send_raw"])
def test_an_answer_whose_request_cannot_be_read_does_not_pass_a_cap(way, clients, provider, monkeypatch):
    client = clients.openai()
    _needs(client, "responses.connect")
    stopping = tokenmeter.make_meter(store="memory:", config={}, budgets=[{"limit_usd": 100}])
    tokenmeter.wrap(client, stopping)
    event = {"type": "response.create", "model": "gpt-5-mini", "input": "Say hello.", "max_output_tokens": 100}
    with client.responses.connect() as connection:
        if not hasattr(connection, way):
            pytest.skip(f"this SDK's connections have no {way}")
        monkeypatch.setattr("tokenmeter.providers.openai.requests.request_facts", _fails)
        with pytest.raises(tokenmeter.BudgetExceededError):
            getattr(connection, way)(event if way == "send" else json.dumps(event))
    assert not provider.total
    stopping.close()


def _fails(*_, **__):
    raise KeyError("a request in no known shape")


def _queueing(client, path):
    """A connection's manager, where this SDK has one that takes events before there is a connection."""
    _needs(client, path)
    manager = getattr(client, path.partition(".")[0]).connect(**({"model": "gpt-realtime"} if "real" in path else {}))
    if not hasattr(manager, "send"):
        pytest.skip("this SDK's managers take no events")
    return manager


_ASKED = {"type": "response.create", "response": {"max_output_tokens": 100, "output_modalities": ["text"]}}


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
async def test_a_budget_stops_what_waits_for_a_connection_before_there_is_one(name, clients, provider, do):
    client = clients.make(name)
    stopping = tokenmeter.make_meter(store="memory:", config={}, budgets=[{"limit_usd": "0.000001"}])
    tokenmeter.wrap(client, stopping)
    manager = _queueing(client, "realtime.connect")
    manager.send(_ASKED)
    with pytest.raises(tokenmeter.BudgetExceededError):
        async with do.inside(manager):
            pass
    assert not provider.requests
    stopping.close()


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
async def test_what_waited_for_a_connection_is_held_and_recorded(name, clients, provider, do):
    client = clients.make(name)
    meter = tokenmeter.make_meter(store="memory:", config={}, budgets=[{"limit_requests": 1}])
    tokenmeter.wrap(client, meter)
    manager = _queueing(client, "realtime.connect")
    manager.send(_ASKED)
    async with do.inside(manager) as connection:
        with pytest.raises(tokenmeter.BudgetExceededError):
            await do(connection.send(_ASKED))
        while (await do(connection.recv())).type != "response.done":
            pass
    (balance,) = meter.remaining()
    assert (balance.spent, balance.reserved) == (1, 0)
    meter.close()


def test_what_waited_for_a_connection_that_failed_costs_nothing(clients, provider):
    client = clients.openai()
    meter = tokenmeter.make_meter(store="memory:", config={}, budgets=[{"limit_requests": 1}])
    tokenmeter.wrap(client, meter)
    manager = _queueing(client, "realtime.connect")
    manager.send(_ASKED)
    provider.stop()
    with pytest.raises(OSError), manager:  # noqa: PT011 - the socket's own
        pass
    (balance,) = meter.remaining()
    assert (balance.spent, balance.reserved, list(meter.entries())) == (0, 0, [])
    meter.close()


def test_a_budget_stops_what_is_sent_as_text(clients, provider):
    client = clients.openai()
    _needs(client, "responses.connect")
    stopping = tokenmeter.make_meter(store="memory:", config={}, budgets=[{"limit_usd": "0.000001"}])
    tokenmeter.wrap(client, stopping)
    event = {"type": "response.create", "model": "gpt-5-mini", "input": "Say hello.", "max_output_tokens": 100}
    with client.responses.connect() as connection:
        if not hasattr(connection, "send_raw"):
            pytest.skip("this SDK's connections have no send_raw")
        with pytest.raises(tokenmeter.BudgetExceededError):
            connection.send_raw(json.dumps(event))
    assert not provider.total
    stopping.close()


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
@pytest.mark.parametrize("way", ["send", "send_raw", "create"])
async def test_the_output_cap_that_a_hold_goes_by_is_sent_over_a_connection(name, way, clients, provider, do):
    client = clients.make(name)
    _needs(client, "responses.connect")
    capping = tokenmeter.make_meter(
        store="memory:", config={}, budgets=[{"limit_usd": "0.01", "inject_max_tokens": True}]
    )
    tokenmeter.wrap(client, capping)
    event = {"type": "response.create", "model": "gpt-5", "input": "Say hello."}
    async with do.inside(client.responses.connect()) as connection:
        if not hasattr(connection, way if way != "create" else "send"):
            pytest.skip(f"this SDK's connections have no {way}")
        if way == "create":
            await do(connection.response.create(model="gpt-5", input="Say hello."))
        else:
            await do(getattr(connection, way)(event if way == "send" else json.dumps(event)))
        answer = await _until(connection, "response.completed", do)
    assert 16 <= answer.response.max_output_tokens < 1_000
    assert "max_output_tokens" not in event, "the caller's own event stays as it is"
    (entry,) = capping.entries()
    assert entry.status == "ok"
    assert capping.faults == 0
    capping.close()


def test_what_waits_for_a_connection_is_held_as_it_is_written(clients, provider):
    """It is in the SDK's hands already: no output cap can be put into it."""
    client = clients.openai()
    meter = tokenmeter.make_meter(
        store="memory:", config={}, budgets=[{"limit_usd": "0.01", "inject_max_tokens": True}]
    )
    tokenmeter.wrap(client, meter)
    manager = _queueing(client, "responses.connect")
    manager.send({"type": "response.create", "model": "gpt-5", "input": "Say hello."})
    with pytest.raises(tokenmeter.BudgetExceededError), manager:
        pass
    assert not provider.requests
    meter.close()


@pytest.mark.parametrize("more", [{"conversation": "conv_1"}, {"prompt": {"id": "pmpt_1"}}, {"background": True}])
def test_what_lies_elsewhere_counts_over_a_connection_as_over_http(more, clients, provider):
    client = clients.openai()
    _needs(client, "responses.connect")
    stopping = tokenmeter.make_meter(store="memory:", config={}, budgets=[{"limit_usd": "0.01"}])
    tokenmeter.wrap(client, stopping)
    asked = {"model": "gpt-5", "input": "Say hello.", "max_output_tokens": 16, **more}
    with pytest.raises(tokenmeter.BudgetExceededError):
        client.responses.create(**asked)
    with client.responses.connect() as connection, pytest.raises(tokenmeter.BudgetExceededError):
        connection.send({"type": "response.create", **asked})
    stopping.close()


def test_connections_of_a_plain_client_are_left_alone(clients, books):
    client = clients.openai(metered=False)
    _needs(client, "realtime.connect")
    with client.realtime.connect(model="gpt-realtime") as connection:
        assert "parse_event" not in vars(connection)
    assert books.all() == []


SOUND = base64.b64encode(bytes(96_000)).decode()  # two seconds


async def _until(connection, kind, do):
    while True:
        event = await do(connection.recv())
        if event.type == kind:
            return event


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
async def test_a_live_session_is_recorded_by_its_last_total(name, clients, books, provider, do):
    client = clients.make(name)
    _needs(client, "live.connect")
    async with do.inside(client.live.connect()) as connection:
        await do(connection.session.start(session={"model": "gpt-live-1"}))
        for _ in range(3):
            await do(connection.session.input_audio.append(audio=SOUND))
            await _until(connection, "session.usage.updated", do)
        await do(connection.session.close())
        await _until(connection, "session.closed", do)
    entry = books.one()
    assert (entry.status, entry.model, entry.usage["seconds_audio"]) == ("ok", "gpt-live-1", 6)
    assert books.quantities() == dict(provider.total.quantities)
    assert books.meter.faults == 0


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
async def test_a_live_session_that_is_cut_off_is_recorded_as_far_as_it_was_stated(name, clients, books, do):
    client = clients.make(name)
    _needs(client, "live.connect")
    async with do.inside(client.live.connect()) as connection:
        await do(connection.session.start(session={"model": "gpt-live-1"}))
        await do(connection.session.input_audio.append(audio=SOUND))
        await _until(connection, "session.usage.updated", do)
    entry = books.one()
    assert (entry.status, entry.usage["seconds_audio"]) == ("aborted", 2)
    assert "estimated" in entry.flags


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
@pytest.mark.parametrize("same_program", [True, False], ids=["same program", "another program"])
async def test_who_looks_in_on_a_live_session_does_not_bill_it_again(
    name, same_program, clients, books, meter, priced, do
):
    client = clients.make(name)
    _needs(client, "live.sideband.connect")
    other = Meter(store=meter.store, pricer=priced.pricer)  # knows of nothing but the ledger
    onlooker = client if same_program else tokenmeter.wrap(clients.make(name, metered=False), other)
    async with do.inside(client.live.connect()) as connection:
        await do(connection.session.start(session={"model": "gpt-live-1"}))
        identity = (await _until(connection, "session.started", do)).session.id
        await do(connection.session.input_audio.append(audio=SOUND))
        await _until(connection, "session.usage.updated", do)
        async with do.inside(onlooker.live.sideband.connect(session_id=identity)) as sideband:
            await do(sideband.session.update(session={}))
            await _until(sideband, "session.usage.updated", do)
        await do(connection.session.input_audio.append(audio=SOUND))
        await do(connection.session.close())
        await _until(connection, "session.closed", do)
    assert books.quantities() == {"seconds_audio": 4}
    assert meter.faults == other.faults == 0


def test_a_long_live_session_is_recorded_as_it_grows(clients, books, monkeypatch):
    """So that a crash after hours loses a minute."""
    monkeypatch.setattr("tokenmeter.capture.conversation._EVERY", 0)
    client = clients.openai()
    _needs(client, "live.connect")
    with client.live.connect() as connection:
        connection.session.start(session={"model": "gpt-live-1"})
        for total in (2, 4):
            connection.session.input_audio.append(audio=SOUND)
            while connection.recv().type != "session.usage.updated":
                pass
            assert books.quantities() == {"seconds_audio": total}
    assert len(books.all()) == 2
    assert len({entry.dedup_key for entry in books.all()}) == 2
    assert sum(entry.requests for entry in books.all()) == 1, "it is one session"


@pytest.mark.parametrize("where", ["response.event", "decision.event"])
def test_what_a_live_session_delegates_is_recorded_beside_it(where, clients, books):
    from tokenmeter.capture.conversation import Conversation

    client = clients.openai()
    usage = {"input_tokens": 12, "output_tokens": 3, "total_tokens": 15}
    answer = {"id": "resp_1", "object": "response", "model": "gpt-5-mini", "status": "completed", "usage": usage}
    inner = {"type": "response.completed", "response": answer}
    if where == "decision.event":
        inner = {"type": "decision.completed", "decision": {**answer, "object": "decision"}}
    talk = _conversation(client, books.meter, "/live")
    assert isinstance(talk, Conversation)
    talk.hears(json.dumps({"type": where, "event": {"type": "response.output_text.delta", "delta": "hi"}}))
    for _ in range(2):  # as seen by the session's own connection, and by one that looks in
        talk.hears(json.dumps({"type": where, "event_id": "e", "event": inner}))
    recorded = [entry for entry in books.all() if entry.usage]
    assert [(entry.model, dict(entry.usage.quantities)) for entry in recorded] == [
        ("gpt-5-mini", {"input": 12, "output": 3})
    ]


def _conversation(client, meter, path, **more):
    from tokenmeter.capture.conversation import Conversation
    from tokenmeter.capture.description import describe, identify
    from tokenmeter.capture.sdk import binding_of

    binding = binding_of(client)
    dialect = binding.sdk.dialect()
    call = describe(binding, dialect.endpoint("GET", path), identify(client, binding, meter, {}), {}, streamed=True)
    return Conversation(meter, dialect, dialect.socket_events, call, waits=True, **more)


def test_the_cap_that_is_put_in_stands_where_the_rest_of_what_is_asked_for_does(clients):
    budget = {"limit_usd": "0.01", "inject_max_tokens": True}
    capping = tokenmeter.make_meter(store="memory:", config={}, budgets=[budget])
    asked = {"model": "gpt-5", "input": "Say hello."}
    for event in ({"type": "response.create", **asked}, {"type": "response.create", "response": asked}):
        talk = _conversation(clients.openai(), capping, "/responses")
        sent = talk.asks(event)
        body, given = (each.get("response", each) for each in (sent, event))
        assert (sent.keys() - {"max_output_tokens"}, body.keys() - given.keys()) == (set(event), {"max_output_tokens"})
        talk.take_back()
    capping.close()


@pytest.mark.parametrize(
    ("session", "asked"),
    [
        ({}, {"max_output_tokens": 100}),
        ({}, {"max_response_output_tokens": 100}),
        ({"max_output_tokens": 100}, {}),
        ({"max_response_output_tokens": 100}, {}),
        ({"max_response_output_tokens": "inf"}, {"max_output_tokens": 100}),
    ],
    ids=str,
)
def test_a_realtime_answer_is_held_by_its_limit_however_that_is_spelled(session, asked, clients):
    meter = tokenmeter.make_meter(
        store="memory:", config={}, budgets=[{"limit_tokens": 10**9, "unbounded": "expected"}]
    )
    held = []
    for limits in ((session, asked), ({}, {"max_output_tokens": 100}), ({}, {})):
        talk = _conversation(clients.openai(), meter, "/realtime")
        talk.hears(json.dumps({"type": "session.created", "session": {"model": "gpt-realtime", **limits[0]}}))
        talk.asks({"type": "response.create", "response": limits[1]})
        held.append(meter.remaining()[0].reserved)
        talk.take_back()
    assert held[0] == held[1] < held[2]
    meter.close()


@pytest.mark.parametrize("deep", ["[" * 100_000, b"[" * 100_000])
def test_a_text_that_is_nested_too_deep_is_sent_and_has_no_bound(deep, clients):
    """What cannot be read may ask for anything: it goes as it does without us, but not past a hard cap."""
    from tokenmeter.capture.sockets import _sending

    class Connection:
        sent: ClassVar = []

        def send_raw(self, data):
            self.sent.append(data)

    client = clients.openai()
    free, stopping = (
        tokenmeter.make_meter(store="memory:", config={}, budgets=each) for each in ([], [{"limit_usd": 9}])
    )
    _sending(Connection.send_raw, _conversation(client, free, "/realtime"))(Connection(), deep)
    with pytest.raises(tokenmeter.BudgetExceededError):
        _sending(Connection.send_raw, _conversation(client, stopping, "/realtime"))(Connection(), deep)
    assert Connection.sent == [deep]
    assert (free.faults, stopping.faults) == (0, 0)
    for meter in (free, stopping):
        meter.close()


@pytest.mark.parametrize("size", [9_600, 16_000], ids=["a fifth of a second", "a third"])
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "cut off"])
@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
async def test_a_translation_is_recorded_by_the_sound_it_was_given(name, closed, size, clients, books, provider, do):
    """Nothing on its connection says what it used."""
    client = clients.make(name)
    _needs(client, "realtime.translations")
    sound = base64.b64encode(bytes(size)).decode()
    async with do.inside(client.realtime.translations.connect("gpt-realtime-translate")) as connection:
        for _ in range(5):
            await do(connection.session.input_audio_buffer.append(audio=sound))
            await _until(connection, "session.output_transcript.delta", do)
        if closed:
            await do(connection.session.close())
            await _until(connection, "session.closed", do)
    entry = books.one()
    assert (entry.status, entry.model) == ("ok" if closed else "aborted", "gpt-realtime-translate")
    assert entry.usage["seconds_audio"] == ratio(5 * size, 48_000)
    assert entry.list_cost == quantize(ratio(multiply(entry.usage["seconds_audio"], Decimal("2.04")), 3_600))
    assert "estimated" in entry.flags
    assert books.meter.faults == 0
    if closed:
        assert books.quantities() == dict(provider.total.quantities)


def test_a_long_translation_is_recorded_as_it_goes_on(clients, books, monkeypatch):
    monkeypatch.setattr("tokenmeter.capture.conversation._EVERY", 0)
    client = clients.openai()
    _needs(client, "realtime.translations")
    sound = base64.b64encode(bytes(48_000)).decode()
    with client.realtime.translations.connect("gpt-realtime-translate") as connection:
        connection.recv()
        for seconds in range(1, 4):
            connection.session.input_audio_buffer.append(audio=sound)
            assert sum(entry.usage["seconds_audio"] for entry in books.all()) == seconds
        connection.session.close()
        while connection.recv().type != "session.closed":
            pass
    assert sum(entry.usage["seconds_audio"] for entry in books.all()) == 3
    assert {entry.response_id.partition(":")[0] for entry in books.all()} == {books.all()[0].response_id}


def test_a_model_that_is_given_by_its_place_is_the_sessions(clients):
    client = clients.openai()
    _needs(client, "realtime.translations")
    manager = client.realtime.translations.connect("gpt-realtime")
    assert manager._tokenmeter_connecting._talk._call.facts.model == "gpt-realtime"


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
async def test_the_methods_of_a_connection_look_as_the_sdks_do(name, clients, do):
    seen = []
    for metered in (False, True):
        client = clients.make(name, metered=metered)
        _needs(client, "realtime.connect")
        async with do.inside(client.realtime.connect(model="gpt-realtime")) as connection:
            methods = [getattr(connection, way, None) for way in ("send", "send_raw", "parse_event", "recv", "close")]
            seen.append(
                [
                    (inspect.signature(one), one.__qualname__, inspect.iscoroutinefunction(one), type(one))
                    for one in methods
                    if one is not None
                ]
            )
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
async def test_a_method_that_is_put_into_the_class_of_a_connection_is_called(name, clients, do, monkeypatch):
    """As the SDK's own tests do."""
    client, called = clients.make(name), []
    _needs(client, "realtime.connect")
    async with do.inside(client.realtime.connect(model="gpt-realtime")) as connection:
        kind = type(connection)
        for way in ("send", "close"):
            plain = getattr(kind, way)
            monkeypatch.setattr(kind, way, lambda *args, plain=plain, way=way: called.append(way) or plain(*args))
        await do(connection.response.create())
        await do(connection.close())
    assert called[:2] == ["send", "close"]


def test_an_answer_that_is_refused_costs_nothing(clients, books, provider):
    client = clients.openai()
    _needs(client, "responses.connect")
    provider.fail(429, code="rate_limit_exceeded")
    with client.responses.connect() as connection:
        connection.response.create(model="gpt-5-mini", input="Say hello.")
        while connection.recv().type != "error":
            pass
    entry = books.one()
    assert (entry.status, entry.error_type, entry.billed_cost) == ("error", "rate_limit_exceeded", None)
    assert not entry.usage


def test_a_session_that_is_looked_in_on_twice_is_recorded_once(clients, books):
    client = clients.openai()
    _needs(client, "realtime.connect")
    usage = {"input_tokens": 12, "output_tokens": 3, "total_tokens": 15}
    done = json.dumps({"type": "response.done", "response": {"id": "resp_1", "status": "completed", "usage": usage}})
    for _ in range(2):
        _conversation(client, books.meter, "/realtime", attached_to="call_1").hears(done)
    assert dict(books.one().usage.quantities) == {"input": 12, "output": 3}
    for _ in range(2):  # sessions of their own, on a host that names every answer alike
        _conversation(client, books.meter, "/realtime").hears(done)
    assert len(books.all()) == 3
