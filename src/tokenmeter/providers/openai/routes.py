"""The endpoints of OpenAI's API, also on Azure and below another host's base path."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from tokenmeter.providers.base import Endpoint
from tokenmeter.providers.routes import Routes, bare_path

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

_ROUTES = Routes(_ROOTS, _PAID_ROOTS, {"billed": _BILLED, "polled": _POLLED, "starts": _STARTS, "free": _FREE})
#: Azure names the deployment in the path, wherever it stands.
_DEPLOYMENT = re.compile(r"^(.*/)?openai/deployments/[^/]+/")


@lru_cache(maxsize=1024)
def endpoint(method: str, path: str) -> Endpoint:
    """The endpoint of an HTTP method and URL path."""
    bare, query = bare_path(path)
    found = _ROUTES.find(method, _DEPLOYMENT.sub("", bare))
    beta = "beta=true" in query and found.path.startswith("responses")
    return replace(found, path=f"beta.{found.path}") if beta else found


def named(path: str) -> Endpoint | None:
    """The endpoint with this SDK method path."""
    return _ROUTES.named(path)
