"""Who sees what: tokens, scopes, and what the server does with clients that mean no good."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import re
import socket
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import unquote

import pytest
import time_machine
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from tokenmeter import dashboard
from tokenmeter.billing import close_period, draft_invoice, find_invoice, invoices, issue_invoice, record_payment
from tokenmeter.budgets import Budget
from tokenmeter.config import load_settings
from tokenmeter.dashboard import server as serving
from tokenmeter.dashboard.asgi import _Site
from tokenmeter.errors import ConfigurationError, LedgerError, StoreUnavailableError
from tokenmeter.reports import Query, read_report
from tokenmeter.serving import answers
from tokenmeter.serving.access import EVERYTHING, AccessScope, make_token
from tokenmeter.serving.acting import add_verbs
from tokenmeter.serving.lens import look_through, pulse_of
from tokenmeter.serving.probes import entries_of
from tokenmeter.serving.rest import make_api
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import DocumentQuery

ADA, OPS = "tokenmeter_" + "a" * 43, "tokenmeter_" + "o" * 43
PAGES = ("/", "/explore?by=member", "/entries", "/budgets", "/invoices", "/credit-notes", "/periods", "/health")


def hash_of(token):
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"


def tokens(**more):
    return {
        "tokens": {
            "ada": {"hash": hash_of(ADA), "only": {"member": "ada"}},
            "ops": {"hash": hash_of(OPS)},
            **more,
        }
    }


def bearer(token):
    return {"authorization": f"Bearer {token}"}


@pytest.fixture
def shared(filed, serve):
    """The dashboard of `filed`, with one token that sees ada only and one that sees everything."""
    filed.settings = filed.settings.model_validate({**filed.settings.model_dump(), "dashboard": tokens()})
    return serve(filed)


@pytest.fixture
def hosted(run_server):
    """An ASGI application in a server of its own: `hosted(application)`."""
    return lambda application: run_server(
        uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning", lifespan="off"))
    )


def api(served, path, token=OPS):
    status, _, body = served.get(f"/api/v1{path}", **bearer(token))
    return status, json.loads(body)


# -- scopes


def test_a_scoped_ledger_shows_its_part_and_no_more(filed, hostile):
    seen = look_through(filed, AccessScope.of({"member": "ada"}))
    assert {one.attribution.member for one in seen.store.entries()} == {"ada"}
    assert {one.attribution.member for one in filed.store.entries()} > {"ada", "bob"}
    theirs = next(one for one in filed.store.entries() if one.attribution.member == "bob")
    assert seen.store.entry(theirs.entry_id) is None
    assert {one.scope.get("member") for one in seen.budgets.remaining({}, filed.store.now())} == {"ada"}
    assert not list(seen.store.documents(DocumentQuery("invoice")))  # they are made out to teams
    assert not list(seen.store.documents(DocumentQuery("period")))


def test_a_scoped_ledger_shows_its_own_invoices_and_what_happened_to_them(filed):
    seen = look_through(filed, AccessScope.of({"team": "search"}))
    found = invoices(seen.store)
    assert [one.scope for one in found] == [{"team": "search"}]
    whole = {one.number: one for one in invoices(filed.store)}
    assert found[0].events == whole[found[0].number].events
    other = next(number for number, one in whole.items() if one.scope != {"team": "search"})
    with pytest.raises(LedgerError, match="no invoice"):
        find_invoice(seen.store, other)


def paid(meter, *, at="2026-09", **account):
    """An invoice for September that is paid."""
    close_period(meter.store, at, now=datetime(2026, 12, 1, tzinfo=UTC))
    number = issue_invoice(meter.store, draft_invoice(meter.store, period=at, **account)).number
    record_payment(meter.store, number, reference="wire 7")
    return number


def statuses(seen):
    """Status of each invoice that is seen, and how many events are, by their own."""
    events = list(seen.store.documents(DocumentQuery("invoice_event")))
    return [one.status for one in invoices(seen.store)], len(events)


def test_an_invoice_of_a_key_is_seen_whole_once_the_key_has_the_scopes_name(meter, record):
    key = record(at=datetime(2026, 9, 10, tzinfo=UTC), key="prod", input=10**6).api_key
    seen = look_through(meter, AccessScope.of({"api_key": "production"}))
    paid(meter, api_key="prod")
    before = pulse_of(seen.store)
    assert statuses(seen) == ([], 0)
    record(at=datetime(2026, 10, 10, tzinfo=UTC), fields={"api_key": replace(key, alias="production")}, input=10)
    assert statuses(seen) == (["paid"], 1)
    assert pulse_of(seen.store) != before


def test_an_invoice_of_an_erased_person_is_seen_whole_by_the_pseudonym_alone(meter, record):
    record(at=datetime(2026, 9, 10, tzinfo=UTC), who={"member": "ada@example.com"}, input=10**6)
    named, erased = (look_through(meter, AccessScope.of({"member": name})) for name in ("ada@example.com", "person 17"))
    paid(meter, member="ada@example.com")
    before = pulse_of(named.store)
    assert (statuses(named), statuses(erased)) == ((["paid"], 1), ([], 0))
    with time_machine.travel("2038-01-01", tick=True):
        done = meter.erase("member", "ada@example.com", pseudonym="person 17", reason="request 17", by="the office")
        assert (done.names, done.documents) == (1, ())
        assert (statuses(named), statuses(erased)) == (([], 0), (["paid"], 1))
        assert pulse_of(named.store) != before


def test_a_filter_cannot_widen_a_scope(filed):
    seen = look_through(filed, AccessScope.of({"member": ["ada", "eve"]}))
    for asked, shown in (("bob", []), (["bob", "eve"], ["eve"])):
        query = Query.parse(by="member", where={"member": asked})
        assert [row["member"] for row in read_report(seen.store, query).rows] == shown


def test_a_scoped_ledger_has_the_tags_of_its_own_entries(filed, record):
    record(who={"member": "bob", "tags": {"secret-project": "x"}})
    assert look_through(filed, AccessScope.of({"member": "ada"})).store.tag_names() == ["env"]
    assert filed.store.tag_names() == ["env", "secret-project"]


def test_a_scoped_ledger_has_every_method_of_a_store_and_none_that_writes(filed):
    seen = look_through(filed, AccessScope.of({"member": "ada"})).store
    missing = [name for name in dir(Store) if not name.startswith("_") and name not in dir(seen)]
    assert missing == []
    before = filed.store.verify()
    for name in (
        "settle",
        "append",
        "reserve",
        "release",
        "extend",
        "file",
        "recount",
        "open_counters",
        "secret",
    ):
        with pytest.raises(LedgerError, match="only a part"):
            getattr(seen, name)()
    assert filed.store.verify() == before


def test_what_others_do_is_not_told_to_a_part_and_what_is_its_own_is(filed, record):
    ada = look_through(filed, AccessScope.of({"member": "ada"})).store
    search = look_through(filed, AccessScope.of({"team": "search"})).store

    def changed(part, act):
        before = part.pulse()
        act()
        assert part.pulse() == part.pulse()
        return part.pulse() != before

    def budget(member, limit):
        filed.budgets.set(Budget(name=f"of-{member}", member=member, limit_usd=limit, period="year"))

    at = datetime(2021, 3, 9, tzinfo=UTC)
    assert not changed(ada, lambda: record(who={"member": "bob", "team": "search"}))
    assert not changed(ada, lambda: budget("bob", 5))
    assert not changed(ada, lambda: record_payment(filed.store, "INV-00002", "0.01"))
    assert not changed(search, lambda: record_payment(filed.store, "INV-00002", "0.01"))
    assert changed(ada, lambda: record(who={"member": "ada", "team": "search"}))
    assert changed(ada, lambda: record(at=at, who={"member": "ada"}))
    assert changed(ada, lambda: budget("ada", 5))
    assert changed(search, lambda: record_payment(filed.store, "INV-00001", "0.01"))


@pytest.mark.parametrize(
    "only", [{}, {"member": ""}, {"member": []}, {"colour": "red"}, {"sku_meter": "input"}, {"member": None}, "ada"]
)
def test_a_scope_that_would_show_all_or_nothing_is_refused(only):
    with pytest.raises(ConfigurationError, match="only"):
        AccessScope.of(only)


def test_every_page_of_a_scoped_token_keeps_to_its_scope(shared, filed):
    for path in PAGES:
        status, _, body = shared.get(path, **bearer(ADA))
        assert status == 200, path
        assert "bob" not in body, path
        assert "summarise" not in body, path
    assert "bob" in shared.get("/explore?by=member", **bearer(OPS))[2]
    assert "bob" not in shared.get("/explore?by=member", **bearer(ADA))[2]  # also after another one asked the same
    bobs = next(one for one in filed.store.entries() if one.attribution.member == "bob")
    assert shared.get(f"/entries/{bobs.entry_id}", **bearer(ADA))[0] == 404
    for what in ("report.csv?by=member", "entries.csv", "charges.csv"):
        rows = shared.get(f"/export/{what}", **bearer(ADA))[2]
        assert "ada" in rows
        assert "bob" not in rows


def routes_of(routes, base=""):
    """Every path of an application and of what is mounted in it, but files that everybody has."""
    for one in routes:
        path = f"{base}{getattr(one, 'path', '')}"
        inner = getattr(one, "routes", None)
        if path.startswith("/static"):
            continue
        if inner:
            yield from routes_of(inner, path)
        elif isinstance(one, Route):
            yield path, one.methods or {"GET"}


def every_route(meter):
    """All that is served: the application's own, those of its pages, and the API's, with what acts."""
    made = dashboard.app(meter)
    site = _Site(look_through(meter, EVERYTHING), None, lambda _: None)
    api = make_api(lambda _: meter)
    add_verbs(api, meter)
    return {*((path, "GET") for path, _ in routes_of([*made.routes, *site.router.routes]))} | {
        (f"/api{one.path}", method)
        for one in api.routes
        if isinstance(one, Route)
        for method in getattr(one, "methods", None) or ()
    }


def places_of(filed):
    """Where all routes there are lead to, filled with what is of others: a route that is added is walked, too."""
    bobs = next(one for one in filed.store.entries() if one.attribution.member == "bob")
    closing = next(iter(filed.store.documents(DocumentQuery("period"))))
    outcome = next(iter(filed.store.documents(DocumentQuery("reconciliation"))))
    filled = {
        "entry_id": [bobs.entry_id],
        "number:path": ["INV-00001", "INV-00002", "CN-00001"],
        "number": ["INV-00001"],
        "name:path": ["everything", "ada-monthly"],
        "name:anything": ["everything", "ada-monthly"],
        "name": ["everything"],
        "key": [closing.key, outcome.document_id, "1"],
        "form": ["csv", "html", "json"],
        "what": ["report.csv", "entries.csv", "charges.csv", "focus.zip", "budget", "credit"],
    }
    asked = {
        "/account": "?member=bob",
        "/statements": "?account=member&of=bob&period=all",
        "/statements/{form}": "?account=member&of=bob&period=last-month",
        "/api/v1/statement": "?account=member=bob&period=last-month",
        "/api/v1/prices": "?model=gpt-5-mini",
        "/values": "?of=member",
        "/explore": "?by=member",
    }
    for path, method in sorted(every_route(filed)):
        if path in {"/events", "/login", "/logout", "/healthz", "/readyz"} or method == "HEAD":
            continue
        places = [path]
        for name, values in filled.items():
            places = [
                place.replace(f"{{{name}}}", value)
                for place in places
                for value in (values if f"{{{name}}}" in place else [""])
            ]
        assert all("{" not in place for place in places), f"{path}: say what others have there"
        yield from ((place + asked.get(path, ""), method) for place in places)


def text_of(body):
    return body if isinstance(body, str) else unzipped(body)


def test_no_route_shows_a_scoped_token_what_is_of_others(shared, filed, hostile):
    walked = 0
    for place, method in places_of(filed):
        status, _, body = shared.get(place, method=method, body="{}" if method == "POST" else None, **bearer(ADA))
        assert status < 500, (place, status)
        theirs = ["summarise", "staging", "Platform GmbH", hostile, *([] if "bob" in place else ["bob"])]
        assert [one for one in theirs if one in text_of(body)] == [], place
        walked += 1
    assert walked > 60


def cursor_past(meter, entry, *, newest_first=True):
    """As somebody who sees everything gets it, behind a page that ends with `entry`."""
    known = [one.entry_id for one in meter.store.entries(newest_first=newest_first)]
    limit = known.index(entry.entry_id) + 1
    return answers.entry_page(meter, Query.parse(), limit=limit, newest_first=newest_first).next


#: Ways to ask for what is of others: by any name of a filter, more than once, left out, encoded, unset, broken.
WIDENED = (
    *("member=", "member=*", "member=%25", "member=ada&member=BOB", "member=BOB&member=ada", "member=ada,BOB"),
    *("member!=ada", "member%21=ada", "member!=ada&member=BOB", "member=!ada", "MEMBER=BOB", "member%00=BOB"),
    *("member[]=BOB", "%6dember=%62ob", "member=ada%00BOB", "member=%FF", "member=ada;member=BOB", "only=member=BOB"),
    *("where=member=BOB", "where=member!%3Dada", "where=member%3Dada&where=member%3DBOB", "where=member%3D"),
    *("where=team%3Dads", "where=tag:env!%3Dprod", "where=api_key%3Dstaging", "account=member=BOB", "of=BOB"),
    *("account=member&of=BOB", "account=team&of=ads&period=last-month", "team=ads&route=/x", "by=route", "by=api_key"),
    *("by=member,team,route", "of=route&find=s", "compare=none&hide=ada", "hide=BOB&find=BOB", "sort=-spend&by=team"),
    *("cursor=THEIRS", "cursor=OLDER&order=oldest", "cursor=INV-00002", "before=THEIRS", "after=THEIRS", "page=2"),
    *("limit=1000&order=oldest", "since=2000-01-01&until=9000-01-01", "tz=Pacific/Kiritimati", "holds=1&member=BOB"),
)


def test_no_way_to_ask_shows_a_scoped_token_what_is_of_others(filed, hosted, hostile):
    """All routes times all ways; a request's own words may come back to who said them, others' figures may not."""
    filed.settings = filed.settings.model_validate({**filed.settings.model_dump(), "dashboard": tokens()})
    served = hosted(dashboard.app(filed, requests_per_minute=1_000_000))
    theirs = [one for one in filed.store.entries() if one.attribution.member == "bob"][2]
    cursors = {"THEIRS": cursor_past(filed, theirs), "OLDER": cursor_past(filed, theirs, newest_first=False)}
    for way in ("cursor=THEIRS", "cursor=OLDER&order=oldest"):  # it is one, and leads on
        name = way[7:].partition("&")[0]
        assert api(served, f"/entries?{way.replace(name, cursors[name])}", ADA)[1]["entries"]
    secret = ["summarise", "staging", "Platform GmbH", hostile, theirs.entry_id, theirs.response_id]
    reads = sorted({place.partition("?")[0] for place, method in places_of(filed) if method == "GET"})
    assert len(reads) * len(WIDENED) > 1_000
    for place in reads:
        for way in WIDENED:
            asked = f"{place}?{way.replace('BOB', 'bob')}"
            for name, cursor in cursors.items():
                asked = asked.replace(name, cursor)
            status, _, body = served.get(asked, **bearer(ADA))
            assert status < 500, (asked, status)
            said = unquote(asked)
            hidden = [*secret, *([] if "bob" in said else ["bob"])]
            assert [one for one in hidden if one in text_of(body) and one not in said] == [], asked


def test_what_others_do_changes_no_answer_that_a_part_gets(filed, hosted, record):
    """Not a count, a suggestion, a bar's height nor an ETag: a ledger in which others were busy answers the same."""
    filed.settings = filed.settings.model_validate({**filed.settings.model_dump(), "dashboard": tokens()})
    served = hosted(dashboard.app(filed, requests_per_minute=1_000_000))
    reads = {place for place, method in places_of(filed) if method == "GET" and not place.startswith("/metrics")}
    asked = sorted(reads | {*PAGES, "/explore?by=model&period=last-30d", "/values?of=model", "/values?of=tag:env"})

    def told(path):
        status, headers, body = served.get(path, **bearer(ADA))
        # A file that is downloaded has the time at which it was made: in it, of it, and in digests over it.
        etag = None if path.startswith("/export/") else headers.get("etag")
        return status, etag, re.sub(r"\d\d:\d\d(:\d\d(\.\d+)?)?|\"sha256\": \"\w+\"", "", text_of(body))

    before = {path: told(path) for path in asked}
    assert len([path for path, (status, _, _) in before.items() if status == 200]) >= 30
    everything = api(served, "/report")[1]["totals"]
    for member in ("bob", "zoe"):
        others = {"member": member, "team": "zoo", "route": "/zoo", "tags": {"env": "zoo"}}
        record(who=others, model="zoo-1", provider="zoo", key="zoo", input=10**8)
        record(who=others, input=10**8, output=10**7)
    filed.budgets.set(Budget(team="zoo", limit_usd=1, name="zoo"), by="boss", reason="busy")
    record_payment(filed.store, "INV-00002", "0.01")
    assert api(served, "/report")[1]["totals"] != everything
    assert [path for path in asked if told(path) != before[path]] == []


def test_the_event_stream_tells_a_part_of_its_own_calls_alone(shared, filed, record):
    """After a call of another's and one of its own, the next that it is told is its own state."""
    ada = look_through(filed, AccessScope.of({"member": "ada"})).store
    for asked in ("/events", "/events?holds=1", "/events?member=bob", "/events?holds=1&only=member=bob"):
        connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=30)
        connection.request("GET", asked, headers=bearer(ADA))
        lines = iter(connection.getresponse().readline, b"")
        next(line for line in lines if line.startswith(b"data:"))
        record(who={"member": "bob", "team": "search"})
        record(who={"member": "ada", "team": "search"})
        told = next(line for line in lines if line.startswith(b"data:")).decode().removeprefix("data:").strip()
        state = pulse_of(ada)
        assert told == (state if "holds" in asked else entries_of(state)), asked
        connection.close()


def test_the_event_stream_is_for_those_who_may_look(shared):
    for headers in ({}, bearer(OPS[:-1] + "x")):
        status, found, _ = shared.get("/events", **headers)
        assert status in {303, 401}
        assert "event-stream" not in found.get("content-type", "")


def unzipped(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return "".join(archive.read(name).decode() for name in archive.namelist())


def test_the_statement_of_another_account_is_refused_on_the_page_too(shared):
    for path in ("/statements", "/statements/csv"):
        assert shared.get(f"{path}?account=member&of=bob&period=last-month", **bearer(ADA))[0] == 403
        assert shared.get(f"{path}?account=team&of=search&period=last-month", **bearer(ADA))[0] == 403
        assert shared.get(f"{path}?account=member&of=ada&period=last-month", **bearer(ADA))[0] == 200


def test_oauth2_proxy_in_front_says_who_it_is_and_nobody_else_can(busy, hosted):
    """A reverse proxy that sets the header of whoever signed in, and drops what the client claims itself."""

    def whose(request):
        user = request.headers.get("x-forwarded-email")
        return {"member": user} if user else None

    behind = hosted(Starlette(routes=[Mount("/usage", dashboard.app(busy, only=whose))]))

    async def proxy(scope, receive, send):
        if scope["type"] != "http":
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        signed_in = {"session-of-ada": "ada", "session-of-bob": "bob"}.get(headers.pop("cookie", ""))
        headers = {name: value for name, value in headers.items() if not name.startswith("x-forwarded-")}
        if signed_in is None:
            await PlainTextResponse("Sign in.", status_code=403)(scope, receive, send)
            return
        query = scope["query_string"].decode()
        status, found, body = await run_in_threadpool(
            behind.get, scope["path"] + (f"?{query}" if query else ""), **{**headers, "x-forwarded-email": signed_in}
        )
        kept = {name: value for name, value in found.items() if name not in {"content-length", "transfer-encoding"}}
        await Response(body, status, kept)(scope, receive, send)

    front = hosted(proxy)
    assert front.get("/usage/")[0] == 403
    for user, other in (("ada", "bob"), ("bob", "ada")):
        status, _, page = front.get("/usage/explore?by=member", cookie=f"session-of-{user}", x_forwarded_email=other)
        assert (status, f">{user}<" in page, f">{other}<" in page) == (200, True, False)
        report = json.loads(front.get("/usage/api/v1/report?by=member", cookie=f"session-of-{user}")[2])
        assert [row["group"]["member"] for row in report["rows"]] == [user]
    assert behind.get("/usage/")[0] == 403  # without the proxy nobody is anybody


def test_the_usage_api_keeps_to_the_scope(shared, filed):
    members = {row["group"]["member"] for row in api(shared, "/report?by=member")[1]["rows"]}
    assert {"ada", "bob"} < members
    assert [row["group"]["member"] for row in api(shared, "/report?by=member", ADA)[1]["rows"]] == ["ada"]
    assert api(shared, "/report?by=member&where=member=bob", ADA)[1]["rows"] == []
    assert {one["member"] for one in api(shared, "/entries?limit=1000", ADA)[1]["entries"]} == {"ada"}
    assert api(shared, "/statement?account=member=bob&period=last-month", ADA)[0] == 403
    assert api(shared, "/me", ADA)[1] == {"name": "ada", "only": {"member": ["ada"]}, "can": ["read"]}
    assert api(shared, "/invoices", ADA)[1] == {"invoices": [], "next_cursor": None}
    assert len(api(shared, "/invoices")[1]["invoices"]) == 2
    status, found = api(shared, "/balances", ADA)
    assert (status, {one["scope"]["member"] for one in found["balances"]}) == (200, {"ada"})


def test_an_application_decides_what_each_of_its_users_sees(busy, hosted):
    async def whose(request):
        user = request.headers.get("x-user")
        return "everything" if user == "boss" else user and {"member": user}

    served = hosted(Starlette(routes=[Mount("/usage", dashboard.app(busy, only=whose))]))
    assert "bob" in served.get("/usage/explore?by=member", x_user="boss")[2]
    mine = served.get("/usage/explore?by=member", x_user="ada")
    assert mine[0] == 200
    assert "bob" not in mine[2]
    assert served.get("/usage/explore?by=member")[0] == 403
    report = json.loads(served.get("/usage/api/v1/report?by=member", x_user="bob")[2])
    assert [row["group"]["member"] for row in report["rows"]] == ["bob"]


def test_pages_are_shown_in_frames_of_those_who_are_named_and_no_others(busy, hosted):
    """Never the login page, nor what acts."""

    def frames(answer):
        (policy,) = (one for one in answer[1]["content-security-policy"].split("; ") if one.startswith("frame-an"))
        return policy.removeprefix("frame-ancestors "), answer[1].get("x-frame-options")

    served = hosted(dashboard.app(busy))
    assert {frames(served.get(path)) for path in ("/", "/login", "/api/v1/report", "/nowhere")} == {("'none'", "DENY")}
    portal = "https://portal.example.com"
    served = hosted(dashboard.app(busy, frame_ancestors=["self", portal]))
    assert frames(served.get("/")) == frames(served.get("/nowhere")) == (f"'self' {portal}", None)
    assert frames(served.get("/login")) == frames(served.get("/acts/budget")) == ("'none'", "DENY")
    assert frames(hosted(dashboard.app(busy, frame_ancestors="self")).get("/"))[0] == "'self'"


@pytest.mark.parametrize(
    "origin",
    [
        *("*", "https:", "https://*", "https://*.example.com", "https://a.example/path", "http://a.example", "'none'"),
        *(
            "https://a.example;script-src *",
            "https://a.example 'unsafe-inline'",
            "https://a.example\r\nx: y",
            "",
            "none",
        ),
    ],
)
def test_a_frame_for_everybody_or_for_nobody_who_can_be_told_is_refused(busy, origin):
    with pytest.raises(ConfigurationError, match="frame_ancestors="):
        dashboard.app(busy, frame_ancestors=origin)


NOTHING = [{}, {"nonsense": "x"}, {"member": None}, {"member": []}, {"member": ""}, 5, ""]


@pytest.mark.parametrize("only", NOTHING)
def test_a_part_that_names_nothing_is_refused_where_it_is_given(busy, only):
    with pytest.raises(ConfigurationError, match="only="):
        dashboard.app(busy, only=only)


@pytest.mark.parametrize("answer", NOTHING)
def test_a_function_whose_answer_names_nothing_shows_nothing_and_the_log_says_so(busy, hosted, caplog, answer):
    served = hosted(dashboard.app(busy, only=lambda _: answer))
    for path in ("/", "/api/v1/report?by=member"):
        status, _, body = served.get(path)
        assert (status, "nothing here that you may see" in body) == (403, True)
    assert f"the function given as only= answered {answer!r}" in caplog.text


@pytest.mark.parametrize("only", [{}, {"nonsense": "x"}, {"member": []}, {"member": ""}])
def test_a_token_whose_part_names_nothing_is_refused(only):
    with pytest.raises(ConfigurationError, match=r"dashboard\.tokens\.lead: only=") as refused:
        load_settings(config={"dashboard": tokens(lead={"hash": hash_of("x"), "only": only})})
    assert ("leave it out" in str(refused.value)) == (only == {})


def test_a_token_that_acts_sees_everything():
    row = {"hash": hash_of("x"), "only": {"team": "a"}, "can": ["budgets"]}
    with pytest.raises(ConfigurationError, match=r"dashboard\.tokens\.lead"):
        load_settings(config={"dashboard": tokens(lead=row)})


def test_a_token_itself_does_not_belong_into_the_settings():
    with pytest.raises(ConfigurationError) as refused:
        load_settings(config={"dashboard": tokens(lead={"hash": ADA})})
    assert ADA not in str(refused.value)


def test_an_expired_token_is_none(busy, serve):
    row = {"hash": hash_of("expired" * 5), "expires": "2020-01-01"}
    busy.settings = busy.settings.model_validate({**busy.settings.model_dump(), "dashboard": tokens(old=row)})
    served = serve(busy)
    assert served.get("/api/v1/me", **bearer("expired" * 5))[0] == 401
    assert served.get("/api/v1/me", **bearer(OPS))[0] == 200


# -- clients that mean no good


def test_who_sends_wrong_tokens_has_to_wait_and_a_token_that_a_person_chose_too(busy, serve):
    chosen = "sixteen-letters-or-more"
    settings = {**busy.settings.model_dump(), "dashboard": tokens(kim={"hash": hash_of(chosen)})}
    busy.settings = busy.settings.model_validate(settings)
    shared = serve(busy)
    assert shared.get("/api/v1/me", **bearer(chosen))[0] == 200
    answers = [shared.get("/api/v1/me", **bearer(f"guess-{number}")) for number in range(12)]
    assert [status for status, _, _ in answers] == [401] * 10 + [429] * 2
    assert int(answers[-1][1]["retry-after"]) >= 1
    assert shared.get("/api/v1/me", **bearer(chosen))[0] == 429  # not even looked at
    form = {"content_type": "application/x-www-form-urlencoded"}
    status, headers, body = shared.get("/login", method="POST", body=f"token={chosen}", **form)
    assert (status, "Too many wrong tokens" in body) == (429, True)
    assert "retry-after" in headers


def test_wrong_tokens_do_not_lock_out_a_program_of_the_same_address(busy, serve):
    token, digest = make_token()
    busy.settings = busy.settings.model_validate(
        {**busy.settings.model_dump(), "dashboard": tokens(made={"hash": digest})}
    )
    served = serve(busy)
    for number in range(12):
        served.get("/api/v1/me", **bearer(f"guess-{number}"))
    for path in ("/api/v1/me", "/metrics"):
        assert served.get(path, **bearer(token))[0] == 200
    assert served.get("/api/v1/me", **bearer(f"{token[:-1]}~"))[0] == 429
    form = {"content_type": "application/x-www-form-urlencoded"}
    assert served.get("/login", method="POST", body=f"token={token}", **form)[0] == 303


def test_a_viewer_who_is_in_does_not_wait_for_others(shared):
    form = {"content_type": "application/x-www-form-urlencoded"}
    cookie = shared.get("/login", method="POST", body=f"token={OPS}", **form)[1]["set-cookie"].partition(";")[0]
    for number in range(12):
        shared.get("/api/v1/me", **bearer(f"guess-{number}"))
    assert shared.get("/", cookie=cookie)[0] == 200


def test_who_asks_too_often_is_slowed_down_and_others_are_not(busy, hosted):
    busy.settings = busy.settings.model_validate({**busy.settings.model_dump(), "dashboard": tokens()})
    served = hosted(dashboard.app(busy, requests_per_minute=12))
    found = [served.get("/api/v1/me", **bearer(ADA))[0] for _ in range(4)]
    assert found == [200, 200, 429, 429]
    assert served.get("/api/v1/me", **bearer(OPS))[0] == 200
    assert served.get("/healthz")[0] == 200


def test_a_request_that_is_too_large_is_refused(served):
    assert served.get("/login", method="POST", body="x" * 1_000_001)[0] == 413
    assert served.get("/api/v1/report", method="POST", body="x" * 1_000_001)[0] == 413
    with socket.create_connection(("127.0.0.1", served.port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000)  # and never an end
        assert raw.recv(1000).startswith(b"HTTP/1.1 4")


def test_a_request_whose_length_a_wsgi_server_left_empty_is_answered(busy):
    """PEP 3333 lets CONTENT_LENGTH be empty, and adapters hand that on: each page was 413."""
    with TestClient(dashboard.app(busy, only={"member": "ada"})) as browser:
        found = [
            browser.get(path, headers={"content-length": ""}).status_code for path in ("/", "/login", "/api/v1/me")
        ]
        assert found == [200, 200, 200]
        assert browser.get("/", headers={"content-length": "-1"}).status_code == 413


def test_who_does_not_finish_asking_is_hung_up_on(served, monkeypatch):
    monkeypatch.setattr(serving, "_PATIENCE", 0.2)
    for said in (b"", b"GET / HTTP/1.1\r\nHost: lo"):
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as slow:
            slow.sendall(said)
            assert slow.recv(1) == b""
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET")
        answer = b""
        while part := slow.recv(1000):
            answer += part
        assert answer.count(b"HTTP/1.1 200") == 1


def test_who_asks_takes_the_place_of_who_never_finishes_asking(served, monkeypatch):
    monkeypatch.setattr(serving, "_MOST_CONNECTIONS", 3)
    idle = [socket.create_connection(("127.0.0.1", served.port), timeout=30) for _ in range(5)]
    for one in idle:
        with contextlib.suppress(OSError):
            one.sendall(b"GET / HTTP/1.1\r\nHost: lo")
    assert served.get("/healthz")[0] == 200
    for one in idle[:3]:
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(1) == b""
    for one in idle:
        one.close()


def test_a_head_that_is_too_large_is_refused_however_it_comes(served):
    long = "a" * 17_000
    for path, headers in (("/healthz", {"x_long": long}), (f"/api/v1/me?{long}", {}), (f"/{long}", {})):
        status, answered, _ = served.get(path, **headers)
        assert status in {400, 431}, path  # one that comes in pieces is given up on before it is whole
    status, answered, body = served.get("/api/v1/me", cookie="a" * 16_400)
    assert (status, answered["content-type"]) == (431, "application/problem+json"), body


def test_more_connections_than_are_bearable_are_hung_up_on(served, monkeypatch):
    monkeypatch.setattr(serving, "_MOST_CONNECTIONS", 3)
    held = [socket.create_connection(("127.0.0.1", served.port), timeout=30) for _ in range(3)]
    for one in held:  # each is known to the server once it answers
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert one.recv(100).startswith(b"HTTP/1.1 200")
    more = socket.create_connection(("127.0.0.1", served.port), timeout=30)
    with more, contextlib.suppress(ConnectionResetError):
        assert more.recv(1) == b""
    for one in held:
        one.close()


# -- probes


def test_the_probes_say_yes_or_no_and_nothing_else(shared, filed, monkeypatch):
    for path in ("/healthz", "/readyz"):
        status, headers, body = shared.get(path)
        assert (status, json.loads(body)) == (200, {"status": "ok"})
        assert headers["cache-control"] == "no-store"

    def away(*_, **__):
        raise StoreUnavailableError("postgresql://user@secret-host/db does not answer")

    for name in ("pulse", "aggregate"):
        monkeypatch.setattr(type(filed.store), name, away)
    for path in ("/healthz", "/readyz"):
        status, headers, body = shared.get(path)
        assert (status, json.loads(body)) == (503, {"status": "unavailable"})
        assert "retry-after" in headers
    status, headers, body = shared.get("/api/v1/report", **bearer(OPS))
    assert (status, headers["content-type"]) == (503, "application/problem+json")


def test_who_sees_a_part_is_not_told_where_the_ledger_lies(shared, filed, monkeypatch):
    def away(*_, **__):
        raise StoreUnavailableError("postgresql://user@secret-host/db does not answer; look at /secret-host/spool")

    for name in ("pulse", "aggregate", "entries", "entry", "documents", "latencies", "all_counters", "span", "health"):
        monkeypatch.setattr(type(filed.store), name, away)
    asked = [*PAGES, "/account?member=ada", "/values?of=model", "/export/entries.csv", "/metrics", "/doubts"]
    asked += [f"/api/v1/{one}" for one in ("report", "entries", "balances", "invoices", "statement?account=member=ada")]
    told = {True: 0, False: 0}
    for path in asked:
        for token in (ADA, OPS):
            status, _, body = shared.get(path, **bearer(token))
            assert status in {200, 422, 503}, path
            told[token == OPS] += "secret-host" in body
            if status == 503:
                assert "does not answer" in body, path
    assert told[False] == 0
    assert told[True] > 10


def test_prometheus_reads_the_ledgers_sums(shared):
    from prometheus_client.parser import text_string_to_metric_families

    assert shared.get("/metrics")[0] == 401
    families = list(text_string_to_metric_families(shared.get("/metrics", **bearer(OPS))[2]))
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }
    assert {family.type for family in families} == {"gauge"}, "a reversal lowers every sum, which a counter must not"
    assert found["tokenmeter_ledger_up",] == 1
    label = (("model", "gpt-5-mini"), ("provider", "openai"))
    rows = api(shared, "/report?by=model,provider&where=model=gpt-5-mini")[1]["rows"]
    assert found["tokenmeter_ledger_requests", *label] == rows[0]["requests"]
    assert found["tokenmeter_ledger_billed_cost_usd", *label] == pytest.approx(float(rows[0]["billed_cost"]))
    assert found["tokenmeter_budget_limit", ("budget", "ada-monthly"), ("scope", "member=ada"), ("unit", "usd")] == 0.05
    assert "bob" not in shared.get("/metrics", **bearer(ADA))[2]


def test_who_granted_and_why_is_not_told_to_a_part(shared, filed):
    filed.budgets.grant("ada-monthly", 1, by="boss", reason="bob left")
    (grant,) = api(shared, "/budgets/ada-monthly/history", ADA)[1]["grants"]
    assert (grant["amount"], grant["by"], grant["reason"]) == ("1", "", "")


def test_a_key_that_something_was_granted_to_is_told_by_its_name(shared, filed):
    filed.budgets.set({"name": "each", "member": "*", "api_key": "*", "limit_usd": 5})
    filed.budgets.grant("each", 1, scope={"member": "ada", "api_key": "prod"}, by="boss", reason="more")
    (grant,) = api(shared, "/budgets/each/history", ADA)[1]["grants"]
    balances = api(shared, "/balances", ADA)[1]["balances"]
    (balance,) = (one for one in balances if one["scope"].get("api_key") == "prod" and one["budget"] == "each")
    assert grant["scope"] == balance["scope"] == {"member": "ada", "api_key": "prod"}


@pytest.mark.parametrize(
    ("path", "told", "untold"),
    [
        ("/periods", "Not among what you see", "No period is closed yet"),
        ("/reconciliations", "Not among what you see", "Nothing was reconciled yet"),
        ("/invoices", "No invoice is among what you see", "No invoice has been issued"),
        ("/credit-notes", "No credit note is among what you see", "No credit note has been issued"),
        ("/budgets", "No budget is among what you see", "No budget is configured"),
        ("/account?member=nobody&period=last-30d", "No budget that you see concerns", "No budget concerns"),
        ("/health", "Nothing that you see needs care", "holds a part of a budget"),
        ("/health", "It answers", "failed here"),
    ],
)
def test_what_may_not_be_seen_is_not_said_to_be_none(filed, hosted, path, told, untold):
    served = hosted(dashboard.app(filed, only=lambda _: {"member": "nobody"}))
    status, _, page = served.get(path)
    assert (status, told in page, untold in page) == (200, True, False), page
