"""What the SQLite store promises about its file."""

import asyncio
import contextlib
import errno
import gc
import mmap
import os
import queue
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter as Counted
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest

from tokenmeter import Budget, wrap
from tokenmeter.errors import ConfigurationError, SchemaVersionError, StoreUnavailableError
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.stores import default_path, open_store, writer
from tokenmeter.stores.base import CapReachedError, Counter
from tokenmeter.stores.documents import NewDocument
from tokenmeter.stores.engine import conditions
from tokenmeter.stores.slots import to_microseconds
from tokenmeter.stores.sqlite import SQLiteStore, database
from tokenmeter.stores.sqlite.schema import SCHEMA_VERSION
from tokenmeter.stores.tail import Segment, segment_path, segments
from tokenmeter.stores.urls import SideLock, is_mounted_alone, is_network
from tokenmeter.testing import FakeProvider


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
        with pytest.raises(
            ConfigurationError, match=re.escape(f"is a directory; name a file in it, such as {tmp_path}/")
        ):
            open_store(tmp_path)
        assert not any(tmp_path.iterdir())


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

    def test_sqlite_utils_reads_it(self, store, path, make_entry):
        import sqlite_utils

        assert database.sqlite3 is vars(sqlite_utils.utils)["sqlite3"]
        store.settle(make_entry(member="ada"))
        store.close()
        db = sqlite_utils.Database(path)
        (row,) = db.query("SELECT * FROM entries JOIN contexts ON contexts.id = entries.account")
        db.close()
        assert (row["member"], row["billed_micro"] * 10**6 + row["billed_pico"]) == ("ada", 3_250_000_000)

    def test_on_a_network_file_system_each_record_is_a_transaction_and_nothing_lies_beside_the_file(
        self, path, monkeypatch, make_entry, make_hold, make_key, make_posting
    ):
        monkeypatch.setattr(database, "is_network", lambda path: True)
        store, other = SQLiteStore(path), SQLiteStore(path)
        hold = make_hold((make_key(), 10, 6))
        store.reserve(hold)
        with pytest.raises(CapReachedError):
            other.reserve(make_hold((make_key(), 10, 5)))
        settled = other.settle(make_entry(), [make_posting(make_key(), 4, 3)], reservation_id=hold.reservation_id)
        assert (settled.recorded, settled.hold_found, len(settled.crossings)) == (True, True, 1)
        assert store.counters([make_key()])[make_key()] == Counter(4, 0)
        store.append([(make_entry(), [make_posting(make_key(), 1)]), (make_entry(dedup_key="d"), ())])
        assert store.health().facts["journal_mode"] == "delete"
        assert any("network" in warning for warning in store.health().warnings)
        assert len(list(other.entries())) == 3
        assert other.verify().ok
        assert {name.name for name in path.parent.iterdir()} == {"ledger.db", "ledger.db-lock"}
        store.close()
        other.close()

    @pytest.mark.skipif(not hasattr(os, "fchmod"), reason="no modes")
    def test_what_comes_to_lie_beside_a_ledger_is_for_whom_the_ledger_is(self, path, make_entry):
        SQLiteStore(path).close()
        path.chmod(0o660)
        if os.geteuid() == 0:  # an administrator looks at somebody's ledger
            os.chown(path, 65534, 65533)
        for beside in path.parent.glob(f"{path.name}-*"):
            beside.unlink()
        store = SQLiteStore(path)
        store.settle(make_entry())
        beside = {one.name.rstrip(".0123456789"): one.stat() for one in path.parent.glob(f"{path.name}-*")}
        assert {"ledger.db-live", "ledger.db-lock", "ledger.db-tail"} <= set(beside)
        whose = {(stat.S_IMODE(one.st_mode), one.st_uid, one.st_gid) for one in beside.values()}
        assert whose == {(0o660, path.stat().st_uid, path.stat().st_gid)}
        store.close()

    @pytest.mark.parametrize("name", ["live", "lock"])
    def test_nothing_is_made_where_a_link_beside_a_ledger_leads(self, path, tmp_path, make_entry, name):
        SQLiteStore(path).close()
        elsewhere, beside = tmp_path / "elsewhere", path.with_name(f"{path.name}-{name}")
        beside.unlink(missing_ok=True)
        beside.symlink_to(elsewhere)
        with pytest.raises(StoreUnavailableError):
            SQLiteStore(path).settle(make_entry())
        assert not elsewhere.exists()
        gc.collect()
        opened = [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
        assert not [one for one in opened if one.startswith(str(path.parent))]  # nobody could close what was not made

    def test_a_ledger_goes_on_where_processes_cannot_share_memory(
        self, path, tmp_path, monkeypatch, make_entry, make_hold, make_key, make_posting
    ):
        before = SQLiteStore(path)
        before.settle(make_entry(), [make_posting(make_key(), 4)])
        shutil.copytree(path.parent, tmp_path / "there")  # with a log, and a tail that nobody has folded

        def refuse(*arguments, **more):  # as FUSE does with direct_io
            raise OSError(errno.ENODEV, "No such device")

        monkeypatch.setattr(mmap, "mmap", refuse)
        store = SQLiteStore(tmp_path / "there" / path.name)
        with pytest.raises(CapReachedError):
            store.reserve(make_hold((make_key(), 10, 7)))
        store.settle(make_entry(), [make_posting(make_key(), 6)])
        assert store.counters([make_key()])[make_key()] == Counter(10, 0)
        assert store.health().facts["journal_mode"] == "delete"
        assert any("share memory" in warning for warning in store.health().warnings)
        assert store.verify().ok
        store.close()
        before.close()

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


class TestSecondName:
    def test_a_file_with_two_names_is_not_opened_and_who_has_it_open_goes_on(self, store, path, make_entry):
        store.settle(make_entry())
        alias = path.with_name("alias.db")
        alias.hardlink_to(path)
        with pytest.raises(StoreUnavailableError, match="hard links"):
            SQLiteStore(alias)
        store.settle(make_entry())
        assert len(list(store.entries())) == 2
        store.close()
        with pytest.raises(StoreUnavailableError, match="keep one name"):
            SQLiteStore(path)
        alias.unlink()
        again = SQLiteStore(path)
        assert len(list(again.entries())) == 2
        assert again.verify().ok
        again.close()

    @pytest.mark.parametrize("name", ["ledger.db", "our books.db", "a\\040b.db", "tab\t.db"])
    def test_a_file_that_is_mounted_alone_is_not_opened(self, tmp_path, monkeypatch, name):
        path, mounts = tmp_path / "books" / name, tmp_path / "mountinfo"
        said = "".join(f"\\{ord(one):03o}" if one in " \t\\" else one for one in str(path))
        mounts.write_text(f"27 1 254:0 / / rw - ext4 /dev/vda rw\n42 27 254:0 /l.db {said} rw - ext4 /dev/vda rw\n")
        monkeypatch.setattr(database, "is_mounted_alone", lambda one: is_mounted_alone(one, mounts))
        with pytest.raises(StoreUnavailableError, match="Mount the folder"):
            SQLiteStore(path)
        SQLiteStore(path.with_name("other.db")).close()


class TestReplacedFile:
    def test_a_removed_file_is_not_made_anew_and_what_comes_waits_for_it(
        self, store, path, tmp_path, make_entry, caplog
    ):
        first, second = make_entry(), make_entry()
        store.settle(first)
        store.close()
        path.rename(tmp_path / "aside")
        assert store.settle(second).recorded
        assert not path.exists()
        with pytest.raises(StoreUnavailableError, match="removed"):
            list(store.entries())
        assert "removed while it was in use" in caplog.text
        (tmp_path / "aside").rename(path)
        assert {entry.entry_id for entry in store.entries()} == {first.entry_id, second.entry_id}
        assert "again" in caplog.text
        assert store.verify().ok

    def test_a_removed_file_stops_calls_under_a_cap(self, store, path, make_entry, make_hold, make_key, make_posting):
        store.settle(make_entry(), [make_posting(make_key(), 9)])
        for name in path.parent.glob("ledger.db*"):
            name.unlink()
        with pytest.raises(StoreUnavailableError, match="removed"):
            store.reserve(make_hold((make_key(), 10, 1)))

    def test_a_cap_goes_on_where_it_was_when_the_file_is_back(
        self, store, path, tmp_path, make_entry, make_hold, make_key, make_posting
    ):
        store.settle(make_entry(), [make_posting(make_key(), 9)])
        store.close()
        path.rename(tmp_path / "aside")
        with pytest.raises(StoreUnavailableError):
            store.reserve(make_hold((make_key(), 10, 2)))
        (tmp_path / "aside").rename(path)
        store.reserve(make_hold((make_key(), 10, 1)))

    def test_an_empty_file_in_its_place_is_made_no_ledger(
        self, store, path, tmp_path, make_entry, make_hold, make_key, make_posting, caplog
    ):
        first, second = make_entry(), make_entry()
        store.settle(first, [make_posting(make_key(), 9)])
        store.close()
        path.rename(tmp_path / "aside")
        path.touch()
        with pytest.raises(StoreUnavailableError, match="emptied"):
            store.reserve(make_hold((make_key(), 10, 1)))
        assert store.settle(second).recorded
        with pytest.raises(StoreUnavailableError, match="emptied"):
            list(store.entries())
        assert "emptied while it was in use" in caplog.text
        assert path.stat().st_size == 0
        (tmp_path / "aside").replace(path)
        assert {entry.entry_id for entry in store.entries()} == {first.entry_id, second.entry_id}
        with pytest.raises(CapReachedError):
            store.reserve(make_hold((make_key(), 10, 2)))
        assert store.verify().ok

    def test_another_ledger_in_its_place_is_left_alone(self, store, path, tmp_path, make_entry):
        store.settle(make_entry())
        store.close()
        other = SQLiteStore(tmp_path / "other.db")
        other.settle(make_entry(member="other"))
        other.close()
        (tmp_path / "other.db").rename(path)
        entry = make_entry()
        assert store.settle(entry).recorded
        with pytest.raises(StoreUnavailableError, match="another ledger"):
            store.health()
        fresh = SQLiteStore(path)
        assert [found.attribution.member for found in fresh.entries()] == ["other"]
        assert any("another ledger" in warning for warning in fresh.health().warnings)
        fresh.settle(make_entry(member="other"))
        assert fresh.verify().entries == 2
        fresh.close()

    def test_a_ledger_made_anew_takes_in_what_only_the_tail_has(self, path, make_entry):
        store, entry = SQLiteStore(path), make_entry(member="ada", end_user="zoe")
        store.settle(entry)
        path.unlink()
        fresh = SQLiteStore(path)
        assert list(fresh.entries()) == [entry]
        assert fresh.verify().ok
        fresh.close()

    def test_a_removed_tail_is_told_and_the_next_entry_is_kept(self, store, path, make_entry, caplog):
        store.settle(make_entry(member="a"))
        list(store.entries())
        segment_path(path, segments(path)[-1]).unlink()
        entry = make_entry(member="a")
        assert store.settle(entry).recorded
        assert store.entry(entry.entry_id) == entry
        assert "removed, replaced or cut off while it was in use" in caplog.text
        assert store.verify().ok

    @pytest.mark.parametrize("instead", ["nothing", "a copy", "an empty file", "another ledger's"])
    def test_a_tail_that_is_moved_away_takes_no_entry_along(self, store, path, tmp_path, make_entry, caplog, instead):
        entries = [make_entry() for _ in range(4)]
        for entry in entries[:2]:
            store.settle(entry)
        tail, away = Path(f"{path}-tail.1"), tmp_path / "away"
        tail.rename(away)
        if instead == "a copy":
            tail.write_bytes(away.read_bytes())
        elif instead == "an empty file":
            tail.touch()
        elif instead == "another ledger's":
            other = SQLiteStore(tmp_path / "other" / "ledger.db")
            other.settle(make_entry())
            tail.write_bytes((tmp_path / "other" / "ledger.db-tail.1").read_bytes())
        for entry in entries[2:]:
            store.settle(entry)
        assert "renamed or replaced" in caplog.text
        later = SQLiteStore(path)  # finds what the first has not folded
        assert {entry.entry_id for entry in later.entries()} == {entry.entry_id for entry in entries}
        assert later.verify().ok

    def test_a_folder_that_was_moved_and_copied_back_takes_no_entry_along(self, store, path, make_entry):
        first, second = make_entry(), make_entry()
        store.settle(first)
        store.close()
        store.settle(second)
        folder, away = path.parent, path.parent.with_name("away")
        folder.rename(away)
        shutil.copytree(away, folder)
        third = make_entry()
        store.settle(third)
        assert {entry.entry_id for entry in store.entries()} == {one.entry_id for one in (first, second, third)}

    @pytest.mark.parametrize("capped", [False, True], ids=["no cap", "a cap"])
    @pytest.mark.parametrize("instead", ["nothing", "an empty folder", "another ledger's", "a file"])
    def test_while_its_folder_is_away_entries_wait_and_a_cap_refuses(
        self, store, path, make_entry, make_hold, make_key, make_posting, instead, capped
    ):
        entries = [make_entry() for _ in range(3)]
        store.settle(entries[0], [make_posting(make_key(), 9)] if capped else ())
        folder, away = path.parent, path.parent.with_name("away")
        folder.rename(away)
        if instead == "an empty folder":
            folder.mkdir()
        elif instead == "another ledger's":
            SQLiteStore(path).close()
        elif instead == "a file":
            folder.touch()
        if capped:
            with pytest.raises(StoreUnavailableError):
                store.reserve(make_hold((make_key(), 10, 1)))
        for entry in entries[1:]:
            assert store.settle(entry).recorded
        with pytest.raises(StoreUnavailableError):
            list(store.entries())
        if folder.is_dir():
            folder.rename(folder.with_name("instead"))
        else:
            folder.unlink(missing_ok=True)
        away.rename(folder)
        assert {entry.entry_id for entry in store.entries()} == {entry.entry_id for entry in entries}
        assert store.verify().ok
        if capped:
            with pytest.raises(CapReachedError):
                store.reserve(make_hold((make_key(), 10, 2)))

    def test_a_directory_in_place_of_a_file_beside_the_ledger_is_named(self, store, path, make_entry, tmp_path):
        store.settle(make_entry())
        tail = Path(f"{path}-tail.1")
        tail.rename(tmp_path / "away")
        tail.mkdir()
        with pytest.raises(StoreUnavailableError, match=r"ledger\.db-tail\.1 cannot be"):
            store.journal.recount(int)

    def test_a_tail_that_was_cut_off_swallows_no_entry(self, store, path, make_entry):
        store.settle(make_entry())
        list(store.entries())
        os.truncate(segment_path(path, segments(path)[-1]), 200)
        entry = make_entry()
        assert store.settle(entry).recorded
        assert store.entry(entry.entry_id) == entry
        assert store.verify().ok

    def test_a_removed_file_of_counters_is_made_anew(self, store, path, make_entry, make_key, make_posting, make_hold):
        store.settle(make_entry(), [make_posting(make_key(), 9)])
        Path(f"{path}-live").unlink()
        store.reserve(make_hold((make_key(), 10, 1)))
        assert store.counters([make_key()])[make_key()].reserved == 1

    def test_a_removed_log_does_not_swallow_the_next_entry(self, store, path, make_entry):
        store.settle(make_entry())
        list(store.entries())
        Path(f"{path}-wal").unlink()
        entry = make_entry()
        store.settle(entry)
        assert store.entry(entry.entry_id) == entry
        assert SQLiteStore(path).entry(entry.entry_id) == entry


class TestOneLookAtTheFolder:
    """A call under a cap looks at the ledger's folder alone once nothing has changed in it for a while."""

    @pytest.fixture(autouse=True)
    def short_tick(self, monkeypatch):
        monkeypatch.setattr(writer, "_TICK_NS", 20_000_000)

    @pytest.fixture
    def relied_on(self, store, make_entry, make_hold, make_key, make_posting):
        """A cap of 10 with 9 used, and a store that goes by its folder's time of change."""
        store.settle(make_entry(), [make_posting(make_key(), 9)])
        while not store.journal._all_there():
            hold = make_hold((make_key(), 10, 1))
            store.reserve(hold)
            store.release(hold.reservation_id)
        return store

    def test_a_removed_ledger_refuses(self, relied_on, path, make_hold, make_key):
        path.unlink()
        with pytest.raises(StoreUnavailableError, match="removed"):
            relied_on.reserve(make_hold((make_key(), 10, 1)))

    def test_a_ledger_whose_folder_went_elsewhere_refuses(self, relied_on, path, tmp_path, make_hold, make_key):
        path.parent.rename(tmp_path / "elsewhere")
        with pytest.raises(StoreUnavailableError, match="removed"):
            relied_on.reserve(make_hold((make_key(), 10, 1)))

    @pytest.mark.parametrize("end", ["-live", "-tail.1"])
    def test_a_removed_file_beside_it_is_made_anew(self, end, relied_on, path, make_hold, make_key, make_entry):
        list(relied_on.entries())
        Path(f"{path}{end}").unlink()
        hold = make_hold((make_key(), 10, 1))
        relied_on.reserve(hold)
        with pytest.raises(CapReachedError):
            relied_on.reserve(make_hold((make_key(), 10, 1)))
        relied_on.settle(make_entry(), reservation_id=hold.reservation_id)
        assert relied_on.counters([make_key()])[make_key()] == Counter(9, 0)
        assert relied_on.verify().entries == 2

    @pytest.mark.parametrize("end", ["-live", "-tail.1"])
    def test_a_file_beside_it_that_is_removed_amid_a_call_is_made_anew(
        self, end, relied_on, path, make_hold, make_key, make_entry
    ):
        hold = make_hold((make_key(), 10, 1))
        relied_on.reserve(hold)
        list(relied_on.entries())
        Path(f"{path}{end}").unlink()
        relied_on.settle(make_entry(), reservation_id=hold.reservation_id)
        assert relied_on.counters([make_key()])[make_key()] == Counter(9, 0)
        assert relied_on.verify().entries == 2


@pytest.mark.parametrize("cap", [0, 9])
def test_a_program_that_gives_up_its_rights_goes_on_recording(tmp_path, cap):
    """A server that begins as root and becomes somebody else may not look into the ledger's folder any more."""
    script = """
import os, sys, tokenmeter
from tokenmeter.testing import FakeProvider
import openai
folder = f"{sys.argv[1]}/own"
os.mkdir(folder, 0o700)
budgets = [tokenmeter.Budget(limit_requests=int(sys.argv[2]))] if sys.argv[2] != "0" else []
meter = tokenmeter.make_meter(store=f"sqlite:///{folder}/ledger.db", budgets=budgets)
with FakeProvider() as provider:
    client = tokenmeter.wrap(openai.OpenAI(api_key="sk-test", base_url=provider.openai_url), meter)
    call = lambda: client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hello"}])
    call(), call()
    user = os.geteuid()
    os.seteuid(65534) if user == 0 else os.chmod(folder, 0)
    call(), call(), call()
    try:
        list(meter.store.entries())
    except tokenmeter.errors.StoreUnavailableError:
        print("told")
    os.seteuid(0) if user == 0 else os.chmod(folder, 0o700)
    print(len(list(tokenmeter.make_meter(store=f"sqlite:///{folder}/ledger.db").store.entries())), meter.faults)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path, str(cap)], check=False, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout.strip()) == (0, "told\n5 0"), run.stderr


class TestFaults:
    def test_a_ledger_that_cannot_grow_loses_nothing_and_says_so(self, store, make_entry, caplog):
        first = make_entry()
        store.settle(first)
        assert list(store.entries()) == [first]
        store._book.database._writer.connection.execute("PRAGMA max_page_count = 1")
        waiting = [make_entry(raw_usage="x" * 10_000) for _ in range(20)]
        for entry in waiting:
            assert store.settle(entry).recorded
        assert list(store.entries()) == [first]
        assert store.health().facts["write_failures"] > 0
        assert any("disk is full" in warning for warning in store.health().warnings)
        store._book.database._writer.connection.execute("PRAGMA max_page_count = 1000000")
        assert len(list(store.entries())) == 21
        assert "disk is full" in caplog.text
        assert "again" in caplog.text
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
        assert [one.name for one in tmp_path.iterdir()] == ["diary.txt"]

    def test_a_damaged_ledger_is_told(self, store, path, make_entry):
        for _ in range(50):
            store.settle(make_entry())
        store.close()
        content = bytearray(path.read_bytes())
        content[4096:] = os.urandom(len(content) - 4096)
        path.write_bytes(content)
        with pytest.raises(StoreUnavailableError, match="damaged"):
            list(store.entries())
        assert store.settle(make_entry()).recorded  # it waits in the tail

    @pytest.mark.parametrize("mode", ["DELETE", "WAL"])
    def test_somebody_elses_database_is_left_alone(self, tmp_path, mode):
        path = tmp_path / "shop.db"
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute("CREATE TABLE customers (name)")
        connection.commit()
        connection.close()
        before = path.read_bytes()
        with pytest.raises(StoreUnavailableError, match="not a tokenmeter ledger"):
            SQLiteStore(path)
        assert [one.name for one in tmp_path.iterdir()] == ["shop.db"]
        assert path.read_bytes() == before  # among it the journal mode

    def test_somebody_elses_open_database_is_left_alone(self, tmp_path):
        path = tmp_path / "shop.db"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE customers (name)")
            before = {one.name for one in tmp_path.iterdir()}
            with pytest.raises(StoreUnavailableError, match="not a tokenmeter ledger"):
                SQLiteStore(path)
            connection.execute("INSERT INTO customers VALUES ('ada')")
            assert {one.name for one in tmp_path.iterdir()} == before

    def test_what_was_taken_for_a_ledger_once_keeps_its_journal_mode(self, tmp_path):
        path = tmp_path / "shop.db"
        Path(f"{path}-lock").touch()
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE customers (name)")
        before = path.read_bytes()
        with pytest.raises(StoreUnavailableError, match="not a tokenmeter ledger"):
            SQLiteStore(path)
        assert path.read_bytes() == before

    def test_an_sqlite_that_is_too_old_says_so(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sqlite3, "sqlite_version", "3.24.0")
        monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 24, 0))
        with pytest.raises(StoreUnavailableError, match=r"has SQLite 3\.24\.0, and a ledger needs 3\.26 or later"):
            SQLiteStore(tmp_path / "ledger.db")

    def test_a_newer_schema_is_left_alone(self, store, path, tmp_path):
        store.close()
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        connection.close()
        (tmp_path / "elsewhere").mkdir()
        copied = shutil.copy(path, tmp_path / "elsewhere" / "ledger.db")
        with pytest.raises(SchemaVersionError, match="Upgrade"):
            SQLiteStore(Path(copied))
        assert [one.name for one in (tmp_path / "elsewhere").iterdir()] == ["ledger.db"]
        with pytest.raises(SchemaVersionError, match="Upgrade"):
            SQLiteStore(path)

    def test_a_ledger_that_was_copied_alone_opens(self, store, path, tmp_path, make_entry):
        store.settle(make_entry())
        store.pulse()
        store.close()
        copied = SQLiteStore(Path(shutil.copy(path, tmp_path / "copy.db")))
        assert copied.settle(make_entry()).recorded
        assert len(list(copied.entries())) == 2
        copied.close()

    def test_a_running_process_notices_that_a_newer_release_migrated_the_file(self, store, path, make_entry):
        store.settle(make_entry())
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        with pytest.raises(SchemaVersionError, match="Upgrade"):
            list(store.entries())
        assert store.settle(make_entry()).recorded
        for _ in range(2):  # whether one with a key is there already, nobody can tell by then
            assert store.settle(make_entry(dedup_key="openai:chatcmpl-1")).recorded
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.close()
        assert len(list(store.entries())) == 3

    @pytest.mark.parametrize("field", ["status", "provider", "error_type", "trace_id", "response_id", "flags"])
    @pytest.mark.parametrize("value", [None, [1], {"a": 1}, 1.5, True])
    def test_a_record_that_no_table_takes_keeps_none_that_comes_after_it(self, store, make_entry, field, value):
        with contextlib.suppress(TypeError, AttributeError):  # said at once
            store.settle(make_entry(**{field: value}))
        kept = make_entry()
        store.settle(kept)
        assert store.entry(kept.entry_id) == kept
        store.verify()  # whose call it was may not be known

    def test_a_failed_write_leaves_no_trace_of_shared_rows(self, store, make_entry, make_charge):
        broken = make_entry(member="new", charges=(make_charge("rare", 2**70),))
        with pytest.raises(OverflowError):
            store.settle(broken)
        store.settle(make_entry(member="new", charges=(make_charge("rare", 2),)))
        assert store.verify().ok


class TestLooks:
    def test_an_answer_is_found_by_its_id_without_looking_through_the_hours_around_it(
        self, store, path, make_entry, noon
    ):
        store.append([(make_entry(response_id=f"r{number}"), ()) for number in range(50)])
        wanted, values = conditions({"response_id": frozenset({"r7"})}, 0, to_microseconds(noon) * 2)
        connection = sqlite3.connect(path)
        statement = f"SELECT body FROM entries WHERE {' AND '.join(wanted)}"  # noqa: S608 - names of our own
        assert len(connection.execute(statement, values).fetchall()) == 1
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
        connection.close()
        assert ["entries_by_response" in row[-1] for row in plan] == [True]


@pytest.fixture
def waits(monkeypatch):
    """Threads that waited for the file, and how often each."""
    found = Counted()

    def sleep(seconds):
        found[threading.current_thread()] += 1
        time.sleep(seconds)

    monkeypatch.setattr(database, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    return found


@pytest.mark.parametrize("budgets", [[], [Budget(name="team", limit_requests=100)]], ids=["", "capped"])
async def test_an_event_loop_goes_on_while_others_write_where_each_record_is_a_transaction(
    path, budgets, waits, monkeypatch
):
    """It stood still for as long as another process wrote, such as an import."""
    monkeypatch.setattr(database, "is_network", lambda path: True)
    meter = Meter(store=SQLiteStore(path), pricer=Pricer(PriceList.load()), budgets=budgets)
    others = SideLock(path)
    with FakeProvider() as provider, closing(meter):
        client = wrap(openai.AsyncOpenAI(base_url=provider.openai_url, api_key="sk-test"), meter=meter)

        async def ask():
            await client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hi"}])

        for _ in range(3):
            await ask()
        waits.clear()
        assert others.acquire()
        asked = asyncio.gather(*(ask() for _ in range(3)))
        while not waits:  # noqa: ASYNC110 - a thread of its own says so
            await asyncio.sleep(0.01)
        for _ in range(20):
            await asyncio.sleep(0.01)
        others.release()
        await asked
        await client.close()
        others.close()
        assert threading.current_thread() not in waits
        assert len(list(meter.store.entries())) == 6
        assert meter.store.verify().ok


class TestForeignLock:
    @pytest.fixture
    def locked(self, path, store):
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.close()

    def test_calls_go_on_and_their_entries_are_there_when_it_ends(
        self, store, locked, make_entry, make_hold, make_key, make_posting, caplog
    ):
        for _ in range(3):
            hold = make_hold((make_key(), 10, 2), expires_at=datetime.max.replace(tzinfo=UTC))
            store.reserve(hold)
            settled = store.settle(make_entry(), [make_posting(make_key(), 1)], reservation_id=hold.reservation_id)
            assert settled.recorded
        assert list(store.entries()) == []
        assert "locked by another program" in caplog.text
        assert store.health().facts["write_failures"] >= 1
        locked.execute("ROLLBACK")
        assert len(list(store.entries())) == 3
        assert "again" in caplog.text
        assert store.counters([make_key()])[make_key()].settled == 3
        assert store.verify().ok

    def test_a_bill_that_may_be_there_already_is_kept_and_counted_once(
        self, store, path, make_entry, make_key, make_posting
    ):
        store.settle(make_entry(dedup_key="bill"), [make_posting(make_key(), 5)])
        list(store.entries())
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        store.settle(make_entry(dedup_key="bill"), [make_posting(make_key(), 5)])
        connection.execute("ROLLBACK")
        connection.close()
        assert len(list(store.entries())) == 1
        assert store.counters([make_key()])[make_key()].settled == 5

    @pytest.mark.parametrize("swept", [False, True], ids=["", "somebody swept"])
    @pytest.mark.parametrize("key", [None, "bill"], ids=["a plain call", "a bill that may be there"])
    def test_a_call_frees_its_hold(self, store, path, make_entry, make_hold, make_key, make_posting, key, swept):
        """What a sweep would book a second time, and a cap would hold until then."""
        hold = make_hold((make_key(), 100, 30), expires_at=datetime.max.replace(tzinfo=UTC))
        store.settle(make_entry())
        store.reserve(hold)
        if swept:
            with closing(SQLiteStore(path)) as other:
                dead = make_hold(expires_at=datetime(2020, 1, 1, tzinfo=UTC))
                other.reserve(dead)
                other.settle(make_entry(), reservation_id=dead.reservation_id, only_if_held=True)
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        answered = make_entry(dedup_key=key)
        assert store.settle(answered, [make_posting(make_key(), 20)], reservation_id=hold.reservation_id).recorded
        connection.execute("ROLLBACK")
        connection.close()
        assert answered.entry_id in {entry.entry_id for entry in store.entries()}
        assert list(store.expired(datetime.max.replace(tzinfo=UTC))) == []
        assert store.counters([make_key()])[make_key()] == Counter(settled=20, reserved=0)
        assert store.verify().ok

    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_threshold_that_is_crossed_meanwhile_is_told_when_it_ends_and_no_call_waits(
        self, path, store, is_async, waits
    ):
        """It was told with the next threshold, and the last one never; the call, also an event loop's, waited."""
        told = queue.Queue()
        budget = Budget(name="team", limit_requests=4, hard=False, thresholds=[50, 100])
        with (
            FakeProvider() as provider,
            closing(Meter(store=store, pricer=Pricer(PriceList.load()), budgets=[budget], alerts=[told.put])) as meter,
        ):
            kind = openai.AsyncOpenAI if is_async else openai.OpenAI
            client = wrap(kind(base_url=provider.openai_url, api_key="sk-test"), meter=meter)

            async def ask():
                answer = client.chat.completions.create(
                    model="gpt-5-mini", messages=[{"role": "user", "content": "Hi"}]
                )
                if is_async:
                    await answer

            async def run():
                for _ in range(3):
                    await ask()
                other = sqlite3.connect(path, isolation_level=None)
                other.execute("BEGIN IMMEDIATE")
                await ask()
                other.execute("ROLLBACK")
                other.close()
                await client.close() if is_async else client.close()

            asyncio.run(run())
            assert [told.get(timeout=60).threshold for _ in range(2)] == [50, 100]
            assert [one.threshold for one in meter.store.crossings()] == [4, 2]
            assert waits[threading.main_thread()] <= 2
        assert told.empty()

    def test_a_document_is_not_filed(self, store, locked):
        with pytest.raises(StoreUnavailableError, match="locked"):
            store.file(NewDocument(kind="invoice", key="a", body="{}"))

    def test_reading_goes_on(self, store, locked):
        assert list(store.entries()) == []
        assert store.counters([]) == {}


class TestTail:
    def test_a_call_that_ends_while_a_torn_record_is_found_is_in_the_book_at_once(
        self, store, path, make_entry, monkeypatch
    ):
        store.settle(make_entry())
        list(store.entries())
        with Path(f"{path}-tail.1").open("ab") as file:
            file.write(b"\xf7tm1\x10\x00\x00")  # what a killed process left
        late, fold = make_entry(), store._book._fold_some

        def fold_while_another_writes():
            done = fold()
            monkeypatch.setattr(store._book, "_fold_some", fold)
            other.settle(late)
            return done

        monkeypatch.setattr(store._book, "_fold_some", fold_while_another_writes)
        with contextlib.closing(SQLiteStore(path)) as other:
            list(store.entries())
            assert store.entry(late.entry_id) is not None

    def test_a_torn_frame_is_stepped_over(self, store, path, make_entry):
        first, last = make_entry(), make_entry()
        store.settle(first)
        segment = segment_path(path, segments(path)[-1])
        whole = segment.read_bytes()
        with segment.open("ab") as file:
            file.write(whole[-300:-20])  # the end of some frame, without a beginning
            file.write(b"\xf7tm1" + (10**6).to_bytes(4, "little") * 3 + b"torn")
        store.settle(last)
        assert [entry.entry_id for entry in store.entries()] == [first.entry_id, last.entry_id]
        assert store.verify().ok

    def test_segments_follow_each_other_and_go_when_they_are_folded(
        self, store, path, make_entry, make_hold, make_key, make_posting, monkeypatch
    ):
        monkeypatch.setattr(writer, "SEGMENT_BYTES", 4096)
        for _ in range(50):
            hold = make_hold((make_key(), None, 2), expires_at=datetime.max.replace(tzinfo=UTC))
            store.reserve(hold)
            store.settle(make_entry(), [make_posting(make_key(), 1)], reservation_id=hold.reservation_id)
        assert len(segments(path)) > 3
        assert len(list(store.entries())) == 50
        assert len(segments(path)) == 1
        assert store.counters([make_key()])[make_key()] == Counter(50, 0)
        assert store.verify().ok

    def test_a_segment_that_somebody_may_still_write_to_stays(self, store, path, make_entry, monkeypatch):
        monkeypatch.setattr(writer, "SEGMENT_BYTES", 2048)
        idle = SQLiteStore(path)
        idle.settle(make_entry())
        for _ in range(20):
            store.settle(make_entry())
        assert len(list(store.entries())) == 21
        assert len(segments(path)) == 2
        idle.settle(make_entry())
        assert len(list(store.entries())) == 22
        assert len(segments(path)) == 1
        idle.close()

    def test_counters_are_counted_again_beside_a_segment_that_stays(
        self, store, path, make_entry, make_key, monkeypatch
    ):
        monkeypatch.setattr(writer, "SEGMENT_BYTES", 2048)
        idle = SQLiteStore(path)
        idle.settle(make_entry())
        for _ in range(20):
            store.settle(make_entry())
        store.recount(lambda: {make_key(): (len(list(store.entries())), None)})
        assert store.counters([make_key()])[make_key()] == Counter(21, 0)
        assert len(segments(path)) == 2
        idle.close()

    def test_a_record_that_no_fold_can_read_is_put_aside_and_told(self, store, path, make_entry):
        store.journal.append(b'{"format":1,"record":"entry","id":"x"}')
        entry = make_entry()
        store.settle(entry)
        assert list(store.entries()) == [entry]
        assert store.health().facts["refused_records"] == 1
        assert any("refused" in warning for warning in store.health().warnings)
        assert store.verify().ok

    def test_a_record_is_bounded(self, store, make_entry):
        entry = make_entry(request_model="m" * 10**6, raw_usage='{"a":"' + "b" * 10**7 + '"}', response_id="r" * 10**5)
        store.settle(entry)
        (found,) = store.entries()
        assert len(found.request_model) == len(found.response_id) == 512
        assert found.raw_usage is None
        assert set(found.flags) == {"raw_usage_dropped", "shortened"}
        assert found.billed_cost == entry.billed_cost


class TestAppendOnly:
    @pytest.mark.parametrize("table", ["entries", "accounts", "rates"])
    @pytest.mark.parametrize("statement", ["UPDATE {} SET rowid = rowid + 1000", "DELETE FROM {}"])
    def test_rows_can_be_neither_changed_nor_removed(self, store, path, make_entry, table, statement):
        store.settle(make_entry())
        list(store.entries())
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
                    dedup_key=f"bill {index}",
                )
            )
        list(store.entries())

    def found(self, store):
        return {(fault.kind, fault.where) for fault in store.verify().faults}

    def test_a_sound_ledger_has_no_faults(self, store):
        assert self.found(store) == set()

    @pytest.mark.parametrize(
        "change",
        [
            "billed_pico = billed_pico + 1",
            "input = 99",
            "more = '{}'",
            "occurred_at = occurred_at + 1",
            "end_user = 1",
            "body = replace(body, '\"quantity\":5', '\"quantity\":6')",
            "body = '['",
            "account = 3",
            "account = 99",
            "hash = zeroblob(32)",
        ],
    )
    def test_finds_an_edited_entry(self, store, tamper, change):
        tamper(f"UPDATE entries SET {change} WHERE seq = 5")  # noqa: S608
        assert ("edited", "entry 5") in self.found(store)

    @pytest.mark.parametrize(
        ("table", "change"),
        [
            ("accounts", "team = 'eve'"),
            ("accounts", "member = 1"),
            ("accounts", "body = '{}'"),
            ("rates", "body = replace(body, '0.00000125', '0')"),
            ("rates", "sku_meter = 'output'"),
            ("names", "value = 'eve'"),
        ],
    )
    def test_finds_an_edited_shared_row(self, store, tamper, table, change):
        tamper(f"UPDATE {table} SET {change} WHERE id = 3")  # noqa: S608
        if table == "rates":
            tamper(f"UPDATE {table} SET {change} WHERE id = 1")  # noqa: S608
        assert {where for kind, where in self.found(store) if kind == "edited"} & {f"{table} 3", f"{table} 1"}

    def test_finds_an_edited_shared_row_whose_digest_was_edited_too(self, store, tamper):
        from tokenmeter.stores.encoding import digest_of

        ((body,),) = store._ask("SELECT body FROM accounts WHERE id = 4")
        forged = body.replace("gpt-5", "gpt-6")
        tamper(
            f"UPDATE accounts SET request_model = 'gpt-6', body = '{forged}', "  # noqa: S608
            f"digest = x'{digest_of(forged.encode())}' WHERE id = 4"
        )
        assert ("edited", "entry 4") in self.found(store)

    def test_finds_that_a_bill_could_be_recorded_again(self, store, tamper):
        tamper("DELETE FROM dedup WHERE seq = 5")
        assert ("edited", "entry 5") in self.found(store)

    def test_finds_that_its_triggers_are_gone(self, store, path):
        connection = sqlite3.connect(path)
        connection.execute("DROP TRIGGER entries_stay")
        connection.close()
        assert self.found(store) == {("trigger", "entries_stay")}

    def test_finds_removed_entries(self, store, tamper):
        tamper("DELETE FROM entries WHERE seq IN (4, 5, 8)")
        assert {("missing", "records 4 to 5"), ("missing", "record 8")} <= self.found(store)

    def test_finds_a_removed_first_entry(self, store, tamper):
        tamper("DELETE FROM entries WHERE seq = 1")
        assert ("missing", "record 1") in self.found(store)

    def test_finds_a_cut_tail(self, store, tamper):
        tamper("DELETE FROM entries WHERE seq > 7")
        assert ("cut", "records 8 to 10") in self.found(store)

    def test_finds_a_cut_tail_by_the_sums_even_when_the_head_was_moved(self, store, tamper):
        tamper(
            "DELETE FROM entries WHERE seq > 9",
            "DELETE FROM dedup WHERE seq > 9",
            "UPDATE ledger SET seq = 9, entries = 9, hash = (SELECT hash FROM entries WHERE seq = 9)",
        )
        assert {kind for kind, where in self.found(store)} == {"rollup", "trigger"}

    def test_finds_an_emptied_ledger(self, store, tamper):
        tamper("DELETE FROM entries")
        assert ("cut", "records 1 to 10") in self.found(store)

    def test_finds_an_entry_put_in_past_the_head(self, store, tamper):
        tamper(
            "CREATE TEMP TABLE t AS SELECT * FROM entries WHERE seq = 3",
            "UPDATE t SET seq = 11, entry_id = 'x'",
            "INSERT INTO entries SELECT * FROM t",
        )
        assert ("edited", "head") in self.found(store)

    def test_finds_a_head_of_another_ledger(self, store, tamper):
        tamper("UPDATE ledger SET hash = zeroblob(32)")
        assert ("edited", "head") in self.found(store)

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE sums SET billed_pico = billed_pico + 1 WHERE slot = (SELECT min(slot) FROM sums WHERE level = 0)",
            "DELETE FROM sums WHERE level = 1 AND slot = (SELECT min(slot) FROM sums WHERE level = 1)",
            "UPDATE meter_sums SET n = 7 WHERE level = 1 AND slot = (SELECT min(slot) FROM sums WHERE level = 1)",
        ],
    )
    def test_finds_sums_that_drifted(self, store, tamper, change):
        tamper(change)
        assert ("rollup", "2026-11-23") in self.found(store)

    @pytest.mark.parametrize("table", ["sums", "meter_sums"])
    def test_finds_sums_of_a_month_that_drifted(self, store, tamper, table):
        tamper(f"UPDATE {table} SET n = n + 1 WHERE level = 2")  # noqa: S608
        assert ("rollup", "2026-11") in self.found(store)

    def test_finds_a_removed_last_document(self, store, tamper):
        for key in "ab":
            store.file(NewDocument(kind="invoice", key=key, body="{}", series="INV"))
        tamper("DELETE FROM documents WHERE key = 'b'")
        assert ("cut", "record 12") in self.found(store)

    def test_finds_that_the_ledger_under_an_invoice_was_rewritten(self, store, path, tamper):
        from tokenmeter.stores.fold import FIRST, advance

        store.file(NewDocument(kind="invoice", key="a", body="{}", series="INV"))
        tamper("DELETE FROM entries WHERE seq = 10", "UPDATE documents SET seq = 10")
        connection = sqlite3.connect(path)
        before = FIRST
        for table, seq, body in connection.execute(
            "SELECT 'entries', seq, body FROM entries UNION ALL SELECT 'documents', seq, body FROM documents ORDER BY 2"
        ).fetchall():
            before = advance(before, body.encode())
            connection.execute(f"UPDATE {table} SET hash = ? WHERE seq = ?", (before, seq))  # noqa: S608
        connection.execute("UPDATE ledger SET seq = 10, hash = ?", (before,))
        connection.commit()
        connection.close()
        assert ("anchor", "invoice a") in self.found(store)

    def test_a_head_that_was_kept_is_in_the_chain_and_what_came_after_is_counted(self, store, make_entry):
        kept = store.verify().head
        assert store.verify(head=kept).after_head == 0
        store.settle(make_entry())
        filed = store.file(NewDocument(kind="invoice", key="a", body="{}", series="INV")).document
        found = store.verify(head=kept)
        assert (found.ok, found.after_head) == (True, 2)
        assert store.verify(head=filed.anchor).after_head == 1
        assert [fault.kind for fault in store.verify(head="11" * 32).faults] == ["head"]

    def test_what_was_verified_before_can_be_left_out(self, store, tamper, make_entry, noon):
        kept = store.verify().head
        store.settle(make_entry(occurred_at=noon + timedelta(days=9)))
        found = store.verify(since=kept, head=kept)
        assert (found.ok, found.entries, found.after_head) == (True, 1, 1)
        tamper("UPDATE entries SET input = 99 WHERE seq = 11")
        assert ("edited", "entry 11") in {(fault.kind, fault.where) for fault in store.verify(since=kept).faults}
        assert "head" in {fault.kind for fault in store.verify(since="no hash").faults}

    def test_of_sums_only_those_of_what_came_since_are_looked_at(self, store, tamper, make_entry, noon):
        def wrong(**how):
            return [fault.kind for fault in store.verify(**how).faults].count("rollup")

        store.settle(make_entry(occurred_at=noon - timedelta(days=70)))
        kept = store.verify().head
        store.settle(make_entry(occurred_at=noon + timedelta(days=70)))
        change = "UPDATE sums SET n = 99 WHERE level IN (2, 3) AND slot = (SELECT {} FROM sums AS s WHERE {})"
        tamper(change.format("min(slot)", "s.level = sums.level"))
        assert (wrong(), wrong(since=kept), wrong(since=store.verify().head)) == (2, 0, 0)
        tamper(change.format("max(slot)", "s.level = sums.level"))
        assert (wrong(), wrong(since=kept), wrong(since=store.verify().head)) == (4, 2, 0)

    def test_says_how_far_it_is(self, store):
        told = []
        store.verify(progress=lambda done, of: told.append((done, of)))
        assert told == [(10, 10)]

    def test_finds_a_replaced_secret(self, store, tamper):
        tamper("UPDATE secret SET value = randomblob(32)")
        assert ("secret", "secret") in self.found(store)


def test_a_fold_does_not_wait_for_what_others_write_meanwhile(store, make_entry, monkeypatch):
    write_fold, folds = store._book.write_fold, []

    def with_another_writer(*arguments):
        done = write_fold(*arguments)
        folds.append(done)
        if len(folds) < 20:
            store.settle(make_entry())
        return done

    store.settle(make_entry())
    monkeypatch.setattr(store._book, "write_fold", with_another_writer)
    store._book.fold()
    monkeypatch.undo()
    assert len(folds) == 1
    assert len(list(store.entries())) == 2


def test_what_waited_for_a_full_disk_is_written_one_by_one_without_a_fold_for_each(store, make_entry, monkeypatch):
    """A fold writes some ten pages: on a small disk those of each entry alone would fill it again."""
    first, *waiting = [make_entry() for _ in range(20)]
    store.settle(first)  # its account is known from here on
    with monkeypatch.context() as patch:
        patch.setattr(Segment, "append", disk_full)
        for entry in waiting:
            with pytest.raises(StoreUnavailableError):
                store.settle(entry)
    log = Path(f"{store.path}-wal")
    before = log.stat().st_size
    assert all(store.settle(entry).recorded for entry in waiting)
    assert log.stat().st_size == before
    assert not any(store.settle(entry).recorded for entry in waiting)
    assert {entry.entry_id for entry in store.entries()} == {entry.entry_id for entry in (first, *waiting)}
    assert store.verify().ok


def disk_full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_who_reads_many_does_not_ask_for_each(store, make_entry, monkeypatch):
    asked, connect = [], store._book.database._connect

    def traced(**how):
        connection = connect(**how)
        connection.set_trace_callback(asked.append)
        return connection

    each = range(300)
    whose = ({"member": f"member-{n}", "end_user": f"user-{n}", "tags": {"job": f"job-{n}"}} for n in each)
    batch = [(replace(make_entry(**who), dedup_key=f"bill-{n}"), ()) for n, who in enumerate(whose)]
    monkeypatch.setattr(store._book.database, "_connect", traced)
    store.close()
    store.append(batch)
    assert store.verify().ok
    assert sum("SELECT 1 FROM dedup" in one for one in asked) == 0
    store.close()
    asked.clear()
    ever = [datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)]
    assert len(store.aggregate(ever, ["end_user", "tag:job"])) == 300
    assert 0 < len(asked) < 60
    asked.clear()
    days = [datetime(2026, 9, 1, tzinfo=UTC) + timedelta(days=n) for n in range(92)]
    assert sum(one.requests for one in store.aggregate(days, ["end_user", "tag:job"])) == 300
    assert len(asked) < 30
    asked.clear()
    assert len({entry.attribution.end_user for entry in store.entries()}) == 300
    assert store.verify().entries == 300
    assert store.rebuild(dry_run=True) == []
    assert len(asked) < 200
