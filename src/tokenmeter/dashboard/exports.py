"""What a page shows, as files to download."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from starlette.background import BackgroundTask
from starlette.responses import FileResponse

from tokenmeter.dashboard.view import View
from tokenmeter.reports import Query, export_charges, export_entries, export_focus
from tokenmeter.reports.query import parse_by
from tokenmeter.reports.report import read_report
from tokenmeter.stores.base import Store

__all__ = ["EXPORTS", "export"]


def _report(store: Store, view: View, by: str, folder: Path) -> Path:
    query = replace(view.query, by=parse_by(by) if by else ())
    if not by:
        query = view.bounded(store).over_time()[0]
    read_report(store, query).to_csv(folder / "report.csv")
    return folder / "report.csv"


def _entries(store: Store, view: View, _by: str, folder: Path) -> Path:
    export_entries(store, folder / "entries.csv", query=view.query)
    return folder / "entries.csv"


def _charges(store: Store, view: View, _by: str, folder: Path) -> Path:
    export_charges(store, folder / "charges.csv", query=view.query)
    return folder / "charges.csv"


def _focus(store: Store, view: View, _by: str, folder: Path) -> Path:
    query = Query(period=view.query.period, where=view.query.where)
    export_focus(store, folder / "focus", query=query)
    target = folder / "focus-1.4.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((folder / "focus").iterdir()):
            archive.write(file, file.name)
    return target


#: File name in the URL -> what writes it into a folder.
EXPORTS: dict[str, Callable[[Store, View, str, Path], Path]] = {
    "report.csv": _report,
    "entries.csv": _entries,
    "charges.csv": _charges,
    "focus.zip": _focus,
}
_TYPES = {".csv": "text/csv; charset=utf-8", ".zip": "application/zip"}


def export(store: Store, view: View, what: str, *, by: str = "") -> FileResponse:
    """The download called `what`, a key of `EXPORTS`; the file is gone once it was sent.

    Raises:
        ConfigurationError: `by` names an unknown dimension.
    """
    folder = Path(tempfile.mkdtemp(prefix="tokenmeter-export-"))
    try:
        file = EXPORTS[what](store, view, by, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return FileResponse(
        file,
        media_type=_TYPES[file.suffix],
        filename=f"tokenmeter-{file.name}",
        background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
    )
