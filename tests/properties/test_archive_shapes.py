"""Whatever a record says, an archive file gives it back byte for byte."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

from tokenmeter.stores.archive.layout import ArchiveRow, FileWriter, records
from tokenmeter.stores.archive.shape import Shaper
from tokenmeter.stores.slots import to_microseconds

pytest.importorskip("pyarrow")

NOON = to_microseconds(datetime(2026, 1, 1, 12, tzinfo=UTC))
small = st.integers(-(10**6), 10**6)
text = st.text(max_size=12) | st.sampled_from(["100%", "%(input)s", '"', "\\", ":1,", "{}", "ü\u2028", "chatcmpl-1"])
ids = text | st.uuids().map(lambda one: one.hex) | st.integers(0, 99).map(lambda one: f"{'ab' * 10}{one:012x}")
anything = st.recursive(
    st.none() | st.booleans() | small | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
optional = {
    "response_id": ids,
    "request_id": ids,
    "streamed": st.just(value=True),
    "attempts": st.integers(2, 9),
    "latency_us": small,
    "first_token_us": small,
    "end_user": st.uuids().map(lambda one: one.hex),
    "quantities": st.dictionaries(st.sampled_from(["input", "output", "pages"]), small | st.just("1.5")),
    "reasoning": small,
    "charges": st.lists(
        st.fixed_dictionaries(
            {"rate": st.just("ab" * 16), "quantity": small | st.just("2.25")},
            optional={"list": small, "contracted": small | st.none(), "billed": small},
        ),
        max_size=2,
    ),
    "list": small,
    "contracted": small,
    "billed": small | st.none(),
    "flags": st.lists(text, max_size=2),
    "raw_usage": anything,
    "error_type": text,
    "corrects": ids,
    "reservation": ids,
    "dedup_key": text,
    "trace_id": text,
    "a later name": anything,
}


@st.composite
def rows(draw, seq):
    """A record, and columns that may or may not be what it says."""
    identity = draw(ids.filter(bool))
    given_ = {"format": 1, "record": "entry", "account": "cd" * 16, "id": identity, "occurred_at": NOON + seq}
    values = given_ | {"recorded_at": NOON + draw(small)} | draw(st.fixed_dictionaries({}, optional=optional))
    tokens = values.get("quantities", {})
    amounts = [0, 0, values.get("reasoning", 0)]
    amounts += [
        tokens.get(name, 0) if isinstance(tokens.get(name), int) else 0 for name in ("input", "", "", "", "output")
    ]
    listed = values.get("list", 0)
    contracted = values.get("contracted", listed)
    billed = values.get("billed", contracted) or 0
    for cost in (listed, contracted, billed):
        amounts += divmod(draw(st.just(cost) | small), 10**6)
    user = values.get("end_user")
    return ArchiveRow(
        seq,
        identity,
        NOON + seq,
        bytes.fromhex("cd" * 16),
        None if user is None else bytes.fromhex(user),
        None,
        amounts,
        None,
        to_json(values).decode(),
    )


@settings(max_examples=60)
@given(st.data(), st.integers(1, 12))
def test_every_record_comes_back_as_it_was(tmp_path_factory, data, count):
    path = str(tmp_path_factory.mktemp("shapes") / "month.parquet")
    given_rows = [data.draw(rows(seq)) for seq in range(1, count + 1)]
    writer = FileWriter(path, Shaper())
    writer.write(given_rows)
    writer.close()
    assert [one for page in records(path) for one in page] == [(row.seq, row.body) for row in given_rows]


def test_calls_of_one_kind_have_one_shape(tmp_path):
    def row(seq, tokens, answer):
        values = {"format": 1, "record": "entry", "account": "cd" * 16, "id": f"{'ab' * 10}{seq:012x}"}
        values |= {
            "occurred_at": NOON + seq,
            "recorded_at": NOON + 7 * seq,
            "quantities": {"input": tokens, "output": answer},
        }
        values |= {"charges": [{"rate": "ef" * 16, "quantity": tokens, "list": tokens * 250_000}]}
        values |= {"list": tokens * 250_000, "raw_usage": {"total_tokens": tokens + answer}}
        values |= {"reservation": f"{'ab' * 10}{seq - 1:012x}"}
        amounts = (0, 0, 0, tokens, 0, 0, 0, answer, *divmod(tokens * 250_000, 10**6) * 3)
        return ArchiveRow(
            seq, values["id"], NOON + seq, bytes.fromhex("cd" * 16), None, None, amounts, None, to_json(values).decode()
        )

    import pyarrow.parquet as pq

    path = str(tmp_path / "month.parquet")
    writer = FileWriter(path, Shaper())
    writer.write([row(seq, 100 + seq, 1000 + 3 * seq) for seq in range(1, 40)])
    writer.close()
    table = pq.read_table(path)
    (shape,) = set(table.column("shape").to_pylist())
    assert json.loads(shape.replace("%(", '"').replace(")s", '"').replace('""', '"'))["list"] == "list"
    assert '"list":%(input*250000)s' in shape
    assert '"total_tokens":%(total)s' in shape
    assert table.column("body").null_count == len(table)
    assert {tuple(one) for one in table.column("numbers").to_pylist()} == {(-1,)}
