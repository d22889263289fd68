"""Behind a pooler that gives every transaction another server process, as PgBouncer's transaction pooling does."""

import queue
import socket
import struct
import threading
from datetime import timedelta

import pytest

from tokenmeter.ledger import utcnow
from tokenmeter.stores.base import CapReachedError
from tokenmeter.stores.documents import NewDocument

_NO_ENCRYPTION = (80877103, 80877104)  # codes of the requests for TLS and GSSAPI
_PROCESSES = 4


def _message(kind, body):
    return kind + struct.pack("!i", len(body) + 4) + body


def _exactly(stream, count):
    data = b""
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


def _read(stream):
    head = _exactly(stream, 5)
    return head[:1], head + _exactly(stream, struct.unpack("!i", head[1:])[0] - 4)


class TransactionPooler:
    """Speaks the server's protocol: a transaction gets the process that has been idle longest, whoever asks."""

    def __init__(self, place):
        self._processes, self._greeting = queue.Queue(), b""
        self.started = [self._start(place) for _ in range(_PROCESSES)]
        for process in self.started:
            self._processes.put(process)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _start(self, place):
        process = socket.socket(socket.AF_UNIX)
        process.connect(place)
        body = struct.pack("!i", 196608) + b"user\0postgres\0database\0postgres\0\0"
        process.sendall(struct.pack("!i", len(body) + 4) + body)
        self._greeting, kind = b"", b""
        while kind != b"Z":
            kind, message = _read(process)
            if kind == b"S":
                self._greeting += message
        return process

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with client:
            code = _NO_ENCRYPTION[0]
            while code in _NO_ENCRYPTION:
                code = struct.unpack("!i", _exactly(client, struct.unpack("!i", _exactly(client, 4))[0] - 4)[:4])[0]
                if code in _NO_ENCRYPTION:
                    client.sendall(b"N")
            key = _message(b"K", struct.pack("!ii", 2**31 - 1, 7))
            client.sendall(_message(b"R", b"\0\0\0\0") + self._greeting + key + _message(b"Z", b"I"))
            try:
                while self._transaction(client):
                    pass
            except OSError:
                pass

    def _transaction(self, client):
        """Pass one transaction on; False when the client has gone."""
        kind, message = _read(client)
        if kind == b"X":
            return False
        process = self._processes.get(timeout=20)
        while True:
            process.sendall(message)
            if kind in b"QS":
                while kind != b"Z":
                    kind, answer = _read(process)
                    client.sendall(answer)
                if answer[-1:] == b"I":
                    self._processes.put(process)
                    return True
            kind, message = _read(client)

    def close(self):
        self._listener.close()
        for process in self.started:
            process.close()


@pytest.fixture
def pooler(postgres_server_url):
    from psycopg.conninfo import conninfo_to_dict

    host = conninfo_to_dict(postgres_server_url).get("host", "")
    if not host.startswith("/"):
        pytest.skip("the pooler of this test wants the server's Unix socket")
    running = TransactionPooler(f"{host}/.s.PGSQL.5432")
    yield running
    running.close()


@pytest.fixture
def pooled(pooler, postgres_url, opened):
    """A store behind the pooler."""
    own = postgres_url.partition("schema=")[2]
    return opened(f"postgresql://postgres@127.0.0.1:{pooler.port}/postgres?schema={own}")


def test_the_ledger_works_and_its_statements_find_its_schema(
    pooled, store, make_entry, make_hold, make_posting, key, query
):
    holds, filed = [make_hold((key, 12, 1)) for _ in range(12)], []

    def work(hold):
        pooled.reserve(hold)
        for _ in range(3):  # often enough for statements to be prepared, if they were
            pooled.settle(make_entry())
        pooled.settle(make_entry(), [make_posting(1, 12)], reservation_id=hold.reservation_id)
        filed.append(pooled.file(NewDocument(kind="invoice", key=hold.reservation_id, body="{}", series="A")))

    threads = [threading.Thread(target=work, args=(hold,)) for hold in holds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(CapReachedError):
        pooled.reserve(make_hold((key, 12, 1)))
    counter = pooled.counters([key])[key]
    assert (counter.settled, counter.reserved) == (12, 0)
    assert sorted(one.document.number for one in filed) == list(range(1, 13))
    assert len(list(pooled.documents())) == 12
    [total] = pooled.aggregate([utcnow() - timedelta(days=1), utcnow() + timedelta(minutes=7)], ["model"])
    assert total.requests == len(list(pooled.entries())) == 48
    assert pooled.verify().ok
    facts = pooled.health().facts
    assert (facts["pooled"], facts["entries"], facts["spool_waiting"]) == (True, 48, 0)
    assert facts["head"] == store.health().facts["head"] == pooled.verify().head
    assert store.health().facts["pooled"] is False


def test_nothing_of_ours_stays_in_the_shared_processes(pooler, pooled, make_entry):
    for _ in range(30):
        pooled.settle(make_entry())
    assert pooled.verify().ok
    asked = (
        b"SELECT current_setting('search_path') || current_setting('statement_timeout') "
        b"|| (SELECT count(*) FROM pg_prepared_statements) || (SELECT count(*) FROM pg_cursors WHERE name <> '')"
    )
    for process in pooler.started:
        process.sendall(_message(b"Q", asked + b"\0"))
        answers, kind = [], b""
        while kind != b"Z":
            kind, message = _read(process)
            answers.append(message)
        assert any(b'"$user", public000' in answer for answer in answers)
