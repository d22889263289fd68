"""What is said of all rows holds where they do not say it themselves, whoever wrote them."""

import json
from copy import deepcopy
from datetime import UTC, datetime

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
        outcome = import_usage(meter, path, **more, **given)
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
