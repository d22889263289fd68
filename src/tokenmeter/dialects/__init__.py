"""Wire formats: what each provider's bodies and streams say about usage, read without importing an SDK."""

from tokenmeter.dialects.base import Dialect, Endpoint, StreamReader
from tokenmeter.dialects.observe import dialect_for, observe
from tokenmeter.dialects.wire import to_wire

__all__ = ["Dialect", "Endpoint", "StreamReader", "dialect_for", "observe", "to_wire"]
