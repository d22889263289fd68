"""Which calls a budget counts, and into which of its counters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.call import Call
from tokenmeter.ledger import Entry

__all__ = ["SCOPE_FIELDS", "Matcher", "Subject", "parse_scope", "scope_text", "value_fits"]

#: What a budget can be narrowed to, in the order scopes are written; tags come after.
SCOPE_FIELDS = ("api_key", "member", "team", "organization", "project", "route", "model", "provider", "end_user")


@dataclass(frozen=True, slots=True)
class Subject:
    """The part of a call or entry that budgets look at.

    A model budget goes by the model the caller NAMED, before the call and after it: an answer's dated snapshot must
    not move the spend to another counter than the one that was checked.
    """

    provider: str
    model: str | None
    attribution: Attribution
    api_key: ApiKey | None

    @classmethod
    def of_call(cls, call: Call) -> Subject:
        """The subject of a call about to leave."""
        return cls(call.provider, call.facts.model, call.attribution, call.api_key)

    @classmethod
    def of_entry(cls, entry: Entry) -> Subject:
        """The subject of a settled entry."""
        return cls(entry.provider, entry.request_model or entry.response_model, entry.attribution, entry.api_key)

    def value(self, name: str) -> str | None:
        """The value of a scope field; None when unknown. A key counts by its alias, else by its fingerprint."""
        if name.startswith("tag:"):
            return self.attribution.tags.get(name[4:])
        if name == "model":
            return self.model
        if name == "provider":
            return self.provider
        if name == "api_key":
            return None if self.api_key is None else self.api_key.alias or self.api_key.fingerprint
        value: str | None = getattr(self.attribution, name)
        return value


class Matcher:
    """A budget's scope, prepared: gives the counter's scope values for a subject, or None when it does not apply.

    A value is exact text, ``"*"`` (one counter per value), or a pattern with ``*`` in it (``gpt-5*``: one counter for
    everything that matches).
    """

    __slots__ = ("_conditions", "exact")

    def __init__(self, scope: Mapping[str, str]) -> None:
        self._conditions = tuple((name, wanted, _test(name, wanted)) for name, wanted in scope.items())
        #: A condition that an index can be built on: (field, value); None when there is none.
        self.exact = next(
            ((name, wanted) for name, wanted in scope.items() if "*" not in wanted and name != "api_key"), None
        )

    def __call__(self, subject: Subject) -> dict[str, str] | None:
        """The counter's scope values for `subject`; None when the budget does not apply to it."""
        found: dict[str, str] = {}
        for name, wanted, test in self._conditions:
            value = subject.value(name)
            if value is None:
                return None
            if test is None:
                found[name] = value
            elif test(value, subject):
                found[name] = wanted
            else:
                return None
        return found


def _test(name: str, wanted: str) -> Callable[[str, Subject], bool] | None:
    if wanted == "*":
        return None
    if "*" in wanted:
        pattern = _pattern(wanted)
        return lambda value, _: pattern.fullmatch(value) is not None
    if name == "api_key":
        return lambda _, subject: _is_key(subject.api_key, wanted)
    return lambda value, _: value == wanted


def _pattern(wanted: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, wanted.split("*"))), re.DOTALL)


def value_fits(wanted: str, value: str) -> bool:
    """Whether a scope's text (exact, ``"*"`` or a pattern) covers `value`."""
    return wanted == value or ("*" in wanted and _pattern(wanted).fullmatch(value) is not None)


def _is_key(key: ApiKey | None, wanted: str) -> bool:
    return key is not None and wanted in (key.alias, key.fingerprint, key.label)


_ESCAPES = str.maketrans({"%": "%25", ",": "%2C", "=": "%3D"})


def scope_text(scope: Mapping[str, str]) -> str:
    """Scope values as one unambiguous line, ``member=ada,route=/chat``: the counter's identity in the store."""
    return ",".join(f"{name.translate(_ESCAPES)}={value.translate(_ESCAPES)}" for name, value in scope.items())


def parse_scope(text: str) -> dict[str, str]:
    """The scope values that `scope_text` wrote."""
    pairs = (part.partition("=") for part in text.split(",") if part)
    return {unquote(name): unquote(value) for name, _, value in pairs}
