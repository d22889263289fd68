"""The usage object of Cohere's own API: what it bills stands in ``billed_units``, beside what its model read."""

from __future__ import annotations

from tokenmeter.providers.readings import Reading, Shape, has_unknown, put, said_by
from tokenmeter.providers.wire import JSON, count, part
from tokenmeter.usage import Quantity, Usage

#: Units that are billed beside tokens: queries of a reranking, pictures of an embedding (of newer models their tokens).
_UNITS = {"search_units": "search_units", "images": "images", "image_tokens": "input_image"}
_KNOWN = frozenset({"input_tokens", "output_tokens", *_UNITS})


def billed_units(usage: JSON) -> Reading:
    """The ``usage`` of a chat, the ``meta`` of anything else. What Cohere adds to a prompt is not billed.

    Units that nobody knows (classifications) are flagged; where there are no others, the usage is unknown.
    Source: https://docs.cohere.com/reference/chat
    """
    flags: set[str] = set()
    units = part(usage, "billed_units", flags=flags)
    prompt, answer = count(units, "input_tokens", flags=flags), count(units, "output_tokens", flags=flags)
    quantities: dict[str, Quantity] = {}
    put(quantities, "input", prompt or 0)
    put(quantities, "output", answer or 0)
    pieces: dict[str, Quantity] = {}
    for name, meter in _UNITS.items():
        put(pieces, meter, count(units, name, flags=flags) or 0)
    if has_unknown(units, _KNOWN, ""):
        flags.add("unknown_token_class")
    if pieces and answer is None:
        prompt = prompt or 0  # a search or a picture is the whole bill
    return said_by(Usage({**quantities, **pieces}), prompt, flags, {"input": prompt, "output": answer})


SHAPES = (
    Shape(billed_units, own=frozenset(("billed_units",)), nested=("meta",), last=(("delta", "usage", "billed_units"),)),
)
