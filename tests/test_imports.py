"""How modules hang together: no circles, and imports inside functions only where a reason is named."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import tokenmeter

ROOT = Path(__file__).parent.parent / "src"
#: Modules with imports of our own inside functions -> why.
LATE = {
    "tokenmeter.__main__": "the command line's packages are an extra",
    "tokenmeter.anthropic": "only where the SDK has cloud clients",
    "tokenmeter.attribution": "a client may be made and never used",
    "tokenmeter.capture.genai": "a client may be made and never used",
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
#: Without what PyInstaller runs, whose name no import can say.
FILES = [path for path in sorted((ROOT / "tokenmeter").rglob("*.py")) if path.stem.isidentifier()]
MODULES = {name_of(path): path for path in FILES if name_of(path) != "tokenmeter"}


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


@cache
def imports(name: str) -> tuple[tuple[str, bool], ...]:
    """What a module imports of the package, for type checkers too, and whether inside a function."""
    return tuple(find_imports(name))


def find_imports(name: str) -> Iterator[tuple[str, bool]]:
    left: list[tuple[ast.AST, bool]] = [(tree_of(name), False)]
    while left:
        node, inside = left.pop()
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tokenmeter"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module, inside
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in MODULES:
                    yield alias.name, inside
        inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        left.extend((child, inside) for child in ast.iter_child_nodes(node))


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
    for name in MODULES:
        if not name.startswith("tokenmeter.testing"):
            for node in ast.walk(tree_of(name)):
                if isinstance(node, ast.ClassDef):
                    places.setdefault(node.name.lstrip("_"), []).append(name)
    assert {name: where for name, where in places.items() if len(where) > 1}.keys() == SHARED_NAMES.keys()


def test_what_is_loaded_at_the_top_is_not_imported_again_inside():
    """It looks as if something were put off that is not."""
    again: dict[str, set[str]] = {}
    for name in MODULES:
        top = tree_of(name).body
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


#: Names at the top of modules that no code of the package says -> who asks for them.
ASKED_FOR = {
    **dict.fromkeys(("DIALECT", "PROMPT_RULES", "SHAPES"), "`providers.registry`, of each room"),
    "bind_client": "who imports the module by its name",
    **dict.fromkeys(("number", "change", "price_words", "wire_instant"), "pages of the dashboard"),
    **dict.fromkeys(("carry_attribution", "AttributionMiddleware", "AttributedJob"), "users of a queue"),
    **dict.fromkeys(("fetch", "make_client"), "`reconciliation.run`, of each provider's books"),
    "hook_folders": "PyInstaller, by the package's entry point",
    **dict.fromkeys(("attribute_request", "verify_signature"), "users"),
}


def test_nothing_at_the_top_of_a_module_is_left_over():
    """What only its tests call is no code that anybody needs. What a decorator takes is the decorator's."""
    said = {(home, public) for public, home in tokenmeter._HOME.items()}
    for name in MODULES:
        modules: dict[str, str] = {}
        for node in ast.walk(tree_of(name)):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    said.add((node.module, alias.name))
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.args:
                of = node.value.args[0]  # LateModule("tokenmeter.billing")
                if isinstance(of, ast.Constant) and isinstance(node.targets[0], ast.Name):
                    modules[node.targets[0].id] = str(of.value)
        for node in ast.walk(tree_of(name)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                said.add((modules.get(node.value.id, ""), node.attr))
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                said.add((name, node.id))
    found = {
        defined
        for name in MODULES
        if not name.startswith("tokenmeter.testing")
        for node in tree_of(name).body
        for defined in defined_by(node)
        if not defined.startswith("__") and (name, defined) not in said
    }
    assert found == ASKED_FOR.keys()


def defined_by(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return (
            [] if any(isinstance(one, ast.Call) or is_registering(one) for one in node.decorator_list) else [node.name]
        )
    if isinstance(node, ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def is_registering(decorator: ast.expr) -> bool:
    plain = {"cache", "contextmanager", "tell_wrong_arguments"}
    return not (isinstance(decorator, ast.Name) and decorator.id in plain)


def test_dataclasses_are_made_by_one_decorator():
    taken = [
        name
        for name, path in MODULES.items()
        if re.search(r"^from dataclasses import .*\bdataclass\b", path.read_text(), re.MULTILINE)
    ]
    assert taken == [], "import it from tokenmeter.values: its frozen classes are made in a quarter of the time"
