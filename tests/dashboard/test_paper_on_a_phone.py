"""Invoices, credit notes and statements as pages fit the window they are read in, every word and amount of them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import time_machine

import tokenmeter
from tokenmeter.billing import close_period, credit_invoice, draft_invoice, draw_statement, issue_invoice

SELLER = {"name": "Platform GmbH", "address": ["Hauptstr. 1", "10115 Berlin"], "tax_id": "DE123456789"}
MEMBERS = ("ada", "somebody-with-a-long-name@department.example.com")
MODELS = ("gpt-5", "publishers/openai/models/gpt-5-mini-with-a-very-long-name")


@pytest.fixture(scope="module")
def papers():
    """What stands on it -> a document."""
    rates = [
        {"provider": "openai", "model": MODELS[1], "sku_meter": meter, "unit_price": "0.25", "source": "test"}
        for meter in ("input", "output")
    ]
    meter = tokenmeter.make_meter(store="memory:", config={}, prices=rates, multiplier="1.0512345678")
    for count, (member, model) in enumerate((member, model) for member in MEMBERS for model in MODELS):
        usage = {"prompt_tokens": 312_345_678, "completion_tokens": 12_345_679 + count, "total_tokens": 0}
        meter.record(
            {"id": f"chatcmpl-{count}", "model": model, "usage": usage},
            provider="openai",
            endpoint="chat.completions",
            at=datetime(2026, 10, 3 + count, tzinfo=UTC),
            attribution={"member": member, "team": "search"},
        )
    profile = {
        "seller": SELLER,
        "taxes": [{"name": "VAT", "rate": "0.19"}],
        "buyers": {"team": {"search": {"name": "Search department", "address": ["Nebenstr. 2"]}}},
    }
    store = meter.store
    with time_machine.travel(datetime(2026, 11, 3, 12, tzinfo=UTC), tick=True):
        close_period(store, "2026-10")
        drafted = draft_invoice(store, team="search", period="2026-10", profile=profile, lines_by="member")
        bill = issue_invoice(store, drafted)
        note = credit_invoice(store, bill, [(1, "5.00"), ("Goodwill for the outage", "2.00")], "outage on the 12th")
        shown = {"team": "search", "period": "2026", "profile": profile}
        usage = draw_statement(store, **shown)
        account = draw_statement(store, basis="invoices", **shown)
    yield {"invoice": bill, "credit note": note, "usage": usage, "account": account}
    meter.close()


#: Words that are broken between their letters, though they would fit a line of their own, and text beyond the window.
#: At a hyphen they may break.
_MISFITS = """() => {
  const found = [];
  const wide = document.documentElement.clientWidth;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    for (const word of node.data.matchAll(/[^\\s-]+/g)) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      const boxes = [...range.getClientRects()];
      if (boxes.some((box) => box.right > wide + 0.5)) found.push(`beyond: ${word[0]}`);
      if (boxes.length > 1 && word[0].length < 20) found.push(`broken: ${word[0]}`);
    }
  }
  return found;
}"""


@pytest.mark.parametrize("width", [320, 390, 600, 720, 721, 1440])
@pytest.mark.parametrize("name", ["invoice", "credit note", "usage", "account"])
def test_a_document_fits_its_window_and_breaks_no_short_word(papers, chromium, name, width):
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.set_content(papers[name].to_html())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(_MISFITS) == []
    page.close()


def test_on_a_phone_each_value_of_a_row_has_its_columns_name(papers, chromium):
    page = chromium.new_page(viewport={"width": 390, "height": 900})
    page.set_content(papers["invoice"].to_html())
    named = page.evaluate(
        """[...document.querySelectorAll(".lines tbody tr:first-child td")].map(
             (cell) => [getComputedStyle(cell, "::before").content, cell.firstChild.data])"""
    )
    names = {label.strip('"'): value for label, value in named if label != "none"}
    assert names["Member"] == "ada"
    assert names["Quantity"] == "312,345,678"
    assert len(named) == len(names) + 1  # what it is about stands without a name
    page.close()
