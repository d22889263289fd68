"""Who may do what on a shared ledger, and application versions before and after a migration."""

import uuid

import pytest

from tokenmeter.errors import ConfigurationError, SchemaVersionError, StoreUnavailableError
from tokenmeter.stores import open_store
from tokenmeter.stores.postgres import admin, schema


@pytest.fixture
def role(postgres_server_url):
    """A database role without any rights, by name."""
    import psycopg

    name = f"r_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN")
        yield name
        connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.fixture
def url_of(postgres_url):
    if "://postgres@" not in postgres_url:
        pytest.skip("needs a server that trusts its users")
    return lambda role: postgres_url.replace("://postgres@", f"://{role}@")


def test_setting_up_twice_changes_nothing(postgres_url):
    assert admin.init(postgres_url) == tuple(migration.name for migration in schema.migrations())
    assert admin.init(postgres_url) == admin.migrate(postgres_url) == ()
    status = admin.status(postgres_url)
    assert (status.pending, status.unknown, status.writers) == ((), (), ())
    assert status.schema in postgres_url


def test_migrating_what_is_not_there_says_init(postgres_url):
    with pytest.raises(ConfigurationError, match="db init"):
        admin.migrate(postgres_url)
    with pytest.raises(ConfigurationError, match="db init"):
        admin.grant(postgres_url, "reader", "postgres")


def test_a_writer_writes_and_cannot_read_or_change(
    postgres_url, url_of, role, opened, make_entry, make_hold, make_posting, key
):
    import psycopg

    admin.init(postgres_url)
    admin.grant(postgres_url, "writer", role)
    assert admin.status(postgres_url).writers == (role,)
    store = opened(url_of(role))
    hold = make_hold((key, 10, 4))
    store.reserve(hold)
    assert store.extend(hold.reservation_id, hold.expires_at)
    entry = make_entry()
    settlement = store.settle(entry, [make_posting(3, 2)], reservation_id=hold.reservation_id)
    assert (settlement.recorded, settlement.hold_found, len(settlement.crossings)) == (True, True, 1)
    assert store.counters([key])[key].settled == 3
    assert len(store.secret()) == 32
    assert store.health().facts["entries"] == 1
    with pytest.raises(StoreUnavailableError, match="db grant"):
        store.entry(entry.entry_id)
    with pytest.raises(StoreUnavailableError, match="db grant"):
        store.set_counters({key: 0})
    with psycopg.connect(url_of(role).partition("&schema")[0], autocommit=True) as connection:
        name = postgres_url.partition("schema=")[2].partition("&")[0]
        for statement in (
            "SELECT billed_micro FROM {}.entries",
            "SELECT value FROM {}.secret",
            "INSERT INTO {}.counters VALUES ('b', '', 0, 0, 0, 0)",
            "UPDATE {}.entries SET list_micro = 0",
            "DELETE FROM {}.holds",
            "ALTER TABLE {}.entries DISABLE TRIGGER ALL",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.format(name))


def test_entries_of_a_writer_who_lost_the_right_wait_until_it_is_back(
    postgres_url, url_of, role, opened, query, make_entry
):
    admin.init(postgres_url)
    admin.grant(postgres_url, "writer", role)
    store = opened(url_of(role))
    query(f"REVOKE EXECUTE ON FUNCTION settle(jsonb) FROM {role}")
    entry = make_entry()
    assert store.settle(entry).recorded
    assert store.flush(0) == 1
    assert store.health().facts["spool_refused"] == 0
    admin.grant(postgres_url, "writer", role)
    assert store.flush(10) == 0
    assert opened(postgres_url).entry(entry.entry_id) == entry


def test_a_reader_reports_and_cannot_write(postgres_url, url_of, role, opened, make_entry, make_hold, key):
    owner = opened(postgres_url)
    entry = make_entry()
    owner.settle(entry)
    admin.grant(postgres_url, "reader", role)
    store = opened(url_of(role))
    assert store.entry(entry.entry_id) == entry
    assert store.verify().ok
    with pytest.raises(StoreUnavailableError, match="db grant"):
        store.reserve(make_hold((key, 10, 4)))
    with pytest.raises(StoreUnavailableError, match="db grant"):
        store.secret()


def test_an_owner_may_do_what_the_schemas_owner_may(postgres_url, url_of, role, opened, key):
    admin.init(postgres_url)
    admin.grant(postgres_url, "owner", role)
    opened(url_of(role)).set_counters({key: 9})
    assert opened(postgres_url).counters([key])[key].settled == 9


def test_a_stranger_is_told_to_ask_the_owner(postgres_url, url_of, role):
    with pytest.raises(ConfigurationError, match="db init"):
        open_store(url_of(role))
    admin.init(postgres_url)
    with pytest.raises(ConfigurationError, match="db grant"):
        open_store(url_of(role))


def test_granting_to_nobody_says_how_to_make_the_role(postgres_url):
    admin.init(postgres_url)
    with pytest.raises(ConfigurationError, match="CREATE ROLE nobody_there"):
        admin.grant(postgres_url, "writer", "nobody_there")
    with pytest.raises(ConfigurationError, match="writer, reader or owner"):
        admin.grant(postgres_url, "boss", "postgres")


class TestVersions:
    def test_an_older_application_works_on_an_additive_newer_schema(
        self, store, query, opened, postgres_url, make_entry
    ):
        store.settle(make_entry())
        query("ALTER TABLE entries ADD COLUMN invented text; ALTER TABLE contexts ADD COLUMN invented text")
        query("INSERT INTO schema_versions (number, name, readable_from) VALUES (9999, '9999_9.9.9_new.sql', 1)")
        store.settle(make_entry())
        later = opened(postgres_url)
        later.settle(make_entry(request_model="gpt-6"))
        assert len(list(later.entries())) == 3
        assert later.verify().ok
        assert admin.status(postgres_url).unknown == (9999,)

    def test_a_schema_that_needs_a_newer_application_is_refused(self, store, query, postgres_url):
        query("INSERT INTO schema_versions (number, name, readable_from) VALUES (9999, '9999_9.9.9_new.sql', 9999)")
        with pytest.raises(SchemaVersionError, match="Upgrade"):
            open_store(postgres_url)
        with pytest.raises(SchemaVersionError, match="upgrade"):
            admin.migrate(postgres_url)

    def test_an_older_schema_is_refused_until_its_owner_migrates_it(
        self, store, query, postgres_url, role, monkeypatch
    ):
        admin.grant(postgres_url, "writer", role)
        admin.grant(postgres_url, "reader", role)
        further = schema.Migration(9999, "9999_9.9.9_further.sql", 1, "CREATE TABLE further (id bigint)")
        known = schema.migrations()
        for module in (schema, admin):
            monkeypatch.setattr(module, "migrations", lambda: (*known, further))
        with pytest.raises(SchemaVersionError, match="db migrate"):
            open_store(postgres_url)
        assert admin.status(postgres_url).pending == (further.name,)
        assert admin.migrate(postgres_url) == (further.name,)
        open_store(postgres_url).close()
        status = admin.status(postgres_url)
        assert (status.writers, status.readers) == ((role,), (role,))
