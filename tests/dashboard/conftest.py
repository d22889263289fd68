"""A dashboard served over real HTTP, and a real Chromium to look at it."""

from __future__ import annotations

import http.client
import os
import shutil
import sys
import threading
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import tokenmeter
from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.billing import close_period, credit_invoice, draft_invoice, issue_invoice, record_payment
from tokenmeter.ledger import Entry
from tokenmeter.periods import parse_period
from tokenmeter.reconciliation import file_reconciliation, reconcile
from tokenmeter.usage import Consumption, Observation, Usage

pytest.importorskip("starlette", reason="the dashboard needs the extra 'dashboard'")

HOSTILE = '<img src=x onerror="document.title=1">&lt;/script>\'"'
_BUDGETS = [
    {"member": "ada", "limit_usd": "0.05", "name": "ada-monthly"},
    {"limit_tokens": 10**9, "name": "everything"},
]


_NUMBERS = count()


def recorded(meter, *, at=None, model="gpt-5-mini", provider="openai", key="prod", fields=None, who=None, **quantities):
    """Rate and record one call, as the meter does."""
    at = at or datetime.now(UTC)
    usage, owner = Usage(quantities or {"input": 600, "cache_read": 400, "output": 500}), Attribution(**(who or {}))
    api_key = ApiKey(key.encode().hex().ljust(32, "f"), "abcd", key)
    seen = Observation(consumptions=(Consumption(model=model, usage=usage),), response_model=model)
    rating = meter.pricer.rate(
        seen, provider=provider, endpoint="chat.completions", at=at, api_key=api_key, attribution=owner
    )
    known = {
        "occurred_at": at,
        "provider": provider,
        "endpoint": "chat.completions",
        "operation": "chat",
        "request_model": model,
        "response_model": model,
        "response_id": f"resp_{next(_NUMBERS)}",
        "attribution": owner,
        "api_key": api_key,
        "usage": usage,
        "charges": rating.charges,
        "list_cost": rating.list_cost,
        "contracted_cost": rating.contracted_cost,
        "billed_cost": rating.billed_cost,
        "cost_source": rating.cost_source,
    }
    entry = Entry(**{**known, **(fields or {})})
    meter.store.settle(entry, meter.budgets.postings(entry))
    return entry


@pytest.fixture
def record(meter):
    """Record a call in `meter`: `record(model=..., who={"member": "ada"}, input=100)`."""
    return lambda **what: recorded(meter, **what)


@pytest.fixture
def record_in():
    """Record a call in any meter: `record_in(meter, model=...)`."""
    return recorded


@pytest.fixture
def make_meter(tmp_path):
    """A meter on an empty ledger, SQLite unless a URL is given, with a multiplier: `make_meter(budgets)`."""
    made = []

    def make(budgets, url=None):
        url = url or f"sqlite:///{tmp_path / f'usage{len(made)}.db'}"
        made.append(tokenmeter.make_meter(store=url, multiplier="1.05", budgets=budgets))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def meter(make_meter, request):
    """A meter on an empty ledger, with two budgets; on a server where a test asks for ``"postgres"``."""
    on_server = getattr(request, "param", None) == "postgres"
    return make_meter(_BUDGETS, request.getfixturevalue("postgres_url") if on_server else None)


@pytest.fixture
def busy(meter, record):
    """`meter` after a few days: four members (one with a hostile name), an unpriced model, an estimate, a failure."""
    now = datetime.now(UTC)
    for day in range(5):
        at = now - timedelta(days=day, minutes=1)
        record(at=at, who={"member": "ada", "team": "search", "route": "/chat", "tags": {"env": "prod"}})
        record(at=at, who={"member": "bob", "team": "ads", "route": "/summarise"}, key="staging", input=90, output=9)
    record(at=now - timedelta(hours=3), who={"member": HOSTILE, "route": HOSTILE, "tags": {"env": HOSTILE}})
    record(at=now - timedelta(hours=4), model="unheard-of-1", who={"member": "ada"}, input=50, output=5)
    record(
        at=now - timedelta(hours=5), who={"member": "eve"}, fields={"cost_source": "estimated", "flags": ("estimated",)}
    )
    record(at=now - timedelta(hours=6), who={"member": "eve"}, fields={"status": "error", "error_type": "APIError"})
    return meter


@pytest.fixture
def filed(busy, record, tmp_path):
    """`busy` with last month closed and invoiced, something late, a credit note, and two reconciliations."""
    month = parse_period("last-month")
    at = month.start + timedelta(days=9, hours=8)
    for team in ("search", HOSTILE):
        record(at=at, who={"member": "ada", "team": team}, input=1_000_000, cache_read=400_000, output=300_000)
        record(at=at, model="unheard-of-1", who={"member": HOSTILE, "team": team}, input=50, output=5)
    close_period(busy.store, month, by=HOSTILE)
    profile = {
        "seller": {"name": "Platform GmbH", "address": ["Hauptstr. 1"]},
        "taxes": [{"name": "VAT", "rate": 0.19}],
    }
    for team in ("search", HOSTILE):
        draft = draft_invoice(busy.store, team=team, period=month, profile=profile, lines_by="member")
        issue_invoice(busy.store, draft, allow_unpriced=True)
    credit_invoice(busy.store, "INV-00002", [(4, "0.10")], HOSTILE)
    record_payment(busy.store, "INV-00001", reference="wire 7")
    record(at=at, who={"member": "ada", "team": "search"}, input=100_000)
    statement = tmp_path / "statement.csv"
    columns = {"day": "day", "model": "model", "input": "input", "cost": "cost"}
    for rows in (f"{at.date()},gpt-5-mini,9,2.5\n{at.date()},{HOSTILE.replace(chr(34), '')},7,1\n", ""):
        statement.write_text(f"day,model,input,cost\n{rows}")
        period = month if rows else parse_period("2020-01")
        outcome = reconcile(busy.store, provider="openai", period=period, source=statement, columns=columns)
        file_reconciliation(busy.store, outcome)
    return busy


class Served:
    """One running dashboard."""

    def __init__(self, server):
        self._server = server
        self._socket = server.config.bind_socket()
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        while not server.started:
            assert self._thread.is_alive(), "the dashboard did not start"

    def get(self, path, *, method="GET", body=None, binary=False, **headers):
        """One request: status, headers (lower case), body as text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            content = answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()
        text = content if binary or found.get("content-type", "").endswith("zip") else content.decode()
        return answer.status, found, text

    def stop(self):
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


@pytest.fixture
def run_server():
    """Run a uvicorn server until the test's end."""
    running = []

    def start(server):
        running.append(Served(server))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture
def serve(run_server):
    """Serve a meter's dashboard: `serve(meter, token=...)`."""
    from tokenmeter.dashboard.server import make_server

    return lambda meter, **options: run_server(make_server(meter, port=0, **options))


@pytest.fixture
def served(busy, serve):
    """The dashboard of `busy`."""
    return serve(busy)


# -- Chromium

_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]


def _chromium():
    named = os.environ.get("TOKENMETER_TEST_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found if found and Path(found).exists() else None


def _skip(reason):
    loud = f"NO BROWSER TEST RAN: {reason}"
    sys.__stderr__.write(f"\n{'!' * 100}\n{loud}\n{'!' * 100}\n")
    pytest.skip(loud)


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium; every page gets a profile of its own.

    It ends with the module: playwright's loop would be in the way of tests that run one of their own.
    """
    path = _chromium()
    if path is None:
        _skip("no Chromium found; install it (Debian: apt-get install chromium) or set TOKENMETER_TEST_CHROMIUM.")
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError:
        _skip("the package 'playwright' is missing; it is in the dependency group 'test'.")
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium):
    """Open a page: `browse(url, width=360, scheme="dark")`. Errors in its console or scripts fail the test."""
    contexts, faults = [], []

    def start(url, *, width=1440, height=900, scheme="light", expected=(), bypass_csp=False):
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            accept_downloads=True,
            bypass_csp=bypass_csp,
        )
        contexts.append(context)
        context.set_default_timeout(40_000)
        page = context.new_page()
        host = urlsplit(url).netloc
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console",
            lambda line: (
                line.type == "error" and not any(one in line.text for one in expected) and faults.append(line.text)
            ),
        )
        page.on(
            "request",
            lambda request: (
                urlsplit(request.url).netloc != host
                and not request.url.startswith("data:")
                and faults.append(f"asked {request.url}")
            ),
        )
        page.goto(url)
        return page

    yield start
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def hostile():
    """A name that would run as a script where it is not escaped."""
    return HOSTILE
