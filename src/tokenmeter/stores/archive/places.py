"""Where archive files lie: a folder, or a bucket of an object store. Written once, never changed, read through a copy.

A file is known by its SHA-256, which the ledger's chain has. Reading one makes sure of it: what comes from a bucket is
kept in a folder of this machine under that digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
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
from tokenmeter.stores.archive.kept import LATELY, UNFINISHED, is_private, kept_path, make_folder, make_room, reading

_CHUNK = 1 << 20
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
    return str(Path(text).expanduser().resolve())


def joined(place: str, name: str) -> str:
    """The URL or path of a file in a place."""
    return f"{place}/{name}"


def _file_system(url: str) -> tuple[Any, str]:
    core = import_extra("fsspec.core")
    try:
        system, path = core.url_to_fs(url)
    except ImportError as error:
        raise ConfigurationError(
            f"{url.partition('://')[0]}:// needs a package: {error} With S3: pip install 'tokenmeter-sdk[archive-s3]'."
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{url} names no place for archives: {error}.") from error
    return system, path


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
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".sealing-")
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
