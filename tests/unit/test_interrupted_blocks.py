"""An interrupt at any line of a block's beginning or end: what is open afterwards is what was open before."""

from __future__ import annotations

import pytest

import tokenmeter
from interrupting import interrupted_at
from tokenmeter.attribution import attribute, current_scopes

#: They have a ``with`` of their own: between its last line and the call of ``__exit__`` only a tracer can come.
RUNNERS = {"_call", "_await", "_iterate", "_iterate_async"}
BLOCKS = [attribute(member="grace"), tokenmeter.budget(limit_usd=1, name="a run")]


def enter_once(block):
    def call():
        with block:
            pass

    return call


def enter_async(block):
    async def call():
        async with block:
            pass

    def run():  # without a loop: its task would have a context of its own
        with pytest.raises(StopIteration):
            call().send(None)

    return run


def decorate(block):
    return block(lambda: None)


def iterate(block):
    @block
    def items():
        with attribute(route="/inside"):
            yield 1
            yield 2

    return lambda: list(items())


def iterate_async(block):
    @block
    async def items():
        with attribute(route="/inside"):
            yield 1

    async def take():
        async for _ in items():
            pass

    def run():
        with pytest.raises(StopIteration):
            take().send(None)

    return run


def carry(block):
    with block:
        return tokenmeter.carry(lambda: None)


@pytest.mark.parametrize("block", BLOCKS, ids=["attribute", "budget"])
@pytest.mark.parametrize("way", [enter_once, enter_async, decorate, iterate, iterate_async, carry])
def test_what_was_open_before_is_open_afterwards(way, block):
    with attribute(member="ada"):
        before, number = current_scopes(), 1
        call = way(block)
        while (place := interrupted_at(number, call, without=RUNNERS)) is not None:
            assert current_scopes() == before, place
            number += 1
        assert number > 5, "it was not interrupted at all"
    assert current_scopes() == ()
