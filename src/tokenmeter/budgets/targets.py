"""Where alerts go: signed webhooks, Slack, Microsoft Teams, PagerDuty, e-mail. Each is a function of an alert.

Targets run in the alert queue's thread, never on a call's path. What is delivered again after a failure bears the same
identity, by which a receiver tells repetitions.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import hashlib
import hmac
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tokenmeter.budgets.alerts import Alert, Notice
from tokenmeter.budgets.delivery import TargetError
from tokenmeter.budgets.mail import Email
from tokenmeter.errors import ConfigurationError
from tokenmeter.patience import STEPS, wait_for

__all__ = ["Email", "PagerDuty", "Slack", "TargetError", "Teams", "Webhook", "sign", "verify_signature"]

_RETRYABLE = frozenset({408, 425, 429})
_SERVER_ERRORS = 500
#: What a receiver answers to somebody, or about something, that it does not know.
_UNKNOWN_THERE = frozenset({401, 403, 404, 410})
#: Seconds that a receiver is waited for; a later answer than that is another look's.
_LONGEST_WAIT = 60
_HOW_TO_MAKE_ONE = "python -c \"import base64, os; print('whsec_' + base64.b64encode(os.urandom(32)).decode())\""
_PAGERDUTY = "https://events.pagerduty.com/v2/enqueue"


def _is_http(url: str) -> bool:
    """Whether alerts can be sent there: what is found out at the first alert is found out too late."""
    try:
        parts = urllib.parse.urlsplit(url)
        return (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0  # which also asks whether it is a port
            and "@" not in parts.netloc
            and (parts.path + parts.query).isascii()
            and url.isprintable()
            and " " not in url
        )
    except ValueError:
        return False


class _Refusal(NamedTuple):
    """What went wrong, whether another attempt makes no sense, and how many seconds the receiver wants to be left."""

    problem: str
    final: bool
    wait: int = 0


def _explain(status: int) -> str:
    """An HTTP status that is no success, with what to do about it where that is known."""
    if 300 <= status < 400:  # noqa: PLR2004 - redirects
        return f"HTTP {status}, it redirects; configure the address that it leads to"
    if status in _UNKNOWN_THERE:
        return f"HTTP {status}, which is what a wrong or withdrawn address, key or secret is answered with"
    return f"HTTP {status}"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its body: it is an error instead."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


class _Post:
    """POSTs alerts as JSON; the kinds of targets differ in the body.

    Answers of 2xx are a success. Connection errors, 408, 425, 429 and 5xx are tried again with growing pauses, or when
    ``Retry-After`` says, if that is within a minute.

    Args:
        url: http(s) address.
        timeout: Seconds to wait for an answer.
        attempts: How often it is tried at most.
        sleep: Waits for so many seconds.

    Raises:
        ConfigurationError: not an http(s) URL.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: int = 5,
        attempts: int = 4,
        sleep: Callable[[int], object] = time.sleep,
    ) -> None:
        if not _is_http(url):  # which is not shown: it may be a secret, in the wrong place
            raise ConfigurationError(
                f"{type(self).__name__.lower()} must be an http:// or https:// URL without a user's name or password, "
                "with a port that is a number, if any, and a path in ASCII."
            )
        self.url = url
        self._timeout = timeout
        self._attempts = attempts
        self._sleep = sleep
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __repr__(self) -> str:  # a URL's path is often its secret
        parts = urllib.parse.urlsplit(self.url)
        return f"<{type(self).__name__} {parts.scheme}://{parts.netloc}>"

    def __call__(self, alert: Alert | Notice) -> None:
        """Deliver `alert`.

        Raises:
            TargetError: it was not taken, after all attempts.
        """
        body = json.dumps(self._body(alert), ensure_ascii=False).encode()
        for attempt in range(1, self._attempts + 1):
            refusal = self._send(body, alert.alert_id)
            if refusal is None:
                return
            if refusal.final or attempt == self._attempts or refusal.wait > _LONGEST_WAIT:
                told = f"{self!r} did not take alert {alert.alert_id}: {refusal.problem}."
                raise TargetError(told, final=refusal.final)
            self._sleep(max(2 ** (attempt - 1), refusal.wait))

    def _body(self, alert: Alert | Notice) -> Mapping[str, Any]:
        return alert.to_dict()

    def _headers(self, body: bytes, alert_id: str) -> Mapping[str, str]:  # noqa: ARG002 - for those who sign
        return {}

    @property
    def address(self) -> str:
        """What tells it from other targets of its kind; a secret."""
        return self.url

    def _send(self, body: bytes, alert_id: str) -> _Refusal | None:
        """Send once: what went wrong; None = nothing."""
        headers = {"Content-Type": "application/json", "User-Agent": "tokenmeter", **self._headers(body, alert_id)}
        request = urllib.request.Request(self.url, body, headers, method="POST")  # noqa: S310 - scheme checked above
        try:
            wait_for(lambda _: self._opener.open(request, timeout=self._timeout).close(), STEPS * self._timeout)
        except urllib.error.HTTPError as error:
            error.close()
            final = error.code not in _RETRYABLE and error.code < _SERVER_ERRORS
            return _Refusal(_explain(error.code), final, _seconds(error.headers.get("Retry-After")))
        except (OSError, http.client.HTTPException) as error:
            return _Refusal(f"{type(error).__name__}: {error}", final=False)
        return None


def _seconds(retry_after: str | None) -> int:
    """What a ``Retry-After`` asks for, a number of seconds or a date; 0 where it says nothing that can be read."""
    said = (retry_after or "").strip()
    if said.isascii() and said.isdecimal():
        return int(said[:9])
    try:
        at = email.utils.parsedate_to_datetime(said)
    except (ValueError, IndexError, TypeError):
        return 0
    return max(0, int(at.timestamp() - time.time()))


class Webhook(_Post):
    """POSTs each alert as JSON, signed by the Standard Webhooks convention (https://www.standardwebhooks.com).

    Every library of that convention verifies it; `verify_signature` does, too. The identity in ``webhook-id`` is the
    alert's.

    Args:
        url: http(s) address.
        secret: What receiver and sender share: base64, with or without ``whsec_`` before it. None = not signed.
        timeout: Seconds to wait for an answer.
        attempts: How often it is tried at most.
        sleep: Waits for so many seconds.

    Examples:
        >>> Webhook("https://hooks.example.com/spend", secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        <Webhook https://hooks.example.com>

    Raises:
        ConfigurationError: not an http(s) URL, or a secret that is not base64.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str | None = None,
        timeout: int = 5,
        attempts: int = 4,
        sleep: Callable[[int], object] = time.sleep,
    ) -> None:
        super().__init__(url, timeout=timeout, attempts=attempts, sleep=sleep)
        self._key = None if secret is None else _key_of(secret)

    def _headers(self, body: bytes, alert_id: str) -> Mapping[str, str]:
        at = int(time.time())
        signed = {} if self._key is None else {"webhook-signature": _sign(body, self._key, alert_id, at)}
        return {"webhook-id": alert_id, "webhook-timestamp": str(at), **signed}


def _key_of(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ConfigurationError(
            "The webhook's secret must be base64, with or without 'whsec_' before it, as Standard Webhooks has it. "
            f"Make one: {_HOW_TO_MAKE_ONE}"
        )
    return key


def _sign(body: bytes, key: bytes, message_id: str, at: int) -> str:
    signed = f"{message_id}.{at}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def sign(body: bytes, secret: str, *, message_id: str, at: int) -> str:
    """The ``webhook-signature`` of `body` at unix time `at`: ``v1,<base64>``.

    Raises:
        ConfigurationError: the secret is not base64.
    """
    return _sign(body, _key_of(secret), message_id, at)


def verify_signature(
    body: bytes, headers: Mapping[str, str], secret: str, *, tolerance: int = 300, now: int | None = None
) -> bool:
    """Whether the headers of a request sign `body` under `secret`: for receivers of alerts. Never raises on bad input.

    Args:
        body: The request's body as it came.
        headers: The request's headers; their names in any case.
        secret: The shared secret.
        tolerance: Seconds a signature stays valid, against replays.
        now: Unix time; default: now.

    Raises:
        ConfigurationError: the secret is not base64.
    """
    key = _key_of(secret)
    named = {str(name).lower(): str(value) for name, value in headers.items()}
    message_id, stamp, given = (named.get(f"webhook-{part}", "") for part in ("id", "timestamp", "signature"))
    if not (message_id and stamp.isascii() and stamp.isdecimal() and len(stamp) <= len("99999999999")):
        return False
    at = int(stamp)
    fresh = abs((int(time.time()) if now is None else now) - at) <= tolerance
    due = _sign(body, key, message_id, at).encode()
    # No early end: how many were compared says nothing of which was right.
    matches = [hmac.compare_digest(due, one.encode("utf-8", "replace")) for one in given.split(" ")]
    return any(matches) and fresh


class Slack(_Post):
    """Posts each alert into a Slack channel by an incoming webhook (https://docs.slack.dev/messaging).

    Args:
        url: The incoming webhook's address; it is a secret.
        timeout: Seconds to wait for an answer.
        attempts: How often it is tried at most.
        sleep: Waits for so many seconds.
    """

    def _body(self, alert: Alert | Notice) -> Mapping[str, Any]:
        text = str(alert).translate({ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"})
        sign = ":rotating_light:" if alert.severity == "critical" else ":warning:"
        return {"text": f"{sign} {text}"}


class Teams(_Post):
    """Posts each alert into a Microsoft Teams channel, as an adaptive card to a workflow that takes webhook requests.

    Args:
        url: The workflow's address; it is a secret.
        timeout: Seconds to wait for an answer.
        attempts: How often it is tried at most.
        sleep: Waits for so many seconds.
    """

    def _body(self, alert: Alert | Notice) -> Mapping[str, Any]:
        color = "Attention" if alert.severity == "critical" else "Warning"
        lines = [[_run(str(alert), weight="Bolder", color=color)]]
        lines += [[_run(f"{name}: ", weight="Bolder"), _run(value)] for name, value in alert.facts().items()]
        card = {
            "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
            "type": "AdaptiveCard",
            "version": "1.4",
            "body": [{"type": "RichTextBlock", "inlines": runs} for runs in lines],
        }
        attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
        return {"type": "message", "attachments": [attachment]}


def _run(text: str, **look: str) -> Mapping[str, str]:
    """Text of a card as it is written; what other elements show is Markdown, so that a name might be a link."""
    return {"type": "TextRun", "text": text, **look}


class PagerDuty(_Post):
    """Triggers an incident per alert by PagerDuty's Events API v2; a repetition joins the incident it made.

    Args:
        routing_key: Integration key of the service.
        url: The events' address.
        timeout: Seconds to wait for an answer.
        attempts: How often it is tried at most.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        routing_key: str,
        *,
        url: str = _PAGERDUTY,
        timeout: int = 5,
        attempts: int = 4,
        sleep: Callable[[int], object] = time.sleep,
    ) -> None:
        super().__init__(url, timeout=timeout, attempts=attempts, sleep=sleep)
        if not routing_key.strip():
            raise ConfigurationError("pagerduty must be the integration key of a service, not an empty text.")
        self._routing_key = routing_key

    @property
    def address(self) -> str:
        """The service's key, and where it is used."""
        return f"{self.url} {self._routing_key}"

    def _body(self, alert: Alert | Notice) -> Mapping[str, Any]:
        return {
            "routing_key": self._routing_key,
            "event_action": "trigger",
            "dedup_key": alert.alert_id,
            "payload": {
                "summary": str(alert)[:1024],
                "source": "tokenmeter",
                "severity": alert.severity,
                "timestamp": alert.at.isoformat(),
                "class": alert.kind,
                "custom_details": alert.to_dict(),
            },
        }
