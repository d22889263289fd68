"""The default meter: what a second `configure` keeps, and the verbs as functions."""

from __future__ import annotations

import inspect
import logging
import re
from decimal import Decimal
from pathlib import Path

import pytest

import tokenmeter
from tokenmeter.errors import ConfigurationError
from tokenmeter.settings import Settings, SettingsArguments


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    for name in ("TOKENMETER_CONFIG", "TOKENMETER_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)
    tokenmeter.reset()
    yield
    tokenmeter.reset()


def test_a_second_configure_changes_what_it_names_and_keeps_the_rest(caplog):
    first = tokenmeter.configure(store="memory:", multiplier="1.2")
    second = tokenmeter.configure(budgets=[tokenmeter.Budget(member="ada", limit_usd=1)])
    assert second.store is first.store
    assert second.settings.multiplier == Decimal("1.2")
    third = tokenmeter.configure(multiplier=None)
    assert (third.settings.multiplier, len(third.settings.budgets)) == (1, 1)
    assert not caplog.records


def test_a_ledger_that_changes_is_said_once_and_without_its_password(caplog):
    tokenmeter.configure(store="memory:")
    caplog.set_level(logging.WARNING)
    tokenmeter.configure(store="sqlite:///new.db")
    (record,) = caplog.records
    assert re.fullmatch(
        r"The ledger is now sqlite:////.*/new\.db; calls that were made before are in memory:\.", record.getMessage()
    )


def test_declared_budgets_are_in_the_ledger_before_the_first_call(tmp_path):
    """Another process, the command line and the dashboard read them there."""
    store = f"sqlite:///{tmp_path / 'usage.db'}"
    tokenmeter.configure(store=store, budgets=[tokenmeter.Budget(member="ada", limit_usd=1, name="ada")])
    elsewhere = tokenmeter.make_meter(store=store, config={})
    assert [budget.name for budget in elsewhere.budgets.in_force] == ["ada"]
    elsewhere.close()


def test_budgets_that_cannot_be_filed_yet_stop_no_program(tmp_path, monkeypatch, caplog):
    meter = tokenmeter.configure(store="memory:")
    monkeypatch.setattr(type(meter.store), "file", _fails)
    with caplog.at_level("INFO", logger="tokenmeter"):
        meter = tokenmeter.configure(budgets=[tokenmeter.Budget(member="ada", limit_usd=1)])
    assert [(record.levelname, "filed with the first call" in record.message) for record in caplog.records] == [
        ("INFO", True)
    ]
    assert meter.faults == 0


def test_a_budget_that_is_called_like_a_counter_in_the_ledger_is_refused_when_it_is_configured(tmp_path):
    store = f"sqlite:///{tmp_path / 'usage.db'}"
    meter = tokenmeter.configure(store=store, budgets=[tokenmeter.Budget(limit_usd=1, name="all")])
    (taken,) = meter.budgets.caps
    meter.budgets.retire("all")
    with pytest.raises(ConfigurationError, match="another name"):
        tokenmeter.configure(budgets=[tokenmeter.Budget(limit_usd=1, name=taken)])
    assert tokenmeter.default_meter() is meter
    with pytest.raises(ConfigurationError, match="another name"):
        tokenmeter.make_meter(store=store, budgets=[{"limit_usd": 1, "name": taken}])
    assert list(meter.budgets.in_force) == []


def _fails(*_, **__):
    raise tokenmeter.StoreUnavailableError("it is away")


def test_a_wrong_setting_leaves_everything_as_it_was():
    meter = tokenmeter.configure(store="memory:", multiplier="1.2")
    with pytest.raises(ConfigurationError, match="greater than zero"):
        tokenmeter.configure(multiplier=0)
    assert tokenmeter.default_meter() is meter
    assert tokenmeter.configure(metrics=False).settings.multiplier == Decimal("1.2")


def test_what_was_closed_is_opened_anew():
    tokenmeter.configure(store="sqlite:///usage.db").close()
    assert list(tokenmeter.configure(multiplier="1.1").entries()) == []


def test_every_setting_is_an_argument_and_documented():
    names = set(Settings.model_fields) - {"source"}
    assert set(SettingsArguments.__annotations__) == names | {"config"}
    for name in names:
        assert f"\n    {name}: " in inspect.getdoc(SettingsArguments)
        assert f"\n    {name}: " in inspect.getdoc(Settings)
    with pytest.raises(ConfigurationError, match="no setting 'multiplyer'; did you mean 'multiplier'"):
        tokenmeter.configure(multiplyer=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["report", "price", "invoice", "reconcile", "remaining", "verify", "entries"])
def test_a_verb_has_one_signature_as_method_and_as_function(name):
    method, function = getattr(tokenmeter.Meter, name), getattr(tokenmeter, name)
    _, *own = inspect.signature(method).parameters.values()
    made = dict(inspect.signature(function).parameters)
    assert made.pop("meter").default is None
    assert list(made.values()) == own
    assert function.__name__ == name
    assert function.__doc__.splitlines()[0] == method.__doc__.splitlines()[0]
    assert "store: The ledger" not in function.__doc__


def test_a_function_takes_another_meter():
    other = tokenmeter.make_meter(store="memory:")
    assert list(tokenmeter.entries(meter=other)) == []
    assert tokenmeter.report(meter=other).totals.requests == 0
    other.close()
    assert not Path("usage.db").exists()
