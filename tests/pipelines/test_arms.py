"""arms: each arm is an edit of the recipe, and steps that no arm needs are gone."""

from __future__ import annotations

import pytest

from luthier.core.errors import UserError
from luthier.core.recipe import Recipe
from luthier.pipelines import jobs
from luthier.pipelines.arms import OWN, PRETRAIN_STEPS, with_arms, with_pretrained


def arms(recipe: Recipe) -> list[str]:
    return [n.step.arm for n in recipe.nodes if n.step.info.name == "evaluate"]


def step(recipe: Recipe, name: str):
    return next(n.step for n in recipe.nodes if n.name == name)


def test_the_named_arms_and_what_they_need_are_left():
    made = with_arms(jobs.adapt([]), ["base", "pretrained", "pretrained-p4+retrieval"])
    assert set(arms(made)) == {"base", "pretrained", "pretrained-p4+retrieval"}
    assert {n.name for n in made.nodes} == {
        "base", "encoder", "documents", "index", "questions", "split", "sections", "pretrained", "sections-p4",
        "pretrained-p4", "arm-base", "arm-pretrained", "arm-pretrained-p4-retrieval", "comparison"}
    two = with_arms(jobs.adapt([]), ["base", "tuned"])
    # The split shows what the retriever finds, so the index stays although no arm reads it.
    assert set(arms(two)) == {"base", "tuned"} and "index" in two.text["steps"]
    assert set(arms(with_arms(jobs.adapt([]), OWN))) == set(OWN)


def test_paraphrases_are_compared_at_equal_steps():
    alone = with_pretrained(jobs.adapt([]))
    assert step(alone, "pretrained").length.epochs == 3
    both = with_pretrained(alone, 8)
    assert {step(both, n).length.steps for n in ("pretrained", "pretrained-p8")} == {PRETRAIN_STEPS}
    assert step(both, "sections-p8").augment[0].count == 8 and step(both, "sections").augment == ()
    assert step(both, "arm-pretrained-p8").shots == step(both, "arm-base").shots


@pytest.mark.parametrize(("names", "why"), [
    (["base", "tunned"], "Did you mean 'tuned'"), (["base"], "nothing to be compared with"),
    (["base", "base"], "given twice"), (["base", "pretrained-p99"], "at most 10")])
def test_arms_that_can_not_be_are_refused(names, why):
    with pytest.raises(UserError, match=why):
        with_arms(jobs.adapt([]), names)
