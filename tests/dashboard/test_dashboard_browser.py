"""The dashboard in a real Chromium. Every page that logs an error, or asks another server for anything, fails."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import shlex
import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route

import tokenmeter
from tokenmeter import dashboard
from tokenmeter.reconciliation import reconciliations
from tokenmeter.testing import FakeProvider

TOKEN = "a-long-enough-token-for-a-test"
ACTS = "tokenmeter_" + "b" * 43


def letting_act(meter, *can):
    """`meter` with a token that may do this."""
    row = {"hash": f"sha256:{hashlib.sha256(ACTS.encode()).hexdigest()}", "can": list(can)}
    meter.settings = meter.settings.model_validate(
        {**meter.settings.model_dump(), "dashboard": {"tokens": {"lead": row}}}
    )
    return meter


def expect(locator):
    """Playwright's patient assertions. Its waiting functions are scripts, which the pages' policy refuses to run."""
    from playwright.sync_api import expect as patient

    return patient(locator)


def drawn(page):
    page.wait_for_selector(".chart path.bar", state="attached")


def wide(page):
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def card(page, title):
    return page.locator(".card", has=page.locator("dt", has_text=title)).locator("dd").first.inner_text()


def test_the_overview_shows_what_the_report_says(served, busy, browse):
    page = browse(f"{served.url}/")
    drawn(page)
    totals = tokenmeter.report(period="last-30d", meter=busy).totals
    assert card(page, "Requests") == f"{totals.requests:,}" == "14"
    assert Decimal(card(page, "Billed cost").strip("$*")) == pytest.approx(totals.billed_cost, abs=Decimal("0.0001"))
    assert page.get_by_role("link", name="1 unpriced").is_visible()
    assert page.get_by_role("link", name="1 estimated").is_visible()
    assert "saved about $" in page.locator(".card", has_text="Cached input").inner_text()
    assert page.locator("#by-member").is_visible()


def test_a_filter_leads_from_the_overview_to_entries_to_charges_that_multiply_out(served, busy, browse):
    page = browse(f"{served.url}/")
    page.locator("#rankings").get_by_role("link", name="ada", exact=True).click()
    page.wait_for_url("**/*member=ada*")
    assert card(page, "Requests") == "6"
    page.get_by_text("The figures as a table").click()
    page.locator("#figures tbody a").last.click()
    page.wait_for_url("**/entries?*since=*")
    assert page.locator("tbody tr").count() == 1
    page.locator("tbody th a").click()
    page.wait_for_selector("#charges-heading")
    for row in page.locator("table tbody tr").all():
        cells = row.locator("td").all_inner_texts()
        quantity, price, billed = (Decimal(re.split(r"\s", cells[at].replace(",", ""))[0]) for at in (0, 2, 6))
        assert "1.05 platform" in cells[3]
        assert quantity * price * Decimal("1.05") == billed


#: A desk by day and a phone by night.
SIGHTS = [(1440, "light"), (390, "dark")]


def column(page, at, of):
    """The middle of a column of the chart, in pixels."""
    page.locator("#plane").scroll_into_view_if_needed()
    box = page.locator("#plane").bounding_box()
    return box["x"] + box["width"] * (at + 0.5) / of, box["y"] + box["height"] - 12


def test_a_column_tells_what_is_in_it_and_leads_deeper_down_to_the_calls(served, busy, browse):
    page = browse(f"{served.url}/explore?period=last-7d&by=member&tz=UTC")
    page.mouse.move(*column(page, 6, 7))
    tip = page.locator(".tip")
    totals = tokenmeter.report(period="today", meter=busy).totals
    assert "together" in tip.inner_text()
    assert f"${totals.billed_cost:.4f}"[:6] in tip.inner_text()
    page.mouse.click(*column(page, 6, 7))
    page.wait_for_url("**/explore?by=member*since=*")
    page.wait_for_selector("text=by hour")
    hours = page.locator("#figures tbody th a")
    page.get_by_text("The figures over time as a table").click()
    hours.first.click()
    page.wait_for_url("**/entries?*since=*")
    assert page.locator("tbody tr").count() >= 1


@pytest.mark.parametrize(("width", "scheme"), SIGHTS)
def test_dragging_zooms_in_and_the_back_button_zooms_out(served, browse, width, scheme):
    page = browse(f"{served.url}/explore?period=last-30d&tz=UTC", width=width, scheme=scheme)
    page.mouse.move(*column(page, 25, 30))
    page.mouse.down()
    page.mouse.move(*column(page, 27, 30))
    page.mouse.move(*column(page, 28, 30))
    page.mouse.up()
    page.wait_for_url("**since=*until=*")
    today = datetime.now(UTC).date()
    assert f"since={today - timedelta(days=4)}&until={today}" in page.url
    page.get_by_role("link", name="Remove the dates").wait_for()
    page.go_back()
    page.wait_for_url("**period=last-30d*")
    page.get_by_role("link", name="Remove the dates").wait_for(state="detached")


def test_keys_open_a_column_and_zoom_into_a_stretch(served, browse):
    page = browse(f"{served.url}/explore?period=last-30d&tz=UTC")
    page.locator("#plane").focus()
    for key in ("ArrowLeft", "ArrowLeft", "Shift+ArrowLeft", "Shift+ArrowLeft"):
        page.keyboard.press(key)
    assert page.locator("#plane .chosen").get_attribute("width") == "30"
    page.keyboard.press("Escape")
    assert page.locator("#plane .chosen").get_attribute("width") == "0"
    for key in ("ArrowLeft", "ArrowLeft", "Shift+ArrowLeft", "Shift+ArrowLeft", "Shift+ArrowRight", "Enter"):
        page.keyboard.press(key)
    page.wait_for_url("**since=*until=*")
    today = datetime.now(UTC).date()
    assert f"since={today - timedelta(days=2)}&until={today}" in page.url
    page.get_by_role("link", name="Remove the dates").wait_for()
    # The chart has the focus still, and a key without Shift chooses nothing more than its column.
    for key in ("ArrowRight", "Shift+ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    page.wait_for_url(lambda address: f"since={today - timedelta(days=2)}&until={today}" not in address)
    assert "since=" in page.url


@pytest.mark.parametrize(("width", "scheme"), SIGHTS)
def test_a_name_in_the_legend_hides_its_series_and_the_address_keeps_it(served, browse, width, scheme):
    page = browse(f"{served.url}/explore?by=member", width=width, scheme=scheme)
    assert page.locator(".plane path.bar").count() == 4
    page.locator(".legend").get_by_role("link", name="ada").click()
    page.wait_for_url("**hide=%3Dada*")
    page.locator(".legend .off", has_text="ada").wait_for()
    assert page.locator(".plane path.bar").count() == 3
    page.reload()
    assert page.locator(".plane path.bar").count() == 3
    page.locator(".legend").get_by_role("link", name="ada").click()
    page.locator(".legend .off").wait_for(state="detached")
    assert "hide" not in page.url


@pytest.mark.parametrize(("width", "scheme"), SIGHTS)
def test_a_question_is_asked_without_leaving_the_page(served, browse, width, scheme):
    page = browse(f"{served.url}/explore", width=width, scheme=scheme)
    page.evaluate("document.body.dataset.mark = 'same page'")
    page.locator("[name=show]").select_option("tokens")
    page.get_by_role("heading", level=1, name="Tokens by model").wait_for()
    page.locator("[name=by]").select_option("member")
    page.get_by_role("heading", level=1, name="Tokens by member").wait_for()
    assert page.get_by_role("heading", name="Every member").is_visible()
    page.get_by_role("link", name="Share", exact=True).click()
    page.wait_for_url("**form=share*")
    page.get_by_role("link", name="Running total").click()
    page.wait_for_url("**form=running*")
    page.get_by_text("Columns").click()
    page.get_by_role("checkbox", name="Failed requests").check()
    page.get_by_label("Search").fill("E")
    page.get_by_role("button", name="Show", exact=True).click()
    page.get_by_role("columnheader", name="Failed requests").wait_for()
    assert page.locator(".values tbody th").all_inner_texts()[0].startswith("eve")
    page.get_by_role("columnheader", name="Failed requests").get_by_role("link").click()
    page.wait_for_url("**sort=errors*")
    assert page.get_by_role("columnheader", name="Failed requests").get_attribute("aria-sort") == "descending"
    assert page.evaluate("document.body.dataset.mark") == "same page"


_LINKS = "[...document.querySelectorAll('a[href]')].map(one => one.getAttribute('href'))"


def test_after_a_question_every_link_goes_where_it_would_on_the_page_opened_anew(served, browse):
    page = browse(f"{served.url}/?tz=UTC")
    for path in ("/", "/explore", "/doubts", "/account?member=ada"):
        page.goto(f"{served.url}{path}{'&' if '?' in path else '?'}tz=UTC")
        page.locator("select[name=period]").select_option("this-month")
        page.wait_for_url("**period=this-month**")
        expect(page.get_by_role("link", name="Entries", exact=True).first).to_have_attribute(
            "href", re.compile("this-mo")
        )
        asked = page.evaluate(_LINKS)
        page.reload()
        assert asked == page.evaluate(_LINKS), path


def test_whoever_asks_by_keys_stays_where_they_asked(served, browse):
    """The part that has the focus is exchanged: it went to the top of the page, or to a link of the same address."""
    page = browse(f"{served.url}/explore?by=member&team=search")
    drawn(page)
    for field, key, address in (
        (page.get_by_role("link", name="Requests", exact=True), "Enter", "**sort=requests*"),
        (page.locator("select[name=show]"), "ArrowDown", "**show=list*"),
        (page.locator(".legend a").first, "Enter", "**hide=*"),
        (page.get_by_role("link", name="Remove the filter team search"), "Enter", re.compile(r"^(?!.*team=search)")),
    ):
        field.focus()
        page.keyboard.press(key)
        page.wait_for_url(address)
        page.wait_for_selector("body:not([aria-busy])")
        expect(field if field.count() else page.locator("#asked")).to_be_focused()


@pytest.mark.parametrize(("width", "scheme"), SIGHTS)
def test_dates_are_picked_and_taken_back(served, browse, width, scheme):
    page = browse(f"{served.url}/explore?tz=UTC", width=width, scheme=scheme)
    today = datetime.now(UTC).date()
    page.get_by_text("Dates and filters").click()
    page.locator("input[name=since]").fill((today - timedelta(days=2)).isoformat())
    page.locator("input[name=until]").fill(today.isoformat())
    page.get_by_role("button", name="Apply").click()
    page.wait_for_url(f"**since={today - timedelta(days=2)}*until={today}*")
    expect(page.locator("#span")).to_contain_text(f"{today - timedelta(days=2)} 00:00")
    assert wide(page) <= 0
    page.get_by_role("link", name="Remove the dates").click()
    page.wait_for_url(lambda url: "since" not in url)
    expect(page.locator("#span")).to_contain_text(f"{today - timedelta(days=29)} 00:00")


def test_a_finger_is_told_what_is_in_a_column_before_it_opens_it(served, chromium):
    context = chromium.new_context(viewport={"width": 390, "height": 900}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(f"{served.url}/explore?period=last-7d&by=member&tz=UTC")
    tip = page.locator(".tip")
    page.touchscreen.tap(*column(page, 6, 7))
    expect(tip).to_contain_text("together")
    page.touchscreen.tap(*column(page, 5, 7))  # another column is told in its turn
    expect(tip.locator("strong")).to_have_text((datetime.now(UTC) - timedelta(days=1)).date().isoformat())
    page.locator("#time-heading").tap()
    expect(tip).to_be_hidden()
    for _ in range(2):
        page.touchscreen.tap(*column(page, 6, 7))
    page.wait_for_url("**since=*")
    context.close()


def test_what_has_no_price_is_marked_where_its_cost_is_missing(served, browse):
    page = browse(f"{served.url}/explore?by=member")
    assert "1 of the calls has a part whose price is not known" in page.locator("#drawn").inner_text()
    rows = {row.locator("th a").first.inner_text(): row for row in page.locator(".values tbody tr").all()}
    assert rows["ada"].locator(".missing").count() == 2  # spend, and cost per request
    assert rows["bob"].locator(".missing").count() == 0
    page.get_by_role("link", name="What to do").click()
    page.get_by_role("heading", level=1, name="Not exact").wait_for()


@pytest.mark.parametrize(("width", "scheme"), SIGHTS)
def test_several_values_are_chosen_at_once_and_a_value_leads_on(served, browse, width, scheme):
    page = browse(f"{served.url}/explore?by=member", width=width, scheme=scheme)
    page.get_by_label("Choose ada").check()
    page.get_by_label("Choose bob").check()
    page.get_by_role("button", name="Show only the chosen").click()
    page.wait_for_url("**member=ada&member=bob*")
    expect(page.locator(".values tbody tr")).to_have_count(2)
    page.locator(".values").get_by_role("link", name="ada", exact=True).click()
    page.get_by_role("heading", level=1, name="Spend by model").wait_for()
    assert page.url.endswith("/explore?period=last-30d&member=ada")


def test_values_are_left_out_by_ticking_and_by_the_form(served, browse, hostile):
    page = browse(f"{served.url}/explore?by=member")
    page.get_by_label("Choose ada").check()
    page.get_by_role("button", name="Leave the chosen out").click()
    page.wait_for_url("**member%21=ada*")
    expect(page.locator(".values tbody tr")).to_have_count(3)
    page.get_by_text("Dates and filters").click()
    page.get_by_label("Only where").fill("member")
    page.locator("[name=how]").select_option("not")
    page.locator("[name=is]").first.fill("bob")
    page.locator("[name=is]").nth(1).fill(hostile)
    page.get_by_role("button", name="Apply").click()
    expect(page.locator(".values tbody tr")).to_have_count(1)
    expect(page.locator(".values tbody th")).to_contain_text("eve")
    assert page.get_by_label("Filters in force").get_by_text("member is not ada").is_visible()
    page.reload()
    expect(page.locator(".values tbody tr")).to_have_count(1)


@pytest.mark.parametrize("width", [390, 1440])
def test_where_nothing_matches_words_say_so_in_sight_and_the_chart_comes_with_the_next_question(served, browse, width):
    page = browse(f"{served.url}/explore?by=model&member=nobody", width=width)
    told = page.get_by_text("No entry matches. Look at all time, or remove a filter.")
    assert told.count() == 2
    for words in told.all():
        box = words.bounding_box()
        assert box["x"] + box["width"] <= width
    assert page.locator(".chart").count() == 0
    page.get_by_role("link", name="Remove the filter member nobody").click()
    drawn(page)
    page.locator(".chart").hover()


def test_a_filter_suggests_the_values_there_are(served, browse, hostile):
    page = browse(f"{served.url}/explore")
    page.get_by_text("Dates and filters").click()
    page.get_by_label("Only where").fill("member")
    page.get_by_label("Only where").press("Tab")
    expect(page.locator("#suggestions option")).to_have_count(4)
    known = page.evaluate("[...document.querySelectorAll('#suggestions option')].map((one) => one.value)")
    assert set(known) == {"ada", "bob", "eve", hostile}


def test_the_tags_there_are_stand_among_what_may_be_asked_by(served, browse, hostile):
    page = browse(f"{served.url}/explore")
    page.locator("[name=by]").select_option(label="tag env")
    page.get_by_role("heading", level=1, name="Spend by tag env").wait_for()
    assert page.locator(".values tbody th bdi").all_inner_texts() == ["prod", "(not set)", hostile]
    page.get_by_text("Dates and filters").click()
    assert page.locator("#dimensions option[value='tag:env']").count() == 1
    page.get_by_label("Only where").fill("tag:env")
    page.get_by_label("Only where").press("Tab")
    expect(page.locator("#suggestions option")).to_have_count(2)


def test_what_cannot_be_added_up_is_offered_in_no_form_that_would_add_it(served, browse):
    page = browse(f"{served.url}/explore?show=cached-share&by=member&form=bars")
    head = page.locator("#drawn .head")
    expect(head).to_contain_text("over all calls")
    expect(head).not_to_contain_text("in all")
    assert page.get_by_role("group", name="How it is drawn").count() == 0
    expect(page.get_by_text("cannot be added up, so it is drawn as lines")).to_be_visible()
    assert page.locator(".values tfoot th").inner_text() == "all"
    page.locator("select[name=show]").select_option("requests")
    expect(page.get_by_role("group", name="How it is drawn").locator("[aria-current]")).to_have_text("Bars")
    expect(head).to_contain_text("in all")


def test_days_are_the_browsers_unless_the_address_or_the_server_says_otherwise(busy, serve, chromium):
    for options, told in (({}, "Pacific/Auckland"), ({"tz": "UTC"}, "UTC")):
        context = chromium.new_context(timezone_id="Pacific/Auckland")
        page = context.new_page()
        page.goto(f"{serve(busy, **options).url}/explore")
        page.locator("#span", has_text=told).wait_for()
        page.goto(page.url.partition("?")[0] + "?tz=Europe/Paris")
        page.locator("#span", has_text="Europe/Paris").wait_for()
        context.close()


def test_the_form_sets_period_zone_and_filters_and_the_url_keeps_them(served, browse):
    page = browse(f"{served.url}/")
    page.locator("[name=period]").select_option("last-7d")
    page.wait_for_url("**/?*period=last-7d*")
    page.get_by_text("Dates and filters").click()
    page.get_by_label("Time zone").fill("Asia/Kathmandu")
    page.get_by_label("Only where").fill("tag:env")
    page.locator("[name=is]").first.fill("prod")
    page.get_by_role("button", name="Apply").click()
    page.wait_for_url("**tag%3Aenv=prod*")
    assert "tz=Asia%2FKathmandu" in page.url
    assert "period=last-7d" in page.url
    assert card(page, "Requests") == "5"
    page.reload()
    assert card(page, "Requests") == "5"
    page.get_by_role("link", name="Remove the filter tag env prod").click()
    page.wait_for_url(lambda url: "tag" not in url)
    expect(page.locator("#totals")).to_contain_text("14")


_AXIS_OUTSIDE = """() => {
    const card = document.querySelector('.chart').closest('section').getBoundingClientRect();
    const labels = [...document.querySelectorAll('.chart .up text')];
    return labels.filter(one => one.getBoundingClientRect().left < card.left).map(one => one.textContent);
}"""


@pytest.mark.parametrize("width", [390, 1440])
def test_a_name_of_200_letters_makes_no_page_of_its_account_wider(meter, record_in, serve, browse, width):
    record_in(meter, who={"member": "x" * 200})
    page = browse(f"{serve(meter).url}/account?member={'x' * 200}", width=width)
    expect(page.get_by_text("None is made out to")).to_be_visible()
    assert wide(page) == 0


def test_an_alert_about_a_long_name_has_the_width_of_a_phone(busy, serve, record, browse):
    """Beside time and percentage a name of 80 letters was ten lines high."""
    busy.budgets.set({"member": "*", "limit_usd": "0.01", "name": "n" * 60}, by="lead", reason="a test")
    served = serve(busy)
    record(who={"member": "x" * 80}, output=30_000)
    page = browse(f"{served.url}/budgets", width=390)
    row = page.get_by_role("region", name="Alerts as a table").locator("tbody tr", has_text="x" * 80).first
    boxes = [one.bounding_box() for one in row.locator("td:visible").all()]
    name, percent = boxes[0], boxes[-1]
    assert name["width"] > 0.9 * row.bounding_box()["width"]
    assert percent["y"] + percent["height"] <= name["y"] + 1
    assert wide(page) == 0


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("cost", ["0.00000004", "1234567890.12"])
def test_the_axis_of_the_greatest_and_of_the_least_amounts_can_be_read(meter, record_in, serve, browse, width, cost):
    costs = dict.fromkeys(("list_cost", "contracted_cost", "billed_cost"), Decimal(cost))
    record_in(meter, fields={**costs, "charges": ()})
    page = browse(f"{serve(meter).url}/explore?by=model", width=width)
    drawn(page)
    assert page.locator(".chart .up text").count() > 2
    assert page.evaluate(_AXIS_OUTSIDE) == []
    assert wide(page) == 0


def test_a_call_shows_within_two_seconds_where_people_are_reading(meter, serve, browse):
    page = browse(f"{serve(meter).url}/")
    assert page.get_by_role("heading", name="No call is recorded yet").is_visible()
    page.wait_for_selector(".live.on")
    page.get_by_text("Dates and filters").click()
    page.get_by_label("Time zone").fill("Europe/Ber")
    with FakeProvider() as provider:
        from tokenmeter.openai import OpenAI

        with (
            tokenmeter.wrap(
                OpenAI(base_url=provider.openai_url, api_key="sk-test-000000000001"), meter=meter
            ) as client,
            tokenmeter.attribute(member="grace"),
        ):
            client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hello"}])
        page.wait_for_selector("#rankings >> text=grace")
    assert page.get_by_label("Time zone").input_value() == "Europe/Ber"
    assert not page.get_by_role("heading", name="No call is recorded yet").is_visible()
    drawn(page)


def test_who_spent_most_yesterday_why_and_a_cap_on_them(make_meter, record_in, serve, browse):
    """What a person comes for, to the end: the command that the page shows stops the next call."""
    meter = make_meter([])
    yesterday = (datetime.now(UTC) - timedelta(days=1)).replace(hour=9, minute=30)
    for number in range(3):
        record_in(meter, at=yesterday, who={"member": "bob", "route": "/chat"}, output=500)
        record_in(meter, at=yesterday, who={"member": "mallory", "route": "/chat"}, output=500)
        record_in(
            meter, at=yesterday + timedelta(hours=number), model="gpt-5-pro", key="night",
            who={"member": "mallory", "route": "/rewrite"}, input=9000, output=8000,
        )  # fmt: skip
    page = browse(f"{serve(meter, tz='UTC').url}/")
    page.get_by_role("link", name="Explore", exact=True).first.click()
    page.wait_for_url("**/explore*")  # and what its scripts listen to
    page.locator("[name=by]").select_option("member")
    page.wait_for_url("**by=member*")
    page.locator("select[name=period]").select_option("yesterday")
    page.wait_for_url("**period=yesterday*")
    most = page.locator(".values tbody tr").first
    expect(most.locator("th")).to_contain_text("mallory")
    assert "99%" in most.inner_text()
    most.get_by_role("link", name="page of mallory").click()
    page.get_by_role("heading", level=1, name="Member mallory").wait_for()
    for ranking, cause in (("by-model", "gpt-5-pro"), ("by-route", "/rewrite"), ("by-api_key", "night")):
        assert page.locator(f"section[aria-labelledby={ranking}] tbody tr").first.inner_text().startswith(cause)
    page.locator("#last tbody th a").first.click()
    assert "output" in page.get_by_role("region", name="Charges as a table").inner_text()
    page.go_back()
    shown = page.locator("section", has_text="No budget concerns mallory").locator("code").inner_text()
    command = [sys.executable, "-m", *shlex.split(shown.replace("NAME", "mallorys").replace("=50", "=0"))]
    done = subprocess.run([*command, "--store", meter.store.url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page.reload()
    assert "mallorys" in page.locator("#budgets").inner_text()
    with FakeProvider() as provider:
        from tokenmeter.openai import OpenAI

        client = OpenAI(base_url=provider.openai_url, api_key="sk-test-000000000001")
        with tokenmeter.wrap(client, meter=meter) as wrapped:
            ask = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 9}
            with tokenmeter.attribute(member="mallory"), pytest.raises(tokenmeter.BudgetExceededError):
                wrapped.chat.completions.create(**ask)
            with tokenmeter.attribute(member="bob"):
                wrapped.chat.completions.create(**ask)


def test_a_page_of_a_ledger_that_is_away_says_so_and_comes_by_itself(
    own_postgres_server, make_meter, record_in, serve, browse, tmp_path
):
    meter = make_meter([], f"{own_postgres_server.url}&spool={tmp_path}/spool")
    record_in(meter, who={"member": "ada"})
    served = serve(meter)
    page = browse(served.url, expected=("503", "Failed to load"))
    live = page.locator("#live")
    expect(live).to_have_text("Live")
    own_postgres_server.stop_at_once()
    expect(live).to_have_text("Not live: the dashboard does not answer")
    page.goto(f"{served.url}/entries")
    expect(page.get_by_role("heading", name="The ledger cannot be read")).to_be_visible()
    expect(page.get_by_text("comes by itself")).to_be_visible()
    own_postgres_server.start()
    expect(page.get_by_role("heading", name="Entries")).to_be_visible()
    expect(page.locator("#live")).to_have_text("Live")


def test_who_may_caps_a_member_from_their_page_after_seeing_what_it_does(busy, serve, browse):
    page = browse(f"{serve(letting_act(busy, 'read', 'budgets')).url}/login")
    page.get_by_label("Token").fill(ACTS)
    page.get_by_role("button", name="Log in").click()
    drawn(page)
    page.goto(page.url + "account?member=bob")
    form = page.get_by_role("form", name="Set a limit")
    form.locator("[name=limit]").fill("0.01")
    page.locator("select[name=period]").select_option("this-month")
    expect(form.locator("[name=back]")).to_have_value("/account?period=this-month&member=bob")
    form.get_by_label("Why").fill("spends too much")
    form.get_by_role("button", name="Show what will happen").click()
    page.get_by_role("heading", level=1, name="Set budget member-bob").wait_for()
    told = page.get_by_role("region", name="What will happen, as a table").inner_text()
    assert "limit usd" in told
    assert all(one.name != "member-bob" for one in busy.budgets.in_force)
    page.get_by_role("button", name="Set it").click()
    page.get_by_role("heading", level=1, name="Budget member-bob").wait_for()
    (set_now,) = [one for one in busy.budgets.in_force if one.name == "member-bob"]
    assert (set_now.member, str(set_now.limit_usd)) == ("bob", "0.01")
    raised = page.get_by_role("form", name="Raise it for this window")
    raised.get_by_label("By").fill("1.5")
    raised.get_by_label("Why").fill("release week")
    raised.get_by_role("button", name="Show what will happen").click()
    expect(page.get_by_role("region", name="What will happen, as a table")).to_contain_text("$1.51")
    page.get_by_role("button", name="Grant it").click()
    expect(page.get_by_role("region", name="Grants as a table")).to_contain_text("release week")
    assert wide(page) <= 0


def test_in_a_frame_pages_are_read_and_nothing_is_done(busy, run_server, browse):
    """A page around it could lead a click to a button that nobody sees."""
    letting_act(busy, "read", "budgets")

    def portal(request):
        return HTMLResponse('<iframe src="/usage/account?member=bob" width="900" height="900"></iframe>')

    pages = Mount("/usage", dashboard.app(busy, frame_ancestors="self"))
    host = Starlette(routes=[Route("/", portal), Route("/favicon.ico", portal), pages])
    served = run_server(uvicorn.Server(uvicorn.Config(host, port=0, log_level="warning", lifespan="off")))
    page = browse(f"{served.url}/usage/login", expected=("403", "frame-ancestors"))
    page.get_by_label("Token").fill(ACTS)
    page.get_by_role("button", name="Log in").click()
    drawn(page)
    page.goto(served.url)
    frame = page.frame_locator("iframe")
    expect(frame.get_by_role("heading", level=1, name="Member bob")).to_be_visible()
    form = frame.get_by_role("form", name="Set a limit")
    form.locator("[name=limit]").fill("0.01")
    form.get_by_label("Why").fill("spends too much")
    with page.expect_response("**/usage/acts/budget") as answer:
        form.get_by_role("button", name="Show what will happen").click()
    assert answer.value.status == 403
    assert "frame-ancestors 'none'" in answer.value.headers["content-security-policy"]
    expect(frame.get_by_role("button", name="Set it")).to_have_count(0)
    expect(frame.get_by_role("heading", level=1, name="Member bob")).to_have_count(0)
    assert all(one.name != "member-bob" for one in busy.budgets.in_force)


def test_what_is_shown_can_be_exported(served, busy, browse):
    page = browse(f"{served.url}/?member=ada")
    with page.expect_download() as download:
        page.get_by_role("link", name="Charges (CSV)").click()
    with open(download.value.path(), newline="") as file:  # noqa: PTH123 - newline matters to csv
        rows = list(csv.DictReader(file))
    assert {row["member"] for row in rows} == {"ada"}
    billed = sum(Decimal(row["billed_cost"] or 0) for row in rows)
    assert billed == tokenmeter.report(period="last-30d", where={"member": "ada"}, meter=busy).totals.billed_cost
    with page.expect_download() as download:
        page.get_by_role("link", name="FOCUS 1.4 (ZIP)").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert "cost_and_usage.csv" in archive.namelist()
        lines = list(csv.DictReader(io.StringIO(archive.read("cost_and_usage.csv").decode())))
    assert sum(Decimal(line["BilledCost"]) for line in lines) == billed


def test_hostile_names_are_text_on_every_page(served, busy, browse, hostile):
    page = browse(f"{served.url}/")
    drawn(page)
    for path in ("/", "/explore?by=member", "/explore?by=tag:env", "/entries", "/budgets"):
        page.goto(served.url + path)
        if path != "/budgets":
            assert page.get_by_text(hostile, exact=True).first.is_visible(), path
        assert page.locator("img").count() == 0
    page.goto(served.url + "/")
    page.get_by_role("link", name=hostile, exact=True).first.click()
    page.wait_for_url("**/*member=*")
    drawn(page)
    assert card(page, "Requests") == "1"
    assert page.locator("img").count() == 0
    assert page.title().startswith("Overview")


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark"), (390, "light"), (1440, "dark")])
def test_pages_fit_and_have_no_barriers(filed, serve, browse, width, scheme):
    """What axe knows of WCAG: contrast, names, roles. It is put into the page, which the page's policy forbids."""
    from axe_playwright_python.sync_playwright import Axe

    served = serve(filed)
    entry = next(filed.store.entries(newest_first=True))
    first, _ = reconciliations(filed.store)
    page = browse(f"{served.url}/", width=width, scheme=scheme, bypass_csp=True)
    drawn(page)
    for path in (
        *("/", "/explore?by=member", "/explore?by=model&show=cached-share", "/explore?form=running&period=this-month"),
        *("/entries", f"/entries/{entry.entry_id}", "/budgets", "/budgets/ada-monthly", "/account?member=ada"),
        *("/prices", "/prices?model=gpt-5-mini", "/doubts", "/health", "/statements?account=team&of=search"),
        *("/invoices", "/invoices/INV-00002", "/credit-notes", "/credit-notes/CN-00001", "/periods", "/periods/1"),
        *("/reconciliations", f"/reconciliations/{first.document.document_id}"),
    ):
        page.goto(served.url + path)
        assert wide(page) <= 0, f"{path} is wider than {width} px"
        found = Axe().run(page).response["violations"]
        assert [(one["id"], [node["html"][:90] for node in one["nodes"]]) for one in found] == [], path


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark"), (390, "light"), (1440, "dark")])
def test_what_acts_fits_and_has_no_barriers(filed, serve, browse, width, scheme):
    """The forms of who may, and the page that shows what they do; as above."""
    from axe_playwright_python.sync_playwright import Axe

    served = serve(letting_act(filed, "read", "budgets", "invoices", "prices"))
    page = browse(f"{served.url}/login", width=width, scheme=scheme, bypass_csp=True)
    page.get_by_label("Token").fill(ACTS)
    page.get_by_role("button", name="Log in").click()
    drawn(page)
    places = ("/budgets", "/budgets/ada-monthly", "/account?member=ada", "/periods/1", "/invoices/INV-00001", "/doubts")
    for path in (*places, "!"):
        if path == "!":
            form = page.get_by_role("form", name="Price calls anew")
            form.get_by_role("button").click()
            page.get_by_role("heading", name="What will happen").wait_for()
        else:
            page.goto(served.url + path)
        assert wide(page) <= 0, f"{path} is wider than {width} px"
        found = Axe().run(page).response["violations"]
        assert [(one["id"], [node["html"][:90] for node in one["nodes"]]) for one in found] == [], path


#: What has more in it than it shows: on paper nobody can scroll. Words for screen readers and the axis are no text.
_CUT = """[...document.querySelectorAll('main :not(.hidden, .chart *)')]
  .filter(one => getComputedStyle(one).overflowX != 'visible' && one.scrollWidth > one.clientWidth + 1)
  .map(one => one.outerHTML.slice(0, 80))"""


def test_on_paper_every_column_is_there_in_ink_with_what_it_is_filtered_by(filed, serve, browse):
    server = serve(filed)
    page = browse(f"{server.url}/", width=700, scheme="dark")  # as wide as a sheet
    page.emulate_media(media="print", color_scheme="dark")
    for path in (
        "/entries?period=all",
        "/invoices/INV-00001",
        "/prices?model=gpt-5",
        "/explore?period=all&team=search",
    ):
        page.goto(f"{server.url}{path}")
        assert page.evaluate(_CUT) == [], path
        assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(23, 28, 38)"
        assert [one for one in page.get_by_role("button").all() if one.is_visible()] == []
    assert page.get_by_label("Filters in force").inner_text() == "team: search"
    assert page.get_by_role("link", name="CSV").count() == 0


def test_it_can_be_used_by_keyboard_and_screen_reader(served, browse):
    page = browse(f"{served.url}/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for role, name in (("banner", None), ("navigation", "Pages"), ("main", None), ("form", "Period and filters")):
        assert page.get_by_role(role, name=name).count() == 1, role
    assert page.get_by_role("heading", level=1).count() == 1
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input:not([type=hidden]), select')].filter((one) => !one.labels.length).length"
    )
    assert unnamed == 0
    assert page.get_by_role("link", name="Overview").get_attribute("aria-current") == "page"
    page.goto(f"{served.url}/explore")
    page.locator("#plane").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert "together" in page.locator(".tip").inner_text()
    page.keyboard.press("Escape")
    assert page.locator(".tip").is_hidden()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.wait_for_url("**/explore?since=*")


def test_the_page_says_the_same_without_scripts(served, chromium):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{served.url}/?member=ada")
    assert card(page, "Requests") == "6"
    page.get_by_text("The figures as a table").click()
    assert page.locator("#figures tbody tr").count() == 5
    assert page.locator(".chart path.bar").count() >= 1
    page.goto(f"{served.url}/explore?by=member")
    page.locator("[name=show]").select_option("tokens")
    page.get_by_role("button", name="Apply").click()
    page.get_by_label("Choose ada").check()
    page.get_by_role("button", name="Show only the chosen").click()
    assert page.get_by_role("heading", level=1).inner_text() == "Tokens by member"
    assert page.locator(".values tbody tr").count() == 1
    context.close()


def test_the_browser_logs_in_with_the_token_and_stays_in(busy, serve, browse):
    served = serve(busy, token=TOKEN)
    page = browse(f"{served.url}/entries", expected=["401"], width=1280)
    page.wait_for_url("**/login")
    page.get_by_label("Token").fill("not the token at all")
    page.get_by_role("button", name="Log in").click()
    assert "That is not a token" in page.get_by_role("alert").inner_text()
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    drawn(page)
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert TOKEN not in cookie["value"]
    page.wait_for_selector(".live.on")
    (start, end) = (page.locator(one).bounding_box() for one in ("header .brand", "header .live"))
    assert abs(start["y"] - end["y"]) < start["height"]  # all of the header is one line


def test_budgets_show_bars_holds_and_the_alerts_with_the_call_that_fired_them(served, busy, browse, record):
    page = browse(f"{served.url}/budgets")
    box = page.locator(".budgets li", has_text="ada-monthly")
    assert "member: ada" in box.inner_text()
    assert "held in flight" in box.inner_text()
    assert box.get_by_role("img").get_attribute("aria-label").endswith("percent held")
    first = datetime.now(UTC).replace(day=1, hour=0, minute=0)
    assert (first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)).strftime(
        "%Y-%m-01 00:00"
    ) in box.inner_text()
    page.wait_for_selector(".live.on")
    assert "No call has crossed a threshold" in page.locator("section", has_text="Alerts").inner_text()
    entry = record(who={"member": "ada"}, output=30_000)
    page.wait_for_selector("text=exhausted")
    alerts = page.get_by_role("region", name="Alerts as a table").locator("tbody tr")
    told = [row.locator("td").all_inner_texts() for row in alerts.all()]
    assert [(cells[0], cells[3]) for cells in told] == [
        ("ada-monthly\nmember: ada", percent) for percent in ("100%", "80%", "50%")
    ]
    assert alerts.first.locator("th time").get_attribute("datetime") == entry.recorded_at.isoformat()
    alerts.first.get_by_role("link").click()
    page.wait_for_url(f"**/entries/{entry.entry_id}")
