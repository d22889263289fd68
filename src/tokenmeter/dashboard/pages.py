"""The pages: each reads the ledger and fills its template, or a file to download. Nothing here writes."""

from __future__ import annotations

import shutil
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import timedelta
from itertools import dropwhile, islice
from pathlib import Path
from typing import Generic, TypeVar

from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tokenmeter.billing import invoices
from tokenmeter.budgets import Balance
from tokenmeter.dashboard.budgets import standings
from tokenmeter.dashboard.care import checks, estimated, price_card, price_rows, unpriced, used_prices
from tokenmeter.dashboard.chart import column_places, draw, over_time
from tokenmeter.dashboard.explore import ReportReader, explore
from tokenmeter.dashboard.overview import RANKED, Overview, overview
from tokenmeter.dashboard.questions import MEASURES, Measure, Question
from tokenmeter.dashboard.rendering import base_of, missing, page, zone_of
from tokenmeter.dashboard.view import View, canonical, label_of
from tokenmeter.dimensions import ACCOUNTS, SCOPE_FIELDS
from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import Entry
from tokenmeter.periods import zone
from tokenmeter.reports import Query, export_charges, export_entries, export_focus
from tokenmeter.reports.query import parse_by, read_entries
from tokenmeter.reports.report import read_report
from tokenmeter.serving.lens import ReadableMeter, pulse_of
from tokenmeter.serving.probes import entries_of
from tokenmeter.stores.base import Store

T = TypeVar("T")

_PAGE = 50
_LAST = 10
#: What has a page of its own.
_ACCOUNTS = ("member", "api_key", "team", "project", "organization", "end_user", "route")
_MOST_ROWS = 500


class Pages:
    """Every page of one meter's dashboard.

    Args:
        meter: Whose ledger, prices and budgets.
        tz: Time zone used until the URL names another; None = the browser's.
    """

    def __init__(self, meter: ReadableMeter, *, tz: str | None) -> None:
        self._meter, self._store, self._tz = meter, meter.store, tz
        self._overviews = Memory[tuple[View, Overview]]()
        self._readers = Memory[tuple[View, ReportReader]]()

    def routes(self) -> list[Route]:
        """Where each page is."""
        return [
            Route("/", self.overview),
            Route("/explore", self.explore),
            Route("/values", self.values),
            Route("/account", self.account),
            Route("/prices", self.prices),
            Route("/doubts", self.doubts),
            Route("/entries", self.entries),
            Route("/entries/{entry_id}", self.entry),
            Route("/health", self.health),
            Route("/export/{what}", self.export),
        ]

    def overview(self, request: Request) -> Response:
        """Spend over time, totals, rankings."""
        if (canonical := self._canonical(request)) is not None:
            return canonical
        state, asked = self._head(), self._view(request)

        view, seen = self._overview(asked, state)
        base = base_of(request)
        return page(
            request,
            "overview.html",
            title="Overview",
            state=state,
            view=view,
            seen=seen,
            answer=seen.answer,
            chart=draw(seen.answer, base, lambda question: f"{base}/explore{view.url(*question.items())}"),
            unused=not seen.answer.totals.requests and self._unused(),
        )

    def explore(self, request: Request) -> Response:
        """One measure by one dimension over time, as a chart and as a table."""
        if (canonical := self._canonical(request)) is not None:
            return canonical
        question = Question.parse(request.query_params.multi_items())
        state, asked = self._head(), self._view(request, but=Question.NAMES)

        view, read = self._reader(asked, state)
        answer = explore(read, view, question, balances=self._balances(view, question.measure))
        base = base_of(request)

        def url(other: Question) -> str:
            return f"{base}/explore{view.url(*other.items())}"

        return page(
            request,
            "explore.html",
            title=f"{question.measure.label} by {label_of(question.by)}",
            state=state,
            view=view,
            answer=answer,
            chart=draw(answer, base, url),
            url=url,
            places=column_places(answer),
            texts=over_time(answer),
            deeper=next(iter(view.free_dimensions([one for one in RANKED if one != question.by])), question.by),
        )

    def _reader(self, asked: View, state: str) -> tuple[View, ReportReader]:
        """What reads for a view: whatever one page asked, none of the others asks again."""
        return self._readers.get(asked.identity, state, lambda: (asked.bounded(self._store), ReportReader(self._store)))

    def _overview(self, asked: View, state: str) -> tuple[View, Overview]:
        def make() -> tuple[View, Overview]:
            view, read = self._reader(asked, state)
            return view, overview(read, view, balances=self._balances(view, MEASURES["spend"]))

        return self._overviews.get(asked.identity, state, make)

    def values(self, request: Request) -> Response:
        """Known values of a dimension in a period, the dearest first: what a filter field suggests."""
        (by,) = parse_by([request.query_params.get("of", "model")])
        asked = self._view(request, but=("of",))
        view = asked.without_all(by).bounded(self._store)
        found = read_report(self._store, replace(view.query, by=(by,)))
        return JSONResponse([row.group[by] for row in found.rows[:_MOST_ROWS] if row.group[by]])

    def _balances(self, view: View, measure: Measure) -> Sequence[Balance]:
        """Where the budgets stand that are about just what is shown."""
        scope, unit = view.scope, measure.budgeted
        known = self._meter.budgets.in_force
        if scope is None or all(one.scope.keys() != scope.keys() or unit not in one.units for one in known):
            return ()
        return self._meter.budgets.remaining(scope, self._store.now())

    def entries(self, request: Request) -> Response:
        """Single calls, newest first, page by page."""
        if (canonical := self._canonical(request)) is not None:
            return canonical
        state = self._head()
        view = self._view(request, but=("before",))
        found = list(islice(self._older(view, request.query_params.get("before")), _PAGE + 1))
        return page(
            request,
            "entries.html",
            title="Entries",
            state=state,
            view=view,
            entries=found[:_PAGE],
            older=("before", found[_PAGE - 1].entry_id) if len(found) > _PAGE else None,
            first="before" not in request.query_params,
        )

    def _older(self, view: View, before: str | None) -> Iterable[Entry]:
        query = view.query
        last = self._entry(before) if before else None
        if last is None:
            return read_entries(self._store, query, newest_first=True)
        until = min(last.occurred_at + timedelta(microseconds=1), query.period.end)
        query = replace(query, period=replace(query.period, end=until))
        found = read_entries(self._store, query, newest_first=True)
        return islice(dropwhile(lambda entry: entry.entry_id != last.entry_id, found), 1, None)

    def entry(self, request: Request) -> Response:
        """One entry and how each of its charges was made."""
        entry_id = request.path_params["entry_id"]
        entry = self._entry(entry_id)
        if entry is None:
            return missing(request, "No such entry", f"There is no entry {entry_id[:64]!r} in this ledger.")
        view = self._view(request)
        return page(request, "entry.html", title="Entry", view=view, entry=entry)

    def _entry(self, entry_id: str) -> Entry | None:
        return self._store.entry(entry_id) if entry_id.isprintable() else None  # a server refuses NUL in a text

    def account(self, request: Request) -> Response:
        """All of one member, key, team or other account: what was spent on what, its budgets, invoices and calls."""
        if (canonical := self._canonical(request)) is not None:
            return canonical
        state, asked = self._head(), self._view(request)
        whose = next(((name, value) for name, value in asked.filters if name in _ACCOUNTS and value), None)
        if whose is None:
            raise ConfigurationError(f"Whose page? Name one of {', '.join(_ACCOUNTS)}, such as ?member=ada.")
        dimension, value = whose
        store, scope = self._store, {dimension: value}

        view, seen = self._overview(asked, state)
        base, now = base_of(request), store.now()
        bills = invoices(store, lines=False) if dimension in ACCOUNTS else []
        return page(
            request,
            "account.html",
            title=f"{label_of(dimension).capitalize()} {value}",
            state=state,
            view=view,
            dimension=dimension,
            value=value,
            seen=seen,
            answer=seen.answer,
            chart=draw(seen.answer, base, lambda question: f"{base}/explore{view.url(*question.items())}"),
            standings=standings(self._meter, now, scope) if dimension in SCOPE_FIELDS else [],
            invoices=[one for one in bills if one.scope == scope],
            today=now.astimezone(zone(view.tz)).date(),
            billed=dimension in ACCOUNTS,
            entries=list(islice(read_entries(store, view.query, newest_first=True), _LAST)),
        )

    def prices(self, request: Request) -> Response:
        """What models cost: those that were called lately, or every price of one, now, before and after."""
        asked, listed = request.query_params, self._meter.pricer.price_list
        view = View.parse([("period", "last-30d")], tz=zone_of(request, self._tz))
        model, provider = asked.get("model", "").strip(), asked.get("provider", "").strip()
        return page(
            request,
            "prices.html",
            title="Prices",
            view=view,
            model=model,
            provider=provider,
            listed=listed,
            card=price_card(listed, provider, model, view.now) if model else None,
            rows=price_rows(provider or "openai", model, ("input", "output")),
            used=() if model else used_prices(self._store, listed, view),
        )

    def doubts(self, request: Request) -> Response:
        """What has no price and what is estimated, why, and what to do about it."""
        if (canonical := self._canonical(request)) is not None:
            return canonical
        state, asked = self._head(), self._view(request)
        view = asked.bounded(self._store)
        return page(
            request,
            "doubts.html",
            title="Not exact",
            state=state,
            view=view,
            unpriced=unpriced(self._store, self._meter.pricer.price_list, view),
            estimated=estimated(self._store, view),
        )

    def health(self, request: Request) -> Response:
        """The state of the store, in words."""
        found = self._store.health()
        return page(
            request,
            "health.html",
            title="Health",
            view=self._view(request),
            checks=checks(self._meter, found),
            facts={name: value for name, value in found.facts.items() if value is not None},
            warnings=found.warnings,
        )

    def export(self, request: Request) -> Response:
        """A download."""
        what = request.path_params["what"]
        if what not in EXPORTS:
            return missing(request, "No such export", f"Exports are {', '.join(EXPORTS)}.")
        view = self._view(request, but=Question.NAMES)
        return export(self._store, view, what, by=request.query_params.get("by", ""))

    def _head(self) -> str:
        """Differs after every entry."""
        return entries_of(pulse_of(self._store))

    # -- URLs

    def _view(self, request: Request, *, but: tuple[str, ...] = ()) -> View:
        items = request.query_params.multi_items()
        return View.parse([pair for pair in items if pair[0] not in but], tz=zone_of(request, self._tz))

    def _canonical(self, request: Request) -> Response | None:
        """What the filter form sends, as the URL that says the same; None when it is that URL."""
        query = canonical(request.query_params.multi_items())
        return None if query is None else RedirectResponse(f"{request.scope['path']}?{query}", status_code=303)

    def _unused(self) -> bool:
        """Whether nothing was ever recorded."""
        return next(iter(self._store.entries(newest_first=True)), None) is None


class Memory(Generic[T]):
    """The last reading of each of a few keys.

    Who asks for one that is being made waits for it; a failed one is forgotten.

    Args:
        most: How many keys are kept.
    """

    def __init__(self, most: int = 16) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[str, Future[T]]] = OrderedDict()

    def get(self, key: Hashable, state: str, make: Callable[[], T]) -> T:
        """The reading called `key` of a ledger in that `state`, made by `make` unless it is the one that is kept."""
        mine = Future[T]()
        with self._lock:
            known, found = self._kept.get(key, ("", mine))
            if known != state:
                found = mine
            self._kept[key] = (state, found)
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        if found is mine:
            self._fulfil(key, mine, make)
        return found.result()

    def _fulfil(self, key: Hashable, mine: Future[T], make: Callable[[], T]) -> None:
        try:
            mine.set_result(make())
        except BaseException as error:  # noqa: BLE001 - whoever asked raises it
            with self._lock:
                if self._kept.get(key, ("", None))[1] is mine:
                    del self._kept[key]
            mine.set_exception(error)


# -- downloads: of bounded size, and not many at once

#: Calls that one download may hold; a sheet has room for little more. The command line has no such bound.
_MOST_CALLS = 1_000_000
#: Downloads that are made at the same time.
_MOST_AT_ONCE = 4
_slots = threading.BoundedSemaphore(_MOST_AT_ONCE)


def _report(store: Store, view: View, by: str, target: Path) -> None:
    query = replace(view.query, by=parse_by(by) if by else ())
    if not by:
        query = view.bounded(store).over_time()[0]
    read_report(store, query).export(target)


def _entries(store: Store, view: View, _by: str, target: Path) -> None:
    _check_size(store, view)
    export_entries(store, target, query=view.query)


def _charges(store: Store, view: View, _by: str, target: Path) -> None:
    _check_size(store, view)
    export_charges(store, target, query=view.query)


def _focus(store: Store, view: View, _by: str, target: Path) -> None:
    _check_size(store, view)
    folder = target.with_suffix("")
    export_focus(store, folder, query=Query(period=view.query.period, where=view.query.where))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)


def _check_size(store: Store, view: View) -> None:
    """Refuse what is too large to be made while somebody waits.

    Raises:
        ConfigurationError: says how many calls it are, and what to do.
    """
    calls = read_report(store, replace(view.query, by=())).totals.requests
    if calls > _MOST_CALLS:
        raise ConfigurationError(
            f"These are {counted(calls, 'call')}, and a download holds {_MOST_CALLS:,} at most. Choose a shorter "
            "period or a filter, or write them on the server, where there is no bound: tokenmeter export --help."
        )


_WRITERS: Mapping[str, Callable[[Store, View, str, Path], None]] = {
    "report": _report,
    "entries": _entries,
    "charges": _charges,
}
_TYPES = {
    ".csv": "text/csv; charset=utf-8",
    ".jsonl": "application/x-ndjson",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".parquet": "application/vnd.apache.parquet",
    ".zip": "application/zip",
}
#: File name in the URL -> what writes it.
EXPORTS: Mapping[str, Callable[[Store, View, str, Path], None]] = {
    **{f"{name}{form}": write for name, write in _WRITERS.items() for form in (".csv", ".jsonl", ".xlsx", ".parquet")},
    "focus.zip": _focus,
}


def export(store: Store, view: View, what: str, *, by: str = "") -> FileResponse:
    """The download called `what`, a key of `EXPORTS`; the file is gone once it was sent.

    Raises:
        ConfigurationError: `by` names an unknown dimension, an extra is missing, or it would be too large.
        HTTPException: so many are being made that this one has to wait.
    """
    if not _slots.acquire(blocking=False):
        raise HTTPException(
            503, "Other downloads are being made; ask again when one is done.", headers={"retry-after": "10"}
        )
    folder = Path(tempfile.mkdtemp(prefix="tokenmeter-export-"))
    file = folder / ("focus-1.4.zip" if what == "focus.zip" else what)
    try:
        EXPORTS[what](store, view, by, file)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        _slots.release()
    return FileResponse(
        file,
        media_type=_TYPES[file.suffix],
        filename=f"tokenmeter-{file.name}",
        background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
    )
