"""Fixtures for capture: a fake provider, a meter over a ledger in memory, clients, and what they recorded."""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import os
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from google import genai

import tokenmeter.anthropic
import tokenmeter.openai
from tokenmeter.adopt import wrap
from tokenmeter.default import make_meter
from tokenmeter.ledger import Entry
from tokenmeter.meter import Meter
from tokenmeter.stores import open_store
from tokenmeter.testing import FakeProvider

_SDKS = ("openai", "anthropic", "google")
KEY = "sk-test-0123456789abcdef"


@pytest.fixture(scope="session")
def priced() -> Meter:
    """A meter with the real price list, which takes a while to read."""
    made = make_meter(store="memory:", config={})
    made.pricer.price_list.find("openai", "gpt-5-mini", None)
    return made


@pytest.fixture(autouse=True)
def _what_stays_is_left_alone() -> None:
    """What was loaded by now stays: these tests collect garbage often, and need not look through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def meter(priced: Meter) -> Iterator[Meter]:
    made = Meter(
        store=open_store("memory:"),
        pricer=priced.pricer,
    )
    yield made
    made.close()


class Books:
    """What the meter under test has recorded."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def all(self) -> list[Entry]:
        gc.collect()
        return list(self.meter.store.entries())

    def one(self) -> Entry:
        entries = self.all()
        assert len(entries) == 1, entries
        return entries[0]

    def quantities(self) -> dict[str, Any]:
        total: dict[str, Any] = {}
        for entry in self.all():
            for name, quantity in entry.usage.quantities.items():
                total[name] = total.get(name, 0) + quantity
        return {name: quantity for name, quantity in total.items() if quantity}


@pytest.fixture
def books(meter: Meter) -> Books:
    return Books(meter)


class Clients:
    """Makes clients that talk to the fake provider: the SDK's own, or ours with the meter under test."""

    def __init__(self, provider: FakeProvider, meter: Meter) -> None:
        self.provider = provider
        self.meter = meter
        self.made: list[Any] = []

    def make(self, name: str, *, metered: bool = True, **options: Any) -> Any:
        ours, plain, url = (
            (tokenmeter.openai, openai, self.provider.openai_url)
            if "OpenAI" in name
            else (tokenmeter.anthropic, anthropic, self.provider.anthropic_url)
        )
        settings = {"api_key": KEY, "base_url": url, "max_retries": 0, **options}
        if "http_client" not in options:  # without certificates to load, which is most of a client's birth
            http = plain.DefaultAsyncHttpxClient if name.startswith("Async") else plain.DefaultHttpxClient
            settings["http_client"] = http(verify=False)
        client = getattr(ours if metered else plain, name)(**settings)
        self.made.append(client)
        return wrap(client, self.meter) if metered else client

    def openai(self, **options: Any) -> Any:
        return self.make("OpenAI", **options)

    def async_openai(self, **options: Any) -> Any:
        return self.make("AsyncOpenAI", **options)

    def anthropic(self, **options: Any) -> Any:
        return self.make("Anthropic", **options)

    def async_anthropic(self, **options: Any) -> Any:
        return self.make("AsyncAnthropic", **options)


class Do:
    """Runs sync and async clients by one script."""

    async def __call__(self, value: Any) -> Any:
        return await value if inspect.isawaitable(value) else value

    async def each(self, stream: Any) -> AsyncIterator[Any]:
        stream = await self(stream)
        if hasattr(stream, "__aiter__"):
            async for item in stream:
                yield item
        else:
            for item in stream:
                yield item

    @contextlib.asynccontextmanager
    async def inside(self, manager: Any) -> AsyncIterator[Any]:
        manager = await self(manager)
        if hasattr(manager, "__aenter__"):
            async with manager as value:
                yield value
        else:
            with manager as value:
                yield value


@pytest.fixture
def do() -> Do:
    return Do()


@pytest.fixture
async def clients(provider: FakeProvider, meter: Meter, do: Do) -> AsyncIterator[Clients]:
    maker = Clients(provider, meter)
    yield maker
    for client in maker.made:
        with contextlib.suppress(RuntimeError):  # its loop is closed
            await do(client.close())


# -- the table of shapes, for docs/reference/coverage.md


_seen: dict[str, str] = {}


@pytest.fixture
def coverage() -> dict[str, str]:
    """Shape -> how its usage was recorded; written to the file that TOKENMETER_COVERAGE names."""
    return _seen


def pytest_sessionfinish() -> None:
    target = os.environ.get("TOKENMETER_COVERAGE")
    if target and _seen:
        versions = {"openai": openai.__version__, "anthropic": anthropic.__version__, "google": genai.__version__}
        Path(target).write_text(json.dumps({"versions": versions, "shapes": _seen}, indent=1), encoding="utf-8")


@pytest.fixture
def shown() -> Callable[[Any], dict[str, Any]]:
    """How a client's methods, and those of its resources, look to who asks Python about them: by their paths."""

    def look(owner: Any, path: str = "") -> dict[str, Any]:
        seen: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is experimental or deprecated says so when it is asked for
            found = {name: getattr(owner, name, None) for name in dir(owner) if not name.startswith("_")}
        for name, value in found.items():
            kind = type(value)
            if inspect.ismethod(value) or inspect.isfunction(value):
                seen[f"{path}.{name}"] = (
                    *(inspect.signature(value), value.__name__, value.__qualname__, value.__doc__),
                    *(kind, inspect.iscoroutinefunction(value), getattr(value, "__self__", None) is owner),
                )
            elif callable(value) and not isinstance(value, type):
                seen[f"{path}.{name}"] = kind
            elif kind.__module__.partition(".")[0] in _SDKS and path.count(".") < 3:  # clients have clients
                seen |= look(value, f"{path}.{name}")
        return seen

    return look
