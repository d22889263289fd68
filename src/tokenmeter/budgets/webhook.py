"""Alerts as signed HTTP POSTs."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

from tokenmeter.budgets.alerts import Alert
from tokenmeter.errors import ConfigurationError

__all__ = ["SIGNATURE_HEADER", "Webhook", "WebhookError", "sign", "verify_signature"]

SIGNATURE_HEADER = "Tokenmeter-Signature"
_RETRYABLE = frozenset({408, 425, 429})


class WebhookError(Exception):
    """The receiver did not take an alert; logged by the queue."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its body: it is an error instead."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


class Webhook:
    """POSTs each alert as JSON, signed with HMAC-SHA256 over ``<unix time>.<body>``.

    Answers of 2xx are a success. Connection errors, 408, 425, 429 and 5xx are tried again with growing pauses; a
    receiver tells repetitions by ``alert_id``. Runs in the alert queue's thread, never on a call's path.

    Example:
        >>> Webhook("https://hooks.example.com/spend", secret="s3cret")
        <Webhook https://hooks.example.com>

    Raises:
        ConfigurationError: not an http(s) URL, or an empty secret.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str | bytes | None = None,
        timeout: int = 5,
        attempts: int = 4,
        sleep: Callable[[int], object] = time.sleep,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError(f"webhook must be an http:// or https:// URL, not {url!r}.")
        if secret is not None and not secret:
            raise ConfigurationError("The webhook's secret is empty; leave it out for unsigned alerts.")
        self.url = url
        self._secret = secret.encode() if isinstance(secret, str) else secret
        self._timeout = timeout
        self._attempts = attempts
        self._sleep = sleep
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __repr__(self) -> str:  # a URL's path is often its secret
        parts = urllib.parse.urlsplit(self.url)
        return f"<Webhook {parts.scheme}://{parts.hostname}>"

    def __call__(self, alert: Alert) -> None:
        """Deliver `alert`.

        Raises:
            WebhookError: it was not taken, after all attempts.
        """
        body = json.dumps(alert.to_dict(), ensure_ascii=False).encode()
        for attempt in range(1, self._attempts + 1):
            problem, again = self._post(body, alert.alert_id)
            if problem is None:
                return
            if not again or attempt == self._attempts:
                raise WebhookError(f"{self!r} did not take alert {alert.alert_id}: {problem}.")
            self._sleep(2 ** (attempt - 1))

    def _post(self, body: bytes, alert_id: str) -> tuple[str | None, bool]:
        """Send once: what went wrong (None = nothing) and whether another attempt makes sense."""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "tokenmeter",
            "Tokenmeter-Alert-Id": alert_id,
        }
        if self._secret is not None:
            headers[SIGNATURE_HEADER] = sign(body, self._secret, at=int(time.time()))
        request = urllib.request.Request(self.url, body, headers, method="POST")  # noqa: S310 - scheme checked above
        try:
            with self._opener.open(request, timeout=self._timeout):
                return None, False
        except urllib.error.HTTPError as error:
            error.close()
            return f"HTTP {error.code}", error.code in _RETRYABLE or error.code >= 500  # noqa: PLR2004
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}", True


def sign(body: bytes, secret: str | bytes, *, at: int) -> str:
    """The signature header's value for `body` at unix time `at`: ``t=<at>,v1=<hex>``."""
    key = secret.encode() if isinstance(secret, str) else secret
    digest = hmac.new(key, b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def verify_signature(
    body: bytes, header: str, secret: str | bytes, *, tolerance: int = 300, now: int | None = None
) -> bool:
    """Whether `header` signs `body` under `secret`: for receivers of alerts.

    Args:
        body: The request's body as it came.
        header: Value of ``Tokenmeter-Signature``.
        secret: The shared secret.
        tolerance: Seconds a signature stays valid, against replays.
        now: Unix time; default: now.
    """
    stamp, _, _ = header.partition(",")
    if not stamp.startswith("t=") or not stamp[2:].isdecimal():
        return False
    at = int(stamp[2:])
    fresh = abs((int(time.time()) if now is None else now) - at) <= tolerance
    return hmac.compare_digest(sign(body, secret, at=at).encode(), header.encode()) and fresh
