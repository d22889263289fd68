"""An assistant's client over standard input and output: the questions it can ask, and what it is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from mcp import Client, StdioServerParameters

import tokenmeter
from tokenmeter.reports import Query
from tokenmeter.serving import answers
from tokenmeter.serving.access import EVERYTHING, AccessScope
from tokenmeter.serving.lens import look_through
from tokenmeter.serving.mcp import make_server

TOOLS = {"report", "remaining", "entries", "price", "estimate"}


@pytest.fixture
def connect(busy, tmp_path):
    """A client of `tokenmeter mcp` over the ledger of `busy`: `connect("--only", "member=ada")`."""

    settings = tmp_path / "tokenmeter.toml"
    settings.write_text(f"store = '{busy.store.url}'\nmultiplier = '1.05'\n")

    def client(*options):
        arguments = ["-m", "tokenmeter", "mcp", "--config", str(settings), *options]
        known = {name: value for name, value in os.environ.items() if not name.startswith("TOKENMETER_")}
        return Client(StdioServerParameters(command=sys.executable, args=arguments, env=known))

    return client


async def ask(client, tool, **arguments):
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    return answer.structured_content


async def test_an_assistant_asks_about_spend(connect, busy):
    before = busy.store.verify()
    async with connect() as client:
        tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools} == TOOLS
        assert all(tool.annotations.read_only_hint and tool.description for tool in tools)

        found = await ask(client, "report", by="member", where=["team=search", "team=ads"])
        same = busy.report(by="member", where={"team": ["search", "ads"]}).to_dict()
        assert (found["rows"], found["totals"]) == (json.loads(json.dumps(same["rows"])), same["totals"])

        page = await ask(client, "entries", limit=2)
        more = await ask(client, "entries", limit=2, cursor=page["next_cursor"])
        newest = [one.entry_id for _, one in zip(range(4), busy.entries(newest_first=True), strict=False)]
        assert [one["entry_id"] for one in (*page["entries"], *more["entries"])] == newest

        left = await ask(client, "remaining", account=["member=ada"])
        assert {one["budget"] for one in left["balances"]} >= {"everything"}

        rows = (await ask(client, "price", model="gpt-5-mini"))["prices"]
        assert {row["sku_meter"] for row in rows} >= {"input", "output"}
        told = await ask(client, "estimate", model="gpt-5-mini", input_tokens=1000, max_output_tokens=200)
        same = busy.estimate("gpt-5-mini", input_tokens=1000, max_output_tokens=200)
        assert told["expected_cost"] == f"{same.expected_cost:f}"
    assert busy.store.verify() == before


async def test_a_mistake_is_told_so_that_the_assistant_can_mend_it(connect):
    async with connect() as client:
        for tool, arguments, words in (
            ("report", {"by": "colour"}, "Unknown dimension"),
            ("report", {"period": "soonish"}, "Unknown period"),
            ("price", {"model": "unheard-of-1"}, "No price names"),
            ("entries", {"cursor": "nonsense"}, "next_cursor"),
        ):
            answer = await client.call_tool(tool, arguments)
            assert answer.is_error
            assert words in answer.content[0].text


def test_it_ends_when_nobody_can_hear_an_answer(busy):
    """An assistant that stops reading may leave the other pipe open, also to a child of its own."""
    command = [sys.executable, "-m", "tokenmeter", "mcp", "--store", busy.store.url]
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        try:
            server.stdin.write(json.dumps(hello).encode() + b"\n")
            server.stdin.flush()
            assert json.loads(server.stdout.readline())["id"] == 1
            server.stdout.close()
            assert server.wait(20) == 1
        finally:
            server.kill()


async def test_an_assistant_for_one_member_sees_that_member_only(connect):
    async with connect("--only", "member=ada") as client:
        found = await ask(client, "report", by="member")
        assert (await ask(client, "report", by=["member"]))["rows"] == found["rows"]
        assert [row["group"]["member"] for row in found["rows"]] == ["ada"]
        entries = await ask(client, "entries", where=["member=bob"])
        assert entries["entries"] == []


async def test_what_remains_is_told_of_the_fullest_and_the_others_are_counted():
    """A ledger has a balance per member; an assistant's memory has a bound."""
    members = {"member": "*", "limit_requests": 1000, "period": "total", "name": "members"}
    meter = tokenmeter.make_meter(store="memory://", config={}, budgets=[members])
    for number in [*range(60), 33]:
        meter.record(
            {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            provider="openai",
            endpoint="chat.completions",
            model="gpt-5-mini",
            attribution=tokenmeter.Attribution(member=f"member-{number}"),
        )
    async with Client(make_server(look_through(meter, EVERYTHING))) as client:
        told = await ask(client, "remaining")
        few = await ask(client, "remaining", limit=2)
    meter.close()
    assert (len(told["balances"]), told["balances_omitted"]) == (50, 10)
    assert (len(few["balances"]), few["balances_omitted"]) == (2, 58)
    assert few["balances"][0]["scope"] == {"member": "member-33"}


#: Tool -> arguments that it must refuse, and what it says.
REFUSED = [
    ("report", {"colour": "red"}, "does not take colour"),
    ("report", {"member": "ada"}, "does not take member"),
    ("report", {"by": 5}, "report: by should be a valid string or a valid list."),
    ("report", {"since": "2026-02-01", "until": "2026-01-01"}, "period is empty"),
    ("report", {"since": "0000-00-00"}, "is not an instant"),
    ("report", {"period": "2026-11", "since": "2026-11-01"}, "not both"),
    ("report", {"granularity": "minute"}, "'hour'"),
    ("report", {"where": ["member"]}, "DIMENSION=VALUE"),
    ("report", {"where": "member=ada"}, "valid list"),
    ("report", {"tz": "Mars/Olympus"}, "Unknown time zone"),
    ("report", {"limit": 0}, "report: limit should be greater than or equal to 1."),
    ("report", {"limit": 0, "tz": 5}, "tz should be a valid string."),
    ("report", {"where": [1, 2]}, "report: each of where should be a valid string."),
    ("remaining", {"accounts": ["member=ada"]}, "does not take accounts"),
    ("remaining", {"account": ["member"]}, "DIMENSION=VALUE"),
    ("remaining", {"limit": 1001}, "less than or equal to 1000"),
    ("remaining", {"account": ["member=ada", "member=bob"]}, "each once"),
    ("entries", {"where": ["colour=red"]}, "Unknown dimension"),
    ("entries", {"limit": 201}, "less than or equal to 200"),
    ("entries", {"order": "up"}, "'newest' or 'oldest'"),
    ("price", {}, "price needs model."),
    ("price", {"model": "gpt-5", "at": "soon"}, "is not an instant"),
    ("price", {"model": "gpt-5", "provider": "nobody"}, "No price names"),
    ("estimate", {}, "estimate needs model, input_tokens."),
    ("estimate", {"model": "gpt-5"}, "estimate needs input_tokens."),
    ("estimate", {"input_tokens": "many"}, "needs model. estimate: input_tokens should be a valid integer"),
    ("estimate", {"model": "gpt-5", "input_tokens": -1}, "greater than or equal to 0"),
    ("estimate", {"model": "gpt-5", "input_tokens": 10**30}, "number of tokens"),
    ("estimate", {"model": "gpt-5", "input_tokens": 1, "max_output_tokens": 1, "expected_output_tokens": 5}, "most"),
]


async def test_every_tool_refuses_what_it_cannot_answer(busy):
    async with Client(make_server(look_through(busy, EVERYTHING))) as client:
        assert {tool for tool, _, _ in REFUSED} == TOOLS
        for tool, arguments, words in REFUSED:
            answer = await client.call_tool(tool, arguments)
            assert answer.is_error, (tool, arguments)
            assert words in answer.content[0].text, (tool, arguments)
            assert "pydantic" not in answer.content[0].text, (tool, arguments)


async def test_no_tool_tells_a_part_what_is_of_others(filed, hostile):
    theirs = [one for one in filed.store.entries() if one.attribution.member == "bob"][2]
    known = [one.entry_id for one in filed.store.entries()]
    before = known.index(theirs.entry_id) + 1
    cursor = answers.entry_page(filed, Query.parse(), limit=before, newest_first=False).next
    ways = [
        *({"where": [said]} for said in ("member=bob", "member!=ada", "member=", "team=ads", "tag:env!=prod")),
        {"where": ["member=ada", "member=bob"]},
    ]
    asked = [
        *(("report", way) for way in ways),
        ("report", {"by": ["team", "route"]}),
        *(("report", {"by": by}) for by in ("member", "team,route", "api_key", "member,tag:env", "response_id")),
        ("report", {"by": "member", "granularity": "day"}),
        *(("entries", way) for way in ways),
        ("entries", {"cursor": cursor, "order": "oldest"}),
        ("entries", {"cursor": cursor, "order": "oldest", "limit": 200}),
        *(("remaining", {"account": said}) for said in ([], ["member=bob"], ["team=ads"], ["route=/summarise"])),
        ("price", {"model": "gpt-5-mini"}),
        ("estimate", {"model": "gpt-5-mini", "input_tokens": 5}),
    ]
    hidden = ["bob", "summarise", "staging", hostile, theirs.entry_id, theirs.response_id]
    async with Client(make_server(look_through(filed, AccessScope.of({"member": "ada"})))) as client:
        for tool, arguments in asked:
            answer = await client.call_tool(tool, arguments)
            told, said = "".join(one.text for one in answer.content), str(arguments)
            assert [one for one in hidden if one in told and one not in said] == [], (tool, arguments)
            if tool == "report" and not answer.is_error:
                assert json.loads(told)["totals"]["requests"] <= sum(
                    one.attribution.member == "ada" for one in filed.store.entries()
                )
