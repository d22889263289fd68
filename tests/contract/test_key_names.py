"""A key is its fingerprint: the name that it has now is its name for all that it did, wherever keys are named."""

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.billing import close_period, draft_invoice, invoices, issue_invoice
from tokenmeter.budgets import Budget
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.errors import BudgetExceededError, ConfigurationError
from tokenmeter.meter import Meter
from tokenmeter.periods import parse_period
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.reports import Query, export_entries, read_entries, read_report
from tokenmeter.serving.access import AccessScope
from tokenmeter.serving.lens import look_through
from tokenmeter.stores import open_store
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


def test_who_sees_one_key_sees_all_that_is_of_it_under_any_of_its_names_and_nothing_of_others(store, make_entry, noon):
    """Grants and crossings, which say a fingerprint, and an invoice to an earlier name were not seen."""
    other = replace(OTHER, alias="theirs")
    month, profile = parse_period("2026-02"), {"seller": {"name": "Platform GmbH", "address": ["Hauptstr. 1"]}}
    at = datetime(2026, 2, 10, tzinfo=UTC)
    old, theirs = (make_entry(occurred_at=at, api_key=key) for key in (called("old"), other))
    store.append([(old, ()), (theirs, ())])
    close_period(store, month, by="kim")
    for name in ("old", "theirs"):
        issue_invoice(store, draft_invoice(store, api_key=name, period=month, profile=profile), force=True)
    budgets = [
        Budget(name="keys", api_key="*", limit_usd=10, hard=False, thresholds=[50]),
        *(Budget(name=f"of {name}", api_key=name, limit_requests=100) for name in ("old", "theirs")),
    ]
    for key in (called("old"), other):
        meter = spend(store, 6, key, budgets)
    for name, amount in (("old", 3), ("theirs", 4)):
        meter.budgets.grant("keys", amount, scope={"api_key": name}, by="kim", reason="more")
    meter = spend(store, 1, called("new"), budgets)
    for name in ("new", "old"):
        seen = look_through(meter, AccessScope.of({"api_key": name}))
        assert {entry.api_key.fingerprint for entry in seen.store.entries()} == {KEY.fingerprint}
        assert [seen.store.entry(one.entry_id) is not None for one in (old, theirs)] == [True, False]
        assert {one.key.scope for one in seen.store.crossings()} == {f"api_key={KEY.fingerprint}"}
        assert {key.scope for key, _ in seen.store.all_counters()} == {f"api_key={KEY.fingerprint}"}
        assert [(one.amount, one.by) for one in seen.budgets.grants("keys")] == [(3, "")]
        assert [one.scope["api_key"] for one in invoices(seen.store)] == ["old"]
        assert {one.name for one in seen.budgets.in_force} == {"keys", "of old"}
        for wanted in ({}, {"api_key": "new"}):
            told = {(one.budget, one.scope["api_key"]) for one in seen.budgets.remaining(wanted, store.now())}
            assert told == {("keys", "new"), ("of old", "new")}
        assert seen.budgets.remaining({"api_key": "theirs"}, store.now()) == []
        assert seen.store.key_labels() == {KEY.fingerprint: "new"}


def test_commands_name_the_key_that_more_was_granted_to(tmp_path, run_command):
    url = f"sqlite:///{tmp_path}/ledger.db"
    with contextlib.closing(open_store(url)) as store:
        spend(store, 6, called("prod"), [Budget(name="keys", api_key="*", limit_usd=100)])
    code, said, _ = run_command("raise", "keys", "3", "api_key=prod", "--reason", "more", "--store", url)
    assert (code, said.strip()) == (0, "keys: +3 usd for api_key=prod.")
    code, said, _ = run_command("budgets", "history", "keys", "--store", url)
    assert "for api_key=prod" in " ".join(said.split())
    assert KEY.fingerprint not in said


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


def test_a_key_is_told_of_the_pattern_that_it_falls_under(store):
    budgets = [
        Budget(api_key="prod*", limit_usd=99, name="family"),
        Budget(api_key="test*", limit_usd=99, name="tests"),
    ]
    spend(store, 2, called("prod-eu"), budgets)
    meter = Meter(store=store, pricer=PRICER, budgets=budgets)
    for name in ("prod-eu", KEY.fingerprint):
        assert [(one.scope, one.spent) for one in meter.remaining(api_key=name)] == [({"api_key": "prod*"}, 2)]
    assert meter.remaining(api_key="nobody's") == []


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


def is_stopped(meter, key):
    try:
        spend_by(meter, 0, key)
    except BudgetExceededError:
        return True
    return False


def spend_by(meter, dollars, key):
    """One call of a running program."""
    call = Call(
        provider="openai",
        endpoint="chat.completions",
        operation="chat",
        facts=RequestFacts(model="m", input_bytes=0, max_output_tokens=10),
        attribution=Attribution(),
        api_key=key,
    )
    seen = Observation(consumptions=(Consumption(model="m", usage=Usage({"output": dollars})),))
    meter.settle(meter.authorize(call), Outcome(observation=seen))


def running(store, *budgets):
    return Meter(store=store, pricer=PRICER, budgets=budgets)


@pytest.mark.parametrize(("named", "key"), [("prod", called("prod")), ("...aaaa", KEY), (KEY.fingerprint, KEY)])
def test_a_grant_on_a_budget_of_one_key_is_that_keys_by_any_of_its_names(store, named, key):
    meter = running(store, Budget(api_key=named, limit_usd=0, period="total", name="credit"))
    spend(store, 0, key)
    assert is_stopped(meter, key)
    made = meter.budgets.grant("credit", 10_000, by="kim", reason="r", key="payment-1")
    assert made.scope == {"api_key": KEY.fingerprint}
    assert not is_stopped(meter, key)
    for name in {named, KEY.fingerprint, key.label}:
        scope = {"api_key": name}
        again = meter.budgets.grant("credit", 10_000, by="kim", reason="r", key="payment-1", scope=scope)
        assert again == made
        assert meter.budgets.grants("credit", scope) == [made]
    spend(store, 3, OTHER)
    with pytest.raises(ConfigurationError, match="Budget 'credit' is for api_key="):
        meter.budgets.grant("credit", 1, by="kim", reason="r", scope={"api_key": "...bbbb"})
    assert [one.limit for one in meter.remaining()] == [10_000]


def test_a_grant_to_a_key_that_nobody_used_yet_is_there_for_its_first_call(store):
    meter = running(store, Budget(api_key="prod", limit_usd=0, period="total", name="credit"))
    made = meter.budgets.grant("credit", 10_000, by="kim", reason="r", key="payment-1")
    assert [(one.scope, one.limit) for one in meter.remaining()] == [({"api_key": "prod"}, 10_000)]
    spend_by(meter, 2, called("prod"))
    assert [(one.scope, one.spent, one.remaining) for one in meter.remaining()] == [({"api_key": "prod"}, 2, 9_998)]
    assert meter.budgets.grant("credit", 10_000, by="kim", reason="r", key="payment-1") == made
    for name in ("prod", KEY.fingerprint):
        assert meter.budgets.grants("credit", {"api_key": name}) == [made]
        scope = {"api_key": name}
        assert meter.budgets.grant("credit", 10_000, by="kim", reason="r", key="payment-1", scope=scope) == made
    meter.budgets.grant("credit", 1, by="kim", reason="r")
    assert [one.limit for one in meter.remaining()] == [10_001]


def test_of_several_keys_of_one_name_a_grant_has_to_say_which(store):
    budget = Budget(api_key="prod", limit_usd=0, period="total", hard=False, name="credit")
    for key in (called("prod"), replace(OTHER, alias="prod")):
        spend(store, 1, key, [budget])
    meter = running(store, budget)
    with pytest.raises(ConfigurationError, match=rf"several keys \({KEY.fingerprint}, {OTHER.fingerprint}\)"):
        meter.budgets.grant("credit", 5, by="kim", reason="r")
    meter.budgets.grant("credit", 5, by="kim", reason="r", scope={"api_key": OTHER.fingerprint})
    assert sorted(one.limit for one in meter.remaining()) == [0, 5]


@pytest.mark.parametrize(
    ("key", "name"), [(called("leaked"), "leaked"), (KEY, "...aaaa"), (called("leaked"), KEY.fingerprint)]
)
def test_a_table_of_limits_says_keys_by_their_names(store, key, name):
    spend(store, 3, key)
    meter = running(store, Budget(api_key="*", limit={name: 0}, limit_usd=100_000, name="keys"))
    assert is_stopped(meter, key)
    assert not is_stopped(meter, replace(OTHER, alias="other"))
    if key.alias is not None:  # a program that has no name for it goes by the ledger's
        assert is_stopped(running(store), KEY)
    (mine,) = (one for one in meter.remaining() if one.scope["api_key"] == key.label)
    assert (mine.limit, mine.spent) == (0, 3)
    grant = meter.budgets.grant("keys", 90_000, by="kim", reason="r", scope={"api_key": key.label})
    assert meter.budgets.grants("keys", {"api_key": key.label}) == [grant]
    assert not is_stopped(meter, key)


def test_a_limit_function_is_asked_for_a_key_by_its_name_and_forgets_it_by_either(store):
    asked = []

    def limit_of(name):
        asked.append(name)
        return 100_000

    meter = running(store, Budget(api_key="*", limit=limit_of, limit_usd=0, refresh=3600, name="keys"))
    nameless = ApiKey("cc" * 16, "")
    for key in (called("prod"), OTHER, nameless):
        spend_by(meter, 1, key)
        spend_by(meter, 1, key)
    assert asked == ["prod", "...bbbb", nameless.fingerprint]
    assert {one.limit for one in meter.remaining()} == {100_000}
    assert len(asked) == 3
    for name in ("prod", KEY.fingerprint):
        meter.budgets.forget_limits("keys", name)
        spend_by(meter, 1, called("prod"))
        spend_by(meter, 1, OTHER)
    assert asked[3:] == ["prod", "prod"]
