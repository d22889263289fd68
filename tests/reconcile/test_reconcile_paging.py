"""Fetching: pages are read to the end, rate limits are waited out, an interrupted run goes on where it stopped."""

import asyncio
from decimal import Decimal
from types import SimpleNamespace

import pytest

from tokenmeter.errors import ConfigurationError, ReconciliationError
from tokenmeter.periods import parse_period
from tokenmeter.reconciliation import openai as openai_books
from tokenmeter.reconciliation import reconcile
from tokenmeter.reconciliation.paging import ReportPages


class HTTPError(Exception):
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


def test_a_refused_key_says_that_reports_need_an_admin_key():
    with pytest.raises(ReconciliationError, match="admin key"):
        ReportPages().get("x", {}, failing(HTTPError(403)))


def test_an_error_that_will_not_pass_is_raised_at_once():
    with pytest.raises(HTTPError):
        ReportPages(sleep=pytest.fail).get("x", {}, failing(HTTPError(400)))


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

    statement = openai_books.fetch(Client(), parse_period("2026-11"), by=("model",), pages=ReportPages(), rates={})
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
