"""A sheet as PDF on A4: the same bytes for the same sheet, always."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, overload

from tokenmeter.billing.render.fonts import BOLD, REGULAR, marked_up, reportlab, set_up_fonts
from tokenmeter.billing.render.sheet import Sheet

__all__ = ["write_pdf"]

_GREY, _LINE = "#57606a", "#d0d7de"
_MARGIN = 16  # millimetres
_SIZES = {"title": 17, "text": 9, "cell": 7.5, "small": 6.5}


@overload
def write_pdf(sheet: Sheet, target: None) -> bytes: ...
@overload
def write_pdf(sheet: Sheet, target: str | Path) -> Path: ...
@overload
def write_pdf(sheet: Sheet, target: str | Path | None) -> bytes | Path: ...
def write_pdf(sheet: Sheet, target: str | Path | None) -> bytes | Path:
    """Draw `sheet`.

    Args:
        sheet: What to draw.
        target: Where to write it; None = return the bytes.

    Raises:
        ConfigurationError: reportlab is not installed.
    """
    set_up_fonts()
    page = _Page(sheet)
    content = io.BytesIO()
    document = reportlab("platypus").SimpleDocTemplate(
        content,
        pagesize=page.size,
        leftMargin=page.margin,
        rightMargin=page.margin,
        topMargin=page.margin,
        bottomMargin=page.margin,
        title=sheet.title,
        author=sheet.author,
        creator="tokenmeter",
        invariant=1,
    )
    document.build(list(page.flow()), onFirstPage=page.foot, onLaterPages=page.foot)
    if target is None:
        return content.getvalue()
    path = Path(target)
    path.write_bytes(content.getvalue())
    return path


class _Page:
    """The parts of a sheet as reportlab draws them."""

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet
        self._parts = reportlab("platypus")
        self.size: tuple[float, float] = reportlab("lib.pagesizes").A4
        self.margin: float = _MARGIN * reportlab("lib.units").mm
        self._width = self.size[0] - 2 * self.margin
        make = reportlab("lib.styles").ParagraphStyle
        self._styles = {
            name: make(name, fontName=REGULAR, fontSize=size, leading=size * 1.35) for name, size in _SIZES.items()
        }
        self._styles["title"] = make("title", parent=self._styles["title"], fontName=BOLD)
        self._styles["small"] = make("small", parent=self._styles["small"], textColor=_GREY)
        self._styles["number"] = make("number", parent=self._styles["cell"], alignment=2)
        self._styles["name"] = make("name", parent=self._styles["text"], fontName=BOLD)

    def _text(self, text: str, style: str = "text") -> Any:
        return self._parts.Paragraph(marked_up(text), self._styles[style])

    def flow(self) -> Iterator[Any]:
        """Everything, from top to bottom."""
        sheet, gap = self._sheet, self._parts.Spacer
        title = sheet.title if sheet.stamp is None else f"{sheet.title}  [{sheet.stamp}]"
        facts = [[self._text(name, "small"), self._text(value, "number")] for name, value in sheet.facts]
        yield self._side_by_side([self._text(title, "title")], [self._grid(facts, (0.14, 0.26), lines=False)], 0.6)
        yield gap(1, 10)
        yield self._side_by_side(self._party("From", sheet.seller), self._party("To", sheet.buyer), 0.5)
        yield gap(1, 12)
        yield self._table() if sheet.rows else self._text(sheet.empty)
        yield gap(1, 8)
        yield self._sums()
        yield gap(1, 10)
        yield from (self._text(line) for line in sheet.remarks)
        yield gap(1, 10)
        yield from (self._text(line, "small") for line in sheet.small)

    def _side_by_side(self, left: list[Any], right: list[Any], share: float) -> Any:
        table = self._parts.Table([[left, right]], colWidths=[self._width * share, self._width * (1 - share)])
        table.setStyle([("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (-1, -1), 0)])
        return table

    def _party(self, label: str, lines: tuple[str, ...]) -> list[Any]:
        rest = [self._text(line) for line in lines[1:]]
        return [self._text(label.upper(), "small"), *(self._text(line, "name") for line in lines[:1]), *rest]

    def _grid(self, rows: list[list[Any]], shares: tuple[float, ...], *, lines: bool) -> Any:
        table = self._parts.Table(rows, colWidths=[self._width * share for share in shares], hAlign="RIGHT")
        style: list[Any] = [("TOPPADDING", (0, 0), (-1, -1), 1), ("BOTTOMPADDING", (0, 0), (-1, -1), 1)]
        if lines:
            style.append(("LINEABOVE", (0, -1), (-1, -1), 1, "#1b1f24"))
        table.setStyle(style)
        return table

    def _table(self) -> Any:
        sheet = self._sheet
        # Figures are drawn as they are: laying each out as a paragraph takes most of a long invoice's time.
        rows = [
            [cell if numeric else self._text(cell, "cell") for cell, numeric in zip(row, sheet.numeric, strict=True)]
            for row in (sheet.columns, *sheet.rows)
        ]
        weights = [_weight(name, numeric=numeric) for name, numeric in zip(sheet.columns, sheet.numeric, strict=True)]
        widths = [self._width * weight / sum(weights) for weight in weights]
        table = self._parts.LongTable(rows, colWidths=widths, repeatRows=1)
        table.setStyle(
            [
                ("FONT", (0, 0), (-1, -1), REGULAR, _SIZES["cell"], _SIZES["cell"] * 1.35),
                *(("ALIGN", (n, 0), (n, -1), "RIGHT") for n, numeric in enumerate(sheet.numeric) if numeric),
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("LINEBELOW", (0, 0), (-1, 0), 0.8, "#8c959f"),
                ("LINEBELOW", (0, 1), (-1, -1), 0.3, _LINE),
                ("TOPPADDING", (0, 0), (-1, -1), 1.5),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 1.5),
                ("LEFTPADDING", (0, 0), (-1, -1), 2),
                ("RIGHTPADDING", (0, 0), (-1, -1), 2),
            ]
        )
        return table

    def _sums(self) -> Any:
        *parts, due = self._sheet.sums
        rows = [[self._text(name, "cell"), self._text(value, "number")] for name, value in parts]
        rows.append([self._text(due[0], "name"), self._text(due[1], "name")])
        rows[-1][1].style = reportlab("lib.styles").ParagraphStyle("due", parent=self._styles["name"], alignment=2)
        return self._parts.KeepTogether([self._grid(rows, (0.3, 0.2), lines=True)])

    def foot(self, canvas: Any, document: Any) -> None:
        """Title and page number below every page; ASCII only, so that any font will do."""
        canvas.saveState()
        canvas.setFont(REGULAR, _SIZES["small"])
        canvas.setFillColor(_GREY)
        canvas.drawRightString(self.size[0] - self.margin, self.margin / 2, f"page {document.page}")
        canvas.restoreState()


def _weight(name: str, *, numeric: bool) -> float:
    if name in {"#", "Line"}:
        return 0.5
    if name == "Description":
        return 4.2
    return 1.5 if numeric and name != "Factor" else 1.1
