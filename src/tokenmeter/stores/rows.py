"""Entries read back through a session: the shared rows they point at are looked up and remembered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tokenmeter.errors import ConfigurationError, TamperedLedgerError
from tokenmeter.ledger import Entry
from tokenmeter.stores.codec import COLUMNS, Amounts, decode_amounts, decode_entry
from tokenmeter.stores.contexts import CONTEXT_FIELDS, Context, Rate
from tokenmeter.stores.session import Session

__all__ = ["AMOUNT_COLUMNS", "Found", "amounts_of", "entry_of", "rate_numbers"]

#: The columns that sums are made from.
AMOUNT_COLUMNS = (
    "context, end_user, tags, quantities, reasoning_output_tokens, charges, flags, "
    "list_micro, list_pico, contracted_micro, contracted_pico, billed_micro, billed_pico"
)
_COST_SOURCE = CONTEXT_FIELDS.index("cost_source")
_CONTEXT = COLUMNS.index("context")


class Found(NamedTuple):
    """As much of an entry as sums need."""

    context_id: int
    context: Context
    amounts: Amounts
    end_user: str | None
    tags: Mapping[str, str]


def _rate(session: Session, number: int) -> Rate:
    return session.rates.values(session.connection, number)


def amounts_of(session: Session, row: Sequence[Any]) -> Found:
    """From a row of `AMOUNT_COLUMNS`."""
    context_id, end_user, tags, quantities, reasoning, charges, flags, *costs = row
    context = session.contexts.values(session.connection, context_id)
    amounts = decode_amounts(
        quantities=quantities,
        reasoning=reasoning,
        charges=charges,
        costs=costs,
        flags=flags,
        cost_source=context[_COST_SOURCE],
        rates=lambda number: _rate(session, number),
    )
    return Found(context_id, context, amounts, end_user, json.loads(tags) if tags else {})


def entry_of(session: Session, row: Sequence[Any]) -> Entry:
    """From a row of `tokenmeter.stores.codec.COLUMNS`.

    Raises:
        TamperedLedgerError: it is not what a store writes.
    """
    try:
        context = session.contexts.values(session.connection, row[_CONTEXT])
        return decode_entry(row, context, lambda number: _rate(session, number))
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, ConfigurationError) as error:
        raise TamperedLedgerError(
            f"Entry {row[0]} cannot be read ({error}): it was changed since it was written. "
            "`tokenmeter verify` names every such entry; compare with a backup."
        ) from error


def rate_numbers(charges: str | None) -> list[int]:
    """Which rates a row's charges point at, in order."""
    return [charge[0] for charge in json.loads(charges)] if charges else []
