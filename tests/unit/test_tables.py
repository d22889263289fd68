"""Tables of other programs and countries: numbers, decimal marks, encodings, delimiters."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from tokenmeter.tables import decimal_mark, open_text, parse_moment, parse_number, read_table


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0", "0"), ("12", "12"), ("-3", "-3"), ("+3", "3"), (" 7 ", "7")),
        *(("6.0", "6.0"), (".5", "0.5"), (",5", "0.5")),
        *(("1,234.56", "1234.56"), ("1.234,56", "1234.56"), ("1.234.567", "1234567"), ("1,234,567", "1234567")),
        *(("1 234,5", "1234.5"), ("1\u00a0234,50", "1234.50"), ("1\u202f234", "1234"), ("1'234.50", "1234.50")),
        *(("$1,234.50", "1234.50"), ("-$3.10", "-3.10"), ("$-3.10", "-3.10"), ("12,50 €", "12.50"), ("€12", "12")),
        *(("(3.00)", "-3.00"), ("3.00-", "-3.00"), ("\u22123", "-3"), ("2e-06", "0.000002"), ("1.5E+3", "1500")),
        *(("0,325", "0.325"), ("0.325", "0.325"), ("12,3456", "12.3456"), ("29,00", "29.00"), ("1234,567", "1234.567")),
    ],
)  # fmt: skip
def test_what_reads_in_one_way_is_read_whatever_the_table_says(text, value):
    for mark in (".", ",", None):
        assert parse_number(text, mark) == Decimal(value)


@pytest.mark.parametrize("text", ["1.325", "1,325", "-12,000", "$999.000"])
def test_what_reads_in_two_ways_needs_the_tables_mark(text):
    plain = text.replace("$", "")
    assert parse_number(text, ".") == Decimal(plain.replace(",", ""))
    assert parse_number(text, ",") == Decimal(plain.replace(".", "").replace(",", "."))
    with pytest.raises(ValueError, match="two ways"):
        parse_number(text, None)


@pytest.mark.parametrize(
    "text",
    ["", " ", "abc", "1,23,456", "1.234,567.8", "12-3", "--3", "(-3)", "NaN", "Infinity", "1e9999", "0x10", "1..2"],
)  # fmt: skip
def test_what_is_no_number_is_none(text):
    with pytest.raises(ValueError, match="not a number"):
        parse_number(text)


@pytest.mark.parametrize("text", ["1e400", "9" * 400, "-1e30", "1,000,000,000,000,000,000,000,000,000"])
def test_more_than_any_amount_or_count_is_told(text):
    with pytest.raises(ValueError, match="more than any amount or count"):
        parse_number(text)


@pytest.mark.parametrize(
    ("cells", "mark"),
    [
        (["1.325", "7", "x"], None),
        (["1.325", "2,5"], ","),
        (["1,325", "2.50"], "."),
        (["2,5", "2.5"], None),
        (["1.234,5"], ","),
        (["2026-11-10", "gpt-4.1", "10.0.0.1"], None),
    ],
)
def test_numbers_that_read_in_one_way_tell_the_decimal_mark(cells, mark):
    assert decimal_mark(cells, usual=None) == mark


def table(content: bytes):
    headings, rows, mark = read_table(open_text(io.BytesIO(content), content))
    return headings, list(rows), mark


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_encodings_and_delimiters_are_told_by_the_file(encoding, delimiter):
    text = f"name{delimiter} cost\r\nMüller{delimiter}2.50\r\n\r\nÀé{delimiter}3\r\n"
    headings, rows, mark = table(text.encode(encoding))
    assert headings == ["name", "cost"]
    assert [row.cells for row in rows] == [{"name": "Müller", "cost": "2.50"}, {"name": "Àé", "cost": "3"}]
    assert mark == "."


def test_a_line_may_say_the_delimiter_and_cells_may_have_lines():
    headings, rows, mark = table(b'sep=;\r\na;b\r\n"one\r\ntwo, ""x""";1,5\r\n3;4;;\r\n;\r\n')
    assert (headings, mark) == (["a", "b"], ",")
    assert rows == [(4, {"a": 'one\r\ntwo, "x"', "b": "1,5"}, None), (5, {"a": "3", "b": "4"}, None)]


@pytest.mark.parametrize(("line", "cells"), [("2026-10-09,1,5", 3), ("2026-10-09", 1), ('"2026-10-09,1"', 1)])
def test_a_row_of_more_or_fewer_cells_than_headings_says_so(line, cells):
    _, rows, _ = table(f"day,cost\n2026-10-08,2\n{line}\n2026-10-10,3\n".encode())
    fault = f"it has {cells} cells, and there are 2 headings"
    assert [(row.line, row.fault) for row in rows] == [(2, None), (3, fault), (4, None)]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf", b"a,b\n"])
def test_nothing_has_no_rows(content):
    assert table(content)[1] == []


@pytest.mark.parametrize("content", [b"a,b\n1,2\n3", b'a,b\n1,2\n3,"4', b'a,b\n1,2\n3,"4\n5'])
def test_a_table_that_stops_in_the_middle_of_a_line_is_told(content):
    with pytest.raises(csv.Error, match="in the middle"):
        table(content)


@pytest.mark.parametrize("content", [b"a,b\n1,2\n3,4", b'a,b\n1,2\n3,"4"', b'a,b\n1,2\n3,"4 ""x"""', b"a,b\n1,2\n3\n"])
def test_a_table_needs_no_end_of_its_last_line(content):
    assert len(table(content)[1]) == 2


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-10-13", datetime(2026, 10, 13)),  # noqa: DTZ001 - without a zone
        ("2026-10-13T10:00:02Z", datetime(2026, 10, 13, 10, 0, 2, tzinfo=UTC)),
        ("2026-10-13 10:00:02 UTC", datetime(2026, 10, 13, 10, 0, 2, tzinfo=UTC)),
        ("2026-10-13 10:00:02.123456+00", datetime(2026, 10, 13, 10, 0, 2, 123456, tzinfo=UTC)),
        ("2026-10-13 12:00:02.5 +0200", datetime(2026, 10, 13, 10, 0, 2, 500000, tzinfo=UTC)),
        ("2026-10-13 10:00:02.123456 +0000 UTC", datetime(2026, 10, 13, 10, 0, 2, 123456, tzinfo=UTC)),
        (" 2026-10-13 10:00:02 ", datetime(2026, 10, 13, 10, 0, 2)),  # noqa: DTZ001 - without a zone
        ("13.10.2026", datetime(2026, 10, 13)),  # noqa: DTZ001 - without a zone
        ("3.1.2026, 09:30", datetime(2026, 1, 3, 9, 30)),  # noqa: DTZ001 - without a zone
        ("13.10.2026 10:00:02 +0200", datetime(2026, 10, 13, 8, 0, 2, tzinfo=UTC)),
    ],
)
def test_moments_are_read_as_programs_print_them(text, moment):
    assert parse_moment(text) == moment


@pytest.mark.parametrize(
    "text", ["", "soon", "13.13.2026", "13.10.26", "10/13/2026", "2026-10-13 10:00:02 CET", "2026-10-13 UTC"]
)
def test_a_moment_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_moment(text)


@pytest.mark.parametrize("text", ["1.234,5,6", "1,234.5.6", "1,2,3.4,5"])
def test_a_second_decimal_mark_is_no_number(text):
    for mark in (".", ",", None):
        with pytest.raises(ValueError, match=r"not a number|two ways"):
            parse_number(text, mark)


def test_commas_inside_quoted_headings_are_none_of_the_tables():
    data = b'"Cost (USD, net, all)";"Tokens"\n"1,5";"3"\n'
    headings, rows, mark = read_table(open_text(io.BytesIO(data), data[:4]))
    assert (headings, mark) == (["Cost (USD, net, all)", "Tokens"], ",")
    assert list(rows) == [(2, {"Cost (USD, net, all)": "1,5", "Tokens": "3"}, None)]
