"""Grants: more room for one counter of a budget, as the ledger keeps them, and what they make of its limit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from tokenmeter.budgets.matching import Cap, parse_scope, scope_text
from tokenmeter.budgets.policy import Budget, Unit, parse_limit
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import magnitude
from tokenmeter.stores.documents import Document
from tokenmeter.stores.slots import to_microseconds
from tokenmeter.texts import check_name
from tokenmeter.values import dataclass

#: A limit that nothing reaches: for whom the table or the function says ``unlimited``.
NO_CAP = 9 * 10**18
_NEVER = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """More room for one counter of a budget: a raise for one window, a top-up, a credit pack that expires.

    Attributes:
        grant_id: Identity; the document's key is made of it, so that the same grant is filed once.
        budget: The budget's name.
        scope: Scope values of the counter.
        unit: Which of the budget's limits.
        amount: How much, in `unit`; negative takes back.
        starts: First instant at which it counts, aware UTC.
        expires: First instant at which what is left of it is gone, aware UTC; None = never, or with the window.
        window_start: Start of the window it belongs to, in microseconds since the epoch; 0 where nothing ever resets.
        at: When it was filed, aware UTC.
        by: Who decided it.
        reason: Why.
    """

    grant_id: str
    budget: str
    scope: Mapping[str, str]
    unit: Unit
    amount: Decimal
    starts: datetime
    expires: datetime | None
    window_start: int
    at: datetime
    by: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values: the amount as a decimal string, instants in ISO 8601."""
        return {
            "grant_id": self.grant_id,
            "budget": self.budget,
            "scope": dict(self.scope),
            "unit": self.unit,
            "amount": f"{self.amount:f}",
            "starts": self.starts.isoformat(),
            "expires": None if self.expires is None else self.expires.isoformat(),
            "at": self.at.isoformat(),
            "by": self.by,
            "reason": self.reason,
        }


#: All grants by budget, unit and scope text, in the order of their filing.
Granted = Mapping[tuple[str, Unit, str], Sequence[Grant]]


def grant_of(document: Document, body: Mapping[str, Any]) -> Grant:
    """The grant that a document says."""
    expires = body.get("expires")
    return Grant(
        grant_id=body["grant_id"],
        budget=body["name"],
        scope=body["scope"],
        unit=body["unit"],
        amount=Decimal(body["amount"]),
        starts=datetime.fromisoformat(body["starts"]),
        expires=None if expires is None else datetime.fromisoformat(expires),
        window_start=body["window_start"],
        at=document.recorded_at,
        by=body["by"],
        reason=body["reason"],
    )


def grants_of(
    granted: Granted, name: str, scope: Mapping[str, str] | None = None, keys: Collection[str] = ()
) -> list[Grant]:
    """The grants of one budget, or of one of its counters, in the order of their filing.

    Args:
        granted: All grants.
        name: The budget's name.
        scope: Scope values of the counter; None = of all.
        keys: What else the API key in `scope` is called, its fingerprint included.
    """
    found = [
        grant
        for (budget, _, text), grants in granted.items()
        if budget == name and (scope is None or _is_counter(parse_scope(text), scope, keys))
        for grant in grants
    ]
    return sorted(found, key=lambda grant: grant.at)


def _is_counter(found: Mapping[str, str], scope: Mapping[str, str], keys: Collection[str]) -> bool:
    return found == scope or (found.get("api_key") in keys and found == {**scope, "api_key": found["api_key"]})


def granted_to(granted: Granted, cap: Cap, text: str) -> Sequence[Grant]:
    """The grants of one counter, by its scope's text, in the order of their filing.

    Those of a budget of one API key that were filed under the name which the budget has for it, before a call told its
    fingerprint, are among them.
    """
    if not granted:
        return ()
    named, own = cap.budget.api_key, granted.get((cap.budget.name, cap.unit, text), ())
    if named is None or not cap.names_one_key:
        return own
    by_name = scope_text({**parse_scope(text), "api_key": named})
    others = () if by_name == text else granted.get((cap.budget.name, cap.unit, by_name), ())
    return sorted((*others, *own), key=lambda grant: grant.at) if others else own


def find_filed(granted: Granted, name: str, grant_id: str) -> Grant | None:
    """What was granted on a budget under an identity."""
    # The newest first: what is asked for again was filed a moment ago.
    of_budget = (grants for (budget, _, _), grants in granted.items() if budget == name)
    return next((one for grants in of_budget for one in reversed(grants) if one.grant_id == grant_id), None)


class AskedGrant(NamedTuple):
    """What the caller says of a grant; what he leaves to the budget is not compared with what was granted.

    Attributes:
        amount: How much.
        reason: Why.
        expires: As in `Grant`.
        unit: Which limit; None = the one that the budget has.
        scope: Scope values of the counter.
        keys: What else the API key in `scope` is called.
    """

    amount: Decimal
    reason: str
    expires: datetime | None
    unit: Unit | None
    scope: Mapping[str, str]
    keys: Collection[str] = ()

    def refuse_other(self, found: Grant) -> None:
        """Refuse what is asked for under the identity of something else, whenever that was.

        Raises:
            ConfigurationError: `found` is another grant than is asked for.
        """
        said = (self.amount, self.reason, self.expires, self.unit or found.unit)
        if said != (found.amount, found.reason, found.expires, found.unit) or not _is_counter(
            found.scope, self.scope, self.keys
        ):
            raise ConfigurationError(
                f"The key {found.grant_id!r} was used for a grant of {found.amount:f} {found.unit} to "
                f"{scope_text(found.scope) or 'all calls'} ({found.reason}); give what is something else a key of "
                "its own."
            )


def full_scope(
    budget: Budget, given: Mapping[str, str], keys_called: Callable[[str], Collection[str]]
) -> dict[str, str]:
    """The scope values of the counter that `given` names: an API key by its fingerprint, as counters go by it.

    Where a budget is about one API key by a name that no key has borne yet, that name stands for it.

    Args:
        budget: The budget.
        given: Scope values; what the budget names itself may be left out.
        keys_called: The fingerprints of the keys that bear a name.

    Raises:
        ConfigurationError: one is missing, or not of this budget.
    """
    scope = budget.scope
    foreign = given.keys() - scope.keys()
    missing = [name for name, value in scope.items() if value == "*" and name not in given]
    if foreign or missing:
        raise ConfigurationError(
            f"Budget {budget.name!r} has the scope {scope or 'all calls'}; "
            + (
                f"say which {', '.join(missing)} is meant."
                if missing
                else f"{', '.join(sorted(foreign))} is not in it."
            )
        )
    for name, value in given.items():
        check_name(value, name)
        if value == "*":  # a counter that no call can reach
            raise ConfigurationError(f"{name}='*' is no counter of budget {budget.name!r}; say which {name} is meant.")
        if scope[name] not in ("*", value) and (name != "api_key" or "*" in scope[name]):
            raise _is_for(budget, name, value)
    found = {name: given.get(name, value) for name, value in scope.items()}
    if "*" not in (named := scope.get("api_key", "*")) or "api_key" in given:
        found["api_key"] = _find_key(budget, named, given.get("api_key"), keys_called)
    return found


def _find_key(budget: Budget, named: str, given: str | None, keys_called: Callable[[str], Collection[str]]) -> str:
    """The fingerprint of the one key that is meant.

    Args:
        budget: The budget.
        named: The key, or the keys, that it is about.
        given: A name of the key that is meant; None = the budget's.
        keys_called: See `full_scope`.
    """
    if "*" in named and named != "*":  # one counter for all whose names match
        return named
    keys = set(keys_called(named)) if "*" not in named else None
    if given is not None and given != named:
        meant = set(keys_called(given))
        if keys is not None and meant and not meant & keys:
            raise _is_for(budget, "api_key", given)
        keys = meant if keys is None else meant & keys
        named = given
    elif not keys:
        return named
    if not keys or len(keys) != 1:
        problem = f"names several keys ({', '.join(sorted(keys))})" if keys else "is not known to the ledger"
        raise ConfigurationError(f"api_key={named!r} {problem}; give the fingerprint, as `tokenmeter entries` does.")
    return keys.pop()


def _is_for(budget: Budget, name: str, value: str) -> ConfigurationError:
    return ConfigurationError(f"Budget {budget.name!r} is for {name}={budget.scope[name]!r}, not {value!r}.")


def add_grants(limit: int, grants: Sequence[Grant], at_us: int, spent_before: Callable[[int], int]) -> int:
    """The limit of one counter with its grants: what may have been spent in all by now.

    What expires first is spent first, so an expiry takes away only what nobody used of it.

    Args:
        limit: The limit without grants; it expires with the window. `NO_CAP` stays what it is.
        grants: The counter's grants in its window, in any order.
        at_us: Now, in microseconds since the epoch.
        spent_before: What the counter had settled before an instant. Only asked when something has expired already.
    """
    if limit >= NO_CAP:  # what is unlimited stays so, whatever is given or taken back
        return NO_CAP
    live = [grant for grant in grants if to_microseconds(grant.starts) <= at_us]
    if not any(grant.expires is not None and to_microseconds(grant.expires) <= at_us for grant in live):
        return min(max(limit + sum(_amount(grant) for grant in live), 0), NO_CAP)
    moments = sorted(
        {to_microseconds(one) for grant in live for one in (grant.starts, grant.expires) if one is not None}
    )
    packs: list[list[int]] = [[_NEVER, limit]]  # expiry, what is left
    spent = 0
    for moment in (each for each in moments if each <= at_us):
        now_spent = spent_before(moment)
        _take(packs, now_spent - spent)
        spent = now_spent
        packs = [pack for pack in packs if pack[0] > moment]
        for grant in live:
            if to_microseconds(grant.starts) == moment:
                amount = _amount(grant)
                if amount < 0:
                    _take(packs, -amount)
                else:
                    packs.append([_NEVER if grant.expires is None else to_microseconds(grant.expires), amount])
    return min(max(spent + sum(left for _, left in packs), 0), NO_CAP)


def _take(packs: list[list[int]], amount: int) -> None:
    """Spend `amount`, what expires first first. What no pack can pay is owed by the last one."""
    packs.sort(key=lambda pack: pack[0])
    for pack in packs:
        part = min(pack[1], amount) if pack is not packs[-1] else amount
        if part > 0:
            pack[1] -= part
            amount -= part


def _amount(grant: Grant) -> int:
    size = parse_limit(magnitude(grant.amount), grant.unit, name="amount")
    return -size if grant.amount < 0 else size
