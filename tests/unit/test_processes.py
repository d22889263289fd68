"""Processes are told apart, also from later ones of the same number."""

import subprocess
import sys

import pytest

from tokenmeter.processes import has_ended, process_name

NAMED = "from tokenmeter.processes import process_name; print(process_name(), flush=True); input()"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a process began")
def test_one_that_runs_has_not_ended_and_one_that_was_killed_has():
    with subprocess.Popen(
        [sys.executable, "-c", NAMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        name = process.stdout.readline().strip()
        assert not has_ended(name)
        process.kill()
        process.wait()
        assert has_ended(name)
    host, pid, where, began = process_name().split(":")
    assert has_ended(f"{host}:{pid}:{where}:{int(began) - 1}")


@pytest.mark.parametrize("name", ["host:1", "elsewhere:1:0123456789ab:5", "", "a:b:c:d"])
def test_of_others_nothing_is_said(name):
    assert not has_ended(name)
    host, pid, *_ = process_name().split(":")
    assert not has_ended(f"{host}:{pid}")
