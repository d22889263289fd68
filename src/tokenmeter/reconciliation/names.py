"""How both sides name models, keys and projects alike. Pure."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from tokenmeter.reconciliation.statement import Bucket, LedgerSide, ProviderStatement

_DATED = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|latest)$")
_TURNED = re.compile(r"claude-([4-9](?:-\d)?)-([a-z]+)")
#: A snapshot that costs something else than its family.
_PRICED_APART = frozenset({"gpt-4o-2024-05-13"})
#: What is translated -> the argument that does it.
_TRANSLATIONS = {"api_key": "keys", "model": "models", "project": "projects"}


def translate(statement: ProviderStatement, given: Mapping[str, Mapping[str, str]]) -> ProviderStatement:
    """The statement with the ledger's names of keys, models and projects; a translation of nothing is noted."""
    buckets = [line.bucket for lines in (statement.usage, statement.costs) for line in lines or ()]
    notes: list[str] = []
    for kind, names in given.items():
        there = dict.fromkeys(name for bucket in buckets if (name := getattr(bucket, kind)))
        seen = {name: statement.shown.get(name, name) if kind == "project" else name for name in there}
        notes += _note_idle(kind, names, seen, statement)

    def rename(kind: str, name: str | None) -> str | None:
        """By what it is called there; a project's id goes before its name, which several may have."""
        names = given[kind]
        if name is None or name in names:
            return name and names[name]
        return names.get(statement.shown.get(name, name), name) if kind == "project" else name

    def ours(bucket: Bucket) -> Bucket:
        return bucket._replace(
            api_key=rename("api_key", bucket.api_key),
            model=rename("model", bucket.model),
            project=rename("project", bucket.project),
        )

    return _with_buckets(replace(statement, notes=(*statement.notes, *notes)), ours)


def _note_idle(
    kind: str, names: Mapping[str, str], seen: Mapping[str, str], statement: ProviderStatement
) -> Iterator[str]:
    """What a translation names that the statement does not have."""
    idle = [name for name in names if name not in seen and name not in seen.values()]
    if not idle:
        return
    called = ", ".join(map(repr, idle))
    if kind not in statement.grain:
        yield f"{_TRANSLATIONS[kind]}: {called} translates nothing: the statement is not split by {kind} (by=, --by)."
        return
    there = ", ".join(name if name == told else f"{name} ({told})" for name, told in seen.items())
    yield f"{_TRANSLATIONS[kind]}: {called} stands nowhere in the statement, which has {there or 'none'}."


def _with_buckets(statement: ProviderStatement, change: Callable[[Bucket], Bucket]) -> ProviderStatement:
    usage, costs = statement.usage, statement.costs
    return replace(
        statement,
        usage=None if usage is None else tuple(replace(line, bucket=change(line.bucket)) for line in usage),
        costs=None if costs is None else tuple(replace(line, bucket=change(line.bucket)) for line in costs),
    )


def show_projects(statement: ProviderStatement, ledger: LedgerSide) -> ProviderStatement:
    """Projects by the names that people see, but for those that the ledger knows by their ids."""
    known = {bucket.project for bucket in ledger.sides}
    names = {project: name for project, name in statement.shown.items() if project not in known}
    if not names:
        return statement
    return _with_buckets(
        statement, lambda bucket: bucket._replace(project=names.get(bucket.project or "", bucket.project))
    )


def align_models(ours: Collection[str | None], theirs: Collection[str | None]) -> Callable[[str | None], str | None]:
    """How to name models so that both sides name them alike.

    A name that both know stays. Where one says ``gpt-5-2025-08-07`` or ``Claude Haiku 4.5`` and the other ``gpt-5`` or
    ``claude-haiku-4-5-20251001``, both become the name of the family, ``gpt-5`` or ``claude-haiku-4-5``.
    """
    families = [{family_of(name) for name in names if name} for names in (ours, theirs)]
    alone = {family_of(name) for name in set(ours) ^ set(theirs) if name}
    merged = alone & families[0] & families[1]
    return lambda name: family_of(name) if name and family_of(name) in merged else name


def family_of(model: str) -> str:
    """A model's name without its maker, its date and the ways people spell it."""
    name = re.sub(r"[\s_.]+", "-", model.strip().lower()).rpartition("/")[2]
    if name in _PRICED_APART:
        return name
    name = _DATED.sub("", name)
    turned = _TURNED.fullmatch(name)  # claude-4.5-sonnet, as some resellers spell claude-sonnet-4-5
    return f"claude-{turned[2]}-{turned[1]}" if turned else name
