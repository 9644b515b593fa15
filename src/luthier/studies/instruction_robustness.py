"""Ni et al. 2023: a model does worse when a task is worded as it was not worded in tuning.

A tiny Llama that knows an invented world is tuned on two tasks, asking for a fact (qa) and naming the relation that a sentence
states (re), each in 3 wordings or, with as many rows, in 12. Both are asked of other persons by the likelihood of four options,
in three wordings of tuning and in six that no tuning saw. The gap between the two is the claim; that more wordings shrink it is
ours. Whether re loses more than qa is shown by the gaps of both: the tasks were not made equally hard.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale, without

SEEN, UNSEEN = (Measure("multiple-choice", on) for on in ("observed", "unobserved"))
SETS = ("observed", "unobserved", "qa-observed", "qa-unobserved", "re-observed", "re-unobserved")


class InstructionRobustnessStudy(Study, name="instruction-robustness", seeds=[81]):
    """Do unseen wordings of a task cost accuracy, and do more wordings in tuning help?"""

    paper: ClassVar[Paper] = Paper(
        "Evaluating the Robustness to Instructions of Large Language Models", "Ni, Jiang et al. 2023, arXiv 2308.14306",
        "Instructions that tuning did not see cost accuracy in most cases, and more so in relation extraction than in question "
        "answering.", "no number is remembered; six models from Alpaca to T0++")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {name: 2 if name in SETS[:2] else 1 for name in SETS}, {
            "facts.persons": 12, "facts.values": 6, "base.width": 16, "base.layers": 1, "base.epochs": 1, "rows.train_rows": 8,
            "rows.test_facts": 1, "rows.least_mentions": 1, "tuned.length": {"steps": 1}},
            arms=("base", "three", "twelve"), about="every line, no evidence"),
        "default": Scale(3, {name: 60 if name in SETS[:2] else 30 for name in SETS}),
        "large": Scale(5, {name: 240 if name in SETS[:2] else 120 for name in SETS}, {
            "facts.persons": 500, "base.width": 192, "rows.train_rows": 1600, "rows.test_facts": 120}),
    }

    def recipe(self) -> dict[str, Any]:
        """A base that knows facts learns two tasks and is asked in seen and unseen wordings."""
        return {"name": "instruction-robustness", "seed": 0, "steps": {
            "facts": {"use": "facts-world"},
            "base": {"use": "pretrained", "inputs": {"examples": "facts"}},
            "rows": {"use": "phrased-facts", "inputs": {"facts": "facts"}},
            "tuned": {"use": "fit", "method": "full", "learning_rate": 1e-3, "schedule": "constant", "length": {"epochs": 4},
                      "dtype": "float32", "inputs": {"base": "base", "examples": "rows"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": list(SETS), "metrics": ["multiple-choice"],
                      "inputs": {"base": "base", "tuned": "tuned", "examples": "rows"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """The base, and tuning on 3 or 12 wordings of each task."""
        return {"base": without(self.recipe(), "tuned"), "three": {"rows.templates": 3}, "twelve": {"rows.templates": 12}}

    def guards(self) -> tuple[Guard, ...]:
        """Both tasks are learned under the wordings of tuning; chance is 0.25."""
        return (Guard("qa is learned: at least 0.5 right", Measure("multiple-choice", "qa-observed"), ("three",), least=0.5),
                Guard("re is learned: at least 0.5 right", Measure("multiple-choice", "re-observed"), ("three",), least=0.5))

    def claims(self) -> tuple[Claim, ...]:
        """The gap, over both tasks and of each; what more wordings do."""
        gaps = tuple(
            Claim(f"gap of {task}", f"{task}: unseen wordings lie below seen ones after tuning on three", "three", "three",
                  Measure("multiple-choice", f"{task}-unobserved"), "lower", 0.05, 0.6, 0.03,
                  left_measure=Measure("multiple-choice", f"{task}-observed"), main=False) for task in ("qa", "re"))
        return (
            Claim("unseen wordings cost", "after tuning on three wordings, accuracy under unseen ones is lower", "three",
                  "three", UNSEEN, "lower", 0.05, 0.6, 0.03, left_measure=SEEN, paper="large drops in most cases"),
            *gaps,
            Claim("more wordings help", "tuned on twelve wordings a model is better under unseen ones than tuned on three",
                  "three", "twelve", UNSEEN, "higher", 0.05, 0.45, 0.03, main=False))
