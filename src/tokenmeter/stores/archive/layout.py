"""An archive file: which columns it has, how entries come into it, and how records come out of it again.

The columns repeat those of the ledger's table ``entries`` under the same names; what else a record says is in
``shape``, ``numbers`` and ``texts``, see `tokenmeter.stores.archive.shape`. docs/reference/schema.md has them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from inspect import signature
from itertools import pairwise, repeat
from operator import add, mul, not_
from struct import Struct
from typing import Any, NamedTuple

from tokenmeter.stores.archive.places import import_extra
from tokenmeter.stores.archive.shape import Shaper, render, values_of
from tokenmeter.stores.engine import Rows
from tokenmeter.stores.fold import AMOUNTS, MICRO, TYPED, identity_column

#: Column -> what it holds: ``int``, ``digest`` (16 bytes), ``bytes``, ``text``, ``time`` (UTC, microseconds), ``ints``,
#: ``texts``; with ``?`` where it may be null.
COLUMNS: Mapping[str, str] = {
    "seq": "int",
    "writer": "bytes",
    "counter": "int?",
    "occurred_at": "time",
    "recorded_after_us": "int?",
    "account": "digest",
    "end_user": "digest?",
    "tags": "text?",
    **dict.fromkeys(("unpriced", "estimated", "reasoning", *TYPED, "list_micro", "list_pico"), "int"),
    **dict.fromkeys(("contracted_micro", "contracted_pico", "billed_micro", "billed_pico"), "int?"),
    "more": "text?",
    "latency_us": "int?",
    "first_token_us": "int?",
    "response_id": "text?",
    "request_id": "text?",
    "shape": "text?",
    "numbers": "ints?",
    "texts": "texts?",
    "body": "text?",
}
_DELTA = ("seq", "counter", "occurred_at", "recorded_after_us", "list_micro", "contracted_micro", "billed_micro")
_PLAIN = (
    "response_id",
    "request_id",
    "latency_us",
    "first_token_us",
    "numbers.list.element",
    "texts.list.element",
    "body",
)
#: Rows to a row group; large ones, because each has a dictionary of digests, which no compression makes smaller.
_ROW_GROUP = 245_760
_LARGEST_DICTIONARY = 64 << 20
#: What `record_of` takes, in this order, as they stand in a file.
RECORD_COLUMNS = tuple(name for name in COLUMNS if name not in {"seq", "unpriced", "estimated", "more"})


@cache
def _schema() -> Any:
    arrow = import_extra("pyarrow")
    types = {
        "int": arrow.int64(),
        "digest": arrow.binary(16),
        "bytes": arrow.binary(),
        "text": arrow.string(),
        "time": arrow.timestamp("us", tz="UTC"),
        "ints": arrow.list_(arrow.int64()),
        "texts": arrow.list_(arrow.string()),
    }
    return arrow.schema(
        [arrow.field(name, types[kind.rstrip("?")], nullable=kind.endswith("?")) for name, kind in COLUMNS.items()]
    )


#: Costs, each of which is often the same as the one before it.
_KINDS = ("list", "contracted", "billed")
_PAGE = 2_000
#: An id of our making: writer, and counter in two parts.
_ID = Struct(">10sHI")
_ENTRIES = (
    "SELECT e.seq, e.entry_id, e.occurred_at, a.digest, n.digest, t.body, "  # noqa: S608 - names of our own
    f"{', '.join(f'e.{name}' for name in AMOUNTS)}, "
    "e.more, e.body, e.hash FROM entries AS e JOIN accounts AS a ON a.id = e.account "
    "LEFT JOIN names AS n ON n.id = e.end_user LEFT JOIN tagsets AS t ON t.id = e.tags "
    "WHERE e.seq > ? AND e.seq <= ? ORDER BY e.seq LIMIT ?"
)


class ArchiveRow(NamedTuple):
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


def _parts_of(ids: Sequence[str]) -> tuple[Sequence[bytes], Sequence[int | None]]:
    """Writers and counters of entries' ids, as `identity_parts`; those of our making all at once."""
    text = "".join(ids)
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if raw.hex() != text or set(map(len, ids)) != {2 * _ID.size}:
        writers, counters = zip(*map(identity_parts, ids), strict=True)
        return writers, counters
    writers, highs, lows = zip(*_ID.iter_unpack(raw), strict=True)
    return writers, [high << 32 | low for high, low in zip(highs, lows, strict=True)]


def rows_after(connection: Rows, after: int, last: int) -> list[tuple[ArchiveRow, bytes]]:
    """Some entries of the live ledger as an archive takes them, with their hashes; in the order of the chain."""
    found: list[tuple[ArchiveRow, bytes]] = []
    width = len(AMOUNTS)
    for seq, identity, occurred_at, account, end_user, tags, *rest in connection.execute(
        _ENTRIES, (after, last, _PAGE)
    ):
        entry_id = identity if isinstance(identity, str) else bytes(identity).hex()
        amounts, (more, body, digest) = rest[:width], rest[width:]
        user = None if end_user is None else bytes(end_user)
        found.append(
            (ArchiveRow(seq, entry_id, occurred_at, bytes(account), user, tags, amounts, more, body), bytes(digest))
        )
    return found


def open_writer(target: str, rows: int = _ROW_GROUP) -> Any:
    """A Parquet writer of this layout.

    Args:
        target: Where to.
        rows: How many are to come at most: a filter by which one response id is found has room for as many.
    """
    encoded = dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED") | dict.fromkeys(_PLAIN, "PLAIN")
    return import_extra("pyarrow.parquet").ParquetWriter(
        target,
        _schema(),
        compression="zstd",
        compression_level=1,  # of columns like these no higher one makes less, and each takes longer
        use_dictionary=[name for name in COLUMNS if name not in encoded and name not in {"numbers", "texts"}],
        column_encoding=encoded,
        write_page_index=True,
        dictionary_pagesize_limit=_LARGEST_DICTIONARY,
        store_schema=False,
        **_filters(min(rows, _ROW_GROUP)),
    )


def _filters(rows: int) -> dict[str, Any]:
    """A Bloom filter over response ids, if the installed pyarrow writes any; else each is looked for in every row."""
    known = signature(import_extra("pyarrow.parquet").ParquetWriter.__init__).parameters
    chance = 0.05  # of a row group read in vain: not money
    return (
        {"bloom_filter_options": {"response_id": {"ndv": rows, "fpp": chance}}}
        if "bloom_filter_options" in known
        else {}
    )


class FileWriter:
    """Writes one archive file.

    Args:
        target: Where to.
        shaper: Finds shapes; one for many files, as they are much alike.
        rows: See `open_writer`.
    """

    def __init__(self, target: str, shaper: Shaper, rows: int = _ROW_GROUP) -> None:
        self._shaper = shaper
        self._arrow = import_extra("pyarrow")
        self._schema = _schema()
        self._batches: list[Any] = []
        self._rows = 0
        self._writer = open_writer(target, rows)

    def write(self, rows: Sequence[ArchiveRow]) -> None:
        """Add entries, in the order of the chain."""
        if not rows:
            return
        columns = self._columns(rows)
        arrays = [self._arrow.array(columns[field.name], field.type) for field in self._schema]
        self._batches.append(self._arrow.record_batch(arrays, schema=self._schema))
        self._rows += len(rows)
        if self._rows >= _ROW_GROUP:
            self._flush()

    def _columns(self, rows: Sequence[ArchiveRow]) -> dict[str, Sequence[Any]]:
        """Rows by column, as `COLUMNS` has them."""
        seq, ids, occurred_at, accounts, users, tags, amounts, more, bodies = zip(*rows, strict=True)
        columns = dict(zip(AMOUNTS, zip(*amounts, strict=True), strict=True))
        writers, counters = _parts_of(ids)
        costs, same = _costs(columns)
        befores = zip(map(bytes.hex, accounts), ids, occurred_at, strict=True)
        zeros = (map(not_, columns[name]) for name in (*TYPED, "reasoning"))
        kinds = zip(accounts, *zeros, *same, strict=True)
        shaped = map(self._shaper.shape, bodies, befores, _after(columns, users, tags), kinds)
        heads, shapes, numbers, texts = zip(*shaped, strict=True)
        recorded_at, response_ids, request_ids, latencies, first_tokens = zip(*heads, strict=True)
        return columns | {
            "seq": seq,
            "writer": writers,
            "counter": counters,
            "occurred_at": occurred_at,
            "recorded_after_us": [
                None if late is None else late - moment for late, moment in zip(recorded_at, occurred_at, strict=True)
            ],
            "account": accounts,
            "end_user": users,
            "tags": tags,
            **costs,
            "more": more,
            "latency_us": latencies,
            "first_token_us": first_tokens,
            "response_id": response_ids,
            "request_id": request_ids,
            "shape": shapes,
            "numbers": [one or None for one in numbers],
            "texts": [one or None for one in texts],
            "body": [body if one is None else None for one, body in zip(shapes, bodies, strict=True)],
        }

    def _flush(self) -> None:
        if self._batches:
            self._writer.write_table(self._arrow.Table.from_batches(self._batches), row_group_size=2 * _ROW_GROUP)
        self._batches, self._rows = [], 0

    def close(self) -> None:
        """Write what is left and the file's end."""
        self._flush()
        self._writer.close()


def _after(
    columns: Mapping[str, Sequence[int]], users: Sequence[bytes | None], tags: Sequence[str | None]
) -> Iterator[tuple[Any, ...]]:
    """What stands in `shape.VALUES` from end_user on, row by row."""
    names = (*TYPED, "reasoning")
    prompts = list(map(sum, zip(*(columns[name] for name in TYPED[:-1]), strict=True)))
    return zip(
        [None if user is None else user.hex() for user in users],
        tags,
        *(columns[name] for name in names),
        *(map(add, map(mul, columns[f"{kind}_micro"], repeat(MICRO)), columns[f"{kind}_pico"]) for kind in _KINDS),
        prompts,
        map(add, prompts, columns[TYPED[-1]]),
        strict=True,
    )


def _costs(columns: Mapping[str, Sequence[int]]) -> tuple[dict[str, Sequence[int | None]], list[list[bool]]]:
    """Costs, with null where one is the same as the one before it; and where contracted and billed are the same."""
    found: dict[str, Sequence[int | None]] = {}
    alike: list[list[bool]] = []
    for before, kind in pairwise(_KINDS):
        mine, theirs = (tuple(columns[f"{one}_{part}"] for part in ("micro", "pico")) for one in (kind, before))
        same = [one == other for one, other in zip(zip(*mine, strict=True), zip(*theirs, strict=True), strict=True)]
        for part, values in zip(("micro", "pico"), mine, strict=True):
            found[f"{kind}_{part}"] = [None if alike else value for alike, value in zip(same, values, strict=True)]
        alike.append(same)
    return found, alike


def _whole(micro: int, pico: int) -> int:
    return micro * MICRO + pico


def record_of(columns: Sequence[Any]) -> str:
    """The record of a row, byte for byte, from its `RECORD_COLUMNS`; `occurred_at` as microseconds since the epoch."""
    writer, counter, occurred_at, recorded_after, account, end_user, tags, reasoning, *rest = columns
    tokens, rest = rest[: len(TYPED)], rest[len(TYPED) :]
    *costs, latency, first_token, response_id, request_id, shape, numbers, texts, body = rest
    if shape is None:
        return str(body)
    listed = _whole(*costs[:2])
    contracted = listed if costs[2] is None else _whole(*costs[2:4])
    billed = contracted if costs[4] is None else _whole(*costs[4:])
    values = values_of(
        (account, (writer, counter), occurred_at),
        (occurred_at + recorded_after, response_id, request_id, latency, first_token),
        (end_user, tags),
        (*tokens, reasoning),
        (listed, contracted, billed),
    )
    return render(shape, values, numbers or (), texts or ())


def groups_in(file: str) -> int:
    """How many groups of rows a file has."""
    with import_extra("pyarrow.parquet").ParquetFile(file) as opened:
        return int(opened.num_row_groups)


def records(file: str, *, group: int | None = None, rows: int = 8_192) -> Iterator[list[tuple[int, str]]]:
    """Number and record of each entry of a file, or of one group of its rows, in the order of the chain, by pages."""
    with import_extra("pyarrow.parquet").ParquetFile(file) as opened:
        groups = range(opened.num_row_groups) if group is None else (group,)
        for number in groups:  # asked for several, it keeps all that it has read
            for batch in opened.iter_batches(rows, row_groups=[number], columns=["seq", *RECORD_COLUMNS]):
                columns = [_values_of(batch.column(name)) for name in RECORD_COLUMNS]
                bodies = map(record_of, zip(*columns, strict=True))
                yield list(zip(_values_of(batch.column("seq")), bodies, strict=True))


def _values_of(column: Any) -> Sequence[Any]:
    if str(column.type).startswith("timestamp"):
        column = column.cast("int64")
    if str(column.type) == "int64" and not column.null_count:
        numbers: list[int] = column.to_numpy(zero_copy_only=False).tolist()
        return numbers
    values: list[Any] = column.to_pylist()
    return values
