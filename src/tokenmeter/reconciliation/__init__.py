"""The ledger against the provider's own books."""

from __future__ import annotations

from tokenmeter.reconciliation.result import CAUSES, Cause, Discrepancy, Proposal, Reconciliation
from tokenmeter.reconciliation.run import (
    file_reconciliation,
    post_proposals,
    reconcile,
    reconcile_statement,
    reconciliations,
)
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
    "file_reconciliation",
    "post_proposals",
    "reconcile",
    "reconcile_statement",
    "reconciliations",
]
