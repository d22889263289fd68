"""A meter on a real SQLite file and a FakeProvider, joined by the default meter."""

from __future__ import annotations

import pytest

import tokenmeter
import tokenmeter.default

OPENAI_KEY = "sk-acceptance-openai-0001"
ANTHROPIC_KEY = "sk-ant-acceptance-0002"


@pytest.fixture
def configure(request, tmp_path, monkeypatch):
    """`tokenmeter.configure` on a ledger of this test's own; the old default meter comes back afterwards.

    The ledger is a file; a test may ask for ``"postgres"``.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(tokenmeter.default, "_default", None)
    made = []

    def build(**arguments):
        on_server = getattr(request, "param", None) == "postgres"
        arguments.setdefault(
            "store", request.getfixturevalue("postgres_url") if on_server else f"sqlite:///{tmp_path / 'usage.db'}"
        )
        meter = tokenmeter.configure(**arguments)
        made.append(meter)
        return meter

    yield build
    for meter in made:
        meter.close()


@pytest.fixture
def clients(provider):
    """Sync clients of both SDKs, pointed at the provider."""
    from tokenmeter.anthropic import Anthropic
    from tokenmeter.openai import OpenAI

    with (
        OpenAI(base_url=provider.openai_url, api_key=OPENAI_KEY, max_retries=0) as openai,
        Anthropic(base_url=provider.anthropic_url, api_key=ANTHROPIC_KEY, max_retries=0) as anthropic,
    ):
        yield openai, anthropic


@pytest.fixture
def async_clients(provider):
    """Makers of async clients of both SDKs, pointed at the provider."""
    from tokenmeter.anthropic import AsyncAnthropic
    from tokenmeter.openai import AsyncOpenAI

    return (
        lambda: AsyncOpenAI(base_url=provider.openai_url, api_key=OPENAI_KEY, max_retries=0),
        lambda: AsyncAnthropic(base_url=provider.anthropic_url, api_key=ANTHROPIC_KEY, max_retries=0),
    )
