"""Fonts for PDF: the ones that come with reportlab first, then what the system has, then the reader's own for CJK.

A text is set in the first font that has all of it; where none has, it is cut into runs. So any name can be printed, and
the same text always takes the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache, lru_cache
from html import escape
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenmeter.errors import ConfigurationError

__all__ = ["BOLD", "REGULAR", "marked_up", "reportlab", "set_up_fonts"]

log = logging.getLogger("tokenmeter")

REGULAR, BOLD = "Vera", "VeraBd"
_FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path("/Library/Fonts"), Path("C:/Windows/Fonts"))
_SYSTEM = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial Unicode.ttf", "arialuni.ttf")
#: Fonts that every PDF reader supplies, by the scripts they are for: first and last code point.
_CID = (
    ("HYSMyeongJo-Medium", ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF))),
    ("HeiseiMin-W3", ((0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xFF00, 0xFFEF))),
    ("STSong-Light", ((0x3400, 0x4DBF), (0xF900, 0xFAFF))),
)


def reportlab(module: str) -> Any:
    """A module of reportlab.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        return import_module(f"reportlab.{module}")
    except ImportError as error:
        raise ConfigurationError(
            "A PDF needs the extra 'pdf': pip install 'tokenmeter-sdk[pdf]'. HTML prints without it."
        ) from error


@cache
def set_up_fonts() -> tuple[str, ...]:
    """Register the fonts; the names of those that are embedded, in the order they are tried."""
    metrics, ttfonts = reportlab("pdfbase.pdfmetrics"), reportlab("pdfbase.ttfonts")
    for name in (REGULAR, BOLD):
        metrics.registerFont(ttfonts.TTFont(name, f"{name}.ttf"))
    metrics.registerFontFamily(REGULAR, normal=REGULAR, bold=BOLD, italic=REGULAR, boldItalic=BOLD)
    names = [REGULAR]
    for path in _system_fonts():
        try:
            metrics.registerFont(ttfonts.TTFont(path.stem, str(path)))
        except (ttfonts.TTFError, OSError):
            continue
        names.append(path.stem)
    cid = reportlab("pdfbase.cidfonts")
    for name, _ in _CID:
        metrics.registerFont(cid.UnicodeCIDFont(name))
    return tuple(names)


def _system_fonts() -> Iterator[Path]:
    for name in _SYSTEM:
        found = sorted(path for folder in _FOLDERS if folder.is_dir() for path in folder.rglob(name))
        yield from found[:1]


@cache
def _font_of(character: str) -> str | None:
    metrics = reportlab("pdfbase.pdfmetrics")
    code = ord(character)
    for name in set_up_fonts():
        if code in metrics.getFont(name).face.charToGlyph:
            return name
    for name, ranges in _CID:
        if any(first <= code <= last for first, last in ranges):
            return name
    log.warning("No font for %r (U+%04X) was found; it is left out of the PDF. The HTML has it.", character, code)
    return None


@lru_cache(maxsize=4096)
def _font_of_all(text: str) -> str | None:
    """The first font that has every character; None when none has."""
    metrics = reportlab("pdfbase.pdfmetrics")
    fonts = ((name, metrics.getFont(name).face.charToGlyph) for name in set_up_fonts())
    return next((name for name, glyphs in fonts if all(ord(character) in glyphs for character in text)), None)


def marked_up(text: str) -> str:
    """`text` as reportlab's paragraph markup, each run in a font that has it; control characters are left out."""
    parts: list[str] = []
    printable = "".join(character for character in text if character.isprintable())
    whole = _font_of_all(printable)
    for name, run in groupby(printable, key=_font_of if whole is None else lambda _: whole):
        shown = escape("".join(run)) if name else "?"
        parts.append(shown if name in {REGULAR, None} else f'<font name="{name}">{shown}</font>')
    return "".join(parts)
