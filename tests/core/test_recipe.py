"""Recipes: wiring that is checked before anything runs, edits by path, defaults written out."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.component import find
from luthier.core.errors import UserError
from luthier.core.recipe import Recipe, load_recipe, recipe_schema, shipped
from tests.contracts import dummies  # noqa: F401  (registers the dummies)

BASE = {"use": "base", "model": "pico"}
ROWS = {"use": "dummy-rows"}


def recipe(**steps) -> Recipe:
    return Recipe({"steps": steps})


def fit(**changed) -> dict:
    return {"use": "fit", "inputs": {"base": "base", "examples": "rows"}, **changed}


def copy(source: object) -> dict:
    return {"use": "dummy-copy", "inputs": {"rows": source}}


def training(**changed) -> dict:
    return {"steps": {"base": BASE, "rows": ROWS, "f": fit(**changed)}}


GOOD = {"fit": fit(method="lora:rank=4"), "rows": ROWS, "base": BASE}


def test_steps_stand_in_an_order_in_which_they_can_run():
    made = recipe(**GOOD)
    names = [n.name for n in made.nodes]
    assert sorted(names) == ["base", "fit", "rows"] and names[-1] == "fit"
    assert made.seed == 0 and made.name == "recipe"


@pytest.mark.parametrize("text, said", [
    ({"stepz": {}}, "A recipe has no 'stepz'. Did you mean 'steps'?"),
    ({}, "A recipe needs 'steps'"),
    ({"steps": []}, "A recipe needs 'steps'"),
    ({"steps": {"a": ROWS}, "seed": "x"}, "seed = 'x' is not a whole number"),
    ({"steps": {"a": ROWS}, "seed": True}, "seed = True is not a whole number"),
    ({"steps": {"a": "rows"}}, "Step 'a' is not a mapping with 'use'"),
    ({"steps": {"a": {"use": "bsae"}}}, "In step 'a': There is no step called 'bsae'. Did you mean 'base'?"),
    ({"steps": {"a": {"use": "base", "modle": "x"}}}, "step 'base' has no 'modle'. Did you mean 'model'?"),
    ({"steps": {"a": {"use": "base"}}}, "step 'base' needs 'model'."),
    ({"steps": {"a": {"use": "dummy-rows", "count": -1}}}, "count = -1"),
    ({"steps": {"a": {"use": "dummy-copy"}}}, "Step 'a' (dummy-copy) needs the input 'rows'"),
    ({"steps": {"a": {**copy("b"), "inputs": {"row": "b"}}, "b": ROWS}}, "no input 'row'. Did you mean 'rows'?"),
    ({"steps": {"a": copy("c"), "bb": ROWS}}, "reads 'c', which is no step"),
    ({"steps": {"a": copy("b"), "b": BASE}}, "wants examples for 'rows'; 'b' leaves model"),
    ({"steps": {"a": copy("b"), "b": copy("a")}}, "wait for each other in a circle: a, b"),
    ({"steps": {"a": copy("a")}}, "in a circle: a"),
    ({"steps": {"a": {"use": "dummy-copy", "inputs": "rows"}}}, "The inputs of step 'a' are not a mapping"),
    (training(method="lorra"), "no method called 'lorra'. Did you mean 'lora'?"),
    (training(method="lora:rnak=2"), "no 'rnak'. Did you mean 'rank'?"),
    (training(lenght={"steps": 1}), "no 'lenght'. Did you mean 'length'?"),
    (training(length={"steps": 1, "epochs": 1}), "give either epochs or steps"),
])
def test_a_mistake_is_named_before_anything_runs(text, said):
    with pytest.raises(UserError) as caught:
        Recipe(text)
    assert said in str(caught.value)


keys = st.sampled_from(["steps", "seed", "name", "use", "inputs", "model", "base", "a", "rows"])
texts = st.recursive(st.none() | st.integers() | st.sampled_from(["base", "fit", "dummy-copy", "lora:rank=1", "a"]),
                     lambda v: st.lists(v, max_size=2) | st.dictionaries(keys, v, max_size=3), max_leaves=8)


@settings(max_examples=150, deadline=None)
@given(texts)
def test_whatever_is_written_is_a_recipe_or_an_error_in_words(steps):
    for text in ({"steps": steps}, {"steps": {"a": steps}}, {"steps": {"a": {"use": "dummy-copy", "inputs": steps}}}):
        try:
            Recipe(text)
        except UserError as error:
            assert str(error).strip()


# --- edits ---------------------------------------------------------------------------------------------------------

def test_an_edit_is_a_new_recipe():
    made = recipe(**GOOD)
    other = made.edit(**{"fit.learning_rate": 0.1, "seed": 3, "name": "n"})
    assert (other.seed, other.name, node(other, "fit").learning_rate) == (3, "n", 0.1)
    assert made.seed == 0 and node(made, "fit").learning_rate is None and other.identity != made.identity


def node(made: Recipe, name: str):
    return next(n.step for n in made.nodes if n.name == name)


@pytest.mark.parametrize("path, value, read", [
    ("fit.method.rank", 2, lambda s: (s.method.rank, s.method.info.name)),
    ("fit.method", "bitfit", lambda s: s.method.info.name),
    ("fit.length", {"steps": 2}, lambda s: s.length.steps),
    ("fit.schedule.warmup", 0.5, lambda s: (s.schedule.warmup, s.schedule.info.name)),
    ("fit.tasks.0.weight", 2.0, lambda s: (s.tasks[0].weight, s.tasks[0].data)),
    ("steps.fit.batch_rows", 3, lambda s: s.batch_rows),
])
def test_a_path_reaches_into_components_written_or_default(path, value, read):
    found = read(node(recipe(**GOOD).edit(**{path: value}), "fit"))
    wanted = value["steps"] if isinstance(value, dict) else value
    assert wanted == found if not isinstance(found, tuple) else wanted == found[0]
    if isinstance(found, tuple) and isinstance(found[1], str):
        assert found[1] in ("lora", "linear", "examples.train")


@pytest.mark.parametrize("path, said", [
    ("fti.seed", "no step 'fti'. Did you mean 'fit'?"),
    ("fit.lenght", "step 'fit' has no 'lenght'. Did you mean 'length'?"),
    ("fit.method.rnak", "no 'rnak'. Did you mean 'rank'?"),
    ("sede", "'sede' names no value"),
    ("fit.batch_rows.x", "'fit.batch_rows.x': 'batch_rows' is 8, which has no parts"),
    ("fit.tasks.7.weight", "'fit.tasks.7.weight': there is no '7'. Legal: 0."),
    ("fit.tasks.first.weight", "there is no 'first'"),
])
def test_a_wrong_path_is_named(path, said):
    with pytest.raises(UserError) as caught:
        recipe(**GOOD).edit(**{path: 1})
    assert said in str(caught.value)


# --- text ----------------------------------------------------------------------------------------------------------

def test_filling_shows_every_default_and_changes_nothing():
    made = recipe(**GOOD)
    filled = made.fill()
    assert filled["steps"]["fit"]["method"] == {**find("method", "lora")(rank=4).to_dict()}
    assert set(find("step", "fit").model_fields) <= set(filled["steps"]["fit"])
    again = Recipe(yaml.safe_load(made.to_yaml()))
    assert again.identity == made.identity and again.fill() == filled


def test_a_world_keeps_its_own_seed():
    made = recipe(world={"use": "opinions", "seed": 3}, rows=copy("world"))
    assert node(made, "world").seed == 3 and next(n for n in made.nodes if n.name == "world").seed is None
    again = Recipe(yaml.safe_load(made.to_yaml()))
    assert again.identity == made.identity and again.fill() == made.fill()
    bare = recipe(world={"use": "opinions"}, rows=copy("world"))
    assert Recipe(yaml.safe_load(bare.to_yaml())).identity == bare.identity != made.identity
    assert bare.edit(**{"world.seed": 3}).identity == made.identity
    with pytest.raises(UserError, match="In step 'world': .*seed = -1"):
        bare.edit(**{"world.seed": -1})


def test_no_step_has_two_seeds():
    """A step that draws from the run's seed would not know whose a field `seed` is."""
    from luthier.core.index import rows

    own = [r["name"] for r in rows() if r["kind"] == "step" and "seed" in r["schema"].get("properties", {})]
    assert own and not [name for name in own if find("step", name).seeded]


def test_the_identity_is_steps_wiring_and_seed():
    made = recipe(**GOOD)
    assert recipe(**{n: GOOD[n] for n in ("base", "rows", "fit")}).identity == made.identity
    assert made.edit(**{"fit.method.alpha": 16}).identity == made.identity, "the default, written"
    edits = [{"seed": 1}, {"fit.method.rank": 8}, {"rows.count": 3}, {"fit.length": {"steps": 9}}]
    assert len({made.identity, *(made.edit(**e).identity for e in edits)}) == 1 + len(edits)


def test_a_recipe_is_read_from_a_file(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"name": "n", "steps": {"rows": ROWS}}))
    assert load_recipe(str(path)).name == "n"
    path.write_text("steps: [")
    with pytest.raises(UserError, match=r"r\.yaml"):
        load_recipe(str(path))
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match="holds no mapping"):
        load_recipe(str(path))
    with pytest.raises(UserError, match="no recipe 'nowhere'"):
        load_recipe("nowhere")


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_shipped_recipe_fits_the_schema(name):
    text = yaml.safe_load(shipped()[name].read_text(encoding="utf-8"))
    schema = recipe_schema()
    assert set(text) <= set(schema["properties"]) and set(schema["required"]) <= set(text)
    known = {s["properties"]["use"]["const"]: s for s in schema["properties"]["steps"]["additionalProperties"]["oneOf"]}
    for step in text["steps"].values():
        allowed = known[step["use"]]
        assert set(step) <= set(allowed["properties"])
    assert text.get("about"), "a shipped recipe says what it does"


def test_the_schema_names_every_step():
    schema = recipe_schema()
    json.dumps(schema)
    names = [s["properties"]["use"]["const"] for s in schema["properties"]["steps"]["additionalProperties"]["oneOf"]]
    assert {"base", "fit", "repeat"} <= set(names) and len(names) == len(set(names))
