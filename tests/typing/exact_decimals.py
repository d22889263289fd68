"""A mypy plugin: Decimal arithmetic that would obey the caller's decimal context is an error.

``a + b`` on Decimals rounds to the precision of whatever context the calling program has set, or raises its traps; so
do ``-a``, ``sum``, ``round``, ``a.quantize(x)`` without a context and formats that cut digits. Money goes through
`tokenmeter.money`, which has a context of its own and is the one module where operators may stand.
"""

from collections.abc import Callable

from mypy.plugin import FunctionContext, MethodContext, Plugin
from mypy.types import Instance, Type, UnionType, get_proper_type

_OWNER = "tokenmeter/money.py"
_DECIMALS = ("decimal.Decimal", "_decimal.Decimal")
_ARITHMETIC = {
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow"),
    *("radd", "rsub", "rmul", "rtruediv", "rfloordiv", "rmod", "rdivmod", "rpow"),
    *("neg", "pos", "abs", "round"),
}
#: Methods that round or signal by a context, which they take as their last argument.
_BY_CONTEXT = {
    *("quantize", "scaleb", "normalize", "sqrt", "ln", "log10", "exp", "fma", "remainder_near", "logb", "shift"),
    *("rotate", "next_plus", "next_minus", "next_toward", "max", "min", "to_integral_exact"),
}
_BUILTINS = {"builtins.sum", "builtins.round", "builtins.abs", "builtins.divmod", "builtins.pow", "builtins.format"}


class ExactDecimals(Plugin):
    """Reports each such place."""

    def get_method_hook(self, fullname: str) -> Callable[[MethodContext], Type] | None:
        """Operators and methods of Decimal, and formats."""
        owner, _, name = fullname.rpartition(".")
        if owner in _DECIMALS:
            if name.strip("_") in _ARITHMETIC and name.startswith("__"):
                return _operator
            return _method if name in _BY_CONTEXT else None
        return _format if fullname == "builtins.str.format" else None

    def get_function_hook(self, fullname: str) -> Callable[[FunctionContext], Type] | None:
        """Builtins that use the operators."""
        return _function if fullname in _BUILTINS else None


def _operator(context: MethodContext) -> Type:
    return _reported(context, "Decimal operators obey the caller's decimal context")


def _method(context: MethodContext) -> Type:
    given = [get_proper_type(each) for types in context.arg_types for each in types]
    if any(isinstance(each, Instance) and each.type.name == "Context" for each in given):
        return context.default_return_type
    return _reported(context, "without context= this obeys the caller's decimal context")


def _function(context: FunctionContext) -> Type:
    given = [each for types in context.arg_types for each in types]
    if not any(map(_is_decimal, (context.default_return_type, *given))):
        return context.default_return_type
    return _reported(context, "on Decimals this obeys the caller's decimal context")


def _format(context: MethodContext) -> Type:
    """``f"{amount:.2f}"``, which is ``"{:{}}".format(amount, ".2f")`` to mypy."""
    given = [each for types in context.arg_types for each in types]
    literals = _literals(context)
    if given and _is_decimal(given[0]) and len(literals) > 1 and not _is_whole(literals[1]):
        return _reported(context, "a format that cuts digits rounds by the caller's decimal context")
    return context.default_return_type


def _literals(context: MethodContext | FunctionContext) -> list[str | None]:
    return [getattr(each, "value", None) for arguments in context.args for each in arguments]


def _is_whole(spec: str | None) -> bool:
    """Whether a format shows every digit, as it is."""
    return spec is not None and "." not in spec and not spec.endswith(("%", "e", "E", "g", "G", "n"))


def _is_decimal(given: Type) -> bool:
    proper = get_proper_type(given)
    if isinstance(proper, UnionType):
        return any(map(_is_decimal, proper.items))
    return isinstance(proper, Instance) and any(map(proper.type.has_base, _DECIMALS))


def _reported(context: MethodContext | FunctionContext, why: str) -> Type:
    path = context.api.path
    if not path.endswith(_OWNER):
        context.api.fail(f"{why}; use tokenmeter.money", context.context)
    return context.default_return_type


def plugin(version: str) -> type[Plugin]:
    """What mypy loads."""
    del version
    return ExactDecimals
