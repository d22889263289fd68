"""Settings from code, environment and ``tokenmeter.toml``, checked before the first call."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, Unpack, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, PrivateAttr, ValidationError

from tokenmeter.budgets import AlertTarget, Budget
from tokenmeter.errors import ConfigurationError, StoreUnavailableError, reason_of, shown
from tokenmeter.money import ONE, ZERO, parse_decimal
from tokenmeter.paths import expand, user_folder
from tokenmeter.periods import parse_instant
from tokenmeter.pricing.parse import table_lines

FILE_NAME = "tokenmeter.toml"

_ENV = re.compile(r"env:(?P<name>[A-Za-z_][A-Za-z0-9_]*)$")
_SHA256 = re.compile(r"sha256:(?P<hex>[0-9a-f]{64})$")
#: A markup outside of these is a slip of the pen, not a price.
_LEAST, _MOST = Decimal("1E-6"), Decimal("1E6")
_LEAST_UNIT = Decimal("1E-12")
_SHOWN = 80
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

Row = dict[str, Any]


def _multiplier(value: object) -> Decimal:
    number = parse_decimal(value, name="multiplier")
    if number <= 0:
        raise ConfigurationError(f"multiplier must be greater than zero, not {shown(value)}; 1 means no markup.")
    if not _LEAST <= number <= _MOST:
        raise ConfigurationError(f"multiplier must lie between {_LEAST:f} and {_MOST:f}, not {shown(value)}.")
    return number


def _text(value: object) -> object:
    if isinstance(value, str) and _CONTROL.search(value):
        raise ValueError("must not contain control characters or halves of letters")
    return value


Text = Annotated[str, BeforeValidator(_text)]


def _cost_unit(value: object) -> object:
    """A unit of costs by its name, or as a positive number of US dollars."""
    if value is None or (isinstance(value, str) and value in {"usd", "cents", "ignore"}):
        return value
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = ZERO
    if isinstance(value, bool | float) or not number.is_finite() or not _LEAST_UNIT <= number <= _MOST:
        raise ValueError('must be "usd", "cents", "ignore", or US dollars per unit such as "0.001"')
    return str(number)


def _moment(value: object) -> object:
    """A date or an instant as an aware instant; without a zone it is UTC."""
    return parse_instant(value) if isinstance(value, str | date) else value


#: An http(s) URL, or the variable that holds it.
Address = Annotated[str, BeforeValidator(_text), Field(pattern=r"^(https?://|env:)")]


class EmailSettings(BaseModel):
    """``email = { to = [...], from = "...", host = "..." }`` of an ``[[alerts]]`` row; see `targets.Email`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: list[Text] = Field(min_length=1)
    sender: Text = Field(alias="from")
    host: Text
    port: int | None = Field(default=None, ge=1, le=65_535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: Text | None = None
    password: Text | None = Field(default=None, pattern="^env:")


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
    secret: Text | None = None
    slack: Address | None = None
    teams: Address | None = None
    pagerduty: Text | None = None
    email: EmailSettings | None = None

    def unset(self) -> list[str]:
        """The environment variables it names that are not set here."""
        said = [self.webhook, self.secret, self.slack, self.teams, self.pagerduty, self.email and self.email.password]
        named = [found["name"] for value in said if value and (found := _ENV.match(value))]
        return [name for name in named if not os.environ.get(name)]

    def make(self) -> AlertTarget:
        """The target.

        Raises:
            ConfigurationError: none or several in one row, a variable that is not set, or a wrong value.
        """
        kinds = ("webhook", "slack", "teams", "pagerduty", "email")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ConfigurationError(
                f"alerts: give each row one of {', '.join(kinds)}, not {' and '.join(given) or 'none'}."
            )
        from tokenmeter.budgets import targets  # noqa: PLC0415 - HTTP and mail are loaded only by who has alerts

        if self.email is not None:
            said = self.email
            password = None if said.password is None else _value(said.password, "alerts.email.password")
            return targets.Email(
                said.to,
                sender=said.sender,
                host=said.host,
                port=said.port,
                security=said.security,
                user=said.user,
                password=password,
            )
        where = _value(getattr(self, given[0]), f"alerts.{given[0]}")
        if self.webhook is not None:
            return targets.Webhook(where, secret=None if self.secret is None else _value(self.secret, "alerts.secret"))
        if self.slack is not None:
            return targets.Slack(where)
        return targets.Teams(where) if self.teams is not None else targets.PagerDuty(where)


def _value(said: str, name: str) -> str:
    """`said`, or what the variable holds that it names by ``env:NAME``."""
    found = _ENV.match(said)
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
    cost: Annotated[str | None, BeforeValidator(_cost_unit)] = None
    ask_usage: bool = True


class TokenSettings(BaseModel):
    """``[dashboard.tokens.NAME]``: a token for the dashboard and the API; ``tokenmeter dashboard token`` makes it.

    Attributes:
        hash: ``sha256:HEX`` of the token.
        only: What it shows: dimension -> value or values; empty = everything.
        can: What it may do: ``read``; ``budgets`` (set, raise), ``invoices`` (issue, credit), ``prices`` (reprice).
        expires: First instant at which it is no longer good.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hash: str = Field(pattern=_SHA256.pattern, repr=False)
    only: dict[Text, Text | list[Text]] = Field(default_factory=dict)
    can: list[Literal["read", "budgets", "invoices", "prices"]] = Field(default=["read"], min_length=1)
    expires: Annotated[datetime | None, BeforeValidator(_moment)] = None


class DashboardSettings(BaseModel):
    """``[dashboard]``: who may look at the dashboard and the usage API.

    Attributes:
        tokens: name -> token; the name is what the ledger's history calls whoever acts with it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: dict[Annotated[Text, Field(min_length=1, max_length=64)], TokenSettings] = Field(default_factory=dict)


def _host(value: object) -> object:
    return {"provider": value} if isinstance(value, str) else value


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
        rules: What alerts tell besides thresholds: ``burn_rate``, ``spike``, ``unpriced``, ``faults``.
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
    multiplier: Annotated[Decimal, BeforeValidator(_multiplier)] = ONE
    api_keys: dict[Text, str] = Field(default_factory=dict)
    budgets: list[InstanceOf[Budget] | Row] = Field(default_factory=list[Budget | Row])
    prices: list[Row] = Field(default_factory=list[Row])
    price_list: Text | None = Field(default=None, min_length=1)
    discounts: list[Row] = Field(default_factory=list[Row])
    multipliers: list[Row] = Field(default_factory=list[Row])
    free_quotas: list[Row] = Field(default_factory=list[Row])
    models: dict[Text, dict[Text, Text]] = Field(default_factory=dict)
    providers: dict[Text, Annotated[HostSettings, BeforeValidator(_host)]] = Field(
        default_factory=dict[str, HostSettings]
    )
    alerts: list[AlertSettings] = Field(default_factory=list[AlertSettings])
    require: list[Text] = Field(default_factory=list[str])
    on_missing: Literal["refuse", "warn"] = "refuse"
    rules: list[Literal["burn_rate", "spike", "unpriced", "faults"]] = Field(default_factory=list[Any])
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

    @property
    def tokens_of_file(self) -> bool:
        """Whether `dashboard` is what the file says, and code says nothing of it."""
        return self._tokens_of_file

    def lines(self, table: str) -> list[int]:
        """Line in the file of each row of `table`, for messages; 0 for rows given in code, which come first."""
        if self.source is None:
            return []
        found = table_lines(Path(self.source).read_text(encoding="utf-8-sig"), table)
        return [*[0] * (len(getattr(self, table)) - len(found)), *found]

    def key_hashes(self) -> dict[str, str]:
        """SHA-256 of each known API key -> its alias. An ``env:`` variable that is not set is skipped."""
        hashes: dict[str, str] = {}
        for alias, reference in self.api_keys.items():
            if found := _ENV.match(reference):
                key = os.environ.get(found["name"])
                if key:
                    hashes[hash_key(key)] = alias
            elif found := _SHA256.match(reference):
                hashes[found["hex"]] = alias
        return hashes


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
    rules: Sequence[str] | None
    metrics: bool | Literal["opentelemetry", "prometheus"] | None
    metrics_labels: Sequence[str] | None
    traces: bool | None
    end_user_from: Sequence[str] | None
    tags_from: Sequence[str] | None
    billing: Mapping[str, Any] | None
    dashboard: Mapping[str, Any] | None
    hold_seconds: int | None


_ROWS = ("budgets", "prices", "discounts", "multipliers", "free_quotas", "alerts")
_TABLES = ("api_keys", "models", "providers", "billing", "dashboard")


def hash_key(key: str) -> str:
    """SHA-256 of an API key in hex, as ``sha256:`` references in the configuration name it."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def find_file(explicit: str | Path | None = None) -> Path | None:
    """The configuration file: `explicit`, ``TOKENMETER_CONFIG``, the working directory, the user's config directory.

    A directory that cannot be looked into (a server that gave up its user's rights) has no file.

    Raises:
        ConfigurationError: a file was named and is not there.
    """
    named = explicit or os.environ.get("TOKENMETER_CONFIG")
    if named:
        try:
            path = expand(named)
            if path.is_file():
                return path
        except (OSError, TypeError) as error:
            raise ConfigurationError(
                f"The configuration file {_short(named)} cannot be reached: {reason_of(error)}."
            ) from error
        raise ConfigurationError(
            f"The configuration file {path} does not exist; create it, or unset config=/TOKENMETER_CONFIG."
        )
    for find in (Path.cwd, lambda: user_folder("config", "name the file in TOKENMETER_CONFIG")):
        try:
            path = find() / FILE_NAME
            if path.is_file():
                return path
        except (OSError, StoreUnavailableError):
            continue
    return None


def load_settings(**given: Unpack[SettingsArguments]) -> Settings:
    """Join code, environment and file: an argument wins over ``TOKENMETER_STORE``, which wins over the file.

    Args:
        **given: See `SettingsArguments`; None means not given. API keys are hashed here and not kept.

    Raises:
        ConfigurationError: what is wrong, where, and what to do.
    """
    arguments: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name in arguments:
        if name not in SettingsArguments.__annotations__:
            raise ConfigurationError(f"There is no setting {name!r}; {_near(name, Settings)}")
    content, source = _content(arguments.pop("config", None))
    values: dict[str, Any] = {**content, "source": source}
    if "source" in content:
        raise ConfigurationError(f"{source or 'config'}: 'source' is no setting; {_near('source', Settings)}")
    _check_no_secrets(values.get("api_keys"), source)
    if (store := os.environ.get("TOKENMETER_STORE")) and "store" not in arguments:
        arguments["store"] = store
    _tell_apart(values, arguments)
    for name, value in arguments.items():
        if name in _ROWS:
            values[name] = [*_own_rows(name, value), *_file_rows(values, name, source)]
        elif name in _TABLES:
            values[name] = _over(name, value, values.get(name))
        else:
            values[name] = value
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, source)) from None
    except RecursionError:
        raise ConfigurationError(f"{source or 'configuration'}: it is nested too deeply; flatten it.") from None
    settings._tokens_of_file = source is not None and "dashboard" not in arguments  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return settings


def _tell_apart(*given: dict[str, Any]) -> None:
    """``prices = "auto"`` or a path names the list under the rows; rows are rows."""
    for values in given:
        if isinstance(values.get("prices"), str):
            values["price_list"] = values.pop("prices")


def _content(config: str | Path | Mapping[str, Any] | None) -> tuple[dict[str, Any], str | None]:
    if isinstance(config, Mapping):
        return dict(config), None
    path = find_file(config)
    if path is None:
        return {}, None
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"), parse_float=Decimal), str(path)
    except (OSError, ValueError, ArithmeticError, RecursionError) as error:  # not UTF-8, not TOML, nested without end
        raise ConfigurationError(f"{path} cannot be read: {reason_of(error)}.") from error


def _own_rows(name: str, rows: object) -> list[Any]:
    if isinstance(rows, Sequence) and not isinstance(rows, (str, bytes)):
        given: Sequence[Any] = rows  # pyright: ignore[reportUnknownVariableType]
        return [dict(cast("Mapping[str, Any]", row)) if isinstance(row, Mapping) else row for row in given]
    raise ConfigurationError(f"{name}= takes a list of rows, not {_short(rows)}.")


def _file_rows(values: Mapping[str, Any], key: str, source: str | None) -> list[Any]:
    rows = values.get(key, [])
    if not isinstance(rows, list):
        raise ConfigurationError(f"{source or 'config'}: {key} must be a list of tables, written [[{key}]].")
    return list(rows)  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]


def _over(name: str, own: object, below: object) -> dict[str, Any]:
    """A table of code over the file's; keys of API keys are hashed."""
    if not isinstance(own, Mapping):
        raise ConfigurationError(f"{name}= takes a mapping, not {_short(own)}.")
    table = cast("Mapping[str, Any]", own)
    merged: dict[str, Any] = dict(cast("Mapping[str, Any]", below)) if isinstance(below, Mapping) else {}
    if name == "models":
        for provider, names in table.items():
            merged[provider] = {**merged.get(provider, {}), **names} if isinstance(names, Mapping) else names
        return merged
    return {**merged, **(_hashed(table) if name == "api_keys" else table)}


def _check_no_secrets(api_keys: object, source: str | None) -> None:
    if not isinstance(api_keys, Mapping):
        return
    for alias, reference in api_keys.items():  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(reference, str) or not (_ENV.match(reference) or _SHA256.match(reference)):
            raise ConfigurationError(
                f"{source or 'config'}: api_keys.{alias} must be 'env:NAME' (a variable that holds the key) or "
                "'sha256:HEX' (its SHA-256); a key itself does not belong into a configuration file."
            )


def _hashed(api_keys: Mapping[str, str]) -> dict[str, str]:
    hashed: dict[str, str] = {}
    for alias, reference in api_keys.items():
        if not isinstance(alias, str) or not isinstance(reference, str) or not alias or not reference:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError("api_keys maps an alias to an API key, 'env:NAME' or 'sha256:HEX'; both are text.")
        plain = not (_ENV.match(reference) or _SHA256.match(reference))
        hashed[alias] = f"sha256:{hash_key(reference)}" if plain else reference
    return hashed


#: Table, and a key in it -> what the key's table holds.
_INNER: dict[tuple[type[BaseModel], str], type[BaseModel]] = {
    (Settings, "alerts"): AlertSettings,
    (AlertSettings, "email"): EmailSettings,
    (Settings, "providers"): HostSettings,
    (Settings, "dashboard"): DashboardSettings,
    (DashboardSettings, "tokens"): TokenSettings,
}


def _near(name: str, table: type[BaseModel]) -> str:
    known = sorted({field.alias or key for key, field in table.model_fields.items()} - {"source"})
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}."


#: What pydantic puts into a place beside keys and indexes: the kind that was tried there.
_KIND = re.compile(r"(?:bool|function-|is-instance|json-or-python|dict\[|list\[|literal\[|lax-or-strict).*")


#: pydantic's kind of error -> what it means to whoever writes settings.
_MEANT = {
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("string_type", "string_unicode"), "must be text"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a table"),
    "list_type": "must be a list",
    "invalid_key": "has a key that is no text",
}


def _explain(error: ValidationError, source: str | None) -> str:
    where = source or "configuration"
    problems: list[str] = []
    refused: dict[str, dict[str, object]] = {}  # what may be of several kinds is refused once by each
    for problem in error.errors():
        path, table = "", cast("type[BaseModel]", Settings)
        for part in problem["loc"]:
            if isinstance(part, int):
                path += f"[{part}]"
            elif not _KIND.fullmatch(part):
                path += f".{part}" if path else part
                table = _INNER.get((table, part), table)
        if problem["type"] == "extra_forbidden":
            problems.append(f"unknown key {path!r}: {_near(str(problem['loc'][-1]), table)}")
        else:
            said = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            said = _MEANT.get(problem["type"], said)
            refused.setdefault(path, {})[said] = problem["input"]
    for path, kinds in refused.items():
        (first, given), *others = kinds.items()
        said = "".join(f", or {kind.removeprefix('must be ')}" for kind, _ in others)
        problems.append(f"{path} {first}{said}{_got(path, given)}")
    return f"{where}: " + "; ".join(problems)


def _got(path: str, value: object) -> str:
    """The value that was refused; nothing of a store's URL, or of what stands where a token's hash should."""
    return "" if path == "store" or path.endswith(".hash") else f" (got {_short(value)})"


def _short(value: object) -> str:
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001 - nested without end, or an object of the caller's whose repr fails
        shown = f"a {type(value).__name__}"
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
