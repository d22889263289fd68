"""The meter as people use it: everything that is read from a ledger, kept right in it, or made out of it."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.attribution import NOBODY, Attribution
from tokenmeter.call import RequestFacts
from tokenmeter.dimensions import POSTED_BY
from tokenmeter.errors import ConfigurationError, LedgerError, StoreUnavailableError, TamperedLedgerError
from tokenmeter.late import LateModule, late_method
from tokenmeter.ledger import Entry, utcnow
from tokenmeter.meter import Meter as CallMeter
from tokenmeter.periods import CalendarUnit, Period, parse_instant
from tokenmeter.pricing import PriceList, Pricer, Rating
from tokenmeter.settings import Settings
from tokenmeter.stores.base import Fault, Store, Verification
from tokenmeter.texts import check_name

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from tokenmeter import (
        billing,
        by_hand,
        checkpoints,
        erasing,
        estimating,
        importing,
        providers,
        reconciliation,
        reports,
    )
    from tokenmeter.pricing import corrections
    from tokenmeter.reports import database, query, writers
    from tokenmeter.stores import backup as backups
    from tokenmeter.stores.archive import clickhouse, manifest
else:  # no call needs these
    billing = LateModule("tokenmeter.billing")
    by_hand = LateModule("tokenmeter.by_hand")
    checkpoints = LateModule("tokenmeter.checkpoints")
    erasing = LateModule("tokenmeter.erasing")
    estimating = LateModule("tokenmeter.estimating")
    importing = LateModule("tokenmeter.importing")
    providers = LateModule("tokenmeter.providers")
    reconciliation = LateModule("tokenmeter.reconciliation")
    reports = LateModule("tokenmeter.reports")
    corrections = LateModule("tokenmeter.pricing.corrections")
    database = LateModule("tokenmeter.reports.database")
    backups = LateModule("tokenmeter.stores.backup")
    clickhouse = LateModule("tokenmeter.stores.archive.clickhouse")
    query = LateModule("tokenmeter.reports.query")
    writers = LateModule("tokenmeter.reports.writers")
    manifest = LateModule("tokenmeter.stores.archive.manifest")

__all__ = ["Meter", "Priced", "drop_first"]

_HASH = re.compile("[0-9a-fA-F]{64}")

P = ParamSpec("P")
R = TypeVar("R")


class Priced(Protocol):
    """Whatever has prices and terms: a meter, or what a price can be asked of before any ledger is open."""

    @property
    def pricer(self) -> Pricer:
        """Price list and terms."""
        ...


def drop_first(function: Callable[..., Any]) -> tuple[inspect.Signature, str]:
    """Signature and docstring of `function` without its first parameter, for what supplies that itself."""
    signature = inspect.signature(function)
    first, *rest = signature.parameters.values()
    # With the argument's line go those below it that are set in deeper.
    told = re.sub(rf"\n +{first.name}: (?:.*(?:\n {{9,}}.*)*)", "", inspect.getdoc(function) or "", count=1)
    return signature.replace(parameters=rest), told


def _check_hash(name: str, value: str | None) -> str | None:
    """A head as the chain's heads are written.

    Raises:
        ConfigurationError: it is none.
    """
    if value is None:
        return None
    if not isinstance(value, str) or not _HASH.fullmatch(value.strip()):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"{name}={value!r:.90} is no head of a chain: it has 64 hexadecimal digits.")
    return value.strip().lower()


def _of_ledger(find: Callable[[], Callable[Concatenate[Store, P], R]]) -> Callable[Concatenate[CallMeter, P], R]:
    """A function of a store as a method of the meter that has the store."""
    return late_method(lambda: _make_method(find()))


def _of_profile(find: Callable[[], Callable[Concatenate[Store, P], R]]) -> Callable[Concatenate[CallMeter, P], R]:
    """As `_of_ledger`; ``profile=`` is the meter's own where none is given."""

    def make() -> Callable[Concatenate[CallMeter, P], R]:
        method = _make_method(find())

        @functools.wraps(method)
        def with_profile(self: CallMeter, /, *args: P.args, **kwargs: P.kwargs) -> R:
            if kwargs.get("profile") is None and isinstance(self, Meter):
                kwargs["profile"] = self.profile
            return method(self, *args, **kwargs)

        return with_profile

    return late_method(make)


def _make_method(function: Callable[Concatenate[Store, P], R]) -> Callable[Concatenate[CallMeter, P], R]:
    @functools.wraps(function)
    def method(self: CallMeter, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return function(self.catch_up(), *args, **kwargs)

    signature, method.__doc__ = drop_first(function)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = signature.replace(parameters=[itself, *signature.parameters.values()])  # type: ignore[attr-defined]
    return method


class Meter(CallMeter):
    """A ledger's store, a price list, terms and budgets, joined.

    Made by `tokenmeter.configure` or `tokenmeter.make_meter`; safe to share between threads, tasks and clients. A
    client records with it by ``wrap(client, meter=...)``. Each verb here is a function of `tokenmeter`, too, on the
    default meter: ``tokenmeter.report(...)`` is ``tokenmeter.default_meter().report(...)``.

    Attributes:
        settings: What it was made from; None when it was put together by hand.
        profile: Who bills whom; what `invoice` takes unless it is given another profile.
    """

    settings: Settings | None = None
    profile: billing.BillingProfile | None = None

    # -- reading

    @tell_wrong_arguments
    def report(
        self,
        by: str | Sequence[str] = (),
        *,
        since: query.Instant | None = None,
        until: query.Instant | None = None,
        period: str | Period | None = None,
        granularity: CalendarUnit | None = None,
        where: Mapping[str, query.Accepted] | None = None,
        tz: str = "UTC",
        now: datetime | None = None,
        latency: bool = False,
    ) -> reports.Report:
        """Usage and cost per group and time, totals included. ``print()`` it, or export it.

        Args:
            by: Dimensions to group by: a name, several separated by commas, or a list: provider, model, operation,
                api_key, member, team, organization, project, route, end_user, service_tier, status, sku_meter,
                ``tag:NAME``, ...
            since: First instant, inclusive; a date or a naive one is read in `tz`.
            until: First instant after, exclusive.
            period: ``"2026-11"``, ``"today"``, ``"last-7d"``, ...; instead of since and until.
            granularity: Also split by hour, day, week, month, quarter or year.
            where: dimension -> accepted value or values; None means "not set". ``{"member!": "ada"}`` is all others.
            tz: IANA time zone in which periods and buckets are cut.
            now: What ``today`` and its like count from; default: now.
            latency: Also say how long calls took: `Row.latency`, and percentiles of duration and time to first token in
                tables and exports, at most 2.2% off. Not together with ``sku_meter``.

        Raises:
            ConfigurationError: unknown dimension, period or zone, or an inverted period.
        """
        return reports.read_report(
            self.catch_up(),
            reports.Query.parse(
                by=by,
                since=since,
                until=until,
                period=period,
                granularity=granularity,
                where=where,
                tz=tz,
                now=now,
                latency=latency,
            ),
        )

    @tell_wrong_arguments
    def entries(
        self,
        *,
        since: query.Instant | None = None,
        until: query.Instant | None = None,
        period: str | Period | None = None,
        where: Mapping[str, query.Accepted] | None = None,
        newest_first: bool = False,
        tz: str = "UTC",
    ) -> Iterator[Entry]:
        """Raw entries in order of their occurrence, one at a time: the ledger is never loaded as a whole.

        Arguments and errors as for `report`; they are checked at once, not at the first entry. With a filter on
        ``sku_meter`` an entry comes with the lines of these meters only, and with their cost.
        """
        query = reports.Query.parse(since=since, until=until, period=period, where=where, tz=tz)
        return reports.read_entries(self.catch_up(), query, newest_first=newest_first)

    @tell_wrong_arguments
    def price(
        self: Priced,
        response_or_usage: Any,
        *,
        provider: str,
        endpoint: str,
        model: str | None = None,
        at: datetime | date | str | None = None,
        processing: str | None = None,
        region: str | None = None,
        service_tier: str | None = None,
        price_list: PriceList | None = None,
        attribution: Attribution | Mapping[str, Any] = NOBODY,
    ) -> Rating:
        """Rate a response the way a live call is rated, without recording it. No ledger is opened or written.

        Args:
            response_or_usage: An SDK object, or the plain dict as it came off the wire: a whole response body, a bare
                usage object, a Batch, a batch output line, a realtime ``response.done``, an image, transcription or
                session body.
            provider: ``openai``, ``anthropic``, ``azure``, ``bedrock``, ``vertex``, ``openrouter``, ``google``, ...
            endpoint: SDK method path: ``chat.completions``, ``responses``, ``messages``, ``images.generate``, ...
            model: Model named by the request or session, where the body names none.
            at: When the call was made (an instant, a date or ISO text); default: now. Prices are dated.
            processing: ``"batch"`` where the context decides it.
            region: ``"us-east5"``, ``"global"``, ``"data-zone"``, ... where the context decides it.
            service_tier: Tier that served the call, where the body does not say.
            price_list: Prices to use instead of the configured ones.
            attribution: On whose account: platform multipliers and discounts may depend on it.

        Returns:
            The charges (model, sku_meter, quantity, unit price, multipliers by name, list_cost, billed_cost, price_id,
            source), their sums `list_cost` and `billed_cost`, `cost_source` and `flags`.

        Raises:
            PricingError: not a response or usage at all.
        """
        observation = providers.observe(
            response_or_usage,
            provider=provider,
            endpoint=endpoint,
            model=model,
            processing=processing,
            region=region,
            service_tier=service_tier,
            cost_unit=self.pricer.terms.cost_unit(provider),
            request=self.pricer.with_meant_model(provider, RequestFacts(model=model)),
        ).with_shared()
        pricer = self.pricer if price_list is None else Pricer(price_list, self.pricer.terms)
        moment = utcnow() if at is None else parse_instant(at)
        rating = pricer.rate(
            observation, provider=provider, endpoint=endpoint, at=moment, attribution=Attribution.of(attribution)
        )
        return replace(rating, flags=observation.flags | rating.flags) if observation.flags else rating

    estimate = late_method(lambda: tell_wrong_arguments(estimating.estimate))

    # -- by hand

    record = late_method(lambda: tell_wrong_arguments(by_hand.record))
    hold = late_method(lambda: tell_wrong_arguments(by_hand.hold))

    # -- files for others

    @tell_wrong_arguments
    def export_entries(
        self,
        target: writers.Target,
        *,
        since: query.Instant | None = None,
        until: query.Instant | None = None,
        period: str | Period | None = None,
        where: Mapping[str, query.Accepted] | None = None,
        tz: str = "UTC",
        format: writers.ExportFormat | None = None,  # noqa: A002 - what everybody calls it
        overwrite: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> reports.Manifest:
        """Write raw entries in order of their occurrence, one row per entry; memory does not grow with the ledger.

        Args:
            target: A path (its ending names the format) or an open stream. Beside a path a manifest is written.
            since: As for `report`, and so the next four.
            until: As above.
            period: As above.
            where: As above.
            tz: As above.
            format: Where the ending does not say.
            overwrite: Whether an existing file may be replaced.
            progress: Called now and then with the number of records written.

        Raises:
            ConfigurationError: as for `report`; an unknown format, a missing extra, a missing folder, an existing file.
        """
        query = reports.Query.parse(since=since, until=until, period=period, where=where, tz=tz)
        return reports.export_entries(
            self.catch_up(), target, format=format, query=query, overwrite=overwrite, progress=progress
        )

    @tell_wrong_arguments
    def export_charges(
        self,
        target: writers.Target,
        *,
        since: query.Instant | None = None,
        until: query.Instant | None = None,
        period: str | Period | None = None,
        where: Mapping[str, query.Accepted] | None = None,
        tz: str = "UTC",
        format: writers.ExportFormat | None = None,  # noqa: A002 - what everybody calls it
        overwrite: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> reports.Manifest:
        """Write every charge line with its unit price, factors and costs; arguments as for `export_entries`."""
        query = reports.Query.parse(since=since, until=until, period=period, where=where, tz=tz)
        return reports.export_charges(
            self.catch_up(), target, format=format, query=query, overwrite=overwrite, progress=progress
        )

    @tell_wrong_arguments
    def export_focus(
        self,
        folder: str | Path,
        *,
        since: query.Instant | None = None,
        until: query.Instant | None = None,
        period: str | Period | None = None,
        where: Mapping[str, query.Accepted] | None = None,
        tz: str = "UTC",
        version: str = "1.4",
        terms: reports.FocusTerms | None = None,
        format: writers.ExportFormat = "csv",  # noqa: A002 - what everybody calls it
        overwrite: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> dict[str, reports.Manifest]:
        """Write the datasets of FinOps FOCUS into a folder; see `tokenmeter.reports.export_focus`."""
        query = reports.Query.parse(since=since, until=until, period=period, where=where, tz=tz)
        return reports.export_focus(
            self.catch_up(),
            folder,
            version=version,
            query=query,
            terms=terms,
            format=format,
            overwrite=overwrite,
            progress=progress,
        )

    # -- keeping the ledger right

    @tell_wrong_arguments
    def verify(
        self,
        *,
        repair: bool = False,
        head: str | None = None,
        since: str | None = None,
        deep: bool = False,
        checkpoint: checkpoints.Checkpoint | str | None = None,
        key: bytes | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Verification:
        """Prove that the ledger is whole: the chain of every entry, kept sums, filed documents, budgets' counters.

        Args:
            repair: Set counters that differ to what the entries say. Entries are never changed.
            head: A head of the chain that was kept elsewhere (from an earlier verification, a document's anchor): must
                be in the chain. `Verification.after_head` then says how many records came after it.
            since: A head up to which all was verified before: what lies before it is not looked at again.
            deep: Look into archived months record by record; else their files are compared with their digests.
            checkpoint: A signed checkpoint, or its JSON: the signature must be right, the head in the chain.
            key: The key that signed it; None = the ledger's own.
            progress: Told now and then how many records are done, and of how many.

        Returns:
            How many entries were checked, the chain's head, and every fault found; `ok` when there is none.

        Raises:
            ConfigurationError: `head` or `since` is no hash.
        """
        head, since = _check_hash("head", head), _check_hash("since", since)
        signed = None
        if checkpoint is not None:
            kept = checkpoints.Checkpoint.from_json(checkpoint) if isinstance(checkpoint, str) else checkpoint
            head, signed = kept.head, checkpoints.check(self.catch_up(), kept, key)
        outcome = self.catch_up().verify(head=head, since=since, deep=deep, progress=progress)
        if signed is not None:
            outcome = replace(outcome, faults=(Fault("checkpoint", "signature", f"{signed}."), *outcome.faults))
        try:
            counted = self.audit_budgets(repair=repair)
        except LedgerError as error:
            # A fault that was found is told, whatever else fails; without one nothing is known until counters are read.
            if outcome.ok and not isinstance(error, TamperedLedgerError):
                raise
            counted = [Fault("counter", "budgets", f"They cannot be counted again. {error}")]
        except (ConfigurationError, StoreUnavailableError) as error:  # an extra, or the file of an archived month
            counted = [Fault("unchecked", "budgets", f"They were not counted again. {error}")]
        return replace(outcome, faults=(*outcome.faults, *counted))

    @tell_wrong_arguments
    def checkpoint(self, *, key: bytes | None = None) -> checkpoints.Checkpoint:
        """The present state of the ledger, signed: hand it to whoever must be convinced later that nothing was changed.

        Args:
            key: At least 32 random bytes that they have as well; None = the ledger's own, with which only this ledger
                can check the signature.

        Returns:
            The chain's head and how many entries it stands for; `verify(checkpoint=...)` holds the ledger against it.

        Raises:
            ConfigurationError: the key is too short to sign with.
            StoreUnavailableError: the ledger cannot be read.
        """
        return checkpoints.sign(self.catch_up(), key)

    @tell_wrong_arguments
    def reprice(
        self,
        *,
        since: query.Instant | None = None,
        until: query.Instant | None = None,
        period: str | Period | None = None,
        where: Mapping[str, query.Accepted] | None = None,
        tz: str = "UTC",
        changed: bool = False,
        post: bool | None = None,
        by: str | None = None,
    ) -> list[Entry]:
        """Rate entries again whose price was unknown (or has changed), and append the difference as corrections.

        Nothing recorded is changed: each correction names the entry it re-states (`Entry.corrects`) and carries only
        the difference in cost, never the tokens again. Running it twice corrects once. Prices are those that today's
        list and terms give for the day of each call.

        Args:
            since: As for `report`, and so the next four.
            until: As above.
            period: As above.
            where: As above, for example ``{"model": "gpt-5", "provider": "openai"}``.
            tz: As above.
            changed: Every entry whose cost would differ today, not only those without a price.
            post: Whether the corrections are recorded; default: yes, but with `changed` only when told.
            by: Who has it done, kept as each correction's tag ``posted_by``.

        Returns:
            The corrections that were recorded, or that would be.
        """
        query = reports.Query.parse(since=since, until=until, period=period, where=where, tz=tz)
        if by is not None:
            check_name(by, "by")
        if not changed:
            unpriced = frozenset({"unpriced"})
            if not unpriced <= query.where.get("cost_source", unpriced):
                return []  # entries that have a price are asked for
            query = replace(query, where={**query.where, "cost_source": unpriced})
        recorded = self.catch_up().entries(query.filter)  # whole ones, whatever the filter
        earlier = self._find_corrections(query)

        def rate_again(entry: Entry) -> Entry | None:
            made = earlier.get(entry.entry_id, ())
            if changed:
                found = corrections.changed(entry, made, self.pricer)
            else:
                found = None if made else corrections.correction(entry, self.pricer)
            if found is None or by is None:
                return found
            who = found.attribution
            return replace(found, attribution=who.with_tags({POSTED_BY: by}))

        # All are rated before any is written: what is appended would come up in the same reading.
        known = [found for entry in recorded if (found := rate_again(entry))]
        return list(compress(known, self.post_all(known))) if (not changed if post is None else post) else known

    def _find_corrections(self, query: reports.Query) -> Mapping[str, Sequence[Entry]]:
        """Entry -> what corrects it, in the period of `query`; a correction has the time of what it corrects."""
        found: dict[str, list[Entry]] = {}
        for entry in self.catch_up().entries(
            replace(query.filter, where={"kind": frozenset({"correction", "reversal"})})
        ):
            if entry.corrects is not None:
                found.setdefault(entry.corrects, []).append(entry)
        return found

    backup = _of_ledger(lambda: backups.back_up)
    database = _of_ledger(lambda: database.open_database)
    erase = _of_ledger(lambda: erasing.erase)

    # -- years

    @tell_wrong_arguments
    def archive(
        self,
        through: str,
        to: str | os.PathLike[str],
        *,
        drop: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> list[manifest.ArchivedMonth]:
        """Seal closed months: write each that is not sealed yet into a Parquet file, its digest into the chain.

        Reports, entries, exports, invoices and `verify` read sealed months wherever their entries are. What a file
        holds is described in the schema reference.

        Args:
            through: The last month to seal, ``2026-09``; it must be over (UTC). What was recorded after calls of the
                running month stays.
            to: Folder, or URL of one: ``s3://bucket/usage``.
            drop: Then drop the entries of these months, and of any sealed before, from the live ledger. Sums,
                documents, names and what keeps a bill from being recorded twice stay; so do entries that came late
                and are sealed behind a later month.
            progress: Told now and then how many entries were written.

        Returns:
            What was sealed (or with `drop` dropped) now, in order.

        Raises:
            ConfigurationError: not a month, or one that is not over; no such place; a missing extra (``archive``).
            StoreUnavailableError: the place cannot be written or read. Nothing is lost.
            TamperedLedgerError: an entry, or a file, is not what the chain says. Nothing is dropped.
        """
        archives = self.catch_up().archives
        sealed = archives.seal(through, to, progress=progress)
        return list(archives.drop(through) if drop else sealed)

    def archives(self) -> list[manifest.ArchivedMonth]:
        """Every sealed month, in the order of the chain."""
        return list(self.catch_up().archives.listed())

    @tell_wrong_arguments
    def restore_archive(
        self, since: str | None = None, *, progress: Callable[[int], object] | None = None
    ) -> list[manifest.ArchivedMonth]:
        """Bring the entries of dropped months, from `since` (``2026-08``) on, back into the live ledger.

        Their files stay.

        Args:
            since: The first month to bring back; None = all. What was sealed behind it comes along, also what of
                earlier months came late.
            progress: Told now and then at which record of a file it is.

        Returns:
            What was brought back, the latest first.

        Raises:
            ConfigurationError: not a month; a missing extra.
            StoreUnavailableError: a file cannot be read.
            TamperedLedgerError: a file is not what was sealed.
        """
        return list(self.catch_up().archives.restore(since, progress=progress))

    @tell_wrong_arguments
    def move_archive(
        self, to: str | os.PathLike[str], *, progress: Callable[[int], object] | None = None
    ) -> list[manifest.ArchivedMonth]:
        """Have the files of every sealed month in another place, and say so in the chain.

        A file that lies there already, as after its folder was moved or mounted elsewhere, is compared with its digest
        and taken as it is; any other is copied from where it was. Old files stay.

        Args:
            to: Folder, or URL of one: ``s3://bucket/usage``.
            progress: Told after each month how many entries were moved.

        Returns:
            What was moved, in order.

        Raises:
            ConfigurationError: no such place; a missing extra (``archive``).
            StoreUnavailableError: a file is in neither place, or cannot be written; all others were moved.
        """
        return list(self.catch_up().archives.move(to, progress=progress))

    @tell_wrong_arguments
    def duckdb(self, path: str | os.PathLike[str] | None = None) -> DuckDBPyConnection:
        """The whole ledger, archived months included, as tables of DuckDB, for questions in SQL and for BI tools.

        Views ``calls`` (every entry with its dimensions by name) and ``entries``; tables ``accounts``, ``end_users``
        and ``tags``. Costs are exact decimals in US dollars. See the schema reference.

        Args:
            path: A database file to make, for a tool that opens one; None = in memory. It is a copy as of now, with
                names in it; archived months are read from their files.

        Raises:
            ConfigurationError: a missing extra (``archive``), or the file exists.
            StoreUnavailableError: an archived month's file cannot be read.
        """
        return self.catch_up().archives.connect(path)

    @tell_wrong_arguments
    def prove(self, entry_id: str) -> manifest.Proof:
        """That a sealed month has an entry, for somebody who knows the month's Merkle root and sees nothing else.

        `archives` names the roots; give them to the other side when a month is sealed. A proof is checked by
        `Proof.holds`, or by ``tokenmeter archive check``, without the ledger. The month's file is read once.

        Args:
            entry_id: The entry's identity.

        Raises:
            LedgerError: no sealed month has it.
            ConfigurationError: a missing extra (``archive``).
            StoreUnavailableError: the file cannot be read.
            TamperedLedgerError: the file is not what was sealed.
        """
        return self.catch_up().archives.prove(entry_id)

    load_clickhouse = _of_ledger(lambda: clickhouse.load_clickhouse)

    # -- month end

    close_period = _of_ledger(lambda: billing.close_period)
    invoice = _of_profile(lambda: billing.draft_invoice)
    statement = _of_profile(lambda: billing.draw_statement)
    age_balances = _of_ledger(lambda: billing.age_balances)
    export_journal = _of_ledger(lambda: billing.export_journal)
    hand_over = _of_ledger(lambda: billing.hand_over)
    draft_invoices = _of_profile(lambda: billing.draft_invoices)
    issue_invoice = _of_ledger(lambda: billing.issue_invoice)
    issue_invoices = _of_ledger(lambda: billing.issue_invoices)
    preview_invoices = _of_ledger(lambda: billing.preview_invoices)
    find_invoice = _of_ledger(lambda: billing.find_invoice)
    invoice_coverage = _of_ledger(lambda: billing.invoice_coverage)
    credit_invoice = _of_ledger(lambda: billing.credit_invoice)
    record_payment = _of_ledger(lambda: billing.record_payment)
    void_invoice = _of_ledger(lambda: billing.void_invoice)
    write_off_invoice = _of_ledger(lambda: billing.write_off_invoice)
    import_usage = late_method(lambda: tell_wrong_arguments(importing.import_usage))
    reconcile = _of_ledger(lambda: reconciliation.reconcile)
    file_reconciliation = _of_ledger(lambda: reconciliation.file_reconciliation)
    post_proposals = late_method(lambda: reconciliation.post_proposals)
