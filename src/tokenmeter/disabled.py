"""The switch that turns tokenmeter off without touching the program: ``TOKENMETER_DISABLED=1``."""

from __future__ import annotations

import os

__all__ = ["VARIABLE", "is_disabled"]

VARIABLE = "TOKENMETER_DISABLED"
_OFF = frozenset({"", "0", "false", "no", "off"})


def is_disabled() -> bool:
    """Whether clients are the SDK's own for now: nothing is recorded, held or opened, and no budget stops a call."""
    return os.environ.get(VARIABLE, "").strip().lower() not in _OFF
