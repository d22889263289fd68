"""Streams: usage replaces, events are not kept, and a stream cut short is estimated and says so."""

import gc
import weakref

import pytest

from tokenmeter.call import RequestFacts
from tokenmeter.providers import observe
from tokenmeter.providers.anthropic.dialect import AnthropicDialect
from tokenmeter.providers.openai.dialect import OpenAIDialect

REQUEST = RequestFacts(model="asked", input_bytes=4000, streamed=True)


def played(events, *, endpoint="chat.completions", provider="openai", request=REQUEST):
    dialect = AnthropicDialect() if "messages" in endpoint else OpenAIDialect()
    reader = dialect.stream(provider=provider, endpoint=endpoint, request=request)
    for event in events:
        reader.feed(event)
    return reader


def quantities(reader):
    return dict(reader.observation().usage.quantities)


def chunk(content=None, *, finish=None, usage=None, choices=True, index=0, **delta):
    said = {"content": content} if content is not None else {}
    listed = [{"index": index, "delta": {**said, **delta}, "finish_reason": finish}] if choices else []
    event = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-5.4-2026-03-05",
        "choices": listed,
    }
    return {**event, "usage": usage} if usage is not None else event


def counted(prompt, answer, **details):
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer, **details}


class TestChat:
    def test_usage_beside_the_reason_to_stop_is_read(self):
        last = chunk(finish="stop")
        last["choices"][0]["usage"] = counted(100, 9)
        reader = played([chunk("Hello"), last], provider="moonshotai")
        assert quantities(reader) == {"input": 100, "output": 9}
        assert reader.observation().flags == frozenset()

    def test_a_usage_chunk_after_the_answer_ends_it_where_no_reason_is_given(self):
        reader = played([chunk("Hello"), chunk(choices=False, usage=counted(100, 9))])
        assert reader.terminal
        assert reader.observation().flags == frozenset()

    def test_a_usage_before_the_answer_ends_nothing(self):
        reader = played([chunk(choices=False, usage=counted(100, 0)), chunk("Hello")])
        assert not reader.terminal
        assert "estimated" in reader.observation().flags

    @pytest.mark.parametrize("ended", [True, False])
    @pytest.mark.parametrize(("stated", "output"), [(1, 110), (500, 500), (0, 110)])
    def test_a_usage_before_words_foresees_none_of_them(self, stated, output, ended):
        """A host that states its usage with the first chunk, or in the middle, and not again."""
        events = [chunk("x" * 40, usage=counted(100, stated)), chunk("y" * 400), *([chunk(finish="stop")] * ended)]
        reader = played(events)
        assert quantities(reader) == {"input": 100, "output": output}
        assert "estimated" in reader.observation().flags
        assert reader.observation().raw_usage == counted(100, stated)
        assert reader.body() is None

    def test_final_usage_chunk_is_read_as_a_body_is(self):
        details = {"prompt_tokens_details": {"cached_tokens": 64}}
        reader = played(
            [
                chunk("", role="assistant"),
                chunk("Hello"),
                chunk(finish="stop"),
                {**chunk(choices=False, usage=counted(100, 9, **details)), "service_tier": "flex"},
            ]
        )
        seen = reader.observation()
        assert reader.terminal
        assert dict(seen.usage.quantities) == {"input": 36, "cache_read": 64, "output": 9}
        assert (seen.response_id, seen.response_model, seen.flags) == (
            "chatcmpl-1",
            "gpt-5.4-2026-03-05",
            frozenset(),
        )
        assert seen.service_tier == seen.consumptions[0].service_tier == "flex"

    def test_cumulative_usage_on_every_chunk_is_not_added_up(self):
        events = [chunk("word", usage=counted(100, number)) for number in range(1, 21)]
        reader = played([*events, chunk(finish="stop", usage=counted(100, 20))])
        assert quantities(reader) == {"input": 100, "output": 20}

    def test_usage_on_a_chunk_with_choices_counts(self):
        reader = played([chunk("a"), chunk(finish="stop", usage=counted(10, 2))])
        assert quantities(reader) == {"input": 10, "output": 2}
        assert not reader.observation().flags

    def test_usage_after_the_finish_chunk_counts(self):
        reader = played([chunk("a", finish="stop"), chunk("", usage=counted(10, 2))])
        assert quantities(reader) == {"input": 10, "output": 2}

    def test_hosts_that_hide_usage_in_a_field_of_their_own(self):
        last = {**chunk(finish="stop"), "x_groq": {"id": "req", "usage": counted(10, 2)}}
        assert quantities(played([chunk("a"), last], provider="groq")) == {"input": 10, "output": 2}

    def test_cost_on_the_last_chunk_is_kept(self):
        reader = played(
            [chunk("a", finish="stop"), chunk(choices=False, usage={**counted(10, 2), "cost": 0.25})],
            provider="openrouter",
        )
        assert str(reader.observation().consumptions[0].supplied_cost.amount) == "0.25"

    def test_cut_short_is_estimated_from_both_sides(self):
        reader = played(
            [
                chunk("x" * 40),
                chunk("€" * 10),
                chunk(reasoning_content="y" * 10),
                chunk(tool_calls=[{"index": 0, "function": {"arguments": "z" * 20}}]),
            ]
        )
        seen = reader.observation()
        assert not reader.terminal
        assert seen.flags == {"estimated"}
        assert quantities(reader) == {"input": 1000, "output": (40 + 30 + 10 + 20) // 4}
        assert seen.consumptions[0].model == "gpt-5.4-2026-03-05"

    def test_cut_short_after_a_running_count_is_marked_too(self):
        seen = played([chunk("a", usage=counted(10, 1))]).observation()
        assert dict(seen.usage.quantities) == {"input": 10, "output": 1}
        assert seen.flags == {"estimated"}

    def test_never_read_is_the_input_alone(self):
        seen = played([]).observation()
        assert dict(seen.usage.quantities) == {"input": 1000}
        assert seen.consumptions[0].model == "asked"
        assert seen.flags == {"estimated"}

    def test_ends_when_every_answer_has_ended(self):
        request = RequestFacts(model="asked", choices=2, input_bytes=4)
        reader = played([chunk("a", finish="stop")], request=request)
        assert not reader.terminal
        reader.feed(chunk(finish="stop"))  # said again
        assert not reader.terminal
        assert "estimated" in reader.observation().flags
        reader.feed(chunk("b", finish="stop", index=1))
        assert reader.terminal

    @pytest.mark.parametrize(
        "odd",
        [
            {},
            {"choices": None},
            {"choices": [{"delta": None, "index": 0}]},
            {"choices": [{"index": 0, "delta": {}}], "usage": None},
            {"error": {"message": "overloaded"}},
        ],
    )
    def test_odd_chunks_do_no_harm(self, odd):
        assert quantities(played([odd, chunk("abcd"), odd])) == {"input": 1000, "output": 1}

    def test_text_completion_chunks_are_counted(self):
        event = {"id": "cmpl", "model": "m", "choices": [{"index": 0, "text": "x" * 8, "finish_reason": None}]}
        assert quantities(played([event], endpoint="completions"))["output"] == 2


def completed(kind="response.completed", **response):
    usage = {
        "input_tokens": 100,
        "output_tokens": 20,
        "total_tokens": 120,
        "input_tokens_details": {"cached_tokens": 64},
        "output_tokens_details": {"reasoning_tokens": 4},
    }
    body = {"id": "resp_1", "object": "response", "model": "gpt-5.4", "service_tier": "default", "output": []}
    return {"type": kind, "response": {**body, "usage": usage, **response}}


CREATED = {"type": "response.created", "response": {"id": "resp_1", "object": "response", "model": "gpt-5.4"}}


class TestResponses:
    @pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.failed"])
    def test_each_terminal_event_carries_the_bill(self, kind):
        reader = played([CREATED, completed(kind)], endpoint="responses")
        assert reader.terminal
        assert quantities(reader) == {"input": 36, "cache_read": 64, "output": 20}
        assert (reader.observation().response_id, reader.observation().deduplicate) == ("resp_1", True)

    def test_cut_short_counts_text_reasoning_arguments_and_tools(self):
        done = {"type": "response.output_item.done"}
        reader = played(
            [
                CREATED,
                {"type": "response.reasoning_text.delta", "delta": "r" * 40},
                {"type": "response.output_text.delta", "delta": "t" * 40},
                {"type": "response.function_call_arguments.delta", "delta": "a" * 20},
                {"type": "response.output_audio.delta", "delta": "UklGRg" * 1000},
                {**done, "item": {"type": "web_search_call", "action": {"type": "search", "query": "q"}}},
                {**done, "item": {"type": "message", "content": []}},
            ],
            endpoint="responses",
        )
        assert quantities(reader) == {"input": 1000, "output": 25, "web_searches": 1}
        assert reader.observation().flags == {"estimated"}
        assert reader.observation().response_id == "resp_1"

    def test_background_goes_on_without_us_and_is_billed_when_retrieved(self):
        created = {"type": "response.created", "response": {"id": "resp_1", "background": True, "model": "gpt-5.4"}}
        seen = played(
            [created, {"type": "response.output_text.delta", "delta": "x"}], endpoint="responses"
        ).observation()
        assert (seen.billable, seen.consumptions, seen.deduplicate) == (False, (), False)
        assert seen.flags == {"not_final"}

    def test_failed_without_usage_is_no_bill(self):
        reader = played([CREATED, completed("response.failed", usage=None, status="failed")], endpoint="responses")
        assert (reader.observation().billable, reader.observation().consumptions) == (False, ())

    def test_failed_after_it_has_written_is_estimated(self):
        failed = completed("response.failed", usage=None, status="failed")
        written = {"type": "response.output_text.delta", "delta": "t" * 40}
        seen = played([CREATED, written, failed], endpoint="responses").observation()
        assert dict(seen.usage.quantities) == {"input": 1000, "output": 10}
        assert (seen.billable, seen.flags) == (True, {"estimated"})

    def test_beta_responses_stream_alike(self):
        assert quantities(played([completed()], endpoint="beta.responses"))["output"] == 20


def start(**usage):
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-opus-5", "content": []}
    return {"type": "message_start", "message": {**message, "usage": {"input_tokens": 10, "output_tokens": 1, **usage}}}


BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
STOP = {"type": "message_stop"}


def words(text, kind="text_delta", key="text"):
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kind, key: text}}


def delta(stop="end_turn", **usage):
    return {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": usage}


class TestMessages:
    def test_message_delta_is_cumulative_and_nulls_say_nothing(self):
        split = {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 400}
        reader = played(
            [
                start(
                    cache_creation_input_tokens=500,
                    cache_creation=split,
                    cache_read_input_tokens=30,
                    service_tier="standard",
                    inference_geo="us",
                    speed="fast",
                ),
                BLOCK,
                words("Hello"),
                delta(output_tokens=15, input_tokens=None, cache_creation_input_tokens=None),
                STOP,
            ],
            endpoint="messages",
        )
        (group,) = reader.observation().consumptions
        assert dict(group.usage.quantities) == {
            "input": 10,
            "cache_read": 30,
            "cache_write_5m": 100,
            "cache_write_1h": 400,
            "output": 15,
        }
        assert (group.service_tier, group.geo, group.speed, group.prompt_tokens) == ("default", "us", "fast", 540)
        assert reader.terminal
        assert reader.observation().flags == frozenset()
        assert (reader.observation().response_id, reader.observation().response_model) == ("msg_1", "claude-opus-5")

    def test_server_tools_raise_the_input_in_the_last_delta(self):
        last = delta(output_tokens=90, input_tokens=7000, server_tool_use={"web_search_requests": 2})
        reader = played([start(), BLOCK, words("a"), last, STOP], endpoint="messages")
        assert quantities(reader) == {"input": 7000, "output": 90, "web_searches": 2}
        assert reader.observation().consumptions[0].prompt_tokens is None

    @pytest.mark.parametrize("place", ["beside the delta", "in the delta", "at the stop", "in the stop's message"])
    def test_the_last_counts_stand_wherever_a_host_puts_them(self, place):
        usage, ended, stop = {"input_tokens": 120, "output_tokens": 15}, delta(), dict(STOP)
        del ended["usage"]
        if place == "beside the delta":
            ended["usage"] = usage
        elif place == "in the delta":
            ended["delta"] = {**ended["delta"], "usage": usage}
        else:
            stop |= {"usage": usage} if place == "at the stop" else {"message": {"usage": usage}}
        reader = played([start(input_tokens=0), BLOCK, words("Hello"), ended, stop], endpoint="messages")
        assert quantities(reader) == {"input": 120, "output": 15}
        assert reader.observation().flags == frozenset()

    @pytest.mark.parametrize("counted", [0, "0", None])
    def test_the_count_at_the_start_only_holds_a_place(self, counted):
        """A host that counts nothing at the end wrote more than the 1 that its start said."""
        begun, last = start(output_tokens=1), delta(output_tokens=counted)
        seen = played([begun, BLOCK, words("x" * 400), last, STOP], endpoint="messages").observation()
        assert dict(seen.usage.quantities) == {"input": 10, "output": 100}
        assert "estimated" in seen.flags

    @pytest.mark.parametrize("ended", [True, False])
    def test_searches_that_no_usage_counts_are_those_that_found_something(self, ended):
        hit = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
        failed = {**hit, "content": {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"}}
        blocks = [{"type": "content_block_start", "index": 1, "content_block": each} for each in (hit, failed, hit)]
        end = [delta(output_tokens=90), STOP] if ended else []
        reader = played([start(), BLOCK, words("a" * 360), *blocks, *end], endpoint="messages")
        assert reader.observation().usage["web_searches"] == 2
        assert "estimated" in reader.observation().flags
        whole = {"type": "message", "content": [hit, failed, hit], "usage": {"input_tokens": 10, "output_tokens": 90}}
        for stated, billed in (({}, 2), ({"web_search_requests": 0}, 2), ({"web_search_requests": 1}, 1)):
            body = {**whole, "usage": {**whole["usage"], "server_tool_use": stated}}
            seen = observe(body, provider="anthropic", endpoint="messages", model="claude-opus-5")
            assert (seen.usage["web_searches"], "estimated" in seen.flags) == (billed, billed == 2)

    def test_iterations_in_the_last_delta_are_groups(self):
        entries = [
            {"type": "compaction", "input_tokens": 5000, "output_tokens": 70},
            {"type": "message", "input_tokens": 10, "output_tokens": 9},
        ]
        reader = played([start(), BLOCK, delta(output_tokens=9, iterations=entries), STOP], endpoint="beta.messages")
        assert [group.role for group in reader.observation().consumptions] == ["message", "compaction"]
        assert quantities(reader) == {"input": 5010, "output": 79}

    @pytest.mark.parametrize(
        ("asked", "first", "stated", "writes", "flags"),
        [
            ("1h", (0, 1_000), False, {"cache_write_1h": 9_000}, set()),
            ("1h", (0, 0), False, {"cache_write_1h": 9_000}, set()),
            ("1h", (0, 1_000), True, {"cache_write_1h": 9_000}, set()),
            (None, (0, 1_000), True, {"cache_write_1h": 9_000}, set()),
            (None, (1_000, 0), False, {"cache_write_5m": 9_000}, set()),
            (None, (0, 1_000), False, {"cache_write_5m": 8_000, "cache_write_1h": 1_000}, {"cache_ttl_assumed"}),
            ("several", (0, 1_000), True, {"cache_write_1h": 9_000}, set()),
            ("several", (0, 1_000), False, {"cache_write_5m": 8_000, "cache_write_1h": 1_000}, {"cache_ttl_assumed"}),
        ],
        ids=str,
    )
    def test_what_later_turns_write_to_a_cache_lasts_as_the_request_asked_or_the_iterations_say(
        self, asked, first, stated, writes, flags
    ):
        def turn(fresh, read, written):
            split = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": written}
            counts = {"cache_read_input_tokens": read, "cache_creation_input_tokens": written}
            return {"type": "message", "input_tokens": fresh, "output_tokens": 25, **counts, "cache_creation": split}

        split = dict(zip(("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"), first, strict=True))
        begun = start(input_tokens=10, cache_creation_input_tokens=sum(first), cache_creation=split)
        whole = {"input_tokens": 30, "cache_read_input_tokens": 1_000, "cache_creation_input_tokens": 9_000}
        entries = {"iterations": [turn(10, 0, sum(first)), turn(20, 1_000, 9_000 - sum(first))]} if stated else {}
        events = [begun, BLOCK, delta(output_tokens=50, **whole, **entries), STOP]
        request = RequestFacts(model="claude-sonnet-4-6", terms={"cache_ttl": asked} if asked else {})
        seen = played(events, endpoint="messages", provider="anthropic", request=request).observation()
        used = dict(seen.usage.quantities)
        assert {meter: tokens for meter, tokens in used.items() if meter.startswith("cache_write")} == writes
        assert (seen.usage.input_tokens, seen.usage.output_tokens, seen.flags) == (10_030, 50, flags)

    @pytest.mark.parametrize(
        ("caller", "flags"),
        [({"type": "direct"}, {"code_execution_time_unknown"}), ({"type": "code_execution_20260120"}, set())],
        ids=["told to", "by a search"],
    )
    def test_code_in_a_container_is_seen_in_the_last_delta(self, caller, flags):
        block = {"type": "server_tool_use", "name": "web_search", "input": {}, "caller": caller}
        ended = delta(output_tokens=9)
        ended["delta"]["container"] = {"id": "container_1", "expires_at": "2026-11-20T13:00:00Z"}
        events = [start(input_tokens=90), {"type": "content_block_start", "content_block": block}, words("Hi"), ended]
        reader = played(events, endpoint="messages", provider="anthropic")
        assert reader.observation().flags == flags
        assert reader.body()["container"] == ended["delta"]["container"]

    def test_cut_short_knows_the_input_and_estimates_the_output(self):
        arguments = words('{"a":', "input_json_delta", "partial_json")
        thinking = words("t" * 15, "thinking_delta", "thinking")
        reader = played([start(), BLOCK, words("x" * 40), arguments, thinking], endpoint="messages")
        seen = reader.observation()
        assert not reader.terminal
        assert dict(seen.usage.quantities) == {"input": 10, "output": 15}
        assert seen.flags == {"estimated"}

    def test_cut_short_right_after_the_start_keeps_its_placeholder(self):
        seen = played([start()], endpoint="messages").observation()
        assert dict(seen.usage.quantities) == {"input": 10, "output": 1}
        assert (seen.flags, seen.billable) == ({"estimated"}, True)

    def test_refused_before_any_output_is_not_billed(self):
        seen = played([start(), delta("refusal", output_tokens=1), STOP], endpoint="messages").observation()
        assert (seen.billable, seen.flags) == (False, {"unbilled_refusal"})

    def test_where_every_model_of_a_chain_refuses_before_any_output_nothing_is_billed(self):
        hop = {"type": "fallback", "from": {"model": "claude-opus-5-5"}, "to": {"model": "claude-opus-4-6"}}
        entries = [
            {"type": "message", "model": "claude-opus-5-5", "input_tokens": 50_000, "output_tokens": 0},
            {"type": "fallback_message", "model": "claude-opus-4-6", "input_tokens": 50_000, "output_tokens": 0},
        ]
        usage = {"input_tokens": 50_000, "output_tokens": 0, "iterations": entries}
        mark = {"type": "content_block_start", "index": 0, "content_block": hop}
        streamed = played([start(), mark, delta("refusal", **usage), STOP], endpoint="beta.messages").observation()
        whole = {"type": "message", "id": "m", "model": "claude-opus-4-6", "stop_reason": "refusal", "content": [hop]}
        read = observe({**whole, "usage": usage}, provider="anthropic", endpoint="beta.messages")
        for seen in (streamed, read):
            assert (seen.billable, seen.flags) == (False, {"declined_attempt", "unbilled_refusal"})
            assert seen.usage.input_tokens == 50_000

    def test_refused_half_way_is_billed(self):
        events = [start(), BLOCK, words("Hel"), delta("refusal", output_tokens=3), STOP]
        assert played(events, endpoint="messages").observation().billable

    def test_pings_and_errors_do_no_harm(self):
        odd = [{"type": "ping"}, {"type": "error", "error": {"type": "overloaded_error"}}, {}]
        assert quantities(played([*odd, start(), *odd], endpoint="messages")) == {"input": 10, "output": 1}

    def test_never_read_is_the_input_alone(self):
        seen = played([], endpoint="messages").observation()
        assert dict(seen.usage.quantities) == {"input": 1000}
        assert seen.flags == {"estimated"}


class TestOthers:
    def test_each_finished_image_counts(self):
        usage = {
            "input_tokens": 50,
            "input_tokens_details": {"text_tokens": 50, "image_tokens": 0},
            "output_tokens": 272,
            "total_tokens": 322,
        }
        events = [
            {"type": "image_generation.partial_image", "b64_json": "aGk=", "partial_image_index": 0},
            {"type": "image_generation.completed", "b64_json": "aGk=", "usage": usage},
            {"type": "image_generation.completed", "b64_json": "aGk=", "usage": usage},
        ]
        reader = played(events, endpoint="images.generate")
        assert reader.terminal
        assert quantities(reader) == {"input": 100, "output_image": 544}
        assert {group.model for group in reader.observation().consumptions} == {"asked"}

    def test_speech_says_its_usage_at_the_end(self):
        usage = {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}
        events = [{"type": "speech.audio.delta", "audio": "UklG"}, {"type": "speech.audio.done", "usage": usage}]
        assert quantities(played(events, endpoint="audio.speech")) == {"input": 14, "output_audio": 101}

    def test_speech_cut_short_is_estimated_from_the_text(self):
        request = RequestFacts(model="gpt-4o-mini-tts", input_bytes=400, pieces={"characters": 400})
        reader = played([{"type": "speech.audio.delta", "audio": "UklG"}], endpoint="audio.speech", request=request)
        assert quantities(reader) == {"input": 100, "output_audio": 560}
        assert reader.observation().flags == {"estimated"}

    @pytest.mark.parametrize(
        ("endpoint", "piece"),
        [
            ("audio.transcriptions", {"type": "transcript.text.delta", "delta": "Hello"}),
            ("images.generate", {"type": "image_generation.partial_image", "b64_json": "aGk="}),
            ("images.edit", {"type": "image_edit.partial_image", "b64_json": "aGk="}),
        ],
    )
    def test_of_a_sound_or_a_picture_cut_short_nobody_knows_the_price(self, endpoint, piece):
        for events in ([], [piece]):
            seen = played(events, endpoint=endpoint).observation()
            assert "usage_unknown" in seen.flags
            assert not seen.usage

    def test_a_session_adds_up_its_answers_and_keeps_the_last_running_total(self):
        answer = {"input_tokens": 10, "output_tokens": 4, "total_tokens": 14}
        events = [
            {"type": "session.usage.updated", "usage": {"seconds": 5}},
            {"type": "response.done", "response": {"id": "r1", "usage": answer}},
            {"type": "response.done", "response": {"id": "r2", "usage": answer}},
            {"type": "session.usage.updated", "usage": {"seconds": 12}},
        ]
        reader = played(events, endpoint="live")
        assert quantities(reader) == {"input": 20, "output": 8, "seconds_audio": 12}

    def test_an_assistants_run_ends_with_its_usage(self):
        done = {
            "event": "thread.run.completed",
            "data": {
                "id": "run_1",
                "object": "thread.run",
                "model": "gpt-4o",
                "status": "completed",
                "usage": counted(10, 2),
            },
        }
        reader = played([{"event": "thread.created", "data": {"id": "t"}}, done], endpoint="beta.threads.runs")
        assert quantities(reader) == {"input": 10, "output": 2}
        assert reader.observation().response_id == "run_1"

    def test_an_assistants_run_that_is_left_goes_on_and_is_billed_when_it_is_read(self):
        begun = {"event": "thread.run.in_progress", "data": {"id": "run_1", "object": "thread.run", "model": "gpt-4o"}}
        seen = played([begun], endpoint="beta.threads.runs").observation()
        assert (seen.response_id, seen.billable, seen.flags) == ("run_1", False, {"not_final"})
        assert played([], endpoint="beta.threads.runs").observation().flags == {"usage_unknown"}


class Event(dict):
    """A dict that can be watched."""


@pytest.mark.parametrize(
    ("endpoint", "event"),
    [
        ("chat.completions", chunk("hello")),
        ("responses", {"type": "response.output_text.delta", "delta": "hello"}),
        ("responses", CREATED),
        ("messages", words("hello")),
        ("messages", start()),
    ],
)
def test_events_are_not_kept(endpoint, event):
    """A long stream costs no memory."""
    reader = played([], endpoint=endpoint)
    watched = Event(event)
    gone = weakref.ref(watched)
    reader.feed(watched)
    del watched
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("provider", "endpoint", "events"),
    [
        (
            "anthropic",
            "messages",
            [
                {"type": "message_start", "message": {"id": "m", "model": "c", "usage": {"input_tokens": 9}}},
                {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Hi"}},
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}},
                {"type": "message_stop"},
            ],
        ),
        (
            "openai",
            "responses",
            [
                {"type": "response.created", "response": {"id": "m", "status": "in_progress"}},
                {
                    "type": "response.completed",
                    "response": {"id": "m", "model": "c", "usage": {"input_tokens": 9, "output_tokens": 4}},
                },
            ],
        ),
        (
            "openai",
            "chat.completions",
            [
                {"object": "chat.completion.chunk", "id": "m", "model": "c", "choices": [{"delta": {"content": "Hi"}}]},
                {
                    "object": "chat.completion.chunk",
                    "id": "m",
                    "model": "c",
                    "choices": [],
                    "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
                },
            ],
        ),
    ],
)
def test_all_events_of_a_stream_are_one_answer_by_hand(provider, endpoint, events):
    """Each was a body of its own: one without usage was unknown, and a message's sides were two calls."""
    seen = observe(events, provider=provider, endpoint=endpoint)
    assert [dict(group.usage.quantities) for group in seen.consumptions] == [{"input": 9, "output": 4}]
    assert (seen.response_id, seen.consumptions[0].model, "usage_unknown" in seen.flags) == ("m", "c", False)


_SAID = {"prompt_tokens": 9, "completion_tokens": 4}


def _chunk(kind="chat.completion.chunk", name="m", **rest):
    return {"object": kind, "id": name, "model": "c", **rest}


def _told(name, used, kind="response.completed"):
    return {"type": kind, "response": {"id": name, "model": "c", "usage": used}}


_USED = {"input_tokens": 9, "output_tokens": 4}
_SPOKEN = {"type": "tokens", **_USED, "input_token_details": {"text_tokens": 9, "audio_tokens": 0}}
_CREATED = {"type": "response.created", "response": {"id": "m", "status": "in_progress"}}
_STEP = {"event_type": "step.delta", "delta": {"type": "text", "text": "Hi"}}
_INTERACTION = {
    "id": "m",
    "model": "c",
    "status": "completed",
    "usage": {"total_input_tokens": 9, "total_output_tokens": 4},
}


def _ended(name):
    return {"event_type": "interaction.completed", "interaction": {**_INTERACTION, "id": name}}


@pytest.mark.parametrize(
    ("provider", "endpoint", "events", "answers"),
    [
        ("openai", "responses", [_CREATED, _told("m", _USED), _CREATED, _told("n", _USED)], 2),
        ("openai", "responses", [_CREATED, _told("m", _USED), _told("n", _USED)], 2),
        ("google", "interactions.get", [_STEP, *map(_ended, "mn")], 2),
        ("openai", "responses", [{"type": "response.output_text.delta", "delta": "Hi"}, _told("m", _USED)], 1),
        (
            "openai",
            "realtime.connect",
            [
                {"type": "session.created", "session": {"id": "s"}},
                *(_CREATED, _told("m", _USED, "response.done"), _CREATED, _told("n", _USED, "response.done")),
            ],
            2,
        ),
        (
            "openai",
            "audio.transcriptions",
            [
                {"type": "transcript.text.delta", "delta": "Hi"},
                {"type": "transcript.text.done", "usage": _SPOKEN},
            ],
            1,
        ),
        (
            "openai",
            "chat.completions",
            [
                _chunk(name=name, **rest)
                for name in "mn"
                for rest in (
                    {"choices": [{"index": 0, "delta": {"content": "Hi"}}]},
                    {"choices": [], "usage": _SAID},
                )
            ],
            2,
        ),
        (
            "openai",
            "chat.completions",
            [
                {"type": "chunk", "chunk": _chunk(choices=[{"index": 0, "delta": {"content": "Hi"}}])},
                {"type": "content.delta", "delta": "Hi", "snapshot": "Hi"},
                {"type": "chunk", "chunk": _chunk(choices=[], usage=_SAID)},
            ],
            1,
        ),
        (
            "openai",
            "completions",
            [
                _chunk("text_completion", name, choices=choices, usage=used)
                for name in "mn"
                for choices, used in (([{"text": "Hi"}], None), ([], _SAID))
            ],
            2,
        ),
        ("openai", "completions", [_chunk("text_completion", None, choices=[{"text": "Hi"}], usage=_SAID)] * 2, 2),
        (
            "google",
            "interactions.create",
            [
                {"event_type": "interaction.created", "interaction": {"id": "m", "status": "in_progress"}},
                *(_STEP, {"event_type": "interaction.completed", "interaction": _INTERACTION}),
            ],
            1,
        ),
        (
            "google",
            "interactions.get",
            [_STEP, _STEP, {"event_type": "interaction.completed", "interaction": _INTERACTION}],
            1,
        ),
    ],
)
def test_streams_in_one_list_are_an_answer_each_wherever_they_begin(provider, endpoint, events, answers):
    seen = observe(events, provider=provider, endpoint=endpoint, model="c", final_only=True)
    assert [dict(group.usage.quantities) for group in seen.consumptions] == [{"input": 9, "output": 4}] * answers
    assert (seen.billable, seen.flags) == (True, frozenset())


def test_a_whole_answer_behind_a_stream_in_one_list_is_not_lost():
    events = [_CREATED, _told("m", _USED), {"object": "response", "id": "n", "model": "c", "usage": _USED}]
    seen = observe(events, provider="openai", endpoint="responses")
    assert [dict(one.usage.quantities) for one in seen.consumptions if one.usage] == [{"input": 9, "output": 4}] * 2


def test_a_batch_itself_is_no_bill_by_hand():
    """Its results are; it was an unpriced call beside them."""
    batch = {"type": "message_batch", "id": "b", "processing_status": "ended", "request_counts": {"succeeded": 2}}
    seen = observe(batch, provider="anthropic", endpoint="messages.batches.retrieve")
    assert (seen.billable, seen.flags) == (False, {"not_final"})
