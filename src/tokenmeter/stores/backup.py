"""A ledger as one file to keep elsewhere, and back. The ledger goes on meanwhile."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import time
from collections.abc import Callable, Generator
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError, LedgerError, StoreUnavailableError
from tokenmeter.ledger import utcnow
from tokenmeter.paths import expand, full_path, remove_abandoned
from tokenmeter.processes import CAN_SHARE
from tokenmeter.stores import open_store, store_path
from tokenmeter.stores.audit import audit
from tokenmeter.stores.base import Store, Verification
from tokenmeter.stores.copying import End, Progress, carry, hash_at
from tokenmeter.stores.engine import read_head
from tokenmeter.stores.live import lock_live, remove_live
from tokenmeter.stores.sqlite import SQLiteStore
from tokenmeter.stores.sqlite.end import LOGS, LedgerFile, SQLiteEnd, copy_file, refuse_left_files, take_definitions
from tokenmeter.stores.tail import owner_of, segment_path, segments
from tokenmeter.stores.urls import SideLock, restoring_path
from tokenmeter.values import dataclass

#: Seconds to wait for a program that has the ledger locked.
_PATIENCE = 10


@runtime_checkable
class Portable(Protocol):
    """A store that can be an end of a copy."""

    def end(self) -> End:
        """Its tables."""
        ...


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was made, and what a look at it found.

    Attributes:
        path: The file.
        bytes: Its size.
        entries: How many entries it has.
        documents: How many documents it has.
        head: Hash of its last record (hex): keep it elsewhere, and ``verify(head=...)`` proves a ledger by it.
        verification: What `tokenmeter.verify` says of the file; None when that was left out. A fault in it is a fault
            of the ledger: the backup is true to it.
    """

    path: Path
    bytes: int
    entries: int
    documents: int
    head: str
    verification: Verification | None


@dataclass(frozen=True, slots=True)
class Restored:
    """A ledger that was restored.

    Attributes:
        url: Where it is.
        entries: How many entries it has now.
        head: Hash of its last record (hex).
        recovered: Entries that the backup did not have, and that were still in the tail beside the ledger.
        replaced: Where the file that was there before lies now; None when there was none.
    """

    url: str
    entries: int
    head: str
    recovered: int
    replaced: Path | None


@tell_wrong_arguments
def back_up(
    store: Store, target: str | Path, *, overwrite: bool = False, check: bool = True, progress: Progress | None = None
) -> Backup:
    """Write the whole ledger to one file, while programs go on recording.

    The file is a ledger itself: entries and documents in their chain, names, budgets with their history, counters,
    thresholds that were crossed, calls under way, and the secret for fingerprints of API keys. Keep it as you keep the
    ledger. What has been recorded before the backup begins is in it, also what waits in the tail.

    Args:
        store: The ledger, in a file or on a server.
        target: The file.
        overwrite: Whether a file that is there may be replaced; it stays until the new one is complete.
        check: Whether the chain and the sums of the backup are walked, as `verify` does. Its pages are looked at
            always.
        progress: Told now and then how many records are done, and of how many.

    Returns:
        What is in it.

    Raises:
        ConfigurationError: the file is there already, or is the ledger itself; or its folder is not there.
        LedgerError: a program has a ledger of the target's name open, or did not close it.
        StoreUnavailableError: the ledger cannot be read as a whole, the file not be written, or it is damaged.
    """
    path = expand(target)
    if isinstance(store, SQLiteStore) and path.resolve() == store.path:
        raise ConfigurationError(f"{path} is the ledger itself; name another file for the backup.")
    if path.exists() and not overwrite:
        raise ConfigurationError(f"{path} exists; name another file, or allow it to be replaced (--overwrite).")
    if not path.parent.is_dir():  # a slip of the pen, or a disk that is not there: a backup is not made beside it
        raise ConfigurationError(f"The folder {str(path.parent)!r} does not exist; make it first.")
    refuse_left_files(path)
    remove_abandoned(Path(f"{path}.partial-"))
    partial = _unique(f"{path}.partial-")
    try:
        _write(store, partial, progress)
        made = _look(partial, path, check=check, progress=progress)
        refuse_left_files(path)  # somebody may have opened what was there meanwhile
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return made


def _unique(beginning: str) -> Path:
    """A name that nobody else uses now: of two threads, or of two containers where both are process 1."""
    return Path(f"{beginning}{os.getpid()}-{os.urandom(4).hex()}")


def _write(store: Store, target: Path, progress: Progress | None) -> None:
    if isinstance(store, SQLiteStore):
        end = store.end()
        end.fold()
        copy_file(end.read, target)
        return
    with _unfinished(target) as made:
        carry(_end_of(store), made, whole=True, progress=progress)


def _end_of(store: Store) -> End:
    if not isinstance(store, Portable):
        raise ConfigurationError(f"A ledger at {store.url} cannot be copied.")
    return store.end()


@contextlib.contextmanager
def _unfinished(target: Path) -> Generator[SQLiteEnd]:
    """A new file to copy to; in one piece when this ends."""
    made = SQLiteEnd.make(target, os.urandom(16))
    try:
        yield made
    finally:
        made.seal()


def _look(file: Path, path: Path, *, check: bool, progress: Progress | None) -> Backup:
    opened = LedgerFile(file)
    try:
        opened.check_pages()
        entries, documents, head = opened.read(_standing)
        found = audit(opened, opened.archives, progress=progress) if check else None
    finally:
        opened.close()
    return Backup(path, file.stat().st_size, entries, documents, head, found)


def _standing(connection: Any) -> tuple[int, int, str]:
    entries, documents, digest = read_head(connection, "entries, documents, hash")
    return entries, documents, bytes(digest).hex()


def restore(
    backup: str | Path,
    target: str | Path | None = None,
    *,
    overwrite: bool = False,
    check: bool = True,
    progress: Progress | None = None,
) -> Restored:
    """Make a ledger of a backup.

    What the tail beside the ledger still holds of the same ledger is taken in after it: entries that were recorded
    since the backup are then not lost. A ledger that was there is put aside, never removed.

    Args:
        backup: A file that `back_up` wrote.
        target: URL of the ledger, or a file's path: where programs look for it. Default: where ``store=None`` is.
        overwrite: Whether a ledger file that is there may be put aside. A ledger on a server is never replaced: name an
            empty schema, or that of a restoration of this file that was broken off, which goes on.
        check: Whether the chain and the sums of the backup are walked first.
        progress: Told now and then how many records are done, and of how many.

    Raises:
        ConfigurationError: a ledger is there already.
        LedgerError: the backup has faults; `check=False` restores it all the same.
        StoreUnavailableError: the backup is damaged or no ledger, or the target cannot be written.
    """
    file = LedgerFile(expand(backup))
    try:
        file.check_pages()
        if check:
            _refuse_faults(audit(file, file.archives, progress=progress), file.path)
        entries, _, _ = file.read(_standing)
        path = store_path(target)
        if path is None:
            replaced = None
            _restore_server(file, str(target), progress)
        else:
            replaced = _restore_file(file, path, overwrite=overwrite)
    finally:
        file.close()
    store = open_store(target)
    try:
        facts = store.health().facts  # takes in what the tail holds
        return Restored(store.url, facts["entries"], facts["head"], facts["entries"] - entries, replaced)
    finally:
        store.close()


def _refuse_faults(found: Verification, path: Path) -> None:
    if not found.ok:
        first = found.faults[0]
        mend = "Take an older backup, or restore it as it is, without the check (--quick)."
        if {fault.kind for fault in found.faults} <= {"archive", "unchecked"}:  # nothing is wrong with the backup
            mend = "For the latter, restore the backup first as it is, without the check (--quick)."
        raise LedgerError(
            f"{path} has {counted(len(found.faults), 'fault')}, the first: {first.where}: {first.detail} {mend}"
        )


def _restore_server(file: LedgerFile, url: str, progress: Progress | None) -> None:
    store = open_store(url)
    try:
        end = _end_of(store)
        if not _goes_on(file, end):
            raise ConfigurationError(
                f"{store.url} has a ledger with records, and one on a server is never replaced: name an empty schema "
                "(?schema=NAME), and move programs to it."
            )
        carry(file, end, whole=True, progress=progress)
    finally:
        store.close()


def _goes_on(file: LedgerFile, end: End) -> bool:
    """Whether a restoration of the file may begin at a server, or go on there: one was broken off, or is done."""
    seq, digest, identity = end.read(lambda rows: read_head(rows, "seq, hash, identity"))
    ours, head = file.read(lambda rows: read_head(rows, "identity, hash"))
    # The identity comes with the last of it: a ledger that has it may have gone on since.
    done = bytes(identity) == bytes(ours)
    due = bytes(head) if done else file.read(lambda rows: hash_at(rows, seq))
    return not seq or bytes(digest) == due


def _restore_file(file: LedgerFile, path: Path, *, overwrite: bool) -> Path | None:
    path = full_path(path)
    if path == file.path.resolve():
        raise ConfigurationError(f"{path} is the backup itself; name the ledger to restore.")
    if path.exists() and not overwrite:
        raise ConfigurationError(
            f"There is a ledger at {path}; nothing was changed. Allow it to be put aside with --overwrite."
        )
    remove_abandoned(restoring_path(path))
    fresh = _unique(str(restoring_path(path)))
    copy_file(lambda work: work(file.read(lambda connection: connection)), fresh)
    try:
        identity = file.read(lambda connection: bytes(read_head(connection, "identity")[0]))
        with _locked(path):
            if path.exists() and any(owner_of(segment_path(path, number)) == identity for number in segments(path)):
                take_definitions(path, fresh)
            replaced = _put_aside(path, identity, utcnow())
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return replaced


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    """Nobody folds or holds anything meanwhile; then programs that have the ledger open begin as if started anew."""
    lock, counters = SideLock(path), Path(f"{path}-live")
    live: int | None = None
    until = time.monotonic() + _PATIENCE

    def pause() -> None:
        if time.monotonic() > until:
            raise StoreUnavailableError(f"{path} is being written to without a pause; stop programs that use it.")
        time.sleep(0.01)  # seconds, not money

    try:
        while CAN_SHARE and live is None:  # first, as a program that makes its counters anew and so reads the ledger
            live = lock_live(counters, path)
            if live is None:
                pause()
        while not lock.acquire():
            pause()
        yield
    finally:
        lock.release()
        lock.close()
        if live is not None:
            remove_live(live, counters)


def _put_aside(path: Path, identity: bytes, now: datetime) -> Path | None:
    """Move a ledger away, with its logs; its tail stays where it belongs to the same ledger."""
    beginning = f"{path}.replaced-{now:%Y%m%dT%H%M%S}"
    tried = (Path(f"{beginning}-{number}" if number else beginning) for number in itertools.count())
    taken = {file.name for file in path.parent.glob(f"{glob.escape(Path(beginning).name)}*")}
    # Of several in one second none is lost, nor gets what lies beside another.
    aside = next(one for one in tried if not any(name.startswith(one.name) for name in taken))
    rename: Callable[[Path, Path], object] = os.replace
    for number in segments(path):
        if owner_of(segment_path(path, number)) not in {identity, None}:
            rename(segment_path(path, number), segment_path(aside, number))
    Path(f"{path}-shm").unlink(missing_ok=True)
    for end in LOGS:
        if Path(f"{path}{end}").exists():
            rename(Path(f"{path}{end}"), Path(f"{aside}{end}"))
    if not path.exists():
        return None
    rename(path, aside)
    return aside
