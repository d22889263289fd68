"""For the API reference: the functions that `tokenmeter.verbs` makes from the methods of `Meter`, as functions.

The reference is read from source text, where such a function is a name that is assigned a call.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import griffe

#: Where such names are, and what their assignments begin with.
_MADE = (
    ("verbs", "_on_default("),
    ("verbs", "_in_"),
    ("api.Meter", "_of_"),
    ("api.Meter", "late_method("),
)


class MadeFunctions(griffe.Extension):
    """Puts a function with signature and docstring where the source has an assignment."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Replace the assignments of one module, once everything is read."""
        del kwargs
        for path, maker in _MADE:
            holder = pkg[path]
            place = importlib.import_module((holder if holder.is_module else holder.module).path)
            owner = place if holder.is_module else getattr(place, holder.name)
            for name, member in list(holder.members.items()):
                if isinstance(member, griffe.Attribute) and str(member.value).startswith(maker):
                    holder.set_member(name, _function(name, getattr(owner, name), member))


def _function(name: str, made: Any, member: griffe.Attribute) -> griffe.Function:
    signature = inspect.signature(made)
    return griffe.Function(
        name,
        lineno=member.lineno,
        endlineno=member.endlineno,
        parameters=griffe.Parameters(*map(_parameter, signature.parameters.values())),
        returns=str(signature.return_annotation),
        docstring=griffe.Docstring(inspect.getdoc(made) or "", parser="google"),
    )


def _parameter(one: inspect.Parameter) -> griffe.Parameter:
    empty = inspect.Parameter.empty
    return griffe.Parameter(
        one.name,
        annotation=None if one.annotation is empty else str(one.annotation),
        kind=griffe.ParameterKind(one.kind.description),
        default=None if one.default is empty else repr(one.default),
    )
