from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest

from tokenmeter.display import amount, compact, money_places, share
from tokenmeter.ledger import Entry
from tokenmeter.reports import Query, read_report, table
from tokenmeter.stores.base import Store


def build(store, **asked):
    return read_report(store, Query.parse(**asked))


def test_the_table_shows_rows_totals_period_and_zone(month: Store) -> None:
    text = build(month, by=["member", "model"], period="2026-11", tz="Europe/Berlin").to_text(width=120)
    lines = text.splitlines()
    assert lines[0] == "Usage and cost by member, model: 2026-11 (Europe/Berlin)"
    assert lines[2].split() == [
        *("member", "model", "requests", "errors", "input", "cached", "output"),
        *("web", "searches", "list", "cost", "billed", "cost"),
    ]
    assert lines[4].split()[:2] == ["bob", "claude-opus-4-1"]
    assert any(line.startswith("total") for line in lines)


def test_str_is_the_table_and_print_shows_it(month: Store, capsys: pytest.CaptureFixture[str]) -> None:
    report = build(month, by="member")
    print(report)  # noqa: T201 - what is tested
    assert capsys.readouterr().out == f"{report}\n"
    assert "grace" in str(report)


def test_the_platform_multiplier_is_said(month: Store) -> None:
    text = str(build(month, by="member", period="2026-11"))
    assert "Billed cost is list cost x 1.05 (platform multiplier)." in text


def test_no_multiplier_is_claimed_where_rows_differ(store: Store, make_entry: Callable[..., Entry]) -> None:
    store.settle(make_entry(who={"member": "ada"}, input=1_000_000, factors={"platform": "1.05"}))
    store.settle(make_entry(who={"member": "bob"}, input=1_000_000, factors={"platform": "1.10"}))
    text = str(build(store, by="member"))
    assert "(platform multiplier)" not in text
    assert "1.075 x list cost on average" in text


def test_a_discount_has_its_own_column(store: Store, make_entry: Callable[..., Entry]) -> None:
    store.settle(make_entry(input=1_000_000, factors={"discount": "0.8", "platform": "1.1"}))
    text = build(store, by="model").to_text(width=120)
    assert "$0.25" in text
    assert "$0.20" in text
    assert "$0.22" in text
    assert "Billed cost is contracted cost x 1.1 (platform multiplier)." in text


def test_unpriced_and_estimated_are_marked_and_explained(month: Store) -> None:
    lines = build(month, by="member", period="2026-11").to_text(width=100).splitlines()
    assert next(line for line in lines if line.startswith("ada")).endswith("*")
    assert next(line for line in lines if line.startswith("grace")).endswith("~")
    assert next(line for line in lines if line.startswith("total")).endswith("*~")
    assert "* 1 of 6 requests was recorded without a known price" in "\n".join(lines)
    assert "~ 1 of 6 requests was recorded with estimated usage or cost." in lines


def test_an_unknown_cost_reads_unpriced_and_not_zero(month: Store) -> None:
    lines = build(month, by="model").to_text(width=100).splitlines()
    row = next(line for line in lines if line.startswith("unheard-of"))
    assert row.count("unpriced") == 2
    assert "$0" not in row


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_table_fits_its_width_and_folds_what_identifies_a_row(
    store: Store, make_entry: Callable[..., Entry], width: int
) -> None:
    member, route = "a.rather.long.name@department.example.com", "/summarise/things/of/some/length"
    store.settle(make_entry(who={"member": member, "route": route}))
    lines = build(store, by=["member", "route"]).to_text(width=width).splitlines()[2:]
    assert max(map(len, lines)) <= width
    start = lines[0].index("route")
    rows = lines[2 : lines.index(lines[1], 2)] if lines[1] in lines[2:] else lines[2:]
    assert "".join(line[:start].strip() for line in rows) == member
    assert "".join(line[start:].split("  ")[0].strip() for line in rows) == route
    assert "billed" in lines[0]


def test_a_name_without_end_is_shortened(store: Store, make_entry: Callable[..., Entry]) -> None:
    store.settle(make_entry(who={"member": "m" * 500}))
    lines = build(store, by="member").to_text(width=60).splitlines()
    assert len(lines) < 15
    assert any(line.startswith("m") and "…" in line for line in lines)


def test_wide_characters_keep_the_columns_aligned(store: Store, make_entry: Callable[..., Entry]) -> None:
    store.settle(make_entry(who={"member": "李小龍"}, input=1_000_000))
    store.settle(make_entry(who={"member": "ada"}, input=1_000_000))
    lines = build(store, by="member").to_text(width=100).splitlines()
    chinese = next(line for line in lines if line.startswith("李小龍"))
    ada = next(line for line in lines if line.startswith("ada"))
    assert len(ada) - len(chinese) == 3


def test_joiners_that_spell_a_name_stay_and_take_no_room(store: Store, make_entry: Callable[..., Entry]) -> None:
    for member in ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f468\u200d\U0001f469"):
        store.settle(make_entry(who={"member": member}, input=1_000_000))
        text = build(store, by="member", where={"member": member}).to_text(width=100)
        line = next(line for line in text.splitlines() if line.startswith(member))
        wide = sum(letter > "\U0001f000" for letter in member)
        assert len(line) + wide - member.count("\u200d") - member.count("\u200c") == len(text.splitlines()[-1])


def test_times_are_never_cut(month: Store) -> None:
    text = build(month, by=["member", "model", "team"], granularity="hour").to_text(width=60)
    assert "2026-11-02T10:00" in text


def test_many_rows_are_summed_into_one_line_and_still_add_up(store: Store, make_entry: Callable[..., Entry]) -> None:
    for number in range(30):
        store.settle(make_entry(who={"end_user": f"user-{number}"}, input=1_000))
    text = build(store, by="end_user").to_text(width=100, max_rows=5)
    assert "(26 others)" in text
    assert len([line for line in text.splitlines() if line.startswith("user-")]) == 4
    assert "user-29" in build(store, by="end_user").to_text(max_rows=None)


def test_names_cannot_steer_the_terminal(store: Store, make_entry: Callable[..., Entry]) -> None:
    store.settle(make_entry(model="evil\x1b[2Jmodel\u202e", input=1))
    text = build(store, by="model").to_text(width=100)
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_an_empty_ledger_and_an_empty_period_say_what_to_do(store: Store, make_entry: Callable[..., Entry]) -> None:
    assert "The ledger is empty." in str(build(store))
    store.settle(make_entry(input=1))
    assert "No entries in this period." in str(build(store, period="2020"))
    assert "No entries match." in str(build(store, where={"member": "nobody"}))
    assert "(UTC), member != nobody\n" in str(build(store, where={"member!": "nobody"}))
    assert "No entries match." in build(store, where={"member": "nobody"})._repr_html_()


def test_html_escapes_every_name(store: Store, make_entry: Callable[..., Entry]) -> None:
    store.settle(make_entry(who={"member": "<script>alert(1)</script>"}, input=1_000_000))
    page = build(store, by="member", where={"member": "<script>alert(1)</script>"})._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "$0.25" in page


@pytest.mark.parametrize(
    ("dollars", "places", "shown"),
    [
        ("1234.5", 2, "$1,234.50"),
        ("-0.5", 2, "-$0.50"),
        ("0", 2, "$0.00"),
        ("0.0000004", 6, "<$0.000001"),
        ("1000000", 2, "$1,000,000.00"),
    ],
)
def test_money_for_people(dollars: str, places: int, shown: str) -> None:
    assert amount(Decimal(dollars), places) == shown


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        (["5.000001"], ["$5.000001"]),
        (["4.999999", "0.5"], ["$4.999999", "$0.500000"]),
        (["3.27451876"], ["$3.2745"]),
        (["0.100064", "5.000001"], ["$0.1001", "$5.0000"]),
        (["0.125", "120"], ["$0.125", "$120.000"]),
        (["0.0042", "-0.5"], ["$0.0042", "-$0.5000"]),
        (["0.00012", "7"], ["$0.00012", "$7.00000"]),
        (["0.000000001"], ["<$0.000001"]),
        (["1000.005", "3.5077"], ["$1,000.00", "$3.51"]),
        (["1000.005", "0.0042", "3.5"], ["$1,000.0050", "$0.0042", "$3.5000"]),
        (["225000", "0", "0.0025"], ["$225,000.0000", "$0.00", "$0.0025"]),
        (["-1000000", "0.000005"], ["-$1,000,000.000000", "$0.000005"]),
        (["0", "12.30"], ["$0.00", "$12.30"]),
    ],
)
def test_what_lies_below_a_cent_shows_beside_any_amount(column: list[str], shown: list[str]) -> None:
    amounts = [Decimal(one) for one in column]
    assert [amount(one, money_places(amounts)) for one in amounts] == shown


def test_a_column_without_amounts_has_cents() -> None:
    assert money_places([]) == 2


@pytest.mark.parametrize(
    ("quantity", "shown"),
    [(0, "0"), (9_999, "9,999"), (12_345, "12.3k"), (999_999, "1000k"), (1_500_000, "1.5M"), (Decimal("12.5"), "12.5")],
)
def test_compact_quantities(quantity: int | Decimal, shown: str) -> None:
    assert compact(quantity) == shown


def test_shares_never_round_to_all_or_nothing() -> None:
    assert share(None) == "-"
    assert share(Decimal(0)) == "0%"
    assert share(Decimal("0.0001")) == "<1%"
    assert share(Decimal("0.9999")) == ">99%"
    assert share(Decimal(1)) == "100%"
    assert share(Decimal("2712.42")) == "271,242%"
    assert [share(Decimal(part)) for part in ("-0.004", "-0.5", "-0.996", "-12")] == [
        "-<1%",
        "-50%",
        "->99%",
        "-1,200%",
    ]


@pytest.mark.parametrize("places", [2, 4, 6])
def test_nothing_is_written_the_same_in_every_column(places: int) -> None:
    assert amount(Decimal("0.000000"), places) == amount(Decimal("-0.0"), places) == "$0.00"
    assert amount(Decimal("0.00000001"), places).startswith("<$0.0")


def test_a_long_table_looks_at_each_cell_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    monkeypatch.setattr(table, "text_width", lambda text: measured.append(text) or len(text))
    cells = tuple(f"user-{number}" for number in range(500))
    columns = [table.Column("end user", cells), table.Column("requests", cells, right=True)]
    assert len(table.render(columns)) == 503
    assert len(measured) < 5 * len(columns) * len(cells)
