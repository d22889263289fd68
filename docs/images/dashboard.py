"""Draws the dashboard's pictures from a ledger of invented calls: ``python docs/images/dashboard.py``.

With a folder it draws every page instead, at both widths, in light and dark, as who may act sees them: to be looked at.

Needs the extra ``dashboard``, playwright and a Chromium; ``TOKENMETER_TEST_CHROMIUM`` names one that is elsewhere.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

import tokenmeter
from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.billing import close_period, draft_invoice, issue_invoice
from tokenmeter.dashboard.server import make_server
from tokenmeter.ledger import Entry
from tokenmeter.meter import Meter
from tokenmeter.periods import parse_period
from tokenmeter.serving.access import RIGHTS, make_token
from tokenmeter.usage import Consumption, Observation, Usage

HERE = Path(__file__).parent
NOW = datetime.now(UTC)
CALLS = 2500
DAYS = 70
MODELS = {
    "gpt-5": ("openai", 5),
    "gpt-5-mini": ("openai", 8),
    "claude-sonnet-4-5": ("anthropic", 6),
    "claude-haiku-4-5": ("anthropic", 4),
    "our-own-model": ("openai", 0.3),
}
MEMBERS = {
    "ada": "search",
    "grace": "search",
    "linus": "ads",
    "barbara": "support",
    "edsger": "ads",
    "margaret": "search",
}
PROFILE = {
    "seller": {"name": "Platform GmbH", "address": ["Hauptstr. 1", "10115 Berlin"], "tax_id": "DE123456789"},
    "terms_days": 14,
    "taxes": [{"name": "VAT", "rate": "0.19"}],
    "buyers": {"team": {"search": {"name": "Search department", "cost_centre": "4711", "purchase_order": "PO-118"}}},
}
#: File name, and the links that lead from the overview to what it shows.
PICTURES = {
    "dashboard.png": (),
    "dashboard-explore.png": ("header >> text=Explore", "select[name=by] = member", "select[name=period] = this-month"),
    "dashboard-entry.png": ("header >> text=Entries", "tbody tr:nth-child(3) th a"),
    "dashboard-invoice.png": ("header >> text=Invoices", "tbody th a"),
}


#: File name of a small picture, and what it shows: address, width, scheme.
SMALL = {
    "dashboard-dark.png": ("/", 1440, "dark"),
    "dashboard-running.png": ("/explore?by=member&period=this-month&form=running", 1440, "light"),
    "dashboard-phone.png": ("/", 390, "light"),
    "dashboard-phone-dark.png": ("/", 390, "dark"),
    "dashboard-phone-explore.png": ("/explore?by=member&period=this-month", 390, "light"),
    "dashboard-phone-explore-dark.png": ("/explore?by=member&period=this-month", 390, "dark"),
}
#: What is drawn into a folder.
PAGES = {
    "overview": "/",
    "explore": "/explore?by=member&period=this-month",
    "explore-lines": "/explore?show=latency-p95&form=lines",
    "explore-running": "/explore?by=tag:env&period=this-month&form=running",
    "entries": "/entries",
    "budgets": "/budgets",
    "budget": "/budgets/everything",
    "account": "/account?member=ada",
    "prices": "/prices?model=gpt-5-mini",
    "doubts": "/doubts",
    "health": "/health",
    "invoices": "/invoices",
    "invoice": "/invoices/INV-00001",
    "period": "/periods/1",
    "statement": "/statements?account=team&of=search&period=last-month",
}
TOKEN, DIGEST = make_token()


def main() -> None:
    """Write the pictures beside this file, or those of all pages into the folder that is named."""
    asked = [Path(name) for name in sys.argv[1:]]
    acting = {"dashboard": {"tokens": {"lead": {"hash": DIGEST, "can": list(RIGHTS)}}}}
    with tempfile.TemporaryDirectory() as folder:
        budgets = [{"name": "everything", "limit_usd": 80, "tz": "Europe/Berlin"}]
        meter = tokenmeter.make_meter(
            store=f"sqlite:///{folder}/usage.db", multiplier="1.05", budgets=budgets, config=acting if asked else {}
        )
        fill(meter)
        server = make_server(meter, port=0)
        with server.config.bind_socket() as socket:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
            thread.start()
            while not server.started:
                time.sleep(0.05)
            try:
                address = f"http://127.0.0.1:{socket.getsockname()[1]}"
                if asked:
                    draw_all(address, asked[0])
                else:
                    draw(f"{address}/")
            finally:
                server.should_exit = True
                thread.join()
                meter.close()


def fill(meter: Meter) -> None:
    """Record calls of the last weeks, and bill last month's."""
    chance = random.Random(7)  # noqa: S311 - the same picture each time
    for number in range(CALLS):
        record(meter, chance, number)
    month = parse_period("last-month")
    close_period(meter.store, month)
    draft = draft_invoice(meter.store, team="search", period=month, profile=PROFILE)
    issue_invoice(meter.store, draft, allow_unpriced=True)


def record(meter: Meter, chance: random.Random, number: int) -> None:
    """Record one call, rated as the meter does."""
    (model,) = chance.choices(list(MODELS), [weight for _, weight in MODELS.values()])
    member = list(MEMBERS)[min(int(chance.paretovariate(1)) - 1, len(MEMBERS) - 1)]
    who = Attribution(member=member, team=MEMBERS[member], route=chance.choice(("/chat", "/summarise", "/classify")))
    usage = Usage({name: chance.randrange(20, 9000) for name in ("input", "cache_read", "output")})
    seen = Observation(consumptions=(Consumption(model=model, usage=usage),), response_model=model)
    at = NOW - timedelta(days=chance.random() ** 1.3 * DAYS)
    provider = MODELS[model][0]
    key = ApiKey("0" * 32, "ab12", chance.choice(("prod", "staging", "batch-jobs")))
    rating = meter.pricer.rate(
        seen, provider=provider, endpoint="chat.completions", at=at, api_key=key, attribution=who
    )
    failed = chance.random() < 0.02  # noqa: PLR2004 - every fiftieth
    entry = Entry(
        occurred_at=at,
        provider=provider,
        endpoint="chat.completions",
        operation="chat",
        request_model=model,
        response_model=model,
        response_id=f"resp_{number}",
        attribution=who,
        api_key=key,
        usage=usage,
        charges=rating.charges,
        list_cost=rating.list_cost,
        contracted_cost=rating.contracted_cost,
        billed_cost=rating.billed_cost,
        cost_source=rating.cost_source,
        latency_us=usage["output"] * chance.randrange(700, 1_400) + 400_000,
        first_token_us=chance.randrange(200_000, 900_000),
        streamed=True,
        status="error" if failed else "ok",
        error_type="APIError" if failed else None,
    )
    meter.store.settle(entry)


def draw(address: str) -> None:
    """Take every picture in a real browser."""
    chromium = os.environ.get("TOKENMETER_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 600}, timezone_id="Europe/Berlin")
        for name, links in PICTURES.items():
            page.goto(address)
            page.wait_for_selector("body[data-zone='Europe/Berlin']")  # it is loaded again for that
            page.wait_for_selector(".chart path.bar", state="attached")
            page.wait_for_selector(".live.on")
            for link in links:
                field, chosen, value = link.partition(" = ")
                if chosen:
                    page.locator(field).select_option(value)
                    page.wait_for_url(f"**{value}*")
                    page.wait_for_selector("body:not([aria-busy])")
                else:
                    with page.expect_navigation():  # until its script has run: before that its fields change nothing
                        page.locator(link).first.click()
            if page.locator(".live").count():
                page.wait_for_selector(".live.on")
            page.screenshot(path=HERE / name, full_page=True)
        for name, (path, width, scheme) in SMALL.items():
            page = open_page(browser, width, scheme)
            page.goto(address.rstrip("/") + path)
            page.wait_for_selector("body[data-zone='Europe/Berlin']")
            page.wait_for_selector(".live.on")
            page.screenshot(path=HERE / name, scale="css")
        browser.close()


def open_page(browser: Browser, width: int, scheme: str) -> Page:
    """A page as wide as that, in light or dark."""
    return browser.new_page(
        viewport={"width": width, "height": 844},
        color_scheme="dark" if scheme == "dark" else "light",
        timezone_id="Europe/Berlin",
    )


def draw_all(address: str, folder: Path) -> None:
    """Take a picture of every page."""
    folder.mkdir(exist_ok=True)
    chromium = os.environ.get("TOKENMETER_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for width, scheme in product((1440, 390), ("light", "dark")):
            page = open_page(browser, width, scheme)
            page.goto(f"{address}/login")
            page.get_by_label("Token").fill(TOKEN)
            page.get_by_role("button", name="Log in").click()
            page.wait_for_selector("body[data-zone='Europe/Berlin']")  # it is loaded again for that
            for name, path in PAGES.items():
                page.goto(address + path)
                page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
