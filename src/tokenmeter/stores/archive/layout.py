"""An archive file: which columns it has, how entries come into it, and how records come out of it again.

The columns repeat those of the ledger's table ``entries`` under the same names; what else a record says is in ``shape``,
``numbers`` and ``texts`` (`tokenmeter.stores.archive.shape`). docs/reference/schema.md has them with their units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmeter.stores.archive.shape import Shaper, render, values_of
from tokenmeter.stores.fold import TYPED, identity_column
from tokenmeter.stores.values import MICRO

__all__ = ["LAYOUT", "RECORD_COLUMNS", "SCHEMA", "FileWriter", "identity_parts", "identity_text", "record_of", "records"]

#: Number of this layout, in every manifest.
LAYOUT = 1
_DIGEST = pa.binary(16)
SCHEMA = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("writer", pa.binary(), nullable=False),
        pa.field("counter", pa.int64()),
        pa.field("occurred_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("recorded_after_us", pa.int64()),
        pa.field("account", _DIGEST, nullable=False),
        pa.field("end_user", _DIGEST),
        pa.field("tags", pa.string()),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("unpriced", "estimated", "reasoning", *TYPED)),
        pa.field("list_micro", pa.int64(), nullable=False),
        pa.field("list_pico", pa.int64(), nullable=False),
        *(pa.field(f"{cost}_{part}", pa.int64()) for cost in ("contracted", "billed") for part in ("micro", "pico")),
        pa.field("more", pa.string()),
        pa.field("latency_us", pa.int64()),
        pa.field("first_token_us", pa.int64()),
        pa.field("response_id", pa.string()),
        pa.field("request_id", pa.string()),
        pa.field("shape", pa.string()),
        pa.field("numbers", pa.list_(pa.int64())),
        pa.field("texts", pa.list_(pa.string())),
        pa.field("body", pa.string()),
    ]
)
_DELTA = ("seq", "counter", "occurred_at", "recorded_after_us", "list_micro", "contracted_micro", "billed_micro")
_PLAIN = ("response_id", "request_id", "latency_us", "first_token_us", "numbers.list.element", "texts.list.element", "body")
#: Rows to a row group; large ones, because each has a dictionary of digests, which no compression makes smaller.
_ROW_GROUP = 245_760
_LARGEST_DICTIONARY = 64 << 20
#: What `record_of` takes, in this order, as they stand in a file.
RECORD_COLUMNS = tuple(name for name in SCHEMA.names if name not in {"seq", "unpriced", "estimated", "more"})


class Row(NamedTuple):
    """A row of the ledger's table ``entries`` as an archive takes it: digests and texts in place of rows of the book.

    Attributes:
        seq: Its place in the chain.
        entry_id: As text.
        occurred_at: Microseconds since the epoch.
        account: Digest.
        end_user: Digest.
        tags: JSON object, name -> digest in hex.
        amounts: See `tokenmeter.stores.book.AMOUNTS`.
        more: JSON object, meter -> billionths.
        body: The record.
    """

    seq: int
    entry_id: str
    occurred_at: int
    account: bytes
    end_user: bytes | None
    tags: str | None
    amounts: Sequence[int]
    more: str | None
    body: str


def identity_parts(entry_id: str) -> tuple[bytes, int | None]:
    """Writer and counter of an entry's id; the whole of any id that is not of our making, and None."""
    found = identity_column(entry_id)
    if isinstance(found, str):
        return found.encode(), None
    return found[:10], int.from_bytes(found[10:])


def identity_text(writer: bytes, counter: int | None) -> str:
    """The id of `identity_parts`."""
    return writer.decode() if counter is None else f"{writer.hex()}{counter:012x}"


class FileWriter:
    """Writes one archive file.

    Args:
        target: Where to.
        shaper: Finds shapes; one for many files, as they are much alike.
    """

    def __init__(self, target: IO[bytes] | str, shaper: Shaper) -> None:
        self._shaper = shaper
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0
        encoded = dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED") | dict.fromkeys(_PLAIN, "PLAIN")
        names = {"numbers": "numbers.list.element", "texts": "texts.list.element"}
        self._writer = pq.ParquetWriter(
            target,
            SCHEMA,
            compression="zstd",
            compression_level=6,
            use_dictionary=[name for field in SCHEMA.names if (name := names.get(field, field)) not in encoded],
            column_encoding=encoded,
            write_page_index=True,
            dictionary_pagesize_limit=_LARGEST_DICTIONARY,
            store_schema=False,
        )

    def write(self, rows: Sequence[Row]) -> None:
        """Add entries, in the order of the chain."""
        columns = list(zip(*map(self._cells, rows), strict=True))
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        self._batches.append(pa.record_batch(arrays, schema=SCHEMA))
        self._rows += len(rows)
        if self._rows >= _ROW_GROUP:
            self._flush()

    def _cells(self, row: Row) -> tuple[Any, ...]:
        unpriced, estimated, reasoning, *rest = row.amounts
        tokens, costs = rest[: len(TYPED)], rest[len(TYPED) :]
        listed, contracted, billed = costs[:2], costs[2:4], costs[4:]
        writer, counter = identity = identity_parts(row.entry_id)

        def values(head: tuple[Any, ...]) -> tuple[Any, ...]:
            return values_of(
                row.account,
                identity,
                (row.occurred_at, head[4]),
                head[:2],
                head[2:4],
                row.end_user,
                row.tags,
                (*tokens, reasoning),
                (_whole(listed), _whole(contracted), _whole(billed)),
            )

        head, shape, numbers, texts = self._shaper.shape(row.body, values)
        response_id, request_id, latency, first_token, recorded_at = head
        return (
            row.seq,
            writer,
            counter,
            row.occurred_at,
            None if recorded_at is None else recorded_at - row.occurred_at,
            row.account,
            row.end_user,
            row.tags,
            unpriced,
            estimated,
            reasoning,
            *tokens,
            *listed,
            *((None, None) if contracted == listed else contracted),
            *((None, None) if billed == contracted else billed),
            row.more,
            latency,
            first_token,
            response_id,
            request_id,
            shape,
            numbers or None,
            texts or None,
            None if shape is not None else row.body,
        )

    def _flush(self) -> None:
        if self._batches:
            self._writer.write_table(pa.Table.from_batches(self._batches), row_group_size=2 * _ROW_GROUP)
        self._batches, self._rows = [], 0

    def close(self) -> None:
        """Write what is left and the file's end."""
        self._flush()
        self._writer.close()


def _whole(parts: Sequence[int]) -> int:
    return parts[0] * MICRO + parts[1]


def record_of(columns: Sequence[Any]) -> str:
    """The record of a row, byte for byte, from its `RECORD_COLUMNS`; `occurred_at` as microseconds since the epoch."""
    writer, counter, occurred_at, recorded_after, account, end_user, tags, reasoning, *rest = columns
    tokens, rest = rest[: len(TYPED)], rest[len(TYPED) :]
    *costs, latency, first_token, response_id, request_id, shape, numbers, texts, body = rest
    if shape is None:
        return str(body)
    listed = _whole(costs[:2])
    contracted = listed if costs[2] is None else _whole(costs[2:4])
    billed = contracted if costs[4] is None else _whole(costs[4:])
    values = values_of(
        account,
        (writer, counter),
        (occurred_at, occurred_at + recorded_after),
        (response_id, request_id),
        (latency, first_token),
        end_user,
        tags,
        (*tokens, reasoning),
        (listed, contracted, billed),
    )
    return render(shape, values, numbers or (), texts or ())


def records(file: str, columns: Sequence[str] = (), *, rows: int = 8_192) -> Iterator[list[tuple[Any, ...]]]:
    """The rows of a file in the order of the chain, some thousand at a time: seq, record, and `columns`.

    Instants come as microseconds since the epoch.
    """
    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(rows, columns=sorted({"seq", *RECORD_COLUMNS, *columns})):
            values = {name: _plain(batch.column(name)) for name in batch.schema.names}
            bodies = map(record_of, zip(*(values[name] for name in RECORD_COLUMNS), strict=True))
            yield list(zip(values["seq"], bodies, *(values[name] for name in columns), strict=True))


def _plain(column: pa.Array) -> Sequence[Any]:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    if pa.types.is_integer(column.type) and not column.null_count:
        numbers: list[int] = column.to_numpy(zero_copy_only=False).tolist()
        return numbers
    values: list[Any] = column.to_pylist()
    return values

