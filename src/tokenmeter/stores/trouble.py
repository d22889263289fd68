"""Something that fails for a while: told again and again with how often, and told when it works again."""

from __future__ import annotations

import logging
import time

from tokenmeter.processes import make_lock, run_alone

log = logging.getLogger("tokenmeter")

#: Seconds between two tellings of a trouble that goes on.
_AGAIN = 60.0


class Trouble:
    """What fails at present. True while something does.

    Args:
        what: What cannot be done, as in "could not ...".
        comfort: What that means for the user's data.

    Attributes:
        count: How often it failed, since the process began.
        reason: The last error in words; None while all is well.
    """

    def __init__(self, what: str, comfort: str) -> None:
        self._what, self._comfort = what, comfort
        self._lock = make_lock()
        self._since = 0
        self._told_at = 0.0
        self.count = 0
        self.reason: str | None = None

    def __bool__(self) -> bool:
        return self.reason is not None

    def failed(self, error: BaseException) -> None:
        """It failed once more."""
        times = run_alone(self._lock, self._count, str(error) or type(error).__name__)
        if times:
            log.error(
                "tokenmeter could not %s (%s by now): %s %s", self._what, _times(times), self.reason, self._comfort
            )

    def _count(self, reason: str) -> int:
        """How often it failed by now, if that is to be told; else 0."""
        now = time.monotonic()
        self.count += 1
        self._since += 1
        due = self.reason is None or now - self._told_at >= _AGAIN
        self.reason = reason
        if due:
            self._told_at = now
        return self._since if due else 0

    def worked(self) -> None:
        """It worked; says so if it did not before."""
        if self.reason is not None:
            log.warning("tokenmeter can %s again; it failed %s.", self._what, _times(run_alone(self._lock, self._end)))

    def _end(self) -> int:
        times, self._since, self.reason = self._since, 0, None
        return times


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"
