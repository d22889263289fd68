"""Celery: `carry_attribution` has every task run on the account of whoever sent it."""

from __future__ import annotations

from typing import Any

from celery import signals  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

from tokenmeter.attribution import NOBODY
from tokenmeter.queues import TaskBlock, find_sender, put_sender


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
_running: dict[str, TaskBlock] = {}


def _sent(*, headers: dict[str, Any] | None = None, **_: Any) -> None:
    if headers is not None:
        put_sender(headers)


def _starts(*, task_id: str, task: Any, **_: Any) -> None:
    request = task.request
    if request.is_eager:  # it runs inside its sender's block
        return
    sender = find_sender(lambda name: getattr(request, name, None))
    if sender is not NOBODY:
        block = _running[task_id] = TaskBlock(sender)
        block.__enter__()


def _ended(*, task_id: str, **_: Any) -> None:
    block = _running.pop(task_id, None)
    if block is not None:
        block.__exit__(None, None, None)
