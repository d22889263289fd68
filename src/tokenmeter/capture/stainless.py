"""The seam to the SDKs that Stainless generates (OpenAI's, Anthropic's): what happens around a client's methods.

Every way to call (create, parse, stream helpers, tool runners, raw and streaming responses, ``client.post``) goes
through `request`, once per logical call; `_prepare_options`, `_prepare_request` and `_process_response`, once per HTTP
request and response; and `_process_response_data`, with every decoded body and stream event. What is hooked here does
nothing else than tell the call's `InFlight` and its responses' `Exchange`; what the caller gets is the SDK's own.

An SDK of another make gets a module like this one beside it: nothing behind it knows an SDK.
"""

from __future__ import annotations

import copy as copies
import copyreg
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast, get_origin

from tokenmeter.capture.sdk import BINDING, TEMPLATE, Binding, Sdk, UnreadBody, binding_of, bound_to, complain
from tokenmeter.capture.streams import PLAIN, RAW_RESPONSE_HEADER, answered, responded
from tokenmeter.errors import ConfigurationError

if TYPE_CHECKING:
    from tokenmeter.capture.calls import InFlight

#: The call whose request is being sent in this context; None outside of a metered one.
CURRENT: ContextVar[InFlight | None] = ContextVar("tokenmeter_call", default=None)
#: Name of the attribute that says for which class of the SDK a client's hooks were made.
_HOOKED = "_tokenmeter_hooked"


# -- classes and clients


def metered_class(
    sdk_class: type[Any], template: Binding, *, parents: tuple[type[Any], ...] = (), module: str | None = None
) -> type[Any]:
    """A subclass of `sdk_class` whose clients are metered, under the same name (the User-Agent derives from it).

    Args:
        sdk_class: A client class of an SDK.
        template: What its clients start with.
        parents: Metered classes of the SDK classes that `sdk_class` derives from, so that ``isinstance`` holds
            among ours as it does among the SDK's. They stand behind `sdk_class`, as its own bases do: what is patched
            into one of them does not get between a subclass and its constructor.
        module: Where the class is to be found under its name; default: where the SDK has it.
    """
    if TEMPLATE in vars(sdk_class):  # metered already
        setattr(sdk_class, TEMPLATE, template)
        return sdk_class
    body = {
        TEMPLATE: template,
        _HOOKED: sdk_class,
        **_hooks_of(sdk_class),
        "__module__": module or sdk_class.__module__,
        "__doc__": sdk_class.__doc__,
    }
    return types.new_class(sdk_class.__name__, (sdk_class, *parents), exec_body=lambda made: made.update(body))


def metered_classes(
    package: types.ModuleType, sdk: Sdk, names: Iterable[str], *, aliases: Mapping[str, str], module: str
) -> dict[str, type[Any]]:
    """The metered client classes of an SDK's package, by name; a name that this version of it lacks is left out.

    Args:
        package: The SDK.
        sdk: What its clients are metered by.
        names: The client classes, each after those it derives from.
        aliases: Second names of some.
        module: Where they are to be found.
    """
    made: dict[type[Any], type[Any]] = {}
    for name in names:
        plain = getattr(package, name, None)
        if plain is not None:
            parents = tuple(made[base] for base in plain.__bases__ if base in made)
            made[plain] = metered_class(plain, Binding(sdk), parents=parents, module=module)
    named = {kind.__name__: kind for kind in made.values()}
    return named | {alias: named[name] for alias, name in aliases.items()}


def bind(client: Any, binding: Binding) -> None:
    """Meter `client` from now on, in place. Its type stays; resources it made before are metered too."""
    kind: type[Any] = client.__class__
    metered = BINDING in client.__dict__ or hasattr(kind, TEMPLATE)
    client.__dict__[BINDING] = binding
    if metered:
        return
    setattr(client, _HOOKED, kind)
    for name, hook in _hooks_of(kind).items():
        setattr(client, name, types.MethodType(hook, client))
    copyreg.pickle(kind, _reduced)


def _reduced(client: Any) -> tuple[Any, ...]:
    """`client` for `copy.copy`: what was bound to it in place must not send in the name of its copies."""
    reduced: tuple[Any, ...] = client.__reduce_ex__(4)
    made, arguments, *_ = reduced
    binding = client.__dict__.get(BINDING)
    if binding is None:
        return reduced
    state = {name: value for name, value in client.__dict__.items() if name not in _IN_PLACE}
    return _metered_again, (made, arguments, state, binding)


def _metered_again(
    made: Callable[..., Any], arguments: tuple[Any, ...], state: dict[str, Any], binding: Binding
) -> Any:
    copied = made(*arguments)
    copied.__dict__.update(state)
    bind(copied, binding.copy())
    return copied


def _hooks_of(kind: type[Any]) -> Mapping[str, Callable[..., Any]]:
    """The methods of a client class, hooked: by name, to be called with the client first."""
    known = _hooks_made.get(kind)
    if known is not None:
        return known
    copying = _copying(kind)
    asynchronous = inspect.iscoroutinefunction(kind.request)
    hooks = {name: makers[asynchronous](kind) for name, makers in _HOOKS.items()}
    wrapped = {name: functools.update_wrapper(hook, getattr(kind, name)) for name, hook in hooks.items()}
    made = _hooks_made[kind] = wrapped | {"copy": copying, "with_options": copying}
    return made


_hooks_made: dict[type[Any], Mapping[str, Callable[..., Any]]] = {}


def _copying(kind: type[Any]) -> Callable[..., Any]:
    """The SDK's ``copy``, whose result is metered as the original is."""

    @functools.wraps(kind.copy)
    def copy(self: Any, *args: Any, **kwargs: Any) -> Any:
        copied = kind.copy(self, *args, **kwargs)
        binding = bound_to(self)
        if binding is not None:
            bind(copied, binding.copy())
        return copied

    return copy


# -- the hooks. Where an SDK's method calls its base's by `super`, and that is one of ours, the hook of the client's own
# class is at work already, and the base's stands aside. No token of the context variable is kept: a coroutine may be
# closed in another context than the one it ran in.


def _request(kind: type[Any]) -> Callable[..., Any]:
    send = kind.request

    def request(self: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
        call = _open(self, options, kwargs) if self._tokenmeter_hooked is kind else None
        outer = CURRENT.get()
        if call is None and outer is None:
            return send(self, cast_to, options, *args, **kwargs)
        try:
            CURRENT.set(call)  # None: a free call of a key provider or middleware is not the call around it
            if call is None:
                return send(self, cast_to, options, *args, **kwargs)
            try:
                if not (call.goes_freely or call.awaits_key):
                    call.authorize()
                as_written = call.goes_freely or call.sent_as_written
                sent = options if as_written else _prepared(self, call, options, kwargs)
                value = send(self, cast_to, sent, *args, **kwargs)
            except call.binding.sdk.status_error as error:
                if not _refuses_usage(self, call, error):
                    raise
                value = send(self, cast_to, _capped(call, options), *args, **kwargs)
            call.returned()
        except BaseException as error:
            if call is not None:
                call.raised(error)
            raise
        finally:
            if CURRENT.get() is call:
                CURRENT.set(outer)
        return value

    return request


def _request_async(kind: type[Any]) -> Callable[..., Any]:
    send = kind.request

    async def request(self: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
        call = await _open_async(self, options, kwargs) if self._tokenmeter_hooked is kind else None
        outer = CURRENT.get()
        if call is None and outer is None:
            return await send(self, cast_to, options, *args, **kwargs)
        try:
            CURRENT.set(call)
            if call is None:
                return await send(self, cast_to, options, *args, **kwargs)
            try:
                if not (call.goes_freely or call.awaits_key):
                    await call.authorize_async()
                as_written = call.goes_freely or call.sent_as_written
                sent = options if as_written else _prepared(self, call, options, kwargs)
                value = await send(self, cast_to, sent, *args, **kwargs)
            except call.binding.sdk.status_error as error:
                if not _refuses_usage(self, call, error):
                    raise
                value = await send(self, cast_to, _capped(call, options), *args, **kwargs)
            await call.returned_async()
        except BaseException as error:
            if call is not None:
                await call.raised_async(error)
            raise
        finally:
            if CURRENT.get() is call:
                CURRENT.set(outer)
        return value

    return request


def _prepare_options(kind: type[Any]) -> Callable[..., Any]:
    plain = kind._prepare_options  # noqa: SLF001 - an SDK's own

    def hook(self: Any, options: Any) -> Any:
        prepared = plain(self, options)
        call = CURRENT.get()
        if call is None or not call.key_on_demand:
            return prepared
        used = self.api_key
        if _learn_key(self, call, prepared.headers):
            call.authorize()
            _keep_key(self, used, prepared.headers)
        return _capped(call, prepared)

    return hook


def _prepare_options_async(kind: type[Any]) -> Callable[..., Any]:
    plain = kind._prepare_options  # noqa: SLF001 - an SDK's own

    async def hook(self: Any, options: Any) -> Any:
        prepared = await plain(self, options)
        call = CURRENT.get()
        if call is None or not call.key_on_demand:
            return prepared
        used = self.api_key
        if _learn_key(self, call, prepared.headers):
            await call.authorize_async()
            _keep_key(self, used, prepared.headers)
        return _capped(call, prepared)

    return hook


def _prepare_request(kind: type[Any]) -> Callable[..., Any]:
    plain = kind._prepare_request  # noqa: SLF001 - an SDK's own

    def hook(self: Any, request: Any) -> None:
        plain(self, request)
        call = CURRENT.get()
        if call is not None and self._tokenmeter_hooked is kind:
            call.attempts += 1
            if call.awaits_key:
                call.learn_key(key_in(request.headers))
                call.authorize()

    return hook


def _prepare_request_async(kind: type[Any]) -> Callable[..., Any]:
    plain = kind._prepare_request  # noqa: SLF001 - an SDK's own

    async def hook(self: Any, request: Any) -> None:
        await plain(self, request)
        call = CURRENT.get()
        if call is not None and self._tokenmeter_hooked is kind:
            call.attempts += 1
            if call.awaits_key:
                call.learn_key(key_in(request.headers))
                await call.authorize_async()

    return hook


def _process_response(kind: type[Any]) -> Callable[..., Any]:
    plain = kind._process_response  # noqa: SLF001 - an SDK's own

    def hook(self: Any, **kwargs: Any) -> Any:
        call = CURRENT.get()
        if call is None or self._tokenmeter_hooked is not kind:
            return plain(self, **kwargs)
        exchange = responded(call, kwargs["response"], streamed=kwargs["stream"])
        try:
            value = plain(self, **kwargs)
        except BaseException as error:
            if exchange is not None:
                exchange.failed(error)
                exchange.finish()
            raise
        answered(self, call, exchange, kwargs["response"], value)
        return value

    return hook


def _process_response_async(kind: type[Any]) -> Callable[..., Any]:
    plain = kind._process_response  # noqa: SLF001 - an SDK's own

    async def hook(self: Any, **kwargs: Any) -> Any:
        call = CURRENT.get()
        if call is None or self._tokenmeter_hooked is not kind:
            return await plain(self, **kwargs)
        exchange = responded(call, kwargs["response"], streamed=kwargs["stream"])
        try:
            value = await plain(self, **kwargs)
        except BaseException as error:
            if exchange is not None:
                exchange.failed(error)
                exchange.finish()
            raise
        answered(self, call, exchange, kwargs["response"], value)
        return value

    return hook


def _process_response_data(kind: type[Any]) -> Callable[..., Any]:
    plain = kind._process_response_data  # noqa: SLF001 - an SDK's own

    def hook(self: Any, *, data: Any, cast_to: Any, response: Any) -> Any:
        call = CURRENT.get()
        if call is not None and call.answering is not None:
            call.answering.saw(data)
        return plain(self, data=data, cast_to=cast_to, response=response)

    setattr(hook, PLAIN, plain)
    return hook


#: Method -> what makes its hook for a class: for sync clients, and for async ones.
_HOOKS: dict[str, tuple[Callable[[type[Any]], Callable[..., Any]], Callable[[type[Any]], Callable[..., Any]]]] = {
    "request": (_request, _request_async),
    "_prepare_options": (_prepare_options, _prepare_options_async),
    "_prepare_request": (_prepare_request, _prepare_request_async),
    "_process_response": (_process_response, _process_response_async),
    "_process_response_data": (_process_response_data, _process_response_data),
}
#: What `bind` sets on a client of the SDK's own classes.
_IN_PLACE = frozenset({BINDING, _HOOKED, "copy", "with_options", *_HOOKS})


# -- the request


def _open(client: Any, options: Any, kwargs: Mapping[str, Any]) -> InFlight | None:
    """The call that is about to be made; None for one that makes no bill or that cannot be metered."""
    for _ in range(2):  # what fails once may pass, as want of memory does
        try:
            binding = binding_of(client)
            if binding is None:
                return None
            body, streamed = options.json_data, bool(kwargs.get("stream"))
            if type(body) is not dict or options.extra_json:
                body = effective_body(options)
            key, url = _key_given(client, options), str(options.url)
            return _capture.open_call(client, binding, options.method, url, body, streamed=streamed, key=key)
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - the call itself goes on
            complain("see a call", error)
    return None


class _Capture:
    """What is behind the seam, loaded with the first call: a client may be made and never used."""

    @functools.cached_property
    def open_call(self) -> Callable[..., InFlight | None]:
        from tokenmeter.capture.calls import open_call  # noqa: PLC0415 - see above

        return open_call


_capture = _Capture()


async def _open_async(client: Any, options: Any, kwargs: Mapping[str, Any]) -> InFlight | None:
    binding = binding_of(client)
    if binding is not None and not binding.met:
        await binding.meet()
    return _open(client, options, kwargs)


def effective_body(options: Any) -> Mapping[str, Any] | None:
    """The JSON body that is about to be sent, ``extra_body`` merged in; None for none.

    An `UnreadBody` where the caller sends something else: bytes of his own, files alone, an object or a list.
    """
    body, extra = options.json_data, options.extra_json
    if isinstance(extra, Mapping) and extra and (body is None or isinstance(body, Mapping)):
        return {**cast("Mapping[str, Any]", body or {}), **cast("Mapping[str, Any]", extra)}
    if isinstance(body, Mapping):
        return cast("Mapping[str, Any]", body)
    nothing = body is None and getattr(options, "content", None) is None and not getattr(options, "files", None)
    return None if nothing else UnreadBody()


_BEARER = "bearer "
_KEY_HEADERS = frozenset({"api-key", "x-api-key"})


def key_in(headers: Any) -> str | None:
    """The key or token that request headers carry; None for none, or for a signature.

    Args:
        headers: Of a built request, or of a request's options, where values may also say that a header is left out.
    """
    if not isinstance(headers, Mapping):
        return None
    found: str | None = None
    for name, value in cast("Mapping[str, Any]", headers).items():
        if not isinstance(value, str):
            continue
        if name.lower() == "authorization" and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip() or None
        if name.lower() in _KEY_HEADERS:
            found = value or found
    return found


def _key_given(client: Any, options: Any) -> str | None:
    """The key that the caller put into a header himself, of this request or of every one: it is what is sent."""
    given = options.headers
    if given and (key := key_in(given)) is not None:
        return key
    always = getattr(client, "_custom_headers", None)
    return key_in(always) if always else None


def _learn_key(client: Any, call: InFlight, headers: Any) -> bool:
    """Tell `call` the key that was handed out for it; whether it has to ask for leave now."""
    return call.learn_key(key_in(headers) or call.binding.sdk.api_key(client))


def _keep_key(client: Any, used: Any, headers: Any) -> None:
    """While this call waited for leave, another thread or task may have put its own key on the client they share."""
    if client.api_key is not used and key_in(headers) is None:
        client.api_key = used


def _prepared(client: Any, call: InFlight, options: Any, kwargs: Mapping[str, Any]) -> Any:
    """The options to send: the caller's own, or a copy of them with what we add."""
    try:
        capped = _capped(call, options)
        return _asking_for_usage(client, call, capped, kwargs.get("stream_cls")) if kwargs.get("stream") else capped
    except Exception as error:  # noqa: BLE001 - sent as written, then
        call.meter.fault("prepare a request", error)
        return options


def _capped(call: InFlight, options: Any) -> Any:
    """`options` with the output cap that a budget wants, under the name the endpoint knows it by."""
    cap = call.output_cap
    if cap is None:
        return options
    try:
        dialect, body = call.binding.sdk.dialect(), effective_body(options)
        if type(body) is UnreadBody:
            return options
        field = dialect.output_cap(call.endpoint, body or {}, cap, provider=call.call.provider)
        return _with_field(options, *field)
    except Exception as error:  # noqa: BLE001 - sent as written, then
        call.meter.fault("prepare a request", error)
        return options


_REFUSAL_CODES = frozenset({400, 403, 422})


def _asking_for_usage(client: Any, call: InFlight, options: Any, stream_cls: Any) -> Any:
    """`options` of a stream of class `stream_cls`, asking for the chunk of usage, which the caller is not shown.

    They come back as they were where the caller decided himself, reads the bytes himself, or the host refuses.
    """
    if stream_cls is None or _reads_raw_bytes(options) or not _is_stream_class(stream_cls):
        return options
    body = effective_body(options)
    if type(body) is UnreadBody:
        return options
    asking = call.binding.sdk.dialect().usage_request(call.endpoint, body or {})
    if asking is None or not call.meter.asks_for_usage(call.provider, client.base_url):
        return options
    call.usage_asked = True
    return _with_field(options, *asking)


def _is_stream_class(stream_cls: Any) -> bool:
    """Whether it is a stream of events as the SDKs make them, or a subclass of one (other instrumentation has some)."""
    found = get_origin(stream_cls) or stream_cls
    return isinstance(found, type) and hasattr(found, "__stream__")


def _reads_raw_bytes(options: Any) -> bool:
    """Whether the caller asked for the response itself, to read its bytes (``with_streaming_response``)."""
    headers = options.headers
    if not isinstance(headers, Mapping) or not headers:
        return False
    return any(
        name.lower() == RAW_RESPONSE_HEADER and value == "stream"
        for name, value in cast("Mapping[str, Any]", headers).items()
    )


def _refuses_usage(client: Any, call: InFlight, error: Any) -> bool:
    """Whether the host refused to be asked for usage: it gets later requests as they were written."""
    if not call.usage_asked or error.status_code not in _REFUSAL_CODES:
        return False
    if not call.binding.sdk.dialect().refuses_usage_request(f"{error} {getattr(error, 'body', '')}"):
        return False
    call.meter.stop_asking_for_usage(client.base_url)
    call.usage_asked = False
    return True


def _with_field(options: Any, name: str, value: Any) -> Any:
    changed = copies.copy(options)
    extra = changed.extra_json
    if isinstance(extra, Mapping) and name in extra:
        changed.extra_json = {**cast("Mapping[str, Any]", extra), name: value}
    else:
        changed.json_data = {**(changed.json_data or {}), name: value}
    return changed
