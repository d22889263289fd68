"""What the site does beyond its generator: an order of sections, examples as pages, `llms.txt`, Markdown."""

from __future__ import annotations

import ast
import re
from importlib.metadata import version
from pathlib import Path

from bs4 import BeautifulSoup
from markdownify import markdownify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parents[1]
_SECTIONS = ("Tutorial", "How to", "Reference", "Explanation", "Examples")
#: A link from a page to a file of the repository that is no page: an example, or a document at the root.
_OUTSIDE = re.compile(r"\]\((?:\.\./)+(examples/[\w/.-]+|[A-Z]+\.md)(#[\w-]+)?\)")
#: A link from a document at the root, which stands in a folder of its own on the site.
_FROM_ROOT = re.compile(r"\]\((?:docs/)?((?:explanation|how-to|reference|tutorial|examples)/|[A-Z]+\.md)")
_ROOT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
#: What is written beside the pages: the path of each one's Markdown -> its text.
_markdown: dict[str, str] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Say at the foot of every page which version it is about."""
    config.copyright = f"tokenmeter {version('tokenmeter-sdk')}"
    return config


def _about(example: Path) -> str:
    """What an example's docstring says first."""
    return (ast.get_docstring(ast.parse(example.read_text("utf-8"))) or "").partition("\n\n")[0]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the examples, and the documents at the repository's root, as pages."""
    for example in sorted((_ROOT / "examples").rglob("*.py")):
        name = example.relative_to(_ROOT).with_suffix(".md").as_posix()
        text = f"# {example.stem}\n\n{_about(example)}\n\n`{example.relative_to(_ROOT)}`\n\n"
        text += f"```python\n{example.read_text('utf-8')}```\n"
        files.append(File.generated(config, name, content=text))
    apps = sorted((_ROOT / "examples" / "apps").glob("*.py"))
    listed = "".join(f"- [{one.stem}]({one.stem}.md): {_about(one)}\n" for one in apps)
    text = f"# Whole applications\n\nEach is one file that runs, and is run by the tests.\n\n{listed}"
    files.append(File.generated(config, "examples/apps/index.md", content=text))
    for panels in sorted((_ROOT / "examples").rglob("*.json")):
        files.append(File.generated(config, panels.relative_to(_ROOT).as_posix(), content=panels.read_text("utf-8")))
    for name in _ROOT_PAGES:
        if (_ROOT / name).exists():
            text = _FROM_ROOT.sub(r"](../\1", (_ROOT / name).read_text("utf-8"))
            files.append(File.generated(config, f"project/{name.lower()}", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links to their pages."""
    del config, files
    up = "../" * page.file.src_uri.count("/")

    def to_page(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        if target in _ROOT_PAGES:
            return f"]({up}project/{target.lower()}{anchor})"
        if target.endswith(".py"):
            return f"]({up}{target.removesuffix('.py')}.md{anchor})"
        if target.endswith("/apps"):
            return f"]({up}{target}/index.md{anchor})"
        return f"]({up}how-to/frameworks.md)" if target.startswith("examples/frameworks") else f"]({up}{target})"

    _markdown[page.file.src_uri] = text = _OUTSIDE.sub(to_page, markdown)
    return text


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> None:
    """A page whose Markdown only names what the docstrings say: what was made of them, as Markdown."""
    del config, files
    if not re.search(r"^::: ", _markdown[page.file.src_uri], re.MULTILINE):
        return
    made = BeautifulSoup(html, "html.parser")
    for mark in made.select(".headerlink"):
        mark.decompose()
    for link in made.select('a[href^="#"]'):  # the places they lead to have no names in Markdown
        link.unwrap()
    for code in made.select("td code"):  # a table's own sign
        code.string = code.get_text().replace("|", r"\|")
    text = markdownify(str(made), heading_style="ATX", escape_underscores=False, escape_asterisks=False)
    _markdown[page.file.src_uri] = text.strip() + "\n"


def on_nav(nav: Navigation, *, config: MkDocsConfig, files: Files) -> Navigation:
    """Sections in the order a reader needs them; pages first."""
    del config, files

    def place(item: object) -> int:
        if not isinstance(item, Section):
            return -1
        return _SECTIONS.index(item.title) if item.title in _SECTIONS else len(_SECTIONS)

    nav.items.sort(key=place)
    return nav


def _first_sentence(text: str) -> str:
    """What a page says first in prose: no heading, code, table, list, picture or comment."""
    prose = re.sub(r"^(```|~~~).*?^\1$|<!--.*?-->", "", text, flags=re.DOTALL | re.MULTILINE)
    paragraphs = (" ".join(one.split()) for one in re.split(r"\n\s*\n", prose))
    first = next((one for one in paragraphs if one and not re.match(r"[#|!>:-]|[*] |\d+\. ", one)), "")
    return re.split(r"(?<=[.?!])\s+(?=[A-Z`*])", first)[0]


def on_post_build(*, config: MkDocsConfig) -> None:
    """Write `llms.txt` and, beside each page, its Markdown."""
    site = Path(config.site_dir)
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    for section in ("", "tutorial", "how-to", "reference", "explanation", "examples", "project"):
        if section:
            lines += [f"## {section.replace('-', ' ').capitalize()}", ""]
        for name, text in sorted(_markdown.items()):
            if name.rpartition("/")[0].partition("/")[0] != section:
                continue
            target = site / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, "utf-8")
            title = next((line[2:] for line in text.splitlines() if line.startswith("# ")), target.stem)
            lines.append(f"- [{title}]({name}): {_first_sentence(text)}")
        lines.append("")
    (site / "llms.txt").write_text("\n".join(lines), "utf-8")
