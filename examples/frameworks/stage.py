"""What the examples of this folder have in common: a provider to call, a ledger in memory, and the proof at the end."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import tokenmeter
from tokenmeter.testing import FakeProvider


@contextmanager
def stage() -> Iterator[FakeProvider]:
    """A provider on 127.0.0.1 that every client finds through the environment; no API key is needed.

    At the end the report is printed, and the ledger is compared with the provider's own books.

    Raises:
        SystemExit: a call was billed and not recorded, recorded and not billed, or recorded with other numbers.
    """
    with FakeProvider() as provider:
        os.environ["OPENAI_API_KEY"] = "sk-frameworks-openai-0001"
        os.environ["ANTHROPIC_API_KEY"] = "sk-ant-frameworks-0002"
        os.environ["OPENAI_BASE_URL"] = provider.openai_url
        os.environ["ANTHROPIC_BASE_URL"] = provider.anthropic_url
        os.environ["GOOGLE_API_KEY"] = "AIza-frameworks-google-0003"
        os.environ["GOOGLE_GEMINI_BASE_URL"] = provider.google_url
        meter = tokenmeter.configure(store="memory:")
        yield provider
        print(tokenmeter.report(by=["member", "route", "endpoint", "model"]))
        recorded = Counter((entry.endpoint, str(dict(entry.usage.quantities))) for entry in tokenmeter.entries())
        billed = Counter((truth.endpoint, str(dict(truth.meters.quantities))) for truth in provider.billed)
        meter.close()
    if recorded != billed:
        raise SystemExit(f"Recorded, not billed: {recorded - billed}. Billed, not recorded: {billed - recorded}.")
    print(f"\n{billed.total()} calls billed by the provider, each recorded once and with the same numbers.")
