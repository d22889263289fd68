"""A URL is recognised wherever it stands: under any host's base path, on Azure, Bedrock and Vertex AI."""

import importlib.util
import re
from pathlib import Path

import pytest
from posts import POSTS

from tokenmeter.providers.anthropic.dialect import AnthropicDialect
from tokenmeter.providers.openai.dialect import OpenAIDialect

OPENAI, ANTHROPIC = OpenAIDialect(), AnthropicDialect()
#: A request of an SDK's resource, and one whose path is written out.
POST, WRITTEN = re.compile(r"self\._post\("), re.compile(r"self\._post\(\s*(?:path_template\(\s*)?f?\"([^\"?]*)")
DIALECTS = {"openai": OPENAI, "anthropic": ANTHROPIC}


@pytest.mark.parametrize(
    ("method", "url", "path"),
    [
        ("POST", "/chat/completions", "chat.completions"),
        ("post", "https://api.openai.com/v1/chat/completions", "chat.completions"),
        ("POST", "/openai/deployments/files/chat/completions?api-version=2026-01-01", "chat.completions"),
        ("POST", "https://x.openai.azure.com/openai/deployments/responses/embeddings", "embeddings"),
        ("POST", "https://openrouter.ai/api/v1/chat/completions", "chat.completions"),
        ("POST", "https://x.googleapis.com/v1beta/openai/chat/completions", "chat.completions"),
        ("POST", "https://router.example.com/models/m/v1/chat/completions", "chat.completions"),
        ("POST", "/completions", "completions"),
        ("POST", "/responses", "responses"),
        ("POST", "/responses?beta=true", "beta.responses"),
        ("POST", "/responses/compact", "responses.compact"),
        ("POST", "/embeddings", "embeddings"),
        ("POST", "/images/generations", "images.generate"),
        ("POST", "/images/edits", "images.edit"),
        ("POST", "/images/variations", "images.create_variation"),
        ("POST", "/audio/speech", "audio.speech"),
        ("POST", "/audio/transcriptions", "audio.transcriptions"),
        ("POST", "/audio/translations", "audio.translations"),
        ("POST", "/decisions", "decisions"),
        ("POST", "/videos", "videos"),
        ("POST", "/videos/video_1/remix", "videos.remix"),
        ("POST", "/threads/t/runs", "beta.threads.runs"),
        ("GET", "/realtime?model=gpt-realtime", "realtime"),
    ],
)
def test_billed_openai_calls(method, url, path):
    endpoint = OPENAI.endpoint(method, url)
    assert (endpoint.path, endpoint.kind) == (path, "billed")


@pytest.mark.parametrize(
    ("method", "url", "path"),
    [
        ("GET", "/responses/resp_1", "responses.retrieve"),
        ("POST", "/responses/resp_1/cancel", "responses.cancel"),
        ("GET", "/batches/batch_1", "batches.retrieve"),
        ("GET", "/videos/video_1", "videos.retrieve"),
        ("GET", "/fine_tuning/jobs/ft_1", "fine_tuning.jobs.retrieve"),
        ("GET", "/threads/t/runs/r", "beta.threads.runs.retrieve"),
    ],
)
def test_polled_openai_calls(method, url, path):
    endpoint = OPENAI.endpoint(method, url)
    assert (endpoint.path, endpoint.kind) == (path, "polled")


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("POST", "/moderations"),
        ("POST", "/responses/input_tokens"),
        ("POST", "/batches"),
        ("POST", "/fine_tuning/jobs"),
        ("POST", "/files"),
        ("POST", "/uploads/u/parts"),
        ("POST", "/vector_stores/v/search"),
        ("POST", "/conversations"),
        ("POST", "/realtime/client_secrets"),
        ("GET", "/models"),
        ("GET", "/chat/completions"),
        ("DELETE", "/responses/resp_1"),
        ("GET", "/responses/resp_1/input_items"),
    ],
)
def test_free_openai_calls(method, url):
    endpoint = OPENAI.endpoint(method, url)
    assert endpoint.kind in {"free", "starts"}


@pytest.mark.parametrize("url", ["/rerank", "/v2/parse", "/audio/dreams"])
def test_unknown_posts_may_cost_something(url):
    endpoint = OPENAI.endpoint("POST", url)
    assert endpoint.kind == "unknown"
    assert endpoint.path.startswith("/")
    assert OPENAI.endpoint("GET", url).kind == "free"


@pytest.mark.parametrize(
    ("method", "url", "path", "kind"),
    [
        ("POST", "/v1/messages", "messages", "billed"),
        ("POST", "/v1/messages?beta=true", "beta.messages", "billed"),
        ("POST", "https://x.services.ai.azure.com/anthropic/v1/messages", "messages", "billed"),
        ("POST", "/model/us.anthropic.claude-opus-5-v1:0/invoke", "messages", "billed"),
        ("POST", "/model/arn%3Aaws%3Abedrock/invoke-with-response-stream", "messages", "billed"),
        (
            "POST",
            "/projects/p/locations/us-east5/publishers/anthropic/models/claude-opus-5:streamRawPredict",
            "messages",
            "billed",
        ),
        ("POST", "/projects/p/locations/global/publishers/anthropic/models/claude:rawPredict", "messages", "billed"),
        (
            "POST",
            "/projects/p/locations/r/publishers/anthropic/models/count-tokens:rawPredict",
            "messages.count_tokens",
            "free",
        ),
        ("POST", "/v1/messages/count_tokens", "messages.count_tokens", "free"),
        ("POST", "/v1/messages/count_tokens?beta=true", "beta.messages.count_tokens", "free"),
        ("POST", "/v1/messages/batches", "messages.batches", "starts"),
        ("GET", "/v1/messages/batches/b", "messages.batches.retrieve", "free"),
        ("GET", "/v1/messages/batches/b/results", "messages.batches.results", "polled"),
        ("GET", "/v1/messages/batches/b/results?beta=true", "beta.messages.batches.results", "polled"),
        ("GET", "/v1/sessions/s?beta=true", "beta.sessions.retrieve", "polled"),
        ("GET", "/v1/dreams/d?beta=true", "beta.dreams.retrieve", "polled"),
        ("POST", "/v1/complete", "completions", "billed"),
        ("GET", "/v1/models", "/models", "free"),
        ("POST", "/v1/files?beta=true", "/files", "free"),
        ("POST", "/v1/agents", "/agents", "free"),
        ("POST", "/v1/messages/somehow", "/messages/somehow", "unknown"),
    ],
)
def test_anthropic_calls(method, url, path, kind):
    endpoint = ANTHROPIC.endpoint(method, url)
    assert (endpoint.path, endpoint.kind) == (path, kind)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/conversations", "conversations"),
        ("https://api.mistral.ai/v1/conversations/conv_1", "conversations.append"),
        ("/conversations/conv_1/restart", "conversations.restart"),
        ("/agents/completions", "agents.completions"),
        ("/moderations", "moderations"),
        ("/chat/moderations", "chat.moderations"),
    ],
)
def test_what_one_host_alone_bills_is_free_elsewhere(url, path):
    assert OPENAI.endpoints_at("POST", url)["mistral"].path == path
    assert OPENAI.endpoints_at("GET", url) == {}
    assert OPENAI.endpoints_at("POST", "/chat/completions") == {}


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
def test_every_post_of_the_sdk_is_named_with_how_it_is_billed(sdk):
    """A path that nobody named might be charged for nothing, or pass without a bill."""
    folder = Path(importlib.util.find_spec(sdk).origin).parent / "resources"
    sources = [path.read_text() for path in folder.rglob("*.py")]
    found = {match for source in sources for match in WRITTEN.findall(source)}
    assert sum(len(POST.findall(source)) for source in sources) == sum(len(WRITTEN.findall(one)) for one in sources)
    paths = {re.sub(r"\{[^}]*\}", "*", path) for path in found}
    administration = {path for path in paths if re.match(r"(/v1)?/organizations?/", path)}
    named = {path for listed in POSTS[sdk].values() for path in listed}
    assert {path.removeprefix("/v1") for path in paths - administration} - named == set(), "name it in posts.py"
    kinds = {path: DIALECTS[sdk].endpoint("POST", f"/v1{path.removeprefix('/v1')}").kind for path in administration}
    assert set(kinds.values()) <= {"free"}


@pytest.mark.parametrize(
    ("sdk", "kind", "path"),
    [(sdk, kind, path) for sdk, kinds in POSTS.items() for kind, paths in kinds.items() for path in paths],
)
def test_a_post_of_the_sdk_is_billed_as_it_is_named(sdk, kind, path):
    assert DIALECTS[sdk].endpoint("POST", f"/v1{path}".replace("*", "x_1")).kind == kind


@pytest.mark.parametrize("base", ["/organizations/acme/anthropic/v1", "/projects/p/anthropic/v1", "/files/v1"])
def test_what_starts_work_is_known_under_any_base_path(base):
    assert ANTHROPIC.endpoint("POST", f"{base}/messages/batches").path == "messages.batches"
    assert OPENAI.endpoint("POST", f"{base}/batches").path == "batches"
