"""FakeProvider fills the schema of a structured answer with a value that its model takes."""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import json
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import (
    UUID1,
    UUID5,
    AnyUrl,
    AwareDatetime,
    BaseModel,
    Field,
    HttpUrl,
    Json,
    create_model,
)

from tokenmeter.testing import FakeProvider
from tokenmeter.testing.context import RefusalError
from tokenmeter.testing.samples import sample_arguments


class Step(BaseModel):
    value: str
    next: Step | None


class Tree(BaseModel):
    name: str
    children: list[Tree]


class Branch(BaseModel):
    kind: Literal["branch"]
    left: Node
    right: Node


class Leaf(BaseModel):
    kind: Literal["leaf"]
    grown: Plant | None


Node = Annotated[Branch | Leaf, Field(discriminator="kind")]


class Plant(BaseModel):
    root: Node
    by_name: dict[str, Plant]


class Person(BaseModel):
    friend: Friend


class Friend(BaseModel):
    of: Person | None
    others: list[Person]


for model in (Branch, Leaf, Plant, Person, Step, Tree):
    model.model_rebuild()


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


RECURSIVE = [Step, Tree, Branch, Plant, Person, Friend]
#: Types that every SDK hands on as they are.
PLAIN: dict[str, Any] = {
    "a moment": dt.datetime,
    "a moment with its zone": AwareDatetime,
    "a day": dt.date,
    "a time": dt.time,
    "a span": dt.timedelta,
    "an id": uuid.UUID,
    "an address": ipaddress.IPv4Address,
    "a longer address": ipaddress.IPv6Address,
    "an enum": Color,
    "a choice": Literal["b", "a"],
    "one of two": int | str,
    "perhaps": int | None,
    "a list": list[dt.date],
    "nothing": None,
    "a flag": bool,
    "a link": AnyUrl,
}
#: Types whose bounds stand in the schema.
BOUND: dict[str, Any] = {
    "an id by time": UUID1,
    "an id by name": UUID5,
    "a page": HttpUrl,
    "a network": ipaddress.IPv4Network,
    "an interface": ipaddress.IPv6Interface,
    "JSON in a text": Json[list[int]],
    "bytes": bytes,
    "more than": Annotated[float, Field(gt=1, le=5)],
    "between 0 and 1": Annotated[float, Field(gt=0, lt=1)],
    "a narrow place": Annotated[float, Field(gt=0.25, lt=0.5)],
    "just one number": Annotated[float, Field(ge=0.5, le=0.5)],
    "below nothing": Annotated[float, Field(lt=0)],
    "at most": Annotated[int, Field(le=-3)],
    "at least": Annotated[float, Field(ge=2.5)],
    "steps": Annotated[int, Field(gt=7, multiple_of=5)],
    "steps down": Annotated[int, Field(lt=-7, multiple_of=5)],
    "cents": Annotated[float, Field(gt=1, multiple_of=0.25)],
    "an amount": Annotated[Decimal, Field(gt=0, max_digits=5, decimal_places=2)],
    "a plate": Annotated[str, Field(pattern="^[A-Z]{3}[0-9]{3}$")],
    "a month": Annotated[str, Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")],
    "a slug": Annotated[str, Field(pattern=r"^[a-z0-9]+(?:-[a-z0-9]+)*$", min_length=9, max_length=12)],
    "no digits": Annotated[str, Field(pattern=r"^[^\d\s]+\S\D\W\w$")],
    "somewhere": Annotated[str, Field(pattern="ab?c", min_length=8)],
    "a long text": Annotated[str, Field(min_length=40)],
    "an empty text": Annotated[str, Field(max_length=0)],
    "some": Annotated[list[int], Field(min_length=3, max_length=4)],
    "none": Annotated[list[int], Field(max_length=0)],
    "different ones": Annotated[set[int], Field(min_length=3)],
    "different days": Annotated[set[dt.date], Field(min_length=3)],
    "different ids": Annotated[set[uuid.UUID], Field(min_length=3)],
    "different links": Annotated[set[HttpUrl], Field(min_length=2)],
    "different steps": Annotated[set[Annotated[int, Field(le=9, multiple_of=3)]], Field(min_length=3)],
    "different parts": Annotated[set[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=3)],
    "different plates": Annotated[set[Annotated[str, Field(pattern="^[A-Z]{2}$")]], Field(min_length=3)],
    "each color": Annotated[set[Color], Field(min_length=2)],
    "both": Annotated[set[bool], Field(min_length=2)],
    "a pair": tuple[int, str],
    "pairs": list[tuple[dt.date, int]],
    "by name": dict[str, int],
    "two by name": Annotated[dict[str, dt.date], Field(min_length=2)],
    "by a pattern": Annotated[dict[Annotated[str, Field(pattern="^k[0-9]$")], int], Field(min_length=2)],
    "a default": Annotated[int, Field(default=7, gt=5)],
}


def model_of(kind: Any) -> type[BaseModel]:
    return create_model("Answer", value=(kind, ...))


@pytest.mark.parametrize("model", RECURSIVE, ids=lambda model: model.__name__)
def test_a_schema_that_leads_to_itself_is_filled_to_an_end(model):
    model.model_validate(sample_arguments(model.model_json_schema()))
    several = model_of(dict[str, list[model]])  # type: ignore[valid-type]
    several.model_validate(sample_arguments(several.model_json_schema()))


@pytest.mark.parametrize("kind", [*PLAIN.values(), *BOUND.values()], ids=[*PLAIN, *BOUND])
def test_a_sample_is_what_its_type_takes(kind):
    model = model_of(kind)
    model.model_validate_json(json.dumps(sample_arguments(model.model_json_schema())))


@pytest.fixture(scope="module")
def provider():
    with FakeProvider() as started:
        yield started


EVERY = [*RECURSIVE, *(model_of(kind) for kind in PLAIN.values())]
NAMES = [*(model.__name__ for model in RECURSIVE), *PLAIN]


@pytest.mark.parametrize("model", EVERY, ids=NAMES)
def test_openais_sdk_parses_it(provider, model):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=provider.openai_url, api_key="test", max_retries=0) as client:
        asked = [{"role": "user", "content": "x"}]
        answer = client.chat.completions.parse(model="gpt-5-mini", messages=asked, response_format=model)
        assert isinstance(answer.choices[0].message.parsed, model)
        said = client.responses.parse(model="gpt-5-mini", input="x", text_format=model)
        assert isinstance(said.output_parsed, model)


@pytest.mark.parametrize("model", EVERY, ids=NAMES)
def test_anthropics_sdk_parses_it(provider, model):
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(base_url=provider.anthropic_url, api_key="test", max_retries=0) as client:
        asked = [{"role": "user", "content": "x"}]
        answer = client.messages.parse(model="claude-sonnet-5", max_tokens=99, messages=asked, output_format=model)
        assert isinstance(answer.parsed_output, model)


def test_googles_sdk_parses_it(provider):
    genai = pytest.importorskip("google.genai")

    class Answer(BaseModel):
        at: dt.datetime
        count: Annotated[int, Field(ge=5)]
        names: Annotated[list[str], Field(min_length=2)]
        min_items: int | None

    client = genai.Client(api_key="test", http_options={"base_url": provider.google_url})
    asked = {"model": "gemini-2.5-pro", "contents": "x"}
    form = {"response_mime_type": "application/json"}
    answer = client.models.generate_content(**asked, config={**form, "response_schema": Answer})
    assert isinstance(answer.parsed, Answer)
    tree = client.models.generate_content(**asked, config={**form, "response_json_schema": Tree.model_json_schema()})
    assert Tree.model_validate_json(tree.text) == Tree(name="x", children=[])
    client.close()


@pytest.mark.parametrize("name", BOUND)
def test_openais_sdk_parses_what_has_bounds(provider, name):
    openai = pytest.importorskip("openai")
    model = model_of(BOUND[name])
    with openai.OpenAI(base_url=provider.openai_url, api_key="test", max_retries=0) as client:
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": model.model_json_schema()}}
        asked = [{"role": "user", "content": "x"}]
        answer = client.chat.completions.create(model="gpt-5-mini", messages=asked, response_format=form)
        model.model_validate_json(answer.choices[0].message.content)


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"type": "string", "pattern": "^(?=a)b$"}, r"pattern '\^\(\?=a\)b\$'"),
        ({"type": "string", "pattern": r"\p{L}"}, "pattern"),
        ({"type": "integer", "exclusiveMinimum": 1, "maximum": 1}, "exclusiveMinimum 1 beside maximum 1"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems 3 beside maxItems 2"),
        ({"type": "array", "minItems": 3, "uniqueItems": True, "items": {"type": "boolean"}}, "uniqueItems"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength 3 beside maxLength 2"),
        ({"$ref": "#/$defs/Missing"}, "#/\\$defs/Missing"),
        ({"properties": {"again": {"$ref": "#"}}, "required": ["again"]}, "leads to itself without an end"),
        ({"properties": {"never": False}, "required": ["never"]}, "a schema that is false"),
    ],
)
def test_what_no_value_fits_is_said(provider, schema, what):
    openai = pytest.importorskip("openai")
    with pytest.raises(RefusalError, match=what):
        sample_arguments(schema)
    with openai.OpenAI(base_url=provider.openai_url, api_key="test", max_retries=0) as client:
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        asked = [{"role": "user", "content": "x"}]
        with pytest.raises(openai.BadRequestError, match=r"cannot fill .*say the answer yourself"):
            client.chat.completions.create(model="gpt-5-mini", messages=asked, response_format=form)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "number", "minimum": 1, "exclusiveMinimum": True}, 2),
        ({"type": ["string", "null"]}, "x"),
        ({"allOf": [{"required": ["a"]}, {"properties": {"a": {"type": "integer"}}}]}, {"a": 1}),
        ({"anyOf": [{"type": "integer", "minimum": 2, "maximum": 1}, {"type": "null"}]}, None),
        ({"enum": ["b", "a"], "default": "a"}, "a"),
        ({"type": "array", "items": False, "prefixItems": [{"const": 5}]}, [5]),
        ({"type": "array", "contains": {"const": 5}}, [5]),
        ({"minItems": "2", "items": {"type": "integer"}}, [1, 1]),
        (True, "x"),
    ],
)
def test_other_words_of_json_schema_are_read(schema, value):
    assert sample_arguments(schema) == value
