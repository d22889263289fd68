"""The plain shape of Google's answers, read in one go: one model, one prompt of text, every count said.

What is not plain is left to the general reader (`tokenmeter.providers.google.bodies`), which says the same of what is.
"""

from __future__ import annotations

from typing import Any

from tokenmeter.providers.base import Plain, PlainReader
from tokenmeter.providers.google.requests import is_song_model
from tokenmeter.providers.wire import JSON, MOST, is_array, is_object

_COUNTS = (
    "promptTokenCount",
    "candidatesTokenCount",
    "cachedContentTokenCount",
    "thoughtsTokenCount",
    "totalTokenCount",
)
_DETAILS = ("promptTokensDetails", "candidatesTokensDetails", "cacheTokensDetails")
_KNOWN = frozenset({*_COUNTS, *_DETAILS, "trafficType", "serviceTier"})
_TRAFFIC = (None, "ON_DEMAND")
_TIERS = (None, "standard")


def read_answer(body: JSON) -> Plain | None:
    """An answer of text, or what a stream of one came to."""
    usage = body.get("usageMetadata")
    if not is_object(usage) or not _KNOWN.issuperset(usage) or "serverContent" in body or "key" in body:
        return None
    counts = [usage.get(name, 0) for name in _COUNTS]
    if any(type(value) is not int or not 0 <= value <= MOST for value in counts):
        return None
    prompt, spoken, cached, thoughts, total = counts
    if not prompt or not spoken or cached > prompt or total != prompt + spoken + thoughts:
        return None
    traffic, tier = usage.get("trafficType"), usage.get("serviceTier") or body.get("serviceTier")
    model = body.get("modelVersion")
    odd = (traffic is not None and tier is not None) or traffic not in _TRAFFIC or tier not in _TIERS
    odd = (
        odd
        or _is_grounded(body.get("candidates"))
        or any(
            not _is_text(usage.get(name), whole) for name, whole in zip(_DETAILS, (prompt, spoken, cached), strict=True)
        )
    )
    if odd or type(model) is not str or "/" in model or is_song_model(model):
        return None
    quantities: dict[str, int] = {}
    if prompt > cached:
        quantities["input"] = prompt - cached
    if cached:
        quantities["cache_read"] = cached
    quantities["output"] = spoken + thoughts
    return Plain(model, body.get("responseId"), "default" if traffic else tier, quantities, prompt, thoughts, usage)


def _is_text(details: Any, whole: int) -> bool:
    """Whether a breakdown names nothing but text, and as much of it as there is; any other is in doubt."""
    if details is None:
        return True
    if not is_array(details):
        return False
    found = 0
    for one in details:
        part = one.get("tokenCount") if is_object(one) and one.get("modality") == "TEXT" else None
        if type(part) is not int or not 0 <= part <= whole:
            return False
        found += part
    return found == whole


def _is_grounded(candidates: Any) -> bool:
    if candidates is None:
        return False
    if not is_array(candidates):
        return True
    return any(not is_object(one) or "groundingMetadata" in one or _calls_tools(one) for one in candidates)


def _calls_tools(candidate: JSON) -> bool:
    content = candidate.get("content")
    parts = content.get("parts") if is_object(content) else None
    return is_array(parts) and any(is_object(part) and "toolCall" in part for part in parts)


#: Endpoint -> a key that no plain answer has, and its reader.
PLAIN = {"models.generate_content": PlainReader("error", None, read_answer)}
