"""What the engines' SQL has in common, and where it differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Rows(Protocol):
    """A connection. Values are written ``?`` in statements."""

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Any:
        """Run one statement; a cursor."""
        ...


@dataclass(frozen=True, slots=True)
class Engine:
    """The words of an engine.

    Attributes:
        slots: Rows (place, level, slot) of a JSON array of such triples, which is the one value.
        join: Joins tables from left to right, if the engine lets us choose.
        identity: The column of an entry's identity.
        cells: Makes a mapping of accounts to numbers known to SQL; the expression that gives the number of a row's
            ``account``, NULL where there is none.
        position: The function that says where in a text another one begins, from 1; 0 = nowhere.
        member: The whole number that an entry's record says under a name, which is to be put in.
        triggers: Names of the triggers that are in force.
        guards: Names of triggers that only this engine needs.
        keeps_secret: Whether the ledger's secret is the one that it was made with.
    """

    slots: str
    join: str
    identity: Callable[[str], bytes | str]
    cells: Callable[[Any, Mapping[int, int]], str]
    position: str
    member: str
    triggers: str
    keeps_secret: Callable[[Any], bool]
    guards: frozenset[str] = frozenset()


class Readable(Protocol):
    """What has one state that can be read."""

    @property
    def engine(self) -> Engine:
        """Its words."""
        ...

    def read(self, work: Callable[[Any], T]) -> T:
        """Run `work` in one read transaction.

        Raises:
            StoreUnavailableError: it cannot be read.
        """
        ...
