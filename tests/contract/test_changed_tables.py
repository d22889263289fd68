"""A table that somebody changed by hand is a finding of `verify`, in words; it does not end the verification."""

import pytest

from tokenmeter.__main__ import main

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
    assert {fault.where for fault in verified.faults} == {"table sums", "sums"}


def test_a_table_more_is_nobodys_business(filled):
    change(filled, "CREATE TABLE notes (text text)")
    assert filled.verify().ok


def test_the_command_says_what_is_gone(filled, capsys):
    url = getattr(filled, "path", None)
    if url is None or filled.url == "memory:":
        pytest.skip("only a file is named by its path alone")
    change(filled, "ALTER TABLE names RENAME TO put_away")
    filled.close()
    with pytest.raises(SystemExit, match="1"):
        main(["verify", "--store", filled.url])
    told = " ".join(capsys.readouterr().out.split())
    assert "table names: a part of the ledger is gone. The table is gone." in told


def test_a_sketch_of_latencies_that_was_cut_off_is_found(store, make_entry):
    store.append([(make_entry(latency_us=1000), ())])
    assert store.verify().ok
    change(store, "UPDATE latency_sums SET duration = substr(duration, 1, 5)")
    assert not store.verify().ok
