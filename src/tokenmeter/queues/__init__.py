"""Attribution across task queues: whoever enqueues a task is who its calls go to. One module per queue."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

from tokenmeter.attribution import Attribution, attribute
from tokenmeter.carrying import BAGGAGE, from_baggage, to_baggage

#: Where a task has its sender's attribution. Not in ``baggage``, which a tracer may write anew and a program use.
SENDER = "tokenmeter.sender"


class TaskBlock(attribute):
    """The block around one run of a task, on the account of whoever sent it."""

    place = "the task (tokenmeter.queues)"


def put_sender(message: MutableMapping[Any, Any]) -> None:
    """Put the present attribution into what goes with a task, unless there is none: a retry is sent from nowhere."""
    sender = to_baggage()
    if sender:
        message[SENDER] = sender


def find_sender(read: Callable[[str], Any]) -> Attribution:
    """The attribution in what came with a task; of who sent it with `to_headers()`, too."""
    return from_baggage(read(SENDER) or read(BAGGAGE) or "")
