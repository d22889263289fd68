"""Fixtures for the frameworks: the environment leads every client to a fake provider, whose books are the truth.

The tests here need the frameworks, each in an environment of its own: ``make frameworks`` names them one by one, and a
run of the whole test suite leaves them out.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
from collections import Counter

import pytest

import tokenmeter
import tokenmeter.default

collect_ignore_glob = ["test_*.py"]


class Books:
    """Both sides: what the provider billed, and what the default meter recorded."""

    def __init__(self, provider):
        self.provider = provider

    def entries(self):
        gc.collect()  # a stream that a framework left unfinished settles when it is dropped
        return list(tokenmeter.entries())

    def agree(self, *, calls):
        """Every call was billed, recorded once, with the provider's own numbers, under its own id; and is priced."""
        entries, billed = self.entries(), self.provider.billed
        recorded = Counter((entry.response_id, entry.endpoint, str(dict(entry.usage.quantities))) for entry in entries)
        assert recorded == Counter(
            (truth.response_id, truth.endpoint, str(dict(truth.meters.quantities))) for truth in billed
        )
        assert len(entries) == calls
        assert {entry.status for entry in entries} == {"ok"}
        assert {flag for entry in entries for flag in entry.flags} == set()
        assert None not in {entry.billed_cost for entry in entries}
        return entries

    def by_member(self):
        """Calls per member."""
        return dict(Counter(entry.attribution.member for entry in self.entries()))


@pytest.fixture
def configured(fake_provider, monkeypatch):
    """Sets the default meter up for this test; every client finds the fake provider through the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-frameworks-openai-0001")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-frameworks-0002")
    monkeypatch.setenv("OPENAI_BASE_URL", fake_provider.openai_url)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", fake_provider.anthropic_url)
    monkeypatch.setenv("GOOGLE_API_KEY", "AIza-frameworks-google-0003")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", fake_provider.google_url)
    monkeypatch.setattr(tokenmeter.default, "_default", None)
    made = []

    def configure(**settings):
        made.append(tokenmeter.configure(store="memory:", config={}, **settings))

    yield configure
    for meter in made:
        meter.close()


@pytest.fixture
def books(configured, fake_provider):
    """Without budgets."""
    configured()
    return Books(fake_provider)


@pytest.fixture
def one_call_left(configured, fake_provider):
    """A budget for one call in all; the second is stopped."""
    configured(budgets=[tokenmeter.Budget(limit_requests=1, name="one-call")])
    return Books(fake_provider)


@pytest.fixture
async def make_client(configured):
    """Makes a client of the given class, and closes it after the test."""
    made = []

    def make(kind, **options):
        made.append(kind(**options))
        return made[-1]

    yield make
    for client in made:
        with contextlib.suppress(RuntimeError):  # the loop it was used in is closed
            closing = client.close()
            if inspect.isawaitable(closing):
                await closing
