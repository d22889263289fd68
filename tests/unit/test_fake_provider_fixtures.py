"""The pytest plug-in gives users a provider and a meter, and costs a run without them next to nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tokenmeter
import tokenmeter.testing
from tokenmeter.usage import Usage

openai = pytest.importorskip("openai")


def test_the_fixtures_work_together(fake_provider, tokenmeter_meter):
    with openai.OpenAI(base_url=fake_provider.openai_url, api_key="sk-test-0123456789") as client:
        tokenmeter.wrap(client, meter=tokenmeter_meter)
        client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hello"}])
    (entry,) = tokenmeter.entries(meter=tokenmeter_meter)
    assert entry.usage == fake_provider.truth[0].meters
    assert entry.response_id == fake_provider.truth[0].response_id


def test_each_test_begins_with_empty_books(fake_provider, tokenmeter_meter):
    assert fake_provider.truth == []
    assert fake_provider.total == Usage()
    assert list(tokenmeter.entries(meter=tokenmeter_meter)) == []


def test_the_plug_in_loads_no_server_no_sdk_and_no_prices():
    check = (
        "import sys, tokenmeter.testing.fixtures\n"
        "heavy = {'openai', 'anthropic', 'genai_prices', 'tokenmeter.meter', 'tokenmeter.testing.provider'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_loaded():
    for name in tokenmeter.testing.__all__:
        assert getattr(tokenmeter.testing, name)
        assert name in dir(tokenmeter.testing)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = tokenmeter.testing.nonsense  # type: ignore[attr-defined]
