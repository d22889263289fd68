"""Whoever is asked over a network and never has done answering is given up, in words, by all that ask."""

import socket
import threading
from datetime import UTC, datetime
from decimal import Decimal

import pytest

import tokenmeter
from tokenmeter import prices
from tokenmeter.billing import HandOverError, OpenMeter
from tokenmeter.billing import targets as systems
from tokenmeter.billing.handover import Reading
from tokenmeter.budgets import Alert, mail, targets
from tokenmeter.errors import PricingError, ReconciliationError, StoreUnavailableError
from tokenmeter.patience import wait_for
from tokenmeter.pricing import updating
from tokenmeter.reconciliation import paging
from tokenmeter.stores.archive import clickhouse

#: More than a beat of a server that goes on for ever, and less than any timeout of a socket.
BOUND = 0.6


class Endless:
    """A server that takes every connection and answers it with a byte now and then, or not at all."""

    def __init__(self, said):
        self.said, self.ended = said, threading.Event()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.taking = threading.Thread(target=self.take)
        self.taking.start()
        self.talking = []

    def take(self):
        while not self.ended.is_set():
            connection, _ = self.listening.accept()
            self.talking.append(threading.Thread(target=self.talk, args=[connection]))
            self.talking[-1].start()

    def talk(self, connection):
        with connection:
            try:
                connection.sendall(self.said)
                while not self.ended.wait(0.05):
                    if self.said:
                        connection.sendall(b"1")
            except OSError:  # who asked has hung up
                pass

    def close(self):
        self.ended.set()
        socket.create_connection(("127.0.0.1", self.port)).close()
        for thread in [self.taking, *self.talking]:
            thread.join()
        self.listening.close()


@pytest.fixture(
    params=[b"", b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 400 No\r\ncontent-length: 99999\r\n\r\n"],
    ids=["silence", "an endless head", "an endless refusal"],
)
def endless(request):
    server = Endless(request.param)
    yield server
    server.close()


@pytest.fixture
def url(endless):
    return f"http://127.0.0.1:{endless.port}"


def test_a_price_list(url, monkeypatch):
    monkeypatch.setattr(updating, "_LONGEST", BOUND)
    with pytest.raises(PricingError, match=r"could not be fetched: (nothing came of it|HTTP Error 400)"):
        prices.update(url=f"{url}/prices.json")


def test_a_price_list_whose_bytes_never_end(monkeypatch):
    server = Endless(b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n[")
    monkeypatch.setattr(updating, "_LONGEST", BOUND)
    with pytest.raises(PricingError, match="could not be fetched: nothing came of it"):
        prices.update(url=f"http://127.0.0.1:{server.port}/prices.json")
    server.close()


ALERT = Alert(
    budget="members",
    scope={"member": "ada"},
    unit="usd",
    threshold=80,
    limit=Decimal(50),
    spent=Decimal(40),
    window_start=datetime(2026, 11, 1, tzinfo=UTC),
    window_end=datetime(2026, 12, 1, tzinfo=UTC),
    at=datetime(2026, 11, 23, tzinfo=UTC),
    hard=True,
)


def test_a_webhook(url, monkeypatch):
    monkeypatch.setattr(targets, "STEPS", BOUND / 5)
    with pytest.raises(targets.TargetError, match="did not take alert"):
        targets.Webhook(url, attempts=1)(ALERT)


def test_a_mail_server(endless, monkeypatch):
    monkeypatch.setattr(mail, "STEPS", BOUND / 10)
    target = mail.Email("a@example.com", sender="b@example.com", host="127.0.0.1", port=endless.port, security="none")
    with pytest.raises(targets.TargetError, match="could not be sent"):
        target(ALERT)


READING = Reading(
    identifier="r1", account="member=ada", customer="c", sku_meter="input", value=1, at=ALERT.at, revision=1
)


def test_a_billing_system(url, monkeypatch):
    monkeypatch.setattr(systems, "STEPS", BOUND / 30)
    monkeypatch.setattr(systems, "_SECONDS", 30)
    with pytest.raises(HandOverError):
        OpenMeter(url, "k").send(READING)


def test_clickhouse(url, monkeypatch):
    monkeypatch.setattr(clickhouse, "_SECONDS", BOUND)
    with pytest.raises(StoreUnavailableError, match="ClickHouse at"):
        clickhouse.ClickHouse(url)("SELECT 1")


def test_a_providers_reports(url, monkeypatch):
    openai = pytest.importorskip("openai")
    monkeypatch.setattr(paging, "_LONGEST_ANSWER", BOUND)
    client = openai.OpenAI(api_key="k", admin_api_key="admin", base_url=url, max_retries=0)
    with pytest.raises(ReconciliationError, match="nothing was compared"):
        tokenmeter.reconcile(provider="openai", period="2026-10", source=client)


def test_what_moves_is_waited_for():
    """Each step takes nearly as long as nothing may move."""
    steps = []

    def work(tell):
        while len(steps) < 4:
            threading.Event().wait(BOUND / 2)
            steps.append(tell())
        return len(steps)

    assert wait_for(work, BOUND) == 4


def test_the_error_of_the_work_is_the_error():
    def work(_):
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        wait_for(work, 5)
