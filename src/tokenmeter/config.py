"""Settings from code, environment and ``tokenmeter.toml``, checked before the first call."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import platformdirs
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, ValidationError

from tokenmeter.budgets import Budget
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import ONE, parse_decimal
from tokenmeter.pricing.parse import table_lines

__all__ = ["FILE_NAME", "Settings", "find_file", "hash_key", "load_settings"]

FILE_NAME = "tokenmeter.toml"

_ENV = re.compile(r"env:(?P<name>[A-Za-z_][A-Za-z0-9_]*)$")
_SHA256 = re.compile(r"sha256:(?P<hex>[0-9a-f]{64})$")

Row = dict[str, Any]


def _multiplier(value: object) -> Decimal:
    number = parse_decimal(value, name="multiplier")
    if number <= 0:
        raise ConfigurationError(f"multiplier must be greater than zero, not {value!r}; 1 means no markup.")
    return number


class AlertTarget(BaseModel):
    """``[[alerts]]``: where crossed thresholds are reported, besides the log.

    Attributes:
        webhook: URL that receives a signed JSON POST.
        secret_env: Environment variable with the signing secret.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    webhook: str = Field(pattern=r"^https?://")
    secret_env: str | None = None


class Settings(BaseModel):
    """Everything that can be configured; the keys of ``tokenmeter.toml``.

    Attributes:
        store: Store URL; None = a SQLite ledger in the user's data directory.
        multiplier: Platform multiplier on top of the upstream cost, visible on every charge.
        api_keys: alias -> ``env:NAME`` or ``sha256:HEX`` (in code also the key itself, which is hashed at once).
        budgets: ``[[budgets]]`` rows or `Budget` objects.
        prices: ``[[prices]]`` rows of your own; they win over every other layer.
        discounts: ``[[discounts]]`` rows: negotiated factors on upstream cost.
        multipliers: ``[[multipliers]]`` rows: platform multipliers per key, member or model.
        models: provider -> {deployment or alias: model id}, for Azure deployments and names of your own.
        providers: base URL prefix -> provider id, for hosts of your own.
        alerts: ``[[alerts]]`` rows.
        metrics: Whether each call is also recorded as OpenTelemetry metrics (needs the extra ``otel``).
        billing: ``[billing]``: who bills whom, and how; see `tokenmeter.billing.BillingProfile`.
        hold_seconds: How long a call may be in flight before its hold expires.
        source: The file the settings came from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    store: str | None = Field(default=None, repr=False)  # may hold a password
    multiplier: Annotated[Decimal, BeforeValidator(_multiplier)] = ONE
    api_keys: dict[str, str] = Field(default_factory=dict)
    budgets: list[InstanceOf[Budget] | Row] = Field(default_factory=list[Budget | Row])
    prices: list[Row] = Field(default_factory=list[Row])
    discounts: list[Row] = Field(default_factory=list[Row])
    multipliers: list[Row] = Field(default_factory=list[Row])
    models: dict[str, dict[str, str]] = Field(default_factory=dict)
    providers: dict[str, str] = Field(default_factory=dict)
    alerts: list[AlertTarget] = Field(default_factory=list[AlertTarget])
    metrics: bool = False
    billing: Row = Field(default_factory=dict[str, Any])
    hold_seconds: int = Field(default=900, ge=10, le=86_400)
    source: str | None = None

    def lines(self, table: str) -> list[int]:
        """Line in the file of each row of `table`, for messages; 0 for rows given in code, which come first."""
        if self.source is None:
            return []
        found = table_lines(Path(self.source).read_text(encoding="utf-8"), table)
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


def hash_key(key: str) -> str:
    """SHA-256 of an API key in hex, as ``sha256:`` references in the configuration name it."""
    return hashlib.sha256(key.encode()).hexdigest()


def find_file(explicit: str | Path | None = None) -> Path | None:
    """The configuration file: `explicit`, ``TOKENMETER_CONFIG``, the working directory, the user's config directory.

    Raises:
        ConfigurationError: a file was named and is not there.
    """
    named = explicit or os.environ.get("TOKENMETER_CONFIG")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise ConfigurationError(
                f"The configuration file {path} does not exist; create it, or unset config=/TOKENMETER_CONFIG."
            )
        return path
    for folder in (Path.cwd(), platformdirs.user_config_path("tokenmeter", appauthor=False)):
        path = folder / FILE_NAME
        if path.is_file():
            return path
    return None


def load_settings(
    *,
    store: str | None = None,
    prices: Sequence[Mapping[str, Any]] | None = None,
    multiplier: object = None,
    budgets: Sequence[Budget | Mapping[str, Any]] | None = None,
    api_keys: Mapping[str, str] | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
) -> Settings:
    """Join code, environment and file: an argument wins over ``TOKENMETER_STORE``, which wins over the file.

    Args:
        store: Store URL.
        prices: Price rows as in ``[[prices]]``; added before the file's.
        multiplier: Platform multiplier.
        budgets: Budgets, added to the file's.
        api_keys: alias -> API key, ``env:NAME`` or ``sha256:HEX``; keys are hashed here and not kept.
        config: Path of a ``tokenmeter.toml``, or its content as a mapping (then no file is looked for).

    Raises:
        ConfigurationError: what is wrong, where, and what to do.
    """
    content, source = _content(config)
    values: dict[str, Any] = {**content, "source": source}
    _check_no_secrets(values.get("api_keys"), source)
    if store or os.environ.get("TOKENMETER_STORE"):
        values["store"] = str(store or os.environ["TOKENMETER_STORE"])
    if multiplier is not None:
        values["multiplier"] = multiplier
    if prices is not None:
        values["prices"] = [*(dict(row) for row in prices), *_rows(values, "prices", source)]
    if budgets is not None:
        own = [budget if isinstance(budget, Budget) else dict(budget) for budget in budgets]
        values["budgets"] = [*own, *_rows(values, "budgets", source)]
    if api_keys is not None:
        values["api_keys"] = {**(values.get("api_keys") or {}), **_hashed(api_keys)}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, source)) from None


def _content(config: str | Path | Mapping[str, Any] | None) -> tuple[dict[str, Any], str | None]:
    if isinstance(config, Mapping):
        return dict(config), None
    path = find_file(config)
    if path is None:
        return {}, None
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal), str(path)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error


def _rows(values: Mapping[str, Any], key: str, source: str | None) -> list[Any]:
    rows = values.get(key, [])
    if not isinstance(rows, list):
        raise ConfigurationError(f"{source or 'config'}: {key} must be a list of tables, written [[{key}]].")
    return list(rows)  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]


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


def _explain(error: ValidationError, source: str | None) -> str:
    where = source or "configuration"
    problems: list[str] = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("function-", "is-instance")))
        if problem["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(problem["loc"][-1]), Settings.model_fields, n=1)
            hint = (
                f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(Settings.model_fields))}."
            )
            problems.append(f"unknown key {path!r}: {hint}")
        else:
            problems.append(f"{path}: {problem['msg']} (got {problem['input']!r})")
    return f"{where}: " + "; ".join(problems)
