"""Money: exact from end to end."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmeter.errors import ConfigurationError
from tokenmeter.money import negate, parse_decimal, quantize, round_money, round_to, to_dollars, to_picodollars


@given(st.integers(-(10**30), 10**30))
def test_picodollars_make_the_round_trip_exactly(picodollars):
    assert to_picodollars(to_dollars(picodollars)) == picodollars


@given(st.decimals(-(10**12), 10**12, places=15))
def test_rounding_is_to_the_nearest_picodollar(amount):
    assert abs(quantize(amount) - amount) <= Decimal("0.5E-12")


@pytest.mark.parametrize("amount", ["-0", "-0.00", "-1E-20", "0"])
def test_what_comes_to_nothing_has_no_sign(amount):
    number = Decimal(amount)
    for told in (quantize(number), round_to(number, 2), round_money(number, "JPY"), negate(quantize(number))):
        assert not told.is_signed(), told


def test_a_finer_amount_is_refused_rather_than_cut():
    with pytest.raises(ValueError, match="quantize"):
        to_picodollars(Decimal("1E-13"))


def test_what_the_user_typed_is_what_counts():
    assert parse_decimal(0.1, name="x") == Decimal("0.1")
    assert parse_decimal(" 1.05 ", name="x") == Decimal("1.05")
    assert parse_decimal(3, name="x") == 3


@pytest.mark.parametrize("bad", [None, True, "", "abc", "nan", float("inf"), []])
def test_what_is_no_number_is_refused_by_name(bad):
    with pytest.raises(ConfigurationError, match="limit_usd"):
        parse_decimal(bad, name="limit_usd")
