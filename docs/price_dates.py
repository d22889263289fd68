"""Prints the table of catalog prices whose days are not known, before and after the shipped overrides.

Run it with ``python docs/price_dates.py`` after a new genai-prices, and copy the table to reference/pricing.md.
"""

from collections import Counter

from tokenmeter.pricing import PriceList
from tokenmeter.pricing.price_list import Catalog, CatalogModel
from tokenmeter.pricing.rules import load_overrides

KINDS = {
    "hourly": "prices by the hour without a first day",
    "latest": "`-latest` names with one undated price",
    "tiers": "tiers for long prompts that the catalog's own comments call ended",
    "modes": "modes recorded in October 2026 and sold before",
}
#: Names in "latest" that never meant a model of another price.
CONSTANT = {"claude-3-7-sonnet-latest", "claude-3-opus-latest", "chatgpt-4o-latest", "openai/chatgpt-4o-latest"}
ENDED_TIERS = {("anthropic", "claude-sonnet-4-5"), ("anthropic", "claude-sonnet-4-0")}


def kinds_of(listed: CatalogModel) -> set[str]:
    """The kinds of doubt about the days of a model's prices."""
    found: set[str] = set()
    if any(row.conditions.hours and not row.effective_from for row in listed.rows):
        found.add("hourly")
    if listed.model.endswith("latest") and not any(row.effective_from for row in listed.rows):
        found.add("latest")
    if (listed.provider, listed.model) in ENDED_TIERS:
        found.add("tiers")
    if any(row.effective_from and row.effective_from.month == 10 and row.conditions.processing for row in listed.rows):  # noqa: PLR2004 - October
        found.add("modes")
    return found


def main() -> None:
    """Print the table."""
    overrides = load_overrides()
    own = {(row.provider, row.model) for row in PriceList.load().own_rows}
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for listed in Catalog().models():
        for kind in kinds_of(listed):
            key = (listed.provider, listed.model)
            launched = any(listed.provider in launch.providers for launch in overrides.launches)
            before[kind] += 1
            told = key in own or key in overrides.doubts or listed.model in CONSTANT
            after[kind] += not (told or (kind == "modes" and launched))
    print("| kind | models, catalog alone | still undated |\n|---|---|---|")
    for kind, told in KINDS.items():
        print(f"| {told} | {before[kind]} | {after[kind]} |")


if __name__ == "__main__":
    main()
