"""FakeProvider speaks OpenAI's wire format: its answers pass the SDK's own types, strictly, and its books are right."""

from __future__ import annotations

import io
import json
import urllib.request
import warnings
from typing import Any

import pydantic
import pytest

openai = pytest.importorskip("openai")

from openai import types  # noqa: E402
from openai.types import responses as response_types  # noqa: E402

from tokenmeter.testing import FakeProvider  # noqa: E402
from tokenmeter.usage import Consumption, Usage  # noqa: E402

KEY = "sk-proj-0123456789abcd"
HELLO = [{"role": "user", "content": "Hello there"}]


@pytest.fixture
def client(fake_provider):
    with openai.OpenAI(base_url=fake_provider.openai_url, api_key=KEY, max_retries=0) as made:
        yield made


def unknown_fields(value: Any, path: str = "") -> list[str]:
    """Fields that the SDK's type does not know, wherever they are."""
    if isinstance(value, pydantic.BaseModel):
        found = [f"{path}.{name}" for name in value.model_extra or {}]
        return found + [
            hit for name in type(value).model_fields for hit in unknown_fields(getattr(value, name), f"{path}.{name}")
        ]
    if isinstance(value, list):
        return [hit for item in value for hit in unknown_fields(item, f"{path}[]")]
    return []


def strictly(cast_to: Any, body: bytes | str) -> Any:
    """`body` as `cast_to`, without any coercion and without fields the type lacks."""
    value = pydantic.TypeAdapter(cast_to).validate_json(body, strict=True)
    assert unknown_fields(value) == []
    return value


@pytest.fixture
def stream_of(fake_provider):
    """The decoded events of a streamed POST, as they came off the wire."""

    def post(path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        request = urllib.request.Request(  # noqa: S310 - our own server
            fake_provider.openai_url + path,
            data=json.dumps({**body, "stream": True}).encode(),
            headers={"authorization": f"Bearer {KEY}", "content-type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:  # noqa: S310 - as above
            return [json.loads(line[6:]) for line in response if line.startswith(b"data: {")]

    return post


def test_a_chat_completion_is_a_strict_chat_completion(fake_provider, client):
    raw = client.chat.completions.with_raw_response.create(model="gpt-5-mini", messages=HELLO)
    completion = strictly(types.chat.ChatCompletion, raw.content)
    assert completion.choices[0].message.content == "You said: Hello there"
    assert raw.headers["x-request-id"] == fake_provider.truth[0].request_id


def test_truth_holds_what_was_billed_and_for_whom(fake_provider, client):
    completion = client.chat.completions.create(model="gpt-5-mini", messages=HELLO)
    (truth,) = fake_provider.truth
    assert (truth.provider, truth.endpoint, truth.model) == ("openai", "chat.completions", "gpt-5-mini")
    assert (truth.status, truth.billed, truth.streamed, truth.complete) == (200, True, False, True)
    assert truth.api_key_last4 == "abcd"
    assert truth.response_id == completion.id
    assert truth.meters.input_tokens == completion.usage.prompt_tokens
    assert truth.meters.output_tokens == completion.usage.completion_tokens == 6  # 21 bytes
    assert truth.usage == completion.usage.model_dump(exclude_unset=True)


def test_the_same_request_gets_the_same_answer(client):
    first, second = (client.chat.completions.create(model="gpt-5-mini", messages=HELLO) for _ in range(2))
    assert first.choices == second.choices
    assert first.usage == second.usage
    assert first.id != second.id


@pytest.mark.parametrize("choices", [1, 3])
def test_chat_chunks_are_strict_and_join_to_the_answer(stream_of, choices):
    chunks = stream_of("/chat/completions", {"model": "gpt-5", "messages": HELLO, "n": choices})
    for chunk in chunks:
        strictly(types.chat.ChatCompletionChunk, json.dumps(chunk))
        assert "usage" not in chunk
    for index in range(choices):
        deltas = [c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(deltas) == "You said: Hello there"


def test_usage_asked_for_comes_on_a_last_chunk_without_choices(fake_provider, stream_of):
    body = {"model": "gpt-5", "messages": HELLO, "stream_options": {"include_usage": True}}
    chunks = stream_of("/chat/completions", body)
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == fake_provider.truth[0].usage


def test_n_choices_bill_the_output_n_times(fake_provider, client):
    client.chat.completions.create(model="gpt-5", messages=HELLO)
    client.chat.completions.create(model="gpt-5", messages=HELLO, n=3)
    one, three = (truth.meters for truth in fake_provider.truth)
    assert three["output"] == 3 * one["output"]
    assert three["input"] == one["input"]


def test_stream_options_without_a_stream_are_refused(client):
    with pytest.raises(openai.BadRequestError, match="stream_options"):
        client.chat.completions.create(model="gpt-5", messages=HELLO, stream_options={"include_usage": True})


@pytest.mark.parametrize("status", [400, 403, 422])
def test_a_host_may_refuse_stream_options(status):
    with (
        FakeProvider(stream_usage="refuse", refusal_status=status) as host,
        openai.OpenAI(base_url=host.openai_url, api_key=KEY, max_retries=0) as client,
    ):
        with pytest.raises(openai.APIStatusError, match="stream_options") as caught:
            client.chat.completions.create(
                model="m", messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
        assert caught.value.status_code == status
        assert list(client.chat.completions.create(model="m", messages=HELLO, stream=True))
        assert [truth.billed for truth in host.truth] == [False, True]


@pytest.mark.parametrize(
    ("mode", "chunks_with_usage"),
    [("cumulative", "all"), ("last_choice", "last"), ("always", "extra"), ("never", "none")],
)
def test_hosts_report_stream_usage_in_their_own_ways(fake_provider, stream_of, mode, chunks_with_usage):
    fake_provider.answer(stream_usage=mode)
    chunks = stream_of("/chat/completions", {"model": "m", "messages": HELLO})
    with_usage = [chunk for chunk in chunks if chunk.get("usage")]
    truth = fake_provider.truth[0]
    assert truth.billed
    match chunks_with_usage:
        case "all":
            assert with_usage == chunks
            counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
            assert counts == sorted(counts)
            assert counts[-1] == truth.meters.output_tokens
        case "last":
            assert with_usage == [chunks[-1]]
            assert chunks[-1]["choices"]
        case "extra":
            assert with_usage == [chunks[-1]]
            assert not chunks[-1]["choices"]
        case _:
            assert with_usage == []
            assert truth.usage is None


def test_tools_that_are_demanded_are_called_with_fitting_arguments(client):
    schema = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo"]}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": schema}}]
    raw = client.chat.completions.with_raw_response.create(
        model="gpt-5", messages=HELLO, tools=tools, tool_choice="required"
    )
    choice = strictly(types.chat.ChatCompletion, raw.content).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Oslo"}


def test_scripted_tool_calls_stream_in_pieces(fake_provider, client):
    fake_provider.answer(tool_calls=[("weather", {"city": "New York"})])
    with client.chat.completions.stream(model="gpt-5", messages=HELLO) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls[0].function.arguments == '{"city": "New York"}'


def test_a_structured_answer_fits_the_schema(client):
    class Person(pydantic.BaseModel):
        name: str
        age: int

    parsed = client.chat.completions.parse(model="gpt-5", messages=HELLO, response_format=Person)
    assert isinstance(parsed.choices[0].message.parsed, Person)
    assert isinstance(client.responses.parse(model="gpt-5", input="Hi", text_format=Person).output_parsed, Person)


def test_max_tokens_cut_the_answer(client):
    completion = client.chat.completions.create(model="gpt-5", messages=HELLO, max_completion_tokens=2)
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 2
    response = client.responses.create(model="gpt-5", input="Hello there", max_output_tokens=2)
    assert response.incomplete_details.reason == "max_output_tokens"


def test_legacy_completions_are_strict_and_streams_too(client, stream_of):
    raw = client.completions.with_raw_response.create(model="gpt-3.5-turbo-instruct", prompt=["a", "b"])
    assert len(strictly(types.Completion, raw.content).choices) == 2
    chunks = stream_of("/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "a"})
    strictly(types.Completion, json.dumps(chunks[-1]))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "You said: a"


METERS = {"input": 70, "cache_read": 20, "cache_write_30m": 10, "output": 25}


def test_scripted_meters_appear_inclusive_on_the_chat_wire(fake_provider, client):
    fake_provider.answer("ok", meters=METERS, reasoning_tokens=5, service_tier="flex", model="gpt-5-2025-08-07")
    completion = client.chat.completions.create(model="gpt-5", messages=HELLO)
    assert completion.usage.prompt_tokens == 100
    assert completion.usage.prompt_tokens_details.cached_tokens == 20
    assert completion.usage.prompt_tokens_details.cache_write_tokens == 10
    assert completion.usage.completion_tokens_details.reasoning_tokens == 5
    (truth,) = fake_provider.truth
    assert dict(truth.meters.quantities) == METERS
    assert (truth.model, truth.request_model, truth.service_tier) == ("gpt-5-2025-08-07", "gpt-5", "flex")


def test_a_scripted_usage_object_is_sent_as_it_is_and_read_into_meters(fake_provider, client):
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 25,
        "total_tokens": 125,
        "prompt_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 10, "audio_tokens": 3},
        "completion_tokens_details": {"audio_tokens": 4, "reasoning_tokens": 2},
    }
    fake_provider.answer(usage=usage)
    completion = client.chat.completions.create(model="gpt-5", messages=HELLO)
    assert completion.usage.model_dump(exclude_unset=True) == usage
    expected = {"input": 67, "cache_read": 20, "cache_write_30m": 10, "input_audio": 3, "output": 21, "output_audio": 4}
    assert dict(fake_provider.truth[0].meters.quantities) == expected


def test_fields_of_compatible_hosts_are_laid_over_the_answer(fake_provider, client):
    fake_provider.answer(fields={"usage": {"cost": 0.0125}, "provider": "Somebody"})
    completion = client.chat.completions.create(model="m", messages=HELLO)
    assert completion.usage.cost == 0.0125
    assert completion.usage.total_tokens > 0


@pytest.mark.parametrize(
    ("asked", "served"), [(None, "default"), ("auto", "default"), ("flex", "flex"), ("fast", "priority")]
)
def test_the_tier_that_serves_is_named(client, asked, served):
    extra = {} if asked is None else {"service_tier": asked}
    assert client.chat.completions.create(model="gpt-5", messages=HELLO, extra_body=extra).service_tier == served


def test_a_response_is_a_strict_response(fake_provider, client):
    fake_provider.answer("Done.", reasoning="Let me think.", meters=METERS, reasoning_tokens=4)
    raw = client.responses.with_raw_response.create(model="gpt-5", input="Hello", instructions="Be brief")
    response = strictly(response_types.Response, raw.content)
    assert response.output_text == "Done."
    assert response.usage.input_tokens == 100
    assert fake_provider.truth[0].usage == json.loads(raw.content)["usage"]


def test_response_events_are_strict_numbered_and_complete(fake_provider, stream_of):
    fake_provider.answer("All well.", reasoning="Let me think.", tool_calls=[("go", {"to": "the sea"})])
    events = stream_of("/responses", {"model": "gpt-5", "input": "Hello"})
    for event in events:
        strictly(response_types.ResponseStreamEvent, json.dumps(event))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["usage"] == fake_provider.truth[0].usage


def test_the_sdk_assembles_a_response_stream(client):
    with client.responses.stream(model="gpt-5", input="Hello") as stream:
        assert stream.get_final_response().output_text == "You said: Hello"


def test_hosted_tools_show_as_items_and_tool_usage(fake_provider, client):
    drawing = Consumption(
        model="gpt-image-1.5", usage=Usage({"input": 10, "output_image": 1056}), role="image_generation"
    )
    searches = {"input": 5, "output": 5, "web_searches": 2, "file_searches": 1, "container_sessions": 1}
    fake_provider.answer(meters=searches, also=[drawing])
    raw = client.responses.with_raw_response.create(model="gpt-5", input="Hello")
    response = strictly(response_types.Response, raw.content)
    kinds = [item.type for item in response.output]
    assert kinds.count("web_search_call") == 2
    assert response.tool_usage.web_search.num_requests == 2
    assert response.tool_usage.image_gen.output_tokens == 1056
    assert response.usage.total_tokens == 10
    assert fake_provider.usage()["gpt-image-1.5"]["output_image"] == 1056


def test_a_background_response_is_done_at_the_second_look_and_billed_once(fake_provider, client):
    queued = client.responses.create(model="gpt-5", input="Hello", background=True)
    assert (queued.status, queued.usage) == ("queued", None)
    assert client.responses.retrieve(queued.id).status == "in_progress"
    done = client.responses.retrieve(queued.id)
    assert done.status == "completed"
    assert done.usage.total_tokens == fake_provider.total.total_tokens
    assert client.responses.retrieve(queued.id) == done
    assert len(fake_provider.billed) == 1


def test_a_background_response_can_be_cancelled(client):
    queued = client.responses.create(model="gpt-5", input="Hello", background=True)
    assert client.responses.cancel(queued.id).status == "cancelled"
    assert client.responses.retrieve(queued.id).status == "cancelled"


def test_compaction_is_billed_and_counting_is_free(fake_provider, client):
    raw = client.responses.with_raw_response.compact(model="gpt-5", input="Hello")
    assert strictly(response_types.CompactedResponse, raw.content).usage.total_tokens > 0
    assert client.responses.input_tokens.count(model="gpt-5", input="Hello there").input_tokens == 3
    assert [truth.billed for truth in fake_provider.truth] == [True, False]


def test_embeddings_are_unit_vectors_in_both_encodings(fake_provider, client):
    floats = client.embeddings.create(model="text-embedding-3-small", input=["a", "b"], encoding_format="float")
    packed = client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
    assert [item.embedding for item in packed.data] == [pytest.approx(item.embedding) for item in floats.data]
    assert len(floats.data[0].embedding) == 1536
    assert sum(x * x for x in floats.data[1].embedding) == pytest.approx(1, abs=1e-5)
    assert floats.usage.prompt_tokens == fake_provider.truth[0].meters["input"] == 2
    raw = client.embeddings.with_raw_response.create(model="m", input="a", encoding_format="float", dimensions=4)
    assert len(strictly(types.CreateEmbeddingResponse, raw.content).data[0].embedding) == 4


def test_moderations_are_free_and_flag_nothing(fake_provider, client):
    raw = client.moderations.with_raw_response.create(input=["a", "b"])
    assert [result.flagged for result in strictly(types.ModerationCreateResponse, raw.content).results] == [False] * 2
    assert not fake_provider.truth[0].billed


def test_images_report_tokens_of_text_and_picture(fake_provider, client):
    raw = client.images.with_raw_response.generate(model="gpt-image-1", prompt="A cat", n=2, quality="low")
    images = strictly(types.ImagesResponse, raw.content)
    assert len(images.data) == 2
    assert images.usage.output_tokens == 2 * 272
    assert fake_provider.truth[0].meters["output_image"] == 2 * 272
    edited = client.images.edit(model="gpt-image-1", prompt="A cat", image=io.BytesIO(b"png"))
    assert edited.usage.input_tokens_details.image_tokens == fake_provider.truth[1].meters["input_image"] > 0


def test_image_streams_end_with_usage(fake_provider, client):
    events = list(client.images.generate(model="gpt-image-1", prompt="A cat", stream=True, partial_images=1))
    assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]
    assert events[-1].usage.output_tokens == fake_provider.total["output_image"]


def test_dall_e_is_billed_by_the_picture(fake_provider, client):
    assert client.images.generate(model="dall-e-3", prompt="A cat").usage is None
    assert dict(fake_provider.total.quantities) == {"images": 1}


def test_speech_is_billed_though_nothing_on_the_wire_says_so(fake_provider, client):
    assert client.audio.speech.create(model="tts-1", voice="alloy", input="Hello").content
    assert dict(fake_provider.total.quantities) == {"characters": 5}
    assert fake_provider.truth[0].usage is None


@pytest.mark.parametrize("model", ["whisper-1", "gpt-4o-transcribe"])
@pytest.mark.parametrize("form", ["json", "text", "srt", "vtt", "verbose_json"])
def test_transcriptions_in_every_format_are_billed(fake_provider, client, model, form):
    sound = ("speech.wav", b"\x00" * 64_000)
    heard = client.audio.transcriptions.create(model=model, file=sound, response_format=form)
    assert "You said something." in (heard if isinstance(heard, str) else heard.text)
    meter = "seconds_audio" if model == "whisper-1" else "input_audio"
    assert fake_provider.total[meter] == (2 if model == "whisper-1" else 20)


def test_transcription_bodies_are_strict(client):
    sound = ("speech.wav", b"\x00" * 64_000)
    raw = client.audio.transcriptions.with_raw_response.create(model="gpt-4o-transcribe", file=sound)
    assert strictly(types.audio.Transcription, raw.content).usage.type == "tokens"
    raw = client.audio.transcriptions.with_raw_response.create(
        model="whisper-1", file=sound, response_format="verbose_json"
    )
    assert strictly(types.audio.TranscriptionVerbose, raw.content).usage.seconds == 2
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # newer SDKs announce their end
        raw = client.audio.translations.with_raw_response.create(model="whisper-1", file=sound)
    assert strictly(types.audio.Translation, raw.content).text


def test_transcriptions_stream(fake_provider, client):
    events = list(client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", b"12"), stream=True))
    assert events[-1].usage.total_tokens == fake_provider.total.total_tokens


def test_decisions_answer_every_question(fake_provider, client):
    questions = [
        {"type": "predicate", "instructions": "Is it?", "name": "is"},
        {"type": "choice", "instructions": "Which?", "choices": [{"value": "a"}, {"value": True}]},
        {"type": "score", "instructions": "How?", "levels": [{"label": "low"}, {"label": "high"}]},
    ]
    raw = client.decisions.with_raw_response.create(model="gpt-6-luna", input="Hello", questions=questions)
    decision = strictly(types.Decision, raw.content)
    assert [answer.type for answer in decision.answers] == ["predicate", "choice", "score"]
    assert fake_provider.total["output"] == 3


def test_a_batch_serves_and_bills_every_line(fake_provider, client):
    fake_provider.fail(400, path="/v1/chat/completions", for_model="bad")
    lines = [
        {
            "custom_id": f"line-{model}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": HELLO},
        }
        for model in ("gpt-5", "bad", "gpt-5")
    ]
    data = "\n".join(json.dumps(line) for line in lines).encode()
    uploaded = client.files.create(file=("in.jsonl", data), purpose="batch")
    raw = client.batches.with_raw_response.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    made = strictly(types.Batch, raw.content)
    assert made.status == "validating"
    batch = strictly(types.Batch, client.batches.with_raw_response.retrieve(made.id).content)
    assert (batch.status, batch.model) == ("completed", "gpt-5")
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
    assert batch.usage.total_tokens == fake_provider.total.total_tokens
    rows = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert [row["custom_id"] for row in rows] == ["line-gpt-5", "line-gpt-5"]
    assert rows[0]["response"]["body"]["usage"] == fake_provider.billed[0].usage
    assert {part.processing for truth in fake_provider.billed for part in truth.consumptions} == {"batch"}
    assert json.loads(client.files.content(batch.error_file_id).text)["response"]["status_code"] == 400


def test_files_models_and_jobs_are_strict(fake_provider, client):
    uploaded = client.files.with_raw_response.create(file=("in.jsonl", b"x" * 40), purpose="fine-tune")
    file = strictly(types.FileObject, uploaded.content)
    assert client.files.retrieve(file.id) == client.files.list().data[0]
    job = client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=file.id)
    raw = client.fine_tuning.jobs.with_raw_response.retrieve(job.id)
    assert strictly(types.fine_tuning.FineTuningJob, raw.content).trained_tokens == 30
    assert fake_provider.total["trained_tokens"] == 30
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    strictly(types.Model, client.models.with_raw_response.retrieve("gpt-5").content)
    assert client.models.list().data


def test_videos_are_billed_by_the_second(fake_provider, client):
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # newer SDKs announce their end
        video = client.videos.create(prompt="A cat", seconds="8")
        assert strictly(types.Video, client.videos.with_raw_response.retrieve(video.id).content).status == "completed"
    assert fake_provider.total["seconds_video"] == 8


def test_azure_deployments_work(fake_provider):
    with openai.AzureOpenAI(
        azure_endpoint=fake_provider.url, api_key=KEY, api_version="2024-10-21", max_retries=0
    ) as client:
        client.chat.completions.create(model="my-deployment", messages=HELLO)
        chunks = list(client.chat.completions.create(model="my-deployment", messages=HELLO, stream=True))
    assert chunks[0].choices == []  # Azure reports its prompt filter first
    assert [truth.endpoint for truth in fake_provider.billed] == ["chat.completions"] * 2
    assert fake_provider.requests[0].path == "/openai/deployments/my-deployment/chat/completions"


def test_any_base_path_is_accepted(fake_provider):
    with openai.OpenAI(base_url=f"{fake_provider.url}/some/host/api/v1", api_key=KEY) as client:
        assert client.chat.completions.create(model="m", messages=HELLO).usage


def test_batches_are_listed_from_the_one_that_was_named_last(fake_provider):
    with openai.OpenAI(base_url=fake_provider.openai_url, api_key=KEY) as client:
        file = client.files.create(file=("in.jsonl", b""), purpose="batch")
        made = [
            client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h").id
            for _ in range(3)
        ]
        assert [batch.id for batch in client.batches.list(after=made[0]).data] == made[1:]
        assert client.batches.list(after=made[-1]).data == []


@pytest.mark.parametrize("said", [None, [1], "9", {"prompt_tokens": "70", "completion_tokens": 20.0}])
def test_a_host_that_counts_badly_bills_what_it_was_scripted_to(said, fake_provider, client):
    fake_provider.answer("Hello", meters={"input": 70, "output": 20}, fields={"usage": said})
    raw = client.chat.completions.with_raw_response.create(model="gpt-5-mini", messages=HELLO)
    told = json.loads(raw.text)["usage"]
    assert told == said or {name: told[name] for name in said} == said
    assert dict(fake_provider.truth[-1].meters.quantities) == {"input": 70, "output": 20}
