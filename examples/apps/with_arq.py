"""arq: a job runs on the account of whoever enqueued it. Start a worker with ``arq with_arq.WorkerSettings``."""

from __future__ import annotations

import os
from typing import Any

from arq import Retry, create_pool
from arq.connections import RedisSettings

import tokenmeter
from tokenmeter.openai import AsyncOpenAI
from tokenmeter.queues.arq import carry_attribution

REDIS = RedisSettings.from_dsn(os.environ.get("REDIS_URL", "redis://localhost"))


async def ask(ctx: dict[Any, Any], text: str) -> str | None:  # noqa: ARG001 - arq's own
    """One call."""
    async with AsyncOpenAI() as client:
        answer = await client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": text}])
    return answer.choices[0].message.content


async def later(ctx: dict[Any, Any], text: str) -> str:
    """A job that is tried again, and then enqueues another one."""
    if ctx["job_try"] == 1:
        raise Retry
    with tokenmeter.attribute(route="/later"):
        await ctx["redis"].enqueue_job("ask", text)
    return text


@carry_attribution
class WorkerSettings:
    """What the command ``arq`` reads."""

    functions = (ask, later)
    redis_settings = REDIS


async def send(member: str) -> None:
    """What a web request would do."""
    redis = carry_attribution(await create_pool(REDIS))
    try:
        with tokenmeter.attribute(member=member, route="/send"):
            await redis.enqueue_job("ask", "one")
            await redis.enqueue_job("later", "two")
    finally:
        await redis.aclose()
