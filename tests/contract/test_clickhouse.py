"""The hand-over to ClickHouse: the real engine (chdb) behind an HTTP interface like ClickHouse's own."""

import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from tokenmeter.erasing import erase
from tokenmeter.errors import ConfigurationError, LedgerError, StoreUnavailableError
from tokenmeter.stores.archive import clickhouse

pytest.importorskip("chdb", reason="needs the dependency group clickhouse: 500 MB")

START = datetime(2026, 1, 1, tzinfo=UTC)


class Engine:
    """ClickHouse in this process."""

    def __init__(self, folder):
        from chdb.session import Session

        self.session = Session()
        self.folder = folder
        self.lock = threading.Lock()
        self.statements = []
        self.fail_at = 0

    def run(self, statement, rows):
        with self.lock:
            self.statements.append(statement)
            if self.fail_at and len(self.statements) == self.fail_at:
                raise RuntimeError("Code: 241. Memory limit exceeded")
            if rows:
                path = self.folder / "rows.parquet"
                path.write_bytes(rows)
                statement = statement.replace("FORMAT Parquet", f"SELECT * FROM file('{path}', Parquet)")  # noqa: S608
            return self.session.query(statement, "TSV").data()

    def ask(self, statement):
        return [line.split("\t") for line in self.run(statement, b"").splitlines()]


@pytest.fixture(scope="module")
def only_engine(tmp_path_factory):
    """chdb has one session to a process."""
    engine = Engine(tmp_path_factory.mktemp("clickhouse"))
    yield engine
    engine.session.close()


@pytest.fixture
def engine(only_engine):
    only_engine.fail_at = 0
    only_engine.run("DROP DATABASE IF EXISTS usage", b"")
    only_engine.statements = []
    return only_engine


@pytest.fixture
def url(engine):
    """Its HTTP interface."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked = parse_qs(urlsplit(self.path).query).get("query")
            try:
                said, status = engine.run(asked[0], body) if asked else engine.run(body.decode(), b""), 200
            except RuntimeError as error:
                said, status = str(error), 500
            self.send_response(status)
            self.end_headers()
            self.wfile.write(said.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running = threading.Thread(target=server.serve_forever)
    running.start()
    yield f"http://loader:secret@127.0.0.1:{server.server_port}"
    server.shutdown()
    running.join()
    server.server_close()


@pytest.fixture
def months(store, make_entry, make_charge, tmp_path):
    """Three months of calls, the first of them in a file only."""
    entries = [
        make_entry(
            charges=(make_charge("input", number + 1, None if number == 5 else "0.00000125"),),
            occurred_at=START + timedelta(hours=number * 20),
            cost_source="unpriced" if number == 5 else "computed",
            response_id=f"chatcmpl-{number}",
            member=("ada", "bob", None)[number % 3],
            end_user=f"u{number % 4}" if number % 5 else None,
            tags={"env": "prod"} if number % 2 else {},
        )
        for number in range(100)
    ]
    store.append([(entry, ()) for entry in entries])
    store.archives.seal("2026-01", tmp_path / "archive")
    store.archives.drop()
    return entries


def load(store, url):
    return clickhouse.load_clickhouse(store, url, database="usage")


def attempt(store, url):
    """What a load that fails says."""
    try:
        load(store, url)
    except StoreUnavailableError as error:
        return str(error)
    return None


@pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
def test_every_entry_is_there_once_and_the_sums_are_the_ledgers(store, months, engine, url, make_entry, monkeypatch):
    monkeypatch.setattr(clickhouse, "_STRETCH", 30)
    assert load(store, url) == clickhouse.Loaded("usage", 100, 100)
    assert load(store, url) == clickhouse.Loaded("usage", 100, 0)
    due = {
        one.group: (one.requests, f"{one.billed_cost:f}")
        for one in store.aggregate([START, START + timedelta(days=200)], ("model", "member"))
    }
    found = engine.ask("SELECT model, member, count(), sum(billed_cost) FROM usage.calls GROUP BY ALL")
    assert {
        (model, None if member == "\\N" else member): (int(count), f"{float(cost):.12f}")
        for model, member, count, cost in found
    } == {group: (count, f"{float(cost):.12f}") for group, (count, cost) in due.items()}
    store.settle(make_entry(occurred_at=START + timedelta(days=99), end_user="new"))
    assert load(store, url) == clickhouse.Loaded("usage", 101, 12)
    assert load(store, url) == clickhouse.Loaded("usage", 101, 0)
    tags = engine.ask(
        "SELECT value, count() FROM usage.entries AS e FINAL JOIN usage.tags AS t FINAL ON t.ledger = e.ledger "
        "AND t.tags = e.tags GROUP BY 1"
    )
    assert tags == [["prod", "50"]]


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_load_that_broke_off_anywhere_is_made_whole_by_the_next(store, months, engine, url, monkeypatch):
    monkeypatch.setattr(clickhouse, "_STRETCH", 30)
    at = 1
    while True:
        engine.run("DROP DATABASE IF EXISTS usage", b"")
        engine.statements, engine.fail_at = [], at
        told = attempt(store, url)
        if told is None:
            break
        assert "Memory limit exceeded" in told
        assert "secret" not in told
        engine.fail_at = 0
        assert load(store, url).entries == 100
        assert engine.ask("SELECT count(), uniqExact(entry_id) FROM usage.entries FINAL") == [["100", "100"]]
        at += 1
    assert at > 12


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_part_of_a_stretch_is_not_taken_for_the_whole(store, months, engine, url):
    load(store, url)
    engine.run("ALTER TABLE usage.entries DELETE WHERE seq = 50 SETTINGS mutations_sync = 2", b"")
    engine.run("INSERT INTO usage.entries SELECT * FROM usage.entries WHERE seq = 51", b"")
    assert load(store, url).sent == 100
    assert engine.ask("SELECT count(), uniqExact(entry_id) FROM usage.entries FINAL") == [["100", "100"]]


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_name_that_is_erased_goes_there_too_with_the_next_load(store, months, engine, url):
    load(store, url)
    erase(store, "member", "ada", reason="asked to", by="kim", pseudonym="person 17")
    erase(store, "end_user", "u1", reason="asked to", by="kim", pseudonym="person 18")
    load(store, url)
    assert engine.ask("SELECT DISTINCT member FROM usage.accounts ORDER BY 1") == [["bob"], ["person 17"], ["\\N"]]
    assert ["u1"] not in engine.ask("SELECT name FROM usage.end_users")
    assert ["person 18"] in engine.ask("SELECT DISTINCT end_user FROM usage.calls")


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_what_somebody_else_wrote_there_is_told(store, months, engine, url):
    load(store, url)
    row = "SELECT ledger, 999999 AS seq, 'x' AS entry_id FROM usage.entries LIMIT 1"
    engine.run("INSERT INTO usage.entries (ledger, seq, entry_id) " + row, b"")
    with pytest.raises(LedgerError, match="somebody else wrote"):
        load(store, url)


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
@pytest.mark.parametrize("price", ["0.0000002", "0.000000000001", "12345678.9"])
def test_a_ledger_of_any_sum_is_the_same_there(store, engine, url, make_entry, make_charge, price):
    store.settle(make_entry(charges=(make_charge("input", 1, price),)))
    assert load(store, url) == clickhouse.Loaded("usage", 1, 1)


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_an_empty_ledger_and_a_wrong_address(store, engine, url):
    assert load(store, url).entries == 0
    with pytest.raises(ConfigurationError, match="https://user@host:8443") as refused:
        load(store, "clickhouse://loader:secret@host")
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigurationError, match="name of a database"):
        clickhouse.load_clickhouse(store, url, database="a b")
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        load(store, "http://127.0.0.1:1")
    with closing(store.archives.connect()) as star:
        assert star.execute("SELECT count(*) FROM calls").fetchone() == (0,)
