"""Flask: views, hooks, threads and streamed bodies are attributed."""

from __future__ import annotations

import pytest

ADA = {"x-user": "ada", "x-team": "search"}


@pytest.mark.parametrize(("path", "calls"), [("/plain", 1), ("/parallel", 3), ("/stream", 1)])
def test_flask(load, accounts, warnings, path, calls):
    app = load("with_flask").app
    for user in ("ada", "grace"):
        answer = app.test_client().get(path, headers={**ADA, "x-user": user})
        assert answer.status_code == 200
        assert answer.data
    assert accounts() == [("ada", "search", path)] * calls + [("grace", "search", path)] * calls
    assert warnings.messages == []


def test_who_does_not_say_who_they_are_is_sent_away(load, accounts):
    assert load("with_flask").app.test_client().get("/plain").status_code == 401
    assert accounts() == []
