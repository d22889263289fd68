"""RQ: `AttributedJob` runs on the account of whoever enqueued it."""

from __future__ import annotations

from typing import Any

from rq.job import Job

from tokenmeter.queues import TaskBlock, find_sender, put_sender


class AttributedJob(Job):
    """A job that takes the attribution along from where it is enqueued, in its ``meta``.

    Name it to queue and worker; retries, dependent and scheduled jobs are carried, too.

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
        with TaskBlock(find_sender(self.meta.get)):
            return super().perform()
