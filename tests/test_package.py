"""The package as a whole: what is public, what an import costs, and that no binary fraction comes near money."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import tokenmeter

ROOT = Path(__file__).parent.parent
#: Without what PyInstaller runs, whose name no import can say.
SOURCES = [path for path in sorted((ROOT / "src" / "tokenmeter").rglob("*.py")) if path.stem.isidentifier()]
#: Modules in which a binary fraction may stand, and what it is there: never an amount of money.
FLOATS = {
    "budgets/delivery": "seconds",
    "cli/reading": "seconds",
    "settings": "refused where it is given as a price",
    "dashboard/view": "lengths of time, compared",
    "patience": "seconds",
    "processes": "seconds",
    "providers/prompts": "numbers in a prompt",
    "providers/wire": "JSON of others, read into exact numbers",
    "reconciliation/paging": "seconds",
    "estimating": "likeness of names",
    "pricing/price_list": "likeness of names",
    "reports/query": "likeness of names",
    "serving/access": "seconds",
    "serving/probes": "metrics of Prometheus are binary; seconds",
    "stores/archive/places": "seconds",
    "stores/journal": "seconds",
    "stores/postgres": "seconds",
    "stores/sqlite/database": "seconds",
    "stores/sqlite/opened": "seconds",
    "stores/sqlite/store": "seconds",
    "stores/trouble": "seconds",
    "stores/writer": "seconds",
    "telemetry": "metrics of OpenTelemetry and Prometheus are binary",
    "testing": "what providers send",
}
#: What a program may import, beside `tokenmeter` itself; docs/explanation/architecture.md says so, too. A package is
#: meant with its modules where the reference names them. All else is internal and changes without notice.
PUBLIC = {
    *(
        "anthropic",
        "billing",
        "budgets",
        "checkpoints",
        "dashboard",
        "errors",
        "google",
        "ledger",
        "notebook",
        "openai",
        "periods",
    ),
    *("pricing", "providers", "queues", "reconciliation", "reports", "stores", "testing", "usage", "web"),
}


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_public_face_is_deliberate_sorted_and_all_there():
    assert tokenmeter.__all__ == sorted(tokenmeter.__all__)
    assert len(set(tokenmeter.__all__)) == len(tokenmeter.__all__)
    for name in tokenmeter.__all__:
        assert getattr(tokenmeter, name) is not None
    assert set(tokenmeter.__all__) == set(tokenmeter._HOME) | {"__version__"}


#: Public methods that take whatever is given -> why.
OPEN = {
    "CarryingExecutor.map": "what the wrapped executor takes",
    "Meter.estimate": "the fields of a request's body",
    "estimate": "the same",
}


def test_every_argument_of_the_public_face_has_a_name_and_a_type():
    """What `**options: Any` takes is not completed by an editor and not checked by a type checker."""
    found = set()
    for name in tokenmeter.__all__:
        thing = getattr(tokenmeter, name)
        names = list(vars(thing)) if isinstance(thing, type) else []
        members = {member: getattr(thing, member) for member in names} or {"": thing}
        for member, value in members.items():
            if inspect.isfunction(value) and (member == "__init__" or not member.startswith("_")):
                for parameter in inspect.signature(value).parameters.values():
                    if parameter.kind is parameter.VAR_KEYWORD and "Any" in str(parameter.annotation):
                        found.add(f"{name}.{member}".rstrip("."))
    assert found == OPEN.keys()


@pytest.mark.parametrize("name", sorted(tokenmeter._MODULES))
def test_a_module_that_people_use_is_reached_from_the_package(name):
    assert run(f"import tokenmeter; print(tokenmeter.{name}.__name__)") == f"tokenmeter.{name}\n"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = tokenmeter.Nonsense  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_every_module_says_what_it_is_and_exports_only_what_it_has(path):
    name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    if name.endswith("__main__"):
        return
    module = importlib.import_module(name)
    assert module.__doc__
    for exported in getattr(module, "__all__", []):
        assert hasattr(module, exported), f"{name}.__all__ names {exported}"


def test_importing_tokenmeter_loads_no_sdk_no_price_data_and_no_settings_model():
    loaded = json.loads(run("import sys, json, tokenmeter; print(json.dumps(sorted(sys.modules)))"))
    heavy = {
        "openai",
        "anthropic",
        "google",
        "genai_prices",
        "pydantic",
        "sqlite_utils",
        "tiktoken",
        "httpx2",
        "asyncio",
    }
    assert not heavy & set(loaded)


def test_importing_the_public_names_that_need_no_sdk_loads_none():
    loaded = json.loads(run(
        "import sys, json; from tokenmeter import Budget, attribute, configure, report, price;"
        "print(json.dumps(sorted(sys.modules)))"
    ))  # fmt: skip
    assert not {"openai", "anthropic", "google", "genai_prices"} & set(loaded)


@pytest.mark.parametrize("sdk", ["openai", "anthropic", "google"])
def test_importing_a_client_loads_nothing_that_only_a_call_needs(sdk):
    """A client may be made and never used; records, settlement, prices and stores come with the first call."""
    loaded = json.loads(run(f"import sys, json, tokenmeter.{sdk}; print(json.dumps(sorted(sys.modules)))"))
    ours = {name.removeprefix("tokenmeter.").partition(".")[0] for name in loaded if name.startswith("tokenmeter.")}
    assert not ours & {"budgets", "call", "ledger", "meter", "pricing", "providers", "reports", "stores", "usage"}
    assert not {"tokenmeter.capture.calls", "tokenmeter.capture.settlement"} & set(loaded)


def floats_of(path):
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    found = {
        node.lineno
        for node in ast.walk(ast.parse(text))
        if (isinstance(node, ast.Name) and node.id == "float")
        or (isinstance(node, ast.Constant) and isinstance(node.value, float))
    }
    return sorted(number for number in found if "not money" not in lines[number - 1])


def test_no_binary_fraction_comes_near_money():
    """In every module: a new one is named in FLOATS with its reason, or marked ``not money`` on its line."""
    found = {
        path.relative_to(ROOT / "src" / "tokenmeter").with_suffix("").as_posix(): floats_of(path) for path in SOURCES
    }
    reasons = {name: next((key for key in FLOATS if f"{name}/".startswith(f"{key}/")), None) for name in found}
    assert {name: at for name, at in found.items() if at and reasons[name] is None} == {}
    unused = FLOATS.keys() - {reasons[name] for name, at in found.items() if at}
    assert unused == set(), "entries of FLOATS without a float any more"


def test_programs_are_shown_public_modules_only():
    shown = set()
    for place in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.py")):
        shown |= set(re.findall(r"(?:from|import) tokenmeter\.(\w+)", place.read_text(encoding="utf-8")))
    assert shown - PUBLIC == set()
    for name in PUBLIC:
        assert importlib.util.find_spec(f"tokenmeter.{name}"), f"there is no tokenmeter.{name}"


#: Verbs that name what only an extra, or a room that they wait for, has.
UNRESOLVED = {"database", "duckdb", "file_reconciliation", "post_proposals", "reconcile", "wrap"}


def test_the_types_of_a_verb_can_be_read_at_run_time():
    """Who hands a verb to an agent as its tool reads them; what a call does not need is loaded for it then."""
    verbs = {name: verb for name in tokenmeter.__all__ if inspect.isfunction(verb := getattr(tokenmeter, name))}
    assert verbs.keys() > UNRESOLVED
    for name in verbs.keys() - UNRESOLVED:
        assert typing.get_type_hints(verbs[name]), name


def test_the_version_is_one():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project  # it comes from the tag
    assert tokenmeter.__version__ == importlib.metadata.version(project["name"])


def test_the_lock_records_no_address():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert not (ROOT / "uv.lock").exists() or "uv.lock" in (ROOT / ".gitignore").read_text(encoding="utf-8")
