"""Tools for testing applications that use tokenmeter: `FakeProvider`, a provider that runs inside the test.

The names are loaded at first use: the pytest plug-in imports this package in every run of whoever installed it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenmeter.testing.context import Answer
    from tokenmeter.testing.provider import FakeProvider
    from tokenmeter.testing.truth import Reports, Truth
    from tokenmeter.testing.wire import Event, Request

__all__ = ["Answer", "Event", "FakeProvider", "Reports", "Request", "Truth"]

_HOMES = {
    "Answer": "context",
    "Event": "wire",
    "FakeProvider": "provider",
    "Reports": "truth",
    "Request": "wire",
    "Truth": "truth",
}


if not TYPE_CHECKING:  # as in `tokenmeter` itself

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
