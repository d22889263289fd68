"""Asking somebody who may never answer: another thread does, and is left behind where nothing moves for too long.

The timeouts of sockets are not enough for that. They begin anew with every byte, so a server that sends one now and
then is waited for without end; looking up a name has none; and some packages wait for a go-ahead without any.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")

#: An exchange with a server has so many steps (being found, being asked, answering) that each may take a timeout.
STEPS = 3


def wait_for(work: Callable[[Callable[[], None]], T], seconds: float) -> T:
    """What `work` gives, if it gives it in time.

    Args:
        work: Is handed a function to call whenever something moved: its time begins anew with that. What it does after
            it was given up must harm nobody.
        seconds: How long nothing may move.

    Raises:
        TimeoutError: nothing moved for so long.
    """
    done, moved = Future[T](), [time.monotonic()]

    def tell() -> None:
        moved[0] = time.monotonic()

    def run() -> None:
        try:
            done.set_result(work(tell))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            done.set_exception(error)

    try:
        threading.Thread(target=run, name="tokenmeter-asking", daemon=True).start()
    except RuntimeError:  # none begins any more while the interpreter ends
        run()
    while (left := moved[0] + seconds - time.monotonic()) > 0 and not wait([done], left).done:
        pass
    if not done.done():
        raise TimeoutError(f"nothing came of it for {seconds:g} seconds")
    return done.result()
