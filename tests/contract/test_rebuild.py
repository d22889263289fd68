"""Kept sums are made anew from the entries, and nothing else is."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from tokenmeter.stores import fold, rebuilding, walking
from tokenmeter.stores.book import SUM_COLUMNS

START = datetime(2026, 3, 30, 22, 30, tzinfo=UTC)

DAMAGE = {
    "a cost of an hour": "UPDATE sums SET billed_pico = billed_pico + 1 WHERE level = 0 AND slot = 493030",
    "a day that is gone": "DELETE FROM sums WHERE level = 1 AND slot = 20542",
    "an hour that never was": (
        "INSERT INTO sums SELECT level, slot - 7, account, n, unpriced, estimated, reasoning, input, cache_read, "
        "cache_write_5m, cache_write_1h, output, list_micro, list_pico, contracted_micro, contracted_pico, "
        "billed_micro, billed_pico FROM sums WHERE level = 0 AND slot = 493030"
    ),
    "an hour of a day without calls": (
        "INSERT INTO sums SELECT level, slot - 240, account, n, unpriced, estimated, reasoning, input, cache_read, "
        "cache_write_5m, cache_write_1h, output, list_micro, list_pico, contracted_micro, contracted_pico, "
        "billed_micro, billed_pico FROM sums WHERE level = 0 AND slot = 493030"
    ),
    "a rare meter's hour of a day without calls": (
        "INSERT INTO rare_sums SELECT level, slot + 240, account, sku_meter, quantity, nano FROM rare_sums "
        "WHERE level = 0"
    ),
    "a month": "UPDATE sums SET n = n + 1 WHERE level = 2 AND slot = 24314",
    "a week": "DELETE FROM sums WHERE level = 3",
    "a rare meter's week": "UPDATE rare_sums SET nano = nano + 1 WHERE level = 3",
    "a meter": "UPDATE meter_sums SET nano = nano + 5, quantity = quantity - 1 WHERE level = 1 AND slot = 20542",
    "a meter of every month": "DELETE FROM meter_sums WHERE level = 2",
    "times": "DELETE FROM latency_sums WHERE level = 1",
    "a rare meter": "UPDATE rare_sums SET quantity = quantity + 1 WHERE level = 1",
    "an hour of no time": "UPDATE sums SET slot = slot + 1000000000000 WHERE level = 0 AND slot = 493030",
    "a day of no time": "UPDATE meter_sums SET slot = -1000000000000 WHERE level = 1 AND slot = 20542",
    "a rare meter's day of no time": "UPDATE rare_sums SET slot = 100000000 WHERE level = 1",
    "a month of no time": "UPDATE latency_sums SET slot = 1000000000000 WHERE level = 2 AND slot = 24314",
    "a week of no time": "UPDATE sums SET slot = slot - 1000000000000 WHERE level = 3",
    "a level that is none": "UPDATE sums SET level = 7 WHERE level = 2 AND slot = 24314",
    "a level before the first": "UPDATE rare_sums SET level = -1 WHERE level = 1",
    "everything": "UPDATE sums SET n = 0, input = input * 2",
}


@pytest.fixture
def filled(store, make_entry, make_charge):
    """Two accounts, three days, two months, a meter without a column of its own."""
    searched = [make_charge("input", 700), make_charge("web_searches", 2, "0.01")]
    entries = [
        make_entry(
            occurred_at=START + timedelta(hours=9 * number),
            member="ada" if number % 2 else "ben",
            latency_us=1000 * number + 1,
            **({"charges": searched} if number == 2 else {}),
        )
        for number in range(6)
    ]
    store.append([(entry, ()) for entry in entries])
    return store


def kept(store):
    """Every kept sum."""

    def read(rows):
        return {
            table: sorted(tuple(row) for row in rows.execute(f"SELECT {columns} FROM {table}").fetchall())  # noqa: S608
            for table, columns in SUM_COLUMNS.items()
        }

    return store.end().read(read)


def change(store, statement):
    assert store.end().write(lambda rows: rows.execute(statement).rowcount)


def test_sums_that_are_right_stay(filled):
    before = kept(filled)
    assert all(before.values())
    assert filled.rebuild() == filled.rebuild(dry_run=True) == []
    assert kept(filled) == before


@pytest.mark.parametrize("damage", DAMAGE)
def test_sums_are_made_anew_from_the_entries(filled, damage):
    right = kept(filled)
    change(filled, DAMAGE[damage])
    wrong = kept(filled)
    assert wrong != right
    assert {fault.kind for fault in filled.verify().faults} == {"rollup"}

    told = filled.rebuild(dry_run=True)
    assert told
    assert kept(filled) == wrong

    assert filled.rebuild() == told
    assert kept(filled) == right
    assert filled.verify().ok


def wrong_sums(store):
    return sorted((fault.where, fault.detail) for fault in store.verify().faults)


@pytest.mark.parametrize("room", [None, 1])
def test_verify_finds_the_same_wherever_the_entries_of_a_day_lie_in_the_chain(store, make_entry, monkeypatch, room):
    monkeypatch.setattr(walking, "_PAGE", 3)
    if room is not None:  # for what is gathered along the chain
        monkeypatch.setattr(walking, "_MOST_SUMS", room)
    days = [0, 0, 0, 1, 1, 2, 1, 5, 5, 5, 5, 0, 6, 5, 6, 6]  # days 0 and 5 come again pages later
    entries = [make_entry(occurred_at=START + timedelta(days=day, seconds=at)) for at, day in enumerate(days)]
    store.append([(entry, ()) for entry in entries])
    assert store.verify().ok

    change(store, "UPDATE sums SET input = input + 1 WHERE level = 0")
    change(store, "UPDATE sums SET n = n + 1 WHERE level = 1 AND slot = 20544")
    told = {where: detail.split()[0] for where, detail in wrong_sums(store) if "W" not in where}
    days = {"2026-03-30": "1", "2026-03-31": "1", "2026-04-01": "2", "2026-04-04": "1", "2026-04-05": "1"}
    assert {where: count for where, count in told.items() if len(where) == len("2026-03-30")} == days


def test_verify_reads_every_entry_once(filled, monkeypatch):
    read, measured = [], fold.measured

    def counted(record, *rest):
        read.append(record["id"])
        return measured(record, *rest)

    monkeypatch.setattr(walking, "measured", counted)
    monkeypatch.setattr(rebuilding, "measured", counted)
    verified = filled.verify()
    assert verified.ok
    assert len(read) == len(set(read)) == verified.entries


def test_what_was_wrong_is_said(filled):
    change(filled, "UPDATE sums SET billed_pico = billed_pico + 3, n = n + 1 WHERE level = 0 AND slot = 493030")
    (told,) = filled.rebuild(dry_run=True)
    assert (told.table, told.of, told.sku_meter) == ("sums", "2026-03-30 22:00", None)
    assert {name: due - was for name, (was, due) in told.changes.items()} == {"n": -1, "billed": -3}


def test_what_is_recorded_afterwards_adds_to_what_was_made_anew(filled, make_entry):
    change(filled, DAMAGE["everything"])
    filled.rebuild()
    filled.append([(make_entry(occurred_at=START, member="ada"), ())])
    assert filled.verify().ok


def test_an_entry_that_was_recorded_between_the_look_and_the_mending_counts_once(filled, make_entry, monkeypatch):
    change(filled, "UPDATE sums SET n = 0")
    late = make_entry(occurred_at=START, member="ada")

    def record(done, of):
        if done == 1:
            filled.append([(late, ())])

    filled.rebuild(progress=record)
    filled.rebuild()
    assert filled.verify().ok


def test_an_empty_ledger_has_nothing_to_rebuild(store):
    assert store.rebuild() == []


def test_progress_goes_by_days(filled):
    seen = []
    filled.rebuild(progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (3, 3)


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_the_command_says_what_it_found_and_mends_it(filled, run_command):
    change(filled, DAMAGE["a cost of an hour"])
    code, said, _ = run_command("db", "rebuild", "--dry-run", "--store", filled.url)
    assert (code, "2026-03-30 22:00" in said, "$0.003250000001" in said) == (1, True, True)
    code, said, _ = run_command("db", "rebuild", "--store", filled.url, "--json")
    assert (code, len(json.loads(said)["differences"])) == (0, 1)
    code, said, _ = run_command("db", "rebuild", "--store", filled.url)
    assert (code, "Nothing to do" in said) == (0, True)
