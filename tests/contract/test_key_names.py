"""A key is its fingerprint: the name that it has now is its name for all that it did, wherever keys are named."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.budgets import Budget
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.errors import ConfigurationError
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.reports import Query, export_entries, read_entries, read_report
from tokenmeter.usage import Consumption, Observation, Usage

ROWS = [
    {"provider": "openai", "model": "m", "sku_meter": meter, "unit_price": price, "per": 1}
    for meter, price in (("input", 0), ("output", 1))
]
PRICER = Pricer(PriceList.load(ROWS))
KEY, OTHER = ApiKey("aa" * 16, "aaaa"), ApiKey("bb" * 16, "bbbb")


def spend(store, dollars, key, budgets=()):
    """One call, by a program of its own."""
    call = Call(
        provider="openai",
        endpoint="chat.completions",
        operation="chat",
        facts=RequestFacts(model="m", input_bytes=0, max_output_tokens=10),
        attribution=Attribution(),
        api_key=key,
    )
    meter = Meter(store=store, pricer=PRICER, budgets=budgets)
    seen = Observation(consumptions=(Consumption(model="m", usage=Usage({"output": dollars})),))
    meter.settle(meter.authorize(call), Outcome(observation=seen))
    return meter


def called(name):
    return replace(KEY, alias=name)


def rows(store, **where):
    report = read_report(store, Query.parse(by="api_key", where=where))
    return {row.group["api_key"]: row.billed_cost for row in report.rows}


def found(store, **where):
    query = Query.parse(where=where)
    return [(entry.api_key.label, int(entry.billed_cost)) for entry in read_entries(store, query)]


def test_a_name_that_is_given_later_is_one_row_and_finds_what_was_before_it(store, tmp_path):
    for dollars, key in ((2, KEY), (3, KEY), (5, called("prod")), (7, OTHER)):
        spend(store, dollars, key)
    assert rows(store) == {"prod": 10, "...bbbb": 7}
    assert rows(store, api_key="prod") == {"prod": 10}
    assert rows(store, **{"api_key!": "prod"}) == {"...bbbb": 7}
    assert found(store, api_key="prod") == [("prod", 2), ("prod", 3), ("prod", 5)]
    assert [entry.api_key.alias for entry in store.entries()] == ["prod", "prod", "prod", None]
    export_entries(store, tmp_path / "e.csv", query=Query.parse(where={"api_key": "prod"}))
    assert (tmp_path / "e.csv").read_text().count("prod") == 3


def test_a_new_name_takes_the_place_of_an_old_one_and_the_old_one_still_finds_the_key(store):
    for dollars, name in ((2, "old"), (3, "prod"), (4, "prod")):
        spend(store, dollars, called(name))
    assert rows(store) == {"prod": 9}
    assert rows(store, api_key="old") == rows(store, api_key="...aaaa") == {"prod": 9}
    spend(store, 1, called("old"))
    assert rows(store) == {"old": 10}
    # As soon as another key bears the name, it means that one.
    spend(store, 7, replace(OTHER, alias="prod"))
    assert rows(store, api_key="prod") == {"prod": 7}
    assert found(store, api_key="old") == [("old", 2), ("old", 3), ("old", 4), ("old", 1)]


def test_two_keys_of_one_name_are_one_row(store):
    """As after a key was exchanged for a new one."""
    for dollars, key in ((2, called("prod")), (3, replace(OTHER, alias="prod"))):
        spend(store, dollars, key)
    assert rows(store) == {"prod": 5}
    assert len(found(store, api_key="prod")) == 2


def test_balances_speak_of_a_key_by_its_present_name_only(store):
    spend(store, 2, called("old"))
    budgets = [Budget(api_key="prod", limit_usd=100, name="prod")]
    meter = spend(store, 3, called("prod"), budgets)
    (balance,) = meter.remaining(api_key="prod")
    assert (balance.scope, balance.spent) == ({"api_key": "prod"}, 5)
    assert [one.spent for one in meter.remaining(api_key=KEY.fingerprint)] == [5]
    assert [one.spent for one in meter.remaining(api_key="old")] == [5]
    assert meter.remaining(api_key="nobody") == []
    assert meter.audit_budgets() == ()
    assert meter.store.verify().ok
    with pytest.raises(ConfigurationError, match="not known"):
        meter.budgets.grant("prod", 1, by="kim", reason="r", scope={"api_key": "nobody"})


def test_a_name_that_a_budget_was_told_holds_before_it_is_used_again(store):
    """Another program says its name with its next call; what was said last, or used since, is the name."""
    spend(store, 2, called("old"))
    meter = Meter(store=store, pricer=PRICER, budgets=[Budget(api_key="prod", limit_usd=100, name="prod")])
    call = Call(
        provider="openai",
        endpoint="chat.completions",
        operation="chat",
        facts=RequestFacts(model="m", input_bytes=0, max_output_tokens=10),
        attribution=Attribution(),
        api_key=called("prod"),
    )
    held = meter.authorize(call)
    assert rows(store) == {"prod": 2}
    meter.settle(held, Outcome(observation=Observation(consumptions=())))
    assert [entry.api_key.alias for entry in store.entries(newest_first=True)] == ["prod", "prod"]


def test_of_names_used_in_turn_the_last_one_counts_in_hours_long_past_too(store, monkeypatch):
    now = store.now()
    for days, name in ((90, "a"), (60, "b"), (60, "c"), (30, None)):
        moment = now - timedelta(days=days) + timedelta(seconds={"c": 1}.get(name, 0))
        monkeypatch.setattr(store, "now", lambda moment=moment: moment)
        spend(store, 1, called(name))
    assert rows(store) == {"c": 4}


def secret_key(store, text, name=None):
    """An API key as the ledger knows it, by its text."""
    return ApiKey.identify(text, secret=store.secret(), alias=name)


def test_the_names_of_settings_hold_before_a_call_and_nothing_is_written(store):
    text, budget = "sk-test-settings-0001", Budget(api_key="prod", limit_usd=100, name="prod")
    spend(store, 2, secret_key(store, text))
    spend(store, 3, secret_key(store, text, "old"))
    before = store.pulse()
    store.call_keys({text: "prod", "sk-test-never-used": "spare"})
    assert rows(store) == rows(store, api_key="prod") == rows(store, api_key="old") == {"prod": 5}
    assert rows(store, api_key="spare") == {}
    assert found(store, api_key="prod") == [("prod", 2), ("prod", 3)]
    meter = Meter(store=store, pricer=PRICER, budgets=[budget])
    (balance,) = meter.remaining(api_key="prod")
    assert (balance.scope, balance.spent) == ({"api_key": "prod"}, 5)
    assert store.pulse() == before
    assert set(store.key_names().values()) == {"old"}
    # A call writes the name down, so that others know it as well, and the counter goes on.
    spend(store, 4, secret_key(store, text, "prod"), [budget])
    store.call_keys({})
    assert rows(store) == {"prod": 9}
    assert [one.spent for one in meter.remaining(api_key="prod")] == [9]
    assert meter.audit_budgets() == ()
    assert store.verify().ok


def test_two_budgets_that_name_one_key_by_two_names_are_twins(store, caplog):
    text = "sk-test-twins-00001"
    key = secret_key(store, text, "prod")
    by_alias = Budget(api_key="prod", limit_usd=500, name="by alias")
    by_fingerprint = Budget(api_key=key.fingerprint, limit_usd=600, name="by fingerprint")
    twins = "'by alias'.* and 'by fingerprint'.* limit the same calls over the same window"
    # Nobody knows yet that both are one key; the settings do, once they have it.
    Meter(store=store, pricer=PRICER, budgets=[by_alias, by_fingerprint]).budgets.refuse_by_ledger()
    store.call_keys({text: "prod"})
    with pytest.raises(ConfigurationError, match=twins):
        Meter(store=store, pricer=PRICER, budgets=[by_alias, by_fingerprint]).budgets.refuse_by_ledger()
    store.call_keys({})
    meter = spend(store, 2, key, [by_alias])
    for change in (
        lambda: meter.budgets.set(by_fingerprint),
        lambda: meter.budgets.set(by_fingerprint, dry_run=True),
        lambda: meter.budgets.apply([by_fingerprint], source="a file"),
        lambda: meter.budgets.apply([by_alias, by_fingerprint], source="a file", dry_run=True),
    ):
        with pytest.raises(ConfigurationError, match=twins):
            change()
    spend(store, 3, key, [by_fingerprint])
    assert "limit the same calls over the same window" in caplog.text
    # Of two keys of one name a budget on one of them is about less; so is another window.
    spend(store, 1, secret_key(store, "sk-test-twins-00002", "prod"))
    meter.budgets.retire("by fingerprint")
    meter.budgets.set(replace(by_fingerprint, name="one of two"))
