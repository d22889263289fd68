"""What calls write to on this host: the tail, from which a thread sends to the server, which counts the caps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from tokenmeter.errors import StoreBusyError, StoreError, StoreUnavailableError
from tokenmeter.ledger import Entry, Posting, ThresholdCrossing, is_own
from tokenmeter.processes import Background, is_on_event_loop, may_wait
from tokenmeter.stores.base import CapReachedError, LockedError, Settlement
from tokenmeter.stores.effects import (
    HoldGoneError,
    NewHold,
    OutdatedError,
    Post,
    WrittenIds,
    claim_effects,
    extend_effects,
    settle_effects,
)
from tokenmeter.stores.live import STATE, SWEPT, Live
from tokenmeter.stores.postgres.book import PostgresBook
from tokenmeter.stores.postgres.fold import json_text, parts
from tokenmeter.stores.postgres.leases import LeasingWriter
from tokenmeter.stores.postgres.spool import Sender
from tokenmeter.stores.record import encode_entry, kept_key
from tokenmeter.stores.tail import frame, wrote_nothing

_NETWORK = "The PostgreSQL server has to be asked; call again from a thread."
#: How often a process that makes calls asks for changed budgets, in seconds. What was said twice as long ago, a second,
#: is not gone by any more: a process that was idle asks before its next call.
_ASK_GENERATION_EVERY = 0.5
#: Most seconds that a call waits for that answer; then it goes by the one before.
_ANSWER_SECONDS = 0.25
#: A generation that no plan is of.
_NOBODYS = -1
#: Most seconds to wait until other hosts have given back what would make a claim fit.
_RECALL_SECONDS = 4.0


class ServerJournal(LeasingWriter):
    """The tail of one host. Safe for threads and processes.

    What only has to be written never waits for the server. What needs it raises `StoreBusyError` where a
    thread must not wait.

    Args:
        book: The server's.
        send: Makes sure that the server can be used, and folds.
        most_bytes: How large the tail may grow while the server is away.
    """

    def __init__(self, book: PostgresBook, send: Callable[[], object], *, most_bytes: int) -> None:
        self._fold, self._most = send, most_bytes
        super().__init__(book)
        self._locked(self._forget_holds)

    def _start(self) -> None:
        super()._start()
        self._sender = Sender(self.send, self._give_back_lapsed, self._until_lapse)
        self._background = Background()
        self._written = WrittenIds()
        self._sent = -1
        self._budgets: int | None = None
        self._budgets_due = 0.0

    def after_fork_in_child(self) -> None:
        """The parent's holds are its own, its thread is not here."""
        self._start()

    # -- the clock, and what plans go by

    @property
    def skew_us(self) -> int:  # type: ignore[override]
        """See `tokenmeter.stores.effects.Shared`."""
        return self._server.pool.skew_us

    def _now(self) -> int:
        return time.time_ns() // 1000 + self.skew_us

    @property
    def generation(self) -> int:
        """Changes when a plan may be out of date; no plan's where the server has to be asked first, from a thread.

        A change by another host is known after a second.
        """
        if self._must_ask(waits=may_wait() and not is_on_event_loop()):
            return _NOBODYS
        return self._known_generation

    @property
    def _known_generation(self) -> int:
        return super().generation + (self._budgets or 0)

    def budgets(self) -> int:
        """How many budgets and changes of budgets are filed, as the server said a moment ago.

        Only the first question waits for the server, and one after a while without any; else a thread asks.

        Raises:
            StoreBusyError: the server has to be asked, and this thread must not wait.
        """
        known = self._budgets
        if known is None:
            return self.ask_budgets()
        if self._must_ask(waits=may_wait()):
            raise StoreBusyError(_NETWORK)
        return self._budgets or known

    def _must_ask(self, *, waits: bool) -> bool:
        """Have the server asked when it is time to; whether the last answer is too old, and none was waited for."""
        now = time.monotonic()
        if self._budgets is None or now < self._budgets_due:
            return False
        old = now >= self._budgets_due + _ASK_GENERATION_EVERY and not self._server.trouble
        if old and not waits:
            return True
        self._budgets_due = now + _ASK_GENERATION_EVERY
        if not self._background.is_busy:
            self._background.run("generation", self._ask_quietly)
        if old:
            self._background.finish(_ANSWER_SECONDS)
        return False

    def _ask_quietly(self) -> None:
        with contextlib.suppress(Exception):  # the server is away: what is known holds on
            self.ask_budgets()

    def ask_budgets(self) -> int:
        """The same, from the server."""
        found: int = self._server.fetch("SELECT budget_generation()")[0][0]
        if found != self._budgets:
            self.definitions.forget()  # a name may have been erased
        self._budgets, self._budgets_due = found, time.monotonic() + _ASK_GENERATION_EVERY
        return found

    def _find_name(self, kind: str, value: str) -> str | None:
        if not may_wait():
            raise StoreBusyError(_NETWORK)
        return super()._find_name(kind, value)

    # -- the tail

    def append(self, record: bytes, effects: bytes = b"", *, generation: int | None = None) -> None:
        """Write a record. It is safe from everything but a power cut when this returns. Takes no lock.

        Raises:
            OutdatedError: what it goes by is not of the ledger's `generation` any more; nothing was written.
            StoreUnavailableError: it cannot be written anywhere.
        """
        self._check(generation)
        self._write_framed(frame(record, self._with_heard(effects) if b'"record":"entry"' in record[:40] else effects))

    def _with_heard(self, effects: bytes) -> bytes:
        """The effects of an entry with what of budgets it is counted by, which may be old when the server has it."""
        policy = self._server.policy
        if policy is None or not (heard := policy.heard):
            return effects
        return b'{"heard":%d,%b' % (heard, effects[1:]) if effects else b'{"heard":%d}' % heard

    def _check(self, generation: int | None, *, before_call: bool = False) -> None:
        if generation is not None and generation != (self.generation if before_call else self._known_generation):
            raise OutdatedError

    def _write_framed(self, framed: bytes) -> None:
        book = self._server
        if book.trouble and book.waiting() > self._most:
            raise StoreUnavailableError(
                f"The spool of {book.pool.address.url} is full ({self._most >> 20} MiB) and the server is away: the "
                "entry was not recorded. Add spool_mb=N to the URL for more room."
            )
        self._write(framed)
        self.wake()

    def wake(self) -> None:
        """Have what waits sent."""
        self._sender.wake()

    def send(self) -> None:
        """Send what waits, from this thread.

        Raises:
            StoreError: it cannot be sent now; it waits.
        """
        made = self.definitions.made
        self._fold()
        self._sent = made

    def close(self) -> None:
        """Give back leases, and let go of thread and files; using the journal again opens them again."""
        self._sender.close()
        self._background.finish(_ANSWER_SECONDS)
        if self._lessee:
            with contextlib.suppress(StoreError):  # they lapse, and go back when their holds have expired
                self.give_back()
        super().close()

    # -- after a call

    def settle(
        self,
        record: bytes,
        posts: Sequence[Post] = (),
        hold_id: str | None = None,
        *,
        generation: int | None = None,
    ) -> tuple[Post, ...]:
        """Write an entry's record, free its hold and move the counters.

        Returns:
            Slots whose settled amount, by all that this process knows, is at their `alert_at` or above.

        Raises:
            HoldGoneError: the hold may be gone.
            OutdatedError: see `append`.
            StoreUnavailableError: nothing was written.
        """
        if hold_id is not None and not self._is_held(hold_id):
            raise HoldGoneError(hold_id)
        self.append(record, _with_thresholds(settle_effects(hold_id, posts), posts), generation=generation)
        if hold_id is not None:
            self._holds.pop(hold_id, None)
        settled = self._server.settled
        reached: list[Post] = []
        for slot, amount in posts:
            known = settled.get(slot.key)
            if known is None:
                reached.append((slot, 0))
            else:
                settled[slot.key] = known = known + amount
                if known >= slot.alert_at:
                    reached.append((slot, known))
        return tuple(reached)

    def post(
        self,
        entry: Entry,
        postings: Sequence[Posting],
        *,
        hold_id: str | None = None,
        only_if_held: bool = False,
    ) -> Settlement:
        """`settle` for any entry: one that may be there already, or whose hold may be gone.

        An entry that may be there already is asked for on the server first. While that is away it counts as recorded,
        and a repetition is found out when it arrives.
        """
        held = hold_id is None or self._is_held(hold_id)
        simple = held and not only_if_held and entry.dedup_key is None
        if not simple and not may_wait():
            raise StoreBusyError(_NETWORK)
        record = encode_entry(entry, self.definitions)
        if not (simple and self._written.first_time(entry.entry_id)):
            if not may_wait():
                raise StoreBusyError(_NETWORK)
            return self._post_known(entry, record, postings, hold_id, only_if_held=only_if_held)
        try:
            self.append(record, _effects(postings, hold_id))
        except StoreUnavailableError as error:
            if wrote_nothing(error):  # when it can be written, the server need not be asked for each that waited
                self._written.forget(entry.entry_id)
            raise
        if hold_id is not None:
            self._holds.pop(hold_id, None)
        return Settlement(recorded=True, crossings=self._crossed(postings), hold_found=hold_id is not None)

    def _post_known(
        self, entry: Entry, record: bytes, postings: Sequence[Posting], hold_id: str | None, *, only_if_held: bool
    ) -> Settlement:
        """Settle an entry that may be in the ledger, or whose hold may be gone."""
        book = self._server
        dedup_key = kept_key(entry.dedup_key)
        try:
            self.send()
            held = hold_id is not None and book.hold(hold_id) is not None
            repeated = book.has_entry(entry.entry_id, dedup_key)
            if repeated or (only_if_held and not held):
                if held and hold_id is not None:
                    self._release_there(hold_id)
                return Settlement(recorded=False, crossings=self.take_crossings(), hold_found=held)
        except StoreUnavailableError:
            if only_if_held:
                raise
            self.append(record, _effects(postings, hold_id, seek=True))
            return Settlement(recorded=True, crossings=self.take_crossings())
        if only_if_held:
            self._locked(Live.mark_swept)
        self.append(
            record, _effects(postings, hold_id if held else None, needed=hold_id if only_if_held else None, seek=True)
        )
        if hold_id is not None:
            self._holds.pop(hold_id, None)
        recorded = True
        with contextlib.suppress(StoreUnavailableError):  # it is written, and arrives
            self.send()
            recorded = book.has_entry(entry.entry_id, None)
        return Settlement(recorded=recorded, crossings=self.take_crossings(), hold_found=held)

    def post_all(self, batch: Sequence[tuple[Entry, Sequence[Posting]]]) -> Sequence[Settlement]:
        """Write many entries at once: all, or none when one cannot be written or the server is away."""
        with self.definitions.meeting((entry for entry, _ in batch), self._server.find_names):
            encoded = [encode_entry(entry, self.definitions) for entry, _ in batch]
        keys = [kept_key(entry.dedup_key) for entry, _ in batch]
        self.send()
        asked = {entry.entry_id for entry, _ in batch if not self._written.is_new(entry.entry_id)}
        known, billed = self._server.known(list(asked), keys)
        fresh: list[bool] = []
        framed: list[bytes] = []
        for (entry, postings), record, key in zip(batch, encoded, keys, strict=True):
            new = entry.entry_id not in known and key not in billed
            fresh.append(new)
            if new:
                known.add(entry.entry_id)
                billed |= {key} if key is not None else set()
                effects = _effects(postings, None, seek=entry.entry_id in asked)
                framed.append(frame(record, self._with_heard(effects)))
        if framed:
            for entry, _ in batch:
                self._written.first_time(entry.entry_id)
            self._write_framed(b"".join(framed))
            self.send()
        late = self.take_crossings()
        last = max((place for place, new in enumerate(fresh) if new), default=0)
        return [Settlement(new, late if place == last else ()) for place, new in enumerate(fresh)]

    def _crossed(self, postings: Sequence[Posting]) -> tuple[ThresholdCrossing, ...]:
        """Crossings to report. The server is asked where a threshold may be behind, by all that this process knows."""
        due = False
        settled, told = self._server.settled, self._server.told
        for posting in postings:
            key, thresholds, known = posting.key, posting.thresholds, settled.get(posting.key)
            if known is None:
                due = due or bool(thresholds)
                continue
            settled[key] = known = known + posting.amount
            due = due or any(one <= known and (key, one) not in told for one in thresholds)
        if due and may_wait() and not self._server.is_jammed:  # then whoever sends hears of it
            with contextlib.suppress(StoreError):
                self.send()
        return self.take_crossings()

    def take_crossings(self) -> tuple[ThresholdCrossing, ...]:
        """Crossings that folds found and nobody has told yet."""
        late, found = self._server.late, list[ThresholdCrossing]()
        with contextlib.suppress(IndexError):  # one by one: a fold may add some in another thread meanwhile
            while late:
                found.append(late.popleft())
        return tuple(found)

    # -- before a call

    def reserve(self, hold: NewHold, *, generation: int | None = None) -> None:
        """As of `Shared`; holding the same again changes nothing, and a hold without claims is one append."""
        if hold.hold_id in self._holds:
            return
        self._check(generation, before_call=True)
        if not hold.claims:
            self.append(hold.record, claim_effects(hold))
            self._holds[hold.hold_id] = hold.expires_at
            return
        settled = self._server.settled  # a call that used more than was held for it may be on its way there
        full = any(
            limit is not None and settled.get(slot.key, 0) + amount > limit for slot, limit, amount in hold.claims
        )
        if not full and is_own(hold.hold_id) and self._spend(hold):
            return
        if not may_wait():
            raise StoreBusyError(_NETWORK)
        try:
            self._hold_there(hold, full=full)
        except LockedError as error:
            self._note_jam(hold, error)
            raise
        self._holds[hold.hold_id] = hold.expires_at

    def _hold_there(self, hold: NewHold, *, full: bool) -> None:
        """Hold on the server; where its counters are `full`, as far as this process knows, what waits is sent first."""
        since = time.monotonic()
        if full or self.definitions.made != self._sent:
            self.send()  # whoever sweeps the hold has to be able to read it
        deadline, tried = 0.0, False
        while True:
            try:
                self._hold(hold, since)
                break
            except CapReachedError as stop:
                deadline = deadline or time.monotonic() + _RECALL_SECONDS  # not before: it may have waited in a crowd
                if not tried and self._server.waiting():
                    self.send()  # it may free room
                elif not self._recall(stop, deadline):
                    raise
                tried = True

    def _is_held(self, hold_id: str) -> bool:
        """Whether nobody can have swept a hold of this process: by its time, nor on this machine by another clock."""
        live = self._live
        if live is not None and not live.there:
            self._renew_if_possible()
            live = self._live
        if live is not None and live.whole and (live.map[SWEPT], live.map[STATE]) != (self._unswept, self._state):
            self._forget_holds(live)
        return self._holds.get(hold_id, 0) > self._now()

    def release(self, hold_id: str) -> bool:
        """Free a hold without an entry; False when there is none."""
        if self._is_held(hold_id):
            self._holds.pop(hold_id, None)
            self.append(b"", settle_effects(hold_id, ()))
            return True
        if not may_wait():
            raise StoreBusyError(_NETWORK)
        self.send()
        return self._release_there(hold_id)

    def _release_there(self, hold_id: str) -> bool:
        self._holds.pop(hold_id, None)
        return bool(self._server.fetch("SELECT release(?)", (hold_id,))[0][0])

    def extend(self, hold_id: str, expires_at: int) -> bool:
        """Move a hold's expiry (microseconds since the epoch); False when there is none."""
        if self._is_held(hold_id):
            self._holds[hold_id] = expires_at
            self.append(b"", extend_effects(hold_id, expires_at))
            return True
        if not may_wait():
            raise StoreBusyError(_NETWORK)
        self.send()
        return bool(self._server.fetch("SELECT extend(?, ?)", (hold_id, expires_at))[0][0])

    def note(self, hold_id: str, effects: bytes) -> bool:
        """See `Shared`: one append."""
        if hold_id not in self._holds:
            return False
        self.append(b"", effects)
        return True


def _with_thresholds(effects: bytes, posts: Sequence[Post]) -> bytes:
    """The effects of a settlement with the thresholds of its counters, for the fold to look at.

    What a process knows of a counter may lack what others spent since its last fold: who passes a threshold need not
    be the one who sees it.
    """
    if not any(slot.thresholds for slot, _ in posts):
        return effects
    alert = json_text([slot.thresholds for slot, _ in posts]).encode()
    return b'%b,"alert":%b}' % (effects[:-1], alert)


def _effects(
    postings: Sequence[Posting], hold_id: str | None, *, needed: str | None = None, seek: bool = False
) -> bytes:
    """What an entry does to counters and holds.

    Args:
        postings: What it adds to counters, with the thresholds that the fold looks at.
        hold_id: The hold that it frees.
        needed: The hold without which it is not taken.
        seek: Whether somebody else may have written it, too.
    """
    effects: dict[str, Any] = {"seek": True} if seek else {}
    if hold_id is not None:
        effects["free"] = hold_id
    if needed is not None:
        effects["needed"] = needed
    if postings:
        effects["post"] = [[*parts(one.key), one.window_end, one.amount] for one in postings]
        if any(one.thresholds for one in postings):
            effects["alert"] = [list(one.thresholds) for one in postings]
    return json_text(effects).encode() if effects else b""
