"""Tools for testing applications that use tokenmeter: `FakeProvider`, a provider that runs in the test."""

from __future__ import annotations

from tokenmeter.testing.provider import FakeProvider
from tokenmeter.testing.reporting import Reports
from tokenmeter.testing.script import Answer
from tokenmeter.testing.truth import Truth
from tokenmeter.testing.wire import Event, Request

__all__ = ["Answer", "Event", "FakeProvider", "Reports", "Request", "Truth"]
