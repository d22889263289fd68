"""A prompt is held at the rate of being written to a cache only as far as its request has it written to one."""

from datetime import UTC, datetime
from types import MappingProxyType

import pytest

from tokenmeter.budgets.bounds import Ceilings, bound, longest_prompt
from tokenmeter.call import Call
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.providers.base import Endpoint
from tokenmeter.providers.registry import dialect
from tokenmeter.usage import Consumption, Observation, Usage

NOW = datetime(2026, 11, 26, tzinfo=UTC)
PRICER = Pricer(PriceList.load())
MINUTES, HOUR = {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}
CALLS_OWN = {"name": "f", "input_schema": {"type": "object"}}


def text(**more):
    return {"type": "text", "text": "Hello " * 20, **more}


def ask(*parts, **body):
    return {"model": "claude-sonnet-4-5", "max_tokens": 10, "messages": [{"role": "user", "content": [*parts]}], **body}


def hold(body, provider="anthropic"):
    """What is held for a request, and its model's rate for a token of the prompt."""
    facts = dialect("anthropic").request_facts(Endpoint("messages", "chat"), body)
    call = Call(provider=provider, endpoint="messages", operation="chat", facts=facts)
    longest = longest_prompt(provider, facts, PRICER.terms)
    ceiling = Ceilings().of(call, NOW, PRICER, prompt_tokens=longest)
    return bound(call, ceiling), ceiling


def bill(meter, tokens, answer=10, provider="anthropic", model="claude-sonnet-4-5"):
    seen = Consumption(model=model, usage=Usage({meter: tokens, "output": answer}))
    return PRICER.rate(Observation(consumptions=(seen,)), provider=provider, endpoint="messages", at=NOW).billed_cost


@pytest.mark.parametrize(
    ("body", "dearest"),
    [
        (ask(text()), "input"),
        (ask(text(), tools=[CALLS_OWN]), "input"),
        (ask(text(cache_control=None)), "input"),
        (ask({"type": "tool_use", "id": "t", "name": "f", "input": {"cache_control": HOUR}}), "input"),
        (ask(text(cache_control=MINUTES)), "cache_write_5m"),
        (ask(text(cache_control={**MINUTES, "ttl": "5m"})), "cache_write_5m"),
        (ask(text(), cache_control=MINUTES), "cache_write_5m"),
        (ask(text(), system=[text(cache_control=MINUTES)]), "cache_write_5m"),
        (ask(text(cache_control=HOUR)), "cache_write_1h"),
        (ask(text(cache_control=MINUTES), system=[text(cache_control=HOUR)]), "cache_write_1h"),
        (ask(text(), cache_control=HOUR), "cache_write_1h"),
        (ask(text(), tools=[CALLS_OWN | {"cache_control": HOUR}]), "cache_write_1h"),
        (
            ask({"type": "tool_result", "tool_use_id": "t", "content": [text(cache_control=HOUR)]}),
            "cache_write_1h",
        ),
        (ask(text(cache_control={**MINUTES, "ttl": "of tomorrow"})), "cache_write_1h"),
        (ask(text(cache_control=MappingProxyType(HOUR))), "cache_write_1h"),
    ],
)
def test_a_prompt_is_held_as_it_is_marked(body, dearest):
    held, _ = hold(body)
    assert held.cost == bill(dearest, held.input_tokens)


def test_what_cannot_be_looked_into_may_be_marked():
    """Messages that can be read once, and earlier turns that the provider keeps."""
    once = ask(text()) | {"messages": iter([{"role": "user", "content": [text(cache_control=HOUR)]}])}
    for body in (once, ask(text(), thread={"id": "t"})):
        held, _ = hold(body)
        assert held.cost >= bill("cache_write_1h", held.input_tokens)


def test_hosts_of_which_nobody_knows_whether_they_wait_for_a_mark_are_held_at_the_dearest():
    """Claude is held as it is marked wherever it is known to be served so."""
    for provider, model in (("aws", "anthropic.claude-sonnet-4-5-20250929-v1:0"), ("google", "claude-sonnet-4-5")):
        marked, plain = (
            hold(ask(part) | {"model": model}, provider)[1].input for part in (text(cache_control=HOUR), text())
        )
        assert plain < marked
    marked, plain = (
        hold(ask(part) | {"model": "anthropic/claude-sonnet-4.5"}, "openrouter")[1].input
        for part in (text(cache_control=HOUR), text())
    )
    assert plain == marked


def test_the_prompt_that_tools_bring_is_held_where_anything_may_bring_it():
    plain = ask(text())
    facts = dialect("anthropic").request_facts(Endpoint("messages", "chat"), plain)
    assert hold(plain)[0].input_tokens == facts.input_bytes + 32
    for more in ({"tools": [CALLS_OWN]}, {"thinking": {"type": "adaptive"}}, {"output_config": {}}, {"unheard_of": 1}):
        facts = dialect("anthropic").request_facts(Endpoint("messages", "chat"), plain | more)
        assert hold(plain | more)[0].input_tokens == facts.input_bytes + 850
    added = ask({"type": "tool_addition", "tool": {"definition": CALLS_OWN}})
    facts = dialect("anthropic").request_facts(Endpoint("messages", "chat"), added)
    assert hold(added)[0].input_tokens == facts.input_bytes + 850
