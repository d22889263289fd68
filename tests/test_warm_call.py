"""What a call walks through: files and functions of ours that are entered once everything is warm."""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from pathlib import Path

import anthropic
import openai
import pytest

import tokenmeter
from tokenmeter import Budget
from tokenmeter.stores import writer
from tokenmeter.stores.sqlite import SQLiteStore
from tokenmeter.testing import FakeProvider

PACKAGE = str(Path(tokenmeter.__file__).parent) + "/"
#: Files and functions of ours at most, a little above what is reached.
MOST = {
    "chat, no cap": (22, 62),
    "chat, a cap": (27, 100),
    "message, no cap": (23, 66),
    "message, a cap": (27, 105),
}


def entered(work) -> tuple[Counter[str], set[tuple[str, str]]]:
    """Calls per file, and the functions entered, while `work` runs in this thread; `tokenmeter.testing` left out."""
    files: Counter[str] = Counter()
    functions: set[tuple[str, str]] = set()

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            name = code.co_filename.removeprefix(PACKAGE)
            if not name.startswith("testing/"):
                files[name] += 1
                functions.add((name, code.co_qualname))

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return files, functions


@pytest.mark.parametrize("kind", MOST)
def test_a_warm_call_walks_through_few_files_and_functions(kind, tmp_path, record_property, monkeypatch):
    monkeypatch.setattr(writer, "_TICK_NS", 20_000_000)
    caps = [Budget(member="*", limit_usd=1000)] if kind.endswith("a cap") else []
    meter = tokenmeter.make_meter(store=f"sqlite:///{tmp_path / 'ledger.db'}", budgets=caps)
    store = meter.store
    assert isinstance(store, SQLiteStore)
    with FakeProvider() as provider:
        question = [{"role": "user", "content": "Hello"}]
        if kind.startswith("chat"):
            client = tokenmeter.wrap(openai.OpenAI(api_key="sk-test-warm", base_url=provider.openai_url), meter=meter)
            close = client.close
            call = partial(client.chat.completions.create, model="gpt-4o-mini", messages=question)
        else:
            plain = anthropic.Anthropic(api_key="sk-test-warm", base_url=provider.anthropic_url)
            claude = tokenmeter.wrap(plain, meter=meter)
            close = claude.close
            call = partial(claude.messages.create, model="claude-haiku-4-5", max_tokens=20, messages=question)

        with tokenmeter.attribute(member="ada"):
            for _ in range(5):
                call()
            while caps and not store.journal._all_there():
                call()
            # Now and then a call does more: it looks whether another process changed a budget.
            files, functions = min((entered(call) for _ in range(5)), key=lambda seen: seen[0].total())
        close()
    meter.close()
    record_property("files", len(files))
    record_property("functions", len(functions))
    print(f"\n{kind}: {len(files)} files, {len(functions)} functions, {files.total()} calls")  # noqa: T201 - pytest -s
    for name, calls in sorted(files.items()):
        print(f"  {name}  {calls}")  # noqa: T201
    most_files, most_functions = MOST[kind]
    assert len(files) <= most_files
    assert len(functions) <= most_functions
