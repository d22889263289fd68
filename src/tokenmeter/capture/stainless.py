"""The seam to the SDKs that Stainless generates (OpenAI's, Anthropic's): what happens around a client's methods.

Every way to call (create, parse, stream helpers, tool runners, raw and streaming responses, ``client.post``) goes
through `request`, once per logical call; `_prepare_options`, `_prepare_request` and `_process_response`, once per HTTP
request and response; and `_process_response_data`, with every decoded body and stream event. What is hooked here does
nothing else than tell the call's `InFlight` and its responses' `Exchange`; what the caller gets is the SDK's own.

An SDK of another make gets a module like this one beside it: nothing behind it knows an SDK.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from tokenmeter.capture.options import capped, effective_body, key_in, prepared, refuses_usage
from tokenmeter.capture.sdk import BINDING, TEMPLATE, Binding, Sdk, binding_of, bound_to, complain, twice
from tokenmeter.capture.streams import PLAIN, answered, responded
from tokenmeter.errors import TokenmeterError
from tokenmeter.interrupts import came_from_outside

if TYPE_CHECKING:
    from tokenmeter.capture.calls import InFlight

T = TypeVar("T")
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
    """Meter `client` from now on, in place. Its type stays; resources it made before are metered too.

    May be begun anew.
    """
    kind: type[Any] = client.__class__
    if BINDING not in client.__dict__ and not hasattr(kind, TEMPLATE):
        setattr(client, _HOOKED, kind)
        for name, hook in _hooks_of(kind).items():
            setattr(client, name, types.MethodType(hook, client))
        copyreg.pickle(kind, _reduced)
    client.__dict__[BINDING] = binding  # last: it says that all is done


def _reduced(client: Any) -> tuple[Any, ...]:
    """`client` for `copy.copy`: what was bound to it in place must not send in the name of its copies."""
    reduced: tuple[Any, ...] = client.__reduce_ex__(4)
    made, arguments, *_ = reduced
    binding = client.__dict__.get(BINDING)
    if binding is None:
        return reduced
    state = client.__dict__.copy()
    for name in _IN_PLACE:
        state.pop(name, None)
    return _metered_again, (made, arguments, state, binding)


def _metered_again(
    made: Callable[..., Any], arguments: tuple[Any, ...], state: dict[str, Any], binding: Binding
) -> Any:
    copied = made(*arguments)
    copied.__dict__.update(state)
    twice(None, lambda: bind(copied, binding.copy()), "see a call")
    return copied


def _hooks_of(kind: type[Any]) -> Mapping[str, Callable[..., Any]]:
    """The methods of a client class, hooked: by name, to be called with the client first."""
    known = _hooks_made.get(kind)
    if known is not None:
        return known
    copying = _copying(kind)
    asynchronous = inspect.iscoroutinefunction(kind.request)
    hooks = {name: makers[asynchronous](kind) for name, makers in _HOOKS.items() if hasattr(kind, name)}
    wrapped = {name: functools.update_wrapper(hook, getattr(kind, name)) for name, hook in hooks.items()}
    made = _hooks_made[kind] = wrapped | {"copy": copying, "with_options": copying}
    return made


_hooks_made: dict[type[Any], Mapping[str, Callable[..., Any]]] = {}


def _copying(kind: type[Any]) -> Callable[..., Any]:
    """The SDK's ``copy``, whose result is metered as the original is."""

    @functools.wraps(kind.copy)
    def copy(self: Any, *args: Any, **kwargs: Any) -> Any:
        copied = kind.copy(self, *args, **kwargs)
        twice(None, functools.partial(_bind_copy, self, copied), "see a call")
        return copied

    return copy


def _bind_copy(client: Any, copied: Any) -> None:
    binding = bound_to(client)
    if binding is not None:
        bind(copied, binding.copy())


# -- the hooks. Where an SDK's method calls its base's by `super`, and that is one of ours, the hook of the client's own
# class is at work already, and the base's stands aside. No token of the context variable is kept: a coroutine may be
# closed in another context than the one it ran in. What fails of ours, at whichever line, is not for the caller: the
# SDK's own method runs in any case.


#: Stands for an SDK's answer that there is not; an answer may be None.
_NONE_YET = object()


def _again(error: Exception, act: Callable[..., T], *given: Any, **named: Any) -> T | None:
    """What came of `act` when it was begun once more: what fails once may pass, as want of memory does."""
    complain("see a call", error)
    try:
        return act(*given, **named)
    except TokenmeterError:
        raise
    except Exception as again:  # noqa: BLE001 - the caller gets his answer
        complain("see a call", again)
        return None


def _request(kind: type[Any]) -> Callable[..., Any]:  # noqa: C901 - each step may fail by itself
    send = kind.request

    def request(self: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: C901, PLR0912 - as above
        try:
            call, outer = _begin(self, kind, options, kwargs)
        except TokenmeterError:
            raise
        except Exception as error:  # noqa: BLE001 - the call itself goes on
            call, outer = _again(error, _begin, self, kind, options, kwargs) or (None, None)
        value: Any = _NONE_YET
        try:
            if call is None:
                return send(self, cast_to, options, *args, **kwargs)
            sent = options
            try:
                if not call.goes_freely:
                    if not call.awaits_key:
                        call.authorize()
                    if not call.sent_as_written:
                        sent = prepared(self, call, options, kwargs)
                value = send(self, cast_to, sent, *args, **kwargs)
            except call.binding.sdk.status_error as error:
                if not refuses_usage(self, call, error):
                    raise
                value = send(self, cast_to, capped(call, options), *args, **kwargs)
            call.returned()
        except BaseException as error:
            if call is not None and value is not _NONE_YET and not came_from_outside(error):
                call.recover(error)  # it is ours, and the caller gets his answer
            else:
                if call is not None:
                    call.raised(error)
                raise
        finally:
            try:
                if call is not outer and CURRENT.get() is call:
                    CURRENT.set(outer)
            except Exception as error:  # noqa: BLE001 - the caller gets his answer
                _again(error, CURRENT.set, outer)
        return value

    return request


def _request_async(kind: type[Any]) -> Callable[..., Any]:  # noqa: C901 - as above
    send = kind.request

    async def request(self: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: C901, PLR0912
        try:
            call, outer = await _begin_async(self, kind, options, kwargs)
        except TokenmeterError:
            raise
        except Exception as error:  # noqa: BLE001 - the call itself goes on
            call, outer = _again(error, _begin, self, kind, options, kwargs) or (None, None)
        value: Any = _NONE_YET
        try:
            if call is None:
                return await send(self, cast_to, options, *args, **kwargs)
            sent = options
            try:
                if not call.goes_freely:
                    if not call.awaits_key:
                        await call.authorize_async()
                    if not call.sent_as_written:
                        sent = prepared(self, call, options, kwargs)
                value = await send(self, cast_to, sent, *args, **kwargs)
            except call.binding.sdk.status_error as error:
                if not refuses_usage(self, call, error):
                    raise
                value = await send(self, cast_to, capped(call, options), *args, **kwargs)
            await call.returned_async()
        except BaseException as error:
            if call is not None and value is not _NONE_YET and not came_from_outside(error):
                call.recover(error)  # it is ours, and the caller gets his answer
            else:
                if call is not None:
                    await call.raised_async(error)
                raise
        finally:
            try:
                if call is not outer and CURRENT.get() is call:
                    CURRENT.set(outer)
            except Exception as error:  # noqa: BLE001 - the caller gets his answer
                _again(error, CURRENT.set, outer)
        return value

    return request


def _begin(
    client: Any, kind: type[Any], options: Any, kwargs: Mapping[str, Any]
) -> tuple[InFlight | None, InFlight | None]:
    """The call that is about to be made, from now on the one of this context, and the one around it.

    None for one that makes no bill or that cannot be metered.

    Raises:
        ConfigurationError: the user's settings are wrong.
    """
    call = None
    if client._tokenmeter_hooked is kind and (binding := binding_of(client)) is not None:  # noqa: SLF001 - ours
        body, streamed = options.json_data, bool(kwargs.get("stream"))
        if type(body) is not dict or options.extra_json:
            body = effective_body(options)
        key, url = _key_given(client, options), str(options.url)
        call = _capture.open_call(client, binding, options.method, url, body, streamed=streamed, key=key)
    outer = CURRENT.get()
    if call is not outer:  # None: a free call of a key provider or middleware is not the call around it
        CURRENT.set(call)
    return call, outer


async def _begin_async(
    client: Any, kind: type[Any], options: Any, kwargs: Mapping[str, Any]
) -> tuple[InFlight | None, InFlight | None]:
    binding = binding_of(client)
    if binding is not None and not binding.met:
        await binding.meet()
    return _begin(client, kind, options, kwargs)


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
        return capped(call, prepared)

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
        return capped(call, prepared)

    return hook


def _prepare_request(kind: type[Any]) -> Callable[..., Any]:
    plain = kind._prepare_request  # noqa: SLF001 - an SDK's own

    def hook(self: Any, request: Any) -> None:
        plain(self, request)
        try:
            call = CURRENT.get()
            if call is not None and self._tokenmeter_hooked is kind:
                call.attempts += 1
                if call.awaits_key:
                    call.learn_key(key_in(request.headers))
                    call.authorize()
        except TokenmeterError:
            raise
        except Exception as error:  # noqa: BLE001 - the call itself goes on
            complain("see a call", error)

    return hook


def _prepare_request_async(kind: type[Any]) -> Callable[..., Any]:
    plain = kind._prepare_request  # noqa: SLF001 - an SDK's own

    async def hook(self: Any, request: Any) -> None:
        await plain(self, request)
        try:
            call = CURRENT.get()
            if call is not None and self._tokenmeter_hooked is kind:
                call.attempts += 1
                if call.awaits_key:
                    call.learn_key(key_in(request.headers))
                    await call.authorize_async()
        except TokenmeterError:
            raise
        except Exception as error:  # noqa: BLE001 - the call itself goes on
            complain("see a call", error)

    return hook


def _process_response(kind: type[Any]) -> Callable[..., Any]:
    plain = kind._process_response  # noqa: SLF001 - an SDK's own

    def hook(self: Any, **kwargs: Any) -> Any:
        call = CURRENT.get()
        if call is None or self._tokenmeter_hooked is not kind:
            return plain(self, **kwargs)
        response, streamed = kwargs["response"], kwargs["stream"]
        try:
            exchange = responded(call, response, streamed=streamed)
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            exchange = _again(error, responded, call, response, streamed=streamed)
        try:
            value = plain(self, **kwargs)
        except BaseException as error:
            if exchange is not None:
                exchange.failed(error)
                exchange.finish()
            raise
        try:
            answered(self, call, exchange, response, value)
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            _again(error, answered, self, call, exchange, response, value)
        return value

    return hook


def _process_response_async(kind: type[Any]) -> Callable[..., Any]:
    plain = kind._process_response  # noqa: SLF001 - an SDK's own

    async def hook(self: Any, **kwargs: Any) -> Any:
        call = CURRENT.get()
        if call is None or self._tokenmeter_hooked is not kind:
            return await plain(self, **kwargs)
        response, streamed = kwargs["response"], kwargs["stream"]
        try:
            exchange = responded(call, response, streamed=streamed)
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            exchange = _again(error, responded, call, response, streamed=streamed)
        try:
            value = await plain(self, **kwargs)
        except BaseException as error:
            if exchange is not None:
                exchange.failed(error)
                exchange.finish()
            raise
        try:
            answered(self, call, exchange, response, value)
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            _again(error, answered, self, call, exchange, response, value)
        return value

    return hook


def _process_response_data(kind: type[Any]) -> Callable[..., Any]:
    plain = kind._process_response_data  # noqa: SLF001 - an SDK's own

    def hook(self: Any, *, data: Any, cast_to: Any, response: Any) -> Any:
        try:
            call = CURRENT.get()
            if call is not None and call.answering is not None:
                call.answering.saw(data)
        except Exception as error:  # noqa: BLE001 - what was not seen here is read from the body's bytes
            complain("see a call", error)
        return plain(self, data=data, cast_to=cast_to, response=response)

    setattr(hook, PLAIN, plain)
    return hook


def _trying_again(name: str, answer: str) -> Callable[[type[Any]], Callable[..., Any]]:
    """A hook for what the SDK calls before it tries again. `answer` is its argument that is None where none came."""

    def make(kind: type[Any]) -> Callable[..., Any]:
        plain = getattr(kind, name)

        def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                call = CURRENT.get()
                if call is not None and self._tokenmeter_hooked is kind and kwargs.get(answer, args) is None:
                    call.tried_in_vain(sys.exc_info()[1])
            except Exception as error:  # noqa: BLE001 - the call itself goes on
                complain("see a call", error)
            return plain(self, *args, **kwargs)

        return hook

    return make


#: Method -> what makes its hook for a class: for sync clients, and for async ones. An SDK has one of the last two.
_HOOKS: dict[str, tuple[Callable[[type[Any]], Callable[..., Any]], Callable[[type[Any]], Callable[..., Any]]]] = {
    "request": (_request, _request_async),
    "_prepare_options": (_prepare_options, _prepare_options_async),
    "_prepare_request": (_prepare_request, _prepare_request_async),
    "_process_response": (_process_response, _process_response_async),
    "_process_response_data": (_process_response_data, _process_response_data),
    "_sleep_for_retry": (_slept := _trying_again("_sleep_for_retry", "response"), _slept),
    "_retry_request": (_retried := _trying_again("_retry_request", "response_headers"), _retried),
}
#: What `bind` sets on a client of the SDK's own classes.
_IN_PLACE = frozenset({BINDING, _HOOKED, "copy", "with_options", *_HOOKS})


# -- the request


class _Capture:
    """What is behind the seam, loaded with the first call: a client may be made and never used."""

    @functools.cached_property
    def open_call(self) -> Callable[..., InFlight | None]:
        from tokenmeter.capture.opening import open_call  # noqa: PLC0415 - see above

        return open_call


_capture = _Capture()


def _key_given(client: Any, options: Any) -> str | None:
    """The key that the caller put into a header himself, of this request or of every one: it is what is sent."""
    given = options.headers
    if given and (key := key_in(given)) is not None:
        return key
    always = getattr(client, "_custom_headers", None)
    return key_in(always) if always else None


def _learn_key(client: Any, call: InFlight, headers: Any) -> bool:
    """Tell `call` the key that was handed out for it; whether it has to ask for leave now. Never raises."""
    try:
        return call.learn_key(key_in(headers) or call.binding.sdk.api_key(client))
    except Exception as error:  # noqa: BLE001 - what is sent says it, too: see `_prepare_request`
        complain("see a call", error)
        return False


def _keep_key(client: Any, used: Any, headers: Any) -> None:
    """While this call waited for leave, another thread or task may have put its own key on the client they share.

    Never raises.
    """

    def keep() -> None:
        if client.api_key is not used and key_in(headers) is None:
            client.api_key = used

    twice(None, keep, "see a call")
