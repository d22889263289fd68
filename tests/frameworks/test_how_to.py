"""What the how-to says of the framework of this environment runs as it is printed, and is recorded."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "frameworks.md"
EXAMPLE = f"(../../examples/frameworks/with_{os.environ.get('TOKENMETER_FRAMEWORK')}.py)"


@pytest.fixture
def section():
    (found,) = (each for each in PAGE.read_text().split("\n## ") if EXAMPLE in each)
    return found


def test_the_three_lines_run_as_printed(section, books, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEM0_DIR", str(tmp_path))
    monkeypatch.setenv("MEM0_TELEMETRY", "False")
    (code,) = re.findall(r"```python\n(.+?)```", section, flags=re.DOTALL)
    program = compile(code, str(PAGE), "exec", dont_inherit=True)
    exec(program, {"__name__": "how_to"})  # noqa: S102 - our own page
    books.agree(calls=max(len(books.provider.billed), 1))
    assert set(books.by_member()) == {"ada"}
