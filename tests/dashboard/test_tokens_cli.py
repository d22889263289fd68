"""Tokens from the command line: made, kept as hashes, listed, and good for what they were made for."""

from __future__ import annotations

import json
import tomllib

import pytest
from typer.testing import CliRunner

from tokenmeter import make_meter
from tokenmeter.cli.app import app
from tokenmeter.errors import ConfigurationError


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "tokenmeter.toml").write_text("multiplier = '1.05'\n[api_keys]\nprod = 'env:PROD'")
    runner = CliRunner()

    def run(*arguments):
        return runner.invoke(app, ["dashboard", "token", *arguments])

    return run


def test_a_token_is_made_once_and_kept_as_its_hash(run, tmp_path):
    made = json.loads(run("create", "Ada L.", "--only", "member=ada", "--only", "tag:env=prod", "--json").stdout)
    text = (tmp_path / "tokenmeter.toml").read_text()
    assert made["token"] not in text
    row = tomllib.loads(text)["dashboard"]["tokens"]["Ada L."]
    assert row["only"] == {"member": ["ada"], "tag:env": ["prod"]}
    assert row["can"] == ["read"]
    assert "Ada L." in run("list").stdout
    again = run("create", "Ada L.")
    assert isinstance(again.exception, ConfigurationError)
    assert "already" in str(again.exception)


@pytest.mark.parametrize(
    "wrong",
    [("--can", "fly"), ("--only", "colour=red"), ("--only", "member"), ("--only", "member="), ("--expires", "soon")],
)
def test_a_wrong_token_leaves_the_file_as_it_was(run, tmp_path, wrong):
    before = (tmp_path / "tokenmeter.toml").read_text()
    assert isinstance(run("create", "x", *wrong).exception, ConfigurationError)
    assert (tmp_path / "tokenmeter.toml").read_text() == before


def test_the_token_opens_its_part(run, tmp_path, serve):
    made = json.loads(run("create", "ada", "--only", "member=ada", "--json").stdout)
    meter = make_meter(store="memory:", config=tmp_path / "tokenmeter.toml")
    try:
        served = serve(meter)
        assert served.get("/api/v1/me")[0] == 401
        status, _, body = served.get("/api/v1/me", authorization=f"Bearer {made['token']}")
        assert (status, json.loads(body)["only"]) == (200, {"member": ["ada"]})
        assert served.get("/", authorization=f"Bearer {made['token']}")[0] == 200
    finally:
        meter.close()
