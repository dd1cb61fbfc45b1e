import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.errors import RecipeError
from penjing.recipe import Recipe, dump_recipe, option, read_recipe, recipe_schema, starting_recipe
from penjing.search import Budget
from penjing.settings import Settings
from penjing.train import Freezing, Training

EXAMPLES = Path(__file__).parents[2] / "recipes"
LEAST = "model: my_net:build\ndata: my_net:task\nout: runs/mine\n"
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\x00/"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
SHARES = st.floats(0, 1)
LIMITS = st.one_of(st.none(), st.floats(1e-9, 1), st.sampled_from(["0.25x", "1e-2x", "0.5"]))
BUDGETS = st.builds(
    Budget,
    max_drop=st.floats(0, 100),
    latency=st.one_of(LIMITS, st.just("3 ms")),
    bytes=st.one_of(LIMITS, st.just("500kB"), st.integers(2, 10**12)),
    memory=st.one_of(LIMITS, st.just("2MiB")),
)
TRAINING = st.builds(
    Training,
    lr=st.floats(1e-9, 10),
    watch=st.booleans(),
    schedule=st.sampled_from(["cosine", "linear"]),
    freezing=st.one_of(st.none(), st.builds(Freezing, start=st.floats(1e-6, 1))),
)
SETTINGS = st.builds(
    Settings,
    epochs=st.one_of(st.none(), st.integers(0, 100), st.floats(0, 100)),
    labels=SHARES,
    exclude=st.lists(st.text(), max_size=3).map(tuple),
    report_batches=st.lists(st.integers(1, 99), min_size=1, max_size=3).map(tuple),
    training=TRAINING,
)


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@given(
    st.builds(
        Recipe, model=st.text(), data=st.text(), out=NAMES.map(Path), weights=NAMES.map(Path), budget=BUDGETS, settings=SETTINGS
    )
)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    folder = tmp_path_factory.getbasetemp().resolve()
    placed = replace(recipe, out=folder / "a" / recipe.out, weights=folder / (recipe.weights or ""), modules=folder)
    dump_recipe(placed, folder / "a/b/recipe.yaml")
    assert read_recipe(folder / "a/b/recipe.yaml") == placed


def test_any_drop_is_written_and_read_back(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, LEAST + "budget: {max_drop: none, latency: 0.5}"))
    assert recipe.budget == Budget(max_drop=None, latency=0.5)
    dump_recipe(recipe, tmp_path / "again.yaml")
    assert read_recipe(tmp_path / "again.yaml") == recipe


def test_a_written_recipe_holds_every_default_and_moves_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "was").mkdir()
    recipe = read_recipe(write(tmp_path / "was", LEAST + "weights: w.safetensors"))
    dump_recipe(recipe, recipe.out / "recipe.yaml")
    text = (recipe.out / "recipe.yaml").read_text()
    assert "weights: ../../w.safetensors" in text and "modules: ../.." in text and "out: ." in text
    assert "calibration: 512" in text and "weight_decay: 0.0005" in text
    (tmp_path / "was").rename(tmp_path / "now")
    moved = read_recipe(tmp_path / "now/runs/mine/recipe.yaml")
    now = (tmp_path / "now").resolve()
    assert moved == replace(recipe, out=now / "runs/mine", weights=now / "w.safetensors", modules=now)


def test_the_starting_recipe_is_all_defaults(tmp_path: Path) -> None:
    here = tmp_path.resolve()
    expected = Recipe(model="my_net:build", data="my_net:task", out=here / "runs/mine", modules=here)
    assert read_recipe(write(tmp_path, starting_recipe())) == expected
    assert read_recipe(write(tmp_path, LEAST)) == expected
    assert "\n  max_drop: 0.01 units  # most of the metric" in starting_recipe()


def test_options_go_before_the_file(tmp_path: Path) -> None:
    text = (
        LEAST + "weights: w\nbudget: {max_drop: 2 points, bytes: 1MB}\nsettings: {epochs: 3, training: {lr: 1e-3, ema: 0.9}}\n"
    )
    options = {"out": "here", "budget": {"latency": "3ms"}, "settings": {"epochs": 1, "training": {"lr": 0.5}}}
    recipe = read_recipe(
        write(tmp_path, text), options, option("settings.training.lr=0.25"), option("settings.exclude=[a, 'b*']")
    )
    assert recipe.out == Path("here")  # from the working directory, not from the recipe's
    assert recipe.weights == tmp_path.resolve() / "w"
    assert recipe.budget == Budget(max_drop=0.02, bytes="1MB", latency="3ms")
    expected = Settings(epochs=1, exclude=("a", "b*"), training=replace(Settings().training, lr=0.25, ema=0.9))
    assert recipe.settings == expected


def test_options_are_enough() -> None:
    recipe = read_recipe(None, {"model": "a:b", "data": "c:d", "out": "o"})
    assert recipe == Recipe(model="a:b", data="c:d", out=Path("o"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "settings:\n  epoch: 3",
            r"recipe\.yaml, line 5: settings\.epoch is not known; did you mean 'settings\.epochs'[?] .*minutes",
        ),
        (
            "settings:\n  training: {lrr: 3}",
            r"line 5: settings\.training\.lrr is not known; did you mean 'settings\.training\.lr'",
        ),
        ("latency: 3ms", r"line 4: latency is not known; did you mean 'budget\.latency'[?]"),
        ("settings: {epochs: soon}", r"line 4: settings\.epochs is 'soon', which is not a valid number \(of training"),
        ("settings: {batch: true}", r"line 4: settings\.batch is True, which is not a valid integer"),
        ("settings: {exclude: head}", r"line 4: settings\.exclude is 'head', which is not a valid array"),
        ("settings: 3", "line 4: settings is 3, which is not an object"),
        ("budget:", "line 4: budget is None, which is not an object"),
        ("weights: 3", "line 4: weights is 3, which is not a valid string"),
        ("settings:\n  batch: 0", r"recipe\.yaml, line 5: settings\.batch is 0; give at least 1"),
        ("settings: {training: {momentum: 2}}", r"line 4: settings\.training\.momentum is 2.*; give a number from 0"),
        ("budget: {latency: soon}", r"line 4: budget\.latency limit 'soon' .*0\.25x or 3ms"),
        ("budget:\n\n  max_drop: 0.5", r"line 6: budget\.max_drop '0\.5' is not understood; .*'0\.5 points' of an accuracy"),
        ("budget: {max_drop: none}", r"line 4: budget\.max_drop is None and nothing else is limited"),
        ("out: there", r"line 4: out is there already, in line 3"),
        ("settings: [", r"recipe\.yaml, line 5, column 1: this is not YAML"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as e:
        read_recipe(write(tmp_path, LEAST + text + "\n"))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["", "model: a:b", "# nothing"])
def test_what_is_missing_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml: (model|data) is missing; give "):
        read_recipe(write(tmp_path, text))


@pytest.mark.parametrize("text", ["- model", "model", "3"])
def test_a_recipe_is_keys_and_values(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match=r"holds .*; give keys such as model, data and out"):
        read_recipe(write(tmp_path, text))


def test_a_mistake_in_an_option_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^settings\.epochs is 'many'"):
        read_recipe(write(tmp_path, LEAST + "settings: {epochs: 3}"), option("settings.epochs=many"))
    with pytest.raises(RecipeError, match=r"^settings\.epochs is -1"):
        read_recipe(write(tmp_path, LEAST + "settings: {epochs: 3}"), option("settings.epochs=-1"))


@pytest.mark.parametrize("text", ["epochs", "=3", "settings..epochs=3", "settings.=3"])
def test_what_is_no_option_is_told(text: str) -> None:
    with pytest.raises(RecipeError, match="is not of the form key=value"):
        option(text)


def test_a_value_of_an_option_that_is_not_yaml_is_told() -> None:
    with pytest.raises(RecipeError, match=r"the value of settings\.exclude, line 1, column 3: this is not YAML"):
        option("settings.exclude=[a")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_the_examples_are_recipes(path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    recipe = read_recipe(path)
    assert recipe.settings != Settings()
    assert recipe.out.parent == EXAMPLES.parent.resolve() / "runs"


def test_the_schema_beside_the_examples_is_the_one_that_is_printed() -> None:
    """If not: penjing recipe --schema > recipes/recipe.schema.json"""
    assert json.loads((EXAMPLES / "recipe.schema.json").read_text()) == recipe_schema()


def test_an_onnx_file_lies_beside_the_recipe_and_moves_with_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    recipe = tmp_path / "a" / "recipe.yaml"
    recipe.write_text("model: ../nets/mine.onnx\ndata: my:task\nout: out\n")
    found = read_recipe(recipe)
    assert found.model == str(tmp_path / "nets" / "mine.onnx")
    dump_recipe(found, tmp_path / "again.yaml")
    assert "model: nets/mine.onnx" in (tmp_path / "again.yaml").read_text()
    assert read_recipe(tmp_path / "again.yaml").model == found.model
    assert read_recipe(None, {"model": "mine.onnx", "data": "my:task", "out": "o"}).model == "mine.onnx"


def test_an_option_begins_a_section_that_a_recipe_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: a:b\ndata: a:c\nout: o\nsettings: {training: {freezing: null}}\n")
    found = read_recipe(path, option("settings.training.freezing.start=0.2"))
    assert found.settings.training.freezing is not None
    assert found.settings.training.freezing.start == 0.2
