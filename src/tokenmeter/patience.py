"""Waiting by way of another thread: one that is left behind where nothing moves, and one that spares an event loop.

The timeouts of sockets are not enough for that. They begin anew with every byte, so a server that sends one now and
then is waited for without end; looking up a name has none; and some packages wait for a go-ahead without any.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from importlib import import_module
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


async def in_thread(work: Callable[[], T], *, left: Callable[[asyncio.Future[T]], object] | None = None) -> T:
    """What `work` gives, in a thread, so that the event loop goes on; it ends, though nobody waits for it any more.

    Args:
        work: Is run with the context of whoever waits.
        left: Is called with what came of it, where whoever waited was cancelled and did not hear.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # trio's: there the SDKs work by anyio
        with import_module("anyio").CancelScope(shield=True):
            given: T = await import_module("anyio.to_thread").run_sync(work)
            return given
    begun: list[bool] = []

    def run() -> T:
        if begun:  # it waited for a thread, and was done without one
            raise RuntimeError("a thread came too late")
        begun.append(True)
        return work()

    doing = asyncio.ensure_future(asyncio.to_thread(run))
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        if left is not None:
            doing.add_done_callback(left)
        raise
    except RuntimeError:
        if begun:
            raise
        return run()  # no thread can be had: better that the loop waits than that a bill is lost
