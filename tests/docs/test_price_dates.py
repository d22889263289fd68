"""The page of prices says of undated rows what the script that counts them prints."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_has_every_row_that_the_script_prints():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "price_dates.py"], capture_output=True, text=True, check=True
    )
    rows = [row for row in done.stdout.splitlines() if row.startswith("|")]
    page = (ROOT / "docs" / "reference" / "pricing.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) > 4
    assert [row for row in rows if row not in page] == []
