"""Where archive files lie: a folder, or a bucket of an object store. Written once, never changed, read through a copy.

A file is known by its SHA-256, which the ledger's chain has. Reading one makes sure of it: what comes from a bucket is
kept on this machine under that digest (`tokenmeter.stores.archive.kept`). A bucket that says nothing is given up.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from tokenmeter.display import counted
from tokenmeter.errors import (
    ConfigurationError,
    StoreUnavailableError,
    TamperedLedgerError,
    TokenmeterError,
    reason_of,
)
from tokenmeter.paths import full_path, remove_abandoned
from tokenmeter.patience import wait_for
from tokenmeter.stores.archive.kept import LATELY, UNFINISHED, is_private, kept_path, make_folder, make_room, reading
from tokenmeter.stores.archive.manifest import ArchivedMonth

_CHUNK = 1 << 20
#: Files of up to so many bytes are compared with their digest at each question: that takes a millisecond.
_SMALL = 1 << 20
#: A bucket is read and written by blocks of so many bytes, and given up where none got through for so many seconds.
_BLOCK, _SILENCE = 8 << 20, 180
#: A bucket that said nothing is not waited for again for so many seconds: there may be a hundred months in it.
_UNASKED = 60
#: Buckets that said nothing, and until when none is read.
_silent: dict[str, float] = {}
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
            f"This needs {name.partition('.')[0]}: pip install 'tokenmeter-sdk[archive]'. Files of archived months and "
            "`tokenmeter.duckdb()` do; reports that sums answer (by model, member, team, key, ... and whole hours) "
            "do not."
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
        cause = _cause_of(error)
        if _is_silence(cause):
            _silent[_bucket(url)] = time.monotonic() + _UNASKED
        raise StoreUnavailableError(f"{what}: {reason_of(cause)}. {mend}") from error


def _cause_of(error: BaseException) -> BaseException:
    """What went wrong with a place, where its package stumbles over that (an `IndexError`), or says nothing of it."""
    seen = set[int]()
    while isinstance(error, (LookupError, TypeError, AttributeError)) or not str(error):
        seen.add(id(error))
        before = error.__cause__ or error.__context__
        if before is None or id(before) in seen:  # some packages raise an error from itself
            break
        error = before
    return error


def _is_silence(error: BaseException) -> bool:
    """Whether nobody answered: after a while of waiting, by whatever class its package has for that."""
    return isinstance(error, TimeoutError) or "Timeout" in type(error).__name__


def _bucket(url: str) -> str:
    """Whom one asks for a file."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def _check_silence(url: str) -> None:
    """Refuse to wait for a bucket that said nothing just now.

    Raises:
        OSError: it did.
    """
    left = _silent.get(_bucket(url), 0) - time.monotonic()
    if left > 0:
        raise OSError(f"it said nothing a moment ago, and is asked again in {left:.0f} seconds")


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
            found = wait_for(partial(_put_away, source, url), _SILENCE)
            _silent.pop(_bucket(url), None)
        else:
            _put_beside(source, Path(url))
            with Path(url).open("rb") as written:
                found, _ = digest_of_file(written)
    if found != sha256:
        raise StoreUnavailableError(
            f"{url} holds another file, or gives other bytes than were put there. Nothing was dropped; name another "
            "place."
        )


def _put_away(source: Path, url: str, tell: Callable[[], None]) -> str:
    """Put a file into a bucket, where none is of that name; the SHA-256 of what is there then."""
    system, path = _file_system(url)
    with (
        contextlib.suppress(FileExistsError),
        source.open("rb") as given,
        system.open(path, "xb", block_size=_BLOCK) as made,
    ):
        while chunk := given.read(_CHUNK):
            made.write(chunk)
            tell()
    digest = hashlib.sha256()
    for chunk in _chunks(url, tell):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(url: str, tell: Callable[[], None]) -> Iterator[bytes]:
    """What a file in a bucket holds; `tell` is called whenever some of it came."""
    system, path = _file_system(url)
    with system.open(path, "rb", block_size=_BLOCK) as given:
        while chunk := given.read(_CHUNK):
            tell()
            yield chunk


def remove_file(url: str) -> None:
    """Remove a file that no manifest names, if the place lets us: it does no harm."""
    with contextlib.suppress(StoreUnavailableError), _asking(url, f"{url} cannot be removed", ""):
        if "://" in url:
            wait_for(lambda _: _remove_away(url), _SILENCE)
        else:
            Path(url).unlink()


def _remove_away(url: str) -> None:
    system, path = _file_system(url)
    system.rm_file(path)


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
def opened_copy(month: ArchivedMonth, *, check: bool = False) -> Generator[Path]:
    """The path on this machine of a month's file; it stays there as long as the block runs.

    What comes from a bucket is what the digest says, and is kept for the next question; what is only checked is kept
    where there is room. Of a large file in a folder each question looks at the size alone: whole years would be read
    before the first figure is told. Files of a few calls may well have the size of another month's, and are compared
    whole. See `check_file`.

    Args:
        month: Whose, and what it has to be.
        check: Whether it is read where it lies to see that it is, whatever is kept of it.

    Raises:
        StoreUnavailableError: it cannot be read, or is no more what was sealed.
        TamperedLedgerError: the latter, as a check tells it.
    """
    url = month.url
    with contextlib.ExitStack() as held:
        with _reading(url), contextlib.nullcontext() if check else reading_file():
            if "://" in url:
                path = held.enter_context(_checked(url, month.sha256)) if check else _kept(month, held)
            else:
                path = Path(url)
                if not check:
                    _look_for(month)
                if check or month.bytes <= _SMALL:
                    check_file(path, month)
        yield path


def look_for(month: ArchivedMonth) -> None:
    """Make sure, without reading it, that a month's file is there and as long as it has to be."""
    with _reading(month.url), reading_file():
        _look_for(month)


def _look_for(month: ArchivedMonth) -> None:
    url = month.url
    if "://" in url:
        size = wait_for(lambda _: _size_away(url), _SILENCE)
    elif not Path(url).is_file():
        raise FileNotFoundError(2, "No such file", url)
    else:
        size = Path(url).stat().st_size
    if size != month.bytes:
        raise _other_file(url, f"it has {counted(size, 'byte')}, not {month.bytes:,}")


def _size_away(url: str) -> int:
    _check_silence(url)
    system, path = _file_system(url)
    return int(system.info(path)["size"])


def _reading(url: str) -> contextlib.AbstractContextManager[None]:
    mend = "Put the file back, mend the access, or say where it lies now: tokenmeter archive move --to PLACE."
    return _asking(url, f"The archived month at {url} cannot be read", mend)


@contextlib.contextmanager
def reading_file() -> Generator[None]:
    """Have a file that is not the one that was sealed be one that cannot be read.

    Whoever is asked what the kept sums tell as well goes on with these then.
    """
    try:
        yield
    except TamperedLedgerError as error:
        raise StoreUnavailableError(f"Archived months cannot be read: {error}") from error


def check_file(path: Path, month: ArchivedMonth) -> None:
    """Make sure that a file is a month's.

    Raises:
        TamperedLedgerError: it is another one.
    """
    with path.open("rb") as stream:
        _compare(month.url, digest_of_file(stream)[0], month.sha256)


def _kept(month: ArchivedMonth, held: contextlib.ExitStack) -> Path:
    """The copy on this machine, fetched if need be; nobody removes it before `held` ends."""
    url, kept = month.url, kept_path(f"{month.sha256}.parquet")
    for _ in range(_ATTEMPTS):
        if held.enter_context(reading(kept)) and _is_as_fetched(kept, month):
            return kept
        fetched = _fetched(url, month.sha256)
        try:
            make_room(fetched.stat().st_size)  # if there is none, it goes with the next that is fetched
            fetched.replace(kept)
        finally:
            fetched.unlink(missing_ok=True)
    raise StoreUnavailableError(f"Somebody removes or changes what is kept of {url} in {kept.parent}.")


def _is_as_fetched(kept: Path, month: ArchivedMonth) -> bool:
    if kept.stat().st_size != month.bytes:  # the machine went down before the disk had all of it
        return False
    if is_private(kept.parent):
        return True
    with kept.open("rb") as stream:
        return digest_of_file(stream)[0] == month.sha256


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
    _check_silence(url)
    handle, name = tempfile.mkstemp(dir=make_folder(), prefix=UNFINISHED)

    def fetch(tell: Callable[[], None]) -> str:
        digest = hashlib.sha256()
        with os.fdopen(handle, "wb") as made:
            for chunk in _chunks(url, tell):
                digest.update(chunk)
                made.write(chunk)
        return digest.hexdigest()

    try:
        _compare(url, wait_for(fetch, _SILENCE), sha256)
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)


def _compare(url: str, found: str, sha256: str) -> None:
    if found != sha256:
        raise _other_file(url, f"its SHA-256 is {found}, not {sha256}")


def _other_file(url: str, told: str) -> TamperedLedgerError:
    return TamperedLedgerError(f"{url} is not the file that was sealed: {told}. Put the right one back.")
