"""Usage handed over to where customers are billed: Stripe meter events, Lago, OpenMeter. Each piece once.

What is to be sent is written down in the ledger before, and that it was sent, after: a run that was interrupted sends
the same events again under the same identifiers, and what came later is a further revision of the difference.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.billing.drafting import Billable
from tokenmeter.billing.period import closed_periods, zone_of_books
from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError, LedgerError, TokenmeterError
from tokenmeter.ledger import utcnow
from tokenmeter.money import EXACT, ZERO, total
from tokenmeter.periods import FIRST_CALL, Period, parse_period
from tokenmeter.reports.rated import check_dimensions, span_text
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import Document, DocumentQuery, NewDocument
from tokenmeter.stores.naming import FINGERPRINT
from tokenmeter.texts import acting, require_reason
from tokenmeter.values import dataclass

KIND = "handover"
_LONGEST_IDENTIFIER = 100
_LEDGER_DIGITS = 8
#: How a reading ended, last in the key of the document that says so; ``there``: its first try found it there already.
_SENT, _REFUSED, _THERE = "sent", "refused", "there"


class HandOverError(TokenmeterError):
    """A billing system was out of reach, or let nobody in: whether it took the last reading is not known.

    Attributes:
        done: What the run had done until then; the next run goes on there.
    """

    done: HandOver | None = None


class ReadingRefusedError(HandOverError):
    """A billing system said no to one reading: it does not have it."""


class ReadingThereError(HandOverError):
    """A billing system has a reading of that identifier already, and did not take another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one account used of one meter in a period, or what came later.

    Attributes:
        identifier: Under which it is taken once.
        account: ``member=ada``.
        customer: Who that is in the other system.
        sku_meter: What was used. Meters are disjoint: ``input`` is without what was cached.
        value: How much, whole.
        at: The event's time, aware UTC: the period's end, or the moment it was written down.
        revision: From 1; a later one is the difference to those before.
    """

    identifier: str
    account: str
    customer: str
    sku_meter: str
    value: int
    at: datetime
    revision: int


class Target(Protocol):
    """A system that takes readings."""

    @property
    def name(self) -> str:
        """What it is called in the ledger's records."""
        ...

    @property
    def remembers(self) -> timedelta | None:
        """How long it knows an identifier again; None = for ever."""
        ...

    def check(self, at: datetime) -> None:
        """Refuse events of a time that it does not take."""
        ...

    def send(self, reading: Reading) -> None:
        """Send one.

        Raises:
            ReadingRefusedError: it was refused.
            ReadingThereError: one of its identifier is there already.
            HandOverError: whether it was taken is not known.
        """
        ...


@dataclass(slots=True)
class HandOver:
    """What a run did.

    Attributes:
        sent: Readings that were sent.
        unchanged: How many had been sent before and are still right.
        refused: Identifier -> why the system did not take that reading. The next run sends it anew.
        uncertain: Readings that may be there or not, and are not sent until somebody has looked: of a run that was cut
            off too long ago for the system to know their identifiers again; and those whose identifier the system
            had when this ledger first sent them, as after a backup was restored.
        unknown: Accounts that have no customer there, with what they used.
        owed: Account and meter -> how much less it is now than was sent: nothing negative is sent.
        fractions: Account and meter -> quantities that are not whole, and so were left out.
        idle: Accounts that were given a customer and used nothing: perhaps they are spelled otherwise here.
    """

    sent: list[Reading] = field(default_factory=list[Reading])
    unchanged: int = 0
    refused: dict[str, str] = field(default_factory=dict[str, str])
    uncertain: list[Reading] = field(default_factory=list[Reading])
    unknown: dict[str, int] = field(default_factory=dict[str, int])
    owed: dict[str, int] = field(default_factory=dict[str, int])
    fractions: dict[str, Decimal] = field(default_factory=dict[str, Decimal])
    idle: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        lines = [f"{counted(len(self.sent), 'reading')} sent, {self.unchanged:,} sent before."]
        lines += [f"  {name}: refused: {why}" for name, why in self.refused.items()]
        lines += [
            f"  {one.identifier}: {one.value:,} of {one.account} {one.sku_meter} may be there or not; look "
            "there, then say which: arrived or lost"
            for one in self.uncertain
        ]
        lines += [f"  no customer for {name}: {value:,} not sent" for name, value in self.unknown.items()]
        lines += [f"  {name}: {value:,} less than was sent; settle it there" for name, value in self.owed.items()]
        lines += [f"  {name}: {value:f} is not whole; not sent" for name, value in self.fractions.items()]
        lines += [f"  {name} has a customer and used nothing; is it spelled so here?" for name in self.idle]
        return "\n".join(lines)

    @property
    def ok(self) -> bool:
        """Whether all of it is there now."""
        return not (self.refused or self.uncertain or self.unknown or self.owed or self.fractions)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "sent": [_told(one) for one in self.sent],
            "unchanged": self.unchanged,
            "refused": self.refused,
            "uncertain": [_told(one) for one in self.uncertain],
            "unknown": self.unknown,
            "owed": self.owed,
            "fractions": {name: f"{value:f}" for name, value in self.fractions.items()},
            "idle": self.idle,
        }


def _told(reading: Reading) -> dict[str, Any]:
    return {**asdict(reading), "at": reading.at.isoformat()}


@tell_wrong_arguments
def hand_over(
    store: Store,
    target: Target,
    *,
    period: str | Period,
    each: str = "member",
    customers: Mapping[str, str] | None = None,
    arrived: Iterable[str] = (),
    lost: Iterable[str] = (),
    allow_overlap: str | None = None,
    tz: str | None = None,
    by: str | None = None,
) -> HandOver:
    """Send a period's usage, per account and meter, to a billing system. Run it again as often as you like.

    Args:
        store: The ledger, which remembers what was sent.
        target: `StripeMeters`, `Lago` or `OpenMeter`.
        period: ``"2026-11"``, ... or a `Period`.
        each: Dimension of the accounts.
        customers: Account -> customer there; None = they are called the same. Accounts without one are not sent. An API
            key is found by an earlier name, too.
        arrived: Identifiers of uncertain readings that were found there: they count as sent.
        lost: Identifiers of those that were not: they are sent anew.
        allow_overlap: Why usage that was sent by other accounts, or in another period, is sent again.
        tz: Zone in which the period is cut; default: that of the last closing, else UTC.
        by: Who does it; default: the user of the system.

    Raises:
        HandOverError: the system is out of reach; its `done` says what was sent, and the next run goes on there.
        LedgerError: the system has some of the usage by accounts of another kind, or of another period.
        ConfigurationError: an identifier that is not one of those; a dimension that is none, or a period that the
            system does not take any more.
    """
    (dimension,) = check_dimensions([each], what="each=")
    asked = period if isinstance(period, Period) else parse_period(period, zone_of_books(store, tz))
    # Within the period, and not in the future, which the systems refuse.
    at = min(asked.end - timedelta(seconds=1), utcnow())
    target.check(at)
    if allow_overlap is not None:
        require_reason(allow_overlap, "allow_overlap")
    else:
        _refuse_overlap(store, target.name, asked, dimension)
    billable = Billable(store, asked, every_late=True)
    run = _Handover(store, target, billable, at=at, by=acting(by), overlap=allow_overlap)
    run.clear_up(frozenset(arrived), frozenset(lost))
    try:
        run.send_again()
        now = {account: billable.names.rename({dimension: account})[dimension] for account in customers or ()}
        # What is said of a present name goes before an earlier one's.
        known = {now[account]: customer for account, customer in (customers or {}).items()} | dict(customers or {})
        used: set[str] = set()
        for usage in _read_usage(billable, dimension):
            customer = usage.account if customers is None else known.get(usage.account)
            name = f"{dimension}={usage.account}"
            used.add(usage.account)
            for sku_meter in usage.quantities:
                run.send(name, customer, sku_meter, usage)
        run.outcome.idle += [f"{dimension}={account}" for account in now if not used & {account, now[account]}]
    except HandOverError as error:
        error.done = run.outcome
        raise
    return run.outcome


def _refuse_overlap(store: Store, target: str, period: Period, dimension: str) -> None:
    """Refuse to send usage again that the system has by accounts of another kind, or in a period that is another one.

    Raises:
        LedgerError: it has some.
    """
    standing: dict[str, None] = {}
    for document in store.documents(DocumentQuery(KIND, f"{target} ")):
        key, _, ending = document.key.rpartition(" ")
        if ending == _REFUSED:
            standing.pop(key, None)
        elif ending not in {_SENT, _THERE}:
            standing[document.key] = None
    for key in standing:
        span, _, reading = key.removeprefix(f"{target} ").partition(" ")
        start, end = map(datetime.fromisoformat, span.split("/"))
        by = reading.partition("=")[0]
        if (start, end, by) != (period.start, period.end, dimension) and start < period.end and period.start < end:
            raise LedgerError(
                f"{target} has usage from {start.isoformat()} to {end.isoformat()} by {by} already; {period.label} by "
                f"{dimension} would send it again. Hand over by the same accounts and periods, or say why it is sent "
                "again: allow_overlap='...' (--allow-overlap)."
            )


class _AccountUsage(NamedTuple):
    """What an account used.

    Attributes:
        account: Its name.
        quantities: Meter -> how much, in the period itself.
        late: Meter -> closed period, as `span_text` writes it -> how much came late of it.
        keys: Fingerprints of the keys in it, where accounts are keys.
    """

    account: str
    quantities: dict[str, Decimal]
    late: dict[str, dict[str, Decimal]]
    keys: tuple[str, ...]


def _name_period(period: Period) -> str:
    """A period in identifiers: its label where that says when it is (``2026-11``), else both ends (of ``last-7d``)."""
    with suppress(ConfigurationError):
        named = parse_period(period.label, period.tz, now=FIRST_CALL)  # what goes by the clock is another period then
        if (named.start, named.end) == (period.start, period.end):
            return period.label
    ends = (end.astimezone(UTC).replace(tzinfo=None).isoformat() for end in (period.start, period.end))
    return "-".join(end.replace("-", "").replace(":", "") + "Z" for end in ends)


def _read_usage(billable: Billable, dimension: str) -> Iterator[_AccountUsage]:
    for account in billable.accounts(dimension):
        sums: dict[str, Decimal] = {}
        keys: set[str] = set()
        late: dict[str, dict[str, Decimal]] = {}
        for period, rows in billable.parts({dimension: account}):
            for row in rows:
                # Amounts of money are no usage: the other system has prices of its own.
                if row.rate.kind != "adjustment" and row.rate.unit != "USD":
                    meter, own = row.rate.sku_meter, period == billable.period
                    sums[meter] = EXACT.add(sums.get(meter, ZERO), row.quantity if own else ZERO)
                    if not own:
                        of = late.setdefault(meter, {})
                        of[span_text(period)] = EXACT.add(of.get(span_text(period), ZERO), row.quantity)
                if dimension == "api_key" and row.rate.fingerprint is not None:
                    keys.add(row.rate.fingerprint)
        yield _AccountUsage(account, sums, late, tuple(sorted(keys)))


class _Prepared(NamedTuple):
    """A reading that was written down before it was sent.

    Attributes:
        key: Its document's.
        reading: What was sent.
        at: When it was written down.
        account: Whose it is by today's name.
        late: Closed period -> how much of it came late of that, as exact text.
        closing: Number of the closing that takes up what came late, or will.
    """

    key: str
    reading: Reading
    at: datetime
    account: str
    late: Mapping[str, str]
    closing: int


class _Handover:
    def __init__(
        self,
        store: Store,
        target: Target,
        billable: Billable,
        *,
        at: datetime,
        by: str,
        overlap: str | None,
    ) -> None:
        self.outcome = HandOver()
        self._names, self._period = billable.names, billable.period
        period, closed = billable.period, billable.closed
        document = None if closed is None else closed.document
        self._closing = len(closed_periods(store)) + 1 if document is None else int(document.key)
        self._overlap = {} if overlap is None else {"overlap": overlap}
        self._store, self._target, self._at, self._by = store, target, at, by
        self._label, self._ledger = _name_period(period), store.identity()[:_LEDGER_DIGITS]
        self._prefix = f"{target.name} {span_text(period)} "
        self._prepared: dict[tuple[str, str], list[_Prepared]] = {}
        self._unclear: dict[str, _Prepared] = {}
        self._found: set[str] = set()  # keys of what was there before this ledger had sent it
        self._refusals: Counter[tuple[str, str]] = Counter()
        self._filed: set[str] = set()  # keys of all readings: an account may be called as another was
        elsewhere: dict[str, _Prepared] = {}
        for document in store.documents(DocumentQuery(KIND, f"{target.name} ")):
            if document.key.startswith(self._prefix):
                self._take(document)
            else:
                self._note(document, elsewhere)
        # What other periods' readings have of what came late.
        self._elsewhere: dict[tuple[str, str], list[_Prepared]] = {}
        for made in elsewhere.values():
            self._elsewhere.setdefault((made.account, made.reading.sku_meter), []).append(made)

    def _note(self, document: Document, elsewhere: dict[str, _Prepared]) -> None:
        key, _, ending = document.key.rpartition(" ")
        if ending == _REFUSED:
            elsewhere.pop(key, None)
        elif '"late"' in document.body and "late" in (body := json.loads(document.body)):
            elsewhere[document.key] = self._read(document, body)

    def _read(self, document: Document, body: dict[str, Any]) -> _Prepared:
        told: dict[str, Any] = body["reading"]
        told["at"] = datetime.fromisoformat(told["at"])
        account = self._call_now(told["account"], body.get("keys", ()), document)
        at = datetime.fromisoformat(body["at"])
        return _Prepared(document.key, Reading(**told), at, account, body.get("late", {}), body.get("closing", 0))

    def _take(self, document: Document) -> None:
        """What an earlier run wrote down: a reading, or how it ended."""
        body: dict[str, Any] = json.loads(document.body)
        key, _, ending = document.key.rpartition(" ")
        if ending == _SENT:
            self._unclear.pop(key, None)
        elif ending == _REFUSED:
            if key in self._unclear:
                self._forget(self._unclear.pop(key))
        elif ending == _THERE:
            self._found.add(key)
        else:
            made = self._read(document, body)
            self._unclear[made.key] = made
            self._filed.add(made.key)
            self._prepared.setdefault((made.account, made.reading.sku_meter), []).append(made)

    def _call_now(self, account: str, keys: Sequence[str], document: Document) -> str:
        """An account by today's name, given the keys that were in it. Of keys that part it stays as it was."""
        dimension, _, name = account.partition("=")
        owners = [{dimension: name, FINGERPRINT: key} for key in keys] or [{dimension: name}]
        called = {self._names.rename(owner, document)[dimension] for owner in owners}
        return f"{dimension}={called.pop()}" if len(called) == 1 else account

    def _forget(self, made: _Prepared) -> None:
        """It is not there: what it would have told is still to be sent, under another identifier."""
        name = made.account, made.reading.sku_meter
        self._prepared[name].remove(made)
        self._refusals[name] += 1

    def clear_up(self, arrived: frozenset[str], lost: frozenset[str]) -> None:
        """Write down what somebody found out about readings whose end is not known."""
        known = {made.reading.identifier: made for made in self._unclear.values()}
        for identifier in sorted(arrived | lost):
            if identifier not in known or identifier in arrived & lost:
                raise ConfigurationError(
                    f"{identifier!r} is not one reading whose end is not known; they are: {', '.join(known) or 'none'}."
                )
        for identifier in sorted(arrived | lost):
            made = known[identifier]
            del self._unclear[made.key]
            self._end(made, _SENT if identifier in arrived else _REFUSED, "looked up")
            if identifier in lost:
                self._forget(made)

    def send_again(self) -> None:
        """What an earlier run wrote down and did not send for sure: the same, under the same identifiers."""
        for made in list(self._unclear.values()):
            forgotten = self._target.remembers is not None and utcnow() - made.at > self._target.remembers
            if forgotten or made.key in self._found:
                self.outcome.uncertain.append(made.reading)
            elif not self._deliver(made, again=True):
                self._forget(made)

    def send(self, account: str, customer: str | None, sku_meter: str, usage: _AccountUsage) -> None:
        """What is new of one account's meter."""
        name = f"{account} {sku_meter}"
        earlier = self._prepared.get((account, sku_meter), [])
        late = self._find_late(account, sku_meter, usage.late.get(sku_meter, {}))
        held = (Decimal(value) for one in earlier for value in one.late.values())
        quantity = total((usage.quantities[sku_meter], *held, *late.values()))
        # The systems count in whole numbers, and a rounded reading would never add up again.
        if quantity != quantity.to_integral_value(context=EXACT):
            self.outcome.fractions[name] = quantity
            return
        more = int(quantity) - sum(one.reading.value for one in earlier)
        if customer is None and (more > 0 or (more and not earlier)):
            self.outcome.unknown[account] = self.outcome.unknown.get(account, 0) + int(quantity)
        elif more < 0:
            self.outcome.owed[name] = -more
        elif not more:
            # What this run has sent again, or may be there or not, is told as that.
            self.outcome.unchanged += any(one.key not in self._unclear for one in earlier)
        elif customer is not None:
            known = {span: f"{value:f}" for span, value in late.items() if value}
            self._send_new(account, customer, sku_meter, more, (usage.keys, known))

    def _find_late(self, account: str, sku_meter: str, came: Mapping[str, Decimal]) -> dict[str, Decimal]:
        """What came late of closed periods, by period, less what any run has sent of it."""
        found = dict(came)
        name = account, sku_meter
        sent = (*self._prepared.get(name, ()), *self._elsewhere.get(name, ()))
        for one in (one for one in sent if one.closing == self._closing):
            for span, value in one.late.items():
                if datetime.fromisoformat(span.partition("/")[2]) <= self._period.start:
                    found[span] = EXACT.subtract(found.get(span, ZERO), Decimal(value))
        return found

    def _send_new(
        self,
        account: str,
        customer: str,
        sku_meter: str,
        value: int,
        about: tuple[tuple[str, ...], Mapping[str, str]],
    ) -> None:
        keys, late = about
        name = account, sku_meter
        revision = len(self._prepared.get(name, [])) + self._refusals[name] + 1
        # Another account may have been called so when it was sent.
        while (key := f"{self._prefix}{account} {sku_meter} r{revision}") in self._filed:
            revision += 1
        # A team may be called as a member is, and a member as if it were a team: ``team=x``.
        whose = account.removeprefix("member=") if account.count("=") == 1 else account
        # With the ledger in it: a customer's other ledgers hand over to the same system, which would drop theirs.
        identifier = f"tm-{self._ledger}-{self._label}-{whose}-{sku_meter}-r{revision}"
        # The systems take short identifiers of plain letters; a hash says as well which reading it is.
        if len(identifier) > _LONGEST_IDENTIFIER or not identifier.isascii():
            identifier = f"tm-{hashlib.sha256(identifier.encode()).hexdigest()}"
        reading = Reading(
            identifier=identifier,
            account=account,
            customer=customer,
            sku_meter=sku_meter,
            value=value,
            # What is told later is of now: a system may have billed the period, and refuse what is older.
            at=self._at if revision == 1 else utcnow(),
            revision=revision,
        )
        reading = replace(reading, at=reading.at.replace(microsecond=0))
        # Written down before it is sent: a run that breaks off between the two is known to the next as uncertain.
        made = _Prepared(key, reading, utcnow(), account, late, self._closing)
        told = {"reading": _told(reading), "by": self._by, "at": made.at.isoformat(), **self._overlap}
        body: dict[str, Any] = {**told, **({"keys": keys} if keys else {})}
        if late:
            body |= {"late": late, "closing": self._closing}
        if self._store.file(NewDocument(kind=KIND, key=key, body=json.dumps(body, ensure_ascii=False))).recorded:
            self._deliver(made)

    def _deliver(self, made: _Prepared, *, again: bool = False) -> bool:
        """Send it, perhaps again, and write down how it ended; False = it was refused."""
        try:
            self._target.send(made.reading)
        except ReadingThereError as error:
            # What an earlier run sent is its own. What nobody of this ledger sent is somebody's else, or of a time
            # before a backup: its value may be another.
            if not again:
                self._end(made, _THERE, str(error))
                self.outcome.uncertain.append(made.reading)
                return True
        except ReadingRefusedError as error:
            self.outcome.refused[made.reading.identifier] = str(error)
            self._end(made, _REFUSED, str(error))
            return False
        self._end(made, _SENT)
        self.outcome.sent.append(made.reading)
        return True

    def _end(self, made: _Prepared, ending: str, why: str | None = None) -> None:
        body = {"at": utcnow().isoformat(), "by": self._by, **({} if why is None else {"why": why})}
        text = json.dumps(body, ensure_ascii=False)
        self._store.file(NewDocument(kind=KIND, key=f"{made.key} {ending}", body=text))
