"""The examples under the servers people run: prefork, preload, threads, event loops; and stopped amid streams."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

import tokenmeter
from tokenmeter.default import default_meter

BIN = Path(sys.executable).parent
EXAMPLES = Path(__file__).parents[2] / "examples" / "apps"
GUNICORN = ("gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "2", "--graceful-timeout", "{grace}")
UVICORN = ("uvicorn", "--host", "127.0.0.1", "--port", "{port}", "--timeout-graceful-shutdown", "{grace}")
SERVERS = {
    "flask, gunicorn prefork": (*GUNICORN, "with_flask:app"),
    "flask, gunicorn preload and threads": (*GUNICORN, "--preload", "--threads", "4", "with_flask:app"),
    "django, gunicorn threads": (*GUNICORN, "--threads", "4", "with_django:application"),
    "django, uvicorn": (*UVICORN, "with_django:asgi"),
    "fastapi, uvicorn": (*UVICORN, "with_fastapi:app"),
    "fastapi, uvicorn workers": (*UVICORN, "--workers", "2", "with_fastapi:app"),
    "fastapi, gunicorn asgi": (*GUNICORN, "-k", "asgi", "with_fastapi:app"),
}


class Site:
    """A server process with an example in it."""

    def __init__(self, command, *, grace, environment, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        program, *arguments = (part.format(port=self.port, grace=grace) for part in command)
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [BIN / program, *arguments],
                cwd=log.parent,
                env={**os.environ, **environment, "PYTHONPATH": str(EXAMPLES), "PYTHONUNBUFFERED": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def open(self, path, user="ada"):
        headers = {"x-user": user, "x-team": "search"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        return urllib.request.urlopen(request, timeout=120)  # noqa: S310

    def get(self, path, user="ada"):
        with self.open(path, user) as answer:
            return answer.read().decode()

    def wait_until_ended(self):
        """Until none of its processes is left: gunicorn ends when it has killed its workers, and they after it."""
        self.process.wait(120)
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)
        pytest.fail("a worker outlived its server")

    def wait_until_up(self):
        while self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return self
        pytest.fail(f"the server did not start:\n{self.log.read_text()}")


@pytest.fixture
def start(environment, tmp_path):
    """`start("flask, ...", grace=30)`: a running site."""
    sites = []

    def start(name, *, grace=30):
        command = SERVERS[name]
        pytest.importorskip(name.split(",")[0])
        pytest.importorskip(command[0])
        site = Site(command, grace=grace, environment=environment, log=tmp_path / "server.log")
        sites.append(site)
        return site.wait_until_up()

    yield start
    for site in sites:
        if site.process.poll() is None:
            site.process.terminate()
            try:
                site.process.wait(60)
            except subprocess.TimeoutExpired:
                site.process.kill()
                site.process.wait()


@pytest.fixture
def ledger(configured):
    """The same ledger, read from here."""
    return configured()


def charged(provider):
    """The provider's books and ours, each as sorted (response id, tokens)."""
    billed = sorted((truth.response_id, truth.meters.output_tokens) for truth in provider.billed)
    recorded = sorted((entry.response_id, entry.usage.output_tokens) for entry in tokenmeter.entries())
    return recorded, billed


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SERVERS))
def test_every_call_of_every_worker_is_on_the_account_of_its_request(name, start, ledger, fake_provider, accounts):
    site = start(name)
    paths = ["/plain", "/stream", "/async"] if "django" in name else ["/plain", "/stream"]
    asked = [(user, "search", path) for user in ("ada", "grace", "hedy") for path in paths for _ in range(3)]
    with ThreadPoolExecutor(6) as browsers:
        list(browsers.map(lambda one: site.get(one[2], one[0]), asked))
    assert accounts() == sorted(asked), site.log.read_text()
    recorded, billed = charged(fake_provider)
    assert recorded == billed
    assert tokenmeter.verify().ok


def stop_amid_streams(site, *, words, wait=lambda: None):
    """SIGTERM when two streams have each sent their first bytes, after `wait`; returns when the server has ended."""
    begun = threading.Barrier(3)

    def read():
        with site.open(f"/stream?words={words}") as answer:
            answer.read(1)
            begun.wait(120)
            answer.read()

    with ThreadPoolExecutor(2) as browsers:
        reading = [browsers.submit(read) for _ in range(2)]
        begun.wait(120)
        wait()
        site.process.send_signal(signal.SIGTERM)
        for answer in reading:
            answer.exception()  # a server may break off what it sends
    site.wait_until_ended()


def wait_until_two_are_noted():
    """Until the ledger knows of two streams under way how much of them was read."""
    store = default_meter().store
    until = time.monotonic() + 120
    while time.monotonic() < until:
        holds = store.expired(store.now() + timedelta(days=1))
        if sum(hold.call.usage.output_tokens > 0 for hold in holds) == 2:
            return
        time.sleep(0.05)
    pytest.fail("nothing was noted")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SERVERS))
def test_streams_that_a_stop_lets_end_are_recorded_whole(name, start, ledger, fake_provider):
    site = start(name, grace=60)
    fake_provider.answer("word " * 40, chunk_delay=0.02, times=None)
    stop_amid_streams(site, words=40)
    recorded, billed = charged(fake_provider)
    assert recorded == billed, site.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SERVERS))
def test_streams_that_a_stop_breaks_off_are_recorded_too(name, start, ledger, fake_provider):
    site = start(name, grace=1)
    fake_provider.answer("word " * 100, chunk_delay=0.1, times=None)
    stop_amid_streams(site, words=100, wait=wait_until_two_are_noted)
    if name.startswith("fastapi, uvicorn"):  # it cancels its tasks before it ends
        told = list(tokenmeter.entries())
        assert len(told) == len(fake_provider.requests), site.log.read_text()
    tokenmeter.sweep()
    entries = list(tokenmeter.entries())
    assert all(entry.usage.output_tokens for entry in entries), site.log.read_text()
    assert len(entries) == len(fake_provider.requests), site.log.read_text()
    assert {entry.attribution.member for entry in entries} == {"ada"}
    assert {entry.status for entry in entries} <= {"aborted", "error"}
    assert all(entry.billed_cost for entry in entries)
