"""The switch that turns tokenmeter off without touching the program: ``TOKENMETER_DISABLED=1``."""

from __future__ import annotations

import os
from typing import Any

VARIABLE = "TOKENMETER_DISABLED"
_OFF = frozenset({"", "0", "false", "no", "off"})


#: The variables as they lie in `os.environ`, where that can be seen: asked before every call.
_variables: Any = getattr(os.environ, "_data", os.environ)
_name = os.environ.encodekey(VARIABLE) if _variables is not os.environ else VARIABLE


def is_disabled() -> bool:
    """Whether clients are the SDK's own for now: nothing is recorded, held or opened, and no budget stops a call."""
    if _name not in _variables:
        return False
    return os.environ.get(VARIABLE, "").strip().lower() not in _OFF
