"""Fetching reports page by page: patient with rate limits, and able to go on where it was interrupted."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, cast

from tokenmeter.errors import ConfigurationError, ReconciliationError

#: Called after each page with what is being read, pages read so far, and how many there will be (None = unknown).
Progress = Callable[[str, int, int | None], None]

_ATTEMPTS = 8
_LONGEST_WAIT = 120.0
_TRY_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504, 529})


class ReportPages:
    """Pages of reports, each asked for once.

    Args:
        resume: A file to remember pages in; a later run with the same file does not fetch them again. Delete it to
            start afresh.
        progress: Told after each page.
        whose: Whose reports they are; remembered pages of somebody else's are not taken.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        *,
        resume: str | Path | None = None,
        progress: Progress | None = None,
        whose: str = "",
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._path = None if resume is None else Path(resume)
        self._progress = progress
        self._whose = whose
        self._sleep = sleep
        self._known = dict(self._remembered())
        self._count = 0

    def _remembered(self) -> Iterator[tuple[str, str]]:
        if self._path is not None and self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # the line that an interruption cut
                    continue
                if isinstance(row, dict) and {"key", "page"} <= row.keys():
                    yield str(row["key"]), str(row["page"])  # pyright: ignore[reportUnknownArgumentType]

    def get(self, what: str, parameters: Mapping[str, Any], fetch: Callable[[], Any]) -> dict[str, Any]:
        """One page as plain values; numbers with a point are `Decimal`.

        Args:
            what: Which report.
            parameters: What is asked for, the page among it.
            fetch: Asks for it.

        Raises:
            ReconciliationError: the provider keeps refusing; its error is the cause.
        """
        key = f"{self._whose} {what} {json.dumps(parameters, sort_keys=True, default=str)}"
        text = self._known.get(key)
        if text is None:
            text = _as_json(self._patiently(what, fetch))
            self._remember(key, text)
        self._count += 1
        if self._progress is not None:
            self._progress(what, self._count, None)
        page = json.loads(text, parse_float=Decimal)
        if not isinstance(page, dict) or not isinstance(page.get("data"), list):  # pyright: ignore[reportUnknownMemberType]
            raise ReconciliationError(f"The provider's answer for {what} has no list of data; try again, or ask them.")
        return cast("dict[str, Any]", page)

    def _remember(self, key: str, text: str) -> None:
        self._known[key] = text
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "page": text}) + "\n")

    def _patiently(self, what: str, fetch: Callable[[], Any]) -> Any:
        for attempt in range(_ATTEMPTS):
            try:
                return fetch()
            except Exception as error:
                status = getattr(error, "status_code", None)
                if status in {401, 403}:
                    raise ReconciliationError(
                        f"The provider refused to show {what} (HTTP {status}): its reports need an admin key. {error}"
                    ) from error
                if status not in _TRY_AGAIN or attempt == _ATTEMPTS - 1:
                    raise
                self._sleep(_wait(error, attempt))
        raise AssertionError("unreachable")


def next_token(page: Mapping[str, Any], seen: set[str], what: str) -> str | None:
    """The token of the page after `page`; None when it was the last.

    Raises:
        ReconciliationError: there is said to be more, but not where, or a page is given again.
    """
    token = page.get("next_page")
    if page.get("has_more") is False or (not token and not page.get("has_more")):
        return None
    if not token:
        raise ReconciliationError(f"The provider says that {what} goes on, but not where; nothing was compared.")
    if token in seen:
        raise ReconciliationError(f"The provider gives the same page of {what} again and again; nothing was compared.")
    seen.add(str(token))
    return str(token)


def _wait(error: Exception, attempt: int) -> float:
    """Seconds to wait: what ``retry-after`` says, else doubling from one."""
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", None) or {}
    said = headers.get("retry-after")
    usual = float(2**attempt)
    if said is None:
        return min(usual, _LONGEST_WAIT)
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
        except ValueError:
            seconds = usual
    return min(max(seconds, 0.0), _LONGEST_WAIT)


def _as_json(page: Any) -> str:
    if inspect.isawaitable(page):
        if inspect.iscoroutine(page):
            page.close()
        raise ConfigurationError("reconcile() reads with a sync client; give OpenAI(...) or Anthropic(...).")
    dump = getattr(page, "model_dump_json", None)
    return str(dump()) if dump is not None else json.dumps(page, default=str)
