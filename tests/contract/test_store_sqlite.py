"""What the SQLite store promises about its file."""

import os
import sqlite3
import stat
import threading
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tokenmeter.errors import ConfigurationError, SchemaVersionError, StoreBusyError, StoreUnavailableError
from tokenmeter.stores import database, default_path, open_store, session
from tokenmeter.stores.filesystem import is_network
from tokenmeter.stores.migrations import SCHEMA_VERSION
from tokenmeter.stores.sqlite import SQLiteStore


@pytest.fixture
def path(tmp_path):
    return tmp_path / "books" / "ledger.db"


@pytest.fixture
def store(path):
    opened = SQLiteStore(path, patience=0.3)
    yield opened
    opened.close()


@pytest.fixture
def tamper(path):
    """Run SQL on the file as somebody who went past the triggers."""

    def run(*statements):
        connection = sqlite3.connect(path)
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    return run


class TestUrls:
    def test_a_relative_url_is_a_file_here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        store = open_store("sqlite:///my%20usage.db")
        assert (tmp_path / "my usage.db").exists()
        monkeypatch.chdir("/")
        assert store.health().facts["path"] == str(tmp_path / "my usage.db")
        assert open_store(store.url).health().facts["path"] == str(tmp_path / "my usage.db")

    def test_none_is_the_users_data_directory(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        monkeypatch.setenv("HOME", str(tmp_path))
        store = open_store(None)
        assert Path(store.health().facts["path"]) == default_path()
        assert default_path().is_relative_to(tmp_path)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "usage.db",
            "sqlite:",
            "sqlite://",
            "sqlite:///",
            "sqlite://usage.db",
            "sqlite:///:memory:",
            "sqlite:///a.db?mode=ro",
            "mysql://localhost/x",
            "redis:",
            "memory:x",
        ],
    )
    def test_what_names_no_store_is_refused_with_the_forms(self, url):
        with pytest.raises(ConfigurationError, match="memory:"):
            open_store(url)

    def test_a_directory_is_refused(self, tmp_path):
        with pytest.raises(StoreUnavailableError, match="directory"):
            open_store(tmp_path)


class TestFile:
    def test_is_for_its_owner_only(self, store, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(Path(f"{path}-lock").stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    def test_loose_permissions_are_told(self, store, path):
        assert not any("0600" in warning for warning in store.health().warnings)
        path.chmod(0o644)
        assert any("0600" in warning for warning in store.health().warnings)

    def test_an_existing_directory_keeps_its_permissions(self, tmp_path):
        tmp_path.chmod(0o755)
        SQLiteStore(tmp_path / "ledger.db").close()
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755

    def test_a_closed_store_opens_again(self, store, make_entry):
        store.settle(make_entry())
        store.close()
        store.settle(make_entry())
        store.close()
        assert len(list(store.entries())) == 2

    def test_the_log_is_folded_in_when_the_last_one_closes(self, store, path, make_entry):
        store.settle(make_entry())
        assert Path(f"{path}-wal").exists()
        store.close()
        assert not Path(f"{path}-wal").exists()

    def test_what_another_store_of_this_process_writes_is_seen(self, store, path, make_entry):
        other = SQLiteStore(path)
        other.settle(make_entry())
        other.close()
        store.settle(make_entry())
        assert len(list(store.entries())) == 2
        assert store.verify().ok

    def test_a_link_and_its_target_are_one_ledger(self, store, path, tmp_path, make_entry):
        link = tmp_path / "link.db"
        link.symlink_to(path)
        SQLiteStore(link).settle(make_entry())
        assert len(list(store.entries())) == 1

    def test_sqlite_is_the_one_that_sqlite_utils_takes(self):
        from sqlite_utils import utils

        assert session.sqlite3 is utils.sqlite3

    def test_sqlite_utils_reads_it(self, store, path, make_entry):
        import sqlite_utils

        store.settle(make_entry(member="ada"))
        db = sqlite_utils.Database(path)
        (row,) = db.query("SELECT * FROM entries JOIN contexts ON contexts.id = entries.context")
        db.close()
        assert (row["member"], row["billed_micro"] * 10**6 + row["billed_pico"]) == ("ada", 3_250_000_000)

    def test_on_a_network_file_system_it_does_without_a_shared_log(self, path, monkeypatch, make_entry):
        monkeypatch.setattr(database, "is_network", lambda path: True)
        store = SQLiteStore(path)
        store.settle(make_entry())
        assert store.health().facts["journal_mode"] == "delete"
        assert any("network" in warning for warning in store.health().warnings)
        assert not Path(f"{path}-wal").exists()
        assert len(list(store.entries())) == 1
        store.close()

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [("ext4", False), ("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("overlay", False)],
    )
    def test_a_network_file_system_is_known_by_its_longest_mount(self, tmp_path, kind, expected):
        mounts = tmp_path / "mountinfo"
        mounts.write_text(
            "22 1 0:2 / / rw - xfs /dev/a rw\n"
            f"23 22 0:3 / /mnt/my\\040data rw,relatime shared:1 - {kind} server:/x rw\n"
            "24 22 0:4 / /mnt/my rw - nfs server:/y rw\n"
        )
        assert is_network(Path("/mnt/my data/books/l.db"), mounts) is expected
        assert not is_network(Path("/mnt/elsewhere/l.db"), mounts)
        assert not is_network(Path("/x"), tmp_path / "nothing")


class TestReplacedFile:
    def test_a_removed_file_is_made_anew_and_the_entry_is_in_it(self, store, path, make_entry):
        store.settle(make_entry())
        path.unlink()
        entry = make_entry()
        assert store.settle(entry).recorded
        assert list(store.entries()) == [entry]
        assert SQLiteStore(path).entry(entry.entry_id) == entry

    def test_a_file_put_in_its_place_is_the_one_written_to(self, store, path, tmp_path, make_entry):
        store.settle(make_entry())
        other = SQLiteStore(tmp_path / "other.db")
        kept = make_entry(member="kept")
        other.settle(kept)
        other.close()
        for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            name.unlink()
        (tmp_path / "other.db").rename(path)
        entry = make_entry()
        store.settle(entry)
        assert {found.entry_id for found in SQLiteStore(path).entries()} == {kept.entry_id, entry.entry_id}
        assert store.verify().ok

    def test_a_removed_log_does_not_swallow_the_next_entry(self, store, path, make_entry):
        store.settle(make_entry())
        Path(f"{path}-wal").unlink()
        entry = make_entry()
        store.settle(entry)
        assert SQLiteStore(path).entry(entry.entry_id) == entry

    def test_a_removed_directory_is_made_anew(self, store, path, make_entry):
        store.settle(make_entry())
        for name in path.parent.iterdir():
            name.unlink()
        path.parent.rmdir()
        entry = make_entry()
        store.settle(entry)
        assert SQLiteStore(path).entry(entry.entry_id) == entry


class TestFaults:
    def test_a_full_disk_loses_nothing_and_says_so(self, store, make_entry):
        first = make_entry()
        store.settle(first)
        store._database._writer.connection.execute("PRAGMA max_page_count = 1")
        refused = make_entry(raw_usage="x" * 200_000)
        with pytest.raises(StoreUnavailableError, match="disk is full") as caught:
            store.settle(refused)
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        store._database._writer.connection.execute("PRAGMA max_page_count = 1000000")
        store.settle(refused)
        assert {entry.entry_id for entry in store.entries()} == {first.entry_id, refused.entry_id}
        assert store.verify().ok

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_directory_that_cannot_be_written_is_told(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(StoreUnavailableError, match="permissions"):
            SQLiteStore(tmp_path / "sub" / "ledger.db")

    @pytest.mark.parametrize("place", ["/proc/nobody/ledger.db", "/dev/null/ledger.db"])
    def test_a_place_where_nothing_can_be_made_is_told(self, place):
        with pytest.raises(StoreUnavailableError, match="name another file"):
            open_store(f"sqlite:///{place}")

    @pytest.mark.parametrize("content", [b"hello, I am a diary" * 400, b"SQLite format 3\0" + b"\xff" * 8000])
    def test_a_file_that_is_no_database_is_left_alone(self, tmp_path, content):
        path = tmp_path / "diary.txt"
        path.write_bytes(content)
        with pytest.raises(StoreUnavailableError, match=r"diary\.txt"):
            SQLiteStore(path)
        assert path.read_bytes() == content

    def test_a_damaged_ledger_is_told(self, store, path, make_entry):
        for _ in range(50):
            store.settle(make_entry())
        store.close()
        content = bytearray(path.read_bytes())
        content[4096:] = os.urandom(len(content) - 4096)
        path.write_bytes(content)
        with pytest.raises(StoreUnavailableError, match="damaged"):
            store.settle(make_entry())

    def test_somebody_elses_database_is_left_alone(self, tmp_path):
        path = tmp_path / "shop.db"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE customers (name)")
        connection.commit()
        connection.close()
        with pytest.raises(StoreUnavailableError, match="not a tokenmeter ledger"):
            SQLiteStore(path)

    def test_a_newer_schema_is_left_alone(self, store, path):
        store.close()
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        connection.close()
        with pytest.raises(SchemaVersionError, match="Upgrade"):
            SQLiteStore(path)

    def test_a_failed_write_leaves_no_trace_of_shared_rows(self, store, make_entry, make_charge):
        broken = make_entry(member="new", charges=(make_charge("rare", 2**70),))
        with pytest.raises(OverflowError):
            store.settle(broken)
        store.settle(make_entry(member="new", charges=(make_charge("rare", 2),)))
        assert store.verify().ok


class TestWaiting:
    @pytest.fixture
    def locked(self, path, store):
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.close()

    def test_without_waiting_a_taken_lock_is_told_at_once(self, store, locked, make_entry, make_hold, make_key):
        hold = make_hold((make_key(), 1, 1))
        for write in (
            lambda: store.settle(make_entry(), wait=False),
            lambda: store.reserve(hold, wait=False),
            lambda: store.release("x", wait=False),
            lambda: store.extend("x", hold.expires_at, wait=False),
        ):
            with pytest.raises(StoreBusyError):
                write()
        locked.execute("ROLLBACK")
        assert list(store.entries()) == []
        assert store.settle(make_entry(), wait=False).recorded

    def test_waiting_ends_when_the_lock_is_free(self, store, locked, make_entry):
        threading.Timer(0.1, locked.execute, ("ROLLBACK",)).start()
        assert store.settle(make_entry()).recorded

    def test_waiting_has_an_end(self, store, locked, make_entry):
        with pytest.raises(StoreUnavailableError, match="locked"):
            store.settle(make_entry())

    def test_without_waiting_a_busy_thread_is_told_at_once(self, store, make_entry):
        with store._database._mutex, pytest.raises(StoreBusyError):
            store.settle(make_entry(), wait=False)

    def test_reading_waits_for_nobody(self, store, locked):
        assert list(store.entries()) == []
        assert store.counters([]) == {}


class TestAppendOnly:
    @pytest.mark.parametrize("table", ["entries", "contexts", "rates"])
    @pytest.mark.parametrize("statement", ["UPDATE {} SET rowid = rowid + 1000", "DELETE FROM {}"])
    def test_rows_can_be_neither_changed_nor_removed(self, store, path, make_entry, table, statement):
        store.settle(make_entry())
        connection = sqlite3.connect(path)
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement.format(table))
        connection.close()


class TestVerify:
    @pytest.fixture(autouse=True)
    def ten(self, store, make_entry, make_charge, noon):
        for index in range(10):
            store.settle(
                make_entry(
                    member=f"m{index}",
                    occurred_at=noon + timedelta(hours=7 * index),
                    charges=(make_charge("input", index + 1, multipliers={"platform": Decimal("1.05")}),),
                )
            )

    def found(self, store):
        return {(fault.kind, fault.where) for fault in store.verify().faults}

    def test_a_sound_ledger_has_no_faults(self, store):
        assert self.found(store) == set()

    @pytest.mark.parametrize(
        "change",
        [
            "billed_pico = billed_pico + 1",
            "quantities = '{\"input\":99}'",
            "occurred_at = occurred_at + 1",
            "dedup_key = 'x'",
            "charges = NULL",
            "charges = '['",
            "context = 3",
            "context = 99",
            "hash = zeroblob(32)",
        ],
    )
    def test_finds_an_edited_entry(self, store, tamper, change):
        tamper(f"UPDATE entries SET {change} WHERE seq = 5")  # noqa: S608
        assert ("edited", "entry 5") in self.found(store)

    @pytest.mark.parametrize(
        ("table", "change"),
        [("contexts", "member = 'eve'"), ("rates", "list_unit_price = '1'"), ("series", "sku_meter = 'output'")],
    )
    def test_finds_an_edited_shared_row(self, store, tamper, table, change):
        tamper(f"UPDATE {table} SET {change} WHERE id = 1")  # noqa: S608
        assert ("edited", f"{table} 1") in self.found(store)

    def test_finds_an_edited_shared_row_whose_digest_was_edited_too(self, store, tamper):
        from tokenmeter.stores.contexts import CONTEXT_FIELDS
        from tokenmeter.stores.shared import digest_of

        (values,) = store._fetch(f"SELECT {', '.join(CONTEXT_FIELDS)} FROM contexts WHERE id = 4")  # noqa: S608
        forged = digest_of(["eve" if name == "member" else v for name, v in zip(CONTEXT_FIELDS, values, strict=True)])
        tamper(f"UPDATE contexts SET member = 'eve', digest = x'{forged.hex()}' WHERE id = 4")  # noqa: S608
        assert ("edited", "entry 4") in self.found(store)

    def test_finds_removed_entries(self, store, tamper):
        tamper("DELETE FROM entries WHERE seq IN (4, 5, 8)")
        assert {("missing", "entries 4 to 5"), ("missing", "entry 8")} <= self.found(store)

    def test_finds_a_removed_first_entry(self, store, tamper):
        tamper("DELETE FROM entries WHERE seq = 1")
        assert ("missing", "entry 1") in self.found(store)

    def test_finds_a_cut_tail(self, store, tamper):
        tamper("DELETE FROM entries WHERE seq > 7")
        assert ("cut", "entries 8 to 10") in self.found(store)

    def test_finds_a_cut_tail_by_the_sums_even_when_the_head_was_moved(self, store, tamper):
        tamper(
            "DELETE FROM entries WHERE seq > 9",
            "UPDATE head SET seq = 9, hash = (SELECT hash FROM entries WHERE seq = 9)",
        )
        assert {kind for kind, where in self.found(store)} == {"rollup"}

    def test_finds_an_emptied_ledger(self, store, tamper):
        tamper("DELETE FROM entries")
        assert ("cut", "entries 1 to 10") in self.found(store)

    def test_finds_an_entry_put_in_past_the_head(self, store, tamper):
        tamper("CREATE TEMP TABLE t AS SELECT * FROM entries WHERE seq = 3", "UPDATE t SET seq = 11, entry_id = 'x'")
        tamper(
            "CREATE TEMP TABLE t AS SELECT * FROM entries WHERE seq = 3",
            "UPDATE t SET seq = 11, entry_id = 'x'",
            "INSERT INTO entries SELECT * FROM t",
        )
        assert ("edited", "entry 11") in self.found(store)

    def test_finds_a_head_of_another_ledger(self, store, tamper):
        tamper("UPDATE head SET hash = zeroblob(32)")
        assert self.found(store) == {("edited", "head")}

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE sums SET billed_pico = billed_pico + 1 WHERE until = (SELECT min(until) FROM sums)",
            "DELETE FROM sums WHERE level = 1 AND until = (SELECT min(until) FROM sums WHERE level = 1)",
        ],
    )
    def test_finds_sums_that_drifted(self, store, tamper, change):
        tamper(change)
        assert ("rollup", "2026-11-23") in self.found(store)

    def test_finds_sums_of_a_month_that_drifted(self, store, tamper):
        tamper("UPDATE sums SET entries = entries + 1 WHERE level = 2")
        assert self.found(store) == {("rollup", "2026-11")}

    def test_finds_reserved_amounts_that_no_hold_explains(self, store, tamper, make_hold, make_key):
        store.reserve(make_hold((make_key(), None, 4)))
        tamper("UPDATE counters SET reserved = '5'")
        assert self.found(store) == {("counter", "cap member=ada")}
