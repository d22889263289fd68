"""Files that appear whole or not at all, are never overwritten by accident, and know their own SHA-256."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tokenmeter.errors import ConfigurationError

#: A path, or something that is open for writing.
Target = str | os.PathLike[str] | IO[Any]


class Sink:
    """Bytes on their way into a file; hashes and counts what passes."""

    def __init__(self, stream: IO[Any]) -> None:
        self._stream = stream
        self._text = isinstance(stream, io.TextIOBase)
        self._hash = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        """Pass `data` on; text streams get it decoded, so hand over whole lines."""
        self._hash.update(data)
        self.size += len(data)
        self._stream.write(data.decode() if self._text else data)
        return len(data)

    def flush(self) -> None:
        """Pass it on."""
        self._stream.flush()

    @property
    def sha256(self) -> str:
        """Hash of everything written, hex."""
        return self._hash.hexdigest()


@contextmanager
def opened(target: Target, *, overwrite: bool) -> Generator[Sink]:
    """A sink into `target`. A file gets its name only when the block ends well.

    Raises:
        ConfigurationError: the file exists and `overwrite` is False, its folder does not exist, or the system does not
            let it be written (permissions, a full disk, a folder of that name).
    """
    if not isinstance(target, (str, os.PathLike)):
        yield Sink(target)
        return
    path = Path(target)
    if not overwrite:
        refuse_existing(path)
    if not path.parent.is_dir():
        raise ConfigurationError(f"The folder {str(path.parent)!r} does not exist; make it first.")
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with _told(path):
            file = _File(temporary, "xb")
        file.path = path
        with io.BufferedWriter(file) as stream:
            yield Sink(stream)
            stream.flush()
            with _told(path):
                os.fsync(stream.fileno())
        with _told(path):
            _name(temporary, path, overwrite=overwrite)
    finally:
        with suppress(OSError):
            temporary.unlink()


class _File(io.FileIO):
    """A file on its way to `path`. Only its own failures are told as such, never those of who makes the records."""

    path: Path

    def write(self, data: Any, /) -> int:
        """As `io.FileIO` does it."""
        with _told(self.path):
            return super().write(data)


@contextmanager
def _told(path: Path) -> Generator[None]:
    """What the system has against writing `path`, in words."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(f"{str(path)!r} cannot be written: {reason}. Name another place.") from error


def _name(temporary: Path, path: Path, *, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)  # unlike a rename this fails when somebody else made the file meanwhile
    except FileExistsError:
        refuse_existing(path)
    except OSError:  # a file system without hard links
        refuse_existing(path)
        temporary.replace(path)


def refuse_existing(path: Path) -> None:
    """Refuse to write over a file.

    Raises:
        ConfigurationError: `path` exists.
    """
    if path.exists():
        raise ConfigurationError(
            f"{str(path)!r} exists; choose another name, or replace it with overwrite=True (--overwrite)."
        )


def write_whole(path: Path, content: str, *, overwrite: bool) -> None:
    """Write a small text file, whole or not at all."""
    with opened(path, overwrite=overwrite) as sink:
        sink.write(content.encode())
