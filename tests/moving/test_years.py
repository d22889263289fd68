"""A ledger of three years, two of them on an object store: everything that a meter answers is as it was."""

import random
from datetime import UTC, datetime, timedelta

import pytest

import tokenmeter
from tokenmeter.attribution import Attribution
from tokenmeter.dimensions import DIMENSIONS

pytest.importorskip("duckdb")
pytest.importorskip("s3fs")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

PROFILE = {
    "seller": {"name": "Platform GmbH", "address": ["Hauptstr. 1", "10115 Berlin"], "tax_id": "DE1"},
    "buyers": {"team": {"search": {"name": "Search", "cost_centre": "4711"}}},
}
MODELS = ("gpt-5", "gpt-5-mini", "gpt-4o-mini")


@pytest.fixture
def years(open_meter, fresh_url, request):
    """Calls of 2023 to 2025, their first year billed."""
    meter = open_meter(fresh_url(request.param), budgets=[tokenmeter.Budget(name="each", member="*", limit_usd=9000)])
    dice = random.Random(5)
    for number in range(360):
        tokens = dice.randrange(1000, 90_000)
        usage = {"prompt_tokens": tokens, "completion_tokens": tokens // 9, "total_tokens": tokens + tokens // 9}
        meter.record(
            {"id": f"chatcmpl-{number}", "object": "chat.completion", "model": dice.choice(MODELS), "usage": usage},
            provider="openai",
            endpoint="chat.completions",
            at=datetime(2023, 1, 1, 3, tzinfo=UTC) + timedelta(hours=number * 73, seconds=dice.randrange(3000)),
            attribution=Attribution(
                member=dice.choice(["ada@example.com", "bob@example.com", None]),
                team=dice.choice(["search", "chat"]),
                end_user=f"user-{dice.randrange(5)}",
                tags={"feature": f"f{number % 3}"},
            ),
        )
    meter.close_period("2023-01", tz="UTC")
    meter.issue_invoice(meter.invoice(team="search", period="2023-01", profile=PROFILE), by="kim")
    return meter


def told(meter, tmp_path):
    """Everything that a meter answers."""
    found = {}
    for by in (*DIMENSIONS, "tag:feature", "model,team,end_user"):
        for tz in ("UTC", "America/New_York"):
            found[by, tz] = meter.report(by, period="2023-01", tz=tz).to_csv()
        found[by, "years"] = meter.report(by, since="2022-12-01", until="2026-02-01").to_csv()
    for bucket in ("day", "week", "month"):
        found[bucket] = meter.report("model", granularity=bucket, period="2024", tz="Asia/Kolkata").to_csv()
    found["latency"] = meter.report("model", period="2024", latency=True).to_csv()
    where = {"end_user": "user-1", "tag:feature": "f1"}
    found["where"] = meter.report("model", since="2023-01-01", until="2026-01-01", where=where).to_csv()
    found["entries"] = list(meter.entries(since="2023-01-01", until="2026-01-01"))
    found["newest"] = list(meter.entries(newest_first=True))[:50]
    buyers = {"team": {"chat": {"name": "Chat"}}}
    draft = meter.invoice(team="chat", period="2024-02", profile=PROFILE | {"buyers": buyers})
    found["invoice"] = str(draft.totals)
    found["coverage"] = str(meter.invoice_coverage(period="2023-01"))
    found["documents"] = [(one.kind, one.key, one.body) for one in meter.store.documents() if one.kind != "archive"]
    found["counters"] = [(key, one.settled) for key, one in meter.store.all_counters()]
    found["head"] = meter.verify(deep=True).ok
    return found


@pytest.mark.parametrize("years", ["sqlite", "postgres"], indirect=True)
def test_three_years_two_of_them_on_an_object_store(years, bucket, tmp_path):
    before = told(years, tmp_path)
    sealed = years.archive("2024-12", "s3://books/usage", drop=True)
    assert len(sealed) == 24
    assert all(one.dropped for one in years.archives())
    after = told(years, tmp_path)
    for question, answer in before.items():
        assert after[question] == answer, question
    years.erase("member", "ada@example.com", reason="asked to", by="kim", pseudonym="person 17")
    assert "ada@" not in years.report("member", period="2023").to_csv()
    assert "person 17" in years.report("member", period="2023").to_csv()
    assert years.verify(deep=True).ok
