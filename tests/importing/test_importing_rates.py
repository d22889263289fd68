"""The quick way in which an import rates plain calls says what the general way says, of every model and mode."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

import tokenmeter
from tokenmeter.attribution import NOBODY, Attribution
from tokenmeter.importing.call import ImportedCall
from tokenmeter.importing.entries import _observation as observation_of
from tokenmeter.importing.entries import rate_plainly

ADA = Attribution(member="ada")
MULTIPLIERS = {"multipliers": [{"member": "ada", "multiplier": "1.1"}, {"model": "gpt-5", "multiplier": "0.333333333"}]}
SHAPES = (
    {"input": 1000, "output": 50},
    {"input": 1, "cache_read": 300_000, "cache_write_5m": 7, "cache_write_1h": 9, "output": 3},
    {"input": 250_000, "output": 1},
    {"input": 3, "web_searches": 2},
    {"seconds_audio": 60, "characters": 12, "images": 1},
    {"requests": 1},
    {"output": 10**14},
)
MODES = (
    {},
    {"processing": "batch"},
    {"service_tier": "priority"},
    {"service_tier": "flex"},
    {"speed": "fast"},
    {"geo": "us"},
    {"service_tier": "no-such-tier"},
)


@pytest.mark.parametrize("settings", [{}, MULTIPLIERS], ids=["list prices", "multipliers"])
def test_plain_calls_are_rated_as_by_the_general_way(settings):
    meter = tokenmeter.make_meter(store="memory:", config=settings)
    pricer, quick = meter.pricer, 0
    listed = sorted({(row.provider, row.model) for row in pricer.price_list.rows})
    asked = [("openai", "gpt-5"), ("anthropic", "claude-opus-4-1"), ("openai", "no-such-model"), *listed[::9]]
    for place, (provider, model) in enumerate(asked):
        for number, (shape, mode) in enumerate((shape, mode) for shape in SHAPES for mode in MODES):
            call = ImportedCall(
                where="a:1",
                id="x",
                provider=provider,
                model=model,
                at=datetime(2026, 1 + (place + number) % 11, 7, 13, 30, tzinfo=UTC),
                endpoint="messages" if provider == "anthropic" else "chat.completions",
                quantities=dict(shape),
                **mode,
            )
            who = ADA if number % 2 else NOBODY
            found = rate_plainly(pricer, call, who)
            if found is not None:
                quick += 1
                assert found == pricer.rate(
                    observation_of(call), provider=provider, endpoint=call.endpoint, at=call.at, attribution=who
                )
    meter.close()
    assert quick > len(asked)


def test_a_rate_finer_than_a_picodollar_goes_the_general_way():
    config = {"multipliers": [{"model": "gpt-5", "multiplier": "0.3333333333333333"}]}
    meter = tokenmeter.make_meter(store="memory:", config=config)
    call = ImportedCall(
        where="a:1",
        id="x",
        provider="openai",
        model="gpt-5",
        at=datetime(2026, 10, 7, tzinfo=UTC),
        endpoint="chat.completions",
        quantities={"input": 1, "output": 1},
    )
    assert rate_plainly(meter.pricer, call, NOBODY) is None
    rated = meter.pricer.rate(observation_of(call), provider="openai", endpoint="chat.completions", at=call.at)
    assert rated.billed_cost is not None
    assert rated.billed_cost > Decimal(0)
    meter.close()
