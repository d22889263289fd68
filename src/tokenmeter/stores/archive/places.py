"""Where archive files lie: a folder, or a bucket of an object store. Written once, never changed, read through a copy.

A file is known by its SHA-256, which the ledger's chain has. Reading one makes sure of it: what comes from a bucket is
kept in a folder of this machine under that digest, beside totals of large ones. All of it can be had again, so whoever
clears the folder takes nothing away. It has a bound: what was not read for the longest time goes first. What somebody
is reading stays; a lock tells so, and on Windows that it is open.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from tokenmeter.errors import (
    ConfigurationError,
    StoreUnavailableError,
    TamperedLedgerError,
    TokenmeterError,
    reason_of,
)
from tokenmeter.paths import full_path, remove_abandoned, user_folder
from tokenmeter.processes import CAN_SHARE, lock_file

_CHUNK = 1 << 20
#: How names of files begin that are to become a month's.
_SEALING = ".sealing-"
#: Times that a copy is fetched again because somebody removed it.
_ATTEMPTS = 3


def import_extra(name: str) -> Any:
    """A package that archives need.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"Archived months need {name.partition('.')[0]}: pip install 'tokenmeter-sdk[archive]'. Reports that kept "
            "sums can answer (by model, member, team, key, ... and whole hours) work without it."
        ) from error


def place_of(to: str | os.PathLike[str]) -> str:
    """The URL or absolute path of a folder, as manifests name it.

    Raises:
        ConfigurationError: it is the URL of something else.
    """
    text = os.fspath(to)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    scheme, said, rest = text.partition("://")
    if said and rest.strip("/"):
        return f"{scheme.lower()}://{rest.rstrip('/')}"
    if said or not text:
        raise ConfigurationError(
            "Name a folder or a bucket for archived months: /var/lib/app/archive, s3://bucket/usage."
        )
    return str(full_path(text))


def joined(place: str, name: str) -> str:
    """The URL or path of a file in a place."""
    return f"{place}/{name}"


def _file_system(url: str) -> tuple[Any, str]:
    core = import_extra("fsspec.core")
    try:
        system, path = core.url_to_fs(url, **_options_of(url))
    except ImportError as error:
        raise ConfigurationError(
            f"{url.partition('://')[0]}:// needs a package: {error} With S3: pip install 'tokenmeter-sdk[archive-s3]'."
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{url} names no place for archives: {error}.") from error
    return system, path


def _options_of(url: str) -> dict[str, Any]:
    """How a file system is made, beyond what its user configured.

    S3's tries a request five times, and so does what it is made of: a bucket that takes connections and says nothing
    (15 seconds each time) would be waited for over six minutes. Its own five are enough.
    """
    if not url.startswith(("s3://", "s3a://")):
        return {}
    configured = import_extra("fsspec.config").conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {"retries": {"total_max_attempts": 1}, **configured}}


@contextlib.contextmanager
def _asking(url: str, what: str, mend: str) -> Generator[None]:
    """Have all that goes wrong with a place be an error of ours.

    A bucket's packages have errors of their own, most of them no `OSError`: of HTTP, of credentials, of checksums.
    """
    try:
        yield
    except TokenmeterError:
        raise
    except Exception as error:
        if "://" in url:  # who mends the credentials need not start anew: none is kept with the old ones
            _file_system(url)[0].clear_instance_cache()
        raise StoreUnavailableError(f"{what}: {reason_of(error)}. {mend}") from error


def digest_of_file(stream: IO[bytes]) -> tuple[str, int]:
    """SHA-256 (hex) of what is left in `stream`, and how many bytes."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def put_file(source: Path, url: str, sha256: str) -> None:
    """Put a file where no file is yet, and read it back.

    Raises:
        StoreUnavailableError: the place cannot be written, or has another file of that name.
    """
    with _asking(url, f"{url} cannot be written", "Nothing was dropped; mend the access, or name another place."):
        if "://" in url:
            system, path = _file_system(url)
            with contextlib.suppress(FileExistsError), source.open("rb") as given, system.open(path, "xb") as made:
                shutil.copyfileobj(given, made, _CHUNK)
            with system.open(path, "rb") as written:
                found, _ = digest_of_file(written)
        else:
            _put_beside(source, Path(url))
            with Path(url).open("rb") as written:
                found, _ = digest_of_file(written)
    if found != sha256:
        raise StoreUnavailableError(f"{url} holds another file. Nothing was dropped; name another place.")


def remove_file(url: str) -> None:
    """Remove a file that no manifest names, if the place lets us: it does no harm."""
    with contextlib.suppress(StoreUnavailableError), _asking(url, f"{url} cannot be removed", ""):
        if "://" in url:
            system, path = _file_system(url)
            system.rm_file(path)
        else:
            Path(url).unlink()


def _put_beside(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove_abandoned(target.parent / _SEALING)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=_SEALING)
    try:
        with os.fdopen(handle, "wb") as made, source.open("rb") as given:
            shutil.copyfileobj(given, made, _CHUNK)
            made.flush()
            os.fsync(made.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(name, target)
    finally:
        Path(name).unlink()


@contextlib.contextmanager
def opened_copy(url: str, sha256: str, *, check: bool = False) -> Generator[Path]:
    """The path on this machine of a file that is what the digest says; it stays there as long as the block runs.

    What comes from a bucket is kept for the next question. What is only checked is kept where there is room.

    Args:
        url: Where it lies.
        sha256: What it has to be.
        check: Whether it is read where it lies to see that it is, whatever is kept of it.

    Raises:
        StoreUnavailableError: it cannot be read.
        TamperedLedgerError: it is not what was sealed.
    """
    told, mend = f"The archived month at {url} cannot be read", "Put the file back, or mend the access."
    with contextlib.ExitStack() as held:
        with _asking(url, told, mend):
            if "://" in url:
                path = held.enter_context(_checked(url, sha256)) if check else _kept(url, sha256, held)
            else:
                path = Path(url)
                if check:
                    with path.open("rb") as stream:
                        _compare(url, digest_of_file(stream)[0], sha256)
                elif not path.is_file():
                    raise FileNotFoundError(2, "No such file", url)
        yield path


def _kept(url: str, sha256: str, held: contextlib.ExitStack) -> Path:
    """The copy on this machine, fetched if need be; nobody removes it before `held` ends."""
    kept = kept_path(f"{sha256}.parquet")
    for _ in range(_ATTEMPTS):
        if held.enter_context(reading(kept)) and _is_as_fetched(kept, sha256):
            return kept
        fetched = _fetched(url, sha256)
        try:
            make_room(fetched.stat().st_size)  # if there is none, it goes with the next that is fetched
            fetched.replace(kept)
        finally:
            fetched.unlink(missing_ok=True)
    raise StoreUnavailableError(f"Somebody removes or changes what is kept of {url} in {kept.parent}.")


def _is_as_fetched(kept: Path, sha256: str) -> bool:
    if is_private(kept.parent):
        return True
    with kept.open("rb") as stream:
        return digest_of_file(stream)[0] == sha256


@contextlib.contextmanager
def _checked(url: str, sha256: str) -> Generator[Path]:
    """A copy for as long as the block runs; kept then if there is room, or in place of the one that is."""
    kept, fetched = kept_path(f"{sha256}.parquet"), _fetched(url, sha256)
    try:
        yield fetched
        with contextlib.suppress(OSError):  # it was read, which is what was asked for
            if kept.exists() or make_room(fetched.stat().st_size, unread_for=LATELY):
                fetched.replace(kept)
    finally:
        fetched.unlink(missing_ok=True)


def _fetched(url: str, sha256: str) -> Path:
    """A file out of a bucket, under a name that nobody else looks for."""
    system, path = _file_system(url)
    handle, name = tempfile.mkstemp(dir=make_folder(), prefix=UNFINISHED)
    digest = hashlib.sha256()
    try:
        with os.fdopen(handle, "wb") as made, system.open(path, "rb") as given:
            while chunk := given.read(_CHUNK):
                digest.update(chunk)
                made.write(chunk)
        _compare(url, digest.hexdigest(), sha256)
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)


def _compare(url: str, found: str, sha256: str) -> None:
    if found != sha256:
        raise TamperedLedgerError(
            f"{url} is not the file that was sealed: its SHA-256 is {found}, not {sha256}. Put the right one back."
        )


#: Environment variable with the most mebibytes to keep, and the bound without it.
BOUND, _USUAL = "TOKENMETER_ARCHIVE_CACHE_MB", 16_384
_MEBIBYTE, _DAY, _SECOND = 1 << 20, 86_400, 1_000_000_000
#: What was read within so many seconds is not removed for what can do without.
LATELY = 7 * _DAY
#: How names of files begin that are not whole yet; of a process that died they are left behind.
UNFINISHED = ".making-"


def kept_path(name: str) -> Path:
    """Where something made of an archive file is kept on this machine."""
    return user_folder("cache", "XDG_CACHE_HOME to a folder") / "archive" / name


def make_folder() -> Path:
    """The folder of all that is kept, made if need be."""
    folder = kept_path("")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def most_bytes() -> int:
    """How much may be kept.

    Raises:
        ConfigurationError: the environment says something that is no number of mebibytes.
    """
    said = os.environ.get(BOUND, "").strip() or str(_USUAL)
    if not (said.isascii() and said.isdecimal()):
        raise ConfigurationError(f"{BOUND} must be a whole number of mebibytes, such as {_USUAL}, not {said!r}.")
    return int(said) * _MEBIBYTE


def is_private(folder: Path) -> bool:
    """Whether nobody else can put a file there: not into it, nor a folder of his own in its place."""
    if not hasattr(os, "geteuid"):  # Windows keeps each user's files apart by itself
        return True
    folder = folder.resolve()
    others = stat.S_IWGRP | stat.S_IWOTH
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & others:
        return False
    for parent in folder.parents:
        status = parent.stat()
        if status.st_uid not in {0, os.geteuid()} or (status.st_mode & others and not status.st_mode & stat.S_ISVTX):
            return False
    return True


@contextlib.contextmanager
def reading(kept: Path) -> Generator[bool]:
    """Whether a file is there; if so it stays until the end of the block, and counts as read just now."""
    try:
        opened = kept.open("rb")
    except FileNotFoundError:
        yield False
        return
    with opened:
        _lock(opened.fileno(), shared=True)
        with contextlib.suppress(OSError):  # not by the time of change: by that DuckDB tells whether it knows a file
            os.utime(kept, ns=(time.time_ns(), os.fstat(opened.fileno()).st_mtime_ns))
        yield _is_at(opened.fileno(), kept)


def make_room(size: int, *, unread_for: int = 0) -> bool:
    """Remove what was not read for the longest time until there is room for more.

    Args:
        size: How many bytes more.
        unread_for: Remove only what nobody read for so many seconds: `LATELY` for what is kept where there is room.

    Returns:
        Whether there is room now.
    """
    left, now, found = most_bytes() - size, time.time_ns(), list[tuple[int, int, Path]]()
    for one in kept_path("").iterdir():
        with contextlib.suppress(FileNotFoundError):
            status = one.stat()
            if not one.name.startswith("."):
                left -= status.st_size
                found.append((status.st_atime_ns, status.st_size, one))
            elif status.st_mtime_ns < now - _DAY * _SECOND:
                shutil.rmtree(one) if stat.S_ISDIR(status.st_mode) else one.unlink()
    for read_at, freed, one in sorted(found):
        if left >= 0 or read_at > now - unread_for * _SECOND:
            break
        if _remove(one):
            left += freed
    return left >= 0


def _remove(kept: Path) -> bool:
    """Remove a file that nobody reads; whether it is gone."""
    try:
        with kept.open("r+b") as opened:
            if not _lock(opened.fileno(), shared=False) or not _is_at(opened.fileno(), kept):
                return False
            if CAN_SHARE:
                kept.unlink()
        if not CAN_SHARE:  # Windows removes nothing that is open
            kept.unlink()
    except OSError:
        return not kept.exists()
    return True


def _lock(descriptor: int, *, shared: bool) -> bool:
    """Lock an open file; False where others have it. A file system without locks lets everybody have it."""
    if not CAN_SHARE:
        return True
    try:
        return lock_file(descriptor, shared=shared, wait=shared)
    except OSError:
        return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at a path: it may have been removed before it was locked."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
