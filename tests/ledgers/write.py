"""Writes the ledger of this release's format that later releases must read and verify: run once per format.

    python tests/ledgers/write.py                # format-N.db.gz, and format-N.json: what is in it
    python tests/ledgers/write.py kinds          # format-N-kinds.*: what it learnt to say with the same number
    python tests/ledgers/write.py assumed        # format-N-assumed.*: so, of calls without a price
    python tests/ledgers/write.py archived       # archived-N.*: one with months in files (archived-N/)

The files are made beside this one, and never again once a release has them.
"""

import gzip
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.budgets import Budget
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.ledger import Charge, Claim, CounterKey, Entry, Posting, Reservation, new_id
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.pricing.corrections import correction, reversal
from tokenmeter.stores.documents import NewDocument
from tokenmeter.stores.encoding import FORMAT
from tokenmeter.stores.sqlite import SQLiteStore
from tokenmeter.usage import Consumption, Observation, Usage

HERE = Path(__file__).parent
START = datetime(2026, 1, 30, 22, 59, 59, 999_999, tzinfo=UTC)
KEY = CounterKey("cap", "member=ada", 0)
#: On what nobody priced or knows.
CAP = Budget(member="eve", limit_usd=10**6, period="total")
#: Tokens that a call in flight had put out when its hold was noted last.
NOTED = 41


def charge(meter, quantity, price, **more):
    cost = None if price is None else (Decimal(price) * quantity).quantize(Decimal("1E-12"))
    values = {"list_cost": cost, "contracted_cost": cost, "billed_cost": cost}
    if cost is not None and more.get("multipliers"):
        values["billed_cost"] = (cost * Decimal("1.05")).quantize(Decimal("1E-12"))
    unit = "Seconds" if meter.startswith("seconds") else "Tokens"
    return Charge(
        model="gpt-5",
        sku_meter=meter,
        quantity=quantity,
        unit=unit,
        list_unit_price=None if price is None else Decimal(price),
        price_id="gpt-5@2025-08-07",
        source="https://example.com/prices",
        **more,
        **values,
    )


def entries():
    """One of every kind of thing that a record can hold."""
    for number, entry in enumerate(calls()):
        yield entry
        if number % 17 == 5:
            yield reversal(entry, ())
        if number % 17 == 8:
            grown = {"entry_id": new_id(), "dedup_key": None, "request_id": f"{entry.request_id}-1"}
            yield replace(entry, kind="growth", **grown)
        if number % 17 == 11:
            yield replace(entry, kind="adjustment", entry_id=new_id(), dedup_key=None, usage=Usage({}), charges=())


def calls():
    """Calls and corrections; every entry that is not made from another."""
    for number in range(120):
        charges = [
            charge("input", 1000 + number, "0.00000125", multipliers={"platform": Decimal("1.05")}),
            charge("cache_read", 64, "0.000000125"),
            charge("output", 200, "0.00001"),
        ]
        if number % 7 == 0:
            charges.append(charge("seconds_audio", Decimal("1.5"), "0.0001"))
        if number % 11 == 0:
            charges.append(charge("images", 1, None, role="image_generation"))
        priced = [one for one in charges if one.billed_cost is not None]
        sums = {
            name: sum((getattr(one, name) for one in priced), Decimal(0))
            for name in ("list_cost", "contracted_cost", "billed_cost")
        }
        yield Entry(
            kind="usage" if number % 13 else "correction",
            occurred_at=START + timedelta(hours=7 * number, microseconds=number),
            recorded_at=START + timedelta(hours=7 * number, seconds=1),
            provider="openai",
            endpoint="chat.completions",
            operation="chat",
            request_model="gpt-5",
            response_model=("gpt-5-2025-08-07", None)[number % 2],
            response_id=f"chatcmpl-{number}",
            request_id=f"req_{number}",
            status=("ok", "error", "aborted")[number % 3],
            streamed=bool(number % 2),
            attempts=1 + number % 3,
            latency_us=number * 1000,
            first_token_us=number,
            service_tier=("default", None)[number % 2],
            attribution=Attribution(
                member=("ada", "bob", None)[number % 3],
                team="search",
                end_user=f"user {number % 5} Zoë",
                tags={"env": "prod", "job": f"é{number % 2}"} if number % 4 else {},
            ),
            api_key=ApiKey("ab" * 16, "wxyz", ("prod", None)[number % 2]),
            usage=Usage({one.sku_meter: one.quantity for one in charges}, 50),
            charges=tuple(charges),
            cost_source="unpriced" if len(priced) < len(charges) else "computed",
            flags=("estimated",) if number % 5 == 0 else (),
            price_list_hash="0123456789abcdef",
            raw_usage=json.dumps({"prompt_tokens": 1064 + number, "x": [1, 2.5, None]}, separators=(",", ":")),
            error_type="RateLimitError" if number % 3 == 1 else None,
            corrects="e0" if number % 13 == 0 else None,
            dedup_key=f"openai:{number}" if number % 10 == 0 else None,
            trace_id=f"{number // 4 + 1:032x}" if number % 6 else None,
            span_id=f"{number + 1:016x}" if number % 6 else None,
            **sums,
        )


def pricer_at(price, *models):
    rows = [
        {"provider": "openai", "model": model, "sku_meter": meter, "unit_price": price, "per": 1}
        for model in models
        for meter in ("input", "output")
    ]
    return Pricer(PriceList.load(rows))


def spend_without_prices(store):
    """Calls whose price or usage nobody knows, under a budget in dollars; how many entries they made."""
    before = sum(1 for _ in store.entries())
    meter = Meter(store=store, pricer=pricer_at("0.25", "known"), budgets=[CAP])
    known, priced, reversed_, unknown = (
        meter.settle(meter.authorize(call), outcome)
        for call, outcome in (call_of("known", 3), call_of("new", 5), call_of("new", 7), call_of("new", None))
    )
    lost, _ = call_of("newer", 0)
    meter.authorize(lost)
    meter.sweep(datetime.now(UTC) + timedelta(hours=1))
    meter.post(correction(priced, pricer_at("2", "new")))
    meter.take_back(reversed_, lost)
    assert known.flags == ()
    assert {"assumed_usd=0"} < {*unknown.flags}
    (balance,) = meter.remaining()
    return {
        "added": sum(1 for _ in store.entries()) - before,
        "spent": str(balance.spent),
        "assumed": str(balance.assumed),
    }


def call_of(model, tokens):
    """A call, and its answer of so many tokens; None = it does not say how many."""
    facts = RequestFacts(model=model, input_bytes=4, max_output_tokens=2)
    who = Attribution(member="eve", end_user="user 1 Zoë")
    call = Call(provider="openai", endpoint="chat.completions", operation="chat", facts=facts, attribution=who)
    part = Consumption(model=model, usage=Usage({"input": tokens or 1}))
    return call, Outcome(
        observation=Observation(consumptions=(part,), flags=frozenset({"usage_unknown"} if tokens is None else ()))
    )


def put_months_into_files(store, folder, keep):
    """Seal February and let it go from the ledger, with January before it; what the files prove."""
    sealed = store.archives.seal("2026-02", str(folder))
    store.archives.drop()
    shutil.copytree(folder, keep, dirs_exist_ok=True)
    return {"roots": {one.month: one.root for one in sealed}, "archived": sum(one.entries for one in sealed)}


def main():
    archived = "archived" in sys.argv
    name = f"archived-{FORMAT}" if archived else "-".join((f"format-{FORMAT}", *sys.argv[1:]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        store = SQLiteStore(path)
        written = list(entries())
        for number, entry in enumerate(written):
            store.settle(entry, [Posting(KEY, 1000)])
            if number % 40 == 39:
                draft = NewDocument(kind="invoice", key=f"INV-{number}", series="INV", body=json.dumps({"n": number}))
                store.file(draft)
        far = datetime(2100, 1, 1, tzinfo=UTC)
        hold_id = new_id()
        store.reserve(Reservation(hold_id, (Claim(KEY, 10**9, 7),), START, far, "host:1", written[0]))
        store.note(hold_id, Usage({"input": 1000, "output": NOTED}))
        told = {"counted": len(written)}
        if "assumed" in sys.argv:
            told |= spend_without_prices(store)
            written = list(store.entries())
        if archived:
            store.release(hold_id)  # a ledger with calls under way is not merged
            told |= {"before": store.verify().head} | put_months_into_files(
                store, Path(folder) / "archive", HERE / name
            )
        told["documents"] = sum(1 for _ in store.documents())
        store.close()
        outcome = store.verify()
        assert outcome.ok
        store.close()
        (HERE / f"{name}.db.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    billed = sum((entry.billed_cost or Decimal(0) for entry in written), Decimal(0))
    told |= {"entries": len(written), "head": outcome.head, "billed_cost": str(billed), "held_output": NOTED}
    (HERE / f"{name}.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"{name}: {told}\n")


if __name__ == "__main__":
    main()
