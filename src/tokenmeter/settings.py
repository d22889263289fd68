"""What can be configured: the keys of ``tokenmeter.toml``, and what each may say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, PrivateAttr

from tokenmeter.attribution import hash_key
from tokenmeter.budgets import AlertTarget, Budget
from tokenmeter.dimensions import SCOPE_FIELDS
from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.money import ONE, ZERO, parse_multiplier
from tokenmeter.periods import parse_instant
from tokenmeter.pricing.parse import table_lines
from tokenmeter.texts import is_blank, is_tag, suggest

#: Where an alert goes, and a secret that is never written down.
ADDRESS, IN_ENVIRONMENT = r"^(https?://|env:)", "^env:"
#: How a value names the environment variable that holds it, and a secret its SHA-256.
ENV = re.compile(r"env:(?P<name>[A-Za-z_][A-Za-z0-9_]*)$")
SHA256 = re.compile(r"sha256:(?P<hex>[0-9a-f]{64})$")
_LEAST_UNIT, _MOST_UNIT = Decimal("1E-12"), Decimal("1E6")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

Row = dict[str, Any]


def _check_text(value: object) -> object:
    if isinstance(value, str) and _CONTROL.search(value):
        raise ValueError("must not contain control characters or halves of letters")
    return value


Text = Annotated[str, BeforeValidator(_check_text)]


def _check_name(value: object) -> object:
    if isinstance(value, str) and is_blank(value):
        raise ValueError("must say more than blanks")
    return _check_text(value)


#: What somebody or something is called by.
Name = Annotated[str, BeforeValidator(_check_name)]


def _check_reference(value: object) -> object:
    if isinstance(value, str) and value.startswith("env:") and not ENV.match(value):
        raise ValueError("must be env:NAME, the variable that holds it: letters, digits and _ after env:")
    return _check_text(value)


#: A text, or the variable that holds it.
Told = Annotated[str, BeforeValidator(_check_reference)]


def _parse_cost_unit(value: object) -> object:
    """A unit of costs by its name, or as a positive number of US dollars."""
    if value is None or (isinstance(value, str) and value in {"usd", "cents", "ignore"}):
        return value
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = ZERO
    if isinstance(value, bool | float) or not number.is_finite() or not _LEAST_UNIT <= number <= _MOST_UNIT:
        raise ValueError('must be "usd", "cents", "ignore", or US dollars per unit such as "0.001"')
    return str(number)


def _parse_instant(value: object) -> object:
    """A date or an instant as an aware instant; without a zone it is UTC."""
    return parse_instant(value) if isinstance(value, str | date) else value


#: An http(s) URL, or the variable that holds it.
Address = Annotated[str, BeforeValidator(_check_reference), Field(pattern=ADDRESS)]


class EmailSettings(BaseModel):
    """``email = { to = [...], from = "...", host = "..." }`` of an ``[[alerts]]`` row; see `targets.Email`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: list[Told] = Field(min_length=1)
    sender: Told = Field(alias="from")
    host: Told
    port: int | None = Field(default=None, ge=1, le=65_535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: Told | None = None
    password: Told | None = Field(default=None, pattern=IN_ENVIRONMENT)

    @property
    def texts(self) -> list[str]:
        """All that may name a variable."""
        return [*self.to, self.sender, self.host, self.user or "", self.password or ""]


class AlertSettings(BaseModel):
    """``[[alerts]]``: where alerts go besides the log; one target a row.

    A value may be ``env:NAME``, a variable that holds it; what is a secret should be.

    Attributes:
        webhook: URL that receives a signed JSON POST.
        secret: The webhook's signing secret, ``whsec_...``.
        slack: URL of a Slack incoming webhook.
        teams: URL of a Microsoft Teams workflow.
        pagerduty: Integration key of a PagerDuty service.
        email: Recipients and server.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    webhook: Address | None = None
    secret: Told | None = None
    slack: Address | None = None
    teams: Address | None = None
    pagerduty: Told | None = None
    email: EmailSettings | None = None

    @property
    def kind(self) -> str:
        """Where this row's alerts go: ``webhook``, ``slack``, ``teams``, ``pagerduty`` or ``email``.

        Raises:
            ConfigurationError: none or several in one row.
        """
        kinds = ("webhook", "slack", "teams", "pagerduty", "email")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ConfigurationError(
                f"alerts: give each row one of {', '.join(kinds)}, not {' and '.join(given) or 'none'}."
            )
        return given[0]

    def unset(self) -> list[str]:
        """The environment variables it names that are not set here."""
        said = [self.webhook, self.secret, self.slack, self.teams, self.pagerduty]
        said += self.email.texts if self.email else []
        named = [found["name"] for value in said if value and (found := ENV.match(value))]
        return [name for name in named if not os.environ.get(name)]

    def make(self) -> AlertTarget:
        """The target.

        Raises:
            ConfigurationError: none or several in one row, a variable that is not set, or a wrong value.
        """
        kind = self.kind
        from tokenmeter.budgets import targets  # noqa: PLC0415 - HTTP and mail are loaded only by who has alerts

        if self.email is not None:
            said = self.email
            return targets.Email(
                [resolve(one, "alerts.email.to") for one in said.to],
                sender=resolve(said.sender, "alerts.email.from"),
                host=resolve(said.host, "alerts.email.host"),
                port=said.port,
                security=said.security,
                user=None if said.user is None else resolve(said.user, "alerts.email.user"),
                password=None if said.password is None else resolve(said.password, "alerts.email.password"),
            )
        where = resolve(getattr(self, kind), f"alerts.{kind}")
        if self.webhook is not None:
            return targets.Webhook(where, secret=None if self.secret is None else resolve(self.secret, "alerts.secret"))
        if self.slack is not None:
            return targets.Slack(where)
        return targets.Teams(where) if self.teams is not None else targets.PagerDuty(where)


def resolve(said: str, name: str) -> str:
    """`said`, or what the variable holds that it names by ``env:NAME``.

    Raises:
        ConfigurationError: the variable is not set; the message calls the setting `name`.
    """
    found = ENV.match(said)
    if found is None:
        return said
    value = os.environ.get(found["name"])
    if not value:
        raise ConfigurationError(f"{name}: the environment variable {found['name']} is not set.")
    return value


class HostSettings(BaseModel):
    """``[providers]``: what is to be known of one host.

    Attributes:
        provider: Id of the provider that serves and bills there; None: as its URL says.
        cost: What the ``cost`` in its usage is: ``"usd"``, ``"cents"``, US dollars per unit (``"0.001"``), or
            ``"ignore"``; None: it is the bill where the provider is known to send dollars, and compared elsewhere.
        ask_usage: Whether a stream whose caller decides nothing is asked to state its usage, which is then not shown to
            him. False for a host that states it to everybody, or that takes no such request.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Text | None = Field(default=None, min_length=1)
    cost: Annotated[str | None, BeforeValidator(_parse_cost_unit)] = None
    ask_usage: bool = True


class TokenSettings(BaseModel):
    """``[dashboard.tokens.NAME]``: a token for the dashboard and the API; ``tokenmeter dashboard token`` makes it.

    Attributes:
        hash: ``sha256:HEX`` of the token.
        only: What it shows: dimension -> value or values; None (left out) = everything. An empty one is refused.
        can: What it may do: ``read``; ``budgets`` (set, raise), ``invoices`` (issue, credit), ``prices`` (reprice).
        expires: First instant at which it is no longer good.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hash: str = Field(pattern=SHA256.pattern, repr=False)
    only: dict[Text, Text | list[Text]] | None = None
    can: list[Literal["read", "budgets", "invoices", "prices"]] = Field(default=["read"], min_length=1)
    expires: Annotated[datetime | None, BeforeValidator(_parse_instant)] = None


#: What is said of who may see what: dimension -> value or values, all of which must hold.
Only = Mapping[str, "str | Iterable[str]"]


def parse_only(only: Only) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The dimensions and their accepted values, in order.

    Raises:
        ConfigurationError: nothing is named (which would show everything), an unknown dimension, an empty value.
    """
    if not isinstance(only, Mapping) or not only:  # pyright: ignore[reportUnnecessaryIsInstance] - callers' code
        raise ConfigurationError(f"only= names what may be seen, such as {{'member': 'ada'}}, not {only!r}.")
    return tuple(sorted((_check_dimension(name), _check_values(name, accepted)) for name, accepted in only.items()))


def _check_dimension(name: object) -> str:
    if isinstance(name, str) and (name in SCOPE_FIELDS or is_tag(name)):
        return name
    raise ConfigurationError(
        f"only= goes by {', '.join(SCOPE_FIELDS)} or tag:NAME, not by {name!r}.{suggest(name, SCOPE_FIELDS)}"
    )


def _check_values(name: str, accepted: object) -> tuple[str, ...]:
    given: Sequence[Any] = (
        [accepted] if isinstance(accepted, str) or not isinstance(accepted, Iterable) else list(cast("Any", accepted))
    )
    if not given or not all(isinstance(value, str) and not is_blank(value) for value in given):
        raise ConfigurationError(
            f"only={{{name!r}: ...}} takes a text or several, none of them blank, not {accepted!r}."
        )
    return tuple(sorted(set(given)))


def _check_tokens(tokens: dict[str, TokenSettings]) -> dict[str, TokenSettings]:
    """Refuse a token that sees nothing or acts on what it does not see, and two that are one."""
    names: dict[str, str] = {}
    for name, row in tokens.items():
        where = f"dashboard.tokens.{name}: "
        if (other := names.setdefault(row.hash, name)) != name:
            raise ConfigurationError(f"{where}it is the token of {shown(other)}, too; make one for each of them.")
        if row.only is None:
            continue
        try:
            parse_only(row.only)
        except ConfigurationError as error:
            left_out = "" if row.only else " To show everything, leave it out."
            raise ConfigurationError(f"{where}{error}{left_out}") from None
        if acts := sorted(set(row.can) - {"read"}):
            raise ConfigurationError(
                f"{where}what may {' and '.join(acts)} has to see everything; leave out only=, or let it read only."
            )
    return tokens


class DashboardSettings(BaseModel):
    """``[dashboard]``: who may look at the dashboard and the usage API.

    Attributes:
        tokens: name -> token; the name is what the ledger's history calls whoever acts with it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: Annotated[dict[Annotated[Name, Field(max_length=64)], TokenSettings], AfterValidator(_check_tokens)] = (
        Field(default_factory=dict[str, TokenSettings])
    )


def _parse_host(value: object) -> object:
    return {"provider": value} if isinstance(value, str) else value


def _check_hosts(hosts: dict[str, HostSettings]) -> dict[str, HostSettings]:
    """Whoever serves for another is known by the URL that its clients are given."""
    for key, host in hosts.items():
        if host.provider and "://" not in key:
            raise ValueError(
                f"must name a host by the beginning of its URL (https://llm.example.com), not by {shown(key)}"
            )
    return hosts


class RuleSettings(BaseModel):
    """A rule of `Settings.rules`: ``"spike"``, or ``{ rule = "spike", factor = 4, least_usd = "0.10" }``.

    Attributes:
        rule: ``burn_rate``, ``spike``, ``unpriced`` or ``faults``.
        factor: Of ``spike``: how many times the mean hour of the week before an hour must cost.
        least_usd: Of ``spike``: hours that cost less are never told.
        percent: Of ``burn_rate``: how much of a window must have passed before a projection is made.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Literal["burn_rate", "spike", "unpriced", "faults"]
    factor: Any = None
    least_usd: Any = None
    percent: Any = None

    @property
    def values(self) -> Row:
        """What is said of it."""
        return self.model_dump(exclude_none=True)

    def __str__(self) -> str:
        return " ".join((self.rule, *(f"{key} {value}" for key, value in self.values.items() if key != "rule")))


def _parse_rule(value: object) -> object:
    return {"rule": value} if isinstance(value, str) else value


class KeysAtHand(dict[str, str]):
    """API keys and what they are called, in this process's memory only: neither shown nor pickled."""

    def __repr__(self) -> str:
        return f"<{len(self)} API keys>"

    def __reduce__(self) -> tuple[type[KeysAtHand], tuple[()]]:
        return KeysAtHand, ()


class Settings(BaseModel):
    """Everything that can be configured; the keys of ``tokenmeter.toml``.

    Attributes:
        store: Store URL; None = a SQLite ledger in the user's data directory.
        multiplier: Platform multiplier on top of the upstream cost, visible on every charge.
        api_keys: alias -> ``env:NAME`` or ``sha256:HEX`` (in code also the key itself, which is hashed at once).
        budgets: ``[[budgets]]`` rows or `Budget` objects.
        prices: ``[[prices]]`` rows of your own; they win over every other layer.
        price_list: The list under them: ``"auto"`` = the newest one, looked for once a day in the background; a path =
            a list kept there (``tokenmeter prices update --save``), or a TOML file of ``[[prices]]``; None = the
            installed one. ``prices = "auto"`` or ``prices = "PATH"`` says the same where there are no rows.
        discounts: ``[[discounts]]`` rows: negotiated factors on upstream cost.
        multipliers: ``[[multipliers]]`` rows: platform multipliers per key, member or model.
        free_quotas: ``[[free_quotas]]`` rows: what providers give free of charge each day or month; see `FreeQuota`.
        models: provider -> {deployment or alias: model id}, for Azure deployments and names of your own.
        providers: base URL prefix -> provider id, for hosts of your own; or a table of `HostSettings`, also under a
            provider id.
        alerts: ``[[alerts]]`` rows.
        require: What every call has to be attributed to, such as ``["member"]``.
        on_missing: Whether a call without it is refused (``refuse``), or told once per place in the code (``warn``).
        rules: What alerts tell besides thresholds: ``burn_rate``, ``spike``, ``unpriced``, ``faults``, each a
            name or a table of `RuleSettings`.
        metrics: Whether each call is also recorded as metrics: ``"opentelemetry"`` (or True; extra ``otel``),
            ``"prometheus"`` (extra ``prometheus``), or False.
        metrics_labels: Dimensions that metrics may be labelled with: ``team``, ``route``, ``tag:NAME``, ... Each value
            makes a time series of its own.
        traces: Whether calls put their tokens and cost on the OpenTelemetry span they are made in (extra ``otel``).
        end_user_from: Request fields that name the end user, the first that is set: ``safety_identifier``, ``user``,
            ``metadata.user_id``.
        tags_from: Request fields that become tags: ``metadata`` (all of it), ``metadata.feature``, ...
        billing: ``[billing]``: who bills whom, and how; see `tokenmeter.billing.BillingProfile`.
        dashboard: ``[dashboard]``: tokens for the dashboard and the usage API; see `DashboardSettings`.
        hold_seconds: How long a call may be in flight before its hold expires.
        source: The file the settings came from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    store: Text | None = Field(default=None, repr=False, min_length=1, max_length=4096)  # may hold a password
    multiplier: Annotated[Decimal, BeforeValidator(parse_multiplier)] = ONE
    api_keys: dict[Name, str] = Field(default_factory=dict)
    budgets: list[InstanceOf[Budget] | Row] = Field(default_factory=list[Budget | Row])
    prices: list[Row] = Field(default_factory=list[Row])
    price_list: Text | None = Field(default=None, min_length=1)
    discounts: list[Row] = Field(default_factory=list[Row])
    multipliers: list[Row] = Field(default_factory=list[Row])
    free_quotas: list[Row] = Field(default_factory=list[Row])
    models: dict[Text, dict[Text, Text]] = Field(default_factory=dict)
    providers: Annotated[
        dict[Text, Annotated[HostSettings, BeforeValidator(_parse_host)]], AfterValidator(_check_hosts)
    ] = Field(default_factory=dict[str, HostSettings])
    alerts: list[AlertSettings] = Field(default_factory=list[AlertSettings])
    require: list[Text] = Field(default_factory=list[str])
    on_missing: Literal["refuse", "warn"] = "refuse"
    rules: list[Annotated[RuleSettings, BeforeValidator(_parse_rule)]] = Field(default_factory=list[RuleSettings])
    metrics: bool | Literal["opentelemetry", "prometheus"] = False
    metrics_labels: list[Text] = Field(default_factory=list[str])
    traces: bool = False
    end_user_from: list[Text] = Field(default_factory=list[str])
    tags_from: list[Text] = Field(default_factory=list[str])
    billing: Row = Field(default_factory=dict[str, Any])
    dashboard: DashboardSettings = DashboardSettings()
    hold_seconds: int = Field(default=900, ge=10, le=86_400)
    source: str | None = None
    _tokens_of_file: bool = PrivateAttr(default=False)
    _rows_of_file: dict[str, int] = PrivateAttr(default_factory=dict[str, int])
    _keys: KeysAtHand = PrivateAttr(default_factory=KeysAtHand)

    @property
    def place(self) -> str:
        """Where they stand, as messages begin: the file's path, or ``configuration`` without one."""
        return self.source or "configuration"

    @property
    def tokens_of_file(self) -> bool:
        """Whether `dashboard` is what the file says, where there is one by now, and code says nothing of it."""
        return self._tokens_of_file

    def rows_in_code(self, table: str) -> int:
        """How many rows of `table` code gave; they come before the file's."""
        return len(getattr(self, table)) - self._rows_of_file.get(table, 0)

    def lines(self, table: str) -> list[int]:
        """Line in the file of each row of `table`, for messages; 0 where it has no header of its own, as in code."""
        if self.source is None:
            return []
        found = table_lines(Path(self.source).read_text(encoding="utf-8-sig"), table)
        rows = len(getattr(self, table))
        return [*[0] * (rows - len(found)), *found] if len(found) == rows - self.rows_in_code(table) else [0] * rows

    def key_hashes(self) -> dict[str, str]:
        """SHA-256 of each known API key -> its alias. An ``env:`` variable that is not set is skipped."""
        hashes: dict[str, str] = {}
        for alias, reference in self.api_keys.items():
            if found := ENV.match(reference):
                key = os.environ.get(found["name"])
                if key:
                    hashes[hash_key(key)] = alias
            elif found := SHA256.match(reference):
                hashes[found["hex"]] = alias
        return hashes

    def keys_at_hand(self) -> KeysAtHand:
        """Each API key that code has said, or that an ``env:`` variable holds -> its alias."""
        found = KeysAtHand({key: alias for alias, key in self._keys.items()})
        for alias, reference in self.api_keys.items():
            if (named := ENV.match(reference)) and (key := os.environ.get(named["name"])):
                found[key] = alias
        return found


class SettingsArguments(TypedDict, total=False):
    """The settings as arguments of `tokenmeter.configure`: the keys of `Settings`, and where the file is.

    A value wins over the file's. Rows (budgets, prices, ...) stand before the file's rows, and tables (api_keys,
    models, providers, billing, dashboard) go over the file's, name by name.

    Attributes:
        config: Path of a ``tokenmeter.toml``, or its content as a mapping (then no file is looked for). Default:
            ``TOKENMETER_CONFIG``, the working directory, the user's config directory.
        store: ``sqlite:///usage.db``, ``sqlite:////absolute/usage.db``, ``memory:`` or ``postgresql://...``. Default:
            ``TOKENMETER_STORE``, the file's, else a SQLite ledger in the user's data directory.
        multiplier: Platform multiplier on top of the upstream cost, such as ``"1.05"``.
        api_keys: alias -> API key. Reports and budgets show the alias; only a fingerprint of the key is kept.
        budgets: Caps, see `tokenmeter.Budget`.
        prices: Price rows of your own (the keys of ``[[prices]]``); they win over every other layer. Or a text, which
            is meant as `price_list`.
        price_list: As `Settings.price_list`.
        discounts: As `Settings.discounts`, and so the others.
        multipliers: As there.
        free_quotas: As there.
        models: As there.
        providers: As there.
        alerts: As there.
        require: As there.
        on_missing: As there.
        rules: As there.
        metrics: As there.
        metrics_labels: As there.
        traces: As there.
        end_user_from: As there.
        tags_from: As there.
        billing: As there.
        dashboard: As there.
        hold_seconds: As there.
    """

    config: str | Path | Mapping[str, Any] | None
    store: str | None
    multiplier: Decimal | int | str | None
    api_keys: Mapping[str, str] | None
    budgets: Sequence[Budget | Mapping[str, Any]] | None
    prices: Sequence[Mapping[str, Any]] | str | None
    price_list: str | None
    discounts: Sequence[Mapping[str, Any]] | None
    multipliers: Sequence[Mapping[str, Any]] | None
    free_quotas: Sequence[Mapping[str, Any]] | None
    models: Mapping[str, Mapping[str, str]] | None
    providers: Mapping[str, str | Mapping[str, Any]] | None
    alerts: Sequence[Mapping[str, Any]] | None
    require: Sequence[str] | None
    on_missing: Literal["refuse", "warn"] | None
    rules: Sequence[str | Mapping[str, Any]] | None
    metrics: bool | Literal["opentelemetry", "prometheus"] | None
    metrics_labels: Sequence[str] | None
    traces: bool | None
    end_user_from: Sequence[str] | None
    tags_from: Sequence[str] | None
    billing: Mapping[str, Any] | None
    dashboard: Mapping[str, Any] | None
    hold_seconds: int | None
