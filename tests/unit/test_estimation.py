"""A call's bound is never below what the call turns out to use, and what has no bound says why."""

import os
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
import tiktoken
import tiktoken.load
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmeter.attribution import Attribution
from tokenmeter.budgets.bounds import (
    Ceilings,
    Expectations,
    bound,
    input_estimate,
    longest_prompt,
    picodollars,
)
from tokenmeter.budgets.tokens import TokenCounter, encoding_of
from tokenmeter.call import Call, RequestFacts
from tokenmeter.ledger import Entry
from tokenmeter.pricing import Ceiling, PriceList, Pricer, Terms
from tokenmeter.usage import Consumption, Observation, Usage

CEILING = Ceiling(
    input=Decimal("0.000003"), output=Decimal("0.000015"), context_window=200_000, max_output_tokens=8_192
)
NOW = datetime(2026, 11, 23, tzinfo=UTC)


def a_call(operation="chat", provider="openai", **facts):
    return Call(
        provider=provider,
        endpoint="chat.completions",
        operation=operation,
        facts=RequestFacts(**({"model": "gpt-5", "input_bytes": 1000, "max_output_tokens": 100} | facts)),
        attribution=Attribution(route="/r"),
    )


class TestBound:
    def test_is_bytes_and_overhead_plus_every_answers_cap(self):
        upper = bound(a_call(choices=3), CEILING)
        assert (upper.input_tokens, upper.output_tokens) == (1000 + 32, 300)
        assert upper.cost == Decimal("0.000003") * (1000 + 32) + Decimal("0.000015") * 300
        assert upper.reasons == ()

    def test_without_a_cap_is_the_models_maximum_else_its_context_window(self):
        assert bound(a_call(max_output_tokens=None), CEILING).output_tokens == 8_192
        assert bound(a_call(max_output_tokens=None), replace(CEILING, max_output_tokens=None)).output_tokens == 200_000

    def test_claude_adds_its_tool_prompt_wherever_it_is_served(self):
        for call in (
            a_call(provider="anthropic", model="claude-x"),
            a_call(provider="bedrock", model="us.anthropic.claude-x"),
        ):
            assert bound(call, CEILING).input_tokens == 1000 + 850

    def test_pictures_count_at_the_dearest_the_family_charges(self):
        plain = bound(a_call(), CEILING).input_tokens
        assert bound(a_call(image_count=2), CEILING).input_tokens == plain + 2 * (70 + 8 * 140)
        assert bound(a_call(model="llama-4", image_count=2), CEILING).input_tokens == plain + 2 * 25_000
        mini = a_call(model="gpt-4o-mini", image_count=1)
        assert bound(mini, CEILING).input_tokens == plain + 48_169

    def test_an_embedding_has_no_answer(self):
        upper = bound(a_call("embeddings", max_output_tokens=None), Ceiling(input=Decimal("2E-8")))
        assert (upper.output_tokens, upper.cost) == (0, Decimal("2E-8") * (1000 + 32))

    def test_speech_sold_by_the_character_is_bounded(self):
        upper = bound(a_call("speech", pieces={"characters": 500}), Ceiling(character=Decimal("0.000015")))
        assert (upper.cost, upper.reasons) == (Decimal("0.0075"), ())

    def test_pictures_sold_by_the_piece_are_bounded(self):
        upper = bound(a_call("image_generation", pieces={"images": 2}), Ceiling(image=Decimal("0.04")))
        assert upper.cost == Decimal("0.08")

    @pytest.mark.parametrize("operation", ["transcription", "image_generation", "realtime", "video_generation"])
    def test_what_is_only_known_afterwards_has_no_bound(self, operation):
        upper = bound(a_call(operation), CEILING)
        assert (upper.cost, upper.tokens) == (None, None)
        assert "before the answer" in upper.explain()

    @pytest.mark.parametrize("reason", ["conversation", "files", "stored_prompt"])
    def test_a_prompt_that_lies_elsewhere_is_bounded_by_the_context_window(self, reason):
        assert bound(a_call(unbounded=reason), CEILING).input_tokens == 200_000
        unknown = bound(a_call(unbounded=reason), replace(CEILING, context_window=None))
        assert (unknown.tokens, unknown.reasons) == (None, ("no_context_window",))

    def test_several_reasons_are_all_given(self):
        upper = bound(a_call(unbounded="server_tools,conversation,compaction"), CEILING)
        assert upper.reasons == ("compaction", "server_tools")
        assert " and " in upper.explain()

    def test_an_unknown_model_has_a_bound_in_tokens_but_none_in_dollars(self):
        for ceiling in (None, replace(CEILING, known=False)):
            upper = bound(a_call(), ceiling)
            assert (upper.tokens, upper.amount("usd"), upper.amount("requests")) == (1132, None, 1)
            assert upper.explain() == "the model's price is not known"

    def test_dollars_are_rounded_up_to_the_picodollar(self):
        assert picodollars(Decimal("0.0000000000001")) == 1
        assert picodollars(Decimal("1.5")) == 1_500_000_000_000

    @given(st.integers(0, 10**7), st.integers(0, 10**5), st.integers(1, 5), st.integers(0, 10**15))
    def test_the_affordable_answer_fits_and_one_token_more_does_not(self, size, most, choices, room):
        call = a_call(input_bytes=size, choices=choices, max_output_tokens=most)
        for unit in ("usd", "tokens"):
            upper = bound(call, replace(CEILING, max_output_tokens=None, context_window=None))
            affordable = upper.affordable_output_tokens(unit, room)
            cost = lambda tokens: bound(replace(call, facts=replace(call.facts, max_output_tokens=tokens)), CEILING)  # noqa: E731
            assert affordable == 0 or cost(affordable).amount(unit) <= room
            assert cost(affordable + 1).amount(unit) > room


def an_entry(**changes):
    values = {"occurred_at": NOW, "provider": "openai", "endpoint": "chat.completions", "operation": "chat"}
    return Entry(**(values | changes))


@settings(deadline=None)  # the first example loads the price list
@given(
    st.sampled_from(["gpt-5", "gpt-4.1", "gpt-5-mini", "claude-sonnet-4-5", "claude-opus-4-1", "o3"]),
    st.integers(0, 400_000),
    st.integers(0, 20_000),
    st.sampled_from(["input", "cache_read", "cache_write_5m", "cache_write_1h", "cache_write_30m"]),
    st.sampled_from([None, "default", "priority", "flex"]),
)
def test_no_class_tier_or_prompt_length_costs_more_than_the_bound(model, size, answer, meter, tier):
    """Whatever class and band a prompt falls into, in the tier that was asked for or that answers have shown."""
    pricer = Pricer(PriceList.load())
    provider = "anthropic" if "claude" in model else "openai"
    call = a_call(provider=provider, model=model, input_bytes=size, max_output_tokens=answer)
    ceilings = Ceilings()
    ceilings.learn(an_entry(provider=provider, request_model=model, service_tier=tier))
    ceiling = ceilings.of(call, NOW, pricer, prompt_tokens=longest_prompt(call.provider, call.facts, pricer.terms))
    usage = Usage({meter: size, "output": answer})
    seen = Consumption(model=model, usage=usage, service_tier=tier, prompt_tokens=size)
    rating = pricer.rate(Observation(consumptions=(seen,)), provider=provider, endpoint=call.endpoint, at=NOW)
    assert (rating.billed_cost or 0) <= bound(call, ceiling).cost


def test_a_name_that_stands_for_a_model_is_bounded_as_that_model():
    """A deployment's name says nothing of what a picture is; the settings say which model it is."""
    terms = Terms(model_maps={"azure": {"mini": "gpt-4o-mini"}, "*": {"house": "claude-sonnet-4-5"}})
    pricer = Pricer(PriceList.load(), terms)
    picture = {"max_output_tokens": 10, "input_bytes": 0, "image_count": 1}
    for provider, name, most in (("azure", "mini", 48_169), ("openai", "house", 850 + 4_784)):
        call = a_call(provider=provider, model=name, **picture)
        longest = longest_prompt(provider, call.facts, terms)
        upper = bound(call, Ceilings().of(call, NOW, pricer, prompt_tokens=longest))
        assert longest == upper.input_tokens >= most


class TestTiers:
    """A tier nobody named is not held for, until an answer shows that the account has it by default."""

    def rate(self, ceilings, **facts):
        call = a_call(model="gpt-5", **facts)
        return ceilings.of(call, NOW, Pricer(PriceList.load())).input

    def test_what_is_asked_for_is_held(self):
        ceilings = Ceilings()
        assert self.rate(ceilings) == Decimal("0.00000125")
        assert self.rate(ceilings, service_tier="priority") == Decimal("0.0000025")

    def test_what_one_call_asks_for_is_not_held_for_others(self):
        ceilings = Ceilings()
        for tier in ("priority", "flex"):
            ceilings.learn(an_entry(request_model="gpt-5", service_tier=tier), tier)
        assert self.rate(ceilings) == Decimal("0.00000125")
        assert self.rate(ceilings, service_tier="flex") == Decimal("0.000000625")

    def test_flex_is_held_at_its_own_rate_where_it_is_served_so_or_refused(self):
        """$1 a million tokens of sound for Gemini 2.5 Flash, its dearest; nobody says that Anthropic keeps one."""
        for provider, model, flex, standard in (
            ("google", "gemini-2.5-flash", "0.0000005", "0.000001"),
            ("anthropic", "claude-haiku-4-5", "0.000002", "0.000002"),  # what is written to a cache for an hour
        ):
            call = {"model": model, "provider": provider}
            rates = [
                Ceilings().of(a_call(**call, service_tier=tier), NOW, Pricer(PriceList.load())).input
                for tier in ("flex", None)
            ]
            assert rates == [Decimal(flex), Decimal(standard)]

    def test_flex_that_an_answer_shows_to_be_served_as_standard_is_held_so_from_then_on(self):
        ceilings = Ceilings()
        ceilings.learn(an_entry(request_model="gpt-5", service_tier="default"), "flex")
        assert self.rate(ceilings, service_tier="flex") == Decimal("0.00000125")
        assert ceilings.tiers == 1

    def test_what_answers_show_is_held_from_then_on(self):
        ceilings = Ceilings()
        for tier in (None, "default", "priority"):
            ceilings.learn(an_entry(request_model="gpt-5", service_tier=tier))
        assert self.rate(ceilings) == Decimal("0.0000025")

    def test_a_band_of_long_prompts_is_held_for_long_prompts_only(self):
        pricer, ceilings = Pricer(PriceList.load()), Ceilings()
        call = a_call(provider="google", model="gemini-2.5-pro")
        short, long, unknown = (ceilings.of(call, NOW, pricer, prompt_tokens=most) for most in (10_000, 300_000, None))
        assert short.input < long.input == unknown.input


class TestTokens:
    """A tokenizer at hand makes the bound of long texts tight; without one their bytes bound them."""

    ENCODING = tiktoken.Encoding(
        "test",
        pat_str=r"\w+|\W",
        mergeable_ranks={bytes([byte]): byte for byte in range(256)} | {b"te": 256, b"st": 257, b"test": 258},
        special_tokens={"<|end|>": 259},
    )
    PROSE = "test " * 100

    def counter(self, encoding=ENCODING):
        made = TokenCounter(lambda _: encoding)
        made.load("o200k_base")
        return made

    def prompt(self, counter, text=PROSE, **facts):
        call = a_call(model="gpt-5", input_bytes=len(text.encode()) + 40, long_texts=[text], **facts)
        return bound(call, CEILING, counter).input_tokens - 32

    def test_long_texts_count_by_their_tokens_and_the_rest_by_its_bytes(self):
        assert self.prompt(self.counter()) == 200 + 40

    def test_what_looks_like_a_special_token_is_plain_text(self):
        assert self.counter().count("o200k_base", ["<|end|>"]) == len("<|end|>")

    def test_without_a_tokenizer_bytes_bound_it(self):
        assert self.prompt(None) == self.prompt(self.counter(None)) == 540

    def test_a_tokenizer_that_fails_or_is_still_loading_changes_nothing(self, caplog):
        class Broken:
            def encode_ordinary(self, text):
                raise RuntimeError(text[:0])

        assert self.prompt(self.counter(Broken())) == 540
        assert "could not count" in caplog.text
        ready = threading.Event()
        waiting = TokenCounter(lambda _: ready.wait(10) and None)
        assert self.prompt(waiting) == 540
        ready.set()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_child_that_is_forked_while_a_tokenizer_loads_loads_its_own(self):
        ready, parent = threading.Event(), os.getpid()
        counter = TokenCounter(lambda _: self.ENCODING if os.getpid() != parent or ready.wait(60) else None)
        assert counter.count("o200k_base", [self.PROSE]) is None
        child = os.fork()
        if not child:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                if counter.count("o200k_base", [self.PROSE]) == 200:
                    os._exit(0)
                time.sleep(0.01)
            os._exit(1)
        ready.set()
        assert os.waitpid(child, 0)[1] == 0

    def test_texts_that_would_take_too_long_are_bounded_by_their_bytes(self):
        assert self.prompt(self.counter(), "test " * 300_000) == 1_500_040

    def test_nothing_is_fetched_where_the_file_is_missing_or_not_whole(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(tiktoken.load, "read_file", lambda *_: pytest.fail("fetched"))
        assert not TokenCounter().load("o200k_base")
        (tmp_path / "fb374d419588a4632f3f557e76b4b70aebbca790").write_bytes(b"half a file")
        assert not TokenCounter().load("o200k_base")

    @pytest.mark.parametrize(
        ("provider", "model", "encoding"),
        [
            ("openai", "gpt-5-mini", "o200k_base"),
            ("azure", "gpt-4o", "o200k_base"),
            ("openai", "ft:gpt-4o-2024-08-06:acme", "o200k_base"),
            ("openai", "gpt-4-turbo", "cl100k_base"),
            ("openai", "gpt-4.1", "o200k_base"),
            ("openai", "tts-1", None),
            ("anthropic", "claude-sonnet-4-5", None),
            ("openai", None, None),
        ],
    )
    def test_each_model_is_read_in_its_own_encoding(self, provider, model, encoding):
        assert encoding_of(provider, model) == encoding


class TestExpectations:
    @pytest.fixture
    def learned(self):
        made = Expectations()
        for tokens in range(1, 101):
            made.learn(
                Entry(
                    occurred_at=NOW,
                    provider="openai",
                    endpoint="chat.completions",
                    operation="chat",
                    request_model="gpt-5",
                    attribution=Attribution(route="/r"),
                    usage=Usage({"input": 5, "output": tokens}),
                    billed_cost=Decimal(tokens).scaleb(-6),
                    cost_source="computed",
                    latency_us=tokens * 10_000,
                )
            )
        return made

    def test_are_the_99th_percentile_of_what_was_seen(self, learned):
        upper = bound(a_call(max_output_tokens=5000), CEILING)
        assert learned.amount(a_call(), upper, "tokens") == 500 + 99
        assert learned.amount(a_call(), upper, "usd") == 99_000_000

    def test_never_exceed_the_bound(self, learned):
        call = a_call(max_output_tokens=3, input_bytes=2)
        assert learned.amount(call, bound(call, CEILING), "tokens") == min(1 + 99, 2 + 32 + 3)

    def test_know_nothing_of_another_route_or_model(self, learned):
        upper = bound(a_call(), CEILING)
        assert learned.amount(a_call(model="gpt-4"), upper, "tokens") is None
        assert learned.wait(a_call(model="gpt-4")) == 1

    def test_say_how_long_half_of_the_calls_took(self, learned):
        assert learned.wait(a_call()) == Decimal("0.500")

    def test_failed_calls_teach_nothing(self):
        made = Expectations()
        for _ in range(50):
            made.learn(
                Entry(
                    occurred_at=NOW,
                    provider="openai",
                    endpoint="e",
                    operation="chat",
                    request_model="m",
                    status="error",
                )
            )
        assert made.amount(a_call(model="m"), bound(a_call(), CEILING), "tokens") is None

    def test_memory_is_bounded(self):
        made = Expectations()
        for number in range(3000):
            made.learn(Entry(occurred_at=NOW, provider="p", endpoint="e", operation="chat", request_model=f"m{number}"))
        assert len(made._samples) == 1024


def test_an_unheard_calls_estimate_is_its_prompt():
    seen = input_estimate(a_call())
    assert (seen.usage.input_tokens, seen.usage.output_tokens, seen.flags) == (250, 0, {"estimated"})
