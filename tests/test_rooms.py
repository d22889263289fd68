"""Each provider has a room: nothing outside of it names what is one provider's."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from tokenmeter.providers import registry
from tokenmeter.providers.base import Dialect
from tokenmeter.providers.prompts import PromptRule

SOURCE = Path(__file__).parent.parent / "src" / "tokenmeter"
#: What only one provider says: paths and endpoints, fields of bodies, events, classes, headers.
OWN = re.compile(
    r"""
    chat[./]completions | messages[./]batches | responses[./](create|compact|connect|retrieve) | images[./]generat
    | fine_tuning | audio[./](speech|trans) | beta\.(messages|sessions|threads|responses|agents) | generateContent
    | \b(prompt|completion)_tokens | (input|output)_tokens?_details | cache_creation(_input)?\b | tool_usage\b
    | stream_options | include_usage | max_completion_tokens | \bmax_tokens | num_requests | usage_?[mM]etadata
    | server_tool_use | inference_geo | anthropic[-_]version | x-stainless
    | response\.(created|completed|done|failed|create) | message_(start|delta|stop) | content_block
    | session\.(created|closed|usage) | transcript\.text | (Azure|Async)OpenAI | AsyncAnthropic | VertexAI
    """,
    re.VERBOSE,
)
#: Where it is named all the same -> why. The list only ever gets shorter.
EXCEPTIONS = {
    "__init__.py": "says which client classes there are",
    "anthropic.py": "the SDK's clients",
    "openai.py": "the SDK's clients",
    "by_hand.py": "an example in a message",
    "capture/conversation.py": "errors name no event on one kind of connection",
    "capture/streams.py": "the header of the SDK family",
    "cli/prices.py": "the endpoint of requests that say none",
    "cli/importing.py": "an example in a help text",
    "importing/agents.py": "what coding agents write down",
    "importing/gateways.py": "what gateways write down",
    "importing/rows.py": "bodies kept, told apart by their own words",
    "reconciliation/anthropic.py": "the provider's own books, a room in reconciliation",
    "reconciliation/openai.py": "the provider's own books, a room in reconciliation",
}
#: Families of models. What a call takes beforehand is in the rooms: no part of its way knows a model by its name.
FAMILY = re.compile(r"\b(claude|gemini|gpt|imagen|veo|lyria)\b")
WAY = ("budgets", "capture", "meter", "stores")
#: The tokenizers on the disk are those of one maker's models.
TOKENIZERS = "budgets/tokens.py"
#: Google's SDK calls a header so.
TIER_HEADER = "x-gemini-service-tier"


#: Rooms that only add a usage object.
OF_ONE_FILE = registry.ROOMS[len(registry.FORMATS) :]


def outside():
    rooms = (
        *(SOURCE / "providers" / name for name in registry.FORMATS),
        *(SOURCE / "providers" / f"{name}.py" for name in OF_ONE_FILE),
    )
    for path in sorted(SOURCE.rglob("*.py")):
        if not path.is_relative_to(SOURCE / "testing") and not any(path.is_relative_to(room) for room in rooms):
            yield path


def words_of(path):
    """The texts in a module's code; what is said in docstrings is no code."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def found():
    hits = {}
    for path in outside():
        names = {match.group() for text in words_of(path) for match in OWN.finditer(text)}
        if names:
            hits[str(path.relative_to(SOURCE))] = names
    return hits


def test_nothing_outside_a_room_names_what_is_one_providers():
    hits = found()
    unnamed = {path: names for path, names in hits.items() if path not in EXCEPTIONS}
    assert not unnamed, "move it into the provider's room, or name the module and the reason"
    assert set(EXCEPTIONS) <= set(hits), "the exception is no longer needed: take it out"


@pytest.mark.parametrize("name", registry.FORMATS)
def test_a_room_has_what_is_asked_of_it_by_name(name):
    assert isinstance(registry.dialect(name), Dialect)
    assert registry.dialect(name).name == name
    rules = import_module(f"tokenmeter.providers.{name}.requests").PROMPT_RULES
    assert all(isinstance(rule, PromptRule) for rule in rules)


@pytest.mark.parametrize("name", [*(f"{name}.usage" for name in registry.FORMATS), *OF_ONE_FILE])
def test_a_room_says_how_its_usage_objects_are_known(name):
    shapes = import_module(f"tokenmeter.providers.{name}").SHAPES
    assert shapes
    assert all(shape.own | shape.shared for shape in shapes)


@pytest.mark.parametrize("name", registry.ROOMS)
def test_a_room_names_no_other_room(name):
    others = [other for other in registry.ROOMS if other != name]
    room = SOURCE / "providers" / name
    files = list(room.rglob("*.py")) or [room.with_suffix(".py")]
    for path in files:
        imported = re.findall(r"tokenmeter\.providers\.(\w+)", path.read_text(encoding="utf-8"))
        assert not set(imported) & set(others), path


def test_no_part_of_a_calls_way_knows_a_model_by_its_name():
    hits = {
        str(path.relative_to(SOURCE)): texts
        for path in outside()
        if path.relative_to(SOURCE).parts[0] in WAY
        and (texts := {text for text in words_of(path) if FAMILY.search(text) and text != TIER_HEADER})
    }
    hits.pop(TOKENIZERS, None)
    assert hits == {}
