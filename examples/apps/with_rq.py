"""RQ: a job runs on the account of whoever enqueued it.

Start a worker with ``rq worker --job-class tokenmeter.queues.rq.AttributedJob``.
"""

from __future__ import annotations

from typing import Any

from rq import Queue

import tokenmeter
from tokenmeter.openai import OpenAI
from tokenmeter.queues.rq import AttributedJob


def ask(text: str) -> str | None:
    """One call."""
    answer = OpenAI().chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": text}])
    return answer.choices[0].message.content


def send(member: str, connection: Any) -> None:
    """What a web request would do."""
    queue = Queue(connection=connection, job_class=AttributedJob)
    with tokenmeter.attribute(member=member, route="/send"):
        first = queue.enqueue(ask, "one", meta={"kept": "as it is"})
        queue.enqueue(ask, "two", depends_on=first)
