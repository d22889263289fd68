"""Providers: what each one's requests, bodies and streams say about usage, read without importing an SDK.

What is common stands here; what is one provider's stands in its room, which `tokenmeter.providers.registry` lists.
"""

from tokenmeter.providers.base import Dialect, Endpoint, StreamReader
from tokenmeter.providers.registry import dialect, dialect_for, observe
from tokenmeter.providers.wire import error_in, to_wire

__all__ = ["Dialect", "Endpoint", "StreamReader", "dialect", "dialect_for", "error_in", "observe", "to_wire"]
