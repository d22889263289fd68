"""A pytest plugin that runs an SDK's own test suite with the clients metered, and writes down how each test ended.

    PYTHONPATH=tests/sdk_suites SUITE_CLIENTS=classes SUITE_RESULTS=ours.json pytest -p suite_plugin ...

``SUITE_CLIENTS`` says whose clients the tests get: ``plain`` (the SDK's), ``classes`` (ours, under the SDK's names), or
``wrapped`` (the SDK's, each given to `tokenmeter.wrap` when it is made).
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import stand_in_api

_SDKS = ("openai", "anthropic")
_results: dict[str, str] = {}


def _client_classes(sdk: str, ours: ModuleType) -> dict[type[Any], type[Any]]:
    """The SDK's client classes -> ours; of the many names that ours has, those that mean something else there."""
    theirs = import_module(sdk)
    return {
        getattr(theirs, name): kind
        for name in ours.__all__
        if isinstance(kind := getattr(ours, name), type) and getattr(theirs, name, kind) is not kind
    }


def _put_ours_in_place(sdk: str, ours: ModuleType) -> None:
    """Every public name of the SDK that means one of its client classes now means ours."""
    plain = _client_classes(sdk, ours)
    for path, module in list(sys.modules.items()):
        private = any(part.startswith("_") for part in path.split("."))
        if path.split(".", maxsplit=1)[0] == sdk and not private:
            for name, value in list(vars(module).items()):
                if issubclass(type(value), type) and value in plain:  # isinstance() would wake the SDK's lazy proxies
                    setattr(module, name, plain[value])


def _wrap_when_made(kind: type[Any], wrap: Callable[[Any], Any]) -> None:
    plain = kind.__init__

    @functools.wraps(plain)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it becomes that method
        plain(self, *args, **kwargs)
        if type(self).__init__ is __init__:
            wrap(self)

    kind.__init__ = __init__


def _prepare(sdk: str, clients: str) -> None:
    base = import_module(f"{sdk}._base_client")
    for name in ("SyncAPIClient", "AsyncAPIClient"):
        stand_in_api.note_expected(getattr(base, name))
    if clients == "plain":
        return
    import tokenmeter  # the plain run must not know of it

    tokenmeter.configure(store="memory:")
    ours = import_module(f"tokenmeter.{sdk}")
    if clients == "classes":
        _put_ours_in_place(sdk, ours)
    else:
        for kind in _client_classes(sdk, ours):
            if "__init__" in vars(kind):
                _wrap_when_made(kind, tokenmeter.wrap)
        if sdk == "openai":
            tokenmeter.wrap(import_module(sdk))


def _prepare_google(clients: str) -> None:
    """Google's suite ships inside its package and imports it as ``genai``: a second copy, which needs ours as well."""
    if clients == "plain":
        return
    import tokenmeter  # the plain run must not know of it

    tokenmeter.configure(store="memory:")
    ours = import_module("tokenmeter.google")
    meter = functools.partial(ours.bind_client, meter=None, attribution=tokenmeter.Attribution())
    for package in ("google.genai", "genai"):
        module: Any = import_module(f"{package}.client")
        ours.watch_resources(module.Client, module.AsyncClient)
        if clients == "wrapped":
            _wrap_when_made(module.Client, meter)
            continue
        kind = _subclass(module.Client, meter)
        module.Client = vars(import_module(package))["Client"] = kind


def _subclass(plain: type[Any], meter: Callable[[Any], Any]) -> type[Any]:
    """As `tokenmeter.google` makes its client."""

    @functools.wraps(plain.__init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it becomes that method
        plain.__init__(self, *args, **kwargs)
        meter(self)

    return type(plain.__name__, (plain,), {"__init__": __init__, "__module__": plain.__module__})


def pytest_load_initial_conftests() -> None:
    """Before the suite's conftest imports anything."""
    if os.environ.get("SUITE_SDK") == "google":
        _prepare_google(os.environ["SUITE_CLIENTS"])
        return
    os.environ["TEST_API_BASE_URL"] = stand_in_api.start()
    for sdk in filter(find_spec, _SDKS):
        _prepare(sdk, os.environ["SUITE_CLIENTS"])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """The worst of a test's three phases counts."""
    if report.when == "call" or report.outcome != "passed":
        _results[report.nodeid] = report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write ``{test: outcome}``."""
    if hasattr(session.config, "workerinput"):  # the controller has them all
        return
    Path(os.environ["SUITE_RESULTS"]).write_text(json.dumps(_results, indent=0, sort_keys=True), encoding="utf-8")
