"""Keys that get another alias and persons who are erased after a closing: what was billed stays billed, once."""

from __future__ import annotations

import csv
import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

import tokenmeter
from tokenmeter.attribution import ApiKey
from tokenmeter.billing import (
    Lago,
    close_period,
    draft_invoice,
    draft_invoices,
    draw_statement,
    hand_over,
    invoice_coverage,
    issue_invoice,
    late_costs,
    late_entries,
    preview_invoices,
)

FIRST_KEY, SECOND_KEY = "sk-test-key-000000000001", "sk-test-key-000000000002"
WHY = {"reason": "request 4711", "by": "the office"}


@pytest.fixture
def meter(tmp_path):
    """A ledger whose first key is called prod."""
    with closing(tokenmeter.make_meter(store=f"sqlite:///{tmp_path}/ledger.db", config={})) as opened:
        opened.store.call_keys({FIRST_KEY: "prod"})
        yield opened


@pytest.fixture
def use(meter, make_call):
    """`use("1", "2026-09-10T00:00", key=FIRST_KEY, alias="prod")`, or with `member=`."""

    def record(cost, at, *, key=None, alias=None, **who):
        call = make_call(cost, at, **who)
        if key is not None:
            call = replace(call, api_key=ApiKey.identify(key, secret=meter.store.secret(), alias=alias))
        meter.store.settle(call)

    return record


def close(meter, period):
    return close_period(meter.store, period, now=datetime(2026, 12, 1, tzinfo=UTC))


def drafted(meter, period, each):
    drafts = draft_invoices(meter.store, period=period, each=each)
    return {one.invoice.account: (one.invoice.total, one.refused) for one in preview_invoices(meter.store, drafts)}


def test_a_key_with_another_alias_is_billed_what_it_used_since(meter, use):
    use("10", "2026-09-10T00:00", key=FIRST_KEY, alias="prod")
    close(meter, "2026-09")
    bill = issue_invoice(meter.store, draft_invoice(meter.store, api_key="prod", period="2026-09"))
    meter.store.call_keys({FIRST_KEY: "production"})
    use("1", "2026-10-10T00:00", key=FIRST_KEY, alias="production")
    assert (late_entries(meter.store), late_costs(meter.store)) == ([], [])
    assert close(meter, "2026-10").late == ()
    assert drafted(meter, "2026-10", "api_key") == {"api_key=production": (Decimal(1), None)}
    # September is billed, by either name, and what comes late of it is the key's as it is called now.
    assert invoice_coverage(meter.store, period="2026-09").billed_nowhere == 0
    for name in ("prod", "production"):
        again = issue_invoice(meter.store, draft_invoice(meter.store, api_key=name, period="2026-09"))
        assert again.number == bill.number
        statement = draw_statement(meter.store, api_key=name, period=f"{bill.issued_on.year}", basis="invoices")
        assert statement.charges == 10
    use("0.3", "2026-09-30T23:00", key=FIRST_KEY, alias="prod")
    (late,) = late_entries(meter.store)
    assert [(row.rate.about("api_key"), row.billed_cost) for row in late.rows] == [("production", Decimal("0.3"))]


def test_a_name_that_went_over_to_another_key_does_not_take_its_bills_along(meter, use):
    use("10", "2026-09-10T00:00", key=FIRST_KEY, alias="prod")
    close(meter, "2026-09")
    meter.store.call_keys({FIRST_KEY: "retired", SECOND_KEY: "prod"})
    use("2", "2026-10-10T00:00", key=SECOND_KEY, alias="prod")
    assert (late_entries(meter.store), late_costs(meter.store)) == ([], [])
    use("0.1", "2026-09-11T00:00", key=SECOND_KEY, alias="prod")
    close(meter, "2026-10")
    assert drafted(meter, "2026-10", "api_key") == {"api_key=prod": (Decimal("2.1"), None)}
    assert drafted(meter, "2026-09", "api_key") == {"api_key=retired": (Decimal(10), None)}


def test_an_open_month_is_drafted_under_an_earlier_name_of_a_key(meter, use):
    use("1", "2026-10-10T00:00", key=FIRST_KEY, alias="prod")
    meter.store.call_keys({FIRST_KEY: "production"})
    draft = draft_invoice(meter.store, api_key="prod", period="2026-10")
    assert (draft.total, draft.account) == (1, "api_key=production")
    assert draft_invoice(meter.store, api_key="staging", period="2026-10").total == 0


def test_an_erased_person_is_billed_once_and_named_in_no_new_document(meter, use, tmp_path):
    use("10", "2026-09-10T00:00", member="ada@example.com", team="search")
    use("4", "2026-09-10T00:00", member="bob", team="search")
    close(meter, "2026-09")
    each = [draft_invoice(meter.store, member=name, period="2026-09") for name in ("ada@example.com", "bob")]
    bill, _ = (issue_invoice(meter.store, draft) for draft in each)
    position = max(document.position for document in meter.store.documents())
    done = meter.erase("member", "ada@example.com", **WHY)
    assert (late_entries(meter.store), late_costs(meter.store)) == ([], [])
    assert invoice_coverage(meter.store, period="2026-10").ledger == 0
    use("1", "2026-10-10T00:00", member="ada@example.com")  # somebody new
    use("0.2", "2026-09-11T00:00", member="ada@example.com")
    assert close(meter, "2026-10").billed_cost == 1
    assert drafted(meter, "2026-10", "member") == {"member=ada@example.com": (Decimal("1.2"), None)}
    # September's invoice is the pseudonym's now, by the account, on the statement and in FOCUS.
    drafts = draft_invoices(meter.store, period="2026-09", each="member")
    assert {one.account for one in drafts} == {"member=bob", f"member={done.pseudonym}"}
    assert bill.number in {one.invoice.number for one in preview_invoices(meter.store, drafts)}
    coverage = invoice_coverage(meter.store, period="2026-09")
    assert (coverage.billed_nowhere, coverage.billed_twice) == (0, 0)
    statement = draw_statement(meter.store, member=done.pseudonym, period=f"{bill.issued_on.year}", basis="invoices")
    assert statement.charges == 10
    meter.report(period="2026-09").to_focus(tmp_path / "focus")
    with (tmp_path / "focus" / "cost_and_usage.csv").open(encoding="utf-8") as file:
        found = {(row["x_Member"], row["InvoiceId"][:9]) for row in csv.DictReader(file)}
    assert (done.pseudonym, bill.number) in found
    assert ("ada@example.com", bill.number) not in found
    assert meter.verify().ok
    (record,) = [one for one in meter.store.documents() if one.kind == "erasure"]
    assert record.position == position + 1
    assert "ada" not in record.body


def test_lines_by_person_are_the_same_invoice_after_an_erasure(meter, use):
    use("10", "2026-09-10T00:00", member="zoe", team="search")
    use("4", "2026-09-10T00:00", member="bob", team="search")
    close(meter, "2026-09")
    bill = issue_invoice(meter.store, draft_invoice(meter.store, team="search", period="2026-09", lines_by="member"))
    meter.erase("member", "zoe", pseudonym="a person", **WHY)
    again = draft_invoice(meter.store, team="search", period="2026-09", lines_by="member")
    assert [line.group["member"] for line in again.lines] == ["a person", "bob"]
    assert issue_invoice(meter.store, again).number == bill.number


def test_what_was_handed_over_under_another_name_is_not_sent_again(meter, use, event_server):
    system = Lago(event_server.url, "key-1")
    use("1", "2026-10-10T00:00", key=FIRST_KEY, alias="prod")
    customers = {"prod": "customer A"}
    hand_over(meter.store, system, period="2026-10", each="api_key", customers=customers)
    meter.store.call_keys({FIRST_KEY: "retired", SECOND_KEY: "prod"})
    use("1", "2026-10-11T00:00", key=SECOND_KEY, alias="prod", quantity=70)
    use("1", "2026-10-11T00:00", key=FIRST_KEY, alias="retired", quantity=5)
    customers = {"retired": "customer A", "prod": "customer B"}
    done = hand_over(meter.store, system, period="2026-10", each="api_key", customers=customers)
    assert {(one.customer, one.value) for one in done.sent} == {("customer A", 5), ("customer B", 70)}
    sent = [event["event"] for event in event_server.taken]
    assert len({one["transaction_id"] for one in sent}) == len(sent) == 3
    again = hand_over(meter.store, system, period="2026-10", each="api_key", customers=customers)
    assert (again.sent, again.unchanged, again.owed) == ([], 2, {})


def test_a_customer_of_a_key_is_found_by_its_earlier_name(meter, use, event_server):
    use("1", "2026-10-10T00:00", key=FIRST_KEY, alias="prod")
    meter.store.call_keys({FIRST_KEY: "production"})
    done = hand_over(
        meter.store, Lago(event_server.url, "k"), period="2026-10", each="api_key", customers={"prod": "customer A"}
    )
    assert ([one.customer for one in done.sent], done.idle) == (["customer A"], [])


def test_what_was_handed_over_of_an_erased_person_is_not_sent_again(meter, use, event_server):
    system = Lago(event_server.url, "key-1")
    use("1", "2026-10-10T00:00", member="ada")
    hand_over(meter.store, system, period="2026-10", customers={"ada": "customer A"})
    meter.erase("member", "ada", **WHY)
    done = hand_over(meter.store, system, period="2026-10", customers={"ada": "customer A"})
    assert (done.sent, done.unchanged, done.unknown) == ([], 1, {})
    use("1", "2026-10-11T00:00", member="ada", quantity=30)  # somebody new, whose first reading is no other's
    done = hand_over(meter.store, system, period="2026-10", customers={"ada": "customer B"})
    assert [(one.customer, one.value) for one in done.sent] == [("customer B", 30)]
    assert len({event["event"]["transaction_id"] for event in event_server.taken}) == 2


def test_a_manifest_that_does_not_say_which_key_it_was_is_compared_by_its_name(meter, use, monkeypatch):
    """As the first ones: late usage of one of its keys is told, and nothing else of them."""
    use("10", "2026-09-10T00:00", key=FIRST_KEY, alias="prod")
    with monkeypatch.context() as patched:
        patched.setattr("tokenmeter.reports.rated.RateKey.kept_owner", property(lambda rate: rate.owner))
        close(meter, "2026-09")
    assert "fingerprint" not in json.dumps(next(meter.store.documents()).body)
    meter.store.call_keys({FIRST_KEY: "production"})
    assert (late_entries(meter.store), late_costs(meter.store)) == ([], [])
    use("1", "2026-09-11T00:00", key=FIRST_KEY, alias="production")
    (late,) = late_entries(meter.store)
    assert [(row.rate.about("api_key"), row.billed_cost) for row in late.rows] == [("production", Decimal(1))]
