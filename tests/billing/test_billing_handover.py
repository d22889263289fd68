"""Usage handed over to billing systems: each piece once, whatever is interrupted, against servers of our own."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest

from tokenmeter.billing import HandOverError, Lago, OpenMeter, StripeMeters, hand_over
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import utcnow
from tokenmeter.periods import Period, floor


@pytest.fixture
def server():
    """A server that keeps what it is sent; `server.answers` are statuses and bodies to give first."""
    server: Any

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            kind = self.headers["content-type"]
            event = (
                json.loads(body) if "json" in kind else {key: one for key, (one,) in parse_qs(body.decode()).items()}
            )
            status, answer = server.answers.pop(0) if server.answers else (200, "{}")
            if status < 300:
                server.taken.append(event)
            server.keys.add(self.headers["authorization"])
            server.paths.add(self.path)
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.taken, server.answers, server.keys, server.paths = [], [], set(), set()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def period():
    """Yesterday, which every system takes."""
    return floor(utcnow() - timedelta(days=1), "day")


@pytest.fixture
def used(store, make_call, period):
    """`used("ada", 100)`: so many tokens of input, in the period."""

    def use(member, quantity, **more):
        at = (period.start + timedelta(hours=3)).replace(tzinfo=None).isoformat()
        store.settle(make_call("1", at, quantity=quantity, member=member, **more))

    return use


def lago(server):
    return Lago(server.url, "key-1")


def values(server):
    return [(event["event"]["transaction_id"], event["event"]["properties"]["value"]) for event in server.taken]


def test_what_was_sent_is_not_sent_again_and_what_comes_later_is_the_difference(store, used, server, period):
    used("ada", 100)
    used("bob", 7, meter="output")
    first = hand_over(store, lago(server), period=period, by="kim")
    assert len(first.sent) == 2
    again = hand_over(store, lago(server), period=period)
    assert (again.sent, again.unchanged) == ([], 2)
    used("ada", 11)
    later = hand_over(store, lago(server), period=period)
    assert [(one.value, one.revision) for one in later.sent] == [(11, 2)]
    assert values(server) == [
        (f"tm-{period.label}-ada-input-r1", "100"),
        (f"tm-{period.label}-bob-output-r1", "7"),
        (f"tm-{period.label}-ada-input-r2", "11"),
    ]
    assert server.keys == {"Bearer key-1"}


def test_an_interrupted_run_goes_on_under_the_same_identifiers(store, used, server, period):
    used("ada", 100)
    used("bob", 50)
    server.answers = [(200, "{}"), (503, "away")]
    with pytest.raises(HandOverError, match=r"lago did not take tm-.*-bob-input-r1 \(HTTP 503\): away"):
        hand_over(store, lago(server), period=period)
    used("bob", 1)
    outcome = hand_over(store, lago(server), period=period)
    assert [(one.account, one.value) for one in outcome.sent] == [("member=bob", 50), ("member=bob", 1)]
    assert sum(int(value) for _, value in values(server)) == 151


def test_an_event_that_is_there_already_counts_as_sent(store, used, server, period):
    used("ada", 100)
    server.answers = [(422, '{"error_details": {"transaction_id": ["value_already_exist"]}}')]
    assert len(hand_over(store, lago(server), period=period).sent) == 1
    assert hand_over(store, lago(server), period=period).unchanged == 1


def test_accounts_without_a_customer_and_takings_back_are_named(store, used, server, period):
    used("ada", 100)
    used("eve", 5)
    outcome = hand_over(store, lago(server), period=period, customers={"ada": "sub_1"})
    assert outcome.unknown == {"member=eve": 5}
    used("ada", -40, kind="correction")
    outcome = hand_over(store, lago(server), period=period, customers={"ada": "sub_1"})
    assert (outcome.sent, outcome.owed) == ([], {"member=ada input": 40})
    assert "40 less than was sent" in str(outcome)


def test_openmeter_gets_cloud_events(store, used, server, period):
    used("ada", 100)
    hand_over(store, OpenMeter(server.url, "k", source="tokenmeter/a"), period=period)
    (event,) = server.taken
    assert (event["specversion"], event["source"], event["subject"], event["data"]) == (
        "1.0",
        "tokenmeter/a",
        "ada",
        {"tokens": "100", "type": "input"},
    )


def test_stripe_gets_meter_events_by_its_own_package(store, used, server, period):
    stripe = pytest.importorskip("stripe")
    used("ada", 120345)
    client = stripe.StripeClient("sk_test_1", base_addresses={"api": server.url})
    hand_over(store, StripeMeters(client), period=period, customers={"ada": "cus_A"})
    (event,) = server.taken
    assert event["event_name"] == "ai_input"
    assert (event["payload[stripe_customer_id]"], event["payload[value]"]) == ("cus_A", "120345")
    assert event["identifier"] == f"tm-{period.label}-ada-input-r1"
    assert server.paths == {"/v1/billing/meter_events"}
    assert hand_over(store, StripeMeters(client), period=period, customers={"ada": "cus_A"}).unchanged == 1


def test_stripe_takes_no_old_events(store, period):
    pytest.importorskip("stripe")
    old = Period(period.start - timedelta(days=60), period.start - timedelta(days=40))
    with pytest.raises(ConfigurationError, match="35 days"):
        hand_over(store, StripeMeters("sk_test_1"), period=old)


def test_a_key_does_not_leave_over_plain_http():
    with pytest.raises(ConfigurationError, match="https"):
        Lago("http://billing.example", "key")
