"""Google's room: the wire format of the Gemini API and of Vertex AI, as Google's own SDK speaks it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenmeter.call import RequestFacts
from tokenmeter.providers.base import Dialect, Endpoint, Plain, PlainReader, StreamReader
from tokenmeter.providers.context import Context
from tokenmeter.providers.google import bodies, requests
from tokenmeter.providers.google.streams import ENDS, AnswerStream, InteractionStream
from tokenmeter.providers.wire import JSON, MOST, is_array, is_object, members, text
from tokenmeter.usage import Observation

# -- plain answers, read in one go, every count said: the general readers say the same of them

_COUNTS = (
    "promptTokenCount",
    "candidatesTokenCount",
    "cachedContentTokenCount",
    "thoughtsTokenCount",
    "totalTokenCount",
)
_DETAILS = ("promptTokensDetails", "candidatesTokensDetails", "cacheTokensDetails")
_KNOWN = frozenset({*_COUNTS, *_DETAILS, "trafficType", "serviceTier"})
_TRAFFIC = (None, "ON_DEMAND")
_TIERS = (None, "standard")


def read_answer(body: JSON) -> Plain | None:
    """An answer of text, or what a stream of one came to."""
    usage = body.get("usageMetadata")
    if not is_object(usage) or not _KNOWN.issuperset(usage) or "serverContent" in body or "key" in body:
        return None
    counts = [usage.get(name, 0) for name in _COUNTS]
    if any(type(value) is not int or not 0 <= value <= MOST for value in counts):
        return None
    prompt, spoken, cached, thoughts, total = counts
    if not prompt or not spoken or cached > prompt or total != prompt + spoken + thoughts:
        return None
    traffic, tier = usage.get("trafficType"), usage.get("serviceTier") or body.get("serviceTier")
    model = body.get("modelVersion")
    odd = (traffic is not None and tier is not None) or traffic not in _TRAFFIC or tier not in _TIERS
    odd = (
        odd
        or _is_grounded(body.get("candidates"))
        or any(
            not _is_text(usage.get(name), whole) for name, whole in zip(_DETAILS, (prompt, spoken, cached), strict=True)
        )
    )
    if odd or type(model) is not str or "/" in model or requests.is_song_model(model):
        return None
    quantities: dict[str, int] = {}
    if prompt > cached:
        quantities["input"] = prompt - cached
    if cached:
        quantities["cache_read"] = cached
    quantities["output"] = spoken + thoughts
    return Plain(model, body.get("responseId"), "default" if traffic else tier, quantities, prompt, thoughts, usage)


def _is_text(details: Any, whole: int) -> bool:
    """Whether a breakdown names nothing but text, and as much of it as there is; any other is in doubt."""
    if details is None:
        return True
    if not is_array(details):
        return False
    found = 0
    for one in details:
        part = one.get("tokenCount") if is_object(one) and one.get("modality") == "TEXT" else None
        if type(part) is not int or not 0 <= part <= whole:
            return False
        found += part
    return found == whole


def _is_grounded(candidates: Any) -> bool:
    if candidates is None:
        return False
    if not is_array(candidates):
        return True
    return any(not is_object(one) or "groundingMetadata" in one or _calls_tools(one) for one in candidates)


def _calls_tools(candidate: JSON) -> bool:
    content = candidate.get("content")
    parts = content.get("parts") if is_object(content) else None
    return is_array(parts) and any(is_object(part) and "toolCall" in part for part in parts)


#: Endpoint -> a key that no plain answer has, and its reader.
PLAIN = {"models.generate_content": PlainReader("error", None, read_answer)}


# -- the dialect

#: What a chunk of an answer has: its body, what the SDK puts beside it, and an error beside its usage.
_CHUNK = frozenset(
    {
        *("automaticFunctionCallingHistory", "candidates", "createTime", "error", "modelStatus", "modelVersion"),
        *("parsed", "promptFeedback", "responseId", "sdkHttpResponse", "serviceTier", "usageMetadata"),
    }
)


def _is_whole(chunk: JSON) -> bool:
    """Whether it can be an answer by itself: its candidates have ended, or it shows none."""
    return all(one.get("finishReason") for one in members(chunk, "candidates"))


class GoogleDialect(Dialect):
    """Google's wire format."""

    name = "google"
    models = ("gemini", "imagen", "veo-", "lyria")
    plain = PLAIN
    singular_fields = frozenset({"serviceTier", "background"})
    endpoints = (
        "models.",
        "interactions",
        "decisions",
        "voices",
        "live",
        "batches",
        "files.download",
        "operations",
        "caches",
        "tunings",
        "file_search_stores",
    )

    def begins_stream(self, event: JSON) -> bool:
        """As `Dialect.begins_stream`; one that is read on from where it broke off begins anywhere before its end."""
        kind = text(event, "event_type")
        return kind is not None and kind not in ENDS

    def ends_stream(self, event: JSON) -> bool:
        """As `Dialect.ends_stream`."""
        return text(event, "event_type") in ENDS

    def split_streams(self, events: Sequence[Any]) -> list[list[JSON]]:
        """As `Dialect.split_streams`; the chunks of an answer have its id, or candidates that have not ended."""
        if streams := super().split_streams(events):
            return streams
        found: list[list[JSON]] = []
        known: str | None = None
        ended: set[Any] = set()
        for chunk in filter(is_object, bodies.as_on_wire([*events])):
            if not _CHUNK.issuperset(chunk) or (chunk.get("error") and "usageMetadata" not in chunk):
                return []
            name, spoken = text(chunk, "responseId"), members(chunk, "candidates")
            same = name == known if name and known else ended.isdisjoint(one.get("index") or 0 for one in spoken)
            if not found or not same:
                found.append([])
                known = None
                ended = set()
            found[-1].append(chunk)
            known = name or known
            ended |= {one.get("index") or 0 for one in spoken if one.get("finishReason")}
        return [] if all(len(chunks) == 1 and _is_whole(chunks[0]) for chunks in found) else found

    def endpoint(self, method: str, path: str) -> Endpoint:
        """The endpoint of an HTTP method and URL path."""
        return requests.endpoint(method, path)

    def billed(self) -> Iterable[str]:
        """SDK method paths that are billed when they answer."""
        return requests.BILLED

    def named(self, path: str) -> Endpoint:
        """The endpoint of an SDK method path."""
        return requests.endpoint_named(path) or super().named(path)

    def usual_endpoint(self, body: Mapping[str, Any]) -> str:
        """The SDK method path of what a request body is most likely for."""
        if "messages" in body:
            return "chat.completions"  # as its hosts for other SDKs take it
        model = str(body.get("model", "")).lower()
        for word, path in (("embed", "embed_content"), ("imagen", "generate_images"), ("veo", "generate_videos")):
            if word in model:
                return f"models.{path}"
        return "interactions.create" if "input" in body else "models.generate_content"

    def as_sent(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The request body that the SDK makes of the arguments of a call."""
        return requests.as_sent(arguments)

    def request_facts(self, endpoint: Endpoint, body: Mapping[str, Any] | None) -> RequestFacts:
        """The facts of a request body."""
        return requests.request_facts(endpoint, body)

    def read_body(self, body: Any, context: Context) -> Observation:
        """Usage of a whole decoded body."""
        return bodies.read_body(body, context)

    def items(self, body: Any) -> Sequence[Any]:
        """The answers of a batch."""
        return bodies.items(body)

    def stream(self, *, provider: str, endpoint: str, request: RequestFacts) -> StreamReader:
        """A fresh reader for one stream."""
        context = Context(provider, endpoint, request)
        if endpoint.startswith(("interactions", "decisions")):
            return InteractionStream(context, self.read_bounded)
        return AnswerStream(context, self.read_bounded)

    def output_cap(self, endpoint: Endpoint, body: Mapping[str, Any], tokens: int, *, provider: str) -> tuple[str, Any]:
        """The field that limits the answer's tokens, with its value."""
        del provider
        return requests.output_cap(endpoint, body, tokens)


DIALECT = GoogleDialect()
