"""Calls by plans: with a ledger on a server, too, a warm call without caps only writes to the tail."""

import asyncio
import threading
import time
from datetime import timedelta

import openai
import pytest

import tokenmeter
from tokenmeter import Budget
from tokenmeter.ledger import utcnow
from tokenmeter.stores.postgres import journal
from tokenmeter.stores.postgres.store import PostgresStore

HELLO = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def meter(postgres_url):
    made = tokenmeter.make_meter(store=postgres_url)
    yield made
    made.close()


@pytest.fixture
def general(monkeypatch):
    """Entries that went the general way."""
    seen = []
    settle = PostgresStore.settle

    def noted(self, entry, *arguments, **named):
        settlement = settle(self, entry, *arguments, **named)
        seen.append(entry)
        return settlement

    monkeypatch.setattr(PostgresStore, "settle", noted)
    return seen


@pytest.fixture
def call(provider, meter):
    client = tokenmeter.wrap(openai.OpenAI(api_key="sk-test", base_url=provider.openai_url), meter=meter)
    yield lambda: client.chat.completions.create(**HELLO)
    client.close()


def test_a_warm_call_goes_by_its_plan_and_counts_the_same(call, meter, general):
    for _ in range(5):
        call()

    assert len(general) == 1
    entries = list(meter.store.entries())
    assert len(entries) == 5
    assert len({(entry.billed_cost, entry.usage.total_tokens) for entry in entries}) == 1
    assert meter.store.verify().ok


def test_the_servers_clock_decides_for_planned_calls_too(call, meter):
    call()
    call()
    meter.store._pool.skew_us = 3_600_000_000
    call()
    latest = next(iter(meter.store.entries(newest_first=True)))
    assert latest.occurred_at > utcnow() + timedelta(minutes=59)
    assert latest.recorded_at > utcnow() + timedelta(minutes=59)


def test_a_budget_that_is_defined_meanwhile_is_asked_from_the_next_call_on(call, meter, general):
    for _ in range(3):
        call()
    meter.budgets.set(Budget(name="all", limit_requests=1))
    with pytest.raises(tokenmeter.BudgetExceededError):
        call()
    assert len(general) == 1


def test_an_end_user_nobody_has_met_is_looked_up_off_the_event_loop(provider, meter, general, monkeypatch):
    book = meter.store.journal._book
    find, on_the_loop = book.find_name, []

    def found(kind, value):
        on_the_loop.append(asyncio._get_running_loop() is not None)
        return find(kind, value)

    monkeypatch.setattr(book, "find_name", found)

    async def work():
        client = tokenmeter.wrap(openai.AsyncOpenAI(api_key="sk-test", base_url=provider.openai_url), meter=meter)
        for number in range(4):
            with tokenmeter.attribute(end_user=f"user-{number % 2}"):
                await client.chat.completions.create(**HELLO)
        await client.close()

    asyncio.run(work())
    assert on_the_loop
    assert not any(on_the_loop)
    assert [entry.attribution.end_user for entry in general] == ["user-0"]  # the others go by its plan
    assert [entry.attribution.end_user for entry in meter.store.entries()] == ["user-0", "user-1"] * 2
    assert meter.faults == 0


@pytest.fixture
def idle(monkeypatch):
    """Every call comes after a while in which its process made none, and so asked for nothing."""
    monkeypatch.setattr(journal, "_ASK_GENERATION_EVERY", 0)


CLOSED = Budget(model="*", limit_requests=0, name="closed")


@pytest.mark.parametrize("capped", [False, True])
def test_after_a_while_without_calls_the_next_one_obeys_what_others_changed(call, meter, postgres_url, capped, idle):
    if capped:
        meter.budgets.set(Budget(model="*", limit_requests=100, name="closed"), by="ada")
    call()
    call()
    elsewhere = tokenmeter.make_meter(store=postgres_url)
    elsewhere.budgets.set(CLOSED, by="ada")
    assert [one.limit for one in meter.remaining()] == [0]
    with pytest.raises(tokenmeter.BudgetExceededError):
        call()
    elsewhere.budgets.set(Budget(model="*", limit_requests=3, name="closed"), by="ada")
    elsewhere.close()
    call()
    with pytest.raises(tokenmeter.BudgetExceededError):
        call()


def test_what_others_changed_a_second_ago_holds_for_the_next_call(call, meter, postgres_url):
    meter.budgets.set(Budget(model="*", limit_requests=100, name="closed"), by="ada")
    call()
    call()
    elsewhere = tokenmeter.make_meter(store=postgres_url)
    elsewhere.budgets.set(CLOSED, by="ada")
    elsewhere.close()
    asked = meter.store.journal._budgets_due - journal._ASK_GENERATION_EVERY
    until = asked + 1
    while time.monotonic() < until:
        threading.Event().wait(until - time.monotonic())
    with pytest.raises(tokenmeter.BudgetExceededError):
        call()


@pytest.mark.parametrize("capped", [False, True])
def test_on_an_event_loop_a_thread_asks_for_it(provider, meter, postgres_url, capped, idle, monkeypatch):
    asked_by = []
    ask = journal.ServerJournal.ask_budgets
    monkeypatch.setattr(
        journal.ServerJournal,
        "ask_budgets",
        lambda self: asked_by.append(threading.current_thread().name) or ask(self),
    )
    if capped:
        meter.budgets.set(Budget(model="*", limit_requests=100, name="closed"), by="ada")

    async def run():
        client = tokenmeter.wrap(openai.AsyncOpenAI(api_key="sk-test", base_url=provider.openai_url), meter=meter)
        async with client:
            for _ in range(3):
                await client.chat.completions.create(**HELLO)
            elsewhere = await asyncio.to_thread(tokenmeter.make_meter, store=postgres_url)
            await asyncio.to_thread(elsewhere.budgets.set, CLOSED, by="ada")
            await asyncio.to_thread(elsewhere.close)
            asked_by.clear()
            with pytest.raises(tokenmeter.BudgetExceededError):
                await client.chat.completions.create(**HELLO)

    asyncio.run(run())
    assert asked_by
    assert threading.main_thread().name not in asked_by


def test_a_server_that_says_nothing_of_budgets_keeps_no_call(call, meter, idle, monkeypatch):
    call()
    never = threading.Event()
    monkeypatch.setattr(journal, "_ANSWER_SECONDS", 0)
    monkeypatch.setattr(journal.ServerJournal, "ask_budgets", lambda _: never.wait(60))
    call()
    never.set()
    assert len(list(meter.store.entries())) == 2


def test_a_threshold_that_no_process_sees_itself_pass_is_told_by_who_sends_the_record(
    call, meter, postgres_url, caplog
):
    meter.budgets.set(Budget(model="*", limit_requests=6, hard=False, thresholds=(100,), name="soft"))
    for _ in range(4):
        call()
    meter.flush()
    elsewhere = tokenmeter.make_meter(store=postgres_url)
    answer = {"model": "gpt-4o-mini", "usage": {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}}
    elsewhere.record(answer, provider="openai", endpoint="chat.completions")
    elsewhere.flush()
    call()  # the sixth; as far as this process knows, the fifth
    meter.flush()
    elsewhere.close()
    assert [one.threshold for one in meter.store.crossings()] == [6]
    assert caplog.text.count("Budget 'soft' (model=gpt-4o-mini) passed 100%") == 1
