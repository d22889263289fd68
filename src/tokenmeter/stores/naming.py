"""What API keys and erased persons are called now, in entries and in documents that were filed under earlier names.

A key is its fingerprint; a name that it is given later is its name for all it did.

The ledger knows the names that were used or said. Settings are laid over it for readers; nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from pydantic_core import from_json

from tokenmeter.attribution import ApiKey
from tokenmeter.stores.base import EntryFilter, Store
from tokenmeter.stores.documents import ERASURE, Document, DocumentQuery, name_in, owners_in
from tokenmeter.stores.encoding import storable_text
from tokenmeter.stores.engine import Rows, Where, asked, condition_on, read_head
from tokenmeter.stores.slots import HOUR, Level, start_of

#: Documents in which a program said what it calls a key, before it made a call under that name.
NAMES_KIND, NAMES_PREFIX = "budget", "key "
#: More accounts than these are picked out of all rows.
_FEW_ACCOUNTS = 1_000
_ENDLESS = 2**62
_INSTANT = timedelta(microseconds=1)
_KEY = "api_key"
#: Beside ``api_key`` in what documents say of whose something is: which key it was.
FINGERPRINT = "api_key_fingerprint"


class NamesInForce(NamedTuple):
    """What keys are called.

    Attributes:
        labels: Fingerprint -> its present name, or ``...last4`` where it never had one.
        ever: Whatever a key was called -> fingerprints.
        in_ledger: As `labels`, without what this process's settings say.
    """

    labels: Mapping[str, str]
    ever: Mapping[str, frozenset[str]]
    in_ledger: Mapping[str, str]

    def alias(self, fingerprint: str | None, said: str | None) -> str | None:
        """The present name of a key of which an entry says `said`; None for one that never had a name."""
        label = self.labels.get(fingerprint or "")
        return said if label is None or label.startswith("...") else label

    def by_fingerprint(self, where: Where) -> Where:
        """`where`, with its names of keys as fingerprints.

        A name means the keys that bear it now; one that none bears any more means those that once did.
        """
        if not any(asked(key)[0] == _KEY for key in where):
            return where
        found = {key: accepted for key, accepted in where.items() if asked(key)[0] != _KEY}
        for key, accepted in where.items():
            name, wanted = asked(key)
            if name != _KEY:
                continue
            keys = frozenset(each for value in accepted for each in self._keys(value))
            among = condition_on(FINGERPRINT, wanted=wanted)
            if (other := found.get(among)) is not None:
                keys = keys & other if wanted else keys | other
            found[among] = keys
        return found

    def _keys(self, name: str | None) -> Iterable[str | None]:
        if name is None:
            return (None,)
        text = storable_text(name)
        return [key for key, label in self.labels.items() if label == text] or self.ever.get(text, ())


NO_NAMES = NamesInForce({}, {}, {})


class KeyNames:
    """The names of a ledger's API keys, read when something was written since. Safe to share between threads.

    Args:
        secret: Reads what the ledger's fingerprints are made with.
    """

    def __init__(self, secret: Callable[[], bytes]) -> None:
        self._read_secret = secret
        self._known: tuple[object, NamesInForce] = (None, NO_NAMES)
        self._given: Mapping[str, str] = {}
        self._own: Mapping[str, str] | None = {}

    def lay_over(self, keys: Mapping[str, str]) -> None:
        """Go by settings from now on, whatever the ledger says: API key -> its name."""
        self._given, self._own = keys, None
        self.forget()

    def make_fingerprints(self) -> None:
        """What settings name, once the ledger's secret can be read. Outside of transactions.

        Raises:
            StoreUnavailableError: the ledger cannot be read.
        """
        if self._own is None:
            secret = self._read_secret() if self._given else b""
            self._own = {ApiKey.identify(key, secret=secret).fingerprint: name for key, name in self._given.items()}
            self._given = {}
            self.forget()

    def forget(self) -> None:
        """Read them again: a name may have been erased."""
        self._known = (None, NO_NAMES)

    def labels(self, connection: Rows) -> Mapping[str, str]:
        """What settings and the ledger call keys, by fingerprint; those of settings that were never used, too."""
        return {**self.read(connection).labels, **(self._own or {})}

    def read(self, connection: Rows) -> NamesInForce:
        """The names in force, in a transaction that reads."""
        stamp = tuple(read_head(connection, "(SELECT max(id) FROM accounts), entries, documents"))
        known, names = self._known
        if known != stamp:
            names = _read(connection)
            if own := {key: name for key, name in (self._own or {}).items() if key in names.labels}:
                names = names._replace(labels={**names.labels, **own})
            self._known = (stamp, names)
        return names


class NamesNow:
    """What those whom documents name are called now: a key may have another alias since, a person a pseudonym.

    What a period, an invoice or a reading says of whose it is can so be compared with entries, which show names as they
    are now. Good for one answer: it does not hear of what changes meanwhile.

    Args:
        store: The ledger.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._labels: Mapping[str, str] | None = None
        self._borne: frozenset[str | None] | None = None
        self._called: dict[str, frozenset[str]] = {}
        self._read: dict[int, Mapping[tuple[str, str], str]] = {}
        self._erased: dict[int, list[tuple[int, str, str]]] = {}
        for record in store.documents(DocumentQuery(ERASURE)):
            said: dict[str, Any] = json.loads(record.body)
            dimension = _KEY if said["kind"] == "api_key_alias" else said["kind"]
            for position, place in said.get("standing", ()):
                self._erased.setdefault(position, []).append((place, dimension, said["pseudonym"]))

    def rename(self, owner: Mapping[str, Any], document: Document | None = None) -> dict[str, Any]:
        """Whose something is, by today's names.

        Args:
            owner: Dimension -> name; where it says the fingerprint of the key, too, its alias is known for sure. What
                is no dimension stays as it is.
            document: Where it is filed; None = nowhere yet.
        """
        erased = self._erased_in(document)
        found: dict[str, Any] = {name: erased.get((name, text), text) for name, text in owner.items()}
        if (alias := found.get(_KEY)) is not None:
            found[_KEY] = self._label(found.get(FINGERPRINT), alias)
        return found

    def called(self, alias: str) -> frozenset[str]:
        """The present names of the keys that a name means, as filters have it: of none, if no key ever bore it."""
        if self._borne is None:
            self._borne = self._keys_of({})
        if alias in self._borne:
            return frozenset({alias})
        if alias not in self._called:
            self._called[alias] = frozenset(filter(None, self._keys_of({_KEY: frozenset({alias})})))
        return self._called[alias]

    def _keys_of(self, where: Where) -> frozenset[str | None]:
        """The names of keys that made calls, from kept sums."""
        span = self._store.span(None, None)
        if span is None:
            return frozenset()
        first, last = span
        groups = self._store.aggregate([first, last + _INSTANT], [_KEY], EntryFilter(where=where))
        return frozenset(group.group[0] for group in groups)

    def _label(self, fingerprint: str | None, alias: str) -> str:
        if fingerprint is not None:
            if self._labels is None:
                self._labels = self._store.key_labels()
            return self._labels.get(fingerprint, alias)
        # A document that does not say which key it was; where its name means several now, nobody can.
        called = self.called(alias)
        return next(iter(called)) if len(called) == 1 else alias

    def _erased_in(self, document: Document | None) -> Mapping[tuple[str, str], str]:
        """Dimension and name, as they stand in a document -> pseudonym."""
        places = None if document is None else self._erased.get(document.position)
        if document is None or not places:
            return {}
        if document.position not in self._read:
            owners = list(owners_in(json.loads(document.body)))
            found: dict[tuple[str, str], str] = {}
            for place, dimension, pseudonym in places:
                name = name_in(owners[place], dimension) if place < len(owners) else None
                if name is not None:
                    # Of several who bore a name, a document from before them all names the first.
                    found.setdefault((dimension, name), pseudonym)
            self._read[document.position] = found
        return self._read[document.position]


def _read(connection: Rows) -> NamesInForce:
    """A plain table of keys and their names: of several names of a key the one that was used or said last."""
    rows = connection.execute(
        "SELECT id, api_key_fingerprint, api_key_last4, api_key_alias FROM contexts "
        "WHERE api_key_fingerprint IS NOT NULL ORDER BY id"
    ).fetchall()
    labels: dict[str, str] = {}
    ever: dict[str, set[str]] = {}
    names: dict[str, dict[int, str]] = {}
    for account, fingerprint, last4, alias in rows:
        labels.setdefault(fingerprint, f"...{last4}")
        ever.setdefault(f"...{last4}", set()).add(fingerprint)
        if alias:
            labels[fingerprint] = names.setdefault(fingerprint, {})[account] = alias
            ever.setdefault(alias, set()).add(fingerprint)
    said = _read_said(connection)
    several = {
        fingerprint: called
        for fingerprint, called in names.items()
        if len({*called.values(), *(said[fingerprint][:1] if fingerprint in said else ())}) > 1
    }
    used = _last_used(connection, several, said)
    labels |= {fingerprint: name for fingerprint, (_, name) in used.items()}
    labels |= {key: name for key, (name, since) in said.items() if key not in used or used[key][0] < since}
    return NamesInForce(labels, {name: frozenset(keys) for name, keys in ever.items()}, labels)


def _read_said(connection: Rows) -> dict[str, tuple[str, int]]:
    """Per fingerprint the name that was said last, and when, in microseconds since the epoch."""
    found: dict[str, tuple[str, int]] = {}
    statement = "SELECT body FROM documents WHERE kind = ? AND substr(key, 1, ?) = ? ORDER BY seq"
    for (body,) in connection.execute(statement, (NAMES_KIND, len(NAMES_PREFIX), NAMES_PREFIX)).fetchall():
        document = from_json(body)
        told: dict[str, Any] = json.loads(document["body"])
        if told.get("what") == "name":  # a budget may be called so, too
            found[told["fingerprint"]] = told["name"], document["recorded_at"]
    return found


def _last_used(
    connection: Rows, named: Mapping[str, Mapping[int, str]], said: Collection[str]
) -> dict[str, tuple[int, str]]:
    """Per key when one of its names was used last, and which; without those that made no call.

    The kept sums tell the hour, and entries the moment in it. Of entries that went over to the archive only the order
    in which their accounts were defined is at hand.

    Args:
        connection: In a transaction.
        named: Fingerprint -> account -> the name that it has there.
        said: Of these keys the moment has to be known.
    """
    accounts = {account: key for key, names in named.items() for account in names}
    if not accounts:
        return {}
    statement = "SELECT account, max(slot) FROM sums WHERE level = ? AND slot >= ? AND slot < ? AND {} GROUP BY account"
    months = _latest(connection, statement, (Level.MONTH, 0, _ENDLESS), accounts)
    hours: dict[str, dict[int, int]] = {}
    for month, those in _by_moment(months).items():
        span = (start_of(Level.MONTH, month) // HOUR, start_of(Level.MONTH, month + 1) // HOUR)
        hours |= _latest(connection, statement, (Level.HOUR, *span), those)
    last = {key: {account: hour * HOUR for account, hour in those.items()} for key, those in hours.items()}
    unclear = {key: those for key, those in hours.items() if key in said or len({named[key][one] for one in those}) > 1}
    statement = (
        "SELECT account, max(occurred_at) FROM entries "
        "WHERE occurred_at >= ? AND occurred_at < ? AND {} GROUP BY account"
    )
    for hour, those in _by_moment(unclear).items():
        last |= _latest(connection, statement, (hour * HOUR, (hour + 1) * HOUR), those)
    return {key: (those[account := max(those)], named[key][account]) for key, those in last.items()}


def _latest(
    connection: Rows, statement: str, values: tuple[int, ...], accounts: Mapping[int, str]
) -> dict[str, dict[int, int]]:
    """Per key its latest slot or moment, by the accounts in which it is: all but the latest are left out."""
    among = f"account IN ({', '.join(map(str, accounts))})" if len(accounts) <= _FEW_ACCOUNTS else "1 = 1"
    found: dict[str, dict[int, int]] = {}
    for account, moment in connection.execute(statement.format(among), values).fetchall():
        key = accounts.get(account)
        if key is None:
            continue
        known = found.setdefault(key, {})
        if not known or moment > max(known.values()):
            found[key] = {account: moment}
        elif moment == max(known.values()):
            known[account] = moment
    return found


def _by_moment(latest: Mapping[str, Mapping[int, int]]) -> dict[int, dict[int, str]]:
    """What `_latest` found, the other way round: moment -> account -> key."""
    found: dict[int, dict[int, str]] = {}
    for key, accounts in latest.items():
        for account, moment in accounts.items():
            found.setdefault(moment, {})[account] = key
    return found
