"""On Windows there is no fork and no fcntl, and a lock is a byte; taken away here, not tried on a real one."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tokenmeter
import tokenmeter.pricing.edition

SOURCES = Path(__file__).parents[2] / "src"
#: Needs an extra, is another program's plug-in, or stands on a package that looks at `sys.platform` for itself (mcp).
ELSEWHERE = ("tokenmeter.queues.", "tokenmeter.__main__", "tokenmeter.serving.mcp", "tokenmeter.freezing.")

AS_ON_WINDOWS = """
import importlib, json, os, subprocess, sys
for name in ("register_at_fork", "fork", "fchmod", "statvfs", "pread", "pwrite", "O_CLOEXEC"):
    delattr(os, name)
for name in ("fcntl", "grp", "resource", "termios"):
    sys.modules[name] = None

import errno, types
locked_bytes = set()
def locking(descriptor, mode, size):
    byte = (os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
    if mode == 2:
        if byte in locked_bytes:
            raise OSError(errno.EACCES, "locked")
        locked_bytes.add(byte)
    elif byte not in locked_bytes:
        raise OSError(errno.EACCES, "not locked")
    else:
        locked_bytes.discard(byte)
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2, LK_UNLCK=0)
"""
IMPORT_ALL = """
failed = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"
print(json.dumps(failed))
"""


def modules():
    for path in sorted((SOURCES / "tokenmeter").rglob("*.py")):
        name = ".".join(path.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")
        if not name.startswith(ELSEWHERE):
            yield name


def run(code, *arguments, cwd=None):
    done = subprocess.run(
        [sys.executable, "-c", AS_ON_WINDOWS + code, *arguments], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_import_needs_what_windows_lacks():
    assert json.loads(run(IMPORT_ALL, json.dumps(list(modules())))) == {}


def test_a_ledger_is_written_and_read_without_them(tmp_path):
    told = run(
        """
import tokenmeter
meter = tokenmeter.make_meter(store="sqlite:///ledger.db", config={}, budgets=[tokenmeter.Budget(limit_usd=1)])
body = {"id": "a", "model": "gpt-5-mini", "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}}
with meter.hold(provider="openai", endpoint="chat.completions", model="gpt-5-mini", max_output_tokens=9) as held:
    held.record(body)
assert meter.verify().ok
print(meter.report().totals.requests)
meter.close()
""",
        cwd=tmp_path,
    )
    assert told.strip() == "1"


LOCKED_BYTES = """
from tokenmeter.processes import lock_file, unlock_file
first, second = (os.open("file", os.O_RDWR | os.O_CREAT) for _ in range(2))
os.write(first, b"text")
assert lock_file(first, wait=False)
assert not lock_file(second, wait=False)
assert os.lseek(first, 0, os.SEEK_CUR) == 4
unlock_file(first)
unlock_file(first)
assert lock_file(second)
assert os.fstat(first).st_size == 4
print("ok")
"""


def test_a_lock_between_processes_is_a_byte_on_windows(tmp_path):
    assert run(LOCKED_BYTES, cwd=tmp_path).strip() == "ok"


def test_a_lock_between_processes(tmp_path):
    from tokenmeter.processes import lock_file, unlock_file

    with (tmp_path / "file").open("w+") as first, (tmp_path / "file").open("r+") as second:
        assert lock_file(first.fileno(), shared=True)
        assert lock_file(second.fileno(), shared=True, wait=False)
        assert not lock_file(first.fileno(), wait=False)
        unlock_file(second.fileno())
        assert lock_file(first.fileno(), wait=False)
        assert not lock_file(second.fileno(), shared=True, wait=False)


def in_one_file(folder, main, *others):
    """The lines of a program that is one file, as zipapp makes it, with the package and `others` in it."""
    program = folder / "program.pyz"
    with zipfile.ZipFile(program, "w") as archive:
        for place in (SOURCES / "tokenmeter", *others):
            for path in place.rglob("*"):
                if path.is_file() and path.suffix != ".pyc":
                    archive.write(path, path.relative_to(place.parent))
        archive.writestr("__main__.py", main)
    done = subprocess.run(
        [sys.executable, "-P", program],
        env={**os.environ, "XDG_DATA_HOME": str(folder), "XDG_CACHE_HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_program_in_one_file_prices_and_records(tmp_path):
    """What the package reads beside its modules is in the archive."""
    assert in_one_file(tmp_path, ONE_CALL) == [str(tmp_path / "program.pyz"), "1", "priced"]


ONE_CALL = """
import tokenmeter

body = {"model": "gpt-5-mini", "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}
tokenmeter.record(body, provider="openai", endpoint="chat.completions")
totals = tokenmeter.report().totals
archive, _, _ = tokenmeter.__file__.partition("/tokenmeter/__init__")
print(archive, totals.requests, "priced" if totals.cost_known else "unpriced", sep="\\n")
"""


def test_a_program_in_one_file_knows_its_price_list(tmp_path):
    """The list has one name on every machine, wherever its data lies."""
    prices = Path(importlib.util.find_spec("genai_prices").origin).parent
    described = next(prices.parent.glob("genai_prices-*.dist-info"))
    assert in_one_file(tmp_path, PRICE_LIST, prices, described) == [
        str(tmp_path / "program.pyz"),
        tokenmeter.pricing.edition.installed_digest(),
    ]


PRICE_LIST = """
import genai_prices
from tokenmeter.pricing import edition

print(edition.installed_file(), edition.installed_digest(), sep="\\n")
"""


def test_a_program_in_one_file_serves_pages_and_prints_invoices(tmp_path):
    pytest.importorskip("starlette")
    pytest.importorskip("typst")
    assert in_one_file(tmp_path, PAGES_AND_INVOICE) == ["200"] * 5 + ["304", "404", "%PDF"]


PAGES_AND_INVOICE = """
from starlette.testclient import TestClient

import tokenmeter
from tokenmeter.dashboard import app

body = {"model": "gpt-5-mini", "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}
with tokenmeter.attribute(member="ada"):
    tokenmeter.record(body, provider="openai", endpoint="chat.completions")
client = TestClient(app())
for page in ("/", "/static/dashboard.css", "/static/dashboard.js", "/static/chart.js", "/static/icon.svg"):
    print(client.get(page).status_code)
tag = client.get("/static/chart.js").headers["etag"]
print(client.get("/static/chart.js", headers={"if-none-match": tag}).status_code)
print(client.get("/static/nothing.js").status_code)
print(tokenmeter.invoice(member="ada", period="this-month").to_pdf()[:4].decode())
"""


def test_pyinstaller_finds_what_it_has_to_know():
    """It names files and modules that the code never names; a program made with it was tried by hand."""
    (point,) = importlib.metadata.entry_points(group="pyinstaller40", module="tokenmeter.paths")
    assert [[one.name for one in Path(folder).glob("*.py")] for folder in point.load()()] == [["hook-tokenmeter.py"]]


def test_the_version_is_unknown_where_the_package_has_no_description(monkeypatch):
    """As in a program that a bundler made."""

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    # What is read below must not be kept for the tests after this one.
    monkeypatch.setitem(vars(tokenmeter), "__version__", tokenmeter.__version__)
    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.delitem(vars(tokenmeter), "__version__")
    assert tokenmeter.__version__ == "unknown"


def test_nothing_is_read_beside_a_module():
    """A package in an archive has no files: `importlib.resources` reads from both."""
    named = [path for path in SOURCES.rglob("*.py") if "__file__" in path.read_text(encoding="utf-8")]
    assert named == []
