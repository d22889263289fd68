"""The pages: each reads the ledger and fills its template, or a file to download. Nothing here writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import dropwhile, islice

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tokenmeter.billing.filed import invoices_of
from tokenmeter.budgets import Balance
from tokenmeter.dashboard.budgets import standings
from tokenmeter.dashboard.care import checks, estimated, price_card, price_rows, unpriced, used_prices
from tokenmeter.dashboard.chart import column_places, draw, over_time
from tokenmeter.dashboard.downloads import EXPORTS, export
from tokenmeter.dashboard.explore import explore
from tokenmeter.dashboard.overview import RANKED, Overview, overview
from tokenmeter.dashboard.questions import MEASURES, Measure, Question
from tokenmeter.dashboard.reading import Memory, ReportReader
from tokenmeter.dashboard.rendering import missing, page, zone_of
from tokenmeter.dashboard.security import base_of, path_of
from tokenmeter.dashboard.view import WITH_PAGE, View, canonical, label_of
from tokenmeter.dimensions import ACCOUNTS, SCOPE_FIELDS
from tokenmeter.errors import ConfigurationError, StoreUnavailableError
from tokenmeter.ledger import Entry
from tokenmeter.periods import zone
from tokenmeter.reports.query import parse_by, read_entries
from tokenmeter.reports.report import read_report
from tokenmeter.serving.lens import ReadableMeter, pulse_of
from tokenmeter.serving.probes import entries_of
from tokenmeter.serving.problems import tell_error

_PAGE = 50
_LAST = 10
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
        self._tags = Memory[Sequence[str]](1)

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
            tags=self._tags_of(state),
            seen=seen,
            answer=seen.answer,
            chart=draw(seen.answer, base, lambda question: f"{base}/explore{view.url(*question.items())}"),
            unused=not seen.answer.totals.requests and self._unused(),
        )

    def explore(self, request: Request) -> Response:
        """One measure by one dimension over time, as a chart and as a table."""
        question = Question.parse(request.query_params.multi_items())
        if (canonical := self._canonical(request, question)) is not None:
            return canonical
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
            tags=self._tags_of(state),
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

    def _tags_of(self, state: str) -> Sequence[str]:
        """The tags that there are, as dimensions to ask by."""
        return self._tags.get("", state, lambda: [f"tag:{name}" for name in self._store.tag_names()])

    def _balances(self, view: View, measure: Measure) -> Sequence[Balance]:
        """Where the budgets stand that are about just what is shown."""
        scope, unit = view.scope, measure.budgeted
        known = self._meter.budgets.in_force
        # Most views are about no budget: then no counter is read.
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
            tags=self._tags_of(state),
            entries=found[:_PAGE],
            older=("before", found[_PAGE - 1].entry_id) if len(found) > _PAGE else None,
            first="before" not in request.query_params,
        )

    def _older(self, view: View, before: str | None) -> Iterable[Entry]:
        query = view.query
        last = self._entry(before) if before else None
        if last is None:
            return read_entries(self._store, query, newest_first=True)
        # Others may share the last one's instant, so it is read again; the page begins behind that entry.
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
        whose = next(((name, value) for name, value in asked.filters if name in WITH_PAGE and value), None)
        if whose is None:
            raise ConfigurationError(f"Whose page? Name one of {', '.join(WITH_PAGE)}, such as ?member=ada.")
        dimension, value = whose
        store, scope = self._store, {dimension: value}

        view, seen = self._overview(asked, state)
        base, now = base_of(request), store.now()
        bills = invoices_of(store, scope) if dimension in ACCOUNTS else []
        calls: list[Entry] = []
        unread = ""
        try:
            calls = list(islice(read_entries(store, view.query, newest_first=True), _LAST))
        except (ConfigurationError, StoreUnavailableError) as error:  # they are in an archived month
            unread = tell_error(request, error)
        return page(
            request,
            "account.html",
            title=f"{label_of(dimension).capitalize()} {value}",
            state=state,
            view=view,
            tags=self._tags_of(state),
            dimension=dimension,
            value=value,
            seen=seen,
            answer=seen.answer,
            chart=draw(seen.answer, base, lambda question: f"{base}/explore{view.url(*question.items())}"),
            standings=standings(self._meter, now, scope) if dimension in SCOPE_FIELDS else [],
            invoices=bills,
            today=now.astimezone(zone(view.tz)).date(),
            billed=dimension in ACCOUNTS,
            entries=calls,
            unread=unread,
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
            tags=self._tags_of(state),
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

    def _canonical(self, request: Request, question: Question | None = None) -> Response | None:
        """What a form sends, as the URL that says the same; None when it is that URL."""
        items = request.query_params.multi_items()
        if question is not None:
            items = [*question.items(), *(pair for pair in items if pair[0] not in Question.NAMES)]
        query = canonical(items, tz=zone_of(request, self._tz))
        return (
            None
            if query is None
            else RedirectResponse(f"{base_of(request)}{path_of(request)}?{query}", status_code=303)
        )

    def _unused(self) -> bool:
        """Whether nothing was ever recorded."""
        return next(iter(self._store.entries(newest_first=True)), None) is None
