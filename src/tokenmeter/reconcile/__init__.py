"""The ledger against the provider's own books."""

from __future__ import annotations

from tokenmeter.reconcile.discrepancy import CAUSES, Cause, Discrepancy
from tokenmeter.reconcile.result import Proposal, Reconciliation
from tokenmeter.reconcile.run import reconcile, reconcile_statement
from tokenmeter.reconcile.statement import Bucket, CostLine, ProviderStatement, UsageLine

__all__ = [
    "CAUSES",
    "Bucket",
    "Cause",
    "CostLine",
    "Discrepancy",
    "Proposal",
    "ProviderStatement",
    "Reconciliation",
    "UsageLine",
    "reconcile",
    "reconcile_statement",
]
