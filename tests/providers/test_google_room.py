"""Google's room: which URL is what, what a request says before it leaves, and bodies that are not what they seem."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from tokenmeter.call import RequestFacts
from tokenmeter.providers.google.dialect import GoogleDialect
from tokenmeter.providers.registry import dialect_for

ROOM = GoogleDialect()
GENERATE = ROOM.named("models.generate_content")


@pytest.mark.parametrize(
    ("method", "url", "path", "kind"),
    [
        ("post", "models/gemini-2.5-flash:generateContent", "models.generate_content", "billed"),
        (
            "POST",
            "https://x.googleapis.com/v1beta/models/g:streamGenerateContent?alt=sse",
            "models.generate_content",
            "billed",
        ),
        ("POST", "publishers/google/models/gemini-2.5-pro:generateContent", "models.generate_content", "billed"),
        ("POST", "v1/projects/p/locations/l/endpoints/123:generateContent", "models.generate_content", "billed"),
        ("POST", "tunedModels/mine:generateContent", "models.generate_content", "billed"),
        ("POST", "models/gemini-embedding-001:batchEmbedContents", "models.embed_content", "billed"),
        ("POST", "publishers/google/models/text-embedding-005:predict", "models.embed_content", "billed"),
        ("POST", "publishers/google/models/imagen-4.0-generate-001:predict", "models.generate_images", "billed"),
        ("POST", "publishers/google/models/imagen-3.0-capability-001:predict", "models.edit_image", "billed"),
        ("POST", "publishers/google/models/imagen-4.0-upscale-preview:predict", "models.upscale_image", "billed"),
        ("POST", "models/veo-3.1-generate-preview:predictLongRunning", "models.generate_videos", "billed"),
        ("POST", "models/unheard-of:predict", "models.predict", "unknown"),
        ("POST", "v1beta/interactions", "interactions.create", "billed"),
        ("GET", "v1beta/interactions/int-1", "interactions.get", "polled"),
        ("POST", "models/gemini-2.5-flash:batchGenerateContent", "batches.create", "starts"),
        ("GET", "batches/b1", "batches.get", "polled"),
        ("GET", "files/batch-b1:download?alt=media", "files.download", "polled"),
        ("GET", "models/veo-3.1-generate-preview/operations/op1", "operations.get", "polled"),
        ("POST", "cachedContents", "caches.create", "polled"),
        ("PATCH", "cachedContents/c1", "caches.update", "polled"),
        ("POST", "tuningJobs", "tunings.tune", "starts"),
        ("GET", "tuningJobs/1", "tunings.get", "polled"),
        ("POST", "fileSearchStores/s1:importFile", "file_search_stores.import_file", "unknown"),
        ("POST", "models/gemini-2.5-flash:countTokens", "models.count_tokens", "free"),
        ("GET", "models", "/models", "free"),
        ("GET", "cachedContents", "/cachedContents", "free"),
        ("DELETE", "cachedContents/c1", "/cachedContents/c1", "free"),
        ("POST", "batches/b1:cancel", "/batches/b1:cancel", "free"),
        ("POST", "files", "/files", "free"),
        ("POST", "auth_tokens", "/auth_tokens", "free"),
        ("POST", "somethingNew", "/somethingNew", "unknown"),
    ],
)
def test_what_a_url_is(method, url, path, kind):
    endpoint = ROOM.endpoint(method, url)
    assert (endpoint.path, endpoint.kind) == (path, kind)


@pytest.mark.parametrize(
    ("provider", "endpoint", "room"),
    [
        ("google", "batches.get", "google"),
        ("openai", "batches.retrieve", "openai"),
        ("google", "chat.completions", "openai"),
        ("google", "messages", "anthropic"),
        ("google", "models.generate_content", "google"),
        ("google", "decisions", "google"),
        ("openrouter", "decisions", "openai"),
    ],
)
def test_an_endpoint_that_several_formats_have_is_the_providers_own(provider, endpoint, room):
    assert dialect_for(provider, endpoint).name == room


# -- requests


def facts(body, endpoint=GENERATE):
    return ROOM.request_facts(endpoint, body)


def test_the_prompt_is_bounded_by_its_bytes_and_media_by_their_kind():
    text = {"contents": [{"role": "user", "parts": [{"text": "x" * 1000}]}]}
    assert 1000 <= facts(text).input_bytes < 1200
    picture = {"inlineData": {"mimeType": "image/png", "data": "A" * 100_000}}
    seen = facts({"contents": [{"parts": [{"text": "x"}, picture]}]})
    assert (seen.image_count, seen.unbounded) == (1, None)
    assert seen.input_bytes < 500
    sound = {"inlineData": {"mimeType": "audio/wav", "data": "A" * 1000}}
    assert facts({"contents": [{"parts": [sound]}]}).input_bytes >= 1000


@pytest.mark.parametrize(
    "body",
    [
        {"contents": [{"parts": [{"fileData": {"fileUri": "files/x", "mimeType": "video/mp4"}}]}]},
        {"contents": [{"parts": [{"fileData": {"file_uri": "files/x", "mime_type": "application/pdf"}}]}]},
        {"contents": [{"parts": [{"fileData": {"file_uri": "https://youtube.com/x"}}]}]},
        {"contents": [{"parts": [{"inlineData": {"mimeType": "application/pdf", "data": "AAAA"}}]}]},
        {"contents": [{"parts": [{"text": "x"}]}], "cachedContent": "cachedContents/c1"},
        {"input": "x", "previous_interaction_id": "int-1"},
    ],
)
def test_content_that_lies_elsewhere_is_bounded_by_the_context_window(body):
    assert facts(body).unbounded in {"files", "conversation"}


def test_the_schema_of_an_interactions_answer_is_part_of_its_prompt():
    assert facts({"input": "x", "response_format": {"description": "x" * 1000}}).input_bytes > 1000


@pytest.mark.parametrize(
    "tool",
    [
        {"googleSearch": {}},
        {"urlContext": {}},
        {"codeExecution": {}},
        {"type": "google_search"},
        {"retrieval": {}},
        {"exaAiSearch": {}},
        {"parallelAiSearch": {}},
    ],
)
def test_tools_that_the_provider_runs_have_no_bound(tool):
    assert facts({"contents": [], "tools": [tool]}).unbounded == "server_tools"
    assert facts({"contents": [], "tools": (tool,)}).unbounded == "server_tools"


@pytest.mark.parametrize("tool", [{"aNewSearch": {}}, {"functionDeclarations": [], "googleMaps": {}}, {"type": "new"}])
def test_a_tool_that_is_not_known_to_be_the_callers_has_no_bound(tool):
    assert facts({"contents": [], "tools": [tool]}).unbounded == "server_tools"


@pytest.mark.parametrize(
    "tool",
    [
        {"functionDeclarations": []},
        {"computerUse": {}},
        {"type": "function", "name": "f"},
        {"function_declarations": []},
    ],
)
def test_tools_that_the_caller_runs_leave_a_call_bounded(tool):
    assert facts({"contents": [], "tools": [tool]}).unbounded is None


LOOKS_LIKE_A_PICTURE = {"type": "image", "mimeType": "image/png", "data": "x" * 10_000}


@pytest.mark.parametrize(
    "part",
    [
        {"functionResponse": {"name": "f", "response": LOOKS_LIKE_A_PICTURE}},
        {"functionResponse": {"name": "f", "response": {"output": LOOKS_LIKE_A_PICTURE}}},
        {"functionCall": {"name": "f", "args": LOOKS_LIKE_A_PICTURE}},
        {"type": "function_result", "result": LOOKS_LIKE_A_PICTURE},
        {"type": "function_call", "arguments": LOOKS_LIKE_A_PICTURE},
        {"inlineData": {"mimeType": "image/png", "data": "AAAA", "text": "x" * 10_000}},
    ],
)
def test_what_tools_say_is_text_even_where_it_looks_like_a_picture(part):
    assert facts({"contents": [{"parts": [part]}]}).input_bytes > 10_000


def test_a_picture_among_what_a_tool_gave_back_is_a_picture():
    part = {"inlineData": {"mimeType": "image/png", "data": "A" * 10_000}}
    given = {"functionResponse": {"name": "f", "response": {"ok": True}, "parts": [part]}}
    seen = facts({"contents": [{"parts": [given]}]})
    assert (seen.image_count, seen.unbounded) == (1, None)
    assert seen.input_bytes < 1000


def test_a_declared_tool_with_fields_named_as_a_mediums_are_is_bounded():
    fields = {"type": {"type": "string"}, "data": {"type": "string"}, "mimeType": {"type": "string"}, "uri": {}}
    tool = {"functionDeclarations": [{"name": "save", "parameters": {"type": "object", "properties": fields}}]}
    assert facts({"contents": [], "tools": [tool]}).unbounded is None


@pytest.mark.parametrize("name", ["videoMetadata", "video_metadata"])
def test_a_video_with_more_pictures_a_second_is_held_at_the_context_window(name):
    part = {"inlineData": {"mimeType": "video/mp4", "data": "AAAA"}, name: {"fps": 24}}
    assert facts({"contents": [{"parts": [part]}]}).unbounded == "files"
    assert facts({"contents": [{"parts": [{**part, name: {"startOffset": "1s"}}]}]}).unbounded is None


@pytest.mark.parametrize("name", ["systemInstruction", "system_instruction", "aFieldOfNextYear"])
def test_whatever_else_a_request_says_is_part_of_its_prompt(name):
    assert facts({"contents": [], name: {"parts": [{"text": "x" * 5000}]}}).input_bytes > 5000


@pytest.mark.parametrize("name", ["responseSchema", "response_schema", "responseJsonSchema", "response_json_schema"])
@pytest.mark.parametrize("settings", ["generationConfig", "generation_config"])
def test_the_schema_of_an_answer_is_part_of_its_prompt(settings, name):
    assert facts({"contents": [], settings: {name: {"description": "x" * 5000}}}).input_bytes > 5000


@pytest.mark.parametrize(
    "name", ["cachedContent", "cached_content", "previousInteractionId", "previous_interaction_id"]
)
def test_what_was_said_before_is_held_at_the_context_window(name):
    assert facts({"contents": [], name: "x/1"}).unbounded == "conversation"


@pytest.mark.parametrize("count", ["candidateCount", "candidate_count"])
@pytest.mark.parametrize("limit", ["maxOutputTokens", "max_output_tokens"])
@pytest.mark.parametrize("settings", ["generationConfig", "generation_config"])
@pytest.mark.parametrize("value", [8, "8", 8.0, 7.5])
def test_a_count_is_read_in_every_spelling(settings, limit, count, value):
    seen = facts({"contents": [], settings: {count: value, limit: value}})
    assert (seen.choices, seen.max_output_tokens) == (8, 8)


def test_of_two_limits_the_higher_bounds():
    body = {
        "generationConfig": {"maxOutputTokens": 5, "max_output_tokens": 6, "candidateCount": 2},
        "generation_config": {"maxOutputTokens": 700, "candidate_count": 4},
    }
    assert (facts(body).max_output_tokens, facts(body).choices) == (700, 4)


@pytest.mark.parametrize("value", [0, -1, None])
def test_no_limit_is_never_a_limit_of_nothing(value):
    assert facts({"contents": [], "generationConfig": {"maxOutputTokens": value}}).max_output_tokens is None


@pytest.mark.parametrize(
    ("settings", "most", "unclear"),
    [
        *(({"maxOutputTokens": said}, 50, False) for said in (50, 50.0, "50")),
        *(({"maxOutputTokens": said}, None, False) for said in (None, 0, -1)),
        *(({"maxOutputTokens": said}, None, True) for said in (-7, "many", {})),
        ({"maxOutputTokens": 0, "max_output_tokens": -1}, None, True),
        ({"maxOutputTokens": 0, "max_output_tokens": 50}, 50, False),
    ],
)
def test_no_cap_is_put_in_the_place_of_a_limit_that_is_no_count(settings, most, unclear):
    seen = facts({"contents": [], "generationConfig": settings})
    assert (seen.max_output_tokens, seen.unclear_limit) == (most, unclear)


@pytest.mark.parametrize("value", ["many", [], {}, float("inf"), float("nan")])
def test_a_count_that_cannot_be_read_has_no_bound(value):
    assert facts({"contents": [], "generationConfig": {"candidateCount": value}}).unbounded == "unreadable"


def test_a_song_is_held_as_songs():
    assert facts({"contents": [], "model": "lyria-3.5"}).pieces == {"songs": 1}


def test_limits_are_per_candidate():
    seen = facts(
        {"contents": [], "generationConfig": {"maxOutputTokens": 50, "candidateCount": 3}, "model": "models/g"}
    )
    assert (seen.model, seen.max_output_tokens, seen.choices) == ("g", 50, 3)


def test_a_cap_goes_where_the_limit_stands_and_changes_nothing_else():
    body = {"generationConfig": {"temperature": 1}}
    assert ROOM.output_cap(GENERATE, body, 9, provider="google") == (
        "generationConfig",
        {"temperature": 1, "maxOutputTokens": 9},
    )
    assert body == {"generationConfig": {"temperature": 1}}


# -- bodies


def read(body, endpoint="models.generate_content", **known):
    return ROOM.read(body, provider="google", endpoint=endpoint, request=RequestFacts(**known))


@pytest.mark.parametrize(
    "body", [None, "", "<html>", {}, [], {"usageMetadata": None}, {"usageMetadata": 3}, {"candidates": 5}]
)
def test_a_body_without_usage_is_unknown_never_zero(body):
    seen = read(body, model="gemini-2.5-flash")
    assert "usage_unknown" in seen.flags or not seen.billable
    assert not seen.usage


def test_a_video_that_another_program_asked_for_is_unknown():
    done = {"name": "models/veo/operations/1", "done": True, "response": {"videos": [{"gcsUri": "x"}]}}
    seen = read(done, "operations.get")
    assert ("usage_unknown" in seen.flags, seen.billable, seen.response_id) == (True, True, "models/veo/operations/1")


@pytest.mark.parametrize(
    "body",
    [
        {"name": "models/veo/operations/1"},
        {"name": "models/veo/operations/1", "done": True, "error": {"code": 3}},
        {"name": "models/veo/operations/1", "done": True, "response": {"raiMediaFilteredCount": 1}},
    ],
)
def test_a_video_that_was_not_made_is_free(body):
    assert not read(body, "operations.get", pieces={"seconds_video": 8}).billable


def test_filtered_videos_are_free():
    body = {"name": "operations/1", "done": True, "response": {"videos": [{"gcsUri": "x"}], "raiMediaFilteredCount": 1}}
    seen = read(body, "operations.get", pieces={"seconds_video_4k": 16}, choices=2)
    assert dict(seen.usage.quantities) == {"seconds_video_4k": 8}


def test_a_video_of_which_nothing_is_said_is_unknown():
    seen = read({"name": "operations/1", "done": True, "response": {}}, "operations.get", pieces={"seconds_video": 8})
    assert ("usage_unknown" in seen.flags, seen.billable) == (True, True)


@pytest.mark.parametrize("endpoint", ["file_search_stores.import_file", "voices.create", "/v1beta/models/m:newVerb"])
def test_what_an_undescribed_endpoint_was_given_is_no_prompt(endpoint):
    """It was estimated as so many tokens of text: a file's indexing by the length of the file's name."""
    seen = read({"name": "operations/1", "id": "v"}, endpoint, input_bytes=400)
    assert (seen.flags, bool(seen.usage)) == ({"usage_unknown"}, False)
    stated = {"usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 3, "totalTokenCount": 10}}
    assert read(stated, "/v1beta/models/m:newVerb", input_bytes=400).usage.input_tokens == 7


def test_lines_of_a_batch_that_failed_are_free():
    assert not read({"key": "1", "error": {"code": 3, "message": "no"}}, "batches.get").billable


def tuned(stats, *, state="JOB_STATE_SUCCEEDED"):
    tuning = {"name": "tuningJobs/1", "state": state, "baseModel": "gemini-2.5-flash"}
    return {**tuning, "tuningDataStats": {"supervisedTuningDataStats": stats}}


def test_a_tuning_job_is_billed_when_it_has_succeeded():
    seen = read(tuned({"totalBillableTokenCount": 1200}), "tunings.get")
    assert (dict(seen.usage.quantities), seen.response_id) == ({"trained_tokens": 1200}, "tuningJobs/1")
    assert not read(tuned({"totalBillableTokenCount": 1200}, state="JOB_STATE_RUNNING"), "tunings.get").billable


@pytest.mark.parametrize("stats", [{}, None, {"totalBillableTokenCount": -1}, {"totalBillableTokenCount": "many"}])
def test_a_tuning_job_that_succeeded_on_nobody_knows_what_is_unknown(stats):
    seen = read(tuned(stats), "tunings.get")
    assert ("usage_unknown" in seen.flags, seen.billable, seen.response_id) == (True, True, "tuningJobs/1")
    assert not seen.usage


#: Every place outside a usage object at which a count stands: endpoint, body with the count put in, what it is of.
COUNTS_ELSEWHERE = {
    "a tuning job": ("tunings.get", lambda count: tuned({"totalBillableTokenCount": count}), "trained_tokens"),
    "an embedding of a batch": (
        "batches.get",
        lambda count: {"key": "0", "response": {"embedding": {"values": [0.1]}, "tokenCount": count}},
        "input",
    ),
    "an embedding of Vertex AI": (
        "models.embed_content",
        lambda count: {"predictions": [{"embeddings": {"values": [0.1], "statistics": {"token_count": count}}}]},
        "input",
    ),
    "a cache": (
        "caches.create",
        lambda count: {
            "name": "cachedContents/1",
            "createTime": "2026-11-20T10:00:00Z",
            "expireTime": "2026-11-20T11:00:00Z",
            "usageMetadata": {"totalTokenCount": count},
        },
        "cache_storage",
    ),
}


@pytest.mark.parametrize("where", COUNTS_ELSEWHERE)
@pytest.mark.parametrize("dressed", ["900", 900.0, Decimal("9E+2")], ids=str)
def test_an_integer_in_another_dress_is_that_integer_wherever_it_stands(where, dressed):
    endpoint, body, meter = COUNTS_ELSEWHERE[where]
    seen = read(body(dressed), endpoint)
    assert (dict(seen.usage.quantities), seen.flags) == ({meter: 900}, {"nonstandard_count"})


@pytest.mark.parametrize("where", COUNTS_ELSEWHERE)
@pytest.mark.parametrize("wrong", ["many", -900, 900.5, True, [900]], ids=str)
def test_what_is_no_count_is_unknown_and_says_so_wherever_it_stands(where, wrong):
    endpoint, body, _ = COUNTS_ELSEWHERE[where]
    seen = read(body(wrong), endpoint)
    assert not seen.usage
    assert seen.flags >= {"malformed_count", "usage_unknown"}


@pytest.mark.parametrize("where", COUNTS_ELSEWHERE)
def test_a_count_of_zero_beside_what_was_made_of_it_is_unknown_wherever_it_stands(where):
    endpoint, body, _ = COUNTS_ELSEWHERE[where]
    seen = read(body(0), endpoint)
    assert (dict(seen.usage.quantities), seen.billable, "usage_unknown" in seen.flags) == ({}, True, True)


@pytest.mark.parametrize(
    ("usage", "quantities", "flags"),
    [
        ({"responseTokenCount": 30, "totalTokenCount": 930}, {"input": 900, "output": 30}, set()),
        ({"promptTokenCount": 900, "totalTokenCount": 930}, {"input": 900, "output": 30}, {"total_mismatch"}),
        (
            {"promptTokenCount": 900, "responseTokenCount": 30, "totalTokenCount": 3000},
            {"input": 900, "output": 30},
            {"total_mismatch"},
        ),
        (  # a Live session's total may leave thoughts out: then it denies nothing
            {"promptTokenCount": 900, "responseTokenCount": 30, "thoughtsTokenCount": 50, "totalTokenCount": 930},
            {"input": 900, "output": 80},
            set(),
        ),
    ],
)
def test_a_live_turn_without_thoughts_is_held_against_its_total(usage, quantities, flags):
    body = {"usageMetadata": usage, "serverContent": {"modelTurn": {"parts": [{"text": "The sea"}]}}}
    seen = read(body, "live.connect")
    assert (dict(seen.usage.quantities), seen.flags) == (quantities, flags)


@pytest.mark.parametrize("usage", [{"promptTokenCount": 0}, {"promptTokenCount": 0, "totalTokenCount": 0}])
def test_an_embedding_of_no_tokens_is_estimated_by_its_request(usage):
    body = {"embeddings": [{"values": [0.1]}], "usageMetadata": usage}
    request = RequestFacts(model="gemini-embedding-001", input_bytes=40)
    seen = ROOM.read(body, provider="google", endpoint="models.embed_content", request=request)
    assert (dict(seen.usage.quantities), seen.flags) == ({"input": 10}, {"estimated"})


def test_a_cache_that_ends_before_it_begins_is_unknown():
    body = COUNTS_ELSEWHERE["a cache"][1](900)
    seen = read({**body, "expireTime": "2026-11-20T09:00:00Z"}, "caches.create")
    assert (seen.usage.quantities, "usage_unknown" in seen.flags) == ({}, True)


def test_a_stream_cut_short_keeps_the_dress_of_what_it_was_told():
    stream = ROOM.stream(provider="google", endpoint="models.generate_content", request=RequestFacts())
    stream.feed({"usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": "900"}})
    seen = stream.observation()
    assert (dict(seen.usage.quantities), seen.flags) == (
        {"input": 9, "output": 900},
        {"estimated", "nonstandard_count"},
    )


@pytest.mark.parametrize(("stated", "output"), [(2, 100), (300, 300)])
def test_a_usage_before_words_foresees_none_of_them(stated, output):
    stream = ROOM.stream(provider="google", endpoint="models.generate_content", request=RequestFacts())
    stream.feed({"usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": stated}})
    stream.feed({"candidates": [{"content": {"parts": [{"text": "x" * 400}]}, "finishReason": "STOP"}]})
    seen = stream.observation()
    assert (dict(seen.usage.quantities), seen.flags) == ({"input": 9, "output": output}, {"estimated"})
    assert stream.body() is None


def test_a_stream_without_usage_is_estimated_from_what_came():
    stream = ROOM.stream(provider="google", endpoint="models.generate_content", request=RequestFacts(input_bytes=400))
    stream.feed({"candidates": [{"content": {"parts": [{"text": "x" * 400}]}}], "modelVersion": "gemini-2.5-flash"})
    seen = stream.observation()
    assert not stream.terminal
    assert (dict(seen.usage.quantities), "estimated" in seen.flags) == ({"input": 100, "output": 100}, True)


@pytest.mark.parametrize("said", [5, "abc", {"a": 1}, [None, 3, " "], None])
def test_odd_searches_do_not_lose_the_tokens(said):
    candidate = {"groundingMetadata": {"webSearchQueries": said, "groundingChunks": said}}
    body = {"candidates": [candidate], "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 4}}
    assert dict(read(body, model="gemini-3.5-flash").usage.quantities) == {"input": 9, "output": 4}


def test_a_stream_of_two_candidates_ends_when_both_have():
    stream = ROOM.stream(provider="google", endpoint="models.generate_content", request=RequestFacts(choices=2))
    said = {"promptTokenCount": 10, "candidatesTokenCount": 2, "totalTokenCount": 12}
    for index in (0, 1):
        part = {"index": index, "content": {"parts": [{"text": "x" * 4}]}}
        stream.feed({"candidates": [part], "usageMetadata": said})
    stream.feed({"candidates": [{"index": 0, "finishReason": "STOP"}], "usageMetadata": said})
    assert not stream.terminal
    assert "estimated" in stream.observation().flags
    stream.feed({"candidates": [{"index": 1, "finishReason": "STOP"}], "usageMetadata": said})
    assert stream.terminal
    assert "estimated" not in stream.observation().flags


def test_odd_chunks_do_not_lose_a_stream():
    stream = ROOM.stream(provider="google", endpoint="models.generate_content", request=RequestFacts())
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 4}
    for event in (None, [], {"candidates": 3}, {"candidates": [{"finishReason": "STOP"}], "usageMetadata": usage}):
        stream.feed(event)
    assert dict(stream.observation().usage.quantities) == {"input": 9, "output": 4}


def test_a_streamed_song_is_one_song_however_many_pieces_it_comes_in():
    stream = ROOM.stream(provider="google", endpoint="models.generate_content", request=RequestFacts(model="lyria-3.5"))
    sound = {"inlineData": {"mimeType": "audio/mpeg", "data": "aGk="}}
    stream.feed({"candidates": [{"content": {"parts": [{"text": "la"}, sound]}}], "modelVersion": "lyria-3.5"})
    last = {"candidates": [{"content": {"parts": [sound]}, "finishReason": "STOP"}]}
    stream.feed(
        {**last, "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 500, "totalTokenCount": 510}}
    )
    (group,) = stream.observation().consumptions
    assert dict(group.usage.quantities) == {"songs": 1}


def test_a_streamed_interaction_with_a_song_is_one_song():
    stream = ROOM.stream(provider="google", endpoint="interactions.create", request=RequestFacts(model="lyria-3.5"))
    stream.feed({"event_type": "step.delta", "delta": {"type": "audio", "data": "aGk="}})
    usage = {"total_input_tokens": 10, "total_output_tokens": 500, "total_tokens": 510}
    whole = {"id": "i", "model": "lyria-3.5", "status": "completed", "usage": usage}
    stream.feed({"event_type": "interaction.completed", "interaction": whole})
    (group,) = stream.observation().consumptions
    assert dict(group.usage.quantities) == {"songs": 1}


def test_a_song_that_was_not_made_is_never_free_in_silence():
    body = {"modelVersion": "lyria-3.5", "usageMetadata": {"promptTokenCount": 10, "totalTokenCount": 10}}
    assert dict(read(body, "models.generate_content").consumptions[0].usage.quantities) == {"input": 10}


COUNTED = {"promptTokenCount": 1000, "candidatesTokenCount": 100, "totalTokenCount": 1100}


@pytest.mark.parametrize(
    ("details", "flags"),
    [
        ([{"modality": "SMELL", "tokenCount": 400}], {"unknown_token_class"}),
        ([{"modality": "MODALITY_UNSPECIFIED", "tokenCount": 400}], {"unknown_token_class"}),
        ([{"tokenCount": 400}], {"unknown_token_class"}),
        ([{"modality": "SMELL"}], set()),
        ([{"modality": "TEXT", "tokenCount": 400}], set()),
        ([{}], set()),
        ({"modality": "AUDIO", "tokenCount": 400}, {"malformed_count", "estimated"}),
        ([{"modality": "TEXT", "tokenCount": -4}], {"malformed_count", "estimated"}),
        ([["AUDIO", 400]], {"malformed_count", "estimated"}),
    ],
)
def test_tokens_of_what_no_rule_knows_are_billed_as_text_and_say_so(details, flags):
    seen = read({"modelVersion": "gemini-2.5-pro", "usageMetadata": {**COUNTED, "promptTokensDetails": details}})
    assert (dict(seen.usage.quantities), seen.flags) == ({"input": 1000, "output": 100}, flags)


def test_a_total_with_tokens_in_it_that_no_part_has_says_so():
    seen = read({"modelVersion": "gemini-2.5-pro", "usageMetadata": {**COUNTED, "totalTokenCount": 1500}})
    assert (dict(seen.usage.quantities), seen.flags) == ({"input": 1000, "output": 100}, {"total_mismatch"})


@pytest.mark.parametrize(
    ("told", "found", "flags"),
    [
        ([{"type": "google_search", "count": 2}, {"type": "google_search", "count": 1}], {"web_searches": 3}, set()),
        ([{"type": "retrieval", "count": 2}], {}, set()),
        ([{"type": "google_flights", "count": 2}], {"server_tool_calls": 2}, {"unknown_server_tool"}),
        ([{"type": "google_search", "count": "2"}], {"web_searches": 2}, {"nonstandard_count"}),
        ([{"type": "google_search", "count": True}], {}, {"malformed_count"}),
        ({"google_search": 2}, {}, {"malformed_count"}),
    ],
)
def test_what_an_interactions_tools_were_asked(told, found, flags):
    usage = {"total_input_tokens": 10, "total_output_tokens": 5, "total_tokens": 15, "grounding_tool_count": told}
    body = {"id": "i", "model": "gemini-3.5-flash", "status": "completed", "usage": usage}
    seen = read(body, "interactions.create")
    assert (dict(seen.usage.quantities), seen.flags) == ({"input": 10, "output": 5, **found}, flags)


_CALL = {"type": "function_call", "id": "c", "name": "find_weather", "arguments": {"city": "Zürich", "days": 3}}
_WORDS = "The sum of twelve and thirty is forty-two, as far as anybody knows."
#: Steps of an interaction, and the pieces in which a stream tells them.
_TOLD: dict[str, tuple[list[Any], list[Any]]] = {
    "words": (
        [{"type": "model_output", "content": [{"type": "text", "text": _WORDS}]}],
        [{"delta": {"type": "text", "text": word}} for word in (_WORDS[:9], _WORDS[9:])],
    ),
    "a call": (
        [_CALL],
        [
            {"event_type": "step.start", "step": {**_CALL, "arguments": {}}},
            {"delta": {"type": "arguments_delta", "arguments": json.dumps(_CALL["arguments"], ensure_ascii=False)}},
        ],
    ),
    "thoughts, and what was given": (
        [
            {"type": "user_input", "content": [{"type": "text", "text": "x" * 900}]},
            {"type": "thought", "summary": [{"type": "text", "text": _WORDS}], "signature": "c2ln" * 99},
            {"type": "google_search_result", "call_id": "g", "result": [{"title": "x" * 900}]},
        ],
        [
            {"delta": {"type": "thought_summary", "content": {"type": "text", "text": _WORDS}}},
            {"delta": {"type": "thought_signature", "signature": "c2ln" * 99}},
            {"delta": {"type": "google_search_result", "result": [{"title": "x" * 900}]}},
        ],
    ),
    "a picture": (
        [{"type": "model_output", "content": [{"type": "image", "data": "aGk=" * 99}]}],
        [{"delta": {"type": "image", "data": "aGk=" * 99}}],
    ),
}


@pytest.mark.parametrize("told", list(_TOLD))
def test_an_interaction_that_counts_nothing_comes_to_the_same_whole_and_in_a_stream(told):
    steps, pieces = _TOLD[told]
    request = RequestFacts(model="gemini-3.5-flash", input_bytes=400)
    whole = {"id": "i", "model": "gemini-3.5-flash", "status": "completed"}
    read_whole = read({**whole, "steps": steps}, "interactions.create", model="gemini-3.5-flash", input_bytes=400)
    stream = ROOM.stream(provider="google", endpoint="interactions.create", request=request)
    for piece in pieces:
        stream.feed({"event_type": "step.delta", "index": 0, **piece})
    stream.feed({"event_type": "interaction.completed", "interaction": whole})
    streamed = stream.observation()
    assert streamed.usage == read_whole.usage
    assert 0 < read_whole.usage.output_tokens < 40
    assert "estimated" in streamed.flags & read_whole.flags


def test_an_interaction_heard_at_its_end_alone_that_counts_nothing_is_unknown():
    stream = ROOM.stream(provider="google", endpoint="interactions.get", request=RequestFacts())
    stream.feed({"interaction": {"id": "i", "model": "gemini-3.5-flash"}})
    nothing = {"total_input_tokens": 0, "total_output_tokens": 0, "total_tokens": 0}
    stream.feed({"event_type": "interaction.completed", "usage": nothing})
    seen = stream.observation()
    assert (dict(seen.usage.quantities), seen.raw_usage) == ({}, nothing)
    assert "usage_unknown" in seen.flags


SEARCHED = {
    "candidates": [
        {
            "content": {"parts": [{"text": "Found."}]},
            "finishReason": "STOP",
            "groundingMetadata": {"webSearchQueries": ["a", "b"], "groundingChunks": [{"web": {"uri": "u"}}]},
        }
    ],
    "usageMetadata": {"promptTokenCount": 1000, "candidatesTokenCount": 10, "totalTokenCount": 1010},
}
SEARCHED_TOKENS = {"input": 1000, "output": 10}


@pytest.mark.parametrize("model", ["gemini-3.5-flash", "gemini-2.5-flash"])
@pytest.mark.parametrize("own", [[], [{"googleSearch": {}}]], ids=["alone", "beside Google's"])
@pytest.mark.parametrize(
    "tool", ["enterpriseWebSearch", "enterprise_web_search", "exaAiSearch", "exa_ai_search", "parallelAiSearch"]
)
def test_a_search_that_is_not_googles_own_is_not_taken_at_its_price(tool, own, model):
    asked = facts({"model": model, "tools": [*own, {tool: {}}], "contents": [{"parts": [{"text": "x"}]}]})
    seen = ROOM.read(SEARCHED, provider="google", endpoint="models.generate_content", request=asked)
    assert dict(seen.usage.quantities) == SEARCHED_TOKENS | {"server_tool_calls": 2}
    assert seen.flags == {"unknown_server_tool"}
    stream = ROOM.stream(provider="google", endpoint="models.generate_content", request=asked)
    stream.feed(SEARCHED)
    assert stream.observation().usage == seen.usage


@pytest.mark.parametrize("tool", [{"googleSearch": {}}, {"google_search": {}}, {"enterpriseWebSearch": None}])
def test_googles_own_search_has_its_price(tool):
    asked = facts({"model": "gemini-3.5-flash", "tools": [tool], "contents": [{"parts": [{"text": "x"}]}]})
    seen = ROOM.read(SEARCHED, provider="google", endpoint="models.generate_content", request=asked)
    assert dict(seen.usage.quantities) == SEARCHED_TOKENS | {"web_searches": 2}
    assert not seen.flags
