"""The mixins over the SDKs' client classes, and the same hooks for a client that somebody else made."""

from __future__ import annotations

import copyreg
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from tokenmeter.capture import hooks
from tokenmeter.capture.sdk import BINDING, TEMPLATE, Binding, binding_of

__all__ = ["AsyncCapture", "Capture", "bind", "metered_class"]

#: What `bind` sets on a client of the SDK's own classes.
_IN_PLACE = frozenset({BINDING, "copy", "with_options", *hooks.HOOKS, *hooks.ASYNC_HOOKS})


class Capture:
    """Mixin over a sync client class of an SDK."""

    def request(self, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
        """One logical call."""
        return hooks.request(super().request, self, cast_to, options, *args, **kwargs)  # type: ignore[misc]

    def _prepare_options(self, options: Any) -> Any:
        return hooks.prepare_options(super()._prepare_options, self, options)  # type: ignore[misc]

    def _prepare_request(self, request: Any) -> None:
        hooks.prepare_request(super()._prepare_request, self, request)  # type: ignore[misc]

    def _process_response(self, **kwargs: Any) -> Any:
        return hooks.process_response(super()._process_response, self, **kwargs)  # type: ignore[misc]

    def _process_response_data(self, *, data: Any, cast_to: Any, response: Any) -> Any:
        hooks.see_data(data, response)
        return super()._process_response_data(data=data, cast_to=cast_to, response=response)  # type: ignore[misc]


class AsyncCapture:
    """Mixin over an async client class of an SDK."""

    async def request(self, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
        """One logical call."""
        return await hooks.request_async(super().request, self, cast_to, options, *args, **kwargs)  # type: ignore[misc]

    async def _prepare_options(self, options: Any) -> Any:
        return await hooks.prepare_options_async(super()._prepare_options, self, options)  # type: ignore[misc]

    async def _prepare_request(self, request: Any) -> None:
        await hooks.prepare_request_async(super()._prepare_request, self, request)  # type: ignore[misc]

    async def _process_response(self, **kwargs: Any) -> Any:
        return await hooks.process_response_async(super()._process_response, self, **kwargs)  # type: ignore[misc]

    def _process_response_data(self, *, data: Any, cast_to: Any, response: Any) -> Any:
        hooks.see_data(data, response)
        return super()._process_response_data(data=data, cast_to=cast_to, response=response)  # type: ignore[misc]


def metered_class(
    sdk_class: type[Any], template: Binding, *, parents: tuple[type[Any], ...] = (), module: str | None = None
) -> type[Any]:
    """`sdk_class` with capture mixed in, under the same name (the User-Agent derives from it).

    Args:
        sdk_class: A client class of an SDK.
        template: What its clients start with.
        parents: Metered classes of the SDK classes that `sdk_class` derives from, so that ``isinstance`` holds
            among ours as it does among the SDK's.
        module: Where the class is to be found under its name; default: where the SDK has it.
    """
    if TEMPLATE in vars(sdk_class):  # metered already
        setattr(sdk_class, TEMPLATE, template)
        return sdk_class
    mixin = AsyncCapture if inspect.iscoroutinefunction(sdk_class.request) else Capture
    copying = _copying(sdk_class)
    body = {
        TEMPLATE: template,
        "copy": copying,
        "with_options": copying,
        "__module__": module or sdk_class.__module__,
        "__doc__": sdk_class.__doc__,
    }
    bases = (*(parents or (mixin,)), sdk_class)
    return types.new_class(sdk_class.__name__, bases, exec_body=lambda made: made.update(body))


def bind(client: Any, binding: Binding) -> None:
    """Meter `client` from now on, in place. Its type stays; resources it made before are metered too."""
    kind: type[Any] = client.__class__
    metered = BINDING in client.__dict__ or issubclass(kind, Capture | AsyncCapture)
    client.__dict__[BINDING] = binding
    if metered:
        return
    asynchronous = inspect.iscoroutinefunction(kind.request)
    for name, hook in (hooks.ASYNC_HOOKS if asynchronous else hooks.HOOKS).items():
        plain = types.MethodType(getattr(kind, name), client)
        setattr(client, name, functools.update_wrapper(functools.partial(hook, plain, client), plain))
    client.copy = client.with_options = types.MethodType(_copying(kind), client)
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


def _copying(kind: type[Any]) -> Callable[..., Any]:
    """The SDK's ``copy``, whose result is metered as the original is."""

    @functools.wraps(kind.copy)
    def copy(self: Any, *args: Any, **kwargs: Any) -> Any:
        copied = kind.copy(self, *args, **kwargs)
        binding = binding_of(self)
        if binding is not None:
            bind(copied, binding.copy())
        return copied

    return copy
