"""From a request to a reply: find the endpoint, ask the script, serve, and write the books before anything is sent."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast

from tokenmeter.testing import wire_usage
from tokenmeter.testing.context import Context, RefusalError, Served, State
from tokenmeter.testing.errors import error_body
from tokenmeter.testing.form import decode
from tokenmeter.testing.openai_chat import SSE
from tokenmeter.testing.routes import Match, find
from tokenmeter.testing.script import DEFAULT, Answer, Billing, Script, StreamUsage
from tokenmeter.testing.truth import Bill, Books, Truth
from tokenmeter.testing.wire import JSON, Event, Reply, Request, json_reply, sse
from tokenmeter.usage import Consumption, Usage

__all__ = ["House", "RefusalError", "serve"]


@dataclass(slots=True, kw_only=True)
class House:
    """Everything one provider consists of, besides its socket.

    Attributes:
        books: What it billed.
        script: What it is to answer.
        state: What it keeps.
        stream_usage: How chat streams report usage.
        refusal_status: Status with which ``stream_options`` is refused.
        billing: What an incomplete answer costs.
        api_keys: Valid keys; None = all.
        clock: Tells the time.
        root: URL of the server.
    """

    books: Books
    script: Script
    state: State
    stream_usage: StreamUsage
    refusal_status: int
    billing: Billing
    api_keys: frozenset[str] | None
    clock: Callable[[], datetime]
    root: str = ""


def serve(house: House, request: Request) -> Reply:
    """The reply to a request; its truth is on the books when this returns."""
    match = find(request)
    answer, body, served = DEFAULT, cast("JSON", {}), None
    try:
        _check_key(house, request)
        body = decode(request)
        if match.model is not None:
            body.setdefault("model", match.model)
        answer = house.script.take(request.path, _text(body.get("model")))
        served = _answer(house, request, match, answer, body)
    except RefusalError as refusal:
        served = _refuse(house, request, match, refusal, answer)
    except Exception as fault:  # noqa: BLE001 - a fault in the fake must not look like a network problem
        told = RefusalError(500, f"FakeProvider has a fault of its own: {fault!r}\n{traceback.format_exc()}")
        served = _refuse(house, request, match, told, answer)
    return _enter(house, request, match, answer, body, served)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _check_key(house: House, request: Request) -> None:
    if request.api_key is None:
        raise RefusalError(401, "You didn't provide an API key.")
    if house.api_keys is not None and request.api_key not in house.api_keys:
        raise RefusalError(401, f"Incorrect API key provided: ...{request.api_key[-4:]}")


def _answer(house: House, request: Request, match: Match, answer: Answer, body: JSON) -> Served:
    if answer.error is not None:
        raise answer.error
    if match.serve is None and answer.body is None and answer.events is None:
        raise RefusalError(404, f"Unknown request URL: {request.method} {request.path}.", code="unknown_url")
    if answer.body is not None or answer.events is not None:
        return _verbatim(match, answer, body)
    assert match.serve is not None  # noqa: S101 - checked above
    context = Context(
        request=request,
        body=body,
        answer=answer,
        params=match.params,
        stream_usage=house.stream_usage,
        refusal_status=house.refusal_status,
        state=house.state,
        now=house.clock(),
        root=house.root,
        beta="beta" in request.query,
        azure=match.azure,
        books=house.books.snapshot,
    )
    return match.serve(context)


def _refuse(house: House, request: Request, match: Match, refusal: RefusalError, answer: Answer) -> Served:
    request_id = house.state.new_id("req_")
    body = error_body(match.provider, refusal, request_id=request_id)
    headers = {_id_header(match): request_id, **answer.headers}
    return Served(reply=json_reply(body, status=refusal.status, headers=headers))


def _id_header(match: Match) -> str:
    return "request-id" if match.provider == "anthropic" else "x-request-id"


# -- scripted bodies


def _verbatim(match: Match, answer: Answer, body: JSON) -> Served:
    """A scripted body or event list as it stands; billed for the meters or the usage it was given."""
    if answer.events is not None:
        reply = Reply(status=answer.status, headers=dict(SSE), events=tuple(map(_event, answer.events)))
        return Served(reply=reply, bill=_verbatim_bill(match, answer, body, {}))
    if isinstance(answer.body, (bytes, str)):
        raw = answer.body if isinstance(answer.body, bytes) else answer.body.encode()
        return Served(reply=Reply(status=answer.status, body=raw), bill=_verbatim_bill(match, answer, body, {}))
    told = cast("JSON", answer.body) if isinstance(answer.body, dict) else {}
    reply = json_reply(answer.body, status=answer.status)
    return Served(reply=reply, bill=_verbatim_bill(match, answer, body, told))


def _event(event: Event | Any) -> Event:
    if isinstance(event, Event):
        return event
    if isinstance(event, (bytes, str)):
        return Event(event.encode() if isinstance(event, str) else event)
    return sse(event, event=event.get("type") if isinstance(event.get("type"), str) else None)


def _verbatim_bill(match: Match, answer: Answer, body: JSON, told: JSON) -> Bill | None:
    wire = answer.usage if answer.usage is not None else told.get("usage")
    if answer.meters is not None:
        usage = Usage(dict(answer.meters), answer.reasoning_tokens or 0)
    elif wire is not None and answer.status < 400:  # noqa: PLR2004 - the first error status
        usage = _reader(match)(wire)
    else:
        usage = Usage()
    model = answer.model or told.get("model") or body.get("model")
    part = Consumption(
        model=model, usage=usage, service_tier=answer.service_tier, prompt_tokens=usage.input_tokens or None
    )
    consumptions = (*((part,) if usage else ()), *answer.also)
    response_id = answer.response_id or told.get("id")
    return Bill(model=model, response_id=response_id, consumptions=consumptions, wire_usage=wire)


def _reader(match: Match) -> Callable[[Any], Usage]:
    if match.provider == "anthropic":
        return wire_usage.read_messages
    if match.name in {"chat.completions", "completions", "embeddings"}:
        return wire_usage.read_chat
    return wire_usage.read_responses


# -- the books


def _enter(house: House, request: Request, match: Match, answer: Answer, body: JSON, served: Served) -> Reply:
    """Enter what was served, and arrange that an incomplete delivery is put right in the books."""
    reply, bill = served.reply, served.bill
    request_id = reply.headers.setdefault(_id_header(match), house.state.new_id("req_"))
    reply.headers.update(answer.headers)
    if answer.status != DEFAULT.status and reply.status == DEFAULT.status:
        reply.status = answer.status
    reply.delivery = answer.delivery
    facts = {
        "at": house.clock(),
        "provider": match.provider,
        "endpoint": match.name,
        "method": request.method,
        "path": request.path,
        "request_model": _text(body.get("model")),
        "api_key": request.api_key,
        "request_id": request_id,
    }
    policy = answer.billing or ("nothing" if answer.delivery.reset else house.billing)
    due = _due_at_once(bill, answer, reply, policy)
    truth = house.books.record(
        due,
        status=0 if answer.delivery.reset else reply.status,
        streamed=reply.events is not None,
        complete=answer.delivery.cut_after is None and not answer.delivery.reset,
        **facts,
    )
    for endpoint, line in served.lines:
        house.books.record(line, status=200, streamed=False, complete=True, **{**facts, "endpoint": endpoint})
    reply.ended = _ending(house.books, truth, bill, reply, policy)
    return reply


def _due_at_once(bill: Bill | None, answer: Answer, reply: Reply, policy: Billing) -> Bill | None:
    """The bill as it is known before sending: what is cut on purpose is billed by `policy`."""
    delivery = answer.delivery
    if bill is None or not (delivery.reset or delivery.cut_after is not None):
        return bill
    return _part_of(bill, reply, policy, delivery.cut_after or 0)


def _part_of(bill: Bill, reply: Reply, policy: Billing, sent: int) -> Bill:
    """What an answer costs of which `sent` events went out."""
    if policy == "generated":
        return bill
    if policy == "nothing":
        return replace(bill, consumptions=())
    if reply.events is None:
        return bill  # a body is generated whole before its first byte leaves
    generated = reply.events[min(sent, len(reply.events)) - 1].generated if sent else 0
    return bill.cut_at(generated)


def _ending(
    books: Books, truth: Truth, bill: Bill | None, reply: Reply, policy: Billing
) -> Callable[[int, bool], None]:
    def ended(sent: int, complete: bool) -> None:  # noqa: FBT001 - a callback's signature
        if complete or not truth.complete:
            return
        due = None if bill is None else _part_of(bill, reply, policy, sent)
        parts = due.consumptions if due else ()
        books.amend(truth.sequence, complete=False, consumptions=parts, billed=any(part.usage for part in parts))

    return ended
