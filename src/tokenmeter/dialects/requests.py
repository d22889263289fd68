"""What accounting needs to know of a request body, per provider. Runs before every call; takes a few microseconds."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tokenmeter.call import RequestFacts
from tokenmeter.dialects.base import Endpoint
from tokenmeter.dialects.prompts import measure
from tokenmeter.dialects.wire import JSON, is_array, is_object, members, section, text

__all__ = ["anthropic_facts", "openai_facts"]

#: Everything either provider renders into the prompt.
_PROMPT_KEYS = (
    "messages",
    "input",
    "system",
    "instructions",
    "tools",
    "prompt",
    "suffix",
    "functions",
    "response_format",
    "text",
    "questions",
    "prediction",
    "output_config",
    "output_format",
)
#: The image tool's model when its configuration names none (``openai.types.responses`` ImageGeneration.model).
DEFAULT_IMAGE_MODEL = "gpt-image-2.6-sunburst"
_NO_TOOLS: Mapping[str, str] = MappingProxyType({})
#: Tools that OpenAI runs itself: each may start another turn of the model, all under one output sum.
_OPENAI_SERVER_TOOLS = ("web_search", "file_search", "code_interpreter", "image_generation", "mcp", "shell")
_ANTHROPIC_SERVER_TOOLS = ("web_search_", "web_fetch_", "code_execution_", "mcp_toolset", "tool_search_tool_")
_COMPACTION = "compact"


def openai_facts(endpoint: Endpoint, body: JSON | None) -> RequestFacts:
    """Facts of a request in OpenAI's format."""
    if not body:
        return RequestFacts()
    get = body.get
    prompt = measure([get(key) for key in _PROMPT_KEYS if key in body])
    reasons: list[str] = []
    tool_models = _NO_TOOLS
    if "tools" in body:
        tool_models = _openai_tools(body, reasons)
    if endpoint.path.endswith("responses") or "previous_response_id" in body:
        _openai_history(body, reasons)
    if prompt.remote:
        reasons.append("files")
    if "web_search_options" in body:
        reasons.append("server_tools")
    if "session" in body or "audio" in body:
        tool_models = _session_models(body) or tool_models
    spoken = get("input") if endpoint.path == "audio.speech" else None
    return RequestFacts(
        model=_text(get("model")) or text(section(body, "session"), "model"),
        service_tier=_text(get("service_tier")),
        processing=_processing(body),
        input_bytes=prompt.size,
        image_count=prompt.images + _attached_images(endpoint, body),
        characters=len(spoken) if isinstance(spoken, str) else None,
        max_output_tokens=_limit(get("max_completion_tokens"), get("max_output_tokens"), get("max_tokens")),
        choices=_choices(body),
        streamed=bool(get("stream")) or get("stream_format") == "sse",
        tool_models=tool_models,
        unbounded=",".join(reasons) if reasons else None,
    )


def anthropic_facts(_endpoint: Endpoint, body: JSON | None) -> RequestFacts:
    """Facts of a request in Anthropic's format."""
    if not body:
        return RequestFacts()
    get = body.get
    prompt = measure([get(key) for key in _PROMPT_KEYS if key in body])
    reasons: list[str] = []
    tool_models = _NO_TOOLS
    if "tools" in body:
        tool_models = _anthropic_tools(body, reasons)
    if get("mcp_servers") and "server_tools" not in reasons:
        reasons.append("server_tools")
    if get("fallbacks"):
        reasons.append("fallbacks")
    if get("compaction") or _compacts(body):
        reasons.append("compaction")
    if get("thread"):
        reasons.append("conversation")
    if prompt.remote:
        reasons.append("files")
    return RequestFacts(
        model=_model(get("model")),
        service_tier=_text(get("service_tier")),
        speed=_fast(get("speed")),
        input_bytes=prompt.size,
        image_count=prompt.images,
        max_output_tokens=_limit(get("max_tokens"), get("max_tokens_to_sample")),
        streamed=bool(get("stream")),
        tool_models=tool_models,
        unbounded=",".join(reasons) if reasons else None,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _model(value: Any) -> str | None:
    return text(value, "id") if is_object(value) else _text(value)


def _fast(value: Any) -> str | None:
    return None if value == "standard" else _text(value)


def _limit(*values: Any) -> int | None:
    """The first limit that is named; what is not a whole number (``"inf"`` of realtime) is none."""
    return next((value for value in values if type(value) is int), None)


def _choices(body: JSON) -> int:
    """Answers that are generated, each up to the output limit: ``best_of`` counts, and every prompt of a list."""
    many, best = body.get("n"), body.get("best_of")
    answers = max(many if type(many) is int else 1, best if type(best) is int else 1, 1)
    prompts = body.get("prompt")
    if is_array(prompts) and prompts and not isinstance(prompts[0], int):
        answers *= len(prompts)
    return answers


def _processing(body: JSON) -> str | None:
    """Background work that may wait longer is discounted, at rates of its own."""
    window = text(section(body, "background_options"), "completion_window")
    return f"background_{window}" if window and window != "soonest" else None


def _openai_tools(body: JSON, reasons: list[str]) -> Mapping[str, str]:
    models: dict[str, str] = {}
    for tool in members(body, "tools"):
        kind = tool.get("type")
        if not isinstance(kind, str) or kind in {"function", "custom"}:
            continue
        if kind.startswith(_OPENAI_SERVER_TOOLS) and "server_tools" not in reasons:
            reasons.append("server_tools")
        if kind == "image_generation":
            models[kind] = text(tool, "model") or DEFAULT_IMAGE_MODEL
    return models or _NO_TOOLS


def _openai_history(body: JSON, reasons: list[str]) -> None:
    if body.get("previous_response_id") or body.get("conversation"):
        reasons.append("conversation")
    if isinstance(body.get("prompt"), dict):
        reasons.append("stored_prompt")
    if body.get("background"):
        reasons.append("background")
    if any(_COMPACTION in str(entry.get("type")) for entry in members(body, "context_management")):
        reasons.append("compaction")


def _attached_images(endpoint: Endpoint, body: JSON) -> int:
    """Pictures sent as form fields to the image endpoints."""
    if not endpoint.path.startswith("images.") or "image" not in body:
        return 0
    pictures = body["image"]
    return len(pictures) if is_array(pictures) else 1


def _session_models(body: JSON) -> Mapping[str, str] | None:
    """The speech recognition model that a realtime session configures, in either of its spellings."""
    session = section(body, "session") or body
    config = section(section(section(session, "audio"), "input"), "transcription")
    model = text(config or section(session, "input_audio_transcription"), "model")
    return {"transcription": model} if model else None


def _anthropic_tools(body: JSON, reasons: list[str]) -> Mapping[str, str]:
    models: dict[str, str] = {}
    for tool in members(body, "tools"):
        kind = tool.get("type")
        if not isinstance(kind, str):
            continue
        if kind.startswith(_ANTHROPIC_SERVER_TOOLS) and "server_tools" not in reasons:
            reasons.append("server_tools")
        if kind.startswith("advisor_"):
            reasons.append("advisor")
            if model := text(tool, "model"):
                models["advisor"] = model
    return models or _NO_TOOLS


def _compacts(body: JSON) -> bool:
    edits = members(section(body, "context_management"), "edits")
    return any(str(edit.get("type")).startswith(_COMPACTION) for edit in edits)
