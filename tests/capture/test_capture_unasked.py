"""What a session bills with nobody asking for it by an event needs leave as well: sound that a voice session hears."""

from __future__ import annotations

import base64
import json
import threading

import openai
import pytest

import tokenmeter
from tokenmeter.testing import FakeProvider

server = pytest.importorskip("websockets.sync.server")

SOUND = base64.b64encode(bytes(48_000)).decode()
USAGE = {
    "total_tokens": 3_000,
    "input_tokens": 1_000,
    "output_tokens": 2_000,
    "input_token_details": {"text_tokens": 0, "audio_tokens": 1_000, "cached_tokens": 0},
    "output_token_details": {"text_tokens": 0, "audio_tokens": 2_000},
}  # 16 cents of gpt-realtime
HEARD = {"type": "tokens", "total_tokens": 15, "input_tokens": 10, "output_tokens": 5}
BY_ITSELF = {"audio": {"input": {"turn_detection": {"type": "server_vad", "create_response": True}}}}
WHEN_ASKED = {"audio": {"input": {"turn_detection": None}}}
SILENT = {"audio": {"input": {"turn_detection": {"type": "server_vad", "create_response": False}}}}
BOTH_CLIENTS = pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])


class Voice:
    """A host whose sessions answer each piece of sound, as long as they are told to."""

    def __init__(self, session):
        self.session = {"id": "sess_1", "type": "realtime", "model": "gpt-realtime", **session}
        self.received = []
        self.finishes = True
        self.refuses = None
        self.named = "event_id"
        self._server = server.serve(self._converse, "127.0.0.1", 0)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.socket.getsockname()[1]}/v1"

    def _converse(self, socket):
        def tell(kind, **fields):
            socket.send(json.dumps({"type": kind, "event_id": "event_1", **fields}))

        tell("session.created", session=self.session)
        for text in socket:
            event = json.loads(text)
            self.received.append(event["type"])
            turns = self.session.get("audio", {}).get("input", {}).get("turn_detection", {})
            hears = event["type"] == "input_audio_buffer.append"
            if hears and self.session["type"] == "transcription":
                kind = "conversation.item.input_audio_transcription.completed"
                tell(kind, item_id=f"item_{len(self.received)}", content_index=0, transcript="Hi.", usage=HEARD)
            elif self.refuses:  # the second; then the first is done
                if len(self.received) > 1:
                    error = {"type": "invalid_request_error", "message": "No.", **self.refuses}
                    tell("error", error={**error, self.named: event.get("event_id")})
                    answer = {"id": "resp_1", "object": "realtime.response", "output": []}
                    tell("response.done", response={**answer, "status": "completed", "usage": USAGE})
            elif event["type"] == "response.create" or (hears and turns and turns["create_response"]):
                answer = {"id": f"resp_{len(self.received)}", "object": "realtime.response", "output": []}
                tell("response.created", response={**answer, "status": "in_progress"})
                if self.finishes:
                    tell("response.done", response={**answer, "status": "completed", "usage": USAGE})

    def stop(self):
        self._server.shutdown()


@pytest.fixture
def voice():
    """Makes a host; it is stopped at the end."""
    made = []

    def make(session):
        made.append(Voice(session))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture
def meter_of():
    """Makes a meter of budgets; it is closed at the end."""
    made = []

    def make(*budgets, **settings):
        made.append(tokenmeter.make_meter(store="memory:", config={}, budgets=budgets, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def _client(name, url, meter):
    client = getattr(openai, name)(api_key="sk-test-1234567890", base_url=url)
    if not hasattr(client, "realtime"):
        pytest.skip("this SDK version has no such connection")
    return tokenmeter.wrap(client, meter)


async def _until(connection, kind, do):
    while (await do(connection.recv())).type != kind:
        pass


def _standing(meter):
    (balance,) = meter.remaining()
    return balance.spent, balance.reserved


@BOTH_CLIENTS
@pytest.mark.parametrize("path", ["realtime", "realtime.translations", "live"])
@pytest.mark.parametrize(
    "settings",
    [
        {"budgets": [{"limit_usd": 5}]},  # nobody knows beforehand what a session comes to
        {"budgets": [{"limit_requests": 0}]},
        {"budgets": [{"limit_in_flight": 0}]},
        {"require": ["member"], "budgets": []},
    ],
    ids=["dollars", "requests", "in flight", "required"],
)
async def test_a_session_that_may_not_be_billed_is_not_connected(name, path, settings, meter_of, do):
    settings = dict(settings)
    with FakeProvider(realtime=True) as provider:
        client = _client(name, provider.openai_url, meter_of(*settings.pop("budgets"), **settings))
        for part in path.split("."):
            client = getattr(client, part, None)
        if client is None:
            pytest.skip("this SDK version has no such connection")
        model = {"realtime": {"model": "gpt-realtime"}, "realtime.translations": {"model": "gpt-realtime-translate"}}
        with pytest.raises((tokenmeter.BudgetExceededError, tokenmeter.AttributionRequiredError)):
            async with do.inside(client.connect(**model.get(path, {}))):
                pass
        assert not provider.requests


async def _speak(sound, kind, connection, do):
    """How often sound was sent until a budget stopped it."""
    for sent in range(20):
        try:
            await do(sound.append(audio=SOUND))
        except tokenmeter.BudgetExceededError:
            return sent
        await _until(connection, kind, do)
    return 20


@BOTH_CLIENTS
async def test_sound_that_a_session_would_answer_is_stopped_once_dollars_are_used_up(name, voice, meter_of, do):
    host, meter = voice(BY_ITSELF), meter_of({"limit_usd": 3, "unbounded": "expected"})
    client = _client(name, host.url, meter)
    async with do.inside(client.realtime.connect(model="gpt-realtime")) as connection:
        sent = await _speak(connection.input_audio_buffer, "response.done", connection, do)
    used, held = _standing(meter)
    assert 0 < sent == len(host.received) < 20
    assert (len(list(meter.entries())), held) == (sent, 0)
    assert used > 0


@BOTH_CLIENTS
async def test_each_answer_that_nobody_asked_for_is_held_for_and_its_hold_ends_with_it(name, voice, meter_of, do):
    host, meter = voice(BY_ITSELF), meter_of({"limit_requests": 2})
    client = _client(name, host.url, meter)
    async with do.inside(client.realtime.connect(model="gpt-realtime")) as connection:
        assert _standing(meter) == (0, 1)
        for answers in (1, 2):
            await do(connection.input_audio_buffer.append(audio=SOUND))
            await _until(connection, "response.done", do)
            assert _standing(meter) == (answers, 0)
        with pytest.raises(tokenmeter.BudgetExceededError):
            await do(connection.input_audio_buffer.append(audio=SOUND))
    assert host.received == ["input_audio_buffer.append"] * 2
    assert _standing(meter) == (2, 0)
    assert [(entry.status, entry.usage.total_tokens) for entry in meter.entries()] == [("ok", 3_000)] * 2
    assert meter.faults == 0


@BOTH_CLIENTS
@pytest.mark.parametrize("session", [WHEN_ASKED, SILENT], ids=["no turn detection", "no answer by itself"])
async def test_sound_that_is_answered_when_asked_only_needs_no_leave(name, session, voice, meter_of, do):
    host, meter = voice(session), meter_of({"limit_requests": 1})
    client = _client(name, host.url, meter)
    async with do.inside(client.realtime.connect(model="gpt-realtime")) as connection:
        await _until(connection, "session.created", do)
        assert _standing(meter) == (0, 0)
        await do(connection.input_audio_buffer.append(audio=SOUND))
        await do(connection.response.create())
        await _until(connection, "response.done", do)
        await do(connection.input_audio_buffer.append(audio=SOUND))
        with pytest.raises(tokenmeter.BudgetExceededError):
            await do(connection.response.create())
    assert host.received.count("input_audio_buffer.append") == 2
    assert _standing(meter) == (1, 0)


async def test_what_a_transcription_hears_is_held_for_each_time(voice, meter_of, do):
    host, meter = voice({"type": "transcription"}), meter_of({"limit_requests": 2})
    client = _client("OpenAI", host.url, meter)
    with client.realtime.connect(model="gpt-4o-mini-transcribe") as connection:
        for _ in range(2):
            connection.input_audio_buffer.append(audio=SOUND)
            await _until(connection, "conversation.item.input_audio_transcription.completed", do)
        with pytest.raises(tokenmeter.BudgetExceededError):
            connection.input_audio_buffer.append(audio=SOUND)
    assert len(host.received) == 2
    assert _standing(meter) == (2, 0)


@BOTH_CLIENTS
async def test_an_answer_that_nobody_asked_for_takes_the_room_of_the_session_and_one_asked_for_too(
    name, voice, meter_of, do
):
    host, meter = voice(BY_ITSELF), meter_of({"limit_in_flight": 1})
    client = _client(name, host.url, meter)
    async with do.inside(client.realtime.connect(model="gpt-realtime")) as connection:
        await do(connection.response.create())  # while sound is sent
        await do(connection.input_audio_buffer.append(audio=SOUND))
        for _ in range(2):
            await _until(connection, "response.done", do)
    assert len(list(meter.entries())) == 2
    assert meter.remaining()[0].reserved == 0


def test_a_session_that_nobody_speaks_in_costs_nothing(voice, meter_of):
    meter = meter_of({"limit_requests": 1})
    with _client("OpenAI", voice(BY_ITSELF).url, meter).realtime.connect(model="gpt-realtime") as connection:
        connection.recv()
        assert _standing(meter) == (0, 1)
    assert (_standing(meter), list(meter.entries())) == ((0, 0), [])


async def test_an_answer_that_nobody_asked_for_and_that_is_cut_off_is_recorded_as_unknown(voice, meter_of, do):
    host, meter = voice(BY_ITSELF), meter_of({"limit_requests": 5})
    host.finishes = False
    with _client("OpenAI", host.url, meter).realtime.connect(model="gpt-realtime") as connection:
        connection.input_audio_buffer.append(audio=SOUND)
        await _until(connection, "response.created", do)
    (entry,) = meter.entries()
    assert (entry.status, entry.billed_cost, entry.request_model) == ("aborted", None, "gpt-realtime")
    assert "billing_unknown" in entry.flags
    assert _standing(meter) == (1, 0)


async def test_a_voice_session_keeps_to_the_limit_of_its_run(voice, meter_of, do):
    host, meter = voice(BY_ITSELF), meter_of()
    client = _client("OpenAI", host.url, meter)
    with (
        tokenmeter.budget(limit_requests=1) as run,
        client.realtime.connect(model="gpt-realtime") as connection,
    ):
        connection.input_audio_buffer.append(audio=SOUND)
        await _until(connection, "response.done", do)
        with pytest.raises(tokenmeter.BudgetExceededError):
            connection.input_audio_buffer.append(audio=SOUND)
    assert run.requests == 1


@BOTH_CLIENTS
@pytest.mark.parametrize(
    "error",
    [
        {"code": "conversation_already_has_active_response", "param": None},
        {"code": "invalid_value", "param": "response.max_output_tokens"},
    ],
    ids=["one is under way", "a wrong field"],
)
@pytest.mark.parametrize(("event_id", "named"), [(None, "event_id"), ("mine", "event_id"), ("mine", "client_event_id")])
async def test_an_answer_that_is_refused_is_no_longer_held(name, error, event_id, named, voice, meter_of, do):
    host, meter = voice(WHEN_ASKED), meter_of({"limit_in_flight": 2})
    host.refuses, host.named = error, named
    client = _client(name, host.url, meter)
    async with do.inside(client.realtime.connect(model="gpt-realtime")) as connection:
        await do(connection.response.create())
        await do(connection.response.create(**({"event_id": event_id} if event_id else {})))
        await _until(connection, "error", do)
        assert meter.remaining()[0].reserved == 1
        await _until(connection, "response.done", do)
        assert meter.remaining()[0].reserved == 0
    assert [(entry.status, entry.error_type) for entry in meter.entries()] == [("ok", None), ("error", error["code"])]


@BOTH_CLIENTS
async def test_an_error_about_another_event_refuses_no_answer(name, voice, meter_of, do):
    host, meter = voice(WHEN_ASKED), meter_of({"limit_in_flight": 2})
    host.refuses = {"code": "invalid_value", "param": "session.audio"}
    client = _client(name, host.url, meter)
    async with do.inside(client.realtime.connect(model="gpt-realtime")) as connection:
        await do(connection.response.create())
        await do(connection.response.create())
        await _until(connection, "error", do)
        assert meter.remaining()[0].reserved == 2


def test_who_looks_in_on_a_session_needs_leave_as_well(voice, meter_of):
    host, meter = voice(BY_ITSELF), meter_of({"limit_requests": 0})
    client = _client("OpenAI", host.url, meter)
    with pytest.raises(tokenmeter.BudgetExceededError), client.realtime.connect(call_id="rtc_1"):
        pass


# -- sessions with a running total


@pytest.fixture
def provider():
    with FakeProvider(realtime=True) as running:
        yield running


def _live(name, provider, meter):
    client = _client(name, provider.openai_url, meter)
    if not hasattr(client, "live"):
        pytest.skip("this SDK version has no such connection")
    return client


@BOTH_CLIENTS
async def test_a_live_session_is_one_request_however_long_it_goes_on(name, provider, meter_of, do, monkeypatch):
    monkeypatch.setattr("tokenmeter.capture.conversation._EVERY", 0)
    meter = meter_of({"limit_requests": 1})
    client = _live(name, provider, meter)
    async with do.inside(client.live.connect()) as connection:
        await do(connection.session.start(session={"model": "gpt-live-1"}))
        for _ in range(3):
            await do(connection.session.input_audio.append(audio=SOUND))
            await _until(connection, "session.usage.updated", do)
    assert _standing(meter) == (1, 0)
    assert sum(entry.usage["seconds_audio"] for entry in meter.entries()) == 3
    with pytest.raises(tokenmeter.BudgetExceededError):
        async with do.inside(client.live.connect()):
            pass
    assert meter.faults == 0


@BOTH_CLIENTS
@pytest.mark.parametrize("path", ["live", "translation"])
async def test_a_session_is_stopped_once_its_total_has_used_up_a_cap(name, path, provider, meter_of, do, monkeypatch):
    monkeypatch.setattr("tokenmeter.capture.conversation._EVERY", 0)
    meter = meter_of({"limit_usd": "0.006", "unbounded": "expected"})
    client = _live(name, provider, meter)
    live = path == "live"
    opening = client.live.connect() if live else client.realtime.translations.connect("gpt-realtime-translate")
    async with do.inside(opening) as connection:
        if live:
            await do(connection.session.start(session={"model": "gpt-live-1"}))
        sound = connection.session.input_audio if live else connection.session.input_audio_buffer
        kind = "session.usage.updated" if live else "session.output_transcript.delta"
        sent = await _speak(sound, kind, connection, do)
    used, held = _standing(meter)
    assert 0 < sent < 20
    assert (sum(entry.usage["seconds_audio"] for entry in meter.entries()), held) == (sent, 0)
    assert used > 0


def test_a_cap_on_its_model_stops_a_live_session_before_it_is_started(provider, meter_of):
    meter = meter_of({"limit_requests": 0, "model": "gpt-live-1"})
    with _live("OpenAI", provider, meter).live.connect() as connection:
        with pytest.raises(tokenmeter.BudgetExceededError):
            connection.session.start(session={"model": "gpt-live-1"})
        connection.session.start(session={"model": "gpt-live-2"})
    assert list(meter.entries()) == []
