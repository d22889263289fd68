"""The example applications, against a fake provider and a ledger of their own."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

import pytest

import tokenmeter

EXAMPLES = Path(__file__).parents[2] / "examples" / "apps"


@pytest.fixture
def environment(fake_provider, tmp_path, monkeypatch):
    """What leads an application, in this process or in one of its own, to the fake provider and to its ledger."""
    values = {
        "OPENAI_API_KEY": "sk-apps-openai-0001",
        "OPENAI_BASE_URL": fake_provider.openai_url,
        "TOKENMETER_STORE": f"sqlite:///{tmp_path}/ledger.db",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return values


@pytest.fixture
def configured(environment):
    """Sets the default meter of this process up."""
    tokenmeter.reset()
    yield lambda **settings: tokenmeter.configure(store=environment["TOKENMETER_STORE"], config={}, **settings)
    tokenmeter.reset()


@pytest.fixture
def load(configured, monkeypatch, request):
    """`load("with_flask")` imports an example anew; `load("with_flask", budgets=[...])` sets it up first."""

    def load(name, **settings):
        pytest.importorskip(name.removeprefix("with_").partition("_")[0])
        configured(**settings)
        monkeypatch.syspath_prepend(str(EXAMPLES))
        request.addfinalizer(lambda: sys.modules.pop(name, None))
        return importlib.import_module(name)

    return load


@pytest.fixture
def warnings(caplog, monkeypatch):
    """What tokenmeter had to say."""
    monkeypatch.setattr("tokenmeter.running.STRAYS.told", set())
    monkeypatch.setattr("tokenmeter.running.STRAYS.empty", None)
    caplog.set_level(logging.WARNING, "tokenmeter")
    return caplog


@pytest.fixture
def accounts():
    """Who has been charged so far: (member, team, route) of every call, sorted."""

    def accounts():
        found = [entry.attribution for entry in tokenmeter.entries()]
        return sorted((who.member or "-", who.team or "-", who.route or "-") for who in found)

    return accounts
