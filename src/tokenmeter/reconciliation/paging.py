"""Fetching reports page by page: patient with rate limits, and able to go on where it was interrupted."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError, ReconciliationError, shown
from tokenmeter.money import EXACT
from tokenmeter.patience import wait_for
from tokenmeter.periods import Period
from tokenmeter.tables import parse_number

_Row = dict[str, Any]

#: Called after each page with what is being read, pages read so far, and how many there will be (None = unknown).
Progress = Callable[[str, int, int | None], None]

_ATTEMPTS = 8
_LONGEST_WAIT = 120.0
#: Seconds for a page, with the times that the SDK itself tries again. Alone, it waits for ten minutes, three times.
_LONGEST_ANSWER = 300
_TRY_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
_REDIRECTS = range(300, 400)
_MOST_HOPS = 5
#: Pages without anything that may follow each other; a month has 31 days.
_MOST_EMPTY = 100
#: Pages, and seconds, that one report may take: a month of the largest organizations has some hundreds.
_MOST_PAGES, _LONGEST_REPORT = 10_000, 4 * 3_600


def keep_to_address(client: Any) -> Any:
    """A copy of an SDK's client that is sent on within its host alone: the admin key is for the one it was given.

    Left alone, an SDK sends Anthropic's header with the key on to whatever host an answer names.
    """
    if not hasattr(client, "with_options") or inspect.iscoroutinefunction(client.request):  # which is refused later
        return client
    kept = client.with_options()
    ask = kept.request

    def request(cast_to: Any, options: Any, **more: Any) -> Any:
        for _ in range(_MOST_HOPS):
            try:
                return ask(cast_to, options.model_copy(update={"follow_redirects": False}), **more)
            except Exception as error:
                to = _moved_within_host(error)
                if to is None:
                    raise
                options = options.model_copy(update={"url": to, "params": {}})
        return ask(cast_to, options.model_copy(update={"follow_redirects": False}), **more)

    vars(kept)["request"] = request
    return kept


def _moved_within_host(error: Exception) -> str | None:
    """Where an answer sends a request on to, if that is the host it was sent to; else None."""
    asked: Any = getattr(getattr(error, "request", None), "url", None)
    location = getattr(getattr(error, "response", None), "headers", {}).get("location")
    if getattr(error, "status_code", None) not in _REDIRECTS or asked is None or not location:
        return None
    to = asked.join(location)
    same = (to.scheme, to.host, to.port) == (asked.scheme, asked.host, asked.port)
    return str(to) if same else None


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

    def get(
        self, what: str, parameters: Mapping[str, Any], fetch: Callable[[], Any], *, key_begin: str | None = None
    ) -> dict[str, Any]:
        """One page as plain values; numbers with a point are `Decimal`. One that is not as it should be is not kept.

        Args:
            what: Which report.
            parameters: What is asked for, the page among it.
            fetch: Asks for it.
            key_begin: How the provider's admin keys begin, for who gave another.

        Raises:
            ReconciliationError: the provider keeps refusing; its error is the cause.
        """
        key = f"{self._whose} {what} {json.dumps(parameters, sort_keys=True, default=str)}"
        text = self._known.get(key)
        known = text is not None
        if text is None:
            text = _as_json(self._patiently(what, fetch, key_begin))
        page = _page(what, text)
        if not known:
            self._remember(key, text)
        self._count += 1
        if self._progress is not None:
            self._progress(what, self._count, None)
        return page

    def walk(
        self, what: str, parameters: Mapping[str, Any], ask: Callable[[Mapping[str, Any]], Any], *, key_begin: str
    ) -> Iterator[dict[str, Any]]:
        """The pages of a report, to its end.

        Args:
            what: Which report.
            parameters: What is asked for.
            ask: Asks for a page, by the parameters with the page's token among them.
            key_begin: As for `get`.

        Raises:
            ReconciliationError: as `get`; or there is said to be more, but not where; or a page is given again, or the
                pages have no end.
        """
        tokens, contents = set[str](), set[bytes]()
        given, empty, began = dict(parameters), 0, time.monotonic()
        for _ in range(_MOST_PAGES):
            page = self.get(what, given, partial(ask, given), key_begin=key_begin)
            content = sha256(json.dumps(page["data"], sort_keys=True, default=str).encode()).digest()
            empty = 0 if page["data"] else empty + 1
            if empty > _MOST_EMPTY or (page["data"] and content in contents):
                raise _goes_round(what)
            contents.add(content)
            yield page
            token = _next_token(page, tokens, what)
            if token is None:
                return
            given = {**parameters, "page": token}
            if time.monotonic() - began > _LONGEST_REPORT:
                break
        read, minutes = counted(len(contents), "page"), counted(int(time.monotonic() - began) // 60, "minute")
        raise ReconciliationError(
            f"The provider says that {what} goes on after {read} and {minutes}; nothing was compared. Ask for a "
            "shorter period, or ask the provider."
        )

    def _remember(self, key: str, text: str) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "page": text}) + "\n")

    def _patiently(self, what: str, fetch: Callable[[], Any], key_begin: str | None) -> Any:
        for attempt in range(_ATTEMPTS):
            try:
                return wait_for(lambda _: _ask(fetch), _LONGEST_ANSWER)
            except Exception as error:
                status = getattr(error, "status_code", None)
                if status in {401, 403}:
                    admin = "an admin key" if key_begin is None else f"an admin key ({key_begin}...)"
                    raise ReconciliationError(
                        f"The provider refused to show {what} (HTTP {status}): its reports need {admin}, which an "
                        f"administrator of the organization makes. {error}"
                    ) from error
                if status is not None and status in _REDIRECTS:
                    to = getattr(getattr(error, "response", None), "headers", {}).get("location")
                    raise ReconciliationError(
                        f"The provider sends {what} on to {shown(to)} (HTTP {status}), which is not followed: the key "
                        "is for one address. If the reports are there now, give the client that base_url."
                    ) from error
                cut = isinstance(error, json.JSONDecodeError)  # an answer that broke off, or a proxy's page
                if not (cut or status in _TRY_AGAIN) or attempt == _ATTEMPTS - 1:
                    ours = getattr(error, "request", None) is None and not isinstance(error, TimeoutError)
                    if status is None and ours and not cut:  # nothing of the network's
                        raise
                    away = f"gave no JSON for {what}" if cut else "cannot be reached"
                    how = away if status is None else f"did not show {what} (HTTP {status})"
                    raise ReconciliationError(f"The provider {how}; nothing was compared. {error}") from error
                self._sleep(_wait(error, attempt))
        raise AssertionError("unreachable")


def _ask(fetch: Callable[[], Any]) -> Any:
    """What `fetch` answers.

    Raises:
        json.JSONDecodeError: text, such as a proxy's page, which an SDK hands out as it is or takes for a page of rows.
    """
    try:
        answer = fetch()
    except AttributeError as error:
        answer = error.obj
        if not isinstance(answer, str):
            raise
    if isinstance(answer, str):
        raise json.JSONDecodeError(f"The answer is {shown(answer)}", answer, 0)
    return answer


def _page(what: str, text: str) -> dict[str, Any]:
    """A page that has data.

    Raises:
        ReconciliationError: it has none, or it holds what is no number.
    """

    def refuse(word: str) -> None:
        raise ReconciliationError(f"The provider's answer for {what} has {word} where a number stands; ask them.")

    page = json.loads(text, parse_float=Decimal, parse_constant=refuse)
    if not isinstance(page, dict) or not isinstance(page.get("data"), list):  # pyright: ignore[reportUnknownMemberType]
        raise ReconciliationError(f"The provider's answer for {what} has no list of data; try again, or ask them.")
    return cast("dict[str, Any]", page)


def _next_token(page: Mapping[str, Any], seen: set[str], what: str) -> str | None:
    """The token of the page after `page`; None when it was the last."""
    token = page.get("next_page")
    if page.get("has_more") is False or (not token and not page.get("has_more")):
        return None
    if not token:
        raise ReconciliationError(f"The provider says that {what} goes on, but not where; nothing was compared.")
    if token in seen:
        raise _goes_round(what)
    seen.add(str(token))
    return str(token)


def _goes_round(what: str) -> ReconciliationError:
    return ReconciliationError(f"The provider gives the same page of {what} again and again; nothing was compared.")


class ReportRows:
    """Rows of fetched reports: those of the period, and each once.

    Args:
        period: Days outside are left out; `notes` counts them.
    """

    def __init__(self, period: Period) -> None:
        self._first, self._last = period.start.date(), period.end.date()
        self._label = period.label
        self._outside, self._twice = 0, 0

    def of(self, pages: Iterable[Iterable[tuple[date, _Row]]]) -> Iterator[tuple[date, _Row]]:
        """The rows of one report.

        A row that an earlier page has, word for word, is that one again: a report has one row per day and group.

        Args:
            pages: The rows of each page, with their days.
        """
        before = set[str]()
        for page in pages:
            here = set[str]()
            for day, row in page:
                if not self._first <= day < self._last:
                    self._outside += 1
                    continue
                text = json.dumps([day, row], sort_keys=True, default=str)
                if text in before:
                    self._twice += 1
                    continue
                here.add(text)
                yield day, row
            before |= here

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, in words."""
        said = (
            (self._outside, f"lies outside {self._label}", f"lie outside {self._label}"),
            (self._twice, "stands on an earlier page as well", "stand on an earlier page as well"),
        )
        return tuple(
            counted(
                count, f"row of the provider's reports {one}; it was left out.",
                f"rows of the provider's reports {many}; they were left out.",
            )
            for count, one, many in said
            if count
        )  # fmt: skip


def count_in(row: Mapping[str, Any], name: str) -> int:
    """A count of a report's row, also as text; nothing is 0.

    Raises:
        ReconciliationError: no whole number, or negative.
    """
    value = row.get(name)
    if value is None or value == "":
        return 0
    number = amount_of(value, name)
    if number < 0 or number != number.to_integral_value(context=EXACT):
        raise ReconciliationError(f"The provider's reports have {name} = {value!r}, which is no count.")
    return int(number)


def amount_of(value: object, where: str) -> Decimal:
    """A number of a report, exactly as it is written.

    Raises:
        ReconciliationError: there is none, or it is no finite number.
    """
    if not isinstance(value, bool) and value is not None:
        with suppress(ValueError):
            return parse_number(str(value), ".")
    raise ReconciliationError(f"{where}: {value!r} is no number; nothing was compared.")


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
            then = parsedate_to_datetime(said)
        except (ValueError, TypeError):
            return min(usual, _LONGEST_WAIT)
        then = then.replace(tzinfo=UTC) if then.tzinfo is None else then  # ``-0000``, which says no zone
        seconds = (then - datetime.now(UTC)).total_seconds()
    return min(max(0.0, seconds), _LONGEST_WAIT)  # in this order: what is no number (``nan``) waits for nothing


def _as_json(page: Any) -> str:
    if inspect.isawaitable(page):
        if inspect.iscoroutine(page):
            page.close()
        raise ConfigurationError("reconcile() reads with a sync client; give OpenAI(...) or Anthropic(...).")
    dump = getattr(page, "model_dump_json", None)
    return str(dump(warnings=False)) if dump is not None else json.dumps(page, default=str)
