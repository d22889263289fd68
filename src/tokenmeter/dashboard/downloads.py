"""Downloads: of bounded size, and not many at once."""

from __future__ import annotations

import shutil
import tempfile
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse

from tokenmeter.dashboard.view import View
from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError
from tokenmeter.reports import Query, export_charges, export_entries, export_focus
from tokenmeter.reports.query import parse_by
from tokenmeter.reports.report import read_report
from tokenmeter.stores.base import Store

#: Calls that one download may hold; a sheet has room for little more. The command line has no such bound.
_MOST_CALLS = 1_000_000
#: Downloads that are made at the same time.
_MOST_AT_ONCE = 4
_slots = threading.BoundedSemaphore(_MOST_AT_ONCE)


def _write_report(store: Store, view: View, by: str, target: Path) -> None:
    query = replace(view.query, by=parse_by(by) if by else ())
    if not by:
        query = view.bounded(store).over_time()[0]
    read_report(store, query).export(target)


def _write_entries(store: Store, view: View, _by: str, target: Path) -> None:
    _check_size(store, view)
    export_entries(store, target, query=view.query)


def _write_charges(store: Store, view: View, _by: str, target: Path) -> None:
    _check_size(store, view)
    export_charges(store, target, query=view.query)


def _write_focus(store: Store, view: View, _by: str, target: Path) -> None:
    _check_size(store, view)
    folder = target.with_suffix("")
    export_focus(store, folder, query=Query(period=view.query.period, where=view.query.where))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)


def _check_size(store: Store, view: View) -> None:
    """Refuse what is too large to be made while somebody waits.

    Raises:
        ConfigurationError: says how many calls it are, and what to do.
    """
    calls = read_report(store, replace(view.query, by=())).totals.requests
    if calls > _MOST_CALLS:
        raise ConfigurationError(
            f"These are {counted(calls, 'call')}, and a download holds {_MOST_CALLS:,} at most. Choose a shorter "
            "period or a filter, or write them on the server, where there is no bound: tokenmeter export --help."
        )


_WRITERS: Mapping[str, Callable[[Store, View, str, Path], None]] = {
    "report": _write_report,
    "entries": _write_entries,
    "charges": _write_charges,
}
_TYPES = {
    ".csv": "text/csv; charset=utf-8",
    ".jsonl": "application/x-ndjson",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".parquet": "application/vnd.apache.parquet",
    ".zip": "application/zip",
}
#: File name in the URL -> what writes it.
EXPORTS: Mapping[str, Callable[[Store, View, str, Path], None]] = {
    **{f"{name}{form}": write for name, write in _WRITERS.items() for form in (".csv", ".jsonl", ".xlsx", ".parquet")},
    "focus.zip": _write_focus,
}


def export(store: Store, view: View, what: str, *, by: str = "") -> FileResponse:
    """The download called `what`, a key of `EXPORTS`; the file is gone once it was sent.

    Raises:
        ConfigurationError: `by` names an unknown dimension, an extra is missing, or it would be too large.
        HTTPException: so many are being made that this one has to wait.
    """
    if not _slots.acquire(blocking=False):
        raise HTTPException(
            503, "Other downloads are being made; ask again when one is done.", headers={"retry-after": "10"}
        )
    folder = Path(tempfile.mkdtemp(prefix="tokenmeter-export-"))
    file = folder / ("focus-1.4.zip" if what == "focus.zip" else what)
    try:
        EXPORTS[what](store, view, by, file)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        # Making it takes memory and the ledger; sending it takes neither, and may take long.
        _slots.release()
    return FileResponse(
        file,
        media_type=_TYPES[file.suffix],
        filename=f"tokenmeter-{file.name}",
        background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
    )
