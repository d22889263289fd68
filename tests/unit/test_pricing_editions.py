"""The base data kept beside the package: as quick to read as it is safe to lose."""

import subprocess
import sys
from pathlib import Path

import pytest

from tokenmeter.errors import PricingError
from tokenmeter.pricing import edition
from tokenmeter.pricing.edition import Edition
from tokenmeter.pricing.price_list import Catalog

LOOK_UP = """
import sys
from tokenmeter.pricing import PriceList
listed = PriceList.load()
print(listed.hash, listed.find("openai", "gpt-5").card.rows[0].source, "genai_prices.data" in sys.modules)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    edition.installed.cache_clear()
    yield tmp_path / "tokenmeter"
    edition.installed.cache_clear()


def in_a_process():
    done = subprocess.run([sys.executable, "-c", LOOK_UP], capture_output=True, text=True, check=True)
    digest, *source, imported = done.stdout.split()
    return (digest, " ".join(source)), imported == "True"


def test_the_package_is_imported_once_and_later_processes_read_the_kept_file(folder):
    first, second = in_a_process(), in_a_process()
    assert (first[1], second[1]) == (True, False)
    assert first[0] == second[0]
    assert {file.name.partition("-")[0] for file in folder.iterdir()} == {"genai", "overrides"}


def test_the_kept_file_has_the_rows_of_the_package(folder):
    built = [row for listed in Catalog(data=edition.installed()).models() for row in listed.rows]
    edition.installed.cache_clear()
    assert [row for listed in Catalog(data=edition.installed()).models() for row in listed.rows] == built


def test_a_kept_file_that_was_changed_is_not_believed(folder):
    edition.installed()
    (kept,) = folder.iterdir()
    kept.write_bytes(kept.read_bytes().replace(b'"input_mtok":"1.25"', b'"input_mtok":"9.25"'))
    edition.installed.cache_clear()
    rows = Catalog(data=edition.installed()).find("openai", ("gpt-5",)).rows
    assert "9.25" not in {str(row.unit_price) for row in rows}


@pytest.mark.parametrize("damage", [b"", b"\xff\x00", b"[]"], ids=["emptied", "garbled", "shortened"])
def test_a_damaged_kept_file_costs_time_only(folder, damage):
    edition.installed()
    (kept,) = folder.iterdir()
    kept.write_bytes(damage)
    edition.installed.cache_clear()
    assert Catalog(data=edition.installed()).find("openai", ("gpt-5",)) is not None


def test_where_nothing_can_be_written_the_package_serves(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("no folder can be made below this")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    edition.installed.cache_clear()
    assert Catalog(data=edition.installed()).find("openai", ("gpt-5",)) is not None
    edition.installed.cache_clear()


def test_kept_files_of_old_releases_are_cleared_away(folder):
    folder.mkdir()
    for number in range(9):
        Path(folder / f"genai-prices-0.1.{number}-{number:016x}-{number:016x}.json").write_bytes(b"[]")
    edition.installed()
    assert len(list(folder.glob("genai-*"))) == edition._MOST_FILES  # the newest


@pytest.mark.parametrize(
    "published",
    [b"no prices", b"{}", b'[{"id": "x"}]', b'[{"id": "x", "models": [{"id": "y"}]}]', b"[3]", b"[[]]"],
)
def test_what_is_no_price_list_is_refused(published):
    with pytest.raises(PricingError, match="price list"):
        Edition.parse(published)
