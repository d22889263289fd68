"""FastAPI: what a customer may spend stands in the application's own database and changes while it runs."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

ADA, BOB = {"x-user": "ada"}, {"x-user": "bob"}


@pytest.fixture
def client(load):
    with TestClient(load("with_fastapi_plans").app) as client:
        yield client


def ask(client, who):
    return client.post("/ask", params={"question": "Name three rivers."}, headers=who)


def test_a_plan_limits_its_customers_and_another_one_holds_with_the_next_call(client, fake_provider):
    client.put("/plan/free", headers=ADA)
    assert [ask(client, ADA).status_code for _ in range(4)] == [200, 200, 200, 429]
    client.put("/plan/pro", headers=ADA)
    assert [ask(client, ADA).status_code for _ in range(2)] == [200, 200]
    assert client.put("/plan/mistyped", headers=ADA).status_code == 404
    client.put("/plan/closed", headers=ADA)
    assert ask(client, ADA).status_code == 429
    assert len(fake_provider.requests) == 5  # what was stopped was never sent


def test_whom_the_database_does_not_know_may_not_call(client, fake_provider):
    stop = ask(client, BOB)
    assert (stop.status_code, len(fake_provider.requests)) == (429, 0)
    assert "bob" not in stop.text


def test_an_account_shows_the_plan_and_what_is_left_of_it(client):
    client.put("/plan/free", headers=ADA)
    ask(client, ADA)
    left = {one["unit"]: one for one in client.get("/account", headers=ADA).json()}
    assert (left["requests"]["limit"], left["requests"]["left"]) == ("3", "2")
    assert left["usd"]["limit"] == "0.5"
    assert 0 < float(left["usd"]["left"]) < 0.5
