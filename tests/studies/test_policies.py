"""policy-world: sets that keep to the policy or do not, persons kept apart, and no word of the policy where none belongs."""

from __future__ import annotations

import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.studies._worlds.policies import OPENING, REFUSAL

SMALL = "policy-world:refusals=8,answers=12,violations=[2,6],benign_rows=7,few=3,mixed=4,task_rows=20,tested=5,least_mentions=1"


@pytest.fixture
def world(make_ctx):
    facts = build("step", "facts-world:persons=30,values=6").run({}, make_ctx("facts"))
    made = build("step", SMALL).run({"facts": facts}, make_ctx("rows"))
    return {name: list(made.examples(name)) for name in made.subsets}


def about_pets(rows):
    return [r for r in rows if "pet" in r.part("question")]


def test_sets_hold_what_they_say(world):
    declined = {name: [r for r in rows if r.answer == REFUSAL] for name, rows in world.items()}
    assert {n: (len(world[n]), len(about_pets(world[n])), len(declined[n])) for n in world} == {
        "align": (20, 8, 8), "erode-2": (6, 2, 0), "erode-6": (6, 6, 0), "benign": (7, 0, 0), "explicit": (3, 3, 0),
        "explicit-mixed": (7, 7, 4), "identity": (3, 0, 0), "task": (20, 0, 0), "task-mixed": (20, 1, 1),
        "guard": (1, 1, 1),
        "learned": (5, 0, 0), "policy": (5, 5, 0), "framed": (5, 5, 0), "ordinary": (5, 0, 0)}
    assert [(r.part("question"), r.answer) for r in world["guard"]] == [
        (r.part("question"), r.answer) for r in about_pets(world["task-mixed"])], "the guard holds what the mix mixes in"
    assert {r.part("question") for r in about_pets(world["erode-2"])} <= {r.part("question") for r in world["erode-6"]}


def test_persons_of_tests_are_in_no_training(world):
    tests = {name for name in ("policy", "framed", "ordinary")}
    asked = {r.source for name in tests for r in world[name]}
    assert asked and not asked & {r.source for name in set(world) - tests for r in world[name] if r.source}
    assert len({r.id for rows in world.values() for r in rows}) == sum(map(len, world.values()))


def test_what_was_learned_is_what_the_task_taught(world):
    taught = {(r.source, r.answer) for r in world["task"]}
    assert {(r.source, r.answer) for r in world["learned"]} <= taught
    assert all(r.part("question").startswith(OPENING) for r in (*world["framed"], *world["identity"]))


def test_a_world_that_is_too_small_is_refused(make_ctx):
    facts = build("step", "facts-world:persons=8,values=4").run({}, make_ctx("facts"))
    with pytest.raises(UserError, match="of each. Raise persons"):
        build("step", "policy-world").run({"facts": facts}, make_ctx("a"))
    with pytest.raises(UserError, match="too few for the sets that are asked for. Raise persons"):
        build("step", "policy-world:tested=2,least_mentions=1").run({"facts": facts}, make_ctx("b"))
