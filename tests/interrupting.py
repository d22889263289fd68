"""Interrupts for tests: an exception at a line of ours, as Ctrl-C, a signal handler or want of memory raises it."""

from __future__ import annotations

import os
import sys

import tokenmeter

ROOT = os.path.dirname(tokenmeter.__file__)  # noqa: PTH120 - compared with code objects' names


def interrupted_at(number, call, raised=KeyboardInterrupt, *, within=ROOT, without=frozenset()):
    """Where line `number` of ours was, at which `call` was interrupted; None when it has fewer.

    Args:
        number: Counted from 1, as they are run.
        call: What is interrupted. Nothing of `raised` leaves it.
        raised: What is raised.
        within: How the paths of the files begin whose lines count; a text, or several.
        without: Names of functions whose lines do not.
    """
    place, passed = None, 0

    def line(frame, event, _argument):
        nonlocal passed, place
        if event == "line":
            passed += 1
            if passed == number:
                place = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                if raised is MemoryError:
                    del frame  # it comes up at the line itself, and not through a function that is given the frame
                raise raised
        return line

    def enter(frame, _event, _argument):
        counts = frame.f_code.co_filename.startswith(within) and frame.f_code.co_name not in without
        return line if counts else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        call()
    except raised:
        pass
    finally:
        sys.settrace(before)
    return place


def entries_in(store):
    """How many entries there are, without reading each: it is asked after every interrupt."""
    return store._ask("SELECT count(*) FROM entries")[0][0]
