"""Forks for tests."""

from __future__ import annotations

import os
import threading
import time
import traceback

PATIENCE = 60


def run_in_child(work):
    """Run `work` in a forked child, which never comes back here.

    Returns:
        Its exit code: what `work` gives, 0 for nothing, 99 when it raised something, which is printed; None for a child
        that had to be ended.
    """
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        threading.Event().wait(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None
