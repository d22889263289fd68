"""Passwords and TLS: every way libpq knows works, and nothing of a password is ever shown."""

import logging
import shutil
import ssl
import subprocess
import traceback
from pathlib import Path

import pytest

import tokenmeter
from tokenmeter.config import load_settings
from tokenmeter.errors import ConfigurationError
from tokenmeter.stores import open_store
from tokenmeter.stores.postgres import admin
from tokenmeter.stores.postgres.sessions import Address

PASSWORD = "hunter2/Zwieback&k@"
IN_A_URL = "hunter2%2FZwieback%26k%40"
#: What must not be seen: the password as it is, as it stands in a URL, and its parts, each too long to stand by chance
#: in a folder's name: a traceback tells where the project lies.
TRACES = (PASSWORD, IN_A_URL, "hunter2", "Zwieback")


@pytest.fixture
def guarded(own_postgres_server, tmp_path, monkeypatch):
    """A server that wants a password of the role ``app``, which owns a ledger; (part of URL before, after) the host."""
    import psycopg

    with psycopg.connect(own_postgres_server.url, autocommit=True) as connection:
        quoted = psycopg.sql.Literal(PASSWORD)
        connection.execute(psycopg.sql.SQL("CREATE ROLE app LOGIN SUPERUSER PASSWORD {}").format(quoted))
        rules = own_postgres_server.folder / "data" / "pg_hba.conf"
        rules.write_text("local all app scram-sha-256\nlocal all all trust\n")
        connection.execute("SELECT pg_reload_conf()")
    for variable in ("PGPASSWORD", "PGPASSFILE", "TOKENMETER_STORE", "TOKENMETER_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    return f"/postgres?host={own_postgres_server.folder}&spool={tmp_path}/spool"


def passfile(folder, password=PASSWORD):
    path = folder / "pgpass"
    path.write_text(f"*:*:*:app:{password}\n")
    path.chmod(0o600)
    return path


def test_a_password_is_found_wherever_libpq_looks(guarded, opened, make_entry, tmp_path, monkeypatch):
    """In the URL, as a parameter, in a password file, and in libpq's variables."""
    ways = {
        f"postgresql://app:{IN_A_URL}@{guarded}": {},
        f"postgresql://app@{guarded}&password={IN_A_URL}": {},
        f"postgresql://app@{guarded}&passfile={passfile(tmp_path)}": {},
        f"postgresql://app@{guarded}&pool=2": {"PGPASSFILE": str(passfile(tmp_path))},
        f"postgresql://app@{guarded}&pool=1": {"PGPASSWORD": PASSWORD},
        f"postgresql://{guarded}": {"PGUSER": "app", "PGPASSWORD": PASSWORD},
    }
    for count, (url, variables) in enumerate(ways.items(), start=1):
        with monkeypatch.context() as here:
            for name, value in variables.items():
                here.setenv(name, value)
            store = opened(url)
            assert store.settle(make_entry()).recorded
            assert store.health().facts["entries"] == count
            assert store.health().facts["user"] == "app"
            store.close()


def test_nothing_of_a_password_is_shown(guarded, make_entry, caplog, capsys, monkeypatch):
    """Not by repr, doctor, config check, db status, reports' manifests, logs, errors or their tracebacks."""
    from tokenmeter.__main__ import main

    url = f"postgresql://app:{IN_A_URL}@{guarded}&sslpassword={IN_A_URL}"
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TOKENMETER_STORE", url)
    meter = tokenmeter.make_meter(store=url)
    meter.store.settle(make_entry())
    meter.export_focus("books")
    shown = [repr(meter), repr(meter.store), meter.store.url, repr(load_settings(store=url)), repr(Address.parse(url))]
    shown += [repr(meter.store.health()), repr(admin.status(url))]
    meter.close()
    for arguments in (
        ["doctor"],
        ["doctor", "--json"],
        ["config", "check", "--json"],
        ["db", "status"],
        ["db", "init"],
    ):
        with pytest.raises(SystemExit):
            main(arguments)
    wrong = url.replace("hunter2", "Zwieback-no-hunter2")
    for attempt in (
        lambda: tokenmeter.make_meter(store=wrong),
        lambda: admin.init(wrong),
        lambda: admin.grant(url, "reader", "x"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            attempt()
        shown += traceback.format_exception(caught.value)
    with pytest.raises(SystemExit):
        main(["doctor", "--store", wrong])
    output = capsys.readouterr()
    written = [path.read_text() for path in Path("books").iterdir()]
    everything = "\n".join([*shown, caplog.text, output.out, output.err, *written])
    assert "authentication failed" in everything
    assert "***" in everything
    assert [trace for trace in TRACES if trace in everything] == []


def test_a_password_that_is_changed_while_programs_run_stops_no_entry(guarded, opened, own_postgres_server, make_entry):
    import psycopg

    store = opened(f"postgresql://app:{IN_A_URL}@{guarded}")
    store.settle(make_entry())
    with psycopg.connect(own_postgres_server.url, autocommit=True) as connection:
        connection.execute("ALTER ROLE app PASSWORD 'another'")
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
        assert store.settle(make_entry()).recorded
        assert store.flush(0.2) >= 1
        assert "password authentication failed" in store.health().warnings[0]
        connection.execute(psycopg.sql.SQL("ALTER ROLE app PASSWORD {}").format(psycopg.sql.Literal(PASSWORD)))
    assert store.flush(60) == 0
    assert len(list(store.entries())) == 2


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A certificate for 127.0.0.1 that signs itself, another one, and the key of the first."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "other"):
        ask = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=127.0.0.1"
        files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"]
        names = ["-days", "2", "-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run([*ask.split(), *names, *files], check=True, capture_output=True)
    return folder


class TestEncryption:
    @pytest.fixture
    def url(self, start_pooler, certificates, postgres_url):
        """A server that speaks TLS on a port of 127.0.0.1."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
        own = postgres_url.partition("schema=")[2]
        return f"postgresql://postgres@127.0.0.1:{start_pooler(context).port}/postgres?schema={own}"

    def test_a_certificate_that_fits_is_taken(self, url, opened, make_entry, certificates):
        store = opened(f"{url}&sslmode=verify-full&sslrootcert={certificates}/server.crt")
        assert store.settle(make_entry()).recorded
        assert store.health().facts["encrypted"] is True

    @pytest.mark.parametrize("root", ["other.crt", "none.crt"])
    def test_another_certificate_is_a_wrong_setting(self, url, certificates, root):
        with pytest.raises(ConfigurationError, match="certificate"):
            open_store(f"{url}&sslmode=verify-full&sslrootcert={certificates}/{root}")

    def test_a_server_without_tls_gets_nothing_when_tls_is_required(self, pooler, postgres_url):
        own = postgres_url.partition("schema=")[2]
        with pytest.raises(ConfigurationError, match="does not support SSL"):
            open_store(f"postgresql://postgres@127.0.0.1:{pooler.port}/postgres?schema={own}&sslmode=require")
