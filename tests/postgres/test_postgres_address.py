"""What a PostgreSQL URL may say, and what is never shown of it."""

import logging
import re
import sys
import traceback

import pytest
from psycopg.conninfo import conninfo_to_dict

from tokenmeter.errors import ConfigurationError, StoreUnavailableError
from tokenmeter.stores import open_store
from tokenmeter.stores.postgres.sessions import Address
from tokenmeter.stores.urls import redacted

SECRET = "p%40ss-w0rd"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ada:{SECRET}@db.example:5433/books",
        f"postgresql://db.example/books?user=ada&password={SECRET}",
        f"postgres://ada:{SECRET}@db.example/books?sslmode=verify-full&schema=books",
        f"postgresql://ada@db.example/books?sslpassword={SECRET}",
    ],
)
def test_a_password_is_not_shown(url):
    address = Address.parse(url)
    assert SECRET not in address.url
    assert "p@ss" not in address.url
    assert "***" in address.url
    assert "db.example" in address.url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:hunter/xyz@db.example/books",
        "postgresql://ada:hunter?xyz@db.example/books",
        "postgresql://ada:hunter#xyz@db.example/books",
        "postgresql://ada:hunter@xyz@db.example/books",
        "postgresql://ada@tenant:hunter@db.example/books",
        "postgresql://db.example:hunter/books",
        "postgresql://[::1/books?password=hunter",
        "postgresqll://ada:hunter/xyz@db.example/books",
        "host=db.example password=hunter",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_its_password(url):
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert not {"hunter", "xyz"} & set(re.findall(r"\w+", str(caught.value)))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////srv/a:b@c/usage.db", "sqlite:////srv/a:b@c/usage.db"),
        ("memory:", "memory:"),
        ("postgresql:///books?host=/run&application_name=a@b", "postgresql:///books?host=/run&application_name=a@b"),
        ("postgresql://one:1,two:2/books?sslmode=require", "postgresql://one:1,two:2/books?sslmode=require"),
        ("postgresql://ada@db/books?user=a&PASSWORD=x&port=1", "postgresql://ada@db/books?user=a&PASSWORD=***&port=1"),
    ],
)
def test_only_secrets_are_hidden(url, shown):
    assert redacted(url) == shown


def test_a_name_and_a_password_may_have_any_character_in_code(tmp_path):
    address = Address.parse(f"postgresql://ada%40tenant:p%40ss%2F%3A%25%3F%23@db.example/books?spool={tmp_path}")
    target = conninfo_to_dict(address.conninfo)
    assert (target["user"], target["password"], target["host"]) == ("ada@tenant", "p@ss/:%?#", "db.example")
    assert address.url == f"postgresql://ada%40tenant:***@db.example/books?spool={tmp_path}"


def test_several_hosts_and_ipv6_are_read(tmp_path):
    for place in ("[::1]:5433", "one:1,two:2", "[::1],[::2]:7", "", "db"):
        assert Address.parse(f"postgresql://{place}/books?spool={tmp_path}").conninfo.startswith(
            f"postgresql://{place}/"
        )


def test_our_own_parameters_are_not_libpqs(tmp_path):
    address = Address.parse(f"postgresql://db/books?sslmode=require&schema=mine&spool={tmp_path}&spool_mb=3&pool=9")
    assert address.conninfo == "postgresql://db/books?sslmode=require"
    assert (address.schema, address.spool_bytes, address.pool) == ("mine", 3 << 20, 9)
    assert address.spool.parent == tmp_path


def test_each_ledger_has_a_spool_of_its_own(tmp_path, monkeypatch):
    paths = {
        Address.parse(f"postgresql://{where}spool={tmp_path}").spool
        for where in ("a/x?", "b/x?", "a/y?", "a:5433/x?", "a/x?schema=other&")
    }
    assert len(paths) == 5
    by_variable = Address.parse(f"postgresql://?spool={tmp_path}").spool
    monkeypatch.setenv("PGHOST", "elsewhere")
    assert Address.parse(f"postgresql://?spool={tmp_path}").spool != by_variable


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("schema=drop%20table", "schema="),
        ("schema=Upper", "schema="),
        ("pool=0", "pool="),
        ("pool=many", "pool="),
        ("spool_mb=-1", "spool_mb="),
        ("sslmode=wrongword", "sslmode"),
        ("target_session_attrs=readwrite", "target_session_attrs"),
        ("connect_timeout=abc", "connect_timeout"),
        ("gssencmode=maybe", "gssencmode"),
        ("service=none_such", "none_such"),
        ("sslmod=require", "libpq"),
    ],
)
def test_a_wrong_parameter_is_named(part, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        Address.parse(f"postgresql://ada:{SECRET}@db/books?{part}")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("where", ["db:99999/x", "db:0/x", "db:5432,other:65536/x", "db/x?port=-1", "[::1]:70000/x"])
def test_a_port_that_no_server_can_have_is_a_wrong_setting(where):
    with pytest.raises(ConfigurationError, match="invalid port number") as caught:
        Address.parse(f"postgresql://ada:{SECRET}@{where}")
    assert SECRET not in str(caught.value)


def test_a_wrong_port_of_the_environment_is_a_wrong_setting(monkeypatch):
    monkeypatch.setenv("PGPORT", "99999")
    with pytest.raises(ConfigurationError, match="invalid port number"):
        Address.parse("postgresql://db/books")
    assert Address.parse("postgresql://db:5433/books")


def test_an_absent_server_is_told_without_the_password(tmp_path, caplog, key):
    with caplog.at_level(logging.WARNING, logger="tokenmeter"):
        store = open_store(f"postgresql://ada:{SECRET}@127.0.0.1:1/books?spool={tmp_path}")
    assert "away" in caplog.text
    with pytest.raises(StoreUnavailableError) as caught:
        store.counters([key])
    told = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(store.health())
    assert SECRET not in told
    assert "p@ss-w0rd" not in told
    store.close()


def test_a_server_that_refuses_the_user_is_a_wrong_setting(postgres_server_url, tmp_path):
    url = postgres_server_url.replace("/postgres?", "/no_such_database?")
    if url == postgres_server_url:
        pytest.skip("the named server's database is called otherwise")
    with pytest.raises(ConfigurationError, match="no_such_database"):
        open_store(f"{url}&spool={tmp_path}")


def test_without_the_driver_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tokenmeter.stores.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'tokenmeter-sdk\[postgres\]'"):
        open_store("postgresql://localhost/books")
