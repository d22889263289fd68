"""Every body in `bodies/`: the SDK's own type accepts it, and it is read into exactly the groups beside it."""

import importlib
import json
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from tokenmeter.providers import observe, to_wire

PATHS = sorted(Path(__file__).parent.joinpath("bodies").glob("*.json"))
GROUP_DEFAULTS = {
    "model": None,
    "role": "message",
    "service_tier": None,
    "processing": None,
    "speed": None,
    "geo": None,
    "region": None,
    "prompt_tokens": None,
}
OBSERVED_DEFAULTS = {"billable": True}


def described(group):
    supplied = group.supplied_cost
    return {
        **{name: getattr(group, name) for name in GROUP_DEFAULTS},
        "quantities": dict(group.usage.quantities),
        "reasoning": group.usage.reasoning_output_tokens,
        "supplied": None if supplied is None else (supplied.amount, supplied.source),
    }


def expected(group):
    supplied = group.get("supplied")
    exact = {meter: Decimal(value) if isinstance(value, str) else value for meter, value in group["quantities"].items()}
    return {
        **GROUP_DEFAULTS,
        "reasoning": 0,
        **group,
        "quantities": exact,
        "supplied": None if supplied is None else (Decimal(supplied["amount"]), supplied["source"]),
    }


#: What came with the newest words in the bodies: from there on the SDKs' types know them all.
NEWEST = ("openai.types:Decision", "anthropic.types:UserProfile")


def sdk_type(case):
    module, _, name = case["sdk_type"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def sdk_object(case):
    """What the SDK makes of the body, as it makes answers: what is outside its types' words it lets pass."""
    models = importlib.import_module(f"{case['sdk_type'].partition('.')[0]}._models")
    return models.construct_type(value=case["body"], type_=sdk_type(case))


def named(cases):
    return [pytest.param(case, id=case["name"]) for case in cases]


def typed(cases):
    """Those that are of a type of an SDK's, where the installed one has it."""
    return [
        pytest.param(case, id=case["name"], marks=pytest.mark.needs(":".join(case["sdk_type"].rsplit(".", 1))))
        for case in cases
        if case["sdk_type"]
    ]


def has_one_plain_usage(case):
    """Its usage object says all: no hosted tools, and no flags, that only the body around it knows."""
    body, groups = case["body"], case["groups"]
    counted_in_body = {"file_searches", "web_searches"} if body.get("object") == "response" else set()
    return (
        isinstance(body.get("usage"), dict)
        and len(groups) == 1
        and not case["flags"]
        and counted_in_body.isdisjoint(groups[0]["quantities"])
        and not any(meter.startswith("container") for meter in groups[0]["quantities"])
    )


CASES = [{"name": path.stem, **json.loads(path.read_text())} for path in PATHS]


@pytest.mark.parametrize("case", named(CASES))
def test_body_is_read_as_the_file_says(case):
    """As decoded JSON and as JSON text alike."""
    is_read(case, case["body"])
    is_read(case, json.dumps(case["body"]))


@pytest.mark.needs(*NEWEST)
@pytest.mark.parametrize("case", typed(case for case in CASES if not case["name"].startswith("host_")))
def test_the_providers_own_type_accepts_the_body(case):
    """Other hosts' values are outside its literals."""
    TypeAdapter(sdk_type(case)).validate_python(case["body"])


@pytest.mark.parametrize("case", typed(CASES))
def test_the_sdks_object_is_read_as_its_body_is(case):
    is_read(case, sdk_object(case))


def is_read(case, body):
    seen = observe(body, **case["call"]).with_shared()
    assert [described(group) for group in seen.consumptions] == list(map(expected, case["groups"])), case["promise"]
    assert sorted(seen.flags) == case["flags"]
    for name, value in {**OBSERVED_DEFAULTS, **case["observed"]}.items():
        assert getattr(seen, name) == value, name


@pytest.mark.parametrize("case", named(filter(has_one_plain_usage, CASES)))
def test_bare_usage_object_reads_like_the_whole_body(case):
    """What `.usage` holds is understood without the body around it."""
    seen = observe(case["body"]["usage"], **{**case["call"], "model": case["groups"][0]["model"]})
    assert dict(seen.usage.quantities) == expected(case["groups"][0])["quantities"]


@pytest.mark.parametrize("case", typed(CASES))
def test_to_wire_keeps_what_came_off_the_wire(case):
    """An SDK object turns back into the JSON it was made from: nothing added, nothing lost."""
    made = sdk_object(case)
    assert sdk_object({**case, "body": to_wire(made)}) == made
    assert to_wire(made).keys() == case["body"].keys()
