"""What can be said about a budget, and what is refused when it is said."""

import copy
import pickle
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmeter.budgets import Budget, BudgetBook
from tokenmeter.errors import ConfigurationError


@pytest.mark.parametrize(
    ("arguments", "field", "reason"),
    [
        ({}, "limit_usd", "exactly one"),
        ({"limit_usd": 1, "limit_tokens": 1}, "limit_usd", "exactly one"),
        ({"limit_usd": 0}, "limit_usd", "greater than zero"),
        ({"limit_usd": "-5"}, "limit_usd", "greater than zero"),
        ({"limit_usd": "much"}, "limit_usd", "number"),
        ({"limit_usd": True}, "limit_usd", "number"),
        ({"limit_usd": "NaN"}, "limit_usd", "finite"),
        ({"limit_usd": "1E-13"}, "limit_usd", "multiple of 0.000000000001"),
        ({"limit_usd": "1E9"}, "limit_usd", "not be greater"),
        ({"limit_tokens": "1.5"}, "limit_tokens", "multiple of 1"),
        ({"limit_requests": -1}, "limit_requests", "greater than zero"),
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


class TestRows:
    def test_three_lines_make_a_monthly_hard_cap_per_member(self):
        budget = Budget.parse({"member": "*", "limit_usd": 50})
        assert (budget.period, budget.hard, budget.unit, budget.limit) == ("month", True, "usd", Decimal(50))

    def test_an_error_names_file_row_field_and_reason(self):
        with pytest.raises(ConfigurationError) as caught:
            Budget.parse({"member": "ada", "limit_usd": -1}, file="tokenmeter.toml", number=3)
        assert str(caught.value) == "tokenmeter.toml: budgets[3].limit_usd must be greater than zero, not -1."

    def test_an_unknown_field_is_refused_with_the_likely_one(self):
        with pytest.raises(ConfigurationError, match="did you mean 'limit_usd'"):
            Budget.parse({"limit_used": 1}, file="tokenmeter.toml")

    def test_a_value_of_the_wrong_type_is_a_configuration_error(self):
        for row in ({"limit_usd": [1]}, {"limit_usd": 1, "thresholds": 5}, {"limit_usd": 1, "tz": 3}):
            with pytest.raises(ConfigurationError):
                Budget.parse(row)


class TestRecords:
    def test_a_binary_fraction_is_taken_as_it_was_typed(self):
        assert Budget(limit_usd=0.1).limit == Decimal("0.1")

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
        assert replace(base, limit_usd=20).counter_name == base.counter_name
        assert replace(base, limit_usd=None, limit_tokens=20).counter_name != base.counter_name
        assert replace(base, period="day").counter_name != base.counter_name
        assert replace(base, tz="Asia/Tokyo").counter_name != base.counter_name

    @given(st.integers(1, 10**9), st.integers(1, 200))
    def test_a_threshold_is_never_reached_too_early(self, limit, percent):
        budget = Budget(limit_tokens=limit, thresholds=[percent])
        (amount,) = budget.threshold_amounts
        assert amount * 100 >= limit * percent > (amount - 1) * 100

    def test_effective_dates_are_read_in_its_zone(self):
        budget = Budget(limit_usd=1, starts="2026-11-01", ends="2026-12-01", tz="Asia/Tokyo")
        assert not budget.applies(datetime(2026, 10, 31, 14, 59, tzinfo=UTC))
        assert budget.applies(datetime(2026, 10, 31, 15, 0, tzinfo=UTC))
        assert not budget.applies(datetime(2026, 11, 30, 15, 0, tzinfo=UTC))


class TestBooks:
    def test_a_repetition_counts_once(self):
        assert len(BudgetBook([Budget(member="ada", limit_usd=1), Budget(member="ada", limit_usd="1.0")]).budgets) == 1

    @pytest.mark.parametrize("names", [("", ""), ("a", "b")])
    def test_two_limits_for_the_same_calls_are_refused(self, names):
        with pytest.raises(ConfigurationError, match="same calls over the same window"):
            BudgetBook([Budget(limit_usd=1, name=names[0]), Budget(limit_usd=2, name=names[1])])

    def test_two_budgets_of_one_name_are_refused(self):
        with pytest.raises(ConfigurationError, match="a name of its own"):
            BudgetBook([Budget(limit_usd=1, name="n"), Budget(limit_tokens=2, name="n")])

    def test_limits_that_follow_one_another_are_accepted(self):
        BudgetBook([Budget(limit_usd=1, ends="2026-11-01"), Budget(limit_usd=2, starts="2026-11-01")])

    def test_soft_below_hard_and_one_below_all_are_accepted(self):
        BudgetBook([Budget(limit_usd=1, hard=False), Budget(limit_usd=2), Budget(member="*", limit_usd=1)])

    def test_five_thousand_named_members_are_no_trouble(self):
        assert len(BudgetBook(Budget(member=f"m{i}", limit_usd=1) for i in range(5000)).budgets) == 5000

    def test_an_empty_book_is_false(self):
        assert not BudgetBook()
