"""How large the pictures of a prompt are, read from what is sent of them. Their pixels are never decoded."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from tokenmeter.call import Picture
from tokenmeter.providers.wire import JSON, is_object, section, text

#: Base64 of which the beginning of a file is read; a JPEG says its size behind what cameras and editors write first.
_HEAD, _JPEG_HEAD = 64, 400_000
_WHOLE = 30  # bytes in which the others have said it; no file is shorter
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
#: Markers of a JPEG that begin a frame, and those that have no length.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BEGIN = 0xFF
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})


def read_picture(part: JSON) -> Picture:
    """What a part of a prompt says of its picture; of one that lies elsewhere, or of an unknown format, no size."""
    place = part.get("image_url")
    inner = place if is_object(place) else part
    detail = text(inner, "detail") or text(part, "detail")
    address = inner.get("url") if is_object(place) else place
    if address is None:
        address = section(part, "source").get("data")
    return Picture(*_size(address), detail)


def _size(address: Any) -> tuple[int, int]:
    if not isinstance(address, str):
        return 0, 0
    start = 0
    if address.startswith("data:"):
        comma = address.find(",", 0, _HEAD * 4)
        if comma < 0 or not address[:comma].endswith(";base64"):
            return 0, 0
        start = comma + 1
    head = _decode(address[start : start + _HEAD])
    if head.startswith(_JPEG):
        return _read_jpeg(_decode(address[start : start + _JPEG_HEAD]))
    return _read_size(head) if len(head) >= _WHOLE else (0, 0)


def _decode(encoded: str) -> bytes:
    """What whole groups of four letters stand for; nothing of what is not base64."""
    try:
        return base64.b64decode(encoded[: len(encoded) // 4 * 4], validate=True)
    except (binascii.Error, ValueError):
        return b""


def _read_size(head: bytes) -> tuple[int, int]:
    """Width and height of a PNG, GIF or WebP, in pixels, from its first bytes; zeros where they do not say so."""
    if head.startswith(_PNG) and head[12:16] == b"IHDR":
        return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    if head.startswith((b"GIF87a", b"GIF89a")):
        return int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    return _read_webp(head) if head.startswith(b"RIFF") and head[8:12] == b"WEBP" else (0, 0)


def _read_webp(head: bytes) -> tuple[int, int]:
    kind = head[12:16]
    if kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if kind == b"VP8L" and head[20:21] == b"\x2f":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return 0, 0


def _read_jpeg(head: bytes) -> tuple[int, int]:
    place = 2
    while place + 9 <= len(head) and head[place] == _BEGIN:
        marker = head[place + 1]
        if marker in _FRAMES:
            return int.from_bytes(head[place + 7 : place + 9]), int.from_bytes(head[place + 5 : place + 7])
        if marker == _BEGIN:  # padding
            place += 1
        elif marker in _BARE:
            place += 2
        else:
            place += 2 + int.from_bytes(head[place + 2 : place + 4])
    return 0, 0
