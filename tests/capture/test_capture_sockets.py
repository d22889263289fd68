"""WebSocket connections: every answer on them is recorded, with the usage the provider billed."""

from __future__ import annotations

import base64

import pytest

import tokenmeter
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


def test_connections_of_a_plain_client_are_left_alone(clients, books):
    client = clients.openai(metered=False)
    _needs(client, "realtime.connect")
    with client.realtime.connect(model="gpt-realtime") as connection:
        assert "parse_event" not in vars(connection)
    assert books.all() == []
