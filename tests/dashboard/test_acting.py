"""Acting over the API: off without a right, nothing before it is confirmed, and always under the token's name."""

from __future__ import annotations

import hashlib
import json

import pytest

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
        ("/invoices", {"account": {"team": "search"}, "period": "last-month"}),
        ("/invoices/INV-00001/credit-notes", {"amount": "0.01", "reason": "goodwill"}),
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


def test_an_invoice_is_credited_under_the_tokens_name(served, filed):
    status, answer = post(served, "/invoices/INV-00001/credit-notes", amount="0.01", reason="goodwill", dry_run=False)
    assert status == 201, answer
    note = next(one for one in filed.find_invoice("INV-00001").events if one.kind == "credit_note")
    assert (note.by, note.note) == ("lead", "goodwill")
    status, answer = post(served, "/invoices/INV-00001/credit-notes", amount="9999", reason="too much", dry_run=False)
    assert status == 409
    assert post(served, "/invoices/INV-77777/credit-notes", reason="none", dry_run=False)[0] == 404


def test_an_invoice_is_issued_once(served, filed):
    body = {"account": {"member": "ada", "team": "search"}, "period": "last-month"}
    status, answer = post(served, "/invoices", **body, dry_run=False)
    assert status == 409
    assert "already" in answer["detail"]  # that usage is on the team's invoice


def test_calls_are_priced_anew(served, filed):
    status, answer = post(served, "/corrections", dry_run=False)
    assert (status, answer["result"]["corrections"]) == (201, 0)  # nobody has said yet what unheard-of-1 costs


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
        ("/invoices", {"account": {"team": "search"}, "period": "soonish"}, 400),
    ],
)
def test_a_mistaken_deed_is_a_problem(served, filed, path, body, status):
    documents = list(filed.store.documents())
    assert post(served, path, **body)[0] == status
    assert list(filed.store.documents()) == documents
