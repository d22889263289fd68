"""Processes: what tells one from another, whether it has ended, and what a forked child must put right.

Where there is no fork (Windows), there is nothing to put right.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

#: None on Windows.
_register = getattr(os, "register_at_fork", None)


def after_fork_in_child(mend: Callable[[], object]) -> Callable[[], object]:
    """Have `mend` called in every forked child, first thing. Usable as a decorator of a module's function.

    A lock that another thread held at the fork is never freed in the child: renew it. What only the parent may write
    down or close is forgotten.
    """
    return around_fork(child=mend)


def around_fork(
    *,
    child: Callable[[], object],
    before: Callable[[], object] | None = None,
    parent: Callable[[], object] | None = None,
) -> Callable[[], object]:
    """Have `before` called before every fork, then `parent` in the parent and `child` in the child."""
    if _register is not None:
        hooks = {"before": before, "after_in_parent": parent, "after_in_child": child}
        _register(**{name: hook for name, hook in hooks.items() if hook is not None})
    return child


_name: tuple[int, str] = (0, "")


def process_name() -> str:
    """``host:pid`` of this process; on Linux with two marks behind, of where the pid counts and of when it began."""
    global _name  # noqa: PLW0603 - asked for with every hold
    pid = os.getpid()
    if _name[0] != pid:
        name, began = f"{socket.gethostname()}:{pid}", _beginning(pid)
        _name = pid, f"{name}:{where}:{began}" if (where := _namespace()) and began else name
    return _name[1]


def has_ended(name: str) -> bool:
    """Whether the process of that `process_name` has ended; False where that cannot be told from here."""
    host, _, marks = name.partition(":")
    pid, *rest = marks.split(":")
    if len(rest) != 2 or host != socket.gethostname() or rest[0] != _namespace() or not pid.isdecimal():  # noqa: PLR2004
        return False
    return _beginning(int(pid)) != rest[1]


def _namespace() -> str | None:
    """A mark of this start of the machine and of the set of processes that can be seen here."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return hashlib.sha256(f"{boot}{Path('/proc/self/ns/pid').readlink()}".encode()).hexdigest()[:12]
    return None


def _beginning(pid: int) -> str | None:
    """When a process began, in the system's ticks; None for one that is not there, or only waits to be forgotten."""
    with contextlib.suppress(OSError):
        state, *rest = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        return None if state in {"Z", "X"} else rest[18]
    return None
