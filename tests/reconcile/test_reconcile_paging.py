"""Fetching: pages are read to the end, rate limits are waited out, an interrupted run goes on where it stopped."""

import asyncio
import json
import threading
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from tokenmeter.errors import ConfigurationError, ReconciliationError
from tokenmeter.periods import parse_period
from tokenmeter.reconciliation import openai as openai_books
from tokenmeter.reconciliation import paging, reconcile
from tokenmeter.reconciliation.paging import ReportPages
from tokenmeter.reconciliation.statement import ExchangeRates


class HTTPError(Exception):
    request: str | None = None

    def __init__(self, status, **headers):
        super().__init__(f"HTTP {status}")
        self.status_code = status
        self.response = SimpleNamespace(headers={name.replace("_", "-"): value for name, value in headers.items()})


def failing(*errors, result=None):
    left = list(errors)

    def fetch():
        if left:
            raise left.pop(0)
        return result or {"data": []}

    return fetch


def test_rate_limits_are_waited_out_as_long_as_they_say():
    waits = []
    pages = ReportPages(sleep=waits.append)
    page = pages.get("x", {}, failing(HTTPError(429, retry_after="7"), HTTPError(503), result={"data": [1.5]}))
    assert waits == [7.0, 2.0]
    assert page == {"data": [Decimal("1.5")]}


def test_a_wait_is_never_endless():
    waits = []
    ReportPages(sleep=waits.append).get("x", {}, failing(HTTPError(429, retry_after="86400")))
    assert waits == [120.0]


def test_a_date_to_retry_at_is_understood():
    waits = []
    ReportPages(sleep=waits.append).get("x", {}, failing(HTTPError(429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT")))
    assert waits == [0.0]


@pytest.mark.parametrize(("provider", "begin"), [("openai", "sk-admin-"), ("anthropic", "sk-ant-admin")])
def test_a_refused_key_says_which_key_reports_need(meter, provider, begin):
    def refuse(*_, **__):
        raise HTTPError(403)

    with pytest.raises(ReconciliationError, match=rf"need an admin key \({begin}\.\.\.\), which an admin"):
        reconcile(meter.store, provider=provider, period="2026-11", source=SimpleNamespace(get=refuse))


def test_an_answer_that_breaks_off_is_asked_for_again_and_told_if_it_stays():
    """A proxy's page or half a page is no change of the report's shape, and passes as an overloaded host does."""
    cut = json.JSONDecodeError("Expecting value", "<html>", 0)
    waits = []
    assert ReportPages(sleep=waits.append).get("x", {}, failing(cut, cut)) == {"data": []}
    assert waits == [1.0, 2.0]
    with pytest.raises(ReconciliationError, match="gave no JSON for x; nothing was compared"):
        ReportPages(sleep=waits.append).get("x", {}, failing(*[cut] * 20))


@pytest.mark.parametrize(("sdk", "key", "more"), [
    ("openai", "admin_api_key", {}), ("anthropic", "api_key", {}), ("anthropic", "api_key", {"reports": "classic"}),
])  # fmt: skip
def test_a_proxys_page_in_place_of_a_report_is_asked_for_again(meter, monkeypatch, sdk, key, more):
    """With HTTP 200 and its own type an SDK hands it out as text, or fails on it as on no page of rows."""
    module = pytest.importorskip(sdk)
    asked = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            first = len(asked) == 1
            body = b"<html>Back soon</html>" if first else b'{"data": [], "has_more": false, "next_page": null}'
            self.send_response(200)
            self.send_header("content-type", "text/html" if first else "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(paging, "_wait", lambda *_: 0)
    with HTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        make = module.OpenAI if sdk == "openai" else module.Anthropic
        try:
            outcome = reconcile(
                meter.store, provider=sdk, period="2026-11", source=make(base_url=url, **{key: "sk-admin-1"}), **more
            )
        finally:
            server.shutdown()
            thread.join()
    assert outcome.theirs.cost == 0
    assert asked[0] == asked[1]


@pytest.mark.parametrize(
    "said", ["Wed, 21 Oct 2015 07:28:00 -0000", "nan", "-5", "soon", "", "Wed, 99 Oct 2015 07:28:00 GMT", "inf"]
)
def test_whatever_a_host_says_of_when_to_come_back_is_a_wait_of_some_seconds(said):
    waits = []
    ReportPages(sleep=waits.append).get("x", {}, failing(HTTPError(429, retry_after=said)))
    (wait,) = waits
    assert 0 <= wait <= 120


def test_an_error_that_will_not_pass_is_told_at_once_and_is_the_cause():
    wrong = HTTPError(400)
    with pytest.raises(ReconciliationError, match=r"did not show x \(HTTP 400\); nothing was compared") as told:
        ReportPages(sleep=pytest.fail).get("x", {}, failing(wrong))
    assert told.value.__cause__ is wrong


def test_a_provider_that_keeps_refusing_is_told_with_its_error():
    with pytest.raises(ReconciliationError, match="HTTP 429"):
        ReportPages(sleep=lambda _: None).get("x", {}, failing(*[HTTPError(429)] * 20))


def test_a_host_that_does_not_answer_is_told():
    lost = HTTPError(None)
    lost.request = "GET https://one.example"  # as the SDKs' errors have it that no answer came for
    with pytest.raises(ReconciliationError, match="cannot be reached"):
        ReportPages().get("x", {}, failing(lost))


def test_an_answer_that_is_no_report_is_not_remembered(tmp_path):
    path = tmp_path / "pages.jsonl"
    with pytest.raises(ReconciliationError, match="no list of data"):
        ReportPages(resume=path).get("x", {}, lambda: {"data": None})
    assert ReportPages(resume=path).get("x", {}, lambda: {"data": [1]}) == {"data": [1]}


def test_an_async_client_is_refused_in_words():
    async def fetch():
        await asyncio.sleep(0)

    with pytest.raises(ConfigurationError, match="sync client"):
        ReportPages().get("x", {}, fetch)


def test_an_interrupted_run_does_not_fetch_again(tmp_path):
    """Pages are remembered as they come, even when the last line was cut."""
    path, told = tmp_path / "pages.jsonl", []
    ReportPages(resume=path).get("x", {"page": 1}, lambda: {"data": [1]})
    with path.open("a") as file:
        file.write('{"key": "x')
    again = ReportPages(resume=path, progress=lambda *news: told.append(news))
    assert again.get("x", {"page": 1}, lambda: pytest.fail("fetched again")) == {"data": [1]}
    assert again.get("x", {"page": 2}, lambda: {"data": [2]}) == {"data": [2]}
    assert [news[:2] for news in told] == [("x", 1), ("x", 2)]


def test_every_page_is_read():
    """Also by an SDK too old to know the reports, through a plain GET."""
    asked = []

    class Client:
        def get(self, path, *, cast_to):
            asked.append(path)
            first = "page=next" not in path
            start = 1794268800 if first else 1794355200
            results = [{"input_tokens": 5, "num_model_requests": 1, "model": "m", "amount": {"value": 0.5}}]
            data = [{"start_time": start, "results": results}]
            return {"data": data, "has_more": first, "next_page": "next" if first else None}

    statement = openai_books.fetch(
        Client(), parse_period("2026-11"), by=("model",), pages=ReportPages(), rates=ExchangeRates({})
    )
    assert [line.bucket.day.day for line in statement.usage] == [10, 11] * 3
    assert [line.amount for line in statement.costs] == [Decimal("0.5")] * 2
    assert asked[0].startswith("/organization/usage/completions?start_time=")
    assert "group_by%5B%5D=model" in asked[0]


def test_a_second_run_with_the_same_file_agrees(ask, check, provider, tmp_path):
    ask("openai")
    outcome = check("openai", resume=tmp_path / "pages.jsonl")
    assert outcome.discrepancies == ()
    before = len(provider.truth)
    assert check("openai", resume=tmp_path / "pages.jsonl").discrepancies == ()
    assert len(provider.truth) == before


class Broken:
    """A client whose reports misbehave as `page` says."""

    base_url, api_key = "https://one.example", "sk-admin-1"

    def __init__(self, page):
        self.page = page

    def get(self, _path, *, cast_to):
        return self.page


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ({"data": [], "has_more": True, "next_page": "again"}, "same page of .* again and again"),
        ({"data": [], "has_more": True, "next_page": None}, "goes on, but not where"),
        ({"data": None, "has_more": False}, "has no list of data"),
        ({"error": "nope"}, "has no list of data"),
        ({"data": [{"results": [{}]}], "has_more": False}, "not in the shape they are documented in"),
        ({"data": [{"start_time": 10**18, "starting_at": 9}]}, "not in the shape they are documented in"),
    ],
)
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_reports_that_misbehave_end_with_words_and_are_never_half_compared(meter, provider, page, message):
    with pytest.raises(ReconciliationError, match=message):
        reconcile(meter.store, provider=provider, period="2026-10", source=Broken(page))


def test_remembered_pages_belong_to_one_organization_and_key(tmp_path):
    path = tmp_path / "pages.jsonl"
    ReportPages(resume=path, whose="a").get("x", {}, lambda: {"data": ["of a"]})
    assert ReportPages(resume=path, whose="b").get("x", {}, lambda: {"data": ["of b"]}) == {"data": ["of b"]}
    assert ReportPages(resume=path, whose="a").get("x", {}, lambda: pytest.fail("fetched")) == {"data": ["of a"]}
    assert "sk-admin" not in path.read_text()


def test_an_amount_in_another_currency_is_not_read_as_dollars(meter):
    results = [{"line_item": "gpt-5, input", "amount": {"value": 1.5, "currency": "eur"}}]
    costs = {"data": [{"start_time": 1791000000, "results": results}], "has_more": False}
    usage = {"data": [], "has_more": False}

    class Client(Broken):
        def get(self, path, *, cast_to):
            return costs if "/costs" in path else usage

    with pytest.raises(ReconciliationError, match="is in EUR"):
        reconcile(meter.store, provider="openai", period="2026-10", source=Client(None))
    outcome = reconcile(
        meter.store, provider="openai", period="2026-10", source=Client(None), exchange_rates={"eur": "1.10"}
    )
    assert outcome.theirs.cost == Decimal("1.65")


DAY = 86_400
OCTOBER = 1_790_812_800


def told_by_openai(day=0, **more):
    """A bucket of OpenAI's usage or costs, on a day of October 2026."""
    row = {"model": "gpt-5", "num_model_requests": 1, "input_tokens": 5, "output_tokens": 1, **more}
    return {"start_time": OCTOBER + day * DAY, "end_time": OCTOBER + (day + 1) * DAY, "results": [row]}


def told_by_anthropic(day=0, **more):
    """The same of Anthropic's older reports."""
    row = {"model": "claude-sonnet-5", "uncached_input_tokens": 5, "output_tokens": 1, "amount": "1.5", **more}
    row |= {"currency": "USD", "cost_type": "tokens", "token_type": "output_tokens"}
    starts, ends = (f"2026-10-{number:02d}T00:00:00Z" for number in (day + 1, day + 2))
    return {"starting_at": starts, "ending_at": ends, "results": [row]}


class Paged(Broken):
    """A client whose reports have pages: `page(number)` gives one by the number in its token."""

    def get(self, path, *, cast_to):
        del cast_to
        return self.page(int(path.rpartition("page=")[2]) if "page=" in path else 0)


TOLD = {
    "openai": lambda day=0, **more: told_by_openai(
        day, **{"line_item": "gpt-5, input", "amount": {"value": 1}, **more}
    ),
    "anthropic": told_by_anthropic,
}


def compared(meter, provider, page):
    return reconcile(meter.store, provider=provider, period="2026-10", source=Paged(page))


@pytest.mark.parametrize("pages", [1, 2, 3], ids=lambda pages: f"{pages} in turn")
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_pages_that_come_again_under_ever_new_tokens_are_no_endless_month(meter, provider, pages):
    def page(number):
        return {"data": [TOLD[provider](number % pages)], "has_more": True, "next_page": str(number + 1)}

    with pytest.raises(ReconciliationError, match="again and again"):
        compared(meter, provider, page)


@pytest.mark.parametrize("bound", ["_MOST_PAGES", "_LONGEST_REPORT"])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_report_that_always_has_another_page_of_new_rows_ends(meter, provider, bound, monkeypatch):
    monkeypatch.setattr(paging, bound, {"_MOST_PAGES": 20, "_LONGEST_REPORT": 0}[bound])
    asked = []

    def page(number):
        asked.append(number)
        return {"data": [TOLD[provider](0, model=f"m{number}")], "has_more": True, "next_page": str(number + 1)}

    with pytest.raises(ReconciliationError, match=r"goes on after \d+ pages? and .*nothing was compared"):
        compared(meter, provider, page)
    assert len(asked) == {"_MOST_PAGES": 20, "_LONGEST_REPORT": 1}[bound]


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_empty_pages_are_passed_over_but_not_for_ever(meter, provider):
    def thin(number):
        data = [TOLD[provider](number)] if number % 3 == 0 else []
        return {"data": data, "has_more": number < 9, "next_page": str(number + 1) if number < 9 else None}

    assert compared(meter, provider, thin).theirs.tokens == 6 * 4 * (3 if provider == "openai" else 1)
    with pytest.raises(ReconciliationError, match="again and again"):
        compared(meter, provider, lambda number: {"data": [], "has_more": True, "next_page": str(number + 1)})


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_day_that_two_pages_have_counts_once_and_is_told(meter, provider):
    """A cursor that is off by one: page 0 has days 0 and 1, page 1 days 1 and 2."""

    def page(number):
        data = [TOLD[provider](number), TOLD[provider](number + 1)]
        return {"data": data, "has_more": number == 0, "next_page": None if number else "1"}

    once = compared(meter, provider, lambda _: {"data": [TOLD[provider](day) for day in range(3)], "has_more": False})
    found = compared(meter, provider, page)
    assert (found.theirs.tokens, found.theirs.cost) == (once.theirs.tokens, once.theirs.cost)
    assert any("on an earlier page as well" in note for note in found.notes)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_days_that_nobody_asked_for_are_left_out_and_told(meter, provider):
    asked = compared(meter, provider, lambda _: {"data": [TOLD[provider](0)], "has_more": False})
    more = told_by_openai(40, line_item="gpt-5, input", amount={"value": 1})
    if provider == "anthropic":
        more = {**told_by_anthropic(), "starting_at": "2026-11-10T00:00:00Z", "ending_at": "2026-11-11T00:00:00Z"}
    found = compared(meter, provider, lambda _: {"data": [TOLD[provider](0), more], "has_more": False})
    assert (found.theirs.tokens, found.theirs.cost) == (asked.theirs.tokens, asked.theirs.cost)
    assert any("outside 2026-10" in note for note in found.notes)


@pytest.mark.parametrize(
    ("more", "tokens"),
    [
        ({"num_model_requests": None, "requests": None}, 6),
        ({"input_tokens": None, "uncached_input_tokens": None}, 1),
        ({"input_tokens": "5", "uncached_input_tokens": "5", "output_tokens": "1"}, 6),
        ({"input_cached_tokens": None, "cache_creation": None, "server_tool_use": None}, 6),
        ({"cache_creation": {"ephemeral_5m_input_tokens": None}}, 6),
    ],
    ids=["requests", "input", "texts", "nulls", "a null within"],
)
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_counts_that_are_null_or_text_are_read(meter, provider, more, tokens):
    found = compared(meter, provider, lambda _: {"data": [TOLD[provider](**more)], "has_more": False})
    kinds = 3 if provider == "openai" else 1  # completions, embeddings, moderations
    assert found.theirs.tokens == kinds * tokens


@pytest.mark.parametrize("amount", [None, "", "NaN", float("nan"), "Infinity", True, "much"])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_an_amount_that_is_none_is_never_zero(meter, provider, amount):
    told = {"amount": {"value": amount}} if provider == "openai" else {"amount": amount}
    with pytest.raises(ReconciliationError):
        compared(meter, provider, lambda _: {"data": [TOLD[provider](**told)], "has_more": False})


@pytest.mark.parametrize("count", [-1, "1.5", True, "many"])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_count_that_is_none_is_refused(meter, provider, count):
    with pytest.raises(ReconciliationError, match="output_tokens"):
        compared(meter, provider, lambda _: {"data": [TOLD[provider](output_tokens=count)], "has_more": False})
