"""What frameworks do with a client they are handed, done to metered ones."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import anthropic
import openai
import pytest
from pydantic import BaseModel, ConfigDict, InstanceOf

from tokenmeter.adopt import wrap
from tokenmeter.attribution import Attribution, attribute

CHAT = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(params=["ours", "wrapped"])
def client(request, clients, meter):
    """A metered client: of our class, or of the SDK's own and wrapped."""
    return clients.openai() if request.param == "ours" else wrap(clients.make("OpenAI", metered=False), meter)


def test_a_model_that_validates_its_client_takes_a_metered_one_and_keeps_it(client, books):
    class Model(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)

        plain: openai.OpenAI
        instance: InstanceOf[openai.OpenAI]
        either: openai.OpenAI | openai.AsyncOpenAI | anthropic.Anthropic | None = None

    model = Model(plain=client, instance=client, either=client).model_copy()
    assert model.plain is model.instance is model.either is client
    model.either.chat.completions.create(**CHAT)
    books.one()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_method_or_a_resource_taken_from_a_client_is_metered_whenever_it_was_wrapped(moment, clients, meter, books):
    client = clients.make("OpenAI", metered=False)
    if moment == "after":
        wrap(client, meter)
    create, completions = client.chat.completions.create, client.chat.completions
    if moment == "before":
        wrap(client, meter)
    create(**CHAT)
    completions.create(**CHAT)
    type(completions)(client).create(**CHAT)
    assert len(books.all()) == 3


def test_a_subclass_with_a_constructor_and_a_request_of_its_own_is_metered(client, clients, meter, books):
    class Mine(type(client)):
        def __init__(self, *, note, **options):
            super().__init__(**options)
            self.note = note

        def request(self, *args, **kwargs):
            self.note += "!"
            return super().request(*args, **kwargs)

    mine = wrap(Mine(note="sent", api_key="sk-test-0123456789abcdef", base_url=clients.provider.openai_url), meter)
    clients.made.append(mine)
    mine.chat.completions.create(**CHAT)
    assert mine.note == "sent!"
    books.one()


def test_a_client_can_be_mocked_as_the_sdks_can(client, books):
    assert isinstance(mock.MagicMock(spec=type(client)), openai.OpenAI)
    with mock.patch.object(client.chat.completions, "create", return_value="mocked"):
        assert client.chat.completions.create(**CHAT) == "mocked"
    assert not books.all()
    client.chat.completions.create(**CHAT)
    books.one()


@pytest.mark.parametrize("name", ["OpenAI", "Anthropic"])
def test_a_shallow_copy_of_a_wrapped_client_sends_and_is_metered_as_itself(name, clients, meter, books):
    client = wrap(clients.make(name, metered=False), meter)
    if {"chat", "messages"} & set(vars(client)):
        pytest.skip("this SDK version's resources stay with the client they were made for")
    copied = copy.copy(client)
    copied.api_key = "sk-test-another-0001"
    assert type(copied) is type(client)
    for each in (copied, client):
        if name == "OpenAI":
            each.chat.completions.create(**CHAT)
        else:
            each.messages.create(**CHAT | {"model": "claude-sonnet-5", "max_tokens": 9})
    sent = [truth.api_key_last4 for truth in clients.provider.truth]
    assert sent == [entry.api_key.last4 for entry in books.all()]
    assert sent[0] == "0001" != sent[1]


def test_a_shallow_copy_of_our_client_is_metered_with_its_own_settings(clients, books):
    client = clients.openai()
    if "chat" in vars(client):
        pytest.skip("this SDK version's resources stay with the client they were made for")
    copied = copy.copy(client)
    copied.api_key = "sk-test-another-0001"
    copied.chat.completions.create(**CHAT)
    assert books.one().api_key.last4 == clients.provider.truth[0].api_key_last4 == "0001"


def test_a_clients_own_attribution_reaches_threads_that_inherit_no_scope(client, books):
    wrap(client, books.meter, attribution=Attribution(member="linus", route="/extract"))
    with attribute(member="ada"), ThreadPoolExecutor() as pool:
        pool.submit(client.chat.completions.create, **CHAT).result()
        client.chat.completions.create(**CHAT)
    assert [(entry.attribution.member, entry.attribution.route) for entry in books.all()] == [
        ("linus", "/extract"),
        ("ada", "/extract"),
    ]


@pytest.mark.parametrize("name", ["AzureOpenAI", "AsyncAzureOpenAI"])
async def test_azure_behind_a_gateway_is_still_azure(name, clients, books, do):
    where = {"base_url": None, "azure_endpoint": clients.provider.url, "api_version": "2024-10-21"}
    client = clients.make(name, **where)
    await do(client.chat.completions.create(**CHAT))
    assert books.one().provider == "azure"


def test_classes_put_in_the_sdks_place_meter_what_is_imported_later(provider, tmp_path):
    (tmp_path / "framework.py").write_text(
        "import openai\nfrom openai import OpenAI\nmade = [OpenAI(), openai.OpenAI(), type('Own', (OpenAI,), {})()]\n"
    )
    program = f"""
        import openai, tokenmeter, tokenmeter.openai
        openai.OpenAI, openai.AsyncOpenAI = tokenmeter.openai.OpenAI, tokenmeter.openai.AsyncOpenAI
        tokenmeter.configure(store="memory:", config={{}})
        import framework
        for client in framework.made:
            client.chat.completions.create(**{CHAT!r})
        assert len(list(tokenmeter.entries())) == 3
    """
    settings = {"OPENAI_API_KEY": "sk-test-0123456789abcdef", "OPENAI_BASE_URL": provider.openai_url}
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=settings, cwd=tmp_path, check=True, timeout=60)
