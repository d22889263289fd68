"""``init`` and ``config check``: the settings file, written and read."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tokenmeter.api import Meter
from tokenmeter.budgets.matching import value_fits
from tokenmeter.cli.app import Group, commands, out
from tokenmeter.cli.frame import Frame, command, emit
from tokenmeter.config import FILE_NAME, find_file
from tokenmeter.default import make_meter
from tokenmeter.estimating import provider_of
from tokenmeter.paths import user_folder
from tokenmeter.providers.hosts import canonical_provider
from tokenmeter.reports.writers import write_whole
from tokenmeter.settings import HostSettings, Settings
from tokenmeter.stores.urls import redacted

config_app = typer.Typer(cls=Group, help="The settings.", no_args_is_help=True)
commands.add_typer(config_app, name="config")

#: What ``init`` writes. A line that begins with ``#`` and a letter or bracket is a setting that is switched off.
TEMPLATE = """\
# Settings of tokenmeter. Nothing here is needed: what is commented out shows its default or an example.
# After a change: tokenmeter config check

# Where the ledger is: memory:, sqlite:///relative.db, sqlite:////absolute.db or postgresql://user@host/database.
# Without it: a SQLite file in your data directory (tokenmeter doctor says where). TOKENMETER_STORE wins over it.
#store = "sqlite:///usage.db"

# The platform's multiplier on upstream cost, a line of its own on every charge. 1 = no markup.
#multiplier = "1.05"

# Each call as OpenTelemetry ("opentelemetry", extra otel) or Prometheus metrics ("prometheus", extra prometheus), and
# what they are labelled with; every value of a label makes a time series.
#metrics = "opentelemetry"
#metrics_labels = ["team", "route"]

# Tokens and cost on the OpenTelemetry span that a call is made in (extra otel).
#traces = true

# Fields of a request that name its end user, and fields that become tags.
#end_user_from = ["safety_identifier", "user", "metadata.user_id"]
#tags_from = ["metadata.feature"]

# What every call has to name, and what becomes of one that does not: "refuse", or "warn" (its place is logged once).
#require = ["member"]
#on_missing = "warn"

# What alerts tell besides thresholds. A table in place of a name sets what it goes by.
#rules = ["burn_rate", { rule = "spike", factor = 5, least_usd = 1 }, "unpriced", "faults"]

# Seconds that a call may be in flight before what a budget holds for it is given back. Live streams extend it.
#hold_seconds = 900

# Newer prices without an upgrade: looked for once a day ("auto"), or a file (tokenmeter prices update --save FILE).
#price_list = "auto"

# Names for API keys. A key itself does not belong into this file: name the variable that holds it, or its SHA-256.
#[api_keys]
#prod = "env:OPENAI_API_KEY"

# Caps. "*" gives every member (key, team, ...) a counter of its own. Fields: tokenmeter.Budget.
#[[budgets]]
#member = "*"
#limit_usd = 50
#period = "month"

# Where alerts go besides the log: a signed webhook, slack, teams, pagerduty or email. One target a row.
#[[alerts]]
#webhook = "https://hooks.example.com/llm-spend"
#secret = "env:TOKENMETER_WEBHOOK_SECRET"

# Names of deployments, and aliases of your own, by provider.
#[models.azure]
#my-deployment = "gpt-5-mini"

# Hosts of your own: base URL -> provider that bills there.
#[providers]
#"https://llm.example.com" = "openai"
#"https://gateway.example.com" = { provider = "openai", cost = "cents", ask_usage = false }

# Price rows of your own win over the shipped ones. `tokenmeter prices show` lists what is in force.
#[[prices]]
#provider = "openai"
#model = "my-finetune"
#sku_meter = "input"
#unit_price = "3.00"
#per = 1_000_000
#source = "contract 4711"

# Negotiated with a provider: a factor on upstream cost.
#[[discounts]]
#provider = "openai"
#factor = "0.92"

# Platform multipliers that differ by account.
#[[multipliers]]
#member = "ada"
#multiplier = "1.10"

# What a provider gives free of charge each day or month, to a project: tokenmeter quotas counts and credits it.
#[[free_quotas]]
#provider = "google"
#sku_meter = "web_searches"
#models = ["gemini-3*"]
#quantity = 5000
#per = "month"
#tz = "America/Los_Angeles"

# Who bills whom.
#[billing]
#seller = "Example Platform Ltd"
#currency = "USD"

# Who may look at the dashboard and the usage API: tokenmeter dashboard token create ada --only member=ada
#[dashboard.tokens.ada]
#hash = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
#only = { member = "ada" }
#can = ["read"]
"""


@command(commands, "init", examples=["tokenmeter init", "tokenmeter init --user"], options=("as_json",))
def init(
    frame: Frame,
    *,
    target: Annotated[
        Path | None, typer.Argument(help="File to write.", show_default=f"{FILE_NAME} in the working directory")
    ] = None,
    user: Annotated[bool, typer.Option("--user", help="In your configuration directory, for every project.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Write a settings file in which every setting is explained and commented out."""
    home = user_folder("config", "name a file") if user else Path()
    path = target or home / FILE_NAME
    if target is None:
        home.mkdir(parents=True, exist_ok=True)
    write_whole(path, TEMPLATE, overwrite=overwrite)
    if frame.as_json:
        emit({"file": str(path)})
    else:
        out.print(f"{path} is written. Take the # off what you need, then: tokenmeter config check", markup=False)


@command(config_app, "check", examples=["tokenmeter config check --config tokenmeter.toml"])
def check(frame: Frame) -> None:
    """Read the settings as a program would and say what they are; exit code 2 when they are wrong."""
    settings = frame.settings
    meter = make_meter(settings.model_copy(update={"store": "memory:"}))
    budgets = [budget.name for budget in meter.budgets.declared]
    warnings = [*unset_keys(settings), *unknown_names(settings, meter)]
    meter.close()
    found = {
        "file": settings.source or (str(find_file()) if find_file() else None),
        "store": settings.store and redacted(settings.store),
        "multiplier": f"{settings.multiplier:f}",
        "budgets": budgets,
        "api_keys": sorted(settings.api_keys),
        "prices": len(settings.prices),
        "price_list": settings.price_list or "installed",
        "discounts": len(settings.discounts),
        "multipliers": len(settings.multipliers),
        "free_quotas": len(settings.free_quotas),
        "models": [f"{name} of {provider}" for provider, names in settings.models.items() for name in names],
        "providers": [f"{where} = {_describe_host(host)}" for where, host in settings.providers.items()],
        "alerts": [row.kind for row in settings.alerts],
        "rules": list(map(str, settings.rules)),
        "require": [f"{name} ({settings.on_missing})" for name in settings.require],
        "metrics": _describe_metrics(settings),
        "traces": "on" if settings.traces else "off",
        "end_user_from": settings.end_user_from,
        "tags_from": settings.tags_from,
        "hold_seconds": settings.hold_seconds,
        "billing": sorted(settings.billing),
        "dashboard": sorted(settings.dashboard.tokens),
    }
    if frame.as_json:
        emit({"ok": True, **found, "warnings": warnings})
        return
    width = max(map(len, found)) + 2
    for name, value in found.items():
        shown = ", ".join(map(str, value)) or "none" if isinstance(value, list) else value
        out.print(f"{name.replace('_', ' '):<{width}}{escape(str(shown if shown is not None else 'default'))}")
    for warning in warnings:
        out.print(f"[yellow]care[/]  {escape(warning)}")
    out.print("[green]The settings are good.[/]")


def _describe_host(host: HostSettings) -> str:
    cost = None if host.cost is None else f"cost {host.cost}"
    parts = (host.provider or "as its URL says", cost, None if host.ask_usage else "usage not asked for")
    return " ".join(filter(None, parts))


def _describe_metrics(settings: Settings) -> str:
    kind = "opentelemetry" if settings.metrics is True else settings.metrics
    labels = f" by {' '.join(settings.metrics_labels)}" if settings.metrics_labels else ""
    return f"{kind}{labels}" if kind else "off"


def unset_keys(settings: Settings) -> list[str]:
    """Keys and alert targets of the settings whose environment variable is not set, in words."""
    unset = [alias for alias, reference in settings.api_keys.items() if reference.startswith("env:")]
    known = set(settings.key_hashes().values())
    keys = [
        f"api_keys.{alias} names an environment variable that is not set here: its calls show as ...last4."
        for alias in unset
        if alias not in known
    ]
    absent = [name for row in settings.alerts for name in row.unset()]
    return keys + [f"alerts: the variable {name} is not set here: that target is left out." for name in absent]


def unknown_names(settings: Settings, meter: Meter, recorded: Collection[str] = ()) -> list[str]:
    """Models and providers of the settings and of budgets that no price list knows, in words: most are a slip.

    Args:
        settings: Where providers of one's own are named.
        meter: By these prices, terms and budgets.
        recorded: Providers and models of the ledger's entries: what was called is no slip.
    """
    own = {canonical_provider(name) for key, host in settings.providers.items() for name in (key, host.provider or key)}
    listed, maps = meter.pricer.price_list, meter.pricer.terms.model_maps
    aliases = {alias.lower() for names in maps.values() for alias in names}
    called = {name.lower() for name in recorded} | aliases
    found: list[str] = []
    for place, provider, model, pattern in _name_models(meter):
        seller = None if provider is None or "*" in provider else canonical_provider(provider)
        if seller and not listed.sells(seller):
            if seller not in called | own:
                found.append(f"{place}: no price list knows the provider {provider!r}, and no entry is its: a slip?")
        elif model is not None and not listed.knows(seller, model, pattern=pattern):
            if any(value_fits(model.lower(), name) if pattern else model.lower() == name for name in called):
                continue
            name = model.replace("*", "")
            meant = (seller and listed.nearest(seller, name)) or listed.nearest(provider_of(model), name)
            hint = f"did you mean {meant!r}?" if meant else "a slip?"
            no_pattern = "" if pattern or "*" not in model else " A name here has no *: it is compared as it is."
            found.append(f"{place}: no price list knows the model {model!r}, and no entry is its: {hint}{no_pattern}")
    return list(dict.fromkeys(found))


def _name_models(meter: Meter) -> Iterator[tuple[str, str | None, str | None, bool]]:
    """Where a provider or a model is named, the two, and whether the model may be a pattern."""
    terms = meter.pricer.terms
    for provider, names in terms.model_maps.items():
        for alias, model in names.items():
            yield f"models: {alias}", None if provider == "*" else provider, model, False
    for discount in terms.discounts:
        yield "discounts", discount.provider, discount.model, False
    for multiplier in terms.multipliers:
        scope = dict(multiplier.scope)
        yield "multipliers", scope.get("provider"), scope.get("model"), False
    for quota in terms.free_quotas:
        for pattern in quota.models or (None,):
            yield "free_quotas", quota.provider, pattern, True
    for change in meter.budgets.changes():
        if change.budget is not None:
            yield f"budgets: {change.name}", change.budget.provider, change.budget.model, True
