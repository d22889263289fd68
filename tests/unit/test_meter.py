"""The meter's own promises: identity, entries, faults that never reach the caller."""

import copy
import faulthandler
import gc
import hashlib
import logging
import pickle
import shutil
import threading
import time
from decimal import Decimal
from functools import partial

import pytest

from forking import run_in_child
from tokenmeter.attribution import Attribution, attribute, current_scopes
from tokenmeter.budgets import Budget
from tokenmeter.budgets.rules import Faults
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.errors import StoreBusyError, StoreUnavailableError
from tokenmeter.meter import Meter
from tokenmeter.pricing import Multiplier, PriceList, Pricer, Terms
from tokenmeter.processes import run_at_once
from tokenmeter.stores import journal
from tokenmeter.stores.sqlite import MemoryStore, SQLiteStore
from tokenmeter.usage import Consumption, Observation, Usage

KEY = "sk-test-0123456789-wxyz"


@pytest.fixture(scope="module")
def pricer():
    rows = [
        {"provider": "openai", "model": "m", "sku_meter": meter, "unit_price": "1", "per": 1_000_000}
        for meter in ("input", "output")
    ]
    return Pricer(PriceList.load(rows), Terms(multipliers=(Multiplier(factor=Decimal("1.05")),)))


@pytest.fixture
def make_meter(pricer):
    def build(*budgets, **arguments):
        return Meter(store=MemoryStore(), pricer=pricer, budgets=budgets, **arguments)

    return build


def a_call(**changes):
    facts = RequestFacts(model="m", input_bytes=40, max_output_tokens=10, streamed=True)
    values = {"provider": "openai", "endpoint": "chat.completions", "operation": "chat", "facts": facts}
    return Call(**(values | changes))


def answered(**changes):
    usage = Usage({"input": 1000, "output": 200}, 50)
    values = {
        "consumptions": (Consumption(model="m-2026", usage=usage),),
        "response_model": "m-2026",
        "response_id": "r1",
    }
    return Observation(**(values | changes))


class TestIdentity:
    def test_a_key_is_known_by_fingerprint_last4_and_alias(self, make_meter):
        meter = make_meter(aliases={hashlib.sha256(KEY.encode()).hexdigest(): "prod"})
        known = meter.identify(KEY)
        assert (known.last4, known.alias, len(known.fingerprint)) == ("wxyz", "prod", 32)
        assert meter.identify(KEY) is known
        assert meter.identify(None) is meter.identify("") is None

    def test_the_same_key_has_another_fingerprint_in_another_ledger(self, make_meter):
        assert make_meter().identify(KEY).fingerprint != make_meter().identify(KEY).fingerprint

    def test_a_budget_on_a_key_still_applies_while_the_store_cannot_say_its_secret(self, make_meter, monkeypatch):
        meter = make_meter(Budget(api_key="*", limit_requests=1), aliases={})

        def fail(*_, **__):
            raise StoreUnavailableError("gone")

        for name in ("secret", "reserve"):
            monkeypatch.setattr(meter.store, name, fail)
        with pytest.raises(StoreUnavailableError):
            meter.authorize(a_call(api_key=meter.identify(KEY)))

    def test_short_lived_keys_do_not_pile_up(self, make_meter):
        meter = make_meter()
        for number in range(2500):
            meter.identify(f"token-{number}")
        assert len(meter.keys) <= 1000


class TestEntries:
    def test_an_answer_is_recorded_as_it_was_seen(self, make_meter):
        meter = make_meter()
        leave = meter.authorize(a_call(attribution=Attribution(member="ada")))
        entry = meter.settle(
            leave, Outcome(observation=answered(raw_usage={"ü": 1}), request_id="req", attempts=2, first_token_us=7)
        )
        assert meter.store.entry(entry.entry_id) == entry
        assert (entry.request_model, entry.response_model, entry.model) == ("m", "m-2026", "m-2026")
        assert (entry.request_id, entry.attempts, entry.first_token_us, entry.streamed) == ("req", 2, 7, True)
        assert (entry.raw_usage, entry.occurred_at, entry.attribution.member) == ('{"ü":1}', leave.started_at, "ada")
        assert entry.latency_us >= 0
        assert entry.usage.reasoning_output_tokens == 50

    def test_the_platform_multiplier_is_on_the_bill(self, make_meter):
        meter = make_meter()
        seen = answered(consumptions=(Consumption(model="m", usage=Usage({"input": 1000, "output": 200})),))
        entry = meter.settle(meter.authorize(a_call()), Outcome(observation=seen))
        assert (entry.list_cost, entry.billed_cost) == (Decimal("0.0012"), Decimal("0.00126"))

    @pytest.mark.parametrize(
        ("status", "flags"), [("aborted", ("billing_unknown",)), ("timeout", ("billing_unknown",)), ("error", ())]
    )
    def test_a_call_without_an_answer_says_whether_it_may_be_billed(self, make_meter, status, flags):
        meter = make_meter()
        entry = meter.settle(meter.authorize(a_call()), Outcome(status=status, error_type="Oops"))
        assert (entry.flags, entry.cost_source, entry.billed_cost, entry.error_type) == (flags, "none", None, "Oops")

    @pytest.mark.parametrize(("beside", "told"), [({}, 1), ({"limit_requests": 9}, 0), ({"hard": False}, 0)])
    def test_that_its_cap_does_not_see_a_call_without_an_answer_is_told_once(self, make_meter, caplog, beside, told):
        meter = make_meter(Budget(limit_usd=1, name="mine", **beside))
        for _ in range(2):
            meter.settle(meter.authorize(a_call()), Outcome(status="timeout", error_type="APITimeoutError"))
        assert caplog.text.count("Budget 'mine' gave back what it held for a call to chat.completions") == told
        assert [balance.spent for balance in meter.budgets.remaining({}, meter.store.now())] == [0, 2][
            : 1 + ("limit_requests" in beside)
        ]

    def test_scopes_see_their_calls(self, make_meter):
        meter = make_meter()
        with attribute(member="ada") as outer, attribute(route="/r") as inner:
            meter.settle(meter.authorize(a_call(scopes=current_scopes())), Outcome(observation=answered()))
        assert (outer.requests, inner.requests, inner.usage.input_tokens, inner.unpriced) == (1, 1, 1000, 1)


class TestFaults:
    def test_a_store_that_fails_is_counted_logged_once_and_hidden_from_the_caller(
        self, make_meter, monkeypatch, caplog
    ):
        meter = make_meter()
        monkeypatch.setattr(meter.store, "settle", lambda *_, **__: 1 // 0)
        with caplog.at_level(logging.ERROR, logger="tokenmeter"):
            for _ in range(3):
                assert meter.settle(meter.authorize(a_call()), Outcome()) is None
        assert meter.faults == 3
        assert caplog.text.count("tokenmeter could not record a call") == 1
        assert "ZeroDivisionError" in caplog.text

    def test_a_busy_store_is_said_only_to_those_who_do_not_wait(self, make_meter, monkeypatch):
        meter = make_meter()

        def busy(*_, **__):
            raise StoreBusyError("taken")

        leave = meter.authorize(a_call())
        monkeypatch.setattr(meter.store, "settle", busy)
        with pytest.raises(StoreBusyError):
            run_at_once(meter.settle, leave, Outcome())
        assert not leave.settled

    @pytest.mark.parametrize("method", ["release", "extend"])
    def test_giving_back_and_keeping_a_hold_never_raise(self, make_meter, monkeypatch, method):
        meter = make_meter(Budget(limit_requests=1))
        leave = meter.authorize(a_call())
        leave.extend_due_ns = 0
        monkeypatch.setattr(meter.store, method, lambda *_, **__: 1 // 0)
        getattr(meter, method)(leave)
        assert meter.faults == 1

    def test_what_is_settled_in_the_middle_of_a_write_of_this_thread_is_written_down_after_it(self, make_meter):
        meter = make_meter(Budget(limit_requests=10, estimate="expected"))
        leave = meter.authorize(a_call())
        meter.store.journal.recount(lambda: meter.settle(leave, Outcome(observation=answered())))
        assert [(one.spent, one.reserved) for one in meter.remaining()] == [(1, 0)]
        assert (len(list(meter.store.entries())), meter.faults) == (1, 0)

    def test_a_finaliser_may_settle_in_the_middle_of_an_authorization(self, make_meter):
        meter = make_meter(
            Budget(limit_requests=10**6, estimate="expected"), Budget(limit_tokens=10**9, estimate="expected")
        )

        class Stream:
            def __init__(self):
                self.leave = meter.authorize(a_call())
                self.myself = self

            def __del__(self):
                meter.settle(self.leave, Outcome(observation=answered()))

        gc.set_threshold(5, 2, 2)
        try:
            for _ in range(300):
                Stream()
        finally:
            gc.set_threshold(700, 10, 10)
            gc.collect()
        assert meter.remaining()[0].spent == 300
        assert meter.faults == 0

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # said from Python 3.12 on
    def test_a_forked_child_can_authorize_while_a_thread_of_its_parent_was_in_the_meter(self, make_meter):
        meter = make_meter(Budget(limit_requests=10**6))
        stop = threading.Event()
        # Logged and asked here: a fork in the middle of logging or of an import is not this test's subject.
        meter.fault("pretend", ValueError())
        meter.budgets.learn(meter.settle(meter.authorize(a_call()), Outcome(observation=answered())))

        def work():
            while not stop.is_set():
                meter.fault("pretend", ValueError())
                meter.budgets.learn(meter.settle(meter.authorize(a_call()), Outcome(observation=answered())))

        def call_afresh():
            faulthandler.dump_traceback_later(20, exit=True)
            fresh = make_meter(Budget(limit_requests=5))
            fresh.fault("pretend", ValueError())
            fresh.settle(fresh.authorize(a_call()), Outcome(observation=answered()))
            return fresh.faults - 1

        thread = threading.Thread(target=work)
        thread.start()
        try:
            assert [run_in_child(call_afresh) for _ in range(5)] == [0] * 5
        finally:
            stop.set()
            thread.join()


class TestSweeping:
    def test_expired_holds_are_swept_now_and_then_off_the_calls_path(self, make_meter):
        meter = make_meter(Budget(limit_requests=100), hold_seconds=0)
        lost = meter.authorize(a_call())
        meter.budgets.holds.sweep_due = 0
        meter.authorize(a_call())
        until = time.monotonic() + 60
        while meter.store.entry(lost.reservation.reservation_id) is None and time.monotonic() < until:
            time.sleep(0.005)
        entry = meter.store.entry(lost.reservation.reservation_id)
        assert entry.billed_cost == Decimal("0.0000105")  # ten tokens at $1 a million, times 1.05
        assert entry.status == "aborted"
        assert meter.budgets.holds.sweep_due > time.monotonic() + 50


class TestClosing:
    def test_what_goes_on_in_threads_ends_first_and_the_folder_can_be_removed(self, pricer, tmp_path, monkeypatch):
        """A test's temporary folder is removed right after it: a ledger opened again would be in its way."""
        folder, others = tmp_path / "ledger", set(threading.enumerate())
        store = SQLiteStore(folder / "ledger.db")
        meter = Meter(store=store, pricer=pricer)
        begun = [threading.Event(), threading.Event()]

        def later(number, work, *given, **named):
            begun[number].set()
            time.sleep(0.2)  # long enough for the store to be closed
            return work(*given, **named)

        monkeypatch.setattr(store, "expired", partial(later, 0, store.expired))
        monkeypatch.setattr(store.journal, "check_tail", partial(later, 1, store.journal.check_tail))
        monkeypatch.setattr(journal, "FOLD_EVERY", 1)
        meter.budgets.holds.sweep_due = 0
        meter.settle(meter.authorize(a_call()), Outcome(observation=answered()))
        assert all(event.wait(60) for event in begun)
        meter.close()
        shutil.rmtree(folder)
        left = set(threading.enumerate()) - others
        assert (left, meter.faults, folder.exists()) == (set(), 0, False)

    def test_a_call_goes_on_where_no_thread_can_be_had_and_who_is_to_be_told_is_told_later(self, make_meter):
        told, others = [], set(threading.enumerate())
        meter = make_meter(Budget(limit_requests=2, thresholds=(50, 100)), alerts=[told.append], rules=[Faults()])

        def call():
            meter.budgets.holds.sweep_due = meter.budgets.telling._rules_due = 0
            meter.settle(meter.authorize(a_call()), Outcome(observation=answered()))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            call()
            assert (meter.faults, told) == (0, [])
        call()
        meter.flush()
        assert meter.faults == 0
        assert sorted(alert.threshold for alert in told) == [50, 100]
        meter.close()
        assert not [one for one in set(threading.enumerate()) - others if one.join(60) or one.is_alive()]


def no_thread(_thread):
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_meter_that_is_sent_to_another_process_says_what_to_do_instead(make_meter, take):
    with pytest.raises(TypeError, match=r"A Meter is not pickled or copied.*make the clients there.*tokenmeter\.toml"):
        take([make_meter()] if take is not copy.copy else make_meter())
