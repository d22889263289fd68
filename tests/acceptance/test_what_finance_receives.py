"""What leaves the house at the month's end, from the command line: electronic invoices, usage, balances by age."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

SETTINGS = """
store = "sqlite:///usage.db"
[billing]
terms_days = 14
[billing.seller]
name = "Platform GmbH"
tax_id = "DE123456789"
country = "DE"
city = "Berlin"
postcode = "10115"
contact = "Kim Lee"
phone = "+49 30 1234567"
email = "kim@platform.example"
iban = "DE89370400440532013000"
electronic_address = "bills@platform.example"
[[billing.taxes]]
name = "VAT"
rate = "0.19"
[billing.buyers.member.ada]
name = "Ada SARL"
tax_id = "FR83404833048"
country = "FR"
city = "Paris"
postcode = "75001"
reference = "04011000-12345-34"
electronic_address = "in@ada.example"
"""


@pytest.fixture
def run(tmp_path, monkeypatch, run_command):
    """A command line in a folder of its own: exit code and what was printed, or why nothing was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "tokenmeter.toml").write_text(SETTINGS)

    def command(*arguments):
        code, printed, complaint = run_command(*arguments)
        return code, " ".join((printed or complaint).split())

    return command


def use(run, tmp_path, at, *, name="log.json", **members):
    """Calls of gpt-5-mini, a million tokens of output each dollar 2.00, on somebody's account at a moment."""
    rows = [
        {"id": f"{name}-{member}", "at": at, "m": "gpt-5-mini", "in": before, "out": after, "who": member}
        for member, (before, after) in members.items()
    ]
    (tmp_path / name).write_text(json.dumps(rows))
    return run("import", name, "--map", "id=id,time=at,model=m,input=in,output=out,member=who")


@pytest.fixture
def billed(run, tmp_path):
    """October: ada 40 x 0.25 + 5 x 2.00 = 20.00, bob 8.00; issued on the first of November, due on the 15th."""
    use(run, tmp_path, "2025-10-09T12:00:00Z", ada=(40_000_000, 5_000_000), bob=(16_000_000, 2_000_000))
    run("period", "close", "2025-10")
    asked = ("invoice", "issue", "--by", "member", "--period", "2025-10", "--on", "2025-11-01")
    assert run(*asked, "--yes")[0] == 0
    return run


def find_failures(xml, rules):
    """What the standard's schematron has against it."""
    saxonche = pytest.importorskip("saxonche")
    facturx = pytest.importorskip("facturx")
    folder = Path(facturx.__file__).parent / "xsd_and_schematron"
    with saxonche.PySaxonProcessor(license=False) as processor:
        program = processor.new_xslt30_processor().compile_stylesheet(stylesheet_file=str(folder / rules))
        report = program.transform_to_string(xdm_node=processor.parse_xml(xml_text=xml.decode()))
    return report.count("<svrl:failed-assert")


def test_an_invoice_and_its_credit_note_become_electronic_ones_that_the_rules_take(billed, tmp_path):
    facturx = pytest.importorskip("facturx")
    assert billed("invoice", "credit", "INV-00001", "5.00", "--reason", "outage")[0] == 0
    for number in ("INV-00001", "CN-00001"):
        assert billed("invoice", "einvoice", number, f"{number}.xml", "--form", "xrechnung")[0] == 0
        xml = (tmp_path / f"{number}.xml").read_bytes()
        assert facturx.xml_check_xsd(xml)
        assert find_failures(xml, "ubl-2.1/EN16931-UBL-validation.xslt") == 0
    assert b">23.80<" in (tmp_path / "INV-00001.xml").read_bytes()  # 20.00 and 19 %
    note = (tmp_path / "CN-00001.xml").read_bytes()
    assert (b">5.95<" in note, b">INV-00001<" in note) == (True, True)


@pytest.mark.parametrize("form", ["factur-x", "zugferd"])
def test_factur_x_is_a_pdf_with_the_same_invoice_for_programs(billed, tmp_path, form):
    facturx = pytest.importorskip("facturx")
    pytest.importorskip("typst")
    assert billed("invoice", "einvoice", "INV-00001", "--form", form)[0] == 0
    name, xml = facturx.get_xml_from_pdf((tmp_path / "INV-00001.pdf").read_bytes())
    assert (name, b">23.80<" in xml) == ("factur-x.xml", True)
    assert find_failures(xml, "facturx-en16931/FACTUR-X_EN16931.xslt") == 0


@pytest.mark.parametrize(("form", "name"), [("factur-x", "one.xml"), ("cii", "one.pdf"), ("xrechnung", "one.PDF")])
def test_an_electronic_invoice_is_not_written_under_another_kinds_ending(billed, tmp_path, form, name):
    pytest.importorskip("facturx")
    pytest.importorskip("typst")
    code, told = billed("invoice", "einvoice", "INV-00001", name, "--form", form)
    assert (code != 0, f"{form} is written as " in told) == (True, True)
    assert not (tmp_path / name).exists()


def test_what_an_electronic_invoice_lacks_is_told_and_takes_no_number(run, tmp_path):
    pytest.importorskip("facturx")
    (tmp_path / "tokenmeter.toml").write_text(
        SETTINGS.replace("terms_days = 14", 'einvoice = "xrechnung"').replace('reference = "04011000-12345-34"\n', "")
    )
    use(run, tmp_path, "2025-10-09T12:00:00Z", ada=(40_000_000, 5_000_000))
    run("period", "close", "2025-10")
    code, told = run("invoice", "issue", "member=ada", "--period", "2025-10")
    assert (code != 0, "BT-10 buyer.reference" in told) == (True, True)
    assert run("invoice", "list")[1].startswith("No invoice")
    (tmp_path / "tokenmeter.toml").write_text(SETTINGS.replace("terms_days = 14", 'einvoice = "xrechnung"'))
    assert "INV-00001" in run("invoice", "issue", "member=ada", "--period", "2025-10")[1]


@pytest.mark.parametrize(
    ("days", "column"),
    [
        (-1, "not_due"), (0, "not_due"), (1, "days_30"), (30, "days_30"), (31, "days_60"), (60, "days_60"),
        (61, "days_90"), (90, "days_90"), (91, "older"),
    ],
)  # fmt: skip
def test_what_is_owed_stands_in_the_column_of_the_days_it_is_overdue(billed, days, column):
    day = date(2025, 11, 15) + timedelta(days=days)
    billed("invoice", "paid", "INV-00001", "3.80", "--on", "2025-11-02")
    aged = {one["account"]: one for one in json.loads(billed("invoice", "aging", "--on", str(day), "--json")[1])}
    owed = {"member=ada": Decimal("20.00"), "member=bob": Decimal("9.52")}  # 23.80 less 3.80; 8.00 and 19 %
    for account, amount in owed.items():
        found = {name: Decimal(aged[account][name]) for name in ("not_due", "days_30", "days_60", "days_90", "older")}
        assert found == {**dict.fromkeys(found, 0), column: amount}
        assert Decimal(aged[account]["total"]) == amount


def test_a_day_before_the_invoices_owes_nothing_and_a_payment_counts_from_its_own(billed):
    assert "Nobody owes anything." in billed("invoice", "aging", "--on", "2025-10-31")[1]
    billed("invoice", "paid", "INV-00001", "--on", "2025-11-20")
    for day, accounts in (("2025-11-19", ["member=ada", "member=bob"]), ("2025-11-20", ["member=bob"])):
        told = json.loads(billed("invoice", "aging", "--on", day, "--json")[1])
        assert sorted(one["account"] for one in told) == accounts


#: Where an event says whose it is and how much, its identity, and the path it is sent to.
SYSTEMS = {
    "stripe": (lambda event: (event["payload[stripe_customer_id]"], event["payload[value]"]), "identifier"),
    "lago": (
        lambda event: (event["event"]["external_subscription_id"], event["event"]["properties"]["value"]),
        "transaction_id",
    ),
    "openmeter": (lambda event: (event["subject"], event["data"]["tokens"]), "id"),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_usage_is_handed_over_once_and_what_came_later_as_the_difference(
    run, tmp_path, monkeypatch, event_server, system
):
    """Each system has each token once, also where it was out of reach in the middle of a run."""
    if system == "stripe":
        pytest.importorskip("stripe")
    monkeypatch.setenv(f"{system.upper()}_API_KEY", "sk_test_1")
    monkeypatch.setenv(f"{system.upper()}_URL", event_server.url)
    read, identity = SYSTEMS[system]
    day = (datetime.now(UTC) - timedelta(days=1)).date()
    use(run, tmp_path, f"{day}T01:00:00Z", ada=(1000, 20), bob=(300, 0))
    customers = ("--customer", "ada=cus_A", "--customer", "bob=cus_B")
    handover = ("handover", system, "--by", "member", "--period", str(day), *customers)
    event_server.answers = [(200, "{}"), (401, "{}")]
    assert run(*handover)[0] != 0
    assert run(*handover)[0] == 0
    code, told = run(*handover)
    assert (code, "0 readings sent, 3 sent before" in told) == (0, True)
    use(run, tmp_path, f"{day}T02:00:00Z", name="late.json", ada=(7, 0))
    assert run(*handover)[0] == 0
    taken = sorted(read(event) for event in event_server.taken)
    assert taken == sorted([("cus_A", "1000"), ("cus_A", "20"), ("cus_B", "300"), ("cus_A", "7")])
    names = [
        event.get("event", event)[identity] if system == "lago" else event[identity] for event in event_server.taken
    ]
    assert len(set(names)) == len(taken)
