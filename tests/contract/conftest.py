"""Every test that asks for `store` runs over every kind of store."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.ledger import Charge, Claim, CounterKey, Entry, Posting, Reservation, new_id
from tokenmeter.stores import open_store
from tokenmeter.stores.sqlite import database
from tokenmeter.usage import Usage

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.fixture(params=["memory", "network", "postgres", "sqlite"])
def store(request, fresh_url, monkeypatch):
    kind = request.param
    if kind == "network":  # a file that several machines may share
        monkeypatch.setattr(database, "is_network", lambda path: True)
        kind = "sqlite"
    opened = open_store(fresh_url(kind))
    yield opened
    opened.close()


@pytest.fixture
def noon():
    return NOON


@pytest.fixture
def make_charge():
    def make(meter="input", quantity=1000, price="0.00000125", **changes):
        cost = None if price is None else (Decimal(price) * quantity).quantize(Decimal("1E-12"))
        values = {
            "model": "gpt-5",
            "sku_meter": meter,
            "quantity": quantity,
            "unit": "Tokens",
            "list_unit_price": None if price is None else Decimal(price),
            "list_cost": cost,
            "contracted_cost": cost,
            "billed_cost": cost,
        }
        return Charge(**(values | changes))

    return make


@pytest.fixture
def make_entry(make_charge):
    """An entry with two charges; keyword arguments change any field, `member=` and the like its attribution."""

    def make(*, charges=None, **changes):
        if charges is None:
            charges = (make_charge("input", 1000), make_charge("output", 200, "0.00001"))
        who = {name: changes.pop(name) for name in tuple(changes) if name in Attribution.__dataclass_fields__}
        priced = [charge for charge in charges if charge.billed_cost is not None]
        sums = {
            name: sum((getattr(charge, name) for charge in priced), Decimal(0)) if priced else None
            for name in ("list_cost", "contracted_cost", "billed_cost")
        }
        values = {
            "occurred_at": NOON,
            "provider": "openai",
            "endpoint": "chat.completions",
            "operation": "chat",
            "request_model": "gpt-5",
            "attribution": Attribution(**who),
            "api_key": ApiKey("ab" * 16, "wxyz", "prod"),
            "usage": Usage({charge.sku_meter: charge.quantity for charge in charges}, 50),
            "charges": tuple(charges),
            "cost_source": "computed",
            **sums,
        }
        return Entry(**(values | changes))

    return make


@pytest.fixture
def make_key():
    return lambda budget="cap", scope="member=ada", start=0: CounterKey(budget, scope, start)


@pytest.fixture
def make_hold(make_entry):
    def make(*claims, expires_at=NOON, **changes):
        return Reservation(
            reservation_id=changes.get("reservation_id") or new_id(),
            claims=tuple(Claim(key, limit, amount) for key, limit, amount in claims),
            created_at=NOON,
            expires_at=expires_at,
            owner="host:1",
            call=changes.get("call") or make_entry(),
        )

    return make


@pytest.fixture
def make_posting():
    return lambda key, amount, *thresholds: Posting(key, amount, thresholds)
