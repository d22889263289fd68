"""The table of dimensions: whole, agreeing with the typed fields beside it, and the one place where one is added."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

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
#: ... and the migration that CONTRIBUTING asks for.
MIGRATION = """
ALTER TABLE accounts ADD COLUMN department INTEGER REFERENCES names (id);
DROP VIEW contexts;
"""
JOIN = "LEFT JOIN names AS d ON d.id = a.department;"

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
import json, sys, tokenmeter
from tokenmeter.billing import late_entries
from tokenmeter import Budget, attribute
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
report = tokenmeter.report(by="department,member", period="2026-04")
print(json.dumps({
    "before": before,
    "after": [str(fault) for fault in tokenmeter.verify().faults],
    "groups": sorted(str(row.group.get("department")) for row in report.rows),
    "filtered": tokenmeter.report(where={"department": "sales"}).totals.requests,
    "old": tokenmeter.report(period="2026-03").totals.requests,
    "untold": len(late_entries(meter.store)),
    "invoice": str(tokenmeter.invoice(period="2026-04", department="sales").scope),
    "entries": sorted(str(entry.attribution.department) for entry in tokenmeter.entries()),
    "counted": [state.scope for state in tokenmeter.remaining()],
}))
meter.close()
"""


def test_the_table_names_what_the_typed_fields_and_arguments_name():
    assert len(set(DIMENSIONS)) == len(TABLE)
    assert tuple(field.name for field in dataclasses.fields(Who)) == WHO
    assert tuple(WhoArguments.__annotations__) == WHO
    assert set(AccountArguments.__annotations__) == set(ACCOUNTS)


def test_a_dimension_is_one_edit_in_one_file_and_a_migration(tmp_path):
    """`department`, added to a copy: attribution, budget, multiplier, report, filter and invoice know it at once."""
    ledger = f"sqlite:///{tmp_path / 'ledger.db'}"
    _run(OLD, ledger, PACKAGE.parent)

    copy = tmp_path / "copy" / "tokenmeter"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    _edit(copy / "dimensions.py", *EDIT)
    folder = copy / "stores" / "sqlite"
    (first,) = (folder / "sql").glob("0001_*.sql")
    script = first.read_text(encoding="utf-8")
    view = script[script.index("CREATE VIEW contexts") :]
    view = view[: view.index(";")].replace("AS project,", "AS project, d.value AS department,")
    number = len(list((folder / "sql").glob("*.sql"))) + 1
    (folder / "sql" / f"{number:04d}_department.sql").write_text(f"{MIGRATION}{view} {JOIN}", encoding="utf-8")
    _edit(folder / "schema.py", (f"SCHEMA_VERSION = {number - 1}\n", f"SCHEMA_VERSION = {number}\n"))

    said = json.loads(_run(NEW, ledger, copy.parent))
    assert said["before"] is True, "an old ledger verifies"
    assert said["after"] == []
    assert said["groups"] == ["None", "sales"]
    assert said["filtered"] == 1
    assert said["old"] == 2
    assert said["untold"] == 0, "a period closed before knows what it told"
    assert said["invoice"] == "{'department': 'sales'}"
    assert said["entries"] == ["None", "None", "None", "sales"]
    assert {"department": "sales"} in said["counted"]


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
