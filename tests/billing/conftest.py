"""What the billing tests share: a ledger, and calls on somebody's account that cost what the test says."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.ledger import Charge, Entry
from tokenmeter.money import divide, quantize
from tokenmeter.stores import open_store
from tokenmeter.usage import Usage

#: The day after the period that tests close.
DECEMBER = datetime(2026, 12, 1, 9, tzinfo=UTC)


@pytest.fixture
def store():
    opened = open_store("memory:")
    yield opened
    opened.close()


@pytest.fixture
def december():
    return DECEMBER


@pytest.fixture
def make_call():
    """`make_call("1.5", member="ada")`: an entry of one charge that costs 1.5 dollars."""

    def make(
        cost="1",
        at="2026-11-10T12:00",
        *,
        meter="input",
        quantity=1000,
        model="gpt-5",
        kind="usage",
        key=None,
        multipliers=None,
        provider="openai",
        **who,
    ):
        amount = None if cost is None else quantize(Decimal(cost))
        price = None if amount is None or not quantity else divide(amount, quantity)
        charge = Charge(
            model=model,
            sku_meter=meter,
            quantity=quantity,
            unit="Tokens",
            list_unit_price=price,
            multipliers={name: Decimal(factor) for name, factor in (multipliers or {}).items()},
            list_cost=amount,
            contracted_cost=amount,
            billed_cost=amount,
        )
        return Entry(
            kind=kind,
            occurred_at=datetime.fromisoformat(at).replace(tzinfo=UTC),
            provider=provider,
            endpoint="chat.completions",
            operation="chat",
            request_model=model,
            attribution=Attribution(**who),
            api_key=None if key is None else ApiKey(key.encode().hex().ljust(32, "f"), "abcd", key),
            usage=Usage({meter: quantity}) if kind == "usage" else Usage(),
            charges=(charge,),
            list_cost=amount,
            contracted_cost=amount,
            billed_cost=amount,
            cost_source="unpriced" if amount is None else "computed",
        )

    return make


@pytest.fixture
def book(store, make_call):
    """Record calls in `store`."""

    def record(*args, **changes):
        entry = make_call(*args, **changes)
        store.settle(entry)
        return entry

    return record
