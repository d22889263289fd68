"""Pages of a ledger whose archived months cannot be read show what the kept sums answer, and say what is left out."""

from datetime import UTC, datetime, timedelta

import pytest

import tokenmeter
from tokenmeter import Attribution
from tokenmeter.dashboard import app

pytest.importorskip("duckdb")
client = pytest.importorskip("starlette.testclient")

USED = {"model": "gpt-5-mini", "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}}


@pytest.fixture
def meter(tmp_path, monkeypatch):
    """Two months of calls until now, of which the one before is in a file that is away."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = tokenmeter.make_meter(store=f"sqlite:///{tmp_path}/ledger.db")
    this = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    month = (this - timedelta(days=1)).strftime("%Y-%m")
    moments = [this - timedelta(hours=5 * number) for number in range(1, 240)]
    for number, moment in enumerate([*sorted(moments), *[datetime.now(UTC)] * 3]):
        made.record(
            {**USED, "id": f"c{number}"},
            provider="openai",
            endpoint="chat.completions",
            at=moment,
            attribution=Attribution(member=f"m{number % 3}"),
        )
    first = min(moments).strftime("%Y-%m")
    for period in sorted({first, month}):
        made.close_period(period)
    made.archive(month, to=tmp_path / "files", drop=True)
    (tmp_path / "files").rename(tmp_path / "away")
    yield made
    made.close()


PAGES = ["/", "/explore?by=member&period=last-30d", "/explore?by=member&period=this-month", "/account?member=m1"]


@pytest.mark.parametrize("only", [None, {"member": "m1"}], ids=["all", "a part"])
@pytest.mark.parametrize("page", PAGES)
def test_what_the_sums_answer_is_shown(meter, page, only, tmp_path):
    with client.TestClient(app(meter, only=only)) as browser:
        answer = browser.get(page)
    assert answer.status_code == 200, answer.text[-1500:]
    assert "$0.00" in answer.text  # what was spent
    if only:  # whoever sees a part is not told where the whole lies
        assert str(tmp_path) not in answer.text
