"""Settings from code, environment and ``tokenmeter.toml``, joined and checked before the first call."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Unpack, cast

from pydantic import BaseModel, ValidationError

from tokenmeter.attribution import hash_key
from tokenmeter.errors import ConfigurationError, StoreUnavailableError, reason_of, shown
from tokenmeter.paths import expand, user_folder
from tokenmeter.settings import (
    ADDRESS,
    ENV,
    IN_ENVIRONMENT,
    SHA256,
    AlertSettings,
    DashboardSettings,
    EmailSettings,
    HostSettings,
    KeysAtHand,
    Settings,
    SettingsArguments,
    TokenSettings,
    resolve,
)

FILE_NAME = "tokenmeter.toml"

_ROWS = ("budgets", "prices", "discounts", "multipliers", "free_quotas", "alerts")
_TABLES = ("api_keys", "models", "providers", "billing", "dashboard")


def find_file(explicit: str | Path | None = None) -> Path | None:
    """The configuration file: `explicit`, ``TOKENMETER_CONFIG``, the working directory, the user's config directory.

    A directory that cannot be looked into (a server that gave up its user's rights) has no file.

    Raises:
        ConfigurationError: a file was named and is not there, or a folder stands in its place.
    """
    named = explicit or os.environ.get("TOKENMETER_CONFIG")
    if named:
        try:
            path = _no_folder(expand(named))
            if path.is_file():
                return path
        except (OSError, TypeError) as error:
            raise ConfigurationError(
                f"The configuration file {shown(named)} cannot be reached: {reason_of(error)}."
            ) from error
        raise ConfigurationError(
            f"The configuration file {path} does not exist; create it, or unset config=/TOKENMETER_CONFIG."
        )
    for find in (Path.cwd, lambda: user_folder("config", "name the file in TOKENMETER_CONFIG")):
        try:
            path = _no_folder(find() / FILE_NAME)
            if path.is_file():
                return path
        except (OSError, StoreUnavailableError):
            continue
    return None


def _no_folder(path: Path) -> Path:
    """`path`, unless it is a folder: container tools make one where a file that is to be mounted is not there."""
    if path.is_dir():
        raise ConfigurationError(
            f"The configuration file {path} is a folder. Where a container mounts it, the file was not there when the "
            "container began; else remove the folder, or name another file in TOKENMETER_CONFIG."
        )
    return path


def load_settings(**given: Unpack[SettingsArguments]) -> Settings:
    """Join code, environment and file: an argument wins over ``TOKENMETER_STORE``, which wins over the file.

    Args:
        **given: See `SettingsArguments`; None means not given. API keys are hashed here, and kept in memory only.

    Raises:
        ConfigurationError: what is wrong, where, and what to do.
    """
    arguments: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name in arguments:
        if name not in SettingsArguments.__annotations__:
            raise ConfigurationError(f"There is no setting {name!r}; {_suggest(name, Settings)}")
    config = arguments.pop("config", None)
    content, source = _read_content(config)
    values: dict[str, Any] = {**content, "source": source}
    if "source" in content:
        raise ConfigurationError(f"{source or 'configuration'}: 'source' is no setting; {_suggest('source', Settings)}")
    # Before anything else is looked at: errors quote what they refuse.
    _check_no_secrets(values.get("api_keys"), source)
    if (store := os.environ.get("TOKENMETER_STORE")) and "store" not in arguments:
        arguments["store"] = store
    _tell_apart(values, arguments)
    of_file = {name: _check_file_rows(values, name, source) for name in _ROWS}
    for name, value in arguments.items():
        if name in _ROWS:
            values[name] = [*_check_rows(name, value), *of_file[name]]
        elif name in _TABLES:
            values[name] = _lay_over(name, value, values.get(name))
        else:
            values[name] = value
    if isinstance(store := values.get("store"), str) and store.startswith("env:"):
        values["store"] = resolve(store, "store")
    settings = _validate(values, source)
    settings._keys = KeysAtHand(_plain_keys(arguments.get("api_keys")))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    if source is not None:
        settings._rows_of_file = {name: len(rows) for name, rows in of_file.items()}  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    settings._tokens_of_file = not isinstance(config, Mapping) and "dashboard" not in arguments  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return settings


def _validate(values: dict[str, Any], source: str | None) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        # Without its cause: pydantic's own text quotes every value, a password in a store's URL among them.
        raise ConfigurationError(_explain(error, source)) from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{source or 'configuration'}: {error}") from None
    except RecursionError:
        raise ConfigurationError(f"{source or 'configuration'}: it is nested too deeply; flatten it.") from None


def _tell_apart(*given: dict[str, Any]) -> None:
    """``prices = "auto"`` or a path names the list under the rows; rows are rows."""
    for values in given:
        if isinstance(values.get("prices"), str):
            values["price_list"] = values.pop("prices")


def _read_content(config: str | Path | Mapping[str, Any] | None) -> tuple[dict[str, Any], str | None]:
    if isinstance(config, Mapping):
        return dict(config), None
    path = find_file(config)
    if path is None:
        return {}, None
    try:
        # Read as `Decimal`: a price written 0.1 is not the binary fraction beside it.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"), parse_float=Decimal), str(path)
    except (OSError, ValueError, ArithmeticError, RecursionError) as error:  # not UTF-8, not TOML, nested without end
        raise ConfigurationError(f"{path} cannot be read: {reason_of(error)}.") from error


def _check_rows(name: str, rows: object) -> list[Any]:
    if isinstance(rows, Sequence) and not isinstance(rows, (str, bytes)):
        given: Sequence[Any] = rows  # pyright: ignore[reportUnknownVariableType]
        return [dict(cast("Mapping[str, Any]", row)) if isinstance(row, Mapping) else row for row in given]
    raise ConfigurationError(f"{name}= takes a list of rows, not {shown(rows)}.")


def _check_file_rows(values: Mapping[str, Any], key: str, source: str | None) -> list[Any]:
    rows = values.get(key, [])
    if not isinstance(rows, (list, tuple)):
        raise ConfigurationError(f"{source or 'configuration'}: {key} must be a list of tables, written [[{key}]].")
    return list(rows)  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]


def _lay_over(name: str, own: object, below: object) -> dict[str, Any]:
    """A table of code over the file's; keys of API keys are hashed."""
    if not isinstance(own, Mapping):
        raise ConfigurationError(f"{name}= takes a mapping, not {shown(own)}.")
    table = cast("Mapping[str, Any]", own)
    merged: dict[str, Any] = dict(cast("Mapping[str, Any]", below)) if isinstance(below, Mapping) else {}
    if name == "models":
        for provider, names in table.items():
            merged[provider] = {**merged.get(provider, {}), **names} if isinstance(names, Mapping) else names
        return merged
    return {**merged, **(_hash_keys(table) if name == "api_keys" else table)}


def _check_no_secrets(api_keys: object, source: str | None) -> None:
    if not isinstance(api_keys, Mapping):
        return
    for alias, reference in api_keys.items():  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(reference, str) or not (ENV.match(reference) or SHA256.match(reference)):
            raise ConfigurationError(
                f"{source or 'configuration'}: api_keys.{alias} must be 'env:NAME' (a variable that holds the key) or "
                "'sha256:HEX' (its SHA-256); a key itself does not belong into a configuration file."
            )


def _hash_keys(api_keys: Mapping[str, str]) -> dict[str, str]:
    hashed: dict[str, str] = {}
    for alias, reference in api_keys.items():
        if not isinstance(alias, str) or not isinstance(reference, str) or not alias or not reference:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError("api_keys maps an alias to an API key, 'env:NAME' or 'sha256:HEX'; both are text.")
        hashed[alias] = f"sha256:{hash_key(reference)}" if _is_key(reference) else reference
    return hashed


def _is_key(reference: str) -> bool:
    """Whether it is a key itself, as code may say it."""
    return not (ENV.match(reference) or SHA256.match(reference))


def _plain_keys(api_keys: Mapping[str, str] | None) -> dict[str, str]:
    return {alias: reference for alias, reference in (api_keys or {}).items() if _is_key(reference)}


#: Table, and a key in it -> what the key's table holds.
_INNER: dict[tuple[type[BaseModel], str], type[BaseModel]] = {
    (Settings, "alerts"): AlertSettings,
    (AlertSettings, "email"): EmailSettings,
    (Settings, "providers"): HostSettings,
    (Settings, "dashboard"): DashboardSettings,
    (DashboardSettings, "tokens"): TokenSettings,
}


def _suggest(name: str, table: type[BaseModel]) -> str:
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
    **dict.fromkeys(("too_short", "string_too_short"), "must not be empty"),
    "missing": "is missing",
}
#: The same, by the pattern that was not matched.
_MEANT_BY = {
    ADDRESS: "must begin with https:// or http://, or be env:NAME, a variable that holds the address",
    IN_ENVIRONMENT: "must be env:NAME, the variable that holds it",
    SHA256.pattern: "must be sha256:..., as `tokenmeter dashboard token create` prints it",
}


#: Most characters of a key that an error repeats.
_LONGEST_NAME = 120


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
                path += ("." if path else "") + (part if len(part) <= _LONGEST_NAME else f"{part[:_LONGEST_NAME]}...")
                table = _INNER.get((table, part), table)
        if problem["type"] == "extra_forbidden":
            problems.append(f"unknown key {path!r}: {_suggest(str(problem['loc'][-1]), table)}")
        else:
            said = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            said = _MEANT_BY.get(problem.get("ctx", {}).get("pattern", ""), _MEANT.get(problem["type"], said))
            refused.setdefault(path, {})[said] = problem["input"]
    for path, kinds in refused.items():
        (first, given), *others = kinds.items()
        said = "".join(f", or {kind.removeprefix('must be ')}" for kind, _ in others)
        problems.append(f"{path} {first}{said}{_quote_refused(path, given)}")
    return f"{where}: " + "; ".join(problems)


def _quote_refused(path: str, value: object) -> str:
    """The value that was refused; nothing of a store's URL, or of what stands where a token's hash should."""
    if value in ("", [], {}):
        return ""
    return "" if path == "store" or path.endswith(".hash") else f" (got {shown(value)})"
