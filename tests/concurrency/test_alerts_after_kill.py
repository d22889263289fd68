"""An alert that a killed process could not deliver is delivered by the next one: the ledger knows who was told."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tokenmeter.attribution import Attribution
from tokenmeter.budgets import Budget, delivery
from tokenmeter.budgets.alerts import Notice
from tokenmeter.budgets.rules import Unpriced
from tokenmeter.budgets.targets import Email, TargetError, Webhook
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.errors import BudgetExceededError
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.stores import open_store
from tokenmeter.usage import Consumption, Observation, Usage

SHARED = pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
EVERY = pytest.mark.parametrize("store_url", ["memory", "sqlite", "postgres"], indirect=True)
PROGRAM = """
import sys
from tokenmeter.attribution import Attribution
from tokenmeter.budgets import Budget
from tokenmeter.budgets.targets import Webhook
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.stores import open_store
from tokenmeter.usage import Consumption, Observation, Usage

meter = Meter(store=open_store(sys.argv[1]), pricer=Pricer(PriceList()), alerts=[Webhook(sys.argv[2], timeout=60)],
              budgets=[Budget(member="*", limit_requests=1, thresholds=(100,), name="one each")])
call = Call(provider="openai", endpoint="chat.completions", operation="chat",
            facts=RequestFacts(model="m", max_output_tokens=1), attribution=Attribution(member="ada"))
answer = Outcome(observation=Observation(consumptions=(Consumption(model="m", usage=Usage({"output": 1})),)))
meter.settle(meter.authorize(call), answer)
meter.flush(60)
"""
CALL = Call(
    provider="openai",
    endpoint="chat.completions",
    operation="chat",
    facts=RequestFacts(model="m", max_output_tokens=1),
    attribution=Attribution(member="ada"),
)
ANSWER = Outcome(observation=Observation(consumptions=(Consumption(model="m", usage=Usage({"output": 1})),)))
ONE_EACH = Budget(member="*", limit_requests=1, thresholds=(100,), name="one each")


@pytest.fixture
def receiver():
    """A real HTTP server that answers nobody until it is let go, and keeps what it was told."""

    class Handler(BaseHTTPRequestHandler):
        server: Any

        def do_POST(self):
            self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.server.asked.set()
            self.server.go.wait(60)
            with contextlib.suppress(OSError):  # who asked was killed
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, *_):
            """Say nothing."""

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.told, server.asked, server.go = [], threading.Event(), threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.go.set()
    server.shutdown()
    thread.join()
    server.server_close()


def meter_at(url, *targets, budgets=(), rules=()):
    return Meter(store=open_store(url), pricer=Pricer(PriceList()), alerts=targets, budgets=budgets, rules=rules)


def call_once(meter):
    """One call, settled or refused, and all alerts that come of it."""
    with contextlib.suppress(BudgetExceededError):
        meter.settle(meter.authorize(CALL), ANSWER)
    assert meter.budgets.alerts.flush(60)


@SHARED
def test_what_a_killed_process_was_about_to_deliver_the_next_one_delivers_once(store_url, receiver):
    killed = subprocess.Popen([sys.executable, "-c", PROGRAM, store_url, receiver.url])
    assert receiver.asked.wait(60)  # it is being told, and nothing says that it was
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    receiver.go.set()
    (first,) = receiver.told
    for _ in range(2):  # the second has nothing to do
        meter = meter_at(store_url, Webhook(receiver.url))
        call_once(meter)  # is refused: the budget is spent
        meter.close()
    assert [one["alert_id"] for one in receiver.told] == [first["alert_id"]] * 2
    assert (first["budget"], first["threshold"], first["scope"]) == ("one each", 100, {"member": "ada"})


class Hook(BaseHTTPRequestHandler):
    """Takes alerts, and keeps them in `told`; refuses the members of `refused`, or everybody, with 503."""

    server: Any

    def do_POST(self):
        alert = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        refused = {"everybody", alert["scope"]["member"]} & self.server.refused
        self.server.asked.append(alert["scope"]["member"])
        if not refused:
            self.server.told.append(alert["scope"]["member"])
        self.send_response(503 if refused else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


@contextlib.contextmanager
def listening(port=0):
    """A real HTTP server at `port`; nobody answers there before and after."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", port), Hook)
    server.told, server.asked, server.refused = [], [], set[str]()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Channel:
    """A target that is a method, as of a client for a chat."""

    def __init__(self, name, notify):
        self.name, self.notify = name, notify

    def send(self, alert):
        self.notify(self.name, alert)


class Mail(Email):
    """Mail that goes nowhere."""

    def __init__(self, host, notify):
        super().__init__("ada@example.com", sender="meter@example.com", host=host)
        self.host, self.notify = host, notify

    def __call__(self, alert):
        self.notify(self.host, alert)


@EVERY
class TestOutage:
    MEMBERS = tuple(f"m{number:02}" for number in range(30))

    def backlog(self, store_url, monkeypatch, port, *, members=MEMBERS):
        """A meter that has missed the alerts of all members, and a function that has it look after so many minutes."""
        pauses: list[int] = []
        meter = meter_at(store_url, Webhook(f"http://127.0.0.1:{port}/", sleep=pauses.append), budgets=[ONE_EACH])
        bare = Meter(store=meter.store, pricer=Pricer(PriceList()), budgets=[ONE_EACH])
        now = meter.store.now()

        def look(passed):
            monkeypatch.setattr(meter.store, "now", lambda: now + timedelta(minutes=passed))
            meter.budgets.alerts.catch_up()
            assert meter.budgets.alerts.flush(60)

        look(0)
        for member in members:
            bare.settle(bare.authorize(replace(CALL, attribution=Attribution(member=member))), ANSWER)
        assert len(meter.budgets.in_force) == 1
        return meter, look, pauses

    def test_nobody_goes_on_to_ask_who_is_away_and_all_are_told_in_order_once_it_is_back(
        self, store_url, monkeypatch, caplog
    ):
        with listening() as gone:
            port = gone.server_port
        meter, look, pauses = self.backlog(store_url, monkeypatch, port)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="tokenmeter"):
            for minutes in (20, 25, 30):
                look(minutes)
            assert len(pauses) == 3 * 2 * 3, "of 30 alerts the first and the last are tried, at each of three looks"
            (outage,) = caplog.messages
            assert outage.startswith(
                f"An alert was not delivered: <Webhook http://127.0.0.1:{port}> did not take alert "
            )
            assert outage.endswith("It is tried again while calls are made; besides it wait: 29.")
            with listening(port) as back:
                for minutes in (35, 40, 60 * 24):
                    look(minutes)
                assert back.told == list(self.MEMBERS)
        assert caplog.messages[1:] == [
            f"<Webhook http://127.0.0.1:{port}> answers again; alerts that waited and follow now: 29."
        ]
        meter.close()

    def test_two_that_are_not_taken_for_what_they_say_keep_nobody_between_them(self, store_url, monkeypatch):
        with listening() as hook:
            members = self.MEMBERS[:6]
            meter, look, _ = self.backlog(store_url, monkeypatch, hook.server_port, members=members)
            hook.refused |= {members[0], members[-1]}
            for minutes in (20, 25, 30):
                look(minutes)
            assert sorted(hook.told) == list(members[1:-1])
        meter.close()

    def test_who_goes_away_amid_a_backlog_and_comes_back_is_told_the_rest(self, store_url, monkeypatch, caplog):
        with listening() as hook:
            meter, look, _ = self.backlog(store_url, monkeypatch, hook.server_port, members=self.MEMBERS[:10])
            take = hook.told.append

            class Told(list):
                def append(self, member):
                    take(member)
                    if len(hook.asked) == 5:
                        hook.refused.add("everybody")

            told, hook.told = hook.told, Told()
            look(20)
            assert (told, hook.asked[5:]) == (list(self.MEMBERS[:5]), [self.MEMBERS[5]] * 4 + [self.MEMBERS[9]] * 4)
            hook.refused.clear()
            look(25)
            assert told == list(self.MEMBERS[:10])
        assert [record.levelname for record in caplog.records if "Webhook" in record.getMessage()] == [
            "ERROR",
            "WARNING",
        ]
        meter.close()

    def test_an_alert_that_is_not_taken_keeps_no_other_from_being_told(self, store_url, monkeypatch, caplog):
        first, second, *others = self.MEMBERS[:8]
        with listening() as hook:
            meter, look, _ = self.backlog(store_url, monkeypatch, hook.server_port, members=self.MEMBERS[:8])
            hook.refused |= {first, second}
            look(20)
            assert sorted(hook.told) == others
            hook.refused.clear()
            look(25)  # what it did not take while it took others waits for longer
            assert sorted(hook.told) == others
            look(36)
            assert hook.told[-2:] == [first, second]
        assert [record.levelname for record in caplog.records if "Webhook" in record.getMessage()] == ["ERROR", "ERROR"]
        meter.close()

    def test_while_a_target_is_away_new_alerts_wait_for_the_next_look(self, store_url, monkeypatch, caplog):
        with listening() as hook:
            meter, look, _ = self.backlog(store_url, monkeypatch, hook.server_port, members=self.MEMBERS[:2])
            meter.budgets.telling.catch_up_sometimes()  # so that the call below does not
            hook.refused.add("everybody")
            look(20)
            meter.settle(meter.authorize(replace(CALL, attribution=Attribution(member="new"))), ANSWER)
            assert meter.budgets.alerts.flush(60)
            assert "new" not in hook.asked
            hook.refused.clear()
            look(22)
            assert hook.told == [*self.MEMBERS[:2], "new"]
        assert sum("not delivered" in message for message in caplog.messages) == 1
        meter.close()

    def test_what_another_process_told_meanwhile_is_not_told_again(self, store_url, monkeypatch):
        with listening() as hook:
            meter, look, _ = self.backlog(store_url, monkeypatch, hook.server_port, members=self.MEMBERS[:5])
            other = Meter(
                store=meter.store,
                pricer=Pricer(PriceList()),
                alerts=[Webhook(f"http://127.0.0.1:{hook.server_port}/")],
                budgets=[ONE_EACH],
            )
            assert len(other.budgets.in_force) == 1
            missed, first = delivery.Deliveries.missed, [True]

            def missed_by_both(deliveries, target):
                found = missed(deliveries, target)
                if first:
                    first.clear()
                    other.budgets.alerts.catch_up()
                    assert other.budgets.alerts.flush(60)
                return found

            monkeypatch.setattr(delivery.Deliveries, "missed", missed_by_both)
            look(20)
            assert hook.told == list(self.MEMBERS[:5])
        meter.close()


@EVERY
class TestLater:
    def test_what_a_receiver_did_not_take_it_is_told_again(self, store_url, monkeypatch):
        seen, away = [], [True]

        def target(alert):
            if away:
                raise TargetError("away")
            seen.append(alert)

        meter = meter_at(store_url, target, budgets=[ONE_EACH])
        call_once(meter)
        away.clear()
        now = meter.store.now()
        for minutes, told in ((1, 0), (16, 1), (32, 1)):
            monkeypatch.setattr(meter.store, "now", lambda minutes=minutes: now + timedelta(minutes=minutes))
            meter.budgets.alerts.catch_up()
            assert meter.budgets.alerts.flush(60)
            assert [alert.threshold for alert in seen] == [100] * told
        meter.close()

    @pytest.mark.parametrize("broken", [ONE_EACH.name, "all"])
    def test_one_that_cannot_be_made_keeps_no_other_back_and_is_told_once_it_can(self, store_url, broken, monkeypatch):
        seen, away = [], [True]

        def target(alert):
            if away:
                raise TargetError("away")
            seen.append(alert.budget)

        all_of_them = Budget(limit_requests=1, thresholds=(100,), name="all")
        meter = meter_at(store_url, target, budgets=[ONE_EACH, all_of_them])
        call_once(meter)
        away.clear()
        now, make = meter.store.now(), delivery.Deliveries._make

        def make_but_one(deliveries, event):
            if event.key.budget.startswith(broken):
                raise KeyError("member")  # as a limit function of somebody's may
            return make(deliveries, event)

        other = "all" if broken == ONE_EACH.name else ONE_EACH.name
        for minutes, able, told in ((16, False, [other]), (32, True, [other, broken])):
            monkeypatch.setattr(delivery.Deliveries, "_make", make if able else make_but_one)
            monkeypatch.setattr(meter.store, "now", lambda minutes=minutes: now + timedelta(minutes=minutes))
            meter.budgets.alerts.catch_up()
            assert meter.budgets.alerts.flush(60)
            assert seen == told
        meter.close()

    @pytest.mark.parametrize(
        "make",
        [
            lambda name, notify: Channel(name, notify).send,
            lambda name, notify: partial(notify, name),
            lambda name, notify: Mail(f"{name}.example.com", notify),
        ],
        ids=["methods", "partials", "mail by two hosts"],
    )
    def test_of_two_targets_of_one_kind_each_is_told(self, make, store_url, monkeypatch):
        seen, away = [], ["dev"]

        def notify(name, _alert):
            if name.partition(".")[0] in away:
                raise TargetError("away")
            seen.append(name.partition(".")[0])

        meter = meter_at(store_url, make("ops", notify), make("dev", notify), budgets=[ONE_EACH])
        call_once(meter)
        assert seen == ["ops"]
        away.clear()
        now = meter.store.now()
        monkeypatch.setattr(meter.store, "now", lambda: now + timedelta(minutes=20))
        meter.budgets.alerts.catch_up()
        assert meter.budgets.alerts.flush(60)
        assert seen == ["ops", "dev"]
        meter.close()

    def test_a_refusal_for_good_is_not_asked_again(self, store_url, monkeypatch):
        asked = []

        def target(alert):
            asked.append(alert)
            raise TargetError("gone", final=True)

        meter = meter_at(store_url, target, budgets=[ONE_EACH])
        call_once(meter)
        now = meter.store.now()
        monkeypatch.setattr(meter.store, "now", lambda: now + timedelta(hours=1))
        meter.budgets.alerts.catch_up()
        assert meter.budgets.alerts.flush(60)
        assert len(asked) == 1
        meter.close()

    def test_a_target_that_is_new_hears_of_nothing_that_was_before_it(self, store_url, monkeypatch):
        meter = meter_at(store_url, budgets=[ONE_EACH])
        call_once(meter)
        now = meter.store.now()
        seen: list[Any] = []
        other = Meter(store=meter.store, pricer=Pricer(PriceList()), alerts=[seen.append])
        for minutes in (5, 30):
            monkeypatch.setattr(meter.store, "now", lambda minutes=minutes: now + timedelta(minutes=minutes))
            other.budgets.alerts.catch_up()
            assert other.budgets.alerts.flush(60)
        assert seen == []
        meter.close()

    def test_what_a_program_without_targets_crossed_one_that_has_them_tells(self, store_url, monkeypatch):
        seen: list[Any] = []
        meter = meter_at(store_url, seen.append, budgets=[ONE_EACH])
        meter.budgets.alerts.catch_up()
        assert meter.budgets.alerts.flush(60)
        bare = Meter(store=meter.store, pricer=Pricer(PriceList()), budgets=[ONE_EACH])
        call_once(bare)
        now = meter.store.now()
        for minutes, told in ((0, 0), (2, 1), (20, 1)):
            monkeypatch.setattr(meter.store, "now", lambda minutes=minutes: now + timedelta(minutes=minutes))
            meter.budgets.alerts.catch_up()
            assert meter.budgets.alerts.flush(60)
            assert len(seen) == told
        meter.close()

    def test_more_than_fit_into_the_queue_are_told_later_each(self, store_url, monkeypatch):
        seen: list[Any] = []
        bare = meter_at(store_url, budgets=[ONE_EACH])
        other = Meter(store=bare.store, pricer=Pricer(PriceList()), alerts=[seen.append])
        other.budgets.alerts.catch_up()
        assert other.budgets.alerts.flush(60)
        members = {f"member-{number}" for number in range(5)}
        for member in sorted(members):
            bare.settle(bare.authorize(replace(CALL, attribution=Attribution(member=member))), ANSWER)
        now = bare.store.now()
        monkeypatch.setattr(bare.store, "now", lambda: now + timedelta(minutes=2))
        monkeypatch.setattr(delivery, "QUEUE_SIZE", 2)
        assert len(other.budgets.in_force) == 1
        for _ in range(2):
            other.budgets.alerts.catch_up()
            assert other.budgets.alerts.flush(60)
        assert sorted(alert.scope["member"] for alert in seen) == sorted(members)
        bare.close()

    def test_what_a_rule_found_is_told_again_as_it_was(self, store_url, monkeypatch):
        seen: list[Any] = []
        bare = meter_at(store_url, budgets=[Budget(limit_usd=1, hard=False)], rules=[Unpriced()])
        other = Meter(store=bare.store, pricer=Pricer(PriceList()), alerts=[seen.append])
        other.budgets.alerts.catch_up()
        assert other.budgets.alerts.flush(60)
        call_once(bare)
        (found,) = bare.budgets.telling.check_rules()
        now = bare.store.now()
        monkeypatch.setattr(bare.store, "now", lambda: now + timedelta(minutes=2))
        other.budgets.alerts.catch_up()
        assert other.budgets.alerts.flush(60)
        assert [one for one in seen if isinstance(one, Notice)] == [found]
        bare.close()

    def test_what_was_told_is_not_told_again_under_another_limit(self, store_url, monkeypatch):
        seen: list[Any] = []
        meter = meter_at(store_url, seen.append, budgets=[ONE_EACH])
        call_once(meter)
        meter.budgets.set(Budget(member="*", limit_requests=3, thresholds=(100,), name="one each"))
        meter.budgets.grant("one each", 5, by="grace", reason="launch", scope={"member": "ada"})
        now = meter.store.now()
        monkeypatch.setattr(meter.store, "now", lambda: now + timedelta(hours=1))
        again = Meter(store=meter.store, pricer=Pricer(PriceList()), alerts=[seen.append])
        for each in (meter, again):
            each.budgets.alerts.catch_up()
            assert each.budgets.alerts.flush(60)
        assert [(alert.threshold, alert.limit) for alert in seen] == [(100, 1)]
        meter.close()

    @pytest.mark.parametrize("then", ["limit", "grants", "plan", "all"])
    def test_an_alert_names_the_threshold_that_was_crossed_and_the_limit_of_then(self, store_url, monkeypatch, then):
        seen: list[Any] = []
        bare = meter_at(store_url, budgets=[ONE_EACH])
        other = Meter(store=bare.store, pricer=Pricer(PriceList()), alerts=[seen.append])
        other.budgets.alerts.catch_up()
        assert other.budgets.alerts.flush(60)
        call_once(bare)
        new = {"limit_requests": 3} if then == "limit" else {"limit": {"ada": {"requests": 7}}, "limit_requests": 3}
        if then != "grants":
            bare.budgets.set(Budget(member="*", thresholds=(100,), name="one each", **new))
        for number in range(2 if then in {"grants", "all"} else 0):
            bare.budgets.grant("one each", 5 + number, by="grace", reason="launch", scope={"member": "ada"})
        now = bare.store.now()
        monkeypatch.setattr(bare.store, "now", lambda: now + timedelta(minutes=2))
        assert len(other.budgets.in_force) == 1
        other.budgets.alerts.catch_up()
        assert other.budgets.alerts.flush(60)
        assert [(alert.threshold, alert.limit, alert.severity) for alert in seen] == [(100, 1, "critical")]
        bare.close()

    @pytest.mark.parametrize("kind", ["plain", "async"])
    def test_nobody_is_asked_for_the_limit_of_what_was_told(self, store_url, monkeypatch, kind):
        seen: list[Any] = []
        asked = []

        def limit_of(member):
            asked.append(member)
            return {"requests": 1}

        async def awaited_limit_of(member):
            return limit_of(member)

        plans = Budget(
            member="*",
            limit=limit_of if kind == "plain" else awaited_limit_of,
            limit_requests=0,
            thresholds=(100,),
            name="plans",
        )
        meter = meter_at(store_url, seen.append, budgets=[plans])
        call_once(meter)
        now = meter.store.now()
        monkeypatch.setattr(meter.store, "now", lambda: now + timedelta(hours=1))
        restarted = Meter(store=meter.store, pricer=Pricer(PriceList()), alerts=[seen.append], budgets=[plans])
        restarted.budgets.alerts.catch_up()
        assert restarted.budgets.alerts.flush(60)
        assert (asked, len(seen)) == (["ada"], 1)
        meter.close()

    def test_an_alert_whose_limit_is_not_known_here_keeps_no_other_from_being_told(self, store_url, monkeypatch):
        seen: list[Any] = []

        async def limit_of(_member):
            return {"requests": 1}

        plans = Budget(
            member="*", limit=limit_of, limit_requests=0, period="year", thresholds=(100,), hard=False, name="plans"
        )
        bare = meter_at(store_url, budgets=[plans, ONE_EACH])
        later = Meter(store=bare.store, pricer=Pricer(PriceList()), alerts=[seen.append], budgets=[plans])
        later.budgets.alerts.catch_up()
        assert later.budgets.alerts.flush(60)
        call_once(bare)
        now = bare.store.now()
        monkeypatch.setattr(bare.store, "now", lambda: now + timedelta(minutes=2))
        assert len(later.budgets.in_force) == 2
        for known in (["one each"], ["one each", "plans"]):
            later.budgets.alerts.catch_up()
            assert later.budgets.alerts.flush(60)
            assert [alert.budget for alert in seen] == known
            later.remaining(member="ada")  # asks for the limit
        bare.close()
