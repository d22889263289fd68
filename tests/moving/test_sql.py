"""A ledger file answers questions in SQL, in plain names, exactly, and cannot be changed that way."""

import asyncio
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from decimal import Decimal

import pytest

from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import new_id
from tokenmeter.pricing.corrections import reversal


@pytest.fixture
def meter(filled, tmp_path):
    return filled(f"sqlite:///{tmp_path}/ledger.db")


@pytest.fixture
def database(meter):
    opened = meter.database()
    yield opened
    opened.close()


def test_entries_say_what_the_ledger_says(meter, database):
    for row, entry in zip(database.query("SELECT * FROM entries ORDER BY seq"), meter.entries(), strict=True):
        assert (row["entry_id"], row["member"], row["end_user"], row["model"], json.loads(row["tags"])) == (
            entry.entry_id,
            entry.attribution.member,
            entry.attribution.end_user,
            entry.model,
            dict(entry.attribution.tags),
        )
        assert Decimal(row["billed_cost"]) == entry.billed_cost
        assert row["billed_micro"] * 10**6 + row["billed_pico"] == entry.billed_cost * 10**12
        assert row["occurred_at"] == entry.occurred_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        assert row["input_tokens"] == entry.usage.quantities["input"]


def test_charges_and_sums_add_up_to_the_report(meter, database):
    total = meter.report().totals.billed_cost
    (charged,) = [sum(Decimal(row["billed_cost"]) for row in database.query("SELECT billed_cost FROM charges"))]
    (summed,) = database.query("SELECT dollars(sum(billed_micro), sum(billed_pico)) AS usd FROM sums")
    assert charged == Decimal(summed["usd"]) == total
    assert {row["member"] for row in database.query("SELECT member FROM accounts")} == {
        "ada@example.com",
        "bob@example.com",
    }


def test_flags_stand_beside_an_entry_as_a_list(meter):
    meter.record(
        {"id": "a", "model": "gpt-5-mini", "usage": {"tokens": 7}}, provider="openai", endpoint="chat.completions"
    )
    database = meter.database()
    asked = "SELECT e.response_id, f.value FROM entries e, json_each(e.flags) f WHERE f.value = 'usage_unknown'"
    assert list(database.query(asked)) == [{"response_id": "a", "value": "usage_unknown"}]
    database.close()


def test_what_waits_in_the_tail_is_there(meter, record):
    entry = record(meter, "now", member="eve")
    database = meter.database()
    assert [
        row["member"] for row in database.query("SELECT member FROM entries WHERE entry_id = ?", [entry.entry_id])
    ] == ["eve"]
    database.close()


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM main.names",
        "UPDATE main.ledger SET seq = 0",
        "DROP TABLE main.entries",
        "CREATE TEMP TABLE mine (a)",
        "ATTACH 'evil.db' AS evil",
        "VACUUM INTO 'evil.db'",
        "PRAGMA query_only = OFF",
        "PRAGMA writable_schema = 1",
        "UPDATE sqlite_master SET sql = ''",
    ],
)
def test_nothing_can_be_changed_or_made(database, change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sqlite3.DatabaseError, match=r"not authorized|authorization denied|may not be modified"):
        database.execute(change)
    assert not (tmp_path / "evil.db").exists()


@pytest.mark.parametrize(
    "query",
    ["SELECT * FROM secret", "SELECT value FROM main.secret", "SELECT (SELECT hex(value) FROM secret) FROM entries"],
)
def test_the_ledgers_secret_cannot_be_read(database, query):
    with pytest.raises(sqlite3.DatabaseError, match="prohibited"):
        database.execute(query)


def test_sqlite_utils_knows_the_views_and_their_rows(database):
    assert database.view_names() == [one.name for one in database.views] == ["entries", "charges", "accounts", "sums"]
    assert database.table_names() == []
    for view in database.views:
        assert view.exists()
        assert len(list(view.rows)) == view.count > 0
        assert [column.name for column in view.columns] == list(next(view.rows))


def test_datasette_serves_a_copy(meter, tmp_path):
    datasette = pytest.importorskip("datasette.app", reason="needs datasette")
    copy = meter.database(copy_to=tmp_path / "copy.db")
    copy.close()

    async def ask():
        pages = datasette.Datasette([str(tmp_path / "copy.db")])
        page = await pages.client.get("/copy/entries")
        rows = await pages.client.get("/copy/entries.json?_shape=array&member=ada@example.com")
        return page.status_code, rows.json()

    status, rows = asyncio.run(ask())
    assert (status, len(rows)) == (200, 6)
    assert {row["member"] for row in rows} == {"ada@example.com"}


def test_the_tools_of_sqlite_utils_read_a_backup(meter, tmp_path):
    made = meter.backup(tmp_path / "backup.db")
    query = "SELECT member, count(*) AS calls FROM entries JOIN contexts ON contexts.id = account GROUP BY member"
    done = subprocess.run(
        [sys.executable, "-m", "sqlite_utils", "query", made.path, query], capture_output=True, text=True, check=True
    )
    assert [row["calls"] for row in json.loads(done.stdout)] == [6, 6]


def test_a_ledger_on_a_server_says_what_to_use(filled, postgres_url):
    with pytest.raises(ConfigurationError, match="psql"):
        filled(postgres_url).database()


def test_requests_add_up_to_the_calls_of_reports(meter):
    first = next(meter.entries())
    meter.post(reversal(first, []))
    meter.post(replace(first, entry_id=new_id(), kind="growth", dedup_key=None))
    meter.post(replace(first, entry_id=new_id(), operation="execute_tool", dedup_key=None))
    with closing(meter.database()) as database:
        for query in ("SELECT sum(requests) AS n FROM entries", "SELECT sum(requests) AS n FROM sums"):
            assert next(database.query(query))["n"] == meter.report().totals.requests == 11


def test_the_command_prints_a_table_or_json_and_says_what_is_wrong(meter, tmp_path, run_command):
    meter.close()

    def run(query, *more):
        return run_command("sql", query, "--store", f"sqlite:///{tmp_path}/ledger.db", *more)

    query = "SELECT member, count(*) AS calls FROM entries GROUP BY member"
    code, said, _ = run(query)
    assert (code, said.split()[:2], "ada@example.com" in said) == (0, ["member", "calls"], True)
    code, said, _ = run(query, "--json")
    assert json.loads(said) == [{"member": "ada@example.com", "calls": 6}, {"member": "bob@example.com", "calls": 6}]
    assert run("SELECT * FROM nothing")[0] == 2
    assert run("DELETE FROM main.names")[0] == 2
    assert run("SELECT * FROM entries WHERE 0")[1] == "No rows.\n"


def test_a_copy_has_the_same_as_tables_and_needs_no_tokenmeter(meter, database, tmp_path):
    path = tmp_path / "readable.db"
    copy = meter.database(copy_to=path)
    assert {table.name for table in copy.tables} == {"entries", "charges", "accounts", "sums"}
    copy.close()
    assert path.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(path) as plain:
        for table in ("entries", "charges", "accounts", "sums"):
            select = f"SELECT * FROM {table}"  # noqa: S608 - names of our own
            assert set(plain.execute(select)) == set(database.conn.execute(select))
        (names,) = plain.execute("SELECT group_concat(name) FROM sqlite_master").fetchone()
    plain.close()
    assert "secret" not in names
    done = subprocess.run(
        [sys.executable, "-m", "sqlite_utils", "query", str(path), "SELECT count(*) AS n FROM entries"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [{"n": len(list(meter.entries()))}]
    with pytest.raises(ConfigurationError, match="exists"):
        meter.database(copy_to=path)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        meter.database(copy_to=tmp_path / "no" / "folder.db")


def test_the_command_writes_the_copy(meter, tmp_path, run_command):
    copied = run_command("sql", "--copy", tmp_path / "readable.db", "--store", meter.store.url)
    assert (copied.code, "entries" in copied.out) == (0, True)
    for arguments in ([], ["SELECT 1", "--copy", "x"]):
        assert run_command("sql", *arguments, "--store", meter.store.url).code == 2


def test_a_price_that_nobody_knows_is_null_and_never_zero(meter, tmp_path):
    entry = meter.record(
        {"usage": {"prompt_tokens": 5, "completion_tokens": 1}},
        provider="openai",
        endpoint="chat.completions",
        model="unheard-of",
    )
    assert entry.billed_cost is None
    for database in (meter.database(), meter.database(copy_to=tmp_path / "copy.db")):
        (row,) = database.query("SELECT * FROM entries WHERE entry_id = ?", [entry.entry_id])
        assert (row["list_cost"], row["billed_cost"], row["unpriced"]) == (None, None, 1)
        assert (row["billed_micro"], row["billed_pico"]) == (None, None)  # nor does a sum over it become zero
        (row,) = database.query("SELECT * FROM sums WHERE model = 'unheard-of'")
        assert (row["list_cost"], row["billed_cost"], row["billed_micro"], row["unpriced"]) == (None, None, None, 1)
        database.close()
