"""What the PostgreSQL tests share: entries of one request each, and stores that are closed at the end."""

from datetime import timedelta
from decimal import Decimal

import pytest

from tokenmeter.attribution import Attribution
from tokenmeter.ledger import Charge, Claim, CounterKey, Entry, Posting, Reservation, new_id, utcnow
from tokenmeter.stores import open_store
from tokenmeter.usage import Usage

KEY = CounterKey("cap", "member=ada", 0)


def _entry(**changes):
    cost = Decimal("0.000012500001")
    charge = Charge(
        model="gpt-5",
        sku_meter="input",
        quantity=10,
        unit="Tokens",
        list_unit_price=Decimal("0.00000125"),
        list_cost=cost,
        contracted_cost=cost,
        billed_cost=cost,
    )
    values = {
        "occurred_at": utcnow(),
        "provider": "openai",
        "endpoint": "chat.completions",
        "operation": "chat",
        "request_model": "gpt-5",
        "attribution": Attribution(member="ada"),
        "usage": Usage({"input": 10}, 0),
        "charges": (charge,),
        "list_cost": cost,
        "contracted_cost": cost,
        "billed_cost": cost,
        "cost_source": "computed",
    }
    return Entry(**(values | changes))


def _hold(*claims, seconds=60):
    now = utcnow()
    return Reservation(
        reservation_id=new_id(),
        claims=tuple(Claim(*claim) for claim in claims),
        created_at=now,
        expires_at=now + timedelta(seconds=seconds),
        owner="host:1",
        call=_entry(status="aborted", cost_source="estimated"),
    )


@pytest.fixture
def key():
    return KEY


@pytest.fixture
def make_entry():
    return _entry


@pytest.fixture
def make_hold():
    return _hold


@pytest.fixture
def make_posting():
    return lambda amount=1, *thresholds, key=KEY: Posting(key, amount, thresholds)


@pytest.fixture
def opened():
    """Open a store by URL; closed after the test."""
    stores = []

    def make(url):
        stores.append(open_store(url))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(postgres_url, opened):
    return opened(postgres_url)


@pytest.fixture
def query(postgres_server_url, postgres_url):
    """Run SQL in the test's schema, as the server's superuser who went past the triggers."""
    import psycopg

    schema = postgres_url.partition("schema=")[2].partition("&")[0]

    def run(statement, *values):
        with psycopg.connect(postgres_server_url, autocommit=True) as connection:
            connection.execute(f"SET search_path = {schema}")
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else None

    run.schema = schema
    return run
