"""Batches: every result is recorded once, at batch prices, however its file is read and however often."""

from __future__ import annotations

import io
import json
import tracemalloc

import pytest

import tokenmeter
from tokenmeter.meter import Meter
from tokenmeter.reports import Query, read_report
from tokenmeter.stores import open_store
from tokenmeter.stores.store import BookStore

CHAT = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Tell me about the sea, please."}]}
MESSAGE = {"max_tokens": 64, "model": "claude-sonnet-5", "messages": CHAT["messages"]}
OPENAI = ["OpenAI", "AsyncOpenAI"]
ANTHROPIC = ["Anthropic", "AsyncAnthropic"]


async def _openai_batch(client, do, lines=3, bad=0):
    """A batch that is done; the id of its output file."""
    rows = [{"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": CHAT} for n in range(lines)]
    rows += [{"custom_id": f"bad{n}", "method": "POST", "url": "/v1/nothing", "body": {}} for n in range(bad)]
    data = "\n".join(json.dumps(row) for row in rows).encode()
    file = await do(client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch"))
    return await do(
        client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    )


async def _output_file(clients, do, batch, name="OpenAI"):
    """Looked up by a client that is not metered, as another program does."""
    return (await do(clients.make(name, metered=False).batches.retrieve(batch.id))).output_file_id


async def _plainly(client, file, do, _path):
    return (await do(client.files.content(file))).text


async def _by_lines(client, file, do, _path):
    return "\n".join((await do(client.files.content(file))).iter_lines()) + "\n"


async def _to_a_file(client, file, do, path):
    (await do(client.files.content(file))).write_to_file(path)
    return path.read_text()


async def _raw(client, file, do, _path):
    return (await do(client.files.with_raw_response.content(file))).text


async def _raw_parsed(client, file, do, _path):
    return (await do(client.files.with_raw_response.content(file))).parse().text


async def _streamed_lines(client, file, do, _path):
    async with do.inside(client.files.with_streaming_response.content(file)) as raw:
        return "".join([f"{line}\n" async for line in do.each(raw.iter_lines())])


async def _streamed_to_a_file(client, file, do, path):
    async with do.inside(client.files.with_streaming_response.content(file)) as raw:
        await do(raw.stream_to_file(path))
    return path.read_text()


async def _by_path(client, file, do, _path):
    return await do(client.get(f"/files/{file}/content", cast_to=str))


WAYS = [_plainly, _by_lines, _to_a_file, _raw, _raw_parsed, _streamed_lines, _streamed_to_a_file, _by_path]


@pytest.mark.parametrize("name", OPENAI)
@pytest.mark.parametrize("way", WAYS)
async def test_each_line_of_an_output_file_is_recorded_once_at_batch_prices(
    name, way, clients, books, provider, do, tmp_path
):
    client = clients.make(name)
    batch = await _openai_batch(client, do, bad=1)
    file = await _output_file(clients, do, batch)
    first = await way(client, file, do, tmp_path / "out.jsonl")
    assert first == await way(clients.make(name, metered=False), file, do, tmp_path / "plain.jsonl")
    await way(client, file, do, tmp_path / "again.jsonl")
    entries = books.all()
    assert books.quantities() == dict(provider.total.quantities)
    assert [entry.status for entry in entries] == ["ok"] * 3
    _check_batch_price(entries, books.meter)
    assert books.meter.faults == 0


def _check_batch_price(entries, meter):
    """Half of what the same usage costs outside a batch."""
    for entry in entries:
        usage = json.loads(entry.raw_usage)
        whole = tokenmeter.price(usage, provider=entry.provider, model=entry.model, endpoint="chat.completions")
        assert entry.list_cost == whole.list_cost / 2 > 0


@pytest.mark.parametrize("name", OPENAI)
async def test_a_batch_that_was_polled_is_not_billed_again_by_its_file(name, clients, books, provider, do):
    client = clients.make(name)
    batch = await _openai_batch(client, do)
    done = await do(client.batches.retrieve(batch.id))
    await do(client.files.content(done.output_file_id))
    [page async for page in do.each(client.batches.list())]
    assert books.one().response_id == batch.id
    assert books.quantities() == dict(provider.total.quantities)


@pytest.mark.parametrize("name", OPENAI)
async def test_a_batch_whose_file_was_read_is_not_billed_again_by_polling_it(name, clients, books, provider, do):
    client = clients.make(name)
    batch = await _openai_batch(client, do)
    await do(client.files.content(await _output_file(clients, do, batch)))
    await do(client.batches.retrieve(batch.id))
    assert len(books.all()) == 3
    assert books.quantities() == dict(provider.total.quantities)


async def test_a_listed_batch_is_recorded_once(clients, books, provider, do):
    client = clients.openai()
    for _ in range(2):
        await _openai_batch(client, do)
    for _ in range(2):
        assert len([page async for page in do.each(client.batches.list())]) == 2
    assert len(books.all()) == 2
    assert books.quantities() == dict(provider.total.quantities)


@pytest.mark.parametrize("how", ["content", "retrieve"])
async def test_results_go_on_the_account_of_who_made_the_batch(how, clients, books, do):
    client = clients.openai()
    with tokenmeter.attribute(member="ada"):
        batch = await _openai_batch(client, do)
    with tokenmeter.attribute(member="bob"):
        if how == "content":
            await do(client.files.content(await _output_file(clients, do, batch)))
        else:
            await do(client.batches.retrieve(batch.id))
    # The file's id tells its batch only to who has seen the batch.
    assert {entry.attribution.member for entry in books.all()} == {"ada" if how == "retrieve" else "bob"}


async def test_a_messages_batch_goes_on_the_account_of_who_made_it(clients, books, do):
    client = clients.anthropic()
    _batches(client)
    with tokenmeter.attribute(member="ada"):
        made = client.messages.batches.create(requests=[{"custom_id": n, "params": MESSAGE} for n in "ab"])
    with tokenmeter.attribute(member="bob"):
        list(client.messages.batches.results(made.id))
    assert [entry.attribution.member for entry in books.all()] == ["ada", "ada"]


@pytest.mark.parametrize("name", ["Anthropic", "AsyncAnthropic"])
@pytest.mark.parametrize("beta", [False, True])
async def test_lines_of_a_batch_cost_nothing_whose_request_bills_the_customer(name, beta, clients, books, do):
    client = clients.make(name)
    batches = client.beta.messages.batches if beta else client.messages.batches
    theirs = {**MESSAGE, "billing_policy": {"type": "billing_policy", "bill_to": "user_profile"}}
    asked = [{"custom_id": "ours", "params": MESSAGE}, {"custom_id": "theirs", "params": theirs}]
    made = await do(batches.create(requests=asked))
    assert len(await _each(batches.results(made.id), do)) == 2
    ours, others = sorted(books.all(), key=lambda entry: entry.flags)
    assert ours.flags == ()
    assert ours.list_cost > 0
    assert others.flags == ("billed_to_user_profile",)
    assert others.list_cost == others.billed_cost == 0
    assert others.usage["output"] > 0


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 50,
        b"no json at all",
        b"",
        b'{"prompt": "a", "completion": "b"}\n' * 3,
        json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": CHAT}).encode(),
        b"[1, 2]\n",
        b"x" * 300_000,
    ],
    ids=["picture", "text", "empty", "training data", "batch input", "array", "one long line"],
)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_any_other_file_makes_no_entry_and_no_fault(content, streamed, clients, books, provider):
    provider.answer(body=content, headers={"content-type": "application/octet-stream"}, times=2, billed=False)
    got = []
    for client in (clients.openai(), clients.openai(metered=False)):
        if streamed:
            with client.files.with_streaming_response.content("file-1") as raw:
                got.append(b"".join(raw.iter_bytes(1000)))
        else:
            got.append(client.files.content("file-1").read())
    assert got == [content, content]
    assert books.all() == []
    assert books.meter.faults == 0


def _line(number, usage, status=200, **body):
    answer = {"id": "same", "object": "chat.completion", "model": "gpt-5-mini", "choices": [], "usage": usage, **body}
    return {
        "id": f"batch_req_{number}",
        "custom_id": f"r{number}",
        "response": {"status_code": status, "request_id": "q", "body": answer},
        "error": None,
    }


def test_lines_are_told_apart_by_their_own_ids_and_bad_ones_are_flagged_or_free(clients, books, provider):
    """Hosts give all answers one id; some usage cannot be read; refused and expired requests are not billed."""
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    rows = [
        {"id": "x", "custom_id": "x", "response": None, "error": {"code": "batch_expired", "message": "late"}},
        _line(1, usage),
        _line(2, usage),
        _line(3, {"prompt_tokens": -4, "completion_tokens": "many"}),
        _line(4, usage, status=500),
    ]
    body = b"\n".join([*(json.dumps(row).encode() for row in rows), b'{"custom_id": "cut'])
    provider.answer(body=body, headers={"content-type": "application/octet-stream"}, times=2, billed=False)
    client = clients.openai()
    for _ in range(2):
        client.files.content("file-1")
    known = [entry for entry in books.all() if "usage_unknown" not in entry.flags]
    assert [dict(entry.usage.quantities) for entry in known] == [{"input": 10, "output": 5}] * 2
    assert len(books.all()) == 3
    assert books.meter.faults == 0


def _batches(client, *, beta=False):
    """The resource, where the SDK has it."""
    messages = getattr(client.beta, "messages", None) if beta else client.messages
    if not hasattr(messages, "batches"):
        pytest.skip("this SDK version has no message batches")
    return messages.batches


async def _each(results, do):
    return [line async for line in do.each(results)]


@pytest.mark.parametrize("name", ANTHROPIC)
@pytest.mark.parametrize("beta", [False, True], ids=["messages", "beta"])
async def test_message_results_are_recorded_once_at_batch_prices(name, beta, clients, books, provider, do):
    client = clients.make(name)
    batches = _batches(client, beta=beta)
    provider.answer(stop_reason="expired", for_model="claude-haiku-4-5")
    requests = [{"custom_id": n, "params": MESSAGE} for n in "abc"]
    requests.append({"custom_id": "late", "params": {**MESSAGE, "model": "claude-haiku-4-5"}})
    made = await do(batches.create(requests=requests))
    for _ in range(2):
        assert len(await _each(batches.results(made.id), do)) == 4
    assert books.quantities() == dict(provider.total.quantities)
    assert len(books.all()) == 3
    for entry in books.all():
        whole = tokenmeter.price(
            {**json.loads(entry.raw_usage), "service_tier": "standard"},
            provider="anthropic",
            model=entry.model,
            endpoint="messages",
        )
        assert entry.list_cost == whole.list_cost / 2 > 0
    assert books.meter.faults == 0


@pytest.mark.parametrize("name", ANTHROPIC)
async def test_results_that_are_dropped_half_way_are_recorded_as_far_as_they_came(name, clients, books, provider, do):
    client = clients.make(name)
    _batches(client)
    made = await do(
        client.messages.batches.create(requests=[{"custom_id": str(n), "params": MESSAGE} for n in range(600)])
    )
    results = await do(client.messages.batches.results(made.id))
    seen = 0
    async for _result in do.each(results):
        seen += 1
        if seen == 3:
            break
    await do(results.close())
    assert 3 <= len(books.all()) < 600
    await _each(client.messages.batches.results(made.id), do)
    assert len(books.all()) == 600
    assert books.quantities() == dict(provider.total.quantities)


def test_results_that_are_read_again_are_known_without_reading_the_ledger(clients, books, monkeypatch):
    client = clients.anthropic()
    _batches(client)
    made = client.messages.batches.create(requests=[{"custom_id": n, "params": MESSAGE} for n in "abc"])
    list(client.messages.batches.results(made.id))
    asked, read = [], BookStore.entries
    monkeypatch.setattr(BookStore, "entries", lambda *known, **more: asked.append(1) or read(*known, **more))
    list(client.messages.batches.results(made.id))
    assert asked == []
    assert len(books.all()) == 3


@pytest.mark.parametrize("provider_name", ["openai", "anthropic"])
async def test_programs_that_read_the_same_results_record_them_once(
    provider_name, clients, provider, do, priced, tmp_path
):
    """Each has a connection and a memory of its own; the ledger is all they share."""
    file = None
    if provider_name == "openai":
        file = await _output_file(clients, do, await _openai_batch(clients.openai(metered=False), do))
    else:
        _batches(clients.anthropic())
        requests = [{"custom_id": n, "params": MESSAGE} for n in "abc"]
        file = clients.anthropic(metered=False).messages.batches.create(requests=requests).id
    for _ in range(2):
        meter = Meter(store=open_store(f"sqlite:///{tmp_path}/shared.db"), pricer=priced.pricer)
        if provider_name == "openai":
            tokenmeter.wrap(clients.openai(metered=False), meter).files.content(file)
        else:
            list(tokenmeter.wrap(clients.anthropic(metered=False), meter).messages.batches.results(file))
        assert len(list(meter.store.entries())) == 3
        meter.close()


def test_a_large_file_that_is_none_of_our_business_is_not_copied(clients, provider):
    content = b"\x00" * 20_000_000
    for named in (content, b"pixels\n" + content):
        provider.answer(body=named, headers={"content-type": "application/octet-stream"}, times=2, billed=False)
        peaks = []
        for client in (clients.openai(), clients.openai(metered=False)):
            tracemalloc.start()
            client.files.content("file-1")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[0] - peaks[1] < len(content) * 1.2


def _capped(clients, name, **budget):
    client = clients.make(name)
    meter = tokenmeter.make_meter(store="memory:", config={}, budgets=[budget])
    return tokenmeter.wrap(client, meter), meter


async def _begin(name, client, do):
    if "OpenAI" in name:
        return await _openai_batch(client, do)
    return await do(_batches(client).create(requests=[{"custom_id": "r", "params": MESSAGE}]))


@pytest.mark.parametrize("name", OPENAI + ANTHROPIC)
async def test_a_hard_cap_refuses_a_batch_since_nobody_knows_what_it_will_cost(name, clients, provider, do):
    client, meter = _capped(clients, name, limit_usd=100)
    with pytest.raises(
        tokenmeter.RequestTooLargeError, match=r"That is because what it starts is billed when its results are read\. "
    ) as caught:
        await _begin(name, client, do)
    assert (
        "are read. Set unbounded='expected' on the budget to let such work start while the budget has room; "
        "what it costs counts then." in str(caught.value)
    )
    assert not [request for request in provider.requests if request.path.endswith("batches")]
    meter.close()


@pytest.mark.parametrize("name", OPENAI + ANTHROPIC)
async def test_a_cap_that_takes_what_is_expected_lets_a_batch_go_until_it_is_spent(name, clients, do):
    client, meter = _capped(clients, name, limit_usd=100, unbounded="expected")
    await _begin(name, client, do)
    assert [(one.spent, one.reserved) for one in meter.remaining()] == [(0, 0)]
    used = {"prompt_tokens": 1, "completion_tokens": 10**9, "total_tokens": 10**9 + 1}
    meter.record(used, provider="openai", endpoint="chat.completions", model="gpt-5.4")
    with pytest.raises(tokenmeter.BudgetExceededError):
        await _begin(name, client, do)
    meter.close()


@pytest.mark.parametrize("name", OPENAI + ANTHROPIC)
async def test_a_limit_on_calls_lets_a_batch_go_and_holds_nothing(name, clients, do):
    client, meter = _capped(clients, name, limit_requests=1)
    await _begin(name, client, do)
    assert [(one.spent, one.reserved) for one in meter.remaining()] == [(0, 0)]
    meter.close()


@pytest.mark.parametrize("name", OPENAI)
@pytest.mark.parametrize("first", ["the object", "its file"])
async def test_what_a_batch_does_not_say_at_first_it_says_later(name, first, clients, books, provider, do):
    client = clients.make(name)
    batch = await _openai_batch(client, do)
    file = await _output_file(clients, do, batch)
    ended = {**batch.to_dict(), "status": "completed", "output_file_id": file, "model": CHAT["model"]}
    ended["request_counts"] = {"total": 3, "completed": 3, "failed": 0}
    used = (await do(clients.make(name, metered=False).batches.retrieve(batch.id))).to_dict()["usage"]
    billed = dict(provider.total.quantities)
    for usage in (None, used, used):
        provider.answer(body={**ended, "usage": usage}, path="*/batches/*")
    await do(client.batches.retrieve(batch.id))
    for each in ("the object", "its file") if first == "the object" else ("its file", "the object"):
        if each == "the object":
            await do(client.batches.retrieve(batch.id))
        else:
            await do(client.files.content(file))
    await do(client.batches.retrieve(batch.id))
    assert books.quantities() == billed
    assert read_report(books.meter.store, Query.parse()).totals.unpriced == 0


@pytest.mark.parametrize("name", OPENAI)
@pytest.mark.parametrize("usage", [None, {}, {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}])
async def test_what_a_batch_does_not_say_its_file_does(name, usage, clients, books, provider, do):
    client = clients.make(name)
    batch = await _openai_batch(client, do)
    file = await _output_file(clients, do, batch)
    ended = {**batch.to_dict(), "status": "completed", "output_file_id": file, "usage": usage}
    provider.answer(body={**ended, "request_counts": {"total": 3, "completed": 3, "failed": 0}})
    await do(client.batches.retrieve(batch.id))
    assert books.one().cost_source == "unpriced"
    for _ in range(2):
        await do(client.files.content(file))
    lines = [entry for entry in books.all() if entry.kind == "usage" and entry.cost_source == "computed"]
    assert len(lines) == 3
    assert books.quantities() == dict(provider.total.quantities)
    assert read_report(books.meter.store, Query.parse()).totals.unpriced == 0, "the lines say what it did not"
    _check_batch_price(lines, books.meter)
