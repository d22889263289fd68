"""What is said of all rows holds where they do not say it themselves, whoever wrote them."""

import json
from copy import deepcopy
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

import tokenmeter
from tokenmeter.errors import ConfigurationError
from tokenmeter.importing import import_usage

MILLION = 1_000_000
TIME = "2026-11-10T10:00:00Z"
AT = datetime(2026, 11, 10, 10, tzinfo=UTC)
SUMS = {"input_tokens": MILLION, "cached_input_tokens": 0, "output_tokens": 10, "reasoning_output_tokens": 0}
USAGE = {"prompt_tokens": MILLION, "completion_tokens": 10, "total_tokens": MILLION + 10}

#: Source -> its rows, where they have the model, and where the time.
LOGS = {
    "litellm": (
        [
            {
                "request_id": "r1",
                "call_type": "acompletion",
                "spend": 0,
                "model": "gpt-5-mini",
                "custom_llm_provider": "openai",
                "endTime": TIME,
                "metadata": {"usage_object": USAGE},
                "prompt_tokens": MILLION,
                "completion_tokens": 10,
            }
        ],
        ("model",),
        ("endTime",),
    ),
    "langfuse": (
        [
            {
                "id": "l1",
                "type": "GENERATION",
                "trace_id": "t",
                "provided_model_name": "gpt-5-mini",
                "start_time": TIME,
                "usage_details": {"input": MILLION, "output": 10, "total": MILLION + 10},
            }
        ],
        ("provided_model_name",),
        ("start_time",),
    ),
    "helicone": (
        [
            {
                "request_id": "h1",
                "response_model": "gpt-5-mini",
                "provider": "OPENAI",
                "response_status": 200,
                "request_created_at": TIME,
                **USAGE,
            }
        ],
        ("response_model",),
        ("request_created_at",),
    ),
    "helicone with the body": (
        [
            {
                "request_id": "h1",
                "response_model": "gpt-5-mini",
                "provider": "OPENAI",
                "response_status": 200,
                "request_created_at": TIME,
                "response_body": {"id": "chatcmpl-1", "object": "chat.completion", "usage": USAGE},
            }
        ],
        ("response_model",),
        ("request_created_at",),
    ),
    "openrouter": (
        [
            {
                "generation_id": "g1",
                "tokens_prompt": MILLION,
                "tokens_completion": 10,
                "model_permaslug": "openai/gpt-5-mini",
                "created_at": TIME,
            }
        ],
        ("model_permaslug",),
        ("created_at",),
    ),
    "portkey": (
        [
            {
                "id": "p1",
                "ai_org": "openai",
                "ai_model": "gpt-5-mini",
                "req_units": MILLION,
                "res_units": 10,
                "created_at": TIME,
            }
        ],
        ("ai_model",),
        ("created_at",),
    ),
    "responses": (
        [{"id": "chatcmpl-9", "object": "chat.completion", "created": TIME, "model": "gpt-5-mini", "usage": USAGE}],
        ("model",),
        ("created",),
    ),
    "claude-code": (
        [
            {
                "type": "assistant",
                "timestamp": TIME,
                "sessionId": "s",
                "uuid": "u",
                "message": {
                    "id": "msg_1",
                    "model": "claude-haiku-4-5",
                    "usage": {"input_tokens": MILLION, "output_tokens": 10},
                },
            }
        ],
        ("message", "model"),
        ("timestamp",),
    ),
    "codex": (
        [
            {"timestamp": TIME, "type": "session_meta", "payload": {"id": "S", "timestamp": TIME}},
            {"timestamp": TIME, "type": "turn_context", "payload": {"model": "gpt-5-mini"}},
            {
                "timestamp": TIME,
                "type": "event_msg",
                "payload": {"type": "token_count", "info": {"total_token_usage": SUMS}},
            },
        ],
        ("payload", "model"),
        ("timestamp",),
    ),
    "gemini": (
        [
            {
                "sessionId": "s",
                "id": "m1",
                "type": "gemini",
                "timestamp": TIME,
                "model": "gemini-2.5-flash",
                "tokens": {"input": MILLION, "output": 10, "total": MILLION + 10},
            }
        ],
        ("model",),
        ("timestamp",),
    ),
    "opencode": (
        [
            {
                "id": "msg_1",
                "sessionID": "s",
                "role": "assistant",
                "modelID": "gpt-5-mini",
                "providerID": "openai",
                "time": {"created": TIME},
                "tokens": {"input": MILLION, "output": 10},
            }
        ],
        ("modelID",),
        ("time", "created"),
    ),
    "aider": (
        [
            {
                "event": "message_send",
                "time": 1794304800,
                "properties": {"main_model": "gpt-5-mini", "prompt_tokens": MILLION, "completion_tokens": 10},
            }
        ],
        ("properties", "main_model"),
        ("time",),
    ),
    "mapped": (
        [{"id": "x", "t": TIME, "m": "gpt-5-mini", "i": MILLION, "o": 10}],
        ("m",),
        ("t",),
    ),
}
MAP = {"id": "id", "time": "t?", "model": "m?", "input": "i", "output": "o"}
EVERY = pytest.mark.parametrize("log", LOGS)
#: Whose rows say who sold the call.
SAY_WHO = {"litellm", "helicone", "helicone with the body", "openrouter", "portkey", "opencode"}
#: Whose bodies say what was called.
SAY_ENDPOINT = {"helicone with the body"}


@pytest.fixture
def read(tmp_path):
    """`read(log, rows, **given)`: the outcome of an import into a new ledger, and its entries."""

    def run(log, rows, **given):
        path = tmp_path / "log.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        more = {"fields": MAP} if log == "mapped" else {"source": log.partition(" ")[0]}
        meter = tokenmeter.make_meter(store="memory:", config={})
        outcome = import_usage(meter, path, **{**more, **given})
        entries = list(meter.store.entries())
        meter.close()
        return outcome, entries

    return run


def without(rows, place):
    """The rows without what stands at a place, in those that have it."""
    bare = deepcopy(rows)
    for row in bare:
        *steps, last = place
        for step in steps:
            row = row.get(step, {})  # noqa: PLW2901 - down to what holds it
        row.pop(last, None)
    return bare


@EVERY
def test_a_batch_of_which_only_the_user_knows_is_priced_as_one(read, log):
    rows, _, _ = LOGS[log]
    (plain,), (batch,) = read(log, rows)[1], read(log, rows, processing="batch")[1]
    assert plain.list_cost
    if log == "openrouter":  # sells none, so that no price is known
        assert (batch.list_cost, "unpriced" in batch.cost_source) == (None, True)
    else:
        assert batch.list_cost * 2 == plain.list_cost


@EVERY
def test_the_model_of_rows_that_name_none_is_the_one_that_is_given(read, log):
    rows, place, _ = LOGS[log]
    model = {"claude-code": "claude-sonnet-5", "gemini": "gemini-2.5-pro", "openrouter": "openai/gpt-5"}.get(
        log, "gpt-5"
    )
    outcome, (entry,) = read(log, without(rows, place), model=model)
    assert (outcome.ok, entry.model, entry.cost_source) == (True, model, "computed")
    assert read(log, rows, model=model)[1][0].model != model, "what the rows say stays"


@EVERY
def test_the_moment_of_rows_that_tell_none_is_the_one_that_is_given(read, log):
    rows, _, place = LOGS[log]
    bare = without(without(rows, place), ("payload", "timestamp"))
    outcome, (entry,) = read(log, bare, at="2026-11-09T08:00:00Z")
    assert (outcome.ok, entry.occurred_at) == (True, datetime(2026, 11, 9, 8, tzinfo=UTC))
    (told,) = read(log, rows, at="2026-11-09T08:00:00Z")[1]
    assert told.occurred_at == AT, "what the rows say stays"
    outcome, entries = read(log, bare)
    assert not entries
    assert all("give --at" in problem.reason or log == "mapped" for problem in outcome.left_out)


@EVERY
def test_whose_model_it_is_is_given_where_the_rows_do_not_tell(read, log):
    rows, _, _ = LOGS[log]
    (told,), (given,) = read(log, rows)[1], read(log, rows, provider="ollama")[1]
    assert given.provider == (told.provider if log in SAY_WHO else "ollama")


@pytest.mark.parametrize(
    ("log", "place"), [("litellm", "custom_llm_provider"), ("helicone", "provider"), ("portkey", "ai_org")]
)
def test_who_is_given_goes_before_what_a_models_name_would_tell(read, log, place):
    bare = without(LOGS[log][0], (place,))
    assert read(log, bare)[1][0].provider == "openai"
    assert read(log, bare, provider="azure")[1][0].provider == "azure"


@EVERY
def test_what_was_called_is_given_where_the_rows_do_not_tell(read, log):
    rows, _, _ = LOGS[log]
    given = "beta.messages" if log == "claude-code" else "responses"
    (entry,) = read(log, rows, endpoint=given)[1]
    assert entry.endpoint == ("chat.completions" if log in SAY_ENDPOINT else given)


def test_rows_of_helicone_say_whose_they_are_and_others_take_who_is_given(read):
    row = LOGS["helicone"][0][0]
    rows = [
        {**row, "response_model": "claude-haiku-4-5", "provider": "ANTHROPIC"},
        {**row, "request_id": "h2", "response_model": "my-own", "provider": ""},
    ]
    _, entries = read("helicone", rows, provider="ollama")
    assert [(entry.provider, entry.cost_source) for entry in entries] == [
        ("anthropic", "computed"),
        ("ollama", "unpriced"),
    ]


def test_a_batchs_output_is_a_batchs_whatever_is_given(read):
    body = LOGS["responses"][0][0]
    row = {"id": "b1", "custom_id": "c", "response": {"status_code": 200, "body": body}}
    (entry,) = read("responses", [row], processing="standard")[1]
    assert "processing=batch" in entry.charges[0].price_id


def test_a_message_of_opencode_without_an_id_is_left_out_as_others_are(read):
    bare = without(LOGS["opencode"][0], ("id",))
    outcome, entries = read("opencode", [*bare, *bare])
    assert (entries, outcome.conflicts) == ([], [])
    assert ["has no id" in problem.reason for problem in outcome.left_out] == [True, True]


NIGHT = "2026-10-31 22:30:00"
CLAUDES = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-4-5",
    "usage": {"input_tokens": 10, "output_tokens": 5},
}


@pytest.mark.parametrize("row", [{"time": NIGHT, "response": CLAUDES}, {**CLAUDES, "timestamp": NIGHT}])
def test_the_instant_that_who_kept_a_response_wrote_is_of_the_zone_that_is_given(read, row):
    outcome, (entry,) = read("responses", [row], tz="America/New_York")
    assert outcome.ok
    assert entry.occurred_at == datetime(2026, 11, 1, 2, 30, tzinfo=UTC)
    outcome, entries = read("responses", [row])
    assert (len(entries), "no time zone: give --zone" in outcome.left_out[0].reason) == (0, True)
    written = json.loads(json.dumps(row).replace(NIGHT, "2026-10-31T22:30:00+01:00"))
    assert read("responses", [written])[1][0].occurred_at == datetime(2026, 10, 31, 21, 30, tzinfo=UTC)


def test_what_a_providers_body_says_of_its_time_is_utc_whichever_zone_is_given(read):
    body = LOGS["responses"][0][0]
    for created in (1794304800, "2026-11-10 10:00:00"):
        row = {"time": NIGHT, "response": {**body, "created": created}}
        (entry,) = read("responses", [row], tz="America/New_York")[1]
        assert entry.occurred_at == AT


def test_a_kept_response_of_an_hour_that_clocks_showed_twice_is_flagged(read):
    row = {"time": "2026-10-25 02:30:00", "response": CLAUDES}
    (entry,) = read("responses", [row], tz="Europe/Berlin")[1]
    assert "time_uncertain" in entry.flags


def test_a_zone_that_there_is_not_is_refused(read):
    with pytest.raises(ConfigurationError, match="Nowhere"):
        read("responses", [CLAUDES], tz="Europe/Nowhere", at="2026-11-10")


GROKS = {
    "prompt_tokens": 100,
    "completion_tokens": 9,
    "total_tokens": 359,
    "completion_tokens_details": {"reasoning_tokens": 250},
}
#: 100 in at 3 and 259 out at 15 dollars per million.
GROKS_COST = Decimal("0.004185")


def groks(total=359, answer=9):
    usage = {**GROKS, "completion_tokens": answer, "total_tokens": total}
    row = {**LOGS["litellm"][0][0], **usage, "model": "xai/grok-4", "custom_llm_provider": "xai"}
    return {**row, "metadata": {"usage_object": usage}}


def test_reasoning_beside_the_completion_is_output_in_a_gateways_log_as_in_a_kept_response(read):
    (logged,) = read("litellm", [groks()])[1]
    body = {"id": "r2", "object": "chat.completion", "created": 1790812800, "model": "grok-4", "usage": GROKS}
    (kept,) = read("responses", [body], provider="x-ai")[1]
    for entry in (logged, kept):
        assert dict(entry.usage.quantities) == {"input": 100, "output": 259}
        assert (entry.usage.reasoning_output_tokens, entry.billed_cost, entry.flags) == (250, GROKS_COST, ("imported",))


@pytest.mark.parametrize(
    ("total", "answer", "output", "reasoning", "flags"),
    [
        (0, 9, 259, 250, ("imported", "reasoning_exceeds_output")),
        (109, 9, 9, 9, ("imported", "reasoning_exceeds_output")),
        (359, 259, 259, 250, ("imported",)),
        (0, 259, 259, 250, ("imported",)),
        (609, 259, 509, 250, ("imported",)),
    ],
    ids=["no total", "a total that denies it", "inside", "inside, no total", "beside a longer answer"],
)
def test_reasoning_is_held_against_what_it_should_be_part_of(read, total, answer, output, reasoning, flags):
    (entry,) = read("litellm", [groks(total, answer)])[1]
    assert (entry.usage["output"], entry.usage.reasoning_output_tokens, entry.flags) == (output, reasoning, flags)


def test_no_source_has_more_reasoning_than_output(read):
    codex: Any = deepcopy(LOGS["codex"][0])
    for row in codex:
        info = row["payload"].get("info")
        if info:
            info["total_token_usage"] = {**SUMS, "reasoning_output_tokens": 250}
    router = {**LOGS["openrouter"][0][0], "tokens_reasoning": 250}
    details = {"input": 100, "output": 9, "output_reasoning_tokens": 250, "total": 109}
    rows = {
        "codex": codex,
        "openrouter": [router],
        "langfuse": [{**LOGS["langfuse"][0][0], "usage_details": details}],
    }
    found = {log: read(log, lines)[1][0] for log, lines in rows.items()}
    assert {log: (one.usage["output"], one.usage.reasoning_output_tokens) for log, one in found.items()} == {
        "codex": (260, 250),
        "openrouter": (260, 250),
        "langfuse": (9, 9),
    }
    assert all("reasoning_exceeds_output" in entry.flags for entry in found.values())


def test_a_row_of_ones_own_with_more_reasoning_than_output_is_left_out(read):
    row = {**LOGS["mapped"][0][0], "reasoning": 11}
    fields = {**MAP, "reasoning": "reasoning"}
    outcome, entries = read("mapped", [row], fields=fields)
    assert entries == []
    assert "reasoning (11) is more than its output (10)" in outcome.left_out[0].reason
    (entry,) = read("mapped", [{**row, "reasoning": 10}], fields=fields)[1]
    assert (entry.usage["output"], entry.usage.reasoning_output_tokens) == (10, 10)


def test_a_total_of_helicone_that_its_parts_do_not_make_is_told(read):
    (entry,) = read("helicone", [{**LOGS["helicone"][0][0], "total_tokens": MILLION + 260}])[1]
    assert entry.flags == ("imported", "total_mismatch")


NAMES = [
    ("portkey", "azure-openai", "azure", "gpt-5"),
    ("portkey", "bedrock", "aws", "anthropic.claude-sonnet-4-5-20250929-v1:0"),
    ("portkey", "vertex-ai", "google", "gemini-2.5-pro"),
    ("portkey", "mistral-ai", "mistral", "mistral-large-latest"),
    ("portkey", "together-ai", "together", "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
    ("portkey", "fireworks-ai", "fireworks", "accounts/fireworks/models/deepseek-v3p2"),
    ("portkey", "perplexity-ai", "perplexity", "sonar-pro"),
    ("opencode", "amazon-bedrock", "aws", "anthropic.claude-sonnet-4-5-20250929-v1:0"),
    ("opencode", "google-vertex", "google", "gemini-2.5-pro"),
    ("opencode", "google-vertex-anthropic", "google", "claude-sonnet-4-5@20250929"),
    ("opencode", "togetherai", "together", "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
    ("opencode", "azure-cognitive-services", "azure", "gpt-5"),
    ("helicone", "X", "x-ai", "grok-4"),
    ("helicone", "AWS", "aws", "anthropic.claude-sonnet-4-5-20250929-v1:0"),
    ("litellm", "perplexity", "perplexity", "sonar-pro"),
]
PLACES = {"portkey": ("ai_org", "ai_model"), "opencode": ("providerID", "modelID")}
PLACES |= {"helicone": ("provider", "response_model"), "litellm": ("custom_llm_provider", "model")}


@pytest.mark.parametrize(("log", "theirs", "provider", "model"), NAMES, ids=lambda value: value)
def test_a_gateways_own_name_of_a_provider_has_that_providers_price(read, log, theirs, provider, model):
    who, what = PLACES[log]
    (entry,) = read(log, [{**LOGS[log][0][0], who: theirs, what: model}], provider="ollama")[1]
    assert (entry.provider, entry.cost_source) == (provider, "computed")


@pytest.mark.parametrize("log", PLACES)
def test_who_is_given_stands_in_for_a_name_that_no_price_list_has(read, log):
    row = {**LOGS[log][0][0], PLACES[log][0]: "our-proxy"}
    (told,), (given,) = read(log, [row])[1], read(log, [row], provider="openai")[1]
    assert (told.provider, told.billed_cost) == ("our-proxy", None)
    assert (given.provider, given.cost_source) == ("openai", "computed")


def test_a_name_that_is_0_or_false_is_a_name(read, tmp_path):
    fields = {**MAP, "member": "user", "tag:paid": "paid"}
    row = {**LOGS["mapped"][0][0], "user": 0, "paid": False}
    (entry,) = read("mapped", [row], fields=fields)[1]
    assert (entry.attribution.member, dict(entry.attribution.tags)) == ("0", {"paid": "False"})
    for log, said in {
        "litellm": {"user": 0},
        "helicone": {"request_user_id": 0},
        "portkey": {"metadata": {"_user": 0}},
        "langfuse": {"user_id": 0},
    }.items():
        (entry,) = read(log, [{**LOGS[log][0][0], **said}])[1]
        assert entry.attribution.member == "0", log
    (entry,) = read("openrouter", [{**LOGS["openrouter"][0][0], "user": 0}])[1]
    assert entry.attribution.end_user == "0"


def test_a_slip_for_a_batch_is_refused(read):
    rows = LOGS["litellm"][0]
    with pytest.raises(ConfigurationError, match=r"processing is 'batch' or left out, not 'batches'"):
        read("litellm", rows, processing="batches")


def test_a_map_needs_no_time_where_it_is_given(read):
    fields = {name: path for name, path in MAP.items() if name != "time"}
    outcome, (entry,) = read("mapped", LOGS["mapped"][0], fields=fields, at=TIME)
    assert (outcome.ok, entry.occurred_at) == (True, AT)
    with pytest.raises(ConfigurationError, match=r"say where the time is: time=\.\.\."):
        read("mapped", LOGS["mapped"][0], fields=fields)
