"""Attribution reaches threads, pools, other processes and other services; a block that did not reach says so."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenmeter
from tokenmeter.attribution import NOBODY, Attribution, attribute, current_attribution, current_scopes, scopes_of_call
from tokenmeter.carrying import CarryingExecutor, RequestFields, carry, from_headers, to_headers
from tokenmeter.errors import ConfigurationError
from tokenmeter.texts import is_blank


def member():
    return current_attribution().member


class TestCarry:
    def test_a_bare_thread_calls_on_the_account_of_the_block_it_was_started_in(self):
        found = []
        with attribute(member="ada"):
            thread = threading.Thread(target=carry(lambda: found.append(member())))
        thread.start()
        thread.join()
        assert found == ["ada"]

    def test_it_takes_the_attribution_of_the_moment_and_hides_what_is_open_where_it_runs(self):
        with attribute(member="ada", route="/a"):
            carried = carry(current_attribution)
        with attribute(member="grace", team="search"):
            assert carried() == Attribution(member="ada", route="/a")
            assert member() == "grace"

    def test_carried_from_outside_of_every_block_it_runs_outside_of_every_block(self):
        carried = carry(current_attribution)
        with attribute(member="grace"):
            assert carried() is NOBODY

    async def test_run_in_executor(self):
        loop = asyncio.get_running_loop()
        with attribute(member="ada"):
            assert await loop.run_in_executor(None, carry(member)) == "ada"
            assert await loop.run_in_executor(None, member) is None

    async def test_functions_of_every_kind_are_carried_as_what_they_are(self):
        async def coroutine():
            await asyncio.sleep(0)
            return member()

        def generator():
            yield member()
            yield member()

        async def async_generator():
            yield member()
            await asyncio.sleep(0)
            yield member()

        class Job:
            async def __call__(self):
                return member()

        with attribute(member="ada"):
            carried = [carry(function) for function in (coroutine, generator, async_generator, Job())]
        assert inspect.iscoroutinefunction(carried[0])
        assert inspect.isgeneratorfunction(carried[1])
        assert inspect.isasyncgenfunction(carried[2])
        assert await carried[0]() == "ada"
        assert list(carried[1]()) == ["ada", "ada"]
        assert [item async for item in carried[2]()] == ["ada", "ada"]
        assert await carried[3]() == "ada"
        assert member() is None

    def test_it_keeps_name_and_signature(self):
        def summarise(text: str, *, words: int = 10) -> str:
            """Shorter."""
            return text[:words]

        carried = carry(summarise)
        assert carried.__name__ == "summarise"
        assert carried.__doc__ == "Shorter."
        assert inspect.signature(carried) == inspect.signature(summarise)
        assert carried("abcdef", words=2) == "ab"

    def test_what_is_no_function_is_refused_with_the_mend(self):
        with pytest.raises(ConfigurationError, match="pass the function itself"):
            carry(x for x in "abc")

    def test_a_block_counts_what_it_carried_away_even_after_its_end(self):
        with attribute(member="ada") as scope:
            carried = carry(current_scopes)
        assert carried() == (scope,)

    def test_it_leaves_nothing_in_the_thread_that_ran_it(self):
        """A pool's thread goes on to others' work: a block of the carried function, open or closed, must not stay."""

        def with_a_block():
            with attribute(route="/job"):
                return member()

        def without_an_end():
            attribute(route="/job").__enter__()

        with attribute(member="ada"):
            carried = [carry(with_a_block), carry(attribute(route="/job")(member)), carry(without_an_end)]
        with ThreadPoolExecutor(1) as pool:
            for function in carried:
                pool.submit(function).result()
                assert pool.submit(current_attribution).result() is NOBODY

    async def test_a_block_of_a_carried_generator_holds_from_item_to_item_and_for_nobody_else(self):
        def generator():
            with attribute(route="/job") as scope:
                yield current_attribution()
                scope.refine(Attribution(team="search"))
                yield current_attribution()
            yield current_attribution()

        async def async_generator():
            with attribute(route="/job"):
                yield current_attribution()
                await asyncio.sleep(0)
                yield current_attribution()

        inside = Attribution(member="ada", route="/job")
        with attribute(member="ada"):
            carried, carried_async = carry(generator), carry(async_generator)
        seen = [(item, current_attribution()) for item in carried()]
        assert [item for item, _ in seen] == [
            inside,
            inside.over(Attribution(team="search")),
            Attribution(member="ada"),
        ]
        assert {outside for _, outside in seen} == {NOBODY}
        assert [(item, current_attribution()) async for item in carried_async()] == [(inside, NOBODY)] * 2


class TestCarryingExecutor:
    def test_submit_and_map_take_the_attribution_of_their_moment(self):
        with CarryingExecutor(ThreadPoolExecutor(2)) as pool:
            with attribute(member="ada"):
                first = pool.submit(member)
            with attribute(member="grace"):
                rest = pool.map(lambda _: member(), range(3))
            assert (first.result(), *rest) == ("ada", "grace", "grace", "grace")
            assert pool.submit(member).result() is None

    def test_a_process_pool_attributes_too(self):
        workers = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        with CarryingExecutor(workers) as pool, attribute(member="ada", tags={"run": "7"}), attribute(route="/a"):
            attributed = pool.submit(current_attribution).result()
        assert attributed == Attribution(member="ada", route="/a", tags={"run": "7"})

    def test_an_event_loop_takes_it(self):
        async def main():
            with CarryingExecutor(ThreadPoolExecutor(1)) as pool, attribute(member="ada"):
                return await asyncio.get_running_loop().run_in_executor(pool, member)

        assert asyncio.run(main()) == "ada"


anything = st.text(st.characters(blacklist_categories=("Cc", "Cs")), min_size=1, max_size=40)
texts = anything.filter(lambda text: not is_blank(text))
tags = texts.filter(lambda text: not text.endswith("!"))


class TestHeaders:
    @given(st.builds(Attribution, member=st.none() | texts, route=st.none() | texts,
                     tags=st.dictionaries(tags, texts, max_size=5)))  # fmt: skip
    def test_there_and_back(self, attribution):
        headers = to_headers(attribution=attribution)
        assert from_headers(headers) == attribution
        assert all(value.isascii() and value.isprintable() for value in headers.values())

    def test_the_present_attribution_is_sent_beside_what_others_put_there(self):
        with attribute(member="ada", route="/sum up"):
            headers = to_headers({"Baggage": "userId=1;private, tokenmeter.member=old", "Accept": "*/*"})
        assert headers == {
            "Baggage": "userId=1;private,tokenmeter.member=ada,tokenmeter.route=%2Fsum%20up",
            "Accept": "*/*",
        }

    def test_nobody_sends_nothing(self):
        assert to_headers() == {}

    @pytest.mark.parametrize("baggage", [
        "", "tokenmeter.member", "tokenmeter.member=", "tokenmeter.=x", "tokenmeter.nonsense=x", "member=ada", ",,=,",
        "tokenmeter.member=%00", f"tokenmeter.member={'x' * 513}", "tokenmeter.tag.=x", "tokenmeter.api_key=x",
        "tokenmeter.member=%20%20", "tokenmeter.tag.a!=x", "tokenmeter.tag.%20=x",
    ])  # fmt: skip
    def test_what_cannot_be_read_is_passed_over(self, baggage):
        assert from_headers({"baggage": f"{baggage},tokenmeter.team=search"}) == Attribution(team="search")

    def test_properties_are_left_out_and_bytes_are_read(self):
        assert from_headers({"baggage": b"tokenmeter.member = ada ;x=1"}) == Attribution(member="ada")

    def test_of_several_headers_of_that_name_all_are_read(self):
        class Headers(dict):
            def items(self):
                return [("baggage", "userId=1"), (b"Baggage", b"tokenmeter.member=ada"), ("accept", "*/*")]

        assert from_headers(Headers()) == Attribution(member="ada")

    def test_pairs_of_bytes_are_read_once_they_are_a_mapping(self):
        pairs = [(b"host", b"a"), (b"Baggage", b"tokenmeter.member=ada")]
        with pytest.raises(ConfigurationError, match=r"dict\("):
            from_headers(pairs)
        assert from_headers(dict(pairs)) == Attribution(member="ada")

    def test_what_does_not_fit_is_refused_with_the_mend(self):
        with pytest.raises(ConfigurationError, match="send fewer tags"):
            to_headers(attribution=Attribution(tags={str(number): "x" for number in range(65)}))

    def test_a_block_takes_what_came(self):
        with attribute(from_headers({"baggage": "tokenmeter.member=ada,tokenmeter.route=a"}), route="b"):
            assert current_attribution() == Attribution(member="ada", route="b")


class TestBlocksThatDidNotReach:
    @pytest.fixture(autouse=True)
    def heard(self, caplog, monkeypatch):
        monkeypatch.setattr("tokenmeter.running.STRAYS.told", set())
        monkeypatch.setattr("tokenmeter.running.STRAYS.empty", None)
        caplog.set_level(logging.WARNING, "tokenmeter")
        return caplog

    @staticmethod
    def call():
        scopes_of_call()

    def elsewhere(self):
        thread = threading.Thread(target=self.call, name="worker-7")
        thread.start()
        thread.join()

    def test_a_block_left_in_another_context_says_so_once_with_its_place(self, heard):
        for _ in range(3):
            block = attribute(member="ada")
            contextvars.copy_context().run(block.__enter__)
            block.__exit__(None, None, None)
        assert len(heard.messages) == 1
        assert "left in another context" in heard.text
        assert f"{__file__}:" in heard.text

    def test_what_is_said_of_a_generator_that_is_stepped_elsewhere_mends_it(self, heard):
        """Gradio and Starlette take each step of a streamed answer in a context of its own."""
        seen = []

        def with_a_block_inside():
            with attribute(member="ada"):
                seen.append(current_attribution().member)
                yield
                seen.append(current_attribution().member)

        @attribute(member="ada")
        def decorated():
            for _ in range(2):
                seen.append(current_attribution().member)
                yield

        for steps in (with_a_block_inside(), decorated()):
            for _ in range(3):
                contextvars.copy_context().run(next, steps, None)
        assert seen == ["ada", None, "ada", "ada"]
        assert len(heard.messages) == 1
        assert "decorate the generator function" in heard.text

    def test_calls_in_a_bare_thread_are_told_of_once_with_place_and_thread(self, heard):
        for _ in range(3):
            with attribute(member="ada"):
                self.elsewhere()
        assert len(heard.messages) == 1
        assert "tokenmeter.carry" in heard.text
        assert "worker-7" in heard.text
        assert f"{__file__}:" in heard.text

    def test_nothing_is_said_of_blocks_that_reached(self, heard):
        with attribute(member="ada"):
            self.call()
            self.elsewhere()
        with attribute(member="ada"), attribute(route="/a"):
            thread = threading.Thread(target=carry(self.call))
            thread.start()
            thread.join()
        with attribute(member="ada"):
            pass
        self.call()
        with ExitStack() as stack:
            stack.enter_context(attribute(member="ada"))
            stack.enter_context(attribute(route="/a"))
        assert heard.messages == []

    def test_nothing_is_said_of_a_server_thread_that_attributes_other_requests(self, heard):
        def serve():
            with attribute(route="/b"):
                self.call()
            self.call()

        with attribute(member="ada"):
            thread = threading.Thread(target=serve)
            thread.start()
            thread.join()
        assert heard.messages == []

    def test_nothing_is_said_of_a_generator_that_is_dropped(self, heard):
        def stream():
            with attribute(member="ada"):
                yield 1
                yield 2

        running = stream()
        contextvars.copy_context().run(next, running)
        running.close()
        assert heard.messages == []

    def test_a_block_whose_calls_come_after_its_end_says_so_once(self, heard):
        """A background task, a thread that goes on."""
        for _ in range(3):
            with attribute(member="ada"):
                pass
            self.elsewhere()
        assert heard.text.count("ended without a call, and soon after one was made") == 1
        assert "test_carrying.py" in heard.text
        assert f"(the call at {__file__}:" in heard.text

    def test_work_after_a_block_in_the_same_threads_of_a_server_is_noticed(self, heard):
        def request():
            with attribute(member="ada"):
                pass
            self.call()

        with ThreadPoolExecutor(1) as pool:
            pool.submit(request).result()
        assert "ended without a call" in heard.text

    async def test_a_task_after_its_block_is_noticed(self, heard):
        with attribute(member="ada"):
            pass
        self.call()
        assert "ended without a call" in heard.text

    def test_a_programs_own_next_line_is_no_stray(self, heard):
        with attribute(member="ada"):
            pass
        self.call()
        assert not heard.records

    @pytest.mark.parametrize("way", [lambda: carry(print), to_headers], ids=["carried", "sent on"])
    def test_a_block_that_handed_its_work_on_is_not_suspected(self, heard, way):
        with attribute(member="ada"):
            way()
        self.elsewhere()
        assert not heard.records

    def test_a_block_that_failed_before_its_call_is_not_suspected(self, heard):
        with pytest.raises(KeyError), attribute(member="ada"):
            raise KeyError
        self.elsewhere()
        assert not heard.records

    def test_a_call_long_after_is_not_laid_at_a_blocks_door(self, heard, monkeypatch):
        with attribute(member="ada"):
            pass
        monkeypatch.setattr("tokenmeter.attribution._SOON", -1)
        self.elsewhere()
        assert not heard.records


class TestRefine:
    def test_what_is_learnt_later_holds_in_inner_blocks_threads_and_tasks(self):
        found = []
        with attribute(route="/a", tags={"x": "1"}) as scope, attribute(team="search"):
            context = contextvars.copy_context()
            scope.refine(Attribution(member="ada", tags={"y": "2"}))
            thread = threading.Thread(target=context.run, args=(lambda: found.append(current_attribution()),))
            thread.start()
            thread.join()
            assert found == [current_attribution()]
        assert found == [Attribution(member="ada", team="search", route="/a", tags={"x": "1", "y": "2"})]


class TestRequestFields:
    @pytest.mark.parametrize(("body", "expected"), [
        ({"safety_identifier": "u1", "user": "u2"}, {"end_user": "u1"}),
        ({"user": "u2", "metadata": {"user_id": "u3"}}, {"end_user": "u2", "tags": {"user_id": "u3"}}),
        ({"metadata": {"user_id": "u3"}}, {"end_user": "u3", "tags": {"user_id": "u3"}}),
        ({"user": "", "metadata": "text"}, {"tags": {"metadata": "text"}}),
        ({"user": "x" * 513, "metadata": {"user_id": "ok\n", "n": 7, "": "x"}}, {}),
        ({"user": {"name": "x"}, "metadata": None}, {}),
        ({}, {}), (None, {}),
    ])  # fmt: skip
    def test_what_can_be_a_name_is_taken_and_the_rest_passed_over(self, body, expected):
        fields = RequestFields(["safety_identifier", "user", "metadata.user_id"], ["metadata"])
        assert fields.read(body) == Attribution(**expected)

    def test_calls_carry_what_their_requests_say_before_the_block_around(self, fake_provider):
        meter = tokenmeter.make_meter(
            store="memory:", config={}, end_user_from=["user", "metadata.user_id"], tags_from=["metadata.feature"]
        )
        client = tokenmeter.OpenAI(base_url=fake_provider.openai_url, api_key="sk-test")
        tokenmeter.wrap(client, meter)
        ask = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hi"}]}
        with tokenmeter.attribute(member="ada", end_user="block"):
            client.chat.completions.create(**ask, user="u1", metadata={"feature": "search"})
            client.chat.completions.create(**ask)
        first, second = (entry.attribution for entry in meter.entries())
        assert first == Attribution(member="ada", end_user="u1", tags={"feature": "search"})
        assert second == Attribution(member="ada", end_user="block")

    @pytest.mark.parametrize("setting", ["end_user_from", "tags_from"])
    @pytest.mark.parametrize("field", ["prompt", "input", "messages", "system", "contents.parts", "instructions"])
    def test_what_the_model_is_asked_is_never_taken_for_a_name(self, setting, field):
        with pytest.raises(ConfigurationError, match=f"{setting}: '{field}' is what the model is asked"):
            tokenmeter.make_meter(store="memory:", config={}, **{setting: ["user", field]})

    def test_by_default_nothing_is_taken(self, fake_provider):
        meter = tokenmeter.make_meter(store="memory:", config={})
        client = tokenmeter.wrap(tokenmeter.OpenAI(base_url=fake_provider.openai_url, api_key="sk-test"), meter)
        client.responses.create(model="gpt-5-mini", input="Hi", user="u1", metadata={"a": "b"})
        assert next(iter(meter.entries())).attribution == NOBODY
