"""The how-tos of the API and of MCP, followed to the letter."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

import tokenmeter
from tokenmeter.dashboard.server import make_server

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
TOKEN = "a-long-enough-token-for-a-test"


@pytest.fixture
def meter(tmp_path):
    made = tokenmeter.make_meter(store=f"sqlite:///{tmp_path / 'usage.db'}", budgets=[{"member": "*", "limit_usd": 5}])
    made.record(
        {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        provider="openai",
        endpoint="chat.completions",
        model="gpt-5-mini",
        attribution=tokenmeter.Attribution(member="ada"),
    )
    yield made
    made.close()


def test_the_questions_of_the_api_page_are_answered(meter):
    (block,) = (
        one
        for one in re.findall(r"```bash\n(.*?)```", (HOW_TO / "usage-api.md").read_text(), re.DOTALL)
        if "curl" in one
    )
    server = make_server(meter, port=0, token=TOKEN)
    with server.config.bind_socket() as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            script = block.replace(":8484", f":{listening.getsockname()[1]}").replace("TOKEN=...", f"TOKEN={TOKEN}")
            known = {"PATH": os.environ["PATH"]}
            ran = subprocess.run(["bash", "-e"], input=script, env=known, text=True, capture_output=True, check=False)
        finally:
            server.should_exit = True
            thread.join()
    assert ran.returncode == 0, ran.stderr
    answers = [json.loads(text) for text in re.sub(r"\}\{", "}\n{", ran.stdout).splitlines()]
    assert len(answers) == block.count("curl ")
    assert answers[0]["rows"][0]["group"] == {"member": "ada", "model": "gpt-5-mini"}
    assert answers[3]["balances"][0]["scope"] == {"member": "ada"}


def test_the_settings_of_the_mcp_page_start_a_server_with_the_tools_it_lists(meter):
    text = (HOW_TO / "mcp.md").read_text()
    (settings,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    named = json.loads(settings)["mcpServers"]["tokenmeter"]
    assert named["command"] == "tokenmeter"
    arguments = [meter.store.url if one.startswith("sqlite:") else one for one in named["args"]]

    async def tools():
        async with Client(
            StdioServerParameters(command=sys.executable, args=["-m", "tokenmeter", *arguments])
        ) as client:
            return [tool.name for tool in (await client.list_tools()).tools]

    assert asyncio.run(tools()) == re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
