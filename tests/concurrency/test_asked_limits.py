"""Limits from an application's database, asked for by an async program: never on its loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

import tokenmeter
from tokenmeter import Budget
from tokenmeter.openai import AsyncOpenAI

CHAT = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello"}], "max_completion_tokens": 50}


@pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", ["plain", "async"])
def test_an_answer_that_grows_old_amid_a_stream_is_not_asked_for_on_the_loop(store_url, provider, caplog, kind, hard):
    """Where a stream ends, its threshold's amount is looked up: the function is the application's, and may be slow."""
    asked = []

    async def main():
        here, turn = threading.get_ident(), asyncio.Lock()

        def limit_of(member):
            asked.append("on the loop" if threading.get_ident() == here else "beside it")
            return "50"

        async def awaited_limit_of(member):
            async with turn:  # belongs to this loop, as a pool of connections does
                await asyncio.sleep(0)
                asked.append("on the loop" if threading.get_ident() == here else "elsewhere")
            return "50"

        function = limit_of if kind == "plain" else awaited_limit_of
        meter = tokenmeter.make_meter(
            store=store_url, config={}, budgets=[Budget(member="*", limit=function, limit_usd=1, hard=hard, name="p")]
        )
        async with AsyncOpenAI(api_key="sk-test-asked", base_url=provider.openai_url) as client:
            tokenmeter.wrap(client, meter=meter)
            with tokenmeter.attribute(member="ada"):
                for _ in range(3):
                    async for _ in await client.chat.completions.create(**CHAT, stream=True):
                        await asyncio.to_thread(meter.budgets.forget_limits, "p")
        await asyncio.to_thread(meter.flush)
        assert len(list(meter.store.entries())) == 3
        assert meter.audit_budgets() == ()
        assert meter.faults == 0
        meter.close()

    asyncio.run(main())
    assert len(asked) == 3  # for a hard budget as each call leaves, for a soft one as each ends
    assert set(asked) == {"beside it" if kind == "plain" else "on the loop"}
    assert "limit function failed" not in caplog.text
