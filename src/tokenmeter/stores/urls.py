"""Store URLs as they may be shown: without passwords."""

from __future__ import annotations

import re

__all__ = ["redacted"]

_SECRET = re.compile(r"(?i)([a-z_]*(?:password|secret)\s*=\s*)[^&\s]*")
_END_OF_HOST = re.compile(r"[/?#]")


def redacted(url: str) -> str:
    """`url` with ``***`` for every secret in it; where a URL is malformed it rather hides too much."""
    scheme, mark, rest = url.partition("://")
    if mark:
        rest = _without_password(rest)
    return _SECRET.sub(r"\1***", scheme + mark + rest)


def _without_password(rest: str) -> str:
    host = _END_OF_HOST.split(rest, maxsplit=1)[0]
    split_password = host and "@" not in host and "@" in rest  # it has an unescaped / ? or #
    user, at, place = (rest if split_password else host).rpartition("@")
    tail = "" if split_password else rest[len(host) :]
    name, colon, _ = user.partition(":")
    return f"{name}:***{at}{place}{tail}" if colon else rest
