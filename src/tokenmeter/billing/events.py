"""What happened to an issued invoice: payments, credit notes, its voiding, its writing off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal

from tokenmeter.money import EXACT, ZERO, multiply, negate
from tokenmeter.values import dataclass

EventKind = Literal["payment", "credit_note", "void", "uncollectible"]
#: What an event moves; ``recovered``: what was written off counts again, since it is paid or the invoice void;
#: ``given_up``: what was paid and given back is written off with the rest.
MovementKind = Literal[EventKind, "recovered", "given_up"]
#: What those two are called on statements and in journals.
MOVED_TEXT: Mapping[MovementKind, str] = {
    "recovered": "What was written off counts again",
    "given_up": "Written off with the rest, as it was given back",
}
_EVENT_TEXT: Mapping[EventKind, str] = {
    "payment": "Payment",
    "credit_note": "Credit note",
    "void": "Voided",
    "uncollectible": "Written off",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What happened to an issued invoice.

    Attributes:
        kind: ``payment``, ``credit_note``, ``void`` or ``uncollectible``.
        at: When it was written down, aware UTC.
        by: Who did it.
        on: The day it counts for: of a payment, when the money came.
        amount: Paid or credited (tax included), in the invoice's currency; a payment given back is negative.
        number: The credit note's.
        note: The payment's reference, or the reason.
        key: The payment's identity, where one was given: it is written down once.
    """

    kind: EventKind
    at: datetime
    by: str
    on: date
    amount: Decimal | None = None
    number: str | None = None
    note: str | None = None
    key: str | None = None

    @property
    def text(self) -> str:
        """For people: ``Payment of 50.00: wire 2026-118``."""
        amount = "" if self.amount is None else f" of {self.amount:,f}"
        return f"{self.name}{amount}{f': {self.note}' if self.note else ''}"

    @property
    def name(self) -> str:
        """``Payment``, ``Credit note CN-00001``, ..."""
        return f"{_EVENT_TEXT[self.kind]}{f' {self.number}' if self.number else ''}"

    def to_dict(self) -> dict[str, str | None]:
        """JSON-ready values."""
        return {
            "kind": self.kind,
            "at": self.at.isoformat(),
            "by": self.by,
            "on": self.on.isoformat(),
            "amount": None if self.amount is None else f"{self.amount:f}",
            "note": self.note,
            **({} if self.key is None else {"key": self.key}),
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Event:
        """An event from `to_dict`."""
        amount = values["amount"]
        return cls(
            kind=values["kind"],
            at=datetime.fromisoformat(values["at"]),
            by=values["by"],
            on=date.fromisoformat(values["on"]),
            amount=None if amount is None else Decimal(amount),
            note=values["note"],
            key=values.get("key"),
        )


@dataclass(frozen=True, slots=True)
class Movement:
    """What an event took off what was due, as things stood then; what is recovered has the other sign.

    `on` is the day it counts for: the event's, but what was written off is recovered no earlier than it was written
    off, also by money that came before.
    """

    event: Event
    kind: MovementKind
    amount: Decimal
    on: date


def movements(due: Decimal, events: Iterable[Event]) -> Iterator[Movement]:
    """What happened to an invoice over `due`, in the order of filing: what comes later changes no earlier amount.

    Money that comes for what was written off is recovered first: the account ends even, and the loss is the smaller.
    """
    owed, lost, lost_on = due, ZERO, None
    for event in events:
        amount = owed if event.amount is None else event.amount
        if event.kind == "uncollectible":
            lost, lost_on = amount, event.on
            yield Movement(event, event.kind, amount, event.on)
            continue
        owed = EXACT.subtract(owed, amount)
        if lost_on is not None:
            # What is still owed then is given up, all of it and no more, whatever came or was given back since.
            given_up = owed if multiply(owed, due) > 0 else ZERO
            back = EXACT.subtract(lost, given_up)
            if back:
                kind: MovementKind = "recovered" if multiply(back, due) > 0 else "given_up"
                yield Movement(event, kind, negate(back), max(event.on, lost_on))
            lost = given_up
        # Voiding an invoice over nothing moves nothing, and is told all the same.
        if amount or event.kind == "void":
            yield Movement(event, event.kind, amount, event.on)
