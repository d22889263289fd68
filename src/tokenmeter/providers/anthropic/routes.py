"""The endpoints of Anthropic's API, also as Amazon Bedrock and Google Vertex AI serve it."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from tokenmeter.providers.base import Endpoint
from tokenmeter.providers.routes import Routes, bare_path

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
POST /sessions/*/events                                  beta.sessions.events          invoke_agent
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
        "sessions",
        "skills",
        "tunnels",
        "user_profiles",
        "vaults",
    }
)
_PAID_ROOTS = frozenset({"messages", "complete"})

_ROUTES = Routes(_ROOTS, _PAID_ROOTS, {"billed": _BILLED, "polled": _POLLED, "starts": _STARTS, "free": _FREE})
#: Amazon Bedrock and Google Vertex AI name the model in the path and the operation behind it.
_CLOUD_MESSAGES = re.compile(r"(/model/[^/]+/invoke(-with-response-stream)?|:(streamRawPredict|rawPredict))$")


@lru_cache(maxsize=1024)
def endpoint(method: str, path: str) -> Endpoint:
    """The endpoint of an HTTP method and URL path."""
    bare, query = bare_path(path)
    if _CLOUD_MESSAGES.search(bare):
        counting = "count-tokens:" in bare or "count_tokens:" in bare
        bare = "messages/count_tokens" if counting else "messages"
    found = _ROUTES.find(method, bare)
    beta = "beta=true" in query and found.path.startswith("messages")
    return replace(found, path=f"beta.{found.path}") if beta else found


def named(path: str) -> Endpoint | None:
    """The endpoint with this SDK method path."""
    return _ROUTES.named(path)
