"""What the tab key offers."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

import tokenmeter
from tokenmeter import Attribution


@pytest.fixture
def ledger(tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    meter = tokenmeter.make_meter(store=url)
    for member in ("ada", "alan", "grace"):
        meter.record(
            {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            provider="openai",
            endpoint="chat.completions",
            model="gpt-4o-mini",
            attribution=Attribution(member=member),
        )
    meter.close()
    return url


def offered(*words):
    line = shlex.join(("tokenmeter", *words))
    environment = {
        **os.environ,
        "_TOKENMETER_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words)),
    }
    code = "from tokenmeter.cli.app import app; app(prog_name='tokenmeter')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("report", "--by", "mem"), ["member"]),
        (("report", "--by", "member,mod"), ["member,model"]),
        (("report", "--where", "memb"), ["member="]),
        (("report", "--granularity", "we"), ["week"]),
        (("report", "--period", "last-m"), ["last-month"]),
        (("invoice", "draft", "organ"), ["organization="]),
    ],
)
def test_names_are_completed(words, expected):
    assert offered(*words) == expected


def test_values_are_those_of_the_ledger(ledger):
    assert offered("report", "--store", ledger, "--where", "member=a") == ["member=ada", "member=alan"]
    assert offered("invoice", "draft", "--store", ledger, "member=g") == ["member=grace"]


def test_a_ledger_that_is_not_there_offers_nothing_and_says_nothing(tmp_path):
    assert offered("report", "--store", f"sqlite:///{tmp_path / 'none.db'}", "--where", "member=a") == []
    assert list(tmp_path.iterdir()) == []


def in_bash(ledger, *pieces):
    """What bash is told, to which a word is cut at each `=` and `:`."""
    environment = {
        **os.environ,
        "TOKENMETER_STORE": ledger,
        "_TOKENMETER_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(("tokenmeter", *pieces)),
        "COMP_CWORD": str(len(pieces)),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tokenmeter"], capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout.splitlines()


def test_bash_is_offered_what_stands_in_place_of_the_piece_that_it_has_cut_off(ledger):
    assert in_bash(ledger, "report", "--where", "member", "=", "a") == ["ada", "alan"]
    assert in_bash(ledger, "report", "--where", "member", "=") == ["ada", "alan", "grace"]
    assert in_bash(ledger, "invoice", "draft", "member", "=", "g") == ["grace"]
    scheme, colon, rest = ledger.partition(":")
    assert in_bash("memory:", "report", "--store", scheme, colon, rest, "--where", "member", "=", "g") == ["grace"]
    assert in_bash(ledger, "report", "--by", "mem") == ["member"]
    assert in_bash(ledger, "repo") == ["report"]


def test_a_name_with_a_space_is_offered_as_one_word(ledger):
    meter = tokenmeter.make_meter(store=ledger)
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    meter.record(usage, provider="openai", endpoint="chat.completions", attribution=Attribution(member="jo $mith"))
    meter.close()
    assert in_bash(ledger, "report", "--where", "member", "=", "j") == ["jo\\ \\$mith"]
    assert in_bash(ledger, "report", "--where", "member", "=", '"j') == ["jo $mith"]
