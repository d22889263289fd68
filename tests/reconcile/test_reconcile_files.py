"""CSV files: the consoles' exports by their headings, anything else with a column map."""

import ast
import bz2
import gzip
import lzma
import shlex
from datetime import date
from decimal import Decimal

import pytest

from tokenmeter.cli.options import parse_lists
from tokenmeter.errors import ConfigurationError, ReconciliationError
from tokenmeter.periods import parse_period
from tokenmeter.reconciliation import reconcile
from tokenmeter.reconciliation.files import read_files
from tokenmeter.reconciliation.statement import ExchangeRates
from tokenmeter.stores import open_store

NOVEMBER = parse_period("2026-11")
DAY = date(2026, 11, 10)
OPENAI_USAGE = (
    "start_time,end_time,start_time_iso,project_id,num_model_requests,user_id,api_key_id,model,batch,service_tier,"
    "input_tokens,output_tokens,input_cached_tokens\n"
    "1794268800,1794355200,2026-11-10T00:00:00+00:00,proj_1,2,,key_1,gpt-5,,,1000,200,300\n"
    "1794355200,1794441600,2026-11-11T00:00:00+00:00,,,,,,,,,,\n"
)
OPENAI_COSTS = (
    "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,line_item,project_id\n"
    '1794268800,1794355200,2026-11-10T00:00:00+00:00,,0.00087500,usd,"gpt-5, input",proj_1\n'
    "1794355200,1794441600,2026-11-11T00:00:00+00:00,,,,,\n"
)
ANTHROPIC_USAGE = (
    "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,"
    "usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,"
    "usage_output_tokens,web_search_count\n"
    "2026-11-10,claude-sonnet-5,prod,Default,standard,<= 200k,700,10,20,300,200,1\n"
)
ANTHROPIC_COSTS = (
    "usage_date_utc,model,workspace,api_key,usage_type,token_type,cost_usd,cost_type\n"
    "2026-11-10,claude-sonnet-5,Default,prod,standard,output,1.25,token\n"
)


@pytest.fixture
def write(tmp_path):
    def make(text, name="statement.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


def read(*paths, provider="openai", by=("model",), **options):
    return read_files(paths, NOVEMBER, provider=provider, by=by, rates=ExchangeRates({}), **options)


def test_openai_exports_are_known_and_their_input_loses_the_cache(write):
    statement = read(write(OPENAI_USAGE, "usage.csv"), write(OPENAI_COSTS, "costs.csv"))
    first = next(line for line in statement.usage if line.tokens)
    assert first.bucket.model == "gpt-5"
    assert (first.tokens, first.requests) == ({"input": 700, "cache_read": 300, "output": 200}, 2)
    assert first.bucket.day == DAY
    assert [(line.bucket.model, line.amount) for line in statement.costs if line.amount] == [
        ("gpt-5", Decimal("0.000875"))
    ]
    assert statement.source == "usage.csv, costs.csv"


def test_anthropic_exports_are_known_and_their_costs_are_dollars(write):
    statement = read(
        write(ANTHROPIC_USAGE, "usage.csv"), write(ANTHROPIC_COSTS, "costs.csv"), provider="anthropic", by=("api_key",)
    )
    (line,) = statement.usage
    assert line.tokens == {"input": 700, "cache_read": 300, "cache_write": 30, "output": 200, "web_searches": 1}
    assert line.bucket.api_key == "prod"
    assert statement.costs[0].amount == Decimal("1.25")


def test_what_is_not_split_by_is_summed(write):
    statement = read(write(ANTHROPIC_USAGE), provider="anthropic", by=("model",))
    assert statement.usage[0].bucket.api_key is None


@pytest.mark.parametrize(("unit", "dollars"), [("usd", "1234.5"), ("cents", "12.345")])
def test_a_column_map_reads_anything(write, unit, dollars):
    path = write('Tag;Modell;Tokens rein;Tokens raus;Betrag\n2026-11-10T08:00:00+02:00;m;1,000;5;"$1,234.50"\n')
    columns = {"day": "Tag", "model": "Modell", "input": "Tokens rein", "output": "Tokens raus", "cost": "Betrag"}
    statement = read(path, provider="acme", columns=columns, cost_unit=unit)
    assert statement.usage[0].tokens == {"input": 1000, "output": 5}
    assert statement.costs[0].amount == Decimal(dollars)
    assert statement.classes == ("input", "output")


@pytest.mark.parametrize(
    ("provider", "headings", "row"),
    [
        ("openai", "Datum;Modell;Eingabe-Token;Zwischengespeicherte Eingabe-Token;Ausgabe-Token", "m;1000;300;5"),
        ("openai", "Fecha;Modelo;Tokens de entrada;Entrada en caché;Tokens de salida", "m;1000;300;5"),
        (
            "anthropic",
            "Date;Modèle;Entrée (sans cache);Lecture du cache;Sortie;Écriture du cache 5 min;Écriture du cache 1h",
            "m;700;300;5;20;40",
        ),
    ],
    ids=["german", "spanish", "french"],
)
def test_headings_in_another_language_are_told_with_the_map_that_reads_them(write, provider, headings, row):
    path = write(f"{headings}\n2026-11-10;{row}\n")
    with pytest.raises(ReconciliationError, match="is not a known export") as refused:
        read(path, provider=provider)
    told = str(refused.value)
    given = told[told.index("{") : told.index("}") + 1]
    statement = read(path, provider=provider, columns=ast.literal_eval(given))
    counts = {"input": 700, "cache_read": 300, "output": 5, **({} if provider == "openai" else {"cache_write": 60})}
    assert statement.usage[0].tokens == counts
    options = shlex.split(told[told.index("--column") : told.index(". Its headings")])
    parsed = parse_lists([one for one in options if one != "--column"])
    assert read(path, provider=provider, columns=parsed) == statement


def test_what_nothing_is_known_of_is_not_guessed(write):
    with pytest.raises(ReconciliationError, match=r"Say what is what with columns=.*Its headings: a, b;"):
        read(write("a,b\n1,2\n"), provider="openai")


def test_days_outside_the_period_are_left_out(write):
    path = write("day,cost\n2026-10-31,1\n2026-11-30,2\n2026-12-01,4\n")
    statement = read(path, columns={"day": "day", "cost": "cost"})
    assert [line.amount for line in statement.costs] == [2]
    assert statement.usage is None
    assert statement.grain == ()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"model": "m"}, "'day' is missing"),
        ({"day": "d", "colour": "c"}, "unknown name 'colour'"),
        ({"day": "d", "input": "a", "input_including_cache": "b"}, "not both"),
        ({"day": "nowhere"}, "no column 'nowhere'"),
    ],
)
def test_a_map_that_does_not_fit_says_so(write, columns, message):
    with pytest.raises(ConfigurationError, match=message):
        read(write("d,m,a,b\n"), columns=columns)


def test_an_unknown_file_names_its_headings(write):
    with pytest.raises(ReconciliationError, match="Its headings: a, b"):
        read(write("a,b\n1,2\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"object": "page", "data": []}', r"is JSON, .* leave --file out"),
        (b'[\n {"date": "2026-11-10", "cost": 1}\n]', r"is JSON, .* tokenmeter import"),
        (b'\xef\xbb\xbf{"date": "2026-11-10", "cost": 1}\n{"date": "2026-11-11", "cost": 1}\n', "is JSON, "),
        ('{"date": "2026-11-10"}'.encode("utf-16"), "is JSON, "),
        (
            b"\n<!DOCTYPE html>\n<html><body>Sign in, please</body></html>",
            "is a web page .*download the statement anew",
        ),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is XML and no CSV"),
        (b"%PDF-1.7\n1 0 obj", "is a PDF: download the CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "an old workbook .XLS.: save it as CSV"),
        (b"PK\x03\x04" + bytes(26), "a ZIP or a workbook: unpack it, or save it as CSV"),
        (b"PAR1" + bytes(26), "is Parquet: write it as CSV"),
        (b"", "is empty"),
        (b"\r\n \r\n", "is empty"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_what_is_no_csv_is_told_with_what_to_do(tmp_path, content, message, packed):
    path = tmp_path / "statement.csv"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ReconciliationError, match=message) as refused:
        read(path)
    assert "Its headings" not in str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8", "utf-8-sig"])
def test_a_table_in_any_unicode_is_read(tmp_path, encoding):
    path = tmp_path / "statement.csv"
    path.write_bytes("Tag;Kosten für alles\n10.11.2026;1,25\n".encode(encoding))
    (line,) = read(path, columns={"day": "Tag", "cost": "Kosten für alles"}, decimal=",").costs
    assert line.amount == Decimal("1.25")


@pytest.mark.parametrize(("row", "message"), [("soon,1", "line 2: 'soon'"), ("2026-11-10,much", "line 2: 'much'")])
def test_a_bad_cell_names_its_line(write, row, message):
    with pytest.raises(ReconciliationError, match=message):
        read(write(f"day,cost\n{row}\n"), columns={"day": "day", "cost": "cost"})


@pytest.mark.parametrize(
    ("text", "amounts"),
    [
        ("day,cost\n2026-11-10,29.00\n2026-11-11,1.325\n", ["29.00", "1.325"]),
        ('day,cost\n2026-11-10,"1,325"\n2026-11-11,"12,345.60"\n', ["1325", "12345.60"]),
        ('day,cost\n2026-11-10,"29,00"\n2026-11-11,"1.325,00"\n', ["29.00", "1325.00"]),
        ("day;cost\n2026-11-10;29,00\n2026-11-11;1.325\n", ["29.00", "1325"]),
        ("day;cost\n2026-11-10;29.00\n2026-11-11;1.325\n", ["29.00", "1.325"]),
        ("day;cost\n2026-11-10;1 325,5 $\n2026-11-11;(3,20)\n", ["1325.5", "-3.20"]),
        ("sep=\t\nday\tcost\n2026-11-10\t$29.00\n2026-11-11\t-$1,325.00\n", ["29.00", "-1325.00"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_amounts_are_read_as_their_country_writes_them(tmp_path, text, amounts, encoding):
    path = tmp_path / "statement.csv"
    path.write_bytes(text.encode(encoding))
    statement = read(path, columns={"day": "day", "cost": "cost"})
    assert [line.amount for line in statement.costs] == [Decimal(amount) for amount in amounts]


def test_an_amount_that_reads_in_two_ways_is_never_guessed(write):
    path = write("day;cost\n2026-11-10;1.325\n")
    columns = {"day": "day", "cost": "cost"}
    with pytest.raises(ReconciliationError, match=r"line 2: '1\.325' can be read in two ways.*--decimal"):
        read(path, columns=columns)
    assert read(path, columns=columns, decimal=",").costs[0].amount == 1325
    assert read(path, columns=columns, decimal=".").costs[0].amount == Decimal("1.325")
    with pytest.raises(ConfigurationError, match="decimal is"):
        read(path, columns=columns, decimal="'")


def test_a_packed_statement_is_read_and_a_damaged_one_named(tmp_path):
    path = tmp_path / "statement.csv.gz"
    path.write_bytes(gzip.compress(b"day,cost\n2026-11-10,1\n"))
    assert read(path, columns={"day": "day", "cost": "cost"}).costs[0].amount == 1
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(ReconciliationError, match="cannot be read"):
        read(path, columns={"day": "day", "cost": "cost"})


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("input_cached_tokens", "cached_input_tokens"),
        ("input_cached_tokens", "Input Cached Tokens"),
        ("input_tokens,", "Input tokens,"),
        ("num_model_requests", "Num-Model-Requests"),
        ("start_time,", "START_TIME,"),
    ],
)
def test_a_heading_that_a_console_renames_or_writes_otherwise_is_known(write, name, other):
    statement = read(write(OPENAI_USAGE.replace(name, other, 1)))
    first = next(line for line in statement.usage if line.tokens)
    assert (first.tokens, first.requests) == ({"input": 700, "cache_read": 300, "output": 200}, 2)


def test_input_whose_cached_part_nothing_tells_is_compared_with_what_was_cached(write):
    """A heading nobody knows is named, and the cached tokens are no traffic that was not recorded."""
    statement = read(write(OPENAI_USAGE.replace("input_cached_tokens", "from_cache")))
    assert statement.in_input == {"cache_read", "cache_write"}
    assert "cache_read" not in statement.classes
    assert ["from_cache" in note for note in statement.notes] == [True]


def test_rows_of_another_period_are_left_out_aloud(write):
    statement = read_files(
        [write(OPENAI_COSTS)], parse_period("2026-10"), provider="openai", by=("model",), rates=ExchangeRates({})
    )
    assert statement.notes == ("2 rows of 2026-11-10 to 2026-11-11 lie outside 2026-10 and were left out.",)


def test_a_heading_that_stands_twice_hides_no_column(write):
    heading, *rows = OPENAI_COSTS.splitlines()
    twice = "\n".join([f"{heading},amount_value", *(f"{row},999" for row in rows), ""])
    statement = read(write(twice))
    assert [line.amount for line in statement.costs if line.amount] == [Decimal("0.000875")]


@pytest.mark.parametrize("cells", ["1", "1,", "2026-10-10,gpt-5", "2026-10-10,gpt-5,1,5", "2026-10-10,gpt-5,1,234.5"])
def test_a_row_of_more_or_fewer_cells_is_no_empty_day_nor_another_amount(tmp_path, cells):
    path = tmp_path / "s.csv"
    path.write_text(f"d,m,c\n2026-10-09,gpt-5,1.5\n{cells}\n2026-10-11,gpt-5,1.5\n")
    asked = {"columns": {"day": "d", "model": "m", "cost": "c"}, "provider": "openai", "by": ["model"]}
    with pytest.raises(ReconciliationError, match=r"line 3: it has \d cells, and there are 3 headings"):
        read_files([path], parse_period("2026-10"), rates=ExchangeRates({}), **asked)


@pytest.mark.parametrize("pack", [bz2.compress, gzip.compress, lzma.compress])
def test_packed_statements_are_read_and_half_of_one_is_refused(tmp_path, pack):
    content = pack(b"d,m,c\n2026-10-10,gpt-5,1.5\n" * 50)
    asked = {"columns": {"day": "d", "model": "m", "cost": "c"}, "provider": "openai", "by": ["model"]}
    path = tmp_path / "s.csv"
    path.write_bytes(pack(b"d,m,c\n13.10.2026,gpt-5,1.5\n"))
    (line,) = read_files([path], parse_period("2026-10"), rates=ExchangeRates({}), **asked).costs
    assert (line.bucket.day.isoformat(), line.amount) == ("2026-10-13", Decimal("1.5"))
    path.write_bytes(content[:-9])
    with pytest.raises(ReconciliationError, match="cannot be read"):
        read_files([path], parse_period("2026-10"), rates=ExchangeRates({}), **asked)


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"PK\x03\x04", "unpack it"), (b"PAR1", "CSV"), (b"d,m,c\n2026-10-10,gpt-5,1.5\n2026-10-11,gp", "in the middle")],
)
def test_a_file_that_is_no_table_or_half_of_one_is_refused(tmp_path, content, what):
    path = tmp_path / "s.csv"
    path.write_bytes(content)
    asked = {"columns": {"day": "d", "model": "m", "cost": "c"}, "provider": "openai", "by": ["model"]}
    with pytest.raises(ReconciliationError, match=what):
        read_files([path], parse_period("2026-10"), rates=ExchangeRates({}), **asked)


def test_no_file_and_no_client_is_told_in_words():
    store = open_store("memory:")
    with pytest.raises(ConfigurationError, match="at least one CSV file"):
        reconcile(store, provider="openai", period="2026-10", source=[])
    store.close()
