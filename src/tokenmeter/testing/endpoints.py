"""The URLs of each provider, below the version, and what serves them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenmeter.testing import (
    anthropic_admin,
    anthropic_batches,
    anthropic_messages,
    anthropic_sessions,
    openai_admin,
    openai_chat,
    openai_jobs,
    openai_media,
    openai_responses,
)
from tokenmeter.testing.context import Route

if TYPE_CHECKING:
    from collections.abc import Sequence

OPENAI: Sequence[Route] = (
    Route("POST", "/chat/completions", "chat.completions", openai_chat.chat_completions),
    Route("POST", "/completions", "completions", openai_chat.completions),
    Route("POST", "/responses", "responses", openai_responses.create),
    Route("POST", "/responses/compact", "responses.compact", openai_responses.compact),
    Route("POST", "/responses/input_tokens", "responses.input_tokens", openai_responses.input_tokens),
    Route("GET", "/responses/{}", "responses.retrieve", openai_responses.retrieve),
    Route("DELETE", "/responses/{}", "responses.delete", openai_responses.delete),
    Route("POST", "/responses/{}/cancel", "responses.cancel", openai_responses.cancel),
    Route("GET", "/responses/{}/input_items", "responses.input_items", openai_responses.input_items),
    Route("POST", "/embeddings", "embeddings", openai_chat.embeddings),
    Route("POST", "/moderations", "moderations", openai_chat.moderations),
    Route("POST", "/decisions", "decisions", openai_responses.decide),
    Route("POST", "/images/generations", "images.generate", openai_media.generate_images),
    Route("POST", "/images/edits", "images.edit", openai_media.edit_images),
    Route("POST", "/audio/speech", "audio.speech", openai_media.speak),
    Route("POST", "/audio/transcriptions", "audio.transcriptions", openai_media.transcribe),
    Route("POST", "/audio/translations", "audio.translations", openai_media.translate),
    Route("POST", "/videos", "videos", openai_jobs.create_video),
    Route("GET", "/videos/{}", "videos.retrieve", openai_jobs.retrieve_video),
    Route("GET", "/videos/{}/content", "videos.content", openai_jobs.video_content),
    Route("GET", "/models", "models", openai_jobs.list_models),
    Route("GET", "/models/{}", "models.retrieve", openai_jobs.model),
    Route("POST", "/files", "files", openai_jobs.upload),
    Route("GET", "/files", "files.list", openai_jobs.list_files),
    Route("GET", "/files/{}", "files.retrieve", openai_jobs.retrieve_file),
    Route("DELETE", "/files/{}", "files.delete", openai_jobs.delete_file),
    Route("GET", "/files/{}/content", "files.content", openai_jobs.content),
    Route("POST", "/batches", "batches", openai_jobs.create_batch),
    Route("GET", "/batches", "batches.list", openai_jobs.list_batches),
    Route("GET", "/batches/{}", "batches.retrieve", openai_jobs.retrieve_batch),
    Route("POST", "/batches/{}/cancel", "batches.cancel", openai_jobs.cancel_batch),
    Route("POST", "/fine_tuning/jobs", "fine_tuning.jobs", openai_jobs.create_tuning),
    Route("GET", "/fine_tuning/jobs/{}", "fine_tuning.jobs.retrieve", openai_jobs.retrieve_tuning),
    Route("GET", "/organization/usage/{}", "admin.organization.usage", openai_admin.usage),
    Route("GET", "/organization/costs", "admin.organization.costs", openai_admin.costs),
)
ANTHROPIC: Sequence[Route] = (
    Route("POST", "/messages", "messages", anthropic_messages.create),
    Route("POST", "/messages/count_tokens", "messages.count_tokens", anthropic_messages.count_tokens),
    Route("POST", "/messages/batches", "messages.batches", anthropic_batches.create),
    Route("GET", "/messages/batches", "messages.batches.list", anthropic_batches.list_batches),
    Route("GET", "/messages/batches/{}", "messages.batches.retrieve", anthropic_batches.retrieve),
    Route("DELETE", "/messages/batches/{}", "messages.batches.delete", anthropic_batches.delete),
    Route("GET", "/messages/batches/{}/results", "messages.batches.results", anthropic_batches.results),
    Route("POST", "/messages/batches/{}/cancel", "messages.batches.cancel", anthropic_batches.cancel),
    Route("GET", "/models", "models", anthropic_sessions.list_models),
    Route("GET", "/models/{}", "models.retrieve", anthropic_sessions.model),
    Route("POST", "/sessions", "beta.sessions", anthropic_sessions.create),
    Route("GET", "/sessions", "beta.sessions.list", anthropic_sessions.list_sessions),
    Route("GET", "/sessions/{}", "beta.sessions.retrieve", anthropic_sessions.retrieve),
    Route("POST", "/sessions/{}", "beta.sessions.update", anthropic_sessions.update),
    Route("POST", "/sessions/{}/archive", "beta.sessions.archive", anthropic_sessions.archive),
    Route("POST", "/sessions/{}/events", "beta.sessions.events", anthropic_sessions.send_events),
    Route("GET", "/sessions/{}/events", "beta.sessions.events.list", anthropic_sessions.list_events),
    Route("GET", "/sessions/{}/events/stream", "beta.sessions.events.stream", anthropic_sessions.stream_events),
    Route("GET", "/organizations/analytics/usage", "organization.analytics.usage", anthropic_admin.analytics_usage),
    Route("GET", "/organizations/analytics/cost", "organization.analytics.cost", anthropic_admin.analytics_cost),
    Route("GET", "/organizations/usage_report/messages", "organization.usage_report", anthropic_admin.usage_report),
    Route("GET", "/organizations/cost_report", "organization.cost_report", anthropic_admin.cost_report),
)
