"""Usage handed over to billing systems: each piece once, whatever is interrupted, against servers of our own."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from tokenmeter.billing import HandOverError, Lago, OpenMeter, StripeMeters, close_period, hand_over
from tokenmeter.billing.targets import _Http
from tokenmeter.errors import ConfigurationError, LedgerError
from tokenmeter.ledger import utcnow
from tokenmeter.periods import Period, floor, parse_period
from tokenmeter.stores import open_store
from tokenmeter.stores.moving import copy_ledger


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


def lago(event_server):
    return Lago(event_server.url, "key-1")


def identify(store, period, reading):
    """The identifier of a reading, ``ada-input-r1``: the ledger is in it."""
    return f"tm-{store.identity()[:8]}-{period.label}-{reading}"


def values(event_server):
    return [(event["event"]["transaction_id"], event["event"]["properties"]["value"]) for event in event_server.taken]


def test_what_was_sent_is_not_sent_again_and_what_comes_later_is_the_difference(store, used, event_server, period):
    used("ada", 100)
    used("bob", 7, meter="output")
    first = hand_over(store, lago(event_server), period=period, by="kim")
    assert len(first.sent) == 2
    again = hand_over(store, lago(event_server), period=period)
    assert (again.sent, again.unchanged) == ([], 2)
    used("ada", 11)
    later = hand_over(store, lago(event_server), period=period)
    assert [(one.value, one.revision) for one in later.sent] == [(11, 2)]
    assert values(event_server) == [
        (identify(store, period, "ada-input-r1"), "100"),
        (identify(store, period, "bob-output-r1"), "7"),
        (identify(store, period, "ada-input-r2"), "11"),
    ]
    assert event_server.keys == {"Bearer key-1"}


def test_usage_that_was_sent_is_not_sent_again_under_another_name_or_period(store, used, event_server, period):
    used("ada", 100, team="ada")
    hand_over(store, lago(event_server), period=period)
    longer = Period(period.start - timedelta(days=6), period.end, label="seven days")
    for other in ({"period": period, "each": "team"}, {"period": longer}):
        with pytest.raises(LedgerError, match=r"lago has usage from .* by member already.*--allow-overlap"):
            hand_over(store, lago(event_server), **other)
    assert len(event_server.taken) == 1
    before = Period(period.start - timedelta(days=1), period.start, label="the day before")
    assert hand_over(store, lago(event_server), period=before).ok
    assert hand_over(store, OpenMeter(event_server.url, "key-2"), period=period, each="team").sent


def test_usage_that_is_sent_again_for_a_reason_has_identifiers_of_its_own(store, used, event_server, period):
    used("ada", 100, team="ada")
    hand_over(store, lago(event_server), period=period)
    hand_over(store, lago(event_server), period=period, each="team", allow_overlap="a meter for teams")
    assert values(event_server) == [
        (identify(store, period, "ada-input-r1"), "100"),
        (identify(store, period, "team=ada-input-r1"), "100"),
    ]
    assert any("a meter for teams" in document.body for document in store.documents())


def test_a_member_that_is_called_as_if_it_were_a_team_has_identifiers_of_its_own(store, used, event_server, period):
    used("team=ada", 100, team="ada")
    hand_over(store, lago(event_server), period=period)
    assert hand_over(store, lago(event_server), period=period, each="team", allow_overlap="a meter for teams").ok
    assert len(dict(values(event_server))) == len(values(event_server)) == 2


def test_what_was_refused_hinders_no_other_run(store, used, event_server, period):
    used("ada", 100, team="search")
    event_server.answers.append((422, '{"error_details": {"code": ["no such subscription"]}}'))
    assert hand_over(store, lago(event_server), period=period).refused
    assert hand_over(store, lago(event_server), period=period, each="team").sent


def test_an_interrupted_run_goes_on_under_the_same_identifiers(store, used, event_server, period):
    used("ada", 100)
    used("bob", 50)
    event_server.answers = [(200, "{}"), (503, "away")]
    with pytest.raises(HandOverError, match=r"lago did not take tm-.*-bob-input-r1 \(HTTP 503\): away"):
        hand_over(store, lago(event_server), period=period)
    used("bob", 1)
    outcome = hand_over(store, lago(event_server), period=period)
    assert [(one.account, one.value) for one in outcome.sent] == [("member=bob", 50), ("member=bob", 1)]
    assert sum(int(value) for _, value in values(event_server)) == 151


def test_ledgers_of_one_customer_hand_over_under_identifiers_of_their_own(tmp_path, make_call, event_server, period):
    at = (period.start + timedelta(hours=3)).replace(tzinfo=None).isoformat()
    for name in ("here", "there"):
        with closing(open_store(f"sqlite:///{tmp_path / name}.db")) as store:
            store.settle(make_call("1", at, quantity=100, member="ada"))
            assert hand_over(store, OpenMeter(event_server.url, "k"), period=period).sent
    assert len({(event["source"], event["id"]) for event in event_server.taken}) == 2


def test_a_ledger_and_its_copy_are_known_by_the_same_identity(tmp_path, make_call):
    with closing(open_store(f"sqlite:///{tmp_path / 'ledger.db'}")) as store:
        store.settle(make_call("1", member="ada"))
        known = store.identity()
    copy_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", f"sqlite:///{tmp_path / 'copy.db'}")
    with closing(open_store(f"sqlite:///{tmp_path / 'copy.db'}")) as copy:
        assert copy.identity() == known
    assert bytes.fromhex(known)


@pytest.mark.parametrize(("found", "more"), [("arrived", []), ("lost", [100])])
def test_what_is_there_though_this_ledger_never_sent_it_waits_until_somebody_has_looked(
    store, used, event_server, period, found, more
):
    used("ada", 100)
    event_server.answers = [(422, '{"error_details": {"transaction_id": ["value_already_exist"]}}')]
    for _ in range(2):  # the next run does not take it for its own either
        outcome = hand_over(store, lago(event_server), period=period)
        assert ([one.value for one in outcome.uncertain], outcome.sent, outcome.ok) == ([100], [], False)
    settled = hand_over(store, lago(event_server), period=period, **{found: [outcome.uncertain[0].identifier]})
    assert ([one.value for one in settled.sent], settled.ok) == (more, True)
    assert hand_over(store, lago(event_server), period=period).unchanged == 1


def test_a_refusal_that_speaks_of_something_else_is_none_of_these(store, used, event_server, period):
    used("ada", 100)
    event_server.answers = [(422, '{"error_details": {"code": ["metric_does_not_exist"]}}')]
    outcome = hand_over(store, lago(event_server), period=period)
    assert (outcome.sent, list(outcome.refused), outcome.ok) == ([], [identify(store, period, "ada-input-r1")], False)


def test_one_refused_reading_stops_no_other_and_goes_out_anew_when_it_is_put_right(store, used, event_server, period):
    used("ada", 100)
    used("bob", 50)
    event_server.answers = [(404, "no such subscription")]
    outcome = hand_over(store, lago(event_server), period=period, customers={"ada": "sub_typo", "bob": "sub_b"})
    assert [one.account for one in outcome.sent] == ["member=bob"]
    assert "no such subscription" in outcome.refused[identify(store, period, "ada-input-r1")]
    outcome = hand_over(store, lago(event_server), period=period, customers={"ada": "sub_a", "bob": "sub_b"})
    assert [(one.customer, one.value, one.identifier[-2:]) for one in outcome.sent] == [("sub_a", 100, "r2")]
    assert (
        hand_over(store, lago(event_server), period=period, customers={"ada": "sub_a", "bob": "sub_b"}).unchanged == 2
    )


@pytest.mark.parametrize("taken", [True, False], ids=["after-it-took-it", "before"])
def test_a_connection_that_closes_leaves_one_reading_to_be_sent_again(store, used, event_server, period, taken):
    used("ada", 100)
    used("bob", 50)
    event_server.answers = [(200, "{}"), (200 if taken else 500, event_server.GONE)]
    with pytest.raises(HandOverError, match="cannot be reached") as stopped:
        hand_over(store, lago(event_server), period=period)
    assert [one.account for one in stopped.value.done.sent] == ["member=ada"]
    event_server.answers = [(422, '{"error_details": {"transaction_id": ["value_already_exist"]}}')] if taken else []
    outcome = hand_over(store, lago(event_server), period=period)
    assert ([one.account for one in outcome.sent], outcome.unchanged) == (["member=bob"], 1)
    assert sorted(value for _, value in values(event_server)) == ["100", "50"]


def test_who_is_told_to_wait_waits_and_sends_once(store, used, event_server, period):
    used("ada", 100)
    event_server.answers = [(429, "slowly", {"retry-after": "0"})] * 2
    assert len(hand_over(store, lago(event_server), period=period).sent) == 1
    assert values(event_server) == [(identify(store, period, "ada-input-r1"), "100")]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((301, "", {"location": "https://elsewhere.example/"}), r"HTTP 301, sent on to https://elsewhere.example/"),
        ((200, "<html>", {"content-type": "text/html"}), "a page for people"),
        ((401, "who are you"), "HTTP 401"),
        ((429, "tomorrow", {"retry-after": "86400"}), "HTTP 429"),
    ],
    ids=["redirect", "page", "unauthorized", "tomorrow"],
)
def test_an_answer_that_does_not_take_it_does_not_count_as_sent(store, used, event_server, period, answer, said):
    used("ada", 100)
    event_server.answers = [answer]
    with pytest.raises(HandOverError, match=said) as stopped:
        hand_over(store, lago(event_server), period=period)
    assert stopped.value.done.sent == []
    event_server.taken.clear()
    assert [one.value for one in hand_over(store, lago(event_server), period=period).sent] == [100]


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1.evil.example", "http://localhost@evil.example", "http://localhost.evil.example", "https://", "https://[x",
     "ftp://localhost", "", "http://evil.example"],
)  # fmt: skip
def test_a_key_goes_over_a_cipher_to_any_host_but_this_one(url):
    with pytest.raises(ConfigurationError, match="give an https:// address"):
        OpenMeter(url, "key")


@pytest.mark.parametrize(
    "url", ["https://meters.example/", "http://localhost:8888", "http://127.0.0.1:8888", "http://[::1]:8888"]
)
def test_a_server_for_trials_may_stand_on_this_machine(url):
    OpenMeter(url, "key")


class Forgetful(_Http):
    """A system that knows an identifier again for no time at all."""

    name = "forgetful"
    remembers = timedelta(0)

    def send(self, reading):
        self._post({"identifier": reading.identifier, "value": reading.value}, "application/json", reading)

    def _has_it(self, status, said):
        return False


@pytest.mark.parametrize(("found", "more"), [("arrived", []), ("lost", [100])])
def test_what_a_system_would_not_know_again_is_sent_when_somebody_has_looked(
    store, used, event_server, period, found, more
):
    used("ada", 100)
    target = Forgetful(event_server.url, "k")
    event_server.answers = [(200, event_server.GONE)]
    with pytest.raises(HandOverError, match="cannot be reached"):
        hand_over(store, target, period=period)
    doubtful = hand_over(store, target, period=period)
    (reading,) = doubtful.uncertain
    assert (doubtful.sent, doubtful.ok, len(event_server.taken)) == ([], False, 1)
    assert f"{reading.identifier}: 100 of member=ada input may be there or not" in str(doubtful)
    settled = hand_over(store, target, period=period, **{found: [reading.identifier]})
    assert ([one.value for one in settled.sent], settled.ok) == (more, True)
    assert hand_over(store, target, period=period).unchanged == 1


def test_only_a_reading_whose_end_is_not_known_can_be_settled(store, used, event_server, period):
    used("ada", 100)
    sent = hand_over(store, lago(event_server), period=period).sent[0].identifier
    for wrong in ({"lost": [sent]}, {"arrived": ["tm-nothing"]}):
        with pytest.raises(ConfigurationError, match="not one reading whose end is not known; they are: none"):
            hand_over(store, lago(event_server), period=period, **wrong)


def test_a_run_killed_between_sending_and_writing_it_down_sends_nothing_twice(
    tmp_path, event_server, period, make_call
):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with closing(open_store(url)) as store:
        at = (period.start + timedelta(hours=3)).replace(tzinfo=None).isoformat()
        store.settle(make_call("1", at, quantity=100, member="ada"))
    dying = f"""
import os
from contextlib import closing
from datetime import datetime
from tokenmeter.billing import Lago, hand_over
from tokenmeter.periods import Period
from tokenmeter.stores import open_store
from tokenmeter.stores.moving import copy_ledger

class Dying(Lago):
    def send(self, reading):
        super().send(reading)
        os.kill(os.getpid(), 9)

start, end = map(datetime.fromisoformat, ({period.start.isoformat()!r}, {period.end.isoformat()!r}))
with closing(open_store({url!r})) as store:
    hand_over(store, Dying({event_server.url!r}, "k"), period=Period(start, end))
"""
    assert subprocess.run([sys.executable, "-c", dying], check=False, timeout=60).returncode == -9
    event_server.answers = [(422, '{"error_details": {"transaction_id": ["value_already_exist"]}}')]
    with closing(open_store(url)) as store:
        asked = Period(period.start, period.end)
        assert [one.value for one in hand_over(store, lago(event_server), period=asked).sent] == [100]
        assert hand_over(store, lago(event_server), period=asked).unchanged == 1
    ((identifier, value),) = values(event_server)
    assert (identifier[-2:], value) == ("r1", "100")


def test_accounts_without_a_customer_and_takings_back_are_named(store, used, event_server, period):
    used("ada", 100)
    used("eve", 5)
    outcome = hand_over(store, lago(event_server), period=period, customers={"ada": "sub_1"})
    assert outcome.unknown == {"member=eve": 5}
    used("ada", -40, kind="correction")
    outcome = hand_over(store, lago(event_server), period=period, customers={"ada": "sub_1"})
    assert (outcome.sent, outcome.owed) == ([], {"member=ada input": 40})
    assert "40 less than was sent" in str(outcome)


def test_openmeter_gets_cloud_events(store, used, event_server, period):
    used("ada", 100)
    hand_over(store, OpenMeter(event_server.url, "k", source="tokenmeter/a"), period=period)
    (event,) = event_server.taken
    assert (event["specversion"], event["source"], event["subject"], event["data"]) == (
        "1.0",
        "tokenmeter/a",
        "ada",
        {"tokens": "100", "type": "input"},
    )


def test_stripe_gets_meter_events_by_its_own_package(store, used, event_server, period):
    stripe = pytest.importorskip("stripe")
    used("ada", 120345)
    client = stripe.StripeClient("sk_test_1", base_addresses={"api": event_server.url})
    hand_over(store, StripeMeters(client), period=period, customers={"ada": "cus_A"})
    (event,) = event_server.taken
    assert event["event_name"] == "ai_input"
    assert (event["payload[stripe_customer_id]"], event["payload[value]"]) == ("cus_A", "120345")
    assert event["identifier"] == identify(store, period, "ada-input-r1")
    assert event_server.paths == {"/v1/billing/meter_events"}
    assert hand_over(store, StripeMeters(client), period=period, customers={"ada": "cus_A"}).unchanged == 1


@pytest.mark.parametrize(
    ("status", "kind", "message", "expected"),
    [
        (400, "invalid_request_error", "An event already exists with identifier tm-1.", "uncertain"),
        (400, "invalid_request_error", "No such customer: 'cus_A'", "refused"),
        (401, "invalid_request_error", "Invalid API Key provided", "stopped"),
        (500, "api_error", "Something went wrong", "stopped"),
    ],
    ids=["there-already", "no-such-customer", "wrong-key", "broken"],
)
def test_what_stripe_says_decides_whether_a_reading_is_there(
    store, used, event_server, period, status, kind, message, expected
):
    stripe = pytest.importorskip("stripe")
    used("ada", 100)
    client = stripe.StripeClient("sk_test_1", base_addresses={"api": event_server.url}, max_network_retries=0)
    event_server.answers = [(status, json.dumps({"error": {"type": kind, "message": message}}))]
    try:
        outcome = hand_over(store, StripeMeters(client), period=period)
    except HandOverError:
        assert expected == "stopped"
    else:
        found = {"sent": outcome.sent, "refused": outcome.refused, "uncertain": outcome.uncertain}
        assert [name for name, some in found.items() if some] == [expected]


def test_stripe_takes_no_old_events(store, period):
    pytest.importorskip("stripe")
    old = Period(period.start - timedelta(days=60), period.start - timedelta(days=40))
    with pytest.raises(ConfigurationError, match="35 days"):
        hand_over(store, StripeMeters("sk_test_1"), period=old)


def test_a_key_does_not_leave_over_plain_http():
    with pytest.raises(ConfigurationError, match="https"):
        Lago("http://billing.example", "key")


def test_a_customer_of_an_account_that_used_nothing_is_named(store, used, event_server, period):
    used("ada", 100)
    outcome = hand_over(store, lago(event_server), period=period, customers={"ada": "sub_1", "Ada": "sub_2"})
    assert (outcome.idle, outcome.ok) == (["member=Ada"], True)
    assert "member=Ada has a customer and used nothing; is it spelled so here?" in str(outcome)


def sent_values(event_server):
    return [int(value) for _, value in values(event_server)]


@pytest.fixture
def use_at(store, make_call):
    """`use_at("2026-09-10T00:00", 1000)`: so many tokens of ada's."""

    def use(at, quantity):
        store.settle(make_call("1", at, quantity=quantity, member="ada"))

    return use


def test_what_came_late_is_handed_over_once_whichever_period_is_first(store, use_at, event_server):
    """A month that is over and not closed yet, and the running one: both are after the closed one."""
    use_at("2026-09-10T00:00", 1000)
    close_period(store, "2026-09")
    hand_over(store, lago(event_server), period="2026-09")
    use_at("2026-09-30T00:00", 50)
    use_at("2026-10-10T00:00", 2000)
    use_at("2026-11-10T00:00", 3000)
    for period in ("2026-10", "2026-11"):
        assert hand_over(store, lago(event_server), period=period).ok
    close_period(store, "2026-10")
    for period in ("2026-09", "2026-10", "2026-11"):
        again = hand_over(store, lago(event_server), period=period)
        assert (again.sent, again.owed, again.unchanged) == ([], {}, 1)
    assert sent_values(event_server) == [1000, 2050, 3000]
    use_at("2026-10-11T00:00", 7)
    use_at("2026-09-11T00:00", 3)
    assert [one.value for one in hand_over(store, lago(event_server), period="2026-11").sent] == [10]
    assert sum(sent_values(event_server)) == sum(one.charges[0].quantity for one in store.entries())


@pytest.mark.parametrize("cost", [None, "0"])
def test_what_came_late_and_costs_nothing_is_handed_over_too(store, use_at, make_call, event_server, cost):
    """What is sent are quantities: usage without a price, or at a price of 0, is usage."""
    use_at("2026-09-10T00:00", 1000)
    close_period(store, "2026-09")
    store.settle(make_call(cost, "2026-09-30T23:50", quantity=70, model="own", member="ada"))
    use_at("2026-10-10T00:00", 2000)
    assert hand_over(store, lago(event_server), period="2026-10").ok
    close_period(store, "2026-10")
    assert hand_over(store, lago(event_server), period="2026-10").sent == []
    assert sent_values(event_server) == [2070]


def test_what_came_late_is_handed_over_with_a_day_and_stays_there(store, use_at, event_server):
    use_at("2026-10-10T00:00", 1000)
    hand_over(store, lago(event_server), period="2026-10")
    close_period(store, "2026-10")
    use_at("2026-10-31T23:00", 50)
    days = ("2026-11-24", "2026-11-25")
    for day in days:
        use_at(f"{day}T05:00", 7)
        assert hand_over(store, lago(event_server), period=day).ok
    close_period(store, "2026-11", now=datetime(2026, 12, 1, tzinfo=UTC))
    for day in days:
        again = hand_over(store, lago(event_server), period=day)
        assert (again.sent, again.owed) == ([], {})
    use_at("2026-12-01T05:00", 1)
    assert hand_over(store, lago(event_server), period="2026-12-01").ok
    assert sent_values(event_server) == [1000, 57, 7, 1]


def test_what_came_late_goes_out_anew_where_it_was_refused(store, use_at, event_server):
    close_period(store, "2026-09")
    use_at("2026-09-30T00:00", 50)
    event_server.answers.append((422, '{"error_details": {"code": ["no such subscription"]}}'))
    assert hand_over(store, lago(event_server), period="2026-10").refused
    assert [one.value for one in hand_over(store, lago(event_server), period="2026-11").sent] == [50]
    assert hand_over(store, lago(event_server), period="2026-10").sent == []


def test_periods_of_one_label_are_handed_over_under_identifiers_of_their_own(store, use_at, event_server):
    """One that goes by the clock, one without a label, a week and its first day."""
    use_at("2026-11-02T01:00", 5)
    use_at("2026-11-10T00:00", 1000)
    use_at("2026-11-17T00:00", 700)
    weeks = [parse_period("last-7d", now=datetime(2026, 11, day, tzinfo=UTC)) for day in (15, 22)]
    weeks += [Period(week.start, week.end) for week in weeks]
    for period in (*weeks, "2026-W45", "2026-11-02", "2026-11"):
        assert hand_over(store, lago(event_server), period=period, allow_overlap="for trial").ok
    assert sent_values(event_server) == [1000, 700, 5, 5, 1705]
    identifiers = [name for name, _ in values(event_server)]
    assert len(set(identifiers)) == 5
    ledger = store.identity()[:8]
    assert identifiers[0] == f"tm-{ledger}-20261109T000000Z-20261116T000000Z-ada-input-r1"
    assert identifiers[3:] == [f"tm-{ledger}-{label}-ada-input-r1" for label in ("2026-11-02", "2026-11")]
