"""A sheet as PDF/A-3 on A4, set by typst: any script, every font embedded, the same bytes for the same sheet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, overload

from tokenmeter.billing.render.sheet import PrintedRow, PrintedSheet
from tokenmeter.errors import ConfigurationError

_TEMPLATE = Path(__file__).with_name("sheet.typ")
#: Packages of fonts, in the order their letters are looked for; the last is an extra of its own, for its size.
_PACKAGES = ("fontpkg_noto_sans", "fontpkg_noto_sans_arabic", "manimgx_fonts_cjk")
_FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path("/Library/Fonts"), Path("C:/Windows/Fonts"))
_FAMILIES = (
    *("Noto Sans", "Noto Sans Arabic", "Noto Sans CJK SC", "Noto Sans Hebrew", "Noto Sans Thai"),
    *("Noto Sans Devanagari", "Droid Sans Fallback", "DejaVu Sans", "Libertinus Serif", "DejaVu Sans Mono"),
)
#: More rows than a page can show in good time; the rest is in the CSV.
_MOST_ROWS = 3000


@overload
def write_pdf(sheet: PrintedSheet, target: None) -> bytes: ...
@overload
def write_pdf(sheet: PrintedSheet, target: str | Path) -> Path: ...
@overload
def write_pdf(sheet: PrintedSheet, target: str | Path | None) -> bytes | Path: ...
def write_pdf(sheet: PrintedSheet, target: str | Path | None) -> bytes | Path:
    """Draw `sheet`. Of more than 3,000 rows the first are drawn, and a last one says how many are in the CSV.

    Args:
        sheet: What to draw.
        target: Where to write it; None = return the bytes.

    Raises:
        ConfigurationError: the extra is not installed, or no font has a letter of it; says which.
    """
    typst = _typst()
    content: bytes
    try:
        content = typst.compile(
            str(_TEMPLATE),
            format="pdf",
            font_paths=[str(folder) for folder in _font_folders()],
            ignore_system_fonts=True,
            pdf_standards=["a-3b"],
            sys_inputs={"sheet": json.dumps(_data(sheet), ensure_ascii=False)},
            timestamp=_day(sheet),
        )
    except RuntimeError as error:
        raise _unprintable(error) from error
    if target is None:
        return content
    path = Path(target)
    path.write_bytes(content)
    return path


def _typst() -> Any:
    try:
        return import_module("typst")
    except ImportError as error:
        raise ConfigurationError(
            "A PDF needs the extra 'pdf': pip install 'tokenmeter-sdk[pdf]'. HTML prints without it."
        ) from error


def _data(sheet: PrintedSheet) -> dict[str, Any]:
    data = asdict(sheet)
    if len(sheet.rows) > _MOST_ROWS:
        more = len(sheet.rows) - _MOST_ROWS
        cells = tuple(
            f"... and {more:,} more lines; all are in the CSV" if name == "Description" else ""
            for name in sheet.columns
        )
        data["rows"] = [asdict(row) for row in (*sheet.rows[:_MOST_ROWS], PrintedRow(cells))]
    return {**_printable(data), "fonts": list(_FAMILIES)}


def _printable(value: Any) -> Any:
    """The same without control characters, which no font has."""
    if isinstance(value, str):
        return "".join(character for character in value if character.isprintable())
    if isinstance(value, dict):
        return {name: _printable(one) for name, one in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return [_printable(one) for one in value] if isinstance(value, (list, tuple)) else value  # pyright: ignore[reportUnknownVariableType]


def _day(sheet: PrintedSheet) -> int:
    """The document's date in its properties: not the clock's, so that the bytes are the same again."""
    day = datetime.fromisoformat(sheet.date) if sheet.date else datetime(2000, 1, 1)  # noqa: DTZ001 - made aware below
    return int(day.replace(tzinfo=UTC).timestamp())


@cache
def _font_folders() -> tuple[Path, ...]:
    return tuple(dict.fromkeys(_folders()))


def _folders() -> Iterator[Path]:
    for name in _PACKAGES:
        spec = find_spec(name)
        for place in spec.submodule_search_locations or () if spec else ():
            yield from {font.parent for font in Path(place).rglob("*.[ot]t[fc]")}
    wanted = ("Noto*.[ot]t[fc]", "DroidSansFallback*.ttf", "DejaVuSans*.ttf")
    for folder in filter(Path.is_dir, _FOLDERS):
        for form in wanted:
            yield from sorted({font.parent for font in folder.rglob(form)})


def _unprintable(error: RuntimeError) -> ConfigurationError:
    said = str(error)
    letter = re.search(r'the (?:text|character) `?"([^"]+)"', said)
    if letter is None and "font" not in said and "glyph" not in said:
        return ConfigurationError(f"The page could not be set as PDF: {said.splitlines()[0]}")
    which = f": {letter[1]!r}" if letter else ""
    return ConfigurationError(
        f"No font on this machine has a letter of this document{which}. For Chinese, Japanese and Korean: "
        "pip install 'tokenmeter-sdk[pdf-cjk]', or a Noto font of the system (Debian: fonts-noto-core). HTML prints "
        f"without. typst says: {said.splitlines()[0]}"
    )
