"""How long calls took, as counts in buckets that can be added up and taken away again.

Bucket *i* holds the times above 2**((i - 1) / 16) and up to 2**(i / 16) microseconds: sixteen to each doubling, as in
an OpenTelemetry exponential histogram of scale 4 or a native Prometheus histogram of schema 4, so a sketch can be
handed to either without loss. A percentile is read as the middle of its bucket, which is at most 2.2% off.

Everything is reckoned in integers, so that every machine and every engine finds the same bucket.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import field
from decimal import Decimal
from functools import cache
from math import isqrt

from tokenmeter.values import dataclass

#: Buckets to a doubling, a power of two; `_ROOTS` square roots take the root of that order.
_PER_DOUBLING, _ROOTS = 16, 4
_SHIFT = 62


def _root(number: int, times: int) -> int:
    for _ in range(times):
        number = isqrt(number)
    return number


#: The ends of the buckets of one doubling, in units of 2**-62.
_ENDS = tuple(_root(1 << _PER_DOUBLING * _SHIFT + step, _ROOTS) for step in range(_PER_DOUBLING + 1))
_LEAST = -1


def bucket_of(microseconds: int) -> int:
    """The bucket of a time; -1 for one below a microsecond."""
    if microseconds < 1:
        return _LEAST
    power = microseconds.bit_length() - 1
    return power * _PER_DOUBLING + bisect_left(_ENDS, microseconds << _SHIFT >> power)


@cache
def _middle(bucket: int) -> int:
    """The time, in whole microseconds, that stands for a bucket."""
    if bucket <= 0:
        return bucket + 1
    exact = _root(1 << 2 * bucket - 1 + 2 * _PER_DOUBLING * _SHIFT, _ROOTS + 1)  # 2**((bucket - 1/2) / 16)
    return (exact + (1 << _SHIFT - 1)) >> _SHIFT


# -- as bytes, in a table: bucket + 1 and its count, 2 and 4 bytes each, buckets ascending

_PAIR = struct.Struct(">HI")
#: Bytes of a bucket and its count.
PAIR = _PAIR.size


def packed(counts: Mapping[int, int]) -> bytes:
    """Counts as a table keeps them.

    Raises:
        OverflowError: a bucket has more than 2**31 - 1 calls.
    """
    try:
        return b"".join([_PAIR.pack(bucket + 1, count) for bucket, count in sorted(counts.items()) if count])
    except struct.error as error:
        raise OverflowError("There are more calls in a bucket than a sketch can count.") from error


def pairs(data: bytes) -> list[tuple[int, int]]:
    """Numbers of buckets, from 1 on, and their counts: as they stand there."""
    return list(_PAIR.iter_unpack(data))


def count_pairs(data: bytes) -> int:
    """How many buckets have counts.

    Raises:
        struct.error: it is no sketch.
    """
    number, rest = divmod(len(data), _PAIR.size)
    if rest:
        raise struct.error
    return number


def unpacked(data: bytes) -> Iterator[tuple[int, int]]:
    """Buckets and their counts; of what somebody cut off, those that are whole (`verify` finds that it differs)."""
    whole = memoryview(data)[: len(data) - len(data) % _PAIR.size]
    return ((bucket - 1, count) for bucket, count in _PAIR.iter_unpack(whole))


def joined(first: bytes, second: bytes) -> bytes:
    """The counts of both."""
    counts = dict(unpacked(first))
    for bucket, count in unpacked(second):
        counts[bucket] = counts.get(bucket, 0) + count
    return packed(counts)


@dataclass(slots=True)
class Sketch:
    """Times of calls, in microseconds: how many, their exact sum, and percentiles that are at most 2.2% off.

    Attributes:
        counts: Bucket -> how many calls; see the module's description for their bounds.
        total_us: Sum of all times.

    Examples:
        >>> sketch = Sketch()
        >>> for milliseconds in range(1, 101):
        ...     sketch.add(milliseconds * 1000)
        >>> sketch.count, sketch.mean_us, sketch.percentile(50)
        (100, 50500, 49452)
    """

    counts: dict[int, int] = field(default_factory=dict[int, int])
    total_us: int = 0

    @property
    def count(self) -> int:
        """How many calls."""
        return sum(self.counts.values())

    @property
    def mean_us(self) -> int | None:
        """Their mean time, rounded down; None without calls."""
        count = self.count
        return self.total_us // count if count else None

    def percentile(self, percent: int | Decimal) -> int | None:
        """The time that `percent` of all calls did not exceed, in microseconds; None without calls.

        Args:
            percent: Above 0 and up to 100.

        Raises:
            ValueError: `percent` is outside.
        """
        if not 0 < percent <= 100:  # noqa: PLR2004 - percent
            raise ValueError(f"A percentile is above 0 and at most 100, not {percent}.")
        share = Decimal(percent).as_integer_ratio()
        rank = -(-share[0] * self.count // (share[1] * 100))
        for bucket, count in sorted(self.counts.items()):
            rank -= count
            if rank <= 0 < count:
                return _middle(bucket)
        return None

    def add(self, microseconds: int, calls: int = 1) -> None:
        """Count calls that took so long each."""
        bucket = bucket_of(microseconds)
        self.counts[bucket] = self.counts.get(bucket, 0) + calls
        self.total_us += microseconds * calls

    def merge(self, data: bytes, total_us: int, sign: int = 1) -> None:
        """Add the counts of a table's row, or take them away (`sign` -1)."""
        counts = self.counts
        for bucket, count in unpacked(data):
            counts[bucket] = counts.get(bucket, 0) + sign * count
        self.total_us += sign * total_us

    def take(self, other: Sketch) -> None:
        """Add the counts of another one."""
        counts = self.counts
        for bucket, count in other.counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        self.total_us += other.total_us


@dataclass(slots=True)
class LatencySums:
    """How long calls took, as the fold adds it up: what a row of sums keeps.

    Attributes:
        duration_us: Microseconds of all calls.
        duration: Bucket -> how many calls.
        first_token_us: Microseconds of streamed calls until their first token.
        first_token: Bucket -> how many of these.
        generation_us: See `Latencies`.
        generated: See there.
    """

    duration_us: int = 0
    duration: dict[int, int] = field(default_factory=dict[int, int])
    first_token_us: int = 0
    first_token: dict[int, int] = field(default_factory=dict[int, int])
    generation_us: int = 0
    generated: int = 0

    def add(self, duration_us: int | None, first_token_us: int | None, generated: int) -> None:
        """Count a call that took so long, and brought so many output tokens."""
        if duration_us is not None:
            bucket = bucket_of(duration_us)
            self.duration[bucket] = self.duration.get(bucket, 0) + 1
            self.duration_us += duration_us
            if generated:
                self.generation_us += duration_us - (first_token_us or 0)
                self.generated += generated
        if first_token_us is not None:
            bucket = bucket_of(first_token_us)
            self.first_token[bucket] = self.first_token.get(bucket, 0) + 1
            self.first_token_us += first_token_us

    def take(self, other: LatencySums) -> None:
        """Add others' calls."""
        for counts, more in ((self.duration, other.duration), (self.first_token, other.first_token)):
            for bucket, count in more.items():
                counts[bucket] = counts.get(bucket, 0) + count
        self.duration_us += other.duration_us
        self.first_token_us += other.first_token_us
        self.generation_us += other.generation_us
        self.generated += other.generated

    def row(self) -> tuple[int | bytes, ...]:
        """As the table keeps it."""
        return (
            self.duration_us,
            packed(self.duration),
            self.first_token_us,
            packed(self.first_token),
            self.generation_us,
            self.generated,
        )


@dataclass(slots=True)
class Latencies:
    """How long the calls of one group took.

    Attributes:
        bucket: Index into the boundaries that were asked for.
        group: Values of the asked dimensions, in order; None = not set.
        duration: From the request until the answer's end.
        first_token: From the request until the first token, of streamed calls.
        generation_us: How long calls with output tokens took from the first token on, where it is known, else in all.
        generated: The output tokens of these calls.
    """

    bucket: int = 0
    group: tuple[str | None, ...] = ()
    duration: Sketch = field(default_factory=Sketch)
    first_token: Sketch = field(default_factory=Sketch)
    generation_us: int = 0
    generated: int = 0

    def add(self, duration_us: int | None, first_token_us: int | None, generated: int, calls: int = 1) -> None:
        """Count calls that took so long each, and brought so many output tokens."""
        if duration_us is not None:
            self.duration.add(duration_us, calls)
            if generated:
                self.generation_us += (duration_us - (first_token_us or 0)) * calls
                self.generated += generated * calls
        if first_token_us is not None:
            self.first_token.add(first_token_us, calls)

    def drop_empty(self) -> None:
        """Forget buckets of which everything was taken away again."""
        for sketch in (self.duration, self.first_token):
            sketch.counts = {bucket: count for bucket, count in sketch.counts.items() if count}

    @property
    def tokens_per_second(self) -> Decimal | None:
        """Output tokens per second of generation, to three places; None where nothing was timed."""
        if self.generation_us <= 0:
            return None
        thousandths = (self.generated * 2_000_000_000 + self.generation_us) // (2 * self.generation_us)
        return Decimal((0, tuple(map(int, str(thousandths))), -3))

    def take(self, other: Latencies) -> None:
        """Add another group's calls to this one's."""
        self.duration.take(other.duration)
        if other.first_token.counts:
            self.first_token.take(other.first_token)
        self.generation_us += other.generation_us
        self.generated += other.generated

    def __add__(self, other: Latencies) -> Latencies:
        """Both together, under the group of the first."""
        total = Latencies(self.bucket, self.group)
        total.take(self)
        total.take(other)
        return total
