"""Leave to make one call."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tokenmeter.budgets.runs import RunClaims
from tokenmeter.call import Call
from tokenmeter.ledger import Reservation


@dataclass(slots=True)
class Authorization:
    """Leave to make one call; hand it back to `Meter.settle`.

    Attributes:
        call: The call.
        started_at: When it left, aware UTC.
        started_ns: The same on the performance counter; 0 for a call that nobody watched.
        reservation: The hold, if a budget applies.
        runs: What is held in the runs around the call (`tokenmeter.budget`), if any.
        settled: Whether an outcome was written (or given up on).
        inject_max_output_tokens: Output cap that a budget wants set on the request; None = send it as written.
        extend_due_ns: When the hold is next worth extending, on the performance counter.
    """

    call: Call
    started_at: datetime
    started_ns: int
    reservation: Reservation | None = None
    runs: RunClaims | None = None
    settled: bool = False
    inject_max_output_tokens: int | None = None
    extend_due_ns: int = 0
