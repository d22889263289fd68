"""Whether a thread may wait: said once where it must not, asked where it would."""

from __future__ import annotations

import sys
import threading

import pytest

from tokenmeter import Budget
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.errors import StoreBusyError
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer, Terms
from tokenmeter.processes import may_wait, run_at_once, run_patiently
from tokenmeter.stores.sqlite import MemoryStore

PRICES = [
    {"provider": "openai", "model": "m", "sku_meter": meter, "unit_price": "1", "per": 1_000_000}
    for meter in ("input", "output")
]
FACTS = RequestFacts(model="m", input_bytes=40, max_output_tokens=10)
CALL = Call(provider="openai", endpoint="chat.completions", operation="chat", facts=FACTS)


@pytest.fixture
def make_meter():
    """A meter with a cap that has recorded a call: prices and budgets are read."""

    def make(**given):
        pricer = Pricer(PriceList.load(PRICES), Terms())
        meter = Meter(store=MemoryStore(), pricer=pricer, budgets=[Budget(name="cap", limit_usd=5)], **given)
        meter.settle(meter.authorize(CALL), Outcome())
        return meter

    return make


def test_a_thread_may_wait_unless_it_is_told_otherwise():
    assert may_wait()
    assert not run_at_once(may_wait)
    assert not run_at_once(run_at_once, may_wait)
    assert run_at_once(run_patiently, may_wait)
    assert not run_at_once(run_patiently, run_at_once, may_wait)
    assert may_wait()


def test_what_was_given_and_what_comes_of_it_pass_through():
    assert run_at_once(divmod, 7, 2) == run_patiently(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        run_at_once(divmod, 1, 0)
    assert may_wait()


def test_a_thread_that_is_begun_meanwhile_may_wait():
    found = []

    def ask():
        thread = threading.Thread(target=lambda: found.append(may_wait()))
        thread.start()
        thread.join()

    run_at_once(ask)
    assert found == [True]


@pytest.mark.parametrize("run", [run_at_once, run_patiently])
def test_after_an_interrupt_at_any_line_the_thread_may_wait(run):
    """The mark may be left behind; it is not believed."""
    for line in range(1, 20):
        left = [line]

        def trace(frame, event, _, left=left):
            if frame.f_code is not run.__code__:
                return None
            if event == "line":
                left[0] -= 1
                if not left[0]:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            run(int)
        except KeyboardInterrupt:
            assert may_wait()
        else:
            break
        finally:
            sys.settrace(before)
    else:
        pytest.fail("the lines did not end")
    assert line > 3
    assert may_wait()


def test_the_application_waits_in_what_it_is_told_on_an_event_loop(make_meter):
    """An observer may read the ledger, though the call that it is told of must not wait."""
    found = []
    meter = make_meter(observers=[lambda _: found.append(may_wait())])
    run_at_once(meter.settle, run_at_once(meter.authorize, CALL), Outcome())
    assert found == [True, True]


def test_what_others_hold_is_waited_for_or_said_to_be_busy(make_meter):
    meter = make_meter()
    held, done = threading.Event(), threading.Event()

    def hold(_):
        held.set()
        done.wait(30)

    other = threading.Thread(target=meter.store.journal._locked, args=(hold,))
    other.start()
    try:
        assert held.wait(30)
        with pytest.raises(StoreBusyError):
            run_at_once(meter.authorize, CALL)
    finally:
        done.set()
        other.join()
    assert run_at_once(meter.authorize, CALL).reservation is not None
