"""Calls whose answer is read later: background responses, batches, agent sessions. Their bill is their starter's."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakKeyDictionary

from tokenmeter.call import Call

if TYPE_CHECKING:
    from tokenmeter.meter import Authorization, Meter

__all__ = ["LIMIT", "Recent", "also_known_as", "on_account_of_starter", "recall", "remember", "started"]

#: What is remembered per meter at most; older work is recorded on the account of who reads it.
LIMIT = 1_000

T = TypeVar("T")


class Recent(Generic[T]):
    """The last `LIMIT` values per meter, by provider's id. Keeps no meter alive."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Meter, OrderedDict[str, T]] = WeakKeyDictionary()

    def put(self, meter: Meter, identity: str, value: T) -> None:
        """Keep `value` in place of what was kept before."""
        values = self._kept.setdefault(meter, OrderedDict())
        values[identity] = value
        if len(values) > LIMIT:
            values.popitem(last=False)

    def get(self, meter: Meter, identity: str | None) -> T | None:
        """The value of an id; None for one that is not kept (any more)."""
        values = self._kept.get(meter)
        return None if values is None or identity is None else values.get(identity)

    def take(self, meter: Meter, identity: str | None) -> T | None:
        """As `get`, and forget it."""
        values = self._kept.get(meter)
        return None if values is None or identity is None else values.pop(identity, None)


_waiting: Recent[Authorization] = Recent()
_started: Recent[Call] = Recent()


def remember(meter: Meter, response_id: str | None, authorization: Authorization) -> None:
    """Keep `authorization`, its attribution and its hold, until the response is retrieved."""
    if response_id is not None:
        _waiting.put(meter, response_id, authorization)


def recall(meter: Meter, response_id: str | None) -> Authorization | None:
    """The call that started a response; None when this process did not, or has recalled it already."""
    return _waiting.take(meter, response_id)


def started(meter: Meter, identity: str | None, call: Call) -> None:
    """`call` started work that may be read any number of times."""
    if identity is not None:
        _started.put(meter, identity, call)


def also_known_as(meter: Meter, identity: str | None, other: str) -> None:
    """The results of some work are found under another id: a batch's in its output file."""
    call = _started.get(meter, identity)
    if call is not None:
        _started.put(meter, other, call)


def on_account_of_starter(meter: Meter, identity: str | None, call: Call) -> Call:
    """The reading `call` on the account of who started what it reads, if that was in this process."""
    starter = _started.get(meter, identity)
    if starter is None:
        return call
    return replace(call, attribution=starter.attribution, scopes=starter.scopes, api_key=starter.api_key)
