"""A gateway's row that does not say what the cache had is imported with that doubt."""

import json

import pytest

import tokenmeter
from tokenmeter.importing import import_usage

ROW = {
    "request_id": "r1",
    "call_type": "acompletion",
    "spend": 0.01,
    "prompt_tokens": 4072,
    "completion_tokens": 500,
    "endTime": "2026-10-13T10:00:02Z",
    "model": "gpt-5",
    "custom_llm_provider": "openai",
}
KNOWN = {"usage_object": {"prompt_tokens_details": {"cached_tokens": 72}}}


@pytest.mark.parametrize(
    ("row", "doubtful"),
    [
        ({}, True),
        ({"metadata": None}, True),
        ({"metadata": {}}, True),
        ({"metadata": "{}"}, True),
        ({"metadata": {"user_api_key_alias": "shop", "usage_object": None}}, True),
        ({"metadata": KNOWN}, False),
        ({"metadata": json.dumps(KNOWN)}, False),
        ({"metadata": {"additional_usage_values": {"cache_read_input_tokens": 72}}}, False),
        ({"metadata": None, "call_type": "aembedding", "completion_tokens": 0}, False),
    ],
)
def test_litellms_row_without_a_usage_object_says_nothing_of_the_cache(tmp_path, row, doubtful):
    log = tmp_path / "spend.jsonl"
    log.write_text(json.dumps({**ROW, **row}) + "\n")
    meter = tokenmeter.make_meter(store="memory:")
    assert import_usage(meter, log).recorded == 1
    (entry,) = meter.store.entries()
    assert ("cache_uncertain" in entry.flags) == doubtful
    cached = sum(line.quantity for line in entry.charges if line.sku_meter == "cache_read")
    assert sum(line.quantity for line in entry.charges if line.sku_meter == "input") == ROW["prompt_tokens"] - cached
