"""What the ledger's chain knows of an archive file: a document, which can neither be changed nor removed."""

from __future__ import annotations

import hashlib
import itertools
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, field, fields, replace
from datetime import datetime

from pydantic_core import from_json

from tokenmeter.errors import ConfigurationError, TamperedLedgerError
from tokenmeter.stores.documents import Document, NewDocument
from tokenmeter.stores.encoding import compact_json
from tokenmeter.stores.slots import DAY, from_microseconds
from tokenmeter.values import dataclass

#: Kind of document that manifests are.
KIND = "archive"
#: Kind of document that says where a month's file lies since it was moved.
PLACE = "archive_place"
_NEWEST_LAYOUT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedMonth:
    """A run of the ledger's chain that is sealed in a file. Its field names are those of the manifest's JSON.

    A run ends where a month does, as nearly as the order of the chain permits: some calls of the next month's first
    moments may be in it, and what was recorded late is in a later one. So `first_at` and `last_at` say what is in it,
    its name does not.

    Attributes:
        month: ``2026-09``; of two runs that end with the same month the later one has what came late.
        first_seq: First record of the run.
        last_seq: Its last record, an entry.
        entries: How many entries it has; other records of the run are documents, which stay in the ledger.
        first_at: Occurrence of its earliest entry, microseconds since the epoch.
        last_at: Occurrence of its latest.
        head_before: Hash of the record before the run (hex).
        head_after: Hash of its last record (hex).
        root: Merkle root over SHA-256 of every record of the run, documents included (RFC 6962, hex).
        sums: Column -> sum over the file.
        url: Where the file is: where it was sealed, or where it was moved since.
        sha256: SHA-256 of the file (hex).
        bytes: Size of the file.
        layout: Number of the file's layout.
        days: UTC days since 1970 that it has entries of: first and last of each stretch. In older manifests none;
            they stand for all days from the earliest entry to the latest.
        dropped: Whether its entries are in the file only; not in the manifest, but what the ledger says now.
        gone: How many of them are; some, where dropping it or bringing it back was broken off. As `dropped`.
    """

    month: str
    first_seq: int
    last_seq: int
    entries: int
    first_at: int
    last_at: int
    head_before: str
    head_after: str
    root: str
    sums: Mapping[str, int] = field(default_factory=dict[str, int])
    url: str
    sha256: str
    bytes: int
    layout: int = _NEWEST_LAYOUT
    days: tuple[tuple[int, int], ...] = ()
    dropped: bool = False
    gone: int = 0

    @property
    def since(self) -> datetime:
        """Occurrence of its earliest entry, aware UTC."""
        return from_microseconds(self.first_at)

    @property
    def until(self) -> datetime:
        """Occurrence of its latest entry, aware UTC."""
        return from_microseconds(self.last_at)

    def may_hold(self, start: int | None, end: int | None) -> bool:
        """Whether it may have entries between two instants, in microseconds since the epoch; None is no bound."""
        if (start is not None and self.last_at < start) or (end is not None and self.first_at >= end):
            return False
        return not self.days or any(
            (start is None or (last + 1) * DAY > start) and (end is None or first * DAY < end)
            for first, last in self.days
        )

    def less(self, gone: int) -> ArchivedMonth:
        """The same, of whose entries so many are in the file only."""
        return replace(self, gone=gone, dropped=gone == self.entries)

    def draft(self) -> NewDocument:
        """The manifest as it is to be filed; of all that begin with the same record only one can be."""
        values = asdict(self)
        del values["dropped"], values["gone"]
        return NewDocument(kind=KIND, key=str(self.first_seq), body=compact_json(values))

    def moved_to(self, place: str) -> ArchivedMonth:
        """The same in another place, under the name that it has."""
        return replace(self, url="/".join([place, *self.url.rsplit("/", 2)[1:]]))

    def place(self, number: int) -> NewDocument:
        """Where it lies now, as it is to be filed; each such document has a number of its own."""
        body = compact_json({"first_seq": self.first_seq, "url": self.url})
        return NewDocument(kind=PLACE, key=str(number), body=body)

    @classmethod
    def of(cls, document: Document) -> ArchivedMonth:
        """From a filed manifest.

        Raises:
            ConfigurationError: a newer release sealed it.
            TamperedLedgerError: it is not what a store writes.
        """
        return cls._parse(document.body)

    @classmethod
    def all_of(cls, records: Sequence[tuple[str, str]]) -> list[ArchivedMonth]:
        """Every month, in order; as `of`, from kind and record of each document of `KIND` and `PLACE`."""
        found = dict[int, ArchivedMonth]()
        for kind, record in records:
            try:
                body = from_json(record)["body"]
                if kind == PLACE:
                    said = json.loads(body)
                    first = said["first_seq"]
                    found[first] = replace(found[first], url=str(said["url"]))
                    continue
            except (ValueError, TypeError, LookupError) as error:
                raise _unreadable(error) from error
            month = cls._parse(body)
            found[month.first_seq] = month
        return list(found.values())

    @classmethod
    def _parse(cls, body: str) -> ArchivedMonth:
        try:
            values = json.loads(body)
            layout = values["layout"]
            if layout > _NEWEST_LAYOUT:
                raise ConfigurationError(
                    f"{values['url']} has layout {layout}; this tokenmeter knows {_NEWEST_LAYOUT}. Upgrade it: "
                    "pip install --upgrade tokenmeter-sdk."
                )
            values["days"] = tuple((int(first), int(last)) for first, last in values.get("days", ()))
            known = {one.name for one in fields(cls)}
            return cls(
                **{name: value for name, value in values.items() if name in known}
            )  # a newer release may say more
        except (ValueError, TypeError, LookupError) as error:
            raise _unreadable(error) from error


class ArchivedDays:
    """UTC days (since 1970) with entries of some archived months.

    One call that is dated a year ahead is in the file of its run, and is no reason to leave out the days until then.

    Args:
        months: The months.

    Attributes:
        stretches: First and last day of each stretch of them, in order.
    """

    def __init__(self, months: Iterable[ArchivedMonth] = ()) -> None:
        parts = (one.days or [(one.first_at // DAY, one.last_at // DAY)] for one in months)
        self.stretches = stretches_of(itertools.chain.from_iterable(parts))
        self._firsts = [first for first, _ in self.stretches]

    @property
    def last(self) -> int | None:
        """The last of these days; None where there is none."""
        return self.stretches[-1][1] if self.stretches else None

    def __contains__(self, day: object) -> bool:
        return isinstance(day, int) and self.beyond(day) != day

    def beyond(self, day: int) -> int:
        """The first day from this one on that is none of them."""
        at = bisect_right(self._firsts, day) - 1
        return day if at < 0 or day > self.stretches[at][1] else self.stretches[at][1] + 1


def stretches_of(parts: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches of days, first and last of each, put in order and together where they touch."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(parts):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def _unreadable(error: Exception) -> TamperedLedgerError:
    return TamperedLedgerError(
        f"The manifest of a sealed month cannot be read ({error}): it was changed since it was filed. "
        "`tokenmeter verify` names every such document; compare with a backup."
    )


class Merkle:
    """A Merkle tree's root over leaves that come one at a time (RFC 6962: two kinds of node, no leaf counted twice).

    Args:
        of: Number of the leaf, from 0, whose `path` is wanted; None = none.

    Attributes:
        count: How many leaves came.
        path: What leads from that leaf to the root, once `root` was asked for.
    """

    def __init__(self, of: int | None = None) -> None:
        self.count = 0
        self.path: list[bytes] = []
        self._of = of
        self._roots: list[tuple[int, bytes, bool]] = []

    def add(self, leaf: bytes) -> None:
        """Add a leaf's SHA-256."""
        height, node, wanted = 0, _leaf_node(leaf), self.count == self._of
        self.count += 1
        roots = self._roots
        while roots and roots[-1][0] == height:
            node, wanted = self._joined(roots.pop(), node, wanted)
            height += 1
        roots.append((height, node, wanted))

    def _joined(self, left: tuple[int, bytes, bool], right: bytes, wanted: bool) -> tuple[bytes, bool]:
        if wanted or left[2]:
            self.path.append(left[1] if wanted else right)
        return _inner_node(left[1], right), wanted or left[2]

    def root(self) -> bytes:
        """The root over what was added; SHA-256 of nothing for nothing. To be asked for once."""
        if not self._roots:
            return hashlib.sha256().digest()
        *rest, (_, node, wanted) = self._roots
        for left in reversed(rest):
            node, wanted = self._joined(left, node, wanted)
        return node


def _leaf_node(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\0" + leaf).digest()


def _inner_node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """That an archived month has an entry, for somebody who knows the month's Merkle root and sees nothing else of it.

    Attributes:
        record: The entry as it was recorded; names are digests.
        index: Its place among the records of the run, from 0.
        size: How many records the run has.
        path: SHA-256 (hex) of the subtrees beside the way from the record to the root (RFC 6962).
        root: The root (hex), as the month's manifest has it.
        month: ``2026-09``.
    """

    record: str
    index: int
    size: int
    path: tuple[str, ...]
    root: str
    month: str

    def holds(self, root: str | None = None) -> bool:
        """Whether the record is one of those under the root. No ledger is needed.

        Args:
            root: The root that the reader of the proof had before (hex); None = the one in the proof, which then says
                only that the proof is whole.
        """
        node, place, last = _leaf_node(hashlib.sha256(self.record.encode()).digest()), self.index, self.size - 1
        if not 0 <= place <= last:
            return False
        for one in self.path:
            if not last:
                return False
            beside = bytes.fromhex(one)
            if place & 1 or place == last:
                node = _inner_node(beside, node)
                while not place & 1 and place:
                    place, last = place >> 1, last >> 1
            else:
                node = _inner_node(node, beside)
            place, last = place >> 1, last >> 1
        return not last and node.hex() == self.root and root in {None, self.root}

    def to_json(self) -> str:
        """One line of JSON."""
        return compact_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Proof:
        """What `to_json` wrote.

        Raises:
            ConfigurationError: it is not a proof.
        """
        try:
            said = json.loads(text)
            path = tuple(bytes.fromhex(one).hex() for one in said["path"])
            texts = {name: str(said[name]) for name in ("record", "root", "month")}
            texts["record"].encode()  # half a character has no bytes
            return cls(index=int(said["index"]), size=int(said["size"]), path=path, **texts)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ConfigurationError(
                "That is not a proof: give the line of JSON that `tokenmeter archive prove` printed."
            ) from error
