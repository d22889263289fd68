"""FakeProvider's WebSocket connections, through the SDK's own clients."""

from __future__ import annotations

import base64
import json

import pydantic
import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("websockets")

from openai.types import realtime as realtime_types  # noqa: E402
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from tokenmeter.testing import FakeProvider  # noqa: E402

KEY = "sk-proj-0123456789abcd"


@pytest.fixture
def provider():
    with FakeProvider(realtime=True) as running:
        yield running


@pytest.fixture
def client(provider):
    with openai.OpenAI(base_url=provider.openai_url, api_key=KEY, max_retries=0) as made:
        yield made


def said(text):
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def until(connection, kind):
    events = []
    for event in connection:
        events.append(event)
        if event.type == kind:
            return events
    raise AssertionError(f"the connection ended before {kind}")


def test_a_realtime_session_answers_and_reports_usage(provider, client):
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.session.update(session={"type": "realtime", "instructions": "Be brief"})
        connection.conversation.item.create(item=said("Hello"))
        connection.response.create()
        events = until(connection, "response.done")
    for event in events:
        pydantic.TypeAdapter(realtime_types.RealtimeServerEvent).validate_json(event.model_dump_json(), strict=True)
    done = events[-1].response
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "You said: Hello"
    (truth,) = provider.truth
    assert (truth.endpoint, truth.model, truth.response_id) == ("realtime", "gpt-realtime", done.id)
    assert done.usage.output_tokens == truth.meters.output_tokens == 4
    assert truth.api_key_last4 == "abcd"


def test_each_answer_of_a_session_is_billed(provider, client):
    provider.answer(meters={"input": 10, "output": 5})
    provider.answer(meters={"input": 20, "cache_read": 8, "input_audio": 30, "cache_read_audio": 12, "output_audio": 9})
    with client.realtime.connect(model="gpt-realtime") as connection:
        for _ in range(2):
            connection.response.create()
            usage = until(connection, "response.done")[-1].response.usage
    assert usage.input_tokens == 70
    assert usage.input_token_details.text_tokens == 28
    assert usage.input_token_details.audio_tokens == 42
    assert usage.input_token_details.cached_tokens_details.audio_tokens == 12
    assert provider.total["input"] == 30
    assert len(provider.billed) == 2


def test_transcription_is_billed_at_its_own_model(provider, client):
    audio = base64.b64encode(b"\x00" * 48_000).decode()
    with client.realtime.connect(model="gpt-realtime") as connection:
        transcribe = {"input": {"transcription": {"model": "gpt-4o-transcribe"}}}
        connection.session.update(session={"type": "realtime", "audio": transcribe})
        connection.input_audio_buffer.append(audio=audio)
        connection.input_audio_buffer.commit()
        heard = until(connection, "conversation.item.input_audio_transcription.completed")[-1]
        connection.response.create()
        until(connection, "response.done")
    assert heard.usage.input_tokens == 10
    assert provider.usage()["gpt-4o-transcribe"]["input_audio"] == 10
    assert provider.usage()["gpt-realtime"]["input_audio"] == 10


def test_responses_over_a_connection_are_streams(provider, client):
    with client.responses.connect() as connection:
        connection.response.create(model="gpt-5", input="Hello")
        events = until(connection, "response.completed")
        provider.fail(429, message="Slow down")
        connection.response.create(model="gpt-5", input="Hello")
        refused = until(connection, "error")[-1]
    assert events[0].type == "response.created"
    assert events[-1].response.usage.total_tokens == provider.total.total_tokens
    assert provider.truth[0].endpoint == "responses.connect"
    assert "Slow down" in str(refused)
    assert len(provider.truth) == 1


async def test_the_async_client_connects_too(provider):
    client = openai.AsyncOpenAI(base_url=provider.openai_url, api_key=KEY)
    async with client, client.realtime.connect(model="gpt-realtime") as connection:
        await connection.conversation.item.create(item=said("Hello"))
        await connection.response.create()
        async for event in connection:
            if event.type == "response.done":
                break
    assert len(provider.billed) == 1


@pytest.mark.parametrize(("path", "key", "status"), [("/v1/realtime", None, 401), ("/v1/other", KEY, 404)])
def test_unknown_urls_and_missing_keys_are_refused(provider, path, key, status):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with pytest.raises(InvalidStatus) as caught:
        connect(provider.url.replace("http", "ws") + path, additional_headers=headers)
    assert caught.value.response.status_code == status


def test_an_interaction_that_nobody_made_ends_the_connection_with_a_reason(provider):
    url = provider.url.replace("http", "ws") + "/v1beta/interactions/live"
    with connect(url, additional_headers={"x-goog-api-key": KEY}) as socket:
        socket.send(json.dumps({"event_type": "interaction.connect", "id": "v1_nobody"}))
        with pytest.raises(ConnectionClosedError) as ended:
            socket.recv()
    assert (ended.value.rcvd.code, ended.value.rcvd.reason) == (1008, "No such object: v1_nobody")


def test_large_messages_in_many_frames_arrive_whole(provider):
    url = provider.url.replace("http", "ws") + "/v1/responses"
    with connect(url, additional_headers={"authorization": f"Bearer {KEY}"}) as socket:
        socket.send(['{"type": "response.create", "model": "gpt-5", ', f'"input": "{"x" * 300_000}"', "}"])
        while "response.completed" not in socket.recv(timeout=60):
            pass
    assert provider.total["input"] == 75_000


def test_a_client_may_close_in_the_middle_of_an_answer(provider, client, caplog):
    """The answer is billed, and nothing is raised on the server's thread (which pytest would report)."""
    address = provider.openai_url.replace("http", "ws") + "/responses"
    ask = b'{"type": "response.create", "model": "gpt-5-mini", "input": "Hello"}'
    with connect(address, additional_headers={"authorization": f"Bearer {KEY}"}) as raw:
        # Question and goodbye reach the server in one piece.
        raw.protocol.send_text(ask)
        raw.protocol.send_close(1000)
        raw.socket.sendall(b"".join(raw.protocol.data_to_send()))
        with pytest.raises(ConnectionClosed):
            raw.recv(timeout=60)
    provider.stop()
    assert len(provider.billed) == 1


def test_a_live_session_states_a_running_total_and_is_billed_once(provider, client):
    if not hasattr(client, "live"):
        pytest.skip("this SDK has no Live sessions")
    sound = base64.b64encode(bytes(96_000)).decode()
    with client.live.connect() as connection:
        connection.session.start(session={"model": "gpt-live-1"})
        identity = until(connection, "session.started")[-1].session.id
        for total in (2, 4):
            connection.session.input_audio.append(audio=sound)
            assert until(connection, "session.usage.updated")[-1].usage.seconds == total
        with client.live.sideband.connect(session_id=identity) as sideband:
            sideband.session.update(session={})
            assert until(sideband, "session.usage.updated")[-1].usage.seconds == 4
        connection.session.close()
        assert until(connection, "session.closed")[-1].usage.seconds == 4
    (truth,) = provider.billed
    assert (truth.response_id, dict(truth.meters.quantities)) == (identity, {"seconds_audio": 4})
