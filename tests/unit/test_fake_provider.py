"""FakeProvider as a server: keys, scripts, faults, delivery, books, life cycle."""

from __future__ import annotations

import gc
import gzip
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
import zlib
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmeter.testing import Answer, FakeProvider
from tokenmeter.testing.composition import count_tokens, cut_to_tokens, split_words
from tokenmeter.testing.samples import sample_arguments

HELLO = {"model": "gpt-5", "messages": [{"role": "user", "content": "Hello there"}]}
CHAT = "/v1/chat/completions"
USAGE = {"include_usage": True}


@pytest.fixture
def connection(fake_provider):
    made = http.client.HTTPConnection("127.0.0.1", int(fake_provider.url.rsplit(":", 1)[1]), timeout=60)
    yield made
    made.close()


@pytest.fixture
def post(connection):
    """POST a chat completion; the status, headers and raw body."""

    def send(path=CHAT, *, headers=None, **changes):
        sent = {"authorization": "Bearer sk-test-0123456789", "content-type": "application/json", **(headers or {})}
        connection.request("POST", path, json.dumps({**HELLO, **changes}), sent)
        response = connection.getresponse()
        return response.status, response.headers, response.read()

    return send


def texts(body: bytes) -> str:
    chunks = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def test_one_connection_serves_many_requests(connection, post, fake_provider):
    post()
    before = connection.sock
    for _ in range(20):
        post()
        post(stream=True)
    assert connection.sock is before
    assert len(fake_provider.truth) == 41


def test_requests_are_kept_as_received(post, fake_provider):
    post("/v1/chat/completions?x=1", headers={"X-Custom": "Value"})
    (request,) = fake_provider.requests
    assert (request.method, request.path, request.query) == ("POST", CHAT, {"x": ["1"]})
    assert ("X-Custom", "Value") in request.headers
    assert request.body == json.dumps(HELLO).encode()
    assert request.json == HELLO
    assert request.received_at.tzinfo is UTC


def test_a_chunked_request_body_is_read(connection, fake_provider):
    pieces = iter([b'{"model": "m", ', b'"messages": []}'])
    connection.request("POST", CHAT, pieces, {"authorization": "Bearer k"}, encode_chunked=True)
    assert connection.getresponse().read()
    assert fake_provider.requests[0].json == {"model": "m", "messages": []}


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "DELETE"])
def test_unknown_urls_are_404_in_the_providers_shape(connection, method, fake_provider):
    connection.request(method, "/v1/nothing", headers={"authorization": "Bearer k"})
    response = connection.getresponse()
    body = response.read()
    assert response.status == 404
    assert method == "HEAD" or json.loads(body)["error"]["code"] == "unknown_url"
    assert fake_provider.truth[0].endpoint is None
    connection.request(method, "/v1/nothing", headers={"x-api-key": "k"})
    response = connection.getresponse()
    body = response.read()
    assert method == "HEAD" or json.loads(body)["error"]["type"] == "not_found_error"


def test_a_request_without_a_key_is_401(connection, fake_provider):
    connection.request("POST", CHAT, json.dumps(HELLO))
    response = connection.getresponse()
    assert response.status == 401
    assert json.loads(response.read())["error"]["code"] == "invalid_api_key"
    assert not fake_provider.truth[0].billed


def test_keys_can_be_limited_to_valid_ones():
    with FakeProvider(api_keys=["good-key-1234"]) as provider:
        for key, status in (("good-key-1234", 200), ("bad-key-5678", 401)):
            request = urllib.request.Request(  # noqa: S310 - our own server
                f"{provider.url}{CHAT}", json.dumps(HELLO).encode(), {"authorization": f"Bearer {key}"}
            )
            try:
                with urllib.request.urlopen(request) as response:  # noqa: S310 - as above
                    found = response.status
            except urllib.error.HTTPError as error:
                found = error.code
                error.close()
            assert found == status
        assert [(truth.api_key_last4, truth.billed) for truth in provider.truth] == [("1234", True), ("5678", False)]
        assert list(provider.usage("api_key")) == ["1234"]


def test_a_body_that_is_no_json_object_is_400(connection):
    connection.request("POST", CHAT, b"{", {"authorization": "Bearer k"})
    response = connection.getresponse()
    assert response.status == 400
    response.read()


def test_bytes_that_are_no_http_get_a_400_and_the_connection_ends(fake_provider):
    port = int(fake_provider.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        with raw.makefile("rb") as answer:
            assert answer.readline() == b"HTTP/1.1 400 Bad Request\r\n"


# -- scripts


def test_answers_are_given_in_order_and_then_the_usual_one(post, fake_provider):
    fake_provider.answer("first")
    fake_provider.answer("second", times=2)
    said = [json.loads(post()[2])["choices"][0]["message"]["content"] for _ in range(4)]
    assert said == ["first", "second", "second", "You said: Hello there"]


def test_an_answer_waits_for_a_request_that_matches(post, fake_provider):
    fake_provider.answer("embedded", path="*/embeddings")
    fake_provider.answer("mini", for_model="*-mini")
    said = [json.loads(post(model=model)[2])["choices"][0]["message"]["content"] for model in ("gpt-5", "gpt-5-mini")]
    assert said == ["You said: Hello there", "mini"]


def test_a_standing_answer_holds_until_reset(post, fake_provider):
    fake_provider.answer("always", times=None)
    fake_provider.answer("once")
    said = [json.loads(post()[2])["choices"][0]["message"]["content"] for _ in range(3)]
    assert said == ["once", "always", "always"]
    fake_provider.reset()
    assert fake_provider.truth == fake_provider.requests == []
    assert json.loads(post()[2])["choices"][0]["message"]["content"] != "always"


def test_a_ready_made_answer_can_be_scripted(post, fake_provider):
    fake_provider.script(Answer(text="ready", meters={"input": 1, "output": 2}))
    assert json.loads(post()[2])["usage"]["total_tokens"] == 3


def test_times_must_be_positive(fake_provider):
    with pytest.raises(ValueError, match="times=0"):
        fake_provider.answer("x", times=0)


def test_raw_bodies_are_sent_as_they_are_and_billed_by_their_usage(post, fake_provider):
    fake_provider.answer(body={"id": "x", "model": "m", "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    fake_provider.answer(body=b'{"broken', meters={"input": 1})
    fake_provider.answer(body="plain", headers={"content-type": "text/plain"})
    assert json.loads(post()[2])["id"] == "x"
    assert post()[2] == b'{"broken'
    status, headers, body = post()
    assert (status, headers["content-type"], body) == (200, "text/plain", b"plain")
    assert [dict(truth.meters.quantities) for truth in fake_provider.truth] == [
        {"input": 3, "output": 4},
        {"input": 1},
        {},
    ]


def test_raw_events_are_sent_as_they_are(post, fake_provider):
    fake_provider.answer(events=[{"a": 1}, "data: text\n\n", b": comment\n\n"], meters={"output": 9})
    assert post(stream=True)[2] == b'data: {"a":1}\n\ndata: text\n\n: comment\n\n'
    assert fake_provider.total["output"] == 9


def test_an_answer_without_usage_is_billed_all_the_same(post, fake_provider):
    fake_provider.answer(omit_usage=True)
    assert "usage" not in json.loads(post()[2])
    assert fake_provider.truth[0].usage is None
    assert fake_provider.truth[0].meters.total_tokens > 0


def test_a_waived_answer_carries_usage_but_is_not_billed(post, fake_provider):
    fake_provider.answer(billed=False)
    assert json.loads(post()[2])["usage"]["total_tokens"] > 0
    (truth,) = fake_provider.truth
    assert not truth.billed
    assert not truth.meters
    assert truth.consumptions
    assert fake_provider.usage() == {}


# -- faults


def test_failures_come_as_often_as_told_and_cost_nothing(post, fake_provider):
    fake_provider.fail(429, times=2, retry_after=0.25, message="Slow down", code="insufficient_quota")
    status, headers, body = post()
    assert (status, headers["retry-after"], headers["retry-after-ms"]) == (429, "0.25", "250")
    error = json.loads(body)["error"]
    assert (error["message"], error["code"]) == ("Slow down", "insufficient_quota")
    assert [post()[0], post()[0]] == [429, 200]
    assert [(truth.status, truth.billed) for truth in fake_provider.truth] == [(429, False), (429, False), (200, True)]


@pytest.mark.parametrize("billed", [False, True])
def test_a_reset_connection_gives_no_answer(post, fake_provider, billed):
    fake_provider.reset_connection(billed=billed)
    with pytest.raises(ConnectionResetError):
        post()
    (truth,) = fake_provider.truth
    assert (truth.status, truth.complete, truth.billed) == (0, False, billed)


def test_an_answer_can_be_late(post, fake_provider):
    fake_provider.answer(delay=0.1)
    begun = time.perf_counter()
    post()
    assert time.perf_counter() - begun >= 0.1


def test_a_stream_can_drip(post, fake_provider):
    fake_provider.answer("a b c", chunk_delay=0.02)
    begun = time.perf_counter()
    assert texts(post(stream=True)[2]) == "a b c"
    assert time.perf_counter() - begun >= 0.08


@pytest.mark.parametrize(("billing", "output"), [("generated", 40), ("sent", 20), ("nothing", 0)])
def test_a_cut_stream_is_billed_as_told(post, fake_provider, billing, output):
    fake_provider.answer("aa bb cc dd", meters={"input": 7, "output": 40}, cut_after=3, billing=billing)
    with pytest.raises(http.client.IncompleteRead) as caught:
        post(stream=True)
    assert texts(caught.value.partial) == "aa bb"
    (truth,) = fake_provider.truth
    assert (truth.complete, truth.billed) == (False, billing != "nothing")
    # 5 of 11 letters are out
    assert truth.meters["output"] == {40: 40, 20: round(40 * 5 / 11), 0: 0}[output]
    assert truth.meters["input"] == (0 if billing == "nothing" else 7)


def test_a_body_can_be_cut(post, fake_provider):
    fake_provider.cut(10)
    with pytest.raises(http.client.IncompleteRead) as caught:
        post()
    assert len(caught.value.partial) == 10
    assert not fake_provider.truth[0].complete
    assert fake_provider.truth[0].billed


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen within a minute"
        time.sleep(0.005)


@pytest.mark.parametrize("billing", ["generated", "sent", "nothing"])
def test_a_stream_the_client_leaves_is_billed_by_the_providers_rule(billing, capfd):
    words = " ".join(["word"] * 200)
    with FakeProvider(billing=billing) as provider:
        provider.answer(words, meters={"input": 5, "output": 1000}, chunk_delay=0.005)
        port = int(provider.url.rsplit(":", 1)[1])
        leaving = http.client.HTTPConnection("127.0.0.1", port)
        leaving.request("POST", CHAT, json.dumps({**HELLO, "stream": True}), {"authorization": "Bearer k"})
        with leaving.getresponse() as response:
            response.readline()
        leaving.close()
        wait_for(lambda: not provider.truth[0].complete)
        (truth,) = provider.truth
    expected = {"generated": 1000, "nothing": 0}.get(billing)
    if expected is None:
        assert 0 < truth.meters["output"] < 1000
    else:
        assert truth.meters["output"] == expected
    assert capfd.readouterr().err == ""


# -- delivery


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("split", [0, 7])
def test_bodies_can_be_compressed(post, fake_provider, encoding, stream, split):
    fake_provider.answer("compressed text", encoding=encoding, split=split)
    _, headers, body = post(stream=stream)
    assert headers["content-encoding"] == encoding
    plain = gzip.decompress(body) if encoding == "gzip" else zlib.decompress(body)
    assert b"compressed" in plain


@settings(max_examples=20, deadline=None)
@given(split=st.integers(1, 400), text=st.text(min_size=1, max_size=40))
def test_a_stream_split_anywhere_carries_the_same_bytes(split, text):
    with FakeProvider() as provider:
        provider.answer(text, response_id="x", times=2)
        provider.answer(text, response_id="x", split=split)
        connection = http.client.HTTPConnection("127.0.0.1", int(provider.url.rsplit(":", 1)[1]))
        bodies = []
        for _ in range(3):
            connection.request("POST", CHAT, json.dumps({**HELLO, "stream": True}), {"authorization": "Bearer k"})
            bodies.append(connection.getresponse().read())
        connection.close()
    assert texts(bodies[0]) == text
    assert [b.split(b"chat.completion.chunk")[1:] for b in bodies[:1]]
    assert texts(bodies[2]) == texts(bodies[1]) == text


# -- books


def test_books_are_written_before_the_answer_arrives(post, fake_provider):
    for number in range(1, 51):
        post(stream=number % 2 == 0)
        assert len(fake_provider.truth) == number


def test_many_threads_lose_nothing(fake_provider):
    port = int(fake_provider.url.rsplit(":", 1)[1])

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for _ in range(25):
            connection.request("POST", CHAT, json.dumps(HELLO), {"authorization": "Bearer k"})
            connection.getresponse().read()
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [truth.sequence for truth in fake_provider.truth] == list(range(1, 201))
    assert len({truth.response_id for truth in fake_provider.truth}) == 200
    assert fake_provider.usage("model")["gpt-5"] == fake_provider.total
    assert fake_provider.total["output"] == 200 * 6


def test_totals_group_by_what_is_asked(post, fake_provider):
    post(service_tier="flex")
    post(model="gpt-5-mini")
    assert set(fake_provider.usage("service_tier")) == {"flex", "default"}
    assert set(fake_provider.usage("endpoint")) == {"chat.completions"}
    assert set(fake_provider.usage("provider")) == {"openai"}
    assert set(fake_provider.usage("request_model")) == {"gpt-5", "gpt-5-mini"}


def test_the_clock_is_the_users():
    then = datetime(2026, 11, 30, 23, 59, tzinfo=UTC)
    with FakeProvider(clock=lambda: then) as provider:
        with urllib.request.urlopen(  # noqa: S310 - our own server
            urllib.request.Request(f"{provider.url}/v1/models", headers={"authorization": "Bearer k"})  # noqa: S310
        ):
            pass
        assert provider.truth[0].at == then


# -- life cycle


def test_a_provider_that_is_not_running_says_what_to_do():
    with pytest.raises(RuntimeError, match="start"):
        _ = FakeProvider().url


def test_stopping_waits_for_no_answer_and_frees_the_port_even_with_open_connections():
    provider = FakeProvider().start()
    port = int(provider.url.rsplit(":", 1)[1])
    provider.answer(delay=3600)
    with socket.create_connection(("127.0.0.1", port)) as idle, socket.create_connection(("127.0.0.1", port)) as busy:
        body = json.dumps(HELLO).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nauthorization: Bearer k\r\ncontent-length: {len(body)}\r\n\r\n"
        busy.sendall(head.encode() + body)
        wait_for(lambda: provider.requests)
        provider.stop()
        assert idle.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    assert provider.truth  # the books stay


def test_a_stopped_provider_can_start_again():
    provider = FakeProvider()
    for _ in range(2):
        with provider:
            assert provider.openai_url == f"{provider.url}/v1"


def test_no_threads_or_sockets_stay_behind():
    before = set(threading.enumerate())
    for _ in range(50):
        with (
            FakeProvider() as provider,
            urllib.request.urlopen(  # noqa: S310 - our own server
                urllib.request.Request(f"{provider.url}/v1/models", headers={"authorization": "Bearer k"})  # noqa: S310
            ) as response,
        ):
            response.read()
    gc.collect()
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert not [name for name in left if not name.startswith("tokenmeter-")]  # a meter of another test may begin one


@given(st.text())
def test_tokens_are_a_quarter_of_the_bytes_rounded_up(text):
    assert count_tokens(text) == -(-len(text.encode("utf-8", "surrogatepass")) // 4)


@given(st.text(), st.integers(0, 20))
def test_a_cut_text_is_within_its_tokens(text, limit):
    short = cut_to_tokens(text, limit)
    assert text.startswith(short)
    assert count_tokens(short) <= limit


@given(st.text())
def test_words_join_to_the_text(text):
    assert "".join(split_words(text)) == text


SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"$ref": "#/$defs/Kind"},
        "names": {"type": "array", "items": {"type": "string", "minLength": 2}, "minItems": 2},
        "count": {"type": "integer", "minimum": 7},
        "ready": {"type": "boolean"},
        "note": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        "either": {"type": ["number", "null"]},
        "spare": {"type": "string"},
    },
    "required": ["kind", "names", "count", "ready", "note", "either"],
    "$defs": {"Kind": {"enum": ["a", "b"]}},
}


def test_samples_fit_their_schema():
    assert sample_arguments(SCHEMA) == {
        "kind": "a",
        "names": ["xx", "xx"],
        "count": 7,
        "ready": True,
        "note": None,
        "either": 1,
    }
