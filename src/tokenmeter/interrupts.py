"""An interrupt of the program, told from a call that failed.

It is nobody's fault and is never kept from the program: where a docstring says that something never raises, it raises
nothing but interrupts, be they a `KeyboardInterrupt` or the `Exception` of a signal's handler.
"""

from __future__ import annotations

from inspect import CO_VARARGS
from types import FrameType


def came_from_outside(error: BaseException) -> bool:
    """Whether `error` ended a call that had not failed itself: it was cancelled, or the program was interrupted.

    A handler of a signal may raise an `Exception`, too (Celery's soft time limit, RQ's job timeout), and an SDK may
    raise an error of its own about it: so the errors that it came from are asked as well.
    """
    return not isinstance(error, Exception) or _interrupt_behind(error) is not None


def let_interrupt_through(error: BaseException) -> None:
    """Raise what a handler of a signal raised amid something of ours: it is for the program, and no fault.

    Raises:
        BaseException: `error`, or what it came from.
    """
    interrupt = _interrupt_behind(error)
    if interrupt is not None:
        raise interrupt


def _interrupt_behind(error: BaseException) -> BaseException | None:
    """What a handler raised, among `error` and the errors that it came from."""
    seen: set[int] = set()
    reason: BaseException | None = error
    while reason is not None and id(reason) not in seen:
        if _was_raised_by_handler(reason):
            return reason
        seen.add(id(reason))
        reason = reason.__cause__  # its context may be an interrupt of before, after which the program went on
    return None


def _was_raised_by_handler(error: BaseException) -> bool:
    """Whether it came up through a function that Python called with the frame it had interrupted."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        interrupted, trace = trace.tb_frame, trace.tb_next
        if _is_given(trace.tb_frame, interrupted):
            return True
    return False


def _is_given(called: FrameType, frame: FrameType) -> bool:
    """Whether `frame` is an argument of `called`: no function is given its caller's but what interrupts it."""
    code = called.f_code
    gathers = bool(code.co_flags & CO_VARARGS)
    if code.co_argcount < 2 and not gathers:  # noqa: PLR2004 - a handler is called with the signal and the frame
        return False
    given = code.co_argcount + code.co_kwonlyargcount
    names = code.co_varnames[: given + gathers]
    values = called.f_locals
    if gathers and any(value is frame for value in values.get(names[-1], ())):
        return True
    return any(values.get(name) is frame for name in names)
