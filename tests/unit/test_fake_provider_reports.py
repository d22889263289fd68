"""FakeProvider's usage and cost reports agree with its books, in the units and shapes of the providers."""

from __future__ import annotations

import json
import urllib.request
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tokenmeter.testing import FakeProvider, Reports

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

DAY = datetime(2026, 11, 3, tzinfo=UTC)
HELLO = [{"role": "user", "content": "Hello there"}]
METERS = {"input": 700, "cache_read": 300, "output": 200}
PRICES = {
    "gpt-5": {"input": "0.00000125", "cache_read": "0.000000125", "output": "0.00001"},
    "claude-sonnet-5": {"input": "0.000003", "cache_read": "0.0000003", "output": "0.000015", "web_searches": "0.01"},
}


class Clock:
    def __init__(self) -> None:
        self.now = DAY + timedelta(hours=12)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def provider(clock):
    with FakeProvider(clock=clock, reports=Reports(prices=PRICES)) as running:
        yield running


@pytest.fixture
def gpt(provider):
    with openai.OpenAI(
        base_url=provider.openai_url, api_key="sk-one-0123456789", admin_api_key="sk-admin-012345"
    ) as made:
        yield made


@pytest.fixture
def claude(provider):
    with anthropic.Anthropic(base_url=provider.anthropic_url, api_key="sk-ant-0123456789") as made:
        yield made


@pytest.fixture
def ask_gpt(provider, gpt):
    def ask(**script):
        provider.answer(**{"meters": METERS, **script})
        return gpt.chat.completions.create(model="gpt-5", messages=HELLO)

    return ask


@pytest.fixture
def ask_claude(provider, claude):
    def ask(**script):
        provider.answer(**{"meters": METERS, **script})
        return claude.messages.create(model="claude-sonnet-5", max_tokens=9, messages=HELLO)

    return ask


@pytest.fixture
def classic(provider):
    """A raw GET of Anthropic's older reports."""

    def get(path):
        headers = {"x-api-key": "sk-ant-admin", "anthropic-version": "2023-06-01"}
        request = urllib.request.Request(provider.url + path, headers=headers)  # noqa: S310 - our own server
        with urllib.request.urlopen(request) as response:  # noqa: S310 - as above
            return json.load(response)

    return get


def seconds(at):
    return int(at.timestamp())


def test_openai_usage_is_daily_and_input_includes_the_cache(gpt, ask_gpt, clock, provider):
    ask_gpt()
    clock.now += timedelta(days=1)
    ask_gpt(service_tier="flex")
    page = gpt.admin.organization.usage.completions(
        start_time=seconds(DAY),
        end_time=seconds(DAY + timedelta(days=2)),
        group_by=["model", "api_key_id", "service_tier"],
    )
    first, second = (bucket.results for bucket in page.data)
    assert (first[0].input_tokens, first[0].input_cached_tokens, first[0].input_uncached_tokens) == (1000, 300, 700)
    assert (first[0].output_tokens, first[0].num_model_requests, first[0].model) == (200, 1, "gpt-5")
    assert first[0].api_key_id == provider.truth[0].api_key_id
    assert [result.service_tier for result in (first[0], second[0])] == ["default", "flex"]


def test_openai_costs_are_float_dollars_by_line_item(gpt, ask_gpt):
    ask_gpt()
    page = (
        gpt.admin.organization.costs(start_time=seconds(DAY), group_by=["line_item"])
        if hasattr(gpt.admin.organization, "costs")
        else gpt.admin.organization.usage.costs(start_time=seconds(DAY), group_by=["line_item"])
    )
    found = {result.line_item: result.amount.value for result in page.data[0].results}
    assert found == {"gpt-5, input": 0.000875, "gpt-5, cached input": 0.0000375, "gpt-5, output": 0.002}


def test_openai_pages_go_on(gpt, ask_gpt):
    ask_gpt()
    usage = gpt.admin.organization.usage
    end = seconds(DAY + timedelta(days=3))
    first = usage.completions(start_time=seconds(DAY), end_time=end, limit=2)
    assert (len(first.data), first.has_more) == (2, True)
    second = usage.completions(start_time=seconds(DAY), end_time=end, limit=2, page=first.next_page)
    assert (len(second.data), second.has_more) == (1, False)


def test_anthropic_analytics_report_usage_and_cents(claude, ask_claude):
    ask_claude()
    ask_claude(meters={**METERS, "web_searches": 2}, speed="fast")
    if not hasattr(claude.beta, "organization"):
        pytest.skip("this SDK has no analytics")
    analytics = claude.beta.organization.analytics
    items = list(analytics.usage.list(starting_at=DAY, group_by=["model", "speed"], limit=1))
    assert [item.group.speed for item in items] == ["fast", "standard"]
    assert [item.usage.uncached_input_tokens for item in items] == [700, 700]
    assert items[0].usage.server_tool_use.web_search_requests == 2
    costs = list(analytics.cost.list(starting_at=DAY, group_by=["cost_type", "token_type"], time_bucket_width="1d"))
    cents = {(item.group.cost_type, item.group.token_type): Decimal(item.cost.amount) for item in costs}
    assert cents["web_search", None] == 2
    assert cents["tokens", "uncached_input_tokens"] == Decimal("0.42")
    assert sum(cents.values()) == Decimal(2) + 2 * (Decimal("0.21") + Decimal("0.009") + Decimal("0.3"))


def test_the_classic_anthropic_reports_agree(ask_claude, classic):
    ask_claude()
    usage = classic("/v1/organizations/usage_report/messages?starting_at=2026-11-03T00:00:00Z&group_by[]=model")
    (result,) = usage["data"][0]["results"]
    assert (result["uncached_input_tokens"], result["cache_read_input_tokens"], result["model"]) == (
        700,
        300,
        "claude-sonnet-5",
    )
    costs = classic("/v1/organizations/cost_report?starting_at=2026-11-03T00:00:00Z&group_by[]=description")
    lines = costs["data"][0]["results"]
    assert sum(Decimal(line["amount"]) for line in lines) == Decimal("0.519")
    assert {line["token_type"] for line in lines} == {
        "uncached_input_tokens",
        "cache_read_input_tokens",
        "output_tokens",
    }


def test_reports_can_be_late(gpt, ask_gpt, provider, clock):
    provider.reports = Reports(prices=PRICES, delay=timedelta(days=1))
    ask_gpt()
    start = {"start_time": seconds(DAY)}
    assert gpt.admin.organization.usage.completions(**start).data[0].results == []
    clock.now += timedelta(days=1)
    assert gpt.admin.organization.usage.completions(**start).data[0].results[0].num_model_requests == 1


def test_reports_can_round_and_count_what_was_waived(claude, ask_claude, provider, classic):
    provider.reports = Reports(prices=PRICES, decimals=2, count_refused=True)
    ask_claude()
    ask_claude(billed=False)
    usage = classic("/v1/organizations/usage_report/messages?starting_at=2026-11-03T00:00:00Z")
    assert usage["data"][0]["results"][0]["uncached_input_tokens"] == 1400
    costs = classic("/v1/organizations/cost_report?starting_at=2026-11-03T00:00:00Z")
    assert Decimal(costs["data"][0]["results"][0]["amount"]) == 1  # 0.519 cents, in whole cents


def test_a_missing_start_is_refused(provider, classic):
    with pytest.raises(urllib.error.HTTPError) as caught:
        classic("/v1/organizations/cost_report")
    assert caught.value.code == 400
    caught.value.close()
