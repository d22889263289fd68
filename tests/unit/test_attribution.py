"""Attribution: scopes nest, restore, and travel the way Python's contexts do."""

from __future__ import annotations

import asyncio
import contextvars
import pickle
import threading
from decimal import Decimal

import pytest

from interrupting import ROOT, interrupted_at
from tokenmeter.attribution import NOBODY, ApiKey, Attribution, attribute, current_attribution, current_scopes
from tokenmeter.errors import ConfigurationError
from tokenmeter.usage import Usage

ROUTE = Attribution(route="/job")


def test_outside_any_block_nobody_is_charged():
    assert current_attribution() is NOBODY
    assert current_scopes() == ()


def test_inner_block_keeps_what_it_does_not_name_and_gives_everything_back():
    with attribute(member="ada", team="search", tags={"a": "1", "b": "2"}):
        with attribute(member="grace", route="/chat", tags={"b": "3"}):
            assert current_attribution() == Attribution(
                member="grace", team="search", route="/chat", tags={"a": "1", "b": "3"}
            )
        assert current_attribution() == Attribution(member="ada", team="search", tags={"a": "1", "b": "2"})
    assert current_attribution() is NOBODY


def test_a_block_that_raises_restores_too():
    with pytest.raises(ZeroDivisionError), attribute(member="ada"):
        _ = 1 / 0
    assert current_attribution() is NOBODY


def test_decorated_functions_of_every_kind_run_inside_their_block():
    block = attribute(member="ada")

    @block
    def plain(x):
        return current_attribution().member, x

    @block
    async def coroutine(x):
        await asyncio.sleep(0)
        return current_attribution().member, x

    @block
    def generator():
        received = yield current_attribution().member
        yield current_attribution().member, received
        return "done"

    @block
    async def async_generator():
        yield current_attribution().member
        await asyncio.sleep(0)
        yield current_attribution().member

    assert plain(1) == ("ada", 1)
    assert asyncio.run(coroutine(2)) == ("ada", 2)

    running = generator()
    assert next(running) == "ada"
    assert current_attribution() is NOBODY, "a generator must not leak its block between items"
    assert running.send("hello") == ("ada", "hello")
    with pytest.raises(StopIteration) as stop:
        next(running)
    assert stop.value.value == "done"

    async def consume():
        return [(member, current_attribution().member) async for member in async_generator()]

    assert asyncio.run(consume()) == [("ada", None), ("ada", None)]
    assert plain.__name__ == "plain"


def test_methods_are_decorated_in_any_order_of_decorators():
    class Agent:
        @attribute(member="ada")
        @staticmethod
        def alone():
            return current_attribution().member

        @attribute(member="grace")
        @classmethod
        async def of_class(cls):
            return cls, current_attribution().member

        @property
        @attribute(member="lin")
        def held(self):
            return current_attribution().member

    assert (Agent.alone(), Agent().alone(), Agent().held) == ("ada", "ada", "lin")
    assert asyncio.run(Agent.of_class()) == (Agent, "grace")


def test_a_block_inside_a_decorated_generator_holds_from_item_to_item():
    @attribute(route="/job")
    def generator():
        with attribute(member="ada") as inner:
            yield current_attribution()
            yield current_attribution()
            assert len(current_scopes()) == 3
            assert current_scopes()[-1] is inner
        yield current_attribution()

    inside = Attribution(member="ada", route="/job")
    with attribute(team="search"):
        seen = [(item, current_attribution()) for item in generator()]
    assert [item for item, _ in seen] == [one.over(Attribution(team="search")) for one in (inside, inside, ROUTE)]
    assert {outside for _, outside in seen} == {Attribution(team="search")}


def test_a_thrown_exception_reaches_the_decorated_generator():
    @attribute(member="ada")
    def generator():
        try:
            yield 1
        except ValueError:
            yield current_attribution().member

    running = generator()
    next(running)
    assert running.throw(ValueError()) == "ada"
    running.close()


def test_one_block_object_may_be_open_in_many_tasks_at_once():
    block = attribute(member="ada")

    async def worker(delay):
        async with block as scope:
            await asyncio.sleep(delay)
            assert current_attribution().member == "ada"
            assert current_scopes() == (scope,)
        assert current_attribution() is NOBODY

    async def run():
        await asyncio.gather(*(worker(delay) for delay in (0.02, 0.0, 0.01)))

    asyncio.run(run())


def test_tasks_inherit_the_block_they_were_created_in():
    async def child():
        await asyncio.sleep(0.01)
        return current_attribution().member

    async def run():
        with attribute(member="ada"):
            task = asyncio.create_task(child())
        return await task

    assert asyncio.run(run()) == "ada"


def test_a_thread_starts_without_a_block_unless_its_context_is_copied():
    seen = {}

    def target(name):
        seen[name] = current_attribution().member

    with attribute(member="ada"):
        bare = threading.Thread(target=target, args=("bare",))
        copied = threading.Thread(target=contextvars.copy_context().run, args=(target, "copied"))
        for thread in (bare, copied):
            thread.start()
            thread.join()
        assert asyncio.run(asyncio.to_thread(lambda: current_attribution().member)) == "ada"
    assert seen == {"bare": None, "copied": "ada"}


def test_closing_a_block_in_another_context_is_harmless():
    block = attribute(member="ada")
    contextvars.copy_context().run(block.__enter__)
    block.__exit__(None, None, None)
    assert current_attribution() is NOBODY


def test_a_scope_adds_up_what_settles_inside_it_and_counts_what_has_no_price():
    with attribute(member="ada") as scope:
        scope.add(Usage({"input": 3, "output": 1}), Decimal("0.1"), Decimal("0.105"), unpriced=False)
        scope.add(Usage({"input": 2}), None, None, unpriced=True)
    assert scope.usage.input_tokens == 5
    assert (scope.list_cost, scope.billed_cost) == (Decimal("0.1"), Decimal("0.105"))
    assert (scope.requests, scope.unpriced) == (2, 1)


def test_every_call_of_a_block_counts_once_whichever_line_of_the_counting_is_interrupted():
    """What is counted waits to be added up, which is done by whoever finds much waiting."""
    many, line, counted = 150, 0, 0
    place: str | None = "nowhere"

    def count():
        for _ in range(many):
            scope.count({"input": 2}, 1, 3, 5, unpriced=True)

    while place is not None:
        line += 1
        with attribute(member="ada") as scope:
            place = interrupted_at(line, count, within=f"{ROOT}/attribution.py")
            counted = scope.requests
            count()
            calls = counted + many
            assert scope.requests == scope.unpriced == calls
            assert scope.usage.quantities == {"input": 2 * calls}
            assert (scope.list_cost, scope.billed_cost) == (Decimal(3 * calls) / 10**12, Decimal(5 * calls) / 10**12)
    assert counted == many
    assert line > many


def test_threads_count_into_one_block_without_missing_or_doubling_any():
    with attribute(member="ada") as scope:
        threads = [
            threading.Thread(target=lambda: [scope.count({"input": 1}, 0, 1, 1, unpriced=False) for _ in range(3_000)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert scope.requests <= 12_000
        for thread in threads:
            thread.join()
        assert scope.requests == 12_000
        assert scope.usage.quantities == {"input": 12_000}


@pytest.mark.parametrize("bad", ["", 7, "x" * 513, "a\nb", "a\0b", "\ud800", "   ", "\u3000", "\u200b\ufeff"])
def test_a_value_that_no_report_could_show_is_refused_with_its_name(bad):
    with pytest.raises(ConfigurationError, match="member"):
        attribute(member=bad)


def test_a_tag_must_be_text_too():
    for value in (5, "  "):
        with pytest.raises(ConfigurationError, match="tag 'k'"):
            attribute(tags={"k": value})


@pytest.mark.parametrize("name", ["", "  ", "paid!"])
def test_a_tags_name_is_seen_and_reads_in_no_filter_as_is_not(name):
    with pytest.raises(ConfigurationError, match="a tag's name must"):
        attribute(tags={name: "yes"})


def test_what_an_older_ledger_holds_travels_and_is_merged_as_it_is():
    older = Attribution.as_filed({"member": "  "}, {"paid!": " "})
    assert (older.member, dict(older.tags)) == ("  ", {"paid!": " "})
    assert pickle.loads(pickle.dumps(older)) == older  # noqa: S301 - our own
    assert Attribution(team="a", tags={"env": "x"}).over(older).tags == {"env": "x", "paid!": " "}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: attribute("ada"), r"attribute\(member='ada'\).*not 'ada'"),
        (lambda: attribute({"member": "ada"}), r"attribute\(member='ada'\)"),
        (lambda: attribute(lambda: 1), r"@attribute\(route='/ask'\)"),
        (lambda: attribute(tags="b"), "tags must be a mapping.*not 'b'"),
        (lambda: attribute(tags=[("experiment", "b")]), "tags must be a mapping"),
        (lambda: attribute(member="ada")(type("Agent", (), {})), "on each method"),
        (lambda: attribute(member="ada")(property(lambda self: 1)), "below @property"),
    ],
    ids=["a name", "a mapping", "a bare decorator", "a tag", "pairs", "a class", "a property"],
)
def test_what_cannot_be_attributed_to_is_refused_with_the_mend(wrong, said):
    with pytest.raises(ConfigurationError, match=said):
        wrong()


def test_names_in_any_script_are_fine():
    assert attribute(member="Ада Лавлейс 👩‍💻", tags={"部門": "検索"})


def test_attributions_are_values():
    one = Attribution(member="ada", tags={"b": "2", "a": "1"})
    assert one == Attribution(member="ada", tags={"a": "1", "b": "2"})
    assert hash(one) == hash(pickle.loads(pickle.dumps(one)))  # noqa: S301 - our own bytes
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301 - our own bytes


def test_an_api_key_is_known_by_fingerprint_and_never_by_its_text():
    key = ApiKey.identify("sk-proj-abcdefgh-1234", secret=b"s" * 32)
    assert key.last4 == "1234"
    assert "abcdefgh" not in repr(key)
    assert key.label == "...1234"
    assert key.fingerprint != ApiKey.identify("sk-proj-abcdefgh-1234", secret=b"t" * 32).fingerprint
    assert ApiKey.identify("sk-proj-abcdefgh-1234", secret=b"s" * 32, alias="prod").label == "prod"


def test_any_text_is_identified_as_a_key():
    assert ApiKey.identify("half a letter \ud800", secret=b"s" * 32).last4 == "er \ud800"[-4:]


def test_a_short_key_shows_nothing_of_itself():
    assert ApiKey.identify("secret", secret=b"s" * 32).last4 == ""
