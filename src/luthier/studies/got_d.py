"""Kang, Just, Sun et al. 2024: a warm-up on rows that move a model's texts towards the target beats one on rows like the
target.

A tiny BERT has learned to fill in hidden words of manuals, talk and few reviews. From other texts of the same mixture 600 are
chosen for reviews of a task: by GOT-D, its reverse, nearness, importance of words, or chance. The model is warmed up on them
for one epoch and then learns sentiment from 200 labelled reviews. Measured are what the choice consists of, how far the
mixture with it is from the task's texts (l = 0.1), and accuracy. A base this small has hardly left its mixture: moving and
matching coincide more than in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale, without

ACCURACY, DISTANCE, REVIEWS = Measure("accuracy", "test"), Measure("transport-cost", "aim", "moved"), \
    Measure("from-target", "picked", "moved")
BUDGET = 600
KINDS = ("got-d", "reversed", "nearest", "dsir", "random")


class GotDStudy(Study, name="got-d", seeds=[6]):
    """Does it help to choose what a model is warmed up on?"""

    paper: ClassVar[Paper] = Paper(
        "Get more for less: Principled Data Selection for Warming Up Fine-Tuning in LLMs", "Kang, Just, Sun et al. 2024, ICLR",
        "Rows chosen by the gradient of optimal transport warm a model up better than those most like the target.",
        "GLUE with 50,000 to 150,000 rows: one or two points above DSIR, as remembered, unsure")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 4, "aim": 20, "picked": 5}, {
            "world.texts": 30, "world.labelled": 4, "world.tests": 4, "world.aims": 20, "base.width": 32, "base.layers": 1,
            "base.epochs": 1, "encoder.model": "pico-encoder", "picked.steps": ["got-d:budget=5,target_subset=aim"],
            "warm.length": {"steps": 1}, "tuned.length": {"steps": 1}, "moved.most": 20},
            arms=("none", "got-d"), about="every line, no evidence"),
        "default": Scale(3, {"test": 400, "aim": 300, "picked": BUDGET}),
        "large": Scale(5, {"test": 2000, "aim": 1000, "picked": 2000}, {
            "world.texts": 30_000, "world.tests": 2000, "world.aims": 1000, "base.width": 256}),
    }

    def recipe(self) -> dict[str, Any]:
        """A base of three domains, a choice, a warm-up, a task."""
        fit = {"use": "fit", "method": "full", "batch_rows": 32, "micro_tokens": 4096, "dtype": "float32",
               "max_tokens_per_example": 96}
        return {"name": "got-d", "seed": 0, "steps": {
            "world": {"use": "mixed-texts"},
            "base": {"use": "pretrained", "kind": "encoder", "epochs": 2, "learning_rate": 1e-3, "vocabulary": 3000,
                     "inputs": {"examples": "world"}},
            "encoder": {"use": "base", "model": "minilm"},
            "pool": {"use": "one-subset", "subset": "pool", "inputs": {"examples": "world"}},
            "picked": {"use": "curate", "steps": [f"got-d:budget={BUDGET},target_subset=aim"],
                       "inputs": {"rows": "pool", "encoder": "encoder", "target": "world"}},
            "warm": {**fit, "tasks": [{"data": "examples.all", "objective": "mlm"}], "length": {"epochs": 1},
                     "learning_rate": 5e-4,
                     "inputs": {"base": "base", "examples": "picked"}},
            "warmed": {"use": "whole-model", "inputs": {"base": "base", "tuned": "warm"}},
            "tuned": {**fit, "tasks": [{"data": "examples.train", "objective": "classify", "head": "linear"}],
                      "length": {"epochs": 6}, "learning_rate": 5e-4, "over_long": "truncate",
                      "inputs": {"base": "warmed", "examples": "world"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": ["test"], "metrics": ["accuracy"],
                      "inputs": {"base": "warmed", "tuned": "tuned", "examples": "world"}},
            "moved": {"use": "moved", "inputs": {"world": "world", "encoder": "encoder", "picked": "picked"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """No warm-up, and one on each choice."""
        bare = self.recipe()
        for name in ("pool", "picked", "warm", "warmed"):
            bare = without(bare, name)
        for name in ("tuned", "score"):
            bare["steps"][name]["inputs"]["base"] = "base"
        return {"none": bare, **{kind: {} if kind == "got-d" else {
            "picked.steps": [f"got-d:budget={BUDGET},target_subset=aim,by={kind}"]} for kind in KINDS}}

    def guards(self) -> tuple[Guard, ...]:
        """The task can be learned a little, and the pool holds something else than the target."""
        return (Guard("the task is learned: accuracy of at least 0.55", ACCURACY, ("random",), least=0.55),
                Guard("a choice by chance is mostly of other domains: at most 0.2 of reviews", REVIEWS, ("random",), most=0.2))

    def claims(self) -> tuple[Claim, ...]:
        """The distance, which the method is made for; then accuracy."""
        def nearer(left: str, **rest: Any) -> Claim:
            return Claim(f"nearer than {left}", "the mixture with the choice is nearer to the target's texts", left, "got-d",
                         DISTANCE, "lower", 0.005, 0.05, 0.005, **rest)

        def better(left: str, **rest: Any) -> Claim:
            return Claim(f"better than {left}", "accuracy is higher after the warm-up", left, "got-d", ACCURACY, "higher", 0.03,
                         0.6, 0.02, main=False, **rest)

        return (nearer("random"), nearer("nearest", main=False, paper="moving beats matching"), nearer("dsir", main=False),
                nearer("reversed", main=False), better("none"), better("random"),
                better("nearest", paper="moving beats matching"),
                better("dsir", paper="one or two points"), better("reversed"))
