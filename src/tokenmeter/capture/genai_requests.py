"""The seam to Google's SDK, which is of another make than OpenAI's and Anthropic's: what happens around its requests.

Everything that a client and its resources (models, chats, batches, ...) send goes through four methods of the one API
client they share, outside the SDK's retries and above every transport. Its class gets hooks before it, so the client
keeps its type, its signatures and its reference counts. What is hooked tells the call's `InFlight` and its `Exchange`,
and hands on what the SDK made.
"""

# ruff: noqa: D102 - what stands before the SDK's methods

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from copy import deepcopy
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from tokenmeter.capture.cancelled import Step, timer
from tokenmeter.capture.sdk import CACHES, HITS, LITELLM_HIT, UnopenedStoreError, binding_of, complain
from tokenmeter.errors import ConfigurationError

if TYPE_CHECKING:
    from tokenmeter.capture.calls import InFlight
    from tokenmeter.capture.responses import Exchange

_KEY_HEADER = "x-goog-api-key"
_TIER_HEADER = "x-gemini-service-tier"
#: How a request to Vertex AI asks for a tier.
_WANTED_TIER_HEADER = "x-vertex-ai-llm-shared-request-type"


# -- hooks


def put_before(thing: Any, hooks: type[Any]) -> None:
    """Put `hooks` before the class of `thing`, under its name: no reference of ours keeps it alive."""
    kind: type[Any] = thing.__class__
    if issubclass(kind, hooks):
        return
    made = put_together.get((kind, hooks))
    if made is None:
        body: dict[str, Any] = {
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            "__doc__": kind.__doc__,
            "__reduce_ex__": functools.partialmethod(_reduced, kind, hooks),
            **_under_its_signature(kind, hooks),
        }
        made = put_together[kind, hooks] = type(kind.__name__, (hooks, kind), body)
    thing.__class__ = made


def _under_its_signature(kind: type[Any], hooks: type[Any]) -> dict[str, FunctionType]:
    """The methods of `hooks` that stand before some of `kind`, with the names, signatures and docstrings of these."""
    made: dict[str, FunctionType] = {}
    for name, hook in vars(hooks).items():
        if isinstance(hook, FunctionType) and hasattr(kind, name):
            own = FunctionType(hook.__code__, hook.__globals__, name, hook.__defaults__, hook.__closure__)
            own.__kwdefaults__ = hook.__kwdefaults__
            functools.update_wrapper(own, getattr(kind, name))
            made[name] = own
    return made


def _reduced(thing: Any, kind: Any, hooks: type[Any], protocol: int) -> tuple[Any, ...]:
    """For copies, which are metered as well, and for pickles, which know the class by the SDK's name alone."""
    reduced: tuple[Any, ...] = kind.__reduce_ex__(thing, max(protocol, 2))
    return _mixed_again, (kind, hooks), *reduced[2:]


def _mixed_again(kind: Any, hooks: type[Any]) -> Any:
    made = kind.__new__(kind)
    put_before(made, hooks)
    return made


#: What was put together of which; so a class of the SDK has one of ours, and `isinstance` stays cheap.
put_together: dict[tuple[type[Any], type[Any]], type[Any]] = {}


# -- the four methods, and the download of a batch's results

if TYPE_CHECKING:

    class _ApiClient:
        """What the hooks stand before, as far as they know it."""

        _http_options: Any

        def request(self, http_method: str, path: str, request_dict: Any, http_options: Any = None) -> Any: ...
        def request_streamed(
            self, http_method: str, path: str, request_dict: Any, http_options: Any = None
        ) -> Iterator[Any]: ...
        async def async_request(
            self, http_method: str, path: str, request_dict: Any, http_options: Any = None
        ) -> Any: ...
        async def async_request_streamed(
            self, http_method: str, path: str, request_dict: Any, http_options: Any = None
        ) -> Any: ...
        def _request_once(self, *args: Any, **kwargs: Any) -> Any: ...
        async def _async_request_once(self, *args: Any, **kwargs: Any) -> Any: ...
        def download_file(self, path: str, **options: Any) -> Any: ...
        async def async_download_file(self, path: str, **options: Any) -> Any: ...

else:
    _ApiClient = object


class Requests(_ApiClient):
    """Before the class of a client's API client."""

    @property
    def base_url(self) -> str:
        """Where it sends to, under the name that other SDKs' clients have it by."""
        return str(getattr(self._http_options, "base_url", None) or "")

    def request(self, http_method: str, path: str, request_dict: Any, http_options: Any = None) -> Any:
        call = open_request(self, http_method, path, request_dict, http_options)
        send = super().request
        if call is None:
            return send(http_method, path, request_dict, http_options)
        return carry_out(
            call,
            lambda: send(http_method, path, *_capped_request(call, self, request_dict, http_options)),
            functools.partial(_answered, call),
        )

    async def async_request(self, http_method: str, path: str, request_dict: Any, http_options: Any = None) -> Any:
        call = await open_request_async(self, http_method, path, request_dict, http_options)
        send = super().async_request
        if call is None:
            return await send(http_method, path, request_dict, http_options)
        return await carry_out_async(
            call,
            lambda: send(http_method, path, *_capped_request(call, self, request_dict, http_options)),
            functools.partial(_answered, call),
        )

    def request_streamed(
        self, http_method: str, path: str, request_dict: Any, http_options: Any = None
    ) -> Iterator[Any]:
        call = open_request(self, http_method, path, request_dict, http_options, streamed=True)
        if call is None:
            yield from super().request_streamed(http_method, path, request_dict, http_options)
            return
        exchange: Exchange | None = None
        kept = _WrittenAtLast(None)
        try:
            call.authorize()
            call.attempts = 1
            cached = None
            for answer in _with_tries(
                call,
                super().request_streamed(http_method, path, *_capped_request(call, self, request_dict, http_options)),
            ):
                if cached is None:
                    cached = is_cached(call, answer)
                if not (call.answers or cached):
                    exchange = _begun(call)
                    kept = _WrittenAtLast(exchange)
                    call.returned()
                _hear(call, exchange, answer)
                yield answer
            if not (call.answers or cached):
                exchange = _begun(call)
            if exchange is not None:
                exchange.ended = True
            call.returned()
        except GeneratorExit:
            raise
        except BaseException as error:
            call.raised(error)
            raise
        finally:
            if exchange is not None:
                exchange.finish()
            del kept

    async def async_request_streamed(
        self, http_method: str, path: str, request_dict: Any, http_options: Any = None
    ) -> Any:
        call = await open_request_async(self, http_method, path, request_dict, http_options, streamed=True)
        if call is None:
            return await super().async_request_streamed(http_method, path, request_dict, http_options)
        try:
            await call.authorize_async()
            call.attempts = 1
            until = _given_up(self, http_options)
            with _Tries(call):
                answers = await super().async_request_streamed(
                    http_method, path, *_capped_request(call, self, request_dict, http_options)
                )
            exchange = _begun(call)
            await call.returned_async()
            return answers if exchange is None else _Followed(call, exchange, answers, until)
        except BaseException as error:
            await call.raised_async(error)
            raise

    def _request_once(self, *args: Any, **kwargs: Any) -> Any:
        tries = _TRIES.get()
        if tries is None:
            return super()._request_once(*args, **kwargs)
        tries.begin()
        try:
            return super()._request_once(*args, **kwargs)
        except BaseException as error:
            tries.failed(error)
            raise

    async def _async_request_once(self, *args: Any, **kwargs: Any) -> Any:
        tries = _TRIES.get()
        if tries is None:
            return await super()._async_request_once(*args, **kwargs)
        tries.begin()
        try:
            return await super()._async_request_once(*args, **kwargs)
        except BaseException as error:
            tries.failed(error)
            raise

    def download_file(self, path: str, **options: Any) -> Any:
        call = open_request(self, "GET", path, None, options.get("http_options"))
        send = functools.partial(super().download_file, path, **options)
        if call is None:
            return send()
        place = _Place(options.get("destination"))
        return carry_out(call, send, functools.partial(_results, call, place))

    async def async_download_file(self, path: str, **options: Any) -> Any:
        call = await open_request_async(self, "GET", path, None, options.get("http_options"))
        send = functools.partial(super().async_download_file, path, **options)
        if call is None:
            return await send()
        place = _Place(options.get("destination"))
        return await carry_out_async(call, send, functools.partial(_results, call, place))


class _Tries:
    """The HTTP requests of one call, which the SDK sends again by itself; entered while it does. Never raises.

    Older SDKs have no method for a single one: their calls count as one.
    """

    __slots__ = ("_call", "_sent")

    def __init__(self, call: InFlight) -> None:
        self._call = call
        self._sent = False

    def __enter__(self) -> None:
        self._safely(lambda: _TRIES.set(self))

    def __exit__(self, *_: object) -> None:
        # Who closes what was on its way may do so from another context, whose own is not to be touched.
        self._safely(lambda: _TRIES.set(None) if _TRIES.get() is self else None)

    def begin(self) -> None:
        """One is about to be sent."""
        self._call.attempts += self._sent
        self._sent = True

    def failed(self, error: BaseException) -> None:
        """It was refused, or nobody answered it."""
        if type(error).__module__.partition(".")[0] in _HTTP:
            self._safely(lambda: self._call.tried_in_vain(error))

    @staticmethod
    def _safely(step: Callable[[], object]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - the call itself goes on
            complain("see a call", error)


#: Whose errors say that no answer came.
_HTTP = frozenset({"aiohttp", "httpx", "httpx2"})
#: The requests of the call that is on its way here.
_TRIES: ContextVar[_Tries | None] = ContextVar("tokenmeter_tries", default=None)


def _with_tries(call: InFlight, answers: Iterator[Any]) -> Iterator[Any]:
    """`answers`, which are asked for with the first of them."""
    with _Tries(call):
        first = next(answers, None)
    if first is not None:
        yield first
        yield from answers


def carry_out(call: InFlight, send: Callable[[], Any], read: Callable[[Any], Exchange | None]) -> Any:
    """What `send` gives: leave is asked for before, and what it used is written down after, as `read` has it."""
    try:
        call.authorize()
        call.attempts = 1
        with _Tries(call):
            answer = send()
        exchange = read(answer)
        if exchange is not None and exchange.ended:
            exchange.finish()
        call.returned()
    except BaseException as error:
        call.raised(error)
        raise
    return answer


async def carry_out_async(
    call: InFlight, send: Callable[[], Awaitable[Any]], read: Callable[[Any], Exchange | None]
) -> Any:
    """As `carry_out`, without making the event loop wait."""
    try:
        await call.authorize_async()
        call.attempts = 1
        with _Tries(call):
            answer = await send()
        exchange = read(answer)
        if exchange is not None and exchange.ended:
            await exchange.finish_async()
        await call.returned_async()
    except BaseException as error:
        await call.raised_async(error)
        raise
    return answer


class _WrittenAtLast:
    """Whatever becomes of who holds it, an interrupt amid its end as well: what was heard is written down."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange | None) -> None:
        self._exchange = exchange

    def __del__(self) -> None:
        exchange: Exchange | None = getattr(self, "_exchange", None)  # an interrupt may come amid its making
        if exchange is not None and not exchange.settled:
            exchange.abandon()


class _Followed:
    """An async stream that is heard as it passes. No generator: one that nobody iterates would never learn its end."""

    __slots__ = ("_answers", "_begun", "_call", "_exchange", "_kept", "_until")

    def __init__(self, call: InFlight, exchange: Exchange, answers: Any, until: int) -> None:
        self._begun = False
        self._call = call
        self._exchange = exchange
        self._kept = _WrittenAtLast(exchange)
        self._answers = answers
        self._until = until

    def __aiter__(self) -> AsyncIterator[Any]:
        return _Loop(self, self._exchange)

    async def __anext__(self) -> Any:
        return await Step(self._next(), self._exchange, self._until)  # awaited here as in `streams._PassedOn`

    async def _next(self) -> Any:
        exchange = self._exchange
        try:
            answer = await self._answers.__anext__()
            if not self._begun:
                self._begun = True
                if is_cached(self._call, answer):
                    exchange.void()
                    self._call.answers.remove(exchange)
                    await self._call.returned_async()
            _hear(self._call, exchange, answer)
        except StopAsyncIteration:
            exchange.ended = True
            await exchange.finish_async()
            raise
        except BaseException as error:
            exchange.failed(error)
            await exchange.finish_async()
            raise
        return answer

    async def aclose(self) -> None:
        """Close it, as a generator is closed."""
        try:
            await self._answers.aclose()
        finally:
            await self._exchange.finish_async()


class _Loop:
    """A loop over a stream, which nobody but the loop holds: it goes when the SDK refuses what a chunk says.

    The stream itself is held by the traceback of that error, for as long as anybody keeps it.
    """

    __slots__ = ("_answers", "_kept")

    def __init__(self, answers: _Followed, exchange: Exchange) -> None:
        self._answers = answers
        self._kept = _WrittenAtLast(exchange)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    def __anext__(self) -> Any:
        return self._answers.__anext__()


# -- requests


def open_request(
    api: Any, method: str, path: str, body: Any, http_options: Any, *, streamed: bool = False
) -> InFlight | None:
    """The call that is about to be made; None for one that makes no bill or that cannot be metered."""
    for _ in range(2):  # what fails once may pass, as want of memory does
        try:
            binding = binding_of(api)
            if binding is None:
                return None
            from tokenmeter.capture.opening import open_call  # noqa: PLC0415 - a client may be made and never used

            named, place, facts, key = _described(api, method, path, body, http_options)
            return open_call(api, binding, named, place, facts, streamed=streamed, key=key)
        except (ConfigurationError, UnopenedStoreError):
            raise
        except Exception as error:  # noqa: BLE001 - the call itself goes on
            complain("see a call", error)
    return None


async def open_request_async(
    api: Any, method: str, path: str, body: Any, http_options: Any, *, streamed: bool = False
) -> InFlight | None:
    """As `open_request`, without making the event loop wait for the default meter."""
    try:
        binding = binding_of(api)
        if binding is not None and not binding.met:
            await binding.meet()
    except (ConfigurationError, UnopenedStoreError):
        raise
    except Exception as error:  # noqa: BLE001 - it is asked for again
        complain("see a call", error)
    return open_request(api, method, path, body, http_options, streamed=streamed)


def _described(
    api: Any, method: str, path: str, body: Any, http_options: Any
) -> tuple[str, str, Mapping[str, Any] | None, str | None]:
    """Method, path, body and key of a request as they will go out: the SDK merges what options add later."""
    from tokenmeter.providers.google.requests import model_in  # noqa: PLC0415 - as above

    facts: dict[str, Any] | None = None
    if isinstance(body, dict):
        facts = cast("dict[str, Any]", body)
        if extra := _extra_body(api, http_options):
            facts = _laid_over(facts, extra)
        if (model := model_in(path)) is not None:
            facts = {**facts, "model": model}
        if "operationName" in facts and path.endswith("fetchPredictOperation"):  # Vertex AI asks by a POST
            return "GET", str(facts["operationName"]), None, None
    key = None
    for options in (api._http_options, http_options):  # noqa: SLF001 - an SDK's own
        for name, value in (_table(options, "headers") or {}).items():
            if name.lower() == _KEY_HEADER:
                key = value
            elif name.lower() == _WANTED_TIER_HEADER and facts is not None:
                facts = {**facts, "serviceTier": value}
    return method, path, facts, key


def _option(options: Any, name: str) -> Any:
    return cast("Mapping[str, Any]", options).get(name) if isinstance(options, dict) else getattr(options, name, None)


def _table(options: Any, name: str) -> dict[str, Any] | None:
    found = _option(options, name)
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def _given_up(api: Any, http_options: Any) -> int:
    """When the SDK gives up a stream that is asked for now, if nothing comes: options have milliseconds."""
    asked = _option(http_options, "timeout") or _option(api._http_options, "timeout")  # noqa: SLF001 - an SDK's own
    return timer(None if asked is None else asked / 1000)


def _extra_body(api: Any, http_options: Any) -> dict[str, Any] | None:
    """What the SDK will put over a request's body: what a call says stands in the place of what its client says."""
    extra = _table(http_options, "extra_body")
    return _table(api._http_options, "extra_body") if extra is None else extra  # noqa: SLF001 - an SDK's own


def _laid_over(body: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """`body` with `extra` over it, as the SDK does it: ``max_output_tokens`` takes the place of ``maxOutputTokens``."""
    result = dict(body)
    places = {_letters(name): name for name in body}
    for name, value in extra.items():
        place = places.get(_letters(name), name)
        below = result.get(place)
        both = isinstance(below, dict) and isinstance(value, dict)
        result[place] = _laid_over(cast("Any", below), cast("Any", value)) if both else value
    return result


def _letters(name: str) -> str:
    return name.replace("_", "").lower()


def _capped_request(call: InFlight, api: Any, body: Any, http_options: Any) -> tuple[Any, Any]:
    """The request's own body and options, or such with the output cap that a budget wants, which no option undoes."""
    if call.output_cap is None:
        return body, http_options
    extra = _extra_body(api, http_options)
    if extra and isinstance(body, dict):
        body, http_options = _laid_over(cast("dict[str, Any]", body), extra), _without_extra_body(api, http_options)
    return with_cap(call, body), http_options


def _without_extra_body(api: Any, http_options: Any) -> Any:
    if http_options is None or isinstance(http_options, dict):
        kind = api._http_options.__class__  # noqa: SLF001 - an SDK's own
        return kind.model_validate({**cast("dict[str, Any]", http_options or {}), "extra_body": {}})
    return http_options.model_copy(update={"extra_body": {}})


def with_cap(call: InFlight, body: Any) -> Any:
    """The request's own body, or a copy of it with the output cap that a budget wants."""
    cap = call.output_cap
    if cap is None or not isinstance(body, dict):
        return body
    plain = cast("dict[str, Any]", body)
    try:
        name, value = call.binding.sdk.dialect().output_cap(call.endpoint, plain, cap, provider=call.provider)
    except Exception as error:  # noqa: BLE001 - sent as written, then
        call.meter.fault("prepare a request", error)
        return plain
    return {**plain, name: value}


# -- answers


def _decoded(answer: Any) -> Any:
    """The body of an answer: older versions of the SDK hand on what they decoded, newer ones the text and headers.

    The tier that served may stand in a header alone.
    """
    if isinstance(answer, dict):
        return cast("dict[str, Any]", answer)
    try:
        body: Any = json.loads(answer.body) if answer.body else None
    except (ValueError, RecursionError):  # a proxy's page, or half an answer: the SDK says so to the caller
        return answer.body
    tier = _header(answer.headers, _TIER_HEADER)
    if tier is not None and isinstance(body, dict):
        return {"serviceTier": tier, **cast("dict[str, Any]", body)}
    return body


def _header(headers: Any, name: str) -> str | None:
    if not headers:
        return None
    found = headers.get(name)
    if found is None and type(headers) is dict:
        found = next((value for key, value in cast("Any", headers).items() if key.lower() == name), None)
    return found if isinstance(found, str) else None


def _begun(call: InFlight) -> Exchange | None:
    """The exchange of a stream; None where there is not even one."""
    return call.watch_answer(functools.partial(call.respond, {}, streamed=True), streamed=True)


def _hear(call: InFlight, exchange: Exchange | None, answer: Any) -> None:
    """One chunk of a stream. Never raises."""
    if exchange is None:
        return
    try:
        # An older SDK goes on to take apart the very object.
        event = deepcopy(cast("Any", answer)) if isinstance(answer, dict) else _decoded(answer)
    except Exception as error:  # noqa: BLE001 - the caller gets his chunk
        call.meter.fault("read a response", error)
        return
    exchange.hear(event)


def _answered(call: InFlight, answer: Any) -> Exchange | None:
    """The exchange of a whole answer; None where there is not even one."""
    return call.watch_answer(functools.partial(_read_whole, call, answer), streamed=False)


def is_cached(call: InFlight, answer: Any) -> bool:
    """Whether an answer came out of a cache, and does not stand for a try that was lost. Never raises."""
    try:
        headers: Mapping[str, str] = getattr(answer, "headers", None) or {}
        told: Mapping[str, Any] = getattr(answer, "extensions", None) or {}
        kept = told.get("hishel_from_cache") is True or told.get("from_cache") is True
        for name, value in headers.items():
            key = name.lower().encode()
            if key in CACHES and (value if key == LITELLM_HIT else value.upper().encode() in HITS):
                kept = True
        if kept and call.endpoint.billed and not call.lost_try:
            call.attempts = 0  # as in `streams.responded`
            return True
    except Exception as error:  # noqa: BLE001 - the caller gets his answer
        call.meter.fault("watch a response", error)
    return False


def _read_whole(call: InFlight, answer: Any) -> Exchange | None:
    if is_cached(call, answer):
        return None
    exchange = call.respond({}, streamed=False)
    exchange.ended = True
    body = _decoded(answer)
    if call.endpoint.form == "items":
        _link_results(call, body)
    exchange.saw({} if body is None else body)
    return exchange


def _link_results(call: InFlight, body: Any) -> None:
    """A batch that has ended may have its answers in a file: whoever began it pays for what is read there."""
    from tokenmeter.capture.recent import also_known_as  # noqa: PLC0415 - few calls read batches
    from tokenmeter.providers.google.bodies import results_file  # noqa: PLC0415 - as above

    file = results_file(body)
    if file is not None and call.endpoint.subject is not None:
        also_known_as(call.meter, call.endpoint.subject, file)


class _Place:
    """Where a download goes that is not returned: a path, or a file that is open."""

    def __init__(self, destination: Any) -> None:
        self._destination = destination
        self._start: int | None = None
        with contextlib.suppress(Exception):  # a pipe has no place
            self._start = destination.tell() if hasattr(destination, "seek") else None

    def content(self) -> bytes | None:
        """What was written there; None where it cannot be read again."""
        place = self._destination
        try:
            if isinstance(place, str | os.PathLike):
                with open(cast("str", place), "rb") as file:  # noqa: PTH123 - as the SDK opens it
                    return file.read()
            if self._start is None or not place.readable():
                return None
            end = place.tell()
            place.seek(self._start)
            found = place.read()
            place.seek(end)
        except (OSError, AttributeError, ValueError):
            return None
        return found if isinstance(found, bytes) else None


def _results(call: InFlight, place: _Place, given: Any) -> Exchange | None:
    """The exchange of a downloaded file, each line of a batch's results a bill; any other file has none."""
    try:
        content = given if isinstance(given, bytes) else place.content()
        exchange = call.respond({}, streamed=False)
        exchange.ended = True
        for number, line in _lines_of(content or b""):
            exchange.saw_line({**line, "key": str(number)})
    except Exception as error:  # noqa: BLE001 - the caller gets his file
        call.meter.fault("read a response", error)
        return None
    return exchange


def _lines_of(content: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """The results in a file, each with its place, up to the first line that is none."""
    for place, line in enumerate(content.split(b"\n")):
        if not line.strip():
            continue
        try:
            one: Any = json.loads(line) if line.startswith(b"{") else None
        except (ValueError, RecursionError):
            return
        if not isinstance(one, dict) or {"response", "error", "embedding"}.isdisjoint(cast("dict[str, Any]", one)):
            return
        yield place, cast("dict[str, Any]", one)
