"""Whatever arrives over the wire, the caller gets what the plain SDK gives, and the ledger says what is known of it."""

from __future__ import annotations

import base64
import contextlib
import gc
import gzip
import inspect
import json
import re
import socket
import struct
import threading
import zlib
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import Mock

import anthropic
import openai
import pytest

import tokenmeter

MESSAGES = [{"role": "user", "content": "Tell me about the sea, please."}]
CALLS = {
    "openai": {"model": "gpt-5-mini", "messages": MESSAGES},
    "anthropic": {"model": "claude-sonnet-5", "max_tokens": 64, "messages": MESSAGES},
}
SDKS = ("openai", "anthropic")
ERROR = b'{"type": "error", "error": {"type": "overloaded_error", "message": "No."}}'
USED = {"input": 10, "output": 5}
RESET = "reset"
UNASKED = b'"choices": [], "usage"'
LONG = 2.0  # seconds; longer than a client of that case waits
PATIENCE = {True: 0.3, False: 10.0}


# -- a server that sends what it is told, byte for byte


class Wire:
    """Answers the n-th request below a path with its n-th script: bytes to send, seconds to wait, or `RESET`."""

    def __init__(self):
        self._scripts = {}
        self._served = {}
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def play(self, scripts):
        """The address of a server that plays `scripts`, the last one again and again."""
        name = f"s{len(self._scripts)}"
        self._scripts[name], self._served[name] = scripts, 0
        return f"http://127.0.0.1:{self._port}/{name}"

    def served(self, address):
        """How many requests arrived there."""
        return self._served[address.rpartition("/")[2]]

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection, contextlib.suppress(OSError):  # the client may go
            while request := _request(connection):
                path, body = request
                name = path.split("/")[1]
                scripts, number = self._scripts[name], self._served[name]
                self._served[name] += 1
                script = scripts[min(number, len(scripts) - 1)]
                if b"include_usage" not in body:  # as OpenAI does: only who asks is told
                    script = [step for step in script if not (isinstance(step, bytes) and UNASKED in step)]
                if not self._play(connection, script):
                    return

    def _play(self, connection, script):
        """Whether the connection may serve another request."""
        for step in script:
            if isinstance(step, bytes):
                connection.sendall(step)
            elif step == RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            else:
                self._over.wait(step)
        return isinstance(script[-1], bytes)

    def close(self):
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _request(connection):
    """Path and body of the next request; None when there is none."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        if not piece:
            return None
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while length and len(body) < int(length[1]):
        body += connection.recv(65536)
    return head.split(b" ")[1].decode(), body


@pytest.fixture(scope="module")
def wire():
    running = Wire()
    yield running
    running.close()


# -- what it sends


def head(status=200, kind="application/json", **headers):
    lines = [f"HTTP/1.1 {status} Said", *([f"content-type: {kind}"] if kind else [])]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def whole(body=b"", status=200, kind="application/json", **headers):
    """A response with its length."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head(status, kind, content_length=len(body), **headers) + body


def answer(sdk, **changed):
    """An ordinary answer; `changed` replaces its fields, ``...`` leaves one out."""
    if sdk == "openai":
        choice = {"index": 0, "message": {"role": "assistant", "content": "Salt."}, "finish_reason": "stop"}
        body = {"id": "c-1", "object": "chat.completion", "created": 1, "model": "gpt-5-mini", "choices": [choice]}
        body["usage"] = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    else:
        body = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-sonnet-5",
            "stop_sequence": None,
        }
        body |= {"content": [{"type": "text", "text": "Salt."}], "stop_reason": "end_turn"}
        body["usage"] = {"input_tokens": 10, "output_tokens": 5}
    return {name: value for name, value in {**body, **changed}.items() if value is not ...}


def events(sdk, *, usage=True, end=True):
    """The events of an ordinary stream, each as the bytes of its data."""
    if sdk == "openai":
        base = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-mini"}
        found = [
            {
                **base,
                "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Salt "}, "finish_reason": None}],
            },
            {**base, "choices": [{"index": 0, "delta": {"content": "water."}, "finish_reason": None}]},
            {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        ]
        if usage:
            found.append({**base, "choices": [], "usage": answer(sdk)["usage"]})
        return [json.dumps(event).encode() for event in found] + ([b"[DONE]"] if end else [])
    message = answer(sdk, content=[], stop_reason=None, usage={"input_tokens": 10, "output_tokens": 1})
    found = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Salt water."}},
        {"type": "content_block_stop", "index": 0},
    ]
    if usage:
        delta = {"stop_reason": "end_turn", "stop_sequence": None}
        found.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 5}})
    return [json.dumps(event).encode() for event in [*found, *([{"type": "message_stop"}] if end else [])]]


def framed(sdk, datas, *, eol=b"\n", lead=b"data: "):
    """`datas` as server-sent events."""
    found = []
    for data in datas:
        named = b""
        if sdk == "anthropic" and data.startswith(b"{"):
            named = b"event: " + json.loads(data)["type"].encode() + eol
        found.append(named + b"".join(lead + line + eol for line in data.split(b"\n")) + eol)
    return found


def chunked(pieces, *, end=True, **headers):
    """A chunked response of event stream."""
    sent = [head(kind="text/event-stream", transfer_encoding="chunked", **headers)]
    sent += [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    return [*sent, b"0\r\n\r\n"] if end else sent


def refused(sdk, status, **headers):
    error = {"type": "some_error", "message": "No.", "code": None, "param": None}
    body = {"error": error} if sdk == "openai" else {"type": "error", "error": error}
    return [whole(body, status, **headers)]


# -- the table


@dataclass(frozen=True)
class Case:
    """One thing that can go wrong, and what is to be recorded of it.

    `used`: quantities; "estimated" or "unknown" (flagged so); "perhaps" (flagged ``billing_unknown``); None, nothing.
    """

    name: str
    sdk: str
    scripts: list[Any]
    status: str | None = "ok"  # None: ended early, and why is not to be seen
    used: Any = field(default_factory=lambda: dict(USED))
    stream: bool = False
    attempts: int = 1
    retries: int = 0
    sent: int | None = None  # requests that arrive, where it is not one per attempt
    asks: bool = False  # the caller asks for the usage chunk himself
    lost: bool = False  # a try before the answer may have been billed

    def __str__(self):
        return f"{self.sdk}, {self.name}"


CASES: list[Case] = []


def case(name, *scripts, sdks=SDKS, **expected):
    """Add a case per SDK; a script may be a function of the SDK's name."""
    for sdk in sdks:
        made = [script(sdk) if callable(script) else script for script in scripts]
        CASES.append(Case(name, sdk, made, **expected))


def ordinary(sdk):
    return [whole(answer(sdk))]


# Connections
case("reset before the answer", [RESET], status="error", used="perhaps")
case("closed without an answer", [0.0], status="error", used="perhaps")
case("no HTTP at all", [b"\x00\x01\x02 nonsense\r\n\r\n", 0.0], status="error", used="perhaps")
case("reset, and answered at the second try", [RESET], ordinary, retries=1, attempts=2, lost=True)
case("no answer in time, then one", [LONG], ordinary, retries=1, attempts=2, lost=True)
case(
    "reset, and refused at the second try",
    [RESET],
    lambda sdk: refused(sdk, 400),
    status="error",
    used="perhaps",
    retries=1,
    attempts=2,
)
case(
    "reset, and streamed at the second try",
    [RESET],
    lambda sdk: chunked(framed(sdk, events(sdk))),
    stream=True,
    retries=1,
    attempts=2,
    lost=True,
)
case("closed in the middle of the headers", [b"HTTP/1.1 200 OK\r\ncontent-ty", 0.0], status="error", used="perhaps")
case("closed in the middle of the body", lambda sdk: [ordinary(sdk)[0][:-20], 0.0], status="error", used="perhaps")
case(
    "reset in the middle of the body", lambda sdk: [ordinary(sdk)[0][:-20], 0.02, RESET], status="error", used="perhaps"
)
case("no answer in time", [LONG], status="timeout", used="perhaps")
case("half a body in time", lambda sdk: [ordinary(sdk)[0][:-20], LONG], status="timeout", used="perhaps")
case("no answer in time, twice", [LONG], status="timeout", used="perhaps", retries=1, attempts=2)
case("an interim response first", lambda sdk: [b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n", *ordinary(sdk)])
case(
    "HTTP/1.0, closed at its end",
    lambda sdk: [b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n", json.dumps(answer(sdk)).encode(), 0.0],
)
case("longer than it says", lambda sdk: [ordinary(sdk)[0] + b'{"more": 1}', 0.0])
case("redirected", [head(307, location="again", content_length=0)], ordinary, sent=2)

# Refusals
for code in (400, 401, 403, 404, 409, 413, 422, 429, 500, 502, 503, 529):
    case(f"{code}", lambda sdk, code=code: refused(sdk, code), status="error", used=None)
for code in (408, 409, 429, 500, 503, 529):
    case(f"{code}, then an answer", lambda sdk, code=code: refused(sdk, code), ordinary, retries=2, attempts=2)
case(
    "429 with retry-after, then an answer",
    lambda sdk: refused(sdk, 429, retry_after="0.01", retry_after_ms="10"),
    ordinary,
    retries=1,
    attempts=2,
)
case("503 for good", lambda sdk: refused(sdk, 503), status="error", used=None, retries=2, attempts=3)
case("400, to be tried again", lambda sdk: refused(sdk, 400, x_should_retry="true"), ordinary, retries=1, attempts=2)
case(
    "500, not to be tried again",
    lambda sdk: refused(sdk, 500, x_should_retry="false"),
    status="error",
    used=None,
    retries=1,
)
case("502 of a gateway, in HTML", [whole(b"<html>Bad gateway</html>", 502, "text/html")], status="error", used=None)
case("500 without a body", [whole(b"", 500)], status="error", used=None)
case("an error body that is cut off", lambda sdk: [refused(sdk, 400)[0][:-9], 0.0], status="error", used="perhaps")

# Bodies
case(
    "cut off JSON of the right length",
    lambda sdk: [whole(json.dumps(answer(sdk)).encode()[:60])],
    status="error",
    used="unknown",
)
case("an empty body", [whole(b"")], status="error", used="unknown")
case("204", [head(204, kind=None)], used="unknown")
case("null", [whole(b"null")], used="unknown")
case("a list", [whole(b"[]")], used="unknown")
case("HTML with status 200", [whole(b"<html>Log in, please</html>", 200, "text/html")], used="unknown")
case("JSON sent as text", lambda sdk: [whole(answer(sdk), kind="text/plain")], used=dict(USED))
case("JSON of no type", lambda sdk: [whole(answer(sdk), kind=None)], used=dict(USED))
case("a byte order mark", lambda sdk: [whole(b"\xef\xbb\xbf" + json.dumps(answer(sdk)).encode())])
case(
    "no UTF-8",
    lambda sdk: [whole(json.dumps(answer(sdk)).encode().replace(b"Salt", b"\xff\xfe"))],
    status="error",
    used="unknown",
)
case("gzip", lambda sdk: [whole(gzip.compress(json.dumps(answer(sdk)).encode()), content_encoding="gzip")])
case("broken gzip", [whole(b"\x1f\x8b\x08 nonsense", content_encoding="gzip")], status="error", used="perhaps")
case(
    "a large body",
    lambda sdk: [
        whole(answer(sdk, choices=[{"index": 0, "message": {"role": "assistant", "content": "x" * 4_000_000}}]))
        if sdk == "openai"
        else whole(answer(sdk, content=[{"type": "text", "text": "x" * 4_000_000}]))
    ],
)

# Usage
for name, usage in (
    ("null", None),
    ("missing", ...),
    ("empty", {}),
    ("a text", "10"),
    ("a list", [10, 5]),
    ("a number", 15),
):
    case(f"usage {name}", lambda sdk, usage=usage: [whole(answer(sdk, usage=usage))], used="unknown")
for name, count in (
    ("negative", -10),
    ("a text", "ten"),
    ("a fraction", 10.5),
    ("true", True),
    ("a list", [10]),
    ("infinite", float("inf")),
    ("no number", float("nan")),
):

    def _odd(sdk, count=count):
        names = ("prompt_tokens", "completion_tokens") if sdk == "openai" else ("input_tokens", "output_tokens")
        return [whole(answer(sdk, usage={names[0]: count, names[1]: 5}))]

    case(f"a count that is {name}", _odd, used="unknown")
HUGE = 10**11


def _with_counts(sdk, given, made, **more):
    names = ("prompt_tokens", "completion_tokens") if sdk == "openai" else ("input_tokens", "output_tokens")
    return [whole(answer(sdk, usage={names[0]: given, names[1]: made, **more}))]


case("whole numbers written as fractions", lambda sdk: _with_counts(sdk, 10.0, 5.0))
case("a huge count", lambda sdk: _with_counts(sdk, HUGE, 5), used={"input": HUGE, "output": 5})
for absurd in (10**13, 10**40, 1e300):
    case(f"a count of {absurd:.0e}", lambda sdk, absurd=absurd: _with_counts(sdk, absurd, 5), used="unknown")
case("usage with unknown keys", lambda sdk: _with_counts(sdk, 10, 5, surprise=3, more={"a": None}))
case("usage with null details", lambda sdk: _with_counts(sdk, 10, 5, prompt_tokens_details=None, cache_creation=None))
case("no model", lambda sdk: [whole(answer(sdk, model=None))])
case("no id", lambda sdk: [whole(answer(sdk, id=...))])
case("nothing but usage", lambda sdk: [whole({"usage": answer(sdk)["usage"]})])
case("a field nobody knows", lambda sdk: [whole(answer(sdk, surprise={"deep": [1, {"er": 2}]}))])

# Streams
case("a stream", lambda sdk: chunked(framed(sdk, events(sdk))), stream=True)
case(
    "a stream reset at once",
    [head(kind="text/event-stream", transfer_encoding="chunked"), 0.02, RESET],
    stream=True,
    status="error",
    used="estimated",
)
for name, last in (("reset", [0.02, RESET]), ("closed", [0.0])):
    case(
        f"a stream {name} before its usage",
        lambda sdk, last=last: [*chunked(framed(sdk, events(sdk)[:2]), end=False), *last],
        stream=True,
        status="error",
        used="estimated",
    )
    case(
        f"a stream {name} behind its usage",
        lambda sdk, last=last: [*chunked(framed(sdk, events(sdk, end=False)), end=False), *last],
        stream=True,
    )
case(
    "a stream that stalls before its usage",
    lambda sdk: [*chunked(framed(sdk, events(sdk)[:2]), end=False), LONG],
    stream=True,
    status="timeout",
    used="estimated",
)
case("a stream without end mark", lambda sdk: chunked(framed(sdk, events(sdk, end=False))), stream=True)
case(
    "a stream without usage", lambda sdk: chunked(framed(sdk, events(sdk, usage=False))), stream=True, used="estimated"
)
case("a stream without events", lambda sdk: chunked([]), stream=True, used="estimated")
case(
    "usage twice", lambda sdk: chunked(framed(sdk, [*events(sdk)[:-1], events(sdk)[-2], events(sdk)[-1]])), stream=True
)
case("more behind the end mark", lambda sdk: chunked(framed(sdk, [*events(sdk), events(sdk)[-2]])), stream=True)
case(
    "comments",
    lambda sdk: chunked([b": ping\n\n", b":\n\n", *framed(sdk, events(sdk)), b": bye\n\n"]),
    stream=True,
)
case(
    "Anthropic's pings",
    lambda sdk: chunked([b'event: ping\ndata: {"type": "ping"}\n\n', *framed(sdk, events(sdk))]),
    sdks=["anthropic"],
    stream=True,
)
case("lines that end in CRLF", lambda sdk: chunked(framed(sdk, events(sdk), eol=b"\r\n")), stream=True)
case("lines that end in CR", lambda sdk: chunked(framed(sdk, events(sdk), eol=b"\r")), stream=True)
case("no space behind the colon", lambda sdk: chunked(framed(sdk, events(sdk), lead=b"data:")), stream=True)
case(
    "data over several lines",
    lambda sdk: chunked(framed(sdk, [data.replace(b", ", b",\n") for data in events(sdk)])),
    asks=True,
    stream=True,
)
case(
    "cut within characters and lines",
    lambda sdk: chunked(
        [bytes([byte]) for byte in b"".join(framed(sdk, events(sdk))).replace(b"Salt", "Sälz".encode())]
    ),
    stream=True,
    asks=True,
)
case(
    "a stream with an event that is no JSON",
    lambda sdk: chunked(framed(sdk, [*events(sdk)[:2], b"<oops>"])),
    sdks=["openai"],
    stream=True,
    status="error",
    used="estimated",
)
case(
    "usage that counts up on every chunk",
    lambda sdk: chunked(
        framed(
            sdk,
            [
                *(
                    json.dumps({**json.loads(data), "usage": {"prompt_tokens": 10, "completion_tokens": n}}).encode()
                    for n, data in enumerate(events(sdk)[:3], 3)
                ),
                b"[DONE]",
            ],
        )
    ),
    sdks=["openai"],
    stream=True,
)
case(
    "usage that is null until the end",
    lambda sdk: chunked(
        framed(
            sdk, [*(json.dumps({"usage": None, **json.loads(data)}).encode() for data in events(sdk)[:4]), b"[DONE]"]
        )
    ),
    sdks=["openai"],
    asks=True,
    stream=True,
)
case(
    "an error within a stream",
    lambda sdk: chunked(framed(sdk, [*events(sdk)[:2], ERROR])),
    stream=True,
    status="error",
    used="estimated",
)
case(
    "an error in place of a stream's first event",
    lambda sdk: chunked(framed(sdk, [ERROR])),
    stream=True,
    status="error",
    used="estimated",
)
case(
    "JSON in place of a stream",
    lambda sdk: [whole(answer(sdk))],
    stream=True,
    used="estimated",
)
case(
    "a stream in gzip",
    lambda sdk: chunked([gzip.compress(b"".join(framed(sdk, events(sdk))))], content_encoding="gzip"),
    stream=True,
    asks=True,
)
case(
    "a stream in broken gzip",
    lambda sdk: chunked([b"nonsense"], content_encoding="gzip"),
    stream=True,
    status=None,
    used="estimated",
)
case("a stream refused", lambda sdk: refused(sdk, 503), stream=True, status="error", used=None)
case(
    "a stream refused, then given",
    lambda sdk: refused(sdk, 429),
    lambda sdk: chunked(framed(sdk, events(sdk))),
    stream=True,
    retries=1,
    attempts=2,
)
case(
    "a stream until the connection closes",
    lambda sdk: [head(kind="text/event-stream", connection="close"), *framed(sdk, events(sdk)), 0.0],
    stream=True,
)


# -- the promise


@pytest.fixture(autouse=True)
def _retry_at_once(monkeypatch):
    for sdk in (openai, anthropic):
        monkeypatch.setattr(f"{sdk.__name__}._base_client.INITIAL_RETRY_DELAY", 0.001)


def client_of(one, kind, address, meter):
    """A client of the plain SDK, or metered."""
    sdk = {"openai": openai, "anthropic": anthropic}[one.sdk]
    name = {"openai": "OpenAI", "anthropic": "Anthropic"}[one.sdk]
    http = sdk.DefaultHttpxClient if kind == "sync" else sdk.DefaultAsyncHttpxClient
    patience = PATIENCE[LONG in one.scripts[0]]
    client = getattr(sdk, name if kind == "sync" else f"Async{name}")(
        api_key="sk-test",
        base_url=address,
        timeout=patience,
        max_retries=one.retries,
        http_client=http(verify=False, timeout=patience),
    )
    return client if meter is None else tokenmeter.wrap(client, meter)


async def attempt(client, one, do):
    """What the caller sees: the result, or the error."""
    create = client.chat.completions.create if one.sdk == "openai" else client.messages.create
    got = []
    try:
        if one.stream:
            asked = {"stream_options": {"include_usage": True}} if one.asks and one.sdk == "openai" else {}
            async for event in do.each(create(**CALLS[one.sdk], stream=True, **asked)):
                got.append(shown(event))  # noqa: PERF401 - what came before an error counts
        else:
            got.append(shown(await do(create(**CALLS[one.sdk]))))
    except Exception as error:  # the comparison is the point
        cause = error.__cause__
        return got, type(error), str(error), getattr(error, "body", None), type(cause), str(cause)
    return got


def shown(value):
    return value.model_dump(mode="json", exclude_unset=True) if hasattr(value, "model_dump") else value


def _closes_streams(sdk):
    """The oldest SDKs leave a stream open when it fails, and it is settled when it is dropped."""
    return "finally" in inspect.getsource({"openai": openai, "anthropic": anthropic}[sdk].Stream.__stream__)


def check(one, entry):
    """The ledger's word on a case."""
    assert (entry.attempts, entry.streamed) == (one.attempts, one.stream)
    if one.status is None or (one.status == "error" and one.stream and not _closes_streams(one.sdk)):
        assert entry.status in {"error", "aborted"}
    else:
        assert entry.status == one.status
    quantities, flags = dict(entry.usage.quantities), set(entry.flags)
    assert ("lost_try" in flags) == (one.lost and hasattr(openai.OpenAI, "_sleep_for_retry"))
    if isinstance(one.used, dict):
        assert quantities == one.used
        assert entry.list_cost > 0
        assert not flags & {"estimated", "usage_unknown", "billing_unknown"}
    elif one.used == "estimated":
        assert "estimated" in flags
        assert quantities["input"] > 0
    elif one.used == "unknown":
        assert flags & {"usage_unknown", "estimated"}
    else:
        assert (quantities, entry.billed_cost) == ({}, None)
        assert ("billing_unknown" in flags) == (one.used == "perhaps")


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("one", CASES, ids=str)
async def test_the_caller_sees_no_difference_and_the_ledger_tells_the_truth(one, kind, wire, meter, do):
    seen = []
    for recorder in (meter, None):
        address = wire.play(one.scripts)
        client = client_of(one, kind, address, recorder)
        seen.append(await attempt(client, one, do))
        await do(client.close())
        assert wire.served(address) == (one.sent or one.attempts)
    assert seen[0] == seen[1]
    if not (entries := list(meter.store.entries())):
        gc.collect()  # openai's streams refer to themselves
        entries = list(meter.store.entries())
    (entry,) = entries
    check(one, entry)
    assert meter.faults == 0


@pytest.mark.skipif(not hasattr(openai.OpenAI, "_sleep_for_retry"), reason="older SDKs do not tell")
@pytest.mark.parametrize("sdk", SDKS)
async def test_a_warm_call_tells_of_a_lost_try_as_well(sdk, wire, meter, do):
    one = Case("", sdk, [*[ordinary(sdk)] * 3, [RESET], ordinary(sdk)], retries=1)
    client = client_of(one, "sync", wire.play(one.scripts), meter)
    for _ in range(5):
        await attempt(client, one, do)
    await do(client.close())
    flags = [(entry.attempts, entry.flags) for entry in meter.store.entries()]
    assert flags == [(1, ()), (1, ()), (1, ()), (2, ("lost_try",)), (1, ())]


def test_what_is_nested_too_deep_costs_only_itself():
    """A frame is left out, and a results file is read up to that line."""
    from tokenmeter.capture.genai_requests import _lines_of
    from tokenmeter.capture.raw import _event_in

    deep = b"[" * 100_000
    assert _event_in(deep) is None
    assert _event_in(b'{"bytes": "%s"}' % base64.b64encode(deep)) is None
    assert list(_lines_of(b'{"response": {}}\n{"response": ' + deep)) == [(0, {"response": {}})]


@pytest.mark.parametrize("split", [1, 1000])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, identity", "Deflate"])
def test_whatever_servers_call_deflate_is_read(encoding, split):
    """Some leave zlib's header out, which HTTP clients take as well."""
    from tokenmeter.capture.raw import RawReader

    sent = json.dumps({"usage": "all of it" * 9}).encode()
    packed = [gzip.compress(sent)] if "gzip" in encoding else [zlib.compress(sent), zlib.compress(sent)[2:-4]]
    for body in packed:
        heard = Mock()
        reader = RawReader({"content-type": "application/json", "content-encoding": encoding}, heard)
        pieces = [b"", *(body[at : at + split] for at in range(0, len(body), split))]
        for piece in pieces:
            reader.feed(piece)
        reader.close()
        heard.saw_body.assert_called_once_with(json.loads(sent))
