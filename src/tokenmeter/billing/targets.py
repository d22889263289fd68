"""Systems that bill customers, and how one reading is sent to each: taken, refused for good, or not known.

Which of the three it was decides what the next run does: see `tokenmeter.billing.handover`.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import datetime, timedelta
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from tokenmeter.billing.handover import HandOverError, Reading, ReadingRefusedError, ReadingThereError
from tokenmeter.errors import ConfigurationError, reason_of, shown
from tokenmeter.ledger import utcnow
from tokenmeter.patience import STEPS, wait_for

_SECONDS = 30
_TRIES = 5
_LONGEST_PAUSE = 60
_STRIPE_BACK = timedelta(days=35)
#: Hosts to which a key may go without a cipher.
_NEAR = frozenset({"127.0.0.1", "localhost", "::1"})
#: Statuses that speak of the one reading: another may pass.
_ABOUT_IT = frozenset({400, 404, 409, 413, 422})
_TOO_MANY = 429
#: What Lago's own agents call the meters.
LAGO_CODES: Mapping[str, str] = {
    "input": "llm_input_tokens",
    "output": "llm_output_tokens",
    "cache_read": "llm_cached_input_tokens",
    "cache_write_5m": "llm_cache_write_5m_tokens",
    "cache_write_1h": "llm_cache_write_1h_tokens",
}


def _check_address(name: str, url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:  # as of a bracket that does not close
        parts = urlsplit("")
    near = parts.scheme == "http" and parts.hostname in _NEAR
    if not parts.hostname or not (near or parts.scheme == "https"):
        raise ConfigurationError(f"{name}: give an https:// address, not {shown(url)}: the key goes with every event.")
    return url.rstrip("/")


class StripeMeters:
    """Stripe's meter events, by its official package (extra ``stripe``).

    Args:
        client: A ``stripe.StripeClient``; or its API key.
        event_name: Of the meter there; ``{meter}`` is filled in: ``ai_{meter}`` makes ``ai_output``.
        url: Where it is, if not at Stripe: a server for trials, such as ``stripe-mock``.
    """

    name = "stripe"
    #: Stripe's promise is 24 hours; one is kept back for clocks.
    remembers = timedelta(hours=23)

    def __init__(self, client: Any, *, event_name: str = "ai_{meter}", url: str | None = None) -> None:
        self._event_name = event_name
        try:
            self._stripe: Any = import_module("stripe")
        except ImportError as error:
            raise ConfigurationError("Stripe needs the extra: pip install 'tokenmeter-sdk[stripe]'.") from error
        at = {"base_addresses": {"api": _check_address(self.name, url)}} if url else {}
        self._client: Any = self._stripe.StripeClient(client, **at) if isinstance(client, str) else client

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
        except self._stripe.InvalidRequestError as error:
            if "already exists" in str(error):
                raise ReadingThereError(f"Stripe has {reading.identifier} already: {error}") from error
            raise ReadingRefusedError(f"Stripe refused {reading.identifier}: {error}") from error
        except self._stripe.StripeError as error:
            raise HandOverError(f"Stripe did not take {reading.identifier}: {error}") from error


class _Redirected(urllib.request.HTTPRedirectHandler):
    """An event is not sent on: what answers a redirect by GET has not taken it, and the key is for one address."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Redirected)


class _Http:
    """A system that is spoken to by plain HTTP."""

    name = ""
    remembers: timedelta | None = None

    def __init__(self, url: str, key: str) -> None:
        self._url, self._key = _check_address(self.name, url), key

    def check(self, at: datetime) -> None:
        """Any time will do."""

    def _has_it(self, status: int, said: str) -> bool:
        """Whether a refusal says that the reading is there already."""
        raise NotImplementedError

    def _post(self, body: Mapping[str, Any], kind: str, reading: Reading) -> None:
        """Send it to the events; one that is told to wait waits.

        Raises:
            ReadingRefusedError: it was refused.
            ReadingThereError: it is there already.
            HandOverError: whether it was taken is not known.
        """
        request = urllib.request.Request(  # noqa: S310 - checked to be http(s)
            f"{self._url}/api/v1/events",
            data=json.dumps(body, ensure_ascii=False).encode(),
            headers={"Content-Type": kind, "Authorization": f"Bearer {self._key}"},
        )
        for left in reversed(range(_TRIES)):
            try:
                self._check_answer(wait_for(lambda _: _type_of_answer(request), STEPS * _SECONDS), reading)
            except urllib.error.HTTPError as error:
                pause = _pause(error) if left else None
                if pause is None:
                    self._give_up(error, reading)
                    return
                error.close()
                time.sleep(pause)
            except (OSError, http.client.HTTPException) as error:
                raise HandOverError(
                    f"{self.name} cannot be reached for {reading.identifier}: {reason_of(error)}"
                ) from error
            else:
                return

    def _check_answer(self, kind: str, reading: Reading) -> None:
        if kind == "text/html":
            raise HandOverError(
                f"{self._url} answered {reading.identifier} with a page for people: give the address of "
                f"{self.name}'s API."
            )

    def _give_up(self, error: urllib.error.HTTPError, reading: Reading) -> None:
        with error:
            try:
                said = wait_for(lambda _: error.read(500), _SECONDS).decode("utf-8", "replace")
            except (OSError, http.client.HTTPException):
                said = ""
        if self._has_it(error.code, said):
            raise ReadingThereError(f"{self.name} has {reading.identifier} already.") from error
        kind = ReadingRefusedError if error.code in _ABOUT_IT else HandOverError
        where = f", sent on to {error.headers['location']}" if error.headers.get("location") else ""
        what = f"{self.name} did not take {reading.identifier} (HTTP {error.code}{where}): {said}"
        raise kind(what) from error


def _type_of_answer(request: urllib.request.Request) -> str:
    with _OPENER.open(request, timeout=_SECONDS) as answer:
        kind: str = answer.headers.get_content_type()
    return kind


def _pause(error: urllib.error.HTTPError) -> int | None:
    """How many seconds a system asks to wait, where it says that it is asked too often; None = do not try again."""
    if error.code != _TOO_MANY:
        return None
    asked = error.headers.get("retry-after", "1")
    pause = int(asked) if asked.isdecimal() else None
    return pause if pause is not None and pause <= _LONGEST_PAUSE else None


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
        self._post({"event": event}, "application/json", reading)

    def _has_it(self, status: int, said: str) -> bool:
        """Lago names the field and what is wrong with it."""
        try:
            told = json.loads(said)["error_details"]["transaction_id"]
        except (ValueError, LookupError, TypeError, RecursionError):
            return False
        return status == 422 and "value_already_exist" in told  # noqa: PLR2004 - Lago's status for it


class OpenMeter(_Http):
    """OpenMeter's events, as CloudEvents.

    Args:
        url: ``https://openmeter.cloud``, or your own.
        key: API key.
        source: What the events come from; with their id it is their identity.
        type: Of the events.
    """

    name = "openmeter"
    #: How long is a setting of its operator: a day is what each has.
    remembers = timedelta(hours=23)

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
        self._post(event, "application/cloudevents+json", reading)

    def _has_it(self, status: int, said: str) -> bool:  # noqa: ARG002 - it says nothing more
        """OpenMeter takes a second one in silence; another that speaks its protocol says that it conflicts."""
        return status == 409  # noqa: PLR2004 - HTTP's Conflict
