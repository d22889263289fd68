"""Arguments of a wrong kind, told by name.

Nothing is looked at beforehand: a value that serves in the place of another may be given. Only when a verb fails as
code fails that was handed something else than it was written for, its arguments are held against what it says it takes.
"""

from __future__ import annotations

import builtins
import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from os import PathLike, fsencode
from pathlib import Path
from typing import Any, TypeVar, cast

from tokenmeter.errors import ConfigurationError, shown

F = TypeVar("F", bound=Callable[..., Any])

#: How code fails that was handed something of another kind.
_FAILURES = (TypeError, AttributeError, ValueError, LookupError, ArithmeticError, OSError)
#: Parameters that no caller gives: whose verb it is.
_OWNERS = frozenset({"self"})
_UNIONS = (typing.Union, types.UnionType)
_PAIR = 2
#: Bytes in a file's name, on every system that is known.
_LONGEST_NAME = 255
_WORDS: dict[Any, str] = {
    str: "text",
    bytes: "bytes",
    bool: "True or False",
    int: "a whole number",
    Decimal: "a decimal number",
    datetime: "an instant",
    date: "a date",
    PathLike: "a path",
    Path: "a path",
    Callable: "a function",
    None: "None",
}


def tell_wrong_arguments(function: F) -> F:
    """`function`, a verb for people: where it fails over an argument of a wrong kind, it says which, and what it takes.

    Raises:
        ConfigurationError: then.
    """

    @functools.wraps(function)
    def verb(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except _FAILURES as error:
            told = _find_wrong(function, args, kwargs)
            if told is None:
                raise
            raise ConfigurationError(told) from error

    return cast("F", verb)


def _find_wrong(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """What is to be said of the first argument that is of no kind that `function` takes; None where all are."""
    try:
        signature = inspect.signature(function)
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError:  # Python's own words for what is missing or unknown say it
        return None
    names = _HintNames(inspect.unwrap(function).__globals__)
    for name, value in bound.items():
        if name in _OWNERS:
            continue
        parameter = signature.parameters[name]
        hint = _read_hint(parameter.annotation, names)
        given: Mapping[str, Any] = value if parameter.kind is parameter.VAR_KEYWORD else {name: value}
        for each, what in given.items():
            if not _is_of(what, hint):
                return f"{each} must be {' or '.join(_name_kinds(hint))}, not {shown(what)}."
    return None


class _HintNames(dict[str, Any]):
    """What a module knows; what it only names for type checkers may be anything."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, getattr(collections.abc, name, Any))


def _read_hint(annotation: Any, names: _HintNames) -> Any:
    if not isinstance(annotation, str):
        return Any if annotation is inspect.Parameter.empty else annotation
    try:
        return eval(annotation, {}, names)  # noqa: S307 - an annotation of our own
    except Exception:  # noqa: BLE001 - it is for type checkers; what it does not tell is not told
        return Any


def _is_of(value: Any, hint: Any) -> bool:
    """Whether `value` is of a kind that `hint` names, in what it holds as well; what cannot be told is."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return any(_is_of(value, one) for one in inside) and not (_takes_path(inside) and _is_no_path(value))
    if hint is None or origin is typing.Literal:
        return any(type(value) is type(one) and value == one for one in inside or (None,))
    kind = origin or hint
    if kind is Callable:
        return callable(value)
    if getattr(kind, "_is_protocol", False):  # a value of it has all that it names
        return all(hasattr(value, name) for name in {*dir(kind), *kind.__annotations__} if not name.startswith("_"))
    try:
        fits = not isinstance(kind, type) or kind is Any or isinstance(value, kind)
    except TypeError:  # a protocol that only type checkers can tell
        fits = True
    return fits and _holds(value, inside)


def _holds(value: Any, inside: tuple[Any, ...]) -> bool:
    """Whether what `value` holds is of the kinds `inside`: a mapping's keys and values, or the items of anything."""
    if isinstance(value, Mapping):
        pairs = cast("Any", value).items()
        if len(inside) == _PAIR:
            return all(_is_of(one, inside[0]) and _is_of(other, inside[1]) for one, other in pairs)
    if isinstance(value, Iterator) or not isinstance(value, Collection) or len(inside) != 1:
        return True
    return all(_is_of(one, inside[0]) for one in cast("Any", value))


def _takes_path(kinds: tuple[Any, ...]) -> bool:
    return any(kind is PathLike or kind is Path for one in kinds for kind in (typing.get_origin(one) or one,))


def _is_no_path(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        name = fsencode(value)
    except UnicodeError:
        return True
    return not name or b"\0" in name or max(map(len, name.split(b"/"))) > _LONGEST_NAME


def _name_kinds(hint: Any) -> list[str]:
    """What `hint` takes, in words."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        named = [word for one in inside if one is not types.NoneType for word in _name_kinds(one)]
        return list(dict.fromkeys(named))
    if origin is typing.Literal:
        return [repr(one) for one in inside]
    kind = origin or hint
    word = _WORDS.get(kind)
    if word is None and isinstance(kind, type) and issubclass(kind, Mapping):
        word = "a mapping"
    if word is None and isinstance(kind, type) and issubclass(kind, Collection | Iterable):
        word = f"several, each {' or '.join(_name_kinds(inside[0]))}" if inside else "several"
    name = str(getattr(cast("Any", kind), "__name__", "value"))
    return [word or f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"]
