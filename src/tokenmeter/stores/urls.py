"""Where a ledger lies: its URL as it may be shown, its file made private and locked, and whether it is on a network."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import tempfile
from pathlib import Path

from tokenmeter.errors import StoreUnavailableError
from tokenmeter.interrupts import let_interrupt_through
from tokenmeter.processes import lock_file, unlock_file

_SECRET = re.compile(r"(?i)([a-z_]*(?:password|secret)\s*=\s*)[^&\s]*")
_END_OF_HOST = re.compile(r"[/?#]")


def redacted(url: str) -> str:
    """`url` with ``***`` for every secret in it; where a URL is malformed it rather hides too much."""
    scheme, mark, rest = url.partition("://")
    if mark:
        rest = _without_password(rest)
    return _SECRET.sub(r"\1***", scheme + mark + rest)


def _without_password(rest: str) -> str:
    host = _END_OF_HOST.split(rest, maxsplit=1)[0]
    split_password = host and "@" not in host and "@" in rest  # it has an unescaped / ? or #
    user, at, place = (rest if split_password else host).rpartition("@")
    tail = "" if split_password else rest[len(host) :]
    name, colon, _ = user.partition(":")
    return f"{name}:***{at}{place}{tail}" if colon else rest


#: Types in /proc/self/mountinfo on which shared memory between machines, and so WAL, does not work.
_NETWORK_TYPES = {
    *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"),
    *("ocfs2", "orangefs", "smb2", "smb3", "smbfs", "virtiofs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs"),
    *("fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.juicefs", "fuse.davfs2"),
}
_MOUNTS = Path("/proc/self/mountinfo")
#: How a blank, a tab, a line's end and a backslash stand in a path there.
_ESCAPED = re.compile(r"\\([0-7]{3})")


def make_private_file(path: Path, ledger: Path | None = None) -> None:
    """Make `path` (mode 0600, or a ledger's) and its missing directories (0700). An existing file is never opened here.

    Raises:
        OSError: it cannot be made, or it is a directory.
    """
    if path.is_dir():
        raise IsADirectoryError(21, "is a directory; name a file", str(path))
    if path.exists():
        return
    missing = [folder for folder in path.parents if not folder.exists()]
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
        if ledger is not None:
            _share(descriptor, ledger)
        os.close(descriptor)


def open_beside(path: Path, ledger: Path, flags: int = 0) -> int:
    """Open a file that lies beside a ledger, for reading and writing; make it if there is none.

    Raises:
        OSError: it cannot be opened or made.
    """
    flags |= os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
        try:  # made by its own name alone: behind a link it would be given to the ledger's owner wherever that leads
            return make_beside(path, ledger, flags)
        except FileExistsError:
            if path.is_symlink():
                raise


def make_beside(path: Path, ledger: Path, flags: int) -> int:
    """Make a file beside a ledger, and open it.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be made.
    """
    descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    _share(descriptor, ledger)
    return descriptor


def _share(descriptor: int, ledger: Path) -> None:
    """Let whoever may use a ledger use what lies beside it, as SQLite does with its log.

    Else an administrator who only looks at a ledger, or one of a group that shares it, leaves files there that stop all
    others.
    """
    if hasattr(os, "fchmod"):
        # There may be no ledger yet, or it is of a group that this user is not in.
        with contextlib.suppress(OSError):
            like = ledger.stat()
            os.fchown(descriptor, like.st_uid if os.geteuid() == 0 else -1, like.st_gid)
            os.fchmod(descriptor, like.st_mode & 0o666)


def is_network(path: Path, mounts: Path = _MOUNTS) -> bool:
    """Whether `path` lies on a file system that several machines may share. False where the system does not tell."""
    return _mount_of(path, mounts)[1] in _NETWORK_TYPES


def can_share_memory(folder: Path) -> bool:
    """Whether processes can share memory by a file in `folder`: some file systems (FUSE, of containers) refuse it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(mmap.PAGESIZE)
            mmap.mmap(file.fileno(), mmap.PAGESIZE).close()
    except OSError as error:  # what else fails is told where the ledger is opened
        return error.errno not in {errno.ENODEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
    return True


def is_mounted_alone(path: Path, mounts: Path = _MOUNTS) -> bool:
    """Whether `path` itself is mounted: what lies beside it here does not lie beside the same file elsewhere."""
    return _mount_of(path, mounts)[0] == str(path)


def _mount_of(path: Path, mounts: Path) -> tuple[str, str]:
    """Where the file system is mounted that `path` lies on, and its type; two empty texts where nobody tells."""
    try:
        rows = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return "", ""
    best, kind = "", ""
    for row in rows:
        before, _, after = row.partition(" - ")
        point = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), before.split()[4])
        if len(point) >= len(best) and (path.is_relative_to(point)):
            best, kind = point, after.split()[0]
    return best, kind


def unusable(path: Path, error: OSError) -> StoreUnavailableError:
    """Why no ledger can be made or used at `path`; an error that a handler of a signal raised is raised."""
    let_interrupt_through(error)
    reason = f"{errno.errorcode.get(error.errno or 0, type(error).__name__)} ({error.strerror})"
    return StoreUnavailableError(
        f"{error.filename or path} cannot be used: {reason}. {advice(error)} Or name another file in "
        "configure(store=...) or TOKENMETER_STORE."
    )


def unwritable(path: Path, error: OSError) -> StoreUnavailableError:
    """Why a file of a ledger that is in use cannot be written; an error that a handler of a signal raised is raised."""
    let_interrupt_through(error)
    return StoreUnavailableError(f"{path} cannot be written: {error.strerror or error}. {advice(error)}")


_NO_LOCKS = "This file system has no locks or no shared memory: put the ledger on a local disk, or use PostgreSQL."
_NO_RIGHTS = "Check the permissions of the file and of its directory."
_ADVICE = {
    "EACCES": _NO_RIGHTS,
    "EPERM": _NO_RIGHTS,
    "ENOSPC": "Free some space on its disk.",
    "EDQUOT": "The quota of its owner is used up: free some space, or have it raised.",
    "EFBIG": "It may not grow any more: raise the limit of this program (ulimit -f).",
    "EROFS": "The file system can only be read: mount it for writing.",
    "EIO": "The disk fails: look into the system's log, and move the ledger to another one.",
    "EMFILE": "This program has too many files open: close some, or raise its limit (ulimit -n).",
    "ENFILE": "The system has too many files open.",
    **dict.fromkeys(("ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "ENODEV", "EINVAL"), _NO_LOCKS),
}


def advice(error: OSError) -> str:
    """What to do about an error of the file system."""
    return _ADVICE.get(errno.errorcode.get(error.errno or 0, ""), "Check its directory and its disk.")


class SideLock:
    """An advisory `flock` beside a ledger. It belongs to the open file, so a crash of its holder frees it at once."""

    def __init__(self, ledger: Path) -> None:
        self._ledger, self._path = ledger, Path(f"{ledger}-lock")
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free; never waits."""
        if self._descriptor is None:
            self._descriptor = open_beside(self._path, self._ledger)
        return lock_file(self._descriptor, wait=False)

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            unlock_file(self._descriptor)

    def close(self) -> None:
        """Let go of the file. In a forked child this leaves the parent's lock alone."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def restoring_path(path: Path) -> Path:
    """How the name of a file begins that is to become the ledger at `path` once all of a backup is in it."""
    return Path(f"{path}.restored-")
