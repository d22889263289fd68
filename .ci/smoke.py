"""What each way of installing promises, tried where nothing else is installed: ``python smoke.py NAME``.

NAME is an extra, or ``wheel`` or ``sdist`` for an installation without any. `.ci/release` runs it in the built wheel.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import tokenmeter

_USAGE = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
_ANSWER = {"id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-5-mini", "usage": _USAGE}


def _price() -> object:
    return tokenmeter.price(_ANSWER, provider="openai", endpoint="chat.completions").list_cost


def _record(member: str) -> None:
    tokenmeter.configure(store="sqlite:///smoke.db")
    with tokenmeter.attribute(member=member):
        tokenmeter.record(_ANSWER, provider="openai", endpoint="chat.completions", at="2026-01-15")


def _export(kind: str) -> object:
    _record("ada")
    return tokenmeter.export_entries(f"smoke.{kind}", overwrite=True)


def _count() -> object:
    _record("ada")
    return tokenmeter.duckdb().sql("SELECT count(*) FROM entries").fetchall()


def _statement(member: str) -> object:
    _record(member)
    return len(tokenmeter.statement(member=member, period="2026-01").to_pdf())


def _einvoice() -> object:
    _record("ada")
    party = {"address": ["Street 9"], "country": "DE", "city": "Bonn", "postcode": "53111", "tax_id": "DE123456789"}
    seller = {**party, "name": "Platform", "contact": "Kim", "phone": "+49 1", "email": "k@x.example", "iban": "DE0"}
    profile = {
        "seller": seller,
        "taxes": [{"name": "VAT", "rate": "0.19"}],
        "buyers": {"member": {"ada": {**party, "name": "Ada"}}},
    }
    tokenmeter.close_period("2026-01")
    bill = tokenmeter.issue_invoice(tokenmeter.invoice(member="ada", period="2026-01", profile=profile), force=True)
    return import_module("tokenmeter.billing").make_einvoice(bill, "factur-x")


def _report() -> tokenmeter.Report:
    _record("ada")
    return tokenmeter.report(by="model")


def _command() -> object:
    try:
        import_module("tokenmeter.__main__").main(["doctor", "--help"])
    except SystemExit as end:
        if end.code:
            raise
    return "command line"


_TRIALS: dict[str, Callable[[], object]] = {
    "wheel": _price,
    "sdist": _price,
    "all": _command,
    "anthropic": lambda: import_module("tokenmeter.anthropic").Anthropic(api_key="k"),
    "archive": _count,
    "archive-s3": lambda: (_count(), import_module("s3fs")),
    "cli": _command,
    "dashboard": lambda: import_module("tokenmeter.dashboard"),
    "einvoice": _einvoice,
    "google": lambda: import_module("tokenmeter.google").Client(api_key="k"),
    "mcp": lambda: import_module("tokenmeter.serving.mcp"),
    "openai": lambda: import_module("tokenmeter.openai").OpenAI(api_key="k"),
    "otel": lambda: import_module("tokenmeter.telemetry").OpenTelemetryMetrics(),
    "pandas": lambda: _report().to_pandas(),
    "parquet": lambda: _export("parquet"),
    "pdf": lambda: _statement("ada"),
    "pdf-cjk": lambda: _statement("艾达"),
    "plot": lambda: _report().plot(),
    "polars": lambda: _report().to_polars(),
    "postgres": lambda: import_module("tokenmeter.stores.postgres.store"),
    "prometheus": lambda: import_module("tokenmeter.telemetry").PrometheusMetrics(),
    "stripe": lambda: import_module("tokenmeter.billing").StripeMeters("sk_test_0"),
    "xlsx": lambda: _export("xlsx"),
}

if __name__ == "__main__":
    name = sys.argv[1]
    if Path("src/tokenmeter").exists():
        sys.exit("run it outside the checkout: what is installed is tried")
    print(name, tokenmeter.__version__, type(_TRIALS[name]()).__name__)
