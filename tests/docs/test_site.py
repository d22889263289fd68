"""The documentation site: whole, and complete in itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tokenmeter

ROOT = Path(__file__).parents[2]
#: What a browser loads by itself: scripts, style sheets, fonts, pictures.
_LOADED = re.compile(
    r"""<(?:script|img|iframe)[^>]+src=["'](https?:)?//|<link[^>]+rel=["']?(?:stylesheet|preconnect|icon)["']?[^>]+href=["'](https?:)?//"""
)

#: A link within the site, without its anchor.
_LINK = re.compile(r"""<a [^>]*href=["']?(?![a-z]+:|/|#)([^"'#?> ]+)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(target)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return target


def test_no_page_loads_anything_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    assert [str(page) for page in pages if _LOADED.search(page.read_text("utf-8"))] == []


def test_every_link_to_a_page_leads_to_one(site):
    for page in sorted(site.rglob("*.html")):
        for target in _LINK.findall(page.read_text("utf-8")):
            place = (page.parent / target).resolve()
            assert place.is_relative_to(site), (page, target)
            assert (place / "index.html").exists() if place.is_dir() else place.exists(), (page, target)


def test_every_page_is_there_as_markdown_and_listed_for_language_models(site):
    listed = (site / "llms.txt").read_text("utf-8")
    for page in site.rglob("index.html"):
        name = page.parent.relative_to(site).as_posix()
        names = ("index.md",) if name == "." else (f"{name}.md", f"{name}/index.md")
        assert [one for one in names if (site / one).exists() and f"]({one})" in listed], name


def test_every_link_of_the_markdown_leads_to_a_file_of_the_site(site):
    """The files of the repository that a page names are not there: its Markdown leads to their pages, too."""
    lost = []
    for page in sorted(site.rglob("*.md")):
        prose = re.sub(r"^(```|~~~).*?^\1$|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", prose):
            place = (page.parent / target).resolve()
            if not (place.is_relative_to(site) and place.is_file()):
                lost.append((page.relative_to(site).as_posix(), target))
    assert lost == []


def test_the_markdown_of_the_reference_says_what_the_docstrings_say(site):
    reference = (site / "reference" / "api.md").read_text("utf-8")
    assert reference.startswith("# API\n")
    assert ":::" not in reference
    assert ">>> pool = CarryingExecutor" in reference
    assert r"| `region` | `str \| None` |" in reference
    assert "\nhold(\n" in reference
    for name in ("report", "wrap", "Budget", "BudgetExceededError"):
        assert re.search(rf"^#+ .*`?{name}`?", reference, re.MULTILINE), name


def test_every_public_name_has_its_place_in_the_reference(site):
    reference = (site / "reference" / "api" / "index.html").read_text("utf-8")
    described = [
        f'id="tokenmeter.{name}"' in reference or f"<code>{name}</code>" in reference for name in tokenmeter.__all__
    ]
    assert [name for name, told in zip(tokenmeter.__all__, described, strict=True) if not told] == ["__version__"]


def test_an_example_of_the_reference_is_code(site):
    """A prompt `>>>` in prose would be three quotations in one another."""
    reference = (site / "reference" / "api" / "index.html").read_text("utf-8")
    assert "<blockquote" not in reference
    assert "CarryingExecutor(ThreadPoolExecutor(8))" in re.sub(r"<[^>]+>", "", reference)


def test_what_the_list_for_assistants_says_of_a_page_is_its_first_sentence(site):
    """Prose that ends, not the first line of a paragraph or of a block of code."""
    listed = re.findall(r"^- \[[^]]+\]\(([^)]+)\): ?(.*)$", (site / "llms.txt").read_text("utf-8"), re.MULTILINE)
    assert [name for name, about in listed if not about.endswith((".", "?", "!"))] == []
    assert dict(listed)["how-to/sql.md"].startswith("A ledger in a file")
