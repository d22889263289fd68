"""A table that somebody changed by hand is a finding of `verify`, in words; it does not end the verification."""

import pytest

from tokenmeter.api import Meter
from tokenmeter.budgets import Budget
from tokenmeter.erasing import erase
from tokenmeter.errors import TamperedLedgerError
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.stores.book import ENTRY_COLUMNS
from tokenmeter.stores.documents import NewDocument

#: All but those without which a ledger cannot be opened, or told from another one.
TABLES = sorted(
    {"accounts", "archived_ids", "contexts", "counters", "crossings", "dedup", "entries", "holds", "latency_sums"}
    | {"meter_sums", "names", "packed_sums", "places", "rare_sums", "rates", "refused", "secret", "sums", "tagsets"}
)


@pytest.fixture
def filled(store, make_entry):
    store.append([(make_entry(end_user="u-1", tags={"run": "7"}), ()) for _ in range(3)])
    assert store.verify().ok
    return store


def change(store, statement):
    store.end().write(lambda rows: rows.execute(statement))


def found(store, kind="table"):
    return {fault.where: fault.detail for fault in store.verify().faults if fault.kind == kind}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_is_gone_is_found(filled, table):
    change(filled, f"DROP VIEW {table}" if table == "contexts" else f"ALTER TABLE {table} RENAME TO put_away")
    told = found(filled)[f"table {table}"]
    assert told.startswith("The table is gone.")
    assert "restore a backup" in told


def test_a_ledger_without_its_head_is_told_by_whatever_reads_its_entries(filled):
    """By `verify` as a fault, also where budgets have to be counted again."""
    meter = Meter(store=filled, pricer=Pricer(PriceList.load([])), budgets=[Budget(member="*", limit_tokens=500)])
    body = {"id": "c1", "model": "gpt-5", "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}}
    meter.record(body, provider="openai", endpoint="chat.completions", attribution={"member": "ada"})
    assert meter.verify().ok
    change(filled, "DELETE FROM ledger")
    for ask in (
        lambda: list(filled.entries()),
        lambda: filled.span(None, None),
        filled.archives.listed,
        filled.identity,
        filled.pulse,
        meter.audit_budgets,
    ):
        with pytest.raises(TamperedLedgerError, match="The ledger's head is gone"):
            ask()
    assert {fault.where for fault in meter.verify().faults} == {"table ledger", "budgets"}
    if filled.url.startswith("postgresql"):  # of a server there is more to say than of its ledger
        assert any("head is gone" in warning for warning in filled.health().warnings)
        return
    with pytest.raises(TamperedLedgerError, match="The ledger's head is gone"):
        filled.health()


def test_a_column_that_is_gone_is_found(filled):
    change(filled, "ALTER TABLE crossings RENAME COLUMN threshold TO bound")
    assert found(filled)["table crossings"].startswith("Its column is gone: threshold.")


def test_a_table_of_another_shape_is_found(filled):
    change(filled, "ALTER TABLE rare_sums RENAME TO put_away")
    change(filled, "CREATE TABLE rare_sums (note text)")
    assert "columns are gone: account, level, nano, quantity, sku_meter, slot" in found(filled)["table rare_sums"]


def test_the_records_are_looked_at_although_sums_are_gone(filled):
    change(filled, "ALTER TABLE sums RENAME TO put_away")
    verified = filled.verify()
    assert verified.entries == 3
    assert len(verified.head) == 64
    told = {fault.where for fault in verified.faults if fault.kind != "trigger"}  # PostgreSQL's went with the table
    assert told == {"table sums", "sums"}


def test_a_table_more_is_nobodys_business(filled):
    change(filled, "CREATE TABLE notes (text text)")
    assert filled.verify().ok


def on_file(store):
    return store.url == "memory:" or hasattr(store, "path")


def test_a_guard_that_does_something_else_is_found(filled):
    change(filled, "DROP TRIGGER entries_stay" + ("" if on_file(filled) else " ON entries"))
    change(
        filled,
        "CREATE TRIGGER entries_stay BEFORE DELETE ON entries WHEN old.seq < 0 BEGIN SELECT 1; END"
        if on_file(filled)
        else "CREATE TRIGGER entries_stay BEFORE DELETE ON entries FOR EACH ROW WHEN (old.seq < 0) "
        "EXECUTE FUNCTION refuse_removal()",
    )
    assert "somebody replaced it" in found(filled, "trigger")["entries_stay"]


def test_a_trigger_of_somebody_else_is_found(filled):
    change(
        filled,
        "CREATE TRIGGER cheaper AFTER INSERT ON sums BEGIN UPDATE sums SET billed_micro = 0; END"
        if on_file(filled)
        else "CREATE RULE cheaper AS ON INSERT TO sums DO ALSO UPDATE sums SET billed_micro = 0",
    )
    assert "tokenmeter did not make" in found(filled, "trigger")["cheaper"]


def test_a_view_that_says_something_else_is_found(filled):
    read = "SELECT sql FROM sqlite_master WHERE name = 'contexts'"
    if not on_file(filled):
        read = "SELECT concat('CREATE VIEW contexts AS ', pg_get_viewdef('contexts'::regclass))"
    (text,) = filled.end().read(lambda rows: rows.execute(read).fetchone())
    change(filled, "DROP VIEW contexts")
    change(filled, text)
    assert filled.verify().ok
    change(filled, "DROP VIEW contexts")
    change(filled, text.replace("a.provider,", "upper(a.provider) AS provider,"))
    assert "is not tokenmeter's" in found(filled)["view contexts"]


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
@pytest.mark.parametrize(
    ("statement", "where"),
    [
        (
            "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
            "refuse_change",
        ),
        ("CREATE FUNCTION link(bytea, bytea, varchar) RETURNS bytea LANGUAGE sql AS 'SELECT $1'", "link"),
        ("ALTER FUNCTION fold(json) SECURITY INVOKER", "fold"),
        ("ALTER FUNCTION reserve(jsonb) SET search_path = public", "reserve"),
    ],
)
def test_a_function_that_does_something_else_is_found(filled, statement, where):
    change(filled, statement)
    assert "is not tokenmeter's" in found(filled)[f"function {where}"]


def test_the_command_says_what_is_gone(filled, run_command):
    url = getattr(filled, "path", None)
    if url is None or filled.url == "memory:":
        pytest.skip("only a file is named by its path alone")
    change(filled, "ALTER TABLE names RENAME TO put_away")
    filled.close()
    code, said, _ = run_command("verify", "--store", filled.url)
    told = " ".join(said.split())
    assert (code, "names: a part of the ledger is gone, or not as it was made. The table is gone." in told) == (1, True)


def test_a_sketch_of_latencies_that_was_cut_off_is_found(store, make_entry):
    store.append([(make_entry(latency_us=1000), ())])
    assert store.verify().ok
    change(store, "UPDATE latency_sums SET duration = substr(duration, 1, 5)")
    assert not store.verify().ok


@pytest.fixture
def rich(store, make_entry, make_charge):
    """Every kind of row: bills, end users, tags, rates, times, documents, one name that was erased."""
    for number in range(4):
        charge, bill = make_charge(quantity=number + 1), f"openai:{number}"
        entry = make_entry(
            end_user=f"u-{number}", tags={"run": "7"}, charges=(charge,), dedup_key=bill, latency_us=1000 * number + 1
        )
        store.append([(entry, ())])
        store.file(NewDocument(kind="note", key=str(number), series="N", body="{}"))
    erase(store, "end_user", "u-3", reason="asked", by="root")
    assert store.verify().ok
    return store


#: Who goes past the triggers, and what `verify` then names.
CHANGES = [
    ("UPDATE accounts SET body = NULL", "accounts 1"),
    ("UPDATE rates SET body = NULL", "rates 1"),
    ("UPDATE names SET kind = '', value = 'somebody else' WHERE id = 1", "names 1"),
    ("UPDATE names SET kind = '', salt = NULL, value = NULL WHERE id = 1", "names 1"),
    ("UPDATE names SET value = NULL WHERE id = 1", "names 1"),
    ("DELETE FROM names WHERE kind = 'tag:run'", "entry "),
    ("UPDATE documents SET body = 'x' WHERE key = '1'", "note 1"),
    ("UPDATE documents SET body = '[]' WHERE key = '1'", "note 1"),
    ("UPDATE documents SET body = 'x' WHERE kind = 'erasure'", "erasure "),
    ("UPDATE documents SET kind = 'erasure' WHERE key = '1'", "erasure 1"),
    ("UPDATE documents SET kind = 'archive' WHERE key = '1'", "archive 1"),
    ("UPDATE documents SET kind = 'budget' WHERE key = '1'", "budget 1"),
    ("UPDATE documents SET number = NULL WHERE key = '1'", "note 1"),
    ("DELETE FROM ledger", "table ledger"),
    ("UPDATE ledger SET entries = entries + 1", "head"),
    ("UPDATE ledger SET documents = documents + 1", "head"),
    ("UPDATE ledger SET archived_to = 1", "records 1 to 1"),
    ("INSERT INTO dedup VALUES ('openai:77', 1)", "bills"),
    ("INSERT INTO dedup VALUES ('openai:77', 7777)", "bills"),
    ("DELETE FROM dedup WHERE key = 'openai:1'", "entry "),
    ("UPDATE latency_sums SET first_token = duration", "20"),
]


@pytest.mark.parametrize(("statement", "where"), CHANGES)
def test_a_row_that_somebody_changed_is_named(rich, statement, where):
    go_past_the_triggers(rich, statement)
    assert [one.where for one in rich.verify().faults if one.where.startswith(where)]
    # Also by the meter's own question, which reads budgets.
    meter = Meter(store=rich, pricer=Pricer(PriceList.load([])))
    assert [one.where for one in meter.verify().faults if one.where.startswith(where)]


@pytest.mark.parametrize("store", ["memory", "sqlite"], indirect=True)  # PostgreSQL's are numbers by their type
def test_a_counter_that_says_no_amount_is_told(filled):
    change(filled, "INSERT INTO counters VALUES ('cap', '', 0, NULL, 'x')")
    meter = Meter(store=filled, pricer=Pricer(PriceList.load([])))
    assert "says 'x', which is no amount" in meter.verify().faults[-1].detail


@pytest.mark.parametrize(
    ("number", "where"), [("(SELECT max(seq) FROM documents)", "record 9"), ("0", "entries"), ("-3", "entries")]
)
def test_an_entry_that_somebody_added_where_it_is_not_looked_for_is_named(rich, number, where):
    """Under the number of a document, as in two partitions, or before the chain; triggers keep nobody from adding."""
    another = "zeroblob(16)" if on_file(rich) else "'00000000000000000000000000000000'"
    rest = ", ".join(ENTRY_COLUMNS[2:])
    change(
        rich,
        f"INSERT INTO entries (seq, entry_id, {rest}) SELECT {number}, {another}, {rest} FROM entries LIMIT 1",  # noqa: S608 - ours
    )
    assert ("edited", where) in {(fault.kind, fault.where) for fault in rich.verify().faults}


def go_past_the_triggers(store, statement):
    if on_file(store):
        known = store.end().read(
            lambda rows: rows.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        )
        for name, _ in known:
            change(store, f"DROP TRIGGER {name}")
        change(store, statement)
        for _, text in known:
            change(store, text)
    else:
        table = statement.removeprefix("INSERT INTO ").removeprefix("DELETE FROM ").removeprefix("UPDATE ").split()[0]
        change(store, f"ALTER TABLE {table} DISABLE TRIGGER ALL")
        change(store, statement)
        change(store, f"ALTER TABLE {table} ENABLE TRIGGER ALL")
