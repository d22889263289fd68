"""Work that OpenAI bills when it has ended: batches, fine-tuning, runs, sessions, evaluations; once each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tokenmeter.providers.context import Context, joined, observation, pending, unknown
from tokenmeter.providers.openai.usage import inclusive
from tokenmeter.providers.readings import Reading, worked
from tokenmeter.providers.registry import read_usage, usage_of
from tokenmeter.providers.wire import JSON, count, is_object, members, section, text
from tokenmeter.usage import Observation, Usage

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
#: Of the statuses of an agent's turn, those after which nothing more is used.
_ENDED = frozenset({"completed", "failed", "cancelled"})
_RUNS = frozenset({"thread.run", "thread.run.step"})
_HTTP_ERROR = 400


#: Endpoints whose answers are tokens of text, by the end of their path.
_ANSWERS_IN_TOKENS = {
    "/chat/completions": "chat.completions",
    "/completions": "completions",
    "/responses": "responses",
}
#: What a whole answer says it is -> its endpoint. Other answers in a batch do not say what they are.
_ENDPOINTS = {"chat.completion": "chat.completions", "response": "responses", "text_completion": "completions"}
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
    what = text(body, "endpoint") or ""
    if what.endswith("/moderations"):
        return Observation(response_model=text(body, "model"), response_id=text(body, "id"), billable=False)
    meter = "output_image" if "/images/" in what else "output"
    endpoint = next((name for path, name in _ANSWERS_IN_TOKENS.items() if what.endswith(path)), None)
    reading = _sum_of(wire, answered=endpoint is not None, output_meter=meter)
    if reading.unsaid or not reading.usage:
        done = count(section(body, "request_counts"), "completed", flags=set())
        if done == 0 or (done is None and _status(body) not in {"", *_DONE}):
            return Observation(response_model=text(body, "model"), response_id=text(body, "id"), billable=False)
        seen = unknown(body, wire or None, model=context.request.model, flags=reading.flags, deduplicate=True)
    else:
        group = context.in_batch().consumption(reading, model=text(body, "model"), wire=wire)
        seen = observation(reading, replace(group, endpoint=endpoint), body, wire, deduplicate=True)
    # Its output file states the same bill line by line: whichever is read first is recorded under the file's id.
    return replace(seen, bill_id=text(body, "output_file_id"))


def batch_line(body: JSON, context: Context, read: Callable[[Any, Context], Observation]) -> Observation:
    """One line of a batch's output file: a whole response body inside, billed unless it is an error."""
    response = section(body, "response")
    status = response.get("status_code")
    if body.get("error") or not response or (isinstance(status, int) and status >= _HTTP_ERROR):
        return Observation(response_id=text(body, "id"), billable=False)
    answer = section(response, "body")
    inner = read(response.get("body"), replace(context, endpoint="batch line").in_batch()).with_shared()
    endpoint = _ENDPOINTS.get(text(answer, "object") or "")
    # Lines say service_tier "default"; "batch" is known from where they stand.
    groups = tuple(
        replace(group, service_tier=None if group.service_tier == "default" else group.service_tier, endpoint=endpoint)
        for group in inner.consumptions
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
    """An assistant's run or a step of it, or an event that holds one: the sum over its prompts, stated at its end."""
    body = section(body, "data") if "event" in body else body
    wire, ended = usage_of(body), text(body, "object") in _RUNS and _status(body) not in {"", *_UNDER_WAY}
    if context.final_only and not (ended or (wire and _status(body) not in _UNDER_WAY)):
        return pending(body)
    reading = _sum_of(wire, answered=_status(body) in _ANSWERED)
    if reading.unsaid:
        return unknown(body, wire or None, model=context.request.model, flags=reading.flags, deduplicate=True)
    return observation(
        reading, context.consumption(reading, model=text(body, "model"), wire=wire), body, wire, deduplicate=True
    )


def run_step(body: JSON, context: Context) -> Observation:
    """A step of an assistant's run."""
    return replace(run(body, context), instead="its run")


def agent_session(body: JSON, context: Context) -> Observation:
    """An agent's session: the sum of its turns so far."""
    return replace(agent(body, context), instead="its turns")


def agent(body: JSON, context: Context) -> Observation:
    """An agent's session or turn: cumulative, best effort by the provider's own words."""
    wire, status = usage_of(body), _status(body)
    if (context.final_only and status in _UNDER_WAY) or not (wire or status in _ENDED):
        return pending(body)
    reading = _sum_of(wire, answered=status in _ANSWERED)
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
        reading = _sum_of(wire, answered=wire.get("invocation_count") != 0)
        model = text(wire, "model_name") or text(wire, "run_model_name")
        if reading.unsaid:
            return unknown(body, body["per_model_usage"], flags=reading.flags, deduplicate=True)
        parts.append(observation(reading, context.consumption(reading, model=model), body, wire, deduplicate=True))
    return joined(parts) if parts else unknown(body, body.get("per_model_usage"), deduplicate=True)


def grader(body: JSON, context: Context) -> Observation:
    """A grader's trial run: tokens per judging model. Graders that ask no model cost nothing."""
    judges = body.get("model_grader_token_usage_per_model")
    if not is_object(judges):
        return unknown(body, None, model=context.request.model)
    if not judges:
        return Observation(billable=False)
    parts: list[Observation] = []
    for model, wire in judges.items():
        if not is_object(wire) or (said := read_usage(wire)) is None:
            return unknown({"model": model}, dict(judges))
        reading = worked(replace(said, prompt_tokens=None), answered=True)
        if reading.unsaid:
            return unknown({"model": model}, dict(judges), flags=reading.flags)
        parts.append(observation(reading, context.consumption(reading, model=model), {"model": model}, wire))
    return joined(parts)


def _sum_of(wire: JSON, *, answered: bool, output_meter: str = "output") -> Reading:
    """A usage object that sums up several prompts; what was `answered` had a prompt and an answer."""
    return worked(replace(inclusive(wire, output_meter=output_meter), prompt_tokens=None), answered=answered)
