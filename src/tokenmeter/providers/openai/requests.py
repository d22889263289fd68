"""What accounting needs to know of a request in OpenAI's format. It runs before every call."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

from tokenmeter.call import NO_PIECES, RequestFacts
from tokenmeter.providers.base import Endpoint, Routes, bare_path
from tokenmeter.providers.openai.pictures import count_patches, count_tiles
from tokenmeter.providers.prompts import (
    NO_TOOLS,
    UNREADABLE,
    PromptRule,
    PromptSize,
    is_unclear,
    listed,
    measure,
    measure_prompt,
    named,
    offered,
    read_limit,
)
from tokenmeter.providers.wire import JSON, count, is_array, is_object, section, text

#: The image tool's model when its configuration names none (``openai.types.responses`` ImageGeneration.model).
DEFAULT_IMAGE_MODEL = "gpt-image-2.6-sunburst"
#: Fields that are not rendered into the prompt.
_KNOBS = frozenset({
    *("model", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of", "temperature", "top_p"),
    *("stream", "stream_options", "stop", "seed", "user", "store", "presence_penalty", "frequency_penalty", "echo"),
    *("logit_bias", "logprobs", "top_logprobs", "metadata", "service_tier", "reasoning", "reasoning_effort"),
    *("verbosity", "tool_choice", "parallel_tool_calls", "truncation", "prompt_cache_key", "prompt_cache_retention"),
    *("safety_identifier", "include", "background", "modalities", "encoding_format", "dimensions"),
    *("context_management", "previous_response_id", "conversation", "fallbacks", "models", "plugins"),
})  # fmt: skip
#: The two names of a chat's limit: the newer one, and the one that every host knows.
CHAT_LIMITS = ("max_completion_tokens", "max_tokens")
RESPONSE_LIMITS = ("max_output_tokens",)
#: The second is what sessions and answers of the first Realtime API say.
REALTIME_LIMITS = ("max_output_tokens", "max_response_output_tokens")
#: Length of a video when nobody names it, and its smallest size (``openai.types`` VideoCreateParams).
_VIDEO_SECONDS, _SMALLEST_VIDEO = 4, 720
_LONGEST_SIDE = 6  # digits
#: Tools that the caller runs. Any other is the host's own: each may start another turn of the model.
_CLIENT_TOOLS = ("function", "custom", "computer", "local_shell", "apply_patch", "namespace")
#: Fields by which a host is asked for more than an answer of the model: OpenAI's, and those of hosts that speak its
#: format (Azure, xAI, OpenRouter, DashScope, Perplexity).
_MORE = {
    "web_search_options": "server_tools",
    "data_sources": "server_tools",
    "search_parameters": "server_tools",
    "enable_search": "server_tools",
    "plugins": "server_tools",
    "multi_agent": "server_tools",
    "models": "fallbacks",
    "fallbacks": "fallbacks",
    "preset": "stored_prompt",
    "agent_id": "stored_prompt",
}
#: In the names of models that search, or ask other models, in a loop of their own.
_AGENTS = re.compile(r":online$|-search-(preview|api)\b|deep-research|(^|/)compound(-|$)")
_COMPACTION = "compact"
_DATED = r"(?:-\d{4}-\d{2}-\d{2})?(?!-)"
#: What a picture costs is known of the names that are listed, and of their snapshots. Later models see it as it is.
PROMPT_RULES = (
    PromptRule("gpt-4o-mini", image=48_169, of_picture=count_tiles(2_833, 5_667)),
    PromptRule(f"(?:gpt-4o|gpt-4\\.1|gpt-4\\.5-preview){_DATED}", of_picture=count_tiles(85, 170)),
    PromptRule(f"gpt-5(?:-chat-latest)?{_DATED}", of_picture=count_tiles(70, 140)),
    PromptRule(f"(?:o1|o1-pro|o3){_DATED}", of_picture=count_tiles(75, 150)),
    PromptRule(f"computer-use-preview{_DATED}", of_picture=count_tiles(65, 129)),
    PromptRule(f"(?:gpt-5|gpt-5\\.4|gpt-4\\.1)-mini{_DATED}", of_picture=count_patches(162, auto=1_536)),
    PromptRule(f"(?:gpt-5|gpt-5\\.4|gpt-4\\.1)-nano{_DATED}", of_picture=count_patches(246, auto=1_536)),
    PromptRule(f"o4-mini{_DATED}", of_picture=count_patches(172, auto=1_536)),
    PromptRule(f"gpt-5\\.2(?:-chat-latest|-codex)?{_DATED}", of_picture=count_patches(auto=1_536)),
    PromptRule(f"gpt-5\\.4{_DATED}", of_picture=count_patches(auto=2_500, original=10_000)),
    PromptRule(f"gpt-5\\.5{_DATED}", of_picture=count_patches(high=2_500, auto=10_000, original=10_000)),
    PromptRule(r"gpt-(?:5\.[6-9]|[6-9](?:\.\d+)?)", of_picture=count_patches(high=2_500, auto=None, original=None)),
)


def request_facts(endpoint: Endpoint, body: JSON | None) -> RequestFacts:
    """Facts of a request in OpenAI's format."""
    if not body:
        return RequestFacts()
    get = body.get
    prompt = measure_prompt(body, endpoint.operation, _KNOBS)
    reasons: list[str] = []
    tools = offered(body, prompt, reasons)
    tool_models = _tools(tools, reasons)
    if endpoint.path.endswith(("responses", "responses.connect")) or "previous_response_id" in body:
        _history(body, reasons)
    if endpoint.path.startswith("conversations."):
        reasons.append("conversation")
    if prompt.remote:
        reasons.append("files")
    reasons += [reason for name, reason in _MORE.items() if get(name) and not _is_off(name, get(name))]
    if get("web_search_options") is not None or is_agent(str(get("model"))):
        reasons.append("server_tools")
    if "session" in body or "audio" in body:
        tool_models = _session_models(body) or tool_models
    choices, limits = _choices(body, reasons), _limits(endpoint.path, body)
    # Older completions may just score a prompt: zero is a limit of theirs.
    longest = read_limit(limits[0]) if endpoint.path == "completions" else read_longest(*limits)
    if get("enable_thinking") is True and read_limit(get("thinking_budget")) is None:
        reasons.append("thinking")
    return RequestFacts(
        model=named(get("model")) or text(section(body, "session"), "model"),
        service_tier=named(get("service_tier")),
        processing=_processing(body),
        input_bytes=prompt.size,
        long_texts=prompt.texts,
        image_count=prompt.images,
        pictures=tuple(prompt.pictures),
        max_output_tokens=None if longest is None else longest + _beside(body),
        unclear_limit=longest is None and is_unclear(*limits),
        choices=choices,
        pieces=_pieces(endpoint, body, choices),
        background=get("background") is True,
        streamed=bool(get("stream")) or get("stream_format") == "sse",
        tool_models=tool_models,
        tools=_hosted(tools),
        terms=_terms(endpoint, body, prompt),
        unbounded=",".join(dict.fromkeys(reasons)) or None,
    )


def _pieces(endpoint: Endpoint, body: JSON, choices: int) -> Mapping[str, int]:
    """What may be sold by the piece: the text to be spoken, pictures, seconds of a new video."""
    if endpoint.operation == "image_generation":
        return {"images": choices}
    if endpoint.path == "videos":
        seconds = count(body, "seconds", flags=set()) or _VIDEO_SECONDS
        return {video_meter(text(body, "size")): seconds}
    if added := _added_seconds(endpoint, body):
        return {video_meter(None): added}
    spoken = body.get("input") if endpoint.operation == "speech" else None
    return {"characters": len(spoken)} if isinstance(spoken, str) else NO_PIECES


def video_meter(size: str | None) -> str:
    """Pictures larger than the smallest size have prices, and so meters, of their own: ``seconds_video_1024p``."""
    sides = [int(side) for side in (size or "").split("x") if side.isdecimal() and len(side) < _LONGEST_SIDE]
    shorter = min(sides, default=_SMALLEST_VIDEO)
    return "seconds_video" if shorter <= _SMALLEST_VIDEO else f"seconds_video_{shorter}p"


def is_agent(model: str) -> bool:
    """Whether a model of this name asks other models, or searches, in a loop of its own."""
    return _AGENTS.search(model) is not None


def _limits(path: str, body: JSON) -> list[Any]:
    """What a request says in the fields that its endpoint obeys."""
    if path == "completions":
        return [body.get("max_tokens")]
    if path.startswith("conversations"):
        body = section(body, "completion_args")
    elif path.startswith("realtime"):
        return [body.get(name) for name in REALTIME_LIMITS]
    elif not path.startswith("chat"):
        return [body.get(name) for name in RESPONSE_LIMITS]
    return [body.get(name) for name in CHAT_LIMITS]


def read_longest(first: Any, second: Any = None) -> int | None:
    """The longest answer that a request allows, as its fields for that say; None where they say none.

    Hosts leave out what they do not know, so of two fields the larger counts. Zero is no limit to many hosts.
    """
    if first is None or second is None:
        said = second if first is None else first
        return None if said is None else read_limit(said) or None
    limits = read_limit(first), read_limit(second)
    return max(limits[0], limits[1]) if limits[0] and limits[1] else None


def _beside(body: JSON) -> int:
    """Tokens of an answer that its limit leaves out: a prediction's that were rejected, and thinking (DashScope)."""
    predicted = body.get("prediction")
    return (measure([predicted]).size if predicted else 0) + (read_limit(body.get("thinking_budget")) or 0)


def _choices(body: JSON, reasons: list[str]) -> int:
    """Answers that are generated, each up to the output limit: ``best_of`` counts, and every prompt of a list."""
    answers = max(count(body, "n", flags=set()) or 1, count(body, "best_of", flags=set()) or 1)
    prompts = cast("Iterable[Any] | None", body.get("prompt"))
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
        return answers
    if not isinstance(prompts, Collection):
        reasons.append(UNREADABLE)
        return answers
    return answers if isinstance(next(iter(prompts), 0), int) else answers * len(prompts)


def _processing(body: JSON) -> str | None:
    """Background work that may wait longer is discounted, at rates of its own."""
    window = text(section(body, "background_options"), "completion_window")
    return f"background_{window}" if window and window != "soonest" else None


def _tools(tools: Iterable[JSON], reasons: list[str]) -> Mapping[str, str]:
    models: dict[str, str] = {}
    for tool in tools:
        kind = tool.get("type")
        if kind is None and ("function" in tool or "name" in tool):
            continue
        if not (isinstance(kind, str) and kind.startswith(_CLIENT_TOOLS)) and not _is_local(tool):
            reasons.append("server_tools")
        if kind == "image_generation":
            models[kind] = text(tool, "model") or DEFAULT_IMAGE_MODEL
    return models or NO_TOOLS


#: What the bill of a hosted tool depends on: in its own configuration, and in that of the container it runs in.
_TOOL_TERMS, _PLACES = ("type", "model"), ("container", "environment")
_PLACE_TERMS = ("type", "container_id", "memory_limit")


def _hosted(tools: Iterable[JSON]) -> tuple[dict[str, Any], ...]:
    """See `RequestFacts.tools`."""
    return tuple(_billed(tool) for tool in tools if not str(tool.get("type", "function")).startswith(_CLIENT_TOOLS))


def _billed(tool: JSON) -> dict[str, Any]:
    terms: dict[str, Any] = {name: value for name in _TOOL_TERMS if (value := text(tool, name)) is not None}
    for name in _PLACES:
        if (place := section(tool, name)) or isinstance(tool.get(name), str):
            terms[name] = {key: text(place, key) for key in _PLACE_TERMS if key in place} or text(tool, name)
    return terms


def _added_seconds(endpoint: Endpoint, body: JSON) -> int | None:
    """What a video is to be longer by; None for what extends none, or does not say by how much."""
    return (count(body, "seconds", flags=set()) or None) if endpoint.path == "videos.extend" else None


def _terms(endpoint: Endpoint, body: JSON, prompt: PromptSize) -> dict[str, str]:
    """See `RequestFacts.terms`."""
    terms = prompt.cache_terms
    if added := _added_seconds(endpoint, body):
        terms["added_seconds"] = str(added)
    searched = (
        text(section(body, "web_search_options"), "search_context_size") if "web_search_options" in body else None
    )
    if searched:
        terms["search_context_size"] = searched
    return terms


def _is_off(name: str, setting: Any) -> bool:
    """Whether a search is only spoken of to say that there is to be none (xAI)."""
    return name == "search_parameters" and is_object(setting) and setting.get("mode") == "off"


def _is_local(tool: JSON) -> bool:
    """Whether a tool that may also be hosted is left to the caller."""
    return text(section(tool, "environment"), "type") == "local" or tool.get("execution") == "client"


def _history(body: JSON, reasons: list[str]) -> None:
    if body.get("previous_response_id") or body.get("conversation") or _repeats(body.get("input")):
        reasons.append("conversation")
    if body.get("prompt") and not isinstance(body["prompt"], str | list | tuple):
        reasons.append("stored_prompt")
    if body.get("background"):
        reasons.append("background")
    if any(_COMPACTION in str(entry.get("type")) for entry in listed(body, "context_management", reasons)):
        reasons.append("compaction")


def _repeats(items: Any) -> bool:
    """Whether one of a response's input items only names an earlier one; such an item need not say its type."""
    return is_array(items) and any(
        is_object(item) and "id" in item and not item.keys() - {"id", "type"} and item.get("type") is None
        for item in items
    )


def _session_models(body: JSON) -> Mapping[str, str] | None:
    """The speech recognition model that a realtime session configures, in either of its spellings."""
    session = section(body, "session") or body
    config = section(section(section(session, "audio"), "input"), "transcription")
    model = text(config or section(session, "input_audio_transcription"), "model")
    return {"transcription": model} if model else None


# -- what a request may be changed by

#: Endpoints whose streams state their usage only when asked to.
_STREAMS_WITHOUT_USAGE = frozenset({"chat.completions", "completions"})


def usage_request(endpoint: Endpoint, body: JSON) -> tuple[str, JSON] | None:
    """``stream_options`` that ask for the usage chunk; None where the caller decided, or none is needed."""
    if endpoint.path not in _STREAMS_WITHOUT_USAGE:
        return None
    asked = body.get("stream_options")
    own: JSON = cast("JSON", asked) if isinstance(asked, Mapping) else {}
    return None if "include_usage" in own else ("stream_options", {**own, "include_usage": True})


def refuses_usage_request(message: str) -> bool:
    """Whether `message` refuses ``stream_options``."""
    return "stream_options" in message or "include_usage" in message


class UsageHider:
    """Hides from one stream what ``include_usage`` adds: ``usage: null`` on chunks, and a last one without choices.

    Hosts that send that last chunk to everybody cannot always be told apart. What is sure is that it was asked for
    where the nulls are; where they are not, a host that names the service tier on its chunks, as only OpenAI's full
    format has it, would have written them had it looked at what we asked. Other servers (Ollama, llama.cpp) write
    none, and send the last chunk to those who ask.
    """

    __slots__ = ("_asked",)

    def __init__(self) -> None:
        self._asked = False

    def take_off(self, event: Any) -> bool:
        """Take off what was added; whether nothing else is in `event`."""
        chunk: Any = event
        if type(event) is not dict or "usage" not in event:
            return False
        if chunk["usage"] is None:
            self._asked = True
            del chunk["usage"]
            return False
        return bool(chunk.get("choices") == [] and (self._asked or "service_tier" not in chunk))


def output_cap_field(endpoint: Endpoint, body: JSON, provider: str) -> str:
    """The field that limits the answer's tokens: where one says already that nothing does, that one."""
    if "responses" in endpoint.path:
        return "max_output_tokens"
    if endpoint.path == "chat.completions":
        usual = CHAT_LIMITS if provider in _KNOWS_COMPLETION_TOKENS else CHAT_LIMITS[::-1]
        return next((name for name in usual if body.get(name) is not None), usual[0])
    return "max_tokens"


#: Who takes ``max_completion_tokens``; other hosts only know the field's old name.
_KNOWS_COMPLETION_TOKENS = frozenset({"azure", "openai"})


# Calls that make a bill of their own. WebSocket connections are GETs.
_BILLED = """
POST /chat/completions                                   chat.completions              chat
POST /completions                                        completions                   text_completion
POST /responses                                          responses                     chat
GET  /responses                                          responses.connect             chat
POST /responses/compact                                  responses.compact             chat
POST /embeddings                                         embeddings                    embeddings
POST /images/generations                                 images.generate               image_generation
POST /images/edits                                       images.edit                   image_generation
POST /images/variations                                  images.create_variation       image_generation
POST /audio/speech                                       audio.speech                  speech
POST /audio/transcriptions                               audio.transcriptions          transcription
POST /audio/translations                                 audio.translations            translation
POST /decisions                                          decisions                     decision
POST /ocr                                                ocr                           ocr
POST /videos                                             videos                        video_generation
POST /videos/edits                                       videos.edit                   video_generation
POST /videos/extensions                                  videos.extend                 video_generation
POST /videos/*/remix                                     videos.remix                  video_generation
POST /threads/runs                                       beta.threads.create_and_run   invoke_agent
POST /threads/*/runs                                     beta.threads.runs             invoke_agent
POST /threads/*/runs/*/submit_tool_outputs               beta.threads.runs.submit_tool_outputs invoke_agent
POST /fine_tuning/alpha/graders/run                      fine_tuning.alpha.graders.run evaluation
GET  /realtime                                           realtime                      realtime
GET  /live                                               live                          realtime
GET  /live/*                                             live                          realtime
"""
# Bodies that repeat a bill while they are polled; recorded once, when final.
_POLLED = """
GET  /responses/*                                        responses.retrieve            chat
POST /responses/*/cancel                                 responses.cancel              chat
GET  /batches                                            batches.list                  batch items
GET  /batches/*                                          batches.retrieve              batch
GET  /files/*/content                                    files.content                 batch lines
POST /batches/*/cancel                                   batches.cancel                batch
GET  /fine_tuning/jobs/*                                 fine_tuning.jobs.retrieve     fine_tuning
GET  /containers                                         containers.list               execute_tool items
POST /containers                                         containers                    execute_tool
GET  /containers/*                                       containers.retrieve           execute_tool
GET  /videos/*                                           videos.retrieve               video_generation
GET  /threads/*/runs/*                                   beta.threads.runs.retrieve    invoke_agent
GET  /evals/*/runs/*                                     evals.runs.retrieve           evaluation
GET  /agents/sessions/*/turns/*                          beta.agents.sessions.turns.retrieve invoke_agent
GET  /agents/sessions/*/subagents/*/turns/*              beta.agents.sessions.subagents.turns.retrieve invoke_agent
"""
# Calls that start work which is billed where it is read.
_STARTS = """
POST /batches                                            batches                       batch
POST /fine_tuning/jobs                                   fine_tuning.jobs              fine_tuning
POST /evals/*/runs                                       evals.runs                    evaluation
"""
# Calls that cost nothing.
_FREE = """
POST /responses/input_tokens                             responses.input_tokens        count_tokens
POST /moderations                                        moderations                   moderation
POST /chat/completions/*                                 chat.completions.update       other
POST /audio/voices                                       audio.voices                  other
POST /audio/voice_consents                               audio.voice_consents          other
POST /audio/voice_consents/*                             audio.voice_consents.update   other
POST /videos/characters                                  videos.create_character       other
POST /projects/*/roles                                   admin.organization.projects.roles other
POST /projects/*/roles/*                                 admin.organization.projects.roles.update other
POST /projects/*/groups/*/roles                          admin.organization.projects.groups.roles other
POST /projects/*/users/*/roles                           admin.organization.projects.users.roles other
POST /fine_tuning/alpha/graders/validate                 fine_tuning.alpha.graders.validate evaluation
POST /agents/sessions                                    beta.agents.sessions          invoke_agent
POST /agents/sessions/*/events                           beta.agents.sessions.events   invoke_agent
GET  /agents/sessions/*                                  beta.agents.sessions.retrieve invoke_agent
"""
#: First segments of every resource. Those without a row above are files, stores and settings, free to call.
_ROOTS = frozenset(
    {
        "agents",
        "assistants",
        "audio",
        "batches",
        "chat",
        "chatkit",
        "completions",
        "containers",
        "content_provenance_checks",
        "conversations",
        "decisions",
        "embeddings",
        "evals",
        "files",
        "fine_tuning",
        "images",
        "live",
        "models",
        "moderations",
        "ocr",
        "organization",
        "realtime",
        "responses",
        "safety",
        "skills",
        "threads",
        "uploads",
        "vaults",
        "vector_stores",
        "videos",
        "webhook_endpoints",
        "webhook_event_types",
    }
)
#: Of those, the ones whose unknown POSTs may well cost something: they stay billable, unknown.
_PAID_ROOTS = frozenset({"audio", "chat", "completions", "decisions", "embeddings", "images", "responses", "videos"})

ROUTES = Routes(_ROOTS, _PAID_ROOTS, {"billed": _BILLED, "polled": _POLLED, "starts": _STARTS, "free": _FREE})
#: Azure names the deployment in the path, wherever it stands.
_DEPLOYMENT = re.compile(r"^(.*/)?openai/deployments/[^/]+/")


@lru_cache(maxsize=1024)
def endpoint(method: str, path: str) -> Endpoint:
    """The endpoint of an HTTP method and URL path."""
    bare, query = bare_path(path)
    found = ROUTES.find(method, _DEPLOYMENT.sub("", bare))
    beta = "beta=true" in query and found.path.startswith("responses")
    return replace(found, path=f"beta.{found.path}") if beta else found


# What one provider alone bills, at paths that are free elsewhere.
_MISTRAL = """
POST /conversations                                      conversations                 chat
POST /conversations/*                                    conversations.append          chat
POST /conversations/*/restart                            conversations.restart         chat
POST /agents/completions                                 agents.completions            chat
POST /moderations                                        moderations                   moderation
POST /chat/moderations                                   chat.moderations              moderation
"""
_AT = {"mistral": Routes(_ROOTS, frozenset(), {"billed": _MISTRAL})}


@lru_cache(maxsize=1024)
def endpoints_at(method: str, path: str) -> Mapping[str, Endpoint]:
    """By provider: what it alone bills at a path."""
    found = ((provider, routes.find(method, bare_path(path)[0])) for provider, routes in _AT.items())
    return {provider: one for provider, one in found if one.kind == "billed"}


def endpoint_named(path: str) -> Endpoint | None:
    """The endpoint with this SDK method path, whoever has it; None when nobody has."""
    known = (routes.named(path) for routes in (ROUTES, *_AT.values()))
    return next((found for found in known if found is not None), None)
