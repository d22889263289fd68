"""Hosts that count badly: what a live call records, and what a hard cap makes of it."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

import tokenmeter
from tokenmeter import Budget, BudgetExceededError
from tokenmeter.default import make_meter
from tokenmeter.ledger import utcnow

WORDS = "The sea is wide, and it is deep. " * 12  # 396 bytes: 99 tokens by estimate
CHAT = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Tell me about the sea. " * 40}]}
MESSAGE = {**CHAT, "model": "claude-sonnet-5", "max_tokens": 300}
ZERO_CHAT = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
ZERO_MESSAGE = {"input_tokens": 0, "output_tokens": 0}
SLOPPY_CHAT = {
    "null": None,
    "empty": {},
    "zeros": ZERO_CHAT,
    "unknown names": {"tokens": 1000},
    "fractions": {"prompt_tokens": 900.5, "completion_tokens": 900.5},
    "negative": {"prompt_tokens": -900, "completion_tokens": -900},
    "words": {"prompt_tokens": "many", "completion_tokens": "some"},
}
SLOPPY_MESSAGE = {
    "null": None,
    "empty": {},
    "zeros": ZERO_MESSAGE,
    "fractions": {"input_tokens": 900.5, "output_tokens": 900.5},
    "negative": {"input_tokens": -900, "output_tokens": -900},
}


def completion(usage):
    message = {"role": "assistant", "content": WORDS}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-5-mini"}
    return {**body, "choices": choices, "usage": usage}


def message(usage):
    content = [{"type": "text", "text": WORDS}]
    body = {"id": "m", "type": "message", "role": "assistant", "model": "claude-sonnet-5", "content": content}
    return {**body, "stop_reason": "end_turn", "stop_sequence": None, "usage": usage}


def chunks(usage):
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-mini"}
    yield {**base, "choices": [{"index": 0, "delta": {"role": "assistant", "content": WORDS}, "finish_reason": None}]}
    yield {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage}
    yield "data: [DONE]\n\n"


def events(usage):
    yield {"type": "message_start", "message": {**message(usage), "content": [], "stop_reason": None}}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": WORDS}}
    yield {"type": "content_block_stop", "index": 0}
    yield {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}
    yield {"type": "message_stop"}


@pytest.mark.parametrize("usage", SLOPPY_CHAT.values(), ids=SLOPPY_CHAT)
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_that_counts_badly_is_estimated(usage, stream, clients, books, provider):
    if stream:
        provider.answer(events=list(chunks(usage)))
        list(clients.openai().chat.completions.create(**CHAT, stream=True))
    else:
        provider.answer(body=completion(usage))
        clients.openai().chat.completions.create(**CHAT)
    entry = books.one()
    assert entry.usage["output"] == 99
    assert entry.usage["input"] > 200
    assert entry.cost_source == "estimated"
    assert "estimated" in entry.flags


@pytest.mark.parametrize("usage", SLOPPY_MESSAGE.values(), ids=SLOPPY_MESSAGE)
def test_a_message_that_counts_badly_is_estimated(usage, clients, books, provider):
    provider.answer(body=message(usage))
    clients.anthropic().messages.create(**MESSAGE)
    entry = books.one()
    assert entry.usage["output"] == 99
    assert entry.usage["input"] > 200
    assert entry.cost_source == "estimated"


@pytest.mark.parametrize("usage", [ZERO_MESSAGE, {"input_tokens": "x", "output_tokens": 1}], ids=["zeros", "no count"])
def test_a_stream_of_messages_that_counts_badly_is_estimated(usage, clients, books, provider):
    provider.answer(events=list(events(usage)))
    list(clients.anthropic().messages.create(**MESSAGE, stream=True))
    entry = books.one()
    assert entry.usage["input"] > 200
    assert entry.cost_source == "estimated"


def test_a_later_zero_is_no_news(clients, books, provider):
    sent = list(events({"input_tokens": 120, "output_tokens": 1}))
    sent[-2] = {**sent[-2], "usage": {"input_tokens": 0, "output_tokens": 8}}
    provider.answer(events=sent)
    list(clients.anthropic().messages.create(**MESSAGE, stream=True))
    entry = books.one()
    assert dict(entry.usage.quantities) == {"input": 120, "output": 8}
    assert entry.cost_source == "computed"


def test_an_integer_in_another_dress_is_that_integer(clients, books, provider):
    usage = {"prompt_tokens": "900", "completion_tokens": 900.0, "total_tokens": "1800"}
    provider.answer(body=completion(usage))
    clients.openai().chat.completions.create(**CHAT)
    entry = books.one()
    assert dict(entry.usage.quantities) == {"input": 900, "output": 900}
    assert (entry.cost_source, entry.flags) == ("computed", ("nonstandard_count",))


def test_an_error_with_a_success_status_is_estimated(clients, books, provider):
    provider.answer(body={"error": {"message": "upstream failed", "code": 502}})
    clients.openai().chat.completions.create(**CHAT)
    entry = books.one()
    assert entry.usage["input"] > 200
    assert entry.cost_source == "estimated"


@pytest.mark.parametrize(
    "usage",
    [{"prompt_tokens": "900", "completion_tokens": "900"}, *SLOPPY_CHAT.values()],
    ids=["text", *SLOPPY_CHAT],
)
def test_a_hard_cap_stops_calls_whose_usage_is_malformed(usage, clients, provider):
    """A thousandth of a dollar is reached after a few calls of this size, however the host writes its counts."""
    meter = make_meter(store="memory:", config={}, budgets=[Budget(name="tiny", limit_usd="0.001")])
    clients.meter = meter
    provider.answer(body=completion(usage), times=None)
    client = clients.openai()
    stopped = 0
    for _ in range(40):
        try:
            client.chat.completions.create(**CHAT, max_tokens=100)
        except BudgetExceededError:
            stopped += 1
    meter.close()
    assert 0 < stopped < 40


# -- what is billed beside the usage


def container_response(number, container, tool=None):
    call = {"id": f"ci_{number}", "type": "code_interpreter_call", "status": "completed", "container_id": container}
    body = {"id": f"resp_{number}", "object": "response", "created_at": 1765368000, "model": "gpt-5-nano"}
    usage = {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}
    tools = [tool or {"type": "code_interpreter", "container": {"type": "auto"}}]
    rest = {"parallel_tool_calls": True, "tool_choice": "auto", "metadata": {}}
    return {**body, "status": "completed", "output": [{**call, "code": "1"}], "tools": tools, "usage": usage, **rest}


def ask(clients, **options):
    client = clients.openai()
    return client.responses.create(model="gpt-5-nano", input="Compute", **options)


@pytest.mark.needs("openai.resources.responses:Responses")
def test_a_container_is_billed_once_over_all_responses_that_use_it(clients, books, provider):
    for number in range(3):
        provider.answer(body=container_response(number, "cntr_5"))
        ask(clients)
    provider.answer(body=container_response(3, "cntr_6"))
    ask(clients)
    assert books.quantities() == {"input": 4000, "output": 400, "container_sessions": 2}
    containers = [entry for entry in books.all() if entry.usage["container_sessions"]]
    assert [str(entry.list_cost) for entry in containers] == ["0.030000000000", "0.030000000000"]
    assert {entry.response_id for entry in containers} == {"cntr_5", "cntr_6"}
    assert {(entry.operation, entry.latency_us) for entry in containers} == {("execute_tool", None)}, "no requests"


SIZES = {"cntr_1": "16g", "cntr_2": "4g", "cntr_3": "1g"}


def container(born, *, seconds, status="expired", memory="4g"):
    life = {"created_at": born, "last_active_at": born + seconds}
    return {"id": "cntr_5", "object": "container", "name": "x", "status": status, "memory_limit": memory, **life}


@pytest.fixture
def born(clients, provider):
    """When a container was made, whose life a response could only assume; made by ada."""
    made = int(utcnow().timestamp()) - 60
    tool = {"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "4g"}}
    provider.answer(body={**container_response(1, "cntr_5", tool), "created_at": made})
    with tokenmeter.attribute(member="ada"):
        ask(clients)
    return made


@pytest.mark.needs("openai.resources.responses:Responses", "openai.resources.containers:Containers")
def test_a_container_that_is_looked_up_replaces_what_was_assumed_of_its_life(born, clients, books, provider):
    provider.answer(body=container(born, seconds=30, status="running"))
    provider.answer(body=container(born, seconds=390), times=2)
    client = clients.openai()
    for _ in range(3):  # while it lives, when it has expired, and once more
        client.containers.retrieve("cntr_5")
    entries = [entry for entry in books.all() if entry.response_id == "cntr_5"]
    assert {entry.attribution.member for entry in entries} == {"ada"}
    assert "container_time_assumed" in entries[0].flags
    # The session that was assumed is taken back; seven minutes of 4 GB are billed.
    assert sum(entry.list_cost for entry in books.all()) == Decimal("0.00009") + Decimal("0.042")


@pytest.mark.needs("openai.resources.responses:Responses", "openai.resources.containers:AsyncContainers")
async def test_a_container_is_looked_up_by_async_clients_as_well(born, clients, books, provider):
    provider.answer(body=container(born, seconds=61))
    async with clients.async_openai() as client:
        await client.containers.retrieve("cntr_5")
    assert sum(entry.list_cost for entry in books.all()) == Decimal("0.00009") + Decimal("0.03")


@pytest.mark.needs("openai.resources.containers:Containers")
def test_a_container_that_nobody_recorded_is_billed_when_it_is_looked_up(clients, books, provider):
    provider.answer(body=container(int(utcnow().timestamp()) - 60, seconds=61), times=2)
    client = clients.openai()
    for _ in range(2):
        client.containers.retrieve("cntr_5")
    assert books.quantities() == {"container_minutes_4g": 5}


@pytest.mark.needs("openai.resources.responses:Responses", "openai.resources.containers:AsyncContainers")
async def test_a_container_made_or_looked_up_before_has_the_size_that_it_said(clients, books, provider):
    new = container(0, seconds=0, status="running")
    made = {name: {**new, "id": name, "memory_limit": size} for name, size in SIZES.items()}
    old = {**container(int(utcnow().timestamp()) - 3000, seconds=600), "id": "cntr_old"}
    for body in (made["cntr_1"], made["cntr_2"], {"object": "list", "data": [made["cntr_3"], old], "has_more": False}):
        provider.answer(body=body)
    async with clients.async_openai() as client:
        await client.containers.create(name="x", memory_limit="16g")
        await client.containers.with_raw_response.retrieve("cntr_2")
        assert [one.id async for one in client.containers.list()] == ["cntr_3", "cntr_old"]
    assert books.all() == [], "making and looking cost nothing, and a list bills nothing that others made"
    for number, name in enumerate([*SIZES, "cntr_of_others"]):
        provider.answer(body=container_response(number, name, {"type": "code_interpreter", "container": name}))
        ask(clients, tools=[{"type": "code_interpreter", "container": name}])
    found = {entry.response_id: entry for entry in books.all() if entry.operation == "execute_tool"}
    assert {name: list(entry.usage.quantities) for name, entry in found.items()} == {
        "cntr_1": ["container_sessions_16g"],
        "cntr_2": ["container_sessions_4g"],
        "cntr_3": ["container_sessions"],
        "cntr_of_others": ["container_sessions"],
    }
    assert [name for name, entry in found.items() if "container_size_assumed" in entry.flags] == ["cntr_of_others"]


@pytest.mark.needs("openai.resources.responses:Responses")
def test_a_container_is_billed_once_in_a_stream_as_well(clients, books, provider):
    for number in range(2):
        body = container_response(number, "cntr_5")
        provider.answer(
            events=[
                {
                    "type": "response.created",
                    "sequence_number": 0,
                    "response": {**body, "usage": None},
                },
                {"type": "response.completed", "sequence_number": 1, "response": body},
            ]
        )
        list(ask(clients, stream=True))
    assert books.quantities() == {"input": 2000, "output": 200, "container_sessions": 1}


def test_raw_usage_keeps_what_the_host_said(clients, books, provider):
    provider.answer(body=completion({"tokens": 1000}))
    clients.openai().chat.completions.create(**CHAT)
    assert json.loads(books.one().raw_usage) == {"tokens": 1000}


@pytest.mark.parametrize(
    ("unit", "cost", "source"),
    [
        (None, "0.003250000000", "computed"),
        ("usd", "0.325000000000", "billed"),
        ("cents", "0.003250000000", "billed"),
        ("0.002", "0.000650000000", "billed"),
        ("ignore", "0.003250000000", "computed"),
    ],
)
@pytest.mark.parametrize("by", ["url", "provider"])
def test_a_hosts_own_cost_is_believed_where_its_unit_is_said(by, unit, cost, source, clients, books, provider):
    name = provider.openai_url if by == "url" else "openai"
    config = {} if unit is None else {"providers": {name: {"cost": unit}}}
    clients.meter = books.meter = make_meter(store="memory:", config=config)
    body = completion({"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200, "cost": 0.325})
    provider.answer(body={**body, "model": "gpt-5"})
    clients.openai().chat.completions.create(**{**CHAT, "model": "gpt-5"})
    entry = books.one()
    assert (str(entry.list_cost), entry.cost_source) == (cost, source)
    assert ("supplied_cost_differs" in entry.flags) == (unit is None)
    clients.meter.close()


# -- background responses of hosts that do not echo what was asked for


def background_response(status, usage):
    body = {"id": "resp_1", "object": "response", "created_at": 1765368000, "model": "gpt-5-nano", "status": status}
    rest = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "metadata": {}}
    text = {"type": "output_text", "text": WORDS, "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
    return {**body, **rest, "output": [item] if status == "completed" else [], "usage": usage}


@pytest.mark.needs("openai.resources.responses:Responses")
@pytest.mark.parametrize("stream", [False, True])
def test_a_background_response_is_recorded_though_the_host_does_not_echo_the_flag(stream, clients, books, provider):
    queued = background_response("queued", None)
    done = background_response("completed", {"input_tokens": 900, "output_tokens": 90, "total_tokens": 990})
    client = clients.openai()
    if stream:
        provider.answer(events=[{"type": "response.created", "sequence_number": 0, "response": queued}])
        list(client.responses.create(model="gpt-5-nano", input="Compute", background=True, stream=True))
    else:
        provider.answer(body=queued)
        client.responses.create(model="gpt-5-nano", input="Compute", background=True)
    assert not books.all()
    for body in (background_response("in_progress", None), done, done):
        provider.answer(body=body)
        client.responses.retrieve("resp_1")
    entry = books.one()
    assert dict(entry.usage.quantities) == {"input": 900, "output": 90}
    assert entry.request_model == "gpt-5-nano"


@pytest.mark.needs("openai.resources.responses:Responses")
def test_a_background_response_without_usage_is_estimated_from_the_request_that_started_it(clients, books, provider):
    client = clients.openai()
    provider.answer(body=background_response("queued", None))
    client.responses.create(model="gpt-5-nano", input="Tell me about the sea. " * 40, background=True)
    provider.answer(body=background_response("completed", None))
    client.responses.retrieve("resp_1")
    entry = books.one()
    assert entry.usage["input"] > 200
    assert entry.usage["output"] == 99
    assert entry.cost_source == "estimated"


@pytest.mark.needs("openai.resources.responses:Responses")
def test_a_response_that_was_not_asked_for_in_the_background_is_not_billed_again(clients, books, provider):
    done = background_response("completed", {"input_tokens": 900, "output_tokens": 90, "total_tokens": 990})
    client = clients.openai()
    provider.answer(body=done, times=2)
    client.responses.create(model="gpt-5-nano", input="Compute")
    client.responses.retrieve("resp_1")
    assert dict(books.one().usage.quantities) == {"input": 900, "output": 90}


@pytest.mark.needs("openai._utils._path:path_template")  # before, the name went into the URL as it was
def test_a_batch_whose_output_file_has_an_odd_name_is_billed_once(clients, books, provider):
    line_usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    batch = {"id": "batch_1", "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "in"}
    batch |= {"completion_window": "24h", "created_at": 1, "status": "completed", "model": "gpt-5-mini"}
    total = {"input_tokens": 100, "output_tokens": 10, "total_tokens": 110}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    client = clients.openai()
    provider.answer(body={**batch, "output_file_id": "files/out 1%", "usage": {**total, **details}})
    client.batches.retrieve("batch_1")
    line = {
        "id": "l",
        "custom_id": "a",
        "error": None,
        "response": {"status_code": 200, "body": completion(line_usage)},
    }
    provider.answer(body=json.dumps(line).encode() + b"\n")
    client.files.content("files/out 1%").read()
    assert dict(books.one().usage.quantities) == {"input": 100, "output": 10}


@pytest.mark.needs("openai.resources.responses:Responses")
def test_a_container_of_a_background_response_is_on_the_account_of_who_started_it(clients, books, provider):
    client = clients.openai()
    queued = {**container_response(1, "cntr_9"), "status": "queued", "output": [], "usage": None, "background": True}
    provider.answer(body=queued)
    with tokenmeter.attribute(member="ada"):
        ask(clients, background=True)
    provider.answer(body={**container_response(1, "cntr_9"), "background": True})
    client.responses.retrieve("resp_1")
    assert books.quantities() == {"input": 1000, "output": 100, "container_sessions": 1}
    assert {entry.attribution.member for entry in books.all()} == {"ada"}


@pytest.mark.parametrize("usage", [ZERO_CHAT, None, {"prompt_tokens": "900", "completion_tokens": "90"}])
def test_a_hard_cap_stops_streams_whose_usage_is_malformed(usage, clients, provider):
    meter = make_meter(store="memory:", config={}, budgets=[Budget(name="tiny", limit_usd="0.001")])
    clients.meter = meter
    provider.answer(events=list(chunks(usage)), times=None)
    client, stopped = clients.openai(), 0
    for _ in range(40):
        try:
            list(client.chat.completions.create(**CHAT, max_tokens=100, stream=True))
        except BudgetExceededError:
            stopped += 1
    meter.close()
    assert 0 < stopped < 40


@pytest.mark.parametrize("usage", SLOPPY_MESSAGE.values(), ids=SLOPPY_MESSAGE)
def test_a_hard_cap_stops_messages_whose_usage_is_malformed(usage, clients, provider):
    meter = make_meter(store="memory:", config={}, budgets=[Budget(name="small", limit_usd="0.02")])
    clients.meter = meter
    provider.answer(body=message(usage), times=None)
    client, stopped = clients.anthropic(), 0
    for _ in range(40):
        try:
            client.messages.create(**MESSAGE)
        except BudgetExceededError:
            stopped += 1
    meter.close()
    assert 0 < stopped < 40


@pytest.fixture
def at(clients, books, provider):
    """The clients, with the fake provider known as another host."""

    def host(name):
        clients.meter = books.meter = make_meter(store="memory:", config={"providers": {provider.openai_url: name}})
        return clients.openai()

    return host


CONVERSATION = {
    "object": "conversation.response",
    "conversation_id": "conv_1",
    "outputs": [{"type": "message.output", "model": "mistral-large-2512", "content": "Hi"}],
    "usage": {"prompt_tokens": 188, "completion_tokens": 55, "total_tokens": 7355, "connector_tokens": 7112},
}


@pytest.mark.parametrize("path", ["/conversations", "/conversations/conv_1"])
def test_a_conversation_is_billed_by_the_host_that_answers_in_it(path, at, books, provider):
    client = at("mistral")
    provider.answer(body=CONVERSATION)
    client.post(path, body={"model": "mistral-large-2512", "inputs": "Hi"}, cast_to=object)
    entry = books.one()
    assert dict(entry.usage.quantities) == {"input": 7300, "output": 55}
    assert (entry.response_model, entry.cost_source) == ("mistral-large-2512", "computed")


def test_a_conversation_that_only_keeps_what_is_said_is_free(clients, books, provider):
    provider.answer(body={"id": "conv_1", "object": "conversation", "created_at": 1, "metadata": {}})
    clients.openai().post("/conversations", body={"metadata": {}}, cast_to=object)
    assert books.all() == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_search_that_moonshot_bills_is_counted(stream, at, books, provider):
    client = at("moonshotai")
    client.chat.completions.create(**{**CHAT, "model": "kimi-k2.6"})  # from here on calls like it are known
    call = {"index": 0, "id": "a", "type": "builtin_function", "function": {"name": "$web_search", "arguments": ""}}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "kimi-k2.6"}
    if stream:
        chunk = {**body, "object": "chat.completion.chunk"}
        more = {"index": 0, "function": {"arguments": '{"q": "$web_search"}'}}
        events = [
            {**chunk, "choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": [call]}}]},
            {**chunk, "choices": [{"index": 0, "delta": {"tool_calls": [more]}}]},
            {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}], "usage": usage},
        ]
        provider.answer(events=[*events, "data: [DONE]\n\n"])
        list(client.chat.completions.create(**{**CHAT, "model": "kimi-k2.6"}, stream=True))
    else:
        message = {"role": "assistant", "content": "", "tool_calls": [call]}
        choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
        provider.answer(body={**body, "choices": [choice], "usage": usage})
        client.chat.completions.create(**{**CHAT, "model": "kimi-k2.6"})
    entry = books.all()[-1]
    assert dict(entry.usage.quantities) == {"input": 100, "output": 20, "web_searches": 1}
