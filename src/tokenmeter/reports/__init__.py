"""Reading the ledger: reports, raw entries, exports. Everything here reads through `tokenmeter.stores.base.Store`."""

from tokenmeter.reports.query import Query, entries
from tokenmeter.reports.report import Report, Row, build

__all__ = ["Query", "Report", "Row", "build", "entries"]
