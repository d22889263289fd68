"""Whatever stands in the settings, the answer is a meter or a `ConfigurationError`, never another exception."""

from __future__ import annotations

import gc
import os
import threading
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import tokenmeter
from tokenmeter.cli.configuration import TEMPLATE
from tokenmeter.config import load_settings
from tokenmeter.default import make_meter
from tokenmeter.errors import ConfigurationError, StoreUnavailableError
from tokenmeter.pricing.updating import Looked, kept_path
from tokenmeter.settings import Settings

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.decimals(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.sampled_from(
        [10**400, Decimal("1e400"), "1e999999", "\0", "\ud800", "x" * 10_000, "~nobody/x", "env:", object()]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=2),
    max_leaves=4,
)
NAMES = sorted(set(Settings.model_fields) - {"source", "store"})
ROWS = {
    "budgets": {"member": "ada", "limit_usd": 1},
    "prices": {"provider": "openai", "model": "m", "sku_meter": "input", "unit_price": 1},
    "discounts": {"factor": "0.8"},
    "multipliers": {"multiplier": "1.1"},
    "alerts": {"webhook": "https://x.example"},
}
FIELDS = {
    "budgets": ["member", "limit_usd", "limit_tokens", "limit_requests", "period", "tz", "anchor", "week_start", "hard",
                "thresholds", "starts", "ends", "name", "tags", "store_failure"],
    "prices": ["unit_price", "per", "effective_from", "conditions", "min_input_tokens", "source", "model", "region"],
    "discounts": ["factor", "provider", "model", "effective_from", "effective_to"],
    "multipliers": ["multiplier", "member", "effective_from"],
    "alerts": ["webhook", "secret_env"],
}  # fmt: skip


def tried(**arguments):
    with suppress(ConfigurationError):
        make_meter(**{"store": "memory:", "config": {}, **arguments}).close()


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.sampled_from(NAMES), VALUES)
@example("api_keys", {"half a letter": "\ud800"})
def test_any_value_of_any_setting(name, value):
    tried(**{name: value})
    tried(config={name: value})


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    st.sampled_from(sorted(ROWS)).flatmap(lambda table: st.tuples(st.just(table), st.sampled_from(FIELDS[table]))),
    VALUES,
)
def test_any_value_in_any_row(place, value):
    table, field = place
    tried(**{table: [{**ROWS[table], field: value}]})


@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes_as_a_file(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("settings") / "tokenmeter.toml"
    path.write_bytes(content)
    tried(config=path)


@pytest.mark.parametrize(
    "store",
    [
        "",
        "\0",
        "sqlite:///a\0b",
        "sqlite:///a%00b",
        Path("a\0b"),
        "x" * 100_000,
        "sqlite:///" + "d/" * 3_000 + "x",
        "ftp://x",
        5,
    ],
)
def test_a_store_that_cannot_be_is_refused(store):
    with pytest.raises(ConfigurationError):
        make_meter(store=store, config={})


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "tokenmeter.toml"
    path.write_bytes(b'\xef\xbb\xbfmultiplier = "1.1"\r\n[[prices]]\r\nnonsense = 1\r\n')
    assert load_settings(config=path).multiplier == Decimal("1.1")
    with pytest.raises(ConfigurationError, match=r"line 2.*nonsense"):
        make_meter(store="memory:", config=path)


def test_a_file_nested_without_end_is_refused(tmp_path):
    path = tmp_path / "tokenmeter.toml"
    path.write_text("billing = " + "[" * 5_000 + "]" * 5_000)
    with pytest.raises(ConfigurationError):
        load_settings(config=path)


def test_a_setting_that_cannot_be_shown_is_refused_all_the_same():
    nested: list[object] = []
    for _ in range(200_000):
        nested = [nested]
    with pytest.raises(ConfigurationError):
        load_settings(store="memory:", multiplier=nested)


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may read everything")
def test_a_home_that_may_not_be_read_has_no_settings(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir(mode=0)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    assert load_settings(store="memory:").source is None


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path, monkeypatch):
    """As a container makes one where what it is to mount is not there: every cap would be gone without a word."""
    (tmp_path / "tokenmeter.toml").mkdir()
    monkeypatch.delenv("TOKENMETER_CONFIG", raising=False)
    for named in ({"config": tmp_path / "tokenmeter.toml"}, {}):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigurationError, match="is a folder"):
            load_settings(**named)


def test_a_folder_that_refuses_to_be_looked_into_has_no_settings(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.delenv("TOKENMETER_CONFIG", raising=False)
    monkeypatch.setattr("pathlib.Path.is_file", refuse)
    assert load_settings(store="memory:").source is None
    with pytest.raises(ConfigurationError, match="cannot be reached"):
        load_settings(config=tmp_path / "tokenmeter.toml")


def test_the_file_that_init_writes_is_good_as_it_is_and_with_everything_switched_on(tmp_path):
    path = tmp_path / "tokenmeter.toml"
    path.write_text(TEMPLATE)
    assert load_settings(config=path).model_dump(exclude={"source"}) == Settings().model_dump(exclude={"source"})
    on = [line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in TEMPLATE.splitlines()]
    path.write_text("\n".join(on))
    loaded = load_settings(config=path)
    assert {name for name in NAMES if getattr(loaded, name) == getattr(Settings(), name)} == {"hold_seconds"}
    make_meter(
        loaded.model_copy(update={"store": "memory:", "metrics": False, "traces": False, "price_list": None})
    ).close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"metrics": "nagios"},
            "configuration: metrics must be true or false, or 'opentelemetry' or 'prometheus' (got 'nagios')",
        ),
        ({"metrics": "\ud800"}, "configuration: metrics must be text (got '\\ud800')"),
        ({"traces": 7}, "configuration: traces must be true or false (got 7)"),
        ({"budgets": [[1]]}, "configuration: budgets[0] must be an instance of Budget, or a table (got [1])"),
        ({"prices": [3]}, "configuration: prices[0] must be a table (got 3)"),
        ({"hold_seconds": "soon"}, "configuration: hold_seconds must be a whole number (got 'soon')"),
        ({"hold_seconds": 99.5}, "configuration: hold_seconds must be a whole number (got 99.5)"),
        ({"require": "member"}, "configuration: require must be a list (got 'member')"),
        ({"alerts": [3]}, "configuration: alerts[0] must be a table (got 3)"),
        ({"alerts": [{"slak": "https://x"}]}, "configuration: unknown key 'alerts[0].slak': did you mean 'slack'?"),
        (
            {"alerts": [{"email": {"to": ["a@b"], "from": "c@d", "host": "h", "usr": "u"}}]},
            "configuration: unknown key 'alerts[0].email.usr': did you mean 'user'?",
        ),
        (
            {"providers": {"https://llm.example": {"costs": "usd"}}},
            "configuration: unknown key 'providers.https://llm.example.costs': did you mean 'cost'?",
        ),
        (
            {"dashboard": {"tokens": {"ada": {"hash": f"sha256:{'0' * 64}", "expire": "2030-01-01"}}}},
            "configuration: unknown key 'dashboard.tokens.ada.expire': did you mean 'expires'?",
        ),
        ({"store": "a\0b"}, "configuration: store must not contain control characters"),
        ({"api_keys": {" ": f"sha256:{'0' * 64}"}}, "configuration: api_keys"),
        ({"budgets": [{"tags": {"paid!": "*"}, "limit_usd": 1, "name": "b"}]}, "Budget 'b': a tag's name must not end"),
        ({"budgets": [{"team": "\u200b", "limit_usd": 1, "name": "b"}]}, "Budget 'b': team must say more than blanks"),
        ({"require": ["tag:paid!"]}, "require: 'tag:paid!' is not one of"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named_once_by_its_place(given, said):
    with pytest.raises(ConfigurationError) as refused:
        make_meter(**{"config": {}, "store": "memory:", **given})
    assert str(refused.value).startswith(said)
    assert ";" not in str(refused.value)


@pytest.mark.parametrize("name", ["budgets", "prices", "discounts", "multipliers", "free_quotas", "alerts"])
def test_a_table_where_rows_belong_is_told_how_rows_are_written(name):
    said = rf"configuration: {name} must be a list of tables, written \[\[{name}\]\]\."
    for table in ({"x": {"limit_usd": 5}}, {"limit_usd": 5}):
        with pytest.raises(ConfigurationError, match=said):
            make_meter(config={name: table}, store="memory:")


class Detached:
    """A record of an object mapper whose session is closed: it cannot even be shown."""

    def __repr__(self):
        raise RuntimeError("not bound to a session")


GIVEN = {
    "multiplier": lambda value: make_meter(store="memory:", multiplier=value),
    "time zone": lambda value: tokenmeter.report(period="2026-11", tz=value),
    "member": lambda value: tokenmeter.attribute(member=value),
    "tag": lambda value: tokenmeter.attribute(tags={"job": value}),
    "scope of a budget": lambda value: tokenmeter.Budget(member=value, limit_usd=1),
    "limit of a budget": lambda value: tokenmeter.Budget(member="ada", limit_usd=value),
    "by": lambda value: tokenmeter.report(by=[value]),
    "period": lambda value: tokenmeter.report(period=value),
    "filter": lambda value: tokenmeter.report(where={"member": value}),
    "provider": lambda value: tokenmeter.record({}, provider=value, endpoint="chat.completions"),
}


@pytest.mark.parametrize("place", GIVEN)
@pytest.mark.parametrize("value", [Detached(), ["x" * 5_000], 10**5_000], ids=["unshowable", "long", "number"])
def test_what_cannot_be_shown_is_refused_in_few_words(place, value):
    """An object mapper's record in place of its name is the commonest wrong value; its repr may raise."""
    if (place, type(value)) in {("filter", list), ("limit of a budget", int)}:
        return  # right there
    with pytest.raises(ConfigurationError) as refused:
        GIVEN[place](value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"store": ""}, "store must not be empty"),
        ({"alerts": [{"slack": "hooks"}]}, "alerts[0].slack must begin with https:// or http://, or be env:NAME"),
        ({"alerts": [{"email": {"to": ["a@b"]}}]}, "alerts[0].email.from is missing"),
        ({"dashboard": {"tokens": {"a": {"hash": "x"}}}}, "dashboard.tokens.a.hash must be sha256:"),
    ],
    ids=str,
)
def test_a_wrong_value_is_told_in_words_and_not_in_a_validators(given, said):
    with pytest.raises(ConfigurationError) as refused:
        load_settings(**given)
    assert said in str(refused.value)


def test_what_is_wrong_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "tokenmeter.toml"
    path.write_text('multiplier = "1e999999"\n')
    with pytest.raises(ConfigurationError, match="multiplier has at most 40 digits") as refused:
        load_settings(config=path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        *({"budgets": [{"limit_usd": 1, key: "x" * 100_000}]} for key in ("period", "hard", "limit", "refresh", "tz")),
        {"dashboard": {"x" * 100_000: 1}},
        {"models": {"a": {"x" * 100_000: 1}}},
    ],
    ids=lambda given: next(iter(given)),
)
def test_an_error_repeats_no_more_than_a_line_of_what_it_refuses(given):
    with pytest.raises(ConfigurationError) as refused:
        tokenmeter.make_meter(store="memory:", **given)
    assert len(str(refused.value)) < 1000


REFUSED = {
    "a budget": {"budgets": [{"member": "*"}]},
    "a discount": {"discounts": [{"factor": -1}]},
    "a dimension": {"require": ["membr"]},
    "a label": {"metrics_labels": ["membr"]},
    "what the model is asked": {"tags_from": ["input"]},
    "who bills": {"billing": {"nosuch": 3}},
    "a currency": {"billing": {"currency": "ZZZ"}},
    "what a token sees": {"dashboard": {"tokens": {"a": {"hash": f"sha256:{'0' * 64}", "only": {"membr": "ada"}}}}},
    "a slip in it": {"dashboard": {"tokens": {"a": {"hash": f"sha256:{'0' * 64}", "only": {"provider": "opnai"}}}}},
    "one token twice": {"dashboard": {"tokens": {key: {"hash": f"sha256:{'0' * 64}"} for key in "ab"}}},
    "a slip": {"providers": {"https://llm.example": "opnai"}},
}


def refreshers():
    return {thread for thread in threading.enumerate() if thread.name == "tokenmeter-prices"}


@pytest.fixture
def _just_looked():
    """A newer price list is not due: nobody asks the network."""
    Looked(datetime.now(UTC), None, None).write(kept_path())


@pytest.mark.usefixtures("_just_looked")
@pytest.mark.parametrize("given", REFUSED.values(), ids=REFUSED)
def test_nothing_is_opened_or_begun_by_settings_that_are_refused(given, tmp_path):
    before = refreshers()
    with pytest.raises(ConfigurationError):
        make_meter(store=f"sqlite:///{tmp_path}/ledger.db", config={}, price_list="auto", **given)
    assert list(tmp_path.iterdir()) == []
    assert refreshers() == before


@pytest.mark.usefixtures("_just_looked")
def test_nobody_looks_for_newer_prices_where_the_ledger_cannot_be_opened(tmp_path):
    """Each call of such a program asks for its meter once more."""
    (tmp_path / "file").write_text("no directory")
    before = refreshers()
    for _ in range(3):
        with pytest.raises(StoreUnavailableError):
            make_meter(store=f"sqlite:///{tmp_path}/file/ledger.db", config={}, price_list="auto")
    assert refreshers() == before


@pytest.mark.usefixtures("_just_looked")
def test_newer_prices_are_looked_for_as_long_as_their_meter_is_there():
    before = refreshers()
    meter = make_meter(store="memory:", config={}, price_list="auto")
    (looking,) = refreshers() - before
    meter.close()
    del meter
    gc.collect()
    looking.join(60)
    assert not looking.is_alive()


@pytest.mark.parametrize(
    "given",
    [
        {"providers": {"https://llm.example": "opnai"}},
        {"providers": {"opnai": {"cost": "cents"}}},
        {"models": {"opnai": {"ours": "gpt-5"}}},
        {"discounts": [{"provider": "opnai", "factor": "0.8"}]},
        {"multipliers": [{"provider": "opnai", "multiplier": "1.1"}]},
        {"budgets": [{"provider": "opnai", "limit_usd": 5}]},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_slip_in_a_providers_name_is_told_by_whom_it_means(given):
    """It was a discount that nobody got, and a cap that held nobody."""
    with pytest.raises(ConfigurationError, match=r"who is 'opnai'\? Did you mean 'openai'\?"):
        make_meter(store="memory:", config={}, **given)


def test_a_provider_of_ones_own_passes():
    given = {"prices": [{**ROWS["prices"], "provider": "opnai"}], "discounts": [{"provider": "opnai", "factor": "0.8"}]}
    make_meter(store="memory:", config={}, providers={"https://llm.example": "acme"}, **given).close()


@pytest.mark.parametrize("host", ["llm.example", "", "openai"])
def test_a_host_that_is_not_named_by_its_url_is_told(host):
    """No base URL begins like that: its calls had no price, and nobody said why."""
    with pytest.raises(ConfigurationError, match="providers must name a host by"):
        load_settings(config={"providers": {host: "openai"}})
