"""The usage API: what it answers, page by page, and that it keeps to its own description, whatever it is asked."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance
from starlette.testclient import TestClient

import tokenmeter
from tokenmeter import dashboard
from tokenmeter.serving.acting import add_verbs
from tokenmeter.serving.rest import make_api

#: A well-formed text may still name no period, dimension or model there is; tokens have tests of their own.
NOT_ASKED = [positive_data_acceptance, ignored_auth]
TOKEN = "a-long-enough-token-for-a-test"


def ask(served, path, **headers):
    status, found, body = served.get(f"/api/v1{path}", **headers)
    return status, found, json.loads(body) if body else None


def test_a_report_says_what_report_says(served, busy):
    found = ask(served, "/report?by=member,model&granularity=day&tz=Europe/Berlin&where=team=search&where=team=ads")[2]
    same = busy.report(by="member,model", granularity="day", tz="Europe/Berlin", where={"team": ["search", "ads"]})
    told = {**same.to_dict(), "created_at": found["created_at"], "rows_omitted": 0}
    assert found == told


def test_rows_beyond_the_limit_are_counted_and_in_the_totals(served, busy):
    found = ask(served, "/report?by=member&limit=1")[2]
    assert len(found["rows"]) == 1
    assert found["rows_omitted"] == len(busy.report(by="member").rows) - 1
    assert found["totals"]["billed_cost"] == busy.report().totals.to_dict()["billed_cost"]


@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_pages_of_entries_have_each_once_and_in_order(served, busy, record, order):
    at = datetime(2026, 1, 1, tzinfo=UTC)
    for _ in range(7):
        record(at=at, who={"member": "ada"})  # all of one instant
    seen, cursor = [], ""
    while cursor is not None:
        found = ask(served, f"/entries?limit=3&order={order}" + (f"&cursor={cursor}" if cursor else ""))[2]
        seen += [one["entry_id"] for one in found["entries"]]
        cursor = found["next_cursor"]
    assert seen == [one.entry_id for one in busy.entries(newest_first=order == "newest")]


def test_an_entry_has_its_charges_and_no_fingerprint(served, busy):
    entry = next(busy.entries())
    found = ask(served, f"/entries/{entry.entry_id}")[2]
    assert [one["billed_cost"] for one in found["charges"]] == [f"{one.billed_cost:.12f}" for one in entry.charges]
    assert "api_key_fingerprint" not in found
    assert entry.api_key.fingerprint not in json.dumps(found)
    assert ask(served, "/entries/none")[0] == 404


def test_what_has_not_changed_is_not_sent_again(served, record):
    for path in ("/report?by=member", "/entries?limit=2"):
        status, headers, _ = ask(served, path)
        assert (status, "private" in headers["cache-control"]) == (200, True)
        assert ask(served, path, if_none_match=headers["etag"])[0] == 304
        record(who={"member": "ada"})
        assert ask(served, path, if_none_match=headers["etag"])[0] == 200


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/report?by=colour", 400, "Unknown dimension"),
        ("/report?period=nonsense", 400, "period"),
        ("/report?colour=red", 422, "colour"),
        ("/report?where=member", 400, "DIMENSION=VALUE"),
        ("/report?limit=0", 422, "limit"),
        ("/report?since=9999-12-31", 400, "period is empty"),
        ("/entries?cursor=nonsense", 400, "next_cursor"),
        ("/balances?account=colour=red", 400, "FIELD=VALUE"),
        ("/statement?period=last-month&account=member=", 400, "FIELD=VALUE"),
        ("/prices?model=unheard-of-1", 404, "unheard-of-1"),
        ("/balances?acount=member=ada", 422, "use one of account, budget"),
        ("/balances?limit=0", 422, "greater than or equal to 1"),
        ("/balances?cursor=nonsense", 400, "next_cursor"),
        ("/balances?cursor=WyJhIiwiYiJd", 400, "next_cursor"),  # a cursor, but of two parts
        ("/budgets?cursor=WzEsMl0", 400, "next_cursor"),  # of numbers
        ("/credit-notes?limit=1001", 422, "less than or equal to 1000"),
        ("/credit-notes?cursor=CN-99999", 400, "next_cursor"),
        ("/invoices?=", 422, "''"),
        ("/me?who=ada", 422, "leave it out"),
        ("/invoices/INV-99999", 404, "no such invoice"),
        ("/nowhere", 404, "nothing at this path"),
        ("/budgets/a%0Ab/history", 404, "no such budget"),
    ],
)
def test_mistakes_are_problems_that_say_what_to_do(served, path, status, words):
    found, headers, body = ask(served, path)
    assert (found, headers["content-type"]) == (status, "application/problem+json")
    assert set(body) >= {"type", "title", "status", "detail"}
    assert body["status"] == status
    assert words in body["detail"]


def test_it_only_reads(served, busy):
    before = busy.store.verify()
    for path in ("/report", "/entries", "/balances", "/budgets", "/invoices", "/credit-notes", "/me"):
        assert ask(served, path)[0] == 200, path
        assert served.get(f"/api/v1{path}", method="DELETE")[0] == 405, path
    assert served.get("/api/v1/report", method="POST", body="{}")[0] == 405
    assert busy.store.verify() == before


def test_a_head_is_what_a_get_would_send_without_the_body(served):
    for path in ("/report", "/me", "/nowhere", "/report?by=nothing"):
        got, headers, _ = ask(served, path)
        found, heads, body = served.get(f"/api/v1{path}", method="HEAD")
        assert (found, heads["content-type"], body) == (got, headers["content-type"], ""), path


def test_whoever_has_anything_has_it_already(served):
    """`If-None-Match: *` is met by whatever there is (RFC 9110, 13.1.2)."""
    assert ask(served, "/report", if_none_match="*")[0] == 304


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_another_method_is_refused_as_that_and_named(served, method):
    for path in ("/healthz", "/login", "/", "/explore", "/budgets", "/static/dashboard.css", "/api/v1/report"):
        found, headers, _ = served.get(path, method=method)
        assert (found, "GET" in headers["allow"]) == (405, True), path
    assert served.get("/nowhere", method=method)[0] == 404


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/invoices", "GET, HEAD, POST"),
        ("/budgets", "GET, HEAD"),
        ("/budgets/members/end", "POST"),
        ("/invoices/INV-00001", "GET, HEAD"),
        ("/invoices/INV-00001/payments", "POST"),
        ("/invoices/A/1/credit-notes", "POST"),
        ("/me", "GET, HEAD"),
    ],
)
def test_a_refusal_names_every_method_that_the_path_has(described, path, methods):
    """Reading an invoice and issuing one are two routes of one path."""
    client = TestClient(described.app)
    headers = {"authorization": f"Bearer {TOKEN}"}
    answer = client.put(f"/api/v1{path}", headers=headers)
    assert (answer.status_code, answer.headers["allow"]) == (405, methods)


def test_books_are_read_as_they_are_filed(filed, serve):
    served = serve(filed)
    found = ask(served, "/invoices?limit=1")[2]
    rest = ask(served, f"/invoices?limit=1&cursor={found['next_cursor']}")[2]
    assert [one["number"] for one in (*found["invoices"], *rest["invoices"])] == ["INV-00002", "INV-00001"]
    assert rest["next_cursor"] is None
    assert ask(served, "/invoices/INV-00002")[2]["credit_notes"] == ask(served, "/credit-notes")[2]["credit_notes"]
    told = ask(served, "/statement?account=team=search&period=last-month&basis=invoices")[2]
    assert told == filed.statement(team="search", period="last-month", basis="invoices").to_dict()


def walked(served, path, kind, limit):
    """Everything of a list, page by page."""
    found, cursor = [], ""
    while cursor is not None:
        body = ask(served, f"{path}{'&' if '?' in path else '?'}limit={limit}{cursor and f'&cursor={cursor}'}")[2]
        assert len(body[kind]) == limit or body["next_cursor"] is None
        found += body[kind]
        cursor = body["next_cursor"]
    return found


@pytest.mark.parametrize("limit", [1, 3, 1000])
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/balances", "balances"),
        ("/balances?account=member=ada", "balances"),
        ("/balances?budget=ada-monthly", "balances"),
        ("/budgets", "budgets"),
        ("/invoices", "invoices"),
        ("/credit-notes", "credit_notes"),
    ],
)
def test_every_list_comes_whole_page_by_page(served, filed, path, kind, limit):
    whole = ask(served, path)[2]
    assert whole[kind]
    assert whole["next_cursor"] is None
    assert walked(served, path, kind, limit) == whole[kind]


def test_cursors_name_long_names_too(make_meter, record_in, serve):
    names = [f"{'長' * 300}{number}" for number in range(5)]
    meter = make_meter([{"member": "*", "limit_usd": 5, "name": "\N{PILE OF POO}" * 60}])
    for member in names:
        record_in(meter, who={"member": member})
    found = walked(serve(meter), "/balances", "balances", 2)
    assert {one["scope"]["member"] for one in found} == {*names}
    assert len(found) == len(names)


def test_a_cursor_of_another_question_is_refused(filed, serve):
    """Pages of it looked like the end of the list, or left entries out."""
    served = serve(filed)
    cursors = {
        asked: ask(served, f"/{asked}limit=1")[2]["next_cursor"]
        for asked in ("entries?", "entries?order=oldest&", "entries?where=member=ada&", "balances?", "budgets?")
    }
    assert all(cursors.values())
    for asked in (*cursors, "entries?period=2026&", "entries?tz=Asia/Tokyo&", "balances?budget=everything&"):
        for origin, cursor in cursors.items():
            status, _, found = ask(served, f"/{asked}limit=5&cursor={cursor}")
            if asked == origin:
                assert status == 200
            else:
                assert (status, "another question" in found["detail"]) == (400, True), (asked, origin)


def test_what_joins_a_list_meanwhile_moves_nothing_to_another_page(make_meter, record_in, serve):
    """As a member does that makes its first call."""
    meter = make_meter([{"member": "*", "limit_usd": 5, "name": "members"}])
    for member in ("cyd", "ben", "ada"):
        record_in(meter, who={"member": member})
    served = serve(meter)
    first = ask(served, "/balances?limit=2")[2]
    for member in ("aaron", "zoe"):
        record_in(meter, who={"member": member})
    rest = ask(served, f"/balances?limit=2&cursor={first['next_cursor']}")[2]
    members = [one["scope"]["member"] for one in (*first["balances"], *rest["balances"])]
    assert (members, rest["next_cursor"]) == (["ada", "ben", "cyd", "zoe"], None)


def test_every_budget_of_the_list_has_a_history(make_meter, serve):
    """Also one that is declared and was not filed yet, since no call came."""
    meter = make_meter([{"member": "*", "limit_usd": 5, "name": "members"}])
    served = serve(meter)
    (listed,) = ask(served, "/budgets")[2]["budgets"]
    status, _, found = ask(served, "/budgets/members/history")
    assert (status, found) == (200, {"changes": [listed], "grants": []})
    assert ask(served, "/budgets/none/history")[0] == 404


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """The API's description, with what acts, over a small ledger."""
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    token = {"hash": f"sha256:{digest}", "can": ["read", "budgets", "invoices", "prices"]}
    meter = tokenmeter.make_meter(
        store=f"sqlite:///{tmp_path_factory.mktemp('api') / 'usage.db'}",
        budgets=[{"member": "*", "limit_usd": 5, "name": "members"}],
        config={"dashboard": {"tokens": {"lead": token}}},
    )
    for member in ("ada", "bob"):
        meter.record(
            {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
            provider="openai",
            endpoint="chat.completions",
            model="gpt-5-mini",
            attribution=tokenmeter.Attribution(member=member),
        )
    application = dashboard.app(meter, requests_per_minute=1_000_000)
    yield schemathesis.openapi.from_asgi(
        "/api/v1/openapi.json", application, headers={"authorization": f"Bearer {TOKEN}"}
    )
    meter.close()


def paths():
    """Every path and verb of the API."""
    api = make_api(lambda _: None)
    add_verbs(api, None)
    return sorted((path, verb) for path, verbs in api.openapi()["paths"].items() for verb in verbs)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("path", "verb"), paths())
def test_it_keeps_to_its_description(described, path, verb, mode):
    """Whatever it is asked, in order or not, it answers as described, and never with a fault of its own."""
    operation = described[path][verb]
    if mode is schemathesis.GenerationMode.NEGATIVE and not (
        operation.query or operation.path_parameters or operation.body
    ):
        pytest.skip("there is nothing to get wrong")

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def keeps(case):
        case.call_and_validate(headers={"authorization": f"Bearer {TOKEN}"}, excluded_checks=NOT_ASKED)

    keeps()
