"""From HTTP method and URL path to the SDK method that makes such a request: one table per provider, one rule."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from tokenmeter.dialects.base import Endpoint, Form

__all__ = ["anthropic_endpoint", "openai_endpoint"]


@dataclass(frozen=True, slots=True)
class _Route:
    methods: frozenset[str]
    segments: tuple[str, ...]  # "*" stands for any one
    endpoint: Endpoint


def _routes(table: str, *, billable: bool, polls: bool = False) -> Iterable[_Route]:
    """Rows of ``METHOD /path sdk.method.path operation``, with ``starts``, or an answer's form, behind."""
    for row in table.strip().splitlines():
        method, path, name, operation, *marks = row.split()
        form: Form = "lines" if "lines" in marks else "items" if "items" in marks else "one"
        endpoint = Endpoint(name, operation, billable=billable, polls=polls, starts="starts" in marks, form=form)
        yield _Route(frozenset(method.split("|")), tuple(path.strip("/").split("/")), endpoint)


# Calls that make a bill of their own. WebSocket connections are GETs.
_OPENAI_BILLED = """
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
_OPENAI_POLLED = """
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
# Calls that cost nothing themselves (what they start is billed where it is read).
_OPENAI_FREE = """
POST /responses/input_tokens                             responses.input_tokens        count_tokens
POST /moderations                                        moderations                   moderation
POST /batches                                            batches                       batch starts
POST /fine_tuning/jobs                                   fine_tuning.jobs              fine_tuning starts
POST /fine_tuning/alpha/graders/validate                 fine_tuning.alpha.graders.validate evaluation
POST /evals/*/runs                                       evals.runs                    evaluation starts
POST /agents/sessions                                    beta.agents.sessions          invoke_agent
POST /agents/sessions/*/events                           beta.agents.sessions.events   invoke_agent
GET  /agents/sessions/*                                  beta.agents.sessions.retrieve invoke_agent
"""
#: First segments of every resource. Those without a row above are files, stores and settings, free to call.
_OPENAI_ROOTS = frozenset(
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
_OPENAI_PAID_ROOTS = frozenset(
    {"audio", "chat", "completions", "decisions", "embeddings", "images", "responses", "videos"}
)

_ANTHROPIC_BILLED = """
POST /messages                                           messages                      chat
POST /complete                                           completions                   text_completion
"""
_ANTHROPIC_POLLED = """
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
_ANTHROPIC_FREE = """
POST /messages/count_tokens                              messages.count_tokens         count_tokens
POST /messages/batches                                   messages.batches              batch starts
GET  /messages/batches/*                                 messages.batches.retrieve     batch
POST /messages/batches/*/cancel                          messages.batches.cancel       batch
POST /sessions                                           beta.sessions                 invoke_agent starts
POST /sessions/*/events                                  beta.sessions.events          invoke_agent
POST /dreams                                             beta.dreams                   invoke_agent starts
"""
_ANTHROPIC_ROOTS = frozenset(
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
_ANTHROPIC_PAID_ROOTS = frozenset({"messages", "complete"})

_OPENAI_ROUTES = (
    *_routes(_OPENAI_BILLED, billable=True),
    *_routes(_OPENAI_POLLED, billable=True, polls=True),
    *_routes(_OPENAI_FREE, billable=False),
)
_ANTHROPIC_ROUTES = (
    *_routes(_ANTHROPIC_BILLED, billable=True),
    *_routes(_ANTHROPIC_POLLED, billable=True, polls=True),
    *_routes(_ANTHROPIC_FREE, billable=False),
)
#: Azure names the deployment in the path, wherever it stands.
_DEPLOYMENT = re.compile(r"^(.*/)?openai/deployments/[^/]+/")
#: Amazon Bedrock and Google Vertex AI name the model in the path and the operation behind it.
_CLOUD_MESSAGES = re.compile(r"(/model/[^/]+/invoke(-with-response-stream)?|:(streamRawPredict|rawPredict))$")


@lru_cache(maxsize=1024)
def openai_endpoint(method: str, path: str) -> Endpoint:
    """The endpoint of a request in OpenAI's API, also on Azure or below another host's base path."""
    bare, beta = _bare(path)
    bare = _DEPLOYMENT.sub("", bare)
    found = _match(method.upper(), bare, _OPENAI_ROUTES, _OPENAI_ROOTS, _OPENAI_PAID_ROOTS)
    return _as_beta(found) if beta and found.path.startswith("responses") else found


@lru_cache(maxsize=1024)
def anthropic_endpoint(method: str, path: str) -> Endpoint:
    """The endpoint of a request in Anthropic's API, also as Amazon Bedrock and Google Vertex AI serve it."""
    bare, beta = _bare(path)
    if _CLOUD_MESSAGES.search(bare):
        counting = "count-tokens:" in bare or "count_tokens:" in bare
        bare = "messages/count_tokens" if counting else "messages"
    found = _match(method.upper(), bare, _ANTHROPIC_ROUTES, _ANTHROPIC_ROOTS, _ANTHROPIC_PAID_ROOTS)
    return _as_beta(found) if beta and found.path.startswith("messages") else found


def _bare(path: str) -> tuple[str, bool]:
    bare, _, query = path.partition("?")
    _, scheme, rest = bare.partition("://")
    if scheme:
        bare = rest.partition("/")[2]
    return bare.rstrip("/"), "beta=true" in query


def _match(method: str, bare: str, routes: tuple[_Route, ...], roots: frozenset[str], paid: frozenset[str]) -> Endpoint:
    segments = [segment for segment in bare.split("/") if segment]
    start = next((index for index, segment in enumerate(segments) if segment in roots), None)
    if start is None:
        # Nothing we know: a POST may cost something, so it is looked at; nothing else is.
        return Endpoint("/" + "/".join(segments), "other", billable=method == "POST", known=False)
    tail = segments[start:]
    for index in range(start, len(segments)):
        for route in routes:
            # Behind the first resource's name only a billed call counts: a base path may hold such a name as well.
            at_start = index == start or route.endpoint.billable
            if at_start and method in route.methods and _fits(route.segments, segments[index:]):
                return _about(route, segments[index:])
    maybe = method == "POST" and tail[0] in paid
    return Endpoint("/" + "/".join(tail), "other", billable=maybe, known=not maybe)


def _fits(pattern: tuple[str, ...], segments: list[str]) -> bool:
    return len(pattern) == len(segments) and all(
        want in {"*", have} for want, have in zip(pattern, segments, strict=True)
    )


def _about(route: _Route, segments: list[str]) -> Endpoint:
    """The route's endpoint with the id that stands in the URL."""
    if "*" not in route.segments:
        return route.endpoint
    return replace(route.endpoint, subject=segments[route.segments.index("*")])


def _as_beta(endpoint: Endpoint) -> Endpoint:
    return replace(endpoint, path=f"beta.{endpoint.path}")
