"""No type of either SDK carries usage that nobody reads. A new SDK that adds one fails here first."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from tokenmeter.call import RequestFacts
from tokenmeter.errors import PricingError
from tokenmeter.providers import dialect_for, observe, to_wire
from tokenmeter.providers.anthropic.dialect import AnthropicDialect
from tokenmeter.providers.openai.dialect import OpenAIDialect

BODIES = Path(__file__).parent / "bodies"
FIELD = re.compile(r"^    (\w*usage\w*|trained_tokens|list_cost|num_requests): ", re.MULTILINE)
CLASS = re.compile(r"^class (\w+)\(", re.MULTILINE)

#: Types whose usage is read inside the body that holds them, or alike under another name.
READ_WITHIN = {
    "AgentSession": "as Turn",
    "AgentSessionTurnCancelledEvent": "as Turn",
    "AgentSessionTurnCompletedEvent": "as Turn",
    "AgentSessionTurnFailedEvent": "as Turn",
    "BetaCompactedResponse": "as CompactedResponse",
    "BetaManagedAgentsSession": "anthropic_session.json, without a type: its agent is long",
    "BetaManagedAgentsSessionThread": "as BetaManagedAgentsSession",
    "BetaManagedAgentsSessionThreadUsage": "as BetaManagedAgentsSession",
    "BetaManagedAgentsSessionUsage": "in BetaManagedAgentsSession",
    "BetaManagedAgentsSessionUsageSnapshot": "in BetaManagedAgentsSessionUsageEvent",
    "BetaManagedAgentsSpanOutcomeEvaluationEndEvent": "as BetaManagedAgentsSpanModelRequestEndEvent",
    "BetaRawMessageDeltaEvent": "test_dialect_streams",
    "ChatCompletionChunk": "test_dialect_streams",
    "GraderRunResponse": "test_grader_runs_bill_each_judge",
    "ImageEditCompletedEvent": "as ImageGenCompletedEvent",
    "ImageGenerationCall": "in Response",
    "ParsedBetaMessage": "is a BetaMessage",
    "ParsedChatCompletion": "is a ChatCompletion",
    "ParsedMessage": "is a Message",
    "ParsedResponse": "is a Response",
    "PromptCachingBetaMessage": "is a Message; of Anthropic's oldest SDKs",
    "RawMessageDeltaEvent": "test_dialect_streams",
    "RunCancelResponse": "as RunCreateResponse",
    "RunCreateResponse": "openai_eval_run.json, without a type: its data source is long",
    "RunListResponse": "as RunCreateResponse",
    "RunRetrieveResponse": "as RunCreateResponse",
    "RunStep": "as Run",
    "Sample": "test_eval_samples_are_read",
    "SessionClosedEvent": "openai_live_closed.json, without a type: its session is long",
    "ToolUsage": "in Response",
    "ToolUsageWebSearch": "in Response",
}
#: Types whose field of that name is no bill.
NO_BILL = {
    "ContextWindow": "a ratio",
    "Metadata": "one number over all of a grader's models, itemised beside it",
    "RealtimeResponse": "openai_realtime_cached_unsplit.json",
    "VectorStore": "bytes of storage",
    "VectorStoreFile": "bytes of storage",
}


def types_with_usage(sdk):
    folder = Path(importlib.util.find_spec(sdk).origin).parent / "types"
    for path in folder.rglob("*.py"):
        inner = path.relative_to(folder).parts
        if "organization" in inner or path.stem.endswith(("_params", "_param")):
            continue
        source = path.read_text()
        for field in FIELD.finditer(source):
            owners = [match for match in CLASS.finditer(source) if match.start() < field.start()]
            if owners:
                yield owners[-1].group(1)


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
def test_every_usage_bearing_type_of_the_sdk_is_read(sdk):
    with_body = {(json.loads(path.read_text())["sdk_type"] or "").rpartition(".")[2] for path in BODIES.glob("*.json")}
    unread = set(types_with_usage(sdk)) - with_body - READ_WITHIN.keys() - NO_BILL.keys()
    assert not unread, "add a body for it, or say where it is read"


def test_eval_samples_are_read():
    usage = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105, "cached_tokens": 60}
    body = {"object": "eval.run.output_item", "id": "o", "sample": {"model": "gpt-4.1", "usage": usage}}
    seen = observe(body, provider="openai", endpoint="evals.runs.output_items")
    assert dict(seen.usage.quantities) == {"input": 40, "cache_read": 60, "output": 5}
    assert seen.consumptions[0].model == "gpt-4.1"


def test_grader_runs_bill_each_judge():
    judged = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    body = {"reward": 1.0, "metadata": {}, "model_grader_token_usage_per_model": {"gpt-4.1": judged, "o4-mini": judged}}
    seen = observe(body, provider="openai", endpoint="fine_tuning.alpha.graders.run")
    assert [group.model for group in seen.consumptions] == ["gpt-4.1", "o4-mini"]
    free = observe(
        {**body, "model_grader_token_usage_per_model": {}}, provider="openai", endpoint="fine_tuning.alpha.graders.run"
    )
    assert not free.billable


@pytest.mark.parametrize("garbage", [None, 7, "no json", object(), [], {}, b"\xff\xfe"])
def test_garbage_is_an_error_that_says_what_to_pass(garbage):
    with pytest.raises(PricingError, match=r"pass what the SDK returned"):
        observe(garbage, provider="openai", endpoint="chat.completions")


def test_amounts_keep_every_digit_of_the_text():
    usage = '{"prompt_tokens":1,"completion_tokens":1,"cost":0.1234567890123456789}'
    body = f'{{"object":"chat.completion","model":"m","choices":[],"usage":{usage}}}'
    seen = observe(body, provider="openrouter", endpoint="chat.completions")
    assert str(seen.consumptions[0].supplied_cost.amount) == "0.1234567890123456789"


def test_many_lines_are_many_bills_in_one():
    """A whole results file can be priced at once."""
    usage = {"input_tokens": 10, "output_tokens": 1}
    message = {"id": "m", "type": "message", "model": "claude-opus-5", "content": [1], "usage": usage}
    lines = [
        {"custom_id": "a", "result": {"type": "succeeded", "message": message}},
        {"custom_id": "b", "result": {"type": "errored", "error": {}}},
        {"custom_id": "c", "result": {"type": "succeeded", "message": message}},
    ]
    seen = observe(lines, provider="anthropic", endpoint="messages.batches.results")
    assert dict(seen.usage.quantities) == {"input": 20, "output": 2}
    assert {group.processing for group in seen.consumptions} == {"batch"}


def test_dialects_are_chosen_by_endpoint_then_provider():
    assert isinstance(dialect_for("anthropic", "messages"), AnthropicDialect)
    assert isinstance(dialect_for("openrouter", "messages"), AnthropicDialect)
    assert isinstance(dialect_for("anthropic", "chat.completions"), OpenAIDialect)
    assert isinstance(dialect_for("vertex", "beta.messages"), AnthropicDialect)
    assert isinstance(dialect_for("openai", "beta.threads.runs"), OpenAIDialect)


def test_to_wire_takes_dataclasses_mappings_and_text():
    from collections import OrderedDict
    from dataclasses import dataclass

    @dataclass
    class Answer:
        model: str
        parts: tuple

    assert to_wire(Answer("m", (1, OrderedDict(a=2)))) == {"model": "m", "parts": [1, {"a": 2}]}
    assert to_wire('{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize(
    ("asked", "billed"),
    [("auto", None), ("standard_only", "default"), ("fast", "priority"), ("flex", "flex"), (None, None)],
)
def test_tier_asked_for_counts_where_the_answer_names_none(asked, billed):
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    seen = observe(usage, provider="openai", endpoint="chat.completions", model="m", service_tier=asked)
    assert seen.consumptions[0].service_tier == billed


class TestPolling:
    """Live calls: what may still grow is left out, and what was billed is not billed again."""

    dialect = OpenAIDialect()

    def read(self, body, endpoint):
        return self.dialect.read(body, provider="openai", endpoint=endpoint, request=RequestFacts())

    def response(self, **fields):
        usage = {"input_tokens": 10, "output_tokens": 1, "total_tokens": 11}
        return {"id": "resp_1", "object": "response", "model": "m", "status": "completed", "usage": usage, **fields}

    def test_a_background_response_is_billed_when_retrieved(self):
        seen = self.read(self.response(background=True), "responses.retrieve")
        assert (seen.billable, seen.deduplicate, seen.response_id) == (True, True, "resp_1")

    def test_any_other_response_was_billed_when_it_was_made(self):
        seen = self.read(self.response(), "responses.retrieve")
        assert (seen.billable, seen.consumptions) == (False, ())

    @pytest.mark.parametrize(
        ("body", "endpoint"),
        [
            ({"id": "b", "object": "batch", "status": "in_progress", "usage": {"input_tokens": 3}}, "batches.retrieve"),
            ({"id": "f", "object": "fine_tuning.job", "status": "running"}, "fine_tuning.jobs.retrieve"),
            ({"id": "v", "object": "video", "status": "queued", "seconds": "8"}, "videos"),
            ({"id": "r", "object": "thread.run", "status": "queued", "usage": None}, "beta.threads.runs.retrieve"),
        ],
    )
    def test_what_is_under_way_is_no_bill_yet_and_shuts_out_nothing(self, body, endpoint):
        seen = self.read(body, endpoint)
        assert (seen.billable, seen.consumptions, seen.deduplicate) == (False, (), False)
        assert seen.flags == {"not_final"}

    @pytest.mark.parametrize("status", ["idle", "running", "rescheduling", "terminated"])
    def test_a_session_of_agents_states_a_running_total_whatever_its_status(self, status):
        body = {"id": "s", "type": "session", "status": status, "usage": {}}
        read = AnthropicDialect().read
        seen = read(body, provider="anthropic", endpoint="beta.sessions.retrieve", request=RequestFacts())
        assert not seen.billable
        body["usage"] = {"input_tokens": 3, "output_tokens": 1}
        seen = read(body, provider="anthropic", endpoint="beta.sessions.retrieve", request=RequestFacts())
        assert (seen.billable, seen.reading, seen.usage["input"]) == (True, "total", 3)

    def test_a_finished_batch_without_usage_is_written_down_as_unknown(self):
        seen = self.read({"id": "b", "object": "batch", "status": "completed", "model": "m"}, "batches.retrieve")
        assert seen.flags == {"usage_unknown"}
        assert seen.consumptions
        assert seen.deduplicate


class TestWithoutUsage:
    """With the request at hand a missing usage is estimated, and says so."""

    dialect = OpenAIDialect()

    def test_chat(self):
        message = {"role": "assistant", "content": "x" * 40, "tool_calls": [{"function": {"arguments": "y" * 8}}]}
        body = {"id": "c", "object": "chat.completion", "model": "m", "choices": [{"message": message}]}
        facts = RequestFacts(model="m", input_bytes=400, image_count=1)
        seen = self.dialect.read(body, provider="somebody", endpoint="chat.completions", request=facts)
        assert dict(seen.usage.quantities) == {"input": 1100, "output": 12}
        assert seen.flags == {"estimated"}

    def test_speech_by_the_character(self):
        facts = RequestFacts(model="tts-1-hd", pieces={"characters": 120}, input_bytes=130)
        seen = self.dialect.read(None, provider="openai", endpoint="audio.speech", request=facts)
        assert dict(seen.usage.quantities) == {"characters": 120}
        assert seen.flags == {"estimated"}

    @pytest.mark.parametrize("endpoint", ["audio.transcriptions", "audio.translations"])
    def test_a_transcription_as_text_is_unknown(self, endpoint):
        facts = RequestFacts(model="whisper-1")
        seen = self.dialect.read("1\n00:00 --> 00:01\nhi", provider="openai", endpoint=endpoint, request=facts)
        assert (seen.flags, seen.response_model) == ({"usage_unknown"}, "whisper-1")


def test_every_flag_is_documented():
    import tokenmeter.providers

    folder = Path(tokenmeter.providers.__file__).parent
    source = "".join(path.read_text() for path in folder.rglob("*.py"))
    flags = set(re.findall(r'flags\.add\("(\w+)"\)|frozenset\(\{"(\w+)"\}\)|flags \| \{"(\w+)"\}', source))
    names = {name for found in flags for name in found if name} - {"openrouter", "error"}
    manual = Path(__file__).parents[2].joinpath("docs/reference/usage.md").read_text()
    assert names
    assert not {name for name in names if f"`{name}`" not in manual}
