"""A reconciliation is kept in the ledger when it is filed: what was compared, when, and what came out."""

import json
import pickle
from datetime import UTC, datetime

import pytest

from tokenmeter.reconciliation import file_reconciliation, reconcile, reconciliations
from tokenmeter.stores import open_store

JANUARY = datetime(2027, 1, 5, tzinfo=UTC)


@pytest.fixture
def compare(meter, tmp_path):
    """Reconcile an empty ledger with a statement of two models, in dollars, tokens or both."""

    def run(rows="2026-11-10,gpt-5,1000,2.5\n2026-11-11,gpt-5-mini,7,0.000001\n", *, at=JANUARY, **columns):
        path = tmp_path / "statement.csv"
        path.write_text(f"day,model,input,cost\n{rows}")
        named = {"day": "day", "model": "model", **(columns or {"input": "input", "cost": "cost"})}
        return reconcile(meter.store, provider="openai", period="2026-11", source=path, columns=named, now=at)

    return run


@pytest.mark.parametrize("columns", [{}, {"input": "input"}, {"cost": "cost"}])
def test_what_was_filed_reads_back_as_it_was(compare, meter, columns):
    outcome = compare(**columns)
    file_reconciliation(meter.store, outcome)
    (kept,) = reconciliations(meter.store)
    assert kept.to_dict() == outcome.to_dict()
    assert str(kept) == str(outcome)
    assert (kept.ok, kept.coverage, kept.proposals) == (outcome.ok, outcome.coverage, outcome.proposals)
    assert kept.reconciled_at == JANUARY


def test_every_run_is_kept_and_none_twice(compare, meter):
    first, second = compare(), compare(at=JANUARY.replace(day=6))
    filed = [file_reconciliation(meter.store, one).document for one in (first, first, second)]
    assert filed[0] == filed[1] != filed[2]
    assert [one.reconciled_at.day for one in reconciliations(meter.store)] == [5, 6]
    assert meter.store.verify().ok


def test_an_outcome_is_a_plain_value(compare):
    """No store, meter or caller inside: it can be pickled and sent to another process."""
    outcome = compare(cost="cost")
    assert pickle.loads(pickle.dumps(outcome)) == outcome  # noqa: S301 - of our own making


def test_the_command_keeps_its_outcome_unless_told_not_to(tmp_path, monkeypatch, run_command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.csv").write_text("d,m,c\n2026-10-10,gpt-5,1.5\n")
    url = f"sqlite:///{tmp_path}/usage.db"
    open_store(url).close()
    asked = ["reconcile", "openai", "-p", "2026-10", "-f", "s.csv", "--store", url]
    asked += ["--column", "day=d", "--column", "model=m", "--column", "cost=c"]
    told = json.loads(run_command(*asked, "--json").out)
    run_command(*asked, "--no-keep", "--json")
    store = open_store(url)
    try:
        (kept,) = reconciliations(store)
    finally:
        store.close()
    assert kept.to_dict() == {name: value for name, value in told.items() if name != "posted"}
