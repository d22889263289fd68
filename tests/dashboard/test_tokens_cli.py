"""Tokens from the command line: made, kept as hashes, listed, and good for what they were made for."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokenmeter import make_meter
from tokenmeter.cli.app import app
from tokenmeter.errors import ConfigurationError
from tokenmeter.serving.access import Tokens


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


def test_a_token_that_is_revoked_is_gone_with_the_next_request_and_a_new_one_is_known(run, tmp_path, serve):
    made = {name: json.loads(run("create", name, "--json").stdout)["token"] for name in ("ada", "Ops, all")}
    before = (tmp_path / "tokenmeter.toml").read_text()
    meter = make_meter(store="memory:", config=tmp_path / "tokenmeter.toml")
    try:
        served = serve(meter)
        form = {"content_type": "application/x-www-form-urlencoded"}
        login = served.get("/login", method="POST", body=f"token={made['Ops, all']}", **form)
        cookie = login[1]["set-cookie"].partition(";")[0]
        assert served.get("/api/v1/me", cookie=cookie)[0] == 200
        assert run("revoke", "Ops, all").exit_code == 0
        assert served.get("/api/v1/me", cookie=cookie)[0] == 401
        assert served.get("/api/v1/me", authorization=f"Bearer {made['Ops, all']}")[0] == 401
        assert served.get("/api/v1/me", authorization=f"Bearer {made['ada']}")[0] == 200
        new = json.loads(run("create", "bob", "--can", "read", "--can", "budgets", "--json").stdout)["token"]
        assert json.loads(served.get("/api/v1/me", authorization=f"Bearer {new}")[2])["can"] == ["budgets", "read"]
        assert "set_budget" in served.get("/api/v1/openapi.json", authorization=f"Bearer {new}")[2]
        for name in ("ada", "bob"):
            assert run("revoke", name).exit_code == 0
        assert served.get("/api/v1/me")[0] == 401  # there was a token: nobody comes in without one
        assert (tmp_path / "tokenmeter.toml").read_text().strip() == before.partition("[dashboard")[0].strip()
        (tmp_path / "tokenmeter.toml").write_text("multiplier = ")
        assert served.get("/api/v1/me")[0] == 401
    finally:
        meter.close()


def test_what_stands_about_a_revoked_token_stays_as_it_was(run, tmp_path):
    file = tmp_path / "tokenmeter.toml"
    rest = b'# Agreed in March.\r\n\r\n[[budgets]]\r\nmember = "*"\r\nlimit_usd = "5"\r\n'
    file.write_bytes(b'[dashboard.tokens.ada]\r\n# hers\r\nhash = "sha256:' + b"0" * 64 + b'"\r\n\r\n' + rest)
    assert run("revoke", "ada").exit_code == 0
    assert file.read_bytes() == rest


def test_a_live_page_ends_with_its_token(run, tmp_path, serve):
    token = json.loads(run("create", "ada", "--json").stdout)["token"]
    meter = make_meter(store="memory:", config=tmp_path / "tokenmeter.toml")
    try:
        served = serve(meter)
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
        connection.request("GET", "/events", headers={"authorization": f"Bearer {token}"})
        events = connection.getresponse()
        while not events.readline().startswith(b"data:"):
            pass
        assert run("revoke", "ada").exit_code == 0
        meter.record({"input_tokens": 1, "output_tokens": 1}, provider="openai", endpoint="responses", model="gpt-5")
        assert b"data:" not in events.read()
        connection.close()
    finally:
        meter.close()


def test_two_that_change_the_file_at_once_undo_nothing_of_each_other(tmp_path):
    (tmp_path / "tokenmeter.toml").write_text("multiplier = '1.05'\n")
    base = [sys.executable, "-m", "tokenmeter", "dashboard", "token"]

    def at_once(*commands):
        started = [subprocess.Popen([*base, *each], cwd=tmp_path, stdout=subprocess.DEVNULL) for each in commands]
        return [one.wait(60) for one in started]

    assert at_once(*(("create", name) for name in ("ada", "bob", "cy"))) == [0, 0, 0]
    assert at_once(("revoke", "ada"), ("revoke", "bob"), ("create", "dan")) == [0, 0, 0]
    text = (tmp_path / "tokenmeter.toml").read_text()
    assert tomllib.loads(text)["dashboard"]["tokens"].keys() == {"cy", "dan"}


def test_of_two_tokens_of_one_name_made_at_once_there_is_one(tmp_path):
    (tmp_path / "tokenmeter.toml").write_text("")
    command = [sys.executable, "-m", "tokenmeter", "dashboard", "token", "create", "ada"]
    started = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)
    ]
    assert sorted(one.wait(60) == 0 for one in started) == [False, True]
    assert tomllib.loads((tmp_path / "tokenmeter.toml").read_text())["dashboard"]["tokens"].keys() == {"ada"}


def test_who_is_not_known_cannot_be_revoked(run, tmp_path):
    run("create", "ada")
    before = (tmp_path / "tokenmeter.toml").read_text()
    refused = run("revoke", "bob").exception
    assert isinstance(refused, ConfigurationError)
    assert "'ada'" in str(refused)
    (tmp_path / "tokenmeter.toml").write_text(f'dashboard.tokens.eve.hash = "sha256:{"0" * 64}"\n')
    assert "by hand" in str(run("revoke", "eve").exception)
    assert before.count("[dashboard.tokens") == 1


@pytest.mark.parametrize(
    "wrong",
    [("--can", "fly"), ("--only", "colour=red"), ("--only", "member"), ("--only", "member="), ("--expires", "soon")],
)
def test_a_wrong_token_leaves_the_file_as_it_was(run, tmp_path, wrong):
    before = (tmp_path / "tokenmeter.toml").read_text()
    assert isinstance(run("create", "x", *wrong).exception, ConfigurationError)
    assert (tmp_path / "tokenmeter.toml").read_text() == before


def test_a_token_that_acts_reads_too(run, tmp_path, serve):
    made = json.loads(run("create", "ops", "--can", "budgets", "--json").stdout)
    meter = make_meter(store="memory:", config=tmp_path / "tokenmeter.toml")
    try:
        served = serve(meter)
        assert served.get("/api/v1/report", authorization=f"Bearer {made['token']}")[0] == 200
        told = json.loads(served.get("/api/v1/me", authorization=f"Bearer {made['token']}")[2])
        assert told["can"] == ["budgets", "read"]
    finally:
        meter.close()


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


def test_a_token_that_was_revoked_before_the_application_was_made_opens_nothing(run, tmp_path, serve):
    token = json.loads(run("create", "ada", "--json").stdout)["token"]
    meter = make_meter(store="memory:", config=tmp_path / "tokenmeter.toml")
    try:
        run("revoke", "ada")
        assert serve(meter).get("/api/v1/me", authorization=f"Bearer {token}")[0] == 401
    finally:
        meter.close()


def test_a_token_is_revoked_where_a_link_leads_and_nobody_reads_along(run, tmp_path, monkeypatch):
    run("create", "ada")
    real, link = tmp_path / "real.toml", tmp_path / "tokenmeter.toml"
    link.rename(real)
    real.chmod(0o600)
    link.symlink_to(real)
    seen = []
    chmod = Path.chmod
    monkeypatch.setattr(Path, "chmod", lambda self, mode: (seen.append(self.stat().st_mode), chmod(self, mode)))
    assert run("revoke", "ada").exit_code == 0
    assert link.is_symlink()
    assert "ada" not in re.findall(r"[\w-]+", real.read_text())
    assert not any(mode & 0o077 for mode in [*seen, real.stat().st_mode])


def test_the_settings_named_before_token_are_those_that_get_it(run, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text("multiplier = '1.05'\n")
    made = CliRunner().invoke(app, ["dashboard", "--config", str(other), "token", "create", "ada", "--json"])
    assert made.exit_code == 0, made
    assert list(tomllib.loads(other.read_text())["dashboard"]["tokens"]) == ["ada"]
    assert "tokens" not in (tmp_path / "tokenmeter.toml").read_text()
    refused = CliRunner().invoke(app, ["dashboard", "--port", "1", "token", "list"])
    assert refused.exit_code == 2
    assert "No such option: --port" in refused.output


NOBODY = 65534
as_root = pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root writes files of others")


@contextmanager
def _as_user(number):
    """The rights of an ordinary user, for what is called here."""
    os.setegid(number)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def open_folder():
    """A folder in which everybody may write."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o777)
        yield Path(made)


@as_root
def test_what_root_changes_stays_the_servers_own(open_folder):
    file = open_folder / "tokenmeter.toml"
    file.write_text("multiplier = '1.05'\n")
    os.chown(file, NOBODY, NOBODY)
    file.chmod(0o600)

    def run(*arguments):
        return CliRunner().invoke(app, ["dashboard", "token", *arguments, "--config", str(file)])

    for name in ("ada", "ops"):
        assert run("create", name).exit_code == 0
    meter = make_meter(store="memory:", config=file)  # what it loads may lie where that user may not look
    with _as_user(NOBODY):
        tokens = Tokens(meter.settings)
        assert [one.access.name for one in tokens.now] == ["ada", "ops"]
    assert run("revoke", "ada").exit_code == 0
    assert {(one.stat().st_uid, one.stat().st_gid) for one in open_folder.iterdir()} == {(NOBODY, NOBODY)}
    assert file.stat().st_mode & 0o777 == 0o600
    with _as_user(NOBODY):
        assert [one.access.name for one in tokens.now] == ["ops"]
        assert run("revoke", "ops").exit_code == 0  # the lock is theirs, too
        assert not tokens.now
    meter.close()


@as_root
def test_a_file_that_would_become_anothers_is_left_alone(open_folder):
    file = open_folder / "tokenmeter.toml"
    file.write_text("multiplier = '1.05'\n")
    file.chmod(0o666)
    with _as_user(NOBODY):
        refused = CliRunner().invoke(app, ["dashboard", "token", "create", "ada", "--config", str(file)])
    assert isinstance(refused.exception, ConfigurationError)
    assert "run this as that user" in str(refused.exception)
    assert file.read_text() == "multiplier = '1.05'\n"
    assert [one.name for one in open_folder.iterdir() if one.name.startswith(".tokenmeter.toml.")] == []


@as_root
def test_tokens_end_with_a_change_that_the_server_may_not_read(open_folder):
    file = open_folder / "tokenmeter.toml"
    digest = "ab" * 32
    file.write_text(f"[dashboard.tokens.ada]\nhash = 'sha256:{digest}'\n")
    meter = make_meter(store="memory:", config=file)
    tokens = Tokens(meter.settings)
    file.chmod(0o600)
    with _as_user(NOBODY):  # has given up the right to read it, and it is as it was
        assert [one.access.name for one in tokens.now] == ["ada"]
    file.write_text(file.read_text() + "\n")
    with _as_user(NOBODY):
        assert not tokens.now
        assert tokens.asked_for
    file.chmod(0o644)
    with _as_user(NOBODY):
        assert [one.access.name for one in tokens.now] == ["ada"]
    meter.close()


def test_of_settings_that_are_refused_the_tokens_count_that_still_stand_there(run, tmp_path):
    for name in ("ada", "bob"):
        assert run("create", name).exit_code == 0
    meter = make_meter(store="memory:", config=tmp_path / "tokenmeter.toml")
    tokens = Tokens(meter.settings)
    assert run("revoke", "ada").exit_code == 0
    file = tmp_path / "tokenmeter.toml"
    file.write_text(file.read_text() + "\nmultiplier = \n")
    assert [one.access.name for one in tokens.now] == ["bob"]
    meter.close()


def test_a_server_that_began_without_settings_asks_for_the_first_token(tmp_path, monkeypatch, serve):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("TOKENMETER_CONFIG", raising=False)
    meter = make_meter(store="memory:")
    said_in_code = make_meter(store="memory:", config={})
    try:
        served, apart = serve(meter), serve(said_in_code)
        assert served.get("/api/v1/me")[0] == 200
        for words in (["init"], ["dashboard", "token", "create", "ada", "--only", "member=ada"]):
            made = CliRunner().invoke(app, words)
            assert made.exit_code == 0, made
        assert served.get("/api/v1/me")[0] == 401
        bearer = {"authorization": f"Bearer {made.stdout.split()[-1]}"}
        assert json.loads(served.get("/api/v1/me", **bearer)[2])["name"] == "ada"
        assert CliRunner().invoke(app, ["dashboard", "token", "revoke", "ada"]).exit_code == 0
        assert [served.get("/api/v1/me")[0], served.get("/api/v1/me", **bearer)[0]] == [401, 401]
        assert apart.get("/api/v1/me")[0] == 200
    finally:
        meter.close()
        said_in_code.close()


def test_a_token_for_nobody_is_refused_with_what_to_write(run, tmp_path):
    before = (tmp_path / "tokenmeter.toml").read_text()
    refused = run("create", "ada", "--only", "member=")
    assert isinstance(refused.exception, ConfigurationError)
    assert "member" in str(refused.exception)
    assert "null" not in str(refused.exception)
    assert (tmp_path / "tokenmeter.toml").read_text() == before
