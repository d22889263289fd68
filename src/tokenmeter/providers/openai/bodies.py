"""OpenAI's wire format, as OpenAI, Azure and every compatible host speak it.

A body is read by what it says it is (``object``, ``type``), then by its endpoint, so that a batch line, a socket event
or a bare usage object is understood wherever it turns up. Source of all shapes: ``openai.types``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tokenmeter.providers.context import Context, joined, observation, pending, unknown
from tokenmeter.providers.hosts import host_of
from tokenmeter.providers.openai import media, requests, responses
from tokenmeter.providers.openai.extras import (
    bills_reasoning_apart,
    builtin_calls,
    conversation,
    extra_meters,
    models_asked,
    write_meter,
)
from tokenmeter.providers.openai.usage import inclusive
from tokenmeter.providers.prompts import measure
from tokenmeter.providers.registry import read_usage, usage_of
from tokenmeter.providers.wire import (
    BOTH_SIDES,
    INPUT_SIDE,
    JSON,
    NOTHING_SAID,
    Reading,
    count,
    is_array,
    is_object,
    members,
    section,
    text,
    utf8_length,
)
from tokenmeter.usage import Observation, Usage

_Reader = Callable[[JSON, Context], Observation]


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
    return next((reader for prefix, reader in _BY_ENDPOINT if context.endpoint.startswith(prefix)), _any)


def _batch_line(body: JSON, context: Context) -> Observation:
    return batch_line(body, context, read_body)


def _no_bill(_body: JSON, _context: Context) -> Observation:
    """An event of a socket that bills nothing."""
    return Observation(billable=False)


def completion(body: JSON, context: Context) -> Observation:
    """Chat and text completions, embeddings, decisions: one model, one prompt, one usage object."""
    wire = usage_of(body) or section(section(body, "x_groq"), "usage")
    model, tier = text(body, "model"), text(body, "service_tier")
    known = model or context.request.model
    said = inclusive(
        wire,
        write_meter=write_meter(known),
        hidden_output=host_of(context.provider).hidden_output,
        reasoning_apart=bills_reasoning_apart(context.provider, known),
    )
    sides = BOTH_SIDES
    if context.endpoint.startswith("embeddings"):
        said, sides = _whole_total(wire, said), INPUT_SIDE
    reading = context.complete(said, received=lambda: _answer_bytes(body), sides=sides)
    if reading is None:
        return unknown(body, body.get("usage"), model=known, flags=said.flags)
    flags: set[str] = set()
    if extra := extra_meters(context.provider, wire, known, flags) | builtin_calls(context.provider, body, flags):
        reading = replace(reading, usage=reading.usage + Usage(extra))
    group = context.consumption(reading, model=model, wire=wire, tier=tier, flags=flags)
    groups = models_asked(body, context, group, flags) if "usage_breakdown" in body else (group,)
    if flags:
        reading = replace(reading, flags=reading.flags | flags)
    return replace(observation(reading, group, body, wire or None, tier=tier), consumptions=groups)


def _whole_total(wire: JSON, said: Reading) -> Reading:
    """Some hosts of embeddings only state a total, which is then all input."""
    if "input" not in said.unsaid or wire.get("total_tokens") is None:
        return said
    whole = inclusive({"prompt_tokens": wire["total_tokens"]})
    return replace(whole, flags=whole.flags | said.flags - {"estimated"})


def _answer_bytes(body: JSON) -> int:
    """UTF-8 bytes of everything the model wrote; the mere presence of other content counts as one."""
    size = sum(_choice_bytes(choice) for choice in members(body, "choices"))
    return size or int(bool(body.get("data")))


def _choice_bytes(choice: JSON) -> int:
    message = section(choice, "message") or choice
    words = [message.get(name) for name in ("content", "text", "reasoning", "reasoning_content", "refusal")]
    for call in [*members(message, "tool_calls"), {"function": section(message, "function_call")}]:
        function = section(call, "function", "custom")
        words += [function.get(name) for name in ("name", "arguments", "input")]
    words.append(section(message, "audio").get("transcript"))
    return sum(utf8_length(word) for word in words if isinstance(word, str))


def _any(body: JSON, context: Context) -> Observation:
    """A body of an endpoint nobody described: whatever familiar usage is in it counts."""
    if "choices" in body:
        return completion(body, context)
    wire = usage_of(body)
    said = read_usage(wire) or NOTHING_SAID
    answer = [body[name] for name in _ANSWERS if body.get(name)]
    reading = context.complete(
        said,
        received=lambda: measure(answer).size if answer else 0,
        sides=BOTH_SIDES if answer or not said.usage else _NO_SIDES,
        estimable=False,
    )
    if reading is None or not wire:
        known = requests.endpoint_named(context.endpoint)
        if known is not None and known.kind == "free" and not body.get("usage"):
            return Observation(response_model=text(body, "model"), response_id=text(body, "id"), billable=False)
        return unknown(body, body.get("usage"), model=context.request.model, flags=said.flags)
    tier = text(body, "service_tier")
    model = text(body, "model") or text(body, "modelVersion") or text(body, "model_version")
    group = context.consumption(reading, model=model, wire=wire, tier=tier)
    return replace(observation(reading, group, body, wire, tier=tier), response_model=model)


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
    return agent({**turn, "id": body.get("turn_id"), "usage": body.get("usage") or turn.get("usage")}, context)


def _eval_sample(body: JSON, context: Context) -> Observation:
    return completion(section(body, "sample"), context)


def _wrapped_response(body: JSON, context: Context) -> Observation:
    """A terminal stream event, with the whole response in it."""
    return responses.response(section(body, "response"), context)


#: Where hosts put what a model wrote, in whatever format.
_ANSWERS = ("candidates", "content", "message", "output", "outputs", "text")
_NO_SIDES: frozenset[str] = frozenset()
#: Endpoints whose bodies are events, most of which bill nothing.
_SOCKETS = frozenset({"realtime", "beta.realtime", "live", "responses.connect", "beta.responses.connect"})


# -- work that is billed when it has ended: batches, fine-tuning, runs and sessions; what is polled bills once

_UNDER_WAY = frozenset(
    {
        "cancellation_requested",
        "cancelling",
        "finalizing",
        "idle",
        "in_progress",
        "paused",
        "queued",
        "requires_action",
        "running",
        "started",
        "validated",
        "validating",
        "validating_files",
        "waiting",
    }
)
#: Of the statuses a run ends with, those after which a model has answered: zeros beside them are not said.
_ANSWERED = frozenset({"completed", "incomplete"})
_HTTP_ERROR = 400


#: Words for work that has been done.
_DONE = frozenset({"completed", "succeeded", "success"})


def _status(body: JSON) -> str:
    """How far work has come; some hosts write it in capitals."""
    return (text(body, "status") or "").lower()


def batch(body: JSON, context: Context) -> Observation:
    """A ``Batch``: its total over all requests, at batch rates. Either this is billed or its output lines, not both."""
    if context.final_only and _status(body) in _UNDER_WAY:
        return pending(body)
    wire = usage_of(body)
    reading = _sum_of(wire)
    if reading.unsaid or not reading.usage:
        done = count(section(body, "request_counts"), "completed", flags=set())
        if done == 0 or (done is None and _status(body) not in _DONE):
            return Observation(response_model=text(body, "model"), response_id=text(body, "id"), billable=False)
        return unknown(body, wire or None, model=context.request.model, flags=reading.flags, deduplicate=True)
    group = context.in_batch().consumption(reading, model=text(body, "model"), wire=wire)
    # Its output file states the same bill line by line: whichever is read first is recorded under the file's id.
    return replace(observation(reading, group, body, wire, deduplicate=True), bill_id=text(body, "output_file_id"))


def batch_line(body: JSON, context: Context, read: Callable[[Any, Context], Observation]) -> Observation:
    """One line of a batch's output file: a whole response body inside, billed unless it is an error."""
    response = section(body, "response")
    status = response.get("status_code")
    if body.get("error") or not response or (isinstance(status, int) and status >= _HTTP_ERROR):
        return Observation(response_id=text(body, "id"), billable=False)
    inner = read(response.get("body"), replace(context, endpoint="batch line").in_batch()).with_shared()
    # Lines say service_tier "default"; "batch" is known from where they stand.
    groups = tuple(
        replace(group, service_tier=None) if group.service_tier == "default" else group for group in inner.consumptions
    )
    return replace(
        inner,
        consumptions=groups,
        response_id=inner.response_id or text(body, "id"),
        deduplicate=True,
        bill_id=text(body, "custom_id"),
        reading="share",
    )


def fine_tuning(body: JSON, context: Context) -> Observation:
    """A fine-tuning job: its trained tokens, at the base model's training price, once it has ended.

    Reinforcement fine-tuning is billed by the hours its core loop ran, which no body tells: it stays unpriced.
    """
    status = _status(body)
    flags: set[str] = set()
    trained = count(body, "trained_tokens", flags=flags)
    if context.final_only and status in _UNDER_WAY:
        return pending(body)
    by_the_hour = section(body, "method").get("type") == "reinforcement"
    if not trained and status in {"failed", "failed_validation"}:
        return Observation(response_model=text(body, "model"), response_id=text(body, "id"), billable=False)
    if by_the_hour:
        flags.add("training_time_unknown")
    elif not trained and status == "cancelled":
        return Observation(response_model=text(body, "model"), response_id=text(body, "id"), billable=False)
    if not trained or by_the_hour:
        raw = None if trained is None else {"trained_tokens": trained}
        return unknown(body, raw, flags=frozenset(flags), deduplicate=True)
    reading = Reading(Usage({"trained_tokens": trained}), flags=frozenset(flags))
    group = context.consumption(reading, model=text(body, "model"), role="training")
    return observation(reading, group, body, {"trained_tokens": trained}, deduplicate=True)


def run(body: JSON, context: Context) -> Observation:
    """An assistant's run or run step: the sum over its prompts, stated when it has ended."""
    wire = usage_of(body)
    if context.final_only and (_status(body) in _UNDER_WAY or not wire):
        return pending(body)
    reading = _sum_of(wire)
    if reading.unsaid or (not reading.usage and _status(body) in _ANSWERED):
        return unknown(body, wire or None, model=context.request.model, flags=reading.flags, deduplicate=True)
    return observation(
        reading, context.consumption(reading, model=text(body, "model"), wire=wire), body, wire, deduplicate=True
    )


def agent(body: JSON, context: Context) -> Observation:
    """An agent's session or turn: cumulative, best effort by the provider's own words."""
    wire = usage_of(body)
    if not wire or (context.final_only and _status(body) in _UNDER_WAY):
        return pending(body)
    reading = _sum_of(wire)
    config = section(body, "agent")
    model = text(config, "model") or text(section(config, "model"), "id")
    if reading.unsaid:
        return unknown(body, wire, model=model or context.request.model, flags=reading.flags, deduplicate=True)
    return observation(reading, context.consumption(reading, model=model, wire=wire), body, wire, deduplicate=True)


def eval_run(body: JSON, context: Context) -> Observation:
    """An evaluation run: one group per model that took part."""
    if context.final_only and _status(body) in _UNDER_WAY:
        return pending(body)
    parts: list[Observation] = []
    for wire in members(body, "per_model_usage"):
        reading = _sum_of(wire)
        model = text(wire, "model_name") or text(wire, "run_model_name")
        if reading.unsaid:
            return unknown(body, body["per_model_usage"], flags=reading.flags, deduplicate=True)
        parts.append(observation(reading, context.consumption(reading, model=model), body, wire, deduplicate=True))
    return joined(parts) if parts else unknown(body, body.get("per_model_usage"), deduplicate=True)


def grader(body: JSON, context: Context) -> Observation:
    """A grader's trial run: tokens per judging model. Graders that ask no model cost nothing."""
    judges = section(body, "model_grader_token_usage_per_model")
    if not judges:
        return Observation(billable=False)
    parts: list[Observation] = []
    for model, wire in judges.items():
        if not is_object(wire) or (reading := read_usage(wire)) is None or reading.unsaid:
            return unknown({"model": model}, dict(judges))
        reading = replace(reading, prompt_tokens=None)
        parts.append(observation(reading, context.consumption(reading, model=model), {"model": model}, wire))
    return joined(parts)


def _sum_of(wire: JSON) -> Reading:
    """A usage object that sums up several prompts."""
    return replace(inclusive(wire), prompt_tokens=None)


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
    "batch": batch,
    "fine_tuning.job": fine_tuning,
    "thread.run": run,
    "thread.run.step": run,
    "agent.session": agent,
    "agent.session.turn": agent,
    "eval.run": eval_run,
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
    ("batches", batch),
    ("fine_tuning.alpha.graders", grader),
    ("fine_tuning.jobs", fine_tuning),
    ("beta.threads", run),
    ("beta.agents", agent),
)
