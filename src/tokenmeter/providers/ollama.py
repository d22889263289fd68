"""The counts of Ollama's own API, which stand in the answer itself (its compatible API answers as OpenAI's does)."""

from __future__ import annotations

from tokenmeter.providers.readings import Reading, Shape, put, said_by
from tokenmeter.providers.wire import JSON, count
from tokenmeter.usage import Quantity, Usage


def answer_counts(usage: JSON) -> Reading:
    """A chat, a generation, its stream's last object, or an embedding, which has no answer to count.

    Of a prompt that was kept from the call before it may say nothing: then it is unknown, not zero.
    Source: https://github.com/ollama/ollama/blob/main/docs/api.md
    """
    flags: set[str] = set()
    quantities: dict[str, Quantity] = {}
    prompt = count(usage, "prompt_eval_count", flags=flags)
    answer = 0 if "embeddings" in usage else count(usage, "eval_count", flags=flags)
    put(quantities, "input", prompt or 0)
    put(quantities, "output", answer or 0)
    return said_by(Usage(quantities), prompt, flags, {"input": prompt, "output": answer})


SHAPES = (Shape(answer_counts, own=frozenset({"prompt_eval_count", "eval_count"})),)
