"""What is loaded when it is first asked for: a process whose calls are all it does pays for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar, cast

T = TypeVar("T")


class LateModule:
    """Stands for a module until something in it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)


class LateObject:
    """Stands for what `find` finds, until something of it is asked for."""

    def __init__(self, find: Callable[[], object]) -> None:
        self._find = find

    def __getattr__(self, name: str) -> Any:
        return getattr(self._find(), name)


def late_method(find: Callable[[], T]) -> T:
    """A method that `find` makes when it is first asked for; from then on the class has it as if it stood there."""
    return cast("T", _LateMethod(find))


class _LateMethod:
    def __init__(self, find: Callable[[], Any]) -> None:
        self._find = find

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._owner = owner
        self._name = name

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        method = self._find()
        setattr(self._owner, self._name, method)
        return method.__get__(instance, owner)
