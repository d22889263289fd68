"""An async call under a cap never makes its event loop wait for others who hold the counters."""

from __future__ import annotations

import asyncio
import os

import openai

import tokenmeter
from tokenmeter import Budget
from tokenmeter.processes import lock_file, unlock_file
from tokenmeter.testing import FakeProvider

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}


def test_the_loop_goes_on_while_another_process_holds_the_counters(tmp_path):
    meter = tokenmeter.make_meter(
        store=f"sqlite:///{tmp_path / 'ledger.db'}", budgets=[Budget(limit_usd=1000)], config={}
    )

    async def turns(least):
        for _ in range(least):
            await asyncio.sleep(0.001)

    async def main(url):
        client = tokenmeter.wrap(openai.AsyncOpenAI(api_key="sk-test-locks", base_url=url), meter=meter)
        for _ in range(3):
            await client.chat.completions.create(**CHAT)
        other = os.open(tmp_path / "ledger.db-live", os.O_RDWR)  # as another process has it
        try:
            assert lock_file(other, wait=False)
            call = asyncio.create_task(client.chat.completions.create(**CHAT))
            await turns(50)  # with a loop that waited for the lock, the test would hang here
            assert not call.done()
            unlock_file(other)
            await call
        finally:
            os.close(other)
        await client.close()

    with FakeProvider() as provider:
        asyncio.run(main(provider.openai_url))
    assert len(list(meter.store.entries())) == 4
    assert not meter.audit_budgets()
    meter.close()
