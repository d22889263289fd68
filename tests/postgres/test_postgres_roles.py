"""Who may do what on a shared ledger, and application versions before and after a migration."""

import io
import json
import uuid
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from tokenmeter import Budget, make_meter
from tokenmeter.attribution import Attribution
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.errors import BudgetExceededError, ConfigurationError, SchemaVersionError, StoreUnavailableError
from tokenmeter.reports import Query, export_entries, read_report
from tokenmeter.stores import open_store
from tokenmeter.stores.base import Counter
from tokenmeter.stores.documents import Filing, NewDocument
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


def test_a_writer_writes_and_reads_what_caps_are_counted_from(
    postgres_url, url_of, role, opened, make_entry, make_hold, make_posting, key
):

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
    assert store.entry(entry.entry_id) == entry
    store.recount(lambda: {key: (4, None)})
    assert store.counters([key])[key].settled == 4
    assert store.health().facts["role"] == "writer"


def test_a_writer_calls_under_a_hard_cap_that_counts_what_was_there_before(
    postgres_url, url_of, role, opened, make_entry
):
    owner = opened(postgres_url)
    owner.settle(make_entry())
    owner.flush(10)
    admin.grant(postgres_url, "writer", role)
    budget = Budget(member="*", limit_requests=2, period="month", name="writers")
    meter = make_meter(store=url_of(role), config={}, budgets=[budget])
    call = Call(
        provider="openai",
        endpoint="chat.completions",
        operation="chat",
        facts=RequestFacts(model="gpt-5-mini"),
        attribution=Attribution(member="ada"),
    )
    meter.settle(meter.authorize(call), Outcome(status="ok"))
    with pytest.raises(BudgetExceededError):
        meter.authorize(call)
    meter.close()


#: What no grant of ours allows. `{}` is the schema.
FORBIDDEN = (
    "INSERT INTO {}.counters VALUES ('b', '', 0, 0, 0, 0)",
    "INSERT INTO {}.entries (entry_id) VALUES ('forged')",
    "UPDATE {}.entries SET list_micro = 0",
    "DELETE FROM {}.entries",
    "TRUNCATE {}.entries",
    "UPDATE {}.sums SET billed_micro = 0",
    "UPDATE {}.ledger SET hash = ''",
    "DELETE FROM {}.holds",
    "INSERT INTO {}.documents (position) VALUES (1)",
    "DELETE FROM {}.documents",
    "DO 'BEGIN LOCK TABLE {}.entries IN EXCLUSIVE MODE; END'",
    "SELECT value FROM {}.secret",
    "ALTER TABLE {}.entries DISABLE TRIGGER ALL",
    "DROP TRIGGER entries_stay ON {}.entries",
    "DROP TABLE {}.entries",
    "CREATE TABLE {}.mine (id bigint)",
    "CREATE OR REPLACE FUNCTION {}.refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    "SET session_replication_role = replica",
)


@pytest.mark.parametrize("grants", [["writer"], ["reader"], ["writer", "reader"]], ids=" and ".join)
def test_no_grant_allows_to_change_or_remove_anything(postgres_url, url_of, role, opened, make_entry, grants):
    """Neither a writer nor a reader gets past the functions: not to rows, not to triggers, not to the secret."""
    import psycopg

    opened(postgres_url).settle(make_entry())
    opened(postgres_url).flush(10)
    for granted in grants:
        admin.grant(postgres_url, granted, role)
    schema_name = postgres_url.partition("schema=")[2].partition("&")[0]
    closed = {
        "writer": ("SELECT {}.fold('{{}}')", "SELECT {}.file_document('{{}}')"),
    }
    statements = [*FORBIDDEN, *(text for name, texts in closed.items() if name not in grants for text in texts)]
    with psycopg.connect(url_of(role).partition("&schema")[0], autocommit=True) as connection:
        for statement in statements:
            with pytest.raises(psycopg.Error) as refused:
                connection.execute(statement.format(schema_name))
            assert refused.value.sqlstate == "42501", statement


def test_a_writers_own_tables_do_not_stand_in_for_the_ledgers(postgres_url, url_of, role, opened):
    import psycopg

    admin.init(postgres_url)
    admin.grant(postgres_url, "writer", role)
    store = opened(postgres_url)
    with psycopg.connect(url_of(role).partition("&schema")[0], autocommit=True) as connection:
        connection.execute("CREATE TEMP TABLE holds (LIKE pg_class); SET search_path = pg_temp, public")
        hold = '{"id": "h", "expires_at": 1, "body": "{}", "claims": [["b", "", 0, null, 5, 10]]}'
        connection.execute(f"SELECT {store.address.schema}.reserve(%s::jsonb)", [hold])
    assert [(key.budget, counter.reserved) for key, counter in store.all_counters()] == [("b", 5)]


def test_who_may_write_and_read_closes_the_month_and_issues_its_invoices(
    postgres_url, url_of, role, opened, make_entry
):
    from tokenmeter.billing import close_period, draft_invoice, find_invoice, issue_invoice, void_invoice

    admin.init(postgres_url)
    admin.grant(postgres_url, "writer", role)
    admin.grant(postgres_url, "reader", role)
    store = opened(url_of(role))
    one = Decimal(1)
    costs = {"charges": (), "list_cost": one, "contracted_cost": one, "billed_cost": one}
    store.settle(make_entry(occurred_at=datetime(2026, 10, 5, tzinfo=UTC), **costs))
    closed = close_period(store, "2026-10", now=datetime(2026, 11, 2, tzinfo=UTC))
    bill = issue_invoice(store, draft_invoice(store, member="ada", period="2026-10"), force=True)
    assert void_invoice(store, bill, "it was over nothing").status == "void"
    assert find_invoice(opened(postgres_url), bill.number).status == "void"
    assert (closed.entries, store.verify().faults) == (1, ())
    assert store.health().facts["role"] == "writer and reader"


def test_a_writer_files_documents_only_behind_the_last(postgres_url, url_of, role, opened, query):
    import psycopg

    admin.init(postgres_url)
    admin.grant(postgres_url, "writer", role)
    writer = opened(url_of(role))
    draft = NewDocument(kind="invoice", key="a", body="{}", series="A")
    filed = writer.file(draft)
    assert filed.recorded
    assert writer.file(draft) == Filing(filed.document, recorded=False)
    head = opened(postgres_url).health().facts["head"]
    with psycopg.connect(url_of(role).partition("&schema")[0], autocommit=True) as connection:
        for anchor, number in (("", 2), (head, 1), (head, 3), (head, None), (None, 2)):
            forged = {"anchor": anchor, "number": number, "series": "A", "kind": "invoice", "key": "b"}
            with pytest.raises(psycopg.errors.SerializationFailure):
                connection.execute(f"SELECT {query.schema}.file_document(%s)", [json.dumps(forged)])
    assert list(writer.documents()) == []
    assert writer.file(NewDocument(kind="budget", key="b", body="{}")).recorded
    assert [document.kind for document in writer.documents()] == ["budget"]
    assert len(list(opened(postgres_url).documents())) == 2


def test_entries_of_a_writer_who_lost_the_right_wait_until_it_is_back(
    postgres_url, url_of, role, opened, query, make_entry
):
    admin.init(postgres_url)
    admin.grant(postgres_url, "writer", role)
    store = opened(url_of(role))
    query(f"REVOKE EXECUTE ON FUNCTION fold(json) FROM {role}")
    entry = make_entry()
    assert store.settle(entry).recorded
    assert store.flush(0) == 1
    assert store.health().facts["refused_records"] == 0
    admin.grant(postgres_url, "writer", role)
    assert store.flush(10) == 0
    assert opened(postgres_url).entry(entry.entry_id) == entry


def test_a_reader_reports_exports_and_verifies_and_cannot_write(
    postgres_url, url_of, role, opened, make_entry, make_hold, key
):
    owner = opened(postgres_url)
    entry = make_entry()
    owner.settle(entry)
    filed = owner.file(NewDocument(kind="period", key="a", body="{}")).document
    admin.grant(postgres_url, "reader", role)
    store = opened(url_of(role))
    assert store.entry(entry.entry_id) == entry
    assert read_report(store, Query.parse(by="member")).totals.requests == 1
    manifest = export_entries(store, io.BytesIO(), format="jsonl")
    assert (manifest.rows, manifest.ledger["head"]) == (1, store.verify().head)
    assert store.verify().ok
    assert list(store.documents()) == [filed]
    assert len(list(store.all_counters())) == 0
    facts = store.health().facts
    assert (facts["role"], facts["entries"]) == ("reader", 1)
    for attempt in (
        lambda: store.reserve(make_hold((key, 10, 4))),
        store.secret,
        lambda: store.file(NewDocument(kind="period", key="b", body="{}")),
        lambda: store.recount(lambda: {key: (0, None)}),
        lambda: store.settle(make_entry(), only_if_held=True),
    ):
        with pytest.raises(StoreUnavailableError, match="db grant"):
            attempt()


def test_an_owner_may_do_what_the_schemas_owner_may(postgres_url, url_of, role, opened, key):
    admin.init(postgres_url)
    admin.grant(postgres_url, "owner", role)
    opened(url_of(role)).recount(lambda: {key: (9, None)})
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
        self, store, query, opened, postgres_url, make_entry, make_hold, make_posting, key
    ):
        store.append([(make_entry(), ()) for _ in range(200)])
        tables = [
            name
            for (name,) in query(
                "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition "
                "AND relnamespace = current_schema()::regnamespace"
            )
        ]
        for table in tables:
            query(f"ALTER TABLE {table} ADD COLUMN invented text")
        query("CREATE TABLE invented (id bigint)")
        query("CREATE FUNCTION settle(batch jsonb, more text) RETURNS jsonb RETURN batch")
        query("INSERT INTO schema_versions (number, name, readable_from) VALUES (9999, '9999_9.9.9_new.sql', 1)")
        store.append([(make_entry(), ()) for _ in range(200)])
        later = opened(postgres_url)
        hold = make_hold((key, 10, 4))
        later.reserve(hold)
        later.settle(make_entry(request_model="gpt-6"), [make_posting(3, 1)], reservation_id=hold.reservation_id)
        assert later.counters([key])[key] == Counter(3, 0)
        assert later.file(NewDocument(kind="period", key="a", body="{}")).recorded
        assert len(list(later.entries())) == 401
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


def test_who_may_only_read_is_told_how_much_of_the_hosts_spool_waits(
    postgres_url, url_of, role, opened, make_entry, monkeypatch
):
    """A reader, and whoever has just begun, ask the server how far the spool of others was sent."""
    writer = opened(postgres_url)
    for _ in range(3):
        writer.settle(make_entry())
    assert writer.flush(10) == 0
    admin.grant(postgres_url, "reader", role)
    reader = opened(url_of(role))
    assert (reader.health().facts["role"], reader.health().facts["spool_waiting"]) == ("reader", 0)
    assert reader.flush(10) == 0
    monkeypatch.setattr(writer, "_fold", lambda: None)  # a host that cannot send now
    monkeypatch.setattr(writer.journal, "wake", lambda: None)
    writer.settle(make_entry())
    assert reader.health().facts["spool_waiting"] == 1
    assert opened(url_of(role)).health().facts["spool_waiting"] == 1
    assert reader.flush(10) == 1  # at once: a reader sends nothing
