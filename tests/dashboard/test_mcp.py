"""An assistant's client over standard input and output: the questions it can ask, and what it is told."""

from __future__ import annotations

import json
import os
import sys

import pytest
from mcp import Client, StdioServerParameters

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


async def test_an_assistant_for_one_member_sees_that_member_only(connect):
    async with connect("--only", "member=ada") as client:
        found = await ask(client, "report", by="member")
        assert [row["group"]["member"] for row in found["rows"]] == ["ada"]
        entries = await ask(client, "entries", where=["member=bob"])
        assert entries["entries"] == []
