"""What the PostgreSQL tests share: entries of one request each, stores that are closed at the end, and a pooler."""

import contextlib
import queue
import socket
import struct
import threading
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tokenmeter.attribution import Attribution
from tokenmeter.ledger import Charge, Claim, CounterKey, Entry, Posting, Reservation, new_id, utcnow
from tokenmeter.stores import open_store
from tokenmeter.usage import Usage

KEY = CounterKey("cap", "member=ada", 0)


def _entry(**changes):
    cost = Decimal("0.000012500001")
    charge = Charge(
        model="gpt-5",
        sku_meter="input",
        quantity=10,
        unit="Tokens",
        list_unit_price=Decimal("0.00000125"),
        list_cost=cost,
        contracted_cost=cost,
        billed_cost=cost,
    )
    values = {
        "occurred_at": utcnow(),
        "provider": "openai",
        "endpoint": "chat.completions",
        "operation": "chat",
        "request_model": "gpt-5",
        "attribution": Attribution(member="ada"),
        "usage": Usage({"input": 10}, 0),
        "charges": (charge,),
        "list_cost": cost,
        "contracted_cost": cost,
        "billed_cost": cost,
        "cost_source": "computed",
    }
    return Entry(**(values | changes))


def _hold(*claims, seconds=60):
    now = utcnow()
    return Reservation(
        reservation_id=new_id(),
        claims=tuple(Claim(*claim) for claim in claims),
        created_at=now,
        expires_at=now + timedelta(seconds=seconds),
        owner="host:1",
        call=_entry(status="aborted", cost_source="estimated"),
    )


@pytest.fixture
def key():
    return KEY


@pytest.fixture
def make_entry():
    return _entry


@pytest.fixture
def make_hold():
    return _hold


@pytest.fixture
def make_posting():
    return lambda amount=1, *thresholds, key=KEY: Posting(key, amount, thresholds)


@pytest.fixture
def opened():
    """Open a store by URL; closed after the test."""
    stores = []

    def make(url):
        stores.append(open_store(url))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(postgres_url, opened):
    return opened(postgres_url)


@pytest.fixture
def query(postgres_server_url, postgres_url):
    """Run SQL in the test's schema, as the server's superuser who went past the triggers."""
    import psycopg

    schema = postgres_url.partition("schema=")[2].partition("&")[0]

    def run(statement, *values):
        with psycopg.connect(postgres_server_url, autocommit=True) as connection:
            connection.execute(f"SET search_path = {schema}")
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else None

    handed: Any = run
    handed.schema = schema
    return handed


_ENCRYPTION = (80877103, 80877104)  # codes of the requests for TLS and GSSAPI
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

    def __init__(self, place, tls=None):
        self._processes, self._greeting, self._tls = queue.Queue(), b"", tls
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
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            stack.enter_context(client)
            code = _ENCRYPTION[0]
            while code in _ENCRYPTION:
                code = struct.unpack("!i", _exactly(client, struct.unpack("!i", _exactly(client, 4))[0] - 4)[:4])[0]
                if code == _ENCRYPTION[0] and self._tls:
                    client.sendall(b"S")
                    client = stack.enter_context(self._tls.wrap_socket(client, server_side=True))
                elif code in _ENCRYPTION:
                    client.sendall(b"N")
            key = _message(b"K", struct.pack("!ii", 2**31 - 1, 7))
            client.sendall(_message(b"R", b"\0\0\0\0") + self._greeting + key + _message(b"Z", b"I"))
            while self._transaction(client):
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

    def ask_each(self, query):
        """The answer of each process to a query, as bytes."""
        for process in self.started:
            process.sendall(_message(b"Q", query.encode() + b"\0"))
            answer, kind = b"", b""
            while kind != b"Z":
                kind, message = _read(process)
                answer += message
            yield answer

    def close(self):
        self._listener.close()
        for process in self.started:
            process.close()


@pytest.fixture
def start_pooler(postgres_server_url):
    """Start a pooler before the tests' server, with TLS if a context is given."""
    from psycopg.conninfo import conninfo_to_dict

    host = conninfo_to_dict(postgres_server_url).get("host", "")
    if not host.startswith("/"):
        pytest.skip("the pooler of these tests wants the server's Unix socket")
    running = []

    def start(tls=None):
        running.append(TransactionPooler(f"{host}/.s.PGSQL.5432", tls))
        return running[-1]

    yield start
    for pooler in running:
        pooler.close()


@pytest.fixture
def pooler(start_pooler):
    return start_pooler()
