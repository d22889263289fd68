"""Celery: a task runs on the account of whoever sent it.

Start a worker with ``celery -A with_celery worker``, and both sides with the broker's address in CELERY_BROKER_URL: the
default broker is in the memory of one process.
"""

from __future__ import annotations

import os

from celery import Celery, chain

import tokenmeter
from tokenmeter.openai import OpenAI
from tokenmeter.queues.celery import carry_attribution

app = Celery(
    "with_celery",
    broker=os.environ.get("CELERY_BROKER_URL", "memory://"),
    backend=os.environ.get("CELERY_RESULT_BACKEND", "cache+memory://"),
)
carry_attribution()


@app.task(name="ask")
def ask(text: str) -> str | None:
    """One call."""
    answer = OpenAI().chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": text}])
    return answer.choices[0].message.content


@app.task(name="later", bind=True, max_retries=1)
def later(self, text: str) -> str | None:  # noqa: ANN001 - Celery's own
    """A task that is tried again, and then sends another one."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    with tokenmeter.attribute(route="/later"):
        ask.delay(text)
    return text


def send(member: str) -> list[object]:
    """What a web request would do."""
    with tokenmeter.attribute(member=member, route="/send"):
        return [ask.delay("one"), chain(ask.s("two"), ask.s()).delay(), later.delay("three")]
