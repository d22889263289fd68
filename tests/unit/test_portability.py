"""On Windows there is no fork and no fcntl, and a lock is a byte; taken away here, not tried on a real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src"
#: Needs an extra, is another program's plug-in, or stands on a package that looks at `sys.platform` for itself (mcp).
ELSEWHERE = ("tokenmeter.queues.", "tokenmeter.__main__", "tokenmeter.serving.mcp")

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


def test_a_program_in_one_file_prices_and_records(tmp_path):
    """As zipapp makes it: what the package reads beside its modules is in the archive."""
    source = SOURCES / "tokenmeter"
    program = tmp_path / "program.pyz"
    with zipfile.ZipFile(program, "w") as archive:
        for path in source.rglob("*"):
            if path.is_file() and path.suffix in {".py", ".sql", ".toml", ".json"}:
                archive.write(path, Path("tokenmeter") / path.relative_to(source))
        archive.writestr("__main__.py", ONE_CALL)
    done = subprocess.run(
        [sys.executable, "-P", program],
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == ([str(program), "1", "priced"], "")


ONE_CALL = """
import tokenmeter

body = {"model": "gpt-5-mini", "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}
tokenmeter.record(body, provider="openai", endpoint="chat.completions")
totals = tokenmeter.report().totals
archive, _, _ = tokenmeter.__file__.partition("/tokenmeter/__init__")
print(archive, totals.requests, "priced" if totals.cost_known else "unpriced")
"""
