"""Errors: one root, every field, safe to pickle and to show."""

from __future__ import annotations

import inspect
import json
import pickle
from datetime import UTC, datetime
from decimal import Decimal

import pytest

import tokenmeter
import tokenmeter.errors as module
from tokenmeter.errors import BudgetExceededError, ConfigurationError, RequestTooLargeError, TokenmeterError

FIELDS = {
    "budget": "ada-monthly",
    "scope": {"member": "ada"},
    "unit": "usd",
    "limit": Decimal("0.50"),
    "spent": Decimal("0.49"),
    "reserved": Decimal("0.005"),
    "requested": Decimal("0.02"),
    "resets_at": datetime(2026, 12, 1, tzinfo=UTC),
}


def test_every_error_has_the_one_root_and_a_name_that_says_error():
    errors = [value for _, value in inspect.getmembers(module, inspect.isclass) if issubclass(value, Exception)]
    assert all(issubclass(error, TokenmeterError) and error.__name__.endswith("Error") for error in errors)
    assert sorted(error.__name__ for error in errors) == module.__all__


def test_the_tree_in_the_docstring_names_every_error():
    assert all(name in module.__doc__ for name in module.__all__)


def test_a_budget_stop_says_which_budget_how_much_and_until_when():
    message = str(BudgetExceededError(**FIELDS))
    for part in ("ada-monthly", "member=ada", "$0.50", "$0.49", "$0.02", "2026-12-01"):
        assert part in message


@pytest.mark.parametrize(("limit", "words"), [(1, "limit 1 call in flight, of"), (4, "limit 4 calls in flight, of")])
def test_what_is_limited_in_flight_is_called_so(limit, words):
    assert words in str(BudgetExceededError(**{**FIELDS, "unit": "in_flight", "limit": Decimal(limit)}))


def test_a_budget_stop_can_be_shown_to_end_users_without_figures():
    shown = BudgetExceededError(**FIELDS).message(redact=True)
    assert not any(character.isdigit() for character in shown)
    assert "ada" not in shown


def test_a_budget_stop_survives_pickling_and_json():
    stop = RequestTooLargeError(**FIELDS, max_affordable_output_tokens=120, model="gpt-5")
    again = pickle.loads(pickle.dumps(stop))  # noqa: S301 - our own bytes
    assert type(again) is RequestTooLargeError
    assert again.to_dict() == stop.to_dict() == json.loads(json.dumps(stop.to_dict()))
    assert stop.to_dict()["max_affordable_output_tokens"] == 120


#: A value as nobody can read it, without a space and with some.
LONG = {"unbroken": "x" * 100_000, "words": "word " * 20_000}
GIVEN = {
    "a setting": lambda value: tokenmeter.make_meter(store="memory:", config={}, price_list=value),
    "a row of a setting": lambda value: tokenmeter.make_meter(store="memory:", config={}, prices=[{value: value}]),
    "a budget": lambda value: tokenmeter.Budget(limit_usd=1, period=value),
    "a dimension": lambda value: tokenmeter.make_meter(store="memory:", config={}).report(by=value),
    "a period": lambda value: tokenmeter.make_meter(store="memory:", config={}).report(period=value),
    "a filter": lambda value: tokenmeter.make_meter(store="memory:", config={}).report(where={value: value}),
    "a number": lambda value: tokenmeter.make_meter(store="memory:", config={}).hold(
        provider="openai", endpoint="responses", model="gpt-5", input_tokens=[value]
    ),
    "a name": lambda value: tokenmeter.attribute(member=value),
}


@pytest.mark.parametrize("value", sorted(LONG))
@pytest.mark.parametrize("given", sorted(GIVEN))
def test_a_long_value_takes_no_more_of_a_message_than_what_is_said_of_it(given, value):
    with pytest.raises(TokenmeterError) as wrong:
        GIVEN[given](LONG[value])
    message = str(wrong.value)
    assert len(message) <= 8_100
    assert message == pickle.loads(pickle.dumps(wrong.value)).args[0]  # noqa: S301 - our own bytes


def test_a_message_that_is_cut_keeps_its_beginning_and_its_mend():
    message = str(
        ConfigurationError(f"period {'x' * 5_000!r} is none; write it as 2026-09. " + "It is long. " * 2_000 + "End.")
    )
    assert message.startswith("period 'xxx")
    assert "xxx' is none; write it as 2026-09." in message
    assert message.endswith("End.")
    assert len(message) < 8_100


def test_a_call_without_a_bound_says_so():
    assert "has no upper bound" in str(BudgetExceededError(**{**FIELDS, "requested": None}))
