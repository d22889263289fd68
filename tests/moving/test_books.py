"""What people wrote down beside the calls comes along: payments, credit notes, what was granted, a budget's history."""

from datetime import UTC, datetime

import pytest

import tokenmeter
from tokenmeter.stores import open_store
from tokenmeter.stores.backup import restore
from tokenmeter.stores.merging import merge_ledger
from tokenmeter.stores.moving import copy_ledger

BUDGET = tokenmeter.Budget(name="team", team="search", limit_usd="0.0015", thresholds=[10, 50])
NUMBER = "INV-00001"


@pytest.fixture
def kept(filled, record):
    """A meter on a URL; its invoice was paid in part and credited, its budget passed half and was granted more."""

    def make(url):
        meter = filled(url, budgets=[BUDGET])
        for number in range(3):
            record(meter, f"now {number}", team="search")
        meter.record_payment(NUMBER, "0.01", key="bank 1", by="kim")
        meter.credit_invoice(NUMBER, None, "agreed", by="kim")
        meter.budgets.grant("team", "0.5", by="kim", reason="busy")
        return meter

    return make


def books(meter, at):
    invoice = meter.find_invoice(NUMBER)
    return {
        "invoice": (invoice.balance, invoice.status, invoice.events),
        "balances": [str(one) for one in meter.age_balances()],
        "granted": meter.budgets.grants("team"),
        "history": meter.budgets.history("team"),
        "room": [str(one) for one in meter.budgets.remaining({"team": "search"}, at)],
        "passed": list(meter.store.crossings()),
    }


@pytest.mark.parametrize("way", ["sqlite to postgres", "postgres to sqlite", "backup"])
def test_books_and_budgets_are_the_same_at_the_other_end(kept, open_meter, fresh_url, tmp_path, way):
    source, target, at = f"sqlite:///{tmp_path}/old.db", f"sqlite:///{tmp_path}/new.db", datetime.now(UTC)
    if way == "sqlite to postgres":
        target = fresh_url("postgres")
    elif way == "postgres to sqlite":
        source = fresh_url("postgres")
    meter = kept(source)
    before = books(meter, at)
    assert before["granted"]
    assert before["passed"]
    if way == "backup":
        meter.backup(tmp_path / "backup.db")
        restore(tmp_path / "backup.db", target)
    else:
        meter.close()
        copy_ledger(source, target)
    after = open_meter(target, budgets=[BUDGET])
    assert books(after, at) == before
    assert after.verify().ok


def test_a_ledger_that_is_taken_in_brings_its_books_and_leaves_its_budgets(kept, open_meter, tmp_path):
    source, target, at = f"sqlite:///{tmp_path}/old.db", f"sqlite:///{tmp_path}/new.db", datetime.now(UTC)
    before = books(kept(source), at)
    open_store(target).close()
    merge_ledger(source, target)
    after = books(open_meter(target, budgets=[BUDGET]), at)
    assert (after["invoice"], after["balances"]) == (before["invoice"], before["balances"])
    assert (after["granted"], after["history"], after["passed"]) == ([], [], [])
