"""A server that is older than the one the other tests run on: the oldest that this machine has (Debian's places)."""

from contextlib import closing
from decimal import Decimal

from tokenmeter import attribute, make_meter
from tokenmeter.budgets import Budget

CALL = {"provider": "openai", "endpoint": "chat.completions", "model": "gpt-5-mini", "max_output_tokens": 100}
USAGE = {"prompt_tokens": 900, "completion_tokens": 100, "total_tokens": 1000}


def test_calls_under_a_cap_reports_and_a_proof(oldest_postgres_server, tmp_path):
    store = f"{oldest_postgres_server.url}&spool={tmp_path}/spool"
    budgets = [Budget(member="*", limit_requests=2)]
    with (
        closing(make_meter(store=store, config={}, budgets=budgets)) as meter,
        attribute(member="ada", team="search", tags={"feature": "x"}),
    ):
        for name in ("a", "b"):
            with meter.hold(**CALL) as held:
                held.record({"id": name, "model": "gpt-5-mini", "usage": USAGE})
        assert meter.flush() == 0
        totals = meter.report(by=["team", "model"], granularity="hour", tz="Asia/Kathmandu").totals
        assert (totals.requests, totals.billed_cost) == (2, Decimal("0.00085"))
        assert meter.report(where={"tag:feature": "x"}).totals.requests == 2
        assert meter.verify(deep=True).ok
