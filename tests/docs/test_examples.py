"""Every Python example of the pages runs, against a FakeProvider, with nothing at hand that the page does not say."""

from __future__ import annotations

from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import tokenmeter
import tokenmeter.default
from tokenmeter.testing import FakeProvider

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """What a reader has at hand: keys in the environment, a provider that answers, a ledger of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TOKENMETER_STORE", f"sqlite:///{tmp_path / 'usage.db'}")
    monkeypatch.setattr(tokenmeter.default, "_default", None)
    monkeypatch.setattr(tokenmeter.default, "_given", None)
    with FakeProvider() as provider:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-docs-openai-0001")
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-docs-0002")
        monkeypatch.setenv("OPENAI_BASE_URL", provider.openai_url)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", provider.anthropic_url)
        monkeypatch.setenv("GEMINI_API_KEY", "AIza-docs-google-0003")
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", provider.google_url)
        from tokenmeter.openai import OpenAI

        with OpenAI() as client:
            client.responses.create(model="gpt-5-mini", input="Hello")
            yield
    if tokenmeter.default._default is not None:
        tokenmeter.default._default.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run_one_after_another(page, place, capsys):
    document = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()]).parse(page)
    for example in document.examples():
        example.evaluate()
