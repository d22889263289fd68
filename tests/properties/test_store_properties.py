"""Sums that a store keeps are what adding up its entries gives, however a stretch is cut and in whatever zone."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.ledger import Charge, Claim, CounterKey, Entry
from tokenmeter.money import PICODOLLAR, to_picodollars
from tokenmeter.periods import Period, buckets
from tokenmeter.stores.base import EntryFilter
from tokenmeter.stores.codec import decode_claims, decode_entry, encode_amounts, encode_claims, encode_entry
from tokenmeter.stores.contexts import context_of, rate_of
from tokenmeter.stores.memory import MemoryStore
from tokenmeter.stores.slots import ends, terms
from tokenmeter.stores.sqlite import SQLiteStore
from tokenmeter.stores.values import to_microseconds
from tokenmeter.usage import Usage

START = datetime(2026, 2, 24, tzinfo=UTC)
END = datetime(2026, 4, 3, tzinfo=UTC)
ZONES = ["UTC", "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns", "Pacific/Chatham"]
WIDE = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

#: Anywhere, and often right beside the edge of a quarter-hour, a day or a month.
instants = st.datetimes(START.replace(tzinfo=None), END.replace(tzinfo=None)).map(
    lambda d: d.replace(tzinfo=UTC)
) | st.builds(
    lambda edge, quarters, microseconds: edge + timedelta(minutes=15 * quarters, microseconds=microseconds),
    st.sampled_from([datetime(2026, 3, day, tzinfo=UTC) for day in (1, 2, 28, 29)]),
    st.sampled_from([0, 1, 23, 47, 48, 49]),
    st.sampled_from([-1, 0, 1]),
)
names = st.sampled_from(["ada", "bob", None])
text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
maybe = st.none() | text
costs = st.none() | st.integers(-(10**24), 10**24).map(lambda n: Decimal(n).scaleb(-12)) | st.just(PICODOLLAR)
quantities = st.integers(0, 10**12) | st.decimals(0, 10**6, places=9)
meters = st.sampled_from(["input", "cache_read", "output", "seconds_audio", "provider_cost"])


@st.composite
def charges(draw):
    return Charge(
        model=draw(maybe),
        sku_meter=draw(meters),
        quantity=draw(quantities),
        unit="Tokens",
        list_unit_price=draw(st.none() | st.decimals(0, 1, places=15)),
        multipliers=draw(
            st.dictionaries(st.sampled_from(["geo", "platform"]), st.decimals("0.1", 2, places=4), max_size=2)
        ),
        list_cost=draw(costs),
        contracted_cost=draw(costs),
        billed_cost=draw(costs),
        price_id=draw(maybe),
        source=draw(maybe),
        role=draw(text),
    )


@st.composite
def entries(draw):
    """Any entry: its costs need not even be what its charges add up to."""
    return Entry(
        kind=draw(st.sampled_from(["usage", "usage", "correction", "adjustment"])),
        occurred_at=draw(instants),
        provider=draw(st.sampled_from(["openai", "anthropic"])),
        endpoint="e",
        operation="chat",
        request_model=draw(st.sampled_from(["a", "b", None])),
        response_model=draw(st.sampled_from(["a-1", None])),
        response_id=draw(maybe),
        request_id=draw(maybe),
        status=draw(st.sampled_from(["ok", "error", "aborted", "timeout"])),
        streamed=draw(st.booleans()),
        attempts=draw(st.integers(1, 9)),
        latency_us=draw(st.none() | st.integers(0, 10**10)),
        first_token_us=draw(st.none() | st.integers(0, 10**10)),
        service_tier=draw(maybe),
        attribution=Attribution(
            member=draw(names),
            team=draw(maybe),
            organization=draw(maybe),
            project=draw(maybe),
            route=draw(maybe),
            end_user=draw(names),
            tags=draw(st.dictionaries(text, text, max_size=2)),
        ),
        api_key=draw(st.none() | st.builds(ApiKey, text, text, maybe)),
        usage=Usage(draw(st.dictionaries(meters, quantities, max_size=3)), draw(st.integers(0, 10**9))),
        charges=tuple(draw(st.lists(charges(), max_size=3))),
        list_cost=draw(costs),
        contracted_cost=draw(costs),
        billed_cost=draw(costs),
        cost_source=draw(st.sampled_from(["billed", "computed", "estimated", "unpriced", "none"])),
        flags=tuple(draw(st.lists(st.sampled_from(["estimated", "doubt"]), unique=True))),
        price_list_hash=draw(maybe),
        raw_usage=draw(maybe),
        error_type=draw(maybe),
        corrects=draw(maybe),
        reservation_id=draw(maybe),
    )


ledgers = st.lists(entries(), max_size=12)
dimensions = st.lists(
    st.sampled_from(["member", "model", "provider", "status", "kind", "sku_meter", "end_user", "api_key", "route"]),
    unique=True,
    max_size=3,
)
filters = st.dictionaries(
    st.sampled_from(["member", "end_user", "sku_meter", "model"]),
    st.frozensets(st.sampled_from(["ada", "bob", "input", "output", "a", "a-1", None])),
    max_size=2,
).map(lambda where: EntryFilter(where=where))


EVERYWHERE = pytest.mark.parametrize("fill", ["sqlite", "postgres"], indirect=True)


@pytest.fixture(scope="module")
def fill(request, tmp_path_factory):
    """An empty store that gets these entries: an SQLite file, unless a test asks for ``"postgres"``."""
    if getattr(request, "param", "sqlite") == "postgres":
        yield from _fill_on_server(request.getfixturevalue("postgres_server_url"), tmp_path_factory.mktemp("spool"))
        return
    opened = []

    def make(content):
        for store in opened:
            store.close()
        opened[:] = [SQLiteStore(tmp_path_factory.mktemp("books") / "ledger.db")]
        for entry in content:
            opened[0].settle(entry)
        return opened[0]

    yield make
    for store in opened:
        store.close()


def _fill_on_server(server, spool):
    """One ledger, emptied again and again by somebody who may."""
    import psycopg

    from tokenmeter.stores import open_store

    glue = "&" if "?" in server else "?"
    store = open_store(f"{server}{glue}schema=properties_{spool.name.replace('-', '_')}&spool={spool}")
    with psycopg.connect(server, autocommit=True) as connection:
        name = store.address.schema
        connection.execute(f"SET search_path = {name}; SET session_replication_role = replica")

        def make(content):
            connection.execute("TRUNCATE entries, contexts, rates, sums, chains, batches")
            for entry in content:
                store.settle(entry)
            return store

        yield make
        store.close()
        connection.execute("SET client_min_messages = warning")
        connection.execute(f"DROP SCHEMA {name} CASCADE")


def in_memory(content):
    store = MemoryStore()
    for entry in content:
        store.settle(entry)
    return store


def added_up(aggregates):
    """The sum of all groups, as comparable values."""
    total = defaultdict(int)
    for a in aggregates:
        for name in ("requests", "errors", "unpriced", "estimated", "reasoning_output_tokens"):
            total[name] += getattr(a, name)
        for name in ("list_cost", "contracted_cost", "billed_cost"):
            total[name] += to_picodollars(getattr(a, name))
        for meter, quantity in a.quantities.items():
            total[meter] += quantity
    return {name: value for name, value in total.items() if value}


@given(content=ledgers)
@WIDE
def test_an_entry_survives_its_row_exactly(content):
    for entry in content:
        rates = [rate_of(charge) for charge in entry.charges]
        row = encode_entry(entry, encode_amounts(entry), 7, range(len(rates)))
        assert all(value is None or isinstance(value, int | str) for value in row)
        assert decode_entry(row, context_of(entry), rates.__getitem__) == entry


@given(
    claims=st.lists(
        st.builds(
            Claim,
            st.builds(CounterKey, text, text, st.integers()),
            st.none() | st.integers(),
            st.integers(),
            st.none() | st.integers(),
        )
    )
)
def test_claims_survive_their_text_exactly(claims):
    assert decode_claims(encode_claims(claims)) == tuple(claims)


@given(start=instants, end=instants)
def test_terms_are_whole_slots_that_make_up_a_stretch(start, end):
    start, end = sorted([to_microseconds(start), to_microseconds(end)])
    counted = defaultdict(int)  # of each moment where something begins or ends: how often what follows it is counted
    for term in terms(start, end):
        assert term.start < term.end
        assert term.level is not None or term.sign == 1
        if term.level is not None:
            slots = ends(term.level, term.start, term.end)
            assert slots[-1] == term.end
            assert len(slots) <= 96
        counted[term.start] += term.sign
        counted[term.end] -= term.sign
    assert {moment: change for moment, change in counted.items() if change} == (
        {start: 1, end: -1} if start < end else {}
    )


@EVERYWHERE
@given(content=ledgers, cuts=st.lists(instants, min_size=2, max_size=5), by=dimensions, which=filters)
@WIDE
def test_kept_sums_are_what_adding_up_the_entries_gives(fill, content, cuts, by, which):
    cuts = sorted(cuts)
    assert list(fill(content).aggregate(cuts, by, which)) == list(in_memory(content).aggregate(cuts, by, which))


@given(content=ledgers, zone=st.sampled_from(ZONES), unit=st.sampled_from(["day", "week", "month"]), by=dimensions)
@WIDE
def test_the_sum_of_any_partition_is_the_total_in_any_zone(fill, content, zone, unit, by):
    store = fill(content)
    whole = Period(START, END + timedelta(days=1), zone)
    cuts = [bucket.start for bucket in buckets(whole, unit)] + [whole.end]
    total = added_up(store.aggregate([whole.start, whole.end], []))
    assert added_up(store.aggregate(cuts, [])) == total
    parts = added_up(store.aggregate(cuts, by))
    if "sku_meter" in by:  # an entry is counted once under each of its meters
        for name in ("requests", "errors", "unpriced", "estimated"):
            parts.pop(name, None)
            total.pop(name, None)
    assert parts == total


@given(content=ledgers)
@WIDE
def test_the_total_is_the_plain_sum_of_the_entries(fill, content):
    found = added_up(fill(content).aggregate([START, END + timedelta(days=1)], []))
    calls = [entry for entry in content if entry.kind == "usage"]
    assert found.get("requests", 0) == len(calls)
    assert found.get("errors", 0) == sum(entry.status != "ok" for entry in calls)
    assert found.get("reasoning_output_tokens", 0) == sum(entry.usage.reasoning_output_tokens for entry in calls)
    for name in ("list_cost", "contracted_cost", "billed_cost"):
        expected = sum(to_picodollars(getattr(entry, name) or Decimal(0)) for entry in content)
        assert found.get(name, 0) == expected
    for meter in {meter for entry in calls for meter in entry.usage.quantities}:
        used = sum((entry.usage[meter] for entry in calls), Decimal(0))
        only_charged = sum(
            (c.quantity for e in calls for c in e.charges if c.sku_meter == meter and meter not in e.usage.quantities),
            Decimal(0),
        )
        assert found.get(meter, 0) == used + only_charged


@EVERYWHERE
@given(content=ledgers)
@WIDE
def test_any_ledger_verifies(fill, content):
    verification = fill(content).verify()
    assert verification.faults == ()
    assert verification.entries == len(content)
