"""Our classes stand in for the SDK's, and wrap() meters a client somebody else made, without changing either."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys

import anthropic
import openai
import pytest

import tokenmeter
import tokenmeter.anthropic
import tokenmeter.default
import tokenmeter.openai
from tokenmeter.attribution import Attribution, attribute
from tokenmeter.errors import ConfigurationError

MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT = {"model": "gpt-5-mini", "messages": MESSAGES}
MESSAGE = {"model": "claude-sonnet-5", "max_tokens": 64, "messages": MESSAGES}

OURS = [
    (module, plain, name)
    for module, plain in ((tokenmeter.openai, openai), (tokenmeter.anthropic, anthropic))
    for name in (*module._CLIENT_CLASSES, *module._ALIASES)
    if hasattr(plain, name)
]


@pytest.mark.parametrize(("module", "plain", "name"), OURS, ids=[name for _, _, name in OURS])
def test_a_class_has_the_sdks_name_signature_and_ancestors(module, plain, name):
    ours, theirs = getattr(module, name), getattr(plain, name)
    assert issubclass(ours, theirs)
    assert ours.__name__ == theirs.__name__  # the User-Agent derives from it
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert inspect.signature(ours.copy) == inspect.signature(theirs.copy)
    assert inspect.signature(ours.with_options) == inspect.signature(theirs.with_options)
    for method in ("request", "_process_response", "_prepare_options"):
        assert inspect.signature(getattr(ours, method)) == inspect.signature(getattr(theirs, method))
    assert "__init__" not in vars(ours)
    assert ours.__module__ == module.__name__


def test_our_classes_are_related_as_the_sdks_are():
    assert issubclass(tokenmeter.openai.AzureOpenAI, tokenmeter.openai.OpenAI)
    assert issubclass(tokenmeter.openai.AsyncAzureOpenAI, tokenmeter.openai.AsyncOpenAI)
    assert tokenmeter.openai.Client is tokenmeter.openai.OpenAI
    assert tokenmeter.anthropic.AsyncClient is tokenmeter.anthropic.AsyncAnthropic


def test_what_is_patched_into_a_base_class_does_not_get_between_a_subclass_and_its_constructor():
    """A cloud's client calls its base's constructor with arguments of its own making."""
    for name, base in (
        ("AnthropicFoundry", "Anthropic"),
        ("AnthropicGoogleCloud", "Anthropic"),
        ("AzureOpenAI", "OpenAI"),
    ):
        module = tokenmeter.openai if "OpenAI" in name else tokenmeter.anthropic
        ours = getattr(module, name, None)
        if ours is None:
            continue
        ancestors = ours.__mro__
        theirs = next(kind for kind in ancestors[1:] if kind.__name__ == name)
        assert ancestors.index(theirs) < ancestors.index(getattr(module, base))


def test_listing_a_module_and_looking_at_every_name_imports_nothing_and_raises_nothing():
    """As freezegun does, and every tool that looks for something to patch."""
    script = """
import sys, tokenmeter, tokenmeter.openai, tokenmeter.anthropic
def look():
    for module in (tokenmeter, tokenmeter.openai, tokenmeter.anthropic):
        for name in dir(module):
            getattr(module, name)
before = set(sys.modules)
look()
print(sorted(name for name in set(sys.modules) - before if name.startswith("tokenmeter")))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_other_name_is_the_sdks_own():
    assert tokenmeter.openai.RateLimitError is openai.RateLimitError
    assert tokenmeter.anthropic.Stream is anthropic.Stream
    assert tokenmeter.openai.types is openai.types
    with pytest.raises(AttributeError):
        tokenmeter.openai.no_such_name  # type: ignore[attr-defined]  # noqa: B018 - asking is what is tried


def test_the_top_level_has_the_four_main_classes():
    assert tokenmeter.OpenAI is tokenmeter.openai.OpenAI
    assert tokenmeter.AsyncAnthropic is tokenmeter.anthropic.AsyncAnthropic


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic"])
async def test_a_wrapped_client_stays_what_it_is_and_is_metered_once(name, clients, books, meter, do):
    client = clients.make(name, metered=False)
    kind, resource = type(client), client.chat if "OpenAI" in name else client.messages
    assert tokenmeter.wrap(client, meter) is client
    tokenmeter.wrap(client, meter)
    assert type(client) is kind
    if "OpenAI" in name:
        await do(resource.completions.create(**CHAT))  # taken before the client was wrapped
        [chunk async for chunk in do.each(client.chat.completions.create(**CHAT, stream=True))]
    else:
        await do(resource.create(**MESSAGE))
        [event async for event in do.each(client.messages.create(**MESSAGE, stream=True))]
    assert [entry.status for entry in books.all()] == ["ok", "ok"]


@pytest.mark.parametrize("metered", [True, False], ids=["our class", "wrapped"])
@pytest.mark.parametrize("name", ["OpenAI", "Anthropic"])
def test_copies_stay_metered_with_the_same_settings(name, metered, clients, books, meter):
    client = clients.make(name, metered=False) if not metered else clients.make(name)
    tokenmeter.wrap(client, meter, attribution=Attribution(team="search"))
    for copied in (client.with_options(timeout=9), client.copy(max_retries=1), client.with_options().with_options()):
        assert type(copied) is type(client)
        copied.chat.completions.create(**CHAT) if name == "OpenAI" else copied.messages.create(**MESSAGE)
    assert [entry.attribution.team for entry in books.all()] == ["search"] * 3


def test_blocks_win_over_the_clients_own_attribution(clients, books, meter):
    client = tokenmeter.wrap(clients.openai(), meter, attribution=Attribution(team="search", member="bot"))
    with attribute(member="ada") as scope:
        client.chat.completions.create(**CHAT)
    entry = books.one()
    assert (entry.attribution.member, entry.attribution.team) == ("ada", "search")
    assert scope.requests == 1
    assert scope.usage == entry.usage


def test_wrapping_one_of_our_clients_sets_its_meter(clients, books, meter):
    client = clients.openai()
    other = tokenmeter.make_meter(store="memory:", config={})
    tokenmeter.wrap(client, other)
    client.chat.completions.create(**CHAT)
    assert books.all() == []
    assert len(list(other.store.entries())) == 1
    other.close()


@pytest.mark.parametrize("thing", [None, object(), "client", sys, anthropic])
def test_what_is_no_client_is_refused_by_name(thing):
    with pytest.raises(ConfigurationError, match=r"wrap\(\) takes"):
        tokenmeter.wrap(thing)


@pytest.mark.needs("openai:responses")
def test_our_module_in_place_of_the_sdks_meters_its_module_level_client(provider, tmp_path):
    """With ``from tokenmeter import openai``; the SDK's is one for the process, so in one of its own."""
    script = f"""
from unittest import mock
import openai as sdk
import tokenmeter
from tokenmeter import openai

tokenmeter.configure(store="sqlite:///{tmp_path}/usage.db")
openai.api_key, openai.base_url = "test", {provider.openai_url!r} + "/"
openai.max_retries = 0
assert (sdk.api_key, sdk.max_retries, openai.api_key) == ("test", 0, "test")
openai.chat.completions.create(model="gpt-5", messages=[{{"role": "user", "content": "Hi"}}])
for _ in openai.responses.create(model="gpt-5", input="Hi", stream=True):
    pass
with mock.patch("tokenmeter.openai.api_key", "another"):
    assert sdk.api_key == "another"
assert sdk.api_key == "test"
openai.with_a_name_of_its_own = 1
assert not hasattr(sdk, "with_a_name_of_its_own")
print(sorted(entry.endpoint for entry in tokenmeter.entries()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "['chat.completions', 'responses']\n", done.stderr


def test_the_module_level_client_is_metered(provider, tmp_path):
    script = f"""
import openai, tokenmeter
from tokenmeter.testing import FakeProvider
meter = tokenmeter.make_meter(store="memory:", config={{}})
openai.api_key, openai.base_url = "sk-test", {provider.openai_url + "/"!r}
early = openai.chat.completions
tokenmeter.wrap(openai, meter)
tokenmeter.wrap(openai, meter)
early.create(model="gpt-5-mini", messages={MESSAGES!r})
list(openai.chat.completions.create(model="gpt-5-mini", messages={MESSAGES!r}, stream=True))
openai._reset_client()
openai.embeddings.create(model="text-embedding-3-small", input="x")
print([entry.endpoint for entry in meter.store.entries()])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stdout.strip() == "['chat.completions', 'chat.completions', 'embeddings']"


def test_a_missing_sdk_is_told_with_the_command_that_installs_it():
    for name in ("openai", "anthropic"):
        script = f"import sys; sys.modules[{name!r}] = None\nimport tokenmeter.{name}"
        done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60, capture_output=True, text=True)
        assert f"pip install 'tokenmeter-sdk[{name}]'" in done.stderr


def test_the_default_meter_is_looked_up_at_each_call(clients, provider, monkeypatch):
    meters = [tokenmeter.make_meter(store="memory:", config={}) for _ in range(2)]
    client = tokenmeter.openai.OpenAI(api_key="k", base_url=provider.openai_url)
    for meter in meters:
        monkeypatch.setattr(tokenmeter.default, "_default", meter)
        client.chat.completions.create(**CHAT)
    assert [len(list(meter.store.entries())) for meter in meters] == [1, 1]
    client.close()


def test_metered_clients_copy_and_refuse_to_pickle_as_the_sdks_do(clients):
    ours, theirs = clients.openai(), clients.openai(metered=False)
    assert copy.copy(ours).api_key == copy.copy(theirs).api_key

    def outcome(client):
        try:
            return type(pickle.loads(pickle.dumps(client)))  # noqa: S301 - its own
        except Exception as error:
            return type(error)

    assert outcome(ours) == outcome(theirs)


def test_results_pickle_and_copy_as_the_sdks_do(clients):
    result = clients.openai().chat.completions.create(**CHAT)
    assert pickle.loads(pickle.dumps(result)) == result  # noqa: S301 - its own
    raw = clients.openai().chat.completions.with_raw_response.create(**CHAT)
    pickle.dumps(raw.http_response)


# -- who is called, and with which key


def test_the_provider_is_known_by_class_and_host(meter):
    cases = {
        "https://api.openai.com/v1": "openai",
        "https://eu.api.openai.com/v1": "openai",
        "https://openrouter.ai/api/v1": "openrouter",
        "https://api.groq.com/openai/v1": "groq",
        "https://api.mistral.ai/v1": "mistral",
        "https://us.api.fireworks.ai/inference/v1": "fireworks",
        "https://acme.openai.azure.com/openai/v1": "azure",
        "https://router.huggingface.co/together/v1": "huggingface_together",
        "https://router.huggingface.co/fireworks-ai/inference/v1": "huggingface_fireworks-ai",
        "https://router.huggingface.co/v1": "huggingface",
        "https://eu.openrouter.ai/api/v1": "openrouter",
        "https://us.openrouter.ai/api/v1": "openrouter",
        "https://us.api.x.ai/v1": "x-ai",
        "https://eu-west-1.api.x.ai/v1": "x-ai",
        "https://codestral.mistral.ai/v1": "mistral",
        "https://api.individual.githubcopilot.com": "github-copilot",
        "https://api.enterprise.githubcopilot.com": "github-copilot",
        "https://acme.openai.azure.us/openai/v1": "azure",
        "https://eastus.api.cognitive.microsoft.com/openai/v1": "azure",
        "https://acme.eastus2.models.ai.azure.com/v1": "azure",
        "https://aiplatform.eu.rep.googleapis.com/v1/projects/p/locations/eu/endpoints/openapi": "google",
        "https://evil-api.x.ai.example/v1": "openai",
        "https://bedrock-runtime.eu-west-1.amazonaws.com": "aws",
        "http://127.0.0.1:8000/v1": "openai",
        "https://openrouter.ai.evil.example/v1": "openai",
    }
    from tokenmeter.capture.sdk import binding_of

    for url, provider in cases.items():
        client = tokenmeter.openai.OpenAI(api_key="k", base_url=url)
        assert binding_of(client).host(client, meter).provider == provider, url
        client.base_url = "https://api.deepseek.com"
        assert binding_of(client).host(client, meter).provider == "deepseek"
    azure = tokenmeter.openai.AzureOpenAI(api_key="k", azure_endpoint="https://proxy.example", api_version="2024-10-21")
    assert binding_of(azure).host(azure, meter).provider == "azure"


@pytest.mark.parametrize(
    ("url", "region"),
    [
        (
            "https://us-central1-aiplatform.googleapis.com/v1/projects/p/endpoints/openapi",
            "us-central1",
        ),
        ("https://aiplatform.eu.rep.googleapis.com/v1/projects/p/locations/eu/endpoints/openapi", "eu"),
        ("https://aiplatform.googleapis.com/v1/projects/p/locations/global/endpoints/openapi", None),
        ("https://generativelanguage.googleapis.com/v1beta/openai", None),
        ("https://us.api.x.ai/v1", "us"),
        ("https://eu-west-1.api.x.ai/v1", "eu-west-1"),
        ("https://api.x.ai/v1", None),
        ("https://eu.api.openai.com/v1", "eu"),
        ("https://eu.openrouter.ai/api/v1", None),
        ("https://bedrock-runtime.eu-west-1.amazonaws.com", "eu-west-1"),
    ],
)
def test_the_region_is_known_by_the_host(meter, url, region):
    from tokenmeter.capture.sdk import binding_of

    client = tokenmeter.openai.OpenAI(api_key="k", base_url=url)
    assert binding_of(client).host(client, meter).region == region


def test_anthropics_platform_classes_have_their_own_provider_and_region(meter):
    from tokenmeter.capture.sdk import binding_of

    cases = {
        "AnthropicBedrock": ({"aws_region": "eu-west-1", "aws_access_key": "a", "aws_secret_key": "b"}, "aws"),
        "AnthropicVertex": ({"region": "europe-west1", "project_id": "p", "access_token": "t"}, "google"),
        "AnthropicFoundry": ({"api_key": "k", "resource": "acme"}, "azure"),
    }
    for name, (options, provider) in cases.items():
        kind = getattr(tokenmeter.anthropic, name, None)
        if kind is not None:
            client = kind(**options)
            host = binding_of(client).host(client, meter)
            assert host.provider == provider
            assert host.region == options.get("aws_region", options.get("region"))


def test_a_host_of_the_users_own_is_known_by_the_providers_setting(clients, provider):
    own = {provider.url: "vllm", f"{provider.url}/v1": "lab"}
    meter = tokenmeter.make_meter(store="memory:", config={"providers": own})
    tokenmeter.wrap(clients.openai(), meter).chat.completions.create(**CHAT)
    assert [entry.provider for entry in meter.store.entries()] == ["lab"]
    meter.close()


def test_the_key_is_known_by_fingerprint_and_never_by_its_text(clients, books):
    clients.openai(api_key="sk-first-0123456789abcdef").chat.completions.create(**CHAT)
    clients.openai(api_key="sk-other-0123456789fedcba").chat.completions.create(**CHAT)
    clients.anthropic(api_key=None, auth_token="sk-token-0123456789abcd").messages.create(**MESSAGE)
    keys = [entry.api_key for entry in books.all()]
    assert [key.last4 for key in keys] == ["cdef", "dcba", "abcd"]
    assert len({key.fingerprint for key in keys}) == 3


def test_a_key_provider_is_asked_as_often_as_by_the_sdk_and_its_key_is_recorded(clients, books):
    asked = []

    def provide():
        asked.append(1)
        return f"sk-turn-{len(asked)}-0123456789abcd{len(asked):02}"

    client = clients.openai(api_key=provide)
    if not hasattr(client, "_refresh_api_key"):
        pytest.skip("this SDK version takes no key provider")
    client.chat.completions.create(**CHAT)
    client.chat.completions.create(**CHAT)
    assert len(asked) == 2
    assert [entry.api_key.last4 for entry in books.all()] == ["cd01", "cd02"]


def test_anthropics_default_credentials_are_not_lost_by_our_class(monkeypatch, tmp_path):
    module = sys.modules["anthropic._client"]
    if not hasattr(module, "_is_base_client"):
        pytest.skip("this SDK version has no credential chain")
    source = inspect.getsource(anthropic.Anthropic.__init__)
    assert "_is_base_client(self)" in source  # the place that is taught; when this fails, look at the SDK again
    assert module._is_base_client(tokenmeter.anthropic.Anthropic(api_key="k"))
    assert module._is_base_client(tokenmeter.anthropic.AsyncAnthropic(api_key="k"))
    assert module._is_base_client(anthropic.Anthropic(api_key="k"))
    assert not module._is_base_client(type("Mine", (anthropic.Anthropic,), {})(api_key="k"))
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("ANTHROPIC_IDENTITY_TOKEN", "token")
    monkeypatch.setenv("ANTHROPIC_FEDERATION_RULE_ID", "rule")
    monkeypatch.setenv("ANTHROPIC_ORGANIZATION_ID", "org")
    try:
        theirs = anthropic.Anthropic()
    except anthropic.AnthropicError:
        pytest.skip("this SDK version wants a profile file")
    ours = tokenmeter.anthropic.Anthropic()
    assert theirs.credentials is not None
    assert type(ours.credentials) is type(theirs.credentials)
    assert ours.with_options(timeout=3).credentials is ours.credentials


@pytest.mark.parametrize("metered", [True, False], ids=["our class", "wrapped"])
@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic"])
def test_what_is_called_on_a_client_has_the_sdks_signature_name_and_documentation(name, metered, clients, meter, shown):
    plain, ours = clients.make(name, metered=False), clients.make(name, metered=metered)
    if not metered:
        tokenmeter.wrap(ours, meter)
    theirs = shown(plain)
    assert len(theirs) > 30  # the oldest SDK has 31, the newest hundreds
    assert shown(ours) == theirs
