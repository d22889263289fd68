"""Frozen dataclasses that are quick to make, and quicker to fill: the standard library's in everything a reader sees.

A process that meters one call makes some eighty of them. `dataclasses` compiles up to seven functions for each, 0.3 to
0.5 ms; here only ``__init__`` is compiled, 0.1 ms, and what is alike in all of them (`repr`, ``==``, `hash`, refusing
to change) is closures over the fields' names. ``__init__`` fills the slots by their own descriptors: 0.27 us for eight
fields, 0.43 with ``object.__setattr__`` (measured on CPython 3.11 to 3.13). `dataclasses.fields`, `replace`, `asdict`,
pickling, `copy`, ``match``, `inspect.signature` and type checkers see the same class as ever.
"""

from __future__ import annotations

import dataclasses
import sys
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]


class _Factory:
    """What stands in a signature for a default that is made for each instance."""

    def __repr__(self) -> str:
        return "<factory>"


_UNSAID = _Factory()
#: What a class may ask for to be made here.
_QUICK = {"frozen", "slots", "kw_only", "repr"}

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import Field, dataclass
else:

    def dataclass(cls: type | None = None, /, **options: bool) -> Any:
        """`dataclasses.dataclass`, for frozen and slotted classes in the quick way; any other is the library's."""
        if cls is None:
            return lambda decorated: dataclass(decorated, **options)
        quick = options.get("frozen") and options.get("slots") and options.keys() <= _QUICK
        if not quick or "__init__" in cls.__dict__ or any(dataclasses.is_dataclass(base) for base in cls.__mro__[1:]):
            return dataclasses.dataclass(**options)(cls)
        return _make(cls, kw_only=options.get("kw_only", False), shown=options.get("repr", True))


def _make(cls: type, *, kw_only: bool, shown: bool) -> Any:
    """The class with its fields read by `dataclasses`, and its methods by this module."""
    own = dict(cls.__dict__)
    if not cls.__doc__:
        cls.__doc__ = cls.__name__  # or `dataclasses` writes its signature there, at the price of all the rest
    bare: Any = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True, kw_only=kw_only)
    made: Any = bare(cls)
    fields = dataclasses.fields(made)
    methods: dict[str, Any] = {
        "__init__": _compile_init(made, fields),
        "__eq__": _compare([field.name for field in fields if field.compare]),
        "__getstate__": _read_state,
        "__setstate__": _write_state,
        **_refuse_changes(made, frozenset(field.name for field in fields)),
    }
    if shown:
        methods["__repr__"] = _show
    for name, method in methods.items():
        if name not in own:
            setattr(made, name, method)
    if own.get("__hash__") is None:  # a class that writes its own `__eq__` only has None here
        made.__hash__ = _hash([f.name for f in fields if (f.compare if f.hash is None else f.hash)])
    parameters = made.__dataclass_params__
    parameters.init, parameters.repr, parameters.eq, parameters.frozen = True, shown, True, True
    return made


def _compile_init(made: type, fields: tuple[Field[Any], ...]) -> Callable[..., None]:
    """``__init__``: the one function whose text differs from class to class."""
    positional: list[str] = []
    keywords: list[str] = []
    lines: list[str] = []
    given: dict[str, Any] = {"_unsaid": _UNSAID}
    for field in fields:
        name = field.name
        given[f"_fill_{name}"] = made.__dict__[name].__set__
        value = name
        if field.default is not dataclasses.MISSING:
            given[f"_default_{name}"] = field.default
            parameter = f"{name}=_default_{name}"
        elif field.default_factory is not dataclasses.MISSING:
            given[f"_make_{name}"] = field.default_factory
            parameter, value = f"{name}=_unsaid", f"_make_{name}() if {name} is _unsaid else {name}"
        else:
            parameter = name
        (keywords if field.kw_only else positional).append(parameter)
        lines.append(f"  _fill_{name}(self, {value})")
    if hasattr(made, "__post_init__"):
        lines.append("  self.__post_init__()")
    parameters = ", ".join(["self", *positional, *(["*", *keywords] if keywords else [])])
    text = [
        f"def make({', '.join(given)}):",
        f" def __init__({parameters}):",
        *(lines or ["  pass"]),
        " return __init__",
    ]
    namespace: dict[str, Any] = {}
    exec("\n".join(text), sys.modules[made.__module__].__dict__, namespace)  # noqa: S102 - names of fields, as there
    init: Callable[..., None] = namespace["make"](**given)
    init.__qualname__ = f"{made.__qualname__}.__init__"
    init.__annotations__ = {**{field.name: field.type for field in fields}, "return": None}
    return init


def _values_of(names: list[str]) -> Callable[[Any], Any]:
    """A function that reads these fields: a tuple of two and more; of one its value, of none nothing."""
    return attrgetter(*names) if names else lambda _: ()


def _compare(names: list[str]) -> Callable[[Any, object], Any]:
    values = _values_of(names)

    def __eq__(self: Any, other: object) -> Any:  # noqa: N807
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    return __eq__


def _hash(names: list[str]) -> Callable[[Any], int]:
    values = _values_of(names)

    def __hash__(self: Any) -> int:  # noqa: N807
        return hash(values(self))

    return __hash__


def _refuse_changes(made: Any, names: frozenset[str]) -> dict[str, Any]:
    def __setattr__(self: Any, name: str, value: Any) -> None:  # noqa: N807
        if type(self) is made or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(made, self).__setattr__(name, value)  # pyright: ignore[reportUnknownMemberType]

    def __delattr__(self: Any, name: str) -> None:  # noqa: N807
        if type(self) is made or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(made, self).__delattr__(name)  # pyright: ignore[reportUnknownMemberType]

    return {"__setattr__": __setattr__, "__delattr__": __delattr__}


@recursive_repr()
def _show(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _read_state(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _write_state(self: Any, state: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)
