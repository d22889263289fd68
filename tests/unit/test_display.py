"""Sentences for people: what is said of one is not said as of many."""

import ast
import re
from pathlib import Path

import pytest

import tokenmeter
from tokenmeter.display import counted

SOURCE = Path(tokenmeter.__file__).parent
#: What ledgers, files and calls are counted in.
COUNTED = re.compile(
    r" (calls|charges|conflicts|corrections|days|documents|entries|faults|files|invoices|lines|months|records|requests|"
    r"rows|sums)\b"
)
CONSTANT = re.compile(r"_?[A-Z][A-Z_]+\b")


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 rows"), (1, "1 row"), (-1, "-1 row"), (2, "2 rows"), (20_480, "20,480 rows")],
)
def test_the_words_agree_with_the_number(number, said):
    assert counted(number, "row") == said
    assert counted(number, "entry is", "entries are").endswith("entry is" if said.endswith("row") else "entries are")


def test_no_sentence_of_the_product_counts_without_asking_how_many():
    """A figure that may be 1 stands in `counted`; a constant of the module may have its plural beside it."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found += [f"{path.relative_to(SOURCE)}:{node.lineno}" for _ in _plurals(node)]
    assert found == []


def _plurals(sentence):
    for figure, words in zip(sentence.values, sentence.values[1:], strict=False):
        if not isinstance(figure, ast.FormattedValue) or not isinstance(words, ast.Constant):
            continue
        if COUNTED.match(words.value) and not CONSTANT.match(ast.unparse(figure.value)):
            yield words.value
