"""The endpoints of Google's APIs: the Gemini API and Vertex AI write the same verbs behind different parents."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from urllib.parse import unquote

from tokenmeter.providers.base import Endpoint, bare_path

#: What a call of the SDK is called -> the endpoint. Operations are OpenTelemetry's, where it has a word.
_ENDPOINTS = {
    known.path: known
    for known in (
        Endpoint("models.generate_content", "generate_content"),
        Endpoint("models.embed_content", "embeddings"),
        Endpoint("models.generate_images", "image_generation"),
        Endpoint("models.edit_image", "image_generation"),
        Endpoint("models.upscale_image", "image_generation"),
        Endpoint("models.recontext_image", "image_generation"),
        Endpoint("models.segment_image", "image_generation"),
        Endpoint("models.generate_videos", "video_generation"),
        Endpoint("models.predict", "other", "unknown"),
        Endpoint("models.count_tokens", "count_tokens", "free"),
        Endpoint("models.compute_tokens", "count_tokens", "free"),
        Endpoint("interactions.create", "generate_content"),
        Endpoint("interactions.get", "generate_content", "polled"),
        Endpoint("decisions.create", "generate_content"),
        Endpoint("voices.create", "other", "unknown"),
        Endpoint("live.connect", "generate_content"),
        Endpoint("live.music", "other"),
        Endpoint("batches.create", "batch", "starts"),
        Endpoint("batches.create_embeddings", "batch", "starts"),
        Endpoint("batches.get", "batch", "polled", "items"),
        Endpoint("files.download", "batch", "polled", "lines"),
        Endpoint("operations.get", "video_generation", "polled"),
        Endpoint("caches.create", "cache", "polled"),
        Endpoint("caches.update", "cache", "polled"),
        Endpoint("tunings.tune", "fine_tuning", "starts"),
        Endpoint("tunings.get", "fine_tuning", "polled"),
        Endpoint("file_search_stores.import_file", "embeddings", "unknown"),
    )
}
_VERBS = {
    "generateContent": "models.generate_content",
    "streamGenerateContent": "models.generate_content",
    "bidiGenerateContent": "live.connect",
    "bidiGenerateMusic": "live.music",
    "embedContent": "models.embed_content",
    "batchEmbedContents": "models.embed_content",
    "predictLongRunning": "models.generate_videos",
    "countTokens": "models.count_tokens",
    "computeTokens": "models.compute_tokens",
    "batchGenerateContent": "batches.create",
    "asyncBatchEmbedContent": "batches.create_embeddings",
    "fetchPredictOperation": "operations.get",
    "download": "files.download",
    "importFile": "file_search_stores.import_file",
}
#: What ``:predict`` does, by a word in the model's name; the first that fits.
_PREDICTS = (
    ("embedding", "models.embed_content"),
    ("upscale", "models.upscale_image"),
    ("capability", "models.edit_image"),
    ("imagen", "models.generate_images"),
    ("virtual-try-on", "models.recontext_image"),
    ("recontext", "models.recontext_image"),
    ("segmentation", "models.segment_image"),
)
#: Method and collection -> endpoint; a trailing ``*`` stands for one of its members.
_COLLECTIONS = {
    ("POST", "batchPredictionJobs"): "batches.create",
    ("GET", "batches/*"): "batches.get",
    ("POST", "cachedContents"): "caches.create",
    ("PATCH", "cachedContents/*"): "caches.update",
    ("POST", "interactions"): "interactions.create",
    ("GET", "interactions/*"): "interactions.get",
    ("POST", "decisions"): "decisions.create",
    ("POST", "voices"): "voices.create",
    ("POST", "tuningJobs"): "tunings.tune",
    ("POST", "tunedModels"): "tunings.tune",
    ("GET", "tuningJobs/*"): "tunings.get",
    ("GET", "operations/*"): "operations.get",
}
_NAMES = frozenset(name.partition("/")[0] for _, name in _COLLECTIONS)
#: Verbs of members that cost nothing.
_FREE_VERBS = frozenset({"cancel", "delete", "register", "transferOwnership", "validateReinforcementTuningReward"})
_MODEL = re.compile(r"(?:^|/)((?:tunedModels|endpoints|live|models)/[^/:]+)")
#: The name of an operation, as it stands in URLs and bodies; its model, where it names one.
OPERATION = re.compile(r"(?:models/([^/:]+)/)?operations/[^/:?]+$")


@lru_cache(maxsize=1024)
def endpoint(method: str, path: str) -> Endpoint:
    """The endpoint of an HTTP method and URL path."""
    bare, query = bare_path(path)
    method = method.upper()
    bare = unquote(bare).strip("/")
    head, _, verb = bare.rpartition("/")[2].rpartition(":")
    if head and verb:
        return _by_verb(method, bare, verb)
    if "alt=media" in query:
        return replace(_ENDPOINTS["files.download"], subject=bare.removeprefix("v1beta/"))
    segments = bare.split("/")
    for index, segment in enumerate(segments):
        rest = segments[index + 1 :]
        if segment not in _NAMES or len(rest) > 1:
            continue
        found = _COLLECTIONS.get((method, f"{segment}/*" if rest else segment))
        if found is not None:
            return replace(_ENDPOINTS[found], subject=_subject(bare, segment, rest))
    return Endpoint("/" + bare, "other", "unknown" if method == "POST" and _may_cost(segments) else "free")


def _by_verb(method: str, bare: str, verb: str) -> Endpoint:
    if verb == "predict":
        model = (model_in(bare) or "").lower()
        return _ENDPOINTS[next((name for word, name in _PREDICTS if word in model), "models.predict")]
    known = _ENDPOINTS.get(_VERBS.get(verb, ""))
    if known is None:
        return Endpoint("/" + bare, "other", "free" if verb in _FREE_VERBS or method != "POST" else "unknown")
    return replace(known, subject=_file(bare)) if known.form == "lines" else known


def _subject(bare: str, collection: str, rest: list[str]) -> str | None:
    """The name in the URL, as bodies spell it: of an operation with its parents, of anything else without."""
    if not rest:
        return None
    found = OPERATION.search(bare) if collection == "operations" else None
    return found[0] if found else f"{collection}/{rest[0]}"


def _file(bare: str) -> str:
    return "files/" + bare.rpartition("files/")[2].partition(":")[0]


#: Collections whose objects are made for nothing.
_FREE = frozenset(
    {
        "agents",
        "auth_tokens",
        "credentials",
        "environments",
        "fileSearchStores",
        "files",
        "operations",
        "triggers",
        "upload",
        "webhooks",
    }
)


def _may_cost(segments: list[str]) -> bool:
    return _FREE.isdisjoint(segments)


@lru_cache(maxsize=1024)
def model_in(path: str) -> str | None:
    """The model that a path names, as price lists know it; a tuned one with its collection."""
    found = _MODEL.search(bare_path(path)[0])
    return None if found is None else found[1].removeprefix("models/").removeprefix("live/")


def named(path: str) -> Endpoint | None:
    """The endpoint with this SDK method path; streams are what they stream."""
    return _ENDPOINTS.get(path.removesuffix("_stream")) or _ENDPOINTS.get(f"{path}.create")
