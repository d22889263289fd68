"""No result depends on the decimal context of the program that calls: its precision, its rounding, its traps."""

import ast
import decimal
import json
import subprocess
import sys
import tomllib
from decimal import Decimal
from pathlib import Path

import pytest

import tokenmeter
from tokenmeter.money import EXACT, add, divide, magnitude, multiply, negate, parse_decimal, round_to, subtract, total
from tokenmeter.testing import FakeProvider

GOLDEN = sorted((Path(__file__).parents[1] / "providers" / "golden").glob("*.toml"))
PLUGIN = Path(__file__).parents[1] / "typing" / "exact_decimals.py"
LONG = Decimal("123456789.012345678901")


def hostile():
    """Four digits, away from zero, and an exception for whatever is rounded, inexact or a float."""
    traps = [decimal.Inexact, decimal.Rounded, decimal.FloatOperation, decimal.Subnormal, decimal.Clamped]
    return decimal.Context(prec=4, rounding=decimal.ROUND_UP, traps=traps)


@pytest.fixture(params=["trapping", "rounding"])
def context(request):
    chosen = hostile()
    if request.param == "rounding":
        chosen.clear_traps()
    return chosen


def test_sums_and_products_keep_every_digit(context):
    with decimal.localcontext(context):
        found = [
            add(LONG, LONG),
            subtract(LONG, 1),
            multiply(LONG, LONG, 3),
            divide(LONG, 2),
            total([LONG, 1, LONG]),
            negate(LONG),
            magnitude(Decimal("-123456.789")),
            round_to(LONG, 2),
            parse_decimal("123456789.123", name="x"),
        ]
    assert [str(each) for each in found] == [
        "246913578.024691357802",
        "123456788.012345678901",
        str(EXACT.multiply(EXACT.multiply(LONG, LONG), 3)),
        "61728394.5061728394505",
        "246913579.024691357802",
        "-123456789.012345678901",
        "123456.789",
        "123456789.01",
        "123456789.123",
    ]


def test_the_context_of_money_owes_nothing_to_the_default_one():
    code = """
import decimal
decimal.DefaultContext.traps[decimal.Inexact] = True
decimal.DefaultContext.rounding = decimal.ROUND_UP
decimal.DefaultContext.Emax = 9
from tokenmeter.money import EXACT
print(EXACT)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    settings = EXACT.copy()
    settings.clear_flags()
    assert done.stdout.strip() == repr(settings)


def test_reports_and_invoice_lines_owe_nothing_to_the_default_context():
    code = """
import decimal
decimal.DefaultContext.traps[decimal.Inexact] = True
decimal.DefaultContext.Emax = 9
import tokenmeter
from tokenmeter.billing.lines import LineItem
meter = tokenmeter.configure(store="memory:")
usage = {"prompt_tokens": 6, "completion_tokens": 1, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 1}}
answer = {"id": "c", "object": "chat.completion", "model": "gpt-5", "usage": usage}
tokenmeter.record(answer, provider="openai", endpoint="chat.completions")
report = tokenmeter.report()
print(report)
print(report.totals.cached_share)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0.1666666666666666666666666667"


def test_no_context_is_made_that_leaves_a_setting_to_the_default_one():
    settings = {"prec", "rounding", "Emin", "Emax", "capitals", "clamp", "flags", "traps"}
    made = []
    for path in (Path(tokenmeter.__file__).parent).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        from_decimal = any(
            isinstance(node, ast.ImportFrom)
            and node.module == "decimal"
            and "Context" in {one.name for one in node.names}
            for node in ast.walk(tree)
        )
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        made += [
            (path.name, {one.arg for one in call.keywords} == settings)
            for call in calls
            if (isinstance(call.func, ast.Name) and call.func.id == "Context" and from_decimal)
            or (isinstance(call.func, ast.Attribute) and ast.unparse(call.func) == "decimal.Context")
        ]
    assert made == [("money.py", True)]


def priced(case):
    call = {**case["call"], "model": case["call"].get("model")}
    rating = tokenmeter.price(json.loads(case["body"]), **call)
    return rating, [
        (line.quantity, line.list_unit_price, line.list_cost, line.billed_cost, line.price_id)
        for line in rating.charges
    ]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_body_costs_the_same_in_any_context(path, context):
    cases = tomllib.loads(path.read_text(encoding="utf-8"))["case"]
    accepted = {"provider", "endpoint", "model", "at", "processing", "region", "service_tier"}
    cases = [case for case in cases if case["call"].keys() <= accepted]
    expected = [priced(case) for case in cases]
    with decimal.localcontext(context):
        assert [priced(case) for case in cases] == expected


def test_a_program_with_a_context_of_its_own_gets_exact_books(context, tmp_path):
    """Calls, sums, tables and exports; the calls run in the hostile context, the reading in both."""
    openai = pytest.importorskip("tokenmeter.openai")
    with FakeProvider() as provider:
        meter = tokenmeter.make_meter(store=f"sqlite:///{tmp_path}/usage.db", multiplier="1.0123456789")
        client = tokenmeter.wrap(openai.OpenAI(api_key="sk-test", base_url=provider.openai_url), meter=meter)
        with decimal.localcontext(context):
            for size in (1, 3_333_333, 7_654_321):
                provider.answer(meters={"input": size, "output": 1_234_567})
                client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "hello"}])
            report = tokenmeter.report(by="model", meter=meter)
            table, rows = str(report), report.to_csv()
        plainly = tokenmeter.report(by="model", meter=meter)
        assert (str(plainly), plainly.to_csv()) == (table, rows)
        recorded = list(tokenmeter.entries(meter=meter))
        assert report.totals.billed_cost == total(entry.billed_cost for entry in recorded)
        meter.close()


FORBIDDEN = """
from decimal import ROUND_UP, Decimal
a: Decimal = Decimal(1)
n: int | Decimal = 2
total = Decimal(0)
print(a + 1)
print(a * n)
print(n * 2)
total += a
print(-a, abs(a))
print(sum([a]))
print(round(a, 2))
print(a.quantize(Decimal("0.1"), rounding=ROUND_UP))
print(f"{a:,.2f}")
print(a.scaleb(3))
print(a.normalize())
"""
ALLOWED = """
from decimal import Context, Decimal
a = Decimal(1)
exact = Context(prec=60)
print(exact.add(a, a), a < 1, max(a, 2), f"{a:f}", f"{a}", f"{a:,f}", a.copy_abs(), int(a), a.normalize(exact))
print(a.quantize(Decimal("0.1"), context=exact), 1 + 1, sum([1]), abs(-1), round(1.5))
"""


@pytest.mark.slow
def test_the_type_check_finds_each_way_to_obey_the_callers_context(tmp_path):
    api = pytest.importorskip("mypy.api")
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nplugins = {PLUGIN}\n")
    (tmp_path / "forbidden.py").write_text(FORBIDDEN)
    (tmp_path / "allowed.py").write_text(ALLOWED)
    arguments = ["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path / "cache")]
    found, _, _ = api.run([*arguments, str(tmp_path / "forbidden.py"), str(tmp_path / "allowed.py")])
    lines = {int(line.split(":")[1]) for line in found.splitlines() if ": error:" in line}
    assert lines == {number for number, line in enumerate(FORBIDDEN.splitlines(), 1) if number > 5}, found
    assert "allowed.py" not in found
