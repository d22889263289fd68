"""A signed checkpoint that was kept elsewhere shows whether the ledger is still the one that it was."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import tokenmeter
from tokenmeter.checkpoints import Checkpoint
from tokenmeter.cli.app import app
from tokenmeter.errors import ConfigurationError

KEY = bytes(range(32))


@pytest.fixture
def meter(store_url):
    made = tokenmeter.make_meter(store=store_url)
    record(made, 1)
    yield made
    made.close()


def record(meter, number):
    meter.record(
        {"prompt_tokens": number, "completion_tokens": 1},
        provider="openai",
        endpoint="chat.completions",
        model="gpt-5-mini",
        response_id=f"r{number}",
    )


@pytest.mark.parametrize("key", [None, KEY], ids=["the ledger's own key", "a key of the user's"])
def test_a_ledger_that_went_on_agrees_with_its_checkpoint(meter, key):
    kept = meter.checkpoint(key=key)
    record(meter, 2)
    for form in (kept, kept.to_json()):
        found = meter.verify(checkpoint=form, key=key)
        assert (found.ok, found.after_head, kept.entries) == (True, 1, 1)


def test_a_checkpoint_of_a_ledger_that_was_still_empty_agrees(tmp_path):
    meter = tokenmeter.make_meter(store=f"sqlite:///{tmp_path / 'new.db'}")
    kept = meter.checkpoint(key=KEY)
    for came_after in (0, 1):
        found = meter.verify(checkpoint=kept, key=KEY)
        assert (found.ok, found.after_head) == (True, came_after)
        record(meter, 1)
    meter.close()


def test_another_past_is_found(meter, tmp_path):
    other = tokenmeter.make_meter(store=f"sqlite:///{tmp_path / 'other.db'}")
    record(other, 3)
    found = other.verify(checkpoint=meter.checkpoint(key=KEY), key=KEY)
    other.close()
    assert [fault.kind for fault in found.faults] == ["head"]


@pytest.mark.parametrize("change", [{"entries": 5}, {"head": "00" * 32}, {"ledger": "sqlite:///x.db"}])
def test_a_checkpoint_that_was_changed_is_told(meter, change):
    found = meter.verify(checkpoint=replace(meter.checkpoint(key=KEY), **change), key=KEY)
    assert found.faults[0].kind == "checkpoint"
    assert "not what was signed" in found.faults[0].detail


def test_another_key_is_told_and_no_key_stands_in_a_checkpoint(meter):
    kept = meter.checkpoint(key=KEY)
    found = meter.verify(checkpoint=kept, key=KEY[::-1])
    assert [(fault.kind, fault.detail) for fault in found.faults] == [("checkpoint", "it was signed with another key.")]
    assert KEY.hex() not in kept.to_json()


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '{"head": 1}'])
def test_what_is_no_checkpoint_is_refused(text):
    with pytest.raises(ConfigurationError, match="not a checkpoint"):
        Checkpoint.from_json(text)


def test_a_key_that_can_be_guessed_is_refused(meter):
    with pytest.raises(ConfigurationError, match="32 to"):
        meter.checkpoint(key=b"secret")


@pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
def test_the_commands_sign_and_check(meter, tmp_path):
    key, kept = tmp_path / "audit.key", tmp_path / "kept.json"
    key.write_bytes(KEY)
    ledger = ["--store", meter.store.url]
    signed = CliRunner().invoke(app, ["checkpoint", "--key", str(key), *ledger])
    kept.write_text(signed.output)
    assert json.loads(signed.output)["entries"] == 1
    fine = CliRunner().invoke(app, ["verify", "--checkpoint", str(kept), "--key", str(key), *ledger])
    assert (fine.exit_code, "0 records came after" in fine.output) == (0, True)
    kept.write_text(signed.output.replace('"entries": 1', '"entries": 2'))
    changed = CliRunner().invoke(app, ["verify", "--checkpoint", str(kept), "--key", str(key), *ledger])
    assert (changed.exit_code, "not what was signed" in changed.output) == (1, True)
    gone = CliRunner().invoke(app, ["verify", "--checkpoint", str(tmp_path / "none"), *ledger])
    assert gone.exit_code != 0
