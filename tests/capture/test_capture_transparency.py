"""Results, errors and lifecycles of a metered client look as the plain SDK's do, from outside and to a debugger."""

from __future__ import annotations

import asyncio
import copy
import gc
import re
import traceback
import warnings
from pathlib import Path

import pytest

import tokenmeter

MESSAGES = [{"role": "user", "content": "Hello"}]
CLIENTS = ["OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic"]
KINDS = ["our class", "wrapped"]
_NEW = re.compile(r"0x[0-9a-f]+|[A-Za-z]*[-_]?[0-9a-f]{12,}[0-9a-zA-Z-]*|req_\w+|created=\d+|:\d{4,5}")


def _masked(text):
    """`text` without ids, addresses, ports and times."""
    return _NEW.sub("~", str(text))


def _pair(clients, meter, name, kind, **options):
    """The plain SDK's client, and a metered one."""
    plain = clients.make(name, metered=False, **options)
    ours = clients.make(name, metered=kind == "our class", **options)
    return plain, tokenmeter.wrap(ours, meter)


def _resource(client):
    return client.chat.completions if hasattr(client, "chat") else client.messages


def _request(client, **more):
    if hasattr(client, "chat"):
        return {"model": "gpt-5-mini", "messages": MESSAGES, **more}
    return {"model": "claude-sonnet-5", "max_tokens": 64, "messages": MESSAGES, **more}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CLIENTS)
async def test_results_are_of_the_same_types_and_say_the_same_of_themselves(name, kind, clients, meter, do):
    seen = []
    for client in _pair(clients, meter, name, kind):
        resource, request = _resource(client), _request(client)
        result = await do(resource.create(**request))
        raw = await do(resource.with_raw_response.create(**request))
        stream = await do(resource.create(**request, stream=True))
        chunks = [chunk async for chunk in do.each(stream)]
        async with do.inside(resource.with_streaming_response.create(**request)) as streaming:
            body = await do(streaming.json())
        seen.append(
            {
                "types": [type(thing) for thing in (result, raw, stream, streaming, *chunks)],
                "reprs": [_masked(repr(thing)) for thing in (result, raw, streaming, chunks)],
                "stream": (type(stream.response), sorted(stream.response.headers), stream.response.is_closed),
                "request_id": (type(getattr(result, "_request_id", None)), type(getattr(raw, "request_id", None))),
                "raw": (type(raw.http_response), sorted(raw.headers), raw.status_code, raw.retries_taken, raw.method),
                "parsed": type(await do(raw.parse())),
                "body": sorted(body),
                "copy": copy.deepcopy(result) == result,
                "client": _masked(repr(client)).replace("tokenmeter.", ""),
            }
        )
    assert seen[0] == seen[1]


def _raised(error):
    """What code, logs and a debugger can see of an error, but for the lines of ours in its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(tokenmeter.__file__).parent)
    chain = []
    while error is not None:
        chain.append((type(error), _masked(error.args), _masked(error), error.__suppress_context__))
        error = error.__cause__ or error.__context__
    return chain, [frame.name for frame in frames if not frame.filename.startswith(ours)]


def _trouble(provider, trouble):
    if trouble == "reset":
        provider.reset_connection(times=2)
    elif trouble == "no answer in time":
        provider.answer("late", delay=60)
    elif trouble == "no json":
        provider.answer(body=b"{not json", headers={"content-type": "application/json"})
    else:
        provider.fail(trouble, times=2)


@pytest.mark.parametrize("trouble", [400, 401, 403, 404, 409, 422, 429, 500, "reset", "no answer in time", "no json"])
@pytest.mark.parametrize("name", CLIENTS)
async def test_errors_are_the_same_down_to_their_causes_and_tracebacks(name, trouble, clients, meter, provider, do):
    seen, timeout = [], 0.3 if trouble == "no answer in time" else 30
    for client in _pair(clients, meter, name, "our class", timeout=timeout):
        _trouble(provider, trouble)
        try:
            await do(_resource(client).create(**_request(client)))
        except Exception as error:
            response = getattr(error, "response", None)
            seen.append((_raised(error), _masked(getattr(error, "body", None)), response and sorted(response.headers)))
        else:
            seen.append("no error")
        provider.reset()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CLIENTS)
async def test_a_client_opens_closes_and_is_dropped_as_the_sdks_does(name, kind, clients, meter, do):
    seen = []
    for client in _pair(clients, meter, name, kind):
        told = [client.is_closed()]
        async with do.inside(client) as entered:
            told.append(entered is client)
        told.append(client.is_closed())
        try:
            await do(_resource(client).create(**_request(client)))
        except Exception as error:
            told.append(_raised(error))
        seen.append(told)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 4


@pytest.mark.parametrize("name", CLIENTS)
def test_an_unclosed_client_is_dropped_with_the_warnings_of_the_sdk(name, clients, meter):
    seen = []
    for metered in (False, True):
        client = clients.make(name, metered=metered)
        clients.made.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del client
            gc.collect()
        seen.append([(warning.category, _masked(warning.message)) for warning in caught])
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", ["AsyncOpenAI", "AsyncAnthropic"])
async def test_a_cancelled_call_raises_what_it_raises_without_us(name, clients, meter, provider):
    seen = []
    for client in _pair(clients, meter, name, "our class"):
        provider.answer("late", delay=60)
        task = asyncio.create_task(_resource(client).create(**_request(client)))
        while not provider.requests:  # noqa: ASYNC110 - the provider has a thread of its own
            await asyncio.sleep(0.01)
        task.cancel("no longer wanted")
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        seen.append((cancelled.value.args, task.cancelled(), task.cancelling()))
        provider.reset()
    assert seen[0] == seen[1]
