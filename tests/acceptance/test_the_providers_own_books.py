"""``reconcile`` by the command line against an HTTP server that has a provider's reports, and the ways it may fail.

The ledger has October 2025: two calls of gpt-5-mini and two of claude-haiku-4-5, one each day; the books
tell the same on two pages.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("openai")
pytest.importorskip("anthropic")

DAYS = ("2025-10-09", "2025-10-10")
STARTS = (1_759_968_000, 1_760_054_400)
SOON = {"retry-after": "0.01"}


class Books:
    """Reports over HTTP. A test changes what they tell, or what is sent in place of the answer to one request.

    Attributes:
        asked: Path and query of each request.
        faults: Path's ending and page ("" is the first) -> answers that come before the right one.
        tell: Path -> rows of both days.
    """

    def __init__(self):
        self.asked = []
        self.faults = {}
        self.tell = dict(TOLD)
        books = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                books.answer(self)

            def log_message(self, *_):
                """Nothing on the terminal."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def answer(self, request):
        path, query = urlsplit(request.path).path, parse_qs(urlsplit(request.path).query)
        self.asked.append((path, query))
        page = query.get("page", [""])[0]
        name = (
            path.removeprefix("/moved")
            .removeprefix("/v1/")
            .removeprefix("organization/")
            .removeprefix("organizations/")
        )
        for (ending, on), answers in self.faults.items():
            if name.endswith(ending) and on == page and answers:
                status, headers, body = answers.pop(0)
                break
        else:
            status, headers, body = 200, {}, self.page(name, page)
        if status is None:  # the line is cut in the middle of an answer
            request.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{")
            return
        content = json.dumps(body).encode()
        request.send_response(status)
        for header, value in {"content-type": "application/json", **headers}.items():
            request.send_header(header, value.replace("HERE", self.url))
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        with suppress(OSError):
            request.wfile.write(content)

    def page(self, name, page):
        """A day on each of two pages."""
        days = self.tell.get(name, ((), ()))
        at = 1 if page else 0
        more = {"has_more": not at, "next_page": None if at else "second"}
        if name.startswith("analytics/"):
            return {"data": list(days[at]), "data_refreshed_at": "2025-11-20T00:00:00Z", **more}
        return {"object": "page", "data": [openai_day(at, days[at])], **more}


def openai_day(at, rows):
    return {
        "object": "bucket",
        "start_time": STARTS[at],
        "end_time": STARTS[at] + 86_400,
        "start_time_iso": f"{DAYS[at]}T00:00:00+00:00",
        "results": list(rows),
    }


def openai_usage(tokens=(20_000_000, 2_500_000)):
    return {
        "object": "organization.usage.completions.result",
        "model": "gpt-5-mini-2025-08-07",
        "input_tokens": tokens[0],
        "output_tokens": tokens[1],
        "input_cached_tokens": 0,
        "num_model_requests": 1,
        "a_field_of_next_year": {"x": 1},
    }


def openai_cost(kind, amount=5.0, currency="usd"):
    return {
        "object": "organization.costs.result",
        "amount": {"value": amount, "currency": currency},
        "line_item": f"gpt-5-mini-2025-08-07, {kind}",
        "project_id": None,
    }


def anthropic_item(at, what, values, **group):
    starts = {"starting_at": f"{DAYS[at]}T00:00:00Z", "ending_at": f"2025-10-{10 + at}T00:00:00Z"}
    return {**starts, "group": {"model": "claude-haiku-4-5-20251001", **group}, what: values}


def anthropic_usage(at, **group):
    counts = {"uncached_input_tokens": 2_000_000, "output_tokens": 266_000, "cache_read_input_tokens": 33_333}
    return anthropic_item(at, "usage", {**counts, "requests": 1, "a_field_of_next_year": 1}, **group)


def anthropic_cost(at, kind, cents, currency="USD", **group):
    told = {"amount": cents, "list_amount": cents, "currency": currency}
    return anthropic_item(at, "cost", told, cost_type="tokens", token_type=kind, **group)


def anthropic_costs(at, **more):
    kinds = {"uncached_input_tokens": "200", "output_tokens": "133", "cache_read_input_tokens": "0.33333"}
    return [anthropic_cost(at, kind, cents, **more) for kind, cents in kinds.items()]


TOLD = {
    "usage/completions": ([openai_usage()], [openai_usage()]),
    "costs": ([openai_cost("input"), openai_cost("output")],) * 2,
    "analytics/usage": ([anthropic_usage(0)], [anthropic_usage(1)]),
    "analytics/cost": (anthropic_costs(0), anthropic_costs(1)),
}
#: Provider -> endings of its usage and its costs.
REPORTS = {"openai": ("usage/completions", "costs"), "anthropic": ("analytics/usage", "analytics/cost")}


@pytest.fixture
def books(monkeypatch):
    made = Books()
    monkeypatch.setenv("OPENAI_BASE_URL", f"{made.url}/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", made.url)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin-0123456789")
    monkeypatch.setenv("ANTHROPIC_ADMIN_KEY", "sk-ant-admin-0123456789")
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def run(tmp_path, monkeypatch, run_command):
    """A command line in a folder with the ledger: exit code, what was printed, and what was complained of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    Path("tokenmeter.toml").write_text('store = "sqlite:///usage.db"\n')
    rows = [
        {
            "id": f"{model}-{day}",
            "at": f"{day}T12:00:00Z",
            "m": model,
            "in": before,
            "hit": hit,
            "out": after,
            "p": "shop",
        }
        for day in DAYS
        for model, before, hit, after in (
            ("gpt-5-mini", 20_000_000, 0, 2_500_000),
            ("claude-haiku-4-5", 2_033_333, 33_333, 266_000),
        )
    ]
    Path("log.json").write_text(json.dumps(rows))
    named = "id=id,time=at,model=m,input=in,cache_read=hit,output=out,project=p"
    assert run_command("import", "log.json", "--map", named)[0] == 0

    def command(*arguments):
        code, printed, complaint = run_command(*arguments)
        return code, " ".join(printed.split()), " ".join(complaint.split())

    return command


def reconcile(run, provider, *more):
    return run("reconcile", provider, "--period", "2025-10", *more)


def filed():
    """How many outcomes the ledger keeps."""
    with sqlite3.connect("usage.db") as database:
        return database.execute("SELECT count(*) FROM documents").fetchone()[0]


@pytest.fixture(params=["openai", "anthropic"])
def provider(request):
    return request.param


def test_the_books_on_several_pages_agree(books, run, provider):
    code, said, complaint = reconcile(run, provider)
    assert code == 0, (said, complaint)
    assert filed() == 1
    pages = [query.get("page") for path, query in books.asked if path.endswith(REPORTS[provider])]
    assert pages == [None, ["second"]] * 2


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
@pytest.mark.parametrize("page", ["", "second"])
def test_a_refusal_amid_pages_is_waited_out(books, run, provider, status, page):
    for report in REPORTS[provider]:
        books.faults[report, page] = [(status, SOON, {"error": {"message": "later"}})] * 4
    assert reconcile(run, provider)[0] == 0
    assert not any(books.faults.values())


def test_a_line_that_is_cut_is_asked_again(books, run, provider):
    books.faults[REPORTS[provider][1], "second"] = [(None, {}, None)]
    code, said, complaint = reconcile(run, provider)
    assert code == 0, (said, complaint)


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_is_told_and_nothing_is_kept(books, run, provider, status):
    books.faults[REPORTS[provider][0], ""] = [(status, {}, {"error": {"message": "no"}})] * 9
    code, said, complaint = reconcile(run, provider, "--resume", "pages.jsonl")
    assert code not in {0, 1}
    assert "admin key" in complaint
    assert not said
    assert filed() == 0
    assert "admin-0123456789" not in complaint


def test_a_provider_that_goes_on_refusing_is_told_and_nothing_half_is_kept(books, run, provider):
    books.faults[REPORTS[provider][1], "second"] = [(500, SOON, {"error": {"message": "down"}})] * 99
    code, said, complaint = reconcile(run, provider, "--resume", "pages.jsonl")
    assert code not in {0, 1}
    assert "HTTP 500" in complaint
    assert "nothing was compared" in complaint
    assert not said
    assert filed() == 0
    books.faults.clear()
    books.asked.clear()
    assert reconcile(run, provider, "--resume", "pages.jsonl")[0] == 0
    assert [query.get("page") for _, query in books.asked] == [
        ["second"]
    ]  # what had come before was remembered, and is not asked for again


def test_an_empty_month_of_theirs_is_told_and_nothing_is_proposed(books, run, provider):
    for report in REPORTS[provider]:
        books.tell[report] = ((), ())
    code, said, complaint = reconcile(run, provider, "--json")
    assert code == 1, complaint
    assert not json.loads(said)["posted"]
    assert reconcile(run, provider, "--post")[0] == 1
    assert {one["cause"] for one in json.loads(said)["discrepancies"]} == {"empty"}


def test_an_empty_month_of_both_agrees(books, run, provider):
    code, said, complaint = run("reconcile", provider, "--period", "2025-09")
    assert code == 0, (said, complaint)


def test_fields_that_are_missing_are_nothing_and_another_currency_needs_a_rate(books, run, provider):
    if provider == "openai":
        books.tell["costs"] = ([openai_cost("input", 5.0, "eur"), openai_cost("output", 5.0, "eur")],) * 2
        for row in (row for rows in books.tell["usage/completions"] for row in rows):
            row.pop("input_cached_tokens", None)
    else:
        books.tell["analytics/cost"] = (anthropic_costs(0, currency="EUR"), anthropic_costs(1, currency="EUR"))
    code, _, complaint = reconcile(run, provider)
    assert code not in {0, 1}
    assert "EUR" in complaint
    assert "--rate" in complaint or "exchange_rates" in complaint
    assert reconcile(run, provider, "--rate", "EUR=1")[0] == 0


def test_usage_without_any_cost_is_no_month_for_nothing(books, run, provider):
    books.tell[REPORTS[provider][1]] = ((), ())
    code, said, _ = reconcile(run, provider, "--post")
    assert code == 1
    assert "only tokens were compared, and nothing is proposed" in said
    assert "no costs at all" in said
    assert "0 adjustments were appended" in said


def test_reports_that_moved_are_followed(books, run, provider):
    report = REPORTS[provider][1]
    books.faults[report, "second"] = [(308, {"location": "HERE/moved/v1/organizations/" + report + "?page=second"}, {})]
    code, said, complaint = reconcile(run, provider)
    assert code == 0, (said, complaint)
    assert any(path.startswith("/moved") for path, _ in books.asked)


@pytest.mark.parametrize(("by", "field"), [("api_key", "api_key_id"), ("workspace", "workspace_id")])
def test_ids_of_keys_and_workspaces_are_names_and_never_proposed(books, run, by, field):
    books.tell["analytics/usage"] = [[anthropic_usage(at, **{field: "id_01"})] for at in (0, 1)]
    books.tell["analytics/cost"] = [anthropic_costs(at, **{field: "id_01"}) for at in (0, 1)]
    code, said, _ = reconcile(run, "anthropic", "--by", f"model,{by}", "--json")
    assert code == 1
    assert {one["cause"] for one in json.loads(said)["discrepancies"]} == {"names"}
    code, said, _ = reconcile(run, "anthropic", "--by", f"model,{by}", "--post")
    assert "0 adjustments were appended" in said
    if by == "workspace":
        assert reconcile(run, "anthropic", "--by", "model,workspace", "--project", "id_01=shop")[0] == 0
    assert field in {name for _, query in books.asked for name in query["group_by[]"]}
