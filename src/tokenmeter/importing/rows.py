"""One call a row: responses as providers gave them, and rows of a shape of one's own.

Each reader takes one row and gives its call, or None for a row that is no call of a provider.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, cast

from tokenmeter.dimensions import ALL_METERS, OUTPUT_METERS, WHO
from tokenmeter.errors import ConfigurationError
from tokenmeter.importing.call import (
    NOTHING,
    Given,
    ImportedCall,
    complete,
    count_of,
    decimal_of,
    instant_of,
    is_doubtful,
    mapping_of,
    sides_of,
    without_zero,
)
from tokenmeter.providers import observe

Row = Mapping[str, Any]
_OK = 200
_NO_DOUBTS: frozenset[str] = frozenset()


#: ``object`` (OpenAI) or ``type`` (Anthropic) of a response body -> provider and SDK method path.
_KINDS = {
    "chat.completion": ("openai", "chat.completions"),
    "text_completion": ("openai", "completions"),
    "response": ("openai", "responses"),
    "list": ("openai", "embeddings"),
    "message": ("anthropic", "messages"),
}
#: What a map of fields can name; ``tag:NAME`` adds any tag.
FIELDS = (
    *("id", "time", "model", "provider", "endpoint", "service_tier", "processing", "cost", "reasoning"),
    *WHO,
    *("input_uncached", "cache_write"),
    *ALL_METERS,
)


def response(row: Row, where: str, given: Given) -> ImportedCall | None:
    """A provider's response, or a line of a batch's output file; None when it failed.

    Raises:
        ConfigurationError: what it is, when it was made, or its id cannot be told.
    """
    body, batch, line_id = _body(row)
    if body is None:
        return None
    provider, endpoint = _where(body, given)
    processing = "batch" if batch else given.processing
    if given.model and not body.get("model"):
        body = {**body, "model": given.model}
    seen = observe(
        body,
        provider=provider,
        endpoint=endpoint,
        processing=processing,
        cost_unit=given.cost_unit(provider),
    )
    if not seen.consumptions:
        if _says_usage(body):
            raise ConfigurationError("its usage cannot be read, so that it would be missing")
        return None
    if seen.is_event:
        raise ConfigurationError(
            "an event does not say of which session it is: tokenmeter.record() it with response_id=, the session's id"
        )
    if seen.instead is not None:
        raise ConfigurationError(f"its usage is also in that of {seen.instead}: import {seen.instead} in its place")
    moment, doubts = _moment(body, row, given)
    response_id = seen.response_id or line_id
    if response_id is None:
        raise ConfigurationError("the response has no id, so that it could be counted twice")
    return ImportedCall(
        where=where,
        id=response_id,
        provider=provider,
        model=seen.response_model,
        at=moment,
        endpoint=endpoint,
        flags=doubts,
        observation=seen,
    )


def _body(row: Row) -> tuple[Row | None, bool, str | None]:
    """The body, whether it ran in a batch, and the id of the batch's line; no body where the call failed."""
    if "custom_id" in row:
        answer: object = row.get("response") or row.get("result") or {}
        held = mapping_of(answer)
        if answer and not held:
            raise ConfigurationError("a batch line whose result is no JSON object")
        body = mapping_of(held.get("body") or held.get("message"))
        if not body or held.get("status_code", _OK) != _OK:
            return None, True, None
        return body, True, row.get("id")
    if _is_response(row):
        return row, False, None
    nested = [one for value in row.values() for one in (value, *mapping_of(value).values()) if _is_response(one)]
    if len(nested) == 1:
        return mapping_of(nested[0]), False, None
    if nested:
        raise ConfigurationError(f"{len(nested)} responses in one line: give each a line of its own")
    return row, False, None


def _is_response(value: object) -> bool:
    body = mapping_of(value)
    kind = body.get("object") or body.get("type")
    return str(kind) in _KINDS and isinstance(body.get("usage"), dict)


def _where(body: Row, given: Given) -> tuple[str, str]:
    kind = body.get("object") or body.get("type")
    provider, endpoint = _KINDS.get(str(kind), (None, None))
    provider, endpoint = given.provider or provider, given.endpoint or endpoint
    if provider is None or endpoint is None:
        has = ", ".join(list(body)[:12]) or "nothing"
        what = "it is no log that is known" if kind is None else f"what kind of response {kind!r} is cannot be told"
        raise ConfigurationError(
            f"{what}: give --provider and --endpoint of a response, or say what is where with "
            f"--map id=...,time=...,model=...,input=...,output=...; it has {has}"
        )
    return provider, endpoint


#: Providers' own fields, whose instants are of UTC; and those of whoever keeps responses.
_PROVIDERS_TIMES = ("created", "created_at")
_TIMES = (*_PROVIDERS_TIMES, "timestamp", "time")


def _moment(body: Row, row: Row, given: Given) -> tuple[datetime, frozenset[str]]:
    """When a response was made, as its provider says, else as who kept it does; and doubts about it.

    Raises:
        ConfigurationError: nobody says it; or who kept it does without a time zone, and none is given.
    """
    for content, names, tz in ((body, _PROVIDERS_TIMES, "UTC"), (body, _TIMES, given.tz), (row, _TIMES, given.tz)):
        for name in names:
            value = content.get(name)
            if _is_instant(value):
                return instant_of(value, tz=tz), _doubts(value, tz, unsaid=False)
    if given.at is None:
        raise ConfigurationError("the response does not say when it was made: give --at")
    return given.at, _NO_DOUBTS


def _is_instant(value: object) -> bool:
    """Whether a value is an instant, its zone aside."""
    with suppress(ConfigurationError):
        return not isinstance(value, bool) and bool(instant_of(value, tz="UTC"))
    return False


def _says_usage(content: Row) -> bool:
    """Whether a response has a usage that is not simply nothing."""
    usage: object = content.get("usage")
    return any(told.values()) if (told := mapping_of(usage)) else bool(usage)


def check_fields(fields: Mapping[str, str], *, timed: bool = False) -> None:
    """Refuse a map that cannot work.

    Args:
        fields: The map.
        timed: Whether it is said of all rows when they were, so that none needs to tell.

    Raises:
        ConfigurationError: an unknown name, or an id, time or count missing.
    """
    for name in fields:
        if name not in FIELDS and not name.startswith("tag:"):
            raise ConfigurationError(f"--map: unknown name {name!r}; use {', '.join(FIELDS)} or tag:NAME.")
    missing = [name for name in (("id",) if timed else ("id", "time")) if name not in fields]
    if missing:
        told = ", ".join(f"{name}=..." for name in missing)
        raise ConfigurationError(f"--map: say where the {' and the '.join(missing)} is: {told}.")
    if "input" in fields and "input_uncached" in fields:
        raise ConfigurationError("--map: give 'input' (with what was cached) or 'input_uncached', not both.")
    if not set(fields) & {*ALL_METERS, "input_uncached"}:
        raise ConfigurationError("--map: name at least one count, such as input=... or output=....")


_OPTIONAL = "?"
_MOST_NAMED = 20


def check_paths(fields: Mapping[str, str], rows: Iterable[Row]) -> None:
    """Refuse a map that names what no row has: read as nothing, it would be recorded for good.

    Args:
        fields: The map; a path that ends in ``?`` may be missing.
        rows: The rows of all files; no more of them are taken than it needs.

    Raises:
        ConfigurationError: none has it; says what the first one has.
    """
    wanted = {name: path for name, path in fields.items() if not path.endswith(_OPTIONAL)}
    first: Row | None = None
    for row in rows:
        first = row if first is None else first
        wanted = {name: path for name, path in wanted.items() if not _leads_to(row, path)}
        if not wanted:
            return
    if first is not None:
        told = ", ".join(f"{name}={path}" for name, path in wanted.items())
        has = list(_paths_of(first))
        more = ", ..." if has[_MOST_NAMED:] else ""
        name, path = next(iter(wanted.items()))
        raise ConfigurationError(
            f"--map: no row has what {told} names; the first one has {', '.join(has[:_MOST_NAMED])}{more}. Nothing was "
            f"recorded. Where a row may be without, end the path in a question mark: {name}={path}{_OPTIONAL}."
        )


def _leads_to(row: Row, path: str) -> bool:
    if path in row:
        return True
    *steps, last = path.split(".")
    value: object = row
    for step in steps:
        value = cast("Row", value).get(step) if isinstance(value, dict) else _picked(value, step)
    return last in value if isinstance(value, dict) else _picked(value, last) is not None


def _paths_of(row: Row, before: str = "") -> Iterator[str]:
    for name, value in row.items():
        if isinstance(value, dict) and value:
            yield from _paths_of(cast("Row", value), f"{before}{name}.")
        else:
            yield f"{before}{name}"


_OR_ELSE = ": where a row may be without, end its path in a question mark"


class MappedRows:
    """Rows of a shape of one's own, read by a map of fields.

    ``input`` is as most logs count it, with what was read from and written to a cache; where the cached tokens are more
    than it, it was without them. ``input_uncached`` is always without.
    """

    def __init__(self, given: Given) -> None:
        names = given.fields
        self._given = given
        #: Path -> of how many rows it led nowhere; not counted where it may.
        self.lacking: Counter[str] = Counter()
        self._needed = {path for path in names.values() if not path.endswith(_OPTIONAL)}
        paths = {name: path.removesuffix(_OPTIONAL) for name, path in names.items()}
        self._places = [(name, path, path.split(".")) for name, path in paths.items()]
        self._meters = [name for name in ALL_METERS if name in names]
        self._who = [name for name in WHO if name in names]
        self._tags = {name: name.removeprefix("tag:") for name in names if name.startswith("tag:")}

    def read(self, row: Row, where: str) -> ImportedCall | None:
        """The call of a row; None where it counts nothing.

        Raises:
            ConfigurationError: a field that is needed is not there, or is not what it should be.
        """
        given, found = self._given, self._found(row)
        model = str(found.get("model") or given.model or "") or None
        unsaid = count_of(found, "cache_write")
        quantities = self._quantities(found, unsaid)
        if not quantities:
            return None
        reasoning = count_of(found, "reasoning")
        cost, time = found.get("cost"), found.get("time")
        call = ImportedCall(
            where=where,
            id=str(found["id"]),
            provider=str(found.get("provider") or ""),
            model=model,
            at=given.at if time in NOTHING and given.at is not None else instant_of(time, tz=given.tz),
            endpoint=str(found.get("endpoint") or ""),
            quantities=quantities,
            reasoning=reasoning,
            service_tier=str(found["service_tier"]) if found.get("service_tier") else None,
            processing=str(found["processing"]) if found.get("processing") else None,
            flags=_doubts(time, given.tz, unsaid=bool(unsaid)),
            cost_in_source=None if cost in NOTHING else decimal_of(cost, "cost"),
            who={name: str(found[name]) for name in self._who if found[name] not in NOTHING},
            tags={tag: str(found[name]) for name, tag in self._tags.items() if found[name] not in NOTHING},
        )
        complete(call, given)
        self._refuse_half(found, model)
        _refuse_beside(reasoning, sum([quantities.get(name, 0) for name in OUTPUT_METERS]))
        return call

    def _refuse_half(self, found: Row, model: str | None) -> None:
        """Refuse a call of which a side is empty that every row should have: it is unknown, and not 0."""
        prompt = "input_uncached" if "input_uncached" in found else "input"
        if all(self._given.fields.get(name, _OPTIONAL)[-1:] != _OPTIONAL for name in (prompt, "output")):
            sides_of(found, prompt, "output", model=model, otherwise=_OR_ELSE)

    def _found(self, row: Row) -> dict[str, object]:
        """What the row has at the paths; None for nothing.

        ``a.b.c`` leads into nested JSON, a number picks from a list. A field called by the whole path goes first.
        """
        found: dict[str, object] = {}
        for name, path, steps in self._places:
            value: object = row
            for step in (path,) if path in row else steps:
                value = cast("Row", value).get(step) if isinstance(value, dict) else _picked(value, step)
            if isinstance(value, list | dict):
                raise ConfigurationError(f"{path!r} is no single value: name what lies in it, such as {path}.0")
            found[name] = value
            if value is None and path in self._needed:
                self.lacking[path] += 1
        for name in ("id", "time") if self._given.at is None else ("id",):
            if found[name] in NOTHING:
                raise ConfigurationError(f"there is no {self._given.fields[name]!r} (the {name})")
        return found

    def _quantities(self, found: Row, unsaid: int) -> dict[str, int]:
        quantities = {name: count_of(found, name) for name in self._meters}
        if unsaid:
            quantities["cache_write_5m"] = quantities.get("cache_write_5m", 0) + unsaid
        if "input_uncached" in found:
            quantities["input"] = count_of(found, "input_uncached")
        elif told := quantities.get("input", 0):
            cached = sum([count for name, count in quantities.items() if name.startswith("cache_")])
            quantities["input"] = told - cached if told >= cached else told
        return without_zero(quantities)


def _refuse_beside(reasoning: int, output: int) -> None:
    """Refuse a call whose reasoning stands beside its output: of others it cannot be told whether it does."""
    if reasoning > output:
        raise ConfigurationError(
            f"its reasoning ({reasoning:,}) is more than its output ({output:,}), so that it is no part of it: give "
            "the sum of both as the output"
        )


def _picked(values: object, step: str) -> object:
    """What a list has at a place; None where there is no such place."""
    if not isinstance(values, list) or not step.isdigit():
        return None
    held = cast("list[object]", values)
    return held[int(step)] if int(step) < len(held) else None


def _doubts(time: object, tz: str | None, *, unsaid: bool) -> frozenset[str]:
    if not unsaid and tz is None:
        return _NO_DOUBTS
    doubts = {"cache_lifetime_assumed": unsaid, "time_uncertain": is_doubtful(time, tz)}
    return frozenset(name for name, is_so in doubts.items() if is_so)
