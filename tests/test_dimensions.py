"""The table of dimensions: whole, agreeing with the typed fields beside it, and the one place where one is added."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tokenmeter.dimensions import ACCOUNTS, DIMENSIONS, TABLE, WHO, AccountArguments, Who, WhoArguments

PACKAGE = Path(__file__).parent.parent / "src" / "tokenmeter"

#: The one edit in one file ...
EDIT = (
    (
        '    Dimension("route", ',
        '    Dimension("department", "who", invoiced=True, budgeted=True, specificity=35),\n    Dimension("route", ',
    ),
    ("    route: str | None = None\n", "    department: str | None = None\n    route: str | None = None\n"),
    ("    route: str | None\n", "    department: str | None\n    route: str | None\n"),
    ("    api_key: str | None\n", "    department: str | None\n    api_key: str | None\n"),
)
#: ... and the migrations that CONTRIBUTING asks for, one an engine.
SQLITE = """
ALTER TABLE accounts ADD COLUMN department INTEGER REFERENCES names (id);
DROP VIEW contexts;
"""
POSTGRES = "ALTER TABLE accounts ADD COLUMN department bigint;\n"
JOIN = "LEFT JOIN names AS d ON d.id = a.department;"
MIGRATE = """
import sys
from tokenmeter.stores.postgres import admin
admin.migrate(sys.argv[1])
"""

OLD = """
import sys, tokenmeter
from tokenmeter import Attribution
usage = {"prompt_tokens": 1000000, "completion_tokens": 0, "total_tokens": 1000000}
call = {"provider": "openai", "endpoint": "chat.completions", "model": "gpt-4o-mini"}
meter = tokenmeter.configure(store=sys.argv[1])
for member in ("ada", "bob"):
    tokenmeter.record(usage, **call, at="2026-03-02T10:00Z", attribution=Attribution(member=member))
tokenmeter.close_period("2026-03")
tokenmeter.issue_invoice(tokenmeter.invoice(period="2026-03", member="ada"))
meter.close()
"""

NEW = """
import json, pathlib, sys, tempfile, tokenmeter
from tokenmeter.billing import late_entries
from tokenmeter.dashboard.overview import RANKED
from tokenmeter import Budget, attribute
from tokenmeter.openai import OpenAI
from tokenmeter.testing import FakeProvider
usage = {"prompt_tokens": 1000000, "completion_tokens": 0, "total_tokens": 1000000}
call = {"provider": "openai", "endpoint": "chat.completions", "model": "gpt-4o-mini"}
meter = tokenmeter.configure(
    store=sys.argv[1],
    budgets=[Budget(department="*", limit_usd=5, period="total")],
    multipliers=[{"multiplier": "1.5", "department": "sales"}],
)
before = tokenmeter.verify().ok
for department in ("sales", None):
    with attribute(member="ada", department=department):
        tokenmeter.record(usage, **call, at="2026-04-02T10:00Z")
live = []
with FakeProvider() as fake, OpenAI(base_url=fake.openai_url, api_key="sk-test") as client:
    for department in ("sales", "sales", "legal", "legal", "sales", None):  # calls alike but for that
        with attribute(member="bob", department=department):
            client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "Hi"}])
        live.append(next(iter(tokenmeter.entries(newest_first=True))).attribution.department)
with tempfile.TemporaryDirectory() as folder:
    tokenmeter.export_focus(folder, period="2026-04")
    (rows,) = pathlib.Path(folder).glob("cost_and_usage*.csv")
    focus = rows.read_text().splitlines()[0].split(",")
report = tokenmeter.report(by="department,member", period="2026-04")
print(json.dumps({
    "before": before,
    "after": [str(fault) for fault in tokenmeter.verify().faults],
    "groups": sorted(str(row.group.get("department")) for row in report.rows),
    "live": live,
    "focus": [name for name in focus if name.startswith("x_D")],
    "ranked": "department" in RANKED,
    "filtered": tokenmeter.report(where={"department": "sales"}, period="2026-04").totals.requests,
    "old": tokenmeter.report(period="2026-03").totals.requests,
    "untold": len(late_entries(meter.store)),
    "invoice": str(tokenmeter.invoice(period="2026-04", department="sales").scope),
    "entries": sorted(str(entry.attribution.department) for entry in tokenmeter.entries(until="2026-05-01")),
    "counted": [state.scope for state in tokenmeter.remaining()],
}))
meter.close()
"""


def test_the_table_names_what_the_typed_fields_and_arguments_name():
    assert len(set(DIMENSIONS)) == len(TABLE)
    assert tuple(field.name for field in dataclasses.fields(Who)) == WHO
    assert tuple(WhoArguments.__annotations__) == WHO
    assert set(AccountArguments.__annotations__) == set(ACCOUNTS)


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_a_dimension_is_one_edit_in_one_file_and_a_migration(engine, tmp_path, request):
    """`department`, added to a copy: attribution, budget, multiplier, report, filter and invoice know it at once."""
    on_server = engine == "postgres"
    ledger = request.getfixturevalue("postgres_url") if on_server else f"sqlite:///{tmp_path / 'ledger.db'}"
    _run(OLD, ledger, PACKAGE.parent)

    copy = tmp_path / "copy" / "tokenmeter"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    _edit(copy / "dimensions.py", *EDIT)
    if on_server:
        _migrate_server(copy / "stores" / "postgres" / "sql")
        _run(MIGRATE, ledger, copy.parent)
    else:
        _migrate_file(copy / "stores" / "sqlite")

    said = json.loads(_run(NEW, ledger, copy.parent))
    assert said["before"] is True, "an old ledger verifies"
    assert said["after"] == []
    assert said["groups"] == ["None", "sales"]
    assert said["live"] == ["sales", "sales", "legal", "legal", "sales", None]
    assert said["focus"] == ["x_Department"]
    assert said["ranked"]
    assert said["filtered"] == 1
    assert said["old"] == 2
    assert said["untold"] == 0, "a period closed before knows what it told"
    assert said["invoice"] == "{'department': 'sales'}"
    assert said["entries"] == ["None", "None", "None", "sales"]
    assert {"department": "sales"} in said["counted"]


def _migrate_file(room):
    (first,) = (room / "sql").glob("0001_*.sql")
    view = _statement(first, "CREATE VIEW contexts", ";").replace("AS project,", "AS project, d.value AS department,")
    number = len(list((room / "sql").glob("*.sql"))) + 1
    (room / "sql" / f"{number:04d}_department.sql").write_text(f"{SQLITE}{view} {JOIN}", encoding="utf-8")
    _edit(room / "schema.py", (f"SCHEMA_VERSION = {number - 1}\n", f"SCHEMA_VERSION = {number}\n"))


def _migrate_server(folder):
    """What is replaced keeps who may read and call it: the view has the new column last, the function its arguments."""
    (first,), (second,) = folder.glob("0001_*.sql"), folder.glob("0002_*.sql")
    view = _statement(first, "CREATE VIEW contexts", ";").replace(
        "END AS api_key\n", "END AS api_key, d.value AS department\n"
    )
    function = (
        _statement(second, "CREATE FUNCTION define", "\nEND $$;")
        .replace("project, route,", "project, route, department,", 1)
        .replace("named(said, 'route'),", "named(said, 'route'), named(said, 'department'),")
        .replace("route = excluded.route,", "route = excluded.route, department = excluded.department,")
    )
    number = len(list(folder.glob("*.sql"))) + 1
    script = f"{POSTGRES}{view} {JOIN}\n{function}\nEND $$;\n".replace("\nCREATE ", "\nCREATE OR REPLACE ")
    (folder / f"{number:04d}_0.2.0_department.sql").write_text(script, encoding="utf-8")


def _statement(path, begin, end):
    text = path.read_text(encoding="utf-8")
    found = text[text.index(begin) :]
    return found[: found.index(end)]


#: A column and a token class, each one edit.
COLUMN = (
    '    corrects: str | None = column("text")\n',
    (
        '    corrects: str | None = column("text")\n'
        '    queue_us: int | None = column("integer")\n    queue_name: str | None = column("text")\n'
    ),
)
TOKEN_CLASS = ('OUTPUT_METERS: Final = ("output", ', 'OUTPUT_METERS: Final = ("output", "output_smell", ')

WIDER = """
import dataclasses, io, json, sys, tokenmeter
from tokenmeter.ledger import new_id
from tokenmeter.usage import Usage
meter = tokenmeter.configure(store=sys.argv[1])
before = tokenmeter.verify().ok
(*_, last) = tokenmeter.entries()
meter.store.append([(dataclasses.replace(
    last, entry_id=new_id(), dedup_key=None, queue_us=1_500, queue_name="night", charges=(),
    usage=Usage({"input": 7, "output_smell": 11}),
), ())])
with_both = next(entry for entry in tokenmeter.entries() if entry.queue_us is not None)
out = io.StringIO()
tokenmeter.export_entries(out, format="csv")
out.seek(0)
print(json.dumps({
    "before": before,
    "after": [str(fault) for fault in tokenmeter.verify().faults],
    "read": [with_both.queue_us, with_both.queue_name],
    "old": [entry.queue_us for entry in tokenmeter.entries()].count(None),
    "output": with_both.usage.output_tokens,
    "sum": tokenmeter.report(period="2026-03").totals.usage["output_smell"],
    "header": out.readline().strip().split(",")[-2:],
}))
meter.close()
"""


def test_a_column_of_an_entry_and_a_token_class_are_one_edit_each(tmp_path):
    """Kept, read, exported and added up at once; a ledger that was written before verifies."""
    ledger = f"sqlite:///{tmp_path / 'ledger.db'}"
    _run(OLD, ledger, PACKAGE.parent)
    copy = tmp_path / "copy" / "tokenmeter"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    _edit(copy / "ledger.py", COLUMN)
    _edit(copy / "dimensions.py", TOKEN_CLASS)

    said = json.loads(_run(WIDER, ledger, copy.parent))
    assert said["before"] is True
    assert said["after"] == []
    assert said["read"] == [1500, "night"]
    assert said["old"] == 2
    assert said["output"] == 11
    assert said["sum"] == 11
    assert said["header"] == ["queue_us", "queue_name"]


#: A format of exports: its name, its writer, and their line in the table, in one file.
FORMAT = (
    ('ExportFormat = Literal["csv", ', 'ExportFormat = Literal["tsv", "csv", '),
    (
        "WRITERS: Mapping[ExportFormat, Callable[[Iterable[list[Any]], Sequence[Field[Any]], Sink], object]] = {\n",
        """
def _write_tsv(records: Iterable[list[Any]], fields: Sequence[Field[Any]], sink: Sink) -> None:
    for cells in ([one.name for one in fields], *records):
        sink.write("\\t".join(str(cell) for cell in cells).encode() + b"\\n")


WRITERS: Mapping[ExportFormat, Callable[[Iterable[list[Any]], Sequence[Field[Any]], Sink], object]] = {
    "tsv": _write_tsv,
""",
    ),
)

EXPORTED = """
import pathlib, sys, tempfile, tokenmeter
from tokenmeter.__main__ import main
folder = pathlib.Path(tempfile.mkdtemp())
meter = tokenmeter.configure(store=sys.argv[1])
by_ending = tokenmeter.export_entries(folder / "entries.tsv")
print(by_ending.format, by_ending.rows, (folder / "entries.tsv").read_text().count("\\n"))
print(tokenmeter.report(by="member").export(folder / "report", format="tsv").format)
meter.close()
main(["export", "charges", str(folder / "charges.tsv"), "--store", sys.argv[1], "--json"])
"""


def test_a_format_of_exports_is_one_edit(tmp_path):
    """Every export has it: entries, charges and reports, by name and by ending, in code and by command."""
    ledger = f"sqlite:///{tmp_path / 'ledger.db'}"
    _run(OLD, ledger, PACKAGE.parent)
    copy = tmp_path / "copy" / "tokenmeter"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    _edit(copy / "reports" / "writers.py", *FORMAT)

    entries, report, *charges = _run(EXPORTED, ledger, copy.parent).splitlines()
    assert entries == "tsv 2 3"
    assert report == "tsv"
    assert json.loads("".join(charges))["charges"]["format"] == "tsv"


def _edit(path, *changes):
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, f"{path.name}: {old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def _run(code, ledger, path):
    environment = {**os.environ, "PYTHONPATH": str(path), "TOKENMETER_CONFIG": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, ledger], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
