"""What goes wrong on the caller's side of the wire: the caller sees no difference, and the ledger tells the truth."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import socket
import sqlite3
import sys
import threading
from datetime import UTC, datetime, timedelta

import anthropic
import openai
import pytest
from google import genai

import tokenmeter
from tokenmeter.errors import StoreUnavailableError
from tokenmeter.meter import Meter
from tokenmeter.stores import open_store
from tokenmeter.testing import FakeProvider

MESSAGES = [{"role": "user", "content": "Tell me about the sea, please."}]
CHAT = {"model": "gpt-5-mini", "messages": MESSAGES}
MESSAGE = {"model": "claude-sonnet-5", "max_tokens": 64, "messages": MESSAGES}
BOTH = ["OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic"]
SYNC = ["OpenAI", "Anthropic"]
TWO = ["OpenAI", "AsyncAnthropic"]
ASYNC = ["AsyncOpenAI", "AsyncAnthropic"]


def _call(client, **more):
    return (
        client.chat.completions.create(**CHAT, **more)
        if hasattr(client, "chat")
        else client.messages.create(**MESSAGE, **more)
    )


async def _raised(client, do):
    """The error of one call, as the caller sees it."""
    with pytest.raises(Exception) as raised:  # noqa: PT011 - whichever it is, it is the same
        await do(_call(client))
    error = raised.value
    return type(error), str(error), type(error.__cause__)


async def _same_error(clients, name, do, **options):
    errors = [await _raised(clients.make(name, metered=metered, **options), do) for metered in (True, False)]
    assert errors[0] == errors[1]
    return errors[0][0].__name__


def _sdk(name):
    return openai if "OpenAI" in name else anthropic


def _httpx(name):
    return __import__(_sdk(name).DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])


def _http(name, **options):
    kind = _sdk(name).DefaultAsyncHttpxClient if name.startswith("Async") else _sdk(name).DefaultHttpxClient
    return kind(verify=False, **options)


# -- no connection


def _closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def deaf_port():
    """A port whose queue of connections is full."""
    with contextlib.ExitStack() as open_now:
        listener = open_now.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = open_now.enter_context(socket.socket())
            waiting.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("where", ["a port where nobody listens", "a name nobody has"])
async def test_who_cannot_connect_is_not_billed(where, name, clients, books, do):
    host = f"127.0.0.1:{_closed_port()}" if "port" in where else "nobody.invalid"
    kind = await _same_error(clients, name, do, base_url=f"http://{host}/v1")
    entry = books.one()
    assert (entry.status, entry.error_type, entry.attempts) == ("error", kind, 1)
    assert (entry.billed_cost, entry.flags, dict(entry.usage.quantities)) == (None, (), {})


@pytest.mark.parametrize("name", TWO)
async def test_who_waits_for_a_connection_in_vain_is_not_billed(name, clients, books, do, deaf_port):
    timeout = _httpx(name).Timeout(5, connect=0.05)
    await _same_error(clients, name, do, base_url=f"http://127.0.0.1:{deaf_port}/v1", timeout=timeout)
    entry = books.one()
    assert (entry.status, entry.billed_cost, entry.flags) == ("timeout", None, ())


@pytest.mark.parametrize("name", TWO)
async def test_who_waits_for_a_place_in_the_pool_in_vain_is_not_billed(name, clients, books, do):
    httpx = _httpx(name)
    http = _http(name, limits=httpx.Limits(max_connections=1))
    client = clients.make(name, http_client=http, timeout=httpx.Timeout(5, pool=0.05))
    stream = await do(_call(client, stream=True))
    await _raised(client, do)
    await do(stream.close())
    waited = next(entry for entry in books.all() if not entry.streamed)
    assert (waited.status, waited.billed_cost, waited.flags) == ("timeout", None, ())


@pytest.mark.parametrize("name", TWO)
async def test_a_proxy_of_the_environment_is_used_as_by_the_plain_sdk(name, clients, books, do, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{_closed_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    await _same_error(clients, name, do, base_url="http://api.example.test/v1", http_client=_http(name))
    assert (books.one().status, books.one().flags) == ("error", ())


@pytest.mark.parametrize("name", TWO)
async def test_a_call_through_a_proxy_is_recorded(name, clients, books, provider, do, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", provider.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    path = "/v1" if "OpenAI" in name else ""
    client = clients.make(name, base_url=f"http://api.example.test{path}", http_client=_http(name))
    await do(_call(client))
    assert provider.requests[0].target.startswith("http://api.example.test/")
    assert books.one().usage.input_tokens == provider.total.input_tokens > 0


# -- the client is closed, the caller leaves


@pytest.mark.parametrize("name", BOTH)
async def test_a_closed_client_sends_nothing_and_is_not_billed(name, clients, books, provider, do):
    errors = []
    for metered in (True, False):
        client = clients.make(name, metered=metered)
        await do(client.close())
        errors.append(await _raised(client, do))
    assert errors[0] == errors[1]
    assert provider.requests == []
    assert (books.one().status, books.one().flags) == ("error", ())


@pytest.mark.parametrize("name", BOTH)
async def test_a_client_that_is_closed_while_it_streams_leaves_an_entry(name, clients, books, provider, do):
    provider.answer(chunk_delay=0.02)
    client = clients.make(name)
    stream = await do(_call(client, stream=True))
    with contextlib.suppress(Exception):  # what the SDK does then differs by its version
        async for _event in do.each(stream):
            await do(client.close())
    del stream
    assert books.one().status in {"aborted", "error"}
    assert "estimated" in books.one().flags


@pytest.mark.parametrize("name", ASYNC)
async def test_a_call_that_was_never_awaited_makes_no_entry(name, clients, books, provider):
    task = asyncio.ensure_future(_call(clients.make(name)))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (books.all(), provider.requests) == ([], [])


async def _given_up(call, how, provider):
    """Give `call` up after it has reached the provider, who has not answered yet."""
    waiting = asyncio.ensure_future(call)
    while not provider.requests:  # noqa: ASYNC110 - the provider has a thread of its own
        await asyncio.sleep(0.01)
    if how == "wait_for":
        await asyncio.wait_for(waiting, 0.05)
    elif how == "timeout":
        async with asyncio.timeout(0.05):
            await waiting
    else:
        waiting.cancel()
        await waiting


@pytest.mark.parametrize("name", ASYNC)
@pytest.mark.parametrize("how", ["wait_for", "timeout", "cancel"])
async def test_a_call_given_up_while_it_waits_is_recorded_with_unknown_billing(how, name, clients, books, provider):
    provider.answer(delay=60)
    call = _call(clients.make(name))
    with pytest.raises((TimeoutError, asyncio.CancelledError)):
        await _given_up(call, how, provider)
    entry = books.one()
    assert (entry.status, entry.billed_cost) == ("aborted", None)
    assert "billing_unknown" in entry.flags


class Stop(BaseException):
    """Stands for a program's own way to leave."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Stop, ValueError, GeneratorExit])
@pytest.mark.parametrize("name", BOTH)
async def test_whatever_the_caller_raises_while_he_reads_is_his_and_the_entry_is_aborted(
    error, name, clients, books, do
):
    async def read():
        async with do.inside(_call(clients.make(name), stream=True)) as stream:
            async for _event in do.each(stream):
                raise error("mine")

    with pytest.raises(error, match="mine"):
        await read()
    assert books.one().status == "aborted"
    assert "estimated" in books.one().flags


class TimeIsUp(Exception):  # noqa: N818 - the name of such a thing
    """As Celery's soft time limit comes: raised by the handler of a signal, and no `BaseException`."""


def _by_name(_signal, frame):
    raise TimeIsUp("mine")


def _by_rest(*_given):
    raise TimeIsUp("mine")


class _Limit:
    def tell(self, _signal, _frame):
        self.raise_it()

    def raise_it(self):
        raise TimeIsUp("mine")


@pytest.fixture
def stopped_by(provider):
    """Runs what waits for the provider, until a signal comes whose handler raises; gives what came of it."""
    before = signal.getsignal(signal.SIGUSR1)

    def run(handler, wait):
        signal.signal(signal.SIGUSR1, handler)
        over = threading.Event()

        def tell():
            while not provider.requests and not over.wait(0.005):
                pass
            os.kill(os.getpid(), signal.SIGUSR1)

        telling = threading.Thread(target=tell)
        telling.start()
        try:
            wait()
        except Exception as error:
            return error
        finally:
            over.set()
            telling.join()
        return None

    yield run
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("handler", [_by_name, _by_rest, _Limit().tell], ids=["named", "gathered", "method"])
@pytest.mark.parametrize("name", SYNC)
def test_a_call_that_a_signal_handler_ends_is_aborted_whatever_the_sdk_makes_of_it(
    name, handler, clients, books, provider, stopped_by
):
    provider.answer(delay=60)
    client = clients.make(name)
    raised = stopped_by(handler, lambda: _call(client))
    assert TimeIsUp in (type(raised), type(raised.__cause__))
    entry = books.one()
    assert (entry.status, entry.error_type, entry.billed_cost) == ("aborted", type(raised).__name__, None)
    assert "billing_unknown" in entry.flags


def test_a_call_of_googles_that_a_signal_handler_ends_is_aborted(books, provider, stopped_by):
    provider.answer(delay=60)
    client = tokenmeter.wrap(
        genai.Client(api_key="AIza-test-0123456789abcdef", http_options={"base_url": provider.google_url}), books.meter
    )
    ask = client.models.generate_content
    raised = stopped_by(_by_name, lambda: ask(model="gemini-2.5-flash", contents="x"))
    assert isinstance(raised, TimeIsUp)
    assert books.one().status == "aborted"


@pytest.mark.parametrize("name", SYNC)
def test_a_call_after_an_interrupt_fails_as_any_other(name, clients, books):
    client = clients.make(name, base_url=f"http://127.0.0.1:{_closed_port()}/v1")
    try:
        _by_name(signal.SIGUSR1, sys._getframe())
    except TimeIsUp:
        with pytest.raises(_sdk(name).APIConnectionError):
            _call(client)
    assert books.one().status == "error"


@pytest.mark.parametrize("name", SYNC)
def test_what_the_callers_own_transport_raises_is_no_interrupt(name, clients, books):
    class Broken(_httpx(name).BaseTransport):
        def handle_request(self, request):
            raise RuntimeError("mine")

    client = clients.make(name, http_client=_httpx(name).Client(transport=Broken()))
    with pytest.raises((_sdk(name).APIConnectionError, RuntimeError)):
        _call(client)
    assert books.one().status == "error"


@pytest.mark.parametrize("name", SYNC)
def test_a_thread_that_is_killed_while_it_reads_leaves_an_entry(name, clients, books, provider):
    provider.answer(chunk_delay=0.01)
    client = clients.make(name)
    reading, done = threading.Event(), threading.Event()

    def read():
        try:
            for _event in _call(client, stream=True):
                reading.set()
        except SystemExit:
            done.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert reading.wait(60)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    thread.join(timeout=60)
    if done.is_set():  # it may have been done by then
        assert books.one().status == "aborted"
        assert "estimated" in books.one().flags


@pytest.mark.parametrize("name", SYNC)
def test_a_stream_read_on_in_another_thread_is_recorded_once(name, clients, books, provider):
    stream = iter(_call(clients.make(name), stream=True))
    next(stream)
    thread = threading.Thread(target=list, args=(stream,))
    thread.start()
    thread.join()
    assert books.one().status == "ok"
    assert books.quantities() == dict(provider.total.quantities)


@pytest.mark.parametrize("name", SYNC)
def test_an_open_stream_belongs_to_the_process_that_opened_it(name, clients, books, provider):
    stream = iter(_call(clients.make(name), stream=True))
    next(stream)
    child = os.fork()
    if not child:
        del stream
        gc.collect()
        os._exit(len(list(books.meter.store.entries())))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    list(stream)
    assert books.one().status == "ok"


# -- the store, the prices, the clock


@pytest.fixture
def ledger(priced, tmp_path):
    """A meter over a file, and the file."""
    path = tmp_path / "ledger.db"
    made = Meter(store=open_store(f"sqlite:///{path}"), pricer=priced.pricer)
    yield made, path
    made.close()


async def _answers(client, do):
    whole = await do(_call(client))
    events = [event async for event in do.each(_call(client, stream=True))]
    return whole.usage is not None, len(events)


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("trouble", ["deleted", "overwritten", "read-only", "full"])
async def test_a_ledger_that_cannot_be_written_stops_no_call(trouble, name, clients, ledger, do, monkeypatch):
    meter, path = ledger
    client = tokenmeter.wrap(clients.make(name, metered=False), meter)
    await do(_call(client))
    if trouble == "deleted":
        for file in path.parent.glob("ledger.db*"):
            file.unlink()
    elif trouble == "overwritten":
        path.write_bytes(b"this is no database" * 1_000)
    else:
        told = {"read-only": "attempt to write a readonly database", "full": "database or disk is full"}[trouble]

        def fails(*_args, **_kwargs):
            raise StoreUnavailableError("the ledger cannot be written") from sqlite3.OperationalError(told)

        monkeypatch.setattr(meter.store, "settle", fails)
        monkeypatch.setattr(meter.store.journal, "append", fails)
    assert await _answers(client, do) == await _answers(clients.make(name, metered=False), do)
    if trouble in {"read-only", "full"}:
        assert meter.faults == 2


@pytest.mark.parametrize("name", TWO)
async def test_a_locked_ledger_loses_nothing(name, clients, ledger, do, provider):
    meter, path = ledger
    client = tokenmeter.wrap(clients.make(name, metered=False), meter)
    await do(_call(client))
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    freed = threading.Timer(0.3, other.rollback)
    freed.start()
    await do(_call(client))
    freed.join()
    other.close()
    assert len(list(meter.store.entries())) == len(provider.billed) == 2
    assert meter.faults == 0


@pytest.mark.parametrize("name", TWO)
async def test_an_observer_that_fails_is_counted_and_the_entry_is_there(name, clients, priced, do):
    def fails(_entry):
        raise ValueError("observer")

    meter = Meter(store=open_store("memory:"), pricer=priced.pricer, observers=[fails])
    await do(_call(tokenmeter.wrap(clients.make(name, metered=False), meter)))
    assert (len(list(meter.store.entries())), meter.faults) == (1, 1)


@pytest.mark.parametrize("name", TWO)
async def test_a_price_list_that_fails_leaves_the_usage_to_be_priced_later(
    name, clients, books, meter, do, monkeypatch
):
    def fails(*_args, **_kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(meter, "pricer", _Failing(meter.pricer, fails))
    await do(_call(clients.make(name)))
    entry = books.one()
    assert (entry.cost_source, entry.billed_cost, meter.faults) == ("unpriced", None, 1)
    assert "rating_failed" in entry.flags
    assert entry.usage.input_tokens > 0


class _Failing:
    def __init__(self, pricer, rate):
        self._pricer = pricer
        self.rate = rate

    def __getattr__(self, name):
        return getattr(self._pricer, name)


@pytest.mark.parametrize("name", TWO)
async def test_a_clock_that_is_put_back_during_the_call_changes_nothing(
    name, clients, books, provider, do, monkeypatch
):
    now = [datetime(2026, 11, 23, 12, tzinfo=UTC)]

    def earlier():
        now[0] -= timedelta(minutes=10)
        return now[0]

    for module in [module for name, module in sys.modules.items() if name.startswith("tokenmeter.")]:
        if hasattr(module, "utcnow"):
            monkeypatch.setattr(module, "utcnow", earlier)
    await do(_call(clients.make(name)))
    entry = books.one()
    assert (entry.status, entry.usage.input_tokens) == ("ok", provider.total.input_tokens)
    assert 0 < entry.latency_us < 60_000_000
    assert books.meter.faults == 0


# -- event loops


@pytest.mark.parametrize("name", ASYNC)
def test_a_loop_that_ends_before_the_stream_does_leaves_an_entry(name, clients, books):
    async def begin():
        stream = await _call(clients.make(name), stream=True)
        await anext(aiter(stream))
        return stream

    stream = asyncio.run(begin())
    del stream
    gc.collect()
    assert books.one().status == "aborted"
    assert "estimated" in books.one().flags


@pytest.mark.parametrize("name", ASYNC)
def test_a_provider_that_stops_meanwhile_is_an_error(name, clients, books):
    async def run():
        with FakeProvider() as other:
            other.answer(chunk_delay=0.05)
            url = other.openai_url if "OpenAI" in name else other.anthropic_url
            async for _event in await _call(clients.make(name, base_url=url), stream=True):
                await asyncio.to_thread(other.stop)

    with pytest.raises(Exception):  # noqa: B017, PT011 - httpx's own, or the SDK's
        asyncio.run(run())
    assert books.one().status == "error"
    assert "estimated" in books.one().flags
