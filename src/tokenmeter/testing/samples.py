"""Values that fit a JSON schema: arguments of tools, and structured answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from importlib import import_module
from itertools import count
from math import ceil, floor
from typing import Any, NoReturn, cast

from tokenmeter.testing.context import RefusalError

Schema = Mapping[str, Any]

_UUID = "00000000-0000-{}000-8000-000000000000"
#: ``format`` -> a text that has it; of others JSON Schema says that they may be any text.
_FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "email": "user@example.com",
    "idn-email": "user@example.com",
    "name-email": "User <user@example.com>",
    "hostname": "example.com",
    "idn-hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "ipvanyaddress": "192.0.2.1",
    "ipv4interface": "192.0.2.1/24",
    "ipv6interface": "2001:db8::1/32",
    "ipvanyinterface": "192.0.2.1/24",
    "ipv4network": "192.0.2.0/24",
    "ipv6network": "2001:db8::/32",
    "ipvanynetwork": "192.0.2.0/24",
    **dict.fromkeys(("uri", "url", "iri", "uri-reference", "iri-reference"), "https://example.com/"),
    "uuid": _UUID.format(4),
    **{f"uuid{version}": _UUID.format(version) for version in range(1, 9)},
    **dict.fromkeys(("byte", "base64", "base64url"), "eA=="),
    "json-string": "{}",
    "json-pointer": "/x",
    "regex": "x",
}
#: How many more times than it must a pattern's repeat is tried, for a text that is long enough.
_MOST_MORE = 64
_MOST_LETTERS = 10_000
_NAMED = ("LITERAL", "RANGE")
#: A value that is not yet in a list is looked for so often.
_MOST_TRIES = 200
#: What a reference is followed in spite of: it says nothing of the value.
_SILENT = frozenset({"title", "description", "$defs", "definitions", "discriminator"})
#: What letters of a pattern are chosen from, in this order.
_LETTERS = "x" + "".join(map(chr, (*range(97, 123), *range(48, 58), *range(65, 91), *range(32, 48), *range(58, 127))))
_CATEGORIES = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}


def sample_arguments(schema: Schema) -> Any:
    """A small value that fits a JSON schema: a default or example of its own, else the first alternative that ends.

    Raises:
        RefusalError: no value fits a keyword, or none that is known here; says which.
    """
    return _Samples(schema).of(schema, frozenset({"#"}))


class _Samples:
    """Values for the schemas of one document."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        #: Reference -> those that it leads to, over others as well.
        self._leads: dict[str, frozenset[str]] = {}

    def of(self, schema: Any, within: frozenset[str], nth: int = 0) -> Any:
        """A value for a schema.

        Args:
            schema: It; true takes anything.
            within: The references that are being followed.
            nth: Which of several values, where a list's must differ.
        """
        if not isinstance(schema, Mapping):
            return "x" * (nth + 1) if schema is not False else _refuse("a schema that is false")
        given = cast("Schema", schema)
        if reference := given.get("$ref"):
            if reference in within:
                _refuse(f"$ref {reference!r}, which leads to itself without an end")
            beside = {name: value for name, value in given.items() if name != "$ref"}
            return self.of({**self._resolve(str(reference)), **beside}, within | {str(reference)}, nth)
        told, only_those = _told_by(given)
        if nth < len(told) or only_those:
            return told[min(nth, len(told) - 1)]
        if given.get("allOf"):
            return self.of(self._merged(given, given["allOf"]), within, nth)
        alternatives = self._alternatives(given)
        return self._first(alternatives, within, nth) if alternatives else self._typed(given, within, nth)

    def _alternatives(self, schema: Schema) -> list[Schema]:
        """What a schema may be; empty for one that is of one type."""
        if told := schema.get("anyOf") or schema.get("oneOf"):
            return [self._merged(schema, [one]) for one in told]
        kinds = schema.get("type")
        return [{**schema, "type": kind} for kind in cast("list[object]", kinds)] if isinstance(kinds, list) else []

    def _merged(self, schema: Schema, parts: Iterable[Any]) -> dict[str, Any]:
        """A schema and parts of it, all of which hold."""
        merged = {name: value for name, value in schema.items() if name not in {"anyOf", "oneOf", "allOf"}}
        for one in parts:
            part: dict[str, Any] = dict(cast("Schema", one)) if isinstance(one, Mapping) else {}
            if "$ref" in part and set(merged) - _SILENT:
                part = {**self._resolve(part.pop("$ref")), **part}
            properties = {**merged.get("properties", {}), **part.get("properties", {})}
            required = [*merged.get("required", ()), *part.get("required", ())]
            merged |= part
            if properties:
                merged["properties"] = properties
            if required:
                merged["required"] = required
        return merged

    def _first(self, alternatives: list[Schema], within: frozenset[str], nth: int) -> Any:
        """A value for the first alternative that ends; what leads back to where it comes from is tried last."""
        alternatives.sort(key=lambda one: bool(within & self._led_to(one)))
        for one in alternatives[:-1]:
            try:
                return self.of(one, within, nth)
            except RefusalError:
                continue
        return self.of(alternatives[-1], within, nth)

    def _typed(self, schema: Schema, within: frozenset[str], nth: int) -> Any:
        match schema.get("type") or _kind_of(schema):
            case "object":
                return self._object(schema, within, nth)
            case "array":
                return self._array(schema, within)
            case "integer" | "number" as kind:
                return _number(schema, nth, whole=kind == "integer")
            case "boolean" | "null" as kind:
                return None if kind == "null" else not nth % 2
            case _:
                held = schema.get("contentSchema")
                return _text(schema, nth) if held is None else json.dumps(self.of(held, within, nth))

    def _object(self, schema: Schema, within: frozenset[str], nth: int) -> dict[str, Any]:
        properties = cast("Mapping[str, Any]", schema.get("properties") or {})
        wanted = [name for name in schema.get("required", properties) if name in properties]
        made = {name: self.of(properties[name], within, nth) for name in wanted}
        least = _whole(schema.get("minProperties"), 0)
        spare = (name for name in properties if name not in made)
        patterns = cast("Mapping[str, Any]", schema.get("patternProperties") or {})
        for number in count():
            if len(made) >= least or number > _MOST_TRIES:
                break
            if (name := next(spare, None)) is not None:
                made[name] = self.of(properties[name], within, nth)
            elif patterns:
                pattern, held = next(iter(patterns.items()))
                made[_text({"pattern": pattern}, number)] = self.of(held, within, nth)
            else:
                name = _text(schema.get("propertyNames") or {}, number)
                made[name] = self.of(schema.get("additionalProperties", True), within, nth)
        return made if len(made) >= least else _refuse(f"minProperties {least}")

    def _array(self, schema: Schema, within: frozenset[str]) -> list[Any]:
        least, most = _whole(schema.get("minItems"), 0), _whole(schema.get("maxItems"), None)
        first = list(schema.get("prefixItems") or ())
        if not first and "contains" in schema:
            first.append(schema["contains"])
        others = schema.get("items", True)
        if others is False:
            most = len(first)
        leads_back = bool(within & self._led_to(others))
        size = max(least, len(first), 0 if leads_back or others is False else 1)
        size = size if most is None else min(size, most)
        if size < least:
            _refuse(f"minItems {least} beside maxItems {most}")
        made: list[Any] = []
        for place in range(size):
            one = first[place] if place < len(first) else others
            made.append(self._new(one, made, within) if schema.get("uniqueItems") else self.of(one, within))
        return made

    def _new(self, schema: Any, made: list[Any], within: frozenset[str]) -> Any:
        """A value that is not in a list yet."""
        for nth in range(_MOST_TRIES):
            value = self.of(schema, within, nth)
            if value not in made:
                return value
        return _refuse("uniqueItems")

    def _led_to(self, schema: Any) -> frozenset[str]:
        """The references in a schema, and in what they lead to."""
        found = set[str]()
        waiting = set(_references_in(schema))
        while waiting:
            name = waiting.pop()
            if name not in self._leads:
                self._leads[name] = frozenset(_references_in(self._resolve(name)))
            found.add(name)
            waiting |= self._leads[name] - found
        return frozenset(found)

    def _resolve(self, reference: str) -> Schema:
        node: Any = self._root  # a pointer may pass through lists
        for name in reference.removeprefix("#").strip("/").split("/"):
            key = name.replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and key.isdigit() and int(key) < len(cast("list[object]", node)):
                node = cast("list[object]", node)[int(key)]
            elif key and isinstance(node, Mapping):
                node = cast("Schema", node).get(key)
        return cast("Schema", node) if isinstance(node, Mapping) else _refuse(f"$ref {reference!r}")


def _refuse(what: str) -> NoReturn:
    raise RefusalError(400, _words(what))


def _words(what: str) -> str:
    return f"FakeProvider cannot fill {what}: say the answer yourself, by provider.answer(...)."


def _references_in(schema: Any) -> Iterator[str]:
    """The references in a schema, but for those of definitions, which are only there to be referred to."""
    if isinstance(schema, Mapping):
        for name, value in cast("Schema", schema).items():
            if name == "$ref" and isinstance(value, str):
                yield value
            elif name not in {"$defs", "definitions", "default", "const", "enum", "examples"}:
                yield from _references_in(value)
    elif isinstance(schema, list):
        for one in cast("list[object]", schema):
            yield from _references_in(one)


def _told_by(schema: Schema) -> tuple[list[Any], bool]:
    """Values that a schema says itself, and whether no other fits it."""
    if "const" in schema:
        return [schema["const"]], True
    told = [schema["default"]] if "default" in schema else []
    return [*told, *(schema.get("enum") or schema.get("examples") or ())], bool(schema.get("enum"))


def _kind_of(schema: Schema) -> str:
    """The type of a schema that does not say it."""
    for kind, names in {
        "object": ("properties", "patternProperties", "minProperties"),
        "array": ("items", "prefixItems", "minItems"),
        "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    }.items():
        if any(name in schema for name in names):
            return kind
    return "string"


def _whole(value: Any, otherwise: Any) -> Any:
    """A count; Google's SDK writes it as text."""
    return otherwise if value is None else int(value)


def _number(schema: Schema, nth: int, *, whole: bool) -> Any:
    """The number nearest to 1 that fits, or the `nth` after or before it."""
    low, above = _bound(schema, "minimum", "exclusiveMinimum")
    high, below = _bound(schema, "maximum", "exclusiveMaximum")
    step = Fraction(str(schema.get("multipleOf") or 1))
    if whole:
        step = Fraction(step.numerator)
    start = Fraction(ceil(1 / step))
    if low is not None:
        start = max(start, Fraction(floor(low / step) + 1 if above else ceil(low / step)))
    if high is not None:
        start = min(start, Fraction(ceil(high / step) - 1 if below else floor(high / step)))
    found = [step * (start + nth), step * (start - nth)]
    if not whole and not schema.get("multipleOf") and low is not None and high is not None:
        found += [low + (high - low) / (nth + 2), low]
    for value in found:
        fits = low is None or value > low or (value == low and not above)
        if fits and (high is None or value < high or (value == high and not below)):
            return value.numerator if value.denominator == 1 else value.numerator / value.denominator
    return _refuse(_named(schema, "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"))


def _bound(schema: Schema, name: str, without: str) -> tuple[Fraction | None, bool]:
    """A bound of a number, and whether it is beyond what fits, which older drafts say by true."""
    told, excluded = (schema.get(one) for one in (name, without))
    bound = None if told is None else Fraction(str(told))
    if excluded is None or isinstance(excluded, bool):
        return bound, bool(excluded)
    other = Fraction(str(excluded))
    is_closer = bound is None or (other >= bound if name == "minimum" else other <= bound)
    return (other, True) if is_closer else (bound, False)


def _named(schema: Schema, *names: str) -> str:
    """Keywords with what they say."""
    return " beside ".join(f"{name} {schema[name]!r}" for name in names if name in schema)


def _text(schema: Schema, nth: int) -> str:
    least, most = _whole(schema.get("minLength"), 0), _whole(schema.get("maxLength"), None)
    pattern = None if schema.get("pattern") is None else str(schema["pattern"])
    for text in _texts(_FORMATS.get(str(schema.get("format"))), pattern, least, nth):
        fits = pattern is None or re.search(pattern, text)
        if fits and len(text) >= least and (most is None or len(text) <= most):
            return text
    return _refuse(_named(schema, "format", "pattern", "minLength", "maxLength"))


def _texts(known: str | None, pattern: str | None, least: int, nth: int) -> Iterator[str]:
    """Texts that may do."""
    if known is not None and not nth:
        yield known
    elif known is not None:  # another digit, or another name of a host
        digit = re.compile(r"\d(?=\D*$)")
        yield digit.sub(str(1 + nth % 9), known) if digit.search(known) else re.sub(r"(?<=e)", str(nth), known, count=1)
    if pattern is not None:
        yield from _matching(pattern, nth)
    else:
        yield "x" * (max(least, 1) + nth)
        yield ""


def _matching(pattern: str, nth: int) -> Iterator[str]:
    """Texts that may match a regular expression, the shortest first."""
    parser: Any = import_module("re._parser")
    try:
        tree = parser.parse(pattern)
        shortest = _written(tree, nth, nth, {})
        yield shortest
        for more in range(1, _MOST_MORE):
            yield shortest + "x" * more
            yield _written(tree, nth + more, nth, {})
    except (re.error, _UnknownError, RecursionError):
        _refuse(f"pattern {pattern!r}")


class _UnknownError(Exception):
    """A part of a regular expression that is not known here, or one that is long without end."""


def _written(tree: Any, more: int, nth: int, groups: dict[int, str]) -> str:
    """A text for a parsed expression, each repeat of it `more` times beyond what it must be."""
    written = ""
    for operation, value in tree:
        match str(operation):
            case "BRANCH":
                written += _written(value[1][nth % len(value[1])], more, nth, groups)
            case "SUBPATTERN":
                groups[value[0]] = _written(value[3], more, nth, groups)
                written += groups[value[0]]
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                least, most, inner = value
                for _ in range(int(min(least + more, int(most)))):
                    written += _written(inner, more if least != most else 0, nth, groups)
            case "GROUPREF":
                written += groups.get(value, "")
            case "AT" | "ASSERT" | "ASSERT_NOT":
                continue  # whether they hold is asked of the text
            case "IN":
                written += _letter(value, nth)
            case kind:
                written += _letter([(kind, value)], nth)
        if len(written) > _MOST_LETTERS:
            raise _UnknownError
    return written


def _letter(members: Any, nth: int) -> str:
    """The `nth` letter of a class ``[...]``."""
    refused = str(members[0][0]) == "NEGATE"
    own = [chr(value if str(kind) == "LITERAL" else value[0]) for kind, value in members if str(kind) in _NAMED]
    letters = [one for one in (*_LETTERS, *own) if _is_in(members[refused:], one) is not refused]
    if not letters:
        raise _UnknownError
    return str(letters[nth % len(letters)])


def _is_in(members: Any, letter: str) -> bool:
    for kind, value in members:
        match str(kind):
            case "LITERAL" | "NOT_LITERAL":
                found = (ord(letter) == value) is (str(kind) == "LITERAL")
            case "ANY":
                found = True
            case "RANGE":
                found = value[0] <= ord(letter) <= value[1]
            case "CATEGORY":
                name = str(value).removeprefix("CATEGORY_")
                is_one = re.match(_CATEGORIES[name.removeprefix("NOT_")], letter)
                found = bool(is_one) is not name.startswith("NOT_")
            case _:
                raise _UnknownError
        if found:
            return True
    return False
