"""What a call would cost, before it is made: likely, and at most as budgets hold it. No network, no ledger."""

import io
import json
import re
from decimal import Decimal

import pytest

import tokenmeter
from tokenmeter.errors import ConfigurationError, UnknownModelError
from tokenmeter.money import multiply, round_to, total
from tokenmeter.testing import FakeProvider

DAY = "2026-11-20"
HELLO = [{"role": "user", "content": "Hello there. " * 200}]


def test_the_likely_cost_has_lines_at_the_prices_of_the_day():
    told = tokenmeter.estimate("gpt-5", input_tokens=10_000, expected_output_tokens=2_000, at=DAY)
    assert told.expected_cost == Decimal("0.0325")
    assert {line.sku_meter: line.quantity for line in told.lines} == {"input": 10_000, "output": 2_000}
    assert told.expected.cost_source == "estimated"
    assert not told.expected.flags


@pytest.mark.parametrize(
    ("model", "request_body", "endpoint"),
    [
        ("gpt-5", {"messages": HELLO, "max_completion_tokens": 300}, "chat.completions"),
        ("gpt-5", {"input": "Hello there. " * 200, "max_output_tokens": 300}, "responses"),
        ("claude-sonnet-4-5", {"messages": HELLO, "max_tokens": 300}, "messages"),
    ],
)
def test_the_answers_limit_is_read_whatever_the_endpoint_calls_it(model, request_body, endpoint):
    told = tokenmeter.estimate(model, **request_body, at=DAY)
    assert told.endpoint == endpoint
    assert told.bound.output_tokens == 300
    assert told.lines[-1].quantity == 300
    assert told.expected_cost <= told.upper_bound
    assert total(line.cost for line in told.upper_lines) == told.upper_bound


def test_it_is_what_a_budget_holds(tmp_path):
    openai = pytest.importorskip("openai")
    with FakeProvider() as provider:
        meter = tokenmeter.make_meter(
            store=f"sqlite:///{tmp_path}/usage.db", budgets=[tokenmeter.Budget(name="all", limit_usd="1")]
        )
        client = tokenmeter.wrap(openai.OpenAI(api_key="sk-x", base_url=provider.openai_url), meter=meter)
        told = tokenmeter.estimate("gpt-5", messages=HELLO, max_completion_tokens=5_000, meter=meter)
        answer = client.chat.completions.create(model="gpt-5", messages=HELLO, max_completion_tokens=5_000, stream=True)
        next(iter(answer))
        (balance,) = meter.remaining()
        assert balance.reserved == round_to(told.upper_bound, 12, rounding="ROUND_CEILING")
        answer.close()
        meter.close()


def test_an_answer_of_unknown_length_is_assumed_and_flagged():
    assert "answer_assumed" in tokenmeter.estimate("gpt-5", messages=HELLO).expected.flags
    assert "answer_assumed" not in tokenmeter.estimate("gpt-5", messages=HELLO, max_output_tokens=20).expected.flags
    several = tokenmeter.estimate("gpt-5", messages=HELLO, n=3, max_output_tokens=20)
    assert (several.lines[-1].quantity, several.bound.output_tokens) == (60, 60)


def test_the_users_terms_count():
    meter = tokenmeter.make_meter(store="memory:", multiplier="2")
    dear = tokenmeter.estimate("gpt-5", input_tokens=1_000, max_output_tokens=10, meter=meter)
    cheap = tokenmeter.estimate("gpt-5", input_tokens=1_000, max_output_tokens=10)
    assert dear.expected_cost == multiply(2, cheap.expected_cost)
    assert dear.upper_bound == multiply(2, cheap.upper_bound)
    meter.close()


def test_a_batch_is_half():
    batch = tokenmeter.estimate("gpt-5", input_tokens=1_000, max_output_tokens=10, processing="batch", at=DAY)
    plain = tokenmeter.estimate("gpt-5", input_tokens=1_000, max_output_tokens=10, at=DAY)
    assert multiply(2, batch.expected_cost) == plain.expected_cost


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"model": "our-own", "messages": HELLO, "max_output_tokens": 5}, "the model's price is not known"),
        ({"model": "gpt-5", "input": "hi", "tools": [{"type": "web_search"}]}, "the provider runs tools"),
    ],
)
def test_what_has_no_price_or_no_bound_says_why(arguments, why):
    told = tokenmeter.estimate(**arguments)
    assert told.upper_bound is None
    assert why in told.why_unbounded
    assert why in str(told)
    assert told.upper_lines == ()


def test_an_unknown_model_is_unpriced_never_zero():
    told = tokenmeter.estimate("our-own", messages=HELLO)
    assert (told.expected_cost, told.expected.cost_source) == (None, "unpriced")
    assert json.loads(json.dumps(told.to_dict()))["expected_cost"] is None


@pytest.mark.parametrize(
    ("model", "endpoint", "request_body"),
    [
        ("whisper-1", "audio.transcriptions", {}),
        ("gpt-4o-mini-tts", "audio.speech", {"input": "Hello."}),
        ("gpt-image-1", "images.generate", {"prompt": "a cat", "size": "1024x1024"}),
        ("gpt-5", "/foo/bar", {"messages": HELLO}),
    ],
)
def test_what_only_the_answer_says_is_no_likely_cost(model, endpoint, request_body):
    told = tokenmeter.estimate(model, endpoint=endpoint, request=request_body)
    assert (told.expected_cost, told.upper_bound) == (None, None)
    assert told.expected.cost_source == "unpriced"
    assert "not known before the answer" in told.why_unbounded


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"endpoint": "chat.completion"}, r"such as chat\.completions"),
        ({"endpoint": "foo.bar"}, r"such as .*messages.*models\.generate_content.*responses"),
        ({"provider": "opnai"}, "Did you mean 'openai'"),
        ({"speed": "fsat"}, "speed is one of fast, standard, not 'fsat'"),
        ({"speed": 1}, "speed is one of"),
        ({"region": "eu-wset"}, "region is a cloud's, such as us-east-1"),
        ({"region": "us-esat-1"}, "region is a cloud's, such as us-east-1"),
        ({"service_tier": "flx"}, "service_tier is one of .*flex"),
        ({"model": "gemini-2.5-flash", "config": {"service_tier": "flx"}}, "service_tier is one of .*flex"),
    ],
)
def test_a_word_that_nobody_has_a_price_for_is_refused_with_those_that_are(wrong, told):
    """It would be estimated as if it were not there: at the standard price, or in no region."""
    with pytest.raises(ConfigurationError, match=told):
        tokenmeter.estimate(**{"model": "gpt-5", "input_tokens": 1_000, **wrong})


@pytest.mark.parametrize(
    "words",
    [
        *({"region": name} for name in ("us", "eu", "global", "us-east-1", "us-gov-west-1", "europe-west4", "eastus2")),
        *({"service_tier": name} for name in ("auto", "default", "flex", "Priority")),
        *({"provider": name} for name in ("our-own", "vllm", "bedrock", "google-vertex")),
        {"speed": "fast", "model": "claude-opus-4-8"},
        {"endpoint": "beta.responses"},
    ],
    ids=str,
)
def test_words_that_there_are_and_providers_of_ones_own_are_not_refused(words):
    assert tokenmeter.estimate(**{"model": "gpt-5", "input_tokens": 1_000, **words}).endpoint


def test_a_tier_of_ones_own_rows_is_one():
    row = {"provider": "openai", "model": "gpt-5", "sku_meter": "input", "unit_price": "9", "per": 1_000_000}
    meter = tokenmeter.make_meter(store="memory:", prices=[{**row, "service_tier": "gold"}])
    assert tokenmeter.estimate("gpt-5", input_tokens=1_000, service_tier="gold", meter=meter).lines
    with pytest.raises(ConfigurationError, match="gold"):
        tokenmeter.estimate("gpt-5", input_tokens=1_000, service_tier="silver", meter=meter)
    meter.close()


def test_what_is_sold_by_the_piece_is_estimated_by_the_piece():
    speech = tokenmeter.estimate("tts-1", endpoint="audio.speech", input="x" * 1_000, voice="alloy")
    assert [(line.sku_meter, line.quantity) for line in speech.lines] == [("characters", 1_000)]
    assert speech.expected_cost == speech.upper_bound == Decimal("0.015")
    embedded = tokenmeter.estimate("text-embedding-3-small", endpoint="embeddings", input=["word " * 100])
    assert [line.sku_meter for line in embedded.lines] == ["input"]


@pytest.mark.parametrize(
    "arguments",
    [
        *({}, {"model": ""}, {"model": "gpt-5", "max_output_tokens": -1}, {"model": "gpt-5", "input_tokens": "9"}),
        {"model": "gpt-5", "input_tokens": 9, "expected_output_tokens": 5_000, "max_output_tokens": 5},
    ],
)
def test_what_is_no_request_is_refused(arguments):
    with pytest.raises(ConfigurationError):
        tokenmeter.estimate(**arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"processing": "btach"}, "processing is 'batch' or left out"),
        ({"processing": "Batch"}, "processing is 'batch' or left out"),
        ({"max_outputtokens": 5}, "Did you mean 'max_output_tokens'?"),
        ({"mesages": HELLO}, "Did you mean 'messages'?"),
        ({"service_teir": "flex"}, "Did you mean 'service_tier'?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_slip_is_refused_with_what_was_meant(arguments, said):
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        tokenmeter.estimate("gpt-5", **arguments)


def test_a_field_that_looks_like_a_slip_may_be_sent_all_the_same():
    told = tokenmeter.estimate("gpt-5", messages=HELLO, request={"max_outputtokens": 5}, max_output_tokens=5)
    assert told.expected_cost


@pytest.mark.parametrize(
    ("model", "meant"),
    [("gpt5", "gpt-5"), ("claude-sonet-4-5", "claude-sonnet-4-5"), ("gemini-2.5-flsh", "gemini-2.5-flash")],
)
def test_a_model_without_a_price_is_named_with_the_one_that_was_meant(model, meant):
    told = tokenmeter.estimate(model, messages=HELLO, max_output_tokens=5)
    assert (told.expected_cost, told.meant) == (None, meant)
    assert f"did you mean {meant}?" in str(told)
    with pytest.raises(UnknownModelError, match=f"Did you mean '{meant}'"):
        tokenmeter.prices.show(model, provider=told.provider)


# -- the command

CHAT = {"model": "gpt-5", "messages": HELLO, "max_completion_tokens": 100}
LINES = [
    CHAT,
    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT},
    {"custom_id": "b", "params": {"model": "claude-sonnet-4-5", "messages": HELLO, "max_tokens": 100}},
]  # fmt: skip


@pytest.fixture
def cli(run_command, monkeypatch, tmp_path):
    """Runs `tokenmeter estimate` in an empty folder; `text` is its input."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, text=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        return run_command("estimate", *arguments)

    return run


def test_the_command_reads_bodies_and_batch_files(cli, tmp_path):
    (tmp_path / "requests.jsonl").write_text("\n\n".join(map(json.dumps, LINES)))
    done = cli("requests.jsonl", "--at", DAY, "--json")
    assert done.code == 0, done.err
    plain, batch, claude = json.loads(done.out)["requests"]
    assert Decimal(plain["expected_cost"]) == multiply(2, Decimal(batch["expected_cost"]))
    assert claude["provider"] == "anthropic"
    table = cli("requests.jsonl", "--at", DAY)
    assert "claude-sonnet-4-5" in table.out
    assert "at most $" in table.out
    assert not list(tmp_path.glob("**/*.db"))


def test_the_command_says_what_has_no_price(cli):
    done = cli("-", text=json.dumps({"model": "our-own", "messages": HELLO}))
    assert done.code == 1
    assert "unknown" in done.out
    assert "price is not known" in " ".join(done.out.split())
    assert "Likely unknown, at most unknown." in done.out
    both = "\n".join(map(json.dumps, ({"model": "our-own", "messages": HELLO}, CHAT)))
    assert "without 1 of unknown cost" in cli("-", text=both).out
    totals = json.loads(cli("-", "--json", text=json.dumps({"model": "our-own", "messages": HELLO})).out)
    assert totals["expected_cost"] is None


@pytest.mark.parametrize("text", ["{", "[1]", '{"messages": []}', '{"model": 3}'])
def test_the_command_names_the_line_that_is_no_request(cli, text):
    done = cli("-", text="\n" + text)
    assert done.code == 2
    assert "line 2" in done.err


def test_a_request_in_googles_format_is_estimated_by_its_contents():
    asked = {"contents": [{"parts": [{"text": "word " * 100}]}], "generationConfig": {"maxOutputTokens": 100}}
    told = tokenmeter.estimate("gemini-2.5-flash", **asked)
    assert (told.provider, told.endpoint) == ("google", "models.generate_content")
    used = {line.sku_meter: line.quantity for line in told.lines}
    assert used["input"] > 100
    assert used["output"] == 100


def test_a_video_is_estimated_by_its_seconds():
    asked = {"instances": [{"prompt": "a cat"}], "parameters": {"durationSeconds": 4, "sampleCount": 2}}
    told = tokenmeter.estimate("veo-3.1-generate-preview", endpoint="models.generate_videos", **asked)
    # 2 videos x 4 seconds x $0.40; the bound knows no size, and takes the dearest, $0.60
    assert (told.expected_cost, told.upper_bound) == (Decimal("3.20"), Decimal("4.80"))


THINKING = {"thinking_budget": 100}


@pytest.mark.parametrize(
    "config",
    [
        {
            "max_output_tokens": 300,
            "candidate_count": 2,
            "system_instruction": "x" * 4_000,
            "thinking_config": THINKING,
        },
        {"maxOutputTokens": 300, "candidateCount": 2, "systemInstruction": {"parts": [{"text": "x" * 4_000}]}},
    ],
    ids=["as the SDK is told", "as it is sent"],
)
def test_geminis_config_is_read_as_its_sdk_sends_it(config):
    told = tokenmeter.estimate("gemini-2.5-flash", contents="Hello", config=config, at=DAY)
    assert told.bound.output_tokens == 600
    assert {line.sku_meter: line.quantity for line in told.lines}["output"] == 600
    assert told.lines[0].quantity >= 1_000


def test_geminis_own_types_are_read_as_its_sdk_sends_them():
    types = pytest.importorskip("google.genai.types")
    picture = types.Part.from_bytes(data=b"x" * 90_000, mime_type="image/png")
    contents = types.Content(role="user", parts=[types.Part(text="Hello"), picture])
    config = types.GenerateContentConfig(max_output_tokens=300, http_options=types.HttpOptions(timeout=5))
    told = tokenmeter.estimate("gemini-2.5-flash", contents=[contents], config=config, at=DAY)
    assert (told.bound.output_tokens, told.why_unbounded) == (300, "")
    assert told.expected_cost <= told.upper_bound
    assert told.bound.input_tokens < 90_000  # a picture is no text


def test_a_tool_of_googles_own_has_no_bound_in_a_config_either():
    told = tokenmeter.estimate("gemini-2.5-flash", contents="Hello", config={"tools": [{"google_search": {}}]}, at=DAY)
    assert told.upper_bound is None


@pytest.mark.parametrize(("config", "cost"), [({"number_of_images": 3}, "0.12"), ({}, "0.16")])
def test_geminis_pictures_are_estimated_by_the_piece(config, cost):
    model, endpoint = "imagen-4.0-generate-001", "models.generate_images"
    told = tokenmeter.estimate(model, endpoint=endpoint, prompt="A cat", config=config, at=DAY)
    assert told.expected_cost == told.upper_bound == Decimal(cost)


def test_geminis_videos_are_estimated_by_their_seconds():
    config = {"duration_seconds": 4, "resolution": "4k"}
    model, endpoint = "veo-3.1-generate-preview", "models.generate_videos"
    told = tokenmeter.estimate(model, endpoint=endpoint, prompt="A cat", config=config, at=DAY)
    assert told.expected_cost == told.upper_bound == Decimal("2.4")


@pytest.mark.parametrize(
    ("model", "arguments", "endpoint"),
    [
        ("text-embedding-3-small", {"input": "hi"}, "embeddings"),
        ("mistral-embed", {"input": "hi", "provider": "mistral"}, "embeddings"),
        ("gemini-embedding-001", {"contents": "hi", "provider": "google"}, "models.embed_content"),
        ("omni-moderation-latest", {"input": "hi"}, "moderations"),
        ("tts-1", {"input": "hello"}, "audio.speech"),
        ("gpt-image-1.5", {"prompt": "a cat"}, "images.generate"),
        ("imagen-4.0-generate-001", {"prompt": "a cat", "provider": "google"}, "models.generate_images"),
        ("gpt-5-mini", {"input": "hi"}, "responses"),
        ("gpt-4o-mini-transcribe", {"messages": [{"role": "user", "content": "hi"}]}, "chat.completions"),
    ],
)
def test_a_model_that_does_not_write_is_not_taken_for_a_chat(model, arguments, endpoint):
    told = tokenmeter.estimate(model, **arguments)
    assert told.endpoint == endpoint
    if "embed" in endpoint:  # which has no answer to be paid for
        assert told.expected_cost <= told.upper_bound < Decimal("0.00001")
        assert {line.sku_meter for line in told.lines} == {"input"}


def test_an_estimate_is_printed_as_money_is():
    told = tokenmeter.estimate("gpt-5-mini", input="x", max_output_tokens=10)
    assert str(told) == "gpt-5-mini: likely $0.0000205, at most $0.00002925"


def test_an_estimate_is_shown_as_a_rating_is():
    told = tokenmeter.estimate("gpt-5", input_tokens=1000, max_output_tokens=100)
    assert str(told) == "gpt-5: likely $0.00225, at most $0.00229"
    assert repr(told) == f"<Estimate {told}>"
    assert "$0.00225" in told._repr_html_()
    assert ">output</td>" in told._repr_html_()
    assumed = tokenmeter.estimate("gpt-5", input="Hi")
    assert repr(assumed).endswith("; answer_assumed>")
