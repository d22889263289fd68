"""Bodies whose cost was worked out by hand, from what came off the wire to the last decimal."""

import importlib
import json
import re
import tomllib
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from tokenmeter.money import divide, multiply
from tokenmeter.periods import parse_instant
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.providers.registry import observe

GOLDEN = sorted(Path(__file__).with_name("golden").glob("*.toml"))
CASES = [case for path in GOLDEN for case in tomllib.loads(path.read_text(encoding="utf-8"))["case"]]
LINE = re.compile(r"(?P<meter>\w+): (?P<sum>.+) = (?P<cost>[\d.]+)$")


@pytest.fixture(scope="module")
def pricer():
    return Pricer(PriceList.load())


def rated(case, pricer):
    call = dict(case["call"])
    at = parse_instant(call.pop("at"))
    observation = observe(json.loads(case["body"]), **call).with_shared()
    rating = pricer.rate(observation, provider=call["provider"], endpoint=call["endpoint"], at=at)
    return replace(rating, flags=rating.flags | observation.flags)


def worked_out(line):
    """(meter, quantity, unit price, cost) of a line like ``input: 1000 x 3 / 1000000 x 1.1 = 0.0033``."""
    found = LINE.match(line)
    factors, _, per = found["sum"].partition(" / ")
    quantity, price, *multipliers = (Decimal(each) for each in factors.split(" x "))
    cost = Decimal(found["cost"])
    divisor = Decimal(per or 1_000_000)
    product = divide(multiply(quantity, price, *multipliers), divisor)
    assert product == cost, f"the arithmetic in the data is wrong: {line} (it is {product})"
    return found["meter"], quantity, divide(price, divisor), cost


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_body_costs_what_was_worked_out_by_hand(case, pricer):
    rating = rated(case, pricer)
    seen = [(charge.sku_meter, charge.quantity, charge.list_unit_price, charge.list_cost) for charge in rating.charges]
    if "list_cost" in case:
        priced = [line for line in case["lines"] if not line.endswith(": unpriced")]
        without = [charge.sku_meter for charge in rating.charges if charge.list_cost is None]
        assert sorted(each for each in seen if each[3] is not None) == sorted(map(worked_out, priced))
        assert [f"{meter}: unpriced" for meter in without] == [line for line in case["lines"] if line not in priced]
        assert rating.list_cost == Decimal(case["list_cost"])
        assert rating.cost_source == case.get("cost_source", "computed")
    else:
        assert sorted(seen) == sorted(
            (meter, quantity, None, None) for meter, quantity, _, _ in seen if f"{meter}: unpriced" in case["lines"]
        )
        assert rating.list_cost is None
        assert rating.cost_source == "unpriced"
    assert sorted(rating.flags) == case.get("flags", [])


def typed(cases):
    """Those whose usage is of a type of an SDK's, where the installed one has it with these fields."""
    for case in cases:
        if "usage_type" in case:
            needed = f"{':'.join(case['usage_type'].rsplit('.', 1))}({', '.join(json.loads(case['body'])['usage'])})"
            yield pytest.param(case, id=case["name"], marks=pytest.mark.needs(needed))


@pytest.mark.parametrize("case", list(typed(CASES)))
def test_the_bodies_are_what_the_sdk_knows(case):
    module, _, name = case["usage_type"].rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    usage = json.loads(case["body"])["usage"]
    assert kind.model_validate(usage).model_dump(exclude_unset=True) == usage


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_every_expected_cost_names_its_source(case):
    assert case["source"]
