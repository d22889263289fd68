"""Places for archived months that fail: a folder that is full or gone, a bucket that answers anything."""

import http.client
import shutil
import threading
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import tokenmeter
from tokenmeter.errors import StoreUnavailableError, TokenmeterError
from tokenmeter.stores import open_store
from tokenmeter.stores.archive import places, sealing
from tokenmeter.stores.moving import copy_ledger

pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")

pytestmark = pytest.mark.slow

SPAN = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number) for number in (0, 70, 400)]


def answers(store):
    return (
        store.aggregate(SPAN, ("model", "status")),
        [one.requests for one in store.aggregate(SPAN, ("end_user",))],
        [entry.entry_id for entry in store.entries()],
    )


def test_of_several_months_an_error_says_with_which_all_went_well(ledger, tmp_path, monkeypatch):
    """Sealed, dropped and brought back one after the other: what stands in the way of one undoes nothing of others."""
    store, put = ledger("one by one"), places.put_file

    def full(source, url, sha256):
        if "2026-02" in url:
            raise StoreUnavailableError("The disk is full.")
        put(source, url, sha256)

    with monkeypatch.context() as patched:
        patched.setattr(sealing, "put_file", full)
        with pytest.raises(StoreUnavailableError, match=r"^The disk is full\. Sealed before that: 2026-01\.$"):
            store.archives.seal("2026-02", tmp_path / "archive")
    store.archives.seal("2026-02", tmp_path / "archive")
    first, second = (Path(one.url) for one in store.archives.listed())
    second.rename(tmp_path / "second")
    with pytest.raises(StoreUnavailableError, match=r"2026-02-.* Dropped before that: 2026-01\.$"):
        store.archives.drop()
    assert [one.dropped for one in store.archives.listed()] == [True, False]
    (tmp_path / "second").rename(second)
    store.archives.drop()
    first.rename(tmp_path / "first")
    with pytest.raises(StoreUnavailableError, match=r"2026-01-.* Brought back before that: 2026-02\.$"):
        store.archives.restore()
    assert [one.dropped for one in store.archives.listed()] == [True, False]
    (tmp_path / "first").rename(first)
    assert store.verify(deep=True).faults == ()
    store.close()


def test_files_that_were_moved_are_found_where_one_says_and_a_copy_of_the_ledger_finds_them_there(ledger, tmp_path):
    store, old, new = ledger("moved"), tmp_path / "old", tmp_path / "new"
    due = answers(store)
    store.archives.seal("2026-02", old)
    store.archives.drop()
    old.rename(new)
    away = new / store.archives.listed()[1].url.removeprefix(f"{old}/")
    away.rename(tmp_path / "away")
    with pytest.raises(StoreUnavailableError, match="say where it lies now: tokenmeter archive move --to PLACE"):
        answers(store)
    lost = rf"1 month was not moved, .* 2026-02 lies neither at {away} \(No .*\) nor at {old}.* Moved: 2026-01\.$"
    with pytest.raises(StoreUnavailableError, match=lost):
        store.archives.move(new)
    (tmp_path / "away").rename(away)
    assert [one.url for one in store.archives.move(new)] == [str(away)]
    assert store.archives.move(new) == []
    assert (answers(store), store.verify(deep=True).faults) == (due, ())
    copy_ledger(store.url, tmp_path / "copy.db", check=False)
    store.archives.move(old)  # what is not there is copied there, what is there is taken as it is
    shutil.rmtree(new)
    assert answers(store) == due
    copy = open_store(f"sqlite:///{tmp_path}/copy.db")
    with pytest.raises(StoreUnavailableError, match=f"{new}/"):
        answers(copy)
    damaged = Path(copy.archives.move(old)[0].url)
    assert answers(copy) == due
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(StoreUnavailableError, match="is not the file that was sealed"):
        store.archives.move(new)
    store.close()
    copy.close()


def attempt(work):
    """What it says when the store is away."""
    try:
        work()
    except StoreUnavailableError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_an_object_store_that_fails_anywhere_loses_nothing(ledger, bucket, monkeypatch, tmp_path):
    import s3fs

    opened = s3fs.S3FileSystem._open
    left = [0]

    def fail(self, *given, **named):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(5, "the network is gone")
        return opened(self, *given, **named)

    monkeypatch.setattr(s3fs.S3FileSystem, "_open", fail)
    store = ledger("shared")
    before = answers(store)

    def seal(store):
        store.archives.seal("2026-02", "s3://books/usage")
        store.archives.drop()

    for step in range(1, 20):
        left[0] = step
        told = attempt(lambda: seal(store))
        left[0] = 0
        if told is None:
            break
        assert "the network is gone" in told
        assert answers(store) == before
    left[0] = 0
    assert step > 3
    assert [one.dropped for one in store.archives.listed()] == [True, True]
    assert store.verify(deep=True).faults == ()
    left[0] = 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    with pytest.raises(TokenmeterError, match="cannot be read"):
        list(store.entries())
    left[0] = 0
    assert answers(store) == before
    store.close()


def refused(status, code, *, reads=True):
    """A bucket's answer that says no; to whoever writes, or to all."""

    def answer(request, status_of_all, headers, body):
        if reads or request.command != "GET":
            return status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode()
        return status_of_all, headers, body

    return answer


def cut_off(request, status, headers, body):
    """Half of a file, and the connection is gone."""
    return status, headers, body[: len(body) // 2] if request.command == "GET" else body


def spoilt(request, status, headers, body):
    """Other bytes than those that were put there, under their checksum."""
    return status, headers, bytes(len(body)) if request.command == "GET" else body


def giving(part):
    """Part of a file, or something else, as if it was whole."""

    def answer(request, status, headers, body):
        if request.command != "GET" or body.startswith(b"<?xml"):
            return status, headers, body
        kept = {name: value for name, value in headers.items() if name.lower() in {"etag", "last-modified"}}
        return status, kept, part(body)

    return answer


FAULTS = {
    "read-only": refused(403, "AccessDenied", reads=False),
    "overloaded": refused(503, "SlowDown"),
    "lost": refused(404, "NoSuchKey"),
    "no bucket": refused(404, "NoSuchBucket"),
    "expired": refused(400, "ExpiredToken"),
    "cut off": cut_off,
    "spoilt": spoilt,
    "half": giving(lambda body: body[: len(body) // 2]),
    "empty": giving(lambda body: b""),
    "a page": giving(lambda body: b"<html>Log in</html>".ljust(len(body))),
}
#: Those that give a whole file which is another one.
OTHER = {"half", "empty", "a page"}
#: Those that give nothing, not even a file's length.
REFUSING = {"overloaded", "lost", "no bucket", "expired"}


def healthy(request, *answer):
    return answer


class FrailServer(ThreadingHTTPServer):
    """Stands before another server, and fails as it is told."""

    def __init__(self, behind):
        super().__init__(("127.0.0.1", 0), Frail)
        self.behind, self.fault = behind, healthy


class Frail(BaseHTTPRequestHandler):
    """Hands on to the object store behind, and says what `server.fault` makes of its answer."""

    protocol_version = "HTTP/1.1"
    server: FrailServer

    def log_message(self, *told):
        pass

    def hand_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind)
        behind.request(self.command, self.path, body, dict(self.headers))
        found = behind.getresponse()
        hop = {"transfer-encoding", "connection", "date", "server"}
        headers = {name: value for name, value in found.getheaders() if name.lower() not in hop}
        status, headers, body = self.server.fault(self, found.status, headers, found.read())
        behind.close()
        self.send_response(status)
        if self.command != "HEAD" or "Content-Length" not in headers:
            headers = {"Content-Length": str(len(body))} | headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)
        self.close_connection = True


for verb in ("GET", "HEAD", "PUT", "POST", "DELETE"):
    setattr(Frail, f"do_{verb}", Frail.hand_on)


@pytest.fixture
def frail(bucket, monkeypatch):
    """The bucket behind a server that fails as it is told: ``with frail(fault):``."""
    import s3fs

    server = FrailServer(int(bucket.meta.endpoint_url.rpartition(":")[2]))
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)

    @contextmanager
    def failing(fault):
        server.fault = fault
        try:
            yield
        finally:
            server.fault = healthy

    yield failing
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_whatever_a_bucket_answers_is_an_error_of_ours_and_loses_nothing(ledger, fresh_url, frail, tmp_path, kind):
    source, url = ledger("source"), fresh_url(kind)
    source.close()
    copy_ledger(source.url, url)
    store = open_store(url)
    before = answers(store)
    for name, fault in FAULTS.items():
        with frail(fault), pytest.raises(StoreUnavailableError, match=rf"^s3://books/{name}/.* Nothing was dropped;"):
            store.archives.seal("2026-02", f"s3://books/{name}")
        assert store.archives.listed() == []
    assert answers(store) == before
    store.archives.seal("2026-02", "s3://books/usage")
    store.archives.drop()
    for name, fault in FAULTS.items():
        if name == "read-only":
            continue
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        with frail(fault):
            told = rf"cannot be read: .* {'Put the right one back' if name in OTHER else 'archive move --to PLACE'}\.$"
            with pytest.raises(StoreUnavailableError, match=told) as caught:
                answers(store)
            assert store.archives.listed()[0].url in str(caught.value)
            assert [one.kind for one in store.verify().faults] == ["archive", "archive"]
            away = store.archives.unreadable()  # asks for no more than the length of each
            assert len(away) == (2 if name in REFUSING else 0), away
            assert all("cannot be read: " in one and one.endswith("archive move --to PLACE.") for one in away)
    assert store.archives.unreadable() == []
    with frail(cut_off):
        for ask in (store.archives.restore, store.archives.connect):
            with pytest.raises(StoreUnavailableError, match=r"cannot be read: .* mend the access, or say .* PLACE\.$"):
                ask()
    assert [one.dropped for one in store.archives.listed()] == [True, True]
    assert answers(store) == before
    assert store.verify(deep=True).faults == ()
    store.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_bucket_that_says_nothing_is_asked_as_often_as_its_package_asks(ledger, bucket, monkeypatch, tmp_path):
    """Not as often times as often: each time is a quarter of a minute of waiting."""
    import s3fs

    asked = []

    class Silent(BaseHTTPRequestHandler):
        def setup(self):
            asked.append(self.client_address)
            self.connection = self.request
            self.connection.settimeout(20)
            while self.connection.recv(65_536):  # until who asks hangs up
                pass

        def handle(self):
            pass

        finish = handle

    store = ledger("silent")
    store.archives.seal("2026-02", "s3://books/usage")
    store.archives.drop()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    s3fs.S3FileSystem.clear_instance_cache()
    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 0.1)
        with pytest.raises(StoreUnavailableError, match="mend the access"):
            answers(store)
        server.shutdown()
        serving.join()
    assert len(asked) == s3fs.S3FileSystem.retries
    store.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_bucket_that_falls_silent_within_a_file_is_told_as_such_and_not_asked_for_the_next(
    ledger, bucket, monkeypatch, tmp_path
):
    """Its package stumbles over that (an `IndexError`), which says nothing to anybody."""
    import s3fs

    class Falling(BaseHTTPRequestHandler):
        def log_message(self, *told):
            pass

        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.send_header("Last-Modified", "Sat, 28 Nov 2026 14:00:00 GMT")
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(b"PAR1" * 100)
            self.wfile.flush()
            self.connection.settimeout(20)
            with suppress(OSError):
                self.connection.recv(1)  # until who asks hangs up

    store = ledger("falling")
    store.archives.seal("2026-02", "s3://books/usage")
    store.archives.drop()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    s3fs.S3FileSystem.clear_instance_cache()
    with ThreadingHTTPServer(("127.0.0.1", 0), Falling) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 0.1)
        with pytest.raises(StoreUnavailableError, match=r"cannot be read: Read timeout .* --to PLACE\.$"):
            answers(store)
        with pytest.raises(StoreUnavailableError, match="said nothing a moment ago"):
            answers(store)
        server.shutdown()
        serving.join()
    store.close()


def test_a_package_that_raises_an_error_from_itself_is_told_of(ledger):
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Stumbling(MemoryFileSystem):
        protocol = "stumbling"

        def _open(self, *args, **kwargs):
            stumble = TypeError()
            raise stumble from stumble

    fsspec.register_implementation("stumbling", Stumbling)
    store = ledger("stumbling")
    with pytest.raises(StoreUnavailableError, match="TypeError"):
        store.archives.seal("2026-02", "stumbling://books")
    store.close()


@pytest.mark.parametrize("other", ["cut", "empty", "text", "longer", "one letter", "another month", "another ledger"])
def test_a_file_that_is_not_the_months_answers_no_question(ledger, tmp_path, other):
    store, apart = ledger("one"), ledger("two")
    before = answers(store)
    for each, folder in ((store, "files"), (apart, "theirs")):
        each.archives.seal("2026-02", tmp_path / folder)
        each.archives.drop()
    first, second = (Path(one.url) for one in store.archives.listed())
    whole = first.read_bytes()
    first.write_bytes(
        {
            "cut": whole[:-10],
            "empty": b"",
            "text": b"hello".ljust(len(whole)),
            "longer": whole * 2,
            "one letter": whole.replace(b"parquet-cpp-arrow", b"parquet-cpp-arroW"),  # as long, and can be read
            "another month": second.read_bytes(),
            "another ledger": Path(apart.archives.listed()[0].url).read_bytes() + b"\0",
        }[other]
    )
    told = rf"cannot be read: {first} is not the file that was sealed: .* Put the right one back\.$"
    for ask in (lambda: answers(store), lambda: store.entry(before[2][0]), store.archives.connect):
        with pytest.raises(StoreUnavailableError, match=told):
            ask()
    assert [(one.kind, one.where) for one in store.verify().faults] == [("archive", "2026-01")]
    first.write_bytes(whole)
    assert answers(store) == before
    apart.close()
    store.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_copy_that_the_disk_has_not_all_of_is_fetched_again(ledger, bucket, tmp_path):
    """As where a machine went down just after it was made."""
    store = ledger("copied")
    before = answers(store)
    store.archives.seal("2026-02", "s3://books/usage")
    store.archives.drop()
    assert answers(store) == before
    copies = sorted((tmp_path / "cache").rglob("*.parquet"))
    assert len(copies) == 2
    for copy in copies:
        copy.write_bytes(b"")
    assert answers(store) == before
    store.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n"], ids=["silence", "bytes"])
def test_a_bucket_that_never_has_done_is_given_up(ledger, bucket, monkeypatch, tmp_path, said):
    """What is written waits for a go-ahead that never comes, and what is read for an end: by no package's timeout."""
    import s3fs

    store = ledger("endless")
    store.archives.seal("2026-01", "s3://books/usage")
    store.archives.drop()
    before = store.archives.listed()
    asked, ended = [], threading.Event()

    class Endless(BaseHTTPRequestHandler):
        def handle(self):
            asked.append(self.client_address)
            with suppress(OSError):  # until who asks hangs up
                self.request.sendall(said)
                while not ended.wait(0.05):
                    self.request.sendall(said and b"1")

    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        with monkeypatch.context() as patched:
            patched.setattr(places, "_SILENCE", 1)
            patched.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
            s3fs.S3FileSystem.clear_instance_cache()
            with pytest.raises(StoreUnavailableError, match=r"written: nothing came of it for 1 seconds\. Nothing was"):
                store.archives.seal("2026-02", "s3://books/usage")
            places._silent.clear()
            shutil.rmtree(tmp_path / "cache")
            with pytest.raises(StoreUnavailableError, match="cannot be read: nothing came of it"):
                list(store.entries())
            with pytest.raises(StoreUnavailableError, match="cannot be read: it said nothing a moment ago"):
                store.archives.restore()
            known = len(asked)
            assert [one.kind for one in store.verify().faults] == ["archive"]
            assert len(asked) == known  # a bucket that said nothing is not waited for again by every month of it
            ended.set()
            server.shutdown()
            serving.join()
    assert store.archives.listed() == before
    places._silent.clear()
    assert [one.dropped for one in store.archives.restore()] == [False]
    assert store.verify(deep=True).faults == ()
    store.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_who_mends_the_credentials_need_not_start_anew(ledger, frail, monkeypatch):
    store = ledger("keys")

    def only_new(request, *answer):
        old = "Credential=old/" in request.headers.get("Authorization", "")
        return refused(403, "InvalidAccessKeyId")(request, *answer) if old else answer

    with frail(only_new):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "old")
        with pytest.raises(StoreUnavailableError, match="mend the access"):
            store.archives.seal("2026-02", "s3://books/usage")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "new")
        assert len(store.archives.seal("2026-02", "s3://books/usage")) == 2
    store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_what_the_sums_know_is_answered_while_the_place_is_away(ledger, fresh_url, tmp_path, kind):
    source, url = ledger("source"), fresh_url(kind)
    source.close()
    copy_ledger(source.url, url)
    meter = tokenmeter.make_meter(store=url, config={})
    questions = [
        {"by": by, "granularity": granularity, **period}
        for by in ("model", ())
        for granularity in (None, "day", "month", "year")
        for period in (
            {},
            {"until": "2026-03-01"},
            {"since": "2026-01-01"},
            {"since": "0800-01-01", "until": "2900-01-01"},
        )
    ]

    def ask():
        return [meter.report(**one) for one in questions]

    before = ask()
    assert all(report.rows for report in before)
    meter.archive("2026-02", tmp_path / "months", drop=True)
    shutil.rmtree(tmp_path / "months")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert [(str(report), report.rows) for report in ask()] == [(str(report), report.rows) for report in before]
    with pytest.raises(StoreUnavailableError, match="cannot be read"):
        meter.report(by="end_user")
    meter.close()


def test_a_folder_for_temporary_files_that_is_full_is_named(ledger, tmp_path, monkeypatch):
    store = ledger("full")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not there"))
    with pytest.raises(StoreUnavailableError, match=r"2026-01 cannot be written .* another folder in TMPDIR\.$"):
        store.archives.seal("2026-02", tmp_path / "archive")
    assert store.archives.listed() == []
    store.close()


def test_a_database_for_other_tools_that_cannot_be_made_leaves_nothing(ledger, tmp_path):
    store = ledger("star")
    store.archives.seal("2026-01", tmp_path / "archive")
    store.archives.drop()
    (month,) = store.archives.listed()
    Path(month.url).rename(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailableError, match="cannot be made"):
        store.archives.connect(tmp_path / "no folder" / "star.db")
    with pytest.raises(StoreUnavailableError, match="cannot be read"):
        store.archives.connect(tmp_path / "star.db")
    Path(tmp_path / "elsewhere").rename(month.url)
    assert store.archives.connect(tmp_path / "star.db").execute("SELECT count(*) FROM calls").fetchone() == (90,)
    store.close()


@pytest.mark.parametrize("named", ["", "s3://", "s3:///", "file://"])
def test_a_place_without_a_name_is_none(named):
    with pytest.raises(TokenmeterError, match="Name a folder or a bucket"):
        places.place_of(named)
