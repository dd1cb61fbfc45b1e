from dataclasses import dataclass, field, fields

import pytest

from penjing.errors import RecipeError
from penjing.recipe import Recipe, recipe_schema
from penjing.recipe.schema import comments, instance, json_schema, keys
from penjing.search import Budget
from penjing.settings import Settings
from penjing.train import Freezing, Training


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner things."""

    rate: float = 1.0  # how fast; "#" is not a comment in here
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rate < 0:  # not a field
            raise RecipeError("rate is negative")


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Outer things.

    More about them.
    """

    count: int  # of all
    inner: Inner = field(default_factory=lambda: Inner(rate=3.0, names=("a",)))  # the inner
    maybe: Inner | None = None  # or not
    sure: bool = False  # on?
    either: float | str | None = None


def nowhere(_: tuple[str, ...]) -> str:
    return ""


def test_comments_are_those_at_the_fields() -> None:
    assert comments(Inner) == {"rate": 'how fast; "#" is not a comment in here'}
    assert comments(Outer) == {"count": "of all", "inner": "the inner", "maybe": "or not", "sure": "on?"}


def test_keys_are_those_of_all_sections() -> None:
    inner = [("inner",), ("inner", "rate"), ("inner", "names")]
    maybe = [("maybe",), ("maybe", "rate"), ("maybe", "names")]
    assert list(keys(Outer)) == [("count",), *inner, *maybe, ("sure",), ("either",)]


def test_what_is_not_given_is_as_in_the_section_above_it() -> None:
    assert instance(Outer, {"count": 2}, nowhere) == Outer(count=2)
    made = instance(Outer, {"count": 2, "inner": {"names": ["b", "c"]}, "maybe": {"names": []}, "either": 1}, nowhere)
    assert made == Outer(count=2, inner=Inner(rate=3.0, names=("b", "c")), maybe=Inner(), either=1)
    assert instance(Outer(count=5, sure=True), {"maybe": None}, nowhere) == Outer(count=5, sure=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "count is missing; give of all"),
        ({"count": "2"}, r"count is '2', which is not a valid integer \(of all\)"),
        ({"count": True}, "count is True, which is not a valid integer"),
        ({"count": 1.5}, "count is 1.5, which is not a valid integer"),
        ({"count": 1, "sure": "yes"}, "sure is 'yes', which is not a valid boolean"),
        ({"count": 1, "inner": 3}, "inner is 3, which is not an object"),
        ({"count": 1, "inner": {"rate": None}}, r"inner\.rate is None, which is not a valid number \(how fast"),
        ({"count": 1, "inner": {"rate": float("nan")}}, r"inner\.rate is nan, which is not a finite number"),
        ({"count": 1, "inner": {"names": "a"}}, r"inner\.names is 'a', which is not a valid array$"),
        ({"count": 1, "inner": {"names": ["a", 2]}}, r"inner\.names is 2, which is not a valid string$"),
        ({"count": 1, "maybe": {"rate": "x"}}, r"maybe\.rate is 'x', which is not a valid number"),
        ({"count": 1, "either": [1]}, r"either is \[1\], which is not a valid number"),
        ({"cuont": 1}, "cuont is not known; did you mean 'count'[?] a recipe takes count, either, inner, maybe, sure"),
        ({"count": 1, "inner": {"rat": 1}}, r"inner\.rat is not known; did you mean 'inner\.rate'[?] inner takes names, rate"),
        ({"count": 1, "rate": 1}, r"^rate is not known; did you mean 'inner\.rate'[?]"),
        ({"count": 1, "zebra": 1}, "zebra is not known; a recipe takes"),
        ({"count": 1, "inner": {"rate": -1}}, "rate is negative"),
    ],
)
def test_a_mistake_names_the_key_the_value_and_what_is_allowed(given: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said) as e:
        instance(Outer, given, nowhere)
    assert "\n" not in str(e.value)


def test_a_mistake_begins_with_its_place() -> None:
    with pytest.raises(RecipeError, match=r"^<inner/rat> inner\.rat is not known"):
        instance(Outer, {"count": 1, "inner": {"rat": 1}}, lambda key: f"<{'/'.join(key)}> ")


def test_the_schema_has_types_defaults_and_comments() -> None:
    schema = json_schema(Outer)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert (schema["required"], schema["additionalProperties"], schema["description"]) == (["count"], False, "Outer things.")
    assert schema["properties"]["count"] == {"description": "of all", "title": "Count", "type": "integer"}
    assert schema["properties"]["inner"]["default"] == {"rate": 3.0, "names": ["a"]}


@pytest.mark.parametrize("cls", [Recipe, Budget, Settings, Training, Freezing])
def test_the_schema_of_recipes_has_every_field_with_its_comment(cls: type) -> None:
    schema = recipe_schema()
    section = schema if cls is Recipe else next(s for n, s in schema["$defs"].items() if n == cls.__name__)
    assert set(section["properties"]) == {f.name for f in fields(cls)}
    assert not section["additionalProperties"]
    said = {name: p["description"] for name, p in section["properties"].items() if "description" in p}
    assert said == comments(cls)
    assert len(said) >= len(fields(cls)) - 1
