"""Where archive files lie: a folder, or a bucket of an object store. Written once, never changed, read through a copy.

A file is known by its SHA-256, which the ledger's chain has. Reading one makes sure of it: what comes from a bucket is
kept in a folder of this machine under that digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import platformdirs

from tokenmeter.errors import ConfigurationError, StoreUnavailableError, TamperedLedgerError, reason_of

_CHUNK = 1 << 20


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
    if "://" in text:
        return text.rstrip("/")
    if not text:
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
    try:
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
    except OSError as error:
        raise StoreUnavailableError(f"{url} cannot be written: {reason_of(error)}. Nothing was dropped.") from error
    if found != sha256:
        raise StoreUnavailableError(f"{url} holds another file. Nothing was dropped; name another place.")


def remove_file(url: str) -> None:
    """Remove a file that no manifest names, if the place lets us: it does no harm."""
    with contextlib.suppress(OSError):
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


def local_copy(url: str, sha256: str, *, check: bool = False) -> Path:
    """The path of a file on this machine that is what the digest says; one from a bucket is kept from then on.

    Args:
        url: Where it lies.
        sha256: What it has to be.
        check: Whether a file in a folder, or a kept copy, is read to see that it is.

    Raises:
        StoreUnavailableError: it cannot be read.
        TamperedLedgerError: it is not what was sealed.
    """
    try:
        if "://" not in url:
            if check:
                with Path(url).open("rb") as stream:
                    _compare(url, digest_of_file(stream)[0], sha256)
            elif not Path(url).is_file():
                raise FileNotFoundError(2, "No such file", url)
            return Path(url)
        return _fetched(url, sha256, check=check)
    except OSError as error:
        raise StoreUnavailableError(
            f"The archived month at {url} cannot be read: {reason_of(error)}. Put the file back, or mend the access."
        ) from error


def kept_path(name: str) -> Path:
    """Where something made of an archive file is kept on this machine; whoever removes it has it made again."""
    return Path(platformdirs.user_cache_path("tokenmeter", appauthor=False)) / "archive" / name


def is_private(folder: Path) -> bool:
    """Whether nobody else can have put a file where `kept_path` keeps them."""
    if not hasattr(os, "geteuid"):  # Windows keeps each user's files apart by itself
        return True
    status = folder.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_as_fetched(kept: Path, sha256: str) -> bool:
    if is_private(kept.parent):
        return True
    with kept.open("rb") as stream:
        return digest_of_file(stream)[0] == sha256


def _fetched(url: str, sha256: str, *, check: bool) -> Path:
    kept = kept_path(f"{sha256}.parquet")
    if kept.is_file() and not check and _is_as_fetched(kept, sha256):
        return kept
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    system, path = _file_system(url)
    handle, name = tempfile.mkstemp(dir=kept.parent, prefix=".fetching-")
    digest = hashlib.sha256()
    try:
        with os.fdopen(handle, "wb") as made, system.open(path, "rb") as given:
            while chunk := given.read(_CHUNK):
                digest.update(chunk)
                made.write(chunk)
        _compare(url, digest.hexdigest(), sha256)
        os.replace(name, kept)  # noqa: PTH105 - as `os.link`
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
    return kept


def _compare(url: str, found: str, sha256: str) -> None:
    if found != sha256:
        raise TamperedLedgerError(
            f"{url} is not the file that was sealed: its SHA-256 is {found}, not {sha256}. Put the right one back."
        )
