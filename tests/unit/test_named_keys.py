"""Names of API keys in settings hold as soon as a ledger is read, in a process that has made no call."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest

import tokenmeter
from tokenmeter.config import load_settings

KEY = "sk-test-named-0001"
ANSWER = {"model": "gpt-5-mini", "usage": {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}}


@pytest.fixture
def used(store_url):
    """The URL of a ledger with two calls of a key that had no name then; of one in memory there is no other process."""
    if store_url.startswith("memory"):
        pytest.skip("one process has it")
    with tokenmeter.attribute(member="ada"):
        meter = tokenmeter.make_meter(store=store_url, config={})
        for _ in range(2):
            assert meter.record(ANSWER, provider="openai", endpoint="chat.completions", api_key=KEY)
        meter.flush()
        meter.close()
    yield store_url
    tokenmeter.reset()


def test_names_of_configure_hold_before_any_call(used):
    tokenmeter.configure(store=used, config={}, api_keys={"prod": KEY})
    assert [row.group["api_key"] for row in tokenmeter.report(by="api_key").rows] == ["prod"]
    assert [entry.api_key.label for entry in tokenmeter.entries(where={"api_key": "prod"})] == ["prod", "prod"]
    tokenmeter.configure(budgets=[tokenmeter.Budget(api_key="*", limit_requests=9)])
    assert [balance.spent for balance in tokenmeter.remaining(api_key="prod")] == [2]
    tokenmeter.configure(api_keys={"live": KEY})
    assert [row.group["api_key"] for row in tokenmeter.report(by="api_key").rows] == ["prod", "live"][1:]


@pytest.mark.parametrize(
    "command",
    [["report", "--by", "api_key"], ["entries", "--where", "api_key=prod", "--json"], ["remaining", "api_key=prod"]],
)
def test_names_of_a_file_hold_on_the_command_line(used, tmp_path, command):
    (tmp_path / "tokenmeter.toml").write_text(
        f'store = "{used}"\n[api_keys]\nprod = "env:THE_KEY"\n[[budgets]]\napi_key = "*"\nlimit_requests = 9\n'
    )
    environment = {**os.environ, "THE_KEY": KEY, "COLUMNS": "200"}
    asked = [sys.executable, "-m", "tokenmeter", *command]
    done = subprocess.run(asked, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "prod" in done.stdout
    assert "...0001" not in done.stdout
    assert "sk-test" not in done.stdout + done.stderr


def test_keys_at_hand_are_neither_shown_nor_pickled():
    settings = load_settings(config={}, api_keys={"prod": KEY, "later": "env:NOT_SET"})
    assert settings.keys_at_hand() == {KEY: "prod"}
    assert KEY not in repr(settings) + repr(settings.keys_at_hand()) + str(settings.model_dump())
    assert KEY.encode() not in pickle.dumps(settings)


def test_settings_that_make_twins_of_two_budgets_are_refused_and_change_nothing(used):
    tokenmeter.configure(store=used, config={}, api_keys={"prod": KEY})
    (key,) = {entry.api_key.fingerprint for entry in tokenmeter.entries()}
    twins = [tokenmeter.Budget(api_key=name, limit_usd=limit) for name, limit in (("live", 5), (key, 6))]
    with pytest.raises(tokenmeter.ConfigurationError, match="limit the same calls over the same window"):
        tokenmeter.configure(api_keys={"live": KEY}, budgets=twins)
    assert [row.group["api_key"] for row in tokenmeter.report(by="api_key").rows] == ["prod"]
    assert tokenmeter.remaining() == []
