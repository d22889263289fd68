"""The way of one call: authorize before it leaves, settle when its answer is known."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from tokenmeter.attribution import ApiKey
from tokenmeter.call import Call, Outcome
from tokenmeter.errors import BudgetExceededError, ConfigurationError, StoreBusyError, StoreUnavailableError
from tokenmeter.ledger import Claim, Entry, Reservation, new_id, utcnow
from tokenmeter.stores.base import CapReachedError, Store
from tokenmeter.usage import Observation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenmeter.budgets import BudgetBook
    from tokenmeter.pricing import Pricer

__all__ = ["Authorization", "Meter"]

log = logging.getLogger("tokenmeter")

_NOTHING_SEEN = Observation()


@dataclass(slots=True)
class Authorization:
    """Leave to make one call; hand it back to `Meter.settle`.

    Attributes:
        call: The call.
        started_at: When it left, aware UTC.
        started_ns: The same on the performance counter.
        reservation: The hold, if a budget applies.
        settled: Whether an outcome was written (or given up on).
        inject_max_output_tokens: Output cap that a budget wants set on the request; None = send it as written.
    """

    call: Call
    started_at: datetime
    started_ns: int
    reservation: Reservation | None = None
    settled: bool = False
    inject_max_output_tokens: int | None = None


class Meter:
    """A ledger's store, a price list, terms and budgets, joined.

    Safe to share between threads, tasks and clients. Made by `tokenmeter.configure` or by hand; pass it to clients as
    ``wrap(client, meter=...)`` and to every reading function as ``meter=``.
    """

    def __init__(
        self,
        *,
        store: Store,
        pricer: Pricer,
        budgets: BudgetBook,
        aliases: Mapping[str, str] | None = None,
        hold_seconds: int = 900,
    ) -> None:
        self.store = store
        self.pricer = pricer
        self.budgets = budgets
        self.hold_time = timedelta(seconds=hold_seconds)
        self._aliases = dict(aliases or {})
        self._keys: dict[str, ApiKey] = {}
        self._secret: bytes | None = None
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._lock = threading.Lock()
        self.faults = 0
        self._logged: set[str] = set()

    # -- identity

    def identify(self, key: str | None) -> ApiKey | None:
        """`key` as the ledger knows it; None for no key. The key's text is kept only in this process's memory."""
        if not key:
            return None
        known = self._keys.get(key)
        if known is None:
            if self._secret is None:
                self._secret = self.store.secret()
            known = self._keys[key] = ApiKey.identify(key, secret=self._secret, alias=self._aliases.get(key))
        return known

    # -- before the call

    def authorize(self, call: Call, *, wait: bool = True) -> Authorization:
        """Check every matching budget and hold what the call may cost.

        Raises:
            BudgetExceededError: a hard cap would be passed; nothing was held and nothing must be sent.
            StoreUnavailableError: a hard cap applies, the store cannot be reached, and the budget says ``closed``.
            StoreBusyError: ``wait=False`` and the store's lock is taken; call again, from a thread.
        """
        authorization = Authorization(call, utcnow(), time.perf_counter_ns())
        if not self.budgets:
            return authorization
        try:
            plan = self.budgets.plan(call, at=authorization.started_at, pricer=self.pricer, store=self.store)
        except (BudgetExceededError, ConfigurationError):
            raise
        except Exception as error:  # noqa: BLE001 - a fault of ours must not stop a call that no cap stops
            self.fault("budget plan", error)
            return authorization
        if plan.claims:
            self._reserve(authorization, plan.claims, wait=wait)
        return authorization

    def _reserve(self, authorization: Authorization, claims: Sequence[Claim], *, wait: bool) -> None:
        reservation = Reservation(
            reservation_id=new_id(),
            claims=tuple(sorted(claims, key=lambda claim: claim.key)),
            created_at=authorization.started_at,
            expires_at=authorization.started_at + self.hold_time,
            owner=self._owner,
            call=self._skeleton(authorization),
        )
        try:
            self.store.reserve(reservation, wait=wait)
        except CapReachedError as stop:
            raise self.budgets.explain(stop, authorization.call, pricer=self.pricer, store=self.store) from None
        except StoreBusyError:
            raise
        except Exception as error:
            self.fault("reserve", error)
            if self.budgets.fails_closed(claims):
                if isinstance(error, StoreUnavailableError):
                    raise
                raise StoreUnavailableError(
                    f"A hard cap applies to this call and the store failed ({error}); the call was not sent. "
                    "Set store_failure='open' on the budget to let calls through in such a case."
                ) from error
            return
        authorization.reservation = reservation

    def extend(self, authorization: Authorization) -> None:
        """Keep a long stream's hold alive; called by capture now and then. Never raises."""
        if authorization.reservation is None:
            return
        try:
            self.store.extend(authorization.reservation.reservation_id, utcnow() + self.hold_time)
        except Exception as error:  # noqa: BLE001 - the call's own result goes through
            self.fault("extend", error)

    # -- after the call

    def settle(self, authorization: Authorization, outcome: Outcome, *, wait: bool = True) -> Entry | None:
        """Rate what was seen and write it down, durably, before the caller gets the answer.

        Never raises, except `StoreBusyError` with ``wait=False`` (nothing was written: call again, from a thread).

        Returns:
            The entry as recorded; None when it could not be recorded (logged, counted in `faults`) or was a repetition.
        """
        try:
            entry = self._entry(authorization, outcome)
            reservation = authorization.reservation
            settlement = self.store.settle(
                entry,
                self.budgets.postings(entry) if self.budgets else (),
                reservation_id=reservation.reservation_id if reservation and outcome.last else None,
                wait=wait,
            )
        except StoreBusyError:
            raise
        except Exception as error:  # noqa: BLE001 - the call's own result goes through
            authorization.settled = True
            self.fault("settle", error)
            return None
        authorization.settled = True
        if not settlement.recorded:
            return None
        for scope in authorization.call.scopes:
            scope.add(entry.usage, entry.list_cost, entry.billed_cost, unpriced=entry.cost_source == "unpriced")
        if settlement.crossings:
            self.budgets.announce(settlement.crossings)
        return entry

    def release(self, authorization: Authorization) -> None:
        """Free the hold of a call that is not to be recorded (free endpoints). Never raises."""
        authorization.settled = True
        if authorization.reservation is None:
            return
        try:
            self.store.release(authorization.reservation.reservation_id)
        except Exception as error:  # noqa: BLE001 - the call's own result goes through; the hold expires
            self.fault("release", error)

    def sweep(self, now: datetime | None = None) -> int:
        """Turn expired holds into estimated entries, so that a crashed caller's spend is not forgotten.

        Returns:
            How many holds were swept.
        """
        swept = 0
        moment = now or utcnow()
        while batch := self.store.expired(moment):
            for reservation in batch:
                entry = replace(
                    reservation.call,
                    entry_id=new_id(),
                    recorded_at=utcnow(),
                    reservation_id=reservation.reservation_id,
                    flags=tuple(sorted({*reservation.call.flags, "expired_hold"})),
                    dedup_key=f"hold:{reservation.reservation_id}",
                )
                settlement = self.store.settle(
                    entry,
                    self.budgets.postings(entry),
                    reservation_id=reservation.reservation_id,
                    only_if_held=True,
                )
                if settlement.crossings:
                    self.budgets.announce(settlement.crossings)
                swept += 1
        return swept

    def fault(self, where: str, error: BaseException) -> None:
        """Count a fault of our own; log each kind once with its cause. The call's result goes through."""
        with self._lock:
            self.faults += 1
            kind = f"{where}: {type(error).__name__}"
            first = kind not in self._logged
            self._logged.add(kind)
        if first:
            log.error("tokenmeter could not %s; the call itself goes on", where, exc_info=error)

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    # -- entries

    def _skeleton(self, authorization: Authorization) -> Entry:
        """What an expired hold becomes: the call with its estimated input."""
        call = authorization.call
        observation = self.budgets.input_estimate(call)
        rating = self.pricer.rate(
            observation,
            provider=call.provider,
            endpoint=call.endpoint,
            at=authorization.started_at,
            api_key=call.api_key,
            attribution=call.attribution,
        )
        return Entry(
            occurred_at=authorization.started_at,
            provider=call.provider,
            endpoint=call.endpoint,
            operation=call.operation,
            request_model=call.facts.model,
            status="aborted",
            streamed=call.facts.streamed,
            attribution=call.attribution,
            api_key=call.api_key,
            usage=observation.usage,
            charges=rating.charges,
            list_cost=rating.list_cost,
            contracted_cost=rating.contracted_cost,
            billed_cost=rating.billed_cost,
            cost_source="unpriced" if rating.cost_source == "unpriced" else "estimated",
            flags=tuple(sorted({*observation.flags, *rating.flags, "estimated"})),
            price_list_hash=self.pricer.price_list_hash,
        )

    def _entry(self, authorization: Authorization, outcome: Outcome) -> Entry:
        call = authorization.call
        seen = outcome.observation or _NOTHING_SEEN
        rating = self.pricer.rate(
            seen,
            provider=call.provider,
            endpoint=call.endpoint,
            at=authorization.started_at,
            api_key=call.api_key,
            attribution=call.attribution,
        )
        flags = seen.flags | rating.flags
        if outcome.observation is None and outcome.status in {"aborted", "timeout"}:
            flags |= {"billing_unknown"}
        reservation = authorization.reservation
        if reservation is not None and self.budgets.bound_violated(reservation, seen.usage, rating.billed_cost):
            flags |= {"bound_violation"}
        response_id = seen.response_id or outcome.response_id
        return Entry(
            occurred_at=authorization.started_at,
            provider=call.provider,
            endpoint=call.endpoint,
            operation=call.operation,
            request_model=call.facts.model,
            response_model=seen.response_model,
            response_id=response_id,
            request_id=outcome.request_id,
            status=outcome.status,
            streamed=call.facts.streamed,
            attempts=outcome.attempts,
            latency_us=(time.perf_counter_ns() - authorization.started_ns) // 1000,
            first_token_us=outcome.first_token_us,
            service_tier=seen.service_tier,
            attribution=call.attribution,
            api_key=call.api_key,
            usage=seen.usage,
            charges=rating.charges,
            list_cost=rating.list_cost,
            contracted_cost=rating.contracted_cost,
            billed_cost=rating.billed_cost,
            cost_source=rating.cost_source,
            flags=tuple(sorted(flags)) if flags else (),
            price_list_hash=self.pricer.price_list_hash,
            raw_usage=None if seen.raw_usage is None else _json(seen.raw_usage),
            error_type=outcome.error_type,
            reservation_id=None if reservation is None else reservation.reservation_id,
            dedup_key=f"{call.provider}:{response_id}" if seen.deduplicate and response_id else None,
        )


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)
