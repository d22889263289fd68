"""From a request to a reply: serve what is scripted, or the endpoint, and write the books before anything is sent."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, cast

from tokenmeter.testing.composition import read_chat, read_messages, read_responses
from tokenmeter.testing.context import (
    DEFAULT,
    Answer,
    Billing,
    Context,
    RefusalError,
    Script,
    Served,
    State,
    StreamUsage,
    decode,
    error_body,
)
from tokenmeter.testing.google_content import read_google
from tokenmeter.testing.openai_chat import SSE
from tokenmeter.testing.routes import Match, find
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import JSON, Event, Reply, Request, json_reply, sse
from tokenmeter.usage import Consumption, Usage
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from datetime import datetime

    from tokenmeter.testing.truth import Books, Reports, Truth


_FIRST_ERROR = 400


@dataclass(slots=True, kw_only=True)
class Service:
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
        reports: How it reports usage and costs.
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
    reports: Reports
    root: str = ""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request being served; `answer` and `body` are filled in on the way.

    Attributes:
        service: The provider.
        request: As received.
        match: Where it goes.
        answer: What the script says.
        body: Its parameters.
    """

    service: Service
    request: Request
    match: Match
    answer: Answer = DEFAULT
    body: JSON = field(default_factory=dict[str, Any])

    @property
    def model(self) -> str | None:
        """The model the caller named."""
        model = self.body.get("model")
        return model if isinstance(model, str) else None

    @property
    def id_header(self) -> str:
        """The response header with the request's id."""
        return "request-id" if self.match.provider == "anthropic" else "x-request-id"


def serve(service: Service, request: Request) -> Reply:
    """The reply to a request; its truth is on the books when this returns."""
    exchange = Exchange(service=service, request=request, match=find(request))
    try:
        check_key(service, request)
        exchange.body = decode(request) | exchange.match.implied
        # Taken after the key was checked: a refused request uses up nothing of the script.
        exchange.answer = service.script.take(request.path, exchange.model)
        served = _answer(exchange)
    except RefusalError as refusal:
        served = _refuse(exchange, refusal)
    except Exception as fault:  # noqa: BLE001 - a fault in the fake must not look like a network problem
        told = RefusalError(500, f"FakeProvider has a fault of its own: {fault!r}\n{traceback.format_exc()}")
        served = _refuse(exchange, told)
    return _enter(exchange, served)


def check_key(service: Service, request: Request) -> None:
    """Refuse a request without a valid key.

    Raises:
        RefusalError: 401.
    """
    key = request.api_key
    if key is None and "upload_id" in request.query:  # whoever has the URL may write there
        return
    if key is None:
        raise RefusalError(401, "You didn't provide an API key.")
    if service.api_keys is not None and key not in service.api_keys:
        raise RefusalError(401, f"Incorrect API key provided: ...{key[-4:]}")


def _answer(exchange: Exchange) -> Served:
    answer, match = exchange.answer, exchange.match
    if answer.error is not None:
        raise answer.error
    if answer.body is not None or answer.events is not None:
        return serve_verbatim(match, answer, exchange.model)
    if match.serve is None:
        request = exchange.request
        raise RefusalError(404, f"Unknown request URL: {request.method} {request.path}.", code="unknown_url")
    return match.serve(context_of(exchange))


def context_of(exchange: Exchange) -> Context:
    """What the endpoint of a exchange is given."""
    service = exchange.service
    return Context(
        request=exchange.request,
        body=exchange.body,
        answer=exchange.answer,
        params=exchange.match.params,
        stream_usage=service.stream_usage,
        refusal_status=service.refusal_status,
        state=service.state,
        now=service.clock(),
        root=service.root,
        azure=exchange.match.azure,
        books=service.books.snapshot,
        reports=service.reports,
        inner=lambda path, body: _serve_line(exchange, path, body),
    )


def _serve_line(exchange: Exchange, path: str, body: JSON) -> tuple[str, Served]:
    """Serve one line of a batch as if it had come by itself; its endpoint and what was served.

    Raises:
        RefusalError: the provider refuses this line.
    """
    request = replace(exchange.request, method="POST", target=path, body=b"")
    line = Exchange(service=exchange.service, request=request, match=find(request), body=body)
    line.answer = exchange.service.script.take(path, line.model)
    if line.match.serve is None or line.match.name is None:
        raise RefusalError(404, f"Unknown batch URL: {path}.")
    if line.answer.error is not None:
        raise line.answer.error
    return line.match.name, line.match.serve(replace(context_of(line), batch=True))


def _refuse(exchange: Exchange, refusal: RefusalError) -> Served:
    request_id = exchange.service.state.new_id("req_")
    body = error_body(exchange.match.provider, refusal, request_id=request_id)
    return Served(reply=json_reply(body, status=refusal.status, headers={exchange.id_header: request_id}))


# -- the books


def _enter(exchange: Exchange, served: Served) -> Reply:
    """Enter what was served, and arrange that an incomplete delivery is put right in the books."""
    reply, answer, service = served.reply, exchange.answer, exchange.service
    reply.headers.setdefault(exchange.id_header, service.state.new_id("req_"))
    reply.headers.update(answer.headers)
    reply.delivery = answer.delivery
    if reply.status < _FIRST_ERROR and answer.status != DEFAULT.status:
        reply.status = answer.status
    policy = answer.billing or ("nothing" if answer.delivery.reset else service.billing)
    truth = _record(
        exchange, reply, _due_at_once(served.bill, reply, policy, billed=answer.billed), exchange.match.name
    )
    for endpoint, line in served.lines:
        _record(exchange, reply, line, endpoint)
    if served.bill is not None and truth.complete and truth.billed:
        reply.ended = _ending(service.books, truth, served.bill, reply, policy)
    return reply


def _record(exchange: Exchange, reply: Reply, bill: Bill | None, endpoint: str | None) -> Truth:
    request, delivery = exchange.request, reply.delivery
    return exchange.service.books.record(
        bill,
        at=exchange.service.clock(),
        provider=exchange.match.provider,
        endpoint=endpoint,
        method=request.method,
        path=request.path,
        request_model=exchange.model,
        api_key=request.api_key,
        request_id=reply.headers[exchange.id_header],
        status=0 if delivery.reset else reply.status,
        streamed=reply.events is not None,
        complete=delivery.cut_after is None and not delivery.reset,
    )


def _due_at_once(bill: Bill | None, reply: Reply, policy: Billing, *, billed: bool) -> Bill | None:
    """The bill as it is known before sending: what is cut on purpose is billed by `policy`."""
    delivery = reply.delivery
    if bill is not None and not billed:
        return replace(bill, free=True)
    if bill is None or not (delivery.reset or delivery.cut_after is not None):
        return bill
    return _part_of(bill, reply, policy, delivery.cut_after or 0)


def _part_of(bill: Bill, reply: Reply, policy: Billing, sent: int) -> Bill:
    """What an answer costs of which `sent` events went out."""
    if policy == "generated":
        return bill
    if policy == "nothing":
        return replace(bill, free=True)
    if reply.events is None:
        return bill  # a body is generated whole before its first byte leaves
    generated = reply.events[min(sent, len(reply.events)) - 1].generated if sent else 0
    return bill.cut_at(generated)


def _ending(books: Books, truth: Truth, bill: Bill, reply: Reply, policy: Billing) -> Callable[[int, bool], None]:
    def ended(sent: int, complete: bool) -> None:
        if not complete:
            due = _part_of(bill, reply, policy, sent)
            books.amend(truth.sequence, complete=False, consumptions=due.consumptions, billed=due.billed)

    return ended


def serve_verbatim(match: Match, answer: Answer, request_model: str | None) -> Served:
    """Serve `answer`'s own body or events."""
    told: Mapping[str, Any] = {}
    body: object = answer.body
    if answer.events is not None:
        reply = Reply(headers=dict(SSE), events=tuple(map(_event, answer.events)))
    elif isinstance(body, str):
        reply = Reply(body=body.encode())
    elif isinstance(body, bytes):
        reply = Reply(body=body)
    else:
        reply = json_reply(body)
        told = cast("Mapping[str, Any]", body) if isinstance(body, Mapping) else {}
    reply.status = answer.status
    return Served(reply=reply, bill=_bill(match, answer, request_model, told))


def _event(event: Event | Mapping[str, Any] | str | bytes) -> Event:
    if isinstance(event, Event):
        return event
    if isinstance(event, str | bytes):
        return Event(event.encode() if isinstance(event, str) else event)
    kind = event.get("type")
    return sse(event, event=kind if isinstance(kind, str) else None)


def _bill(match: Match, answer: Answer, request_model: str | None, told: Mapping[str, Any]) -> Bill:
    wire = answer.usage if answer.usage is not None else told.get("usage") or told.get("usageMetadata")
    usage = Usage()
    if answer.meters is not None:
        usage = Usage(dict(answer.meters), answer.reasoning_tokens or 0)
    elif answer.status < _FIRST_ERROR:
        usage = _read(match, wire)
    model = answer.model or told.get("model") or told.get("modelVersion") or request_model
    part = Consumption(
        model=model, usage=usage, service_tier=answer.service_tier, prompt_tokens=usage.input_tokens or None
    )
    return Bill(
        model=model,
        response_id=answer.response_id or told.get("id") or told.get("responseId"),
        consumptions=(*((part,) if usage else ()), *answer.also),
        wire_usage=wire,
        service_tier=answer.service_tier,
    )


def _read(match: Match, wire: object) -> Usage:
    """What a scripted usage object bills; nothing when it is none that a provider would send (then give ``meters``)."""
    if not isinstance(wire, Mapping):
        return Usage()
    try:
        usage = _reader(match)(cast("Mapping[str, Any]", wire))
    except (AttributeError, TypeError, ValueError):
        return Usage()
    return usage if all(type(quantity) is int and quantity >= 0 for quantity in usage.quantities.values()) else Usage()


def _reader(match: Match) -> Callable[[Mapping[str, Any]], Usage]:
    if match.provider == "google":
        return read_google
    if match.provider == "anthropic":
        return read_messages
    return read_chat if match.name in {"chat.completions", "completions", "embeddings"} else read_responses
