"""For any valid usage: classes are disjoint, never negative, and add up to the wire's totals."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from tokenmeter.call import RequestFacts
from tokenmeter.dimensions import CACHE_READ_METERS, CACHE_WRITE_METERS
from tokenmeter.providers import dialect_for, observe

size = st.integers(0, 2_000_000)
prompts = st.integers(1, 2_000_000)  # nothing is answered to no prompt


def split(draw, total, parts):
    """`total` cut into `parts` pieces of zero or more."""
    cuts = sorted(draw(st.integers(0, total)) for _ in range(parts - 1))
    return [after - before for before, after in zip([0, *cuts], [*cuts, total], strict=True)]


@st.composite
def chat_usage(draw):
    prompt, answer = draw(prompts), draw(size)
    fresh, cached, written, audio, image = split(draw, prompt, 5)
    words, spoken, reasoning = split(draw, answer, 3)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": draw(
            st.just(
                {
                    "cached_tokens": cached,
                    "cache_write_tokens": written,
                    "audio_tokens": audio,
                    "image_tokens": image,
                    "text_tokens": fresh + cached + written,
                }
            )
        ),
        "completion_tokens_details": {"audio_tokens": spoken, "reasoning_tokens": reasoning, "text_tokens": words},
    }


@st.composite
def response_usage(draw):
    prompt, answer = draw(prompts), draw(size)
    _, cached, written = split(draw, prompt, 3)
    half_hour, half_day, _ = split(draw, written, 3)
    details = {"cached_tokens": cached, "cache_write_tokens": written}
    if draw(st.booleans()):
        details["cache_write_tokens_details"] = {"ttl_30m_tokens": half_hour, "ttl_12h_tokens": half_day}
    return {
        "input_tokens": prompt,
        "output_tokens": answer,
        "total_tokens": prompt + answer,
        "input_tokens_details": details,
        "output_tokens_details": {"reasoning_tokens": draw(st.integers(0, answer))},
    }


@st.composite
def realtime_usage(draw):
    prompt, answer = draw(prompts), draw(size)
    words, audio, image = split(draw, prompt, 3)
    hits = {name: draw(st.integers(0, most)) for name, most in (("text", words), ("audio", audio), ("image", image))}
    details = {
        "text_tokens": words,
        "audio_tokens": audio,
        "image_tokens": image,
        "cached_tokens": sum(hits.values()),
    }
    if draw(st.booleans()):
        details["cached_tokens_details"] = {f"{name}_tokens": hit for name, hit in hits.items()}
    said, spoken = split(draw, answer, 2)
    return {
        "input_tokens": prompt,
        "output_tokens": answer,
        "total_tokens": prompt + answer,
        "input_token_details": details,
        "output_token_details": {"text_tokens": said, "audio_tokens": spoken},
    }


@st.composite
def message_usage(draw):
    short, hour, unsplit = draw(size), draw(size), draw(size)
    usage = {
        "input_tokens": draw(size),
        "output_tokens": draw(size),
        "cache_read_input_tokens": draw(st.none() | size),
        "cache_creation_input_tokens": short + hour + unsplit,
    }
    if draw(st.booleans()):
        usage["cache_creation"] = {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": hour}
    return usage


def disjoint_and_whole(seen, prompt, answer):
    usage = seen.usage
    assert all(quantity > 0 for quantity in usage.quantities.values())
    assert usage.input_tokens == prompt
    assert usage.output_tokens == answer
    assert usage.reasoning_output_tokens <= answer
    assert seen.consumptions[0].prompt_tokens == prompt


@given(chat_usage())
def test_chat_classes_add_up(usage):
    seen = observe(usage, provider="openai", endpoint="chat.completions", model="gpt-5.4")
    disjoint_and_whole(seen, usage["prompt_tokens"], usage["completion_tokens"])
    details = usage["prompt_tokens_details"]
    assert seen.usage.cache_write_input_tokens == details["cache_write_tokens"]
    assert seen.usage.cache_read_input_tokens == details["cached_tokens"]
    assert "cached_exceeds_input" not in seen.flags


@given(response_usage())
def test_response_classes_add_up(usage):
    seen = observe(usage, provider="openai", endpoint="responses", model="gpt-5.4")
    disjoint_and_whole(seen, usage["input_tokens"], usage["output_tokens"])
    assert sum(seen.usage[meter] for meter in CACHE_WRITE_METERS) == usage["input_tokens_details"]["cache_write_tokens"]
    lifetimes = usage["input_tokens_details"].get("cache_write_tokens_details")
    odd = lifetimes is not None and sum(lifetimes.values()) != usage["input_tokens_details"]["cache_write_tokens"]
    assert seen.flags == ({"cache_write_mismatch"} if odd else set())


@given(realtime_usage())
def test_realtime_classes_add_up_in_each_modality(usage):
    seen = observe(usage, provider="openai", endpoint="realtime", model="gpt-realtime")
    disjoint_and_whole(seen, usage["input_tokens"], usage["output_tokens"])
    details = usage["input_token_details"]
    assert sum(seen.usage[meter] for meter in CACHE_READ_METERS) == details["cached_tokens"]
    for name in ("audio", "image"):
        assert seen.usage[f"input_{name}"] + seen.usage[f"cache_read_{name}"] == details[f"{name}_tokens"]
    assert seen.flags <= {"cached_modality_assumed"}


@given(message_usage())
def test_message_classes_add_up(usage):
    seen = observe(usage, provider="anthropic", endpoint="messages", model="claude-opus-5")
    written = usage["cache_creation_input_tokens"]
    prompt = usage["input_tokens"] + (usage["cache_read_input_tokens"] or 0) + written
    disjoint_and_whole(seen, prompt, usage["output_tokens"])
    assert seen.usage["input"] == usage["input_tokens"]
    assert seen.usage["cache_write_5m"] + seen.usage["cache_write_1h"] == written
    lifetimes = usage.get("cache_creation")
    assert ("cache_write_mismatch" in seen.flags) == (lifetimes is not None and sum(lifetimes.values()) != written)


@given(st.lists(message_usage(), min_size=1, max_size=4), st.lists(message_usage(), max_size=3))
def test_iterations_add_up_to_the_top_level_and_what_stands_beside_it(own, compactions):
    usage = {name: sum(entry[name] or 0 for entry in own) for name in own[0] if name != "cache_creation"}
    splits = [entry.get("cache_creation", {}) for entry in own]
    short, hour = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
    usage["cache_creation"] = {
        hour: sum(part.get(hour, 0) for part in splits),
        short: usage["cache_creation_input_tokens"] - sum(part.get(hour, 0) for part in splits),
    }
    usage["iterations"] = [
        *({"type": "compaction", **entry} for entry in compactions),
        *({"type": "message", **entry} for entry in own),
    ]
    seen = observe(usage, provider="anthropic", endpoint="beta.messages", model="claude-opus-5")
    everything = [*own, *compactions]
    assert "iterations_mismatch" not in seen.flags
    assert seen.usage.output_tokens == sum(entry["output_tokens"] for entry in everything)
    assert seen.usage.input_tokens == sum(
        entry["input_tokens"] + (entry["cache_read_input_tokens"] or 0) + entry["cache_creation_input_tokens"]
        for entry in everything
    )
    assert len(seen.consumptions) == len(everything)


number = st.none() | st.integers(-10, 10**9) | st.floats() | st.text(max_size=3) | st.booleans()
names = st.sampled_from(
    [
        "prompt_tokens",
        "completion_tokens",
        "input_tokens",
        "output_tokens",
        "total_tokens",
        "cached_tokens",
        "cache_write_tokens",
        "audio_tokens",
        "image_tokens",
        "seconds",
        "cost",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "prompt_cache_hit_tokens",
        "reasoning_tokens",
    ]
)
details = st.dictionaries(names, number, max_size=4)
sections = st.sampled_from(
    ["prompt_tokens_details", "input_tokens_details", "input_token_details", "cache_creation", "server_tool_use"]
)


@given(
    st.dictionaries(names, number, max_size=6),
    st.dictionaries(sections, details | number, max_size=2),
    st.sampled_from(
        [
            "chat.completions",
            "responses",
            "messages",
            "beta.messages",
            "realtime",
            "images.generate",
            "/v1/x",
            "batches",
        ]
    ),
    st.booleans(),
)
def test_any_usage_is_read_without_a_fault_and_never_negative(counts, parts, endpoint, whole):
    """Whatever a host sends, the call that was made goes through, and no class is below zero."""
    usage = {**counts, **parts}
    body = {"id": "x", "model": "m", "usage": usage} if whole else {"id": "x", **usage}
    seen = observe(body, provider="somebody", endpoint=endpoint, model="m")
    assert all(quantity > 0 for quantity in seen.usage.quantities.values())
    assert seen.consumptions or seen.flags or not seen.billable
    for group in seen.consumptions:
        assert group.supplied_cost is None or group.supplied_cost.amount >= 0
        assert all(type(quantity) in {int, Decimal} for quantity in group.usage.quantities.values())


said = (
    st.none() | st.integers(-3, 10**9) | st.floats() | st.text(max_size=3) | st.booleans() | st.just({}) | st.just([])
)


@given(
    st.sampled_from(["chat.completions", "responses", "messages", "beta.messages"]),
    st.none() | st.text(max_size=2) | st.dictionaries(names, said, max_size=6),
    st.booleans(),
)
def test_an_answer_with_content_is_never_free_in_silence(endpoint, usage, streamed):
    """Whatever a host says of an answer that has words in it: some tokens on either side, or a flag, or unknown."""
    words = "x" * 40
    content = [{"type": "text", "text": words}]
    body = {
        "chat.completions": {"object": "chat.completion", "choices": [{"message": {"content": words}}]},
        "responses": {"object": "response", "status": "completed", "output": [{"content": content}]},
    }.get(endpoint, {"type": "message", "content": content})
    dialect = dialect_for("somebody", endpoint)
    request = RequestFacts(model="m", input_bytes=400, streamed=streamed)
    whole = {"id": "x", "model": "m", **body, "usage": usage}
    seen = dialect.read(whole, provider="somebody", endpoint=endpoint, request=request)
    assert seen.billable
    assert (seen.usage.input_tokens and seen.usage.output_tokens) or "usage_unknown" in seen.flags
    plain = dialect.plain.get(endpoint)
    quick = None if plain is None else plain(whole)
    assert quick is None or (quick.quantities == dict(seen.usage.quantities) and not seen.flags)
