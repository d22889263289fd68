"""What was read a moment ago: viewers of the same page share one reading."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

__all__ = ["Memory"]

T = TypeVar("T")


class Memory(Generic[T]):
    """The last reading of each of a few keys.

    Who asks for one that is being made waits for it; a failed one is forgotten.

    Args:
        most: How many keys are kept.
    """

    def __init__(self, most: int = 16) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[str, Future[T]]] = OrderedDict()

    def get(self, key: Hashable, state: str, make: Callable[[], T]) -> T:
        """The reading called `key` of a ledger in that `state`, made by `make` unless it is the one that is kept."""
        mine = Future[T]()
        with self._lock:
            known, found = self._kept.get(key, ("", mine))
            if known != state:
                found = mine
            self._kept[key] = (state, found)
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        if found is mine:
            self._fulfil(key, mine, make)
        return found.result()

    def _fulfil(self, key: Hashable, mine: Future[T], make: Callable[[], T]) -> None:
        try:
            mine.set_result(make())
        except BaseException as error:  # noqa: BLE001 - whoever asked raises it
            with self._lock:
                if self._kept.get(key, ("", None))[1] is mine:
                    del self._kept[key]
            mine.set_exception(error)
