"""The pages: each reads the ledger and fills its template. Nothing here writes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from itertools import dropwhile, islice
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from tokenmeter.dashboard import exports
from tokenmeter.dashboard.chart import chart_data
from tokenmeter.dashboard.live import entries_of, pulse_of
from tokenmeter.dashboard.memory import Memory
from tokenmeter.dashboard.overview import Overview, Ranking, overview, rank
from tokenmeter.dashboard.rendering import base_of, missing, page
from tokenmeter.dashboard.standing import fired, standings
from tokenmeter.dashboard.view import View, canonical, label_of
from tokenmeter.ledger import Entry
from tokenmeter.meter import Meter
from tokenmeter.reports import Row
from tokenmeter.reports.query import parse_by, read_entries
from tokenmeter.reports.report import read_report

__all__ = ["Pages"]

_PAGE = 50
_MOST_ROWS = 500
_MOST_BUDGETS = 200
_MOST_ALERTS = 50


class Breakdown(NamedTuple):
    """The sums of a period, and the values of one dimension."""

    totals: Row
    ranking: Ranking


class Pages:
    """Every page of one meter's dashboard.

    Args:
        meter: Whose ledger, prices and budgets.
        tz: Time zone used until the URL names another.
    """

    def __init__(self, meter: Meter, *, tz: str) -> None:
        self._meter, self._store, self._tz = meter, meter.store, tz
        self._overviews = Memory[tuple[View, Overview]]()
        self._breakdowns = Memory[tuple[View, Breakdown]]()

    def overview(self, request: Request) -> Response:
        """Spend and tokens over time, totals, rankings."""
        if (canonical := self._canonical(request)) is not None:
            return canonical
        state, asked = self._head(), self._view(request)

        def read() -> tuple[View, Overview]:
            view = asked.bounded(self._store)
            return view, overview(self._store, view)

        view, seen = self._overviews.get(asked.identity, state, read)
        return page(
            request,
            "overview.html",
            title="Overview",
            state=state,
            view=view,
            seen=seen,
            chart=chart_data(seen, view, base_of(request)),
            unused=not seen.totals.requests and self._unused(),
        )

    def breakdown(self, request: Request) -> Response:
        """All values of one dimension."""
        if (canonical := self._canonical(request)) is not None:
            return canonical
        state, asked = self._head(), self._view(request, but=("by",))
        (by,) = parse_by([request.query_params.get("by") or "member"])

        def read() -> tuple[View, Breakdown]:
            view = asked.bounded(self._store)
            found = read_report(self._store, replace(view.query, by=(by,)))
            return view, Breakdown(found.totals, rank(found.rows, by, top=_MOST_ROWS))

        view, found = self._breakdowns.get((by, *asked.identity), state, read)
        return page(
            request,
            "breakdown.html",
            title=f"By {label_of(by)}",
            state=state,
            view=view,
            by=by,
            totals=found.totals,
            ranking=found.ranking,
        )

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
            older=found[_PAGE - 1].entry_id if len(found) > _PAGE else None,
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

    def budgets(self, request: Request) -> Response:
        """Every budget with its bar."""
        state = pulse_of(self._store)
        view = self._view(request)
        found = standings(self._meter, self._meter.store.now())
        return page(
            request,
            "budgets.html",
            title="Budgets",
            state=state,
            holds=True,
            view=view,
            standings=found[:_MOST_BUDGETS],
            others=max(len(found) - _MOST_BUDGETS, 0),
            alerts=fired(self._meter, limit=_MOST_ALERTS),
            configured=len(self._meter.budgets.in_force),
        )

    def health(self, request: Request) -> Response:
        """The state of the store."""
        found = self._store.health()
        facts = {
            **{name: value for name, value in found.facts.items() if value is not None},
            "price_list": self._meter.pricer.price_list_hash[:12],
            "budgets": len(self._meter.budgets.in_force),
            "faults_in_this_process": self._meter.faults,
        }
        return page(
            request, "health.html", title="Health", view=self._view(request), facts=facts, warnings=found.warnings
        )

    def export(self, request: Request) -> Response:
        """A download."""
        what = request.path_params["what"]
        if what not in exports.EXPORTS:
            return missing(request, "No such export", f"Exports are {', '.join(exports.EXPORTS)}.")
        view = self._view(request, but=("by",))
        return exports.export(self._store, view, what, by=request.query_params.get("by", ""))

    def _head(self) -> str:
        """Differs after every entry."""
        return entries_of(pulse_of(self._store))

    # -- URLs

    def _view(self, request: Request, *, but: tuple[str, ...] = ()) -> View:
        items = request.query_params.multi_items()
        return View.parse([pair for pair in items if pair[0] not in but], tz=self._tz)

    def _canonical(self, request: Request) -> Response | None:
        """What the filter form sends, as the URL that says the same; None when it is that URL."""
        query = canonical(request.query_params.multi_items())
        return None if query is None else RedirectResponse(f"{request.scope['path']}?{query}", status_code=303)

    def _unused(self) -> bool:
        """Whether nothing was ever recorded."""
        return next(iter(self._store.entries(newest_first=True)), None) is None
