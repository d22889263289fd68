"""Usage that other programs wrote down: each call once by its id, and nothing dropped in silence."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import sqlite3
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest

import tokenmeter
from tokenmeter.errors import ConfigurationError
from tokenmeter.importing import import_usage
from tokenmeter.importing.sources import usual_folders
from tokenmeter.reconciliation import reconcile


@pytest.fixture
def meter():
    made = tokenmeter.make_meter(store="memory:", config={})
    yield made
    made.close()


@pytest.fixture
def write(tmp_path):
    """`write("a.jsonl", rows)`: rows as JSON lines; texts and bytes as they are."""

    def make(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
            path.write_text(text, encoding="utf-8")
        return path

    return make


def tokens(meter):
    """Model -> its meters and number of calls."""
    found = {}
    for entry in meter.store.entries():
        sums = found.setdefault(entry.model, Counter())
        sums["calls"] += 1
        sums.update(entry.usage.quantities)
    return {model: dict(sums) for model, sums in found.items()}


def claude(message, output, *, request="req_1", sidechain=False, at="2026-10-05T09:00:05Z", **usage):
    return {
        "type": "assistant",
        "timestamp": at,
        "sessionId": "s1",
        "requestId": request,
        "uuid": f"{message}-{output}",
        "isSidechain": sidechain,
        "cwd": "/home/ana/shop",
        "message": {
            "id": message,
            "type": "message",
            "model": "claude-sonnet-4-5-20250929",
            "usage": {"input_tokens": 4, "output_tokens": output, **usage},
        },
    }


def test_claude_code_counts_the_line_with_the_highest_output_once_over_all_files(meter, write, tmp_path):
    cached = {
        "cache_creation_input_tokens": 2310,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 2000},
        "cache_read_input_tokens": 11840,
    }
    first = [claude("msg_1", 1, **cached), claude("msg_1", 1, **cached), claude("msg_1", 340, **cached)]
    write("p/shop/a.jsonl", [{"type": "user", "sessionId": "s1", "uuid": "u"}, *first, {"type": "summary"}])
    write("p/shop/resumed.jsonl", [*first, claude("msg_2", 7, request="req_2")])
    replay = claude("msg_1", 340, request="req_replayed", sidechain=True, **cached)
    write("p/shop/a/subagents/agent-x.jsonl", [replay, claude("msg_3", 5, request="req_3", sidechain=True)])
    outcome = import_usage(meter, tmp_path / "p")
    assert (outcome.recorded, outcome.conflicts, outcome.left_out) == (3, [], [])
    assert tokens(meter) == {
        "claude-sonnet-4-5-20250929": {
            "calls": 3,
            "input": 12,
            "cache_read": 11840,
            "cache_write_1h": 2000,
            "cache_write_5m": 310,
            "output": 352,
        }
    }
    assert {entry.attribution.project for entry in meter.store.entries()} == {"shop"}
    assert "console" in str(outcome)
    assert outcome.lines == outcome.recorded + outcome.not_calls + outcome.merged == 3 + 2 + 6
    assert "6 lines that repeat one of them" in str(outcome)


def test_claude_code_without_request_ids_synthetic_models_and_tools(meter, write):
    rows = [claude("chatcmpl-1", 9), claude("chatcmpl-1", 9)]
    for row in rows:
        del row["requestId"]
    synthetic = claude("msg_9", 3)
    synthetic["message"]["model"] = "<synthetic>"
    searching = claude("msg_2", 8, server_tool_use={"web_search_requests": 2})
    outcome = import_usage(meter, write("a.jsonl", [*rows, synthetic, searching]))
    assert (outcome.recorded, outcome.not_calls) == (2, 1)
    assert tokens(meter)["claude-sonnet-4-5-20250929"]["web_searches"] == 2


def codex(total, last=None, *, at):
    def usage(counts):
        names = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_output_tokens")
        told = dict(zip(names, counts, strict=True))
        return {**told, "total_tokens": counts[0] + counts[2]}

    info = {"total_token_usage": usage(total)}
    if last:
        info["last_token_usage"] = usage(last)
    return {"timestamp": at, "type": "event_msg", "payload": {"type": "token_count", "info": info}}


def meta(name, *, at="2026-10-08T10:00:00Z", **more):
    payload = {"id": name, "timestamp": at, "cwd": "/home/ana/shop", **more}
    return {"timestamp": at, "type": "session_meta", "payload": payload}


def turn(model, at="2026-10-08T10:00:01Z"):
    return {"timestamp": at, "type": "turn_context", "payload": {"model": model}}


def test_codex_totals_become_calls_repeats_and_forks_count_once(meter, write, tmp_path):
    parent = [
        meta("A"),
        turn("gpt-5.1-codex"),
        codex((9000, 4000, 400, 200), (9000, 4000, 400, 200), at="2026-10-08T10:00:09Z"),
        codex((9000, 4000, 400, 200), (9000, 4000, 400, 200), at="2026-10-08T10:00:10Z"),
        {"timestamp": "2026-10-08T10:00:11Z", "type": "event_msg", "payload": {"type": "token_count", "info": None}},
        turn("gpt-5-mini", at="2026-10-08T10:00:50Z"),
        codex((9300, 4000, 490, 200), (300, 0, 90, 0), at="2026-10-08T10:01:00Z"),
    ]
    fork = [
        meta("B", at="2026-10-08T11:00:00Z", forked_from_id="A"),
        turn("gpt-5.1-codex", at="2026-10-08T11:00:00Z"),
        codex((9000, 4000, 400, 200), at="2026-10-08T11:00:00Z"),
        codex((9300, 4000, 490, 200), at="2026-10-08T11:00:00Z"),
        codex((22000, 16000, 585, 232), at="2026-10-08T11:00:30Z"),
    ]
    write("sessions/2026/rollout-a.jsonl", parent)
    write("archived_sessions/rollout-a.jsonl", parent)
    write("sessions/2026/rollout-b.jsonl", fork)
    outcome = import_usage(meter, tmp_path)
    assert (outcome.recorded, outcome.conflicts) == (3, [])
    assert tokens(meter) == {
        "gpt-5.1-codex": {"calls": 2, "input": 5000 + 700, "cache_read": 4000 + 12000, "output": 400 + 95},
        "gpt-5-mini": {"calls": 1, "input": 300, "output": 90},
    }


def test_a_total_that_falls_begins_anew_and_a_missing_model_is_assumed_and_said(meter, write):
    rows = [
        meta("C"),
        codex((1000, 0, 100, 0), at="2026-10-08T10:00:09Z"),
        codex((200, 0, 10, 0), (200, 0, 10, 0), at="2026-10-08T10:00:20Z"),
        codex((500, 100, 30, 0), at="2026-10-08T10:00:30Z"),
    ]
    import_usage(meter, write("rollout.jsonl", rows))
    assert tokens(meter) == {"gpt-5": {"calls": 3, "input": 1000 + 200 + 200, "cache_read": 100, "output": 130}}
    assert all("model_assumed" in entry.flags for entry in meter.store.entries())


def test_gemini_the_last_writing_of_a_message_counts(meter, write):
    def message(output, total):
        told = {"input": 7412, "output": output, "cached": 6500, "thoughts": 200, "tool": 30, "total": total}
        return {
            "id": "m1",
            "timestamp": "2026-10-10T07:00:40Z",
            "type": "gemini",
            "tokens": told,
            "model": "gemini-2.5-pro",
        }

    rows = [{"sessionId": "x", "projectHash": "h"}, message(0, 7642), message(210, 7852)]
    import_usage(meter, write("session.jsonl", rows))
    expected = {"gemini-2.5-pro": {"calls": 1, "input": 942, "cache_read": 6500, "output": 410}}
    assert tokens(meter) == expected
    chat = {"sessionId": "x", "projectHash": "h", "messages": [{"type": "user", "id": "u"}, message(210, 7852)]}
    outcome = import_usage(meter, write("session-x.json", json.dumps(chat, indent=1)))
    assert (outcome.recorded, outcome.repeated, tokens(meter)) == (0, 1, expected)


def test_opencode_is_read_from_its_database_without_touching_it(meter, tmp_path):
    path = tmp_path / "opencode.db"
    data = {
        "role": "assistant",
        "providerID": "openai",
        "modelID": "gpt-5",
        "time": {"created": 1791712860000},
        "cost": 0.0129,
        "tokens": {"input": 3000, "output": 260, "reasoning": 640, "cache": {"read": 1024, "write": 0}},
    }
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE message (id TEXT PRIMARY KEY, session_id TEXT, data TEXT)")
        database.execute("INSERT INTO message VALUES ('m1', 's1', ?)", (json.dumps(data),))
        database.execute("INSERT INTO message VALUES ('m2', 's1', ?)", (json.dumps({"role": "user"}),))
    database.close()
    before = path.read_bytes()
    outcome = import_usage(meter, path)
    assert (outcome.recorded, outcome.not_calls, outcome.cost_in_source) == (1, 1, Decimal("0.0129"))
    assert tokens(meter) == {"gpt-5": {"calls": 1, "input": 3000, "cache_read": 1024, "output": 900}}
    assert path.read_bytes() == before


def test_aider_tells_equal_lines_apart(meter, write):
    row = {
        "event": "message_send",
        "properties": {
            "main_model": "gpt-5",
            "prompt_tokens": 10,
            "completion_tokens": 2,
            "cost": 0.5,
            "total_cost": 9,
        },
        "user_id": "u",
        "time": 1791799200,
    }
    path = write("aider.jsonl", [row, row, {"event": "launched", "properties": {}, "time": 1}])
    assert import_usage(meter, path).recorded == 2
    again = import_usage(meter, path)
    assert (again.recorded, again.repeated) == (0, 2)


LITELLM = {
    "request_id": "chatcmpl-1",
    "call_type": "acompletion",
    "spend": 0.006634,
    "prompt_tokens": 4072,
    "completion_tokens": 500,
    "endTime": "2026-10-13 10:00:02",
    "model": "gpt-5",
    "custom_llm_provider": "openai",
    "user": "ana",
    "cache_hit": "False",
    "metadata": {"usage_object": {"prompt_tokens_details": {"cached_tokens": 3072}}},
    "status": "success",
}


def test_litellm_rows_as_json_and_csv_are_the_same_calls(meter, write):
    beside = {
        **LITELLM,
        "request_id": "msg_2",
        "model": "claude-sonnet-4-5",
        "custom_llm_provider": "anthropic",
        "prompt_tokens": 31,
        "metadata": {"usage_object": {"cache_read_input_tokens": 2495, "cache_creation_input_tokens": 1253}},
    }
    hit, failed = (
        {**LITELLM, "request_id": "x", "cache_hit": "True"},
        {**LITELLM, "request_id": "y", "status": "failure"},
    )
    rows = [LITELLM, beside, hit, failed]
    outcome = import_usage(meter, write("logs.jsonl", rows))
    assert (outcome.recorded, outcome.not_calls, outcome.cost_in_source) == (2, 2, Decimal("0.013268"))
    assert tokens(meter) == {
        "gpt-5": {"calls": 1, "input": 1000, "cache_read": 3072, "output": 500},
        "claude-sonnet-4-5": {"calls": 1, "input": 31, "cache_read": 2495, "cache_write_5m": 1253, "output": 500},
    }
    text = io.StringIO()
    table = csv.DictWriter(text, list(LITELLM))
    table.writeheader()
    table.writerows({**row, "metadata": json.dumps(row["metadata"])} for row in rows)
    again = import_usage(meter, write("logs.csv", "\ufeff" + text.getvalue()))
    assert (again.recorded, again.repeated, again.left_out) == (0, 2, [])


def test_langfuse_keys_are_disjoint_unless_the_total_says_otherwise(meter, write):
    def observation(name, usage, **more):
        start = "2026-10-14 10:00:00.125000"
        about = {"id": name, "trace_id": "t", "type": "GENERATION", "start_time": start, "provided_model_name": "gpt-5"}
        return {**about, "usage_details": usage, **more}

    disjoint = {"input": 900, "output": 200, "input_cached_tokens": 2048, "output_reasoning_tokens": 100, "total": 3248}
    inside = {"input": 2948, "output": 300, "input_cached_tokens": 2048, "output_reasoning_tokens": 100, "total": 3248}
    rows = [observation("a", disjoint), observation("b", inside), observation("s", {}, type="SPAN")]
    outcome = import_usage(meter, write("o.json", json.dumps({"data": rows, "meta": {"page": 1}}, indent=1)))
    assert (outcome.recorded, outcome.not_calls) == (2, 1)
    assert tokens(meter) == {"gpt-5": {"calls": 2, "input": 1800, "cache_read": 4096, "output": 600}}


def test_langfuse_without_a_total_says_what_is_not_known(meter, write):
    def told(name, kind="GENERATION", **usage):
        row = {"id": name, "type": kind, "start_time": "2026-10-14T09:00:00Z", "usage_details": usage}
        return {**row, "provided_model_name": "gpt-5"}

    rows = [
        told("o1", input=1000, input_cached_tokens=400, output=9),
        told("o2", output=9),
        told("o3", input=9),
        told("o4", "EMBEDDING", input=9),
        told("o5", input=1000, output=9),
    ]
    outcome = import_usage(meter, write("a.jsonl", rows), source="langfuse")
    assert [one.reason for one in outcome.left_out] == ["it does not say its input", "it does not say its output"]
    assert ["cache_uncertain" in entry.flags for entry in meter.store.entries()] == [True, False, False]


def test_helicone_and_portkey_prefer_the_providers_own_usage(meter, write):
    usage = {"prompt_tokens": 1144, "completion_tokens": 64, "total_tokens": 1208}
    body = {
        "id": "chatcmpl-h",
        "object": "chat.completion",
        "model": "gpt-5-2025-08-07",
        "usage": {**usage, "prompt_tokens_details": {"cached_tokens": 1024}},
    }
    helicone = {
        "request_id": "r",
        "response_model": "gpt-5-2025-08-07",
        "provider": "OPENAI",
        "response_created_at": "2026-10-15T10:00:02Z",
        "response_status": 200,
        "response_body": body,
        "prompt_tokens": 5,
    }
    limited = {**helicone, "request_id": "q", "response_status": 429, "response_body": {"error": {}}}
    portkey = {
        "id": "pk",
        "created_at": "2026-10-15T11:00:00Z",
        "ai_org": "openai",
        "ai_model": "gpt-5-2025-08-07",
        "req_units": 1144,
        "res_units": 64,
        "cost": 0.0325,
        "cache_status": "MISS",
        "response": {"body": body},
    }
    outcome = import_usage(meter, [write("h.jsonl", [helicone, limited]), write("p.jsonl", [portkey])])
    assert (outcome.recorded, outcome.repeated, outcome.not_calls) == (1, 1, 1)
    assert tokens(meter) == {"gpt-5-2025-08-07": {"calls": 1, "input": 120, "cache_read": 1024, "output": 64}}
    assert outcome.cost_in_source == Decimal("0.000325")  # Portkey's are cents


def test_openrouter_generations_are_calls_and_its_days_are_not(meter, write):
    rows = (
        "generation_id,created_at,cost_total,byok_usage_inference,tokens_prompt,tokens_completion,tokens_reasoning,"
        "tokens_cached,model_permaslug,user\n"
        "gen-1,2026-10-16 10:00:00.713,0.001969,0,1012,128,64,512,openai/gpt-5-2025-08-07,cust-9\n"
    )
    days = "Date,Slug,Usage,BYOK Usage,Requests,Prompt Tokens\n2026-10-16,openai/gpt-5,12.5,0,410,1200000\n"
    outcome = import_usage(meter, [write("g.csv", rows), write("d.csv", days)])
    assert tokens(meter) == {"openai/gpt-5-2025-08-07": {"calls": 1, "input": 500, "cache_read": 512, "output": 128}}
    assert "reconcile" in outcome.left_out[0].reason


MAP = {"id": "req.id", "time": "req.ts", "model": "llm.name", "input": "llm.in", "cache_read": "llm.cached?",
       "output": "llm.out", "member": "who"}  # fmt: skip


def own(name, *, member="ana", **counts):
    return {"req": {"id": name, "ts": 1792396800000}, "llm": {"name": "gpt-5", **counts}, "who": member}


@pytest.mark.parametrize("opening", [b"[", b'{"a":'], ids=["lists", "objects"])
def test_a_line_that_is_nested_without_end_is_left_out(meter, write, opening):
    content = opening * 100_000 + b"\n" + json.dumps(own("r1", **{"in": 1, "out": 1})).encode()
    outcome = import_usage(meter, write("calls.jsonl", content), fields=MAP)
    assert [one.reason for one in outcome.left_out] == ["not JSON"]
    assert outcome.recorded == 1


def test_any_rows_by_a_map_packed_or_as_an_array_broken_lines_named(meter, write):
    good, other = (
        own("r1", **{"in": 100, "cached": 30, "out": "9"}),
        own("r2", **{"in": "55.0", "cached": None, "out": 4}),
    )
    packed = gzip.compress(("\ufeff" + json.dumps(good) + "\n{broken\n" + json.dumps(other) + "\n").encode())
    outcome = import_usage(meter, write("calls.jsonl.gz", packed), fields=MAP)
    assert (outcome.recorded, [one.reason for one in outcome.left_out]) == (2, ["not JSON"])
    assert outcome.left_out[0].where.endswith("calls.jsonl.gz:2")
    assert tokens(meter) == {"gpt-5": {"calls": 2, "input": 125, "cache_read": 30, "output": 13}}
    assert {entry.attribution.member for entry in meter.store.entries()} == {"ana"}
    again = import_usage(meter, write("calls.json", json.dumps([good, other])), fields=MAP)
    assert (again.recorded, again.repeated) == (0, 2)


def test_the_same_id_with_other_figures_is_a_conflict_and_named(meter, write):
    import_usage(meter, write("a.jsonl", [own("r1", **{"in": 100, "out": 9})]), fields=MAP)
    outcome = import_usage(meter, write("b.jsonl", [own("r1", **{"in": 100, "out": 10})]), fields=MAP)
    assert (outcome.recorded, outcome.ok) == (0, False)
    assert "output 9, here it has gpt-5: input 100, output 10" in outcome.conflicts[0].reason
    assert "1 conflict," in str(outcome)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (own("r", **{"in": -1}), "not a count"),
        (own("r", **{"in": 1.5}), "not a count"),
        (own("r", **{"in": "many"}), "not a number"),
        (own("r", **{"in": True}), "not a number"),
        (own("", **{"in": 1}), "the id"),
        ({**own("r", **{"in": 1}), "req": {"id": "r", "ts": "yesterday"}}, "no instant"),
        ({**own("r", **{"in": 1}), "req": {"id": "r", "ts": "2026-10-01T10:00"}}, "no time zone: give --zone"),
        ({**own("r", **{"in": 1}), "llm": {"name": "house-model", "in": 3}}, "give --provider"),
    ],
)
def test_a_row_that_cannot_be_right_is_named_and_left_out(meter, write, row, reason):
    good = own("good", **{"in": 1, "out": 1})
    outcome = import_usage(meter, write("a.jsonl", [row, good]), fields=MAP)
    assert (outcome.recorded, len(outcome.left_out)) == (1, 1)
    assert reason in outcome.left_out[0].reason


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"output": "llm.oot"}, "no row has what output=llm.oot names; the first one has req.id, req.ts, llm.name"),
        ({"model": "llm.nmae", "input": "in"}, "what model=llm.nmae, input=in names"),
        ({"member": "who.name"}, "member=who.name"),
        ({"id": "req.idd"}, "id=req.idd"),
    ],
)
def test_a_path_that_no_row_has_is_refused_before_anything_is_recorded(meter, write, tmp_path, changed, said):
    for name in ("a", "b"):
        write(f"logs/{name}.jsonl", [own(f"{name}{at}", **{"in": 5, "out": 1}) for at in range(3)])
    with pytest.raises(ConfigurationError) as refused:
        import_usage(meter, tmp_path / "logs", fields=MAP | changed)
    assert said in str(refused.value)
    assert list(meter.store.entries()) == []
    assert import_usage(meter, tmp_path / "logs", fields=MAP).recorded == 6


def test_a_heading_that_a_table_lacks_is_refused(meter, write):
    table = write("a.csv", "id,t,m,in,out,c,who\nr,2026-10-13T10:00:00Z,gpt-5,1000,7,1.50,ana\n")
    with pytest.raises(ConfigurationError, match=r"output=ouput names; the first one has id, t, m, in, out, c, who"):
        import_usage(meter, table, fields=COLUMNS | {"output": "ouput"})


def test_a_path_that_may_be_missing_is_marked_and_others_that_some_rows_lack_are_told(meter, write):
    rows = [own("r1", **{"in": 5, "out": 1}), {**own("r2", **{"in": 5, "out": 1}), "who": None}]
    outcome = import_usage(meter, write("a.jsonl", rows), fields=MAP)  # cache_read=llm.cached?
    assert (outcome.recorded, outcome.notes) == (2, ["who: 1 line has none; read as nothing."])


def test_a_side_that_a_row_does_not_tell_is_unknown_and_not_nothing(meter, write):
    vector = {**own("r4"), "llm": {"name": "text-embedding-3-small", "in": 5}}
    rows = [own("r1", **{"in": 5, "out": 1}), own("r2", **{"in": 5}), own("r3", **{"in": "", "out": 7}), vector]
    outcome = import_usage(meter, write("a.jsonl", rows), fields=MAP)
    assert (outcome.recorded, [one.reason.partition(":")[0] for one in outcome.left_out]) == (
        2,
        ["it does not say its output", "it does not say its input"],
    )
    without = import_usage(meter, write("c.jsonl", rows), fields={**MAP, "output": f"{MAP['output']}?"})
    assert (without.recorded, without.repeated, len(without.left_out)) == (2, 2, 0)
    heads = "request_id,call_type,spend,total_tokens,prompt_tokens,startTime,endTime,model\n"
    table = write(
        "spend.csv", f"{heads}l1,acompletion,0.01,1500,1000,2026-10-13T10:00:00Z,2026-10-13T10:00:02Z,gpt-5\n"
    )
    assert [one.reason for one in import_usage(meter, table).left_out] == ["it does not say its completion_tokens"]


def test_transcripts_that_tell_one_side_leave_the_call_out_and_parts_below_their_total_are_told(meter, write):
    half = claude("msg_1", 50, input_tokens=None, cache_read_input_tokens=900)
    found = import_usage(meter, write("a.jsonl", [half]), source="claude-code")
    assert [one.reason for one in found.left_out] == ["it does not say its input_tokens"]
    told = {"input": 700, "output": 40, "cached": 0, "thoughts": None, "tool": 0, "total": 800}
    message = {"type": "gemini", "id": "m1", "model": "gemini-2.5-pro", "timestamp": "2026-10-09T07:00:05Z"}
    for name, counts in (("m1", told), ("m2", {**told, "total": 740}), ("m3", {**told, "output": ""})):
        chat = {"sessionId": "s", "messages": [{**message, "id": name, "tokens": counts}]}
        found = import_usage(meter, write(f"session-{name}.json", json.dumps(chat)), source="gemini")
        assert [one.reason for one in found.left_out] == (["it does not say its output"] if name == "m3" else [])
    assert ["total_mismatch" in entry.flags for entry in meter.store.entries()] == [True, False]


@pytest.mark.parametrize(
    ("time", "told"), [("46300.375", "1970-01-01, when no call was made"), ("2026/10/05 09:00:07", "no time zone")]
)
def test_a_time_in_another_unit_is_told_and_one_with_its_year_first_is_read(meter, write, time, told):
    row = {**own("r1", **{"in": 5, "out": 1}), "req": {"id": "r1", "ts": time}}
    assert told in import_usage(meter, write("a.jsonl", [row]), fields=MAP).left_out[0].reason


def test_a_time_that_is_still_to_come_is_left_out_whichever_source_says_it(meter, write):
    tomorrow = datetime.now(UTC) + timedelta(hours=23)
    rows = [own(name, **{"in": 5, "out": 1}) for name in ("late", "ahead")]
    rows[0]["req"]["ts"], rows[1]["req"]["ts"] = "2231-01-01T00:00:00Z", tomorrow.isoformat()
    answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 8_236_339_200, "model": "gpt-5"}
    answer["usage"] = {"prompt_tokens": 5, "completion_tokens": 1}
    for path, options in (
        (write("a.jsonl", rows), {"fields": MAP}),
        (write("c.jsonl", [claude("msg_1", 5, at="2231-01-01T00:00:00Z")]), {}),
        (write("r.jsonl", [answer]), {}),
    ):
        outcome = import_usage(meter, path, **options)
        assert [one.reason for one in outcome.left_out] == [
            "2231-01-01T00:00:00Z is still to come: a call is recorded when it was made."
        ]
    assert [entry.response_id for entry in meter.store.entries()] == ["ahead"]  # clocks differ


@pytest.mark.parametrize(("at", "told"), [("2231-01-01", "still to come"), ("1971-01-01", "before 2020")])
def test_a_time_that_is_given_for_all_calls_is_one_of_calls(meter, write, at, told):
    answer = {"id": "m", "type": "message", "model": "claude-sonnet-4-5", "usage": {"input_tokens": 5}}
    with pytest.raises(ConfigurationError, match=f"^at='{at}' is {told}"):
        import_usage(meter, write("r.jsonl", [answer]), at=at)


def test_the_second_of_two_paths_is_looked_for_before_the_first_is_recorded(meter, write, tmp_path):
    first = write("a.jsonl", [own("r1", **{"in": 5, "out": 1})])
    with pytest.raises(ConfigurationError, match="No such file"):
        import_usage(meter, [first, tmp_path / "typo.jsonl"], fields=MAP)
    assert list(meter.store.entries()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": "a", "time": "b"}, "at least one count"),
        ({"id": "a", "input": "b"}, "say where the time is"),
        ({"id": "a", "time": "b", "colour": "c", "input": "d"}, "unknown name 'colour'"),
        ({"id": "a", "time": "b", "input": "c", "input_uncached": "d"}, "not both"),
    ],
)
def test_a_map_that_cannot_work_is_refused(meter, write, fields, message):
    with pytest.raises(ConfigurationError, match=message):
        import_usage(meter, write("a.jsonl", [{}]), fields=fields)


def test_what_a_metered_client_recorded_is_left_as_it_is(write):
    from openai import OpenAI

    from tokenmeter.testing import FakeProvider

    meter = tokenmeter.make_meter(store="memory:", config={})
    with FakeProvider() as provider:
        client = tokenmeter.wrap(OpenAI(api_key="sk-x-0001", base_url=provider.openai_url), meter=meter)
        answer = client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "Hi"}])
        client.close()
    outcome = import_usage(meter, write("kept.jsonl", [answer.model_dump(mode="json")]), at=None)
    assert (outcome.recorded, outcome.repeated, outcome.conflicts) == (0, 1, [])
    meter.close()


def test_a_session_is_counted_once_by_who_imports_it_and_who_reads_it(meter, write):
    def session(tokens):
        usage = {"input_tokens": tokens, "output_tokens": 0}
        agent = {"model": {"id": "claude-sonnet-5"}}
        return {"id": "sesn_1", "type": "session", "created_at": "2026-11-01T10:00:00Z", "agent": agent, "usage": usage}

    given = {"provider": "anthropic", "endpoint": "beta.sessions"}
    import_usage(meter, write("a.jsonl", [session(300)]), **given)
    assert meter.record(session(300), **given) is None
    assert meter.record(session(400), **given).usage["input"] == 100
    event = {
        "id": "sevt_1",
        "type": "session.usage",
        "processed_at": "2026-11-01T12:00:00Z",
        "usage": {"input_tokens": 9},
    }
    outcome = import_usage(meter, write("b.jsonl", [event]), **given)
    assert (outcome.recorded, "response_id=, the session's id" in str(outcome)) == (0, True)
    assert tokens(meter) == {"claude-sonnet-5": {"calls": 2, "input": 400}}


def test_a_response_a_level_down_is_found(meter, write):
    body = {
        "id": "chatcmpl-n",
        "object": "chat.completion",
        "created": 1792231200,
        "model": "gpt-5",
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
    rows = [{"request": {"model": "gpt-5"}, "response": body}, {"log": {"answer": {**body, "id": "chatcmpl-m"}}}]
    outcome = import_usage(meter, write("kept.jsonl", rows))
    assert (outcome.recorded, outcome.left_out) == (2, [])


def test_a_program_alone_means_its_usual_folder(meter, write, tmp_path, monkeypatch):
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", f"{tmp_path / 'one'}, {tmp_path / 'two'}")
    for name in ("one", "two"):
        write(f"{name}/projects/shop/{name}.jsonl", [claude(f"msg_{name}", 5)])
    assert len(usual_folders("claude-code")) == 2
    assert import_usage(meter, source="claude-code").recorded == 2
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match=f"no logs of codex in {tmp_path}/none/sessions or "):
        import_usage(meter, source="codex")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54_321)  # of nobody: a container's user
    with pytest.raises(ConfigurationError, match=r"~/\.gemini/tmp.* home directory that is not known"):
        import_usage(meter, source="gemini")
    with pytest.raises(ConfigurationError, match="Unknown source"):
        import_usage(meter, tmp_path, source="claude")
    with pytest.raises(ConfigurationError, match="No such file"):
        import_usage(meter, tmp_path / "nothing.jsonl")


def test_imported_calls_are_priced_like_live_ones(meter, write):
    import_usage(meter, write("a.jsonl", [own("r1", **{"in": 1_000_000, "cached": 0, "out": 100_000})]), fields=MAP)
    (entry,) = meter.store.entries()
    asked = {"model": "gpt-5", "usage": {"prompt_tokens": 1_000_000, "completion_tokens": 100_000}}
    priced = meter.price(asked, provider="openai", endpoint="chat.completions", at=entry.occurred_at)
    assert entry.billed_cost == priced.billed_cost != 0
    assert "imported" in entry.flags


#: The same two rows of LiteLLM as many programs would have kept them.
TWO = [LITELLM, {**LITELLM, "request_id": "chatcmpl-2", "completion_tokens": 7}]
LINES = "".join(json.dumps(row) + "\n" for row in TWO)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("no-line-end.jsonl", LINES.rstrip("\n")),
        ("crlf.jsonl", LINES.replace("\n", "\r\n")),
        ("bom.jsonl", "\ufeff" + LINES),
        ("utf16.jsonl", LINES.encode("utf-16")),
        ("blank-lines.jsonl", f"\n \n{LINES}\n\n"),
        ("packed.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("misnamed.jsonl", gzip.compress(LINES.encode(), mtime=0)),
        ("array.json", json.dumps(TWO)),
        ("pretty.json", json.dumps(TWO, indent=2)),
        ("wrapped.json", json.dumps({"data": TWO, "meta": {"page": 1}})),
        ("without-ending", LINES),
    ],
)
def test_a_log_is_the_same_calls_however_it_was_kept(meter, write, name, content):
    outcome = import_usage(meter, write(name, content))
    assert (outcome.recorded, outcome.ok) == (2, True), str(outcome)
    assert tokens(meter) == {"gpt-5": {"calls": 2, "input": 2000, "cache_read": 6144, "output": 507}}
    assert (outcome.first_at, outcome.last_at) == (datetime(2026, 10, 13, 10, 0, 2, tzinfo=UTC),) * 2


@pytest.mark.parametrize("content", ["", "\n\n", "[]", "\ufeff", gzip.compress(b"", mtime=0)])
@pytest.mark.parametrize("name", ["nothing.jsonl", "nothing.csv", "nothing.json"])
def test_nothing_is_no_calls_and_no_fault(meter, write, name, content):
    if name.endswith(".csv") and content == "[]":
        pytest.skip("a heading")
    outcome = import_usage(meter, write(name, content))
    assert (outcome.lines, outcome.recorded, outcome.ok, outcome.last_at) == (0, 0, True, None)


def test_a_line_that_was_being_written_is_named_and_the_next_import_has_it(meter, write):
    half = write("live.jsonl", LINES[:-40])
    outcome = import_usage(meter, half)
    assert (outcome.recorded, [one.where for one in outcome.left_out]) == (1, [f"{half}:2"])
    outcome = import_usage(meter, write("live.jsonl", LINES))
    assert (outcome.recorded, outcome.repeated, outcome.ok) == (1, 1, True)


@pytest.mark.parametrize(
    "broken",
    ["\x00" * 40, "{", "null", "7", '"text"', "[1]", '{"a": 1', "\udcff".encode("utf-8", "surrogateescape")],
)
def test_a_broken_line_between_others_costs_nothing_but_itself(meter, write, broken):
    first, second = LINES.encode().splitlines(keepends=True)
    middle = broken if isinstance(broken, bytes) else broken.encode()
    outcome = import_usage(meter, write("a.jsonl", first + middle + b"\n" + second))
    assert outcome.recorded == 2
    assert [one.where.rpartition(":")[2] for one in outcome.left_out] == ["2"]


COLUMNS = {"id": "id", "time": "t", "model": "m", "input": "in", "output": "out", "cost": "c", "member": "who"}


@pytest.mark.parametrize(
    ("text", "counts", "cost"),
    [
        ("id,t,m,in,out,c,who\nr,2026-10-13T10:00:00Z,gpt-5,1000,7,1.50,ana\n", (1000, 7), "1.50"),
        ('id,t,m,in,out,c,who\nr,2026-10-13T10:00:00Z,gpt-5,"1,000","12,345",$1.50,ana\n', (1000, 12345), "1.50"),
        ("id;t;m;in;out;c;who\nr;2026-10-13T10:00:00Z;gpt-5;1.000;12.345;1,50;ana\n", (1000, 12345), "1.50"),
        ("id;t;m;in;out;c;who\nr;2026-10-13T10:00:00Z;gpt-5;1000;7;1234.5678;ana\n", (1000, 7), "1234.5678"),
        ('sep=;\nid;t;m;in;out;c;who\nr;2026-10-13T10:00:00Z;gpt-5;"1 000";7,0;0,5 €;ana\n', (1000, 7), "0.5"),
        ("id\tt\tm\tin\tout\tc\twho\nr\t2026-10-13T10:00:00Z\tgpt-5\t6.0\t7\t2e-06\tana\n", (6, 7), "0.000002"),
        ('id,t,m,in,out,c,who,note\nr,2026-10-13T10:00:00Z,gpt-5,1,7,1,ana,"a ""b""\r\nc"\n', (1, 7), "1"),
    ],
)
def test_numbers_of_a_table_are_read_as_its_country_writes_them(meter, write, text, counts, cost):
    outcome = import_usage(meter, write("a.csv", text), fields=COLUMNS)
    assert (outcome.recorded, outcome.cost_in_source) == (1, Decimal(cost)), str(outcome)
    assert tokens(meter)["gpt-5"] == {"calls": 1, "input": counts[0], "output": counts[1]}


def test_a_name_that_is_blank_is_unknown_and_a_tag_is_called_what_a_tag_can_be(meter, write):
    text = "id,t,m,in,out,c,who,paid\nr,2026-10-13T10:00:00Z,gpt-5,1000,7,1.50,  ,yes\n"
    outcome = import_usage(meter, write("a.csv", text), fields={**COLUMNS, "tag:paid!": "paid", "tag:blank": "who"})
    assert outcome.recorded == 1, str(outcome)
    (entry,) = meter.store.entries()
    assert (entry.attribution.member, dict(entry.attribution.tags)) == (None, {"paid\N{REPLACEMENT CHARACTER}": "yes"})


def test_a_name_that_looks_like_a_number_stays_as_it_is_written(meter, write):
    """Of a table with decimal commas numbers are read so; a cost centre, a team and an id are no numbers."""
    text = "id;t;m;in;out;c;who;team;cc\n1.234;2026-10-13T10:00:00Z;gpt-5;1.000;7,0;1,50;4.711;8,15;100.000\n"
    fields = {**COLUMNS, "team": "team", "tag:cost_centre": "cc"}
    outcome = import_usage(meter, write("a.csv", text), fields=fields)
    assert (outcome.recorded, outcome.cost_in_source) == (1, Decimal("1.50")), str(outcome)
    (entry,) = meter.store.entries()
    assert (entry.usage["input"], entry.usage["output"]) == (1000, 7)
    assert (entry.attribution.member, entry.attribution.team) == ("4.711", "8,15")
    assert entry.attribution.tags["cost_centre"] == "100.000"


def test_a_row_whose_cells_are_not_those_of_the_headings_is_left_out_by_its_line(meter, write):
    """A comma too many moves what follows it; a comma too few would leave counts empty, which are none."""
    rows = ["r,2026-10-13T10:00:00Z,gpt-5,1,7,1.5,ana", "s,2026-10-13T10:00:00Z,gpt-5,1,000,7,1.5,ana", "t,,gpt-5,1"]
    path = write("a.csv", "\n".join(["id,t,m,in,out,c,who", *rows, ",,,,,,", ""]))
    outcome = import_usage(meter, path, fields=COLUMNS)
    assert (outcome.recorded, outcome.lines) == (1, 3)
    faults = [(one.where.rpartition(":")[2], one.reason) for one in outcome.left_out]
    headings = "and there are 7 headings"
    assert faults == [("3", f"it has 8 cells, {headings}"), ("4", f"it has 4 cells, {headings}")]


def test_a_number_that_reads_in_two_ways_is_left_out_until_somebody_says_which(meter, write):
    path = write("a.csv", "id;t;m;in;out;c;who\nr;2026-10-13T10:00:00Z;gpt-5;1000;7;1.325;ana\n")
    outcome = import_usage(meter, path, fields=COLUMNS)
    assert outcome.recorded == 0
    assert "two ways" in outcome.left_out[0].reason
    assert import_usage(meter, path, fields=COLUMNS, decimal=",").cost_in_source == 1325
    assert import_usage(meter, path, fields=COLUMNS, decimal=".").cost_in_source == Decimal("1.325")
    with pytest.raises(ConfigurationError, match="decimal is"):
        import_usage(meter, path, fields=COLUMNS, decimal=";")
    outcome = import_usage(meter, write("b.jsonl", [{**LITELLM, "prompt_tokens": "5.000"}]))
    assert "two ways" in outcome.left_out[0].reason


@pytest.mark.parametrize("count", [-1, "12.5", True, 1e400, 10**25, "many", [3], {"n": 3}, "0x10"])
def test_what_is_no_count_is_named_and_stops_nothing(meter, write, count):
    rows = [{**LITELLM, "completion_tokens": count}, TWO[1]]
    outcome = import_usage(meter, write("a.jsonl", rows))
    assert (outcome.recorded, len(outcome.left_out)) == (1, 1)
    assert "completion_tokens" in outcome.left_out[0].reason


@pytest.mark.parametrize("name", ["a\ud83d", "a\x00b", "x" * 600])
def test_a_name_that_a_ledger_does_not_take_is_mended_not_dropped(meter, write, name):
    line = json.dumps(claude("msg_1", 9) | {"cwd": f"/home/{name}"})
    outcome = import_usage(meter, write("a.jsonl", line))
    assert (outcome.recorded, outcome.ok) == (1, True)
    (entry,) = meter.store.entries()
    assert entry.attribution.project.startswith(name[0])
    assert entry.attribution.project[-1] in "\ufffdb\u2026"


def test_a_row_that_cost_something_and_states_no_tokens_is_left_out_aloud(meter, write):
    """A picture, which the source sells by the piece."""
    row = {**LITELLM, "call_type": "aimage_generation", "prompt_tokens": 0, "completion_tokens": 0}
    outcome = import_usage(meter, write("a.jsonl", [{**row, "spend": 0.04}, {**row, "request_id": "free", "spend": 0}]))
    assert not outcome.ok
    assert (outcome.not_calls, [problem.reason for problem in outcome.left_out]) == (
        1,
        ["it cost $0.04 and states no tokens: record it by hand"],
    )


@pytest.mark.parametrize("metadata", [None, "None", "", "{}", {}, {"usage_object": None}, [], "{broken"])
def test_a_row_without_metadata_is_read_by_its_columns(meter, write, metadata):
    row = {**LITELLM, "metadata": metadata, "user": None, "spend": None}
    assert import_usage(meter, write("a.jsonl", [row])).ok
    assert tokens(meter) == {"gpt-5": {"calls": 1, "input": 4072, "output": 500}}


@pytest.mark.parametrize(
    ("said", "cost", "source"),
    [
        ("usd", Decimal("0.325"), "billed"),
        ("cents", Decimal("0.00325"), "billed"),
        ("0.001", Decimal("0.000325"), "billed"),
        ("ignore", Decimal("0.00325"), "computed"),  # 1,000 x $1.25 and 200 x $10 per million
    ],
)
def test_the_settings_say_what_a_hosts_own_cost_is(write, said, cost, source):
    """Whatever name of the provider the settings use."""
    usage = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200, "cost": 0.325}
    body = {"object": "chat.completion", "id": "c1", "created": 1772452800, "usage": usage}
    for provider, name, model in (("azure", "foundry", "gpt-5"), ("openrouter", "openrouter", "openai/gpt-5")):
        made = tokenmeter.make_meter(store="memory:", config={"providers": {name: {"cost": said}}})
        import_usage(made, write("a.jsonl", [{**body, "model": model}]), provider=provider)
        (entry,) = made.store.entries()
        assert (entry.list_cost, entry.cost_source) == (cost, source)
        made.close()


def test_totals_of_parallel_writers_out_of_order_are_no_new_run(meter, write):
    rows = [
        meta("D"),
        turn("gpt-5"),
        codex((100, 0, 10, 0), (100, 0, 10, 0), at="2026-10-08T10:00:09Z"),
        codex((300, 0, 30, 0), (100, 0, 10, 0), at="2026-10-08T10:00:12Z"),
        codex((200, 0, 20, 0), (100, 0, 10, 0), at="2026-10-08T10:00:11Z"),
    ]
    import_usage(meter, write("rollout.jsonl", rows))
    assert tokens(meter) == {"gpt-5": {"calls": 3, "input": 300, "output": 30}}


def test_a_rollout_that_tells_only_its_last_call_is_counted(meter, write):
    told = codex((0, 0, 0, 0), (100, 40, 10, 0), at="2026-10-08T10:00:09Z")
    told["payload"]["info"]["total_token_usage"] = None
    import_usage(meter, write("rollout.jsonl", [meta("E"), turn("gpt-5"), told]))
    assert tokens(meter) == {"gpt-5": {"calls": 1, "input": 60, "cache_read": 40, "output": 10}}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ([turn("gpt-5"), codex((100, 0, 10, 0), at="2026-10-08T10:00:09Z")], "has no id"),
        ([meta("F"), codex((100, 120, 10, 0), at="2026-10-08T10:00:09Z")], "more than its whole"),
    ],
)
def test_a_session_that_cannot_be_right_costs_nothing_but_itself(meter, write, tmp_path, wrong, reason):
    write("logs/a.jsonl", wrong)
    write("logs/b.jsonl", [meta("G"), turn("gpt-5"), codex((100, 0, 10, 0), at="2026-10-08T10:00:09Z")])
    write("logs/c.jsonl", [claude("msg_1", 7)])
    outcome = import_usage(meter, tmp_path / "logs")
    assert outcome.recorded == 2
    assert [reason in problem.reason for problem in outcome.left_out] == [True]


def test_metadata_as_python_prints_it_tells_the_cache_and_metadata_cut_off_is_flagged(meter, write):
    printed = {**LITELLM, "metadata": str(LITELLM["metadata"])}
    cut = {**LITELLM, "request_id": "chatcmpl-2", "metadata": json.dumps(LITELLM["metadata"])[:-9]}
    assert import_usage(meter, write("a.jsonl", [printed, cut])).ok
    assert tokens(meter) == {"gpt-5": {"calls": 2, "input": 1000 + 4072, "cache_read": 3072, "output": 1000}}
    assert ["usage_partly_read" in entry.flags for entry in meter.store.entries()] == [False, True]


OBSERVATION = {
    "id": "o1",
    "trace_id": "t",
    "type": "GENERATION",
    "start_time": "2026-10-13 10:00:02.123456",
    "provided_model_name": "gpt-5",
    "usage_details": {"input": 10, "output": 5},
}


@pytest.mark.parametrize("status", ["HIT", "hit", "SEMANTIC HIT"])
def test_what_portkeys_caches_answered_is_no_call(meter, write, status):
    row = {"id": "pk1", "created_at": "2026-10-17T10:00:00Z", "ai_org": "openai", "ai_model": "gpt-5"}
    row |= {"req_units": 100, "res_units": 20, "cost": 0.0325, "cost_currency": "USD"}
    rows = [{**row, "cache_status": status}, {**row, "id": "pk2", "cache_status": "SEMANTIC MISS"}]
    outcome = import_usage(meter, write("portkey.jsonl", rows))
    assert (outcome.recorded, outcome.not_calls, outcome.left_out) == (1, 1, [])


@pytest.mark.parametrize("name", ["spend_logs", "rows", "results", "data"])
def test_an_export_may_hold_its_rows_under_any_name(meter, write, name):
    row = {"request_id": "r1", "call_type": "acompletion", "spend": 0.1, "prompt_tokens": 40, "completion_tokens": 5}
    row |= {"endTime": "2026-10-13T10:00:02.000Z", "model": "gpt-5", "cache_hit": "False", "metadata": {}}
    outcome = import_usage(meter, write("page.json", json.dumps({"total": 1, "tags": ["a"], name: [row]})))
    assert (outcome.recorded, outcome.left_out) == (1, [])


@pytest.mark.parametrize("kind", ["GENERATION", "generation", "EMBEDDING"])
def test_an_observation_without_its_trace_is_one(meter, write, kind):
    row = {"id": "ob1", "type": kind, "start_time": "2026-10-14 10:00:00.125000", "provided_model_name": "gpt-5"}
    details = {"input": 900, "input_cached_tokens": 2048, "output": 200, "output_reasoning_tokens": 100, "total": 3248}
    outcome = import_usage(meter, write("observations.jsonl", [{**row, "usage_details": details}]))
    assert outcome.left_out == []
    assert tokens(meter) == {"gpt-5": {"calls": 1, "input": 900, "cache_read": 2048, "output": 300}}


@pytest.mark.parametrize(
    "usage",
    [
        {"input": "10", "output": "5"},
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        {"promptTokens": 10, "completionTokens": 5, "totalTokens": 15},
        {"input_tokens": 10.0, "output_tokens": 5},
    ],
)
def test_langfuse_counts_are_read_under_each_of_their_names(meter, write, usage):
    assert import_usage(meter, write("a.jsonl", [{**OBSERVATION, "usage_details": usage}])).ok
    assert tokens(meter) == {"gpt-5": {"calls": 1, "input": 10, "output": 5}}


def test_usage_of_unknown_names_only_is_left_out_aloud_not_recorded_as_nothing(meter, write):
    outcome = import_usage(meter, write("a.jsonl", [{**OBSERVATION, "usage_details": {"characters": 900}}]))
    assert (outcome.recorded, [problem.reason for problem in outcome.left_out]) == (
        0,
        ["its usage has no count that is known, only characters: record it by hand"],
    )


def test_a_cost_in_another_currency_is_not_taken_for_dollars(meter, write):
    row = {
        "id": "p1",
        "created_at": "2026-10-13T10:00:02Z",
        "is_success": True,
        "ai_org": "openai",
        "ai_model": "gpt-5",
        "req_units": 100,
        "res_units": 50,
        "cost": 0.5,
        "cost_currency": "EUR",
    }
    outcome = import_usage(meter, write("a.jsonl", [row, {**row, "id": "p2", "cost_currency": "USD"}]))
    assert (outcome.recorded, outcome.cost_in_source) == (2, Decimal("0.005"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": ["x"], "t": "2026-10-09T07:00:00Z", "i": 1}, "'id' is no single value"),
        ({"id": "x", "t": ["2026-10-09T07:00:00Z"], "i": 1}, "'t' is no single value"),
        ({"id": "x", "t": "2026-10-09T07:00:00Z", "i": {"n": 1}}, "'i' is no single value"),
    ],
)
def test_a_map_that_names_what_holds_more_than_one_value_is_told_so(meter, write, row, reason):
    fields = {"id": "id", "time": "t", "input": "i"}
    outcome = import_usage(meter, write("a.jsonl", [row]), fields=fields, model="gpt-5")
    assert [reason in problem.reason for problem in outcome.left_out] == [True]


def test_a_line_without_its_time_says_so(meter, write):
    row = claude("msg_1", 7)
    del row["timestamp"]
    outcome = import_usage(meter, write("a.jsonl", [row]))
    assert [problem.reason for problem in outcome.left_out] == ["it does not say when it was: give --at"]


@pytest.mark.parametrize(
    ("local", "doubtful"),
    [
        ("2026-10-25T02:30:00", True),  # shown twice
        ("2026-03-29 02:30:00", True),  # never shown
        ("2026-10-25T01:59:59", False),
        ("2026-10-25T03:00:00", False),
        ("2026-10-25T02:30:00+01:00", False),  # says which
    ],
)
def test_a_local_time_that_clocks_showed_twice_or_never_is_flagged(meter, write, local, doubtful):
    fields = {"id": "id", "time": "t", "input": "i"}
    rows = [{"id": "x", "t": local, "i": 1}]
    assert import_usage(meter, write("a.jsonl", rows), fields=fields, model="gpt-5", tz="Europe/Berlin").recorded == 1
    assert ["time_uncertain" in entry.flags for entry in meter.store.entries()] == [doubtful]


def test_a_database_of_something_else_in_a_folder_is_named_and_the_rest_is_read(meter, write, tmp_path):
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("CREATE TABLE notes (text TEXT)")
    database.close()
    write("b.jsonl", [claude("msg_1", 7)])
    outcome = import_usage(meter, tmp_path)
    assert (outcome.files, outcome.recorded) == (2, 1)
    assert [(problem.where, "no database of opencode" in problem.reason) for problem in outcome.left_out] == [
        (str(tmp_path / "a.db"), True)
    ]


def test_a_message_in_opencodes_database_that_is_no_json_costs_only_itself(meter, tmp_path):
    data = {
        "role": "assistant",
        "providerID": "openai",
        "modelID": "gpt-5",
        "time": {"created": 1791712860000},
        "tokens": {"input": 3, "output": 2, "reasoning": 0, "cache": {"read": 0, "write": 0}},
    }
    with sqlite3.connect(tmp_path / "opencode.db") as database:
        database.execute("CREATE TABLE message (id TEXT PRIMARY KEY, session_id TEXT, data TEXT)")
        rows = [("m1", "{"), ("m2", "[1]"), ("m3", None), ("m4", json.dumps(data))]
        database.executemany("INSERT INTO message VALUES (?, 's1', ?)", rows)
    database.close()
    outcome = import_usage(meter, tmp_path)
    assert (outcome.recorded, len(outcome.left_out)) == (1, 3)


SPEND = {
    "request_id": "r1",
    "call_type": "acompletion",
    "spend": 0.01,
    "prompt_tokens": 40,
    "completion_tokens": 5,
    "endTime": "2026-10-13T10:00:02.000Z",
    "model": "gpt-5",
    "custom_llm_provider": "openai",
    "metadata": None,
}


def zstandard(data):
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(data)
    return packed.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstandard)]
)
def test_packed_files_are_read_and_half_of_one_is_told(meter, write, tmp_path, ending, pack):
    rows = "".join(json.dumps({**SPEND, "request_id": f"r{at}"}) + "\n" for at in range(2000)).encode()
    write(f"whole/a.jsonl.{ending}", pack(rows))
    outcome = import_usage(meter, tmp_path / "whole")
    assert (outcome.recorded, outcome.ok) == (2000, True)
    outcome = import_usage(meter, write(f"half.jsonl.{ending}", pack(rows)[:-60]))
    assert (outcome.ok, outcome.recorded) == (False, 0)
    assert any("cannot be read further" in problem.reason for problem in outcome.left_out)


@pytest.mark.parametrize(("content", "what"), [(b"PK\x03\x04rest", "unpack it"), (b"PAR1rest", "write it as CSV")])
def test_a_file_whose_rows_cannot_be_read_is_not_answered_with_nothing(meter, write, content, what):
    outcome = import_usage(meter, write("export.bin", content))
    assert (outcome.recorded, [what in problem.reason for problem in outcome.left_out]) == (0, [True])


@pytest.mark.parametrize(
    ("model", "theirs", "provider", "name"),
    [
        ("azure/gpt-5", "azure", "azure", "gpt-5"),
        ("azure/gpt-5", None, "azure", "gpt-5"),
        ("anthropic/claude-sonnet-4-5", "anthropic", "anthropic", "claude-sonnet-4-5"),
        ("together_ai/meta-llama/Llama-3.3-70B", "", "together", "meta-llama/Llama-3.3-70B"),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "bedrock_converse", "aws", None),
        ("openrouter/x-ai/grok-4", "openrouter", "openrouter", "x-ai/grok-4"),
        ("meta-llama/Llama-3.3-70B", "hosted_vllm", "hosted_vllm", None),
        ("gpt-5", None, "openai", None),
    ],
)
def test_litellms_names_of_providers_before_models_and_beside_them_are_known(
    meter, write, model, theirs, provider, name
):
    assert import_usage(meter, write("a.jsonl", [{**SPEND, "model": model, "custom_llm_provider": theirs}])).ok
    (entry,) = meter.store.entries()
    assert (entry.provider, entry.model, entry.request_model) == (provider, name or model, model)


def test_instants_are_read_in_any_unit_since_1970(meter, write):
    units = (1791885602, 1791885602000, "1791885602000000", 1791885602000000000, 1791885602.0)
    rows = [{**SPEND, "request_id": f"r{at}", "endTime": instant} for at, instant in enumerate(units)]
    assert import_usage(meter, write("a.jsonl", rows)).recorded == len(units)
    assert {entry.occurred_at for entry in meter.store.entries()} == {datetime(2026, 10, 13, 10, 0, 2, tzinfo=UTC)}


def test_codex_totals_of_one_instant_are_one_run_in_any_order(meter, write):
    def count(whole, last):
        usage = {"input_tokens": whole, "cached_input_tokens": 0, "output_tokens": whole // 10}
        told = {"total_token_usage": usage, "last_token_usage": {**usage, "input_tokens": last}}
        payload = {"type": "token_count", "info": told}
        return {"timestamp": "2026-10-08T10:00:02.000Z", "type": "event_msg", "payload": payload}

    meta = {
        "timestamp": "2026-10-08T10:00:00.000Z",
        "type": "session_meta",
        "payload": {"id": "s1", "timestamp": "2026-10-08T10:00:00.000Z"},
    }
    import_usage(meter, write("a.jsonl", [meta, count(300, 200), count(100, 100)]))
    assert tokens(meter) == {"gpt-5": {"calls": 2, "input": 300, "output": 30}}


def growing(name, output, at):
    told = {"input": 7412, "output": output, "cached": 6500, "thoughts": 200, "tool": 30, "total": 7642 + output}
    return {"id": name, "timestamp": at, "type": "gemini", "tokens": told, "model": "gemini-2.5-pro"}


TRANSCRIPTS = {
    "claude-code": [
        claude("msg_1", 1, at="2026-10-31T23:59:58Z"),
        claude("msg_1", 340, at="2026-10-31T23:59:59Z"),
        claude("msg_1", 340, at="2026-11-01T00:00:01Z"),
        claude("msg_1", 340, sidechain=True, at="2026-11-01T00:00:00Z"),
        claude("msg_2", 7, at="2026-11-01T00:00:09Z"),
    ],
    "codex": [
        meta("B", at="2026-10-08T10:00:00Z", forked_from_id="A"),
        meta("A", at="2026-10-08T09:00:00Z"),
        turn("gpt-5.1-codex", at="2026-10-08T10:00:02Z"),
        codex((9000, 4000, 400, 200), at="2026-10-08T10:00:09Z"),
        turn("gpt-5-mini", at="2026-10-08T10:00:50Z"),
        codex((9300, 4000, 490, 200), at="2026-10-08T10:01:00Z"),
        codex((9900, 4000, 590, 200), at="2026-10-08T10:02:00Z"),
    ],
    "gemini": [
        {"sessionId": "x", "projectHash": "h"},
        growing("m1", 0, "2026-10-10T07:00:40Z"),
        growing("m1", 210, "2026-10-10T07:00:40Z"),
        growing("m2", 9, "2026-10-10T07:01:40Z"),
        growing("m2", 90, "2026-10-10T07:01:41Z"),
    ],
    "aider": [
        {
            "event": "message_send",
            "time": at,
            "properties": {"main_model": "gpt-5", "prompt_tokens": 5, "completion_tokens": 1, "cost": 1},
        }
        for at in (1791885602, 1791885602, 1791885603)
    ],
}


def told_by(meter):
    return sorted((entry.dedup_key, entry.model, entry.occurred_at) for entry in meter.store.entries())


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("source", TRANSCRIPTS)
def test_a_transcript_tells_the_same_calls_in_whichever_order_its_lines_stand(meter, write, source, order):
    """A second import of the same lines, shuffled: nothing new, and nothing that contradicts."""
    rows = TRANSCRIPTS[source]
    import_usage(meter, write("a.jsonl", rows), source=source)
    before = told_by(meter)
    shuffled = random.Random(order).sample(rows, len(rows))
    outcome = import_usage(meter, write("a.jsonl", shuffled), source=source)
    assert (outcome.recorded, outcome.conflicts, outcome.repeated) == (0, [], len(before))
    other = tokenmeter.make_meter(store="memory:", config={})
    assert import_usage(other, write("a.jsonl", shuffled), source=source).ok
    assert sorted((entry.dedup_key, entry.model, entry.occurred_at) for entry in other.store.entries()) == sorted(
        before
    )
    other.close()


OBSERVED = {"id": "o1", "traceId": "t1", "type": "GENERATION", "startTime": "2026-10-14T10:00:00Z", "model": "gpt-5"}


@pytest.mark.parametrize(
    "columns",
    [
        {"promptTokens": 10, "completionTokens": 5, "totalTokens": 15},
        {"inputTokens": "10", "outputTokens": "5", "totalTokens": "15"},
        {
            "usage_details": {},
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "input": "a question",
            "output": "an answer",
        },
    ],
)
def test_langfuse_counts_in_columns_of_their_own_are_read(meter, write, columns):
    assert import_usage(meter, write("a.jsonl", [{**OBSERVED, **columns}])).ok
    assert tokens(meter) == {"gpt-5": {"calls": 1, "input": 10, "output": 5}}


HELICONE = {
    "request_id": "h1",
    "response_created_at": "2026-10-15T10:00:02.000Z",
    "response_model": "gpt-5",
    "provider": "OPENAI",
    "response_body": {"usage": {"prompt_tokens": 10, "completion_tokens": 5}},
}
PORTKEY = {
    "id": "p1",
    "created_at": "2026-10-17T10:00:00.000Z",
    "ai_org": "openai",
    "ai_model": "gpt-5",
    "req_units": 10,
    "res_units": 5,
    "response": {"body": {"usage": {"prompt_tokens": 10, "completion_tokens": 5}}},
}


@pytest.mark.parametrize("row", [HELICONE, PORTKEY], ids=["helicone", "portkey"])
def test_a_body_that_names_no_model_is_of_the_rows_model_and_priced(meter, write, row):
    assert import_usage(meter, write("a.jsonl", [row])).recorded == 1
    (entry,) = meter.store.entries()
    assert (entry.model, entry.cost_source) == ("gpt-5", "computed")


@pytest.mark.parametrize(
    ("row", "calls"),
    [
        ({**HELICONE, "response_status": 201}, 1),
        ({**HELICONE, "response_status": "429"}, 0),
        ({**HELICONE, "cache_reference_id": "00000000-0000-0000-0000-000000000000"}, 1),
        ({**HELICONE, "cache_reference_id": "8d0f5f0e-36f5-4c0c-a3f4-2f6f0f4b3c11"}, 0),
        ({**PORTKEY, "response_status_code": 200}, 1),
        ({**PORTKEY, "response_status_code": 500}, 0),
    ],
)
def test_what_failed_and_what_a_gateways_cache_answered_is_no_call(meter, write, row, calls):
    outcome = import_usage(meter, write("a.jsonl", [row]))
    assert (outcome.recorded, outcome.not_calls) == (calls, 1 - calls)


def test_a_response_without_a_model_is_of_the_one_that_is_given(meter, write):
    row = {"id": "c1", "object": "chat.completion", "created": 1791885602}
    row["usage"] = {"prompt_tokens": 10, "completion_tokens": 5}
    import_usage(meter, write("a.jsonl", [row]), model="gpt-5")
    assert [(entry.model, entry.cost_source) for entry in meter.store.entries()] == [("gpt-5", "computed")]


def figures(meter):
    """What the ledger comes to, which is one request: meters and dollars."""
    (row,) = meter.store.aggregate([datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)], [])
    assert (row.requests, sum(entry.requests for entry in meter.store.entries())) == (1, 1)
    return row.quantities, row.billed_cost


@pytest.mark.parametrize(
    ("outputs", "completed"), [([340], 0), ([1, 340], 1), ([1, 200, 340], 2), ([1, 340, 340, 1], 1)]
)
def test_an_answer_that_was_read_while_it_came_becomes_whole_at_the_next_import(meter, write, outputs, completed):
    """However often it is read in between, the ledger comes to what one reading of the whole gives."""
    cached = {"cache_creation_input_tokens": 2310, "cache_read_input_tokens": 11840}
    seen = []
    for output in outputs:
        lines = [claude("msg_1", 1, at="2026-10-05T23:59:59Z", **cached)]
        if output > 1:
            lines.append(claude("msg_1", output, at="2026-10-06T00:00:03Z", **cached))
        outcome = import_usage(meter, write("a.jsonl", lines))
        assert (outcome.ok, outcome.conflicts) == (True, [])
        seen.append(outcome.completed)
    assert sum(seen) == completed
    whole = {"input": 4, "output": 340, "cache_read": 11840, "cache_write_5m": 2310}
    assert figures(meter) == (whole, Decimal("0.017326500000"))
    entries = list(meter.store.entries())
    assert sum(line.billed_cost for entry in entries for line in entry.charges) == Decimal("0.0173265")
    assert meter.store.verify().ok


def test_what_completes_an_answer_counts_in_budgets_and_is_priced_again_with_it(write):
    budgets = [
        {"name": name, f"limit_{name}": limit} for name, limit in (("tokens", 10_000), ("usd", 5), ("requests", 9))
    ]
    meter = tokenmeter.make_meter(store="memory:", config={"budgets": budgets})
    for output in (1, 340):
        outcome = import_usage(meter, write("a.jsonl", [claude("msg_1", output)]))
    assert "1 completed" in str(outcome)
    spent = {one.budget: one.spent for one in meter.remaining(at=datetime(2026, 10, 5, 10, tzinfo=UTC))}
    assert spent == {"tokens": 344, "usd": Decimal("0.005112"), "requests": 1}
    part, whole, back = meter.store.entries()
    assert dict(whole.usage.quantities) == {"input": 4, "output": 340}
    assert {"completed", "imported"} <= set(whole.flags)
    assert (back.kind, back.corrects) == ("reversal", part.entry_id)
    assert meter.audit_budgets() == ()
    assert list(meter.reprice(changed=True)) == []
    meter.close()


def test_what_completes_answers_is_found_without_reading_their_days_for_each(meter, write, monkeypatch):
    read = []

    def entries(wanted=None):
        for entry in found(wanted) if wanted else found():
            read.append(entry)
            yield entry

    found = meter.store.entries
    monkeypatch.setattr(meter.store, "entries", entries)
    calls = 40
    for output in (1, 340):
        lines = [claude(f"msg_{number}", output) for number in range(calls)]
        outcome = import_usage(meter, write("a.jsonl", lines))
    assert outcome.completed == calls
    assert len(read) <= 4 * calls  # of the day once, and then of each answer what is recorded of it


def test_a_transcript_completes_nothing_that_a_metered_client_recorded(meter, write):
    import_usage(meter, write("a.jsonl", [claude("msg_1", 9)]))
    (entry,) = meter.store.entries()
    other = tokenmeter.make_meter(store="memory:", config={})
    other.post(replace(entry, flags=()))
    outcome = import_usage(other, write("b.jsonl", [claude("msg_1", 10)]))
    assert (outcome.completed, len(outcome.conflicts)) == (0, 1)
    other.close()


ODD = pytest.mark.parametrize("odd", ["12 in, 5 out", [12, 5], 17, True])


@ODD
@pytest.mark.parametrize(
    ("place", "row"),
    [
        ("message.usage", claude("msg_1", 7)),
        ("payload.info", codex((100, 0, 10, 0), at="2026-10-08T10:00:09Z")),
        ("payload.info.total_token_usage", codex((100, 0, 10, 0), at="2026-10-08T10:00:09Z")),
        ("usage_details", OBSERVATION),
        (
            "tokens",
            {
                "id": "m1",
                "timestamp": "2026-10-10T07:00:40Z",
                "type": "gemini",
                "tokens": {},
                "model": "gemini-2.5-pro",
            },
        ),
        ("properties", {"event": "message_send", "properties": {}, "time": 1791799200}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_counts_that_are_no_object_are_named_not_dropped(meter, write, place, row, odd):
    changed = inner = json.loads(json.dumps(row))
    *way, last = place.split(".")
    for name in way:
        inner = inner[name]
    inner[last] = odd
    sound = [{"sessionId": "x", "projectHash": "h"}] if row.get("type") == "gemini" else []
    begin = [meta("H"), turn("gpt-5")] if "payload" in row else sound
    outcome = import_usage(meter, write("a.jsonl", [*begin, changed, claude("msg_2", 9)]))
    assert outcome.recorded == 1
    assert [f"its {last} is no JSON object" in problem.reason for problem in outcome.left_out] == [True]


def test_a_pipe_is_refused_with_the_way_out(meter, tmp_path):
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(ConfigurationError, match="write what comes out of it to a file"):
        import_usage(meter, tmp_path / "log.jsonl")


def test_a_call_whose_line_names_no_model_has_none_rather_than_an_empty_name(meter, write):
    row = claude("msg_1", 7)
    row["message"]["model"] = ""
    import_usage(meter, write("a.jsonl", [row]))
    (entry,) = meter.store.entries()
    assert (entry.request_model, entry.response_model, entry.billed_cost) == (None, None, None)


def test_sums_are_sent_where_they_can_be_compared(meter, tmp_path):
    row = {"day": "2026-10-05", "model": "openai/gpt-5", "total_cost": 1.25, "request_count": 10}
    told = tmp_path / "vercel.json"
    told.write_text(json.dumps({"results": [row]}))
    (left_out,) = import_usage(meter, told).left_out
    assert "write the rows of a JSON file as one" in left_out.reason
    written = tmp_path / "vercel.csv"
    written.write_text(",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
    columns = {"day": "day", "model": "model", "cost": "total_cost", "requests": "request_count"}
    outcome = reconcile(meter.store, provider="vercel", period="2026-10", source=written, columns=columns)
    assert str(outcome.theirs.cost) == "1.25"
