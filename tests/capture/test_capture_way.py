"""How many rooms a call passes through: kept few, since whoever reads the way of a call has to walk it."""

from __future__ import annotations

import os
import sys

import pytest

import tokenmeter
from tokenmeter.meter import Meter
from tokenmeter.stores import open_store

ROOT = os.path.dirname(tokenmeter.__file__)  # noqa: PTH120 - compared with code objects' names


@pytest.mark.parametrize(
    ("budgets", "files", "functions"), [([], 30, 110), ([{"limit_usd": 1000}], 56, 330)], ids=["no cap", "one cap"]
)
def test_a_warm_call_enters_few_files_and_functions(budgets, files, functions, clients, priced, tmp_path):
    meter = Meter(
        store=open_store(f"sqlite:///{tmp_path}/ledger.db"),
        pricer=priced.pricer,
        budgets=[tokenmeter.Budget.parse(row, file="test", number=0) for row in budgets],
    )
    client = tokenmeter.wrap(clients.make("OpenAI", metered=False), meter)
    entered = set()

    def note(frame, event, _argument):
        if event == "call" and frame.f_code.co_filename.startswith(ROOT):
            entered.add((frame.f_code.co_filename, frame.f_code.co_qualname))

    def call():
        client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hello"}])

    for _ in range(3):
        call()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    assert len({file for file, _ in entered}) <= files
    assert len(entered) <= functions
    meter.close()
