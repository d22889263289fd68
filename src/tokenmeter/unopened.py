"""Stands in for the default meter while its ledger cannot be opened: what calls use is kept until it can be."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, NoReturn, cast

from tokenmeter.api import Meter
from tokenmeter.errors import StoreUnavailableError, reason_of
from tokenmeter.interrupts import let_interrupt_through
from tokenmeter.ledger import utcnow
from tokenmeter.meter import Meter as CallMeter
from tokenmeter.meter.recording import UNKNOWN, Unwritten
from tokenmeter.stores.base import Store


class UnopenedStore:
    """A ledger that cannot be opened: it knows this machine's clock, and nothing else.

    Attributes:
        reason: Why.
    """

    url, hears_late, policy, tell_late = "", False, None, None

    def __init__(self, reason: Exception) -> None:
        self.reason = reason
        #: Of no ledger: keys are told apart by it, and get their fingerprints once the ledger has a say.
        self._secret = secrets.token_bytes()

    def now(self) -> datetime:
        """This machine's clock."""
        return utcnow()

    def secret(self) -> bytes:
        """What tells keys apart meanwhile."""
        return self._secret

    def close(self) -> None:
        """Nothing is open."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if not hasattr(Store, name):
            raise AttributeError(name)
        return self._refuse

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise StoreUnavailableError(f"The ledger cannot be opened: {reason_of(self.reason)}.")


class UnopenedMeter(Meter):
    """Counts calls into the blocks and runs around them, and keeps their outcomes for the meter that is to come.

    Args:
        reason: Why its ledger cannot be opened.
        find: The meter, once it can be; raises until then.
        parts: As for the meter itself.
    """

    def __init__(self, reason: Exception, find: Callable[[], CallMeter], **parts: Any) -> None:
        self.unopened = UnopenedStore(reason)
        self._find: Callable[[], CallMeter] | None = find
        super().__init__(store=cast("Store", self.unopened), **parts)

    def close(self) -> None:
        """Try no more; what still waits is told at the end of the process."""
        self._find = None
        super().close()

    def _settle_late(self, late: Unwritten) -> bool:
        if self._find is None:
            return False
        try:
            meter = self._find()
        except Exception as error:  # noqa: BLE001 - it waits on
            let_interrupt_through(error)
            self.waiting.failed_again(error)
            return False
        self._name_key(late, meter)
        return meter._settle_late(late)  # noqa: SLF001 - of the same class

    def _name_key(self, late: Unwritten, meter: CallMeter) -> None:
        """Have the call's key bear the ledger's fingerprint."""
        call = late.authorization.call
        if call.api_key is None:
            return
        text = next((text for text, key in self.keys.known.items() if key == call.api_key), None)
        if text is None and call.api_key in meter.keys.known.values():  # when it was tried before
            return
        named = replace(call.api_key, fingerprint=UNKNOWN) if text is None else meter.identify(text)
        late.authorization.call = replace(call, api_key=named)
        if late.entry is not None:
            late.entry = replace(late.entry, api_key=named)

    def fault(self, where: str, error: BaseException) -> None:
        """As `Meter.fault`; that the ledger cannot be opened is told with each call that is kept."""
        if isinstance(error, StoreUnavailableError):
            let_interrupt_through(error)
        else:
            super().fault(where, error)
