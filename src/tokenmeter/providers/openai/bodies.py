"""OpenAI's wire format, as OpenAI, Azure and every compatible host speak it.

A body is read by what it says it is (``object``, ``type``), then by its endpoint, so that a batch line, a socket event
or a bare usage object is understood wherever it turns up. Source of all shapes: ``openai.types``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tokenmeter.providers.context import Context, joined, observation, unknown
from tokenmeter.providers.hosts import host_of
from tokenmeter.providers.openai import jobs, media, requests, responses
from tokenmeter.providers.openai.extras import (
    bills_reasoning_apart,
    builtin_calls,
    conversation,
    extra_meters,
    message_bytes,
    models_asked,
    write_meter,
)
from tokenmeter.providers.openai.usage import inclusive
from tokenmeter.providers.prompts import measure
from tokenmeter.providers.readings import BOTH_SIDES, INPUT_SIDE, NO_FLAGS, NOTHING_SAID, Reading
from tokenmeter.providers.registry import read_usage, told_beside, usage_of
from tokenmeter.providers.wire import JSON, count, is_array, is_object, members, section, text, utf8_length
from tokenmeter.usage import Observation, Usage

_Reader = Callable[[JSON, Context], Observation]
#: How long a transcription was, in its usage.
_LENGTHS = frozenset({"seconds", "prompt_audio_seconds"})


def read_body(body: Any, context: Context) -> Observation:
    """Usage of `body`, whatever it is; an unknown shape is flagged ``usage_unknown``."""
    if is_array(body) and body:
        return joined(read_body(part, context) for part in body)
    if not is_object(body):
        return _without_json(body, context)
    return _reader(body, context)(body, context)


def _without_json(body: Any, context: Context) -> Observation:
    """Audio and text answers, and what is no answer at all."""
    if context.endpoint.startswith("audio.tran"):
        return media.transcription(body, context)
    if context.endpoint == "audio.speech":
        return media.speech(context)
    size = utf8_length(body) if isinstance(body, str) else 0
    seen = _reader({}, context)({}, replace(context, received=max(context.received, size)))
    return replace(seen, deduplicate=False)  # there is no identity to be billed once by


def _reader(body: JSON, context: Context) -> _Reader:
    if "custom_id" in body and ("response" in body or "error" in body):
        return _batch_line
    kind, form = text(body, "type"), text(body, "object")
    named = _BY_TYPE.get(kind or "") or _BY_OBJECT.get(form or "")
    if named is not None:
        return named
    if kind and context.endpoint in _SOCKETS and not usage_of(body):
        return _no_bill
    other = media.transcription if _is_transcription(body) else _any  # lines of a batch do not say what they are
    return next((reader for prefix, reader in _BY_ENDPOINT if context.endpoint.startswith(prefix)), other)


def _batch_line(body: JSON, context: Context) -> Observation:
    return jobs.batch_line(body, context, read_body)


def _no_bill(_body: JSON, _context: Context) -> Observation:
    """An event of a socket that bills nothing."""
    return Observation(billable=False)


def completion(body: JSON, context: Context) -> Observation:
    """Chat and text completions, embeddings, decisions: one model, one prompt, one usage object."""
    if "choices" not in body:
        body = _unwrapped(body)
    wire = usage_of(body) or section(section(body, "x_groq"), "usage")
    model, tier = text(body, "model"), text(body, "service_tier")
    known = model or context.request.model
    said = inclusive(
        wire,
        write_meter=write_meter(known),
        hidden_output=host_of(context.provider).hidden_output,
        reasoning_apart=bills_reasoning_apart(context.provider, known),
        cache_ttl=context.request.terms.get("cache_ttl"),
    )
    if said.unsaid == BOTH_SIDES:
        said = read_usage(wire) or said  # a gateway may hand on what its host said in a format of its own
    sides = BOTH_SIDES
    if context.endpoint.startswith("embeddings"):
        said, sides = _whole_total(wire, said), INPUT_SIDE
    reading = context.complete(said, received=lambda: _answer_bytes(body), sides=sides)
    if reading is None:
        return unknown(body, body.get("usage"), model=known, flags=said.flags)
    flags: set[str] = set()
    if extra := extra_meters(context, wire, known, flags) | builtin_calls(context.provider, body, flags):
        reading = replace(reading, usage=reading.usage + Usage(extra))
    group = context.consumption(reading, model=model, wire=wire, tier=tier, flags=flags)
    groups = models_asked(body, context, group, flags) if "usage_breakdown" in body else (group,)
    if flags:
        reading = replace(reading, flags=reading.flags | flags)
    return replace(observation(reading, group, body, wire or None, tier=tier), consumptions=groups)


def _whole_total(wire: JSON, said: Reading) -> Reading:
    """Of what answers in no tokens the total is the input, where that is not stated by itself."""
    total = count(wire, "total_tokens", flags=set())
    if total is None:
        return said
    prompt = count(wire, "prompt_tokens", "input_tokens", flags=set()) or total
    whole = inclusive({**wire, "prompt_tokens": prompt, "total_tokens": prompt, "completion_tokens": 0})
    doubts = said.flags - {"estimated", "total_mismatch"} | ({"total_mismatch"} if prompt != total else NO_FLAGS)
    return replace(whole, flags=whole.flags | doubts)


def _answer_bytes(body: JSON) -> int:
    """UTF-8 bytes of everything the model wrote; the mere presence of other content counts as one."""
    size = sum(message_bytes(section(choice, "message") or choice) for choice in members(body, "choices"))
    return size or int(bool(body.get("data")))


def _any(body: JSON, context: Context) -> Observation:
    """A body of an endpoint nobody described: whatever familiar usage is in it counts."""
    if "choices" in body:
        return completion(body, context)
    if any(item.keys() & _PICTURES for item in members(body, "data")):
        return media.images(body, context)
    if any("flagged" in item for item in members(body, "results")):  # a moderation
        return Observation(response_model=text(body, "model"), response_id=text(body, "id"), billable=False)
    body = _unwrapped(body)
    wire = usage_of(body)
    said = read_usage(wire) or NOTHING_SAID
    if "rerank" in context.endpoint:
        said = _whole_total(wire, said)  # Voyage, Jina: it answers in scores, so that the total is the input
        if not said.usage:
            said = replace(said, unsaid=INPUT_SIDE)  # documents of no tokens are some that nobody counted
    answer = [body[name] for name in _ANSWERS if body.get(name)]
    sides = INPUT_SIDE if said.usage.output_tokens else _NO_SIDES
    reading = context.complete(
        said,
        received=lambda: measure(answer).size if answer else 0,
        sides=BOTH_SIDES if answer or not said.usage else sides,
        estimable=False,
    )
    if reading is None or not wire:
        known = requests.endpoint_named(context.endpoint)
        if known is not None and known.kind == "free" and not body.get("usage"):
            return Observation(response_model=text(body, "model"), response_id=text(body, "id"), billable=False)
        return unknown(body, body.get("usage"), model=context.request.model, flags=said.flags)
    beside = told_beside(body)
    tier = text(body, "service_tier") or beside.get("tier")
    model = text(body, "model") or text(body, "modelVersion") or text(body, "model_version") or beside.get("model")
    group = context.consumption(reading, model=model, wire=wire, tier=tier)
    if (speed := beside.get("speed")) and speed != "standard":
        group = replace(group, speed=speed)
    seen = observation(reading, group, body, wire, tier=tier)
    return replace(seen, response_model=model, response_id=seen.response_id or beside.get("id"))


def _is_transcription(body: JSON) -> bool:
    """Whether it is words that were heard, which say how long that took."""
    return (
        "choices" not in body
        and isinstance(body.get("text"), str)
        and ("duration" in body or not _LENGTHS.isdisjoint(usage_of(body)))
    )


def _unwrapped(body: JSON) -> JSON:
    """What a stream's last event holds, where that has the usage (Converse, Cohere); else the body as it is."""
    if usage_of(body):
        return body
    return next((inner for name in ("metadata", "delta") if section(inner := section(body, name), "usage")), body)


def _decision_event(body: JSON, context: Context) -> Observation:
    return completion(section(section(body, "event"), "decision"), context)


def _delegated(body: JSON, context: Context) -> Observation:
    """An event of the response that a Live session delegates to: billed beside the session's seconds."""
    event = section(body, "event")
    reader = _BY_TYPE.get(text(event, "type") or "", _no_bill)
    return reader(event, context)


def _turn_event(body: JSON, context: Context) -> Observation:
    """The end of an agent's turn: what its root agent used."""
    turn = section(body, "turn")
    return jobs.agent({**turn, "id": body.get("turn_id"), "usage": body.get("usage") or turn.get("usage")}, context)


def _eval_sample(body: JSON, context: Context) -> Observation:
    seen = completion(section(body, "sample"), context)
    return replace(seen, response_id=text(body, "id"), instead="its run")


def _wrapped_response(body: JSON, context: Context) -> Observation:
    """A terminal stream event, with the whole response in it."""
    return responses.response(section(body, "response"), context)


#: Where hosts put what a model wrote, in whatever format.
_ANSWERS = ("candidates", "content", "message", "output", "outputs", "text")
#: Of what an answer holds, that by which it is pictures.
_PICTURES = frozenset({"b64_json", "revised_prompt"})
_NO_SIDES: frozenset[str] = frozenset()
#: Endpoints whose bodies are events, most of which bill nothing.
_SOCKETS = frozenset({"realtime", "beta.realtime", "live", "responses.connect", "beta.responses.connect"})


#: Events of streams and sockets, by ``type``.
_BY_TYPE: dict[str, _Reader] = {
    "response.done": media.realtime,
    "response.event": _delegated,
    "response.completed": _wrapped_response,
    "response.incomplete": _wrapped_response,
    "response.failed": _wrapped_response,
    "response.cancelled": _wrapped_response,
    "conversation.item.input_audio_transcription.completed": media.heard,
    "session.usage.updated": media.live_session,
    "session.closed": media.live_session,
    "decision.event": _decision_event,
    "agent.session.turn.completed": _turn_event,
    "agent.session.turn.failed": _turn_event,
    "agent.session.turn.cancelled": _turn_event,
    "transcript.text.done": media.transcription,
    "speech.audio.done": media.speech_event,
    "image_generation.completed": media.images,
    "image_edit.completed": media.images,
    "conversation.response.done": conversation,
}
#: Whole bodies, by ``object``.
_BY_OBJECT: dict[str, _Reader] = {
    "chat.completion": completion,
    "chat.completion.chunk": completion,
    "text_completion": completion,
    "response": responses.response,
    "response.compaction": responses.response,
    "container": responses.container,
    "conversation.response": conversation,
    "batch": jobs.batch,
    "fine_tuning.job": jobs.fine_tuning,
    "thread.run": jobs.run,
    "thread.run.step": jobs.run_step,
    "agent.session": jobs.agent_session,
    "agent.session.turn": jobs.agent,
    "eval.run": jobs.eval_run,
    "eval.run.output_item": _eval_sample,
    "video": media.video,
    "realtime.response": media.realtime,
}
#: Everything else, by the beginning of its endpoint.
_BY_ENDPOINT: tuple[tuple[str, _Reader], ...] = (
    ("chat", completion),
    ("completions", completion),
    ("embeddings", completion),
    ("decisions", completion),
    ("agents.completions", completion),
    ("conversations", conversation),
    ("responses", responses.response),
    ("beta.responses", responses.response),
    ("images", media.images),
    ("audio.tran", media.transcription),
    ("audio.speech", media.speech_event),
    ("realtime", media.realtime),
    ("beta.realtime", media.realtime),
    ("live", media.live_session),
    ("videos", media.video),
    ("batches", jobs.batch),
    ("fine_tuning.alpha.graders", jobs.grader),
    ("fine_tuning.jobs", jobs.fine_tuning),
    ("beta.threads", jobs.run),
    ("beta.agents", jobs.agent),
)
