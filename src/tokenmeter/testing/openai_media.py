"""OpenAI's images, speech and transcriptions."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from tokenmeter.testing.composition import count_tokens, prompt_tokens, split_words
from tokenmeter.testing.context import Context, RefusalError, Served, merged
from tokenmeter.testing.openai_chat import SSE
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import JSON, Event, Reply, json_reply, part, sse
from tokenmeter.usage import Consumption, Usage

#: The smallest PNG: one transparent pixel.
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
#: Output tokens of a square gpt-image-1 picture by quality; source: OpenAI's image generation guide.
_IMAGE_TOKENS = {"low": 272, "medium": 1056, "high": 4160}
_INPUT_IMAGE_TOKENS = 323
_AUDIO_BYTES_PER_SECOND = 32_000  # 16 kHz, 16 bit, mono
_AUDIO_TOKENS_PER_SECOND = 10
_HEARD = "You said something."


def generate_images(context: Context) -> Served:
    """``POST /images/generations``."""
    return _images(context, "image_generation", pictures=0)


def edit_images(context: Context) -> Served:
    """``POST /images/edits``."""
    given = context.need("image")
    return _images(context, "image_edit", pictures=len(given) if isinstance(given, list) else 1)  # pyright: ignore[reportUnknownArgumentType]


def _images(context: Context, kind: str, *, pictures: int) -> Served:
    body, answer = context.body, context.answer
    model = answer.model or body.get("model") or "gpt-image-1"
    number = int(body.get("n") or 1)
    usage = _image_usage(context, model, number, pictures)
    wire = None if _per_picture(model) or answer.omit_usage else (answer.usage or _image_wire(usage))
    charged = Consumption(model=model, usage=usage, role="image_generation", prompt_tokens=usage.input_tokens or None)
    bill = Bill(model=model, consumptions=(charged, *answer.also), wire_usage=wire)
    if str(body.get("stream", "")).lower() == "true":
        return Served(reply=Reply(headers=dict(SSE), events=tuple(_image_events(context, kind, wire))), bill=bill)
    picture = {"url": f"{context.root}/picture.png"} if _per_picture(model) else {"b64_json": _PIXEL}
    whole: JSON = {"created": context.timestamp, "data": [picture] * number}
    if wire is not None:
        whole |= {"background": "opaque", "output_format": "png", "quality": _quality(body), "size": _size(body)}
        whole["usage"] = wire
    return Served(reply=json_reply(merged(whole, answer.fields)), bill=bill)


def _per_picture(model: str) -> bool:
    return model.startswith("dall-e")


def _quality(body: JSON) -> str:
    asked = body.get("quality")
    return asked if asked in _IMAGE_TOKENS else "medium"


def _size(body: JSON) -> str:
    asked = body.get("size")
    return asked if isinstance(asked, str) and asked != "auto" else "1024x1024"


def _image_usage(context: Context, model: str, number: int, pictures: int) -> Usage:
    answer = context.answer
    if answer.meters is not None:
        return Usage(dict(answer.meters))
    if answer.usage is not None:
        return _read_images(answer.usage)
    if _per_picture(model):
        return Usage({"images": number})
    quantities = {
        "input": prompt_tokens(context.body),
        "output_image": _IMAGE_TOKENS[_quality(context.body)] * number,
    }
    if pictures:
        quantities["input_image"] = _INPUT_IMAGE_TOKENS * pictures
    return Usage(quantities)


def _read_images(wire: Mapping[str, Any]) -> Usage:
    inside, text = wire["input_tokens_details"], part(wire, "output_tokens_details").get("text_tokens", 0)
    quantities: dict[str, int] = {
        "input": inside["text_tokens"],
        "input_image": inside["image_tokens"],
        "output": text,
        "output_image": wire["output_tokens"] - text,
    }
    return Usage({meter: quantity for meter, quantity in quantities.items() if quantity})


def _image_wire(usage: Usage) -> JSON:
    wire: JSON = {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"text_tokens": usage["input"], "image_tokens": usage["input_image"]},
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage["output"]:
        wire["output_tokens_details"] = {"text_tokens": usage["output"], "image_tokens": usage["output_image"]}
    return wire


def _image_events(context: Context, kind: str, wire: Any) -> Iterator[Event]:
    common: JSON = {
        "b64_json": _PIXEL,
        "created_at": context.timestamp,
        "size": _size(context.body),
        "quality": _quality(context.body),
        "background": "opaque",
        "output_format": "png",
    }
    for index in range(int(context.body.get("partial_images") or 0)):
        name = f"{kind}.partial_image"
        yield sse({"type": name, **common, "partial_image_index": index}, event=name)
    name = f"{kind}.completed"
    yield sse(merged({"type": name, **common, "usage": wire}, context.answer.fields), event=name)


def speak(context: Context) -> Served:
    """``POST /audio/speech``: bytes without usage, or events with it for the newer models."""
    answer, text = context.answer, str(context.need("input"))
    model = answer.model or context.need("model")
    usage = Usage({"characters": len(text)})
    if not model.startswith("tts-1"):
        spoken = max(1, len(text) * _AUDIO_TOKENS_PER_SECOND // 15)  # people speak some 15 letters a second
        usage = Usage({"input": count_tokens(text), "output_audio": spoken})
    if answer.meters is not None:
        usage = Usage(dict(answer.meters))
    charged = Consumption(model=model, usage=usage, role="speech")
    sound = b"\x00\x01" * len(text)
    if context.body.get("stream_format") != "sse":
        kind = {"content-type": f"audio/{context.body.get('response_format', 'mpeg')}"}
        return Served(reply=Reply(headers=kind, body=sound), bill=Bill(model=model, consumptions=(charged,)))
    wire = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    events = (
        sse({"type": "speech.audio.delta", "audio": base64.b64encode(sound).decode()}),
        sse({"type": "speech.audio.done", "usage": wire}),
    )
    bill = Bill(model=model, consumptions=(charged,), wire_usage=wire)
    return Served(reply=Reply(headers=dict(SSE), events=events), bill=bill)


def translate(context: Context) -> Served:
    """``POST /audio/translations``."""
    return transcribe(context)


def transcribe(context: Context) -> Served:
    """``POST /audio/transcriptions``: JSON, text, subtitles, or events."""
    answer = context.answer
    model = answer.model or context.need("model")
    sound = context.need("file")
    if not isinstance(sound, bytes):
        raise RefusalError(400, "file: expected an uploaded file.", param="file")
    seconds = max(1, -(-len(sound) // _AUDIO_BYTES_PER_SECOND))
    text = answer.text or _HEARD
    by_duration = model.startswith("whisper")
    usage = _heard(context, seconds, text, by_duration=by_duration)
    wire = None if answer.omit_usage else answer.usage or _heard_wire(usage, by_duration=by_duration)
    charged = Consumption(model=model, usage=usage, role="transcription", prompt_tokens=usage.input_tokens or None)
    form = str(context.body.get("response_format") or "json")
    if str(context.body.get("stream", "")).lower() == "true":
        reply = Reply(headers=dict(SSE), events=tuple(_heard_events(text, wire)))
    elif form in {"text", "srt", "vtt"}:
        wire = None
        reply = Reply(
            headers={"content-type": "text/plain; charset=utf-8"}, body=_subtitles(form, text, seconds).encode()
        )
    else:
        reply = json_reply(merged(_heard_body(context, form, text, seconds, wire), answer.fields))
    return Served(reply=reply, bill=Bill(model=model, consumptions=(charged, *answer.also), wire_usage=wire))


def _heard(context: Context, seconds: int, text: str, *, by_duration: bool) -> Usage:
    if context.answer.meters is not None:
        return Usage(dict(context.answer.meters))
    if by_duration:
        return Usage({"seconds_audio": seconds})
    quantities = {"input_audio": seconds * _AUDIO_TOKENS_PER_SECOND, "output": count_tokens(text)}
    if prompt := count_tokens(str(context.body.get("prompt") or "")):
        quantities["input"] = prompt
    return Usage(quantities)


def _heard_wire(usage: Usage, *, by_duration: bool) -> JSON:
    if by_duration:
        return {"type": "duration", "seconds": float(usage["seconds_audio"])}
    return {
        "type": "tokens",
        "input_tokens": usage.input_tokens,
        "input_token_details": {"audio_tokens": usage["input_audio"], "text_tokens": usage["input"]},
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }


def _heard_events(text: str, wire: Any) -> Iterator[Event]:
    for word in split_words(text):
        yield sse({"type": "transcript.text.delta", "delta": word})
    yield sse({"type": "transcript.text.done", "text": text, "usage": wire})


def _heard_body(context: Context, form: str, text: str, seconds: int, wire: Any) -> JSON:
    translated = context.request.path.endswith("translations")
    body: JSON = {"text": text}
    if form == "verbose_json":
        segment: JSON = {
            "id": 0,
            "seek": 0,
            "start": 0.0,
            "end": float(seconds),
            "text": text,
            "tokens": [],
            "temperature": 0.0,
            "avg_logprob": -0.1,
            "compression_ratio": 1.0,
            "no_speech_prob": 0.0,
        }
        body |= {"language": "english", "duration": float(seconds), "segments": [segment]}
    elif form == "diarized_json":
        spoken = {"id": "seg_0", "type": "transcript.text.segment", "speaker": "A", "text": text}
        body |= {"task": "transcribe", "duration": float(seconds)}
        body["segments"] = [{**spoken, "start": 0.0, "end": float(seconds)}]
    if wire is not None and not translated:
        body["usage"] = wire
    return body


def _subtitles(form: str, text: str, seconds: int) -> str:
    if form == "text":
        return f"{text}\n"
    end = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    if form == "vtt":
        return f"WEBVTT\n\n00:00:00.000 --> {end}.000\n{text}\n\n"
    return f"1\n00:00:00,000 --> {end},000\n{text}\n\n"
