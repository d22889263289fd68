"""A count nobody said is unknown, never zero: on every endpoint, streamed or not, with and without the request."""

from __future__ import annotations

from decimal import Decimal

import pytest

import tokenmeter
from tokenmeter.call import RequestFacts
from tokenmeter.errors import PricingError
from tokenmeter.providers import dialect, dialect_for, observe
from tokenmeter.providers.registry import FORMATS

WORDS = "x" * 400  # 100 tokens by estimate
REQUEST = RequestFacts(model="m", input_bytes=4000)  # 1,000 tokens by estimate

#: endpoint -> (a body whose answer has `WORDS` in it, its names for input, output and total).
ANSWERS = {
    "chat.completions": (
        {"object": "chat.completion", "choices": [{"message": {"content": WORDS}, "finish_reason": "stop"}]},
        ("prompt_tokens", "completion_tokens", "total_tokens"),
    ),
    "completions": (
        {"object": "text_completion", "choices": [{"text": WORDS, "finish_reason": "stop"}]},
        ("prompt_tokens", "completion_tokens", "total_tokens"),
    ),
    "responses": (
        {
            "object": "response",
            "status": "completed",
            "output": [{"type": "message", "content": [{"type": "output_text", "text": WORDS}]}],
        },
        ("input_tokens", "output_tokens", "total_tokens"),
    ),
    "messages": (
        {"type": "message", "stop_reason": "end_turn", "content": [{"type": "text", "text": WORDS}]},
        ("input_tokens", "output_tokens", None),
    ),
    "beta.messages": (
        {"type": "message", "stop_reason": "end_turn", "content": [{"type": "thinking", "thinking": WORDS}]},
        ("input_tokens", "output_tokens", None),
    ),
}
MISSING = object()
#: What a host may send in place of a usage object.
NOTHING = {
    "missing": MISSING,
    "null": None,
    "empty": {},
    "unknown names": {"tokens": 1000},
    "text": "900",
    "a list": [1, 2],
    "a number": 900,
}
#: What a host may send in place of a count.
NO_COUNT = [None, -5, 900.5, True, "many", "", {}, [], 10**13, float("inf"), float("nan"), "9" * 100, Decimal("0.1")]


def body_of(endpoint, usage):
    body, _ = ANSWERS[endpoint]
    return {"id": "r", "model": "m", **body, **({} if usage is MISSING else {"usage": usage})}


def usage_of(endpoint, *, prompt, answer):
    names = ANSWERS[endpoint][1]
    return dict(zip(names[:2], (prompt, answer), strict=True))


def read(endpoint, body, request=REQUEST, provider="somebody"):
    return dialect_for(provider, endpoint).read(body, provider=provider, endpoint=endpoint, request=request)


def events_of(endpoint, usage):
    """The same answer as a stream; the usage comes where the provider puts it."""
    sent = {} if usage is MISSING else {"usage": usage}
    if endpoint.endswith("messages"):
        name = "thinking" if endpoint.startswith("beta") else "text"
        return [
            {"type": "message_start", "message": {"type": "message", "id": "r", "model": "m", **sent}},
            {"type": "content_block_start", "content_block": {"type": name}},
            {"type": "content_block_delta", "delta": {"type": f"{name}_delta", name: WORDS}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, **sent},
            {"type": "message_stop"},
        ]
    if endpoint == "responses":
        return [
            {"type": "response.created", "response": {"id": "r", "model": "m"}},
            {"type": "response.output_text.delta", "delta": WORDS},
            {"type": "response.completed", "response": {**body_of(endpoint, usage), "output": []}},
        ]
    piece = {"text": WORDS} if endpoint == "completions" else {"delta": {"content": WORDS}}
    return [
        {"id": "r", "model": "m", "choices": [piece]},
        {"id": "r", "model": "m", "choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"id": "r", "model": "m", "choices": [], **sent},
    ]


def streamed(endpoint, usage, request=REQUEST):
    reader = dialect_for("somebody", endpoint).stream(provider="somebody", endpoint=endpoint, request=request)
    for event in events_of(endpoint, usage):
        reader.feed(event)
    assert reader.terminal
    return reader.observation()


@pytest.fixture(params=["whole", "streamed"])
def seen(request):
    if request.param == "streamed":
        return streamed
    return lambda endpoint, usage, facts=REQUEST: read(endpoint, body_of(endpoint, usage), facts)


@pytest.mark.parametrize("endpoint", ANSWERS)
class TestLive:
    """With the request at hand what nobody said is estimated, and flagged."""

    @pytest.mark.parametrize("usage", NOTHING.values(), ids=NOTHING)
    def test_no_usage_is_estimated_on_both_sides(self, endpoint, usage, seen):
        found = seen(endpoint, usage)
        assert dict(found.usage.quantities) == {"input": 1000, "output": 100}
        assert "estimated" in found.flags

    def test_zeros_beside_content_are_no_usage(self, endpoint, seen):
        found = seen(endpoint, usage_of(endpoint, prompt=0, answer=0))
        assert dict(found.usage.quantities) == {"input": 1000, "output": 100}
        assert "estimated" in found.flags

    @pytest.mark.parametrize("wrong", NO_COUNT, ids=str)
    def test_a_side_that_is_no_count_is_estimated_and_the_other_stands(self, endpoint, wrong, seen):
        found = seen(endpoint, usage_of(endpoint, prompt=wrong, answer=7))
        assert dict(found.usage.quantities) == {"input": 1000, "output": 7}
        assert "estimated" in found.flags
        found = seen(endpoint, usage_of(endpoint, prompt=70, answer=wrong))
        assert dict(found.usage.quantities) == {"input": 70, "output": 100}
        assert "estimated" in found.flags
        assert ("malformed_count" in found.flags) == (wrong is not None)

    @pytest.mark.parametrize("dressed", ["900", 900.0, Decimal("9E+2"), "900.0", " 900 "], ids=repr)
    def test_an_integer_in_another_dress_is_that_integer(self, endpoint, dressed, seen):
        found = seen(endpoint, usage_of(endpoint, prompt=dressed, answer=dressed))
        assert dict(found.usage.quantities) == {"input": 900, "output": 900}
        assert found.flags == {"nonstandard_count"}

    def test_an_error_with_a_success_status_is_estimated(self, endpoint):
        body = {"error": {"message": "upstream failed", "code": 502}}
        found = read(endpoint, {"type": "error", **body} if "messages" in endpoint else body)
        assert dict(found.usage.quantities) == {"input": 1000}
        assert found.flags == {"estimated"}
        assert found.billable

    @pytest.mark.parametrize("body", [None, "<html>log in</html>", 7, b"\x00"], ids=repr)
    def test_an_answer_that_is_no_json_object_is_estimated(self, endpoint, body):
        found = read(endpoint, body)
        assert found.usage["input"] == 1000
        assert found.flags == {"estimated"}

    def test_what_was_said_is_not_doubted(self, endpoint, seen):
        found = seen(endpoint, usage_of(endpoint, prompt=70, answer=7))
        assert dict(found.usage.quantities) == {"input": 70, "output": 7}
        assert not found.flags


@pytest.mark.parametrize("endpoint", ANSWERS)
class TestBodyAlone:
    """Without the request a prompt nobody stated leaves the bill unknown; content still tells of the answer."""

    @pytest.mark.parametrize("usage", NOTHING.values(), ids=NOTHING)
    def test_no_usage_is_unknown(self, endpoint, usage):
        found = observe(body_of(endpoint, usage), provider="somebody", endpoint=endpoint)
        assert "usage_unknown" in found.flags
        assert not found.usage

    def test_zeros_beside_content_are_unknown(self, endpoint):
        zeros = usage_of(endpoint, prompt=0, answer=0)
        found = observe(body_of(endpoint, zeros), provider="somebody", endpoint=endpoint)
        assert "usage_unknown" in found.flags

    @pytest.mark.parametrize("wrong", NO_COUNT, ids=str)
    def test_a_prompt_that_is_no_count_is_unknown(self, endpoint, wrong):
        usage = usage_of(endpoint, prompt=wrong, answer=7)
        found = observe(body_of(endpoint, usage), provider="somebody", endpoint=endpoint)
        assert "usage_unknown" in found.flags

    def test_the_answer_is_estimated_from_its_content(self, endpoint):
        usage = usage_of(endpoint, prompt=70, answer=None)
        found = observe(body_of(endpoint, usage), provider="somebody", endpoint=endpoint)
        assert dict(found.usage.quantities) == {"input": 70, "output": 100}
        assert found.flags == {"estimated"}

    def test_an_error_is_unknown(self, endpoint):
        found = observe({"error": {"message": "no"}}, provider="somebody", endpoint=endpoint)
        assert found.flags == {"usage_unknown"}


class TestSides:
    """What one total and one side say about the other."""

    @pytest.mark.parametrize(
        ("usage", "prompt", "answer"),
        [
            ({"prompt_tokens": 70, "total_tokens": 77}, 70, 7),
            ({"completion_tokens": 7, "total_tokens": 77}, 70, 7),
            ({"completion_tokens": 7, "prompt_tokens": -1, "total_tokens": 77}, 70, 7),
        ],
    )
    def test_a_side_that_follows_from_the_total_is_not_estimated(self, usage, prompt, answer):
        found = read("chat.completions", body_of("chat.completions", usage))
        assert dict(found.usage.quantities) == {"input": prompt, "output": answer}

    def test_a_total_alone_does_not_say_what_it_is_of_but_how_much_there_was(self):
        """Its two sides are shared out as their estimates are, 1,000 to 100."""
        found = read("chat.completions", body_of("chat.completions", {"total_tokens": 5500}))
        assert dict(found.usage.quantities) == {"input": 5000, "output": 500}
        assert found.flags == {"estimated"}

    def test_of_embeddings_a_total_alone_is_the_input(self):
        body = {"object": "list", "model": "m", "data": [{}], "usage": {"total_tokens": 50}}
        found = read("embeddings", body)
        assert dict(found.usage.quantities) == {"input": 50}
        assert not found.flags

    @pytest.mark.parametrize("usage", [MISSING, None, {}, {"prompt_tokens": 0, "total_tokens": 0}, {"tokens": 5}])
    def test_embeddings_without_usage_are_estimated(self, usage):
        body = {"object": "list", "model": "m", "data": [{"embedding": [0.1]}]}
        found = read("embeddings", body if usage is MISSING else {**body, "usage": usage})
        assert dict(found.usage.quantities) == {"input": 1000}
        assert found.flags == {"estimated"}

    def test_an_answer_without_content_may_have_no_output(self):
        body = {"object": "chat.completion", "model": "m", "choices": [{"message": {"content": ""}}]}
        found = read("chat.completions", {**body, "usage": {"prompt_tokens": 70, "completion_tokens": 0}})
        assert dict(found.usage.quantities) == {"input": 70}
        assert not found.flags

    def test_a_call_of_a_tool_is_content(self):
        call = {"function": {"name": "look_up", "arguments": "{}"}}
        body = {"object": "chat.completion", "model": "m", "choices": [{"message": {"tool_calls": [call]}}]}
        found = read("chat.completions", {**body, "usage": {"prompt_tokens": 70, "completion_tokens": 0}})
        assert dict(found.usage.quantities) == {"input": 70, "output": 3}
        assert found.flags == {"estimated"}

    def test_a_cached_prompt_is_a_prompt(self):
        usage = {"input_tokens": 0, "cache_read_input_tokens": 50, "output_tokens": 5}
        found = read("messages", body_of("messages", usage))
        assert dict(found.usage.quantities) == {"cache_read": 50, "output": 5}
        assert not found.flags

    def test_a_part_that_is_no_count_makes_the_rest_an_estimate(self):
        usage = {"prompt_tokens": 70, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": -1}}
        found = read("chat.completions", body_of("chat.completions", usage))
        assert dict(found.usage.quantities) == {"input": 70, "output": 7}
        assert found.flags == {"malformed_count", "estimated"}


class TestStreams:
    """Counts are cumulative: the last word stands, but a null or a later 0 is no news."""

    def test_a_later_zero_does_not_undo_what_a_message_began_with(self):
        reader = dialect_for("anthropic", "messages").stream(
            provider="anthropic", endpoint="messages", request=RequestFacts(model="m", input_bytes=8)
        )
        start = {"input_tokens": 120, "cache_read_input_tokens": 30, "output_tokens": 1}
        reader.feed({"type": "message_start", "message": {"type": "message", "id": "r", "model": "m", "usage": start}})
        delta = {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 8}
        reader.feed({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": delta})
        found = reader.observation()
        assert dict(found.usage.quantities) == {"input": 120, "cache_read": 30, "output": 8}
        assert not found.flags

    def test_a_later_zero_does_not_undo_a_chat_chunk(self):
        reader = dialect_for("somebody", "chat.completions").stream(
            provider="somebody", endpoint="chat.completions", request=RequestFacts(model="m", input_bytes=8)
        )
        usage = {"prompt_tokens": 120, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": 100}}
        reader.feed({"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}], "usage": usage})
        reader.feed({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}})
        assert dict(reader.observation().usage.quantities) == {"input": 20, "cache_read": 100, "output": 8}

    def test_a_later_zero_does_not_undo_what_a_chunk_of_google_said(self):
        reader = dialect_for("google", "models.generate_content").stream(
            provider="google", endpoint="models.generate_content", request=RequestFacts(model="m", input_bytes=8)
        )
        reader.feed({"usageMetadata": {"promptTokenCount": 120, "cachedContentTokenCount": 100}})
        last = {"promptTokenCount": 0, "cachedContentTokenCount": 0, "candidatesTokenCount": 8, "totalTokenCount": 128}
        reader.feed({"candidates": [{"finishReason": "STOP"}], "usageMetadata": last})
        assert dict(reader.observation().usage.quantities) == {"input": 20, "cache_read": 100, "output": 8}

    @pytest.mark.parametrize("endpoint", ANSWERS)
    def test_a_stream_that_ends_in_an_error_is_estimated(self, endpoint):
        reader = dialect_for("somebody", endpoint).stream(provider="somebody", endpoint=endpoint, request=REQUEST)
        for event in events_of(endpoint, MISSING)[:-2]:
            reader.feed(event)
        reader.feed({"type": "error", "error": {"message": "overloaded"}})
        found = reader.observation()
        assert found.usage["input"] == 1000
        assert found.flags == {"estimated"}


class TestOtherEndpoints:
    """Bodies that sum up, or count something else than tokens."""

    @pytest.mark.parametrize(
        ("endpoint", "body"),
        [
            ("batches", {"object": "batch", "status": "completed", "request_counts": {"completed": 3}}),
            (
                "batches",
                {
                    "object": "batch",
                    "status": "completed",
                    "request_counts": {"completed": 3},
                    "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0},
                },
            ),
            ("fine_tuning.jobs", {"object": "fine_tuning.job", "status": "succeeded", "trained_tokens": 0}),
            ("fine_tuning.jobs", {"object": "fine_tuning.job", "status": "succeeded", "trained_tokens": "x"}),
            ("beta.threads.runs", {"object": "thread.run", "status": "completed", "usage": {"prompt_tokens": 0}}),
            (
                "beta.threads.runs",
                {
                    "object": "thread.run",
                    "status": "completed",
                    "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
                },
            ),
            ("videos", {"object": "video", "status": "completed", "seconds": "0"}),
            ("videos", {"object": "video", "status": "completed", "seconds": "long"}),
            ("realtime", {"type": "response.done", "response": {"status": "completed", "output": [{}]}}),
            (
                "realtime",
                {
                    "type": "response.done",
                    "response": {
                        "status": "completed",
                        "output": [{}],
                        "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0},
                    },
                },
            ),
            ("audio.transcriptions", {"text": "hello", "usage": {"input_tokens": 0, "output_tokens": 0}}),
            ("audio.transcriptions", {"text": "hello", "usage": {"seconds": 0}}),
            ("audio.transcriptions", {"text": "hello", "usage": {"tokens": 4}}),
            ("beta.dreams", {"type": "dream", "status": "completed", "usage": {}}),
            ("/v1/rerank", {"results": [], "usage": {"units": 3}}),
            ("/v1/rerank", {"results": [], "meta": {"billed_units": {"classifications": 1}}}),
        ],
    )
    def test_what_nobody_said_is_unknown(self, endpoint, body):
        provider = "anthropic" if "dreams" in endpoint else "openai"
        found = read(endpoint, {"id": "r", "model": "m", **body}, RequestFacts(model="m"), provider)
        assert "usage_unknown" in found.flags
        assert found.billable

    @pytest.mark.parametrize(
        "status", ["QUEUED", "VALIDATED", "STARTED", "RUNNING", "CANCELLATION_REQUESTED", "running"]
    )
    @pytest.mark.parametrize("kind", ["fine_tuning.job", "batch"])
    def test_work_under_way_is_no_bill_however_its_host_writes_that(self, kind, status):
        body = {"object": kind, "id": "r", "model": "m", "status": status, "trained_tokens": None}
        endpoint = "batches.retrieve" if kind == "batch" else "fine_tuning.jobs.retrieve"
        assert not read(endpoint, body, RequestFacts(model="m"), "mistral").billable

    def test_a_batch_that_was_done_has_used_something(self):
        body = {"object": "batch", "id": "r", "model": "m", "status": "SUCCESS"}
        assert "usage_unknown" in read("batches.retrieve", body, RequestFacts(model="m"), "mistral").flags

    @pytest.mark.parametrize("status", ["failed", "cancelled", "expired"])
    def test_a_run_that_failed_may_have_used_nothing(self, status):
        body = {"object": "thread.run", "status": status, "usage": {"prompt_tokens": 0, "completion_tokens": 0}}
        found = read("beta.threads.runs", {"id": "r", "model": "m", **body})
        assert not found.flags
        assert not found.usage

    @pytest.mark.parametrize("usage", [None, {}, {"input_tokens": 0, "output_tokens": 0}, {"input_tokens": "x"}])
    def test_pictures_without_usage_are_counted(self, usage):
        body = {"created": 1, "data": [{"b64_json": "aGk="}, {"b64_json": "aGk="}], "usage": usage}
        found = read("images.generate", body, RequestFacts(model="dall-e-3"))
        assert dict(found.usage.quantities) == {"images": 2}

    def test_speech_without_usage_is_estimated(self):
        request = RequestFacts(model="gpt-4o-mini-tts", pieces={"characters": 300}, input_bytes=304)
        body = {"type": "speech.audio.done", "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}}
        found = read("audio.speech", body, request)
        assert dict(found.usage.quantities) == {"input": 76, "output_audio": 420}
        assert found.flags == {"estimated"}


@pytest.mark.parametrize(
    ("provider", "endpoint", "body"),
    [
        ("openai", "chat.completions", {"usage": {"tokens": 1000}}),
        ("openai", "responses", {"object": "response", "status": "completed", "output": []}),
        ("openai", "batches", {"object": "batch", "status": "completed", "id": "b"}),
        ("anthropic", "messages", {"type": "message", "content": [{"type": "text", "text": "hi"}]}),
        ("anthropic", "messages", {"type": "error", "error": {"type": "overloaded_error"}}),
        ("google", "models.generate_content", {"usageMetadata": {"candidatesTokenCount": 3}}),
    ],
)
def test_an_unknown_bill_has_no_cost_at_all(provider, endpoint, body):
    rating = tokenmeter.price({"model": "gpt-5", **body}, provider=provider, endpoint=endpoint)
    assert (rating.list_cost, rating.billed_cost, rating.cost_source) == (None, None, "unpriced")
    assert "usage_unknown" in rating.flags


def test_a_total_that_is_no_count_leaves_the_parts_as_they_are():
    usage = {"prompt_tokens": 70, "completion_tokens": 7, "total_tokens": "?"}
    found = read("chat.completions", body_of("chat.completions", usage))
    assert dict(found.usage.quantities) == {"input": 70, "output": 7}
    assert found.flags == {"total_mismatch"}


def test_an_unknown_part_leaves_the_known_lines_priced_and_the_whole_unpriced():
    from datetime import UTC, datetime

    from tokenmeter.pricing import PriceList, Pricer

    body = {
        "object": "response",
        "status": "completed",
        "model": "gpt-5.4",
        "output": [{"type": "image_generation_call", "status": "completed"}],
        "usage": {"input_tokens": 1000, "output_tokens": 10, "total_tokens": 1010},
    }
    seen = observe(body, provider="openai", endpoint="responses")
    rating = Pricer(PriceList.load()).rate(
        seen, provider="openai", endpoint="responses", at=datetime(2026, 6, 1, tzinfo=UTC)
    )
    assert rating.cost_source == "unpriced"
    assert rating.list_cost == Decimal("0.00265")  # 1000 x 2.5 + 10 x 15 per million


class TestBounds:
    """Whatever a host sends, what is kept of it is of a bounded size, and says so."""

    @pytest.mark.parametrize("endpoint", ANSWERS)
    def test_a_name_without_end_is_shortened(self, endpoint, seen):
        del seen
        usage = usage_of(endpoint, prompt=70, answer=7)
        body = {**body_of(endpoint, usage), "model": "m" * 1_000_000, "id": "i" * 1_000_000}
        found = read(endpoint, body)
        assert len(found.response_model) == len(found.response_id) == 512
        assert len(found.consumptions[0].model) == 512
        assert "shortened" in found.flags
        assert dict(found.usage.quantities) == {"input": 70, "output": 7}

    def test_iterations_without_end_are_summed_by_model(self):
        entry = {"type": "message", "input_tokens": 2, "output_tokens": 1}
        helper = {"type": "advisor_message", "model": "claude-haiku-4-5", "input_tokens": 3, "output_tokens": 1}
        usage = {"input_tokens": 2_000, "output_tokens": 1_000, "iterations": [entry, helper] * 1_000}
        found = read("beta.messages", body_of("beta.messages", usage))
        assert {(group.model, group.role): dict(group.usage.quantities) for group in found.consumptions} == {
            ("m", "message"): {"input": 2_000, "output": 1_000},
            ("claude-haiku-4-5", "advisor_message"): {"input": 3_000, "output": 1_000},
        }
        assert "groups_put_together" in found.flags

    def test_models_without_end_are_one_that_nobody_knows(self):
        helpers = [
            {"type": "advisor_message", "model": f"m{number}", "input_tokens": 3, "output_tokens": 1}
            for number in range(5_000)
        ]
        usage = {"input_tokens": 2, "output_tokens": 1, "iterations": helpers}
        found = read("beta.messages", body_of("beta.messages", usage))
        assert len(found.consumptions) == 100
        assert dict(found.usage.quantities) == {"input": 15_002, "output": 5_001}
        assert found.consumptions[-1].model is None

    def test_containers_without_end_are_so_many_bills_and_one(self):
        calls = [
            {"type": "code_interpreter_call", "status": "completed", "container_id": f"c{number}"}
            for number in range(5_000)
        ]
        body = {**body_of("responses", usage_of("responses", prompt=7, answer=7)), "id": "r", "output": calls}
        found = read("responses", body, provider="openai")
        assert len(found.shared) == 100
        assert len({bill.bill_id for bill in found.shared}) == 100
        assert found.with_shared().usage["container_sessions"] == 5_000
        assert "groups_put_together" in found.flags

    @pytest.mark.parametrize("nest", [lambda inner: [inner], lambda inner: {"content": inner}], ids=["list", "object"])
    def test_what_is_nested_without_end_is_no_body(self, nest):
        deep = nest("x")
        for _ in range(5_000):
            deep = nest(deep)
        with pytest.raises(PricingError, match="no response body"):
            observe(
                {**body_of("chat.completions", None), "choices": [deep]}, provider="openai", endpoint="chat.completions"
            )

    def test_what_is_read_by_hand_is_bounded_as_well(self):
        usage = {
            "input_tokens": 2,
            "output_tokens": 1,
            "iterations": [{"type": "message", "model": f"m{n}"} for n in range(500)],
        }
        found = observe(
            {**body_of("beta.messages", usage), "model": "m" * 1_000}, provider="anthropic", endpoint="messages"
        )
        assert len(found.consumptions) <= 100
        assert len(found.response_model) == 512

    @pytest.mark.parametrize("size", ["9" * 5_000 + "x9", "xxxx", "-1x-1", "1080x99999999999"])
    def test_a_size_without_end_is_no_meter(self, size):
        body = {"object": "video", "status": "completed", "id": "v", "model": "sora-2", "seconds": "8", "size": size}
        found = read("videos", body, provider="openai")
        assert all(len(meter) < 30 for meter in found.usage.quantities)
        assert sum(found.usage.quantities.values()) == 8

    def test_a_container_of_an_unheard_of_size_is_unpriced(self):
        call = {"type": "code_interpreter_call", "status": "completed", "container_id": "c"}
        tools = [{"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "g" * 1_000}}]
        body = {**body_of("responses", usage_of("responses", prompt=7, answer=7)), "output": [call], "tools": tools}
        found = observe(body, provider="openai", endpoint="responses").with_shared()
        assert found.usage["container_sessions_unknown"] == 1


@pytest.mark.parametrize("endpoint", ANSWERS)
@pytest.mark.parametrize("usage", [*NOTHING.values(), {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}])
def test_a_quick_reader_leaves_what_is_not_plain_to_this_one(endpoint, usage):
    plain = dialect_for("openai", endpoint).plain.get(endpoint)
    assert plain is None or plain(body_of(endpoint, usage)) is None
    for wrong in [*NO_COUNT, "900", 900.0]:
        for counts in ({"prompt": wrong, "answer": 7}, {"prompt": 7, "answer": wrong}):
            assert plain is None or plain(body_of(endpoint, usage_of(endpoint, **counts))) is None


#: Bodies of work that has ended, and of no kind at all.
NO_BODIES = [[1, [2]], ["x"], {"usage": [1]}, {"usage": 5}, {"usageMetadata": {}}, {"usageMetadata": [1]}, {"x": 1}]
#: Endpoints that no answer is billed by itself at, and by which such work is recorded by hand.
BY_HAND = {
    "openai": ["batches", "fine_tuning.jobs", "evals.runs", "beta.realtime", "rerank", "a.name.of.ones.own"],
    "anthropic": ["beta.messages", "beta.sessions", "beta.dreams", "messages.batches"],
    "google": ["operations.get", "tunings.get", "caches.create", "batches.get"],
}


@pytest.mark.parametrize("room", FORMATS)
def test_a_body_that_says_nothing_is_no_free_answer_wherever_it_is_read(room):
    for endpoint in sorted({*dialect(room).billed(), *BY_HAND[room]}):
        for body in NO_BODIES:
            seen = observe(body, provider=room, endpoint=endpoint, model="m")
            assert not any(group.usage for group in seen.consumptions), (endpoint, body)
            assert not seen.flags.isdisjoint({"usage_unknown", "not_final"}), (endpoint, body)


@pytest.mark.parametrize("room", FORMATS)
@pytest.mark.parametrize("body", [None, {}, {"id": "r", "model": "m", "data": "AAAA"}, "<html>"])
def test_what_an_endpoint_was_given_that_nobody_described_is_no_prompt(room, body):
    """One room estimated it from the length of the request, another said that nobody knows."""
    seen = read("/v1/new/thing", body, provider=room)
    assert ("usage_unknown" in seen.flags, bool(seen.usage), seen.billable) == (True, False, True)


@pytest.mark.parametrize("body", ["", "<html>", None, []])
@pytest.mark.parametrize("endpoint", ["models.edit_image", "models.generate_videos", "live.music", "caches.get"])
def test_what_is_not_made_in_words_is_not_estimated_in_words(endpoint, body):
    request = RequestFacts(model="m", input_bytes=4000, pieces={"images": 2})
    seen = dialect("google").read(body, provider="google", endpoint=endpoint, request=request)
    assert (seen.flags, bool(seen.usage)) == ({"usage_unknown"}, False)


@pytest.mark.parametrize(
    ("provider", "endpoint", "body"),
    [
        ("anthropic", "messages.count_tokens", {"input_tokens": 2095}),
        ("anthropic", "beta.messages.count_tokens", {"input_tokens": 2095}),
        ("openai", "responses.input_tokens.count", {"object": "response.input_tokens", "input_tokens": 11}),
        ("google", "models.count_tokens", {"totalTokens": 31}),
    ],
)
def test_a_count_of_what_was_not_asked_is_free_by_hand_as_well(provider, endpoint, body):
    rating = tokenmeter.price(body, provider=provider, endpoint=endpoint, model="gpt-5")
    assert (rating.charges, rating.cost_source, rating.flags) == ((), "none", frozenset())
