"""Dramatiq: `AttributionMiddleware` has every message processed on the account of whoever sent it."""

from __future__ import annotations

from typing import Any

from dramatiq import Broker, Message, Middleware, Worker
from dramatiq.broker import MessageProxy

from tokenmeter.attribution import NOBODY
from tokenmeter.queues import TaskBlock, find_sender, put_sender


class AttributionMiddleware(Middleware):
    """Takes the attribution along from where a message is sent to where it is processed, as a message option.

    Add it to the broker of senders and workers. Retries, pipelines, callbacks (of groups, ``on_success``,
    ``on_failure``, ``on_retry_exhausted``) and messages sent by an actor are carried, too.

    Examples:
        >>> broker.add_middleware(AttributionMiddleware())  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._running: dict[str, TaskBlock] = {}

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        """Go first, so that a block is left last: other middleware enqueues what follows a message after it ran."""
        # A new list: the present one is being gone through.
        broker.middleware = [self, *(other for other in broker.middleware if other is not self)]

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:  # noqa: ARG002
        """Put the attribution into the message; where nobody is present, as for a retry, it keeps the one it has."""
        put_sender(message.options)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:  # noqa: ARG002
        """Open the message's block."""
        sender = find_sender(message.options.get)
        if sender is not NOBODY:
            block = self._running[message.message_id] = TaskBlock(sender)
            block.__enter__()

    def after_process_message(
        self,
        broker: Broker,  # noqa: ARG002 - hooks are called alike
        message: MessageProxy,
        *,
        result: Any | None = None,  # noqa: ARG002
        exception: BaseException | None = None,  # noqa: ARG002
    ) -> None:
        """Leave it."""
        block = self._running.pop(message.message_id, None)
        if block is not None:
            block.__exit__(None, None, None)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """As above, for a message that other middleware skipped."""
        self.after_process_message(broker, message)
