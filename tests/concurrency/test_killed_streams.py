"""A process that is killed amid a stream: the next one books what the dead one had read, and nothing stays held."""

import subprocess
import sys
import threading
import time
from datetime import timedelta

import openai
import pytest

import tokenmeter
from tokenmeter.budgets import Budget
from tokenmeter.stores import open_store

SHARED = pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
QUESTION = [{"role": "user", "content": "Hi"}]
MOST_WORDS = 20_000


def open_meter(url, kind):
    budgets = [Budget(member="*", limit_usd=100)] if kind == "capped" else []
    return tokenmeter.make_meter(store=url, config={}, budgets=budgets)


def read_for_ever(url, base_url, kind):
    """What a process does that is killed amid a stream."""
    client = openai.OpenAI(base_url=base_url, api_key="sk-1", max_retries=0)
    tokenmeter.wrap(client, meter=open_meter(url, kind))
    with tokenmeter.attribute(member="ada"):
        for _ in client.chat.completions.create(model="gpt-5-mini", messages=QUESTION, stream=True):
            sys.stdout.write("word\n")
            sys.stdout.flush()


def wait_for_note(store, beyond, process):
    """Tokens that the hold of the one call under way says it has read, once they are more than `beyond`."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for hold in store.expired(store.now() + timedelta(days=1)):
            if (read := hold.call.usage.output_tokens) > beyond:
                return read
        assert process.poll() is None, "the reader ended"
        threading.Event().wait(0.05)
    pytest.fail("nothing was noted")


@SHARED
@pytest.mark.parametrize("kind", ["capped", "uncapped"])
def test_what_was_read_of_a_stream_is_booked_when_its_process_is_killed(store_url, kind, provider):
    meter = open_meter(store_url, kind)
    provider.answer("word " * MOST_WORDS, chunk_delay=0.02, times=None)
    command = [sys.executable, __file__, store_url, provider.openai_url, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as reader:
        try:
            # Noted more than once: what counts is what was noted last, whether or not the hold was folded between.
            noted = wait_for_note(meter.store, wait_for_note(meter.store, 0, reader), reader)
        finally:
            reader.kill()
        read = reader.stdout.read().count(b"word")
    left = "1 hold of a process that has ended: it is booked"
    assert [warning for warning in meter.store.health().warnings if warning.startswith(left)]
    assert meter.sweep() == 1
    assert not [warning for warning in meter.store.health().warnings if "has ended" in warning]
    (entry,) = meter.entries()
    assert noted <= entry.usage.output_tokens <= read * 2  # a word is 5 bytes, of which estimates make at most 2 tokens
    assert (entry.status, entry.attribution.member) == ("aborted", "ada")
    assert set(entry.flags) >= {"estimated", "expired_hold"}
    output = next(charge for charge in entry.charges if charge.sku_meter == "output")
    assert output.quantity == entry.usage.output_tokens
    assert output.billed_cost > 0
    assert all(balance.reserved == 0 for balance in meter.remaining(member="ada"))
    assert meter.verify(deep=True).ok
    assert not meter.audit_budgets()
    meter.close()


@SHARED
def test_an_answer_that_comes_after_all_takes_what_was_noted_back(store_url, provider):
    meter = open_meter(store_url, "capped")
    other = open_store(store_url)
    with openai.OpenAI(base_url=provider.openai_url, api_key="sk-1", max_retries=0) as client:
        tokenmeter.wrap(client, meter=meter)
        provider.answer("word " * 200, chunk_delay=0.02)
        with tokenmeter.attribute(member="ada"):
            stream = client.chat.completions.create(model="gpt-5-mini", messages=QUESTION, stream=True)
            for _ in stream:
                holds = other.expired(other.now() + timedelta(days=1))
                if any(hold.call.usage.output_tokens for hold in holds):
                    break
            assert meter.sweep(meter.store.now() + timedelta(days=1)) == 1
            (estimate,) = meter.entries()
            assert estimate.usage.output_tokens > 0
            list(stream)
    (truth,) = provider.billed
    (whole,) = [entry for entry in meter.entries() if entry.status == "ok"]
    assert whole.usage.output_tokens == truth.meters.output_tokens
    assert meter.report().totals.billed_cost == whole.billed_cost
    (balance,) = meter.remaining(member="ada")
    assert (balance.spent, balance.reserved) == (whole.billed_cost, 0)
    assert not meter.audit_budgets()
    other.close()
    meter.close()


if __name__ == "__main__":
    read_for_ever(*sys.argv[1:])
