"""A ledger written by an earlier release is read and verified by this one, whatever has been added since."""

import gzip
import json
import shutil
import sqlite3
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import get_args

import pytest

import tokenmeter
from tokenmeter.dimensions import EntryKind
from tokenmeter.ledger import CounterKey
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.stores.base import Counter
from tokenmeter.stores.definitions import Account, definition
from tokenmeter.stores.merging import merge_ledger
from tokenmeter.stores.sqlite import SQLiteStore

ARCHIVED = sorted((Path(__file__).parents[1] / "ledgers").glob("archived-*.db.gz"))
FAR = datetime(2100, 1, 2, tzinfo=UTC)
LEDGERS = sorted((Path(__file__).parents[1] / "ledgers").glob("format-*.db.gz"))


@pytest.fixture(params=LEDGERS, ids=lambda path: path.name)
def old(request, tmp_path):
    path = tmp_path / "ledger.db"
    path.write_bytes(gzip.decompress(request.param.read_bytes()))
    return path, json.loads(request.param.with_name(request.param.name.replace(".db.gz", ".json")).read_text())


def test_it_verifies_and_everything_in_it_is_read(old, make_entry):
    path, told = old
    store = SQLiteStore(path)
    found = store.verify(head=told["head"])
    assert (found.faults, found.entries, found.head, found.after_head) == ((), told["entries"], told["head"], 0)
    entries = list(store.entries())
    billed = sum((entry.billed_cost for entry in entries if entry.billed_cost), Decimal(0))
    assert billed == Decimal(told["billed_cost"])
    assert len({entry.attribution.end_user for entry in entries}) == 5
    assert len(list(store.documents())) == told["documents"]
    key = CounterKey("cap", "member=ada", 0)
    assert store.counters([key])[key] == Counter(told.get("counted", told["entries"]) * 1000, 7)
    assert [hold.call.usage.quantities["output"] for hold in store.expired(FAR)] == [told["held_output"]]
    store.settle(make_entry())
    assert store.verify(head=told["head"]).after_head == 1
    store.close()


def test_budgets_count_what_entries_say_of_calls_without_a_price(old):
    path, told = old
    store = SQLiteStore(path)
    dear = [
        {"provider": "openai", "model": "dear", "sku_meter": meter, "unit_price": "9", "per": 1}
        for meter in ("input", "output")
    ]
    meter = Meter(store=store, pricer=Pricer(PriceList.load(dear)))
    found = [(str(one.spent), str(one.assumed)) for one in meter.remaining(member="eve")]
    assert found == ([(told["spent"], told["assumed"])] if "spent" in told else [])
    assert meter.audit_budgets() == ()
    meter.close()


def test_every_kind_of_entry_is_in_a_ledger_that_is_kept(tmp_path):
    kinds = set()
    for number, packed in enumerate(LEDGERS):
        path = tmp_path / f"{number}.db"
        path.write_bytes(gzip.decompress(packed.read_bytes()))
        store = SQLiteStore(path)
        kinds |= {entry.kind for entry in store.entries()}
        store.close()
    assert kinds == set(get_args(EntryKind)), "tests/ledgers/write.py makes one that holds the new kind"


def test_a_new_column_makes_no_old_record_edited(old):
    path, _ = old
    connection = sqlite3.connect(path)
    connection.execute("ALTER TABLE accounts ADD COLUMN cost_centre TEXT")
    connection.execute("ALTER TABLE entries ADD COLUMN cost_centre INTEGER")
    connection.close()
    store = SQLiteStore(path)
    assert store.verify().faults == ()
    store.close()


def test_a_name_that_a_later_release_adds_leaves_old_definitions_what_they_are():
    values = dict.fromkeys(Account._fields) | {"kind": "usage", "provider": "openai"}
    assert definition("account", values | {"cost_centre": None}) == definition("account", values)
    assert definition("account", values | {"cost_centre": "x"}) != definition("account", values)


@pytest.mark.parametrize("packed", ARCHIVED, ids=lambda path: path.name)
def test_files_of_an_archive_are_proven_read_merged_and_brought_back(packed, tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("duckdb")
    told = json.loads(packed.with_name(packed.name.replace(".db.gz", ".json")).read_text())
    (tmp_path / "ledger.db").write_bytes(gzip.decompress(packed.read_bytes()))
    shutil.copytree(packed.with_name(packed.name.replace(".db.gz", "")), tmp_path / "archive")
    meter, joined = (tokenmeter.make_meter(store=f"sqlite:///{tmp_path}/{name}.db") for name in ("ledger", "joined"))
    assert any("archive" in fault.detail for fault in meter.verify().faults)  # the folder where it was written is gone
    meter.move_archive(tmp_path / "archive")

    def look(meter):
        found = meter.verify(head=told["before"] if meter is not joined else None, deep=True)
        entries = list(meter.entries())
        billed = sum((entry.billed_cost for entry in entries if entry.billed_cost), Decimal(0))
        assert (found.faults, len(entries), billed) == ((), told["entries"], Decimal(told["billed_cost"]))
        assert len({entry.attribution.end_user for entry in entries}) == 5
        return entries, meter.report("end_user").to_csv(), meter.report("tag:env,model").to_csv()

    seen = look(meter)
    assert {one.month: (one.root, one.dropped) for one in meter.archives()} == {
        month: (root, True) for month, root in told["roots"].items()
    }
    assert sum(one.entries for one in meter.archives()) == told["archived"]
    proof = meter.prove(seen[0][0].entry_id)
    assert proof.holds(meter.archives()[0].root)
    merge_ledger(tmp_path / "ledger.db", tmp_path / "joined.db")
    meter.restore_archive("2026-02")
    assert look(meter) == look(joined) == seen
    for one in (meter, joined):
        one.close()
