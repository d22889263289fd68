"""Celery: `carry_attribution` has every task run on the account of whoever sent it."""

from __future__ import annotations

from typing import Any

from celery import signals  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

from tokenmeter.attribution import attribute
from tokenmeter.carrying import BAGGAGE, from_headers, to_headers


class _TaskBlock(attribute):
    """The block around one run of a task."""

    place = "the task (tokenmeter.queues.celery)"


def carry_attribution() -> None:
    """Take the attribution along from where a task is sent to where it runs, as a message header.

    Call it once in the module that makes the Celery application, which clients and workers import. Tasks sent by a
    task, retries, chains and groups are carried, too; a scheduled task (beat) starts on nobody's account.
    """
    sent: Any = signals.before_task_publish
    starts: Any = signals.task_prerun
    ended: Any = signals.task_postrun
    for signal, receiver in ((sent, _sent), (starts, _starts), (ended, _ended)):
        signal.connect(receiver, weak=False, dispatch_uid="tokenmeter")


#: Open blocks of the tasks that this process runs, by task id.
_running: dict[str, _TaskBlock] = {}


def _sent(*, headers: dict[str, Any] | None = None, **_: Any) -> None:
    if headers is not None:
        headers.update(to_headers({BAGGAGE: headers[BAGGAGE]} if headers.get(BAGGAGE) else {}))


def _starts(*, task_id: str, task: Any, **_: Any) -> None:
    request = task.request
    baggage: Any = getattr(request, BAGGAGE, None)
    if baggage and not request.is_eager:  # an eager task runs inside its sender's block
        block = _running[task_id] = _TaskBlock(from_headers({BAGGAGE: baggage}))
        block.__enter__()


def _ended(*, task_id: str, **_: Any) -> None:
    block = _running.pop(task_id, None)
    if block is not None:
        block.__exit__(None, None, None)
