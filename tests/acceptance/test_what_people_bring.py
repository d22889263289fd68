"""Usage that people have already, from the command line: each call once by its id, and nothing dropped in silence.

Each format is a file as its program writes it, with a line that is no billed call and one that cannot be read.
"""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BROKEN = '{"id": "cut o'


@dataclass
class Log:
    """A log of one program: its rows, and what they are worth.

    Attributes:
        name: The file's name.
        rows: As the program has them.
        means: Model -> calls and tokens: uncached input, read from a cache, written to it, output.
        not_calls: Rows that are rightly no billed call.
        change: Makes another figure of the last row.
        pack: Rows as the bytes of a file.
        broken: A line that cannot be read, None where the format has no lines.
        options: What the command needs to be told.
    """

    name: str
    rows: list[dict[str, Any]]
    means: dict[str, tuple[int, int, int, int, int]]
    not_calls: int
    change: Callable[[dict[str, Any]], object]
    pack: Callable[[list[dict[str, Any]], list[str]], bytes]
    broken: str | None = BROKEN
    options: tuple[str, ...] = field(default=())


def as_lines(rows, more):
    return "".join(f"{line}\n" for line in [*map(json.dumps, rows), *more]).encode()


def as_gzip(rows, more):
    return gzip.compress(as_lines(rows, more))


def as_array(rows, more):
    assert not more
    return json.dumps(rows, indent=1).encode()


def as_data(rows, more):
    assert not more
    return json.dumps({"data": rows, "meta": {"page": 1, "totalItems": len(rows)}}).encode()


def as_csv(rows, more):
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return (text.getvalue() + "".join(f"{line}\n" for line in more)).encode()


def codex_row(second, kind, **payload):
    return {"timestamp": f"2025-10-08T10:00:{second:02}.000Z", "type": kind, "payload": payload}


def codex_count(second, total, last):
    """Running totals, as Codex tells them after each answer, and again whenever limits change."""
    names = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_output_tokens")
    info = {
        "total_token_usage": dict(zip(names, total, strict=True)) | {"total_tokens": total[0] + total[2]},
        "last_token_usage": dict(zip(names, last, strict=True)) | {"total_tokens": last[0] + last[2]},
    }
    return codex_row(second, "event_msg", type="token_count", info=info)


def codex():
    first, second = (11_168, 2_048, 700, 512), (22_908, 12_288, 910, 576)
    rows = [
        codex_row(0, "session_meta", id="0199aaaa-0000-7000-8000-000000000001", cwd="/home/ana/shop"),
        codex_row(0, "turn_context", cwd="/home/ana/shop", model="gpt-5.1-codex"),
        codex_row(1, "event_msg", type="token_count", info=None),
        codex_count(9, first, first),
        codex_count(20, first, first),
        codex_count(40, second, (11_740, 10_240, 210, 64)),
    ]

    def change(row):  # its calls have no ids: one is known by the totals of input and output that it led to
        for usage in row["payload"]["info"].values():
            usage["cached_input_tokens"] -= 40

    means = {"gpt-5.1-codex": (2, 22_908 - 12_288, 12_288, 0, 910)}
    return Log("rollout-2025-10-08T10-00-00-0199aaaa.jsonl", rows, means, 3, change, as_lines)


def litellm_row(id_, model, provider, usage, *, status="success", hit=False):
    return {
        "request_id": id_,
        "call_type": "acompletion",
        "spend": 0.0125,
        "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "startTime": "2025-10-13T10:00:00.000Z",
        "endTime": "2025-10-13T10:00:02.000Z",
        "model": model,
        "custom_llm_provider": provider,
        "user": "ana",
        "metadata": {"user_api_key_alias": "shop-prod", "usage_object": usage, "status": "success"},
        "cache_hit": str(hit),
        "team_id": "team-7",
        "status": status,
    }


def litellm(pack=as_lines, name="spendlogs.jsonl"):
    cached = {"prompt_tokens": 4_072, "completion_tokens": 500, "prompt_tokens_details": {"cached_tokens": 3_072}}
    written = {
        "prompt_tokens": 3_779,
        "completion_tokens": 467,
        "cache_creation_input_tokens": 1_253,
        "cache_read_input_tokens": 2_495,
        "prompt_tokens_details": {"cached_tokens": 2_495, "cache_creation_tokens": 1_253},
    }
    rows = [
        litellm_row("chatcmpl-hit", "gpt-5", "openai", cached, hit=True),
        litellm_row("chatcmpl-bad", "gpt-5", "openai", {"prompt_tokens": 0, "completion_tokens": 0}, status="failure"),
        litellm_row("chatcmpl-1", "gpt-5", "openai", cached),
        litellm_row("msg_2", "claude-sonnet-4-5-20250929", "anthropic", written),
    ]

    def change(row):
        row["completion_tokens"] += 7
        row["total_tokens"] += 7
        row["metadata"]["usage_object"]["completion_tokens"] += 7

    means = {"gpt-5": (1, 1_000, 3_072, 0, 500), "claude-sonnet-4-5-20250929": (1, 31, 2_495, 1_253, 467)}
    return Log(name, rows, means, 2, change, pack)


def litellm_csv():
    def pack(rows, more):
        return as_csv([row | {"metadata": json.dumps(row["metadata"])} for row in rows], more)

    log = litellm(pack, "spendlogs.csv")
    log.broken = "chatcmpl-cut,acompletion,0.01"
    return log


def langfuse_row(id_, kind, model, usage):
    return {
        "id": id_,
        "trace_id": "tr1",
        "type": kind,
        "start_time": "2025-10-14 10:00:00.125000",
        "end_time": "2025-10-14 10:00:03.125000",
        "provided_model_name": model,
        "user_id": "ana",
        "usage_details": usage,
        "cost_details": {},
        "total_cost": None,
    }


def langfuse(pack=as_lines, broken=BROKEN, name="observations.jsonl"):
    seen = {"input": 900, "output": 200, "input_cached_tokens": 2_048, "output_reasoning_tokens": 100, "total": 3_248}
    made = {"input": 14, "output": 222, "input_cached_tokens": 4_000, "input_cache_creation_1h": 350, "total": 4_586}
    rows = [
        langfuse_row("sp1", "SPAN", None, {}),
        langfuse_row("ob1", "GENERATION", "gpt-5", seen),
        langfuse_row("ob2", "GENERATION", "claude-sonnet-4-5-20250929", made),
    ]

    def change(row):
        row["usage_details"]["output"] += 7
        row["usage_details"]["total"] += 7

    means = {"gpt-5": (1, 900, 2_048, 0, 300), "claude-sonnet-4-5-20250929": (1, 14, 4_000, 350, 222)}
    return Log(name, rows, means, 1, change, pack, broken)


def helicone_row(id_, provider, body, status=200):
    return {
        "response_id": f"h-{id_}",
        "response_created_at": "2025-10-15T10:00:02.000Z",
        "response_body": body,
        "response_status": status,
        "response_model": body.get("model"),
        "request_id": f"00000000-0000-0000-0000-{id_}",
        "request_created_at": "2025-10-15T10:00:00.000Z",
        "request_path": "/v1/chat/completions" if provider == "OPENAI" else "/v1/messages",
        "request_user_id": "ana",
        "provider": provider,
        "costUSD": None,
    }


def helicone():
    details = {"prompt_tokens_details": {"cached_tokens": 1_024}}
    usage = {"prompt_tokens": 1_144, "completion_tokens": 64, "total_tokens": 1_208, **details}
    chat = {"id": "chatcmpl-he1", "object": "chat.completion", "model": "gpt-5-2025-08-07", "usage": usage}
    message = {
        "id": "msg_he2",
        "type": "message",
        "model": "claude-haiku-4-5-20251001",
        "usage": {
            "input_tokens": 77,
            "cache_creation_input_tokens": 300,
            "cache_read_input_tokens": 900,
            "output_tokens": 41,
            "cache_creation": {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 0},
        },
    }
    rows = [
        helicone_row("000000000003", "OPENAI", {"error": {"message": "rate limited"}}, 429),
        helicone_row("000000000001", "OPENAI", chat),
        helicone_row("000000000002", "ANTHROPIC", message),
    ]

    def change(row):
        row["response_body"]["usage"]["output_tokens"] += 7

    means = {"gpt-5-2025-08-07": (1, 120, 1_024, 0, 64), "claude-haiku-4-5-20251001": (1, 77, 900, 300, 41)}
    return Log("requests.jsonl", rows, means, 1, change, as_lines)


def openrouter_row(id_, model, prompt, cached, completion, cost):
    return {
        "generation_id": id_,
        "created_at": "2025-10-16 10:00:00.713",
        "cost_total": cost,
        "tokens_prompt": prompt,
        "tokens_completion": completion,
        "tokens_reasoning": 0,
        "tokens_cached": cached,
        "model_permaslug": model,
        "provider_name": "OpenAI",
        "variant": "standard",
        "cancelled": "false",
        "user": "ana",
        "api_key_name": "shop-prod",
    }


def openrouter():
    rows = [
        openrouter_row("gen-1-A", "openai/gpt-5-2025-08-07", 1_012, 512, 128, "0.001969"),
        openrouter_row("gen-2-B", "anthropic/claude-4.5-sonnet-20250929", 900, 0, 310, "0.00735"),
    ]

    def change(row):
        row["tokens_completion"] += 7

    means = {
        "openai/gpt-5-2025-08-07": (1, 500, 512, 0, 128),
        "anthropic/claude-4.5-sonnet-20250929": (1, 900, 0, 0, 310),
    }
    return Log("openrouter_activity.csv", rows, means, 0, change, as_csv, "gen-3-C,2025-10-16 10:02:00.000,0.1")


def mapped(pack, name, broken=BROKEN):
    rows = [
        {"req": {"id": f"r-{n}", "ts": 1_760_000_000_000 + n}, "model": model, "n": {"in": 100, "hit": 30, "out": 9}}
        for n, model in enumerate(("gpt-5", "gpt-5", "gpt-5-mini"))
    ]

    def change(row):
        row["n"]["out"] += 7

    means = {"gpt-5": (2, 140, 60, 0, 18), "gpt-5-mini": (1, 70, 30, 0, 9)}
    named = "id=req.id,time=req.ts,model=model,input=n.in,cache_read=n.hit,output=n.out"
    return Log(name, rows, means, 0, change, pack, broken, ("--map", named))


LOGS = {
    "codex": codex(),
    "litellm": litellm(),
    "litellm, packed": litellm(as_gzip, "spendlogs.jsonl.gz"),
    "litellm, table": litellm_csv(),
    "langfuse": langfuse(),
    "langfuse, pages of its API": langfuse(as_data, None, "observations.json"),
    "helicone": helicone(),
    "openrouter": openrouter(),
    "rows of one's own, packed": mapped(as_gzip, "calls.jsonl.gz"),
    "rows of one's own, array": mapped(as_array, "calls.json", None),
}


@pytest.fixture(params=LOGS)
def log(request):
    return copy.deepcopy(LOGS[request.param])


@pytest.fixture
def run(tmp_path, monkeypatch, run_command):
    """A command line in a folder with a ledger of its own: exit code, and what was said as JSON."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    Path("tokenmeter.toml").write_text('store = "sqlite:///usage.db"\n')

    def command(*arguments):
        code, printed, complaint = run_command(*arguments, "--json")
        assert printed, complaint
        return code, json.loads(printed)

    return command


@pytest.fixture
def bring(run):
    """Writes a log and imports it: exit code and outcome."""

    def command(log, more=()):
        Path(log.name).write_bytes(log.pack(log.rows, list(more)))
        return run("import", log.name, *log.options)

    return command


def sums(run):
    """Model -> calls and tokens, as the report of the ledger has them."""
    report = run("report", "--by", "model", "--since", "2025-10-01", "--until", "2025-11-01")[1]
    found = {}
    for row in report["rows"]:
        read, written = row["cache_read_input_tokens"], row["cache_write_input_tokens"]
        uncached = row["input_tokens"] - read - written
        found[row["group"]["model"]] = (row["requests"], uncached, read, written, row["output_tokens"])
    return found


def test_a_log_is_its_calls_and_tokens_once_however_often_it_is_brought(log, bring, run):
    calls = sum(told[0] for told in log.means.values())
    code, first = bring(log)
    assert (code, first["recorded"], first["not_calls"], first["left_out"]) == (0, calls, log.not_calls, [])
    assert sums(run) == log.means
    code, again = bring(log)
    assert (code, again["recorded"], again["repeated"], again["conflicts"]) == (0, 0, calls, [])
    assert sums(run) == log.means
    assert first["lines"] == first["recorded"] + first["not_calls"] + first["merged"]


@pytest.mark.parametrize("log", [name for name, log in LOGS.items() if log.broken], indirect=True)
def test_a_line_that_cannot_be_read_is_named_and_costs_only_itself(log, bring, run):
    code, outcome = bring(log, [log.broken])
    assert code == 1
    (problem,) = outcome["left_out"]
    assert problem["where"].startswith(log.name)
    assert problem["where"].endswith(f":{len(log.rows) + 1 + log.name.endswith('.csv')}")
    assert problem["reason"]
    assert sums(run) == log.means


def test_the_same_id_with_other_figures_is_named_and_changes_nothing(log, bring, run):
    bring(log)
    log.change(log.rows[-1])
    code, outcome = bring(log)
    assert (code, outcome["recorded"], len(outcome["conflicts"])) == (1, 0, 1)
    assert outcome["conflicts"][0]["where"].startswith(log.name)
    assert sums(run) == log.means


@pytest.mark.parametrize("half", [as_gzip, as_array, as_data], ids=["packed", "array", "pages"])
def test_half_of_a_document_is_told_and_never_taken_for_the_whole(half, bring, run):
    log = mapped(half, "calls.jsonl.gz" if half is as_gzip else "calls.json")
    whole = half(log.rows, [])
    log.pack = lambda rows, more: whole[: len(whole) // 2]
    Path(log.name).write_bytes(log.pack([], []))
    code, outcome = run("import", log.name, *log.options) if half is as_gzip else bring(log)
    assert code == 1
    assert outcome["left_out"]


def test_days_of_sums_are_no_calls_and_the_command_for_them_is_named(run):
    headings = '"Date","Slug","Usage","BYOK Usage","Requests","Prompt Tokens","Completion Tokens","Reasoning Tokens"'
    Path("daily.csv").write_text(f'{headings}\n"2025-10-16 00:00:00","openai/gpt-5","12.5","0","410","12","3","1"\n')
    code, outcome = run("import", "daily.csv")
    assert (code, outcome["recorded"]) == (1, 0)
    assert "reconcile --file" in outcome["left_out"][0]["reason"]
