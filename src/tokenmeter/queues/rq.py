"""RQ: `AttributedJob` runs on the account of whoever enqueued it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from rq.job import Job

from tokenmeter.queues import TaskBlock, find_sender, put_sender


class AttributedJob(Job):
    """A job that takes the attribution along from where it is enqueued, in its ``meta``.

    Name it to queue and worker; retries, dependent and scheduled jobs and callbacks (``on_success``, ``on_failure``,
    ``on_stopped``) are carried, too.

    Examples:
        >>> Queue(connection=redis, job_class=AttributedJob).enqueue(summarise, text)  # doctest: +SKIP
        $ rq worker --job-class tokenmeter.queues.rq.AttributedJob
    """

    @classmethod
    def create(cls, *args: Any, **kwargs: Any) -> Job:
        """As `rq.job.Job.create`."""
        meta = kwargs["meta"] = dict(kwargs.get("meta") or {})
        put_sender(meta)
        return super().create(*args, **kwargs)  # pyright: ignore[reportUnknownMemberType]

    def perform(self) -> Any:
        """As `rq.job.Job.perform`."""
        return self._run(super().perform)

    @property
    def success_callback(self) -> Any:
        """As `rq.job.Job.success_callback`, on the job's account; the worker calls it after `perform`."""
        return self._carried(super().success_callback)

    @property
    def failure_callback(self) -> Any:
        """As `rq.job.Job.failure_callback`, the same."""
        return self._carried(super().failure_callback)

    @property
    def stopped_callback(self) -> Any:
        """As `rq.job.Job.stopped_callback`, the same."""
        return self._carried(super().stopped_callback)

    def _carried(self, callback: Callable[..., Any] | None) -> Callable[..., Any] | None:
        if callback is None or inspect.iscoroutinefunction(callback):  # RQ refuses those, as it should go on to do
            return callback
        return functools.update_wrapper(functools.partial(self._run, callback), callback)

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        with TaskBlock(find_sender(self.meta.get)):
            return function(*args)
