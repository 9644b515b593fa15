"""Sun, Shaib & Wallace 2023: a soft prompt that is trained to answer alike under equivalent instructions is more robust.

A tiny Llama that knows an invented world keeps its weights; ten vectors before its input learn two tasks, asking for a fact and
naming a relation: from one wording of each (`plain`), from rows in twelve (`augmented`, the control that matters), and from the
same rows with a KL term between two wordings of each (`consistent`). All are asked of other persons under wordings that no
training saw. The paper tests other tasks; here the tasks are the same, and the wordings are new.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale, without

SEEN, UNSEEN = (Measure("multiple-choice", on) for on in ("observed", "unobserved"))


class PhrasingRobustnessStudy(Study, name="phrasing-robustness", seeds=[163]):
    """Does a likeness term make a soft prompt robust to new wordings, beyond training on several of them?"""

    paper: ClassVar[Paper] = Paper(
        "Evaluating the Zero-shot Robustness of Instruction-tuned Language Models",
        "Sun, Shaib & Wallace 2023, arXiv 2306.11270",
        "Unobserved phrasings cost accuracy and add variance; a soft prompt trained for like answers raises it consistently.",
        "unobserved phrasings cost about 2 to 5 points on average, as remembered")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"observed": 2, "unobserved": 2}, {
            "facts.persons": 12, "facts.values": 6, "base.width": 16, "base.layers": 1, "base.epochs": 1, "rows.train_rows": 8,
            "rows.test_facts": 1, "rows.least_mentions": 1, "tuned.length": {"steps": 1}},
            arms=("base", "plain", "augmented", "consistent"), about="every line, no evidence"),
        "default": Scale(3, {"observed": 60, "unobserved": 60}),
        "large": Scale(5, {"observed": 240, "unobserved": 240}, {
            "facts.persons": 500, "base.width": 192, "rows.train_rows": 1600, "rows.test_facts": 120}),
    }

    def recipe(self) -> dict[str, Any]:
        """A base that knows facts, a soft prompt, and questions in seen and unseen wordings."""
        return {"name": "phrasing-robustness", "seed": 0, "steps": {
            "facts": {"use": "facts-world"},
            "base": {"use": "pretrained", "inputs": {"examples": "facts"}},
            "rows": {"use": "phrased-facts", "templates": 12, "inputs": {"facts": "facts"}},
            "tuned": {"use": "fit", "method": "prompt-tuning:tokens=10", "learning_rate": 3e-2, "schedule": "constant",
                      "tasks": [{"data": "examples.train", "objective": "supervised"}], "length": {"epochs": 6},
                      "dtype": "float32", "inputs": {"base": "base", "examples": "rows"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": ["observed", "unobserved"], "metrics": ["multiple-choice"],
                      "inputs": {"base": "base", "tuned": "tuned", "examples": "rows"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """No prompt; one wording; twelve; twelve with the likeness, at half the steps: each row is read twice."""
        likeness = [{"data": "examples.train", "objective": "phrasing-consistency:lam=0.8"}]
        return {"base": without(self.recipe(), "tuned"), "plain": {"rows.templates": 1}, "augmented": {},
                "consistent": {"tuned.tasks": likeness, "tuned.length": {"epochs": 3}}}

    def guards(self) -> tuple[Guard, ...]:
        """The soft prompt learns the tasks at all; chance is 0.25."""
        return (Guard("the tasks are learned: at least 0.4 right in seen wordings", SEEN, ("augmented",), least=0.4),)

    def claims(self) -> tuple[Claim, ...]:
        """The gap, and what the likeness adds to nothing and to more wordings."""
        return (
            Claim("unseen wordings cost", "after tuning on one wording, unseen ones lie below seen ones", "plain", "plain",
                  UNSEEN, "lower", 0.05, 0.6, 0.03, left_measure=SEEN, paper="2 to 5 points"),
            Claim("likeness helps", "with the likeness, unseen wordings are answered better than after plain prompt tuning",
                  "plain", "consistent", UNSEEN, "higher", 0.05, 0.45, 0.03, paper="a few points"),
            Claim("more than augmentation", "with the likeness, unseen wordings are answered better than after twelve alone",
                  "augmented", "consistent", UNSEEN, "higher", 0.05, 0.45, 0.03, main=False))
