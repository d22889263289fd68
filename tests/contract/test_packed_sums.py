"""Sums are packed, when asked for or all while nobody asks, and say what rows say, whatever happens to these."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest

from tokenmeter.stores import book, open_store, packing, summing, timing
from tokenmeter.stores import packed as packed_tables
from tokenmeter.stores.base import EntryFilter
from tokenmeter.stores.slots import Level, month_of, start_of, week_of

START = datetime(2026, 3, 2, 3, 30, tzinfo=UTC)
NEW_YORK = ZoneInfo("America/New_York")
WEEKS = [datetime(2026, 3, 2, tzinfo=NEW_YORK) + timedelta(days=7 * number) for number in range(6)]
DAYS = [datetime(2026, 3, 2, tzinfo=NEW_YORK) + timedelta(days=number) for number in range(35)]


@pytest.fixture(autouse=True)
def every_question_is_large(monkeypatch):
    pytest.importorskip("numpy")
    monkeypatch.setattr(packing, "_MANY", 1)
    monkeypatch.setattr(packing, "_DENSE", 0)


@pytest.fixture
def filled(store, make_entry, make_charge):
    """Five weeks of three members, of whom one is corrected, one uses a meter without a column, and one is dear."""
    entries = []
    for number in range(60):
        member = ("ada", "ben", "cyd")[number % 3]
        charges = [make_charge("input", 700 + number), make_charge("output", number % 5, "0.00001")]
        if number % 7 == 0:
            charges.append(make_charge("web_searches", 2, "0.01"))
        changes = {"status": "error"} if number % 11 == 0 else {"kind": "correction"} if number % 13 == 0 else {}
        if "kind" in changes:
            charges = [make_charge("input", 700, "-0.00000125")]
        if number % 17 == 0:
            charges.append(make_charge("input", 10**6, "1.000000000007", contracted_cost=Decimal(3)))
        entries.append(
            make_entry(occurred_at=START + timedelta(hours=13 * number), member=member, charges=charges, **changes)
        )
    store.append([(entry, ()) for entry in entries])
    return store


def ask(store, edges=WEEKS, by=("member", "model"), **where):
    return store.aggregate(edges, by, EntryFilter(where={name: frozenset(values) for name, values in where.items()}))


def packed(store):
    return {(level, slot): bytes(body) for level, slot, body in store._ask("SELECT level, slot, body FROM packed_sums")}


@pytest.mark.parametrize("edges", [WEEKS, DAYS], ids=["weeks", "days"])
@pytest.mark.parametrize(
    "where", [{}, {"member": ["ben", None]}, {"member!": ["ben"]}, {"member": ["nobody"]}], ids=str
)
@pytest.mark.parametrize("by", [(), ("member",), ("model", "status", "kind")], ids=str)
def test_packed_sums_say_what_rows_say(filled, edges, where, by):
    rows = ask(filled, edges, by, **where)
    ask(filled, edges)
    assert packed(filled)
    assert ask(filled, edges, by, **where) == rows


def ask_times(store, edges=WEEKS, by=("member",), **where):
    return store.latencies(edges, by, EntryFilter(where={name: frozenset(values) for name, values in where.items()}))


@pytest.fixture
def timed(filled, make_entry):
    """Calls that took from less than a microsecond to days, streamed or not, of the members of before."""
    times = [(1, None), (0, 0), (2_500_000, 90_000), (2_600_000, 91_000), (None, 5), (400_000_000_000, None)]
    entries = [
        make_entry(
            occurred_at=START + timedelta(hours=7 * number),
            member=("ada", "ben", "cyd")[number % 3],
            latency_us=times[number % 6][0],
            first_token_us=times[number % 6][1],
        )
        for number in range(100)
    ]
    filled.append([(entry, ()) for entry in entries])
    return filled


@pytest.mark.parametrize("edges", [WEEKS, DAYS], ids=["weeks", "days"])
@pytest.mark.parametrize("where", [{}, {"member": ["ben", None]}], ids=str)
@pytest.mark.parametrize("by", [(), ("member", "status")], ids=str)
@pytest.mark.parametrize("counted", [0, 1 << 22], ids=["sorted", "in an array"])
def test_packed_times_say_what_rows_say(timed, monkeypatch, edges, where, by, counted):
    monkeypatch.setattr(timing, "_MOST_COUNTED", counted)
    rows = ask_times(timed, edges, by, **where)
    assert any(one.first_token.counts for one in rows)
    timed.pack()
    assert ask_times(timed, edges, by, **where) == rows
    assert timed.verify().ok


@pytest.mark.parametrize("edges", [WEEKS, DAYS], ids=["weeks", "days"])
@pytest.mark.parametrize("where", [{}, {"sku_meter": ["input", None]}, {"member": ["ben"]}], ids=str)
@pytest.mark.parametrize("by", [("sku_meter",), ("member", "sku_meter", "status")], ids=str)
def test_packed_meters_say_what_rows_say(filled, edges, where, by):
    rows = ask(filled, edges, by, **where)
    assert rows
    filled.pack()
    assert ask(filled, edges, by, **where) == rows
    assert filled.verify().ok


def answers(store):
    """What is asked of sums of every kind."""
    return ask(store), ask(store, DAYS, ()), ask(store, DAYS, ("member", "sku_meter")), ask_times(store, DAYS)


def packed_kinds(store):
    return {stretch: set(packed_tables.read_body(body)) for stretch, body in packed(store).items()}


def whole(store):
    """Every kind of every stretch that has sums."""
    stretches = map(tuple, store._ask("SELECT DISTINCT level, slot FROM sums"))
    return {stretch: set(packed_tables.kinds_of(stretch)) for stretch in stretches}


def test_everything_that_is_over_is_packed_and_says_what_rows_say(timed):
    rows = answers(timed)
    timed.pack()
    assert packed_kinds(timed).items() >= whole(timed).items()
    assert answers(timed) == rows
    assert timed.verify().ok


def test_what_questions_have_packed_is_made_whole(timed):
    """So is what a version packed that did not know meters and times: their stretches have sums alone."""
    rows = answers(timed)
    questions = packed_kinds(timed)
    assert questions
    assert all(kinds == {packed_tables.PackedKind.SUMS} for kinds in questions.values())
    timed.pack()
    assert packed_kinds(timed).items() >= whole(timed).items()
    assert answers(timed) == rows


def test_what_is_packed_goes_with_an_entry_that_comes_late_and_comes_back(timed, make_entry):
    timed.pack()
    before = packed(timed)
    late = START + timedelta(days=8)
    timed.append([(make_entry(occurred_at=late, member="ada", latency_us=77), ())])
    gone = before.keys() - packed(timed).keys()
    day = int(late.timestamp()) // 86_400
    assert gone == {(0, int(late.timestamp()) // 3600), (1, day), (2, month_of(day)), (3, week_of(day))} & before.keys()
    with packing.only_answer():
        rows = answers(timed)
    timed.pack()
    assert packed_kinds(timed).items() >= whole(timed).items()
    assert answers(timed) == rows
    assert timed.verify().ok


def test_what_is_packed_already_is_left_as_it_is(timed, monkeypatch):
    timed.pack()
    monkeypatch.setattr(book, "keep", lambda *_, **__: pytest.fail("It was packed again."))
    timed.pack()


def test_a_ledger_that_is_quickly_read_is_not_packed(timed, monkeypatch):
    monkeypatch.setattr(packing, "_MANY", 10**6)
    timed.pack()
    assert not packed(timed)


def test_packing_stops_when_it_is_told_to_and_goes_on_from_there(timed):
    with packing.only_answer():
        rows = answers(timed)
    turns = iter([True, True, False])
    timed.pack(lambda: next(turns))
    latest = sorted(whole(timed), key=lambda one: (start_of(Level(one[0]), one[1]), one))[-2 * packing._FEW :]
    assert packed(timed).keys() == set(latest)
    assert answers(timed) == rows
    timed.pack()
    assert packed_kinds(timed).items() >= whole(timed).items()


def test_where_only_an_answer_is_wanted_nothing_is_packed(timed):
    with packing.only_answer():
        rows = answers(timed)
    assert not packed(timed)
    assert answers(timed) == rows
    assert packed(timed)


@pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
def test_two_that_pack_at_once_pack_the_same(timed):
    with packing.only_answer():
        rows = answers(timed)
    meeting = threading.Barrier(2, timeout=60)

    def take_turns():
        with contextlib.suppress(threading.BrokenBarrierError):  # the other one is done
            meeting.wait()
        return True

    def work(store):
        try:
            store.pack(take_turns)
        finally:
            meeting.abort()

    with contextlib.closing(open_store(timed.url)) as other, ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(work, store) for store in (timed, other)]:
            one.result()
    assert packed_kinds(timed).items() >= whole(timed).items()
    assert answers(timed) == rows
    assert timed.verify().ok


_KILLED = """
import os, signal, sys
from tokenmeter.stores import book, open_store, packing
packing._MANY, packing._DENSE, keep = 1, 0, book.keep
left = [3]

def die(connection, **asked):
    keep(connection, **asked)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

book.keep = die
open_store(sys.argv[1]).pack()
"""


@pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
def test_one_that_is_killed_in_the_middle_leaves_what_it_had_packed(timed):
    with packing.only_answer():
        rows = answers(timed)
    killed = subprocess.run([sys.executable, "-c", _KILLED, timed.url], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(packed(timed)) == 2 * packing._FEW
    assert answers(timed) == rows
    timed.pack()
    assert packed_kinds(timed).items() >= whole(timed).items()
    assert answers(timed) == rows
    assert timed.verify().ok


@pytest.mark.parametrize("damage", [slice(0, -1), slice(0, -9)], ids=["cut off", "cut short"])
def test_rows_answer_where_a_part_of_the_copy_is_damaged(timed, damage):
    right = ask_times(timed, DAYS), ask(timed, DAYS, ("sku_meter",))
    timed.pack()
    (level, slot), body = max(packed(timed).items(), key=lambda one: len(one[1]))
    timed._change(
        lambda connection: connection.execute(
            "UPDATE packed_sums SET body = ? WHERE level = ? AND slot = ?", (body[damage], level, slot)
        )
    )
    assert {fault.kind for fault in timed.verify().faults} == {"rollup"}
    assert (ask_times(timed, DAYS), ask(timed, DAYS, ("sku_meter",))) == right


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_sketch_that_somebody_damaged_is_told_by_verify(timed):
    """It cannot be packed, and what was packed before is not what the rows say."""
    timed.pack()
    timed._change(lambda connection: connection.execute("UPDATE latency_sums SET duration = x'00' WHERE level = 1"))
    assert {fault.kind for fault in timed.verify().faults} == {"rollup"}


def test_they_say_it_of_entries_that_come_late(filled, make_entry):
    ask(filled)
    before = packed(filled)
    late = make_entry(occurred_at=START + timedelta(days=8), member="ada")
    filled.append([(late, ())])
    left = packed(filled)
    assert left.items() < before.items()
    found = ask(filled)
    assert packed(filled).keys() == before.keys()
    assert ask(filled) == found
    assert sum(one.requests for one in found) == sum(one.requests for one in ask(filled, [WEEKS[0], WEEKS[-1]]))
    assert filled.verify().ok


def test_an_hour_without_calls_is_packed_and_the_call_that_comes_is_counted(filled, make_entry):
    edges = [WEEKS[0], WEEKS[0] + timedelta(hours=1)]  # five o'clock in UTC: nobody called
    assert ask(filled, edges, ()) == []
    filled._book.pack([(0, int(edges[0].timestamp()) // 3600)], {packed_tables.PackedKind.SUMS})
    assert ask(filled, edges, ()) == []
    filled.append([(make_entry(occurred_at=edges[0] + timedelta(minutes=1)), ())])
    assert [one.requests for one in ask(filled, edges, ())] == [1]


def test_what_is_not_over_is_not_packed(store, make_entry):
    now = store.now()
    store.append([(make_entry(occurred_at=now - timedelta(days=40)), ()), (make_entry(occurred_at=now), ())])
    hour = datetime.fromtimestamp(int(now.timestamp()) // 3600 * 3600, UTC)
    ask(store, [hour - timedelta(hours=1000), hour, hour + timedelta(hours=1)])
    assert (0, int(hour.timestamp()) // 3600) not in packed(store)
    assert packed(store)


def test_verify_finds_one_that_was_changed_and_rebuild_drops_it(filled):
    ask(filled)
    filled._change(
        lambda connection: (
            connection.execute("UPDATE packed_sums SET body = (SELECT max(body) FROM packed_sums)")
            if not hasattr(connection, "copy")
            else connection.execute("UPDATE packed_sums SET body = '\\x00000000'::bytea")
        )
    )
    assert {fault.kind for fault in filled.verify().faults} == {"rollup"}
    filled.rebuild(dry_run=True)
    assert not filled.verify().ok
    filled.rebuild()
    assert filled.verify().ok


def test_a_sum_that_was_mended_is_not_read_packed(filled):
    right = ask(filled)
    filled._change(lambda connection: connection.execute("UPDATE sums SET n = n + 1 WHERE level = 3"))
    filled._change(lambda connection: connection.execute("DELETE FROM packed_sums"))
    assert ask(filled) != right
    assert filled.rebuild()
    assert ask(filled) == right


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_file_that_another_program_has_locked_is_not_waited_for(filled, monkeypatch):
    """The question has been answered: packing can wait, the person who asked cannot."""
    right = ask(filled)
    filled._change(lambda connection: connection.execute("DELETE FROM packed_sums"))
    monkeypatch.setattr(filled._book.database, "patience", 3600.0)
    with contextlib.closing(sqlite3.connect(filled.url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert ask(filled) == right
        assert not packed(filled)
    ask(filled)
    assert packed(filled)


@pytest.mark.parametrize("store", ["sqlite", "memory"], indirect=True)
@pytest.mark.parametrize("reason", ["database or disk is full", "attempt to write a readonly database"])
def test_a_disk_that_takes_nothing_answers_all_the_same(filled, monkeypatch, reason):
    right = ask(filled)
    filled._change(lambda connection: connection.execute("DELETE FROM packed_sums"))

    def refuse(*_, **__):
        raise sqlite3.OperationalError(reason)

    monkeypatch.setattr(book, "keep", refuse)
    assert ask(filled) == right
    assert not packed(filled)
    assert filled.verify().ok


def test_without_numpy_rows_are_read_and_nothing_is_packed(filled, monkeypatch):
    expected = ask(filled)
    kept = packed(filled)
    monkeypatch.setattr(packing, "find_spec", lambda name: None)
    filled._change(lambda connection: connection.execute("DELETE FROM packed_sums WHERE level = 0"))
    assert ask(filled) == expected
    assert packed(filled).keys() == {key for key in kept if key[0]}


def test_what_sums_of_millions_could_not_hold_is_read_as_rows(store, make_entry, make_charge):
    usual = make_charge("input", 10**15, "0.000001")
    store.append(
        [
            (make_entry(occurred_at=START + timedelta(hours=number + 2), charges=[usual], member=f"m{number % 4}"), ())
            for number in range(9)
        ]
    )
    found = ask(store)
    assert ask(store) == found
    assert sum(one.quantities["input"] for one in found) == 9 * 10**15
    assert sum(one.billed_cost for one in found) == 9 * 10**9
    assert b"" in packed(store).values()


def test_stretches_of_few_rows_each_are_read_as_rows(filled, monkeypatch):
    right = ask(filled)
    filled._change(lambda connection: connection.execute("DELETE FROM packed_sums"))
    monkeypatch.setattr(packing, "_DENSE", 12)
    assert ask(filled) == right
    assert not packed(filled)


@pytest.mark.parametrize("edges", [WEEKS, DAYS], ids=["weeks", "days"])
def test_a_question_about_few_accounts_packs_nothing(filled, monkeypatch, edges):
    """Their sums are looked up. Else every look at one member would pack all that others used, each time anew."""
    read = []
    worth_packing = packing.worth_packing

    def worth(rows, left):
        read.append(rows)
        return worth_packing(rows, left)

    monkeypatch.setattr(summing, "worth_packing", worth)
    monkeypatch.setattr(packing, "_MANY", 10**9)
    right = ask(filled, edges, member=["ben"])
    ask(filled, edges)
    of_one, of_all = read
    assert 0 < of_one < of_all
    monkeypatch.setattr(packing, "_MANY", of_all)
    assert ask(filled, edges, member=["ben"]) == right
    assert not packed(filled)
    ask(filled, edges)
    assert packed(filled)


def test_more_rows_than_can_be_added_exactly_are_not_packed(filled, monkeypatch):
    right = ask(filled)
    filled._change(lambda connection: connection.execute("DELETE FROM packed_sums"))
    monkeypatch.setattr(packed_tables, "_MOST_ROWS", 1)
    ask(filled)
    assert b"" in packed(filled).values()
    assert ask(filled) == right


@pytest.mark.parametrize("largest", [0, 1, 127, 128, 32_767, 32_768, 2**31 - 1, 2**31, 2**40 - 1])
def test_numbers_of_every_width_come_back(largest):
    np = pytest.importorskip("numpy")
    rows = [
        (account, 1, 0, 0, 0, largest, -largest, account, 0, 0, largest, 7, largest, 7, largest, 8)
        for account in range(1, 400)
    ]
    body = packed_tables.read_body(packed_tables.pack(list(zip(*rows, strict=True))))
    kind = packed_tables.PackedKind.SUMS
    found = summing.PackedSums({account: account % 2 for account in range(1, 399)}, 2, kind)
    found.add(body[kind], [(0, 1), (1, -1)])
    due = [np.array([row[1:] for row in rows[:-1] if row[0] % 2 == cell], dtype=object).sum(axis=0) for cell in (0, 1)]
    assert list(found.totals()) == [
        (bucket, cell, None, [sign * value for value in due[cell]])
        for bucket, sign in ((0, 1), (1, -1))
        for cell in (0, 1)
    ]


@pytest.mark.parametrize("place", ["level = 7", "level = -1", "slot = 1000000000000", "slot = -1000000000000"])
def test_verify_finds_one_of_a_stretch_that_is_none(filled, place):
    ask(filled)
    (level, slot), _ = max(packed(filled).items(), key=lambda one: len(one[1]))
    filled._change(
        lambda connection: connection.execute(
            f"UPDATE packed_sums SET {place} WHERE level = {level} AND slot = {slot}"  # noqa: S608
        )
    )
    assert {fault.kind for fault in filled.verify().faults} == {"rollup"}
    filled.rebuild()
    assert filled.verify().ok


DAMAGED = {
    "empty": b"",
    "cut off": b"\x03\x00\x00",
    "without its columns": b"\x03\x00\x00\x00" + b"q" * 16,
    "of letters that are none": b"\x01\x00\x00\x00" + b"z" * 16,
    "of no accounts": b"\x03\x00\x00\x00" + b"0" * 16,
    "too long": b"\x00\x00\x00\x00" + b"0" * 16 + b"?",
    "of any bytes": b"\xff" * 400,
}


@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED)
def test_one_that_cannot_be_read_is_told_by_verify_and_rows_answer(filled, body):
    right = ask(filled)
    filled._change(lambda connection: connection.execute("UPDATE packed_sums SET body = ?", (body,)))
    assert {fault.kind for fault in filled.verify().faults} == {"rollup"}
    assert ask(filled) == right
    assert filled.verify().ok


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
@pytest.mark.parametrize("value", ["'text'", "12", "1.5"])
@pytest.mark.parametrize("column", ["level", "slot", "body"])
def test_one_of_another_type_is_told_by_verify_and_rows_answer(filled, column, value):
    """SQLite keeps what it is given."""
    right = ask(filled)
    (level, slot), _ = max(packed(filled).items(), key=lambda one: len(one[1]))
    statement = f"UPDATE packed_sums SET {column} = {value} WHERE level = {level} AND slot = {slot}"  # noqa: S608
    filled._change(lambda connection: connection.execute(statement))
    assert {fault.kind for fault in filled.verify().faults} == {"rollup"}
    assert ask(filled) == right
    filled.rebuild()
    assert filled.verify().ok


@pytest.mark.parametrize("numbers", [[2**46, -(2**45)], [2**47 - 1]])
def test_a_large_number_is_packed_where_all_together_are_not_too_large(numbers):
    body = packed_tables.pack([range(1, len(numbers) + 1), numbers], 2)
    assert body.endswith(b"".join(number.to_bytes(8, "little", signed=True) for number in numbers))
    assert packed_tables.pack([range(1, len(numbers) + 2), [*numbers, 2**46]], 2) == b""
