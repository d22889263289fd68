from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tokenmeter import money
from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.dimensions import unit_of
from tokenmeter.ledger import Charge, Entry
from tokenmeter.money import multiply, quantize
from tokenmeter.stores import open_store
from tokenmeter.stores.archive import archives
from tokenmeter.stores.base import Store
from tokenmeter.stores.sqlite import SQLiteStore
from tokenmeter.usage import Usage

PRICES = {
    ("gpt-5-mini", "input"): "0.00000025",
    ("gpt-5-mini", "cache_read"): "0.000000025",
    ("gpt-5-mini", "output"): "0.000002",
    ("gpt-5-mini", "web_searches"): "0.01",
    ("claude-opus-4-1", "input"): "0.000015",
    ("claude-opus-4-1", "cache_write_5m"): "0.00001875",
    ("claude-opus-4-1", "output"): "0.000075",
    ("whisper-1", "seconds_audio"): "0.0001",
}
PROVIDERS = {"gpt-5-mini": "openai", "claude-opus-4-1": "anthropic"}


def charge(model: str, meter: str, quantity: int | Decimal, factors: dict[str, Decimal]) -> Charge:
    """A charge at the list price above, or an unpriced one."""
    price = PRICES.get((model, meter))
    costs: list[Decimal | None] = [None, None, None]
    if price is not None:
        upstream = multiply(quantity, Decimal(price), factors.get("geo", 1))
        contracted = multiply(upstream, factors.get("discount", 1))
        costs = [quantize(upstream), quantize(contracted), quantize(multiply(contracted, factors.get("platform", 1)))]
    return Charge(
        model=model,
        sku_meter=meter,
        quantity=quantity,
        unit=unit_of(meter),
        list_unit_price=None if price is None else Decimal(price),
        multipliers=factors,
        list_cost=costs[0],
        contracted_cost=costs[1],
        billed_cost=costs[2],
        price_id=None if price is None else f"{model}/{meter}@2026-10-01",
    )


def total(charges: list[Charge], name: str) -> Decimal | None:
    amounts = [getattr(one, name) for one in charges if getattr(one, name) is not None]
    return money.total(amounts) if amounts else None


@pytest.fixture
def make_entry() -> Callable[..., Entry]:
    """Make an entry: `make_entry("2026-11-02T10:00", model, member="ada", input=1000)`."""
    numbers = itertools.count()

    def make(
        at: str = "2026-11-02T10:00+00:00",
        model: str = "gpt-5-mini",
        *,
        key: str | None = None,
        factors: dict[str, str] | None = None,
        fields: dict[str, Any] | None = None,
        who: dict[str, Any] | None = None,
        **quantities: int | Decimal,
    ) -> Entry:
        moment = datetime.fromisoformat(at)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        multipliers = {name: Decimal(factor) for name, factor in (factors or {}).items()}
        charges = [charge(model, meter, quantity, multipliers) for meter, quantity in quantities.items()]
        unpriced = any(one.billed_cost is None for one in charges)
        known: dict[str, Any] = {
            "occurred_at": moment,
            "recorded_at": moment,
            "provider": PROVIDERS.get(model, "openai"),
            "endpoint": "chat.completions",
            "operation": "chat",
            "request_model": model,
            "response_model": model,
            "response_id": f"resp_{next(numbers)}",
            "service_tier": "default",
            "attribution": Attribution(**(who or {})),
            "api_key": None if key is None else ApiKey(key.encode().hex().ljust(32, "f"), "abcd", key),
            "usage": Usage(quantities),
            "charges": tuple(charges),
            "list_cost": total(charges, "list_cost"),
            "contracted_cost": total(charges, "contracted_cost"),
            "billed_cost": total(charges, "billed_cost"),
            "cost_source": "unpriced" if unpriced else "computed" if charges else "none",
        }
        return Entry(**{**known, **(fields or {})})

    return make


class ArchivingStore(SQLiteStore):
    """A ledger of which every entry is in a file, and there only, by the time that it is read."""

    _archiving = False

    def _fold(self) -> None:
        super()._fold()
        if not self._archiving:
            self._archiving = True
            try:
                self.archives.seal("2030-12", self.path.parent / "archive")
                self.archives.drop()
            finally:
                self._archiving = False


@pytest.fixture(params=["archived", "memory", "postgres", "sqlite"])
def store(
    request: pytest.FixtureRequest, fresh_url: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    opened: Store
    if request.param == "archived":
        pytest.importorskip("duckdb")
        monkeypatch.setattr(archives, "utcnow", lambda: datetime(2031, 1, 1, tzinfo=UTC))
        opened = ArchivingStore(tmp_path / "books" / "ledger.db")
    else:
        opened = open_store(fresh_url(request.param))
    yield opened
    opened.close()


@pytest.fixture
def month(store: Store, make_entry: Callable[..., Entry]) -> Store:
    """A small November: three members, a failure, an unpriced model, an estimate, and one call in October."""
    ada = {"member": "ada", "team": "search", "tags": {"env": "prod"}}
    bob = {"member": "bob", "team": "ads", "route": "/chat", "end_user": "u1"}
    terms = {"platform": "1.05"}
    for entry in (
        make_entry("2026-10-31T23:30", who=ada, factors=terms, input=10_000),
        make_entry("2026-11-02T10:00", who=ada, key="prod", factors=terms, input=600, cache_read=400, output=500),
        make_entry(
            "2026-11-02T11:00", "claude-opus-4-1", who=bob, factors=terms, input=2_000, cache_write_5m=100, output=9
        ),
        make_entry("2026-11-03T00:10", who=bob, factors=terms, input=100, output=20, web_searches=2),
        make_entry("2026-11-03T12:00", fields={"status": "error", "error_type": "RateLimitError"}),
        make_entry("2026-11-04T12:00", "unheard-of", who=ada, input=50, output=5),
        make_entry(
            "2026-11-30T23:59:59",
            who={"member": "grace"},
            factors=terms,
            input=10,
            fields={"status": "aborted", "cost_source": "estimated", "flags": ("estimated",)},
        ),
    ):
        store.settle(entry)
    return store
