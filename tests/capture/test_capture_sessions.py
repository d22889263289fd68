"""Agent sessions: what they used is recorded as it becomes known, once, whichever way and however often it is read."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

import tokenmeter
from tokenmeter.meter import Meter
from tokenmeter.stores import open_store

SAY = {"type": "user.message", "content": [{"type": "text", "text": "Hello there"}]}
NAMES = ["Anthropic", "AsyncAnthropic"]


@pytest.fixture(params=NAMES)
def client(request, clients):
    made = clients.make(request.param)
    if not hasattr(made.beta, "sessions"):
        pytest.skip("this SDK version has no sessions")
    return made


async def _begin(client, do):
    return (await do(client.beta.sessions.create(agent="agent_1", environment_id="env_1"))).id


async def _turn(client, session, do):
    await do(client.beta.sessions.events.send(session, events=[SAY]))


async def _by_retrieving(client, session, do):
    await do(client.beta.sessions.retrieve(session))


async def _by_listing(client, _session, do):
    assert [found async for found in do.each(client.beta.sessions.list())]


async def _by_updating(client, session, do):
    await do(client.beta.sessions.update(session, title="A new title"))


async def _by_its_events(client, session, do):
    [event async for event in do.each(client.beta.sessions.events.list(session))]


async def _by_streaming(client, session, do):
    [event async for event in do.each(client.beta.sessions.events.stream(session))]


async def _by_streaming_lines(client, session, do):
    async with do.inside(client.beta.sessions.with_streaming_response.retrieve(session)) as raw:
        assert [line async for line in do.each(raw.iter_lines())]


async def _by_archiving(client, session, do):
    await do(client.beta.sessions.archive(session))


WAYS = [
    _by_retrieving,
    _by_listing,
    _by_updating,
    _by_its_events,
    _by_streaming,
    _by_streaming_lines,
    _by_archiving,
]


@pytest.mark.parametrize("way", WAYS)
async def test_what_a_session_used_is_recorded_turn_by_turn(way, client, books, provider, do):
    session = await _begin(client, do)
    await way(client, session, do)
    assert books.all() == []  # nothing was used yet
    for _ in range(2):
        await _turn(client, session, do)
        for _again in range(2):
            await way(client, session, do)
        assert books.quantities() == dict(provider.total.quantities)
    assert {entry.model for entry in books.all()} == {"claude-sonnet-5"}
    assert all(entry.list_cost for entry in books.all())
    assert books.meter.faults == 0


async def test_all_ways_together_record_it_once(client, books, provider, do):
    session = await _begin(client, do)
    for way in (*WAYS, *reversed(WAYS)):
        await _turn(client, session, do)
        await way(client, session, do)
    await _by_retrieving(client, session, do)
    assert books.quantities() == dict(provider.total.quantities)
    assert books.meter.faults == 0


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_programs_that_read_the_same_session_record_it_once(store, clients, provider, do, priced, tmp_path):
    """Each program has a memory of its own; the ledger is all they share."""
    shared = open_store("memory:")

    def program(name):
        opened = shared if store == "memory" else open_store(f"sqlite:///{tmp_path}/shared.db")
        meter = Meter(store=opened, pricer=priced.pricer)
        return tokenmeter.wrap(clients.make(name, metered=False), meter), meter

    programs = [program(name) for name in (*NAMES, *NAMES)]
    if not hasattr(programs[0][0].beta, "sessions"):
        pytest.skip("this SDK version has no sessions")
    session = await _begin(programs[0][0], do)
    for turn in range(6):
        await _turn(programs[0][0], session, do)
        for number, (client, _) in enumerate(programs):
            await WAYS[(turn + number) % 5](client, session, do)
    entries = list(programs[0][1].store.entries())
    quantities = {}
    for entry in entries:
        for meter, quantity in entry.usage.quantities.items():
            quantities[meter] = quantities.get(meter, 0) + quantity
    assert quantities == dict(provider.total.quantities)
    assert [meter.faults for _, meter in programs] == [0] * 4
    for _, meter in programs:
        meter.close()


async def test_the_providers_own_cost_is_recorded_as_it_grows(client, books, provider, do):
    session = await _begin(client, do)
    for cents in (150, 75):
        provider.answer(fields={"list_cost": {"amount": str(cents)}})
        await _turn(client, session, do)
        await _by_retrieving(client, session, do)
    assert [entry.list_cost for entry in books.all()] == [Decimal("1.5"), Decimal("0.75")]
    assert {entry.cost_source for entry in books.all()} == {"billed"}


def _stated(session, *, status="idle", **usage):
    return {
        "id": session,
        "type": "session",
        "status": status,
        "agent": {"model": {"id": "claude-sonnet-5"}},
        "usage": usage,
    }


async def test_a_total_that_falls_is_no_refund_and_what_it_regains_is_not_billed_again(client, books, provider, do):
    for tokens in (100, 60, 100, 130):
        provider.answer(body=_stated("sesn_1", input_tokens=tokens, output_tokens=10), billed=False)
        await _by_retrieving(client, "sesn_1", do)
    assert books.quantities() == {"input": 130, "output": 10}
    assert len(books.all()) == 2


async def test_model_requests_are_counted_until_a_total_includes_them(client, books, provider, do):
    """A stream may be read live, without any total on it; the session's own total comes later."""

    def end(number, tokens):
        usage = {"input_tokens": tokens, "output_tokens": 1}
        usage |= {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
        base = {"type": "span.model_request_end", "model_request_start_id": "s", "processed_at": "2026-11-01T12:00:00Z"}
        return {**base, "id": f"sevt_{number}", "model_usage": usage}

    for _ in range(2):
        provider.answer(events=[end(1, 10), end(2, 20)], billed=False)
        await _by_streaming(client, "sesn_1", do)
    assert books.quantities() == {"input": 30, "output": 2}
    provider.answer(body=_stated("sesn_1", input_tokens=35, output_tokens=4, active_seconds=2.5), billed=False)
    await _by_retrieving(client, "sesn_1", do)
    provider.answer(events=[end(2, 20), end(3, 5)], billed=False)
    await _by_streaming(client, "sesn_1", do)
    assert books.quantities() == {"input": 35, "output": 4, "runtime_seconds": Decimal("2.5")}


@pytest.mark.needs("anthropic.resources.beta.sessions:Sessions")
async def test_what_is_inside_a_total_goes_by_when_it_was_taken_and_not_by_when_it_was_read(
    clients, provider, do, priced, tmp_path
):
    """One program reads the first page of a session's events, and another, which knows the ledger alone, the rest."""
    usage = {"input_tokens": 10, "output_tokens": 1, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    step, total = ("span.model_request_end", "model_usage"), ("session.usage", "usage")
    told = [
        {
            "id": f"sevt_{at}",
            "type": kind,
            "processed_at": f"2026-11-01T{at}:00Z",
            "model_request_start_id": "s",
            of: usage,
        }
        for at, (kind, of) in {"11:59": step, "12:00": total, "12:10": step}.items()
    ]
    for page in (told[1:2], told):
        meter = Meter(store=open_store(f"sqlite:///{tmp_path}/shared.db"), pricer=priced.pricer)
        provider.answer(events=page, billed=False)
        await _by_streaming(tokenmeter.wrap(clients.make("Anthropic", metered=False), meter), "sesn_1", do)
        entries = list(meter.store.entries())
        meter.close()
    assert [(f"{one.occurred_at:%H:%M}", one.usage["input"]) for one in entries] == [("12:00", 10), ("12:10", 10)]


async def test_a_session_goes_on_the_account_of_who_began_it(client, books, do):
    with tokenmeter.attribute(member="ada"):
        session = await _begin(client, do)
    await _turn(client, session, do)
    with tokenmeter.attribute(member="bob"):
        await _by_retrieving(client, session, do)
        await _turn(client, session, do)
        await _by_streaming(client, session, do)
    assert {entry.attribution.member for entry in books.all()} == {"ada"}


async def test_an_event_stream_is_recorded_while_it_lasts(client, books, provider, do):
    """Such a stream may be open for days: nothing waits for its end."""
    usage = [{"input_tokens": 10 * n, "output_tokens": n} for n in (1, 2)]
    events = [
        {"id": f"sevt_{n}", "type": "session.usage", "processed_at": "2026-11-01T12:00:00Z", "usage": used}
        for n, used in enumerate(usage)
    ]
    provider.answer(events=[*events, {"id": "sevt_9", "type": "session.status_idle"}], chunk_delay=0.2, billed=False)
    stream = await do(client.beta.sessions.events.stream("sesn_1"))
    kinds = []
    async for event in do.each(stream):
        kinds.append(event.type)
        if event.type == "session.status_idle":
            assert books.quantities() == {"input": 20, "output": 2}
    assert kinds[-1] == "session.status_idle"


async def test_a_dream_is_recorded_when_it_has_ended(client, books, provider, do):
    if not hasattr(client.beta, "dreams"):
        pytest.skip("this SDK version has no dreams")
    usage = {"input_tokens": 50, "output_tokens": 5, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    body = {"id": "drm_1", "type": "dream", "model": {"id": "claude-sonnet-5"}, "usage": usage}
    for status in ("running", "completed", "completed"):
        provider.answer(body={**body, "status": status}, billed=False)
        await do(client.beta.dreams.retrieve("drm_1"))
    provider.answer(body={"data": [{**body, "status": "completed"}], "next_page": None}, billed=False)
    [dream async for dream in do.each(client.beta.dreams.list())]
    assert books.quantities() == {"input": 50, "output": 5}
    assert json.loads(books.one().raw_usage) == usage
