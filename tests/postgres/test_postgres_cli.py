"""``tokenmeter db``: a shared ledger is set up from the command line."""

import json
import uuid
from functools import partial

import pytest


@pytest.fixture
def db(run_command, tmp_path, monkeypatch):
    """Run ``tokenmeter db ...``: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    return partial(run_command, "db")


def test_a_ledger_is_made_inspected_and_opened_to_roles(db, postgres_url, postgres_server_url):
    import psycopg

    code, out, _ = db("status", postgres_url, "--json")
    assert code == 1
    assert json.loads(out)["pending"]
    assert "Applied" in db("init", postgres_url)[1]
    assert "up to date" in db("migrate", postgres_url)[1]
    role = f"r_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role}")
        for right in ("writer", "reader"):
            assert f"{role} is now a {right}" in db("grant", right, role, postgres_url)[1].replace("\n", " ")
        code, out, _ = db("status", postgres_url, "--json")
        connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    found = json.loads(out)
    assert (code, found["pending"], found["writers"], found["readers"]) == (0, [], [role], [role])


def test_a_role_that_is_not_there_is_told_how_to_make(db, postgres_url):
    db("init", postgres_url)
    code, _, err = db("grant", "writer", "nobody_there", postgres_url)
    assert code == 2
    assert "CREATE ROLE nobody_there" in err.replace("\n", " ")


def test_a_sqlite_ledger_needs_no_setting_up(db):
    code, _, err = db("init", "sqlite:///usage.db")
    assert code == 2
    assert "sets itself up" in err.replace("\n", " ")
