"""What a usage object says against itself, and answers whose content is no plain text: no zero is taken on trust."""

from __future__ import annotations

import pytest

import tokenmeter
from tokenmeter.call import RequestFacts
from tokenmeter.providers import dialect_for

WORDS = "x" * 400  # 100 tokens by estimate
REQUEST = RequestFacts(model="m", input_bytes=4000)  # 1,000 tokens by estimate
CHAT = {"object": "chat.completion", "model": "m", "choices": [{"message": {"content": WORDS}}]}
EMBEDDINGS = {"object": "list", "model": "m", "data": [{"embedding": [0.1]}]}
GOOGLE = {"candidates": [{"content": {"parts": [{"text": WORDS}]}, "finishReason": "STOP"}]}
NOTHING = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def read(body, endpoint="chat.completions", provider="somebody"):
    return dialect_for(provider, endpoint).read(body, provider=provider, endpoint=endpoint, request=REQUEST)


def totals(prompt, answer, total, **more):
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": total, **more}


@pytest.mark.parametrize(
    ("usage", "quantities", "flags"),
    [
        (totals(0, 50, 150), {"input": 100, "output": 50}, {"total_mismatch"}),
        (totals("0", 50, 150), {"input": 100, "output": 50}, {"total_mismatch", "nonstandard_count"}),
        (
            totals(0, 50, 150, prompt_tokens_details={"cached_tokens": 20}),
            {"input": 80, "cache_read": 20, "output": 50},
            {"total_mismatch"},
        ),
        (totals(100, 0, 150), {"input": 100, "output": 50}, {"total_mismatch"}),
        (totals(0, 0, 1650), {"input": 1500, "output": 150}, {"estimated", "total_mismatch"}),
        (totals(100, 0, 100), {"input": 100, "output": 100}, {"estimated"}),
        (totals(100, 50, 150, input_tokens=0, output_tokens=0), {"input": 100, "output": 50}, set()),
        (totals(0, 0, 150, input_tokens=100, output_tokens=50), {"input": 100, "output": 50}, set()),
        (
            totals(100, 50, 150, prompt_tokens_details={"cached_tokens": 0}, prompt_cache_hit_tokens=40),
            {"input": 60, "cache_read": 40, "output": 50},
            set(),
        ),
    ],
)
def test_a_zero_that_the_rest_denies_is_a_field_nobody_filled(usage, quantities, flags):
    found = read({**CHAT, "usage": usage})
    assert dict(found.usage.quantities) == quantities
    assert found.flags == flags


@pytest.mark.parametrize("prompt", [{}, {"prompt_tokens": None}, {"prompt_tokens": 0}, {"prompt_tokens": -1}])
@pytest.mark.parametrize("total", [{}, {"total_tokens": 0}, {"total_tokens": 50}, {"total_tokens": "many"}])
def test_what_a_cache_served_of_a_prompt_that_nobody_said_stands(prompt, total):
    counts = {"completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 400}, **prompt, **total}
    found = read({**CHAT, "usage": counts})
    assert dict(found.usage.quantities) == {"input": 600, "cache_read": 400, "output": 50}
    assert "estimated" in found.flags
    google = {"candidatesTokenCount": 50, "cachedContentTokenCount": 400}
    for wire in (google, {**google, "promptTokenCount": 0}):
        found = read({**GOOGLE, "usageMetadata": wire}, "models.generate_content", "google")
        assert dict(found.usage.quantities) == {"input": 600, "cache_read": 400, "output": 50}


#: Endpoint, provider, body, the usage's name, and what its prompt, answer and total are called.
WHOLES = [
    ("chat.completions", "somebody", CHAT, "usage", "prompt_tokens", "completion_tokens", "total_tokens"),
    (
        *("models.generate_content", "google", GOOGLE, "usageMetadata"),
        *("promptTokenCount", "candidatesTokenCount", "totalTokenCount"),
    ),
]


@pytest.mark.parametrize("case", WHOLES, ids=lambda case: case[0])
@pytest.mark.parametrize("unsaid", [{}, {0: None}, {0: 0}, {1: 0}, {0: None, 1: 0}, {0: 0, 1: 0}, {0: -1, 1: 0}])
def test_what_is_estimated_of_both_sides_comes_to_the_total_that_is_stated(case, unsaid):
    endpoint, provider, body, name, *sides, total = case
    counts = {sides[side]: size for side, size in unsaid.items()}
    found = read({**body, name: {**counts, total: 2000}}, endpoint, provider)
    assert sum(found.usage.quantities.values()) == 2000
    assert "estimated" in found.flags
    assert 5 <= found.usage["input"] / found.usage["output"] < 15


@pytest.mark.parametrize("prompt", [{}, {"promptTokenCount": 0}, {"promptTokenCount": -1}])
def test_googles_thoughts_and_tools_do_not_say_what_the_prompt_was(prompt):
    def seen(**counts):
        whole = {**GOOGLE, "usageMetadata": {**prompt, **counts}}
        return read(whole, "models.generate_content", "google")

    found = seen(thoughtsTokenCount=700, toolUsePromptTokenCount=300, totalTokenCount=2000)
    assert (dict(found.usage.quantities), "estimated" in found.flags) == ({"input": 1300, "output": 700}, True)
    found = seen(candidatesTokenCount=50, toolUsePromptTokenCount=300)
    assert (dict(found.usage.quantities), "estimated" in found.flags) == ({"input": 1300, "output": 50}, True)
    found = seen(thoughtsTokenCount=40, toolUsePromptTokenCount=300, totalTokenCount="many")
    assert (dict(found.usage.quantities), "estimated" in found.flags) == ({"input": 1300, "output": 140}, True)


def test_what_is_estimated_of_both_sides_holds_the_parts_that_are_stated():
    parts = {"prompt_tokens_details": {"cached_tokens": 1200}, "completion_tokens_details": {"reasoning_tokens": 700}}
    found = read({**CHAT, "usage": {"total_tokens": 2000, **parts}})
    assert dict(found.usage.quantities) == {"input": 100, "cache_read": 1200, "output": 700}


@pytest.mark.parametrize("answer", [{}, {"completion_tokens": 0}, {"completion_tokens": "0"}])
def test_an_answer_of_which_only_the_thoughts_are_counted_is_no_zero(answer):
    usage = {"prompt_tokens": 100, "completion_tokens_details": {"reasoning_tokens": 50}, **answer}
    found = read({**CHAT, "usage": usage})
    assert (dict(found.usage.quantities), "estimated" in found.flags) == ({"input": 100, "output": 100}, True)
    thought = {**usage, "completion_tokens_details": {"reasoning_tokens": 500}}
    assert read({**CHAT, "usage": thought}).usage["output"] == 500


def test_nothing_on_both_sides_of_a_total_is_unknown():
    """Without the request at hand nothing can stand in for it."""
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 150}
    rating = tokenmeter.price(zeros, provider="openai", endpoint="chat.completions", model="gpt-5")
    assert (rating.list_cost, rating.cost_source) == (None, "unpriced")
    converse = {"usage": {"inputTokens": 0, "outputTokens": 0, "totalTokens": 150}}
    assert "usage_unknown" in read(converse, "/model/m/converse", "aws").flags


@pytest.mark.parametrize(
    ("usage", "size", "flags"),
    [
        ({"prompt_tokens": 0, "total_tokens": 100}, 100, set()),
        ({"prompt_tokens": 7, "total_tokens": 100}, 7, {"total_mismatch"}),
        ({"prompt_tokens": 100, "total_tokens": "1e3"}, 100, {"total_mismatch", "nonstandard_count"}),
        ({"prompt_tokens": -1, "total_tokens": 100}, 100, {"malformed_count"}),
        ({"prompt_tokens": 100, "total_tokens": 0}, 100, {"total_mismatch"}),
        ({"prompt_tokens": 100, "completion_tokens": 0, "total_tokens": 100}, 100, set()),
    ],
)
def test_embeddings_have_no_output_whatever_their_total_says(usage, size, flags):
    found = read({**EMBEDDINGS, "usage": usage}, "embeddings")
    assert dict(found.usage.quantities) == {"input": size}
    assert found.flags == flags


@pytest.mark.parametrize(
    ("usage", "quantities", "flags"),
    [
        ({"promptTokenCount": 100, "totalTokenCount": 160}, {"input": 100, "output": 60}, {"total_mismatch"}),
        ({"candidatesTokenCount": 60, "totalTokenCount": 160}, {"input": 100, "output": 60}, set()),
        (
            {"promptTokenCount": 0, "candidatesTokenCount": 60, "totalTokenCount": 160},
            {"input": 100, "output": 60},
            {"total_mismatch"},
        ),
        (
            {"promptTokenCount": 100, "thoughtsTokenCount": 60, "totalTokenCount": 160},
            {"input": 100, "output": 60},
            set(),
        ),
        (
            {"promptTokenCount": 100, "toolUsePromptTokenCount": 30, "totalTokenCount": 190},
            {"input": 130, "output": 60},
            {"total_mismatch"},
        ),
    ],
)
def test_a_side_that_google_leaves_out_follows_from_its_total(usage, quantities, flags):
    found = read({**GOOGLE, "usageMetadata": usage}, "models.generate_content", "google")
    assert dict(found.usage.quantities) == quantities
    assert found.flags == flags


THOUGHTS = {"promptTokenCount": 100, "thoughtsTokenCount": 40}


@pytest.mark.parametrize(
    ("usage", "output", "flags"),
    [
        ({**THOUGHTS, "totalTokenCount": 200}, 100, {"total_mismatch"}),
        ({**THOUGHTS, "candidatesTokenCount": 0, "totalTokenCount": 200}, 100, {"total_mismatch"}),
        ({**THOUGHTS, "totalTokenCount": 140}, 40, set()),
        (THOUGHTS, 140, {"estimated"}),
        ({**THOUGHTS, "candidatesTokenCount": None}, 140, {"estimated"}),
        ({**THOUGHTS, "candidatesTokenCount": -3}, 140, {"estimated", "malformed_count"}),
    ],
    ids=["total", "zero and total", "total of the thoughts", "neither", "null", "negative"],
)
def test_googles_words_are_no_zero_beside_counted_thoughts(usage, output, flags):
    for parts in ([{"text": WORDS}], [{"text": WORDS * 3, "thought": True}, {"text": WORDS}]):
        whole = {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}], "usageMetadata": usage}
        found = read(whole, "models.generate_content", "google")
        assert (found.usage["output"], found.usage.reasoning_output_tokens) == (output, 40)
        assert found.flags == flags
        reader = dialect_for("google", "models.generate_content").stream(
            provider="google", endpoint="models.generate_content", request=REQUEST
        )
        for part in parts:
            reader.feed({"candidates": [{"content": {"parts": [part]}}]})
        reader.feed({"candidates": [{"content": {"parts": []}, "finishReason": "STOP"}], "usageMetadata": usage})
        assert (reader.observation().usage, reader.observation().flags) == (found.usage, flags)


def test_googles_thoughts_without_words_are_all_there_is():
    body = {"candidates": [{"content": {"parts": []}, "finishReason": "MAX_TOKENS"}], "usageMetadata": THOUGHTS}
    found = read(body, "models.generate_content", "google")
    assert (dict(found.usage.quantities), found.flags) == ({"input": 100, "output": 40}, set())


@pytest.mark.parametrize("usage", [{"candidatesTokenCount": 60}, {"thoughtsTokenCount": 60, "candidatesTokenCount": 0}])
def test_googles_answer_stands_where_nobody_says_the_prompt(usage):
    stated = 60 if usage["candidatesTokenCount"] else 160
    found = read({**GOOGLE, "usageMetadata": usage}, "models.generate_content", "google")
    assert dict(found.usage.quantities) == {"input": 1000, "output": stated}
    assert "estimated" in found.flags


@pytest.mark.parametrize(
    ("usage", "quantities", "flags"),
    [
        ({"inputTokens": 100, "totalTokens": 160}, {"input": 100, "output": 60}, set()),
        ({"outputTokens": 60, "totalTokens": 160}, {"input": 100, "output": 60}, set()),
        ({"inputTokens": 0, "outputTokens": 60, "totalTokens": 160}, {"input": 100, "output": 60}, {"total_mismatch"}),
        *(
            ({"inputTokens": 100, "outputTokens": 60, "totalTokens": total}, {"input": 100, "output": 60}, {doubt})
            for total, doubt in ((-1, "total_mismatch"), (170, "total_mismatch"), ("160", "nonstandard_count"))
        ),
        *(
            (
                {"inputTokens": 100, "outputTokens": 60, "cacheReadInputTokens": 40, "totalTokens": total},
                {"input": 100, "cache_read": 40, "output": 60},
                set(),
            )
            for total in (160, 200)
        ),
    ],
)
def test_a_side_that_converse_leaves_out_follows_from_its_total(usage, quantities, flags):
    body = {"output": {"message": {"content": [{"text": WORDS}]}}, "usage": usage}
    found = read(body, "/model/m/converse", "aws")
    assert dict(found.usage.quantities) == quantities
    assert found.flags == flags


@pytest.mark.parametrize(
    "item",
    [
        {"type": "message", "content": [{"type": "text", "text": WORDS}]},
        {"type": "message", "content": [{"type": "audio", "transcript": WORDS}]},
        {"type": "function_call", "name": "f", "arguments": WORDS[1:]},
    ],
    ids=["text", "audio", "a call"],
)
def test_an_answer_in_a_session_is_estimated_by_all_that_it_says(item):
    done = {
        "status": "completed",
        "output": [item],
        "usage": {"input_tokens": 70, "output_tokens": 0, "total_tokens": 70},
    }
    found = read({"type": "response.done", "response": done}, "realtime")
    assert dict(found.usage.quantities) == {"input": 70, "output": 100}
    assert found.flags == {"estimated"}


#: Messages that hold the 400 bytes of `WORDS` in other shapes than a text.
SHAPES = {
    "parts": {"content": [{"type": "text", "text": WORDS}]},
    "thinking": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": WORDS}]}]},
    "reasoning": {"content": "", "reasoning_details": [{"type": "reasoning.text", "text": WORDS}]},
    "reasoning twice": {"content": None, "reasoning": WORDS, "reasoning_details": [{"text": WORDS}]},
    "sound": {"content": None, "audio": {"id": "a", "transcript": WORDS, "data": "aGk="}},
    "refusal": {"content": None, "refusal": WORDS},
    "a call": {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": WORDS[1:]}}]},
    "a call of one's own": {"content": None, "tool_calls": [{"custom": {"name": "f", "input": WORDS[1:]}}]},
}


@pytest.mark.parametrize("message", SHAPES.values(), ids=SHAPES)
def test_zeros_beside_content_of_any_shape_are_no_usage(message):
    found = read({**CHAT, "choices": [{"message": message, "finish_reason": "stop"}], "usage": NOTHING})
    assert dict(found.usage.quantities) == {"input": 1000, "output": 100}
    assert found.flags == {"estimated"}


@pytest.mark.parametrize("message", SHAPES.values(), ids=SHAPES)
def test_a_stream_of_any_shape_is_estimated_by_what_came(message):
    reader = dialect_for("somebody", "chat.completions").stream(
        provider="somebody", endpoint="chat.completions", request=REQUEST
    )
    reader.feed({"id": "c", "model": "m", "choices": [{"delta": {"role": "assistant", **message}}]})
    reader.feed({"id": "c", "model": "m", "choices": [{"delta": {}, "finish_reason": "stop"}]})
    found = reader.observation()
    assert dict(found.usage.quantities) == {"input": 1000, "output": 100}
    assert found.flags == {"estimated"}


@pytest.mark.parametrize(
    "message",
    [{"content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}, {"content": "", "images": [{"url": "u"}]}],
)
def test_a_picture_without_words_is_content(message):
    found = read({**CHAT, "choices": [{"message": message}], "usage": NOTHING})
    assert "estimated" in found.flags
    assert found.usage["input"] == 1000


@pytest.mark.parametrize("kind", ["computer_call", "shell_call", "web_search_call", "reasoning"])
def test_zeros_beside_an_item_without_words_are_no_usage(kind):
    body = {"object": "response", "id": "r", "model": "m", "status": "completed", "output": [{"type": kind}]}
    found = read({**body, "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}}, "responses")
    assert "estimated" in found.flags
    assert found.usage["input"] == 1000


def test_a_zero_in_another_dress_does_not_undo_a_count_of_a_stream():
    reader = dialect_for("somebody", "chat.completions").stream(
        provider="somebody", endpoint="chat.completions", request=REQUEST
    )
    reader.feed({"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}], "usage": totals(120, 8, 128)})
    reader.feed({"choices": [], "usage": totals("0", "0.0", "0")})
    found = reader.observation()
    assert dict(found.usage.quantities) == {"input": 120, "output": 8}
    assert not found.flags


def test_content_nested_without_end_breaks_nothing():
    content = WORDS
    for _ in range(5_000):
        content = [content]
    found = read({**CHAT, "choices": [{"message": {"content": content}}], "usage": NOTHING})
    assert dict(found.usage.quantities) == {"input": 1000, "output": 100}


def drawn(**usage):
    return {"created": 1, "data": [{"b64_json": "aGk="}], "usage": usage}


@pytest.mark.parametrize(
    ("endpoint", "body", "quantities", "flags"),
    [
        ("images.generate", drawn(input_tokens=10, output_tokens=0, total_tokens=10), {"images": 1}, set()),
        (
            "images.generate",
            drawn(input_tokens=0, output_tokens=90),
            {"input": 1000, "output_image": 90},
            {"estimated"},
        ),
        ("images.generate", drawn(output_tokens=90), {"input": 1000, "output_image": 90}, {"estimated"}),
        (
            "audio.transcriptions",
            {"text": WORDS, "usage": {"input_tokens": 0, "output_tokens": 9, "total_tokens": 9}},
            {},
            {"usage_unknown"},
        ),
        (
            "realtime",
            {
                "type": "conversation.item.input_audio_transcription.completed",
                "transcript": WORDS,
                "usage": {"type": "tokens", "input_tokens": 0, "output_tokens": 9, "total_tokens": 9},
            },
            {},
            {"usage_unknown"},
        ),
        ("/v1/rerank", {"data": [{"index": 0}], "usage": {"total_tokens": 0}}, {}, {"usage_unknown"}),
        ("/v1/rerank", {"results": [{"index": 0}], "usage": {"total_tokens": 26}}, {"input": 26}, set()),
    ],
    ids=["picture", "its prompt", "its prompt left out", "heard", "heard in a session", "ranked", "ranked and counted"],
)
def test_a_side_that_was_at_work_is_no_zero_on_any_endpoint(endpoint, body, quantities, flags):
    found = read(body, endpoint)
    assert dict(found.usage.quantities) == quantities
    assert found.flags == flags


@pytest.mark.parametrize(
    "said", [{"output_tokens": 20}, {"input_tokens": None, "output_tokens": 20, "total_tokens": None}]
)
def test_what_was_stated_of_speech_stands_beside_the_estimate_of_its_text(said):
    request = RequestFacts(model="gpt-4o-mini-tts", pieces={"characters": 300}, input_bytes=304)
    found = dialect_for("openai", "audio.speech").read(
        {"type": "speech.audio.done", "usage": said}, provider="openai", endpoint="audio.speech", request=request
    )
    assert dict(found.usage.quantities) == {"input": 76, "output_audio": 20}
    assert found.flags == {"estimated"}


def test_googles_embeddings_have_no_output_whatever_they_call_their_tokens():
    body = {"embeddings": [{"values": [0.1]}], "usageMetadata": {"totalTokenCount": 5}}
    found = read(body, "models.embed_content", "google")
    assert (dict(found.usage.quantities), found.flags) == ({"input": 5}, set())


def test_googles_cache_may_stand_beside_the_prompt_as_anyone_elses():
    usage = {"promptTokenCount": 100, "cachedContentTokenCount": 130, "candidatesTokenCount": 50}
    found = read({**GOOGLE, "usageMetadata": {**usage, "totalTokenCount": 280}}, "models.generate_content", "google")
    assert dict(found.usage.quantities) == {"input": 100, "cache_read": 130, "output": 50}
    assert found.flags == {"cache_beside_input"}


def test_a_message_may_have_the_counts_of_whoever_wrote_it():
    content = [{"type": "text", "text": WORDS}]
    usage = totals(100, 50, 150, prompt_tokens_details={"cached_tokens": 40})
    found = read({"type": "message", "model": "m", "content": content, "usage": usage}, "messages", "anthropic")
    assert dict(found.usage.quantities) == {"input": 60, "cache_read": 40, "output": 50}
    assert found.flags == set()


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ({}, 0),
        (None, 0),
        ({"text_tokens": 14}, 14),
        ({"text_tokens": 14, "audio_tokens": 0}, 14),
        ({"audio_tokens": 0}, 0),
    ],
)
def test_what_a_transcription_listened_to_is_sound_though_nobody_breaks_it_down(details, words):
    """As text it would cost two fifths of its price."""
    usage = {"type": "tokens", "input_tokens": 114, "input_token_details": details, "output_tokens": 101}
    found = read({"text": WORDS, "usage": {**usage, "total_tokens": 215}}, "audio.transcriptions", "openai")
    assert found.usage["input"] == words
    assert (found.usage["input_audio"], found.usage["output"]) == (114 - words, 101)
    assert "estimated" in found.flags


@pytest.mark.parametrize(
    ("details", "words"),
    [(None, 0), ({}, 0), ({"text_tokens": 14}, 14), ({"text_tokens": 14, "image_tokens": None}, 14)],
)
def test_the_picture_that_is_edited_is_a_picture_though_nobody_breaks_it_down(details, words):
    usage = {"input_tokens": 214, "input_tokens_details": details, "output_tokens": 272, "total_tokens": 486}
    body = {"created": 1, "data": [{"b64_json": "aGk="}], "usage": usage}
    found = read(body, "images.edit", "openai")
    assert found.usage["input"] == words
    assert (found.usage["input_image"], found.usage["output_image"]) == (214 - words, 272)
    assert "estimated" in found.flags


def test_what_a_picture_is_made_from_is_words():
    usage = {"input_tokens": 14, "output_tokens": 272, "total_tokens": 286}
    found = read({"created": 1, "data": [{"b64_json": "aGk="}], "usage": usage}, "images.generate", "openai")
    assert (found.usage["input"], found.usage["input_image"]) == (14, 0)


@pytest.mark.parametrize(
    ("lifetimes", "classes", "flags"),
    [
        ([("5m", 30)], {"cache_write_5m": 30}, set()),
        ([("5m", 10), ("1h", 20)], {"cache_write_5m": 10, "cache_write_1h": 20}, set()),
        ([("5m", 10), ("1h", 15)], {"cache_write_5m": 15, "cache_write_1h": 15}, {"cache_write_mismatch"}),
        ([("1h", 40)], {"cache_write_1h": 40}, {"cache_write_mismatch"}),
        ([], {"cache_write_5m": 30}, set()),
    ],
)
def test_lifetimes_of_converse_that_do_not_make_up_what_was_written_say_so(lifetimes, classes, flags):
    details = [{"ttl": ttl, "inputTokens": size} for ttl, size in lifetimes]
    usage = {"inputTokens": 100, "outputTokens": 20, "cacheWriteInputTokens": 30, "cacheDetails": details}
    found = read({"usage": usage}, "/model/m/converse", "aws")
    assert (dict(found.usage.quantities), found.flags) == ({"input": 100, "output": 20, **classes}, flags)


@pytest.mark.parametrize(
    ("stated", "classes", "flags"),
    [
        ({"prompt_cache_hit_tokens": 40, "prompt_cache_miss_tokens": 60}, {"input": 60, "cache_read": 40}, set()),
        ({"prompt_cache_miss_tokens": 60}, {"input": 60, "cache_read": 40}, set()),
        ({"prompt_cache_hit_tokens": 0, "prompt_cache_miss_tokens": 100}, {"input": 100}, set()),
        ({"prompt_cache_hit_tokens": 0, "prompt_cache_miss_tokens": 0}, {"input": 100}, set()),
        (
            {"prompt_cache_hit_tokens": 40, "prompt_cache_miss_tokens": 50},
            {"input": 60, "cache_read": 40},
            {"cached_split_mismatch"},
        ),
        (
            {
                "prompt_tokens": None,
                "total_tokens": None,
                "prompt_cache_hit_tokens": 40,
                "prompt_cache_miss_tokens": 60,
            },
            {"input": 60, "cache_read": 40},
            set(),
        ),
    ],
)
def test_what_no_cache_served_says_what_one_did(stated, classes, flags):
    body = {**CHAT, "usage": {**totals(100, 50, 150), **stated}}
    found = read(body, provider="deepseek")
    assert (dict(found.usage.quantities), found.flags) == ({**classes, "output": 50}, flags)


@pytest.mark.parametrize(("words", "odd"), [(300, False), (100, True), (500, True), (None, False)])
def test_a_prompt_that_its_modalities_do_not_make_up_says_so(words, odd):
    flags = {"input_split_mismatch"} if odd else set()
    parts = {"audio_tokens": 700, "text_tokens": words}
    chat = read({**CHAT, "usage": totals(1000, 50, 1050, prompt_tokens_details=parts)})
    details = [{"modality": "AUDIO", "tokenCount": 700}]
    details += [{"modality": "TEXT", "tokenCount": words}] if words else []
    counts = {"promptTokenCount": 1000, "candidatesTokenCount": 50, "totalTokenCount": 1050}
    gemini = read(
        {**GOOGLE, "modelVersion": "gemini-2.5-flash", "usageMetadata": {**counts, "promptTokensDetails": details}},
        "models.generate_content",
        "google",
    )
    for found in (chat, gemini):
        assert dict(found.usage.quantities) == {"input": 300, "input_audio": 700, "output": 50}
        assert found.flags == flags


@pytest.mark.parametrize("begins", [{}, {"prompt_tokens": 100, "completion_tokens": 0}])
def test_a_stream_of_messages_whose_host_counts_in_a_format_of_its_own_is_read_like_the_whole(begins):
    usage = totals(100, 50, 150)
    whole = {"type": "message", "model": "claude-opus-4-6", "content": [{"type": "text", "text": WORDS}]}
    reader = dialect_for("anthropic", "messages").stream(provider="anthropic", endpoint="messages", request=REQUEST)
    for event in (
        {"type": "message_start", "message": {**whole, "content": [], "usage": begins}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": WORDS}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
        {"type": "message_stop"},
    ):
        reader.feed(event)
    for found in (reader.observation(), read({**whole, "usage": usage}, "messages", "anthropic")):
        assert (dict(found.usage.quantities), found.flags) == ({"input": 100, "output": 50}, set())


def test_searches_beside_two_kinds_of_search_tools_say_that_the_price_is_assumed():
    search = {"type": "web_search_call", "status": "completed", "action": {"type": "search"}}
    body = {"object": "response", "model": "gpt-4.1", "status": "completed", "output": [search]}
    usage = {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}
    both = [{"type": "web_search_preview"}, {"type": "web_search"}]
    for tools, flags in ((both, {"search_tool_assumed"}), (both[:1], set()), (both[1:], set())):
        assert read({**body, "usage": usage, "tools": tools}, "responses", "openai").flags == flags


@pytest.mark.parametrize(
    "block",
    [
        {"type": "redacted_thinking", "data": WORDS},
        {"type": "thinking", "thinking": WORDS, "signature": "x"},
        {"type": "text", "text": WORDS},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"words": WORDS}},
    ],
)
def test_a_block_that_begins_whole_is_content_beside_a_zero(block):
    usage = {"input_tokens": 1000, "output_tokens": 0}
    message = {"type": "message", "model": "claude-opus-4-6", "content": [block], "stop_reason": "end_turn"}
    reader = dialect_for("anthropic", "messages").stream(provider="anthropic", endpoint="messages", request=REQUEST)
    for event in (
        {"type": "message_start", "message": {**message, "content": [], "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 0}},
        {"type": "message_stop"},
    ):
        reader.feed(event)
    whole = read({**message, "usage": usage}, "messages", "anthropic")
    assert whole.usage["output"] >= 100
    assert (reader.observation().usage, reader.observation().flags) == (whole.usage, whole.flags) != ({}, set())
    assert "estimated" in whole.flags
