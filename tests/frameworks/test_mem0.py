"""Mem0's clients are wrapped: what remembering and recalling use is what is recorded."""

from __future__ import annotations

import asyncio
import json

import pytest

import tokenmeter


@pytest.fixture
def make_memory(configured, tmp_path, monkeypatch):
    """Makes a memory that is metered; its modules read the environment when they are imported."""
    monkeypatch.setenv("MEM0_DIR", str(tmp_path))
    monkeypatch.setenv("MEM0_TELEMETRY", "False")
    import mem0

    def make(kind="Memory", *, metered=True):
        store = {"provider": "qdrant", "config": {"path": str(tmp_path / f"vectors-{metered}")}}
        history = str(tmp_path / f"history-{metered}.db")
        memory = getattr(mem0, kind).from_config({"vector_store": store, "history_db_path": history})
        if metered:
            tokenmeter.wrap(memory.llm.client)
            tokenmeter.wrap(memory.embedding_model.client)
        return memory

    return make


def say(books, *facts):
    found = [{"id": str(number), "text": fact} for number, fact in enumerate(facts)]
    books.provider.answer(json.dumps({"memory": found}), path="*/chat/completions")


def test_remembering_and_recalling_agree_with_the_providers_books(make_memory, books):
    memory = make_memory()
    say(books, "Ada lives in London", "Ada is 36")
    with tokenmeter.attribute(member="ada"):
        memory.add("I live in London.", user_id="ada")
        found = memory.search("Ada lives in London", filters={"user_id": "ada"})
    assert "Ada lives in London" in [each["memory"] for each in found["results"]]
    calls = len(books.provider.billed)
    assert calls >= 4
    books.agree(calls=calls)
    assert books.by_member() == {"ada": calls}
    memory.close()


async def test_the_async_memory_keeps_attribution_in_its_threads(make_memory, books):
    memory = make_memory("AsyncMemory")

    async def remember(member):
        with tokenmeter.attribute(member=member) as scope:
            await memory.add(f"I am {member}", user_id=member, infer=False)
            await memory.search("Who?", filters={"user_id": member})
        return scope.requests

    counts = await asyncio.gather(remember("ada"), remember("grace"))
    books.agree(calls=sum(counts))
    assert books.by_member() == {"ada": counts[0], "grace": counts[1]}


def test_a_budget_stop_is_the_cause_of_its_error(make_memory, one_call_left):
    from mem0.exceptions import LLMError

    memory = make_memory()
    with pytest.raises(LLMError) as stop:  # looking for what it knows already was the one call
        memory.add("I live in London.", user_id="ada")
    assert isinstance(stop.value.__cause__, tokenmeter.BudgetExceededError)
    with pytest.raises(tokenmeter.BudgetExceededError):
        memory.search("Where?", filters={"user_id": "ada"})
    assert len(one_call_left.provider.requests) == 1
    memory.close()


def test_memories_are_those_with_the_plain_client(make_memory, books):
    remembered = []
    for metered in (False, True):
        memory = make_memory(metered=metered)
        say(books, "Ada lives in London")
        memory.add("I live in London.", user_id="ada")
        remembered.append([each["memory"] for each in memory.get_all(filters={"user_id": "ada"})["results"]])
        memory.close()
    assert remembered[0] == remembered[1] == ["Ada lives in London"]
