"""Usage handed over to where customers are billed: Stripe meter events, Lago, OpenMeter. Each piece once.

What is to be sent is written down in the ledger before, and that it was sent, after: a run that was interrupted sends
the same events again under the same identifiers, and what came later is a further revision of the difference.
"""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from importlib import import_module
from typing import Any, Protocol

from tokenmeter.billing.drafting import Billable
from tokenmeter.billing.period import acting
from tokenmeter.billing.rated import check_dimensions
from tokenmeter.errors import ConfigurationError, TokenmeterError
from tokenmeter.ledger import utcnow
from tokenmeter.money import EXACT, ZERO
from tokenmeter.periods import Period, parse_period
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import DocumentQuery, NewDocument

KIND = "handover"
_LONGEST_IDENTIFIER = 100
_SECONDS = 30
_STRIPE_BACK = timedelta(days=35)
#: What Lago's own agents call the meters.
LAGO_CODES: Mapping[str, str] = {
    "input": "llm_input_tokens",
    "output": "llm_output_tokens",
    "cache_read": "llm_cached_input_tokens",
    "cache_write_5m": "llm_cache_write_5m_tokens",
    "cache_write_1h": "llm_cache_write_1h_tokens",
}


class HandOverError(TokenmeterError):
    """A billing system did not take an event; what was written down is sent again by the next run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one account used of one meter in a period, or what came later.

    Attributes:
        identifier: Under which it is taken once.
        account: ``member=ada``.
        customer: Who that is in the other system.
        sku_meter: What was used. Meters are disjoint: ``input`` is without what was cached.
        value: How much, whole.
        at: The event's time, aware UTC: the period's end, or the moment it was written down.
        revision: From 1; a later one is the difference to those before.
    """

    identifier: str
    account: str
    customer: str
    sku_meter: str
    value: int
    at: datetime
    revision: int


class Target(Protocol):
    """A system that takes readings."""

    @property
    def name(self) -> str:
        """What it is called in the ledger's records."""
        ...

    def check(self, at: datetime) -> None:
        """Refuse events of a time that it does not take."""
        ...

    def send(self, reading: Reading) -> None:
        """Send one; one that is there already is taken as sent.

        Raises:
            HandOverError: it was not taken.
        """
        ...


@dataclass(slots=True)
class HandOver:
    """What a run did.

    Attributes:
        sent: Readings that were sent.
        unchanged: How many had been sent before and are still right.
        unknown: Accounts that have no customer there, with what they used.
        owed: Account and meter -> how much less it is now than was sent: nothing negative is sent.
        fractions: Account and meter -> quantities that are not whole, and so were left out.
    """

    sent: list[Reading] = field(default_factory=list[Reading])
    unchanged: int = 0
    unknown: dict[str, int] = field(default_factory=dict[str, int])
    owed: dict[str, int] = field(default_factory=dict[str, int])
    fractions: dict[str, Decimal] = field(default_factory=dict[str, Decimal])

    def __str__(self) -> str:
        lines = [f"{len(self.sent):,} readings sent, {self.unchanged:,} sent before."]
        lines += [f"  no customer for {name}: {value:,} not sent" for name, value in self.unknown.items()]
        lines += [f"  {name}: {value:,} less than was sent; settle it there" for name, value in self.owed.items()]
        lines += [f"  {name}: {value:f} is not whole; not sent" for name, value in self.fractions.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "sent": [{**asdict(one), "at": one.at.isoformat()} for one in self.sent],
            "unchanged": self.unchanged,
            "unknown": self.unknown,
            "owed": self.owed,
            "fractions": {name: f"{value:f}" for name, value in self.fractions.items()},
        }


def hand_over(
    store: Store,
    target: Target,
    *,
    period: str | Period,
    each: str = "member",
    customers: Mapping[str, str] | None = None,
    tz: str = "UTC",
    by: str | None = None,
) -> HandOver:
    """Send a period's usage, per account and meter, to a billing system. Run it again as often as you like.

    Args:
        store: The ledger, which remembers what was sent.
        target: `StripeMeters`, `Lago` or `OpenMeter`.
        period: ``"2026-11"``, ... or a `Period`.
        each: Dimension of the accounts.
        customers: Account -> customer there; None = they are called the same. Accounts without one are not sent.
        tz: Zone in which the period is cut.
        by: Who does it; default: the user of the system.

    Raises:
        HandOverError: the system did not take an event; the next run goes on there.
        ConfigurationError: a dimension that is none, or a period that the system does not take any more.
    """
    (dimension,) = check_dimensions([each], what="each=")
    asked = period if isinstance(period, Period) else parse_period(period, tz)
    at = min(asked.end - timedelta(seconds=1), utcnow())
    target.check(at)
    run = _Handover(store, target, asked, at=at, by=acting(by))
    run.send_again()
    for account, quantities in _usage(store, asked, dimension):
        customer = account if customers is None else customers.get(account)
        for sku_meter, quantity in quantities.items():
            run.send(f"{dimension}={account}", customer, sku_meter, quantity)
    return run.outcome


def _usage(store: Store, period: Period, dimension: str) -> Iterator[tuple[str, dict[str, Decimal]]]:
    billable = Billable(store, period)
    for account in billable.accounts(dimension):
        sums: dict[str, Decimal] = {}
        for _, rows in billable.parts({dimension: account}):
            for row in rows:
                if row.rate.kind != "adjustment" and row.rate.unit != "USD":
                    sums[row.rate.sku_meter] = EXACT.add(sums.get(row.rate.sku_meter, ZERO), row.quantity)
        yield account, sums


class _Handover:
    def __init__(self, store: Store, target: Target, period: Period, *, at: datetime, by: str) -> None:
        self.outcome = HandOver()
        self._store, self._target, self._at, self._by = store, target, at, by
        self._label = period.label
        self._prefix = f"{target.name} {period.start.isoformat()}/{period.end.isoformat()} "
        self._prepared: dict[tuple[str, str], list[Reading]] = {}
        self._unsent: dict[str, Reading] = {}
        for document in store.documents(DocumentQuery(KIND, self._prefix)):
            body: dict[str, Any] = json.loads(document.body)
            if document.key.endswith(" sent"):
                self._unsent.pop(document.key.removesuffix(" sent"), None)
                continue
            told: dict[str, Any] = body["reading"]
            told["at"] = datetime.fromisoformat(told["at"])
            reading = Reading(**told)
            self._prepared.setdefault((reading.account, reading.sku_meter), []).append(reading)
            self._unsent[document.key] = reading

    def send_again(self) -> None:
        """What an earlier run wrote down and did not send for sure: the same, under the same identifiers."""
        for key, reading in list(self._unsent.items()):
            self._deliver(key, reading)

    def send(self, account: str, customer: str | None, sku_meter: str, quantity: Decimal) -> None:
        """What is new of one account's meter."""
        name = f"{account} {sku_meter}"
        if quantity != quantity.to_integral_value(context=EXACT):
            self.outcome.fractions[name] = quantity
            return
        earlier = self._prepared.get((account, sku_meter), [])
        more = int(quantity) - sum(one.value for one in earlier)
        if customer is None:
            self.outcome.unknown[account] = self.outcome.unknown.get(account, 0) + int(quantity)
        elif more < 0:
            self.outcome.owed[name] = -more
        elif not more:
            self.outcome.unchanged += bool(earlier)
        else:
            self._send_new(account, customer, sku_meter, more, len(earlier) + 1)

    def _send_new(self, account: str, customer: str, sku_meter: str, value: int, revision: int) -> None:
        identifier = f"tm-{self._label}-{account.partition('=')[2]}-{sku_meter}-r{revision}"
        if len(identifier) > _LONGEST_IDENTIFIER or not identifier.isascii():
            identifier = f"tm-{hashlib.sha256(identifier.encode()).hexdigest()}"
        reading = Reading(
            identifier=identifier,
            account=account,
            customer=customer,
            sku_meter=sku_meter,
            value=value,
            at=self._at if revision == 1 else utcnow(),
            revision=revision,
        )
        reading = replace(reading, at=reading.at.replace(microsecond=0))
        key = f"{self._prefix}{account} {sku_meter} r{revision}"
        body = {
            "reading": {**asdict(reading), "at": reading.at.isoformat()},
            "by": self._by,
            "at": utcnow().isoformat(),
        }
        if self._store.file(NewDocument(kind=KIND, key=key, body=json.dumps(body, ensure_ascii=False))).recorded:
            self._deliver(key, reading)

    def _deliver(self, key: str, reading: Reading) -> None:
        self._target.send(reading)
        body = json.dumps({"at": utcnow().isoformat(), "by": self._by}, ensure_ascii=False)
        self._store.file(NewDocument(kind=KIND, key=f"{key} sent", body=body))
        self.outcome.sent.append(reading)


# -- systems


class StripeMeters:
    """Stripe's meter events, by its official package (extra ``stripe``).

    Args:
        client: A ``stripe.StripeClient``; or its API key.
        event_name: Of the meter there; ``{meter}`` is filled in: ``ai_{meter}`` makes ``ai_output``.
    """

    name = "stripe"

    def __init__(self, client: Any, *, event_name: str = "ai_{meter}") -> None:
        self._event_name = event_name
        try:
            self._stripe: Any = import_module("stripe")
        except ImportError as error:
            raise ConfigurationError("Stripe needs the extra: pip install 'tokenmeter-sdk[stripe]'.") from error
        self._client: Any = self._stripe.StripeClient(client) if isinstance(client, str) else client

    def check(self, at: datetime) -> None:
        """Stripe takes events of the last 35 days."""
        if utcnow() - at > _STRIPE_BACK:
            raise ConfigurationError(f"Stripe takes meter events of the last 35 days, not of {at.date()}.")

    def send(self, reading: Reading) -> None:
        """See `Target.send`."""
        event = {
            "event_name": self._event_name.format(meter=reading.sku_meter),
            "identifier": reading.identifier,
            "timestamp": int(reading.at.timestamp()),
            "payload": {"stripe_customer_id": reading.customer, "value": str(reading.value)},
        }
        try:
            self._client.v1.billing.meter_events.create(event)
        except self._stripe.StripeError as error:
            if "already exists" in str(error):  # an earlier run's, whose answer was lost
                return
            raise HandOverError(f"Stripe did not take {reading.identifier}: {error}") from error


class _Http:
    """A system that is spoken to by plain HTTP."""

    name = ""

    def __init__(self, url: str, key: str) -> None:
        if not url.startswith(("https://", "http://127.0.0.1", "http://localhost")):
            raise ConfigurationError(
                f"{self.name}: give an https:// address, not {url!r}: the key goes with every event."
            )
        self._url, self._key = url.rstrip("/"), key

    def check(self, at: datetime) -> None:
        """Any time will do."""

    def _post(self, path: str, body: Mapping[str, Any], kind: str, *, there: int, what: str) -> None:
        request = urllib.request.Request(  # noqa: S310 - checked to be http(s)
            f"{self._url}{path}",
            data=json.dumps(body, ensure_ascii=False).encode(),
            headers={"Content-Type": kind, "Authorization": f"Bearer {self._key}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS):  # noqa: S310 - as above
                return
        except urllib.error.HTTPError as error:
            said = error.read(500).decode("utf-8", "replace")
            error.close()
            if error.code == there and ("exist" in said or "taken" in said or "duplicate" in said):
                return
            raise HandOverError(f"{self.name} did not take {what} (HTTP {error.code}): {said}") from error
        except OSError as error:
            raise HandOverError(f"{self.name} cannot be reached for {what}: {error}") from error


class Lago(_Http):
    """Lago's events.

    Args:
        url: ``https://api.getlago.com``.
        key: API key.
        codes: Meter -> code of the billable metric; default: what Lago's own agents use, else ``llm_METER``.
    """

    name = "lago"

    def __init__(self, url: str, key: str, *, codes: Mapping[str, str] | None = None) -> None:
        super().__init__(url, key)
        self._codes = {**LAGO_CODES, **(codes or {})}

    def send(self, reading: Reading) -> None:
        """See `Target.send`; the customer is an external subscription id."""
        event = {
            "transaction_id": reading.identifier,
            "external_subscription_id": reading.customer,
            "code": self._codes.get(reading.sku_meter, f"llm_{reading.sku_meter}"),
            "timestamp": f"{int(reading.at.timestamp())}.000",
            "properties": {"value": str(reading.value)},
        }
        self._post("/api/v1/events", {"event": event}, "application/json", there=422, what=reading.identifier)


class OpenMeter(_Http):
    """OpenMeter's events, as CloudEvents.

    Args:
        url: ``https://openmeter.cloud``, or your own.
        key: API key.
        source: What the events come from; with their id it is their identity.
        type: Of the events.
    """

    name = "openmeter"

    def __init__(self, url: str, key: str, *, source: str = "tokenmeter", type: str = "ai.tokens") -> None:  # noqa: A002 - CloudEvents' own word
        super().__init__(url, key)
        self._source, self._type = source, type

    def send(self, reading: Reading) -> None:
        """See `Target.send`; the customer is the event's subject."""
        event = {
            "specversion": "1.0",
            "id": reading.identifier,
            "source": self._source,
            "type": self._type,
            "subject": reading.customer,
            "time": reading.at.isoformat().replace("+00:00", "Z"),
            "data": {"tokens": str(reading.value), "type": reading.sku_meter},
        }
        self._post("/api/v1/events", event, "application/cloudevents+json", there=409, what=reading.identifier)
