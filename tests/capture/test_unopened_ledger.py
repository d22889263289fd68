"""A ledger that cannot be opened at first need: caps of the settings stop calls; else they go on, and are kept."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

import pytest

import tokenmeter
from tokenmeter import StoreUnavailableError, default
from tokenmeter.meter import recording

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
async def test_where_nothing_would_stop_it_a_call_goes_on_and_is_recorded_later(
    kind, clients, do, settings, caplog, monkeypatch
):
    monkeypatch.setattr(recording, "_AGAIN", 3600)  # only who reads opens the ledger here
    path, kept = settings(SETTINGS[kind])
    read = []
    monkeypatch.setattr(default, "load_settings", lambda: read.append(1) or tokenmeter.config.load_settings())
    with caplog.at_level(logging.WARNING, logger="tokenmeter"):
        with tokenmeter.attribute(member="ada") as block:
            for name in ("OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic", "OpenAI"):
                assert await call(clients, do, name)
            tokenmeter.record(
                {"id": "by-hand", "usage": {"prompt_tokens": 5, "completion_tokens": 7}},
                provider="openai", endpoint="chat.completions", model="gpt-5-mini", api_key="sk-by-hand-1234567",
            )  # fmt: skip
        assert len(read) == 1
        assert caplog.text.count("could not record a call") == caplog.text.count("kept in memory") == 1
        path.write_bytes(kept)
        entries = list(tokenmeter.entries())
    assert "can record a call again" in caplog.text
    assert block.requests == len(entries) == 6
    assert block.billed_cost == sum(entry.billed_cost for entry in entries)
    meter = tokenmeter.default_meter()
    texts = ["sk-by-hand-1234567", *(key for key in meter.keys.known if key != "sk-by-hand-1234567")]
    assert {entry.api_key.fingerprint for entry in entries} == {meter.identify(text).fingerprint for text in texts}
    assert {entry.attribution.member for entry in entries} == {"ada"}
    tokenmeter.reset()
    assert len(list(tokenmeter.entries())) == 6


async def test_a_cap_of_a_block_holds_where_the_ledger_cannot_be_opened(clients, do, settings, provider):
    settings("")
    with tokenmeter.budget(limit_usd="0.000001"), pytest.raises(tokenmeter.BudgetExceededError):
        await call(clients, do, "OpenAI")
    assert not provider.requests


async def test_a_ledger_that_can_be_opened_again_is_found_while_nobody_asks(clients, do, settings, monkeypatch):
    monkeypatch.setattr(recording, "_AGAIN", 0.01)
    path, kept = settings("")
    await call(clients, do, "OpenAI")
    path.write_bytes(kept)
    for _ in range(500):
        if default._default is not None:
            break
        await asyncio.sleep(0.01)
    await call(clients, do, "OpenAI")
    for _ in range(500):  # whoever found the ledger writes what was kept a moment later
        if len(list(tokenmeter.entries())) == 2:
            break
        await asyncio.sleep(0.01)
    assert len(list(tokenmeter.entries())) == 2


async def test_what_is_kept_when_the_meter_is_reset_goes_to_no_later_ledger(clients, do, settings, monkeypatch):
    monkeypatch.setattr(recording, "_AGAIN", 0.01)
    path, kept = settings("")
    await call(clients, do, "OpenAI")
    waiting = default._unopened[1].waiting
    tokenmeter.reset()
    path.write_bytes(kept)
    assert list(tokenmeter.entries()) == []
    waiting.kept.clear()  # else they are told when this process ends


async def test_a_flush_says_how_many_calls_wait_for_a_ledger(clients, do, settings):
    path, kept = settings("")
    assert tokenmeter.flush() == 0
    await call(clients, do, "OpenAI")
    assert (tokenmeter.flush(), await tokenmeter.aflush()) == (1, 1)
    path.write_bytes(kept)
    assert tokenmeter.flush() == 0
    assert len(list(tokenmeter.entries())) == 1


async def test_what_makes_no_bill_goes_on_under_a_cap(clients, do, settings):
    settings(SETTINGS["a hard cap"])
    for name in ("OpenAI", "AsyncOpenAI"):
        client = tokenmeter.wrap(clients.make(name, metered=False))
        listed = client.models.list()
        assert (await listed if name.startswith("Async") else listed).data


async def test_a_report_says_why_there_is_none(settings):
    settings(SETTINGS["a hard cap"], migrate)
    with pytest.raises(tokenmeter.SchemaVersionError):
        tokenmeter.report()
