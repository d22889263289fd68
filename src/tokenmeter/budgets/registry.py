"""Which budgets there are: declared by settings and code, said by the ledger, changed at run time."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, cast

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.attribution import ApiKey
from tokenmeter.budgets.agreement import (
    NO_KEYS,
    Together,
    check_consistent,
    describe_limit,
    find_keys,
    in_words,
    refuse_shared_counters,
    refuse_unmet,
)
from tokenmeter.budgets.definitions import (
    Change,
    InForce,
    Policy,
    file_change,
    file_grant,
    file_name,
    history,
    is_news,
    is_same,
    is_same_or_gone,
    joined,
    read_policy,
    what_counts,
)
from tokenmeter.budgets.grants import AskedGrant, Grant, find_filed, full_scope, grants_of
from tokenmeter.budgets.holds import Fault
from tokenmeter.budgets.matching import Cap, is_fingerprint
from tokenmeter.budgets.policy import Budget, Unit, parse_limit
from tokenmeter.budgets.status import keys_called
from tokenmeter.errors import ConfigurationError, StoreBusyError, shown
from tokenmeter.interrupts import let_interrupt_through
from tokenmeter.ledger import new_id
from tokenmeter.money import magnitude, parse_decimal
from tokenmeter.periods import parse_instant
from tokenmeter.pricing import Pricer
from tokenmeter.processes import make_lock, may_wait, run_alone
from tokenmeter.stores.base import Store
from tokenmeter.stores.slots import from_microseconds, to_microseconds
from tokenmeter.texts import acting, check_name, check_reason

log = logging.getLogger("tokenmeter")


class Registry:
    """The budgets of one ledger, as one process sees them.

    Which budgets there are is said by the ledger: each definition is a document in it, so that every process obeys the
    same ones and learns of a change with its next call. The budgets given here are declared: they are filed when the
    first call needs them, unless the ledger has them already.

    For the arguments see `tokenmeter.budgets.budgets.Budgets`.
    """

    def __init__(
        self,
        store: Store,
        pricer: Pricer,
        declared: Iterable[Budget],
        *,
        source: str | None,
        in_code: Collection[str] = (),
        fault: Fault,
    ) -> None:
        self.declared = check_consistent(declared)
        code = f"code of {Path(sys.argv[0]).name or 'python'}"
        self._file = source
        self._sources = {each.name: code if each.name in in_code else source or code for each in self.declared}
        self._store = store
        self._pricer = pricer
        self._fault = fault
        self._told: set[tuple[str, int]] = set()
        self._said: set[tuple[str, str]] = set()
        self._policy = Policy()
        self._state = self._declared_only()

    # -- which budgets there are

    @property
    def in_force(self) -> tuple[Budget, ...]:
        """The budgets that count now: what the ledger says, and what is declared and not filed yet. Nothing is written.

        Raises:
            StoreUnavailableError: the ledger cannot be read.
        """
        return tuple(change.budget for change in self._read().changes.values() if change.budget is not None)

    @property
    def caps(self) -> Mapping[str, Cap]:
        """The limits in force, prepared, by their counters' name."""
        return self._read().caps

    def changes(self) -> list[Change]:
        """The definitions in force, each with who said it, when and where."""
        return list(self._read().changes.values())

    @tell_wrong_arguments
    def history(self, name: str | None = None) -> list[Change]:
        """Every definition, change and end of one budget, or of all, the first first."""
        return history(self._read().policy, name)

    @tell_wrong_arguments
    def grants(self, name: str, scope: Mapping[str, str] | None = None) -> list[Grant]:
        """The grants of a budget, or of one of its counters, the first first."""
        called = None if scope is None else scope.get("api_key")
        labels: Mapping[str, str] = {} if called is None else self._store.key_labels()
        keys: set[str] = set() if called is None else keys_called(self._store, called)
        return grants_of(
            self._read().policy.grants, name, scope, keys=keys.union(labels[key] for key in keys if key in labels)
        )

    def declare(self) -> None:
        """File what is declared now, so that others know it before the first call. Never raises; a call tries again."""
        try:
            if self.declared:
                run_alone(_reading, self._apply_declared)
        except Exception as error:  # noqa: BLE001 - a program that only reads may not write, and need not
            let_interrupt_through(error)
            log.info("Declared budgets are filed with the first call, since they could not be now: %s", error)

    def refuse_by_ledger(self) -> None:
        """Refuse declarations that only the ledger shows to be wrong.

        Raises:
            ConfigurationError: one would count into a counter of another budget that the ledger has, or had; or two
                limit the same calls, since they call one API key by two names. A ledger that cannot be read refuses
                nothing.
        """
        if not self.declared:
            return
        try:
            with _reading:
                policy, keys = self._read_policy(), self._keys(self.declared)
        except Exception as error:  # noqa: BLE001 - calls find it out, and tell it
            let_interrupt_through(error)
            log.info("The ledger's budgets could not be read yet: %s", error)
            return
        refuse_shared_counters(self._news(policy), policy.ever())
        check_consistent(self.declared, [self._sources[each.name] for each in self.declared], keys=keys)

    def _keys(self, budgets: Iterable[Budget]) -> Mapping[str, str]:
        """What names one API key alone -> its fingerprint, where one of `budgets` names a key."""
        named = any("*" not in budget.scope.get("api_key", "*") for budget in budgets)
        return find_keys(self._store.key_labels()) if named else NO_KEYS

    def _refuse_slips(self, budgets: Iterable[Budget]) -> None:
        for budget in budgets:
            refuse_unmet(budget)
            self._pricer.price_list.refuse_slip(budget.scope.get("provider", ""), f"Budget {budget.name!r}: ")

    def _news(self, policy: Policy) -> list[Budget]:
        """What is declared and is to be filed."""
        return [budget for budget in self.declared if is_news(policy, budget, self._sources[budget.name])]

    def _declared_only(self) -> InForce:
        return InForce.of(Policy(), joined(Policy(), self.declared, self._sources), generation=None, applied=False)

    def _read_policy(self) -> Policy:
        """What the ledger says by now; of what was read before nothing is read again."""
        self._policy = read_policy(self._store, self._policy)
        return self._policy

    def _read(self) -> InForce:
        """The budgets in force, for reading: nothing is written."""
        generation = self._store.generation()
        state = self._state
        if state.generation != generation:
            policy = self._read_policy()
            changes = self._with_functions(joined(policy, self.declared, self._sources))
            state = InForce.of(
                policy, changes, generation=generation, applied=not self.declared, aliases=self._store.key_names
            )
            if self._state.generation is None or state.applied:
                self._obey(state)
        return state

    def _current(self) -> InForce:
        """The budgets in force, for calls: what is declared is filed first, once.

        Raises:
            StoreBusyError: the ledger has to be asked, and this thread must not wait.
        """
        state = self._state
        try:
            if state.applied and state.generation == self._store.generation():
                return state
            if may_wait():
                return run_alone(_reading, self._apply_declared)
        except Exception as error:  # noqa: BLE001 - what is known holds on; a hard cap's own reserve fails closed
            if may_wait() or not isinstance(error, StoreBusyError):
                self._fault("read the ledger's budgets", error)
                return state
        raise StoreBusyError("The ledger's budgets have to be read first; call again from a thread.")

    def _apply_declared(self) -> InForce:
        while True:
            generation = self._store.generation()
            if self._state.applied and self._state.generation == generation:
                return self._state
            policy = self._read_policy()
            if self._state.applied or not self._file_declared(policy):
                break
        if self._state.applied and self._state.policy.revision == policy.revision:  # grants leave the caps as they are
            self._state = replace(self._state, policy=policy, generation=generation)
            return self._state
        changes = self._with_functions(policy.in_force())
        self._obey(InForce.of(policy, changes, generation=generation, applied=True, aliases=self._store.key_names))
        self._tell_contradictions(policy)
        return self._state

    def _obey(self, state: InForce) -> None:
        """Go by `state` from now on."""
        self._state = state

    def _with_name(self, state: InForce, key: ApiKey | None) -> InForce:
        """Have every process know what this one calls `key`, where a budget goes by names; what is in force then.

        Raises:
            StoreBusyError: it has to be written down first, and this thread must not wait.
        """
        if state.names is None or key is None or key.alias is None or state.names.get(key.fingerprint) == key.alias:
            return state
        said = (key.fingerprint, key.alias)
        if said in self._said:  # another program has another name for it: each has said its own
            return state
        if not may_wait():
            raise StoreBusyError("A key's name has to be written down first; call again from a thread.")
        try:
            run_alone(_reading, self._say, said)
        except Exception as error:  # noqa: BLE001 - this process knows the name, others go by the one before
            self._fault("write down a key's name", error)
            return state
        return self._current()

    def _say(self, said: tuple[str, str]) -> None:
        while said not in self._said and not file_name(self._store, self._read_policy(), *said):
            pass
        self._said.add(said)

    def _file_declared(self, policy: Policy) -> bool:
        """File what this process declares and the ledger does not have; whether anything was filed."""
        filed = False
        for budget in self._news(policy):
            try:
                refuse_shared_counters([budget], policy.ever())
            except ConfigurationError as error:  # it came into the ledger since this program began
                self._fault(f"declare budget {budget.name!r}", error)
                continue
            file_change(
                self._store,
                budget.name,
                budget,
                versions=policy.changes.get(budget.name, ()),
                by=acting(None),
                reason="declared",
                source=self._sources[budget.name],
            )
            filed = True
        return filed

    def _with_functions(self, changes: Mapping[str, Change]) -> dict[str, Change]:
        """Limit functions are known to the ledger by name; the process that has them puts them in."""
        own = {budget.name: budget for budget in self.declared if callable(budget.limit)}
        return {
            name: replace(change, budget=own[name])
            if name in own and change.budget is not None and is_same(own[name], change.budget)
            else change
            for name, change in changes.items()
        }

    def _tell_contradictions(self, policy: Policy) -> None:
        """Say where the ledger says otherwise than this process, once per version."""
        for budget in self.declared:
            versions = policy.changes.get(budget.name)
            if versions is None:  # its name is taken
                continue
            change = versions[-1]
            if (change.budget is not None and is_same(budget, change.budget)) or (
                budget.name,
                change.version,
            ) in self._told:
                continue
            self._told.add((budget.name, change.version))
            log.warning(
                "Budget %r is declared in %s as (%s), but %s. To agree, change the declaration, or apply it with "
                "`tokenmeter budgets apply` or meter.budgets.set(...).",
                budget.name,
                self._sources[budget.name],
                in_words(budget),
                what_counts(change),
            )
        self._tell_twins(policy)
        if self._file is not None:
            self._tell_forgotten(policy, self._file)

    def _tell_twins(self, policy: Policy) -> None:
        """Say which budget of others limits what a declared one does. Both hold: no cap is lost by a second name."""
        in_force = policy.in_force()
        together = Together((cast("Budget", one.budget) for one in in_force.values()), keys=self._keys(self.declared))
        for mine in (in_force[budget.name] for budget in self.declared if budget.name in in_force):
            budget = cast("Budget", mine.budget)
            for twin, unit in together.find_twins(budget):
                pair = (" and ".join(sorted((budget.name, twin.name))), in_force[twin.name].version + mine.version)
                if twin.name == budget.name or pair in self._told:
                    continue
                self._told.add(pair)
                log.warning(
                    "Budgets %r (%s) and %r (%s) limit the same calls over the same window (%s and %s %s): both hold. "
                    "Keep one of them; `tokenmeter budgets retire NAME` ends the other.",
                    budget.name,
                    mine.source,
                    twin.name,
                    in_force[twin.name].source,
                    describe_limit(budget, unit),
                    describe_limit(twin, unit),
                    unit,
                )

    def _tell_forgotten(self, policy: Policy, file: str) -> None:
        """Say which budgets the file of this process declared earlier and does not name any more."""
        here = {budget.name for budget in self.declared}
        for name, change in policy.in_force().items():
            if change.source == file and name not in here and (name, change.version) not in self._told:
                self._told.add((name, change.version))
                log.warning(
                    "Budget %r is in force and was declared in %s, where it no longer stands. "
                    "`tokenmeter budgets retire %s` ends it.",
                    name,
                    file,
                    shlex.quote(name),
                )

    # -- changing them

    @tell_wrong_arguments
    def set(
        self,
        budget: Budget | Mapping[str, Any],
        *,
        by: str | None = None,
        reason: str = "",
        source: str = "run time",
        dry_run: bool = False,
    ) -> Change:
        """Define a budget, or change the one of this name; every process obeys it with its next call.

        What was spent stays counted: another limit keeps the counters, another scope counts anew from the ledger.

        Args:
            budget: The definition, or its fields as a ``[[budgets]]`` row has them.
            by: Who decided it; default: the account this program runs under.
            reason: Why.
            source: Where it was said.
            dry_run: Check it and say what it would be, and change nothing.

        Returns:
            The definition in force, or that would be; one that is not filed has no `Change.document_id`.

        Raises:
            ConfigurationError: it is no definition; another budget limits the same calls over the same window; its name
                is what a counter of another budget is called; its provider is a slip; `by` or `reason` is no text.
            StoreUnavailableError: it could not be recorded.
        """
        if isinstance(budget, Mapping):
            budget = Budget.parse(budget)
        elif not isinstance(budget, Budget):  # pyright: ignore[reportUnnecessaryIsInstance] - without a checker
            raise ConfigurationError(f"A budget must be a Budget or a mapping of its fields, not {shown(budget)}.")
        self._refuse_slips([budget])
        policy = self._read_policy()
        refuse_shared_counters([budget], [*self.declared, *policy.ever()])
        others = (one for one in self.in_force if one.name != budget.name)
        Together(others, keys=self._keys([budget])).refuse_twins(budget)
        if dry_run:
            last = policy.changes[budget.name][-1] if budget.name in policy.changes else None
            if last is not None and is_same_or_gone(last.budget, budget):
                return last
            return _would_be(policy, budget.name, budget, by=acting(by), reason=reason, source=source)
        # What is declared and now changed is in the history; what is declared and now set is set by whoever sets it.
        if not any(is_same(budget, one) for one in self.declared):
            self._current()
        change = self._change(budget.name, budget, by=by, reason=reason, source=source)
        self._current()
        return change

    @tell_wrong_arguments
    def retire(self, name: str, *, by: str | None = None, reason: str = "", source: str = "run time") -> Change:
        """End a budget. Its history stays; setting it again counts from the ledger.

        Raises:
            ConfigurationError: no budget of this name is in force.
            StoreUnavailableError: it could not be recorded.
        """
        self._named(self._current(), name)
        change = self._change(name, None, by=by, reason=reason, source=source)
        self._current()
        return change

    def _change(self, name: str, budget: Budget | None, *, by: str | None, reason: str, source: str) -> Change:
        who = acting(by)
        check_reason(reason)
        while True:
            versions = self._read_policy().changes.get(name, ())
            last = versions[-1] if versions else None
            if last is not None and is_same_or_gone(last.budget, budget):
                return last
            if file_change(self._store, name, budget, versions=versions, by=who, reason=reason, source=source):
                return self._read_policy().changes[name][len(versions)]

    @tell_wrong_arguments
    def apply(
        self,
        budgets: Iterable[Budget],
        *,
        source: str,
        by: str | None = None,
        reason: str = "applied",
        dry_run: bool = False,
    ) -> list[Change]:
        """Make the ledger say what `budgets` say, and end those that `source` said earlier and says no longer.

        Args:
            budgets: All budgets of that source.
            source: Where they stand.
            by: Who applies them; default: the account this program runs under.
            reason: Why.
            dry_run: Say what would change, and change nothing.

        Returns:
            What changed, or would; a change that is not filed has no `Change.document_id`.

        Raises:
            ConfigurationError: they contradict each other, or name a provider by a slip.
            StoreUnavailableError: the ledger cannot be read or written.
        """
        said = list(budgets)
        self._refuse_slips(said)
        keys = self._keys(said)
        wanted = {budget.name: budget for budget in check_consistent(said, keys=keys)}
        policy = self._read_policy()
        in_force = policy.in_force()
        due: dict[str, Budget | None] = {
            name: budget
            for name, budget in wanted.items()
            if name not in in_force or not is_same_or_gone(in_force[name].budget, budget)
        }
        due |= {name: None for name, change in in_force.items() if change.source == source and name not in wanted}
        refuse_shared_counters(wanted.values(), policy.ever())
        going = {*wanted, *due}
        stays = (one for name, change in in_force.items() if name not in going and (one := change.budget))
        staying = Together(stays, keys=keys)
        for budget in wanted.values():
            staying.refuse_twins(budget)
        who = acting(by)
        self._told.update((name, policy.changes[name][-1].version) for name in due if name in policy.changes)
        if dry_run:
            return [
                _would_be(policy, name, budget, by=who, reason=reason, source=source) for name, budget in due.items()
            ]
        # Before the declared ones are filed: these may be the same, and who applies them and why is in the history.
        changes = [self._change(name, budget, by=who, reason=reason, source=source) for name, budget in due.items()]
        self._current()
        return changes

    @tell_wrong_arguments
    def grant(
        self,
        name: str,
        amount: Decimal | int | str,
        *,
        by: str,
        reason: str,
        scope: Mapping[str, str] | None = None,
        unit: Unit | None = None,
        at: datetime | date | str | None = None,
        expires: datetime | date | str | None = None,
        key: str | None = None,
        dry_run: bool = False,
    ) -> Grant:
        """Give one counter of a budget more room: a raise for one window, or prepaid credit on one that never resets.

        What expires first is spent first; what is left of it at its expiry is gone.

        Args:
            name: The budget's name.
            amount: How much, in the budget's unit; negative takes back.
            by: Who decided it.
            reason: Why.
            scope: Which counter, where the budget has a ``"*"``: ``{"member": "ada"}``.
            unit: Which limit, where the budget has several.
            at: An instant in the window that is meant, from which on it counts (a date or ISO text, too); default: now.
            expires: First instant at which what is left of it is gone, no later than its window; default: with that.
            key: Identity of the grant, such as a payment's: the same key is granted once, however often it is sent.
            dry_run: Check it and say what it would be, and grant nothing.

        Returns:
            The grant as it stands in the ledger, or would.

        Raises:
            ConfigurationError: no such budget or counter, a wrong amount or expiry, or what should be a text is none.
            StoreUnavailableError: it could not be recorded.
        """
        state, who, number = self._current(), acting(by), parse_decimal(amount, name="amount")
        if not number:
            raise ConfigurationError("amount must not be zero.")
        if key is not None:
            check_name(key, "key")
        check_reason(reason)

        def ask(budget: Budget, known: str | None = None) -> AskedGrant:
            full = full_scope(budget, scope or {}, partial(self._meant_keys, known))
            ends = None if expires is None else parse_instant(expires, budget.tz)
            return AskedGrant(number, reason, ends, unit, full, () if budget.api_key is None else (budget.api_key,))

        policy = self._read().policy
        # Before anything is asked of the budget: a payment that is told again may have been granted on an earlier
        # definition of it, and be used up, expired or ended since.
        if key is not None and (filed := find_filed(policy.grants, name, key)) is not None:
            budget = policy.definition_at(name, filed.at) or self._named(state, name)
            ask(budget, filed.scope.get("api_key")).refuse_other(filed)
            return filed
        budget = self._named(state, name)
        asked, cap = ask(budget), _cap_of(state, budget, unit)
        if parse_limit(magnitude(number), cap.unit, name="amount") == 0 or not _takes_grants(cap):
            raise ConfigurationError(f"Budget {name!r} is a rate limit; change its limit instead of granting more.")
        begins = self._store.now() if at is None else parse_instant(at, budget.tz)
        if asked.expires is not None and asked.expires <= begins:
            raise ConfigurationError(
                f"expires must be later than {begins.isoformat()}, not {asked.expires.isoformat()}."
            )
        (window_start, window_end), *_ = cap.spans(to_microseconds(begins))
        if asked.expires is not None and window_end is not None and to_microseconds(asked.expires) > window_end:
            anew = from_microseconds(window_end).isoformat()
            raise ConfigurationError(
                f"Budget {name!r} begins anew at {anew}, and what is granted ends with its window: expires must not be "
                f"later, and is {asked.expires.isoformat()}. Leave it out, or grant credit on a budget of the period "
                "'total'."
            )
        grant = Grant(
            grant_id=key or new_id(),
            budget=name,
            scope=asked.scope,
            unit=cap.unit,
            amount=number,
            starts=begins,
            expires=asked.expires,
            window_start=window_start,
            at=self._store.now(),
            by=who,
            reason=reason,
        )
        if dry_run:
            return grant
        file_grant(self._store, grant)
        found = find_filed(self._read().policy.grants, name, grant.grant_id)
        if found is None:
            raise ConfigurationError(f"key {key!r} names another document of this ledger; give the grant another key.")
        asked.refuse_other(found)  # somebody may have been quicker
        return found

    def _meant_keys(self, known: str | None, name: str) -> Collection[str]:
        """The keys (fingerprints) that bear a name; where the one that is `known` to be meant does, it alone.

        What is known may be a name that no key bore when a grant was filed on it: that name is the key's, then.
        """
        keys = keys_called(self._store, name)
        if known is None or name == known or known in keys:
            return keys if known is None else {known}
        if not is_fingerprint(known) and keys & keys_called(self._store, known):
            return {known}
        return keys

    @staticmethod
    def _named(state: InForce, name: str) -> Budget:
        change = state.changes.get(name)
        if change is None or change.budget is None:
            names = ", ".join(map(repr, state.changes)) or "none"
            raise ConfigurationError(f"No budget is called {name!r}; in force: {names}.")
        return change.budget


def _would_be(policy: Policy, name: str, budget: Budget | None, *, by: str, reason: str, source: str) -> Change:
    """A change that is not filed."""
    versions = policy.changes.get(name, ())
    return Change(
        name=name,
        version=len(versions) + 1,
        what="retire" if budget is None else "set",
        budget=budget,
        at=None,
        by=by,
        reason=reason,
        source=source,
        before=versions[-1].budget if versions else None,
    )


def _cap_of(state: InForce, budget: Budget, unit: Unit | None) -> Cap:
    """The limit that is meant: where none is named, the one that can be granted on."""
    found = [cap for cap in state.caps.values() if cap.budget.name == budget.name and unit in {None, cap.unit}]
    if unit is None:
        found = [cap for cap in found if _takes_grants(cap)] or found[:1]
    if len(found) != 1:
        raise ConfigurationError(
            f"Budget {budget.name!r} limits {', '.join(budget.units)}; say which is meant with unit=."
        )
    return found[0]


def _takes_grants(cap: Cap) -> bool:
    """Whether its limit can be granted more: not so a rate limit's, nor that of calls in flight."""
    return cap.counts and not cap.rolling


_reading = make_lock()
