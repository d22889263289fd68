"""Which reader a body of Google's has, in whichever spelling it comes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tokenmeter.providers.context import Context, joined
from tokenmeter.providers.google.answers import answer, embeddings, execution, interaction, merged, music, pictures
from tokenmeter.providers.google.jobs import batch_line, cache, operation, started, tuning
from tokenmeter.providers.wire import JSON, is_array, is_object, section, utf8_length
from tokenmeter.usage import Observation

_Reader = Callable[[JSON, Context], Observation]
#: What is spelled with underscores on the wire, too.
_SNAKE_ENDPOINTS = ("interactions", "decisions", "voices", "triggers")


def read_body(body: Any, context: Context) -> Observation:
    """Usage of `body`, whatever it is; an unknown shape is flagged ``usage_unknown``.

    What the SDK's objects were dumped to by their Python names is read as what came off the wire.
    """
    if not context.endpoint.startswith(_SNAKE_ENDPOINTS):
        body = as_on_wire(body)
    return _read(body, context)


def _read(body: Any, context: Context) -> Observation:
    if is_array(body) and body:  # a stream that was not asked for as events is one array of its chunks
        chunks = [part for part in body if is_object(part)]
        if all("candidates" in part or "usageMetadata" in part for part in chunks):
            return answer(merged(chunks), context)
        return joined(_read(part, context) for part in body)
    if not is_object(body):
        size = utf8_length(body) if isinstance(body, str) else 0
        return answer({}, replace(context, received=max(context.received, size)))
    return _reader(body, context)(body, context)


def _reader(body: JSON, context: Context) -> _Reader:
    if "key" in body:
        return batch_line
    path = context.endpoint
    return next((reader for start, reader in _BY_ENDPOINT if path.startswith(start)), answer)


_SNAKE = re.compile(r"_([a-z0-9])")
#: By which a body, or what is in one, is known to have the SDK's names.
_PYTHONS = frozenset(
    {
        *("base_model", "create_time", "model_version", "prompt_token_count", "response_id", "server_content"),
        *("total_token_count", "tuning_data_stats", "usage_metadata"),
    }
)


def as_on_wire(body: Any) -> Any:
    """`body` by the names that are on the wire, where it has the SDK's; one that came off the wire is left as it is."""
    if is_array(body):
        return [as_on_wire(part) for part in body]
    return _renamed(body) if is_object(body) and not _PYTHONS.isdisjoint(_names(body)) else body


def _names(body: JSON) -> set[str]:
    """Keys of a body, and of the response in a line of a batch."""
    return {*body, *section(body, "response")}


def _renamed(value: Any) -> Any:
    if is_array(value):
        return [_renamed(item) for item in value]
    if not is_object(value):
        return value
    return {_SNAKE.sub(lambda found: found[1].upper(), key): _renamed(item) for key, item in value.items()}


#: Beginning of an endpoint -> the reader of its bodies.
_BY_ENDPOINT: tuple[tuple[str, _Reader], ...] = (
    ("models.embed_content", embeddings),
    ("models.generate_images", pictures),
    ("models.edit_image", pictures),
    ("models.upscale_image", pictures),
    ("models.recontext_image", pictures),
    ("models.segment_image", pictures),
    ("models.generate_videos", operation),
    ("operations", operation),
    ("live.music", music),
    ("interactions", interaction),
    ("decisions", interaction),
    ("voices", interaction),
    ("triggers", execution),
    ("batches", started),
    ("tunings.tune", started),
    ("tunings", tuning),
    ("caches", cache),
)
