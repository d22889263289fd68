"""Calls whose answer is read later: a background response bills the call that started it, when it is retrieved."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from tokenmeter.meter import Authorization, Meter

__all__ = ["LIMIT", "recall", "remember"]

#: Calls remembered per meter at most; of older ones the retrieval is recorded on its own account.
LIMIT = 1_000

_waiting: WeakKeyDictionary[Meter, OrderedDict[str, Authorization]] = WeakKeyDictionary()


def remember(meter: Meter, response_id: str | None, authorization: Authorization) -> None:
    """Keep `authorization`, its attribution and its hold, until the response is retrieved."""
    if response_id is None:
        return
    calls = _waiting.setdefault(meter, OrderedDict())
    calls[response_id] = authorization
    if len(calls) > LIMIT:
        calls.popitem(last=False)


def recall(meter: Meter, response_id: str | None) -> Authorization | None:
    """The call that started a response; None when this process did not, or has recalled it already."""
    calls = _waiting.get(meter)
    return None if calls is None or response_id is None else calls.pop(response_id, None)
