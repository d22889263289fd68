"""Places that people name, and a user without a home, as a container's may be: no HOME, no row of passwd."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tokenmeter.errors import ConfigurationError, StoreUnavailableError
from tokenmeter.paths import expand, user_folder
from tokenmeter.pricing.updating import kept_path
from tokenmeter.stores import default_path, open_store, store_path

PROGRAM = """
import os, sys
import pwd
def nobody(*_): raise KeyError
pwd.getpwuid = pwd.getpwnam = nobody
for name in [name for name in os.environ if name == "HOME" or name.startswith("XDG_")]:
    del os.environ[name]
import tokenmeter
from tokenmeter.openai import OpenAI
client = OpenAI(base_url=sys.argv[1], api_key="sk-test-000000000001")
answer = client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hello"}])
print(answer.choices[0].message.role)
print(len(list(tokenmeter.entries())))
"""


@pytest.fixture
def homeless(monkeypatch):
    """This process's user has no home."""
    pwd = pytest.importorskip("pwd")

    def nobody(*_):
        raise KeyError

    for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(pwd, "getpwnam", nobody)


def run(fake_provider, folder, **more):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TOKENMETER_")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, fake_provider.openai_url],
        env={**environment, **more}, cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_a_user_without_a_home_who_names_the_ledger_misses_nothing(fake_provider, tmp_path):
    ran = run(fake_provider, tmp_path, TOKENMETER_STORE="sqlite:///usage.db")
    assert ran.stdout.split() == ["assistant", "1"], ran.stderr


def test_without_a_name_the_call_goes_and_what_to_name_is_said(fake_provider, tmp_path):
    ran = run(fake_provider, tmp_path)
    assert ran.stdout.split() == ["assistant"]
    assert "StoreUnavailableError: This user has no home directory; set HOME, or name the ledger" in ran.stderr
    assert list(tmp_path.iterdir()) == [], "no folder called ~"


def test_what_needs_a_home_says_what_to_do_without(homeless):
    with pytest.raises(StoreUnavailableError, match=r"set HOME, or name the ledger in configure\(store"):
        default_path()
    with pytest.raises(ConfigurationError, match="name the file of the price list"):
        kept_path()
    with pytest.raises(ConfigurationError, match="write the path from the root"):
        expand("~/usage.db")


@pytest.mark.parametrize("named", ["~", "~nobody-of-this-name/usage.db"])
def test_a_home_that_nobody_has_is_refused(named, homeless):
    with pytest.raises(ConfigurationError, match="home directory that is not known"):
        open_store(f"sqlite:///{named}")


def test_every_way_to_name_a_file_means_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    file = tmp_path / "usage.db"
    assert store_path("sqlite:///~/usage.db") == store_path(f"sqlite:///{file}") == expand("~/usage.db") == file


def test_a_file_may_be_called_like_a_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_store("sqlite:///~draft.db").close()
    assert (tmp_path / "~draft.db").exists()


def test_a_folder_that_is_no_path_from_the_root_is_none(monkeypatch):
    """As an older platformdirs answers without a home."""
    monkeypatch.setattr("platformdirs.user_data_path", lambda *_, **__: "~/.local/share/tokenmeter")
    with pytest.raises(StoreUnavailableError, match="set HOME, or do this"):
        user_folder("data", "do this")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps a working directory")
def test_a_working_directory_that_is_gone_is_said(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(StoreUnavailableError, match=r"working directory, which cannot be reached .*from the root"):
        open_store("sqlite:///usage.db")
    open_store(f"sqlite:///{tmp_path}/usage.db").close()
