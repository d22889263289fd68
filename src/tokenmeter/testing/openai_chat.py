"""OpenAI's chat completions and legacy completions, JSON and streams; embeddings and moderations."""

from __future__ import annotations

import base64
import hashlib
import math
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from tokenmeter.testing.composition import (
    Composition,
    arguments_text,
    chat_usage,
    compose,
    prompt_tokens,
    read_chat,
    split_words,
)
from tokenmeter.testing.context import Context, RefusalError, Served, merged
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import JSON, Event, Reply, json_reply, part, sse
from tokenmeter.usage import Consumption, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenmeter.testing.context import StreamUsage

SSE = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
DONE = b"[DONE]"


def chat_completions(context: Context) -> Served:
    """``POST /chat/completions``."""
    context.need("messages")
    return _complete(context, _ChatWriter(context))


def completions(context: Context) -> Served:
    """``POST /completions``."""
    context.need("prompt")
    return _complete(context, _TextWriter(context))


def _complete(context: Context, writer: _Writer) -> Served:
    context.need("model")
    writer.check()
    composition = compose(context, read_chat, choices=writer.choices)
    wire = composition.wire_usage or chat_usage(composition.usage)
    sent = None if context.answer.omit_usage else wire
    if context.body.get("stream"):
        events = tuple(writer.stream(composition, sent))
        told = sent if writer.tells_usage() else None
        reply = Reply(headers=dict(SSE), events=events)
        return Served(reply=reply, bill=composition.bill(writer.identity, told, *context.answer.also))
    body = merged(writer.whole(composition, sent), context.answer.fields)
    bill = composition.bill(writer.identity, body.get("usage"), *context.answer.also)
    return Served(reply=json_reply(body), bill=bill)


class _Writer:
    """Writes one composition as JSON or as chunks."""

    prefix: str
    object_name: str
    chunk_name: str

    def __init__(self, context: Context) -> None:
        self.context = context
        self.identity = context.new_id(self.prefix)
        self.choices = int(context.body.get("n") or 1)
        self.mode: StreamUsage = context.answer.stream_usage or context.stream_usage

    def check(self) -> None:
        """Refuse stream options where the real API, or this host, does."""
        if "stream_options" not in self.context.body:
            return
        if self.mode == "refuse":
            message = "Unrecognized request argument supplied: stream_options"
            raise RefusalError(self.context.refusal_status, message, param="stream_options")
        if self.context.body["stream_options"] is not None and not self.context.body.get("stream"):
            message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
            raise RefusalError(400, message, param="stream_options")

    def asked_for_usage(self) -> bool:
        return bool(part(self.context.body, "stream_options").get("include_usage"))

    def tells_usage(self) -> bool:
        """Whether the stream carries usage at all."""
        return self.mode in {"always", "last_choice", "cumulative"} or (
            self.mode == "openai" and self.asked_for_usage()
        )

    def envelope(self, composition: Composition, name: str) -> JSON:
        return {
            "id": self.identity,
            "object": name,
            "created": self.context.timestamp,
            "model": composition.model,
            "service_tier": composition.service_tier,
            "system_fingerprint": "fp_fake",
        }

    def whole(self, composition: Composition, usage: Any) -> JSON:
        """The JSON answer."""
        choices = [self.choice(composition, index) for index in range(self.choices)]
        body = {**self.envelope(composition, self.object_name), "choices": choices}
        return body if usage is None else {**body, "usage": usage}

    def stream(self, composition: Composition, usage: Any) -> Iterator[Event]:
        """The chunks of a stream, with the marker that ends it."""
        envelope = self.envelope(composition, self.chunk_name)
        asked = self.mode == "openai" and self.asked_for_usage()
        if self.context.azure:
            yield sse({**envelope, "choices": [], "prompt_filter_results": []})
        pieces = [piece for index in range(self.choices) for piece in self.pieces(composition, index)]
        total = sum(len(text) for _, text in pieces) or 1
        out = 0
        for number, (choice, text) in enumerate(pieces, 1):
            out += len(text)
            generated = composition.generated(out / total)
            chunk: JSON = {**envelope, "choices": [choice]}
            if self.mode == "cumulative" and usage is not None:
                chunk["usage"] = _so_far(composition, usage, generated, last=number == len(pieces))
            elif self.mode == "last_choice" and usage is not None and number == len(pieces):
                chunk["usage"] = merged(dict(usage), self.context.answer.fields.get("usage", {}))
            elif asked:
                chunk["usage"] = None
            yield sse(chunk, generated=generated)
        everything = composition.generated(1)
        if usage is not None and (asked or self.mode == "always"):
            last = merged({**envelope, "choices": [], "usage": usage}, self.context.answer.fields)
            yield sse(last, generated=everything)
        yield sse(DONE, generated=everything)

    def choice(self, composition: Composition, index: int) -> JSON:
        raise NotImplementedError

    def pieces(self, composition: Composition, index: int) -> Iterator[tuple[JSON, str]]:
        raise NotImplementedError


def _so_far(composition: Composition, usage: Any, generated: int, *, last: bool) -> Any:
    if last:
        return usage
    partial = replace(composition.usage, quantities={**composition.usage.quantities, "output": generated})
    return chat_usage(Usage(partial.quantities, min(partial.reasoning_output_tokens, generated)))


class _ChatWriter(_Writer):
    prefix = "chatcmpl-"
    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def calls(self, composition: Composition) -> list[JSON]:
        return [
            {
                "id": self.context.state.new_id("call_"),
                "type": "function",
                "function": {"name": name, "arguments": arguments_text(arguments)},
            }
            for name, arguments in composition.tool_calls
        ]

    def finish(self, composition: Composition) -> str:
        return self.context.answer.stop_reason or composition.finish

    def choice(self, composition: Composition, index: int) -> JSON:
        message: JSON = {"role": "assistant", "content": composition.text, "refusal": None, "annotations": []}
        if composition.tool_calls:
            message["tool_calls"] = self.calls(composition)
        return {"index": index, "message": message, "logprobs": None, "finish_reason": self.finish(composition)}

    def pieces(self, composition: Composition, index: int) -> Iterator[tuple[JSON, str]]:
        def chunk(delta: JSON, finish: str | None = None) -> JSON:
            return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}

        opening: JSON = {"role": "assistant", "content": None if composition.text is None else "", "refusal": None}
        yield chunk(opening), ""
        for word in split_words(composition.text or ""):
            yield chunk({"content": word}), word
        for number, call in enumerate(self.calls(composition)):
            arguments = call["function"]["arguments"]
            named = {**call, "index": number, "function": {"name": call["function"]["name"], "arguments": ""}}
            yield chunk({"tool_calls": [named]}), call["function"]["name"]
            for piece in split_words(arguments):
                yield chunk({"tool_calls": [{"index": number, "function": {"arguments": piece}}]}), piece
        yield chunk({}, self.finish(composition)), ""


class _TextWriter(_Writer):
    prefix = "cmpl-"
    object_name = "text_completion"
    chunk_name = "text_completion"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        prompt: Any = context.body.get("prompt")
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):  # a list of prompts, not of tokens
            self.choices *= len(prompt)  # pyright: ignore[reportUnknownArgumentType]

    def envelope(self, composition: Composition, name: str) -> JSON:
        envelope = super().envelope(composition, name)
        del envelope["service_tier"]
        return envelope

    def choice(self, composition: Composition, index: int) -> JSON:
        reason = self.context.answer.stop_reason or composition.finish
        return {"index": index, "text": composition.text or "", "logprobs": None, "finish_reason": reason}

    def pieces(self, composition: Composition, index: int) -> Iterator[tuple[JSON, str]]:
        for word in split_words(composition.text or ""):
            yield {"index": index, "text": word, "logprobs": None, "finish_reason": None}, word
        yield {**self.choice(composition, index), "text": ""}, ""


_DIMENSIONS = {"text-embedding-3-large": 3072}
_USUAL_DIMENSIONS = 1536
_CATEGORIES = {
    "harassment": ["text"],
    "harassment/threatening": ["text"],
    "hate": ["text"],
    "hate/threatening": ["text"],
    "illicit": ["text"],
    "illicit/violent": ["text"],
    "self-harm": ["text", "image"],
    "self-harm/instructions": ["text", "image"],
    "self-harm/intent": ["text", "image"],
    "sexual": ["text", "image"],
    "sexual/minors": ["text"],
    "violence": ["text", "image"],
    "violence/graphic": ["text", "image"],
}


def embeddings(context: Context) -> Served:
    """``POST /embeddings``: unit vectors that depend on the input alone, as floats or base64."""
    body, answer = context.body, context.answer
    model = answer.model or context.need("model")
    inputs = _inputs(context.need("input"))
    size = body.get("dimensions") or _DIMENSIONS.get(body.get("model", ""), _USUAL_DIMENSIONS)
    packed = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(item, size, packed=packed)}
        for index, item in enumerate(inputs)
    ]
    used = (answer.usage or {}).get("prompt_tokens", prompt_tokens({"input": body["input"]}))
    usage = Usage(dict(answer.meters) if answer.meters is not None else {"input": used})
    wire = answer.usage or {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}
    whole: JSON = {"object": "list", "data": data, "model": model}
    if not answer.omit_usage:
        whole["usage"] = wire
    part = Consumption(model=model, usage=usage, prompt_tokens=usage.input_tokens)
    bill = Bill(model=model, consumptions=(part, *answer.also), wire_usage=whole.get("usage"))
    return Served(reply=json_reply(merged(whole, answer.fields)), bill=bill)


def _inputs(value: Any) -> list[Any]:
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
        return [value]  # one text, or one text as token ids
    return list(cast("Iterable[Any]", value))


def _vector(item: Any, size: int, *, packed: bool) -> list[float] | str:
    raw = hashlib.shake_256(repr(item).encode()).digest(size)
    length = math.sqrt(sum((byte - 127.5) ** 2 for byte in raw))
    vector = array("f", [(byte - 127.5) / length for byte in raw])
    return base64.b64encode(vector.tobytes()).decode() if packed else vector.tolist()


def moderations(context: Context) -> Served:
    """``POST /moderations``: nothing is ever flagged, and nothing billed."""
    value = context.need("input")
    texts = value if isinstance(value, list) and all(isinstance(item, str) for item in value) else [value]  # pyright: ignore[reportUnknownVariableType]
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0),
        "category_applied_input_types": _CATEGORIES,
    }
    model = context.answer.model or context.body.get("model") or "omni-moderation-latest"
    body: JSON = {"id": context.new_id("modr-"), "model": model, "results": [result] * len(texts)}  # pyright: ignore[reportUnknownArgumentType]
    return Served(reply=json_reply(body), bill=Bill(model=model, response_id=body["id"]))
