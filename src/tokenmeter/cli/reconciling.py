"""The ledger against the provider's books, and the free quotas that a provider gives."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenmeter.attribution import Attribution
from tokenmeter.cli.app import Exit, commands, out, progress_out
from tokenmeter.cli.frame import Frame, command, emit
from tokenmeter.cli.invoicing import Actor
from tokenmeter.cli.options import BillPeriod, parse_lists, parse_pairs
from tokenmeter.dimensions import WHO
from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError
from tokenmeter.meter import Meter
from tokenmeter.money import EXACT, parse_decimal
from tokenmeter.periods import parse_period
from tokenmeter.reconciliation import (
    Reconciliation,
    check_grain,
    count_free_quotas,
    file_reconciliation,
    post_free_quotas,
    post_proposals,
    reconcile_again,
)
from tokenmeter.reconciliation import reconcile as run_reconciliation
from tokenmeter.reconciliation.run import client_of
from tokenmeter.tables import DecimalMark
from tokenmeter.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BooksOptions:
    """The options that say where the provider's books are, and how they are read."""

    file: Annotated[list[Path] | None, typer.Option("--file", "-f", help="CSV statement; repeat for more.")] = None
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column", help="NAME=HEADING, such as day=Date or cost=Amount; of a name given twice both are added up."
        ),
    ] = None
    cost_unit: Annotated[str, typer.Option("--cost-unit", help="usd or cents, with --column.")] = "usd"
    decimal: Annotated[
        DecimalMark | None, typer.Option(help="Decimal mark of the files, where their numbers do not tell.")
    ] = None
    by: Annotated[
        str, typer.Option("--by", "-b", help="What to split by: model, api_key, project or workspace, service_tier.")
    ] = "model"
    rate: Annotated[
        list[str] | None, typer.Option("--rate", help="EUR=1.08: US dollars per unit, where the bill is in euros.")
    ] = None
    key: Annotated[list[str] | None, typer.Option("--key", help="KEY_ID=ALIAS: the provider's id of a key.")] = None
    model: Annotated[list[str] | None, typer.Option("--model", help="THEIRS=OURS: another name of a model.")] = None
    project: Annotated[
        list[str] | None, typer.Option("--project", help="THEIRS=OURS: a project's or workspace's name.")
    ] = None
    reports: Annotated[str | None, typer.Option("--reports", help="Anthropic: analytics or classic.")] = None
    resume: Annotated[Path | None, typer.Option("--resume", help="File that remembers fetched pages.")] = None

    def compare(self, meter: Meter, provider: str, period: str) -> Reconciliation:
        """The ledger beside the provider's books; shows which page is read."""
        asked, grain = parse_period(period, "UTC"), check_grain(self.by)
        named = {"--rate": self.rate, "--key": self.key, "--model": self.model, "--project": self.project}
        rates, keys, models, projects = (
            parse_pairs(given or [], option=option, empty=True) for option, given in named.items()
        )
        source = list(self.file) if self.file else client_of(provider)  # last: a key is asked for when all is right
        with progress_out.status("reading the provider's books") as shown:
            return run_reconciliation(
                meter.store,
                provider=provider,
                period=asked,
                source=source,
                by=grain,
                reports=self.reports,
                columns=parse_lists(self.column, option="--column") if self.column else None,
                cost_unit=self.cost_unit,
                decimal=self.decimal,
                exchange_rates=rates,
                keys=keys,
                models=models,
                projects=projects,
                resume=self.resume,
                progress=lambda what, count, _: shown.update(f"{what}: {count} pages"),
            )


@command(
    commands,
    "reconcile",
    examples=[
        "tokenmeter reconcile openai --period last-month",
        "tokenmeter reconcile anthropic --period 2026-11 --file costs.csv",
        "tokenmeter reconcile openai --period 2026-11 --post --on-account team=search",
    ],
)
def reconcile(
    frame: Frame,
    provider: Annotated[str, typer.Argument(help="openai, anthropic, or with --file any provider.")],
    *,
    period: BillPeriod = "last-month",
    books: BooksOptions,
    post: Annotated[bool, typer.Option("--post", help="Append the proposed adjustments.")] = False,
    on_account: Annotated[
        list[str] | None,
        typer.Option(
            "--on-account", help="With --post: on whose account, FIELD=VALUE; repeat it.", show_default="nobody's"
        ),
    ] = None,
    multiplier: Annotated[
        str, typer.Option("--multiplier", help="With --post: platform multiplier on the provider's amounts.")
    ] = "1",
    actor: Actor = None,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="File the outcome in the ledger, for auditors and the dashboard.")
    ] = True,
) -> None:
    """Compare the ledger with the provider's own books; exit code 1 when something is left to do.

    The admin key is read from OPENAI_ADMIN_KEY or ANTHROPIC_ADMIN_KEY.
    """
    if (on_account or actor or multiplier != "1") and not post:
        raise ConfigurationError("--on-account, --multiplier and --actor are of what is appended: give --post.")
    account: dict[str, Any] = {**parse_pairs(on_account or [], option="--on-account")}
    if unknown := [name for name in account if name not in WHO]:
        raise ConfigurationError(f"--on-account goes by {', '.join(WHO)}, not by {unknown[0]!r}.")
    whose, factor = Attribution(**account), parse_decimal(multiplier, name="--multiplier")
    with frame.meter() as meter:
        outcome = books.compare(meter, provider, period)
        posted = post_proposals(meter, outcome, attribution=whose, multiplier=factor, by=actor) if post else []
        left = reconcile_again(meter.store, outcome) if posted else outcome
        if frame.as_json:
            after = {"after": left.to_dict()} if post else {}
            emit({**outcome.to_dict(), "posted": [entry.entry_id for entry in posted], **after})
        else:
            out.print(str(outcome), markup=False)
            if post:
                out.print(_tell_posted(len(posted), left), markup=False)
        if keep:  # told first: an outcome that cannot be filed is not lost
            file_reconciliation(meter.store, outcome)
            if posted:
                file_reconciliation(meter.store, left)
    if not left.ok:
        raise typer.Exit(Exit.FOUND)


def _tell_posted(posted: int, left: Reconciliation) -> str:
    """What was appended, and what that leaves to do."""
    counts = Counter(one.cause for one in left.open_differences)
    rest = ", ".join(f"{count} x {cause}" for cause, count in counts.items()) or "nothing"
    return f"{counted(posted, 'adjustment was', 'adjustments were')} appended; left to do: {rest}."


@command(commands, "quotas", examples=["tokenmeter quotas --period 2026-11", "tokenmeter quotas --post"])
def quotas(
    frame: Frame,
    *,
    period: BillPeriod = "last-month",
    post: Annotated[bool, typer.Option("--post", help="Append the credits of windows that are over.")] = False,
) -> None:
    """What providers gave free of charge: count each free quota of the settings, and credit it."""
    with frame.meter() as meter:
        uses = count_free_quotas(meter, period)
        posted = post_free_quotas(meter, uses) if post else []
        declared = bool(meter.pricer.terms.free_quotas)
    if frame.as_json:
        emit({"quotas": [use.to_dict() for use in uses], "posted": [entry.entry_id for entry in posted]})
        return
    for use in uses:
        notes = [f"{use.unpriced:,} of unknown price"] if use.unpriced else []
        notes += ["not over yet"] if use.open else []
        more = f" ({', '.join(notes)})" if notes else ""
        out.print(
            f"{use.window.label}  {use.quota.name}: {use.used:,} used, {use.free:,} of {use.quota.quantity:,} free, "
            f"${use.credit.normalize(EXACT):f}{more}",
            markup=False,
        )
    if not uses:
        none = "Nothing of a free quota was used" if declared else "The settings name no [[free_quotas]]"
        out.print(f"{none}.", markup=False)
    if post:
        out.print(f"{counted(len(posted), 'credit was', 'credits were')} appended.")
