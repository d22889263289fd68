"""Every test that asks for `store` runs over every kind of store."""

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.ledger import Charge, Claim, CounterKey, Entry, Posting, Reservation, new_id
from tokenmeter.stores import open_store
from tokenmeter.stores.documents import NewDocument
from tokenmeter.stores.sqlite import database
from tokenmeter.usage import Usage

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
START_OF_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


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
            owner=changes.get("owner", "host:1"),
            call=changes.get("call") or make_entry(),
        )

    return make


@pytest.fixture
def make_posting():
    return lambda key, amount, *thresholds: Posting(key, amount, thresholds)


@pytest.fixture
def place(tmp_path):
    """The URL of a ledger in a file, by a name."""
    return lambda name: f"sqlite:///{tmp_path}/{name}/ledger.db"


@pytest.fixture
def ledger(place, make_entry, make_charge):
    """Three months of calls in a ledger of the given name."""

    def make(name):
        store = open_store(place(name))
        dice = random.Random(3)
        for number in range(90):
            entry = make_entry(
                charges=(make_charge("input", dice.randrange(1, 900), "0.00000125"),),
                occurred_at=START_OF_YEAR + timedelta(days=number),
                member=dice.choice(["ada@example.com", "bob"]),
                end_user=dice.choice(["u1", "u2", None]),
                dedup_key=f"bill {number}" if number % 9 == 0 else None,
                cost_source="computed",
            )
            store.append([(entry, ())])
        store.file(NewDocument(kind="notice", key="n", body='{"member":"ada@example.com"}'))
        return store

    return make
