"""The spool of this host: the folder in which its tail lies, and the thread that sends it."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from tokenmeter.errors import StoreError, StoreUnavailableError
from tokenmeter.stores.urls import make_private_file

#: How long the sender waits for more of the same, and after a failure. Seconds.
_GATHER, _AGAIN = 0.005, 0.5
#: Most seconds that closing waits for what is being sent.
_END_SECONDS = 10
_HOST_BYTES = 16


class Spool:
    """What this host keeps of a shared ledger.

    Args:
        path: File beside which the tail lies. It holds the host's identity, by which the server knows how far the tail
            is folded.

    Attributes:
        path: See there; somewhere else if that folder cannot be used.
        trouble: Why the folder cannot be used; None when it can.
        host: The host's identity, 16 bytes.
    """

    def __init__(self, path: Path) -> None:
        self.trouble: str | None = None
        try:
            self.path, self.host = path, _identity(path)
        except OSError as error:
            self.trouble = f"{path.parent} cannot be used: {error.strerror or error}."
            self.path = Path(tempfile.mkdtemp(prefix="tokenmeter-spool-")) / path.name
            self.host = _identity(self.path)

    def remembered_secret(self) -> bytes | None:
        """The ledger's secret, as it was when the server was there."""
        with contextlib.suppress(OSError):
            return self._secret.read_bytes() or None
        return None

    def remember_secret(self, value: bytes) -> None:
        """Keep the ledger's secret for times when the server is away."""
        with contextlib.suppress(OSError):
            if self.remembered_secret() != value:
                fresh = Path(f"{self._secret}.{os.getpid()}")
                make_private_file(fresh)
                fresh.write_bytes(value)
                fresh.replace(self._secret)

    @property
    def _secret(self) -> Path:
        return Path(f"{self.path}-secret")


def _identity(path: Path) -> bytes:
    """What is in the file; made by whoever comes first."""
    if not path.exists():
        fresh = Path(f"{path}.{secrets.token_hex(8)}")
        make_private_file(fresh)
        try:
            fresh.write_text(secrets.token_hex(_HOST_BYTES), encoding="ascii")
            with contextlib.suppress(FileExistsError):
                os.link(fresh, path)
        finally:
            fresh.unlink()
    try:
        found = bytes.fromhex(path.read_text(encoding="ascii"))
    except ValueError:
        found = b""
    if len(found) != _HOST_BYTES:
        raise StoreUnavailableError(
            f"{path} is damaged: it should hold 32 hex digits. Put it and what lies beside it away."
        )
    return found


class Sender:
    """Folds the tail from a thread of its own, soon after something was written, and again while that fails.

    Args:
        fold: What sends.
        rest: Called whenever the time that `pause` gives is over: gives back what is not used.
        pause: Seconds until then; None when there is nothing to give back.
    """

    def __init__(
        self, fold: Callable[[], object], rest: Callable[[], object], pause: Callable[[], float | None]
    ) -> None:
        self._fold, self._rest, self._pause = fold, rest, pause
        self._pid = 0

    def wake(self) -> None:
        """Something was written."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._event, self._ended = threading.Event(), threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(self._event, self._ended), name="tokenmeter-sender", daemon=True
            )
            self._event.set()
            with contextlib.suppress(RuntimeError):  # the interpreter is going down: it is sent at exit
                self._thread.start()
        self._event.set()

    def _run(self, event: threading.Event, ended: threading.Event) -> None:
        while not ended.is_set():
            woken = event.wait(self._pause())
            try:
                if woken:
                    event.clear()
                    ended.wait(_GATHER)
                    self._fold()
                if self._pause() == 0:
                    self._rest()
            except StoreError:  # told by the book
                event.set()
                ended.wait(_AGAIN)

    def close(self) -> None:
        """Wait until the thread has ended, which has no more to send."""
        if self._pid == os.getpid():
            self._pid = 0
            self._ended.set()
            self._event.set()
            if self._thread.is_alive() and self._thread is not threading.current_thread():
                self._thread.join(_END_SECONDS)
