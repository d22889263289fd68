"""A frozen dataclass of ours is the standard library's in everything that can be seen of it."""

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from typing import Any, ClassVar, get_type_hints

import pytest

from tokenmeter import values
from tokenmeter.attribution import Attribution
from tokenmeter.budgets import Budget
from tokenmeter.ledger import Entry


def no_tags() -> tuple[str, ...]:
    return ()


def declare(made_by: Callable[..., Any]) -> dict[str, Any]:
    """The same classes, each made by this decorator."""

    @made_by(frozen=True, slots=True)
    class Plain:
        """Two fields and a default."""

        name: str
        count: int = 1
        kind: ClassVar[str] = "plain"

        @property
        def doubled(self) -> int:
            return self.count * 2

    @made_by(frozen=True, slots=True, kw_only=True)
    class Keywords:
        name: str
        tags: tuple[str, ...] = dataclasses.field(default_factory=no_tags)
        parts: list[int] = dataclasses.field(default_factory=list)

    @made_by(frozen=True, slots=True)
    class Mixed:
        first: int
        named: int = dataclasses.field(kw_only=True)
        hidden: str = dataclasses.field(default="", repr=False, compare=False)
        unhashed: tuple[int, ...] = dataclasses.field(default=(), hash=False)

    @made_by(frozen=True, slots=True)
    class Checked:
        value: int

        def __post_init__(self) -> None:
            if self.value < 0:
                raise ValueError("not below zero")
            object.__setattr__(self, "value", int(self.value))

    @made_by(frozen=True, slots=True, repr=False)
    class Secret:
        word: str

    @made_by(frozen=True, slots=True)
    class Own:
        left: int
        right: int

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Own) and self.left == other.left

        def __hash__(self) -> int:
            return 7

    @made_by(frozen=True, slots=True)
    class Alike:  # noqa: PLW1641 - the decorator adds the hash
        left: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Alike)

    @made_by(frozen=True, slots=True)
    class Empty:
        pass

    @made_by(frozen=True, slots=True)
    class Heir(Plain):  # type: ignore[misc,valid-type]
        more: int = 2

    return {made.__name__: made for made in (Plain, Keywords, Mixed, Checked, Secret, Own, Alike, Empty, Heir)}


OURS, STANDARD = declare(values.dataclass), declare(dataclasses.dataclass)
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("Plain", ("a",), {}),
    ("Plain", ("a", 2), {}),
    ("Plain", (), {"count": 3, "name": "b"}),
    ("Plain", (), {}),
    ("Plain", ("a", 1, 2), {}),
    ("Plain", ("a",), {"other": 1}),
    ("Keywords", (), {"name": "a"}),
    ("Keywords", (), {"name": "a", "parts": [1]}),
    ("Keywords", ("a",), {}),
    ("Mixed", (1,), {"named": 2}),
    ("Mixed", (1,), {"named": 2, "hidden": "x", "unhashed": (1,)}),
    ("Mixed", (1,), {}),
    ("Checked", (3,), {}),
    ("Checked", (-3,), {}),
    ("Secret", ("word",), {}),
    ("Own", (1, 2), {}),
    ("Alike", (1,), {}),
    ("Empty", (), {}),
    ("Heir", ("a", 2, 3), {}),
]


def told(act: Callable[[], Any]) -> object:
    """What an act returns, or the error with its words (addresses of objects apart)."""
    try:
        return act()
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize(("name", "positional", "named"), CALLS)
def test_what_a_caller_sees_is_the_standard_librarys(name, positional, named):
    def look(classes: dict[str, Any]) -> list[object]:
        try:
            value = classes[name](*positional, **named)
        except Exception as error:
            return [type(error), str(error)]
        twin = classes[name](*positional, **named)
        first = next(iter(dataclasses.fields(value)), None)
        seen: list[object] = [
            value == twin,
            value != twin,
            value == "another",
            told(lambda: hash(value) == hash(twin)),
            told(lambda: dataclasses.asdict(value)),
            told(lambda: dataclasses.astuple(value)),
            copy.copy(value) == value,
            copy.deepcopy(value) == value,
        ]
        if first is not None:
            seen.append(told(lambda: setattr(value, first.name, 1)))
            seen.append(told(lambda: delattr(value, first.name)))
            seen.append(dataclasses.asdict(dataclasses.replace(value, **{first.name: 9})))
        if name != "Secret":
            seen.append(repr(value))
        return seen

    assert look(OURS) == look(STANDARD)


@pytest.mark.parametrize("name", OURS)
def test_a_class_says_of_itself_what_the_standard_librarys_does(name):
    ours, standard = OURS[name], STANDARD[name]
    assert str(inspect.signature(ours)) == str(inspect.signature(standard))
    assert get_type_hints(ours.__init__) == get_type_hints(standard.__init__)
    assert ours.__init__.__qualname__ == standard.__init__.__qualname__
    assert ours.__match_args__ == standard.__match_args__
    assert ours.__slots__ == standard.__slots__
    assert repr(ours.__dataclass_params__) == repr(standard.__dataclass_params__)
    assert [repr(field) for field in dataclasses.fields(ours)] == [
        repr(field) for field in dataclasses.fields(standard)
    ]
    assert (ours.__hash__ is None) == (standard.__hash__ is None)


def test_the_fields_of_one_class_are_not_another_classes():
    assert OURS["Plain"]("a") != STANDARD["Plain"]("a")
    assert OURS["Mixed"](1, named=2, hidden="x") == OURS["Mixed"](1, named=2, hidden="y")
    assert hash(OURS["Mixed"](1, named=2, unhashed=(1,))) == hash(OURS["Mixed"](1, named=2, unhashed=(2,)))


def test_an_attribute_that_is_no_field_is_refused():
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'unheard'"):
        OURS["Plain"]("a").unheard = 1


def test_a_value_that_holds_itself_is_shown():
    value = OURS["Keywords"](name="a")
    value.parts.append(value)
    assert repr(value).endswith("parts=[...])")


def test_a_subclass_of_a_users_may_have_fields_of_its_own():
    sub: Any = type("Sub", (OURS["Plain"],), {})
    value = sub("a")
    value.note = "mine"
    assert value.note == "mine"
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'name'"):
        value.name = "b"
    standard = dataclasses.dataclass(frozen=True)(
        type("More", (OURS["Plain"],), {"__annotations__": {"extra": int}, "extra": 0})
    )
    assert dataclasses.asdict(standard("a", 1, 2)) == {"name": "a", "count": 1, "extra": 2}


@pytest.mark.parametrize("value", [Attribution(member="ada"), Budget(member="*", limit_usd="10")])
def test_a_public_record_survives_pickling(value):
    assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301 - its own


def test_a_class_that_is_not_frozen_is_the_librarys():
    @values.dataclass(slots=True)
    class Open:
        count: int = 0

    value = Open()
    value.count = 3
    assert value == Open(3)
    assert Entry.__dataclass_params__.frozen  # type: ignore[attr-defined]
