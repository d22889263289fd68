"""A ledger that cannot be opened at first need: caps of the settings stop calls; without any they go on."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter

import pytest

import tokenmeter
from tokenmeter import StoreUnavailableError, default

CHAT = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello"}]}
MESSAGE = {"model": "claude-sonnet-5", "max_tokens": 64, "messages": CHAT["messages"]}

SETTINGS = {
    "a hard cap": '[[budgets]]\nname = "all"\nlimit_usd = 10\n',
    "a cap on others": '[[budgets]]\nname = "all"\nmember = "ada"\nlimit_usd = 10\n',
    "require": 'require = ["member"]\n',
    "an open cap": '[[budgets]]\nname = "all"\nlimit_usd = 10\nstore_failure = "open"\n',
    "a cap of last year": '[[budgets]]\nname = "all"\nlimit_usd = 10\nends = "2025-12-31"\n',
    "a soft cap": '[[budgets]]\nname = "all"\nlimit_usd = 10\nhard = false\n',
    "require, told": 'require = ["member"]\non_missing = "warn"\n',
    "nothing": "",
}


def damage(path):
    path.write_bytes(b"\xff" * 8_192)


def migrate(path):
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Writes settings whose ledger was made before, and spoiled since; returns the ledger's path."""

    def write(text, spoil=damage):
        path = tmp_path / "ledger.db"
        tokenmeter.make_meter(store=f"sqlite:///{path}").close()
        kept = path.read_bytes()
        spoil(path)
        (tmp_path / "tokenmeter.toml").write_text(f'store = "sqlite:///{path}"\n{text}')
        monkeypatch.setenv("TOKENMETER_CONFIG", str(tmp_path / "tokenmeter.toml"))
        monkeypatch.delenv("TOKENMETER_STORE", raising=False)
        monkeypatch.setattr("tokenmeter.capture.sdk._complained", Counter())
        monkeypatch.setattr(default, "_unmetered", 0)
        tokenmeter.reset()
        return path, kept

    yield write
    tokenmeter.reset()


async def call(clients, do, name):
    client = tokenmeter.wrap(clients.make(name, metered=False))
    if "OpenAI" in name:
        return await do(client.chat.completions.create(**CHAT))
    return await do(client.messages.create(**MESSAGE))


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic"])
@pytest.mark.parametrize("kind", ["a hard cap", "a cap on others", "require"])
@pytest.mark.parametrize("spoil", [damage, migrate])
async def test_what_may_stop_a_call_stops_it_where_the_ledger_cannot_be_opened(
    name, kind, spoil, clients, do, settings, provider
):
    settings(SETTINGS[kind], spoil)
    with pytest.raises(StoreUnavailableError, match=r"cannot be opened .*may stop this call.* was not sent"):
        await call(clients, do, name)
    assert not provider.requests


@pytest.mark.parametrize("kind", ["an open cap", "a soft cap", "a cap of last year", "require, told", "nothing"])
async def test_where_nothing_would_stop_it_a_call_goes_on(kind, clients, do, settings, caplog):
    settings(SETTINGS[kind])
    with caplog.at_level(logging.ERROR, logger="tokenmeter"):
        for _ in range(12):
            assert (await call(clients, do, "OpenAI")).choices
    assert caplog.text.count("could not find its meter") == 2
    assert "10 times by now" in caplog.text


async def test_what_makes_no_bill_goes_on_under_a_cap(clients, do, settings):
    settings(SETTINGS["a hard cap"])
    for name in ("OpenAI", "AsyncOpenAI"):
        client = tokenmeter.wrap(clients.make(name, metered=False))
        listed = client.models.list()
        assert (await listed if name.startswith("Async") else listed).data


async def test_a_ledger_that_can_be_opened_again_is_told_and_used(clients, do, settings, caplog):
    path, kept = settings("")
    await call(clients, do, "OpenAI")
    path.write_bytes(kept)
    with caplog.at_level(logging.WARNING, logger="tokenmeter"):
        await call(clients, do, "OpenAI")
    assert "can be opened now" in caplog.text
    assert len(list(tokenmeter.default_meter().entries())) == 1


async def test_a_report_says_why_there_is_none(settings):
    settings(SETTINGS["a hard cap"], migrate)
    with pytest.raises(tokenmeter.SchemaVersionError):
        tokenmeter.report()
