"""A provider on 127.0.0.1: real HTTP, the wire formats of three providers, and its own books of what it billed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self

from tokenmeter.ledger import utcnow
from tokenmeter.testing import service
from tokenmeter.testing.context import Answer, Billing, RefusalError, Script, State, StreamUsage, ToolCall
from tokenmeter.testing.truth import Books, GroupBy, Reports, Truth
from tokenmeter.testing.wire import Delivery, Event, Reply, Request, Server
from tokenmeter.usage import Consumption, Quantity, Usage


class FakeProvider:
    """Serves the providers' APIs from this process, without a network, and remembers what each request cost.

    Point an SDK's ``base_url`` at it; any key is accepted. Answers are made up from the request, and the same
    request gets the same answer; `answer` scripts others, `fail` and the other verbs let things go wrong.

        with FakeProvider() as provider:
            client = OpenAI(base_url=provider.openai_url, api_key="test")
            client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hi"}])
            assert provider.truth[0].meters.output_tokens == 4

    Args:
        stream_usage: How chat streams report usage; ``"openai"`` as OpenAI does (see `StreamUsage`).
        refusal_status: Status with which a host refuses ``stream_options`` (``stream_usage="refuse"``).
        billing: What an answer that was not delivered whole costs: ``"generated"``, all of it, since a provider goes
            on generating (the default); ``"sent"``, up to the last event sent; ``"nothing"``.
        api_keys: Keys that are valid; None accepts every key. A request without a key always gets a 401.
        clock: Tells the provider's time, aware UTC.
        reports: How its usage and cost reports price, delay or round; see `Reports`.
        realtime: Whether WebSocket connections are served too; needs the ``websockets`` package.
        port: 0 takes any free port.
    """

    def __init__(
        self,
        *,
        stream_usage: StreamUsage = "openai",
        refusal_status: int = 400,
        billing: Billing = "generated",
        api_keys: Collection[str] | None = None,
        clock: Callable[[], datetime] = utcnow,
        reports: Reports | None = None,
        realtime: bool = False,
        port: int = 0,
    ) -> None:
        self._service = service.Service(
            books=Books(),
            script=Script(),
            state=State(),
            stream_usage=stream_usage,
            refusal_status=refusal_status,
            billing=billing,
            api_keys=None if api_keys is None else frozenset(api_keys),
            clock=clock,
            reports=reports or Reports(),
        )
        self._realtime = realtime
        self._port = port
        self._server: Server | None = None
        self._lock = threading.Lock()
        self._requests: list[Request] = []

    # -- life

    def start(self) -> Self:
        """Listen. A provider that was stopped can be started again; it keeps its books."""
        if self._server is None:
            self._server = Server(self._serve, upgrade=self._upgrade(), port=self._port)
            self._service.root = self.url
            self._server.start()
        return self

    def stop(self) -> None:
        """Close the port and every connection. The books stay readable."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _upgrade(self) -> Any:
        if not self._realtime:
            return None
        from tokenmeter.testing import realtime  # noqa: PLC0415 - needs an optional package

        return realtime.Connections(self._service)

    # -- addresses

    @property
    def url(self) -> str:
        """Root URL, without a trailing slash.

        Raises:
            RuntimeError: it is not started.
        """
        if self._server is None:
            raise RuntimeError("FakeProvider is not running: use it in a with block, or call start() first.")
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def openai_url(self) -> str:
        """``base_url`` for the openai SDK."""
        return f"{self.url}/v1"

    @property
    def anthropic_url(self) -> str:
        """``base_url`` for the anthropic SDK."""
        return self.url

    @property
    def google_url(self) -> str:
        """``http_options={"base_url": ...}`` for Google's Gen AI SDK."""
        return self.url

    # -- what it knows

    @property
    def truth(self) -> list[Truth]:
        """Every request answered so far, in order, billed or not."""
        return self._service.books.snapshot()

    @property
    def billed(self) -> list[Truth]:
        """The part of `truth` that costs something."""
        return [truth for truth in self.truth if truth.billed]

    def usage(self, by: GroupBy = "model") -> Mapping[str | None, Usage]:
        """Billed quantities per model, ``api_key`` (its last four characters), ``endpoint``, ..."""
        return self._service.books.totals(by)

    @property
    def total(self) -> Usage:
        """Everything billed."""
        return Usage.total(truth.meters for truth in self.truth)

    @property
    def requests(self) -> list[Request]:
        """Every HTTP request as received, in order."""
        with self._lock:
            return list(self._requests)

    @property
    def reports(self) -> Reports:
        """How its usage and cost reports price, delay or round; may be set at any time."""
        return self._service.reports

    @reports.setter
    def reports(self, reports: Reports) -> None:
        self._service.reports = reports

    def reset(self) -> None:
        """Forget requests, books, kept objects and scripted answers."""
        with self._lock:
            self._requests.clear()
        self._service.books.clear()
        self._service.script.clear()
        self._service.state.clear()

    # -- what it is to say

    def answer(
        self,
        text: str | None = None,
        *,
        path: str | None = None,
        for_model: str | None = None,
        times: int | None = 1,
        meters: Mapping[str, Quantity] | None = None,
        usage: Mapping[str, Any] | None = None,
        reasoning: str | None = None,
        reasoning_tokens: int | None = None,
        omit_usage: bool = False,
        tool_calls: Sequence[ToolCall] = (),
        output: Sequence[Mapping[str, Any]] = (),
        model: str | None = None,
        service_tier: str | None = None,
        speed: str | None = None,
        inference_geo: str | None = None,
        stop_reason: str | None = None,
        response_id: str | None = None,
        iterations: Sequence[Mapping[str, Any]] = (),
        also: Sequence[Consumption] = (),
        fields: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        status: int = 200,
        body: Any = None,
        events: Sequence[Event | Mapping[str, Any] | str | bytes] | None = None,
        stream_usage: StreamUsage | None = None,
        billing: Billing | None = None,
        billed: bool = True,
        delay: float = 0.0,
        chunk_delay: float = 0.0,
        cut_after: int | None = None,
        reset: bool = False,
        encoding: Literal["gzip", "deflate"] | None = None,
        split: int = 0,
    ) -> None:
        """Script the answer to the next `times` matching requests. What is left out is made up as usual.

        Answers wait in a queue; each request takes the first that matches it.

        Args:
            text: What the answer says.
            path: Only for URL paths like this (shell pattern, ``"*/chat/completions"``); None = any.
            for_model: Only for requests of models like this (shell pattern); None = any.
            times: For how many requests; None = all that match, whenever no other answer is waiting.
            meters: Exact disjoint quantities, ``{"input": 70, "cache_read": 30, "output": 20}``: they are billed,
                and the usage object on the wire is made from them.
            usage: The exact usage object on the wire; what is billed is read from it, unless `meters` is given too.
            reasoning: Reasoning summary or thinking in the answer.
            reasoning_tokens: Part of the output that was reasoning.
            omit_usage: The answer carries no usage. It is billed all the same.
            tool_calls: ``(name, arguments)`` of tools to call.
            output: Raw output items (responses) or content blocks (messages) to put before the text.
            model: Model that answers, where it is not the one asked for.
            service_tier: Tier that serves.
            speed: Anthropic's ``"fast"`` or ``"standard"``.
            inference_geo: Anthropic's inference geography.
            stop_reason: ``finish_reason`` or ``stop_reason``.
            response_id: Id of the answer.
            iterations: Anthropic's beta ``usage.iterations``: ``{"type": "compaction", "meters": {...}}``, or
                ``advisor_message`` with its ``model``; each is billed beside the message.
            also: What else the request costs: hosted tools, an image model, a transcription.
            fields: Laid over the JSON body; in a stream over the object that carries usage. With `meters` it scripts a
                host that bills and counts badly: ``{"usage": None}``, ``{"usage": {"prompt_tokens": "900"}}``.
            headers: Further response headers.
            status: HTTP status.
            body: The whole body instead of a made-up one: bytes, text, or a value to send as JSON.
            events: All events of a stream instead of made-up ones: values to send as JSON, or text and bytes as are.
            stream_usage: How this chat stream reports usage.
            billing: What it costs when it is not delivered whole.
            billed: False for an answer that the provider waives though it carries usage.
            delay: Seconds before the first byte.
            chunk_delay: Seconds between a stream's events.
            cut_after: The connection ends after so many events of a stream, or bytes of a body.
            reset: The connection is reset before the answer; billed only with ``billing="generated"``.
            encoding: Compress the body.
            split: Send a stream in pieces of so many bytes.
        """
        delivery = Delivery(
            delay=delay, chunk_delay=chunk_delay, cut_after=cut_after, reset=reset, encoding=encoding, split=split
        )
        scripted = Answer(
            text=text,
            tool_calls=tuple(tool_calls),
            reasoning=reasoning,
            model=model,
            service_tier=service_tier,
            speed=speed,
            inference_geo=inference_geo,
            stop_reason=stop_reason,
            response_id=response_id,
            meters=meters,
            reasoning_tokens=reasoning_tokens,
            usage=usage,
            omit_usage=omit_usage,
            iterations=tuple(iterations),
            output=tuple(output),
            also=tuple(also),
            fields=fields or {},
            status=status,
            headers=headers or {},
            body=body,
            events=events,
            stream_usage=stream_usage,
            billing=billing,
            billed=billed,
            delivery=delivery,
        )
        self._service.script.add(scripted, path=path, model=for_model, times=times)

    def script(
        self, answer: Answer, *, path: str | None = None, for_model: str | None = None, times: int | None = 1
    ) -> None:
        """Like `answer`, with a ready-made `Answer`."""
        self._service.script.add(answer, path=path, model=for_model, times=times)

    def fail(
        self,
        status: int = 500,
        *,
        message: str = "The fake provider was told to fail.",
        kind: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        times: int | None = 1,
        path: str | None = None,
        for_model: str | None = None,
        delay: float = 0.0,
    ) -> None:
        """Answer the next `times` matching requests with an error, which is not billed.

        Args:
            status: HTTP status, 400 or above.
            message: For people.
            kind: The error's ``type``; None = the usual one for the status.
            code: OpenAI's ``code``, for example ``"insufficient_quota"``.
            retry_after: Seconds, sent as ``retry-after`` and, for waits under a second, ``retry-after-ms``.
            times: For how many requests; None = all that match.
            path: As for `answer`.
            for_model: As for `answer`.
            delay: Seconds before the first byte.
        """
        headers: dict[str, str] = {}
        if retry_after is not None:
            headers = {"retry-after": f"{retry_after:g}", "retry-after-ms": f"{retry_after * 1000:g}"}
        refusal = RefusalError(status, message, kind=kind, code=code)
        failing = Answer(status=status, error=refusal, headers=headers, delivery=Delivery(delay=delay))
        self._service.script.add(failing, path=path, model=for_model, times=times)

    def reset_connection(self, *, times: int = 1, path: str | None = None, billed: bool = False) -> None:
        """Reset the connection instead of answering; `billed` when the answer was generated and then lost."""
        self.answer(times=times, path=path, reset=True, billing="generated" if billed else "nothing")

    def cut(self, after: int, *, times: int = 1, path: str | None = None, billing: Billing | None = None) -> None:
        """End the connection after so many events of the next stream (bytes of the next body)."""
        self.answer(times=times, path=path, cut_after=after, billing=billing)

    # -- serving

    def _serve(self, method: str, target: str, headers: tuple[tuple[str, str], ...], body: bytes) -> Reply:
        with self._lock:
            number = len(self._requests) + 1
            request = Request(number, self._service.clock(), method, target, headers, body)
            self._requests.append(request)
        return service.serve(self._service, request)
