"""A ledger with everything that has to come along: months of entries, budgets, an invoice, bills, names, tags."""

import contextlib
from datetime import UTC, datetime

import pytest

import tokenmeter
from tokenmeter.attribution import Attribution
from tokenmeter.stores import open_store

PROFILE = {
    "seller": {"name": "Platform GmbH", "address": ["Hauptstr. 1", "10115 Berlin"], "tax_id": "DE1"},
    "buyers": {"team": {"search": {"name": "Search", "cost_centre": "4711"}}},
}


def answer(number, tokens=1_000_000):
    usage = {"prompt_tokens": tokens, "completion_tokens": tokens // 10, "total_tokens": tokens + tokens // 10}
    return {"id": f"chatcmpl-{number}", "object": "chat.completion", "model": "gpt-5-mini", "usage": usage}


@pytest.fixture(name="answer")
def _answer():
    """Makes a provider's answer: its number, its tokens."""
    return answer


def fill(meter, calls=12):
    """Record calls of two members and several end users in October, and bill their team for it."""
    for number in range(calls):
        meter.record(
            answer(number),
            provider="openai",
            endpoint="chat.completions",
            at=datetime(2026, 10, 1 + number % 28, 9, tzinfo=UTC),
            attribution=Attribution(
                member=("ada@example.com", "bob@example.com")[number % 2],
                team="search",
                end_user=f"user-{number % 3}",
                tags={"feature": f"f{number % 2}"},
            ),
        )
    meter.close_period("2026-10", tz="UTC")
    meter.issue_invoice(meter.invoice(team="search", period="2026-10", profile=PROFILE), by="kim")


@pytest.fixture
def open_meter():
    """A meter on a URL; closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(url, **settings):
            meter = tokenmeter.make_meter(store=url, **settings)
            stack.callback(meter.close)
            return meter

        yield make


@pytest.fixture
def record():
    """Record one call, of now unless `at` says when."""

    def run(meter, number, *, at=None, **who):
        return meter.record(
            answer(number, 1000), provider="openai", endpoint="chat.completions", attribution=Attribution(**who), at=at
        )

    return run


@pytest.fixture
def filled(open_meter):
    """A ledger at a URL, filled."""

    def make(url, **settings):
        meter = open_meter(url, **settings)
        fill(meter)
        return meter

    return make


@pytest.fixture
def told():
    """All that a ledger tells: reports by everything, documents, counters, thresholds, secret, head."""

    def look(url):
        store = open_store(url)
        try:
            meter = tokenmeter.make_meter(store=url)
            try:
                reports = {
                    by: meter.report(by, tz="Europe/Berlin").to_csv()
                    for by in ("member", "end_user", "tag:feature", "model,team")
                }
                entries = [entry.entry_id for entry in meter.entries()]
                found = meter.verify()
            finally:
                meter.close()
            assert found.ok, found.faults
            return {
                "head": found.head,
                "reports": reports,
                "entries": entries,
                "documents": [(one.position, one.series, one.number, one.body, one.hash) for one in store.documents()],
                "counters": [(key, one.settled) for key, one in store.all_counters()],
                "crossings": list(store.crossings()),
                "secret": store.secret(),
            }
        finally:
            store.close()

    return look
