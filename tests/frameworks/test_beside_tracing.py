"""Other instrumentation of the same client, put on before or after ours: each call is one entry with the right usage.

Each tool runs in a process of its own, since it patches what it finds. `make tracing` has them all.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

TOOLS = {
    "logfire": "logfire",
    "openinference": "openinference.instrumentation.openai",
    "langfuse": "langfuse",
    "sentry": "sentry_sdk",
    "ddtrace": "ddtrace",
}
PROGRAM = """
import asyncio, json, logging, os, sys
logging.disable(logging.CRITICAL)
tool, order = sys.argv[1:]
import tokenmeter
from tokenmeter.testing import FakeProvider

def instrument(client=None):
    if tool == "logfire":
        import logfire
        logfire.configure(send_to_logfire=False, console=False)
        logfire.instrument_openai(client)
    elif tool == "openinference":
        from openinference.instrumentation.openai import OpenAIInstrumentor
        OpenAIInstrumentor().instrument()
    elif tool == "sentry":
        import sentry_sdk
        from sentry_sdk.integrations.openai import OpenAIIntegration
        sentry_sdk.init(dsn="http://x@127.0.0.1:9/1", traces_sample_rate=1.0, integrations=[OpenAIIntegration()])
    elif tool == "ddtrace":
        import ddtrace
        ddtrace.patch(openai=True)

if order == "before":
    instrument()
if tool == "langfuse":
    from langfuse.openai import AsyncOpenAI, OpenAI
else:
    from openai import AsyncOpenAI, OpenAI
provider = FakeProvider()
provider.start()
meter = tokenmeter.make_meter(store="memory:", config={})
options = {"base_url": provider.openai_url, "api_key": "sk-tracing-0001"}
client, async_client = (tokenmeter.wrap(one(**options), meter) for one in (OpenAI, AsyncOpenAI))
if order == "after":
    instrument(client)
ask = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello there"}]}
client.chat.completions.create(**ask)
list(client.chat.completions.create(**ask, stream=True))
with client.chat.completions.stream(**ask) as stream:
    list(stream)
client.responses.create(model="gpt-5-mini", input="Hello")
list(client.responses.create(model="gpt-5-mini", input="Hello", stream=True))
client.embeddings.create(model="text-embedding-3-small", input="x")

async def asynchronous():
    await async_client.chat.completions.create(**ask)
    async for _ in await async_client.chat.completions.create(**ask, stream=True):
        pass
    async for _ in await async_client.responses.create(model="gpt-5-mini", input="Hello", stream=True):
        pass

asyncio.run(asynchronous())
entries = list(meter.entries())
print(json.dumps({
    "flags": [list(one.flags) for one in entries],
    "recorded": [{name: int(count) for name, count in one.usage.quantities.items() if count} for one in entries],
    "billed": [{name: int(count) for name, count in one.meters.quantities.items() if count} for one in provider.truth],
    "faults": meter.faults,
}), flush=True)
os._exit(0)  # their exporters would wait for servers that there are not
"""


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("tool", TOOLS)
def test_every_call_is_one_entry_with_what_the_provider_billed(tool, order):
    try:
        found = importlib.util.find_spec(TOOLS[tool])
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(f"{tool} is not installed; make tracing installs it")
    away = {"LANGFUSE_PUBLIC_KEY": "pk", "LANGFUSE_SECRET_KEY": "sk", "LANGFUSE_HOST": "http://127.0.0.1:9"}
    away |= {"DD_TRACE_AGENT_URL": "http://127.0.0.1:9", "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tool, order],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **away},
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert (len(told["recorded"]), told["faults"]) == (9, 0)
    assert told["recorded"] == told["billed"]
    assert told["flags"] == [[]] * 9
