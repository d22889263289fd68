"""Tools that look into every module (freezegun, time-machine, inspect, autospec) find nothing that breaks them."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest

import tokenmeter

pytest.importorskip("freezegun")
pytest.importorskip("time_machine")

LOOK = """
import inspect, json, sys
from unittest import mock
missing = json.loads(sys.argv[1])
sys.ps1 = ">>> "  # as IPython leaves it: what is true at a prompt as well
for name in missing:
    sys.modules[name] = None  # as if it were not installed
import tokenmeter
installed = [name for name in ("openai", "anthropic") if name not in missing]
for name in installed:
    __import__(f"tokenmeter.{name}")
ours = [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "tokenmeter"]
before = set(sys.modules)
for module in ours:
    dir(module)
assert set(sys.modules) == before, "listing a module imported something"
import freezegun
with freezegun.freeze_time("2026-01-02 03:04:05"):
    from tokenmeter.ledger import utcnow
    assert utcnow().isoformat() == "2026-01-02T03:04:05+00:00"
for module in ours:
    inspect.getmembers(module)
mock.create_autospec(tokenmeter)
for name in installed:
    mock.create_autospec(getattr(tokenmeter, name))
print("ok")
"""


@pytest.mark.parametrize("missing", [[], ["openai"], ["anthropic"], ["openai", "anthropic"]], ids=str)
def test_modules_can_be_listed_patched_and_specified_with_any_extra(missing):
    done = subprocess.run(
        [sys.executable, "-c", LOOK, json.dumps(missing)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr


@pytest.mark.parametrize("tool", ["freezegun", "time_machine"])
def test_a_call_in_frozen_time_is_recorded_at_that_time_and_counted_in_its_window(tool, fake_provider, tmp_path):
    moment = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    meter = tokenmeter.make_meter(
        store=f"sqlite:///{tmp_path}/ledger.db", config={}, budgets=[tokenmeter.Budget(limit_requests=1, name="one")]
    )
    ask = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 9}
    with tokenmeter.OpenAI(base_url=fake_provider.openai_url, api_key="sk-test") as client:
        tokenmeter.wrap(client, meter)
        with _frozen(tool, moment):
            client.chat.completions.create(**ask)
            with pytest.raises(tokenmeter.BudgetExceededError):
                client.chat.completions.create(**ask)
        client.chat.completions.create(**ask)  # today's window is another one
    first, second = meter.entries()
    assert first.occurred_at == moment
    assert second.occurred_at > moment
    assert meter.verify().ok
    meter.close()


def _frozen(tool, moment):
    if tool == "freezegun":
        import freezegun

        return freezegun.freeze_time(moment)
    import time_machine

    return time_machine.travel(moment, tick=False)


def test_a_client_can_be_specified():
    from unittest import mock

    client = mock.create_autospec(tokenmeter.OpenAI, instance=True)
    client.with_options(timeout=3)
    with pytest.raises(AttributeError):
        _ = client.nonsense


@pytest.mark.parametrize(("ours", "package"), [("openai", "openai"), ("anthropic", "anthropic"), ("google", "google")])
def test_an_sdk_that_is_there_and_broken_says_so_itself(tmp_path, ours, package):
    folder = tmp_path / package / "genai" if ours == "google" else tmp_path / package
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("import not_there_at_all\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import tokenmeter.{ours}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: No module named 'not_there_at_all'" in done.stderr
    assert "needs" not in done.stderr.splitlines()[-1]
