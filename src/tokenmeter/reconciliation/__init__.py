"""The ledger against the provider's own books."""

from __future__ import annotations

from tokenmeter.reconciliation.causes import CAUSES, Cause, Discrepancy
from tokenmeter.reconciliation.quotas import Credit, QuotaUse, count_free_quotas, post_free_quotas
from tokenmeter.reconciliation.result import Proposal, Reconciliation
from tokenmeter.reconciliation.run import (
    check_grain,
    file_reconciliation,
    post_proposals,
    reconcile,
    reconcile_again,
    reconcile_statement,
    reconciliations,
)
from tokenmeter.reconciliation.statement import Bucket, CostLine, ProviderStatement, UsageLine

__all__ = [
    "CAUSES",
    "Bucket",
    "Cause",
    "CostLine",
    "Credit",
    "Discrepancy",
    "Proposal",
    "ProviderStatement",
    "QuotaUse",
    "Reconciliation",
    "UsageLine",
    "check_grain",
    "count_free_quotas",
    "file_reconciliation",
    "post_free_quotas",
    "post_proposals",
    "reconcile",
    "reconcile_again",
    "reconcile_statement",
    "reconciliations",
]
