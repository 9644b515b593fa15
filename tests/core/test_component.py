"""Components as text: specs, identity, and errors that name the nearest legal word."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from luthier.core import component
from luthier.core.component import Component, Info, Slot, build, parse_spec
from luthier.core.errors import UserError
from luthier.core.kinds import Schedule
from luthier.core.recipe import Recipe


class DummySlope(Schedule, name="dummy-slope", version=3):
    """Goes down."""

    end: float = Field(0.1, ge=0, le=1, description="factor at the end")
    marks: tuple[int, ...] = Field((1, 2), description="nothing")

    def factor(self, step: int, steps: int) -> float:
        return 1 - (1 - self.end) * step / steps


class Inner(BaseModel):
    """A plain record inside a component."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    schedule: Slot[Schedule] = Field("dummy-slope", description="a component two levels down")
    width: int = Field(2, description="a number")


class DummyHolder(Schedule, name="dummy-holder"):
    """Holds others."""

    one: Slot[Schedule] = Field("dummy-slope", description="a component")
    many: tuple[Inner, ...] = Field(({"width": 2},), description="records")
    record: Inner = Field({}, description="a record")

    def factor(self, step: int, steps: int) -> float:
        return 1.0


SPECS = {
    "lora": {"use": "lora"},
    "lora:": {"use": "lora"},
    " lora : rank=4 ": {"use": "lora", "rank": 4},
    "lora:rank=4,alpha=8.5": {"use": "lora", "rank": 4, "alpha": 8.5},
    "lora:target=[q_proj,v_proj],rank=2": {"use": "lora", "target": ["q_proj", "v_proj"], "rank": 2},
    "peft:{type: IA3}": {"use": "peft", "type": "IA3"},
    "peft:{type: LOHA, r: 4, target_modules: [a, b]}": {"use": "peft", "type": "LOHA", "r": 4,
                                                        "target_modules": ["a", "b"]},
    "mixout:rule={use: x, p: 0.5},q=1": {"use": "mixout", "rule": {"use": "x", "p": 0.5}, "q": 1},
    "x:flag=true,none=null,text=a b,eq=a=b": {"use": "x", "flag": True, "none": None, "text": "a b", "eq": "a=b"},
    "x:terms=()": {"use": "x", "terms": "()"},
}


@pytest.mark.parametrize("text", SPECS)
def test_a_spec_is_read(text):
    assert parse_spec(text) == SPECS[text]


@pytest.mark.parametrize("text, said", [("lora:rank", "'rank' in 'lora:rank' is not key=value"),
                                        ("lora:{rank: [}", "can't be read"), ("lora:a=[1", "can't be read")])
def test_a_spec_that_can_not_be_read_is_named(text, said):
    with pytest.raises(UserError, match=said.replace("[", r"\[")):
        parse_spec(text)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.integers() | st.booleans(), max_size=4))
def test_values_survive_the_short_form(values):
    text = "name:" + ",".join(f"{k}={str(v).lower()}" for k, v in values.items())
    assert parse_spec(text) == {"use": "name", **values}


# --- identity ------------------------------------------------------------------------------------------------------

def test_the_order_of_keys_means_nothing():
    a = build("schedule", {"use": "dummy-slope", "end": 0.5, "marks": [3]})
    b = build("schedule", {"marks": [3], "end": 0.5, "use": "dummy-slope"})
    assert a.identity == b.identity and a == b


def test_defaults_are_no_part_of_the_identity():
    plain, written = build("schedule", "dummy-slope"), build("schedule", "dummy-slope:end=0.1,marks=[1,2]")
    assert plain.identity == written.identity
    assert plain.identity_values() == {"use": "dummy-slope@3"}
    assert build("schedule", "dummy-slope:end=0.2").identity_values() == {"use": "dummy-slope@3", "end": 0.2}


def test_a_default_written_as_text_is_a_default_all_the_same():
    """A default may be written `{...}` while a record is held; neither it nor its fields are changes."""
    slot = {"use": "dummy-slope@3"}
    assert DummyHolder().identity_values() == {
        "use": "dummy-holder@1", "one": slot, "many": [{"schedule": slot}], "record": {"schedule": slot}}
    assert DummyHolder(record={"width": 3}).identity_values()["record"] == {"schedule": slot, "width": 3}


def test_the_version_of_a_part_moves_the_whole(monkeypatch):
    before = DummyHolder().identity
    monkeypatch.setattr(DummySlope, "info", Info("schedule", "dummy-slope", 4, ()))
    after = DummyHolder()
    assert after.identity != before
    assert after.identity_values()["one"] == after.identity_values()["many"][0]["schedule"] == {"use": "dummy-slope@4"}


def test_every_value_that_differs_moves_the_identity():
    specs = ["dummy-slope", "dummy-slope:end=0.2", "dummy-slope:marks=[2,1]", "dummy-holder", "constant",
             "dummy-holder:one=constant"]
    assert len({build("schedule", s).identity for s in specs}) == len(specs)


# --- slots ---------------------------------------------------------------------------------------------------------

def test_a_slot_is_written_by_what_it_holds():
    held = DummyHolder(one="dummy-slope:end=0.5")
    assert held.to_dict()["one"] == {"use": "dummy-slope", "end": 0.5, "marks": [1, 2]}
    assert build("schedule", held.to_dict()) == held
    assert DummyHolder.model_json_schema()["properties"]["one"]["type"] == ["string", "object"]


def test_components_can_not_be_changed():
    with pytest.raises(Exception, match="frozen"):
        build("schedule", "dummy-slope").end = 0.5


# --- errors --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("spec, said", [
    ("dummy-slop", "no schedule called 'dummy-slop'. Did you mean 'dummy-slope'?"),
    ("dummy-slope:ends=1", "schedule 'dummy-slope' has no 'ends'. Did you mean 'end'?"),
    ("dummy-slope:end=2", "end = 2: Input should be less than or equal to 1."),
    ("dummy-slope:end=high", "end = 'high'"),
    ("dummy-holder:one=dummy-slop", "Did you mean 'dummy-slope'?"),
    ("dummy-holder:one={use: dummy-slope, ende: 1}", "'dummy-slope' has no 'ende'. Did you mean 'end'?"),
    ("dummy-holder:record={widht: 1}", "has no 'record.widht'. Did you mean 'width'?"),
    ("dummy-holder:many=[{widht: 1}]", "has no 'many.0.widht'. Did you mean 'width'?"),
    (7, "A schedule is written 'name:key=value'"),
    ({"end": 1}, "A schedule is written 'name:key=value'"),
])
def test_what_is_wrong_is_named_with_what_is_legal(spec, said):
    with pytest.raises(UserError) as caught:
        build("schedule", spec)
    assert said in str(caught.value) and caught.value.exit_code == 2


def test_names_are_unique_per_kind(monkeypatch):
    monkeypatch.setattr(component, "_classes", dict(component._classes))
    with pytest.raises(TypeError, match="schedule 'dummy-slope' is already registered"):
        class Again(Schedule, name="dummy-slope"):
            """Takes a name that is taken."""

            def factor(self, step: int, steps: int) -> float:
                return 1.0

    with pytest.raises(TypeError, match="kind 'schedule' is already opened"):
        class Other(Component, kind="schedule"):
            """Takes a kind that is taken."""

            seen: ClassVar[int] = 0


def test_an_entry_point_may_bring_components(monkeypatch):
    class Point:
        def load(self):
            class Brought(Schedule, name="dummy-brought"):
                """From another package."""

                def factor(self, step: int, steps: int) -> float:
                    return 0.5

    monkeypatch.setattr(component, "_classes", dict(component._classes))
    monkeypatch.setattr(component, "entry_points", lambda group: [Point()] if group == "luthier.components" else [])
    assert build("schedule", "dummy-brought").factor(0, 1) == 0.5


def test_the_index_answers_without_torch():
    import subprocess
    import sys

    code = ("import sys; from luthier.core import index, recipe, kinds; index.rows(); recipe.recipe_schema();"
            "sys.exit(any(m in sys.modules for m in ('torch', 'peft', 'transformers')))")
    env = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin"}
    assert subprocess.run([sys.executable, "-c", code], env=env, timeout=60).returncode == 0


def test_a_recipe_of_components_has_one_identity():
    steps = {"fit": {"use": "given", "kind": "examples"}}
    assert Recipe({"steps": steps}).identity == Recipe({"name": "other", "about": "x", "steps": steps}).identity
