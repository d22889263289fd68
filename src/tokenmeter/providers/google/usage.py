"""Google's usage objects: ``usageMetadata``, its spelling on Live sessions, and that of the Interactions API.

In all of them the prompt includes what a cache served; thoughts, and what tools put into the prompt, stand beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

from tokenmeter.providers.readings import (
    Reading,
    Shape,
    check_parts,
    has_unknown,
    put,
    said_by,
    split_input,
    split_output,
)
from tokenmeter.providers.wire import JSON, count, entries, members
from tokenmeter.usage import Quantity, Usage

#: A page of a PDF is billed as a picture of it (https://ai.google.dev/gemini-api/docs/document-processing).
_MODALITIES = {"audio": "audio", "document": "image", "image": "image", "video": "video"}


class _Names(NamedTuple):
    """What the counts are called in one spelling, each the first that is there."""

    prompt: tuple[str, ...]
    cached: tuple[str, ...]
    answer: tuple[str, ...]
    thoughts: tuple[str, ...]
    tools: tuple[str, ...]
    total: tuple[str, ...]
    prompt_parts: tuple[str, ...]
    cached_parts: tuple[str, ...]
    answer_parts: tuple[str, ...]
    tools_parts: tuple[str, ...]
    size: tuple[str, ...]
    ending: tuple[str, ...]
    first: tuple[str, ...] = ()

    def counts(self) -> frozenset[str]:
        """Every count that is known."""
        return frozenset(name for group in (*self[:6], self.first) for name in group)


_SNAKE = _Names(
    prompt=("prompt_token_count",),
    cached=("cached_content_token_count",),
    answer=("candidates_token_count", "response_token_count"),
    thoughts=("thoughts_token_count",),
    tools=("tool_use_prompt_token_count",),
    total=("total_token_count",),
    prompt_parts=("prompt_tokens_details", "prompt_token_details"),
    cached_parts=("cache_tokens_details",),
    answer_parts=("candidates_tokens_details", "response_tokens_details"),
    tools_parts=("tool_use_prompt_tokens_details",),
    size=("token_count",),
    ending=("_token_count",),
)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)


_CAMEL = _Names(**{field: tuple(map(_camel, getattr(_SNAKE, field))) for field in _Names._fields})
_INTERACTION = _Names(
    prompt=("total_input_tokens",),
    cached=("total_cached_tokens",),
    answer=("total_output_tokens",),
    thoughts=("total_thought_tokens",),
    tools=("total_tool_use_tokens",),
    total=("total_tokens",),
    prompt_parts=("input_tokens_by_modality",),
    cached_parts=("cached_tokens_by_modality",),
    answer_parts=("output_tokens_by_modality",),
    tools_parts=("tool_use_tokens_by_modality",),
    size=("tokens",),
    ending=("_tokens",),
    first=("initial_input_tokens",),
)


def usage_metadata(usage: JSON) -> Reading:
    """Google's usage, in either spelling. A count that is left out is 0, except the prompt's.

    Source: Gemini API, ``UsageMetadata``; of Live sessions, ``LiveServerMessage``; of embeddings,
    ``EmbedContentResponse``.
    """
    names = _SNAKE if _CAMEL.counts().isdisjoint(usage) else _CAMEL
    live = any(key in usage for key in names.answer[1:])
    return _read(usage, names, totals_thoughts=not live)


def interaction_usage(usage: JSON) -> Reading:
    """The usage of an interaction, a decision or a voice.

    Source: Gemini API, Interactions, ``Usage``.
    """
    return _read(usage, _INTERACTION, totals_thoughts=True)


def _read(usage: JSON, names: _Names, *, totals_thoughts: bool) -> Reading:
    flags: set[str] = set()
    prompt = count(usage, *names.prompt, flags=flags)
    cached = count(usage, *names.cached, flags=flags) or 0
    spoken = count(usage, *names.answer, flags=flags) or 0
    thoughts = count(usage, *names.thoughts, flags=flags) or 0
    tools = count(usage, *names.tools, flags=flags) or 0
    answer = spoken + thoughts
    total = _total(usage, names, flags)
    if (cached or tools) and not prompt:
        prompt = None  # there was one, so that a zero is a field nobody filled
    if thoughts and totals_thoughts and total == (prompt or 0) + tools + spoken and thoughts <= spoken:
        answer = spoken  # early previews of 2.5 counted them among the candidates
        flags.add("thoughts_included")
    elif prompt is not None and cached > prompt and total == prompt + cached + tools + answer:
        prompt += cached
        flags.add("cache_beside_input")
    elif total is not None and (totals_thoughts or not thoughts):
        prompt, answer = _by_total(total - tools, prompt, answer, flags, worded=spoken > 0)
    if has_unknown(usage, names.counts(), names.ending[0]):
        flags.add("unknown_token_class")
    quantities: dict[str, Quantity] = {}
    parts = _parts(usage, names.prompt_parts, names, flags)
    if "cache_beside_input" not in flags:
        check_parts(prompt, parts, _words(usage, names), flags)
    hits = _parts(usage, names.cached_parts, names, flags)
    split_input(quantities, prompt, flags, cached=cached, parts=parts, hits=hits or None)
    _put_tools(quantities, tools, _parts(usage, names.tools_parts, names, flags), flags)
    split_output(quantities, answer, _parts(usage, names.answer_parts, names, flags), flags)
    sides: dict[str, int | None] = {"input": prompt, "output": answer}
    if total and not prompt and not spoken:
        sides = {"input": None, "output": None}
    first = count(usage, *names.first, flags=set())
    size = None if first and first < (prompt or 0) else prompt  # a sum over several prompts
    return said_by(Usage(quantities, thoughts), size, flags, sides, total)


def _by_total(total: int, prompt: int | None, answer: int, flags: set[str], *, worded: bool) -> tuple[int | None, int]:
    """Prompt and answer, either of which follows from what both come to where it is not stated, or is 0.

    An answer of which only the thoughts are counted is not `worded`: the rest of the total is its words.
    """
    gap = total - (prompt or 0) - answer
    if gap and prompt is not None:
        flags.add("total_mismatch")
    if gap > 0 and worded and not prompt:
        return gap, answer
    if gap > 0 and prompt and not worded:
        return prompt, answer + gap
    return prompt, answer


def _total(usage: JSON, names: _Names, flags: set[str]) -> int | None:
    """The sum as it is stated. One that is no count makes no part an estimate."""
    doubts: set[str] = set()
    total = count(usage, *names.total, flags=doubts)
    if "malformed_count" in doubts:
        flags.add("total_mismatch")  # the parts count
    else:
        flags |= doubts
    return total


def _put_tools(quantities: dict[str, Quantity], tools: int, parts: Mapping[str, int], flags: set[str]) -> None:
    """What tools put into the prompt (fetched pages, results of code): billed as input, beside the prompt."""
    rest = tools - sum(parts.values())
    if rest < 0:
        flags.add("input_parts_exceed_total")
    put(quantities, "input", max(rest, 0))
    for name, size in parts.items():
        put(quantities, f"input_{name}", size)


def _parts(usage: JSON, lists: tuple[str, ...], names: _Names, flags: set[str]) -> dict[str, int]:
    """Sizes of what is no text, by modality. What is of none, or of one without a price yet, is billed as text."""
    sizes: dict[str, int] = {}
    stated = next((name for name in lists if usage.get(name)), lists[0])
    for entry in entries(usage, stated, flags=flags):
        size = count(entry, *names.size, flags=flags)
        modality = str(cast("object", entry.get("modality")) or "").lower().rpartition(".")[2]
        if size is None and entry and not modality:
            flags.add("malformed_count")
        elif (known := _MODALITIES.get(modality)) is not None:
            sizes[known] = sizes.get(known, 0) + (size or 0)
        elif size and modality != "text":
            flags.add("unknown_token_class")
    return sizes


def _words(usage: JSON, names: _Names) -> int:
    """Text in the prompt, as its breakdown says."""
    stated = next((name for name in names.prompt_parts if usage.get(name)), names.prompt_parts[0])
    said = [entry for entry in members(usage, stated) if str(entry.get("modality")).lower().endswith("text")]
    return sum(count(entry, *names.size, flags=set()) or 0 for entry in said)


SHAPES = (
    Shape(
        usage_metadata,
        own=frozenset({"prompt_token_count", "candidates_token_count", "thoughts_token_count"})
        | (_CAMEL.counts() - {"cachedContentTokenCount", "toolUsePromptTokenCount"}),
        nested=("usageMetadata", "usage_metadata"),
    ),
    Shape(interaction_usage, own=frozenset({"total_input_tokens", "total_output_tokens"})),
)
