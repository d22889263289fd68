"""What is kept of archive files on this machine: within its bound, and never taken from under a reader."""

import gc
import os
import subprocess
import sys
import tempfile
import time

import pytest

from tokenmeter.errors import ConfigurationError
from tokenmeter.stores.archive import kept
from tokenmeter.stores.archive.shelf import open_duckdb

DAY = 86_400


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder, with a bound of 10 MiB."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TOKENMETER_ARCHIVE_CACHE_MB", "10")
    return kept.make_folder()


@pytest.fixture
def put(folder):
    """Makes a file of some mebibytes that was read so many days ago."""

    def make(name, mebibytes, days):
        path = folder / name
        with path.open("wb") as made:
            made.truncate(mebibytes << 20)
        read_at = time.time() - days * DAY
        os.utime(path, (read_at, read_at))
        return path

    return make


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_not_read_for_the_longest_time_goes_first_and_no_more_than_need_be(folder, put):
    put("old", 3, 9)
    put("older", 3, 10)
    put("new", 3, 1)
    assert kept.make_room(1 << 20)
    assert names(folder) == ["new", "old", "older"]
    assert kept.make_room(2 << 20)
    assert names(folder) == ["new", "old"]


def test_for_what_can_do_without_nothing_goes_that_was_read_lately(folder, put):
    put("old", 3, 9)
    put("new", 6, 1)
    assert not kept.make_room(5 << 20, unread_for=kept.LATELY)
    assert names(folder) == ["new"]
    assert kept.make_room(4 << 20, unread_for=kept.LATELY)


def test_what_is_being_read_stays_and_counts_as_read(folder, put):
    put("old", 5, 9)
    put("new", 5, 1)
    with kept.reading(folder / "old") as there:
        assert there
        assert not kept.make_room(8 << 20)
        assert names(folder) == ["old"]
    assert kept.make_room(4 << 20)
    put("newer", 5, 1)
    assert kept.make_room(5 << 20)
    assert names(folder) == ["old"]


def test_what_is_gone_before_it_is_read_is_told(folder):
    with kept.reading(folder / "none") as there:
        assert not there


def test_what_another_process_left_unfinished_goes_after_a_day(folder, put):
    put(f"{kept.UNFINISHED}now", 1, 0.5)
    put(f"{kept.UNFINISHED}then", 1, 2)
    (folder / f"{kept.UNFINISHED}folder").mkdir()
    put(f"{kept.UNFINISHED}folder/totals", 1, 2)
    os.utime(folder / f"{kept.UNFINISHED}folder", (0, 0))
    assert kept.make_room(0)
    assert names(folder) == [f"{kept.UNFINISHED}now"]


@pytest.mark.parametrize("said", ["16 GB", "-1", "1e3", "٣"])
def test_a_bound_that_is_no_number_is_told(folder, monkeypatch, said):
    monkeypatch.setenv("TOKENMETER_ARCHIVE_CACHE_MB", said)
    with pytest.raises(ConfigurationError, match="whole number of mebibytes"):
        kept.make_room(1)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows keeps each user's files apart by itself")
def test_a_folder_is_private_if_nobody_else_can_put_another_in_its_place(tmp_path):
    folder = tmp_path / "cache" / "tokenmeter" / "archive"
    folder.mkdir(mode=0o700, parents=True)
    assert kept.is_private(folder)
    for mode in (0o770, 0o777, 0o1777):
        folder.chmod(mode)
        assert not kept.is_private(folder)
    folder.chmod(0o700)
    above = tmp_path / "cache"
    for mode, private in ((0o777, False), (0o775, False), (0o1777, True), (0o755, True)):
        above.chmod(mode)
        assert kept.is_private(folder) is private
    (tmp_path / "link").symlink_to(above)
    above.chmod(0o777)
    assert not kept.is_private(tmp_path / "link" / "tokenmeter" / "archive")


def test_what_does_not_fit_into_memory_lies_where_nobody_else_reads_it_and_goes_with_the_connection(
    tmp_path, monkeypatch
):
    pytest.importorskip("duckdb")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    connection = open_duckdb()
    ((said,),) = connection.execute("SELECT current_setting('temp_directory')").fetchall()
    (folder,) = tmp_path.iterdir()
    assert said == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    connection.execute("SET memory_limit = '30MB'")
    connection.execute("SET threads = 1")
    connection.execute("CREATE TABLE words AS SELECT sha256(range::VARCHAR) AS word FROM range(1000000)")
    assert list(folder.iterdir()) != []
    connection.close()
    del connection
    gc.collect()
    assert list(tmp_path.iterdir()) == []


FORKS = """
import atexit, os, tempfile
from tokenmeter.stores.archive.shelf import open_duckdb
connection = open_duckdb()
if not os.fork():
    atexit._run_exitfuncs()
    os._exit(0)  # DuckDB's own end of a forked child may wait for threads that only its parent has
os.wait()
print(os.listdir(tempfile.gettempdir()) != [])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_ends_does_not_take_along_where_its_parent_puts_what_does_not_fit(tmp_path):
    pytest.importorskip("duckdb")
    ended = subprocess.run(
        [sys.executable, "-c", FORKS],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "True\n"
    assert list(tmp_path.iterdir()) == []
