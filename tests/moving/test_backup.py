"""A backup is the whole ledger in one file, made while programs write; restoring it loses nothing that is there."""

import json
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import openai
import pytest

import tokenmeter
from tokenmeter.errors import ConfigurationError, LedgerError, StoreUnavailableError
from tokenmeter.ledger import Claim, CounterKey, Reservation, new_id
from tokenmeter.pricing.corrections import reversal
from tokenmeter.stores import backup, open_store
from tokenmeter.stores.backup import back_up, restore
from tokenmeter.stores.journal import Journal
from tokenmeter.stores.moving import copy_ledger
from tokenmeter.stores.sqlite import database
from tokenmeter.stores.tail import segment_path, segments
from tokenmeter.testing import FakeProvider


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/books/ledger.db"


@pytest.mark.parametrize("store_url", ["memory", "postgres", "sqlite"], indirect=True)
def test_a_backup_has_all_that_the_ledger_has_and_the_same_head(filled, told, store_url, tmp_path):
    meter = filled(store_url, budgets=[tokenmeter.Budget(name="team", team="search", limit_usd=5)])
    made = meter.backup(tmp_path / "backup.db")
    assert made.verification.ok
    restored = restore(made.path, f"sqlite:///{tmp_path}/new/ledger.db")
    ours, theirs = meter.verify(), told(restored.url)
    assert (made.head, theirs["head"], made.entries) == (ours.head, ours.head, len(theirs["entries"]))
    assert theirs["secret"] == meter.store.secret()
    assert theirs["documents"] == [
        (one.position, one.series, one.number, one.body, one.hash) for one in meter.store.documents()
    ]


def test_what_waits_in_the_tail_is_in_the_backup(open_meter, record, url, tmp_path):
    meter = open_meter(url)
    entry = record(meter, "tail", member="ada")
    made = back_up(meter.store, tmp_path / "backup.db")
    restore(made.path, tmp_path / "other.db")
    store = open_store(tmp_path / "other.db")
    assert store.entry(entry.entry_id) == entry
    store.close()


def test_a_backup_is_one_private_file_with_nothing_beside_it(filled, url, tmp_path):
    (tmp_path / "backups").mkdir()
    made = filled(url).backup(tmp_path / "backups" / "ledger.db")
    assert [file.name for file in (tmp_path / "backups").iterdir()] == ["ledger.db"]
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert made.bytes == made.path.stat().st_size


def test_a_backup_of_a_ledger_that_is_written_to_is_one_state_of_it(open_meter, record, url, tmp_path):
    meter = open_meter(url)
    record(meter, "first", member="ada")
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            record(meter, f"busy-{number}", member="ada")
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        made = [meter.backup(tmp_path / f"{number}.db") for number in range(3)]
    finally:
        stop.set()
        writer.join()
    assert all(one.verification.ok for one in made)
    assert [meter.verify(head=one.head).ok for one in made] == [True] * 3


def test_a_file_that_is_there_is_replaced_only_when_that_is_said_and_only_by_a_whole_one(filled, url, tmp_path):
    meter = filled(url)
    first = meter.backup(tmp_path / "backup.db")
    with pytest.raises(ConfigurationError, match="exists"):
        meter.backup(first.path)
    assert meter.backup(first.path, overwrite=True).head == first.head
    with pytest.raises(ConfigurationError, match="the ledger itself"):
        meter.backup(Path(url.removeprefix("sqlite:///")), overwrite=True)


def test_a_ledger_with_a_fault_is_backed_up_as_it_is_and_the_fault_is_told(filled, url, tmp_path):
    meter = filled(url)
    meter.store.health()
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    connection.execute("DROP TRIGGER entries_stay_unchanged")
    connection.commit()
    connection.close()
    made = meter.backup(tmp_path / "backup.db")
    assert [fault.kind for fault in made.verification.faults] == ["trigger"]
    with pytest.raises(LedgerError, match="entries_stay_unchanged"):
        restore(made.path, tmp_path / "other.db")
    assert restore(made.path, tmp_path / "other.db", check=False).head == made.head


def test_restoring_puts_the_old_ledger_aside_and_takes_in_what_its_tail_still_has(filled, record, url, tmp_path, told):
    meter = filled(url)
    made = meter.backup(tmp_path / "backup.db")
    later = record(meter, "later", member="eve@example.com")
    meter.close()
    with pytest.raises(ConfigurationError, match="There is a ledger"):
        restore(made.path, url)
    done = restore(made.path, url, overwrite=True)
    assert (done.recovered, done.entries) == (1, made.entries + 1)
    assert later.entry_id in told(url)["entries"]
    assert done.replaced is not None
    assert sqlite3.connect(done.replaced).execute("PRAGMA quick_check").fetchone() == ("ok",)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("step", "begins"),
    [("_put_aside", "books/ledger.db.restored-"), ("_look", "backup.db.partial-")],
)
def test_what_a_killed_process_left_half_made_goes_with_the_next(filled, url, tmp_path, monkeypatch, step, begins):
    meter = filled(url)
    made = meter.backup(tmp_path / "backup.db")

    def work():
        if step == "_look":
            meter.backup(made.path, overwrite=True)
        else:
            restore(made.path, url, overwrite=True)

    child = os.fork()
    if not child:
        monkeypatch.setattr(backup, step, lambda *given, **named: os.kill(os.getpid(), signal.SIGKILL))
        work()
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (left,) = tmp_path.glob(f"{begins}*")
    work()
    assert left.exists(), "somebody may still write to it"
    os.utime(left, (0, 0))
    warned = [told for told in meter.store.health().warnings if str(left) in told]
    assert len(warned) == (step == "_put_aside")
    work()
    assert not left.exists()


def test_another_ledgers_tail_is_put_aside_with_it(filled, open_meter, record, url, tmp_path):
    made = filled(f"sqlite:///{tmp_path}/one.db").backup(tmp_path / "backup.db")
    other = open_meter(url)
    record(other, "other", member="ada")
    path = other.store.path
    other.close()
    done = restore(made.path, url, overwrite=True)
    assert done.recovered == 0
    (segment,) = segments(done.replaced)
    assert segment_path(done.replaced, segment).stat().st_size
    assert done.head == made.head
    assert path.exists()


def test_a_program_that_has_the_ledger_open_goes_on_with_the_restored_one(filled, record, url, tmp_path):
    meter = filled(url)
    made = meter.backup(tmp_path / "backup.db")
    restore(made.path, url, overwrite=True)
    record(meter, "after", member="ada")
    assert meter.verify().ok
    assert meter.store.health().facts["entries"] == made.entries + 1


def test_no_call_of_the_same_bill_is_recorded_again_after_a_restore(filled, record, url, tmp_path, open_meter):
    made = filled(url).backup(tmp_path / "backup.db")
    done = restore(made.path, tmp_path / "new.db")
    assert record(open_meter(done.url), 0, member="ada") is None


@pytest.mark.parametrize("wrong", ["text", "empty", "other", "cut", "missing"])
def test_what_is_no_backup_is_refused_in_words_and_nothing_is_made(filled, url, tmp_path, wrong):
    file = tmp_path / "backup.db"
    if wrong == "text":
        file.write_text("these are not the entries you are looking for" * 100)
    elif wrong == "empty":
        file.touch()
    elif wrong == "other":
        connection = sqlite3.connect(file)
        connection.execute("CREATE TABLE other (id)")
        connection.commit()
        connection.close()
    elif wrong == "cut":
        whole = filled(url).backup(file).path.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreUnavailableError, match=r"backup\.db"):
        restore(file, tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()


def test_a_ledger_in_use_is_not_taken_for_a_backup(open_meter, record, url, tmp_path):
    meter = open_meter(url)
    record(meter, 1, member="ada")
    meter.report()
    with pytest.raises(LedgerError, match="in use"):
        restore(meter.store.path, tmp_path / "new.db")


def test_a_backup_is_restored_to_a_server_that_has_no_records(
    filled, url, tmp_path, postgres_url, told, record, open_meter
):
    meter = filled(url)
    made = meter.backup(tmp_path / "backup.db")
    done = restore(made.path, postgres_url)
    assert done.head == made.head
    before = told(url)
    assert told(postgres_url) == before
    assert restore(made.path, postgres_url) == done  # it is there already
    record(open_meter(postgres_url), "since")
    with pytest.raises(ConfigurationError, match="never replaced"):
        restore(made.path, postgres_url, overwrite=True)


def test_a_restoration_to_a_server_that_was_broken_off_goes_on(filled, url, tmp_path, postgres_url, told):
    meter = filled(url)
    made = meter.backup(tmp_path / "backup.db")

    def end_it(*_):
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="the power went"):
        restore(made.path, postgres_url, check=False, progress=end_it)
    store = open_store(postgres_url)
    assert not store.verify().ok
    store.close()
    assert restore(made.path, postgres_url).head == made.head
    assert told(postgres_url) == told(url)


def test_an_unfinished_restoration_of_another_ledger_is_let_be(filled, url, tmp_path, postgres_url):
    made = filled(url).backup(tmp_path / "backup.db")
    other = filled(f"sqlite:///{tmp_path}/other.db").backup(tmp_path / "other-backup.db")

    def end_it(*_):
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="the power went"):
        restore(other.path, postgres_url, check=False, progress=end_it)
    with pytest.raises(ConfigurationError, match="never replaced"):
        restore(made.path, postgres_url)


def test_a_backup_makes_no_folder(filled, url, tmp_path, run_command):
    """As an export: a disk that is not mounted is no reason to write beside it."""
    filled(url).close()
    code, _, said = run_command("db", "backup", tmp_path / "none" / "backup.db", "--store", url)
    assert code == 2
    assert "does not exist; make it first" in " ".join(said.split())
    assert not (tmp_path / "none").exists()


def test_the_commands_say_what_they_did(filled, url, tmp_path, run_command):
    meter = filled(url)
    file = tmp_path / "backup.db"
    code, said, _ = run_command("db", "backup", file, "--store", url)
    assert code == 0
    assert "12 entries" in said
    assert meter.verify().head in said
    code, said, _ = run_command("db", "restore", file, "--store", f"sqlite:///{tmp_path}/new.db", "--json")
    assert (code, json.loads(said)["entries"]) == (0, 12)
    code, _, said = run_command("db", "restore", file, "--store", f"sqlite:///{tmp_path}/new.db")
    assert (code, "--overwrite" in said) == (2, True)


def test_without_room_for_a_copy_its_file_is_named_and_nothing_is_left(filled, url, tmp_path):
    """The ledger's own disk was said to be full, and a journal stayed."""
    meter = filled(url)
    made = meter.backup(tmp_path / "backup.db")
    meter.close()
    size = made.path.stat().st_size // 2

    def run(*arguments):
        command = [sys.executable, "-m", "tokenmeter", "db", *map(str, arguments)]
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # noqa: E731
        return subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)

    for arguments, named in (
        (("backup", tmp_path / "other" / "backup.db", "--store", url), tmp_path / "other" / "backup.db"),
        (("restore", made.path, "--store", f"sqlite:///{tmp_path}/other/new.db"), tmp_path / "other" / "new.db"),
    ):
        named.parent.mkdir(exist_ok=True)
        done = run(*arguments)
        assert done.returncode == 3
        assert str(named) in " ".join(done.stderr.split())
        assert list(named.parent.iterdir()) == []
    assert tokenmeter.make_meter(store=url).verify().ok


# -- programs that have the ledger open when another takes its place


def _restored(meter, path, backup):
    restore(backup, path, overwrite=True)


def _without_counters(meter, path, backup):
    Path(f"{path}-live").unlink()
    open_store(path).close()  # another program makes them anew


def _by_hand(meter, path, backup):
    for file in [path, *(Path(f"{path}{end}") for end in ("-wal", "-shm"))]:
        if file.exists():
            file.rename(f"{file}.aside")
    path.write_bytes(backup.read_bytes())
    list(meter.entries())  # until it reads, or folds in the background, a program without a cap sees nothing of it


@pytest.fixture
def grown(open_meter, record, url, tmp_path):
    """A meter whose ledger has a backup that lacks a person's definition, which was in a segment that is gone."""

    def make():
        meter = open_meter(url)
        record(meter, "first", member="bob")
        backup = meter.backup(tmp_path / "backup.db").path
        record(meter, "second", member="ada")
        for number in range(3):
            if isinstance(meter.store.journal, Journal):
                meter.store.journal.turn_over()
            record(meter, f"bob-{number}", member="bob")
            list(meter.entries())
        return meter, meter.store.path, backup

    return make


def test_what_comes_back_from_the_tail_is_as_it_was_recorded_though_its_definitions_are_gone_from_it(
    grown, record, open_meter
):
    """Its entries were nobody's, of an unknown model, and `verify` failed."""
    meter, path, backup = grown()
    whose = {"member": "ada", "end_user": "u1", "tags": {"feature": "f1"}}
    record(meter, "whose", **whose)
    for number in range(2):
        meter.store.journal.turn_over()
        record(meter, f"bob-{number}-again", member="bob")
        list(meter.entries())
    record(meter, "again", **whose)
    meter.store.settle(reversal(record(meter, "wrong", **whose), []))
    assert len(segments(path)) == 1
    before = {entry.entry_id: entry for entry in meter.entries()}
    meter.close()
    done = restore(backup, path, overwrite=True)
    restored = open_meter(meter.store.url)
    found = {entry.entry_id: entry for entry in restored.entries()}
    assert found == {entry_id: before[entry_id] for entry_id in found}
    assert (len(found), done.recovered) == (5, 4)
    assert {row["member"]: row.requests for row in restored.report("member").rows} == {"ada": 1, "bob": 2}
    assert restored.verify().ok


def test_who_was_erased_since_a_backup_has_no_row_in_the_ledger_that_is_restored_over_it(
    open_meter, record, url, tmp_path
):
    meter = open_meter(url)
    record(meter, "first", member="ada")
    backup = meter.backup(tmp_path / "backup.db").path
    record(meter, "second", member="carl")
    meter.flush()
    meter.erase("member", "carl", reason="request 4711", by="office")
    record(meter, "third", member="bob")
    record(meter, "fourth", member="carl")  # again, and not erased
    call, now = next(iter(meter.entries())), meter.store.now()
    claims = (Claim(CounterKey("all", "", 0), 10, 1),)
    ends = now + timedelta(minutes=5)
    held = Reservation(reservation_id=new_id(), claims=claims, created_at=now, expires_at=ends, owner="", call=call)
    meter.store.reserve(held)
    assert meter.store.release(held.reservation_id)  # in the tail by what it does alone: no record says it
    assert meter.verify().ok
    meter.close()
    assert restore(backup, meter.store.path, overwrite=True).recovered == 2
    restored = open_meter(url)
    assert [entry.attribution.member for entry in restored.entries()] == ["ada", "bob", "carl"]
    assert restored.verify().faults == ()
    with sqlite3.connect(meter.store.path) as file:
        assert sorted(file.execute("SELECT value FROM names")) == [("ada",), ("bob",), ("carl",)]
    file.close()


def test_a_damaged_ledger_is_put_aside_with_what_can_be_read_of_it_known_to_the_restored_one(grown, record, caplog):
    meter, path, backup = grown()
    record(meter, "after", member="ada")
    meter.close()
    with path.open("r+b") as file:
        file.write(bytes(4096))
    done = restore(backup, path, overwrite=True)
    assert (done.recovered, path.stat().st_size > 4096) == (2, True)
    assert "recorded without" in caplog.text
    assert [file.name for file in path.parent.glob(f"{path.name}.restored-*")] == []


def _members(meter):
    return {entry.attribution.member for entry in meter.entries()}


@pytest.mark.parametrize(
    ("replace", "is_network"),
    [(_restored, False), (_without_counters, False), (_by_hand, False), (_restored, True), (_by_hand, True)],
)
def test_a_program_that_goes_on_with_another_ledger_says_anew_whose_calls_are(
    grown, record, replace, is_network, monkeypatch, open_meter
):
    """Its calls were recorded as nobody's, and `verify` failed for good."""
    monkeypatch.setattr(database, "is_network", lambda path: is_network)
    meter, path, backup = grown()
    replace(meter, path, backup)
    entries = [record(meter, f"after-{number}", member="ada") for number in range(2)]
    other = open_meter(meter.store.url)
    for reader in (meter, other):
        assert [reader.store.entry(entry.entry_id).attribution.member for entry in entries] == ["ada", "ada"]
        assert reader.verify().ok


@pytest.mark.parametrize("replace", [_restored, _by_hand])
def test_who_reads_a_ledger_that_took_anothers_place_reads_its_names(grown, record, replace, open_meter):
    """Rows were decoded as those of the ledger before: carol's calls were ada's."""
    meter, path, backup = grown()
    assert _members(meter) == {"ada", "bob"}
    replace(meter, path, backup)
    record(open_meter(meter.store.url), "third", member="carol")
    for reader in (meter, open_meter(meter.store.url)):
        assert _members(reader) == {"bob", "carol"}
        assert {row["member"] for row in reader.report("member").rows} == {"bob", "carol"}


@pytest.mark.parametrize("replace", [_restored, _without_counters, _by_hand])
def test_a_program_that_goes_on_with_another_ledger_obeys_a_cap_that_is_filed_there(
    open_meter, record, url, tmp_path, replace
):
    meter = open_meter(url)
    with FakeProvider() as provider, openai.OpenAI(api_key="sk-test", base_url=provider.openai_url) as plain:
        client = tokenmeter.wrap(plain, meter=meter)

        def ask():
            client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hi"}])

        ask(), ask()
        backup = meter.backup(tmp_path / "backup.db").path
        replace(meter, meter.store.path, backup)
        ask()
        open_meter(url).budgets.set(tokenmeter.Budget(name="stop", limit_usd=0), by="ops", reason="halt")
        with pytest.raises(tokenmeter.BudgetExceededError):
            ask()
    assert meter.store.health().facts["entries"] == 3


@pytest.mark.parametrize("replace", [_restored, _without_counters])
def test_calls_under_way_are_counted_once_where_another_ledger_takes_the_place(open_meter, url, tmp_path, replace):
    """Live counters went on with what had been held, and no more with what was settled."""
    meter = open_meter(url, budgets=[tokenmeter.Budget(name="all", limit_requests=3)])
    with FakeProvider() as provider, openai.OpenAI(api_key="sk-test", base_url=provider.openai_url) as plain:
        client = tokenmeter.wrap(plain, meter=meter)

        def ask(**more):
            return client.chat.completions.create(
                model="gpt-5-mini", messages=[{"role": "user", "content": "Hi"}], **more
            )

        ask()
        backup = meter.backup(tmp_path / "backup.db").path
        with ask(stream=True) as stream:
            replace(meter, meter.store.path, backup)
            list(stream)
        for reader in (meter, open_meter(url, budgets=[tokenmeter.Budget(name="all", limit_requests=3)])):
            assert [(one.spent, one.reserved) for one in reader.remaining()] == [(2, 0)]
            kept = dict(reader.store.all_counters())
            assert reader.store.counters(list(kept)) == kept
        ask()
        with pytest.raises(tokenmeter.BudgetExceededError):
            ask()


# -- what lies beside a file that is taken, or about to be made


def _leave_a_journal(path):
    """As a program does that is killed amid a large change of a ledger on a network: its journal stays."""
    script = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("PRAGMA cache_spill = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE sums SET n = n + 1")
connection.execute("UPDATE meter_sums SET n = n + 1")
connection.execute("INSERT INTO refused SELECT seq, 1, zeroblob(9000), x'00', x'00' FROM entries")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script, path], check=False)
    assert Path(f"{path}-journal").stat().st_size


def test_a_journal_beside_the_ledger_is_not_played_into_the_restored_one(filled, url, tmp_path, monkeypatch, told):
    """The restored file was malformed, and the one put aside stayed half written."""
    monkeypatch.setattr(database, "is_network", lambda path: True)
    meter = filled(url)
    made, path = meter.backup(tmp_path / "backup.db"), meter.store.path
    meter.close()
    before = told(url)
    _leave_a_journal(path)
    done = restore(made.path, url, overwrite=True)
    assert told(url) == before
    assert told(f"sqlite:///{done.replaced}") == before


def test_a_file_with_a_journal_beside_it_is_not_taken_for_a_backup(filled, url, tmp_path, monkeypatch):
    monkeypatch.setattr(database, "is_network", lambda path: True)
    meter = filled(url)
    meter.close()
    _leave_a_journal(meter.store.path)
    with pytest.raises(LedgerError, match=r"ledger\.db-journal"):
        restore(meter.store.path, tmp_path / "other.db", check=False)
    assert not (tmp_path / "other.db").exists()


def test_of_several_ledgers_put_aside_in_one_second_none_is_lost(filled, record, url, tmp_path, monkeypatch):
    meter = filled(url)
    made = meter.backup(tmp_path / "backup.db")
    record(meter, "later", member="eve@example.com")
    entries = meter.store.health().facts["entries"]
    meter.close()
    monkeypatch.setattr(backup, "utcnow", lambda: datetime(2026, 11, 30, tzinfo=UTC))
    asides = [restore(made.path, url, overwrite=True).replaced for _ in range(3)]
    assert len(set(asides)) == 3
    assert sqlite3.connect(asides[0]).execute("SELECT entries FROM ledger").fetchone() == (entries,)


def _leave_a_log(path, how):
    """As a program does that opened a file as a ledger, recorded to it and was killed."""
    script = f"""
import os, signal, sys, tokenmeter
meter = tokenmeter.make_meter(store="sqlite:///" + sys.argv[1])
meter.record({{"id": "chatcmpl-x", "object": "chat.completion", "model": "gpt-5-mini",
              "usage": {{"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}}},
             provider="openai", endpoint="chat.completions")
list(meter.entries())
{"os.kill(os.getpid(), signal.SIGKILL)" if how == "killed" else "meter.close()"}
"""
    subprocess.run([sys.executable, "-c", script, path], check=False)


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_a_backup_is_not_written_beside_what_would_be_taken_for_a_part_of_it(filled, url, tmp_path, how):
    """It was said to be sound, and whoever opened it saw what had been in the log."""
    meter = filled(url)
    made = meter.backup(tmp_path / "backup.db")
    _leave_a_log(made.path, how)
    with pytest.raises(LedgerError, match=r"backup\.db-(wal|tail\.\d).* away"):
        meter.backup(made.path, overwrite=True)
    for file in tmp_path.glob("backup.db?*"):
        file.unlink()
    assert meter.backup(made.path, overwrite=True).head == meter.verify().head


def test_a_backup_that_somebody_has_read_is_written_again(filled, url, tmp_path, run_command):
    meter = filled(url)
    made = meter.backup(tmp_path / "backup.db")
    assert run_command("report", "--store", f"sqlite:///{made.path}")[0] == 0
    assert meter.backup(made.path, overwrite=True).head == made.head


def test_a_copy_is_not_given_a_name_whose_log_is_still_there(filled, url, tmp_path):
    filled(url).close()
    target = tmp_path / "copy.db"
    _leave_a_log(target, "killed")
    target.unlink()
    with pytest.raises(LedgerError, match=r"copy\.db-wal"):
        copy_ledger(url, target)
    assert not target.exists()


def test_what_is_left_of_a_copy_of_another_ledger_is_named(filled, url, tmp_path):
    """The target itself was said to have records, which was not there at all."""
    meter = filled(url)
    other = filled(f"sqlite:///{tmp_path}/other.db")
    other.backup(tmp_path / "copy.db.partial")
    with pytest.raises(LedgerError, match=r"copy\.db\.partial"):
        copy_ledger(url, tmp_path / "copy.db")
    (tmp_path / "copy.db.partial").unlink()
    assert copy_ledger(url, tmp_path / "copy.db").head == meter.verify().head


def test_two_backups_to_one_name_at_once_are_both_made(filled, url, tmp_path, monkeypatch):
    """Both wrote to one file, of threads as of containers in which each is process 1."""
    meter, both, look = filled(url), threading.Barrier(2), backup._look

    def look_together(*given, **named):
        both.wait(60)
        made = look(*given, **named)
        both.wait(60)
        return made

    monkeypatch.setattr(backup, "_look", look_together)
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(lambda _: meter.backup(tmp_path / "backup.db", overwrite=True).head, range(2)))
    assert made == [meter.verify().head] * 2
    assert [file.name for file in tmp_path.glob("backup.db*")] == ["backup.db"]
