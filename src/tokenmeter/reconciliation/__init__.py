"""The ledger against the provider's own books."""

from __future__ import annotations

from tokenmeter.reconciliation.discrepancy import CAUSES, Cause, Discrepancy
from tokenmeter.reconciliation.filed import reconciliations
from tokenmeter.reconciliation.result import Proposal, Reconciliation
from tokenmeter.reconciliation.run import reconcile, reconcile_statement
from tokenmeter.reconciliation.statement import Bucket, CostLine, ProviderStatement, UsageLine

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
    "reconciliations",
]
