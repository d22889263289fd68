"""A sheet as one HTML page: no scripts, nothing from elsewhere, made for A4 paper and for screens."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from tokenmeter.billing.render.sheet import PrintedRow, PrintedSheet

_STYLE = """
@page { size: A4; margin: 18mm 16mm; }
@page { @bottom-right { content: counter(page) " / " counter(pages); font: 8pt sans-serif; } }
* { box-sizing: border-box; }
body { font: 10pt/1.45 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; color: #1b1f24; margin: 0; }
main { max-width: 178mm; margin: 12mm auto; padding: 0 6mm; }
header { display: flex; justify-content: space-between; gap: 10mm; border-bottom: 2px solid #1b1f24; }
h1 { font-size: 18pt; margin: 0 0 2mm; }
.stamp { color: #b42318; border: 2px solid; padding: 0 2mm; font-size: 11pt; letter-spacing: .1em; margin-left: 3mm; }
.parties { display: flex; gap: 10mm; margin: 6mm 0; }
.parties > div { flex: 1; }
.parties h2 { font-size: 8pt; text-transform: uppercase; letter-spacing: .06em; color: #57606a; margin: 0; }
.parties p { margin: 0; overflow-wrap: anywhere; }
.parties p:first-of-type { font-weight: 600; }
dl { display: grid; grid-template-columns: auto auto; gap: 0 4mm; margin: 0 0 3mm; font-size: 9pt; }
dt { color: #57606a; } dd { margin: 0; text-align: right; }
table { width: 100%; border-collapse: collapse; font-size: 9pt; }
thead { display: table-header-group; }
th { text-align: left; border-bottom: 1px solid #8c959f; padding: 1mm 1.5mm; font-size: 8pt; }
td { padding: 1mm 1.5mm; border-bottom: 1px solid #eaeef2; vertical-align: top; overflow-wrap: break-word; }
tr { break-inside: avoid; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.parties .sums { flex: 0 0 auto; }
.sums { width: auto; break-inside: avoid; }
.sums td { border: 0; } .sums tr:last-child td { border-top: 2px solid #1b1f24; font-weight: 700; font-size: 11pt; }
.due { font-size: 13pt; margin: 0; }
.note { color: #57606a; font-size: 7.5pt; }
.empty { color: #57606a; }
footer { font-size: 7.5pt; color: #57606a; border-top: 1px solid #d0d7de; margin-top: 6mm; overflow-wrap: anywhere; }
@media print { main { margin: 0; padding: 0; max-width: none; } }
"""


def render_html(sheet: PrintedSheet) -> str:
    """The page."""
    stamp = f' <span class="stamp">{escape(sheet.stamp)}</span>' if sheet.stamp else ""
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in sheet.facts)
    sums = "".join(f'<tr><td>{escape(name)}</td><td class="n">{escape(value)}</td></tr>' for name, value in sheet.sums)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(sheet.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header><div><h1>{escape(sheet.title)}{stamp}</h1><p class="due">{escape(sheet.due)}</p></div>'
        f"<dl>{facts}</dl></header>\n"
        f'<section class="parties">{_party("From", sheet.seller)}{_party("To", sheet.buyer)}'
        f'<table class="sums"><tbody>{sums}</tbody></table></section>\n'
        f"{_table(sheet)}\n"
        f"{_paragraphs(sheet.remarks)}\n<footer>{_paragraphs(sheet.small)}</footer>\n</main>\n</body>\n</html>\n"
    )


def _party(label: str, lines: Iterable[str]) -> str:
    return f"<div><h2>{label}</h2>{_paragraphs(lines)}</div>"


def _paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _table(sheet: PrintedSheet) -> str:
    if not sheet.rows:
        return f'<p class="empty">{escape(sheet.empty)}</p>'
    classes = [' class="n"' if numeric else "" for numeric in sheet.numeric]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(classes, sheet.columns, strict=True))
    rows = "\n".join(_row(row, sheet.columns, classes) for row in sheet.rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


def _row(row: PrintedRow, columns: Iterable[str], classes: Iterable[str]) -> str:
    note = f'<br><span class="note">{escape(row.note)}</span>' if row.note else ""
    cells = (
        f"<td{kind}>{escape(cell)}{note if name == 'Description' else ''}</td>"
        for name, kind, cell in zip(columns, classes, row.cells, strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>"
