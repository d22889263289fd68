"""Which reader a body of Google's has, in whichever spelling; and the readers of work that is asked about later.

That is videos, batches, caches and tuning jobs. What is answered at once is in `tokenmeter.providers.google.answers`.
Source of all shapes: https://ai.google.dev/api and ``google.genai.types``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

from tokenmeter.money import EXACT, quantize
from tokenmeter.providers.context import Context, joined, unknown
from tokenmeter.providers.google.answers import (
    answer,
    answer_of_input,
    embeddings,
    execution,
    interaction,
    merged,
    music,
    pictures,
)
from tokenmeter.providers.google.requests import OPERATION, endpoint_named, model_name
from tokenmeter.providers.readings import Reading
from tokenmeter.providers.wire import JSON, count, instant, is_array, is_object, members, section, text, utf8_length
from tokenmeter.usage import Observation, Usage

_Reader = Callable[[JSON, Context], Observation]
#: What is spelled with underscores on the wire, too.
_SNAKE_ENDPOINTS = ("interactions", "decisions", "voices", "triggers")


def read_body(body: Any, context: Context) -> Observation:
    """Usage of `body`, whatever it is; an unknown shape is flagged ``usage_unknown``.

    What the SDK's objects were dumped to by their Python names is read as what came off the wire.
    """
    if not context.endpoint.startswith(_SNAKE_ENDPOINTS):
        body = as_on_wire(body)
    known = endpoint_named(context.endpoint)
    if known is None or known.kind == "unknown":  # what it was given is no prompt: the name of a file, a form
        context = replace(context, request=replace(context.request, input_bytes=0, image_count=0))
    return _read(body, context)


def _read(body: Any, context: Context) -> Observation:
    if is_array(body) and body:  # a stream that was not asked for as events is one array of its chunks
        chunks = [part for part in body if is_object(part)]
        if chunks and all("candidates" in part or "usageMetadata" in part for part in chunks):
            return answer(merged(chunks), context)
        return joined(_read(part, context) for part in body)
    if not is_object(body):
        return _without_json(body, context)
    return _reader(body, context)(body, context)


def _without_json(body: Any, context: Context) -> Observation:
    """What is no answer at all: of what is not made in words, nobody knows what it would have said."""
    reader = _reader({}, context)
    if reader is embeddings:
        return embeddings({}, context)
    if reader not in {answer, interaction}:
        return unknown({}, None, model=context.request.model)
    size = utf8_length(body) if isinstance(body, str) else 0
    return answer({}, replace(context, received=max(context.received, size)))


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
        *("generated_images", "generated_masks", "generated_videos", "rai_media_filtered_count"),
        *("inlined_embed_content_responses", "inlined_responses"),
        *("total_token_count", "tuning_data_stats", "usage_metadata"),
    }
)


def as_on_wire(body: Any) -> Any:
    """`body` by the names that are on the wire, where it has the SDK's; one that came off the wire is left as it is."""
    if is_array(body):
        return [as_on_wire(part) for part in body]
    return _renamed(body) if is_object(body) and not _PYTHONS.isdisjoint(_names(body)) else body


def _names(body: JSON) -> set[str]:
    """Keys of a body, of the response in a line of a batch, and of where a batch has its answers."""
    return {*body, *section(body, "response"), *section(body, "dest")}


def _renamed(value: Any) -> Any:
    if is_array(value):
        return [_renamed(item) for item in value]
    if not is_object(value):
        return value
    return {_SNAKE.sub(lambda found: found[1].upper(), key): _renamed(item) for key, item in value.items()}


def operation(body: JSON, context: Context) -> Observation:
    """A long-running operation: a video is billed when it is done, by the seconds that were asked for."""
    name = operation_name(text(body, "name"))
    if body.get("done") is not True:
        return Observation(response_id=name, flags=frozenset({"not_final"}), billable=False)
    result = section(body, "response")
    inner = section(result, "generateVideoResponse") or result
    made = len(members(inner, "generatedSamples") or members(inner, "videos") or members(inner, "generatedVideos"))
    if body.get("error") or (not made and inner.get("raiMediaFilteredCount")):
        return Observation(response_id=name, billable=False)
    asked = context.request
    found = OPERATION.search(name or "")
    model = asked.model or (found and found[1])
    if not (made and asked.pieces):  # another program asked for it, and no answer says how long it is
        lost = unknown({}, None, model=model, deduplicate=True)
        return replace(lost, response_id=name)
    meter, seconds = next(iter(asked.pieces.items()))
    quantity = seconds * made // max(asked.choices, 1)
    group = context.consumption(Reading(Usage({meter: quantity})), model=model)
    return Observation(consumptions=(group,), response_id=name, raw_usage={meter: quantity}, deduplicate=True)


def operation_name(name: str | None) -> str | None:
    """An operation's name from its model on, however it was written."""
    found = OPERATION.search(name or "")
    return found[0] if found else name


def started(body: JSON, context: Context) -> Observation:
    """A batch or a tuning job that was begun; whoever reads its results has its bill."""
    del context
    return Observation(response_id=text(body, "name"), flags=frozenset({"not_final"}), billable=False)


def _output(body: JSON) -> JSON:
    """Where a batch has its answers, in whichever form of its body."""
    metadata = section(body, "metadata")
    return section(body, "response") or section(metadata, "output") or section(body, "output") or section(body, "dest")


def results_file(body: Any) -> str | None:
    """The file that a batch's answers are in; None when they are in the body itself, or not there yet."""
    if not is_object(body):
        return None
    found = _output(body)
    return text(found, "responsesFile") or text(found, "fileName")


def items(body: Any) -> list[JSON]:
    """The bills in a batch that was read: its answers, each by its place, once it has ended."""
    body = as_on_wire(body)
    if not is_object(body):
        return []
    output = _output(body)
    model = model_name(section(body, "metadata").get("model") or body.get("model"))
    found: list[JSON] = []
    for name in ("inlinedResponses", "inlinedEmbedContentResponses"):
        inner = output.get(name)
        nested = (members(inner, "inlinedResponses") or members(inner, name)) if is_object(inner) else None
        found += members(output, name) if nested is None else nested
    return [{**one, "key": str(place), "model": model} for place, one in enumerate(found)]


def batch_line(body: JSON, context: Context) -> Observation:
    """One answer of a batch, inline or a line of its file: half the price; an error is free."""
    response = section(body, "response") or section(body, "embedding")
    key = text(body, "key")
    if body.get("error") or not response:
        return Observation(response_id=key, billable=False)
    if model := text(body, "model"):
        context = replace(context, request=replace(context.request, model=model))
    context = context.in_batch()
    if "embedding" in response or "values" in response or "tokenCount" in response:
        stated = {"promptTokenCount": response["tokenCount"]} if "tokenCount" in response else {}
        wire = section(response, "usageMetadata") or stated
        seen = replace(answer_of_input(wire, context, set()), response_model=text(body, "model"))
    else:
        seen = answer(response, context)
    # "default" is what such a line may say; that it was a batch is known from where it stands.
    groups = tuple(
        replace(group, service_tier=None) if group.service_tier == "default" else group for group in seen.consumptions
    )
    return replace(seen, consumptions=groups, deduplicate=True, bill_id=key)


def cache(body: JSON, context: Context) -> Observation:
    """A cached content: its tokens times the hours it was bought for. Whatever extends it grows that total."""
    flags: set[str] = set()
    name = text(body, "name")
    tokens = count(section(body, "usageMetadata"), "totalTokenCount", flags=flags)
    made, ends = instant(body, "createTime"), instant(body, "expireTime")
    model = model_name(body.get("model"))
    # A cache of no tokens is one that nobody counted: there is a least size.
    if not tokens or made is None or ends is None or ends < made or name is None:
        return replace(unknown({}, None, model=model, flags=frozenset(flags), deduplicate=True), response_id=name)
    seconds = Decimal(int(ends.timestamp()) - int(made.timestamp()))
    hours = quantize(EXACT.divide(EXACT.multiply(seconds, tokens), _HOUR))
    group = context.consumption(Reading(Usage({"cache_storage": hours})), model=model, role="cache")
    return Observation(
        consumptions=(group,),
        response_model=model,
        response_id=name,
        flags=frozenset(flags),
        raw_usage={"totalTokenCount": tokens, "createTime": body["createTime"], "expireTime": body["expireTime"]},
        reading="total",
        deduplicate=True,
    )


_HOUR = Decimal(3_600)


def tuning(body: JSON, context: Context) -> Observation:
    """A tuning job: the tokens it was trained on, once it has succeeded."""
    name, state = text(body, "name"), text(body, "state") or ""
    if not state.endswith("SUCCEEDED"):
        ended = state.endswith(("FAILED", "CANCELLED"))
        return Observation(response_id=name, billable=False, flags=frozenset() if ended else frozenset({"not_final"}))
    flags: set[str] = set()
    model = model_name(body.get("baseModel"))
    stats = section(body, "tuningDataStats")
    trained = next((tokens for one in _sections(stats) if (tokens := _billable(one, flags))), None)
    if trained is None:  # no job that ended well was trained on nothing
        lost = unknown({}, dict(stats) or None, model=model, flags=frozenset(flags), deduplicate=True)
        return replace(lost, response_id=name)
    group = context.consumption(Reading(Usage({"trained_tokens": trained})), model=model, role="training")
    return Observation(
        consumptions=(group,),
        response_model=model,
        response_id=name,
        flags=frozenset(flags),
        raw_usage={"trained_tokens": trained},
        deduplicate=True,
    )


def _sections(body: JSON) -> Iterator[JSON]:
    yield body
    yield from (value for value in body.values() if is_object(value))


def _billable(stats: JSON, flags: set[str]) -> int | None:
    return count(stats, "totalBillableTokenCount", "totalBillableCharacterCount", flags=flags)


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
