"""What decides a price and only the request says: hosts need not repeat what they were asked for."""

from __future__ import annotations

import json
from decimal import Decimal

import openai
import pytest

from tokenmeter.meter import Meter
from tokenmeter.pricing import Pricer, Terms
from tokenmeter.stores import open_store

RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1_795_000_000,
    "status": "completed",
    "model": "gpt-5",
    "usage": {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100},
}
SEARCHED = {"type": "web_search_call", "id": "ws", "status": "completed", "action": {"type": "search", "query": "q"}}
RAN = {"type": "code_interpreter_call", "id": "ci", "status": "completed", "container_id": "cntr_1", "outputs": []}
SHELL = {
    "type": "shell_call",
    "id": "sh",
    "call_id": "c",
    "status": "completed",
    "action": {"commands": ["ls"]},
}
WORDS = {"type": "message", "id": "m", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "Found.", "annotations": []}]}  # fmt: skip
PREVIEW = {"type": "web_search_preview"}
SEARCH = {"type": "web_search"}
LARGE = {"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "4g"}}
HOSTED = {"type": "shell", "environment": {"type": "container_auto", "memory_limit": "16g"}}
OWN = {"type": "shell", "environment": {"type": "local"}}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}


def meters(books):
    """What was used beside tokens."""
    used = books.quantities()
    return {name: quantity for name, quantity in used.items() if name not in {"input", "output"}}


def streamed(body):
    yield {"type": "response.created", "response": {**body, "status": "in_progress", "output": [], "usage": None}}
    yield {"type": "response.completed", "response": body}


@pytest.mark.needs("openai.resources.responses:Responses")
@pytest.mark.parametrize("echo", [{}, {"tools": []}, {"tools": None}], ids=str)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("tools", "item", "used"),
    [
        ([PREVIEW], SEARCHED, {"web_searches_preview": 1}),
        ([FUNCTION, SEARCH], SEARCHED, {"web_searches": 1}),
        ([LARGE], RAN, {"container_sessions_4g": 1}),
        ([HOSTED], SHELL, {"container_sessions_16g": 1}),
        ([OWN], SHELL, {}),
    ],
    ids=["preview", "search", "container", "shell", "a shell of one's own"],
)
def test_tools_that_a_host_does_not_repeat_are_those_of_the_request(
    clients, provider, books, stream, tools, item, used, echo
):
    body = {**RESPONSE, "output": [item, WORDS], **echo}
    if stream:
        provider.answer(events=list(streamed(body)))
    else:
        provider.answer(body=body)
    answer = clients.openai().responses.create(model="gpt-5", input="Find.", tools=tools, stream=stream)
    if stream:
        list(answer)
    assert meters(books) == used


@pytest.mark.needs("openai.resources.responses:Responses")
def test_tools_that_a_host_repeats_go_before_those_of_the_request(clients, provider, books):
    provider.answer(body={**RESPONSE, "output": [SEARCHED, WORDS], "tools": [SEARCH]})
    clients.openai().responses.create(model="gpt-5", input="Find.", tools=[PREVIEW])
    assert meters(books) == {"web_searches": 1}


def instead_of(provider):
    """An HTTP client that sends what is meant for a host of the internet to the fake provider."""
    port = int(provider.openai_url.rpartition(":")[2].partition("/")[0])

    def turn(request):
        request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=port)

    return openai.DefaultHttpxClient(verify=False, event_hooks={"request": [turn]})


@pytest.mark.parametrize(
    ("asked", "said", "used"),
    [
        ("high", None, "requests_high"),
        ("medium", None, "requests_medium"),
        ("high", "low", "requests_low"),
        (None, None, "requests_low"),
    ],
)
def test_the_size_of_a_search_is_what_was_asked_for_where_the_answer_names_none(
    clients, provider, books, asked, said, used
):
    usage = {"prompt_tokens": 100, "completion_tokens": 200, "total_tokens": 300}
    message = {"role": "assistant", "content": "Found."}
    provider.answer(
        times=2,
        body={
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": "sonar-pro",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": usage | ({"search_context_size": said} if said else {}),
        },
    )
    client = clients.openai(base_url="https://api.perplexity.ai", http_client=instead_of(provider))
    options = {"extra_body": {"web_search_options": {"search_context_size": asked}}} if asked else {}
    for _ in range(2):  # the general way, and by a plan
        client.chat.completions.create(model="sonar-pro", messages=[{"role": "user", "content": "Find."}], **options)
    assert meters(books) == {used: 2}
    assert all(("request_size_assumed" in one.flags) is (not asked and not said) for one in books.all())


def message(usage):
    content = [{"type": "text", "text": "Hello"}]
    body = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-5", "content": content}
    return {**body, "stop_reason": "end_turn", "stop_sequence": None, "usage": usage}


WRITTEN = {"input_tokens": 10, "output_tokens": 5, "cache_creation_input_tokens": 2000, "cache_read_input_tokens": 0}
HOUR = {"type": "ephemeral", "ttl": "1h"}
SHORT = {"type": "ephemeral"}


@pytest.mark.parametrize(
    ("marks", "split", "used"),
    [
        ([HOUR], None, "cache_write_1h"),
        ([HOUR, HOUR], None, "cache_write_1h"),
        ([SHORT], None, "cache_write_5m"),
        ([HOUR, SHORT], None, "cache_write_5m"),
        ([HOUR], {"ephemeral_5m_input_tokens": 2000, "ephemeral_1h_input_tokens": 0}, "cache_write_5m"),
    ],
    ids=["an hour", "two of an hour", "minutes", "both", "stated"],
)
def test_what_is_written_to_a_cache_lasts_as_long_as_the_request_says(clients, provider, books, marks, split, used):
    provider.answer(body=message(WRITTEN | ({"cache_creation": split} if split else {})))
    system = [{"type": "text", "text": "Long. " * 50, "cache_control": mark} for mark in marks]
    clients.anthropic().messages.create(
        model="claude-sonnet-5", max_tokens=50, system=system, messages=[{"role": "user", "content": "Hi"}]
    )
    assert meters(books) == {used: 2000}
    assert ("cache_ttl_assumed" in books.one().flags) is (len({mark.get("ttl") for mark in marks}) > 1)


def test_a_cache_of_an_hour_is_written_through_hosts_of_openais_format_too(clients, provider, books):
    usage = {"prompt_tokens": 2010, "completion_tokens": 5, "total_tokens": 2015}
    provider.answer(
        body={
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": "anthropic/claude-sonnet-5",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}],
            "usage": {**usage, "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 2000}},
        }
    )
    part = {"type": "text", "text": "Long. " * 50, "cache_control": HOUR}
    clients.openai(base_url="https://openrouter.ai/api/v1", http_client=instead_of(provider)).chat.completions.create(
        model="anthropic/claude-sonnet-5", messages=[{"role": "user", "content": [part]}]
    )
    assert meters(books) == {"cache_write_1h": 2000}


@pytest.mark.needs("anthropic.resources:Messages.create(inference_geo)")
@pytest.mark.parametrize("said", [None, "global", "us"])
def test_where_a_model_runs_is_what_was_asked_for_where_the_answer_does_not_say(clients, provider, books, said):
    usage = {"input_tokens": 1000, "output_tokens": 100} | ({"inference_geo": said} if said else {})
    provider.answer(body=message(usage))
    clients.anthropic().messages.create(
        model="claude-sonnet-5", max_tokens=50, inference_geo="us", messages=[{"role": "user", "content": "Hi"}]
    )
    entry = books.one()
    factor = Decimal("1.1") if said != "global" else Decimal(1)
    assert entry.charges[0].multipliers.get("geo", Decimal(1)) == factor


def test_an_advisor_that_does_not_name_itself_is_the_one_that_was_asked_for(clients, provider, books):
    iterations = [
        {"type": "message", "input_tokens": 100, "output_tokens": 10},
        {"type": "advisor_message", "input_tokens": 1000, "output_tokens": 50},
    ]
    provider.answer(body=message({"input_tokens": 100, "output_tokens": 10, "iterations": iterations}))
    tool = {"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-5"}
    clients.anthropic().messages.create(
        model="claude-sonnet-5", max_tokens=50, tools=[tool], messages=[{"role": "user", "content": "Hi"}]
    )
    assert {charge.model: charge.quantity for charge in books.one().charges if charge.sku_meter == "input"} == {
        "claude-sonnet-5": 100,
        "claude-opus-5": 1000,
    }


@pytest.mark.needs("openai.resources:Videos")
@pytest.mark.filterwarnings("ignore:The Sora API")
@pytest.mark.parametrize(
    ("asked", "said", "used"),
    [
        ({"seconds": "8", "size": "1024x1792"}, {}, {"seconds_video_1024p": 8}),
        ({"seconds": "8"}, {"size": "1024x1792"}, {"seconds_video_1024p": 8}),
        ({"seconds": "12", "size": "1024x1792"}, {"seconds": "8"}, {"seconds_video_1024p": 8}),
        ({}, {}, {"seconds_video": 4}),
    ],
    ids=json.dumps,
)
def test_a_video_is_as_long_and_as_large_as_it_was_asked_for(clients, provider, books, asked, said, used):
    body = {"id": "video_1", "object": "video", "status": "completed", "model": "sora-2-pro", "created_at": 1, **said}
    provider.answer(body=body)
    clients.openai().videos.create(model="sora-2-pro", prompt="The sea", **asked)
    assert meters(books) == used


class TestNamesThatTheSettingsMap:
    """What is counted goes by the model that a name stands for, as its price does."""

    @pytest.fixture
    def meter(self, priced):
        maps = {"*": {"my-voice": "tts-1", "house-voice": "gpt-4o-mini-tts"}}
        made = Meter(store=open_store("memory:"), pricer=Pricer(priced.pricer.price_list, Terms(model_maps=maps)))
        yield made
        made.close()

    @pytest.mark.parametrize(
        ("name", "counted"), [("my-voice", {"characters"}), ("house-voice", {"input", "output_audio"})]
    )
    def test_speech(self, clients, books, name, counted):
        spoken = clients.openai().audio.speech.create(model=name, voice="alloy", input="The sea is wide.")
        assert spoken.read()
        entry = books.one()
        assert entry.request_model == name
        assert set(entry.usage.quantities) == counted
        assert entry.cost_source == "estimated"  # no answer says it
        assert entry.list_cost > 0
        if counted == {"characters"}:
            assert entry.list_cost == Decimal("0.00024")  # 16 characters at $15 a million
