"""Wire formats: what each provider's bodies and streams say about usage, read without importing an SDK."""

from tokenmeter.dialects.anthropic import AnthropicDialect
from tokenmeter.dialects.base import Dialect, Endpoint, StreamReader
from tokenmeter.dialects.observe import dialect_for, observe
from tokenmeter.dialects.openai import OpenAIDialect
from tokenmeter.dialects.wire import to_wire

__all__ = [
    "AnthropicDialect",
    "Dialect",
    "Endpoint",
    "OpenAIDialect",
    "StreamReader",
    "dialect_for",
    "observe",
    "to_wire",
]
