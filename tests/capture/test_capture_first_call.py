"""The first call of a process: what is read from disk then (settings, prices) does not hold up an event loop."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import asyncio, json, sys, time
import tokenmeter.{sdk}
from tokenmeter.testing import FakeProvider
import {sdk}

async def main(url):
    client = tokenmeter.{sdk}.{cls}(api_key="k", base_url=url)
    plain = {sdk}.{cls}(api_key="k", base_url=url)
    call = dict({call})
    await plain.{method}(**call)  # what the SDK itself loads at its first call is not ours
    late = []
    async def watch():
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append("genai_prices.data" in sys.modules)
    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.01)
    await client.{method}(**call)
    watching.cancel()
    entries = list(tokenmeter.entries())
    print(json.dumps([late[0], any(late), len(entries), entries[0].cost_source, threads]))

threads = []
import threading, importlib.abc
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("genai_prices", "tokenmeter.default"):
            threads.append((name, threading.current_thread() is threading.main_thread()))
sys.meta_path.insert(0, Finder())
with FakeProvider() as provider:
    asyncio.run(main(provider.{sdk}_url))
"""
CALLS = {
    "openai": (
        "AsyncOpenAI",
        "chat.completions.create",
        "model='gpt-5-mini', messages=[dict(role='user', content='x')]",
    ),
    "anthropic": (
        "AsyncAnthropic",
        "messages.create",
        "model='claude-sonnet-4-5', max_tokens=9, messages=[dict(role='user', content='x')]",
    ),
}


@pytest.mark.parametrize("sdk", CALLS)
def test_an_event_loop_goes_on_while_settings_and_prices_are_read(sdk, tmp_path):
    pytest.importorskip(sdk)
    cls, method, call = CALLS[sdk]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(sdk=sdk, cls=cls, method=method, call=call)],
        env={"PATH": "/usr/bin", "TOKENMETER_STORE": f"sqlite:///{tmp_path}/usage.db", "HOME": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    read_before, read_meanwhile, entries, cost_source, threads = json.loads(done.stdout)
    assert (read_before, read_meanwhile, entries, cost_source) == (False, True, 1, "computed")
    assert {name for name, _ in threads} == {"genai_prices", "tokenmeter.default"}
    assert not any(on_the_loop for _, on_the_loop in threads)


FIRST = """
import sys, tokenmeter
from tokenmeter.openai import OpenAI
from tokenmeter.testing import FakeProvider

tokenmeter.configure(budgets=[tokenmeter.Budget(limit_usd=5)])
with FakeProvider() as provider:
    client = OpenAI(api_key="k", base_url=provider.openai_url)
    client.chat.completions.create(model="gpt-5-mini", messages=[dict(role="user", content="x")])
print({name.split(".")[1] for name in sys.modules if name.startswith("tokenmeter.")} & set(sys.argv[1:]))
tokenmeter.report(), tokenmeter.close_period
print(sorted({name.split(".")[1] for name in sys.modules if name.startswith("tokenmeter.")} & set(sys.argv[1:])))
"""


def test_a_process_that_only_calls_loads_nothing_else(tmp_path):
    """What reads a ledger, closes a month or imports is loaded by who does it, and was two thirds of the start."""
    rooms = ("billing", "importing", "reconciliation", "reports", "erasing", "dashboard", "serving")
    done = subprocess.run(
        [sys.executable, "-c", FIRST, *rooms],
        env={"PATH": "/usr/bin", "TOKENMETER_STORE": f"sqlite:///{tmp_path}/usage.db", "HOME": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["set()", "['billing', 'reports']"]


ABORTED = """
import sys, tokenmeter
from tokenmeter.openai import OpenAI
from tokenmeter.testing import FakeProvider

def words(client):
    question = dict(model="gpt-5-mini", messages=[dict(role="user", content="x")])
    with client.chat.completions.create(**question, stream=True) as stream:
        yield from stream

with FakeProvider() as provider:
    client = OpenAI(api_key="k", base_url=provider.openai_url)
    for _ in words(client):
        break
    print([(entry.status, entry.streamed) for entry in tokenmeter.entries()])
"""


def test_a_first_stream_that_is_dropped_half_way_is_in_the_next_report(tmp_path):
    pytest.importorskip("openai")
    done = subprocess.run(
        [sys.executable, "-c", ABORTED],
        env={"PATH": "/usr/bin", "TOKENMETER_STORE": f"sqlite:///{tmp_path}/usage.db", "HOME": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[('aborted', True)]"
