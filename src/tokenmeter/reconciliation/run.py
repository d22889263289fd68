"""Reconciling: fetch the provider's books, read ours, compare; then keep the outcome, and post what was agreed."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import reduce
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.attribution import NOBODY, Attribution
from tokenmeter.errors import ConfigurationError, ReconciliationError, shown
from tokenmeter.ledger import Entry, utcnow
from tokenmeter.meter import Meter
from tokenmeter.money import EXACT, ZERO, parse_decimal, parse_multiplier
from tokenmeter.periods import Period, floor, parse_instant, parse_period
from tokenmeter.reconciliation import anthropic, openai
from tokenmeter.reconciliation.causes import POSTABLE, Cause
from tokenmeter.reconciliation.compare import compare
from tokenmeter.reconciliation.files import read_files
from tokenmeter.reconciliation.names import show_projects, translate
from tokenmeter.reconciliation.paging import Progress, ReportPages, keep_to_address
from tokenmeter.reconciliation.result import KIND, TOLERANCE, Reconciliation, SideTotals
from tokenmeter.reconciliation.statement import (
    GRAIN,
    ExchangeRates,
    ProviderStatement,
    Side,
    read_ledger,
)
from tokenmeter.stores.base import EntryFilter, Store
from tokenmeter.stores.documents import DocumentQuery, NewDocument
from tokenmeter.tables import DecimalMark
from tokenmeter.texts import acting, check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence


#: Whose books can be asked, and who asks them.
_BOOKS = {"openai": openai, "anthropic": anthropic}
#: What a provider that names no watermark may still add to.
_SETTLING = timedelta(days=2)


@tell_wrong_arguments
def reconcile(
    store: Store,
    *,
    provider: str,
    period: str | Period,
    source: Any,
    by: str | Sequence[str] = "model",
    reports: str | None = None,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    cost_unit: str = "usd",
    decimal: DecimalMark | None = None,
    keys: Mapping[str, str] | None = None,
    models: Mapping[str, str] | None = None,
    projects: Mapping[str, str] | None = None,
    exchange_rates: Mapping[str, Decimal | int | str] | None = None,
    settling: timedelta = _SETTLING,
    tolerance: Decimal | str = TOLERANCE,
    resume: str | Path | None = None,
    progress: Progress | None = None,
    now: datetime | None = None,
) -> Reconciliation:
    """Compare the ledger with the provider's own books: requests, tokens per class, and money, per UTC day.

    Args:
        store: The ledger.
        provider: ``"openai"`` or ``"anthropic"``; with files any provider id.
        period: ``"2026-11"``, ... cut in UTC, as the providers do.
        source: An ``OpenAI`` or ``Anthropic`` client with an admin key, or the path of a CSV file, or a list of paths.
        by: What to split by besides the day: ``model``, ``api_key``, ``project`` (or ``workspace``),
            ``service_tier`` (batches are one); what the provider cannot tell
            apart in both its usage and its costs is left out.
        reports: Anthropic: ``"analytics"`` or ``"classic"``; default: analytics where the SDK has it.
        columns: Files: what is in which column, see `tokenmeter.reconciliation.exports.Columns`; default: as known
            exports have it.
        cost_unit: Files with `columns`: ``"usd"`` or ``"cents"``.
        decimal: Decimal mark of files (``","`` or ``"."``), where their numbers do not tell.
        keys: The provider's id of an API key -> its alias in the ledger.
        models: The provider's name of a model -> its name in the ledger; what stands here is no fee, however it is
            called.
        projects: The provider's id or name of a project or workspace -> the ledger's project.
        exchange_rates: US dollars per unit of a currency the provider bills in: ``{"EUR": "1.08"}``.
        settling: How long a provider that names no watermark may still add to a day.
        tolerance: US dollars per bucket up to which a difference under half a percent counts as rounding.
        resume: A file that remembers fetched pages, to go on after an interruption.
        progress: Called after each page with what is read, pages so far, and how many there will be.
        now: The instant to judge lateness by; default: now.

    Raises:
        ConfigurationError: an unknown provider or split, a column map that does not fit.
        ReconciliationError: the statement cannot be read; the client's key is refused.
    """
    check_name(provider, "provider")
    moment = utcnow() if now is None else parse_instant(now)
    if settling < timedelta():
        raise ConfigurationError(f"settling is a time that is waited, not {shown(settling)}.")
    asked = period if isinstance(period, Period) else parse_period(period, "UTC", now=moment)
    if floor(asked.start, "day").start != asked.start or floor(asked.end, "day").start != asked.end:
        raise ConfigurationError("Providers report in whole UTC days; give a period such as '2026-11', in UTC.")
    names = check_grain(by)
    rates = ExchangeRates(_rates(exchange_rates or {}))
    statement = _statement(
        source,
        provider,
        asked,
        names,
        reports=reports,
        columns=columns,
        cost_unit=cost_unit,
        decimal=decimal,
        rates=rates,
        pages=ReportPages(resume=resume, progress=progress, whose=_whose(source)),
        models={*(models or {}), *_models_of(store, provider, asked)},
    )
    return reconcile_statement(
        store,
        translate(
            replace(statement, notes=(*statement.notes, *rates.notes)),
            {"api_key": keys or {}, "model": models or {}, "project": projects or {}},
        ),
        complete_until=statement.watermark or _settled(moment, settling),
        tolerance=_parse_tolerance(tolerance),
        now=moment,
    )


@tell_wrong_arguments
def reconcile_statement(
    store: Store,
    statement: ProviderStatement,
    *,
    complete_until: datetime,
    tolerance: Decimal = TOLERANCE,
    now: datetime | None = None,
) -> Reconciliation:
    """Compare the ledger with a statement from anywhere."""
    ledger = read_ledger(store, statement)
    statement = show_projects(statement, ledger)
    outcome = compare(statement, ledger, complete_until=complete_until, tolerance=tolerance)
    return Reconciliation(
        provider=statement.provider,
        period=statement.period,
        source=statement.source,
        grain=statement.grain,
        compared=len({*outcome.ours, *outcome.theirs}),
        ours=_totals(outcome.ours.values(), statement),
        theirs=_with_extras(_totals(outcome.theirs.values(), statement), statement),
        complete_until=complete_until.astimezone(UTC),
        discrepancies=outcome.discrepancies,
        reconciled_at=(now or utcnow()).astimezone(UTC),
        notes=(*statement.notes, *outcome.notes),
        statement=statement,
        tolerance=tolerance,
    )


@tell_wrong_arguments
def reconcile_again(store: Store, outcome: Reconciliation) -> Reconciliation:
    """The same statement beside the ledger as it is now: what `post_proposals` has left to do.

    Args:
        store: The ledger.
        outcome: From `reconcile`.

    Raises:
        ConfigurationError: the outcome was read from the ledger, which keeps no statement.
    """
    if outcome.statement is None:
        raise ConfigurationError("A filed outcome has no statement to compare again: reconcile() with the statement.")
    return reconcile_statement(
        store, outcome.statement, complete_until=outcome.complete_until, tolerance=outcome.tolerance
    )


@tell_wrong_arguments
def file_reconciliation(store: Store, outcome: Reconciliation) -> Reconciliation:
    """Keep an outcome in the ledger, sealed like an invoice; filing it again gives the same document.

    Args:
        store: In which ledger.
        outcome: From `reconcile`.

    Returns:
        The same with its `document`.
    """
    body = json.dumps(outcome.to_dict(), separators=(",", ":"))
    digest = hashlib.sha256(body.encode()).hexdigest()[:16]
    draft = NewDocument(kind=KIND, key=f"{outcome.provider} {outcome.period.label} {digest}", body=body)
    return replace(outcome, document=store.file(draft).document)


@tell_wrong_arguments
def reconciliations(store: Store) -> list[Reconciliation]:
    """Filed reconciliations, oldest first; each names its `document`."""
    return [Reconciliation.of(document) for document in store.documents(DocumentQuery(KIND))]


@tell_wrong_arguments
def post_proposals(
    meter: Meter,
    outcome: Reconciliation,
    *,
    causes: Collection[Cause] = POSTABLE,
    attribution: Attribution | Mapping[str, Any] = NOBODY,
    multiplier: Decimal | int | str = 1,
    by: str | None = None,
) -> list[Entry]:
    """Append an outcome's proposals to the ledger as adjustments; the same proposal posts once.

    Args:
        meter: Whose ledger and budgets.
        outcome: From `reconcile`.
        causes: Only proposals for these.
        attribution: On whose account.
        multiplier: Platform multiplier on top of the upstream amounts.
        by: Who posts them, kept as the tag ``posted_by``; default: the user of the system.

    Returns:
        The entries that were appended. `reconcile_again` says what they leave.

    Raises:
        ConfigurationError: a cause that is never posted, or no such multiplier.
    """
    factor, account, actor = parse_multiplier(multiplier), Attribution.of(attribution), acting(by)
    wanted = frozenset([causes] if isinstance(causes, str) else causes)  # one alone is not its letters
    if strange := sorted(map(str, wanted - POSTABLE)):
        raise ConfigurationError(
            f"{shown(strange[0])} is no cause that is posted; those are {', '.join(sorted(POSTABLE))}."
        )
    called = meter.store.key_labels()
    several = Counter(called.values())
    keys = {name: fingerprint for fingerprint, name in called.items() if several[name] == 1}
    entries = [
        proposal.entry(outcome.provider, by=actor, attribution=account, multiplier=factor, keys=keys)
        for proposal in outcome.proposals
        if proposal.discrepancy.cause in wanted
    ]
    return list(compress(entries, meter.post_all(entries)))


def _settled(moment: datetime, settling: timedelta) -> datetime:
    """Until when books are complete that say nothing of it themselves."""
    try:
        return moment - settling
    except OverflowError as error:
        raise ConfigurationError(f"{shown(settling)} before {moment} is before any calendar.") from error


def _parse_tolerance(given: object) -> Decimal:
    tolerance = parse_decimal(given, name="tolerance")
    if tolerance < 0:
        raise ConfigurationError(f"tolerance is an amount of 0 or more, not {shown(given)}.")
    return tolerance


def _rates(given: Mapping[str, Decimal | int | str]) -> dict[str, Decimal]:
    rates = {code.upper(): parse_decimal(rate, name=f"exchange_rates[{code!r}]") for code, rate in given.items()}
    for code, rate in rates.items():
        if rate <= 0:
            raise ConfigurationError(f"exchange_rates[{code!r}] must be positive, not {rate}.")
    return rates


def _whose(source: Any) -> str:
    """Whose reports a client reads: its address, organization and key; kept beside remembered pages, the key hashed."""
    key = str(getattr(source, "admin_api_key", None) or getattr(source, "api_key", None) or "")
    organization = getattr(source, "organization", None)  # a name in OpenAI's SDK, methods in Anthropic's
    told = str(getattr(source, "base_url", None) or ""), organization if isinstance(organization, str) else ""
    return " ".join([*told, hashlib.sha256(key.encode()).hexdigest()[:16]])


@tell_wrong_arguments
def check_grain(by: str | Sequence[str]) -> tuple[str, ...]:
    """What a statement is split by besides the day, from one text with commas or several.

    Raises:
        ConfigurationError: a statement cannot be split by one of them.
    """
    names = tuple(name.strip() for name in by.split(",") if name.strip()) if isinstance(by, str) else tuple(by)
    names = tuple("project" if name == "workspace" else name for name in names)
    for name in names:
        if name not in GRAIN:
            raise ConfigurationError(f"A statement can be split by {', '.join(GRAIN)}, not {name!r}.")
    return names


def _statement(
    source: Any,
    provider: str,
    period: Period,
    by: Sequence[str],
    *,
    reports: str | None,
    columns: Mapping[str, str | Sequence[str]] | None,
    cost_unit: str,
    decimal: DecimalMark | None,
    rates: ExchangeRates,
    pages: ReportPages,
    models: Collection[str],
) -> ProviderStatement:
    paths = _paths(source)
    if paths:
        return read_files(
            paths,
            period,
            provider=provider,
            by=by,
            columns=columns,
            cost_unit=cost_unit,
            decimal=decimal,
            rates=rates,
            models=models,
        )
    try:
        return _fetched(
            keep_to_address(source), provider, period, by, reports=reports, rates=rates, pages=pages, models=models
        )
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ReconciliationError(
            f"The reports of {provider} are not in the shape they are documented in ({type(error).__name__}: {error}). "
            "Give the console's CSV export instead, or report this."
        ) from error


def _fetched(
    source: Any,
    provider: str,
    period: Period,
    by: Sequence[str],
    *,
    reports: str | None,
    rates: ExchangeRates,
    pages: ReportPages,
    models: Collection[str],
) -> ProviderStatement:
    if provider not in _BOOKS:
        raise ConfigurationError(
            f"Only {' and '.join(_BOOKS)} have reports to be fetched; for {provider!r} give a CSV file as source=."
        )
    fetch: Callable[..., ProviderStatement] = _BOOKS[provider].fetch
    return fetch(source, period, by=by, pages=pages, reports=reports, rates=rates, models=models)


def client_of(provider: str) -> Any:
    """A client of the provider's SDK with the admin key of the environment.

    Args:
        provider: Its id.

    Raises:
        ConfigurationError: it has no reports that can be fetched, or there is no key.
    """
    if provider not in _BOOKS:
        raise ConfigurationError(
            f"Only {' and '.join(_BOOKS)} can be asked; for {provider!r} give its statement: --file."
        )
    variable = f"{provider.upper()}_ADMIN_KEY"
    if not (admin_key := os.environ.get(variable)):
        raise ConfigurationError(f"Set {variable} to an admin key: ordinary keys see no reports.")
    return _BOOKS[provider].make_client(admin_key)


def _paths(source: Any) -> list[Path]:
    """The files that `source` names; none for a client."""
    if isinstance(source, (str, os.PathLike)):
        return [Path(os.fspath(cast("str | os.PathLike[str]", source)))]
    if not isinstance(source, (list, tuple)):
        return []
    if not source:
        raise ConfigurationError("source= is an empty list: name at least one CSV file, or give a client.")
    try:
        return [Path(path) for path in cast("Iterable[str]", source)]
    except TypeError:
        raise ConfigurationError(
            f"source= is a client, or names CSV files, not {shown(cast('object', source))}."
        ) from None


def _models_of(store: Store, provider: str, period: Period) -> set[str]:
    """What the ledger calls the provider's models in a period."""
    which = EntryFilter(where={"provider": frozenset([provider])})
    groups = store.aggregate([period.start, period.end], ["model"], which)
    return {model for group in groups if (model := group.group[0])}


def _totals(sides: Iterable[Side], statement: ProviderStatement) -> SideTotals:
    tokens, cost = 0, ZERO
    for side in sides:
        tokens += side.total_tokens
        cost = EXACT.add(cost, side.cost or ZERO)
    return SideTotals(
        tokens=None if statement.usage is None else tokens, cost=None if statement.costs is None else cost
    )


def _with_extras(totals: SideTotals, statement: ProviderStatement) -> SideTotals:
    """With credits, taxes and fees: what the provider's bill comes to."""
    if totals.cost is None:
        return totals
    extras = (line.amount for line in statement.costs or () if line.kind != "usage")
    return SideTotals(totals.tokens, reduce(EXACT.add, extras, totals.cost))
