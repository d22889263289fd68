"""OpenAI's usage object, and that of every host that speaks its format: totals INCLUDE their breakdowns."""

from __future__ import annotations

from tokenmeter.providers.readings import (
    MODALITIES,
    Reading,
    Shape,
    check_parts,
    has_unknown,
    lasting,
    put,
    said_by,
    split_input,
    split_output,
)
from tokenmeter.providers.wire import JSON, amount, count, is_object, part
from tokenmeter.usage import Quantity, Usage

_MODALITY_KEYS = tuple(f"{name}_tokens" for name in MODALITIES)
#: What was written to a cache: by OpenAI's name, and by Anthropic's, whose writes last five minutes. Gateways and other
#: hosts have them, too (DashScope; https://www.alibabacloud.com/help/en/model-studio/context-cache).
_WRITTEN = "cache_write_tokens"
_ANTHROPICS = ("cache_creation_tokens", "cache_creation_input_tokens")
_LIFETIMES = ("cache_write_tokens_details", "cache_creation_token_details", "cache_creation")
_BY_LIFETIME = {
    "ttl_12h_tokens": "cache_write_12h",
    "ttl_30m_tokens": "cache_write_30m",
    "ephemeral_1h_input_tokens": "cache_write_1h",
    "ephemeral_5m_input_tokens": "cache_write_5m",
}
#: Where both of a pair are stated, nothing is left that has a lifetime of its own.
_LIFETIME_PAIRS = (
    frozenset({"ttl_12h_tokens", "ttl_30m_tokens"}),
    frozenset({"ephemeral_1h_input_tokens", "ephemeral_5m_input_tokens"}),
)
_WRITE_KEYS = frozenset({_WRITTEN, *_ANTHROPICS, *_LIFETIMES})
#: Breakdowns that are known to be inside a total; any other ``*_tokens`` beside them is flagged.
_KNOWN_DETAILS = frozenset(
    {
        "accepted_prediction_tokens",
        "audio_tokens",
        _WRITTEN,
        *_ANTHROPICS,
        "cache_type",  # a word
        "cached_tokens",
        "image_tokens",
        "reasoning_tokens",
        "rejected_prediction_tokens",
        "text_tokens",
        "thinking_tokens",
        "video_tokens",
    }
)
_KNOWN_HITS = frozenset(f"cached_{name}_tokens" for name in ("text", *MODALITIES))
#: Counts of a usage object itself that are read, or known to be inside another.
_KNOWN_COUNTS = frozenset(
    {
        *("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens", "reasoning_tokens"),
        *("prompt_cache_hit_tokens", "prompt_cache_miss_tokens", "cached_tokens", "num_cached_tokens"),
        *("cache_read_input_tokens", "cache_creation_input_tokens", "citation_tokens"),
    }
)
_INPUT_DETAILS = ("prompt_tokens_details", "input_tokens_details", "input_token_details", "prompt_token_details")
#: Where hosts state beside the prompt how much of it a cache served.
_CACHED = ("prompt_cache_hit_tokens", "cached_tokens", "num_cached_tokens", "cache_read_input_tokens")
#: And where DeepSeek states how much of it none did.
_MISSED = "prompt_cache_miss_tokens"
_OUTPUT_DETAILS = ("completion_tokens_details", "output_tokens_details", "output_token_details")
#: LangChain's names for parts (``UsageMetadata``), whose totals include them, too, whatever the model; with the tier of
#: a call before them, which it states by a count under the tier's name. Writes by lifetime stand beside the others.
_LANGCHAINS = {
    **{f"{tier}cache_read": "cached_tokens" for tier in ("", "flex_", "priority_")},
    **{f"{tier}reasoning": "reasoning_tokens" for tier in ("", "flex_", "priority_")},
    **{name: f"{name}_tokens" for name in ("text", *MODALITIES)},
    "cache_creation": "cache_creation_tokens",
}
_LANGCHAINS_WRITES = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")


def inclusive(
    usage: JSON,
    *,
    write_meter: str = "cache_write_30m",
    output_meter: str = "output",
    hidden_output: bool = False,
    reasoning_apart: bool = False,
    cache_ttl: str | None = None,
) -> Reading:
    """A usage whose totals INCLUDE their breakdowns: OpenAI's, and that of every host that speaks its format.

    Source: ``openai.types``: CompletionUsage, ResponseUsage, BatchUsage, RealtimeResponseUsage, ImagesResponse.Usage.

    Args:
        usage: The usage object.
        write_meter: Class of cache writes whose lifetime is not broken down.
        output_meter: Class of output that no breakdown claims (images: ``output_image``).
        reasoning_apart: Whether reasoning is billed by itself, and is no part of the answer's tokens.
        cache_ttl: How long the request asked for it to be kept, for writes of which no lifetime is stated.
        hidden_output: Whether what ``total_tokens`` has beyond its two parts is output the host does not itemise.
    """
    flags: set[str] = set()
    details = _renamed(part(usage, *_INPUT_DETAILS, flags=flags))
    output_details = _renamed(part(usage, *_OUTPUT_DETAILS, flags=flags))
    reasoning = count(output_details, "reasoning_tokens", flags=flags)
    if reasoning is None:
        reasoning = count(usage, "reasoning_tokens", flags=flags) or 0
    if reasoning_apart:
        reasoning = 0
    quantities = _cache_writes(usage, details, write_meter, cache_ttl, flags)
    cached, hits = _cached(usage, details, flags)
    from_cache = cached + sum(map(int, quantities.values()))
    prompt, answer, whole = _totals(usage, reasoning, from_cache, flags, hidden_output=hidden_output)
    if (missed := count(usage, _MISSED, flags=flags)) is not None:
        prompt, cached = _by_misses(prompt, cached, missed, flags)
    if answer is not None and reasoning > answer:
        flags.add("reasoning_exceeds_output")
        reasoning = answer
    parts = _modalities(details, flags)
    check_parts(prompt, parts, count(details, "text_tokens", flags=flags), flags, beside=from_cache)
    split_input(quantities, prompt, flags, cached=cached, parts=parts, hits=hits)
    words = None if output_meter == "output" else count(output_details, "text_tokens", flags=flags)
    split_output(quantities, answer or 0, _modalities(output_details, flags), flags, meter=output_meter, words=words)
    # A breakdown counts; beside the totals hosts say other things as well, so that there only tokens are looked at.
    breakdowns = has_unknown(details, _KNOWN_DETAILS, "") or has_unknown(output_details, _KNOWN_DETAILS, "")
    if breakdowns or has_unknown(usage, _KNOWN_COUNTS):
        flags.add("unknown_token_class")
    return said_by(Usage(quantities, reasoning), prompt, flags, {"input": prompt, "output": answer}, whole)


def _renamed(details: JSON) -> JSON:
    """A breakdown in OpenAI's names, where it has LangChain's."""
    if _LANGCHAINS.keys().isdisjoint(details) or is_object(details.get("cache_creation")):
        return details
    found = {_LANGCHAINS.get(name, name): size for name, size in details.items() if name not in _LANGCHAINS_WRITES}
    return {**found, "cache_creation": {name: details[name] for name in _LANGCHAINS_WRITES if name in details}}


def _totals(
    usage: JSON, reasoning: int, from_cache: int, flags: set[str], *, hidden_output: bool
) -> tuple[int | None, int | None, int | None]:
    """What went in, what came out, and the total; None for a side neither stated nor following from the total.

    A zero beside a part of it is a field that nobody filled, and so is a total of nothing.
    """
    prompt = count(usage, "prompt_tokens", "input_tokens", flags=flags)
    answer = count(usage, "completion_tokens", "output_tokens", flags=flags)
    doubts: set[str] = set()
    total = count(usage, "total_tokens", flags=doubts)
    if "malformed_count" in doubts:
        flags.add("total_mismatch")  # the parts count
    else:
        flags |= doubts
    if not total:
        if total == 0 and (prompt or answer):
            flags.add("total_mismatch")
        if answer and reasoning > answer:
            flags.add("reasoning_exceeds_output")
            answer += reasoning  # so it stands beside, and no total denies that
        return _unless_denied(prompt, from_cache), _unless_denied(answer, reasoning), None
    if not prompt and not answer:
        if prompt == 0 or answer == 0:
            flags.add("total_mismatch")
        return None, None, total
    if prompt is None:
        return total - (answer or 0) if total > (answer or 0) else None, answer, total
    if answer is None:
        return prompt, max(total - prompt, 0), total
    gap = total - prompt - answer
    if gap == from_cache > prompt:
        flags.add("cache_beside_input")  # as Anthropic has it, under OpenAI's names
        return prompt + gap, answer, total
    prompt, answer = _by_gap(gap, prompt, answer, flags, hidden=hidden_output or gap == reasoning)
    return _unless_denied(prompt, from_cache), answer, total


def _unless_denied(size: int | None, part_of_it: int) -> int | None:
    """None for a zero, where a part of it is stated."""
    return None if part_of_it and not size else size


def _by_gap(gap: int, prompt: int, answer: int, flags: set[str], *, hidden: bool) -> tuple[int, int]:
    """Both sides, where the total is by `gap` more than they are; `hidden`: that is output."""
    if gap > 0 and answer and not prompt:
        flags.add("total_mismatch")  # a zero that the total denies is a field nobody filled
        return gap, answer
    if gap > 0 and hidden:
        return prompt, answer + gap  # some hosts state reasoning beside the answer, not inside it
    if gap:
        flags.add("total_mismatch")
    return prompt, gap if gap > 0 and prompt and not answer else answer


def _cache_writes(
    usage: JSON, details: JSON, write_meter: str, ttl: str | None, flags: set[str]
) -> dict[str, Quantity]:
    """Tokens written to a cache, by lifetime. What no lifetime claims is `write_meter`, or what the request said."""
    if _WRITE_KEYS.isdisjoint(details) and _WRITE_KEYS.isdisjoint(usage):
        return {}
    written = count(details, _WRITTEN, flags=flags)
    if written is None:
        theirs = [found for place in (details, usage) if (found := count(place, *_ANTHROPICS, flags=flags)) is not None]
        written, write_meter = (theirs[0], "cache_write_5m") if theirs else (0, write_meter)
    split = part(details, *_LIFETIMES, flags=flags) or part(usage, *_LIFETIMES, flags=flags)
    quantities: dict[str, Quantity] = {}
    for name, meter in _BY_LIFETIME.items():
        put(quantities, meter, count(split, name, flags=flags) or 0)
    stated = sum(map(int, quantities.values()))
    whole = any(pair.issubset(split) for pair in _LIFETIME_PAIRS)
    if written and (stated > written or (stated < written and whole)):
        flags.add("cache_write_mismatch")
    rest = max(written - stated, 0)
    put(quantities, lasting(write_meter, ttl, flags) if rest and not split else write_meter, rest)
    return quantities


def _cached(usage: JSON, details: JSON, flags: set[str]) -> tuple[int, dict[str, int] | None]:
    """How much of the prompt a cache served, and of what, where that is broken down."""
    cached = count(details, "cached_tokens", flags=flags) or count(usage, *_CACHED, flags=flags) or 0
    split = part(details, "cached_tokens_details", flags=flags) or part(usage, "cached_tokens_details", flags=flags)
    if not split:
        return cached, None
    if has_unknown(split, _KNOWN_DETAILS | _KNOWN_HITS, ""):
        flags.add("unknown_token_class")
    hits = {name: count(split, f"{name}_tokens", f"cached_{name}_tokens", flags=flags) or 0 for name in MODALITIES}
    words = count(split, "text_tokens", "cached_text_tokens", flags=flags)
    return cached, hits if words is None else {**hits, "text": words}


def _by_misses(prompt: int | None, cached: int, missed: int, flags: set[str]) -> tuple[int | None, int]:
    """The prompt and what of it a cache served, either of which follows from the rest, which none did."""
    if not missed:  # all of it was served, or nobody filled the field
        return prompt, cached
    if prompt is None:
        return cached + missed, cached
    if not cached and missed < prompt:
        return prompt, prompt - missed
    if cached + missed != prompt:
        flags.add("cached_split_mismatch")
    return prompt, cached


def _modalities(details: JSON, flags: set[str]) -> dict[str, int]:
    """Sizes of what is not text; empty for most calls."""
    if not any(map(details.get, _MODALITY_KEYS)):
        return {}
    return {name: size for name in MODALITIES if (size := count(details, f"{name}_tokens", flags=flags))}


def _duration(usage: JSON) -> Reading:
    """Audio that is billed by its length."""
    flags: set[str] = set()
    seconds = amount(usage, "seconds", flags=flags)
    return Reading(Usage({"seconds_audio": seconds} if seconds else {}), flags=frozenset(flags))


#: Pages that were read, and pages that were described as well, which the first do not hold.
_PAGES = {"pages_processed": "document_pages", "pages_processed_annotation": "annotated_pages"}


def _pages(usage: JSON) -> Reading:
    """Documents that are billed by the page. Source: Mistral's OCRUsageInfo."""
    flags: set[str] = set()
    quantities: dict[str, Quantity] = {}
    counts = {meter: count(usage, name, flags=flags) for name, meter in _PAGES.items()}
    for meter, pages in counts.items():
        put(quantities, meter, pages or 0)
    return said_by(Usage(quantities), None, flags, {"input": 0 if quantities else None})  # nobody asks for no page


SHAPES = (
    Shape(
        inclusive,
        own=frozenset({"prompt_tokens", "completion_tokens"}),
        shared=frozenset({"input_tokens", "output_tokens", "total_tokens"}),
    ),
    Shape(_pages, own=frozenset(_PAGES), nested=("usage_info",)),
    Shape(_duration, own=frozenset(), shared=frozenset({"seconds"})),
)
