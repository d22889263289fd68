"""Settings: joined from code, environment and file; a mistake is refused with its place and its mend."""

from __future__ import annotations

from contextlib import closing
from decimal import Decimal

import pytest

from tokenmeter.attribution import hash_key
from tokenmeter.budgets import Budget
from tokenmeter.config import load_settings
from tokenmeter.default import make_meter
from tokenmeter.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _clean(tmp_path, monkeypatch):
    for name in ("TOKENMETER_CONFIG", "TOKENMETER_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '[[budgets]]\nmember = "*"\nlimit_usd = {}\nname = "m"\n',
        'budgets = [ {{ member = "*", limit_usd = {}, name = "m" }} ]\n',
        'budgets = [\n  {{ member = "*", limit_usd = {}, name = "m" }},\n]\n',
        '[[ "budgets" ]]\nmember = "*"\nlimit_usd = {}\nname = "m"\n',
    ],
    ids=["a table", "inline", "inline, in lines", "a quoted table"],
)
def test_a_budget_of_the_file_is_the_files_however_it_is_written(tmp_path, monkeypatch, text, caplog):
    """Two programs share a file: what it says now is a change that was deployed."""
    file, limits = tmp_path / "tokenmeter.toml", []
    for program, limit in (("web.py", 50), ("worker.py", 20)):
        monkeypatch.setattr("sys.argv", [program])
        file.write_text(text.format(limit))
        with closing(make_meter(config=file, store=f"sqlite:///{tmp_path}/l.db")) as meter:
            meter.budgets.declare()
            limits += [(one.limit_usd, meter.budgets.history()[-1].source) for one in meter.budgets.in_force]
    assert limits == [(50, str(file)), (20, str(file))]
    assert caplog.messages == []


def test_rows_of_code_stand_before_those_of_the_file_however_these_are_written(tmp_path):
    file = tmp_path / "tokenmeter.toml"
    file.write_text('budgets = [ { limit_usd = 5, name = "file" } ]\n')
    settings = load_settings(config=file, budgets=[{"limit_usd": 5, "name": "code"}])
    assert (settings.rows_in_code("budgets"), settings.lines("budgets")) == (1, [0, 0])
    file.write_text('[[budgets]]\nlimit_usd = 5\nname = "file"\n')
    settings = load_settings(config=file, budgets=[{"limit_usd": 5, "name": "code"}])
    assert (settings.rows_in_code("budgets"), settings.lines("budgets")) == (1, [0, 1])
    assert load_settings(config={"budgets": [{"limit_usd": 5}]}).rows_in_code("budgets") == 1


def test_a_store_may_be_in_a_variable(tmp_path, monkeypatch):
    file = tmp_path / "tokenmeter.toml"
    file.write_text('store = "env:THE_LEDGER"\n')
    with pytest.raises(ConfigurationError, match="store: the environment variable THE_LEDGER is not set"):
        load_settings(config=file)
    monkeypatch.setenv("THE_LEDGER", "memory:")
    assert load_settings(config=file).store == "memory:"


def test_without_any_setting_everything_has_its_default():
    settings = load_settings()
    assert (settings.store, settings.multiplier, settings.budgets, settings.source) == (None, 1, [], None)


def test_the_file_of_the_working_directory_is_read_exactly(tmp_path):
    (tmp_path / "tokenmeter.toml").write_text(
        'multiplier = 1.1\nstore = "memory:"\n[[budgets]]\nmember="ada"\nlimit_usd=0.1\n'
    )
    settings = load_settings()
    assert settings.multiplier == Decimal("1.1")
    assert settings.store == "memory:"
    assert settings.budgets == [{"member": "ada", "limit_usd": Decimal("0.1")}]


def test_the_users_own_directory_is_the_last_resort(tmp_path):
    folder = tmp_path / "xdg" / "tokenmeter"
    folder.mkdir(parents=True)
    (folder / "tokenmeter.toml").write_text('multiplier = "1.2"')
    assert load_settings().multiplier == Decimal("1.2")


def test_an_argument_wins_over_the_environment_which_wins_over_the_file(tmp_path, monkeypatch):
    (tmp_path / "tokenmeter.toml").write_text('store = "sqlite:///file.db"')
    assert load_settings().store == "sqlite:///file.db"
    monkeypatch.setenv("TOKENMETER_STORE", "sqlite:///environment.db")
    assert load_settings().store == "sqlite:///environment.db"
    assert load_settings(store="memory:").store == "memory:"


def test_a_named_file_must_be_there(monkeypatch):
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml does not exist"):
        load_settings(config="nowhere.toml")
    monkeypatch.setenv("TOKENMETER_CONFIG", "gone.toml")
    with pytest.raises(ConfigurationError, match=r"gone\.toml"):
        load_settings()


def test_budgets_of_code_and_file_add_up(tmp_path):
    (tmp_path / "tokenmeter.toml").write_text('[[budgets]]\nmember="*"\nlimit_usd=5\n')
    assert len(load_settings(budgets=[Budget(member="ada", limit_usd=1)]).budgets) == 2


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Budget(member="*", limit_usd=9, name="each"), "Budgets 'each' (the code of this program) and 'members' ("),
        (Budget(team="*", limit_usd=9, name="members"), "Two budgets are called 'members' (the code of this program, "),
    ],
)
def test_budgets_of_code_and_file_that_contradict_each_other_are_told_with_their_places(tmp_path, other, said):
    (tmp_path / "tokenmeter.toml").write_text('\n[[budgets]]\nmember="*"\nlimit_usd=5\nname="members"\n')
    with pytest.raises(ConfigurationError) as refused:
        make_meter(store="memory:", budgets=[other])
    assert said in str(refused.value)
    assert "tokenmeter.toml, line 2)" in str(refused.value)


def test_the_ledger_says_of_each_budget_whether_the_file_or_code_declared_it(tmp_path, caplog):
    file, code = tmp_path / "tokenmeter.toml", Budget(team="x", limit_usd=1, name="of code")

    def declare(row):
        file.write_text(f'store = "sqlite:///{tmp_path}/usage.db"\n{row}')
        meter = make_meter(budgets=[code])
        meter.budgets.declare()
        found = {change.name: (change.source, change.version) for change in meter.budgets.changes()}
        meter.close()
        return found

    first = declare('[[budgets]]\nmember="*"\nlimit_usd=5\nname="of file"\n')
    assert first["of file"] == (str(file), 1)
    assert first["of code"][0].startswith("code of ")
    # What another edition of the file says is its own word, whatever code declares beside it.
    assert declare('[[budgets]]\nmember="*"\nlimit_usd=6\nname="of file"\n')["of file"] == (str(file), 2)
    assert declare("")["of file"] == (str(file), 2)
    assert "`tokenmeter budgets retire 'of file'` ends it" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("multiplyer = 1", "did you mean 'multiplier'"),
        ("frobnicate = 1", "known keys"),
        ("multiplier = 0", "greater than zero"),
        ("multiplier = 'x'", "must be a number"),
        ("store = 5", "store"),
        ("budgets = 5", "budgets"),
        ("hold_seconds = 1", "hold_seconds"),
        ("store = ", "cannot be read"),
        ("[[alerts]]\nwebhook='ftp://x'", "webhook"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, message):
    (tmp_path / "tokenmeter.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=message) as refused:
        load_settings()
    if "greater" not in message and "number" not in message:
        assert "tokenmeter.toml" in str(refused.value)


def test_a_key_does_not_belong_into_the_file(tmp_path):
    (tmp_path / "tokenmeter.toml").write_text('[api_keys]\nprod = "sk-live-1234567890"')
    with pytest.raises(ConfigurationError, match="env:NAME") as refused:
        load_settings()
    assert "sk-live" not in str(refused.value)


def test_keys_are_hashed_at_once_and_variables_looked_up(monkeypatch):
    monkeypatch.setenv("PROD_KEY", "sk-from-env")
    settings = load_settings(
        api_keys={"a": "sk-plain", "b": "env:PROD_KEY", "c": "env:UNSET", "d": f"sha256:{'0' * 64}"}
    )
    assert settings.key_hashes() == {hash_key("sk-plain"): "a", hash_key("sk-from-env"): "b", "0" * 64: "d"}
    assert "sk-plain" not in repr(settings)


@pytest.mark.parametrize("table", ["prices", "discounts", "multipliers"])
def test_a_bad_row_is_named_by_file_and_line_also_behind_rows_given_in_code(tmp_path, table):
    (tmp_path / "tokenmeter.toml").write_text(f'multiplier = "1.1"\n\n[[{table}]]\nnonsense = 1\n')
    fine = {"provider": "openai", "model": "m", "sku_meter": "input", "unit_price": 1}
    with pytest.raises(ConfigurationError, match=r"tokenmeter\.toml: .*\(line 3\).*nonsense"):
        make_meter(store="memory:", prices=[fine])


class TestProviders:
    """``[providers]``: who serves behind a URL, and what the ``cost`` in its usage is."""

    def test_an_id_alone_or_a_table(self):
        settings = load_settings(
            config={"providers": {"https://a.example": "openai", "https://b.example": {"cost": "cents"}}}
        )
        assert settings.providers["https://a.example"].provider == "openai"
        assert (settings.providers["https://b.example"].provider, settings.providers["https://b.example"].cost) == (
            None,
            "cents",
        )

    def test_code_goes_over_the_file_name_by_name(self):
        settings = load_settings(
            config={"providers": {"https://a.example": "openai", "novita": {"cost": "usd"}}},
            providers={"novita": {"cost": "ignore"}},
        )
        assert {name: host.cost for name, host in settings.providers.items()} == {
            "https://a.example": None,
            "novita": "ignore",
        }

    @pytest.mark.parametrize("wrong", ["eur", "", "0", "-1", "1e999", "nan", True, 0.5, []])
    def test_a_unit_that_is_none_is_refused_with_what_to_write(self, wrong):
        with pytest.raises(ConfigurationError, match=r"providers\.novita.*cost.*US dollars per unit"):
            load_settings(config={"providers": {"novita": {"cost": wrong}}})

    def test_an_unknown_key_is_refused(self):
        with pytest.raises(ConfigurationError, match="unit"):
            load_settings(config={"providers": {"novita": {"unit": "usd"}}})
