"""pytest fixtures for users of tokenmeter, registered as a plug-in by installing it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tokenmeter.meter import Meter
    from tokenmeter.testing.provider import FakeProvider

# pytest loads this module in every run of whoever installed tokenmeter, hence the late imports.


@pytest.fixture
def fake_provider() -> Iterator[FakeProvider]:
    """A running `FakeProvider` with empty books, on a port of its own."""
    from tokenmeter.testing.provider import FakeProvider  # noqa: PLC0415 - see above

    with FakeProvider() as provider:
        yield provider


@pytest.fixture
def tokenmeter_meter() -> Iterator[Meter]:
    """A meter with an empty ledger in memory and no budgets; no configuration file is read."""
    from tokenmeter.default import make_meter  # noqa: PLC0415 - see above
    from tokenmeter.settings import Settings  # noqa: PLC0415 - see above

    meter = make_meter(Settings(store="memory:"))
    yield meter
    meter.close()
