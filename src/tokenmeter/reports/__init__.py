"""Reading the ledger: reports, raw entries, exports. Everything here reads through `tokenmeter.stores.base.Store`."""

from tokenmeter.reports.export import Manifest, export_charges, export_entries
from tokenmeter.reports.focus import FocusTerms, export_focus
from tokenmeter.reports.query import Query, read_entries
from tokenmeter.reports.report import Report, read_report
from tokenmeter.reports.rows import Row, Sheet

__all__ = [
    "FocusTerms",
    "Manifest",
    "Query",
    "Report",
    "Row",
    "Sheet",
    "export_charges",
    "export_entries",
    "export_focus",
    "read_entries",
    "read_report",
]
