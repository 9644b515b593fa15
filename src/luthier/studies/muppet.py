"""Aghajanyan et al. 2021: pre-finetuning on many labelled tasks helps, on few it hurts, and both need scaled, mixed steps.

A tiny BERT reads sentences of Python's help and invented reviews. Then it is pre-finetuned for equally many steps on 0, 2, 8
or 24 tasks about the help, and tuned on 64 labels of each of three questions about the reviews, which no task asks. At 24
tasks also: losses without scaling, steps of one task each, and no R3F. The body is tiny, its tasks are by rule and of few
rows, and targets share no subject with them: that a step is to be seen at all is open. What is visible is stated before. Three
seeds (version 1) decided nothing: now six.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale

RIGHT = Measure("accuracy", "test")
ALL = 24


class MuppetStudy(Study, name="muppet", seeds=[16], version=2):
    """Do many tasks before the target help it, and do few hurt?"""

    paper: ClassVar[Paper] = Paper(
        "Muppet: Massive Multi-task Representations with Pre-Finetuning", "Aghajanyan et al. 2021, arXiv 2101.11038",
        "Pre-finetuning on about 50 tasks improves what follows; below about 15 it hurts, above the gain is linear in tasks.",
        "RoBERTa-large on RTE 88.1 to 92.8, on BoolQ 86.9 to 87.5, as remembered; the curve over tasks is a figure")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 12}, {
            "tasks.rows": 8, "tasks.texts": 60, "base.kind": "encoder", "base.width": 32, "base.layers": 1, "base.epochs": 1,
            "base.vocabulary": 300,
            "stage.batch_rows": 2, "stage.accumulate": 2, "stage.length": {"steps": 1}, "stage.max_tokens_per_example": 512,
            "score.tests": 4, "score.shots": 8,
            "score.pool": 40, "score.fit": {"method": "full", "length": {"steps": 1}, "learning_rate": 1e-3, "batch_rows": 8,
                                            "max_tokens_per_example": 128}},
                       arms=("t0", "t2"), about="every line, no evidence"),
        "default": Scale(6, {"test": 300}, {"base.kind": "encoder", "base.width": 64, "base.layers": 2,
                                            "base.learning_rate": 2e-3}),
        "large": Scale(6, {"test": 900}, {"base.use": "base", "base.inputs": {}, "base.model": "minilm", "score.tests": 300,
                                          "stage.learning_rate": 3e-5}, about="MiniLM in place of the tiny BERT"),
    }

    def recipe(self) -> dict[str, Any]:
        """Tasks, a body, the stage, and targets."""
        return {"name": "muppet", "seed": 0, "steps": {
            "tasks": {"use": "task-bank"},
            "base": {"use": "pretrained", "inputs": {"examples": "tasks"}},  # scales say how large, or another one
            "stage": {"use": "muppet", "batch_rows": 8, "accumulate": 8, "length": {"steps": 120}, "learning_rate": 1e-3,
                      "regularizers": ["r3f:where=labels"], "max_tokens_per_example": 128, "dtype": "float32",
                      "inputs": {"base": "base", "manifest": "tasks"}},
            "body": {"use": "whole-model", "inputs": {"base": "base", "tuned": "stage"}},
            "score": {"use": "transfers", "arm": "tuned", "inputs": {"base": "body"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """Numbers of tasks at equally many steps, and at all of them what the paper compares with."""
        return {**{f"t{n}": {"stage.n_tasks": n} for n in (0, 2, 8, ALL)},
                "unscaled": {"stage.scale": "none"}, "alike": {"stage.batches": "alike"}, "no-r3f": {"stage.regularizers": []}}

    def guards(self) -> tuple[Guard, ...]:
        """There is something to gain."""
        return (Guard("the body alone is above chance (0.417): at least 0.45 right", RIGHT, ("t0",), least=0.45),
                Guard("and leaves something to gain: at most 0.95 right", RIGHT, ("t0",), most=0.95))

    def claims(self) -> tuple[Claim, ...]:
        """The curve over tasks; the paper's three parts."""
        def above(left: str, right: str, says: str, **rest: Any) -> Claim:
            return Claim(f"{right} above {left}", says, left, right, RIGHT, "higher", 0.03, 0.55, 0.03, **rest)

        return (above("t0", "t24", "24 tasks help what follows", paper="all targets gain"),
                above("t8", "t24", "24 tasks help more than 8", paper="linear above 15 tasks"),
                Claim("t2 below t0", "2 tasks hurt", "t0", "t2", RIGHT, "lower", 0.03, 0.55, 0.03,
                      paper="below 15 tasks it hurts", main=False),
                above("unscaled", "t24", "losses scaled by their choices help", paper="clearly better", main=False),
                above("alike", "t24", "several tasks in each step help", paper="clearly better", main=False),
                above("no-r3f", "t24", "R3F helps", paper="used throughout", main=False))
