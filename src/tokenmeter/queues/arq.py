"""arq: `carry_attribution` has every job run on the account of whoever enqueued it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar, cast

from tokenmeter.attribution import NOBODY, Attribution
from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.queues import TaskBlock, find_sender, put_sender

#: A pool, settings or a worker, of which arq has no common type.
E = TypeVar("E")

#: Who sent the job that was read last in this context: a worker reads it just before it calls ``on_job_start``.
_sender: ContextVar[Attribution] = ContextVar("tokenmeter.queues.arq.sender", default=NOBODY)


def carry_attribution(end: E) -> E:
    """Take the attribution along from where a job is enqueued to where it runs, beside the job's own data.

    Say it of both ends: of the pool that enqueues, and of the worker's settings. Serializers and hooks of your own are
    kept. Jobs that a job enqueues over ``ctx["redis"]`` and retries are carried, too; a cron job starts on nobody's
    account. An end of which it was not said works as before.

    Args:
        end: A pool (`arq.create_pool`), a class or dict of worker settings, or an `arq.Worker`.

    Returns:
        `end`, changed in place: it decorates a class.

    Raises:
        ConfigurationError: it is none of these.

    Examples:
        >>> redis = carry_attribution(await create_pool(RedisSettings()))  # doctest: +SKIP
        >>> @carry_attribution  # doctest: +SKIP
        ... class WorkerSettings:
        ...     functions = [summarise]
    """
    _carry(end)
    return end


def _carry(end: Any) -> None:
    kind: type = type(end)  # pyright: ignore[reportUnknownVariableType]
    is_pool = not issubclass(kind, dict | type) and not hasattr(end, "on_job_start")
    if is_pool and not hasattr(end, "job_serializer"):
        raise ConfigurationError(
            "carry_attribution takes what arq.create_pool gave, a class or dict of worker settings, or an arq.Worker, "
            f"not {shown(end)}."
        )
    put: Callable[[str, Any], None] = end.__setitem__ if isinstance(end, dict) else partial(setattr, end)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    own = cast("dict[str, Any]", end if isinstance(end, dict) else vars(end))  # what a class inherits arq does not read
    put("job_serializer", _with_sender(own.get("job_serializer") or pickle.dumps))
    put("job_deserializer", _remembering(own.get("job_deserializer") or pickle.loads))
    if is_pool:
        return
    put("on_job_start", _starting(own.get("on_job_start")))
    pool = own.get("_pool") or own.get("redis_pool")
    if pool is not None:
        _carry(pool)


def _with_sender(serialize: Callable[[dict[str, Any]], bytes]) -> Callable[[dict[str, Any]], bytes]:
    def with_sender(job: dict[str, Any]) -> bytes:
        if "s" not in job:  # or it is a job's result
            put_sender(job)
        return serialize(job)

    return with_sender


def _remembering(deserialize: Callable[[bytes], dict[str, Any]]) -> Callable[[bytes], dict[str, Any]]:
    def remembering(data: bytes) -> dict[str, Any]:
        job = deserialize(data)
        _sender.set(find_sender(job.get))
        return job

    return remembering


def _starting(own: Callable[[dict[Any, Any]], Any] | None) -> Callable[[dict[Any, Any]], Any]:
    async def on_job_start(ctx: dict[Any, Any]) -> None:
        sender = _sender.get()
        if sender is not NOBODY:
            TaskBlock(sender).__enter__()  # arq runs each job in a task of its own, with whose context the block ends
        if own is not None:
            await own(ctx)

    return on_job_start
