"""FastAPI: every kind of dependency, endpoint and answer is attributed; the form that cannot be says so."""

from __future__ import annotations

import pytest

import tokenmeter

fastapi = pytest.importorskip("fastapi")
from fastapi.testclient import TestClient  # noqa: E402

ADA = {"x-user": "ada", "x-team": "search"}


@pytest.fixture
def client(load):
    with TestClient(load("with_fastapi").app) as client:
        yield client


@pytest.mark.parametrize("path", ["/plain", "/async", "/mixed", "/stream"])
def test_whoever_asks_pays_and_nobody_else(client, accounts, warnings, path):
    for user in ("ada", "grace"):
        assert client.get(path, headers={**ADA, "x-user": user}).status_code == 200
    assert accounts() == [("ada", "search", path), ("grace", "search", path)]
    assert warnings.messages == []


def test_background_tasks_are_on_the_account_of_their_request(client, accounts, warnings):
    assert client.get("/background", headers=ADA).json() == {"user": "ada"}
    assert accounts() == [("ada", "search", "/background")] * 2
    assert warnings.messages == []


def test_sockets_too(client, accounts):
    with client.websocket_connect("/socket", headers=ADA) as socket:
        for _ in range(2):
            socket.send_text("Hello")
            assert socket.receive_text()
    assert accounts() == [("ada", "search", "/socket")] * 2


def test_a_cap_on_every_member_holds_behind_a_dependency_in_a_thread(load, accounts):
    app = load("with_fastapi", budgets=[tokenmeter.Budget(member="*", limit_requests=1)]).app
    with TestClient(app, raise_server_exceptions=False) as client:
        answers = [client.get("/plain", headers=ADA).status_code for _ in range(3)]
    assert answers == [200, 500, 500]
    assert accounts() == [("ada", "search", "/plain")]


def test_a_block_in_a_synchronous_dependency_with_yield_says_that_it_does_not_reach(configured, warnings, accounts):
    configured()
    app = fastapi.FastAPI()
    client = tokenmeter.OpenAI()

    def user():
        with tokenmeter.attribute(member="ada"):
            yield "ada"

    @app.get("/")
    def endpoint(user=fastapi.Depends(user)):  # noqa: B008 - FastAPI's way
        client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": user}])

    with TestClient(app) as browser:
        for _ in range(3):
            browser.get("/")
    assert accounts() == [("-", "-", "-")] * 3
    assert len(warnings.messages) == 1
    assert "left in another context" in warnings.text
    assert "tokenmeter.web" in warnings.text
    assert f"{__file__}:" in warnings.text
