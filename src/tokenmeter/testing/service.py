"""From a request to a reply: find the endpoint, ask the script, serve, and write the books before anything is sent."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from tokenmeter.testing.context import Context, RefusalError, Served, State
from tokenmeter.testing.errors import error_body
from tokenmeter.testing.form import decode
from tokenmeter.testing.reporting import Reports
from tokenmeter.testing.routes import Match, find
from tokenmeter.testing.script import DEFAULT, Answer, Billing, Script, StreamUsage
from tokenmeter.testing.truth import Bill, Books, Truth
from tokenmeter.testing.verbatim import serve_verbatim
from tokenmeter.testing.wire import JSON, Reply, Request, json_reply

__all__ = ["House", "Visit", "serve"]

_FIRST_ERROR = 400


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
class Visit:
    """One request being served; `answer` and `body` are filled in on the way.

    Attributes:
        house: The provider.
        request: As received.
        match: Where it goes.
        answer: What the script says.
        body: Its parameters.
    """

    house: House
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


def serve(house: House, request: Request) -> Reply:
    """The reply to a request; its truth is on the books when this returns."""
    visit = Visit(house=house, request=request, match=find(request))
    try:
        check_key(house, request)
        visit.body = decode(request) | visit.match.implied
        visit.answer = house.script.take(request.path, visit.model)
        served = _answer(visit)
    except RefusalError as refusal:
        served = _refuse(visit, refusal)
    except Exception as fault:  # noqa: BLE001 - a fault in the fake must not look like a network problem
        told = RefusalError(500, f"FakeProvider has a fault of its own: {fault!r}\n{traceback.format_exc()}")
        served = _refuse(visit, told)
    return _enter(visit, served)


def check_key(house: House, request: Request) -> None:
    """Refuse a request without a valid key.

    Raises:
        RefusalError: 401.
    """
    key = request.api_key
    if key is None:
        raise RefusalError(401, "You didn't provide an API key.")
    if house.api_keys is not None and key not in house.api_keys:
        raise RefusalError(401, f"Incorrect API key provided: ...{key[-4:]}")


def _answer(visit: Visit) -> Served:
    answer, match = visit.answer, visit.match
    if answer.error is not None:
        raise answer.error
    if answer.body is not None or answer.events is not None:
        return serve_verbatim(match, answer, visit.model)
    if match.serve is None:
        request = visit.request
        raise RefusalError(404, f"Unknown request URL: {request.method} {request.path}.", code="unknown_url")
    return match.serve(context_of(visit))


def context_of(visit: Visit) -> Context:
    """What the endpoint of a visit is given."""
    house = visit.house
    return Context(
        request=visit.request,
        body=visit.body,
        answer=visit.answer,
        params=visit.match.params,
        stream_usage=house.stream_usage,
        refusal_status=house.refusal_status,
        state=house.state,
        now=house.clock(),
        root=house.root,
        azure=visit.match.azure,
        books=house.books.snapshot,
        reports=house.reports,
        inner=lambda path, body: _serve_line(visit, path, body),
    )


def _serve_line(visit: Visit, path: str, body: JSON) -> tuple[str, Served]:
    """Serve one line of a batch as if it had come by itself; its endpoint and what was served.

    Raises:
        RefusalError: the provider refuses this line.
    """
    request = replace(visit.request, method="POST", target=path, body=b"")
    line = Visit(house=visit.house, request=request, match=find(request), body=body)
    line.answer = visit.house.script.take(path, line.model)
    if line.match.serve is None or line.match.name is None:
        raise RefusalError(404, f"Unknown batch URL: {path}.")
    if line.answer.error is not None:
        raise line.answer.error
    return line.match.name, line.match.serve(replace(context_of(line), batch=True))


def _refuse(visit: Visit, refusal: RefusalError) -> Served:
    request_id = visit.house.state.new_id("req_")
    body = error_body(visit.match.provider, refusal, request_id=request_id)
    return Served(reply=json_reply(body, status=refusal.status, headers={visit.id_header: request_id}))


# -- the books


def _enter(visit: Visit, served: Served) -> Reply:
    """Enter what was served, and arrange that an incomplete delivery is put right in the books."""
    reply, answer, house = served.reply, visit.answer, visit.house
    reply.headers.setdefault(visit.id_header, house.state.new_id("req_"))
    reply.headers.update(answer.headers)
    reply.delivery = answer.delivery
    if reply.status < _FIRST_ERROR and answer.status != DEFAULT.status:
        reply.status = answer.status
    policy = answer.billing or ("nothing" if answer.delivery.reset else house.billing)
    truth = _record(visit, reply, _due_at_once(served.bill, reply, policy, billed=answer.billed), visit.match.name)
    for endpoint, line in served.lines:
        _record(visit, reply, line, endpoint)
    if served.bill is not None and truth.complete and truth.billed:
        reply.ended = _ending(house.books, truth, served.bill, reply, policy)
    return reply


def _record(visit: Visit, reply: Reply, bill: Bill | None, endpoint: str | None) -> Truth:
    request, delivery = visit.request, reply.delivery
    return visit.house.books.record(
        bill,
        at=visit.house.clock(),
        provider=visit.match.provider,
        endpoint=endpoint,
        method=request.method,
        path=request.path,
        request_model=visit.model,
        api_key=request.api_key,
        request_id=reply.headers[visit.id_header],
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
