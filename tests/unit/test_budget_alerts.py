"""Alerts reach their targets signed and once, and never hold up a call."""

import json
import logging
import os
import threading
import time
from collections import deque
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tokenmeter.budgets import Alert, AlertQueue
from tokenmeter.budgets.alerts import QUEUE_SIZE
from tokenmeter.budgets.webhook import Webhook, WebhookError, sign, verify_signature
from tokenmeter.errors import ConfigurationError

ALERT = Alert(
    budget="members",
    scope={"member": "ada"},
    unit="usd",
    threshold=80,
    limit=Decimal(50),
    spent=Decimal("40.000000000001"),
    window_start=datetime(2026, 11, 1, tzinfo=UTC),
    window_end=datetime(2026, 12, 1, tzinfo=UTC),
    at=datetime(2026, 11, 23, tzinfo=UTC),
    hard=True,
)


@pytest.fixture
def receiver():
    """A real HTTP server: answers the statuses put into `statuses` (then 200), keeps what it got in `requests`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.requests.append((dict(self.headers), body))
            status = self.server.statuses.popleft() if self.server.statuses else 200
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.statuses = [], deque()
    server.url = f"http://127.0.0.1:{server.server_port}/hooks/s3cret-path"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class TestWebhook:
    def test_posts_json_that_the_receiver_can_verify(self, receiver):
        Webhook(receiver.url, secret="shared")(ALERT)
        ((headers, body),) = receiver.requests
        assert json.loads(body)["spent"] == "40.000000000001"
        assert json.loads(body)["alert_id"] == headers["Tokenmeter-Alert-Id"] == ALERT.alert_id
        signature = headers["Tokenmeter-Signature"]
        assert verify_signature(body, signature, "shared")
        assert not verify_signature(body, signature, "another")
        assert not verify_signature(body + b" ", signature, "shared")
        assert not verify_signature(body, signature, "shared", now=int(time.time()) + 301)

    @pytest.mark.parametrize("header", ["", "t=,v1=", "t=x,v1=0", "v1=0", "t=1", "t=²,v1=0"])
    def test_a_malformed_signature_is_no_signature(self, header):
        assert not verify_signature(b"{}", header, "shared", now=1)

    def test_the_signature_is_hmac_sha256_over_time_and_body(self):
        # printf '1700000000.{}' | openssl dgst -sha256 -hmac k
        digest = "c6ef4734033cee2367414a0939385eca0397754aa7a59716da7463a9298b5146"
        assert sign(b"{}", "k", at=1700000000) == f"t=1700000000,v1={digest}"

    def test_a_failing_receiver_is_asked_again_with_growing_pauses(self, receiver):
        receiver.statuses.extend([500, 429, 503])
        pauses = []
        Webhook(receiver.url, sleep=pauses.append)(ALERT)
        assert (len(receiver.requests), pauses) == (4, [1, 2, 4])
        assert len({headers["Tokenmeter-Alert-Id"] for headers, _ in receiver.requests}) == 1

    def test_attempts_are_bounded(self, receiver):
        receiver.statuses.extend([500] * 9)
        with pytest.raises(WebhookError, match="HTTP 500"):
            Webhook(receiver.url, attempts=2, sleep=lambda _: None)(ALERT)
        assert len(receiver.requests) == 2

    @pytest.mark.parametrize("status", [400, 401, 404, 302])
    def test_a_refusal_or_a_redirect_is_final(self, receiver, status):
        receiver.statuses.append(status)
        with pytest.raises(WebhookError, match=f"HTTP {status}"):
            Webhook(receiver.url, sleep=lambda _: None)(ALERT)
        assert len(receiver.requests) == 1

    def test_nobody_listening_is_a_clear_error_without_the_urls_path(self):
        hook = Webhook("http://127.0.0.1:9/hooks/s3cret-path", attempts=1)
        with pytest.raises(WebhookError, match="did not take") as caught:
            hook(ALERT)
        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize("url", ["ftp://x/y", "file:///etc/passwd", "hooks.example.com", "http://"])
    def test_only_http_urls_are_accepted(self, url):
        with pytest.raises(ConfigurationError, match="http"):
            Webhook(url)

    def test_an_empty_secret_is_refused(self):
        with pytest.raises(ConfigurationError, match="empty"):
            Webhook("https://example.com", secret="")


class TestQueue:
    def test_a_slow_target_never_delays_the_caller(self):
        go = threading.Event()
        alerts = AlertQueue([lambda _: go.wait(10)])
        before = time.perf_counter()
        for _ in range(50):
            alerts.submit(ALERT)
        assert time.perf_counter() - before < 1
        assert not alerts.flush(0.05)
        go.set()
        assert alerts.flush(10)

    def test_every_alert_is_logged_even_without_targets(self, caplog):
        AlertQueue().submit(ALERT)
        assert "Budget 'members' (member=ada) passed 80 %" in caplog.text
        assert "40.000000000001 of 50 usd" in caplog.text

    def test_a_target_that_raises_does_not_stop_the_others(self, caplog):
        seen = []
        alerts = AlertQueue([lambda _: 1 // 0, seen.append])
        alerts.submit(ALERT)
        assert alerts.flush(5)
        assert seen == [ALERT]
        assert "could not deliver" in caplog.text

    def test_what_waits_is_bounded_and_dropping_is_said(self, caplog):
        go = threading.Event()
        alerts = AlertQueue([lambda _: go.wait(10)])
        with caplog.at_level(logging.ERROR, logger="tokenmeter"):
            for _ in range(QUEUE_SIZE + 5):
                alerts.submit(ALERT)
        assert "dropped an alert" in caplog.text
        go.set()
        assert alerts.flush(10)

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # said from Python 3.12 on
    def test_a_forked_child_delivers_its_own(self):
        seen = []
        alerts = AlertQueue([seen.append])
        alerts.submit(ALERT)
        assert alerts.flush(5)
        child = os.fork()
        if child == 0:
            alerts.submit(ALERT)
            os._exit(0 if alerts.flush(5) and len(seen) == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
