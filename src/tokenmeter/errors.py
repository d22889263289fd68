"""Every error tokenmeter raises.

::

    TokenmeterError
    ├── ConfigurationError            bad URL, unknown key, missing extra (says the pip command)
    ├── PricingError
    │   ├── UnknownModelError         no price row names this model
    ├── AttributionRequiredError      the settings require a member (or the like)
    ├── BudgetExceededError           a hard cap stopped the call before it left
    │   ├── BudgetReservedError       would fit once calls in flight settle (retryable)
    │   └── RequestTooLargeError      can never fit into this window
    ├── StoreError
    │   ├── StoreUnavailableError     the store cannot be reached or written
    │   ├── StoreBusyError            somebody else holds the write lock (internal: asked not to wait)
    │   └── SchemaVersionError        the store was written by a newer tokenmeter
    └── LedgerError
        ├── TamperedLedgerError       the hash chain does not add up
        └── ReconciliationError       a provider statement cannot be compared

None of them is a subclass of an SDK's error, so ``except openai.OpenAIError`` never swallows a budget stop.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import partial
from reprlib import Repr
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

__all__ = [
    "AttributionRequiredError",
    "BudgetExceededError",
    "BudgetReservedError",
    "ConfigurationError",
    "LedgerError",
    "PricingError",
    "ReconciliationError",
    "RequestTooLargeError",
    "SchemaVersionError",
    "StoreBusyError",
    "StoreError",
    "StoreUnavailableError",
    "TamperedLedgerError",
    "TokenmeterError",
    "UnknownModelError",
]


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120


#: Characters without a space, and of a whole message, that an error shows at most; of longer ones these ends.
_MOST_UNBROKEN, _MOST_SAID, _KEPT = 400, 8_000, 60
_UNBROKEN = re.compile(rf"\S{{{_MOST_UNBROKEN},}}")


def shown(value: object) -> str:
    """What somebody gave, for the text of an error: short, and without its repr where that raises."""
    try:
        return _SHORT.repr(value)
    except Exception:  # noqa: BLE001 - anything may raise in another's repr, and an integer may be too long for one
        return f"<{type(value).__name__}>"


def whose(scope: Mapping[str, str], key_name: str | None = None) -> str:
    """What a budget's counter belongs to, in words; an API key by its name, where it has one."""
    named = {**scope, "api_key": key_name} if key_name and "api_key" in scope else scope
    return ", ".join(f"{key}={value}" for key, value in named.items()) or "all calls"


def _fit(said: object) -> object:
    """A message in which a value that somebody gave takes no more room than what is said about it."""
    if not isinstance(said, str) or len(said) <= _MOST_UNBROKEN:
        return said
    fitting = _UNBROKEN.sub(lambda found: f"{found[0][:_KEPT]}...{found[0][-_KEPT:]}", said)
    return fitting if len(fitting) <= _MOST_SAID else f"{fitting[: _MOST_SAID // 2]} ... {fitting[-_MOST_SAID // 2 :]}"


class TokenmeterError(Exception):
    """The root of every error tokenmeter raises. A long value that its message repeats is cut in the middle."""

    def __init__(self, *said: object) -> None:
        super().__init__(*map(_fit, said))


class ConfigurationError(TokenmeterError):
    """A setting is wrong or an extra is missing; the message says what to change."""


class PricingError(TokenmeterError):
    """A price row is wrong, or a usage cannot be rated."""


class UnknownModelError(PricingError):
    """No price row names this model."""


class AttributionRequiredError(TokenmeterError):
    """The settings require an attribution that the call does not have. Nothing was sent and nothing was billed.

    Attributes:
        missing: The fields it lacks.
    """

    def __init__(self, message: str, *, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(AttributionRequiredError, str(self), missing=self.missing), ()


class BudgetExceededError(TokenmeterError):
    """A hard cap stopped the call before it left this process. Nothing was sent and nothing was billed.

    Attributes:
        budget: Name of the budget that stopped the call.
        scope: What the counter belongs to, for example ``{"member": "ada"}``.
        unit: ``"usd"``, ``"tokens"`` or ``"requests"``.
        limit: The cap, in ``unit``.
        spent: What settled calls have used in this window, in ``unit``.
        reserved: What calls in flight hold, in ``unit``.
        requested: The bound of the call that was stopped, in ``unit``; None when it has no bound.
        resets_at: Start of the next window (aware, UTC), or when the budget itself ends, where that is before it; None
            for one that never resets or ends.
        ends: Whether `resets_at` is the end of the budget itself.
        retryable: Whether the same call may pass before ``resets_at``.
        retry_after: Seconds after which a retry makes sense; None when unknown.
        model: The model the call named.
        key_name: What the API key of ``scope`` is called: its alias or last four characters; None without one.
        place: File and line where the run began that the budget is of (`tokenmeter.budget`); None for any other.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self,
        reason: str = "",
        *,
        budget: str,
        scope: dict[str, str],
        unit: str,
        limit: Decimal,
        spent: Decimal,
        reserved: Decimal,
        requested: Decimal | None,
        resets_at: datetime | None,
        ends: bool = False,
        retry_after: Decimal | None = None,
        model: str | None = None,
        max_affordable_output_tokens: int | None = None,
        key_name: str | None = None,
        place: str | None = None,
    ) -> None:
        self.reason = reason
        self.budget = budget
        self.scope = scope
        self.unit = unit
        self.limit = limit
        self.spent = spent
        self.reserved = reserved
        self.requested = requested
        self.resets_at = resets_at
        self.ends = ends
        self.retry_after = retry_after
        self.model = model
        self.max_affordable_output_tokens = max_affordable_output_tokens
        self.key_name = key_name
        self.place = place
        super().__init__(self.message())

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self._fields()), ()

    def message(self, *, redact: bool = False) -> str:
        """The error in words; ``redact=True`` leaves out every figure and name, for showing to end users."""
        if redact:
            return "This call was stopped because a usage budget is exhausted."
        asked = "has no upper bound" if self.requested is None else f"needs up to {self._amount(self.requested)}"
        of = whose(self.scope, self.key_name) if self.place is None else f"the run begun at {self.place}"
        state = f"Budget {self.budget!r} ({of}) stopped the call before it was sent: "
        if self.unit == "in_flight":  # nothing is spent of it, and each call is one
            state += f"limit {self._amount(self.limit)}, of which {self.reserved:f} are taken."
        else:
            state += (
                f"limit {self._amount(self.limit)}, spent {self._amount(self.spent)}, "
                f"reserved by calls in flight {self._amount(self.reserved)}, this call {asked}."
            )
        parts = [state]
        if self.reason:
            parts.append(self.reason)
        if self.max_affordable_output_tokens is not None:
            parts.append(f"The budget can still pay for {self.max_affordable_output_tokens} output tokens.")
        if self.resets_at is not None:
            what = "budget ends" if self.ends else "window resets"
            parts.append(f"The {what} at {self.resets_at.isoformat()}.")
        return " ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The error as plain JSON-ready values; amounts are decimal strings, instants ISO 8601."""
        fields = self._fields()
        amounts = {
            key: None if fields[key] is None else str(fields[key])
            for key in ("limit", "spent", "reserved", "requested", "retry_after")
        }
        resets = None if self.resets_at is None else self.resets_at.isoformat()
        return {
            "error": type(self).__name__,
            "message": self.message(),
            **fields,
            **amounts,
            "resets_at": resets,
            "retryable": self.retryable,
        }

    def _fields(self) -> dict[str, Any]:
        return {
            "reason": self.reason,
            "budget": self.budget,
            "scope": dict(self.scope),
            "unit": self.unit,
            "limit": self.limit,
            "spent": self.spent,
            "reserved": self.reserved,
            "requested": self.requested,
            "resets_at": self.resets_at,
            "ends": self.ends,
            "retry_after": self.retry_after,
            "model": self.model,
            "max_affordable_output_tokens": self.max_affordable_output_tokens,
            "key_name": self.key_name,
            "place": self.place,
        }

    def _amount(self, value: Decimal) -> str:
        if self.unit == "usd":
            return f"${value:f}"
        if self.unit == "in_flight":
            return f"{value:f} {'call' if value == 1 else 'calls'} in flight"
        return f"{value:f} {self.unit.removesuffix('s') if value == 1 else self.unit}"


class BudgetReservedError(BudgetExceededError):
    """The call would fit once calls in flight settle; try again after ``retry_after`` seconds."""

    retryable: ClassVar[bool] = True


class RequestTooLargeError(BudgetExceededError):
    """The call can never fit into this window; ``max_affordable_output_tokens`` says what would."""


class StoreError(TokenmeterError):
    """The ledger's store failed; the driver's error is ``__cause__``."""


class StoreUnavailableError(StoreError):
    """The store cannot be reached, read or written right now."""


class StoreBusyError(StoreError):
    """The store was asked not to wait and somebody else holds its write lock."""


class SchemaVersionError(StoreError):
    """The store was written by a newer tokenmeter; upgrade this one."""


class LedgerError(TokenmeterError):
    """The ledger's content does not permit this."""


class TamperedLedgerError(LedgerError):
    """The hash chain does not add up: an entry was edited, removed or cut off."""


class ReconciliationError(LedgerError):
    """A provider statement cannot be read or compared."""


def reason_of(error: BaseException) -> str:
    """Why something failed, as a sentence of ours ends: what the system says, without its number and Python's form."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return said.rstrip(".")
