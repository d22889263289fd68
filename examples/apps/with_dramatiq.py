"""Dramatiq: an actor runs on the account of whoever sent its message. Start workers with ``dramatiq with_dramatiq``."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import CurrentMessage

import tokenmeter
from tokenmeter.openai import OpenAI
from tokenmeter.queues.dramatiq import AttributionMiddleware


def make_broker() -> dramatiq.Broker:
    """Redis where there is one, else one in memory, for trying it out."""
    url = os.environ.get("REDIS_URL")
    if not url:
        return StubBroker()
    from dramatiq.brokers.redis import RedisBroker  # noqa: PLC0415 - needs the redis package

    return RedisBroker(url=url)


broker = make_broker()
broker.add_middleware(CurrentMessage())
broker.add_middleware(AttributionMiddleware())
dramatiq.set_broker(broker)


@dramatiq.actor(min_backoff=1, max_backoff=1)
def ask(text: str, fail_first: bool = False) -> None:
    """One call; with `fail_first` only at the second try."""
    if fail_first and not CurrentMessage.get_current_message().options.get("retries"):
        msg = "not yet"
        raise RuntimeError(msg)
    OpenAI().chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": text}])


def send(member: str) -> None:
    """What a web request would do."""
    with tokenmeter.attribute(member=member, route="/send"):
        ask.send("one")
        ask.send("two", fail_first=True)
