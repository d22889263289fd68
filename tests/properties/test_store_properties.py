"""Sums that a store keeps are what adding up its entries gives, however a stretch is cut and in whatever zone."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.ledger import Charge, Entry
from tokenmeter.money import EXACT, PICODOLLAR, to_picodollars
from tokenmeter.periods import Period, buckets
from tokenmeter.stores.base import Aggregate, EntryFilter
from tokenmeter.stores.definitions import PERSONAL, Account, Definitions, Rate
from tokenmeter.stores.encoding import digest_of
from tokenmeter.stores.record import decode_entry, encode_entry
from tokenmeter.stores.slots import DAY, HOUR, Level, slots, terms, to_microseconds
from tokenmeter.stores.sqlite import SQLiteStore
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
costs = st.none() | st.integers(-(10**23), 10**23).map(lambda n: Decimal(n).scaleb(-12)) | st.just(PICODOLLAR)
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
        attribution=Attribution.as_filed(  # an older release's, too
            {
                "member": draw(names),
                "team": draw(maybe),
                "organization": draw(maybe),
                "project": draw(maybe),
                "route": draw(maybe),
                "end_user": draw(names),
            },
            draw(st.dictionaries(text, text, max_size=2)),
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
    store: Any = open_store(f"{server}{glue}schema=properties_{spool.name.replace('-', '_')}&spool={spool}")
    with psycopg.connect(server, autocommit=True) as connection:
        name = store.address.schema
        connection.execute(f"SET search_path = {name}; SET session_replication_role = replica")

        def make(content):
            store.flush(10)
            connection.execute("TRUNCATE entries, dedup, sums, rare_sums, meter_sums, latency_sums")
            connection.execute("UPDATE ledger SET seq = 0, hash = decode(repeat('00', 32), 'hex'), entries = 0")
            for entry in content:
                store.settle(entry)
            return store

        yield make
        store.close()
        connection.execute("SET client_min_messages = warning")
        connection.execute(f"DROP SCHEMA {name} CASCADE")


def value_of(entry, name):
    key, who = entry.api_key, entry.attribution
    if name == "api_key":
        return key and key.label
    return getattr(entry if hasattr(entry, name) else who, name)


def lines_of(entry):
    """Meter -> [quantity, list, contracted, billed, unpriced], as the documentation of reports says it."""
    zero = Decimal(0)
    lines = {meter: [quantity, zero, zero, zero, False] for meter, quantity in entry.usage.quantities.items()}
    rest = [entry.list_cost or zero, entry.contracted_cost or zero, entry.billed_cost or zero]
    charged = set()
    for charge in entry.charges:
        line = lines.setdefault(charge.sku_meter, [0, zero, zero, zero, False])
        if charge.sku_meter not in entry.usage.quantities:
            line[0] += charge.quantity
        charged.add(charge.sku_meter)
        line[4] |= charge.billed_cost is None
        for index, cost in enumerate((charge.list_cost, charge.contracted_cost, charge.billed_cost)):
            line[1 + index] += cost or zero
            rest[index] -= cost or zero
    if entry.cost_source == "unpriced":
        bare = lines.keys() - charged or (() if any(line[4] for line in lines.values()) else lines.keys())
        for meter in bare:
            lines[meter][4] = True
    if not lines or any(rest):
        bare = entry.cost_source == "unpriced" and not any(line[4] for line in lines.values())
        lines[None] = [0, *rest, bare]
    return lines


def added_by_hand(content, cuts, by, which):
    """What `aggregate` has to answer, one entry after the other."""
    meters = which.where.get("sku_meter")
    apart = "sku_meter" in by
    groups = {}
    for entry in content:
        bucket = next((i for i, (a, b) in enumerate(pairwise(cuts)) if a <= entry.occurred_at < b), None)
        wanted = all(value_of(entry, n) in accepted for n, accepted in which.where.items() if n != "sku_meter")
        if bucket is None or not wanted:
            continue
        lines = lines_of(entry)
        unpriced = any(line[4] for line in lines.values())
        estimated = entry.cost_source == "estimated" or "estimated" in entry.flags
        reasoning_at = "output" if "output" in lines else next(iter(lines))
        first = True
        for meter, (quantity, listed, contracted, billed, bare) in lines.items():
            if meters is not None and meter not in meters:
                continue
            group = tuple(meter if name == "sku_meter" else value_of(entry, name) for name in by)
            total = groups.setdefault((bucket, group), Aggregate(bucket, group))
            if first or apart:
                total.entries += 1
                if entry.kind == "usage":
                    total.requests += 1
                    total.errors += entry.status != "ok"
                    total.estimated += estimated
                doubt = bare if apart or (meters is not None and len(meters) == 1) else unpriced
                total.unpriced += doubt * {"usage": 1, "correction": -1}.get(entry.kind, 0)
            if entry.kind == "usage":
                if quantity:
                    total.quantities[meter] = EXACT.add(Decimal(total.quantities.get(meter, 0)), Decimal(quantity))
                total.reasoning_output_tokens += entry.usage.reasoning_output_tokens * (meter == reasoning_at)
            total.list_cost = EXACT.add(total.list_cost, listed)
            total.contracted_cost = EXACT.add(total.contracted_cost, contracted)
            total.billed_cost = EXACT.add(total.billed_cost, billed)
            first = False
    return sorted(groups.values(), key=lambda a: (a.bucket, tuple((v is None, v or "") for v in a.group)))


def added_up(aggregates):
    """The sum of all groups, as comparable values."""
    total = defaultdict(int)
    for a in aggregates:
        for name in ("entries", "requests", "errors", "unpriced", "estimated", "reasoning_output_tokens"):
            total[name] += getattr(a, name)
        for name in ("list_cost", "contracted_cost", "billed_cost"):
            total[name] += to_picodollars(getattr(a, name))
        for meter, quantity in a.quantities.items():
            total[meter] += quantity
    return {name: value for name, value in total.items() if value}


@given(content=ledgers)
@WIDE
def test_an_entry_survives_its_record_exactly(content):
    kept = {}
    shared = Definitions(lambda *_: None, lambda records: kept.update({digest_of(body): body for body in records}))

    def name(digest):
        return next(value["value"] for value in map(from_json, kept.values()) if value.get("digest") == digest)

    for entry in content:
        body = encode_entry(entry, shared)
        record = from_json(body)
        account = from_json(kept[record["account"]])
        texts = {field: account.get(field) for field in Account._fields}
        texts |= {field: name(texts[field]) for field in PERSONAL if texts[field] is not None}
        found = decode_entry(
            record, Account(**texts), {digest: rate_from(body) for digest, body in kept.items()}.__getitem__, name
        )
        assert found == entry
        who = entry.attribution
        personal = {who.member, who.end_user, *who.tags.values(), entry.api_key and entry.api_key.alias} - {None}
        named = {value for value in texts_in(record) | texts_in(account) if len(value) > 3}
        assert named.isdisjoint(personal)


def rate_from(body):
    values = from_json(body)
    return Rate(**{field: values.get(field) for field in Rate._fields})


def texts_in(value):
    if isinstance(value, dict):
        return {text for name, item in value.items() if name != "raw_usage" for text in texts_in(item)}
    if isinstance(value, list):
        return {text for item in value for text in texts_in(item)}
    return {value} if isinstance(value, str) else set()


@given(start=instants, end=instants, hours=st.booleans())
def test_terms_are_whole_slots_that_make_up_a_stretch(start, end, hours):
    start, end = sorted([to_microseconds(start), to_microseconds(end)])
    counted = defaultdict(int)  # of each moment where something begins or ends: how often what follows it is counted
    for term in terms(start, end, hours=hours):
        assert term.start < term.end
        if term.level is not None:
            width = {Level.HOUR: HOUR, Level.DAY: DAY, Level.WEEK: 7 * DAY}.get(term.level)
            assert len(slots(term)) <= (term.end - term.start) // (width or 28 * DAY)
            assert len(slots(term)) <= 31
        counted[term.start] += term.sign
        counted[term.end] -= term.sign
    assert {moment: change for moment, change in counted.items() if change} == (
        {start: 1, end: -1} if start < end else {}
    )


@given(day=st.integers(0, 40_000), hours=st.booleans())
def test_a_day_a_week_and_a_month_are_read_as_such(day, hours):
    assert [len(slots(term)) for term in terms(day * DAY, (day + 1) * DAY, hours=hours)] == [1]
    monday = (day * 7 + 4) * DAY
    assert [len(slots(term)) for term in terms(monday, monday + 7 * DAY, hours=True)] == [1]
    in_new_york = monday + 5 * HOUR, monday + 7 * DAY + 5 * HOUR
    assert sum(len(slots(term)) for term in terms(*in_new_york, hours=True)) == 11


@EVERYWHERE
@given(content=ledgers, cuts=st.lists(instants, min_size=2, max_size=5), by=dimensions, which=filters)
@WIDE
def test_kept_sums_are_what_adding_up_the_entries_gives(fill, content, cuts, by, which):
    cuts = sorted(cuts)
    assert list(fill(content).aggregate(cuts, by, which)) == added_by_hand(content, cuts, by, which)


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
        for name in ("entries", "requests", "errors", "unpriced", "estimated"):
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
