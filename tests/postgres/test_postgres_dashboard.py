"""The dashboard over the shared ledger."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tokenmeter.ledger import Entry, Reservation, new_id
from tokenmeter.stores import open_store
from tokenmeter.usage import Usage

pytest.importorskip("starlette", reason="the dashboard needs the extra 'dashboard'")


def test_the_pulse_changes_with_every_entry_and_hold_and_with_nothing_else(postgres_url):
    from tokenmeter.serving.lens import pulse_of

    now = datetime.now(UTC)
    call = Entry(occurred_at=now, provider="openai", endpoint="responses", operation="chat", usage=Usage({"input": 5}))
    store = open_store(postgres_url)
    try:
        known = [pulse_of(store)]
        assert pulse_of(store) == known[0]
        store.settle(call)
        known.append(pulse_of(store))
        held = new_id()
        store.reserve(Reservation(held, (), now, now + timedelta(minutes=1), "test:1", replace(call, entry_id=held)))
        known.append(pulse_of(store))
        assert len(set(known)) == 3
        list(store.entries())
        assert pulse_of(store) == known[-1]
    finally:
        store.close()
