"""What a process remembers of the last calls of a meter: those whose bill is read later is their starter's.

Background responses, batches and agent sessions are begun by one call and read by others, any number of times.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakKeyDictionary

from tokenmeter.call import Call
from tokenmeter.usage import Observation

if TYPE_CHECKING:
    from tokenmeter.meter import Authorization, Meter

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

    def all(self, meter: Meter) -> Mapping[str, T] | None:
        """All values by id, as they change; None where there never was one."""
        return self._kept.get(meter)

    def take(self, meter: Meter, identity: str | None) -> T | None:
        """As `get`, and forget it."""
        values = self._kept.get(meter)
        return None if values is None or identity is None else values.pop(identity, None)


_waiting: Recent[Authorization] = Recent()
_started: Recent[Call] = Recent()
_sizes: Recent[str] = Recent()


def remember(meter: Meter, response_id: str | None, authorization: Authorization) -> None:
    """Keep `authorization`, its attribution and its hold, until the response is retrieved."""
    if response_id is not None:
        _waiting.put(meter, response_id, authorization)


def waiting(meter: Meter, response_id: str | None) -> Call | None:
    """The call that started a response, while it is not recorded; None when this process did not."""
    found = _waiting.get(meter, response_id)
    return None if found is None else found.call


def recall(meter: Meter, response_id: str | None) -> Authorization | None:
    """The call that started a response; None when this process did not, or has recalled it already."""
    return _waiting.take(meter, response_id)


def learn_size(meter: Meter, seen: Observation) -> None:
    """Keep what an answer says of the size of something whose bill later calls may make."""
    if seen.size is not None and seen.response_id is not None:
        _sizes.put(meter, seen.response_id, seen.size)


def with_known(meter: Meter, call: Call, subject: str | None = None) -> Call:
    """`call`, whose answer is read with what is known besides.

    That is the sizes of what it may name, what its model's name stands for, and whose bill the lines are of the batch
    with the id `subject`, if this process began it: they do not say it.
    """
    facts = meter.pricer.with_meant_model(call.provider, call.facts)
    if sizes := _sizes.all(meter):
        facts = replace(facts, sizes=sizes)
    begun = _started.get(meter, subject)
    if begun is not None and begun.facts.lines_billed_elsewhere:
        facts = replace(facts, lines_billed_elsewhere=begun.facts.lines_billed_elsewhere)
    return call if facts is call.facts else replace(call, facts=facts)


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
