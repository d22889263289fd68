"""Newer prices without an upgrade: fetched from a server or a file, checked, kept, used; a bad list changes nothing."""

import gzip
import http.server
import json
import os
import subprocess
import sys
import threading
from datetime import timedelta

import pytest

import tokenmeter
from tokenmeter import prices
from tokenmeter.__main__ import main
from tokenmeter.errors import ConfigurationError, PricingError
from tokenmeter.money import EXACT
from tokenmeter.pricing import PriceList, Pricer, edition, updating
from tokenmeter.pricing.updating import DAY, Looked, Refresher

BODY = {"model": "gpt-5", "usage": {"prompt_tokens": 1_000_000, "completion_tokens": 0, "total_tokens": 1_000_000}}


@pytest.fixture(autouse=True)
def data_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def publisher():
    """A server that publishes whatever is put into `body`, with `status`; `asked` counts the requests."""

    class Publisher(http.server.BaseHTTPRequestHandler):
        body = b"[]"
        status = 200
        asked = 0
        url = ""
        moved = ""
        kept_back = 0

        def do_GET(self):
            type(self).asked += 1
            if self.moved and self.path == "/prices.json":
                self.send_response(302)
                self.send_header("Location", self.moved)
                self.end_headers()
                return
            self.send_response(self.status)
            self.send_header("Content-Length", str(len(self.body) + self.kept_back))
            self.end_headers()
            self.wfile.write(self.body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Publisher) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        Publisher.url = f"http://127.0.0.1:{server.server_port}/prices.json"
        yield Publisher
        server.shutdown()
        thread.join()


def published(change=lambda providers: None):
    """The installed data as genai-prices publishes it, with gpt-5's input at $7."""
    providers = json.loads(edition.installed().content)
    models = next(each for each in providers if each["id"] == "openai")["models"]
    next(each for each in models if each["id"] == "gpt-5")["prices"] = {"input_mtok": 7, "output_mtok": 10.5}
    change(providers)
    return json.dumps(providers).encode()


def gpt5(price_list):
    rating = tokenmeter.price(BODY, provider="openai", endpoint="chat.completions", price_list=price_list)
    return str(rating.list_cost.normalize(EXACT))


def test_an_update_is_kept_and_says_so_by_its_hash(publisher, tmp_path):
    publisher.body = published()
    newer = prices.update(url=publisher.url)
    assert gpt5(newer) == "7"
    assert newer.hash != PriceList.load().hash
    assert gpt5(PriceList.load()) == "1.25"  # nothing changes for who does not ask
    assert gpt5(PriceList.load(newest=updating.newest())) == "7"
    assert updating.kept_path().is_relative_to(tmp_path)


def test_a_price_by_a_key_that_nobody_knows_is_named(publisher, tmp_path, monkeypatch, capsys):
    def change(providers):
        models = next(each for each in providers if each["id"] == "openai")["models"]
        for name in ("gpt-5", "gpt-5-mini"):
            next(each for each in models if each["id"] == name)["prices"]["quantum_mtok"] = 3

    assert updating.describe_unread(PriceList.load()) == ""
    publisher.body = published(change)
    newer = prices.update(url=publisher.url, save=tmp_path / "kept.json")
    assert newer.unread_terms() == {"quantum_mtok": ["openai/gpt-5", "openai/gpt-5-mini"]}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenmeter.toml").write_text('price_list = "kept.json"\nstore = "sqlite:///usage.db"\n')
    tokenmeter.make_meter().close()
    said = []
    for arguments in (["prices", "update", "--url", publisher.url, "--save", "kept.json"], ["doctor"]):
        with pytest.raises(SystemExit):
            main(arguments)
        printed = capsys.readouterr()
        said.append(" ".join(f"{printed.out} {printed.err}".split()))
    for text in said:
        assert "1 key that is not known here" in text
        assert "quantum_mtok (openai/gpt-5, openai/gpt-5-mini)" in text


def test_a_list_can_come_from_a_file_and_go_to_a_file(tmp_path):
    (tmp_path / "carried.json").write_bytes(published())
    prices.update(url=tmp_path / "carried.json", save=tmp_path / "kept.json")
    assert gpt5(PriceList.load(newest=updating.read_list(tmp_path / "kept.json"))) == "7"
    assert updating.newest() is None


def without(name):
    return lambda providers: providers.remove(next(each for each in providers if each["id"] == name))


def halved(providers):
    for each in providers:
        del each["models"][len(each["models"]) // 2 :]


def spoilt(value: object):
    def change(providers):
        openai = next(each for each in providers if each["id"] == "openai")
        openai["models"][0]["prices"] = value if value == [] else {"input_mtok": value}

    return change


def spoilt_field(provider, field, value):
    def change(providers):
        record = next(each for each in providers if each["id"] == provider)
        (record if field in record else record["models"][0])[field] = value

    return change


def for_nothing(providers):
    for each in next(each for each in providers if each["id"] == "openai")["models"]:
        each["prices"], each["price_variants"] = {"input_mtok": 0, "output_mtok": 0}, []


def times(factor):
    def change(providers):
        for each in next(each for each in providers if each["id"] == "openai")["models"]:
            if each["id"] == "gpt-5":
                each["prices"] = {"input_mtok": 7 * factor, "output_mtok": 20 * factor}

    return change


BAD = {
    "no JSON": lambda: b"<html>not found</html>",
    "no list": lambda: b"{}",
    "empty": lambda: b"[]",
    "without OpenAI": lambda: published(without("openai")),
    "half the models": lambda: published(halved),
    "a price that is text": lambda: published(spoilt("free")),
    "a price that is no number": lambda: published(spoilt("NaN")),
    "an absurd price": lambda: published(spoilt(10**9)),
    "a price that is a list": lambda: published(spoilt([1])),
    "a price below zero": lambda: published(spoilt(-1)),
    "a price that is null": lambda: published(spoilt(None)),
    "a price that is true": lambda: published(spoilt(value=True)),
    "a price without end": lambda: published(spoilt(float("inf"))),
    "a price that is NaN": lambda: published(spoilt(float("nan"))),
    "a tier below zero": lambda: published(spoilt({"base": 1, "tiers": [{"start": 5, "price": -1}]})),
    "tiers without a base": lambda: published(spoilt({"tiers": []})),
    "no prices": lambda: published(spoilt([])),
    "all for nothing": lambda: published(for_nothing),
    "dollars for a thousand millions": lambda: published(times(1000)),
    "dollars for a token": lambda: published(times(1e-6)),
    "a reseller of nobody": lambda: published(spoilt_field("azure", "fallback_model_providers", ["nobody"])),
    "a reseller of text": lambda: published(spoilt_field("azure", "fallback_model_providers", "openai")),
    "a context window of text": lambda: published(spoilt_field("openai", "context_window", "large")),
    "modes that are text": lambda: published(spoilt_field("openai", "price_variants", "fast")),
    "broken off": lambda: published()[:-1000],
    "broken off, packed": lambda: gzip.compress(published())[:-1000],
    "packed badly": lambda: gzip.compress(published())[:500] + b"x" * 500,
    "packed twice": lambda: gzip.compress(gzip.compress(published())),
    "a bomb": lambda: gzip.compress(b"[" + b" " * (80 << 20)),
    "without end": lambda: b"[" * 200_000,
    "a provider that is text": lambda: b'["openai"]',
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """What is kept of a good list."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "carried.json").write_bytes(published())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(folder))
        assert gpt5(prices.update(url=folder / "carried.json")) == "7"
        return updating.kept_path().read_bytes()


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_a_bad_list_is_refused_and_the_last_good_one_stays(publisher, kept, make):
    path = updating.kept_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(kept)
    publisher.body = make()
    with pytest.raises(PricingError):
        prices.update(url=publisher.url)
    assert path.read_bytes() == kept


def test_an_address_in_the_place_of_rows_is_refused_before_anything_is_fetched(publisher):
    with pytest.raises(PricingError, match="url="):
        prices.update(publisher.url)
    assert publisher.asked == 0


def test_a_list_may_come_packed(publisher, tmp_path):
    publisher.body = gzip.compress(published())
    assert gpt5(prices.update(url=publisher.url)) == "7"
    (tmp_path / "carried.json.gz").write_bytes(publisher.body)
    assert gpt5(prices.update(url=tmp_path / "carried.json.gz", save=tmp_path / "kept.json")) == "7"


def test_a_list_that_was_moved_is_followed_but_not_to_another_kind_of_address(publisher):
    publisher.body = published()
    publisher.moved = "/elsewhere.json"
    assert gpt5(prices.update(url=publisher.url)) == "7"
    publisher.moved = "ftp://127.0.0.1/prices.json"
    with pytest.raises(PricingError, match="could not be fetched"):
        prices.update(url=publisher.url)


def test_a_list_of_which_less_comes_than_was_announced_is_refused(publisher):
    publisher.body, publisher.kept_back = published(), 100
    with pytest.raises(PricingError, match="breaks off 100 bytes before its end"):
        prices.update(url=publisher.url)
    assert updating.newest() is None


def test_a_server_that_fails_is_told_by_name(publisher):
    publisher.status = 503
    with pytest.raises(PricingError, match="503"):
        prices.update(url=publisher.url)
    with pytest.raises(PricingError, match="ftp://example"):
        prices.update(url="ftp://example.org/prices.json")
    with pytest.raises(PricingError, match=r"No such file or directory\. Check the path"):
        prices.update(url="nowhere.json")


def test_a_list_older_than_the_installed_data_is_left_aside(publisher):
    publisher.body = published()
    prices.update(url=publisher.url)
    os.utime(updating.kept_path(), (1, 1))
    assert updating.newest() is None


def test_a_kept_list_that_was_damaged_is_left_aside(publisher, caplog):
    publisher.body = published()
    prices.update(url=publisher.url)
    updating.kept_path().write_bytes(updating.kept_path().read_bytes()[:5_000])
    assert updating.newest() is None
    assert "left aside" in caplog.text


# -- the settings


@pytest.mark.parametrize("form", [{"price_list": "kept.json"}, {"prices": "kept.json"}])
def test_the_settings_name_a_list(tmp_path, form):
    (tmp_path / "carried.json").write_bytes(published())
    prices.update(url=tmp_path / "carried.json", save=tmp_path / "kept.json")
    meter = tokenmeter.make_meter(store="memory:", **form)
    assert str(meter.price(BODY, provider="openai", endpoint="chat.completions").list_cost.normalize(EXACT)) == "7"
    meter.close()


def test_rows_of_ones_own_lie_over_the_list_that_is_named(tmp_path):
    (tmp_path / "carried.json").write_bytes(published())
    (tmp_path / "tokenmeter.toml").write_text(
        'price_list = "carried.json"\n[[prices]]\nprovider = "openai"\nmodel = "gpt-5"\n'
        'sku_meter = "output"\nunit_price = "3"\n'
    )
    meter = tokenmeter.make_meter(store="memory:")
    body = {**BODY, "usage": {"prompt_tokens": 10**6, "completion_tokens": 10**6, "total_tokens": 2 * 10**6}}
    assert meter.price(body, provider="openai", endpoint="chat.completions").list_cost == 10
    meter.close()


def test_a_file_of_rows_may_be_named_too(tmp_path):
    (tmp_path / "ours.toml").write_text(
        '[[prices]]\nprovider = "openai"\nmodel = "gpt-5"\nsku_meter = "input"\nunit_price = "3"\n'
    )
    meter = tokenmeter.make_meter(store="memory:", price_list="ours.toml")
    assert meter.price(BODY, provider="openai", endpoint="chat.completions").list_cost == 3
    meter.close()


@pytest.mark.parametrize("name", ["nowhere.json", "tokenmeter.toml", "nowhere.toml"])
def test_a_list_that_is_not_there_is_a_configuration_error(tmp_path, name):
    if name == "tokenmeter.toml":
        (tmp_path / "bad.json").write_text("<html>")
        name = "bad.json"
    with pytest.raises(ConfigurationError, match=name):
        tokenmeter.make_meter(store="memory:", price_list=name)


# -- fresh by itself


def refreshed(publisher, pricer):
    refresher = Refresher(pricer, lambda data: PriceList.load(newest=data), source=publisher.url)
    refresher.look()
    refresher.stop()


def test_a_program_that_runs_on_gets_the_newer_list(publisher):
    publisher.body = published()
    pricer = Pricer(PriceList.load())
    before = pricer.price_list_hash
    assert gpt5(pricer.price_list) == "1.25"
    refreshed(publisher, pricer)
    assert gpt5(pricer.price_list) == "7"
    assert pricer.price_list_hash != before


def test_it_looks_at_most_once_a_day_over_all_processes(publisher):
    publisher.body = published()
    pricers = [Pricer(PriceList.load()) for _ in range(3)]
    for pricer in pricers:
        refreshed(publisher, pricer)
    assert publisher.asked == 1
    assert {gpt5(pricer.price_list) for pricer in pricers} == {"7"}  # what one has fetched, all use
    looked = Looked.read(updating.kept_path())
    looked._replace(at=looked.at - timedelta(seconds=DAY + 1)).write(updating.kept_path())
    refreshed(publisher, pricers[0])
    assert publisher.asked == 2


def test_where_nothing_can_be_written_a_newer_list_is_used_all_the_same(publisher, tmp_path, caplog):
    publisher.body = published()
    pricer = Pricer(PriceList.load())
    (tmp_path / "file").write_text("no directory")
    refresher = Refresher(
        pricer,
        lambda data: PriceList.load(newest=data),
        source=publisher.url,
        path=tmp_path / "file" / "prices.json",
    )
    refresher.look()
    refresher.stop()
    assert gpt5(pricer.price_list) == "7"
    assert "could not be kept" in caplog.text


def test_a_bad_answer_is_noted_and_changes_nothing(publisher):
    publisher.body = b"[]"
    pricer = Pricer(PriceList.load())
    refreshed(publisher, pricer)
    assert gpt5(pricer.price_list) == "1.25"
    assert "lost" in Looked.read(updating.kept_path()).fault
    refreshed(publisher, pricer)
    assert publisher.asked == 1  # and it is not asked again at once


def test_auto_never_holds_up_nor_fails_a_call(tmp_path):
    """The network is not there: the meter is made and prices by what is installed."""
    code = """
import tokenmeter
from tokenmeter.pricing import updating
updating.PUBLISHED = "http://127.0.0.1:9/prices.json"
meter = tokenmeter.make_meter(store="memory:", price_list="auto")
body = {"model": "gpt-5", "usage": {"prompt_tokens": 1000000, "completion_tokens": 0, "total_tokens": 1000000}}
print(meter.price(body, provider="openai", endpoint="chat.completions").list_cost)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "1.250000000000"


# -- the command


def cli(*arguments):
    return subprocess.run([sys.executable, "-m", "tokenmeter", *arguments], capture_output=True, text=True, check=False)


def test_the_command_shows_what_changed_keeps_it_and_says_how_to_use_it(publisher, tmp_path):
    publisher.body = published()
    done = cli("prices", "update", "--url", publisher.url, "--save", "list.json")
    assert done.returncode == 0, done.stderr
    assert "gpt-5 " in done.stdout
    assert 'price_list = "list.json"' in done.stdout
    assert (tmp_path / "list.json").exists()
    again = cli("prices", "update", "--url", publisher.url, "--save", "list.json")
    assert (again.returncode, "No price differs." in again.stdout) == (0, True)
    publisher.body = b"[]"
    refused = cli("prices", "update", "--url", publisher.url, "--save", "list.json")
    assert refused.returncode == 4
    assert "present one is kept" in refused.stderr + refused.stdout


def test_doctor_says_which_list_is_used_and_how_old_it_is(publisher, tmp_path):
    publisher.body = published()
    assert cli("prices", "update", "--url", publisher.url).returncode == 0
    store = f"sqlite:///{tmp_path}/usage.db"
    tokenmeter.make_meter(store=store).close()
    (tmp_path / "tokenmeter.toml").write_text(f'store = "{store}"\nprice_list = "auto"\n')
    done = cli("doctor", "--json")
    assert "kept 0 days ago" in json.loads(done.stdout)["facts"]["prices"], done.stderr
    (tmp_path / "tokenmeter.toml").write_text(f'store = "{store}"\n')
    assert json.loads(cli("doctor", "--json").stdout)["facts"]["prices"].endswith("installed")
