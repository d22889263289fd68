"""One call as a log tells it, before it is priced; and how counts, instants and names are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, cast

from tokenmeter.attribution import NOBODY, Attribution
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import EXACT
from tokenmeter.periods import FIRST_CALL, zone
from tokenmeter.providers.registry import FORMATS, dialect
from tokenmeter.tables import DecimalMark, parse_moment, parse_number
from tokenmeter.usage import Observation
from tokenmeter.values import dataclass

#: Beginning of a model's name -> provider as the price list names it.
_MAKERS = (
    ("claude", "anthropic"),
    (r"(gpt|o[1-9]|chatgpt|codex|text-embedding|davinci|whisper|dall-e|computer-use)", "openai"),
    (r"(gemini|gemma)", "google"),
    (r"(mistral|codestral|ministral|devstral|magistral)", "mistral"),
    ("grok", "x-ai"),
    ("deepseek", "deepseek"),
    ("kimi", "moonshotai"),
)
_MAKER_OF = tuple((re.compile(beginning), provider) for beginning, provider in _MAKERS)
#: Counts beyond it are no counts; a ledger's sums hold any number of such.
_MOST = 10**15
_THOUSANDS_OR_ONE = re.compile(r"[1-9]\d{0,2}(\.000)+")
#: A number as programs print it, which is most of them and needs no more thought.
_AS_PRINTED = re.compile(r"-?[0-9]+(\.[0-9]+)?(e-?[0-9]{1,3})?")
#: Digits of nanoseconds since 1970 until far beyond the year 2200.
_DIGITS = 19
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = 253_402_300_800  # the year 10000
#: Models whose answers are no tokens.
_WORDLESS = re.compile(r"embed|moderation|rerank|whisper|tts", re.IGNORECASE)
_MILLISECONDS = 100_000_000_000
#: What stands in a row where there is nothing; 0 and false are something.
NOTHING = (None, "")
_NO_DOUBTS: frozenset[str] = frozenset()
_EXCEEDS = frozenset({"reasoning_exceeds_output"})


def _not_said(_provider: str) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What is said of all lines, where they do not say it themselves.

    Attributes:
        provider: Provider id.
        endpoint: SDK method path.
        model: Model of calls that name none.
        at: When the calls were made.
        tz: Zone of instants without one; None = refuse them, unless their source writes UTC.
        processing: ``batch`` where only the user knows it.
        decimal: Decimal mark of tables; None = as their numbers tell.
        attribution: On whose account.
        fields: What is where in lines of a shape of their own: name -> path (``req.id``).
        cost_unit: Provider id -> what the settings say of the cost in its usage; see `RequestFacts.cost_unit`.
        sells: Provider id -> whether the price list knows any price of it.
    """

    provider: str | None = None
    endpoint: str | None = None
    model: str | None = None
    at: datetime | None = None
    tz: str | None = None
    processing: str | None = None
    decimal: DecimalMark | None = None
    attribution: Attribution = NOBODY
    fields: Mapping[str, str] = field(default_factory=dict[str, str])
    cost_unit: Callable[[str], str | None] = _not_said
    sells: Callable[[str], bool] = bool


@dataclass(slots=True, kw_only=True)
class ImportedCall:
    """One call.

    Attributes:
        where: File and line, for people.
        id: Its identity: the provider's id of the answer where it is known.
        provider: Provider id.
        model: Model, as its provider names it.
        request_model: The same as the source spells it, where that differs: ``azure/gpt-5``.
        at: When, aware UTC.
        endpoint: SDK method path.
        quantities: Meter -> count, disjoint.
        reasoning: Tokens of the output that were reasoning.
        service_tier: Tier that served.
        processing: ``batch`` or None.
        speed: ``fast`` or None.
        geo: Where it was inferred, where that has a price.
        flags: Doubts.
        cost_in_source: What the source says it cost, US dollars; kept beside our price, never taken for it.
        usage: The usage as the source has it.
        who: Attribution that the source tells: names as of `Attribution`.
        tags: The same for tags.
        observation: What our own reader of the provider's format saw, instead of `quantities`.
        grows: Whether its source writes it down while the answer comes, so that a later reading may have more of it.
    """

    where: str
    id: str
    provider: str = ""
    model: str | None
    at: datetime
    endpoint: str = ""
    request_model: str | None = None
    quantities: dict[str, int] = field(default_factory=dict[str, int])
    reasoning: int = 0
    service_tier: str | None = None
    processing: str | None = None
    speed: str | None = None
    geo: str | None = None
    flags: frozenset[str] = frozenset()
    cost_in_source: Decimal | None = None
    usage: Any = None
    who: dict[str, str] = field(default_factory=dict[str, str])
    tags: dict[str, str] = field(default_factory=dict[str, str])
    observation: Observation | None = None
    grows: bool = False


def complete(call: ImportedCall, given: Given) -> ImportedCall:
    """A call of which its source has told what it knows, with what is given of all lines where it says nothing.

    What is neither told nor given is by the model's name. Where the price list has nothing under the provider's name
    that is told (a gateway's own word, a server of one's own), the one that is given stands in.

    Raises:
        ConfigurationError: whose model it is cannot be told.
    """
    call.model = call.model or given.model
    if given.provider and call.provider and not given.sells(call.provider):
        call.provider = given.provider
    call.provider = call.provider or given.provider or provider_of(call.model) or ""
    if not call.provider:
        raise ConfigurationError("whose model it is cannot be told: give --provider")
    call.endpoint = call.endpoint or given.endpoint or endpoint_of(call.provider)
    call.processing = call.processing or given.processing
    return call


def made_at(given: Given, *values: object) -> datetime:
    """When a call was made: the first of the values that its source has, which writes UTC; else as is given.

    Raises:
        ConfigurationError: as for `instant_of`.
    """
    told = next((value for value in values if value), None)
    if told is not None:
        return instant_of(told, tz="UTC")
    if given.at is None:
        raise ConfigurationError("it does not say when it was: give --at")
    return given.at


def count_of(values: Mapping[str, Any], name: str) -> int:
    """A count under a name: an integer, also written as text or as ``6.0`` or ``1,234``; nothing is 0.

    Raises:
        ConfigurationError: negative, no whole number, or more than a ledger can count.
    """
    value = values.get(name)
    whole = _whole(value)
    if whole is not None and 0 <= whole < _MOST:
        return whole
    if value is None or value == "":
        return 0
    if isinstance(value, str) and _THOUSANDS_OR_ONE.fullmatch(value.strip()):
        raise ConfigurationError(f"{name} is {value!r}, which can be read in two ways: write whole numbers")
    number = decimal_of(value, name)
    if not 0 <= number < _MOST or number != int(number):
        raise ConfigurationError(f"{name} is {value!r}, not a count")
    return int(number)


def sides_of(
    values: Mapping[str, Any], prompt: str, answer: str, *, model: object, otherwise: str = ""
) -> tuple[int, int]:
    """What went in and what came out of a call, under two names. One that says neither counts nothing.

    Args:
        values: What the source says.
        prompt: Name of what went in.
        answer: Name of what came out; of a model that does not write, it may be missing.
        model: The model's name.
        otherwise: What to do about one that is missing.

    Raises:
        ConfigurationError: as for `count_of`; or one is not there beside the other, so that it is unknown, and not 0.
    """
    given, made = count_of(values, prompt), count_of(values, answer)
    needs_answer = given and not _WORDLESS.search(str(model))
    for name, needed in ((prompt, made), (answer, needs_answer)):
        if needed and (values.get(name) is None or values[name] == ""):
            raise ConfigurationError(f"it does not say its {name}{otherwise}")
    return given, made


def answer_of(answer: int, reasoning: int, *, prompt: int = 0, total: int = 0) -> tuple[int, int, frozenset[str]]:
    """What came out of a call, how much of it was reasoning, and doubts: some hosts count reasoning beside the answer.

    Args:
        answer: What came out, as the source counts it.
        reasoning: The reasoning, as it counts that.
        prompt: What went in, all of it.
        total: What it says both are together; 0 = it does not.
    """
    if reasoning and total - prompt - answer == reasoning:
        return answer + reasoning, reasoning, _NO_DOUBTS
    if reasoning <= answer:
        return answer, reasoning, _NO_DOUBTS
    is_denied = answer and total == prompt + answer
    return answer if is_denied else answer + reasoning, answer if is_denied else reasoning, _EXCEEDS


def _whole(value: object) -> int | None:
    """An integer as JSON has it or a table writes it, read in a tenth of the time that a `Decimal` takes; else None."""
    if type(value) is int:
        return value
    plain = isinstance(value, str) and len(value) <= _DIGITS and value.isascii() and value.isdigit()
    return int(cast("str", value)) if plain else None


def decimal_of(value: object, name: str) -> Decimal:
    """A number, exactly as it is written.

    Raises:
        ConfigurationError: no finite number.
    """
    text = value if isinstance(value, str) else str(value)  # of a cell its number, not what stands there
    if _AS_PRINTED.fullmatch(text):
        return Decimal(text)
    if not isinstance(value, bool):
        with suppress(ValueError):
            return parse_number(text)
    raise ConfigurationError(f"{name} is {value!r}, not a number")


def instant_of(value: object, *, tz: str | None) -> datetime:
    """An instant: ISO 8601 text, or seconds, milliseconds, microseconds or nanoseconds since 1970.

    Args:
        value: As the source has it.
        tz: Zone of texts without one; None = refuse them.

    Raises:
        ConfigurationError: no instant, one before any call was billed by the token, or without a zone.
    """
    if value is None or value == "":
        raise ConfigurationError("it does not say when it was")
    moment = _read_instant(value, tz=tz)
    if moment < FIRST_CALL:
        raise ConfigurationError(f"{value!r} is {moment:%Y-%m-%d}, when no call was made: is it in another unit?")
    return moment


def _read_instant(value: object, *, tz: str | None) -> datetime:
    if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
        try:
            moment = parse_moment(value)
        except ValueError:
            raise ConfigurationError(f"{value!r} is no instant: write it as 2026-10-14T10:00:00Z") from None
        if moment.tzinfo is None:
            if tz is None:
                raise ConfigurationError(f"{value!r} has no time zone: give --zone")
            moment = moment.replace(tzinfo=zone(tz))
        return moment.astimezone(UTC)
    return _since_1970(value)


def _since_1970(value: object) -> datetime:
    ticks, scale = _whole(value), 1
    if ticks is not None and 0 <= ticks < _MILLISECONDS * 10**9:
        while ticks >= _MILLISECONDS * scale:
            scale *= 1000
        return _EPOCH + timedelta(microseconds=ticks * 10**6 // scale)
    seconds = decimal_of(value, "the time")
    for _ in ("milliseconds", "microseconds", "nanoseconds"):
        if seconds.copy_abs() >= _MILLISECONDS:
            seconds = seconds.scaleb(-3, context=EXACT)
    if not 0 <= seconds < _LATEST:
        raise ConfigurationError(f"{value!r} is no instant")
    whole = int(seconds)
    micros = int(seconds.scaleb(6, context=EXACT)) - whole * 1_000_000
    return datetime.fromtimestamp(whole, UTC).replace(microsecond=micros)


def is_doubtful(value: object, tz: str | None) -> bool:
    """Whether the clocks of `tz` showed a local time twice or never, because they were put back or forward.

    `instant_of` takes the first of the two, and what never was as if the clocks had not been put forward.
    """
    if tz is None or not isinstance(value, str):
        return False
    with suppress(ValueError):
        moment = parse_moment(value)
        local = zone(tz)
        return moment.tzinfo is None and (
            moment.replace(tzinfo=local, fold=0).utcoffset() != moment.replace(tzinfo=local, fold=1).utcoffset()
        )
    return False


@lru_cache(maxsize=1024)
def provider_of(model: str | None) -> str | None:
    """Who makes a model of that name, as the price list calls it; None when the name does not tell."""
    name = (model or "").lower()
    maker, slash, rest = name.partition("/")
    if slash:
        return provider_of(rest) or maker
    return next((provider for pattern, provider in _MAKER_OF if pattern.match(name)), None)


@lru_cache(maxsize=64)
def endpoint_of(provider: str) -> str:
    """The method a call is recorded under whose log does not say it."""
    return dialect(provider if provider in FORMATS else FORMATS[0]).usual_endpoint({})


def told_in(values: Mapping[str, Any], *names: str) -> Any:
    """The first value that there is under the names; None where there is none."""
    return next((value for name in names if (value := values.get(name)) not in NOTHING), None)


def texts_of(values: Mapping[str, object]) -> dict[str, str]:
    """The values that there are, as texts."""
    return {name: str(value) for name, value in values.items() if value not in NOTHING}


def mapping_of(value: object) -> Mapping[str, Any]:
    """A JSON object; anything else is an empty one."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def object_in(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The JSON object under a name; nothing is an empty one.

    Raises:
        ConfigurationError: it is something else, so that what it counts would be missing.
    """
    value = values.get(name)
    if isinstance(value, dict):
        return cast("Mapping[str, Any]", value)
    if value is None or value == "":
        return {}
    raise ConfigurationError(f"its {name} is no JSON object, so that what it counts would be missing")


def without_zero(quantities: Mapping[str, int]) -> dict[str, int]:
    """The quantities that are not 0.

    Raises:
        ConfigurationError: one is negative: parts are more than their whole.
    """
    for name, count in quantities.items():
        if count < 0:
            raise ConfigurationError(f"its parts are more than its whole: {name} comes to {count}")
    return {name: count for name, count in quantities.items() if count}
