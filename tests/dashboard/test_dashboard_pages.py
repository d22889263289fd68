"""The pages of budgets, accounts, prices, doubts, statements and health: what a person comes to them for."""

from __future__ import annotations

import html
import json
import re
import shlex
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import parse_qsl, urlencode

import pytest

import tokenmeter
from tokenmeter.budgets import Budget
from tokenmeter.dashboard.budgets import changes_of, definition, past, standings
from tokenmeter.dashboard.care import checks, estimated, price_card, unpriced, used_prices
from tokenmeter.dashboard.view import WITH_PAGE, View, label_of
from tokenmeter.periods import parse_period
from tokenmeter.stores.base import Health

NONE = "\u2013"
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def text_of(page, heading):
    return page.locator("section", has=page.get_by_role("heading", name=heading)).inner_text()


# -- budgets


def test_a_budgets_page_says_what_it_is_where_it_stands_and_who_changed_it(meter, serve, browse, record):
    meter.budgets.set(
        Budget(name="searchers", team="search", limit_usd="0.02", period="day"), by="kim", reason="launch"
    )
    meter.budgets.set(
        Budget(name="searchers", team="search", limit_usd="0.01", period="day"), by="lee", reason="too much"
    )
    record(who={"team": "search"}, output=4000)
    page = browse(f"{serve(meter, tz='UTC').url}/budgets")
    page.get_by_role("link", name="searchers", exact=True).click()
    page.get_by_role("heading", level=1, name="Budget searchers").wait_for()
    said = text_of(page, "What it says")
    for words in ("calls of team search", "$0.01", "day", "stopped before it is sent", "50%, 80%, 100%"):
        assert words in said
    changes = page.get_by_role("region", name="Changes as a table").locator("tbody tr").all_inner_texts()
    assert "lee" in changes[0]
    assert "0.02 0.01" in changes[0]
    assert "too much" in changes[0]
    assert "kim" in changes[1]
    assert "launch" in changes[1]
    assert "80%" in text_of(page, "Alerts")
    page.get_by_role("link", name="What it counts").click()
    page.wait_for_url("**/explore?since=*team=search*")
    assert page.locator(".values tfoot").inner_text().split() == ["total", "$0.0084", "1", "4,000", NONE, "$0.0084"]


def test_a_budget_says_how_much_of_it_has_no_known_price(make_meter, record_in, serve):
    made = make_meter([{"limit_usd": 10, "period": "total", "name": "all"}])
    served = serve(made)
    record_in(made)
    assert "of it assumed" not in served.get("/budgets")[2]
    record_in(made, model="not-priced", input=1000)
    (balance,) = made.remaining()
    assert 0 < balance.assumed < balance.spent
    page = re.sub(r"<[^>]+>|\s+", " ", served.get("/budgets")[2])
    (shown,) = re.findall(r"of it assumed +\$([0-9.]+)", page)
    assert Decimal(shown) == balance.assumed
    (told,) = json.loads(served.get("/api/v1/balances")[2])["balances"]
    assert (Decimal(told["assumed"]), Decimal(told["spent"])) == (balance.assumed, balance.spent)


def test_a_search_finds_the_counter_of_whoever_is_named_among_all_of_a_budget(make_meter, record_in, serve):
    made = make_meter([{"member": "*", "limit_usd": 10, "name": "each"}, {"limit_requests": 900, "name": "all"}])
    for number in range(70):
        record_in(made, who={"member": f"user-{number:02}"}, output=1000 + 1000 * (number < 69))
    served = serve(made)

    def shown(path):
        return re.findall(r"member: <bdi>(.+?)</bdi></(?:p|h3)>", served.get(path)[2])

    assert len(shown("/budgets")) == 60 - 1
    assert "user-69" not in shown("/budgets")
    for path in ("/budgets", "/budgets/each"):
        assert shown(f"{path}?find=USER-69") == ["user-69"]
        assert "has <bdi>nobody</bdi> in its name" in served.get(f"{path}?find=nobody")[2]


def test_a_budget_says_when_it_is_full(make_meter, record):
    made = make_meter([{"limit_usd": 10, "name": "all"}, {"limit_tokens": 10**9, "name": "tokens"}])
    for one in standings(made, NOW):
        assert (one.full_at, one.rate) == (None, 0)
    entry = record(at=NOW - timedelta(hours=1), fields={"billed_cost": Decimal(9), "cost_source": "billed"})
    made.store.settle(entry, made.budgets.postings(entry))
    (spent,) = (one for one in standings(made, NOW) if one.balance.unit == "usd")
    assert spent.rate == Decimal(9) / Decimal("22.5")
    assert spent.full_at == datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=25)
    assert spent.balance.full_at(NOW) == spent.full_at
    assert spent.balance.full_at(datetime(2027, 1, 1, tzinfo=UTC)) is None  # another window
    for hours, told in ((71, False), (72, True)):  # of a month, from its first tenth on
        at = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(hours=hours)
        (early,) = (one for one in standings(made, at) if one.balance.unit == "usd")
        assert (early.rate is not None, early.full_at is not None) == (told, told)


@pytest.mark.parametrize(
    ("dates", "asked"),
    [
        ({}, {"period": "all"}),
        ({"starts": "2026-11-01"}, {"since": "2026-11-01"}),
        ({"ends": "2027-01-01"}, {"until": "2027-01-01"}),
        ({"starts": "2026-11-01", "ends": "2027-01-01"}, {"since": "2026-11-01", "until": "2027-01-01"}),
    ],
)
def test_a_budget_leads_to_the_calls_of_its_own_dates(make_meter, dates, asked):
    made = make_meter([{"member": "ada", "limit_usd": 10, "name": "pack", "period": "total", **dates}])
    (one,) = standings(made, NOW)
    assert {name: value[:10] for name, value in parse_qsl(one.calls[1:])} == {**asked, "member": "ada"}


def test_windows_that_are_over_are_told_with_their_use_and_lead_to_their_calls(make_meter, record):
    made = make_meter([{"member": "*", "limit_usd": 10, "name": "members", "period": "day"}])
    for days, cost in ((1, 4), (2, 9)):
        entry = record(
            at=NOW - timedelta(days=days),
            who={"member": "ada"},
            fields={"billed_cost": Decimal(cost), "cost_source": "billed"},
        )
        made.store.settle(entry, made.budgets.postings(entry))
    found = past(made, "members", NOW)
    assert [(one.scope, one.start.day, one.spent, one.percent) for one in found] == [
        ({"member": "ada"}, 22, 4, 40),
        ({"member": "ada"}, 21, 9, 90),
    ]
    view = View.parse(parse_qsl(found[0].calls[1:]), now=NOW)
    assert view.query.where == {"member": frozenset({"ada"})}


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(limit_usd=5), {"counts": "every call", "limit": "$5.00", "window": "month"}),
        (Budget(member="*", limit_requests=9, hard=False), {"counts": "calls of each member by itself"}),
        (Budget(model="gpt-5*", limit_in_flight=3), {"limit": "3 in flight", "counts": "calls of model gpt-5*"}),
        (Budget(limit_usd=5, limit_tokens=10, ends="2027-01-01"), {"limit": "$5.00, 10 tokens"}),
        (Budget(member="*", limit={"ada": "5"}, limit_usd=1), {"limit": "$1.00, 1 of its own in a table"}),
        (Budget(member="*", limit=lambda _: 5), {"limit": "asked of a function of the program"}),
        (Budget(limit_usd=5, unbounded="expected"), {"unbounded": "expected", "told at": "50%, 80%, 100%"}),
    ],
)
def test_a_definition_is_told_in_words(budget, words):
    said = dict(definition(budget))
    assert {name: said[name] for name in words} == words


def test_an_ended_budget_keeps_its_page(meter, serve):
    meter.budgets.set(Budget(name="trial", limit_usd=1), by="kim", reason="a try")
    meter.budgets.retire("trial", by="lee", reason="over")
    last, _ = changes_of(meter.budgets.history("trial"))[0]
    assert last.by == "lee"
    served = serve(meter)
    assert "trial" in served.get("/budgets")[2]
    status, _, body = served.get("/budgets/trial")
    assert status == 200
    assert "ended" in body
    assert served.get("/budgets/nobody")[0] == 404


# -- accounts


def test_a_members_page_has_all_of_one_account(filed, serve, browse):
    page = browse(f"{serve(filed).url}/explore?by=member")
    page.locator(".values tbody tr", has_text="ada").get_by_role("link", name="page").click()
    page.get_by_role("heading", level=1, name="Member ada").wait_for()
    assert page.locator(".cards").inner_text().count("$") >= 2
    assert "ada-monthly" in page.locator("#budgets").inner_text()
    since = parse_period("last-30d").start
    calls = [one for one in filed.entries() if one.attribution.member == "ada" and one.occurred_at >= since]
    assert page.locator("#last tbody tr").count() == len(calls) >= 6
    assert page.locator("#by-model").is_visible()
    assert page.get_by_text("Remove the filter member").count() == 0
    page.get_by_role("link", name="Statement", exact=True).click()
    page.get_by_role("heading", level=1, name="Statement of ada").wait_for()


def test_a_search_in_a_table_leaves_its_columns_and_says_nothing_else_in_the_address(filed, serve, browse):
    page = browse(f"{serve(filed).url}/explore?by=member")
    columns = page.locator(".values thead").inner_text()
    page.get_by_role("searchbox", name="Search").fill("ada")
    page.get_by_role("button", name="Show", exact=True).click()
    page.wait_for_url("**/explore?by=member&find=ada&period=last-30d")
    assert page.locator(".values thead").inner_text() == columns
    page.get_by_role("searchbox", name="Search").fill("")
    page.get_by_text("Columns", exact=True).click()
    page.get_by_role("checkbox", name="Failed requests").check()
    page.get_by_role("button", name="Show", exact=True).click()
    page.wait_for_url("**columns=requests%2Ctokens%2Ccached-share%2Ccost-per-request%2Cspend%2Cerrors&period=last-30d")


def test_a_teams_page_lists_its_invoices_and_a_key_has_a_page(filed, serve):
    served = serve(filed)
    assert "INV-00001" in served.get("/account?team=search")[2]
    body = served.get("/account?api_key=prod")[2]
    assert "API key <bdi>prod</bdi>" in body
    assert "No budget concerns" not in body  # one over everything does
    status, _, body = served.get("/account")
    assert (status, "Whose page?" in body) == (400, True)


@pytest.mark.parametrize("dimension", WITH_PAGE)
def test_who_is_seen_alone_is_a_click_from_the_page_with_its_limits(make_meter, record_in, serve, dimension):
    given = {"key": "prod"} if dimension == "api_key" else {"who": {"team": "search", "member": "ada", dimension: "x"}}
    value = given.get("key", "x")
    meter = make_meter([])
    record_in(meter, at=NOW, **given)
    served = serve(meter)
    narrowed = {"period": "all", "model": "gpt-5-mini", "team": given.get("who", {}).get("team", "")}
    for place in (
        "/?" + urlencode(narrowed | {dimension: value}),
        "/entries?" + urlencode(narrowed | {dimension: value}),
        "/explore?" + urlencode(narrowed | {"by": dimension}),
    ):
        body = served.get(place)[2]
        found = re.findall(rf'href="([^"]*)">page<span class="hidden"> of {value}</span>', body)
        assert found, place
        title = served.get(html.unescape(found[0]))[2].partition("</h1>")[0].rpartition("<h1>")[2]
        assert title.lower() == f"{label_of(dimension)} <bdi>{value}</bdi>".lower(), (place, found)
    assert ">page<" not in served.get("/?period=all&member=&model=gpt-5-mini")[2]  # nobody's, and a model's


# -- prices and doubts


def test_prices_are_told_now_before_and_after_with_their_source(busy, serve, browse):
    page = browse(f"{serve(busy).url}/prices")
    row = page.get_by_role("region", name="Prices of models in use").locator("tr", has_text="gpt-5-mini")
    assert row.locator("td").all_inner_texts()[1:5] == ["0.25", "0.025", NONE, "2"]
    assert "no price is known" in page.locator("tr", has_text="unheard-of-1").inner_text()
    row.get_by_role("link").click()
    page.get_by_role("heading", level=1, name="Prices of gpt-5-mini").wait_for()
    rows = page.get_by_role("region", name="Prices in force").locator("tbody tr")
    assert rows.filter(has_text="input").first.locator("td").nth(1).inner_text() == "0.25"
    assert "genai-prices" in page.get_by_role("region", name="Prices in force").inner_text()


def test_a_price_that_changes_is_on_its_side_of_today():
    from tokenmeter.pricing import PriceList

    def row(price, **dates):
        return {"provider": "acme", "model": "m1", "sku_meter": "input", "unit_price": price, **dates}

    listed = PriceList.load(
        [
            row("1", effective_to="2026-01-01"),
            row("2", effective_from="2026-01-01", effective_to="2027-01-01"),
            row("3", effective_from="2027-01-01"),
        ]
    )
    card = price_card(listed, "acme", "m1", NOW)
    assert [[one.unit_price for one in rows] for rows in (card.before, card.now, card.after)] == [[1], [2], [3]]
    assert price_card(listed, "acme", "m2", NOW) is None


def test_what_has_no_price_is_told_with_what_to_do(busy, serve, browse):
    page = browse(f"{serve(busy).url}/")
    page.get_by_role("link", name="What to do").click()
    page.get_by_role("heading", level=1, name="Not exact").wait_for()
    row = page.get_by_role("region", name="Models without a price").locator("tbody tr")
    assert "unheard-of-1" in row.inner_text()
    row.get_by_text("Give it a price").click()
    assert 'model = "unheard-of-1"' in row.inner_text()
    assert "Why" not in page.get_by_role("region", name="Why entries are estimated").locator("tbody").inner_text()


def test_a_call_of_which_a_part_has_no_price_never_shows_the_rest_as_its_cost(meter, serve, record):
    known, unknown = record(who={"member": "ada"}, input=1000, output=100).charges
    lost = replace(unknown, list_unit_price=None, list_cost=None, contracted_cost=None, billed_cost=None, price_id=None)
    cost = dict.fromkeys(("list_cost", "contracted_cost", "billed_cost"), known.billed_cost)
    entry = record(
        who={"member": "eve"},
        fields={"charges": (known, lost), "cost_source": "unpriced", **cost},
        input=1000,
        output=1,
    )
    assert "$0.0002625 + unpriced" in repr(entry)
    assert "$0.0002625 + unpriced" in entry._repr_html_()
    served = serve(meter)
    entries, overview = (re.sub(r"<[^>]+>", "", served.get(path)[2]) for path in ("/entries", "/"))
    assert re.findall(r"\$0\.000\d+( \+ unpriced)?\s", entries) == [" + unpriced", ""]
    by_member = overview[overview.index("By member") :]
    assert re.findall(r"\$0\.000\d+(\*?)", by_member)[:2] == ["", "*"]


def test_the_settings_that_are_shown_give_the_price(busy, make_meter):
    listed = busy.pricer.price_list
    view = View.parse([("period", "last-7d")])
    (one,) = unpriced(busy.store, listed, view)
    assert (one.model, one.row.unpriced, one.known_now) == ("unheard-of-1", 1, False)
    rows = tomllib.loads("\n".join(one.settings).replace('"..."', '"3"'))["prices"]
    assert [row["sku_meter"] for row in rows] == ["input", "output"]
    priced = tokenmeter.make_meter(store="memory:", config={"prices": rows})
    try:
        (again,) = unpriced(busy.store, priced.pricer.price_list, view)
        assert again.known_now
        assert {used.model for used in used_prices(busy.store, priced.pricer.price_list, view) if used.prices} == {
            "gpt-5-mini",
            "unheard-of-1",
        }
    finally:
        priced.close()


def test_estimates_are_told_by_their_cause(meter, record):
    for flags in (("estimated",), ("billing_unknown", "estimated"), ("billing_unknown",), ()):
        record(fields={"cost_source": "estimated", "flags": flags})
    found = estimated(meter.store, View.parse([("period", "today")]))
    assert {one.cause[:15]: one.entries for one in found} == {
        "the request lef": 2,
        "its usage or co": 1,
        "the stream or a": 1,
    }
    assert found[0].entries == 2


# -- statements and health


def test_a_statement_is_drawn_and_downloaded(filed, serve, browse):
    page = browse(f"{serve(filed, tz='UTC').url}/statements")
    page.get_by_label("Name").fill("search")
    page.get_by_label("Period").fill("last-month")
    page.get_by_role("button", name="Draw").click()
    lines = page.get_by_role("region", name="Lines as a table")
    said = filed.statement(team="search", period="last-month")
    assert lines.locator("tbody tr").count() == len(said.lines) + 1
    assert f"{said.closing.normalize():f}" in lines.locator("tfoot").inner_text()
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    with open(download.value.path(), newline="") as file:  # noqa: PTH123 - newline matters to csv
        assert file.read() == said.to_csv()
    page.get_by_label("Basis").select_option("invoices")
    page.get_by_role("button", name="Draw").click()
    page.wait_for_url("**basis=invoices*")
    assert "closing balance" in lines.inner_text()


def test_wrong_accounts_and_forms_of_a_statement_are_explained(filed, serve):
    served = serve(filed)
    assert served.get("/statements?account=model&of=x")[0] == 400
    assert served.get("/statements?of=search&period=never")[0] == 400
    assert served.get("/statements/docx?account=team&of=search")[0] == 404


def test_health_is_told_in_words_what_needs_care_first(meter):
    fine = checks(meter, meter.store.health())
    assert all(one.well for one in fine)
    assert "1,234 attempts" not in " ".join(one.words for one in fine)
    size = checks(meter, Health({"entries": 7, "bytes": 4096, "wal_bytes": 7_000_000}))[-1].words
    assert size == "7 entries, 7.0 MB."
    ill = checks(meter, Health({"write_failures": 1234, "tail_bytes": 5_000_000, "refused_records": 2, "entries": 7}))
    assert [one.what for one in ill if not one.well] == ["Writing", "Records"]
    assert "1,234 attempts to write to the database failed; 5.0 MB wait" in ill[0].words


def test_a_command_to_copy_takes_names_as_text(make_meter, serve, record_in):
    """Whoever is counted may be called anything, also by an address that somebody sent."""
    name = "x'; touch pwned; $(id) '"
    meter = make_meter([{"end_user": "*", "limit_usd": 5, "name": "users"}])
    record_in(meter, who={"end_user": name})
    served = serve(meter)
    for path in ("/budgets/users", f"/account?{urlencode({'route': name})}"):
        blocks = re.findall(r"<pre[^>]*><code>(.*?)</code>", served.get(path)[2], re.DOTALL)
        words = [shlex.split(line) for block in blocks for line in html.unescape(block).splitlines()]
        assert any(one.partition("=")[2] == name for line in words for one in line), path


def test_a_budgets_page_has_its_alerts_after_its_end_its_change_and_those_of_others(meter, record, serve):
    for name, period in (("gone", "month"), ("moved", "quarter"), ("kept", "year")):
        meter.budgets.set({"name": name, "member": "eve", "limit_usd": "0.1", "period": period}, by="x", reason="y")
    record(who={"member": "eve"}, input=1_000_000)
    meter.budgets.retire("gone", by="x", reason="over")
    meter.budgets.set({"name": "moved", "member": "eve", "limit_usd": "0.1", "period": "week"}, by="x", reason="y")
    meter.budgets.set({"name": "each", "member": "*", "limit_usd": "0.001"}, by="x", reason="y")
    for number in range(340):  # three alerts each
        record(who={"member": f"m{number}"}, input=1_000_000)
    served = serve(meter)
    for name, start in (("gone", "this-month"), ("moved", "this-quarter"), ("kept", "this-year")):
        told = served.get(f"/budgets/{name}")[2].rpartition("alerts-heading")[2].partition("</table>")[0]
        rows = re.findall(r"<tr>.*?</tr>", told, re.DOTALL)[1:]
        assert [re.search(r">(\d+)%<", row)[1] for row in rows] == ["100", "80", "50"], name
        assert "$0.10" in rows[0]
        assert all(f"{parse_period(start).start:%Y-%m-%d}" in row for row in rows), name
    listed = served.get("/budgets")[2]
    assert "not configured now" not in listed
    assert "[usd/quarter]" not in listed
