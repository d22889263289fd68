"""Calls by hand: recorded like any other, held before they leave, and nothing at all while tokenmeter is off."""

from __future__ import annotations

import asyncio
import inspect
import json
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from decimal import Decimal

import openai
import pytest

import tokenmeter
from tokenmeter import (
    Attribution,
    Budget,
    BudgetExceededError,
    ConfigurationError,
    PricingError,
    RequestTooLargeError,
)
from tokenmeter.api import Meter
from tokenmeter.capture import batches
from tokenmeter.importing import import_usage
from tokenmeter.ledger import utcnow
from tokenmeter.reports.focus_rows import cost_rows
from tokenmeter.reports.rated import Tally

CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-5-mini",
    "choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
}
HERE = {"provider": "openai", "endpoint": "chat.completions"}


@pytest.fixture(params=["memory", "sqlite"])
def meter(request, fresh_url, budgets):
    made = tokenmeter.make_meter(store=fresh_url(request.param), config={}, budgets=budgets)
    yield made
    made.close()


@pytest.fixture
def budgets(request):
    """None; ``with_budget`` gives one."""
    return [request.param] if hasattr(request, "param") else []


def with_budget(**fields):
    return pytest.mark.parametrize("budgets", [Budget(**fields)], indirect=True, ids=["capped"])


BODY = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 200}


class TestRecord:
    def test_a_response_is_priced_attributed_and_counted_in_its_block(self, meter):
        with tokenmeter.attribute(member="ada", route="/ask") as scope:
            entry = meter.record(CHAT, **HERE, model="gpt-5-mini", api_key="sk-0123456789abcdef")
        assert entry == next(iter(meter.entries()))
        assert entry.attribution == Attribution(member="ada", route="/ask")
        assert (entry.operation, entry.endpoint, entry.request_model) == ("chat", "chat.completions", "gpt-5-mini")
        assert (entry.response_id, entry.usage.input_tokens, entry.usage.output_tokens) == ("chatcmpl-1", 1000, 100)
        assert entry.billed_cost == meter.price(CHAT, **HERE).billed_cost == scope.billed_cost
        assert entry.api_key.last4 == "cdef"
        assert entry.latency_us is None
        assert scope.requests == 1
        assert meter.verify().ok

    def test_once_per_response_id_whoever_records_it(self, meter):
        assert meter.record(CHAT, **HERE) is not None
        assert meter.record(CHAT, **HERE) is None
        usage = CHAT["usage"]
        assert meter.record(usage, **HERE, model="gpt-5-mini", response_id="chatcmpl-1") is None
        assert meter.record(usage, **HERE, model="gpt-5-mini", response_id="chatcmpl-2") is not None
        assert meter.record({**CHAT, "id": "chatcmpl-1"}, **{**HERE, "provider": "azure"}) is not None
        assert len(list(meter.entries())) == 3

    @pytest.mark.parametrize("end", ["\ud83d", "\0"], ids=["half a character", "NUL"])
    def test_an_id_that_not_every_database_holds_is_recorded_once_and_found(self, meter, end):
        body = {**CHAT, "id": f"chatcmpl-{end}"}
        assert meter.record(body, **HERE) is not None
        assert meter.record(body, **HERE) is None
        assert meter.report(where={"response_id": body["id"]}).totals.requests == 1
        assert len(list(meter.entries(where={"response_id": body["id"]}))) == 1

    @pytest.mark.parametrize("provider", ["openai", "anthropic", "google"])
    def test_lines_of_several_batches_have_the_same_name_and_each_its_bill(self, meter, provider):
        def line(number):
            if provider == "openai":
                body = {**CHAT, "id": f"chatcmpl-{number}"}
                return {"custom_id": "request-1", "response": {"status_code": 200, "body": body}}
            if provider == "anthropic":
                usage = {"input_tokens": 10, "output_tokens": 3}
                message = {"id": f"msg_{number}", "type": "message", "model": "claude-haiku-4-5", "usage": usage}
                return {"custom_id": "request-1", "result": {"type": "succeeded", "message": message}}
            usage = {"promptTokenCount": 10, "candidatesTokenCount": 3, "totalTokenCount": 13}
            answer = {"responseId": f"r-{number}", "modelVersion": "gemini-2.5-flash", "usageMetadata": usage}
            return {"key": "request-1", "response": answer}

        endpoint = {"openai": "batches", "anthropic": "messages.batches.results", "google": "batches"}[provider]
        here = {"provider": provider, "endpoint": endpoint}
        assert [meter.record(line(number), **here) is not None for number in (1, 2, 1)] == [True, True, False]

    @pytest.mark.parametrize(
        ("here", "early", "late"),
        [
            (
                {"provider": "openai", "endpoint": "responses"},
                {"id": "resp_1", "object": "response", "status": "queued", "model": "gpt-5-mini"},
                {"status": "completed", "usage": {"input_tokens": 100, "output_tokens": 9, "total_tokens": 109}},
            ),
            (
                {"provider": "openai", "endpoint": "batches"},
                {"id": "batch_1", "object": "batch", "status": "in_progress", "request_counts": {"completed": 1}},
                {"status": "completed", "usage": {"input_tokens": 100, "output_tokens": 9, "total_tokens": 109}},
            ),
            (
                {"provider": "google", "endpoint": "models.generate_videos", "model": "veo-3.0-generate-001"},
                {"name": "models/veo-3.0-generate-001/operations/1", "done": False},
                {"done": True, "response": {"generateVideoResponse": {"generatedSamples": [{"video": {}}]}}},
            ),
        ],
    )
    def test_what_is_under_way_shuts_no_bill_out(self, meter, here, early, late):
        assert meter.record(early, **here) is None
        assert meter.record({**early, **late}, **here) is not None
        assert len(list(meter.entries())) == 1

    def test_answers_in_a_list_are_recorded_each_and_once_also_beside_one_that_is_under_way(self, meter):
        here = {"provider": "openai", "endpoint": "responses"}
        queued = {"id": "resp_1", "object": "response", "status": "queued", "model": "gpt-5-mini"}
        usage = {"input_tokens": 100, "output_tokens": 9, "total_tokens": 109}
        one, two = ({**queued, "id": name, "status": "completed", "usage": usage} for name in ("resp_1", "resp_2"))
        assert meter.record([two, queued], **here).response_id == "resp_2"
        assert meter.record([queued, one, two], **here).response_id == "resp_1"
        assert meter.record([two, one], **here) is None
        streams = [
            {"type": f"response.{end}", "response": {**one, "id": name}}
            for name in "ab"
            for end in ("created", "completed")
        ]
        assert meter.record(streams, **here).response_id == "b"
        assert [entry.usage["input"] for entry in meter.entries()] == [100] * 4

    def test_what_has_not_ended_says_so_once(self, meter, caplog):
        here = {"provider": "openai", "endpoint": "beta.threads.runs"}
        run = {"id": "run_1", "object": "thread.run", "status": "in_progress", "model": "gpt-4o", "usage": None}
        page = {"data": [run, {**run, "id": "run_2"}], "has_more": False}
        assert [meter.record(body, **here) for body in (run, page, {"event": "thread.run.queued", "data": run})] == [
            None
        ] * 3
        assert [row.getMessage().split(",")[0] for row in caplog.records] == [
            f"tokenmeter: 'run_{number}' is not recorded" for number in (1, 2)
        ]
        assert meter.record({**run, "status": "completed"}, **here).flags == ("usage_unknown",)
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        done = {"event": "thread.run.completed", "data": {**run, "status": "completed", "usage": usage}}
        assert meter.record([{"event": "thread.run.created", "data": run}, done], **here).usage["input"] == 100
        assert (meter.report().totals.requests, meter.report().totals.usage.input_tokens) == (1, 100)

    @pytest.mark.parametrize(
        ("endpoint", "part", "whole"),
        [
            (
                "beta.sessions",
                {"type": "session_thread", "usage": {"input_tokens": 9, "output_tokens": 1}},
                "its session",
            ),
            ("beta.threads.runs", {"object": "thread.run.step", "usage": {"prompt_tokens": 9}}, "its run"),
            ("evals.runs", {"object": "eval.run.output_item", "sample": {"usage": CHAT["usage"]}}, "its run"),
            ("beta.agents.sessions", {"object": "agent.session", "usage": {"input_tokens": 9}}, "its turns"),
        ],
    )
    def test_what_is_in_another_usage_is_refused(self, meter, tmp_path, endpoint, part, whole):
        here = {"provider": "anthropic" if "type" in part else "openai", "endpoint": endpoint}
        with pytest.raises(ConfigurationError, match=f"record {whole} in its place"):
            meter.record({"data": [{"id": "part_1", **part}], "has_more": False}, **here)
        (tmp_path / "log.jsonl").write_text(json.dumps({"id": "part_1", **part, "created_at": 1790000000}))
        (left_out,) = import_usage(meter, tmp_path / "log.jsonl", **here).left_out
        assert f"import {whole} in its place" in str(left_out)
        assert not list(meter.entries())

    @with_budget(limit_usd=1)
    @pytest.mark.parametrize("as_page", [False, True])
    def test_each_answer_in_a_list_is_recorded_in_a_hold_which_ends_with_the_last(self, meter, as_page):
        queued = {"id": "resp_1", "object": "response", "status": "queued", "model": "gpt-5-mini"}
        usage = {"input_tokens": 100, "output_tokens": 9, "total_tokens": 109}
        answers = [{**queued, "id": name, "status": "completed", "usage": usage} for name in "ab"]
        body = {"data": [*answers, queued], "has_more": False} if as_page else [*answers, queued]
        with meter.hold(provider="openai", endpoint="responses", request=BODY) as held:
            assert held.record(body).response_id == held.entry.response_id == "b"
            assert meter.remaining()[0].reserved == 0
        with meter.hold(provider="openai", endpoint="responses", request=BODY) as held:
            assert held.record(answers) is None
            assert meter.remaining()[0].reserved == 0
        assert [(entry.response_id, entry.usage["input"]) for entry in meter.entries()] == [("a", 100), ("b", 100)]
        assert meter.audit_budgets() == ()

    @with_budget(limit_requests=1)
    def test_what_is_under_way_stays_held(self, meter):
        queued = {"id": "resp_1", "object": "response", "status": "queued", "model": "gpt-5-mini"}
        usage = {"input_tokens": 100, "output_tokens": 9, "total_tokens": 109}
        with meter.hold(provider="openai", endpoint="responses", request=BODY) as held:
            assert held.record(queued) is None
            with pytest.raises(BudgetExceededError), meter.hold(provider="openai", endpoint="responses", request=BODY):
                pass
            assert held.record({**queued, "status": "completed", "usage": usage}) is not None

    def test_a_container_is_billed_once_over_all_responses_that_name_it(self, meter):
        call = {"type": "code_interpreter_call", "id": "ci", "status": "completed", "container_id": "cntr_1"}
        usage = {"input_tokens": 10, "output_tokens": 1, "total_tokens": 11}
        body = {"object": "response", "created_at": 1765368000, "model": "gpt-5-nano", "status": "completed"}
        for number in range(2):
            answer = {**body, "id": f"resp_{number}", "output": [call], "usage": usage}
            assert meter.record(answer, provider="openai", endpoint="responses") is not None
        assert sum(entry.usage["container_sessions"] for entry in meter.entries()) == 1
        assert sum(entry.usage["input"] for entry in meter.entries()) == 20

    def test_a_batch_that_says_later_what_it_used_is_priced_once(self, meter):
        batch = {"id": "batch_1", "object": "batch", "status": "completed", "endpoint": "/v1/chat/completions"}
        body = {**batch, "output_file_id": "file-1", "model": "gpt-5-mini", "created_at": 1795000000}
        body["request_counts"] = {"total": 2, "completed": 2, "failed": 0}
        used = {"input_tokens": 300, "output_tokens": 20, "total_tokens": 320}
        said = [meter.record({**body, "usage": usage}, provider="openai", endpoint="batches.retrieve")
                for usage in (None, None, used, used)]  # fmt: skip
        assert [one is not None for one in said] == [True, False, True, False]
        totals = meter.report().totals
        # (300 x 0.25 + 20 x 2) / 1000000, half of it for a batch
        assert (totals.list_cost, totals.unpriced) == (Decimal("0.0000575"), 0)
        assert_one_request(meter)

    #: Two lines at half the price: (200 x 0.25 + 20 x 2) / 1000000 / 2
    TWO_LINES = Decimal("0.000045")

    @staticmethod
    def batch(tokens):
        used = {"input_tokens": tokens, "output_tokens": tokens // 10, "total_tokens": tokens + tokens // 10}
        done = {"request_counts": {"total": 2, "completed": 2, "failed": 0}, "output_file_id": f"file-{tokens}"}
        body = {"id": f"batch_{tokens}", "object": "batch", "status": "completed", "model": "gpt-5-mini"}
        return {**body, **done, "endpoint": "/v1/chat/completions", "usage": used}

    @staticmethod
    def line(number, tokens=100):
        usage = {"prompt_tokens": tokens, "completion_tokens": tokens // 10, "total_tokens": tokens + tokens // 10}
        body = {**CHAT, "id": f"chatcmpl-{number}", "model": "gpt-5-mini-2025-08-07", "usage": usage}
        return {"id": f"batch_req_{number}", "custom_id": "one", "response": {"status_code": 200, "body": body}}

    @pytest.mark.parametrize("budgets", [[Budget(limit_usd=1), Budget(limit_tokens=1000, name="tokens")]])
    @pytest.mark.parametrize("total_at", [0, 1, 2])
    def test_a_batch_and_all_its_lines_are_billed_once_in_whatever_order(self, meter, total_at, caplog):
        bodies = [self.line(1), self.line(2)]
        bodies.insert(total_at, self.batch(200))
        for _ in range(2):
            for body in bodies:
                meter.record(body, provider="openai", endpoint="batches")
        totals = meter.report().totals
        assert (totals.list_cost, totals.requests, totals.usage.total_tokens) == (self.TWO_LINES, 2, 220)
        assert [one.spent for one in meter.remaining()] == [self.TWO_LINES, 220]
        assert meter.audit_budgets() == ()
        assert meter.verify().ok
        assert "batch_200" in caplog.text

    def test_lines_that_may_be_of_a_recorded_batch_say_so_in_entries_and_log(self, meter, caplog):
        assert meter.record(self.batch(500), provider="openai", endpoint="batches").flags == ()
        lines = [meter.record(self.line(number), provider="openai", endpoint="batches") for number in (1, 2)]
        assert [one.flags for one in lines] == [("batch_overlap",)] * 2
        assert caplog.text.count("it is billed twice") == 1, "once per batch"
        assert meter.record(self.line(3, tokens=600), provider="openai", endpoint="batches").flags == (), "too large"

    def test_a_batch_that_may_hold_recorded_lines_says_so(self, meter, caplog):
        meter.record(self.line(1), provider="openai", endpoint="batches")
        assert meter.record(self.batch(500), provider="openai", endpoint="batches").flags == ("batch_overlap",)
        assert "batch_500" in caplog.text

    def test_lines_of_a_batch_read_no_lines_before_them(self, meter, monkeypatch):
        monkeypatch.setattr(batches, "_HOLDS", 3600)
        read, entries = [], meter.store.entries

        def counted(*which, **order):
            for one in entries(*which, **order):
                read.append(one)
                yield one

        monkeypatch.setattr(meter.store, "entries", counted)
        for number in range(30):
            assert meter.record(self.line(number), provider="openai", endpoint="batches") is not None
        assert not read

    def test_a_batch_that_another_program_records_among_its_lines_is_seen_by_the_next_look(self, meter, monkeypatch):
        monkeypatch.setattr(batches, "_HOLDS", 0)
        monkeypatch.setattr(batches, "_TIMES", 0)
        meter.record(self.line(1), provider="openai", endpoint="batches")
        other = Meter(store=meter.store, pricer=meter.pricer)
        assert other.record(self.batch(200), provider="openai", endpoint="batches").flags == ("batch_overlap",)
        meter.record(self.line(2), provider="openai", endpoint="batches")
        totals = meter.report().totals
        assert (totals.list_cost, totals.requests, totals.usage.total_tokens) == (self.TWO_LINES, 2, 220)

    def test_the_answers_that_a_batch_has_with_it_are_each_recorded_once(self, meter):
        usage = {"promptTokenCount": 1000, "candidatesTokenCount": 100, "totalTokenCount": 1100}
        answers = [{"responseId": f"r-{n}", "modelVersion": "gemini-2.5-flash", "usageMetadata": usage} for n in (1, 2)]
        job = {"name": "batches/1", "state": "JOB_STATE_SUCCEEDED", "model": "models/gemini-2.5-flash"}
        job["dest"] = {"inlinedResponses": [{"response": answer} for answer in answers]}
        here = {"provider": "google", "endpoint": "batches.get"}
        assert meter.record(job, **here).response_id == "r-2"
        assert meter.record(job, **here) is None
        assert meter.record(answers[0], provider="google", endpoint="models.generate_content") is None
        # 2 x (1000 x 0.30 + 100 x 2.50) / 1000000, half of it for a batch
        assert meter.report().totals.list_cost == Decimal("0.00055") == meter.price(job, **here).list_cost
        assert meter.report().totals.requests == 2

    @pytest.mark.parametrize("budgets", [[Budget(limit_requests=10)]])
    def test_a_container_costs_and_is_no_request(self, meter):
        call = {"type": "code_interpreter_call", "id": "ci", "status": "completed", "container_id": "cntr_1"}
        usage = {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}
        body = {"object": "response", "created_at": int(utcnow().timestamp()) - 3000, "model": "gpt-5-nano"}
        with tokenmeter.attribute() as scope:
            for number in range(3):
                answer = {**body, "id": f"resp_{number}", "output": [call], "usage": usage, "status": "completed"}
                assert meter.record(answer, provider="openai", endpoint="responses") is not None
        assert (scope.requests, scope.list_cost) == (3, Decimal("0.03027"))
        self.assert_three_requests(meter, cost="0.03027")
        # Nor is what it cost in truth, which takes the place of what was assumed: five minutes x 0.03 / 20.
        life = {"created_at": body["created_at"], "last_active_at": body["created_at"] + 60, "memory_limit": "1g"}
        found = {"id": "cntr_1", "object": "container", "status": "expired", **life}
        assert meter.record(found, provider="openai", endpoint="containers.retrieve") is not None
        self.assert_three_requests(meter, cost="0.00777")

    def assert_three_requests(self, meter, *, cost):
        seen = meter.report(latency=True)
        assert (seen.totals.requests, seen.totals.list_cost) == (3, Decimal(cost))
        assert meter.remaining()[0].spent == 3
        assert sum(row.requests for row in cost_rows(meter.entries(), "UTC")) == 3, "in FOCUS"
        assert Tally.of(meter.entries()).requests == 3, "in a closed period"
        assert meter.verify().ok

    def test_a_container_that_says_how_long_it_lived_replaces_what_was_assumed(self, meter):
        call = {"type": "code_interpreter_call", "id": "ci", "status": "completed", "container_id": "cntr_1"}
        usage = {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}
        answer = {"object": "response", "id": "resp_1", "model": "gpt-5", "status": "completed", "usage": usage}
        tools = [{"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "4g"}}]
        born = int(utcnow().timestamp()) - 3000
        body = {**answer, "created_at": born, "output": [call], "tools": tools}
        assert (
            meter.record(body, provider="openai", endpoint="responses", attribution=Attribution(member="ada"))
            is not None
        )
        life = {"id": "cntr_1", "object": "container", "created_at": born, "last_active_at": born + 390}
        found = {**life, "memory_limit": "4g", "status": "running"}
        where = {"provider": "openai", "endpoint": "containers.retrieve"}
        assert meter.record(found, **where) is None, "it lives on"
        assert meter.record({**found, "status": "expired"}, **where).attribution.member == "ada"
        assert meter.record({**found, "status": "expired"}, **where) is None
        # 1000 x 1.25 / 1000000 + 100 x 10 / 1000000 + 7 minutes x 0.12 / 20
        assert meter.report().totals.list_cost == Decimal("0.04425")

    def test_what_a_held_call_leaves_unsaid_is_estimated_from_its_request(self, meter):
        request = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Tell me of the sea. " * 50}]}
        with meter.hold(**HERE, request=request, max_output_tokens=100) as held:
            entry = held.record({**CHAT, "usage": None})
        assert entry.cost_source == "estimated"
        assert entry.usage["input"] > 200

    def test_usage_without_an_id_is_a_bill_each_time(self, meter):
        for _ in range(2):
            assert meter.record({"input_tokens": 10, "output_tokens": 1}, provider="anthropic", endpoint="messages",
                                model="claude-sonnet-5").list_cost == Decimal("0.00003")  # fmt: skip
        assert len(list(meter.entries())) == 2

    def test_at_decides_the_prices_and_the_period(self, meter):
        entry = meter.record(CHAT, **HERE, at="2026-03-04T05:06:07Z", attribution=Attribution(member="ada"))
        assert entry.occurred_at.isoformat() == "2026-03-04T05:06:07+00:00"
        assert meter.report("member", period="2026-03").totals.requests == 1

    def test_a_clock_that_is_years_behind_keeps_no_call_from_being_recorded(self, meter, monkeypatch):
        monkeypatch.setattr(meter.store, "now", lambda: datetime(2012, 1, 14, tzinfo=UTC))
        assert meter.record(CHAT, **HERE).occurred_at.year == 2012

    def test_what_an_unknown_host_says_is_kept_and_unpriced(self, meter):
        entry = meter.record({"id": "x", "nothing": "known"}, provider="acme", endpoint="answers.create")
        assert (entry.cost_source, entry.list_cost) == ("unpriced", None)

    @with_budget(member="*", limit_requests=1, name="one")
    def test_budgets_count_it_and_stop_the_next_call(self, meter):
        with tokenmeter.attribute(member="ada"):
            meter.record(CHAT, **HERE)
            with pytest.raises(BudgetExceededError), meter.hold(**HERE, model="gpt-5-mini", max_output_tokens=10):
                pytest.fail("made the call")

    @pytest.mark.parametrize("body", [None, 7, "", "no JSON", {}, [], object()])
    def test_what_is_no_response_is_refused_with_the_mend(self, meter, body):
        with pytest.raises(PricingError, match="pass what the SDK returned"):
            meter.record(body, **HERE)
        assert list(meter.entries()) == []

    @pytest.mark.parametrize("wrong", [{"provider": ""}, {"endpoint": None}, {"at": "yesterday"}])
    def test_wrong_arguments_are_refused(self, meter, wrong):
        with pytest.raises(ConfigurationError):
            meter.record(CHAT, **{**HERE, **wrong})


class TestHold:
    @with_budget(limit_usd=1, name="one")
    def test_what_the_call_may_cost_is_held_until_it_is_recorded(self, meter):
        with meter.hold(**HERE, request=BODY) as held:
            assert meter.remaining()[0].reserved > 0
            entry = held.record(CHAT)
        assert held.entry == entry
        assert entry.request_model == "gpt-5-mini"
        assert entry.latency_us is not None
        left = meter.remaining()[0]
        assert left.reserved == 0
        assert left.spent == entry.billed_cost
        assert meter.verify().ok

    @with_budget(limit_usd=1, name="one")
    def test_a_block_without_a_record_frees_the_hold(self, meter):
        with meter.hold(**HERE, model="gpt-5-mini", input_tokens=1000, max_output_tokens=100):
            pass
        assert meter.remaining()[0].reserved == 0
        assert list(meter.entries()) == []

    @with_budget(limit_usd=1, name="one")
    def test_a_block_that_raises_is_a_failed_call_whose_bill_is_unknown(self, meter):
        with pytest.raises(TimeoutError), meter.hold(**HERE, request=BODY) as held:
            raise TimeoutError
        assert held.entry.status == "timeout"
        assert held.entry.error_type == "TimeoutError"
        assert "billing_unknown" in held.entry.flags
        assert meter.remaining()[0].reserved == 0

    def test_a_block_that_a_signal_handler_ends_is_aborted(self, meter):
        def tell(_signal, _frame):
            raise TimeoutError("the job's own limit")

        before = signal.signal(signal.SIGUSR1, tell)
        try:
            with pytest.raises(TimeoutError), meter.hold(**HERE, request=BODY) as held:
                signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert held.entry.status == "aborted"

    @with_budget(limit_usd="0.0001", name="small")
    def test_a_cap_stops_it_before_it_is_made(self, meter):
        with pytest.raises(BudgetExceededError), meter.hold(**HERE, request=BODY):
            pytest.fail("made the call")

    def test_no_output_cap_is_held_that_nobody_puts_into_what_is_sent(self):
        budget = tokenmeter.Budget(limit_usd="0.01", inject_max_tokens=True)
        meter = tokenmeter.make_meter(store="memory:", budgets=[budget], config={})
        with pytest.raises(RequestTooLargeError), meter.hold(**HERE, model="gpt-5", input_tokens=100):
            pytest.fail(f"let in with {meter.remaining()[0].reserved}")
        meter.close()

    def test_a_hold_is_for_one_call(self, meter):
        held = meter.hold(**HERE, request=BODY)
        with pytest.raises(ConfigurationError, match="inside"):
            held.record(CHAT)
        with held:
            held.record(CHAT)
            with pytest.raises(ConfigurationError, match="once"):
                held.record(CHAT)
        with pytest.raises(ConfigurationError, match="one call"), held:
            pass

    @pytest.mark.parametrize("wrong", [{"input_tokens": -1}, {"max_output_tokens": 1.5}, {"input_tokens": True}])
    def test_wrong_numbers_are_refused(self, meter, wrong):
        with pytest.raises(ConfigurationError, match="number of tokens"):
            meter.hold(**HERE, **wrong)

    @with_budget(limit_usd=1, name="one")
    async def test_on_an_event_loop(self, meter):
        async with meter.hold(**HERE, request=BODY) as held:
            await held.arecord(CHAT)
        assert meter.remaining()[0].spent == held.entry.billed_cost

    @with_budget(limit_usd=1, name="one")
    async def test_a_cancelled_task_leaves_no_hold_behind(self, meter):
        async def call():
            async with meter.hold(**HERE, request=BODY):
                await asyncio.sleep(3600)

        for ticks in range(4):
            task = asyncio.create_task(call())
            for _ in range(ticks):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        while meter.remaining()[0].reserved:  # noqa: ASYNC110 - a thread of its own frees it
            await asyncio.sleep(0.01)


class TestSwitchedOff:
    @pytest.fixture(autouse=True)
    def off(self, monkeypatch, tmp_path):
        monkeypatch.setenv("TOKENMETER_DISABLED", "1")
        monkeypatch.setenv("TOKENMETER_STORE", f"sqlite:///{tmp_path}/ledger.db")
        tokenmeter.reset()
        yield
        tokenmeter.reset()
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_recorded_or_held(self):
        assert tokenmeter.record(CHAT, **HERE) is None
        with tokenmeter.hold(**HERE, request=BODY) as held:
            assert held.record(CHAT) is None


class TestAsynchronousVerbs:
    @pytest.fixture(autouse=True)
    def default(self, tmp_path):
        tokenmeter.reset()
        tokenmeter.configure(
            store=f"sqlite:///{tmp_path}/ledger.db", config={}, budgets=[Budget(limit_requests=5, name="five")]
        )
        yield
        tokenmeter.reset()

    async def test_they_do_their_work_once_where_no_thread_can_be_had(self, monkeypatch):
        def refuse(thread):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            entry = await tokenmeter.arecord(CHAT, **HERE)
            with pytest.raises(ConfigurationError, match="provider"):
                await tokenmeter.arecord(CHAT, provider="", endpoint="chat.completions")
        await asyncio.to_thread(int)  # what waited for a thread is begun before it
        assert list(tokenmeter.entries()) == [entry]

    async def test_they_read_what_the_others_read(self):
        entry = await tokenmeter.arecord(CHAT, **HERE)
        assert [found async for found in tokenmeter.aentries()] == [entry] == list(tokenmeter.entries())
        assert (await tokenmeter.areport("model")).totals == tokenmeter.report("model").totals
        assert await tokenmeter.aremaining() == tokenmeter.remaining()
        assert (await tokenmeter.averify()).ok
        assert await tokenmeter.aflush() == 0

    async def test_entries_may_be_left_early_and_read_by_many(self):
        for number in range(3):
            tokenmeter.record({**CHAT, "id": f"chatcmpl-{number}"}, **HERE)

        async def first():
            async for entry in tokenmeter.aentries():
                return entry.response_id
            return None

        assert await asyncio.gather(*(first() for _ in range(5))) == ["chatcmpl-0"] * 5

    async def test_wrong_arguments_are_refused_as_ever(self):
        with pytest.raises(ConfigurationError):
            await tokenmeter.areport("nonsense")
        with pytest.raises(ConfigurationError):
            async for _ in tokenmeter.aentries(period="nonsense"):
                pass

    def test_they_wait_in_trios_loop_as_in_asyncios(self):
        trio = pytest.importorskip("trio", reason="needs trio")

        async def use():
            with tokenmeter.attribute(member="ada"):
                async with tokenmeter.hold(**HERE, request=BODY) as held:
                    entry = await held.arecord(CHAT)
            assert entry.attribution.member == "ada"
            assert [found async for found in tokenmeter.aentries()] == [entry]
            with pytest.raises(ConfigurationError):
                await tokenmeter.areport("nonsense")
            with trio.CancelScope() as given_up:
                given_up.cancel()
                await tokenmeter.arecord({**CHAT, "id": "chatcmpl-2"}, **HERE)
            assert (await tokenmeter.areport("model")).totals.requests == 2  # what writes ends

        trio.run(use)

    def test_their_names_tell_what_they_are(self):
        assert tokenmeter.areport.__name__ == "areport"
        assert "tokenmeter.report" in tokenmeter.areport.__doc__
        assert inspect.iscoroutinefunction(tokenmeter.averify)


def test_a_meter_of_ones_own_has_the_verbs():
    assert Meter.record
    assert Meter.hold


def _in_one_container(name):
    return {
        "object": "response",
        "id": name,
        "status": "completed",
        "model": "gpt-5-nano",
        "created_at": 1765368000,
        "output": [{"type": "code_interpreter_call", "id": name, "status": "completed", "container_id": "cntr_5"}],
        "usage": {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100},
        "tools": [{"type": "code_interpreter", "container": "cntr_5"}],
    }


def test_a_container_is_billed_once_over_responses_that_are_recorded_or_imported(tmp_path):
    meter = tokenmeter.make_meter(store=f"sqlite:///{tmp_path / 'ledger.db'}")
    at = "2025-12-10T12:00Z"
    for name in ("resp_a", "resp_b"):
        meter.record(_in_one_container(name), provider="openai", endpoint="responses", at=at)
    kept = tmp_path / "kept.jsonl"
    kept.write_text("".join(json.dumps(_in_one_container(name)) + "\n" for name in ("resp_b", "resp_c")))
    import_usage(meter, [kept])
    # 3 x 1000 x 0.05 / 1000000 + 3 x 100 x 0.40 / 1000000 + one session 0.03
    assert meter.report().totals.list_cost == Decimal("0.03027")
    meter.close()


@pytest.mark.parametrize("budgets", [[Budget(limit_requests=10)]])
def test_a_response_with_an_endless_id_is_recorded_and_counted_once(meter):
    recorded = [meter.record({**CHAT, "id": None}, response_id="x" * 2000, **HERE) for _ in range(2)]
    assert [one is not None for one in recorded] == [True, False]
    assert (meter.report().totals.requests, meter.remaining()[0].spent) == (1, 1)


def assert_one_request(meter):
    """All that is recorded is one call that went well, with its time told once; in every way of counting."""
    for by in ([], ["sku_meter"], ["end_user"]):
        seen = meter.report(by).rows
        assert max(row.requests for row in seen) == 1
        assert [sum(getattr(row, name) for row in seen) for name in ("errors", "estimated", "unpriced")] == [0, 0, 0]
    assert (meter.report().totals.requests, Tally.of(meter.entries()).requests) == (1, 1)
    assert (Tally.of(meter.entries()).estimated, Tally.of(meter.entries()).unpriced) == (0, 0)
    assert sum(row.requests for row in cost_rows(meter.entries(), "UTC")) == 1, "in FOCUS"
    assert sum(entry.requests for entry in meter.entries()) == 1
    assert sum(entry.latency_us is not None for entry in meter.entries()) <= 1


class TestAnswersOfMeteredClients:
    ASK = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hi"}]}  # noqa: RUF012

    @pytest.fixture
    def client(self, fake_provider, meter):
        with tokenmeter.OpenAI(base_url=fake_provider.openai_url, api_key="sk-by-hand-0001") as client:
            yield tokenmeter.wrap(client, meter)

    def test_are_not_recorded_a_second_time(self, client, meter):
        answers = [client.chat.completions.create(**self.ASK) for _ in range(2)]  # the general way, and by a plan
        *_, last = client.chat.completions.create(**self.ASK, stream=True)
        kept = list(meter.entries())
        assert len(kept) == 3
        for answer in (*answers, answers[0].model_dump(), answers[1].model_dump_json()):
            assert meter.record(answer, **HERE) is None
        assert meter.record(answers[0].usage, **HERE, response_id=last.id) is None
        with meter.hold(**HERE, request=self.ASK) as held:
            assert held.record(answers[0]) is None
        assert list(meter.entries()) == kept
        other = answers[0].model_copy(update={"id": "chatcmpl-elsewhere"})
        assert meter.record(other, **HERE) is not None

    def test_of_another_process_on_the_ledger_neither(self, client, meter, tmp_path, fresh_url):
        answer = client.chat.completions.create(**self.ASK)
        if not meter.store.url.startswith("sqlite"):
            pytest.skip("one process has it")
        script = (
            "import json, sys, tokenmeter\n"
            "meter = tokenmeter.make_meter(store=sys.argv[1], config={})\n"
            "print(meter.record(json.loads(sys.argv[2]), provider='openai', endpoint='chat.completions'))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, meter.store.url, answer.model_dump_json()],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "None"
        assert len(list(meter.entries())) == 1

    def test_are_looked_for_around_the_moment_that_the_answer_names(self, client, meter):
        answer = client.chat.completions.create(**self.ASK)
        text = answer.model_dump_json()
        line = {"custom_id": "request-1", "response": {"status_code": 200, "body": answer.model_dump()}}
        for form in (answer, text, text.encode(), line):
            assert meter.record(form, **HERE, at="2026-01-02") is None
        long_ago = {**answer.model_dump(), "created": 1_700_000_000}
        assert meter.record(long_ago, **HERE) is not None  # an id that came back years later is another answer

    @pytest.mark.parametrize("recorded", ["after", "before", "before, by another program", "some of them before"])
    def test_lines_of_a_batch_are_recorded_once_by_hand_and_by_who_reads_their_file(
        self, client, meter, fake_provider, recorded
    ):
        rows = [{"custom_id": n, "method": "POST", "url": "/v1/chat/completions", "body": self.ASK} for n in "abcd"]
        plain = openai.OpenAI(base_url=fake_provider.openai_url, api_key="sk-plain-0001")
        given = plain.files.create(file=("in", "\n".join(map(json.dumps, rows)).encode()), purpose="batch")
        asked = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = plain.batches.create(input_file_id=given.id, **asked)
        file = plain.batches.retrieve(batch.id).output_file_id
        lines = [json.loads(line) for line in plain.files.content(file).text.splitlines()]
        plain.close()
        for line in lines:  # the file is read long after
            line["response"]["body"]["created"] -= 20_000
        other = Meter(store=meter.store, pricer=meter.pricer)
        by_hand, first = (other if "program" in recorded else meter), recorded != "after"
        readers = [
            lambda: client.files.content(file),
            lambda: by_hand.record(lines[1::2] if "some" in recorded else lines, provider="openai", endpoint="batches"),
            lambda: client.batches.retrieve(batch.id),
        ]
        for read in (readers[1], readers[0], readers[2]) if first else readers:
            read()
        names = sorted(line["response"]["body"]["id"] for line in lines)
        assert sorted(entry.response_id for entry in meter.entries()) == names

    def test_lines_of_a_batch_that_failed_are_failed_calls(self, meter):
        refused = {"error": {"message": "no", "type": "invalid_request_error"}}
        line = {"id": "b", "custom_id": "b", "response": {"status_code": 400, "body": refused}, "error": None}
        assert meter.record(line, provider="openai", endpoint="batches").error_type == "invalid_request_error"
        here = {"provider": "anthropic", "endpoint": "messages.batches.results"}
        results = {"c": {"type": "errored", "error": {"type": "error", **refused}}, "d": {"type": "expired"}}
        failed = [meter.record({"custom_id": name, "result": result}, **here) for name, result in results.items()]
        assert [one.error_type for one in failed] == ["invalid_request_error", "expired"]
        assert (meter.report().totals.errors, meter.report().totals.list_cost) == (3, 0)

    @pytest.mark.parametrize("planned", [False, True])
    def test_recorded_by_hand_before_their_stream_has_ended_are_one_entry(self, client, meter, planned):
        if planned:
            for _ in range(2):
                list(client.chat.completions.create(**self.ASK, stream=True))
        before = len(list(meter.entries()))
        stream = client.chat.completions.create(**self.ASK, stream=True)
        first = next(stream)
        whole = {**CHAT, "id": first.id, "created": first.created}
        entry = meter.record(whole, **HERE)
        assert entry is not None
        list(stream)
        added = list(meter.entries())[before:]
        assert [one.entry_id for one in added] == [entry.entry_id]
        assert meter.verify().ok

    @pytest.mark.parametrize("endpoint", ["chat.completions", "responses"])
    def test_broken_off_are_replaced_by_the_whole_answer_on_the_same_account(self, client, meter, endpoint):
        with tokenmeter.attribute(member="ada"):
            if endpoint == "responses":
                stream = client.responses.create(model="gpt-5-mini", input="Hi", stream=True)
                made = next(stream).response
                whole = {
                    "object": "response",
                    "id": made.id,
                    "created_at": made.created_at,
                    "status": "completed",
                    "model": "gpt-5-mini",
                    "usage": {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100},
                }
            else:
                stream = client.chat.completions.create(**self.ASK, stream=True)
                first = next(stream)
                whole = {**CHAT, "id": first.id, "created": first.created}
            stream.close()
        (estimate,) = meter.entries()
        assert {"estimated", "usage_unknown", "billing_unknown"} & set(estimate.flags)
        entry = meter.record(whole, provider="openai", endpoint=endpoint)
        assert (entry.attribution.member, entry.occurred_at) == ("ada", estimate.occurred_at)
        assert meter.record(whole, provider="openai", endpoint=endpoint) is None
        totals = meter.report(where={"member": "ada"}).totals
        right = meter.price(whole, provider="openai", endpoint=endpoint).billed_cost
        assert (totals.usage.input_tokens, totals.usage.output_tokens, totals.billed_cost) == (1000, 100, right)
        assert_one_request(meter)
        assert meter.verify().ok

    def test_whose_process_ended_before_the_estimate_was_taken_back_are_put_right_when_recorded_again(
        self, client, meter, monkeypatch
    ):
        stream = client.chat.completions.create(**self.ASK, stream=True)
        first = next(stream)
        stream.close()
        whole = {**CHAT, "id": first.id, "created": first.created}
        with monkeypatch.context() as ended:
            ended.setattr(meter, "take_back", lambda estimate, call: None)
            meter.record(whole, **HERE)
        assert meter.report().totals.requests == 2
        for _ in range(2):
            assert meter.record(whole, **HERE) is None
        assert meter.report().totals.billed_cost == meter.price(whole, **HERE).billed_cost
        assert_one_request(meter)

    @pytest.mark.parametrize("budgets", [[Budget(limit_requests=10), Budget(limit_tokens=10**6, name="tokens")]])
    def test_broken_off_and_replaced_are_one_request_in_the_block_and_the_run_around(self, client, meter):
        with tokenmeter.attribute() as scope, tokenmeter.budget(limit_requests=5) as run:
            stream = client.chat.completions.create(**self.ASK, stream=True)
            first = next(stream)
            stream.close()
            whole = {**CHAT, "id": first.id, "created": first.created}
            entry = meter.record(whole, **HERE)
        assert entry.usage.total_tokens == 1100, "the whole answer, and not what it has more of"
        assert (scope.requests, scope.usage.total_tokens, scope.billed_cost) == (1, 1100, entry.billed_cost)
        assert run.remaining == 4
        assert [one.spent for one in meter.remaining()] == [1, 1100]
        assert meter.audit_budgets() == ()
        assert meter.reprice(changed=True) == []
        assert_one_request(meter)


OPENAI_401 = {"error": {"message": "Incorrect API key", "type": "invalid_request_error", "code": "invalid_api_key"}}
ANTHROPIC_401 = {"type": "error", "error": {"type": "authentication_error", "message": "invalid"}, "request_id": "r"}
GOOGLE_429 = {"error": {"code": 429, "message": "Quota", "status": "RESOURCE_EXHAUSTED"}}
SUCCESS = {**CHAT, "base_resp": {"status_code": 0, "status_msg": ""}}
MINIMAX_1008 = {
    "id": "1",
    "choices": None,
    "model": "MiniMax-M2",
    "usage": {"total_tokens": 0},
    "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"},
}


def _chunks(error, **more):
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "gpt-5-mini"}
    chunks = [{**chunk, "choices": [{"index": 0, "delta": {"content": "The sea"}, "finish_reason": None}]}]
    return [*chunks, *([{**chunk, "choices": [], **more}] if more else []), error]


def _response_events(last):
    opened = {"id": "resp_1", "object": "response", "model": "gpt-5-mini", "status": "in_progress", "output": []}
    words = {"type": "response.output_text.delta", "delta": "The sea", "output_index": 0, "content_index": 0}
    last = {**last, "response": {**opened, **last["response"]}} if "response" in last else last
    return [{"type": "response.created", "response": opened}, words, last]


_TOLD = {"id": "msg_1", "type": "message", "model": "claude-sonnet-4-5", "content": [], "usage": {"input_tokens": 25}}
_MESSAGE = [
    {"type": "message_start", "message": _TOLD},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "The sea"}},
]
_ENDING = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}
_OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
_PIECE = {"candidates": [{"content": {"parts": [{"text": "The sea"}]}}], "responseId": "g1"}
_COUNTED = {"usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 3, "totalTokenCount": 13}}
_LAST_PIECE = {"candidates": [{"content": {"parts": [{"text": "."}]}, "finishReason": "STOP"}], "responseId": "g1"}
_CONVERSED = [{"messageStart": {"role": "assistant"}}, {"contentBlockDelta": {"delta": {"text": "The sea"}}}]
_METADATA = {"metadata": {"usage": {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}}}
_COHERE = [
    {"type": "message-start", "id": "c1", "delta": {"message": {"role": "assistant"}}},
    {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "The sea"}}}},
]
_UNITS = {"usage": {"billed_units": {"input_tokens": 10, "output_tokens": 5}}}
_FAULT = {"error": {"message": "The server had an error", "type": "server_error"}}
_CHAT, _RESPONSES = ("openai", "chat.completions", "gpt-5-mini"), ("openai", "responses", "gpt-5-mini")
_CLAUDE, _GEMINI = (
    ("anthropic", "messages", "claude-sonnet-4-5"),
    ("google", "models.generate_content", "gemini-2.5-pro"),
)
_BEDROCK = ("bedrock", "converse_stream", "amazon.nova-pro-v1:0")
_RAW = ("bedrock", "invoke_model_with_response_stream", "anthropic.claude-sonnet-4-5-20250929-v1:0")
_COMMAND = ("cohere", "chat", "command-a-03-2025")
_GUESS, _NOBODY, _MORE = {"estimated"}, {"usage_unknown"}, {"estimated", "total_mismatch"}
#: What went wrong amid a stream: its events -> kind, tokens in and out, doubts, and where it was.
FAILED_STREAMS = {
    "a chat": (_chunks(_FAULT), "server_error", (0, 0), _NOBODY, _CHAT),
    "a chat that had said its usage": (_chunks(_FAULT, usage=CHAT["usage"]), "server_error", (1000, 100), set(), _CHAT),
    "a chat of another host's": (
        _chunks({"object": "error", "message": "capacity exceeded", "code": "3505"}),
        *("3505", (0, 0), _NOBODY, ("mistral", "chat.completions", "mistral-large-latest")),
    ),
    "a response by an event": (
        _response_events({"type": "error", "code": "server_error", "message": "no"}),
        *("server_error", (0, 0), _NOBODY, _RESPONSES),
    ),
    "a response that says so": (
        _response_events(
            {
                "type": "response.failed",
                "response": {"status": "failed", "usage": {"input_tokens": 9, "output_tokens": 2}},
            }
            | {"error": None}
        ),
        *("failed", (9, 2), set(), _RESPONSES),
    ),
    "Claude": ([*_MESSAGE, _OVERLOADED], "overloaded_error", (25, 2), _GUESS, _CLAUDE),
    "Claude, all but its last event": ([*_MESSAGE, _ENDING, _OVERLOADED], "overloaded_error", (25, 7), set(), _CLAUDE),
    "Gemini": ([{**_PIECE, **_COUNTED}, GOOGLE_429], "429", (10, 3), _GUESS, _GEMINI),
    "Gemini, in several chunks": ([_PIECE, {**_PIECE, **_COUNTED}, GOOGLE_429], "429", (10, 4), _MORE, _GEMINI),
    "Gemini, after its end": ([_PIECE, {**_LAST_PIECE, **_COUNTED}, GOOGLE_429], "429", (10, 3), set(), _GEMINI),
    "Gemini, counted beside it": ([_PIECE, {**GOOGLE_429, **_COUNTED}], "429", (10, 3), _GUESS, _GEMINI),
    "Gemini, uncounted": ([_PIECE, GOOGLE_429], "429", (0, 0), _NOBODY, _GEMINI),
    "Cohere": (
        [*_COHERE, {"type": "message-end", "delta": {"finish_reason": "ERROR", "error": "no", **_UNITS}}],
        *("ERROR", (10, 5), set(), _COMMAND),
    ),
    "Cohere, uncounted": (
        [*_COHERE, {"type": "message-end", "delta": {"finish_reason": "ERROR", "error": "no"}}],
        *("ERROR", (0, 0), _NOBODY, _COMMAND),
    ),
    **{
        f"Bedrock {kind}": ([*_CONVERSED, {kind: {"message": "no"}}], kind, (0, 0), _NOBODY, _BEDROCK)
        for kind in ("throttlingException", "modelStreamErrorException", "internalServerException")
    },
    "Bedrock, counted": (
        [*_CONVERSED, _METADATA, {"modelStreamErrorException": {"message": "no"}}],
        *("modelStreamErrorException", (10, 5), set(), _BEDROCK),
    ),
    "Bedrock's frames": (
        [
            *({"chunk": {"bytes": json.dumps(one).encode()}} for one in _MESSAGE),
            {"throttlingException": {"message": "no"}},
        ],
        *("throttlingException", (25, 2), _GUESS, _RAW),
    ),
}


def _total(answer):
    return {"usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": answer, "totalTokenCount": 10 + answer}}


_AS_ANSWER = {"provider": "google", "endpoint": "models.generate_content"}


class TestChunksOfGemini:
    """Each repeats the id of the answer and a running total."""

    STREAM = ({**_PIECE, **_total(1)}, {**_PIECE, **_total(4)}, {**_LAST_PIECE, **_total(7)})

    @staticmethod
    def named(name, events=STREAM):
        return [{key: value for key, value in {**one, "responseId": name}.items() if value} for one in events]

    @pytest.mark.parametrize("name", ["g1", None])
    @pytest.mark.parametrize("dumped", [False, True], ids=["wire", "SDK"])
    def test_are_one_answer_with_its_last_total(self, meter, name, dumped):
        chunks = self.named(name)
        if dumped:
            types = pytest.importorskip("google.genai.types")
            chunks = [types.GenerateContentResponse.model_validate(one) for one in chunks]
        entry = meter.record(chunks, **_AS_ANSWER, model="gemini-2.5-pro")
        assert [entry] == list(meter.entries())
        assert (dict(entry.usage.quantities), entry.flags) == ({"input": 10, "output": 7}, ())
        assert (entry.response_id, entry.cost_source) == (name, "computed")
        rating = meter.price(chunks, **_AS_ANSWER, model="gemini-2.5-pro")
        assert rating.list_cost == entry.list_cost

    @pytest.mark.parametrize("names", [("g1", "g2"), (None, None), ("g1", None)])
    def test_of_several_streams_are_an_answer_each(self, meter, names):
        events = [one for name in names for one in self.named(name)]
        meter.record(events, **_AS_ANSWER, model="gemini-2.5-pro")
        assert [one.usage.output_tokens for one in meter.entries()] == [7, 7]

    def test_of_candidates_that_end_one_after_the_other_are_one_answer(self, meter):
        first, _, last = self.named(None)
        other = [{**one, "candidates": [{**one["candidates"][0], "index": 1}]} for one in (first, last)]
        meter.record([first, last, *other], **_AS_ANSWER, model="gemini-2.5-pro")
        assert [one.usage.output_tokens for one in meter.entries()] == [7]

    def test_without_the_last_are_an_estimate_that_the_whole_answer_replaces(self, meter):
        entry = meter.record(self.STREAM[:2], **_AS_ANSWER, model="gemini-2.5-pro")
        assert (entry.cost_source, entry.usage.output_tokens) == ("estimated", 4)
        meter.record(self.STREAM, **_AS_ANSWER, model="gemini-2.5-pro")
        totals = meter.report().totals
        assert (totals.requests, totals.estimated, totals.usage.output_tokens) == (1, 0, 7)


class TestErrorBodies:
    @pytest.mark.parametrize(
        ("body", "kind", "here"),
        [
            (OPENAI_401, "invalid_api_key", HERE),
            (ANTHROPIC_401, "authentication_error", {"provider": "anthropic", "endpoint": "messages"}),
            (GOOGLE_429, "429", {"provider": "google", "endpoint": "models.generate_content"}),
            ([GOOGLE_429], "429", {"provider": "google", "endpoint": "models.generate_content"}),
            ({"error": "model not found"}, "error", {**HERE, "provider": "ollama"}),
            ({"object": "error", "message": "No such model", "code": 404}, "404", {**HERE, "provider": "vllm"}),
            ({"detail": "Not authenticated"}, "error", HERE),
            ({"message": "Unauthorized"}, "error", {**HERE, "provider": "mistral"}),
            ({"errors": [{"message": "bad", "code": "E7"}]}, "E7", HERE),
            (MINIMAX_1008, "1008", {**HERE, "provider": "minimax"}),
            ({"status_code": 401, "body": OPENAI_401}, "invalid_api_key", HERE),
            ({"status_code": 502, "body": {"html": "Bad Gateway"}}, "502", HERE),
        ],
        ids=str,
    )
    def test_are_failed_calls_that_cost_nothing(self, meter, body, kind, here):
        entry = meter.record(body, **here)
        assert (entry.status, entry.error_type, entry.cost_source) == ("error", kind, "none")
        assert (entry.usage.total_tokens, entry.billed_cost) == (0, None)
        assert "usage_unknown" not in entry.flags
        assert meter.report().totals.unpriced == 0

    @pytest.mark.parametrize("kind", [[{}], {"of": "x"}, 7])
    @pytest.mark.parametrize("name", ["object", "type"])
    def test_are_not_looked_for_in_what_is_no_text(self, meter, name, kind):
        assert meter.record({**CHAT, name: kind}, **HERE).billed_cost == meter.price(CHAT, **HERE).billed_cost

    def test_beside_usage_are_charged_all_the_same(self, meter):
        broken = {**CHAT, "error": {"code": 502, "message": "upstream"}}
        entry = meter.record(broken, **HERE)
        assert (entry.status, entry.error_type) == ("error", "502")
        assert entry.billed_cost == meter.price(CHAT, **HERE).billed_cost

    def test_beside_an_answer_without_usage_leave_its_cost_unknown(self, meter):
        broken = {**CHAT, "usage": None, "error": {"code": 502, "message": "upstream"}}
        entry = meter.record(broken, **HERE)
        assert (entry.status, entry.cost_source) == ("error", "unpriced")

    @pytest.mark.parametrize(
        "body", [{"text": "Hello", "usage": {"type": "duration", "seconds": 3}}, CHAT["usage"], SUCCESS]
    )
    def test_what_is_no_error_is_not_taken_for_one(self, meter, body):
        assert meter.record(body, **HERE, model="gpt-5-mini").status == "ok"

    @pytest.mark.parametrize("held", [lambda events: events, lambda events: {"stream": events}], ids=["list", "held"])
    @pytest.mark.parametrize(("events", "kind", "used", "doubts", "here"), FAILED_STREAMS.values(), ids=FAILED_STREAMS)
    def test_at_the_end_of_a_stream_are_failed_calls_with_what_was_said_until_then(
        self, meter, events, kind, used, doubts, here, held
    ):
        provider, endpoint, model = here
        entry = meter.record(held(events), provider=provider, endpoint=endpoint, model=model)
        assert (entry.status, entry.error_type) == ("error", kind)
        assert (entry.usage.input_tokens, entry.usage.output_tokens) == used
        assert {one for one in entry.flags if not one.startswith("assumed_usd=")} == doubts
        source = "unpriced" if "usage_unknown" in doubts else "estimated" if doubts else "computed"
        assert entry.cost_source == source
        assert len(list(meter.entries())) == 1
        assert meter.report().totals.errors == 1

    @pytest.mark.parametrize("held", [lambda events: events, lambda events: {"stream": events}], ids=["list", "held"])
    @pytest.mark.parametrize("event", [{"throttlingException": {"message": "slow down"}}, ANTHROPIC_401, GOOGLE_429])
    def test_alone_in_a_stream_are_refusals(self, meter, event, held):
        entry = meter.record(
            held([event]), provider="bedrock", endpoint="converse_stream", model="amazon.nova-pro-v1:0"
        )
        assert (entry.status, entry.cost_source, entry.usage.total_tokens) == ("error", "none", 0)

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_among_answers_of_their_own_are_none_of_theirs(self, meter, place):
        answers = [CHAT, {**CHAT, "id": "chatcmpl-2"}]
        entry = meter.record([*answers[:place], {"object": "error", "message": "no"}, *answers[place:]], **HERE)
        assert entry.status == ("error" if place == 2 else "ok")
        kinds = ["ok", "ok"]
        kinds.insert(place, "error")
        assert [one.status for one in meter.entries()] == kinds
        totals = meter.report().totals
        assert (totals.requests, totals.errors, totals.usage.input_tokens, totals.usage.output_tokens) == (
            3,
            1,
            2000,
            200,
        )

    @pytest.mark.parametrize(
        ("body", "here"),
        [
            (CHAT, HERE),
            (
                {**_TOLD, "usage": {"input_tokens": 25, "output_tokens": 7}},
                {"provider": "anthropic", "endpoint": "messages"},
            ),
        ],
        ids=["a chat", "a message"],
    )
    def test_behind_one_answer_that_is_no_event_are_none_of_its(self, meter, body, here):
        meter.record([body, ANTHROPIC_401], **here)
        assert [(one.status, one.cost_source) for one in meter.entries()] == [("ok", "computed"), ("error", "none")]

    def test_a_price_is_of_what_came_before(self, meter):
        events, _, _, _, (provider, endpoint, model) = FAILED_STREAMS["Claude, all but its last event"]
        whole = meter.price(events[:-1], provider=provider, endpoint=endpoint, model=model)
        assert meter.price(events, provider=provider, endpoint=endpoint, model=model) == whole
        assert whole.flags == frozenset()

    @with_budget(limit_usd=1)
    def test_free_what_was_held(self, meter):
        with meter.hold(**HERE, request=BODY) as held:
            assert held.record(OPENAI_401).status == "error"
        assert (meter.remaining()[0].spent, meter.remaining()[0].reserved) == (0, 0)


@pytest.mark.parametrize(
    ("model", "cost"),
    [
        ("global.anthropic.claude-sonnet-4-5-20250929-v1:0", "0.0045"),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "0.00495"),
        ("us-gov.anthropic.claude-sonnet-4-5-20250929-v1:0", "0.0054"),
        ("arn:aws:bedrock:us-east-1:1:provisioned-model/abc", "0"),
    ],
)
def test_what_the_request_says_of_its_profile_prices_an_answer_that_does_not_also_later(meter, model, cost):
    body = {"id": "m", "type": "message", "model": "claude-sonnet-4-5-20250929", "content": [{"text": "Hi"}]}
    body["usage"] = {"input_tokens": 1000, "output_tokens": 100}
    assert meter.record(body, provider="bedrock", endpoint="messages", model=model).list_cost == Decimal(cost)
    assert meter.reprice(changed=True) == []


class TestRunningTotals:
    HERE = {"provider": "anthropic", "endpoint": "beta.sessions"}  # noqa: RUF012

    @staticmethod
    def session(tokens):
        usage = {"input_tokens": tokens, "output_tokens": tokens // 10}
        return {"id": "sesn_1", "type": "session", "agent": {"model": {"id": "claude-sonnet-5"}}, "usage": usage}

    def test_are_recorded_by_what_is_new(self, meter):
        grown = [meter.record(self.session(tokens), **self.HERE) for tokens in (1000, 1000, 5000, 7000)]
        assert [None if one is None else one.usage.input_tokens for one in grown] == [1000, None, 4000, 2000]
        totals = meter.report().totals
        assert (totals.usage.input_tokens, totals.usage.output_tokens) == (7000, 700)
        assert meter.verify().ok

    @pytest.mark.parametrize("budgets", [[Budget(limit_requests=10), Budget(limit_tokens=10**6, name="tokens")]])
    @pytest.mark.parametrize("readings", [(7000,), (1000, 5000, 7000)])
    def test_are_one_request_however_often_they_are_read(self, meter, readings):
        with tokenmeter.attribute() as scope:
            for tokens in readings:
                meter.record(self.session(tokens), **self.HERE)
        assert (scope.requests, scope.usage.total_tokens) == (1, 7700)
        assert_one_request(meter)
        totals = meter.report().totals
        # 7000 x 2 + 700 x 10 dollars per million
        assert (totals.usage.total_tokens, totals.list_cost) == (7700, Decimal("0.021"))
        rows = list(cost_rows(meter.entries(), "UTC"))
        assert sum(row.costs.list_cost for row in rows) == totals.list_cost
        assert {row.key.kind for row in rows} == {"usage"}
        assert [one.spent for one in meter.remaining()] == [1, 7700]
        assert meter.audit_budgets() == ()
        assert meter.reprice(changed=True) == []
        assert meter.verify().ok

    def test_events_count_as_a_client_that_reads_them_counts(self, meter):
        """Each was a session of its own, and a list of them the sum of all: 480 tokens of 200."""
        usage = [{"input_tokens": n, "output_tokens": 0} for n in (100, 130, 50, 200)]
        counts = {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
        step, total = {"type": "span.model_request_end"}, {"type": "session.usage"}
        said = [
            {**total, "usage": one} if n % 2 else {**step, "model_usage": one | counts} for n, one in enumerate(usage)
        ]
        events = [{**one, "id": f"sevt_{n}", "processed_at": f"2026-11-01T12:0{n}:00Z"} for n, one in enumerate(said)]
        here = {"provider": "anthropic", "endpoint": "beta.sessions.events.list", "model": "claude-sonnet-5"}
        page = [{"id": "sevt_9", "type": "user.message", "content": []}, *events]
        with pytest.raises(ConfigurationError, match="response_id=, the session's id"):
            meter.record(events, **here)
        with pytest.raises(PricingError, match="pass what the SDK returned"):
            meter.record([], **here)
        for body in (page, {"data": page, "next_page": None}, *events):
            meter.record(body, **here, response_id="sesn_1")
        assert meter.record(page, **{**here, "endpoint": "beta.sessions.events"}, response_id="sesn_1") is None
        assert [one.usage["input"] for one in meter.entries()] == [100, 30, 50, 20]
        assert meter.record(self.session(250), **self.HERE).usage["input"] == 50

    @with_budget(limit_usd=1, unbounded="expected")
    @pytest.mark.parametrize("endpoint", ["beta.sessions", "beta.sessions.events.list"])
    def test_events_in_a_hold_count_as_they_count_outside(self, meter, endpoint):
        """The list was the sum of all, 480 tokens of 200, and the page nothing."""
        events = [
            {"id": f"sevt_{n}", "type": "session.usage", "processed_at": f"2026-11-01T12:0{n}:00Z"}
            | {"usage": {"input_tokens": tokens, "output_tokens": 0}}
            for n, tokens in enumerate((100, 180, 200))
        ]
        page = {"data": [{"id": "sevt_9", "type": "user.message", "content": []}, *events], "next_page": None}
        for body in (events[:2], page, page["data"]):
            here = {"provider": "anthropic", "endpoint": endpoint, "model": "claude-sonnet-5"}
            with meter.hold(**here, input_tokens=1000, max_output_tokens=10) as held:
                held.record(body, response_id="sesn_1")
                assert meter.remaining()[0].reserved == 0
        assert [one.usage["input"] for one in meter.entries()] == [100, 80, 20]
        assert meter.audit_budgets() == ()

    @with_budget(limit_usd=5, unbounded="expected")
    def test_free_what_was_held_where_nothing_is_new(self, meter):
        meter.record(self.session(1000), **self.HERE)
        with meter.hold(**self.HERE, model="claude-sonnet-5", input_tokens=1000, max_output_tokens=10) as held:
            assert held.record(self.session(1000)) is None
            assert meter.remaining()[0].reserved == 0


class TestOnWhoseAccount:
    """A mapping of its fields is an attribution wherever one is given, and what is none is told by its name."""

    def test_a_mapping_is_taken(self, meter):
        ada = {"member": "ada", "tags": {"env": "prod"}}
        entry = meter.record(CHAT, **HERE, attribution=ada)
        assert (entry.attribution.member, entry.attribution.tags["env"]) == ("ada", "prod")
        with meter.hold(model="gpt-5-mini", max_output_tokens=10, **HERE, attribution=ada) as held:
            assert held.record({**CHAT, "id": "another"}).attribution.member == "ada"
        assert meter.price(CHAT, **HERE, attribution=ada).billed_cost == entry.billed_cost
        assert tokenmeter.to_headers(attribution=ada) == {"baggage": "tokenmeter.member=ada,tokenmeter.tag.env=prod"}

    @pytest.mark.parametrize("given", [{"membr": "ada"}, "ada", 5, ["ada"]], ids=str)
    def test_what_is_none_is_a_wrong_setting(self, meter, given):
        with pytest.raises(tokenmeter.ConfigurationError, match="attribution"):
            meter.record(CHAT, **HERE, attribution=given)
        with pytest.raises(tokenmeter.ConfigurationError, match="attribution"):
            meter.price(CHAT, **HERE, attribution=given)
        assert not list(meter.store.entries())


EMBEDDED = {
    "predictions": [{"embeddings": {"values": [0.1], "statistics": {"token_count": 700}}}],
    "metadata": {"billableCharacterCount": 2400},
}
BY_CHARACTER = {"provider": "vertex", "endpoint": "models.embed_content", "model": "my-vectors"}


class TestNamesThatTheSettingsMap:
    """A model that is sold by the character is so under the user's name for it, too."""

    @pytest.fixture
    def meter(self):
        maps = {"vertex": {"my-vectors": "text-embedding-005"}}
        made = tokenmeter.make_meter(store="memory:", config={"models": maps})
        yield made
        made.close()

    def test_recorded(self, meter):
        entry = meter.record(EMBEDDED, **BY_CHARACTER)
        assert dict(entry.usage.quantities) == {"characters": 2400}
        assert entry.request_model == "my-vectors"
        by_its_own_name = meter.price(EMBEDDED, **(BY_CHARACTER | {"model": "text-embedding-005"}))
        assert entry.list_cost == by_its_own_name.list_cost > 0

    def test_held(self, meter):
        with meter.hold(**BY_CHARACTER) as held:
            entry = held.record(EMBEDDED)
        assert dict(entry.usage.quantities) == {"characters": 2400}

    def test_priced(self, meter):
        rating = meter.price(EMBEDDED, **BY_CHARACTER)
        assert [(charge.sku_meter, charge.quantity) for charge in rating.charges] == [("characters", 2400)]
