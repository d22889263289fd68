"""What a forked child must put right before it goes on. Where there is no fork (Windows), there is nothing to do."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["after_fork_in_child", "around_fork"]

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
