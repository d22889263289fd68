"""Drafts are checked, numbered and filed, and every filing names who did it.

A period's invoices are filed in one sequence, and those of a series in another: of two who issue at the same time the
second finds its place or its number taken and looks at what the first did. What happens to an invoice later is in
`tokenmeter.billing.receivables`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from operator import itemgetter
from typing import Any, NamedTuple

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.billing.drafting import Billable, Coverage
from tokenmeter.billing.einvoice import load_facturx, missing_for_einvoice
from tokenmeter.billing.filed import INVOICE, read_filed
from tokenmeter.billing.invoice import Invoice
from tokenmeter.billing.lines import LineItem
from tokenmeter.billing.period import closed_periods, zone_of_books
from tokenmeter.billing.profile import EINVOICE_PDFS, BillingProfile
from tokenmeter.display import counted, some_of
from tokenmeter.errors import ConfigurationError, LedgerError, TokenmeterError
from tokenmeter.ledger import utcnow
from tokenmeter.money import money_text, total
from tokenmeter.periods import Period, parse_day, parse_period, zone
from tokenmeter.reports.rated import account_name, check_account
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import DocumentQuery, NewDocument
from tokenmeter.texts import acting, require_reason
from tokenmeter.values import dataclass

#: Reasons that an error lists; a preview has all of them.
_MOST_TOLD = 10


@tell_wrong_arguments
def invoice_coverage(store: Store, *, period: str | Period, tz: str | None = None) -> Coverage:
    """Whether all usage of a period is billed, and nothing twice.

    Args:
        store: The ledger.
        period: ``"2026-11"``, ... or a `Period`.
        tz: Zone in which it is cut; default: that of the last closing, else UTC.
    """
    asked = period if isinstance(period, Period) else parse_period(period, zone_of_books(store, tz))
    billable = Billable(store, asked)
    standing = _LiveInvoices(store, billable.period)
    return Coverage.of(billable, [billable.names.rename(one.scope, one.document) for one in standing.invoices])


@dataclass(frozen=True, slots=True)
class InvoicePreview:
    """What would become of a draft.

    Attributes:
        invoice: The draft; where an invoice says the same already, that one.
        refused: Why it would not be issued, and what to do; None when it would be.
    """

    invoice: Invoice
    refused: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The invoice, JSON-ready, with ``refused``."""
        return {**self.invoice.to_dict(), "refused": self.refused}


@tell_wrong_arguments
def issue_invoice(
    store: Store,
    draft: Invoice,
    *,
    on: date | str | None = None,
    by: str | None = None,
    force: bool = False,
    allow_unpriced: bool = False,
    allow_overlap: str | None = None,
) -> Invoice:
    """Number and file a draft. Issuing the same draft again, even at the same time, gives the one that was filed.

    Args:
        store: The ledger the draft was made from.
        draft: From `draft_invoice`.
        on: Day of issue; default: today in the profile's zone.
        by: Who issues it; default: the user of the system.
        force: Whether an account without usage, or an amount of 0, gets an invoice all the same.
        allow_unpriced: Whether to issue although some usage has no known price and is not billed.
        allow_overlap: Why usage that is on another invoice is billed again; printed on this one.

    Raises:
        LedgerError: its period is not closed, or one of the above stands against it; says what to do.
        ConfigurationError: a date outside the period's end and today, or before the series' last invoice.
    """
    return issue_invoices(
        store, [draft], on=on, by=by, force=force, allow_unpriced=allow_unpriced, allow_overlap=allow_overlap
    )[0]


@tell_wrong_arguments
def issue_invoices(
    store: Store,
    drafts: Iterable[Invoice],
    *,
    on: date | str | None = None,
    by: str | None = None,
    force: bool = False,
    allow_unpriced: bool = False,
    allow_overlap: str | None = None,
) -> list[Invoice]:
    """Issue several drafts of one period, in order; see `issue_invoice`. Nothing is filed when one of them cannot be.

    Raises:
        LedgerError: as for `issue_invoice`; of several it names each that is refused, and why.
        ConfigurationError: as for `issue_invoice`.
    """
    waiting = list(drafts)
    if not waiting:
        return []
    who = acting(by)
    issuing = _Issuing(
        store, waiting[0].period, on, force=force, unpriced=allow_unpriced, overlap=allow_overlap, by=who
    )
    refused = {at: error for at, draft in enumerate(waiting) if (error := issuing.look_at(draft)) is not None}
    if refused:
        raise _none_issued(waiting, refused)
    return issuing.file(waiting)


@tell_wrong_arguments
def preview_invoices(
    store: Store,
    drafts: Iterable[Invoice],
    *,
    on: date | str | None = None,
    force: bool = False,
    allow_unpriced: bool = False,
    allow_overlap: str | None = None,
) -> list[InvoicePreview]:
    """What `issue_invoices` would do with each draft; nothing is written. Those that are not refused can be issued.

    Args:
        store: The ledger.
        drafts: From `draft_invoices`.
        on: As for `issue_invoice`, as is what follows.
        force: Whether accounts without usage, or with an amount of 0, get an invoice.
        allow_unpriced: Whether usage without a known price stops none.
        allow_overlap: Why usage is billed again.

    Raises:
        ConfigurationError: `on` is not a day.
    """
    waiting = list(drafts)
    if not waiting:
        return []
    issuing = _Issuing(store, waiting[0].period, on, force=force, unpriced=allow_unpriced, overlap=allow_overlap)
    looked = [(draft, issuing.look_at(draft)) for draft in waiting]
    return [
        InvoicePreview(draft, str(error)) if error else InvoicePreview(issuing.standing_of(draft) or draft)
        for draft, error in looked
    ]


def check_invoice(store: Store, draft: Invoice, *, on: date | str | None, force: bool, allow_unpriced: bool) -> Invoice:
    """What `issue_invoice` would issue: the draft, or the invoice that says it already. Nothing is written.

    Raises:
        LedgerError: as for `issue_invoice`.
        ConfigurationError: as for `issue_invoice`.
    """
    issuing = _Issuing(store, draft.period, on, force=force, unpriced=allow_unpriced, overlap=None)
    if error := issuing.look_at(draft):
        raise error
    return issuing.standing_of(draft) or draft


def list_refusals(refused: Iterable[tuple[str, str]]) -> list[str]:
    """Whose invoices are refused (account and why, for each), a line for each reason."""
    accounts: dict[str, list[str]] = defaultdict(list)
    for account, why in refused:
        accounts[why].append(account)
    return [f"{some_of(names, '; ')}: {why}" for why, names in accounts.items()]


def _none_issued(drafts: Sequence[Invoice], refused: Mapping[int, TokenmeterError]) -> TokenmeterError:
    """The one error of a run: why nothing of it was issued."""
    if len(drafts) == 1:
        return refused[0]
    told = list_refusals((drafts[at].account, str(error)) for at, error in refused.items())
    left = f"\n- and {len(told) - _MOST_TOLD:,} more" if told[_MOST_TOLD:] else ""
    listed = "".join(f"\n- {one}" for one in told[:_MOST_TOLD])
    only_settings = all(isinstance(error, ConfigurationError) for error in refused.values())
    rest = " preview_invoices() tells which can be issued without them (--skip-refused)."
    return (ConfigurationError if only_settings else LedgerError)(
        f"Nothing was issued: of {len(drafts):,}, {counted(len(refused), 'invoice is', 'invoices are')} refused."
        f"{rest if len(refused) < len(drafts) else ''}{listed}{left}"
    )


def _closed_otherwise(store: Store, asked: Period) -> Period | None:
    """The closed period that has most of a period, if one has more than half of it."""
    periods = (one.period for one in closed_periods(store))
    shared = ((min(one.end, asked.end) - max(one.start, asked.start), one) for one in periods)
    most, found = max(shared, key=itemgetter(0), default=(timedelta(), None))
    return found if most * 2 > asked.end - asked.start else None


def _say_other(asked: Period, closed: Period) -> str:
    """That a period is closed, but not as it was asked for, and what to do."""
    told = f"{asked.label} is not closed as it is cut in {asked.tz}: {closed.label} was closed in {closed.tz}"
    if asked.label != closed.label:
        return f"{told}. Draft the invoice for {closed.label}."
    return f'{told}. Draft the invoice in that zone: tz={closed.tz!r}, or [billing] tz = "{closed.tz}".'


class _LiveInvoices:
    """A period's invoices that are not void, kept up to date by whoever files more."""

    def __init__(self, store: Store, period: Period) -> None:
        self._store = store
        self._prefix = f"{period.start.isoformat()}/{period.end.isoformat()} #"
        self.read()

    def read(self) -> None:
        """Look again."""
        found = read_filed(self._store, self._store.documents(DocumentQuery(INVOICE, self._prefix)), lines=True)
        self.count = len(found)
        self.invoices = [one for one in found if one.status != "void"]

    @property
    def next_key(self) -> str:
        """Where the next invoice of this period is filed."""
        return f"{self._prefix}{self.count + 1}"

    def add(self, invoice: Invoice) -> None:
        """Note what was filed."""
        self.count += 1
        self.invoices.append(invoice)


class _SeriesEnd(NamedTuple):
    """Where a series of numbers ends: its invoice of the latest day, its last number, and where that is filed."""

    latest: Invoice | None = None
    number: int = 0
    position: int = 0


class _Issuing:
    """Issuing drafts of one period, which is that of the first."""

    def __init__(
        self,
        store: Store,
        period: Period,
        on: date | str | None,
        *,
        force: bool,
        unpriced: bool,
        overlap: str | None,
        by: str = "",
    ) -> None:
        self._store, self._on, self._by = store, parse_day(on), by
        if overlap is not None:
            require_reason(overlap, "allow_overlap")
        self._force, self._allow_unpriced, self._allow_overlap = force, unpriced, overlap
        self._billable = Billable(store, period)
        self._standing = _LiveInvoices(store, self._billable.period)
        self._ends: dict[str, _SeriesEnd] = {}
        self._printed: set[str] = set()  # letters that a PDF was seen to have
        self._index()

    def _index(self) -> None:
        self._by_account: dict[str, Invoice] = {}
        self._billed_by: dict[int, Invoice] = {}
        for one in self._standing.invoices:
            self._count_in(one)

    def _count_in(self, invoice: Invoice) -> None:
        scope = self._scope_of(invoice)
        self._by_account[account_name(scope)] = invoice
        for at in self._billable.positions(scope):
            self._billed_by.setdefault(at, invoice)

    def _scope_of(self, invoice: Invoice) -> dict[str, str]:
        """Whose an invoice is, by today's names."""
        return self._billable.names.rename(invoice.scope, invoice.document)

    def _list_lines(self, invoice: Invoice) -> list[LineItem]:
        """Its lines by today's names, in an order that no name decides."""
        names, document = self._billable.names, invoice.document
        lines = (replace(line, position=0, group=names.rename(line.group, document)) for line in invoice.lines)
        return sorted(lines, key=repr)

    def look_at(self, draft: Invoice) -> ConfigurationError | LedgerError | None:
        """Why a draft must not be issued, and what to do; one that may be counts as issued for those that follow."""
        if draft.number is not None:
            return None
        try:
            check_account(draft.scope)
            self._check_period(draft)
            if self.standing_of(draft) is not None:
                return None
            self._check_usage(draft)
            self._check_profile(draft)
            self._check_day(draft)
            self._check_overlap(draft)
            self._check_letters(draft)
        except (ConfigurationError, LedgerError) as error:
            return error
        # Two drafts of one run must not bill the same usage either.
        self._count_in(draft)
        return None

    def _check_period(self, draft: Invoice) -> None:
        closed, period, label = self._billable.closed, self._billable.period, draft.period.label
        if (draft.period.start, draft.period.end) != (period.start, period.end):
            raise LedgerError(f"This draft is for {label}, the first for {period.label}: issue each period by itself.")
        if closed is None or closed.document is None:
            if (other := _closed_otherwise(self._store, draft.period)) is not None:
                raise LedgerError(_say_other(draft.period, other))
            raise LedgerError(
                f"{label} is still open: entries may yet be added. Close it first with tokenmeter."
                f"close_period({label!r}, tz={draft.period.tz!r}), or `tokenmeter period close {label}`, then draft "
                "the invoice again."
            )
        if draft.ledger["manifest"] != closed.document.hash:
            raise LedgerError(f"{label} was closed after this draft was made; draft the invoice again.")

    def _check_usage(self, draft: Invoice) -> None:
        label = draft.period.label
        if not draft.lines and not self._force:
            raise LedgerError(
                f"{draft.account} has no usage in {label}; is it spelled as in `tokenmeter report --by "
                f"{next(iter(draft.scope))}`? force=True (--force) issues an invoice over nothing."
            )
        if draft.unpriced and not self._allow_unpriced:
            of = f"of {draft.account} in {label}"
            raise LedgerError(
                f"{counted(draft.unpriced, f'charge {of} has', f'charges {of} have')} no known price, so the invoice "
                "would be too low. Give the price ([[prices]]), run tokenmeter.reprice(), and issue this one without "
                "them: allow_unpriced=True (--allow-unpriced). What they cost is billed in the next period."
            )
        # Last: what a price would put right is said first, and to bill without it is no wish for an empty invoice.
        if draft.lines and not draft.total and not self._force:
            raise LedgerError(
                f"{draft.account} owes {money_text(draft.total, draft.currency)} for {label}; force=True (--force) "
                "issues it all the same."
            )

    def _check_profile(self, draft: Invoice) -> None:
        form = self._profile(draft).einvoice
        if not form:
            return
        load_facturx()  # without it nothing could be made of the number
        if missing := missing_for_einvoice(draft, form):
            raise ConfigurationError(f"For {form} the [billing] settings lack: {'; '.join(missing)}.")

    def _check_letters(self, draft: Invoice) -> None:
        """Refuse what no page can show, where the electronic invoice is a PDF; others need none."""
        profile = self._profile(draft)
        if profile.einvoice not in EINVOICE_PDFS:
            return
        final = replace(self._finish(draft, profile), number=f"{profile.series}00001")
        letters = set(final.to_html())
        if letters <= self._printed:  # a page takes some tenths of a second
            return
        try:
            final.to_pdf()
        except ConfigurationError as error:
            raise ConfigurationError(f"{draft.account}: {profile.einvoice} is a PDF. {error}") from None
        self._printed |= letters

    def standing_of(self, draft: Invoice) -> Invoice | None:
        """The account's standing invoice, if it says what this draft says."""
        standing = self._by_account.get(account_name(self._scope_of(draft)))
        if standing is None:
            return None
        if (standing.totals, standing.currency) == (draft.totals, draft.currency) and (
            standing.lines == draft.lines or self._list_lines(standing) == self._list_lines(draft)
        ):
            return standing
        raise LedgerError(
            f"{draft.account} has invoice {standing.number} for {draft.period.label}. Credit it, or void it and issue "
            "a new one."
        )

    def _check_overlap(self, draft: Invoice) -> None:
        if self._allow_overlap:
            return
        twice = [at for at in self._billable.positions(draft.scope) if at in self._billed_by]
        if twice:
            where = sorted({self._billed_by[at].number or f"that of {self._billed_by[at].account}" for at in twice})
            cost = total(self._billable.rows[at][1].billed_cost for at in twice)
            raise LedgerError(
                f"${cost:,f} of the usage of {draft.account} in {draft.period.label} is on {', '.join(where[:5])} "
                f"already{' and others' if where[5:] else ''}. Bill either one; if both are meant, say why: "
                "allow_overlap='...' (--allow-overlap)."
            )

    def _check_day(self, draft: Invoice) -> None:
        profile = self._profile(draft)
        day = self._day(profile)
        local = zone(profile.calendar)
        # From the period's last day on, by the seller's calendar.
        first = (draft.period.end - timedelta(microseconds=1)).astimezone(local).date()
        today = utcnow().astimezone(local).date()
        if self._on is not None and not first <= day <= today:
            raise ConfigurationError(
                f"An invoice for {draft.period.label} is issued from {first} to today ({today}), not on {day}."
            )
        last = self._end_of(profile.series).latest
        if last is not None and last.issued_on is not None and last.issued_on > day:
            raise ConfigurationError(
                f"{last.number} was issued on {last.issued_on}; numbers of a series follow their dates, so the next "
                f"cannot be of {day}."
            )

    def _day(self, profile: BillingProfile) -> date:
        """Where none is given today's, by the seller's calendar.

        Where that calendar was moved westwards since, its day may be the one before the last invoice's: it is that.
        """
        if self._on is not None:
            return self._on
        today = utcnow().astimezone(zone(profile.calendar)).date()
        last = self._end_of(profile.series).latest
        moved = last is not None and last.tz != profile.calendar and last.issued_on == today + timedelta(days=1)
        return today + timedelta(days=1) if moved else today

    def _end_of(self, series: str) -> _SeriesEnd:
        """Where a series ended when it was last looked at."""
        if series not in self._ends:
            self._ends[series] = self._read_on(series, _SeriesEnd())
        return self._ends[series]

    def _read_on(self, series: str, end: _SeriesEnd) -> _SeriesEnd:
        latest, number, position = end
        for document in self._store.documents(DocumentQuery(None, None, series, after=position)):
            number, position = document.number or number, document.position
            if document.kind == INVOICE:
                found = Invoice.of(document, lines=False)
                if latest is None or (found.issued_on or date.min) > (latest.issued_on or date.min):
                    latest = found
        return _SeriesEnd(latest, number, position)

    def _profile(self, draft: Invoice) -> BillingProfile:
        if draft.profile is None:
            raise LedgerError("This draft does not say how it is to be issued; make it with draft_invoice().")
        return draft.profile

    def file(self, drafts: Iterable[Invoice]) -> list[Invoice]:
        """File drafts that were looked at, in order."""
        self._index()  # none of them counts as issued any more
        issued: list[Invoice] = []
        for draft in drafts:
            try:
                issued.append(draft if draft.number is not None else self._file(draft))
            except (ConfigurationError, LedgerError) as error:  # somebody else issued at the same time
                if not issued:
                    raise
                done = ", ".join(dict.fromkeys(str(one.number) for one in issued[-_MOST_TOLD:]))
                raise type(error)(
                    f"{error} Issued before that: {done}; to issue them again changes nothing."
                ) from error
        return issued

    def _finish(self, draft: Invoice, profile: BillingProfile) -> Invoice:
        """The draft as it is filed, but for its number."""
        day = self._day(profile)
        due = day + timedelta(days=profile.terms_days)
        return replace(
            draft,
            issued_on=day,
            issued_by=self._by,
            due_on=due,
            overlap=self._allow_overlap,
            payment_terms=profile.payment_terms
            or f"Payable within {counted(profile.terms_days, 'day')}, by {due.isoformat()}.",
        )

    def _write_body(self, draft: Invoice, profile: BillingProfile) -> str:
        return json.dumps(self._finish(draft, profile).content(), ensure_ascii=False, separators=(",", ":"))

    def _file(self, draft: Invoice) -> Invoice:
        profile = self._profile(draft)
        series = profile.series
        body = self._write_body(draft, profile)
        while True:
            # Asked anew in each round: whoever filed under the key at the same time may have issued just this.
            standing = self.standing_of(draft)
            if standing is not None:
                return standing
            self._check_overlap(draft)
            key, end = self._standing.next_key, self._end_of(series)
            # The key is the place in the period, the number that in the series, of whatever periods: of two that issue
            # at once one gets it, and the other reads and checks again.
            filing = self._store.file(
                NewDocument(kind=INVOICE, key=key, series=series, number=end.number + 1, body=body)
            )
            if filing.recorded:
                issued = Invoice.of(filing.document)
                # The latest day stays that of before this run, all of which is of one day.
                self._ends[series] = end._replace(number=end.number + 1, position=filing.document.position)
                self._standing.add(issued)
                self._count_in(issued)
                return issued
            self._standing.read()
            self._index()
            self._ends[series] = self._read_on(series, end)
            self._check_day(draft)
            body = self._write_body(draft, profile)
