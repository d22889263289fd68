"""A cap of K calls lets exactly K requests reach the provider, whoever sends them; never more when some are killed."""

import random
import subprocess
import sys
import threading
import time

import pytest

import tokenmeter
from tokenmeter.errors import BudgetExceededError

SHARED = pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
LIMIT = 150
BUDGETS = [
    tokenmeter.Budget(member="*", limit_requests=LIMIT, name="each"),
    tokenmeter.Budget(limit_usd=1000, name="all"),
]
CHAT = {
    "model": "gpt-5-mini",
    "messages": [{"role": "user", "content": "How many are we?"}],
    "max_completion_tokens": 50,
}


def through_openai(base_url):
    from tokenmeter.openai import OpenAI

    client = OpenAI(base_url=f"{base_url}/v1", api_key="sk-test", max_retries=0)
    return lambda streamed: client.chat.completions.create(**CHAT, stream=streamed)


def through_google(base_url):
    from tokenmeter.google import Client

    client = Client(api_key="AIza-test-0123456789", http_options={"base_url": base_url})
    asked = {"model": "gemini-2.5-flash", "contents": "How many are we?", "config": {"max_output_tokens": 50}}

    def ask(streamed):
        return client.models.generate_content_stream(**asked) if streamed else client.models.generate_content(**asked)

    return ask


def work(sdk, url, base_url, threads, patience):
    """What runs in each process: every thread makes the same call, so that it is planned, until it is stopped."""
    tokenmeter.configure(store=url, budgets=BUDGETS)
    ask = {"openai": through_openai, "google": through_google}[sdk](base_url)

    def call():
        with tokenmeter.attribute(member="ada"):
            for turn in range(10**6):
                try:
                    answer = ask(turn % 3 == 2)
                    if turn % 3 == 2:
                        assert list(answer)
                except BudgetExceededError as stop:
                    if not stop.retryable or patience == "none":
                        return
                    time.sleep(0.01)

    workers = [threading.Thread(target=call) for _ in range(int(threads))]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    tokenmeter.default_meter().close()


@pytest.fixture
def spawn(store_url, provider):
    """Starts workers; kills what is left of them."""
    running = []

    def start(threads, patience, sdk="openai"):
        arguments = [sdk, store_url, provider.url, str(threads), patience]
        process = subprocess.Popen([sys.executable, __file__, *arguments])
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


@SHARED
@pytest.mark.parametrize(("sdk", "processes"), [("openai", 6), ("google", 3)])
def test_exactly_as_many_requests_as_the_cap_allows_reach_the_provider(sdk, processes, store_url, provider, spawn):
    workers = [spawn(threads=4, patience="until holds are settled", sdk=sdk) for _ in range(processes)]
    assert [process.wait(timeout=180) for process in workers] == [0] * processes
    meter = tokenmeter.make_meter(store=store_url, budgets=BUDGETS)
    assert len(provider.requests) == LIMIT
    assert sum(entry.kind == "usage" for entry in meter.store.entries()) == LIMIT
    standing = {each.budget: (each.spent, each.reserved) for each in meter.remaining(member="ada")}
    assert standing["each"] == (LIMIT, 0)
    assert meter.verify().ok
    meter.close()


@SHARED
def test_no_more_than_the_cap_reach_the_provider_when_processes_are_killed(store_url, provider, spawn):
    chance = random.Random(7)
    # What the killed ones held stays held for a while: nobody waits for that here.
    workers = [spawn(threads=3, patience="none") for _ in range(6)]
    for process in workers[:3]:
        while len(provider.requests) < LIMIT // 6 and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.random() / 20)
        process.kill()
    for process in workers[3:]:
        assert process.wait(timeout=180) == 0
    assert len(provider.requests) <= LIMIT
    meter = tokenmeter.make_meter(store=store_url, budgets=BUDGETS)
    assert not meter.audit_budgets()
    assert meter.verify().ok
    meter.close()


if __name__ == "__main__":
    work(*sys.argv[1:])
