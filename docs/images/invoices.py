"""Draws invoices, a credit note and a statement: ``python docs/images/invoices.py`` (pdftoppm, extra ``pdf-cjk``)."""

from __future__ import annotations

import subprocess
import tempfile
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

from tokenmeter.attribution import Attribution
from tokenmeter.billing import (
    close_period,
    credit_invoice,
    draft_invoice,
    draw_statement,
    issue_invoice,
    record_payment,
)
from tokenmeter.ledger import Charge, Entry
from tokenmeter.money import multiply, quantize
from tokenmeter.periods import parse_period
from tokenmeter.stores import open_store
from tokenmeter.stores.base import Store
from tokenmeter.usage import Usage

HERE = Path(__file__).parent
PROFILE = {
    "seller": {
        "name": "Platform GmbH",
        "address": ["Hauptstr. 1", "10115 Berlin"],
        "tax_id": "DE123456789",
        "payment": ["IBAN DE89 3704 0044 0532 0130 00"],
    },
    "taxes": [{"name": "VAT", "rate": "0.19"}],
    "buyers": {"team": {"search": {"name": "Search department", "address": ["Nebenstr. 2"], "cost_centre": "4711"}}},
}
#: Buyers whose names are not in Latin letters: the end of a picture's name -> the buyer.
BUYERS = {
    "zh": {
        "name": "北京智能搜索科技有限公司",
        "address": ["海淀区中关村大街 27 号", "北京市 100080"],
        "cost_centre": "研发-4711",
    },
    "ar": {
        "name": "شركة البحث الذكي المحدودة",
        "address": ["شارع الملك فهد ٢٧", "الرياض ١٢٢١١"],
        "cost_centre": "٤٧١١",
    },
}
#: Member, model, meter, tokens, price of one, what the price was chosen by.
CALLS = (
    ("ada", "gpt-5", "input", 37_037_037, "0.00000125", ""),
    ("ada", "gpt-5", "cache_read", 120_000_000, "0.000000125", ""),
    ("ada", "gpt-5", "output", 9_000_000, "0.00001", "service_tier=priority"),
    ("bob", "claude-sonnet-4-5", "cache_write_1h", 3_333_333, "0.000006", ""),
    ("bob", "claude-sonnet-4-5", "input", 9_999_999, "0.0000015", "processing=batch"),
)
FACTORS = {"discount": Decimal("0.9"), "platform": Decimal("1.05")}


def record(store: Store) -> None:
    """The calls of last month."""
    at = parse_period("last-month").start + timedelta(days=9)
    for member, model, meter, tokens, price, condition in CALLS:
        listed = quantize(multiply(tokens, Decimal(price)))
        contracted = quantize(multiply(listed, FACTORS["discount"]))
        billed = quantize(multiply(contracted, FACTORS["platform"]))
        charge = Charge(
            model=model,
            sku_meter=meter,
            quantity=tokens,
            unit="Tokens",
            list_unit_price=Decimal(price),
            multipliers=FACTORS,
            list_cost=listed,
            contracted_cost=contracted,
            billed_cost=billed,
            price_id=f"openai/{model}/{meter}[{condition}]@2026-01-01" if condition else None,
        )
        store.settle(
            Entry(
                occurred_at=at,
                provider="openai",
                endpoint="chat.completions",
                operation="chat",
                response_model=model,
                attribution=Attribution(member=member, team="search"),
                usage=Usage({meter: tokens}),
                charges=(charge,),
                list_cost=listed,
                contracted_cost=contracted,
                billed_cost=billed,
                cost_source="computed",
            )
        )


def draw(content: bytes, name: str, *, upper: int = 0) -> None:
    """The first page, or so many pixels of it, as a picture beside this file."""
    with tempfile.NamedTemporaryFile(suffix=".pdf") as file:
        file.write(content)
        file.flush()
        part = ["-H", str(upper)] if upper else []
        command = ["pdftoppm", "-r", "90", "-png", "-singlefile", *part, file.name, str(HERE / name)]
        subprocess.run(command, check=True)  # noqa: S603 - our own file


def draw_buyer(name: str) -> None:
    """The upper half of an invoice to one of `BUYERS`."""
    store = open_store("memory:")
    record(store)
    close_period(store, "last-month", by="kim")
    profile = {**PROFILE, "buyers": {"team": {"search": BUYERS[name]}}}
    bill = draft_invoice(store, team="search", period="last-month", profile=profile, lines_by="member")
    draw(issue_invoice(store, bill, by="kim").to_pdf(), f"invoice-pdf-{name}", upper=520)
    store.close()


def main() -> None:
    """Write ``invoice-pdf.png``, those to `BUYERS`, ``credit-note-pdf.png`` and ``statement-pdf.png``."""
    for name in BUYERS:
        draw_buyer(name)
    store = open_store("memory:")
    record(store)
    close_period(store, "last-month", by="kim")
    bill = draft_invoice(store, team="search", period="last-month", profile=PROFILE, lines_by="member")
    issued = issue_invoice(store, bill, by="kim")
    draw(issued.to_pdf(), "invoice-pdf")
    draw(
        credit_invoice(store, issued, [(1, "5.00"), ("Goodwill", "2.00")], "outage", by="kim").to_pdf(),
        "credit-note-pdf",
    )
    record_payment(store, issued, "100", reference="wire 2026-118", by="lee")
    statement = draw_statement(store, team="search", period="this-year", basis="invoices", profile=PROFILE)
    draw(statement.to_pdf(), "statement-pdf")
    store.close()


if __name__ == "__main__":
    main()
