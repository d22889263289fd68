"""Alerts reach their targets signed and once, and never hold up a call."""

import base64
import email
import email.policy
import json
import logging
import smtplib
import socketserver
import threading
import time
from collections import deque
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
import standardwebhooks

from forking import run_in_child
from tokenmeter.budgets import Alert, AlertQueue
from tokenmeter.budgets.alerts import Notice
from tokenmeter.budgets.delivery import QUEUE_SIZE
from tokenmeter.budgets.targets import Email, PagerDuty, Slack, TargetError, Teams, Webhook, sign, verify_signature
from tokenmeter.config import load_settings
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


SECRET, OTHER = (f"whsec_{base64.b64encode(bytes([byte]) * 24).decode()}" for byte in (1, 2))
NOTICE = Notice(
    kind="burn_rate",
    subject="members\r\nBcc: eve@example.com",
    text="Budget 'members' (member=ada) is full on the 24th.",
    figures={"spent": "40 usd"},
    at=datetime(2026, 11, 23, tzinfo=UTC),
)


class MailServer(socketserver.StreamRequestHandler):
    """Takes mails as a server on this machine does, and keeps them in `mails`."""

    server: Any
    answers: ClassVar = {"EHLO": "250-here\r\n250 AUTH PLAIN", "AUTH": "535 5.7.8 Error: authentication failed"}

    def handle(self):
        def say(line):
            self.wfile.write(f"{line}\r\n".encode())

        say("220 ready")
        sender, recipients = "", []
        while line := self.rfile.readline().decode().rstrip():
            verb = line.split(" ")[0].upper()
            if verb == "MAIL":
                sender = line.split("<")[1].split(">")[0]
            elif verb == "RCPT":
                recipient = line.split("<")[1].split(">")[0]
                if answer := self.server.refused.get(recipient):
                    say(answer)
                    continue
                recipients.append(recipient)
            elif verb == "DATA":
                say("354 go on")
                lines = []
                while (text := self.rfile.readline().decode()) != ".\r\n":
                    lines.append(text)
                self.server.mails.append((sender, recipients, "".join(lines)))
            elif verb == "QUIT":
                say(self.server.goodbye)
                return
            say(self.answers.get(verb, "250 ok"))


@pytest.fixture
def mail_server():
    server: Any = socketserver.ThreadingTCPServer(("127.0.0.1", 0), MailServer)
    server.mails, server.refused, server.goodbye = [], {}, "221 bye"
    server.address = {"host": "127.0.0.1", "port": server.server_address[1], "security": "none"}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def receiver():
    """A real HTTP server: answers the statuses put into `statuses` (then 200), keeps what it got in `requests`."""

    class Handler(BaseHTTPRequestHandler):
        server: Any

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
            status = self.server.statuses.popleft() if self.server.statuses else 200
            status, later = status if isinstance(status, tuple) else (status, None)
            self.send_response(status)
            if later is not None:
                self.send_header("Retry-After", later)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Say nothing."""

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.statuses = [], deque()
    server.url = f"http://127.0.0.1:{server.server_port}/hooks/s3cret-path"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class TestWebhook:
    def test_posts_json_that_a_library_of_the_convention_verifies(self, receiver):
        Webhook(receiver.url, secret=SECRET)(ALERT)
        ((headers, body),) = receiver.requests
        told = standardwebhooks.Webhook(SECRET).verify(body, {name.lower(): value for name, value in headers.items()})
        assert (told["spent"], told["kind"], told["alert_id"]) == ("40.000000000001", "threshold", ALERT.alert_id)
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(OTHER).verify(body, {name.lower(): value for name, value in headers.items()})

    def test_the_receiver_can_verify_it_with_our_own_function(self, receiver):
        Webhook(receiver.url, secret=SECRET)(ALERT)
        ((headers, body),) = receiver.requests
        assert verify_signature(body, headers, SECRET)
        assert not verify_signature(body, headers, OTHER)
        assert not verify_signature(body + b" ", headers, SECRET)
        assert not verify_signature(body, headers, SECRET, now=int(time.time()) + 301)
        assert not verify_signature(body, headers | {"webhook-id": "another"}, SECRET)

    def test_one_of_several_signatures_is_enough_while_a_secret_is_changed(self):
        signed = sign(b"{}", SECRET, message_id="m", at=9)
        headers = {"webhook-id": "m", "webhook-timestamp": "9", "webhook-signature": f"v1,AAAA {signed} v2,x"}
        assert verify_signature(b"{}", headers, SECRET, now=10)

    def test_the_signature_is_what_the_librarys_own_is(self):
        at = datetime(2026, 11, 23, tzinfo=UTC)
        theirs = standardwebhooks.Webhook(SECRET).sign("m", at, "{}")
        assert sign(b"{}", SECRET, message_id="m", at=int(at.timestamp())) == theirs

    @pytest.mark.parametrize("stamp", ["", "x", "²", "-1", "9" * 5000, "1.5", None, "9" * 11])
    @pytest.mark.parametrize("signature", ["", "v1,", "v1", "é", " ", None])
    def test_a_malformed_signature_is_no_signature(self, stamp, signature):
        headers = {"webhook-id": "m", "webhook-timestamp": stamp, "webhook-signature": signature}
        assert not verify_signature(b"{}", headers, SECRET, now=1)
        assert not verify_signature(b"{}", {}, SECRET)

    def test_a_failing_receiver_is_asked_again_with_growing_pauses(self, receiver):
        receiver.statuses.extend([500, 429, 503])
        pauses = []
        Webhook(receiver.url, sleep=pauses.append)(ALERT)
        assert (len(receiver.requests), pauses) == (4, [1, 2, 4])
        assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == 1

    @pytest.mark.parametrize(
        ("asked_for", "pause"),
        [("7", 7), ("0", 1), ("soon", 1), ("-3", 1), ("", 1), ("Thu, 01 Jan 1970 00:00:00 GMT", 1)],
    )
    def test_a_receiver_says_when_it_will_listen(self, receiver, asked_for, pause):
        receiver.statuses.append((429, asked_for))
        pauses = []
        Webhook(receiver.url, sleep=pauses.append)(ALERT)
        assert (pauses, len(receiver.requests)) == ([pause], 2)

    def test_who_wants_to_be_left_for_long_is_asked_another_time(self, receiver):
        receiver.statuses.append((503, "3600"))
        with pytest.raises(TargetError, match="HTTP 503") as problem:
            Webhook(receiver.url, sleep=lambda _: pytest.fail("waited"))(ALERT)
        assert not problem.value.final

    def test_attempts_are_bounded(self, receiver):
        receiver.statuses.extend([500] * 9)
        with pytest.raises(TargetError, match="HTTP 500"):
            Webhook(receiver.url, attempts=2, sleep=lambda _: None)(ALERT)
        assert len(receiver.requests) == 2

    @pytest.mark.parametrize("status", [400, 401, 404, 302])
    def test_a_refusal_or_a_redirect_is_final(self, receiver, status):
        receiver.statuses.append(status)
        with pytest.raises(TargetError, match=f"HTTP {status}"):
            Webhook(receiver.url, sleep=lambda _: None)(ALERT)
        assert len(receiver.requests) == 1

    @pytest.mark.parametrize(
        ("status", "told"),
        [
            (302, "HTTP 302, it redirects; configure the address that it leads to. It is not tried again."),
            (
                404,
                "HTTP 404, which is what a wrong or withdrawn address, key or secret is answered with. It is not tried",
            ),
            (503, "HTTP 503. It is tried again while calls are made."),
        ],
    )
    def test_the_log_says_what_became_of_an_alert_and_what_to_do_without_a_trace(self, receiver, caplog, status, told):
        receiver.statuses.append(status)
        queue = AlertQueue([Webhook(receiver.url, attempts=1)])
        queue.submit(ALERT)
        queue.flush(10)
        _, record = caplog.records  # the alert itself comes first
        assert told in record.getMessage()
        assert record.exc_info is None
        assert f"127.0.0.1:{urlsplit(receiver.url).port}" in record.getMessage()

    def test_nobody_listening_is_a_clear_error_without_the_urls_path(self):
        hook = Webhook("http://127.0.0.1:9/hooks/s3cret-path", attempts=1)
        with pytest.raises(TargetError, match="did not take") as caught:
            hook(ALERT)
        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize(
        "url",
        [
            *("ftp://x/s3cret", "file:///s3cret", "s3cret.example.com", "http://", "http://x/s3cret now"),
            *("http://[s3cret", "https://ops:s3cret@x/", "https://s3cret@x/", "http://x:s3cret/", "http://x:0/"),
            *("http://x:99999/s3cret", "https://x/s3crét"),
        ],
    )
    def test_only_http_urls_are_accepted_and_what_was_given_is_not_shown(self, url):
        with pytest.raises(ConfigurationError, match="http") as caught:
            Webhook(url)
        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize("secret", ["", "whsec_", "from my head", "whsec_!"])
    def test_a_secret_that_no_receiver_could_use_is_refused_with_how_to_make_one(self, secret):
        with pytest.raises(ConfigurationError, match=r"base64.*Make one: python"):
            Webhook("https://example.com", secret=secret)


class TestTargets:
    def test_slack_gets_a_text_that_cannot_mention_everybody(self, receiver):
        Slack(receiver.url)(replace(ALERT, budget="<!channel> & co"))
        ((_, body),) = receiver.requests
        assert json.loads(body)["text"].startswith(
            ":warning: Budget '&lt;!channel&gt; &amp; co' (member=ada) passed 80%"
        )

    def test_teams_gets_an_adaptive_card_in_which_no_name_is_a_link(self, receiver):
        name = "[ada](https://evil.example) **{{DATE(2026-11-29T00:00:00Z)}}**"
        Teams(receiver.url)(replace(ALERT, threshold=100, scope={"member": name}))
        ((_, body),) = receiver.requests
        (attachment,) = json.loads(body)["attachments"]
        assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
        assert {block["type"] for block in attachment["content"]["body"]} == {"RichTextBlock"}, "others read Markdown"
        (title,), *facts = (block["inlines"] for block in attachment["content"]["body"])
        assert title["color"] == "Attention"
        assert name in title["text"]
        assert ["limit: ", "$50"] in [[run["text"] for run in runs] for runs in facts]

    def test_pagerduty_gets_an_event_that_joins_its_own_incident(self, receiver):
        PagerDuty("R0UT1NG", url=receiver.url)(replace(ALERT, threshold=100))
        ((_, body),) = receiver.requests
        event = json.loads(body)
        assert (event["routing_key"], event["event_action"]) == ("R0UT1NG", "trigger")
        assert event["dedup_key"] == replace(ALERT, threshold=100).alert_id
        assert event["payload"]["severity"] == "critical"
        assert event["payload"]["custom_details"]["budget"] == "members"

    def test_a_notice_goes_wherever_an_alert_goes(self, receiver):
        for target in (
            Webhook(receiver.url),
            Slack(receiver.url),
            Teams(receiver.url),
            PagerDuty("k", url=receiver.url),
        ):
            target(NOTICE)
        assert all(b"on the 24th" in body for _, body in receiver.requests)

    def test_mail_is_sent_with_its_subject_and_figures(self, mail_server):
        Email(["ada@example.com", "bob@example.com"], sender="meter@example.com", **mail_server.address)(ALERT)
        ((sender, recipients, message),) = mail_server.mails
        assert (sender, recipients) == ("meter@example.com", ["ada@example.com", "bob@example.com"])
        read = email.message_from_string(message, policy=email.policy.default)
        assert read["Subject"] == "[tokenmeter] Budget 'members' passed 80%"
        assert "limit: $50" in read.get_content()
        assert ALERT.alert_id in read["Message-ID"]
        assert read["Date"].datetime == ALERT.at

    def test_a_name_cannot_add_a_header_to_a_mail(self, mail_server):
        Email("a@example.com", sender="m@example.com", **mail_server.address)(NOTICE)
        ((_, _, message),) = mail_server.mails
        assert email.message_from_string(message, policy=email.policy.default)["Bcc"] is None

    @pytest.mark.parametrize(("security", "port"), [("starttls", 587), ("tls", 465), ("none", 25)])
    def test_a_mail_server_is_asked_at_the_port_that_its_security_has(self, security, port, monkeypatch):
        asked = []

        def connect(*where, **_):
            asked.append(where)
            raise ConnectionRefusedError

        monkeypatch.setattr(smtplib, "SMTP_SSL" if security == "tls" else "SMTP", connect)
        with pytest.raises(TargetError):
            Email("a@example.com", sender="Ada <m@example.com>", host="mail.example.com", security=security)(ALERT)
        assert asked == [("mail.example.com", port)]

    def test_of_several_recipients_the_log_says_who_was_refused(self, mail_server, caplog):
        mail_server.refused = {"bob@example.com": "550 5.1.1 no such user"}
        to = ["Ada <ada@example.com>", "bob@example.com"]
        Email(to, sender="meter@example.com", **mail_server.address)(ALERT)
        ((_, recipients, _),) = mail_server.mails
        assert recipients == ["ada@example.com"]
        (told,) = caplog.messages
        assert told.startswith("An alert was not sent to bob@example.com, whom 127.0.0.1:")
        assert told.endswith(" refused: 550 5.1.1 no such user")

    def test_who_is_put_off_is_sent_it_later_and_the_others_not_twice(self, mail_server):
        send = Email(["ada@example.com", "bob@example.com"], sender="m@example.com", **mail_server.address)
        mail_server.refused = {"bob@example.com": "451 4.7.1 Greylisted, try again later"}
        for _ in range(2):
            with pytest.raises(TargetError, match=r"for bob@example\.com: 451 4\.7\.1 Grey.* later\.$") as stop:
                send(ALERT)
            assert not stop.value.final
        mail_server.refused = {}
        send(ALERT)
        send(NOTICE)
        told = [recipients for _, recipients, _ in mail_server.mails]
        assert told == [["ada@example.com"], ["bob@example.com"], ["ada@example.com", "bob@example.com"]]

    def test_who_is_put_off_and_then_refused_is_told_in_the_log(self, mail_server, caplog):
        send = Email(["ada@example.com", "bob@example.com"], sender="m@example.com", **mail_server.address)
        mail_server.refused = {"bob@example.com": "451 later"}
        with pytest.raises(TargetError):
            send(ALERT)
        mail_server.refused = {"bob@example.com": "550 never"}
        send(ALERT)
        assert "bob@example.com" in caplog.text
        assert len(mail_server.mails) == 1

    def test_a_mail_that_nobody_was_sent_is_none(self, mail_server):
        mail_server.refused = {"ada@example.com": "550 5.1.1 no such user"}
        with pytest.raises(TargetError, match=r"for ada@example\.com: 550 5\.1\.1 no such user"):
            Email("Ada <ada@example.com>", sender="m@example.com", **mail_server.address)(ALERT)

    def test_a_mail_that_was_taken_is_sent_whatever_the_server_says_at_the_end(self, mail_server):
        mail_server.goodbye = "421 4.4.2 closing"
        Email("a@example.com", sender="m@example.com", **mail_server.address)(ALERT)
        assert len(mail_server.mails) == 1

    def test_a_wrong_password_is_told_in_words(self, mail_server):
        wrong = {**mail_server.address, "user": "meter", "password": "s3cret"}
        with pytest.raises(TargetError, match=r":\d+: it answered 535 5\.7\.8 .*, which is what a wrong user") as stop:
            Email("a@example.com", sender="m@example.com", **wrong)(ALERT)
        assert "s3cret" not in str(stop.value)
        assert not mail_server.mails

    def test_a_mail_server_that_is_not_there_is_a_clear_error(self):
        with pytest.raises(TargetError, match=r"could not be sent by 127\.0\.0\.1"):
            Email("a@example.com", sender="m@example.com", host="127.0.0.1", port=9, security="none")(ALERT)

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            ({"to": []}, "at least one"),
            ({"to": "nobody"}, "not an address"),
            ({"to": "a@b\nBcc: c@d"}, "not an address"),
            ({"to": "a@b.c, d@e.f"}, "not an address"),
            ({"to": "a@"}, "not an address"),
            ({"sender": "Meter, The <m@example.com>"}, "not an address"),
            ({"host": "mail..example.com"}, "email.host"),
            ({"host": "mail\nexample.com"}, "email.host"),
            ({"host": ""}, "email.host"),
            ({"user": "u", "password": "pässword"}, r"ASCII: SMTP's log-in has no other letters\.$"),
            ({"security": "some"}, "starttls, tls or none"),
        ],
    )
    def test_a_wrong_mail_target_is_refused(self, arguments, problem):
        with pytest.raises(ConfigurationError, match=problem):
            Email(**({"to": "a@example.com", "sender": "m@example.com", "host": "h"} | arguments))


class TestSettings:
    def test_every_target_can_stand_in_the_file(self, monkeypatch):
        monkeypatch.setenv("PASSWORD", "p")
        monkeypatch.setenv("SLACK", "https://hooks.slack.com/services/x")
        rows = [
            {"webhook": "https://example.com/x", "secret": SECRET},
            {"slack": "env:SLACK"},
            {"teams": "https://example.com/x"},
            {"pagerduty": "key"},
            {"email": {"to": ["a@b.c"], "from": "m@b.c", "host": "mail.b.c", "user": "u", "password": "env:PASSWORD"}},
        ]
        made = [row.make() for row in load_settings(config={"alerts": rows}).alerts]
        assert [type(target) for target in made] == [Webhook, Slack, Teams, PagerDuty, Email]

    @pytest.mark.parametrize(
        ("row", "problem"),
        [
            ({}, "one of webhook, slack"),
            ({"slack": "https://a.b", "teams": "https://a.b"}, "not slack and teams"),
            ({"slack": "env:NOT_SET_ANYWHERE"}, "alerts.slack: the environment variable NOT_SET_ANYWHERE is not set"),
            ({"slack": "hooks"}, "slack"),
            ({"email": {"to": ["a@b.c"], "from": "m@b.c", "host": "h", "password": "secret"}}, "password"),
            ({"pagerduty": "env:PD-KEY"}, r"alerts\[0\].pagerduty.*env:NAME"),
            ({"slack": "env:SLACK-URL"}, r"alerts\[0\].slack.*env:NAME"),
            ({"webhook": "https://a.b", "secret": "env: SECRET"}, r"alerts\[0\].secret.*env:NAME"),
            ({"email": {"to": ["env:"], "from": "m@b.c", "host": "h"}}, r"alerts\[0\].email.to.*env:NAME"),
            (
                {"email": {"to": ["a@b.c"], "from": "m@b.c", "host": "h", "user": "env:NOT_SET_ANYWHERE"}},
                "alerts.email.user: the environment variable NOT_SET_ANYWHERE is not set",
            ),
        ],
    )
    def test_a_wrong_row_is_refused(self, row, problem):
        with pytest.raises(ConfigurationError, match=problem):
            [one.make() for one in load_settings(config={"alerts": [row]}).alerts]

    def test_any_text_of_a_row_may_be_in_a_variable(self, monkeypatch):
        values = {"TO": "a@b.c", "FROM": "m@b.c", "HOST": "mail.b.c", "USER_": "u", "PASSWORD": "p"}
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        told = {"from": "env:FROM", "host": "env:HOST", "user": "env:USER_", "password": "env:PASSWORD"}
        rows = [{"email": {"to": ["env:TO", "d@b.c"], **told}}]
        (target,) = [row.make() for row in load_settings(config={"alerts": rows}).alerts]
        written = [row.make() for row in load_settings(config={"alerts": [{"email": {
            "to": ["a@b.c", "d@b.c"], "from": "m@b.c", "host": "mail.b.c", "user": "u", "password": "env:PASSWORD",
        }}]}).alerts]  # fmt: skip
        assert vars(target) == vars(written[0])


def test_two_limits_of_one_budget_are_two_alerts():
    assert ALERT.alert_id != replace(ALERT, unit="tokens").alert_id
    assert ALERT.alert_id == replace(ALERT, spent=Decimal(41), at=datetime(2026, 11, 24, tzinfo=UTC)).alert_id


class TestQueue:
    def test_a_slow_target_never_delays_the_caller(self):
        go = threading.Event()
        alerts = AlertQueue([lambda _: go.wait(10)])
        for _ in range(50):
            alerts.submit(ALERT)
        assert not alerts.flush(0.05)
        go.set()
        assert alerts.flush(10)

    def test_every_alert_is_logged_even_without_targets(self, caplog):
        AlertQueue().submit(ALERT)
        assert "Budget 'members' (member=ada) passed 80%" in caplog.text
        assert "$40.000000000001 of $50" in caplog.text

    def test_a_target_that_raises_does_not_stop_the_others(self, caplog):
        seen = []
        alerts = AlertQueue([lambda _: 1 // 0, seen.append])
        alerts.submit(ALERT)
        assert alerts.flush(5)
        assert seen == [ALERT]
        assert "could not deliver" in caplog.text

    def test_a_target_that_is_away_delays_no_other(self):
        go, told = threading.Event(), threading.Event()
        alerts = AlertQueue([lambda _: go.wait(10), lambda _: told.set()])
        alerts.submit(ALERT)
        assert told.wait(10)
        assert not alerts.flush(0)
        go.set()
        assert alerts.flush(10)

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

        def work():
            alerts.submit(ALERT)
            assert alerts.flush(5)
            assert len(seen) == 2

        assert run_in_child(work) == 0
