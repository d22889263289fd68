"""Usage that other programs wrote down: transcripts of coding agents, logs of gateways, responses that were kept."""

from __future__ import annotations

from tokenmeter.importing.rows import FIELDS
from tokenmeter.importing.run import ImportOutcome, import_usage
from tokenmeter.importing.sources import SOURCES

__all__ = ["FIELDS", "SOURCES", "ImportOutcome", "import_usage"]
