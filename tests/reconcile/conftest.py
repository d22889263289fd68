"""What the reconciliation tests share: a provider with books of its own, metered and plain clients, and a ledger."""

from datetime import UTC, datetime, timedelta

import pytest

from tokenmeter.adopt import wrap
from tokenmeter.default import make_meter
from tokenmeter.meter import Meter
from tokenmeter.reconciliation import reconcile
from tokenmeter.stores import open_store
from tokenmeter.testing import FakeProvider, Reports

METERS = {"input": 700, "cache_read": 300, "output": 200}
PRICES = {
    "gpt-5": {"input": "0.00000125", "cache_read": "0.000000125", "output": "0.00001"},
    "gpt-5-mini": {"input": "0.00000025", "cache_read": "0.000000025", "output": "0.000002"},
    "claude-sonnet-5": {"input": "0.000003", "cache_read": "0.0000003", "output": "0.000015", "web_searches": "0.01"},
}
HELLO = [{"role": "user", "content": "Hello there"}]


def price_rows():
    return [
        {
            "provider": "anthropic" if model.startswith("claude") else "openai",
            "model": model,
            "sku_meter": meter,
            "unit_price": price,
            "per": 1,
            "source": "test",
        }
        for model, meters in PRICES.items()
        for meter, price in meters.items()
    ]


@pytest.fixture(scope="session")
def pricer():
    return make_meter(store="memory:", config={}, prices=price_rows()).pricer


@pytest.fixture
def meter(request, pricer, fresh_url):
    """A meter on an empty ledger: in memory, unless a test asks for another kind."""
    store = open_store(fresh_url(getattr(request, "param", "memory")))
    made = Meter(store=store, pricer=pricer)
    yield made
    made.close()


@pytest.fixture
def prices():
    return PRICES


@pytest.fixture
def provider():
    with FakeProvider(reports=Reports(prices=PRICES)) as running:
        yield running


@pytest.fixture
def clients(provider, meter):
    """SDK clients of the fake provider: `clients("openai")`, plain with ``metered=False``."""
    openai, anthropic = pytest.importorskip("openai"), pytest.importorskip("anthropic")
    made = []

    def make(name, *, metered=True):
        if name == "openai":
            admin = {} if metered else {"admin_api_key": "sk-admin-0123456"}
            client = openai.OpenAI(base_url=provider.openai_url, api_key="sk-one-0123456789", **admin)
        else:
            client = anthropic.Anthropic(base_url=provider.anthropic_url, api_key="sk-ant-0123456789")
        made.append(client)
        return wrap(client, meter) if metered else client

    yield make
    for client in made:
        client.close()


@pytest.fixture
def ask(provider, clients):
    """One call: `ask("openai")`; ``metered=False`` goes past the ledger, other keywords script the answer."""
    ready = {}

    def call(name, *, metered=True, model=None, **script):
        if (name, metered) not in ready:
            ready[name, metered] = clients(name, metered=metered)
        client = ready[name, metered]
        provider.answer(**{"meters": METERS, **script})
        if name == "openai":
            return client.chat.completions.create(model=model or "gpt-5", messages=HELLO)
        return client.messages.create(model=model or "claude-sonnet-5", max_tokens=9, messages=HELLO)

    return call


@pytest.fixture
def check(meter, clients):
    """Reconcile the last two days, as if a week had passed, with a plain client."""

    def run(name, **options):
        later = datetime.now(UTC) + timedelta(days=7)
        given = {"period": "last-2d", "source": clients(name, metered=False), **options}
        if isinstance(given["period"], str):
            from tokenmeter.periods import parse_period

            given["period"] = parse_period(given["period"])
        return reconcile(meter.store, provider=name, **{"now": later, **given})

    return run
