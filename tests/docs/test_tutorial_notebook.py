"""The tutorial in a notebook runs from top to bottom, in IPython as in Jupyter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tokenmeter

pytest.importorskip("pandas")
NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorial" / "experiment.ipynb"


@pytest.fixture
def shell(tmp_path, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "")
    tokenmeter.reset()
    InteractiveShell.clear_instance()
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()
    tokenmeter.reset()


def test_every_cell_runs_and_shows_what_the_text_promises(shell, capsys):
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    shown = []
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "kept without output, so that it shows no stale figure"
            done = shell.run_cell(cell["source"], silent=False)
            done.raise_error()
            shown.append((cell["source"], done.result, capsys.readouterr().out))
    said = {source.splitlines()[0]: printed for source, _, printed in shown}
    assert "3 calls" in said["%%meter project=glossary tag:run=short-prompt"]
    assert "limit 7" in said['tokenmeter.configure(budgets=[tokenmeter.Budget(project="glossary", limit_requests=7)])']
    tables = [result for _, result, _ in shown if hasattr(result, "_repr_html_")]
    assert len(tables) >= 4
    assert all("<table" in one._repr_html_() for one in tables if one is not None)
