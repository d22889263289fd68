"""Images, speech, transcription, realtime and video: bodies that name no model, or count something else than tokens."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from tokenmeter.providers.context import Context, observation, pending, unknown
from tokenmeter.providers.hosts import host_of
from tokenmeter.providers.openai.requests import video_meter
from tokenmeter.providers.openai.usage import inclusive
from tokenmeter.providers.prompts import speech_tokens, tokens_of
from tokenmeter.providers.readings import INPUT_SIDE, NO_FLAGS, Reading, worked
from tokenmeter.providers.registry import usage_of
from tokenmeter.providers.wire import (
    JSON,
    amount,
    count,
    is_array,
    is_object,
    members,
    part,
    section,
    text,
    written_bytes,
)
from tokenmeter.usage import Consumption, Observation, Quantity, Usage

_ESTIMATED = frozenset({"estimated"})
_VIDEO = "seconds_video"
#: Endpoints that are given a picture; with an edit come words, too.
_OF_PICTURES = frozenset({"images.edit", "images.create_variation"})
_DONE_WITHOUT_RESULT = frozenset({"failed", "cancelled"})


def images(body: JSON, context: Context) -> Observation:
    """Images made or edited: tokens by modality, or (older models) a number of images. The model is the request's."""
    wire = usage_of(body)
    groups: list[Consumption] = []
    flags: set[str] = set()
    # Output without a breakdown is image tokens (ImageGenCompletedEvent: "tokens in the output image").
    reading = inclusive(wire, output_meter="output_image")
    if context.endpoint in _OF_PICTURES or body.get("type") == "image_edit.completed":
        reading = not_words(reading, wire, "input_image")
    data = body.get("data")
    made = len(data) if is_array(data) else int("b64_json" in body)
    drawn = reading.usage.output_tokens and "output" not in reading.unsaid  # of no tokens: nobody counted it
    if drawn and (whole := context.complete(reading, received=lambda: made, sides=INPUT_SIDE)) is not None:
        reading, flags = whole, set(whole.flags)
        groups.append(context.consumption(reading, model=text(body, "model"), wire=wire, role="image_generation"))
    elif is_array(data):
        reading = Reading(Usage({"images": made} if made else {}), flags=reading.flags)
        flags = set(reading.flags)
        group = context.consumption(reading, model=text(body, "model"), wire=wire, role="image_generation", flags=flags)
        groups.append(group)
    groups.extend(svg(body, context, flags))
    if not groups:
        return unknown(body, body.get("usage"), model=context.request.model, flags=reading.flags)
    raw = {key: body[key] for key in ("usage", "svg_usage") if body.get(key)} or (dict(wire) if wire else None)
    model = text(body, "model")
    return Observation(consumptions=tuple(groups), response_model=model, flags=frozenset(flags), raw_usage=raw)


def svg(body: JSON, context: Context, flags: set[str]) -> tuple[Consumption, ...]:
    """The author of an SVG is a model of its own, counted beside the image; doubts are added to `flags`."""
    if not body.get("svg_usage"):
        return ()
    wire = part(body, "svg_usage", flags=flags)
    reading = worked(inclusive(wire), answered=True)
    flags |= reading.flags
    if reading.unsaid:
        flags.add("usage_unknown")
    return (context.consumption(reading, model=text(wire, "model"), role="svg"),)


def transcription(body: Any, context: Context) -> Observation:
    """Tokens or seconds, as the model is billed; a text answer (``text``, ``srt``, ``vtt``) says neither."""
    if not is_object(body):
        return _unheard(None, context, NO_FLAGS)
    wire = usage_of(body)
    reading = spoken(wire)
    if reading.unsaid or (body.get("text") and not _is_heard(reading.usage)):
        return _unheard(body, context, reading.flags)
    if "seconds_audio" in reading.usage.quantities:
        reading = replace(reading, usage=_heard(reading.usage["seconds_audio"], context))
    return observation(reading, context.consumption(reading, model=text(body, "model"), wire=wire), body, wire)


def _is_heard(usage: Usage) -> bool:
    """Whether what was listened to is counted, by its length or in tokens: no words come of nothing."""
    return "seconds_audio" in usage.quantities or bool(usage.input_tokens)


def _heard(seconds: Quantity, context: Context) -> Usage:
    return Usage({"seconds_audio": max(seconds, host_of(context.provider).least_audio)})


def _unheard(body: JSON | None, context: Context, flags: frozenset[str]) -> Observation:
    """No usage came; the length of the audio, where the body says it, is at least near to the bill."""
    doubts = set(flags)
    said: JSON = body or {}
    duration = amount(said, "duration", flags=doubts)
    if not duration:
        return unknown(said, said.get("usage"), model=context.request.model, flags=frozenset(doubts))
    group = context.consumption(Reading(_heard(duration, context)), model=None)
    return Observation(consumptions=(group,), flags=frozenset(doubts) | _ESTIMATED, raw_usage=said.get("usage"))


def spoken(wire: JSON) -> Reading:
    """A transcription's usage, which is either of two shapes: tokens or a duration, beside which tokens are no bill."""
    flags: set[str] = set()
    seconds = amount(wire, "seconds", "prompt_audio_seconds", flags=flags)
    if seconds is not None and wire.get("input_tokens") is None:
        return Reading(Usage({"seconds_audio": seconds} if seconds else {}))
    reading = not_words(inclusive(wire), wire, "input_audio")
    return replace(reading, flags=reading.flags | flags) if flags else reading


def not_words(reading: Reading, wire: JSON, meter: str) -> Reading:
    """What an input holds is `meter`, as far as nobody says that it is text: words alone would not be asked about."""
    counts = reading.usage.quantities
    if meter in counts or "input" not in counts or not wire.get("input_tokens"):
        return reading
    words = count(section(wire, "input_token_details", "input_tokens_details"), "text_tokens", flags=set()) or 0
    rest = int(counts["input"]) - words
    if rest <= 0:
        return reading
    split = {**counts, "input": words, meter: rest}
    usage = Usage({name: quantity for name, quantity in split.items() if quantity})
    return replace(reading, usage=usage, flags=reading.flags | _ESTIMATED)


def speech(context: Context) -> Observation:
    """Speech answers are audio without usage. Per-character models are known exactly, the others by estimate."""
    request = context.request
    characters = request.pieces.get("characters")
    if characters is None:
        return unknown({}, None, model=request.model)
    quantities: dict[str, Quantity]
    if (request.meant_model or "").rpartition("/")[2].startswith("tts-"):  # a gateway names the provider before it
        quantities = {"characters": characters}
    else:
        quantities = {"input": tokens_of(request.input_bytes), "output_audio": speech_tokens(characters)}
    group = context.consumption(Reading(Usage(quantities)), model=None)
    return Observation(consumptions=(group,), flags=_ESTIMATED)


def speech_event(body: JSON, context: Context) -> Observation:
    """``speech.audio.done`` of a speech stream: text in, audio out."""
    wire = usage_of(body)
    reading = inclusive(wire, output_meter="output_audio")
    if reading.unsaid or not reading.usage:
        seen = speech(context)
        seen = replace(seen, consumptions=tuple(_as_stated(group, reading) for group in seen.consumptions))
        return replace(seen, flags=seen.flags | reading.flags, raw_usage=wire or None)
    return observation(reading, context.consumption(reading, model=None, wire=wire), body, wire)


def _as_stated(group: Consumption, reading: Reading) -> Consumption:
    """An estimated group with the side that was stated in place of its estimate."""
    stated = reading.usage.quantities
    if "characters" in group.usage.quantities or not stated or not reading.unsaid:
        return group
    return replace(group, usage=Usage({**group.usage.quantities, **stated}))


def realtime(body: JSON, context: Context) -> Observation:
    """``response.done`` of a realtime session, or the usage in it. The model is the session's."""
    response = section(body, "response") or body
    wire = usage_of(response)
    said = inclusive(wire)
    if said.unsaid and text(response, "status") in _DONE_WITHOUT_RESULT:
        return Observation(response_id=text(response, "id"), billable=False)
    # The prompt is all that was said in the session, which no request holds.
    reading = context.complete(said, received=lambda: _output_bytes(response), estimable=False)
    if reading is None or reading.unsaid:
        return unknown(response, response.get("usage"), model=context.request.model, flags=said.flags)
    return observation(reading, context.consumption(reading, model=text(response, "model")), response, wire)


def _output_bytes(response: JSON) -> int:
    """UTF-8 bytes of what was said, written and called; an item without words is content all the same."""
    return sum(written_bytes(item) or 1 for item in members(response, "output"))


def heard(body: JSON, context: Context) -> Observation:
    """A realtime session's input transcription: billed on top, at the speech recognition model's own price."""
    wire = section(body, "usage")
    # The session's own model did not do this work: without a named one it stays unpriced.
    model = context.request.tool_models.get("transcription")
    reading = spoken(wire)
    if reading.unsaid or (body.get("transcript") and not _is_heard(reading.usage)):
        return unknown({"id": body.get("item_id")}, body.get("usage"), model=model, flags=reading.flags)
    group = replace(context.consumption(reading, model=model, role="transcription"), model=model)
    return Observation(
        consumptions=(group,),
        response_model=model,
        response_id=text(body, "item_id"),
        flags=reading.flags,
        raw_usage=wire,
    )


def live_session(body: JSON, context: Context) -> Observation:
    """A Live session's seconds of audio: a running total, with its last word in ``session.closed``."""
    wire = usage_of(body)
    session = section(body, "session")
    identity = {"id": session.get("id")}
    reading = spoken(wire)
    if reading.unsaid:
        return unknown(identity, body.get("usage"), model=context.request.model, flags=reading.flags)
    group = context.consumption(reading, model=text(session, "model"))
    return replace(observation(reading, group, identity, wire, deduplicate=True), reading="total")


def video(body: JSON, context: Context) -> Observation:
    """A video job: billed by its seconds once it is made. ``seconds`` is text on the wire."""
    status = text(body, "status")
    if status == "failed":
        return Observation(response_model=text(body, "model"), response_id=text(body, "id"), billable=False)
    flags: set[str] = set()
    seconds = amount(body, "seconds", flags=flags)
    wire = section(body, "usage")
    if context.final_only and status in {"queued", "in_progress"}:
        return pending(body)
    asked = next(((meter, long) for meter, long in context.request.pieces.items() if meter.startswith(_VIDEO)), None)
    added = context.request.terms.get("added_seconds")
    if asked is not None and (not seconds or added is not None):
        seconds = Decimal(asked[1])  # of an extension the body tells the whole length, of which the rest is billed
    if not seconds:
        model = text(body, "model") or context.request.model
        return unknown(body, wire or None, model=model, flags=frozenset(flags), deduplicate=True)
    size = text(body, "size")
    reading = Reading(Usage({video_meter(size) if size or asked is None else asked[0]: seconds}))
    raw = {key: body[key] for key in ("seconds", "size", "usage") if body.get(key) is not None}
    group = context.consumption(reading, model=text(body, "model"), wire=wire or None, role="video_generation")
    return observation(reading, group, body, raw, deduplicate=True)
