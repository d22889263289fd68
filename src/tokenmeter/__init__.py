"""tokenmeter: drop-in OpenAI, Anthropic and Google Gemini clients that record, price, attribute and cap every call."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenmeter import anthropic as anthropic
    from tokenmeter import billing as billing
    from tokenmeter import dashboard as dashboard
    from tokenmeter import google as google
    from tokenmeter import openai as openai
    from tokenmeter import prices as prices
    from tokenmeter import reconciliation as reconciliation
    from tokenmeter import testing as testing
    from tokenmeter import web as web
    from tokenmeter.adopt import wrap
    from tokenmeter.anthropic import Anthropic, AsyncAnthropic
    from tokenmeter.api import Meter
    from tokenmeter.attribution import ApiKey, Attribution, Scope, attribute
    from tokenmeter.budgets import Budget
    from tokenmeter.budgets.runs import budget
    from tokenmeter.carrying import CarryingExecutor, carry, from_headers, to_headers
    from tokenmeter.default import configure, default_meter, make_meter, reset
    from tokenmeter.errors import (
        AttributionRequiredError,
        BudgetExceededError,
        BudgetReservedError,
        ConfigurationError,
        LedgerError,
        PricingError,
        ReconciliationError,
        RequestTooLargeError,
        SchemaVersionError,
        StoreError,
        StoreUnavailableError,
        TamperedLedgerError,
        TokenmeterError,
        UnknownModelError,
    )
    from tokenmeter.ledger import Charge, Entry
    from tokenmeter.notebook import load_ipython_extension
    from tokenmeter.openai import AsyncOpenAI, OpenAI
    from tokenmeter.pricing import PriceList, Rating
    from tokenmeter.reports import Report
    from tokenmeter.usage import Usage
    from tokenmeter.verbs import (
        aentries,
        aflush,
        age_balances,
        archive,
        archives,
        arecord,
        aremaining,
        areport,
        averify,
        backup,
        checkpoint,
        close_period,
        credit_invoice,
        database,
        draft_invoices,
        duckdb,
        entries,
        erase,
        estimate,
        export_charges,
        export_entries,
        export_focus,
        export_journal,
        file_reconciliation,
        find_invoice,
        flush,
        hand_over,
        hold,
        import_usage,
        invoice,
        invoice_coverage,
        issue_invoice,
        issue_invoices,
        move_archive,
        post_proposals,
        preview_invoices,
        price,
        raise_budget,
        reconcile,
        record,
        record_payment,
        remaining,
        report,
        reprice,
        restore_archive,
        statement,
        sweep,
        verify,
        void_invoice,
        write_off_invoice,
    )

    #: The distribution's version: the tag it was built from, or a development version after it.
    __version__: str

__all__ = [
    "Anthropic",
    "ApiKey",
    "AsyncAnthropic",
    "AsyncOpenAI",
    "Attribution",
    "AttributionRequiredError",
    "Budget",
    "BudgetExceededError",
    "BudgetReservedError",
    "CarryingExecutor",
    "Charge",
    "ConfigurationError",
    "Entry",
    "LedgerError",
    "Meter",
    "OpenAI",
    "PriceList",
    "PricingError",
    "Rating",
    "ReconciliationError",
    "Report",
    "RequestTooLargeError",
    "SchemaVersionError",
    "Scope",
    "StoreError",
    "StoreUnavailableError",
    "TamperedLedgerError",
    "TokenmeterError",
    "UnknownModelError",
    "Usage",
    "__version__",
    "aentries",
    "aflush",
    "age_balances",
    "archive",
    "archives",
    "arecord",
    "aremaining",
    "areport",
    "attribute",
    "averify",
    "backup",
    "budget",
    "carry",
    "checkpoint",
    "close_period",
    "configure",
    "credit_invoice",
    "database",
    "default_meter",
    "draft_invoices",
    "duckdb",
    "entries",
    "erase",
    "estimate",
    "export_charges",
    "export_entries",
    "export_focus",
    "export_journal",
    "file_reconciliation",
    "find_invoice",
    "flush",
    "from_headers",
    "hand_over",
    "hold",
    "import_usage",
    "invoice",
    "invoice_coverage",
    "issue_invoice",
    "issue_invoices",
    "load_ipython_extension",
    "make_meter",
    "move_archive",
    "post_proposals",
    "preview_invoices",
    "price",
    "raise_budget",
    "reconcile",
    "record",
    "record_payment",
    "remaining",
    "report",
    "reprice",
    "reset",
    "restore_archive",
    "statement",
    "sweep",
    "to_headers",
    "verify",
    "void_invoice",
    "wrap",
    "write_off_invoice",
]

#: Module -> public names that are defined there; every other one is a verb of `tokenmeter.verbs`. Everything is loaded
#: at its first use, so that `import tokenmeter` itself loads no SDK, no price data and no settings model.
_HOMES = {
    "tokenmeter.adopt": ("wrap",),
    "tokenmeter.anthropic": ("Anthropic", "AsyncAnthropic"),
    "tokenmeter.api": ("Meter",),
    "tokenmeter.attribution": ("ApiKey", "Attribution", "Scope", "attribute"),
    "tokenmeter.budgets": ("Budget",),
    "tokenmeter.budgets.runs": ("budget",),
    "tokenmeter.carrying": ("CarryingExecutor", "carry", "from_headers", "to_headers"),
    "tokenmeter.default": ("configure", "default_meter", "make_meter", "reset"),
    "tokenmeter.errors": tuple(name for name in __all__ if name.endswith("Error")),
    "tokenmeter.ledger": ("Charge", "Entry"),
    "tokenmeter.notebook": ("load_ipython_extension",),
    "tokenmeter.openai": ("AsyncOpenAI", "OpenAI"),
    "tokenmeter.pricing": ("PriceList", "Rating"),
    "tokenmeter.reports": ("Report",),
    "tokenmeter.usage": ("Usage",),
}
_HOME = dict.fromkeys(__all__, "tokenmeter.verbs") | {
    name: module for module, names in _HOMES.items() for name in names
}
_MODULES = frozenset(
    {"anthropic", "billing", "dashboard", "google", "openai", "prices", "reconciliation", "testing", "web"}
)


if not TYPE_CHECKING:  # a type checker that knew of it would take every misspelled name for something

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name == "__version__":
            value = globals()[name] = _read_version()
            return value
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOME[name]), name)
        return value


def _read_version() -> str:
    """What was installed; "unknown" in a program that took the package along without its description."""
    metadata = import_module("importlib.metadata")
    try:
        return str(metadata.version("tokenmeter-sdk"))
    except metadata.PackageNotFoundError:
        return "unknown"
