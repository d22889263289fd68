"""What can be said about a budget, and what is refused when it is said."""

import copy
import json
import pickle
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmeter.attribution import Attribution
from tokenmeter.budgets import Budget
from tokenmeter.budgets.agreement import check_consistent
from tokenmeter.budgets.policy import limit_in, threshold_amounts
from tokenmeter.errors import ConfigurationError


@pytest.mark.parametrize(
    ("arguments", "field", "reason"),
    [
        ({}, "limit_usd", "at least one"),
        ({"limit_usd": "-5"}, "limit_usd", "not be negative"),
        ({"limit_usd": "much"}, "limit_usd", "number"),
        ({"limit_usd": True}, "limit_usd", "number"),
        ({"limit_usd": "NaN"}, "limit_usd", "finite"),
        ({"limit_usd": "1E-13"}, "limit_usd", "multiple of 0.000000000001"),
        ({"limit_usd": "1E9"}, "limit_usd", "not be greater"),
        ({"limit_tokens": "1.5"}, "limit_tokens", "multiple of 1"),
        ({"limit_requests": -1}, "limit_requests", "not be negative"),
        ({"limit_in_flight": -1}, "limit_in_flight", "not be negative"),
        ({"limit": {"ada": 1}}, "limit", "exactly one"),
        ({"member": "*", "limit": {"ada": -1}}, "limit.ada", "not be negative"),
        ({"member": "*", "limit": {"ada": {"euros": 1}}}, "limit.ada", "not one of usd"),
        ({"member": "*", "limit": {"ada": 5, "*": 1}}, "limit", "limit_usd beside it"),
        ({"member": "*", "limit": 3}, "limit", "table or a function"),
        ({"member": "*", "limit": lambda who: 1, "refresh": 0}, "refresh", "at least 1"),
        ({"limit_usd": 1, "unknown_price": "guess"}, "unknown_price", "hold or refuse"),
        ({"limit_usd": 1, "period": "week", "week_start": "caturday"}, "week_start", "day's name"),
        ({"limit_usd": 1, "reset_hour": 24}, "reset_hour", "0 to 23"),
        ({"limit_usd": 1, "period": "hour", "reset_hour": 3}, "reset_hour", "day or a longer"),
        ({"limit_usd": 1, "period": "fortnight"}, "period", "one of hour, day"),
        ({"limit_usd": 1, "period": "rolling-0s"}, "period", "rolling"),
        ({"limit_usd": 1, "period": "rolling-60"}, "period", "rolling"),
        ({"limit_usd": 1, "tz": "Mars/Olympus"}, "Unknown time zone", "IANA"),
        ({"limit_usd": 1, "period": "week", "week_start": 7}, "week_start", "0 (Monday)"),
        ({"limit_usd": 1, "week_start": 6}, "week_start", "period='week'"),
        ({"limit_usd": 1, "anchor": 0}, "anchor", "1 to 31"),
        ({"limit_usd": 1, "anchor": 15, "period": "day"}, "anchor", "month, quarter or year"),
        ({"limit_usd": 1, "thresholds": [0]}, "thresholds", "1 to 1000"),
        ({"limit_usd": 1, "thresholds": "80"}, "thresholds", "list"),
        ({"limit_usd": 1, "store_failure": "ajar"}, "store_failure", "closed or open"),
        ({"limit_usd": 1, "estimate": "guess"}, "estimate", "strict or expected"),
        ({"limit_usd": 1, "unbounded": "allow"}, "unbounded", "refuse or expected"),
        ({"limit_usd": 1, "hard": "yes"}, "hard", "true or false"),
        ({"limit_usd": 1, "member": ""}, "member", "non-empty"),
        ({"limit_usd": 1, "member": 7}, "member", "non-empty"),
        ({"limit_usd": 1, "tags": {"team": None}}, "tags.team", "non-empty"),
        ({"limit_usd": 1, "tags": "team"}, "tags", "map"),
        ({"limit_usd": 1, "starts": "2026-11-02", "ends": "2026-11-01"}, "ends", "later than starts"),
        ({"limit_usd": 1, "starts": "soon"}, "'soon'", "not an instant"),
    ],
)
def test_a_wrong_value_is_refused_by_name_and_reason(arguments, field, reason):
    with pytest.raises(ConfigurationError) as caught:
        Budget(**arguments)
    assert field in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "name", ["山田\u3000太郎", "\u0639\u0644\u06cc\u200c\u0631\u0636\u0627", "👩\u200d💻", "Ren\u00a0e", "a\u2028b"]
)
def test_whoever_may_be_attributed_to_may_have_a_budget(name):
    assert Attribution(member=name, tags={name: name}).member == name
    assert Budget(member=name, limit_usd=1).scope == {"member": name}
    assert Budget(tags={name: name}, limit_usd=1).scope == {f"tag:{name}": name}
    assert Budget(member="*", limit={name: 1}, limit_usd=1).limits == {"usd": 10**12}


@pytest.mark.parametrize("name", ["", " ", "\u3000", "a\nb", "a\x00", "\ud800", "x" * 513])
def test_whom_nothing_is_attributed_to_has_none(name):
    for arguments in ({"member": name}, {"tags": {"a": name}}, {"member": "*", "limit": {name: 1}}):
        with pytest.raises(ConfigurationError):
            Budget(**arguments, limit_usd=1)


def test_a_rolling_window_ends_within_what_dates_can_say():
    assert Budget(limit_usd=1, period="rolling-3650d").period == "rolling-3650d"
    for period in ("rolling-3651d", "rolling-999999d", "rolling-87601h"):
        with pytest.raises(ConfigurationError, match="3650 days long at most"):
            Budget(limit_usd=1, period=period)


class TestRows:
    def test_three_lines_make_a_monthly_hard_cap_per_member(self):
        budget = Budget.parse({"member": "*", "limit_usd": 50})
        assert (budget.period, budget.hard, budget.limits) == ("month", True, {"usd": 50 * 10**12})

    def test_an_error_names_file_row_field_and_reason(self):
        with pytest.raises(ConfigurationError) as caught:
            Budget.parse({"member": "ada", "limit_usd": -1}, file="tokenmeter.toml", number=3)
        assert str(caught.value) == (
            "tokenmeter.toml: budgets[3].limit_usd must not be negative, but was -1; 0 means not at all."
        )

    def test_an_error_of_a_budget_that_stands_alone_names_no_row(self):
        with pytest.raises(ConfigurationError, match=r"^command line: limit_usd must not be greater than 4,000,000\.$"):
            Budget.parse({"limit_usd": 5_000_000}, file="command line")

    def test_an_unknown_field_is_refused_with_the_likely_one(self):
        with pytest.raises(ConfigurationError, match="did you mean 'limit_usd'"):
            Budget.parse({"limit_used": 1}, file="tokenmeter.toml")

    def test_a_value_of_the_wrong_type_is_a_configuration_error(self):
        for row in ({"limit_usd": [1]}, {"limit_usd": 1, "thresholds": 5}, {"limit_usd": 1, "tz": 3}):
            with pytest.raises(ConfigurationError):
                Budget.parse(row)


class TestRecords:
    def test_a_binary_fraction_is_taken_as_it_was_typed(self):
        assert Budget(limit_usd=0.1).limits == {"usd": 10**11}

    def test_it_can_be_copied_pickled_compared_and_put_into_sets(self):
        budget = Budget(tags={"k": "v"}, limit_usd="1.50", starts="2026-11-01")
        assert pickle.loads(pickle.dumps(budget)) == budget == copy.deepcopy(budget)  # noqa: S301 - made here
        assert len({budget, copy.copy(budget)}) == 1

    def test_its_text_shows_only_what_was_said(self):
        assert repr(Budget(member="ada", limit_requests=3, hard=False, name="n")) == (
            "Budget(member='ada', limit_requests=3, period='month', hard=False, name='n')"
        )

    def test_another_limit_keeps_the_counter_and_another_unit_or_window_does_not(self):
        base = Budget(member="ada", limit_usd=10, name="ada")
        name = base.counter_name("usd")
        assert replace(base, limit_usd=20).counter_name("usd") == name
        assert replace(base, limit_usd=None, limit_tokens=20).counter_name("tokens") != name
        assert replace(base, period="day").counter_name("usd") != name
        assert replace(base, tz="Asia/Tokyo").counter_name("usd") != name

    def test_each_limit_has_a_counter_of_its_own_whatever_the_budget_is_called(self):
        budget = Budget(limit_usd=10, limit_requests=3, name="usd/month, requests/month")
        assert budget.counter_name("usd") != budget.counter_name("requests")

    @pytest.mark.parametrize("period", ["month", "rolling-1h"])
    @pytest.mark.parametrize("thresholds", [None, [], [50, 80, 100], [90]], ids=str)
    def test_thresholds_are_written_down_where_they_are_not_what_the_period_has_by_itself(self, period, thresholds):
        budget = Budget(limit_usd=1, period=period, thresholds=thresholds)
        assert Budget.parse(budget.to_dict()) == budget

    def test_what_was_said_can_be_written_down_and_read_back(self):
        said = Budget(
            member="*", tags={"k": "v"}, limit_usd="0.10", limit_requests=0, limit={"ada": {"usd": "5", "requests": 9}},
            starts="2026-11-01", period="week", week_start="sunday", reset_hour=6, thresholds=[90], hard=False,
        )  # fmt: skip
        assert Budget.parse(json.loads(json.dumps(said.to_dict()))).to_dict() == said.to_dict()

    @pytest.mark.parametrize("said", [None, 0, "unlimited", {}, {"usd": None}, {"usd": None, "requests": 9}], ids=str)
    def test_whatever_a_table_may_say_of_a_member_can_be_written_down_and_read_back(self, said):
        budget = Budget(member="*", limit={"ada": said}, limit_usd=1, limit_requests=2)
        read = Budget.parse(json.loads(json.dumps(budget.to_dict())))
        assert read.to_dict() == budget.to_dict()
        assert [limit_in(read.limit["ada"], unit, name="") for unit in read.units] == [
            limit_in(said, unit, name="") for unit in budget.units
        ]

    def test_a_function_is_written_down_by_its_name_and_cannot_be_asked_elsewhere(self):
        read = Budget.parse(Budget(member="*", limit=lambda member: 1).to_dict())
        with pytest.raises(ConfigurationError, match=r"'ada'.*TestRecords.*does not have"):
            read.limit("ada")

    @given(st.integers(1, 10**9), st.integers(1, 200))
    def test_a_threshold_is_never_reached_too_early(self, limit, percent):
        budget = Budget(limit_tokens=limit, thresholds=[percent])
        (amount,) = threshold_amounts(budget, limit)
        assert amount * 100 >= limit * percent > (amount - 1) * 100

    def test_effective_dates_are_read_in_its_zone(self):
        budget = Budget(limit_usd=1, starts="2026-11-01", ends="2026-12-01", tz="Asia/Tokyo")
        assert not budget.applies(datetime(2026, 10, 31, 14, 59, tzinfo=UTC))
        assert budget.applies(datetime(2026, 10, 31, 15, 0, tzinfo=UTC))
        assert not budget.applies(datetime(2026, 11, 30, 15, 0, tzinfo=UTC))


class TestSeveral:
    def test_a_repetition_counts_once(self):
        assert len(check_consistent([Budget(member="ada", limit_usd=1), Budget(member="ada", limit_usd="1.0")])) == 1

    @pytest.mark.parametrize("names", [("", ""), ("a", "b")])
    def test_two_limits_for_the_same_calls_are_refused(self, names):
        with pytest.raises(ConfigurationError, match="same calls over the same window"):
            check_consistent([Budget(limit_usd=1, name=names[0]), Budget(limit_usd=2, name=names[1])])

    def test_two_budgets_of_one_name_are_refused(self):
        with pytest.raises(ConfigurationError, match="a name of its own"):
            check_consistent([Budget(limit_usd=1, name="n"), Budget(limit_tokens=2, name="n")])

    def test_limits_that_follow_one_another_are_accepted(self):
        check_consistent([Budget(limit_usd=1, ends="2026-11-01"), Budget(limit_usd=2, starts="2026-11-01")])

    def test_soft_below_hard_and_one_below_all_are_accepted(self):
        check_consistent([Budget(limit_usd=1, hard=False), Budget(limit_usd=2), Budget(member="*", limit_usd=1)])

    def test_five_thousand_named_members_are_no_trouble(self):
        assert len(check_consistent(Budget(member=f"m{i}", limit_usd=1) for i in range(5000))) == 5000
