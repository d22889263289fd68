"""What becomes of a call of each method of Google's SDK: read by a test, written into docs/reference/coverage.md."""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """A method of the SDK.

    Attributes:
        becomes: What a call of it leaves in the ledger, as `BECOMES` has it.
        asks: Its request: HTTP method and path.
        why: What is to be said of it.
    """

    becomes: str
    asks: str
    why: str = ""


#: Word -> how the requests of such methods are billed.
BECOMES = {
    "an entry": "billed",
    "begins": "starts",
    "read": "polled",
    "unknown": "unknown",
    "free": "free",
}

_NOTHING_SAID = "the answer says nothing of its usage, so the entry is flagged `usage_unknown`"

METHODS = {
    "batches.create": Method("begins", "POST models/m:batchGenerateContent", "a job on Vertex AI, too"),
    "batches.create_embeddings": Method("begins", "POST models/m:asyncBatchEmbedContent"),
    "batches.get": Method("read", "GET batches/b", "each answer once, however often it is read"),
    "batches.list": Method("free", "GET batches"),
    "batches.cancel": Method("free", "POST batches/b:cancel"),
    "batches.delete": Method("free", "DELETE batches/b"),
    "caches.create": Method("read", "POST cachedContents", "tokens times the hours it was bought for"),
    "caches.update": Method("read", "PATCH cachedContents/c", "an extension adds its hours"),
    "caches.get": Method("free", "GET cachedContents/c"),
    "caches.list": Method("free", "GET cachedContents"),
    "caches.delete": Method("free", "DELETE cachedContents/c", "gives nothing back in the ledger"),
    "chats.create": Method("free", "", "sends nothing; each message is `models.generate_content`"),
    "decisions.create": Method("an entry", "POST v1/decisions"),
    "file_search_stores.import_file": Method("unknown", "POST fileSearchStores/s:importFile", _NOTHING_SAID),
    "file_search_stores.upload_to_file_search_store": Method(
        "unknown", "POST upload/v1beta/fileSearchStores/s:uploadToFileSearchStore", _NOTHING_SAID
    ),
    "file_search_stores.create": Method("free", "POST fileSearchStores"),
    "file_search_stores.get": Method("free", "GET fileSearchStores/s"),
    "file_search_stores.list": Method("free", "GET fileSearchStores"),
    "file_search_stores.delete": Method("free", "DELETE fileSearchStores/s"),
    "file_search_stores.download_media": Method("read", "GET media/m?alt=media", "no file but a batch's results bills"),
    "file_search_stores.documents.get": Method("free", "GET fileSearchStores/s/documents/d"),
    "file_search_stores.documents.list": Method("free", "GET fileSearchStores/s/documents"),
    "file_search_stores.documents.delete": Method("free", "DELETE fileSearchStores/s/documents/d"),
    "files.download": Method("read", "GET files/f:download?alt=media", "a batch's results, each line once"),
    "files.upload": Method("free", "POST upload/v1beta/files"),
    "files.register_files": Method("free", "POST files:register"),
    "files.get": Method("free", "GET files/f"),
    "files.list": Method("free", "GET files"),
    "files.delete": Method("free", "DELETE files/f"),
    "interactions.create": Method("an entry", "POST v1/interactions", "in the background when it is read"),
    "interactions.connect": Method("an entry", "POST v1/interactions/i:connect", "a socket; when the interaction ends"),
    "interactions.get": Method("read", "GET v1/interactions/i", "not when `create` has shown it"),
    "interactions.cancel": Method("read", "POST v1/interactions/i/cancel"),
    "interactions.delete": Method("free", "DELETE v1/interactions/i"),
    "interactions.auth_tokens.create": Method("free", "POST v1/interactions/i/auth_tokens"),
    "interactions.auth_tokens.delete": Method("free", "DELETE v1/interactions/i/auth_tokens/t"),
    "live.connect": Method("an entry", "POST live/m:bidiGenerateContent", "a socket; each turn"),
    "live.music.connect": Method("an entry", "POST live/m:bidiGenerateMusic", "a socket; what a session played"),
    "models.generate_content": Method("an entry", "POST models/m:generateContent", "so each call of a function"),
    "models.generate_content_stream": Method("an entry", "POST models/m:streamGenerateContent?alt=sse"),
    "models.embed_content": Method("an entry", "POST models/m:batchEmbedContents"),
    "models.generate_images": Method("an entry", "POST models/imagen-4:predict"),
    "models.edit_image": Method("an entry", "POST models/imagen-3-capability:predict"),
    "models.upscale_image": Method("an entry", "POST models/imagen-4-upscale:predict"),
    "models.recontext_image": Method("an entry", "POST models/imagen-product-recontext:predict"),
    "models.segment_image": Method("an entry", "POST models/image-segmentation:predict"),
    "models.generate_videos": Method("an entry", "POST models/veo-3:predictLongRunning", "when it is done"),
    "operations.get": Method("read", "GET models/m/operations/o", "the video, when it is done"),
    "models.count_tokens": Method("free", "POST models/m:countTokens"),
    "models.compute_tokens": Method("free", "POST models/m:computeTokens"),
    "models.get": Method("free", "GET models/m"),
    "models.list": Method("free", "GET models"),
    "models.update": Method("free", "PATCH models/m"),
    "models.delete": Method("free", "DELETE models/m"),
    "triggers.run": Method("begins", "POST v1/triggers/t/executions", "its interaction, when it is read"),
    "tunings.tune": Method("begins", "POST tuningJobs"),
    "tunings.get": Method("read", "GET tuningJobs/t", "the tokens that it was trained on"),
    "tunings.list": Method("free", "GET tuningJobs"),
    "tunings.cancel": Method("free", "POST tuningJobs/t:cancel"),
    "tunings.validate_reward": Method("free", "POST v1/projects/p/locations/l:validateReinforcementTuningReward"),
    "voices.create": Method("unknown", "POST v1/voices", _NOTHING_SAID),
    "voices.get": Method("free", "GET v1/voices/v"),
    "voices.list": Method("free", "GET v1/voices"),
    "voices.delete": Method("free", "DELETE v1/voices/v"),
    "auth_tokens.create": Method("free", "POST auth_tokens"),
    **{
        f"{name}.{verb}": Method("free", f"{how} v1/{name}{rest}")
        for name in ("agents", "credentials", "environments", "triggers", "webhooks")
        for verb, how, rest in (
            ("create", "POST", ""),
            ("get", "GET", "/x"),
            ("list", "GET", ""),
            ("update", "PATCH", "/x"),
            ("delete", "DELETE", "/x"),
        )
        if (name, verb) not in {("agents", "update"), ("environments", "update")}
    },
    "triggers.list_executions": Method("free", "GET v1/triggers/t/executions"),
    "environments.create_environment": Method("free", "POST v1/environments"),
    "environments.get_environment": Method("free", "GET v1/environments/e"),
    "environments.list_environments": Method("free", "GET v1/environments"),
    "environments.delete_environment": Method("free", "DELETE v1/environments/e"),
    "webhooks.ping": Method("free", "POST v1/webhooks/w:ping"),
    "webhooks.rotate_signing_secret": Method("free", "POST v1/webhooks/w:rotateSigningSecret"),
}
