"""Calls on nobody's account: refused, or told once with the place in the code, since no cap on members catches them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence
from types import FrameType

from tokenmeter.budgets.matching import Subject
from tokenmeter.call import Call
from tokenmeter.dimensions import SCOPE_FIELDS
from tokenmeter.errors import AttributionRequiredError, ConfigurationError

log = logging.getLogger("tokenmeter")

_MOST_PLACES = 1_000
#: Whoever stands between the user's line and us.
_BETWEEN = ("tokenmeter", "openai", "anthropic", "google", "httpx", "anyio", "asyncio", "threading", "concurrent")


class Required:
    """What every call has to be attributed to.

    Args:
        names: Fields of `Attribution`, ``api_key``, or ``tag:NAME``.
        refuse: Whether a call without them is refused; else it is told once per place in the code.

    Raises:
        ConfigurationError: a name is no dimension.
    """

    def __init__(self, names: Iterable[str] = (), *, refuse: bool = True) -> None:
        self.names: Sequence[str] = tuple(names)
        self._refuse = refuse
        self._told: set[tuple[str, str]] = set()
        for name in self.names:
            if name not in SCOPE_FIELDS and not (name.startswith("tag:") and len(name) > len("tag:")):
                raise ConfigurationError(f"require: {name!r} is not one of {', '.join(SCOPE_FIELDS)} or tag:NAME.")

    def check(self, call: Call) -> None:
        """Look at a call that is about to leave.

        Raises:
            AttributionRequiredError: something is missing, and such calls are refused.
        """
        missing = self.missing(call)
        if not missing:
            return
        place, what = place_in_code(), ", ".join(missing)
        mend = f"Wrap it in tokenmeter.attribute({_example(missing[0])})"
        if self._refuse:
            raise AttributionRequiredError(
                f"The call to {call.endpoint} at {place} has no {what}, and the settings require it. {mend}. "
                "The call was not sent.",
                missing=tuple(missing),
            )
        self.tell(place, f"The call to {call.endpoint} at {place} has no {what}. {mend}.")

    def missing(self, call: Call) -> list[str]:
        """What a call lacks."""
        if not self.names:
            return []
        subject = Subject.of_call(call)
        return [name for name in self.names if subject.value(name) is None]

    def tell(self, key: str, text: str) -> None:
        """Log `text` once per `key`."""
        if (key, text) not in self._told and len(self._told) < _MOST_PLACES:
            self._told.add((key, text))
            log.warning("%s", text)


def _example(name: str) -> str:
    return f"tags={{{name[4:]!r}: ...}}" if name.startswith("tag:") else f"{name}=..."


def place_in_code() -> str:
    """File and line of the user's code that makes the present call; a worker thread's own where it is in none."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - as `logging` does
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".", maxsplit=1)[0] not in _BETWEEN:
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return "a worker thread"
