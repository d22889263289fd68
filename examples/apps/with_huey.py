"""Huey: a task runs on the account of whoever enqueued it. Start a consumer with ``huey_consumer with_huey.huey``."""

from __future__ import annotations

import os

from huey import SqliteHuey

import tokenmeter
from tokenmeter.openai import OpenAI
from tokenmeter.queues.huey import carry_attribution

huey = SqliteHuey("with_huey", filename=os.environ.get("HUEY_FILE", "huey.db"))
carry_attribution(huey)


@huey.task()
def ask(text: str, *_of_before: object) -> str | None:
    """One call."""
    answer = OpenAI().chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": text}])
    return answer.choices[0].message.content


@huey.task(retries=1, context=True)
def later(text: str, task) -> str:  # noqa: ANN001 - Huey's own
    """A task that is tried again, and then enqueues another one."""
    if task.retries:
        msg = "not yet"
        raise RuntimeError(msg)
    with tokenmeter.attribute(route="/later"):
        ask(text)
    return text


def send(member: str) -> None:
    """What a web request would do: a task, one after another, one that is tried again."""
    with tokenmeter.attribute(member=member, route="/send"):
        ask("one")
        huey.enqueue(ask.s("two").then(ask, "three"))
        later("four")
