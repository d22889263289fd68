"""OpenAI beside text: images, speech, transcriptions, files, models; and jobs, all done at the first look."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tokenmeter.testing.composition import count_tokens, prompt_tokens, responses_usage, split_words
from tokenmeter.testing.context import Context, RefusalError, Served, State, Upload, error_body, merged
from tokenmeter.testing.openai_chat import SSE
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import JSON, Event, Reply, dump, json_reply, part, sse
from tokenmeter.usage import Consumption, Usage

_DAY = 86_400
_EPOCHS = 3
_VIDEO_SECONDS = "4"


# -- batches


def create_batch(context: Context) -> Served:
    """``POST /batches``: every line is served, and billed, at once; the caller sees it when it looks again."""
    data: bytes = context.state.get("contents", str(context.need("input_file_id")))
    window, endpoint = context.need("completion_window"), context.need("endpoint")
    done: list[JSON] = []
    failed: list[JSON] = []
    bills: list[tuple[str, Bill]] = []
    for line in data.splitlines():
        if line.strip():
            _serve_line(context, json.loads(line), done, failed, bills)
    batch: JSON = {
        "id": context.new_id("batch_"),
        "object": "batch",
        "endpoint": endpoint,
        "input_file_id": context.body["input_file_id"],
        "completion_window": window,
        "status": "validating",
        "created_at": context.timestamp,
        "expires_at": context.timestamp + _DAY,
        "request_counts": {"total": len(done) + len(failed), "completed": 0, "failed": 0},
        "metadata": context.body.get("metadata"),
    }
    finished = _finish(context, batch, done, failed, bills)
    context.state.put("batches", batch["id"], finished)
    return Served(reply=json_reply(batch), bill=Bill(response_id=batch["id"]), lines=tuple(bills))


def _serve_line(
    context: Context, line: JSON, done: list[JSON], failed: list[JSON], bills: list[tuple[str, Bill]]
) -> None:
    row: JSON = {"id": context.state.new_id("batch_req_"), "custom_id": line["custom_id"]}
    request_id = context.state.new_id("req_")
    try:
        endpoint, served = context.inner(line["url"], line["body"])
    except RefusalError as refusal:
        body = error_body("openai", refusal, request_id=request_id)
        response = {"status_code": refusal.status, "request_id": request_id, "body": body}
        failed.append({**row, "response": response, "error": None})
        return
    body = json.loads(served.reply.body)
    done.append({**row, "response": {"status_code": 200, "request_id": request_id, "body": body}, "error": None})
    if served.bill is not None:
        bills.append((endpoint, served.bill.for_line(line["custom_id"])))


def _finish(context: Context, batch: JSON, done: list[JSON], failed: list[JSON], bills: list[tuple[str, Bill]]) -> JSON:
    now = context.timestamp
    finished: JSON = {
        **batch,
        "status": "completed",
        "in_progress_at": now,
        "finalizing_at": now,
        "completed_at": now,
        "request_counts": {"total": len(done) + len(failed), "completed": len(done), "failed": len(failed)},
    }
    for name, rows in (("output", done), ("error", failed)):
        if rows:
            data = b"".join(dump(row) + b"\n" for row in rows)
            file = store_file(context.state, data, f"{batch['id']}_{name}.jsonl", "batch_output", now)
            finished[f"{name}_file_id"] = file["id"]
    parts = [one for _, bill in bills for one in bill.consumptions]
    if not context.answer.omit_usage:
        finished["usage"] = _batch_usage(Usage.total(one.usage for one in parts))
    models = {one.model for one in parts}
    if len(models) == 1:
        finished["model"] = models.pop()
    return finished


def _batch_usage(usage: Usage) -> JSON:
    wire = responses_usage(usage)
    del wire["input_tokens_details"]["cache_write_tokens"]
    return wire


def list_batches(context: Context) -> Served:
    """``GET /batches``: all of them, or those behind the one called ``after``. Old SDKs ask until there are none."""
    batches = context.state.all("batches")
    ids = [batch["id"] for batch in batches]
    after = context.request.query.get("after", [])
    shown = batches[ids.index(after[0]) + 1 :] if after and after[0] in ids else batches
    return Served(reply=json_reply({"object": "list", "data": shown, "has_more": False}))


def cancel_batch(context: Context) -> Served:
    """``POST /batches/{id}/cancel``: what was done by then is done."""
    batch: JSON = context.state.get("batches", context.params[0])
    cancelled = {**batch, "status": "cancelled", "cancelling_at": context.timestamp, "cancelled_at": context.timestamp}
    del cancelled["completed_at"]
    context.state.put("batches", batch["id"], cancelled)
    return Served(reply=json_reply({**cancelled, "status": "cancelling", "cancelled_at": None}))


# -- fine-tuning


def create_tuning(context: Context) -> Served:
    """``POST /fine_tuning/jobs``: the training file's tokens are billed once per epoch."""
    model = str(context.need("model"))
    data: bytes = context.state.get("contents", str(context.need("training_file")))
    asked: Any = part(context.body, "hyperparameters").get("n_epochs")
    epochs = asked if isinstance(asked, int) else _EPOCHS
    used = Usage(
        dict(context.answer.meters or {"trained_tokens": count_tokens(data.decode("utf-8", "replace")) * epochs})
    )
    job: JSON = {
        "id": context.new_id("ftjob-"),
        "object": "fine_tuning.job",
        "created_at": context.timestamp,
        "error": None,
        "fine_tuned_model": None,
        "finished_at": None,
        "hyperparameters": {"n_epochs": epochs, "batch_size": "auto", "learning_rate_multiplier": "auto"},
        "model": model,
        "organization_id": "org-fake",
        "result_files": [],
        "seed": int(context.body.get("seed") or 0),
        "status": "queued",
        "trained_tokens": None,
        "training_file": context.body["training_file"],
        "validation_file": context.body.get("validation_file"),
    }
    finished = {
        **job,
        "status": "succeeded",
        "finished_at": context.timestamp,
        "trained_tokens": int(used["trained_tokens"]),
        "fine_tuned_model": f"ft:{model}:fake::{job['id'][-8:]}",
    }
    context.state.put("tunings", job["id"], finished)
    charged = Consumption(model=model, usage=used, role="training")
    return Served(reply=json_reply(job), bill=Bill(model=model, response_id=job["id"], consumptions=(charged,)))


# -- videos


def create_video(context: Context) -> Served:
    """``POST /videos``: billed by the second."""
    model = str(context.body.get("model") or "sora-2")
    seconds = str(context.body.get("seconds") or _VIDEO_SECONDS)
    video: JSON = {
        "id": context.new_id("video_"),
        "object": "video",
        "model": model,
        "status": "queued",
        "progress": 0,
        "created_at": context.timestamp,
        "seconds": seconds,
        "size": context.body.get("size") or "720x1280",
        "prompt": context.need("prompt"),
    }
    finished = {**video, "status": "completed", "progress": 100, "completed_at": context.timestamp}
    context.state.put("videos", video["id"], finished)
    charged = Consumption(model=model, usage=Usage(dict(context.answer.meters or {"seconds_video": int(seconds)})))
    return Served(reply=json_reply(video), bill=Bill(model=model, response_id=video["id"], consumptions=(charged,)))


def video_content(context: Context) -> Served:
    """``GET /videos/{id}/content``."""
    context.state.get("videos", context.params[0])
    return Served(reply=Reply(headers={"content-type": "video/mp4"}, body=b"\x00\x00\x00\x18ftypmp42"))


_MODELS = ("gpt-5", "gpt-5-mini", "gpt-4o", "text-embedding-3-small", "gpt-image-1", "whisper-1")
_MODELS_MADE = 1_700_000_000


def upload(context: Context) -> Served:
    """``POST /files``."""
    given = context.need("file")
    if not isinstance(given, Upload):
        raise RefusalError(400, "file: expected an uploaded file.", param="file")
    purpose = str(context.need("purpose"))
    return Served(reply=json_reply(store_file(context.state, given, given.filename, purpose, context.timestamp)))


def store_file(state: State, data: bytes, filename: str, purpose: str, created_at: int) -> JSON:
    """Keep a file; its file object."""
    file: JSON = {
        "id": state.new_id("file-"),
        "object": "file",
        "bytes": len(data),
        "created_at": created_at,
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
    }
    state.put("files", file["id"], file)
    state.put("contents", file["id"], data)
    return file


def content(context: Context) -> Served:
    """``GET /files/{id}/content``."""
    data: bytes = context.state.get("contents", context.params[0])
    return Served(reply=Reply(headers={"content-type": "application/octet-stream"}, body=data))


def list_files(context: Context) -> Served:
    """``GET /files``."""
    return Served(reply=json_reply(_page(context.state.all("files"))))


def delete_file(context: Context) -> Served:
    """``DELETE /files/{id}``."""
    identity = context.state.get("files", context.params[0])["id"]
    context.state.remove("files", identity)
    context.state.remove("contents", identity)
    return Served(reply=json_reply({"id": identity, "object": "file", "deleted": True}))


def list_models(context: Context) -> Served:
    """``GET /models``."""
    del context
    return Served(reply=json_reply({"object": "list", "data": [_model(name) for name in _MODELS]}))


def model(context: Context) -> Served:
    """``GET /models/{id}``: every model exists."""
    return Served(reply=json_reply(_model(context.params[0])))


def _model(name: str) -> JSON:
    return {"id": name, "object": "model", "created": _MODELS_MADE, "owned_by": "fake"}


def _page(items: list[Any]) -> JSON:
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {}
    return {"object": "list", "data": items, "has_more": False, **ends}


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
