"""pytest fixtures for users of tokenmeter, registered as a plug-in by installing it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tokenmeter.testing.provider import FakeProvider

__all__ = ["fake_provider"]


@pytest.fixture
def fake_provider() -> Iterator[FakeProvider]:
    """A running `FakeProvider` with empty books, on a port of its own."""
    from tokenmeter.testing.provider import FakeProvider  # noqa: PLC0415 - pytest loads this module in every run

    with FakeProvider() as provider:
        yield provider
