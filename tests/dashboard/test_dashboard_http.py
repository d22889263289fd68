"""The dashboard over plain HTTP: who is let in, what a browser may do with a page, and that nothing is written."""

from __future__ import annotations

import asyncio
import csv
import html
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from tokenmeter import dashboard
from tokenmeter.attribution import ApiKey
from tokenmeter.dashboard import downloads, reading
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import Entry, Reservation
from tokenmeter.serving.probes import Pulse, entries_of
from tokenmeter.stores import packing

TOKEN = "a-long-enough-token-for-a-test"
BOOKS = ("/invoices", "/credit-notes", "/periods", "/reconciliations")
PAGES = ("/", "/explore?by=member", "/entries", "/budgets", "/health", *BOOKS)
PATHS = (*PAGES, "/export/report.csv", "/export/focus.zip")


class Elements(HTMLParser):
    """Every element of a page, with its attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_reading_every_page_writes_nothing(served, busy):
    before = busy.store.verify()
    held = dict(busy.store.all_counters())
    for path in PATHS:
        assert served.get(path)[0] == 200, path
    assert busy.store.verify() == before
    assert dict(busy.store.all_counters()) == held


def test_no_page_lets_a_browser_run_or_load_anything_foreign(served, busy):
    entry = next(busy.store.entries())
    for path in (*PATHS, f"/entries/{entry.entry_id}", "/nowhere", "/?period=nonsense", "/static/dashboard.js"):
        _, headers, body = served.get(path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        if headers["content-type"].startswith("text/html"):
            seen = Elements(body)
            assert all("src" in one or one.get("type") == "application/json" for one in seen.of("script")), path
            assert not seen.of("style"), path
            assert not [name for _, one in seen.found for name in one if name == "style" or name.startswith("on")], path
            loaded = [
                one.get(name) for _, one in seen.found for name in ("src", "action", "data-events") if name in one
            ]
            assert all(address.startswith("/") for address in loaded), path
            assert headers["cache-control"] == "no-store"


def test_names_are_escaped_in_the_page_and_in_its_data(served, hostile):
    for path in ("/", "/entries", "/explore?by=member"):
        body = served.get(path)[2]
        assert hostile not in body
        assert "<img" not in body
    assert hostile in {one["name"] for one in json.loads(_chart(served.get("/?model=gpt-5-mini")[2]))["series"]}


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:80", "evil@x"])
def test_a_foreign_host_name_is_refused(served, host):
    status, _, body = served.get("/", host=host)
    assert status == 421
    assert "--allow-host" in body


@pytest.mark.parametrize("host", ["localhost", "localhost:8484", "127.0.0.1:1", "[::1]:8484", "LOCALHOST"])
def test_its_own_names_are_answered(served, host):
    assert served.get("/health", host=host)[0] == 200


def test_a_named_host_is_answered(busy, serve):
    served = serve(busy, allow_hosts=["usage.example"])
    assert served.get("/health", host="usage.example:8484")[0] == 200


def test_an_address_that_others_reach_needs_a_token(meter):
    with pytest.raises(ConfigurationError, match="make tokens"):
        dashboard.serve(meter, host="0.0.0.0")  # noqa: S104 - what is refused
    with pytest.raises(ConfigurationError, match="at least 16 characters"):
        dashboard.serve(meter, host="0.0.0.0", token="guess")  # noqa: S104 - as above


@pytest.mark.parametrize("host", ["999.1.1.1", "192.0.2.77", "no-such-host.invalid", "a" * 70 + ".invalid"])
def test_a_host_that_is_no_address_here_is_told_in_one_line(meter, host, caplog):
    with pytest.raises(ConfigurationError, match=r"is no address of this machine; --host takes 127\.0\.0\.1"):
        dashboard.serve(meter, host=host, port=0, token=TOKEN)
    assert not caplog.records


def test_a_port_that_is_taken_or_none_is_told_in_one_line(meter, caplog):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"Port {port} of 127\.0\.0\.1 is taken.*another --port"):
            dashboard.serve(meter, port=port)
    with pytest.raises(ConfigurationError, match="70000 is no port"):
        dashboard.serve(meter, port=70_000)
    assert not caplog.records


def test_without_the_token_nothing_is_shown(busy, serve):
    served = serve(busy, token=TOKEN)
    for path in (*PATHS, "/events", "/static/chart.js", "/entries/x"):
        assert served.get(path)[0] == 401, path
        assert served.get(path, cookie="tokenmeter_dashboard=00")[0] == 401
        status, headers, _ = served.get(path, accept="text/html")
        assert (status, headers["location"]) == (303, "/login")
    assert served.get("/", authorization="Bearer wrong")[0] == 401
    assert served.get("/", authorization=f"Bearer {TOKEN}")[0] == 200
    assert served.get("/login")[0] == 200
    assert served.get("/static/../entries", authorization="")[0] in {401, 404}


def test_the_cookie_is_strict_and_ends_with_the_process(busy, serve):
    form = {"content_type": "application/x-www-form-urlencoded"}
    first, second = serve(busy, token=TOKEN), serve(busy, token=TOKEN)
    status, headers, _ = first.get("/login", method="POST", body=f"token={TOKEN}", **form)
    assert status == 303
    assert "httponly" in headers["set-cookie"].lower()
    assert "samesite=strict" in headers["set-cookie"].lower()
    cookie = headers["set-cookie"].partition(";")[0]
    assert first.get("/", cookie=cookie)[0] == 200
    assert second.get("/", cookie=cookie)[0] == 401
    assert first.get("/login", method="POST", body="token=wrong", **form)[0] == 401


def test_mistakes_in_the_url_are_explained(served):
    for query, words in (
        ("period=nonsense", "Unknown period"),
        ("colour=red", "Unknown dimension"),
        ("tz=Mars/Base", "Unknown time zone"),
        ("granularity=minute", "Unknown granularity"),
        ("since=2026-12-01&until=2026-11-01", "2026"),
        ("since=0001-01-01&tz=Asia/Tokyo", "cannot be shown"),
    ):
        status, _, body = served.get(f"/?{query}")
        assert status == 400, query
        assert words in body
    assert served.get("/entries/none")[0] == 404
    assert served.get("/export/secrets.csv")[0] == 404
    assert served.get("/nowhere")[0] == 404


def test_keys_and_secrets_are_not_on_any_page(served, busy):
    entry = next(busy.store.entries())
    secret = busy.store.secret().hex()
    for path in (*PAGES, f"/entries/{entry.entry_id}"):
        body = served.get(path)[2]
        assert "f" * 24 not in body
        assert secret not in body


def test_a_key_without_an_alias_is_not_told_by_its_fingerprint(serve, make_meter):
    """Its budget counts by the fingerprint; it is called by its last four characters, as in alerts and stops."""
    key = ApiKey("0123456789abcdef" * 2, "wxyz")
    made = make_meter([{"api_key": "*", "limit_usd": 5}])
    recorded = Entry(
        occurred_at=datetime.now(UTC),
        provider="openai",
        endpoint="chat.completions",
        operation="chat",
        request_model="gpt-5",
        api_key=key,
        billed_cost=Decimal(6),
    )
    made.store.settle(recorded, made.budgets.postings(recorded))
    served = serve(made)
    for path in (*PAGES, f"/entries/{recorded.entry_id}"):
        body = served.get(path)[2]
        assert key.fingerprint not in body, path
    told = served.get("/budgets")[2]
    assert "...wxyz" in told
    assert "0123…" not in told


def test_entries_are_paged_without_gaps_or_repetitions(meter, serve, record):
    at = datetime.now(UTC) - timedelta(hours=1)
    known = [record(at=at if number % 3 else at - timedelta(minutes=number)).entry_id for number in range(120)]
    served = serve(meter)
    seen, path = [], "/entries"
    while path:
        body = served.get(path)[2]
        seen += re.findall(r'<th scope="row"><a href="/entries/(\w+)', body)
        older = re.search(r'rel="next" href="([^"]+)"', body)
        path = older[1].replace("&amp;", "&") if older else None
    assert len(seen) == 120
    assert set(seen) == set(known)


@pytest.mark.parametrize("in_front", ["", "/api"], ids=["taken off by a proxy", "left on"])
def test_it_works_below_an_application_that_names_its_root_path(filed, run_server, in_front):
    """As FastAPI(root_path="/api") does behind a proxy: the path may begin with it, or not."""
    inner = Starlette(routes=[Mount("/usage", dashboard.app(filed, token=TOKEN))])

    async def application(scope, receive, send):
        await inner({**scope, "root_path": "/api"}, receive, send)

    served = run_server(
        uvicorn.Server(uvicorn.Config(application, port=0, log_level="error", ws="none", lifespan="off"))
    )
    base, let_in = f"{in_front}/usage", {"authorization": f"Bearer {TOKEN}"}
    assert served.get(f"{base}/", accept="text/html")[1]["location"] == "/api/usage/login"
    assert served.get(f"{base}/login")[0] == 200
    assert served.get(f"{base}/entries")[0] == 401
    for path in ("", "entries", "static/dashboard.css", "api/v1/budgets"):
        assert served.get(f"{base}/{path}", **let_in)[0] == 200, path
    assert served.get(f"{base}/api/usage/entries", **let_in)[0] == 404


@pytest.mark.parametrize(
    ("mounted", "base"),
    [("/inside/usage", "/inside/usage"), ("/our team/ü&#%41;?", "/our%20team/%C3%BC&%23%2541%3B%3F")],
)
def test_it_works_under_a_path_of_another_application(filed, run_server, mounted, base):
    """Links, redirects and the session's cookie have the path as a browser asks for it."""
    application = Starlette(routes=[Mount(mounted, dashboard.app(filed, token=TOKEN))])
    served = run_server(
        uvicorn.Server(uvicorn.Config(application, port=0, log_level="error", ws="none", lifespan="off"))
    )
    assert served.get(f"{base}/", accept="text/html")[1]["location"] == f"{base}/login"
    login = served.get(f"{base}/login", method="POST", body=f"token={TOKEN}")[1]
    assert login["location"] == f"{base}/"
    assert f"path={base}/;" in f"{login['set-cookie']};".replace("Path=", "path=")
    let_in = {"authorization": f"Bearer {TOKEN}"}
    for path in (
        "",
        "entries",
        "budgets",
        "health",
        "static/dashboard.css",
        "static/chart.js",
        "export/report.csv",
    ):
        assert served.get(f"{base}/{path}", **let_in)[0] == 200, path
    for path in ("/invoices", "/invoices/INV-00001", "/credit-notes/CN-00001", "/periods/1", "/reconciliations", "/"):
        body = served.get(f"{base}{path}", **let_in)[2]
        links = re.findall(r'(?:href|src|action|data-events)="([^"#][^"]*)"', body)
        assert links
        assert all(html.unescape(link).startswith(f"{base}/") for link in links)
    assert all(link.startswith(f"{base}/") for link in json.loads(_chart(body))["links"])
    assert served.get(f"{base}/?add=member&is=ada", **let_in)[1]["location"] == f"{base}/?member=ada"


def _chart(body):
    return re.search(r'<script type="application/json">(.*?)</script>', body, re.DOTALL)[1]


@pytest.mark.parametrize("what", ["report", "entries", "charges"])
def test_every_form_of_a_download_says_the_same(served, busy, what):
    rows = list(csv.DictReader(io.StringIO(served.get(f"/export/{what}.csv?by=model")[2])))
    lines = [json.loads(line) for line in served.get(f"/export/{what}.jsonl?by=model")[2].splitlines()]
    assert len(rows) == len(lines) > 0
    for row, line in zip(rows, lines, strict=True):
        assert (row["model"], Decimal(row["billed_cost"] or 0)) == (line["model"], Decimal(line["billed_cost"] or 0))
    for form, begins in (("xlsx", b"PK"), ("parquet", b"PAR1")):
        assert served.get(f"/export/{what}.{form}?by=model", binary=True)[2].startswith(begins), form


def test_a_download_that_is_too_large_is_refused_with_what_to_do(served, busy, monkeypatch):
    monkeypatch.setattr(downloads, "_MOST_CALLS", 13)
    for what in ("entries.csv", "charges.xlsx", "focus.zip"):
        status, _, page = served.get(f"/export/{what}")
        assert (status, "14 calls" in page, "shorter period" in page) == (400, True, True), what
        assert served.get(f"/export/{what}?member=bob", binary=True)[0] == 200, what
    assert served.get("/export/report.csv")[0] == 200


def test_only_some_downloads_are_made_at_once(served, monkeypatch):
    monkeypatch.setattr(downloads, "_slots", threading.BoundedSemaphore(1))
    with downloads._slots:
        status, headers, _ = served.get("/export/entries.csv")
        assert (status, headers["retry-after"]) == (503, "10")
    assert served.get("/export/entries.csv")[0] == 200


def test_a_fault_of_ours_is_a_page_or_a_problem_that_tells_nothing_of_it(served, busy, monkeypatch):
    monkeypatch.setattr(type(busy.store), "entry", lambda *_: 1 / 0)
    for path, form in (("/entries/x", "text/html; charset=utf-8"), ("/api/v1/entries/x", "application/problem+json")):
        status, headers, body = served.get(path)
        assert (status, headers["content-type"], headers["x-frame-options"]) == (500, form, "DENY")
        assert "the log of the server says what" in body
        assert "ZeroDivision" not in body


def test_an_empty_ledger_tells_how_to_make_the_first_call(meter, serve):
    served = serve(meter)
    for path in ("/", "/?period=all"):
        body = served.get(path)[2]
        assert "No call is recorded yet" in body
        assert "from tokenmeter.openai import OpenAI" in body
    for path, where in (("/entries", "Look at all time"), ("/entries?period=all", "The ledger has no call yet.")):
        body = served.get(path)[2]
        assert "Nothing here" in body
        assert where in body
        assert "Remove a filter" not in body
    assert "Nothing of member <bdi>nobody</bdi> stands in" in served.get("/statements?account=member&of=nobody")[2]


def test_many_viewers_share_one_look():
    """One prober, however many watch; it rests when the last has gone."""

    async def watch():
        state = ["a"]
        pulse = Pulse(lambda: state[0])
        streams = [pulse.events() for _ in range(50)]
        for stream in streams:
            assert "retry" in await anext(stream)
            assert "data: a" in await anext(stream)
        looks = pulse.looks
        state[0] = "b"
        told = await asyncio.gather(*(anext(stream) for stream in streams))
        assert set(told) == {"event: change\ndata: b\n\n"}
        assert pulse.looks - looks < len(streams)
        for stream in streams:
            await stream.aclose()
        looks = pulse.looks
        await asyncio.sleep(1.0)
        assert pulse.looks == looks

    asyncio.run(watch())


def test_a_page_is_read_anew_only_after_a_new_entry(busy, serve, record, monkeypatch):
    """A few questions to the kept sums, no entry; the next viewers ask nothing."""
    asked = []
    monkeypatch.setattr(busy.store, "aggregate", _counted(busy.store.aggregate, asked))
    monkeypatch.setattr(busy.store, "entries", _counted(busy.store.entries, asked))
    served = serve(busy)
    hold = Reservation(
        reservation_id="r1",
        created_at=datetime.now(UTC),
        expires_at=datetime.now(UTC) + timedelta(minutes=5),
        claims=(),
        call=record(at=datetime(2020, 1, 1, tzinfo=UTC)),
        owner="test",
    )
    for path, questions in (("/", 4), ("/?team=search&period=last-7d", 4), ("/explore?by=model", 3)):
        asked.clear()
        body = served.get(path)[2]
        assert len(asked) == questions, path
        busy.store.reserve(hold)  # a call on its way changes no sum
        assert served.get(path)[2] == body
        busy.store.release("r1")
        assert len(asked) == questions, path
        record(who={"member": "ada", "team": "search"})
        assert served.get(path)[2] != body
        assert len(asked) == 2 * questions, path


def _counted(method, calls):
    return lambda *given, **options: (calls.append(method.__name__), method(*given, **options))[1]


def test_a_call_between_two_first_looks_is_not_missed():
    """The viewer's own look sees the ledger before the call, the watcher's first one after it."""

    async def watch():
        states = iter("a")
        pulse = Pulse(lambda: next(states, "b"))
        stream = pulse.events()
        told = [await anext(stream) for _ in range(2)]
        told.append(await asyncio.wait_for(anext(stream), 60))
        assert {line[-3] for line in told[1:]} == {"a", "b"}
        await stream.aclose()

    asyncio.run(watch())


def test_a_call_on_its_way_is_told_only_where_holds_are_shown():
    async def watch():
        state = ["7.0"]
        pulse = Pulse(lambda: state[0])
        narrow, wide = pulse.events(entries_of), pulse.events()
        for stream, data in ((narrow, "7"), (wide, "7.0")):
            await anext(stream)
            assert f"data: {data}\n" in await anext(stream)
        state[0] = "7.1"
        assert "data: 7.1\n" in await anext(wide)
        state[0] = "8.1"
        assert "data: 8.1\n" in await anext(wide)
        assert "data: 8\n" in await anext(narrow)
        for stream in (narrow, wide):
            await stream.aclose()

    asyncio.run(watch())


def test_spend_that_nobody_knows_is_compared_with_nothing(meter, serve, record):
    """Two weeks of calls without a price: neither this week nor the one before it cost $0.00."""
    for days in (2, 9):
        record(model="unheard-of-1", at=datetime.now(UTC) - timedelta(days=days))
    page = serve(meter).get("/?period=last-7d")[2]
    assert "unpriced</span> in the same length of time before" in page
    assert "no change" not in page.partition("Requests</dt>")[0]


def test_the_event_stream_tells_of_a_call(meter, serve, record):
    served = serve(meter)
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.request("GET", "/events")
    answer = connection.getresponse()
    assert answer.getheader("content-type").startswith("text/event-stream")
    lines = iter(answer.readline, b"")
    first = next(line for line in lines if line.startswith(b"data:"))
    record(who={"member": "ada"})
    second = next(line for line in lines if line.startswith(b"data:"))
    assert second != first
    connection.close()


def test_the_command_serves_the_ledger_it_is_given(busy, tmp_path):
    command = [sys.executable, "-m", "tokenmeter", "dashboard", "--port", "0", "--store", busy.store.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        line = process.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", line)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/")
        assert ">14<" in connection.getresponse().read().decode()
        connection.close()
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.communicate(timeout=20)[0]
    finally:
        process.kill()
        process.wait(60)
        process.stdout.close()


def test_the_command_names_a_missing_ledger(tmp_path):
    command = [sys.executable, "-m", "tokenmeter", "dashboard", "--store", f"sqlite:///{tmp_path}/none.db"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "There is no ledger" in done.stderr
    assert not (tmp_path / "none.db").exists()


@pytest.fixture
def dense(busy, monkeypatch):
    """`busy` as if it was so large that its sums are read faster packed; and a way to see which are."""
    pytest.importorskip("numpy")
    monkeypatch.setattr(packing, "_MANY", 1)
    monkeypatch.setattr(packing, "_DENSE", 0)

    def packed():
        for thread in threading.enumerate():
            if thread.name == "tokenmeter-pack":
                thread.join()
        return busy.store._ask("SELECT count(*) FROM packed_sums")[0][0]

    return packed


def test_a_server_packs_sums_while_nobody_asks(dense, busy, serve):
    serve(busy)
    assert dense() > 0


def test_in_another_server_sums_are_packed_after_the_first_question(dense, busy, run_server, monkeypatch):
    monkeypatch.setattr(reading, "_QUIET", 0)
    application = dashboard.app(busy)
    served = run_server(
        uvicorn.Server(uvicorn.Config(application, port=0, log_level="error", ws="none", lifespan="off"))
    )
    assert dense() == 0
    assert served.get("/healthz")[0] == 200
    assert dense() > 0


def test_while_somebody_asks_nothing_is_packed_and_a_stop_is_not_waited_for(dense, busy, monkeypatch):
    monkeypatch.setattr(reading, "_QUIET", 10**6)
    packer = reading.Packer(busy.store)
    packer.wait_for()
    packer.begin()
    packer.stop()
    assert dense() == 0
    monkeypatch.setattr(reading, "_QUIET", 0)
    packer.begin()
    assert dense() > 0


def test_a_round_of_packing_begins_once_an_hour(dense, busy, monkeypatch):
    packer = reading.Packer(busy.store)
    packer.begin()
    assert dense() > 0
    busy.store._change(lambda connection: connection.execute("DELETE FROM packed_sums"))
    packer.begin()
    assert dense() == 0
    monkeypatch.setattr(reading, "_EVERY", 0)
    packer.begin()
    assert dense() > 0


def test_a_ledger_that_is_closed_while_its_sums_are_packed_ends_the_round(dense, busy, monkeypatch):
    quiet = reading.Packer._is_quiet
    monkeypatch.setattr(reading.Packer, "_is_ready", lambda packer: busy.close() or quiet(packer))
    failed = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    packer = reading.Packer(busy.store)
    packer.begin()
    packer._thread.join()
    assert failed == []


def test_an_alert_says_since_when_its_budget_counted(make_meter, record_in, serve):
    """A budget that began within its window counts nothing from before."""
    year = datetime.now(UTC).year
    starts = f"{year}-01-01T00:00:01+00:00"
    budgets = [
        {"limit_tokens": 10, "period": "total", "name": "from then on", "starts": starts},
        {"limit_requests": 1, "period": "total", "name": "for ever"},
    ]
    meter = make_meter(budgets)
    record_in(meter)
    page = serve(meter).get("/budgets")[2]
    told = re.findall(r"<td><bdi>(from then on|for ever)</bdi>.*?<td class=\"extra\">(.*?)</td>", page, re.DOTALL)
    assert {(name, "01 Jan" in since or f"{year}-01-01" in since or "1 Jan" in since) for name, since in told} == {
        ("from then on", True),
        ("for ever", False),
    }
