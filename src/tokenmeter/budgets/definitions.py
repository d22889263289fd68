"""Budgets as the ledger knows them: every definition, change, end and grant is a filed document of the ledger.

Documents are numbered, chained and never changed, so that the history of a budget says who changed it, when and why.
The definition in force is the last one filed under the budget's name; what a program declares is filed unless the
ledger knows better.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Any, Literal

from tokenmeter.budgets.agreement import in_words
from tokenmeter.budgets.grants import Grant, grant_of
from tokenmeter.budgets.matching import NEVER, Cap, CapIndex, is_alias, scope_text
from tokenmeter.budgets.policy import Budget, Unit
from tokenmeter.budgets.windows import Window
from tokenmeter.errors import ConfigurationError, LedgerError
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import Document, DocumentQuery, NewDocument
from tokenmeter.stores.naming import NAMES_KIND, NAMES_PREFIX
from tokenmeter.stores.slots import to_microseconds
from tokenmeter.texts import acting
from tokenmeter.values import dataclass

#: The kind of document that a budget's history consists of. Stores count their changes: `Store.generation`.
KIND = NAMES_KIND
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One version of a budget's definition, as it was filed.

    Attributes:
        name: The budget's name.
        version: 1 for the first definition; goes on after an end.
        what: ``set`` or ``retire``.
        budget: The definition; None when the budget was ended.
        at: When it was filed, aware UTC.
        by: Who did it.
        reason: Why.
        source: Where it was said: a configuration file, ``code of PROGRAM``, ``command line``, ...
        era: How often what it counts has changed (scope, dates, an end, windows that were others meanwhile): counters
            of another era begin anew, from what the ledger holds.
        counted_since: When this era, and its windows, were defined; None for what is only declared and not filed yet.
        document_id: The filed document; empty for one that is only declared.
        before: The definition that it takes the place of; None when there was none.
    """

    name: str
    version: int
    what: Literal["set", "retire"]
    budget: Budget | None
    at: datetime | None
    by: str
    reason: str
    source: str
    era: int = 1
    counted_since: datetime | None = None
    document_id: str = ""
    before: Budget | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "name": self.name,
            "version": self.version,
            "what": self.what,
            "budget": None if self.budget is None else self.budget.to_dict(),
            "before": None if self.before is None else self.before.to_dict(),
            "at": None if self.at is None else self.at.isoformat(),
            "by": self.by,
            "reason": self.reason,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything the ledger says of budgets.

    Attributes:
        changes: Per name every version, the first first.
        grants: All grants by budget, unit and scope text, in the order of their filing.
        names: Per fingerprint what a program calls that API key, and since when: the last that was said where a budget
            goes by such names.
        position: Of the last document read.
        revision: How many definitions, ends and names there are: grants alone leave the caps as they are.
    """

    changes: Mapping[str, Sequence[Change]] = field(default_factory=dict[str, Sequence[Change]])
    grants: Mapping[tuple[str, Unit, str], Sequence[Grant]] = field(
        default_factory=dict[tuple[str, Unit, str], Sequence[Grant]]
    )
    names: Mapping[str, tuple[str, datetime]] = field(default_factory=dict[str, tuple[str, datetime]])
    position: int = 0
    revision: int = 0

    def in_force(self) -> dict[str, Change]:
        """The definition that counts now, per name; ended budgets are left out."""
        return {name: versions[-1] for name, versions in self.changes.items() if versions[-1].budget is not None}

    def ever(self) -> list[Budget]:
        """Every definition there was, those of ended budgets too."""
        return [one.budget for versions in self.changes.values() for one in versions if one.budget is not None]

    def definition_at(self, name: str, moment: datetime) -> Budget | None:
        """A budget as it was last defined by a moment; None where nothing was said of it by then."""
        said = [one.budget for one in self.changes.get(name, ()) if one.at is not None and one.at <= moment]
        return next((budget for budget in reversed(said) if budget is not None), None)

    def said_by(self, source: str, name: str) -> Change | None:
        """What `source` said last of a budget."""
        return next((one for one in reversed(self.changes.get(name, ())) if one.source == source), None)


def read_policy(store: Store, before: Policy | None = None, *, until: int | None = None) -> Policy:
    """Read the ledger's definitions and grants.

    Args:
        store: The ledger.
        before: What was read before: only what was filed since is read.
        until: Position of the last document that is read; None = all.

    Raises:
        StoreUnavailableError: they cannot be read.
        LedgerError: a later release wrote them.
    """
    before = before or Policy()
    # Copies: a call on its way goes by the policy that it began with.
    changes, grants, names = dict(before.changes), dict(before.grants), dict(before.names)
    position, revision = before.position, before.revision
    for document in store.documents(DocumentQuery(kind=KIND, after=position)):
        if until is not None and document.position > until:
            break
        body, position = _body(document), document.position
        if body["what"] == "grant":
            grant = grant_of(document, body)
            counter = (grant.budget, grant.unit, scope_text(grant.scope))
            grants[counter] = (*grants.get(counter, ()), grant)
        elif body["what"] == "name":
            names[body["fingerprint"]] = body["name"], document.recorded_at
            revision += 1
        else:
            versions = changes.get(body["name"], ())
            changes[body["name"]] = (*versions, _change_of(document, body, versions))
            revision += 1
    return Policy(changes, grants, names, position, revision)


def _body(document: Document) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(document.body)
    if body.get("format") != _FORMAT:
        raise LedgerError(
            f"The budget document {document.key!r} has the format {body.get('format')!r}, which this release does not "
            "know; upgrade tokenmeter."
        )
    return body


def _read_budget(row: Mapping[str, Any], key: str) -> Budget:
    return Budget.parse(row, file=f"ledger document {key}")


def _change_of(document: Document, body: Mapping[str, Any], versions: Sequence[Change]) -> Change:
    budget = None if body["budget"] is None else _read_budget(body["budget"], document.key)
    era, since = _era(versions, budget, anew=body.get("anew", False))
    return Change(
        name=body["name"],
        version=len(versions) + 1,
        what=body["what"],
        budget=budget,
        at=document.recorded_at,
        by=body["by"],
        reason=body["reason"],
        source=body["source"],
        era=era,
        counted_since=since or document.recorded_at,
        document_id=document.document_id,
        before=versions[-1].budget if versions else None,
    )


def _era(versions: Sequence[Change], budget: Budget | None, *, anew: bool) -> tuple[int, datetime | None]:
    """The era of the next version, and since when its windows are counted; None = since it is filed.

    Args:
        versions: Those before it.
        budget: What it says.
        anew: Whether it comes back to windows that its counters have missed calls of.
    """
    if not versions:
        return 1, None
    last = versions[-1]
    if budget is None:
        return last.era, last.counted_since
    if anew or last.budget is None or not _counts_alike(last.budget, budget):
        return last.era + 1, None
    return last.era, last.counted_since if _windows(last.budget) == _windows(budget) else None


def _counts_alike(one: Budget, other: Budget) -> bool:
    """Whether both count the same calls: their counters are the same then. A further limit counts from the ledger."""
    return (one.scope, one.effective, set(one.units)) == (other.scope, other.effective, set(other.units))


def _windows(budget: Budget) -> dict[Unit, Window]:
    return {unit: budget.window_of(unit) for unit in budget.units}


def _comes_back(versions: Sequence[Change], budget: Budget) -> bool:
    """Whether a definition has windows again that were others meanwhile: nobody counted in them since."""
    now = _windows(budget)
    era = versions[-1].era if versions else 1
    earlier = [_windows(one.budget) for one in versions if one.era == era and one.budget is not None]
    # Windows that have never changed were counted in all along.
    return any(then[unit] == now[unit] != earlier[-1][unit] for then in earlier for unit in now.keys() & then.keys())


def file_change(
    store: Store, name: str, budget: Budget | None, *, versions: Sequence[Change], by: str, reason: str, source: str
) -> bool:
    """File a definition, or with None the end of one.

    Args:
        store: The ledger.
        name: The budget's name.
        budget: The definition.
        versions: All before it. It is filed only if nobody else has filed the next one meanwhile.
        by: Who.
        reason: Why.
        source: Where it was said.

    Returns:
        False when somebody was quicker: read again what is in force.

    Raises:
        ConfigurationError: the definition would be read otherwise than it was said.
    """
    if budget is not None and not is_same(_read_budget(json.loads(_write(budget.to_dict())), name), budget):
        # What is filed stays for good, and every process has to read it.
        raise ConfigurationError(f"Budget {name!r} cannot be kept as it is said: {in_words(budget)}.")
    body = {
        "format": _FORMAT,
        "what": "retire" if budget is None else "set",
        "name": name,
        "budget": None if budget is None else budget.to_dict(),
        "by": by,
        "reason": reason,
        "source": source,
    }
    if budget is not None and _comes_back(versions, budget):
        body["anew"] = True
    # The next version's key: of two that change it at once one is refused, and reads again.
    return _file(store, f"{name}@{len(versions) + 1}", body)


def file_grant(store: Store, grant: Grant) -> bool:
    """File a grant; False when one of this identity is there already."""
    body = {**grant.to_dict(), "format": _FORMAT, "what": "grant", "name": grant.budget}
    body["window_start"] = grant.window_start
    del body["budget"], body["at"]
    return _file(store, f"{grant.budget}+{grant.grant_id}", body)


def file_name(store: Store, policy: Policy, fingerprint: str, name: str) -> bool:
    """File what this program calls an API key, for budgets that go by it; False when somebody was quicker."""
    body = {"format": _FORMAT, "what": "name", "fingerprint": fingerprint, "name": name, "by": acting(None)}
    return _file(store, f"{NAMES_PREFIX}{fingerprint} {policy.revision}", body)


def _file(store: Store, key: str, body: Mapping[str, Any]) -> bool:
    return store.file(NewDocument(kind=KIND, key=key, body=_write(body))).recorded


def _write(body: Mapping[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def history(policy: Policy, name: str | None = None) -> list[Change]:
    """Every change of one budget, or of all, in the order in which they were filed."""
    chosen = policy.changes.values() if name is None else (policy.changes.get(name, ()),)
    found = [change for versions in chosen for change in versions]
    return sorted(found, key=lambda change: (change.at is None, change.at or 0, change.version))


def what_counts(change: Change) -> str:
    """What the ledger has in place of a declaration that says otherwise, as the rest of a sentence."""
    when = "" if change.at is None else f" on {change.at:%Y-%m-%d %H:%M} UTC"
    if change.budget is None:
        why = f" ({change.reason})" if change.reason else ""
        return f"it was ended in the ledger{when} by {change.by}{why}, and stays ended"
    said = in_words(change.budget)
    return f"in the ledger it is ({said}), set{when} by {change.by} ({change.source}): that counts"


def joined(policy: Policy, declared: Iterable[Budget], sources: Mapping[str, str]) -> dict[str, Change]:
    """What is in force, and what would be once `declared` is filed; `sources`: name -> where it is said."""
    found = policy.in_force()
    for budget in declared:
        source = sources[budget.name]
        if is_news(policy, budget, source):
            versions = policy.changes.get(budget.name, ())
            era, since = _era(versions, budget, anew=_comes_back(versions, budget))
            found[budget.name] = Change(
                name=budget.name,
                version=len(versions) + 1,
                what="set",
                budget=budget,
                at=None,
                by=acting(None),
                reason="declared",
                source=source,
                era=era,
                counted_since=since,
                before=versions[-1].budget if versions else None,
            )
    return found


def is_news(policy: Policy, budget: Budget, source: str) -> bool:
    """Whether a declaration is to be filed: nobody said anything yet, or this source said otherwise the last time.

    What the source said before was overruled by whoever changed it since; another source's word is not overruled by a
    mere declaration.
    """
    versions = policy.changes.get(budget.name)
    if not versions:
        return True
    said = policy.said_by(source, budget.name)
    return (
        said is not None
        and said.budget is not None
        and not is_same(said.budget, budget)
        and not (versions[-1].budget is not None and is_same(versions[-1].budget, budget))
    )


def is_same(one: Budget, other: Budget) -> bool:
    """Whether both say the same."""
    return one.to_dict() == other.to_dict()


def is_same_or_gone(one: Budget | None, other: Budget | None) -> bool:
    """Whether both say the same, or both that there is none."""
    return one is other or (one is not None and other is not None and is_same(one, other))


@dataclass(frozen=True, slots=True)
class InForce:
    """The budgets of one generation of the ledger's policy, prepared.

    `passable` has a cap of each hard budget that a call may pass by not saying something.
    `names` says what the ledger calls API keys, by their fingerprints; None where no budget goes by a name.
    """

    generation: int | None
    policy: Policy
    changes: Mapping[str, Change]
    caps: Mapping[str, Cap]
    every: CapIndex
    counting: CapIndex
    hard: CapIndex
    passable: Sequence[Cap]
    dates: tuple[int, ...]
    applied: bool
    singled_out: tuple[str, ...] = ()
    any_hard: bool = False
    names: Mapping[str, str] | None = None

    def next_date(self, now_us: int) -> int:
        """First instant after now at which a budget begins or ends."""
        return next((date for date in self.dates if date > now_us), NEVER)

    @classmethod
    def of(
        cls,
        policy: Policy,
        changes: Mapping[str, Change],
        *,
        generation: int | None,
        applied: bool,
        aliases: Callable[[], Mapping[str, str]] = dict,
    ) -> InForce:
        """Prepare what is in force; `aliases` says what the ledger calls keys, asked only where a budget names one."""
        named = any(_goes_by_names(change.budget) for change in changes.values() if change.budget is not None)
        known: Mapping[str, str] = aliases() if named else {}
        caps = [
            Cap(change.budget, unit, era=change.era, defined_at=change.counted_since, aliases=known)
            for change in changes.values()
            if change.budget is not None
            for unit in change.budget.units
        ]
        return cls(
            generation,
            policy,
            changes,
            {cap.counter_name: cap for cap in caps},
            CapIndex(caps),
            CapIndex(cap for cap in caps if cap.counts),
            CapIndex(cap for cap in caps if cap.budget.hard),
            tuple({cap.budget.name: cap for cap in caps if cap.budget.hard and _may_be_passed(cap.budget)}.values()),
            tuple(sorted({to_microseconds(date) for cap in caps for date in cap.budget.effective if date is not None})),
            applied,
            tuple(sorted({name for cap in caps for name in cap.budget.scope if name == "end_user" or ":" in name})),
            any(cap.budget.hard for cap in caps),
            known if named else None,
        )


def _may_be_passed(budget: Budget) -> bool:
    """Whether a call that does not say something is not caught, though the budget may be about it."""
    return "model" in budget.scope or "*" in budget.scope.values()


def _goes_by_names(budget: Budget) -> bool:
    """Whether it has to be known what API keys are called: it names one, or limits each by its name."""
    return is_alias(budget.api_key) or (budget.limit is not None and budget.open_field == "api_key")
