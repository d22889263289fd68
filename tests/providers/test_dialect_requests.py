"""What is known of a request before it leaves: bounds that hold, and reasons where there are none."""

import enum
import json
from collections import deque
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, create_model

from tokenmeter.providers.anthropic.dialect import AnthropicDialect
from tokenmeter.providers.openai.dialect import OpenAIDialect

OPENAI, ANTHROPIC = OpenAIDialect(), AnthropicDialect()
PICTURE = "data:image/png;base64," + "A" * 100_000


def openai(body, path="/chat/completions"):
    return OPENAI.request_facts(OPENAI.endpoint("POST", path), body)


def anthropic(body):
    return ANTHROPIC.request_facts(ANTHROPIC.endpoint("POST", "/v1/messages"), body)


def test_chat_facts_are_read():
    facts = openai(
        {
            "model": "gpt-5.4",
            "messages": [{"role": "user", "content": "hello"}],
            "max_completion_tokens": 50,
            "n": 3,
            "service_tier": "flex",
            "stream": True,
        }
    )
    assert (facts.model, facts.max_output_tokens, facts.choices) == ("gpt-5.4", 50, 3)
    assert (facts.service_tier, facts.streamed, facts.unbounded, facts.image_count) == ("flex", True, None, 0)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/chat/completions", {"max_tokens", "max_completion_tokens"}),
        ("/completions", {"max_tokens"}),
        ("/responses", {"max_output_tokens"}),
    ],
)
def test_an_output_limit_counts_where_it_is_obeyed(path, names):
    """Hosts leave out what they do not know: another endpoint's name for it limits nothing."""
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        assert openai({"model": "m", name: 7}, path).max_output_tokens == (7 if name in names else None)


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({"max_completion_tokens": 1, "max_tokens": 900}, 900),
        ({"max_completion_tokens": 900, "max_tokens": 1}, 900),
        ({"max_completion_tokens": 5, "max_tokens": None}, 5),
        ({"max_completion_tokens": 5, "max_tokens": "900"}, 900),
        ({"max_completion_tokens": 5, "max_tokens": "many"}, None),
        ({"max_tokens": 0}, None),
        ({"max_tokens": 7.0}, 7),
        ({"max_tokens": True}, None),
    ],
)
def test_of_a_chats_two_limits_the_larger_counts(limits, most):
    body = {"model": "m", "messages": [], **limits}
    assert openai(body).max_output_tokens == most
    assert OPENAI.plain_requests["chat.completions"](body).max_output_tokens == most


def test_a_prompt_that_is_only_scored_has_no_answer():
    assert openai({"model": "m", "prompt": "x", "max_tokens": 0, "echo": True}, "/completions").max_output_tokens == 0


def test_a_limit_that_is_no_number_is_none():
    assert openai({"model": "m", "max_output_tokens": "inf"}, "/responses").max_output_tokens is None


def test_a_negative_limit_is_none():
    """LM Studio and llama.cpp take -1 as "without an end"."""
    assert openai({"model": "m", "messages": [], "max_tokens": -1}).max_output_tokens is None
    assert anthropic({"model": "m", "messages": [], "max_tokens": -1}).max_output_tokens is None
    for room, endpoint in ((OPENAI, "chat.completions"), (ANTHROPIC, "messages")):
        plain = room.plain_requests[endpoint]({"model": "m", "messages": [], "max_tokens": -1})
        assert plain.max_output_tokens is None


#: What a field says -> the limit that it is, and whether no cap may be put there.
LIMITS = [
    *(
        (50, 50, False),
        (50.0, 50, False),
        ("50", 50, False),
        (None, None, False),
        (-1, None, False),
        ("inf", None, False),
    ),
    *((50.5, None, True), ("fifty", None, True), ("9" * 5_000, None, True), (True, None, True), (-7, None, True)),
    *(({"most": 50}, None, True), (float("nan"), None, True)),
]


@pytest.mark.parametrize(("said", "most", "unclear"), LIMITS)
def test_a_limit_is_read_as_hosts_read_it_and_what_is_none_is_let_stand(said, most, unclear):
    found = [
        openai({"model": "m", "messages": [], "max_completion_tokens": said}),
        openai({"model": "m", "messages": [], "max_tokens": said}),
        openai({"model": "m", "input": "x", "max_output_tokens": said}, "/responses"),
        openai({"model": "m", "prompt": "x", "max_tokens": said}, "/completions"),
        OPENAI.request_facts(
            OPENAI.endpoints_at("POST", "/conversations")["mistral"],
            {"model": "m", "inputs": "x", "completion_args": {"max_tokens": said}},
        ),
        OPENAI.plain_requests["chat.completions"]({"model": "m", "messages": [], "max_tokens": said}),
        OPENAI.plain_requests["responses"]({"model": "m", "input": "x", "max_output_tokens": said}),
        anthropic({"model": "m", "messages": [], "max_tokens": said}),
        ANTHROPIC.plain_requests["messages"]({"model": "m", "messages": [], "max_tokens": said}),
    ]
    assert {(facts.max_output_tokens, facts.unclear_limit) for facts in found} == {(most, unclear)}
    plain = OPENAI.plain_requests["chat.completions"]({"model": "m", "messages": [], "max_tokens": said})
    assert plain.facts(region=None, cost_unit=None).unclear_limit is unclear


def test_a_cap_goes_into_the_field_that_says_there_is_none():
    chat = OPENAI.endpoint("POST", "/chat/completions")
    for provider, field in (("openai", "max_completion_tokens"), ("groq", "max_tokens")):
        assert OPENAI.output_cap(chat, {}, 9, provider=provider) == (field, 9)
        for name in ("max_tokens", "max_completion_tokens"):
            assert OPENAI.output_cap(chat, {name: -1}, 9, provider=provider) == (name, 9)
    assert openai({"model": "m", "messages": [], "max_tokens": -1, "max_completion_tokens": -1}).unclear_limit


class Many(enum.IntEnum):
    FIVE = 5


@pytest.mark.parametrize(
    ("body", "choices"),
    [
        ({"n": 2, "best_of": 5}, 5),
        ({"prompt": ["a", "b", "c"], "n": 2}, 6),
        ({"prompt": [1, 2, 3]}, 1),
        ({"n": None}, 1),
        ({"n": 5.0}, 5),
        ({"n": "5"}, 5),
        ({"n": Many.FIVE}, 5),
        ({"prompt": ("a", "b")}, 2),
        ({"prompt": {"a": 1, "b": 2}.keys()}, 2),
        ({"prompt": [[1], [2]]}, 2),
        ({"prompt": range(9)}, 1),
    ],
)
def test_every_answer_that_is_generated_counts(body, choices):
    assert openai({"model": "m", **body}, "/completions").choices == choices


#: Text that JSON writes as it is.
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), max_size=60)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(texts.filter(lambda key: key != "type"), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.lists(texts, max_size=5), json_values)
def test_input_bytes_bound_the_prompt_whatever_is_in_it(contents, schema):
    """No fewer than the UTF-8 bytes of the messages and tools as JSON writes them."""
    messages = [{"role": "user", "content": content} for content in contents]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"x": schema}}}]
    facts = openai({"model": "m", "messages": messages, "tools": tools})
    sent = [json.dumps(part, ensure_ascii=False, separators=(",", ":")) for part in (messages, tools)]
    assert facts.input_bytes >= sum(len(part.encode()) for part in sent)


def test_keys_that_are_no_texts_become_texts():
    """As in JSON. A tool's result often has numbers for keys."""
    schema = {"type": "object", 1: "x" * 100, None: {2.5: True}}
    assert anthropic({"model": "m", "tools": [{"name": "f", "input_schema": schema}]}).input_bytes > 100
    assert openai({"model": "m", "tools": [{"type": "function", "function": schema}]}).input_bytes > 100


def test_a_prompt_of_token_ids_is_bounded_by_their_number():
    assert 1000 <= openai({"model": "m", "input": [50256] * 1000}, "/embeddings").input_bytes <= 4100
    assert openai({"model": "m", "input": [[1, 2], [3]]}, "/embeddings").input_bytes >= 3


@pytest.mark.parametrize(
    ("part", "images"),
    [
        ({"type": "image_url", "image_url": {"url": PICTURE}}, 1),
        ({"type": "input_image", "image_url": PICTURE}, 1),
        ({"type": "text", "text": "hi"}, 0),
    ],
)
def test_pictures_are_counted_not_read(part, images):
    facts = openai({"model": "m", "messages": [{"role": "user", "content": [part]}]})
    assert facts.image_count == images
    assert facts.input_bytes < 200


def test_what_only_looks_like_a_picture_is_read():
    call = {"type": "tool_use", "id": "t", "name": "draw", "input": {"type": "image", "description": "x" * 1000}}
    assert anthropic({"model": "m", "messages": [{"role": "assistant", "content": [call]}]}).input_bytes > 1000


def test_pictures_inside_tool_results_are_counted():
    source = {"type": "base64", "media_type": "image/png", "data": "A" * 50_000}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": source}]}
    facts = anthropic({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": [result]}]})
    assert facts.image_count == 1
    assert facts.input_bytes < 300


def test_everything_that_is_rendered_into_the_prompt_is_measured():
    base = anthropic({"model": "m", "max_tokens": 1, "messages": []}).input_bytes
    for extra in ({"system": "x" * 100}, {"tools": [{"name": "x" * 100}]}, {"output_config": {"format": "x" * 100}}):
        assert anthropic({"model": "m", "max_tokens": 1, "messages": [], **extra}).input_bytes >= base + 100
    assert openai({"model": "m", "messages": [], "documents": ["x" * 100]}).input_bytes >= 100
    for extra in ({"instructions": "x" * 100}, {"text": {"format": {"name": "x" * 100}}}, {"input": "x" * 100}):
        assert openai({"model": "m", **extra}, "/responses").input_bytes >= 100


@pytest.mark.needs("openai.types.responses:ResponseOutputMessage")
def test_sdk_objects_in_the_input_are_measured():
    """A conversation is often continued with the very objects the last answer was made of."""
    from openai.types.responses import ResponseOutputMessage

    message = ResponseOutputMessage.model_validate(
        {
            "id": "m",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "x" * 500, "annotations": []}],
        }
    )
    assert openai({"model": "m", "input": [message]}, "/responses").input_bytes > 500


def test_iterators_are_left_alone():
    """Whatever can be read only once belongs to the SDK."""
    once = iter([{"role": "user", "content": "hi"}])
    assert openai({"model": "m", "messages": once}).unbounded == "files"  # its size is not known before it is sent
    assert next(once)["content"] == "hi"
    assert anthropic({"model": "m", "messages": (each for each in [])}).unbounded == "files"


INLINE = {"type": "input_file", "file_data": "data:application/pdf;base64,JV"}
LINKED = {"type": "document_url", "document_url": "https://example.com"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"tools": [{"type": "web_search"}]}, "server_tools"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "server_tools"),
        ({"previous_response_id": "resp_1"}, "conversation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "stored_prompt"),
        ({"background": True}, "background"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file_1"}]}]}, "files"),
        (
            {"input": [{"role": "user", "content": [INLINE]}]},
            "files",
        ),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "files"),
        (
            {"input": [{"role": "user", "content": [LINKED]}]},
            "files",
        ),
        ({"context_management": [{"type": "compaction"}]}, "compaction"),
        ({"tools": [{"type": "function", "name": "f"}]}, None),
        ({"tools": [{"type": "custom", "name": "f"}]}, None),
        ({"tools": [{"type": "computer_use_preview"}]}, None),
        ({"tools": [{"type": "local_shell"}]}, None),
        ({"tools": [{"type": "apply_patch"}]}, None),
        ({"tools": [{"type": "shell", "environment": {"type": "local"}}]}, None),
        ({"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]}, "server_tools"),
        ({"tools": [{"type": "tool_search", "execution": "client"}]}, None),
        ({"tools": [{"type": "tool_search"}]}, "server_tools"),
        ({"tools": [{"type": "programmatic_tool_calling"}]}, "server_tools"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]}]}, None),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "web_search"}]}]}, "server_tools"),
        ({"input": [{"type": "additional_tools", "role": "developer", "tools": [{"type": "mcp"}]}]}, "server_tools"),
        ({"tools": [{"type": "x_search"}]}, "server_tools"),  # xAI
        ({"tools": [{"type": "a_tool_of_tomorrow"}]}, "server_tools"),
        ({"multi_agent": {"enabled": True}}, "server_tools"),
        ({"input": [{"id": "msg_1"}]}, "conversation"),
        ({"input": [{"id": "msg_1", "type": None}]}, "conversation"),
        ({"input": [{"id": "msg_1", "role": "user", "content": "hi"}]}, None),
        ({"metadata": {"image": "https://example.com/x.pdf"}}, None),
    ],
)
def test_openai_says_why_there_is_no_bound(body, reason):
    assert openai({"model": "m", **body}, "/responses").unbounded == reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"web_search_options": {}}, "server_tools"),
        ({"search_parameters": {"mode": "on"}}, "server_tools"),  # xAI
        ({"search_parameters": {"mode": "off"}}, None),
        ({"data_sources": [{"type": "azure_search"}]}, "server_tools"),  # Azure
        ({"enable_search": True}, "server_tools"),  # DashScope
        ({"enable_search": False}, None),
        ({"plugins": [{"id": "web"}]}, "server_tools"),  # OpenRouter
        ({"models": ["a", "b"]}, "fallbacks"),
        ({"preset": "writer"}, "stored_prompt"),
        ({"model": "openai/gpt-5:online"}, "server_tools"),
        ({"model": "sonar-deep-research"}, "server_tools"),
        ({"model": "gpt-4o-search-preview"}, "server_tools"),  # searches whether asked or not
        ({"model": "groq/compound-mini"}, "server_tools"),
        ({"tools": [{"type": "builtin_function", "function": {"name": "$web_search"}}]}, "server_tools"),  # Moonshot
        ({"tools": [{"type": "browser_search"}]}, "server_tools"),  # Groq
        ({"tools": [{"google_search": {}}]}, "server_tools"),  # Gemini
        ({"tools": [{"function": {"name": "f"}}]}, None),
        ({"extra": {"google": {"cached_content": "cachedContents/1"}}}, "files"),
    ],
)
def test_a_chat_says_why_there_is_no_bound(body, reason):
    """What hosts that speak the format do beside an answer of the model; the plain reader leaves it to the general."""
    sent = {"model": "m", "messages": [], "max_tokens": 1, **body}
    assert openai(sent).unbounded == reason
    if reason:
        assert OPENAI.plain_requests["chat.completions"](sent) is None


LINK = "https://example.com/x"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video", "video": [LINK, LINK]},
        {"type": "video", "video": LINK},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
        {"type": "input_audio", "input_audio": LINK},
        {"type": "input_audio", "input_audio": {"data": LINK, "format": "mp3"}},
        {"type": "audio", "audio": LINK},
        {"type": "audio_url", "audio_url": {"url": LINK}},
        {"type": "file", "file": {"url": LINK}},
        {"type": "file", "file": {"file_uri": "gs://bucket/x.pdf"}},
        {"type": "media", "media": {"uri": "s3://bucket/x"}},
        {"type": "document", "document": LINK},
    ],
)
def test_content_that_lies_elsewhere_is_of_any_size(part):
    facts = openai({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": [part]}]})
    assert facts.unbounded == "files"


def test_an_earlier_spoken_answer_is_of_any_size():
    facts = openai({"model": "m", "max_tokens": 1, "messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]})
    assert facts.unbounded == "files"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "see https://example.com/x.pdf"}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}]},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"arguments": LINK}}]},
    ],
)
def test_a_text_that_names_an_address_is_a_text(message):
    assert openai({"model": "m", "max_tokens": 1, "messages": [message]}).unbounded is None


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "what is this?", "images": ["AAAA", "BBBB"]},  # Ollama
        {"role": "user", "content": [{"image_url": {"url": LINK}}, {"image_url": {"url": LINK}}]},
    ],
)
def test_pictures_that_do_not_say_what_they_are_are_counted(message):
    assert openai({"model": "m", "messages": [message]}).image_count == 2


@pytest.mark.parametrize("name", ["guided_json", "chat_template", "query", "documents", "a_field_of_tomorrow"])
def test_a_field_that_is_not_known_may_be_part_of_the_prompt(name):
    assert openai({"model": "m", "messages": [], name: {"text": "x" * 1000}}).input_bytes > 1000
    assert OPENAI.plain_requests["chat.completions"]({"model": "m", "messages": [], name: "x"}) is None


DOCUMENT = {"type": "document", "source": {"type": "url", "url": "https://example.com"}}
#: No length of a file bounds its pages, each of which is a picture, too.
SCANNED = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}


SHOUTED = {"type": "base64", "media_type": "APPLICATION/PDF", "data": "JVBERi0="}
#: A tool that the conversation itself adds.
SEARCH = {"type": "web_search_20260318", "name": "web_search"}
ADDED = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": SEARCH}}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"tools": [{"type": "web_search_20260318", "name": "web_search"}]}, "server_tools"),
        ({"tools": [{"type": "code_execution_20260521", "name": "code_execution"}]}, "server_tools"),
        ({"mcp_servers": [{"type": "url", "url": "https://example.com", "name": "x"}]}, "server_tools"),
        ({"tools": [{"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-5"}]}, "advisor"),
        ({"fallbacks": "default"}, "fallbacks"),
        ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, "compaction"),
        ({"messages": [{"role": "user", "content": [DOCUMENT]}]}, "files"),
        ({"messages": [{"role": "user", "content": [SCANNED]}]}, "files"),
        ({"tools": [{"type": "custom", "name": "f", "input_schema": {"type": "object"}}]}, None),
        ({"tools": [{"name": "f", "input_schema": {"type": "object"}}]}, None),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, None),
        ({"tools": [{"type": "memory_20250818", "name": "memory"}]}, None),
        ({"tools": [{"type": "a_tool_of_tomorrow_20270101", "name": "t"}]}, "server_tools"),
        ({"messages": [{"role": "user", "content": [ADDED]}]}, "server_tools"),
        ({"messages": [{"role": "user", "content": [{**SCANNED, "source": SHOUTED}]}]}, "files"),
    ],
)
def test_anthropic_says_why_there_is_no_bound(body, reason):
    assert anthropic({"model": "m", "max_tokens": 1, "messages": [], **body}).unbounded == reason


def _object(values):
    """A pydantic model with these values."""
    made: type[BaseModel] = create_model("Made", **{name: (type(value), ...) for name, value in values.items()})
    return made(**values)


IN_WHATEVER = [tuple, deque, lambda one: dict(enumerate(one)).values()]
IN_WHATEVER += [lambda one: list(map(MappingProxyType, one)), lambda one: list(map(_object, one))]


@pytest.mark.parametrize("put", IN_WHATEVER)
def test_what_has_no_bound_has_none_in_whatever_it_is_listed(put):
    search = {"type": "web_search_20260318", "name": "web_search"}
    assert "server_tools" in anthropic({"model": "m", "tools": put([search])}).unbounded
    edits = {"edits": put([{"type": "compact_20260112"}])}
    assert anthropic({"model": "m", "context_management": edits}).unbounded == "compaction"
    assert "server_tools" in openai({"model": "m", "tools": put([search])}, "/responses").unbounded
    compaction = put([{"type": "compaction"}])
    assert openai({"model": "m", "context_management": compaction}, "/responses").unbounded == "compaction"


def test_tools_that_can_be_read_only_once_have_no_bound():
    once = iter([{"type": "web_search_20260318", "name": "web_search"}])
    assert "unreadable" in anthropic({"model": "m", "tools": once}).unbounded
    assert next(once)["name"] == "web_search"


def test_models_of_hosted_tools_are_noted():
    tools = [{"type": "image_generation", "model": "gpt-image-2"}]
    assert openai({"model": "m", "tools": tools}, "/responses").tool_models == {"image_generation": "gpt-image-2"}
    advisor = [{"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-5"}]
    assert anthropic({"model": "m", "max_tokens": 1, "tools": advisor}).tool_models == {"advisor": "claude-opus-5"}
    session = {
        "type": "realtime",
        "model": "gpt-realtime",
        "audio": {"input": {"transcription": {"model": "whisper-1"}}},
    }
    facts = openai({"session": session}, "/realtime/client_secrets")
    assert (facts.model, facts.tool_models) == ("gpt-realtime", {"transcription": "whisper-1"})


def test_speech_counts_characters():
    facts = openai({"model": "tts-1", "input": "Grüße", "voice": "alloy"}, "/audio/speech")
    assert facts.pieces["characters"] == 5


def test_background_that_may_wait_is_priced_by_its_window():
    body = {"model": "m", "background": True, "background_options": {"completion_window": "8h"}}
    assert openai(body, "/responses").processing == "background_8h"


def test_standard_speed_is_no_speed():
    assert anthropic({"model": "m", "speed": "standard"}).speed is None
    assert anthropic({"model": "m", "speed": "fast"}).speed == "fast"


@pytest.mark.parametrize("body", [None, {}])
def test_no_body_is_no_facts(body):
    assert openai(body).model is None
    assert anthropic(body).input_bytes == 0


#: What a tool may take, by the names of what is a file or a picture in a message.
NAMES = ("file_id", "file_ids", "file_url", "image_url", "images", "document_url", "url", "audio", "cached_content")
SCHEMA = {"type": "object", "properties": {name: {"type": "string", "examples": [LINK]} for name in NAMES}}
GIVEN = {**dict.fromkeys(NAMES, LINK), "type": "file", "images": ["a"], "audio": {"id": "x"}}
FUNCTION = {"name": "f", "parameters": SCHEMA}


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [{"type": "function", "function": FUNCTION}]},
        {"tools": [{"type": "function", **FUNCTION}]},
        {"functions": [FUNCTION]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}},
        {"format": SCHEMA},  # Ollama
        {"guided_json": {"$defs": {"image_url": SCHEMA}, **SCHEMA}},  # vLLM
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": GIVEN}}]}]},
    ],
)
@pytest.mark.parametrize("path", ["/chat/completions", "/responses"])
def test_a_tool_that_takes_a_file_sends_none(body, path):
    """Its prompt is as long as it is written, and not as the model's context window."""
    facts = openai({"model": "m", "max_tokens": 1, **body}, path)
    assert (facts.unbounded, facts.image_count) == (None, 0)
    assert facts.input_bytes > sum(map(len, NAMES))


CITED = {"type": "file_citation", "file_id": "file_1", "index": 3, "filename": "x.pdf"}


@pytest.mark.parametrize(
    "item",
    [
        {"role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": [CITED]}]},
        {"type": "web_search_call", "action": {"type": "search", "sources": [{"type": "url", "url": LINK}]}},
        {"type": "file_search_call", "queries": [LINK], "results": [{"file_id": "file_1", "text": "x"}]},
    ],
)
def test_an_earlier_answer_that_names_its_sources_is_as_long_as_it_is_written(item):
    assert openai({"model": "m", "input": [item]}, "/responses").unbounded is None


@pytest.mark.parametrize(
    "part",
    [
        {"type": "tool_use", "id": "t", "name": "f", "input": GIVEN},
        {"type": "text", "text": "x", "citations": [{"type": "char_location", "file_id": "file_1"}]},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": LINK}, "context": LINK},
        {"type": "document", "source": {"type": "content", "content": "x"}, "title": LINK},
        {"type": "search_result", "source": LINK, "content": [{"type": "text", "text": "x"}]},
    ],
)
def test_a_part_of_text_is_as_long_as_it_is_written(part):
    tool = {"name": "f", "input_schema": SCHEMA}
    facts = anthropic({"model": "m", "messages": [{"role": "user", "content": [part]}], "tools": [tool]})
    assert (facts.unbounded, facts.image_count) == (None, 0)


def test_a_picture_in_a_document_is_counted():
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    document = {"type": "document", "source": {"type": "content", "content": [picture]}}
    assert anthropic({"model": "m", "messages": [{"role": "user", "content": [document]}]}).image_count == 1


def test_arguments_that_can_be_read_only_once_are_of_any_size():
    call = {"type": "function_call", "arguments": iter(["x"])}
    assert openai({"model": "m", "input": [call]}, "/responses").unbounded == "files"


def test_what_an_answers_limit_leaves_out_is_added_to_it():
    """A prediction's rejected tokens are billed as output; DashScope's thinking has a limit of its own."""
    sent = {"model": "m", "messages": [], "max_tokens": 50}
    predicted = {"type": "content", "content": "word " * 200}
    assert openai({**sent, "prediction": predicted}).max_output_tokens >= 50 + 1000
    assert openai({**sent, "thinking_budget": 400}).max_output_tokens == 450
    assert openai({**sent, "enable_thinking": True, "thinking_budget": 400}).unbounded is None


def test_thinking_that_no_limit_holds_has_no_bound():
    sent = {"model": "m", "messages": [], "max_tokens": 50}
    assert openai({**sent, "enable_thinking": True}).unbounded == "thinking"
    assert openai({**sent, "enable_thinking": False}).unbounded is None
