"""The usage object of Cohere's own API: what it bills stands in ``billed_units``, beside what its model read."""

from __future__ import annotations

from tokenmeter.providers.wire import JSON, Reading, Shape, count, has_unknown, part, put, said_by
from tokenmeter.usage import Quantity, Usage

_KNOWN = frozenset({"input_tokens", "output_tokens"})


def billed_units(usage: JSON) -> Reading:
    """The ``usage`` of a chat, the ``meta`` of anything else. What Cohere adds to a prompt is not billed.

    Units without tokens (searches of a reranking, classifications) have no price in the list: they are unknown.
    Source: https://docs.cohere.com/reference/chat
    """
    flags: set[str] = set()
    units = part(usage, "billed_units", flags=flags)
    prompt, answer = count(units, "input_tokens", flags=flags), count(units, "output_tokens", flags=flags)
    quantities: dict[str, Quantity] = {}
    put(quantities, "input", prompt or 0)
    put(quantities, "output", answer or 0)
    if has_unknown(units, _KNOWN, ""):
        flags.add("unknown_token_class")
    return said_by(Usage(quantities), prompt, flags, {"input": prompt, "output": answer})


SHAPES = (Shape(billed_units, own=frozenset(("billed_units",))),)
