"""Reading bodies whose bytes the caller takes for himself: a copy of each piece is decoded on the side.

Event streams and JSON lines are read piece by piece and never kept; a JSON document has to be kept until it is whole,
up to `DOCUMENT_LIMIT`. Anything else (audio, images, files) is let through unread.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

#: A longer JSON document is not kept for reading; its usage is then unknown, and flagged so. Bytes.
DOCUMENT_LIMIT = 32 * 1024 * 1024

_PIECE = 64 * 1024

#: What the content type of Amazon's event stream encoding has in it.
FRAMES = "amazon.eventstream"
_PRELUDE = struct.Struct(">III")  # length of the frame, length of its headers, their checksum
_CHECKSUM = 4
#: No frame is longer; what says so is none. Bytes.
_LONGEST = 24 * 1024 * 1024

Kind = Literal["events", "frames", "lines", "json", "text", "binary"]

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
#: Bytes of zlib's header and the first two of gzip's, by which they are told from what has none.
_HEADER = 2


class Listener(Protocol):
    """Takes what was decoded."""

    def saw_event(self, event: Any) -> None:
        """One decoded event of a stream."""
        ...

    def saw_line(self, line: Any) -> None:
        """One decoded line of a JSON lines file."""
        ...

    def saw_body(self, body: Any) -> None:
        """A whole decoded body: JSON, or text."""
        ...


class RawReader:
    """Decodes one body from its pieces as they came over the wire.

    Args:
        headers: The response's headers.
        listener: Told what was decoded.
        kind: What the body is known to be, whatever its content type says (`kind_of`).
    """

    __slots__ = ("_begun", "_decode", "_document", "_event", "_frames", "_kind", "_line", "_listener")

    def __init__(self, headers: Mapping[str, str], listener: Listener, *, kind: Kind | None = None) -> None:
        stated = kind_of(headers.get("content-type", ""))
        self._kind: Kind = stated if kind is None or stated == "frames" else kind
        self._frames = _FrameReader() if self._kind == "frames" else None
        self._decode = _decoder(headers.get("content-encoding", "")) if self._kind != "binary" else None
        self._listener = listener
        self._line = bytearray()
        self._begun = False
        self._event: list[bytes] = []
        self._document: bytearray | None = bytearray()

    def feed(self, piece: bytes) -> None:
        """Take one piece, in order.

        Raises:
            zlib.error: the body is not what its headers say.
        """
        if self._decode is None:
            return
        piece = self._decode(piece)
        if self._frames is not None:
            for event in self._frames.events(piece):
                self._listener.saw_event(event)
            return
        if self._kind in {"json", "text"}:
            self._keep(piece)
            return
        self._line += piece
        if b"\n" in piece:
            *lines, rest = self._line.replace(b"\r\n", b"\n").split(b"\n")
            self._line = rest
            for line in lines:
                self._take_line(bytes(line))
        elif len(self._line) > DOCUMENT_LIMIT or (self._kind == "lines" and not self._line.startswith(b"{")):
            self._let_through()  # no line of any file we know

    def close(self) -> None:
        """The body is at its end."""
        if self._kind in {"events", "lines"}:
            self._take_line(bytes(self._line))
            self._take_line(b"")
        elif self._document:
            text = self._document.decode("utf-8", "replace")
            self._document = None
            self._listener.saw_body(_decoded(text, text) if self._kind == "json" else text)

    def _keep(self, piece: bytes) -> None:
        if self._document is not None:
            self._document += piece
            if len(self._document) > DOCUMENT_LIMIT:
                self._document = None

    def _let_through(self) -> None:
        """The rest of the body is none of our business."""
        self._decode = None
        self._line.clear()

    def _take_result(self, line: bytes) -> None:
        result = _decoded(line, None)
        if not self._begun and not (isinstance(result, dict) and "custom_id" in result):
            self._let_through()  # some other file
        self._begun = True
        if self._decode is not None:
            self._listener.saw_line(result)

    def _take_line(self, line: bytes) -> None:
        if self._decode is None:
            return
        if self._kind == "lines":
            if line.strip():
                self._take_result(line)
        elif line.startswith(b"data:"):
            self._event.append(line[5:].strip())
        elif not line and self._event:
            data = b"\n".join(self._event)
            self._event = []
            if (event := _decoded(data, None)) is not None:  # [DONE], or nothing that anybody could read
                self._listener.saw_event(event)


def _decoded(written: bytes | str, otherwise: Any) -> Any:
    """`written` as JSON; `otherwise` where it is none."""
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        return otherwise


def read_whole(content: bytes, headers: Mapping[str, str], listener: Listener, *, kind: Kind | None) -> None:
    """Decode a body that is already in memory, its content encoding undone."""
    reader = RawReader({"content-type": headers.get("content-type", "")}, listener, kind=kind)
    step = _PIECE if kind == "lines" else max(len(content), 1)  # a file may be large, and none of our business
    for start in range(0, len(content), step):
        reader.feed(content[start : start + step])
    reader.close()


def kind_of(content_type: str) -> Kind:
    """What a body is by its content type."""
    if FRAMES in content_type:
        return "frames"
    name = content_type.split(";", maxsplit=1)[0].strip().lower()
    if name == "text/event-stream":
        return "events"
    if "jsonl" in name or "ndjson" in name or "json-lines" in name:
        return "lines"
    if name.endswith("json"):
        return "json"
    return "text" if name.startswith("text/") else "binary"


def _decoder(encoding: str) -> Callable[[bytes], bytes] | None:
    """How to undo `encoding`; None for one that the standard library cannot undo."""
    names = [name for each in encoding.lower().split(",") if (name := each.strip()) not in {"", "identity"}]
    if not names:
        return _as_it_is
    return _Inflater().decompress if len(names) == 1 and names[0] in {"gzip", "deflate"} else None


class _Inflater:
    """Undoes gzip, and both of what servers call deflate: with zlib's header, as it should be, and without."""

    __slots__ = ("_begin", "_inflate")

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._begin: bytes | None = b""  # what came before a header could be seen; None = it was

    def decompress(self, piece: bytes) -> bytes:
        if self._begin is None:
            return self._inflate.decompress(piece)
        piece = self._begin + piece
        if len(piece) < _HEADER:
            self._begin = piece
            return b""
        self._begin = None
        try:
            return self._inflate.decompress(piece)
        except zlib.error:
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            return self._inflate.decompress(piece)


def _as_it_is(piece: bytes) -> bytes:
    return piece


# -- Amazon's event stream encoding, in which Bedrock sends streams: binary frames, each with one event in it.
# Source: the AWS event stream encoding specification. Checksums are left to who reads the stream for its content.


class _FrameReader:
    """Takes a stream piece by piece and gives the events whose frames are complete."""

    __slots__ = ("_lost", "_waiting")

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._lost = False

    def events(self, piece: bytes) -> Iterator[Any]:
        """The decoded events that `piece` completes."""
        if self._lost:
            return
        self._waiting += piece
        while len(self._waiting) >= _PRELUDE.size:
            length, headers, _ = _PRELUDE.unpack_from(self._waiting)
            if not _PRELUDE.size + headers + _CHECKSUM <= length <= _LONGEST:
                self._lost = True  # out of step: nothing behind this can be told apart
                self._waiting.clear()
                return
            if len(self._waiting) < length:
                return
            payload = bytes(self._waiting[_PRELUDE.size + headers : length - _CHECKSUM])
            del self._waiting[:length]
            if (event := _event_in(payload)) is not None:
                yield event


def _event_in(payload: bytes) -> Any:
    """The event of a frame, which stands in it as base64; None in a frame that has none."""
    try:
        outer = json.loads(payload)
        return json.loads(base64.b64decode(outer["bytes"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
