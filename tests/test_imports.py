"""How modules hang together: no circles, and imports inside functions only where a reason is named."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent / "src"
#: Modules with imports of our own inside functions -> why.
LATE = {
    "tokenmeter.__main__": "the command line's packages are an extra",
    "tokenmeter.anthropic": "only where the SDK has cloud clients",
    "tokenmeter.attribution": "a client may be made and never used",
    "tokenmeter.capture.genai": "a client may be made and never used",
    "tokenmeter.capture.genai_interactions": "as above",
    "tokenmeter.capture.genai_requests": "as above",
    "tokenmeter.capture.genai_sockets": "as above",
    "tokenmeter.capture.sdk": "a client may be made and never used",
    "tokenmeter.capture.stainless": "as above",
    "tokenmeter.settings": "HTTP and mail are loaded only by who has alerts",
    "tokenmeter.cli.dashboard": "the dashboard's packages are an extra",
    "tokenmeter.cli.database": "PostgreSQL's packages are an extra",
    "tokenmeter.google": "settings and prices, which a client may not need",
    "tokenmeter.openai": "only where the SDK has cloud clients",
    "tokenmeter.pricing.price_list": "price data is read when a price is asked for",
    "tokenmeter.pricing.rules": "rules are parsed when a model asks for them",
    "tokenmeter.stores": "an engine is loaded when a ledger of its kind is opened",
    "tokenmeter.testing.fixtures": "a plug-in that costs nothing until a fixture is asked for",
    "tokenmeter.testing.provider": "TLS is loaded where it is asked for",
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


#: But for the package's own ``__init__``, which names everything lazily.
MODULES = {name_of(path): path for path in sorted((ROOT / "tokenmeter").rglob("*.py")) if name_of(path) != "tokenmeter"}


def imports(name: str) -> Iterator[tuple[str, bool]]:
    """What a module imports of the package, for type checkers too, and whether inside a function."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tokenmeter"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module, id(node) in late
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in MODULES:
                    yield alias.name, id(node) in late


def circles() -> list[set[str]]:
    """Sets of modules of which each reaches every other (Tarjan), packages' own ``__init__`` included."""
    graph = {name: {target for target, _ in imports(name) if target != name} for name in MODULES}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            at = stack.index(name)
            group = set(stack[at:])
            del stack[at:]
            if len(group) > 1:
                found.append(group)

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def test_no_module_reaches_itself():
    """Late imports count: a record that imports its verbs inside a method is a circle all the same."""
    assert circles() == []


#: Names of several classes -> why each is right.
SHARED_NAMES = {
    "AttributionMiddleware": "what Dramatiq calls its middleware, and what web frameworks call theirs",
    "Meter": "the one with the verbs extends the one that a call needs",
    "Posting": "the accountant's word, in the ledger and in an export's journal; both are public",
    "Reading": "of a usage object; and of a customer's meter, which is public",
}


def test_a_class_has_a_name_of_its_own():
    """A word means one thing in the whole package; the fake provider is a product of its own."""
    places: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        if not name.startswith("tokenmeter.testing"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    places.setdefault(node.name.lstrip("_"), []).append(name)
    assert {name: where for name, where in places.items() if len(where) > 1}.keys() == SHARED_NAMES.keys()


def test_what_is_loaded_at_the_top_is_not_imported_again_inside():
    """It looks as if something were put off that is not."""
    again: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        top = ast.parse(path.read_text(encoding="utf-8")).body
        loaded = {
            f"{node.module}.{alias.name}" for node in top if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        loaded |= {full.rpartition(".")[0] for full in loaded}
        if found := loaded & {target for target, inside in imports(name) if inside}:
            again[name] = found
    assert again == {}


def test_imports_inside_functions_are_where_a_reason_is_named():
    late = {name for name in MODULES if any(inside for _, inside in imports(name))}
    assert late == LATE.keys() & late, "import at the top, or name the reason in LATE"
    assert LATE.keys() & MODULES.keys() == late, "an entry of LATE has no late import any more"


def test_dataclasses_are_made_by_one_decorator():
    taken = [
        name
        for name, path in MODULES.items()
        if re.search(r"^from dataclasses import .*\bdataclass\b", path.read_text(), re.MULTILINE)
    ]
    assert taken == [], "import it from tokenmeter.values: its frozen classes are made in a quarter of the time"
