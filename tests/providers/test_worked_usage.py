"""What was done took a prompt and an answer: a side of 0 that cannot be was not said, whoever worked and wherever."""

from __future__ import annotations

from decimal import Decimal

import pytest

import tokenmeter
from tokenmeter.providers import observe

#: What a usage object says of finished work, and whether that can be.
HALVES = {
    "no prompt": {"input_tokens": 0, "output_tokens": 20, "total_tokens": 20},
    "no answer": {"input_tokens": 20, "output_tokens": 0, "total_tokens": 20},
    "one side": {"input_tokens": 20},
    "a negative": {"input_tokens": 20, "output_tokens": -1},
    "nothing": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0},
}
WHOLE = {"input_tokens": 20, "output_tokens": 7, "total_tokens": 27}


def batch(usage):
    body = {"object": "batch", "id": "b", "status": "completed", "model": "gpt-5.4", "request_counts": {"completed": 1}}
    return {**body, "endpoint": "/v1/chat/completions", "usage": usage}


def response(usage, **item):
    drawn = {"type": "image_generation_call", "id": "ig", "status": "completed", "result": "x", **item}
    return {
        "object": "response",
        "id": "r",
        "status": "completed",
        "model": "gpt-5.4",
        "output": [drawn],
        "tools": [{"type": "image_generation", "model": "gpt-image-1.5"}],
        "usage": {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100},
        **({"tool_usage": {"image_gen": usage}} if usage is not None else {}),
    }


def session(kind, usage):
    return {"type": kind, "id": "d", "status": "completed", "model": "claude-opus-4-5", "usage": usage}


WORK = {
    "batch": ("openai", "batches", batch),
    "run": (
        "openai",
        "beta.threads.runs",
        lambda usage: {"object": "thread.run", "id": "r", "status": "completed", "model": "gpt-4o", "usage": usage},
    ),
    "turn": (
        "openai",
        "beta.agents.sessions",
        lambda usage: {"object": "agent.session.turn", "id": "t", "status": "completed", "usage": usage},
    ),
    "evaluation": (
        "openai",
        "evals.runs",
        lambda usage: {
            "object": "eval.run",
            "id": "e",
            "status": "completed",
            "per_model_usage": [{**usage, "model_name": "gpt-5.4", "invocation_count": 1}],
        },
    ),
    "grader": (
        "openai",
        "fine_tuning.alpha.graders.run",
        lambda usage: {"model_grader_token_usage_per_model": {"gpt-5.4": usage}},
    ),
    "dream": ("anthropic", "beta.dreams", lambda usage: session("dream", usage)),
    "the image tool": ("openai", "responses", response),
    "an author of pictures": (
        "openai",
        "responses",
        lambda usage: response(None, svg_usage={**usage, "model": "gpt-5.4"}),
    ),
    "an author of a picture": (
        "openai",
        "images.generate",
        lambda usage: {
            "data": [{"b64_json": "x"}],
            "usage": {"input_tokens": 10, "output_tokens": 100, "total_tokens": 110},
            "svg_usage": {**usage, "model": "gpt-5.4"},
        },
    ),
}


@pytest.mark.parametrize("usage", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize(("provider", "endpoint", "body"), WORK.values(), ids=WORK)
def test_a_side_of_finished_work_is_no_zero(provider, endpoint, body, usage):
    rating = tokenmeter.price(body(usage), provider=provider, endpoint=endpoint, model="gpt-image-1.5")
    assert rating.cost_source == "unpriced"
    assert "usage_unknown" in rating.flags


@pytest.mark.parametrize(("provider", "endpoint", "body"), WORK.values(), ids=WORK)
def test_work_whose_sides_are_stated_has_its_price(provider, endpoint, body):
    model = "gpt-5.4" if endpoint.startswith("beta.agents") else "gpt-image-1.5"
    rating = tokenmeter.price(body(WHOLE), provider=provider, endpoint=endpoint, model=model)
    assert rating.cost_source in {"computed", "estimated"}
    assert "usage_unknown" not in rating.flags


def test_a_batch_of_embeddings_has_no_answer_in_tokens():
    body = {**batch({"input_tokens": 500, "output_tokens": 0, "total_tokens": 500}), "model": "text-embedding-3-small"}
    rating = tokenmeter.price({**body, "endpoint": "/v1/embeddings"}, provider="openai", endpoint="batches")
    assert (rating.cost_source, rating.list_cost) == ("computed", Decimal("0.000005"))  # 500 x 0.02 / 2 per million


def test_work_that_ended_before_it_began_costs_nothing():
    nothing = HALVES["nothing"]
    run = {"object": "thread.run", "id": "r", "status": "expired", "model": "gpt-4o", "usage": nothing}
    assert tokenmeter.price(run, provider="openai", endpoint="beta.threads.runs").list_cost == 0
    asleep = {**session("dream", nothing), "status": "canceled"}
    assert tokenmeter.price(asleep, provider="anthropic", endpoint="beta.dreams").list_cost == 0


@pytest.mark.parametrize(
    ("provider", "endpoint", "body"),
    [
        ("openai", "chat.completions", {"usage": {"prompt_tokens": 0, "completion_tokens": 20, "total_tokens": 20}}),
        ("openai", "responses", {"object": "response", "usage": {"input_tokens": 0, "output_tokens": 20}}),
        ("anthropic", "messages", {"type": "message", "usage": {"input_tokens": 0, "output_tokens": 20}}),
        ("google", "models.generate_content", {"usageMetadata": {"promptTokenCount": 0, "candidatesTokenCount": 20}}),
        ("aws", "converse", {"usage": {"inputTokens": 0, "outputTokens": 20, "totalTokens": 20}}),
        ("openai", "somewhere/else", {"usage": {"input_tokens": 0, "output_tokens": 20}}),
        ("openai", "somewhere/else", {"usage": {"output_tokens": 20}}),
        ("openai", "realtime", {"type": "response.done", "response": {"usage": HALVES["no prompt"]}}),
        ("anthropic", "beta.sessions", {**session("session", HALVES["no prompt"]), "status": "idle"}),
        ("anthropic", "beta.sessions.events", {"type": "span.model_request_end", "model_usage": HALVES["no prompt"]}),
    ],
)
def test_nothing_is_answered_to_no_prompt(provider, endpoint, body):
    rating = tokenmeter.price(body, provider=provider, endpoint=endpoint, model="gpt-5.4")
    assert rating.cost_source == "unpriced"
    assert "usage_unknown" in rating.flags


def test_a_prompt_that_a_cache_served_is_one():
    usage = {"input_tokens": 0, "cache_read_input_tokens": 900, "output_tokens": 20}
    seen = observe(session("session", usage), provider="anthropic", endpoint="beta.sessions")
    assert "usage_unknown" not in seen.flags
    assert dict(seen.usage.quantities) == {"cache_read": 900, "output": 20}


# -- the image tool's prompt


@pytest.mark.parametrize(
    ("action", "details", "quantities", "doubts"),
    [
        ("generate", None, {"input": 50, "output_image": 1000}, set()),
        ("edit", None, {"input_image": 50, "output_image": 1000}, {"estimated"}),
        ("auto", None, {"input": 50, "output_image": 1000}, {"estimated"}),
        (None, None, {"input": 50, "output_image": 1000}, {"estimated"}),
        ("edit", {"text_tokens": 20}, {"input": 20, "input_image": 30, "output_image": 1000}, {"estimated"}),
        (
            "edit",
            {"text_tokens": 20, "image_tokens": 30},
            {"input": 20, "input_image": 30, "output_image": 1000},
            set(),
        ),
        (None, {"text_tokens": 50, "image_tokens": 0}, {"input": 50, "output_image": 1000}, set()),
    ],
)
def test_what_the_image_tool_was_given_is_words_where_it_made_and_a_picture_where_it_edited(
    action, details, quantities, doubts
):
    usage = {"input_tokens": 50, "output_tokens": 1000, "total_tokens": 1050}
    usage |= {} if details is None else {"input_tokens_details": details}
    seen = observe(
        response(usage, **({} if action is None else {"action": action})), provider="openai", endpoint="responses"
    )
    assert dict(seen.consumptions[1].usage.quantities) == quantities
    assert seen.flags == doubts


def test_a_picture_with_no_svg_is_a_picture_though_the_field_is_there():
    seen = observe(response(None, svg_usage=None), provider="openai", endpoint="responses")
    assert seen.flags == {"tool_usage_unknown", "usage_unknown"}


# -- lines of a batch do not say where they would have been asked


def line(body):
    return [{"id": "b1", "custom_id": "1", "response": {"status_code": 200, "body": body}}]


PICTURES = {"created": 1, "data": [{"b64_json": "x"}], "usage": {"input_tokens": 50, "output_tokens": 1000}}


def test_pictures_of_a_batch_are_pictures():
    body = {**batch({**PICTURES["usage"], "total_tokens": 1050}), "model": "gpt-image-1.5"}
    whole = {**body, "endpoint": "/v1/images/generations"}
    for one in (line(PICTURES), whole):
        rating = tokenmeter.price(one, provider="openai", endpoint="batches", model="gpt-image-1.5")
        assert rating.list_cost == Decimal("0.016125")  # 50 x 5 / 2 + 1,000 x 32 / 2 per million


def test_moderations_of_a_batch_are_free():
    checked = {"id": "m", "model": "omni-moderation-latest", "results": [{"flagged": False}]}
    whole = {**batch(HALVES["nothing"]), "endpoint": "/v1/moderations", "model": "omni-moderation-latest"}
    for one in (line(checked), whole):
        assert tokenmeter.price(one, provider="openai", endpoint="batches").cost_source == "none"


# -- what connectors put into the prompt of a conversation


@pytest.mark.parametrize(
    ("usage", "flags"),
    [
        ({"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 150}, set()),
        ({"prompt_tokens": 0, "completion_tokens": 20, "total_tokens": 150}, {"total_mismatch"}),
        ({"completion_tokens": 20, "total_tokens": 150}, set()),
        ({"prompt_tokens": 100, "total_tokens": 150}, set()),
        ({"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 10}, {"total_mismatch"}),
    ],
)
def test_a_side_of_a_conversation_follows_from_its_total_less_what_connectors_brought(usage, flags):
    body = {"object": "conversation.response", "outputs": [], "usage": {**usage, "connector_tokens": 30}}
    seen = observe(body, provider="mistral", endpoint="conversations.start")
    assert dict(seen.usage.quantities) == {"input": 130, "output": 20}
    assert seen.flags == flags
