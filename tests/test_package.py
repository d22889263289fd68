"""The package as a whole: what is public, what an import costs, and that no binary fraction comes near money."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

import tokenmeter

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "tokenmeter").rglob("*.py"))
#: Modules in which amounts of money are made, added or stored.
MONEY = [path for path in SOURCES if path.parts[-2] == "pricing" or path.stem in {
    "money", "ledger", "usage", "meter", "recording", "estimation", "codec", "rollups", "slots", "record", "fold",
    "summing",
    "plan", "book", "caps", "row", "totals", "focus"}]  # fmt: skip


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_public_face_is_deliberate_sorted_and_all_there():
    assert tokenmeter.__all__ == sorted(tokenmeter.__all__)
    assert len(set(tokenmeter.__all__)) == len(tokenmeter.__all__)
    for name in tokenmeter.__all__:
        assert getattr(tokenmeter, name) is not None
    assert set(tokenmeter.__all__) == set(tokenmeter._HOME) | {"__version__"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = tokenmeter.Nonsense


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
    heavy = {"openai", "anthropic", "genai_prices", "pydantic", "sqlite_utils", "tiktoken", "httpx2", "asyncio"}
    assert not heavy & set(loaded)


def test_importing_the_public_names_that_need_no_sdk_loads_none():
    loaded = json.loads(run(
        "import sys, json; from tokenmeter import Budget, attribute, configure, report, price;"
        "print(json.dumps(sorted(sys.modules)))"
    ))  # fmt: skip
    assert not {"openai", "anthropic", "genai_prices"} & set(loaded)


@pytest.mark.parametrize("path", MONEY, ids=lambda path: path.name)
def test_no_binary_fraction_comes_near_money(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    floats = [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id == "float")
        or (isinstance(node, ast.Constant) and isinstance(node.value, float))
    ]
    allowed = [
        number for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if "not money" in line
    ]
    assert set(floats) <= set(allowed), f"{path.name}: float near money at lines {sorted(set(floats) - set(allowed))}"


def test_the_version_is_one():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project  # it comes from the tag
    assert tokenmeter.__version__ == importlib.metadata.version(project["name"])


def test_the_lock_records_no_address():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert not (ROOT / "uv.lock").exists() or "uv.lock" in (ROOT / ".gitignore").read_text(encoding="utf-8")
