"""What accounting needs to know of a request in Anthropic's format. It runs before every call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from tokenmeter.call import Picture, RequestFacts
from tokenmeter.providers.base import Endpoint, Routes, bare_path
from tokenmeter.providers.prompts import (
    NO_TOOLS,
    PromptRule,
    PromptSize,
    is_unclear,
    listed,
    measure_prompt,
    named,
    note_mark,
    offered,
    read_limit,
)
from tokenmeter.providers.wire import JSON, is_object, section, text, to_wire

#: Fields that are not rendered into the prompt.
_KNOBS = frozenset({
    *("model", "max_tokens", "max_tokens_to_sample", "temperature", "top_p", "top_k", "stream", "stop_sequences"),
    *("metadata", "service_tier", "thinking", "tool_choice", "speed", "inference_geo", "cache_control", "container"),
    *("billing_policy", "context_management", "mcp_servers", "fallbacks"),
})  # fmt: skip
#: Fields that say nothing of the prompt, or of how much may be answered, beyond what is read here.
PLAIN_FIELDS = frozenset({
    *("model", "messages", "system", "max_tokens", "temperature", "top_p", "top_k", "stream", "stop_sequences"),
    *("metadata", "service_tier", "thinking", "tools", "tool_choice"),
})  # fmt: skip
#: A request of no others has nothing put before its prompt: it offers no tools, and asks for no form of the answer.
BARE = PLAIN_FIELDS - {"tools", "tool_choice", "thinking"} | {"cache_control", "inference_geo", "speed"}
#: Tools that the caller runs; any other, but for those without a type, is the provider's own.
_CALLERS_TOOLS = ("custom", "computer_", "text_editor_", "bash_", "memory_", "browser_", "advisor_")
_COMPACTION = "compact"
_LARGEST = 4_784  # tokens of a picture in high resolution
#: Definitions that stand for longer ones: computer 735 and 499 of its system prompt, text editor 700, bash 245.
#: Source: https://docs.claude.com/en/docs/about-claude/pricing
_CLIENT_TOOLS = {"computer_": 1_234, "text_editor_": 700, "bash_": 245}


def _count_picture(picture: Picture) -> int:
    """Most tokens of a picture: about a token for 750 pixels, which may be counted in squares of 28 by 28."""
    pixels = picture.width * picture.height
    squares = -(-picture.width // 28) * -(-picture.height // 28)
    about = max(-(-pixels // 750), squares)
    return min(about + about // 10, _LARGEST) if pixels else _LARGEST


#: The system prompt for the use of tools is up to 804 tokens, with the computer tool, and a picture in high resolution
#: 4,784. Sources: https://docs.claude.com/en/docs/agents-and-tools/tool-use/overview#pricing,
#: https://docs.claude.com/en/docs/build-with-claude/vision
PROMPT_RULES = (
    PromptRule(r"(?:[\w-]*-)?claude", overhead=850, image=_LARGEST, of_picture=_count_picture),
    PromptRule("", overhead=850),
)


def request_facts(endpoint: Endpoint, body: JSON | None) -> RequestFacts:
    """Facts of a request in Anthropic's format."""
    if not body:
        return RequestFacts()
    get = body.get
    prompt = measure_prompt(body, endpoint.operation, _KNOBS)
    reasons: list[str] = []
    tools = offered(body, prompt, reasons)
    tool_models = _tools(tools, reasons)
    if get("mcp_servers") and "server_tools" not in reasons:
        reasons.append("server_tools")
    if get("fallbacks"):
        reasons.append("fallbacks")
    if get("compaction") or ("context_management" in body and _compacts(body, reasons)):
        reasons.append("compaction")
    if get("thread"):
        reasons.append("conversation")
    if prompt.remote:
        reasons.append("files")
    terms = _terms(body, prompt)
    limit = get("max_tokens_to_sample" if endpoint.path == "completions" else "max_tokens")
    return RequestFacts(
        model=_model(get("model")),
        service_tier=named(get("service_tier")),
        speed=_fast(get("speed")),
        input_bytes=prompt.size + _client_tools(tools),
        image_count=prompt.images,
        pictures=tuple(prompt.pictures),
        bare=BARE.issuperset(body) and not tools and not reasons,
        max_output_tokens=read_limit(limit),
        unclear_limit=is_unclear(limit),
        streamed=bool(get("stream")),
        tool_models=tool_models,
        terms=terms,
        billed_elsewhere=_billed_elsewhere(get("billing_policy")),
        lines_billed_elsewhere=_lines_elsewhere(body) if endpoint.path.endswith("batches") else NO_TOOLS,
        unbounded=",".join(reasons) if reasons else None,
        cache_writes="any" if "conversation" in reasons else prompt.cache_writes,
    )


def _terms(body: JSON, prompt: PromptSize) -> dict[str, str]:
    """See `RequestFacts.terms`."""
    note_mark(body.get("cache_control"), prompt)
    place = named(body.get("inference_geo"))
    return prompt.cache_terms | ({"inference_geo": place} if place else {})


def _billed_elsewhere(policy: Any) -> str | None:
    """See `RequestFacts.billed_elsewhere`: the customer behind a user profile pays, or the request is refused.

    Source: ``anthropic.types.beta`` BetaBillingPolicyParam.
    """
    to = text(policy, "bill_to") if is_object(policy) else None
    return "billed_to_user_profile" if to == "user_profile" else None


def _lines_elsewhere(body: JSON) -> Mapping[str, str]:
    """See `RequestFacts.lines_billed_elsewhere`: each request of a batch has a policy of its own."""
    found: dict[str, str] = {}
    for line in listed(body, "requests", []):
        name, elsewhere = text(line, "custom_id"), _billed_elsewhere(section(line, "params").get("billing_policy"))
        if name is not None and elsewhere is not None:
            found[name] = elsewhere
    return found or NO_TOOLS


def _model(value: Any) -> str | None:
    return text(value, "id") if is_object(value) else named(value)


def _fast(value: Any) -> str | None:
    return None if value == "standard" else named(value)


def _tools(tools: list[JSON], reasons: list[str]) -> Mapping[str, str]:
    models: dict[str, str] = {}
    for tool in tools:
        kind = tool.get("type")
        if not isinstance(kind, str):
            continue
        if not kind.startswith(_CALLERS_TOOLS) and "server_tools" not in reasons:
            reasons.append("server_tools")
        if kind.startswith("advisor_"):
            reasons.append("advisor")
            if model := text(tool, "model"):
                models["advisor"] = model
    return models or NO_TOOLS


def _client_tools(tools: list[JSON]) -> int:
    kinds = [str(tool.get("type")) for tool in tools]
    return sum(size for start, size in _CLIENT_TOOLS.items() for kind in kinds if kind.startswith(start))


def _compacts(body: JSON, reasons: list[str]) -> bool:
    settings = to_wire(body["context_management"])
    edits = listed(settings, "edits", reasons) if is_object(settings) else []
    return any(str(edit.get("type")).startswith(_COMPACTION) for edit in edits)


_BILLED = """
POST /messages                                           messages                      chat
POST /complete                                           completions                   text_completion
"""
_POLLED = """
GET  /messages/batches/*/results                         messages.batches.results      chat lines
GET  /sessions                                           beta.sessions.list            invoke_agent items
GET  /sessions/*                                         beta.sessions.retrieve        invoke_agent
POST /sessions/*                                         beta.sessions.update          invoke_agent
POST /sessions/*/archive                                 beta.sessions.archive         invoke_agent
GET  /sessions/*/events                                  beta.sessions.events.list     invoke_agent items
GET  /sessions/*/events/stream                           beta.sessions.events.stream   invoke_agent items
GET  /dreams                                             beta.dreams.list              invoke_agent items
GET  /dreams/*                                           beta.dreams.retrieve          invoke_agent
POST /dreams/*/archive                                   beta.dreams.archive           invoke_agent
POST /dreams/*/cancel                                    beta.dreams.cancel            invoke_agent
"""
_STARTS = """
POST /messages/batches                                   messages.batches              batch
POST /sessions                                           beta.sessions                 invoke_agent
POST /dreams                                             beta.dreams                   invoke_agent
"""
_FREE = """
POST /messages/count_tokens                              messages.count_tokens         count_tokens
GET  /messages/batches/*                                 messages.batches.retrieve     batch
POST /messages/batches/*/cancel                          messages.batches.cancel       batch
POST /sessions/*/events                                  beta.sessions.events          invoke_agent items
"""
_ROOTS = frozenset(
    {
        "agents",
        "complete",
        "deployment_runs",
        "deployments",
        "dreams",
        "environments",
        "files",
        "memory_stores",
        "messages",
        "models",
        "organization",
        "organizations",
        "sessions",
        "skills",
        "tunnels",
        "user_profiles",
        "vaults",
    }
)
_PAID_ROOTS = frozenset({"messages", "complete"})

ROUTES = Routes(_ROOTS, _PAID_ROOTS, {"billed": _BILLED, "polled": _POLLED, "starts": _STARTS, "free": _FREE})
#: Amazon Bedrock and Google Vertex AI name the model in the path and the operation behind it.
_CLOUD_MESSAGES = re.compile(r"(/model/[^/]+/invoke(-with-response-stream)?|:(streamRawPredict|rawPredict))$")


@lru_cache(maxsize=1024)
def endpoint(method: str, path: str) -> Endpoint:
    """The endpoint of an HTTP method and URL path."""
    bare, query = bare_path(path)
    if _CLOUD_MESSAGES.search(bare):
        counting = "count-tokens:" in bare or "count_tokens:" in bare
        bare = "messages/count_tokens" if counting else "messages"
    found = ROUTES.find(method, bare)
    beta = "beta=true" in query and found.path.startswith("messages")
    return replace(found, path=f"beta.{found.path}") if beta else found
