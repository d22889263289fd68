"""A record as columns and a shape, and made again from them, byte for byte.

Most of a record's bytes are the same as in thousands of others. Its *shape* is the record with a named place wherever a
column of the archive says what stands there; equal calls have equal shapes, so a column of shapes takes a byte or two
an entry. A place is written ``%(name)s``, and a percent sign ``%%``:

=========================================  ============================================================================
place                                      what stands there
=========================================  ============================================================================
``%(input)s``, ``%(latency_us)s``, ...     the column of that name
``%(account)s``, ``%(end_user)s``          the digest in hex
``%(id)s``                                 writer in hex and counter in 12 hex digits; the writer as text without one
``%(recorded_at)s``                        occurred_at plus recorded_after_us
``%(list)s``                               list_micro x 10^6 + list_pico, and so contracted and billed
``%(prompt)s``, ``%(total)s``              input, cache_read and both cache_write together; and output as well
``%(input*2500000)s``                      a column times a whole number: a charge at a price in picodollars
``%(n0)s``                                 the first of the column ``numbers``
``%(near0)s``                              an id of the same writer, whose counter is the first of ``numbers`` later
``%(t0)s``                                 the first of the column ``texts``, as JSON has it
=========================================  ============================================================================

Nothing here knows what a record means: a shape is kept only where it makes the very bytes of the record again. A record
of which no shape can be made is kept as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from operator import itemgetter, mul
from typing import Any, NamedTuple

from pydantic_core import from_json

#: What a place may name, in the order of `values_of`.
VALUES = (
    *("account", "id", "occurred_at", "recorded_at", "response_id", "request_id", "latency_us", "first_token_us"),
    *("end_user", "tags", "input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning"),
    *("list", "contracted", "billed", "prompt", "total"),
)
_INDEX = {name: index for index, name in enumerate(VALUES)}
#: Those that a number of the record may be found to be, the likeliest first.
_COUNTED = ("input", "output", "prompt", "total", "cache_read", "cache_write_5m", "cache_write_1h", "reasoning")
_COSTS = ("list", "contracted", "billed")
#: What only a record says, and a column of the archive repeats.
_OWN = ("recorded_at", "response_id", "request_id", "latency_us", "first_token_us")
#: A record that has no backslash. What stands in quotation marks is not looked at more closely: a shape is tried.
_HEAD = re.compile(
    r'\{"format":\d+,"record":"entry","account":"(?P<account>.{32})","id":"(?P<id>[^"]*)",'
    r'"occurred_at":(?P<occurred_at>-?\d+),"recorded_at":(?P<recorded_at>-?\d+)'
    r'(?:,"response_id":"(?P<response_id>[^"]*)")?(?:,"request_id":"(?P<request_id>[^"]*)")?'
    r'(?:,"streamed":true)?(?:,"attempts":\d+)?(?:,"latency_us":(?P<latency_us>-?\d+))?'
    r'(?:,"first_token_us":(?P<first_token_us>-?\d+))?(?:,"end_user":"(?P<end_user>.{32})")?'
    r'(?:,"tags":(?P<tags>\{[^}]*\}))?',
    re.ASCII | re.DOTALL,
)
_OWN_GROUPS = tuple(_HEAD.groupindex[name] for name in _OWN)
#: Whole numbers but 0, texts that differ from call to call, and decimal text; with what each is known by before it.
#: All begin with one of three characters, by which they are looked for.
_TOKEN = re.compile(
    r"([:,\[])(?:(-?[1-9]\d{0,17})(?=[,}\]])"
    r'|("(?:corrects|reservation|dedup_key|trace_id|span_id)":")([^"\\]*)(?=")'
    r'|(")(-?\d+\.\d+)(?="))',
    re.ASCII,
)
_PLACE = re.compile(r"%(?:%|\((\w+)(?:\*(-?\d+))?\)s)")
_NUMBERED = re.compile(r"(n|near|t)(\d+)")
#: Pieces to a token: what stands before it, and a group for each kind of it.
_GROUPS = 7
_MOST_KNOWN, _MOST_TRIED, _MOST_LIKELY = 20_000, 32, 5
_UNREAD = tuple(f',"{name}":' for name in _OWN)
#: Doubts and remarks. They stand before the provider's own usage, which may have something of that name, too.
_FLAGS, _RAW_USAGE = re.compile(r',"flags":\[[^\]]*\]'), ',"raw_usage":'


def _own(body: str) -> tuple[Any, ...]:
    said = from_json(body)
    return tuple(said.get(name) for name in _OWN)


class Shaped(NamedTuple):
    """A record in parts.

    Attributes:
        head: What its head says of itself: recorded_at, response_id, request_id, latency_us, first_token_us.
        shape: See the module; None: only the record itself will do.
        numbers: Numbers that no column has.
        texts: Texts that no column has.
    """

    head: tuple[Any, ...]
    shape: str | None
    numbers: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()


def values_of(
    before: tuple[bytes, tuple[bytes, int | None], int],
    own: tuple[Any, ...],
    asked_by: tuple[bytes | None, str | None],
    tokens: Sequence[int],
    costs: Sequence[int],
) -> tuple[Any, ...]:
    """What places stand for, by `VALUES`.

    Args:
        before: Account, writer and counter, occurred_at.
        own: What the record's head says of itself.
        asked_by: End user (digest) and tags (JSON).
        tokens: The five meters with columns, and reasoning.
        costs: In picodollars.
    """
    account, identity, occurred_at = before
    end_user, tags = asked_by
    prompt = tokens[0] + tokens[1] + tokens[2] + tokens[3]
    user = None if end_user is None else end_user.hex()
    after = (user, tags, *tokens, *costs, prompt, prompt + tokens[4])
    return (account.hex(), identity_text(*identity), occurred_at, *own, *after)


def identity_text(writer: bytes, counter: int | None) -> str:
    """An entry's id, from its writer and counter."""
    return writer.decode() if counter is None else f"{writer.hex()}{counter:012x}"


class _Maker(NamedTuple):
    """A compiled shape: ``form % pick(values and what follows from them)``."""

    form: str
    pick: Callable[[tuple[Any, ...]], Any]
    multiplied: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    factors: tuple[int, ...]
    extras: tuple[tuple[str, int], ...]

    def make(self, values: tuple[Any, ...], numbers: Sequence[int] = (), texts: Sequence[str] = ()) -> str:
        if self.factors:
            values += tuple(map(mul, self.multiplied(values), self.factors))
        if self.extras:
            values += tuple([_extra(kind, at, values[1], numbers, texts) for kind, at in self.extras])
        made: str = self.form % self.pick(values)
        return made


def _extra(kind: str, at: int, identity: str, numbers: Sequence[int], texts: Sequence[str]) -> Any:
    if kind == "n":
        return numbers[at]
    if kind == "t":
        return texts[at]
    return f"{identity[:20]}{int(identity[20:], 16) + numbers[at]:012x}"


@lru_cache(maxsize=_MOST_KNOWN)
def _compiled(shape: str) -> _Maker:
    products: list[tuple[int, int]] = []
    extras: list[tuple[str, int]] = []
    names: list[tuple[str, int]] = []
    for name, factor in _PLACE.findall(shape):
        if not name:
            continue
        numbered = _NUMBERED.fullmatch(name)
        if numbered:
            names.append(("extra", len(extras)))
            extras.append((numbered[1], int(numbered[2])))
        elif factor:
            names.append(("product", len(products)))
            products.append((_INDEX[name], int(factor)))
        else:
            names.append(("value", _INDEX[name]))
    first = {"value": 0, "product": len(VALUES), "extra": len(VALUES) + len(products)}
    places = [first[kind] + at for kind, at in names]
    form = _PLACE.sub(lambda found: "%s" if found[1] else "%%", shape)
    pick: Callable[[tuple[Any, ...]], Any] = itemgetter(*places)
    indexes, factors = zip(*products, strict=True) if products else ((), ())
    multiplied = itemgetter(*indexes, 0, 0)  # of a single one it would make no tuple
    return _Maker(form, pick, multiplied, factors, tuple(extras))


def render(shape: str, values: tuple[Any, ...], numbers: Sequence[int] = (), texts: Sequence[str] = ()) -> str:
    """The record of `shape` with `values` in its places.

    Raises:
        LookupError: the shape names a place that there is not, as no shape of ours does.
    """
    return _compiled(shape).make(values, numbers, texts)


class Shaper:
    """Finds shapes. What it found for one record it tries on the next of the same kind first.

    Args:
        heads_only: Find none; only read what heads say, and leave of the rest its flags.
    """

    def __init__(self, *, heads_only: bool = False) -> None:
        self._heads_only = heads_only
        self._known: dict[tuple[Any, ...], list[_Found]] = {}
        self._last: dict[tuple[Any, ...], list[_Found]] = {}

    def shape(self, body: str, before: tuple[Any, ...], after: tuple[Any, ...], kind: Hashable) -> Shaped:
        """The parts of a record.

        Args:
            body: The record.
            before: What stands in `VALUES` before what the head says of itself: account, id, occurred_at.
            after: What stands there behind it: from end_user on.
            kind: What entries have in common that nearly always have the same shape: account, meters at 0, and costs
                that are alike.
        """
        head = _HEAD.match(body)
        if head is None:
            return Shaped(_own(body), self._left(body))
        recorded, response, request, latency, first_token = head.group(*_OWN_GROUPS)
        own = (
            int(recorded),
            response,
            request,
            None if latency is None else int(latency),
            None if first_token is None else int(first_token),
        )
        if "\\" in body or body.startswith(_UNREAD, head.end()):  # an id with quotation marks, say
            own = _own(body)
        if self._heads_only:
            return Shaped(own, self._left(body))
        known = before + own + after
        like = kind, head.lastindex, latency is None, response is None
        likely = self._last.get(like)
        if likely is None:
            likely = self._last[like] = []
        for one in likely:
            if one.maker.make(known) == body:
                return Shaped(own, one.shape)
        found = self._found(body, head, known)
        if found is None:  # a column says otherwise than the record
            return Shaped(own, None)
        one, numbers, texts = found
        if not one.taken:
            likely[:] = [one, *likely[:_MOST_LIKELY]]
        return Shaped(own, one.shape, numbers, texts)

    def _left(self, body: str) -> str | None:
        """What stands for the record where no shape was looked for; None: the whole of it."""
        if not self._heads_only:
            return None
        flags = _FLAGS.search(body.partition(_RAW_USAGE)[0])
        return "" if flags is None else flags[0]

    def _found(
        self, body: str, head: re.Match[str], known: tuple[Any, ...]
    ) -> tuple[_Found, tuple[int, ...], tuple[str, ...]] | None:
        """A shape that fits, and the numbers and texts that it takes; an earlier one if there is one."""
        rest = body[head.end() :]
        pieces = _TOKEN.split(rest)
        key = (head.end() - sum(map(len, filter(None, head.groups()))), head.lastindex, *pieces[::_GROUPS])
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            found = self._known[key] = []
        for one in found:
            numbers, texts = _taken(one.taken, pieces, known[1])
            if one.maker.make(known, numbers, texts) == body:
                return one, numbers, texts
        shape, taken = _made(body, head, pieces, known)
        numbers, texts = _taken(taken, pieces, known[1])
        maker = _compiled(shape)
        if maker.make(known, numbers, texts) != body:
            return None
        made = _Found(shape, maker, tuple(taken))
        if len(found) < _MOST_TRIED:
            found.append(made)
        return made, numbers, texts


class _Found(NamedTuple):
    """A shape that fitted before, and which pieces of a record its numbers and texts are."""

    shape: str
    maker: _Maker
    taken: tuple[tuple[str, int], ...]


def _taken(
    taken: Sequence[tuple[str, int]], pieces: Sequence[str | None], identity: str
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    numbers: list[int] = []
    texts: list[str] = []
    for kind, at in taken:
        piece = pieces[at] or ""
        if kind == "t":
            texts.append(piece)
        elif kind == "n":
            numbers.append(int(piece or 0))
        else:
            numbers.append(_after(identity, piece) or 0)
    return tuple(numbers), tuple(texts)


def _after(identity: str, other: str) -> int | None:
    """How far the counter of `other` is beyond that of `identity`; None where their writers differ."""
    if len(other) != len(identity) or not identity.startswith(other[:20]) or len(other) != 32:  # noqa: PLR2004 - see `tokenmeter.ledger.new_id`
        return None
    try:
        return int(other[20:], 16) - int(identity[20:], 16)
    except ValueError:
        return None


def _made(
    body: str, head: re.Match[str], pieces: Sequence[str | None], known: tuple[Any, ...]
) -> tuple[str, list[tuple[str, int]]]:
    parts: list[str] = []
    last = 0
    for name in head.groupdict():
        start, end = head.span(name)
        if start >= 0:
            parts += [body[last:start].replace("%", "%%"), f"%({name})s"]
            last = end
    parts.append(body[last : head.end()].replace("%", "%%"))
    counts = {known[_INDEX[name]]: name for name in reversed(_COUNTED)}
    costs = {known[_INDEX[name]]: name for name in reversed(_COSTS)}
    taken: list[tuple[str, int]] = []
    counted = {"n": 0, "t": 0}
    quantity: str | None = None
    for at in range(0, len(pieces) - 1, _GROUPS):
        before = "".join(one for one in (pieces[at], *pieces[at + 1 : at + _GROUPS : 2]) if one)
        parts.append(before.replace("%", "%%"))
        number = pieces[at + 2]
        place: str | None = None
        if number is None:
            at += 4 if pieces[at + 4] is not None else 6  # noqa: PLW2901 - the piece it is
            kind = "t" if _after(known[1], pieces[at] or "") is None else "near"
            quantity = None
        else:
            kind, value, at = "n", int(number), at + 2  # noqa: PLW2901 - as above
            if "]" in before:
                quantity = None
            costly = before.endswith(('"list":', '"contracted":', '"billed":'))
            if costly and quantity is not None and (of := known[_INDEX[quantity]]) and value % of == 0:
                place = f"{quantity}*{value // of}"
            else:
                place = (costs if costly else counts).get(value)
            if before.endswith('"quantity":'):
                quantity = place
        if place is None:
            counter = "t" if kind == "t" else "n"
            place = f"{kind}{counted[counter]}"
            counted[counter] += 1
            taken.append((kind, at))
        parts.append(f"%({place})s")
    parts.append((pieces[-1] or "").replace("%", "%%"))
    return "".join(parts), taken
