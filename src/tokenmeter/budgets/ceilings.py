"""The dearest rates of a call, kept for as long as they hold: looking them up is too slow for every call."""

from __future__ import annotations

import logging
from datetime import datetime

from tokenmeter.call import Call
from tokenmeter.pricing import Ceiling, Pricer

__all__ = ["Ceilings"]

log = logging.getLogger("tokenmeter")

_MOST = 4_096


class Ceilings:
    """Remembers a `Pricer`'s ceilings within one minute: prices change on the minute at the earliest."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Ceiling | None] = {}

    def of(self, call: Call, at: datetime, pricer: Pricer) -> Ceiling | None:
        """The dearest rates `call` could be billed at; those of other models, marked so, for an unknown model.

        None when the price list cannot answer: the call then has no bound, and each budget says what that means.
        """
        facts = call.facts
        who = (call.api_key, call.attribution) if pricer.terms.multipliers else None
        key = (
            call.provider,
            call.endpoint,
            facts.model,
            facts.service_tier,
            facts.processing,
            facts.speed,
            facts.region,
            who,
            at.replace(second=0, microsecond=0),
        )
        try:
            return self._known[key]
        except KeyError:
            pass
        try:
            found = _look_up(call, at, pricer)
        except Exception:
            log.exception("tokenmeter could not look up the dearest price of %r", facts.model)
            return None
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[key] = found
        return found


def _look_up(call: Call, at: datetime, pricer: Pricer) -> Ceiling:
    found = pricer.ceiling(
        provider=call.provider,
        endpoint=call.endpoint,
        facts=call.facts,
        at=at,
        api_key=call.api_key,
        attribution=call.attribution,
    )
    if found is not None:
        return found
    return pricer.dearest_known(provider=call.provider, at=at, api_key=call.api_key, attribution=call.attribution)
