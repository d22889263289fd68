"""Huey: `carry_attribution` has every task run on the account of whoever enqueued it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from tokenmeter.queues import SENDER, TaskBlock, find_sender, put_sender


def carry_attribution(huey: Any) -> None:
    """Take the attribution along from where a task is enqueued to where it runs, among its keyword arguments.

    Call it once in the module that makes the `Huey` instance, which senders and the consumer import. Tasks enqueued by
    a task, retries, pipelines, groups and chords are carried, too; a periodic task starts on nobody's account. The
    task's function does not see it, unless its consumer is one without this call: bring consumers up to date first.

    Args:
        huey: The instance, of any storage.

    Examples:
        >>> carry_attribution(huey)  # doctest: +SKIP
    """

    def send(_signal: str, task: Any) -> None:
        if not huey.immediate:  # then it runs inside its sender's block
            for each in _with_followers(task):
                put_sender(each.kwargs)

    huey.signal("enqueued")(send)
    huey.pre_execute("tokenmeter")(_starts)


def _with_followers(task: Any) -> Iterator[Any]:
    """A task, and what a worker, which stands in no block, enqueues after it: when it is done, fails, ends a chord."""
    waiting = [task]
    while waiting:
        each = waiting.pop()
        yield each
        chord = getattr(each, "chord_config", None)
        followers = (each.on_complete, each.on_error, chord and chord.callback)
        waiting += [follower for follower in followers if follower is not None]


def _starts(task: Any) -> None:
    if SENDER in task.kwargs:
        task.execute = functools.partial(_run, task)  # of this object: what is enqueued anew is its arguments


def _run(task: Any) -> object:
    """Run a task inside its sender's block, its arguments its own meanwhile, and the sender's again for a retry."""
    carried = task.kwargs.pop(SENDER)
    try:
        with TaskBlock(find_sender({SENDER: carried}.get)):
            return task.__class__.execute(task)
    finally:
        task.kwargs[SENDER] = carried
