"""What every store promises, whatever it keeps its rows in."""

import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.errors import ConfigurationError
from tokenmeter.pricing.corrections import reversal
from tokenmeter.processes import process_name
from tokenmeter.reports.query import parse_where
from tokenmeter.serving.access import AccessScope
from tokenmeter.stores.base import CapReachedError, Counter, EntryFilter, Store
from tokenmeter.stores.direct import DirectJournal
from tokenmeter.stores.effects import WrittenIds
from tokenmeter.stores.engine import asked, condition_on
from tokenmeter.usage import Usage

DAY = timedelta(days=1)
BEYOND_INT64 = 50_000_000 * 10**12  # 50 million dollars in picodollars


def one(store, noon, by=(), where=None):
    return store.aggregate([noon - DAY, noon + DAY], by, EntryFilter(where=where or {}))


class TestEntries:
    def test_is_a_store(self, store):
        assert isinstance(store, Store)

    def test_gives_back_exactly_what_was_settled(self, store, make_entry, make_charge, noon):
        entry = make_entry(
            charges=(
                make_charge("input", 10, multipliers={"geo": Decimal("1.10"), "platform": Decimal("1.05")}),
                make_charge("seconds_audio", Decimal("12.345678901"), unit="Seconds", price_id="p1", source="u"),
                make_charge("images", 2, None, role="image_generation"),
            ),
            response_model="gpt-5-2025-08-07",
            response_id="r",
            request_id="q",
            status="aborted",
            streamed=True,
            attempts=3,
            latency_us=12,
            first_token_us=0,
            service_tier="flex",
            member="ada",
            team="search",
            organization="acme",
            project="p",
            route="/x",
            end_user="u\u00e9\U0001f600",
            tags={"b": "2", "a": "1 'quoted\""},
            cost_source="unpriced",
            flags=("estimated", "unknown"),
            price_list_hash="h",
            raw_usage='{"a":[1,2.5,null]}',
            error_type="APIError",
            corrects="e0",
            reservation_id="r0",
            dedup_key="d",
            trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
            span_id="00f067aa0ba902b7",
        )
        assert store.settle(entry).recorded
        assert store.entry(entry.entry_id) == entry

    def test_gives_back_an_entry_that_knows_nothing(self, store, make_entry):
        entry = make_entry(
            charges=(), request_model=None, api_key=None, usage=Usage(), cost_source="none", status="error"
        )
        store.settle(entry)
        assert store.entry(entry.entry_id) == entry
        assert store.entry(entry.entry_id).billed_cost is None

    def test_keeps_amounts_beyond_64_bits(self, store, make_entry, noon):
        huge = Decimal("12345678901.123456789012")
        entry = make_entry(charges=(), kind="adjustment", list_cost=huge, contracted_cost=-huge, billed_cost=huge)
        store.settle(entry)
        store.settle(replace(entry, entry_id="again"))
        assert store.entry(entry.entry_id) == entry
        assert [(a.list_cost, a.contracted_cost) for a in one(store, noon)] == [(2 * huge, -2 * huge)]

    def test_keeps_instants_to_the_microsecond_whatever_their_zone(self, store, make_entry):
        local = datetime(2026, 3, 29, 3, 30, 0, 123457, tzinfo=timezone(timedelta(hours=5, minutes=45)))
        entry = make_entry(occurred_at=local)
        store.settle(entry)
        assert store.entry(entry.entry_id).occurred_at == local

    def test_half_a_character_off_the_wire_costs_no_entry(
        self, store, make_entry, make_charge, make_hold, make_key, noon
    ):
        broken = make_entry(
            charges=(make_charge(model="m\ud800"),), response_id="\ud800", raw_usage='"\udfff"', request_model="\ud8ff"
        )
        assert store.settle(broken).recorded
        assert not store.settle(broken).recorded
        store.reserve(make_hold((make_key(), 1, 1), call=broken))
        assert len(store.expired(noon)) == 1
        assert [entry.billed_cost for entry in store.entries()] == [broken.billed_cost]
        assert store.verify().ok

    def test_an_unknown_entry_is_none(self, store):
        assert store.entry("nobody") is None

    def test_the_same_entry_is_recorded_once(self, store, make_entry, make_key, make_posting, noon):
        entry = make_entry()
        posting = make_posting(make_key(), 7)
        assert store.settle(entry, [posting]).recorded
        assert not store.settle(entry, [posting]).recorded
        assert store.counters([make_key()])[make_key()].settled == 7
        assert one(store, noon)[0].requests == 1

    def test_the_same_bill_is_recorded_once(self, store, make_entry, make_key, make_posting, noon):
        store.settle(make_entry(dedup_key="openai:batch_1"), [make_posting(make_key(), 7)])
        repeated = store.settle(make_entry(dedup_key="openai:batch_1"), [make_posting(make_key(), 7)])
        assert not repeated.recorded
        assert store.settle(make_entry(dedup_key="openai:batch_2")).recorded
        assert store.counters([make_key()])[make_key()].settled == 7
        assert one(store, noon)[0].requests == 2

    def test_entries_are_found_by_the_bill_they_are_of(self, store, make_entry):
        long = f"openai:{'x' * 900}"
        kept = [make_entry(dedup_key=key) for key in ("openai:b#2", long, "openai:b#1")]
        for entry in (*kept, make_entry(), make_entry(dedup_key="openai:b#11")):
            store.settle(entry)
        wanted = [long, "openai:b#1", "openai:b#2", "openai:b#3"]
        assert [one.entry_id for one in store.recorded_under(wanted)] == [one.entry_id for one in kept]
        assert list(store.recorded_under(["openai:b"])) == []

    def test_a_repetition_still_frees_its_hold(self, store, make_entry, make_key, make_hold, noon):
        store.settle(make_entry(dedup_key="d"))
        hold = make_hold((make_key(), 10, 6))
        store.reserve(hold)
        settlement = store.settle(make_entry(dedup_key="d"), reservation_id=hold.reservation_id)
        assert (settlement.recorded, settlement.hold_found) == (False, True)
        assert store.counters([make_key()])[make_key()] == Counter(0, 0)

    def test_many_are_appended_at_once_each_of_them_once(self, store, make_entry, make_key, make_posting, noon):
        known, first = make_entry(dedup_key="bill"), make_entry(member="ada")
        store.settle(known)
        batch = [first, make_entry(dedup_key="bill"), first, *(make_entry(member=f"m{index}") for index in range(150))]
        done = store.append([(entry, [make_posting(make_key(), 7, 14)]) for entry in batch])
        assert [settlement.recorded for settlement in done] == [True, False, False, *[True] * 150]
        assert [crossing.threshold for settlement in done for crossing in settlement.crossings] == [14]
        assert store.counters([make_key()])[make_key()].settled == 7 * 151
        assert [(total.requests, total.billed_cost) for total in one(store, noon)] == [(152, 152 * Decimal("0.00325"))]
        assert store.entry(first.entry_id) == first
        assert list(store.append([])) == []
        assert store.verify().ok

    def test_a_bill_whose_key_reads_like_an_entrys_identity_is_another(self, store, make_entry):
        first, bill, last = make_entry(), make_entry(dedup_key="batch-1"), make_entry(entry_id="batch-1")
        store.append([(first, ()), (bill, ())])
        late = make_entry(dedup_key=first.entry_id)
        for repeated in (False, True):
            done = store.append([(late, ()), (last, ()), (first, ()), (bill, ())])
            assert [one.recorded for one in done] == [not repeated, not repeated, False, False]
        together = [make_entry(entry_id="batch-2"), make_entry(dedup_key="batch-2")]
        assert [one.recorded for one in store.append([(entry, ()) for entry in together])] == [True, True]
        assert store.verify().ok

    def test_of_many_none_is_appended_when_one_cannot_be(self, store, make_entry):
        with pytest.raises(ValueError, match="quantize"):
            store.append([(make_entry(), ()), (make_entry(billed_cost=Decimal("1E-13")), ())])
        assert list(store.entries()) == []

    @pytest.mark.parametrize(
        ("quantity", "price"), [(2**62, None), (-(2**62), None), (Decimal(10) ** 16, None), (1, "1E12"), (1, "-1E12")]
    )
    def test_what_no_sum_can_take_is_refused(self, store, make_entry, make_charge, noon, quantity, price):
        absurd = make_entry(charges=(make_charge("web_searches", quantity, price),))
        for write in (store.settle, lambda entry: store.append([(make_entry(), ()), (entry, ())])):
            with pytest.raises(OverflowError):
                write(absurd)
        for model in range(20):
            most = make_charge("web_searches", 10**15, None)
            store.settle(make_entry(charges=(most,), response_model=f"m{model}", end_user=f"u{model}"))
        for by in ((), ("sku_meter",), ("end_user",)):
            assert sum(group.quantities["web_searches"] for group in one(store, noon, by)) == 20 * 10**15
        assert store.verify().ok

    def test_a_sum_that_would_overflow_stays_exact_and_what_is_too_much_is_kept_aside(
        self, store, make_entry, make_charge, noon
    ):
        """A host that states 10^11 dollars a call: 92 of them are what 64 bits of microdollars hold."""
        most = make_charge("web_searches", 1, "1E11")
        many = [(make_entry(charges=(most,)), ()) for _ in range(100)]
        if isinstance(store.journal, DirectJournal):  # nothing lies between it and its caller
            with pytest.raises(OverflowError, match="more than a ledger can count"):
                store.append(many)
            assert list(store.entries()) == []
            return
        store.append(many)
        store.append([(make_entry(member="bob", charges=(make_charge("web_searches", 2, "1"),)), ())])
        counted = len(list(store.entries())) - 1
        assert counted == 92
        assert store.health().facts["refused_records"] == 8
        assert any("refused" in warning for warning in store.health().warnings)
        for by in ((), ("sku_meter",), ("end_user",)):
            (total,) = one(store, noon, by)
            assert total.billed_cost == Decimal(92 * 10**11 + 2), by
        assert store.verify().ok

    def test_totals_of_sums_that_are_near_the_most_are_exact(self, store, make_entry, make_charge, noon):
        most = make_charge("web_searches", 1, "1E11")
        for model in ("a", "b", "c"):
            store.append([(make_entry(charges=(most,), response_model=model), ()) for _ in range(90)])
        for by in ((), ("sku_meter",), ("end_user",)):
            (total,) = one(store, noon, by)
            assert (total.requests, total.billed_cost) == (270, Decimal(270 * 10**11)), by
        assert store.verify().ok

    def test_a_cost_finer_than_a_picodollar_is_refused_and_nothing_is_written(self, store, make_entry, noon):
        with pytest.raises(ValueError, match="quantize"):
            store.settle(make_entry(billed_cost=Decimal("1E-13")))
        assert list(store.entries()) == []

    def test_an_import_of_any_length_asks_for_no_entry_that_it_has_just_made(self, store, make_entry, monkeypatch):
        asked, repeated = [], set()
        known = store._book.known
        monkeypatch.setattr(store._book, "known", lambda ids, keys: (asked.extend(ids), known(ids, keys))[1])
        monkeypatch.setattr(WrittenIds, "MOST", 100)  # two batches and some
        entries = [make_entry() for _ in range(40)]
        for _ in range(8):
            following = [make_entry() for _ in range(40)]
            assert all(one.recorded for one in store.append([(entry, ()) for entry in entries]))
            assert not any(one.recorded for one in store.append([(entry, ()) for entry in entries[:1]]))
            repeated.add(entries[0].entry_id)
            entries = following
        assert set(asked) <= repeated
        assert store.verify().ok


class TestReadingEntries:
    @pytest.fixture
    def many(self, store, make_entry, noon):
        entries = [
            make_entry(
                entry_id=f"e{index:04d}",
                occurred_at=noon + timedelta(minutes=(index * 7) % 1201 // 3),
                member=("ada", "bob", None)[index % 3],
                end_user=f"u{index % 5}",
                tags={"env": "prod"} if index % 2 else {},
            )
            for index in range(1201)
        ]
        store.append([(entry, ()) for entry in entries])
        return sorted(entries, key=lambda entry: entry.occurred_at)  # stable: ties in order of settlement

    def test_come_in_order_of_occurrence_in_both_directions_over_many_pages(self, store, many):
        assert list(store.entries()) == many
        assert list(store.entries(newest_first=True)) == many[::-1]

    def test_are_filtered_by_time_and_by_every_kind_of_dimension(self, store, many, noon):
        since, until = noon + timedelta(minutes=30), noon + timedelta(minutes=90)
        which = EntryFilter(
            since=since,
            until=until,
            where={
                "member": frozenset({"ada", None}),
                "end_user": frozenset({"u1", "u2"}),
                "tag:env": frozenset({"prod"}),
                "sku_meter": frozenset({"output"}),
                "api_key": frozenset({"prod"}),
                "model": frozenset({"gpt-5"}),
            },
        )
        expected = [
            entry
            for entry in many
            if since <= entry.occurred_at < until
            and entry.attribution.member in {"ada", None}
            and entry.attribution.end_user in {"u1", "u2"}
            and entry.attribution.tags
        ]
        assert expected
        assert list(store.entries(which)) == expected

    @pytest.mark.parametrize("most", [{}, {"_MANY": 5}, {"_MOST_LISTED": 0}])
    @pytest.mark.parametrize("newest_first", [False, True])
    def test_are_the_same_however_they_are_sought(self, store, many, monkeypatch, most, newest_first):
        """By their accounts where few entries or accounts fit, by the time where many do."""
        for name, number in most.items():
            monkeypatch.setattr(f"tokenmeter.stores.engine.{name}", number)
        for wanted in ({"ada"}, {"bob", None}, {"nobody"}):
            for name, fits in (("member", True), ("member!", False)):
                found = store.entries(EntryFilter(where={name: frozenset(wanted)}), newest_first=newest_first)
                left = [entry for entry in many if (entry.attribution.member in wanted) == fits]
                assert list(found) == left[:: -1 if newest_first else 1]

    @pytest.mark.parametrize("values", [{"ada"}, {"ada", None}, {None}])
    @pytest.mark.parametrize("name", ["member", "end_user", "tag:env"])
    def test_what_is_not_wanted_is_left_out_and_nothing_else(self, store, make_entry, noon, name, values):
        def owned(value):
            who = {"tags": {"env": value} if value else {}} if name == "tag:env" else {name: value}
            return make_entry(occurred_at=noon, attribution=Attribution(**who))

        entries = {value: owned(value) for value in ("ada", "bob", None)}
        store.append([(entry, ()) for entry in entries.values()])
        where = {f"{name}!": frozenset(values)}
        left = {value: entry for value, entry in entries.items() if value not in values}
        found = list(store.entries(EntryFilter(where=where)))
        assert {entry.entry_id for entry in found} == {entry.entry_id for entry in left.values()}
        assert {(row.group, row.requests) for row in one(store, noon, (name,), where)} == {((v,), 1) for v in left}
        only = EntryFilter(where={**where, name: frozenset({"ada", "bob"})})
        assert {entry.entry_id for entry in store.entries(only)} == {e.entry_id for v, e in left.items() if v}

    def test_meters_are_named_that_are_counted(self, store):
        with pytest.raises(ConfigurationError, match="name these"):
            list(store.entries(EntryFilter(where={"sku_meter!": frozenset({"input"})})))

    def test_names_of_tags_are_known_each_once_and_of_very_many_the_first_hundred(self, store, make_entry):
        assert store.tag_names() == []
        for value in range(3):
            store.settle(make_entry(tags={"env": f"e{value}", "zone;1": "x"}, member="tag:me", end_user="tag:you"), [])
        store.settle(make_entry(tags={"Step": "1"}), [])
        assert store.tag_names() == ["Step", "env", "zone;1"]
        store.settle(make_entry(tags={f"n{number:03}": "x" for number in range(120)}), [])
        assert store.tag_names() == ["Step", "env", *(f"n{number:03}" for number in range(98))]

    def test_nothing_matches_an_empty_condition(self, store, many):
        assert list(store.entries(EntryFilter(where={"member": frozenset()}))) == []

    def test_an_iteration_stays_whole_while_others_write(self, store, many, make_entry, noon):
        seen = store.entries()
        first = next(seen)
        store.settle(make_entry(occurred_at=noon - DAY))
        assert [first, *seen] == many

    def test_an_unknown_dimension_is_refused(self, store):
        with pytest.raises(ConfigurationError, match="colour"):
            list(store.entries(EntryFilter(where={"colour": frozenset({"red"})})))


class TestHolds:
    def test_a_claim_that_fits_is_held_and_one_that_does_not_is_refused(self, store, make_hold, make_key):
        key = make_key()
        store.reserve(make_hold((key, 10, 6)))
        with pytest.raises(CapReachedError) as stop:
            store.reserve(make_hold((key, 10, 5)))
        assert (stop.value.claim.key, stop.value.settled, stop.value.reserved) == (key, 0, 6)
        store.reserve(make_hold((key, 10, 4)))
        assert store.counters([key]) == {key: Counter(0, 10)}

    def test_all_claims_are_held_or_none(self, store, make_hold, make_key):
        first, second = make_key("a"), make_key("b")
        with pytest.raises(CapReachedError) as stop:
            store.reserve(make_hold((second, 1, 5), (first, 10, 5)))
        assert stop.value.claim.key == second
        assert store.counters([first, second]) == {first: Counter(), second: Counter()}
        assert store.expired(datetime.max.replace(tzinfo=UTC)) == []

    def test_a_counter_without_a_limit_only_counts(self, store, make_hold, make_key):
        store.reserve(make_hold((make_key(), None, BEYOND_INT64)))
        assert store.counters([make_key()])[make_key()].reserved == BEYOND_INT64

    def test_amounts_beyond_64_bits_are_exact(self, store, make_hold, make_key, make_entry, make_posting):
        key = make_key()
        store.settle(make_entry(), [make_posting(key, BEYOND_INT64 - 1)])
        store.reserve(make_hold((key, BEYOND_INT64, 1)))
        with pytest.raises(CapReachedError):
            store.reserve(make_hold((key, BEYOND_INT64, 1)))
        assert store.counters([key]) == {key: Counter(BEYOND_INT64 - 1, 1)}

    def test_settling_frees_the_hold_and_counts_the_truth(self, store, make_hold, make_key, make_entry, make_posting):
        key = make_key()
        hold = make_hold((key, 10, 6))
        store.reserve(hold)
        settlement = store.settle(make_entry(), [make_posting(key, 4)], reservation_id=hold.reservation_id)
        assert settlement.hold_found
        assert store.counters([key]) == {key: Counter(4, 0)}

    def test_the_same_reservation_is_held_once(self, store, make_hold, make_key):
        hold = make_hold((make_key(), 10, 6))
        store.reserve(hold)
        store.reserve(hold)
        assert store.counters([make_key()])[make_key()].reserved == 6

    def test_releasing_frees_once(self, store, make_hold, make_key):
        hold = make_hold((make_key(), 10, 6))
        store.reserve(hold)
        assert store.release(hold.reservation_id)
        assert not store.release(hold.reservation_id)
        assert store.counters([make_key()])[make_key()] == Counter()

    def test_an_expired_hold_comes_back_whole_and_an_extended_one_does_not(self, store, make_hold, make_key, noon):
        hold = make_hold((make_key("a"), 10, 6), (make_key("b"), None, 3), expires_at=noon)
        later = make_hold((make_key("a"), 10, 1), expires_at=noon + DAY)
        store.reserve(hold)
        store.reserve(later)
        assert store.expired(noon - timedelta(microseconds=1)) == []
        assert list(store.expired(noon)) == [hold]
        assert store.extend(hold.reservation_id, noon + 2 * DAY)
        assert list(store.expired(noon)) == []
        assert list(store.expired(noon + 3 * DAY, limit=1)) == [later]
        assert not store.extend("nobody", noon)

    @pytest.mark.parametrize("between", [False, True], ids=["in one fold", "after a fold"])
    @pytest.mark.parametrize("capped", [False, True], ids=["claims nothing", "claims"])
    def test_a_hold_says_what_was_noted_of_it_last(self, store, make_hold, make_key, noon, capped, between):
        hold = make_hold(*((make_key(), 10, 6),) * capped, expires_at=noon)
        store.reserve(hold)
        if between:
            assert list(store.expired(noon)) == [hold]
        for words in (1, 7):
            used = Usage({"input": 3, "output": words, "sound": Decimal("0.25")}, reasoning_output_tokens=1)
            assert store.note(hold.reservation_id, used)
        said = replace(hold, call=replace(hold.call, usage=used))
        assert list(store.expired(noon)) == [said]
        assert store.extend(hold.reservation_id, noon + DAY)
        assert store.note(hold.reservation_id, Usage())
        assert list(store.expired(noon)) == []
        (found,) = store.expired(noon + DAY)
        assert found == replace(hold, call=replace(hold.call, usage=Usage()), expires_at=noon + DAY)
        assert store.counters([make_key()])[make_key()] == Counter(0, 6 * capped)
        assert store.release(hold.reservation_id)
        assert not store.note(hold.reservation_id, used)
        assert store.expired(noon + 2 * DAY) == []
        assert store.counters([make_key()])[make_key()] == Counter()

    def test_a_late_settlement_after_the_sweeper_frees_nothing_twice(
        self, store, make_hold, make_key, make_entry, make_posting
    ):
        key = make_key()
        hold = make_hold((key, 10, 6))
        store.reserve(hold)
        store.reserve(make_hold((key, 10, 2)))
        store.settle(make_entry(), [make_posting(key, 3)], reservation_id=hold.reservation_id, only_if_held=True)
        late = store.settle(make_entry(), [make_posting(key, 1)], reservation_id=hold.reservation_id)
        assert (late.recorded, late.hold_found) == (True, False)
        assert store.counters([key]) == {key: Counter(4, 2)}

    def test_a_hold_is_found_among_thousands_by_the_answer_of_its_call(self, store, make_hold, make_entry):
        named = {"resp_1": "a", "resp_%": "b", "RESP_1": "c", 'resp "2" ü\\': "d"}
        for _ in range(1_100):
            store.reserve(make_hold())
        for response_id, hold_id in named.items():
            store.reserve(make_hold(reservation_id=hold_id, call=make_entry(response_id=response_id)))
        store.reserve(make_hold(reservation_id="later"))
        store.name_answer("later", "resp_later")
        named["resp_later"] = "later"
        for response_id, hold_id in named.items():
            assert [one.reservation_id for one in store.held_for(response_id)] == [hold_id]
        assert store.held_for("resp_") == []

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a process began")
    def test_holds_of_ended_processes_are_found_behind_thousands_of_others(self, store, make_hold, noon):
        host, pid, where, began = process_name().split(":")
        ended = f"{host}:{pid}:{where}:{int(began) - 1}"
        for _ in range(1_100):
            store.reserve(make_hold(owner=process_name()))
        assert store.left() == []
        store.reserve(make_hold(reservation_id="left", owner=ended, expires_at=noon + timedelta(days=1)))
        assert [one.reservation_id for one in store.left()] == ["left"]
        assert any("process that has ended" in warning for warning in store.health().warnings)

    def test_a_sweeper_that_comes_late_books_nothing(self, store, make_hold, make_key, make_entry, make_posting, noon):
        key = make_key()
        hold = make_hold((key, 10, 6))
        store.reserve(hold)
        store.settle(make_entry(), [make_posting(key, 4)], reservation_id=hold.reservation_id)
        swept = store.settle(
            make_entry(), [make_posting(key, 9)], reservation_id=hold.reservation_id, only_if_held=True
        )
        assert not swept.recorded
        assert store.counters([key]) == {key: Counter(4, 0)}
        assert one(store, noon)[0].requests == 1

    def test_a_new_window_is_a_new_counter(self, store, make_hold, make_key):
        store.reserve(make_hold((make_key(start=0), 10, 10)))
        store.reserve(make_hold((make_key(start=1), 10, 10)))
        assert store.counters([make_key(start=1)])[make_key(start=1)].reserved == 10


class TestCounters:
    def test_a_counter_that_never_moved_is_zero(self, store, make_key):
        assert store.counters([make_key()]) == {make_key(): Counter(0, 0)}

    def test_all_counters_come_in_key_order(self, store, make_entry, make_key, make_posting):
        keys = [make_key(f"b{index % 3}", f"member={index:04d}", index) for index in range(1100)]
        store.settle(make_entry(), [make_posting(key, 1) for key in keys])
        assert [key for key, counter in store.all_counters()] == sorted(keys)

    def test_a_recount_says_what_there_is_and_leaves_what_is_held(
        self, store, make_entry, make_key, make_posting, make_hold
    ):
        key = make_key()
        store.settle(make_entry(), [make_posting(key, 5)])
        store.reserve(make_hold((key, None, 2)))
        for amount in (1, 10**19):
            store.recount(lambda amount=amount: {key: (amount, None), make_key("new"): (2, None)})
        assert store.counters([key, make_key("new")]) == {key: Counter(10**19, 2), make_key("new"): Counter(2, 0)}

    def test_a_threshold_is_reported_once_per_window(self, store, make_entry, make_key, make_posting):
        def crossed(key, amount):
            settlement = store.settle(make_entry(), [make_posting(key, amount, 50, 80, 100)])
            return [(crossing.threshold, crossing.settled) for crossing in settlement.crossings]

        key = make_key()
        assert crossed(key, 49) == []
        assert crossed(key, 1) == [(50, 50)]
        assert crossed(key, 60) == [(80, 110), (100, 110)]
        assert crossed(key, -90) == []
        assert crossed(key, 90) == []
        assert crossed(make_key(start=1), 90) == [(50, 90), (80, 90)]

    def test_a_repetition_crosses_nothing(self, store, make_entry, make_key, make_posting):
        entry = make_entry()
        store.settle(entry)
        assert store.settle(entry, [make_posting(make_key(), 100, 50)]).crossings == ()


class TestSums:
    def test_nothing_in_a_stretch_gives_no_groups(self, store, noon):
        assert list(one(store, noon)) == []

    def test_count_requests_errors_doubts_and_quantities(self, store, make_entry, make_charge, noon):
        store.settle(make_entry())
        store.settle(make_entry(charges=(), usage=Usage(), status="error", cost_source="none"))
        store.settle(make_entry(flags=("estimated",), cost_source="estimated"))
        store.settle(
            make_entry(charges=(make_charge("input", 5), make_charge("images", 1, None)), cost_source="unpriced")
        )
        (total,) = one(store, noon)
        assert (total.requests, total.errors, total.estimated, total.unpriced) == (4, 1, 1, 1)
        assert total.quantities == {"input": 2005, "output": 400, "images": 1}
        assert total.reasoning_output_tokens == 150
        assert total.billed_cost == 2 * Decimal("0.00325") + Decimal("0.00000625")

    def test_corrections_add_cost_only(self, store, make_entry, make_charge, noon):
        store.settle(make_entry())
        store.settle(make_entry(kind="correction", charges=(make_charge("input", 1000, "-0.00000025"),)))
        store.settle(make_entry(kind="adjustment", charges=(), usage=Usage(), billed_cost=Decimal(-1)))
        (total,) = one(store, noon)
        assert (total.requests, total.quantities) == (1, {"input": 1000, "output": 200})
        assert total.billed_cost == Decimal("0.00325") - Decimal("0.00025") - 1
        by_meter = {a.group[0]: a for a in one(store, noon, ["sku_meter"])}
        assert (by_meter[None].billed_cost, by_meter[None].requests) == (Decimal(-1), 0)

    def test_a_correction_takes_back_that_its_entry_had_no_price(self, store, make_entry, make_charge, noon):
        store.settle(make_entry())
        store.settle(make_entry(charges=(make_charge("images", 2, None),), cost_source="unpriced"))
        pair = (make_charge("images", -2, None), make_charge("images", 2, "0.04"))
        store.settle(make_entry(kind="correction", charges=pair, billed_cost=Decimal("0.08")))
        assert [(total.requests, total.unpriced) for total in one(store, noon)] == [(2, 0)]
        assert {total.group: total.unpriced for total in one(store, noon, ["sku_meter"])}["images",] == 0
        apart = {total.group: (total.requests, total.unpriced) for total in one(store, noon, ["cost_source"])}
        assert apart == {("computed",): (1, -1), ("unpriced",): (1, 1)}  # the correction is a computed one
        assert store.verify().ok

    @pytest.mark.parametrize("corrected", [False, True])
    @pytest.mark.parametrize(
        "by", [(), ("model",), ("sku_meter",), ("end_user",), ("tag:env",), ("cost_source",)], ids=str
    )
    def test_an_entry_and_what_takes_it_back_come_to_nothing(self, store, make_entry, make_charge, noon, by, corrected):
        whose = {"end_user": "u1", "tags": {"env": "prod"}}
        charges = (make_charge("input", 1000), make_charge("seconds_audio", Decimal("1.5"), None))
        times = {"latency_us": 2_000_000, "first_token_us": 500_000}
        estimate = make_entry(
            charges=charges, cost_source="unpriced", status="aborted", flags=("estimated",), **whose, **times
        )
        pair = (
            make_charge("seconds_audio", Decimal("-1.5"), None),
            make_charge("seconds_audio", Decimal("1.5"), "2", price_id="p"),
        )
        priced = make_entry(
            kind="correction", charges=pair, usage=Usage(), corrects=estimate.entry_id, cost_source="computed", **whose
        )
        recorded = [estimate, priced] if corrected else [estimate]
        for entry in (*recorded, reversal(estimate, recorded[1:]), make_entry(**whose)):
            assert store.settle(entry).recorded
        assert not store.settle(reversal(estimate, recorded[1:])).recorded, "once"
        sums = one(store, noon, by)
        # By meter a request counts with each of its two; the whole answer alone is left.
        assert sum(total.requests for total in sums) == (2 if "sku_meter" in by else 1)
        assert [sum(getattr(total, name) for total in sums) for name in ("errors", "estimated", "unpriced")] == [0] * 3
        used = Usage.total(Usage(total.quantities, total.reasoning_output_tokens) for total in sums)
        assert {meter: quantity for meter, quantity in used.quantities.items() if quantity} == {
            "input": 1000,
            "output": 200,
        }
        assert used.reasoning_output_tokens == 50
        assert sum(total.billed_cost for total in sums) == Decimal("0.00325")
        if "sku_meter" not in by:
            assert sum(one.duration.count for one in store.latencies([noon - DAY, noon + DAY], by)) == 1, (
                "a time is told once"
            )
        assert store.verify().ok

    @pytest.mark.parametrize("by", [(), ("end_user",), ("tag:env",), ("sku_meter",)], ids=str)
    def test_what_a_session_has_grown_by_counts_as_usage_and_as_no_request(
        self, store, make_entry, make_charge, noon, by
    ):
        whose = {"end_user": "u1", "tags": {"env": "prod"}}
        store.settle(make_entry(charges=(make_charge("input", 1000),), **whose))
        grown = make_entry(
            kind="growth", charges=(make_charge("input", 500),), cost_source="estimated", status="aborted", **whose
        )
        store.settle(grown)
        sums = one(store, noon, by)
        assert [sum(getattr(total, name) for total in sums) for name in ("requests", "errors", "estimated")] == [
            1,
            0,
            1,
        ]
        assert Usage.total(Usage(total.quantities) for total in sums) == Usage({"input": 1500})
        assert sum(total.billed_cost for total in sums) == Decimal("0.001875")
        assert store.verify().ok

    def test_by_meter_show_quantities_of_entries_without_a_price(self, store, make_entry, make_charge, noon):
        store.settle(make_entry(charges=(), usage=Usage({"input": 7, "output": 3}), cost_source="unpriced"))
        store.settle(
            make_entry(charges=(make_charge("input", 5), make_charge("images", 1, None)), cost_source="unpriced")
        )
        groups = {a.group[0]: (a.requests, a.unpriced, dict(a.quantities)) for a in one(store, noon, ["sku_meter"])}
        assert groups == {
            "input": (2, 1, {"input": 12}),
            "output": (1, 1, {"output": 3}),
            "images": (1, 1, {"images": 1}),
        }

    def test_group_by_what_was_set_and_by_what_was_not(self, store, make_entry, noon):
        store.settle(make_entry(member="ada", response_model="gpt-5-2025-08-07"))
        store.settle(make_entry(member="ada", api_key=ApiKey("cd" * 16, "1234")))
        store.settle(make_entry())
        found = [(a.group, a.requests) for a in one(store, noon, ["member", "model", "api_key"])]
        assert found == [
            (("ada", "gpt-5", "...1234"), 1),
            (("ada", "gpt-5-2025-08-07", "prod"), 1),
            ((None, "gpt-5", "prod"), 1),
        ]

    @pytest.mark.parametrize("dimension", ["end_user", "tag:env"])
    def test_reach_dimensions_that_no_series_keeps(self, store, make_entry, noon, dimension):
        store.settle(make_entry(end_user="a", tags={"env": "a"}, member="ada"))
        store.settle(make_entry(end_user="b", tags={"env": "b"}))
        store.settle(make_entry())
        assert [(a.group, a.requests) for a in one(store, noon, [dimension])] == [
            (("a",), 1),
            (("b",), 1),
            ((None,), 1),
        ]
        assert [a.group for a in one(store, noon, ["member"], {dimension: frozenset({"a"})})] == [("ada",)]

    @pytest.mark.parametrize(
        ("accepted", "requests", "cost"),
        [({"input"}, 2, "0.0025"), ({"input", "output"}, 2, "0.0065"), ({"images"}, 0, "0")],
    )
    def test_under_a_condition_on_meters_count_each_entry_once(self, store, make_entry, noon, accepted, requests, cost):
        store.settle(make_entry())
        store.settle(make_entry())
        found = one(store, noon, (), {"sku_meter": frozenset(accepted)})
        assert sum(a.requests for a in found) == requests
        assert sum(a.billed_cost for a in found) == Decimal(cost)

    def test_a_bucket_holds_its_start_and_not_its_end(self, store, make_entry, noon):
        edges = [noon, noon + timedelta(microseconds=1), noon + timedelta(minutes=15), noon + timedelta(days=2)]
        for edge in edges:
            store.settle(make_entry(occurred_at=edge))
        assert [(a.bucket, a.requests) for a in store.aggregate(edges, [])] == [(0, 1), (1, 1), (2, 1)]

    @pytest.mark.parametrize("by", [[], ["sku_meter"], ["tag:job"]], ids=["totals", "meters", "entries"])
    def test_a_question_about_all_time_finds_the_oldest_and_the_newest_month(self, store, make_entry, by):
        ages = [datetime(1970, 1, 1, tzinfo=UTC), datetime(8999, 12, 31, 23, tzinfo=UTC)]
        assert store.aggregate(ages, by) == []
        for when in (ages[0], datetime(2026, 11, 23, 12, 30, tzinfo=UTC), ages[1] - timedelta(minutes=1)):
            store.settle(make_entry(occurred_at=when))
        assert {a.requests for a in store.aggregate(ages, by)} == {3}

    @pytest.mark.parametrize("boundaries", [0, 1, 2, 3])
    def test_impossible_boundaries_are_refused(self, store, noon, boundaries):
        impossible = [[], [noon], [noon, noon - DAY], [noon.replace(tzinfo=None), noon]][boundaries]
        with pytest.raises(ConfigurationError):
            store.aggregate(impossible, [])

    def test_an_unknown_dimension_is_refused(self, store, noon):
        with pytest.raises(ConfigurationError, match="colour"):
            one(store, noon, ["colour"])


class TestCare:
    def test_a_sound_ledger_verifies(self, store, make_entry, make_hold, make_key, make_posting):
        assert store.verify().ok
        for index in range(5):
            store.settle(make_entry(member=str(index)), [make_posting(make_key(), 1)])
        store.reserve(make_hold((make_key(), None, 4)))
        verification = store.verify()
        assert (verification.ok, verification.entries) == (True, 5)
        assert verification.head

    def test_health_counts(self, store, make_entry, make_hold, make_key):
        store.settle(make_entry())
        store.reserve(make_hold((make_key(), None, 4)))
        facts = store.health().facts
        assert (facts["entries"], facts["pending_holds"]) == (1, 1)

    def test_the_secret_is_made_once(self, store):
        secret = store.secret()
        assert len(secret) == 32
        assert store.secret() == secret


def test_a_bill_that_two_wrote_down_at_once_is_one(store, make_entry, monkeypatch):
    """Neither saw the other's when it looked; the others of the same transaction are taken."""
    monkeypatch.setattr(store._book, "known", lambda *_: (set(), set()))
    for _ in range(2):
        store.append([(replace(make_entry(), dedup_key="bill-1"), ()), (make_entry(), ())])
        assert store.verify().ok
    assert sorted(entry.dedup_key is None for entry in store.entries()) == [False, True, True]


def test_what_is_recorded_is_followed_in_the_order_of_the_chain(store, make_entry, noon):
    store.append([(make_entry(member="ada"), ())])
    place, found = store.follow()
    assert (store.follow(place), found) == ((place, []), [])
    late = [replace(make_entry(member=f"m{n % 2}"), occurred_at=noon - timedelta(hours=n)) for n in range(1200)]
    store.append([(entry, ()) for entry in late])
    seen, before, only = [], place, []
    while (step := store.follow(place))[0] != place:
        place, some = step
        seen += some
    assert [entry.entry_id for entry in seen] == [entry.entry_id for entry in late]
    while (step := store.follow(before, EntryFilter(where={"member": frozenset({"m1"})})))[0] != before:
        before, some = step
        only += some
    assert [entry.entry_id for entry in only] == [entry.entry_id for entry in late[1::2]]


def test_a_tag_of_an_older_ledger_whose_name_ends_as_is_not_does_is_filtered_by_its_name(store, make_entry):
    of = {"entry_id": "a" * 32}, {"entry_id": "b" * 32}, {"entry_id": "c" * 32}
    tags = {"paid!": "yes"}, {"paid": "yes"}, {"paid!": "no"}
    for fields, each in zip(of, tags, strict=True):
        store.settle(make_entry(**fields, attribution=Attribution.as_filed({"member": " "}, each)))

    def found(where):
        which = EntryFilter(where=parse_where(where))
        return sorted(entry.entry_id[0] for entry in store.entries(which))

    assert found({condition_on("tag:paid!"): "yes"}) == ["a"]
    assert found({condition_on("tag:paid!", wanted=False): "yes"}) == ["b", "c"]
    assert found({"tag:paid!": "yes"}) == ["a", "c"]
    assert found({condition_on("tag:paid"): "yes"}) == ["b"]
    assert found(AccessScope((("tag:paid!", ("yes",)),)).where) == ["a"]
    assert found({"member": " "}) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "dimension", ["member", "tag:a", "tag:a!", "tag:a!!", "tag:a!=", "tag:a=", "tag:a!b", "tag:!="]
)
@pytest.mark.parametrize("wanted", [True, False])
def test_a_condition_says_one_thing_only(dimension, wanted):
    assert asked(condition_on(dimension, wanted=wanted)) == (dimension, wanted)
