"""What Google's answers say of their usage, read off the wire, whose objects say more than the SDK's.

Source of all shapes: https://ai.google.dev/api and ``google.genai.types``; of what is billed:
https://ai.google.dev/gemini-api/docs/pricing and https://cloud.google.com/vertex-ai/generative-ai/pricing.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from decimal import Decimal
from typing import Any

from tokenmeter.money import EXACT, quantize
from tokenmeter.providers.context import Context, pending, unknown
from tokenmeter.providers.google.requests import is_song_model, model_name, tier_name
from tokenmeter.providers.google.usage import interaction_usage, usage_metadata
from tokenmeter.providers.prompts import tokens_of
from tokenmeter.providers.readings import INPUT_SIDE, NOTHING_SAID, Reading, put, worked
from tokenmeter.providers.registry import counts_in, is_usage, read_usage, usage_of
from tokenmeter.providers.wire import (
    JSON,
    count,
    entries,
    instant,
    is_array,
    is_object,
    latest,
    members,
    section,
    text,
    utf8_length,
    written_bytes,
)
from tokenmeter.usage import Observation, Quantity, Usage


def answer(body: JSON, context: Context) -> Observation:
    """A ``GenerateContentResponse``, what a stream of one came to, or the usage object of one."""
    wire = _usage_in(body)
    said = _with_words(read_usage(wire) or NOTHING_SAID, wire, max(context.received, _word_bytes(body)))
    model = model_name(body.get("modelVersion")) or text(body, "model")
    reading = context.complete(said, received=lambda: _content_bytes(body))
    tier = _tier(body, wire)
    if reading is None:
        known = model or context.request.model
        lost = unknown({}, wire or None, model=known, flags=said.flags, deduplicate=False)
        return replace(lost, response_model=model, response_id=text(body, "responseId"), service_tier=tier)
    flags = set(reading.flags)
    found = _grounding(body, model or context.request.meant_model, context, flags)
    if songs := _songs(body, model or context.request.meant_model):
        reading = replace(reading, usage=Usage({"songs": songs}))
    group = context.consumption(_with(reading, found), model=model, tier=tier)
    return Observation(
        consumptions=(group,),
        response_model=model,
        response_id=text(body, "responseId"),
        service_tier=tier,
        flags=frozenset(flags),
        raw_usage=dict(wire) or None,
    )


def _usage_in(body: JSON) -> JSON:
    found = section(body, "usageMetadata", "usage_metadata")
    return found or (counts_in(body) if is_usage(body) else usage_of(body))


#: Vertex AI says by which traffic a request was served. Provisioned throughput is paid by the month, not by the token.
_TRAFFIC = {
    "ON_DEMAND": "default",
    "ON_DEMAND_FLEX": "flex",
    "ON_DEMAND_OFFPEAK": "offpeak",
    "ON_DEMAND_PRIORITY": "priority",
    "PROVISIONED_THROUGHPUT": "provisioned",
}


def _tier(body: JSON, wire: JSON) -> str | None:
    """The tier that served: Vertex AI's traffic type, the Gemini API's own word, or what its header said."""
    traffic = text(wire, "trafficType") or text(wire, "traffic_type")
    if traffic is not None and traffic in _TRAFFIC:
        return _TRAFFIC[traffic]
    return tier_name(text(wire, "serviceTier") or text(wire, "service_tier") or text(body, "serviceTier") or traffic)


def _with(reading: Reading, more: dict[str, Quantity]) -> Reading:
    if not more:
        return reading
    usage = Usage({**reading.usage.quantities, **more}, reading.usage.reasoning_output_tokens)
    return replace(reading, usage=usage)


def _with_words(said: Reading, wire: JSON, size: int) -> Reading:
    """`said` with an estimate of the answer's words, where its thoughts alone are counted and no total is."""
    thoughts = said.usage.reasoning_output_tokens
    totaled = count(wire, "totalTokenCount", "total_token_count", flags=set())
    if totaled or not size or not thoughts or said.usage.output_tokens != thoughts:
        return said
    return replace(said, usage=said.usage + Usage({"output": tokens_of(size)}), flags=said.flags | {"estimated"})


def _content_bytes(body: JSON) -> int:
    """UTF-8 bytes of what the model wrote, calls of functions included."""
    return sum(map(part_bytes, _answer_parts(body)))


def _word_bytes(body: JSON) -> int:
    """The same without its thoughts, which are counted by themselves."""
    return sum(part_bytes(part) for part in _answer_parts(body) if not part.get("thought"))


def _answer_parts(body: JSON) -> list[JSON]:
    contents = [section(candidate, "content") for candidate in members(body, "candidates")]
    contents.append(section(section(body, "serverContent"), "modelTurn"))  # a turn of a Live session
    return [part for content in contents for part in members(content, "parts")]


def part_bytes(part: JSON) -> int:
    """UTF-8 bytes of a part of an answer; of a picture or a sound there is its kind at least."""
    said = part.get("text")
    if isinstance(said, str):
        return utf8_length(said)
    shown = {key: value for key, value in part.items() if key not in {"inlineData", "thoughtSignature"}}
    return utf8_length(json.dumps(shown, ensure_ascii=False, default=str)) if part else 0


def _songs(body: JSON, model: str | None) -> int:
    """Songs, which are sold by the piece whatever their tokens: one a candidate that has sound."""
    if not is_song_model(model):
        return 0
    sung = {
        count(candidate, "index", flags=set()) or 0
        for candidate in members(body, "candidates")
        for part in members(section(candidate, "content"), "parts")
        if (text(section(part, "inlineData"), "mimeType") or "").startswith("audio/")
    }
    return len(sung)


# -- grounding: searches, which are billed beside the tokens

#: Up to 2.5 a grounded prompt is billed once, however many queries it took; from 3 on each query is.
_BY_PROMPT = re.compile(r"gemini-(1|2)[.-]|gemini-(pro|flash)-1|gemini-live-2")


def _grounding(body: JSON, model: str | None, context: Context, flags: set[str]) -> dict[str, Quantity]:
    queries: set[str] = set()
    sources = maps = False
    for candidate in members(body, "candidates") or [section(body, "serverContent")]:
        found = section(candidate, "groundingMetadata")
        for name in ("webSearchQueries", "imageSearchQueries"):
            said = found.get(name)
            if is_array(said):
                queries |= {query.strip() for query in said if isinstance(query, str) and query.strip()}
        for chunk in members(found, "groundingChunks"):
            maps = maps or "maps" in chunk
            sources = sources or bool({"web", "image"} & chunk.keys())
    by_prompt = bool(_BY_PROMPT.match(model or ""))
    unknown_calls = 0
    quantities: dict[str, Quantity] = {}
    if maps:
        quantities["grounded_prompts_maps" if by_prompt else "web_searches_maps"] = 1
        if not by_prompt:
            flags.add("map_searches_assumed")  # nobody says how many there were
    if queries and (sources or (not maps and context.request.region is None)):  # Vertex AI bills what it found
        if not context.request.tools:
            quantities["grounded_prompts" if by_prompt else "web_searches"] = 1 if by_prompt else len(queries)
        else:  # by a search that has a price of its own, as far as anybody can tell
            unknown_calls = len(queries)
    if others := unknown_calls + sum(map(is_unknown_tool, _answer_parts(body))):
        flags.add("unknown_server_tool")
        quantities["server_tool_calls"] = others
    return quantities


#: Google's own tools, which grounding tells of, or which cost nothing. Source: ``google.genai.types`` ToolType.
_TOOL_TYPES = frozenset(
    {"FILE_SEARCH", "GOOGLE_MAPS", "GOOGLE_SEARCH_IMAGE", "GOOGLE_SEARCH_WEB", "MEDIA_PROCESSING", "URL_CONTEXT"}
)
#: Calls among the steps of an interaction. Source: ``google.genai.interactions`` Step.
_KNOWN_STEPS = frozenset(
    {
        *("code_execution_call", "file_search_call", "function_call", "google_maps_call", "google_search_call"),
        *("mcp_server_tool_call", "processing_call", "retrieval_call", "tool_search_call", "url_context_call"),
    }
)


def is_unknown_tool(part: JSON) -> bool:
    """Whether a part of an answer is the call of a server-side tool that no rule knows."""
    called = section(part, "toolCall")
    return bool(called) and text(called, "toolType") not in _TOOL_TYPES


def is_unknown_step(step: JSON) -> bool:
    """The same of a step of an interaction."""
    kind = text(step, "type") or ""
    return kind.endswith("_call") and kind not in _KNOWN_STEPS


# -- streams


def merged(chunks: list[JSON]) -> dict[str, Any]:
    """Chunks of one stream as one answer, as far as its bill goes. Usage is a running total: each field's last word."""
    result: dict[str, Any] = {}
    usage: dict[str, Any] = {}
    candidates: list[JSON] = []
    for chunk in chunks:
        for key in ("modelVersion", "responseId", "serviceTier"):
            if chunk.get(key):
                result[key] = chunk[key]
        usage = latest(usage, section(chunk, "usageMetadata"))
        candidates += members(chunk, "candidates")
    return {**result, "usageMetadata": usage, "candidates": candidates}


# -- interactions


#: What says no more than that there is an answer; the end of one over a socket has no status.
_COMPLETED = frozenset({None, "completed"})


def interaction(body: JSON, context: Context) -> Observation:
    """An interaction, the event that ends the stream of one, a decision or a voice."""
    inner = section(body, "interaction") or body
    if context.final_only and text(inner, "status") in {"in_progress", "queued"}:
        return replace(pending(inner), response_model=model_name(inner.get("model")))
    wire = section(inner, "usage") or (counts_in(inner) if is_usage(inner) else {})
    if context.endpoint == "interactions.cancel" and not wire:
        return pending(inner)  # what was stopped may say what it used when it is read
    said = interaction_usage(wire) if wire else NOTHING_SAID
    if not said.usage.quantities and context.endpoint == "interactions.get" and text(inner, "status") in _COMPLETED:
        said = replace(NOTHING_SAID, flags=said.flags)  # what was asked, and perhaps answered, was seen elsewhere
    model = model_name(inner.get("model")) or model_name(inner.get("agent"))
    reading = context.complete(said, received=lambda: _steps_bytes(inner))
    repeats = context.endpoint.startswith("interactions")  # whoever reads it again is told its usage again
    if reading is None:
        return unknown(inner, wire or None, model=model or context.request.model, flags=said.flags, deduplicate=repeats)
    flags = set(reading.flags)
    found = _tools(wire, model or context.request.meant_model, flags)
    if "unknown_server_tool" not in flags and (others := sum(map(is_unknown_step, members(inner, "steps")))):
        flags.add("unknown_server_tool")
        found["server_tool_calls"] = others
    if is_song_model(model or context.request.meant_model) and "audio" in _media(inner):
        reading = replace(reading, usage=Usage({"songs": 1}))
    tier = _tier(inner, wire)
    return Observation(
        consumptions=(context.consumption(_with(reading, found), model=model, tier=tier),),
        response_model=model,
        response_id=text(inner, "id"),
        service_tier=tier,
        flags=frozenset(flags),
        raw_usage=dict(wire) or None,
        deduplicate=repeats,
        at=instant(inner, "created") if context.endpoint == "interactions.get" else None,
    )


def execution(body: JSON, context: Context) -> Observation:
    """What a trigger was told to run: an interaction, whose bill whoever reads it has."""
    del context
    return Observation(response_id=text(body, "interaction_id"), flags=frozenset({"not_final"}), billable=False)


#: What an interaction's tools are billed as. Retrieval is from the caller's own files, which costs nothing.
_TOOLS = {"google_search": "web_searches", "google_maps": "web_searches_maps", "retrieval": None}


def _tools(wire: JSON, model: str | None, flags: set[str]) -> dict[str, Quantity]:
    """What the tools of an interaction were asked, as they are billed."""
    found: dict[str, Quantity] = {}
    for tool in entries(wire, "grounding_tool_count", flags=flags):
        kind, times = text(tool, "type") or "", count(tool, "count", flags=flags)
        meter = _TOOLS.get(kind, "server_tool_calls")
        if times != 0 and kind not in _TOOLS:
            flags.add("unknown_server_tool")
        elif times and meter and _BY_PROMPT.match(model or ""):
            meter, times = meter.replace("web_searches", "grounded_prompts"), 1
        if meter:
            put(found, meter, times or 0)
    return found


#: What an answer may be beside words.
MEDIA = frozenset({"audio", "document", "image", "video"})


def _media(body: JSON) -> list[str]:
    """What is in an interaction's answer beside words, in either spelling."""
    said = [step for step in members(body, "steps") if text(step, "type") == "model_output"]
    parts = [part for step in said for part in members(step, "content")]
    kinds = [text(part, "type") or "" for part in (*parts, *members(body, "outputs"))]
    return [kind for kind in kinds if kind in MEDIA]


def _steps_bytes(body: JSON) -> int:
    """UTF-8 bytes of an interaction's answer; of a picture or a sound there is its kind at least."""
    said = sum(map(step_bytes, members(body, "steps") or members(body, "outputs")))
    return said + sum(map(len, _media(body)))


def step_bytes(step: JSON) -> int:
    """UTF-8 bytes of what a model wrote into a step of an interaction, or into a piece of one as it is streamed.

    What it was given, the caller's words and what tools found, is no part of its answer.
    """
    if (kind := text(step, "type") or "") == "user_input" or kind.endswith("_result"):
        return 0
    arguments: Any = step.get("arguments")
    if is_object(arguments):
        arguments = json.dumps(arguments, ensure_ascii=False, default=str) if arguments else None
    return written_bytes({**step, "arguments": arguments})


# -- embeddings and pictures


#: Embedding models that are sold by the character. Source: https://cloud.google.com/vertex-ai/generative-ai/pricing
_BY_CHARACTER = re.compile(r"text-(multilingual-)?embedding-0|textembedding-gecko")


def embeddings(body: JSON, context: Context) -> Observation:
    """Embeddings of either API: the Gemini API states the tokens as a whole, Vertex AI those of each text.

    Of models that are sold by the character it states those, too, which are then what is counted.
    """
    wire = _usage_in(body)
    flags: set[str] = set()
    if wire:
        return answer_of_input(wire, context, flags)
    if _BY_CHARACTER.match((context.request.meant_model or "").rsplit("/", 1)[-1]):
        characters = count(section(body, "metadata"), "billableCharacterCount", flags=flags)
        if characters:
            return replace(_pieces({"characters": characters}, body, context), flags=frozenset(flags))
    made = [section(one, "embeddings") for one in members(body, "predictions")] or members(body, "embeddings")
    sizes = [count(section(one, "statistics"), "token_count", "tokenCount", flags=flags) for one in made]
    if not sizes or None in sizes:
        return answer_of_input({}, context, flags)
    total = sum(size for size in sizes if size is not None)
    return answer_of_input({"promptTokenCount": total}, context, flags)


def answer_of_input(wire: JSON, context: Context, doubts: set[str]) -> Observation:
    """An answer that only its prompt is billed for; `doubts` are those of whoever put `wire` together."""
    said = usage_metadata(wire) if wire else NOTHING_SAID
    if "input" in said.unsaid and (total := count(wire, "totalTokenCount", flags=set())):
        said = usage_metadata({**wire, "promptTokenCount": total})  # it answers in no tokens
    flags = said.flags | doubts
    said = worked(replace(said, flags=flags), answered=True)  # nothing is made of no words
    reading = context.complete(said, sides=INPUT_SIDE)
    if reading is None:
        return unknown({}, wire or None, model=context.request.model, flags=flags)
    return Observation(
        consumptions=(context.consumption(reading, model=None),),
        flags=reading.flags,
        raw_usage=dict(wire) or None,
    )


#: What an answer with pictures is made of, off the wire and as the SDK has it; one that holds back all may be empty.
_PICTURED = frozenset(
    {
        *("predictions", "deployedModelId", "metadata", "model", "modelDisplayName", "modelVersionId"),
        *("generatedImages", "generatedMasks", "positivePromptSafetyAttributes", "sdkHttpResponse"),
    }
)


def pictures(body: JSON, context: Context) -> Observation:
    """Pictures sold by the piece: those that were delivered. What a filter held back is not billed."""
    made = members(body, "predictions")
    made += [section(one, "image") for one in members(body, "generatedImages")]
    made += [section(one, "mask") for one in members(body, "generatedMasks")]
    delivered = sum(1 for one in made if any(one.get(name) for name in ("bytesBase64Encoded", "imageBytes", "gcsUri")))
    if not (made or _PICTURED.issuperset(body)):
        return unknown({}, None, model=context.request.model)
    return _pieces({"images": delivered} if delivered else {}, body, context)


def _pieces(quantities: dict[str, Quantity], body: JSON, context: Context, **more: Any) -> Observation:
    group = context.consumption(Reading(Usage(quantities)), model=None)
    seen = Observation(consumptions=(group,) if quantities else (), response_id=text(body, "responseId"))
    said = {key: value if isinstance(value, int) else str(value) for key, value in quantities.items()}
    return replace(seen, raw_usage=said or None, **more)


#: Samples of music are 16 bits, in stereo at 48 kHz, where their type does not say otherwise.
#: Source: https://ai.google.dev/gemini-api/docs/music-generation
_SAMPLING = {"rate": 48_000, "channels": 2}
_SAMPLE_BYTES = 2


def music(body: JSON, context: Context) -> Observation:
    """What a session of music played: the length of its sound, in seconds; of one that is compressed it is unknown."""
    if not is_array(body.get("sound")):
        return unknown({}, None, model=context.request.model)
    seconds = Decimal(0)
    for sound in members(body, "sound"):
        kind = text(sound, "mimeType") or "audio/l16"
        size = count(sound, "bytes", flags=set())
        if size is None or not kind.lower().startswith(("audio/l16", "audio/pcm")):
            return unknown({}, None, model=context.request.model)
        said = {**_SAMPLING, **{name: int(value) for name, value in re.findall(r"(rate|channels)=([1-9]\d*)", kind)}}
        seconds = EXACT.add(seconds, EXACT.divide(Decimal(size), said["rate"] * said["channels"] * _SAMPLE_BYTES))
    return _pieces({"seconds_audio": quantize(seconds)}, body, context)
