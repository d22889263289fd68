"""What a record does to counters and holds, and what a journal and its book know of each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

from tokenmeter.ledger import Claim, CounterKey, is_own, new_id
from tokenmeter.stores.base import CapReachedError
from tokenmeter.stores.definitions import Definitions
from tokenmeter.stores.encoding import encode_json, quoted
from tokenmeter.stores.live import Slot
from tokenmeter.stores.trouble import Trouble
from tokenmeter.usage import Usage
from tokenmeter.values import dataclass

T = TypeVar("T")

#: A counter that a call claims, its limit (None: it only counts), and the amount to hold.
SlotClaim = tuple[Slot, int | None, int]
#: What a settlement adds to a counter.
Post = tuple[Slot, int]


class NewHold(NamedTuple):
    """A hold that is to be made.

    Attributes:
        hold_id: Its identity.
        expires_at: Microseconds since the epoch.
        claims: In the order in which a refusal is to be looked for; none for a call that is only to be known of, should
            its process die.
        record: See `hold_record`.
    """

    hold_id: str
    expires_at: int
    claims: Sequence[SlotClaim]
    record: bytes


class HoldGoneError(Exception):
    """The hold may have expired and been swept; nothing was written. `Journal.post` finds out."""


class OutdatedError(Exception):
    """What a call goes by may have changed since it was worked out; nothing was written."""


class Standing(Protocol):
    """One state of the book: what live counters are made from."""

    #: Segment -> how far it is folded.
    places: Mapping[int, int]

    def settled(self, floor: int, also: Collection[CounterKey]) -> dict[CounterKey, int]:
        """Settled amounts: of windows that had not ended at `floor`, and of the counters in `also`."""
        ...

    def holds(self) -> dict[str, Sequence[Sequence[Any]]]:
        """Open holds: identity -> ``[[budget, scope, window start, window end, amount, limit], ...]``."""
        ...


class Book(Protocol):
    """What an engine does for its journal."""

    @property
    def identity(self) -> bytes:
        """The ledger's own 16 bytes."""
        ...

    @property
    def trouble(self) -> Trouble:
        """What keeps records from being folded, if anything does."""
        ...

    def moved(self) -> str | None:
        """What is to be told of a ledger that went elsewhere; None of one that is where it was."""
        ...

    def file(self) -> tuple[int, int]:
        """Device and inode of the ledger file, or what else tells that it is still the same.

        Raises:
            StoreUnavailableError: it is gone, or another ledger is in its place.
        """
        ...

    def stand(self, work: Callable[[Standing], T]) -> T:
        """Run `work` on one state of the book."""
        ...

    def find_name(self, kind: str, value: str) -> str | None:
        """Digest of a name that is in the book."""
        ...

    def fold(self) -> int:
        """Move what is in the tail into the book; how many records."""
        ...

    def has_entry(self, entry_id: str, dedup_key: str | None) -> bool:
        """Whether the entry or its bill is in the book."""
        ...

    def known(self, entry_ids: Sequence[str], dedup_keys: Sequence[str | None]) -> tuple[set[str], set[str]]:
        """Those of the identities, and those of the keys, that are in the book: one may read like another's other."""
        ...

    def hold(self, hold_id: str) -> Sequence[Sequence[Any]] | None:
        """Claims of an open hold that is in the book."""
        ...


@dataclass(frozen=True, slots=True)
class Posted:
    """What `Journal.post` did: see `tokenmeter.stores.base.Settlement`; `reached` says where counters stand now."""

    recorded: bool
    hold_found: bool = False
    reached: tuple[Post, ...] = ()


class Shared(ABC):
    """What the records of a ledger have in common, as one process knows it: definitions, and a slot for each counter.

    Args:
        find: See `Definitions`.
        define: See `Definitions`.

    Attributes:
        definitions: Digests of what records share.
        owner: This process, as the records of its holds name it: see `process_name` and `quoted`.
        skew_us: The ledger's clock less this machine's, in microseconds.
    """

    owner: bytes
    skew_us: int = 0

    def __init__(self, find: Callable[[str, str], str | None], define: Callable[[Sequence[bytes]], None]) -> None:
        self.definitions = Definitions(find, define)
        self._slots: dict[CounterKey, Slot] = {}

    # -- what a kind of journal does

    @property
    @abstractmethod
    def generation(self) -> int:
        """Changes when a plan may be out of date."""

    @abstractmethod
    def reserve(self, hold: NewHold, *, generation: int | None = None) -> None:
        """Hold every claim or none. What is held outlives the process when this returns.

        Args:
            hold: What to hold.
            generation: That of what the claims go by; None = any.

        Raises:
            CapReachedError: a claim does not fit; nothing was held.
            OutdatedError: the ledger's generation is another; nothing was held.
            StoreUnavailableError: it cannot be known whether it fits.
            StoreBusyError: others would have to be waited for, and this thread must not; nothing was held.
        """

    @abstractmethod
    def release(self, hold_id: str) -> bool:
        """Free a hold without an entry; False when there is none."""

    @abstractmethod
    def extend(self, hold_id: str, expires_at: int) -> bool:
        """Move a hold's expiry (microseconds since the epoch); False when there is none."""

    @abstractmethod
    def note(self, hold_id: str, effects: bytes) -> bool:
        """Write what a hold says of its call (`note_effects`, `name_effects`); False when this process has none."""

    # -- what all have

    def slot(self, key: CounterKey, window_end: int | None = None) -> Slot:
        """The counter of `key`. One object per counter, so that its `alert_at` is the process's."""
        slot = self._slots.get(key)
        if slot is None or slot.window_end != window_end:
            if len(self._slots) >= Definitions.MOST:
                self._slots = {}
            slot = self._slots[key] = Slot(key, window_end)
        return slot

    def claims(self, rows: Sequence[Sequence[Any]]) -> tuple[SlotClaim, ...]:
        """Claims as effects say them: ``[[budget, scope, window start, window end, amount, limit], ...]``."""
        return tuple(
            (self.slot(CounterKey(budget, scope, start), end), limit, amount)
            for budget, scope, start, end, amount, limit in rows
        )


def refuse(slot: Slot, limit: int, amount: int, settled: int, reserved: int) -> NoReturn:
    """Stop a claim that does not fit.

    Raises:
        CapReachedError: as asked for.
    """
    raise CapReachedError(Claim(slot.key, limit, amount, slot.window_end), settled, reserved)


def claim_effects(hold: NewHold) -> bytes:
    """What making a hold does."""
    rows = b""
    for slot, limit, amount in hold.claims:
        rows += b",%b%d,%b]" % (slot.begin, amount, b"null" if limit is None else b"%d" % limit)
    return b'{"hold":%b,"claims":[%b]}' % (quoted(hold.hold_id), rows[1:])


def extend_effects(hold_id: str, expires_at: int) -> bytes:
    """What moving a hold's expiry does."""
    return b'{"extend":%b,"until":%d}' % (quoted(hold_id), expires_at)


def note_effects(hold_id: str, usage: Usage) -> bytes:
    """What a hold is to say of its call from now on."""
    return encode_json(
        {"note": hold_id, "quantities": dict(usage.quantities), "reasoning": usage.reasoning_output_tokens}
    )


def name_effects(hold_id: str, response_id: str) -> bytes:
    """By which id the answer of a hold's call is to be read."""
    return encode_json({"name": hold_id, "response_id": response_id})


def settle_effects(hold_id: str | None, posts: Sequence[Post]) -> bytes:
    """What settling does: frees the hold, if there is one, and adds to counters."""
    rows = b""
    for slot, amount in posts:
        rows += b",%b%d]" % (slot.begin, amount)
    if hold_id is None:
        return b'{"post":[%b]}' % rows[1:] if rows else b""
    return b'{"free":%b,"post":[%b]}' % (quoted(hold_id), rows[1:])


def apply_effects(effects: Mapping[str, Any], holds: dict[str, list[Any]], added: dict[CounterKey, int]) -> None:
    """Do to open holds and to what is added to counters as the effects of a frame say."""
    if "hold" in effects:
        holds.setdefault(effects["hold"], effects["claims"])
    if "free" in effects:
        holds.pop(effects["free"], None)
    for budget, scope, start, _, amount in effects.get("post", ()):
        key = CounterKey(budget, scope, start)
        added[key] = added.get(key, 0) + amount


class WrittenIds:
    """Which entries this process has written: about one of its own that is not among them, nobody has to be asked.

    The last `MOST` are remembered, and as many before them, since an import makes its entries a batch ahead: what is
    written within `MOST` entries of being made is known to be new.
    """

    MOST = 20_000

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._before: set[str] = set()
        self._known_since = self._since = new_id()

    def is_new(self, entry_id: str) -> bool:
        """Whether nobody can have written this entry yet."""
        if len(self._ids) >= self.MOST:
            self._before, self._ids = self._ids, set()
            self._known_since, self._since = self._since, new_id()
        return (
            is_own(entry_id)
            and entry_id > self._known_since
            and entry_id not in self._ids
            and entry_id not in self._before
        )

    def first_time(self, entry_id: str) -> bool:
        """`is_new`; it counts as written then."""
        if not self.is_new(entry_id):
            return False
        self._ids.add(entry_id)
        return True

    def forget(self, entry_id: str) -> None:
        """It was not written after all."""
        self._ids.discard(entry_id)
        self._before.discard(entry_id)
