"""Amazon's event stream encoding, in which Bedrock sends streams: binary frames, each with one event in it.

Source: the AWS event stream encoding specification. Checksums are left to who reads the stream for its content.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterator
from typing import Any

__all__ = ["FRAMES", "FrameReader"]

#: What the content type of such a stream has in it.
FRAMES = "amazon.eventstream"

_PRELUDE = struct.Struct(">III")  # length of the frame, length of its headers, their checksum
_CHECKSUM = 4
#: No frame is longer; what says so is none. Bytes.
_LONGEST = 24 * 1024 * 1024


class FrameReader:
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
    except (ValueError, KeyError, TypeError, binascii.Error):
        return None
