"""What is read of every request: the size of its prompt, found without keeping or copying it, and its limits.

And the one place where tokens are guessed from what was sent or received: whatever uses it is flagged ``estimated``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import field
from os import PathLike
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast

from tokenmeter.call import Picture, PlainRequest, RequestFacts
from tokenmeter.dimensions import PROMPT_OPERATIONS, TEXT_OPERATIONS
from tokenmeter.providers.pictures import read_picture
from tokenmeter.providers.wire import (
    JSON,
    LONGEST_NAME,
    is_array,
    is_object,
    section,
    shortened,
    text,
    to_wire,
    type_of,
    utf8_length,
)
from tokenmeter.usage import Consumption, Usage
from tokenmeter.values import dataclass

#: A request that configures no model for a hosted tool.
NO_TOOLS: Mapping[str, str] = MappingProxyType({})
#: What marks a prompt, or a part of it, to be cached.
_CACHE_MARKS = frozenset({"cache_control", "prompt_cache_breakpoint", "prompt_cache_options"})
_USUAL_LIFETIMES = frozenset({"", "5m"})
#: Where a request is not for text: its other fields are files and settings of theirs.
_PROMPT_KEYS = ("messages", "input", "instructions", "tools", "prompt")

#: Where parts have a picture; what else is in them is text, as in a tool's arguments that only look like such a part.
_PAYLOADS = frozenset({"data", "file_id", "image_url", "result", "source", "uri"})
#: Parts whose payload is a picture: counted in images, never as text.
_IMAGE_TYPES = frozenset({"image", "image_url", "input_image", "computer_screenshot", "image_generation_call"})
#: In the names of parts whose content may lie elsewhere, under whatever key and of whatever host.
_MEDIA = re.compile("audio|document|file|image|media|pdf|video")
#: What is no text of its own but says where content lies.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")
#: Parts that offer the model further tools.
_TOOL_CARRIERS = frozenset({"additional_tools", "tool_addition", "tool_search_output"})
#: Keys that name content which lies elsewhere, so that its size is not known here.
_REMOTE_KEYS = frozenset({
    *("file_id", "file_url", "file_ids", "file_data", "file_uri", "document_url", "video_url", "audio_url"),
    *("cached_content", "cachedContent"),
})  # fmt: skip
#: Sources of documents that lie elsewhere.
_REMOTE_TYPES = frozenset({"url", "file"})
#: Sources of documents whose text is sent with them.
_INLINE_TYPES = frozenset({"content", "text"})
#: Schemas and arguments: text, whatever its fields are called. A tool that takes a ``file_id`` sends no file.
_DATA_KEYS = frozenset({
    *("action", "args", "arguments", "input_schema", "json_schema", "parameters", "schema"),
    *("properties", "$defs", "definitions"),
})  # fmt: skip
#: Parts that are text as a whole: what was searched and found, and where a sentence of an answer comes from.
_DATA_TYPES = ("_citation", "_location", "file_path", "file_search_call")
#: Shorter texts are bounded well enough by their bytes.
_LONG = 200
_PUNCTUATION = 4  # quotes, colon and comma around a key or a value


class PromptRule(NamedTuple):
    """What models of one family add to a prompt, for who must know beforehand how long it can be.

    Attributes:
        word: Pattern of how the names of its models begin, behind who makes or serves them; empty: all that the room's
            own provider serves under other names.
        overhead: Tokens that are added to every prompt at most.
        image: Most tokens that one picture costs.
        of_picture: The same of a given picture; None of one that may fill the context window.
    """

    word: str
    overhead: int = 32  # chat priming
    image: int = 25_000  # no family that is known costs more, but for those that say so
    of_picture: Callable[[Picture], int | None] | None = None

    def image_tokens(self, request: RequestFacts | PlainRequest) -> int | None:
        """Most tokens that the pictures of `request` cost; None where they may fill the context window."""
        if self.of_picture is None:
            return self.image * request.image_count
        unsaid = [Picture()] * (request.image_count - len(request.pictures))
        counted = [self.of_picture(picture) for picture in (*request.pictures, *unsaid)]
        return None if None in counted else sum(tokens or 0 for tokens in counted)


@dataclass(slots=True)
class PromptSize:
    """Size of what is sent as prompt.

    Attributes:
        size: UTF-8 bytes of all text, with the JSON around it: no fewer than its tokens.
        images: Pictures, whose tokens their bytes do not bound.
        pictures: What each of them says of itself, as far as any does.
        remote: Whether files are named that lie elsewhere.
        unread: Whether part of it can be read only once, and so was not.
        texts: The longer texts among it, as they are: whoever wants tighter bounds may count their tokens.
        carriers: Parts that offer further tools, see `offered`.
        lifetimes: How long what is marked to be cached is to be kept, as each mark says; empty: as is usual.
    """

    size: int = 0
    images: int = 0
    pictures: list[Picture] = field(default_factory=list[Picture])
    remote: bool = False
    unread: bool = False
    texts: list[str] = field(default_factory=list[str], repr=False)
    carriers: list[JSON] = field(default_factory=list[JSON], repr=False)
    lifetimes: set[str] = field(default_factory=set[str])

    @property
    def cache_terms(self) -> dict[str, str]:
        """The lifetime of all that is to be cached, among `RequestFacts.terms`; ``several`` where marks differ."""
        (only, *others) = self.lifetimes or {""}
        asked = "several" if others else only
        return {"cache_ttl": asked} if asked else {}

    @property
    def cache_writes(self) -> Literal["usual", "none", "any"]:
        """See `RequestFacts.cache_writes`, of a format in which only what is marked is written to a cache."""
        if self.unread:
            return "any"
        if not self.lifetimes:
            return "none"
        return "usual" if self.lifetimes <= _USUAL_LIFETIMES else "any"


def measure(parts: Iterable[Any]) -> PromptSize:
    """Measure `parts`, each any JSON value (SDK objects are turned into JSON first)."""
    result = PromptSize()
    _measure(list(parts), result, _open_part)
    return result


def _measure(stack: list[Any], result: PromptSize, open_object: Callable[[JSON, list[Any], PromptSize], int]) -> None:
    """Add what is on `stack` to `result`; `open_object` stacks an object's values and returns the bytes of its keys."""
    size = 0
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            size += (len(value) if value.isascii() else utf8_length(value)) + _PUNCTUATION
            if len(value) > _LONG:
                result.texts.append(value)
        elif is_object(value):
            size += open_object(value, stack, result)
        elif isinstance(value, list | tuple):
            stack.extend(cast("Sequence[Any]", value))
            size += _PUNCTUATION
        else:
            size += _open_other(value, stack, result)
    result.size += size


def _open_part(value: JSON, stack: list[Any], result: PromptSize) -> int:
    """An object that may be a part: a picture's own values are left out."""
    kind = value.get("type")
    tool_use = False
    if kind is not None and isinstance(kind, str):
        if kind.endswith(_DATA_TYPES):
            _measure([value], result, _open_data)
            return 0
        tool_use = kind.endswith("tool_use")
        if kind in _IMAGE_TYPES:
            result.images += 1
            result.pictures.append(read_picture(value))
            value = {key: item for key, item in value.items() if key not in _PAYLOADS}
        elif _lies_elsewhere(kind, value):
            result.remote = True
        if kind in _TOOL_CARRIERS:
            result.carriers.append(value)
    elif "image_url" in value:
        result.images += 1
        result.pictures.append(read_picture(value))
    size = _PUNCTUATION
    for name, item in cast("Mapping[Any, Any]", value).items():
        key = name if isinstance(name, str) else str(name)  # JSON makes texts of numbers
        size += _key_size(key)
        if key in _DATA_KEYS or (tool_use and key == "input"):
            _measure([item], result, _open_data)
        else:
            _note(key, item, result)
            stack.append(item)
    return size


def _note(key: str, item: Any, result: PromptSize) -> None:
    """Note what a part has that its bytes do not bound, going by its name."""
    if key in _REMOTE_KEYS and item:
        result.remote = True
    elif key == "images" and isinstance(item, list | tuple):
        result.images += len(cast("Sequence[Any]", item))
    elif key == "audio" and is_object(item) and "id" in item:
        result.remote = True  # an earlier answer's
    elif key in _CACHE_MARKS:
        note_mark(item, result)


def note_mark(mark: Any, result: PromptSize) -> None:
    """Note how long something is to be kept in a cache, as `mark` says, whatever it is made of."""
    plain = to_wire(mark)
    if is_object(plain):
        result.lifetimes.add(text(plain, "ttl") or "")


def _open_data(value: JSON, stack: list[Any], _result: PromptSize) -> int:
    """An object that is text, in which no name means a medium."""
    stack.extend(value.values())
    return _PUNCTUATION + sum(_key_size(str(key)) for key in value)


def _key_size(key: str) -> int:
    return (len(key) if key.isascii() else utf8_length(key)) + _PUNCTUATION


def _lies_elsewhere(kind: str, value: JSON) -> bool:
    """Whether the content of a part, which is no picture, is not what its bytes say."""
    if kind == "item_reference":
        return True  # an earlier item
    if kind == "base64":  # pages, which no length of their file bounds
        return not str(value.get("media_type")).lower().startswith(("text/", "audio/"))
    if kind in _REMOTE_TYPES and ("url" in value or "file_id" in value):
        return True
    if text(section(value, "source"), "type") in _INLINE_TYPES:
        return False  # its other texts are headings, which may be addresses
    return _MEDIA.search(kind) is not None and _has_address(list(value.values()))


def _has_address(values: list[Any]) -> bool:
    """Whether a text in `values`, or one level down, is the address of content."""
    return any(
        _ADDRESS.match(each) is not None
        for value in values
        for each in (value.values() if is_object(value) else value if is_array(value) else (value,))
        if isinstance(each, str)
    )


def _open_other(value: Any, stack: list[Any], result: PromptSize) -> int:
    """Numbers, mappings and SDK objects; what can be read only once, or lies in a file, is of unknown size."""
    if value is None or isinstance(value, int | float):
        return len(repr(value)) + _PUNCTUATION
    if isinstance(value, Mapping) or hasattr(value, "model_dump") or hasattr(value, "dict"):
        plain = to_wire(value)
        if isinstance(plain, dict | list):
            stack.append(plain)
    elif isinstance(value, Iterable | PathLike) or hasattr(value, "read"):
        result.remote = result.unread = True
    return 0


def measure_prompt(body: JSON, operation: str, knobs: Collection[str]) -> PromptSize:
    """Measure what is rendered into the prompt of a request.

    Args:
        body: Of the request.
        operation: What it is for.
        knobs: Fields that are not rendered; any other may be, whoever serves it.
    """
    rest: dict[str, Any] = {}
    ids = 0
    textual = operation in TEXT_OPERATIONS or operation in PROMPT_OPERATIONS
    for key, value in body.items():
        if key in knobs if textual else key not in _PROMPT_KEYS:
            continue
        size = _token_ids(value) if key in _TOKENIZED else 0
        ids += size
        if not size:
            rest[key] = value
    found = measure(rest.values())
    for key, value in rest.items():
        _note(key, value, found)
    found.size += ids
    return found


#: Where a list of numbers is a prompt of token ids; anywhere else it is their text.
_TOKENIZED = frozenset({"prompt", "input"})


def _token_ids(value: Any) -> int:
    """Size of a prompt of token ids, or of a list of such prompts; 0 for any other."""
    if not is_array(value) or not value:
        return 0
    prompts = value if is_array(value[0]) else [value]
    if not all(is_array(prompt) and all(type(item) is int for item in prompt) for prompt in prompts):
        return 0
    return _PUNCTUATION * (len(prompts) + sum(map(len, prompts)))


#: Why no bound is known: part of a request cannot be looked into before it leaves.
UNREADABLE = "unreadable"


def listed(body: JSON, name: str, reasons: list[str]) -> list[JSON]:
    """The objects that a request lists under `name`, in whatever it lists them and whatever they are made of.

    What can be read only once is left alone, and `UNREADABLE` joins `reasons`.
    """
    value = body.get(name)
    if is_array(value) and all(type(item) is dict for item in value):
        return value
    if isinstance(value, Iterable) and not isinstance(value, Collection):
        reasons.append(UNREADABLE)
    if isinstance(value, str | bytes) or not isinstance(value, Collection):
        return []
    return [item for item in to_wire(list(cast("Iterable[Any]", value))) if is_object(item)]


def offered(body: JSON, prompt: PromptSize, reasons: list[str]) -> list[JSON]:
    """The tools that a request offers the model: its own, those in a namespace, those that its prompt adds."""
    found: list[JSON] = []
    waiting = [body, *prompt.carriers]
    while waiting:
        carrier = waiting.pop()
        tools = listed(carrier, "tools", reasons) if "tools" in carrier else []
        definition = section(section(carrier, "tool"), "definition")
        found += [*tools, definition] if definition else tools
        waiting += [tool for tool in tools if "tools" in tool]
    return found


#: What messages of texts are made of, with the caller's own tools and what they were called with and gave back.
_PLAIN_KEYS = frozenset({
    *("role", "content", "name", "type", "text", "id", "status"),
    *("tool_calls", "tool_call_id", "function", "arguments", "call_id", "output", "tool_use_id", "is_error", "input"),
    *("description", "parameters", "input_schema", "strict"),
})  # fmt: skip
_PLAIN_KINDS = (
    *("text", "input_text", "output_text", "message", "function", "custom"),
    *("function_call", "function_call_output", "tool_use", "tool_result"),
)
#: Of these, what is text whatever its fields are called: see `_DATA_KEYS`.
_PLAIN_DATA = frozenset({"parameters", "input_schema"})


#: Of these, what messages of texts and nothing else have; with the size of each, and of what stands around its value.
_TEXT_KEYS = {name: len(name) + 2 * _PUNCTUATION for name in ("role", "content", "name")}


def measure_plain(body: JSON, keys: frozenset[str]) -> tuple[int, list[str]] | None:
    """Size and longer texts of a prompt, as `measure` has them, where it is text alone; None for any other.

    Args:
        body: Of a request whose prompt is under `keys`.
        keys: Each a text, or a list of messages or of the caller's tools.
    """
    stack = [*map(body.__getitem__, keys.intersection(body))]
    long: list[str] = []
    data: list[Any] = []
    size = 0
    while stack:
        value = stack.pop()
        form = type_of(value)
        if form is list:
            texts: list[str] = []
            size_of_texts = _measure_texts(value, texts)
            size += size_of_texts + _PUNCTUATION
            if size_of_texts:
                long += texts
            else:
                stack.extend(value)
                if value and type(value[0]) is list:
                    return None  # prompts of token ids, maybe
        elif form is str:
            size += (len(value) if value.isascii() else utf8_length(value)) + _PUNCTUATION
            if len(value) > _LONG:
                long.append(value)
        elif form is dict and _is_plain(value):
            size += _open_plain(value, stack, data)
        elif value is None or form is bool:
            size += len(repr(value)) + _PUNCTUATION
        else:
            return None
    return _with_data(size, long, data) if data else (size, long)


def _measure_texts(messages: list[Any], long: list[str]) -> int:
    """Size of messages that are texts alone, as most are, whose longer ones join `long`; 0 of any others."""
    size = 0
    try:
        for message in messages:
            if type_of(message) is not dict:
                return 0
            size += _PUNCTUATION
            for name, value in message.items():
                if type_of(value) is not str:
                    return 0
                length = len(value)
                if length > _LONG:
                    long.append(value)
                size += _TEXT_KEYS[name] + (length if value.isascii() else utf8_length(value))
    except KeyError:
        return 0
    return size


def _is_plain(part: JSON) -> bool:
    """Whether an object is one of those that plain prompts are made of."""
    kind = part.get("type")  # what has an id and no type may stand for another item
    return _PLAIN_KEYS.issuperset(part) and (kind in _PLAIN_KINDS if kind is not None else "id" not in part)


def _open_plain(part: JSON, stack: list[Any], data: list[Any]) -> int:
    """Size of a part's keys; its values are put on `stack`, those that are text whatever they are called on `data`."""
    of_use = part.get("type") == "tool_use"
    if of_use or not _PLAIN_DATA.isdisjoint(part):
        names = ("input", *_PLAIN_DATA) if of_use else _PLAIN_DATA
        data.extend(part[name] for name in names if name in part)
        stack.extend(item for name, item in part.items() if name not in names)
    else:
        stack.extend(part.values())
    return len("".join(part)) + _PUNCTUATION * (1 + len(part))


def _with_data(size: int, long: list[str], data: list[Any]) -> tuple[int, list[str]] | None:
    found = PromptSize()
    _measure(data, found, _open_data)
    return None if found.remote else (size + found.size, long + found.texts)


def are_functions(tools: Any, kinds: Collection[str | None]) -> bool:
    """Whether all of a request's tools are functions of the caller's, of one of `kinds`."""
    return is_array(tools) and all(is_object(tool) and tool.get("type") in kinds for tool in tools)


def named(value: Any) -> str | None:
    """`value` when it is a non-empty text; a longer one than any real name is shortened."""
    if not isinstance(value, str) or not value:
        return None
    return value if len(value) <= LONGEST_NAME else shortened(value)


#: What says that an answer has no limit: realtime sessions and local servers have such words.
_NO_LIMITS = (-1, "-1", "inf")
_MOST_DIGITS = 18


def read_limit(value: Any) -> int | None:
    """The limit that `value` is, as hosts read it: 50, 50.0 and ``"50"`` are one; None where it is no count."""
    if type(value) is int:
        return value if value >= 0 else None
    if isinstance(value, float):
        return int(value) if value >= 0 and value.is_integer() else None
    digits = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= _MOST_DIGITS
    return int(value) if digits else None


def is_unclear(*values: Any) -> bool:
    """Whether no limit may be put beside, or in the place of, what fields for one say: see `RequestFacts`."""
    said = [value for value in values if value is not None]
    return len(said) > 1 or any(read_limit(value) is None and value not in _NO_LIMITS for value in said)


#: UTF-8 bytes per token: near for English prose and JSON with o200k_base and Claude's tokenizer (3.5 to 4.5).
BYTES_PER_TOKEN = 4
#: An image at usual size and detail costs some 750 to 1,600 tokens.
TOKENS_PER_IMAGE = 1_000
#: Speech runs at about 15 characters a second and costs about 21 audio tokens a second.
SPEECH_TOKENS = (7, 5)


def tokens_of(size: int) -> int:
    """About how many tokens `size` UTF-8 bytes are, rounded up."""
    return -(-size // BYTES_PER_TOKEN)


def input_tokens(request: RequestFacts | PlainRequest) -> int:
    """About how many tokens the prompt of `request` is."""
    return -(-request.input_bytes // BYTES_PER_TOKEN) + TOKENS_PER_IMAGE * request.image_count


def speech_tokens(characters: int) -> int:
    """About how many audio tokens it takes to speak `characters`."""
    upper, lower = SPEECH_TOKENS
    return -(-characters * upper // lower)


def estimate(request: RequestFacts, *, model: str | None, received: int, prompt: int | None = None) -> Consumption:
    """What a call used as far as can be told from its request and the bytes that came back.

    Args:
        request: The request.
        model: Model that answered, if it said so.
        received: UTF-8 bytes of answer received.
        prompt: The prompt's tokens, where they are known.
    """
    size = input_tokens(request) if prompt is None else prompt
    quantities = {meter: tokens for meter, tokens in (("input", size), ("output", tokens_of(received))) if tokens}
    return Consumption(
        model=model or request.model,
        usage=Usage(quantities),
        service_tier=request.service_tier,
        processing=request.processing,
        speed=request.speed,
        region=request.billed_region,
        prompt_tokens=size,
    )
