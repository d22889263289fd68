"""How each POST of the SDKs is billed. A test walks the SDKs and finds each path here, or fails.

A path names its ids by ``*``; those of an organization's administration are left out: they are settings, all of them.
"""

from __future__ import annotations


def _paths(text: str) -> list[str]:
    return text.split()


#: SDK -> how its POSTs are billed -> their paths.
POSTS = {
    "openai": {
        "billed": _paths("""
            /audio/speech
            /audio/transcriptions
            /audio/translations
            /chat/completions
            /completions
            /decisions
            /embeddings
            /fine_tuning/alpha/graders/run
            /images/edits
            /images/generations
            /images/variations
            /responses
            /responses/compact
            /threads/*/runs
            /threads/*/runs/*/submit_tool_outputs
            /threads/runs
            /videos
            /videos/*/remix
            /videos/edits
            /videos/extensions
        """),
        "starts": _paths("""
            /batches
            /evals/*/runs
            /fine_tuning/jobs
        """),
        "polled": _paths("""
            /batches/*/cancel
            /containers
            /responses/*/cancel
        """),
        "free": _paths("""
            /agents
            /agents/*
            /agents/automations
            /agents/automations/*
            /agents/automations/*/invocations
            /agents/automations/*/pause
            /agents/automations/*/resume
            /agents/environments
            /agents/environments/*/files
            /agents/environments/templates
            /agents/environments/templates/*
            /agents/sessions
            /agents/sessions/*
            /agents/sessions/*/events
            /assistants
            /assistants/*
            /audio/voice_consents
            /audio/voice_consents/*
            /audio/voices
            /chat/completions/*
            /chatkit/sessions
            /chatkit/sessions/*/cancel
            /containers/*/files
            /content_provenance_checks
            /conversations
            /conversations/*
            /conversations/*/items
            /evals
            /evals/*
            /evals/*/runs/*/cancel
            /files
            /fine_tuning/alpha/graders/validate
            /fine_tuning/jobs/*/cancel
            /fine_tuning/jobs/*/pause
            /fine_tuning/jobs/*/resume
            /live/sessions
            /live/sessions/*/accept
            /live/sessions/*/fork
            /live/sessions/*/hangup
            /live/sessions/*/refer
            /live/sessions/*/reject
            /moderations
            /projects/*/groups/*/roles
            /projects/*/roles
            /projects/*/roles/*
            /projects/*/users/*/roles
            /realtime/calls
            /realtime/calls/*/accept
            /realtime/calls/*/hangup
            /realtime/calls/*/refer
            /realtime/calls/*/reject
            /realtime/client_secrets
            /realtime/sessions
            /realtime/transcription_sessions
            /realtime/translations/client_secrets
            /responses/input_tokens
            /skills
            /skills/*
            /skills/*/versions
            /threads
            /threads/*
            /threads/*/messages
            /threads/*/messages/*
            /threads/*/runs/*
            /threads/*/runs/*/cancel
            /uploads
            /uploads/*/cancel
            /uploads/*/complete
            /uploads/*/parts
            /vaults
            /vaults/*
            /vaults/*/credentials
            /vaults/*/credentials/*
            /vector_stores
            /vector_stores/*
            /vector_stores/*/file_batches
            /vector_stores/*/file_batches/*/cancel
            /vector_stores/*/files
            /vector_stores/*/files/*
            /videos/characters
            /webhook_endpoints
            /webhook_endpoints/*
            /webhook_endpoints/*/rotate_secret
            /webhook_endpoints/*/test
        """),
    },
    "anthropic": {
        "billed": _paths("""
            /messages
        """),
        "starts": _paths("""
            /dreams
            /messages/batches
            /sessions
        """),
        "polled": _paths("""
            /dreams/*/archive
            /dreams/*/cancel
            /sessions/*
            /sessions/*/archive
        """),
        "free": _paths("""
            /agents
            /agents/*
            /agents/*/archive
            /deployments
            /deployments/*
            /deployments/*/archive
            /deployments/*/pause
            /deployments/*/run
            /deployments/*/unpause
            /environments
            /environments/*
            /environments/*/archive
            /environments/*/work/*
            /environments/*/work/*/ack
            /environments/*/work/*/heartbeat
            /environments/*/work/*/stop
            /files
            /memory_stores
            /memory_stores/*
            /memory_stores/*/archive
            /memory_stores/*/memories
            /memory_stores/*/memories/*
            /memory_stores/*/memory_versions/*/redact
            /messages/batches/*/cancel
            /messages/count_tokens
            /sessions/*/events
            /sessions/*/resources
            /sessions/*/resources/*
            /sessions/*/threads/*/archive
            /skills
            /skills/*/versions
            /tunnels
            /tunnels/*/archive
            /tunnels/*/certificates
            /tunnels/*/certificates/*/archive
            /tunnels/*/reveal_token
            /tunnels/*/rotate_token
            /user_profiles
            /user_profiles/*
            /user_profiles/*/action_urls
            /user_profiles/*/enrollment_url
            /vaults
            /vaults/*
            /vaults/*/archive
            /vaults/*/credentials
            /vaults/*/credentials/*
            /vaults/*/credentials/*/archive
            /vaults/*/credentials/*/mcp_oauth_validate
        """),
    },
}
