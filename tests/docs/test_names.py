"""What the pages for developers name is there."""

from __future__ import annotations

import ast
import re
import textwrap
import tomllib
from pathlib import Path

import pytest

from tokenmeter.config import load_settings

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tokenmeter"
ARCHITECTURE = ROOT / "docs" / "explanation" / "architecture.md"
#: A module, a test or a folder of them, as prose writes it: ``stores/fold.py``, ``providers/<room>/usage.py``.
_PATH = re.compile(r"[\w<>-]+(?:/[\w<>-]+)*\.(?:py|toml)\b|\btests(?:/\w+)+")
#: What a reader's own file is called in an example, or is made later.
_OWN = {"NAME", "app.py"}


def is_there(path: str) -> bool:
    """Whether `path` is a file from the root, the package, or (by its last part) any folder of the stores or rooms."""
    if "<room>" in path:
        return any((SOURCE / path.replace("<room>", room.name)).exists() for room in (SOURCE / "providers").iterdir())
    places = (ROOT, SOURCE, SOURCE / "stores", *(SOURCE / "providers").iterdir())
    return any((place / path).exists() for place in places)


@pytest.mark.parametrize(
    "page",
    ["CONTRIBUTING.md", "docs/explanation/architecture.md", "docs/explanation/storage.md", "docs/images/call.py"],
)
def test_every_module_that_a_page_names_is_there(page):
    text = (ROOT / page).read_text("utf-8")
    named = {path for path in _PATH.findall(text) if not _OWN & set(path.split("/"))}
    assert named
    assert {path for path in named if not is_there(path)} == set()


def test_the_steps_of_a_call_are_in_rooms_that_each_sdk_has():
    """A step that says ``<room>`` is one of OpenAI's and Anthropic's, not of one room alone."""
    steps = re.findall(r"<room>/(\w+\.py)", (ROOT / "docs" / "images" / "call.py").read_text("utf-8"))
    for room in ("openai", "anthropic", "google"):
        assert [step for step in steps if not (SOURCE / "providers" / room / step).exists()] == []


def test_the_picture_of_a_call_is_the_one_that_its_script_draws():
    script = {"__name__": "call"}
    exec((ROOT / "docs" / "images" / "call.py").read_text("utf-8"), script)  # noqa: S102 - our own script
    assert script["draw"]() == (ROOT / "docs" / "images" / "call.svg").read_text("utf-8")


def test_each_module_at_the_top_stands_in_a_layer_of_the_table():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    layered = {name for line in contracts[0]["layers"] for name in line.split(" | ")}
    section = ARCHITECTURE.read_text("utf-8").partition("## Layers")[2].partition("Public are")[0]
    assert layered - set(re.findall(r"`(\w+)`", section)) == {"__main__"}


def test_the_architecture_says_about_how_many_modules_there_are():
    """To a tenth, so that a module more is no reason to touch the page."""
    said = re.search(r"it has (\d+) and [\d,]+ now \((\d+) without", ARCHITECTURE.read_text("utf-8"))
    assert said is not None
    modules = [path.relative_to(SOURCE).parts[0] for path in SOURCE.rglob("*.py")]
    there = (len(modules), len([top for top in modules if top != "testing"]))
    assert [abs(int(number) - count) * 10 <= count for number, count in zip(said.groups(), there, strict=True)] == [
        True,
        True,
    ]


def test_the_settings_page_names_every_variable_that_is_read():
    read = {
        name for path in SOURCE.rglob("*.py") for name in re.findall(r"\bTOKENMETER_[A-Z_]+\b", path.read_text("utf-8"))
    }
    page = (
        (ROOT / "docs" / "reference" / "configuration.md").read_text("utf-8").partition("## Environment variables")[2]
    )
    assert read - set(re.findall(r"\| `(\w+)` \|", page)) == {"TOKENMETER_WEBHOOK_SECRET"}  # an example's own


_PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(SOURCE.rglob("*.py"))]


def test_each_line_that_installs_is_written_alike_and_names_extras_that_there_are():
    """One form for what is installed already; from a checkout in the README alone, which the other pages build on."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for page in _PAGES:
        for line in page.read_text("utf-8").splitlines():
            for quoted, named, from_where in re.findall(r"pip install (['\"]?)tokenmeter-sdk\[([^\]]*)\](.?)", line):
                assert (quoted, from_where) == ("'", "'") or page.name == "README.md", f"{page.name}: {line}"
                assert set(named.split(",")) <= {*extras, "NAME"}, f"{page.name}: {line}"


#: What of ours needs an extra of the same name, or of this one, beside what is imported.
_NEEDS = {
    "to_parquet": "parquet",
    "to_xlsx": "xlsx",
    "to_pdf": "pdf",
    "to_pandas": "pandas",
    "to_polars": "polars",
    "plot": "plot",
}
_PYTHON = re.compile(r"(<!-- skip: next -->\n)?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def find_needs(code: str) -> set[str]:
    """The packages and extras without which `code` does not run, by the names of their modules."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and node.attr in _NEEDS:
            found.add(_NEEDS[node.attr])
        modules = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{one.name}" for one in node.names]
        # Of ours, a module is named as the extra without which it cannot be imported.
        found |= {one.removeprefix("tokenmeter.").split(".")[0] for one in modules}
    return found


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "how-to").glob("*.md")), ids=lambda page: page.stem)
def test_a_page_names_the_extras_without_which_its_code_does_not_run(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {
        extra: {re.split(r"[\[<>=]", one)[0].replace("-", "_") for one in needs}
        for extra, needs in project["optional-dependencies"].items()
    }
    text = page.read_text("utf-8")
    # The client of OpenAI's is in every page's code, and README's first line of installing names it.
    named = {"openai"} | {
        one for names in re.findall(r"\[([\w,-]+)\]", text) for one in names.split(",")
    } & extras.keys()
    brought = named.union(*(extras[one] for one in named))
    needs = set().union(*(find_needs(code) for skipped, code in _PYTHON.findall(text) if not skipped))
    optional = extras.keys() | set().union(*extras.values())
    assert needs & optional - brought == set()


_TOML = re.compile(r"^ *```toml\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def test_the_settings_of_each_page_are_taken_as_they_stand(tmp_path):
    """Whoever copies a block of a page into a file has settings that are right."""
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for block in _TOML.findall(page.read_text("utf-8")):
            file = tmp_path / f"{page.stem}.toml"
            file.write_text(textwrap.dedent(block), "utf-8")
            load_settings(config=file)
