"""Acting over the API: off without a right, nothing before it is confirmed, and always under the token's name."""

from __future__ import annotations

import hashlib
import html
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import quote, urlencode

import pytest
from bs4 import BeautifulSoup

import tokenmeter
from tokenmeter.billing import closed_periods, credit_notes
from tokenmeter.budgets import Budget
from tokenmeter.periods import Period

ACTS, READS = "tokenmeter_" + "b" * 43, "tokenmeter_" + "r" * 43


def settled(meter, **tokens):
    rows = {
        name: {"hash": f"sha256:{hashlib.sha256(token.encode()).hexdigest()}", "can": can}
        for name, (token, can) in tokens.items()
    }
    meter.settings = meter.settings.model_validate({**meter.settings.model_dump(), "dashboard": {"tokens": rows}})
    return meter


@pytest.fixture
def served(filed, serve):
    """The API over `filed`, with a token that may do everything and one that reads."""
    return serve(settled(filed, lead=(ACTS, ["read", "budgets", "invoices", "prices"]), eve=(READS, ["read"])))


def post(served, path, token=ACTS, **body):
    headers = {"authorization": f"Bearer {token}", "content_type": "application/json"}
    status, _, answer = served.get(f"/api/v1{path}", method="POST", body=json.dumps(body), **headers)
    return status, json.loads(answer)


def test_without_a_token_that_may_act_there_is_nothing_to_act_with(filed, serve):
    served = serve(settled(filed, eve=(READS, ["read"])))
    assert post(served, "/corrections", READS)[0] == 404
    described = json.loads(served.get("/api/v1/openapi.json", authorization=f"Bearer {READS}")[2])
    assert {verb for path in described["paths"].values() for verb in path} == {"get"}


def test_nothing_is_done_before_it_is_confirmed(served, filed):
    before = filed.store.verify(), list(filed.store.documents())
    for path, body in (
        ("/budgets/ada-monthly", {"fields": {"limit_usd": "9"}, "reason": "more"}),
        ("/budgets/ada-monthly/grants", {"amount": "5", "scope": {"member": "ada"}, "reason": "more"}),
        ("/invoices", {"account": {"team": "new"}, "period": "last-month", "force": True}),
        ("/invoices/INV-00001/credit-notes", {"amount": "0.01", "reason": "goodwill"}),
        ("/budgets/ada-monthly/end", {"reason": "she left"}),
        ("/periods", {"period": "2021-03"}),
        ("/invoices/INV-00002/payments", {"amount": "0.01"}),
        ("/corrections", {"changed": True}),
    ):
        status, answer = post(served, path, **body)
        assert (status, answer["done"]) == (200, False), (path, answer)
    assert (filed.store.verify(), list(filed.store.documents())) == before


def test_a_budget_is_set_and_raised_under_the_tokens_name(served, filed):
    status, answer = post(
        served, "/budgets/ada-monthly", fields={"limit_usd": "9"}, reason="release week", dry_run=False
    )
    assert (status, answer["result"]["by"]) == (201, "lead")
    more = {"amount": "1.5", "reason": "more", "key": "pay-7", "dry_run": False}
    for _ in range(2):  # the same payment twice is one
        status, answer = post(served, "/budgets/ada-monthly/grants", **more)
        assert (status, answer["result"]["amount"]) == (201, "1.5")
    (balance,) = [one for one in filed.remaining(member="ada") if one.budget == "ada-monthly"]
    assert str(balance.limit) == "10.5"
    last = filed.budgets.history("ada-monthly")[-1]
    assert (last.by, last.reason, last.source) == ("lead", "release week", "usage API")


def test_a_grant_names_its_key_as_the_balance_does(served, filed):
    filed.budgets.set(Budget(name="keys", api_key="*", limit_usd="9"), by="test", reason="r")
    more = {"amount": "1.5", "reason": "more", "scope": {"api_key": "staging"}}
    asked = post(served, "/budgets/keys/grants", **more)[1]["result"]
    made = post(served, "/budgets/keys/grants", **more, dry_run=False)[1]["result"]
    history = json.loads(served.get("/api/v1/budgets/keys/history", authorization=f"Bearer {READS}")[2])
    (balance,) = [one for one in filed.remaining(api_key="staging") if one.budget == "keys"]
    assert balance.scope == {"api_key": "staging"}
    assert [one["scope"] for one in (asked["grant"], made, *history["grants"])] == [balance.scope] * 3


def test_an_invoice_is_credited_under_the_tokens_name(served, filed):
    status, answer = post(served, "/invoices/INV-00001/credit-notes", amount="0.01", reason="goodwill", dry_run=False)
    assert status == 201, answer
    note = next(one for one in filed.find_invoice("INV-00001").events if one.kind == "credit_note")
    assert (note.by, note.note) == ("lead", "goodwill")
    status, answer = post(served, "/invoices/INV-00001/credit-notes", amount="9999", reason="too much", dry_run=False)
    assert status == 409
    assert post(served, "/invoices/INV-77777/credit-notes", reason="none", dry_run=False)[0] == 404


def test_a_line_of_an_invoice_is_credited_as_the_command_does(served, filed):
    line = max(filed.find_invoice("INV-00001").lines, key=lambda one: one.amount).position
    deed = {"amount": "0.01", "line": line, "reason": "goodwill"}
    told = post(served, "/invoices/INV-00001/credit-notes", **deed)[1]["result"]["credit_note"]
    status, answer = post(served, "/invoices/INV-00001/credit-notes", **deed, dry_run=False)
    note = credit_notes(filed.store)[-1]
    assert (status, note.number, [one.line for one in note.lines]) == (201, answer["result"]["number"], [line])
    assert [one["line"] for one in told["lines"]] == [line]
    for wrong, code in (({"line": 99}, 400), ({"line": 0}, 422), ({"amount": None}, 400), ({"amount": "9999"}, 409)):
        assert post(served, "/invoices/INV-00001/credit-notes", **{**deed, **wrong})[0] == code, wrong


def test_a_budget_is_ended_once_under_the_tokens_name(served, filed):
    for _ in range(2):
        status, answer = post(served, "/budgets/ada-monthly/end", reason="she left", dry_run=False)
        assert (status, answer["result"]["by"], answer["result"]["budget"]) == (201, "lead", None)
    assert "ada-monthly" not in {one.name for one in filed.budgets.in_force}
    ends = [one for one in filed.budgets.history("ada-monthly") if one.budget is None]
    assert [(one.reason, one.source) for one in ends] == [("she left", "usage API")]
    assert post(served, "/budgets/none/end", reason="x")[0] == 400


def test_a_period_is_closed_once_under_the_tokens_name(served, filed):
    before = len(closed_periods(filed.store))
    told = post(served, "/periods", period="2021-03", tz="Asia/Tokyo")[1]["result"]
    found = [post(served, "/periods", period="2021-03", tz="Asia/Tokyo", dry_run=False) for _ in range(2)]
    assert [status for status, _ in found] == [201, 201]
    assert found[0] == found[1]
    assert found[0][1]["result"]["closed_by"] == "lead"
    assert {name: found[0][1]["result"][name] for name in ("period", "requests", "billed_cost")} == {
        name: told[name] for name in ("period", "requests", "billed_cost")
    }
    assert len(closed_periods(filed.store)) == before + 1
    for period, status in (("2021-Q1", 409), ("this-month", 409), ("soonish", 400)):  # overlaps, goes on, is none
        assert post(served, "/periods", period=period, tz="Asia/Tokyo", dry_run=False)[0] == status, period
    status, asked = post(served, "/periods", period="2021-02")
    assert (status, asked["result"]["period"]["tz"]) == (200, "Asia/Tokyo")  # where nobody says how, as the last one


def test_what_a_closing_will_say_is_what_it_says(served, record):
    at = datetime(2021, 3, 9, tzinfo=UTC)
    record(at=at, input=1_000_000)
    record(at=at, model="unheard-of-1", input=50)
    told = post(served, "/periods", period="2021-03")[1]["result"]
    done = post(served, "/periods", period="2021-03", dry_run=False)[1]["result"]
    names = ("period", "requests", "unpriced", "estimated", "list_cost", "contracted_cost", "billed_cost")
    assert {name: Decimal(done[name]) if "cost" in name else done[name] for name in names} == {
        name: Decimal(told[name]) if "cost" in name else told[name] for name in names
    }
    assert (told["requests"], told["unpriced"], told["closed_at"]) == (2, 1, None)
    assert [one["period"] for one in told["late"]] == [one["period"] for one in done["late"]] != []


def test_a_payment_that_is_sent_twice_is_one(served, filed):
    deed = {"amount": "0.02", "reference": "wire 9", "key": "bank-9", "dry_run": False}
    found = [post(served, "/invoices/INV-00002/payments", **deed) for _ in range(3)]
    assert [status for status, _ in found] == [201] * 3
    (event,) = [one for one in filed.find_invoice("INV-00002").events if one.kind == "payment"]
    assert (event.by, str(event.amount), event.note, event.key) == ("lead", "0.02", "wire 9", "bank-9")
    for other in ({"amount": "0.03"}, {"reference": "wire 10"}, {"on": "2021-03-04"}):
        status, answer = post(served, "/invoices/INV-00002/payments", **{**deed, **other})
        assert (status, "bank-9" in answer["detail"]) == (409, True), other
    assert (
        post(served, "/invoices/INV-00002/payments", amount="0.02", dry_run=False)[0] == 201
    )  # without a key: another
    assert len([one for one in filed.find_invoice("INV-00002").events if one.kind == "payment"]) == 2
    assert post(served, "/invoices/INV-77777/payments", dry_run=False)[0] == 404
    assert post(served, "/invoices/INV-00002/payments", on="2999-01-01")[0] == 400


def test_a_key_without_a_letter_is_none(served):
    for path in ("/budgets/ada-monthly/grants", "/invoices/INV-00001/credit-notes"):
        assert post(served, path, amount="0.01", reason="r", key="")[0] == 422


def _asked_only(deed):
    return {**deed, "dry_run": True}


def test_a_credit_that_is_sent_twice_is_given_once(served, filed):
    before = len(credit_notes(filed.store))
    deed = {"amount": "0.02", "reason": "goodwill", "key": "ticket-7", "dry_run": False}
    found = [post(served, "/invoices/INV-00001/credit-notes", **deed) for _ in range(3)]
    assert [status for status, _ in found] == [201] * 3
    assert len({answer["result"]["number"] for _, answer in found}) == 1
    assert len(credit_notes(filed.store)) == before + 1
    for other in ({"amount": "0.03"}, {"amount": None}, {"reason": "outage"}):
        status, answer = post(served, "/invoices/INV-00001/credit-notes", **{**deed, **other})
        assert (status, "ticket-7" in answer["detail"]) == (409, True)
    same = post(served, "/invoices/INV-00001/credit-notes", **{**deed, "amount": "0.020"})
    assert same == found[0]
    status, answer = post(served, "/invoices/INV-00001/credit-notes", **_asked_only(deed))
    assert (status, answer["result"]["credit_note"]) == (
        200,
        None,
    )  # nothing would change
    status, answer = post(served, "/invoices/INV-00001/credit-notes", **_asked_only({**deed, "reason": "outage"}))
    assert (status, "ticket-7" in answer["detail"]) == (409, True)


def test_what_cannot_be_done_is_said_before_it_is_confirmed(served, filed):
    documents = list(filed.store.documents())
    for path, body, status in (
        ("/invoices", {"account": {"team": "search"}, "period": "last-month"}, 409),  # another one says otherwise
        ("/invoices", {"account": {"team": "ads"}, "period": "this-month"}, 409),
        ("/invoices/INV-00001/credit-notes", {"amount": "9999", "reason": "too much"}, 409),
        ("/budgets/none/grants", {"amount": "1", "reason": "x"}, 400),
        ("/budgets/everything/grants", {"amount": "1", "reason": "x", "scope": {"member": "ada"}}, 400),
    ):
        assert post(served, path, **body)[0] == status, path
    assert list(filed.store.documents()) == documents


def test_an_invoice_is_issued_once(served, filed):
    body = {"account": {"member": "ada", "team": "search"}, "period": "last-month"}
    status, answer = post(served, "/invoices", **body, dry_run=False)
    assert status == 409
    assert "already" in answer["detail"]  # that usage is on the team's invoice


def test_calls_are_priced_anew(served, filed):
    status, answer = post(served, "/corrections", dry_run=False)
    assert (status, answer["result"]["corrections"]) == (201, 0)  # nobody has said yet what unheard-of-1 costs


def test_who_has_calls_priced_anew_stands_in_the_ledger(served, filed):
    listed = filed.pricer
    filed.pricer = tokenmeter.make_meter(store="memory:", multiplier="2").pricer
    try:
        status, answer = post(served, "/corrections", changed=True, dry_run=False)
    finally:
        filed.pricer = listed
    assert (status, answer["result"]["corrections"] > 0) == (201, True)
    made = [entry for entry in filed.entries() if entry.kind == "correction" and "repriced" in entry.flags]
    assert {entry.attribution.tags.get("posted_by") for entry in made} == {"lead"}


def test_only_a_token_with_the_right_acts_and_only_in_a_header(served, filed):
    body = {"fields": {"limit_usd": "9"}, "reason": "mine", "dry_run": False}
    status, answer = post(served, "/budgets/ada-monthly", READS, **body)
    assert (status, "no right" in answer["detail"]) == (403, True)
    form = {"content_type": "application/x-www-form-urlencoded"}
    cookie = served.get("/login", method="POST", body=f"token={ACTS}", **form)[1]["set-cookie"].partition(";")[0]
    headers = {"cookie": cookie, "content_type": "application/json"}
    status, _, text = served.get("/api/v1/budgets/ada-monthly", method="POST", body=json.dumps(body), **headers)
    assert (status, "Bearer" in json.loads(text)["detail"]) == (403, True)
    assert all(one.reason != "mine" for one in filed.budgets.history())


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/budgets/b", {"fields": {"limit_usd": "-1"}, "reason": "x"}, 400),
        ("/budgets/b", {"fields": {"colour": "red"}, "reason": "x"}, 400),
        ("/budgets/b", {"fields": {"limit_usd": "1"}}, 422),
        ("/budgets/none/grants", {"amount": "1", "reason": "x", "dry_run": False}, 400),
        ("/budgets/ada-monthly/grants", {"amount": "1e9", "reason": "x"}, 422),
        ("/invoices", {"account": {"colour": "red"}, "period": "last-month"}, 400),
        ("/invoices", {"account": {"route": "/chat"}, "period": "last-month", "dry_run": False}, 400),
        ("/invoices", {"account": {"team": "search", "tag:env": "prod"}, "period": "last-month"}, 400),
        ("/invoices", {"account": {"team": "search"}, "period": "soonish"}, 400),
    ],
)
def test_a_mistaken_deed_is_a_problem(served, filed, path, body, status):
    documents = list(filed.store.documents())
    assert post(served, path, **body)[0] == status
    assert list(filed.store.documents()) == documents


def test_a_number_without_end_is_a_problem(served):
    body = '{"fields": {"limit_tokens": %s}, "reason": "x"}' % ("9" * 5_000)
    headers = {"authorization": f"Bearer {ACTS}", "content_type": "application/json"}
    assert served.get("/api/v1/budgets/b", method="POST", body=body, **headers)[0] in {400, 422}


# -- from the pages


PROOF = re.compile(r'name="proof" value="([0-9a-f]+)"')
FORM = {"content_type": "application/x-www-form-urlencoded"}


def logged_in(served, token=ACTS):
    cookie = served.get("/login", method="POST", body=f"token={token}", **FORM)[1]["set-cookie"].partition(";")[0]
    page = served.get("/budgets", cookie=cookie)[2]
    return cookie, PROOF.search(page)[1]


def hidden(page):
    """The fields that the page's last form would send."""
    form = page[page.rindex("<form") :]
    found = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form)
    return {name: html.unescape(value) for name, value in found}


def submit(served, what, cookie, headers=None, **fields):
    return served.get(f"/acts/{what}", method="POST", body=urlencode(fields), cookie=cookie, **FORM, **(headers or {}))


DEEDS = (
    ("budget", {"name": "ada-monthly", "set:limit_usd": "9", "reason": "more"}, "limit usd"),
    ("grant", {"name": "ada-monthly", "amount": "5", "reason": "more"}, "limit, member ada"),
    ("end", {"name": "ada-monthly", "reason": "she left"}, "End budget ada-monthly"),
    ("close", {"period": "2021-03", "tz": "UTC"}, "Close 2021-03"),
    ("invoice", {"account": "team", "of": "new", "period": "last-month", "force": "1"}, "Issue an invoice"),
    ("credit", {"number": "INV-00001", "amount": "0.01", "reason": "goodwill"}, "left to pay"),
    ("credit", {"number": "INV-00001", "amount": "0.01", "line": "3", "reason": "goodwill"}, "left to pay"),
    ("payment", {"number": "INV-00002", "amount": "0.01", "reference": "wire 8"}, "wire 8"),
    ("reprice", {"model": "gpt-5-mini"}, "corrections"),
)


def record_unpriced(record):
    """Record a call as it was before anybody said what its model costs."""
    unknown = dict.fromkeys(("list_cost", "contracted_cost", "billed_cost"))
    charges = tuple(replace(one, **unknown, list_unit_price=None, price_id=None) for one in record().charges)
    record(fields={"charges": charges, "cost_source": "unpriced", **unknown})


@pytest.mark.parametrize(("what", "fields", "words"), DEEDS)
def test_a_form_shows_what_it_would_do_and_only_then_does_it(served, filed, record, what, fields, words):
    record_unpriced(record)
    cookie, proof = logged_in(served)
    before = filed.store.verify()
    status, _, shown = submit(served, what, cookie, proof=proof, **fields)
    assert (status, words in shown, "By <bdi>lead</bdi>" in shown) == (200, True, True), shown
    assert filed.store.verify() == before
    status, headers, _ = submit(served, what, cookie, **hidden(shown))
    assert status == 303
    assert filed.store.verify() != before
    assert served.get(headers["location"], cookie=cookie)[0] == 200


def test_a_limit_that_is_left_empty_is_taken_away(served, filed):
    fields = {"member": "eve", "limit_usd": "9", "limit_tokens": 1000}
    assert post(served, "/budgets/two", fields=fields, reason="both", dry_run=False)[0] == 201
    cookie, proof = logged_in(served)
    left = {"name": "two", "set:limit_usd": "9", "set:limit_tokens": "", "reason": "money alone"}
    shown = submit(served, "budget", cookie, proof=proof, **left)[2]
    assert "limit tokens" in shown
    assert submit(served, "budget", cookie, **hidden(shown))[0] == 303
    (budget,) = (one.budget for one in filed.budgets.changes() if one.name == "two")
    assert (budget.limit_usd, budget.limit_tokens) == (Decimal(9), None)


def test_a_grant_ends_by_the_clock_of_its_budget(served):
    fields = {"limit_usd": "9", "tz": "Asia/Tokyo", "period": "total"}
    assert post(served, "/budgets/tokyo", fields=fields, reason="there", dry_run=False)[0] == 201
    cookie, proof = logged_in(served)
    grant = {"name": "tokyo", "amount": "1", "expires": "2999-01-01", "reason": "x"}
    assert "until 2999-01-01 00:00 Asia/Tokyo" in submit(served, "grant", cookie, proof=proof, **grant)[2]


def test_a_closing_is_shown_by_the_clock_of_its_zone(served):
    cookie, proof = logged_in(served)
    shown = submit(served, "close", cookie, proof=proof, period="2021-03", tz="Asia/Tokyo")[2]
    assert "2021-03-01 00:00" in shown
    assert "2021-04-01 00:00" in shown


def test_a_button_that_is_pressed_twice_does_it_once_and_leads_to_the_same_page(served, filed, record):
    record_unpriced(record)
    cookie, proof = logged_in(served)
    for what, fields, _ in DEEDS:
        if what == "invoice":
            fields = {**fields, "of": "ads"}  # noqa: PLW2901 - last month's closing is behind the one made above
        shown = submit(served, what, cookie, proof=proof, **fields)[2]
        first = submit(served, what, cookie, **hidden(shown))
        done = filed.store.verify(), list(filed.store.documents())
        again = submit(served, what, cookie, **hidden(shown))
        assert (first[0], first[1]["location"]) == (again[0], again[1].get("location")), (what, again[2])
        assert (filed.store.verify(), list(filed.store.documents())) == done, what


def test_what_would_change_nothing_has_no_button(served, filed):
    cookie, proof = logged_in(served)
    nothing = (
        ("budget", {"name": "ada-monthly", "set:limit_usd": "0.05", "reason": "again"}),
        ("close", {"period": "last-month", "tz": "UTC"}),
        ("payment", {"number": "INV-00001"}),
        ("reprice", {}),
    )
    once = (
        ("invoice", {"account": "team", "of": "new", "period": "last-month", "force": "1"}),
        ("end", {"name": "everything", "reason": "over"}),
    )
    for what, fields in once:
        submit(served, what, cookie, **hidden(submit(served, what, cookie, proof=proof, **fields)[2]))
    same = filed.store.verify(), list(filed.store.documents())
    for what, fields in (*nothing, *once):
        status, _, shown = submit(served, what, cookie, proof=proof, **fields)
        told = "Nothing changes" in shown, 'name="confirmed"' in shown
        assert (status, *told) == (200, True, False), (what, shown)
    assert (filed.store.verify(), list(filed.store.documents())) == same


def test_what_was_changed_in_between_is_shown_again(served, filed):
    cookie, proof = logged_in(served)
    what, fields, _ = DEEDS[0]
    shown = submit(served, what, cookie, proof=proof, **fields)[2]
    post(served, "/budgets/ada-monthly", fields={"limit_usd": "7"}, reason="somebody else", dry_run=False)
    status, _, again = submit(served, what, cookie, **hidden(shown))
    assert (status, "has changed since you looked" in again) == (200, True)
    assert str(filed.budgets.history("ada-monthly")[-1].budget.limit_usd) == "7"


def test_a_budget_that_has_ended_meanwhile_is_not_changed_into_one_on_every_call(served, filed):
    cookie, proof = logged_in(served)
    form = BeautifulSoup(served.get("/budgets/ada-monthly", cookie=cookie)[2], "html.parser").find(
        "form", {"action": "/acts/budget"}
    )
    fields = {one["name"]: one["value"] for one in form.find_all("input", {"type": "hidden"})}
    fields |= {"set:limit_usd": "60", "set:hard": "true", "reason": "more", "proof": proof}
    shown = submit(served, "budget", cookie, **fields)[2]
    assert "Change budget" in shown
    filed.budgets.retire("ada-monthly", by="kim", reason="she left")
    for sent in (fields, hidden(shown)):
        status, _, told = submit(served, "budget", cookie, **sent)
        assert (status, "has ended since" in told, 'name="confirmed"' in told) == (409, True, False), told
    assert "ada-monthly" not in {one.name for one in filed.budgets.in_force}


def test_a_new_budget_on_every_call_says_so_before_it_is_set(served):
    cookie, proof = logged_in(served)
    told = {}
    for whose in ({}, {"dimension": "team", "value": "*"}):
        fields = {"name": "new", "limit": "5", "reason": "start", "set:period": "week", **whose}
        page = submit(served, "budget", cookie, proof=proof, **fields)[2]
        rows = [[cell.text for cell in row("th") + row("td")] for row in BeautifulSoup(page, "html.parser")("tr")]
        told[bool(whose)] = {row[0]: row[-1] for row in rows}
    assert told[False]["counts"] == "every call"
    assert "counts" not in told[True]


@pytest.mark.parametrize("period", ["2021-W09", "2021-03-07", None])
def test_a_closed_period_is_invoiced_from_its_page_whatever_it_is_called(served, filed, record, period):
    since, until = datetime(2021, 3, 1, tzinfo=UTC), datetime(2021, 3, 7, 12, tzinfo=UTC)
    record(at=datetime(2021, 3, 7, 9, tzinfo=UTC), who={"team": "spring"}, input=1_000_000)
    made = filed.close_period(Period(since, until, "UTC") if period is None else period, tz="UTC")
    cookie, proof = logged_in(served)
    page = BeautifulSoup(served.get(f"/periods/{made.document.key}", cookie=cookie)[2], "html.parser")
    form = page.find("form", {"action": "/acts/invoice"})
    fields = {one["name"]: one["value"] for one in form.find_all("input", {"type": "hidden"})}
    fields |= {"account": "team", "of": "spring", "proof": proof}
    shown = submit(served, "invoice", cookie, **fields)[2]
    status, headers, _ = submit(served, "invoice", cookie, **hidden(shown))
    assert status == 303, shown
    issued = filed.find_invoice(headers["location"].rpartition("/")[2])
    assert (issued.period.start, issued.period.end) == (made.period.start, made.period.end)
    assert issued.period.label == (period or made.period.label)


@pytest.mark.parametrize("name", ["route=/chat usd/month", "a/b/c", "/"])
def test_a_budget_with_slashes_in_its_name_is_reached(served, filed, name):
    filed.budgets.set({"name": name, "route": "/chat", "limit_usd": "5"}, by="me", reason="start")
    there = f"/budgets/{quote(name, safe='')}"
    assert post(served, there, fields={"limit_usd": "6"}, reason="more", dry_run=False)[0] == 201
    assert post(served, f"{there}/grants", amount="2", reason="more", dry_run=False)[0] == 201
    assert str(filed.budgets.history(name)[-1].budget.limit_usd) == "6"
    status, _, answer = served.get(f"/api/v1{there}/history", authorization=f"Bearer {READS}")
    assert (status, len(json.loads(answer)["changes"]), len(json.loads(answer)["grants"])) == (200, 2, 1)
    assert post(served, f"{there}/end", reason="over", dry_run=False)[0] == 201
    assert name not in {one.name for one in filed.budgets.in_force}
    cookie, _ = logged_in(served)
    assert served.get(there, cookie=cookie)[0] == 200
    described = json.loads(served.get("/api/v1/openapi.json", authorization=f"Bearer {ACTS}")[2])["paths"]
    assert {"/v1/budgets/{name}", "/v1/budgets/{name}/grants", "/v1/budgets/{name}/history"} <= set(described)


def test_what_stands_below_a_budget_is_not_taken_for_its_name(served, filed):
    """A history is read; what was posted to it defined a budget called `team/history`."""
    before = filed.store.verify()
    limit = {"fields": {"limit_usd": "6"}, "reason": "new", "dry_run": False}
    assert post(served, "/budgets/team/history", **limit)[0] == 405
    for path in (
        "/budgets/team/end",
        "/budgets/team/grants",
        "/invoices/INV-1/payments",
        "/invoices/INV-1/credit-notes",
    ):
        assert served.get(f"/api/v1{path}", authorization=f"Bearer {READS}")[0] == 405, path
    assert filed.store.verify() == before


def test_only_a_page_of_ones_own_acts_and_only_with_the_right(served, filed):
    before = filed.store.verify()
    cookie, proof = logged_in(served)
    theirs, their_proof = logged_in(served, READS)
    for what, fields, _ in DEEDS:
        for sent in (
            {"cookie": cookie},
            {"cookie": cookie, "proof": "0" * 64},
            {"cookie": cookie, "proof": their_proof},
            {"cookie": theirs, "proof": their_proof},
            {"cookie": cookie, "proof": proof, "headers": {"sec_fetch_site": "cross-site"}},
        ):
            assert submit(served, what, **sent, **fields)[0] == 403, (what, sent)
        body = urlencode(fields)
        assert served.get(f"/acts/{what}", method="POST", body=body, **FORM, authorization=f"Bearer {ACTS}")[0] == 403
        assert served.get(f"/acts/{what}", method="POST", body=body, **FORM)[0] == 401
    assert submit(served, "nothing", cookie, proof=proof)[0] == 404
    assert filed.store.verify() == before


@pytest.mark.parametrize(
    ("what", "fields", "status", "words"),
    [
        ("budget", {"name": "b", "limit": "-1", "reason": "x"}, 400, "limit_usd"),
        ("budget", {"name": "b", "limit": "9" * 5_000, "unit": "tokens", "reason": "x"}, 400, "limit_tokens"),
        ("budget", {"name": "ada-monthly", "set:limit_usd": "", "reason": "x"}, 400, "limit"),
        (
            "budget",
            {"name": "b", "limit": "1,5", "unit": "tokens", "reason": "x"},
            400,
            "dashboard: limit_tokens must be",
        ),
        ("budget", {"name": "b", "limit": "99999999", "reason": "x"}, 400, "greater than 4,000,000."),
        ("budget", {"name": "b", "limit": "1", "reason": " "}, 400, "reason: it is needed"),
        ("budget", {"name": "", "limit": "1", "reason": "x"}, 400, "name"),
        ("budget", {"name": "b", "limit": "1"}, 400, "reason"),
        ("budget", {"name": "b", "dimension": "colour", "limit": "1", "reason": "x"}, 400, "colour"),
        ("grant", {"name": "ada-monthly", "amount": "lots", "reason": "x"}, 400, "amount"),
        ("grant", {"name": "none", "amount": "1", "reason": "x"}, 400, "none"),
        ("invoice", {"account": "team", "of": "", "period": "last-month"}, 400, "account"),
        ("invoice", {"account": "team", "of": "search", "period": "last-month", "on": "soon"}, 400, "date"),
        ("invoice", {"account": "team", "of": "ads", "period": "this-month"}, 409, "still open"),
        ("credit", {"number": "INV-00001", "amount": "999", "reason": "x"}, 409, "more than"),
        ("credit", {"number": "INV-77777", "reason": "x"}, 409, "no such invoice"),
        ("credit", {"number": "INV-00001", "amount": "1"}, 400, "reason"),
        ("reprice", {"period": "soonish"}, 400, "period"),
        ("end", {"name": "none", "reason": "x"}, 400, "none"),
        ("end", {"name": "ada-monthly"}, 400, "reason"),
        ("close", {"period": "soonish"}, 400, "soonish"),
        ("close", {"period": "last-month", "tz": "Mars/Base"}, 400, "Mars"),
        ("close", {"period": "this-month"}, 409, "can be closed from then on"),
        ("payment", {"number": "INV-00001", "amount": "lots"}, 400, "amount"),
        ("payment", {"number": "INV-00001", "amount": "0"}, 400, "none"),
        ("payment", {"number": "INV-77777"}, 409, "no such invoice"),
        ("payment", {"number": "INV-00002", "on": "2999-01-01"}, 400, "still to come"),
    ],
)
def test_a_mistaken_form_says_what_is_wrong(served, filed, what, fields, status, words):
    cookie, proof = logged_in(served)
    before = filed.store.verify()
    found, _, page = submit(served, what, cookie, proof=proof, **fields)
    assert (found, words in page) == (status, True), page
    assert filed.store.verify() == before


def fields_of(page, what):
    """What the form of a page says: name -> value, as a browser would send it; and the page's words at it."""
    soup = BeautifulSoup(page, "html.parser")
    form = soup.find("form", action=f"/acts/{what}")
    said = {one["name"]: one.get("value", "") for one in form("input") if one.get("type") != "checkbox"}
    said |= {one["name"]: "1" for one in form("input", type="checkbox") if one.has_attr("checked")}
    for one in form("select"):
        chosen = one.find("option", selected=True) or one.find("option")
        said[one["name"]] = chosen.get("value", chosen.text)
    reason = soup.find(id=form["aria-describedby"]).text if form.has_attr("aria-describedby") else None
    return said, reason


@pytest.mark.parametrize(
    ("where", "what", "typed", "status", "words"),
    [
        (
            "/budgets",
            "budget",
            {
                "name": 'the "new" one',
                "dimension": "team",
                "value": "<ads>",
                "limit": "ten",
                "unit": "tokens",
                "set:period": "week",
                "set:hard": "false",
                "reason": "they <asked>",
            },
            400,
            "limit_tokens",
        ),
        (
            "/account?member=bob",
            "budget",
            {"name": "bobs", "limit": "1,5", "unit": "requests", "reason": "x"},
            400,
            "limit_requests",
        ),
        ("/budgets/ada-monthly", "budget", {"set:limit_usd": "", "set:hard": "false", "reason": "x"}, 400, "limit"),
        (
            "/budgets/members",
            "grant",
            {"set:member": "ada", "amount": "lots", "unit": "tokens", "expires": "2999-01-01", "reason": "more"},
            400,
            "amount",
        ),
        ("/budgets/ada-monthly", "end", {"reason": " "}, 400, "reason: it is needed"),
        ("/periods", "close", {"period": "this-month", "tz": "Asia/Tokyo"}, 409, "can be closed from then on"),
        (
            "/periods/1",
            "invoice",
            {
                "account": "member",
                "of": "nobody",
                "lines_by": "project",
                "on": "2021-01-02",
                "allow_unpriced": "1",
            },
            409,
            "nobody",
        ),
        ("/invoices/INV-00001", "credit", {"amount": "999", "reason": "all of it"}, 409, "more than"),
        (
            "/invoices/INV-00002",
            "payment",
            {"amount": "1", "on": "2999-01-01", "reference": "wire 9"},
            400,
            "still to come",
        ),
        ("/doubts", "reprice", {"period": "soonish", "model": "m", "changed": "1"}, 400, "period"),
    ],
)
def test_a_form_that_is_refused_comes_back_with_what_was_typed_and_the_reason(
    served, filed, where, what, typed, status, words
):
    both = {"member": "*", "limit_usd": "9", "limit_tokens": 1000}
    assert post(served, "/budgets/members", fields=both, reason="each", dry_run=False)[0] == 201
    cookie, _ = logged_in(served)
    before = filed.store.verify()
    asked, nothing = fields_of(served.get(where, cookie=cookie)[2], what)
    assert nothing is None
    found, headers, page = submit(served, what, cookie, **{**asked, **typed})
    assert (found, headers["content-type"]) == (status, "text/html; charset=utf-8")
    again, reason = fields_of(page, what)
    assert words in reason
    assert again == {**asked, **typed}
    assert filed.store.verify() == before
    # The page of the form it is, with all else that is on it; and the same form sends it again.
    title = re.compile("<title>.*</title>")
    assert title.search(page)[0] == title.search(served.get(where, cookie=cookie)[2])[0]
    assert submit(served, what, cookie, **again)[0] == status


def test_a_refused_form_whose_page_has_it_no_more_leads_back_to_that_page(served, filed):
    cookie, proof = logged_in(served)
    for back, leads in (
        ("/invoices/INV-77777", "/invoices/INV-77777"),
        ("/budgets/a%3Fb?x=1", "/budgets/a%3Fb?x=1"),
        ("/account?member=bob&period=soonish", "/account?member=bob&amp;period=soonish"),
        ("/export/entries.csv", "/export/entries.csv"),
        ("/events", "/events"),  # it has no end
        ("//elsewhere.example/", "/"),
        ("/\\elsewhere.example/", "/"),
        ("", "/"),
    ):
        fields = {"proof": proof, "number": "INV-00001", "amount": "999", "reason": "x", "back": back}
        status, _, page = submit(served, "credit", cookie, **fields)
        assert (status, "more than" in page, f'<a href="{leads}">' in page) == (409, True, True), (back, page)
    # Also one that cannot be told to be his: nothing that was in it is shown.
    fields = {"proof": "0" * 64, "amount": "4711", "back": "/invoices/INV-00001"}
    status, _, page = submit(served, "credit", cookie, **fields)
    assert (status, '<a href="/invoices/INV-00001">' in page, "4711" in page) == (403, True, False)


def test_a_double_click_is_one_press(served, filed, record):
    record_unpriced(record)
    cookie, proof = logged_in(served)
    for what, fields, _ in DEEDS:
        if what == "invoice":
            fields = {**fields, "of": "ads"}  # noqa: PLW2901 - last month's closing is behind the one made above
        sent = hidden(submit(served, what, cookie, proof=proof, **fields)[2])
        before = len(list(filed.store.documents())), filed.store.verify().entries
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _, what=what, sent=sent: submit(served, what, cookie, **sent), range(4)))
        assert {(status, headers.get("location")) for status, headers, _ in found} == {
            (303, found[0][1]["location"])
        }, what
        after = len(list(filed.store.documents())), filed.store.verify().entries
        assert sum(after) == sum(before) + 1, what


def test_forms_are_shown_to_those_who_may(served):
    for token, shown in ((ACTS, True), (READS, False)):
        cookie, _ = logged_in(served, token)
        for path in (
            "/budgets",
            "/budgets/ada-monthly",
            "/account?member=bob",
            "/periods",
            "/periods/1",
            "/invoices/INV-00001",
            "/doubts",
        ):
            assert ('action="/acts/' in served.get(path, cookie=cookie)[2]) is shown, path


def test_a_page_of_others_cannot_log_a_browser_in(served):
    form = {"content_type": "application/x-www-form-urlencoded", "sec_fetch_site": "cross-site"}
    status, headers, _ = served.get("/login", method="POST", body=f"token={ACTS}", **form)
    assert (status, "set-cookie" in headers) == (403, False)


def test_logging_out_ends_it_for_this_browser(served):
    cookie, proof = logged_in(served)
    assert served.get("/logout", method="POST", body="proof=0", cookie=cookie, **FORM)[0] == 403
    status, headers, _ = served.get("/logout", method="POST", body=f"proof={proof}", cookie=cookie, **FORM)
    assert (status, headers["location"]) == (303, "/login")
    assert "Max-Age=0" in headers["set-cookie"]
