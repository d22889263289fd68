"""Google's SDK, metered: every way to call records what the provider billed, and nothing else changes."""

from __future__ import annotations

import asyncio
import copy
import gc
import importlib
import inspect
import io
import json
import pickle
import threading
import warnings
import weakref
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from google import genai as plain_genai
from google.auth.credentials import Credentials
from google.genai import errors, types
from google.genai import live as live_module
from google_methods import BECOMES, METHODS
from pydantic import ValidationError

import tokenmeter
from tokenmeter import Budget, BudgetExceededError, RequestTooLargeError
from tokenmeter.adopt import wrap
from tokenmeter.errors import ConfigurationError
from tokenmeter.google import Client, genai
from tokenmeter.providers.google.dialect import DIALECT
from tokenmeter.testing import FakeProvider

KEY = "AIza-test-0123456789abcdef"
MODEL = "gemini-2.5-flash"
MODELS = {"generate_content": MODEL, "embed_content": "gemini-embedding-001"}
VERSION = tuple(int(part) for part in plain_genai.__version__.split(".")[:2])


#: The SDK warns of its own types and methods.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore:.*(experimental|will be removed)",
    *(f"ignore:{words}" for words in ("The generate_images method", "Interactions usage", "Granular retry")),
)


def since(*version):
    return pytest.mark.skipif(version > VERSION, reason=f"google-genai {version[0]}.{version[1]} or later")


#: What a video is to be of; older versions of the SDK take it in another argument.
A_CAT = (
    {"source": types.GenerateVideosSource(prompt="a cat")}
    if hasattr(types, "GenerateVideosSource")
    else {"prompt": "a cat"}
)


def made(provider: FakeProvider, cls=plain_genai.Client, **options):
    return cls(api_key=KEY, http_options={"base_url": provider.google_url, **options})


@pytest.fixture
def client(provider, meter):
    return wrap(made(provider), meter=meter)


@pytest.fixture
def vertex(provider, meter, monkeypatch):
    monkeypatch.setenv("GOOGLE_API_KEY", "")
    client = plain_genai.Client(
        vertexai=True, api_key=KEY, http_options={"base_url": provider.google_url, "api_version": "v1"}
    )
    return wrap(client, meter=meter)


class Token(Credentials):
    """What application default credentials come to: a token that is refreshed."""

    def refresh(self, request):
        self.token = "ya29.test"


def in_a_region(provider, meter, location):
    """A client with credentials, as in a Google Cloud project."""
    options = {"base_url": provider.google_url, "api_version": "v1"}
    where = {"project": "shop", "location": location}
    return wrap(plain_genai.Client(vertexai=True, credentials=Token(), http_options=options, **where), meter=meter)


@pytest.fixture
def cloud(provider, meter, monkeypatch):
    monkeypatch.setenv("GOOGLE_API_KEY", "")
    return in_a_region(provider, meter, "us-central1")


def recorded(books):
    entries = books.all()
    return sorted(
        (entry.response_model or entry.request_model, sorted(entry.usage.quantities.items())) for entry in entries
    )


def billed(provider):
    return sorted((truth.model, sorted(truth.meters.quantities.items())) for truth in provider.billed)


# -- every shape, sync and async, against the provider's books


async def generated(client, do):
    await do(client.models.generate_content(model=MODEL, contents="Hi"))


async def streamed(client, do):
    async for _ in do.each(client.models.generate_content_stream(model=MODEL, contents="Hi")):
        pass


async def chatted(client, do):
    chat = client.chats.create(model=MODEL)
    await do(chat.send_message("one"))
    await do(chat.send_message("two"))


async def chatted_in_a_stream(client, do):
    async for _ in do.each(client.chats.create(model=MODEL).send_message_stream("one")):
        pass


async def embedded(client, do):
    await do(client.models.embed_content(model="gemini-embedding-001", contents=["one", "two"]))


async def counted(client, do):
    await do(client.models.count_tokens(model=MODEL, contents="Hello"))


async def drawn(client, do):
    await do(client.models.generate_images(model="imagen-4.0-generate-001", prompt="a cat"))


async def filmed(client, do):
    operation = await do(client.models.generate_videos(model="veo-3.1-generate-preview", **A_CAT))
    while not operation.done:
        operation = await do(client.operations.get(operation))


async def batched(client, do):
    asked = [{"contents": [{"parts": [{"text": said}], "role": "user"}]} for said in ("one", "two")]
    job = await do(client.batches.create(model=MODEL, src=asked))
    for _ in range(3):
        await do(client.batches.get(name=job.name))


async def batched_embeddings(client, do):
    asked = types.EmbedContentBatchDict(contents=["one", "two words"])
    job = await do(client.batches.create_embeddings(model="gemini-embedding-001", src={"inlined_requests": asked}))
    for _ in range(3):
        await do(client.batches.get(name=job.name))


def a_picture():
    return types.Image(image_bytes=b"hi", mime_type="image/png")


async def edited(client, do):
    reference = types.RawReferenceImage(reference_id=1, reference_image=a_picture())
    work = client.models.edit_image(model="imagen-3.0-capability-001", prompt="a hat", reference_images=[reference])
    await do(work)


async def upscaled(client, do):
    work = client.models.upscale_image(model="imagen-4.0-upscale-preview", image=a_picture(), upscale_factor="x2")
    await do(work)


async def tuned(client, do):
    data = types.TuningDataset(gcs_uri="gs://bucket/train.jsonl")
    job = await do(client.tunings.tune(base_model="gemini-2.5-flash", training_dataset=data))
    for _ in range(3):
        await do(client.tunings.get(name=job.name))


async def filed(client, do):
    file = await do(client.files.upload(file=io.BytesIO(b"some text"), config={"mime_type": "text/plain"}))
    await do(client.files.get(name=file.name))


async def computed(client, do):
    await do(client.models.compute_tokens(model=MODEL, contents="Hello"))


async def interacted(client, do):
    await do(client.interactions.create(model="gemini-3.5-flash", input="Hello"))


async def interacted_in_a_stream(client, do):
    async for _ in do.each(client.interactions.create(model="gemini-3.5-flash", input="Hello", stream=True)):
        pass


async def interacted_in_the_background(client, do):
    begun = await do(client.interactions.create(model="gemini-3.5-flash", input="Hello", background=True))
    await do(client.interactions.get(begun.id))
    await do(client.interactions.get(begun.id))


#: Name on the page, what is done, the API, since which version of the SDK, how it is recorded.
SHAPES = [
    ("models.generate_content", generated, "client", (1, 0), "right"),
    ("models.generate_content, Vertex AI", generated, "vertex", (1, 32), "right"),
    ("models.generate_content_stream", streamed, "client", (1, 0), "right"),
    ("models.generate_content_stream, Vertex AI", streamed, "vertex", (1, 32), "right"),
    ("chats send_message", chatted, "client", (1, 32), "right"),
    ("chats send_message_stream", chatted_in_a_stream, "client", (1, 32), "right"),
    ("models.embed_content", embedded, "client", (1, 0), "right"),
    ("models.count_tokens", counted, "client", (1, 0), "free"),
    ("models.generate_images, Vertex AI", drawn, "vertex", (1, 32), "right"),
    ("models.generate_videos, Vertex AI", filmed, "vertex", (1, 32), "right"),
    ("batches, inline, read three times", batched, "client", (1, 32), "right"),
    ("batches.create_embeddings, inline, read three times", batched_embeddings, "client", (1, 60), "right"),
    ("models.edit_image, Vertex AI", edited, "vertex", (1, 32), "right"),
    ("models.upscale_image, Vertex AI", upscaled, "vertex", (1, 32), "right"),
    ("tunings, read three times, Vertex AI", tuned, "cloud", (1, 32), "right"),
    ("files upload, get", filed, "client", (1, 32), "free"),
    ("models.compute_tokens, Vertex AI", computed, "vertex", (1, 32), "free"),
    ("models.generate_content, Vertex AI, credentials", generated, "cloud", (1, 32), "right"),
    ("interactions.create", interacted, "client", (1, 55), "right"),
    ("interactions.create, stream", interacted_in_a_stream, "client", (1, 55), "right"),
    ("interactions.create, background, read twice", interacted_in_the_background, "client", (1, 55), "right"),
]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(("name", "work", "api", "version", "outcome"), SHAPES, ids=[shape[0] for shape in SHAPES])
async def test_every_shape_is_recorded_as_it_was_billed(
    name, work, api, version, outcome, kind, request, do, provider, books, coverage
):
    if version > VERSION:
        pytest.skip(f"google-genai {version[0]}.{version[1]} or later")
    client = request.getfixturevalue(api)
    await work(client if kind == "sync" else client.aio, do)
    assert recorded(books) == billed(provider)
    assert (books.all() == []) == (outcome == "free")
    coverage[f"google {name}|{kind}"] = outcome


# -- content


def test_a_call_is_recorded_as_it_was_billed(client, provider, books):
    provider.answer("Hi", meters={"input": 70, "cache_read": 30, "output": 20}, reasoning_tokens=5)
    assert client.models.generate_content(model=MODEL, contents="Hello").text == "Hi"
    entry = books.one()
    assert dict(entry.usage.quantities) == {"input": 70, "cache_read": 30, "output": 20}
    assert entry.usage.reasoning_output_tokens == 5
    assert (entry.provider, entry.endpoint, entry.operation) == (
        "google",
        "models.generate_content",
        "generate_content",
    )
    assert (entry.request_model, entry.response_model, entry.status) == (MODEL, MODEL, "ok")
    assert entry.response_id == provider.billed[0].response_id
    assert entry.api_key.last4 == KEY[-4:]


def test_a_stream_is_recorded_once_it_ends(client, provider, books):
    provider.answer("one two three", meters={"input": 10, "output": 8})
    said = "".join(chunk.text or "" for chunk in client.models.generate_content_stream(model=MODEL, contents="Hi"))
    assert said == "one two three"
    entry = books.one()
    assert (entry.streamed, entry.status, entry.flags) == (True, "ok", ())
    assert dict(entry.usage.quantities) == {"input": 10, "output": 8}
    assert entry.first_token_us is not None


def test_a_stream_that_nobody_iterates_sends_and_records_nothing(client, provider, books):
    client.models.generate_content_stream(model=MODEL, contents="Hi")
    assert books.all() == []
    assert provider.requests == []


def test_a_stream_that_the_caller_leaves_is_recorded_as_aborted(client, provider, books):
    provider.answer("one two three four", meters={"input": 10, "output": 8})
    for _ in client.models.generate_content_stream(model=MODEL, contents="Hi"):
        break
    entry = books.one()
    assert entry.status == "aborted"
    assert "estimated" in entry.flags
    assert entry.usage["input"] == 10


def test_an_async_stream_that_the_caller_leaves_is_recorded_as_aborted(client, provider, books):
    provider.answer("one two three four", meters={"input": 10, "output": 8})

    async def leave():
        async for _ in await client.aio.models.generate_content_stream(model=MODEL, contents="Hi"):
            break

    asyncio.run(leave())
    entry = books.one()
    assert entry.status == "aborted"
    assert entry.usage["input"] == 10


@pytest.mark.parametrize("transport", ["httpx", "the SDK's choice"])
def test_a_cancelled_stream_is_recorded_before_its_connection_is_closed(
    transport, client, provider, books, monkeypatch
):
    provider.answer("word " * 400, chunk_delay=0.02)
    if transport == "httpx":
        monkeypatch.setattr(client._api_client, "_use_aiohttp", lambda: False, raising=False)

    async def leave():
        begun = asyncio.Event()

        async def read():
            async for _ in await client.aio.models.generate_content_stream(model=MODEL, contents="Hi"):
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        seen = [(entry.status, entry.error_type) for entry in books.all()]
        if plain_genai.__version__.startswith("1.0."):
            pytest.skip("this SDK version reads on when it is cancelled, with and without us")
        with pytest.raises(asyncio.CancelledError):
            await task
        return seen

    assert asyncio.run(leave()) == [("aborted", "CancelledError")]
    assert books.one().usage.output_tokens > 0


def test_an_async_stream_that_is_dropped_unread_is_not_lost(client, provider, books):
    async def drop():
        stream = await client.aio.models.generate_content_stream(model=MODEL, contents="Hi")
        async for _ in stream:
            break
        del stream
        gc.collect()

    asyncio.run(drop())
    assert books.one().status == "aborted"


STREAMS = {
    "models": lambda client: client.models.generate_content_stream(model=MODEL, contents="Hi"),
    "a chat": lambda client: client.chats.create(model=MODEL).send_message_stream("Hi"),
}
BOTH_STREAMS = pytest.mark.parametrize("way", STREAMS.values(), ids=STREAMS)


@pytest.mark.parametrize("aio", [False, True], ids=["sync", "async"])
@BOTH_STREAMS
async def test_a_stream_is_on_the_account_of_the_block_that_asked_for_it(way, aio, client, books, do):
    with tokenmeter.attribute(member="ada") as block:
        stream = await do(way(client.aio if aio else client))
    with tokenmeter.attribute(member="bob"):
        async for _ in do.each(stream):
            pass
    with tokenmeter.attribute(member="bob"):
        unread = await do(way(client.aio if aio else client))
    with tokenmeter.attribute(member="ada"):
        del unread
    assert books.one().attribution.member == "ada"
    assert block.requests == 1


@pytest.mark.parametrize("aio", [False, True], ids=["sync", "async"])
@BOTH_STREAMS
async def test_a_spent_cap_stops_a_stream_that_is_read_after_its_block(way, aio, provider, priced, do):
    one, _ = capped(provider, priced, member="ada", limit_requests=0)
    with tokenmeter.attribute(member="ada"):
        stream = await do(way(one.aio if aio else one))
    with pytest.raises(BudgetExceededError):
        async for _ in do.each(stream):
            pass
    assert not provider.requests


def test_a_chat_from_before_its_client_was_metered_knows_who_asked(provider, meter, books):
    one = made(provider)
    chat = one.chats.create(model=MODEL)
    wrap(one, meter)
    with tokenmeter.attribute(member="ada"):
        stream = chat.send_message_stream("Hi")
    assert list(stream)
    assert books.one().attribution.member == "ada"


@pytest.mark.parametrize("aio", [False, True], ids=["sync", "async"])
@BOTH_STREAMS
async def test_a_stream_is_a_generator_as_the_sdks_own_is(way, aio, client, provider, books, do):
    plain, ours = [await do(way(one.aio if aio else one)) for one in (made(provider), client)]
    assert type(ours) is type(plain)
    with pytest.raises(StopAsyncIteration if aio else StopIteration):
        await do((ours.aclose if aio else ours.close)()) or await do((ours.__anext__ if aio else ours.__next__)())
    ours = await do(way(client.aio if aio else client))
    await do((ours.__anext__ if aio else ours.__next__)())
    with pytest.raises(KeyError, match="mine"):
        await do((ours.athrow if aio else ours.throw)(KeyError("mine")))
    assert books.one().status == "aborted"


def test_what_is_asked_for_wrongly_is_refused_at_once(client):
    with pytest.raises(TypeError, match="generate_content_stream"):
        client.models.generate_content_stream(model=MODEL)


def test_chunks_that_leave_fields_out_keep_what_earlier_ones_said(client, provider, books):
    said = {"role": "model", "parts": [{"text": "Hi"}]}
    chunks = [
        {"candidates": [{"content": said}], "usageMetadata": {"cachedContentTokenCount": 40}, "modelVersion": MODEL},
        {"candidates": [{"content": said}], "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 1}},
        {
            "candidates": [{"content": said, "finishReason": "STOP"}],
            "usageMetadata": {"candidatesTokenCount": 7, "thoughtsTokenCount": 3, "totalTokenCount": 110},
        },
    ]
    provider.answer(events=chunks)
    for _ in client.models.generate_content_stream(model=MODEL, contents="Hi"):
        pass
    assert dict(books.one().usage.quantities) == {"input": 60, "cache_read": 40, "output": 10}


def test_async_calls_are_recorded(client, provider, books):
    async def work():
        await asyncio.gather(*(client.aio.models.generate_content(model=MODEL, contents="Hi") for _ in range(5)))
        async for _ in await client.aio.models.generate_content_stream(model=MODEL, contents="Hi"):
            pass

    asyncio.run(work())
    assert len(books.all()) == 6
    assert recorded(books) == billed(provider)


def test_threads_share_a_client(client, provider, books):
    def work():
        for _ in range(5):
            client.models.generate_content(model=MODEL, contents="Hi")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(books.all()) == 20
    assert recorded(books) == billed(provider)


@since(1, 32)
def test_each_request_of_automatic_function_calling_is_recorded_once(client, provider, books):
    def weather(city: str) -> str:
        """Weather of a city."""
        return f"sunny in {city}"

    provider.answer(tool_calls=[("weather", {"city": "Rome"})], meters={"input": 20, "output": 5})
    provider.answer("It is sunny.", meters={"input": 40, "output": 6})
    config = types.GenerateContentConfig(tools=[weather])
    assert client.models.generate_content(model=MODEL, contents="Rome?", config=config).text == "It is sunny."
    assert recorded(books) == billed(provider)
    assert [entry.usage["input"] for entry in books.all()] == [20, 40]


@since(1, 32)
def test_each_request_of_automatic_function_calling_in_a_stream_is_recorded_once(client, provider, books):
    def weather(city: str) -> str:
        """Weather of a city."""
        return f"sunny in {city}"

    provider.answer(tool_calls=[("weather", {"city": "Rome"})], meters={"input": 20, "output": 5})
    provider.answer("It is sunny.", meters={"input": 40, "output": 6})
    config = types.GenerateContentConfig(tools=[weather])
    assert list(client.models.generate_content_stream(model=MODEL, contents="Rome?", config=config))
    assert recorded(books) == billed(provider)
    assert [entry.usage["input"] for entry in books.all()] == [20, 40]


@pytest.mark.skipif("automatic_continuation" not in types.GenerateContentConfig.model_fields, reason="2.34 or later")
def test_each_hop_of_a_continuation_is_recorded_as_it_was_billed(client, provider, books):
    part = {"index": 0, "content": {"role": "model", "parts": [{"text": "one "}]}}
    more = {**part, "finishReason": "CONTINUATION", "continuationToken": "bW9yZQ=="}
    provider.answer("one ", meters={"input": 20, "output": 5}, fields={"candidates": [more]})
    provider.answer("two", meters={"input": 25, "output": 6})
    client.models.generate_content(model=MODEL, contents="Count")
    assert len(provider.requests) == 2
    assert recorded(books) == billed(provider)


@pytest.mark.skipif(
    "should_return_http_response" not in types.GenerateContentConfig.model_fields, reason="this version has no raw way"
)
def test_a_raw_answer_is_recorded(client, provider, books):
    provider.answer("Hi", meters={"input": 7, "output": 2})
    config = types.GenerateContentConfig(should_return_http_response=True)
    answer = client.models.generate_content(model=MODEL, contents="Hi", config=config)
    assert json.loads(answer.sdk_http_response.body)["usageMetadata"]["totalTokenCount"] == 9
    assert dict(books.one().usage.quantities) == {"input": 7, "output": 2}


def test_a_blocked_prompt_is_billed_its_prompt(client, provider, books):
    provider.answer(
        body={
            "promptFeedback": {"blockReason": "SAFETY"},
            "usageMetadata": {"promptTokenCount": 12, "totalTokenCount": 12},
            "modelVersion": MODEL,
        }
    )
    client.models.generate_content(model=MODEL, contents="Hi")
    entry = books.one()
    assert (dict(entry.usage.quantities), entry.flags) == ({"input": 12}, ())


def test_an_answer_without_usage_is_estimated(client, provider, books):
    provider.answer("Hello there", omit_usage=True)
    client.models.generate_content(model=MODEL, contents="Hi")
    entry = books.one()
    assert "estimated" in entry.flags
    assert entry.usage["output"] > 0


@pytest.mark.parametrize("sort", ["generate_content", "embed_content"])
@pytest.mark.parametrize(
    "body", [b"<html>log in</html>", b'{"candidates": [{"content"'], ids=["a page", "half an answer"]
)
def test_an_answer_that_is_no_json_is_estimated_and_the_sdk_says_so(body, sort, provider, priced):
    client, meter = capped(provider, priced)
    plain = made(provider)
    provider.answer(body=body, times=None)
    config = {"max_output_tokens": 100} if sort == "generate_content" else None
    said = []
    for each in (plain, client):
        with pytest.raises(Exception) as raised:  # noqa: PT011 - whatever the SDK raises
            getattr(each.models, sort)(model=MODELS[sort], contents="Hello", config=config)
        said.append((type(raised.value), str(raised.value)))
    assert said[0] == said[1]
    (entry,) = meter.entries()
    # SDKs up to 1.x read the answer before anybody can look at it: whether it is billed is not known.
    assert {"estimated" if VERSION >= (2, 0) else "billing_unknown"} & {*entry.flags}
    (balance,) = meter.remaining()
    assert balance.reserved == 0, "nothing is held for a call that has ended"
    meter.close()


@since(1, 32)
def test_extra_body_counts_as_sent(client, provider, books):
    extra = types.HttpOptions(extra_body={"generationConfig": {"maxOutputTokens": 2}})
    client.models.generate_content(model=MODEL, contents="a long story", config={"http_options": extra})
    assert provider.requests[0].json["generationConfig"]["maxOutputTokens"] == 2
    assert recorded(books) == billed(provider)


@since(2, 10)
@pytest.mark.parametrize(
    "spelling", [("generationConfig", "maxOutputTokens"), ("generation_config", "max_output_tokens")]
)
def test_what_extra_body_asks_for_is_held_in_either_spelling(spelling, provider, priced):
    client, meter = capped(provider, priced)
    settings, limit = spelling
    extra = types.HttpOptions(extra_body={settings: {limit: 60_000}})
    with pytest.raises(BudgetExceededError):  # $0.15
        client.models.generate_content(
            model=MODEL, contents="Hi", config={"max_output_tokens": 5, "http_options": extra}
        )
    meter.close()


@since(2, 10)
def test_what_a_call_adds_stands_in_the_place_of_what_its_client_adds(provider, priced):
    meter = tokenmeter.make_meter(store="memory:", budgets=[Budget(limit_usd="0.01")], config={})
    options = types.HttpOptions(extra_body={"generationConfig": {"maxOutputTokens": 5}}, base_url=provider.url)
    client = wrap(plain_genai.Client(api_key="k-1", http_options=options), meter=meter)
    client.models.generate_content(model=MODEL, contents="Hi")
    own = types.HttpOptions(extra_body={"labels": {"a": "b"}})
    with pytest.raises(BudgetExceededError):  # sent without a limit: the model's own is held
        client.models.generate_content(model=MODEL, contents="Hi", config={"http_options": own})
    meter.close()


@since(2, 10)
@pytest.mark.parametrize("limit", ["maxOutputTokens", "max_output_tokens"])
@pytest.mark.parametrize("said", [None, 0])
def test_no_extra_body_undoes_a_cap_that_a_budget_put_in(said, limit, provider, priced):
    client, meter = capped(provider, priced, inject_max_tokens=True)
    extra = types.HttpOptions(extra_body={"generationConfig": {limit: said}, "labels": {"a": "b"}})
    for config in ({"http_options": extra}, {"http_options": extra, "temperature": 0.5}):
        client.models.generate_content(model=MODEL, contents="Hi", config=config)
        sent = provider.requests[-1].json
        assert 0 < sent["generationConfig"][limit] <= 4_000
        assert sent["labels"] == {"a": "b"}
    assert extra.extra_body["generationConfig"] == {limit: said}
    meter.close()


# -- tiers and regions


@pytest.mark.skipif("service_tier" not in types.GenerateContentConfig.model_fields, reason="this version has no tiers")
@pytest.mark.parametrize(("tier", "list_cost"), [("flex", "0.00014"), ("standard", "0.00028")])
def test_the_tier_that_served_decides_the_price(client, provider, books, tier, list_cost):
    # 100 x $0.30 + 100 x $2.50 a million tokens; flex is half of it
    provider.answer("Hi", meters={"input": 100, "output": 100}, service_tier=tier)
    client.models.generate_content(model=MODEL, contents="Hi", config={"service_tier": "priority"})
    assert str(books.one().list_cost.normalize()) == list_cost


@since(1, 32)
@pytest.mark.parametrize(("location", "list_cost"), [("global", "0.01275"), ("europe-west4", "0.014025")])
def test_a_regional_endpoint_of_a_newer_model_is_dearer(location, list_cost, provider, meter, books, monkeypatch):
    # 1,000 x $1.50 + 1,250 x $9.00 a million tokens; a tenth more in a region
    monkeypatch.setenv("GOOGLE_API_KEY", "")
    provider.answer("Hi", meters={"input": 1_000, "output": 1_250})
    client = in_a_region(provider, meter, location)  # the SDK's temporary clients close themselves
    client.models.generate_content(model="gemini-3.5-flash", contents="Hi")
    entry = books.one()
    assert str(entry.list_cost.normalize()) == list_cost
    assert entry.api_key is None
    (request,) = provider.requests
    assert f"/projects/shop/locations/{location}/publishers/google/models/" in request.path


@since(1, 32)
def test_the_tier_may_stand_in_a_header_alone(client, provider, books):
    provider.answer("Hi", meters={"input": 100, "output": 100}, headers={"x-gemini-service-tier": "flex"})
    client.models.generate_content(model=MODEL, contents="Hi")
    assert books.one().service_tier == "flex"


def test_vertex_is_the_same_and_says_its_traffic(vertex, provider, books):
    vertex.models.generate_content(model=MODEL, contents="Hi")
    for _ in vertex.models.generate_content_stream(model=MODEL, contents="Hi"):
        pass
    assert recorded(books) == billed(provider)
    assert {entry.service_tier for entry in books.all()} == {"default"}
    assert json.loads(books.all()[0].raw_usage)["trafficType"] == "ON_DEMAND"


def test_provisioned_throughput_is_not_billed_by_the_token(vertex, provider, books):
    provider.answer(
        "Hi", usage={"promptTokenCount": 9, "candidatesTokenCount": 9, "trafficType": "PROVISIONED_THROUGHPUT"}
    )
    vertex.models.generate_content(model=MODEL, contents="Hi")
    entry = books.one()
    assert (entry.service_tier, entry.list_cost, entry.cost_source) == ("provisioned", 0, "computed")


# -- searches


def test_a_search_is_billed_by_the_prompt_up_to_gemini_2(client, provider, books):
    provider.answer("Hi", meters={"input": 10, "output": 10, "grounded_prompts": 3})
    client.models.generate_content(model=MODEL, contents="Hi")
    assert books.one().usage["grounded_prompts"] == 1


def test_each_query_is_billed_from_gemini_3_on(client, provider, books):
    provider.answer("Hi", meters={"input": 10, "output": 10, "web_searches": 3})
    client.models.generate_content(model="gemini-3.5-flash", contents="Hi")
    entry = books.one()
    assert entry.usage["web_searches"] == 3
    # 10 x $1.50/M + 10 x $9/M + 3 x $14/1,000
    assert str(entry.list_cost.normalize()) == "0.042105"


# -- errors and retries


def test_errors_are_the_sdks_own_and_free(client, provider, books):
    provider.fail(429)
    with pytest.raises(errors.ClientError) as raised:
        client.models.generate_content(model=MODEL, contents="Hi")
    assert raised.value.code == 429
    entry = books.one()
    assert (entry.status, entry.error_type, entry.list_cost) == ("error", "ClientError", None)


@since(1, 55)
def test_an_error_inside_a_stream_is_recorded(client, provider, books):
    begun = {"candidates": [{"content": {"parts": [{"text": "Hi"}]}}], "usageMetadata": {"promptTokenCount": 9}}
    provider.answer(events=[begun, {"error": {"code": 503, "message": "gone", "status": "UNAVAILABLE"}}])
    with pytest.raises(errors.ServerError):
        list(client.models.generate_content_stream(model=MODEL, contents="Hi"))
    entry = books.one()
    assert (entry.status, entry.error_type) == ("error", "ServerError")
    assert entry.usage["input"] == 9


@since(1, 55)
def test_an_error_after_the_usage_was_told_is_a_failed_call(client, provider, books):
    words = {"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 4, "totalTokenCount": 13}
    ended = {"candidates": [words], "usageMetadata": usage, "modelVersion": MODEL}
    failed = {"error": {"code": 503, "message": "gone", "status": "UNAVAILABLE"}}

    async def read():
        async for _ in await client.aio.models.generate_content_stream(model=MODEL, contents="Hi"):
            pass

    for work in (
        lambda: list(client.models.generate_content_stream(model=MODEL, contents="Hi")),
        lambda: asyncio.run(read()),
    ):
        provider.answer(events=[ended, failed])
        with pytest.raises(errors.ServerError):
            work()
    for entry in books.all():
        assert (entry.status, entry.error_type, entry.cost_source) == ("error", "ServerError", "computed")
        assert dict(entry.usage.quantities) == {"input": 9, "output": 4}
    assert len(books.all()) == 2


@since(1, 32)
def test_retries_are_one_call(provider, meter, books):
    again = types.HttpRetryOptions(attempts=3, initial_delay=0.001, max_delay=0.001)
    client = wrap(made(provider, retry_options=again), meter=meter)
    provider.fail(503, times=2)
    client.models.generate_content(model=MODEL, contents="Hi")
    assert len(provider.requests) == 3
    assert recorded(books) == billed(provider)
    assert books.one().attempts == 3


def answering(*answers):
    """A transport that gives one answer after the other, as sync and async clients take it; an exception is raised."""
    http = importlib.import_module(
        type(plain_genai.Client(api_key=KEY)._api_client._httpx_client).__mro__[1].__module__
    )
    left = iter(answers)

    def handle(request):
        answer = next(left)(http)
        if isinstance(answer, Exception):
            raise answer
        return answer

    args = {"transport": http.MockTransport(handle)}
    return {"client_args": args, "async_client_args": args}


TOLD = {
    "candidates": [{"content": {"parts": [{"text": "Hello."}], "role": "model"}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 4, "candidatesTokenCount": 3, "totalTokenCount": 7},
    "modelVersion": MODEL,
    "responseId": "r1",
}
A_HIT = {"cf-aig-cache-status": "HIT"}


def says(way, **headers):
    """An answer to a call in one `way` or the other."""
    said = {"text": f"data: {json.dumps(TOLD)}\n\n"} if way is streamed else {"json": TOLD}
    return lambda http: http.Response(200, headers=headers, **said)


@since(1, 32)
@pytest.mark.parametrize("aio", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("way", [generated, streamed])
@pytest.mark.parametrize("headers", [{}, A_HIT], ids=["answered", "out of a cache"])
@pytest.mark.parametrize(("lost", "flags"), [("ReadTimeout", ("lost_try",)), ("ConnectTimeout", ())])
async def test_a_try_that_nobody_answered_is_told(lost, flags, headers, way, aio, meter, books, do):
    """One that left may have been billed, too; an answer out of a gateway's cache then stands for it."""
    again = types.HttpRetryOptions(attempts=3, initial_delay=0.001, max_delay=0.001)
    transport = answering(lambda http: getattr(http, lost)("lost"), says(way, **headers))
    client = wrap(plain_genai.Client(api_key=KEY, http_options={"retry_options": again, **transport}), meter=meter)
    await way(client.aio if aio else client, do)
    if headers and not flags:
        assert books.all() == []
        return
    entry = books.one()
    assert (entry.flags, entry.attempts, entry.usage.total_tokens) == (flags, 2, 7)


@pytest.mark.parametrize("aio", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("way", [generated, streamed])
@pytest.mark.parametrize(
    ("headers", "entries"),
    [
        (A_HIT, 0),
        ({"x-litellm-cache-key": "0a1b"}, 0),
        ({"x-portkey-cache-status": "SEMANTIC HIT"}, 0),
        ({"cf-aig-cache-status": "MISS"}, 1),
    ],
    ids=str,
)
@since(1, 32)  # older ones keep the headers to themselves
async def test_an_answer_out_of_a_gateways_cache_is_no_bill(way, aio, headers, entries, provider, do):
    meter = tokenmeter.make_meter(store="memory:", budgets=[Budget(limit_requests=3)], config={})
    client = wrap(made(provider), meter=meter)
    with tokenmeter.attribute(member="ada") as scope:
        provider.answer("Hello.", headers=headers)
        await way(client.aio if aio else client, do)
    gc.collect()
    assert len(list(meter.entries())) == scope.requests == entries
    (left,) = meter.remaining()
    assert left.reserved == 0
    assert bool(left.spent) is bool(entries)
    meter.close()


# -- budgets


def capped(provider, priced, limit="0.01", **options):
    budget = Budget(limit_usd=limit, **options)
    meter = tokenmeter.make_meter(store="memory:", budgets=[budget], config={})
    return wrap(made(provider), meter=meter), meter


def test_a_spent_budget_stops_a_call_before_it_is_sent(provider, priced):
    client, meter = capped(provider, priced)
    provider.answer("Hi", meters={"input": 100, "output": 4_000})  # $0.01003
    config = {"max_output_tokens": 3_000}
    client.models.generate_content(model=MODEL, contents="Hi", config=config)
    with pytest.raises(BudgetExceededError):
        client.models.generate_content(model=MODEL, contents="Hi", config=config)
    with pytest.raises(BudgetExceededError):
        list(client.models.generate_content_stream(model=MODEL, contents="Hi", config=config))
    with pytest.raises(BudgetExceededError):
        asyncio.run(client.aio.models.generate_content(model=MODEL, contents="Hi", config=config))
    assert len(provider.requests) == 1
    meter.close()


def test_a_cap_is_put_into_the_request_where_a_budget_wants_it(provider, priced):
    client, meter = capped(provider, priced, inject_max_tokens=True)
    config = types.GenerateContentConfig(temperature=0.5)
    client.models.generate_content(model=MODEL, contents="Hi", config=config)
    sent = provider.requests[0].json["generationConfig"]
    assert sent["temperature"] == 0.5
    assert 0 < sent["maxOutputTokens"] <= 4_000  # $0.01 at $2.50 a million
    assert config.max_output_tokens is None
    meter.close()


# -- pictures and videos


def test_pictures_that_were_delivered_are_billed(vertex, provider, books):
    provider.answer(meters={"images": 1})
    config = types.GenerateImagesConfig(number_of_images=2)
    vertex.models.generate_images(model="imagen-4.0-generate-001", prompt="a cat", config=config)
    entry = books.one()
    assert (dict(entry.usage.quantities), entry.operation) == ({"images": 1}, "image_generation")
    assert str(entry.list_cost.normalize()) == "0.04"


@since(1, 32)
def test_a_video_is_billed_once_when_it_is_done(vertex, provider, books):
    config = types.GenerateVideosConfig(duration_seconds=6, number_of_videos=2)
    with tokenmeter.attribute(team="film"):
        operation = vertex.models.generate_videos(model="veo-3.1-generate-preview", **A_CAT, config=config)
    assert books.all() == []
    while not operation.done:
        operation = vertex.operations.get(operation)
    vertex.operations.get(operation)
    entry = books.one()
    assert (dict(entry.usage.quantities), entry.attribution.team) == ({"seconds_video": 12}, "film")
    assert str(entry.list_cost.normalize()) == "4.8"  # 12 x $0.40


# -- batches, files, caches


@since(1, 32)
def test_an_inline_batch_is_recorded_answer_by_answer_at_half_price(client, provider, books):
    requests = [{"contents": [{"parts": [{"text": said}], "role": "user"}]} for said in ("one", "two two two")]
    provider.answer("Hi", meters={"input": 100, "output": 100}, path="*generateContent")
    job = client.batches.create(model=MODEL, src=requests)
    assert [one.name for one in client.batches.list()] == [job.name]
    assert books.all() == []
    client.batches.get(name=job.name)
    assert books.all() == []
    client.batches.get(name=job.name)
    client.batches.get(name=job.name)
    assert recorded(books) == billed(provider)
    # (100 x $0.30 + 100 x $2.50) / 2 a million tokens
    assert "0.00014" in {str(entry.list_cost.normalize()) for entry in books.all()}


@since(1, 32)
def test_a_batch_in_a_file_is_recorded_when_its_results_are_read(client, provider, books, tmp_path):
    source = tmp_path / "requests.jsonl"
    asked = {"contents": [{"parts": [{"text": "Hello"}], "role": "user"}]}
    source.write_text("".join(json.dumps({"key": f"k{n}", "request": asked}) + "\n" for n in range(3)))
    with tokenmeter.attribute(team="starters"):
        uploaded = client.files.upload(file=str(source), config={"mime_type": "application/jsonl"})
        job = client.batches.create(model=MODEL, src=uploaded.name)
    while job.dest is None:
        job = client.batches.get(name=job.name)
    assert books.all() == []
    first = client.files.download(file=job.dest.file_name)
    assert client.files.download(file=job.dest.file_name) == first
    assert recorded(books) == billed(provider)
    assert {entry.attribution.team for entry in books.all()} == {"starters"}


def test_a_cache_is_billed_by_the_hours_it_was_bought_for(client, provider, books):
    provider.answer(meters={"input": 1_000_000})
    cache = client.caches.create(model="gemini-2.5-pro", config={"contents": "a book", "ttl": "7200s"})
    entry = books.one()
    assert {name: int(quantity) for name, quantity in entry.usage.quantities.items()} == {"cache_storage": 2_000_000}
    assert str(entry.list_cost.normalize()) == "9"  # 2 h x $4.50
    assert [kept.name for kept in client.caches.list()] == [client.caches.get(name=cache.name).name]
    client.caches.delete(name=cache.name)
    with pytest.raises(errors.ClientError, match="404"):
        client.caches.get(name=cache.name)
    assert len(books.all()) == 1


def test_an_extension_of_a_cache_adds_what_it_adds(meter, books):
    with FakeProvider(clock=lambda: datetime(2026, 11, 20, tzinfo=UTC)) as provider:
        client = wrap(made(provider), meter=meter)
        provider.answer(meters={"input": 1_000_000})
        cache = client.caches.create(model="gemini-2.5-pro", config={"contents": "a book", "ttl": "3600s"})
        client.caches.update(name=cache.name, config={"ttl": "5400s"})
        client.caches.update(name=cache.name, config={"ttl": "600s"})
    assert [int(entry.usage["cache_storage"]) for entry in books.all()] == [1_000_000, 500_000]


# -- the client stays what it is


def test_the_drop_in_is_the_sdks_client(provider):
    client = made(provider, Client)
    assert genai.Client is Client
    assert issubclass(Client, plain_genai.Client)
    assert Client.__name__ == "Client"
    assert inspect.signature(Client) == inspect.signature(plain_genai.Client)
    assert genai.types is types
    assert type(client._api_client).__name__ == type(made(provider)._api_client).__name__


@pytest.mark.parametrize("kind", [Client, None], ids=["our class", "wrapped"])
def test_what_is_called_on_a_client_of_googles_has_the_sdks_signature_name_and_documentation(
    kind, provider, meter, shown
):
    plain, ours = made(provider), made(provider, kind or plain_genai.Client)
    tokenmeter.wrap(ours, meter)
    theirs = shown(plain)
    assert len(theirs) > 50
    assert shown(ours) == theirs


def test_the_drop_in_is_metered_by_the_default_meter(provider, meter, books, monkeypatch):
    monkeypatch.setattr("tokenmeter.default.default_meter", lambda: meter)
    client = made(provider, Client)
    client.models.generate_content(model=MODEL, contents="Hi")
    assert recorded(books) == billed(provider)


def test_copies_are_what_the_sdks_own_are(client, provider, books):
    twin = copy.copy(client)
    twin.models.generate_content(model=MODEL, contents="Hi")
    assert recorded(books) == billed(provider)
    assert copy.copy(client._api_client)._tokenmeter is client._api_client._tokenmeter
    try:
        copy.deepcopy(made(provider))
    except TypeError:
        with pytest.raises(TypeError):
            copy.deepcopy(client)
    else:  # up to 1.x
        copy.deepcopy(client).models.generate_content(model=MODEL, contents="Hi")
        assert recorded(books) == billed(provider)
    with pytest.raises(TypeError):
        pickle.dumps(client)


def test_wrapping_twice_meters_once(client, provider, meter, books):
    wrap(client, meter=meter)
    client.models.generate_content(model=MODEL, contents="Hi")
    assert len(books.all()) == 1


def test_what_goes_over_the_wire_is_unchanged(provider, client):
    config = types.GenerateContentConfig(temperature=0.1, system_instruction="Be brief.")
    for one in (made(provider), client):
        one.models.generate_content(model=MODEL, contents="Hi", config=config)
        list(one.models.generate_content_stream(model=MODEL, contents="Hi", config=config))
    plain, metered = provider.requests[:2], provider.requests[2:]
    assert [(one.method, one.target, one.body, one.headers) for one in plain] == [
        (one.method, one.target, one.body, one.headers) for one in metered
    ]


def test_a_client_goes_when_nobody_holds_it(provider, meter):
    gc.disable()
    try:
        client = wrap(made(provider), meter=meter)
        client.models.generate_content(model=MODEL, contents="Hi")
        gone = weakref.ref(client._api_client)
        plain = made(provider)
        plain.models.generate_content(model=MODEL, contents="Hi")
        reference = weakref.ref(plain._api_client)
        del client, plain
        assert (gone() is None) == (reference() is None)
    finally:
        gc.enable()


def test_a_disabled_meter_leaves_the_client_alone(client, provider, books, monkeypatch):
    monkeypatch.setenv("TOKENMETER_DISABLED", "1")
    client.models.generate_content(model=MODEL, contents="Hi")
    assert len(provider.requests) == 1


def test_what_is_no_client_is_refused():
    with pytest.raises(ConfigurationError, match="Google SDK"):
        wrap(types.Part(text="x"))


# -- interactions


@since(1, 55)
def test_an_interaction_is_recorded(client, provider, books):
    provider.answer("Hi", meters={"input": 70, "cache_read": 30, "output": 20}, reasoning_tokens=5)
    interaction = client.interactions.create(model="gemini-3.5-flash", input="Hello")
    assert interaction.usage.total_output_tokens == 15
    entry = books.one()
    assert dict(entry.usage.quantities) == {"input": 70, "cache_read": 30, "output": 20}
    assert (entry.endpoint, entry.response_id) == ("interactions.create", interaction.id)


@since(1, 55)
def test_a_streamed_interaction_is_recorded(client, provider, books):
    provider.answer("one two", meters={"input": 7, "output": 2})
    for _ in client.interactions.create(model="gemini-3.5-flash", input="Hello", stream=True):
        pass
    entry = books.one()
    assert (dict(entry.usage.quantities), entry.streamed, entry.flags) == ({"input": 7, "output": 2}, True, ())


@since(1, 55)
@pytest.mark.parametrize("streamed", [False, True])
def test_an_interaction_that_is_read_again_is_no_second_bill(streamed, client, provider, meter, books):
    made_known = []
    for _ in range(2):
        answer = client.interactions.create(model="gemini-3.5-flash", input="Hello", stream=streamed)
        if streamed:
            told = [event.interaction for event in answer if getattr(event, "interaction", None) is not None]
            answer = told[-1]
        made_known.append(answer.id)
    another = wrap(made(provider), meter=meter)
    for identity in made_known:
        client.interactions.get(identity)
        another.interactions.get(identity)
    assert [(entry.endpoint, entry.response_id) for entry in books.all()] == [
        ("interactions.create", identity) for identity in made_known
    ]


@since(1, 32)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_amid_function_calling_comes_out_as_it_is(streamed, provider):
    def weather(city: str) -> str:
        """Weather of a city."""
        return f"sunny in {city}"

    meter = tokenmeter.make_meter(store="memory:", budgets=[Budget(limit_requests=1)], config={})
    again = types.HttpRetryOptions(attempts=3, initial_delay=0.001, max_delay=0.001)
    client = wrap(made(provider, retry_options=again), meter=meter)
    provider.answer(tool_calls=[("weather", {"city": "Rome"})], meters={"input": 20, "output": 5})
    asked = {"model": MODEL, "contents": "Rome?", "config": types.GenerateContentConfig(tools=[weather])}
    models = client.models
    with pytest.raises(BudgetExceededError):
        list(models.generate_content_stream(**asked)) if streamed else models.generate_content(**asked)
    assert len(provider.requests) == 1
    assert [entry.status for entry in meter.store.entries()] == ["ok"]
    meter.close()


@since(1, 55)
def test_a_budget_stops_an_interaction(provider, priced):
    client, meter = capped(provider, priced)
    with pytest.raises(BudgetExceededError):
        client.interactions.create(
            model="gemini-3.5-flash", input="Hello", generation_config={"max_output_tokens": 5_000}
        )
    assert provider.requests == []
    meter.close()


@since(1, 55)
def test_a_raw_interaction_is_recorded(client, provider, books):
    provider.answer("Hi", meters={"input": 7, "output": 2})
    raw = getattr(client.interactions, "with_raw_response", None)
    if raw is None:
        pytest.skip("this version hands out no responses")
    answer = raw.create(model="gemini-3.5-flash", input="Hello")
    assert json.loads(answer.http_response.content)["usage"]["total_output_tokens"] == 2
    assert dict(books.one().usage.quantities) == {"input": 7, "output": 2}


@since(1, 55)
def test_retries_of_an_interaction_are_one_call(provider, meter, books):
    again = types.HttpRetryOptions(attempts=3, initial_delay=0.001, max_delay=0.001)
    client = wrap(made(provider, retry_options=again), meter=meter)
    provider.fail(503)
    provider.answer("Hi", meters={"input": 7, "output": 2})
    client.interactions.create(model="gemini-3.5-flash", input="Hello")
    assert len(provider.requests) == 2
    assert dict(books.one().usage.quantities) == {"input": 7, "output": 2}


@since(2, 9)  # before, the SDK's own did not
def test_a_client_that_interacted_goes_when_nobody_holds_it(provider, meter):
    client = wrap(made(provider), meter=meter)
    client.interactions.create(model="gemini-3.5-flash", input="Hello")
    gone = weakref.ref(client._api_client)
    gc.collect()
    gc.disable()
    try:
        del client
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_chunk_that_the_sdk_refuses_is_recorded_before_the_error_goes(asynchronous, client, provider, books):
    provider.answer("The sea", usage={"promptTokenCount": [40], "candidatesTokenCount": 5})
    asked = {"model": "gemini-3.5-flash", "contents": "Hello"}

    async def read():
        if asynchronous:
            return [chunk async for chunk in await client.aio.models.generate_content_stream(**asked)]
        return list(client.models.generate_content_stream(**asked))

    with pytest.raises(ValidationError) as kept:
        await read()
    assert "malformed_count" in books.one().flags, kept


# -- Live sessions


@pytest.fixture
def unencrypted(monkeypatch):
    """The SDK insists on TLS, which the fake provider does not speak."""
    connect = vars(live_module)["ws_connect"]

    def without_tls(uri, **options):
        options.pop("ssl", None)
        return connect(uri.replace("wss://", "ws://"), **options)

    monkeypatch.setattr(live_module, "ws_connect", without_tls)


@pytest.fixture
def live(meter, unencrypted):
    with FakeProvider(realtime=True) as provider:
        yield provider, wrap(made(provider, api_version="v1beta"), meter=meter)


async def a_turn(session, said):
    await session.send_client_content(turns=types.Content(role="user", parts=[types.Part(text=said)]))
    return [message async for message in session.receive()]


@since(1, 32)
def test_every_turn_of_a_live_session_is_a_bill(live, books):
    provider, client = live
    provider.answer("Hi", meters={"input": 143, "output_audio": 19})
    provider.answer("Yes", meters={"input": 181, "output": 30, "output_audio": 24}, reasoning_tokens=30)

    async def talk():
        async with client.aio.live.connect(model="gemini-3.8-live") as session:
            await a_turn(session, "Hello")
            assert len(books.all()) == 1
            await a_turn(session, "Really?")

    asyncio.run(talk())
    assert recorded(books) == billed(provider)
    assert {(entry.endpoint, entry.request_model, entry.status) for entry in books.all()} == {
        ("live.connect", "gemini-3.8-live", "ok")
    }


@since(1, 32)
@pytest.mark.filterwarnings("ignore:SMELL is not a valid")  # the SDK's
@pytest.mark.parametrize(
    ("usage", "quantities", "flag"),
    [
        ({"promptTokenCount": 0, "responseTokenCount": 0, "totalTokenCount": 0}, None, "usage_unknown"),
        ({"promptTokenCount": -1, "responseTokenCount": 5, "totalTokenCount": 4}, None, "malformed_count"),
        ({"promptTokenCount": True, "responseTokenCount": 5}, None, "malformed_count"),
        ({"promptTokenCount": 40, "responseTokenCount": 0, "totalTokenCount": 40}, (40, 6), "estimated"),
        ({"promptTokenCount": "40", "responseTokenCount": 5, "totalTokenCount": 45}, (40, 5), "nonstandard_count"),
        ({"promptTokenCount": 40, "responseTokenCount": 5, "dreamsTokenCount": 9}, (40, 5), "unknown_token_class"),
        (
            {
                "promptTokenCount": 40,
                "responseTokenCount": 5,
                "responseTokensDetails": [{"modality": "SMELL", "tokenCount": 5}],
            },
            (40, 5),
            "unknown_token_class",
        ),
    ],
)
def test_a_turn_that_counts_badly_is_never_free_in_silence(usage, quantities, flag, live, books):
    provider, client = live
    provider.answer("The sea is very large", usage=usage)

    async def talk():
        async with client.aio.live.connect(model="gemini-3.8-live") as session:
            await a_turn(session, "Tell me of the sea")

    asyncio.run(talk())
    entry = books.one()
    assert tuple(dict(entry.usage.quantities).values()) == (quantities or ())
    assert flag in entry.flags
    assert (entry.cost_source == "unpriced") == (quantities is None)


@since(1, 32)
def test_a_turn_that_the_sdk_refuses_is_recorded(live, books):
    provider, client = live
    provider.answer("The sea is very large", usage={"promptTokenCount": [40], "responseTokenCount": 5})

    async def talk():
        async with client.aio.live.connect(model="gemini-3.8-live") as session:
            await a_turn(session, "Tell me of the sea")

    with pytest.raises(ValidationError):
        asyncio.run(talk())
    assert "malformed_count" in books.one().flags


@since(1, 32)
def test_a_turn_that_nobody_counted_is_an_entry_of_its_own(live, books):
    provider, client = live
    provider.answer("Hi", omit_usage=True)
    provider.answer("Yes", usage={"promptTokenCount": 40, "responseTokenCount": 5, "totalTokenCount": 45})

    async def talk():
        async with client.aio.live.connect(model="gemini-3.8-live") as session:
            await a_turn(session, "Hello")
            await a_turn(session, "Really?")

    asyncio.run(talk())
    uncounted, counted = sorted(books.all(), key=lambda entry: entry.usage.input_tokens)
    assert "usage_unknown" in uncounted.flags
    assert dict(counted.usage.quantities) == {"input": 40, "output": 5}


@since(1, 32)
def test_a_live_session_without_a_turn_is_free(live, books):
    _, client = live

    async def look_in():
        async with client.aio.live.connect(model="gemini-3.8-live"):
            pass

    asyncio.run(look_in())
    assert books.all() == []


@since(1, 32)
def test_a_turn_that_the_caller_leaves_is_recorded(live, books):
    provider, client = live

    async def leave():
        async with client.aio.live.connect(model="gemini-3.8-live") as session:
            await session.send_client_content(turns=types.Content(role="user", parts=[types.Part(text="Hello")]))
            async for _ in session.receive():
                break

    asyncio.run(leave())
    assert len(provider.billed) == 1
    assert books.one().endpoint == "live.connect"
    assert "usage_unknown" in books.one().flags


@since(1, 32)
@pytest.mark.usefixtures("unencrypted")
def test_a_spent_budget_stops_the_next_turn():
    meter = tokenmeter.make_meter(store="memory:", budgets=[Budget(limit_requests=1)], config={})
    with FakeProvider(realtime=True) as provider:
        client = wrap(made(provider, api_version="v1beta"), meter=meter)

        async def talk():
            async with client.aio.live.connect(model="gemini-3.8-live") as session:
                await a_turn(session, "Hello")
                await a_turn(session, "Again")

        with pytest.raises(BudgetExceededError):
            asyncio.run(talk())
        assert len(provider.billed) == 1
    meter.close()


@since(1, 32)
@pytest.mark.parametrize("inject", [False, True], ids=["as written", "to be capped"])
def test_a_turn_is_held_as_it_is_sent_since_nothing_limits_its_answer(inject, unencrypted, priced):
    with FakeProvider(realtime=True) as provider:
        client, meter = capped(provider, priced, limit="0.5", inject_max_tokens=inject)

        async def talk():
            async with client.aio.live.connect(model="gemini-3.8-live"):
                pytest.fail(f"let in with {meter.remaining()[0].reserved}")

        with pytest.raises(RequestTooLargeError):
            asyncio.run(talk())
    meter.close()


# -- music


@pytest.fixture
def unencrypted_music(monkeypatch):
    """As `unencrypted`, for the module that music has of its own."""
    music_module = pytest.importorskip("google.genai.live_music")
    connect = vars(music_module)["connect"]
    monkeypatch.setattr(music_module, "connect", lambda uri, **rest: connect(uri.replace("wss://", "ws://"), **rest))


async def played(client, seconds):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental
        async with client.aio.live.music.connect(model="models/lyria-realtime-exp") as session:
            for _ in range(seconds):
                await session.play()
                await anext(aiter(session.receive()))


@since(2, 10)
@pytest.mark.usefixtures("unencrypted_music")
def test_what_a_session_of_music_played_is_an_entry(meter, books):
    with FakeProvider(realtime=True) as provider:
        client = wrap(made(provider, api_version="v1alpha"), meter=meter)
        asyncio.run(played(client, 3))
        entry = books.one()
        assert (entry.endpoint, entry.model, entry.status) == ("live.music", "lyria-realtime-exp", "ok")
        assert dict(entry.usage.quantities) == {"seconds_audio": 3}
        assert entry.cost_source == "unpriced"
        assert len(provider.billed) == 3


@since(2, 10)
@pytest.mark.usefixtures("unencrypted_music")
def test_a_session_that_played_nothing_is_free(meter, books):
    with FakeProvider(realtime=True) as provider:
        asyncio.run(played(wrap(made(provider, api_version="v1alpha"), meter=meter), 0))
    assert books.all() == []


@since(2, 10)
@pytest.mark.usefixtures("unencrypted_music")
def test_music_that_no_bound_is_known_of_does_not_pass_a_hard_cap(priced):
    meter = tokenmeter.make_meter(store="memory:", budgets=[Budget(limit_usd=10)], config={})
    with FakeProvider(realtime=True) as provider:
        with pytest.raises(BudgetExceededError):
            asyncio.run(played(wrap(made(provider, api_version="v1alpha"), meter=meter), 1))
        assert provider.billed == []
    meter.close()


@since(1, 55)
def test_a_reading_in_events_that_is_cut_short_leaves_the_bill_to_the_next(client, provider, books):
    begun = client.interactions.create(model="gemini-3.5-flash", input="Hello", background=True)
    if "stream" not in inspect.signature(client.interactions.get).parameters:
        pytest.skip("interactions are read whole")
    reading = client.interactions.get(begun.id, stream=True)
    next(iter(reading))
    reading.close()
    assert books.all() == []
    for _ in client.interactions.get(begun.id, stream=True):
        pass
    client.interactions.get(begun.id)
    assert recorded(books) == billed(provider)
    assert books.one().flags == ()


@pytest.fixture
def sockets(meter):
    with FakeProvider(realtime=True) as provider:
        yield provider, wrap(made(provider), meter=meter)


def connecting(client):
    if not hasattr(client.aio.interactions, "connect"):
        pytest.skip("no interactions over sockets")
    return client.aio.interactions.connect


@since(2, 10)
@pytest.mark.parametrize("how", ["with", "await"])
async def test_an_interaction_over_a_socket_is_recorded_when_it_has_ended(sockets, books, how):
    provider, client = sockets
    begun = client.interactions.create(model="gemini-3.5-flash", input="Hello", background=True)
    opening = connecting(client)(begun.id)
    session = await (opening.__aenter__() if how == "with" else opening)
    await session.send("How are you?")
    said = []
    async for event in session.receive():
        said.append(event.event_type)
        if event.event_type == "step.stop":
            assert books.all() == []
            await session.complete()
    assert said == ["interaction.connected", "step.start", "step.delta", "step.stop", "interaction.completed"]
    assert recorded(books) == billed(provider)
    await session.detach()
    client.interactions.get(begun.id)
    assert recorded(books) == billed(provider)


@since(2, 10)
async def test_an_interaction_over_a_socket_that_counts_badly_says_so(sockets, books):
    provider, client = sockets
    connect = connecting(client)
    provider.answer("Hi", usage={"total_input_tokens": "40", "total_output_tokens": 5, "total_dream_tokens": 9})
    begun = client.interactions.create(model="gemini-3.5-flash", input="Hello", background=True)
    async with connect(begun.id) as session:
        await session.complete()
        async for _ in session.receive():
            pass
    assert dict(books.one().usage.quantities) == {"input": 40, "output": 5}
    assert {"nonstandard_count", "unknown_token_class"} <= set(books.one().flags)


@since(2, 10)
async def test_an_interaction_that_is_left_is_recorded_by_whoever_hears_its_end(sockets, books):
    _, client = sockets
    connect = connecting(client)
    with tokenmeter.attribute(member="ada"):
        begun = client.interactions.create(model="gemini-3.5-flash", input="Hello", background=True)
    async with connect(begun.id) as session:
        await session.send("How are you?")
        async for event in session.receive():
            if event.event_type == "step.stop":
                break
    assert books.all() == []
    async with connect(begun.id) as session:
        await session.complete()
        async for _ in session.receive():
            pass
    entry = books.one()
    assert entry.attribution.member == "ada"
    assert entry.response_id == begun.id


@since(2, 10)
async def test_a_budget_stops_a_connection_to_an_interaction(provider):
    meter = tokenmeter.make_meter(store="memory:", budgets=[Budget(limit_requests=0)], config={})
    client = wrap(made(provider), meter=meter)
    with pytest.raises(BudgetExceededError):
        async with connecting(client)("int-of-another"):
            pass
    assert provider.requests == []
    meter.close()


@since(2, 10)
@pytest.mark.parametrize("limit", [{"limit_usd": 5}, {"limit_tokens": 10**9}])
async def test_a_connection_to_an_interaction_of_another_program_has_no_bound(provider, limit):
    meter = tokenmeter.make_meter(store="memory:", budgets=[Budget(**limit)], config={})
    connect = connecting(wrap(made(provider), meter=meter))
    with pytest.raises(RequestTooLargeError, match="unbounded='expected'"):
        async with connect("int-of-another"):
            pass
    assert provider.requests == []
    meter.close()


@since(2, 10)
@pytest.mark.parametrize("limit", [{"limit_usd": 5}, {"limit_tokens": 10**9}])
async def test_a_connection_to_an_interaction_of_ones_own_passes_a_cap_with_room(limit):
    with FakeProvider(realtime=True) as provider:
        meter = tokenmeter.make_meter(store="memory:", budgets=[Budget(**limit)], config={})
        client = wrap(made(provider), meter=meter)
        begun = client.interactions.create(model="gemini-3.5-flash", input="Hello", background=True)
        async with connecting(client)(begun.id) as session:
            await session.complete()
            async for _ in session.receive():
                pass
        (left,) = meter.remaining()
        assert (left.reserved, left.spent > 0) == (0, True)
        meter.close()


@since(2, 10)
async def test_a_connection_that_is_refused_frees_what_was_held_for_it(provider):
    meter = tokenmeter.make_meter(store="memory:", budgets=[Budget(limit_requests=5)], config={})
    client = wrap(made(provider), meter=meter)
    connect = connecting(client)
    provider.stop()
    with pytest.raises(Exception, match="setup"):
        async with connect("int-of-another"):
            pass
    (left,) = meter.remaining()
    assert (left.reserved, left.spent) == (0, 0)
    meter.close()


@since(2, 20)
def test_what_a_trigger_ran_is_recorded_once_it_is_read_on_the_account_of_who_ran_it(client, provider, books):
    if not hasattr(client, "triggers"):
        pytest.skip("no triggers")
    with tokenmeter.attribute(member="ada"):
        execution = client.triggers.run("trigger-1")
    assert books.all() == []
    client.interactions.get(execution.interaction_id)
    client.interactions.get(execution.interaction_id)
    assert recorded(books) == billed(provider)
    assert books.one().attribution.member == "ada"


# -- every method of the SDK


def methods_of(client):
    """The names of what a client, sync or async, and its resources can be asked to do."""

    def below(thing, place, depth=0):
        for name in dir(type(thing)):
            if name.startswith(("_", "with_", "do_request")) or name in {"aio", "vertexai"}:
                continue
            what = getattr(type(thing), name)
            if isinstance(what, property):
                yield from below(getattr(thing, name), f"{place}{name}.", depth + 1)
            elif depth and callable(what):
                yield f"{place}{name}"
        for name in ("auth_tokens", "documents"):  # the SDK hangs these on the instance
            if depth and (found := getattr(thing, name, None)) is not None:
                yield from below(found, f"{place}{name}.", depth + 1)

    return set(below(client, ""))


@pytest.mark.parametrize("side", ["sync", "async"])
def test_every_method_of_the_sdk_has_its_place_in_the_table(side):
    client = plain_genai.Client(api_key=KEY)
    found = methods_of(client if side == "sync" else client.aio)
    assert found - METHODS.keys() == set(), "say in google_methods.py what becomes of a call of it"


@since(3, 6)
def test_the_table_names_no_method_that_the_sdk_lacks():
    client = plain_genai.Client(api_key=KEY)
    assert METHODS.keys() - methods_of(client) - methods_of(client.aio) == set()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.asks])
def test_a_method_is_billed_as_the_table_says(name):
    method = METHODS[name]
    verb, path = method.asks.split(" ")
    endpoint = DIALECT.endpoint(verb, path)
    assert endpoint.kind == BECOMES[method.becomes]
    if endpoint.kind != "free":
        assert endpoint.path in {
            name,
            name.removesuffix(".connect"),
            name.removesuffix("_stream"),
        } or endpoint.path == ("files.download" if "alt=media" in path else name)


@since(1, 55)
def test_cancelling_an_interaction_is_no_bill_of_its_own(client, provider, books):
    begun = client.interactions.create(model="gemini-3.5-flash", input="Hello", background=True)
    client.interactions.cancel(begun.id)
    client.interactions.get(begun.id)
    assert recorded(books) == billed(provider)
    assert books.one().flags == ()


def test_pictures_embeddings_and_batches_are_read_from_the_objects_that_the_sdk_returns():
    if not hasattr(types, "InlinedResponse"):
        pytest.skip("this SDK version has no batches")
    picture = types.GeneratedImage(image=types.Image(image_bytes=b"x"))
    held_back = types.GeneratedImage(rai_filtered_reason="unsafe")
    made = types.GenerateImagesResponse(generated_images=[picture, held_back, picture])
    embedding = types.ContentEmbedding(values=[0.1], statistics=types.ContentEmbeddingStatistics(token_count=7))
    embedded = types.EmbedContentResponse(embeddings=[embedding])
    counts = types.GenerateContentResponseUsageMetadata(
        prompt_token_count=100, candidates_token_count=20, total_token_count=120
    )
    answered = types.InlinedResponse(response=types.GenerateContentResponse(usage_metadata=counts))
    kept = types.BatchJobDestination(inlined_responses=[answered])
    job = types.BatchJob(name="batches/1", state="JOB_STATE_SUCCEEDED", model="models/gemini-2.5-flash", dest=kept)
    for model, endpoint, answer, cost in [
        ("gemini-2.5-flash", "batches.get", job, "0.00004"),  # (100 x 0.30 + 20 x 2.50) / 2 per million
        ("imagen-4.0-generate-001", "models.generate_images", made, "0.08"),  # 2 x 0.04
        ("gemini-embedding-001", "models.embed_content", embedded, "0.00000105"),  # 7 x 0.15 per million
    ]:
        dumped = answer.model_dump(), answer.model_dump(exclude_none=True)
        for body in (answer, *dumped, answer.model_dump_json(exclude_none=True, by_alias=True)):
            rating = tokenmeter.price(body, provider="google", endpoint=endpoint, model=model)
            assert (rating.list_cost, rating.cost_source) == (Decimal(cost), "computed")
