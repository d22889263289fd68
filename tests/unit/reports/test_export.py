from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow.parquet
import pytest

from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import Charge, Entry
from tokenmeter.money import total
from tokenmeter.reports import Query, export_charges, export_entries, read_report
from tokenmeter.reports.fields import Field
from tokenmeter.reports.workbook import make_workbook
from tokenmeter.reports.writers import import_extra, opened, write_whole
from tokenmeter.stores import open_store
from tokenmeter.stores.base import Store


def build(store, **asked):
    return read_report(store, Query.parse(**asked))


FORMATS = ("csv", "jsonl", "parquet")


def read(path: Path) -> list[dict[str, Any]]:
    """The file's records, as another program would read them."""
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def money(records: list[dict[str, Any]], name: str) -> Decimal:
    return total(Decimal(record[name]) for record in records if record[name] not in (None, ""))


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_foots_to_the_report(month: Store, tmp_path: Path, format_: str) -> None:
    query = Query.parse(period="2026-11")
    report = build(month, by=["member", "model"], period="2026-11")
    getattr(report, f"to_{format_}")(tmp_path / f"report.{format_}")
    export_entries(month, tmp_path / f"entries.{format_}", query=query)
    export_charges(month, tmp_path / f"charges.{format_}", query=query)
    for name in ("report", "entries", "charges"):
        records = read(tmp_path / f"{name}.{format_}")
        for cost in ("list_cost", "contracted_cost", "billed_cost"):
            assert money(records, cost) == getattr(report.totals, cost)
    entries = read(tmp_path / f"entries.{format_}")
    assert len(entries) == report.totals.requests
    assert sum(int(entry["output"]) for entry in entries) == report.totals.usage["output"]


@pytest.mark.parametrize("format_", FORMATS)
def test_a_manifest_lets_a_reader_check_the_file(month: Store, tmp_path: Path, format_: str) -> None:
    path = tmp_path / f"entries.{format_}"
    manifest = export_entries(month, path, query=Query.parse(period="2026-11", where={"member": ["ada", None]}))
    written = json.loads((tmp_path / f"entries.{format_}.manifest.json").read_text())
    assert written["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() == manifest.sha256
    assert written["bytes"] == path.stat().st_size
    assert written["rows"] == len(read(path)) == 3
    assert written["control_totals"]["billed_cost"] == f"{money(read(path), 'billed_cost'):f}"
    assert written["columns"] == list(read(path)[0])
    assert (written["since"], written["until"]) == ("2026-11-01T00:00:00.000000Z", "2026-12-01T00:00:00.000000Z")
    assert written["where"] == {"member": ["ada", None]}
    assert written["ledger"]["first_entry"] == read(path)[0]["entry_id"]
    assert written["ledger"]["last_entry"] == read(path)[-1]["entry_id"]


def test_text_that_a_spreadsheet_would_run_is_defused(store: Store, make_entry: Callable[..., Entry]) -> None:
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\uff1d1"]
    for name in names:
        store.settle(make_entry(who={"member": name}, input=1))
    rows = list(csv.DictReader(io.StringIO(build(store, by="member").to_csv())))
    assert sorted(row["member"] for row in rows) == sorted(f"'{name}" for name in names)
    exact = [json.loads(line)["member"] for line in build(store, by="member").to_jsonl().splitlines()]
    assert sorted(exact) == sorted(names)


def test_negative_amounts_stay_numbers_in_csv(store: Store, make_entry: Callable[..., Entry]) -> None:
    credit = {
        "kind": "adjustment",
        "list_cost": Decimal(0),
        "contracted_cost": Decimal(0),
        "billed_cost": Decimal("-1.5"),
    }
    store.settle(make_entry(fields=credit))
    row = next(csv.DictReader(io.StringIO(build(store).to_csv())))
    assert row["billed_cost"] == "-1.500000000000"


def test_csv_quotes_by_the_standard(store: Store, make_entry: Callable[..., Entry]) -> None:
    store.settle(make_entry(who={"member": 'a "quoted", name'}, input=1))
    text = build(store, by="member").to_csv()
    assert text.endswith("\r\n")
    assert '"a ""quoted"", name"' in text


def test_columns_do_not_depend_on_the_data(store: Store, make_entry: Callable[..., Entry]) -> None:
    empty = build(store, by="member", period="2026-11").to_csv()
    store.settle(make_entry(input=1, output=1))
    assert build(store, by="member", period="2026-11").to_csv().splitlines()[0] == empty.splitlines()[0]


def test_a_meter_of_the_users_own_gets_a_column_after_the_others(
    store: Store, make_entry: Callable[..., Entry]
) -> None:
    store.settle(make_entry(moon_tokens=7))
    row = next(csv.DictReader(io.StringIO(build(store).to_csv())))
    assert row["moon_tokens"] == "7.0"


def test_unknown_costs_are_empty_and_not_zero(month: Store) -> None:
    rows = [json.loads(line) for line in build(month, by="model").to_jsonl().splitlines()]
    assert next(row for row in rows if row["model"] == "unheard-of")["billed_cost"] is None


def test_fractional_quantities_are_exact(store: Store, make_entry: Callable[..., Entry], tmp_path: Path) -> None:
    store.settle(make_entry(model="whisper-1", seconds_audio=Decimal("12.345678")))
    for format_ in FORMATS:
        export_entries(store, tmp_path / f"e.{format_}")
        assert Decimal(read(tmp_path / f"e.{format_}")[0]["seconds_audio"]) == Decimal("12.345678")


@pytest.mark.parametrize("meter", ["cache_storage", "container_minutes", "seconds_audio", "own_meter"])
@pytest.mark.parametrize("format_", FORMATS)
def test_what_can_be_used_in_part_is_written_in_full(
    store: Store, make_entry: Callable[..., Entry], tmp_path: Path, format_: str, meter: str
) -> None:
    used = [Decimal("341.583333333333"), Decimal("0.5")]
    for amount in used:
        store.settle(make_entry(**{meter: amount}))
    path = tmp_path / f"entries.{format_}"
    manifest = export_entries(store, path)
    if meter != "own_meter":
        assert sorted(Decimal(row[meter]) for row in read(path)) == sorted(used)
        assert Decimal(manifest.control_totals[meter]) == total(used)
    report = build(store)
    counted = report.rows[0].usage[meter]
    assert counted > 342
    made = report.to_parquet(tmp_path / "report.parquet") if format_ == "parquet" else None
    text = {"csv": report.to_csv, "jsonl": report.to_jsonl}.get(format_)
    if text is not None:
        (tmp_path / f"report.{format_}").write_text(text(), newline="")
    assert made is None or Decimal(made.control_totals[meter]) == counted
    assert [Decimal(row[meter]) for row in read(tmp_path / f"report.{format_}")] == [counted]
    assert Decimal(report.to_pandas()[meter][0]) == report.to_polars()[meter][0] == counted


def test_a_stated_cost_has_its_twelve_decimals_in_every_format(
    store: Store, make_entry: Callable[..., Entry], tmp_path: Path
) -> None:
    stated = Decimal("0.000012345678")
    line = Charge(
        model="x/y",
        sku_meter="provider_cost",
        quantity=stated,
        unit="USD",
        list_unit_price=Decimal(1),
        list_cost=stated,
        contracted_cost=stated,
        billed_cost=stated,
    )
    costs = dict.fromkeys(("list_cost", "contracted_cost", "billed_cost"), stated)
    store.settle(make_entry(fields={"charges": (line,), "cost_source": "billed", **costs}))
    for format_ in FORMATS:
        export_charges(store, tmp_path / f"charges.{format_}")
        assert [Decimal(row["quantity"]) for row in read(tmp_path / f"charges.{format_}")] == [stated]


def test_nothing_is_overwritten_by_accident(month: Store, tmp_path: Path) -> None:
    report = build(month, by="member")
    path = tmp_path / "report.csv"
    report.to_csv(path)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="overwrite=True"):
        report.to_csv(path)
    assert path.read_bytes() == before
    build(month, by="model").to_csv(path, overwrite=True)
    assert path.read_bytes() != before
    path.unlink()
    with pytest.raises(ConfigurationError, match="manifest"):
        report.to_csv(path)


def test_a_file_that_fails_midway_never_appears(month: Store, tmp_path: Path) -> None:
    class Torn:
        url = "torn:"
        health = month.health

        def entries(self, *_: Any, **__: Any) -> Iterator[Entry]:
            yield from list(month.entries())[:3]
            raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        export_entries(Torn(), tmp_path / "entries.csv")  # type: ignore[arg-type]
    assert list(tmp_path.glob("*entries*")) == []


@pytest.mark.parametrize("zone", ["UTC", "America/Sao_Paulo"])
def test_days_of_a_report_are_days_where_a_file_has_them_and_months_are_text(
    month: Store, tmp_path: Path, zone: str
) -> None:
    report = build(month, granularity="day", period="2026-11", tz=zone)
    report.to_parquet(tmp_path / "days.parquet")
    report.to_xlsx(tmp_path / "days.xlsx")
    report.to_csv(tmp_path / "days.csv")
    days = [row.bucket.label for row in report.rows]
    assert [str(record["day"]) for record in read(tmp_path / "days.parquet")] == days
    assert pyarrow.parquet.read_schema(tmp_path / "days.parquet").field("day").type == pyarrow.date32()
    sheet = openpyxl.load_workbook(tmp_path / "days.xlsx").active
    cells = [row[0].value for row in sheet.iter_rows(min_row=2, max_row=len(days) + 1)]
    assert [f"{cell:%Y-%m-%d}" for cell in cells] == days
    assert [record["day"] for record in read(tmp_path / "days.csv")] == days
    assert [str(day) for day in report.to_polars()["day"].to_list()] == days
    assert report.to_pandas()["day"].dt.strftime("%Y-%m-%d").to_list() == days
    build(month, granularity="month", period="2026-11", tz=zone).to_xlsx(tmp_path / "months.xlsx")
    assert openpyxl.load_workbook(tmp_path / "months.xlsx").active["A2"].value == "2026-11"


def test_a_file_that_is_replaced_keeps_who_may_read_it(month: Store, tmp_path: Path) -> None:
    path = tmp_path / "report.csv"
    build(month, by="member").to_csv(path)
    path.chmod(0o600)
    build(month, by="model").to_csv(path, overwrite=True)
    assert (path.stat().st_mode & 0o777, "gpt-5" in path.read_text()) == (0o600, True)


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    real, link, loose = tmp_path / "real", tmp_path / "latest", tmp_path / "loose"
    real.write_text("old")
    link.symlink_to(real)
    loose.symlink_to(tmp_path / "not yet")
    write_whole(link, "new", overwrite=True)
    write_whole(loose, "first", overwrite=False)
    assert (link.is_symlink(), real.read_text()) == (True, "new")
    assert (loose.is_symlink(), loose.read_text()) == (True, "first")
    with pytest.raises(ConfigurationError, match="exists"):
        write_whole(loose, "second", overwrite=False)
    assert {one.name for one in tmp_path.iterdir()} == {"real", "latest", "loose", "not yet"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_pipe_is_written_and_stays_a_pipe(month: Store, tmp_path: Path, overwrite: bool) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        told = build(month, by="member").to_csv(path, overwrite=overwrite)
        assert reader.read().decode() == build(month, by="member").to_csv()
    assert (told.file, path.is_fifo(), list(tmp_path.glob("*.manifest.json"))) == (None, True, [])


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_device_is_written_and_stays_a_device(overwrite: bool) -> None:
    """Replacing ``/dev/null`` by a file is what a renaming writer does to it, where it may."""
    before = {one.name for one in Path("/dev").iterdir()}
    with opened(Path("/dev/null"), overwrite=overwrite) as sink:
        sink.write(b"1")
        assert not [one for one in Path("/dev").iterdir() if one.name not in before and one.suffix == ".part"]
    assert Path("/dev/null").is_char_device()


def test_a_file_that_nothing_can_take_the_place_of_is_written_over(tmp_path: Path, monkeypatch) -> None:
    """A file that is mounted by itself, or stands in a folder that is closed, is no reason not to write it."""
    path = tmp_path / "mounted"
    path.write_text("what was there, and longer")

    def refuse(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", refuse)
    write_whole(path, "new", overwrite=True)
    monkeypatch.setattr("tokenmeter.reports.writers.os.access", lambda name, _: Path(name) == path)
    write_whole(path, "newer", overwrite=True)
    assert (path.read_text(), list(tmp_path.iterdir())) == ("newer", [path])


def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "closed.csv"
    path.write_text("signed")
    monkeypatch.setattr("tokenmeter.reports.writers.os.access", lambda *_: False)
    with pytest.raises(ConfigurationError, match="Permission denied"):
        write_whole(path, "new", overwrite=True)
    assert (path.read_text(), list(tmp_path.iterdir())) == ("signed", [path])


def test_open_streams_are_written_as_they_are(month: Store) -> None:
    text, binary = io.StringIO(newline=""), io.BytesIO()
    report = build(month, by="member")
    assert report.to_csv(text).file is None
    report.to_csv(binary)
    assert text.getvalue() == binary.getvalue().decode() == report.to_csv()


def test_a_missing_folder_and_an_unknown_format_are_said(month: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="make it first"):
        export_entries(month, tmp_path / "nowhere" / "entries.csv")
    with pytest.raises(ConfigurationError, match="csv, jsonl, parquet"):
        export_entries(month, tmp_path / "entries.ods")


def test_a_missing_package_is_named_with_its_command() -> None:
    with pytest.raises(ConfigurationError, match="pip install not_a_package"):
        import_extra("not_a_package.part", "to_moon()")


def test_progress_is_told(month: Store, tmp_path: Path) -> None:
    seen: list[int] = []
    export_entries(month, tmp_path / "entries.csv", progress=seen.append)
    assert seen[-1] == 7


def test_a_password_never_reaches_a_manifest(month: Store, tmp_path: Path) -> None:
    class Remote:
        url = "postgresql://meter:hunter2@db/usage"
        health = month.health
        entries = month.entries

    manifest = export_entries(Remote(), tmp_path / "entries.csv")  # type: ignore[arg-type]
    assert manifest.ledger["url"] == "postgresql://db/usage"


def test_pandas_and_polars_frames_keep_money_exact(month: Store) -> None:
    report = build(month, by=["member", "model"], period="2026-11")
    pandas, polars = report.to_pandas(), report.to_polars()
    assert total(pandas["billed_cost"].dropna()) == report.totals.billed_cost
    assert polars["billed_cost"].sum() == report.totals.billed_cost
    assert pandas["requests"].sum() == polars["requests"].sum() == report.totals.requests
    assert list(pandas.columns) == polars.columns == report.to_csv().splitlines()[0].split(",")
    assert len(build(month, by="member").to_pandas()) == len(build(month, by="member").to_polars())


def test_a_frame_of_latencies_has_a_gap_where_nothing_was_timed(month: Store, make_entry: Callable[..., Entry]) -> None:
    """What was imported has no time. A column of whole numbers with a gap stays one of whole numbers."""
    month.settle(make_entry("2026-11-05T10:00", who={"member": "timed"}, fields={"latency_us": 1_500}, input=1))
    report = build(month, by="member", latency=True)
    pandas, polars = report.to_pandas().set_index("member"), report.to_polars()
    (named, *_) = (name for name in pandas.columns if 0 < polars[name].null_count() < len(polars) and "latency" in name)
    assert pandas[named].isna().sum() == polars[named].null_count() > 0
    assert (str(pandas[named].dtype), str(pandas["requests"].dtype)) == ("Int64", "int64")
    assert pandas[named]["timed"] == dict(zip(polars["member"], polars[named], strict=True))["timed"] > 0


def test_a_meter_of_ones_own_overwrites_no_column(store: Store, make_entry: Callable[..., Entry]) -> None:
    """A meter may be called like a count, a cost or what the report is grouped by; each has a column of its own."""
    store.settle(make_entry(who={"member": "ada"}, input=10, errors=3, billed_cost=5, member=7, pages=2))
    report = build(store, by="member")
    headings, values = csv.reader(io.StringIO(report.to_csv()))
    assert len(headings) == len(set(headings))
    told = dict(zip(headings, values, strict=True))
    assert (told["member"], told["errors"]) == ("ada", "0")
    assert [Decimal(told[name]) for name in ("meter:member", "meter:errors", "pages")] == [7, 3, 2]
    (line,) = map(json.loads, report.to_jsonl().splitlines())
    assert (line["member"], line["errors"], list(line)) == ("ada", 0, headings)
    assert [Decimal(line[name]) for name in ("meter:errors", "meter:billed_cost")] == [3, 5]


def test_a_chart_sums_no_group_with_the_rest_for_its_name(store: Store, make_entry: Callable[..., Entry]) -> None:
    """Thirteen members, of whom the dearest is called as the rest was."""
    for number, name in enumerate(["others", *(f"member-{place}" for place in range(13))]):
        store.settle(make_entry(who={"member": name}, input=1_000_000 * (100 - number)))
    bars = {bar.name: bar.y[0] for bar in build(store, by="member", granularity="day").plot().data}
    assert len(bars) == 13
    assert Decimal(bars["others"]) == 25
    assert Decimal(bars["(2 others)"]) == Decimal("43.75")


def test_frames_take_fractions_that_plot_and_leave_out_what_says_nothing(month: Store) -> None:
    report = build(month, by="member", period="2026-11")
    frame = report.to_pandas(decimals="float", nonzero=True)
    assert {"billed_cost": "float64", "web_searches": "int64"}.items() <= frame.dtypes.astype(str).to_dict().items()
    assert frame["billed_cost"].describe()["count"] == 4
    assert "image_input" not in frame
    assert "images" not in report.to_polars(nonzero=True).columns
    assert report.to_polars(decimals="float")["billed_cost"].dtype.is_float()
    with pytest.raises(ConfigurationError, match=r"'exact' .* or 'float'"):
        report.to_pandas(decimals="double")  # type: ignore[arg-type]


def test_a_plot_shows_each_group_over_time(month: Store) -> None:
    figure = build(month, by="model", period="2026-11", granularity="day").plot()
    assert {bar.name for bar in figure.data} == {"gpt-5-mini", "claude-opus-4-1", "unheard-of"}
    flat = build(month, by="member", period="2026-11").plot("requests")
    assert list(flat.data[0].x) == ["bob", "ada", "grace", "(none)"]
    assert list(flat.data[0].y) == ["2", "2", "1", "1"]


def test_a_manifest_names_the_head_of_the_ledger(tmp_path: Path, make_entry: Callable[..., Entry]) -> None:
    store = open_store(tmp_path / "ledger.db")
    store.settle(make_entry(input=1))
    manifest = export_entries(store, tmp_path / "entries.csv")
    assert manifest.ledger["head"] == store.verify().head
    store.close()


@pytest.mark.parametrize("format_", ["csv", "jsonl", "parquet"])
def test_a_file_that_finds_no_room_is_said_and_leaves_nothing(month: Store, tmp_path: Path, format_: str) -> None:
    assert list(month.entries())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(ConfigurationError, match="cannot be written: File too large"):
            export_entries(month, tmp_path / f"entries.{format_}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.glob("*entries*")) == list(tmp_path.glob(".*.part")) == []


def test_a_folder_in_the_way_is_said(month: Store, tmp_path: Path) -> None:
    (tmp_path / "report.csv").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        build(month).to_csv(tmp_path / "report.csv", overwrite=True)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_ctrl_c_leaves_no_file(month: Store, tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_entries(month, tmp_path / "entries.csv", progress=stop)
    assert list(tmp_path.glob("*entries*")) == list(tmp_path.glob(".*.part")) == []


@pytest.mark.parametrize("value", ["nope", "usage", "group", "cached_share", "cost_known"])
def test_a_plot_of_what_does_not_add_up_names_what_does(month: Store, value: str) -> None:
    for report in (build(month, by="member"), build(month, period="2020")):
        with pytest.raises(ConfigurationError, match="billed_cost"):
            report.plot(value)


def test_a_text_that_a_cell_cannot_hold_says_that_it_was_cut() -> None:
    texts = ["x" * 32_767, "y" * 32_768]
    content = make_workbook([[text] for text in texts], [Field[object]("name", "text", lambda row: row)])
    sheet = openpyxl.load_workbook(io.BytesIO(content)).active
    whole, cut = sheet["A2"].value, sheet["A3"].value
    assert whole == texts[0]
    assert (len(cut), cut[-40:]) == (32_767, "yyy ... (cut: more than a cell can hold)")


def test_a_workbooks_last_row_sums_what_the_manifest_has_totals_of(month: Store, tmp_path: Path) -> None:
    manifest = build(month, by="member,model", period="2026-11").to_xlsx(tmp_path / "r.xlsx")
    heads, *rows = openpyxl.load_workbook(tmp_path / "r.xlsx", data_only=True).active.iter_rows(values_only=True)
    last = dict(zip(heads, rows[-1], strict=True))
    assert {"requests", "input", "output", "billed_cost"} <= set(manifest.control_totals)
    for name, told in manifest.control_totals.items():
        assert last[name] == pytest.approx(float(told)), name
