"""In IPython and Jupyter: magics, short lines and tables instead of dumps."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal

import pytest

import tokenmeter

pytest.importorskip("IPython")

CELL = """
client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hi"}]).usage.total_tokens
"""
ASYNC_CELL = """
answer = await async_client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hi"}])
"""


@pytest.fixture
def shell(fake_provider, tmp_path, monkeypatch):
    """A shell of IPython's own with two metered clients in it."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("PLOTLY_RENDERER", "json")
    tokenmeter.reset()
    tokenmeter.configure(store="memory:", config={})
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    where = {"base_url": fake_provider.openai_url, "api_key": "sk-test"}
    shell.user_ns.update(client=tokenmeter.OpenAI(**where), async_client=tokenmeter.AsyncOpenAI(**where))
    assert shell.run_cell("%load_ext tokenmeter").success
    yield shell
    shell.run_cell("await async_client.close(); client.close()")
    tokenmeter.reset()


def members():
    return [entry.attribution.member for entry in tokenmeter.entries()]


def test_a_cell_is_attributed_and_says_what_it_came_to(shell, capsys):
    assert shell.run_cell("%%meter member=ada route='/a b' tag:run=v2" + CELL).success
    (entry,) = tokenmeter.entries()
    assert entry.attribution == tokenmeter.Attribution(member="ada", route="/a b", tags={"run": "v2"})
    told = capsys.readouterr().out
    assert f"1 call, {entry.usage.input_tokens} tokens in, {entry.usage.output_tokens} out, $" in told
    assert shell.run_cell(CELL).success
    assert members() == ["ada", None]


def test_a_semicolon_behind_a_cells_last_expression_keeps_it_from_being_shown(shell, capsys):
    """As without the magic: else a whole answer stands below the cell."""
    assert shell.run_cell("%%meter\n40 + 2").success
    assert "42" in capsys.readouterr().out
    assert shell.run_cell("%%meter\n40 + 2;  # quiet\n").success
    assert capsys.readouterr().out.startswith("0 calls")
    assert not shell.run_cell("%%meter\n40 + ;").success


def test_a_line_holds_until_the_end_of_its_cell_also_with_await(shell, capsys):
    assert shell.run_cell("%meter member=ada\n" + ASYNC_CELL + CELL).success
    assert "2 calls" in capsys.readouterr().out
    assert shell.run_cell(CELL).success
    assert members() == ["ada", "ada", None]


async def test_a_kernel_that_runs_each_cell_in_a_context_of_its_own_ends_the_line_without_a_word(shell, capsys, caplog):
    """As ipykernel 7 does: the end of the cell is told outside of the context that the line was run in."""
    code = "%meter member=ada\n" + ASYNC_CELL
    done = await asyncio.create_task(shell.run_cell_async(code, transformed_cell=shell.transform_cell(code)))
    shell.events.trigger("post_run_cell", done)
    assert done.success
    assert "1 call, " in capsys.readouterr().out
    assert members() == ["ada"]
    assert caplog.text == ""


def test_await_below_a_cell_magic_is_refused_with_the_mend(shell, capsys):
    outcome = shell.run_cell("%%meter member=ada\n" + ASYNC_CELL)
    assert isinstance(outcome.error_in_exec, tokenmeter.ConfigurationError)
    assert "%meter member=ada" in str(outcome.error_in_exec)
    assert members() == []


@pytest.mark.parametrize("line", ["member", "user=ada", "member=", "ada"])
def test_what_is_no_attribution_is_refused_with_what_there_is(shell, line):
    outcome = shell.run_cell(f"%%meter {line}\n1")
    assert isinstance(outcome.error_in_exec, tokenmeter.ConfigurationError)


def test_a_cell_that_raises_fails_and_still_says_what_it_came_to(shell, capsys):
    outcome = shell.run_cell("%%meter member=ada" + CELL + "1 / 0")
    assert isinstance(outcome.error_in_exec, ZeroDivisionError)
    assert "1 call" in capsys.readouterr().out
    assert shell.run_cell(CELL).success
    assert members() == ["ada", None]


class TestWhatRecordsShow:
    CHAT = {  # noqa: RUF012
        "id": "chatcmpl-<1>", "object": "chat.completion", "model": "gpt-5-mini",
        "choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }  # fmt: skip
    HERE = {"provider": "openai", "endpoint": "chat.completions"}  # noqa: RUF012

    @pytest.fixture
    def meter(self):
        return tokenmeter.make_meter(
            store="memory:",
            config={},
            budgets=[
                tokenmeter.Budget(member="*", limit_usd=1, name="each"),
                tokenmeter.Budget(limit_tokens=5000, period="total", name="all"),
            ],
        )

    def test_one_line_each(self, meter):
        with tokenmeter.attribute(member="ada"):
            entry = meter.record(self.CHAT, **self.HERE, at="2026-11-26T09:59:26Z")
        unknown = meter.record({**self.CHAT, "id": "b", "model": "x"}, **self.HERE, at="2026-11-26T09:59:27Z")
        assert (
            repr(entry) == "<Entry 2026-11-26 09:59:26 openai gpt-5-mini ok: 1,000 in, 100 out, $0.00045 (member=ada)>"
        )
        assert repr(unknown) == "<Entry 2026-11-26 09:59:27 openai x ok: 1,000 in, 100 out, unpriced>"
        assert repr(meter.price(self.CHAT, **self.HERE)).startswith("<Rating $0.00045 list, $0.00045 billed: 2 charges")
        assert repr(meter.verify()).startswith("<Verification ok: 2 entries, head ")
        balances = {
            balance.budget: repr(balance) for balance in meter.remaining(at=datetime(2026, 11, 26, 10, tzinfo=UTC))
        }
        assert balances["each"] == "<Balance each (member=ada): $0.99955 of $1 left, resets 2026-12-01 00:00 UTC>"
        assert balances["all"] == "<Balance all: 2,800 tokens of 5,000 tokens left>"

    def test_tables_escape_what_others_wrote(self, meter):
        with tokenmeter.attribute(member="<script>"):
            entry = meter.record(self.CHAT, **self.HERE)
        shown = [entry, meter.price(self.CHAT, **self.HERE), meter.verify(), *meter.remaining()]
        for record in shown:
            html = record._repr_html_()
            assert "<script" not in html
            assert "<table>" in html
        assert "&lt;script&gt;" in shown[0]._repr_html_()
        assert "$0.00000025" in shown[0]._repr_html_()


def test_dollars_keep_every_digit():
    from tokenmeter.display import dollars, number_text

    shown = {"0": "$0", "1234567.5": "$1,234,567.5", "-0.000000000001": "-$0.000000000001", "1E+3": "$1,000"}
    assert {text: dollars(Decimal(text)) for text in shown} == shown
    assert dollars(None) == "unpriced"
    assert number_text(Decimal("Infinity")) == "unlimited"
