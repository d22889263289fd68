"""The field's standard names, in one place.

Operations, providers and statuses follow OpenTelemetry's GenAI conventions; meters and units follow FinOps FOCUS
(``SkuMeter``, ``PricingUnit``).
"""

from __future__ import annotations

from typing import Final, Literal

#: Disjoint token classes that a prompt is made of. Their sum is OpenTelemetry's ``gen_ai.usage.input_tokens``.
FRESH_INPUT_METERS: Final = ("input", "input_audio", "input_image", "input_video")
CACHE_READ_METERS: Final = ("cache_read", "cache_read_audio", "cache_read_image", "cache_read_video")
CACHE_WRITE_METERS: Final = ("cache_write_5m", "cache_write_1h", "cache_write_30m", "cache_write_12h")
INPUT_METERS: Final = (*FRESH_INPUT_METERS, *CACHE_READ_METERS, *CACHE_WRITE_METERS)
#: Disjoint token classes of an answer. Their sum is ``gen_ai.usage.output_tokens``; reasoning is a part of ``output``.
OUTPUT_METERS: Final = ("output", "output_audio", "output_image", "output_video")
#: ``output_citation`` and ``output_reasoning`` are Perplexity's, who bills them beside the answer that it counts.
TOKEN_METERS: Final = (*INPUT_METERS, *OUTPUT_METERS, "trained_tokens", "output_citation", "output_reasoning")

#: The unit of each meter, in FOCUS's spelling.
UNITS: Final[dict[str, str]] = {
    **dict.fromkeys(TOKEN_METERS, "Tokens"),
    "seconds_audio": "Seconds",
    "seconds_video": "Seconds",
    "runtime_seconds": "Seconds",
    "characters": "Characters",
    "images": "Images",
    "songs": "Songs",
    "cache_storage": "Token-Hours",
    "web_searches": "Searches",
    "file_searches": "Searches",
    "attachment_searches": "Searches",
    "grounded_prompts": "Prompts",
    "search_sources": "Sources",
    "code_executions": "Executions",
    "server_tool_calls": "Calls",  # of tools that no rule knows: they have no price
    "container_sessions": "Sessions",
    "requests": "Requests",
    "provider_cost": "USD",  # a cost the biller supplied, which no table can split into meters
    "adjustment": "USD",
}
ALL_METERS: Final = tuple(UNITS)

#: Operations that are billed by their prompt and a text answer, and those that are by their prompt alone.
TEXT_OPERATIONS: Final = frozenset({"chat", "text_completion", "decision", "generate_content"})
PROMPT_OPERATIONS: Final = frozenset({"embeddings", "rerank", "moderation"})

EntryKind = Literal["usage", "correction", "adjustment"]
#: ok: an answer came; error: the provider refused or failed; aborted: the caller stopped; timeout: nobody answered.
Status = Literal["ok", "error", "aborted", "timeout"]
#: billed: the biller said the cost; computed: usage x price list; estimated: part of the usage was estimated;
#: unpriced: some meter has no known price; none: nothing billable happened.
CostSource = Literal["billed", "computed", "estimated", "unpriced", "none"]


def unit_of(sku_meter: str) -> str:
    """FOCUS ``PricingUnit`` of a meter; ``"Units"`` for a meter a user's own price list added.

    A size behind the name (``container_sessions_4g``, ``seconds_video_1024p``) has a price, not a unit, of its own.
    """
    return UNITS.get(sku_meter) or UNITS.get(sku_meter.rpartition("_")[0], "Units")
